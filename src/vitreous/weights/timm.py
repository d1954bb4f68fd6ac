"""timm's names of tensors, which DeiT, DeiT III and many others use too, and what its config.json tells."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitreous.block import Parallel
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, FeedForward, QuickGELU, SwiGLU
from vitreous.pooling import AttentionPool, ClassToken, Mean, Pooling
from vitreous.position import Learned, NoPosition, RoPE2d, SinCos2dEmbedding
from vitreous.relative import RelativeBias
from vitreous.resnet import Epsilons, ResNetConfig, ResNetStem
from vitreous.vit import ViT, ViTConfig
from vitreous.weights.infer import Foreign
from vitreous.weights.mapping import Rules, Tensors, inverse, joined, rename, shape, with_axes

RULES: Rules = (
    ("encoder.stem", "patch_embed.proj"),
    ("encoder.stem_norm", "norm_pre"),
    ("encoder.blocks.*.norm1", "blocks.*.norm1"),
    ("encoder.blocks.*.norm", "blocks.*.in_norm"),
    ("encoder.blocks.*.attention.qkv", "blocks.*.attn.qkv"),
    ("encoder.blocks.*.attention.query_norm", "blocks.*.attn.q_norm"),
    ("encoder.blocks.*.attention.key_norm", "blocks.*.attn.k_norm"),
    ("encoder.blocks.*.attention.out", "blocks.*.attn.proj"),
    ("encoder.blocks.*.residual1.scale", "blocks.*.ls1.gamma"),
    ("encoder.blocks.*.residual.scale", "blocks.*.ls.gamma"),
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
    ("head.distillation", "head_dist"),
)
EVA_RULES: Rules = (
    ("encoder.blocks.*.residual1.scale", "blocks.*.gamma_1"),
    ("encoder.blocks.*.residual2.scale", "blocks.*.gamma_2"),
    ("encoder.blocks.*.mlp.gate", "blocks.*.mlp.fc1_g"),
    ("encoder.blocks.*.mlp.up", "blocks.*.mlp.fc1_x"),
)
"""Of the class in which timm has rotary positions; it cannot go without a layer scale."""
PARALLEL_RULES: Rules = (
    ("encoder.blocks.*.attention.query_norm", "blocks.*.q_norm"),
    ("encoder.blocks.*.attention.key_norm", "blocks.*.k_norm"),
    ("encoder.blocks.*.attention.out", "blocks.*.attn_out_proj"),
    ("encoder.blocks.*.mlp.down", "blocks.*.mlp_out_proj"),
)
HYBRID_RULES: Rules = (
    ("encoder.stem.patches", "patch_embed.proj"),
    ("encoder.stem.root", "patch_embed.backbone.stem.conv"),
    ("encoder.stem.norm", "patch_embed.backbone.stem.norm"),
    ("encoder.stem.stages.*.*.shortcut", "patch_embed.backbone.stages.*.blocks.*.downsample.conv"),
    ("encoder.stem.stages.*.*.shortcut_norm", "patch_embed.backbone.stages.*.blocks.*.downsample.norm"),
    ("encoder.stem.stages.*.*", "patch_embed.backbone.stages.*.blocks.*"),
)
ROOT_RULES: Rules = (  # of a hybrid without stages
    ("encoder.stem.patches", "patch_embed.proj"),
    ("encoder.stem.root", "patch_embed.backbone.conv"),
    ("encoder.stem.norm", "patch_embed.backbone.norm"),
)
RESNET_RULES: Rules = (
    ("encoder.root", "stem.conv"),
    ("encoder.stages.*.*.shortcut", "stages.*.blocks.*.downsample.conv"),
    ("encoder.stages.*.*", "stages.*.blocks.*"),
    ("encoder.norm", "norm"),
    ("head.linear", "head.fc"),
)
NORMED_MEAN_RULES: Rules = (("pooling.norm", "fc_norm"),)
RELATIVE_RULES: Rules = (
    ("encoder.position.layers.*.up", "blocks.*.attn.rel_pos.mlp.fc1"),
    ("encoder.position.layers.*.down", "blocks.*.attn.rel_pos.mlp.fc2"),
    ("encoder.position.layers.0.up", "shared_rel_pos.mlp.fc1"),
    ("encoder.position.layers.0.down", "shared_rel_pos.mlp.fc2"),
)
TABLE = re.compile(r"(?:blocks\.(\d+)\.attn\.rel_pos|shared_rel_pos)\.relative_position_bias_table")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
POOLINGS: dict[str, Pooling] = {"token": ClassToken(), "avg": Mean(), "map": AttentionPool()}
ACTIVATIONS: dict[str, FeedForward] = {"gelu": GELU(), "gelu_tanh": GELU(tanh=True), "quick_gelu": QuickGELU()}
RESNET_EPSILONS = Epsilons(norm=1e-5, variance=1e-8, deviation=0.0)

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

LAYERS = ("act_layer", "norm_layer", "mlp_layer", "attn_layer", "embed_norm_layer", "block_fn", "embed_layer")
"""Arguments of timm's that change the function, mostly without a trace in its tensors."""


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are timm's names."""
    known = ("patch_embed.proj.weight", "blocks.0.", "stem.conv.weight", "stages.0.blocks.0.conv1.weight")
    return any(name.startswith(known) for name in tensors)


def read(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Foreign:
    """A state dict of timm's; `document` is timm's config.json, or empty.

    Raises:
        InputError: if it is of a model that vitreous lacks, or its positions are not of a square image.
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
    if arguments.get("pos_embed") == "none":
        facts["position"] = NoPosition()
    ours, layers = from_timm(tensors), {key: said for key, said in arguments.items() if key in LAYERS}
    gated = any(name.endswith(".mlp.gate.weight") for name in ours)
    if (activation := layers.pop("act_layer", None)) in ACTIVATIONS:
        facts["feed_forward"] = ACTIVATIONS[activation]
    elif activation and not (activation == "silu" and gated):
        layers["act_layer"] = activation
    if layers:
        said = ", ".join(f"{key}={value}" for key, value in layers.items())
        raise InputError(f"timm's {name} with {said} is another function than vitreous reads; choose one without")
    size = (pretrained.get("input_size") or (3, 224, 224))[1:]
    facts["image_size"] = size[0] if size[0] == size[1] else tuple(size)
    trained = ours["encoder.position.table"].shape[0] if "encoder.position.table" in ours else 0
    trained *= ours["encoder.stem.weight"].shape[-1] if "encoder.stem.weight" in ours else 16
    crop_ratio = pretrained.get("crop_pct", 0.9 if (trained or size[0]) <= 224 else 1.0)
    view = {
        "crop_ratio": crop_ratio,
        "squash": pretrained.get("crop_mode") == "squash",
        "interpolation": pretrained.get("interpolation", "bicubic"),
        "mean": tuple(pretrained.get("mean", (0.5, 0.5, 0.5))),
        "std": tuple(pretrained.get("std", (0.5, 0.5, 0.5))),
    }
    names = document.get("label_names") or pretrained.get("label_names") or ()
    if isinstance(names, dict):
        names = [names[str(i)] for i in range(len(names))]
    if "num_heads" in arguments:
        facts["num_heads"] = arguments["num_heads"]
    return Foreign(
        tensors=ours,
        resampling="antialiased_bicubic",
        resnet=RESNET_EPSILONS,
        view=view,
        classes=tuple(names) or None,
        assumed=(
            *(() if "architecture" in document or gated else ("a GELU with erf",)),
            *(() if pretrained else ("pixels from -1 to 1", "bicubic resize", f"crop ratio {crop_ratio}")),
        ),
        **facts,
    )


def from_timm(tensors: Mapping[str, Tensor], *, config: ClassifierConfig | None = None) -> Tensors:
    """Tensors in timm's layout under our names; `config`, where known, settles what the names leave open.

    Raises:
        InputError: if the position table is not one of a square image, and no config says of which.
    """
    theirs = dict(tensors)
    hybrid = any(name.startswith("patch_embed.backbone.") for name in theirs)
    parallel = [name for name in theirs if name.endswith(".in_proj.weight")]
    rules: Rules = (
        *(HYBRID_RULES if any(name.startswith("patch_embed.backbone.stages.") for name in theirs) else ()),
        *(ROOT_RULES if hybrid else ()),
        *(RESNET_RULES if "stem.conv.weight" in theirs or "stages.0.blocks.0.conv1.weight" in theirs else ()),
        *(EVA_RULES if _is_eva(theirs) else ()),
        *(PARALLEL_RULES if parallel else ()),
        *(NORMED_MEAN_RULES if "fc_norm.weight" in theirs else ()),
        *RELATIVE_RULES,
        *RULES,
    )
    for name in parallel:
        _split_parallel(theirs, name.removesuffix(".in_proj.weight"))
    for name in [name for name in theirs if TABLE.fullmatch(name)]:
        match = TABLE.fullmatch(name)
        assert match is not None
        layer, table = int(match[1] or 0), theirs.pop(name)
        class_rows = 3 if "cls_token" in theirs else 0
        offsets = len(table) - class_rows
        if config is None:
            rows = columns = _side(offsets, f"{name} has {len(table)} rows")
        else:
            rows, columns = (2 * side - 1 for side in config.encoder.grid)
        theirs[f"encoder.position.layers.{layer}.table"] = table[:offsets].unflatten(0, (rows, columns))
        if class_rows:
            theirs[f"encoder.position.layers.{layer}.class_token"] = table[offsets:]
    for name in [name for name in theirs if name.endswith(".attn.q_bias")]:
        attention = name.removesuffix(".q_bias")
        q, v = theirs.pop(name), theirs.pop(f"{attention}.v_bias")
        theirs[f"{attention}.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    ours = rename(theirs, inverse(rules))
    _split_gates(ours)
    if "head.linear.weight" in ours and ours["head.linear.weight"].ndim == 4:
        ours["head.linear.weight"] = ours["head.linear.weight"].flatten(1)
    if "encoder.root.weight" in ours:
        return ours
    if config is not None:
        _drop_what_is_computed(ours, config)
    return _with_prefix(ours, config)


def _is_eva(tensors: Mapping[str, Tensor]) -> bool:
    return "blocks.0.gamma_1" in tensors or "blocks.0.mlp.fc1_g.weight" in tensors


def _split_parallel(tensors: Tensors, block: str) -> None:
    """timm computes the feed-forward's first layer and the attention's in one product."""
    out = tensors[f"{block}.attn_out_proj.weight"]
    width = out.shape[0]
    if out.shape != (width, width):
        raise InputError(
            f"{block}.attn_out_proj.weight is {shape(out)}, but as many in as out; fetch the weights again"
        )
    hidden = with_axes(tensors, f"{block}.mlp_out_proj.weight", 2).shape[1]
    for kind in ("weight", "bias"):
        if (both := tensors.pop(name := f"{block}.in_proj.{kind}", None)) is not None:
            if both.shape[0] != hidden + 3 * width:
                raise InputError(
                    f"{name} is {shape(both)}, but {block}.mlp_out_proj.weight takes {hidden} of what it makes, and "
                    f"attention 3 times {width}; fetch the weights again"
                )
            tensors[f"{block}.mlp.fc1.{kind}"], tensors[f"{block}.attn.qkv.{kind}"] = both.split([hidden, 3 * width])
    if (bias := tensors.pop(f"{block}.mlp_bias", None)) is not None:
        tensors[f"{block}.mlp.fc1.bias"] = bias


def _split_gates(tensors: Tensors) -> None:
    """A SwiGLU's gate and value come as one layer, known by the half that goes on."""
    for name in [name for name in tensors if name.endswith(".mlp.up.weight")]:
        block = name.removesuffix(".up.weight")
        hidden = with_axes(tensors, f"{block}.down.weight", 2).shape[1] if f"{block}.down.weight" in tensors else 0
        if tensors[name].shape[0] == 2 * hidden:
            for kind in ("weight", "bias"):
                if (up := tensors.get(f"{block}.up.{kind}")) is not None:
                    if up.shape[0] != 2 * hidden:
                        raise InputError(
                            f"{block}.up.{kind} is {shape(up)}, not 2 times {hidden}; fetch the weights again"
                        )
                    gate, up = up.chunk(2)
                    tensors[f"{block}.gate.{kind}"], tensors[f"{block}.up.{kind}"] = gate, up


def _drop_what_is_computed(ours: Tensors, config: ClassifierConfig) -> None:
    """Written for timm's sake: the table of fixed positions, and a layer scale of one."""
    encoder = config.encoder
    assert isinstance(encoder, ViTConfig)
    if encoder.layer_scale is None:
        for name in [name for name in ours if re.search(r"\.residual[12]?\.scale$", name)]:
            del ours[name]
    if not isinstance(encoder.position, Learned):
        ours.pop("pos_embed", None)


def _with_prefix(ours: Tensors, config: ClassifierConfig | None) -> Tensors:
    """The prefix tokens as one tensor, and the position table apart from the places of the prefix."""
    tokens = {name: with_axes(ours, name, 3)[0] for name in ("cls_token", "dist_token", "reg_token") if name in ours}
    for name in tokens:
        del ours[name]
    stem = ours.get("encoder.stem.weight", ours.get("encoder.stem.patches.weight"))
    width = 0 if stem is None else stem.shape[0]
    prefix = joined(tokens) if tokens else torch.zeros(0, width)
    if "pos_embed" in ours:
        places = with_axes(ours, "pos_embed", 3)[0]
        joined({"pos_embed": places, **tokens})  # of the same width
        del ours["pos_embed"]
        known = None if config is None else config.encoder
        grid = known.grid if known is not None else None
        slots = _slots(len(places), len(prefix), grid)
        if grid is None:
            side = math.isqrt(len(places) - slots)
            grid = side, side
        ours["encoder.position.table"] = places[slots:].unflatten(0, grid)
        if slots and "cls_token" in tokens:
            ours["encoder.position.class_token"] = places[:1]
            prefix = torch.cat([prefix[:1], prefix[1:] + places[1:slots]])
        elif slots:
            prefix = prefix + places[:slots]
    ours["encoder.prefix"] = prefix
    return ours


def _slots(places: int, prefix: int, grid: tuple[int, int] | None) -> int:
    """How many of the places are those of prefix tokens: all of them or none."""
    for slots in (prefix, 0):
        if places - slots == math.prod(grid) if grid else _is_square(places - slots):
            return slots
    raise InputError(
        f"pos_embed has {places} places, no square grid with {prefix} prefix tokens; "
        "vitreous reads positions learned on square images"
    )


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _side(number: int, what: str) -> int:
    if not _is_square(number):
        raise InputError(f"{what}, no square grid; vitreous reads positions learned on square images")
    return math.isqrt(number)


def to_timm(classifier: Classifier) -> Tensors:
    """The tensors of a classifier that `describe` can describe, under timm's names."""
    config, tensors = classifier.config, dict(classifier.state_dict())
    encoder = config.encoder
    if isinstance(encoder, ResNetConfig):
        tensors["head.linear.weight"] = tensors["head.linear.weight"][..., None, None]
        return rename(tensors, (*RESNET_RULES, *RULES))
    assert isinstance(encoder, ViTConfig)
    assert isinstance(classifier.encoder, ViT)
    rotary, parallel = isinstance(encoder.position, RoPE2d), isinstance(encoder.block, Parallel)
    if (rotary or parallel) and encoder.layer_scale is None:  # timm's classes cannot go without one
        one, residuals = torch.ones(encoder.width), ("residual",) if parallel else ("residual1", "residual2")
        names = [f"encoder.blocks.{i}.{residual}.scale" for i in range(encoder.depth) for residual in residuals]
        tensors |= {name: one.clone() for name in names}
    for i in range(encoder.depth):
        block = f"encoder.blocks.{i}."
        if isinstance(encoder.feed_forward, SwiGLU) and not rotary:
            for kind in ("weight", "bias"):
                gate, up = (tensors.pop(f"{block}mlp.{part}.{kind}") for part in ("gate", "up"))
                tensors[f"{block}mlp.up.{kind}"] = torch.cat([gate, up])
        if parallel:
            _join_parallel(tensors, block, f"blocks.{i}.")
    _join_relative(tensors, encoder)
    theirs = _without_prefix(tensors, classifier.encoder)
    stem = encoder.stem
    return rename(
        theirs,
        (
            *((HYBRID_RULES if stem.units else ROOT_RULES) if isinstance(stem, ResNetStem) else ()),
            *(EVA_RULES if rotary and isinstance(encoder.feed_forward, SwiGLU) else EVA_RULES[:2] if rotary else ()),
            *(PARALLEL_RULES if parallel else ()),
            *(NORMED_MEAN_RULES if isinstance(config.pooling, Mean) else ()),
            *(RELATIVE_RULES[2:] if getattr(encoder.position, "shared", False) else RELATIVE_RULES),
            *RULES,
        ),
    )


def _join_parallel(tensors: Tensors, ours: str, theirs: str) -> None:
    kinds = {kind: tensors.pop(f"{ours}attention.qkv.{kind}", None) for kind in ("weight", "bias")}
    for kind, qkv in kinds.items():
        up = tensors.pop(f"{ours}mlp.up.{kind}")
        if qkv is None:
            tensors[f"{theirs}mlp_bias"] = up
        else:
            tensors[f"{theirs}in_proj.{kind}"] = torch.cat([up, qkv])


def _join_relative(tensors: Tensors, encoder: ViTConfig) -> None:
    if not isinstance(encoder.position, RelativeBias):
        return
    for i in range(1 if encoder.position.shared else encoder.depth):
        layer = f"encoder.position.layers.{i}."
        rows = [tensors.pop(f"{layer}table").flatten(0, 1), tensors.pop(f"{layer}class_token", None)]
        module = "shared_rel_pos" if encoder.position.shared else f"blocks.{i}.attn.rel_pos"
        tensors[f"{module}.relative_position_bias_table"] = torch.cat([row for row in rows if row is not None])


def _without_prefix(tensors: Tensors, vit: ViT) -> Tensors:
    encoder = vit.config
    prefix, slot = tensors.pop("encoder.prefix"), tensors.pop("encoder.position.class_token", None)
    table = tensors.pop("encoder.position.table", None)
    if isinstance(vit.position, SinCos2dEmbedding):
        table = vit.position.vectors(encoder.grid, prefix.device)
    if encoder.class_token:
        tensors["cls_token"] = prefix[None, :1]
    if "head.distillation.weight" in tensors:
        tensors["dist_token"] = prefix[None, 1:2]
    elif encoder.num_registers:
        tensors["reg_token"] = prefix[None, int(encoder.class_token) :]
    if table is not None:
        places = table.reshape(-1, encoder.width)
        if slot is not None:  # timm then keeps a place for each register, too
            places = torch.cat([slot, places.new_zeros(encoder.num_registers, encoder.width), places])
        tensors["pos_embed"] = places[None]
    return tensors
