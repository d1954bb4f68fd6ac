import pickle

import numpy as np
import pytest
from sklearn.preprocessing import MultiLabelBinarizer

from pictures import encoded, noise, packed, write
from vitreous import distributed
from vitreous.console import Console
from vitreous.data.data_config import DataConfig
from vitreous.data.duplicates import find_duplicates
from vitreous.data.label_sets import LabelSets
from vitreous.data.layouts import open_data
from vitreous.data.loader import training_batches
from vitreous.data.pack import pack
from vitreous.data.pack_shard import Settings
from vitreous.data.prepare import prepare, recall
from vitreous.data.source import Source
from vitreous.data.views import TrainView
from vitreous.errors import InputError

SHOWN = [("cat", "dog"), ("dog",), (), ("emu", "cat"), ("dog", "cat"), ("emu",)]
TEXTS = ["cat | dog", "dog", "", "cat | emu", "cat | dog", "emu"]


def texts(source: Source) -> list[str]:
    return [source.label(i) for i in range(len(source))]


@pytest.fixture
def csv(tmp_path):
    lines = [f"{i}.png,{'; '.join(names)}" for i, names in enumerate(SHOWN)]
    files = {f"{i}.png": encoded(noise(i)) for i in range(len(SHOWN))}
    return write(files | {"list.csv": "\n".join(["image,label", *lines]).encode()}, tmp_path) / "list.csv"


def jsonl(names: tuple[str, ...], i: int) -> str:
    return f'{{"image": "{i}.png", "labels": {list(names)}}}'.replace("'", '"')


def columns(names: tuple[str, ...], i: int) -> str:
    return f"{i}.png,{','.join(str(int(name in names)) for name in ('emu', 'cat', 'dog'))},a word"


def test_every_form_of_a_list_says_the_same(csv):
    lists = {
        "list.jsonl": [jsonl(names, i) for i, names in enumerate(SHOWN)],
        "bars.tsv": ["file\ttags", *(f"{i}.png\t{'|'.join(names)}" for i, names in enumerate(SHOWN))],
        "columns.csv": ["id,emu,cat,dog,note", *(columns(names, i) for i, names in enumerate(SHOWN))],
    }
    write({name: "\n".join(lines).encode() for name, lines in lists.items()}, csv.parent)
    for name in ("list.csv", *lists):
        train = open_data(str(csv.parent / name)).train
        assert train.multi_label
        assert train.classes == ("cat", "dog", "emu")
        assert texts(train) == TEXTS
    assert open_data(str(csv)).notes == ["cells of label hold several classes with ; between"]
    assert "columns that are not used: note" in open_data(str(csv.parent / "columns.csv")).notes


def test_columns_of_which_one_alone_is_1_are_classes_that_exclude_one_another(csv):
    write({"one.csv": b"image,cat,Dog\n0.png,1,0\n1.png,0,1\n2.png,0,1.0\n"}, csv.parent)
    train = open_data(str(csv.parent / "one.csv")).train
    assert not train.multi_label
    assert (train.classes, train.labels.tolist()) == (("cat", "Dog"), [0, 1, 1])


def test_a_webdataset_may_hold_lists_of_labels(tmp_path):
    files = {f"{i}.json": f'{{"label": {list(names)}}}'.replace("'", '"').encode() for i, names in enumerate(SHOWN)}
    packed({f"{i}.png": encoded(noise(i)) for i in range(len(SHOWN))} | files, tmp_path / "train.tar")
    for place in (tmp_path, tmp_path / "train.tar"):
        assert texts(open_data(str(place)).train) == TEXTS


def test_the_matrix_of_sets_is_sklearns(csv):
    train = open_data(str(csv)).train
    expected = MultiLabelBinarizer(classes=train.classes).fit_transform(SHOWN)
    assert np.array_equal(train.targets(train.labels), expected)
    assert train.targets(train.labels).dtype == np.float32
    assert np.array_equal(train.class_counts(), expected.sum(axis=0))
    some = pickle.loads(pickle.dumps(train.select([4, 2, 4])))
    assert np.array_equal(some.targets(some.labels), expected[[4, 2, 4]])
    assert np.array_equal(some.class_counts(), expected[[4, 2, 4]].sum(axis=0))
    assert train.targets(np.array([0, -1])) is None


def test_classes_are_matched_by_name(csv):
    train = open_data(str(csv)).train
    other = train.with_classes(("ape", "emu", "dog", "cat"))
    assert [set(text.split(" | ")) for text in texts(other)] == [set(text.split(" | ")) for text in TEXTS]
    assert other.class_counts().tolist() == [0, 2, 3, 3]
    with pytest.raises(InputError, match="have 1 class that training images do not: emu"):
        train.with_classes(("cat", "dog"))
    assert texts(train.select([0, 1]).with_classes(("dog", "cat"))) == ["dog | cat", "dog"]


def test_images_of_one_class_each_may_be_measured_beside_sets_but_not_the_other_way_round(csv):
    write({"val.csv": b"image,label\n0.png,emu\n1.png,dog\n2.png,cat\n"}, csv.parent)
    val = csv.parent / "val.csv"
    splits = open_data(str(csv), val=str(val))
    assert texts(splits.val) == ["emu", "dog", "cat"]
    assert texts(splits.train) == TEXTS
    digests = {name: np.array([b"1", b"2"]) for name in ("train", "val")}
    labels = {"train": splits.train.labels[[5, 0]], "val": splits.val.labels[:2]}
    assert find_duplicates(digests, labels).across_classes == [
        [("train", 1), ("val", 1)]
    ]  # equal sets are equal labels
    with pytest.raises(InputError, match="show several classes, the training images one each; give one kind"):
        open_data(str(val), val=str(csv))


def test_a_pack_holds_the_sets_and_reads_without_its_index_too(csv, tmp_path):
    folder = tmp_path / "shards"
    packed_data = pack(str(csv), folder, settings=Settings(shard_bytes=2_500), console=Console(quiet=True))
    assert len(packed_data.index.shards) > 1
    assert texts(open_data(str(folder)).train) == TEXTS
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (folder / "train-000001.tar").unlink()
    pack(str(csv), folder, settings=Settings(shard_bytes=2_500), console=Console(quiet=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "vitreous-index.npz").unlink()
    (folder / "classes.txt").unlink()
    assert texts(open_data(str(folder)).train) == TEXTS


def test_damaged_sets_in_an_index_are_refused(csv, tmp_path):
    folder = tmp_path / "shards"
    index = pack(str(csv), folder, settings=Settings(), console=Console(quiet=True)).index
    for members, ends in ((index.sets.members + 9, index.sets.ends), (index.sets.members, index.sets.ends[::-1])):
        object.__setattr__(index, "sets", LabelSets(members, ends=ends))
        (folder / "vitreous-index.npz").write_bytes(index.encoded())
        with pytest.raises(InputError, match="label sets"):
            open_data(str(folder))


def test_unlabelled_images_are_packed_and_prepared(tmp_path):
    write({f"{i}.png": encoded(noise(i)) for i in range(10)}, tmp_path / "flat")
    pack(str(tmp_path / "flat"), tmp_path / "shards", settings=Settings(), console=Console(quiet=True))
    for place in (tmp_path / "flat", tmp_path / "shards"):
        data = prepare(DataConfig(path=str(place)))
        assert (data.classes, len(data.train), len(data.test)) == ((), 8, 2)
        assert data.summary["images"] == {"train": 8, "test": 2}
        batches = training_batches(data.train, TrainView(image_size=8), batch_size=4, seed=0, first_step=0, steps=1)
        assert next(batches).labels is None


def test_equal_images_with_other_sets_leave_training(csv):
    lines = ["image,label", *(f"{i}.png,{'; '.join(names)}" for i, names in enumerate(SHOWN * 4))]
    files = {f"{i}.png": encoded(noise(i)) for i in range(24)} | {
        "7.png": encoded(noise(6)),
        "18.png": encoded(noise(12)),
    }
    write(files | {"list.csv": "\n".join(lines).encode()}, csv.parent)  # 6 and 7 differ, 12 and 18 do not
    data = prepare(DataConfig(path=str(csv)))
    assert {(image.name, image.label) for image in data.excluded} == {("6.png", "cat | dog"), ("7.png", "dog")}
    assert data.summary["duplicates"]["across_classes"]["count"] == 1
    assert data.summary["duplicates"]["within"]["count"] == 1
    assert sum(data.summary["images"].values()) == 22
    record = {"data": data.summary, "data_fingerprint": data.fingerprint, "data_stamp": data.stamp}
    again = recall(DataConfig(path=str(csv)), split_csv=data.split_csv(), record=record)
    assert texts(again.train) == texts(data.train)
    lines[1] = "0.png,cat"
    csv.write_text("\n".join(lines))
    assert recall(DataConfig(path=str(csv)), split_csv=data.split_csv(), record=record) is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_bear_a_row_of_classes_for_each_image(csv, num_workers):
    train = open_data(str(csv)).train
    view = TrainView(image_size=8)
    batch = next(training_batches(train, view, batch_size=6, seed=0, first_step=0, steps=1, num_workers=num_workers))
    assert batch.labels.device == distributed.start(device="cpu").device
    assert np.array_equal(batch.labels.numpy(), train.targets(train.labels[batch.index.numpy()]))
