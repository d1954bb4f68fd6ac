"""Whether a map shows what the model relies on: deletion and insertion (RISE, arXiv:1806.07421, Sec. 4.1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.blocks import Images
from vitreous.inspection.targets import targets

BLUR_PX, BLUR_SIGMA = 11, 5.0
"""Width and deviation in pixels of the Gaussian from which insertion starts; RISE's is as wide, and flatter."""


@dataclass(frozen=True)
class Faithfulness:
    """Probabilities of a class while patches go and come, the most important of a map first."""

    steps: Float[Tensor, " step"]
    """Shares of the patches that are gone, or there: from 0 to 1."""
    deletion: Float[Tensor, "batch step"]
    """While patches are replaced by zeros, the mean colour of the normalisation."""
    insertion: Float[Tensor, "batch step"]
    """While patches of a blurred image become sharp. RISE starts from a blur: sharp edges on grey are shapes, too."""
    deletion_area: Float[Tensor, " batch"]
    """Under the curve, in [0, 1]: the lower, the better the map."""
    insertion_area: Float[Tensor, " batch"]
    """Under the curve, in [0, 1]: the higher, the better the map."""


@torch.inference_mode()
def faithfulness(
    classifier: Classifier,
    images: Images,
    maps: Float[Tensor, "batch row column"],
    *,
    classes: Int[Tensor, " batch"] | None = None,
    num_steps: int = 28,
) -> Faithfulness:
    """Deletion and insertion curves of one map an image, in `num_steps` steps of about as many patches each.

    The class is the most probable one where none is given; patches of equal importance go in raster order. Any encoder
    will do; the batch runs twice for each step.

    Raises:
        InputError: if the maps are not of the images' patches, or have no such steps; or as `targets`.
    """
    side = classifier.config.encoder.stride
    grid = [-(-pixels // side) for pixels in images.shape[-2:]]
    if list(maps.shape) != [images.shape[0], *grid]:
        expected = f"{images.shape[0]} x {grid[0]} x {grid[1]}"
        raise InputError(f"these images need maps of {expected} patches, got {' x '.join(map(str, maps.shape))}")
    number = maps[0].numel()
    if not 1 <= num_steps <= number:
        raise InputError(f"{number} patches go in 1 to {number} steps, not {num_steps}")
    rank = maps.flatten(1).argsort(dim=1, descending=True, stable=True).argsort(dim=1).view_as(maps)
    counts = torch.linspace(0, number, num_steps + 1, device=images.device).round()
    chosen = targets(classifier(images).float(), classes)[:, None]
    blurred, grey = blur(images), torch.zeros_like(images)

    def probability(gone: Bool[Tensor, "batch row column"], without: Images, with_: Images) -> Float[Tensor, " batch"]:
        wide = gone.repeat_interleave(side, 1).repeat_interleave(side, 2)
        covered = wide[:, None, : images.shape[-2], : images.shape[-1]]
        logits = classifier(torch.where(covered, without, with_)).float()
        return logits.softmax(dim=-1).gather(1, chosen)[:, 0]

    deletion = torch.stack([probability(rank < count, grey, images) for count in counts], dim=1)
    insertion = torch.stack([probability(rank < count, images, blurred) for count in counts], dim=1)
    steps = counts / number
    areas = (torch.trapezoid(curve, steps, dim=1) for curve in (deletion, insertion))
    return Faithfulness(steps, deletion, insertion, *areas)


def blur(images: Images) -> Images:
    """Images through a Gaussian of 11 pixels; beyond their edges lie zeros."""
    at = torch.arange(BLUR_PX, device=images.device) - BLUR_PX // 2
    bell = torch.exp(-0.5 * (at / BLUR_SIGMA).square())
    channels = images.shape[1]
    across = (bell / bell.sum()).to(images.dtype).expand(channels, 1, 1, -1)
    along = F.conv2d(images, across, padding=(0, BLUR_PX // 2), groups=channels)
    return F.conv2d(along, across.transpose(2, 3), padding=(BLUR_PX // 2, 0), groups=channels)
