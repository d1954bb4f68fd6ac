"""Checkpoints: tensors only, written beside and renamed, checked byte for byte before they are read.

Every process writes the part of the state that lies in it, so writing is shared out; any number of processes, holding
the weights in any way, reads it back.
"""

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from vitreous.config import Config, check_ranges
from vitreous.distributed import World
from vitreous.errors import InputError, SaidElsewhere
from vitreous.files import sync_folder, writing
from vitreous.saved import FORMAT, Holding, Saved, crc32, read_manifest, sealed

POLL_S = 0.005
"""How often a checkpoint that is waited for is looked at."""
IDLE, READY, FAILED, AT_WORK = range(4)
"""How far a process is with writing a checkpoint. The highest of all counts: nobody goes on while one is at work."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Config):
    """When checkpoints are written and which are kept."""

    every_s: float = 60.0
    """Seconds between checkpoints; one is also written at the end and when training is stopped."""
    keep_last: int = 2
    """How many of the newest are kept; more than one, so that a damaged one costs minutes only."""
    keep_best: bool = False
    """Whether one is written whenever held-out accuracy is the best so far, and the best of them is kept."""
    background: bool = True
    """Whether training goes on while one is written, from a copy in memory."""

    def __post_init__(self) -> None:
        check_ranges(self, every_s=(0, math.inf), keep_last=(1, math.inf))


class Checkpoints:
    """The checkpoints of one run, in `folder`/step-00000000.

    A checkpoint is a folder with a safetensors file of each process and `manifest.json`, which holds size and CRC-32 of
    every file and of itself. The folder gets its name once all of it is on the disk: a name means a whole checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        *,
        world: World,
        config: CheckpointConfig,
        identity: str = "",
        circumstances: Mapping[str, Any] | None = None,
        copies: int = 1,
        copy: int = 0,
        attempt: int = 0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`identity` tells runs apart; `circumstances` are what equal bits depend on; `check` refuses a late writer."""
        self.folder, self.world, self.config = folder, world, config
        self.identity, self.circumstances = identity, dict(circumstances or {})
        self.copies, self.copy, self.attempt, self.check = copies, copy, attempt, check
        self.damaged: dict[Path, str] = {}
        """What `newest` set aside, with the reason."""
        self.newest_step = 0
        self._writing: _Writing | None = None
        self._thread: ThreadPoolExecutor | None = None

    def saved(self) -> list[Path]:
        """Finished checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.suffix == "")

    def save(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Write a checkpoint and wait until it is whole; then delete those that are not kept.

        Raises:
            InputError: if the disk is full or read-only; the checkpoints written before are untouched.
        """
        with suppress(InputError):  # what became of the one before says nothing about this one
            self.finish()
        if state["step"] != self.newest_step:
            self._begin(state, tensors, copy=False)
            self.finish()

    def begin(self, state: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Begin to write a checkpoint from a copy of `tensors`; `proceed` and `finish` bring it to its end."""
        assert self._writing is None
        if state["step"] != self.newest_step:
            self._begin(state, tensors, copy=True)

    def phase(self) -> int:
        """How far this process is with writing, for all to agree on the highest: IDLE, READY, AT_WORK or FAILED."""
        return IDLE if self._writing is None else self._writing.phase()

    def proceed(self, phase: int) -> None:
        """Take the next step towards a finished checkpoint, given the highest `phase` of all processes.

        Raises:
            InputError: in every process, if one failed to write.
        """
        current = self._writing
        if phase == READY and current is not None:
            if current.commit is None:
                current.commit = self._run(lambda: self._commit(current) if self.world.is_main else None)
            else:
                self._writing, self.newest_step = None, current.state["step"]
        if phase == FAILED:
            self._writing = None
            if current is not None:
                if self.world.is_main:
                    shutil.rmtree(current.folder, ignore_errors=True)
                current.raise_error()
            if not self.world.is_main:
                raise SaidElsewhere("process 0 says that another could not write")
            raise InputError("another process could not write its part of the checkpoint")

    def finish(self) -> None:
        """Wait until a checkpoint that is being written is whole.

        Raises:
            InputError: in every process, if one failed to write.
        """
        while (phase := self.world.highest(lambda: [self.phase()]).read()[0]) != IDLE:
            if phase == AT_WORK:  # wait here: in a collective, the others would give up
                time.sleep(POLL_S)
            self.proceed(phase)

    def newest(self, *, most: int | None = None) -> Saved | None:
        """The newest whole checkpoint; None if there never was one, or, given `most`, none of at most so many steps.

        Damaged ones that are newer are in `damaged` then.

        Raises:
            InputError: if all are damaged and `most` is not given, or one cannot be read for another reason.
        """
        names = self.world.on_main(lambda: [path.name for path in self.saved()])
        if most is not None:
            names = [name for name in names if name[5:].isdecimal() and int(name[5:]) <= most]
        for name in reversed(names):
            path = self.folder / name
            manifest, reason = None, ""
            try:
                manifest = read_manifest(path)
                self._verify(path, manifest)
            except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
                reason = str(error) or type(error).__name__
            except OSError as error:
                raise InputError(f"cannot read {path}: {error.strerror or error}; see to it and try again") from error
            reason = next(filter(None, self.world.share(reason)), "")
            if not reason and manifest is not None:
                self.newest_step = manifest["state"]["step"]
                return Saved(path, manifest)
            self.damaged[path] = reason
        if most is not None:
            return None
        if self.damaged or self.world.on_main(lambda: any(self.folder.glob("step-*.damaged"))):
            why = "; ".join(f"{path.name}: {reason}" for path, reason in self.damaged.items())
            raise InputError(
                f"no checkpoint in {self.folder} is whole ({why or 'they were set aside before'}); "
                "begin again with another --out"
            )
        return None

    def set_aside(self) -> None:
        """Rename what `newest` found damaged, so that it is not tried again."""
        for path, reason in self.damaged.items():
            aside = path.with_suffix(".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            with suppress(OSError):  # a disk may be full; the console says it too
                (aside / "reason.txt").write_text(f"{reason}\n", "utf-8")

    def differences(self, saved: Saved) -> list[str]:
        """In what this process differs from the one that wrote `saved`, where that may change bits."""
        before = saved.manifest["circumstances"]
        return [
            f"{name} {before.get(name)} then, {now} now"
            for name, now in self.circumstances.items()
            if before.get(name) != now
        ]

    def _verify(self, path: Path, manifest: dict[str, Any]) -> None:
        if manifest["identity"] != self.identity:
            raise ValueError("it is of another run")
        for i, (file, entry) in enumerate(manifest["files"].items()):
            if i % self.world.size == self.world.rank and (
                (path / file).stat().st_size != entry["bytes"] or crc32(path / file) != entry["crc32"]
            ):
                raise ValueError(f"{file} has changed since it was written")

    def _begin(self, state: dict[str, Any], tensors: Mapping[str, Tensor], *, copy: bool) -> None:
        own, loads = {}, {True: [0] * self.world.size, False: [0] * self.copies}
        for name, tensor in tensors.items():
            holding = Holding.of(tensor)
            whole = not isinstance(tensor, DTensor)
            turn = loads[whole].index(min(loads[whole]))  # what several hold is written by the one with least to write
            loads[whole][turn] += tensor.numel() * tensor.element_size()
            if turn == (self.world.rank if whole else self.copy):
                kept = holding.local.cpu()
                if copy and kept.data_ptr() == holding.local.data_ptr():
                    kept = kept.clone()
                own[name] = Holding(kept.contiguous(), holding.shape, holding.start)
        shapes = {name: [_dtype_name(tensor), list(tensor.shape)] for name, tensor in tensors.items()}
        folder = self.folder / f"step-{state['step']:08d}.tmp-{self.attempt}"
        # training goes on to change `state`, too
        self._writing = _Writing(folder, deepcopy(state), shapes, self._run(lambda: self._write_part(folder, own)))

    def _run(self, work: Callable[[], None]) -> Future[None]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
        return self._thread.submit(work)

    def _write_part(self, folder: Path, own: dict[str, Holding]) -> None:
        """Write the file of this process, and beside it what the manifest will say of it."""
        file = folder / f"rank-{self.world.rank:05d}.safetensors"
        needed = sum(holding.local.nbytes for holding in own.values()) * self.world.size
        with self._refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if (free := shutil.disk_usage(folder).free) < needed:
                raise InputError(
                    f"cannot write {folder}: the disk has {free / 1e9:.1f} GB left and {needed / 1e9:.1f} are needed; "
                    "free some space"
                )
            _save_file({name: holding.local for name, holding in own.items()}, file)
            starts = {name: holding.start for name, holding in own.items()}
            entry = {"bytes": file.stat().st_size, "crc32": crc32(file), "starts": starts}
            _write_synced(file.with_suffix(".json"), json.dumps(entry).encode())

    def _commit(self, written: "_Writing") -> None:
        """Write the manifest over all parts, give the folder its name, and delete what is not kept."""
        target = written.folder.with_suffix("")
        with self._refusals(self.folder):
            files = {}
            for rank in range(self.world.size):
                part = written.folder / f"rank-{rank:05d}.json"
                files[f"{part.stem}.safetensors"] = json.loads(part.read_bytes())
                part.unlink()
            manifest = {
                "format": FORMAT,
                "identity": self.identity,
                "circumstances": self.circumstances,
                "processes": self.world.size,
                "state": written.state,
                "tensors": written.shapes,
                "files": files,
            }
            _write_synced(written.folder / "manifest.json", sealed(manifest))
            sync_folder(written.folder)
            self.check()
            written.folder.rename(target)
            try:
                sync_folder(self.folder)
            except OSError:
                target.rename(written.folder)  # the name may not outlive a power cut
                raise
        with suppress(OSError):  # the new one is whole; what could not be deleted now is next time
            self._prune()

    @contextmanager
    def _refusals(self, path: Path) -> Iterator[None]:
        """Whatever the system refuses is an `InputError`, so that training can go on."""
        try:
            with writing(path):
                yield
        except OSError as error:
            with suppress(OSError):
                self.check()  # whoever takes the run over removes what is unfinished
            raise InputError(f"cannot write {path}: {error.strerror or error}; see to the disk") from error

    def _prune(self) -> None:
        saved = self.saved()
        kept = set(saved[-self.config.keep_last :])
        if self.config.keep_best and _score(best := max(saved, key=_score)) > -math.inf:
            kept.add(best)
        for old in saved:
            if old not in kept:
                old.rename(old.with_name(f"{old.name}.tmp-old"))  # half of a folder must not look like a whole one
        for aside in self.folder.glob("step-*.tmp-old"):
            shutil.rmtree(aside, ignore_errors=True)


@dataclass
class _Writing:
    """A checkpoint under way."""

    folder: Path
    state: dict[str, Any]
    shapes: dict[str, Any]
    part: Future[None]
    commit: Future[None] | None = field(default=None)

    def phase(self) -> int:
        futures = [future for future in (self.part, self.commit) if future is not None]
        if any(future.done() and future.exception() for future in futures):
            return FAILED
        return READY if all(future.done() for future in futures) else AT_WORK

    def raise_error(self) -> None:
        for future in (self.part, self.commit):
            if future is not None:
                future.result()


def _score(path: Path) -> float:
    try:
        score = read_manifest(path)["state"].get("score")
    except (OSError, ValueError, KeyError, TypeError):
        return -math.inf
    return -math.inf if score is None else score


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _save_file(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # what the disk said is only in its text
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        raise
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
