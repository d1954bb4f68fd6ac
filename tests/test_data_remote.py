import contextlib
import errno
import io
import json
import multiprocessing
import os
import pickle
import signal
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from faulty_server import FaultyServer, serving
from pictures import class_folders, encoded, noise, packed, write
from processes import in_processes
from vitreous import distributed, fetching
from vitreous.cache import place
from vitreous.console import Console
from vitreous.data.data_config import DataConfig
from vitreous.data.layouts import absolute, open_data, open_held_out, short_name
from vitreous.data.loader import training_batches
from vitreous.data.pack import pack
from vitreous.data.pack_shard import Settings
from vitreous.data.prepare import prepare, recall
from vitreous.data.remote import Remote
from vitreous.data.shard_index import INDEX
from vitreous.data.views import EvalView
from vitreous.errors import InputError

QUIET = Console(quiet=True)
REMOTE = Remote(console=QUIET)


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """A pack of 18 training images in 5 shards and 4 to measure on in one."""
    root = tmp_path_factory.mktemp("packed")
    class_folders(root / "photos" / "train", ("ant", "cat", "dog"), each=6)
    class_folders(root / "photos" / "val", ("cat", "dog"), each=2, first_seed=100)
    pack(str(root / "photos"), root / "shards", settings=Settings(shard_bytes=10_000), console=QUIET)
    return root / "shards"


@pytest.fixture
def server(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
    for name in ("VITREOUS_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(fetching, "WAIT_S", 0.01)
    served = tmp_path / "served"
    served.mkdir()
    for file in shards.iterdir():
        (served / file.name).write_bytes(file.read_bytes())
    with serving(served) as server:
        yield server


def contents(data: str) -> dict[str, list[tuple[str, str, bytes]]]:
    """Name, class and bytes of every image."""
    return {
        split: [(source.name(i), source.classes[source.labels[i]], source.read(i)) for i in range(len(source))]
        for split, source in open_data(data, remote=REMOTE).named().items()
    }


def refusal(url: str, **settings) -> str:
    with pytest.raises(InputError) as error:
        prepare(DataConfig(path=url, **settings), console=QUIET)
    assert "\n" not in str(error.value)
    return str(error.value)


def whole(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


# What is read


def test_a_remote_pack_is_the_local_one_and_comes_once(server):
    local = contents(str(server.folder))
    assert contents(server.url) == local
    assert sorted(server.names()) == sorted(
        local_names := [INDEX, *(f"train-00000{k}.tar" for k in range(5)), "val-000000.tar"]
    )
    server.asked.clear()
    assert contents(server.url) == local
    assert server.names() == [INDEX]  # is it still the same?
    assert len(local_names) == 7


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("names", ["train-00000{0..4}.tar", "{train,val}-000000.tar", "train-000003.tar"])
def test_remote_tars_are_the_local_ones(names, indexed, server):
    if not indexed:
        (server.folder / INDEX).unlink()
    local = open_held_out(f"{server.folder}/{names}")[1]
    remote = open_held_out(server.url + names, console=QUIET)[1]
    assert type(remote) is type(local)
    assert remote.classes == local.classes
    assert remote.labels.tolist() == local.labels.tolist()
    assert [remote.name(i) for i in range(len(remote))] == [local.name(i) for i in range(len(local))]
    assert [remote.read(i) for i in range(len(remote))] == [local.read(i) for i in range(len(local))]


def test_a_compressed_tar_of_class_folders_and_a_parquet_are_read_as_local_ones(server):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    files = {f"train/{name}/{i}.png": encoded(noise(i)) for i, name in enumerate(["cat", "dog"] * 3)}
    packed(files, server.folder / "photos.tar.gz", mode="w:gz")
    columns = {"image": [{"bytes": data, "path": ""} for data in files.values()], "label": ["cat", "dog"] * 3}
    parquet.write_table(pyarrow.table(columns), server.folder / "photos.parquet")
    for name in ("photos.tar.gz", "photos.parquet"):
        assert contents(server.url + name) == contents(f"{server.folder}/{name}")


def test_real_photos_are_the_local_ones_byte_for_byte(shared, tmp_path, monkeypatch):
    with tarfile.open(shared / "data" / "imagenette224" / "imagenette224_val.tar") as tar:
        members = [member for member in tar.getmembers() if member.isfile()][::4]
        photos = {f"{member.name.split('/')[-2]}/{member.name.split('/')[-1]}": member for member in members}
        write({name: tar.extractfile(member).read() for name, member in photos.items()}, tmp_path / "photos")
    pack(str(tmp_path / "photos"), tmp_path / "pack", settings=Settings(shard_bytes=2_000_000), console=QUIET)
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "WAIT_S", 0.01)
    with serving(tmp_path / "pack") as server:
        server.faults["train-000000.tar"] = [700_000, "503", "reset", "flip"]
        server.faults["train-000001.tar"] = [1_500_000, "deaf"]
        assert contents(server.url) == contents(str(tmp_path / "photos"))
    assert [server.names().count(f"train-00000{k}.tar") for k in range(2)] == [5, 2]


def test_only_the_shards_that_images_come_from_are_fetched(server):
    splits = open_data(server.url, remote=REMOTE)
    assert server.names() == [INDEX]
    assert splits.val is not None
    splits.val.read(0)
    assert server.names() == [INDEX, "val-000000.tar"]
    splits.train.select([0]).bring()
    assert server.names() == [INDEX, "val-000000.tar", "train-000000.tar"]


def test_a_source_fetches_anew_on_a_machine_with_another_cache(server, tmp_path, monkeypatch):
    train = open_data(server.url, remote=REMOTE).train
    train.bring()
    sent = pickle.dumps(train)
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "other machine"))
    there = pickle.loads(sent)
    assert [there.read(i) for i in range(len(there))] == [train.read(i) for i in range(len(train))]
    assert len(whole(tmp_path / "other machine")) == 5
    assert there.stamp() == train.stamp()  # nobody looks at all images again


def test_an_address_has_a_name_and_no_folder(tmp_path):
    for url, name in [
        ("https://host/shards/train-{000..012}.tar", "train"),
        ("https://host/shards/", "shards"),
        ("https://host/a/pets.tar?token=a/b.c", "pets"),
    ]:
        assert short_name(url) == name
        assert absolute(url, tmp_path) == url


# What goes wrong on the way


FAULTS = {
    "busy three times": ["503", "503", "429:0"],
    "broken at other places": [1, 3000, 777, 5000],
    "reset": ["reset", "reset"],
    "stalled": ["stall"],
    "dripping": ["drip", "deaf"],
    "damaged on the way": ["flip"],
    "Range not heeded": [2000, "deaf"],
    "no length told": ["unsized"],
    "a page in place of the shard, in place of a part": ["page", 3000, "page"],
    "everything": ["500", 2000, "stall", "503:0"],
}


NOTICED = ("damaged on the way", "no length told", "a page in place of the shard, in place of a part")
"""By the index alone: without one, nobody knows what a shard should be."""


@pytest.mark.parametrize(
    ("kind", "indexed"),
    [*((kind, True) for kind in FAULTS), *((kind, False) for kind in FAULTS if kind not in NOTICED)],
)
def test_a_server_that_errs_now_and_then_gives_the_same_images(kind, indexed, server, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT_S", 0.3)
    names = "" if indexed else "train-00000{0..4}.tar"
    if not indexed:
        (server.folder / INDEX).unlink()
    server.faults["train-000002.tar"] = list(FAULTS[kind])
    assert contents(server.url + names) == contents(f"{server.folder}/{names}")
    assert server.names().count("train-000002.tar") > 1


def test_a_shard_that_changes_between_attempts_is_not_glued(server):
    (server.folder / INDEX).unlink()
    shard, other = server.folder / "train-000001.tar", (server.folder / "train-000002.tar").read_bytes()
    server.faults[shard.name] = [3000]
    heard = io.StringIO()

    class Changing(Console):
        def say(self, line: str = "") -> None:
            heard.write(line)
            shard.write_bytes(other)

    found = open_data(server.url + "train-00000{0,1}.tar", remote=Remote(console=Changing(quiet=True)))
    assert "the connection broke at 0.0 MB" in heard.getvalue()
    assert place(server.url + shard.name).read_bytes() == other
    assert [range_ for name, range_ in server.asked if name == shard.name] == [None, "bytes=3000-"]
    assert len(found.train) == 8


def test_a_shard_that_is_not_the_one_of_the_index_is_refused(server):
    shard = server.folder / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    assert "did not come in 5 attempts (the server has 8,704 bytes of 9,216)" in refusal(server.url)
    shard.write_bytes(bytes(9_216))
    assert "(its bytes are not those that its index tells of (CRC-32))" in refusal(server.url)
    assert "train-000001.tar" not in whole(place(server.url + "x").parent)


@pytest.mark.parametrize(("status", "asked"), [("404", 1), ("403", 1), ("503", 5)])
def test_a_shard_that_cannot_be_had_stops_in_one_line(status, asked, server):
    server.always["train-000001.tar"] = status
    words = refusal(server.url)
    assert f"{server.url}train-000001.tar" in words
    assert server.names().count("train-000001.tar") == asked


def test_a_server_that_goes_away_stops_a_run_which_goes_on_when_it_is_back(server):
    server.always["train-000004.tar"] = 1000
    assert "did not come in 5 attempts (the connection broke at 0.0 MB of 0.0 MB); run again" in refusal(server.url)
    server.always.clear()
    server.asked.clear()
    assert contents(server.url) == contents(str(server.folder))
    assert [part for name, part in server.asked if name == "train-000004.tar" and part] != []


def test_what_is_whole_is_used_where_nobody_answers(server, shards, tmp_path):
    before = contents(server.url)
    (server.folder / "plain").mkdir()
    with serving(shards.parent) as gone:
        plain, by_index = gone.url + "shards/train-00000{0,1}.tar", gone.url + "shards/"
        gone.always["shards/" + INDEX] = "404"
        known = contents(plain)
        gone.always.clear()
        assert contents(by_index) == before
    place(by_index + INDEX).rename(kept := tmp_path / "index")
    heard = io.StringIO()
    remote = Remote(console=Console(stream=heard))
    assert len(open_data(plain, remote=remote).train) == len(known["train"])
    kept.rename(place(by_index + INDEX))
    assert contents(by_index) == before
    assert "what was fetched before is used, " in heard.getvalue()
    assert heard.getvalue().count("what was") == 1


def test_offline_mode_asks_nobody(server, monkeypatch):
    before = contents(server.url)
    server.asked.clear()
    monkeypatch.setenv("VITREOUS_OFFLINE", "1")
    assert contents(server.url) == before
    assert server.asked == []
    place(server.url + "val-000000.tar").unlink()
    assert "val-000000.tar is not on this machine and offline mode is on; put the file at" in refusal(server.url)


def test_data_that_changed_on_the_server_are_not_mixed_with_what_was_fetched(server):
    contents(server.url)
    (server.folder / INDEX).write_bytes((server.folder / INDEX).read_bytes() + b" ")
    words = refusal(server.url)
    assert f"{INDEX} has changed since it was fetched" in words
    assert "to keep what was fetched, set VITREOUS_OFFLINE=1" in words


def test_a_cache_that_cannot_be_written_is_an_error(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path / "file"))
    assert "(Not a directory); make room there, or choose another folder with VITREOUS_CACHE" in refusal(server.url)


def test_a_full_disk_stops_in_one_line_whatever_was_asked_for(server, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    words = refusal(server.url, missing_shards="skip")
    assert "(No space left on device); make room there, or choose another folder with VITREOUS_CACHE" in words


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("file:///data/train.tar", "give https://HOST/PATH"),
        ("s3://bucket/train.tar", "give https://HOST/PATH"),
        ("https://user:secret@host/train-{0..2}.tar", "is no address of a file"),
        ("https://host/../train.tar", "is no address of a file"),
        ("https://host/%2e%2e/%2e%2e/train.tar", "is no address of a file"),
        ("https://host/a%2F..%2Ftrain.tar", "is no address of a file"),
        ("https://host/photos.csv", "give .tar or .tar.gz or .tgz or .parquet, or the address of a folder"),
        ("https://host/photos", "or the address of a folder of packed shards, which ends in /"),
        ("https://host/{a,b}.tar.gz", r"give .tar, or the address"),
        ("https://host/{3..1}.tar", "cannot read the braces"),
    ],
)
def test_what_is_no_address_of_data_is_refused_before_anyone_is_asked(address, words, server):
    assert words in refusal(address)
    assert whole(place("https://host/x").parent.parent) == set()


def test_a_folder_without_index_says_what_to_give(server):
    for fault in ("404", "403", "page"):
        server.always[INDEX] = fault
        assert f"{server.url} holds no {INDEX}; pack the data by vitreous data pack, or give" in refusal(server.url)


def test_what_is_no_tar_is_named_with_where_it_lies(server):
    (server.folder / "train-000000.tar").write_bytes(b"<html>" * 500)
    (server.folder / INDEX).unlink()
    words = refusal(server.url + "train-00000{0,1}.tar")
    assert "is no whole tar" in words
    assert f"was fetched into {place(server.url + 'x').parent}; remove it there" in words


def test_progress_is_shown_in_megabytes(server, monkeypatch):
    (server.folder / "train-000000.tar").write_bytes(b"")  # the index is refused first
    shown = io.StringIO()
    monkeypatch.setattr("vitreous.console.PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(fetching, "CHUNK", 100_000)
    with tarfile.open(server.folder / "large.tar", "w") as tar:
        for i, name in enumerate(["cat", "dog"]):
            data = encoded(noise(i, width=700, height=700))
            member = tarfile.TarInfo(f"{name}/{i}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    open_data(server.url + "large.tar", remote=Remote(console=Console(stream=shown)))
    assert "fetching, MB 1/3  " in shown.getvalue()
    assert " left" in shown.getvalue()


# Shards that are left out


def left_out(server: FaultyServer, *names: str):
    for name in names:
        server.always[name] = "404"
    return prepare(DataConfig(path=server.url, missing_shards="skip"), console=QUIET)


@pytest.mark.parametrize("indexed", [True, False])
def test_shards_that_cannot_be_had_are_left_out_if_asked_for_and_named(indexed, server):
    url = server.url
    if not indexed:
        (server.folder / INDEX).unlink()
        url += "{train-00000{0,1,2,3,4},val-000000}.tar".replace(
            "{train-00000{0,1,2,3,4}", "{train-000000,train-000001"
        )
        url = url.replace("train-000001", "train-000001,train-000002,train-000003,train-000004")
    all_of_them = prepare(DataConfig(path=url), console=QUIET)
    for file in place(server.url + "x").parent.glob("*.tar"):
        file.unlink()
    server.always |= {"train-000001.tar": "404", "train-000003.tar": "404"}
    found = prepare(DataConfig(path=url, missing_shards="skip"), console=QUIET)
    note = "2 of 6 shards could not be had and are left out: train-000001.tar, train-000003.tar"
    assert note in found.summary["notes"]
    assert found.summary["missing_shards"] == [server.url + f"train-00000{k}.tar" for k in (1, 3)]
    assert [(file.name, file.reason.split(";")[0]) for file in found.bad] == [
        (server.url + f"train-00000{k}.tar", f"there is no file {server.url}train-00000{k}.tar") for k in (1, 3)
    ]
    images = {row for row in all_of_them.split_csv().splitlines() if row.startswith(("train", "test", "val"))}
    kept = {row for row in found.split_csv().splitlines() if row.startswith(("train", "test", "val"))}
    assert kept < images
    assert len(images - kept) == 8


def test_a_run_goes_on_with_the_shards_it_had(server):
    found = left_out(server, "train-000002.tar")
    record = json.loads(
        json.dumps({"data": found.summary, "data_fingerprint": found.fingerprint, "data_stamp": found.stamp})
    )
    server.always.clear()  # the shard is there again
    config = DataConfig(path=server.url, missing_shards="skip")
    again = recall(config, split_csv=found.split_csv(), record=record, console=QUIET)
    assert again is not None
    assert again.split_csv() == found.split_csv()
    assert "train-000002.tar" not in whole(place(server.url + "x").parent)
    anew = prepare(config, console=QUIET, begun=record)
    assert (anew.fingerprint, anew.summary["notes"]) == (found.fingerprint, found.summary["notes"])
    assert prepare(config, console=QUIET).fingerprint != found.fingerprint
    server.always["train-000004.tar"] = "503"
    place(server.url + "train-000004.tar").unlink()
    with pytest.raises(InputError, match=r"train-000004\.tar did not come in 5 attempts"):
        prepare(config, console=QUIET, begun=record)


def test_a_split_without_a_shard_stops_whatever_was_asked_for(server):
    with pytest.raises(InputError, match=r"none of the shards of val can be had \(val-000000\.tar: there is no file"):
        left_out(server, "val-000000.tar")


# Processes


def _fetch_all(url: str) -> None:
    with contextlib.suppress(InputError):
        open_data(url, remote=REMOTE).train.bring()
        os._exit(0)
    os._exit(1)


def begun(url: str):
    process = multiprocessing.get_context("fork").Process(target=_fetch_all, args=(url,))
    process.start()
    return process


def test_a_killed_process_leaves_nothing_torn_and_the_next_goes_on(server):
    server.faults["train-000001.tar"] = ["stall"]
    process = begun(server.url)
    deadline = time.monotonic() + 60
    part = place(server.url + "x").parent / ".train-000001.tar.part"
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert "train-000001.tar" not in whole(part.parent)
    server.asked.clear()
    assert contents(server.url) == contents(str(server.folder))
    assert ("train-000001.tar", "bytes=1000-") in server.asked


def test_processes_that_want_the_same_shards_fetch_each_once(server):
    server.slow_s = 0.2
    processes = [begun(server.url) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    tars = [name for name in server.names() if name.endswith(".tar")]
    assert sorted(tars) == [f"train-00000{k}.tar" for k in range(5)]


def test_each_machine_of_a_world_fetches_what_it_reads(server, tmp_path):
    expected = contents(server.url)["train"]

    def work():
        os.environ["VITREOUS_CACHE"] = str(tmp_path / os.environ["RANK"])
        world = distributed.start(device="cpu", threads=1)
        train = world.on_main(lambda: open_data(server.url, remote=REMOTE)).train
        world.each(train.bring)
        return [train.read(i) for i in range(len(train))], whole(tmp_path / str(world.rank))

    first, second = in_processes(2, work)
    assert first[0] == second[0] == [data for *_, data in expected]
    assert first[1] == {INDEX, *second[1]}
    assert second[1] == {f"train-00000{k}.tar" for k in range(5)}


# Runs


def small_run(vitreous, data, out, *more):
    words = ("--data.path", data, "--steps", 6, "--batch_size", 4, "--num_workers", 0, "--model.depth", 1)
    return vitreous("train", "smoke", *words, "--out", out, "--device", "cpu", *more)


def figures(folder: Path) -> tuple[str, list[float], float]:
    record = json.loads((folder / "run.json").read_text())
    losses = [
        json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines() if "loss" in line
    ]
    return record["data_fingerprint"], losses, json.loads((folder / "evaluation.json").read_text())["top1"]["value"]


def test_a_run_over_http_is_the_run_on_the_local_folder(server, vitreous, tmp_path):
    for name, data in [("local", server.folder), ("first", server.url), ("second", server.url)]:
        answer = small_run(vitreous, data, tmp_path / name)
        assert answer.code == 0, answer.err
    local = figures(tmp_path / "local")
    assert len(local[1]) > 0
    assert figures(tmp_path / "first") == figures(tmp_path / "second") == local
    assert len([name for name in server.names() if name.endswith(".tar")]) == 6


def test_a_run_without_some_shards_is_taken_up_again_without_them(server, vitreous, tmp_path):
    server.always["train-000003.tar"] = "404"
    answer = small_run(vitreous, server.url, tmp_path / "run")
    assert answer.code == 2
    assert "train-000003.tar" in answer.err.splitlines()[-1]
    skip = ("--data.missing_shards", "skip")
    stopped = small_run(vitreous, server.url, tmp_path / "run", *skip, "--minutes", 0)
    assert stopped.code == 75
    assert "1 of 6 shards could not be had and are left out: train-000003.tar" in stopped.err
    assert "train-000003.tar" in (tmp_path / "run" / "bad_images.txt").read_text()
    server.always.clear()
    done = small_run(vitreous, server.url, tmp_path / "run", *skip)
    assert done.code == 0, done.err
    assert "train-000003.tar" not in whole(place(server.url + "x").parent)
    measured = vitreous("evaluate", tmp_path / "run", server.url)
    assert measured.code == 0, measured.err


def test_a_shard_that_vanishes_from_the_cache_comes_again_in_a_worker(server):
    train = open_data(server.url, remote=REMOTE).train
    view = EvalView(image_size=8)

    def labels():
        batches = training_batches(train, view, batch_size=6, seed=0, first_step=0, steps=6, num_workers=1)
        for step, batch in enumerate(batches):
            if step == 0:
                for file in place(server.url + "x").parent.glob("train-*.tar"):
                    file.unlink()
            yield batch.labels.tolist()

    found = list(labels())
    assert found == [
        batch.labels.tolist() for batch in training_batches(train, view, batch_size=6, seed=0, first_step=0, steps=6)
    ]


def test_a_shard_lost_here_and_there_stops_a_run_in_one_line(server):
    train = open_data(server.url, remote=REMOTE).train
    view = EvalView(image_size=8)
    batches = training_batches(train, view, batch_size=6, seed=0, first_step=0, steps=6)
    next(batches)
    train.files.open.clear()
    server.always[""] = "404"
    for file in place(server.url + "x").parent.glob("train-*.tar"):
        file.unlink()
    with pytest.raises(InputError, match=r"cannot read .*\.png any more \(there is no file http.*\); put it back"):
        list(batches)


def test_a_pack_of_a_remote_pack_is_that_pack(server, tmp_path):
    pack(server.url, tmp_path / "again", settings=Settings(shard_bytes=10_000), console=QUIET)
    assert contents(str(tmp_path / "again")) == contents(str(server.folder))


def test_the_way_to_the_data_changes_no_figure(server):
    local, remote = (prepare(DataConfig(path=path), console=QUIET) for path in (str(server.folder), server.url))
    assert remote.fingerprint == local.fingerprint
    assert replace(remote, stamp=None).split_csv() == local.split_csv()
