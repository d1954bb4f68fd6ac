"""Tars: with the paths of class folders inside, or in WebDataset form (`key.jpg` beside `key.cls`)."""

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitreous.data.label_sets import Label
from vitreous.data.listing import IMAGE_SUFFIXES, Listing, class_name, is_junk, numbered, split_name
from vitreous.data.tars import Archive, TarSource
from vitreous.errors import InputError, some

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_SUFFIXES = (".cls", ".json", ".txt")
MAX_HEADER_BYTES = 1_000_000
"""Of one header or label: none has more unless it is damaged or made to do harm."""
MAX_NAME = 4096
"""Characters of a member's name; no file system takes more."""
LABEL_FIELDS = ("label", "class", "cls", "target", "labels", "classes", "tags")


def list_archive(path: Path) -> Listing:
    """Every file of the tar at `path`; the last folder of a member's path is its class.

    A folder above that is called train, val, test or a synonym is its split. Links and other special
    members are skipped with a note.

    Raises:
        InputError: if the tar is broken or holds no images.
    """
    archive = Archive(path)
    found = labelled_members(archive)
    if not found.labels:
        raise InputError(
            f"{path} holds no images; its members need paths such as train/cat/1.jpg, "
            "or a label beside each image (1.jpg, 1.cls)"
        )
    names = list(found.labels)
    classes, numbers, sets = numbered(list(found.labels.values()))
    source = TarSource(
        archive,
        names,
        offsets=np.array([found.members[name][0] for name in names]),
        sizes=np.array([found.members[name][1] for name in names]),
        classes=classes,
        labels=numbers,
    )
    source.sets = sets
    return Listing(str(path), source, found.splits, found.notes)


@dataclass(frozen=True)
class Members:
    """What one tar holds."""

    members: dict[str, tuple[int, int]]
    """Offset and size of every regular member's content, by its name."""
    labels: dict[str, Label]
    """The class of every image, or its classes, by its name; None where nothing tells them."""
    notes: list[str]

    @property
    def splits(self) -> list[str]:
        """What folders within the tar say of the split of every image, or empty."""
        return [_split(name) for name in self.labels]


def labelled_members(archive: Archive) -> Members:
    """The images of a tar with their classes: by the label beside each, else by folders, else without.

    Raises:
        InputError: if the tar is broken, or some of its images have a label beside them and others not.
    """
    members, notes = tar_members(archive)
    labels = _side_labels(archive, members, notes) or _folder_labels(members, notes)
    if not labels and (images := [name for name in members if name.lower().endswith(IMAGE_SUFFIXES)]):
        notes.append(f"{archive.path.name} has no class folders, and no label beside an image: images have no labels")
        labels = dict.fromkeys(images)
    return Members(members, labels, notes)


class _Headers:
    """A tar for `tarfile` to read headers from; one that claims an absurd size is refused before it takes memory."""

    def __init__(self, file: BinaryIO):
        self.tell, self.seek, self.file = file.tell, file.seek, file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def tar_members(archive: Archive) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Offset and size of the content of each regular member, by name; the last of equal names counts."""
    members: dict[str, tuple[int, int]] = {}
    notes: list[str] = []
    outside: list[str] = []
    skipped = twice = end = 0
    with archive.lock:
        file = archive.file()
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
                while (member := tar.next()) is not None:
                    if member.size < 0 or tar.offset <= end:
                        raise tarfile.ReadError("a header leads back to an earlier one")
                    end = tar.offset
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - or it keeps a kilobyte for each
                    name = member.name.removeprefix("./")
                    if len(name) > MAX_NAME:
                        raise tarfile.ReadError(f"a name of {len(name):,} characters")
                    parts = name.split("/")
                    if ".." in parts:
                        outside.append(name)
                        continue
                    if member.isdir() or any(map(is_junk, parts)):
                        continue
                    if not member.isreg() or member.issparse():
                        skipped += 1
                        continue
                    if member.offset_data + member.size > length:
                        raise tarfile.ReadError("unexpected end of data")
                    twice += name in members
                    members[name] = (member.offset_data, member.size)
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):  # where tarfile stops without a word
                    raise tarfile.ReadError(f"a damaged header at byte {tar.offset:,}")
                if file.read(MAX_HEADER_BYTES).lstrip(b"\0")[257:262] == b"ustar":  # as `cat a.tar b.tar` makes it
                    raise tarfile.ReadError("more members follow behind the mark that ends it")
        except (tarfile.TarError, OSError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise InputError(f"{archive.path} is no whole tar ({error}); fetch or pack it again") from None
    if skipped:
        notes.append(f"{skipped} links or special members of {archive.path.name} are skipped")
    if outside:
        notes.append(f"{len(outside)} members of {archive.path.name} lead out of it and are skipped: {outside[0]}")
    if twice:
        notes.append(f"{twice} members of {archive.path.name} bear the name of an earlier one, which does not count")
    if length == end:
        notes.append(f"{archive.path.name} lacks the mark that ends a tar: it may be cut short")
    return members, notes


def _folder_labels(members: dict[str, tuple[int, int]], notes: list[str]) -> dict[str, Label]:
    labels: dict[str, Label] = {name: class_name(name.split("/")[-2]) for name in members if "/" in name}
    strays = [name for name in members if "/" not in name and name.lower().endswith(IMAGE_SUFFIXES)]
    if labels and strays:
        notes.append(f"{len(strays)} images outside of class folders are not used: {strays[0]}")
    return labels


def _side_labels(archive: Archive, members: dict[str, tuple[int, int]], notes: list[str]) -> dict[str, Label]:
    """The label beside each image, where the tar is a WebDataset shard; else nothing."""
    images = [name for name in members if name.lower().endswith(IMAGE_SUFFIXES)]
    beside = {_key(name) + _suffix(name): name for name in members if _suffix(name) in LABEL_SUFFIXES}
    in_folders = any("/" in name for name in images)
    if not any(name.endswith(".cls") for name in beside) and (in_folders or not beside):
        return {}
    labels: dict[str, Label] = {}
    for name in images:
        found = [beside[_key(name) + suffix] for suffix in LABEL_SUFFIXES if _key(name) + suffix in beside]
        if absurd := [label for label in found if members[label][1] > MAX_HEADER_BYTES]:
            raise InputError(
                f"{archive.path}: the label {absurd[0]} has {members[absurd[0]][1]:,} bytes; give its class"
            )
        told = (_label(archive.read(*members[label]), _suffix(label)) for label in found)
        label = next((one for one in told if one or isinstance(one, tuple)), None)
        if label is None:
            raise InputError(
                f"{archive.path}: {name} has no label beside it; add {_key(name)}.cls (or .json with a field label)"
            )
        labels[name] = tuple(map(class_name, label)) if isinstance(label, tuple) else class_name(label)
    keys = set(map(_key, images))
    if len(keys) < len(images):
        notes.append(f"{len(images) - len(keys)} images of {archive.path.name} share their label with another")
    if lonely := [label for label in beside.values() if _key(label) not in keys]:
        notes.append(f"{len(lonely)} labels of {archive.path.name} have no image: {some(lonely, most=1)}")
    return labels


def _label(data: bytes, suffix: str) -> Label:
    text = data.decode("utf-8", "surrogateescape").strip()
    if suffix != ".json":
        return text
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = [fields[name] for name in LABEL_FIELDS if name in fields] if isinstance(fields, dict) else [fields]
    if found and isinstance(found[0], list) and all(isinstance(one, str | int) for one in found[0]):
        return tuple(map(str, found[0]))
    return str(found[0]) if found and isinstance(found[0], str | int) else None


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.split(".")[0]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _split(name: str) -> str:
    folders = name.split("/")[:-1]
    above = folders[:-1] if len(folders) > 1 else []
    return next((split_name(folder) for folder in above if split_name(folder)), "")
