"""Every random choice as a pure function of (seed, purpose, epoch or step, sample).

Nothing random is ever saved or restored: whoever knows the step can draw the same numbers again, in
any process, after any restart. `purpose` keeps the streams of one run apart.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.random.bit_generator import ISeedSequence


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit integer that depends on every argument; seeds one generator for one purpose."""
    text = repr((seed, purpose, *counters)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator for this purpose alone."""
    sequence: Any = _Key(key(seed, purpose, *counters))  # `Philox(key=...)` would ask the system for entropy as well
    return np.random.Generator(np.random.Philox(sequence))


class _Key(ISeedSequence):
    def __init__(self, key: int):
        self.key = key

    def generate_state(self, n_words: int, dtype: Any = np.uint64) -> np.ndarray:
        """The key, in two words of 64 bits, as Philox asks for it."""
        return np.array([self.key, 0], dtype=np.uint64)
