"""What the loader hands to an objective."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images that are ready for the model, and where they come from."""

    images: Float[Tensor, "view batch channel height width"]
    """Normalised pixels, on the device of the model."""
    labels: Int[Tensor, " batch"] | Float[Tensor, "batch cls"] | None
    """Positions in the source's `classes`, or 1 for each class that an image shows and 0 for the others; None where the
    source has no labels."""
    index: Int[Tensor, " batch"]
    """Position of each image in its source."""
