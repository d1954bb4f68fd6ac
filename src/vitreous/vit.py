"""The Vision Transformer (Dosovitskiy et al., arXiv:2010.11929), read top to bottom.

    image -> embed -> tokens -> encode -> features

`embed` cuts the image into patches and projects each to a token. `encode` runs the transformer.
Masked objectives act between the two: they drop tokens (MAE) or replace them (masked prediction).
What a block does stands in `block.py`, how a patch knows its place in `position.py`.

Axis names in the annotations:
    batch   images                    patch   patch tokens of one image, in raster order
    prefix  class token, registers    token   prefix + patch
    width   channels of a token       head    attention heads
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous.block import Axial, Block, PreNorm, Transformer
from vitreous.config import BELOW_ONE, check_ranges
from vitreous.errors import InputError
from vitreous.initialisation import Initialisation, PaperInitialisation
from vitreous.position import Learned, Position, Shape
from vitreous.stem import Patchify, Stem
from vitreous.tokens import Tokens, coordinates


def divisible_size(size: float, patch_size: int) -> int:
    """The image size nearest to `size` that divides into patches, both in pixels; at least one patch."""
    return max(round(size / patch_size), 1) * patch_size


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Transformer):
    """The shape of a ViT. Defaults are ViT-B/16 of the paper's Table 1."""

    patch_size: int = 16
    """Side of the square of pixels that one token stands for; with a ResNet stem, its whole stride."""
    depth: int = 12
    """Number of blocks."""
    stem: Stem = Patchify()
    """How pixels become tokens."""
    pad: bool = False
    """Whether an image that does not divide into patches gets zeros at its right and bottom; else it is an error."""
    position: Position = Learned()
    """How patch tokens are told apart."""
    class_token: bool = True
    """Whether a class token leads the sequence (the paper's Sec. 3.1)."""
    num_registers: int = 0
    """Extra tokens that hold global information (Darcet et al., arXiv:2309.16588)."""
    stem_norm: bool = False
    """Whether a norm stands before the first block (CLIP, arXiv:2103.00020)."""
    block: Block = PreNorm()
    """What is repeated `depth` times."""
    drop_path: float = 0.0
    """Probability that an image skips a branch of the last block of several; rises linearly from 0 at the first."""
    patch_drop: float = 0.0
    """Part of the patches of an image that training leaves out, drawn anew each time (arXiv:2208.07220)."""
    final_norm: bool = True
    """Whether a norm stands after the last block (the paper's Eq. 4)."""
    initialisation: Initialisation = PaperInitialisation()
    """How the parameters start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, **dict.fromkeys(("patch_size", "depth", "image_size", "channels"), (1, math.inf)))
        check_ranges(self, num_registers=(0, math.inf), drop_path=(0, BELOW_ONE), patch_drop=(0, BELOW_ONE))
        self.check_image(*self.image_shape)
        if isinstance(self.block, Axial) and (self.class_token or self.num_registers):
            raise InputError(
                "axial blocks take patches alone; set class_token to false and num_registers to 0, and pool by the mean"
            )

    def build(self) -> "ViT":
        """A freshly initialised encoder."""
        return ViT(self)

    def check_image(self, height: int, width: int) -> None:
        """Nothing, if an image of that size divides into patches, or is padded so that it does."""
        if (height % self.patch_size or width % self.patch_size) and not self.pad:
            near = " x ".join(str(divisible_size(side, self.patch_size)) for side in (height, width))
            raise InputError(
                f"an image of {height} x {width} pixels does not divide into patches of {self.patch_size}; "
                f"take {near}, or set pad to true"
            )

    @property
    def features(self) -> int:
        """Channels of a token."""
        return self.width

    @property
    def stride(self) -> int:
        """Side of a patch, in pixels."""
        return self.patch_size


class ViT(nn.Module):
    """A Vision Transformer encoder: images in, `Tokens` out."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width, last = config.width, max(config.depth - 1, 1)
        self.stem = config.stem.build(channels=config.channels, width=width, patch_size=config.patch_size)
        num_prefix = config.class_token + config.num_registers
        self.prefix = nn.Parameter(
            torch.empty(num_prefix, width), requires_grad=num_prefix > 0
        )  # FSDP adds no empty one
        shape = Shape(
            width=width,
            depth=config.depth,
            num_heads=config.num_heads,
            grid=config.grid,
            class_token=config.class_token,
        )
        self.position = config.position.build(shape)
        self.dropout = nn.Dropout(config.dropout)
        self.stem_norm = config.norm(width) if config.stem_norm else nn.Identity()
        rates = (config.drop_path * i / last for i in range(config.depth))
        self.blocks = nn.ModuleList(config.block.build(config, drop_path=rate) for rate in rates)
        self.norm = config.norm(width) if config.final_norm else nn.Identity()
        self.init_weights()

    def embed(self, images: Float[Tensor, "batch channels height width_px"]) -> Tokens:
        """Tokens that know their places (the paper's Eq. 1).

        Raises:
            InputError: if a side is not a multiple of the patch size, unless the config pads it.
        """
        features = self.stem(self._whole_patches(images))
        features = features.to(self.prefix.dtype)  # under autocast, tokens between blocks stay float32
        grid = features.shape[-2], features.shape[-1]
        patches = self.position.add(features.flatten(2).transpose(1, 2), grid)
        prefix = self.position.add_prefix(self.prefix).expand(images.shape[0], -1, -1)
        return Tokens(
            prefix=self.dropout(prefix),
            patches=self.dropout(patches),
            coords=coordinates(grid, images.device)[None],
            grid=grid,
        )

    def encode(self, tokens: Tokens, *, prefix_only: bool = False) -> Tokens:
        """The tokens after all blocks and the final norm (Eq. 2 to 4).

        Args:
            prefix_only: whether the last block computes the prefix alone and no patches come out; the prefix is the
                same but for rounding. Eq. 4 reads the class token alone.
        """
        num_prefix = tokens.prefix.shape[1]
        x = self.stem_norm(torch.cat([tokens.prefix.to(tokens.patches.dtype), tokens.patches], dim=1))
        places = self.position.attention(tokens, len(self.blocks))
        if prefix_only:
            places[-1] = replace(places[-1], asked=num_prefix)
        for layer, (block, where) in enumerate(zip(self.blocks, places, strict=True)):
            x = block(self.position.before_block(x, layer, tokens), where)
        x = self.norm(x)
        return replace(tokens, prefix=x[:, :num_prefix], patches=x[:, num_prefix:])

    def forward(self, images: Float[Tensor, "batch channels height width_px"], *, prefix_only: bool = False) -> Tokens:
        tokens = self.embed(images)
        if self.training and self.config.patch_drop:
            tokens = tokens.keep(self._some_patches(tokens.patches))
        return self.encode(tokens, prefix_only=prefix_only)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Every parameter anew, in one place (so that a meta model can be filled)."""
        if not self.prefix.is_meta:  # drawing shapes alone would cost seconds: torch imports its compiler for it
            self.config.initialisation.fill(self)

    def _some_patches(self, patches: Float[Tensor, "batch patch width"]) -> Int[Tensor, "batch kept"]:
        """Positions, in raster order, of the patches of each image that are not dropped: one or more."""
        kept = max(round(patches.shape[1] * (1 - self.config.patch_drop)), 1)
        order = torch.rand(patches.shape[:2], device=patches.device).argsort(dim=1)
        return order[:, :kept].sort(dim=1).values

    def _whole_patches(
        self, images: Float[Tensor, "batch channels height width_px"]
    ) -> Float[Tensor, "batch channels height width_px"]:
        height, width = images.shape[-2:]
        self.config.check_image(height, width)
        below, right = -height % self.config.patch_size, -width % self.config.patch_size
        return F.pad(images, (0, right, 0, below)) if below or right else images
