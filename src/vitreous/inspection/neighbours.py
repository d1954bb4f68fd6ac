"""Which images are most alike, by the angle between their features."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.errors import InputError

QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class Neighbours:
    """Of each query, best first."""

    index: Int[Tensor, "query k"]
    """Rows of the gallery."""
    similarity: Float[Tensor, "query k"]
    """Cosine, in [-1, 1]."""


def nearest(queries: Float[Tensor, "query width"], gallery: Float[Tensor, "image width"], *, k: int) -> Neighbours:
    """The `k` images of `gallery` nearest to each query; a query that is in the gallery finds itself.

    Raises:
        InputError: if the gallery has not so many images, or features of another width.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(
            f"queries have {queries.shape[1]} features and the gallery {gallery.shape[1]}; embed both with one model"
        )
    if not 1 <= k <= gallery.shape[0]:
        raise InputError(f"a gallery of {gallery.shape[0]:,} images has no {k:,} neighbours; ask for fewer, at least 1")
    asked, stored = (F.normalize(features.float(), dim=1) for features in (queries, gallery))
    best = [(part @ stored.T).topk(k, dim=1) for part in asked.split(QUERIES_AT_ONCE)]
    similarity = torch.cat([found.values for found in best]).clamp(-1, 1)
    return Neighbours(torch.cat([found.indices for found in best]), similarity)
