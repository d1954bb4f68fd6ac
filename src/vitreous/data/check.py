"""What a trainer must know of a data set before training: what is broken, what is there twice, what leaks."""

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitreous.data.decode import Picture, decode
from vitreous.data.duplicates import Duplicates, find_duplicates
from vitreous.data.layouts import open_data
from vitreous.data.near_duplicates import SIDE, Looks, Pairs, dct_hash, near_pairs, thumbnail
from vitreous.data.source import Source
from vitreous.data.survey import Survey, survey

MAX_COPIES_RATIO = 0.01
"""Part of the images that may be copies before that is worth a stop."""
COARSEST_PX = 32  # of a side, for a hash that a photo's size does not change
GREY_LEVELS = 4
SUFFIX_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), ("JPEG", "MPO")),
    **dict.fromkeys((".tif", ".tiff"), ("TIFF",)),
    **dict.fromkeys((".ppm", ".pgm"), ("PPM",)),
    **{f".{name.lower()}": (name,) for name in ("PNG", "WEBP", "GIF", "BMP")},
}
Place = tuple[str, int]
"""Split, and position in its source."""


@dataclass(frozen=True)
class Finding:
    """One kind of thing that is wrong or worth knowing."""

    what: str
    severe: bool
    """Whether a trainer must know, which `--strict` makes an error."""
    groups: tuple[tuple[Place, ...], ...]
    """The images it is about, those that belong together in one group."""
    reasons: tuple[str, ...] = ()
    """For each group, in words."""


@dataclass(frozen=True)
class Check:
    """A data set, looked at image by image."""

    sources: dict[str, Source]
    surveys: dict[str, Survey]
    findings: tuple[Finding, ...]
    grey: dict[str, int]
    """Images without colour in each split."""
    notes: tuple[str, ...]
    seconds: float

    @property
    def num_images(self) -> int:
        """Files that were looked at, readable or not."""
        return sum(map(len, self.sources.values()))

    @property
    def severe(self) -> list[Finding]:
        """What a trainer must know."""
        return [finding for finding in self.findings if finding.severe and finding.groups]

    def label(self, place: Place) -> str:
        """The class of an image, or its classes; empty without a label."""
        return self.sources[place[0]].label(place[1])

    def summary(self) -> dict[str, Any]:
        """All of it as plain JSON."""
        findings = {
            finding.what: {
                "count": len(finding.groups),
                "severe": finding.severe,
                "groups": [
                    [{"split": s, "file": self.sources[s].name(i), "label": self.label((s, i))} for s, i in group]
                    for group in finding.groups
                ],
                **({"reasons": list(finding.reasons)} if finding.reasons else {}),
            }
            for finding in self.findings
        }
        return {
            "num_images": self.num_images,
            "splits": {split: self._split(split) for split in self.sources},
            "findings": findings,
            "severe": [finding.what for finding in self.severe],
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
        }

    def _split(self, split: str) -> dict[str, Any]:
        source, seen = self.sources[split], self.surveys[split]
        counts = source.class_counts()
        sizes = {}
        for side in ("width", "height"):
            values = getattr(seen, f"{side}s")[seen.usable]
            if len(values):
                sizes[side] = {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}
        return {
            "num_images": len(source),
            "classes": dict(zip(source.classes, counts.tolist())),
            "imbalance": float(counts.max() / counts.min()) if len(counts) and counts.min() else None,
            "sizes": sizes,
            "formats": dict(seen.formats.most_common()),
            "modes": dict(seen.modes.most_common()),
            "rotated": seen.rotated,
            "grey": self.grey[split],
        }


def check(path: str, *, val: str | None = None, progress: Callable[[int, int], None] | None = None) -> Check:
    """Look at every image of the data at `path`, and at those of `val` in place of what it holds out.

    `progress` gets the number of images done and of all.

    Raises:
        InputError: if there are no images.
    """
    start = time.monotonic()
    opened = open_data(path, val=val)
    sources = opened.named()
    for source in sources.values():
        source.bring()
    total, before, seen = sum(map(len, sources.values())), 0, {}
    for split, source in sources.items():
        look = _Look(source)
        found = survey(source, progress=_shifted(progress, before, total), also=look)
        seen[split] = (found, look)
        before += len(source)
    surveys = {split: found for split, (found, _) in seen.items()}
    looks = {split: look for split, (_, look) in seen.items()}
    notes = list(opened.notes)
    findings = _findings(sources, surveys, looks, notes)
    grey = {split: int(look.grey.sum()) for split, look in looks.items()}
    return Check(sources, surveys, findings, grey, tuple(notes), time.monotonic() - start)


class _Look:
    """What `survey` does not keep of the images of one split."""

    def __init__(self, source: Source):
        self.source = source
        self.hashes = np.zeros(len(source), dtype=np.uint64)
        self.thumbnails = np.zeros((len(source), SIDE * SIDE), dtype=np.uint8)
        self.grey = np.zeros(len(source), dtype=bool)
        self.mistyped: dict[int, str] = {}

    def __call__(self, i: int, data: bytes, picture: Picture) -> None:
        """Look at image `i`."""
        suffix = os.path.splitext(self.source.name(i))[1].lower()
        if picture.format not in SUFFIX_FORMATS.get(suffix, (picture.format,)):
            self.mistyped[i] = f"{picture.format} inside"
        image = picture.image.convert("RGB")
        if min(image.size) < min(COARSEST_PX, picture.width, picture.height):
            image = decode(data, min_side=COARSEST_PX)
        pixels = np.asarray(image, dtype=np.int16)
        self.grey[i] = np.ptp(pixels, axis=2).max() <= GREY_LEVELS
        grey = image.convert("L")
        self.hashes[i], self.thumbnails[i] = dct_hash(grey), thumbnail(grey)


def _shifted(progress: Callable[[int, int], None] | None, before: int, total: int) -> Callable[[int], None]:
    return (lambda _: None) if progress is None else (lambda done: progress(before + done, total))


def _findings(
    sources: dict[str, Source], surveys: dict[str, Survey], looks: dict[str, _Look], notes: list[str]
) -> tuple[Finding, ...]:
    bad = [((s, i), reason) for s, found in surveys.items() for i, reason in sorted(found.bad.items())]
    mistyped = [((s, i), reason) for s, look in looks.items() for i, reason in sorted(look.mistyped.items())]
    exact = find_duplicates(
        {split: found.digests for split, found in surveys.items()},
        {split: source.labels for split, source in sources.items()},
    )
    near = _near(sources, surveys, looks, notes)
    label = {place: int(sources[place[0]].labels[place[1]]) for pair in near for place in pair}
    leaks = [pair for pair in near if pair[0][0] != pair[1][0]]
    clashes = [pair for pair in near if label[pair[0]] != label[pair[1]]]
    within = [pair for pair in near if pair[0][0] == pair[1][0] and label[pair[0]] == label[pair[1]]]
    copies = _num_copies(exact) + len({pair[1] for pair in within})
    many = copies > MAX_COPIES_RATIO * sum(map(len, sources.values()))
    return (
        _with_reasons("unreadable files", bad, severe=True),
        _with_reasons("suffix and content differ", mistyped, severe=False),
        _grouped("equal images across splits (leakage)", exact.across_splits, severe=True),
        _grouped("near-equal images across splits (leakage)", leaks, severe=True),
        _grouped("equal images with two labels", exact.across_classes, severe=True),
        _grouped("near-equal images with two labels", clashes, severe=True),
        _grouped("equal images within a split", exact.within, severe=many),
        _grouped("near-equal images within a split", within, severe=many),
    )


def _with_reasons(what: str, found: list[tuple[Place, str]], *, severe: bool) -> Finding:
    return Finding(what, severe, tuple((place,) for place, _ in found), tuple(why for _, why in found))


def _grouped(what: str, groups: list[Any], *, severe: bool) -> Finding:
    return Finding(what, severe, tuple(tuple(group) for group in groups))


def _num_copies(exact: Duplicates) -> int:
    """Images beyond the first of each that stands in a split several times."""
    return sum(count - 1 for group in exact.within for count in Counter(split for split, _ in group).values())


def _near(
    sources: dict[str, Source], surveys: dict[str, Survey], looks: dict[str, _Look], notes: list[str]
) -> list[tuple[Place, Place]]:
    """Pairs of different files that look the same; for files that are there several times, a pair that tells most."""
    rows = {split: found.usable for split, found in surveys.items()}
    places = [(split, i) for split, usable in rows.items() for i in usable.tolist()]
    sides = [np.minimum(surveys[split].widths[rows[split]], surveys[split].heights[rows[split]]) for split in rows]
    digests = np.concatenate([surveys[split].digests[rows[split]] for split in rows])
    _, first, content = np.unique(digests, return_index=True, return_inverse=True)
    pairs = near_pairs(
        Looks(
            np.concatenate([looks[split].hashes[rows[split]] for split in rows])[first],
            np.concatenate([looks[split].thumbnails[rows[split]] for split in rows])[first],
            np.concatenate(sides)[first],
        )
    )
    _note(pairs, notes)
    label = {split: source.labels.tolist() for split, source in sources.items()}
    members: dict[int, dict[tuple[str, int], Place]] = {k: {} for k in (*pairs.first.tolist(), *pairs.second.tolist())}
    for place, k in zip(places, content.tolist()):
        if k in members:
            members[k].setdefault((place[0], label[place[0]][place[1]]), place)
    order = {split: number for number, split in enumerate(sources)}
    found = []
    for a, b in zip(pairs.first.tolist(), pairs.second.tolist()):
        options = [(x, y) for x in members[a].items() for y in members[b].items()]
        (_, x), (_, y) = max(options, key=lambda two: sum(p != q for p, q in zip(two[0][0], two[1][0])))
        found.append((x, y) if (order[x[0]], x[1]) < (order[y[0]], y[1]) else (y, x))
    return sorted(found, key=lambda pair: [(order[split], i) for split, i in pair])


def _note(pairs: Pairs, notes: list[str]) -> None:
    if pairs.left_out:
        notes.append(f"images too small or too plain to be compared with others unless equal: {pairs.left_out:,}")
    if not pairs.complete:
        notes.append(f"the search for near-equal images ended at {len(pairs.first):,} pairs: all look much alike here")
