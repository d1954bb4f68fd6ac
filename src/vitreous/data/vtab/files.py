"""The files of a task, wherever they lie: loose in a folder, or in the tars and zips in it."""

import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitreous.data.archives import TAR_SUFFIXES
from vitreous.data.decode import BadImage
from vitreous.data.tars import Archive
from vitreous.data.vtab.containers import Container, Folder, Tar, Zip
from vitreous.data.vtab.tasks import Task
from vitreous.errors import InputError

ARCHIVES = (*TAR_SUFFIXES, ".zip")


@dataclass(frozen=True)
class Member:
    """A file wherever it lies."""

    container: Container
    name: str

    def __str__(self) -> str:
        return f"{self.container.path / self.name}"

    def bytes(self) -> bytes:
        """Its content, unpacked if the name ends in .gz."""
        try:
            data = self.container.read(self.name)
            return gzip.decompress(data) if self.name.endswith(".gz") else data
        except (OSError, EOFError, zlib.error, BadImage) as error:
            raise InputError(f"cannot read {self} ({error}); fetch it again") from None

    def lines(self) -> list[str]:
        """Its lines of text, stripped, without empty ones."""
        try:
            text = self.bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"{self} is no text; fetch it again") from None
        return [line.strip() for line in text.splitlines() if line.strip()]

    def archive(self) -> Archive:
        """Random access to its unpacked bytes."""
        if not isinstance(self.container, Folder):
            raise InputError(f"{self.name} is packed in {self.container.path}; unpack that once")
        return Archive(self.container.path / self.name)


class Files:
    """What was given for a task: a folder with the archives in it, or one archive."""

    def __init__(self, task: Task, path: Path):
        self.task = task
        self.path = path
        self.opened: list[Container] = []
        if path.is_dir():
            self.opened.append(Folder(path))
            packed = [path / name for name in self.opened[0].names if name.endswith(ARCHIVES) and "/" not in name]
            self.waiting = sorted(packed, key=os.path.getsize)  # labels before images
        elif path.is_file() and path.name.endswith(ARCHIVES):
            self.waiting = [path]
        else:
            raise InputError(f"{path} is no folder and no tar or zip; it needs {task.files}")

    def containers(self) -> Iterator[Container]:
        """The folder, then the archives in it, each opened when it is come to."""
        yield from self.opened
        while self.waiting:
            path = self.waiting.pop(0)
            self.opened.append(Zip(path) if path.name.endswith(".zip") else Tar(path))
            yield self.opened[-1]

    def find(self, *tails: str, packed: bool = True) -> Member | None:
        """The first file whose path ends with one of `tails`; if not `packed`, no further archive is opened for it."""
        for container in self.containers() if packed else list(self.opened):
            for tail in tails:
                for name in container.names:
                    if name.endswith(tail) and (len(name) == len(tail) or name[-len(tail) - 1] == "/"):
                        return Member(container, name)
        return None

    def need(self, *tails: str) -> Member:
        """`find`, or an error that says what the task needs.

        Raises:
            InputError: if there is no such file.
        """
        if (member := self.find(*tails)) is None:
            raise InputError(f"{self.path} lacks {tails[0]}; it needs {self.task.files}")
        return member

    def holding(self, stem: str) -> Container:
        """The first container with a file whose name begins with `stem`.

        Raises:
            InputError: if there is none.
        """
        for container in self.containers():
            if any(name.split("/")[-1].startswith(stem) for name in container.names):
                return container
        raise InputError(f"{self.path} lacks {stem}*; it needs {self.task.files}")

    def locate(self, tails: Sequence[str]) -> tuple[Container, list[str]]:
        """The container that holds the files of a list, and their whole names in it.

        Raises:
            InputError: if one of them is missing.
        """
        first = self.need(tails[0])
        prefix = first.name[: len(first.name) - len(tails[0])]
        names = [prefix + tail for tail in tails]
        present = set(first.container.names)
        if missing := [name for name in names if name not in present]:
            raise InputError(f"{first.container.path} lacks {missing[0]} ({len(missing)} of {len(names)} are missing)")
        return first.container, names

    def images(self, *suffixes: str) -> tuple[Container, list[str]]:
        """The first container that holds images in folders, and their names.

        Raises:
            InputError: if there is none.
        """
        for container in self.containers():
            if names := [name for name in container.names if "/" in name and name.lower().endswith(suffixes)]:
                return container, names
        raise InputError(f"{self.path} holds no images in class folders; it needs {self.task.files}")
