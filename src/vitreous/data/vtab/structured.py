"""Readers of the eight structured tasks: how many, how far, where, and turned which way."""

import json
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np

from vitreous import seeding
from vitreous.data.source import ArraySource
from vitreous.data.vtab import tfrecord
from vitreous.data.vtab.containers import MemberSource, library
from vitreous.data.vtab.files import Files, Member
from vitreous.data.vtab.natural import running_numbers
from vitreous.data.vtab.records import Records
from vitreous.errors import InputError

CLEVR_DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0)
KITTI_DISTANCES = (-100.0, 8.0, 20.0, 999.0)
KITTI_VEHICLES = ("Car", "Van", "Truck")
NO_VEHICLE = 1000.0
NORB_TYPES = {0x1E3D4C55: np.dtype("u1"), 0x1E3D4C54: np.dtype("<i4")}
SPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"
DAMAGE = (OSError, EOFError, RuntimeError, KeyError, ValueError, TypeError, IndexError, zipfile.BadZipFile, zlib.error)


def clevr(files: Files, seed: int) -> dict[str, Records]:
    """Rendered scenes with their descriptions; keys are file names. `validation` is the original's val."""
    counting = files.task.name == "clevr-count"
    steps = [f"{step:g}" for step in CLEVR_DISTANCES]
    ranges = [f"{low} to {high}" for low, high in zip(steps, [*steps[1:], "100"])]
    classes = [str(number) for number in range(3, 11)] if counting else ranges
    records = {}
    for split, part in (("train", "train"), ("validation", "val")):
        member = files.need(f"scenes/CLEVR_{part}_scenes.json")
        text = member.bytes()
        try:
            scenes = json.loads(text)["scenes"]
            names = [scene["image_filename"] for scene in scenes]
            if counting:
                labels = [len(scene["objects"]) - 3 for scene in scenes]
            else:
                nearest = [min(thing["pixel_coords"][2] for thing in scene["objects"]) for scene in scenes]
                labels = last_below(CLEVR_DISTANCES, nearest)
        except DAMAGE as error:
            raise InputError(f"{member} holds no scenes of CLEVR ({error}); fetch it again") from None
        container, paths = files.locate([f"images/{part}/{name}" for name in names])
        records[split] = Records(container.source(paths, classes=classes, labels=np.array(labels)), names)
    return records


def dmlab(files: Files, seed: int) -> dict[str, Records]:
    """Frames in TFRecord files, each checked once and then read by its place; keys are file names."""
    records = {}
    for split in ("train", "validation", "test"):
        stem = f"dmlab-{split}.tfrecord"
        container = files.holding(stem)
        names, labels, parts = [], [], []
        for name in sorted(name for name in container.names if name.split("/")[-1].startswith(stem)):
            member = Member(container, name)
            for offset, data in tfrecord.records(member):
                try:
                    found = cast(dict[str, Any], tfrecord.features(data))
                    (start, size), (key, length), label = found["image"], found["filename"], int(found["label"])
                    names.append(data[key : key + length].decode())
                except DAMAGE:
                    raise InputError(f"{member} lacks image, label or filename at byte {offset:,}") from None
                labels.append(label)
                parts.append((name, offset + start, size))
        source = MemberSource(container, names, classes=list("012345"), labels=np.array(labels), parts=parts)
        records[split] = Records(source, names)
    return records


def dsprites(files: Files, seed: int) -> dict[str, Records]:
    """Every sprite at every place, packed to one bit a pixel; keys are running numbers."""
    member = files.need(f"{SPRITES}.npz", f"{SPRITES}.hdf5")
    path, h5py = member.archive().path, None if member.name.endswith(".npz") else library("h5py")
    try:
        bits, latents = _sprites_hdf5(path, h5py) if h5py else _sprites_npz(path)
        column, count = (4, 32) if files.task.name == "dsprites-loc" else (3, 40)
        labels = np.floor(latents[:, column] / (count / 16)).astype(np.int64)
    except DAMAGE as error:
        raise InputError(f"cannot read {member} ({error}); fetch it again") from None
    pixels = cast(np.ndarray, BitPixels(bits))
    source = ArraySource(pixels, prefix="train", classes=running_numbers(16), labels=labels)
    return {"train": Records(source, running_numbers(len(labels)))}


def kitti(files: Files, seed: int) -> dict[str, Records]:
    """TFDS' split by drives where the development kit lies beside, else 80, 10 and 10 % drawn from `seed`."""
    first = files.need("training/label_2/000000.txt")
    folder = first.name.removesuffix("000000.txt")
    members = [Member(first.container, name) for name in first.container.names if name.startswith(folder)]
    labels = last_below(KITTI_DISTANCES, [_nearest_vehicle(member) for member in members])
    names = [member.name.split("/")[-1].replace(".txt", ".png") for member in members]
    container, paths = files.locate([f"training/image_2/{name}" for name in names])
    classes = ["up to 8 m", "up to 20 m", "over 20 m", "no vehicle"]
    source = container.source(paths, classes=classes, labels=labels)
    rand, mapping = files.find("mapping/train_rand.txt"), files.find("mapping/train_mapping.txt")
    if rand is None or mapping is None:
        order = seeding.generator(seed, "vtab kitti split").permutation(len(names))
        parts = np.split(order, [len(names) * 8 // 10, len(names) * 9 // 10])
        return {split: Records(source.select(part)) for split, part in zip(("train", "validation", "test"), parts)}
    drives = _drives(rand, mapping)
    numbers = [int(name[:-4]) for name in names]
    if max(numbers) >= len(drives):
        raise InputError(f"{rand} tells the drives of {len(drives):,} images, not of {max(numbers) + 1:,}")
    drive_of = np.array([drives[i] for i in numbers])
    held_out = _held_out_drives(drives)
    records = {}
    for split in ("train", "validation", "test"):
        rows = np.flatnonzero([held_out.get(drive, "train") == split for drive in drive_of])
        records[split] = Records(source.select(rows), [names[i] for i in rows])
    return records


def smallnorb(files: Files, seed: int) -> dict[str, Records]:
    """Toys on a turntable, the first camera's image; keys are running numbers."""
    column, classes = (2, range(0, 360, 20)) if files.task.name == "snorb-azim" else (1, range(30, 75, 5))
    records = {}
    for split, stem in (("train", "5x46789x9x18x6x2x96x96-training"), ("test", "5x01235x9x18x6x2x96x96-testing")):
        images, info = (
            files.need(f"smallnorb-{stem}-{kind}.mat", f"smallnorb-{stem}-{kind}.mat.gz") for kind in ("dat", "info")
        )
        pixels, table = _norb_matrix(images), _norb_matrix(info)
        if pixels.ndim != 4 or table.shape != (len(pixels), 4):
            raise InputError(f"{images} and {info} do not fit; fetch both again")
        labels = table[:, column] // (2 if column == 2 else 1)  # azimuths count in steps of 10 degrees
        names = [f"{degrees} degrees" for degrees in classes]
        source = ArraySource(np.ascontiguousarray(pixels[:, 0]), prefix=split, classes=names, labels=labels)
        records[split] = Records(source, running_numbers(len(pixels)))
    return records


def last_below(steps: tuple[float, ...], values: Iterable[float]) -> np.ndarray:
    """Position of the last of `steps` that is less than each value, which counts in float32 as in TFDS."""
    return np.searchsorted(np.array(steps, np.float32), np.array(list(values), np.float32), side="left") - 1


class BitPixels:
    """Black and white images, seen as an array of uint8 0 and 255; an eighth of its memory."""

    dtype = np.dtype(np.uint8)

    def __init__(self, bits: np.ndarray):
        self.bits = bits
        self.shape = (len(bits), 64, 64)

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, row: int) -> np.ndarray:
        return np.unpackbits(self.bits[row]).reshape(64, 64) * np.uint8(255)


def _sprites_npz(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images as bits, and classes of the six factors; the pickled metadata are never opened."""
    with zipfile.ZipFile(path) as archive:
        with archive.open("latents_classes.npy") as file:
            latents = np.lib.format.read_array(file, allow_pickle=False)
        with archive.open("imgs.npy") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, columns_first, dtype = header(file)
            if shape[1:] != (64, 64) or columns_first or dtype.itemsize != 1 or dtype.hasobject:
                raise ValueError(f"images of shape {shape} and type {dtype}")
            blocks = []
            for start in range(0, shape[0], 4096):
                count = min(4096, shape[0] - start)
                blocks.append(
                    np.packbits(np.frombuffer(file.read(count * 4096), np.uint8).reshape(count, 4096), axis=1)
                )
    return np.concatenate(blocks), latents


def _sprites_hdf5(path: Path, h5py: Any) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path, "r") as file:
        images, latents = file["imgs"], file["latents"]["classes"][:]
        steps = range(0, len(images), 4096)
        blocks = [np.packbits(images[start : start + 4096].reshape(-1, 4096), axis=1) for start in steps]
    return np.concatenate(blocks), latents


def _nearest_vehicle(member: Member) -> float:
    """The least z of the cars, vans and trucks in a file of labels."""
    rows = [line.split() for line in member.lines()]
    try:
        return min([float(row[13]) for row in rows if row[0] in KITTI_VEHICLES], default=NO_VEHICLE)
    except (IndexError, ValueError):
        raise InputError(f"{member} holds no KITTI labels; fetch it again") from None


def _drives(rand: Member, mapping: Member) -> list[str]:
    """The drive that each training image was taken from, in order of their numbers."""
    try:
        lines = mapping.lines()
        return [lines[int(place) - 1].split()[1] for place in " ".join(rand.lines()).split(",")]
    except (IndexError, ValueError):
        raise InputError(f"{rand} and {mapping} do not fit; fetch both again") from None


def _held_out_drives(drives: list[str]) -> dict[str, str]:
    """The split of the drives that are not for training, drawn as TFDS draws them (object_detection/kitti.py)."""
    random = np.random.RandomState(123)
    known = sorted(set(drives))
    count = max(1, len(known) // 10)
    test = set(random.choice(known, count, replace=False).tolist())
    validation = set(random.choice(sorted(set(known) - test), count, replace=False).tolist())
    return dict.fromkeys(test, "test") | dict.fromkeys(validation, "validation")


def _norb_matrix(member: Member) -> np.ndarray:
    """The array in a file of the NORB format: a type, the number of axes, at least three sizes, the data."""
    data = member.bytes()
    head = np.frombuffer(data[:8], "<i4") if len(data) >= 20 else np.zeros(2, int)
    dtype, num_axes = NORB_TYPES.get(int(head[0])), int(head[1])
    start = 8 + 4 * max(3, num_axes)
    if dtype is None or not 0 < num_axes <= 4 or len(data) < start:
        raise InputError(f"{member} is no smallNORB matrix; fetch it again")
    shape = np.frombuffer(data, "<i4", num_axes, 8).astype(np.int64)
    if int(np.prod(shape)) * dtype.itemsize != len(data) - start:
        raise InputError(f"{member} is not whole; fetch it again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)
