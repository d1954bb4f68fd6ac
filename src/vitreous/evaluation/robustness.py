"""What is left of the accuracy when images get another size, lose patches, or have them shuffled.

Dropping and shuffling patches: Naseer et al., arXiv:2105.10497, Sec. 3.1 and 3.3.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous import metrics
from vitreous.block import Axial
from vitreous.budget import cost
from vitreous.config import BELOW_ONE, check_ranges
from vitreous.console import Console
from vitreous.data.source import Source
from vitreous.errors import InputError
from vitreous.evaluation.base import Evaluation, Labelled, Outcome, interval
from vitreous.evaluation.features import Features, Frozen
from vitreous.evaluation.few_shot import design, ridge, signs
from vitreous.seeding import generator
from vitreous.vit import ViT, ViTConfig, divisible_size

Scores = Callable[[Float[np.ndarray, "image width"]], Float[np.ndarray, "image cls"]]
PENALTY = 2.0**10


def readout(model: Frozen, data: Labelled) -> tuple[str, Scores]:
    """From features to a score for each of the data's classes, and what that is in words.

    The model's own head where it knows all of the classes, choosing among these alone; else a linear readout in closed
    form, fitted to the features of the training images as they are (see `few_shot`).
    """
    if _knows(model, data.classes):
        assert model.classes is not None
        columns = [model.classes.index(name) for name in data.classes]

        def by_head(values: Float[np.ndarray, "image width"]) -> Float[np.ndarray, "image cls"]:
            features = torch.from_numpy(values).to(model.world.device)
            with torch.inference_mode():
                return model.answering.head(features).float().cpu().numpy()[:, columns]

        return "the model's head", by_head

    train = model.pooled(data.training)
    values = torch.from_numpy(train.values).double()
    targets = signs(torch.from_numpy(train.labels), num_classes=len(data.classes))
    (weights,) = ridge(design(values)[0], targets, penalties=[PENALTY])

    def by_ridge(others: Float[np.ndarray, "image width"]) -> Float[np.ndarray, "image cls"]:
        return (design(values, torch.from_numpy(others).double())[1] @ weights).numpy()

    return f"least squares on {len(train.labels):,} training images", by_ridge


@dataclass(frozen=True, kw_only=True)
class Robustness(Evaluation):
    """Accuracy over a curve of changes to the images that are measured; nothing is learned from changed images."""

    @abstractmethod
    def changes(self, model: Frozen) -> "list[Change]":
        """What is done to the images, least first."""

    def learns(self, model: Frozen, classes: Sequence[str]) -> bool:
        return not _knows(model, classes)

    def run(self, model: Frozen, data: Labelled, *, console: Console) -> Outcome:
        read_by, scores = readout(model, data)
        rows, figures = [], []
        for change in self.changes(model):
            console.say(f"{change.name}")
            features = change.features(data.test)
            top1 = metrics.share(metrics.hits_at(scores(features.values), features.labels, k=1), len(features.labels))
            rows.append((change.name, f"{top1.value:.2%}", "; ".join(filter(None, (interval(top1), change.more)))))
            figures.append({**change.figures, "top1": asdict(top1)})
        return Outcome(rows, {"readout": read_by, "curve": figures}, [f"read out by {read_by}"])


@dataclass(frozen=True)
class Change:
    """One point of a curve."""

    name: str
    """For people."""
    figures: dict[str, float]
    """Where on the curve it is, and what else is known of it."""
    features: Callable[[Source], Features]
    more: str = ""


@dataclass(frozen=True, kw_only=True)
class Resolution(Robustness):
    """Other image sizes: the same view of each photo, positions resampled, the weights as they are."""

    ratios: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
    """Sizes as parts of the one that the model takes, each moved to the nearest that divides into patches."""

    def __post_init__(self) -> None:
        check_ranges(self, ratios=(0.01, 16))

    def changes(self, model: Frozen) -> list[Change]:
        config, stride = model.classifier.config, model.classifier.config.encoder.stride
        shapes = [tuple(divisible_size(ratio * side, stride) for side in model.view.shape) for ratio in self.ratios]
        found = []
        for height, width in dict.fromkeys(shapes):
            view = replace(model.view, image_size=height if height == width else (height, width))
            work = cost(config, image_size=(height, width))
            figures = {"height": height, "width": width, "gmacs": work.gflops / 2, "tokens": work.tokens}
            more = f"{work.gflops / 2:.3g} GMACs, {work.tokens:,} tokens"
            name = f"{height} px" if height == width else f"{height} x {width} px"
            found.append(Change(name, figures, model.seen_by(view).pooled, more))
        return found


@dataclass(frozen=True, kw_only=True)
class PatchDrop(Robustness):
    """Patches left out at random: the encoder never sees them."""

    drop_ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9)
    """Parts of the patches that are left out."""
    seed: int = 0
    """Another seed leaves out others."""

    def __post_init__(self) -> None:
        check_ranges(self, drop_ratios=(0, BELOW_ONE), seed=(0, math.inf))

    def check(self, model: Frozen) -> None:
        _vit(model)

    def changes(self, model: Frozen) -> list[Change]:
        encoder = _vit(model)
        total = math.prod(-(-side // encoder.config.stride) for side in model.view.shape)
        found = []
        for ratio in self.drop_ratios:
            kept = max(round((1 - ratio) * total), 1)

            def dropped(images: Tensor, index: Int[np.ndarray, " batch"], kept: int = kept) -> Tensor:
                order = [generator(self.seed, "patch-drop", int(i)).permutation(total)[:kept] for i in index]
                tokens = encoder.embed(images).keep(torch.from_numpy(np.stack(order)).to(images.device))
                return model.answering.pooling(encoder.encode(tokens))

            found.append(
                Change(
                    f"{ratio:.0%} of patches dropped",
                    {"drop_ratio": ratio, "kept": kept},
                    lambda source, change=dropped, kept=kept: model.changed(source, f"drop {self.seed} {kept}", change),
                    f"{kept} of {total} patches",
                )
            )
        return found


@dataclass(frozen=True, kw_only=True)
class PatchShuffle(Robustness):
    """The image cut into a grid of cells, and these put together in another order."""

    grids: tuple[int, ...] = (1, 2, 4, 7, 14)
    """Rows and columns of cells; those that do not divide the image are left out."""
    seed: int = 0
    """Another seed shuffles otherwise."""

    def __post_init__(self) -> None:
        check_ranges(self, grids=(1, 1000), seed=(0, math.inf))

    def changes(self, model: Frozen) -> list[Change]:
        possible = [n for n in self.grids if all(side % n == 0 for side in model.view.shape)]
        if not possible:
            raise InputError(f"patch-shuffle: none of the grids {self.grids} divides {model.view.shape}; give others")
        found = []
        for cells in possible:

            def shuffled(images: Tensor, index: Int[np.ndarray, " batch"], cells: int = cells) -> Tensor:
                order = [generator(self.seed, "patch-shuffle", int(i)).permutation(cells**2) for i in index]
                moved = _shuffled(images, torch.from_numpy(np.stack(order)).to(images.device), cells=cells)
                return model.answering.features(moved)

            found.append(
                Change(
                    "not shuffled" if cells == 1 else f"{cells} x {cells} cells shuffled",
                    {"cells": cells},
                    lambda source, change=shuffled, n=cells: model.changed(source, f"shuffle {self.seed} {n}", change),
                )
            )
        return found


def _shuffled(
    images: Float[Tensor, "batch channel height width_px"], order: Int[Tensor, "batch cell"], *, cells: int
) -> Float[Tensor, "batch channel height width_px"]:
    """Cell i of the grid comes from place order[i]."""
    batch, channels, height, width = images.shape
    grid = images.unflatten(3, (cells, -1)).unflatten(2, (cells, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    moved = grid[torch.arange(batch, device=images.device)[:, None], order].unflatten(1, (cells, cells))
    return moved.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def _knows(model: Frozen, classes: Sequence[str]) -> bool:
    """Whether the model's head tells all of these classes apart."""
    return model.classes is not None and set(classes) <= set(model.classes)


def _vit(model: Frozen) -> ViT:
    encoder = model.answering.encoder
    if not isinstance(encoder, ViT) or not isinstance(encoder.config, ViTConfig):
        raise InputError(f"patch-drop needs a ViT, not {type(encoder).__name__}; leave it out of --with")
    if isinstance(encoder.config.block, Axial):
        raise InputError("patch-drop needs attention among any patches, axial blocks take the whole grid; leave it out")
    return encoder
