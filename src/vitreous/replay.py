"""One step of a run, computed again: it comes out the same, since every random choice is a pure function."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vitreous.checkpoint import Checkpoints
from vitreous.close_up import Part, Shown, class_scores, images_of, parts_of
from vitreous.console import Console
from vitreous.cores import cores
from vitreous.data.data_config import DataConfig
from vitreous.data.prepare import Prepared
from vitreous.data.source import Source
from vitreous.diagnosis import cause, watched
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.experiment import look
from vitreous.objectives.base import ObjectiveConfig
from vitreous.parallel import FullShard, HybridShard
from vitreous.recent import Recent, Row
from vitreous.recorded import SAME, agreement
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.saved import Saved
from vitreous.trainee import Trainee


@dataclass(frozen=True)
class Replayed:
    """One step, computed again."""

    step: int
    start: int
    """The step whose state stood in a checkpoint; 0: the weights as they were drawn."""
    learning_rate: float
    numbers: Row
    """Loss and its parts, as means over the micro-batches; norm of the gradient before clipping."""
    skipped: bool
    before: str
    """Digest of weights, optimizer and average."""
    after: str
    parts: list[Part]
    images: list[Shown]
    """Largest loss first."""
    cause: str | None
    """What was the first that is not finite, if anything was."""
    spike: Row
    """What stood far above the steps before."""
    agrees: dict[str, str]
    """What the run has recorded of the step, and whether it is the same."""
    doubts: list[str]
    """Why the last bits may differ."""


def replay(folder: RunFolder, run: Run, *, step: int, world: World, console: Console) -> Replayed:
    """Step `step` of the run in `folder`, from the newest checkpoint before it; nothing is changed there.

    Every process of the world calls this. A run of other processes than these is computed in the same micro-batches.

    Raises:
        InputError: if there is no such step, the data have changed, or nothing is left to begin from.
    """
    record = folder.read()
    if not 1 <= step <= run.steps:
        raise InputError(f"--step {step} is not a step of {folder.path}; give one of 1 to {run.steps}")
    if world.device.type == "cpu":
        world = world.with_threads(min(record.get("threads", 0), 4 * cores()) or world.threads)
    prepared = world.on_main(lambda: _data(folder, record, console, run.objective))
    checkpoints = Checkpoints(
        folder.checkpoints, world=world, config=run.checkpoint, identity=run.identity(prepared.fingerprint)
    )
    saved = checkpoints.newest(most=step - 1)
    processes = saved.manifest["processes"] if saved else record.get("processes", 1)
    taken = _as_taken(run, processes, world)
    if saved is None and run.weights is not None:
        taken = replace(taken, weights=_at_its_place(run.weights, record))
    else:
        taken = replace(taken, weights=None)
    trainee = _trainee(taken, saved, world=world, num_classes=len(prepared.classes), step=step)
    course = _Course(trainee, saved, prepared.train, console, step=step)
    start = course.done
    course.go_to(step - 1)
    before = digest(trainee.tensors())
    with class_scores(trainee.objective) as scores:
        watch, numbers = watched(trainee, prepared.train, step=step - 1)
    parts, images = parts_of(trainee, watch), images_of(trainee, watch, scores, prepared.train)
    found = cause(trainee, prepared.train, watch, numbers)
    trainee.forget_gradients()
    row, spike = course.go_to(step)
    after = digest(trainee.tensors())
    rate = taken.learning_rate((step - 1) / taken.steps)
    agrees = agreement(folder, run, row=row, spike=spike, recent=course.recent, learning_rate=rate)
    if (there := checkpoints.newest(most=step)) is not None and there.state["step"] == step:
        trainee.restore(there)
        same = digest(trainee.tensors()) == after
        agrees[f"checkpoint of step {step:,}"] = SAME if same else "differs"
    return Replayed(
        step=step,
        start=start,
        learning_rate=rate,
        numbers={name: value for name, value in row.items() if name not in ("step", "skipped")},
        skipped=bool(row["skipped"]),
        before=before,
        after=after,
        parts=parts,
        images=images,
        cause=found.text if row["skipped"] or found.kind not in ("norm", "nothing") else None,
        spike=spike,
        agrees=agrees,
        doubts=_doubts(saved.manifest["circumstances"] if saved else record, processes, taken, world),
    )


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A short name for every bit of `tensors`, however they lie on the processes, which ask together."""
    found = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(tensors.items()):
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        found.update(f"{name} {whole.dtype} {tuple(whole.shape)} ".encode())
        found.update(whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class _Course:
    """The run on its way to a step, from a checkpoint or the start."""

    def __init__(self, trainee: Trainee, saved: Saved | None, source: Source, console: Console, *, step: int) -> None:
        self.trainee, self.source, self.console, self.step = trainee, source, console, step
        self.done, self.skipped, self.recent = 0, 0, Recent()
        if saved is not None:
            state = saved.state
            self.done, self.skipped = state["step"], state["skipped_in_a_row"]
            self.recent = Recent(rows=state["recent"]["rows"], history=state["recent"]["history"])
            trainee.guard.in_a_row.fill_(self.skipped)

    def go_to(self, step: int) -> tuple[Row, Row]:
        """Take the steps up to `step`; the numbers of the last one, and what stood out."""
        run, trainee = self.trainee.run, self.trainee
        workers = run.num_workers if step - self.done > 1 else 0
        batches = trainee.batches(self.source, first_step=self.done, steps=step, num_workers=workers)
        row, spike = {}, {}
        with self.console.task("step", step, done=self.done) as task:
            while self.done < step:
                if self.done % run.log_every == 0:
                    self.recent = self.recent.next_line()
                self.recent.add(trainee.take(self.done, batches), images=0, waited_s=0.0, others_s=0.0)
                self.done += 1
                if self.done % run.log_every == 0 or self.done == step:
                    row, spike = self._settle()
                task.update(self.done)
        return row, spike

    def _settle(self) -> tuple[Row, Row]:
        row, spike = {}, {}
        for row in self.recent.settle(self.trainee.world):
            spike = self.recent.spikes(row)
            self.skipped = self.skipped + 1 if row["skipped"] else 0
            if self.skipped > self.trainee.run.max_skipped_steps and row["step"] < self.step:
                raise InputError(
                    f"training ends at step {row['step']:,}, whose loss or gradient is no finite number; "
                    f"look at that one: --step {row['step']}"
                )
        return row, spike


def _data(folder: RunFolder, record: dict[str, Any], console: Console, objective: ObjectiveConfig) -> Prepared:
    prepared = look(DataConfig.of_run(record), folder, console, objective=objective, dry_run=True)
    if prepared.fingerprint != record.get("data_fingerprint"):
        raise InputError(
            f"the images have changed since {folder.path} was begun; put them back to compute a step again"
        )
    return prepared


def _as_taken(run: Run, processes: int, world: World) -> Run:
    """`run` so that these processes compute what `processes` did, as nearly as they can."""
    if isinstance(run.parallel, HybridShard) and world.size != processes:
        run = replace(run, parallel=FullShard())  # how weights lie changes no result
    if run.num_micro_batches is None and world.size != processes:
        # on a CPU, gradients of processes are added in the tree in which `exact` adds those of micro-batches
        in_tree = world.device.type == "cpu" and not processes & (processes - 1)
        run = replace(run, num_micro_batches=processes, exact=in_tree)
    return run


def _at_its_place(weights: str, record: dict[str, Any]) -> str:
    """Weights of a run that was begun in another folder, if they are a path."""
    place = Path(record.get("directory", "")) / os.path.expanduser(weights)
    return str(place) if place.exists() else weights


def _trainee(run: Run, saved: Saved | None, *, world: World, num_classes: int, step: int) -> Trainee:
    try:
        trainee = Trainee(run, world, num_classes=num_classes)
    except InputError as error:
        if run.weights is None:
            raise
        raise InputError(
            f"no checkpoint before step {step:,} is left, and the weights that the run began with cannot be had "
            f"({error}); put them back, or ask for a later step"
        ) from error
    if saved is not None:
        try:
            trainee.restore(saved)
        except FileNotFoundError:
            raise InputError(f"{saved.path} has just given way to a newer one: training goes on; try again") from None
    return trainee


def _doubts(before: Mapping[str, Any], processes: int, taken: Run, world: World) -> list[str]:
    """In what these processes differ from those of the run, where that may change bits."""
    now = world.circumstances(exact=taken.exact)
    then = {"processes": processes, **{name: value for name, value in before.items() if name in now}}
    odd = [f"{name} {then[name]} then, {value} now" for name, value in now.items() if then.get(name, value) != value]
    if "processes" in now and processes != world.size:
        odd.append(f"torchrun --nproc-per-node {processes} -m vitreous replay … computes it as the run did")
    return odd
