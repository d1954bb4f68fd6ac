"""The config of a state dict that came without one, from the shapes of its tensors and what timm says."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, SwiGLU
from vitreous.head import LinearHead
from vitreous.pooling import AttentionPool
from vitreous.position import Learned, NoPosition
from vitreous.variants import SIZES
from vitreous.vit import ViTConfig
from vitreous.weights.mapping import instantiate
from vitreous.weights.timm import POOLINGS, from_timm

# Names behind which timm builds a plain ViT; others change activations or norms without a trace in shapes.
PLAIN = re.compile(r"(vit|deit|deit3)_[a-z0-9]+_patch\d+(_reg\d+)?(_\d+|_dinov2|_mae)(\..*)?")


def infer(tensors: Mapping[str, Tensor], *, hints: Mapping[str, Any]) -> ClassifierConfig:
    """The config whose tensors, under our names, have these shapes.

    `hints` is timm's config.json, or empty: it knows what shapes cannot tell, such as the number of heads.

    Raises:
        InputError: if these are not the tensors of a ViT, or shapes and hints leave its positions open.
    """
    arguments, pretrained = (
        hints.get("model_args") or {},
        hints.get("pretrained_cfg") or {},
    )
    if not PLAIN.fullmatch(architecture := hints.get("architecture", "vit_base_patch16_224")):
        raise InputError(f"timm's {architecture} is no plain ViT; vitreous reads vit_*, deit_* and *_dinov2 models")
    try:
        width, channels, patch_size, _ = tensors["encoder.stem.weight"].shape
        mlp_dim = tensors["encoder.blocks.0.mlp.up.weight"].shape[0]
    except (KeyError, ValueError):
        raise InputError(f"these are not the tensors of a ViT; the first are {', '.join(list(tensors)[:3])}") from None
    depth = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.blocks."))
    published = next(
        (size.num_heads for size in SIZES.values() if size.width == width),
        max(width // 64, 1),
    )
    table = tensors.get("encoder.position.table")
    if table is None and arguments.get("pos_embed") != "none":
        raise InputError("these weights have no position table, and no config.json says how patches are told apart")
    input_size = (pretrained.get("input_size") or (channels, 224, 224))[-1]
    image_size = table.shape[0] * patch_size if table is not None else input_size // patch_size * patch_size
    num_prefix = tensors["encoder.prefix"].shape[0]
    class_token = arguments.get("class_token", num_prefix > 0)
    pool = arguments.get("global_pool") or hints.get("global_pool") or ("token" if class_token else "avg")
    pooling = AttentionPool if "pooling.probe" in tensors else {name: cls for cls, name in POOLINGS.items()}.get(pool)
    if pooling is None:
        raise InputError(f"these weights pool by {pool!r}; vitreous reads {', '.join(POOLINGS.values())}")
    representation = tensors.get("head.representation.weight")
    scaled = "encoder.blocks.0.residual1.scale" in tensors
    gated = "encoder.blocks.0.mlp.gate.weight" in tensors
    return ClassifierConfig(
        encoder=ViTConfig(
            patch_size=patch_size,
            width=width,
            depth=depth,
            num_heads=arguments.get("num_heads", published),
            mlp_dim=mlp_dim,
            image_size=image_size,
            channels=channels,
            position=NoPosition()
            if table is None
            else Learned(class_token_slot="encoder.position.class_token" in tensors or not class_token),
            feed_forward=SwiGLU() if gated else GELU(tanh="tanh" in str(arguments.get("act_layer", ""))),
            class_token=class_token,
            num_registers=num_prefix - class_token,
            layer_scale=arguments.get("init_values", 1e-5) if scaled else None,
        ),
        pooling=pooling(),
        head=LinearHead(representation=None if representation is None else representation.shape[0]),
        num_classes=tensors["head.linear.weight"].shape[0] if "head.linear.weight" in tensors else 1,
    )


def convert(tensors: Mapping[str, Tensor], *, hints: Mapping[str, Any] | None = None) -> Classifier:
    """A classifier from a state dict in timm's layout, or in ours; `hints` is timm's config.json, if any.

    A state dict without a head gets one that says zero of a single class.

    Raises:
        InputError: if the tensors are not exactly those of a plain ViT.
    """
    hints, ours = dict(hints or {}), dict(tensors)
    if "patch_embed.proj.weight" in tensors:
        hints["model_args"] = {"class_token": "cls_token" in tensors} | (hints.get("model_args") or {})
        ours = from_timm(tensors)
    config = infer(ours, hints=hints)
    if "head.linear.weight" not in ours:
        ours |= {
            "head.linear.weight": torch.zeros(1, config.encoder.width),
            "head.linear.bias": torch.zeros(1),
        }
    return instantiate(config, ours)
