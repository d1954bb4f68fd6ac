"""Several data sets as one."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vitreous.data.decode import Box, Picture
from vitreous.data.listing import Splits
from vitreous.data.source import Source


class JoinedSource(Source):
    """The images of several sources with the same classes, one source after the other.

    `prefixes` stand before the names of each source's images, where names alone may be equal.
    """

    def __init__(self, *parts: Source, prefixes: Sequence[str] = ()):
        first = parts[0]
        assert all(part.classes == first.classes and part.sets is first.sets for part in parts)
        super().__init__(first.classes, np.concatenate([part.labels for part in parts]))
        self.sets, self.parts = first.sets, parts
        self.prefixes = tuple(prefixes) or ("",) * len(parts)
        self.starts = np.cumsum([0, *map(len, parts)])

    @property
    def part_sizes(self) -> tuple[int, ...]:
        """How many of these images come from each source; they must stand in the order of the sources."""
        parts = np.searchsorted(self.starts, self.rows, side="right") - 1
        assert (np.diff(parts) >= 0).all()
        return tuple(np.bincount(parts, minlength=len(self.parts)).tolist())

    def name(self, i: int) -> str:
        """What the source that it comes from calls it."""
        part, j = self._place(i)
        return self.prefixes[part] + self.parts[part].name(j)

    def where(self, i: int) -> str:
        """What the source that it comes from says."""
        part, j = self._place(i)
        return self.prefixes[part] + self.parts[part].where(j)

    def read(self, i: int) -> bytes:
        """What the source that it comes from reads."""
        part, j = self._place(i)
        return self.parts[part].read(j)

    def image(self, i: int, *, min_side: int | None = None) -> Image.Image:
        """What the source that it comes from shows."""
        part, j = self._place(i)
        return self.parts[part].image(j, min_side=min_side)

    def crop(
        self, i: int, draw: Callable[[int, int], Box], *, shape: tuple[int, int]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """What the source that it comes from cuts out."""
        part, j = self._place(i)
        return self.parts[part].crop(j, draw, shape=shape)

    def bring(self) -> None:
        """What each of the sources brings."""
        for part in self.parts:
            part.bring()

    def picture(self, i: int, data: bytes) -> Picture:
        """What the source that it comes from makes of the bytes."""
        part, j = self._place(i)
        return self.parts[part].picture(j, data)

    def stamp(self) -> str | None:
        """The stamps of all sources, whichever of their images are here."""
        stamps = [part.stamp() for part in self.parts]
        return None if None in stamps else " ".join(map(str, stamps))

    def _place(self, i: int) -> tuple[int, int]:
        row = int(self.rows[i])
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        return part, row - int(self.starts[part])


def joined(first: Splits, more: Sequence[tuple[str, Splits]]) -> Splits:
    """`first` with the training images of further data, given with a word for them; classes go by name.

    Names of further images begin with the number of their data, from 2 on. What is measured stays that of `first`.
    """
    others = [splits.train for _, splits in more]
    classes = tuple(dict.fromkeys(name for source in (first.train, *others) for name in source.classes))
    sources = _counted_alike([source.with_classes(classes) for source in (*first.named().values(), *others)])
    named = dict(zip(first.named(), sources))
    numbers = range(2, len(more) + 2)
    parts = [named["train"], *sources[len(named) :]]
    named["train"] = JoinedSource(*parts, prefixes=["", *(f"{number}:" for number in numbers)])
    notes = list(first.notes)
    for number, (text, splits) in zip(numbers, more):
        notes.append(f"the {len(splits.train):,} training images of {text} are named {number}:...")
        unused = [f"{len(source):,} {split}" for split, source in splits.named().items() if split != "train"]
        if unused:
            notes.append(f"the {' and '.join(unused)} images of {text} are not used")
        notes += [f"{text}: {note}" for note in splits.notes]
    found = Splits(**named, notes=notes)
    found.missing = {
        url: reason for splits in (first, *(one for _, one in more)) for url, reason in splits.missing.items()
    }
    return found


def _counted_alike(sources: list[Source]) -> list[Source]:
    """The same sources; if one has images of several classes, the labels of all are positions in the same sets."""
    if not any(source.multi_label for source in sources):
        return sources
    found, sets = [], None
    for source in sources:
        found.append(source.as_multi_label(sets))
        sets = found[-1].sets
    for source in found:
        source.sets = sets
    return found
