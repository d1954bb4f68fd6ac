"""In what a model goes beyond the paper's plain ViT: what a foreign layout may have no place for."""

import dataclasses

from vitreous.classifier import ClassifierConfig
from vitreous.errors import InputError
from vitreous.head import Head, LinearHead
from vitreous.pooling import Pooling
from vitreous.position import Learned
from vitreous.vit import ViTConfig

FREE = frozenset(
    (
        *("patch_size", "width", "depth", "num_heads", "mlp_dim", "image_size", "channels"),
        *("pad", "initialisation", "drop_path", "dropout", "attention_dropout"),
    )
)
"""Fields that every layout has, or that no file needs to say."""


def beyond_plain(config: ClassifierConfig, *, square: bool = False) -> dict[str, str]:
    """The fields whose values a plain ViT with a class token and a linear head does not have, as `name=value`.

    Nobody else's image is padded to whole patches; with `square`, images that are not square are named, too.
    """
    if not isinstance(config.encoder, ViTConfig):
        return {"encoder": f"encoder={type(config.encoder).__name__}"}
    plain, encoder = ClassifierConfig(), config.encoder
    if isinstance(encoder.position, Learned):  # how a table is resized is not in the table
        encoder = dataclasses.replace(
            encoder, position=dataclasses.replace(encoder.position, resampling="aligned_bilinear")
        )
    height, width = encoder.image_shape
    odd = height % encoder.patch_size or width % encoder.patch_size or (square and height != width)
    differ = {field.name: (encoder, plain.encoder) for field in dataclasses.fields(encoder) if field.name not in FREE}
    found = {
        name: f"{name}={getattr(ours, name)}"
        for name, (ours, theirs) in differ.items()
        if getattr(ours, name) != getattr(theirs, name)
    }
    if odd:
        found["image_size"] = f"image_size={encoder.image_size}"
    return found | beyond_linear(config, plain.pooling)


def beyond_linear(config: ClassifierConfig, pooling: Pooling) -> dict[str, str]:
    """Pooling and head, if they are another than `pooling` and a linear head, as `name=value`."""
    found = {"pooling": (config.pooling, pooling), "head": (_without_start(config.head), LinearHead())}
    return {name: f"{name}={ours}" for name, (ours, plain) in found.items() if ours != plain}


def _without_start(head: Head) -> Head:
    """The head as it is once trained: where its bias started does not matter."""
    return dataclasses.replace(head, bias=0.0) if isinstance(head, LinearHead) else head


def refuse(project: str, lacks: dict[str, str], *, instead: str) -> None:
    """Nothing, if `lacks` is empty.

    Raises:
        InputError: if not; says what the project's ViT cannot have, and what to write instead.
    """
    if lacks:
        raise InputError(f"{project} has no model with {', '.join(lacks.values())}; write {instead}")
