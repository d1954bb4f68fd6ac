"""Every published name of a ViT, a hybrid or a BiT ResNet, and the config it means."""

import re
from dataclasses import dataclass, replace
from typing import Any

from vitreous.block import Parallel
from vitreous.errors import InputError, did_you_mean
from vitreous.resnet import ResNetConfig, ResNetStem
from vitreous.tokens import Encoder
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
# Vision Transformers (arXiv:2106.04560), Table 2, and the code that came with it; e: PaLI (arXiv:2209.06794);
# 22B: arXiv:2302.05442, Table 1.
SIZES: dict[str, Size] = {
    "Ti": Size(192, 12, 768, 3, "tiny"),
    "S": Size(384, 12, 1536, 6, "small"),
    "M": Size(512, 12, 2048, 8, "medium"),
    "B": Size(768, 12, 3072, 12, "base"),
    "L": Size(1024, 24, 4096, 16, "large"),
    "So400m": Size(1152, 27, 4304, 16, "so400m"),
    "H": Size(1280, 32, 5120, 16, "huge"),
    "g": Size(1408, 40, 6144, 16, "giant"),
    "g-opt": Size(1536, 40, 6144, 16, ""),
    "G": Size(1664, 48, 8192, 16, "gigantic"),
    "G-opt": Size(1536, 48, 8192, 16, ""),
    "e": Size(1792, 56, 15360, 16, ""),
    "22B": Size(6144, 48, 24576, 48, ""),
}

# Bottlenecks in each stage of a ResNet of that many layers (BiT, arXiv:1912.11370; R26: AugReg, arXiv:2106.10270).
UNITS: dict[str, tuple[int, ...]] = {
    "26": (2, 2, 2, 2),
    "50": (3, 4, 6, 3),
    "101": (3, 4, 23, 3),
    "152": (3, 8, 36, 3),
    "200": (3, 24, 36, 3),
}

# What `vitreous models` lists: sizes and patches with published weights or results.
PUBLISHED = (
    *("Ti/16", "S/32", "S/16", "S/14", "S/8", "M/32", "M/16", "B/32", "B/16", "B/14", "B/8", "L/32", "L/16", "L/14"),
    *("So400m/16", "So400m/14", "H/16", "H/14", "g/14", "g-opt/14", "G/14", "G-opt/14", "e/14", "22B/14"),
    *("R+Ti/16", "R26+S/32", "R26+B/32", "R50+B/32", "R50+B/16", "R50+L/32", "R50+L/16"),
    *("R50x1", "R50x2", "R101x1", "R152x1", "R152x2", "R200x3"),
)

PAPER_NAME = re.compile(
    r"(?:vit-)?(?:r(?P<layers>\d*)\+)?(?P<size>[a-z0-9]+(?:-opt)?)[/-](?P<patch>\d+)(?:@(?P<image>\d+))?", re.IGNORECASE
)
TIMM_NAME = re.compile(
    r"vit_(?P<word>[a-z0-9]+)_(?:r(?P<layers>\d*)_s|patch)(?P<patch>\d+)(?:_p8)?_(?P<image>\d+)(?:\..*)?"
)
SHAPE_NAME = re.compile(r"(?P<width>\d+)x(?P<depth>\d+)/(?P<patch>\d+)(?:@(?P<image>\d+))?")
RESNET_NAME = re.compile(
    r"(?:BiT-|resnetv2_)?R?(?P<layers>\d+)x(?P<multiplier>\d+)(?:_bit(?:\..*)?)?(?:@(?P<image>\d+))?", re.IGNORECASE
)


def encoder(name: str, **changes: Any) -> Encoder:
    """The config that `name` means, with any fields changed: a ViT as in `vit`, or a BiT ResNet such as "R50x1".

    Raises:
        InputError: if there is none of that name; names the nearest.
    """
    if (match := RESNET_NAME.fullmatch(name)) and match["layers"] in UNITS and int(match["multiplier"]):
        image = int(match["image"] or 224)
        shape = ResNetConfig(units=UNITS[match["layers"]], multiplier=int(match["multiplier"]), image_size=image)
        return replace(shape, **changes)
    return vit(name, **changes)


def vit(name: str, **changes: Any) -> ViTConfig:
    """The config that `name` means, with any fields changed.

    `name` is the paper's ("B/16", "ViT-L/14@336", the hybrid "R50+B/16"), timm's ("vit_base_patch16_224"), or
    WIDTHxDEPTH/PATCH for a size nobody has named ("128x6/4": MLP 4 times as wide, heads of 32 channels). The size is
    read without regard to case, except that g and G differ.

    Raises:
        InputError: if no size has that name; names the nearest.
    """
    layers = None
    if match := SHAPE_NAME.fullmatch(name):
        width, depth = int(match["width"]), int(match["depth"])
        if not width or not depth or width % 32:
            raise InputError(f"model {name!r}: the width must be a multiple of 32 and the depth at least 1")
        size = Size(width, depth, 4 * width, width // 32, "")
    elif match := TIMM_NAME.fullmatch(name):
        size, layers = next((s for s in SIZES.values() if s.timm == match["word"]), None), match["layers"]
    elif match := PAPER_NAME.fullmatch(name):
        size = {_folded(letter): s for letter, s in SIZES.items()}.get(_folded(match["size"]))
        layers = match["layers"]
    else:
        size = None
    if size is None or match is None or not int(match["patch"]) or (layers and layers not in UNITS):
        known = [*PUBLISHED, *filter(None, map(timm_name, map(encoder, PUBLISHED)))]
        near = did_you_mean(name, known)
        raise InputError(
            f"unknown model {name!r}" + (near if "did you mean" in near else f"; choose one of {', '.join(PUBLISHED)}")
        )
    patch = int(match["patch"])
    config: dict[str, Any] = dict(width=size.width, depth=size.depth, mlp_dim=size.mlp_dim, num_heads=size.num_heads)
    if layers is not None:
        stem = _stem(layers, patch)
        config["stem"] = stem
        patch = patch if stem.units else 2 * patch  # R+Ti/16: patches of 8 after a stem that shrinks by 4, not by 2
    if size is SIZES["22B"]:
        config |= {"block": Parallel(), "qk_norm": True, "qkv_bias": False, "rms_norm": True}
    image = int(match["image"]) if match["image"] else 224 // patch * patch or patch
    return replace(ViTConfig(), **{**config, "patch_size": patch, "image_size": image, **changes})


def _folded(letter: str) -> str:
    """`letter` without regard to case, except of the first g."""
    return (letter[0] if letter[0] in "gG" else letter[0].lower()) + letter[1:].lower()


def _stem(layers: str, patch: int) -> ResNetStem:
    """The ResNet before patches: all four stages for /32; for /16 the layers of stage 4 go into stage 3 (App. B)."""
    if not layers:
        return ResNetStem(units=())
    first, second, third, fourth = UNITS[layers]
    return ResNetStem(units=(first, second, third + fourth) if patch == 16 else (first, second, third, fourth))


def paper_name(config: Encoder) -> str:
    """The paper's name of a config's size, such as "B/16" or "R50x1"; WIDTHxDEPTH/PATCH where it has none."""
    if isinstance(config, ResNetConfig):
        layers = next((name for name, units in UNITS.items() if units == config.units), None)
        return f"R{layers or '-'.join(map(str, config.units))}x{config.multiplier}"
    assert isinstance(config, ViTConfig)
    stem, patch = "", config.patch_size
    if isinstance(config.stem, ResNetStem):
        named = {_stem(layers, 16 * k).units: layers for layers in ("", *UNITS) for k in (1, 2)}
        stem = f"R{named.get(config.stem.units, '-'.join(map(str, config.stem.units)))}+"
        patch = patch if config.stem.units else patch // 2
    for letter, size in SIZES.items():
        if (config.width, config.depth, config.mlp_dim) == (size.width, size.depth, size.mlp_dim):
            return f"{stem}{letter}/{patch}"
    return f"{stem}{config.width}x{config.depth}/{patch}"


def title(config: Encoder) -> str:
    """What to call a model in a sentence: "ViT B/16", "BiT R50x1"."""
    return f"{'BiT' if isinstance(config, ResNetConfig) else 'ViT'} {paper_name(config)}"


def timm_name(config: Encoder) -> str | None:
    """timm's name of a config's size, where timm has such a model."""
    name = paper_name(config)
    if isinstance(config, ResNetConfig):
        return f"resnetv2_{name[1:]}_bit" if name in TIMM_RESNETS else None
    stem, _, size = name.rpartition("+")
    letter, _, patch = size.partition("/")
    if name not in TIMM_VITS:
        return None
    middle = f"{stem.lower()}_s{patch}" + ("_p8" if stem == "R" else "") if stem else f"patch{patch}"
    return f"vit_{SIZES[letter].timm}_{middle}_{config.image_shape[0]}"


TIMM_VITS = frozenset(
    (
        *("Ti/16", "S/32", "S/16", "S/8", "B/32", "B/16", "B/8", "L/32", "L/16", "L/14", "H/14", "g/14", "G/14"),
        *("R+Ti/16", "R26+S/32", "R26+B/32", "R50+B/16", "R50+L/32"),
    )
)
"""Those of `PUBLISHED` for which timm has a model, a plain ViT or a hybrid, of that name."""
TIMM_RESNETS = frozenset({"R50x1", "R50x3", "R101x1", "R101x3", "R152x2", "R152x4"})
