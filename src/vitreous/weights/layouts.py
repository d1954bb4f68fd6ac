"""Which project's layout a state dict has, and the model that is in it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vitreous.classifier import Classifier
from vitreous.errors import InputError, some
from vitreous.resnet import BIG_VISION, VISION_TRANSFORMER
from vitreous.weights import dino, google, huggingface, mae, timm, torchvision
from vitreous.weights.infer import Foreign, infer, with_head
from vitreous.weights.mapping import Tensors, instantiate

# In this order: the first that fits reads. timm's names are the ground others build on, so it comes last.
LAYOUTS = (google, huggingface, torchvision, mae, dino, timm)
OURS = ("encoder.prefix", "encoder.stem.", "encoder.blocks.", "encoder.root.", "encoder.stages.")
"""How names begin that only this project gives."""


def read(tensors: Tensors, document: Mapping[str, Any]) -> Foreign:
    """The model in tensors of any layout; `document` is the config.json beside them, or empty.

    Raises:
        InputError: if no layout has these names, or the model is one that vitreous lacks.
    """
    if any(name.startswith(OURS) for name in tensors):
        resnet = any(name.startswith("encoder.stages.") for name in tensors)
        return Foreign(
            tensors=tensors,
            bare_stem=True,
            resnet=BIG_VISION if resnet else VISION_TRANSFORMER,  # the defaults of the two configs
            assumed=("pixels from -1 to 1", "bicubic resize", "crop ratio 0.9"),
        )
    layout = next((layout for layout in LAYOUTS if layout.fits(tensors)), None)
    if layout is None:
        raise InputError(
            f"these are not the tensors of a ViT or a BiT ResNet in a layout that vitreous reads (its own, timm's, "
            f"transformers', torchvision's, Google's, DINO's, MAE's); they are {some(list(tensors), most=3)}"
        )
    with _blaming(document):
        return layout.read(tensors, document)


def classifier_of(foreign: Foreign) -> Classifier:
    """The classifier that has these tensors; one without a head gets one that says zero of a single class.

    Raises:
        InputError: if the tensors are not exactly those of a ViT or a BiT ResNet; names the first that differ.
    """
    with _blaming({}):
        config = infer(foreign)
    return instantiate(config, with_head(foreign.tensors, config))


@contextmanager
def _blaming(document: Mapping[str, Any]) -> Iterator[None]:
    """Turn what Python says of a tensor, or a field of `document`, that is not as expected into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        what = "a tensor is missing or misshapen"
        if any(document.values()):
            what += ", or a field of config.json misstated"
        reason = str(error).partition("\n")[0]
        raise InputError(f"{what} ({reason}); fetch the weights again") from error
