"""Where numbers that are not finite come from: the step is computed once more, and every layer is watched."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vitreous.data.batch import Batch
from vitreous.data.loader import training_batches
from vitreous.data.source import Source
from vitreous.errors import some
from vitreous.parallel import local
from vitreous.trainee import Trainee


def diagnose(trainee: Trainee, source: Source, *, step: int) -> str:
    """Which layer first gives what is not finite in `step`, and for which images; all processes ask together.

    Nothing is changed by it.
    """
    found = json.dumps(_look(trainee, source, step))
    findings = [json.loads(text) for text in trainee.world.gather_texts(found)]
    for kind in ("weight", "output", "loss", "gradient"):
        for rank, finding in enumerate(findings):
            if finding.get("kind") == kind:
                where = f" (process {rank})" if len(findings) > 1 else ""
                return f"{finding['text']}{where}"
    return "it does not happen again when the step is computed once more: the machine may be faulty"


def _look(trainee: Trainee, source: Source, step: int) -> dict[str, str]:
    for name, parameter in trainee.objective.named_parameters():
        if not bool(torch.isfinite(local(parameter)).all()):
            return {"kind": "weight", "text": f"the weights {name} hold some that are not finite"}
    first: dict[str, Any] = {}
    shown: list[Batch] = []
    handles = [
        module.register_forward_hook(partial(_watch, name, first, shown))
        for name, module in trainee.objective.named_modules()
        if name
    ]
    try:
        _, numbers = trainee.gradients(step, step / trainee.run.steps, _noting(_batches(trainee, source, step), shown))
    finally:
        for handle in handles:
            handle.remove()
    gradients = [
        name
        for name, parameter in trainee.objective.named_parameters()
        if parameter.grad is not None and not bool(torch.isfinite(local(parameter.grad)).all())
    ]
    trainee.optimizer.zero_grad(set_to_none=True)
    images = [int(i) for batch in shown for i in batch.index]
    if first:
        guilty = [int(first["batch"].index[row]) for row in first["rows"]] or images
        text = f"{first['name']} is the first layer that gives {first['value']}, for {_names(source, guilty)}"
        return {"kind": "output", "text": text}
    if not bool(torch.isfinite(numbers).all()):
        return {
            "kind": "loss",
            "text": f"every layer gives finite numbers, the loss does not, for {_names(source, images)}",
        }
    if gradients:
        text = (
            f"the loss is finite, the gradient of {some(gradients[::-1], most=2)} is not, for {_names(source, images)}"
        )
        return {"kind": "gradient", "text": text}
    return {}


def _batches(trainee: Trainee, source: Source, step: int) -> Iterator[Batch]:
    return training_batches(
        source,
        trainee.run.train_view,
        batch_size=trainee.run.batch_size,
        num_micro_batches=trainee.num_micro_batches,
        mine=trainee.mine,
        seed=trainee.run.seed,
        first_step=step,
        steps=step + 1,
        device=trainee.world.device,
    )


def _noting(batches: Iterator[Batch], shown: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        shown.append(batch)
        yield batch


def _watch(
    name: str, first: dict[str, Any], shown: list[Batch], module: nn.Module, inputs: object, output: object
) -> None:
    """Note the first output that is not finite; layers inside others end before them."""
    if first or not isinstance(output, Tensor) or bool(torch.isfinite(output).all()):
        return
    batch = shown[-1]
    value = "NaN" if bool(torch.isnan(output).any()) else "an infinity"
    rows: list[int] = []
    if output.ndim > 1 and output.shape[0] == len(batch.index):
        rows = (~torch.isfinite(output.flatten(1)).all(dim=1)).nonzero()[:, 0].tolist()
    first |= {"name": name, "value": value, "batch": batch, "rows": rows}


def _names(source: Source, positions: list[int]) -> str:
    kind = "image" if len(positions) == 1 else f"{len(positions)} images"
    return f"{kind} {some([f'{source.name(i)} ({i})' for i in positions], most=3)}"
