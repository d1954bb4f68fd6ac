"""One shard of packed data: images looked at ahead by threads, written as a tar of `KEY.jpg` beside its label."""

import json
import os
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vitreous.data.decode import BadImage, decode_picture
from vitreous.data.names import Names
from vitreous.data.shard_index import Index, Shard
from vitreous.data.source import Source
from vitreous.files import writing

BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)
CHUNK = 4
"""Images that a thread looks at in one go."""
SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


@dataclass(frozen=True)
class Settings:
    """What decides, with the data, how shards come out."""

    shard_bytes: int = 256_000_000
    """No shard is larger, unless one image is."""
    resize_max: int | None = None
    """Images whose longer side has more pixels are resized to it and become JPEG; others keep their bytes."""
    quality: int = 90
    """Of those JPEGs, 1 to 100 as Pillow counts it."""


@dataclass(frozen=True)
class Sample:
    """An image on its way into a shard, or the reason why it is left out."""

    position: int
    """In the split that it comes from."""
    data: bytes = b""
    suffix: str = ""
    reason: str = ""


class Samples:
    """The images of `source` from position `start` on, in order; `head` is the next, None at the end."""

    def __init__(self, source: Source, start: int, *, settings: Settings, pool: Executor, ahead: int):
        self.source, self.settings = source, settings
        self._found = self._look_ahead(start, pool, ahead)
        self.head = next(self._found, None)

    def drop(self) -> None:
        """Go on to the next."""
        self.head = next(self._found, None)

    def _look_ahead(self, start: int, pool: Executor, ahead: int) -> Iterator[Sample]:
        waiting: deque[Future[list[Sample]]] = deque()
        try:
            for first in range(start, len(self.source), CHUNK):
                waiting.append(pool.submit(self._look, first))
                if len(waiting) > ahead:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _look(self, first: int) -> list[Sample]:
        return [sample(self.source, i, self.settings) for i in range(first, min(first + CHUNK, len(self.source)))]


def sample(source: Source, i: int, settings: Settings) -> Sample:
    """Image `i` as it is to be packed: its bytes untouched, unless it is too large or only pixels."""
    try:
        data = source.read(i)
        picture = source.picture(i, data)  # decodes it: damage at its end counts too
        longer = max(picture.width, picture.height)
        if settings.resize_max is not None and longer > settings.resize_max:
            image = picture.image if picture.format == "array" else decode_picture(data).image
            return Sample(i, _resized(image, settings.resize_max, settings.quality), "jpg")
    except BadImage as error:
        return Sample(i, reason=str(error))
    if picture.format != "array":
        return Sample(i, data, SUFFIXES.get(picture.format, "ppm"))
    encoded = BytesIO()
    picture.image.save(encoded, "PNG")
    return Sample(i, encoded.getvalue(), "png")


def _resized(image: Image.Image, longer: int, quality: int) -> bytes:
    scale = longer / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    encoded = BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=quality)  # the resize is antialiased
    return encoded.getvalue()


def write_shard(
    path: Path,
    samples: Samples,
    *,
    first_key: int,
    plan: str,
    temporary: Path,
    progress: Callable[[int], None],
) -> Index:
    """Fill the tar at `temporary` from `samples`, for `path`, until it is full or they end; the index of it alone.

    Images that cannot be read and stand before the first that does not fit are listed in it. `progress` gets the
    number of images that are done since it was last called.

    Raises:
        InputError: if it cannot be written.
    """
    source, start = samples.source, samples.head.position if samples.head else len(samples.source)
    rows: list[tuple[int, int, int, int]] = []
    names, bad = [], []
    length = checksum = 0
    with writing(path), open(temporary, "wb") as file:

        def write(data: bytes) -> None:
            nonlocal length, checksum
            file.write(data)
            length, checksum = length + len(data), zlib.crc32(data, checksum)

        while (found := samples.head) is not None:
            name, label = source.name(found.position), int(source.labels[found.position])
            if found.reason:
                bad.append((name, found.reason))
            else:
                key = f"{first_key + len(rows):09}"
                members = member(f"{key}.{found.suffix}", found.data)
                if label >= 0 and source.sets is not None:
                    several = {"label": [source.classes[number] for number in source.sets[label]]}
                    members += member(f"{key}.json", json.dumps(several).encode())
                elif label >= 0:
                    members += member(f"{key}.cls", str(label).encode())
                if rows and length + len(members) + len(END) > samples.settings.shard_bytes:
                    break
                rows.append((length + BLOCK, len(found.data), label, zlib.crc32(found.data)))
                names.append(name)
                write(members)
            samples.drop()
            progress(1)
        write(END)
        file.flush()
        os.fsync(file.fileno())
    stop = samples.head.position if samples.head else len(source)
    shard = Shard(path.name, len(rows), length, checksum, start, stop, first_key, tuple(bad))
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Index(plan, source.classes, (shard,), *columns, names=Names(names), sets=source.sets)


def member(name: str, data: bytes) -> bytes:
    """A file in a tar: the header that every reader knows (POSIX.1-1988, "ustar"), the content, and what fills up."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return b"".join((header.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % BLOCK)))
