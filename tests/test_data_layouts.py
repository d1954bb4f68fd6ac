import gzip
import json
import os
import pickle
import struct
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image

from pictures import class_folders, encoded, noise, packed, write
from vitreous.data import folders, named, tars
from vitreous.data.joined import JoinedSource
from vitreous.data.layouts import open_data, open_held_out
from vitreous.data.names import Names
from vitreous.data.source import ArraySource
from vitreous.errors import InputError


def image(seed: int = 0) -> bytes:
    return encoded(noise(seed))


def contents(part) -> dict[str, str]:
    """Class by name."""
    return {part.name(i): part.classes[part.labels[i]] for i in range(len(part))}


def refusal(path, **options) -> str:
    with pytest.raises(InputError) as error:
        open_data(str(path), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# Folders


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Training", "valid", "TESTING"),
        ("TRAIN", "dev", "test"),
        ("train", "Validation", "test"),
    ],
)
def test_split_folders_are_found_by_any_of_their_names(tmp_path, train, val, test):
    for seed, split in enumerate((train, val, test)):
        class_folders(tmp_path / split, each=2, first_seed=10 * seed)
    splits = open_data(str(tmp_path))
    assert contents(splits.val)[f"{val}/dog/1.png"] == "dog"
    assert {name: len(part) for name, part in splits.named().items()} == {"train": 4, "val": 4, "test": 4}
    assert np.array_equal(splits.test.image(3), noise(23))


def test_flat_class_folders_are_one_piece(tmp_path):
    splits = open_data(str(class_folders(tmp_path, each=2)))
    assert contents(splits.train) == {
        "cat/0.png": "cat",
        "cat/1.png": "cat",
        "dog/0.png": "dog",
        "dog/1.png": "dog",
    }
    assert splits.val is splits.test is None


def test_classes_and_files_are_in_natural_order(tmp_path):
    write({f"{name}/{i}.png": image() for name in ("class 10", "Class 9", "b", "A") for i in (10, 9)}, tmp_path)
    train = open_data(str(tmp_path)).train
    assert train.classes == ("A", "b", "Class 9", "class 10")
    assert [train.name(i) for i in (0, 1)] == ["A/9.png", "A/10.png"]


def test_a_class_may_be_called_train_or_test(tmp_path):
    train = open_data(str(class_folders(tmp_path, ("bus", "train", "test")))).train
    assert train.classes == ("bus", "test", "train")


def test_nested_images_belong_to_the_class_on_top(tmp_path):
    write({"cat/2020/may/a.png": image(), "cat/b.png": image(), "dog/c.PNG": image()}, tmp_path)
    assert contents(open_data(str(tmp_path)).train) == {
        "cat/2020/may/a.png": "cat",
        "cat/b.png": "cat",
        "dog/c.PNG": "dog",
    }


def test_hidden_and_system_files_are_skipped(tmp_path):
    class_folders(tmp_path, each=1)
    junk = [
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "._0.png",
        ".ipynb_checkpoints/x.png",
        "__MACOSX/cat/._0.png",
    ]
    write({f"{folder}{name}": image() for name in junk for folder in ("", "cat/")}, tmp_path)
    splits = open_data(str(tmp_path))
    assert set(contents(splits.train)) == {"cat/0.png", "dog/0.png"}
    assert splits.notes == []


def test_files_beside_the_class_folders_are_noted_unless_they_describe_the_data(tmp_path):
    class_folders(tmp_path, each=1)
    write({"README.md": b"", "labels.csv": b"", "stray.png": image()}, tmp_path)
    splits = open_data(str(tmp_path))
    assert len(splits.train) == 2
    assert splits.notes == ["1 files beside the folders are not used: stray.png"]


def test_other_files_in_class_folders_are_kept_for_their_content_to_be_judged(tmp_path):
    class_folders(tmp_path, each=1)
    write({"cat/notes.txt": b"hello"}, tmp_path)
    assert "cat/notes.txt" in contents(open_data(str(tmp_path)).train)


def test_folders_beside_the_splits_are_noted(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "old")
    write({"test/1.png": image()}, tmp_path)
    splits = open_data(str(tmp_path))
    assert len(splits.train) == 10
    assert splits.test is None
    assert splits.notes == [
        "test without class folders: images without labels are not used",
        "folders beside the splits are not used: old",
    ]


def test_an_empty_class_folder_is_noted_and_no_class(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "bird").mkdir()
    splits = open_data(str(tmp_path))
    assert splits.train.classes == ("cat", "dog")
    assert splits.notes == ["class folder bird is empty and no class"]


def test_a_held_out_split_that_lacks_a_class_is_noted(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", ("cat",))
    assert open_data(str(tmp_path)).notes == ["val has no images of dog"]


def test_links_in_a_circle_are_not_followed(tmp_path):
    class_folders(tmp_path, each=2)
    (tmp_path / "cat" / "a-loop").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "self").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "up").symlink_to(tmp_path)
    splits = open_data(str(tmp_path))
    assert len(splits.train) == 4
    assert len(splits.notes) == 3
    assert all("read anyway" in note for note in splits.notes)


def test_links_to_images_elsewhere_are_followed_once(tmp_path):
    elsewhere = class_folders(tmp_path / "elsewhere", each=2)
    root = class_folders(tmp_path / "root", ("dog",), each=2)
    (root / "cat").symlink_to(elsewhere / "cat")
    (elsewhere / "cat" / "round").symlink_to(elsewhere / "cat")
    splits = open_data(str(root))
    assert [name for name, label in contents(splits.train).items() if label == "cat"] == [
        "cat/0.png",
        "cat/1.png",
    ]
    assert splits.notes == ["link cat/round leads to a folder that was read already, and is skipped"]


def test_odd_names_are_kept_byte_for_byte(tmp_path):
    names = [
        "ünï/日本 🌷.png",
        "ünï/" + "x" * 240 + ".png",
        'two\nlines/a, "b".png',
        os.fsdecode(b"\xff\xfe/\xe9.png"),
    ]
    write({name: image(i) for i, name in enumerate(names)}, tmp_path)
    train = open_data(str(tmp_path)).train
    found = {train.name(i): np.asarray(train.image(i)) for i in range(len(train))}
    assert set(found) == set(names)
    for i, name in enumerate(names):
        assert np.array_equal(found[name], noise(i))


def test_classes_are_the_same_however_the_system_writes_accents(tmp_path):
    class_folders(tmp_path / "train", ("caf\u00e9", "bar"))
    class_folders(tmp_path / "val", ("cafe\u0301",))
    splits = open_data(str(tmp_path))
    assert set(contents(splits.val).values()) == {"caf\u00e9"}


def test_a_missing_folder_suggests_its_neighbour(tmp_path):
    class_folders(tmp_path / "photos")
    assert refusal(tmp_path / "photso") == (
        f"no such file or folder: {tmp_path}/photso; did you mean {tmp_path}/photos?"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no images; give a folder with one folder of images for each class"),
        ({"labels.csv": b"x"}, "holds no class folders; give the file in it itself, such as"),
        (
            {"cat/.hidden": b"x", "dog/.hidden": b"x"},
            "are empty; put the images of each class into its folder",
        ),
        (
            {"val/cat/1.png": b"x", "test/cat/1.png": b"x"},
            "has test and val images but none to train on; add a train folder",
        ),
        (
            {"train/a/1": b"", "train/b/1": b"", "val/a/1": b"", "dev/a/1": b""},
            "has both dev and val; keep one",
        ),
    ],
)
def test_folders_that_are_no_data_set_say_why(tmp_path, files, message):
    assert message in refusal(write(files, tmp_path))


@pytest.mark.parametrize(
    ("files", "counts"),
    [
        ({"1.png": image(1), "2.JPG": image(2), "read.me": b"x"}, {"train": 2}),
        ({"train/1.png": image(1), "train/2.png": image(2), "valid/1.png": image(3)}, {"train": 2, "val": 1}),
        ({"list.csv": b"image,kind\n1.png,x\n", "1.png": image(1)}, {"train": 1}),
    ],
)
def test_images_without_labels_are_data_without_classes(tmp_path, files, counts):
    folder = write(files, tmp_path / "flat")
    place = next((folder / name for name in files if name.endswith(".csv")), folder)
    splits = open_data(str(place))
    assert {name: len(source) for name, source in splits.named().items()} == counts
    assert all(source.classes == () and (source.labels == -1).all() for source in splits.named().values())
    assert np.array_equal(splits.train.image(0), noise(1))
    with pytest.raises(InputError, match=r"has no labels to measure by \(put each class into a folder"):
        open_held_out(str(place))
    class_folders(tmp_path / "cats")
    assert "has no labels to measure by" in refusal(tmp_path / "cats", val=str(place))


def test_a_tar_without_labels_is_data_without_classes(tmp_path):
    path = packed({"1.png": image(1), "2.jpg": image(2), "read.me": b"x"}, tmp_path / "one.tar")
    splits = open_data(str(path))
    assert [splits.train.name(i) for i in range(2)] == ["1.png", "2.jpg"]
    assert (splits.train.classes, splits.train.labels.tolist()) == ((), [-1, -1])
    assert splits.notes == ["one.tar has no class folders, and no label beside an image: images have no labels"]


def test_held_out_classes_that_training_lacks_are_named(tmp_path):
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", ("cat", "tiger", "puma"))
    assert "held-out images have 2 classes that training images do not: puma, tiger;" in refusal(tmp_path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    write({"photos.zip": b"PK"}, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is no data set; give a folder of class folders, a tar" in refusal(tmp_path / "photos.zip")
    assert "is neither a folder nor a regular file" in refusal(tmp_path / "pipe")


def test_a_folder_without_permission_says_so(forbid, tmp_path):
    class_folders(tmp_path)
    forbid(tmp_path / "cat")
    assert "cannot read the folder" in refusal(tmp_path)


# A second place to measure on


def test_val_is_labelled_by_the_names_of_the_training_classes(tmp_path):
    train = class_folders(tmp_path / "a", ("ant", "cat", "dog"))
    val = class_folders(tmp_path / "b", ("dog", "ant"))
    splits = open_data(str(train), val=str(val))
    assert splits.val.classes == splits.train.classes == ("ant", "cat", "dog")
    assert sorted(set(splits.val.labels.tolist())) == [0, 2]
    assert splits.notes == ["val has no images of cat"]
    assert "classes that training images do not" not in refusal(val, val=str(tmp_path / "none"))
    assert "1 class that training images do not: cat;" in refusal(val, val=str(train))


def test_of_a_val_place_with_splits_the_val_images_count(tmp_path):
    train = class_folders(tmp_path / "a")
    for split in ("train", "val"):
        class_folders(tmp_path / "b" / split, each=3 if split == "val" else 1)
    assert len(open_data(str(train), val=str(tmp_path / "b")).val) == 6


def test_a_val_place_that_replaces_one_is_noted(tmp_path):
    for split in ("train", "val"):
        class_folders(tmp_path / "a" / split)
    other = class_folders(tmp_path / "b", each=1)
    splits = open_data(str(tmp_path / "a"), val=str(other))
    assert len(splits.val) == 2
    assert "are not used, since" in splits.notes[0]


# Tars


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.TGZ", "w:gz")])
def test_a_tar_is_read_in_place(tmp_path, name, mode):
    files = {
        f"./photos/{split}/{label}/{i}.png": image(i) for split in ("train", "Val") for label in "ab" for i in (0, 1)
    }
    splits = open_data(str(packed(files, tmp_path / name, mode=mode)))
    assert contents(splits.train)["photos/train/b/1.png"] == "b"
    assert len(splits.train) == len(splits.val) == 4
    assert np.array_equal(splits.val.image(3), noise(1))
    assert os.listdir(tmp_path) == [name]


def test_a_flat_tar_has_classes_by_the_last_folder(tmp_path):
    files = {"x/cat/1.png": image(1), "dog/2.png": image(2), "dog/.hidden": b"", "loose.png": image()}
    splits = open_data(str(packed(files, tmp_path / "a.tar")))
    assert contents(splits.train) == {"x/cat/1.png": "cat", "dog/2.png": "dog"}
    assert splits.notes == ["1 images outside of class folders are not used: loose.png"]


def test_webdataset_tars_take_the_label_beside_the_image(tmp_path):
    cls = {
        "0.jpg": image(0),
        "0.cls": b"10\n",
        "1.jpg": image(1),
        "1.cls": b"9",
        "2.x.jpg": image(2),
        "2.cls": b"9",
    }
    train = open_data(str(packed(cls, tmp_path / "cls.tar"))).train
    assert contents(train) == {"0.jpg": "10", "1.jpg": "9", "2.x.jpg": "9"}
    assert train.classes == ("9", "10")
    txt = {
        "a/0.png": image(0),
        "a/0.txt": b"caption",
        "a/0.cls": b"cat",
        "a/1.png": image(1),
        "a/1.cls": b"dog",
    }
    assert contents(open_data(str(packed(txt, tmp_path / "txt.tar"))).train) == {
        "a/0.png": "cat",
        "a/1.png": "dog",
    }
    objects = {"0.png": image(0), "0.json": b'{"label": 3}', "1.png": image(1), "1.json": b'{"label": "cat"}'}
    assert contents(open_data(str(packed(objects, tmp_path / "json.tar"))).train) == {
        "0.png": "3",
        "1.png": "cat",
    }


def test_a_webdataset_image_without_label_is_named(tmp_path):
    path = packed({"0.jpg": image(), "0.cls": b"1", "1.jpg": image()}, tmp_path / "a.tar")
    assert "1.jpg has no label beside it; add 1.cls" in refusal(path)


def test_links_in_a_tar_are_skipped(tmp_path):
    path = packed({"cat/1.png": image(1), "dog/1.png": image(2)}, tmp_path / "a.tar")
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("dog/passwords.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    splits = open_data(str(path))
    assert len(splits.train) == 2
    assert splits.notes == ["1 links or special members of a.tar are skipped"]


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("left", [0.0, 0.5, 0.9])
def test_a_broken_tar_is_refused(tmp_path, kind, left):
    files = {f"{label}/{i}.bmp": encoded(noise(i, width=100, height=100), "BMP") for label in "ab" for i in range(3)}
    path = packed(files, tmp_path / f"a.{kind}", mode="w:gz" if kind == "tar.gz" else "w")
    path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
    assert "fetch or pack it again" in refusal(path) or "holds no class folders" in refusal(path)


def test_a_text_called_tar_is_refused(tmp_path):
    write({"a.tar": b"hello" * 500, "b.tar.gz": b"hello"}, tmp_path)
    assert "is no whole tar" in refusal(tmp_path / "a.tar")
    assert "is no whole tar" in refusal(tmp_path / "b.tar.gz")


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_UNPACKED_BYTES", 1_000_000)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(b"\0" * 2_000_000))
    assert "too much for memory; run gunzip once" in refusal(tmp_path / "a.tar.gz")


# Manifests


def test_a_manifest_names_images_labels_and_splits(tmp_path):
    write({"in/a.png": image(1), "in/b.png": image(2), "in/c.png": image(3)}, tmp_path)
    rows = "Split, Image ,LABEL\ntrain,in/a.png,cat\ntrain,in/b.png,dog\nvalid,in/c.png,cat\n"
    write({"list.csv": ("\ufeff" + rows).encode(), "list.tsv": rows.replace(",", "\t").encode()}, tmp_path)
    write({"semicolons.csv": rows.replace(",", ";").encode()}, tmp_path)
    for name in ("list.csv", "list.tsv", "semicolons.csv"):
        splits = open_data(str(tmp_path / name))
        assert contents(splits.train) == {"in/a.png": "cat", "in/b.png": "dog"}
        assert contents(splits.val) == {"in/c.png": "cat"}
        assert np.array_equal(splits.val.image(0), noise(3))


def test_json_lines_are_a_manifest(tmp_path):
    write({"a.png": image(1), "b.png": image(2)}, tmp_path)
    lines = [{"file_name": "a.png", "label": 3}, {"file_name": "b.png", "label": "x"}]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert contents(open_data(str(tmp_path / "metadata.jsonl")).train) == {"a.png": "3", "b.png": "x"}


def test_ids_without_suffix_find_the_images_beside(tmp_path):
    write(
        {"train/1.jpg": image(1), "train/2.PNG.png": image(2), "train.csv": b"id,label\n1,a\n2.PNG,b\n"},
        tmp_path,
    )
    assert contents(open_data(str(tmp_path / "train.csv")).train) == {
        "train/1.jpg": "a",
        "train/2.PNG.png": "b",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("image,label\n", "has no rows"),
        ("picture,label\na.png,x\n", "has no column for the image (one of image, path,"),
        ("picture,label\na.png,x\n", "its columns are picture, label"),
        ("image,label\na.png,x\nnone.png,x\n,x\n", "line 4: image is empty"),
        ("image,label\na.png,\n", "line 2: label is empty"),
        ("image,label\na.png\n", "line 2: label is empty"),
        (
            "image,label\na.png,x\nno.png,y\nnot.png,y\n",
            "line 3: no such file no.png (2 of 3 files are missing)",
        ),
        ("image,label,split\na.png,x,tarin\n", "line 2: split 'tarin' is none of train, val, test"),
        ("image,label,split\na.png,x,val\n", "has val images but none to train on"),
    ],
)
def test_a_manifest_that_does_not_fit_says_where(tmp_path, text, message):
    write({"a.png": image(), "list.csv": text.encode()}, tmp_path)
    assert message in refusal(tmp_path / "list.csv")


def test_broken_json_lines_are_named(tmp_path):
    write(
        {"a.png": image(), "list.jsonl": b'{"image": "a.png", "label": 1}\n{"image"', "b.jsonl": b"[1]"},
        tmp_path,
    )
    assert "list.jsonl line 2: not JSON" in refusal(tmp_path / "list.jsonl")
    assert "b.jsonl line 1: not a JSON object" in refusal(tmp_path / "b.jsonl")


def test_an_unknown_label_in_a_val_manifest_is_named(tmp_path):
    write({"a.png": image(1), "b.png": image(2), "train.csv": b"image,label\na.png,x\nb.png,y\n"}, tmp_path)
    write({"val.csv": b"image,label\na.png,x\nb.png,z\n"}, tmp_path)
    message = refusal(tmp_path / "train.csv", val=str(tmp_path / "val.csv"))
    assert "1 class that training images do not: z;" in message


# Data sets known by name


def test_digits_are_scaled_to_the_full_range():
    from sklearn.datasets import load_digits

    train = open_data("digits").train
    assert len(train) == 1797
    assert train.classes == tuple("0123456789")
    raw = load_digits()
    assert np.array_equal(train.labels, raw.target)
    assert np.array_equal(np.asarray(train.image(5))[..., 1], (raw.images[5] * 255).astype(int) // 16)
    assert (train.pixels.min(), train.pixels.max()) == (0, 255)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert refusal("digits") == "the data set digits needs scikit-learn; pip install 'vitreous[demo]'"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digts", "did you mean digits?"),
        ("cifar100:/data", "did you mean cifar10:PATH?"),
        ("fashion_mnist:/data", "did you mean fashion-mnist:PATH?"),
        ("cifar10", "cifar10 needs the folder of its files: give cifar10:PATH"),
        ("cifar10:/no/such/place", "no such folder; give the folder that holds the files of cifar10"),
    ],
)
def test_names_that_are_not_quite_right_are_explained(name, message):
    assert message in refusal(name)


def cifar10_records(*records: tuple[int, int]) -> bytes:
    """(label, value) pairs; red is `value`, green 1 more, blue 2 more, and the first red pixel 255."""
    planes = [(label, [255] + [v] * 1023 + [v + 1] * 1024 + [v + 2] * 1024) for label, v in records]
    return b"".join(bytes([label, *plane]) for label, plane in planes)


def test_cifar10_binary_files_are_read_in_order(tmp_path):
    files = {f"data_batch_{i}.bin": cifar10_records((i, i), (9, 50 + i)) for i in (1, 2, 3, 4, 5)}
    write({**files, "test_batch.bin": cifar10_records((0, 7))}, tmp_path / "cifar-10-batches-bin")
    splits = open_data(f"cifar10:{tmp_path}")
    assert splits.train.classes == named.CIFAR10_CLASSES
    assert splits.train.classes[6] == "frog"
    assert splits.train.labels.tolist() == [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    pixels = np.asarray(splits.train.image(3))
    assert pixels[0, 0].tolist() == [255, 53, 54]
    assert pixels[31, 5].tolist() == [52, 53, 54]
    assert splits.test.name(0) == "test/00000"
    assert splits.train.name(3) == "train/00003"
    assert splits.notes[1] == "test has no images of automobile, bird, cat, deer, dog and 4 more"


def test_pickled_cifar10_is_refused(tmp_path):
    write({"data_batch_1": b"\x80", "batches.meta": b"\x80"}, tmp_path)
    assert "pickle files can run code when read; take the binary version" in refusal(f"cifar10:{tmp_path}")
    assert "holds no CIFAR-10" in refusal(f"cifar10:{write({'x': b''}, tmp_path / 'other')}")


def test_damaged_cifar10_is_refused(tmp_path):
    write({"train.bin": cifar10_records((1, 1))[:-1], "test.bin": cifar10_records((1, 1))}, tmp_path)
    assert "is no CIFAR-10 in binary form, or not whole" in refusal(f"cifar10:{tmp_path}")


def idx(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def fashion(folder, *, packed: bool):
    rng = np.random.default_rng(0)
    pixels, labels = (
        rng.integers(0, 256, (6, 28, 28), dtype=np.uint8),
        np.array([9, 0, 0, 3, 0, 2], dtype=np.uint8),
    )
    for images, numbers in named.FASHION_FILES.values():
        for name, data in ((images, idx(pixels)), (numbers, idx(labels))):
            write({name + (".gz" if packed else ""): gzip.compress(data) if packed else data}, folder)
    return pixels, labels


@pytest.mark.parametrize("packed", [True, False])
def test_fashion_mnist_is_read_raw_or_packed(tmp_path, packed):
    pixels, labels = fashion(tmp_path, packed=packed)
    splits = open_data(f"fashion-mnist:{tmp_path}")
    assert np.array_equal(splits.train.labels, labels)
    assert splits.train.classes[9] == "Ankle boot"
    assert np.array_equal(splits.test.image(4), Image.fromarray(pixels[4]).convert("RGB"))


def test_broken_fashion_mnist_is_refused(tmp_path):
    fashion(tmp_path, packed=True)
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    whole = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(whole[:-1]))
    assert "is no IDX file of bytes, or not whole" in refusal(f"fashion-mnist:{tmp_path}")
    labels.write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 5) + whole[8:-1]))
    assert "images and labels of the test split do not fit" in refusal(f"fashion-mnist:{tmp_path}")
    labels.write_bytes(gzip.compress(whole)[:-12])
    assert "cannot read" in refusal(f"fashion-mnist:{tmp_path}")
    labels.unlink()
    assert "lacks t10k-labels-idx1-ubyte" in refusal(f"fashion-mnist:{tmp_path}")


# The real ones


def test_real_fashion_mnist_starts_with_an_ankle_boot(shared):
    splits = open_data(f"fashion-mnist:{shared / 'data' / 'fashion_mnist'}")
    assert (len(splits.train), len(splits.test)) == (60_000, 10_000)
    assert splits.train.classes[splits.train.labels[0]] == "Ankle boot"
    assert np.bincount(splits.train.labels).tolist() == [6000] * 10
    scaled = splits.train.pixels.reshape(60, -1).astype(np.float64).mean() / 255
    assert scaled == pytest.approx(0.28604, abs=1e-5)


def test_both_forms_of_real_cifar10_agree_by_class_and_nearly_by_pixel(shared, tmp_path):
    folder = shared / "data" / "cifar10"
    whole = open_data(f"cifar10:{folder}")
    assert (len(whole.train), len(whole.test)) == (50_000, 10_000)
    for name in ("train_first4000.bin.gz", "test_first1000.bin.gz"):
        (tmp_path / name).symlink_to(folder / name)
    lossless = open_data(f"cifar10:{tmp_path}")
    assert lossless.train.pixels[0, 0, 0, 0] == 0x3B
    assert lossless.train.labels[0] == 6
    assert lossless.notes == ["a part of CIFAR-10: 4,000 of 50,000 training images"]
    for part, copy in ((lossless.train, whole.train), (lossless.test, whole.test)):
        assert np.array_equal(part.labels, copy.labels[: len(part)])
        differences = [np.abs(np.int16(part.image(i)) - np.int16(copy.image(i))).mean() for i in range(0, 1000, 10)]
        assert np.mean(differences) < 8


def test_real_imagenette_is_read_from_its_tars(shared):
    folder = shared / "data" / "imagenette224"
    start = time.monotonic()
    splits = open_data(str(folder / "imagenette224_train.tar"), val=str(folder / "imagenette224_val.tar"))
    assert time.monotonic() - start < 10
    assert (len(splits.train), len(splits.val)) == (5000, 1200)
    assert list(splits.train.classes) == sorted(json.loads((folder / "classes.json").read_text()))
    assert splits.val.image(7).size == (224, 224)


def test_names_take_no_more_than_their_bytes_and_a_number(tmp_path):
    names = Names([f"class/{i}.jpg" for i in range(1000)])
    assert names[999] == "class/999.jpg"
    assert len(names) == 1000
    assert len(names.text) == sum(map(len, names))
    assert names.ends.nbytes == 8 * 1001


def test_folders_are_walked_without_recursion(tmp_path):
    deep = tmp_path / "cat" / "/".join(["d"] * 200)
    deep.mkdir(parents=True)
    (deep / "1.png").write_bytes(image())
    class_folders(tmp_path, ("dog",), each=1)
    assert len(folders.list_folder(tmp_path).source) == 2


def test_lists_that_are_no_utf_8_or_nested_are_refused(tmp_path):
    (tmp_path / "wide.csv").write_text("image,label\na.png,cat\n", "utf-16")
    with pytest.raises(InputError, match="is UTF-16; save it as UTF-8"):
        open_data(str(tmp_path / "wide.csv"))
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    with pytest.raises(InputError, match="nested too deeply"):
        open_data(str(tmp_path / "deep.jsonl"))
    (tmp_path / "half.jsonl").write_text('{"image": "\\ud800.png", "label": "\\ud800"}')
    with pytest.raises(InputError, match="no such file"):
        open_data(str(tmp_path / "half.jsonl"))


def test_a_packed_tar_is_known_by_its_content(tmp_path):
    members = {f"{name}/{i}.png": encoded(noise(i)) for i in range(2) for name in ("cat", "dog")}
    path = packed(members, tmp_path / "x.tar.gz", mode="w:gz")
    path.rename(tmp_path / "x.tar")
    assert len(open_data(str(tmp_path / "x.tar")).train) == 4


def test_joined_sources_are_one_after_the_other():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4), dtype=np.uint8)
    first, second = (
        ArraySource(pixels[rows], prefix=name, classes=("a", "b"), labels=np.arange(len(pixels[rows])) % 2)
        for name, rows in (("x", slice(0, 2)), ("y", slice(2, 5)))
    )
    both = JoinedSource(first, second)
    assert len(both) == 5
    assert both.labels.tolist() == [0, 1, 0, 1, 0]
    assert [both.name(i) for i in range(5)] == ["x/00000", "x/00001", "y/00000", "y/00001", "y/00002"]
    chosen = pickle.loads(pickle.dumps(both.select([4, 0])))
    assert [chosen.name(i) for i in range(2)] == ["y/00002", "x/00000"]
    assert chosen.read(0) == pixels[4].tobytes()
    assert np.array_equal(np.asarray(chosen.image(1))[..., 0], pixels[0])
    assert chosen.picture(1, chosen.read(1)).width == 4
