"""The upper rows of a JPEG, faster than Pillow decodes the whole and the same to the bit.

Needs simplejpeg (`pip install 'vitreous[jpeg]'`). What it cannot do, or would do in another way, is left to Pillow.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

MARGIN = 32
"""Rows decoded below those that are wanted: colour is interpolated from a block further down."""
BASELINE, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}
START_OF_SCAN, APP1 = 0xDA, 0xE1
END = b"\xff\xd9"


@dataclass(frozen=True)
class Frame:
    """What the header of a JPEG says of its pixels, which are 8-bit, grey or in colour."""

    width: int
    height: int
    at: int
    """Where in the file the height stands, two bytes before the width."""
    progressive: bool
    may_turn: bool
    """Whether there is a segment that can hold an orientation."""


def frame(data: bytes) -> Frame | None:
    """What `rows` needs to know of the file `data`; None where it has to be decoded by Pillow."""
    if _decoder() is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    at, may_turn = 2, False
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        may_turn |= marker == APP1
        if marker in (BASELINE, EXTENDED, PROGRESSIVE):
            height, width = (int.from_bytes(data[at + k : at + k + 2]) for k in (5, 7))
            plain = data[at + 4] == 8 and data[at + 9] in (1, 3) and width and height
            return Frame(width, height, at + 5, marker == PROGRESSIVE, may_turn) if plain else None
        if marker == START_OF_SCAN or marker in OTHER_FRAMES:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def rows(data: bytes, found: Frame, *, stop: int, scale: int = 1) -> UInt8[np.ndarray, "height width 3"] | None:
    """The pixels of the file `data` at 1/`scale` of its size, down to row `stop` of the full size or further.

    None where it may be damaged: Pillow decides what to make of that. An orientation is not followed.
    """
    decoder, height = _decoder(), found.height
    assert decoder is not None, "a frame was found by it"
    if not found.progressive and data.endswith(END):  # else a scan is of all rows, or the end may be missing
        height = min(stop + MARGIN, height)
    if cut := height < found.height:
        data = data[: found.at] + height.to_bytes(2) + data[found.at + 2 :]
    least = {"min_height": -(-height // scale), "min_width": -(-found.width // scale)} if scale > 1 else {}
    try:
        # Rows that the header denies are a warning to libjpeg, as damage is; Pillow does not heed warnings either.
        return decoder(data, "RGB", strict=not cut, **least)
    except ValueError:
        return None


@functools.cache
def _decoder() -> Callable[..., np.ndarray] | None:
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    return decode_jpeg
