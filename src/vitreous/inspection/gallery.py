"""What a masked objective sees and what it makes of it, side by side."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vitreous.errors import InputError

GREY = 0.5
"""Of masked patches."""


def reconstruction_gallery(
    images: Float[Tensor, "image 3 height width_px"],
    mask: Bool[Tensor, "image patch"],
    reconstructions: Float[Tensor, "image 3 height width_px"],
    *,
    patch_size: int,
) -> Float[Tensor, "image row column 3"]:
    """A strip for each image: original, masked, reconstructed; three times as wide as the image.

    Pixels are in [0, 1], so normalisation is to be undone first; beyond, they are cut. `mask` is true where a patch was
    hidden, in raster order. Of a reconstruction, hidden patches are shown, in the places of which the model had to
    guess; elsewhere the original.

    Raises:
        InputError: if mask and reconstructions do not fit the images.
    """
    number, _, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    if reconstructions.shape != images.shape:
        given, needed = (" x ".join(map(str, x.shape)) for x in (reconstructions, images))
        raise InputError(f"reconstructions are as large as their images, {needed}, got {given}")
    if mask.shape != (number, rows * columns) or height % patch_size or width % patch_size:
        raise InputError(
            f"images of {height} x {width} pixels in patches of {patch_size} need a mask of {number} x "
            f"{rows * columns}, got {' x '.join(map(str, mask.shape))}"
        )
    wide = mask.unflatten(1, (rows, columns)).repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)[:, None]
    masked = torch.where(wide, torch.full_like(images, GREY), images)
    guessed = torch.where(wide, reconstructions, images)
    return torch.cat([images, masked, guessed], dim=3).clamp(0, 1).permute(0, 2, 3, 1)
