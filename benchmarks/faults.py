"""What a run survives: processes killed and ended, checkpoints damaged, and how it is told from an undisturbed run.

    python benchmarks/faults.py [--kills 200] [--ends 20] [--flips 10000] [--out benchmarks/results/faults.json]

Real photos (Imagenette, in ../shared) through the real command, a ViT of 32 x 2 with dropout, drop path, micro-batches
and a moving average. The processes of a run get SIGKILL together, readers included, at random instants: at the start,
in a step, while a checkpoint is written, right after it got its name. At every restart the number of readers is redrawn
from 0, 1, 2, and whether checkpoints are written in the background; in one kind of run also the number of processes.
In the end weights, moments, averages, the order of images and every line of metrics.jsonl are compared bit for bit.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # a pool of threads does not outlive a fork

import argparse
import json
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tests import damage, faults  # noqa: E402

from vitreous.console import Console  # noqa: E402
from vitreous.doctor import examine  # noqa: E402
from vitreous.files import write_text  # noqa: E402
from vitreous.parallel import FullShard, Parallel, Replicate  # noqa: E402
from vitreous.tables import table  # noqa: E402

KINDS: list[tuple[str, float, tuple[int, ...], Parallel, bool]] = [
    ("1 process", 0.4, (1,), Replicate(), False),
    ("2 processes, Replicate", 0.25, (2,), Replicate(), False),
    ("2 processes, FullShard", 0.15, (2,), FullShard(), False),
    ("1 or 2, redrawn, exact", 0.2, (1, 2), Replicate(), True),
]
"""Name, share of all signals, numbers of processes, how weights lie, whether `exact`."""
PER_RUN = 50
"""Most kills of one run; more are shared out to several."""
SAVED = {f"weights/{i}": (64, 32) for i in range(8)}
"""What is saved where saving alone is killed."""

Row = dict[str, Any]


class Progress:
    """How much of all is done, and how long the rest takes."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __call__(self, label: str, total: int) -> Callable[[], None]:
        began, last, done = time.monotonic(), time.monotonic(), 0

        def step() -> None:
            nonlocal done, last
            done += 1
            now = time.monotonic()
            if now - last > 10 or done == total:
                last = now
                left = (now - began) / done * (total - done)
                self.console.say(f"{label}  {done:,}/{total:,}  {left:,.0f} s left")

        return step


def signals(place: Path, tar: Path, *, kills: int, ends: int, seed: int, progress: Progress) -> list[Row]:
    """Runs that are killed and runs that are ended, each beside one that nothing disturbs."""
    rows = []
    for name, share, sizes, parallel, exact in KINDS:
        run = faults.small(tar, parallel=parallel, exact=exact)
        like = faults.undisturbed(place / name / "undisturbed", run, processes=sizes[0])
        for fault, inject, times in (("kill -9", faults.kill, kills), ("SIGTERM", faults.terminate, ends)):
            left, number, found = round(times * share), 0, []
            step = progress(f"{fault}, {name}", left)
            while left > 0:
                number += 1
                training = faults.Training(place / name / f"{fault} {number}", run, sizes)
                done = inject(training, times=min(left, PER_RUN), seed=seed + number, progress=step)
                found.append((done, faults.outcome(training, like=like)))
                shutil.rmtree(training.place)
                left -= max(done.times, 1)
                if done.problems:
                    break
            if found:
                rows.append(_signal_row(fault, name, found))
    return rows


def _signal_row(fault: str, name: str, found: list[tuple[faults.Injected, faults.Outcome]]) -> Row:
    hits: dict[str, int] = {}
    for injected, _ in found:
        for where, count in injected.hit.items():
            hits[where] = hits.get(where, 0) + count
    seconds = sorted(second for injected, _ in found for second in injected.seconds)
    problems = [problem for injected, _ in found for problem in injected.problems]
    return {
        "fault": fault,
        "on": name,
        "injected": sum(hits.values()),
        "survived": sum(hits.values()) - len(problems),
        "lost": sum(outcome.lost for _, outcome in found),
        "repeated": sum(outcome.repeated for _, outcome in found),
        "equal": all(outcome.perfect for _, outcome in found),
        "hit": hits,
        "runs": [asdict(outcome) for _, outcome in found],
        "exit_s": {"median": seconds[len(seconds) // 2], "most": seconds[-1]} if seconds else None,
        "problems": problems,
    }


def saving(place: Path, *, times: int, background: bool, seed: int, step: Callable[[], None]) -> Row:
    """A process that does nothing but save, killed again and again; each time the newest checkpoint is looked at."""
    rng, lost, torn = random.Random(seed), 0, 0
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for _ in range(times):
        first, told = _held(place)[0], place.parent / "told"
        told.unlink(missing_ok=True)
        if not (pid := os.fork()):
            try:
                _save_on(place, first, told, background=background)
            finally:
                os._exit(1)
        while not told.exists():
            time.sleep(0.0002)
        time.sleep(rng.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        at, numbers = _held(place)
        torn += numbers != {float(at)}
        lost += at < int(told.read_text() or 0)
        step()
    name = "in the background" if background else "in the foreground"
    good = not torn and not lost
    return {
        "fault": "kill -9 while saving",
        "on": name,
        "injected": times,
        "survived": times - torn - lost,
        "lost": lost,
        "repeated": torn,
        "equal": good,
    }


def _save_on(place: Path, first: int, told: Path, *, background: bool) -> None:
    checkpoints = damage.opened(place, identity="this")
    tensors = {name: torch.zeros(shape) for name, shape in SAVED.items()}
    note = os.open(told, os.O_WRONLY | os.O_CREAT)
    for step in range(first + 1, first + 100_000):
        for tensor in tensors.values():
            tensor.fill_(step)
        (checkpoints.begin if background else checkpoints.save)({"step": step}, tensors)
        for tensor in tensors.values():
            tensor.fill_(-1)
        checkpoints.finish()
        os.pwrite(note, str(step).encode(), 0)


def _held(place: Path) -> tuple[int, set[float]]:
    for left in place.glob("step-*.tmp-*"):
        shutil.rmtree(left)
    saved = damage.opened(place, identity="this").newest()
    if saved is None:
        return 0, {0.0}
    tensors = {name: torch.zeros(shape) for name, shape in SAVED.items()}
    saved.load(tensors)
    return saved.state["step"], {float(x) for tensor in tensors.values() for x in tensor.unique()}


def damaged(place: Path, tar: Path, *, flips: int, seed: int, progress: Progress) -> list[Row]:
    """A real run's checkpoints of two processes, damaged in every way, and what others say of the same flips."""
    folders = []
    for number in range(2):
        training = faults.Training(place / f"saved {number}", faults.small(tar, steps=40 + number), (2,))
        training.start(processes=2).wait()
        folders.append(training.folder.checkpoints)
    cuts = flips // 10
    found = {
        "a bit flipped": damage.flips(folders[0], count=flips, seed=seed, progress=progress("flips", flips)),
        "a file cut": damage.truncations(folders[0], count=cuts, seed=seed, progress=progress("cuts", cuts)),
        "files swapped or gone": damage.swaps(folders[0], other=folders[1]),
    }
    rows = [_damage_row(fault, "vitreous", cases, len(missed)) for fault, (cases, missed) in found.items()]
    newest = max(path for path in folders[0].glob("step-*") if not path.suffix)
    tensors: dict[str, torch.Tensor] = {}
    for file in newest.glob("*.safetensors"):
        tensors |= load_file(file)
    return rows + [
        _damage_row(
            "a bit flipped", name, *_silent(path, load, min(flips, most), seed, progress(name, min(flips, most)))
        )
        for name, path, load, most in _peers(place, newest, tensors)
    ]


def _peers(place: Path, newest: Path, tensors: dict[str, torch.Tensor]) -> list[tuple[str, Path, Callable, int]]:
    zipped, folder = place / "theirs.pt", place / "theirs"
    torch.save(tensors, zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it runs in one process
        dcp.save(tensors, checkpoint_id=folder)  # pyright: ignore[reportPrivateImportUsage]

    def load_dcp() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            empty = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
            dcp.load(empty, checkpoint_id=folder)  # pyright: ignore[reportPrivateImportUsage]

    file = max(newest.glob("*.safetensors"))
    return [
        ("safetensors.torch.load_file", file, lambda: load_file(file), 10_000),
        ("torch.load", zipped, lambda: torch.load(zipped, weights_only=True), 1_000),
        ("torch's dcp.load", folder / "__0_0.distcp", load_dcp, 1_000),
    ]


def _silent(path: Path, load: Callable, count: int, seed: int, step: Callable[[], None]) -> tuple[int, int]:
    """Single bits of one file, and how many of these flips went unnoticed."""
    silent = 0
    for _, bit in damage.random_bits([path], count, seed):
        damage.flip(path, bit)
        try:
            load()
            silent += 1
        except (Exception, CheckpointException):  # which is no Exception
            pass
        damage.flip(path, bit)
        step()
    return count, silent


def _damage_row(fault: str, name: str, cases: int, missed: int) -> Row:
    return {"fault": fault, "on": name, "injected": cases, "survived": cases - missed, "silent": missed}


def page(rows: list[Row]) -> str:
    """The table for people."""
    cells: list[tuple[str, ...]] = [
        ("fault", "run or reader", "injected", "survived or noticed", "lost", "repeated", "bits equal")
    ]
    for row in rows:
        equal = {None: "", True: "yes", False: "NO"}[row.get("equal")]
        counts = [f"{row[name]:,}" if name in row else "" for name in ("injected", "survived", "lost", "repeated")]
        cells.append((row["fault"], row["on"], *counts, equal))
    hits: dict[str, int] = {}
    for row in rows:
        for where, count in row.get("hit", {}).items() if row["fault"] == "kill -9" else ():
            hits[where] = hits.get(where, 0) + count
    exits = [row["exit_s"] for row in rows if row.get("exit_s")]
    lines = [table(cells), "", "kills hit: " + ", ".join(f"{count} {where}" for where, count in sorted(hits.items()))]
    if exits:
        most = max(one["most"] for one in exits)
        middle = ", ".join(f"{one['median']:.2f}" for one in exits)
        lines.append(f"from SIGTERM to the end of all processes: median {middle} s, at most {most:.2f} s")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="SIGKILLs at random instants of training")
    parser.add_argument("--ends", type=int, default=20, help="SIGTERMs at random steps")
    parser.add_argument("--saves", type=int, default=1000, help="SIGKILLs of a process that only saves")
    parser.add_argument("--flips", type=int, default=10_000, help="flipped bits; a tenth as many files are cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="where the photos lie")
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    given = parser.parse_args()
    torch.set_num_threads(1)
    progress, began = Progress(Console()), time.monotonic()
    load = [os.getloadavg()]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        tar = faults.photos(given.shared, place / "photos.tar")
        rows = signals(place, tar, kills=given.kills, ends=given.ends, seed=given.seed, progress=progress)
        for background in (False, True):
            times = given.saves // 2
            step = progress("kill -9 while saving", times)
            rows.append(saving(place / "saves", times=times, background=background, seed=given.seed, step=step))
        rows += damaged(place, tar, flips=given.flips, seed=given.seed, progress=progress)
    load.append(os.getloadavg())
    print(page(rows))
    if given.out is not None:
        facts = {key: value for key, value in examine().items() if "disk" not in key and "cache" not in key}
        date, machine = datetime.now(UTC).date().isoformat(), f"{platform.machine()}, cpu, 1 thread a process"
        seconds = time.monotonic() - began
        result = {"date": date, "machine": machine, "seed": given.seed, "load_average": load, "seconds": seconds}
        write_text(given.out, json.dumps({**result, "rows": rows, **facts}, indent=1) + "\n")
        busy = " to ".join(f"{one[0]:.1f}" for one in load)
        said = f"`python benchmarks/faults.py`, {date}, {machine}, seed {given.seed}, load average {busy}."
        write_text(given.out.with_suffix(".md"), f"# What a run survives\n\n{said}\n\n```\n{page(rows)}\n```\n")


if __name__ == "__main__":
    main()
