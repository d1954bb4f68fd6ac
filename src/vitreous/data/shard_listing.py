"""Which images stand in many tars: by the index of a pack, or by the headers of any shards in WebDataset form."""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from vitreous.data.archives import TAR_SUFFIXES, labelled_members
from vitreous.data.folders import children
from vitreous.data.listing import Listing, numbered, split_name
from vitreous.data.names import Names
from vitreous.data.shard_index import INDEX, Index, read_index
from vitreous.data.shards import Files, ShardSource
from vitreous.data.tars import Archive
from vitreous.errors import InputError, some

MAX_SHARDS = 1_000_000


def list_shard_folder(folder: Path) -> Listing | None:
    """The images of a folder that holds an index, or tars and no folders; None for any other.

    Raises:
        InputError: as for `list_shards`.
    """
    if (folder / INDEX).is_file():
        return _packed(folder, read_index(folder / INDEX), given=str(folder))
    folders, files = children(folder)
    tars = sorted(name for name in files if name.lower().endswith(TAR_SUFFIXES))
    plain = not folders and any(name.lower().endswith(".tar") for name in tars)
    return plain_shards([folder / name for name in tars], given=str(folder)) if plain else None


def braces(pattern: str) -> list[str]:
    """What `{000..012}` and `{a,b}` in `pattern` stand for, as shells and WebDataset read them.

    Raises:
        InputError: if the braces cannot be read so.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices: list[list[str]] = []
    total = 1
    for k, part in enumerate(parts):
        between = re.fullmatch(r"([0-9]{1,18})\.\.([0-9]{1,18})", part) if k % 2 else None
        if between:
            first, last = map(int, between.groups())
            total *= max(last - first + 1, 0)
            numbers = range(first, last + 1) if total <= MAX_SHARDS else range(0)
            choices.append([f"{n:0{len(between[1])}}" for n in numbers])
        else:
            choices.append(part.split(",") if k % 2 else [part])
            total *= len(choices[-1])
        if not 0 < total <= MAX_SHARDS or any(mark in part for mark in "{}"):
            raise InputError(f"cannot read the braces of {pattern}; write train-{{000000..000012}}.tar or {{a,b}}.tar")
    return ["".join(chosen) for chosen in product(*choices)]


def list_shards(paths: Sequence[Path], *, given: str) -> Listing:
    """The images of tars: by the index in their folder if it names all of them, else by the headers of each.

    The split of a tar is the first of the words train, val, test and synonyms in its name (`train-000000.tar`); where
    there is none, folders within it say. `given` is what the user called them.

    Raises:
        InputError: if a tar is missing, broken, gzip'ed, not the one of its index, or lacks labels that others have.
    """
    return list_indexed(paths, given=given) or plain_shards(paths, given=given)


def list_indexed(paths: Sequence[Path], *, given: str) -> Listing | None:
    """The images of tars that one index tells of; None if there is none, or it does not name all of them."""
    folder = paths[0].parent
    if any(path.parent != folder for path in paths) or not (folder / INDEX).is_file():
        return None
    index = read_index(folder / INDEX)
    numbers = {shard.name: k for k, shard in enumerate(index.shards)}
    if any(path.name not in numbers for path in paths):
        return None
    return _packed(folder, index.only(sorted({numbers[path.name] for path in paths})), given=given)


def _packed(folder: Path, index: Index, *, given: str) -> Listing:
    paths = [folder / shard.name for shard in index.shards]
    _check_there(paths, given)
    for path, shard in zip(paths, index.shards):
        if (length := path.stat().st_size) != shard.num_bytes:
            raise InputError(f"{path} has {length:,} bytes, its index says {shard.num_bytes:,}; fetch or pack it again")
    return indexed_shards(index, Files(paths), given=given)


def indexed_shards(index: Index, files: Files, *, given: str) -> Listing:
    """The images of `files`, which are the shards that `index` tells of.

    Raises:
        InputError: if some have a label and others have none.
    """
    without = np.flatnonzero(index.labels < 0)
    if 0 < len(without) < len(index.labels):
        raise InputError(
            f"{len(without):,} of {len(index.labels):,} images in {given} have no label ({index.names[without[0]]}); "
            "pack labelled images, or unlabelled ones alone"
        )
    source = ShardSource(
        files,
        index.names,
        starts=index.starts,
        offsets=index.offsets,
        sizes=index.sizes,
        classes=index.classes,
        labels=index.labels,
        checksums=index.checksums,
        first_keys=[shard.first_key for shard in index.shards],
    )
    source.sets = index.sets
    splits = [split for shard in index.shards for split in [shard.split] * shard.num_images]
    return Listing(given, source, splits, [])


def plain_shards(paths: Sequence[Path], *, given: str, files: Files | None = None) -> Listing:
    """The images of tars by the headers of each; later they are read from `files`, by default those at `paths`.

    Raises:
        InputError: as for `list_shards`.
    """
    _check_there(paths, given)
    names, labels, splits, notes, starts = [], [], [], [], [0]
    offsets, sizes, without = [], [], []
    for path in paths:
        _check_plain(path)
        found = labelled_members(Archive(path))
        notes += found.notes
        if not found.labels and not found.members:
            notes.append(f"{path.name} is empty")
        elif all(label is None for label in found.labels.values()):
            without.append(path)
        split = named_split(path.name)
        names += [f"{path.name}/{name}" for name in found.labels]
        labels += found.labels.values()
        splits += [split] * len(found.labels) if split else found.splits
        offsets += [found.members[name][0] for name in found.labels]
        sizes += [found.members[name][1] for name in found.labels]
        starts.append(len(names))
    if not names:
        raise InputError(f"{given}: {len(paths):,} tars hold no images; give shards with 1.jpg and 1.cls, or others")
    if without and any(label is not None for label in labels):
        raise InputError(
            f"{without[0]} holds no labelled images, other tars do; it needs a label beside each image "
            "(1.jpg, 1.cls), or paths such as cat/1.jpg"
        )
    classes, numbers, sets = numbered(labels)
    source = ShardSource(
        files or Files(paths),
        Names(names),
        starts=starts,
        offsets=np.array(offsets, dtype=np.int64),
        sizes=np.array(sizes, dtype=np.int64),
        classes=classes,
        labels=numbers,
    )
    source.sets = sets
    return Listing(given, source, splits, notes)


def named_split(name: str) -> str:
    """The split that the name of a tar tells, or empty."""
    return next(filter(None, map(split_name, re.split(r"[-_.]", name))), "")


def _check_there(paths: Sequence[Path], given: str) -> None:
    """Refuse what is missing, or would have to be waited for."""
    if missing := [str(path) for path in paths if not path.exists()]:
        raise InputError(f"{given}: {len(missing):,} of {len(paths):,} tars are missing ({some(missing, most=2)})")
    if strange := [str(path) for path in paths if not path.is_file()]:
        raise InputError(f"{strange[0]} is not a regular file; give tars alone")


def _check_plain(path: Path) -> None:
    """Refuse what cannot be read at random places."""
    with open(path, "rb") as file:
        if path.suffix.lower() != ".tar" or file.read(2) == b"\x1f\x8b":
            raise InputError(f"{path} is gzip'ed, and shards are read at random places; unpack it with gunzip first")
