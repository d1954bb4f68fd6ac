"""The folder of one run: what is in it, by name. Training appends to it, reports read it."""

import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitreous.errors import InputError
from vitreous.files import read_text, write_text, writing

LEFT_BY_KILLED = (
    ".*.tmp",
    ".model.*.new",
    ".model.*.old",
    "checkpoints/step-*.tmp",
    "report/.*.tmp",
    "report/.inspect.*",
)

FIGURES = {"split", "num_images", "top1", "top5", "macro_f1", "ece", "reliability", "per_class", "confusion"}
KINDS: dict[str, Any] = {
    **dict.fromkeys(("config", "data", "versions", "machine"), dict),
    **dict.fromkeys(("command", "directory", "data_fingerprint", "started"), str),
    **dict.fromkeys(("classes", "plan"), list),
    **dict.fromkeys(("threads", "seed"), int),
    "git": dict | None,
}
"""What stands in run.json, where it does."""


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and the few files that are more than a path."""

    path: Path

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
    def checkpoints(self) -> Path:
        """checkpoints/: what training goes on from."""
        return self.path / "checkpoints"

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
        except (OSError, ValueError) as error:
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
            if not (isinstance(figures, dict) and figures.keys() >= FIGURES):
                raise ValueError("it lacks figures")
            return figures
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {self.evaluation} ({error}); remove it and measure the run again") from None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Make the folder and keep other processes from writing into it; if it stays empty, it goes again.

        What killed processes left half written is removed.

        Raises:
            InputError: if it cannot be written, holds something else, or another process has claimed it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        with locked(self.path):
            if self.exists():
                for left in itertools.chain.from_iterable(self.path.glob(pattern) for pattern in LEFT_BY_KILLED):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            elif not self.vacant():
                raise InputError(f"{self.path} is not empty and no run of ours; choose another folder with --out")
            try:
                yield
            finally:
                with suppress(OSError):
                    self.path.rmdir()

    def vacant(self) -> bool:
        """Whether nothing of worth is here."""
        worthless = {self.bad_images.name, self.split.name}
        return not self.path.exists() or all(
            entry.name in worthless or entry.match(LEFT_BY_KILLED[0]) for entry in self.path.iterdir()
        )

    def write_record(self, record: dict[str, Any]) -> None:
        """Write run.json, once."""
        write_text(self.record, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    def append(self, measurement: dict[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with writing(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(measurement) + "\n")

    def measurements(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics.jsonl; a line cut short by a power cut is left out."""
        if self.metrics.exists():
            for line in read_text(self.metrics).splitlines():
                try:
                    measurement = json.loads(line)
                except ValueError:
                    continue
                if isinstance(measurement, dict) and isinstance(measurement.get("step"), int):
                    yield measurement

    def forget_after(self, step: int) -> None:
        """Drop measurements later than `step`, which training is about to repeat."""
        if self.metrics.exists():
            kept = [json.dumps(line) for line in self.measurements() if line["step"] <= step]
            write_text(self.metrics, "".join(f"{line}\n" for line in kept))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; where the file system has no locks, hope.

    Raises:
        InputError: if another process holds it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another process is writing into {folder}; wait until it ends, or choose another --out"
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


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
