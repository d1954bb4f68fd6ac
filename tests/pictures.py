"""Small pictures, made on the spot."""

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise(seed: int = 0, *, width: int = 12, height: int = 10) -> Image.Image:
    """An RGB image whose pixels differ from those of any other seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(width: int, height: int) -> Image.Image:
    """An RGB image of slow waves, which survives JPEG and resizing."""
    x, y = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 4, height))
    waves = np.stack([np.sin(x + y), np.cos(x * 2), np.sin(y * 3)], axis=-1)
    return Image.fromarray((127.5 + 127 * waves).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of a file with `image`."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def bomb(width: int = 50_000, height: int = 40_000) -> bytes:
    """A PNG whose header promises many pixels, with the data of none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(b"")) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write(files: dict[str, bytes], root: Path) -> Path:
    """`root` with these files in it, and the folders that they need."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), *, each: int = 5, first_seed: int = 0) -> Path:
    """A folder with a folder of `each` different PNG files for each class."""
    seeds = iter(range(first_seed, first_seed + each * len(classes)))
    return write({f"{name}/{i}.png": encoded(noise(next(seeds))) for name in classes for i in range(each)}, root)


def packed(files: dict[str, bytes], path: Path, *, mode: str = "w") -> Path:
    """A tar with these members."""
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path
