"""Equal images, and what is done about them.

- Copies in one split with one label are kept: they count twice, as the user laid them out.
- An image of a held-out split that also stands in train is taken out of train, so the measure stays
  whole; one in both val and test is taken out of val.
- Equal training images with different labels are all taken out of train: one label must be wrong.
  In a held-out split they stay, and are reported.
"""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Duplicates:
    """Groups of equal images as (split, position) pairs, and the images to leave out."""

    within: list[list[tuple[str, int]]] = field(default_factory=list)
    across_splits: list[list[tuple[str, int]]] = field(default_factory=list)
    across_classes: list[list[tuple[str, int]]] = field(default_factory=list)
    excluded: dict[tuple[str, int], str] = field(default_factory=dict)
    """Reason by image."""


def find_duplicates(digests: dict[str, np.ndarray], labels: dict[str, np.ndarray]) -> Duplicates:
    """Equal images within and across splits; images with an empty digest do not count.

    A group stands in each list it belongs to.
    """
    found = Duplicates()
    splits = list(digests)
    joined = np.concatenate([digests[split] for split in splits])
    owner = np.concatenate([np.full(len(digests[split]), k) for k, split in enumerate(splits)])
    position = np.concatenate([np.arange(len(digests[split])) for split in splits])
    order = np.argsort(joined, kind="stable")
    ends = np.flatnonzero(joined[order][1:] != joined[order][:-1]) + 1
    starts = np.concatenate([[0], ends])
    sizes = np.diff(np.concatenate([starts, [len(order)]]))
    groups = [order[start : start + size] for start, size in zip(starts[sizes > 1], sizes[sizes > 1])]
    for rows in sorted(groups, key=lambda rows: rows[0]):
        if joined[rows[0]] == b"":
            continue
        group = [(splits[owner[row]], int(position[row])) for row in rows]
        _judge(group, {image: int(labels[image[0]][image[1]]) for image in group}, found)
    return found


def _judge(group: list[tuple[str, int]], label: dict[tuple[str, int], int], found: Duplicates) -> None:
    here: dict[str, list[int]] = {}
    for image in group:
        here.setdefault(image[0], []).append(label[image])
    if len(set(label.values())) > 1:
        found.across_classes.append(group)
    if len(here) > 1:
        found.across_splits.append(group)
    if any(len(labels) > 1 and len(set(labels)) == 1 for labels in here.values()):
        found.within.append(group)
    keeper = next(split for split in ("test", "val", "train") if split in here)
    training = set(here.get("train", []))
    for image in group:
        if image[0] != keeper:
            found.excluded[image] = f"same image in {keeper}"
        elif image[0] == "train" and len(training) > 1:
            found.excluded[image] = "same image with another label"
