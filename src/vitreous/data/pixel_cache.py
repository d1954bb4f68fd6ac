"""A file of decoded, resized pixels, from which training views of small data sets are cut instead of from JPEGs."""

import hashlib
import io
import mmap
import os
import shutil
import zipfile
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from jaxtyping import UInt8
from PIL import Image

from vitreous.cores import cores
from vitreous.data.decode import Box, Picture
from vitreous.data.source import Source
from vitreous.data.still import Still
from vitreous.errors import InputError
from vitreous.files import write_bytes, writing

CHUNK = 64
"""Images that are in memory at once while the file is written."""
MAX_THREADS = 16
PIXELS, INDEX = "pixels", "index.npz"


@dataclass(frozen=True)
class Cache:
    """Every image of `source` as `still` shows it, in two files of `folder`, for any number of processes to read.

    `fingerprint` tells the images of `source` apart from others; what was kept of those, or by another version of what
    decodes and resizes, is not used but written anew.
    """

    folder: Path
    source: Source
    still: Still
    fingerprint: str

    def write(self, *, most_gb: float, progress: Callable[[int], None] = lambda done: None) -> None:
        """Decode and resize every image, in threads, unless that has been done; `progress` gets the number done.

        The files are there whole or not at all: who is stopped meanwhile begins again.

        Raises:
            InputError: if they would take more than `most_gb` or the disk has, or an image cannot be read.
        """
        if self._index() is not None:
            return
        least_gb = 3 * len(self.source) * self.still.least[0] * self.still.least[1] / 1e9
        if least_gb > most_gb:
            raise InputError(self._too_large(most_gb, f"take {least_gb:.2g} GB or more"))
        path, temporary = self.folder / PIXELS, self.folder / f".{PIXELS}.{os.getpid()}.tmp"
        shapes = np.zeros((len(self.source), 2), dtype=np.int64)
        with writing(path):
            try:
                self.remove()
                self.folder.mkdir(parents=True, exist_ok=True)
                with open(temporary, "wb") as file, ThreadPoolExecutor(min(cores(), MAX_THREADS)) as pool:
                    for start in range(0, len(self.source), CHUNK):
                        stop = min(start + CHUNK, len(self.source))
                        for i, pixels in enumerate(pool.map(self._read, range(start, stop)), start):
                            shapes[i] = pixels.shape[1:]
                            file.write(pixels.data)
                        if file.tell() > most_gb * 1e9:
                            raise InputError(self._too_large(most_gb, f"take more: {stop:,} of them do"))
                        progress(stop)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
                index = io.BytesIO()
                np.savez(index, shapes=shapes, key=np.array(self._key()))
                write_bytes(self.folder / INDEX, index.getvalue())  # last: it vouches for the pixels
            except BaseException:
                self.remove()
                raise

    def open(self) -> Source:
        """The same images, in whose place the cache is read; `source` itself if there is none for it."""
        shapes = self._index()
        return self.source if shapes is None else _Kept(self.source, self.still, self.folder / PIXELS, shapes)

    def remove(self) -> None:
        """Free the space. Who has the cache open may read on."""
        with suppress(OSError):
            (self.folder / INDEX).unlink()  # first, for the same reason
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, i: int) -> UInt8[np.ndarray, "3 height width"]:
        try:
            return np.ascontiguousarray(self.still.read(self.source, i))
        except InputError as error:
            raise InputError(f"cannot read {self.source.name(i)} any more ({error}); put it back") from None

    def _too_large(self, most_gb: float, what: str) -> str:
        return f"the {len(self.source):,} images are not kept, for they {what}; cache_gb is {most_gb:g}"

    def _key(self) -> str:
        """A digest of all that decides the pixels and their order."""
        versions = [module.__version__ for module in (torch, PIL, np)]
        parts = repr((self.fingerprint, self.still, versions, torch.backends.cpu.get_cpu_capability()))
        digest = hashlib.blake2b(parts.encode(), digest_size=16)
        for i in range(len(self.source)):
            digest.update(f"{self.source.name(i)}\0".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def _index(self) -> np.ndarray | None:
        """Height and width of each image, if they are kept and were made of the same images in the same way."""
        try:
            found = io.BytesIO((self.folder / INDEX).read_bytes())  # of a damaged file NumPy leaves its own open
            with np.load(found, allow_pickle=False) as index:
                shapes, key = index["shapes"], str(index["key"])
            whole = os.path.getsize(self.folder / PIXELS) == 3 * int(shapes.prod(axis=1).sum())
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        return shapes if whole and key == self._key() else None


class _Kept(Source):
    """The images of `source`, whose `still` pixels lie in the file `path`, one after another."""

    def __init__(self, source: Source, still: Still, path: Path, shapes: np.ndarray):
        super().__init__(source.classes, source.labels)
        self.sets = source.sets
        self.source, self.still, self.path, self.shapes = source, still, path, shapes
        self.starts = np.cumsum([0, *3 * shapes.prod(axis=1)])
        self._pixels: UInt8[np.ndarray, " byte"] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pixels": None}

    def kept(self, i: int, still: Hashable) -> UInt8[np.ndarray, "3 height width"] | None:
        """Pixels that cannot be written to; None if someone has removed the file."""
        if still != self.still:
            return None
        if self._pixels is None:
            try:
                with open(self.path, "rb") as file:
                    self._pixels = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            except OSError:
                return None
        row = int(self.rows[i])
        return self._pixels[self.starts[row] : self.starts[row + 1]].reshape(3, *self.shapes[row])

    def name(self, i: int) -> str:
        """What it is called in the source."""
        return self.source.name(int(self.rows[i]))

    def where(self, i: int) -> str:
        """Where it lies in the source."""
        return self.source.where(int(self.rows[i]))

    def read(self, i: int) -> bytes:
        """What the source reads."""
        return self.source.read(int(self.rows[i]))

    def image(self, i: int, *, min_side: int | None = None) -> Image.Image:
        """What the source shows."""
        return self.source.image(int(self.rows[i]), min_side=min_side)

    def crop(
        self, i: int, draw: Callable[[int, int], Box], *, shape: tuple[int, int]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """What the source cuts out."""
        return self.source.crop(int(self.rows[i]), draw, shape=shape)

    def bring(self) -> None:
        """What the source brings: a removed cache is replaced by it."""
        self.source.bring()

    def picture(self, i: int, data: bytes) -> Picture:
        """What the source makes of the bytes."""
        return self.source.picture(int(self.rows[i]), data)

    @property
    def part_sizes(self) -> tuple[int, ...]:
        """Those of the source."""
        return self.source.select(self.rows).part_sizes

    def stamp(self) -> str | None:
        """That of the source."""
        return self.source.stamp()
