"""Where numbers that are not finite come from: the step is computed once more, and every layer is watched."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vitreous.data.batch import Batch
from vitreous.data.source import Source
from vitreous.errors import some
from vitreous.parallel import local
from vitreous.tokens import Tokens
from vitreous.trainee import Trainee

Kind = Literal["weight", "output", "loss", "gradient", "sum", "norm", "nothing"]
"""In the order of cause and effect."""


@dataclass(frozen=True)
class Cause:
    """What was the first that is not finite."""

    kind: Kind
    text: str
    """In words: which layer, for which images, in which process."""


@dataclass(frozen=True)
class Place:
    """Where the first number that is not finite was seen."""

    what: str
    value: str
    """What was seen: NaN or an infinity."""
    images: list[int]
    """Whose numbers they are, by position."""


@dataclass
class Watch:
    """What a process sees of its part of a step, in the order in which it comes."""

    shown: list[Batch] = field(default_factory=list)
    largest: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Largest absolute output of each layer."""
    output: Place | None = None
    gradient: Place | None = None

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, noted when they are shown."""
        for batch in batches:
            self.shown.append(batch)
            yield batch

    @contextmanager
    def over(self, module: nn.Module) -> Iterator[None]:
        """Meanwhile every layer of `module` is watched, forward and backward; no number is changed by it."""
        handles = [part.register_forward_hook(partial(self._forward, name)) for name, part in module.named_modules()]
        handles += [
            parameter.register_hook(partial(self._backward, f"the weights {name}", rows=False))
            for name, parameter in module.named_parameters()
            if parameter.requires_grad and not isinstance(parameter, DTensor)  # of whose parts torch calls no hook
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        """Layers inside others end before them, so the first one that is noted is the innermost."""
        for tensor in _tensors(output):
            size = tensor.detach().abs().amax()
            self.largest[name] = torch.maximum(self.largest.get(name, size), size)
            if self.output is None:
                self.output = self._place(name, tensor)
            if tensor.requires_grad:
                tensor.register_hook(partial(self._backward, f"the output of {name}"))

    def _backward(self, what: str, gradient: Tensor, *, rows: bool = True) -> None:
        if self.gradient is None:
            self.gradient = self._place(what, gradient, rows=rows)

    def _place(self, what: str, tensor: Tensor, *, rows: bool = True) -> Place | None:
        finite = torch.isfinite(tensor)
        if bool(finite.all()):
            return None
        index = self.shown[-1].index.tolist()
        if rows and tensor.ndim > 1 and tensor.shape[0] == len(index):
            index = [i for i, good in zip(index, finite.flatten(1).all(dim=1).tolist()) if not good]
        return Place(what, "NaN" if bool(torch.isnan(tensor).any()) else "an infinity", index)


def watched(trainee: Trainee, source: Source, *, step: int) -> tuple[Watch, Float[Tensor, "micro_batch name"]]:
    """What is seen when the gradient of `step` is computed, which it leaves in the parameters, and the numbers.

    Nothing else is changed; all processes do so together.
    """
    run, watch = trainee.run, Watch()
    batches = trainee.batches(source, first_step=step, steps=step + 1)
    trainee.objective.train()
    with watch.over(trainee.objective):
        _, numbers = trainee.gradients(step, step / run.steps, watch.batches(batches))
    return watch, numbers


def diagnose(trainee: Trainee, source: Source, *, step: int) -> Cause:
    """Which layer first gives what is not finite in `step`, and for which images; all processes ask together.

    Nothing is changed by it.
    """
    found = cause(trainee, source, *watched(trainee, source, step=step))
    trainee.forget_gradients()
    return found


def cause(trainee: Trainee, source: Source, watch: Watch, numbers: Float[Tensor, "micro_batch name"]) -> Cause:
    """The first of all that was `watched`, in any process, and is not finite; gradients are still in the parameters."""
    found = json.dumps(asdict(_own(trainee, source, watch, numbers)))
    causes = [Cause(**json.loads(text)) for text in trainee.world.share(found)]
    order = Kind.__args__
    rank = min(range(len(causes)), key=lambda rank: order.index(causes[rank].kind))
    first = causes[rank]
    alone = len(causes) == 1 or first.kind in ("sum", "norm", "nothing")
    return first if alone else Cause(first.kind, f"{first.text} (process {rank})")


def _own(trainee: Trainee, source: Source, watch: Watch, numbers: Float[Tensor, "micro_batch name"]) -> Cause:
    """The first cause that this process knows of."""
    parameters = dict(trainee.objective.named_parameters())
    if odd := [name for name, parameter in parameters.items() if not _finite(parameter)]:
        return Cause("weight", f"the weights {some(odd, most=2)} hold some that are not finite")
    if (place := watch.output) is not None:
        where = f"{place.what} is the first layer that gives {place.value}"
        return Cause("output", f"{where}, for {_names(source, place.images)}")
    if bad := [batch for batch, row in zip(watch.shown, numbers) if not bool(torch.isfinite(row[0]))]:
        images = [i for batch in bad for i in batch.index.tolist()]
        return Cause("loss", f"every layer gives finite numbers, the loss does not, for {_names(source, images)}")
    if (place := watch.gradient) is not None:
        where = f"the loss is finite, the gradient that comes back to {place.what} has {place.value}"
        return Cause("gradient", f"{where}, for {_names(source, place.images)}")
    gradients = {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}
    if odd := [name for name, gradient in gradients.items() if not _finite(gradient)]:
        return Cause("sum", f"every gradient is finite where it arises, the sum for {some(odd[::-1], most=2)} is not")
    sizes = {name: float(local(g).abs().max()) for name, g in gradients.items() if local(g).numel()}
    if (name := max(sizes, key=sizes.__getitem__, default=None)) is not None and sizes[name] > 1e15:
        return Cause("norm", f"the gradient is finite but its norm is not: it reaches {sizes[name]:.2g} in {name}")
    return Cause("nothing", "it does not happen again when the step is computed once more: the machine may be faulty")


def _tensors(output: object) -> list[Tensor]:
    found = (output.prefix, output.patches) if isinstance(output, Tokens) else (output,)
    return [tensor for tensor in found if isinstance(tensor, Tensor) and tensor.numel() and tensor.is_floating_point()]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(local(tensor)).all())


def _names(source: Source, positions: list[int]) -> str:
    kind = "image" if len(positions) == 1 else f"{len(positions)} images"
    return f"{kind} {some([f'{source.name(i)} ({i})' for i in positions], most=3)}"
