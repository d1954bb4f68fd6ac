"""One model measured on one set of images: its own classes, and what can be learned from its frozen features."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vitreous.console import Console
from vitreous.cores import cores
from vitreous.data.imagenet import NUMBERED, SUBSETS, corruptions
from vitreous.data.layouts import open_held_out
from vitreous.data.prepare import BadFile
from vitreous.data.source import Source
from vitreous.data.vtab.open import find_tasks, open_task
from vitreous.errors import InputError
from vitreous.evaluation.base import Evaluation, Labelled
from vitreous.evaluation.classify import class_positions, judged, measure
from vitreous.evaluation.corruptions import corruption_figures
from vitreous.evaluation.features import Frozen
from vitreous.evaluation.held_out import held_out_images, learning_images
from vitreous.evaluation.real import check_files, read_real, real_figures
from vitreous.predict import Model
from vitreous.suite import carry_out


@dataclass(frozen=True)
class Images:
    """What a model is measured on."""

    labelled: Labelled
    unreadable: list[BadFile]
    among_data: bool
    """Whether the score counts among the data's own classes, as for ImageNet-A and -R."""

    def counts(self) -> dict[str, Any]:
        """Which split is measured, and how many images have which part, as JSON."""
        sizes = {name: getattr(self.labelled, name) for name in ("train", "dev", "test")}
        return {"split": self.labelled.split, **{name: of and len(of) for name, of in sizes.items()}}


def frozen(model: Model, *, name: str = "", cache: Path | None, console: Console) -> Frozen:
    """`model`, which `name` opens, as evaluations look through it; features are kept in `cache`, or nowhere."""
    return Frozen(
        model.module,
        model.view,
        world=model.world,
        name=name,
        classes=None if model.headless else model.classes,
        multi_label=model.multi_label,
        faster=model.inference,
        cache=cache,
        num_workers=0 if model.world.device.type == "cpu" else cores(),
        console=console,
    )


def find_images(
    data: str, *, val: str | None, name: str, model: Frozen, evaluations: Mapping[str, Evaluation], console: Console
) -> Images:
    """The images at `data` to measure `model` on, whose name is `name`; others to learn from only where that is needed.

    Raises:
        InputError: if the data cannot be used; says why and what to do.
    """
    for evaluation in evaluations.values():
        evaluation.check(model)
    kind = data.partition(":")[0]

    def learns(classes: tuple[str, ...]) -> bool:
        return any(evaluation.learns(model, classes) for evaluation in evaluations.values())

    # most learn or do not whatever the classes are, and an archive is not to be listed twice for nothing
    if learns(()) or (evaluations and learns(_called(open_held_out(data)[1], kind, model).classes)):
        labelled, bad = learning_images(data, val=val, model=name, console=console)
        parts = {part: getattr(labelled, part) for part in ("train", "test", "dev")}
        labelled = replace(labelled, **{part: of and _called(of, kind, model) for part, of in parts.items()})
    elif val is not None:
        raise InputError("--val is for evaluations that learn from DATA; to measure on other images, give them as DATA")
    else:
        held_out = held_out_images(data, model=name, console=console)
        labelled, bad = Labelled(None, _called(held_out.source, kind, model), held_out.split), held_out.bad
    for name_of, evaluation in evaluations.items():
        if evaluation.one_class and labelled.test.multi_label:
            raise InputError(
                f"{name_of.replace('_', '-')} takes images of one class each, those of {data} may show several; "
                "leave it out of --with"
            )
    return Images(labelled, bad, kind in SUBSETS)


def classification(
    model: Frozen, images: Images, *, real: Path | None, among_data: bool, mirrored: bool = False
) -> tuple[dict[str, Any], Float[np.ndarray, "image cls"]]:
    """`scores` of the model's own head, and `real` (see `real_figures`) where ReaL labels are given; probabilities too.

    Raises:
        InputError: if the model does not know the classes, or the labels do not fit.
    """
    labels, test, classes = None if real is None else read_real(real), images.labelled.test, model.classes
    assert classes is not None, "a model without a head is refused before"
    if labels is not None:
        check_files(test, num_classes=len(classes))
    among_data |= images.among_data
    predict = partial(model.probabilities, mirrored=mirrored)
    if model.multi_label and (among_data or labels is not None):
        option = "--real" if labels is not None else "--among-data"
        raise InputError(
            f"{option} is for a model that chooses one class; this one says yes or no to each: leave it out"
        )
    figures, predicted = judged(
        predict,
        test,
        classes=classes,
        split=images.labelled.split,
        multi_label=model.multi_label,
        among_data=among_data,
    )
    if labels is not None:
        figures["real"] = real_figures(_in_standard_order(predicted, classes), test, labels)
    return figures, predicted


def corruption_benchmark(model: Frozen, folder: Path, *, console: Console) -> dict[str, Any]:
    """The errors of a model on ImageNet-C, see `corruption_figures`.

    Raises:
        InputError: if the images are not there, or the model does not know their classes.
    """
    assert model.classes is not None, "a model without a head is refused before"
    errors: dict[str, dict[int, float]] = {}
    for name, levels in corruptions(folder).items():
        for severity, source in levels.items():
            console.say(f"{name}, severity {severity}")
            labels = class_positions(source.classes, model.classes)[source.labels]
            errors.setdefault(name, {})[severity] = 1 - measure(model.probabilities(source), labels)["top1"]
    return corruption_figures(errors)


def vtab(
    folder: Path, evaluations: Mapping[str, Evaluation], model: Frozen, *, console: Console
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and figures of each VTAB-1k task in `folder` as it ends, after learning from its 1,000 images.

    Keys: official, split (see `VtabTask`), notes, scores (top-1 in % by evaluation), evaluations.

    Raises:
        InputError: if there is no task, a file of one is missing, or an evaluation does not suit the benchmark.
    """
    for way, evaluation in evaluations.items():
        if not evaluation.scored:
            raise InputError(
                f"VTAB-1k has 1,000 images to learn from; {way.replace('_', '-')} is no way to do so, "
                "knn, logistic, linear, attentive and fine-tune are"
            )
    for name, place in find_tasks(folder).items():
        opened = open_task(name, place)
        console.say(f"{opened.task.title}: {opened.split}; {len(opened.test):,} images to measure on")
        labelled = Labelled(opened.train, opened.test, "test", opened.val)
        found = dict(carry_out(evaluations, model, labelled, console=console))
        scores = {way: 100 * outcome.score for way, outcome in found.items() if outcome.score is not None}
        said = ", ".join(f"{way.replace('_', '-')} {score:.1f} %" for way, score in scores.items())
        console.say(f"{opened.task.title}: {said}")
        about = {"official": opened.official, "split": opened.split, "notes": opened.notes}
        yield name, {**about, "scores": scores, "evaluations": {way: of.figures for way, of in found.items()}}


def _called(source: Source, kind: str, model: Frozen) -> Source:
    """`source`; of a set whose folders are numbers, with the names that the model has for these outputs."""
    if kind not in NUMBERED or model.classes is None or not all(name.isdecimal() for name in source.classes):
        return source
    if max(map(int, source.classes)) >= len(model.classes):
        raise InputError(f"{kind} counts 1,000 classes, the model knows {len(model.classes)}; take one of ImageNet")
    renamed = source.select(np.arange(len(source)))
    renamed.classes = tuple(model.classes[int(name)] for name in source.classes)
    return renamed


def _in_standard_order(
    predicted: Float[np.ndarray, "image cls"], classes: tuple[str, ...]
) -> Float[np.ndarray, "image cls"]:
    """Columns in the order of WordNet names, which is ImageNet's, where classes have such names; else as they are."""
    wordnet = all(name[:1] == "n" and name[1:].isdecimal() for name in classes)
    return predicted[:, np.argsort(classes)] if wordnet else predicted
