"""What travels through an encoder: a grid of patch tokens that know their places, and tokens that have none."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitreous.config import Config
from vitreous.resampling import Grid


@dataclass
class Tokens:
    """Token sequences between `embed` and `encode`; also what an encoder returns."""

    prefix: Float[Tensor, "batch prefix width"]
    """Class token (if any), then registers."""
    patches: Float[Tensor, "batch patch width"]
    coords: Float[Tensor, "#batch patch 2"]
    """Patch centres as (row, column) in (-1, 1); follows the patches through `keep`."""
    grid: Grid
    """Rows and columns of the whole image, also after `keep`."""

    def keep(self, index: Int[Tensor, "batch kept"]) -> "Tokens":
        """Only the patches at `index`, in that order (MAE's visible patches)."""
        coords = self.coords.expand(index.shape[0], -1, -1)
        return replace(self, patches=gather(self.patches, index), coords=gather(coords, index))

    def fill(self, mask: Bool[Tensor, "batch patch"], token: Float[Tensor, " width"]) -> "Tokens":
        """`token` in place of every patch where `mask` is true (masked patch prediction)."""
        return replace(self, patches=torch.where(mask[..., None], token.to(self.patches.dtype), self.patches))

    @property
    def places(self) -> Int[Tensor, "#batch patch 2"]:
        """Row and column of each patch in the grid."""
        sides = torch.tensor(self.grid, device=self.coords.device)
        return ((self.coords + 1) * sides / 2 - 0.5).round().long()


def gather(
    x: Float[Tensor, "batch token width"], index: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept width"]:
    """Rows of `x` picked per image."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def coordinates(grid: Grid, device: torch.device) -> Float[Tensor, "patch 2"]:
    """Patch centres as (row, column), each in (-1, 1), in raster order."""
    rows, columns = (torch.arange(n, device=device).add(0.5).div(n).mul(2).sub(1) for n in grid)
    return torch.cartesian_prod(rows, columns)


@dataclass(frozen=True, kw_only=True)
class Encoder(Config):
    """Which network turns images into tokens, and for images of which size it is trained."""

    image_size: int | tuple[int, int] = 224
    """Side of the training image, or its height and width, in pixels. Any other size still works."""
    channels: int = 3
    """Channels of the image."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A freshly initialised encoder: images (batch, channels, height, width_px) in, `Tokens` out."""

    @property
    @abstractmethod
    def features(self) -> int:
        """Channels of a token that comes out."""

    @property
    @abstractmethod
    def stride(self) -> int:
        """Side of the square of pixels that one token stands for."""

    def check_image(self, height: int, width: int) -> None:
        """Nothing, if the encoder takes images of that size in pixels.

        Raises:
            InputError: if not; says which it takes.
        """

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width of the training image, in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def pixels(self) -> str:
        """`image_shape` in words: "224 px", or "192 x 256 px"."""
        height, width = self.image_shape
        return f"{height} px" if height == width else f"{height} x {width} px"

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches at the training resolution."""
        height, width = self.image_shape
        return -(-height // self.stride), -(-width // self.stride)
