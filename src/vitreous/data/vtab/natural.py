"""Readers of the seven natural tasks: photos of everyday things."""

import io
import re
from typing import Any

import numpy as np

from vitreous import seeding
from vitreous.data.listing import natural, number
from vitreous.data.source import ArraySource
from vitreous.data.vtab.containers import library
from vitreous.data.vtab.files import Files, Member
from vitreous.data.vtab.records import Records
from vitreous.errors import InputError

CALTECH_PER_CLASS = 30
CIFAR100_RECORD = 2 + 3 * 32 * 32
SUN397_LISTS = {"train": "sun397_tfds_tr.txt", "validation": "sun397_tfds_va.txt", "test": "sun397_tfds_te.txt"}


def caltech101(files: Files, seed: int) -> dict[str, Records]:
    """30 images of each class, drawn from `seed`, as the pool to train on; all others are the test set."""
    container, names = files.images(".jpg")
    folders = [name.split("/")[-2] for name in names]
    classes, labels = number(folders)
    train = np.zeros(len(names), dtype=bool)
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) <= CALTECH_PER_CLASS:
            raise InputError(f"class {name} in {container.path} has {len(members)} images; more than 30 are needed")
        drawn = seeding.generator(seed, "vtab caltech101 class", label)
        train[drawn.permutation(members)[:CALTECH_PER_CLASS]] = True
    source = container.source(names, classes=classes, labels=labels)
    return {name: Records(source.select(np.flatnonzero(part))) for name, part in (("train", train), ("test", ~train))}


def cifar100(files: Files, seed: int) -> dict[str, Records]:
    """Records of a coarse label, a fine label, then all red, all green, all blue; keys are running numbers."""
    if files.find("train.bin") is None and files.find("cifar-100-python/train", "meta"):
        raise InputError(
            f"{files.path} holds the Python version of CIFAR-100, whose pickle files can run code when read; "
            f"take the binary version ({files.task.files})"
        )
    listed = files.find("fine_label_names.txt")
    classes = listed.lines() if listed else [str(label) for label in range(100)]
    records = {}
    for split in ("train", "test"):
        member = files.need(f"{split}.bin")
        data = np.frombuffer(member.bytes(), np.uint8)
        if len(data) % CIFAR100_RECORD:
            raise InputError(f"{member} is no CIFAR-100 in binary form, or not whole; fetch it again")
        data = data.reshape(-1, CIFAR100_RECORD)
        pixels = np.ascontiguousarray(data[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        source = ArraySource(pixels, prefix=split, classes=classes, labels=data[:, 1])
        records[split] = Records(source, running_numbers(len(pixels)))
    return records


def dtd(files: Files, seed: int) -> dict[str, Records]:
    """The first fold; keys are the lines of its lists."""
    lists = {"train": "labels/train1.txt", "validation": "labels/val1.txt", "test": "labels/test1.txt"}
    lines = {split: files.need(name).lines() for split, name in lists.items()}
    return _listed(files, {split: [(line, line.split("/")[0], line) for line in part] for split, part in lines.items()})


def flowers102(files: Files, seed: int) -> dict[str, Records]:
    """The splits of setid.mat; keys are file names, and classes are called by number, as the files give no names."""
    labels = matrix(files.need("imagelabels.mat"), "labels").ravel()
    member = files.need("setid.mat")
    rows = {}
    for split, key in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
        ids = matrix(member, key).ravel().astype(int)
        if ids.min(initial=1) < 1 or ids.max(initial=1) > len(labels):
            raise InputError(f"{member} and imagelabels.mat do not fit; fetch both again")
        names = [f"image_{i:05d}.jpg" for i in ids]
        rows[split] = [(name, str(labels[i - 1]), name) for name, i in zip(names, ids)]
    return _listed(files, rows)


def pets(files: Files, seed: int) -> dict[str, Records]:
    """The lists trainval.txt and test.txt; keys are file names."""
    rows = {}
    for split, name in (("train", "trainval.txt"), ("test", "test.txt")):
        member = files.need(f"annotations/{name}", name)
        found = [re.fullmatch(r"((\S+)_\d+) \d+ [12] \d+", line) for line in member.lines() if line[0] != "#"]
        if not all(found):
            raise InputError(f"{member} has lines that are not `name class species breed`; fetch it again")
        rows[split] = [(f"{match[1]}.jpg", match[2], f"{match[1]}.jpg") for match in found if match]
    return _listed(files, rows)


def sun397(files: Files, seed: int) -> dict[str, Records]:
    """TFDS' partition where its three lists lie beside, else 70, 10 and 20 % drawn from `seed`; keys are paths."""
    container, names = files.images(".jpg")
    paths = ["/" + name.split("SUN397/")[-1] for name in names]
    classes, labels = number([path[1:].rpartition("/")[0] for path in paths])
    source = container.source(names, classes=classes, labels=labels)
    lists = {split: files.find(name, packed=False) for split, name in SUN397_LISTS.items()}
    if not all(lists.values()):
        order = seeding.generator(seed, "vtab sun397 partition").permutation(len(names))
        parts = np.split(order, [len(names) * 7 // 10, len(names) * 8 // 10])
        return {split: Records(source.select(part)) for split, part in zip(SUN397_LISTS, parts)}
    position = {path: i for i, path in enumerate(paths)}
    records = {}
    for split, member in lists.items():
        keys = member.lines() if member else []
        if missing := [key for key in keys if key not in position]:
            raise InputError(f"{container.path} lacks {missing[0]}, which {SUN397_LISTS[split]} names; fetch it again")
        records[split] = Records(source.select([position[key] for key in keys]), keys)
    return records


def svhn(files: Files, seed: int) -> dict[str, Records]:
    """Cropped digits of 32 x 32 pixels; keys are running numbers."""
    records = {}
    for split in ("train", "test"):
        member = files.need(f"{split}_32x32.mat")
        pixels, labels = (matrix(member, key) for key in ("X", "y"))
        if pixels.ndim != 4 or pixels.dtype != np.uint8 or labels.size != pixels.shape[3]:
            raise InputError(f"{member} is no SVHN of cropped digits, or not whole; fetch it again")
        pixels = np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))
        source = ArraySource(pixels, prefix=split, classes=list("0123456789"), labels=labels.ravel() % 10)
        records[split] = Records(source, running_numbers(len(pixels)))
    return records


def running_numbers(count: int) -> list[str]:
    """The keys `0`, `1`, ... that TFDS gives to images without names."""
    return [str(i) for i in range(count)]


def matrix(member: Member, name: str) -> Any:
    """The array called `name` in a MATLAB file.

    Raises:
        InputError: if the file or the array cannot be read.
    """
    loadmat = library("scipy.io").loadmat
    try:
        return loadmat(io.BytesIO(member.bytes()), variable_names=[name])[name]
    except InputError:
        raise
    except Exception as error:  # damage comes as any of a dozen types
        raise InputError(f"cannot read {name} in {member} ({error}); fetch it again") from None


def _listed(files: Files, rows: dict[str, list[tuple[str, str, str]]]) -> dict[str, Records]:
    """Splits from lists of (end of the path, class, key)."""
    container, names = files.locate([path for part in rows.values() for path, _, _ in part])
    classes = sorted({label for part in rows.values() for _, label, _ in part}, key=natural)
    position = {name: i for i, name in enumerate(classes)}
    labels = np.array([position[label] for part in rows.values() for _, label, _ in part])
    source = container.source(names, classes=classes, labels=labels)
    ends = np.cumsum([len(part) for part in rows.values()])
    return {
        split: Records(source.select(np.arange(end - len(part), end)), [key for _, _, key in part])
        for (split, part), end in zip(rows.items(), ends)
    }
