"""The same files in every container: the same pixels, or the same reason why there are none."""

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hostile import BAD, ODD
from pictures import packed, write
from vitreous.console import Console
from vitreous.data.decode import BadImage
from vitreous.data.layouts import open_data
from vitreous.data.pack import pack
from vitreous.data.pack_shard import Settings
from vitreous.data.source import Source
from vitreous.data.survey import survey
from vitreous.data.views import EvalView, TrainView

FILES = {**ODD, **{name: data for name, (data, _) in BAD.items()}}
NAMES = list(FILES)
LABELS = [("cat", "dog")[k % 2] for k in range(len(NAMES))]
IN_FOLDERS = {f"{label}/{name}": FILES[name] for label, name in zip(LABELS, NAMES)}
NUMBERED = [{f"{k:04}.jpg": FILES[name], f"{k:04}.cls": LABELS[k].encode()} for k, name in enumerate(NAMES)]
"""As WebDataset keeps them, where no name tells anything."""


def folders(root: Path) -> Path:
    return write(IN_FOLDERS, root)


def listed(root: Path) -> Path:
    write({f"images/{name}": data for name, data in FILES.items()}, root)
    with open(root / "list.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("image", "label"), *((f"images/{name}", LABELS[k]) for k, name in enumerate(NAMES))]
        )
    return root / "list.csv"


def shards(root: Path) -> Path:
    for part in range(3):
        packed({name: data for files in NUMBERED[part::3] for name, data in files.items()}, root / f"train-{part}.tar")
    return root


def parquet(root: Path, images: pa.Array) -> Path:
    pq.write_table(pa.table({"image": images, "label": LABELS}), root / "all.parquet", row_group_size=7)
    return root / "all.parquet"


def hub(root: Path) -> Path:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return parquet(root, pa.array([{"bytes": data, "path": name} for name, data in FILES.items()], kind))


def beside(root: Path) -> Path:
    write(FILES, root)
    return parquet(root, pa.array([{"path": name} for name in NAMES], pa.struct({"path": pa.string()})))


CONTAINERS: dict[str, Callable[[Path], Path]] = {
    "folders": folders,
    "list": listed,
    "tar": lambda root: packed(IN_FOLDERS, root / "all.tar"),
    "tar.gz": lambda root: packed(IN_FOLDERS, root / "all.tar.gz", mode="w:gz"),
    "webdataset": lambda root: packed({k: v for files in NUMBERED for k, v in files.items()}, root / "all.tar"),
    "shards": shards,
    "parquet": hub,
    "parquet of bytes": lambda root: parquet(root, pa.array(FILES.values(), pa.binary())),
    "parquet beside files": beside,
}


def called(name: str) -> str:
    """Which of the files a source means, by the name or the number that it gives."""
    last = name.rpartition("#")[2] if ".parquet#" in name else PurePosixPath(name).name
    number = last.removesuffix(".jpg")
    return NAMES[int(number)] if number.isdigit() else last


def outcome(look: Callable[[], object]) -> str:
    """A digest of the pixels that are shown, or the reason why there are none."""
    try:
        return hashlib.sha256(np.asarray(look()).tobytes()).hexdigest()
    except BadImage as error:
        return str(error)


def outcomes(source: Source) -> dict[str, tuple[str, ...]]:
    """What is made of each file: whole, to measure, and to train on."""
    small, crop = EvalView(image_size=16), TrainView(image_size=16)

    def looks(i: int) -> tuple[str, ...]:
        return (
            outcome(lambda: source.image(i)),
            outcome(lambda: small.read(source, i)),
            outcome(lambda: crop.read(source, i, np.random.default_rng(0))),
        )

    return {called(source.name(i)): looks(i) for i in range(len(source))}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> dict[str, tuple[str, ...]]:
    """What is made of the files in class folders."""
    return outcomes(open_data(str(folders(tmp_path_factory.mktemp("plain")))).train)


def test_odd_files_are_images_and_bad_ones_have_their_reason(plain):
    assert plain.keys() == FILES.keys()
    for name in ODD:
        assert all(len(part) == 64 for part in plain[name]), name
    for name, (_, reason) in BAD.items():
        assert plain[name][0].startswith(reason), name
        assert "\n" not in plain[name][0]
    for same in (
        ("photo.bmp", "photo.ppm", "png in truth.jpg"),
        ("photo.jpg", "exif of nothing.jpg", "colours of nothing.jpg"),
    ):
        assert len({plain[name] for name in same}) == 1


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_gives_the_same_pixels_or_the_same_reason_wherever_it_lies(container, plain, tmp_path):
    source = open_data(str(CONTAINERS[container](tmp_path))).train
    assert outcomes(source) == plain
    bad = survey(source, progress=lambda _: None).bad
    assert {called(source.name(i)): reason for i, reason in bad.items()} == {name: plain[name][0] for name in BAD}


@pytest.mark.parametrize("container", ["folders", "tar", "shards", "parquet"])
def test_packing_keeps_what_is_sound_and_lists_what_is_not(container, plain, tmp_path):
    (tmp_path / "in").mkdir()
    given = CONTAINERS[container](tmp_path / "in")
    pack(str(given), tmp_path / "out", settings=Settings(), console=Console(quiet=True))
    source = open_data(str(tmp_path / "out")).train
    assert outcomes(source) == {name: plain[name] for name in ODD}
    listed = (tmp_path / "out" / "bad_images.txt").read_text().splitlines()
    found = {called(name): reason for _, name, reason in (line.split("\t") for line in listed)}
    assert found == {name: plain[name][0] for name in BAD}
