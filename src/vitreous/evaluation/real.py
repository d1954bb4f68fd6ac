"""ReaL: ImageNet's validation images with every label that is right (Beyer et al., arXiv:2006.07159)."""

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vitreous import metrics
from vitreous.data.source import Source
from vitreous.errors import InputError

NUM_IMAGES, NUM_CLASSES = 50_000, 1_000
NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


def read_real(path: Path) -> list[frozenset[int]]:
    """For each validation image, in the order of their numbers from 1 on, the classes that are right; may be none.

    Raises:
        InputError: if the file is not ReaL's real.json.
    """
    try:
        labels = json.loads(path.read_text("utf-8"))
        whole = isinstance(labels, list) and len(labels) == NUM_IMAGES
        sets = [frozenset(map(int, classes)) for classes in labels] if whole else []
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"cannot read ReaL labels from {path} ({error}); give real.json of reassessed-imagenet"
        ) from None
    if not whole or not all(0 <= label < NUM_CLASSES for classes in sets for label in classes):
        raise InputError(
            f"{path} is not ReaL's: it needs {NUM_IMAGES:,} lists of classes from 0 to {NUM_CLASSES - 1}; "
            "give real.json of reassessed-imagenet"
        )
    return sets


def real_figures(
    predicted: Float[np.ndarray, "image cls"], source: Source, real: list[frozenset[int]]
) -> dict[str, Any]:
    """How often the most probable class is one of those that are right.

    Keys: top1 ({value, low, high}), num_images, without_label (images that ReaL leaves out, as no class is right).
    `predicted` has its columns in ImageNet's order; files are known by their names, ILSVRC2012_val_00000001 on.

    Raises:
        InputError: if the model has not 1,000 classes, or a file is no validation image of ImageNet.
    """
    check_files(source, num_classes=predicted.shape[1])
    best, hits, total = predicted.argmax(axis=1), 0, 0
    for i in range(len(source)):
        right = real[number(source.name(i)) - 1]
        hits, total = hits + (int(best[i]) in right), total + bool(right)
    return {"top1": asdict(metrics.share(hits, total)), "num_images": total, "without_label": len(source) - total}


def check_files(source: Source, *, num_classes: int) -> None:
    """Nothing, if these are validation images of ImageNet, and the model tells its classes apart.

    Raises:
        InputError: if not; says what is missing.
    """
    if num_classes != NUM_CLASSES:
        raise InputError(f"ReaL needs a model of ImageNet's 1,000 classes, this one has {num_classes:,}")
    for i in range(len(source)):
        number(source.name(i))


def number(name: str) -> int:
    """The number of a validation image, from 1 on, from its file's name."""
    found = NAME.search(name.rpartition("/")[2])
    if found is None or not 1 <= int(found[1]) <= NUM_IMAGES:
        raise InputError(
            f"ReaL knows files by ImageNet's names, ILSVRC2012_val_00000001 to {NUM_IMAGES:08d}, got {name!r}; "
            "give the validation images under these names"
        )
    return int(found[1])
