"""What stands where in a folder of packed shards: one file of arrays, read whole and trusted in nothing.

A file of NumPy's npz form, stored without compression, is 53 MB for a million images and is read in 0.1 s; the same
as JSON is 70 MB and takes 1.2 s. Its members are `about` (JSON in UTF-8) and one array each of what is told of images,
in the order of the shards: `offsets` and `sizes` of the encoded image in its shard, `labels`, `checksums` (CRC-32 of
the image) and its name in the data that were packed, as `name_lengths` and `name_text`.
"""

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitreous.data.decode import BadImage, read_file
from vitreous.data.label_sets import LabelSets
from vitreous.data.names import Names
from vitreous.errors import InputError

INDEX = "vitreous-index.npz"
FORMAT = 1
FORMAT_OF_SETS = 2
"""Of images that may show several classes; what reads the first alone refuses it."""
SHARD = re.compile(r"(train|val|test)-[0-9]{6,9}\.tar")
DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, ArithmeticError, RuntimeError)
"""What readers of zip, npy and JSON raise at bytes that are none, beside TypeError and ValueError."""
OF_IMAGES = ("offsets", "sizes", "labels", "checksums")
ARRAYS = {"offsets": "<i8", "sizes": "<u4", "labels": "<i4", "checksums": "<u4", "name_lengths": "<u4"}
ARRAYS_OF_SETS = {"set_ends": "<i8", "set_members": "<i8"}
"""Beside those, where an image may show several classes; then `labels` are positions of sets."""


@dataclass(frozen=True)
class Shard:
    """One tar, and which images of the packed data went into it."""

    name: str
    num_images: int
    num_bytes: int
    checksum: int
    """CRC-32 of the whole file."""
    start: int
    """Position of its first image in the split of the packed data; those up to `stop` are in it, or bad."""
    stop: int
    first_key: int
    """The number by which its first image is called; the others count on."""
    bad: tuple[tuple[str, str], ...] = ()
    """Name and reason of each image that could not be read."""

    @property
    def split(self) -> str:
        """train, val or test."""
        return self.name.partition("-")[0]


@dataclass(frozen=True)
class Index:
    """The shards of a folder and the images in them."""

    plan: str
    """Equal for equal data and settings, so that a pack which was cut short can go on."""
    classes: tuple[str, ...]
    shards: tuple[Shard, ...]
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    checksums: np.ndarray
    names: Names
    sets: LabelSets | None = None

    @property
    def starts(self) -> list[int]:
        """The row of each shard's first image, and the number of all."""
        return np.cumsum([0, *(shard.num_images for shard in self.shards)]).tolist()

    def only(self, chosen: Sequence[int]) -> "Index":
        """The shards of these numbers alone."""
        starts = self.starts
        rows = np.concatenate([np.arange(starts[k], starts[k + 1]) for k in chosen])
        shards = tuple(self.shards[k] for k in chosen)
        arrays = {name: getattr(self, name)[rows] for name in OF_IMAGES}
        names = Names([self.names[row] for row in rows])
        return Index(self.plan, self.classes, shards, names=names, sets=self.sets, **arrays)

    def encoded(self) -> bytes:
        """The bytes of its file: equal for equal indices."""
        number = FORMAT if self.sets is None else FORMAT_OF_SETS
        about: dict[str, Any] = {"format": number, "plan": self.plan, "classes": self.classes}
        about["num_images"] = {
            split: sum(shard.num_images for shard in self.shards if shard.split == split)
            for split in dict.fromkeys(shard.split for shard in self.shards)
        }
        about["shards"] = [asdict(shard) for shard in self.shards]
        arrays = {name: getattr(self, name) for name in OF_IMAGES} | {"name_lengths": np.diff(self.names.ends)}
        kinds = ARRAYS
        if self.sets is not None:
            arrays |= {"set_ends": self.sets.ends, "set_members": self.sets.members}
            kinds = ARRAYS | ARRAYS_OF_SETS
        texts = {"about": json.dumps(about).encode(), "name_text": self.names.text}
        file = io.BytesIO()
        np.savez(
            file,
            allow_pickle=False,
            **{name: np.frombuffer(text, np.uint8) for name, text in texts.items()},
            **{name: arrays[name].astype(kind, copy=False) for name, kind in kinds.items()},
        )
        return file.getvalue()


def joined(parts: Sequence[Index]) -> Index:
    """The shards of all parts, which are of one plan, in that order."""
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in OF_IMAGES}
    lengths = np.concatenate([np.diff(part.names.ends) for part in parts])
    names = Names.of(np.concatenate([part.names.text for part in parts]), lengths)
    first, shards = parts[0], sum((part.shards for part in parts), ())
    return Index(first.plan, first.classes, shards, names=names, sets=first.sets, **arrays)


def read_index(path: Path) -> Index:
    """The index at `path`; every number in it lies within what the index itself says of its shards.

    Raises:
        InputError: if it cannot be read, is damaged, or of a later version.
    """
    try:
        found = _members(read_file(path))
        about = json.loads(found["about"].tobytes())
        if about["format"] not in (FORMAT, FORMAT_OF_SETS):
            raise InputError(
                f"{path} has format {about['format']}, this vitreous reads up to {FORMAT_OF_SETS}; update vitreous"
            )
        shards = tuple(
            Shard(**{**fields, "bad": tuple((str(name), str(reason)) for name, reason in fields["bad"])})
            for fields in about["shards"]
        )
        names = Names.of(found["name_text"], found["name_lengths"])
        arrays = {name: found[name] for name in OF_IMAGES}
        classes = tuple(map(str, about["classes"]))
        sets = None
        if about["format"] == FORMAT_OF_SETS:
            sets = LabelSets(found["set_members"], ends=found["set_ends"])
            sets.check(num_classes=len(classes))
        index = Index(str(about["plan"]), classes, shards, names=names, sets=sets, **arrays)
        _check(index)
    except BadImage as error:
        raise InputError(f"cannot read {path}: {error}; copy it again") from None
    except InputError:
        raise
    except (*DAMAGE, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path} is damaged ({reason}); copy it again, or remove it to have the tars read without it"
        ) from None
    return index


def _members(data: bytes) -> dict[str, np.ndarray]:
    """The arrays in an npz file, each no larger than the file: NumPy would unpack and allocate what a header claims."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        kinds = {"about": "|u1", **ARRAYS, "name_text": "|u1"}
        if any(f"{name}.npy" in file.namelist() for name in ARRAYS_OF_SETS):
            kinds |= ARRAYS_OF_SETS
        for name, kind in kinds.items():
            info = file.getinfo(f"{name}.npy")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > len(data):
                raise ValueError(f"{name} is compressed")
            content = io.BytesIO(file.read(info))
            if np.lib.format.read_magic(content) != (1, 0):
                raise ValueError(f"{name} is of another version")
            shape, _, dtype = np.lib.format.read_array_header_1_0(content)
            rest = content.getbuffer()[content.tell() :]
            if dtype != np.dtype(kind) or shape != (len(rest) // dtype.itemsize,) or len(rest) % dtype.itemsize:
                raise ValueError(f"{name} is {dtype} of shape {shape} in {len(rest):,} bytes")
            found[name] = np.frombuffer(rest, dtype)
    return found


def _check(index: Index) -> None:
    """Raise ValueError where numbers do not fit together."""
    for shard in index.shards:
        if not SHARD.fullmatch(shard.name):
            raise ValueError(f"no name of a shard: {shard.name[:80]!r}")
        numbers = (shard.num_images, shard.num_bytes, shard.checksum, shard.start, shard.stop, shard.first_key)
        if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
            raise ValueError(f"{shard.name} has impossible numbers")
    counts = [shard.num_images for shard in index.shards]
    if {sum(counts), len(index.names), *(len(getattr(index, name)) for name in OF_IMAGES)} != {sum(counts)}:
        raise ValueError("its parts tell of different numbers of images")
    if len({shard.name for shard in index.shards}) < len(index.shards):
        raise ValueError("it names a shard twice")
    ends = np.repeat(np.array([shard.num_bytes for shard in index.shards], dtype=np.int64), counts)
    outside = (index.offsets < 512) | (index.offsets > ends - index.sizes.astype(np.int64))
    if outside.any():
        raise ValueError(f"image {int(outside.argmax()):,} lies outside of its shard")
    if ((index.labels < -1) | (index.labels >= len(index.classes if index.sets is None else index.sets))).any():
        raise ValueError("it has labels beyond its classes")
    if index.names.ends[-1] != len(index.names.text):
        raise ValueError("names do not fit their lengths")
