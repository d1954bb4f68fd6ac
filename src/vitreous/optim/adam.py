"""Adam, and Adam with decoupled decay."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vitreous.config import BELOW_ONE, check_ranges
from vitreous.optim.base import Decoupled, OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class AdamW(Decoupled):
    """Adam with decoupled weight decay: pre-training, and training from scratch (the paper's Table 3)."""

    weight_decay: float = 0.1
    """Decay of matrices and convolutions, times the learning rate; vectors and positions are left alone."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging of gradients and of their squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, betas=(0, BELOW_ONE))

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.groups(parameters), lr=0.0, betas=self.betas, fused=True)


@dataclass(frozen=True, kw_only=True)
class Adam(OptimizerConfig):
    """Adam, whose decay is a part of the gradient (arXiv:1412.6980)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Averaging of gradients and of their squares."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, betas=(0, BELOW_ONE))

    def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.groups(parameters), lr=0.0, betas=self.betas, fused=True)
