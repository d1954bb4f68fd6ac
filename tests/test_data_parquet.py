"""Parquet, as the Hub writes it."""

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vitreous.data import parquet_rows
from vitreous.data.data_config import DataConfig
from vitreous.data.decode import BadImage
from vitreous.data.layouts import open_data, open_held_out
from vitreous.data.parquet import ParquetSource, list_parquet
from vitreous.data.prepare import prepare
from vitreous.errors import InputError

HUB_IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def png(value: int, side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (value % 256, value // 256 % 256, 7)).save(file, "PNG")
    return file.getvalue()


def cells(data: list[bytes | None]) -> pa.Array:
    return pa.array([None if d is None else {"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)], HUB_IMAGE)


def class_label(names: list[str]) -> dict:
    return {"names": names, "_type": "ClassLabel"}


def hub_table(columns: dict, features: dict | None = None) -> pa.Table:
    """A table with the metadata that the `datasets` library writes beside it."""
    table = pa.table(columns)
    if features is None:
        return table
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path, images: list, labels, *, features: dict | None = None, rows: int = 100, **names) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        names.get("image", "image"): images if isinstance(images, pa.Array) else cells(images),
        names.get("label", "label"): labels,
    }
    pq.write_table(hub_table(columns, features), path, row_group_size=rows)


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        open_data(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def hub(tmp_path):
    """Five images of each of two classes to train on, in two files, and splits with the Hub's names."""
    features = {"image": {"_type": "Image"}, "label": class_label(["zebra", "ape"])}
    for file, first in enumerate((0, 5)):
        images, labels = [png(i) for i in range(first, first + 5)], [i % 2 for i in range(first, first + 5)]
        write(tmp_path / f"data/train-{file:05d}-of-00002.parquet", images, labels, features=features, rows=2)
    write(tmp_path / "data/validation-00000-of-00001.parquet", [png(300), png(301)], [0, 1], features=features)
    write(tmp_path / "data/test-00000-of-00001.parquet", [png(400), png(401)], [-1, 1], features=features)
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "banner.png").write_bytes(png(1))
    return tmp_path


def test_a_folder_of_the_hub_comes_with_its_splits_labels_and_class_names(hub):
    splits = open_data(str(hub))
    assert splits.train.classes == ("zebra", "ape")  # the order of the labels, not of the alphabet
    assert {name: len(source) for name, source in splits.named().items()} == {"train": 10, "val": 2, "test": 1}
    assert splits.train.labels.tolist() == [0, 1] * 5
    assert [splits.train.read(i) for i in range(10)] == [png(i) for i in range(10)]
    assert splits.train.name(7) == "data/train-00001-of-00002.parquet#2"
    assert "rows without a label are not used: 1 of test" in splits.notes
    assert splits.test.read(0) == png(401)


def test_rows_are_those_that_pyarrow_reads_on_real_photos(shared, tmp_path):
    with tarfile.open(shared / "data" / "imagenette224" / "imagenette224_val.tar") as tar:
        photos = [(tar.extractfile(member).read(), member.name.split("/")[1]) for member, _ in zip(tar, range(300))]
    images, labels = map(list, zip(*photos))
    for file in range(2):
        part = slice(150 * file, 150 * file + 150)
        write(tmp_path / f"train-{file:05d}-of-00002.parquet", images[part], labels[part], rows=64)
    source = open_data(str(tmp_path)).train
    whole = pa.concat_tables([pq.read_table(path) for path in sorted(tmp_path.glob("*.parquet"))])
    theirs = [row["bytes"] for row in whole["image"].to_pylist()]
    order = np.random.default_rng(0).permutation(300)
    assert [source.read(i) for i in order] == [theirs[i] for i in order]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, order.tolist())) == [theirs[i] for i in order]
    assert [source.classes[label] for label in source.labels] == whole["label"].to_pylist()
    assert source.image(3).size == (224, 224)
    prepared = prepare(DataConfig(path=str(tmp_path)))
    assert prepared.summary["formats"] == {"JPEG": 300}


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_need_no_struct_and_labels_may_be_words(tmp_path, kind):
    images = pa.array([png(0), png(1), png(2)], kind)
    write(tmp_path / "photos.parquet", images, ["class 10", "class 9", "class 10"], image="img", label="target")
    source = open_data(str(tmp_path / "photos.parquet")).train
    assert source.classes == ("class 9", "class 10")
    assert [source.read(i) for i in range(3)] == [png(0), png(1), png(2)]


def test_labels_may_be_categories_and_truth_values(tmp_path):
    words = pa.array(["b", "a", "b"]).dictionary_encode()
    write(tmp_path / "a.parquet", [png(0), png(1), png(2)], words)
    assert open_data(str(tmp_path / "a.parquet")).train.labels.tolist() == [1, 0, 1]
    write(tmp_path / "b.parquet", [png(0), png(1), png(2)], [True, False, True])
    assert open_data(str(tmp_path / "b.parquet")).train.classes == ("False", "True")


def test_files_that_number_their_classes_differently_are_matched_by_name(tmp_path):
    for file, names in enumerate((["ape", "bee"], ["bee", "cow"])):
        write(
            tmp_path / f"train-{file}.parquet",
            [png(2 * file), png(2 * file + 1)],
            [0, 1],
            features={"label": class_label(names)},
        )
    source = open_data(str(tmp_path)).train
    assert [source.classes[label] for label in source.labels] == ["ape", "bee", "bee", "cow"]


def test_classes_of_one_name_stay_two(tmp_path):
    features = {"label": class_label(["crane", "ape", "crane"])}
    write(tmp_path / "a.parquet", [png(0), png(1), png(2)], [0, 1, 2], features=features)
    assert open_data(str(tmp_path / "a.parquet")).train.classes == ("crane (0)", "ape", "crane (2)")


def test_columns_are_found_by_the_hubs_types_then_by_their_names(tmp_path):
    columns = {
        "id": [1, 2, 3],
        "thumb": cells([png(7), png(7), png(7)]),
        "img": cells([png(0), png(1), png(2)]),
        "coarse_label": [0, 0, 1],
        "fine_label": [0, 1, 1],
    }
    features = {"coarse_label": class_label(["x", "y"]), "fine_label": class_label(["u", "v"])}
    pq.write_table(hub_table(columns, features), tmp_path / "a.parquet")
    splits = open_data(str(tmp_path / "a.parquet"))
    assert splits.train.labels.tolist() == [0, 1, 1]
    assert splits.train.read(2) == png(2)
    assert splits.notes == ["labels are those of fine_label, not of coarse_label"]


def test_a_sole_column_of_either_kind_needs_no_known_name(tmp_path):
    write(tmp_path / "a.parquet", [png(0), png(1), png(2)], [4, 5, 4], image="scan", label="species")
    assert open_data(str(tmp_path / "a.parquet")).train.classes == ("4", "5")


def test_columns_that_cannot_be_told_are_named(tmp_path):
    table = {"a": cells([png(0), png(1)]), "b": cells([png(0), png(1)]), "label": [0, 1]}
    pq.write_table(pa.table(table), tmp_path / "two.parquet")
    assert "several columns that may hold images (a, b); call the right one image" in refusal(tmp_path / "two.parquet")
    pq.write_table(pa.table({"image": cells([png(0)]), "p": [0], "q": ["x"]}), tmp_path / "three.parquet")
    assert "several columns that may hold labels (p, q)" in refusal(tmp_path / "three.parquet")
    pq.write_table(pa.table({"url": ["http://a/b.png"], "label": [1]}), tmp_path / "none.parquet")
    assert "no column of images; call the right one image; its columns are url (string), label (int64)" in refusal(
        tmp_path / "none.parquet"
    )
    pq.write_table(pa.table({"image": cells([png(0)]), "score": [0.5]}), tmp_path / "score.parquet")
    assert open_data(str(tmp_path / "score.parquet")).train.labels.tolist() == [-1]
    assert open_data(str(tmp_path / "score.parquet")).notes == ["no column holds labels"]
    pq.write_table(pa.table({"image": cells([png(0)] * 3), "image_id": [5, 6, 7]}), tmp_path / "ids.parquet")
    assert "image_id differs in every row, so it is no label" in refusal(tmp_path / "ids.parquet")


@pytest.mark.parametrize("form", ["Sequence", "List", "plain"])
def test_a_list_of_labels_says_all_that_an_image_shows(tmp_path, form):
    inner = class_label(["ape", "bee", "cow"])
    features = {"labels": [inner] if form == "plain" else {"feature": inner, "_type": form}}
    write(
        tmp_path / "a.parquet",
        [png(i) for i in range(5)],
        [[2, 0], [], None, [1], [0, 2]],
        label="labels",
        features=features,
    )
    splits = open_data(str(tmp_path / "a.parquet"))
    assert [splits.train.label(i) for i in range(4)] == ["ape | cow", "", "bee", "ape | cow"]
    assert splits.train.class_counts().tolist() == [2, 1, 2]
    assert splits.notes == ["rows without a label are not used: 1 of all"]
    write(tmp_path / "b.parquet", [png(0), png(1)], [[0, 7], [1]], label="labels", features=features)
    assert "row 0: label [0, 7] is none of the 3 classes" in refusal(tmp_path / "b.parquet")


def test_lists_of_words_are_numbered_over_all_files(tmp_path):
    write(tmp_path / "train-0.parquet", [png(0), png(1)], [["cow", "ape"], ["cow"]], label="tags")
    write(tmp_path / "train-1.parquet", [png(2), png(3)], [["bee"], ["ape", "cow"]], label="tags")
    train = open_data(str(tmp_path)).train
    assert train.classes == ("ape", "bee", "cow")
    assert [train.label(i) for i in range(4)] == ["ape | cow", "cow", "bee", "ape | cow"]
    assert train.labels[0] == train.labels[3]


def test_images_beside_the_parquet_are_found_by_their_path_and_none_elsewhere(tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    for i in range(2):
        (tmp_path / "set" / "images" / f"{i}.png").write_bytes(png(i))
    (tmp_path / "secret.png").write_bytes(png(9))
    paths = ["images/0.png", "images/1.png", "../secret.png", str(tmp_path / "secret.png"), "images/gone.png"]
    images = pa.array([{"bytes": None, "path": path} for path in paths], HUB_IMAGE)
    write(tmp_path / "set" / "a.parquet", images, [0, 1, 0, 1, 0])
    source = open_data(str(tmp_path / "set" / "a.parquet")).train
    assert [source.read(i) for i in range(2)] == [png(0), png(1)]
    for i, reason in ((2, "leads out of the folder"), (3, "leads out of the folder"), (4, "no such file")):
        with pytest.raises(BadImage, match=reason):
            source.read(i)
    assert source.stamp() is None  # those files may change unseen
    only = pa.array([{"path": path} for path in paths[:2]], pa.struct({"path": pa.string()}))
    write(tmp_path / "set" / "b.parquet", only, [0, 1])
    source = open_data(str(tmp_path / "set" / "b.parquet")).train
    assert source.read(1) == png(1)
    assert source.stamp() is None


def test_a_bad_cell_costs_one_image(tmp_path):
    data = [png(0), None, b"", b"no image", png(4)[:-40], png(5), png(6), png(7)]
    images = pa.array([None if d is None else {"bytes": d, "path": None} for d in data], HUB_IMAGE)
    write(tmp_path / "a.parquet", images, [0, 1, 0, 1, 0, 1, 0, 1])
    prepared = prepare(DataConfig(path=str(tmp_path / "a.parquet"), allow_bad=True))
    reasons = {file.name: file.reason for file in prepared.bad}
    assert reasons["a.parquet#1"] == "the row holds no image"
    assert reasons["a.parquet#2"] == "empty file"
    assert reasons["a.parquet#3"] == "not an image (text)"
    assert len(reasons) == 4


def test_labels_without_a_class_are_named_or_left_out(tmp_path):
    features = {"label": class_label(["a", "b"])}
    write(tmp_path / "a.parquet", [png(0), png(1), png(2)], [0, 7, 1], features=features)
    assert "a.parquet row 1: label 7 is none of the 2 classes" in refusal(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", [png(0), png(1), png(2)], pa.array([0, None, 1]))
    splits = open_data(str(tmp_path / "b.parquet"))
    assert [splits.train.read(i) for i in range(2)] == [png(0), png(2)]
    assert splits.notes == ["rows without a label are not used: 1 of all"]


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    write(tmp_path / "good.parquet", [png(i) for i in range(50)], [i % 2 for i in range(50)])
    whole = (tmp_path / "good.parquet").read_bytes()
    damage = {
        "cut": whole[:-100],
        "headless": whole[:200],
        "empty": b"",
        "text": b"hello" * 100,
        "magic": whole[:-4] + b"PAR2",
    }
    for name, data in damage.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(data)
        assert f"{path} is no whole parquet file" in refusal(path)
    write(tmp_path / "nothing.parquet", [], pa.array([], pa.int64()))
    assert "has no rows" in refusal(tmp_path / "nothing.parquet")


def test_flipped_bytes_end_in_a_line_or_a_bad_image(tmp_path):
    path, random = tmp_path / "a.parquet", np.random.default_rng(0)
    write(
        path,
        [png(i) for i in range(40)],
        [i % 2 for i in range(40)],
        features={"label": class_label(["a", "b"])},
        rows=10,
    )
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    outcomes = {"refused": 0, "bad": 0, "read": 0}
    for _ in range(300):
        damaged = whole.copy()
        damaged[random.integers(len(whole), size=3)] = random.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        try:
            source = open_data(str(path)).train
        except InputError as error:
            outcomes["refused"] += str(error).count("\n") == 0
            continue
        for i in range(len(source)):
            try:
                source.image(i)
                outcomes["read"] += 1
            except BadImage:
                outcomes["bad"] += 1
    assert min(outcomes.values()) > 0


def test_a_claim_of_more_rows_than_bytes_is_refused(tmp_path):
    images = pa.array([None] * 1_000_000, HUB_IMAGE)
    write(tmp_path / "a.parquet", images, pa.array([0] * 1_000_000), rows=1_000_000)
    assert "claims 1,000,000 rows in" in refusal(tmp_path / "a.parquet")


def test_a_row_group_that_unpacks_without_bound_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_GROUP_BYTES", 1_000_000)
    write(tmp_path / "a.parquet", [png(0) + bytes(100_000)] * 900, [0, 1] * 450, rows=1000)  # one in the dictionary
    source = open_data(str(tmp_path / "a.parquet")).train
    with pytest.raises(BadImage, match="unpacks to more than 1 MB"):
        source.read(0)


def test_a_row_group_too_large_to_read_for_one_image_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("vitreous.data.parquet.MAX_GROUP_BYTES", 1000)
    write(tmp_path / "a.parquet", [png(i) for i in range(60)], [0, 1] * 30, rows=60)
    assert "write it again with row groups of 100 rows" in refusal(tmp_path / "a.parquet")


def test_memory_stays_within_its_bound_and_pickles_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "KEPT_BYTES", 1_000_000)
    random = np.random.default_rng(0)
    write(tmp_path / "a.parquet", [random.bytes(10_000) for _ in range(2000)], [0, 1] * 1000, rows=20)
    source = open_data(str(tmp_path / "a.parquet")).train
    before, most = pa.total_allocated_bytes(), 0
    for i in random.permutation(2000)[:300].tolist():
        assert len(source.read(i)) == 10_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 3_000_000  # of 20 MB
    again = pickle.loads(pickle.dumps(source))
    assert again.read(5) == source.read(5)
    assert len(pickle.dumps(source)) < 2000 * 16 + 5000


def test_its_stamp_changes_with_its_files(tmp_path):
    write(tmp_path / "a.parquet", [png(0), png(1)], [0, 1])
    stamp = open_data(str(tmp_path / "a.parquet")).train.stamp()
    assert stamp == open_data(str(tmp_path / "a.parquet")).train.stamp() is not None
    write(tmp_path / "a.parquet", [png(0), png(1), png(2)], [0, 1, 1])
    assert open_data(str(tmp_path / "a.parquet")).train.stamp() != stamp


def test_one_file_is_data_in_one_piece_whatever_its_name(tmp_path):
    write(tmp_path / "test-00000-of-00002.parquet", [png(0), png(1)], [0, 1])
    assert list(open_data(str(tmp_path / "test-00000-of-00002.parquet")).named()) == ["train"]
    assert open_held_out(str(tmp_path / "test-00000-of-00002.parquet"))[0] == "all"


def test_files_that_did_not_come_are_noted(tmp_path):
    write(tmp_path / "train-00000-of-00003.parquet", [png(0), png(1)], [0, 1])
    assert list_parquet(tmp_path).notes == ["only 1 of the 3 files train-*.parquet are here"]


def test_folders_above_tell_the_split_and_configurations_are_not_mixed(tmp_path):
    for config in ("coarse", "fine"):
        for split in ("train", "test"):
            write(tmp_path / config / split / "0000.parquet", [png(0), png(1)], [0, 1])
    assert "holds several sets in parquet: coarse, fine; give one, such as" in refusal(tmp_path)
    assert list(open_data(str(tmp_path / "fine")).named()) == ["train", "test"]


def test_a_table_beside_class_folders_does_not_hide_them(photos, tmp_path):
    for folder in photos.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    write(tmp_path / "predictions.parquet", [png(0), png(1)], [0, 1])
    assert not isinstance(open_data(str(tmp_path)).train, ParquetSource)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", [png(0), png(1)], [0, 1])
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert "pip install 'vitreous[data]'" in refusal(tmp_path / "a.parquet")
