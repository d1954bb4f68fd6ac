"""timm's layout, which DeiT, DeiT III and many others use too: what its config.json and its names of models tell."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitreous.errors import InputError
from vitreous.feed_forward import GELU, FeedForward, QuickGELU
from vitreous.pooling import AttentionPool, ClassToken, Mean, Pooling
from vitreous.position import NoPosition, RoPE2d
from vitreous.resnet import TIMM
from vitreous.weights.infer import Foreign
from vitreous.weights.mapping import rename
from vitreous.weights.timm_tensors import from_timm

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
POOLINGS: dict[str, Pooling] = {"token": ClassToken(), "avg": Mean(), "map": AttentionPool()}
ACTIVATIONS: dict[str, FeedForward] = {"gelu": GELU(), "gelu_tanh": GELU(tanh=True), "quick_gelu": QuickGELU()}

# What the name of a model says and its tensors do not. All patterns that fit count, later ones more.
FAMILIES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"(vit|deit|deit3|flexivit)_.*|resnetv2_\d+x\d+_bit", {"class_token": None}),
    (r"vit_.*_clip_.*", {"norm_eps": 1e-5}),
    (r"vit_.*_clip_quickgelu_.*", {"feed_forward": QuickGELU()}),
    (r"vit_(so400m_patch16|giantopt_patch16|base_patch32)_siglip_.*", {"feed_forward": GELU(tanh=True)}),
    (r"vit_large_patch16_siglip_(gap_)?512", {"feed_forward": GELU(tanh=True)}),
    (r"vit_.*(_gap_|_siglip_gap_).*|vit_s?relpos_.*", {"pooling": Mean(), "class_token": False}),
    (r"vit_relpos_.*_cls(gap)?_.*", {"class_token": True}),
    (r"vit_relpos_.*_cls_.*", {"pooling": ClassToken()}),
    (r"vit_.*_rpn_.*", {"branch_norm": True, "class_token": False, "pooling": Mean()}),
    (r"vit_.*_dinov3(_qkvb)?", {"norm_eps": 1e-5, "position": RoPE2d(), "pooling": Mean()}),
    (r"vit_base_patch16_gap_224", {"num_heads": 16}),
    (r"vit_giant_patch14_(reg\d_)?(dinov2|tipsv2)|vit_giant_patch16_radio_v3", {"num_heads": 24}),
    (r"vit_huge_plus_patch16_dinov3(_qkvb)?", {"num_heads": 20}),
    (r"vit_7b_patch16_dinov3", {"num_heads": 32}),
)
REFUSED = r"vit_(.*_rope_.*|pe_.*|.*_(lingbot|sapiens2|18x2_224|mci_224|resnet\d+d.*)|d(pwee|wee|little)_.*)"
"""Of those, models with parts that vitreous lacks: other rotary forms, differential attention, other stems."""

READ = frozenset(
    (
        *("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio"),
        *("global_pool", "class_token", "reg_tokens", "num_reg_tokens", "pos_embed", "no_embed_class", "act_layer"),
        *("qkv_bias", "qkv_fused", "qk_norm", "init_values", "pre_norm", "final_norm", "fc_norm", "use_fc_norm"),
        *("rel_pos_type", "rel_pos_dim", "shared_rel_pos", "attn_type", "rope_temperature"),
        *("swiglu_mlp", "swiglu_align_to", "proj_bias", "strict_img_size", "dynamic_img_size"),
        *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"),
        *("weight_init", "fix_init", "head_init_scale", "zero_init_last", "dynamic_img_pad", "layers", "width_factor"),
    )
)
"""Arguments of timm's that are read, or that tensors tell, or that are for training alone."""
AS_READ = {"rope_type": "dinov3", "rope_grid_indexing": "ij", "rope_rotate_half": True, "use_rot_pos_emb": True}
"""Arguments of which one value is read."""


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are timm's names."""
    known = ("patch_embed.proj.weight", "blocks.0.", "stem.conv.weight", "stages.0.blocks.0.conv1.weight")
    return any(name.startswith(known) for name in tensors)


def read(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Foreign:
    """A state dict of timm's; `document` is timm's config.json, or empty.

    Raises:
        InputError: if it is of a model that vitreous lacks, or its positions are not of a square image, and the
            document does not say so.
    """
    arguments, pretrained = document.get("model_args") or {}, document.get("pretrained_cfg") or {}
    name = document.get("architecture", "vit_base_patch16_224")
    plain, facts = name.partition(".")[0], {}
    for pattern, said in FAMILIES:
        if re.fullmatch(pattern, plain):
            facts |= said
    if not facts or re.fullmatch(REFUSED, plain):
        raise InputError(
            f"timm's {name} has parts that vitreous lacks; it reads most of vit_*, deit*, flexivit_* and resnetv2_*_bit"
        )
    class_token = arguments.get("class_token", facts.pop("class_token"))
    facts["class_token"] = class_token if class_token is not None else "cls_token" in tensors
    if pool := arguments.get("global_pool") or document.get("global_pool"):
        if pool not in POOLINGS:
            raise InputError(f"these weights pool by {pool!r}; vitreous reads {', '.join(POOLINGS)}")
        facts["pooling"] = POOLINGS[pool]
    if isinstance(facts.get("position"), RoPE2d) and "rope_temperature" in arguments:
        facts["position"] = RoPE2d(base=arguments["rope_temperature"])
    if arguments.get("pos_embed") == "none":
        facts["position"] = NoPosition()
    size = arguments.get("img_size") or (pretrained.get("input_size") or (3, 224, 224))[1:]
    height, width = (size, size) if isinstance(size, int) else size
    facts["image_size"] = height if height == width else (height, width)
    if facts.get("pooling") == ClassToken() and "global_pool" in {**arguments, **document}:
        tensors = rename(tensors, (("fc_norm", "norm"),))  # of one token the same
    patch = tensors["patch_embed.proj.weight"].shape[-1] if "patch_embed.proj.weight" in tensors else 0
    oblong = height != width and patch and not any(".backbone." in name for name in tensors)
    ours = from_timm(tensors, grid=(height // patch, width // patch) if oblong else None)
    unread = {
        key: said
        for key, said in arguments.items()
        if (said != AS_READ[key] if key in AS_READ else key not in READ and said not in (None, False))
    }
    gated = any(name.endswith(".mlp.gate.weight") for name in ours)
    if (activation := arguments.get("act_layer")) in ACTIVATIONS:
        facts["feed_forward"] = ACTIVATIONS[activation]
    elif activation and not (activation == "silu" and gated):
        unread["act_layer"] = activation
    if unread:
        said = ", ".join(f"{key}={value}" for key, value in unread.items())
        raise InputError(f"timm's {name} with {said} is another function than vitreous reads; choose one without")
    trained = ours["encoder.position.table"].shape[0] if "encoder.position.table" in ours else 0
    trained *= ours["encoder.stem.weight"].shape[-1] if "encoder.stem.weight" in ours else 16
    crop_ratio = pretrained.get("crop_pct", 0.9 if (trained or height) <= 224 else 1.0)
    view = {
        "crop_ratio": crop_ratio,
        "squash": pretrained.get("crop_mode") == "squash",
        "interpolation": pretrained.get("interpolation", "bicubic"),
        "mean": tuple(pretrained.get("mean", (0.5, 0.5, 0.5))),
        "std": tuple(pretrained.get("std", (0.5, 0.5, 0.5))),
    }
    classes, told = len(ours.get("head.linear.weight", ())), document.get("num_classes")
    differ = told and 0 < classes != told
    left = (f"num_classes {told} of config.json, for the head has {classes}",) if differ else ()
    names = document.get("label_names") or pretrained.get("label_names") or ()
    if isinstance(names, dict):
        names = [names[str(i)] for i in range(len(names))]
    if "num_heads" in arguments:
        facts["num_heads"] = arguments["num_heads"]
    return Foreign(
        tensors=ours,
        resampling="antialiased_bicubic",
        resnet=TIMM,
        view=view,
        classes=tuple(names) or None,
        left=left,
        assumed=(
            *(() if "architecture" in document or gated else ("a GELU with erf",)),
            *(() if pretrained else ("pixels from -1 to 1", "bicubic resize", f"crop ratio {crop_ratio}")),
        ),
        **facts,
    )
