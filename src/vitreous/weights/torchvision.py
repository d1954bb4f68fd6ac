"""torchvision's layout of a ViT."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.vit import ViTConfig
from vitreous.weights.infer import Foreign
from vitreous.weights.mapping import Rules, Tensors, inverse, rename, with_axes
from vitreous.weights.places import join_places, split_places
from vitreous.weights.plain import beyond_plain, refuse
from vitreous.weights.timm import IMAGENET

LAYER = "encoder.layers.encoder_layer_*"
RULES: Rules = (
    ("encoder.stem", "conv_proj"),
    ("encoder.blocks.*.norm1", f"{LAYER}.ln_1"),
    ("encoder.blocks.*.attention.out", f"{LAYER}.self_attention.out_proj"),
    ("encoder.blocks.*.norm2", f"{LAYER}.ln_2"),
    ("encoder.blocks.*.mlp.up", f"{LAYER}.mlp.0"),
    ("encoder.blocks.*.mlp.down", f"{LAYER}.mlp.3"),
    ("encoder.norm", "encoder.ln"),
    ("head.representation", "heads.pre_logits"),
    ("head.linear", "heads.head"),
)
OLD_RULES: Rules = (
    ("encoder.blocks.*.mlp.up", f"{LAYER}.mlp.linear_1"),
    ("encoder.blocks.*.mlp.down", f"{LAYER}.mlp.linear_2"),
)
"""Of files from before torchvision 0.13."""


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are torchvision's names."""
    return "conv_proj.weight" in tensors or "encoder.layers.encoder_layer_0.ln_1.weight" in tensors


def read(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Foreign:
    """A state dict of torchvision's VisionTransformer; there is no config.json of its own.

    Raises:
        InputError: if the position table is not one of a square image.
    """
    theirs = dict(tensors)
    ours: Tensors = {}
    for name in [name for name in theirs if ".self_attention.in_proj_" in name]:
        block, _, kind = name.rpartition(".self_attention.in_proj_")
        ours[f"encoder.blocks.{block.rpartition('_')[2]}.attention.qkv.{kind}"] = theirs.pop(name)
    if "class_token" in theirs:
        ours["encoder.prefix"] = with_axes(theirs, "class_token", 3)[0]
        del theirs["class_token"]
    if "encoder.pos_embedding" in theirs:
        places = with_axes(theirs, "encoder.pos_embedding", 3)[0]
        del theirs["encoder.pos_embedding"]
        slot, table = split_places("encoder.pos_embedding", places, prefix=[1])
        ours |= {"encoder.position.class_token": slot, "encoder.position.table": table}
    ours |= rename(theirs, (*inverse(OLD_RULES), *inverse(RULES)))
    return Foreign(
        tensors=ours,
        resampling="aligned_bicubic",
        view=IMAGENET | {"crop_ratio": 224 / 256, "interpolation": "bilinear"},
        assumed=("ImageNet mean and deviation", "bilinear resize", "crop ratio 0.875"),
    )


def write(classifier: Classifier) -> Tensors:
    """The tensors of torchvision's VisionTransformer.

    Raises:
        InputError: if torchvision's ViT is not this model; says what it lacks.
    """
    encoder = classifier.config.encoder
    lacks = beyond_plain(classifier.config, square=True)
    if isinstance(getattr(classifier.config.head, "representation", None), int):
        lacks.pop("head")
    refuse("torchvision", lacks, instead="vitreous or timm")
    assert isinstance(encoder, ViTConfig)
    tensors = dict(classifier.state_dict())
    theirs: Tensors = {"class_token": tensors.pop("encoder.prefix")[None]}
    table, slot = tensors.pop("encoder.position.table"), tensors.pop("encoder.position.class_token")
    theirs["encoder.pos_embedding"] = join_places(slot, table)
    for i in range(encoder.depth):
        for kind in ("weight", "bias"):
            attention = f"encoder.layers.encoder_layer_{i}.self_attention"
            theirs[f"{attention}.in_proj_{kind}"] = tensors.pop(f"encoder.blocks.{i}.attention.qkv.{kind}")
    return theirs | rename(tensors, RULES)
