"""Several evaluations of one model on the same images, sharing its features."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitreous.config import Config
from vitreous.console import Console
from vitreous.errors import InputError, did_you_mean
from vitreous.evaluation.base import Evaluation, Labelled, Outcome
from vitreous.evaluation.features import Frozen
from vitreous.evaluation.few_shot import FewShot
from vitreous.evaluation.inference_cost import Cost
from vitreous.evaluation.knn import KNN
from vitreous.evaluation.logistic import Logistic
from vitreous.evaluation.probe import Attentive, Linear
from vitreous.evaluation.robustness import PatchDrop, PatchShuffle, Resolution
from vitreous.fields import override
from vitreous.fine_tuning import FineTune

CLASSIFICATION = "classification"
"""The evaluation of the model's own head, which needs no settings."""


@dataclass(frozen=True, kw_only=True)
class Suite(Config):
    """The settings of every evaluation; which of them are carried out is said apart."""

    few_shot: FewShot = FewShot()
    """Regularised least squares with 1, 5, 10 and 25 images a class, in closed form (the paper's Sec. 4.1)."""
    knn: KNN = KNN()
    """Weighted nearest neighbours."""
    logistic: Logistic = Logistic()
    """Logistic regression by L-BFGS along a path of penalties."""
    linear: Linear = Linear()
    """A linear probe by SGD over a grid of learning rates."""
    attentive: Attentive = Attentive()
    """A learned query that attends to the patch tokens, by SGD."""
    fine_tune: FineTune = FineTune()
    """The whole model trained further, over a grid of learning rates (the paper's Table 4)."""
    resolution: Resolution = Resolution()
    """Accuracy over image sizes."""
    patch_drop: PatchDrop = PatchDrop()
    """Accuracy with patches left out."""
    patch_shuffle: PatchShuffle = PatchShuffle()
    """Accuracy with the image cut and put together in another order."""
    cost: Cost = Cost()
    """Parameters, GMACs, images a second and peak memory."""

    def chosen(self, names: Sequence[str]) -> dict[str, Evaluation]:
        """The evaluations of these names, in the order given."""
        return {name: getattr(self, name) for name in names if name != CLASSIFICATION}


def evaluation_names(text: str) -> list[str]:
    """The names in a list with commas, such as "few-shot,knn", as fields of `Suite` are called.

    Raises:
        InputError: if there is no evaluation of a name.
    """
    known = {name.replace("_", "-"): name for name in (CLASSIFICATION, *(f.name for f in dataclasses.fields(Suite)))}
    names = []
    for word in (word.strip().lower().replace("_", "-") for word in text.split(",")):
        if word not in known:
            raise InputError(f"there is no evaluation {word!r}{did_you_mean(word, known)}")
        names.append(known[word])
    return list(dict.fromkeys(names))


def suite(changes: Mapping[str, str], *, names: Sequence[str]) -> Suite:
    """The settings with some changed, by dotted names such as few_shot.shots.

    Raises:
        InputError: if there is no such setting, or it belongs to an evaluation that is not among `names`.
    """
    for path in changes:
        name = path.partition(".")[0]
        if name in {field.name for field in dataclasses.fields(Suite)} and name not in names:
            raise InputError(f"--{path} changes {name}, which is not carried out; add it to --with")
    return override(Suite(), changes)


def carry_out(
    evaluations: Mapping[str, Evaluation], model: Frozen, data: Labelled, *, console: Console
) -> Iterator[tuple[str, Outcome]]:
    """The name and outcome of each evaluation as it ends; its figures say how long it took.

    Raises:
        InputError: if the data do not suffice for one; says which and what is missing.
    """
    for name, evaluation in evaluations.items():
        console.say(f"{name.replace('_', '-')}")
        started = time.monotonic()
        found = evaluation.run(model, data, console=console)
        figures: dict[str, Any] = {**found.figures, "notes": [*found.notes], "seconds": time.monotonic() - started}
        yield name, dataclasses.replace(found, figures=figures)
