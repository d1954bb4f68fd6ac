"""Which labels are probably wrong, from what a model says of each image."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from vitreous.errors import InputError


@dataclass(frozen=True)
class Prediction:
    """One row of predictions.csv."""

    split: str
    index: int
    """Position in the split's source."""
    file: str
    label: str
    predicted: str
    confidence: float
    """Probability of `predicted`."""
    label_probability: float


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of predictions.csv; none if there is no such file.

    Raises:
        InputError: if the file is damaged.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            return [
                Prediction(
                    split=row["split"],
                    index=int(row["index"]),
                    file=row["file"],
                    label=row["label"],
                    predicted=row["predicted"],
                    confidence=float(row["confidence"]),
                    label_probability=float(row["label_probability"]),
                )
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error!r}); remove it and measure the run again") from None


def likely_mislabelled(predictions: Iterable[Prediction]) -> list[Prediction]:
    """Images whose label is probably wrong, worst first: confident learning (arXiv:1911.00068, Sec. 3.1).

    A class's threshold is the mean probability of that class over the images that carry its label. An image
    is listed when its own label is less probable than that label's threshold and the predicted class at
    least as probable as its own. Splits are judged apart: a model is surer of what it was trained on.
    """
    predictions = list(predictions)
    own: dict[tuple[str, str], list[float]] = {}
    for p in predictions:
        own.setdefault((p.split, p.label), []).append(p.label_probability)
    threshold = {key: fmean(values) for key, values in own.items()}
    found = [
        p
        for p in predictions
        if p.predicted != p.label
        and p.label_probability < threshold[p.split, p.label]
        and p.confidence >= threshold.get((p.split, p.predicted), 1.0)
    ]
    return sorted(found, key=lambda p: p.label_probability - p.confidence)
