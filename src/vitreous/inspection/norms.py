"""Patch tokens of far too high norm: the artefacts that registers take away (Darcet et al., arXiv:2309.16588)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.blocks import Images, vit_of, watch_blocks

HIGH = 3.0
"""How many times the median of its layer a high norm is.

Artefacts are about ten times as long as other tokens (Sec. 2); three is midway between one and ten, by ratios. The
paper cuts DINOv2-g at a norm of 150; a multiple of the median serves models of any width.
"""


@dataclass(frozen=True)
class TokenNorms:
    """Norms of patch tokens as each block gives them, before the final norm."""

    norms: Float[Tensor, "layer image row column"]
    median: Float[Tensor, " layer"]
    largest: Float[Tensor, " layer"]
    threshold: Float[Tensor, " layer"]
    """`HIGH` times the median."""
    share: Float[Tensor, " layer"]
    """Of patches whose norm is above the threshold, in [0, 1]."""


@torch.no_grad()
def token_norms(classifier: Classifier, batches: Iterable[Images]) -> TokenNorms:
    """The norms of all patches of all images, which are of one size, after every block; on the CPU.

    Raises:
        InputError: if the model is no ViT, there are no images, or they differ in size.
    """
    vit = vit_of(classifier)
    prefix, grids = vit.prefix.shape[0], set()
    parts: list[list[Tensor]] = [[] for _ in vit.blocks]
    for images in batches:

        def see(layer: int, tokens: Float[Tensor, "batch token width"]) -> None:
            parts[layer].append(tokens[:, prefix:].float().norm(dim=-1).cpu())

        grids.add(watch_blocks(classifier, images, see).grid)
        if len(grids) > 1:
            given = " and ".join(f"{rows} x {columns}" for rows, columns in sorted(grids))
            raise InputError(f"norms need images of one size, got grids of {given} patches; resize them alike")
    if not sum(part.shape[0] for part in parts[0]):
        raise InputError("token norms need at least one image, got none")
    norms = torch.stack([torch.cat(layer) for layer in parts])
    flat = norms.flatten(1)
    median = flat.median(dim=1).values
    share = (flat > HIGH * median[:, None]).float().mean(dim=1)
    return TokenNorms(norms.unflatten(-1, grids.pop()), median, flat.amax(dim=1), HIGH * median, share)
