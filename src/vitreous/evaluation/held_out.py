"""Labelled images to measure a model on, whatever splits they come in."""

import os
from dataclasses import dataclass
from pathlib import Path

from vitreous.console import Console
from vitreous.data.layouts import absolute, open_held_out
from vitreous.data.prepare import BadFile, DataConfig, reopen
from vitreous.data.source import Source
from vitreous.data.survey import survey
from vitreous.errors import InputError
from vitreous.files import read_text
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
    if (run := _run_of(model)) is not None:
        config = DataConfig.of_run(run.read())
        if config.path == absolute(data, Path()):
            splits = reopen(config, read_text(run.split))
            split = "test" if "test" in splits else "val"
            console.say(f"measuring on the {split} images that {run.path} held out")
            return HeldOut(split, splits[split], [])
    split, source, notes = open_held_out(data)
    for note in notes:
        console.say(f"{data}: {note}")
    with console.task("image", len(source)) as task:
        found = survey(source, progress=task.update)
    bad = [BadFile(source.name(i), split, reason) for i, reason in sorted(found.bad.items())]
    for file in bad[:5]:
        console.say(f"left out: {file.name}: {file.reason}")
    if len(bad) > 5:
        console.say(f"left out: {len(bad) - 5:,} more files that cannot be read; --json names all")
    if len(found.usable) == 0:
        raise InputError(f"no image of {data} can be read ({bad[0].name}: {bad[0].reason}); give images")
    return HeldOut(split, source.select(found.usable), bad)


def _run_of(model: str) -> RunFolder | None:
    """The run whose product `model` is: it names the run's folder, the product's, or the weights file in that."""
    path = Path(os.path.expanduser(model))
    folders = (RunFolder(folder) for folder in (path, *path.parents[:2]))
    products = (path, path.parent)
    return next((run for run in folders if run.exists() and (run.path == path or run.model in products)), None)
