"""Lists of images: `train800.txt`, `val200.txt` (or `train800val200.txt`) and `test.txt`, a path and a label a line.

They lie beside an images folder in the copies of VTAB-1k that NOAH and others handed out, or name the images of an
original data set, with or without labels.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from vitreous.data.source import FileSource, Source
from vitreous.data.vtab.records import Records, cut
from vitreous.data.vtab.tasks import NUM_TRAIN, NUM_VAL, Task
from vitreous.errors import InputError

TRAIN, VAL, BOTH, TEST = "train800.txt", "val200.txt", "train800val200.txt", "test.txt"


@dataclass(frozen=True)
class Line:
    """One image of a list."""

    path: str
    label: int | None
    place: str
    """File and line number, for messages."""


@dataclass(frozen=True)
class Lists:
    """The lists of a folder."""

    train: list[Line]
    val: list[Line]
    test: list[Line] | None
    files: str
    """Their names, for messages."""

    @property
    def official(self) -> bool:
        """Whether they are as long as VTAB-1k's, which their names say they are."""
        return (len(self.train), len(self.val)) == (NUM_TRAIN, NUM_VAL)


def read_lists(folder: Path) -> Lists | None:
    """The lists in `folder`, or None if there are none.

    Raises:
        InputError: if one is missing or not a list.
    """
    have = {name: _lines(folder / name) for name in (TRAIN, VAL, BOTH, TEST) if (folder / name).is_file()}
    if TRAIN in have and VAL in have:
        return Lists(have[TRAIN], have[VAL], have.get(TEST), f"{folder / TRAIN} and {VAL}")
    if BOTH in have:
        return Lists(have[BOTH][:NUM_TRAIN], have[BOTH][NUM_TRAIN:], have.get(TEST), f"{folder / BOTH}")
    if TRAIN in have or VAL in have:
        raise InputError(f"{folder} has only one of {TRAIN} and {VAL}; give both, or {BOTH}")
    return None


def listed_files(lists: Lists, folder: Path, task: Task) -> list[Source] | None:
    """The training, validation and test images that the lists name in `folder`; None if their first is not there.

    Raises:
        InputError: if another image, a label or test.txt is missing.
    """
    if not (folder / lists.train[0].path).is_file():
        return None
    if lists.test is None:
        raise InputError(f"{folder} lacks {TEST} beside {lists.files}")
    parts = (lists.train, lists.val, lists.test)
    sources: list[Source] = []
    for part in parts:
        for line in part:
            if line.label is None or not 0 <= line.label < task.num_classes:
                raise InputError(f"{line.place} has no label from 0 to {task.num_classes - 1} after the path")
            if line.path.startswith("/") or ".." in PurePosixPath(line.path).parts:
                raise InputError(f"{line.place} leads out of {folder}; paths count from it")
            if not (folder / line.path).is_file():
                raise InputError(f"{line.place}: no such file {line.path}; paths count from {folder}")
        names, labels = [line.path for line in part], np.array([line.label for line in part])
        classes = [str(label) for label in range(task.num_classes)]
        sources.append(FileSource(folder, names, classes=classes, labels=labels))
    return sources


def listed_in(
    records: dict[str, Records], lists: Lists, task: Task
) -> tuple[dict[str, Records], np.ndarray, np.ndarray, np.ndarray]:
    """The splits of an original data set, and the positions of the training, validation and test images in them.

    Where the splits were drawn here, all are made one, since the lists need not follow our draw.

    Raises:
        InputError: if a name fits no image or several, test.txt is needed, or test images are trained on.
    """
    if records["train"].keys is None:
        sources = [part.source for part in records.values()]  # selections from one source
        whole = copy.copy(sources[0])
        whole.rows, whole.labels = (np.concatenate([getattr(s, name) for s in sources]) for name in ("rows", "labels"))
        records = dict.fromkeys(records, Records(whole))
        if lists.test is None:
            raise InputError(f"{lists.files} need {TEST} beside them, since what is left for the test cannot be known")
    train = listed_records(lists.train, records["train"])
    val = listed_records(lists.val, records[task.val[0]])
    if lists.test is None:
        test = cut(records, task, seed=0, num_train=1, num_val=1).test
    else:
        test = listed_records(lists.test, records[task.test[0]])
    for split, rows in (("train", train), (task.val[0], val)):
        if records[split] is records[task.test[0]] and np.isin(rows, test).any():
            raise InputError(f"{lists.files} name images of the test set")
    return records, train, val, test


def listed_records(lines: Sequence[Line], records: Records) -> np.ndarray:
    """Positions in `records` of the images that a list names: by key, by name, or by the end of their path.

    Labels are those of the data set; labels in the list are not looked at.

    Raises:
        InputError: if a name fits no image, or several.
    """
    position: dict[str, int] = {}
    for i in range(len(records.source)):
        name = records.source.name(i)
        parts = name.split("/")
        ends = {"/".join(parts[start:]) for start in range(len(parts))}
        for text in {*ends, "_".join(parts), *([records.keys[i]] if records.keys else [])}:
            position[text] = i if text not in position else -1  # several images end like this
    rows = [position.get(line.path.removeprefix("/"), position.get(line.path)) for line in lines]
    for line, row in zip(lines, rows):
        if row is None or row < 0:
            raise InputError(f"{line.place}: {line.path} names {'no image' if row is None else 'several images'}")
    return np.array(rows, dtype=np.int64)


def _lines(path: Path) -> list[Line]:
    try:
        texts = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); write it as UTF-8 text") from None
    found = []
    for number, text in enumerate(map(str.strip, texts), start=1):
        name, _, label = text.replace("\t", " ").rpartition(" ")
        labelled = bool(name) and label.isdecimal()
        if text:
            line = Line(name.strip() if labelled else text, int(label) if labelled else None, f"{path} line {number}")
            found.append(line)
    if not found:
        raise InputError(f"{path} is empty; it needs a path and a label a line")
    return found
