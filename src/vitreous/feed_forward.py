"""Feed-forward layers: what a block does to each token by itself."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config


@dataclass(frozen=True, kw_only=True)
class FeedForward(Config):
    """Which feed-forward layer a block has."""

    @abstractmethod
    def build(self, width: int, mlp_dim: int, *, dropout: float) -> nn.Module:
        """A module from (..., width) to (..., width) through `mlp_dim` channels."""


@dataclass(frozen=True, kw_only=True)
class GELU(FeedForward):
    """Two linear layers with a GELU between, dropout after each (the paper's App. B.1)."""

    tanh: bool = False
    """Google's tanh approximation instead of erf; on CPUs it is about 3 times slower."""

    def build(self, width: int, mlp_dim: int, *, dropout: float) -> nn.Module:
        activation = partial(F.gelu, approximate="tanh" if self.tanh else "none")
        return MLP(width, mlp_dim, activation=activation, dropout=dropout)


@dataclass(frozen=True, kw_only=True)
class QuickGELU(FeedForward):
    """As `GELU`, but x sigmoid(1.702 x): OpenAI's CLIP (arXiv:2103.00020)."""

    def build(self, width: int, mlp_dim: int, *, dropout: float) -> nn.Module:
        return MLP(width, mlp_dim, activation=_quick_gelu, dropout=dropout)


def _quick_gelu(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, mlp_dim: int, *, activation: Callable[[Tensor], Tensor], dropout: float) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = activation
        self.up = nn.Linear(width, mlp_dim)
        self.down = nn.Linear(mlp_dim, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        hidden = self.dropout(self.activation(self.up(x)))
        return self.dropout(self.down(hidden))


@dataclass(frozen=True, kw_only=True)
class SwiGLU(FeedForward):
    """A linear layer gated by the SiLU of another (Shazeer, arXiv:2002.05202, Eq. 6)."""

    def build(self, width: int, mlp_dim: int, *, dropout: float) -> nn.Module:
        return GatedMLP(width, mlp_dim, dropout=dropout)


class GatedMLP(nn.Module):
    """SiLU of one linear layer gates another; a third returns to the width."""

    def __init__(self, width: int, mlp_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(width, mlp_dim)
        self.up = nn.Linear(width, mlp_dim)
        self.down = nn.Linear(mlp_dim, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        hidden = self.dropout(F.silu(self.gate(x)) * self.up(x))
        return self.dropout(self.down(hidden))
