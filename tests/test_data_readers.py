"""Reader processes that die, hang or find no memory to share, and what they cost as the data set grows."""

import ctypes
import itertools
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pictures import class_folders, encoded, noise, packed
from vitreous.console import Console
from vitreous.data import readers
from vitreous.data.joined import JoinedSource
from vitreous.data.layouts import open_data
from vitreous.data.loader import training_batches
from vitreous.data.pack import pack
from vitreous.data.pack_shard import Settings
from vitreous.data.shared import share, stacked
from vitreous.data.source import FileSource, Source
from vitreous.data.views import EvalView
from vitreous.errors import InputError

VIEW = EvalView(image_size=8)


class Harmful(Source):
    """The images of another source, of which those named do something to the process that reads them."""

    def __init__(self, source: Source, harms: dict[str, Callable[[], object]]):
        super().__init__(source.classes, source.labels)
        self.source, self.harms = source, harms

    def name(self, i):
        return self.source.name(i)

    def where(self, i):
        return self.source.where(i)

    def read(self, i):
        self.harms.get(self.name(i), bool)()
        return self.source.read(i)


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def crashed():
    ctypes.string_at(0)  # as a decoder in C that a damaged file leads astray


def aborted():
    os.abort()


def left():
    os._exit(3)


def asleep():
    time.sleep(600)  # as a file on a dead network drive


def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def nap():
    time.sleep(1.2)


def deaf():
    ctypes.PyDLL(None).sleep(600)  # C code that keeps every other thread of its process from running


def complaint(source, *, batch_size: int = 2, num_workers: int = 1) -> str:
    """What is said when all images were to be read."""
    with pytest.raises(InputError) as error:
        list(
            training_batches(
                source, VIEW, batch_size=batch_size, seed=0, first_step=0, steps=20, num_workers=num_workers
            )
        )
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(readers, "POLL_S", 0.5)
    monkeypatch.setattr(readers, "TIMEOUT_S", 4.0)


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(readers, "POLL_S", 0.2)


@pytest.mark.parametrize(
    ("harm", "how"),
    [
        (killed, "was killed by SIGKILL"),
        (crashed, "was killed by SIGSEGV"),
        (aborted, "was killed by SIGABRT"),
        (left, "ended with exit code 3"),
    ],
)
def test_the_image_that_a_dead_reader_was_at_is_named(harm, how, tmp_path, soon):
    source = open_data(str(class_folders(tmp_path))).train
    assert complaint(Harmful(source, {"dog/2.png": harm})) == (
        f"the process that read dog/2.png {how}; look at that file and at free memory, "
        "then give the same command again; --num_workers 0 reads without such processes"
    )


def test_the_images_that_readers_hang_at_are_named_and_the_readers_ended(tmp_path, impatient):
    source = open_data(str(class_folders(tmp_path))).train.select([0, 9])
    others = set(multiprocessing.active_children())
    hanging = Harmful(source, {"cat/0.png": stopped, "dog/4.png": deaf})
    message = complaint(hanging, batch_size=1, num_workers=2)
    named = re.fullmatch(
        r"reading (.*) did not end within 4 s; "
        "look at that file and at the disk or network it is on, then give the same command again",
        message,
    )
    assert named
    assert sorted(named[1].split(", ")) == ["cat/0.png", "dog/4.png"]
    for worker in set(multiprocessing.active_children()) - others:
        worker.join(10)
        assert not worker.is_alive()


def test_a_reader_that_is_slow_is_not_taken_for_one_that_hangs(tmp_path, impatient):
    source = open_data(str(class_folders(tmp_path))).train
    slow = Harmful(source, {"cat/1.png": nap, "dog/2.png": nap})
    found = list(
        training_batches(slow, VIEW, batch_size=10, seed=0, first_step=0, steps=1, num_workers=1, num_repeats=4)
    )
    assert len(found[0].index) == 40


class Endless(torch.utils.data.Dataset):
    def __getitem__(self, _):
        asleep()


def test_readers_that_do_not_start_are_reported(impatient, monkeypatch):
    monkeypatch.setattr(readers, "START_S", 1.0)
    loader = torch.utils.data.DataLoader(
        Endless(),
        batch_size=None,
        sampler=[0],
        num_workers=1,
        timeout=readers.POLL_S,
        multiprocessing_context=readers.context(preload="vitreous.data.loader"),
    )
    with pytest.raises(InputError, match="no batch came in 1 s though no image was being read; look at memory"):
        next(readers.patient(loader, readers.notes(1), str))


@pytest.mark.parametrize("kind", ["tar", "shards", "plain shards"])
def test_the_tar_that_a_dead_reader_was_at_is_named(kind, tmp_path, soon):
    folders = class_folders(tmp_path / "photos")
    if kind == "tar":
        files = {f"{name}/{i}.png": encoded(noise(i)) for i in range(5) for name in ("cat", "dog")}
        source, place = open_data(str(packed(files, tmp_path / "a.tar"))).train, "dog/2.png of a.tar"
        name = "dog/2.png"
    else:
        pack(str(folders), tmp_path / "shards", settings=Settings(), console=Console(quiet=True))
        name, place = "dog/2.png", "dog/2.png (train-000000.tar, member 000000007)"
        if kind == "plain shards":
            (tmp_path / "shards" / "vitreous-index.npz").unlink()
            name = place = "train-000000.tar/000000007.png"
        source = open_data(str(tmp_path / "shards")).train
    assert f"the process that read {place} was killed by SIGKILL" in complaint(Harmful(source, {name: killed}))
    both = JoinedSource(source, source)
    i = [source.name(i) for i in range(10)].index(name)
    assert both.where(10 + i) == source.where(i) == place


def test_a_bug_in_a_reader_is_no_dead_reader():
    class Broken:
        num_workers = 0

        def __iter__(self):
            raise RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nshape is invalid")
            yield

    with pytest.raises(RuntimeError, match="shape is invalid"):
        next(readers.patient(Broken(), [readers.NO_IMAGE], str))  # pyright: ignore[reportArgumentType]


def test_a_run_whose_reader_died_goes_on_from_its_checkpoint(vitreous, photos, tmp_path, monkeypatch, soon):
    words = ["train", "smoke", "--data.path", photos, "--steps", "4", "--out", tmp_path / "run", "--num_workers", "1"]
    assert vitreous(*words, "--minutes", "0").code == 75

    def dying(source, *arguments, **options):
        return training_batches(Harmful(source, {source.name(0): killed}), *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr("vitreous.trainee.training_batches", dying)
        answer = vitreous(*words)
    assert answer.code == 2
    assert answer.err.splitlines()[-1].startswith("vitreous: the process that read sea/sea0.png was killed by SIGKILL;")
    answer = vitreous(*words)
    assert answer.code == 0
    assert "going on from step 1" in answer.err


def test_what_was_learned_before_an_image_was_gone_is_kept(vitreous, photos, tmp_path, monkeypatch):
    words = ["train", "smoke", "--data.path", photos, "--steps", "6", "--out", tmp_path / "run"]

    def failing(*arguments, **options):
        yield from itertools.islice(training_batches(*arguments, **options), 3)
        raise InputError("cannot read sea/sea0.png any more")

    with monkeypatch.context() as patch:
        patch.setattr("vitreous.trainee.training_batches", failing)
        answer = vitreous(*words)
    assert (answer.code, answer.err.splitlines()[-1]) == (2, "vitreous: cannot read sea/sea0.png any more")
    answer = vitreous(*words)
    assert answer.code == 0
    assert "going on from step 3 of 6" in answer.err


# What they share


def flat(n: int) -> Source:
    """A source of n names that are all one file."""
    names = [f"train/n{i % 1000:08}/n{i % 1000:08}_{i:07}.JPEG" for i in range(n)]
    return OneFile(Path("/x"), names, classes=[f"n{i:08}" for i in range(1000)], labels=np.arange(n) % 1000)


class OneFile(FileSource):
    def read(self, i):
        assert self.name(i).endswith(f"_{self.rows[i]:07}.JPEG")
        return SMALL


SMALL = encoded(noise())


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's account of memory")
def test_a_reader_costs_no_more_memory_for_a_million_images_than_for_a_thousand():
    private = []
    for n in (1000, 1_000_000):
        others = set(multiprocessing.active_children())
        found = training_batches(flat(n), VIEW, batch_size=50, seed=0, first_step=0, steps=5, num_workers=1)
        next(found)
        (worker,) = set(multiprocessing.active_children()) - others
        rows = Path(f"/proc/{worker.pid}/smaps_rollup").read_text()
        private.append(sum(map(int, re.findall(r"Private_\w+: +(\d+) kB", rows))))
        assert len([*found]) == 4
    assert private[1] - private[0] < 8_000  # kB; its names, places and labels are 62 MB


def test_arrays_come_into_another_process_unchanged_and_read_only():
    arrays = {"empty": np.zeros(0, "<u4"), "odd": np.arange(7, dtype=np.uint8), "wide": np.arange(12.0).reshape(3, 4).T}
    (found,) = torch.utils.data.DataLoader(
        Sent(share({**arrays, "text": "x"})),
        batch_size=None,
        num_workers=1,
        multiprocessing_context=readers.context(preload="vitreous.data.loader"),
        collate_fn=list,
    )
    back, writeable = found
    assert back.pop("text") == "x"
    assert back.keys() == arrays.keys()
    for name, array in back.items():
        assert array.dtype == arrays[name].dtype
        assert np.array_equal(array, arrays[name])
    assert not any(writeable)


class Sent(torch.utils.data.Dataset):
    def __init__(self, shared):
        self.shared = shared

    def __len__(self):
        return 1

    def __getitem__(self, _):
        return self.shared, [array.flags.writeable for array in self.shared.values() if not isinstance(array, str)]


def test_a_batch_is_stacked_into_memory_that_is_shared():
    images = [torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8) for _ in range(4)]
    batch = stacked(images)
    assert torch.equal(batch, torch.stack(images))
    assert batch.is_shared() == hasattr(os, "memfd_create")


SCRIPT = """
import os
from pathlib import Path
from test_data_readers import flat
from vitreous.data.loader import training_batches
from vitreous.data.views import EvalView
from vitreous.errors import InputError

def read():
    parts = {"batch_size": 64, "seed": 0, "first_step": 0, "steps": 6, "num_workers": 2}
    return sum(len(batch.index) for batch in training_batches(flat(1000), EvalView(image_size=64), **parts))

if __name__ == "__main__":
    print(read())
    with open("/dev/shm/full", "wb", buffering=0) as file:
        file.write(bytes(1_000_000))
    try:
        read()
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux's unshare")
def test_little_shared_memory_is_enough_and_none_is_said(tmp_path):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system lets no user mount a small /dev/shm")
    (tmp_path / "script.py").write_text(SCRIPT)
    mount = "mount -t tmpfs -o size=256k none /dev/shm"  # a batch has 786 kB
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && {shlex.quote(sys.executable)} script.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert done.stdout.splitlines() == [
        "384",
        "cannot start 2 processes that read images (No space left on device); /dev/shm has 0.0 of 0.3 MB free; "
        "give it more (docker run --shm-size=64m), or read without such processes: --num_workers 0",
    ], done.stderr
    assert done.stderr == ""
