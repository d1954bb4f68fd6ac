"""Stems: from an image to a grid of tokens."""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from vitreous.config import Config


@dataclass(frozen=True, kw_only=True)
class Stem(Config):
    """Which stem a ViT has."""

    @abstractmethod
    def build(self, *, channels: int, width: int, patch_size: int) -> nn.Module:
        """A module with `init_weights` from (batch, channels, height, width_px) to (batch, width, rows, columns).

        Image sides are multiples of `patch_size`, the pixels a token stands for in each direction.
        """


@dataclass(frozen=True, kw_only=True)
class Patchify(Stem):
    """Each patch through one linear layer, as a convolution that does not overlap (the paper's Eq. 1)."""

    bias: bool = True
    """Whether the layer has a bias; CLIP's has none."""

    def build(self, *, channels: int, width: int, patch_size: int) -> "PatchConvolution":
        return PatchConvolution(channels, width, patch_size=patch_size, bias=self.bias)


class PatchConvolution(nn.Conv2d):
    """The paper's E; its weight is the linear layer's, reshaped."""

    def __init__(self, channels: int, width: int, *, patch_size: int, bias: bool) -> None:
        super().__init__(channels, width, patch_size, stride=patch_size, bias=bias)

    def init_weights(self) -> None:
        """LeCun normal, truncated, and zero bias: flax's default, as in the paper's code."""
        lecun_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def lecun_normal_(weight: Tensor) -> None:
    """Fill with a normal of variance 1 / fan-in, truncated at two standard deviations."""
    truncation = 0.87962566103423978  # the standard deviation of a unit normal cut at +-2
    nn.init.trunc_normal_(weight, std=1.0, a=-2, b=2)
    weight.mul_(weight[0].numel() ** -0.5 / truncation)
