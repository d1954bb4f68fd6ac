"""Folders, tars and zips seen alike, as named members that are read in place."""

import importlib
import os
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.archives import tar_members
from vitreous.data.decode import BadImage, read_file
from vitreous.data.folders import walk_files
from vitreous.data.listing import is_junk
from vitreous.data.names import Names
from vitreous.data.source import FileSource, Source
from vitreous.data.tars import Archive, TarSource
from vitreous.errors import InputError

ZIP_ERRORS = (OSError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def library(name: str) -> Any:
    """The module of an optional dependency.

    Raises:
        InputError: if it is not installed; names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise InputError(f"it needs {name.partition('.')[0]}; pip install 'vitreous[vtab]'") from None


class Container(ABC):
    """Members by name, in a fixed order; names use /."""

    path: Path
    names: Sequence[str]
    notes: Sequence[str] = ()
    """What was skipped, one line each."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The content of a member."""

    @abstractmethod
    def source(self, names: Sequence[str], *, classes: Sequence[str], labels: np.ndarray) -> Source:
        """The members called `names` as images that are read when asked for."""

    def size(self, name: str) -> int:
        """Bytes of a member.

        Raises:
            InputError: if its members cannot be read in part.
        """
        raise InputError(f"{name} is packed in {self.path}; unpack that once")

    def part(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes of a member from `offset` on, or what there is of them."""
        raise InputError(f"{name} is packed in {self.path}; unpack that once")


class Folder(Container):
    """The files below a folder."""

    def __init__(self, path: Path):
        self.path = path
        self.notes = notes = []
        self.names = [name.replace(os.sep, "/") for name in walk_files(str(path), "", notes)]

    def read(self, name: str) -> bytes:
        return read_file(self.path / name)

    def size(self, name: str) -> int:
        return os.path.getsize(self.path / name)

    def part(self, name: str, offset: int, size: int) -> bytes:
        try:
            with open(self.path / name, "rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise BadImage(f"cannot read {self.path / name} ({error.strerror})") from None

    def source(self, names: Sequence[str], *, classes: Sequence[str], labels: np.ndarray) -> Source:
        return FileSource(self.path, names, classes=classes, labels=labels)


class Tar(Container):
    """The members of a tar, plain or gzip'ed."""

    def __init__(self, path: Path):
        self.path = path
        self.archive = Archive(path)
        self.members, self.notes = tar_members(self.archive)
        self.names = list(self.members)

    def read(self, name: str) -> bytes:
        return self.archive.read(*self.members[name])

    def size(self, name: str) -> int:
        return self.members[name][1]

    def part(self, name: str, offset: int, size: int) -> bytes:
        start, length = self.members[name]
        return self.archive.read(start + offset, min(size, length - offset))

    def source(self, names: Sequence[str], *, classes: Sequence[str], labels: np.ndarray) -> Source:
        offsets, sizes = np.array([self.members[name] for name in names], dtype=np.int64).reshape(-1, 2).T
        return TarSource(self.archive, names, offsets=offsets, sizes=sizes, classes=classes, labels=labels)


class Zip(Container):
    """The members of a zip."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.Lock()
        self._file: zipfile.ZipFile | None = None
        self._process = -1
        try:
            names = self._open().namelist()
        except ZIP_ERRORS as error:
            raise InputError(f"{path} is no whole zip ({error}); fetch it again") from None
        self.names = [name for name in names if name[-1] != "/" and not any(map(is_junk, name.split("/")))]

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)

    def __del__(self):
        if getattr(self, "_file", None) is not None:
            self._file.close()  # pyright: ignore[reportOptionalMemberAccess]

    def _open(self) -> zipfile.ZipFile:
        if self._file is None or self._process != os.getpid():  # a forked child must not move its parent's position
            self._file, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._file

    def read(self, name: str) -> bytes:
        try:
            with self.lock:
                return self._open().read(name)
        except ZIP_ERRORS as error:
            raise BadImage(f"damaged in {self.path.name} ({error})") from None

    def source(self, names: Sequence[str], *, classes: Sequence[str], labels: np.ndarray) -> Source:
        return MemberSource(self, names, classes=classes, labels=labels)


class MemberSource(Source):
    """Members of a container, or parts of them, that hold one encoded image each."""

    def __init__(
        self,
        container: Container,
        names: Sequence[str],
        *,
        classes: Sequence[str],
        labels: np.ndarray,
        parts: Sequence[tuple[str, int, int]] | None = None,
    ):
        super().__init__(classes, labels)
        self.container = container
        self.names = Names(names)
        self.parts = parts

    def name(self, i: int) -> str:
        """The member's name, or what its part is called."""
        return self.names[self.rows[i]]

    def read(self, i: int) -> bytes:
        """The content of the member, or of the part."""
        if self.parts is None:
            return self.container.read(self.name(i))
        return self.container.part(*self.parts[self.rows[i]])
