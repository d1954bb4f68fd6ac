"""Images in, labels or features out: the Python face of a trained model."""

import html
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from vitreous import distributed, packing
from vitreous.classifier import Classifier, class_probabilities
from vitreous.data.decode import BadImage, decode, to_rgb
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.evaluation.multi_label import THRESHOLD
from vitreous.variants import title
from vitreous.weights.open import open_model

Picture = Image.Image | str | Path | bytes | np.ndarray | Tensor


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image."""

    label: str
    """The most probable class."""
    score: float
    """Its probability, in [0, 1]."""
    top: tuple[tuple[str, float], ...]
    """The most probable classes with their probabilities, best first."""
    file: str | None = None
    """The path that was given, if it was one."""
    labels: tuple[str, ...] | None = None
    """All classes above one half, best first, of a model for images of several; None of one that chooses one."""

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{score:.1%}</td></tr>" for name, score in self.top)
        return f"<table>{rows}</table>"


class Model:
    """A trained classifier with its preprocessing and its class names."""

    def __init__(
        self,
        module: Classifier,
        *,
        view: EvalView,
        classes: Sequence[str] | None,
        device: str = "auto",
        headless: bool = False,
        multi_label: bool = False,
    ) -> None:
        self.world = distributed.start(device=device)
        self.module = module.to(self.world.device).eval()
        """A plain nn.Module from (batch, 3, height, width) to (batch, num_classes) logits."""
        fast = self.world.dtype == torch.float32 and packing.pays(self.world.device)
        self.inference = packing.packed(self.module) if fast else self.module
        """What answers: `module`, or the same function in the form that is fastest here; it keeps today's weights."""
        self.view = view
        self.headless = headless
        """Whether the weights are an encoder's alone: it embeds, but names no classes."""
        self.multi_label = multi_label
        """Whether an image may show several classes or none, each with a probability of its own."""
        number = module.config.num_classes
        classes = None if headless else classes  # there is nothing to name
        self.named = classes is not None
        """Whether the class names are known; otherwise classes are called by their number."""
        self.classes = tuple(classes) if classes is not None else tuple(str(i) for i in range(number))
        if len(self.classes) != number:
            raise InputError(f"the model tells {number} classes apart, but {len(self.classes)} names were given")

    def preprocess(self, image: Picture) -> Float[Tensor, "3 height width"]:
        """The tensor that `module` expects for `image`: resized, cropped and normalised."""
        return self.view.normalise(self.pixels(image)[None])[0]

    def predict(self, images: Picture | Sequence[Picture], *, top: int = 5, batch_size: int = 32) -> list[Prediction]:
        """The `top` most probable classes of each image; of a model for several an image, also all above one half.

        `images` is one or many of: a path, encoded bytes, a PIL image, an array (height, width[, 3]) of uint8
        or of floats in [0, 1], a tensor (3, height, width) likewise. The answer is a list, also for one image.

        Raises:
            InputError: if an image cannot be read, says which and why; or a number is below 1.
        """
        pictures = _listed(images)
        named = (str(picture) if isinstance(picture, str | Path) else None for picture in pictures)
        said = self.classify(map(self.pixels, pictures), top=top, batch_size=batch_size)
        return [replace(prediction, file=name) for prediction, name in zip(said, named)]

    def embed(self, images: Picture | Sequence[Picture], *, batch_size: int = 32) -> Float[np.ndarray, "image width"]:
        """One feature vector an image, as the head sees it; float32. `images` as in `predict`."""
        pixels = map(self.pixels, _listed(images))
        rows = [features.float().numpy() for features in self._run(pixels, batch_size, self.inference.features)]
        return (
            np.concatenate(rows)
            if rows
            else np.zeros((0, self.module.config.pooling.features(self.module.config.encoder)), np.float32)
        )

    def pixels(self, picture: Picture) -> UInt8[Tensor, "3 height width"]:
        """`picture` resized and cropped, not yet normalised."""
        return self.view(to_image(picture, min_side=self.view.min_side))

    def classify(
        self, pixels: Iterable[UInt8[Tensor, "3 height width"]], *, top: int = 5, batch_size: int = 32
    ) -> Iterator[Prediction]:
        """A prediction for each of `pixels`, which are read as they are needed."""
        self.check_head()
        if top < 1:
            raise InputError(f"top must be at least 1, got {top}")
        for logits in self._run(pixels, batch_size, self.inference):
            for row in class_probabilities(logits, multi_label=self.multi_label):
                number = max(top, int((row > THRESHOLD).sum()) if self.multi_label else 0)
                values, indices = row.topk(min(number, len(self.classes)))
                best = tuple((self.classes[i], v) for i, v in zip(indices.tolist(), values.tolist(), strict=True))
                labels = tuple(name for name, value in best if value > THRESHOLD) if self.multi_label else None
                yield Prediction(best[0][0], best[0][1], best[:top], labels=labels)

    def check_head(self) -> None:
        """Nothing, if the model names classes.

        Raises:
            InputError: if it is an encoder alone.
        """
        if self.headless:
            raise InputError(
                "this model is an encoder without a head, so it names no classes; train a head (fit --weights) or embed"
            )

    def _run(self, pixels: Iterable[Tensor], batch_size: int, function: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        waiting = iter(pixels)
        while group := list(itertools.islice(waiting, batch_size)):
            images = self.view.normalise(torch.stack(group).to(self.world.device))
            with torch.inference_mode(), self.world.autocast():
                yield function(images).cpu()

    def __repr__(self) -> str:
        encoder = self.module.config.encoder
        said = "an encoder alone" if self.headless else f"{len(self.classes)} classes: {', '.join(self.classes[:4])}..."
        return f"Model({title(encoder)}, {encoder.pixels}, {said})"

    def _repr_html_(self) -> str:
        names = "none, an encoder alone" if self.headless else ", ".join(self.classes[:8])
        more = f" and {len(self.classes) - 8:,} more" if len(self.classes) > 8 and not self.headless else ""
        facts = {
            "model": title(self.module.config.encoder),
            "parameters": f"{sum(parameter.numel() for parameter in self.module.parameters()):,}",
            "classes": names + more,
            "view": repr(self.view),
        }
        rows = (f"<tr><th>{name}</th><td>{html.escape(fact)}</td></tr>" for name, fact in facts.items())
        return f"<table>{''.join(rows)}</table>"


def _listed(images: Picture | Sequence[Picture]) -> list[Picture]:
    return list(images) if isinstance(images, Iterable) and not isinstance(images, Picture) else [images]


def to_image(picture: Picture, *, min_side: int | None = None) -> Image.Image:
    """`picture` as an RGB image.

    Raises:
        InputError: if it cannot be read or is of no known form.
    """
    if isinstance(picture, str | Path):
        try:
            return decode(Path(picture), min_side=min_side)
        except BadImage as error:
            raise BadImage(f"{picture}: {error}") from None
    if isinstance(picture, bytes):
        return decode(picture, min_side=min_side)
    if isinstance(picture, Image.Image):
        if not all(picture.size):
            raise InputError(f"an image needs pixels, got one of {picture.width} x {picture.height}")
        try:
            return to_rgb(ImageOps.exif_transpose(picture))
        except OSError as error:  # opened before, read only now
            raise BadImage(f"the image cannot be read ({error})") from None
    if isinstance(picture, Tensor):
        picture = picture.detach().cpu()
        array = (picture.float() if picture.is_floating_point() else picture).numpy()
        if array.ndim == 3:
            array = np.moveaxis(array, 0, -1)
    elif isinstance(picture, np.ndarray):
        array = picture
    else:
        raise InputError(f"cannot read an image from {type(picture).__name__}; give a path, bytes, array or tensor")
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise InputError(
            f"an image array is (height, width[, 3]) and a tensor (3, height, width), got {tuple(picture.shape)}"
        )
    if not array.size:
        raise InputError(f"an image needs pixels, got an array of {tuple(picture.shape)}")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating) or not ((array >= 0) & (array <= 1)).all():  # also for NaN
            raise InputError(f"pixels are uint8 or floats in [0, 1], got {array.dtype} up to {array.max(initial=0)}")
        array = np.round(array * 255).astype(np.uint8)
    return to_rgb(Image.fromarray(array))


def load(
    model: str | Path,
    *,
    classes: Sequence[str] | None = None,
    device: str = "auto",
    progress: Callable[[str], None] | None = None,
) -> Model:
    """A trained model, ready to use.

    `model` is a run folder, a product folder, a weights file in any layout that vitreous reads, or a prefixed name
    (`timm:NAME.TAG`, `hf:OWNER/NAME`, `google:DIRECTORY/NAME.npz`). An encoder without a head embeds, and refuses to
    name classes. `classes` names the outputs of weights that come without names. `progress` hears what is slow
    and what had to be assumed, a sentence each. On a CPU, torch then computes with as many threads as cores are free.

    Raises:
        InputError: if there is no such model, or its tensors do not fit.
    """
    product = open_model(str(model), progress=progress)
    return Model(
        product.classifier,
        view=product.view,
        classes=classes or product.classes,
        device=device,
        headless=product.extra.get("headless", False),
        multi_label=product.multi_label,
    )
