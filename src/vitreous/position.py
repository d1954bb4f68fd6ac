"""Position embeddings: how a patch token knows where it is.

A variant acts at one of two moments:

* absolute (`Learned`, `SinCos2d`): `add` a vector to every token, once, before the first block;
* rotary (`RoPE2d`): give each patch `angles` by which every attention turns its query and key.

To add a variant, write its config and its module here; nothing else changes.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config, check_ranges
from vitreous.errors import InputError

Grid = tuple[int, int]  # rows, columns of patches


@dataclass(frozen=True, kw_only=True)
class Position(Config):
    """Which position embedding a ViT uses."""

    @abstractmethod
    def build(self, *, width: int, head_dim: int, grid: Grid, class_token: bool) -> "PositionEmbedding":
        """The module for tokens of `width` channels, heads of `head_dim`, trained on `grid`."""


class PositionEmbedding(nn.Module):
    """Base of the modules: adds nothing, turns nothing; a variant overrides what it does."""

    def add(self, patches: Float[Tensor, "batch patch width"], grid: Grid) -> Float[Tensor, "batch patch width"]:
        """Patch tokens that know their place."""
        return patches

    def add_prefix(self, prefix: Float[Tensor, "prefix width"]) -> Float[Tensor, "prefix width"]:
        """Class token and registers, where they have a place of their own."""
        return prefix

    def angles(self, coords: Float[Tensor, "batch patch 2"]) -> Float[Tensor, "batch patch half_head"] | None:
        """Angles, in radians, by which attention turns queries and keys; None to leave them."""
        return None

    def init_weights(self) -> None:
        """Fill the parameters, if any."""


def coordinates(grid: Grid, device: torch.device) -> Float[Tensor, "patch 2"]:
    """Patch centres as (row, column), each in (-1, 1), in raster order."""
    rows, columns = (torch.arange(n, device=device).add(0.5).div(n).mul(2).sub(1) for n in grid)
    return torch.cartesian_prod(rows, columns)


@dataclass(frozen=True, kw_only=True)
class NoPosition(Position):
    """A bag of patches (the paper's Table 8, first row)."""

    def build(self, *, width: int, head_dim: int, grid: Grid, class_token: bool) -> PositionEmbedding:
        return PositionEmbedding()


@dataclass(frozen=True, kw_only=True)
class Learned(Position):
    """One trained vector per token (the paper's Eq. 1), resampled in 2-D for other grids (Sec. 3.2)."""

    class_token_slot: bool = True
    """Whether the class token, if there is one, has a vector too, as in the paper's E_pos."""

    def build(self, *, width: int, head_dim: int, grid: Grid, class_token: bool) -> PositionEmbedding:
        return LearnedEmbedding(width, grid, class_token_slot=class_token and self.class_token_slot)


class LearnedEmbedding(PositionEmbedding):
    """A table over the grid, and a vector for the class token."""

    def __init__(self, width: int, grid: Grid, *, class_token_slot: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(*grid, width))
        self.class_token = nn.Parameter(torch.empty(1, width)) if class_token_slot else None

    def init_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)

    def add(self, patches: Float[Tensor, "batch patch width"], grid: Grid) -> Float[Tensor, "batch patch width"]:
        return patches + resample(self.table, grid).flatten(0, 1)

    def add_prefix(self, prefix: Float[Tensor, "prefix width"]) -> Float[Tensor, "prefix width"]:
        if self.class_token is None:
            return prefix
        return torch.cat([prefix[:1] + self.class_token, prefix[1:]])


def resample(table: Float[Tensor, "rows columns width"], grid: Grid) -> Float[Tensor, "new_rows new_columns width"]:
    """A position table on another grid, as the paper's code does it: bilinear, corners aligned.

    Equal to `scipy.ndimage.zoom(order=1)`, which that code calls, but for any two grids, square or not.
    """
    if table.shape[:2] == grid:
        return table
    image = table.permute(2, 0, 1)[None].float()
    resized = F.interpolate(image, size=grid, mode="bilinear", align_corners=True)
    return resized[0].permute(1, 2, 0).to(table.dtype)


@dataclass(frozen=True, kw_only=True)
class SinCos2d(Position):
    """Fixed sine-cosine vectors of column and row (Better plain ViT baselines, arXiv:2205.01580)."""

    temperature: float = 10_000.0
    """Ratio of the longest wavelength to the shortest."""

    def __post_init__(self) -> None:
        check_ranges(self, temperature=(1e-6, math.inf))

    def build(self, *, width: int, head_dim: int, grid: Grid, class_token: bool) -> PositionEmbedding:
        return SinCos2dEmbedding(width, self.temperature)


class SinCos2dEmbedding(PositionEmbedding):
    """Vectors computed for whatever grid comes; nothing is trained."""

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        if width % 4 or width < 8:
            raise InputError(f"sine-cosine positions need a width of 8, 12, 16, ... channels, got {width}")
        self.width, self.temperature = width, temperature

    def table(self, grid: Grid, device: torch.device) -> Float[Tensor, "patch width"]:
        """The vectors of a whole grid, in raster order: sine and cosine of the column, then of the row."""
        quarter = self.width // 4
        omega = self.temperature ** -(torch.arange(quarter, device=device) / (quarter - 1))
        rows, columns = (torch.arange(n, device=device) for n in grid)
        y, x = (torch.cartesian_prod(rows, columns).T[..., None] * omega).unbind(0)
        return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1)

    def add(self, patches: Float[Tensor, "batch patch width"], grid: Grid) -> Float[Tensor, "batch patch width"]:
        return patches + self.table(grid, patches.device).to(patches.dtype)


@dataclass(frozen=True, kw_only=True)
class RoPE2d(Position):
    """Axial rotary embedding of row and column (DINOv3, arXiv:2508.10104, Sec. 3.2)."""

    base: float = 100.0
    """Ratio of the longest period to the shortest."""

    def __post_init__(self) -> None:
        check_ranges(self, base=(1e-6, math.inf))

    def build(self, *, width: int, head_dim: int, grid: Grid, class_token: bool) -> PositionEmbedding:
        return RoPE2dEmbedding(head_dim, self.base)


class RoPE2dEmbedding(PositionEmbedding):
    """Angles computed for whatever grid comes; nothing is trained."""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        if head_dim % 4:
            raise InputError(f"2-D rotary positions need width / num_heads divisible by 4, got {head_dim}")
        self.head_dim, self.base = head_dim, base

    def angles(self, coords: Float[Tensor, "batch patch 2"]) -> Float[Tensor, "batch patch half_head"]:
        quarter = self.head_dim // 4
        period = self.base ** (torch.arange(quarter, device=coords.device) / quarter)
        return (2 * math.pi * coords[..., None] / period).flatten(-2)
