import hashlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from vitreous.data.source import ArraySource, FileSource
from vitreous.data.vtab.ids import Line, listed_records
from vitreous.data.vtab.open import open_task
from vitreous.data.vtab.records import Records, cut, record_order
from vitreous.data.vtab.tasks import TASKS
from vitreous.errors import InputError
from vtab_files import mat, names, pack, pixels, png, shown, small, stems, write

RESISC45 = (
    *("airplane", "airport", "baseball_diamond", "basketball_court", "beach"),
    *("bridge", "chaparral", "church", "circular_farmland", "cloud"),
    *("commercial_area", "dense_residential", "desert", "forest", "freeway"),
    *("golf_course", "ground_track_field", "harbor", "industrial_area", "intersection"),
    *("island", "lake", "meadow", "medium_residential", "mobile_home_park"),
    *("mountain", "overpass", "palace", "parking_lot", "railway"),
    *("railway_station", "rectangular_farmland", "river", "roundabout", "runway"),
    *("sea_ice", "ship", "snowberg", "sparse_residential", "stadium"),
    *("storage_tank", "tennis_court", "terrace", "thermal_power_station", "wetland"),
)
EUROSAT = {
    **{"AnnualCrop": 3000, "Forest": 3000, "HerbaceousVegetation": 3000, "Highway": 2500, "Industrial": 2500},
    **{"Pasture": 2000, "PermanentCrop": 2500, "Residential": 3000, "River": 2500, "SeaLake": 3000},
}


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()[:16]


def test_record_order_is_that_of_tfds():
    """The first ids of `tfds.load("cifar10", split="train")`, as its users print them."""
    order = record_order([str(i) for i in range(50_000)], split="train")
    assert order[:8].tolist() == [16399, 1680, 47917, 17307, 27051, 48736, 26263, 1456]


@pytest.mark.parametrize(
    ("name", "keys", "id_of", "expected"),
    [
        (
            "cifar100",
            {"train": [str(i) for i in range(50_000)]},
            lambda key: f"train_{int(key):05d}",
            ("ac3a4b7f6d6c32f7", "7996f329fc85b9ac"),
        ),
        (
            "resisc45",
            {"train": [f"{name}_{name}_{i:03d}.jpg" for name in RESISC45 for i in range(1, 701)]},
            lambda key: key[(len(key) - 9) // 2 + 1 :],
            ("b283cadb71f06d56", "0058327227a2a0b1"),
        ),
        (
            "camelyon",
            {
                "train": [f"train_{i}" for i in range(262_144)],
                "validation": [f"valid_{i}" for i in range(32_768)],
                "test": None,
            },
            str,
            ("21eaea5228a490c0", "d6e3e99d74f635b8"),
        ),
        (
            "clevr-count",
            {"train": [f"CLEVR_train_{i:06d}.png" for i in range(70_000)], "validation": None},
            str,
            ("2755742128ae24c0", "6570e8229f7bc1b9"),
        ),
    ],
)
def test_images_are_those_that_the_authors_of_vpt_exported_from_tfds(name, keys, id_of, expected):
    """Digests of the sorted ids in their vtab_trainval_splits.json, 800 to train on and 200 to validate on."""
    task = TASKS[name]
    records = {}
    for split, size in task.sizes.items():
        pixels = np.broadcast_to(np.uint8(0), (size, 1, 1))
        source = ArraySource(pixels, prefix=split, classes=["a"], labels=np.zeros(size))
        records[split] = Records(source, keys.get(split))
    parts = cut(records, task, seed=0)
    train = [id_of(keys["train"][i]) for i in parts.train]
    val = [id_of(keys[task.val[0]][i]) for i in parts.val]
    assert (digest(train), digest(val)) == expected
    assert parts.official
    assert len(parts.test) == task.num_test


def test_whole_eurosat_opens_as_the_official_split(tmp_path):
    """As above, from a zip with all its names."""
    pack(
        tmp_path / "EuroSAT.zip",
        {f"2750/{n}/{n}_{i}.jpg": b"" for n, size in EUROSAT.items() for i in range(1, size + 1)},
    )
    task = open_task("eurosat", tmp_path)
    assert digest(stems(task.train)) == "2a2d9a1c3370755c"
    assert digest(stems(task.val)) == "b13e8f5667551e03"
    assert stems(task.val)[:2] == ["SeaLake_804.jpg", "Forest_1554.jpg"]
    assert len(task.test) == 5400
    assert task.official
    assert task.split == "cut in TensorFlow Datasets' order, computed from its keys: the official ids"
    assert task.notes == []
    assert not open_task("eurosat", tmp_path, num_val=100).official


def test_too_few_images_are_an_error(tmp_path):
    array = np.zeros((32, 32, 3, 500), np.uint8)
    write(tmp_path, {f"{split}_32x32.mat": mat(X=array, y=np.ones((500, 1))) for split in ("train", "test")})
    with pytest.raises(
        InputError, match=r"450 images to train on, 50 to validate on and 500 to test on; VTAB takes 800"
    ):
        open_task("svhn", tmp_path)


def test_slices_of_one_split_never_overlap():
    task = TASKS["dsprites-loc"]
    source = ArraySource(np.zeros((50, 1, 1), np.uint8), prefix="x", classes=["a"], labels=np.zeros(50))
    parts = cut({"train": Records(source)}, task, seed=3, num_train=40, num_val=5)
    assert sorted([*parts.train, *parts.val, *parts.test]) == list(range(50))
    for num_train, num_val in ((41, 5), (40, 6)):
        with pytest.raises(InputError, match="give the whole data set"):
            cut({"train": Records(source)}, task, seed=3, num_train=num_train, num_val=num_val)


def test_unknown_task_and_missing_folder_are_errors(tmp_path):
    with pytest.raises(InputError, match="VTAB has no task 'clevr'; did you mean"):
        open_task("clevr", tmp_path)
    with pytest.raises(InputError, match=r"Sun397 of VTAB: .*nowhere is no folder .*SUN397\.tar"):
        open_task("sun397", tmp_path / "nowhere")


def test_archive_itself_can_be_given_and_a_broken_one_is_named(tmp_path):
    pack(tmp_path / "x.zip", {f"{name}/{name}_{i}.jpg": png(i) for name in ("River", "Forest") for i in range(10)})
    assert len(small("eurosat", tmp_path / "x.zip", 9, 3).test) == 4
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"x\.zip is no whole zip"):
        small("eurosat", tmp_path / "x.zip", 9, 3)


def test_source_in_a_zip_survives_pickling_and_reports_a_damaged_image(tmp_path):
    files = {f"a/a_{i}.jpg": png(i) for i in range(10)} | {f"b/b_{i}.jpg": png(i) for i in range(10)}
    pack(tmp_path / "x.zip", files)
    source = pickle.loads(pickle.dumps(small("eurosat", tmp_path, 9, 3).train))
    assert source.read(0) == files[source.name(0)]
    whole = bytearray((tmp_path / "x.zip").read_bytes())
    start = whole.index(source.name(0).encode()) + len(source.name(0))
    whole[start + 20 : start + 40] = bytes(20)
    (tmp_path / "x.zip").write_bytes(whole)
    with pytest.raises(InputError, match=r"damaged in x\.zip"):
        pickle.loads(pickle.dumps(source)).read(0)


def test_tar_without_its_end_is_noted(tmp_path):
    pack(tmp_path / "x.tar", {f"{name}/{name}_{i}.jpg": png(i) for name in ("River", "Forest") for i in range(10)})
    (tmp_path / "x.tar").write_bytes((tmp_path / "x.tar").read_bytes().rstrip(b"\0").ljust(20 * 1024, b"\0"))
    assert "x.tar lacks the mark that ends a tar: it may be cut short" in small("eurosat", tmp_path, 9, 3).notes


def test_missing_library_names_the_extra(tmp_path, monkeypatch):
    write(tmp_path, {"train_32x32.mat": b"", "test.parquet": b"", "train.parquet": b""})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(InputError, match=r"it needs pyarrow; pip install 'vitreous\[vtab\]'"):
        open_task("svhn", tmp_path)
    (tmp_path / "test.parquet").unlink()
    (tmp_path / "train.parquet").unlink()
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(InputError, match=r"it needs scipy; pip install 'vitreous\[vtab\]'"):
        open_task("svhn", tmp_path)


def dump(root: Path, *, one_list: bool = False) -> None:
    """As NOAH's: images in a folder a split, and lists."""
    lines = {"train800": [], "val200": [], "test": []}
    for split, count in (("train800", 800), ("val200", 200), ("test", 30)):
        for i in range(count):
            name = f"images/{split}/{i:06d}.jpg"
            write(root, {name: png(i) if i < 5 else b"x"})
            lines[split].append(f"{name} {(i * 7) % 10}")
    both = lines["train800"] + lines["val200"]
    texts = {"train800val200": both} if one_list else {key: lines[key] for key in ("train800", "val200")}
    for name, part in (texts | {"test": lines["test"]}).items():
        (root / f"{name}.txt").write_text("\n".join(part) + "\n")


@pytest.mark.parametrize("one_list", [False, True])
def test_id_lists_beside_their_images_are_the_official_split(tmp_path, one_list):
    dump(tmp_path, one_list=one_list)
    task = open_task("svhn", tmp_path)
    assert names(task.train) == [f"images/train800/{i:06d}.jpg" for i in range(800)]
    assert names(task.val) == [f"images/val200/{i:06d}.jpg" for i in range(200)]
    assert task.train.labels.tolist() == [(i * 7) % 10 for i in range(800)]
    assert (shown(task.test, 3) == pixels(3)).all()
    assert task.official
    assert task.split.startswith(f"from the id lists {tmp_path}/train800")
    assert "30 images to test on are here, of 26,032" in task.notes


def test_id_lists_of_another_length_are_used_but_not_official(tmp_path):
    dump(tmp_path)
    (tmp_path / "train800.txt").write_text("images/train800/000001.jpg 3\n")
    task = open_task("svhn", tmp_path)
    assert names(task.train) == ["images/train800/000001.jpg"]
    assert not task.official
    assert "with 1 and 200 images: not VTAB-1k's ids" in task.split


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("images/train800/000001.jpg 10\n", "val200.txt line 1 has no label from 0 to 9"),
        ("images/train800/000001.jpg\n", "val200.txt line 1 has no label from 0 to 9"),
        ("images/val200/none.jpg 1\n", "val200.txt line 1: no such file images/val200/none.jpg"),
        ("../other.jpg 1\n", "val200.txt line 1 leads out of"),
        ("\n", "val200.txt is empty"),
        (None, "has only one of train800.txt and val200.txt"),
    ],
)
def test_id_list_that_fits_nothing_is_an_error(tmp_path, text, reason):
    dump(tmp_path)
    (tmp_path / "val200.txt").unlink() if text is None else (tmp_path / "val200.txt").write_text(text)
    with pytest.raises(InputError, match=reason.replace(".", r"\.")):
        open_task("svhn", tmp_path)


def test_id_lists_beside_the_original_pick_its_images_by_key_name_or_end_of_path(tmp_path):
    files = {f"NWPU-RESISC45/{name}/{name}_{i:03d}.jpg": png(i) for name in ("beach", "ship") for i in range(1, 502)}
    pack(tmp_path / "NWPU-RESISC45.zip", files)
    train = [f"ship_{i:03d}.jpg" for i in range(1, 401)] + [f"beach/beach_{i:03d}.jpg 31" for i in range(1, 401)]
    write(tmp_path, {"train800.txt": "\n".join(train).encode(), "test.txt": b"beach/beach_501.jpg\n"})
    write(tmp_path, {"val200.txt": "\n".join(f"/ship/ship_{i:03d}.jpg" for i in range(401, 501)).encode()})
    task = open_task("resisc45", tmp_path)
    assert not task.official  # 100 to validate on
    assert stems(task.train)[399:401] == ["ship_400.jpg", "beach_001.jpg"]
    assert [task.classes[y] for y in task.train.labels[399:401]] == ["ship", "beach"]
    lines = [f"beach_beach_{i:03d}.jpg" for i in range(401, 501)] + [f"ship_{i:03d}.jpg" for i in range(401, 501)]
    write(tmp_path, {"val200.txt": "\n".join(lines).encode(), "test.txt": b"beach/beach_501.jpg\n"})
    task = open_task("resisc45", tmp_path)
    assert task.official
    assert stems(task.val)[0] == "beach_401.jpg"
    assert stems(task.test) == ["beach_501.jpg"]
    write(tmp_path, {"test.txt": b"beach_999.jpg\n"})
    with pytest.raises(InputError, match=r"test\.txt line 1: beach_999\.jpg names no image"):
        open_task("resisc45", tmp_path)


def test_id_list_with_an_ambiguous_name_is_an_error(tmp_path):
    classes, labels = ["a", "b"], np.array([0, 1])
    records = Records(FileSource(tmp_path, ["a/1.jpg", "b/1.jpg"], classes=classes, labels=labels))
    assert listed_records([Line("b/1.jpg", None, "x line 1")], records).tolist() == [1]
    with pytest.raises(InputError, match=r"x line 1: 1\.jpg names several images"):
        listed_records([Line("1.jpg", None, "x line 1")], records)


def test_id_lists_overrule_our_own_draw_between_training_and_test(tmp_path):
    files = {f"101_ObjectCategories/{name}/image_{i:04d}.jpg": png(i) for name in "ab" for i in range(1, 41)}
    write(tmp_path, files | {"train800.txt": "\n".join(f"a/image_{i:04d}.jpg" for i in range(1, 31)).encode()})
    write(tmp_path, {"val200.txt": b"b/image_0001.jpg\n"})
    with pytest.raises(InputError, match=r"need test\.txt beside them"):
        open_task("caltech101", tmp_path)
    write(tmp_path, {"test.txt": "\n".join(f"b/image_{i:04d}.jpg" for i in range(2, 41)).encode()})
    task = open_task("caltech101", tmp_path)
    assert stems(task.train) == [f"image_{i:04d}.jpg" for i in range(1, 31)]
    assert names(task.val) == ["101_ObjectCategories/b/image_0001.jpg"]
    assert stems(task.test) == [f"image_{i:04d}.jpg" for i in range(2, 41)]
    assert task.test.labels.tolist() == [1] * 39
    assert (shown(task.test, 4) == pixels(6)).all()
    write(tmp_path, {"test.txt": b"b/image_0001.jpg\n"})
    with pytest.raises(InputError, match=r"name images of the test set"):
        open_task("caltech101", tmp_path)


def test_class_folders_with_splits_are_read_and_drawn_from(tmp_path):
    for split, count in (("train", 10), ("validation", 4), ("test", 3)):
        write(tmp_path, {f"{split}/{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(count)})
    task = small("pets", tmp_path, 15, 5)
    assert task.classes == ("cat", "dog")
    assert len(set(names(task.train))) == 15
    assert all(name.startswith("validation/") for name in names(task.val))
    assert len(task.test) == 6
    assert (shown(task.test, 1) == pixels(1)).all()
    assert not task.official
    assert task.split == "drawn here with seed 0: not the official ids"
    assert "2 classes are here, of 37" in task.notes
    with pytest.raises(InputError, match="it holds 20 images to train on; VTAB takes 800 and 200"):
        open_task("pets", tmp_path)


def test_validation_images_come_from_the_training_split_where_there_is_no_other(tmp_path):
    for split in ("train", "test"):
        write(tmp_path, {f"{split}/{name}/{i}.png": png(i) for name in ("cat", "dog") for i in range(10)})
    task = small("pets", tmp_path, 15, 5)
    assert sorted([*names(task.train), *names(task.val)]) == sorted(
        f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(10)
    )
    assert names(open_task("pets", tmp_path, seed=1, num_train=15, num_val=5).train) != names(task.train)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("texts", [False, True])
def test_parquet_is_read_with_bytes_or_structs_and_numbers_or_names(tmp_path, nested, texts):
    def save(file: str, rows: range) -> None:
        images = [{"bytes": png(i), "path": None} if nested else png(i) for i in rows]
        labels = [("cat", "dog")[i % 2] if texts else i % 10 for i in rows]
        pyarrow.parquet.write_table(pa.table({"image": images, "label": labels}), tmp_path / file, row_group_size=4)

    save("train-00000-of-00002.parquet", range(10))
    save("train-00001-of-00002.parquet", range(10, 20))
    save("validation-00000-of-00001.parquet", range(20, 26))
    save("test.parquet", range(30, 37))
    task = small("svhn", tmp_path, 12, 4)
    for source in (task.train, task.val, task.test):
        assert (shown(source, 2) == pixels(int(names(source)[2].split("/")[1]) + offset(names(source)[2]))).all()
    seeds = [int(name.split("/")[1]) + offset(name) for name in names(task.train)]
    if texts:
        assert [task.classes[y] for y in task.train.labels] == [("cat", "dog")[i % 2] for i in seeds]
    else:
        assert task.train.labels.tolist() == [i % 10 for i in seeds]
        assert len(task.classes) == 10
    assert not task.official


def offset(name: str) -> int:
    return {"train-00000-of-00002": 0, "validation-00000-of-00001": 20, "test": 30}[name.split("/")[0]]


def test_parquet_without_a_split_or_a_column_or_cut_short_is_an_error(tmp_path):
    good = pa.table({"image": [png(0)], "label": [1]})
    pyarrow.parquet.write_table(good, tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"holds no test split; name its files test-\*\.parquet"):
        small("svhn", tmp_path, 1, 1)
    pyarrow.parquet.write_table(pa.table({"img": [png(0)], "label": [1]}), tmp_path / "test.parquet")
    pyarrow.parquet.write_table(pa.table({"image": [png(0), png(1)], "label": [1, 10]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"has the label 10; SVHN has 0 to 9"):
        small("svhn", tmp_path, 1, 1)
    (tmp_path / "test.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"test\.parquet is no whole parquet file"):
        small("svhn", tmp_path, 1, 1)


@pytest.mark.parametrize("name", list(TASKS))
def test_empty_folder_says_which_files_of_which_task_are_needed_and_where_they_are_from(tmp_path, name):
    with pytest.raises(InputError) as caught:
        open_task(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{TASKS[name].title} of VTAB: {tmp_path}")
    assert TASKS[name].files in message
    assert TASKS[name].url in message
    assert "\n" not in message
