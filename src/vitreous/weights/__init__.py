"""Trained models in and out: product folders, foreign weights, the Hub."""

from vitreous.weights.open import open_model
from vitreous.weights.product import Product, save_product
from vitreous.weights.transplant import fit_encoder

__all__ = ["Product", "fit_encoder", "open_model", "save_product"]
