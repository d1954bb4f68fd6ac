"""How well a model tells which classes an image shows, where it may show several or none."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from vitreous import metrics
from vitreous.data.source import Source
from vitreous.files import csv_text
from vitreous.metrics import Share
from vitreous.seeding import generator

THRESHOLD = 0.5
"""Probability above which a class is said to be shown."""
WORK = 100_000_000
"""Numbers looked at for the interval of the mean average precision, which decides how many draws there are."""
LEAST_DRAWS, MOST_DRAWS = 50, 1000
BLOCK = 2_000_000

Chances = Float[np.ndarray, "image cls"]
"""Of each class by itself, in [0, 1]; rows do not sum to 1."""
Shown = Bool[np.ndarray, "image cls"]


def shown_classes(source: Source, positions: Int[np.ndarray, " cls"], *, num_classes: int) -> Shown:
    """Which classes of a model each image of `source` shows; class i of the source is the model's `positions`[i]."""
    sets = source.as_multi_label()
    assert sets.sets is not None
    found = np.zeros((len(source), num_classes), dtype=bool)
    found[:, positions] = sets.sets.multi_hot(sets.labels, num_classes=len(source.classes)) > 0
    return found


def average_precisions(predicted: Chances, shown: Shown) -> Float[np.ndarray, " cls"]:
    """Average precision of each class, as scikit-learn defines it; NaN for a class that no image shows.

    It is the mean, over the images that show the class, of the precision among all that are as probable as it or more.
    """
    ones = np.ones((1, len(shown)), dtype=np.int64)
    return np.array([_precisions(p, s, ones)[0] if s.any() else np.nan for p, s in zip(predicted.T, shown.T)])


def _precisions(
    predicted: Float[np.ndarray, " image"], shown: Bool[np.ndarray, " image"], times: Int[np.ndarray, "draw image"]
) -> Float[np.ndarray, " draw"]:
    """Average precision of one class in each draw, in which an image counts so many times; NaN where none shows it."""
    order = np.argsort(-predicted, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(predicted[order])), len(order) - 1)  # equal ones come in together
    ordered = times[:, order]
    claimed = np.cumsum(ordered, axis=1)[:, ends]
    hits = np.cumsum(ordered * shown[order], axis=1)[:, ends]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):  # nothing is claimed yet, or nothing is there to be found
        return np.nansum(gained * (hits / claimed), axis=1) / hits[:, -1]


def mean_precision(predicted: Chances, shown: Shown) -> Share:
    """Mean of the average precisions of the classes that occur, with a 95 % interval bootstrapped over images."""
    kept = shown.any(axis=0)
    if not kept.any():
        return Share(0.0, 0.0, 1.0)
    predicted, shown = predicted[:, kept], shown[:, kept]
    number = int(min(max(WORK // shown.size, LEAST_DRAWS), MOST_DRAWS))
    random, images = generator(0, "bootstrap"), len(shown)
    drawn = []
    for block in np.array_split(np.arange(number), -(-number * images // BLOCK)):
        times = np.stack([np.bincount(random.integers(0, images, images), minlength=images) for _ in block])
        of_classes = np.stack([_precisions(p, s, times) for p, s in zip(predicted.T, shown.T)])
        absent = np.isnan(of_classes)
        drawn.append(np.where(absent, 0, of_classes).sum(axis=0) / np.maximum((~absent).sum(axis=0), 1))
    low, high = np.percentile(np.concatenate(drawn), [2.5, 97.5])
    return Share(float(np.mean(average_precisions(predicted, shown))), float(low), float(high))


def cross_entropy(predicted: Chances, shown: Shown) -> float:
    """Mean over images of the negative log-likelihood of a yes or no for each class, summed over classes; in nats."""
    right = np.where(shown, predicted, 1 - predicted)
    return float(-np.log(np.maximum(right, np.finfo(np.float64).tiny)).sum(axis=1).mean()) if len(shown) else 0.0


def measure(predicted: Chances, source: Source) -> dict[str, float]:
    """Loss in nats and mean average precision in [0, 1]: the two figures training watches."""
    number = len(source.classes)
    shown = shown_classes(source, np.arange(number), num_classes=number)
    precisions = average_precisions(predicted, shown)[shown.any(axis=0)]
    return {"loss": cross_entropy(predicted, shown), "map": float(precisions.mean()) if len(precisions) else 0.0}


def scores(predicted: Chances, shown: Shown, *, classes: Sequence[str], split: str) -> dict[str, Any]:
    """Every figure, as plain JSON types.

    Keys: multi_label, split, num_images, loss, map ({value, low, high}: mean average precision over the classes that
    occur), micro_ap (of all pairs of image and class together), macro_f1 (over the classes that occur), micro_f1,
    micro_precision, micro_recall, exact_match ({value, low, high}: images all of whose classes are right), threshold,
    per_class. All but map, micro_ap and ap take a class as claimed above `threshold`. Classes that neither occur nor
    are claimed are left out of `per_class`; `ap` is None for one that does not occur.
    """
    claimed, count = predicted > THRESHOLD, shown.sum(axis=0)
    hits = (claimed & shown).sum(axis=0)
    rows = metrics.scores_of_counts(hits, count, claimed=claimed.sum(axis=0))
    sums = (np.array([of.sum()]) for of in (hits, count, claimed))
    whole = metrics.scores_of_counts(next(sums), next(sums), claimed=next(sums))
    precisions, occurring = average_precisions(predicted, shown), count > 0
    exact = int((claimed == shown).all(axis=1).sum())
    return {
        "multi_label": True,
        "split": split,
        "num_images": len(shown),
        "loss": cross_entropy(predicted, shown),
        "map": asdict(mean_precision(predicted, shown)),
        "micro_ap": float(np.nan_to_num(average_precisions(predicted.reshape(-1, 1), shown.reshape(-1, 1))[0])),
        "macro_f1": float(rows.f1[occurring].mean()) if occurring.any() else 0.0,
        "micro_f1": float(whole.f1[0]),
        "micro_precision": float(whole.precision[0]),
        "micro_recall": float(whole.recall[0]),
        "exact_match": asdict(metrics.share(exact, len(shown))),
        "threshold": THRESHOLD,
        "per_class": [
            {
                "name": classes[c],
                "count": int(count[c]),
                "ap": float(precisions[c]) if count[c] else None,
                "precision": float(rows.precision[c]),
                "recall": float(rows.recall[c]),
                "f1": float(rows.f1[c]),
            }
            for c in np.flatnonzero(occurring | claimed.any(axis=0)).tolist()
        ],
    }


def predictions_csv(parts: Mapping[str, tuple[Source, list[int], Chances]], *, classes: Sequence[str]) -> str:
    """One row an image: split, index in the split, file, labels, predicted, then the probability of each class."""
    rows: list[list[object]] = [["split", "index", "file", "label", "predicted", *classes]]
    rows += _rows(parts, classes)
    return csv_text(rows)


def _rows(parts: Mapping[str, tuple[Source, list[int], Chances]], classes: Sequence[str]) -> Iterator[list[object]]:
    for split, (source, indices, predicted) in parts.items():
        for index, row in zip(indices, predicted, strict=True):
            said = " | ".join(classes[c] for c in np.flatnonzero(row > THRESHOLD).tolist())
            chances = (f"{chance:.6f}" for chance in row)
            yield [split, index, source.name(index), source.label(index), said, *chances]
