"""Relative positions: a bias of the attention logit of each pair of patches, from the offset between them.

To add a variant, write its config and its layer here; nothing else changes.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.config import check_ranges
from vitreous.position import LogitBias, Position, PositionEmbedding, Shape, Where
from vitreous.resampling import Grid, Resampling, resample
from vitreous.tokens import Tokens

Queries = Float[Tensor, "batch head token head_dim"]
Bias = Float[Tensor, "#batch head token token"]


@dataclass
class Pairs:
    """The pairs of tokens in a sequence."""

    grid: Grid
    """Rows and columns of the whole image."""
    offset: Int[Tensor, "#batch query key"]
    """For each pair of patches, the place of query - key among all offsets of the grid, row by row."""
    prefix: int
    """Tokens before the patches, which have no offsets."""


def pairs_of(tokens: Tokens) -> Pairs:
    """Those of a sequence of these tokens."""
    rows, columns = tokens.grid
    offset = tokens.places[:, :, None] - tokens.places[:, None]
    number = (offset[..., 0] + rows - 1) * (2 * columns - 1) + offset[..., 1] + columns - 1
    return Pairs(tokens.grid, number, tokens.prefix.shape[1])


@dataclass(frozen=True, kw_only=True)
class Relative(Position):
    """What attention adds to the logit of a pair of patches, from the offset between them."""

    shared: bool = False
    """Whether all layers share one module or each has its own."""

    @abstractmethod
    def layer(self, shape: Shape) -> "RelativeLayer":
        """The module of one layer."""

    def build(self, shape: Shape) -> "RelativeEmbedding":
        return RelativeEmbedding([self.layer(shape) for _ in range(1 if self.shared else shape.depth)])


class RelativeEmbedding(PositionEmbedding):
    """One module for all layers, or one for each."""

    def __init__(self, layers: list["RelativeLayer"]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def attention(self, tokens: Tokens, depth: int) -> list[Where]:
        pairs = pairs_of(tokens)

        def bias(layer: nn.Module) -> LogitBias:
            return lambda queries: layer(queries, pairs)

        biases = [bias(layer) for layer in self.layers]
        return [Where(tokens.grid, bias=biases[i % len(biases)]) for i in range(depth)]

    def init_weights(self) -> None:
        for layer in self.layers:
            assert isinstance(layer, RelativeLayer)
            layer.init_weights()


def _all_offsets(grid: Grid) -> Grid:
    """How many offsets there are down and across a grid."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _for_all_tokens(bias: Float[Tensor, "#batch head patch patch"], pairs: Pairs) -> Bias:
    """The bias of pairs of patches, and zero for those with a token that is none."""
    return F.pad(bias, (pairs.prefix, 0, pairs.prefix, 0))


class RelativeLayer(nn.Module):
    """Base of one layer's module."""

    def forward(self, queries: Queries, pairs: Pairs) -> Bias:
        """What is added to the logits of all pairs of tokens."""
        raise NotImplementedError

    def init_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)


@dataclass(frozen=True, kw_only=True)
class RelativeKeys(Relative):
    """An embedding for every 1-D offset between patches in raster order, used as a second key (App. D.4).

    The query's product with it is added to the logit of the content. Tokens that are no patches have no offset.
    """

    def layer(self, shape: Shape) -> "RelativeKeysLayer":
        return RelativeKeysLayer(shape)


class RelativeKeysLayer(RelativeLayer):
    """A key for each offset -(N-1) ... N-1; for another grid, resampled by where the two patches lie."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        rows, columns = shape.grid
        self.grid = shape.grid
        self.keys = nn.Parameter(torch.empty(2 * rows * columns - 1, shape.num_heads, shape.width // shape.num_heads))

    def forward(self, queries: Queries, pairs: Pairs) -> Bias:
        rows, columns = self.grid
        down, across = (torch.arange(1 - n, n, device=queries.device) for n in self.grid)
        by_offset = self.keys[(down[:, None] * columns + across) + rows * columns - 1]
        keys = resample(by_offset, _all_offsets(pairs.grid)).flatten(0, 1).to(queries.dtype)
        logits = torch.einsum("bhqd,ohd->bhqo", queries[:, :, pairs.prefix :] * queries.shape[-1] ** -0.5, keys)
        picked = logits.gather(-1, pairs.offset[:, None].expand(*logits.shape[:3], -1))
        return _for_all_tokens(picked, pairs)


@dataclass(frozen=True, kw_only=True)
class RelativeBias(Relative):
    """A trained number per head for every 2-D offset (Swin, arXiv:2103.14030, Eq. 4)."""

    resampling: Resampling = "aligned_bilinear"
    """How the table is resized for other grids."""

    def layer(self, shape: Shape) -> "RelativeBiasLayer":
        return RelativeBiasLayer(self, shape)


class RelativeBiasLayer(RelativeLayer):
    """A table over all offsets; pairs with the class token have three numbers of their own (BEiT)."""

    def __init__(self, config: RelativeBias, shape: Shape) -> None:
        super().__init__()
        self.resampling: Resampling = config.resampling
        self.table = nn.Parameter(torch.empty(*_all_offsets(shape.grid), shape.num_heads))
        self.class_token = nn.Parameter(torch.empty(3, shape.num_heads)) if shape.class_token else None

    def forward(self, queries: Queries, pairs: Pairs) -> Bias:
        table = resample(self.table, _all_offsets(pairs.grid), self.resampling).flatten(0, 1)
        bias = _for_all_tokens(table[pairs.offset].permute(0, 3, 1, 2), pairs)
        if self.class_token is not None:
            from_class, to_class, itself = self.class_token[..., None].unbind(0)
            bias[:, :, 0], bias[..., 0], bias[:, :, 0, 0] = from_class, to_class, itself[..., 0]
        return bias.to(queries.dtype)


@dataclass(frozen=True, kw_only=True)
class RelativeMLP(Relative):
    """A small network from the logarithms of an offset to its bias (Swin v2, arXiv:2111.09883, 3.3; timm's form)."""

    hidden: int = 128
    """Hidden channels of the network."""

    def __post_init__(self) -> None:
        check_ranges(self, hidden=(1, math.inf))

    def layer(self, shape: Shape) -> "RelativeMLPLayer":
        return RelativeMLPLayer(self, shape)


class RelativeMLPLayer(RelativeLayer):
    """Two linear layers with a ReLU between; works for any grid."""

    def __init__(self, config: RelativeMLP, shape: Shape) -> None:
        super().__init__()
        self.up = nn.Linear(2, config.hidden)
        self.down = nn.Linear(config.hidden, shape.num_heads)

    def forward(self, queries: Queries, pairs: Pairs) -> Bias:
        offsets = torch.cartesian_prod(*(torch.arange(1 - n, n, device=queries.device).float() for n in pairs.grid))
        logarithms = (offsets.sign() * offsets.abs().log1p()).to(self.up.weight.dtype)
        table = self.down(F.relu(self.up(logarithms)))
        return _for_all_tokens(table[pairs.offset].permute(0, 3, 1, 2), pairs).to(queries.dtype)

    def init_weights(self) -> None:
        for layer in (self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
