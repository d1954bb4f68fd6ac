"""A look at every image of a source: can it be read, what is it, and which other images equal it?"""

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from vitreous.cores import cores
from vitreous.data.decode import BadImage, Picture
from vitreous.data.source import Source

CHUNK = 64
MAX_THREADS = 16  # each may hold an image of 200 MB


@dataclass
class Survey:
    """What a look at every image of one split found; arrays go by position in the source."""

    digests: np.ndarray
    """128-bit digests as 32 hex digits (`S32`), equal where the bytes are; empty where the image is bad."""
    widths: np.ndarray
    heights: np.ndarray
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    rotated: int = 0
    """Number of images that EXIF asks to turn."""
    bad: dict[int, str] = field(default_factory=dict)
    """Reason by position."""

    @property
    def usable(self) -> np.ndarray:
        """Positions of the images that can be read."""
        return np.flatnonzero(self.digests != b"")


def survey(
    source: Source, *, progress: Callable[[int], None], also: Callable[[int, bytes, Picture], None] | None = None
) -> Survey:
    """Read, digest and decode every image of `source`, in threads: Pillow lets them run side by side.

    `progress` gets the number of images done so far, now and then. `also`, called in those threads, gets the position,
    the bytes and the coarsely decoded picture of each image that can be read.
    """
    found = Survey(
        np.zeros(len(source), dtype="S32"),
        widths=np.zeros(len(source), dtype=np.int64),
        heights=np.zeros(len(source), dtype=np.int64),
    )

    def look(start: int) -> int:
        stop = min(start + CHUNK, len(source))
        for i in range(start, stop):
            try:
                data = source.read(i)
                picture = source.picture(i, data)
            except BadImage as error:
                found.bad[i] = str(error)
                continue
            found.digests[i] = hashlib.blake2b(data, digest_size=16).hexdigest().encode()
            found.widths[i], found.heights[i] = picture.width, picture.height
            looked.append((picture.format, picture.mode, picture.rotated))  # append is atomic, += is not
            if also is not None:
                also(i, data, picture)
        return stop - start

    source.bring()
    looked: list[tuple[str, str, bool]] = []
    done = 0
    with ThreadPoolExecutor(max_workers=min(cores(), MAX_THREADS)) as pool:
        for number in pool.map(look, range(0, len(source), CHUNK)):
            done += number
            progress(done)
    found.formats.update(kind for kind, _, _ in looked)
    found.modes.update(mode for _, mode, _ in looked)
    found.rotated = sum(rotated for _, _, rotated in looked)
    return found
