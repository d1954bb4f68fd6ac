"""Training: one loop for every objective, in any number of processes."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, NoReturn

from vitreous.checkpoint import IDLE, Checkpoints
from vitreous.claim import TakenOver
from vitreous.console import Console
from vitreous.data.batch import Batch
from vitreous.data.loader import step_size
from vitreous.data.pixel_cache import Cache
from vitreous.data.source import Source
from vitreous.diagnosis import diagnose
from vitreous.distributed import World, lost
from vitreous.errors import InputError, SaidElsewhere
from vitreous.evaluation import multi_label
from vitreous.evaluation.classify import measure, scored
from vitreous.fields import walk
from vitreous.files import write_text
from vitreous.hang import HangWatch
from vitreous.metrics import headline
from vitreous.objectives.base import Objective
from vitreous.objectives.supervised import SupervisedObjective
from vitreous.recent import Recent, Row
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.run_state import typeable
from vitreous.stopping import EXIT_TRY_AGAIN, Lost, Stopped, StopRequest
from vitreous.tracking.services import check_installed
from vitreous.tracking.trackers import Trackers
from vitreous.trainee import Trainee
from vitreous.usage import Usage

SLOW_RATIO = 0.2
"""Share of a step that the first process waits for the last, from which on that one is named."""


SLOW_STEPS = 20
"""Fewer steps than these say little about who is slow."""


class Diverged(InputError):
    """Loss or gradient stopped being finite numbers; the weights are still those of the step before."""


def train(
    run: Run,
    data: Source,
    *,
    held_out: tuple[str, Source],
    folder: RunFolder,
    world: World,
    console: Console,
    fingerprint: str = "",
    time_limit_s: float | None = None,
) -> Objective:
    """Carry out `run` on `data`; goes on from the newest checkpoint in `folder`, if any.

    Every process of the world calls this; the main one writes into `folder`. `fingerprint` tells data apart.

    Raises:
        Stopped: after a signal, or when `time_limit_s` is up; a checkpoint has been written.
        Lost: if another process died or was cut off; the newest checkpoint is whole.
        Diverged: if loss or gradient are no finite numbers, more often in a row than the run allows.
    """
    work = Training(run, data, held_out=held_out, folder=folder, world=world, console=console, fingerprint=fingerprint)
    try:
        return work.carry_out(time_limit_s)
    except Exception as error:
        if lost(error):
            raise Lost(f"process {world.rank} lost the others after step {work.done:,} of {run.steps:,}") from error
        raise


class Training:
    """One run under way in this process."""

    def __init__(
        self,
        run: Run,
        data: Source,
        *,
        held_out: tuple[str, Source],
        folder: RunFolder,
        world: World,
        console: Console,
        fingerprint: str,
    ) -> None:
        self.run, self.data, self.held_out = run, data, held_out
        self.folder, self.world, self.console = folder, world, console
        self.fingerprint = fingerprint
        attempt, begun = world.on_main(
            lambda: (folder.claim.attempt if folder.claim else 0, any(folder.checkpoints.glob("step-*[0-9]")))
        )
        start = replace(run, weights=None) if begun else run  # what they started from may be gone by now
        self.trainee = Trainee(start, world, num_classes=len(data.classes))
        self.usage = Usage(self.trainee)
        self.checkpoints = Checkpoints(
            folder.checkpoints,
            world=world,
            config=run.checkpoint,
            identity=run.identity(fingerprint),
            circumstances=world.circumstances(exact=run.exact),
            copies=self.trainee.placed.copies,
            copy=self.trainee.placed.copy,
            attempt=attempt,
            check=folder.secure,
        )
        self.recent = Recent()
        self.unwritten: list[dict[str, Any]] = []
        """Lines that the disk refused."""
        world.on_main(lambda: check_installed(run.trackers))
        config = {field.path: field.value for field in walk(run)}
        self.trackers = Trackers(run.trackers if world.is_main else (), run=folder, config=config, say=console.say)
        self.done, self.seconds_before, self.best, self.skipped = 0, 0.0, -1.0, 0
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time of the run so far."""
        return self.seconds_before + time.monotonic() - self.began

    def restore(self) -> None:
        """Take over the newest whole checkpoint, and forget what was logged after it."""
        saved = self.checkpoints.newest()
        if self.world.is_main:
            for path, reason in self.checkpoints.damaged.items():
                self.console.say(f"warning: {path} is damaged and set aside: {reason}")
            self.checkpoints.set_aside()
        if saved is not None:
            self.trainee.restore(saved)
            state = saved.state
            self.done, self.seconds_before, self.best = state["step"], state["seconds"], state["best"]
            self.recent = Recent(rows=state["recent"]["rows"], history=state["recent"]["history"])
            self.skipped = state["skipped_in_a_row"]
            self.trainee.guard.in_a_row.fill_(self.skipped)
            if odd := self.checkpoints.differences(saved):
                self.console.say(f"warning: bits may differ from those of an undisturbed run: {'; '.join(odd)}")
            self.console.say(f"going on from step {self.done:,} of {self.run.steps:,}")
        if self.world.is_main:
            self.folder.forget_after(self.done)
            self.folder.failure.unlink(missing_ok=True)

    def carry_out(self, time_limit_s: float | None) -> Objective:
        """All steps that are left."""
        self.restore()
        run, world, trainee = self.run, self.world, self.trainee
        parts, mixed = trainee.num_micro_batches, bool(run.data.shares)
        distinct = step_size(len(self.data), run.batch_size // run.num_repeats, num_micro_batches=parts, mixed=mixed)
        images = distinct * run.num_repeats
        batches = trainee.batches(self.cached(), first_step=self.done, steps=run.steps, num_workers=run.num_workers)
        saved_at, shown, measured = self.began, "", ""
        stacks = HangWatch(self.folder.stacks(world.rank), world.timeout_s / 2)
        trackers = self.trackers if world.is_main else nullcontext()
        with StopRequest() as stop, stacks, trackers, self.console.task("step", run.steps, done=self.done) as task:

            def wishes() -> list[int]:
                """What this process wants all to do: heed a signal, end in time, save; and how far it has saved."""
                now = time.monotonic()
                late = time_limit_s is not None and now - self.began > time_limit_s
                due = now - saved_at > run.checkpoint.every_s
                return [
                    stop.signal or 0,
                    int(world.is_main and late),
                    int(world.is_main and due),
                    self.checkpoints.phase(),
                ]

            for step in range(self.done, run.steps):
                agreement = world.highest(wishes)
                waits = Waits(batches)
                try:
                    taken = trainee.take(step, waits)
                except InputError:
                    if stop.signal is None:
                        if world.size == 1 and step > 0:  # of many, the others cannot be asked any more
                            self.save()
                        raise
                    if world.size > 1:  # its readers were told to end, too; the others cannot be asked any more
                        asked = f"process {world.rank} was {stop.reason} after step {step:,} of {run.steps:,}"
                        raise Lost(asked) from None
                    if step > 0:
                        self.save(at_once=True)
                    raise Stopped(step, run.steps, stop.exit_code, stop.reason) from None  # it killed the readers too
                self.done = done = step + 1
                last = done == run.steps
                signal, late, due, phase = agreement.read()
                self.recent.add(taken, images=images, waited_s=waits.seconds, others_s=agreement.waited_s)
                paused = time.monotonic()
                with self.going_on_without("checkpoint"):
                    self.checkpoints.proceed(phase)
                if done % run.log_every == 0 or last:
                    shown = self.write_line()
                if done * run.num_evaluations // run.steps > step * run.num_evaluations // run.steps:
                    if (result := self.measure(stacks)) is not None:
                        name, score = headline(result)
                        measured = f"{self.held_out[0]} {score:.1%}" + (f" {name}" if self.data.multi_label else "")
                        if run.checkpoint.keep_best and score > self.best:
                            before, self.best = self.best, score
                            self.save(score=score)
                            if self.checkpoints.newest_step != done:  # the disk refused
                                self.best = before
                    signal = max(signal, *world.highest(lambda: [stop.signal or 0]).read())
                if shown:
                    task.update(done, f"{shown}  {measured}".strip())
                    shown = ""
                stopping = bool(signal or (late and not last))
                if stopping or last:
                    self.save(at_once=stopping)
                elif due and phase == IDLE:
                    self.save(background=run.checkpoint.background)
                    saved_at = time.monotonic()
                stacks.beat()
                now = time.monotonic()  # the speed is that of training alone
                self.recent.started = min(self.recent.started + now - paused, now)
                if stopping:
                    stop.signal = signal or None
                    code = stop.exit_code if signal else EXIT_TRY_AGAIN
                    raise Stopped(done, run.steps, code, stop.reason if signal else "out of time")
        if world.is_main:
            shutil.rmtree(self.folder.cache, ignore_errors=True)
        return trainee.whole()

    def cached(self) -> Source:
        """The images, read from a cache that is written first if the run asks for one and the disk takes it."""
        if not self.run.cache_gb:
            return self.data
        assert self.run.train_view.still is not None
        cache = Cache(self.folder.cache, self.data, self.run.train_view.still, self.fingerprint)

        def write() -> None:
            with self.going_on_without("cache"), self.console.task("image kept", len(self.data)) as task:
                self.folder.check()
                cache.write(most_gb=self.run.cache_gb, progress=task.update)

        self.world.on_main(write)
        return cache.open()

    def save(self, *, at_once: bool = False, background: bool = False, score: float | None = None) -> None:
        """Write a checkpoint; if it must not be now, only if the disk takes it."""
        self.look_at_rows()
        self.catch_up()  # what is gone on with from here must not lack lines
        state = {
            "step": self.done,
            "seconds": self.seconds,
            "best": self.best,
            "score": score,
            "recent": self.recent.state(),
            "skipped_in_a_row": self.skipped,
        }
        if at_once:
            self.checkpoints.save(state, self.trainee.tensors())
            return
        with self.going_on_without("checkpoint"):
            (self.checkpoints.begin if background else self.checkpoints.save)(state, self.trainee.tensors())

    def look_at_rows(self) -> None:
        """Fetch the numbers of the last steps from the device, and record what stands out among them.

        Raises:
            Diverged: if training has halted.
        """
        for row in self.recent.settle(self.world):
            found = self.recent.spikes(row)
            self.skipped = self.skipped + 1 if row["skipped"] else 0
            if self.skipped > self.run.max_skipped_steps:
                self.halt(int(row["step"]))
            elif row["skipped"]:
                self.log({"step": row["step"], "event": "skipped", "loss": str(row["loss"])})
                self.console.say(f"warning: step {row['step']:,} is skipped: its loss or gradient is not finite")
            elif found:
                self.log({"step": row["step"], "event": "spike", **found})

    def halt(self, step: int) -> NoReturn:
        """Keep the state before `step`, whose numbers are not finite, and say where they come from.

        Weights that are not finite themselves are not kept: the checkpoint before them is worth more.
        """
        with self.going_on_without("checkpoint"):
            self.checkpoints.finish()
        self.done, self.skipped = step - 1, self.run.max_skipped_steps
        self.recent.rows = [row for row in self.recent.rows if row["step"] < step]
        cause = diagnose(self.trainee, self.data, step=self.done)
        if self.done and cause.kind != "weight":
            self.save()
        name = next((name for name in ("peak", "value") if hasattr(self.run.learning_rate, name)), None)
        now = getattr(self.run.learning_rate, name) if name else self.run.learning_rate(step / self.run.steps)
        record, path = (typeable(str(path)) for path in (self.folder.record, self.folder.path))
        lower = f"vitreous train {record} --learning_rate.{name} {now / 3:.2g}" if name else "a lower one"
        what = f"loss or gradient is no finite number at step {step:,}, which was not carried out: {cause.text}"
        advice = f"the learning rate, {now:g}, may be too high; try {lower}"
        if not self.world.is_main:
            raise SaidElsewhere("process 0 says why")
        failure = {"what": what, "step": step, "advice": advice}
        with self.going_on_without("failure.json"):
            self.folder.check()
            write_text(self.folder.failure, json.dumps(failure, indent=1, ensure_ascii=False) + "\n")
        raise Diverged(f"{what}; {advice}, or look at it: vitreous replay {path} --step {step}")

    def write_line(self) -> str:
        """Log the means over the steps since the last line; these figures in words."""
        self.look_at_rows()
        speed = self.recent.speed()
        used = self.usage.figures(speed["images_per_s"], shape=self.run.shape_at(self.done - 1))
        line = {**self.recent.means(), **speed, **used, **self.recent.behind(self.world)}
        rate = self.run.learning_rate((self.done - 1) / self.run.steps)
        self.log({"split": "train", "step": self.done, "learning_rate": rate, **line, "seconds": self.seconds})
        if self.world.size > 1 and self.recent.timed >= SLOW_STEPS:
            step_s = self.recent.images / max(line["images_per_s"] * self.recent.timed, 1e-9)
            if line["behind_s"] > SLOW_RATIO * step_s:
                self.console.say(
                    f"process {line['slowest']:.0f} is the slowest: the others wait {line['behind_s']:.2f} s "
                    f"of {step_s:.2f} s a step for it"
                )
        self.recent = self.recent.next_line()
        return _figures(line)

    def measure(self, stacks: HangWatch) -> dict[str, float] | None:
        """Log and return loss and top-1 on some held-out images; None for an objective without classes.

        Where images may show several classes, mean average precision stands in place of top-1.
        """
        if not isinstance(self.trainee.objective, SupervisedObjective):
            return None
        split, source = self.held_out
        stride = -(-len(source) // self.run.num_evaluation_images)
        chosen = source.select(list(range(0, len(source), stride)))
        average = self.trainee.average
        with average.in_place() if average else nullcontext():
            predicted = scored(
                self.trainee.objective,
                self.trainee.objective.scores,
                chosen,
                self.run.eval_view,
                num_classes=len(self.data.classes),
                multi_label=chosen.multi_label,
                world=self.world,
                batch_size=self.run.batch_size,
                num_workers=self.run.num_workers,
                progress=lambda _: stacks.beat(),
            )
            self.trainee.placed.reshard()
        result = multi_label.measure(predicted, chosen) if chosen.multi_label else measure(predicted, chosen.labels)
        self.log({"split": split, "step": self.done, **result, "seconds": self.seconds})
        return result

    def log(self, measurement: dict[str, Any]) -> None:
        """Write a measurement; if the disk refuses, keep it until it does not."""
        if self.world.is_main:
            self.unwritten.append(measurement)
            self.catch_up()

    def catch_up(self) -> None:
        """Write the measurements that are not yet, in their order."""
        with self.going_on_without("measurements"):
            while self.unwritten:
                self.folder.append(self.unwritten[0])
                self.trackers.add(self.unwritten[0])
                del self.unwritten[0]

    @contextmanager
    def going_on_without(self, what: str) -> Iterator[None]:
        """If the disk refuses, say so and go on training."""
        try:
            yield
        except TakenOver:
            raise
        except InputError as error:
            self.console.say(f"warning: no {what} at step {self.done:,}: {error}")


class Waits:
    """An iterator that knows how long it was waited for."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches, self.seconds = batches, 0.0

    def __iter__(self) -> "Waits":
        return self

    def __next__(self) -> Batch:
        asked = time.monotonic()
        try:
            return next(self._batches)
        finally:
            self.seconds += time.monotonic() - asked


def _figures(line: Row) -> str:
    accuracy = f"  accuracy {line['accuracy']:.1%}" if "accuracy" in line else ""
    return f"loss {line['loss']:.3f}{accuracy}  {line['images_per_s']:,.0f} images/s  data wait {line['data_wait']:.0%}"
