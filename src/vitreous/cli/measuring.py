"""The command that measures a model: evaluate."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from vitreous.cli.app import ClassNames, Device, TrainedModel, app, changes, class_names, print_json
from vitreous.errors import InputError
from vitreous.tables import class_head, class_rows, confusion_rows, figure_rows, table

if TYPE_CHECKING:
    from vitreous.console import Console
    from vitreous.evaluation.base import Evaluation, Labelled
    from vitreous.evaluation.features import Frozen


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
    mirrored: bool = False,
    classes: ClassNames = None,
    cache: str | None = None,
    no_cache: bool = False,
    device: Device = "auto",
    out: str | None = None,
    figures: str | None = None,
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
    mirrored
        Classify by the mean of what the model says of an image and of its mirror image.
    cache
        The folder where features are kept for the next time; by default features/ among the caches of vitreous.
    no_cache
        Keep no features.
    out
        Write what the model says of every image into this CSV file.
    figures
        Draw reliability, confusion and every curve into this folder, as .pdf and .png.
    json
        Print the figures as JSON.
    """
    from vitreous.console import Console
    from vitreous.evaluation.classify import predictions_csv
    from vitreous.evaluation.feature_store import feature_cache
    from vitreous.files import write_text
    from vitreous.inspection.measurement_figures import write_figures
    from vitreous.measurement import classification, find_images, frozen
    from vitreous.predict import load
    from vitreous.suite import CLASSIFICATION, evaluation_names, suite

    names = evaluation_names(with_)
    chosen = suite(dict(changes(overrides)), names=names).chosen(names)
    kind, _, path = data.partition(":")
    _check(names, kind, val=val, out=out, figures=figures, real=real, among_data=among_data, mirrored=mirrored)
    console = Console()
    loaded = load(model, classes=class_names(classes), device=device, progress=console.say)
    if CLASSIFICATION in names:
        loaded.check_head()
    if not loaded.world.is_main:  # what all processes find is shown and written by one
        console, out, figures = Console(quiet=True), None, None
    if loaded.world.size > 1 and "fine_tune" in names:
        raise InputError(
            "fine-tune trains in one process; leave out torchrun, or fine-tune by: torchrun -m vitreous train"
        )
    json, show = json and loaded.world.is_main, not json and loaded.world.is_main
    place = None if no_cache else Path(cache).expanduser() if cache else feature_cache()
    seen = frozen(loaded, name=model, cache=place, console=console)
    measured: dict[str, Any] = {}
    table_of = ""
    if kind == "imagenet-c":
        measured = corruptions(seen, Path(path).expanduser(), console=console, show=show)
    elif kind == "vtab":
        measured = vtab(seen, Path(path).expanduser(), chosen, console=console, show=show)
    else:
        images = find_images(data, val=val, name=model, model=seen, evaluations=chosen, console=console)
        if CLASSIFICATION in names:
            labels = None if real is None else Path(real).expanduser()
            measured, said = classification(seen, images, real=labels, among_data=among_data, mirrored=mirrored)
            if show:
                show_classification(measured)
            if out is not None:
                source = images.labelled.test
                parts = {images.labelled.split: (source, list(range(len(source))), said)}
                table_of = predictions_csv(parts, classes=loaded.classes, multi_label=loaded.multi_label)
        measured["data"] = images.counts()
        measured["unreadable"] = [{"file": file.name, "reason": file.reason} for file in images.unreadable]
        try:
            for name, figures_of in probes(seen, images.labelled, chosen, console=console, show=show):
                measured.setdefault("evaluations", {})[name] = figures_of
        except InputError:
            if json:  # what was found before is not lost
                print_json(measured)
            raise
    if json:
        print_json(measured)
    if out is not None:
        write_text(Path(out), table_of)
    if figures is not None:
        written = write_figures(Path(figures), measured)
        console.say(f"{len(written)} figures are in {figures}" if written else "there is nothing to draw of these")
    loaded.world.leave()
    return 0


def _check(
    names: list[str],
    kind: str,
    *,
    val: str | None,
    out: str | None,
    figures: str | None,
    real: str | None,
    among_data: bool,
    mirrored: bool,
) -> None:
    """See before the work that its results can be written and that the options go together."""
    from vitreous.files import check_writable
    from vitreous.inspection.figure_style import check_matplotlib
    from vitreous.predictions import check_table
    from vitreous.suite import CLASSIFICATION

    if out is not None:
        check_table(Path(out), (".csv",))
    if figures is not None:
        check_matplotlib()
        check_writable(Path(figures) / "reliability.png")
    switches = {"--among-data": among_data or None, "--mirrored": mirrored or None}
    for option, given in {"--out": out, "--real": real, **switches}.items():
        if given is not None and CLASSIFICATION not in names:
            raise InputError(f"{option} is about classification, which is not carried out; add it to --with")
    options = {"--val": val, "--out": out, "--figures": figures, "--real": real, **switches}
    if kind in ("imagenet-c", "vtab") and (given := [name for name, value in options.items() if value is not None]):
        raise InputError(f"{kind} is a benchmark of its own, without {given[0]}; leave that out")
    if kind == "imagenet-c" and names != [CLASSIFICATION]:
        raise InputError("imagenet-c has images to classify and none to learn from; leave out --with")
    if kind == "vtab" and CLASSIFICATION in names:
        raise InputError("VTAB's tasks are learned first; say how, such as --with linear or --with fine-tune")


def show_classification(figures: Mapping[str, Any]) -> None:
    """The headline figures, then by class, then what is confused most."""
    print(table(figure_rows(figures)))
    print()
    print(table([class_head(figures), *class_rows(figures)]))
    if confused := confusion_rows(figures):
        print()
        print(table([("most confused", "taken for", "images"), *confused]))
    print()


def probes(
    model: "Frozen", data: "Labelled", evaluations: "Mapping[str, Evaluation]", *, console: "Console", show: bool
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and figures of each evaluation; its table is printed as soon as it ends."""
    from vitreous.suite import carry_out

    for name, outcome in carry_out(evaluations, model, data, console=console):
        if show:
            print(table([(name.replace("_", "-"), "", ""), *outcome.rows]))
            print("".join(f"({note})\n" for note in outcome.notes), flush=True)
        yield name, outcome.figures


def vtab(
    model: "Frozen", folder: Path, evaluations: "Mapping[str, Evaluation]", *, console: "Console", show: bool
) -> dict[str, Any]:
    """The scores of every task in `folder`, and their means, beside the paper's."""
    from dataclasses import asdict

    from vitreous.evaluation.vtab import PAPER, PAPER_MEANS, group_means, rows
    from vitreous.measurement import vtab as measure

    tasks = dict(measure(folder, evaluations, model, console=console))
    scores: dict[str, dict[str, float]] = {}
    for name, found in tasks.items():
        for way, score in found["scores"].items():
            scores.setdefault(way.replace("_", "-"), {})[name] = score
    if show:
        print(table(rows(scores, official={name: found["official"] for name, found in tasks.items()})))
        print("".join(f"({name}: {note})\n" for name, found in tasks.items() for note in found["notes"]), end="")
    means = {way: asdict(group_means(of)) for way, of in scores.items()}
    return {"tasks": tasks, "means": means, "paper": PAPER, "paper_means": PAPER_MEANS}


def corruptions(model: "Frozen", folder: Path, *, console: "Console", show: bool) -> dict[str, Any]:
    """The errors under every corruption in `folder`, and the mean that the benchmark is known by."""
    from vitreous.measurement import corruption_benchmark

    figures = corruption_benchmark(model, folder, console=console)
    if show:
        show_corruptions(figures)
    return figures


def show_corruptions(figures: Mapping[str, Any]) -> None:
    """A row a corruption, and the mean."""
    rows = [("corruption", "error", "over AlexNet's")]
    for name, one in figures["corruptions"].items():
        rows.append((name, f"{one['error']:.2%}", "" if one["relative"] is None else f"{one['relative']:.2%}"))
    mce = "not all 15 corruptions at 5 severities are there" if figures["mce"] is None else f"{figures['mce']:.2%}"
    print(table([*rows, ("mean", f"{figures['mean_error']:.2%}", mce)]))
