"""Commands that use a trained model: evaluate, predict."""

import json as jsonlib
from pathlib import Path

from vitreous.cli.app import ClassNames, Device, TrainedModel, Whole, app, print_json
from vitreous.errors import InputError
from vitreous.tables import class_rows, confusion_rows, figure_rows, table


@app.command
def evaluate(
    model: TrainedModel,
    data: str,
    /,
    *,
    classes: ClassNames = None,
    device: Device = "auto",
    out: str | None = None,
    json: bool = False,
) -> int:
    """Measure a model on labelled images: top-1, top-5, per class, calibration, confusion, 95 % intervals.

    Parameters
    ----------
    data
        Labelled images, as for fit; of several splits test counts, else val. Classes are matched by name.
    out
        Write what the model says of every image into this CSV file.
    json
        Print the figures as JSON.
    """
    from vitreous.console import Console
    from vitreous.evaluation.classify import evaluate as measure
    from vitreous.evaluation.classify import predictions_csv
    from vitreous.evaluation.held_out import held_out_images
    from vitreous.files import write_text
    from vitreous.predict import load
    from vitreous.predictions import check_table

    if out is not None:
        check_table(Path(out), (".csv",))
    console = Console()
    loaded = load(model, classes=class_names(classes), device=device, progress=console.say)
    loaded.check_head()
    held_out = held_out_images(data, model=model, console=console)
    split, source = held_out.split, held_out.source
    figures, predicted = measure(
        loaded.inference,
        source,
        loaded.view,
        classes=loaded.classes,
        split=split,
        world=loaded.world,
        console=console,
    )
    if out is not None:
        rows = {split: (source, list(range(len(source))), predicted)}
        write_text(Path(out), predictions_csv(rows, classes=loaded.classes))
    if json:
        print_json({**figures, "unreadable": [{"file": file.name, "reason": file.reason} for file in held_out.bad]})
    else:
        print(table(figure_rows(figures)))
        print()
        print(table([("class", "images", "precision", "recall", "F1"), *class_rows(figures)]))
        if confused := confusion_rows(figures):
            print()
            print(table([("most confused", "taken for", "images"), *confused]))
    return 0


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
        Classes to name for each image.
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
            print(jsonlib.dumps({"file": said.file, "top": said.top}, ensure_ascii=False))
    elif predictions:
        print(table([(str(said.file), *(f"{name} {score:.1%}" for name, score in said.top)) for said in predictions]))
    if unreadable:
        for reason in unreadable if len(unreadable) > 3 else ():
            console.say(f"left out: {reason}")
        total = len(unreadable) + len(predictions)
        raise InputError(f"{len(unreadable):,} of {total:,} files are no readable image: {'; '.join(unreadable[:3])}")
    return 0


def class_names(file: str | None) -> list[str] | None:
    """The lines of a file."""
    if file is None:
        return None
    try:
        return Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read class names from {file}: {error}; give a text file, one name a line") from None
