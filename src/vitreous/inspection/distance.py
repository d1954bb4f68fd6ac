"""How far heads look: the paper's mean attention distance (App. D.7, Fig. 7 and 11), and how sharply."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vitreous.classifier import Classifier
from vitreous.errors import InputError
from vitreous.inspection.attention import Weights, attending, watch
from vitreous.inspection.blocks import Images
from vitreous.resampling import Grid


@dataclass(frozen=True)
class AttentionStatistics:
    """Of each head of each layer, what its patches do with their attention: means over patches and images."""

    distance: Float[Tensor, "layer head"]
    """From a patch to those it attends to, in pixels of the model's input, by the attention that patches get alone."""
    entropy: Float[Tensor, "layer head"]
    """Of a patch's attention over all tokens, in nats: from 0 (one token) to log(tokens) (all alike)."""
    prefix_share: Float[Tensor, "layer head"]
    """Of a patch's attention, what goes to class token and registers, in [0, 1]."""
    num_images: int


def grid_distances(grid: Grid, *, patch_size: int) -> Float[Tensor, "patch patch"]:
    """Pixels between the centres of each two patches, in raster order."""
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in grid)
    centres = torch.cartesian_prod(rows, columns) * patch_size
    return (centres[:, None] - centres).square().sum(dim=-1).sqrt()


class AttentionTotals:
    """Sums over the images of one or several batches of one size, from what `watch` shows."""

    def __init__(self, classifier: Classifier, images: Images) -> None:
        vit = attending(classifier)
        self.prefix, stride = vit.prefix.shape[0], vit.config.stride
        height, width = images.shape[-2:]
        self.grid = -(-height // stride), -(-width // stride)
        self.distances = grid_distances(self.grid, patch_size=stride).to(images.device)
        self.sums = torch.zeros(3, len(vit.blocks), vit.config.num_heads, device=images.device)

    def see(self, layer: int, images: slice, weights: Weights) -> None:
        """A layer of some images more."""
        from_patches = weights[:, :, self.prefix :]
        to_patches = from_patches[..., self.prefix :]
        total = to_patches.sum(dim=-1)
        distance = (to_patches * self.distances).sum(dim=-1) / total.clamp_min(torch.finfo(total.dtype).tiny)
        entropy = -torch.xlogy(from_patches, from_patches).sum(dim=-1)
        prefix_share = from_patches[..., : self.prefix].sum(dim=-1)
        self.sums[:, layer] += torch.stack([distance, entropy, prefix_share]).mean(dim=-1).sum(dim=1)

    def statistics(self, num_images: int) -> AttentionStatistics:
        """Means over so many images."""
        distance, entropy, prefix_share = self.sums / num_images
        return AttentionStatistics(distance, entropy, prefix_share, num_images)


@torch.no_grad()
def attention_statistics(classifier: Classifier, batches: Iterable[Images]) -> AttentionStatistics:
    """Statistics over all images of `batches`, which are of one size; the paper takes 128 images.

    A patch's distance is the mean over patches of attention times distance, prefix tokens left out and the rest of its
    attention scaled to sum to 1 (App. D.7).

    Raises:
        InputError: as `watch`, or if there are no images, or they differ in size.
    """
    totals, size, num_images = None, torch.Size(), 0
    for images in batches:
        if totals is None:
            totals, size = AttentionTotals(classifier, images), images.shape[-2:]
        if images.shape[-2:] != size:
            given = " and ".join(f"{height} x {width}" for height, width in (size, images.shape[-2:]))
            raise InputError(f"distances need images of one size, got {given} pixels; resize them alike")
        watch(classifier, images, totals.see)
        num_images += images.shape[0]
    if totals is None or not num_images:
        raise InputError("attention statistics need at least one image, got none")
    return totals.statistics(num_images)
