"""Mixing pairs of images of a batch and their labels, on the device where they are."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.config import Config, check_ranges


@dataclass(frozen=True, kw_only=True)
class Mixing(Config):
    """How images of a batch are mixed with one another; one way for the whole batch, drawn anew each time."""

    mixup: float = 0.0
    """Alpha of the Beta distribution of shares, for images blended pixel by pixel (arXiv:1710.09412); 0: never."""
    cutmix: float = 0.0
    """Alpha of the Beta distribution of areas, for a rectangle pasted from another (arXiv:1905.04899); 0: never."""
    cutmix_ratio: float = 0.5
    """Part of the mixed batches that are cut, where both ways are used."""
    ratio: float = 1.0
    """Part of all batches that are mixed."""

    def __post_init__(self) -> None:
        check_ranges(self, mixup=(0, 100), cutmix=(0, 100), cutmix_ratio=(0, 1), ratio=(0, 1))

    @property
    def used(self) -> bool:
        """Whether anything is mixed at all."""
        return bool(self.ratio and (self.mixup or self.cutmix))

    def __call__(
        self,
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"] | Float[Tensor, "batch num_classes"],
        *,
        num_classes: int,
    ) -> tuple[Float[Tensor, "batch channel height width"], Float[Tensor, "batch num_classes"]]:
        """Images, each mixed with its neighbour in the batch, and the share of each class in them.

        The choices come from torch's generator on the CPU, so that nothing waits for the device.
        """
        from torchvision.transforms.v2 import CutMix, MixUp  # doubles torch's start-up

        mixed, cut = torch.rand(2).tolist()
        if not self.used or mixed >= self.ratio:
            return images, (F.one_hot(labels, num_classes) if labels.ndim == 1 else labels).to(images.dtype)
        if self.cutmix and (not self.mixup or cut < self.cutmix_ratio):
            return CutMix(alpha=self.cutmix, num_classes=num_classes)(images, labels)
        return MixUp(alpha=self.mixup, num_classes=num_classes)(images, labels)
