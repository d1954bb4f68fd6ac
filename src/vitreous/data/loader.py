"""Batches in an order that is a pure function of the seed, so that one integer is all there is to resume."""

from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from vitreous import seeding
from vitreous.data import readers
from vitreous.data.batch import Batch
from vitreous.data.order import Mixture, Order, Shuffled
from vitreous.data.shared import share, stacked
from vitreous.data.source import Source
from vitreous.data.views import View
from vitreous.errors import InputError

Loaded = tuple[UInt8[Tensor, "batch 3 height width"], Int[np.ndarray, " batch"], Int[np.ndarray, " batch"]]
"""Pixels, labels and positions; the last two are few bytes, which travel faster than tensors, each with a file."""


def step_size(n: int, batch_size: int, *, num_micro_batches: int = 1, mixed: bool = False) -> int:
    """Images of a step: `batch_size`, or all `n` if they are fewer, less what `num_micro_batches` equal parts leave.

    An image counts once, in however many views it is shown. Where data sets are `mixed`, a step may show one again.

    Raises:
        InputError: if that leaves no image for each part.
    """
    n = max(n, batch_size) if mixed else n
    size = min(batch_size, n) // num_micro_batches * num_micro_batches
    if not size:
        given = f"{n:,} training images" if n < batch_size else f"a batch of {batch_size:,} images"
        advice = "more images" if n < batch_size else "a larger batch"
        raise InputError(
            f"{given} cannot be cut into {num_micro_batches:,} micro-batches; "
            f"give {advice}, or fewer micro-batches or processes"
        )
    return size


def steps_per_epoch(n: int, batch_size: int, *, num_micro_batches: int = 1) -> int:
    """Batches in an epoch of `n` images; what is left over at its end is left out."""
    return n // step_size(n, batch_size, num_micro_batches=num_micro_batches)


def training_batches(
    source: Source,
    view: View,
    *,
    batch_size: int,
    seed: int,
    first_step: int,
    steps: int,
    num_micro_batches: int = 1,
    mine: range = range(1),
    num_repeats: int = 1,
    shares: tuple[float, ...] = (),
    shape_at: Callable[[int], tuple[int, int]] | None = None,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """The micro-batches of steps `first_step` to `steps` - 1, whatever the number of processes, workers or restarts.

    A step's batch (of `step_size` images) is `num_micro_batches` equal parts; those numbered in `mine` come out, one
    after another, and the other processes take the rest. Each epoch has an order of its own, and drops the images
    that do not fill a batch; which ones changes by epoch. A source smaller than `batch_size` gives batches of the
    whole source. Each image comes in `num_repeats` views, drawn one by one (arXiv:1901.09335), all images of a part
    before any comes again; and with `shape_at` in the height and width that it gives for the step. With `shares`, one
    for each of the source's `part_sizes`, its parts are mixed so, however many images each has.

    Raises:
        InputError: if there are too few images for `num_micro_batches`, or one can no longer be read; names it.
    """
    assert all(0 <= part < num_micro_batches for part in mine)
    size = step_size(len(source), batch_size, num_micro_batches=num_micro_batches, mixed=bool(shares))
    order: Order = Shuffled(len(source), size, seed)
    if shares:
        order = Mixture.of(source.part_sizes, shares, batch_size=size, seed=seed)
    part = size // num_micro_batches
    plan = _TrainingPlan(order, range(first_step, steps), part, mine, num_repeats, shape_at)
    yield from _batches(source, view, seed, plan, num_workers=num_workers, device=device)


def evaluation_batches(
    source: Source,
    view: View,
    *,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    rank: int = 0,
    size: int = 1,
) -> Iterator[Batch]:
    """Every image of `source` once, in order; the last batch may be smaller.

    Of `size` processes, each takes the batches `rank`, `rank` + `size` and so on. All get equally many, since a model
    in shards is run by all together: who has none left gets the last batch again.

    Raises:
        InputError: if an image can no longer be read; names it.
    """
    assert 0 <= rank < size
    plan = _EvaluationPlan(len(source), batch_size, rank, size)
    yield from _batches(source, view, None, plan, num_workers=num_workers, device=device)


class _Wanted(NamedTuple):
    """One view of one image."""

    epoch: int
    position: int
    repeat: int = 0
    shape: tuple[int, int] | None = None
    """Height and width, if they are not the view's own."""


@dataclass(frozen=True)
class _TrainingPlan(Sampler):
    """What each micro-batch shows."""

    order: Order
    steps: range
    part: int
    """Images of a micro-batch."""
    mine: range
    num_repeats: int
    shape_at: Callable[[int], tuple[int, int]] | None

    def __iter__(self) -> Iterator[list[_Wanted]]:
        for step in self.steps:
            shape = None if self.shape_at is None else self.shape_at(step)
            for number in self.mine:
                epochs, found = self.order.at(step, number * self.part, (number + 1) * self.part)
                images = list(zip(epochs.tolist(), found.tolist()))
                yield [_Wanted(*image, repeat, shape) for repeat in range(self.num_repeats) for image in images]


@dataclass(frozen=True)
class _EvaluationPlan(Sampler):
    n: int
    batch_size: int
    rank: int
    size: int

    def __iter__(self) -> Iterator[list[_Wanted]]:
        starts = range(0, self.n, self.batch_size)
        for first in range(0, len(starts), self.size):
            start = starts[min(first + self.rank, len(starts) - 1)]
            yield [_Wanted(0, i) for i in range(start, min(start + self.batch_size, self.n))]


class _Images(Dataset):
    """What a worker does: images of one batch, or the reason why there is none, as a value.

    An exception would reach the main process as text with the worker's traceback in it.
    """

    def __init__(self, source: Source, view: View, seed: int | None, reading: MutableSequence[int]):
        self.source, self.view, self.seed, self.reading = source, view, seed, reading

    def __getitem__(self, wanted: list[_Wanted]) -> Loaded | InputError:
        images = []
        worker = get_worker_info()
        number = 0 if worker is None else worker.id
        for epoch, i, repeat, shape in wanted:
            self.reading[number] = i
            view = self.view if shape is None else replace(self.view, image_size=shape)
            rng = (
                None
                if self.seed is None
                else seeding.generator(self.seed, "augment", epoch, i, *((repeat,) if repeat else ()))
            )
            try:
                images.append(view.read(self.source, i, rng))
            except InputError as error:
                return InputError(
                    f"cannot read {self.source.name(i)} any more ({error}); put it back, or start a new run"
                )
        self.reading[number] = readers.NO_IMAGE
        index = [one.position for one in wanted]
        return (torch.stack if worker is None else stacked)(images), self.source.labels[index], np.array(index)


def _batches(
    source: Source, view: View, seed: int | None, plan: Sampler, *, num_workers: int, device: torch.device | str
) -> Iterator[Batch]:
    device = torch.device(device)
    source.bring()  # here, since nobody waits for a worker that long
    with readers.starting(num_workers):
        reading = readers.notes(num_workers)
        images = _Images(share(source) if num_workers else source, view, seed, reading)
    loader = DataLoader(
        images,
        batch_size=None,  # the plan gives whole batches
        sampler=plan,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        generator=torch.Generator(),  # or it would draw from the global one
        pin_memory=device.type == "cuda",
        timeout=readers.POLL_S if num_workers else 0,
        worker_init_fn=readers.start,
        multiprocessing_context=readers.context(preload=__name__) if num_workers else None,
    )
    for loaded in readers.patient(loader, reading, source.where):
        if isinstance(loaded, InputError):
            raise loaded
        targets = source.targets(loaded[1])  # on the CPU: nothing waits for the device
        labels = None if targets is None else torch.from_numpy(targets).to(device, non_blocking=True)
        index = torch.from_numpy(loaded[2]).to(device, non_blocking=True)
        pixels = loaded[0].to(device, non_blocking=True)
        yield Batch(view.normalise(pixels)[None], labels, index)


def _as_it_is(loaded: Any) -> Any:
    return loaded
