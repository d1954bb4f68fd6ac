"""Images within a tar, read in place."""

import gzip
import io
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitreous.data.decode import BadImage
from vitreous.data.names import Names
from vitreous.data.source import Source, sizes_and_times
from vitreous.errors import InputError

MAX_UNPACKED_BYTES = 8_000_000_000
MAX_UNPACKED_RATIO = 200
"""Of the packed size: a bomb reaches 1,000, images hardly 1."""
SMALL_BYTES = 100_000_000
"""Unpacked however small it was."""


class TarSource(Source):
    """Members of a tar, read in place by their offset; nothing is ever extracted."""

    def __init__(
        self,
        archive: "Archive",
        names: Sequence[str],
        *,
        offsets: np.ndarray,
        sizes: np.ndarray,
        classes: Sequence[str],
        labels: np.ndarray,
    ):
        super().__init__(classes, labels)
        self.archive = archive
        self.names = Names(names)
        self.offsets = np.asarray(offsets, dtype=np.int64)
        self.sizes = np.asarray(sizes, dtype=np.int64)

    def name(self, i: int) -> str:
        """The member's name."""
        return self.names[self.rows[i]]

    def where(self, i: int) -> str:
        """Its name and the tar."""
        return f"{self.name(i)} of {self.archive.path.name}"

    def read(self, i: int) -> bytes:
        """The member's content."""
        row = self.rows[i]
        size = int(self.sizes[row])
        data = self.archive.read(int(self.offsets[row]), size)
        if len(data) < size:
            raise BadImage("the archive ends before the image does")
        return data

    def stamp(self) -> str | None:
        """A digest of the size and the time of change of the tar."""
        return sizes_and_times([self.archive.path])


class Archive:
    """Random access to the bytes of a tar file; a gzip'ed one is unpacked into memory once per process."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._process = -1

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)

    def __del__(self):
        if self._file is not None:
            self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes of the unpacked tar from `offset` on, or what there is of them."""
        with self.lock:
            file = self.file()
            file.seek(offset)
            return file.read(size)

    def file(self) -> BinaryIO:
        """The unpacked file; hold `lock` while moving in it.

        Raises:
            InputError: if the file cannot be read or is not what its suffix says.
        """
        if self._process != os.getpid():  # a forked child must not move its parent's position
            try:
                self._file = self.path.open("rb")
                if self._file.read(2) == b"\x1f\x8b":  # gzip, whatever the name says
                    self._file.close()
                    self._file = self._unpacked()
            except (OSError, EOFError, zlib.error) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise InputError(f"cannot read {self.path}: {reason}; fetch or pack it again") from None
            self._process = os.getpid()
        assert self._file is not None
        return self._file

    def _unpacked(self) -> BinaryIO:
        most = min(MAX_UNPACKED_BYTES, max(MAX_UNPACKED_RATIO * self.path.stat().st_size, SMALL_BYTES))
        data = io.BytesIO()
        with gzip.open(self.path) as file:
            while part := file.read(io.DEFAULT_BUFFER_SIZE * 128):
                data.write(part)
                if data.tell() > most:
                    raise InputError(
                        f"{self.path} unpacks to more than {most / 1e6:,.0f} MB, too much for memory; "
                        "run gunzip once and give the .tar"
                    )
        return data
