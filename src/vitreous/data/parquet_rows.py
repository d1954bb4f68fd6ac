"""Rows of parquet files by their place: the group that a row stands in is read, and kept within a bound."""

import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitreous.data.decode import BadImage
from vitreous.data.parquet_columns import Columns
from vitreous.errors import InputError

MAX_GROUP_BYTES = 500_000_000
"""Of the images in one row group, all of which are read to have one."""
KEPT_BYTES = 128_000_000
"""Of row groups that stay in memory; the last two stay however large they are."""
KEPT_FILES = 16
BATCH = 64


@dataclass(frozen=True)
class _Group:
    """The cells of a row group in batches of `BATCH`, or why they cannot be had."""

    batches: Sequence[Any] = ()
    size: int = 0
    reason: str = ""


class Reader:
    """Cells of parquet files by their place; what it has open and has read stays behind when it is pickled."""

    def __init__(self):
        self.lock = threading.Lock()
        self.files: OrderedDict[str, Any] = OrderedDict()
        self.kept: OrderedDict[tuple[str, int], _Group] = OrderedDict()
        self.process = os.getpid()

    def __reduce__(self):
        return (Reader, ())

    def cell(self, path: str, columns: Columns, *, group: int, row: int) -> tuple[bytes | None, str | None]:
        """The bytes and the path in a row of a row group.

        Raises:
            BadImage: if the group cannot be read.
        """
        with self.lock:
            if (path, group) not in self.kept:
                self._keep(path, columns, group)
            self.kept.move_to_end((path, group))
            found = self.kept[path, group]
        if found.reason:
            raise BadImage(found.reason)
        batch = row // BATCH
        try:
            value = found.batches[batch][row - batch * BATCH].as_py()
        except UnicodeDecodeError:
            raise BadImage("the path in its row is damaged") from None
        if isinstance(value, dict):
            return value.get("bytes"), value.get("path")
        return (None, value) if isinstance(value, str) else (value, None)

    def _keep(self, path: str, columns: Columns, group: int) -> None:
        if self.process != os.getpid():  # a forked child must not move its parent's position
            self.files, self.process = OrderedDict(), os.getpid()
        self.kept[path, group] = self._group(path, columns, group)
        while len(self.kept) > 2 and sum(kept.size for kept in self.kept.values()) > KEPT_BYTES:
            self.kept.popitem(last=False)

    def _group(self, path: str, columns: Columns, group: int) -> _Group:
        batches, size = [], 0
        try:
            file = self._file(path)
            found = file.iter_batches(BATCH, row_groups=[group], columns=list(columns.leaves), use_threads=False)
            for batch in found:
                batches.append(batch.column(0))
                size += batch.nbytes
                if size > MAX_GROUP_BYTES:  # one entry of a dictionary can stand for any number of cells
                    return _Group(reason=f"its row group unpacks to more than {MAX_GROUP_BYTES / 1e6:.0f} MB")
        except InputError:
            raise
        except Exception as error:  # pyarrow has its own, and raises OSError too
            return _Group(reason=f"its row group is damaged or gone ({_line(error)})")
        return _Group(batches, size)

    def _file(self, path: str) -> Any:
        if path not in self.files:
            self.files[path] = opened(path)
        self.files.move_to_end(path)
        if len(self.files) > KEPT_FILES:
            self.files.popitem(last=False)[1].close()
        return self.files[path]


def opened(path: str | Path) -> Any:
    """A pyarrow ParquetFile.

    Raises:
        InputError: if pyarrow is absent, or the file cannot be opened.
    """
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError("parquet needs pyarrow: pip install 'vitreous[data]'") from None
    with reading(path):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path} is not a regular file; give parquet files alone")  # pyarrow would wait for a pipe
        return ParquetFile(path, pre_buffer=False, page_checksum_verification=True)


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn whatever pyarrow says of a damaged file into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # pyarrow has its own, and raises OSError too
        raise InputError(f"{path} is no whole parquet file ({_line(error)}); fetch it again") from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
