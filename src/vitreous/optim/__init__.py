"""What moves the weights. One file per optimizer; `base` says what an optimizer is."""

from vitreous.optim.adafactor import Adafactor
from vitreous.optim.adam import Adam, AdamW
from vitreous.optim.base import Decoupled, OptimizerConfig
from vitreous.optim.muon import Muon
from vitreous.optim.sgd import SGD

__all__ = ["SGD", "Adafactor", "Adam", "AdamW", "Decoupled", "Muon", "OptimizerConfig"]
