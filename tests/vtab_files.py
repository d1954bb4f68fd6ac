"""What the tests of VTAB's readers share: tiny pictures, folders and archives, and the order of TFDS."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from vitreous.data.source import Source
from vitreous.data.vtab.open import VtabTask, open_task


def pixels(seed: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3)).astype(np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "png")
    return file.getvalue()


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def pack(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def mat(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, arrays)
    return file.getvalue()


def tfds_order(split: str, keys: list[str]) -> list[str]:
    """As its hashing.py has it: sorted by the integer MD5 of the split's name and the key."""
    return sorted(keys, key=lambda key: int(hashlib.md5((split + key).encode()).hexdigest(), 16))


def names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def stems(source: Source) -> list[str]:
    return [name.split("/")[-1] for name in names(source)]


def shown(source: Source, i: int) -> np.ndarray:
    return np.asarray(pickle.loads(pickle.dumps(source)).image(i))


def small(name: str, folder: Path, num_train: int, num_val: int) -> VtabTask:
    return open_task(name, folder, num_train=num_train, num_val=num_val)
