"""Many tars as one source: packed by `vitreous data pack`, with an index, or any others in WebDataset form.

Images are read by where they stand, in any order. So each process of a run takes exactly its part of every step, and
no process can run out of shards before the others, however uneven these are.
"""

import os
import stat
import threading
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vitreous.data.decode import MAX_BYTES, BadImage
from vitreous.data.names import Names
from vitreous.data.shard_index import INDEX
from vitreous.data.source import Source, sizes_and_times

MAX_OPEN = 128
"""Files that a process keeps open at a time."""


class ShardSource(Source):
    """Members of many tars, read in place by their offsets; nothing is ever extracted.

    Args:
        starts: the row of the first image of each tar, and the number of all.
        checksums: CRC-32 of each image, where an index tells it; an image that differs is a `BadImage`.
        first_keys: where an index is: the number by which the first member of each tar is called.
    """

    def __init__(
        self,
        files: "Files",
        names: Names,
        *,
        starts: Sequence[int],
        offsets: np.ndarray,
        sizes: np.ndarray,
        classes: Sequence[str],
        labels: np.ndarray,
        checksums: np.ndarray | None = None,
        first_keys: Sequence[int] | None = None,
    ):
        super().__init__(classes, labels)
        self.files = files
        self.names, self.starts = names, list(starts)
        self.offsets, self.sizes, self.checksums = offsets, sizes, checksums
        self.first_keys = first_keys

    def name(self, i: int) -> str:
        """What the image was called in the data that were packed; without an index, its tar and member."""
        return self.names[self.rows[i]]

    def where(self, i: int) -> str:
        """Its name, and with an index its tar and member."""
        row = int(self.rows[i])
        place = self._place(row, bisect_right(self.starts, row) - 1)
        return place if self.first_keys is None else f"{self.name(i)} ({place})"

    def read(self, i: int) -> bytes:
        """The member's content, as it was packed."""
        row = int(self.rows[i])
        shard = bisect_right(self.starts, row) - 1
        size = int(self.sizes[row])
        try:
            if size > MAX_BYTES:
                raise BadImage(f"{size / 1e9:.1f} GB is over the limit of {MAX_BYTES / 1e9:.0f} GB")
            data = self.files.read(shard, offset=int(self.offsets[row]), size=size)
            if len(data) < size:
                raise BadImage("the file ends before the image does; fetch or pack it again")
            if self.checksums is not None and zlib.crc32(data) != self.checksums[row]:
                raise BadImage("its bytes are not those that were packed (CRC-32); fetch or pack the file again")
        except BadImage as error:
            raise BadImage(f"{self._place(row, shard)}: {error}") from None
        return data

    def stamp(self) -> str | None:
        """A digest of the size and the time of change of every tar that images come from, and of its index."""
        return self.files.stamp(self._used())

    def bring(self) -> None:
        """Have every tar that images come from on this machine."""
        self.files.bring(self._used())

    def _used(self) -> list[int]:
        return np.unique(np.searchsorted(self.starts, self.rows, side="right") - 1).tolist()

    def _place(self, row: int, shard: int) -> str:
        if self.first_keys is None:
            return self.names[row]
        key = self.first_keys[shard] + row - self.starts[shard]
        return f"{os.path.basename(self.files.paths[shard])}, member {key:09}"


class Files:
    """Random access to many files, the last `MAX_OPEN` of them open; safe in threads and after a fork."""

    def __init__(self, paths: Iterable[Path | str]):
        self.paths = Names([os.fspath(path) for path in paths])
        self.lock = threading.Lock()
        self.open: dict[int, _File] = {}

    def __getstate__(self) -> Names:
        return self.paths

    def __setstate__(self, paths: Names) -> None:
        self.__init__(())
        self.paths = paths

    def bring(self, numbers: Iterable[int]) -> None:
        """Have those files on this machine, where they are already."""

    def stamp(self, numbers: Iterable[int]) -> str:
        """A digest of the size and the time of change of those files, and of the index beside them."""
        paths = [Path(self.paths[number]) for number in numbers]
        return sizes_and_times([*paths, *filter(Path.is_file, sorted({path.parent / INDEX for path in paths}))])

    def path(self, number: int) -> str:
        """Where the file is to be opened."""
        return self.paths[number]

    def read(self, number: int, *, offset: int, size: int) -> bytes:
        """`size` bytes of file `number` from `offset` on, or what there is of them.

        Raises:
            BadImage: if it cannot be read.
        """
        try:
            with self.lock:
                file = self.open.pop(number, None) or _File(self.path(number))
                self.open[number] = file  # the one used last stands last
                if len(self.open) > MAX_OPEN:
                    del self.open[next(iter(self.open))]  # closed when no thread reads from it any more
            return file.read(offset, size)
        except OSError as error:
            with self.lock:
                self.open.pop(number, None)  # a server that lost the file may give it again
            raise BadImage(f"cannot be read ({error.strerror or error})") from None


class _File:
    """A regular file that is closed with its last reference."""

    def __init__(self, path: str):
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        if not stat.S_ISREG(os.fstat(self.descriptor).st_mode):
            raise OSError("not a regular file")
        self.lock = threading.Lock()

    def __del__(self):
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):  # moves no position, which threads and forked processes share
            return os.pread(self.descriptor, size, offset)
        with self.lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, size)
