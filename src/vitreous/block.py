"""Transformer blocks: attention, feed-forward and residuals, in the orders that papers have put them."""

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitreous.config import BELOW_ONE, Config, check_ranges
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, FeedForward
from vitreous.position import Where
from vitreous.tokens import Encoder

Sequence = Float[Tensor, "batch token width"]


@dataclass(frozen=True, kw_only=True)
class Transformer(Encoder):
    """What every block of an encoder shares. Defaults are those of ViT-B in the paper's Table 1."""

    width: int = 768
    """Channels of a token; the paper's hidden size D."""
    num_heads: int = 12
    """Attention heads per block; must divide `width`."""
    mlp_dim: int = 3072
    """Hidden channels of each block's feed-forward layer."""
    feed_forward: FeedForward = GELU()
    """What a block does to each token by itself."""
    qkv_bias: bool = True
    """Whether query, key and value have a bias."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normed (ViT-22B, arXiv:2302.05442, Sec. 2.1)."""
    layer_scale: float | None = None
    """Initial scale of each residual branch (Touvron et al., arXiv:2103.17239); None leaves it out."""
    dropout: float = 0.0
    """Dropout after positions and after every dense layer but query, key and value (App. B.1)."""
    attention_dropout: float = 0.0
    """Dropout of attention weights."""
    rms_norm: bool = False
    """Norms without centring and bias, as in ViT-22B, instead of LayerNorm."""
    norm_eps: float = 1e-6
    """Epsilon of every norm."""

    def __post_init__(self) -> None:
        rates = dict.fromkeys(("dropout", "attention_dropout"), (0, BELOW_ONE))
        check_ranges(self, **dict.fromkeys(("width", "num_heads", "mlp_dim"), (1, math.inf)), **rates)
        check_ranges(self, norm_eps=(0, 1), layer_scale=(-math.inf, math.inf))
        if self.width % self.num_heads:
            raise InputError(f"num_heads {self.num_heads} does not divide width {self.width}")

    def norm(self, channels: int) -> nn.Module:
        """A norm of that many channels."""
        return (nn.RMSNorm if self.rms_norm else nn.LayerNorm)(channels, eps=self.norm_eps)


class Attention(nn.Module):
    """Multi-head self-attention (the paper's App. A)."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        head_dim = config.width // config.num_heads
        self.query_norm = config.norm(head_dim) if config.qk_norm else nn.Identity()
        self.key_norm = config.norm(head_dim) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def heads(self, x: Sequence, where: Where) -> tuple[Float[Tensor, "batch head token head_dim"], ...]:
        """Queries, keys and values of each head, queries and keys normed and turned to their places."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.query_norm(q), self.key_norm(k)
        if where.rotation is not None:
            q, k = rotate(q, *where.rotation), rotate(k, *where.rotation)
        return q, k, v

    def forward(self, x: Sequence, where: Where) -> Sequence:
        q, k, v = self.heads(x, where)
        drop = self.attention_dropout if self.training else 0.0
        bias = None if where.bias is None else where.bias(q)[..., : where.asked, :]
        mixed = attend(q[..., : where.asked, :], k, v, bias=bias, dropout=drop)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


def attend(
    q: Float[Tensor, "batch head token head_dim"],
    k: Float[Tensor, "batch head token head_dim"],
    v: Float[Tensor, "batch head token head_dim"],
    *,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "batch head token head_dim"]:
    """softmax(q k^T / sqrt(head_dim) + bias) v, the paper's Eq. 6 and 7.

    Fused, except where a gradient is needed in bfloat16 on a CPU: torch's takes 5 times as long there at 65 tokens
    and 2.5 times at 197 as the products by themselves.
    """
    if q.is_cpu and q.dtype == torch.bfloat16 and q.requires_grad:
        products = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = (products if bias is None else products + bias).softmax(-1)
        return F.dropout(weights, dropout) @ v.to(weights.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def rotate(
    x: Float[Tensor, "batch head token head_dim"],
    cos: Float[Tensor, "#batch token half_head"],
    sin: Float[Tensor, "#batch token half_head"],
) -> Float[Tensor, "batch head token head_dim"]:
    """Turn each channel pair (i, i + head_dim/2) by its angle (RoFormer, arXiv:2104.09864, Eq. 34)."""
    cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Residual(nn.Module):
    """Add a branch: scaled per channel and, in training, dropped per image (arXiv:1603.09382).

    Of a branch for the first tokens alone, those alone come out.
    """

    def __init__(self, config: Transformer, drop: float) -> None:
        super().__init__()
        self.initial, self.drop = config.layer_scale, drop
        self.scale = None if config.layer_scale is None else nn.Parameter(torch.empty(config.width))

    def forward(self, x: Sequence, branch: Sequence, where: Where) -> Sequence:
        if self.scale is not None:
            branch = branch * self.scale
        if self.training and self.drop > 0:
            kept = torch.rand(x.shape[0] // where.lines, 1, 1, device=x.device) >= self.drop
            kept = kept.repeat_interleave(where.lines, dim=0)
            branch = branch * (kept / (1 - self.drop)).to(branch.dtype)
        return x[:, : branch.shape[1]] + branch


@dataclass(frozen=True, kw_only=True)
class Block(Config):
    """Which block an encoder repeats."""

    @abstractmethod
    def build(self, config: Transformer, *, drop_path: float) -> nn.Module:
        """A module from (tokens, `Where` they are) to those asked for; a branch is dropped with that probability."""


@dataclass(frozen=True, kw_only=True)
class PreNorm(Block):
    """Attention, then feed-forward, each after a norm and beside a residual (the paper's Eq. 2 and 3)."""

    def build(self, config: Transformer, *, drop_path: float) -> "PreNormBlock":
        return PreNormBlock(config, drop_path)


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Transformer, drop_path: float) -> None:
        super().__init__()
        self.norm1 = config.norm(config.width)
        self.attention = Attention(config)
        self.residual1 = Residual(config, drop_path)
        self.norm2 = config.norm(config.width)
        self.mlp = config.feed_forward.build(config.width, config.mlp_dim, dropout=config.dropout)
        self.residual2 = Residual(config, drop_path)

    def forward(self, x: Sequence, where: Where) -> Sequence:
        x = self.residual1(x, self.attention(self.norm1(x), where), where)
        return self.residual2(x, self.mlp(self.norm2(x)), where)


@dataclass(frozen=True, kw_only=True)
class BranchNorm(Block):
    """As `PreNorm`, but each norm stands after its layer, inside the residual (Swin v2, arXiv:2111.09883, Sec. 3.2)."""

    def build(self, config: Transformer, *, drop_path: float) -> "BranchNormBlock":
        return BranchNormBlock(config, drop_path)


class BranchNormBlock(PreNormBlock):
    """x + norm(attention(x)), then x + norm(mlp(x))."""

    def forward(self, x: Sequence, where: Where) -> Sequence:
        x = self.residual1(x, self.norm1(self.attention(x, where)), where)
        return self.residual2(x, self.norm2(self.mlp(x)), where)


@dataclass(frozen=True, kw_only=True)
class Parallel(Block):
    """Attention and feed-forward side by side after one norm (ViT-22B, arXiv:2302.05442, Sec. 2.1)."""

    def build(self, config: Transformer, *, drop_path: float) -> "ParallelBlock":
        return ParallelBlock(config, drop_path)


class ParallelBlock(nn.Module):
    """x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, config: Transformer, drop_path: float) -> None:
        super().__init__()
        self.norm = config.norm(config.width)
        self.attention = Attention(config)
        self.mlp = config.feed_forward.build(config.width, config.mlp_dim, dropout=config.dropout)
        self.residual = Residual(config, drop_path)

    def forward(self, x: Sequence, where: Where) -> Sequence:
        y = self.norm(x)
        return self.residual(x, self.attention(y, where) + self.mlp(y[:, : where.asked]), where)


@dataclass(frozen=True, kw_only=True)
class Axial(Block):
    """One block within each row of patches, then one within each column (the paper's App. D.6)."""

    def build(self, config: Transformer, *, drop_path: float) -> "AxialBlock":
        return AxialBlock(config, drop_path)


class AxialBlock(nn.Module):
    """A row block and a column block, each with norms and a feed-forward layer of its own."""

    def __init__(self, config: Transformer, drop_path: float) -> None:
        super().__init__()
        self.rows = PreNormBlock(config, drop_path)
        self.columns = PreNormBlock(config, drop_path)

    def forward(self, x: Sequence, where: Where) -> Sequence:
        if x.shape[1] != where.grid[0] * where.grid[1] or where.bias is not None:
            raise InputError(
                "axial blocks take the whole grid of patches: with an objective that drops no patches, "
                "and a position of an absolute or rotary kind"
            )
        batch = x.shape[0]

        def lines(y: Float[Tensor, "batch patch any"], *, columns: bool) -> Float[Tensor, "line along any"]:
            grid = y.expand(batch, -1, -1).unflatten(1, where.grid)
            return (grid.transpose(1, 2) if columns else grid).flatten(0, 1)

        for block, columns in ((self.rows, False), (self.columns, True)):
            rotation = where.rotation and tuple(lines(part, columns=columns) for part in where.rotation)
            y = block(lines(x, columns=columns), replace(where, rotation=rotation, lines=where.grid[columns]))
            grid = y.unflatten(0, (batch, -1))
            x = (grid.transpose(1, 2) if columns else grid).flatten(1, 2)
        return x
