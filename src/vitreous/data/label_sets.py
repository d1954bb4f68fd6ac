"""Labels of images that may show several classes, or none of them."""

from collections.abc import Iterable, Iterator
from typing import Self

import numpy as np
from jaxtyping import Float, Int

Label = str | tuple[str, ...] | None
"""The class of an image; or all that it may show several of; or that nothing is known of it."""


class LabelSets:
    """Sets of classes, each by its position: a source of many images keeps each set once, and few bytes an image."""

    def __init__(self, members: Int[np.ndarray, " member"], *, ends: Int[np.ndarray, " set"]):
        self.members = members
        """The classes of all sets, one set after the other, in ascending order within each."""
        self.ends = ends

    @classmethod
    def of(cls, sets: Iterable[Iterable[int]]) -> tuple[Self, Int[np.ndarray, " given"]]:
        """Every different one of `sets`, in the order of their first appearance, and the position of each that came."""
        position: dict[tuple[int, ...], int] = {}
        places = [position.setdefault(tuple(sorted(set(one))), len(position)) for one in sets]
        return cls._listed(position), np.array(places, dtype=np.int64)

    @classmethod
    def _listed(cls, sets: Iterable[tuple[int, ...]]) -> Self:
        sets = list(sets)
        members = np.array([number for one in sets for number in one], dtype=np.int64)
        return cls(members, ends=np.cumsum([len(one) for one in sets], dtype=np.int64))

    def check(self, *, num_classes: int) -> None:
        """Nothing, if these arrays, read from a file, are sets of that many classes.

        Raises:
            ValueError: if not.
        """
        if (np.diff(self.ends, prepend=0) < 0).any() or len(self.members) != (self.ends[-1] if len(self.ends) else 0):
            raise ValueError("ends of label sets do not fit")
        if ((self.members < 0) | (self.members >= num_classes)).any():
            raise ValueError("label sets hold classes that are not there")

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> tuple[int, ...]:
        start = self.ends[i - 1] if i else 0
        return tuple(self.members[start : self.ends[i]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> Int[np.ndarray, " set"]:
        """How many classes are in each set."""
        return np.diff(self.ends, prepend=0)

    def multi_hot(
        self, places: Int[np.ndarray, " image"], *, num_classes: int
    ) -> Float[np.ndarray, "image num_classes"]:
        """For each image 1 at the classes of the set at its place, else 0; float32."""
        found = np.zeros((len(places), num_classes), dtype=np.float32)
        for row, place in zip(found, places.tolist(), strict=True):
            row[list(self[place])] = 1
        return found

    def counts(self, places: Int[np.ndarray, " image"], *, num_classes: int) -> Int[np.ndarray, " num_classes"]:
        """How many of the images whose sets stand at `places` show each class."""
        times = np.repeat(np.bincount(places, minlength=len(self)), self.lengths)
        return np.bincount(self.members, weights=times, minlength=num_classes).astype(np.int64)

    def renumbered(self, table: Int[np.ndarray, " cls"]) -> Self:
        """The same sets in the same places; class i becomes `table`[i], or is left out where that is -1."""
        return self._listed(tuple(sorted(int(table[i]) for i in one if table[i] >= 0)) for one in self)

    def joined(self, other: Self) -> tuple[Self, Int[np.ndarray, " set"]]:
        """These sets, those of `other` that are not among them behind, and where each of `other` stands then."""
        sets, position = list(self), {one: i for i, one in enumerate(self)}
        places = []
        for one in other:
            if one not in position:
                position[one] = len(sets)
                sets.append(one)
            places.append(position[one])
        return self._listed(sets), np.array(places, dtype=np.int64)
