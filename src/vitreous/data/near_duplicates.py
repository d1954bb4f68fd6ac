"""Images that look the same though their files differ: saved again, resized, or cropped a little.

Two are taken for one if their 64-bit DCT hashes (Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010, Sec. 3.2.1) differ in few bits and their grey thumbnails correlate. The bounds come from Imagenette
at 224 pixels (6,200 images, all different): of its 19.2 million pairs none passes. Of 600 copies all pass that were
saved again at quality 30, resized to 48 to 320 pixels, made grey or lost 2 % of their sides; 99.7 % of those a quarter
brighter, and 95 % of those that lost 5 %, but 43 % where all of that came off one corner.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Int, UInt8, UInt64
from PIL import Image

MAX_DISTANCE = 10
"""Bits of two hashes that may differ; always an even number, since half of each hash is set."""
MIN_CORRELATION = 0.9
SMALL_PX, MIN_SMALL_CORRELATION = 64, 0.98
"""Of images with a side below that, since many different pictures of few pixels are alike."""
TINY_PX = 32
"""Images with a side below that are not compared: of Fashion-MNIST's, at 28 pixels, thousands would pass."""
PLAIN = 4.0
"""Standard deviation of grey levels, of 255, below which an image shows too little to be compared."""
SIDE, HASHED_SIDE, LOWEST = 16, 32, 8
NUM_BANDS, BAND_BITS = 4, 16
RADIUS = MAX_DISTANCE // NUM_BANDS
BLOCK = 1 << 17
MAX_PAIRS = 100_000
BITS = np.array([i.bit_count() for i in range(1 << BAND_BITS)], dtype=np.uint8)
COSINES = np.cos(np.pi * np.outer(np.arange(LOWEST), np.arange(HASHED_SIDE) + 0.5) / HASHED_SIDE)
COSINES[0] /= np.sqrt(2)  # the orthonormal DCT-II, but for a factor that a comparison with the median does not see


@dataclass(frozen=True)
class Looks:
    """What is compared of many images."""

    hashes: UInt64[np.ndarray, " image"]
    thumbnails: UInt8[np.ndarray, "image pixel"]
    sides: Int[np.ndarray, " image"]
    """Pixels of the shorter side of the image itself."""


@dataclass(frozen=True)
class Pairs:
    """Images that look the same, as positions."""

    first: Int[np.ndarray, " pair"]
    second: Int[np.ndarray, " pair"]
    left_out: int
    """Number of images that are too small or too plain to be compared."""
    complete: bool
    """False if the search ended at `MAX_PAIRS`."""


def dct_hash(grey: Image.Image) -> int:
    """Which of the 64 lowest frequencies of a grey image lie above their median, the mean of the image left out."""
    pixels = np.asarray(grey.resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    frequencies = (COSINES @ pixels @ COSINES.T).ravel()
    bits = frequencies > np.median(frequencies[1:])
    return int.from_bytes(np.packbits(bits.reshape(-1, NUM_BANDS).T).tobytes(), "little")


def thumbnail(grey: Image.Image) -> UInt8[np.ndarray, " pixel"]:
    """The pixels of a small square picture, row by row."""
    return np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.uint8).ravel()


def near_pairs(looks: Looks) -> Pairs:
    """All pairs that look the same, in far fewer than quadratically many comparisons where images differ.

    Of two hashes that differ in ten bits, one of four parts differs in at most two: only images with such a part are
    compared (multi-index hashing, Norouzi et al., arXiv:1307.2982, Sec. 3).
    """
    pixels = looks.thumbnails
    means = pixels.mean(axis=1, dtype=np.float32)
    squares = np.einsum("ij,ij->i", pixels, pixels, dtype=np.float32, casting="unsafe") / (SIDE * SIDE)
    deviation = np.sqrt(np.maximum(squares - means**2, 0))
    told = np.flatnonzero((deviation >= PLAIN) & (looks.sides >= TINY_PX))
    least = np.where(looks.sides < SMALL_PX, MIN_SMALL_CORRELATION, MIN_CORRELATION)
    found: list[np.ndarray] = []
    for first, second in _candidates(looks.hashes[told]):
        first, second = told[first], told[second]
        a, b = (pixels[rows].astype(np.float32) for rows in (first, second))
        covariance = np.einsum("ij,ij->i", a, b) / (SIDE * SIDE) - means[first] * means[second]
        alike = covariance / (deviation[first] * deviation[second])
        passed = alike >= np.maximum(least[first], least[second])
        found.append(np.sort(np.stack([first[passed], second[passed]], axis=1), axis=1))
        if sum(map(len, found)) >= MAX_PAIRS:
            break
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *found])[:MAX_PAIRS]
    pairs = pairs[np.lexsort(pairs.T[::-1])]
    return Pairs(pairs[:, 0], pairs[:, 1], len(looks.hashes) - len(told), complete=len(pairs) < MAX_PAIRS)


def _candidates(hashes: UInt64[np.ndarray, " image"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each pair of positions whose hashes differ in at most `MAX_DISTANCE` bits, once, in blocks."""
    masks = [sum(1 << bit for bit in bits) for k in range(RADIUS + 1) for bits in combinations(range(BAND_BITS), k)]
    bands = hashes[:, None].view(np.uint16).astype(np.int64)
    for band in range(NUM_BANDS):
        order = np.argsort(bands[:, band], kind="stable")
        parts, ordered = bands[order, band], hashes[order]
        starts = np.searchsorted(parts, np.arange((1 << BAND_BITS) + 1))
        for mask in masks:
            partner = parts ^ mask
            low, high = starts[partner], starts[partner + 1]
            if mask:
                high = np.where(parts < partner, high, low)  # each pair from one side alone
            else:
                low = np.arange(1, len(parts) + 1)
            for first, second in _expanded(low, high):
                bits = BITS[(ordered[first] ^ ordered[second])[:, None].view(np.uint16)]
                near = bits.sum(axis=1, dtype=np.uint8) <= MAX_DISTANCE
                near &= (bits[:, :band] > RADIUS).all(axis=1)  # or an earlier band has found it
                if near.any():
                    yield order[first[near]], order[second[near]]


def _expanded(low: np.ndarray, high: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each position with every position from `low` to before `high` there, about `BLOCK` pairs at a time."""
    counts = np.maximum(high - low, 0)
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + BLOCK, side="right")), start + 1)
        number = counts[start:stop]
        if total := int(number.sum()):
            first = np.repeat(np.arange(start, stop), number)
            yield first, np.arange(total) - np.repeat(np.cumsum(number) - number, number) + low[first]
        start = stop
