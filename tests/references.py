"""What the parity tests share: random weights, small models, and timm's twin of one of ours."""

from collections.abc import Mapping
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from vitreous.block import BranchNorm, Parallel
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.feed_forward import GELU, QuickGELU, SwiGLU
from vitreous.head import DistilledHead, Head
from vitreous.pooling import AttentionPool, ClassAndDistillation, Mean, Pooling
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d
from vitreous.relative import RelativeBias, RelativeMLP
from vitreous.resnet import Epsilons, ResNetConfig, ResNetStem
from vitreous.stem import Patchify
from vitreous.variants import vit
from vitreous.vit import ViTConfig
from vitreous.weights import layouts
from vitreous.weights.timm_config import describe
from vitreous.weights.timm_tensors import to_timm

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


def epsilons(module: nn.Module) -> set[float]:
    """All epsilons of a model; random weights are too large to show a wrong one."""
    given: list[Any] = [part.eps for part in module.modules() if hasattr(part, "eps")]
    spread = ((eps.norm, eps.variance, eps.deviation) if isinstance(eps, Epsilons) else (eps,) for eps in given)
    return {number for numbers in spread for number in numbers if number}


def same_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether names and bits are the same."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def _small(pooling: Pooling | None = None, head: Head | None = None, **changes: Any) -> ClassifierConfig:
    parts = {name: part for name, part in {"pooling": pooling, "head": head}.items() if part is not None}
    return ClassifierConfig(encoder=tiny(**changes), num_classes=3, **parts)


_OF_TIMM: dict[str, Any] = {"norm_eps": 1e-5, "variance_eps": 1e-8, "deviation_eps": 0.0}
IN_TIMM: dict[str, ClassifierConfig] = {
    "class token": _small(),
    "mean": _small(Mean(), class_token=False),
    "mean beside a class token": _small(Mean()),
    "normed mean": _small(Mean(norm=True), final_norm=False),
    "registers": _small(num_registers=4),
    "class token without place": _small(position=Learned(class_token_slot=False), num_registers=1),
    "layer scale": _small(layer_scale=0.1),
    "layer scale of zero": _small(layer_scale=0.0),
    "sine-cosine": _small(position=SinCos2d()),
    "sine-cosine of MAE": _small(position=SinCos2d(reach_temperature=False)),
    "no position": _small(position=NoPosition()),
    "rotary": _small(position=RoPE2d(base=50.0)),
    "rotary, scaled": _small(Mean(), position=RoPE2d(), layer_scale=0.1, num_registers=2),
    "rotary, attention pooling": _small(AttentionPool(), position=RoPE2d(), class_token=False),
    "rotary, gated, without biases": _small(position=RoPE2d(), feed_forward=SwiGLU(), mlp_dim=49, qkv_bias=False),
    "rotary as DINOv3": _small(Mean(), position=RoPE2d(), num_registers=4, layer_scale=0.1, norm_eps=1e-5),
    "relative bias": _small(Mean(), position=RelativeBias(), class_token=False),
    "relative bias beside a class token": _small(position=RelativeBias()),
    "relative bias, oblong": _small(Mean(), position=RelativeBias(), class_token=False, image_size=(32, 48)),
    "shared relative bias, scaled": _small(position=RelativeBias(shared=True), layer_scale=0.1),
    "a network of offsets": _small(position=RelativeMLP(hidden=16)),
    "a shared network of offsets, oblong": _small(position=RelativeMLP(shared=True), image_size=(32, 48)),
    "relative bias, normed mean": _small(Mean(norm=True), final_norm=False, position=RelativeBias()),
    "attention pooling": _small(AttentionPool(), class_token=False, position=SinCos2d()),
    "attention pooling beside a class token": _small(AttentionPool(), feed_forward=GELU(tanh=True)),
    "tanh GELU": _small(feed_forward=GELU(tanh=True)),
    "QuickGELU": _small(feed_forward=QuickGELU()),
    "SwiGLU": _small(feed_forward=SwiGLU()),
    "SwiGLU, scaled": _small(feed_forward=SwiGLU(), layer_scale=0.1, mlp_dim=49),
    "parallel": _small(block=Parallel()),
    "parallel, scaled, without biases": _small(block=Parallel(), layer_scale=0.1, qkv_bias=False, qk_norm=True),
    "norms behind layers": _small(block=BranchNorm()),
    "CLIP": _small(stem_norm=True, stem=Patchify(bias=False), norm_eps=1e-5),
    "normed queries and keys": _small(qk_norm=True),
    "no bias of queries, keys and values": _small(qkv_bias=False),
    "distilled": _small(ClassAndDistillation(), DistilledHead(), num_registers=1),
    "hybrid of R50": _small(stem=ResNetStem(**_OF_TIMM), patch_size=16, image_size=32),
    "hybrid of R26": _small(
        stem=ResNetStem(units=(2, 2, 2, 2), **_OF_TIMM), patch_size=32, image_size=64, class_token=False, pooling=Mean()
    ),
    "hybrid of the root alone": _small(stem=ResNetStem(units=(), **_OF_TIMM), num_registers=2),
    "ResNet": ClassifierConfig(encoder=ResNetConfig(image_size=32, variance_eps=1e-8), pooling=Mean(), num_classes=3),
    "one channel, oblong": _small(channels=1, image_size=(32, 48)),
    "a shape nobody named": ClassifierConfig(encoder=vit("64x2/4", image_size=32, mlp_dim=129), num_classes=3),
}
"""A model of each kind that timm has, too."""
