import numpy as np
import pytest
import torchvision.datasets

from vitreous.data.vtab.open import open_task
from vitreous.errors import InputError
from vtab_files import mat, names, pack, pixels, png, shown, small, stems, tfds_order, write

CALTECH = ("BACKGROUND_Google", "accordion", "ant")


def cifar(count: int, seed: int) -> bytes:
    records = np.random.default_rng(seed).integers(0, 256, (count, 3074)).astype(np.uint8)
    records[:, 0] %= 20
    records[:, 1] %= 100
    return records.tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_cifar100_reads_fine_labels_and_planes_of_colour_in_the_order_of_tfds(tmp_path, packed):
    files = {"cifar-100-binary/train.bin": cifar(50, 0), "cifar-100-binary/test.bin": cifar(7, 1)}
    files["cifar-100-binary/fine_label_names.txt"] = "".join(f"name{i}\n" for i in range(100)).encode()
    (pack if packed else write)(tmp_path / "cifar-100-binary.tar.gz" if packed else tmp_path, files)
    task = small("cifar100", tmp_path, 30, 4)
    order = tfds_order("train", [str(i) for i in range(50)])
    assert names(task.train) == [f"train/{int(key):05d}" for key in order[:30]]
    assert names(task.val) == [f"train/{int(key):05d}" for key in order[45:49]]
    records = np.frombuffer(files["cifar-100-binary/train.bin"], np.uint8).reshape(50, 3074)
    assert task.train.labels.tolist() == [records[int(key), 1] for key in order[:30]]
    assert task.classes[3] == "name3"
    picture = records[int(order[0]), 2:]
    assert (shown(task.train, 0)[5, 9] == picture[[5 * 32 + 9, 1024 + 5 * 32 + 9, 2048 + 5 * 32 + 9]]).all()
    assert len(task.test) == 7
    assert not task.official
    assert "50 of 50,000 train images" in task.split


def test_cifar100_as_pickle_is_refused(tmp_path):
    pack(tmp_path / "cifar-100-python.tar.gz", {"cifar-100-python/train": b"", "cifar-100-python/meta": b""})
    with pytest.raises(InputError, match="pickle files can run code"):
        open_task("cifar100", tmp_path)


def test_cifar100_cut_short_is_an_error_that_names_file_and_source(tmp_path):
    write(tmp_path, {"train.bin": cifar(3, 0)[:-1], "test.bin": cifar(3, 0)})
    with pytest.raises(InputError, match=r"CIFAR-100 of VTAB: .*train\.bin is no .*cs\.toronto\.edu"):
        small("cifar100", tmp_path, 1, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_caltech101_keeps_thirty_of_each_class_to_train_on(tmp_path, packed):
    files = {f"101_ObjectCategories/{name}/image_{i:04d}.jpg": png(i) for name in CALTECH for i in range(1, 36)}
    files["101_ObjectCategories/BACKGROUND_Google/tmp"] = b"no image"
    (pack if packed else write)(tmp_path / "101_ObjectCategories.tar.gz" if packed else tmp_path, files)
    task = small("caltech101", tmp_path, 70, 9)
    assert len(task.test) == 15
    assert np.bincount(task.test.labels).tolist() == [5, 5, 5]
    everything = [*names(task.train), *names(task.val), *names(task.test)]
    assert len(set(everything)) == 70 + 9 + 15
    for source in (task.train, task.test):
        folder, name = names(source)[0].split("/")[-2:]
        assert task.classes[source.labels[0]] == folder
        assert (shown(source, 0) == pixels(int(name[6:10]))).all()
    assert task.split == "drawn here with seed 0: not the official ids"
    assert not task.official
    assert names(open_task("caltech101", tmp_path, seed=1, num_train=70, num_val=9).test) != names(task.test)


def test_caltech101_equals_torchvision(tmp_path):
    files = {f"101_ObjectCategories/{name}/image_{i:04d}.jpg": png(i) for name in CALTECH for i in range(1, 33)}
    write(tmp_path / "caltech101", files)
    (tmp_path / "caltech101/Annotations").mkdir()
    theirs = torchvision.datasets.Caltech101(str(tmp_path))
    task = small("caltech101", tmp_path / "caltech101", 75, 5)
    expected = {(theirs.categories[y], i) for y, i in zip(theirs.y, theirs.index)}  # without background
    ours = {
        (task.classes[source.labels[i]], int(name[6:10]))
        for source in (task.train, task.val, task.test)
        for i, name in enumerate(stems(source))
    }
    background = {row for row in ours if row[0] == "BACKGROUND_Google"}
    assert background
    assert ours - background <= expected


def dtd_files() -> dict[str, bytes]:
    files, lines = {}, {"train1": "", "val1": "", "test1": ""}
    for i, name in enumerate(f"{kind}/{kind}_{n:04d}.jpg" for kind in ("banded", "blotchy") for n in range(12)):
        files[f"dtd/images/{name}"] = png(i)
        lines[("train1", "val1", "test1")[i % 3]] += f"{name}\n"
    return files | {f"dtd/labels/{split}.txt": text.encode() for split, text in lines.items()}


@pytest.mark.parametrize("packed", [False, True])
def test_dtd_takes_the_first_fold_and_equals_torchvision(tmp_path, packed):
    write(tmp_path / "theirs", dtd_files())
    write(tmp_path / "theirs/dtd", {"dtd/labels/x": b""})
    if packed:
        pack(tmp_path / "ours/dtd-r1.0.1.tar.gz", dtd_files())
    task = small("dtd", tmp_path / ("ours" if packed else "theirs/dtd"), 6, 5)
    files = dtd_files()
    lists = {split: files[f"dtd/labels/{split}1.txt"].decode().split() for split in ("train", "val", "test")}
    assert stems(task.train) == [key.split("/")[1] for key in tfds_order("train", lists["train"])[:6]]
    assert stems(task.val) == [key.split("/")[1] for key in tfds_order("validation", lists["val"])[:5]]
    root = tmp_path / "torchvision/dtd"
    write(root, files)
    theirs = torchvision.datasets.DTD(str(tmp_path / "torchvision"), split="test")
    assert [str(task.classes[label]) for label in task.test.labels] == [theirs.classes[y] for y in theirs._labels]
    assert (shown(task.test, 3) == np.asarray(theirs[3][0])).all()


def flower_files() -> dict[str, bytes]:
    labels = np.array([[1, 2, 102, 2, 1, 102, 7, 7, 1, 2]])
    splits = mat(trnid=np.array([[6, 1, 7]]), valid=np.array([[2, 3]]), tstid=np.array([[4, 5, 8, 9, 10]]))
    images = {f"jpg/image_{i:05d}.jpg": png(i) for i in range(1, 11)}
    return images | {"imagelabels.mat": mat(labels=labels), "setid.mat": splits}


@pytest.mark.parametrize("packed", [False, True])
def test_flowers102_follows_setid_and_equals_torchvision(tmp_path, monkeypatch, packed):
    files = flower_files()
    images = {name: data for name, data in files.items() if name.startswith("jpg")}
    write(tmp_path / "flowers-102", {name: data for name, data in files.items() if not packed or name not in images})
    if packed:
        pack(tmp_path / "flowers-102/102flowers.tgz", images)
    task = small("flowers102", tmp_path / "flowers-102", 3, 2)
    assert stems(task.train) == tfds_order("train", [f"image_{i:05d}.jpg" for i in (6, 1, 7)])
    assert stems(task.val) == tfds_order("validation", [f"image_{i:05d}.jpg" for i in (2, 3)])
    assert [task.classes[label] for label in task.test.labels] == ["2", "1", "7", "1", "2"]
    write(tmp_path / "flowers-102", images)
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    theirs = torchvision.datasets.Flowers102(str(tmp_path), split="test")
    assert [int(task.classes[label]) - 1 for label in task.test.labels] == theirs._labels
    assert all((shown(task.test, i) == np.asarray(theirs[i][0])).all() for i in range(5))


def test_flowers102_without_a_picture_names_it(tmp_path):
    files = flower_files()
    del files["jpg/image_00008.jpg"]
    write(tmp_path, files)
    with pytest.raises(InputError, match=r"lacks jpg/image_00008.jpg \(1 of 10 are missing\).*robots\.ox"):
        small("flowers102", tmp_path, 1, 1)


def test_flowers102_with_a_damaged_matrix_names_the_file(tmp_path):
    write(tmp_path, flower_files() | {"setid.mat": b"MATLAB 5.0 MAT-file" * 20})
    with pytest.raises(InputError, match=r"Flowers102 of VTAB: cannot read trnid in .*setid\.mat"):
        small("flowers102", tmp_path, 1, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_pets_follow_their_lists_and_equal_torchvision(tmp_path, packed):
    listed = [(f"Abyssinian_{i}", 1, 1) for i in range(9)] + [(f"american_bulldog_{i}", 2, 2) for i in range(9)]
    rows = [f"{name} {breed} {kind} 1" for name, breed, kind in listed]
    annotations = {
        "annotations/trainval.txt": "\n".join(rows[::2]).encode(),
        "annotations/test.txt": "\n".join(["#Image CLASS-ID SPECIES BREED ID", *rows[1::2]]).encode(),
        "annotations/trimaps/Abyssinian_1.png": png(99),
    }
    images = {f"images/{name}.jpg": png(i) for i, (name, *_) in enumerate(listed)}
    root = tmp_path / "oxford-iiit-pet"
    if packed:
        pack(root / "images.tar.gz", images)
        pack(root / "annotations.tar.gz", annotations)
    else:
        write(root, images | annotations)
    task = small("pets", root, 6, 2)
    order = tfds_order("train", [f"{name}.jpg" for name, *_ in listed[::2]])
    assert stems(task.train) == order[:6]
    assert stems(task.val) == order[7:9]
    assert task.classes == ("Abyssinian", "american_bulldog")
    write(root, images | annotations | {"annotations/test.txt": "\n".join(rows[1::2]).encode()})
    theirs = torchvision.datasets.OxfordIIITPet(str(tmp_path), split="test")
    assert task.test.labels.tolist() == theirs._labels
    assert (shown(task.test, 5) == np.asarray(theirs[5][0])).all()


def test_pets_list_that_is_none_is_an_error(tmp_path):
    write(tmp_path, {"annotations/trainval.txt": b"<html>", "images/a_1.jpg": png(0)})
    with pytest.raises(InputError, match=r"trainval\.txt has lines that are not"):
        open_task("pets", tmp_path)


SUN = [f"/a/abbey/sun_{i}.jpg" for i in range(20)] + [f"/c/church/outdoor/sun_{i}.jpg" for i in range(20)]


@pytest.mark.parametrize("packed", [False, True])
def test_sun397_takes_tfds_lists_where_they_are_and_else_draws(tmp_path, packed):
    files = {f"SUN397{name}": png(i) for i, name in enumerate(SUN)}
    (pack if packed else write)(tmp_path / "SUN397.tar" if packed else tmp_path, files)
    task = small("sun397", tmp_path, 28, 4)
    assert len(task.test) == 8
    assert len({*names(task.train), *names(task.val), *names(task.test)}) == 40
    assert task.classes == ("a/abbey", "c/church/outdoor")
    assert task.split == "drawn here with seed 0: not the official ids"

    parts = {"tr": SUN[::2], "va": SUN[1::4], "te": SUN[3::4]}
    write(tmp_path, {f"sun397_tfds_{part}.txt": "\n".join(lines).encode() for part, lines in parts.items()})
    task = small("sun397", tmp_path, 9, 3)
    assert names(task.train) == [f"SUN397{name}" for name in tfds_order("train", parts["tr"])[:9]]
    assert names(task.val) == [f"SUN397{name}" for name in tfds_order("validation", parts["va"])[:3]]
    assert set(names(task.test)) == {f"SUN397{name}" for name in parts["te"]}
    assert (shown(task.test, 0) == pixels(SUN.index(names(task.test)[0].removeprefix("SUN397")))).all()
    write(tmp_path, {"sun397_tfds_te.txt": b"/z/zoo/sun_none.jpg"})
    with pytest.raises(InputError, match=r"lacks /z/zoo/sun_none\.jpg"):
        small("sun397", tmp_path, 9, 3)


def test_sun397_equals_torchvision(tmp_path):
    write(tmp_path, {f"SUN397{name}": png(i) for i, name in enumerate(SUN)})
    (tmp_path / "SUN397/ClassName.txt").write_text("/a/abbey\n/c/church/outdoor\n")
    theirs = torchvision.datasets.SUN397(str(tmp_path))
    label_of = dict(zip((path.relative_to(tmp_path).as_posix() for path in theirs._image_files), theirs._labels))
    task = small("sun397", tmp_path, 28, 4)
    assert {name: int(y) for name, y in zip(names(task.test), task.test.labels)}.items() <= label_of.items()


def test_svhn_counts_ten_as_zero_and_equals_torchvision(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    stored = {}
    for split, count in (("train", 30), ("test", 11)):
        stored[split] = {
            "X": random.integers(0, 256, (32, 32, 3, count)).astype(np.uint8),
            "y": random.integers(1, 11, (count, 1)).astype(np.uint8),
        }
        write(tmp_path, {f"{split}_32x32.mat": mat(**stored[split])})
    task = small("svhn", tmp_path, 20, 3)
    order = tfds_order("train", [str(i) for i in range(30)])
    assert names(task.val) == [f"train/{int(key):05d}" for key in order[27:30]]
    monkeypatch.setattr(torchvision.datasets.SVHN, "_check_integrity", lambda self: True)
    theirs = torchvision.datasets.SVHN(str(tmp_path), split="test")
    assert task.test.labels.tolist() == theirs.labels.tolist()
    assert 10 in stored["test"]["y"]
    assert all((shown(task.test, i) == np.asarray(theirs[i][0])).all() for i in range(11))


def test_svhn_without_its_test_set_says_what_is_needed(tmp_path):
    write(tmp_path, {"train_32x32.mat": mat(X=np.zeros((32, 32, 3, 2), np.uint8), y=np.ones((2, 1)))})
    with pytest.raises(InputError, match=r"SVHN of VTAB: .*lacks test_32x32\.mat; it needs .*ufldl"):
        open_task("svhn", tmp_path)
