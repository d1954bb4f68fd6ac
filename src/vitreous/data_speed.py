"""How many images a second can be had here, and how many a run takes."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from vitreous.data.batch import Batch
from vitreous.data.loader import training_batches
from vitreous.data.pixel_cache import Cache
from vitreous.data.source import Source
from vitreous.distributed import World
from vitreous.run import Run
from vitreous.trainee import Trainee

ENDLESS = 10**9


@dataclass(frozen=True)
class DataSpeed:
    """Images a second, each measured by itself."""

    read: dict[int, float]
    """What so many reader processes give: read, decoded, and in the shape that training sees."""
    needed: float
    """What training takes where it never waits for images."""

    @property
    def enough(self) -> int | None:
        """The least number of those readers with which training does not wait; None if none of them does."""
        return next((readers for readers, rate in sorted(self.read.items()) if rate >= self.needed), None)


def labelled_alike(source: Source) -> Source:
    """`source` with one class an image, and two classes at least: which they are changes no speed."""
    found = source.select(range(len(source)))
    found.classes = source.classes if len(source.classes) > 1 else ("0", "1")
    found.sets, found.labels = None, np.arange(len(source)) % len(found.classes)
    return found


def data_speed(
    run: Run,
    source: Source,
    *,
    readers: Sequence[int],
    world: World,
    seconds: float,
    say: Callable[[str], None] = lambda line: None,
) -> DataSpeed:
    """Read `source` as `run` would with each number of reader processes, then train on one batch again and again.

    Each takes about `seconds` once it runs; a cache is written first if the run has one. Nothing is kept. Files that
    were read before may come from memory.

    Raises:
        InputError: if an image cannot be read, or the run does not go together.
    """
    read = {}
    with TemporaryDirectory() as folder:
        cached = source
        if run.cache_gb and run.train_view.still is not None:
            say(f"writing a cache of {len(source):,} images")
            cache = Cache(Path(folder) / "cache", source, run.train_view.still, fingerprint="")
            cache.write(most_gb=run.cache_gb)
            cached = cache.open()
        for number in readers:
            say(f"reading with {number} reader processes" if number else "reading in the main process")
            batches = training_batches(
                cached,
                run.train_view,
                batch_size=min(run.batch_size, len(source)),
                seed=run.seed,
                first_step=0,
                steps=ENDLESS,
                num_workers=number,
            )
            read[number] = _rate(batches, seconds)
    say(f"training on {world.device.type}")
    return DataSpeed(read, _rate(_training(run, source, world), seconds))


def _training(run: Run, source: Source, world: World) -> Iterator[Batch]:
    """A batch, each time it has been trained on."""
    run = replace(run, weights=None, steps=ENDLESS, num_micro_batches=None, exact=False)
    trainee = Trainee(run, world, num_classes=len(source.classes))
    batch = next(trainee.batches(source, first_step=0, steps=1))
    for step in itertools.count():
        torch.isfinite(trainee.take(step, itertools.repeat(batch)).grad_norm).item()  # waits for the device
        yield batch


def _rate(batches: Iterator[Batch], seconds: float) -> float:
    """Images a second, from the second batch on: with the first, readers and kernels have started."""
    next(batches)
    began, images = time.monotonic(), 0
    for batch in batches:
        images += len(batch.index)
        if time.monotonic() - began > seconds:
            break
    return images / (time.monotonic() - began)
