"""The Vision Transformer (Dosovitskiy et al., arXiv:2010.11929), read top to bottom.

    image -> embed -> tokens -> encode -> features

`embed` cuts the image into patches and projects each to a token. `encode` runs the transformer.
Masked objectives act between the two: they drop tokens (MAE) or replace them (masked prediction).

Axis names in the annotations:
    batch   images                    patch   patch tokens of one image, in raster order
    prefix  class token, registers    token   prefix + patch
    width   channels of a token       head    attention heads
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitreous.config import BELOW_ONE, Config, check_ranges
from vitreous.errors import InputError
from vitreous.feed_forward import GELU, FeedForward
from vitreous.position import Grid, Learned, Position, coordinates
from vitreous.stem import Patchify, Stem


def divisible_size(size: float, patch_size: int) -> int:
    """The image size nearest to `size` that divides into patches, both in pixels; at least one patch."""
    return max(round(size / patch_size), 1) * patch_size


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Config):
    """The shape of a ViT. Defaults are ViT-B/16 of the paper's Table 1."""

    patch_size: int = 16
    """Side of a square patch, in pixels."""
    width: int = 768
    """Channels of a token; the paper's hidden size D."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads per block; must divide `width`."""
    mlp_dim: int = 3072
    """Hidden channels of each block's feed-forward layer."""
    image_size: int = 224
    """Side of the training image, in pixels; sizes a learned position table. Any other size still works."""
    channels: int = 3
    """Channels of the image."""
    stem: Stem = Patchify()
    """How pixels become tokens."""
    position: Position = Learned()
    """How patch tokens are told apart."""
    feed_forward: FeedForward = GELU()
    """What a block does to each token by itself."""
    class_token: bool = True
    """Whether a class token leads the sequence (the paper's Sec. 3.1)."""
    num_registers: int = 0
    """Extra tokens that hold global information (Darcet et al., arXiv:2309.16588)."""
    layer_scale: float | None = None
    """Initial scale of each residual branch (Touvron et al., arXiv:2103.17239); None leaves it out."""
    drop_path: float = 0.0
    """Probability that an image skips a branch of the last block; rises linearly from 0 at the first."""
    dropout: float = 0.0
    """Dropout after positions and after every dense layer but query, key and value (App. B.1)."""
    attention_dropout: float = 0.0
    """Dropout of attention weights."""
    norm_eps: float = 1e-6
    """Epsilon of every LayerNorm."""

    def __post_init__(self) -> None:
        whole = ("patch_size", "width", "depth", "num_heads", "mlp_dim", "image_size", "channels")
        rates = ("drop_path", "dropout", "attention_dropout")
        check_ranges(self, **dict.fromkeys(whole, (1, math.inf)), **dict.fromkeys(rates, (0, BELOW_ONE)))
        check_ranges(self, num_registers=(0, math.inf), norm_eps=(0, 1), layer_scale=(-math.inf, math.inf))
        if self.width % self.num_heads:
            raise InputError(f"num_heads {self.num_heads} does not divide width {self.width}")
        if self.image_size % self.patch_size:
            raise InputError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                f"take {divisible_size(self.image_size, self.patch_size)}"
            )

    def build(self) -> "ViT":
        """A freshly initialised encoder."""
        return ViT(self)

    @property
    def grid(self) -> Grid:
        """Rows and columns of patches at the training resolution."""
        side = self.image_size // self.patch_size
        return side, side


@dataclass
class Tokens:
    """Token sequences between `embed` and `encode`; also what `encode` returns."""

    prefix: Float[Tensor, "batch prefix width"]
    """Class token (if any), then registers."""
    patches: Float[Tensor, "batch patch width"]
    coords: Float[Tensor, "batch patch 2"]
    """Patch centres as (row, column) in (-1, 1); follows the patches through `keep`."""
    grid: Grid
    """Rows and columns of the whole image, also after `keep`."""

    def keep(self, index: Int[Tensor, "batch kept"]) -> "Tokens":
        """Only the patches at `index`, in that order (MAE's visible patches)."""
        return replace(self, patches=gather(self.patches, index), coords=gather(self.coords, index))

    def fill(self, mask: Bool[Tensor, "batch patch"], token: Float[Tensor, " width"]) -> "Tokens":
        """`token` in place of every patch where `mask` is true (masked patch prediction)."""
        return replace(self, patches=torch.where(mask[..., None], token.to(self.patches.dtype), self.patches))


def gather(
    x: Float[Tensor, "batch token width"], index: Int[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept width"]:
    """Rows of `x` picked per image."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


class Attention(nn.Module):
    """Multi-head self-attention (the paper's App. A)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def heads(
        self, x: Float[Tensor, "batch token width"], angles: Float[Tensor, "batch token half_head"] | None
    ) -> tuple[Float[Tensor, "batch head token head_dim"], ...]:
        """Queries, keys and values of each head, queries and keys turned to their places."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        return q, k, v

    def forward(
        self, x: Float[Tensor, "batch token width"], angles: Float[Tensor, "batch token half_head"] | None
    ) -> Float[Tensor, "batch token width"]:
        q, k, v = self.heads(x, angles)
        drop = self.attention_dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=drop)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))


def rotate(
    x: Float[Tensor, "batch head token head_dim"], angles: Float[Tensor, "batch token half_head"]
) -> Float[Tensor, "batch head token head_dim"]:
    """Turn each channel pair (i, i + head_dim/2) by its angle (RoFormer, arXiv:2104.09864, Eq. 34)."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Residual(nn.Module):
    """Add a branch: scaled per channel and, in training, dropped per image (arXiv:1603.09382)."""

    def __init__(self, config: ViTConfig, drop: float) -> None:
        super().__init__()
        self.initial, self.drop = config.layer_scale, drop
        self.scale = None if config.layer_scale is None else nn.Parameter(torch.empty(config.width))

    def forward(
        self, x: Float[Tensor, "batch token width"], branch: Float[Tensor, "batch token width"]
    ) -> Float[Tensor, "batch token width"]:
        if self.scale is not None:
            branch = branch * self.scale
        if self.training and self.drop > 0:
            kept = torch.rand(x.shape[0], 1, 1, device=x.device) >= self.drop
            branch = branch * (kept / (1 - self.drop)).to(branch.dtype)
        return x + branch


class Block(nn.Module):
    """One pre-norm transformer block (the paper's Eq. 2 and 3)."""

    def __init__(self, config: ViTConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(config)
        self.residual1 = Residual(config, drop_path)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = config.feed_forward.build(config.width, config.mlp_dim, dropout=config.dropout)
        self.residual2 = Residual(config, drop_path)

    def forward(
        self, x: Float[Tensor, "batch token width"], angles: Float[Tensor, "batch token half_head"] | None
    ) -> Float[Tensor, "batch token width"]:
        x = self.residual1(x, self.attention(self.norm1(x), angles))
        return self.residual2(x, self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """A Vision Transformer encoder: images in, `Tokens` out."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, last = config.width, max(config.depth - 1, 1)
        self.stem = config.stem.build(channels=config.channels, width=width, patch_size=config.patch_size)
        self.prefix = nn.Parameter(torch.empty(config.class_token + config.num_registers, width))
        self.position = config.position.build(
            width=width,
            head_dim=width // config.num_heads,
            grid=config.grid,
            class_token=config.class_token,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, config.drop_path * i / last) for i in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.init_weights()

    def embed(self, images: Float[Tensor, "batch channels height width_px"]) -> Tokens:
        """Tokens that know their places (the paper's Eq. 1).

        Raises:
            InputError: if a side is not a multiple of the patch size.
        """
        features = self.stem(images).to(self.prefix.dtype)  # under autocast, tokens between blocks stay float32
        grid = features.shape[-2], features.shape[-1]
        patches = self.position.add(features.flatten(2).transpose(1, 2), grid)
        prefix = self.position.add_prefix(self.prefix).expand(images.shape[0], -1, -1)
        return Tokens(
            prefix=self.dropout(prefix),
            patches=self.dropout(patches),
            coords=coordinates(grid, images.device).expand(images.shape[0], -1, -1),
            grid=grid,
        )

    def encode(self, tokens: Tokens) -> Tokens:
        """The tokens after all blocks and the final norm (Eq. 2 to 4)."""
        num_prefix = tokens.prefix.shape[1]
        angles = self.position.angles(tokens.coords)
        if angles is not None:
            angles = F.pad(angles, (0, 0, num_prefix, 0))  # a rotation by zero leaves the prefix as it is
        x = torch.cat([tokens.prefix.to(tokens.patches.dtype), tokens.patches], dim=1)
        for block in self.blocks:
            x = block(x, angles)
        x = self.norm(x)
        return replace(tokens, prefix=x[:, :num_prefix], patches=x[:, num_prefix:])

    def forward(self, images: Float[Tensor, "batch channels height width_px"]) -> Tokens:
        return self.encode(self.embed(images))

    @torch.no_grad()
    def init_weights(self) -> None:
        """Every parameter as the paper's code draws it, in one place (so that a meta model can be filled).

        Xavier-uniform for each of query, key and value by itself; the class token starts at zero.
        """
        self.stem.init_weights()  # pyright: ignore[reportCallIssue]
        nn.init.zeros_(self.prefix)
        nn.init.normal_(self.prefix[int(self.config.class_token) :], std=0.02)
        self.position.init_weights()
        for module in (*self.blocks.modules(), self.norm):
            if isinstance(module, Attention):
                for weight in (*module.qkv.weight.chunk(3), module.out.weight):
                    nn.init.xavier_uniform_(weight)
                nn.init.zeros_(module.qkv.bias)
                nn.init.zeros_(module.out.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, Residual) and module.scale is not None:
                nn.init.constant_(module.scale, module.initial or 0.0)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in block.mlp.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.normal_(layer.bias, std=1e-6)
