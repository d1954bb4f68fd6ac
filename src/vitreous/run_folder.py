"""The folder of one run: what is in it, by name. Training appends to it, reports read it."""

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from vitreous.claim import CLAIM, LOCK, TICKET, Claim, locked, newest
from vitreous.errors import InputError
from vitreous.files import read_text, write_text, writing

LEFT_BY_KILLED = (
    ".*.tmp",
    ".model.*.new",
    ".model.*.old",
    "checkpoints/step-*.tmp-*",
    "report/.*.tmp",
    "tensorboard/.*.tmp",
    "report/.inspect.*",
    "cache/.*.tmp",
)

FIGURES = {"split", "num_images", "top1", "top5", "macro_f1", "ece", "reliability", "per_class", "confusion"}
FIGURES_OF_SEVERAL = {"split", "num_images", "map", "micro_ap", "macro_f1", "micro_f1", "exact_match", "per_class"}
"""Of images that may show several classes."""
KINDS: dict[str, Any] = {
    **dict.fromkeys(("config", "data", "versions", "machine"), dict),
    **dict.fromkeys(("command", "launcher", "directory", "data_fingerprint", "started"), str),
    **dict.fromkeys(("classes", "plan"), list),
    **dict.fromkeys(("threads", "seed"), int),
    "git": dict | None,
}
"""What stands in run.json, where it does."""


@dataclass
class RunFolder:
    """Paths of one run, and the few files that are more than a path."""

    path: Path
    claim: Claim | None = field(default=None, compare=False)
    """What this process holds it by, while `claimed`; writes of a process that another has outdone are refused."""

    @property
    def record(self) -> Path:
        """run.json: config, command, versions, seed, machine, data summary."""
        return self.path / "run.json"

    @property
    def split(self) -> Path:
        """split.csv: which file is in which split."""
        return self.path / "split.csv"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl: one line a measurement, append only."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """tensorboard/: the same for TensorBoard."""
        return self.path / "tensorboard"

    @property
    def trackers(self) -> Path:
        """trackers.json: what other trackers have got of it."""
        return self.path / "trackers.json"

    @property
    def checkpoints(self) -> Path:
        """checkpoints/: what training goes on from."""
        return self.path / "checkpoints"

    @property
    def cache(self) -> Path:
        """cache/: decoded pixels, until training has ended."""
        return self.path / "cache"

    @property
    def model(self) -> Path:
        """model/: the product."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        """evaluation.json: the figures on the held-out split."""
        return self.path / "evaluation.json"

    @property
    def predictions(self) -> Path:
        """predictions.csv: what the model says of each measured image."""
        return self.path / "predictions.csv"

    @property
    def bad_images(self) -> Path:
        """bad_images.txt: files that could not be read, with the reason."""
        return self.path / "bad_images.txt"

    @property
    def report(self) -> Path:
        """report/index.html."""
        return self.path / "report" / "index.html"

    @property
    def failure(self) -> Path:
        """failure.json: why training stopped for good, until it goes on."""
        return self.path / "failure.json"

    def stacks(self, rank: int) -> Path:
        """Where a process of that rank writes where it stands when nothing moves any more."""
        return self.path / f"stacks-rank-{rank}.txt"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.record.is_file()

    def trained(self) -> bool:
        """Whether training here came to its end."""
        return (self.model / "config.json").is_file()

    def finished(self) -> bool:
        """Whether nothing is left to do here."""
        return self.trained() and self.evaluation.is_file() and self.report.is_file()

    def read(self) -> dict[str, Any]:
        """The contents of run.json.

        Raises:
            InputError: if there is none or it cannot be read.
        """
        try:
            record = json.loads(read_text(self.record))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{self.path} is no run folder (it has no run.json); give the folder of a run") from None
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {self.record}: {error}") from None
        if not isinstance(record, dict):
            raise InputError(f"cannot read {self.record}: it is no JSON object")
        for key, kind in KINDS.items():
            if key in record and not isinstance(record[key], kind):
                raise InputError(f"cannot read {self.record}: {key} is {record[key]!r:.40}")
        return record

    def figures(self) -> dict[str, Any]:
        """The contents of evaluation.json.

        Raises:
            InputError: if it cannot be read.
        """
        try:
            figures = json.loads(read_text(self.evaluation))
            if not isinstance(figures, dict) or not any(figures.keys() >= of for of in (FIGURES, FIGURES_OF_SEVERAL)):
                raise ValueError("it lacks figures")
            return figures
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {self.evaluation} ({error}); remove it and measure the run again") from None

    @contextmanager
    def claimed(self, *, wait_s: float = 0.0) -> Iterator[Claim]:
        """Make the folder and keep other processes from writing into it; if it stays empty, it goes again.

        What killed processes left half written is removed.

        Args:
            wait_s: how long to wait for a process that writes into it and is about to end.

        Raises:
            InputError: if it cannot be written, holds something else, or another process has claimed it.
        """
        with writing(self.path):
            ours = self.vacant() or self.exists()
        if not ours:
            raise InputError(f"{self.path} is not empty and no run of ours; choose another folder with --out")
        try:
            with locked(self.path, wait_s=wait_s) as self.claim:
                self._sweep(self.claim)
                try:
                    yield self.claim
                finally:
                    if not self.exists() and newest(self.path) == self.claim:
                        (self.path / CLAIM).unlink()
        finally:
            self.claim = None
            with suppress(OSError):
                self.path.rmdir()

    def _sweep(self, claim: Claim) -> None:
        """Remove what processes before `claim` left half written: so they cannot give it its name either."""
        claim.check()
        for left in itertools.chain.from_iterable(self.path.glob(pattern) for pattern in LEFT_BY_KILLED):
            attempt = left.name.partition(".tmp-")[2]
            if not attempt.isdecimal() or int(attempt) < claim.attempt:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
        for dump in self.path.glob("stacks-rank-*.txt"):
            if not dump.stat().st_size:
                dump.unlink(missing_ok=True)

    def check(self) -> None:
        """See, right before a write, that what this process has claimed is still its own.

        Raises:
            TakenOver: if another process has claimed it since.
        """
        if self.claim is not None:
            self.claim.check()

    def vacant(self) -> bool:
        """Whether nothing of worth is here."""
        worthless = {self.bad_images.name, self.split.name, CLAIM, LOCK}
        try:
            return all(
                entry.name in worthless or entry.match(LEFT_BY_KILLED[0]) or entry.match(f"{TICKET}*")
                for entry in self.path.iterdir()
            )
        except FileNotFoundError:
            return True

    def write_record(self, record: dict[str, Any]) -> None:
        """Write run.json, once."""
        self.check()
        write_text(self.record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def append(self, measurement: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl; numbers that are not finite, of which JSON has none, are null there."""
        known = {name: value for name, value in measurement.items() if not isinstance(value, float) or isfinite(value)}
        line = f"{json.dumps(dict.fromkeys(measurement) | known)}\n".encode()
        with writing(self.metrics), open(self.metrics, "ab", buffering=0) as file:
            self.check()  # with the file open: `forget_after` of whoever claims it now puts another in its place
            end = os.fstat(file.fileno()).st_size
            if file.write(line) < len(line):
                file.truncate(end)  # or the next line would be joined to this half
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def secure(self) -> None:
        """See that this process may write, and that the measurements outlive a power cut.

        Raises:
            TakenOver: if another process has claimed the folder since.
        """
        self.check()
        if self.metrics.exists():
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())

    def measurements(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a line cut short by a power cut is left out."""
        if self.metrics.exists():
            for line in read_text(self.metrics).splitlines():
                try:
                    measurement = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(measurement, dict) and isinstance(measurement.get("step"), int):
                    yield measurement

    def forget_after(self, step: int) -> None:
        """Drop measurements later than `step`, which training is about to repeat."""
        if self.metrics.exists():
            kept = "".join(f"{json.dumps(line)}\n" for line in self.measurements() if line["step"] <= step)
            self.check()
            same = kept == read_text(self.metrics)
            try:
                write_text(self.metrics, kept)  # another file: whoever has the old one open writes into nothing
            except InputError:
                if not same:
                    raise


def choose_folder(out: str | None, name: str, *, same: Callable[[dict[str, Any]], bool]) -> RunFolder:
    """Where a run goes: `out` if given, else runs/`name`, or runs/`name`-2, ... where that is taken.

    Without `out`, an unfinished run whose run.json satisfies `same` is gone on with.
    """
    if out == "":
        raise InputError("--out is empty; give the name of a folder")
    if out is not None:
        return RunFolder(Path(out))
    for number in itertools.count(1):
        folder = RunFolder(Path("runs") / (name if number == 1 else f"{name}-{number}"))
        unfinished = folder.exists() and not folder.finished()
        if folder.vacant() or (unfinished and same(folder.read())):
            return folder
    raise AssertionError
