"""Labelled images to measure a model on, and others to learn from first, whatever splits they come in."""

import os
from dataclasses import dataclass
from pathlib import Path

from vitreous.console import Console
from vitreous.data.data_config import DataConfig
from vitreous.data.layouts import absolute, open_held_out
from vitreous.data.prepare import BadFile, prepare, reopen
from vitreous.data.source import Source
from vitreous.data.survey import survey
from vitreous.errors import InputError
from vitreous.evaluation.base import Labelled
from vitreous.files import read_text
from vitreous.objectives.supervised import ANY_CLASSIFIER
from vitreous.run_folder import RunFolder


@dataclass(frozen=True)
class HeldOut:
    """Readable, labelled images, and the files that are not."""

    split: str
    """train, val, test, or all where the data come in one piece."""
    source: Source
    bad: list[BadFile]


def held_out_images(data: str, *, model: str, console: Console) -> HeldOut:
    """The images at `data` to measure `model` on: of several splits test counts, else val.

    Where `model` is a run that was trained on `data`, they are the images that run held out. Every file is looked
    at; those that cannot be read are named and left out.

    Raises:
        InputError: if no image is labelled and readable.
    """
    if (run := _run_of(model)) is not None and _same_data(run, data):
        splits = splits_of(run)
        split = "test" if "test" in splits else "val"
        console.say(f"measuring on the {split} images that {run.path} held out")
        return HeldOut(split, splits[split], [])
    split, source, notes = open_held_out(data, console=console)
    for note in notes:
        console.say(f"{data}: {note}")
    with console.task("image", len(source)) as task:
        found = survey(source, progress=task.update)
    bad = [BadFile(source.name(i), split, reason) for i, reason in sorted(found.bad.items())]
    _name(bad, console)
    if len(found.usable) == 0:
        raise InputError(f"no image of {data} can be read ({bad[0].name}: {bad[0].reason}); give images")
    return HeldOut(split, source.select(found.usable), bad)


def learning_images(data: str, *, val: str | None, model: str, console: Console) -> tuple[Labelled, list[BadFile]]:
    """Images at `data` to learn from and to measure on, and the files that cannot be read.

    Splits that exist are kept: what is measured is test, else val; where there are both, val chooses settings. `val`
    names other data to measure on. Data in one piece lose a fifth of each class to test; where `model` is a run that
    was trained on `data`, the splits are those of the run.

    Raises:
        InputError: if the data cannot be used; says why and what to do.
    """
    config = DataConfig(path=data, val=val, allow_bad=True)
    if val is None and (run := _run_of(model)) is not None and _same_data(run, data):
        splits = splits_of(run)
        train, rest, bad = splits["train"], (splits.get("val") or splits.get("dev"), splits.get("test")), []
        console.say(f"the splits are those of {run.path}; its encoder was trained on the images to learn from")
    else:
        with console.task("image", 0) as task:
            prepared = prepare(config, check=ANY_CLASSIFIER.check, progress=task.follow, console=console)
        train, rest, bad = prepared.train, (prepared.val, prepared.test), prepared.bad
        _name(bad, console)
        if prepared.excluded:
            console.say(
                f"left out: {len(prepared.excluded):,} copies of other images, first {prepared.excluded[0].name}"
            )
        for note in prepared.summary["notes"]:
            console.say(f"{data}: {note}")
    match rest:
        case (dev, test) if test is not None:
            found = Labelled(train, test, "test", dev)
        case (val_images, _):
            assert val_images is not None, "something is always held out"
            found = Labelled(train, val_images, "val")
    chosen = f", settings chosen on {len(found.dev):,} of val" if found.dev is not None else ""
    console.say(f"learning from {len(train):,} images{chosen}, measuring on {len(found.test):,} of {found.split}")
    return found, bad


def _name(bad: list[BadFile], console: Console) -> None:
    """Say which files are left out, if any."""
    for file in bad[:5]:
        console.say(f"left out: {file.name}: {file.reason}")
    if len(bad) > 5:
        console.say(f"left out: {len(bad) - 5:,} more files that cannot be read; --json names all")


def splits_of(run: RunFolder) -> dict[str, Source]:
    """The splits of a run by name, without looking at the images again.

    Raises:
        InputError: if its list is damaged, or the data are no longer where they were.
    """
    record = run.read()
    return reopen(DataConfig.of_run(record), read_text(run.split), record=record)


def _same_data(run: RunFolder, data: str) -> bool:
    return DataConfig.of_run(run.read()).path == absolute(data, Path())


def _run_of(model: str) -> RunFolder | None:
    """The run whose product `model` is: it names the run's folder, the product's, or the weights file in that."""
    path = Path(os.path.expanduser(model))
    folders = (RunFolder(folder) for folder in (path, *path.parents[:2]))
    products = (path, path.parent)
    return next((run for run in folders if run.exists() and (run.path == path or run.model in products)), None)
