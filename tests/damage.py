"""Damage to checkpoints on the disk: flipped bits, cut files, files and folders of others in their place.

Every function damages the newest checkpoint of a folder, looks whether the one before is taken, and mends it again.
What comes back is how many cases there were, and in words those in which the damage was not noticed.
"""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vitreous.checkpoint import CheckpointConfig, Checkpoints
from vitreous.distributed import World
from vitreous.saved import read_manifest

ALONE = World(rank=0, size=1, device=torch.device("cpu"), dtype=torch.float32, threads=1)
Found = tuple[int, list[str]]


def opened(folder: Path, *, identity: str, world: World = ALONE, **config) -> Checkpoints:
    """The checkpoints in `folder`, as a process that has just begun sees them."""
    return Checkpoints(folder, world=world, config=CheckpointConfig(**config), identity=identity)


def unnoticed(folder: Path, what: str) -> list[str]:
    """`what`, unless the newest checkpoint is passed over with a reason and the one before is taken."""
    paths = sorted(path for path in folder.glob("step-*") if not path.suffix)
    looking = opened(folder, identity=read_manifest(paths[-2])["identity"])
    saved = looking.newest()
    reasons = [reason for path, reason in looking.damaged.items() if path == paths[-1] and reason]
    return [] if saved and saved.path == paths[-2] and reasons else [what]


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def random_bits(paths: list[Path], count: int, seed: int) -> Iterator[tuple[Path, int]]:
    """Bits of these files: all are hit, and large ones more often, in proportion to half of their size."""
    rng = random.Random(seed)
    sizes = [path.stat().st_size for path in paths]
    for number in range(count):
        path = rng.choices(paths, sizes)[0] if number % 2 else paths[number // 2 % len(paths)]
        yield path, rng.randrange(8 * path.stat().st_size)


def flips(folder: Path, *, count: int, seed: int, progress: Callable[[], None] = lambda: None) -> Found:
    """Single bits of any file of the newest checkpoint, its manifest among them."""
    newest, missed = max(path for path in folder.glob("step-*") if not path.suffix), []
    for path, bit in random_bits(sorted(newest.iterdir()), count, seed):
        flip(path, bit)
        missed += unnoticed(folder, f"bit {bit} of {path.name}")
        flip(path, bit)
        progress()
    return count, missed


def truncations(folder: Path, *, count: int, seed: int, progress: Callable[[], None] = lambda: None) -> Found:
    """Any file of the newest checkpoint, cut to any length."""
    rng, missed = random.Random(seed), []
    files = sorted(max(path for path in folder.glob("step-*") if not path.suffix).iterdir())
    for number in range(count):
        path = files[number % len(files)]
        data = path.read_bytes()
        length = rng.randrange(len(data)) if number >= len(files) else 0
        os.truncate(path, length)
        missed += unnoticed(folder, f"{path.name} cut to {length} bytes")
        path.write_bytes(data)
        progress()
    return count, missed


def swaps(folder: Path, *, other: Path) -> Found:
    """Files of the newest checkpoint, and all of it, gone or replaced by others; `other` holds those of another run."""
    before, newest = sorted(path for path in folder.glob("step-*") if not path.suffix)[-2:]
    theirs = max(path for path in other.glob("step-*") if not path.suffix)
    cases = 0
    missed: list[str] = []

    @contextmanager
    def kept() -> Iterator[None]:
        nonlocal cases
        cases += 1
        aside = folder / ".kept"
        shutil.copytree(newest, aside)
        try:
            yield
        finally:
            shutil.rmtree(newest)
            aside.rename(newest)

    names = sorted(path.name for path in newest.iterdir())
    for name in names:
        for source, whose in ((before, "the step before"), (theirs, "another run")):
            with kept():
                shutil.copy(source / name, newest / name)
                missed += unnoticed(folder, f"{name} of {whose}")
        for rank in (rank for rank in names if rank.endswith(".safetensors") and rank != name):
            with kept():
                shutil.copy(newest / rank, newest / name)
                missed += unnoticed(folder, f"{rank} in place of {name}")
        with kept():
            (newest / name).unlink()
            missed += unnoticed(folder, f"no {name}")
    for source, whose in ((before, "the step before"), (theirs, "another run")):
        with kept():
            shutil.rmtree(newest)
            shutil.copytree(source, newest)
            missed += unnoticed(folder, f"the folder of {whose}")
    return cases, missed
