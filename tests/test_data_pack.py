import io
import json
import os
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import class_folders, encoded, noise, smooth, write
from vitreous.claim import locked
from vitreous.console import Console
from vitreous.data import pack as module
from vitreous.data.data_config import DataConfig
from vitreous.data.layouts import open_data
from vitreous.data.pack import BAD_IMAGES, CLASSES, WORK, pack
from vitreous.data.pack_shard import Settings, member
from vitreous.data.prepare import prepare
from vitreous.data.shard_index import INDEX
from vitreous.errors import InputError

SMALL = Settings(shard_bytes=10_000)
QUIET = Console(quiet=True)


@pytest.fixture
def folders(tmp_path) -> Path:
    return class_folders(tmp_path / "photos", ("ant", "cat", "dog"), each=7)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def packed(data: Path | str, folder: Path, *, settings: Settings = SMALL, workers: int = 2) -> dict[str, bytes]:
    pack(str(data), folder, settings=settings, workers=workers, console=QUIET)
    return files(folder)


def refusal(data: Path | str, folder: Path, **options) -> str:
    with pytest.raises(InputError) as error:
        packed(data, folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# What comes out


def test_shards_are_the_same_whatever_the_number_of_workers(folders, tmp_path):
    one, *others = (packed(folders, tmp_path / str(n), workers=n) for n in (1, 2, 7))
    assert len(one) > 3
    assert all(other == one for other in others)


def test_no_shard_is_larger_than_asked_unless_one_image_is(folders, tmp_path):
    shards = [data for name, data in packed(folders, tmp_path / "a").items() if name.endswith(".tar")]
    assert all(6_000 < len(data) <= 10_000 for data in shards[:-1])
    write({"cat/large.bmp": encoded(noise(width=100, height=100), "BMP")}, folders)
    found = packed(folders, tmp_path / "b")
    assert max(map(len, found.values())) > 30_000
    large = [name for name, data in found.items() if len(data) > 30_000]
    with tarfile.open(tmp_path / "b" / large[0]) as tar:
        assert [Path(name).suffix for name in tar.getnames()] == [".bmp", ".cls"]


def test_bytes_are_untouched_and_pixels_without_a_file_become_png(tmp_path):
    packed("digits", tmp_path / "digits", settings=Settings())
    given, found = open_data("digits").train, open_data(str(tmp_path / "digits")).train
    assert found.name(17) == given.name(17) == "digits/00017"
    assert found.classes == given.classes
    assert np.array_equal(found.labels, given.labels)
    for i in range(0, 1797, 100):
        with Image.open(io.BytesIO(found.read(i))) as image:
            assert image.format == "PNG"
            assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(given.image(i)))


def test_a_run_on_packed_data_is_a_run_on_the_data(folders, tmp_path):
    packed(folders, tmp_path / "shards")
    given, found = (prepare(DataConfig(path=str(path))) for path in (folders, tmp_path / "shards"))
    assert found.fingerprint == given.fingerprint
    assert found.split_csv() == given.split_csv()


def test_only_larger_images_are_resized(tmp_path):
    photo, small = encoded(smooth(90, 60), "JPEG"), encoded(smooth(40, 30))
    write({"a/wide.jpg": photo, "a/small.png": small, "b/tall.png": encoded(smooth(20, 400))}, tmp_path / "in")
    packed(tmp_path / "in", tmp_path / "out", settings=Settings(resize_max=40, quality=95))
    train = open_data(str(tmp_path / "out")).train
    found = {train.name(i): train.read(i) for i in range(3)}
    assert found["a/small.png"] == small
    sizes = {name: Image.open(io.BytesIO(data)).size for name, data in found.items()}
    assert sizes == {"a/wide.jpg": (40, 27), "a/small.png": (40, 30), "b/tall.png": (2, 40)}
    wide = np.asarray(Image.open(io.BytesIO(found["a/wide.jpg"])).convert("L"), dtype=float)
    exact = Image.open(io.BytesIO(photo)).resize((40, 27), Image.Resampling.BICUBIC).convert("L")
    assert np.abs(wide - np.asarray(exact, dtype=float)).mean() < 2
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        suffixes = [name.partition(".")[2] for name in tar.getnames() if not name.endswith("cls")]
    assert suffixes == ["png", "jpg", "jpg"]


def test_a_turned_photo_is_resized_as_it_is_looked_at(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(smooth(80, 40), "JPEG", exif=exif)
    write({"a/1.jpg": turned, "b/1.jpg": encoded(smooth(8, 8), "JPEG")}, tmp_path / "in")
    packed(tmp_path / "in", tmp_path / "out", settings=Settings(resize_max=40))
    image = open_data(str(tmp_path / "out")).train.image(0)
    assert image.size == (20, 40)


def test_a_member_is_what_tarfile_writes_and_tar_lists(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(member("000000000.jpg", b"x" * 700) + member("000000000.cls", b"7") + bytes(1024))
    listed = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
    assert (listed.stdout.split(), listed.stderr) == (["000000000.jpg", "000000000.cls"], "")
    with tarfile.open(path) as tar:
        content = tar.extractfile("000000000.jpg")
        assert content is not None
        assert content.read() == b"x" * 700


# What cannot be read


def test_images_that_cannot_be_read_are_left_out_and_listed(folders, tmp_path):
    whole = (folders / "cat" / "3.png").read_bytes()
    write({"cat/3.png": whole[:-40], "cat/empty.png": b"", "dog/two\nlines.png": b"text"}, folders)
    os.mkfifo(folders / "dog" / "pipe.png")
    found = packed(folders, tmp_path / "shards")
    rows = [line.split("\t") for line in found[BAD_IMAGES].decode().splitlines()]
    assert rows == [
        ["train", "cat/3.png", f"truncated after {len(whole) - 40} bytes"],
        ["train", "cat/empty.png", "empty file"],
        ["train", "dog/pipe.png", "not a regular file"],
        ["train", "dog/two\\nlines.png", "not an image (text)"],
    ]
    assert len(open_data(str(tmp_path / "shards")).train) == 20
    assert found == packed(folders, tmp_path / "one", workers=1)


def test_a_split_without_a_readable_image_is_refused(tmp_path):
    class_folders(tmp_path / "in" / "train")
    write({"val/cat/1.png": b"", "val/dog/1.png": b"text"}, tmp_path / "in")
    assert refusal(tmp_path / "in", tmp_path / "out") == (
        "no image of val can be read (val/cat/1.png: empty file; val/dog/1.png: not an image (text)); give images"
    )


# Again


KILLED = """
import os, sys
from pathlib import Path
from vitreous.console import Console
from vitreous.data.pack import pack
from vitreous.data.pack_shard import Settings

data, place = sys.argv[1], Path(sys.argv[2])

def run(folder, calls_left):
    pid = os.fork()
    if pid == 0:
        for module, name in ((os, "fsync"), (os, "replace"), (os, "open")):
            def limited(*arguments, function=getattr(module, name), **options):
                nonlocal calls_left
                calls_left -= 1
                if calls_left == 0:
                    os.kill(os.getpid(), 9)
                return function(*arguments, **options)
            setattr(module, name, limited)
        pack(data, folder, settings=Settings(shard_bytes=20_000), workers=1, console=Console(quiet=True))
        os._exit(0)
    return os.waitpid(pid, 0)[1]

kills = 0
while run(place / str(kills), 1 + 6 * kills) == 9:
    assert run(place / str(kills), -1) == 0
    kills += 1
print(kills)
"""


def test_a_pack_killed_at_any_moment_and_run_again_gives_the_same_bytes(folders, tmp_path):
    whole = packed(folders, tmp_path / "whole", settings=Settings(shard_bytes=20_000))
    (tmp_path / "killed").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, folders, tmp_path / "killed"], capture_output=True, text=True, check=True
    )
    kills = int(done.stdout)
    assert kills > 8
    for k in range(kills):
        assert files(tmp_path / "killed" / str(k)) == whole


def test_a_pack_that_is_there_is_checked_and_what_is_damaged_is_written_again(folders, tmp_path):
    whole = packed(folders, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in whole}
    damaged = bytearray(whole["train-000001.tar"])
    damaged[1000] ^= 1
    (tmp_path / "out" / "train-000001.tar").write_bytes(damaged)
    (tmp_path / "out" / "train-000002.tar").unlink()
    again = pack(str(folders), tmp_path / "out", settings=SMALL, console=QUIET)
    assert again.num_written == 2
    assert files(tmp_path / "out") == whole
    kept = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    assert kept == before["train-000000.tar"]
    assert pack(str(folders), tmp_path / "out", settings=SMALL, console=QUIET).num_written == 0


def test_a_damaged_note_of_a_shard_costs_only_that_shard(folders, tmp_path, monkeypatch):
    whole = packed(folders, tmp_path / "whole")
    monkeypatch.setattr(module, "_finish", lambda *_: None)
    pack(str(folders), tmp_path / "out", settings=SMALL, console=QUIET)
    monkeypatch.undo()
    (tmp_path / "out" / WORK / "train-000001.tar.npz").write_bytes(b"half")
    assert pack(str(folders), tmp_path / "out", settings=SMALL, console=QUIET).num_written == 1
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize("settings", [Settings(shard_bytes=12_000), Settings(shard_bytes=10_000, resize_max=8)])
def test_other_settings_are_refused(folders, tmp_path, settings):
    packed(folders, tmp_path / "out")
    assert "holds other data, or these packed with other settings" in refusal(
        folders, tmp_path / "out", settings=settings
    )


def test_data_that_have_changed_are_refused(folders, tmp_path):
    packed(folders, tmp_path / "out")
    os.utime(folders / "cat" / "1.png", (1, 1))
    assert "or before they changed; give another folder, or remove it" in refusal(folders, tmp_path / "out")


# Where it goes


def test_a_folder_that_holds_something_else_is_left_alone(folders, tmp_path):
    write({"mine/notes.txt": b"x", "shards/train-000000.tar": b"x", "file": b"x"}, tmp_path)
    assert f"{tmp_path}/mine holds something else (notes.txt)" in refusal(folders, tmp_path / "mine")
    assert "holds something else (train-000000.tar)" in refusal(folders, tmp_path / "shards")
    assert "file is no folder" in refusal(folders, tmp_path / "file")
    assert files(tmp_path / "mine") == {"notes.txt": b"x"}
    (tmp_path / "empty").mkdir()
    assert INDEX in packed(folders, tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_bytes(b"x")
    assert "holds something else (notes.txt)" in refusal(folders, tmp_path / "empty")


def test_shards_among_the_data_are_refused(folders):
    for inside in (folders, folders / "new", folders / "cat"):
        assert "which holds the data; give a folder elsewhere" in refusal(folders, inside)
    assert not (folders / "new").exists()


def test_two_packs_at_once_are_refused(folders, tmp_path):
    with locked(tmp_path / "out" / WORK):
        assert "another process" in refusal(folders, tmp_path / "out")


def test_a_disk_that_takes_no_more_is_said_and_gone_on_from(tmp_path):
    class_folders(tmp_path / "in", each=30)
    whole = packed(tmp_path / "in", tmp_path / "whole", settings=Settings(shard_bytes=60_000))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        said = refusal(tmp_path / "in", tmp_path / "out", settings=Settings(shard_bytes=60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (
        said
        == f"cannot write {tmp_path}/out/train-000000.tar: it is larger than a file may be there; choose another place"
    )
    assert not list((tmp_path / "out" / WORK).glob("*.tmp"))
    assert packed(tmp_path / "in", tmp_path / "out", settings=Settings(shard_bytes=60_000)) == whole


# The command


def test_the_command_says_what_it_packed(vitreous, folders, tmp_path):
    write({"cat/bad.png": b""}, folders)
    answer = vitreous("data", "pack", folders, tmp_path / "out", "--shard-size", "10kb", "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert found["splits"]["train"]["images"] == 21
    assert found["left_out"] == [{"split": "train", "file": "cat/bad.png", "reason": "empty file"}]
    assert f"1 images are left out (all in {tmp_path}/out/bad_images.txt):" in answer.err
    assert "  cat/bad.png: empty file" in answer.err
    again = vitreous("data", "pack", folders, tmp_path / "out", "--shard-size", "10kb")
    assert "train  21 images in 6 shards" in again.out
    assert "(0 shards written)" in again.out
    assert (tmp_path / "out" / CLASSES).read_text() == "ant\ncat\ndog\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard-size", "1 parsec"], "--shard-size is '1 parsec'; give a size from 10KB up, such as 256MB or 1GB"),
        (["--shard-size", "100"], "--shard-size is '100'"),
        (["--quality", "0"], "--quality is 0; it must lie between 1 and 100"),
        (["--resize-max", "0"], "--resize-max is 0"),
        (["--workers", "0"], "--workers is 0"),
        (["--workers", "1.5"], "--workers takes a whole number"),
    ],
)
def test_settings_out_of_range_are_one_line(vitreous, folders, options, message):
    answer = vitreous("data", "pack", folders, "out", *options)
    assert answer.code == 2
    assert message in answer.err
    assert answer.err.count("\n") == 1


def test_a_place_without_permission_is_one_line(vitreous, folders):
    for place in ("/proc/shards", "/dev/null/shards"):
        answer = vitreous("data", "pack", folders, place)
        assert answer.code == 2
        assert answer.err.count("\n") == 1, answer.err
