"""Containers made to do harm, or damaged so that they could: one line, or a note, and little memory."""

import gzip
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pictures import encoded, noise
from test_data_shards import good, header, sample
from vitreous.data import tars
from vitreous.data.layouts import open_data
from vitreous.errors import InputError

END = bytes(1024)
PNG = encoded(noise(7))
IMAGE = header("c.png", b"%011o\0" % len(PNG)) + PNG.ljust(-(-len(PNG) // 512) * 512, b"\0")


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A header that changes what the next one says."""
    body = b"".join(records)
    return header("pax", b"%011o\0" % len(body), kind) + body + bytes(-len(body) % 512)


def record(key: bytes, value: bytes) -> bytes:
    """An entry of such a header, which begins with its own length."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


def long_name(length: int) -> bytes:
    """A header that names the next member, as GNU tar writes it."""
    name = b"d/" * (length // 2 - 2) + b"x.png"[: length % 2 + 4]
    return header("L", b"%011o\0" % len(name), b"L") + name + bytes(-len(name) % 512)


SPARSE = record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")
REFUSED = {
    "a size of exabytes": (pax(record(b"size", b"4611686018427387904")) + IMAGE, "unexpected end of data"),
    "a size below zero": (pax(record(b"size", b"-1")) + IMAGE, "a header leads back to an earlier one"),
    "a size that is none": (pax(record(b"size", b"zz")) + IMAGE, "a damaged header"),
    "a size of many digits": (pax(record(b"size", b"9" * 5000)) + IMAGE, "a damaged header"),
    "a size of nothing": (pax(record(b"size", b"0")) + IMAGE, "a damaged header"),
    "a size that is no whole number": (pax(record(b"size", b"nan")) + IMAGE, "a damaged header"),
    "a record of no length": (pax(b"0 path=x\n") + IMAGE, "a damaged header"),
    "a header of megabytes": (pax(record(b"comment", b"x" * 2_000_000)) + IMAGE, "a header of 2,000,384 bytes"),
    "a path of kilobytes": (pax(record(b"path", b"d/" * 9000 + b"x.png")) + IMAGE, "a name of 18,005 characters"),
    "a long name of kilobytes": (long_name(900_000) + IMAGE, "a name of 900,000 characters"),
    "a map of holes that is none": (pax(SPARSE) + IMAGE, ""),
    "a map of holes without end": (
        pax(SPARSE) + header("c.png", b"%011o\0" % 512) + (b"9" * 500 + b"\n").ljust(512, b"\0"),
        "",
    ),
    "another tar behind it": (END + sample("c", "cat", 3), "more members follow behind the mark that ends it"),
    "another tar far behind it": (bytes(10_240) + sample("c", "cat", 3), "more members follow"),
    "members behind a lone block of zeros": (bytes(512) + sample("c", "cat", 3), "more members follow"),
}
KEPT = {
    "nothing more": b"",
    "a megabyte of zeros": bytes(1_000_000),
    "letters behind the end": END + b"x" * 3000,
    "a path that leads out": pax(record(b"path", b"../../x.png")) + IMAGE,
    "a comment": pax(record(b"comment", b"x" * 100_000)) + header("vol", kind=b"V"),
    "a volume": header("vol", kind=b"V"),
    "a part of another volume": header("c.png", b"%011o\0" % len(PNG), b"M") + IMAGE[512:],
    "holes of long ago": header("s", b"%011o\0" % 512, b"S") + bytes(512),
    "no name": header("", b"%011o\0" % len(PNG)) + IMAGE[512:],
    "a map of many holes": pax(record(b"GNU.sparse.map", b"0," * 100_000 + b"0")) + IMAGE,
}
CONTAINERS = {"tar": "all.tar", "tar.gz": "all.tar.gz", "shards": "in/train-0.tar"}


@pytest.fixture(params=CONTAINERS)
def container(request, tmp_path):
    """Writes a tar as one of the things it may be, and says what to open."""
    path = tmp_path / CONTAINERS[request.param]
    path.parent.mkdir(exist_ok=True)

    def write(data: bytes) -> Path:
        path.write_bytes(gzip.compress(data, mtime=0) if request.param == "tar.gz" else data)
        return path.parent if request.param == "shards" else path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        open_data(str(path))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("what", REFUSED)
def test_a_tar_with_it_is_refused_in_one_line_and_little_memory(what, container):
    data, reason = REFUSED[what]
    path = container(good() + data + END)
    tracemalloc.start()
    line = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert f"is no whole tar ({reason}" in line
    assert len(line) < 500
    assert peak < 25_000_000


@pytest.mark.parametrize("what", KEPT)
def test_a_tar_with_it_gives_its_images(what, container):
    train = open_data(str(container(good() + KEPT[what] + END))).train
    assert [train.read(i) for i in range(len(train))] == [encoded(noise(1)), encoded(noise(2))]


@pytest.mark.parametrize("left", [1, 100, 511, 512, 513, 600])
def test_a_tar_that_ends_within_a_header_or_a_member_is_refused(left, container):
    assert "is no whole tar (" in refusal(container(good() + sample("c", "cat", 3)[:left]))


def test_what_is_packed_tight_is_not_unpacked_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "SMALL_BYTES", 2_000_000)
    (tmp_path / "all.tar.gz").write_bytes(gzip.compress(good() + header("c.png", b"00777777777\0") + bytes(50_000_000)))
    tracemalloc.start()
    line = refusal(tmp_path / "all.tar.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "all.tar.gz unpacks to more than 10 MB, too much for memory; run gunzip once" in line
    assert peak < 40_000_000


@pytest.mark.parametrize("name", ["train-0.tar", "train-0.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_a_folder_is_not_waited_for(name, kind, tmp_path):
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    assert f"{name} is not a regular file" in refusal(tmp_path)
    assert "neither a folder nor a regular file" in refusal(tmp_path / name)


TYPES = {
    "a list of images": (pa.array([[b"x"], [b"y"]]), "no column of images"),
    "images in a struct in a struct": (
        pa.array([{"a": {"bytes": b"x"}}] * 2, pa.struct({"a": pa.struct({"bytes": pa.binary()})})),
        "no column of images",
    ),
    "a map": (pa.array([[("bytes", b"x")]] * 2, pa.map_(pa.string(), pa.binary())), "no column of images"),
    "bytes of fixed length": (pa.array([b"xy", b"ab"], pa.binary(2)), "no column of images"),
    "numbers": (pa.array([1.5, 2.5]), "no column of images"),
    "texts": (pa.array(["x", "y"]), "no column of images"),
    "nothing at all": (pa.nulls(2), "no column of images"),
}


@pytest.mark.parametrize("what", TYPES)
def test_columns_of_other_types_are_named(what, tmp_path):
    images, reason = TYPES[what]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "a.parquet")
    line = refusal(tmp_path / "a.parquet")
    assert reason in line
    assert f"its columns are image ({str(images.type)[:4]}" in line


def test_a_parquet_that_is_cut_anywhere_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [PNG] * 9, "label": [0, 1, 2] * 3}), path, row_group_size=2)
    whole = path.read_bytes()
    for length in (*range(12), len(whole) // 2, *range(len(whole) - 40, len(whole))):
        path.write_bytes(whole[:length])
        assert "is no whole parquet file" in refusal(path)
    for size in (0, 1, len(whole), 2**31 - 1, 2**31, 2**32 - 1):  # of the footer
        path.write_bytes(whole[:-8] + size.to_bytes(4, "little") + b"PAR1")
        assert "a.parquet" in refusal(path)


@pytest.mark.parametrize("packing", ["snappy", "gzip", "zstd", "brotli"])
def test_a_cell_that_unpacks_without_bound_costs_its_row_group(packing, tmp_path, monkeypatch):
    monkeypatch.setattr("vitreous.data.parquet.MAX_GROUP_BYTES", 5_000_000)
    pq.write_table(
        pa.table({"image": [bytes(9_000_000), PNG], "label": [0, 1]}), tmp_path / "a.parquet", compression=packing
    )
    assert "a row group of 9 MB, all of which would be read for one image" in refusal(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("label", "kind"), [(b"x", "binary"), (0.5, "double"), ([0.5], "list"), ({"a": 1}, "struct"), (None, "null")]
)
def test_labels_of_other_types_are_none_and_named(label, kind, tmp_path):
    pq.write_table(pa.table({"image": [PNG, PNG], "label": [label, label]}), tmp_path / "a.parquet")
    opened = open_data(str(tmp_path / "a.parquet"))
    assert opened.train.labels.tolist() == [-1, -1]
    assert any(f"no column holds labels (label is {kind}" in note for note in opened.notes)
