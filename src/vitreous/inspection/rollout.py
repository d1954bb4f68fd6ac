"""Attention followed through all layers, from the tokens that are pooled down to the patches."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.inspection.attention import Weights, read_out, shares, watch, watch_gradients
from vitreous.inspection.blocks import Images

Form = Literal["authors", "paper"]


class Flow:
    """The product of all layers' attention, from the first to those shown so far."""

    def __init__(self) -> None:
        self._products: dict[int, Float[Tensor, "image token token"]] = {}
        """By the first image they are of."""

    def follow(self, images: slice, mixed: Float[Tensor, "image token token"]) -> None:
        """One layer more, for some images of the batch."""
        below = self._products.get(images.start)
        self._products[images.start] = mixed if below is None else mixed @ below

    def product(self) -> Float[Tensor, "batch token token"]:
        """Of every image: row = a token of the last layer, column = a token of the first."""
        return torch.cat([self._products[start] for start in sorted(self._products)])


def with_residual(attention: Float[Tensor, "image token token"]) -> Float[Tensor, "image token token"]:
    """Attention plus identity, rows scaled to 1."""
    mixed = attention + torch.eye(attention.shape[-1], device=attention.device)
    return mixed / mixed.sum(dim=-1, keepdim=True)


class Rollout:
    """Rollout of one batch, from what `watch` shows."""

    def __init__(self, form: Form = "authors") -> None:
        self.form, self.flow = form, Flow()

    def see(self, layer: int, images: slice, weights: Weights) -> None:
        """The next layer of some images."""
        mean = weights.mean(dim=1)
        self.flow.follow(images, with_residual(mean) if self.form == "authors" else mean)


@torch.no_grad()
def rollout(classifier: Classifier, images: Images, *, form: Form = "authors") -> Float[Tensor, "batch row column"]:
    """Attention rollout (Abnar & Zuidema, arXiv:2005.00928; the ViT paper's App. D.8); a map sums to 1.

    "authors" is what the paper's authors ran: each layer's mean over heads plus the identity, rows scaled to 1, is
    multiplied onto those below it. "paper" is what the text says: the same without the identity. Read out as
    `attention_maps` are.

    Raises:
        InputError: as `watch`.
    """
    seen = Rollout(form)
    grid = watch(classifier, images, seen.see).grid
    return shares(read_out(classifier, seen.flow.product())).unflatten(-1, grid)


def gradient_rollout(
    classifier: Classifier, images: Images, *, classes: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, "batch row column"]:
    """Rollout of what speaks for a class, for the most probable one where none is given; a map sums to 1.

    Heads are weighted by the gradient of the class's score with respect to their attention: the mean over heads of
    max(gradient * attention, 0) stands where rollout has the mean of attention.

    Raises:
        InputError: as `watch_gradients`.
    """
    flow = Flow()

    def see(layer: int, part: slice, weights: Weights, gradients: Weights) -> None:
        flow.follow(part, with_residual((gradients * weights).relu().mean(dim=1)))

    grid = watch_gradients(classifier, images, see, classes=classes).grid
    return shares(read_out(classifier, flow.product())).unflatten(-1, grid)
