"""timm's names and shapes of tensors, to ours and back."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vitreous.block import Parallel
from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError
from vitreous.feed_forward import SwiGLU
from vitreous.pooling import Mean
from vitreous.position import Learned, RoPE2d, SinCos2dEmbedding
from vitreous.relative import RelativeBias
from vitreous.resampling import Grid
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.vit import ViT, ViTConfig
from vitreous.weights.mapping import Rules, Tensors, inverse, joined, rename, shape, with_axes
from vitreous.weights.places import join_places, split_places

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
    ("head.representation", "pre_logits.fc"),
    ("head.linear", "head"),
    ("head.distillation", "head_dist"),
)
EVA_RULES: Rules = (
    ("encoder.blocks.*.residual1.scale", "blocks.*.gamma_1"),
    ("encoder.blocks.*.residual2.scale", "blocks.*.gamma_2"),
)
"""Of the class in which timm has rotary positions; it cannot go without a layer scale."""
EVA_GATES: Rules = (
    ("encoder.blocks.*.mlp.gate", "blocks.*.mlp.fc1_g"),
    ("encoder.blocks.*.mlp.up", "blocks.*.mlp.fc1_x"),
)
"""Of a SwiGLU in that class; the others have gate and value in one layer."""
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


def from_timm(
    tensors: Mapping[str, Tensor], *, config: ClassifierConfig | None = None, grid: Grid | None = None
) -> Tensors:
    """Tensors in timm's layout under our names; `config`, where known, settles what the names leave open.

    `grid` is that of the positions, which otherwise is the config's, or square.

    Raises:
        InputError: if the positions are of another grid.
    """
    grid = grid if config is None else config.encoder.grid
    theirs = dict(tensors)
    hybrid = any(name.startswith("patch_embed.backbone.") for name in theirs)
    parallel = [name for name in theirs if name.endswith(".in_proj.weight")]
    rules: Rules = (
        *(HYBRID_RULES if any(name.startswith("patch_embed.backbone.stages.") for name in theirs) else ()),
        *(ROOT_RULES if hybrid else ()),
        *(RESNET_RULES if "stem.conv.weight" in theirs or "stages.0.blocks.0.conv1.weight" in theirs else ()),
        *((*EVA_GATES, *EVA_RULES) if "blocks.0.gamma_1" in theirs or "blocks.0.mlp.fc1_g.weight" in theirs else ()),
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
        offsets, of_class_token = table.split([max(len(table) - class_rows, 0), min(len(table), class_rows)])
        sides = None if grid is None else (2 * grid[0] - 1, 2 * grid[1] - 1)
        _, theirs[f"encoder.position.layers.{layer}.table"] = split_places(name, offsets, prefix=[0], grid=sides)
        if class_rows:
            theirs[f"encoder.position.layers.{layer}.class_token"] = of_class_token
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
    return _with_prefix(ours, grid)


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


def _with_prefix(ours: Tensors, grid: Grid | None) -> Tensors:
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
        slots, table = split_places("pos_embed", places, prefix=[len(prefix), 0], grid=grid)
        ours["encoder.position.table"] = table
        if len(slots) and "cls_token" in tokens:
            ours["encoder.position.class_token"] = slots[:1]
            prefix = torch.cat([prefix[:1], prefix[1:] + slots[1:]])
        elif len(slots):
            prefix = prefix + slots
    ours["encoder.prefix"] = prefix
    return ours


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
            *(EVA_GATES if rotary and isinstance(encoder.feed_forward, SwiGLU) else ()),
            *(EVA_RULES if rotary else ()),
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
        if slot is not None:  # timm then keeps a place for each register, too
            slot = torch.cat([slot, slot.new_zeros(encoder.num_registers, encoder.width)])
        tensors["pos_embed"] = join_places(slot, table)
    return tensors
