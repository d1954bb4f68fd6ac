"""Data of any kind as tars in WebDataset form with an index: plain tars for everyone, random access for us.

The shards are a function of the data and the settings alone: not of the number of threads, nor of how often the work
was cut short. Each is written whole under another name and then renamed; what is known of it is kept beside it until
the index of all is written, last.
"""

import os
import re
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import PIL

from vitreous.claim import Claim, locked
from vitreous.console import Console, Task
from vitreous.cores import cores
from vitreous.data.layouts import open_data
from vitreous.data.pack_shard import Samples, Settings, write_shard
from vitreous.data.remote import Remote, is_url
from vitreous.data.shard_index import INDEX, SHARD, Index, Shard, joined, read_index
from vitreous.data.source import Source
from vitreous.errors import InputError, some
from vitreous.files import sync_folder, write_bytes, write_text, writing

WORK, BAD_IMAGES, CLASSES = ".packing", "bad_images.txt", "classes.txt"
OURS = (
    SHARD,
    re.compile(rf"{INDEX}|{BAD_IMAGES}|{CLASSES}"),
    re.compile(rf"\.({INDEX}|{BAD_IMAGES}|{CLASSES})\.[0-9]+\.tmp"),
)
"""Names of what stands in a folder of shards, and of what a killed process may leave there."""
MAX_THREADS = 64
ONE_LINE = str.maketrans({"\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True)
class Packed:
    """What stands in the folder now."""

    index: Index
    notes: list[str]
    """What was skipped or assumed of the data."""
    num_written: int
    """Shards written this time; the others were there, whole."""

    @property
    def bad(self) -> list[tuple[str, str, str]]:
        """Split, name and reason of each image that was left out."""
        return [(shard.split, *image) for shard in self.index.shards for image in shard.bad]


def pack(data: str, folder: Path, *, settings: Settings, workers: int | None = None, console: Console) -> Packed:
    """Write all splits of `data` as shards into `folder`, with their index; go on where that was cut short.

    `train-000000.tar` holds `000000000.jpg` beside `000000000.cls`, the number of its class in `classes.txt`, or, where
    images may show several, `000000000.json` with their names; of unlabelled images nothing. What gives no image is
    left out and listed in `bad_images.txt`. Data that cannot tell whether they changed are taken as unchanged.

    Args:
        workers: threads that read, check and resize; by default one for each core.

    Raises:
        InputError: if the data cannot be used or the folder not be written, or it holds anything else.
    """
    opened = open_data(data, remote=Remote(console=console))
    for source in opened.named().values():
        source.bring()
    sources = opened.named()
    plan = _plan(sources, settings)
    _check_apart(data, folder)
    _check_folder(folder)
    with locked(folder / WORK) as claim:
        known = _known(folder, plan)
        workers = min(workers or cores(), MAX_THREADS)
        with (
            console.task("packing", sum(map(len, sources.values()))) as task,
            ThreadPoolExecutor(workers) as pool,
        ):
            work = _Work(folder, plan, settings, pool, workers, claim, task, known)
            parts = [part for split, source in sources.items() for part in work.shards(split, source)]
        claim.check()
        packed = Packed(joined(parts), opened.notes, work.num_written)
        _finish(packed, folder)
    return packed


@dataclass
class _Work:
    folder: Path
    plan: str
    settings: Settings
    pool: ThreadPoolExecutor
    workers: int
    claim: Claim
    task: Task
    known: dict[str, Index]
    num_written: int = field(default=0, init=False)
    num_done: int = field(default=0, init=False)

    def shards(self, split: str, source: Source) -> Iterator[Index]:
        """The index of each shard of a split, once that is written or found whole."""
        samples: Samples | None = None
        start = first_key = number = 0
        while start < len(source):
            name = f"{split}-{number:06}.tar"
            part = self.known.get(name)
            if part is not None and self._is_whole(part.shards[0], start, first_key):
                samples = None  # what it has looked at ahead is in this shard
            else:
                if samples is None:
                    samples = Samples(source, start, settings=self.settings, pool=self.pool, ahead=self.workers + 1)
                part = self._write(name, samples, first_key)
            shard = part.shards[0]
            start, first_key, number = shard.stop, first_key + shard.num_images, number + 1
            yield part

    def _is_whole(self, shard: Shard, start: int, first_key: int) -> bool:
        """Whether that shard begins there, and every bit of it is as it was written."""
        path = self.folder / shard.name
        if (shard.start, shard.first_key) != (start, first_key) or not path.is_file():
            return False
        length = checksum = 0
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                length, checksum = length + len(block), zlib.crc32(block, checksum)
        if (length, checksum) != (shard.num_bytes, shard.checksum):
            return False
        self._advance(shard.stop - shard.start)
        return True

    def _write(self, name: str, samples: Samples, first_key: int) -> Index:
        path = self.folder / name
        temporary = self.folder / WORK / f"{name}.{self.claim.attempt}.tmp"
        try:
            part = write_shard(
                path, samples, first_key=first_key, plan=self.plan, temporary=temporary, progress=self._advance
            )
            if not part.shards[0].num_images:
                reasons = "; ".join(": ".join(image) for image in part.shards[0].bad[:3])
                raise InputError(f"no image of {path.name.partition('-')[0]} can be read ({reasons}); give images")
            self.claim.check()
            with writing(path):
                os.replace(temporary, path)
                sync_folder(self.folder)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        write_bytes(self.folder / WORK / f"{name}.npz", part.encoded())
        self.num_written += 1
        return part

    def _advance(self, number: int) -> None:
        self.num_done += number
        self.task.update(self.num_done)


def _finish(packed: Packed, folder: Path) -> None:
    listed = {BAD_IMAGES: ["\t".join(image) for image in packed.bad], CLASSES: packed.index.classes}
    for name, lines in listed.items():
        if lines:
            write_text(folder / name, "".join(f"{line.translate(ONE_LINE)}\n" for line in lines))
    write_bytes(folder / INDEX, packed.index.encoded())
    shutil.rmtree(folder / WORK, ignore_errors=True)


def _plan(sources: dict[str, Source], settings: Settings) -> str:
    """A digest of the data and of all that decides what becomes of them."""
    resizing = (settings.resize_max, settings.quality, PIL.__version__) if settings.resize_max else None
    digest = blake2b(repr((settings.shard_bytes, resizing)).encode(), digest_size=16)
    for split, source in sources.items():
        digest.update(repr((split, source.classes, source.stamp())).encode("utf-8", "surrogateescape"))
        if source.sets is not None:
            digest.update(repr(list(source.sets)).encode())
        for i, label in enumerate(source.labels.tolist()):
            digest.update(f"{source.name(i)}\0{label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _check_apart(data: str, folder: Path) -> None:
    """Refuse to write into the folder of the data: the shards would be data the next time."""
    if is_url(data):
        return
    _, colon, path = data.partition(":")
    given = Path(os.path.realpath(os.path.expanduser(path if colon and not os.path.exists(data) else data)))
    if given.is_dir() and Path(os.path.realpath(folder)).is_relative_to(given):
        raise InputError(f"{folder} lies in {given}, which holds the data; give a folder elsewhere")


def _check_folder(folder: Path) -> None:
    """Refuse what is neither a new folder nor one that a pack was begun in."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give a new or empty one")
    with writing(folder):
        found = sorted(os.listdir(folder))
    strange = [name for name in found if name != WORK and not any(kind.fullmatch(name) for kind in OURS)]
    if strange or (found and not {WORK, INDEX} & set(found)):
        raise InputError(f"{folder} holds something else ({some(strange or found, most=2)}); give a new or empty one")


def _known(folder: Path, plan: str) -> dict[str, Index]:
    """What is known of each shard that was finished, by its name.

    Raises:
        InputError: if they are of another plan.
    """
    for left in [*folder.glob("*.tmp"), *(folder / WORK).glob("*.tmp")]:  # of one that was killed
        left.unlink()
    parts = []
    if (folder / INDEX).exists():
        index = read_index(folder / INDEX)
        parts += [index.only([k]) for k in range(len(index.shards))]
    for path in (folder / WORK).glob("*.npz"):
        with suppress(InputError):  # a damaged one: its shard is written again
            parts.append(read_index(path))
    if any(part.plan != plan for part in parts):
        raise InputError(
            f"{folder} holds other data, or these packed with other settings or before they changed; "
            "give another folder, or remove it"
        )
    return {part.shards[0].name: part for part in parts}
