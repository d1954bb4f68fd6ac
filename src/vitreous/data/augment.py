"""Colour and shape operations on a training image, before its pixels become a tensor."""

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from vitreous.config import Config, check_ranges

GREY = [128, 128, 128]
"""What comes into an image that is moved or turned, as in big_vision."""


@dataclass(frozen=True, kw_only=True)
class Augment(Config):
    """Which operations."""

    @abstractmethod
    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """An RGB image of the same size, by choices drawn from `rng`."""


@dataclass(frozen=True, kw_only=True)
class TrivialAugment(Augment):
    """One operation at a random strength (arXiv:2103.10158)."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return _drawn(_trivial(), image, rng)


@dataclass(frozen=True, kw_only=True)
class RandAugment(Augment):
    """Some operations, one after another, at one strength (arXiv:1909.13719): torchvision's 14."""

    num_ops: int = 2
    """Operations on each image."""
    magnitude: int = 10
    """Their strength, of 30."""

    def __post_init__(self) -> None:
        check_ranges(self, num_ops=(1, 100), magnitude=(0, 30))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return _drawn(_rand(self.num_ops, self.magnitude), image, rng)


@dataclass(frozen=True, kw_only=True)
class BigVisionRandAugment(Augment):
    """Some operations, one after another, at one strength, as in big_vision, for which AugReg's presets were found.

    Its 16 are not torchvision's: "identity" is not among them, but inverting, brightening what is dark and painting
    over a square are. A level of 10 turns and shears as far as a magnitude of 30 there. Lengths are pixels of an image
    of 224. Kept as it is there: contrast is against a grey of height * width / 256, which is hardly the mean; from
    level 10 on solarising, and from 20 on posterising, does nothing. Pixels may differ from theirs by rounding.
    """

    num_ops: int = 2
    """Operations on each image."""
    level: int = 10
    """Their strength; the presets reach 20."""

    def __post_init__(self) -> None:
        check_ranges(self, num_ops=(1, 100), level=(0, 30))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for _ in range(self.num_ops):
            image = OPERATIONS[rng.integers(len(OPERATIONS))](image, self.level / 10, rng)
        return image


@dataclass(frozen=True, kw_only=True)
class AutoAugment(Augment):
    """Two operations of a policy that was found by search (arXiv:1805.09501)."""

    policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet"
    """The data set that it was found on."""

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return _drawn(_auto(self.policy), image, rng)


@dataclass(frozen=True, kw_only=True)
class ThreeAugment(Augment):
    """Grey, solarised or blurred, and then other colours (DeiT III, arXiv:2204.07118, Sec. 3.3)."""

    jitter: float = 0.3
    """Largest relative change of brightness, contrast and saturation."""

    def __post_init__(self) -> None:
        check_ranges(self, jitter=(0, 1))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        match rng.integers(3):
            case 0:
                image = ImageOps.grayscale(image).convert("RGB")
            case 1:
                image = ImageOps.solarize(image, 128)
            case _:
                image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
        return _drawn(_jitter(self.jitter), image, rng)


def _either_way(strength: float, rng: np.random.Generator) -> float:
    return strength if rng.integers(2) else -strength


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    """Each pixel (x, y) from where the 2 x 3 matrix sends it, counted from the upper left corner."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=tuple(GREY))


def _contrasted(image: Image.Image, factor: float) -> Image.Image:
    grey = min(image.width * image.height // 256, 255)
    return Image.blend(Image.new("RGB", image.size, (grey, grey, grey)), image, factor)


def _painted_over(image: Image.Image, half: int, rng: np.random.Generator) -> Image.Image:
    """Grey in a square of twice `half`, around any pixel."""
    y, x = int(rng.integers(image.height)), int(rng.integers(image.width))
    painted = image.copy()
    painted.paste(
        tuple(GREY), (max(x - half, 0), max(y - half, 0), min(x + half, image.width), min(y + half, image.height))
    )
    return painted


OPERATIONS: tuple[Callable[[Image.Image, float, np.random.Generator], Image.Image], ...] = (
    lambda image, strength, rng: ImageOps.autocontrast(image),
    lambda image, strength, rng: ImageOps.equalize(image),
    lambda image, strength, rng: ImageOps.invert(image),
    lambda image, strength, rng: image.rotate(_either_way(30 * strength, rng), fillcolor=tuple(GREY)),
    lambda image, strength, rng: image.point(lambda v: v & 256 - 2 ** (8 - min(int(4 * strength), 8))),
    lambda image, strength, rng: ImageOps.solarize(image, int(256 * strength)),
    lambda image, strength, rng: ImageEnhance.Color(image).enhance(1.8 * strength + 0.1),
    lambda image, strength, rng: _contrasted(image, 1.8 * strength + 0.1),
    lambda image, strength, rng: ImageEnhance.Brightness(image).enhance(1.8 * strength + 0.1),
    lambda image, strength, rng: ImageEnhance.Sharpness(image).enhance(1.8 * strength + 0.1),
    lambda image, strength, rng: _moved(image, 1, _either_way(0.3 * strength, rng), 0, 0, 1, 0),
    lambda image, strength, rng: _moved(image, 1, 0, 0, _either_way(0.3 * strength, rng), 1, 0),
    lambda image, strength, rng: _moved(image, 1, 0, _either_way(100 * strength, rng), 0, 1, 0),
    lambda image, strength, rng: _moved(image, 1, 0, 0, 0, 1, _either_way(100 * strength, rng)),
    lambda image, strength, rng: _painted_over(image, int(40 * strength), rng),
    lambda image, strength, rng: image.point(
        [min(v + int(110 * strength), 255) if v < 128 else v for v in range(256)] * 3
    ),
)
"""big_vision's, at a strength that is 1 at level 10."""


def _drawn(transform: Callable[[Image.Image], Image.Image], image: Image.Image, rng: np.random.Generator):
    """What a transform of torchvision's, which draws from torch's own generator, makes of `image`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))  # torch.manual_seed would reseed CUDA too
        return transform(image)


# torchvision is imported within: it doubles torch's start-up


@functools.cache
def _trivial() -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms.v2 import TrivialAugmentWide

    return TrivialAugmentWide()


@functools.cache
def _rand(num_ops: int, magnitude: int) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms.v2 import InterpolationMode, RandAugment

    return RandAugment(num_ops, magnitude, interpolation=InterpolationMode.BILINEAR, fill=GREY)


@functools.cache
def _auto(policy: str) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy, InterpolationMode

    return AutoAugment(AutoAugmentPolicy(policy), interpolation=InterpolationMode.BILINEAR, fill=GREY)


@functools.cache
def _jitter(strength: float) -> Callable[[Image.Image], Image.Image]:
    from torchvision.transforms.v2 import ColorJitter

    return ColorJitter(brightness=strength, contrast=strength, saturation=strength)
