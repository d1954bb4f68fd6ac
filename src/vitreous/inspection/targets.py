"""Which class of an image is explained."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.errors import InputError


def targets(logits: Float[Tensor, "batch num_classes"], classes: Int[Tensor, " batch"] | None) -> Int[Tensor, " batch"]:
    """`classes`, or the most probable ones where none are given.

    Raises:
        InputError: if there is not one for each image, or it is none that the model knows.
    """
    if classes is None:
        return logits.argmax(dim=-1)
    batch, number = logits.shape
    if classes.shape != (batch,):
        raise InputError(f"{batch} images need {batch} classes, got a tensor of {tuple(classes.shape)}")
    if classes.is_floating_point() or bool(((classes < 0) | (classes >= number)).any()):
        raise InputError(f"classes are whole numbers from 0 to {number - 1}, got {classes.tolist()}")
    return classes.to(logits.device, torch.long)
