"""Holding out a part of each class, the same part on every machine."""

from collections.abc import Sequence

import numpy as np

from vitreous import seeding
from vitreous.errors import InputError


def stratified(
    labels: np.ndarray, *, digests: np.ndarray, classes: Sequence[str], ratio: float, seed: int
) -> np.ndarray:
    """Whether each image is held out: about `ratio` of each class, and at least one on either side.

    Equal images (equal digests) stay together. The choice depends on the images and `seed` alone, not
    on names or their order.

    Raises:
        InputError: if `ratio` is not between 0 and 1, or a class has fewer than two different images.
    """
    if not 0 < ratio < 1:
        raise InputError(f"holdout_ratio is {ratio}; it must lie between 0 and 1")
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        different, group, sizes = np.unique(digests[members], return_inverse=True, return_counts=True)
        if len(different) < 2:
            raise InputError(
                f"class {classes[label]} has only 1 usable image"
                f"{' (and copies of it)' if len(members) > 1 else ''}; it needs one to train on "
                "and one to measure on: add images or remove the class"
            )
        order = np.argsort([seeding.key(seed, "split", int(digest, 16)) for digest in different])
        wanted = min(max(round(ratio * len(members)), 1), len(members) - 1)
        chosen, taken = [], 0
        for i in order:
            if taken + sizes[i] <= wanted:
                chosen.append(i)
                taken += sizes[i]
        if not chosen:  # every image has copies, more than are wanted
            chosen = [order[np.argmin(sizes[order])]]
        held_out[members[np.isin(group, chosen)]] = True
    return held_out
