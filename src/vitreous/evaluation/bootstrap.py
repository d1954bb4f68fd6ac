"""Bootstrap intervals of figures that are no simple shares (Efron 1979)."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from vitreous import metrics
from vitreous.metrics import Share
from vitreous.seeding import generator

NUM_RESAMPLES = 1000


def bootstrap(
    statistics: Callable[[Int[np.ndarray, " image"]], Sequence[float]], num_images: int, *, seed: int = 0
) -> Float[np.ndarray, "two statistic"]:
    """Lower and upper ends of 95 % intervals of `statistics`, functions of which images are looked at.

    From 1,000 draws with replacement, the same for all of them.
    """
    random = generator(seed, "bootstrap")
    values = [statistics(random.integers(0, num_images, num_images)) for _ in range(NUM_RESAMPLES)]
    return np.percentile(values, [2.5, 97.5], axis=0)


def intervals(
    predicted: Float[np.ndarray, "image cls"], labels: Int[np.ndarray, " image"], *, num_classes: int
) -> dict[str, Share]:
    """Loss, macro F1 and mean recall of the classes, with 95 % intervals.

    The calibration error has none: it is a sum of absolute values, which every resampling makes larger.
    """
    best, everyone = predicted.argmax(axis=1), np.arange(len(labels))
    own = np.log(np.maximum(predicted[everyone, labels], np.finfo(np.float64).tiny))

    def statistics(rows: Int[np.ndarray, " image"]) -> tuple[float, float, float]:
        said, true = best[rows], labels[rows]
        hit, count, claimed = (np.bincount(of, minlength=num_classes) for of in (true[said == true], true, said))
        scores, occurring = metrics.scores_of_counts(hit, count, claimed=claimed), count > 0
        return float(-own[rows].mean()), float(scores.f1[occurring].mean()), float(scores.recall[occurring].mean())

    low, high = bootstrap(statistics, len(labels))
    found = zip(("loss", "macro_f1", "mean_recall"), statistics(everyone), low, high)
    return {name: Share(value, float(least), float(most)) for name, value, least, most in found}
