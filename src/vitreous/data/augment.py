"""Colour and shape operations on a training image, before its pixels become a tensor."""

import functools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps

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
    """Some operations, one after another, at one strength (arXiv:1909.13719): torchvision's 14.

    That of big_vision and AugReg has 16, of other strengths: "identity" is not among them, but inverting, adding below
    half and cutting out are. A strength of 10 there turns and shears as far as 30 here.
    """

    num_ops: int = 2
    """Operations on each image."""
    magnitude: int = 10
    """Their strength, of 30."""

    def __post_init__(self) -> None:
        check_ranges(self, num_ops=(1, 100), magnitude=(0, 30))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return _drawn(_rand(self.num_ops, self.magnitude), image, rng)


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
