"""What of a training view is the same in every epoch: the resize of an image from which chance only cuts."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from vitreous.data.decode import Box
from vitreous.data.resizing import resized
from vitreous.data.source import Source

MAX_STRETCH = 8
"""Longer images than this many times their short side are cut to it before they are resized."""


@dataclass(frozen=True)
class Still:
    """What a training view begins with where no random choice comes before the resize: the same in every epoch."""

    shape: tuple[int, int]
    """Height and width of the view."""
    margin: float | None
    """How much more than the view there is, as a part of its sides; None: no more, and the rest of the image is cut."""
    interpolation: str

    def read(self, source: Source, i: int) -> UInt8[np.ndarray, "3 height width"]:
        """The pixels of image `i`, which may lie in a cache: not to be written to.

        Raises:
            BadImage: if no image can be had.
        """
        kept = source.kept(i, self)
        return self.resized(source.crop(i, self.box, shape=self.least)).numpy() if kept is None else kept

    @property
    def least(self) -> tuple[int, int]:
        """Height and width that it has at least; one of them exactly."""
        height, width = (math.ceil(side * (1 + (self.margin or 0))) for side in self.shape)
        return height, width

    def box(self, width: int, height: int) -> Box:
        """The part of an image of that size that is resized."""
        if self.margin is None:
            return middle(width, height, aspect=self.shape[1] / self.shape[0])
        wide, high = (min(side, MAX_STRETCH * min(width, height)) for side in (width, height))
        left, top = (width - wide) // 2, (height - high) // 2
        return left, top, left + wide, top + high

    def resized(self, crop: UInt8[np.ndarray, "height width 3"]) -> UInt8[Tensor, "3 new_height new_width"]:
        """That part, as large as it has to be."""
        high, wide = self.least
        if self.margin is not None:
            scale = max(high / crop.shape[0], wide / crop.shape[1])
            high, wide = (max(least, round(has * scale)) for least, has in zip((high, wide), crop.shape))
        return resized(crop, (high, wide), interpolation=self.interpolation)


def middle(width: int, height: int, *, aspect: float) -> Box:
    """The largest centred box of that aspect."""
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
