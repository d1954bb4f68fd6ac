"""timm's layout of a ViT: names of tensors, and the arguments that make timm build the same function."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU
from vitreous.head import LinearHead
from vitreous.pooling import AttentionPool, ClassToken, Mean
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2d, SinCos2dEmbedding
from vitreous.stem import Patchify
from vitreous.vit import ViTConfig
from vitreous.weights.mapping import Rules, Tensors, inverse, rename

RULES: Rules = (
    ("encoder.stem", "patch_embed.proj"),
    ("encoder.blocks.*.norm1", "blocks.*.norm1"),
    ("encoder.blocks.*.attention.qkv", "blocks.*.attn.qkv"),
    ("encoder.blocks.*.attention.out", "blocks.*.attn.proj"),
    ("encoder.blocks.*.residual1.scale", "blocks.*.ls1.gamma"),
    ("encoder.blocks.*.norm2", "blocks.*.norm2"),
    ("encoder.blocks.*.mlp.up", "blocks.*.mlp.fc1"),
    ("encoder.blocks.*.mlp.down", "blocks.*.mlp.fc2"),
    ("encoder.blocks.*.residual2.scale", "blocks.*.ls2.gamma"),
    ("encoder.norm", "norm"),
    ("pooling.probe", "attn_pool.latent"),
    ("pooling.query", "attn_pool.q"),
    ("pooling.key_value", "attn_pool.kv"),
    ("pooling.out", "attn_pool.proj"),
    ("pooling.norm", "attn_pool.norm"),
    ("pooling.mlp.up", "attn_pool.mlp.fc1"),
    ("pooling.mlp.down", "attn_pool.mlp.fc2"),
    ("head.linear", "head"),
)
# timm has rotary positions in another class, which names the layer scale otherwise and cannot go without it.
ROTARY_RULES: Rules = (
    ("encoder.blocks.*.residual1.scale", "blocks.*.gamma_1"),
    ("encoder.blocks.*.residual2.scale", "blocks.*.gamma_2"),
    *RULES,
)
POOLINGS = {ClassToken: "token", Mean: "avg", AttentionPool: "map"}


def describe(config: ClassifierConfig) -> dict[str, Any] | None:
    """`architecture` and `model_args` with which timm builds exactly this function; None where it cannot.

    `num_classes` stands beside them, not among the arguments: transformers gives it once more.
    """
    encoder, head = config.encoder, config.head
    rotary = isinstance(encoder.position, RoPE2d)
    gelu = encoder.feed_forward
    if (
        not isinstance(encoder.stem, Patchify)
        or not isinstance(gelu, GELU)
        or not isinstance(head, LinearHead)
        or type(config.pooling) not in POOLINGS
        or not isinstance(encoder.position, NoPosition | Learned | SinCos2d | RoPE2d)
        or head.representation
        or encoder.norm_eps != 1e-6
        or (rotary and gelu.tanh)
    ):
        return None
    arguments = {
        "img_size": encoder.image_size,
        "patch_size": encoder.patch_size,
        "in_chans": encoder.channels,
        "global_pool": POOLINGS[type(config.pooling)],
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": encoder.num_heads,
        "mlp_ratio": mlp_ratio(encoder),
        "class_token": encoder.class_token,
    }
    if isinstance(encoder.position, RoPE2d):
        rotary_arguments = {
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
        }
        return {"architecture": "vit_base_patch16_rope_224", "model_args": arguments | rotary_arguments}
    arguments |= {
        "reg_tokens": encoder.num_registers,
        "fc_norm": False,
        "pos_embed": "none" if isinstance(encoder.position, NoPosition) else "learn",
        "no_embed_class": not _class_token_slot(encoder),
    }
    if encoder.layer_scale is not None:
        arguments["init_values"] = encoder.layer_scale
    if gelu.tanh:
        arguments["act_layer"] = "gelu_tanh"
    return {"architecture": "vit_base_patch16_224", "model_args": arguments}


def mlp_ratio(encoder: ViTConfig) -> float:
    """The ratio from which timm's `int(width * ratio)` gives `mlp_dim` again."""
    ratio = encoder.mlp_dim / encoder.width
    while int(encoder.width * ratio) < encoder.mlp_dim:
        ratio = math.nextafter(ratio, math.inf)
    return ratio


def _class_token_slot(encoder: ViTConfig) -> bool:
    return isinstance(encoder.position, Learned) and encoder.class_token and encoder.position.class_token_slot


def to_timm(classifier: Classifier) -> Tensors:
    """The tensors of a classifier that `describe` can describe, under timm's names."""
    encoder = classifier.config.encoder
    tensors = dict(classifier.state_dict())
    prefix, slot = (
        tensors.pop("encoder.prefix"),
        tensors.pop("encoder.position.class_token", None),
    )
    table = tensors.pop("encoder.position.table", None)
    if isinstance(classifier.encoder.position, SinCos2dEmbedding):
        table = classifier.encoder.position.table(encoder.grid, prefix.device)
    rotary = isinstance(encoder.position, RoPE2d)
    if rotary and encoder.layer_scale is None:
        one = torch.ones(encoder.width)
        names = [f"encoder.blocks.{i}.residual{k}.scale" for i in range(encoder.depth) for k in (1, 2)]
        tensors |= {name: one.clone() for name in names}
    theirs = rename(tensors, ROTARY_RULES if rotary else RULES)
    if encoder.class_token:
        theirs["cls_token"] = prefix[None, :1]
    if encoder.num_registers:
        theirs["reg_token"] = prefix[None, int(encoder.class_token) :]
    if table is not None:
        places = table.reshape(-1, encoder.width)
        if slot is not None:  # timm then keeps a place for each register, too
            places = torch.cat([slot, places.new_zeros(encoder.num_registers, encoder.width), places])
        theirs["pos_embed"] = places[None]
    return theirs


def from_timm(tensors: Mapping[str, Tensor], *, config: ClassifierConfig | None = None) -> Tensors:
    """Tensors in timm's layout under our names; `config`, where known, settles what the names leave open.

    Raises:
        InputError: if the position table is not one of a square image.
    """
    ours = rename(tensors, inverse(RULES if config is None else ROTARY_RULES))
    tokens = [ours.pop(name)[0] for name in ("cls_token", "reg_token") if name in ours]
    class_token, num_prefix = (
        "cls_token" in tensors,
        sum(len(token) for token in tokens),
    )
    width = ours["encoder.stem.weight"].shape[0] if "encoder.stem.weight" in ours else 0
    prefix = torch.cat(tokens) if tokens else torch.zeros(0, width)
    if config is not None and config.encoder.layer_scale is None:
        ours = {
            name: tensor for name, tensor in ours.items() if not name.endswith((".residual1.scale", ".residual2.scale"))
        }
    if config is not None and not isinstance(config.encoder.position, Learned):
        ours.pop("pos_embed", None)  # it is computed, and was written for timm's sake
    if "pos_embed" in ours:
        places = ours.pop("pos_embed")[0]
        slots = next(
            (n for n in _possible_slots(num_prefix, config) if _is_square(len(places) - n)),
            None,
        )
        if slots is None:
            raise InputError(
                f"pos_embed has {len(places)} places, no square grid with {num_prefix} prefix tokens; "
                "vitreous reads positions learned on square images"
            )
        side = math.isqrt(len(places) - slots)
        ours["encoder.position.table"] = places[slots:].reshape(side, side, -1)
        if slots and class_token:
            ours["encoder.position.class_token"] = places[:1]
            prefix = torch.cat([prefix[:1], prefix[1:] + places[1:slots]])
        elif slots:
            prefix = prefix + places[:slots]
    ours["encoder.prefix"] = prefix
    return ours


def _possible_slots(num_prefix: int, config: ClassifierConfig | None) -> list[int]:
    if config is None:
        return [num_prefix, 0]
    return [num_prefix if _class_token_slot(config.encoder) else 0]


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number
