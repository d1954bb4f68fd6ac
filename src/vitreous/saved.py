"""One checkpoint as it lies on the disk: a part of each process, and a manifest that vouches for every byte."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from vitreous.errors import InputError

FORMAT = 2


@dataclass(frozen=True)
class Holding:
    """What of a tensor lies in this process: rows `start` to `start` + `rows` of its first axis."""

    local: Tensor
    shape: tuple[int, ...]
    start: int

    @classmethod
    def of(cls, tensor: Tensor) -> "Holding":
        """The part of `tensor` in this process; of a plain tensor, all."""
        if not isinstance(tensor, DTensor):
            return cls(tensor.detach(), tuple(tensor.shape), 0)
        mesh = tensor.device_mesh
        assert tensor.placements == (Shard(0),), "fully_shard divides the first axis"
        each = -(-tensor.shape[0] // mesh.size())
        start = min(mesh.get_local_rank() * each, tensor.shape[0])
        return cls(tensor.to_local().detach(), tuple(tensor.shape), start)


@dataclass(frozen=True)
class Saved:
    """One whole checkpoint: its bytes are those that were written."""

    path: Path
    manifest: dict[str, Any]

    @property
    def state(self) -> dict[str, Any]:
        """What was saved beside the tensors, as plain JSON; "step" is the number of steps done."""
        return self.manifest["state"]

    @property
    def shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Each tensor's type and whole shape."""
        return {
            name: (getattr(torch, dtype), tuple(shape)) for name, (dtype, shape) in self.manifest["tensors"].items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill `tensors`, or the parts of them that lie in this process.

        Raises:
            InputError: if the checkpoint holds other tensors.
        """
        wanted = {name: Holding.of(tensor) for name, tensor in tensors.items()}
        theirs = {name: shape for name, (_, shape) in self.shapes.items()}
        if theirs != (ours := {name: holding.shape for name, holding in wanted.items()}):
            odd = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
            raise InputError(
                f"{self.path} is of another model: {odd[0]} and {len(odd) - 1} more differ; choose another --out"
            )
        for file, entry in self.manifest["files"].items():
            with safe_open(self.path / file, framework="pt") as opened:
                for name, start in entry["starts"].items():
                    _copy_rows(opened, name, start, wanted[name])


def _copy_rows(opened: Any, name: str, start: int, holding: Holding) -> None:
    part = opened.get_slice(name)
    if not holding.shape:
        holding.local.copy_(opened.get_tensor(name))
        return
    rows = part.get_shape()[0]
    first, last = max(start, holding.start), min(start + rows, holding.start + holding.local.shape[0])
    if first < last:
        holding.local[first - holding.start : last - holding.start].copy_(part[first - start : last - start])


def read_manifest(path: Path) -> dict[str, Any]:
    """What manifest.json in the checkpoint `path` says.

    Raises:
        ValueError: if a byte of it has changed since it was written.
    """
    data = (path / "manifest.json").read_bytes()
    try:
        manifest = json.loads(data)["manifest"]
        same = sealed(manifest) == data
    except (ValueError, KeyError, TypeError, RecursionError):
        same = False
    if not same:
        raise ValueError("manifest.json has changed since it was written")
    if manifest["format"] != FORMAT:
        raise ValueError("it was written by another version")
    if f"step-{manifest['state']['step']:08d}" != path.name:
        raise ValueError("manifest.json is that of another step")
    return manifest


def sealed(manifest: dict[str, Any]) -> bytes:
    """What manifest.json holds: `manifest` and its own CRC-32."""
    text = json.dumps(manifest)
    return f'{{"manifest": {text}, "crc32": {zlib.crc32(text.encode())}}}\n'.encode()


def crc32(path: Path) -> int:
    """The CRC-32 of a file."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
