"""The order of an epoch as a permutation that tells any of its positions alone: nothing to keep, nothing to skip."""

import math

import numpy as np
from jaxtyping import Int, UInt64

from vitreous import seeding

ROUNDS = 6


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
    base = np.uint64(math.isqrt(n) // 2 * 2 + 2)
    keys = [np.uint64(seeding.key(seed, "order", epoch, number)) for number in range(ROUNDS)]
    found = _permuted(np.arange(start, stop, dtype=np.uint64), base, keys)
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
