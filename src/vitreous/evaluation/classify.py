"""How well a classifier tells the classes of a labelled set apart."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitreous import metrics
from vitreous.classifier import Classifier, class_probabilities
from vitreous.console import Console
from vitreous.data.loader import evaluation_batches
from vitreous.data.source import Source
from vitreous.data.views import EvalView
from vitreous.distributed import World
from vitreous.errors import InputError, some
from vitreous.evaluation import multi_label as several
from vitreous.evaluation.bootstrap import intervals
from vitreous.evaluation.calibration import temperature_figures
from vitreous.files import csv_text


def probabilities(
    classifier: Classifier,
    source: Source,
    view: EvalView,
    *,
    multi_label: bool = False,
    world: World,
    batch_size: int = 64,
    num_workers: int = 0,
    console: Console | None = None,
) -> Float[np.ndarray, "image cls"]:
    """Class probabilities of every image of `source`, in its order; float64. Each row sums to 1, or with `multi_label`
    each class stands by itself."""
    with (console or Console(quiet=True)).task("image", len(source)) as task:
        return scored(
            classifier,
            classifier,
            source,
            view,
            num_classes=classifier.config.num_classes,
            multi_label=multi_label,
            world=world,
            batch_size=batch_size,
            num_workers=num_workers,
            progress=task.update,
        )


def scored(
    module: nn.Module,
    scores: Callable[[Tensor], Tensor],
    source: Source,
    view: EvalView,
    *,
    num_classes: int,
    multi_label: bool = False,
    world: World,
    batch_size: int,
    num_workers: int,
    progress: Callable[[int], None],
) -> Float[np.ndarray, "image cls"]:
    """`probabilities` from `scores` of `module` in evaluation mode.

    Every process of the world computes its share of the batches, which are the same for any number of processes, and
    gets all of the result; an image is counted once. `progress` hears how many images are done.
    """
    predicted, seen = torch.zeros(len(source), num_classes, dtype=torch.float64), 0
    batches = evaluation_batches(
        source,
        view,
        batch_size=batch_size,
        num_workers=num_workers,
        device=world.device,
        rank=world.rank,
        size=world.size,
    )
    training = module.training
    module.eval()
    with torch.inference_mode() if world.size == 1 else torch.no_grad():
        for turn, batch in enumerate(batches):
            images = batch.images[0].double() if world.dtype == torch.float64 else batch.images[0]
            with world.autocast():
                logits = scores(images)
            if (turn * world.size + world.rank) * batch_size < len(source):  # else it is repeated for company
                logits = logits if logits.dtype == torch.float64 else logits.float()
                predicted[batch.index.cpu()] = class_probabilities(logits, multi_label=multi_label)
            seen += len(batch.index) * world.size
            progress(min(seen, len(source)))
    module.train(training)
    return world.sum(predicted).numpy()


def measure(predicted: Float[np.ndarray, "image cls"], labels: Int[np.ndarray, " image"]) -> dict[str, float]:
    """Loss in nats and top-1 in [0, 1]: the two figures training watches."""
    hits = metrics.hits_at(predicted, labels, k=1)
    return {"loss": metrics.cross_entropy(predicted, labels), "top1": hits / max(len(labels), 1)}


def class_positions(ours: Sequence[str], theirs: Sequence[str]) -> Int[np.ndarray, " cls"]:
    """The position in `theirs` (the model's classes) of each class of `ours` (the data's), by name.

    Raises:
        InputError: if the data hold a class that the model does not know; names some.
    """
    where = {name: i for i, name in enumerate(theirs)}
    if missing := [name for name in ours if name not in where]:
        raise InputError(
            f"the model does not know {len(missing)} of the {len(ours)} classes in the data: "
            f"{some(missing)}; its own are {some(theirs)} (give --classes FILE to name them)"
        )
    return np.array([where[name] for name in ours])


def scores(
    predicted: Float[np.ndarray, "image cls"],
    labels: Int[np.ndarray, " image"],
    *,
    classes: Sequence[str],
    split: str,
) -> dict[str, Any]:
    """Every figure of a classification, as plain JSON types.

    Keys: split, num_images, loss, top1 and top5 ({value, low, high}, 95 % intervals; top5 is None for five
    classes or fewer), macro_f1, ece, reliability, intervals (bootstrapped: of loss, macro_f1, mean_recall), temperature
    (see `temperature_figures`), per_class, confusion (true rows, predicted columns).
    Classes that neither occur nor are predicted are left out of `per_class` and `confusion`; `macro_f1` is the mean
    over those that occur.
    """
    best = predicted.argmax(axis=1)
    present = np.unique(np.concatenate([labels, best]))
    confusion = metrics.confusion_matrix(best, labels, num_classes=len(classes))[np.ix_(present, present)]
    rows = metrics.class_scores(confusion)
    bins = metrics.reliability(predicted, labels)
    total = len(labels)
    top5 = asdict(metrics.share(metrics.hits_at(predicted, labels, k=5), total)) if len(classes) > 5 else None
    occurring = rows.count > 0
    return {
        "split": split,
        "num_images": total,
        "loss": metrics.cross_entropy(predicted, labels),
        "top1": asdict(metrics.share(metrics.hits_at(predicted, labels, k=1), total)),
        "top5": top5,
        "macro_f1": float(rows.f1[occurring].mean()) if occurring.any() else 0.0,
        "ece": metrics.calibration_error(bins),
        "reliability": [asdict(b) for b in bins],
        "intervals": {name: asdict(of) for name, of in intervals(predicted, labels, num_classes=len(classes)).items()},
        "temperature": temperature_figures(predicted, labels),
        "per_class": [
            {
                "name": classes[c],
                "count": int(rows.count[i]),
                "precision": float(rows.precision[i]),
                "recall": float(rows.recall[i]),
                "f1": float(rows.f1[i]),
            }
            for i, c in enumerate(present)
        ],
        "confusion": confusion.tolist(),
    }


def only(
    predicted: Float[np.ndarray, "image cls"], positions: Int[np.ndarray, " some"]
) -> Float[np.ndarray, "image cls"]:
    """Probabilities given that one of the classes at `positions` is the right one."""
    kept = np.zeros_like(predicted)
    kept[:, positions] = predicted[:, positions]
    total = kept.sum(axis=1, keepdims=True)
    kept[:, positions] += total == 0  # all of them so improbable that they are zero: nothing is known
    return kept / kept.sum(axis=1, keepdims=True)


def predictions_csv(
    parts: dict[str, tuple[Source, list[int], Float[np.ndarray, "image cls"]]],
    *,
    classes: Sequence[str],
    multi_label: bool = False,
) -> str:
    """One row an image: split, index in the split, file, label, prediction, and their probabilities."""
    if multi_label:
        return several.predictions_csv(parts, classes=classes)
    rows: list[list[object]] = [["split", "index", "file", "label", "predicted", "confidence", "label_probability"]]
    for split, (source, indices, predicted) in parts.items():
        source = source.with_classes(classes)
        for index, row in zip(indices, predicted, strict=True):
            label, best = int(source.labels[index]), int(row.argmax())
            own = f"{row[label]:.6f}"
            rows.append([split, index, source.name(index), classes[label], classes[best], f"{row[best]:.6f}", own])
    return csv_text(rows)


def evaluate(
    classifier: Classifier,
    source: Source,
    view: EvalView,
    *,
    classes: Sequence[str],
    split: str,
    multi_label: bool = False,
    world: World,
    batch_size: int = 64,
    num_workers: int = 0,
    console: Console | None = None,
) -> tuple[dict[str, Any], Float[np.ndarray, "image cls"]]:
    """`judged` of what a classifier says, whose outputs are `classes`."""

    def predict(images: Source) -> Float[np.ndarray, "image cls"]:
        return probabilities(
            classifier,
            images,
            view,
            multi_label=multi_label,
            world=world,
            batch_size=batch_size,
            num_workers=num_workers,
            console=console,
        )

    return judged(predict, source, classes=classes, split=split, multi_label=multi_label)


def judged(
    predict: Callable[[Source], Float[np.ndarray, "image cls"]],
    source: Source,
    *,
    classes: Sequence[str],
    split: str,
    multi_label: bool = False,
    among_data: bool = False,
) -> tuple[dict[str, Any], Float[np.ndarray, "image cls"]]:
    """`scores` of the probabilities of `classes` that `predict` gives, on data whose classes map to them by name.

    Also these probabilities. `among_data` chooses among the data's classes alone: the others get probability 0, and the
    rest sums to 1. With `multi_label`, `predict` gives a probability of each class by itself, and the scores are those
    of `multi_label.scores`; an image of one class is one that shows no other.

    Raises:
        InputError: if images have no label, or several where the model chooses one; if a class is not among `classes`,
            or what is predicted is no number.
    """
    started = time.monotonic()
    if len(source) == 0 or (source.labels < 0).any():
        raise InputError("evaluation needs labelled images, but some have no label; use folders named by class")
    if source.multi_label and not multi_label:
        raise InputError(
            "these images may show several classes, but the model chooses one; train one for several: vitreous fit DATA"
        )
    positions = class_positions(source.classes, classes)
    predicted = predict(source)
    if not np.isfinite(predicted).all():
        raise InputError("the model gives no numbers for some images (infinite or NaN); its weights are broken")
    if multi_label:
        shown = several.shown_classes(source, positions, num_classes=len(classes))
        figures = several.scores(predicted, shown, classes=classes, split=split)
        return {**figures, "seconds": time.monotonic() - started}, predicted
    if among_data:
        predicted = only(predicted, positions)
    figures = scores(predicted, positions[source.labels], classes=classes, split=split)
    return {**figures, "seconds": time.monotonic() - started}, predicted
