"""One run from data to report: look at the images, train, measure, show."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitreous.budget import cost, plain_classifier
from vitreous.console import Console
from vitreous.cores import cores
from vitreous.data.data_config import DataConfig
from vitreous.data.layouts import absolute
from vitreous.data.prepare import BadData, BadFile, Prepared, prepare, recall
from vitreous.distributed import World, launcher
from vitreous.errors import InputError
from vitreous.evaluation.classify import evaluate, predictions_csv, probabilities
from vitreous.evaluation.held_out import splits_of
from vitreous.fetching import Unavailable
from vitreous.fields import walk
from vitreous.files import read_text, write_text
from vitreous.inspection.report import write_report
from vitreous.metrics import headline
from vitreous.objectives.base import ObjectiveConfig
from vitreous.objectives.supervised import ANY_CLASSIFIER, SupervisedObjective
from vitreous.provenance import describe_run
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.seeding import generator
from vitreous.trainee import build_objective
from vitreous.training import train
from vitreous.variants import title
from vitreous.weights.open import open_model
from vitreous.weights.product import MULTI_LABEL, Product, save_product

TRAINING_SAMPLE = 2000  # training images measured beside the held-out ones, to find wrong labels among them


@dataclass(frozen=True)
class Finished:
    """A run that came to its end."""

    folder: RunFolder
    evaluation: dict[str, Any]
    """The contents of evaluation.json."""

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.folder.report

    @property
    def top1(self) -> float:
        """Share of held-out images classified right, in [0, 1].

        Raises:
            InputError: where images show several classes; `evaluation` has the figures.
        """
        if "top1" not in self.evaluation:
            raise InputError("images of several classes have no top-1; see evaluation['map']")
        return self.evaluation["top1"]["value"]

    def _repr_html_(self) -> str:
        name, share = headline(self.evaluation)
        return f"<p>{self.folder.path}: {name} {share['value']:.1%} of {self.evaluation['num_images']:,} images</p>"


def preview(run: Run) -> dict[str, str]:
    """What `run` would do, from names and shapes alone: data, model, length, in words.

    Raises:
        InputError: if the data are not there, or the parts of the run do not go together.
    """
    opened = run.data.open()
    run.objective.check(opened)
    splits = opened.named()
    classes = splits["train"].classes
    spent = cost(plain_classifier(run.model, num_classes=len(classes) or 1))
    check_parts(replace(run, weights=None), num_classes=len(classes))
    counts = ", ".join(f"{len(source):,} {split}" for split, source in splits.items())
    batch_size = min(run.batch_size, len(splits["train"]))
    passes = run.steps * batch_size / run.num_repeats / len(splits["train"])
    mixed = " and ".join(run.data.places)
    if run.data.shares:
        mixed += f", mixed {':'.join(f'{share:g}' for share in run.data.shares)}"
    return {
        "data": f"{mixed}: {counts} images of {len(classes)} classes",
        "model": f"{title(run.model)}, {spent.parameters:,} parameters, {spent.gflops:,.3g} GFLOPs an image",
        "length": f"{run.steps:,} steps of {batch_size} images, {passes:,.1f} passes over the data",
    }


def check_parts(run: Run, *, num_classes: int) -> None:
    """See before anything is written that model, objective and weights go together.

    Raises:
        InputError: if they do not.
    """
    if run.weights is not None:
        build_objective(run, num_classes=num_classes)
        return
    with torch.device("meta"):
        run.objective.build(run.model, num_classes=num_classes)


def check_apart(folder: RunFolder, config: DataConfig) -> None:
    """See that nothing will be written into the user's images.

    Raises:
        InputError: if the run's folder lies in a folder of images.
    """
    for place in (*config.places, config.val):
        data = Path(absolute(place, Path.cwd())) if place else None
        if data is not None and data.is_dir() and folder.path.resolve().is_relative_to(data):
            raise InputError(f"{folder.path} lies in the data {place}, which are never written to; give another --out")


def look(
    config: DataConfig,
    folder: RunFolder,
    console: Console,
    *,
    objective: ObjectiveConfig = ANY_CLASSIFIER,
    dry_run: bool = False,
) -> Prepared:
    """Every file of the data, looked at; files that cannot be read are named and listed in bad_images.txt.

    Raises:
        InputError: if `objective` cannot be trained on the data, or too many files cannot be read.
    """
    if (before := _seen_before(config, folder, console)) is not None:
        console.say(f"{' and '.join(config.places)} is as it was")
        return before
    console.say(f"looking at {' and '.join(config.places)}")
    try:
        with console.task("image", 0) as task:
            begun = folder.read() if folder.exists() else None
            prepared = prepare(config, check=objective.check, progress=task.follow, console=console, begun=begun)
    except BadData as error:
        _list_bad(error.bad, None if dry_run else folder, console)
        raise
    _list_bad(prepared.bad, None if dry_run else folder, console)
    for line in describe(prepared):
        console.say(line)
    return prepared


def _seen_before(config: DataConfig, folder: RunFolder, console: Console) -> Prepared | None:
    """What the run in `folder` found in the data when it began, if they are as they were then."""
    if not (folder.exists() and folder.split.exists()):
        return None
    try:
        return recall(config, split_csv=read_text(folder.split), record=folder.read(), console=console)
    except Unavailable:
        raise
    except InputError:  # whatever is wrong is said when they are looked at anew
        return None


def describe(prepared: Prepared) -> list[str]:
    """What was found in the data, a line a fact."""
    summary = prepared.summary
    sizes = summary["sizes"]
    kind = "no labels" if not prepared.classes else f"{len(prepared.classes)} classes"
    lines = [
        f"  {kind}{', several or none an image' if prepared.train.multi_label else ''}, "
        + ", ".join(f"{count:,} {split}" for split, count in summary["images"].items())
        + f" images, about {sizes['width']['median']:.0f} x {sizes['height']['median']:.0f} pixels"
    ]
    duplicates = summary["duplicates"]
    kinds = {"within": "within a split", "across_splits": "in two splits", "across_classes": "in two classes"}
    if found := [
        f"{duplicates[kind]['count']:,} {words}" for kind, words in kinds.items() if duplicates[kind]["count"]
    ]:
        lines.append(f"  duplicates: {', '.join(found)} (which were kept: split.csv)")
    return lines + [f"  {note}" for note in summary["notes"]]


def _list_bad(bad: list[BadFile], folder: RunFolder | None, console: Console) -> None:
    if not bad:
        if folder is not None:
            folder.bad_images.unlink(missing_ok=True)  # of an earlier try
        return
    if folder is not None:
        lines = [f"{file.split}\t{file.name}\t{file.reason}" for file in bad]
        one_line = str.maketrans({"\n": "\\n", "\r": "\\r"})
        write_text(folder.bad_images, "".join(f"{line.translate(one_line)}\n" for line in lines))
    where = f" (all in {folder.bad_images})" if folder else ""
    console.say(f"{len(bad):,} files cannot be read{where}:")
    for file in bad[:5]:
        console.say(f"  {file.name}: {file.reason}")


def carry_out(
    run: Run,
    folder: RunFolder,
    *,
    prepared: Prepared,
    world: World,
    console: Console,
    details: dict[str, Any] | None = None,
    time_limit_s: float | None = None,
) -> Finished:
    """Train (or go on training), measure on the held-out images, write the report.

    `details` go into run.json beside what every run says there.

    Raises:
        Stopped: if it stopped early; the same call goes on.
        InputError: if `folder` holds another run, or its data have changed.
    """

    def beginning() -> dict[str, Any]:
        if not folder.exists():
            check_parts(run, num_classes=len(prepared.classes))
        return begin(run, folder, prepared=prepared, world=world, details=details or {})

    record = world.on_main(beginning)
    if world.device.type == "cpu":  # another number of threads would sum in another order
        world = world.with_threads(min(record.get("threads", 0), 4 * cores()) or world.threads)
    training = world.with_precision(run.precision)
    if not world.on_main(folder.trained):
        console.say(
            f"training on {world.device.type} ({world.processes}{world.threads} of {cores()} CPU cores, "
            f"{training.precision}) into {folder.path}"
        )
        world.each(lambda: [source.bring() for source in (prepared.train, prepared.held_out[1])])
        objective = train(
            run,
            prepared.train,
            held_out=prepared.held_out,
            folder=folder,
            world=training,
            console=console,
            fingerprint=prepared.fingerprint,
            time_limit_s=time_limit_s,
        )
        if not isinstance(objective, SupervisedObjective):
            raise InputError(f"{type(run.objective).__name__} has no classifier to measure")
        product = Product(
            classifier=objective.classifier.float().cpu(),
            view=run.eval_view,
            classes=prepared.classes,
            extra={
                "data_fingerprint": prepared.fingerprint,
                **({MULTI_LABEL: True} if prepared.train.multi_label else {}),
            },
        )

        def keep() -> None:
            folder.check()
            save_product(folder.model, product)

        world.on_main(keep)
    if not world.on_main(folder.evaluation.exists):
        measure_run(run, folder, prepared=prepared, world=world, console=console)
    world.on_main(lambda: show(folder))
    return Finished(folder, world.on_main(folder.figures))


def begin(run: Run, folder: RunFolder, *, prepared: Prepared, world: World, details: dict[str, Any]) -> dict[str, Any]:
    """Write split.csv and run.json, or check that what stands there is of this run and these data; returns run.json."""
    if not folder.exists():
        write_text(folder.split, prepared.split_csv())
        folder.write_record(
            {
                **describe_run(run, seed=run.seed),
                "threads": world.threads,
                "processes": world.size,
                **({"launcher": launched_by} if (launched_by := launcher()) else {}),
                "classes": list(prepared.classes),
                "data": prepared.summary,
                "data_fingerprint": prepared.fingerprint,
                "data_stamp": prepared.stamp,
                **details,
            }
        )
    record = folder.read()
    if not same_run(before := record.get("config", {}), run):
        raise InputError(f"{folder.path} holds another run ({first_difference(before, run)}); choose another --out")
    if record.get("data_fingerprint") != prepared.fingerprint:
        raise InputError(
            f"the images have changed since {folder.path} was begun; put them back, or choose another --out"
        )
    if not folder.split.exists():
        write_text(folder.split, prepared.split_csv())
    return record


def same_run(before: Any, run: Run) -> bool:
    """Whether a saved config gives what `run` gives; what changes no result may differ."""
    essence = json.loads(json.dumps(run.essence()))
    return isinstance(before, dict) and {name: before.get(name) for name in essence} == essence


def first_difference(before: dict[str, Any], run: Run) -> str:
    """The first field in which a saved config and `run` differ, in words."""
    essence = run.essence()
    for entry in walk(run):
        if entry.path.partition(".")[0] not in essence:
            continue
        old: Any = before
        for part in entry.path.split("."):
            old = old.get(part, "absent") if isinstance(old, dict) else "absent"
        old = old["class"].rpartition(".")[2] if isinstance(old, dict) else old
        new = list(entry.value) if isinstance(entry.value, tuple) else entry.value
        if old != new:
            return f"{entry.path} is {old} there and {new} here"
    return "another kind of config"


def measure_run(run: Run, folder: RunFolder, *, prepared: Prepared, world: World, console: Console) -> None:
    """Write evaluation.json and predictions.csv: the held-out images, and a sample of the training ones."""
    product = open_model(str(folder.path))
    classifier = product.classifier.to(world.device)
    split, held_out = prepared.held_out
    several = product.multi_label
    console.say(f"measuring {len(held_out):,} held-out images")
    figures, predicted = evaluate(
        classifier,
        held_out,
        run.eval_view,
        classes=prepared.classes,
        split=split,
        multi_label=several,
        world=world,
        num_workers=run.num_workers,
        console=console,
    )
    count = min(TRAINING_SAMPLE, len(held_out), len(prepared.train))
    chosen = sorted(generator(run.seed, "training sample").permutation(len(prepared.train))[:count].tolist())
    sample = prepared.train.select(chosen)
    ours = probabilities(
        classifier,
        sample,
        run.eval_view,
        multi_label=several,
        world=world,
        num_workers=run.num_workers,
        console=console,
    )
    everything = np.arange(len(held_out)).tolist()
    parts = {split: (held_out, everything, predicted), "train": (prepared.train, chosen, ours)}

    def write() -> None:
        folder.check()
        write_text(folder.predictions, predictions_csv(parts, classes=prepared.classes, multi_label=several))
        write_text(folder.evaluation, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")

    world.on_main(write)


def show(folder: RunFolder) -> Path:
    """Write the report of a run from what stands in its folder, and from its images if they are still there."""
    try:
        data = splits_of(folder)
    except (InputError, OSError):
        data = None
    product = open_model(str(folder.path)) if folder.trained() else None
    return write_report(
        folder.path,
        data=data,
        classifier=product.classifier if product else None,
        view=product.view if product else None,
    )
