"""Position embeddings: how a token knows where its patch is.

A variant acts at one of three moments:

* absolute (`Learned`, `Learned2d`, `SinCos2d`): `add` a vector to every token before the first block, or, wrapped in
  `EveryLayer`, before every block (the paper's Table 8);
* rotary (`RoPE2d`): turn queries and keys in every attention;
* relative (in `relative.py`): bias the attention logit of each pair of patches.

To add a variant, write its config and its module here; nothing else changes.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import Config, check_ranges
from vitreous.errors import InputError
from vitreous.resampling import Grid, Resampling, resample
from vitreous.tokens import Tokens

Rotation = tuple[Float[Tensor, "#batch token half_head"], Float[Tensor, "#batch token half_head"]]
"""Cosine and sine of the angles by which queries and keys are turned."""
LogitBias = Callable[[Float[Tensor, "batch head token head_dim"]], Float[Tensor, "#batch head token token"]]
"""From the queries of a layer to what is added to its attention logits."""


@dataclass
class Where:
    """What attention learns of places."""

    grid: Grid
    """Rows and columns of the whole image."""
    rotation: Rotation | None = None
    bias: LogitBias | None = None
    lines: int = 1
    """Sequences that one image is cut into (axial attention)."""
    asked: int | None = None
    """How many of the first tokens the block is to give; None for all. It looks at all in any case."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a position embedding is told of its encoder."""

    width: int
    depth: int
    num_heads: int
    grid: Grid
    """Rows and columns at the training resolution."""
    class_token: bool
    """Whether the prefix begins with a class token."""


@dataclass(frozen=True, kw_only=True)
class Position(Config):
    """Which position embedding a ViT uses."""

    @abstractmethod
    def build(self, shape: Shape) -> "PositionEmbedding":
        """The module for an encoder of that shape."""


class PositionEmbedding(nn.Module):
    """Base of the modules: adds nothing, biases nothing, turns nothing; a variant overrides what it does."""

    def add(self, patches: Float[Tensor, "batch patch width"], grid: Grid) -> Float[Tensor, "batch patch width"]:
        """Patch tokens that know their place, before the first block."""
        return patches

    def add_prefix(self, prefix: Float[Tensor, "prefix width"]) -> Float[Tensor, "prefix width"]:
        """Class token and registers, where they have a place of their own."""
        return prefix

    def before_block(
        self, x: Float[Tensor, "batch token width"], layer: int, tokens: Tokens
    ) -> Float[Tensor, "batch token width"]:
        """The input of block `layer`; `tokens` says where its patches are."""
        return x

    def attention(self, tokens: Tokens, depth: int) -> list[Where]:
        """What the attention of each of `depth` layers learns of places."""
        return [Where(tokens.grid)] * depth

    def init_weights(self) -> None:
        """Fill the parameters, if any."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02)


@dataclass(frozen=True, kw_only=True)
class NoPosition(Position):
    """A bag of patches (the paper's Table 8, first row)."""

    def build(self, shape: Shape) -> PositionEmbedding:
        return PositionEmbedding()


@dataclass(frozen=True, kw_only=True)
class Absolute(Position):
    """Which vector each place has."""

    @abstractmethod
    def build(self, shape: Shape) -> "AbsoluteEmbedding": ...


class AbsoluteEmbedding(PositionEmbedding):
    """Base of those that add a vector to each token; a variant says which."""

    class_token: nn.Parameter | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("class_token", None)

    @abstractmethod
    def vectors(self, grid: Grid, device: torch.device) -> Float[Tensor, "rows columns width"]:
        """The vectors of a whole grid."""

    def add(self, patches: Float[Tensor, "batch patch width"], grid: Grid) -> Float[Tensor, "batch patch width"]:
        return patches + self.vectors(grid, patches.device).flatten(0, 1).to(patches.dtype)

    def add_prefix(self, prefix: Float[Tensor, "prefix width"]) -> Float[Tensor, "prefix width"]:
        if self.class_token is None:
            return prefix
        return torch.cat([prefix[:1] + self.class_token, prefix[1:]])


@dataclass(frozen=True, kw_only=True)
class Trained(Absolute):
    """Vectors that are trained on one grid, and resampled in 2-D for others (Sec. 3.2)."""

    class_token_slot: bool = True
    """Whether the class token, if there is one, has a vector too, as in the paper's E_pos."""
    resampling: Resampling = "aligned_bilinear"
    """How the vectors are resized for other grids; the default is the paper's code."""


class TrainedEmbedding(AbsoluteEmbedding):
    """A vector for the class token; a variant has those of the grid."""

    def __init__(self, config: Trained, shape: Shape) -> None:
        super().__init__()
        self.resampling: Resampling = config.resampling
        if config.class_token_slot and shape.class_token:
            self.class_token = nn.Parameter(torch.empty(1, shape.width))


@dataclass(frozen=True, kw_only=True)
class Learned(Trained):
    """One trained vector per token (the paper's Eq. 1)."""

    def build(self, shape: Shape) -> "LearnedEmbedding":
        return LearnedEmbedding(self, shape)


class LearnedEmbedding(TrainedEmbedding):
    """A table over the grid."""

    def __init__(self, config: Learned, shape: Shape) -> None:
        super().__init__(config, shape)
        self.table = nn.Parameter(torch.empty(*shape.grid, shape.width))

    def vectors(self, grid: Grid, device: torch.device) -> Float[Tensor, "rows columns width"]:
        return resample(self.table, grid, self.resampling)


@dataclass(frozen=True, kw_only=True)
class Learned2d(Trained):
    """A trained vector of half the width for each column and for each row, side by side (App. D.4, "2-D")."""

    def build(self, shape: Shape) -> "Learned2dEmbedding":
        return Learned2dEmbedding(self, shape)


class Learned2dEmbedding(TrainedEmbedding):
    """One table for columns (the paper's X-embedding) and one for rows (Y)."""

    def __init__(self, config: Learned2d, shape: Shape) -> None:
        super().__init__(config, shape)
        if shape.width % 2:
            raise InputError(f"row and column positions share the width evenly, got the odd width {shape.width}")
        rows, columns = shape.grid
        self.column = nn.Parameter(torch.empty(1, columns, shape.width // 2))
        self.row = nn.Parameter(torch.empty(rows, 1, shape.width // 2))

    def vectors(self, grid: Grid, device: torch.device) -> Float[Tensor, "rows columns width"]:
        column = resample(self.column, (1, grid[1]), self.resampling)
        row = resample(self.row, (grid[0], 1), self.resampling)
        return torch.cat([column.expand(grid[0], -1, -1), row.expand(-1, grid[1], -1)], dim=-1)


@dataclass(frozen=True, kw_only=True)
class SinCos2d(Absolute):
    """Fixed sine-cosine vectors of column and row (Better plain ViT baselines, arXiv:2205.01580)."""

    temperature: float = 10_000.0
    """Ratio of the longest wavelength to the shortest."""
    reach_temperature: bool = True
    """Whether the longest wavelength has that ratio (exponents k / (D/4 - 1): big_vision) or stays one step short of
    it (k / (D/4): MAE, MoCo v3)."""

    def __post_init__(self) -> None:
        check_ranges(self, temperature=(1e-6, math.inf))

    def build(self, shape: Shape) -> "SinCos2dEmbedding":
        return SinCos2dEmbedding(self, shape.width)


class SinCos2dEmbedding(AbsoluteEmbedding):
    """Vectors computed for whatever grid comes; nothing is trained."""

    def __init__(self, config: SinCos2d, width: int) -> None:
        super().__init__()
        if width % 4 or width < 8:
            raise InputError(f"sine-cosine positions need a width of 8, 12, 16, ... channels, got {width}")
        self.width, self.config = width, config

    def vectors(self, grid: Grid, device: torch.device) -> Float[Tensor, "rows columns width"]:
        """Sine and cosine of the column, then of the row."""
        quarter = self.width // 4
        steps = quarter - 1 if self.config.reach_temperature else quarter
        omega = self.config.temperature ** -(torch.arange(quarter, device=device) / steps)
        rows, columns = (torch.arange(n, device=device) for n in grid)
        y, x = (places.unflatten(0, grid)[..., None] * omega for places in torch.cartesian_prod(rows, columns).T)
        return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], dim=-1)


@dataclass(frozen=True, kw_only=True)
class EveryLayer(Position):
    """The vectors of an absolute kind, added to the input of every block instead of at the stem (App. D.4)."""

    kind: Absolute = Learned()
    """Which vectors."""
    shared: bool = False
    """Whether all blocks share one table or each has its own."""

    def build(self, shape: Shape) -> "EveryLayerEmbedding":
        return EveryLayerEmbedding(self, shape)


class EveryLayerEmbedding(PositionEmbedding):
    """One table, or one for each block."""

    def __init__(self, config: EveryLayer, shape: Shape) -> None:
        super().__init__()
        self.tables = nn.ModuleList(config.kind.build(shape) for _ in range(1 if config.shared else shape.depth))

    def before_block(
        self, x: Float[Tensor, "batch token width"], layer: int, tokens: Tokens
    ) -> Float[Tensor, "batch token width"]:
        table = self.tables[layer % len(self.tables)]
        assert isinstance(table, AbsoluteEmbedding)
        row, column = tokens.places.unbind(-1)
        patches = table.vectors(tokens.grid, x.device)[row, column]
        prefix = table.add_prefix(x.new_zeros(tokens.prefix.shape[1:]))
        return x + torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1).to(x.dtype)

    def init_weights(self) -> None:
        for table in self.tables:
            assert isinstance(table, AbsoluteEmbedding)
            table.init_weights()


@dataclass(frozen=True, kw_only=True)
class RoPE2d(Position):
    """Axial rotary embedding of row and column (DINOv3, arXiv:2508.10104, Sec. 3.2)."""

    base: float = 100.0
    """Ratio of the longest period to the shortest."""

    def __post_init__(self) -> None:
        check_ranges(self, base=(1e-6, math.inf))

    def build(self, shape: Shape) -> "RoPE2dEmbedding":
        return RoPE2dEmbedding(shape.width // shape.num_heads, self.base)


class RoPE2dEmbedding(PositionEmbedding):
    """Angles computed for whatever grid comes; nothing is trained."""

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__()
        if head_dim % 4:
            raise InputError(f"2-D rotary positions need width / num_heads divisible by 4, got {head_dim}")
        self.head_dim, self.base = head_dim, base

    def angles(self, coords: Float[Tensor, "batch patch 2"]) -> Float[Tensor, "batch patch half_head"]:
        """Angles in radians: a turn for each period that a coordinate has run through."""
        quarter = self.head_dim // 4
        period = self.base ** (torch.arange(quarter, device=coords.device) / quarter)
        return (2 * math.pi * coords[..., None] / period).flatten(-2)

    def attention(self, tokens: Tokens, depth: int) -> list[Where]:
        angles = F.pad(self.angles(tokens.coords), (0, 0, tokens.prefix.shape[1], 0))  # a zero angle turns nothing
        return [Where(tokens.grid, rotation=(angles.cos(), angles.sin()))] * depth
