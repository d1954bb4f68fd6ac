"""The splits of a data set in the order of TensorFlow Datasets (TFDS), and the images VTAB cuts out of them.

VTAB-1k names its images by position: `train[:800]`, and 200 more from where `Task.val` says, in the order in which TFDS
stores its records. That order is no secret of its files: TFDS sorts the records of a split by the MD5 of the split's
name followed by the record's key (tensorflow_datasets/core/hashing.py and shuffle.py), and the key is a file name or a
running number, which each reader here knows. So the official images follow from the original files alone. Computed
like this they equal the lists that the authors of VPT (arXiv:2203.12119) exported from TFDS, 800 of 800 and 200 of 200,
for CIFAR-100, Flowers102, Camelyon, EuroSAT, Resisc45 and Clevr; for DTD, Pets, Retinopathy, DMLab and KITTI all their
ids have hashes within the share of 800 and 200 images; SVHN, dSprites and smallNORB rest on TFDS' source alone.

A split is called official only if every split it is cut from has keys and exactly as many images as TFDS counts, since
one file less moves the cut. Where TFDS chose with the help of something that is not there (the order of a file system
for Caltech101, its own lists for Sun397, the development kit for KITTI), or where a copy has lost the keys (class
folders, parquet), the order is drawn here from a seed and is not official.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitreous import seeding
from vitreous.data.source import Source
from vitreous.data.vtab.tasks import NUM_TRAIN, NUM_VAL, Task
from vitreous.errors import InputError


@dataclass(frozen=True)
class Records:
    """The images of one split."""

    source: Source
    keys: Sequence[str] | None = None
    """What TFDS calls each of them; None where that is not known."""


@dataclass(frozen=True)
class Cut:
    """The images of a task, by position in the splits they come from."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    official: bool
    split: str
    """Where the images come from, in a sentence."""


def record_order(keys: Sequence[str], *, split: str) -> np.ndarray:
    """Positions in `keys` in the order in which TFDS stores the records of `split`."""
    digests = [hashlib.md5((split + key).encode(), usedforsecurity=False).digest() for key in keys]
    return np.array(sorted(range(len(keys)), key=digests.__getitem__), dtype=np.int64)


def cut(
    records: dict[str, Records], task: Task, *, seed: int, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL
) -> Cut:
    """The slices of `task` of the splits in `records`, in TFDS' order or, without keys, in one drawn from `seed`.

    Raises:
        InputError: if a split holds too few images.
    """
    sliced = sorted({"train", task.val[0]} | ({task.test[0]} if task.test[1] else set()))
    orders = {}
    for split in sliced:
        keys = records[split].keys
        drawn = seeding.generator(seed, f"vtab {task.name} {split}")
        size = len(records[split].source)
        orders[split] = drawn.permutation(size) if keys is None else record_order(keys, split=split)

    size = {name: len(part.source) for name, part in records.items()}
    starts = [("train", 0)] + [(split, size[split] * percent // 100) for split, percent in (task.val, task.test)]
    ends = [
        min((start for other, start in starts[i + 1 :] if other == split), default=size[split])
        for i, (split, _) in enumerate(starts)
    ]
    have = [end - start for (_, start), end in zip(starts, ends)]
    if have[0] < num_train or have[1] < num_val or have[2] < 1:
        raise InputError(
            f"the files hold {have[0]:,} images to train on, {have[1]:,} to validate on and {have[2]:,} to test on; "
            f"VTAB takes {num_train}, {num_val} and the rest: give the whole data set"
        )
    (_, val_from), (_, test_from) = starts[1:]
    test = np.arange(size[task.test[0]]) if task.test[1] == 0 else np.sort(orders[task.test[0]][test_from:])
    official, split = _origin(records, task, sliced, seed)
    return Cut(
        orders["train"][:num_train],
        orders[task.val[0]][val_from : val_from + num_val],
        test,
        official and (num_train, num_val) == (NUM_TRAIN, NUM_VAL),
        split,
    )


def _origin(records: dict[str, Records], task: Task, sliced: list[str], seed: int) -> tuple[bool, str]:
    """Whether the slices are VTAB's own, and the sentence that says where they come from."""
    if any(records[split].keys is None for split in sliced):
        return False, f"drawn here with seed {seed}: not the official ids"
    parts = [(name, len(records[name].source), task.sizes[name]) for name in task.sizes]
    if wrong := [f"{have:,} of {whole:,} {name} images" for name, have, whole in parts if have != whole]:
        return False, f"cut in TensorFlow Datasets' order, but out of {', '.join(wrong)}: not the official ids"
    return True, "cut in TensorFlow Datasets' order, computed from its keys: the official ids"
