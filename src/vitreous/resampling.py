"""Resampling of position tables: each project has its own filter, and here they are, as two matrix products.

A grid of vectors is resized by one matrix for its rows and one for its columns. That is differentiable, exports
to any runtime, and equals the filter it is named after to rounding.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Grid = tuple[int, int]  # rows, columns of patches

Resampling = Literal[
    "aligned_bilinear", "bilinear", "aligned_bicubic", "bicubic", "antialiased_bicubic", "offset_bicubic"
]
"""Who resizes positions how.

aligned_bilinear     Google: the paper's code, big_vision (`scipy.ndimage.zoom(order=1)`)
bilinear             timm, when it reads Google's files
aligned_bicubic      torchvision
bicubic              DeiT, MAE, transformers
antialiased_bicubic  timm, and DINOv2 with registers
offset_bicubic       DINO and DINOv2: as bicubic, but for a grid of 0.1 more
"""


def resample(
    table: Float[Tensor, "rows columns *rest"], grid: Grid, method: Resampling = "aligned_bilinear"
) -> Float[Tensor, "new_rows new_columns *rest"]:
    """A table of vectors on another grid, square or not; computed in float32, returned in the table's type."""
    if all(isinstance(side, int) for side in grid) and table.shape[:2] == grid:  # symbols are left to the exporter
        return table
    rows, columns = (
        interpolation_matrix(old, new, method=method, device=table.device)
        for old, new in zip(table.shape[:2], grid, strict=True)
    )
    device = table.device.type
    with torch.autocast(device if torch.amp.is_autocast_available(device) else "cpu", enabled=False):
        return torch.einsum("ai,bj,ij...->ab...", rows, columns, table.float()).to(table.dtype)


def interpolation_matrix(
    old: int, new: int, *, method: Resampling, device: torch.device | None = None
) -> Float[Tensor, "new old"]:
    """The weights with which `old` values in a row make `new` ones; each row sums to 1."""
    target = torch.arange(new, device=device)
    if method == "antialiased_bicubic":
        stretch = max(old / new, 1.0)
        distance = (torch.arange(old, device=device) + 0.5 - (target[:, None] + 0.5) * (old / new)) / stretch
        weights = _cubic(distance.abs(), -0.5)  # Pillow's and torch's antialiased filter
        return weights / weights.sum(dim=1, keepdim=True)
    # Where each target lies between the old values, as an exact fraction: float32 would lose 1e-6 of a step.
    if method.startswith("aligned"):
        numerator, denominator = target * (old - 1), max(new - 1, 1)
    else:
        tenths = 1 if method == "offset_bicubic" else 0
        denominator = 20 * new + 2 * tenths
        numerator = (2 * target + 1) * 10 * old - denominator // 2
    taps = torch.arange(-2, old + 2, device=device)
    distance = _steps(numerator, denominator, taps).abs()
    weights = (1 - distance).clamp(min=0) if "bilinear" in method else _cubic(distance, -0.75)
    inside = taps.clamp(0, old - 1)  # beyond the border the edge repeats
    return torch.zeros(new, old, device=device).index_add(1, inside, weights)


def _steps(numerator: Int[Tensor, " new"], denominator: int, taps: Int[Tensor, " tap"]) -> Float[Tensor, "new tap"]:
    """numerator / denominator - taps, with the whole steps taken apart from the rest."""
    whole = numerator.div(denominator, rounding_mode="floor")
    rest = (numerator - whole * denominator).float() / denominator
    return (whole[:, None] - taps) + rest[:, None]


def _cubic(distance: Float[Tensor, "*any"], a: float) -> Float[Tensor, "*any"]:
    """Keys' cubic convolution kernel (IEEE Trans. ASSP 29(6), 1981) with parameter `a`."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
