"""Real faults for real training: `vitreous train` on real photos, killed or told to end at random instants.

A process that has imported everything and started no thread forks the trainers. Those of one run form a process group,
readers included, and the group gets the signal. What a run leaves is compared with what an undisturbed one leaves.
"""

import hashlib
import json
import multiprocessing
import multiprocessing.util
import os
import random
import signal
import socket
import sys
import tarfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch._dynamo  # or every trainer would import it in its first step
from safetensors import safe_open

import vitreous.experiment
import vitreous.inspection.report
import vitreous.recipes.shipped  # noqa: F401
from digests import timeless
from vitreous.cli.exit import main
from vitreous.data import loader
from vitreous.data.data_config import DataConfig
from vitreous.data.views import EvalView, TrainView
from vitreous.parallel import Parallel, Replicate
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.saved import read_manifest
from vitreous.schedule import Cosine
from vitreous.stopping import EXIT_TRY_AGAIN
from vitreous.trainee import Trainee
from vitreous.variants import vit

PHOTOS = {"train": 96, "val": 24}
AIMS = ("start", "step", "write", "rename", "write")
"""What a kill aims at, in turn: a random moment of the start, of a step, of a checkpoint's writing, and right after its
renaming, while old ones are deleted."""
LIMIT_S = 120.0
REPLICATE = Replicate()


def photos(shared: Path, tar: Path) -> Path:
    """Some of Imagenette's photos in one tar, bytes untouched."""
    with tarfile.open(tar, "w") as part:
        for split, count in PHOTOS.items():
            with tarfile.open(shared / "data" / "imagenette224" / f"imagenette224_{split}.tar") as whole:
                for member in [member for member in whole if member.isreg()][:count]:
                    part.addfile(member, whole.extractfile(member))
    return tar


def small(tar: Path, *, steps: int = 400, parallel: Parallel = REPLICATE, exact: bool = False) -> Run:
    """A run with everything in it that a resume could get wrong."""
    return Run(
        data=DataConfig(path=str(tar)),
        train_view=TrainView(image_size=32),
        eval_view=EvalView(image_size=32),
        model=vit("32x2/8", image_size=32, dropout=0.1, drop_path=0.1),
        learning_rate=Cosine(peak=3e-3),
        batch_size=8,
        num_micro_batches=2,
        steps=steps,
        num_evaluations=8,
        parallel=parallel,
        exact=exact,
        ema_decay=0.95,
    )


@dataclass
class Training:
    """One run in `place`: its folder, what its trainers said and consumed."""

    place: Path
    run: Run
    sizes: tuple[int, ...] = (1,)
    """Numbers of processes, of which each start takes one."""
    starts: int = 0

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True)
        self.recipe.write_text(json.dumps({"config": self.run.to_dict()}))

    @property
    def recipe(self) -> Path:
        return self.place / "recipe.json"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.place / "run")

    @property
    def ledger(self) -> Path:
        return self.place / "ledger"

    @property
    def log(self) -> str:
        """What the trainers said."""
        path = self.place / "log"
        return path.read_text() if path.exists() else ""

    def start(self, *, processes: int, workers: int = 0, every_s: float = 0.0, background: bool = True) -> "Group":
        """Trainers of this run, begun or gone on with."""
        self.starts += 1
        words = ["train", str(self.recipe), "--out", str(self.folder.path), "--device", "cpu"]
        words += ["--num_workers", str(workers), "--checkpoint.every_s", str(every_s)]
        words += ["--checkpoint.background", str(background).lower()]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids: list[int] = []
        for rank in range(processes):
            pids.append(self._fork(rank, processes, port, words, group=pids[0] if pids else 0))
        return Group(pids)

    def _fork(self, rank: int, size: int, port: int, words: list[str], *, group: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        if pid := os.fork():
            os.setpgid(pid, group or pid)
            return pid
        code = 1
        try:
            os.setpgid(0, group)
            log = os.open(self.place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            os.dup2(log, 1)
            os.dup2(log, 2)
            if size > 1:
                names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")
                values = (rank, rank, size, size, port)
                os.environ.update({name: str(value) for name, value in zip(names, values)}, MASTER_ADDR="127.0.0.1")
            code = _train(words, self.ledger, start=self.starts)
        finally:
            os._exit(code)

    def finish(self) -> None:
        """Carry the run on to its end."""
        codes = self.start(processes=self.sizes[0], every_s=1e9).wait()
        assert set(codes) == {0}, f"{codes}: {self.log[-2000:]}"

    def digest(self) -> str:
        """Of the last checkpoint's weights, moments and averages, and of the finished model's file."""
        newest = max(self.checkpoints())
        found = {}
        for file, entry in read_manifest(newest)["files"].items():
            with safe_open(newest / file, framework="pt") as opened:
                for name, start in entry["starts"].items():
                    found[name, start] = opened.get_tensor(name)
        digest = hashlib.sha256()
        for (name, _), tensor in sorted(found.items(), key=lambda item: item[0]):
            digest.update(name.encode() + bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))
        for file in sorted(self.folder.model.glob("*.safetensors")):
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def lines(self) -> list[dict]:
        """metrics.jsonl, without what depends on the clock; a line that is cut short is an error."""
        lines = [json.loads(line) for line in self.folder.metrics.read_text().splitlines()]
        return timeless(lines)

    def consumed(self) -> dict[int, list[int]]:
        """The images of each step; of a step that was taken several times, those of the last time."""
        steps: dict[int, dict[int, list[int]]] = {}
        for line in self.ledger.read_text().splitlines():
            start, step, *images = map(int, line.split())
            steps.setdefault(step, {}).setdefault(start, []).extend(images)
        return {step: sorted(taken[max(taken)]) for step, taken in sorted(steps.items())}

    def lost_and_repeated(self) -> tuple[int, int]:
        """Over all whole epochs: images that none of its steps consumed, and times one was consumed once more."""
        consumed, lost, repeated = self.consumed(), 0, 0
        epoch = PHOTOS["train"] // self.run.batch_size
        for first in range(0, self.run.steps - epoch + 1, epoch):
            counts = Counter(image for step in range(first, first + epoch) for image in consumed.get(step, []))
            lost += PHOTOS["train"] - len(counts)
            repeated += counts.total() - len(counts)
        return lost, repeated

    def noted(self) -> int:
        """Bytes of the ledger: it grows by some 30 a step."""
        return self.ledger.stat().st_size if self.ledger.exists() else 0

    def saved(self) -> set[str]:
        """The names of all checkpoints, also of unfinished ones."""
        return {path.name for path in self.folder.checkpoints.glob("step-*")}

    def checkpoints(self) -> list[Path]:
        """The finished ones."""
        return [path for path in self.folder.checkpoints.glob("step-*") if not path.suffix]


@dataclass
class Group:
    """The processes of a run that are alive together."""

    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)

    def ended(self) -> bool:
        """Whether all have."""
        for pid in self.pids:
            if pid not in self.codes:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def send(self, number: int) -> None:
        """A signal to all of them and their readers."""
        os.killpg(self.pids[0], number)

    def wait(self, limit_s: float = LIMIT_S) -> list[int]:
        """Their exit codes; whoever has none after `limit_s` is killed."""
        deadline = time.monotonic() + limit_s
        while not self.ended():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(0.002)
        return [self.codes[pid] for pid in self.pids]


def _train(words: list[str], ledger: Path, *, start: int) -> int:
    """The command line in this process, to its very end; every step's images go into `ledger`."""
    torch.set_num_threads(1)
    loader._context = lambda: multiprocessing.get_context("fork")  # a fork server would import torch at each start
    note = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    take = Trainee.take

    def noted(self, step, batches):
        images = []

        def passing() -> Iterator:
            for batch in batches:
                images.extend(batch.index.tolist())
                yield batch

        taken = take(self, step, passing())
        os.write(note, f"{' '.join(map(str, [start, step, *images]))}\n".encode())
        return taken

    Trainee.take = noted
    try:
        main(words)
    except SystemExit as left:
        code = int(left.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    getattr(threading, "_shutdown")()  # noqa: B009 - private, and what the interpreter calls at its end
    getattr(multiprocessing.util, "_exit_function")()  # noqa: B009
    sys.stdout.flush()
    sys.stderr.flush()
    return code


@dataclass(frozen=True)
class Injected:
    """What was done to a run, and how it took it."""

    fault: str
    hit: dict[str, int]
    """How many signals hit it where, before its end: at the start, in a step, in a write, after a rename."""
    seconds: list[float]
    """From each signal to the end of all processes."""
    problems: list[str]
    """Where it did not end as it should, or did not go on when it was started again."""

    @property
    def times(self) -> int:
        """How many signals hit it."""
        return sum(self.hit.values())


@dataclass(frozen=True)
class Outcome:
    """What is left of that in the end."""

    lost: int
    repeated: int
    digest_equal: bool
    """Whether weights, moments, averages and the model's file have the bits of the undisturbed run."""
    order_equal: bool
    """Whether every step consumed the same images."""
    lines_equal: bool
    """Whether metrics.jsonl says the same, but for times."""

    @property
    def perfect(self) -> bool:
        """Whether nobody can tell."""
        return not (self.lost or self.repeated) and self.digest_equal and self.order_equal and self.lines_equal


def undisturbed(place: Path, run: Run, *, processes: int = 1) -> Training:
    """The run from beginning to end."""
    training = Training(place, run, (processes,))
    training.finish()
    assert training.lost_and_repeated() == (0, 0)
    return training


def kill(training: Training, *, times: int, seed: int, progress: Callable[[], None]) -> Injected:
    """SIGKILL to all processes of the run, again and again."""
    rng, hit, problems = random.Random(seed), Counter(), []
    while hit.total() < times and not problems:
        noted, before = training.noted(), training.saved()
        group = training.start(
            processes=rng.choice(training.sizes),
            workers=rng.choice((0, 0, 1, 2)),
            every_s=rng.choice((0.0, 0.0, 0.1)),
            background=rng.random() < 0.6,
        )
        if _wait_for(AIMS[hit.total() % len(AIMS)], training, group, rng):
            group.send(signal.SIGKILL)
        codes = group.wait()
        if -signal.SIGKILL in codes:
            hit[_where(training, before, steps=training.noted() > noted)] += 1
            progress()
        elif set(codes) == {0}:
            break  # the run was too short for so many
        else:
            problems.append(f"after {hit.total()} kills it ended with {codes}: {training.log[-2000:]}")
    return Injected("kill -9", dict(hit), [], problems)


def terminate(training: Training, *, times: int, seed: int, progress: Callable[[], None]) -> Injected:
    """SIGTERM to the whole group, or to one process of it, at random steps."""
    rng, hit, seconds, problems = random.Random(seed), Counter(), [], []
    while hit.total() < times:
        processes, workers = rng.choice(training.sizes), rng.choice((0, 1, 2))
        group = training.start(processes=processes, workers=workers, every_s=1e9)
        if not _wait_for("step", training, group, rng):
            group.wait()
            break
        one, began = rng.choice([0, *group.pids]), time.monotonic()
        os.kill(one, signal.SIGTERM) if one else group.send(signal.SIGTERM)
        codes = group.wait()
        seconds.append(time.monotonic() - began)
        hit["step"] += 1
        if set(codes) != {EXIT_TRY_AGAIN}:
            problems.append(f"sent to {'one process' if one else 'all'} it ended with {codes}: {training.log[-2000:]}")
        progress()
    return Injected("SIGTERM", dict(hit), seconds, problems)


def outcome(training: Training, *, like: Training) -> Outcome:
    """Carry the run on to its end and compare it."""
    training.finish()
    lost, repeated = training.lost_and_repeated()
    return Outcome(
        lost=lost,
        repeated=repeated,
        digest_equal=training.digest() == like.digest(),
        order_equal=training.consumed() == like.consumed(),
        lines_equal=training.lines() == like.lines(),
    )


def _wait_for(aim: str, training: Training, group: Group, rng: random.Random) -> bool:
    """Wait for a random instant of that kind; whether it came before the trainers ended."""
    before = max(training.checkpoints(), default=Path())
    steps, size = rng.randint(1, 10), training.noted()
    until = time.monotonic() + rng.uniform(0, 0.5)

    def reached() -> bool:
        if aim == "start":
            return time.monotonic() > until
        if aim == "step" or training.noted() == size:
            return training.noted() >= size + 30 * steps
        if aim == "write":
            return any(training.folder.checkpoints.glob("step-*.tmp-*"))
        return max(training.checkpoints(), default=Path()) > before

    while not reached():
        if group.ended():
            return False
        time.sleep(0.0003 if aim in ("write", "rename") else 0.002)
    time.sleep({"start": 0.0, "step": rng.uniform(0, 0.03), "write": rng.uniform(0, 0.004)}.get(aim, 0.0))
    return not group.ended()


def _where(training: Training, before: set[str], *, steps: bool) -> str:
    """What a killed run was about to do, by what it left that was not there `before`."""
    names = training.saved()
    new, finished = names - before, sorted(name for name in names if "." not in name)
    if any(".tmp-" in name and not name.endswith("-old") for name in new):
        return "write"
    if new and (len(finished) > training.run.checkpoint.keep_last or any(name.endswith("-old") for name in new)):
        return "rename"
    return "step" if steps else "start"


if __name__ == "__main__":
    place, data, kills, ends = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    run = small(photos(data, place / "photos.tar"), exact=True)
    like = undisturbed(place / "undisturbed", run)
    training = Training(place / "disturbed", run, sizes=(1, 2))
    works = ((kill, kills), (terminate, ends))
    found = [inject(training, times=times, seed=0, progress=lambda: None) for inject, times in works]
    print(json.dumps({"outcome": asdict(outcome(training, like=like)), "injected": [asdict(one) for one in found]}))
