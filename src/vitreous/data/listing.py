"""What every layout is read into: one source with a split name per image, then one source per split."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vitreous.data.label_sets import Label, LabelSets
from vitreous.data.source import Source
from vitreous.errors import InputError

SPLIT_SYNONYMS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
ESCAPED = re.compile("[\udc80-\udcff]")
"""How Python keeps bytes of a name that are no UTF-8."""
JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
NO_LABELS = (
    "put each class into a folder of its own (cat/1.jpg, dog/2.jpg), or give a list with the columns image and label"
)
"""What to do where labels are needed."""


@dataclass
class Splits:
    """The sources of a data set as the user laid them out; all count labels in the same classes."""

    train: Source
    val: Source | None = None
    test: Source | None = None
    notes: list[str] = field(default_factory=list)
    """What was skipped or assumed, one line each."""
    missing: dict[str, str] = field(default_factory=dict, init=False)
    """Why each shard was skipped, by its address."""

    def named(self) -> dict[str, Source]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: source for name, source in splits.items() if source is not None}


@dataclass
class Listing:
    """All images of one folder, archive or manifest."""

    path: str
    """What the user gave, for messages."""
    source: Source
    splits: list[str]
    """`train`, `val`, `test`, or empty where the layout says nothing, for each image."""
    notes: list[str]
    missing: dict[str, str] = field(default_factory=dict)
    """Why each shard was skipped, by its address."""

    def part(self, split: str) -> Source | None:
        """The images of one split, or None when there are none."""
        rows = np.flatnonzero(np.array(self.splits, dtype=object) == split)
        return self.source.select(rows) if len(rows) else None

    def as_splits(self) -> Splits:
        """Training classes, in natural order, number the labels of every split; there are none of unlabelled images.

        Raises:
            InputError: if there is nothing to train on, or a held-out class is new.
        """
        named = set(self.splits) - {""}
        if named and "train" not in named:
            raise InputError(
                f"{self.path} has {' and '.join(sorted(named))} images but none to train on; add a train folder"
            )
        train = self.part("train") or self.part("")
        if train is None:
            raise InputError(f"{self.path} holds no images; give class folders with images in them")
        classes = [train.classes[label] for label in np.flatnonzero(train.class_counts())]
        notes = list(self.notes)
        if named and (stray := self.splits.count("")):
            notes.append(f"{stray} images belong to no split and are not used")
        held_out = {name: self.part(name) for name in ("val", "test")}
        splits = Splits(
            train.with_classes(classes),
            **{name: source and source.with_classes(classes) for name, source in held_out.items()},
            notes=notes,
        )
        splits.missing = self.missing
        return splits

    def as_held_out(self, classes: tuple[str, ...]) -> Source:
        """The images to measure on, labelled by the training `classes`.

        Of several splits the val images count, else the test images.

        Raises:
            InputError: if there are none, or a class is not among `classes`.
        """
        for split in ("val", "test", "", "train"):
            if (source := self.part(split)) is not None:
                return source.with_classes(classes)
        raise InputError(f"{self.path} holds no labelled images; give class folders with images in them")


def numbered(labels: Sequence[Label]) -> tuple[list[str], np.ndarray, LabelSets | None]:
    """Classes in natural order, the label of each image, and the sets that these count in if one may show several."""
    if not any(isinstance(label, tuple) for label in labels):
        classes, numbers = number([label for label in labels if isinstance(label, str)])
        found = np.full(len(labels), -1, dtype=np.int64)
        found[[label is not None for label in labels]] = numbers
        return classes, found, None
    groups = [(label,) if isinstance(label, str) else label for label in labels]
    classes, _ = number([name for group in groups for name in group or ()])
    position = {name: i for i, name in enumerate(classes)}
    sets, places = LabelSets.of([position[name] for name in group or ()] for group in groups)
    places[[group is None for group in groups]] = -1
    return classes, places, sets


def number(labels: list[str]) -> tuple[list[str], np.ndarray]:
    """The distinct labels in natural order, and the position of each label among them."""
    classes = sorted(set(labels), key=natural)
    position = {name: i for i, name in enumerate(classes)}
    return classes, np.fromiter((position[label] for label in labels), np.int64, len(labels))


def natural(name: str) -> tuple:
    """A sort key that puts `class 9` before `class 10` and ignores case."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in parts], name


def class_name(folder: str) -> str:
    """A folder's or column's text as a class: composed Unicode, since systems store accents differently.

    Bytes that are no UTF-8 are read as Windows-1252, which old spreadsheets and archives write.
    """
    raw = folder.encode("utf-8", "surrogateescape" if ESCAPED.search(folder) else "replace")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = raw.decode("cp1252", "replace")
    return unicodedata.normalize("NFC", text)


def is_junk(name: str) -> bool:
    """Whether a file or folder is hidden or left behind by an operating system or an editor."""
    return name.startswith(".") or name.lower() in JUNK


def split_name(folder: str) -> str:
    """`train`, `val` or `test` for a folder or column that means it, else empty."""
    return SPLIT_SYNONYMS.get(folder.lower(), "")
