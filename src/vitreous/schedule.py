"""Schedules: a number as a function of progress, the fraction of training done, in [0, 1]."""

import math
from abc import abstractmethod
from dataclasses import dataclass

from vitreous.config import BELOW_ONE, Config, check_ranges


@dataclass(frozen=True, kw_only=True)
class Schedule(Config):
    """A number that changes during training."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The number at `progress` in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same number throughout."""

    value: float = 1.0
    """The number."""

    def __post_init__(self) -> None:
        check_ranges(self, value=(0, math.inf))

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Decay(Schedule):
    """A linear rise from 0 to `peak` during `warmup_ratio`, then a fall to `end` (the paper's Table 3)."""

    peak: float = 1e-3
    """The number when warm-up ends."""
    end: float = 0.0
    """The number at the end of training."""
    warmup_ratio: float = 0.1
    """Fraction of training spent rising from zero."""

    def __post_init__(self) -> None:
        check_ranges(self, peak=(0, math.inf), end=(0, math.inf), warmup_ratio=(0, BELOW_ONE))

    def __call__(self, progress: float) -> float:
        if progress < self.warmup_ratio:
            return self.peak * progress / self.warmup_ratio
        rest = (progress - self.warmup_ratio) / (1 - self.warmup_ratio)
        return self.end + (self.peak - self.end) * self.remaining(min(rest, 1.0))

    @abstractmethod
    def remaining(self, rest: float) -> float:
        """The part of `peak - end` left after `rest` of the fall, both in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Cosine(Decay):
    """Half a cosine from `peak` to `end` after warm-up."""

    def remaining(self, rest: float) -> float:
        return 0.5 * (1 + math.cos(math.pi * rest))


@dataclass(frozen=True, kw_only=True)
class Linear(Decay):
    """A straight line from `peak` to `end` after warm-up."""

    def remaining(self, rest: float) -> float:
        return 1 - rest
