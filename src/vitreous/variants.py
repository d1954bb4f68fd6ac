"""Every published name of a plain ViT, and the config it means."""

import re
from dataclasses import dataclass, replace
from typing import Any

from vitreous.errors import InputError, did_you_mean
from vitreous.vit import ViTConfig


@dataclass(frozen=True)
class Size:
    """One row of the table of sizes."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    timm: str
    """The word timm uses."""


# B, L, H: the paper, Table 1. Ti, S: DeiT (arXiv:2012.12877). So400m: arXiv:2305.13035. The others: Scaling
# Vision Transformers (arXiv:2106.04560), Table 2, and the code that came with it; e: PaLI (arXiv:2209.06794).
SIZES: dict[str, Size] = {
    "Ti": Size(192, 12, 768, 3, "tiny"),
    "S": Size(384, 12, 1536, 6, "small"),
    "M": Size(512, 12, 2048, 8, "medium"),
    "B": Size(768, 12, 3072, 12, "base"),
    "L": Size(1024, 24, 4096, 16, "large"),
    "So400m": Size(1152, 27, 4304, 16, "so400m"),
    "H": Size(1280, 32, 5120, 16, "huge"),
    "g": Size(1408, 40, 6144, 16, "giant"),
    "G": Size(1664, 48, 8192, 16, "gigantic"),
    "e": Size(1792, 56, 15360, 16, "enormous"),
}

# What `vitreous models` lists: sizes and patches with published weights or results.
PUBLISHED = (
    *("Ti/16", "S/32", "S/16", "S/14", "S/8", "M/32", "M/16", "B/32", "B/16", "B/14", "B/8", "L/32", "L/16", "L/14"),
    *("So400m/16", "So400m/14", "H/16", "H/14", "g/14", "G/14", "e/14"),
)

TIMM_LACKS = frozenset({"S/14", "M/32", "M/16", "B/14", "So400m/16", "So400m/14", "H/16", "e/14"})
"""Those of `PUBLISHED` for which timm has no plain model of that name."""

PAPER_NAME = re.compile(r"(?:vit-)?(?P<size>[a-z0-9]+)[/-](?P<patch>\d+)(?:@(?P<image>\d+))?", re.IGNORECASE)
TIMM_NAME = re.compile(r"vit_(?P<word>[a-z0-9]+)_patch(?P<patch>\d+)_(?P<image>\d+)(?:\..*)?")
SHAPE_NAME = re.compile(r"(?P<width>\d+)x(?P<depth>\d+)/(?P<patch>\d+)(?:@(?P<image>\d+))?")


def vit(name: str, **changes: Any) -> ViTConfig:
    """The config that `name` means, with any fields changed.

    `name` is the paper's ("B/16", "ViT-L/14@336"), timm's ("vit_base_patch16_224"), or WIDTHxDEPTH/PATCH for
    a size nobody has named ("128x6/4": MLP 4 times as wide, heads of 32 channels). The size is read without
    regard to case, except that g and G differ.

    Raises:
        InputError: if no size has that name; names the nearest.
    """
    if match := SHAPE_NAME.fullmatch(name):
        width, depth = int(match["width"]), int(match["depth"])
        if not width or not depth or width % 32:
            raise InputError(f"model {name!r}: the width must be a multiple of 32 and the depth at least 1")
        size = Size(width, depth, 4 * width, width // 32, "")
    elif match := TIMM_NAME.fullmatch(name):
        size = next((s for s in SIZES.values() if s.timm == match["word"]), None)
    elif match := PAPER_NAME.fullmatch(name):
        folded = {letter.lower(): s for letter, s in SIZES.items() if letter != "G"}
        size = SIZES.get(match["size"]) or folded.get(match["size"].lower())
    else:
        size = None
    if size is None or match is None or not int(match["patch"]):
        known = [*PUBLISHED, *(timm_name(vit(p)) for p in PUBLISHED)]
        near = did_you_mean(name, known)
        raise InputError(
            f"unknown model {name!r}" + (near if "did you mean" in near else f"; choose one of {', '.join(PUBLISHED)}")
        )
    patch = int(match["patch"])
    image = int(match["image"]) if match["image"] else 224 // patch * patch or patch
    config = dict(width=size.width, depth=size.depth, mlp_dim=size.mlp_dim, num_heads=size.num_heads)
    return replace(ViTConfig(), **{**config, "patch_size": patch, "image_size": image, **changes})


def paper_name(config: ViTConfig) -> str:
    """The paper's name of a config's size, such as "B/16"; WIDTHxDEPTH/PATCH where it has none."""
    for letter, size in SIZES.items():
        if (config.width, config.depth, config.mlp_dim) == (size.width, size.depth, size.mlp_dim):
            return f"{letter}/{config.patch_size}"
    return f"{config.width}x{config.depth}/{config.patch_size}"


def timm_name(config: ViTConfig) -> str:
    """A config's size in timm's style; a width and depth without a name gets that of the smallest."""
    letter = paper_name(config).partition("/")[0]
    word = SIZES[letter].timm if letter in SIZES else SIZES["Ti"].timm
    return f"vit_{word}_patch{config.patch_size}_{config.image_size}"
