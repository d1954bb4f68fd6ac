"""Folders of torch.distributed.checkpoint: their tensors, from anywhere, so nothing in them is ever executed.

Such a folder has an index, `.metadata`, and files of tensors, whole or in parts as the processes held them. torch's own
reader unpickles the index and every object that is no tensor; both may run code. Here the index is taken apart with
stand-ins for the few classes that torch 2.11 to 2.15 write into it, and objects are left where they are.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitreous.errors import InputError

METADATA = ".metadata"
CLASSES = "torch.distributed.checkpoint.metadata"
RECORDS = frozenset(
    {
        *((CLASSES, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
        *((CLASSES, f"{name}StorageMetadata") for name in ("Tensor", "Chunk", "Bytes")),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        *((module, "PosixPath") for module in ("pathlib", "pathlib._local")),
        *((module, "WindowsPath") for module in ("pathlib", "pathlib._local")),
    }
)
"""Classes of which only the fields are kept."""
PLAIN: dict[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("torch.serialization", "_get_layout"): str,
    (CLASSES, "_MEM_FORMAT_ENCODING"): int,
    ("collections", "OrderedDict"): dict,
    **{("torch", str(kind).partition(".")[2]): kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)},
}
"""What stands for other names: types of Python's own, and torch's of numbers."""


class DistributedCheckpoint(Mapping[str, Tensor]):
    """The tensors of a folder by their names ("model.head.weight"), each read when it is asked for, and checked."""

    left: tuple[str, ...]
    """Names of the entries that are no tensors, which are not opened."""

    def __init__(self, folder: Path, entries: "dict[str, _Entry]", left: tuple[str, ...]) -> None:
        self._folder, self._entries, self.left = folder, entries, left

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Tensor:
        entry = self._entries[name]
        try:
            if [part.shape for part in entry.parts] == [entry.shape]:
                return self._read(entry.parts[0], entry.dtype)
            whole, filled = torch.empty(entry.shape, dtype=entry.dtype), torch.zeros(entry.shape, dtype=torch.bool)
            for part in entry.parts:
                place = tuple(slice(start, start + side) for start, side in zip(part.start, part.shape))
                whole[place], filled[place] = self._read(part, entry.dtype), True
        except pickle.UnpicklingError as error:
            raise InputError(f"{self._folder}: {name} is a pickle that would run code, so it is not opened") from error
        except OSError as error:
            raise InputError(f"cannot read {self._folder}: {error.strerror or _first_line(error)}") from error
        except Exception as error:  # zipfile and torch have many ways to say so
            raise InputError(f"{self._folder}: {name} is damaged ({_first_line(error)}); fetch it again") from error
        if not filled.all():
            raise InputError(f"{self._folder}: parts of {name} are missing; copy the files of all processes")
        return whole

    def _read(self, part: "_Part", dtype: torch.dtype) -> Tensor:
        with (self._folder / part.file).open("rb") as file:
            file.seek(part.offset)
            stored = io.BytesIO(file.read(part.length))
        with zipfile.ZipFile(stored) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed")
            if (wrong := archive.testzip()) is not None:  # torch itself does not look at the checksums it writes
                raise ValueError(f"the checksum of {wrong} differs")
        stored.seek(0)
        tensor = torch.load(stored, map_location="cpu", weights_only=True)
        if not isinstance(tensor, Tensor) or (tuple(tensor.shape), tensor.dtype) != (part.shape, dtype):
            raise ValueError(f"it is not what {METADATA} says")
        return tensor.detach()


def read_dcp(folder: Path) -> DistributedCheckpoint:
    """The tensors of a folder that torch.distributed.checkpoint wrote, however many processes did.

    Raises:
        InputError: if the folder has no index or files that it names, or the index is damaged or would run code.
    """
    path = folder / METADATA
    if not path.is_file():
        raise InputError(f"{folder} has no {METADATA}, so it was not written to the end; give a whole checkpoint")
    try:
        index = _Apart(path).load()
        entries, left = _entries(index, folder)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot read {error.filename or path}: {error.strerror or _first_line(error)}") from error
    except Exception as error:  # what garbage does to a machine of stacks cannot be listed
        raise InputError(f"{path} is damaged ({_first_line(error)}); fetch it again") from error
    return DistributedCheckpoint(folder, entries, left)


@dataclass(frozen=True)
class _Part:
    start: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class _Entry:
    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: tuple[_Part, ...]


class _Record:
    """A stand-in for an object: it keeps the fields that a pickle gives it, and does nothing."""

    fields: Any = None

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, fields: Any) -> None:
        self.fields = fields


class _Apart(pickle._Unpickler):  # the one in Python: a wrong number makes the one in C take gigabytes
    """An unpickler that knows no module: names are looked up in a list, whose entries do nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.BytesIO(path.read_bytes()))
        self.path = path
        self.records = {(module, name): type(name, (_Record,), {}) for module, name in RECORDS}  # anew: may be altered

    def find_class(self, module: str, name: str, /) -> Any:
        found = self.records.get((module, name), PLAIN.get((module, name)))
        if found is None:
            raise InputError(
                f"{self.path} names {ascii(f'{module}.{name}')[1:-1][:80]}, which no index of tensors needs and which "
                "could run code, so it is not opened; have the tensors saved as .safetensors"
            )
        return found


def _entries(index: Any, folder: Path) -> tuple[dict[str, _Entry], tuple[str, ...]]:
    """Where each tensor lies, and the names of what is no tensor."""
    stored = {
        (key.fields["fqn"], key.fields.get("offset")): place for key, place in index.fields["storage_data"].items()
    }
    sizes: dict[str, int] = {}
    entries, left = {}, []
    for name, entry in index.fields["state_dict_metadata"].items():
        if type(entry).__name__ == "BytesStorageMetadata":
            left.append(str(name))
            continue
        dtype, shape = entry.fields["properties"].fields[0], _sides(entry.fields["size"])
        parts = []
        for chunk in entry.fields["chunks"]:
            place = stored[name, chunk.fields["offsets"]].fields
            if place.get("transform_descriptors"):
                raise InputError(f"{folder} is written through an extension of torch; have it saved without")
            part = _Part(
                start=_sides(chunk.fields["offsets"]),
                shape=_sides(chunk.fields["sizes"]),
                file=_beside(place["relative_path"], folder),
                offset=place["offset"],
                length=place["length"],
            )
            end = sizes.setdefault(part.file, (folder / part.file).stat().st_size)
            _expect(len(part.start) == len(part.shape) == len(shape), "parts have other axes than the whole")
            _expect(all(a + n <= m for a, n, m in zip(part.start, part.shape, shape)), "a part lies outside the whole")
            _expect(part.offset >= 0 and part.offset + part.length <= end, f"{part.file} is too short")
            _expect(math.prod(part.shape) * dtype.itemsize <= part.length, "a part is larger than its place")
            parts.append(part)
        # before so much memory is asked for
        _expect(sum(math.prod(part.shape) for part in parts) >= math.prod(shape), f"parts of {name} are missing")
        entries[str(name)] = _Entry(dtype, shape, tuple(parts))
    return entries, tuple(left)


def _sides(numbers: Any) -> tuple[int, ...]:
    _expect(isinstance(numbers, tuple) and all(type(n) is int and n >= 0 for n in numbers), "a size is none")
    return numbers


def _beside(name: Any, folder: Path) -> str:
    if not isinstance(name, str) or Path(name).name != name or not (folder / name).is_file():
        raise InputError(
            f"{folder} lacks {ascii(name)[:80]}, which its {METADATA} names; copy the files of all processes"
        )
    return name


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)


def _first_line(error: Exception) -> str:
    return ascii(str(error).partition("\n")[0])[1:-1][:120] or type(error).__name__
