"""Readers of the four specialized tasks: tissue, retinas, and the ground from above."""

import csv
import os
from typing import Any, cast

import numpy as np

from vitreous.data.decode import BadImage
from vitreous.data.listing import number
from vitreous.data.source import ArraySource
from vitreous.data.tars import Archive
from vitreous.data.vtab.containers import library
from vitreous.data.vtab.files import Files, Member
from vitreous.data.vtab.records import Records
from vitreous.errors import InputError


def camelyon(files: Files, seed: int) -> dict[str, Records]:
    """Patches in HDF5, read as they are asked for; keys are `train_0`, `valid_0`, ..."""
    records = {}
    for split, part in (("train", "train"), ("validation", "valid"), ("test", "test")):
        stem = f"camelyonpatch_level_2_split_{part}"
        images, labels = (files.need(f"{stem}_{kind}.h5", f"{stem}_{kind}.h5.gz") for kind in "xy")
        pixels = StoredPixels(images, "x")
        grades = StoredPixels(labels, "y")[:].ravel()
        if len(pixels) != len(grades) or len(pixels.shape) != 4 or pixels.dtype != np.uint8:
            raise InputError(f"{images} and {labels} do not fit; fetch both again")
        array = cast(np.ndarray, pixels)
        source = ArraySource(array, prefix=part, classes=["no tumour", "tumour"], labels=grades)
        records[split] = Records(source, [f"{part}_{i}" for i in range(len(pixels))])
    return records


def eurosat(files: Files, seed: int) -> dict[str, Records]:
    """Class folders of JPEGs; keys are class and file name."""
    return _class_folders(files, ".jpg", ".jpeg")


def resisc45(files: Files, seed: int) -> dict[str, Records]:
    """Class folders of JPEGs; keys are class and file name."""
    loose = files.opened[0].names if files.opened else []
    if any(name.lower().endswith(".rar") for name in loose) and not any(name.endswith(".jpg") for name in loose):
        raise InputError(f"{files.path} holds a .rar, which cannot be read in place; unpack it once with unrar")
    return _class_folders(files, ".jpg", ".jpeg")


def retinopathy(files: Files, seed: int) -> dict[str, Records]:
    """Kaggle's training images, and its test images by the column Usage of the solution; keys are image names."""
    train, solution = _levels(files.need("trainLabels.csv")), _levels(files.need("retinopathy_solution.csv"))
    rows = {
        "train": train,
        "validation": [row for row in solution if row.get("Usage") == "Public"],
        "test": [row for row in solution if row.get("Usage") == "Private"],
    }
    if empty := [split for split, part in rows.items() if not part]:
        raise InputError(f"no rows for {empty[0]}: retinopathy_solution.csv needs Public and Private under Usage")
    records = {}
    for split, part in rows.items():
        names = [row["image"] for row in part]
        suffix = next((end for end in (".jpeg", ".jpg", ".png") if files.find(names[0] + end)), ".jpeg")
        container, paths = files.locate([name + suffix for name in names])
        labels = np.array([int(row["level"]) for row in part])
        records[split] = Records(container.source(paths, classes=list("01234"), labels=labels), names)
    return records


def _class_folders(files: Files, *suffixes: str) -> dict[str, Records]:
    container, names = files.images(*suffixes)
    folders = [name.split("/")[-2] for name in names]
    classes, labels = number(folders)
    keys = [f"{folder}_{name.split('/')[-1]}" for folder, name in zip(folders, names)]
    return {"train": Records(container.source(names, classes=classes, labels=labels), keys)}


def _levels(member: Member) -> list[dict[str, str]]:
    rows = list(csv.DictReader(member.lines()))
    if any(not row.get("image") or row.get("level") not in set("01234") for row in rows):
        raise InputError(f"{member} needs the columns image and level, with levels 0 to 4; fetch it again")
    return rows


class StoredPixels:
    """A data set of an HDF5 file, seen as an array whose rows are read when asked for."""

    def __init__(self, member: Member, name: str):
        self.archive: Archive = member.archive()
        self.name = name
        self._file: Any = None
        self._process = -1
        with self.archive.lock:
            stored = self._stored()
            self.shape, self.dtype = stored.shape, stored.dtype

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": -1}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        try:
            with self.archive.lock:
                return self._stored()[rows]
        except OSError as error:
            raise BadImage(f"damaged in {self.archive.path.name} ({error})") from None

    def _stored(self) -> Any:
        if self._process != os.getpid():
            try:
                self._file = library("h5py").File(self.archive.file(), "r")
                self._file[self.name].shape  # noqa: B018 - a file that is cut short fails here
            except (OSError, KeyError, RuntimeError, AttributeError) as error:
                text = str(error).splitlines()[0]
                raise InputError(f"cannot read {self.name} in {self.archive.path} ({text}); fetch it again") from None
            self._process = os.getpid()
        return self._file[self.name]
