"""Tars: with the paths of class folders inside, or in WebDataset form (`key.jpg` beside `key.cls`)."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np

from vitreous.data.listing import IMAGE_SUFFIXES, Listing, class_name, is_junk, number, split_name
from vitreous.data.source import Archive, TarSource
from vitreous.errors import InputError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_SUFFIXES = (".cls", ".json", ".txt")
LABEL_FIELDS = ("label", "class", "cls", "target")


def list_archive(path: Path) -> Listing:
    """Every file of the tar at `path`; the last folder of a member's path is its class.

    A folder above that is called train, val, test or a synonym is its split. Links and other special
    members are skipped with a note.

    Raises:
        InputError: if the tar is broken or holds no labelled images.
    """
    archive = Archive(path)
    members, notes = tar_members(archive)
    labels = _side_labels(archive, members) or _folder_labels(members, notes)
    if not labels:
        raise InputError(f"{path} holds no class folders; its members need paths such as train/cat/1.jpg")
    names = list(labels)
    classes, numbers = number(list(labels.values()))
    source = TarSource(
        archive,
        names,
        offsets=np.array([members[name][0] for name in names]),
        sizes=np.array([members[name][1] for name in names]),
        classes=classes,
        labels=numbers,
    )
    return Listing(str(path), source, [_split(name) for name in names], notes)


def tar_members(archive: Archive) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Offset and size of the content of each regular member, by name; the last of equal names counts."""
    members: dict[str, tuple[int, int]] = {}
    notes: list[str] = []
    skipped = end = 0
    with archive.lock:
        file = archive.file()
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue] - or it keeps a kilobyte for each
                    name = member.name.removeprefix("./")
                    if member.isdir() or any(is_junk(part) for part in name.split("/")):
                        continue
                    if not member.isreg() or member.issparse():
                        skipped += 1
                        continue
                    if member.offset_data + member.size > length:
                        raise tarfile.ReadError("unexpected end of data")
                    members[name] = (member.offset_data, member.size)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise InputError(f"{archive.path} is no whole tar ({error}); fetch or pack it again") from None
    if skipped:
        notes.append(f"{skipped} links or special members of {archive.path.name} are skipped")
    if length == end:
        notes.append(f"{archive.path.name} lacks the mark that ends a tar: it may be cut short")
    return members, notes


def _folder_labels(members: dict[str, tuple[int, int]], notes: list[str]) -> dict[str, str]:
    labels = {name: class_name(name.split("/")[-2]) for name in members if "/" in name}
    strays = [name for name in members if "/" not in name and name.lower().endswith(IMAGE_SUFFIXES)]
    if labels and strays:
        notes.append(f"{len(strays)} images outside of class folders are not used: {strays[0]}")
    return labels


def _side_labels(archive: Archive, members: dict[str, tuple[int, int]]) -> dict[str, str]:
    """The label beside each image, where the tar is a WebDataset shard; else nothing."""
    images = [name for name in members if name.lower().endswith(IMAGE_SUFFIXES)]
    beside = {_key(name) + _suffix(name): name for name in members if _suffix(name) in LABEL_SUFFIXES}
    in_folders = any("/" in name for name in images)
    if not any(name.endswith(".cls") for name in beside) and (in_folders or not beside):
        return {}
    labels = {}
    for name in images:
        found = [beside[_key(name) + suffix] for suffix in LABEL_SUFFIXES if _key(name) + suffix in beside]
        texts = (_label(archive.read(*members[label]), _suffix(label)) for label in found)
        label = next((text for text in texts if text), None)
        if label is None:
            raise InputError(
                f"{archive.path}: {name} has no label beside it; add {_key(name)}.cls (or .json with a field label)"
            )
        labels[name] = class_name(label)
    return labels


def _label(data: bytes, suffix: str) -> str | None:
    text = data.decode("utf-8", "surrogateescape").strip()
    if suffix != ".json":
        return text
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    found = [fields[name] for name in LABEL_FIELDS if name in fields] if isinstance(fields, dict) else [fields]
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
