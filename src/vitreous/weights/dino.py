"""The layouts of DINO, DINOv2 and DINOv3: close to timm's, and each with names of its own."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitreous.errors import InputError
from vitreous.position import RoPE2d
from vitreous.weights.infer import Foreign
from vitreous.weights.mapping import Rules, Tensors, inverse, joined, rename
from vitreous.weights.timm import IMAGENET
from vitreous.weights.timm_tensors import from_timm

V3_GATES: Rules = (  # DINOv3 has gate and value apart, and calls them as Llama does
    ("encoder.blocks.*.mlp.gate", "blocks.*.mlp.w1"),
    ("encoder.blocks.*.mlp.up", "blocks.*.mlp.w2"),
    ("encoder.blocks.*.mlp.down", "blocks.*.mlp.w3"),
)
V2_GATES: Rules = (("blocks.*.mlp.fc1", "blocks.*.mlp.w12"), ("blocks.*.mlp.fc2", "blocks.*.mlp.w3"))
WRAPPER = "_fsdp_wrapped_module."


def fits(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these are names of DINO's training, of DINOv2 or of DINOv3."""
    return any(
        name.startswith(("backbone.", "teacher.backbone."))
        or name.endswith(("register_tokens", "storage_tokens", "rope_embed.periods", ".mlp.w12.weight"))
        or (name.endswith("mask_token") and "decoder_embed.weight" not in tensors and "pos_embed" in tensors)
        or re.match(r"blocks\.\d+\.\d+\.", name)
        for name in tensors
    )


def read(tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Foreign:
    """An encoder of one of the three; heads of their training stay behind.

    Raises:
        InputError: if the rotary periods are not those of DINOv3's formula.
    """
    theirs = {name.replace(WRAPPER, ""): tensor for name, tensor in tensors.items()}
    left = []
    if any(name.startswith("teacher.") for name in theirs):
        theirs = {n.removeprefix("teacher."): t for n, t in theirs.items() if n.startswith("teacher.")}
        left.append("the student")
    if any(name.startswith("backbone.") for name in theirs):
        if any(not name.startswith("backbone.") for name in theirs):
            left.append("the heads of its training")
        theirs = {n.removeprefix("backbone."): t for n, t in theirs.items() if n.startswith("backbone.")}
    theirs = {re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name): tensor for name, tensor in theirs.items()}
    if theirs.pop("mask_token", None) is not None:
        left.append("the mask token")
    if "rope_embed.periods" in theirs or "storage_tokens" in theirs:
        return _read_v3(theirs, left)
    registers = theirs.pop("register_tokens", None)
    ours = _read_v2(theirs, registers)
    return Foreign(
        tensors=ours,
        resampling="offset_bicubic" if registers is None else "antialiased_bicubic",
        num_heads=24 if ours["encoder.norm.weight"].shape[0] == 1536 else None,
        view=IMAGENET | {"crop_ratio": 1.0, "interpolation": "bicubic"},
        left=tuple(left),
        assumed=("ImageNet mean and deviation", "bicubic resize"),
    )


def _read_v2(theirs: Tensors, registers: Tensor | None) -> Tensors:
    """DINO's or DINOv2's tensors; registers have no place, so they come in after the places are given out."""
    ours = from_timm(rename(theirs, inverse(V2_GATES)))
    if registers is not None:
        parts = {"the class token": ours["encoder.prefix"], "register_tokens": registers[0]}
        ours["encoder.prefix"] = joined(parts)
    return ours


def _read_v3(theirs: Tensors, left: list[str]) -> Foreign:
    periods = theirs.pop("rope_embed.periods", None)
    if periods is not None:
        expected = 100.0 ** (torch.arange(len(periods)) / len(periods))
        if not torch.allclose(periods.float(), expected, rtol=1e-2):  # the file has them in bfloat16
            raise InputError("rope_embed.periods are not those of base 100, which vitreous reads from DINOv3")
    if "storage_tokens" in theirs:
        theirs["reg_token"] = theirs.pop("storage_tokens")
    for name in [name for name in theirs if name.endswith("qkv.bias_mask")]:
        mask = theirs.pop(name)  # keys have no bias: one for queries and values, zero or nothing for keys
        bias = name.removesuffix("_mask")
        theirs[bias] = torch.where(mask.nan_to_num(0.0) != 0, theirs[bias], 0.0)
    for name in [name for name in theirs if name.startswith("local_cls_norm.")]:
        del theirs[name]
        left.append(name)
    ours = from_timm(rename(theirs, inverse(V3_GATES)))
    width = ours["encoder.prefix"].shape[1]
    return Foreign(
        tensors=ours,
        num_heads=None if periods is None else width // (4 * len(periods)),
        norm_eps=1e-5,
        position=RoPE2d(base=100.0),
        view=IMAGENET | {"crop_ratio": 1.0, "squash": True, "interpolation": "bicubic"},
        left=tuple(left),
        assumed=("ImageNet mean and deviation", "the image squeezed to a square"),
    )
