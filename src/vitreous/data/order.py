"""The order of an epoch as a permutation that tells any of its positions alone: nothing to keep, nothing to skip."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int, UInt64

from vitreous import seeding

ROUNDS = 6
PERIOD = 100_000
"""Images after which a mixture has shown exactly its shares."""


class Order(Protocol):
    """Which images are shown when."""

    def at(self, step: int, start: int, stop: int) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " some"]]:
        """Epochs and positions of the images at places `start` to `stop` - 1 of the batch of `step`."""
        ...


@dataclass(frozen=True)
class Shuffled:
    """Every one of `n` images once an epoch; what does not fill a batch is left out, others in each epoch."""

    n: int
    batch_size: int
    seed: int

    def at(self, step: int, start: int, stop: int) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " some"]]:
        epoch, k = divmod(step, self.n // self.batch_size)
        first = k * self.batch_size
        found = positions(self.n, seed=self.seed, epoch=epoch, start=first + start, stop=first + stop)
        return np.full(len(found), epoch), found


@dataclass(frozen=True)
class Mixture:
    """Images of several data sets in fixed shares; the sets stand one after another, with `sizes` images each.

    Of any `PERIOD` images in a row from the beginning, `counts` come from each set, in an order that is a
    permutation of its own. Each set is gone through in an order of its own, every image once before any comes again;
    how often that has happened is the epoch of its images. Where a step begins is arithmetic, so nothing is kept.
    """

    sizes: tuple[int, ...]
    counts: tuple[int, ...]
    batch_size: int
    seed: int

    @classmethod
    def of(cls, sizes: tuple[int, ...], shares: tuple[float, ...], *, batch_size: int, seed: int) -> "Mixture":
        """The mixture in which the sets have these shares, within one image of `PERIOD`."""
        assert len(sizes) == len(shares)
        ends = np.rint(np.cumsum([0.0, *shares]) / sum(shares) * PERIOD).astype(np.int64)
        return cls(sizes, tuple(np.diff(ends).tolist()), batch_size, seed)

    def at(self, step: int, start: int, stop: int) -> tuple[Int[np.ndarray, " some"], Int[np.ndarray, " some"]]:
        shown = np.arange(step * self.batch_size + start, step * self.batch_size + stop)
        periods, places = np.divmod(shown, PERIOD)
        turns = _each(periods, places, PERIOD, seed=seeding.key(self.seed, "mixture"))
        ends = np.cumsum(self.counts)
        sets = np.searchsorted(ends, turns, side="right")
        epochs, found = np.empty_like(shown), np.empty_like(shown)
        for number, (size, count) in enumerate(zip(self.sizes, self.counts)):
            of_set = np.flatnonzero(sets == number)
            drawn = periods[of_set] * count + turns[of_set] - (ends[number] - count)
            epochs[of_set], within = np.divmod(drawn, size)
            first, seed = sum(self.sizes[:number]), seeding.key(self.seed, "mixture", number)
            found[of_set] = first + _each(epochs[of_set], within, size, seed=seed)
        return epochs, found


def positions(n: int, *, seed: int, epoch: int, start: int, stop: int) -> Int[np.ndarray, " some"]:
    """Which of the images 0..n-1 stand at places `start` to `stop` - 1 of the order of `epoch`.

    Time and memory depend on `stop` - `start` alone, for any `n` up to 2**62: a balanced Feistel network (Luby and
    Rackoff, 1988) permutes pairs of digits of an even base, the smallest that numbers n images and more; what lands
    at n or above is permuted again until it does not (Black and Rogaway, 2002, Sec. 3 and 4). A base that is odd would
    favour even permutations.

    Six rounds: histograms of positions, of neighbours, of differences at lags 1, 2 and the base, of two epochs,
    of batches of sorted classes, and of all permutations of 2 to 6 images show two to four rounds to be no chance
    and find nothing from five rounds on.
    """
    assert 0 <= start <= stop <= n
    return _at(np.arange(start, stop), n, seed=seed, epoch=epoch)


def _each(
    epochs: Int[np.ndarray, " some"], places: Int[np.ndarray, " some"], n: int, *, seed: int
) -> Int[np.ndarray, " some"]:
    """What stands at each place of the order of its epoch."""
    found = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        found[epochs == epoch] = _at(places[epochs == epoch], n, seed=seed, epoch=epoch)
    return found


def _at(places: Int[np.ndarray, " some"], n: int, *, seed: int, epoch: int) -> Int[np.ndarray, " some"]:
    """What stands at these places."""
    base = np.uint64(math.isqrt(n) // 2 * 2 + 2)
    keys = [np.uint64(seeding.key(seed, "order", epoch, number)) for number in range(ROUNDS)]
    found = _permuted(places.astype(np.uint64), base, keys)
    while (outside := found >= np.uint64(n)).any():
        found[outside] = _permuted(found[outside], base, keys)
    return found.astype(np.int64)


def _permuted(
    numbers: UInt64[np.ndarray, " some"], base: np.uint64, keys: list[np.uint64]
) -> UInt64[np.ndarray, " some"]:
    """A permutation of 0..base**2-1."""
    high, low = numbers // base, numbers % base
    for key in keys:
        share = (_mixed(low ^ key) >> np.uint64(32)) * base >> np.uint64(32)  # a fraction of 2**32, of `base`
        total = high + share
        high, low = low, np.minimum(total, total - base)  # modulo base: a difference below zero wraps to a huge number
    return high * base + low


def _mixed(bits: UInt64[np.ndarray, " some"]) -> UInt64[np.ndarray, " some"]:
    """Every bit of the result depends on every bit given (finaliser of SplitMix64; Steele et al., 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
