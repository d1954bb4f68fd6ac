import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import bomb, class_folders, encoded, noise, packed, smooth, write
from vitreous import files
from vitreous.data import named
from vitreous.data.data_config import DataConfig
from vitreous.data.duplicates import find_duplicates
from vitreous.data.joined import JoinedSource
from vitreous.data.listing import Splits
from vitreous.data.prepare import BadData, Prepared, prepare, recall, reopen
from vitreous.data.source import ArraySource, Source
from vitreous.data.split import stratified
from vitreous.errors import InputError


def prepared(path, **options) -> Prepared:
    return prepare(DataConfig(path=str(path), **options))


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def excluded(data: Prepared) -> dict[str, str]:
    return {image.name: image.note for image in data.excluded}


# What is found


def test_the_summary_counts_what_is_there(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(
        {
            "train/cat/turned.jpg": encoded(smooth(64, 32), "JPEG", exif=exif),
            "train/cat/grey.png": encoded(noise(1).convert("L")),
            "train/dog/wide.gif": encoded(noise(2, width=100, height=7), "GIF"),
            "train/dog/b.png": encoded(noise(3)),
            "val/cat/a.png": encoded(noise(4)),
            "val/dog/a.png": encoded(noise(5)),
            "val/dog/broken.png": b"",
        },
        tmp_path,
    )
    data = prepared(tmp_path, allow_bad=True)
    summary = data.summary
    assert summary["path"] == str(tmp_path)
    assert summary["num_images"] == 6
    assert summary["splits"] == {"train": {"cat": 2, "dog": 2}, "val": {"cat": 1, "dog": 1}}
    assert summary["classes"] == ["cat", "dog"]
    assert summary["sizes"] == {
        "width": {"min": 12, "median": 12.0, "max": 100},
        "height": {"min": 7, "median": 10.0, "max": 64},
    }
    assert summary["formats"] == {"PNG": 4, "JPEG": 1, "GIF": 1}
    assert summary["modes"] == {"RGB": 4, "L": 1, "P": 1}
    assert summary["rotated"] == 1
    broken = {"name": "val/dog/broken.png", "split": "val", "reason": "empty file"}
    assert summary["bad"] == {"count": 1, "first": [broken]}
    assert json.loads(json.dumps(summary)) == summary
    assert data.held_out == ("val", data.val)


def test_splits_that_exist_are_kept_and_test_is_reported(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / split, each=3, first_seed=10 * seed)
    data = prepared(tmp_path)
    assert data.held_out == ("test", data.test)
    assert {name: len(source) for name, source in zip("abc", (data.train, data.val, data.test))} == dict.fromkeys(
        "abc", 6
    )


def test_progress_ends_at_the_number_of_images(tmp_path):
    calls = []
    prepare(DataConfig(path=str(class_folders(tmp_path, each=70))), progress=lambda *call: calls.append(call))
    assert calls == [(64, 140), (128, 140), (140, 140)]


def test_unreadable_files_of_every_kind_are_set_aside_with_their_reason(tmp_path):
    class_folders(tmp_path)
    cmyk = encoded(Image.new("CMYK", (9, 9)), "JPEG")
    write({"cat/html.jpg": b"<html>", "cat/half.png": encoded(noise())[:99], "dog/cmyk.png": cmyk}, tmp_path)
    write(
        {"cat/zero.jpg": b"", "dog/bomb.png": bomb(), "dog/notes.txt": b"hello", "dog/x.json": b"{}"},
        tmp_path,
    )
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "gone.jpg").symlink_to("nowhere")
    data = prepared(tmp_path, allow_bad=True)
    assert {file.name: file.reason for file in data.bad} == {
        "cat/html.jpg": "not an image (HTML document)",
        "cat/half.png": "truncated after 99 bytes",
        "cat/zero.jpg": "empty file",
        "cat/pipe.jpg": "not a regular file",
        "cat/gone.jpg": "broken link",
        "dog/bomb.png": "50000 x 40000 = 2000 MP is over the limit of 50 MP",
        "dog/notes.txt": "not an image (text)",
        "dog/x.json": "not an image (JSON text)",
    }
    assert sorted(names(data.train) + names(data.test)) == sorted(
        [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(5)] + ["dog/cmyk.png"]
    )


def test_more_than_a_hundredth_unreadable_stops_and_lists_them(tmp_path):
    class_folders(tmp_path, each=49)
    write({"cat/zero.jpg": b""}, tmp_path)
    assert len(prepared(tmp_path, max_bad_ratio=0.02).bad) == 1
    assert len(prepared(write({"cat/z.png": encoded(noise(200))}, tmp_path)).bad) == 1  # exactly a hundredth
    write({"dog/html.jpg": b"<html>"}, tmp_path)
    with pytest.raises(BadData) as error:
        prepared(tmp_path)
    assert str(error.value) == (
        "2 of 101 files give no image "
        "(cat/zero.jpg: empty file; dog/html.jpg: not an image (HTML document)); "
        "repair or remove them, or go on without by --allow-bad (train: --data.allow_bad true)"
    )
    assert [file.name for file in error.value.bad] == ["cat/zero.jpg", "dog/html.jpg"]
    assert len(prepared(tmp_path, allow_bad=True).bad) == 2


def test_nothing_readable_is_an_error_even_when_bad_files_are_allowed(tmp_path):
    with pytest.raises(BadData, match="2 of 2 files give no image"):
        prepared(write({"cat/1.jpg": b"", "dog/1.jpg": b""}, tmp_path), allow_bad=True)


def test_a_class_without_a_usable_image_is_named(tmp_path):
    class_folders(tmp_path / "flat")
    with pytest.raises(InputError, match="class emu is left without a usable training image"):
        prepared(write({"emu/1.jpg": b""}, tmp_path / "flat"), allow_bad=True)
    class_folders(tmp_path / "split/train", ("cat", "dog"))
    write({"train/emu/1.jpg": b"", "val/cat/1.png": encoded(noise(99))}, tmp_path / "split")
    with pytest.raises(InputError, match="class emu is left"):
        prepared(tmp_path / "split", allow_bad=True)


def test_a_split_without_a_usable_image_is_named(tmp_path):
    class_folders(tmp_path / "train")
    write({"val/cat/1.jpg": b""}, tmp_path)
    with pytest.raises(InputError, match="no image of val is usable"):
        prepared(tmp_path, allow_bad=True)


def test_looking_at_data_needs_no_torch():
    code = "import sys, vitreous.data.prepare; assert not {'torch', 'torchvision', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Copies


def test_copies_of_held_out_images_leave_training(tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        class_folders(tmp_path / split, each=3, first_seed=10 * seed)
    write({"train/cat/as-val.png": encoded(noise(10)), "train/cat/as-test.png": encoded(noise(20))}, tmp_path)
    write({"val/dog/as-test.png": encoded(noise(23))}, tmp_path)
    data = prepared(tmp_path)
    assert excluded(data) == {
        "train/cat/as-val.png": "same image in val",
        "train/cat/as-test.png": "same image in test",
        "val/dog/as-test.png": "same image in test",
    }
    assert (len(data.train), len(data.val), len(data.test)) == (6, 6, 6)
    found = data.summary["duplicates"]["across_splits"]
    assert found["count"] == 3
    assert found["first"][0] == [
        {"split": "train", "name": "train/cat/as-test.png"},
        {"split": "test", "name": "test/cat/0.png"},
    ]


def test_copies_within_a_split_are_kept_and_reported(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", first_seed=50)
    write({"train/cat/copy.png": encoded(noise(0))}, tmp_path)
    data = prepared(tmp_path)
    assert len(data.train) == 11
    assert data.summary["duplicates"]["within"]["count"] == 1
    assert data.excluded == []


def test_training_images_with_two_labels_are_left_out_and_held_out_ones_stay(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", first_seed=50)
    write({"train/dog/as-cat.png": encoded(noise(0)), "val/dog/as-cat.png": encoded(noise(50))}, tmp_path)
    data = prepared(tmp_path)
    assert excluded(data) == dict.fromkeys(("train/cat/0.png", "train/dog/as-cat.png"), "same image with another label")
    assert data.summary["duplicates"]["across_classes"]["count"] == 2
    assert (len(data.train), len(data.val)) == (9, 11)
    assert data.summary["duplicates"]["within"]["count"] == 0


def test_two_labels_in_data_of_one_piece_are_left_out_of_both_sides(tmp_path):
    class_folders(tmp_path)
    write({"dog/as-cat.png": encoded(noise(0))}, tmp_path)
    data = prepared(tmp_path)
    assert set(excluded(data)) == {"cat/0.png", "dog/as-cat.png"}
    assert len(data.train) + len(data.test) == 9


def test_duplicates_are_what_a_search_by_hand_finds():
    rng = np.random.default_rng(0)
    digests = {split: rng.integers(0, 30, 25).astype("S32") for split in ("train", "val", "test")}
    labels = {split: rng.integers(0, 2, 25) for split in digests}
    found = find_duplicates(digests, labels)
    images = [(split, i) for split in digests for i in range(25)]
    for split, i in images:
        same = [(s, j) for s, j in images if digests[s][j] == digests[split][i]]
        higher = [s for s, _ in same if ("train", "val", "test").index(s) > ("train", "val", "test").index(split)]
        conflict = split == "train" and len({labels[s][j] for s, j in same if s == "train"}) > 1
        assert ((split, i) in found.excluded) == bool(higher or conflict)
        assert (same in found.across_splits) == (len({s for s, _ in same}) > 1)
        assert (same in found.across_classes) == (len({labels[s][j] for s, j in same}) > 1)


# The held-out part


def digests_of(n: int) -> np.ndarray:
    return np.array([f"{i:032x}" for i in range(n)], dtype="S32")


def test_every_class_gives_its_part_and_at_least_one_to_either_side():
    for size, wanted in {2: 1, 3: 1, 4: 1, 5: 1, 7: 1, 8: 2, 100: 20}.items():
        labels = np.repeat([0, 1], size)
        held_out = stratified(labels, digests=digests_of(2 * size), classes="ab", ratio=0.2, seed=0)
        assert np.bincount(labels[held_out]).tolist() == [wanted, wanted]
    assert stratified(np.zeros(2), digests=digests_of(2), classes="a", ratio=0.99, seed=0).sum() == 1


def test_copies_stay_on_one_side():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    digests = digests_of(20)[rng.integers(0, 10, 100) + 10 * labels]
    for seed in range(20):
        held_out = stratified(labels, digests=digests, classes="ab", ratio=0.3, seed=seed)
        assert not set(digests[held_out]) & set(digests[~held_out])
        assert len(set(labels[held_out])) == len(set(labels[~held_out])) == 2


def test_a_class_of_copies_alone_still_has_both_sides():
    digests = np.repeat(digests_of(2), (3, 4))
    held_out = stratified(np.zeros(7), digests=digests, classes="a", ratio=0.2, seed=0)
    assert held_out.tolist() == [True] * 3 + [False] * 4


@pytest.mark.parametrize("copies", [1, 3])
def test_a_class_with_one_image_cannot_be_split(copies):
    digests = np.concatenate([digests_of(4), np.repeat(digests_of(5)[4:], copies)])
    with pytest.raises(InputError, match="class b has only 1 usable image"):
        stratified(np.array([0] * 4 + [1] * copies), digests=digests, classes="ab", ratio=0.2, seed=0)


@pytest.mark.parametrize("ratio", [0, 1, -1, 2])
def test_a_part_that_is_none_is_refused(ratio):
    with pytest.raises(InputError, match="it must lie between 0 and 1"):
        stratified(np.zeros(4), digests=digests_of(4), classes="a", ratio=ratio, seed=0)


def test_the_split_depends_on_the_images_and_the_seed_alone(tmp_path):
    class_folders(tmp_path / "a", each=20)
    for label in ("cat", "dog"):
        for i in range(20):  # other names, another order
            path = tmp_path / "b" / label / f"{19 - i}-{label}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((tmp_path / "a" / label / f"{i}.png").read_bytes())

    def held_out(folder: str, **options) -> set[bytes]:
        test = prepared(tmp_path / folder, **options).test
        return {test.read(i) for i in range(len(test))}

    assert len(held_out("a")) == 8
    assert held_out("a") == held_out("b")
    assert held_out("a") != held_out("a", split_seed=1)
    assert len(held_out("a", holdout_ratio=0.5)) == 20


def test_digits_hold_out_a_fifth_of_each_class():
    data = prepared("digits")
    assert (len(data.train), len(data.test)) == (1438, 359)
    whole = np.bincount(np.concatenate([data.train.labels, data.test.labels]))
    assert np.array_equal(np.bincount(data.test.labels), np.round(0.2 * whole))
    assert not set(names(data.train)) & set(names(data.test))


@pytest.mark.parametrize("place", ["digits", "splits"])
def test_images_to_choose_by_are_training_images_and_nothing_else_is_measured(place, tmp_path):
    path = place if place == "digits" else a_folder_of_splits(tmp_path).path
    whole, data = prepared(path), prepared(path, dev_ratio=0.25)
    assert (data.val, data.test) == (None, None)
    assert data.held_out == ("dev", data.dev)
    assert sorted(names(data.train) + names(data.dev)) == sorted(names(whole.train))
    assert not set(names(data.train)) & set(names(data.dev))
    assert np.array_equal(np.bincount(data.dev.labels), np.round(0.25 * np.bincount(whole.train.labels)))
    assert data.fingerprint != whole.fingerprint
    assert any("are held back as dev" in note for note in data.summary["notes"])
    again = reopen(DataConfig(path=path, dev_ratio=0.25), data.split_csv())
    assert {split: names(source) for split, source in again.items()} == {
        "train": names(data.train),
        "dev": names(data.dev),
    }


# What is written


def test_the_list_of_the_split_reads_back_to_the_same_images(tmp_path):
    odd = ["ü 🌷.png", 'a, "b"\n.png', os.fsdecode(b"\xff\xe9.png"), "x" * 250 + ".png"]
    class_folders(tmp_path / "data", each=10)
    write({f"cat/{name}": encoded(noise(100 + i)) for i, name in enumerate(odd)}, tmp_path / "data")
    write({"dog/copy of cat.png": encoded(noise(0)), "dog/zero.png": b""}, tmp_path / "data")
    config = DataConfig(path=str(tmp_path / "data"), allow_bad=True)
    data = prepare(config)
    files.write_text(tmp_path / "split.csv", data.split_csv())
    text = (tmp_path / "split.csv").read_bytes().decode("utf-8", "surrogateescape")
    assert text == data.split_csv()
    assert text.startswith("split,file,label,note\n")
    assert "excluded,dog/copy of cat.png,dog,same image with another label\n" in text
    again = reopen(config, text)
    assert list(again) == ["train", "test"]
    for split, source in (("train", data.train), ("test", data.test)):
        assert names(again[split]) == names(source)
        assert np.array_equal(again[split].labels, source.labels)
        assert [again[split].read(i) for i in range(5)] == [source.read(i) for i in range(5)]


def test_reopening_what_is_gone_names_it(tmp_path):
    config = DataConfig(path=str(class_folders(tmp_path)))
    text = prepare(config).split_csv()
    (tmp_path / "cat" / "3.png").unlink()
    with pytest.raises(InputError, match=r"no longer has cat/3\.png"):
        reopen(config, text)


def test_the_second_place_is_reopened_too(tmp_path):
    train, val = class_folders(tmp_path / "a"), class_folders(tmp_path / "b", first_seed=50)
    config = DataConfig(path=str(train), val=str(val))
    data = prepare(config)
    again = reopen(config, data.split_csv())
    assert names(again["val"]) == names(again["train"])  # the names alone do not tell them apart
    assert again["val"].read(0) == data.val.read(0) != data.train.read(0)


# Going on without looking again


def kept(data: Prepared) -> dict:
    """What a run that goes on has of `data`."""
    record = {"data": data.summary, "data_fingerprint": data.fingerprint, "data_stamp": data.stamp}
    return {"split_csv": data.split_csv(), "record": record}


def assert_equal(ours: Prepared | None, theirs: Prepared) -> None:
    assert ours is not None
    for field in fields(Prepared):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if isinstance(b, Source):
            assert (type(a), a.classes, names(a)) == (type(b), b.classes, names(b))
            assert np.array_equal(a.labels, b.labels)
            assert np.array_equal(a.rows, b.rows)
            assert a.read(len(a) - 1) == b.read(len(b) - 1)
        else:
            assert a == b, field.name


def a_folder(root: Path) -> DataConfig:
    broken = {f"cat/broken{i}.png": f"<html>{i}".encode() for i in range(25)}  # more than the summary shows
    odd = {os.fsdecode(b"dog/\xe9, \n.png"): encoded(noise(77)), "dog/cat.png": encoded(noise(0))}
    return DataConfig(path=str(write({**broken, **odd}, class_folders(root))), allow_bad=True)


def a_folder_of_splits(root: Path) -> DataConfig:
    for seed, split in enumerate(("train", "val", "test")):
        class_folders(root / split, first_seed=8 * seed)  # with copies
    return DataConfig(path=str(root))


def two_folders(root: Path) -> DataConfig:
    return DataConfig(path=str(class_folders(root / "a")), val=str(class_folders(root / "b", first_seed=50)))


def a_tar(root: Path, mode: str = "w") -> DataConfig:
    images = {f"{label}/{i}.png": encoded(noise(i + 10 * k)) for k, label in enumerate("ab") for i in range(4)}
    return DataConfig(path=str(packed(images, root / f"x.tar{mode[1:].replace(':', '.')}", mode=mode)))


def a_packed_tar(root: Path) -> DataConfig:
    return a_tar(root, "w:gz")


def a_list(root: Path) -> DataConfig:
    class_folders(root)
    rows = [f"{label}/{i}.png,{label},{'test' if i == 4 else 'train'}" for i in range(5) for label in ("cat", "dog")]
    lines = ["image,label,split", *rows, "cat/4.png,dog,test"]  # one image twice
    write({"list.csv": "\n".join(lines).encode()}, root)
    return DataConfig(path=str(root / "list.csv"))


def digits(root: Path) -> DataConfig:
    return DataConfig()


def digits_to_choose_by(root: Path) -> DataConfig:
    return DataConfig(dev_ratio=0.1)


def splits_to_choose_by(root: Path) -> DataConfig:
    return replace(a_folder_of_splits(root), dev_ratio=0.3)


LAYOUTS = [
    *(a_folder, a_folder_of_splits, two_folders, a_tar, a_packed_tar, a_list),
    *(digits, digits_to_choose_by, splits_to_choose_by),
]


def never(*arguments, **options):
    raise AssertionError("an image was looked at")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_prepared_is_recalled_without_looking_at_an_image(layout, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    config = layout(tmp_path / "data")
    data = prepare(config)
    assert data.stamp is not None
    files.write_text(tmp_path / "split.csv", data.split_csv())
    record = json.loads(json.dumps(kept(data)["record"]))
    with monkeypatch.context() as patch:
        for name in ("source.decode", "source.decode_picture", "source.FileSource.read", "tars.TarSource.read"):
            patch.setattr(f"vitreous.data.{name}", never)
        again = recall(config, split_csv=files.read_text(tmp_path / "split.csv"), record=record)
    assert_equal(again, data)


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def grow(path: Path) -> None:
    """More bytes, and the time as it was."""
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def rename(path: Path) -> None:
    path.rename(path.with_name("other.png"))


def add(path: Path) -> None:
    path.with_name("other.png").write_bytes(b"")


@pytest.mark.parametrize("event", [touch, grow, rename, add, Path.unlink])
@pytest.mark.parametrize("layout", [a_folder, a_folder_of_splits, two_folders])
def test_nothing_is_recalled_when_a_file_has_changed(layout, event, tmp_path):
    (tmp_path / "data").mkdir()
    config = layout(tmp_path / "data")
    before = kept(prepare(config))
    event(sorted((tmp_path / "data").rglob("cat/1.png"))[-1])
    assert recall(config, **before) is None


@pytest.mark.parametrize("event", [touch, grow])
def test_nothing_is_recalled_when_the_tar_has_changed(event, tmp_path):
    config = a_tar(tmp_path)
    before = kept(prepare(config))
    event(Path(config.path))
    assert recall(config, **before) is None


def test_nothing_is_recalled_when_labels_have_changed(tmp_path):
    config = a_list(tmp_path)
    before = kept(prepare(config))
    path, text = Path(config.path), Path(config.path).read_text()
    touch(path)
    assert recall(config, **before) is not None  # what the list says is what counts
    for old, new in (("0.png,cat", "0.png,dog"), ("0.png,cat,train", "0.png,cat,test"), (",cat,", ",emu,")):
        path.write_text(text.replace(old, new))
        assert recall(config, **before) is None


def test_nothing_is_recalled_when_pixels_in_memory_have_changed(monkeypatch):
    before = kept(prepared("digits"))
    real = named.digits()
    real.train.pixels[5, 0, 0] ^= 1
    monkeypatch.setattr(named, "digits", lambda: real)
    assert recall(DataConfig(), **before) is None


def test_nothing_is_recalled_of_another_run(tmp_path):
    config = DataConfig(path=str(class_folders(tmp_path, each=9)))
    before = kept(prepare(config))
    assert recall(config, **before) is not None
    for other in ({"split_seed": 1}, {"holdout_ratio": 0.5}):
        assert recall(replace(config, **other), **before) is None
    edited = before["split_csv"].replace("test,cat", "train,cat", 1)
    assert recall(config, split_csv=edited, record=before["record"]) is None
    for key in before["record"]:
        record = {name: value for name, value in before["record"].items() if name != key}
        assert recall(config, split_csv=before["split_csv"], record=record) is None


def test_nothing_is_recalled_when_a_broken_link_was_mended(tmp_path):
    write({"elsewhere.png": encoded(noise(99))}, tmp_path)
    folder = class_folders(tmp_path / "data")
    (folder / "cat" / "link.png").symlink_to(tmp_path / "later.png")
    config = DataConfig(path=str(folder), allow_bad=True)
    before = kept(prepare(config))
    assert recall(config, **before) is not None
    (tmp_path / "elsewhere.png").rename(tmp_path / "later.png")
    assert recall(config, **before) is None


def test_what_changes_while_it_is_looked_at_is_looked_at_again(tmp_path):
    config = DataConfig(path=str(class_folders(tmp_path)))
    data = prepare(config, progress=lambda done, total: grow(tmp_path / "cat" / "1.png"))
    assert recall(config, **kept(data)) is None


def test_data_that_were_moved_are_recalled(tmp_path):
    data = prepared(class_folders(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    again = recall(DataConfig(path=str(tmp_path / "b")), **kept(data))
    assert again is not None
    assert again.train.read(0)


def test_a_source_that_cannot_tell_is_looked_at_again(monkeypatch):
    digits = named.digits().train
    parts = (digits.select(range(1000)), digits.select(range(1000, 1797)))
    monkeypatch.setattr(named, "digits", lambda: Splits(JoinedSource(*parts)))
    monkeypatch.setattr(ArraySource, "stamp", lambda source: None)
    data = prepared("digits")
    assert data.stamp is None
    assert recall(DataConfig(), **kept(data)) is None


def test_data_that_are_gone_are_named_when_recalled(tmp_path):
    config = DataConfig(path=str(class_folders(tmp_path / "data")))
    before = kept(prepare(config))
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="no such file or folder"):
        recall(config, **before)


def test_a_file_listed_with_two_labels_keeps_both_when_reopened(tmp_path):
    config = a_list(tmp_path)
    data = prepare(config)
    again = reopen(config, data.split_csv())["test"]
    assert names(again) == names(data.test) == ["cat/4.png", "dog/4.png", "cat/4.png"]
    assert again.labels.tolist() == data.test.labels.tolist() == [0, 1, 1]


def test_the_fingerprint_changes_with_images_labels_names_and_splits_only(tmp_path):
    class_folders(tmp_path / "a")
    class_folders(tmp_path / "b")
    first = prepared(tmp_path / "a").fingerprint
    assert prepared(tmp_path / "b").fingerprint == first
    assert prepared(tmp_path / "a", split_seed=1).fingerprint != first
    (tmp_path / "b/cat/0.png").rename(tmp_path / "b/cat/00.png")
    assert prepared(tmp_path / "b").fingerprint != first
    write({"cat/0.png": encoded(noise(999))}, tmp_path / "a")
    assert prepared(tmp_path / "a").fingerprint != first


def test_arrays_are_prepared_in_seconds(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (60_000, 28, 28), dtype=np.uint8)
    source = ArraySource(pixels, prefix="train", classes=("a", "b"), labels=np.arange(60_000) % 2)
    monkeypatch.setattr(named, "digits", lambda: Splits(source))
    start = time.monotonic()
    assert prepared("digits").summary["splits"]["test"] == {"a": 6000, "b": 6000}
    assert time.monotonic() - start < 20


def test_real_photos_are_found_sound(shared):
    folder = shared / "data" / "imagenette224"
    data = prepared(folder / "imagenette224_train.tar", val=str(folder / "imagenette224_val.tar"))
    assert (len(data.train), len(data.val), data.bad, data.excluded) == (5000, 1200, [], [])
    assert data.summary["sizes"]["width"] == {"min": 224, "median": 224.0, "max": 224}
    assert (data.summary["formats"], data.summary["modes"]) == ({"JPEG": 6200}, {"RGB": 6093, "L": 107})
