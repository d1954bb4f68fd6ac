"""Stems: from an image to a grid of tokens."""

from abc import abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config
from vitreous.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Stem(Config):
    """Which stem a ViT has."""

    @abstractmethod
    def build(self, *, channels: int, width: int, patch_size: int) -> nn.Module:
        """A module with `init_weights` from (batch, channels, height, width_px) to (batch, width, rows, columns)."""


@dataclass(frozen=True, kw_only=True)
class Patchify(Stem):
    """Each patch through one linear layer, as a convolution that does not overlap (the paper's Eq. 1)."""

    def build(self, *, channels: int, width: int, patch_size: int) -> "PatchConvolution":
        return PatchConvolution(channels, width, patch_size=patch_size)


class PatchConvolution(nn.Conv2d):
    """The paper's E; its weight is the linear layer's, reshaped."""

    def __init__(self, channels: int, width: int, *, patch_size: int) -> None:
        super().__init__(channels, width, patch_size, stride=patch_size)
        self.patch_size = patch_size

    def forward(
        self, images: Float[Tensor, "batch channels height width_px"]
    ) -> Float[Tensor, "batch width rows columns"]:
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise InputError(
                f"an image of {height} x {width} pixels does not divide into patches of {self.patch_size}; "
                "resize it to multiples of the patch size"
            )
        return super().forward(images)

    def init_weights(self) -> None:
        """LeCun normal, truncated, and zero bias: flax's default, as in the paper's code."""
        fan_in = self.weight[0].numel()
        truncation = 0.87962566103423978  # the standard deviation of a unit normal cut at +-2
        nn.init.trunc_normal_(self.weight, std=1.0, a=-2, b=2)
        self.weight.mul_(fan_in**-0.5 / truncation)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
