"""What it costs that nothing is lost: the training loop beside a bare step, checkpoints beside torch's, restarts.

    python benchmarks/safety.py [--rounds 5] [--out benchmarks/results/safety.json]

loop      steps of `vitreous.training` (guard against numbers that are none, agreement, log, hang watch, checkpoints
          in the background every minute) beside the same steps written out by hand; ViT 192x9/4, 32 px, batches of 64
shard     the same steps with every weight sharded over a world of one (FSDP2), beside plain ones
save      how long training stands still for a checkpoint of S/16 with AdamW and an average, in the background and not,
          beside torch.distributed.checkpoint's save and async_save of the same tensors; and until all is on the disk
restart   a fresh process that goes on at step 10^7 of a run on 10^9 images: seconds from the end of the imports to the
          end of its first step, and of that step alone; building the model, reading and seeking are the rest
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from vitreous import distributed
from vitreous.checkpoint import CheckpointConfig, Checkpoints
from vitreous.console import Console
from vitreous.data.batch import Batch
from vitreous.data.loader import training_batches
from vitreous.data.source import ArraySource, Source
from vitreous.data.views import EvalView, TrainView
from vitreous.files import write_text
from vitreous.parallel import local, units
from vitreous.provenance import installed
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.seeding import key
from vitreous.tables import table
from vitreous.trainee import Trainee, build_objective
from vitreous.training import Training
from vitreous.variants import vit

STEPS = 6
"""Counted of each turn."""


def images(number: int = 512) -> ArraySource:
    """Noise of CIFAR's size: reading it costs next to nothing."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (number, 32, 32, 3)).astype(np.uint8)
    return ArraySource(pixels, prefix="noise", classes=[str(i) for i in range(10)], labels=np.arange(number) % 10)


def cifar(**changes: Any) -> Run:
    run = Run(
        train_view=TrainView(image_size=32),
        eval_view=EvalView(image_size=32),
        model=vit("192x9/4", image_size=32, num_heads=3, mlp_dim=768),
        batch_size=64,
        steps=1000,
        num_evaluations=0,
    )
    return replace(run, **changes)


def bare_steps(run: Run, data: Source) -> list[float]:
    """Seconds of each of `STEPS` steps as one would write them by hand."""
    objective = build_objective(run, num_classes=len(data.classes)).train()
    groups = run.optimizer.groups(dict(objective.named_parameters()))
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.999), fused=True)
    batches = training_batches(data, run.train_view, batch_size=64, seed=0, first_step=0, steps=run.steps)
    began = []
    for step, batch in enumerate(batches):
        torch.manual_seed(key(run.seed, "step", step))
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate(step / run.steps)
        objective(batch, step / run.steps).total.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        began.append(time.perf_counter())
        if len(began) > STEPS:
            break
    return np.diff(began).tolist()


def our_steps(run: Run, data: Source) -> list[float]:
    """Seconds of each of `STEPS` steps of the real loop."""
    world, began = distributed.start(device="cpu", threads=torch.get_num_threads()), []
    with tempfile.TemporaryDirectory() as folder:
        training = Training(
            run,
            data,
            held_out=("test", data),
            folder=RunFolder(Path(folder)),
            world=world,
            console=Console(stream=StringIO()),
            fingerprint="",
        )
        take = training.trainee.take

        def noted(step: int, batches: Iterator[Batch]) -> Any:
            began.append(time.perf_counter())
            if len(began) > STEPS + 1:
                raise KeyboardInterrupt
            return take(step, batches)

        training.trainee.take = noted  # pyright: ignore[reportAttributeAccessIssue]
        with suppress(KeyboardInterrupt):
            training.carry_out(None)
    return np.diff(began)[1:].tolist()


def sharded_steps(run: Run, data: Source, *, sharded: bool) -> list[float]:
    """Seconds of each of `STEPS` steps in a world of one, whose weights are sharded all the same, or not."""
    trainee = Trainee(run, distributed.start(device="cpu", threads=torch.get_num_threads()), num_classes=10)
    if sharded:
        for unit in [*units(trainee.objective), trainee.objective]:
            fully_shard(unit)
        trainee.parameters = dict(trainee.objective.named_parameters())
        trainee.own = {name: nn.Parameter(local(p.detach())) for name, p in trainee.parameters.items()}
        trainee.optimizer = run.optimizer.build(trainee.own)
    batches = training_batches(data, run.train_view, batch_size=64, seed=0, first_step=0, steps=run.steps)
    began = []
    for step in range(STEPS + 1):
        trainee.take(step, batches)
        began.append(time.perf_counter())
    return np.diff(began).tolist()


def paired(rounds: int, one: Callable[[], list[float]], other: Callable[[], list[float]]) -> dict[str, Any]:
    """Median seconds of a step of both, in turns, and the ratios of the turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 else (1, 0):
            times[which].append(statistics.median((one, other)[which]()))
        print(f"  turn {turn + 1} of {rounds}: {times[0][-1]:.4f} s, {times[1][-1]:.4f} s", file=sys.stderr)
    ratios = sorted(b / a for a, b in zip(*times, strict=True))
    return {
        "seconds": [statistics.median(of) for of in times],
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def saving(rounds: int) -> dict[str, list[float]]:
    """Seconds for which training stands still, and until all is on the disk, by way of saving."""
    run = Run(model=vit("S/16"), ema_decay=0.999, batch_size=2)
    world = distributed.start(device="cpu", threads=torch.get_num_threads())
    trainee = Trainee(run, world, num_classes=1000)
    random = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3)).astype(np.uint8)
    data = ArraySource(random, prefix="noise", classes=[str(i) for i in range(1000)], labels=np.arange(8))
    batches = training_batches(data, run.train_view, batch_size=2, seed=0, first_step=0, steps=2)
    trainee.take(0, batches)
    tensors = trainee.tensors()
    found: dict[str, list[float]] = {"bytes": [float(sum(tensor.nbytes for tensor in tensors.values()))]}

    for turn in range(rounds):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            for name, seconds in saved_once(tensors, Path(folder), world).items():
                found.setdefault(name, []).append(seconds)
        print(f"  turn {turn + 1} of {rounds}", file=sys.stderr)
    return found


def saved_once(tensors: dict[str, Tensor], place: Path, world: distributed.World) -> dict[str, float]:
    """Seconds of each way to save `tensors`."""
    ours, times = Checkpoints(place / "ours", world=world, config=CheckpointConfig()), [time.perf_counter()]

    def clock() -> None:
        times.append(time.perf_counter())

    ours.save({"step": 1}, tensors)
    clock()
    ours.begin({"step": 2}, tensors)
    clock()
    ours.finish()
    clock()
    dcp.save(dict(tensors), checkpoint_id=str(place / "dcp"))
    clock()
    future = dcp.async_save(dict(tensors), checkpoint_id=str(place / "async"))
    clock()
    future.result()  # pyright: ignore[reportAttributeAccessIssue]
    clock()
    waiting, stall, rest, theirs, their_stall, their_rest = np.diff(times).tolist()
    return {
        "vitreous, waiting": waiting,
        "vitreous, background: stall": stall,
        "vitreous, background: whole": stall + rest,
        "dcp.save": theirs,
        "dcp.async_save: stall": their_stall,
        "dcp.async_save: whole": their_stall + their_rest,
    }


RESTART = """
import sys, time
sys.path.insert(0, sys.argv[1])
from safety import go_on
import torch._dynamo  # which torch imports when an optimizer is built
began = time.perf_counter()
print(*go_on(sys.argv[2], int(sys.argv[3]), began))
"""


class Billion(ArraySource):
    """The images over and over, a thousand million of them."""

    def __init__(self) -> None:
        super().__init__(images().pixels, prefix="noise", classes=[str(i) for i in range(10)], labels=images().labels)
        self.labels = np.broadcast_to(np.int64(3), (10**9,))

    def __reduce__(self) -> Any:  # labels that are one number would be written out
        return Billion, ()

    def __len__(self) -> int:
        return 10**9

    def image(self, i: int, *, min_side: int | None = None) -> Any:
        return super().image(i % 512)


def go_on(folder: str, num_workers: int, began: float) -> list[float]:
    """Seconds from `began` to the end of the first step after a restart, of that step, and its number."""
    run = cifar(steps=10**8, num_workers=num_workers)
    world, ended = distributed.start(device="cpu", threads=1), []
    training = Training(
        run,
        Billion(),
        held_out=("test", images()),
        folder=RunFolder(Path(folder)),
        world=world,
        console=Console(quiet=True),
        fingerprint="",
    )
    take = training.trainee.take

    def noted(step: int, batches: Iterator[Batch]) -> Any:
        asked = time.perf_counter()
        take(step, batches)
        ended.extend([time.perf_counter() - began, time.perf_counter() - asked, float(step)])
        raise KeyboardInterrupt

    training.trainee.take = noted  # pyright: ignore[reportAttributeAccessIssue]
    with suppress(KeyboardInterrupt):
        training.carry_out(None)
    return ended


def restarts(rounds: int, num_workers: int) -> dict[str, Any]:
    """Seconds from the end of the imports to the end of the first step, in fresh processes."""
    with tempfile.TemporaryDirectory() as folder:
        world = distributed.start(device="cpu", threads=1)
        run = cifar(steps=10**8)
        training = Training(
            run,
            Billion(),
            held_out=("test", images()),
            folder=RunFolder(Path(folder)),
            world=world,
            console=Console(quiet=True),
            fingerprint="",
        )
        batches = training_batches(images(), run.train_view, batch_size=64, seed=0, first_step=0, steps=1)
        training.trainee.take(0, batches)
        training.done = 10**7
        training.save(at_once=True)
        found = []
        for _ in range(rounds):
            words = [sys.executable, "-c", RESTART, str(Path(__file__).parent), folder, str(num_workers)]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            found.append([float(word) for word in done.stdout.split()])
            assert found[-1][2] == 10**7
    return {"seconds": [row[0] for row in found], "step": [row[1] for row in found]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="JSON file for everything measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("loop", file=sys.stderr)
    loop = paired(options.rounds, lambda: bare_steps(cifar(), images()), lambda: our_steps(cifar(), images()))
    print("save", file=sys.stderr)
    saves = saving(options.rounds)
    print("restart", file=sys.stderr)
    going_on = {f"{workers} readers": restarts(options.rounds, workers) for workers in (0, 2)}
    print("shard", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        shard = paired(
            options.rounds,
            lambda: sharded_steps(cifar(), images(), sharded=False),
            lambda: sharded_steps(cifar(), images(), sharded=True),
        )
        dist.destroy_process_group()
    middle = {name: statistics.median(times) for name, times in saves.items()}
    rows: list[tuple[str, str, str]] = [
        ("what", "seconds", "ratio"),
        ("bare step", f"{loop['seconds'][0]:.4f}", ""),
        ("step of the loop", f"{loop['seconds'][1]:.4f}", f"{loop['ratio']:.4f} of the bare step"),
        ("step, sharded over one", f"{shard['seconds'][1]:.4f}", f"{shard['ratio']:.4f} of the plain one"),
    ]
    whole = middle["vitreous, waiting"]
    rows += [(name, f"{s:.3f}", f"{s / whole:.2f} of waiting") for name, s in middle.items() if name != "bytes"]
    for name, times in going_on.items():
        first, step = statistics.median(times["seconds"]), statistics.median(times["step"])
        rows.append((f"restart to the end of a step, {name}", f"{first:.3f}", f"{step:.3f} s of it the step"))
    print(table(rows))
    if options.out is not None:
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": platform.platform(),
            "versions": installed(("vitreous", "torch", "numpy")),
            "load": os.getloadavg(),
            "threads": 1,
            "seed": 0,
            "parameters": sum(p.numel() for p in build_objective(cifar(), num_classes=10).parameters()),
        }
        results = {**about, "loop": loop, "shard": shard, "save": saves, "restart": going_on}
        write_text(options.out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
