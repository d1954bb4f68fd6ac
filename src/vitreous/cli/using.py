"""Commands that use a trained model: predict."""

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING

from vitreous.cli.app import ClassNames, Device, TrainedModel, Whole, app, class_names
from vitreous.errors import InputError
from vitreous.tables import table

if TYPE_CHECKING:
    from vitreous.predict import Prediction


def _named(said: "Prediction") -> list[str]:
    """The most probable classes; where an image may show several, those that it shows, or which came nearest."""
    best = [f"{name} {score:.1%}" for name, score in said.top]
    if said.labels is None:
        return best
    return best[: len(said.labels)] or [f"none (nearest: {best[0]})"]


@app.command
def predict(
    model: TrainedModel,
    images: str,
    /,
    *more: str,
    top: Whole = 5,
    classes: ClassNames = None,
    out: str | None = None,
    device: Device = "auto",
    json: bool = False,
) -> int:
    """Name what is in images.

    Parameters
    ----------
    images
        Image files, or folders of them.
    more
        More of them.
    top
        Classes to name for each image; of a model for several classes an image, at most so many of those above 50 %.
    out
        Write a table into this file: .csv, .jsonl or .parquet.
    json
        Print one JSON object a line instead of a table.
    """
    from vitreous.console import Console
    from vitreous.predict import load
    from vitreous.predictions import check_table, predict_files, write_predictions

    if top < 1:
        raise InputError(f"--top must be at least 1, got {top}")
    if out is not None:
        check_table(Path(out))
    console = Console()
    loaded = load(model, classes=class_names(classes), device=device, progress=console.say)
    loaded.check_head()
    predictions, unreadable = predict_files(loaded, [images, *more], top=top, console=console)
    if out is not None:
        write_predictions(Path(out), predictions)
    if out is not None and not json:
        print(f"{len(predictions):,} predictions in {out}")
    elif json:
        for said in predictions:
            several = {} if said.labels is None else {"multi_label": True, "labels": said.labels}
            print(jsonlib.dumps({"file": said.file, **several, "top": said.top}, ensure_ascii=False))
    elif predictions:
        print(table([(str(said.file), *_named(said)) for said in predictions]))
    if unreadable:
        for reason in unreadable if len(unreadable) > 3 else ():
            console.say(f"left out: {reason}")
        total = len(unreadable) + len(predictions)
        raise InputError(f"{len(unreadable):,} of {total:,} files are no readable image: {'; '.join(unreadable[:3])}")
    return 0
