"""A step seen from near: what every part of the network gives, and what every image costs."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vitreous.data.source import Source
from vitreous.diagnosis import Watch
from vitreous.objectives.base import Objective
from vitreous.objectives.supervised import SupervisedObjective
from vitreous.parallel import local, units
from vitreous.trainee import Trainee


@dataclass(frozen=True)
class Part:
    """A block of the network, or a layer outside of them, in one step."""

    name: str
    output: float | None
    """Largest absolute output; None where it has none of its own."""
    gradient: float
    """Root of the mean square, before clipping."""
    weights: float
    """Root of the mean square, before the step."""


@dataclass(frozen=True)
class Shown:
    """An image of the step."""

    name: str
    label: str
    loss: float | None
    """Of this image alone; None where images were mixed, and for an objective that has none."""


@contextmanager
def class_scores(objective: Objective) -> Iterator[list[Tensor]]:
    """The class scores of every micro-batch that is computed meanwhile."""
    found: list[Tensor] = []
    if not isinstance(objective, SupervisedObjective) or objective.config.mixing.used:
        yield found
        return
    handle = objective.classifier.register_forward_hook(lambda module, inputs, out: found.append(out.detach()))
    try:
        yield found
    finally:
        handle.remove()


def images_of(trainee: Trainee, watch: Watch, scores: list[Tensor], source: Source) -> list[Shown]:
    """All images of the step, in all processes, largest loss first; one that is not finite is the largest."""
    objective, losses = trainee.objective, []
    for batch, logits in zip(watch.shown, scores):
        assert isinstance(objective, SupervisedObjective)
        assert batch.labels is not None
        fine = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses.append(objective.losses(fine, batch.labels))
    index = torch.cat([batch.index for batch in watch.shown]).cpu()
    alone = torch.cat(losses).detach().cpu().double() if losses else torch.full(index.shape, math.nan).double()
    pairs = trainee.world.gather(torch.stack([index.double(), alone])).transpose(1, 2).flatten(0, 1).tolist()
    pairs.sort(key=lambda pair: (-pair[1] if math.isfinite(pair[1]) else -math.inf, pair[0]))
    return [Shown(source.name(int(i)), source.label(int(i)), loss if losses else None) for i, loss in pairs]


def parts_of(trainee: Trainee, watch: Watch) -> list[Part]:
    """Blocks, and layers outside of them that have weights, in the order in which they are built."""
    objective, world = trainee.objective, trainee.world
    blocks = [name for name, module in objective.named_modules() if any(module is unit for unit in units(objective))]
    squares: dict[str, list[float]] = {}
    for name, parameter in objective.named_parameters():
        part = next((block for block in blocks if name.startswith(f"{block}.")), name.rpartition(".")[0])
        sums = squares.setdefault(part, [0.0, 0.0, 0.0])
        own = local(parameter.detach())
        gradient = torch.zeros_like(own) if parameter.grad is None else local(parameter.grad)
        sums[0] += own.numel()
        sums[1] += float(gradient.cpu().double().square().sum())
        sums[2] += float(own.cpu().double().square().sum())
    outputs = torch.stack([watch.largest.get(name, torch.tensor(-1.0)).cpu().double() for name in squares])
    largest = world.gather(outputs).amax(dim=0).tolist()
    # what several processes hold is counted by each, above and below the line
    totals = world.sum(torch.tensor(list(squares.values()), dtype=torch.float64)).tolist()
    return [
        Part(name, None if output == -1 else output, math.sqrt(gradient / count), math.sqrt(weights / count))
        for name, output, (count, gradient, weights) in zip(squares, largest, totals, strict=True)
    ]
