import csv
import errno
import io
import os

import pytest

from vitreous.errors import InputError
from vitreous.files import csv_text, write_bytes, write_folder, write_text, writing


def test_what_is_written_is_there_and_nothing_beside_it(tmp_path):
    write_bytes(tmp_path / "a" / "b" / "x.bin", b"\0\1")
    assert (tmp_path / "a" / "b" / "x.bin").read_bytes() == b"\0\1"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x.bin"]


def test_a_link_stays_a_link_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "there")
    (tmp_path / "file").symlink_to(tmp_path / "there" / "x")  # which is not there yet
    write_bytes(tmp_path / "file", b"1")
    assert (tmp_path / "there" / "x").read_bytes() == b"1"
    write_folder(tmp_path / "folder", {"y": b"2"})
    assert (tmp_path / "there" / "y").read_bytes() == b"2"
    assert (tmp_path / "folder").is_symlink()
    assert (tmp_path / "file").is_symlink()
    assert {entry.name for entry in tmp_path.iterdir()} == {"there", "folder", "file"}


def test_a_folder_may_have_as_long_a_name_as_the_system_allows(tmp_path):
    write_folder(tmp_path / ("n" * 250), {"x": b"1"})
    assert (tmp_path / ("n" * 250) / "x").read_bytes() == b"1"


def test_text_is_utf8_and_odd_bytes_survive(tmp_path):
    write_text(tmp_path / "x", "né\udcff\n")
    assert (tmp_path / "x").read_bytes() == "né".encode() + b"\xff\n"


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(step, fault, tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_bytes(path, b"old")

    def fail(*_):
        raise fault

    monkeypatch.setattr(os, step, fail)
    with pytest.raises((InputError, KeyboardInterrupt)):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_data_is_on_disk_before_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("sync") or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *pair: calls.append("rename") or replace(*pair))
    write_bytes(tmp_path / "x", b"data")
    assert calls == ["sync", "rename", "sync"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EFBIG, "larger than a file may be"),
        (errno.EBUSY, "mounted there"),
        (errno.EACCES, "you may not write there"),
    ],
)
def test_the_systems_refusal_becomes_advice(number, advice, tmp_path):
    with pytest.raises(InputError, match=advice), writing(tmp_path):
        raise OSError(number, os.strerror(number))


def test_another_fault_stays_itself(tmp_path):
    with pytest.raises(OSError, match="Bad file") as error, writing(tmp_path):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    assert not isinstance(error.value, InputError)


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="part of that path is a file"):
        write_bytes(tmp_path / "file" / "x", b"")


def test_a_name_that_is_too_long_is_named(tmp_path):
    with pytest.raises(InputError, match="too long"):
        write_bytes(tmp_path / ("x" * 300), b"")


def test_whatever_a_cell_holds_comes_back():
    rows = [["a", "b"], ["x,y", 'say "so"'], ["line\nfeed", "carriage\rreturn"], ["", " "]]
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == rows
