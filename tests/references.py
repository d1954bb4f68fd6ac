"""What the parity tests share: random weights, small models, and timm's twin of one of ours."""

from collections.abc import Mapping
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.vit import ViTConfig
from vitreous.weights import layouts
from vitreous.weights.timm import to_timm
from vitreous.weights.timm_config import describe

SomeModule = TypeVar("SomeModule", bound=nn.Module)


def tiny(**changes: Any) -> ViTConfig:
    """A ViT that computes in milliseconds: 4 x 4 patches, 2 blocks, 32 channels."""
    shape: dict[str, Any] = {
        "patch_size": 8,
        "width": 32,
        "depth": 2,
        "num_heads": 4,
        "mlp_dim": 48,
        "image_size": 32,
    }
    return ViTConfig(**{**shape, **changes})


@torch.no_grad()
def randomise(module: SomeModule, *, seed: int = 0) -> SomeModule:
    """`module` in evaluation mode with random weights, also where training starts at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        if parameter.ndim == 1:
            parameter += 0.5
    return module.eval()


def random_images(*shape: int, seed: int = 1) -> torch.Tensor:
    """Normal pixels, the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def twins(config: ClassifierConfig, **arguments) -> tuple[Classifier, nn.Module]:
    """A random classifier of `config` and timm's model with the same weights."""
    ours = randomise(config.build())
    described = describe(config)
    assert described is not None
    theirs = timm.create_model(
        described["architecture"],
        num_classes=config.num_classes,
        **{**described["model_args"], **arguments},
    )
    theirs.load_state_dict(to_timm(ours))
    return ours, theirs.eval()


def read(tensors: Mapping[str, Tensor], document: Mapping[str, Any] | None = None) -> Classifier:
    """The classifier in tensors of any layout; `document` is the config.json beside them."""
    return layouts.classifier_of(layouts.read(dict(tensors), document or {}))


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, as a fraction of the largest value expected."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether names and bits are the same."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
