import gc
import io
import json
import os
import pickle
import tarfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pictures import class_folders, encoded, noise, packed
from vitreous.console import Console
from vitreous.data import shards as module
from vitreous.data.decode import BadImage
from vitreous.data.layouts import open_data, open_held_out, short_name
from vitreous.data.loader import training_batches
from vitreous.data.pack import pack
from vitreous.data.pack_shard import Settings
from vitreous.data.shard_index import INDEX, read_index
from vitreous.data.shard_listing import braces
from vitreous.data.shards import ShardSource
from vitreous.data.views import EvalView
from vitreous.errors import InputError

SMALL = Settings(shard_bytes=10_000)
QUIET = Console(quiet=True)


@pytest.fixture
def folders(tmp_path) -> Path:
    """Training images of three classes and a few to measure on."""
    class_folders(tmp_path / "photos" / "train", ("ant", "cat", "dog"), each=6)
    class_folders(tmp_path / "photos" / "val", ("cat", "dog"), each=2, first_seed=100)
    return tmp_path / "photos"


@pytest.fixture
def shards(folders, tmp_path) -> Path:
    pack(str(folders), tmp_path / "shards", settings=SMALL, console=QUIET)
    return tmp_path / "shards"


def contents(source) -> list[tuple[str, str, bytes]]:
    return [(source.name(i), source.classes[source.labels[i]], source.read(i)) for i in range(len(source))]


def train_of(path: Path) -> ShardSource:
    source = open_data(str(path)).train
    assert isinstance(source, ShardSource)
    return source


def refusal(path) -> str:
    with pytest.raises(InputError) as error:
        open_data(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


# What is read


def test_packed_data_are_the_data_that_were_packed(folders, shards):
    given, found = open_data(str(folders)), open_data(str(shards))
    assert list(found.named()) == list(given.named()) == ["train", "val"]
    assert contents(found.train) == contents(given.train)
    assert contents(found.val) == contents(given.val)
    assert found.train.classes == given.train.classes
    assert len(list(shards.glob("train-*.tar"))) > 2


def test_shards_without_an_index_are_read_by_their_headers(folders, shards):
    (shards / INDEX).unlink()
    given, found = open_data(str(folders)), open_data(str(shards))
    assert [data for *_, data in contents(found.train)] == [data for *_, data in contents(given.train)]
    assert found.train.labels.tolist() == given.train.labels.tolist()
    assert found.train.classes == ("0", "1", "2")
    assert found.train.name(0) == "train-000000.tar/000000000.png"
    assert [len(source) for source in found.named().values()] == [18, 4]


def test_braces_name_some_of_the_shards(shards):
    whole = contents(open_data(str(shards)).train)
    num = len(list(shards.glob("train-*.tar")))
    pattern = f"{shards}/train-{{000000..{num - 1:06}}}.tar"
    assert contents(open_data(pattern).train) == whole
    assert [row[0] for row in contents(open_data(f"{shards}/train-00000{{0,2}}.tar").train)] == [
        shown for k in (0, 2) for shown in [row[0] for row in contents(open_held_out(f"{shards}/train-{k:06}.tar")[1])]
    ]
    (shards / INDEX).unlink()
    assert [row[2] for row in contents(open_data(pattern).train)] == [row[2] for row in whole]
    assert short_name(pattern) == "train"


def test_braces_are_read_as_webdataset_reads_them():
    import braceexpand

    for pattern in ("a-{00..12}.tar", "{a,b}/x-{0..2}.tar", "{09..11}", "x.tar", "{a,b}{c,d}"):
        assert [str(path) for path in braces(pattern)] == list(braceexpand.braceexpand(pattern))


@pytest.mark.parametrize(
    "pattern", ["{0..99999999999}.tar", "{3..1}.tar", "{a.tar", "{a{b,c}}.tar", "{0..999999}{0..9}"]
)
def test_braces_that_name_too_much_or_nothing_are_refused(pattern):
    with pytest.raises(InputError, match="cannot read the braces of"):
        braces(pattern)


def test_a_missing_shard_of_braces_is_named(shards):
    assert "1 of 2 tars are missing" in refusal(f"{shards}/train-{{000000,000077}}.tar")


def test_the_split_is_in_the_name_of_a_shard_or_within_it(tmp_path):
    files = {f"{name}/{i}.png": encoded(noise(i)) for name in ("cat", "dog") for i in range(2)}
    for name in ("imagenet-train-00.tar", "imagenet-validation-00.tar", "set_test.tar"):
        packed(files, tmp_path / name)
    assert [len(source) for source in open_data(str(tmp_path)).named().values()] == [4, 4, 4]
    packed({f"val/{name}": data for name, data in files.items()}, tmp_path / "more-00.tar")
    assert [len(source) for source in open_data(str(tmp_path)).named().values()] == [4, 8, 4]


def test_a_choice_keeps_names_labels_and_bytes(shards):
    train = train_of(shards)
    chosen = train.select([7, 2]).select([1, 0, 1])
    rows = contents(train)
    assert contents(chosen) == [rows[2], rows[7], rows[2]]


def test_a_copy_in_another_process_reads_the_same(shards):
    train = train_of(shards)
    train.read(0)
    assert contents(pickle.loads(pickle.dumps(train))) == contents(train)


def test_a_source_of_many_images_is_small_to_send(shards):
    train = train_of(shards)
    many = train.select(np.arange(100_000) % len(train))
    assert len(pickle.dumps(many)) < 17 * 100_000  # row and label; all else is there once


def test_few_files_are_open_at_a_time(shards, monkeypatch):
    monkeypatch.setattr(module, "MAX_OPEN", 2)
    train = train_of(shards)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    for i in [*range(len(train)), *reversed(range(len(train)))]:
        train.read(i)
        assert len(os.listdir("/proc/self/fd")) <= before + 2
    del train
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_stamp_is_of_sizes_and_times(shards):
    def stamp():
        return open_data(str(shards)).train.stamp()

    first = stamp()
    assert stamp() == first
    os.utime(shards / "val-000000.tar", (1, 1))
    assert stamp() == first
    os.utime(shards / "train-000000.tar", (1, 1))
    second = stamp()
    assert second != first
    os.utime(shards / INDEX, (1, 1))
    assert stamp() not in (first, second)


def test_processes_see_every_image_of_an_epoch_once_however_uneven_shards_are(tmp_path):
    sizes = (17, 1, 6)
    count = iter(range(100))
    for k, size in enumerate(sizes):
        files = {}
        for _ in range(size):
            i = next(count)
            files |= {f"{i}.png": encoded(noise(i)), f"{i}.cls": str(i % 2).encode()}
        packed(files, tmp_path / f"train-{k}.tar")
    train = open_data(str(tmp_path)).train
    view = EvalView(image_size=8)
    seen = []
    for rank in range(2):
        batches = list(
            training_batches(
                train,
                view,
                batch_size=8,
                seed=0,
                first_step=0,
                steps=3,
                num_micro_batches=2,
                mine=range(rank, rank + 1),
            )
        )
        assert len(batches) == 3
        seen += [i for batch in batches for i in batch.index.tolist()]
    assert sorted(seen) == list(range(24))


def test_worker_processes_read_shards(shards):
    view = EvalView(image_size=8)
    train = train_of(shards)
    found = [
        list(training_batches(train, view, batch_size=6, seed=0, first_step=0, steps=3, num_workers=workers))
        for workers in (0, 2)
    ]
    for mine, theirs in zip(*found):
        assert np.array_equal(mine.images, theirs.images)


# What is wrong


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_noticed_and_named(shards):
    train = train_of(shards)
    row = train.starts[1] + 1
    flip(shards / "train-000001.tar", int(train.offsets[row]) + 100)
    with pytest.raises(BadImage) as error:
        train.read(row)
    assert str(error.value) == (
        f"train-000001.tar, member {row:09}: its bytes are not those that were packed (CRC-32); "
        "fetch or pack the file again"
    )
    assert train.read(row - 1) == open_data(str(shards)).train.read(row - 1)


def test_a_shard_that_is_cut_short_while_it_is_read_is_named(shards):
    train = train_of(shards)
    os.truncate(shards / "train-000000.tar", 700)
    with pytest.raises(BadImage, match=r"train-000000.tar, member 000000000: the file ends before the image does"):
        train.read(0)
    assert "train-000000.tar has 700 bytes, its index says" in refusal(shards)


def test_a_shard_that_was_replaced_is_noticed(shards):
    path = shards / "train-000000.tar"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(BadImage, match=r"train-000000.tar, member 000000000: its bytes are not those"):
        open_data(str(shards)).train.read(0)


def test_a_shard_that_has_gone_is_named(shards):
    train = train_of(shards)
    (shards / "train-000000.tar").unlink()
    with pytest.raises(BadImage, match=r"train-000000.tar, member 000000000: cannot be read \(No such file"):
        train.read(0)
    assert "tars are missing" in refusal(shards)
    os.mkfifo(shards / "train-000000.tar")
    with pytest.raises(BadImage, match="not a regular file"):
        train.read(0)
    assert "is not a regular file" in refusal(shards)


def header(name: str, size: bytes = b"00000000000\0", kind: bytes = b"0", link: str = "") -> bytes:
    """A header of a tar that may say anything."""
    member = tarfile.TarInfo(name)
    member.linkname = link
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def sample(key: str, label: str = "cat", seed: int = 0) -> bytes:
    """An image and its label, as a part of a tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in ((f"{key}.png", encoded(noise(seed))), (f"{key}.cls", label.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        return file.getvalue()


def good() -> bytes:
    return sample("a", "cat", 1) + sample("b", "dog", 2)


ABSURD = {
    "octal overflow": b"77777777777\0",
    "eight exabytes": b"\x80" + (2**63 - 1).to_bytes(11, "big"),
    "beyond all integers": b"\x80" + b"\xff" * 11,
    "negative": b"\xff" + (-512).to_bytes(11, "big", signed=True),
    "very negative": b"\xff" + (-(2**62)).to_bytes(11, "big", signed=True),
    "no number": b"zzzzzzzzzzz\0",
}


@pytest.mark.parametrize("kind", [b"0", b"L", b"K", b"x", b"g", b"S", b"7", b"5", b"?"])
@pytest.mark.parametrize("size", ABSURD.values(), ids=ABSURD)
def test_absurd_sizes_in_headers_are_refused_or_skipped_in_one_line(tmp_path, kind, size):
    path = tmp_path / "train-0.tar"
    path.write_bytes(good() + header("c.png", size, kind) + bytes(1024) + good() + bytes(1024))
    if kind == b"5" and size != ABSURD["no number"]:  # of folders no size counts
        return
    assert "train-0.tar is no whole tar (" in refusal(tmp_path)


def test_a_damaged_header_does_not_end_a_tar_without_a_word(tmp_path):
    data = bytearray(good() + sample("c", "dog", 3) + bytes(1024))
    data[len(good())] ^= 1
    (tmp_path / "train-0.tar").write_bytes(data)
    assert f"is no whole tar (a damaged header at byte {len(good()):,})" in refusal(tmp_path)


def test_links_pipes_devices_and_sparse_files_are_skipped_with_a_note(tmp_path):
    strange = b"".join(
        header(f"z{kind!r}.png", kind=kind, link="/etc/passwd") for kind in (b"1", b"2", b"3", b"4", b"6")
    )
    (tmp_path / "train-0.tar").write_bytes(good() + strange + bytes(1024))
    splits = open_data(str(tmp_path))
    assert len(splits.train) == 2
    assert splits.notes == ["5 links or special members of train-0.tar are skipped"]
    with tarfile.open(tmp_path / "train-0.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a", "b", "c"):
            for suffix, content in (("png", encoded(noise())), ("cls", name.encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                if name == "c" and suffix == "png":
                    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "c.png"}
                    content, member.size = b"1\n0\n9\n".ljust(512, b"\0") + b"123456789", 521
                tar.addfile(member, io.BytesIO(content))
    splits = open_data(str(tmp_path))
    assert len(splits.train) == 2
    assert splits.notes == [
        "1 links or special members of train-0.tar are skipped",
        "1 labels of train-0.tar have no image: c.cls",
    ]


def test_names_that_lead_elsewhere_are_only_names(tmp_path):
    (tmp_path / "in").mkdir()
    parts = [sample(key, "cat", i) for i, key in enumerate(("../../up", "/etc/absolute", "a/../../b", "C:\\x"))]
    (tmp_path / "in" / "train-0.tar").write_bytes(b"".join(parts) + sample("d", "dog", 9) + bytes(1024))
    before = sorted(tmp_path.rglob("*"))
    splits = open_data(str(tmp_path / "in"))
    names = [splits.train.name(i) for i in range(len(splits.train))]
    assert names == ["train-0.tar//etc/absolute.png", "train-0.tar/C:\\x.png", "train-0.tar/d.png"]
    assert splits.notes == ["4 members of train-0.tar lead out of it and are skipped: ../../up.png"]
    pack(str(tmp_path / "in"), tmp_path / "out", settings=SMALL, console=QUIET)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "out", *(tmp_path / "out").iterdir()])
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        assert all(name.rpartition(".")[0].isdigit() for name in tar.getnames())


def test_odd_names_are_kept(tmp_path):
    odd = ["ünï 日本 🌷", os.fsdecode(b"latin-\xe9"), "two\nlines"]
    files = {f"{name}{suffix}": data for name in odd for suffix, data in ((".png", encoded(noise())), (".cls", b"0"))}
    packed({**files, "x.png": encoded(noise(1)), "x.cls": b"1"}, tmp_path / "train-0.tar")
    train = open_data(str(tmp_path)).train
    assert [train.name(i) for i in range(3)] == [f"train-0.tar/{name}.png" for name in odd]
    pack(str(tmp_path), tmp_path.parent / "again", settings=SMALL, console=QUIET)
    assert [open_data(str(tmp_path.parent / "again")).train.name(i) for i in range(3)] == [
        f"train-0.tar/{name}.png" for name in odd
    ]


def test_what_does_not_belong_together_is_said(tmp_path):
    path = tmp_path / "train-0.tar"
    path.write_bytes(good() + sample("b", "ant", 5) + bytes(1024))
    splits = open_data(str(tmp_path))
    assert splits.notes == ["2 members of train-0.tar bear the name of an earlier one, which does not count"]
    assert splits.train.classes == ("ant", "cat")
    packed({"a.png": b"x", "a.jpg": b"y", "a.cls": b"0", "b.png": b"z", "b.cls": b"1"}, path)
    assert open_data(str(tmp_path)).notes == ["1 images of train-0.tar share their label with another"]
    packed({"a.png": b"x", "a.cls": b"0", "b.png": b"z", "b.cls": b"1", "c.cls": b"1"}, path)
    assert open_data(str(tmp_path)).notes == ["1 labels of train-0.tar have no image: c.cls"]
    packed({"a.png": b"x", "a.cls": b"0", "b.png": b"z"}, path)
    assert "b.png has no label beside it; add b.cls" in refusal(tmp_path)
    packed({"a.png": b"x", "b.png": b"z"}, path)
    assert open_data(str(tmp_path)).train.labels.tolist() == [-1, -1]
    packed({"c.png": b"y", "c.cls": b"0"}, tmp_path / "train-1.tar")
    assert "train-0.tar holds no labelled images, other tars do; it needs a label beside" in refusal(tmp_path)
    (tmp_path / "train-1.tar").unlink()
    packed({"a.cls": b"0"}, path)
    assert "1 tars hold no images" in refusal(tmp_path)
    assert "or a label beside each image (1.jpg, 1.cls)" in refusal(path)
    packed({"a.png": b"x", "a.cls": b"9" * 2_000_000}, path)
    assert "the label a.cls has 2,000,000 bytes; give its class" in refusal(tmp_path)
    packed({"a.png": b"x", "a.json": b"[" * 500_000}, path)
    assert "a.png has no label beside it" in refusal(tmp_path)
    path.write_bytes(bytes(1024))
    assert "1 tars hold no images" in refusal(tmp_path)


def test_an_empty_shard_among_others_is_noted(tmp_path):
    (tmp_path / "train-0.tar").write_bytes(good() + bytes(1024))
    (tmp_path / "train-1.tar").write_bytes(bytes(1024))
    assert open_data(str(tmp_path)).notes == ["train-1.tar is empty"]


def test_packed_shards_are_refused_before_they_are_unpacked(tmp_path):
    (tmp_path / "train-0.tar").write_bytes(good() + bytes(1024))
    bomb = zlib.compressobj(9, wbits=31)
    (tmp_path / "train-1.tar").write_bytes(bomb.compress(bytes(10_000_000)) + bomb.flush())
    assert "train-1.tar is gzip'ed, and shards are read at random places; unpack it with gunzip" in refusal(tmp_path)
    (tmp_path / "train-1.tar").rename(tmp_path / "train-1.tar.gz")
    assert "train-1.tar.gz is gzip'ed" in refusal(tmp_path)


def test_an_image_of_absurd_size_is_not_read(shards):
    train = train_of(shards)
    train.sizes = train.sizes.copy()
    train.sizes[0] = 4_000_000_000
    with pytest.raises(BadImage, match=r"member 000000000: 4.0 GB is over the limit of 1 GB"):
        train.read(0)


# The index


def changed(path: Path, **members: object) -> None:
    """Replace members of an npz file: arrays, or bytes as they are."""
    with zipfile.ZipFile(path) as file:
        contents = {name: file.read(name) for name in file.namelist()}
    for name, value in members.items():
        data = io.BytesIO()
        if not isinstance(value, bytes):
            np.lib.format.write_array(data, np.asarray(value))
        contents[f"{name}.npy"] = value if isinstance(value, bytes) else data.getvalue()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)


def about(path: Path, **fields: object) -> np.ndarray:
    with np.load(path) as arrays:
        found = json.loads(arrays["about"].tobytes())
    return np.frombuffer(json.dumps(found | fields).encode(), np.uint8)


def test_an_index_is_written_as_it_was_read(shards):
    index = read_index(shards / INDEX)
    assert index.encoded() == (shards / INDEX).read_bytes()
    with np.load(shards / INDEX, allow_pickle=False) as arrays:
        assert set(arrays) == {*("about", "offsets", "sizes", "labels", "checksums", "name_lengths", "name_text")}
        assert json.loads(arrays["about"].tobytes())["num_images"] == {"train": 18, "val": 4}


def test_an_index_that_names_places_outside_of_its_shards_is_refused(shards):
    index = read_index(shards / INDEX)
    for wrong in (2**62, -1, 0, 10_000_000):
        offsets = index.offsets.copy()
        offsets[3] = wrong
        (shards / INDEX).write_bytes(replace(index, offsets=offsets).encoded())
        assert "is damaged (image 3 lies outside of its shard)" in refusal(shards)


@pytest.mark.parametrize(
    ("member", "value", "reason"),
    [
        ("offsets", np.zeros(3, "<i8"), "its parts tell of different numbers of images"),
        ("offsets", np.array([{}] * 22, dtype=object), "offsets is object"),
        ("offsets", np.zeros((22, 1), "<i8"), "offsets is int64 of shape"),
        ("offsets", np.zeros(22, ">f8"), "offsets is >f8"),
        ("labels", np.full(22, 99, "<i4"), "it has labels beyond its classes"),
        ("name_lengths", np.full(22, 2**32 - 1, "<u4"), "names do not fit their lengths"),
        ("about", np.frombuffer(b"[" * 100_000, np.uint8), "is damaged ("),
        ("about", np.frombuffer(b"null", np.uint8), "is damaged ("),
    ],
)
def test_an_index_whose_parts_do_not_fit_is_refused(shards, member, value, reason):
    if value.dtype == object:
        data = io.BytesIO()
        np.lib.format.write_array(data, value, allow_pickle=True)
        value = data.getvalue()
    changed(shards / INDEX, **{member: value})
    assert reason in refusal(shards)


def test_an_index_that_claims_a_huge_count_takes_no_memory(shards):
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<i8", "fortran_order": False, "shape": (2**40,)})
    changed(shards / INDEX, offsets=data.getvalue())
    assert "offsets is int64 of shape (1099511627776,) in 0 bytes" in refusal(shards)
    first, *rest = [vars(shard) for shard in read_index_of(shards).shards]
    changed(
        shards / INDEX,
        offsets=np.zeros(22, "<i8"),
        about=about(shards / INDEX, shards=[first | {"num_images": 2**60}, *rest]),
    )
    assert "its parts tell of different numbers of images" in refusal(shards)


def read_index_of(shards: Path):
    changed(shards / INDEX, offsets=np.full(22, 512, "<i8"))
    return read_index(shards / INDEX)


def test_an_index_that_is_a_bomb_is_refused(shards):
    bomb = io.BytesIO()
    np.lib.format.write_array(bomb, np.zeros(10_000_000, np.uint8))
    with zipfile.ZipFile(shards / INDEX, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("about.npy", bomb.getvalue())
    assert "about is compressed" in refusal(shards)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "../../x.tar"}, "no name of a shard: '../../x.tar'"),
        ({"name": "train-000001.tar"}, "it names a shard twice"),
        ({"num_bytes": -1}, "has impossible numbers"),
        ({"first_key": 0.5}, "has impossible numbers"),
        ({"surprise": 1}, "surprise"),
        ({"bad": 7}, "is damaged ("),
    ],
)
def test_an_index_of_strange_shards_is_refused(shards, fields, reason):
    first, *rest = [vars(shard) for shard in read_index(shards / INDEX).shards]
    changed(shards / INDEX, about=about(shards / INDEX, shards=[first | fields, *rest]))
    assert reason in refusal(shards)


def test_an_index_of_a_later_format_says_so(shards):
    changed(shards / INDEX, about=about(shards / INDEX, format=3))
    assert "has format 3, this vitreous reads up to 2; update vitreous" in refusal(shards)


def test_no_damage_to_an_index_or_a_tar_is_more_than_one_line(shards, tmp_path):
    random = np.random.default_rng(0)
    whole = (shards / INDEX).read_bytes()
    plain = tmp_path / "plain"
    plain.mkdir()
    tar = sample("a", "cat", 1) + sample("long" * 60, "dog", 2) + sample("c", "cat", 3) + bytes(1024)
    for _ in range(60):
        for path, data, folder in ((shards / INDEX, whole, shards), (plain / "train-0.tar", tar, plain)):
            damaged = bytearray(data)
            for _ in range(random.integers(1, 4)):
                damaged[random.integers(len(damaged))] = random.integers(256)
            path.write_bytes(damaged[: random.integers(1, len(damaged) + 1)] if random.random() < 0.3 else damaged)
            assert "\n" not in outcome(folder)


def outcome(folder: Path) -> str:
    """What is said of data that may be damaged, or nothing."""
    try:
        contents(open_data(str(folder)).train)
    except InputError as error:
        return str(error)
    return ""


def test_images_without_label_are_refused(shards):
    index = read_index(shards / INDEX)
    labels = index.labels.copy()
    labels[1] = -1
    (shards / INDEX).write_bytes(replace(index, labels=labels).encoded())
    assert "1 of 22 images in" in refusal(shards)
    assert "have no label (train/ant/1.png); pack labelled images" in refusal(shards)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's
def test_webdataset_and_tarfile_read_the_shards(folders, shards):
    given = open_data(str(folders)).train
    urls = sorted(map(str, shards.glob("train-*.tar")))
    read = webdataset.WebDataset(urls, shardshuffle=False)  # pyright: ignore[reportAttributeAccessIssue]
    samples = list(read.decode("pil"))
    gc.collect()
    assert [row["__key__"] for row in samples] == [f"{i:09}" for i in range(18)]
    assert [row["cls"] for row in samples] == given.labels.tolist()
    for i, row in enumerate(samples):
        assert np.array_equal(np.asarray(row["png"]), np.asarray(given.image(i)))
    with tarfile.open(urls[0]) as tar:
        keys = [name.partition(".")[0] for name in tar.getnames()]
        assert keys == sorted(keys)
        assert tar.getnames()[:4] == ["000000000.png", "000000000.cls", "000000001.png", "000000001.cls"]


def test_shards_that_webdataset_wrote_are_read(tmp_path):
    with webdataset.writer.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=3, verbose=0) as writer:
        for i in range(8):
            writer.write({"__key__": f"{i:04}", "png": encoded(noise(i)), "cls": i % 3})
    source = train_of(tmp_path)
    assert len(list(tmp_path.glob("*.tar"))) == 3
    assert source.classes == ("0", "1", "2")
    assert source.labels.tolist() == [i % 3 for i in range(8)]
    assert [source.read(i) for i in range(8)] == [encoded(noise(i)) for i in range(8)]


def test_headers_that_only_announce_the_next_end_somewhere(tmp_path):
    endless = (header("a", b"00000000001\0", b"L") + bytes(512)) * 3000
    (tmp_path / "train-0.tar").write_bytes(good() + endless + bytes(1024))
    assert "train-0.tar is no whole tar (" in refusal(tmp_path)
