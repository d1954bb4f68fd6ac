"""Bootstrap intervals of figures that are no simple shares (Efron 1979)."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from vitreous import metrics
from vitreous.metrics import Share
from vitreous.seeding import generator

NUM_RESAMPLES = 1000


def bootstrap(
    statistic: Callable[[Int[np.ndarray, " image"]], float], num_images: int, *, seed: int = 0
) -> tuple[float, float]:
    """The 95 % interval of `statistic`, a function of which images are looked at: 1,000 draws with replacement."""
    random = generator(seed, "bootstrap")
    values = [statistic(random.integers(0, num_images, num_images)) for _ in range(NUM_RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def intervals(
    predicted: Float[np.ndarray, "image cls"], labels: Int[np.ndarray, " image"], *, num_classes: int
) -> dict[str, Share]:
    """Loss, macro F1 and mean recall of the classes, with 95 % intervals.

    The calibration error has none: it is a sum of absolute values, which every resampling makes larger.
    """
    best, everyone = predicted.argmax(axis=1), np.arange(len(labels))
    own = np.log(np.maximum(predicted[everyone, labels], np.finfo(np.float64).tiny))

    def scores(rows: np.ndarray) -> metrics.ClassScores:
        said, true = best[rows], labels[rows]
        hit, count, claimed = (np.bincount(of, minlength=num_classes) for of in (true[said == true], true, said))
        return metrics.scores_of_counts(hit, count, claimed=claimed)

    def mean(values: np.ndarray, counts: np.ndarray) -> float:
        return float(values[counts > 0].mean())

    statistics = {
        "loss": lambda rows: float(-own[rows].mean()),
        "macro_f1": lambda rows: mean((found := scores(rows)).f1, found.count),
        "mean_recall": lambda rows: mean((found := scores(rows)).recall, found.count),
    }
    return {name: Share(of(everyone), *bootstrap(of, len(labels))) for name, of in statistics.items()}
