"""Finite, indexable collections of images, labelled or not: files, members of a tar, or arrays.

A source can be pickled (loader workers get a copy) and stays small: names are one block of bytes,
and a selection shares them with the source it came from.
"""

import copy
import gzip
import hashlib
import io
import os
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from vitreous.data.decode import BadImage, Box, Picture, decode, decode_crop, decode_picture, read_file
from vitreous.data.label_sets import LabelSets
from vitreous.errors import InputError, some

MAX_UNPACKED_BYTES = 8_000_000_000
MAX_UNPACKED_RATIO = 200
"""Of the packed size: a bomb reaches 1,000, images hardly 1."""
SMALL_BYTES = 100_000_000
"""Unpacked however small it was."""


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


class TarSource(Source):
    """Members of a tar, read in place by their offset; nothing is ever extracted."""

    def __init__(
        self,
        archive: "Archive",
        names: Sequence[str],
        *,
        offsets: np.ndarray,
        sizes: np.ndarray,
        classes: Sequence[str],
        labels: np.ndarray,
    ):
        super().__init__(classes, labels)
        self.archive = archive
        self.names = Names(names)
        self.offsets = np.asarray(offsets, dtype=np.int64)
        self.sizes = np.asarray(sizes, dtype=np.int64)

    def name(self, i: int) -> str:
        """The member's name."""
        return self.names[self.rows[i]]

    def where(self, i: int) -> str:
        """Its name and the tar."""
        return f"{self.name(i)} of {self.archive.path.name}"

    def read(self, i: int) -> bytes:
        """The member's content."""
        row = self.rows[i]
        size = int(self.sizes[row])
        data = self.archive.read(int(self.offsets[row]), size)
        if len(data) < size:
            raise BadImage("the archive ends before the image does")
        return data

    def stamp(self) -> str | None:
        """A digest of the size and the time of change of the tar."""
        return sizes_and_times([self.archive.path])


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


class Names(Sequence[str]):
    """Many strings in one block of bytes: a tenth of the memory of a list, and quick to pickle."""

    def __init__(self, names: Sequence[str]):
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        self.text = np.frombuffer(b"".join(encoded), np.uint8)
        self.ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    @classmethod
    def of(cls, text: UInt8[np.ndarray, " byte"], lengths: np.ndarray) -> Self:
        """The names that `text` holds one after another, by their lengths in bytes."""
        names = cls(())
        names.text = text
        names.ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i) -> str:
        return self.text[self.ends[i] : self.ends[i + 1]].tobytes().decode("utf-8", "surrogateescape")


class Archive:
    """Random access to the bytes of a tar file; a gzip'ed one is unpacked into memory once per process."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.Lock()
        self._file: BinaryIO | None = None
        self._process = -1

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)

    def __del__(self):
        if self._file is not None:
            self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes of the unpacked tar from `offset` on, or what there is of them."""
        with self.lock:
            file = self.file()
            file.seek(offset)
            return file.read(size)

    def file(self) -> BinaryIO:
        """The unpacked file; hold `lock` while moving in it.

        Raises:
            InputError: if the file cannot be read or is not what its suffix says.
        """
        if self._process != os.getpid():  # a forked child must not move its parent's position
            try:
                self._file = self.path.open("rb")
                if self._file.read(2) == b"\x1f\x8b":  # gzip, whatever the name says
                    self._file.close()
                    self._file = self._unpacked()
            except (OSError, EOFError, zlib.error) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise InputError(f"cannot read {self.path}: {reason}; fetch or pack it again") from None
            self._process = os.getpid()
        assert self._file is not None
        return self._file

    def _unpacked(self) -> BinaryIO:
        most = min(MAX_UNPACKED_BYTES, max(MAX_UNPACKED_RATIO * self.path.stat().st_size, SMALL_BYTES))
        data = io.BytesIO()
        with gzip.open(self.path) as file:
            while part := file.read(io.DEFAULT_BUFFER_SIZE * 128):
                data.write(part)
                if data.tell() > most:
                    raise InputError(
                        f"{self.path} unpacks to more than {most / 1e6:,.0f} MB, too much for memory; "
                        "run gunzip once and give the .tar"
                    )
        return data


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
