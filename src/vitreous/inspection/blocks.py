"""What the tokens are between the blocks of a ViT."""

from collections.abc import Callable, Iterable
from functools import partial

from jaxtyping import Float
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.tokens import Tokens
from vitreous.vit import ViT

Images = Float[Tensor, "batch channel height width_px"]
SeenTokens = Callable[[int, Float[Tensor, "batch token width"]], None]
"""Hears the layer and what it gave, prefix tokens first."""


def watch_blocks(
    classifier: Classifier, images: Images, see: SeenTokens, *, layers: Iterable[int] | None = None
) -> Tokens:
    """The encoder's tokens, after showing `see` what each block of `layers` gave, before the final norm.

    None means all layers. Numbers count from 0, or backwards from -1, as a list's items do.

    Raises:
        InputError: if the model has no such layer, or is no ViT.
    """
    vit, handles = vit_of(classifier), []

    def hook(layer: int, block: object, inputs: object, out: Tensor) -> None:
        see(layer, out)

    try:
        for layer in set(numbers(layers, len(vit.blocks), "layers in a model")):
            handles.append(vit.blocks[layer].register_forward_hook(partial(hook, layer)))
        return vit(images)
    finally:
        for handle in handles:
            handle.remove()


def vit_of(classifier: Classifier) -> ViT:
    """The encoder, if it is a ViT.

    Raises:
        InputError: if not; says what it is instead.
    """
    if not isinstance(classifier.encoder, ViT):
        raise InputError(f"only a ViT can be inspected so, not a {type(classifier.encoder).__name__}; choose a ViT")
    return classifier.encoder


def numbers(given: Iterable[int] | None, total: int, what: str) -> list[int]:
    """`given` counted from 0, in that order; all if None. `what` is "layers in a model" or the like."""
    given = range(total) if given is None else list(given)
    try:
        return [range(total)[number] for number in given]
    except IndexError:
        kind, where = what.split(" ", 1)
        raise InputError(f"no {kind} {given} {where} of {total}; give 0 to {total - 1}") from None
