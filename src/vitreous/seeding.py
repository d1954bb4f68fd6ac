"""Every random choice as a pure function of (seed, purpose, epoch or step, sample).

Nothing random is ever saved or restored: whoever knows the step can draw the same numbers again, in
any process, after any restart. `purpose` keeps the streams of one run apart.
"""

import hashlib

import numpy as np


def key(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit integer that depends on every argument; seeds one generator for one purpose."""
    text = repr((seed, purpose, *counters)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A NumPy generator for this purpose alone."""
    return np.random.Generator(np.random.Philox(key=key(seed, purpose, *counters)))  # a key needs no seed sequence
