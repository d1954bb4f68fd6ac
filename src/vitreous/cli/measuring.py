"""The command that measures a model: evaluate."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vitreous.cli.app import ClassNames, Device, TrainedModel, app, changes, class_names, print_json
from vitreous.errors import InputError
from vitreous.tables import class_rows, confusion_rows, figure_rows, table


@app.command
def evaluate(
    model: TrainedModel,
    data: str,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True)],
    with_: Annotated[str, Parameter(name="--with")] = "classification",
    val: str | None = None,
    real: str | None = None,
    among_data: bool = False,
    classes: ClassNames = None,
    cache: str | None = None,
    no_cache: bool = False,
    device: Device = "auto",
    out: str | None = None,
    json: bool = False,
) -> int:
    """Measure a model on labelled images: how it names them, and what can be learned from its frozen features.

    Parameters
    ----------
    data
        Labelled images, as for fit; of several splits test counts, else val. Classes are matched by name. Also
        imagenet-a:PATH, imagenet-r:PATH, imagenet-v2:PATH, imagenet-sketch:PATH and imagenet-c:PATH; and vtab:PATH, a
        folder for each task of VTAB-1k.
    overrides
        Any setting of an evaluation by its name: --few_shot.shots 1,5 or --knn.ks 20.
    with_
        One or more, with commas: classification, few-shot, knn, logistic, linear, attentive, fine-tune, resolution,
        patch-drop, patch-shuffle, cost. Those that learn, learn from the train split of DATA.
    val
        Other data to measure on, for evaluations that learn from DATA.
    real
        ReaL's real.json, for the validation images of ImageNet: every label that is right counts.
    among_data
        Let the model choose among the classes in DATA alone.
    cache
        The folder where features are kept for the next time; by default features/ among the caches of vitreous.
    no_cache
        Keep no features.
    out
        Write what the model says of every image into this CSV file.
    json
        Print the figures as JSON.
    """
    from vitreous.console import Console
    from vitreous.evaluation.classify import predictions_csv
    from vitreous.evaluation.features import feature_cache
    from vitreous.files import write_text
    from vitreous.measurement import classification, corruption_benchmark, find_images, frozen, vtab
    from vitreous.predict import load
    from vitreous.predictions import check_table
    from vitreous.suite import CLASSIFICATION, carry_out, evaluation_names, suite

    names = evaluation_names(with_)
    chosen = suite(dict(changes(overrides)), names=names).chosen(names)
    if out is not None:
        check_table(Path(out), (".csv",))
    for option, given in (("--out", out is not None), ("--real", real is not None), ("--among-data", among_data)):
        if given and CLASSIFICATION not in names:
            raise InputError(f"{option} is about classification, which is not carried out; add it to --with")
    console = Console()
    loaded = load(model, classes=class_names(classes), device=device, progress=console.say)
    if data.startswith("imagenet-c:"):
        if names != [CLASSIFICATION]:
            raise InputError("imagenet-c has images to classify and none to learn from; leave out --with")
        corrupted = corruption_benchmark(loaded, Path(data.partition(":")[2]).expanduser(), console=console)
        if json:
            print_json(corrupted)
        else:
            show_corruptions(corrupted)
        return 0
    if data.startswith("vtab:") and (CLASSIFICATION in names or not names):
        raise InputError("VTAB's tasks are learned first; say how, such as --with linear or --with fine-tune")
    if CLASSIFICATION in names:
        loaded.check_head()
    place = None if no_cache else Path(cache).expanduser() if cache else feature_cache()
    seen = frozen(loaded, name=model, cache=place, console=console)
    if data.startswith("vtab:"):
        show_vtab(vtab(Path(data.partition(":")[2]).expanduser(), chosen, seen, console=console), json=json)
        return 0
    images = find_images(data, val=val, name=model, model=seen, evaluations=chosen, console=console)
    figures: dict[str, Any] = {}
    if CLASSIFICATION in names:
        labels = None if real is None else Path(real).expanduser()
        figures, predicted = classification(loaded, images, real=labels, among_data=among_data, console=console)
        if out is not None:
            source = images.labelled.test
            rows = {images.labelled.split: (source, list(range(len(source))), predicted)}
            write_text(Path(out), predictions_csv(rows, classes=loaded.classes))
    if figures and not json:
        show_classification(figures)
    found: dict[str, Any] = {}
    for name, outcome in carry_out(chosen, seen, images.labelled, console=console):
        if not json:
            print(("\n" if found or figures else "") + table([(name.replace("_", "-"), "", ""), *outcome.rows]))
            print("".join(f"({note})\n" for note in outcome.notes), end="", flush=True)
        found[name] = outcome.figures
    if json:
        unreadable = [{"file": file.name, "reason": file.reason} for file in images.unreadable]
        print_json({**figures, **({"evaluations": found} if found else {}), "unreadable": unreadable})
    return 0


def show_classification(figures: dict[str, Any]) -> None:
    """The headline figures, then by class, then what is confused most."""
    print(table(figure_rows(figures)))
    print()
    print(table([("class", "images", "precision", "recall", "F1"), *class_rows(figures)]))
    if confused := confusion_rows(figures):
        print()
        print(table([("most confused", "taken for", "images"), *confused]))


def show_vtab(measured: Iterator[tuple[str, dict[str, Any]]], *, json: bool) -> None:
    """The scores of every task, and their means, beside the paper's."""
    from dataclasses import asdict

    from vitreous.evaluation.vtab import PAPER, group_means, rows

    tasks: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[str, float]] = {}
    for name, found in measured:
        tasks[name] = found
        for way, score in found["scores"].items():
            scores.setdefault(way.replace("_", "-"), {})[name] = score
    if json:
        means = {way: asdict(group_means(of)) for way, of in scores.items()}
        print_json({"tasks": tasks, "means": means, "paper": PAPER})
        return
    print(table(rows(scores, official={name: found["official"] for name, found in tasks.items()})))
    for name, found in tasks.items():
        for note in found["notes"]:
            print(f"({name}: {note})")


def show_corruptions(figures: dict[str, Any]) -> None:
    """Errors by corruption, and the mean that the benchmark is known by."""
    rows = [("corruption", "error", "over AlexNet's")]
    for name, one in figures["corruptions"].items():
        rows.append((name, f"{one['error']:.2%}", "" if one["relative"] is None else f"{one['relative']:.2%}"))
    mce = "not all 15 corruptions at 5 severities are there" if figures["mce"] is None else f"{figures['mce']:.2%}"
    print(table([*rows, ("mean", f"{figures['mean_error']:.2%}", mce)]))
