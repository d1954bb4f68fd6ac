"""Names of tensors: one table of rules renames them both ways, and one line says what does not fit."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from vitreous.classifier import Classifier, ClassifierConfig
from vitreous.errors import InputError, some
from vitreous.variants import title

Rules = tuple[tuple[str, str], ...]
"""Pairs (ours, theirs) of module or tensor names; `*` stands for a block's number, the same in both."""

Tensors = dict[str, Tensor]


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> Tensors:
    """Tensors under the right-hand names of `rules`; a name without a rule stays, and the first rule wins.

    Raises:
        InputError: if two would have the same name.
    """
    compiled = [(_pattern(left), right.replace("*", "{}")) for left, right in rules]
    names: dict[str, str] = {}
    for name in tensors:
        if (other := names.setdefault(_renamed(name, compiled), name)) != name:
            raise InputError(f"{other} and {name} are the same part of a model; keep the one that was trained")
    return {new: tensors[name] for new, name in names.items()}


def inverse(rules: Rules) -> Rules:
    """The rules that undo `rules`."""
    return tuple((theirs, ours) for ours, theirs in rules)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\*", r"(\d+)") + r"(?=\.|$)")


def _renamed(name: str, compiled: list[tuple[re.Pattern[str], str]]) -> str:
    for pattern, right in compiled:
        if match := pattern.match(name):
            return right.format(*match.groups()) + name[match.end() :]
    return name


def instantiate(config: ClassifierConfig, tensors: Tensors) -> Classifier:
    """The classifier of `config` that has these tensors, which it takes as its own, in evaluation mode.

    Raises:
        InputError: if names or shapes are not exactly those of the classifier, or numbers are not finite.
    """
    with torch.device("meta"):
        classifier = config.build()
    check(
        tensors,
        classifier.state_dict(),
        model=f"{title(config.encoder)} at {config.encoder.pixels}",
    )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{name} holds numbers of {kind}, no weights; save it as floating-point numbers")
        if not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise InputError(f"{name} holds numbers that are not finite: its weights are broken; take earlier ones")
    classifier.load_state_dict({name: tensor.contiguous() for name, tensor in tensors.items()}, assign=True)
    return classifier.eval()


def check(given: Mapping[str, Tensor], needed: Mapping[str, Tensor], *, model: str) -> None:
    """Nothing, if `given` has exactly the names and shapes of `needed`.

    Raises:
        InputError: if not; tells the first few tensors that are missing, unexpected or of another shape.
    """
    missing = [name for name in needed if name not in given]
    unexpected = [name for name in given if name not in needed]
    reshaped = [
        f"{name} is {shape(given[name])}, not {shape(tensor)}"
        for name, tensor in needed.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    faults = [f"{len(names)} {kind} ({some(names, most=3)})" for kind, names in kinds.items() if names]
    if faults:
        raise InputError(f"these weights do not fit {model}: {'; '.join(faults)}; choose the model they were made for")


def joined(parts: Mapping[str, Tensor]) -> Tensor:
    """The tensors one after another, along the first axis.

    Raises:
        InputError: if another axis differs; says the shape of each.
    """
    tensors = list(parts.values())
    if any(tensor.ndim == 0 or tensor.shape[1:] != tensors[0].shape[1:] for tensor in tensors):
        shapes = ", ".join(f"{name} is {shape(tensor)}" for name, tensor in parts.items())
        raise InputError(f"{shapes}, but these belong together; fetch the weights again")
    return torch.cat(tensors)


def join_parts(tensors: Tensors, group: str, *, parts: tuple[str, ...], layer: str) -> None:
    """Weights and biases of the layers `parts` of a module as those of one layer, where they are there.

    Raises:
        InputError: if only some of them are; names the first that is missing.
    """
    for kind in ("weight", "bias"):
        names = [f"{group}.{part}.{kind}" for part in parts]
        missing = [name for name in names if name not in tensors]
        if len(missing) == len(names):
            continue
        if missing:
            raise InputError(f"{missing[0]} is missing; fetch the weights again")
        tensors[f"{group}.{layer}.{kind}"] = joined({name: tensors.pop(name) for name in names})


def split_parts(tensors: Tensors, group: str, *, layer: str, parts: tuple[str, ...]) -> None:
    """The reverse of `join_parts`."""
    for kind in ("weight", "bias"):
        if (tensor := tensors.pop(f"{group}.{layer}.{kind}", None)) is not None:
            for part, own in zip(parts, tensor.chunk(len(parts)), strict=True):
                tensors[f"{group}.{part}.{kind}"] = own


def with_axes(tensors: Mapping[str, Tensor], name: str, number: int) -> Tensor:
    """The tensor of that name, which has so many axes.

    Raises:
        InputError: if it has not.
    """
    if tensors[name].ndim != number:
        raise InputError(f"{name} is {shape(tensors[name])}, but has {number} axes; fetch the weights again")
    return tensors[name]


def shape(tensor: Tensor) -> str:
    """`192 x 3 x 16 x 16`, or `scalar`."""
    return " x ".join(map(str, tensor.shape)) or "scalar"
