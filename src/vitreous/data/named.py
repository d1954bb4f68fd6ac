"""Data sets known by name: `digits`, `cifar10:PATH`, `fashion-mnist:PATH`; nothing is ever downloaded."""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np

from vitreous.data.archives import list_archive
from vitreous.data.listing import Splits
from vitreous.data.source import ArraySource, Source
from vitreous.errors import InputError

NAMES = ("digits", "cifar10:PATH", "fashion-mnist:PATH")  # to train on; imagenet-a:PATH and so on only measure
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
CIFAR10_RECORD = 1 + 3 * 32 * 32
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FASHION_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def digits() -> Splits:
    """1,797 handwritten digits of 8 x 8 grey pixels, from scikit-learn, in one split.

    Their 17 levels 0..16 become floor(255 * level / 16): 0, 15, 31, ..., 255.

    Raises:
        InputError: if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError("the data set digits needs scikit-learn; pip install 'vitreous[demo]'") from None
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * 255 // 16).astype(np.uint8)
    return Splits(ArraySource(pixels, prefix="digits", classes=[str(digit) for digit in range(10)], labels=labels))


def cifar10(folder: Path) -> Splits:
    """CIFAR-10 from its binary version (`*.bin`, also gzip'ed), or from JPEG tars if only those are whole.

    Classes are in the data set's own order, airplane to truck.

    Raises:
        InputError: if neither is there, or a file is damaged.
    """
    files = {file.name.removesuffix(".gz"): file for file in _files(folder, "cifar10")}

    def named(pattern: str) -> list[Path]:
        return [file for name, file in files.items() if re.fullmatch(pattern, name)]

    binary = {"train": named(r"(data_batch|train).*\.bin"), "test": named(r"test.*\.bin")}
    tars = {split: named(rf"cifar10.*{split}\.(tar|tgz)") for split in ("train", "test")}
    whole = len(named(r"data_batch_[1-5]\.bin")) == 5 and bool(binary["test"])
    if tars["train"] and tars["test"] and not whole:
        read = {name: list_archive(tar).source.with_classes(CIFAR10_CLASSES) for name, (tar, *_) in tars.items()}
        return Splits(**read, notes=["CIFAR-10 as JPEG copies, not the original pixels"])
    if not binary["train"] or not binary["test"]:
        wanted = "data_batch_1.bin ... data_batch_5.bin and test_batch.bin"
        if named(r"data_batch_1|batches\.meta|cifar-10-python\.tar"):
            raise InputError(
                f"{folder} holds the Python version of CIFAR-10, whose pickle files can run code when read; "
                f"take the binary version ({wanted})"
            )
        raise InputError(f"{folder} holds no CIFAR-10; it needs {wanted}")
    train, test = (_cifar10_records(binary[split], split) for split in ("train", "test"))
    notes = [] if whole else [f"a part of CIFAR-10: {len(train):,} of 50,000 training images"]
    return Splits(train, test=test, notes=notes)


def fashion_mnist(folder: Path) -> Splits:
    """Fashion-MNIST from its four IDX files, raw or gzip'ed: 60,000 to train on, 10,000 to test.

    Raises:
        InputError: if a file is missing or damaged.
    """
    files = {file.name.removesuffix(".gz").replace(".idx", "-idx"): file for file in _files(folder, "fashion-mnist")}
    sources = {}
    for split, names in FASHION_FILES.items():
        if missing := [name for name in names if name not in files]:
            raise InputError(f"{folder} lacks {missing[0]} (or {missing[0]}.gz) of Fashion-MNIST")
        pixels, labels = (_idx(files[name]) for name in names)
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels) or labels.max(initial=0) > 9:
            raise InputError(f"{folder}: images and labels of the {split} split do not fit; fetch the files again")
        sources[split] = ArraySource(pixels, prefix=split, classes=FASHION_CLASSES, labels=labels)
    return Splits(sources["train"], test=sources["test"])


def _files(folder: Path, name: str) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{name}:{folder}: no such folder; give the folder that holds the files of {name}")
    inner = folder / "cifar-10-batches-bin"
    return sorted([*folder.iterdir(), *(inner.iterdir() if inner.is_dir() else ())])


def _bytes(file: Path) -> bytes:
    try:
        return gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {file} ({error}); fetch it again") from None


def _cifar10_records(files: list[Path], split: str) -> Source:
    """Records of one label byte and 32 x 32 pixels: all red, then all green, then all blue."""
    records = []
    for file in files:
        data = np.frombuffer(_bytes(file), np.uint8)
        if len(data) % CIFAR10_RECORD or (data[::CIFAR10_RECORD] > 9).any():
            raise InputError(f"{file} is no CIFAR-10 in binary form, or not whole; fetch it again")
        records.append(data.reshape(-1, CIFAR10_RECORD))
    joined = np.concatenate(records)
    pixels = joined[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return ArraySource(np.ascontiguousarray(pixels), prefix=split, classes=CIFAR10_CLASSES, labels=joined[:, 0])


def _idx(file: Path) -> np.ndarray:
    """The array in an IDX file of bytes: a magic number 0x0000_08_dd, dd big-endian sizes, then the data."""
    data = _bytes(file)
    num_axes = data[3] if data[:3] == b"\0\0\x08" and len(data) > 4 else 0
    shape = np.frombuffer(data, ">u4", min(num_axes, (len(data) - 4) // 4), 4).astype(np.int64) if num_axes else []
    if not num_axes or len(shape) < num_axes or int(np.prod(shape)) != len(data) - 4 - 4 * num_axes:
        raise InputError(f"{file} is no IDX file of bytes, or not whole; fetch it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * num_axes).reshape(shape)
