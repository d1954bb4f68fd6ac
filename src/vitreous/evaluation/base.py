"""What every evaluation on frozen features shares."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitreous.config import Config
from vitreous.console import Console
from vitreous.data.source import Source
from vitreous.errors import InputError
from vitreous.evaluation.features import Features, Frozen
from vitreous.metrics import Share
from vitreous.seeding import generator


@dataclass(frozen=True)
class Labelled:
    """Images to learn from and images to measure on, labelled by the same classes."""

    train: Source | None
    """None where nothing is to be learned."""
    test: Source
    split: str = "test"
    """What the measured split is called: test, val or all."""
    dev: Source | None = None
    """Images to choose settings by; where there are none, an evaluation holds back a part of `train`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the labels, the same for all images."""
        return self.test.classes

    @property
    def training(self) -> Source:
        """`train`, which is there for every evaluation that learns."""
        assert self.train is not None
        return self.train


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found."""

    rows: list[tuple[str, ...]]
    """For people: the setting, its score, and more about it."""
    figures: dict[str, Any]
    """The same and more, as JSON types."""
    notes: Sequence[str] = field(default_factory=list)
    """What was left out or assumed, a sentence each."""
    score: float | None = None
    """Top-1 in [0, 1], where one figure says it."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Config):
    """One way of measuring a model on labelled images."""

    scored: ClassVar[bool] = False
    """Whether its outcome has a `score`: top-1 after learning from all images that are not measured."""
    one_class: ClassVar[bool] = True
    """Whether images must show one class each."""

    def check(self, model: Frozen) -> None:
        """Nothing, if `model` can be measured so; asked before any image is looked at.

        Raises:
            InputError: if not; says why.
        """

    def learns(self, model: Frozen, classes: Sequence[str]) -> bool:
        """Whether images of these classes are needed to learn from."""
        return True

    @abstractmethod
    def run(self, model: Frozen, data: Labelled, *, console: Console) -> Outcome:
        """Measure `model` on `data.test`, after learning from `data.train` where the evaluation learns.

        Raises:
            InputError: if the data do not suffice; says what is missing.
        """


def learning_parts(train: Features, dev: Features | None, *, seed: int) -> tuple[Features, Features]:
    """Features to learn from, and features to choose settings by: `dev`, or else those that are held back."""
    if dev is not None:
        return train, dev
    back = chosen_to_judge(train.labels, seed=seed)
    return train.select(np.flatnonzero(~back)), train.select(np.flatnonzero(back))


def held_back(train: Source, *, seed: int) -> tuple[Source, Source]:
    """`learning_parts` of images where there is no split to choose by."""
    back = chosen_to_judge(train.labels, seed=seed)
    return train.select(np.flatnonzero(~back)), train.select(np.flatnonzero(back))


def chosen_to_judge(labels: Int[np.ndarray, " image"], *, seed: int) -> Bool[np.ndarray, " image"]:
    """Whether each image is held back from learning to choose settings by: a tenth of each class, at least one.

    Every class keeps an image to learn from; a class of one image has none to choose by.

    Raises:
        InputError: if no class has two images.
    """
    back = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator(seed, "dev", int(label)).permutation(np.flatnonzero(labels == label))
        back[members[: min(max(round(len(members) / 10), 1), len(members) - 1)]] = True
    if not back.any():
        raise InputError("settings are chosen on held-back training images, but no class has two; give more images")
    return back


def standardised(train: Float[Tensor, "image width"], *others: Float[Tensor, "other width"]) -> list[Tensor]:
    """All of them less the mean of `train` and over its standard deviation, to which 1e-5 is added."""
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0) + 1e-5
    return [(part - mean) / deviation for part in (train, *others)]


def in_float64(features: Features, device: torch.device) -> Float[Tensor, "image width"]:
    """The values of `features` on `device`, or on the CPU where that has no float64, as Apple's GPUs."""
    return torch.from_numpy(features.values).to("cpu" if device.type == "mps" else device).double()


def interval(share: Share) -> str:
    """The 95 % interval of a share, for a table."""
    return f"{share.low:.2%} to {share.high:.2%}"


def at_the_edge(setting: str, grid: Sequence[float], curve: Sequence[float]) -> list[str]:
    """A note where the best of a grid is its first or last, and better than the one beside it."""
    best = int(np.argmax(curve))
    beside = {0: 1, len(grid) - 1: len(grid) - 2}.get(best, best)
    if len(grid) > 1 and curve[best] > curve[beside]:
        return [f"the best {setting}, {grid[best]:g}, is at the end of the grid: a better one may lie beyond it"]
    return []
