import gzip
import json
import struct

import h5py
import numpy as np
import pytest
import torchvision.datasets

from vitreous.data.vtab import tfrecord
from vitreous.data.vtab.open import open_task
from vitreous.errors import InputError
from vtab_files import names, pack, pixels, png, shown, small, stems, tfds_order, write


def clevr_files() -> dict[str, bytes]:
    files = {}
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 12)):
        scenes = []
        for i in range(count):
            depths = random.uniform(7, 12, random.integers(3, 11)).tolist()
            if i < 2:
                depths[0] = min(8.5, min(depths))
            things = [{"pixel_coords": [1, 2, depth], "shape": "cube"} for depth in depths]
            name = f"CLEVR_{part}_{i:06d}.png"
            scenes.append({"image_filename": name, "objects": things})
            files[f"CLEVR_v1.0/images/{part}/{name}"] = png(i)
        files[f"CLEVR_v1.0/scenes/CLEVR_{part}_scenes.json"] = json.dumps({"scenes": scenes}).encode()
    return files


@pytest.mark.parametrize("packed", [False, True])
def test_clevr_counts_objects_less_three_and_equals_torchvision(tmp_path, packed):
    files = clevr_files()
    (pack if packed else write)(tmp_path / "ours/CLEVR_v1.0.zip" if packed else tmp_path / "ours", files)
    task = small("clevr-count", tmp_path / "ours", 16, 2)
    order = tfds_order("train", [f"CLEVR_train_{i:06d}.png" for i in range(20)])
    assert stems(task.train) == order[:16]
    assert stems(task.val) == order[18:]
    assert stems(task.test) == [f"CLEVR_val_{i:06d}.png" for i in range(12)]
    write(tmp_path / "clevr", files)
    theirs = torchvision.datasets.CLEVRClassification(str(tmp_path), split="val")
    expected = {path.split("/")[-1]: number for path, number in zip(map(str, theirs._image_files), theirs._labels)}
    assert [int(task.classes[y]) for y in task.test.labels] == [expected[name] for name in stems(task.test)]
    assert (task.test.labels + 3).tolist() == [expected[name] for name in stems(task.test)]
    assert (shown(task.test, 4) == pixels(4)).all()


def test_clevr_distance_is_the_last_threshold_under_the_nearest_object(tmp_path):
    files = clevr_files()
    write(tmp_path, files)
    task = small("clevr-dist", tmp_path, 16, 2)
    scenes = json.loads(files["CLEVR_v1.0/scenes/CLEVR_val_scenes.json"])["scenes"]
    thresholds = np.array([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])
    for label, scene in zip(task.test.labels, scenes):
        distance = np.float32(min(thing["pixel_coords"][2] for thing in scene["objects"]))
        assert label == np.where(thresholds - distance < 0)[0].max()  # the formula of task_adaptation/data/clevr.py
    assert len(task.classes) == 6


def test_clevr_without_scenes_or_with_broken_ones_is_an_error(tmp_path):
    files = clevr_files()
    del files["CLEVR_v1.0/scenes/CLEVR_val_scenes.json"]
    write(tmp_path, files)
    with pytest.raises(InputError, match=r"Clevr-Count of VTAB: .*lacks scenes/CLEVR_val_scenes\.json"):
        small("clevr-count", tmp_path, 1, 1)
    write(tmp_path, {"CLEVR_v1.0/scenes/CLEVR_val_scenes.json": b'{"scenes": [{}]}'})
    with pytest.raises(InputError, match=r"CLEVR_val_scenes\.json holds no scenes"):
        small("clevr-count", tmp_path, 1, 1)


def slow_crc32c(data: bytes) -> int:
    """Bit by bit, from the definition."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 1023, 1024, 1025, 5000])
def test_crc32c_equals_its_definition(length):
    data = np.random.default_rng(length).integers(0, 256, length).astype(np.uint8).tobytes()
    assert tfrecord.crc32c(data) == slow_crc32c(data)


def test_crc32c_gives_the_published_check_values():
    assert tfrecord.crc32c(b"123456789") == 0xE3069283
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert tfrecord.crc32c(b"\xff" * 32) == 0x62A8AB43


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def tagged(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(image: bytes, filename: str, label: int, *, packed: bool) -> bytes:
    integers = tagged(1, varint(label)) if packed else varint(1 << 3) + varint(label)
    values = {
        "image": tagged(1, tagged(1, image)),
        "weight": tagged(2, tagged(1, struct.pack("<f", 0.5))),
        "label": tagged(3, integers),
        "filename": tagged(1, tagged(1, filename.encode())),
    }
    entries = b"".join(tagged(1, tagged(1, key.encode()) + tagged(2, value)) for key, value in values.items())
    return tagged(1, entries)


def record(data: bytes) -> bytes:
    def checksum(part: bytes) -> bytes:
        crc = slow_crc32c(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + checksum(length) + data + checksum(data)


def dmlab_files() -> dict[str, bytes]:
    files = {}
    for split, count in (("train", 12), ("validation", 5), ("test", 7)):
        records = [record(example(png(i), f"{split}_{i}.jpg", i % 6, packed=i % 2 == 0)) for i in range(count)]
        files[f"dmlab-{split}.tfrecord-00000-of-00002"] = b"".join(records[:3])
        files[f"dmlab-{split}.tfrecord-00001-of-00002"] = b"".join(records[3:])
    return files


@pytest.mark.parametrize("packing", ["", "dmlab.tar.gz"])
def test_dmlab_is_read_from_tfrecords_in_the_order_of_tfds(tmp_path, packing):
    (pack if packing else write)(tmp_path / packing, dmlab_files())
    task = small("dmlab", tmp_path, 10, 3)
    assert names(task.train) == tfds_order("train", [f"train_{i}.jpg" for i in range(12)])[:10]
    assert names(task.val) == tfds_order("validation", [f"validation_{i}.jpg" for i in range(5)])[:3]
    assert names(task.test) == [f"test_{i}.jpg" for i in range(7)]
    for source in (task.train, task.test):
        number = int(names(source)[3].split("_")[1][:-4])
        assert source.labels[3] == number % 6
        assert (shown(source, 3) == pixels(number)).all()


@pytest.mark.parametrize(
    ("position", "reason"), [(3, "no TFRecord file, or damaged at byte 0"), (60, "damaged at byte 0: wrong checksum")]
)
def test_dmlab_with_one_bit_turned_is_an_error(tmp_path, position, reason):
    files = dmlab_files()
    name = "dmlab-validation.tfrecord-00000-of-00002"
    damaged = bytearray(files[name])
    damaged[position] ^= 1
    write(tmp_path, files | {name: bytes(damaged)})
    with pytest.raises(InputError, match=rf"{name} is {reason}"):
        small("dmlab", tmp_path, 1, 1)


def test_dmlab_cut_short_or_without_a_split_is_an_error(tmp_path):
    files = dmlab_files()
    name = "dmlab-test.tfrecord-00001-of-00002"
    write(tmp_path, files | {name: files[name][:-5]})
    with pytest.raises(InputError, match=r"ends within a record"):
        small("dmlab", tmp_path, 1, 1)
    (tmp_path / name).unlink()
    (tmp_path / name.replace("00001", "00000", 1)).unlink()
    with pytest.raises(InputError, match=r"lacks dmlab-test\.tfrecord\*; it needs dmlab\.tar\.gz.*dmlab-vtab"):
        small("dmlab", tmp_path, 1, 1)


def test_dmlab_in_a_zip_is_to_be_unpacked(tmp_path):
    pack(tmp_path / "dmlab.zip", dmlab_files())
    with pytest.raises(InputError, match=r"is packed in .*dmlab\.zip; unpack that once"):
        small("dmlab", tmp_path, 1, 1)


def test_dmlab_record_that_is_no_example_is_an_error(tmp_path):
    write(tmp_path, dmlab_files() | {"dmlab-train.tfrecord-00000-of-00002": record(b"\xff" * 40)})
    with pytest.raises(InputError, match=r"lacks image, label or filename at byte 12"):
        small("dmlab", tmp_path, 1, 1)


SPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64"


def sprites() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    latents = np.stack([random.integers(0, size, 1000) for size in (1, 3, 6, 40, 32, 32)], axis=1)
    return random.integers(0, 2, (1000, 64, 64)).astype(np.uint8), latents


@pytest.mark.parametrize("suffix", ["npz", "hdf5"])
@pytest.mark.parametrize("name", ["dsprites-loc", "dsprites-ori"])
def test_dsprites_are_cut_80_10_10_with_places_and_turns_in_16_classes(tmp_path, suffix, name):
    images, latents = sprites()
    if suffix == "npz":
        pickled = np.array([{"never": "read"}], dtype=object)
        np.savez_compressed(tmp_path / f"{SPRITES}.npz", imgs=images, latents_classes=latents, metadata=pickled)
    else:
        with h5py.File(tmp_path / f"{SPRITES}.hdf5", "w") as file:
            file["imgs"] = images
            file["latents/classes"] = latents
    task = small(name, tmp_path, 700, 90)
    order = [int(key) for key in tfds_order("train", [str(i) for i in range(1000)])]
    column, size = (4, 32) if name == "dsprites-loc" else (3, 40)
    for source, rows in (
        (task.train, order[:700]),
        (task.val, order[800:890]),
        (task.test, sorted(order[900:])),
    ):
        assert names(source) == [f"train/{row:05d}" for row in rows]
        assert source.labels.tolist() == [latents[row, column] // (size / 16) for row in rows]
        assert (shown(source, 7) == 255 * images[rows[7]][..., None]).all()
    assert set(task.test.labels) == set(range(16))


def test_dsprites_damaged_or_absent_is_an_error(tmp_path):
    with pytest.raises(InputError, match=rf"dSpr-Loc of VTAB: .*lacks {SPRITES}\.npz"):
        open_task("dsprites-loc", tmp_path)
    images, latents = sprites()
    np.savez_compressed(tmp_path / f"{SPRITES}.npz", imgs=images[:5], latents_classes=latents[:5])
    whole = (tmp_path / f"{SPRITES}.npz").read_bytes()
    (tmp_path / f"{SPRITES}.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"cannot read .*{SPRITES}\.npz"):
        open_task("dsprites-loc", tmp_path)


def kitti_files() -> tuple[dict[str, bytes], dict[str, bytes]]:
    random = np.random.default_rng(0)
    images, labels = {}, {}
    for i in range(60):
        rows = []
        for kind in random.choice(["Car", "Van", "Truck", "Pedestrian", "DontCare"], random.integers(1, 4)):
            depth = -1000.0 if kind == "DontCare" else float(random.choice([7.5, 8.0, 8.01, 20.0, 33.3]))
            rows.append(f"{kind} 0.00 0 -0.20 1.0 2.0 3.0 4.0 1.5 1.6 1.7 1.8 1.9 {depth} 0.01")
        labels[f"training/label_2/{i:06d}.txt"] = "\n".join(rows).encode()
        images[f"training/image_2/{i:06d}.png"] = png(i)
        images[f"testing/image_2/{i:06d}.png"] = png(100 + i)
    return images, labels


@pytest.mark.parametrize("packed", [False, True])
def test_kitti_labels_are_the_distance_of_the_nearest_vehicle_as_torchvision_reads_it(tmp_path, packed):
    images, labels = kitti_files()
    if packed:
        pack(tmp_path / "ours/data_object_image_2.zip", images)
        pack(tmp_path / "ours/data_object_label_2.zip", labels)
    else:
        write(tmp_path / "ours", images | labels)
    task = small("kitti", tmp_path / "ours", 40, 5)
    assert task.split == "drawn here with seed 0: not the official ids"
    assert len({*names(task.train), *names(task.val), *names(task.test)}) == 40 + 5 + 6
    write(tmp_path / "Kitti/raw", images | labels)
    theirs = torchvision.datasets.Kitti(str(tmp_path))
    row_of = {path.split("/")[-1]: row for row, path in enumerate(theirs.images)}  # in no order
    for source in (task.train, task.val, task.test):
        for i, name in enumerate(stems(source)):
            image, things = theirs[row_of[name]]
            depths = [thing["location"][2] for thing in things if thing["type"] in ("Car", "Van", "Truck")]
            nearest = min([*depths, 1000.0])  # as task_adaptation/data/kitti.py has it
            assert source.labels[i] == np.where(np.array([-100.0, 8.0, 20.0, 999.0]) - nearest < 0)[0].max()
            assert (shown(source, i) == np.asarray(image)).all()


@pytest.mark.parametrize("packed", [False, True])
def test_kitti_is_split_by_drives_where_the_development_kit_lies_beside(tmp_path, packed):
    images, labels = kitti_files()
    random = np.random.default_rng(1)
    lines = [f"2011_09_26 2011_09_26_drive_{i % 20:04d}_sync {i:010d}" for i in range(60)]
    places = random.permutation(60) + 1
    kit = {
        "mapping/train_rand.txt": ",".join(map(str, places)).encode(),
        "mapping/train_mapping.txt": "\n".join(lines).encode(),
    }
    write(tmp_path, images | labels)
    (pack if packed else write)(tmp_path / "devkit_object.zip" if packed else tmp_path / "devkit", kit)
    task = small("kitti", tmp_path, 40, 3)

    drive_of = [lines[place - 1].split(" ")[1] for place in places]
    np.random.seed(123)
    test = set(np.random.choice(sorted(set(drive_of)), 2, replace=False))
    validation = set(np.random.choice(sorted(set(drive_of) - test), 2, replace=False))
    files = {
        "validation": [f"{i:06d}.png" for i, drive in enumerate(drive_of) if drive in validation],
        "train": [f"{i:06d}.png" for i, drive in enumerate(drive_of) if drive not in validation | test],
    }
    assert stems(task.test) == [f"{i:06d}.png" for i, drive in enumerate(drive_of) if drive in test]
    assert stems(task.train) == tfds_order("train", files["train"])[:40]
    assert stems(task.val) == tfds_order("validation", files["validation"])[:3]
    assert "60 of 6,347" not in task.split
    assert "48 of 6,347 train images" in task.split


def test_kitti_without_labels_says_what_is_needed(tmp_path):
    write(tmp_path, kitti_files()[0])
    with pytest.raises(
        InputError, match=r"KITTI-Dist of VTAB: .*lacks training/label_2/000000\.txt; it needs .*cvlibs"
    ):
        open_task("kitti", tmp_path)


def norb(array: np.ndarray) -> bytes:
    magic = {np.dtype("u1"): 507333717, np.dtype("<i4"): 507333716}[array.dtype]
    sizes = list(array.shape) + [1] * (3 - array.ndim)
    return struct.pack("<ii", magic, array.ndim) + struct.pack(f"<{len(sizes)}i", *sizes) + array.tobytes()


def norb_files(suffix: str) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    files, arrays = {}, {}
    for split, stem, count in (
        ("train", "smallnorb-5x46789x9x18x6x2x96x96-training", 15),
        ("test", "smallnorb-5x01235x9x18x6x2x96x96-testing", 20),
    ):
        images = random.integers(0, 256, (count, 2, 96, 96)).astype(np.uint8)
        info = np.stack([random.integers(0, size, count) for size in (10, 9, 18, 6)], axis=1).astype("<i4")
        info[:, 2] *= 2
        arrays |= {f"{split} images": images, f"{split} info": info}
        category = random.integers(0, 5, count).astype("<i4")
        for kind, array in (("dat", images), ("cat", category), ("info", info)):
            data = norb(array)
            files[f"{stem}-{kind}.mat{suffix}"] = gzip.compress(data) if suffix else data
    return files, arrays


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(("name", "column", "step"), [("snorb-azim", 2, 2), ("snorb-elev", 1, 1)])
def test_smallnorb_takes_the_first_camera_and_halves_the_test_set(tmp_path, suffix, name, column, step):
    files, arrays = norb_files(suffix)
    write(tmp_path, files)
    task = small(name, tmp_path, 12, 8)
    train = [int(key) for key in tfds_order("train", [str(i) for i in range(15)])[:12]]
    held_out = [int(key) for key in tfds_order("test", [str(i) for i in range(20)])]
    for split, source, rows in (
        ("train", task.train, train),
        ("test", task.val, held_out[:8]),
        ("test", task.test, sorted(held_out[10:])),
    ):
        assert names(source) == [f"{split}/{row:05d}" for row in rows]
        assert source.labels.tolist() == [arrays[f"{split} info"][row, column] // step for row in rows]
        assert (shown(source, 2) == arrays[f"{split} images"][rows[2], 0][..., None]).all()
    assert len(task.classes) == task.task.num_classes


def test_smallnorb_damaged_or_absent_is_an_error(tmp_path):
    files, _ = norb_files("")
    name = "smallnorb-5x46789x9x18x6x2x96x96-training-dat.mat"
    write(tmp_path, files | {name: files[name][:-1]})
    with pytest.raises(InputError, match=rf"sNORB-Elev of VTAB: .*{name} is not whole"):
        small("snorb-elev", tmp_path, 1, 1)
    write(tmp_path, {name: b"PNG" * 10})
    with pytest.raises(InputError, match=r"is no smallNORB matrix"):
        small("snorb-elev", tmp_path, 1, 1)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=rf"lacks {name}; it needs"):
        small("snorb-elev", tmp_path, 1, 1)


def test_label_out_of_range_is_an_error(tmp_path):
    files, arrays = norb_files("")
    arrays["test info"][3, 1] = 9
    write(tmp_path, files | {"smallnorb-5x01235x9x18x6x2x96x96-testing-info.mat": norb(arrays["test info"])})
    with pytest.raises(InputError, match=r"labels .* are not those of 9 classes"):
        small("snorb-elev", tmp_path, 12, 10)
