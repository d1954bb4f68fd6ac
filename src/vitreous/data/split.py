"""Holding out a part of each class, the same part on every machine."""

from collections.abc import Sequence

import numpy as np

from vitreous import seeding
from vitreous.data.label_sets import LabelSets
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
    _check(ratio)
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        different, group, sizes = np.unique(digests[members], return_inverse=True, return_counts=True)
        if len(different) < 2:
            what = f"class {classes[label]}" if classes else "the data set"
            raise InputError(
                f"{what} has only 1 usable image"
                f"{' (and copies of it)' if len(members) > 1 else ''}; it needs one to train on "
                f"and one to measure on: add images{' or remove the class' if classes else ''}"
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


def iterative(
    labels: np.ndarray, sets: LabelSets, *, digests: np.ndarray, num_classes: int, ratio: float, seed: int
) -> np.ndarray:
    """Whether each image is held out, where it may show several classes: about `ratio` of all and of each class.

    Classes are dealt out one after another, the one with fewest images left first, each image to the side that lacks
    most of it (Sechidis et al. 2011, Fig. 1). Every class is among those to train on, and held out as well if it has
    two different images and its other classes allow it. Equal images stay together. The choice depends on the images
    and `seed` alone.

    Raises:
        InputError: if `ratio` is not between 0 and 1, or there are fewer than two different images.
    """
    _check(ratio)
    different, first, group, sizes = np.unique(digests, return_index=True, return_inverse=True, return_counts=True)
    if len(different) < 2:
        raise InputError("there is only 1 different image; one is needed to train on and one to measure on: add images")
    order = np.argsort([seeding.key(seed, "split", int(digest, 16)) for digest in different])
    shown = [sets[label] for label in labels[first].tolist()]
    bearers: list[list[int]] = [[] for _ in range(num_classes)]
    for g in order.tolist():
        for c in shown[g]:
            bearers[c].append(g)
    counts = np.array([sizes[of].sum() for of in bearers], dtype=np.float64)
    least = np.where([len(of) > 1 for of in bearers], 1.0, 0.0)
    held = np.clip(ratio * counts, least, np.maximum(counts - 1, 0))
    wanted = np.stack([counts - held, held])  # side, class
    total = np.array([1 - ratio, ratio]) * len(labels)
    side = np.full(len(different), -1)
    left = np.array([len(of) for of in bearers])

    def deal(g: int, to: int) -> None:
        side[g] = to
        total[to] -= sizes[g]
        for c in shown[g]:
            wanted[to, c] -= sizes[g]
            left[c] -= 1

    while left.any():
        rarest = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        for g in bearers[rarest]:
            if side[g] < 0:
                lacks = wanted[:, rarest]
                deal(g, int((lacks if lacks[0] != lacks[1] else total).argmax()))
    for g in order.tolist():
        if side[g] < 0:
            deal(g, int(total.argmax()))
    _mend(side, shown, bearers, order)
    if not (side == 1).any():
        raise InputError(f"each of the {len(different)} different images is the only one of a class: add images")
    return side[group] == 1


def _mend(side: np.ndarray, shown: list[tuple[int, ...]], bearers: list[list[int]], order: np.ndarray) -> None:
    """Give either side what it needs: train (0) an image of each class, then the other whatever train can spare."""
    for of in bearers:
        if of and (side[of] == 1).all():
            side[of[0]] = 0
    spare = np.array([int((side[of] == 0).sum()) for of in bearers])
    for of in (*bearers, order.tolist() if not (side == 1).any() else []):
        if of and (side[of] == 0).all():
            free = next((g for g in of if all(spare[c] > 1 for c in shown[g])), None)
            if free is not None:
                side[free] = 1
                spare[list(shown[free])] -= 1


def _check(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise InputError(f"holdout_ratio is {ratio}; it must lie between 0 and 1")
