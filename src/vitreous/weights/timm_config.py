"""The arguments that make timm build the same function, for the config.json of a product folder."""

import math
from typing import Any

from vitreous.block import BranchNorm, Parallel, PreNorm
from vitreous.classifier import ClassifierConfig
from vitreous.feed_forward import GELU, QuickGELU, SwiGLU
from vitreous.head import DistilledHead, LinearHead
from vitreous.pooling import AttentionPool, ClassAndDistillation, Mean, Pooling
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d
from vitreous.relative import RelativeBias, RelativeMLP
from vitreous.resnet import Epsilons, ResNetConfig, ResNetStem
from vitreous.stem import Patchify
from vitreous.tokens import Encoder
from vitreous.variants import timm_name
from vitreous.vit import ViTConfig
from vitreous.weights.timm import ACTIVATIONS, POOLINGS, RESNET_EPSILONS

ROTARY, RELATIVE = "vit_base_patch16_rope_224", "vit_relpos_base_patch16_224"
"""Entrances of timm to its classes for rotary and for relative positions."""
GATED = "vit_giant_patch14_dinov2"
"""timm's entrance to a SwiGLU."""


def pool_name(pooling: Pooling) -> str | None:
    """timm's word for a pooling, if it has one."""
    return next((name for name, known in POOLINGS.items() if type(known) is type(pooling)), None)


def first_conv(encoder: Encoder) -> str:
    """timm's name of the layer that sees pixels."""
    if isinstance(encoder, ViTConfig) and isinstance(encoder.stem, ResNetStem):
        return f"patch_embed.backbone.{'stem.' if encoder.stem.units else ''}conv"
    return "patch_embed.proj" if isinstance(encoder, ViTConfig) else "stem.conv"


def classifier_name(config: ClassifierConfig) -> str | list[str]:
    """timm's name of the layer that scores classes, or of both."""
    if isinstance(config.head, DistilledHead):
        return ["head", "head_dist"]
    return "head" if isinstance(config.encoder, ViTConfig) else "head.fc"


def describe(config: ClassifierConfig) -> dict[str, Any] | None:
    """`architecture` and `model_args` with which timm builds exactly this function; None where it cannot.

    `num_classes` stands beside them, not among the arguments: transformers gives it once more.
    """
    encoder = config.encoder
    if isinstance(encoder, ResNetConfig):
        return _describe_resnet(encoder, config)
    assert isinstance(encoder, ViTConfig)
    pool = pool_name(config.pooling)
    distilled = isinstance(config.head, DistilledHead)
    special = _special(config)
    if special is None or (pool is None and not distilled):
        return None
    architecture, arguments = special
    activation = next((name for name, layer in ACTIVATIONS.items() if layer == encoder.feed_forward), None)
    gated = isinstance(encoder.feed_forward, SwiGLU)
    normed_mean = isinstance(config.pooling, Mean) and config.pooling.norm
    arguments = {
        "img_size": list(encoder.image_shape) if isinstance(encoder.image_size, tuple) else encoder.image_size,
        "patch_size": encoder.patch_size,
        "in_chans": encoder.channels,
        "global_pool": pool or "token",
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "mlp_ratio": mlp_ratio(encoder, gated=gated),
        "qkv_bias": encoder.qkv_bias,
        "class_token": encoder.class_token,
    } | arguments
    if architecture != ROTARY:
        arguments["fc_norm"] = normed_mean
        if encoder.layer_scale is not None:
            arguments["init_values"] = (
                encoder.layer_scale or 1e-5
            )  # the tensors have the value; zero would leave it out
        elif architecture in (RELATIVE, GATED):
            arguments["init_values"] = 0
        if activation not in ("gelu", None):
            arguments["act_layer"] = activation
        if encoder.qk_norm:
            arguments["qk_norm"] = True
    if distilled:
        del arguments["class_token"]
    return {"architecture": architecture, "model_args": arguments}


def _special(config: ClassifierConfig) -> tuple[str, dict[str, Any]] | None:
    """The entrance of timm that can build an encoder, and arguments that only that one knows."""
    encoder, head = config.encoder, config.head
    assert isinstance(encoder, ViTConfig)
    position = encoder.position
    normed_mean = isinstance(config.pooling, Mean) and config.pooling.norm
    plain_stem = encoder.stem == Patchify(bias=not encoder.stem_norm)
    reasons = {
        "deit_base_distilled_patch16_224": isinstance(head, DistilledHead),
        "vit_base_patch16_clip_224": encoder.norm_eps == 1e-5,
        GATED: isinstance(encoder.feed_forward, SwiGLU),
        "vit_pwee_patch16_reg1_gap_256": isinstance(encoder.block, Parallel),
        "vit_base_patch16_rpn_224": isinstance(encoder.block, BranchNorm),
        RELATIVE: isinstance(position, RelativeBias | RelativeMLP),
        ROTARY: isinstance(position, RoPE2d),
        _hybrid(encoder): isinstance(encoder.stem, ResNetStem),
    }
    wanted = [name for name, needed in reasons.items() if needed]
    known = (
        isinstance(position, NoPosition | Learned | SinCos2d | RoPE2d | RelativeBias | RelativeMLP),
        isinstance(encoder.block, PreNorm | Parallel | BranchNorm),
        isinstance(head, DistilledHead) or (isinstance(head, LinearHead) and head.representation is None),
        isinstance(head, DistilledHead) == isinstance(config.pooling, ClassAndDistillation),
        plain_stem or (isinstance(encoder.stem, ResNetStem) and not encoder.stem_norm),
        encoder.norm_eps in (1e-6, 1e-5),
        not encoder.rms_norm,
        encoder.final_norm != normed_mean,
        None not in wanted,
        not (isinstance(encoder.block, BranchNorm) and encoder.layer_scale is not None),
        not (isinstance(encoder.block, Parallel) and not isinstance(encoder.feed_forward, GELU | QuickGELU)),
        not (isinstance(config.pooling, AttentionPool) and isinstance(encoder.feed_forward, SwiGLU)),
    )
    if len(wanted) > 1 or not all(known):
        return None
    architecture = wanted[0] if wanted else "vit_base_patch16_224"
    assert architecture is not None
    if architecture == ROTARY:
        assert isinstance(position, RoPE2d)
        if (
            encoder.feed_forward != GELU()
            or normed_mean
            or encoder.qk_norm
            or encoder.stem_norm
            or not encoder.qkv_bias
            or (isinstance(config.pooling, AttentionPool) and (encoder.class_token or encoder.num_registers))
        ):
            return None
        return architecture, {
            "attn_type": "rope",
            "use_abs_pos_emb": False,
            "use_rot_pos_emb": True,
            "rope_type": "dinov3",
            "rope_temperature": position.base,
            "rope_rotate_half": True,
            "rope_grid_indexing": "ij",
            "num_reg_tokens": encoder.num_registers,
            "use_fc_norm": False,
            "init_values": 1.0 if encoder.layer_scale is None else encoder.layer_scale,
        }
    if isinstance(position, RelativeBias | RelativeMLP):
        if encoder.num_registers or encoder.stem_norm or isinstance(config.pooling, AttentionPool):
            return None
        if encoder.feed_forward != GELU():
            return None
        kind: dict[str, Any] = {"rel_pos_type": "bias"}
        if isinstance(position, RelativeMLP):
            kind = {"rel_pos_type": "mlp", "rel_pos_dim": position.hidden}
        return architecture, kind | {"shared_rel_pos": position.shared}
    if isinstance(head, DistilledHead):
        slotless = not (isinstance(position, Learned) and position.class_token_slot)
        return None if slotless or encoder.num_registers != 1 or encoder.stem_norm else (architecture, {})
    arguments: dict[str, Any] = {
        "reg_tokens": encoder.num_registers,
        "pos_embed": "none" if isinstance(position, NoPosition) else "learn",
        "no_embed_class": not (isinstance(position, Learned) and encoder.class_token and position.class_token_slot),
        "pre_norm": encoder.stem_norm,
    }
    if isinstance(encoder.stem, ResNetStem):
        del arguments["pre_norm"]
        arguments["patch_size"] = encoder.patch_size // (4 * 2 ** max(len(encoder.stem.units) - 1, 0))
    if isinstance(encoder.feed_forward, SwiGLU):
        arguments["act_layer"] = "silu"
    return architecture, arguments


def _hybrid(encoder: ViTConfig) -> str | None:
    """The entrance of timm to a hybrid with these stages, and its epsilons."""
    stem = encoder.stem
    names = {
        (): "vit_tiny_r_s16_p8_224",
        (2, 2, 2, 2): "vit_base_r26_s32_224",
        (3, 4, 9): "vit_base_r50_s16_224",
        (3, 4, 6, 3): "vit_large_r50_s32_224",
    }
    if not isinstance(stem, ResNetStem):
        return None
    eps = Epsilons(norm=stem.norm_eps, variance=stem.variance_eps, deviation=stem.deviation_eps)
    return names.get(stem.units) if eps == RESNET_EPSILONS else None


def _describe_resnet(encoder: ResNetConfig, config: ClassifierConfig) -> dict[str, Any] | None:
    eps = Epsilons(norm=encoder.norm_eps, variance=encoder.variance_eps, deviation=encoder.deviation_eps)
    linear = isinstance(config.head, LinearHead) and config.head.representation is None
    name = timm_name(encoder)  # timm takes no other numbers of units
    if eps != RESNET_EPSILONS or config.pooling != Mean() or not linear or name is None:
        return None
    return {"architecture": name, "model_args": {"in_chans": encoder.channels}}


def mlp_ratio(encoder: ViTConfig, *, gated: bool = False) -> float:
    """The ratio from which timm's `int(width * ratio)` gives `mlp_dim` again, or twice that for a gate beside it."""
    hidden = encoder.mlp_dim * (2 if gated else 1)
    ratio = hidden / encoder.width
    while int(encoder.width * ratio) < hidden:
        ratio = math.nextafter(ratio, math.inf)
    return ratio
