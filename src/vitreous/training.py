"""Training: one loop for every objective."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.checkpoint import Checkpoints, Restored
from vitreous.config import Config, check_ranges
from vitreous.console import Console
from vitreous.data.loader import training_batches
from vitreous.data.prepare import DataConfig
from vitreous.data.source import Source
from vitreous.data.views import EvalView, TrainView
from vitreous.distributed import World
from vitreous.errors import InputError
from vitreous.evaluation.classify import measure, probabilities
from vitreous.objectives.base import Objective, ObjectiveConfig
from vitreous.objectives.supervised import Supervised, SupervisedObjective
from vitreous.optim import AdamW, OptimizerConfig
from vitreous.run_folder import RunFolder
from vitreous.schedule import Cosine, Schedule
from vitreous.seeding import key
from vitreous.stopping import EXIT_OUT_OF_TIME, Stopped, StopRequest
from vitreous.tokens import Encoder
from vitreous.vit import ViTConfig
from vitreous.weights.open import open_model


class Diverged(InputError):
    """The loss stopped being a number: the learning rate is too high."""


@dataclass(frozen=True, kw_only=True)
class Run(Config):
    """One training run: everything needed to repeat it."""

    data: DataConfig = DataConfig()
    """Which images."""
    train_view: TrainView = TrainView()
    """How an image is shown in training."""
    eval_view: EvalView = EvalView()
    """How an image is shown when it is measured; travels with the model."""
    model: Encoder = ViTConfig()
    """The encoder."""
    weights: str | None = None
    """Where the encoder starts from: a run, a product folder, a weights file or a prefixed name."""
    objective: ObjectiveConfig = Supervised()
    """What the encoder is trained to do."""
    optimizer: OptimizerConfig = AdamW()
    """What moves the weights."""
    learning_rate: Schedule = Cosine()
    """Learning rate over the run."""
    batch_size: int = 64
    """Images a step."""
    steps: int = 1000
    """Optimizer steps."""
    num_evaluations: int = 10
    """Times held-out images are measured during training; nothing is chosen by these measurements."""
    num_evaluation_images: int = 2000
    """Most held-out images measured each of these times, evenly spaced; at the end all are."""
    checkpoint_every_s: float = 60.0
    """Seconds between checkpoints."""
    num_workers: int = 0
    """Processes that read images; the batches are the same for any number."""
    seed: int = 0
    """Source of every random choice."""

    def __post_init__(self) -> None:
        positive = ("batch_size", "steps", "num_evaluation_images")
        natural = ("num_evaluations", "checkpoint_every_s", "num_workers", "seed")
        check_ranges(self, **dict.fromkeys(positive, (1, math.inf)), **dict.fromkeys(natural, (0, math.inf)))
        try:
            self.model.check_image(*self.train_view.shape)
        except InputError as error:
            raise InputError(f"train_view.image_size {self.train_view.image_size}: {error}") from None
        if self.eval_view.shape != self.model.image_shape:
            raise InputError(
                f"eval_view.image_size {self.eval_view.image_size} is not model.image_size {self.model.image_size}; "
                "only train_view may have another"
            )
        if self.model.channels != 3:
            raise InputError(f"model.channels is {self.model.channels}; images have 3")

    @property
    def log_every(self) -> int:
        """Steps between two lines of metrics.jsonl."""
        return max(1, min(50, self.steps // 200))


@dataclass
class Recent:
    """Sums over the steps since the last line of metrics.jsonl; kept on the device until then."""

    steps: int = 0
    images: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    waited: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def add(self, numbers: Mapping[str, Tensor], waited: float, *, images: int) -> None:
        self.steps += 1
        self.images += images
        self.waited += waited
        for name, number in numbers.items():
            self.sums[name] = self.sums.get(name, 0) + number.detach()

    def means(self) -> dict[str, float]:
        means = {name: float(total) / self.steps for name, total in self.sums.items()}  # waits for the device
        elapsed = max(time.monotonic() - self.started, 1e-9)
        return {**means, "images_per_s": self.images / elapsed, "data_wait": self.waited / elapsed}


def build_objective(run: Run, *, num_classes: int) -> Objective:
    """The objective at step 0: weights drawn from the run's seed, the encoder's from `run.weights` if given.

    Raises:
        InputError: if there are no such weights, or they do not fit.
    """
    torch.manual_seed(key(run.seed, "initialise"))
    objective = run.objective.build(run.model, num_classes=num_classes)
    if run.weights is not None:
        objective.start_from(open_model(run.weights))
    return objective


def train(
    run: Run,
    data: Source,
    *,
    held_out: tuple[str, Source],
    folder: RunFolder,
    world: World,
    console: Console,
    time_limit_s: float | None = None,
) -> Objective:
    """Carry out `run` on `data`; goes on from the newest checkpoint in `folder`, if any.

    Raises:
        Stopped: after a signal, or when `time_limit_s` is up; a checkpoint has been written.
        Diverged: if the loss stops being a number.
    """
    checkpoints = Checkpoints(folder.checkpoints)
    start = replace(run, weights=None) if checkpoints.saved() else run  # what they started from may be gone by now
    objective = build_objective(start, num_classes=len(data.classes)).to(world.device)
    optimizer = run.optimizer.build(objective)
    before = checkpoints.restore(objective, optimizer) or Restored(0, 0.0)
    folder.forget_after(before.step)
    for path in checkpoints.damaged:
        console.say(f"warning: {path} is damaged and set aside")
    if before.step:
        console.say(f"going on from step {before.step:,} of {run.steps:,}")
    began = saved_at = time.monotonic()

    def seconds() -> float:
        return before.seconds + time.monotonic() - began

    batches = training_batches(
        data,
        run.train_view,
        batch_size=run.batch_size,
        seed=run.seed,
        first_step=before.step,
        steps=run.steps,
        num_workers=run.num_workers,
        device=world.device,
    )
    recent, shown, measured = Recent(), "", ""
    with StopRequest() as stop, console.task("step", run.steps, done=before.step) as task:
        for step in range(before.step, run.steps):
            progress, asked = step / run.steps, time.monotonic()
            try:
                batch = next(batches)
            except InputError:
                if stop.signal is None:
                    raise
                if step > before.step:
                    _save(checkpoints, Restored(step, seconds()), objective, optimizer, console, must=True)
                raise Stopped(step, run.steps, stop.exit_code, stop.reason) from None  # it killed the readers too
            waited = time.monotonic() - asked
            numbers = optimizer_step(run, objective, optimizer, batch, step=step, world=world)
            objective.after_step(progress)
            recent.add(numbers, waited, images=batch.images.shape[1])

            done = step + 1
            last = done == run.steps
            out_of_time = time_limit_s is not None and time.monotonic() - began > time_limit_s
            due = time.monotonic() - saved_at > run.checkpoint_every_s
            stopping = stop.signal is not None or (out_of_time and not last)
            if done % run.log_every == 0 or last or due or stopping:
                line = recent.means()
                _check_finite(line, done=done, run=run, folder=folder)
                rate = optimizer.param_groups[0]["lr"]
                row = {"split": "train", "step": done, "learning_rate": rate, **line, "seconds": seconds()}
                _log(folder, row, console)
                recent = Recent()
                shown = _figures(line)
            paused = time.monotonic()
            if done * run.num_evaluations // run.steps > step * run.num_evaluations // run.steps:
                result = _measure(objective, held_out, run, world)
                if result is not None:
                    _log(folder, {"split": held_out[0], "step": done, **result, "seconds": seconds()}, console)
                    measured = f"{held_out[0]} {result['top1']:.1%}"
            if shown:
                task.update(done, f"{shown}  {measured}".strip())
                shown = ""
            stopping |= stop.signal is not None  # while measuring
            if last or due or stopping:
                _save(checkpoints, Restored(done, seconds()), objective, optimizer, console, must=stopping)
                saved_at = time.monotonic()
            recent.started += time.monotonic() - paused  # the speed is that of training alone
            if stopping:
                code = stop.exit_code if stop.signal is not None else EXIT_OUT_OF_TIME
                raise Stopped(done, run.steps, code, stop.reason if stop.signal is not None else "out of time")
    return objective


def optimizer_step(
    run: Run, objective: Objective, optimizer: torch.optim.Optimizer, batch: Any, *, step: int, world: World
) -> dict[str, Tensor]:
    """One optimizer step; a pure function of the weights, the batch and the step."""
    torch.manual_seed(key(run.seed, "step", step))
    objective.train()
    progress = step / run.steps
    for group in optimizer.param_groups:
        group["lr"] = run.learning_rate(progress)
    with world.autocast():
        loss = objective(batch, progress)
    loss.total.backward()
    norm = nn.utils.clip_grad_norm_(objective.parameters(), run.optimizer.clip_norm or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return {"loss": loss.total.detach(), "grad_norm": norm, **loss.parts}


def _measure(objective: Objective, held_out: tuple[str, Source], run: Run, world: World) -> dict[str, float] | None:
    """Loss and top-1 on some held-out images; None for an objective without classes."""
    if not isinstance(objective, SupervisedObjective):
        return None
    source = held_out[1]
    stride = -(-len(source) // run.num_evaluation_images)
    chosen = source.select(list(range(0, len(source), stride)))
    predicted = probabilities(
        objective.classifier,
        chosen,
        run.eval_view,
        world=world,
        batch_size=run.batch_size,
        num_workers=run.num_workers,
    )
    return measure(predicted, chosen.labels)


@contextmanager
def _going_on_without(what: str, console: Console) -> Iterator[None]:
    """If the disk refuses, say so and go on training."""
    try:
        yield
    except InputError as error:
        console.say(f"warning: no {what}: {error}")


def _log(folder: RunFolder, measurement: dict[str, Any], console: Console) -> None:
    """Write a measurement, if the disk takes it."""
    with _going_on_without(f"measurement of step {measurement['step']:,}", console):
        folder.append(measurement)


def _save(
    checkpoints: Checkpoints,
    state: Restored,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    console: Console,
    *,
    must: bool,
) -> None:
    """Write a checkpoint; unless it must be, only if the disk takes it."""
    with nullcontext() if must else _going_on_without(f"checkpoint at step {state.step:,}", console):
        checkpoints.save(state, objective, optimizer)


def _check_finite(line: dict[str, float], *, done: int, run: Run, folder: RunFolder) -> None:
    if not math.isfinite(line["loss"]) or not math.isfinite(line["grad_norm"]):
        name = next((name for name in ("peak", "value") if hasattr(run.learning_rate, name)), None)
        now = getattr(run.learning_rate, name) if name else run.learning_rate(done / run.steps)
        lower = f"try: vitreous train {folder.record} --learning_rate.{name} {now / 3:.2g}" if name else "lower it"
        raise Diverged(
            f"the loss is no longer a number near step {done:,}: the learning rate, {now:g}, is too high; {lower}"
        )


def _figures(line: dict[str, float]) -> str:
    accuracy = f"  accuracy {line['accuracy']:.1%}" if "accuracy" in line else ""
    return f"loss {line['loss']:.3f}{accuracy}  {line['images_per_s']:,.0f} images/s  data wait {line['data_wait']:.0%}"
