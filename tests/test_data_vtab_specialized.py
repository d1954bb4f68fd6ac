import gzip
import io
import pickle

import h5py
import numpy as np
import pytest
import torch
import torchvision.datasets

from vitreous.data.decode import BadImage
from vitreous.data.loader import evaluation_batches
from vitreous.data.views import EvalView
from vitreous.data.vtab.open import open_task
from vitreous.errors import InputError
from vtab_files import names, pack, pixels, png, shown, small, stems, tfds_order, write

CLASSES = ("AnnualCrop", "Forest", "SeaLake")


def camelyon_files(suffix: str) -> dict[str, bytes]:
    files = {}
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("valid", 6), ("test", 5)):
        arrays = {
            "x": random.integers(0, 256, (count, 96, 96, 3)).astype(np.uint8),
            "y": random.integers(0, 2, (count, 1, 1, 1)).astype(np.uint8),
        }
        for name, array in arrays.items():
            content = io.BytesIO()
            with h5py.File(content, "w") as file:
                file.create_dataset(name, data=array, chunks=(1, *array.shape[1:]), compression="gzip")
            data = content.getvalue()
            files[f"camelyonpatch_level_2_split_{part}_{name}.h5{suffix}"] = gzip.compress(data) if suffix else data
    return files


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_camelyon_is_read_patch_by_patch_and_equals_torchvision(tmp_path, suffix):
    write(tmp_path / "ours", camelyon_files(suffix))
    write(tmp_path / "pcam", camelyon_files(""))
    task = small("camelyon", tmp_path / "ours", 15, 4)
    train = tfds_order("train", [f"train_{i}" for i in range(20)])[:15]
    val = tfds_order("validation", [f"valid_{i}" for i in range(6)])[:4]
    for split, source, order in (("train", task.train, train), ("val", task.val, val)):
        theirs = torchvision.datasets.PCAM(str(tmp_path), split=split)
        rows = [int(key.split("_")[1]) for key in order]
        assert names(source) == [f"{key.split('_')[0]}/{row:05d}" for key, row in zip(order, rows)]
        assert source.labels.tolist() == [theirs[row][1] for row in rows]
        assert all((shown(source, i) == np.asarray(theirs[row][0])).all() for i, row in enumerate(rows))
        assert len(pickle.dumps(source)) < 5000  # the pixels stay in the file


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_are_read_by_the_workers_of_the_loader(tmp_path, num_workers):
    pack(tmp_path / "a/EuroSAT.zip", {f"{name}/{name}_{i}.jpg": png(i) for name in CLASSES for i in range(10)})
    write(tmp_path / "b", camelyon_files(""))
    for source in (small("eurosat", tmp_path / "a", 17, 6).train, small("camelyon", tmp_path / "b", 15, 4).train):
        source.image(0)  # opened here, and then again by each worker
        view = EvalView(image_size=source.image(0).size[0], crop_ratio=1)
        (batch,) = evaluation_batches(source, view, batch_size=17, num_workers=num_workers)
        assert batch.labels is not None
        assert batch.labels.tolist() == source.labels.tolist()
        expected = np.stack([np.asarray(source.image(i)).transpose(2, 0, 1) for i in range(len(source))])
        assert torch.equal(batch.images[0], view.normalise(torch.from_numpy(expected)))


def test_camelyon_cut_short_names_the_file(tmp_path):
    files = camelyon_files("")
    name = "camelyonpatch_level_2_split_valid_x.h5"
    write(tmp_path, files | {name: files[name][:9000]})
    with pytest.raises(InputError, match=rf"Camelyon of VTAB: cannot read x in .*{name}.*zenodo"):
        small("camelyon", tmp_path, 1, 1)


def test_camelyon_with_a_damaged_patch_fails_at_that_patch_alone(tmp_path):
    files = camelyon_files("")
    name = "camelyonpatch_level_2_split_test_x.h5"
    with h5py.File(io.BytesIO(files[name])) as file:
        chunk = file["x"].id.get_chunk_info(3)
    damaged = bytearray(files[name])
    damaged[chunk.byte_offset + 10 : chunk.byte_offset + 500] = bytes(490)
    write(tmp_path, files | {name: bytes(damaged)})
    test = small("camelyon", tmp_path, 15, 4).test
    assert test.image(2).size == (96, 96)
    with pytest.raises(BadImage, match=rf"damaged in {name}"):
        test.image(3)


def test_camelyon_without_a_part_names_it(tmp_path):
    files = camelyon_files("")
    del files["camelyonpatch_level_2_split_test_y.h5"]
    write(tmp_path, files)
    with pytest.raises(InputError, match=r"lacks camelyonpatch_level_2_split_test_y\.h5"):
        small("camelyon", tmp_path, 1, 1)


@pytest.mark.parametrize("packed", [False, True])
def test_eurosat_is_cut_60_20_20_in_the_order_of_tfds_and_equals_torchvision(tmp_path, packed):
    files = {f"2750/{name}/{name}_{i}.jpg": png(i) for name in CLASSES for i in range(1, 11)}
    (pack if packed else write)(tmp_path / "ours/EuroSAT.zip" if packed else tmp_path / "ours", files)
    task = small("eurosat", tmp_path / "ours", 17, 6)
    order = tfds_order("train", [f"{name}_{name}_{i}.jpg" for name in CLASSES for i in range(1, 11)])
    files_in_order = [key.split("_", 1)[1] for key in order]
    assert stems(task.train) == files_in_order[:17]
    assert stems(task.val) == files_in_order[18:24]
    assert set(stems(task.test)) == set(files_in_order[24:])
    assert not task.official
    assert "out of 30 of 27,000 train images" in task.split
    write(tmp_path / "eurosat", files)
    theirs = torchvision.datasets.EuroSAT(str(tmp_path))
    known = {path.split("/")[-1]: (theirs.classes[y], i) for i, (path, y) in enumerate(theirs.samples)}
    for i, name in enumerate(stems(task.test)):
        label, row = known[name]
        assert task.classes[task.test.labels[i]] == label
        assert (shown(task.test, i) == np.asarray(theirs[row][0])).all()


@pytest.mark.parametrize("packing", ["", "NWPU-RESISC45.zip", "NWPU-RESISC45.tar"])
def test_resisc45_is_cut_60_20_20_in_the_order_of_tfds(tmp_path, packing):
    kinds = ("airplane", "sea_ice")
    files = {f"NWPU-RESISC45/{name}/{name}_{i:03d}.jpg": png(i) for name in kinds for i in range(1, 11)}
    (pack if packing else write)(tmp_path / packing, files)
    task = small("resisc45", tmp_path, 12, 4)
    order = tfds_order("train", [f"{name}_{name}_{i:03d}.jpg" for name in kinds for i in range(1, 11)])
    assert [f"{task.classes[y]}_{name}" for y, name in zip(task.train.labels, stems(task.train))] == order[:12]
    assert [f"{task.classes[y]}_{name}" for y, name in zip(task.val.labels, stems(task.val))] == order[12:16]
    assert (shown(task.val, 1) == pixels(int(order[13][-7:-4]))).all()


def test_resisc45_as_rar_is_refused_with_advice(tmp_path):
    write(tmp_path, {"NWPU-RESISC45.rar": b"Rar!"})
    with pytest.raises(InputError, match=r"cannot be read in place; unpack it once"):
        open_task("resisc45", tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_retinopathy_splits_the_solution_by_its_usage(tmp_path, packed):
    train = [(f"{i}_left", i % 5) for i in range(10)]
    solution = [(f"{i}_right", (i * 3) % 5, "Public" if i % 3 == 0 else "Private") for i in range(12)]
    write(
        tmp_path,
        {
            "trainLabels.csv": "\r\n".join(["image,level", *(f"{n},{y}" for n, y in train)]).encode(),
            "retinopathy_solution.csv": "\n".join(
                ["image,level,Usage", *(f"{n},{y},{u}" for n, y, u in solution)]
            ).encode(),
        },
    )
    for folder, rows in (("train", train), ("test", solution)):
        files = {f"{folder}/{row[0]}.jpeg": png(row[1]) for row in rows}
        (pack if packed else write)(tmp_path / f"{folder}.zip" if packed else tmp_path, files)
    task = small("retinopathy", tmp_path, 8, 3)
    assert stems(task.train) == [f"{key}.jpeg" for key in tfds_order("train", [name for name, _ in train])[:8]]
    public = [name for name, _, usage in solution if usage == "Public"]
    assert stems(task.val) == [f"{key}.jpeg" for key in tfds_order("validation", public)[:3]]
    assert stems(task.test) == [f"{name}.jpeg" for name, _, usage in solution if usage == "Private"]
    assert task.test.labels.tolist() == [level for _, level, usage in solution if usage == "Private"]
    assert (shown(task.test, 2) == pixels(int(task.test.labels[2]))).all()
    assert any("btgraham-300" in note for note in task.notes)


def test_retinopathy_without_the_solution_or_with_a_strange_level_is_an_error(tmp_path):
    write(tmp_path, {"trainLabels.csv": b"image,level\n1_left,2\n", "train/1_left.jpeg": png(0)})
    with pytest.raises(InputError, match=r"lacks retinopathy_solution\.csv; it needs .*kaggle"):
        open_task("retinopathy", tmp_path)
    write(tmp_path, {"trainLabels.csv": b"image,level\n1_left,7\n", "retinopathy_solution.csv": b"image,level\na,1\n"})
    with pytest.raises(InputError, match=r"trainLabels\.csv needs the columns image and level"):
        open_task("retinopathy", tmp_path)
