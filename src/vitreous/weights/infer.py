"""The config of tensors that came without one: from their shapes, and from what their layout knows of itself."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from vitreous.block import Axial, Block, BranchNorm, Parallel, PreNorm
from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError, some
from vitreous.feed_forward import GELU, FeedForward, SwiGLU
from vitreous.head import DistilledHead, Head, LinearHead
from vitreous.pooling import AttentionPool, ClassAndDistillation, ClassToken, Mean, Pooling
from vitreous.position import EveryLayer, Learned, Learned2d, Position
from vitreous.relative import RelativeBias, RelativeKeys, RelativeMLP
from vitreous.resampling import Resampling
from vitreous.resnet import VISION_TRANSFORMER, Epsilons, ResNetConfig, ResNetStem
from vitreous.stem import Patchify
from vitreous.tokens import Encoder
from vitreous.variants import SIZES
from vitreous.vit import ViTConfig
from vitreous.weights.mapping import Tensors, shape, with_axes

RANKS = {
    "encoder.root.weight": 4,
    "encoder.stem.root.weight": 4,
    "encoder.stem.patches.weight": 4,
    "encoder.stem.weight": 4,
    "encoder.prefix": 2,
    "encoder.position.table": 3,
    "encoder.position.row": 3,
    "encoder.position.column": 3,
    "encoder.position.tables.0.table": 3,
    "encoder.position.tables.0.row": 3,
    "encoder.position.tables.0.column": 3,
    "encoder.position.layers.0.table": 3,
    "encoder.position.layers.0.keys": 3,
    "encoder.position.layers.0.up.weight": 2,
    "encoder.blocks.0.mlp.up.weight": 2,
    "encoder.blocks.0.rows.mlp.up.weight": 2,
    "encoder.blocks.0.attention.query_norm.weight": 1,
    "encoder.blocks.0.rows.attention.query_norm.weight": 1,
    "head.representation.weight": 2,
    "head.linear.weight": 2,
}
"""How many axes those tensors have that tell of the model's shape."""


@dataclass(kw_only=True)
class Foreign:
    """A model in somebody else's layout, read: its tensors under our names, and what they do not tell."""

    tensors: Tensors
    num_heads: int | None = None
    """None: as the published model of that width, or one for 64 channels."""
    norm_eps: float = 1e-6
    feed_forward: FeedForward = GELU()
    """Where the layer has no gate."""
    bare_stem: bool = False
    """Whether a stem may go without a bias also where no norm follows it."""
    branch_norm: bool = False
    """Whether norms stand after layers."""
    class_token: bool = True
    """Whether the first prefix token, if there is one, is a class token."""
    pooling: Pooling | None = None
    """None: attention if the tensors have it, else the class token if there is one, else the mean."""
    position: Position | None = None
    """Where no tensor tells; None: such weights are refused."""
    resampling: Resampling = "aligned_bilinear"
    """How their project resizes positions."""
    image_size: int | tuple[int, int] | None = None
    """Where no table tells; None: 224."""
    resnet: Epsilons = VISION_TRANSFORMER
    """Of a ResNet, or a ResNet stem."""
    view: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the `EvalView` the model was measured with, but for the size."""
    classes: tuple[str, ...] | None = None
    assumed: tuple[str, ...] = ()
    """What had to be assumed, a phrase each."""
    left: tuple[str, ...] = ()
    """What of the file is not of the classifier and stays behind, a phrase each."""


def infer(foreign: Foreign) -> ClassifierConfig:
    """The config whose tensors have these names and shapes.

    Raises:
        InputError: if these are not the tensors of a ViT or a ResNet, or nothing says how its patches are told apart.
    """
    tensors = foreign.tensors
    for name, rank in RANKS.items():
        if name in tensors:
            with_axes(tensors, name, rank)
    resnet = "encoder.root.weight" in tensors or any(name.startswith("encoder.stages.") for name in tensors)
    encoder = _resnet(foreign) if resnet else _vit(foreign)
    return ClassifierConfig(
        encoder=encoder, pooling=_pooling(foreign, encoder), head=_head(tensors), num_classes=_num_classes(tensors)
    )


def with_head(tensors: Tensors, config: ClassifierConfig) -> Tensors:
    """`tensors`, with a head that says zero of a single class where they have none."""
    if _has(tensors, "head.linear.") or _has(tensors, "head.distillation."):
        return tensors
    width = config.pooling.features(config.encoder)
    if isinstance(config.head, LinearHead) and config.head.representation:
        width = config.head.representation
    return tensors | {"head.linear.weight": torch.zeros(1, width), "head.linear.bias": torch.zeros(1)}


def _resnet(foreign: Foreign) -> ResNetConfig:
    tensors, eps = foreign.tensors, foreign.resnet
    if "encoder.root.weight" not in tensors:
        raise InputError("these tensors of a ResNet lack encoder.root.weight, the first convolution; fetch them again")
    channels = tensors["encoder.root.weight"].shape
    return ResNetConfig(
        units=_units(tensors, "encoder.stages"),
        multiplier=max(channels[0] // 64, 1),
        channels=channels[1],
        image_size=foreign.image_size or 224,
        norm_eps=eps.norm,
        variance_eps=eps.variance,
        deviation_eps=eps.deviation,
    )


def _units(tensors: Tensors, stages: str) -> tuple[int, ...]:
    """How many units each stage has, from the numbers in the names."""
    numbers = {tuple(map(int, name.removeprefix(f"{stages}.").split(".")[:2])) for name in tensors if stages in name}
    depth = [sum(stage == i for stage, _ in numbers) for i in range(1 + max((s for s, _ in numbers), default=-1))]
    return tuple(depth)


def _vit(foreign: Foreign) -> ViTConfig:
    tensors = foreign.tensors
    hybrid = any(_has(tensors, f"encoder.stem.{part}.") for part in ("root", "norm", "stages", "patches"))
    name, root = "encoder.stem.patches.weight" if hybrid else "encoder.stem.weight", "encoder.stem.root.weight"
    if lacking := [needed for needed in (name, *[root] * hybrid, "encoder.prefix") if needed not in tensors]:
        raise InputError(
            f"these tensors lack {lacking[0]}, which every ViT has; they are {some(list(tensors), most=3)}"
        )
    width, channels, patch_size, _ = tensors[name].shape
    stem_norm = _has(tensors, "encoder.stem_norm.")
    stem = Patchify(bias="encoder.stem.bias" in tensors or not (stem_norm or foreign.bare_stem))
    if hybrid:
        eps, units = foreign.resnet, _units(tensors, "encoder.stem.stages")
        stem = ResNetStem(units=units, norm_eps=eps.norm, variance_eps=eps.variance, deviation_eps=eps.deviation)
        patch_size *= stem.shrink
        channels = tensors[root].shape[1]
    first = next((p for p in ("encoder.blocks.0.", "encoder.blocks.0.rows.") if f"{p}mlp.up.weight" in tensors), None)
    if first is None:
        raise InputError(
            f"these tensors lack encoder.blocks.0.mlp.up.weight, which every ViT has; "
            f"they are {some(list(tensors), most=3)}"
        )
    numbers = {int(name.split(".")[2]) for name in tensors if name.startswith("encoder.blocks.")}
    if absent := next((number for number in range(len(numbers)) if number not in numbers), None):
        raise InputError(f"these tensors have none of block {absent}, but of block {max(numbers)}; fetch them again")
    num_prefix = tensors["encoder.prefix"].shape[0]
    class_token = num_prefix > 0 and foreign.class_token
    in_blocks = "encoder.blocks."
    scaled = _has(tensors, in_blocks, ".residual1.scale", ".residual2.scale", ".residual.scale")
    position, grid = _position(foreign, class_token)
    num_heads = _heads(tensors, first, width) or foreign.num_heads
    if num_heads is None:
        num_heads = _published_heads(width)
    if num_heads < 1 or width % num_heads:
        raise InputError(
            f"{name} is {shape(tensors[name])}, but {num_heads} heads need a width that they divide; "
            "fetch the weights again"
        )
    return ViTConfig(
        patch_size=patch_size,
        width=width,
        depth=len(numbers),
        num_heads=num_heads,
        mlp_dim=tensors[f"{first}mlp.up.weight"].shape[0],
        image_size=_image_size(grid, patch_size, foreign.image_size),
        channels=channels,
        stem=stem,
        position=position,
        feed_forward=SwiGLU() if _has(tensors, in_blocks, ".mlp.gate.weight") else foreign.feed_forward,
        block=_block(foreign, first),
        qkv_bias=_has(tensors, in_blocks, ".attention.qkv.bias"),
        qk_norm=_has(tensors, in_blocks, ".query_norm.weight", ".key_norm.weight"),
        rms_norm=not _has(tensors, in_blocks, ".norm.bias", ".norm1.bias", ".norm2.bias"),
        norm_eps=foreign.norm_eps,
        class_token=class_token,
        num_registers=num_prefix - class_token,
        layer_scale=1e-5 if scaled else None,
        stem_norm=stem_norm,
        final_norm=_has(tensors, "encoder.norm."),
    )


def _has(tensors: Tensors, start: str, *ends: str) -> bool:
    """Whether the name of any tensor begins and ends so; all of a kind are needed, but any one tells of the kind."""
    return any(name.startswith(start) and name.endswith(ends or "") for name in tensors)


def _heads(tensors: Tensors, first: str, width: int) -> int | None:
    """The number of heads, where a shape tells it."""
    if (normed := tensors.get(f"{first}attention.query_norm.weight")) is not None:
        return width // len(normed)
    axes = {"table": 2, "keys": 1, "down.weight": 0}
    found = ((tensors.get(f"encoder.position.layers.0.{name}"), axis) for name, axis in axes.items())
    return next((tensor.shape[axis] for tensor, axis in found if tensor is not None), None)


def _published_heads(width: int) -> int:
    return next((size.num_heads for size in SIZES.values() if size.width == width), max(width // 64, 1))


def _block(foreign: Foreign, first: str) -> Block:
    if first.endswith("rows."):
        return Axial()
    if f"{first}norm.weight" in foreign.tensors:
        return Parallel()
    return BranchNorm() if foreign.branch_norm else PreNorm()


def _position(foreign: Foreign, class_token: bool) -> tuple[Position, tuple[int, int] | None]:
    """The kind of positions, and the grid they were trained on where it can be told."""
    tensors, place = foreign.tensors, "encoder.position."
    settings: dict[str, Any] = {"resampling": foreign.resampling}

    def absolute(prefix: str) -> tuple[Learned | Learned2d, tuple[int, int]] | None:
        slot = f"{prefix}class_token" in tensors or not class_token
        if (table := tensors.get(f"{prefix}table")) is not None:
            return Learned(class_token_slot=slot, **settings), (table.shape[0], table.shape[1])
        if (row := tensors.get(f"{prefix}row")) is not None:
            columns = tensors[f"{prefix}column"].shape[1]
            return Learned2d(class_token_slot=slot, **settings), (row.shape[0], columns)
        return None

    def one_for_all(modules: str) -> bool:
        return all(name.startswith(f"{place}{modules}0.") for name in tensors if name.startswith(f"{place}{modules}"))

    if found := absolute(place):
        return found
    if found := absolute(f"{place}tables.0."):
        return EveryLayer(kind=found[0], shared=one_for_all("tables.")), found[1]
    shared = one_for_all("layers.")
    if (table := tensors.get(f"{place}layers.0.table")) is not None:
        return RelativeBias(shared=shared, **settings), ((table.shape[0] + 1) // 2, (table.shape[1] + 1) // 2)
    if (keys := tensors.get(f"{place}layers.0.keys")) is not None:
        side = math.isqrt((keys.shape[0] + 1) // 2)
        return RelativeKeys(shared=shared), (side, side)
    if (up := tensors.get(f"{place}layers.0.up.weight")) is not None:
        return RelativeMLP(shared=shared, hidden=up.shape[0]), None
    if foreign.position is None:
        raise InputError(
            "these weights have no positions, such as encoder.position.table, "
            "and no config.json says how patches are told apart; fetch it, too"
        )
    return foreign.position, None


def _image_size(
    grid: tuple[int, int] | None, patch_size: int, given: int | tuple[int, int] | None
) -> int | tuple[int, int]:
    if grid is not None:
        height, width = (side * patch_size for side in grid)
        return height if height == width else (height, width)
    if isinstance(given, tuple):
        return given
    return max((given or 224) // patch_size, 1) * patch_size


def _pooling(foreign: Foreign, encoder: Encoder) -> Pooling:
    if _has(foreign.tensors, "pooling.probe") or _has(foreign.tensors, "pooling.query."):
        return AttentionPool()
    if _has(foreign.tensors, "head.distillation."):
        return ClassAndDistillation()
    normed = _has(foreign.tensors, "pooling.norm.")
    if foreign.pooling is not None and not normed:
        return foreign.pooling
    has_class_token = isinstance(encoder, ViTConfig) and encoder.class_token
    return ClassToken() if has_class_token and not normed else Mean(norm=normed)


def _head(tensors: Tensors) -> Head:
    if _has(tensors, "head.distillation."):
        return DistilledHead()
    given = (tensors.get(f"head.representation.{kind}") for kind in ("weight", "bias"))
    return LinearHead(representation=next((len(tensor) for tensor in given if tensor is not None), None))


def _num_classes(tensors: Tensors) -> int:
    parts = ("linear.weight", "linear.bias", "distillation.weight", "distillation.bias")
    given = (tensors.get(f"head.{part}") for part in parts)
    return next((len(tensor) for tensor in given if tensor is not None), 1)
