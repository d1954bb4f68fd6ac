"""Few-shot classification in closed form: the paper's fast measure of a representation (Sec. 4.1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitreous.config import check_ranges
from vitreous.console import Console
from vitreous.errors import InputError, some
from vitreous.evaluation.base import Evaluation, Labelled, Outcome, in_float64, standardised
from vitreous.evaluation.features import Features, Frozen
from vitreous.seeding import generator

CONSTANT = 100.0
"""The feature that every image has: large, so that its weight, the bias, is hardly held back."""


@dataclass(frozen=True, kw_only=True)
class FewShot(Evaluation):
    """Regularised least squares from frozen features to {-1, 1}, solved exactly, with a few images of each class.

    Standardisation by the images learned from, the constant feature of 100 and the penalty of 2^10 are those of the
    paper's code (big_vision). Beside it stands the score with the penalty that other training images choose.
    """

    shots: tuple[int, ...] = (1, 5, 10, 25)
    """Images of each class that are learned from."""
    num_seeds: int = 3
    """Choices of these images; the score is the mean over them."""
    exponent: int = 10
    """log2 of the penalty of squared weights."""
    exponents: tuple[int, ...] = tuple(range(-10, 21, 2))
    """log2 of the penalties to choose from."""
    num_dev: int = 25
    """Most images of each class that choose."""
    seed: int = 0
    """Another seed draws other images."""

    def __post_init__(self) -> None:
        check_ranges(self, shots=(1, math.inf), num_seeds=(1, math.inf), num_dev=(1, math.inf))
        check_ranges(self, exponent=(-40, 60), exponents=(-40, 60), seed=(0, math.inf))

    def run(self, model: Frozen, data: Labelled, *, console: Console) -> Outcome:
        train, test = model.pooled(data.training), model.pooled(data.test)
        dev = None if data.dev is None else model.pooled(data.dev)
        counts = np.bincount(train.labels, minlength=len(data.classes))
        possible = [shots for shots in self.shots if shots <= counts.min()]
        notes = []
        if left := [shots for shots in self.shots if shots not in possible]:
            short = [f"{data.classes[c]} has {counts[c]}" for c in np.flatnonzero(counts < max(left))]
            notes.append(f"no {' and '.join(map(str, left))} shots: {some(short, most=3)} training images")
        if not possible:
            raise InputError(f"few-shot: {notes[0]}; give more images of it")
        found: dict[int, list[dict[str, Any]]] = {}
        with console.task("solution", len(possible) * self.num_seeds) as task:
            for done, (shots, draw) in enumerate((s, d) for s in possible for d in range(self.num_seeds)):
                chosen, others = self.draw(train.labels, shots=shots, draw=draw)
                judge = dev or train.select(others)
                one = self._solve(train.select(chosen), judge, test, classes=data.classes, device=model.world.device)
                found.setdefault(shots, []).append(one)
                task.update(done + 1)
        rows = [(f"{shots}-shot", *_shown(runs)) for shots, runs in found.items()]
        figures = {str(shots): _summary(runs) for shots, runs in found.items()}
        return Outcome(rows, {"penalty": 2.0**self.exponent, "shots": figures}, notes)

    def draw(
        self, labels: Int[np.ndarray, " image"], *, shots: int, draw: int
    ) -> tuple[Int[np.ndarray, " chosen"], Int[np.ndarray, " other"]]:
        """Rows of `shots` images of each class, and of at most `num_dev` others; fewer shots are a part of more."""
        chosen, others = [], []
        for label in np.unique(labels):
            shuffled = generator(self.seed, "few-shot", draw, int(label)).permutation(np.flatnonzero(labels == label))
            chosen.append(shuffled[:shots])
            others.append(shuffled[::-1][: min(self.num_dev, len(shuffled) - shots)])
        return np.concatenate(chosen), np.concatenate(others)

    def _solve(
        self, train: Features, judge: Features, test: Features, *, classes: Sequence[str], device: torch.device
    ) -> dict[str, Any]:
        x, judged, measured = design(*(in_float64(part, device) for part in (train, judge, test)))
        targets = signs(torch.from_numpy(train.labels).to(x.device), num_classes=len(classes))
        fixed, *grid = ridge(x, targets, penalties=[2.0**exponent for exponent in (self.exponent, *self.exponents)])
        one = {"top1": _accuracy(measured, fixed, test.labels)}
        if len(judge.labels):
            by_dev = [_accuracy(judged, weights, judge.labels) for weights in grid]
            best = int(np.argmax(by_dev))
            one |= {"exponent": self.exponents[best], "chosen_top1": _accuracy(measured, grid[best], test.labels)}
        return one


def design(train: Float[Tensor, "image width"], *others: Float[Tensor, "other width"]) -> list[Tensor]:
    """All of them standardised by `train`, and beside them the constant feature: (any, width + 1)."""
    parts = standardised(train, *others)
    return [torch.cat([part, part.new_full((len(part), 1), CONSTANT)], dim=1) for part in parts]


def signs(labels: Int[Tensor, " image"], *, num_classes: int) -> Float[Tensor, "image cls"]:
    """1 for the class of an image and -1 for the others, in float64."""
    return 2.0 * torch.nn.functional.one_hot(labels, num_classes).double() - 1.0


def ridge(
    x: Float[Tensor, "image features"], y: Float[Tensor, "image cls"], *, penalties: Sequence[float]
) -> list[Float[Tensor, "features cls"]]:
    """The weights w that make |x w - y|^2 + penalty |w|^2 least, for each penalty, from one decomposition.

    (X'X + pI)^-1 X'y or, with fewer images than features, its dual form X'(XX' + pI)^-1 y, which is equal.
    """
    primal = x.shape[0] >= x.shape[1]
    values, vectors = torch.linalg.eigh(x.T @ x if primal else x @ x.T)
    values = values.clamp(min=0)[:, None]
    right = vectors.T @ (x.T @ y if primal else y)
    left = vectors if primal else x.T @ vectors
    return [left @ (right / (values + penalty)) for penalty in penalties]


def _accuracy(x: Tensor, weights: Tensor, labels: Int[np.ndarray, " image"]) -> float:
    predicted = (x @ weights).argmax(dim=1).cpu().numpy()
    return float((predicted == labels).mean())


def _summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    scores = [run["top1"] for run in runs]
    chosen = [run["chosen_top1"] for run in runs if "chosen_top1" in run]
    return {
        "top1": float(np.mean(scores)),
        "deviation": float(np.std(scores)),
        "chosen_top1": float(np.mean(chosen)) if chosen else None,
        "draws": runs,
    }


def _shown(runs: list[dict[str, Any]]) -> tuple[str, str]:
    summary = _summary(runs)
    more = f"± {summary['deviation']:.2%} over {len(runs)} draws"
    if summary["chosen_top1"] is not None:
        exponents = ", ".join(f"2^{run['exponent']}" for run in runs)
        more += f"; {summary['chosen_top1']:.2%} with penalties chosen ({exponents})"
    return f"{summary['top1']:.2%}", more
