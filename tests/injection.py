"""Numbers that are none, put where they hurt: the same place at the same step, however often that step is computed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vitreous.data.batch import Batch
from vitreous.objectives.base import Loss
from vitreous.parallel import local, units
from vitreous.trainee import Trainee

PLACES = ("data", "weight", "layer", "loss", "gradient")
IMAGE = 1
"""Which of a micro-batch is hurt, where only one is."""


@dataclass(frozen=True)
class Fault:
    """Where and when a number stops being one."""

    place: str
    steps: tuple[int, ...]
    rank: int = 0
    value: float = float("nan")


def inject(fault: Fault, patch: pytest.MonkeyPatch) -> None:
    """From now on, whoever computes a gradient of one of these steps, in that process, meets the fault."""
    gradients = Trainee.gradients

    def faulty(self: Trainee, step: int, progress: float, batches: Iterator[Batch]) -> Any:
        if step + 1 not in fault.steps or self.world.rank != fault.rank:
            return gradients(self, step, progress, batches)
        heal, batches = hurt(self, fault, batches)
        try:
            return gradients(self, step, progress, batches)
        finally:
            heal()

    patch.setattr(Trainee, "gradients", faulty)


def hurt(trainee: Trainee, fault: Fault, batches: Iterator[Batch]) -> tuple[Callable[[], None], Iterator[Batch]]:
    """Put the fault into what computes a gradient; how to take it out again, and the batches to use meanwhile."""
    block = units(trainee.objective)[1]
    if fault.place == "data":
        return (lambda: None), (replace(batch, images=_hurt(batch.images, (0, IMAGE), fault)) for batch in batches)
    if fault.place == "weight":
        weight = local(next(p.detach() for p in block.parameters() if p.ndim == 2 and local(p).numel()))
        before = weight[0, 0].clone()
        weight[0, 0] = fault.value
        return (lambda: weight[0, 0].copy_(before) and None), batches
    if fault.place == "layer":
        changed = block.register_forward_hook(lambda module, inputs, out: _hurt(out, (IMAGE,), fault), prepend=True)
        return changed.remove, batches
    if fault.place == "loss":
        infinite = trainee.objective.register_forward_hook(
            lambda module, inputs, loss: Loss(loss.total + fault.value, loss.parts), prepend=True
        )
        return infinite.remove, batches
    assert fault.place == "gradient"

    def watch(module: object, inputs: object, out: Tensor) -> None:
        out.register_hook(lambda gradient: _hurt(gradient, (IMAGE,), fault))

    return block.register_forward_hook(watch, prepend=True).remove, batches


def _hurt(tensor: Tensor, where: tuple[int, ...], fault: Fault) -> Tensor:
    """A copy of `tensor` with one number in it that is none."""
    mask = torch.zeros_like(tensor, dtype=torch.bool)
    mask[where].view(-1)[0] = True
    return torch.where(mask, fault.value, tensor)
