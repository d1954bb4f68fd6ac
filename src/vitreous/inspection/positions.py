"""How alike the position embeddings of two patches are (the paper's Sec. 4.5 and D.4; Fig. 7, centre, and Fig. 10)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.blocks import vit_of
from vitreous.position import AbsoluteEmbedding, EveryLayerEmbedding
from vitreous.resampling import Grid


@torch.no_grad()
def position_similarity(
    classifier: Classifier, *, grid: Grid | None = None
) -> Float[Tensor, "row column other_row other_column"]:
    """Cosine in [-1, 1] between the vectors of each two places of `grid`, by default the one trained on.

    For another grid, vectors are resampled as the model does it. Where every layer has vectors of its own, they are
    those of the first.

    Raises:
        InputError: if the model adds no vectors: its positions are rotary, relative or none.
    """
    vit = vit_of(classifier)
    position = vit.position.tables[0] if isinstance(vit.position, EveryLayerEmbedding) else vit.position
    if not isinstance(position, AbsoluteEmbedding):
        kind = type(vit.config.position).__name__
        raise InputError(f"{kind} adds no vectors to patches, so there is nothing to compare; choose a model that does")
    grid = grid or vit.config.grid
    if min(grid) < 1:
        raise InputError(f"a grid has at least one row and one column, got {grid[0]} x {grid[1]}")
    vectors = F.normalize(position.vectors(grid, vit.prefix.device).flatten(0, 1).float(), dim=-1)
    return (vectors @ vectors.T).clamp(-1, 1).unflatten(1, grid).unflatten(0, grid)
