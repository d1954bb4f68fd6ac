"""What the layer that sees pixels looks for: principal components of its filters (the paper's Fig. 7, left)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.blocks import vit_of
from vitreous.inspection.components import principal_components
from vitreous.stem import PatchConvolution


@dataclass(frozen=True)
class FilterComponents:
    """Components in the order of the variance they explain."""

    images: Float[Tensor, "component row column channel"]
    """Each in [0, 1]: 0.5 is zero, and a component's largest weight is at 0 or 1."""
    explained: Float[Tensor, " component"]
    """Shares of the variance of all filters, in [0, 1]."""


def filter_components(classifier: Classifier, *, number: int = 28) -> FilterComponents:
    """The first principal components of the patch projection's filters, each of patch x patch x channels.

    A filter is what one channel of the tokens takes from a patch; the mean filter is subtracted from all, as PCA does,
    and they are not scaled. The paper shows 28 of L/32.

    Raises:
        InputError: if there are not so many components, or a ResNet stands before the patches: no single layer's
            filters then show what a token sees.
    """
    stem = vit_of(classifier).stem
    if not isinstance(stem, PatchConvolution):
        kind = type(stem).__name__
        raise InputError(
            f"filters of patches need a linear patch projection, not {kind}; choose a ViT that is no hybrid"
        )
    directions, explained = principal_components(stem.weight.flatten(1), number)
    largest = directions.abs().amax(dim=1, keepdim=True)
    images = (0.5 + 0.5 * directions / largest).float().unflatten(1, stem.weight.shape[1:])
    return FilterComponents(images.permute(0, 2, 3, 1), explained.float())
