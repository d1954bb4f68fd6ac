"""transformers' layout of a ViT, of version 5 and of those before, and the files its `from_pretrained` reads."""

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, FeedForward, QuickGELU
from vitreous.resnet import TIMM
from vitreous.vit import ViTConfig
from vitreous.weights.infer import Foreign
from vitreous.weights.mapping import Rules, Tensors, inverse, join_parts, rename, split_parts, with_axes
from vitreous.weights.places import join_places, split_places
from vitreous.weights.plain import beyond_plain, refuse

RULES: Rules = (
    ("encoder.stem", "embeddings.patch_embeddings.projection"),
    ("encoder.blocks.*.norm1", "layers.*.layernorm_before"),
    ("encoder.blocks.*.attention.query", "layers.*.attention.q_proj"),
    ("encoder.blocks.*.attention.key", "layers.*.attention.k_proj"),
    ("encoder.blocks.*.attention.value", "layers.*.attention.v_proj"),
    ("encoder.blocks.*.attention.out", "layers.*.attention.o_proj"),
    ("encoder.blocks.*.norm2", "layers.*.layernorm_after"),
    ("encoder.blocks.*.mlp.up", "layers.*.mlp.fc1"),
    ("encoder.blocks.*.mlp.down", "layers.*.mlp.fc2"),
    ("encoder.norm", "layernorm"),
    ("head.representation", "pooler.dense"),
    ("head.linear", "classifier"),
)
BEFORE_5: Rules = (
    ("layers.*.layernorm_before", "encoder.layer.*.layernorm_before"),
    ("layers.*.attention.q_proj", "encoder.layer.*.attention.attention.query"),
    ("layers.*.attention.k_proj", "encoder.layer.*.attention.attention.key"),
    ("layers.*.attention.v_proj", "encoder.layer.*.attention.attention.value"),
    ("layers.*.attention.o_proj", "encoder.layer.*.attention.output.dense"),
    ("layers.*.layernorm_after", "encoder.layer.*.layernorm_after"),
    ("layers.*.mlp.fc1", "encoder.layer.*.intermediate.dense"),
    ("layers.*.mlp.fc2", "encoder.layer.*.output.dense"),
)
HYBRID_RULES: Rules = (
    ("encoder.stem.patches", "embeddings.patch_embeddings.projection"),
    ("encoder.stem.root", "embeddings.patch_embeddings.backbone.bit.embedder.convolution"),
    ("encoder.stem.norm", "embeddings.patch_embeddings.backbone.bit.embedder.norm"),
    (
        "encoder.stem.stages.*.*.shortcut_norm",
        "embeddings.patch_embeddings.backbone.bit.encoder.stages.*.layers.*.downsample.norm",
    ),
    (
        "encoder.stem.stages.*.*.shortcut",
        "embeddings.patch_embeddings.backbone.bit.encoder.stages.*.layers.*.downsample.conv",
    ),
    ("encoder.stem.stages.*.*", "embeddings.patch_embeddings.backbone.bit.encoder.stages.*.layers.*"),
)
"""Of the hybrid that transformers had until version 5."""
ACTIVATIONS: dict[str, FeedForward] = {
    "gelu": GELU(),
    "gelu_new": GELU(tanh=True),
    "gelu_pytorch_tanh": GELU(tanh=True),
    "gelu_fast": GELU(tanh=True),
    "quick_gelu": QuickGELU(),
}
FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
PARTS = ("query", "key", "value")
PREPROCESSOR = "preprocessor_config.json"


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of transformers' ViT."""
    known = ("embeddings.patch_embeddings.projection.weight", "embeddings.cls_token")
    return any(name.endswith(known) for name in tensors)


def read(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Foreign:
    """The model of a ViTModel or ViTForImageClassification; `document` is its config.json, or empty.

    What preprocessor_config.json says is expected in `document` under that name.

    Raises:
        InputError: if the model is another one, or its activation is one vitreous lacks.
    """
    if (kind := document.get("model_type", "vit")) not in ("vit", "vit-hybrid"):
        raise InputError(f"transformers' {kind} is not read in its own layout; give the same model as timm:NAME.TAG")
    if (activation := document.get("hidden_act", "gelu")) not in ACTIVATIONS:
        raise InputError(f"these weights were trained with {activation}; vitreous has {', '.join(ACTIVATIONS)}")
    if (pooler := document.get("pooler_act", "tanh")) != "tanh":
        raise InputError(f"the pooler of these weights was trained with {pooler}; vitreous has tanh there")
    theirs = rename({name.removeprefix("vit."): tensor for name, tensor in tensors.items()}, inverse(BEFORE_5))
    hybrid = any(".backbone.bit." in name for name in theirs)
    ours = rename(theirs, (*inverse(HYBRID_RULES if hybrid else ()), *inverse(RULES)))
    for name in [name for name in ours if name.endswith(".query.weight")]:
        join_parts(ours, name.removesuffix(".query.weight"), parts=PARTS, layer="qkv")
    if (token := "embeddings.cls_token") in ours:
        ours["encoder.prefix"] = with_axes(ours, token, 3)[0]
        del ours[token]
    image_size = document.get("image_size", 224)
    if (table := "embeddings.position_embeddings") in ours:
        places, grid = with_axes(ours, table, 3)[0], None
        del ours[table]
        if "patch_size" in document and not hybrid:  # a hybrid's says nothing of its backbone's stride
            height, width = image_size if isinstance(image_size, list) else (image_size, image_size)
            grid = height // document["patch_size"], width // document["patch_size"]
        slot, patches = split_places(table, places, prefix=[1], grid=grid)
        ours |= {"encoder.position.class_token": slot, "encoder.position.table": patches}
    left = ["the mask token"] if ours.pop("embeddings.mask_token", None) is not None else []
    if any(name.startswith("decoder.") for name in ours):
        ours = {name: tensor for name, tensor in ours.items() if not name.startswith("decoder.")}
        left.append("the decoder")
    labels = document.get("id2label") or {}
    classes = tuple(str(labels[str(i)]) for i in range(len(labels))) or None
    if classes and all(re.fullmatch(r"LABEL_\d+", name) for name in classes):
        classes = None
    return Foreign(
        tensors=ours,
        num_heads=document.get("num_attention_heads"),
        norm_eps=document.get("layer_norm_eps", 1e-12),
        feed_forward=ACTIVATIONS[activation],
        resampling="bicubic",
        resnet=TIMM,
        view=_view(document.get(PREPROCESSOR)),
        classes=classes,
        assumed=() if document.get(PREPROCESSOR) else ("pixels from -1 to 1", "the image squeezed to a square"),
        left=tuple(left),
    )


def _view(preprocessor: Mapping[str, Any] | None) -> dict[str, Any]:
    """An `EvalView`'s fields, from preprocessor_config.json.

    Raises:
        InputError: if it prepares images in a way that no view does.
    """
    said = preprocessor or {}
    size, cropped = said.get("size"), said.get("do_center_crop", False)
    shortest = size.get("shortest_edge") if isinstance(size, Mapping) else None
    resized = None if shortest else _sides(size)
    crop = (_sides(said.get("crop_size")) or resized) if cropped else None
    strange = {
        "do_rescale false": not said.get("do_rescale", True),
        f"the filter {said.get('resample')}": said.get("resample", 2) not in FILTERS,
        "a size of the shortest edge and no crop": shortest is not None and crop is None,
        "a resize to a square and then a crop": resized is not None and crop is not None and crop != resized,
    }
    if any(strange.values()):
        words = ", ".join(name for name, found in strange.items() if found)
        raise InputError(f"{PREPROCESSOR} has {words}, which vitreous cannot do; change it, or take it away")
    ratio = 1.0
    if shortest and crop and max(crop) <= shortest:
        ratio = max(crop) / shortest
        if math.floor(max(crop) / ratio) < shortest:  # rounding made the resized image a pixel smaller
            ratio = math.nextafter(ratio, 0)
    mean, std = said.get("image_mean", (0.5, 0.5, 0.5)), said.get("image_std", (0.5, 0.5, 0.5))
    if not said.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return {
        "squash": shortest is None,
        "crop_ratio": ratio,
        "interpolation": FILTERS[said.get("resample", 2)],
        "mean": tuple(mean),
        "std": tuple(std),
    }


def _sides(size: Any) -> tuple[int, int] | None:
    """Height and width; a number alone is both."""
    return (size["height"], size["width"]) if isinstance(size, Mapping) else (size, size) if size else None


def write(classifier: Classifier) -> Tensors:
    """The tensors of a ViTForImageClassification of version 5, which older versions' files are converted to.

    Raises:
        InputError: if transformers' ViT is not this model; says what it lacks.
    """
    encoder = classifier.config.encoder
    lacks = beyond_plain(classifier.config)
    for name in ("norm_eps", "qkv_bias"):
        lacks.pop(name, None)
    if getattr(encoder, "feed_forward", None) in ACTIVATIONS.values():
        lacks.pop("feed_forward", None)
    refuse("transformers", lacks, instead="timm, whose folders transformers reads too")
    assert isinstance(encoder, ViTConfig)
    tensors = dict(classifier.state_dict())
    theirs: Tensors = {"vit.embeddings.cls_token": tensors.pop("encoder.prefix")[None]}
    table, slot = tensors.pop("encoder.position.table"), tensors.pop("encoder.position.class_token")
    theirs["vit.embeddings.position_embeddings"] = join_places(slot, table)
    for i in range(encoder.depth):
        split_parts(tensors, f"encoder.blocks.{i}.attention", layer="qkv", parts=PARTS)
    for name, tensor in rename(tensors, RULES).items():
        theirs[name if name.startswith("classifier.") else f"vit.{name}"] = tensor
    return theirs


def documents(classifier: Classifier, view: EvalView, classes: tuple[str, ...] | None) -> dict[str, dict[str, Any]]:
    """The JSON files beside the tensors, by name."""
    config, encoder = classifier.config, classifier.config.encoder
    assert isinstance(encoder, ViTConfig)
    labels = classes or tuple(f"LABEL_{i}" for i in range(config.num_classes))
    height, width = view.shape
    size: dict[str, int] = {"height": height, "width": width}
    if not view.squash:
        size = {"shortest_edge": max(view.covered)}  # for views that are no square, right for square images
    return {
        "config.json": {
            "architectures": ["ViTForImageClassification"],
            "model_type": "vit",
            "hidden_size": encoder.width,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.num_heads,
            "intermediate_size": encoder.mlp_dim,
            "hidden_act": next(name for name, layer in ACTIVATIONS.items() if layer == encoder.feed_forward),
            "layer_norm_eps": encoder.norm_eps,
            "image_size": list(encoder.image_size) if isinstance(encoder.image_size, tuple) else encoder.image_size,
            "patch_size": encoder.patch_size,
            "num_channels": encoder.channels,
            "qkv_bias": encoder.qkv_bias,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "id2label": {str(i): name for i, name in enumerate(labels)},
            "label2id": {name: i for i, name in enumerate(labels)},
        },
        PREPROCESSOR: {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": size,
            "resample": next(number for number, name in FILTERS.items() if name == view.interpolation),
            "do_center_crop": not view.squash,
            "crop_size": {"height": height, "width": width},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(view.mean),
            "image_std": list(view.std),
        },
    }
