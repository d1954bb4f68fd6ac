"""Pixels of one size from pixels of another, as Pillow gives them, in a fraction of its time."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor


def resized(
    pixels: UInt8[np.ndarray, "height width 3"], shape: tuple[int, int], *, interpolation: str
) -> UInt8[Tensor, "3 new_height new_width"]:
    """`pixels` at the height and width of `shape`, antialiased where they shrink.

    Bilinear is within 1 of what Pillow 13 gives, bicubic within 2; other filters are Pillow's own.
    """
    (high, wide), (height, width) = pixels.shape[:2], shape
    if interpolation not in ("bilinear", "bicubic"):
        image = Image.fromarray(pixels).resize((width, height), Image.Resampling[interpolation.upper()])
        return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]  # faster than pixels with gaps between the rows
    if high - height > max(0, 2 * (wide - width)):  # down first, as Pillow 13: what is between is rounded and clipped
        images = F.interpolate(images, (height, wide), mode=interpolation, antialias=True)
    return F.interpolate(images, shape, mode=interpolation, antialias=True)[0].contiguous()
