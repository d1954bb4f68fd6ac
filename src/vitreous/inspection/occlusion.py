"""What a class loses when a part of the image is covered (Zeiler & Fergus, arXiv:1311.2901, Sec. 4.2)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.blocks import Images
from vitreous.inspection.targets import targets


@torch.inference_mode()
def occlusion(
    classifier: Classifier,
    images: Images,
    *,
    classes: Int[Tensor, " batch"] | None = None,
    window: int = 2,
    stride: int = 2,
) -> Float[Tensor, "batch row column"]:
    """How far the log-probability of a class falls, in nats, when a patch is covered; negative where it rises.

    A square of `window` x `window` patches moves over the image by `stride` patches, and once more to the far edge;
    it is filled with zeros: the mean colour of the normalisation. A patch has the mean over the windows that cover it.
    The class is the most probable one where none is given. Any encoder will do; the batch runs once for each window.

    Raises:
        InputError: if the window does not fit the image, or leaves patches between its places; or as `targets`.
    """
    side = classifier.config.encoder.stride
    rows, columns = (-(-pixels // side) for pixels in images.shape[-2:])
    if not 1 <= window <= min(rows, columns):
        raise InputError(f"a window of {window} patches does not fit an image of {rows} x {columns}; make it smaller")
    if not 1 <= stride <= window:
        raise InputError(f"a stride of {stride} patches leaves gaps between windows of {window}; give 1 to {window}")
    logits = classifier(images).float()
    chosen = targets(logits, classes)[:, None]
    before = logits.log_softmax(dim=-1).gather(1, chosen)
    fallen = torch.zeros(images.shape[0], rows, columns, device=images.device)
    times = torch.zeros(rows, columns, device=images.device)
    for row in _places(rows, window, stride):
        for column in _places(columns, window, stride):
            covered = images.clone()
            covered[..., row * side : (row + window) * side, column * side : (column + window) * side] = 0
            after = classifier(covered).float().log_softmax(dim=-1).gather(1, chosen)
            here = slice(row, row + window), slice(column, column + window)
            fallen[:, *here] += (before - after)[..., None]
            times[here] += 1
    return fallen / times


def _places(total: int, window: int, stride: int) -> list[int]:
    """Where windows begin, so that every patch is covered."""
    last = total - window
    return sorted({*range(0, last, stride), last})
