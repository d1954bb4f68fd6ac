"""What the loader hands to an objective."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images that are ready for the model, and where they come from."""

    images: Float[Tensor, "view batch channel height width"]
    """Normalised pixels, on the device of the model."""
    labels: Int[Tensor, " batch"] | None
    """Positions in the source's `classes`; None where the source has no labels."""
    index: Int[Tensor, " batch"]
    """Position of each image in its source."""
