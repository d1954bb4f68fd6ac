"""Files that are written whole or not at all."""

import csv
import errno
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from vitreous.errors import InputError


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`: a reader sees the old file or the new one, also after a power cut.

    Raises:
        InputError: if the disk is full or `path` cannot be written; whatever stood there still does.
    """
    path = Path(os.path.realpath(path))  # where a link leads, so that it stays a link
    temporary = path.with_name(f".{path.name[:80]}.{os.getpid()}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of `text` in UTF-8; bytes that are no text (odd file names) are kept as they are."""
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder with exactly these files at `folder`: a reader sees the old folder or the new one, whole.

    Raises:
        InputError: if the disk is full or `folder` cannot be written; whatever stood there still does.
    """
    folder = Path(os.path.realpath(folder))  # where a link leads, so that it stays a link
    new = folder.with_name(f".{folder.name[:80]}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name[:80]}.{os.getpid()}.old")
    try:
        for name, data in files.items():
            write_bytes(new / name, data)
        with writing(folder):
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
            sync_folder(folder.parent)
    finally:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read_text(path: Path) -> str:
    """What `write_text` wrote: UTF-8, line ends and odd bytes as they are."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def check_writable(path: Path) -> None:
    """See before long work that a file can be written at `path`.

    Raises:
        InputError: if it is a folder, or the folder it goes to cannot be written.
    """
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give the name of a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with writing(path), tempfile.TemporaryFile(dir=folder):
        pass


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (POSIX; elsewhere renames are as durable as they get)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV with a line feed after each; whatever a cell holds, `csv.reader` reads it back."""
    text = io.StringIO()
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=q) for q in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    for row in rows:  # Python 3.11 does not quote a carriage return by itself
        (quoted if any("\r" in str(cell) for cell in row) else plain).writerow(row)
    return text.getvalue()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write `path` into an `InputError` that says what to do."""
    reasons = {
        errno.ENOSPC: "the disk is full; free some space, or choose another place",
        errno.EDQUOT: "your disk quota is used up; free some space, or choose another place",
        errno.EIO: "the disk fails; see to it, or choose another place",
        errno.EFBIG: "it is larger than a file may be there; choose another place",
        errno.EBUSY: "something is mounted there or holds it; choose a folder in it, or another place",
        errno.EROFS: "the file system is read-only; choose another place",
        errno.EACCES: "you may not write there; choose another place",
        errno.EPERM: "you may not write there; choose another place",
        errno.ENOTDIR: "a part of that path is a file; choose another place",
        errno.EEXIST: "a part of that path is a file; choose another place",
        errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    }
    try:
        yield
    except OSError as error:
        if error.errno in reasons:
            raise InputError(f"cannot write {path}: {reasons[error.errno]}") from error
        raise
