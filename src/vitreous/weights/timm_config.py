"""The arguments that make timm build the same function, for the config.json of a product folder.

timm has several classes of ViT, and each is reached by the name of a published model: its entrance here.
"""

import math
from typing import Any

from vitreous.block import BranchNorm, Parallel
from vitreous.classifier import ClassifierConfig
from vitreous.feed_forward import GELU, SwiGLU
from vitreous.head import DistilledHead
from vitreous.pooling import AttentionPool, ClassAndDistillation, Mean, Pooling
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d
from vitreous.relative import RelativeBias, RelativeMLP
from vitreous.resnet import TIMM, ResNetConfig, ResNetStem
from vitreous.stem import Patchify
from vitreous.tokens import Encoder
from vitreous.variants import timm_name
from vitreous.vit import ViTConfig
from vitreous.weights.plain import beyond_linear, beyond_plain
from vitreous.weights.timm import ACTIVATIONS, POOLINGS

PLAIN = "vit_base_patch16_224"
CLIP = "vit_base_patch16_clip_224"
DISTILLED = "deit_base_distilled_patch16_224"
GATED = "vit_giant_patch14_dinov2"
PARALLEL = "vit_pwee_patch16_reg1_gap_256"
BRANCH_NORM = "vit_base_patch16_rpn_224"
RELATIVE = "vit_relpos_base_patch16_224"
ROTARY, DINOV3 = "vit_base_patch16_rope_224", "vit_base_patch16_dinov3"
HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_base_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}
"""By the units of their ResNet; timm has no argument for these."""


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


def lacks(config: ClassifierConfig) -> dict[str, str]:
    """The fields of a model, as `name=value`, that keep timm from building it; empty where nothing does."""
    encoder = config.encoder
    if isinstance(encoder, ResNetConfig):
        return _lacks_resnet(encoder, config)
    assert isinstance(encoder, ViTConfig)
    special, entrances = beyond_plain(config), _entrances(config)
    if len(entrances) > 1:  # one class cannot have what two have
        return {name: special[name] for name in entrances}
    has = _has(config, next(iter(entrances.values()), PLAIN))
    return {name: value for name, value in special.items() if not has.get(name)}


def _lacks_resnet(encoder: ResNetConfig, config: ClassifierConfig) -> dict[str, str]:
    lacking = beyond_linear(config, Mean())
    if timm_name(encoder) is None:  # timm takes no other numbers of units
        lacking["units"] = f"units={encoder.units}, multiplier={encoder.multiplier}"
    if encoder.epsilons != TIMM:
        lacking["epsilons"] = str(encoder.epsilons)
    return lacking


def _entrances(config: ClassifierConfig) -> dict[str, str]:
    """For each field with a value that only one class of timm's has, the entrance to that class."""
    encoder, found = config.encoder, {}
    assert isinstance(encoder, ViTConfig)
    if isinstance(config.head, DistilledHead):
        found["head"] = DISTILLED
    if isinstance(encoder.stem, ResNetStem) and encoder.stem.units in HYBRIDS:
        found["stem"] = HYBRIDS[encoder.stem.units]
    if isinstance(encoder.block, Parallel):
        found["block"] = PARALLEL
    if isinstance(encoder.block, BranchNorm):
        found["block"] = BRANCH_NORM
    if isinstance(encoder.position, RelativeBias | RelativeMLP):
        found["position"] = RELATIVE
    if isinstance(encoder.position, RoPE2d):  # the one class that can be gated, and have either epsilon, besides
        found["position"] = DINOV3 if encoder.norm_eps == 1e-5 else ROTARY
        return found
    if encoder.norm_eps == 1e-5:
        found["norm_eps"] = CLIP
    if isinstance(encoder.feed_forward, SwiGLU):
        found["feed_forward"] = GATED
    return found


def _has(config: ClassifierConfig, entrance: str) -> dict[str, bool]:
    """Whether the class behind an entrance can have what a model has in each field."""
    encoder, pooling = config.encoder, config.pooling
    assert isinstance(encoder, ViTConfig)
    normed_mean, by_attention = isinstance(pooling, Mean) and pooling.norm, isinstance(pooling, AttentionPool)
    has = {
        **dict.fromkeys(("class_token", "num_registers", "qkv_bias", "qk_norm", "layer_scale"), True),
        "position": isinstance(encoder.position, NoPosition | Learned | SinCos2d),
        "stem": encoder.stem == Patchify(bias=not encoder.stem_norm),
        "stem_norm": encoder.stem == Patchify(bias=False),
        "feed_forward": encoder.feed_forward in ACTIVATIONS.values(),
        "pooling": pool_name(pooling) is not None and not (normed_mean and encoder.final_norm),
        "final_norm": normed_mean,
    }
    if entrance == CLIP:
        has["norm_eps"] = True
    elif entrance == PARALLEL:
        has["block"] = True
    elif entrance == BRANCH_NORM:
        has |= {"block": True, "layer_scale": False}
    elif entrance == GATED:
        has |= {"feed_forward": True, "pooling": has["pooling"] and not by_attention}
    elif entrance == RELATIVE:
        has |= {"position": True, "pooling": has["pooling"] and not by_attention}
        has |= dict.fromkeys(("feed_forward", "num_registers", "stem_norm"), False)
    elif entrance == DISTILLED:
        has |= {"head": True, "pooling": isinstance(pooling, ClassAndDistillation)}
        has |= {"num_registers": encoder.num_registers == 1, "position": False, "stem_norm": False}
    elif entrance in (ROTARY, DINOV3):
        patches_alone = not encoder.class_token and not encoder.num_registers
        has |= {
            "position": True,
            "norm_eps": entrance == DINOV3,
            "feed_forward": isinstance(encoder.feed_forward, SwiGLU),
        }
        has |= {"pooling": pooling == Mean() or (by_attention and patches_alone)}
        has |= dict.fromkeys(("qk_norm", "stem_norm", "final_norm"), False)
    elif entrance in HYBRIDS.values():
        assert isinstance(encoder.stem, ResNetStem)
        has |= {"stem": encoder.stem.epsilons == TIMM, "stem_norm": False}
    return has


def describe(config: ClassifierConfig) -> dict[str, Any]:
    """`architecture` and `model_args` with which timm builds exactly the function of a model that lacks nothing.

    `num_classes` stands beside them, not among the arguments: transformers gives it once more.
    """
    encoder = config.encoder
    if isinstance(encoder, ResNetConfig):
        return {"architecture": timm_name(encoder), "model_args": {"in_chans": encoder.channels}}
    assert isinstance(encoder, ViTConfig)
    entrance = next(iter(_entrances(config).values()), PLAIN)
    arguments = {
        "img_size": list(encoder.image_size) if isinstance(encoder.image_size, tuple) else encoder.image_size,
        "patch_size": encoder.patch_size,
        "in_chans": encoder.channels,
        "global_pool": pool_name(config.pooling) or "token",
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "mlp_ratio": mlp_ratio(encoder, doubled=entrance == GATED),
        "qkv_bias": encoder.qkv_bias,
        "class_token": encoder.class_token,
    }
    if entrance in (ROTARY, DINOV3):
        arguments |= _rotary(encoder)
    else:
        arguments |= _of_all_but_rotary(config)
        if encoder.layer_scale is None and entrance in (RELATIVE, GATED):
            arguments["init_values"] = 0
    if entrance == RELATIVE:
        arguments |= _relative(encoder)
    elif entrance == DISTILLED:
        del arguments["class_token"]
    elif entrance not in (ROTARY, DINOV3):
        arguments |= _of_plain(encoder)
    return {"architecture": entrance, "model_args": arguments}


def _of_all_but_rotary(config: ClassifierConfig) -> dict[str, Any]:
    encoder = config.encoder
    assert isinstance(encoder, ViTConfig)
    arguments: dict[str, Any] = {"fc_norm": isinstance(config.pooling, Mean) and config.pooling.norm}
    if encoder.layer_scale is not None:  # the tensors have the value, but zero would leave the layer out
        arguments["init_values"] = encoder.layer_scale or 1e-5
    if encoder.qk_norm:
        arguments["qk_norm"] = True
    if isinstance(encoder.feed_forward, SwiGLU):
        arguments["act_layer"] = "silu"
    elif encoder.feed_forward != GELU():
        arguments["act_layer"] = next(name for name, layer in ACTIVATIONS.items() if layer == encoder.feed_forward)
    return arguments


def _of_plain(encoder: ViTConfig) -> dict[str, Any]:
    """What the class of plain ViTs and those that build on it take, hybrids among them."""
    position = encoder.position
    arguments: dict[str, Any] = {
        "reg_tokens": encoder.num_registers,
        "pos_embed": "none" if isinstance(position, NoPosition) else "learn",
        "no_embed_class": not (isinstance(position, Learned) and encoder.class_token and position.class_token_slot),
    }
    if isinstance(encoder.stem, ResNetStem):
        return arguments | {"patch_size": encoder.patch_size // encoder.stem.shrink}
    return arguments | {"pre_norm": encoder.stem_norm}


def _relative(encoder: ViTConfig) -> dict[str, Any]:
    position = encoder.position
    assert isinstance(position, RelativeBias | RelativeMLP)
    shared = {"shared_rel_pos": position.shared}
    if isinstance(position, RelativeMLP):
        return {"rel_pos_type": "mlp", "rel_pos_dim": position.hidden, **shared}
    return {"rel_pos_type": "bias", **shared}


def _rotary(encoder: ViTConfig) -> dict[str, Any]:
    assert isinstance(encoder.position, RoPE2d)
    return {
        "attn_type": "rope",
        "use_abs_pos_emb": False,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_temperature": encoder.position.base,
        "rope_rotate_half": True,
        "rope_grid_indexing": "ij",
        "num_reg_tokens": encoder.num_registers,
        "use_fc_norm": False,
        "init_values": 1.0 if encoder.layer_scale is None else encoder.layer_scale,
        **({"swiglu_mlp": True, "swiglu_align_to": 1} if isinstance(encoder.feed_forward, SwiGLU) else {}),
    }


def mlp_ratio(encoder: ViTConfig, *, doubled: bool = False) -> float:
    """The ratio from which timm's `int(width * ratio)` gives `mlp_dim` again, or twice that for a gate beside it."""
    hidden = encoder.mlp_dim * (2 if doubled else 1)
    ratio = hidden / encoder.width
    while int(encoder.width * ratio) < hidden:
        ratio = math.nextafter(ratio, math.inf)
    return ratio
