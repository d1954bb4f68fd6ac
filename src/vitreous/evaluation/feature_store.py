"""Features kept on the disk by content.

An entry is the rows of up to `CHUNK` images. Its name is a digest of all that they depend on: the tensors and the
config of the model, the view, the precision, what was done to the images, and the bytes of each image in order. Equal
work is found again whatever the files are called now, and an entry that has changed on the disk is none.
"""

import hashlib
import io
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from vitreous.cache import cache_folder
from vitreous.data.source import ArraySource, Source
from vitreous.files import write_bytes

CHUNK = 1024
"""Images an entry holds."""
DIGEST_BYTES = 16


def feature_cache() -> Path:
    """Where features are kept unless told otherwise: features/ in the folder of VITREOUS_CACHE."""
    return cache_folder() / "features"


def digest(parts: Iterable[bytes | str]) -> bytes:
    """A digest of the parts, one after the other."""
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.digest()


def content(source: Source) -> bytes:
    """A digest of the bytes of every image in order, and of what tells how they are read."""
    shape = source.pixels.shape[1:] if isinstance(source, ArraySource) else ()
    images = (digest([source.read(i)]) for i in range(len(source)))
    return digest(itertools.chain([f"{type(source).__name__}{shape}"], images))


def read(file: Path) -> np.ndarray | None:
    """The rows of an entry; None if there is none, or its bytes are no longer those that were written."""
    try:
        data = file.read_bytes()
    except OSError:
        return None
    if digest([data[:-DIGEST_BYTES]]) != data[-DIGEST_BYTES:]:
        return None
    return np.load(io.BytesIO(data[:-DIGEST_BYTES]), allow_pickle=False)


def write(file: Path, rows: np.ndarray) -> None:
    """Keep an entry.

    Raises:
        InputError: if the disk refuses.
    """
    data = io.BytesIO()
    np.save(data, rows, allow_pickle=False)
    write_bytes(file, data.getvalue() + digest([data.getvalue()]))
