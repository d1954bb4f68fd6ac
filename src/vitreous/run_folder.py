"""The folder of one run: what is in it, by name. Training appends to it, reports read it."""

import itertools
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vitreous.config import Config
from vitreous.errors import InputError
from vitreous.files import read_text, write_text, writing

LEFT_BY_KILLED = (".*.tmp", ".model.*.new", ".model.*.old", "checkpoints/step-*.tmp", "report/.*.tmp")


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
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
            raise InputError(f"cannot read {self.record}: it holds no config of a run")
        return record

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
                    yield json.loads(line)
                except ValueError:
                    continue

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
    if out is not None:
        return RunFolder(Path(out))
    for number in itertools.count(1):
        folder = RunFolder(Path("runs") / (name if number == 1 else f"{name}-{number}"))
        unfinished = folder.exists() and not folder.finished()
        if folder.vacant() or (unfinished and same(folder.read())):
            return folder
    raise AssertionError


def describe_run(config: Config, *, seed: int) -> dict[str, Any]:
    """What run.json says of any run: config, command, versions, machine, git state, time."""
    packages = ("vitreous", "torch", "torchvision", "numpy", "pillow", "safetensors")
    return {
        "format": 1,
        "config": config.to_dict(),
        "command": command_line(),
        "directory": os.getcwd(),
        "seed": seed,
        "versions": {"python": platform.python_version(), **installed(packages)},
        "machine": {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()},
        "git": _git_state(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def command_line() -> str:
    """The command as the user could type it again."""
    program = Path(sys.argv[0]).name
    return shlex.join(["vitreous" if program in ("vitreous", "__main__.py") else program, *sys.argv[1:]])


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git_state() -> dict[str, Any] | None:
    """Commit and cleanliness of the working folder, None outside a repository."""
    try:
        ask = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
        lines = subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    commit = next((line.rpartition(" ")[2] for line in lines if line.startswith("# branch.oid")), "")
    return {"commit": commit, "changed_files": sum(not line.startswith("#") for line in lines)}
