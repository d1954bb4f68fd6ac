"""From an RGB image to the pixels of one view: fixed for measuring, drawn at random for training.

A view returns uint8, so that little memory travels to the device; `normalise` finishes there. All
randomness comes from the generator that is passed in.
"""

import functools
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from vitreous.config import Config, check_ranges
from vitreous.data.augment import Augment
from vitreous.data.decode import Box
from vitreous.data.resizing import resized
from vitreous.data.source import Source
from vitreous.data.still import MAX_STRETCH, Still, middle


@dataclass(frozen=True, kw_only=True)
class View(Config):
    """What every view has: a size, a filter, and the numbers that normalise pixels."""

    image_size: int | tuple[int, int] = 224
    """Side of the square that the model sees, or height and width, in pixels."""
    interpolation: Literal["bilinear", "bicubic", "nearest", "lanczos"] = "bicubic"
    """Filter of the resize."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from pixels in [0, 1], by channel."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides after `mean`, by channel."""

    def __post_init__(self) -> None:
        check_ranges(self, image_size=(1, math.inf), std=(1e-6, math.inf))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the view, in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @abstractmethod
    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> UInt8[Tensor, "3 size size"]:
        """The pixels of one view of an RGB image."""

    @abstractmethod
    def read(self, source: Source, i: int, rng: np.random.Generator | None = None) -> UInt8[Tensor, "3 size size"]:
        """The pixels of one view of image `i`, of which no more is decoded than they need.

        Raises:
            BadImage: if no image can be had.
        """

    def normalise(self, images: UInt8[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
        """Pixels 0..255 as float32, scaled to [0, 1], less `mean`, over `std`."""
        mean, std = (_channels(values, images.device) for values in (self.mean, self.std))
        return images.float().div_(255).sub_(mean).div_(std)  # one array of floats, not four

    def _resample(self) -> Image.Resampling:
        return Image.Resampling[self.interpolation.upper()]


@dataclass(frozen=True, kw_only=True)
class EvalView(View):
    """Resized to just cover image_size / crop_ratio, then the centre; of the same image, the same pixels as timm's.

    A JPEG of more than twice that size comes decoded at a fraction, see `decode`.
    """

    crop_ratio: float = 0.9
    """Part of the resized image that is kept, along the side that is not cut."""
    squash: bool = False
    """Resize the whole image to the view instead, whatever its shape."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, crop_ratio=(0.01, 1))

    @property
    def covered(self) -> tuple[int, int]:
        """Height and width that the resized image just covers, before the crop."""
        height, width = self.shape
        return math.floor(height / self.crop_ratio), math.floor(width / self.crop_ratio)

    @property
    def min_side(self) -> int:
        """The short side that the resize ends at: what to pass to `Source.image`."""
        return max(self.shape if self.squash else self.covered)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> UInt8[Tensor, "3 size size"]:
        """The pixels of the centre; `rng` is not used."""
        height, width = self.shape
        if self.squash:
            return _pixels(image.resize((width, height), self._resample()))
        image = _cut(image)
        high, wide = self.covered
        if image.width * high <= image.height * wide:
            high = _stretched(image.height, image.width, wide, square=high == wide)
        else:
            wide = _stretched(image.width, image.height, high, square=high == wide)
        image = image.resize((wide, high), self._resample())
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)  # halves to even, as timm
        return _pixels(image.crop((left, top, left + width, top + height)))

    def read(self, source: Source, i: int, rng: np.random.Generator | None = None) -> UInt8[Tensor, "3 size size"]:
        """The pixels of the centre of image `i`."""
        return self(source.image(i, min_side=self.min_side))


@dataclass(frozen=True, kw_only=True)
class TrainView(View):
    """A random part of the image at full size, and the switches that suit the data."""

    min_area_ratio: float = 0.08
    """Smallest part of the image's area that a random crop keeps; 1 keeps the centre, as large as it fits."""
    margin: float | None = None
    """In place of a random area: the whole image, resized to just cover the view and this part of it more, of which a
    random view is cut at whole pixels (AlexNet's 224 of 256 is 0.143). What `cache_gb` makes fast."""
    flip: bool = True
    """Mirror half of the images; not for digits, text or anything else that has a left and a right."""
    shift_ratio: float = 0.0
    """Largest shift to any side, as a fraction of that side of the view; edges are repeated. For small images."""
    rotate: float = 0.0
    """Largest rotation to either side, in degrees."""
    augment: Augment | None = None
    """Random colour and shape operations on each image."""
    erase: float = 0.0
    """Probability that a random rectangle is painted over with `mean` (arXiv:1708.04896)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, min_area_ratio=(0.001, 1), shift_ratio=(0, 1), rotate=(0, 180), erase=(0, 1), margin=(0, 1))

    @property
    def still(self) -> Still | None:
        """What each view of an image begins with; None where chance says what is resized."""
        if self.margin is None and self.min_area_ratio < 1:
            return None
        return Still(self.shape, self.margin, self.interpolation)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> UInt8[Tensor, "3 size size"]:
        """The pixels of a view drawn from `rng`."""
        if (still := self.still) is not None:
            crop = np.asarray(image.crop(still.box(image.width, image.height)))
            return self._finished(self._window(still.resized(crop).numpy(), rng), rng)
        box = self._draw(rng)(image.width, image.height)
        return self._finished(resized(np.asarray(image.crop(box)), self.shape, interpolation=self.interpolation), rng)

    def read(self, source: Source, i: int, rng: np.random.Generator | None = None) -> UInt8[Tensor, "3 size size"]:
        """The pixels of a view of image `i` drawn from `rng`, those of `__call__` but for what `decode_crop` says."""
        if (still := self.still) is not None:
            return self._finished(self._window(still.read(source, i), rng), rng)
        crop = source.crop(i, self._draw(rng), shape=self.shape)
        return self._finished(resized(crop, self.shape, interpolation=self.interpolation), rng)

    def _draw(self, rng: np.random.Generator | None) -> Callable[[int, int], Box]:
        assert rng is not None, "a training view draws from a generator"
        height, width = self.shape
        return functools.partial(_crop_box, min_area_ratio=self.min_area_ratio, rng=rng, aspect=width / height)

    def _window(
        self, still: UInt8[np.ndarray, "3 height width"], rng: np.random.Generator | None
    ) -> UInt8[Tensor, "3 size size"]:
        """A view-sized part of `still`, in memory of its own."""
        assert rng is not None, "a training view draws from a generator"
        (height, width), (top, left) = self.shape, (0, 0)
        if self.margin is not None:
            top, left = (int(rng.integers(has - needs + 1)) for has, needs in zip(still.shape[1:], self.shape))
        return torch.from_numpy(still[:, top : top + height, left : left + width].copy())

    def _finished(
        self, pixels: UInt8[Tensor, "3 size size"], rng: np.random.Generator | None
    ) -> UInt8[Tensor, "3 size size"]:
        assert rng is not None
        if self.flip and rng.random() < 0.5:
            pixels = pixels.flip(-1)
        if self.shift_ratio and not self.rotate:
            rows, columns = (_places(side, rng, shift_ratio=self.shift_ratio) for side in self.shape)
            pixels = torch.from_numpy(pixels.numpy()[:, rows][:, :, columns])
        if self.rotate or self.augment is not None:
            image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            if self.rotate:
                image = _moved(image, rng, shift_ratio=self.shift_ratio, rotate=self.rotate)
            if self.augment is not None:
                image = self.augment(image, rng)
            pixels = _pixels(image)
        if rng.random() < self.erase:
            top, left, height, width = _rectangle(self.shape, rng)
            paint = torch.tensor(self.mean).mul(255).round().to(torch.uint8)
            pixels[:, top : top + height, left : left + width] = paint[:, None, None]
        return pixels


@functools.cache  # or every batch would wait for the device to take six numbers
def _channels(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "channel 1 1"]:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)[:, None, None]


def _pixels(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _stretched(long: int, short: int, new_short: int, *, square: bool) -> int:
    """`long` after `short` is resized to `new_short`: cut for a square view, else rounded, as in timm."""
    return int(new_short * long / short) if square else round(long / (short / new_short))


def _cut(image: Image.Image) -> Image.Image:
    """The middle of an image that would grow huge when its short side is resized."""
    width, height = (min(side, MAX_STRETCH * min(image.size)) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _crop_box(width: int, height: int, *, min_area_ratio: float, rng: np.random.Generator, aspect: float) -> Box:
    """A random box of `min_area_ratio` to all of the area and 3/4 to 4/3 of `aspect` (arXiv:1409.4842, Sec. 6).

    After ten boxes that do not fit, the largest centred box of that aspect.
    """
    for _ in range(10):
        area = width * height * rng.uniform(min_area_ratio, 1)
        shape = aspect * math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left, top = (int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)))
            return left, top, left + w, top + h
    return middle(width, height, aspect=aspect)


def _places(size: int, rng: np.random.Generator, *, shift_ratio: float, margin: int = 0) -> Int[np.ndarray, " place"]:
    """Which row or column comes where after a random shift by whole pixels; what comes in repeats the edge."""
    reach = round(shift_ratio * size)
    return np.clip(np.arange(-margin, size + margin) - rng.integers(-reach, reach + 1), 0, size - 1)


def _moved(image: Image.Image, rng: np.random.Generator, *, shift_ratio: float, rotate: float) -> Image.Image:
    """`image` moved by whole pixels and turned about its centre; what comes in repeats the edge."""
    # Half of the diagonal less the short side is needed: 0.21 of the side of a square, up to 0.5 of the long side.
    margin = math.ceil(max(image.size) * 3 / 4 - min(image.size) / 2)
    rows = _places(image.height, rng, shift_ratio=shift_ratio, margin=margin)
    columns = _places(image.width, rng, shift_ratio=shift_ratio, margin=margin)
    moved = Image.fromarray(np.take(np.take(np.asarray(image), rows, 0), columns, 1))
    turned = moved.rotate(rng.uniform(-rotate, rotate), Image.Resampling.BILINEAR)
    return turned.crop((margin, margin, margin + image.width, margin + image.height))


def _rectangle(view: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of 2 % to a third of the view, of shape 1:3 to 3:1."""
    area, shape = (view[0] * view[1] * rng.uniform(0.02, 1 / 3), math.exp(rng.uniform(-math.log(3), math.log(3))))
    wanted = math.sqrt(area * shape), math.sqrt(area / shape)
    height, width = (min(max(round(side), 1), most) for side, most in zip(wanted, view))
    return (int(rng.integers(view[0] - height + 1)), int(rng.integers(view[1] - width + 1)), height, width)
