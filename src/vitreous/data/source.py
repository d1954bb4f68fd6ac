"""Finite, indexable collections of images, labelled or not: files, members of a tar, or arrays.

A source can be pickled (loader workers get a copy) and stays small: names are one block of bytes,
and a selection shares them with the source it came from.
"""

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from vitreous.data.decode import Box, Picture, decode, decode_crop, decode_picture, read_file
from vitreous.data.label_sets import LabelSets
from vitreous.data.names import Names
from vitreous.errors import InputError, some


class Source(ABC):
    """Images with labels, by position.

    Args:
        classes: names in the order of the labels, frozen once training starts; none of images without labels.
        labels: position in `classes` of each image, -1 where there is none.
    """

    sets: LabelSets | None = None
    """Where an image may show several classes or none: what `labels` are positions in, in place of `classes`."""

    def __init__(self, classes: Sequence[str], labels: np.ndarray):
        self.classes = tuple(classes)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.rows = np.arange(len(self.labels))
        """Where each image stands in the storage that selections share."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, i: int) -> str:
        """What the user calls image `i`: a path within the data, or split and number."""

    def where(self, i: int) -> str:
        """Its name, and the file to look at where the name does not tell."""
        return self.name(i)

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The encoded file, or raw pixels; equal bytes mean equal images.

        Raises:
            BadImage: if the bytes cannot be had.
        """

    def image(self, i: int, *, min_side: int | None = None) -> Image.Image:
        """Image `i` in mode RGB; `min_side` and errors as for `decode`."""
        return decode(self.read(i), min_side=min_side)

    def crop(
        self, i: int, draw: Callable[[int, int], Box], *, shape: tuple[int, int]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """The part of image `i` inside the box that `draw` gives for its width and height, as `decode_crop`."""
        return decode_crop(self.read(i), draw, shape=shape)

    def kept(self, i: int, still: Hashable) -> UInt8[np.ndarray, "3 height width"] | None:
        """What a cache holds of image `i` for that `Still`; None where it has to be read."""
        return None

    def picture(self, i: int, data: bytes) -> Picture:
        """What `data`, which `read` returned for image `i`, holds; decoded as coarsely as its format allows."""
        return decode_picture(data, min_side=1)

    def stamp(self) -> str | None:
        """Equal as long as no image changes, told without decoding one; None where that cannot be told."""
        return None

    def bring(self) -> None:
        """Have on this machine what images are read from; at once where it is.

        Raises:
            InputError: if it cannot be had.
        """
        return  # most read what is here

    @property
    def part_sizes(self) -> tuple[int, ...]:
        """How many of these images come from each of several data sets, which stand one after another."""
        return (len(self),)

    @property
    def multi_label(self) -> bool:
        """Whether an image may show several classes, or none of them."""
        return self.sets is not None

    def label(self, i: int) -> str:
        """The class of image `i`; of several, the names with | between; empty where there is none."""
        label = int(self.labels[i])
        if label < 0:
            return ""
        return self.classes[label] if self.sets is None else " | ".join(self.classes[c] for c in self.sets[label])

    def class_counts(self) -> Int[np.ndarray, " cls"]:
        """How many images show each class."""
        labels = self.labels[self.labels >= 0]
        if self.sets is not None:
            return self.sets.counts(labels, num_classes=len(self.classes))
        return np.bincount(labels, minlength=len(self.classes))

    def targets(
        self, labels: Int[np.ndarray, " image"]
    ) -> Int[np.ndarray, " image"] | Float[np.ndarray, "image cls"] | None:
        """What to learn of images with these of the `labels`: the class, or 1 for each class that they show, else 0.

        None if one of them is unknown.
        """
        if (labels < 0).any():
            return None
        return labels if self.sets is None else self.sets.multi_hot(labels, num_classes=len(self.classes))

    def as_multi_label(self, sets: LabelSets | None = None) -> Self:
        """The same images with labels that are positions of sets: of `sets`, then of their own, or one a class."""
        own = self.sets or LabelSets.of((i,) for i in range(len(self.classes)))[0]
        found = copy.copy(self)
        found.sets, places = (sets or own).joined(own)
        found.labels = np.append(places, -1)[self.labels]  # the last is for label -1
        return found

    def select(self, indices: np.ndarray | Sequence[int]) -> Self:
        """The images at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        chosen = copy.copy(self)
        chosen.labels, chosen.rows = self.labels[indices], self.rows[indices]
        return chosen

    def with_classes(self, classes: Sequence[str]) -> Self:
        """The same images with labels that count in `classes`, matched by name.

        Raises:
            InputError: if an image has a class that is not among `classes`; names them.
        """
        position = {name: i for i, name in enumerate(classes)}
        used = [self.classes[label] for label in np.flatnonzero(self.class_counts())]
        if unknown := [name for name in used if name not in position]:
            raise InputError(
                f"held-out images have {len(unknown)} class{'es' * (len(unknown) > 1)} "
                "that training images do not: "
                f"{some(unknown)}; "
                "rename the folders or labels to match, or remove them"
            )
        table = np.array([position.get(name, -1) for name in self.classes] + [-1])  # the last is for label -1
        renamed = copy.copy(self)
        renamed.classes = tuple(classes)
        if self.sets is None:
            renamed.labels = table[self.labels]
        else:
            renamed.sets = self.sets.renumbered(table)
        return renamed


class FileSource(Source):
    """Image files; names are paths relative to `root`."""

    def __init__(self, root: Path, names: Sequence[str], *, classes: Sequence[str], labels: np.ndarray):
        super().__init__(classes, labels)
        self.root = os.fspath(root)
        self.names = Names(names)

    def name(self, i: int) -> str:
        """Its path relative to `root`."""
        return self.names[self.rows[i]]

    def read(self, i: int) -> bytes:
        """The whole file."""
        return read_file(os.path.join(self.root, self.name(i)))

    def stamp(self) -> str | None:
        """A digest of the size and the time of change of every file."""
        return sizes_and_times(os.path.join(self.root, self.name(i)) for i in range(len(self)))


class ArraySource(Source):
    """Pixels in memory, uint8, grey (number, row, column) or RGB (number, row, column, channel).

    Images are called `prefix/00012`, by their row in the array.
    """

    def __init__(self, pixels: np.ndarray, *, prefix: str, classes: Sequence[str], labels: np.ndarray):
        super().__init__(classes, labels)
        assert pixels.dtype == np.uint8
        assert len(pixels) == len(self.labels)
        self.pixels = pixels
        self.prefix = prefix

    def name(self, i: int) -> str:
        """`prefix` and the row."""
        return f"{self.prefix}/{self.rows[i]:05d}"

    def read(self, i: int) -> bytes:
        """The raw pixels."""
        return self.pixels[self.rows[i]].tobytes()

    def image(self, i: int, *, min_side: int | None = None) -> Image.Image:
        """The pixels in mode RGB, always at full size."""
        return Image.fromarray(self.pixels[self.rows[i]]).convert("RGB")

    def crop(
        self, i: int, draw: Callable[[int, int], Box], *, shape: tuple[int, int]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """The part inside the box that `draw` gives, always at full size."""
        image = self.image(i)
        return np.asarray(image.crop(draw(*image.size)))

    def picture(self, i: int, data: bytes) -> Picture:
        """The pixels as they are."""
        image = Image.fromarray(np.frombuffer(data, np.uint8).reshape(self.pixels.shape[1:]))
        return Picture(image, format="array", mode=image.mode, width=image.width, height=image.height, rotated=False)

    def stamp(self) -> str | None:
        """A digest of the pixels, which are in memory anyway."""
        digest = hashlib.blake2b(repr(self.pixels.shape).encode(), digest_size=16)
        for i in range(len(self)):
            digest.update(self.read(i))
        return digest.hexdigest()


def sizes_and_times(paths: Iterable[str | Path]) -> str:
    """A digest of the size and the time of change of each file."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:  # such as a broken link, which can be mended
            digest.update(b"none\n")
    return digest.hexdigest()
