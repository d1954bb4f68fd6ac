"""Measures of a classifier, from class probabilities and true labels. Everything is a count or a mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitreous.student import t_interval

Probabilities = Float[np.ndarray, "image cls"]
Labels = Int[np.ndarray, " image"]


@dataclass(frozen=True)
class Share:
    """A measured share with its 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


def share(hits: int, total: int) -> Share:
    """`hits` of `total`, with Wilson's 95 % score interval (Wilson 1927), honest also near 0 and 1."""
    if total == 0:
        return Share(0.0, 0.0, 1.0)
    z = 1.959963984540054
    rate, shrink = hits / total, 1 + z**2 / total
    middle = (rate + z**2 / (2 * total)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / total + z**2 / (4 * total**2)) / shrink
    return Share(rate, max(middle - half, 0.0), min(middle + half, 1.0))


HEADLINES = {"top1": "top-1", "map": "mAP"}
"""The figure that models are compared by, as JSON calls it and as people do: of one class an image, or of several."""


def headline(figures: Mapping[str, Any]) -> tuple[str, Any]:
    """The name, for people, of the figure that models are compared by, and what `figures` has under it."""
    key = next(key for key in HEADLINES if key in figures)
    return HEADLINES[key], figures[key]


def mean_share(values: Sequence[float]) -> Share:
    """The mean of two or more shares, such as those of several seeds, with Student's 95 % interval within [0, 1]."""
    mean, low, high = t_interval(values)
    return Share(mean, max(low, 0.0), min(high, 1.0))


def hits_at(probabilities: Probabilities, labels: Labels, *, k: int) -> int:
    """Images whose label is among the `k` most probable classes; ties count for the lower class index."""
    own = probabilities[np.arange(len(labels)), labels][:, None]
    index = np.arange(probabilities.shape[1])
    not_ahead = (probabilities < own) | ((probabilities == own) & (index >= labels[:, None]))  # both false for NaN
    return int(((~not_ahead).sum(axis=1) < k).sum())


def confusion_matrix(predicted: Labels, labels: Labels, *, num_classes: int) -> Int[np.ndarray, "cls cls"]:
    """Counts with true classes as rows and predicted ones as columns."""
    pairs = np.bincount(labels * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ClassScores:
    """One number a class, each (cls,); a quotient without a denominator is 0."""

    count: Int[np.ndarray, " cls"]
    precision: Float[np.ndarray, " cls"]
    recall: Float[np.ndarray, " cls"]
    f1: Float[np.ndarray, " cls"]


def class_scores(confusion: Int[np.ndarray, "cls cls"]) -> ClassScores:
    """Precision, recall and their harmonic mean for every class."""
    return scores_of_counts(np.diag(confusion), confusion.sum(axis=1), claimed=confusion.sum(axis=0))


def scores_of_counts(
    hit: Int[np.ndarray, " cls"], count: Int[np.ndarray, " cls"], *, claimed: Int[np.ndarray, " cls"]
) -> ClassScores:
    """`class_scores` from how many images of each class are recognised, are there, and are predicted to be of it."""

    def over(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.divide(top, bottom, out=np.zeros(len(top)), where=bottom > 0)

    return ClassScores(count, over(hit, claimed), over(hit, count), over(2 * hit, count + claimed))


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies in (low, high]."""

    low: float
    high: float
    count: int
    confidence: float
    """Mean confidence of these images."""
    accuracy: float
    """Share of them that are right."""


def reliability(probabilities: Probabilities, labels: Labels, *, num_bins: int = 15) -> list[Bin]:
    """Confidence against accuracy in equal bins (Guo et al., arXiv:1706.04599, Sec. 2)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    which = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    bins = []
    for i in range(num_bins):
        chosen = which == i
        mean = (float(confidence[chosen].mean()), float(right[chosen].mean())) if chosen.any() else (0.0, 0.0)
        bins.append(Bin(i / num_bins, (i + 1) / num_bins, int(chosen.sum()), *mean))
    return bins


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error in [0, 1]: the mean gap between confidence and accuracy (Guo et al., Eq. 3)."""
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / total if total else 0.0


def cross_entropy(probabilities: Probabilities, labels: Labels) -> float:
    """Mean negative log-likelihood of the labels, in nats."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean()) if len(labels) else 0.0
