"""Intervals of means of few values (Student 1908)."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def t_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of two values or more, and the ends of its 95 % interval."""
    mean = fmean(values)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def t_quantile(degrees: int) -> float:
    """The number that Student's t stays below in absolute value with probability 0.95."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # the angle atan(t / sqrt(degrees)), to the last bits
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _within(angle: float, degrees: int) -> float:
    """The probability that |t| < tan(angle) sqrt(degrees) (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4)."""
    odd, cosine = degrees % 2, math.cos(angle)
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for i in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * i / (i + 1)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
