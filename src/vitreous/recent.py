"""The steps since the last line of metrics.jsonl, and what stands out among them."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, stdev

import torch

from vitreous.distributed import World
from vitreous.trainee import Taken

WINDOW = 128
"""Steps that a number is compared with."""
LEAST = 32
"""Steps there must be before anything can stand out."""
SIGMAS = 6.0
"""Standard deviations above their mean from which on a number stands out."""
LEAST_RATIO = 1.01
"""Of a number to that mean: where all numbers are alike, a small difference is many standard deviations."""
WATCHED = ("loss", "grad_norm")

Row = dict[str, float]


@dataclass
class Recent:
    """Numbers of the steps since the last line, on the device until somebody asks for them."""

    rows: list[Row] = field(default_factory=list)
    """Of each step that was asked for: the mean over its micro-batches."""
    history: dict[str, list[float]] = field(default_factory=dict)
    """The last numbers of what is watched for spikes."""
    pending: list[Taken] = field(default_factory=list)
    images: int = 0
    waited_s: float = 0.0
    """For images."""
    others_s: float = 0.0
    """Until the last process began each step."""
    timed: int = 0
    """Steps that these times are of."""
    started: float = field(default_factory=time.monotonic)

    def add(self, taken: Taken, *, images: int, waited_s: float, others_s: float) -> None:
        """Count in one step."""
        self.pending.append(taken)
        self.timed += 1
        self.images += images
        self.waited_s += waited_s
        self.others_s += others_s

    def settle(self, world: World) -> list[Row]:
        """Fetch the numbers of the steps that are still on the device; all processes do so at the same step.

        Every number is the mean over the micro-batches of all processes, added in their order.
        """
        if not self.pending:
            return []
        parts = torch.stack([taken.numbers for taken in self.pending]).cpu().double()
        gathered = world.gather(parts).permute(1, 2, 0, 3).flatten(1, 2).numpy()  # step, micro-batch, name
        steps = torch.stack(
            [torch.stack([t.grad_norm, t.skipped.to(t.grad_norm.dtype)]) for t in self.pending]
        ).tolist()
        new = []
        for taken, numbers, (norm, skipped) in zip(self.pending, gathered, steps, strict=True):
            means = {name: math.fsum(column) / len(column) for name, column in zip(taken.names, numbers.T)}
            new.append({"step": taken.step + 1, **means, "grad_norm": norm, "skipped": skipped})
        self.pending = []
        self.rows += new
        return new

    def means(self) -> Row:
        """Means over the steps of the line, without those that were skipped."""
        taken = [row for row in self.rows if not row["skipped"]] or self.rows
        return {name: fmean(row[name] for row in taken) for name in taken[0] if name not in ("step", "skipped")}

    def speed(self) -> Row:
        """How fast they were, as this process saw it."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        return {"images_per_s": self.images / elapsed, "data_wait": self.waited_s / elapsed}

    def behind(self, world: World) -> Row:
        """Which process began its steps last, and how long the first one waited for it, a step in seconds."""
        if world.size == 1:
            return {}
        own = torch.tensor([self.others_s / max(self.timed, 1)], dtype=torch.float64)
        waits = world.gather(own)[:, 0].tolist()
        return {"slowest": waits.index(min(waits)), "behind_s": max(waits) - min(waits)}

    def spikes(self, row: Row) -> Row:
        """What of `row` stands far above the steps before it, with the mean it stands above; then counts it in.

        Nothing of a skipped step.
        """
        found = {}
        for name in WATCHED if not row["skipped"] else ():
            before = self.history.setdefault(name, [])
            if len(before) >= LEAST:
                mean = fmean(before)
                if row[name] > LEAST_RATIO * mean and row[name] > mean + SIGMAS * stdev(before):
                    found |= {name: row[name], f"usual_{name}": mean}
            self.history[name] = [*before, row[name]][-WINDOW:]
        return found

    def state(self) -> Mapping[str, object]:
        """What a checkpoint must hold so that lines and spikes are those of a run that never stopped."""
        return {"rows": list(self.rows), "history": dict(self.history)}  # written while more steps are taken

    def next_line(self) -> "Recent":
        """A new line after this one."""
        return Recent(history=self.history)
