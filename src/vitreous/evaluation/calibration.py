"""Temperature scaling: one number that mends a classifier's confidence (Guo et al., arXiv:1706.04599, Sec. 4.2)."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from vitreous import metrics
from vitreous.seeding import generator

COLDEST, HOTTEST = 1e-3, 1e3


def fit_temperature(log_probabilities: Float[np.ndarray, "image cls"], labels: Int[np.ndarray, " image"]) -> float:
    """The temperature in [0.001, 1000] that logits are divided by to make the loss on these images least.

    The loss is convex in the inverse temperature: Newton's method on its slope, halving where that would leave the
    interval in which the slope changes its sign.
    """
    own = float(log_probabilities[np.arange(len(labels)), labels].mean())
    low, high, inverse = 1 / HOTTEST, 1 / COLDEST, 1.0
    for _ in range(100):
        p = tempered(log_probabilities, 1 / inverse)
        mean = (p * log_probabilities).sum(axis=1)
        slope = float(mean.mean()) - own
        curvature = float(((p * log_probabilities**2).sum(axis=1) - mean**2).mean())
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else math.inf
        if abs(step - inverse) <= 1e-10 * inverse:
            break
        inverse = step if low < step < high else math.sqrt(low * high)
    return 1 / inverse


def tempered(log_probabilities: Float[np.ndarray, "image cls"], temperature: float) -> Float[np.ndarray, "image cls"]:
    """Probabilities of logits divided by `temperature`."""
    scaled = log_probabilities / temperature
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return scaled / scaled.sum(axis=1, keepdims=True)


def temperature_figures(
    predicted: Float[np.ndarray, "image cls"], labels: Int[np.ndarray, " image"], *, seed: int = 0
) -> dict[str, Any] | None:
    """What temperature scaling does: the temperature of all images, and figures that no image's own fit flatters.

    Keys: temperature, loss, ece, reliability. The images are cut in two, and each half is scaled by the temperature
    that fits the other. None for fewer than two images.
    """
    if len(labels) < 2:
        return None
    logs = np.log(np.maximum(predicted, np.finfo(np.float64).tiny))
    halves = np.array_split(generator(seed, "temperature").permutation(len(labels)), 2)
    scaled = np.empty_like(predicted)
    for half, other in (halves, halves[::-1]):
        scaled[half] = tempered(logs[half], fit_temperature(logs[other], labels[other]))
    bins = metrics.reliability(scaled, labels)
    return {
        "temperature": fit_temperature(logs, labels),
        "loss": metrics.cross_entropy(scaled, labels),
        "ece": metrics.calibration_error(bins),
        "reliability": [asdict(b) for b in bins],
    }
