"""Schedules: a number as a function of progress, the fraction of training done, in [0, 1].

A published number of steps is a fraction of all: 10,000 steps of warm-up are a `warmup_ratio` of 10,000 / steps.
"""

import math
from abc import abstractmethod
from dataclasses import dataclass

from vitreous.config import BELOW_ONE, Config, check_ranges
from vitreous.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Schedule(Config):
    """A number that changes during training."""

    @abstractmethod
    def __call__(self, progress: float) -> float:
        """The number at `progress` in [0, 1]."""

    @property
    def highest(self) -> float:
        """The largest number of all; that of a thousand moments, where a schedule does not know better."""
        return max(self(moment / 1000) for moment in range(1001))


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same number throughout."""

    value: float = 1.0
    """The number."""

    def __post_init__(self) -> None:
        check_ranges(self, value=(0, math.inf))

    @property
    def highest(self) -> float:
        """The number."""
        return self.value

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True)
class Decay(Schedule):
    """A linear rise from 0 to `peak`, a fall towards `end` (the paper's Table 3), and last a linear fall to 0.

    The fall begins where the rise ends and takes all of the rest; the last part of it is multiplied by what is left
    of `cooldown_ratio`, as in big_vision.
    """

    peak: float = 1e-3
    """The number when warm-up ends."""
    end: float = 0.0
    """The number at the end of training, before `cooldown_ratio`."""
    warmup_ratio: float = 0.1
    """Fraction of training spent rising from zero."""
    cooldown_ratio: float = 0.0
    """Last fraction of training, in which the number is also brought to zero in a straight line."""

    def __post_init__(self) -> None:
        positive = (0, math.inf)
        check_ranges(self, peak=positive, end=positive, warmup_ratio=(0, BELOW_ONE), cooldown_ratio=(0, 1))

    def __call__(self, progress: float) -> float:
        if progress < self.warmup_ratio:
            number = self.peak * progress / self.warmup_ratio
        else:
            rest = (progress - self.warmup_ratio) / (1 - self.warmup_ratio)
            number = self.end + (self.peak - self.end) * self.remaining(min(rest, 1.0))
        left = max(1 - progress, 0.0)
        return number * left / self.cooldown_ratio if left < self.cooldown_ratio else number

    @property
    def highest(self) -> float:
        """The peak, if the end is not above it."""
        return max(self.peak, self.end)

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


@dataclass(frozen=True, kw_only=True)
class Polynomial(Decay):
    """A power of the straight line from `peak` to `end` after warm-up."""

    power: float = 2.0
    """Exponent of what is left of the line."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, power=(0, math.inf))

    def remaining(self, rest: float) -> float:
        return (1 - rest) ** self.power


@dataclass(frozen=True, kw_only=True)
class InverseSqrt(Decay):
    """A fall with the inverse square root of time, which may go on for ever and needs a cool-down to end.

    "Scaling Vision Transformers" (arXiv:2106.04560, Sec. 3.5), there with 10,000 steps of `timescale_ratio` and of
    warm-up, and 50,000 of cool-down.
    """

    cooldown_ratio: float = 0.2
    """Last fraction of training, in which the number is also brought to zero in a straight line."""
    timescale_ratio: float = 0.1
    """Fraction of training after which the number is `peak` over the square root of 2, counted from warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, timescale_ratio=(1e-12, math.inf))

    def remaining(self, rest: float) -> float:
        return 1 / math.sqrt(1 + rest * (1 - self.warmup_ratio) / self.timescale_ratio)


@dataclass(frozen=True, kw_only=True)
class Stairs(Decay):
    """Steps down at given moments of training: BiT's fine-tuning (arXiv:1912.11370, Sec. 3.3)."""

    at: tuple[float, ...] = (0.3, 0.6, 0.9)
    """Fractions of training after which the next step begins, in rising order."""
    factor: float = 0.1
    """What each step multiplies `peak - end` with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, at=(0, 1), factor=(0, 1))
        if sorted(self.at) != list(self.at):
            raise InputError(f"at is {self.at}; give fractions of training in rising order")

    def remaining(self, rest: float) -> float:
        progress = self.warmup_ratio + rest * (1 - self.warmup_ratio)
        return self.factor ** sum(moment <= progress + 1e-9 for moment in self.at)  # which has been rounded
