"""Which patches speak for a class: attention and its gradients, gathered through all layers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.inspection.attention import Weights, read_out, watch_gradients
from vitreous.inspection.blocks import Images


def relevance(
    classifier: Classifier, images: Images, *, classes: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, "batch row column"]:
    """Relevance of each patch to a class (Chefer et al., arXiv:2103.15679, Eq. 5 and 6), nowhere negative.

    From R = 1, each layer adds the mean over heads of max(gradient * attention, 0), times R. Of R, the rows of the
    tokens that are pooled are read out as they are, so that their sum differs from image to image. The class is the
    most probable one where none is given; the gradient is that of its score (logit).

    Raises:
        InputError: as `watch_gradients`.
    """
    gathered: dict[int, Float[Tensor, "image token token"]] = {}

    def see(layer: int, part: slice, weights: Weights, gradients: Weights) -> None:
        added = (gradients * weights).relu().mean(dim=1)
        below = gathered.get(part.start, torch.eye(added.shape[-1], device=added.device).expand_as(added))
        gathered[part.start] = below + added @ below

    grid = watch_gradients(classifier, images, see, classes=classes).grid
    return read_out(classifier, torch.cat([gathered[start] for start in sorted(gathered)])).unflatten(-1, grid)
