"""How fast a run could learn: the loss while the learning rate rises from far too low to far too high."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vitreous.config import check_ranges
from vitreous.data.source import Source
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.run import Run
from vitreous.schedule import Schedule
from vitreous.trainee import Trainee

SMOOTHING = 0.9
"""Share of a moving average of the loss that a step leaves."""
BLOWN_UP = 2.0
"""Times the lowest loss, or the first where that is higher, above which training is given up."""
SETTLED = 0.1
"""First part of the steps, in which the average means little yet."""


@dataclass(frozen=True, kw_only=True)
class Geometric(Schedule):
    """From `lowest` to `highest` by equal factors (arXiv:1506.01186, Sec. 3.3)."""

    lowest: float = 1e-6
    """The number at the beginning."""
    highest_rate: float = 1.0
    """The number at the end."""

    def __post_init__(self) -> None:
        check_ranges(self, lowest=(1e-30, math.inf), highest_rate=(self.lowest, math.inf))

    def __call__(self, progress: float) -> float:
        return self.lowest * (self.highest_rate / self.lowest) ** progress


@dataclass(frozen=True)
class RateTest:
    """What the loss did at each learning rate, from low to high."""

    rates: list[float]
    losses: list[float]
    """Averaged over the last steps."""
    lowest: float
    """Rate at which the loss was lowest: there it is about to rise."""
    steepest: float
    """Rate at which the loss fell fastest on its way to there."""
    diverged: float | None
    """Rate at which it was twice as high again, or no number; None if it never was."""

    @property
    def advice(self) -> float:
        """A peak to begin with: a tenth of `lowest`, which warm-up and a fall afterwards make safe."""
        return self.lowest / 10


def rate_test(
    run: Run,
    source: Source,
    *,
    world: World,
    steps: int = 100,
    lowest: float = 1e-6,
    highest: float = 1.0,
    progress: Callable[[int], None] = lambda done: None,
) -> RateTest:
    """Train `run` from its beginning for `steps` steps whose learning rate rises from `lowest` to `highest`.

    Nothing is written. It ends early once the loss has blown up. Every process of the world calls this.

    Raises:
        InputError: if the run cannot be begun.
    """
    rising = Geometric(lowest=lowest, highest_rate=highest)
    run = replace(run, learning_rate=rising, steps=steps)
    trainee = Trainee(run, world, num_classes=len(source.classes))
    batches = trainee.batches(source, first_step=0, steps=steps, num_workers=run.num_workers)
    rates: list[float] = []
    losses: list[float] = []
    average, diverged = 0.0, None
    for step in range(steps):
        taken = trainee.take(step, batches)
        loss = float(world.sum(taken.numbers[:, 0].sum())) / trainee.num_micro_batches
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smooth = average / (1 - SMOOTHING ** (step + 1))
        rate = rising(step / steps)
        blown_up = losses and smooth > BLOWN_UP * max(min(losses), losses[0])
        if not math.isfinite(smooth) or float(taken.skipped) or blown_up:
            diverged = rate
            break
        rates.append(rate)
        losses.append(smooth)
        progress(step + 1)
    return _judged(rates, losses, diverged)


def _judged(rates: list[float], losses: list[float], diverged: float | None) -> RateTest:
    first = round(SETTLED * len(rates))
    if len(rates) - first < 3:
        raise InputError(
            f"training blows up within {len(rates) + 1} steps, at a learning rate of {diverged:.2g}; "
            "give a smaller --lowest"
        )
    known = np.array(losses[first:])
    lowest = int(known.argmin())
    steepest = int(np.gradient(known)[: lowest + 1].argmin())  # rates lie at equal factors; beyond, it is noise
    return RateTest(rates, losses, steepest=rates[first + steepest], lowest=rates[first + lowest], diverged=diverged)
