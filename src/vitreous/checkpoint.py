"""Checkpoints: tensors only, written beside and renamed, checked when they are read."""

import json
import os
import re
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from vitreous.errors import InputError
from vitreous.files import sync_folder, writing

OPTIONS = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Restored:
    """What a checkpoint says about the run beside its tensors."""

    step: int
    """Optimizer steps done."""
    seconds: float
    """Training time so far."""


class Checkpoints:
    """The `keep` newest checkpoints of one run, in `folder`/step-00000000.

    A checkpoint is a folder of `weights.safetensors`, `optimizer.safetensors` and `manifest.json`, which holds
    the CRC-32 of both. The folder gets its name once all of it is on the disk: a name means a whole checkpoint.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep
        self.damaged: list[Path] = []
        """What `restore` set aside."""

    def saved(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == "")

    def save(self, state: Restored, module: nn.Module, optimizer: Optimizer) -> Path:
        """Write a checkpoint, then delete the oldest ones.

        Raises:
            InputError: if the disk is full or read-only; the checkpoints written before are untouched.
        """
        target = self.folder / f"step-{state.step:08d}"
        if target.exists():
            return target
        temporary = target.with_suffix(f".{os.getpid()}.tmp")
        with writing(self.folder):
            try:
                temporary.mkdir(parents=True)
                tensors = {"weights": dict(module.state_dict()), "optimizer": _moments(module, optimizer)}
                checks = {name: _write(temporary / f"{name}.safetensors", t) for name, t in tensors.items()}
                manifest = {"format": 1, "step": state.step, "seconds": state.seconds, "crc32": checks}
                _write_synced(temporary / "manifest.json", json.dumps(manifest, indent=1).encode())
                sync_folder(temporary)
                temporary.rename(target)
                sync_folder(self.folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        for old in self.saved()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def restore(self, module: nn.Module, optimizer: Optimizer) -> Restored | None:
        """Load the newest whole checkpoint in place; None if there never was one.

        Damaged ones that are newer are renamed to `….damaged`.

        Raises:
            InputError: if all are damaged, or one cannot be read for another reason.
        """
        reasons: list[str] = []
        for path in reversed(self.saved()):
            try:
                manifest, weights, moments = _read(path)
            except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError) as error:
                self.damaged.append(path)
                reasons.append(f"{path.name}: {error}")
                continue
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}; see to it and try again") from error
            for damaged in self.damaged:
                shutil.rmtree(damaged.with_suffix(".damaged"), ignore_errors=True)
                damaged.rename(damaged.with_suffix(".damaged"))
            module.load_state_dict(weights)
            _set_moments(module, optimizer, moments)
            return Restored(manifest["step"], manifest["seconds"])
        if reasons or list(self.folder.glob("step-*.damaged")):
            why = "; ".join(reasons) or "they were set aside before"
            raise InputError(f"no checkpoint in {self.folder} is whole ({why}); begin again with another --out")
        return None


def _moments(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as tensors named parameter/moment; its settings come from the run's config instead."""
    state: Any = get_optimizer_state_dict(module, optimizer, options=OPTIONS)["state"]
    return {f"{name}/{moment}": tensor for name, moments in state.items() for moment, tensor in moments.items()}


def _set_moments(module: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, _, moment = path.rpartition("/")
        state.setdefault(name, {})[moment] = tensor
    settings = get_optimizer_state_dict(module, optimizer, options=OPTIONS)
    set_optimizer_state_dict(module, optimizer, {**settings, "state": state}, options=OPTIONS)  # pyright: ignore[reportArgumentType]


def _write(path: Path, tensors: dict[str, Tensor]) -> int:
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:  # what the disk said is only in its text
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return _crc32(path)


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    manifest = json.loads((path / "manifest.json").read_bytes())
    if f"step-{manifest['step']:08d}" != path.name or float(manifest["seconds"]) < 0:
        raise ValueError("manifest.json has changed since it was written")
    for name in ("weights", "optimizer"):
        if _crc32(path / f"{name}.safetensors") != manifest["crc32"][name]:
            raise ValueError(f"{name}.safetensors has changed since it was written")
    return manifest, load_file(path / "weights.safetensors"), load_file(path / "optimizer.safetensors")


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value
