"""The Vision Transformer, whole and see-through. Names are imported when they are first used."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitreous.classifier import Classifier, ClassifierConfig
    from vitreous.errors import InputError
    from vitreous.fitting import fit
    from vitreous.predict import Model, Prediction, load
    from vitreous.run import Run
    from vitreous.vit import ViT, ViTConfig

__version__ = version("vitreous")
__all__ = [
    "Classifier",
    "ClassifierConfig",
    "InputError",
    "Model",
    "Prediction",
    "Run",
    "ViT",
    "ViTConfig",
    "fit",
    "load",
]

_HOMES = {
    "classifier": ("Classifier", "ClassifierConfig"),
    "errors": ("InputError",),
    "fitting": ("fit",),
    "predict": ("Model", "Prediction", "load"),
    "training": ("Run",),
    "vit": ("ViT", "ViTConfig"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"vitreous.{module}"), name)
    raise AttributeError(f"module 'vitreous' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
