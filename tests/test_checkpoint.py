"""Checkpoints that are damaged, refused by the disk or killed half way: never taken for whole, never in the way."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from damage import flips, opened, swaps, truncations
from processes import in_processes
from test_training import carried_out, tiny
from vitreous import checkpoint, distributed, saved
from vitreous.checkpoint import CheckpointConfig, Checkpoints
from vitreous.claim import TakenOver
from vitreous.console import Console
from vitreous.errors import InputError
from vitreous.objectives.supervised import SupervisedObjective
from vitreous.run_folder import RunFolder
from vitreous.stopping import Stopped


def tensors(step: int, *, rows: int = 6) -> dict[str, Tensor]:
    """A state in which every number is the step."""
    named = {f"weights/{name}": torch.full((rows, 5), float(step)) for name in "abc"}
    return named | {"optimizer/a/step": torch.tensor(float(step)), "average/a": torch.full((rows,), step).double()}


def save(folder: Path, *steps: int, identity: str = "this", **config) -> Checkpoints:
    checkpoints = opened(folder, identity=identity, **config)
    for step in steps:
        checkpoints.save({"step": step, "score": None}, tensors(step))
    return checkpoints


def held(folder: Path) -> tuple[int | None, set[float]]:
    """The step of the newest whole checkpoint, and the numbers in it."""
    saved = opened(folder, identity="this").newest()
    if saved is None:
        return None, set()
    filled = tensors(-1)
    saved.load(filled)
    return saved.state["step"], {float(x) for tensor in filled.values() for x in tensor.flatten()}


def in_two(folder: Path, *steps: int, identity: str) -> None:
    def work() -> None:
        world = distributed.start(device="cpu", threads=1, timeout_s=30)
        checkpoints = opened(folder, identity=identity, world=world)
        for step in steps:
            checkpoints.save({"step": step}, {name: t + len(identity) for name, t in tensors(step).items()})
        world.leave()

    in_processes(2, work)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Path]:
    """Checkpoints of a run of two processes, and those of another."""
    here, there = tmp_path_factory.mktemp("this"), tmp_path_factory.mktemp("other")
    in_two(here, 1, 2, identity="this")
    in_two(there, 1, 2, identity="another")
    return here, there


def test_what_two_processes_wrote_one_reads(whole):
    saved = opened(whole[0], identity="this").newest()
    assert saved is not None
    filled = tensors(-1)
    saved.load(filled)
    assert all(torch.equal(filled[name], tensor + len("this")) for name, tensor in tensors(2).items())
    names = [set(load_file(saved.path / f"rank-0000{rank}.safetensors")) for rank in (0, 1)]
    assert all(names)
    assert not names[0] & names[1]


def test_every_flipped_bit_is_noticed_and_the_checkpoint_before_taken(whole):
    assert flips(whole[0], count=400, seed=0) == (400, [])


def test_every_cut_file_is_noticed(whole):
    assert truncations(whole[0], count=100, seed=0) == (100, [])


def test_files_of_other_steps_processes_and_runs_are_noticed(whole):
    cases, missed = swaps(whole[0], other=whole[1])
    assert cases == 3 * 3 + 4 + 2
    assert missed == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "manifest.json has changed"),
        (b"[]", "manifest.json has changed"),
        (b'{"manifest": 7}', "manifest.json has changed"),
        (b"[" * 100_000, "manifest.json has changed"),
        (saved.sealed({"format": 1}), "another version"),
    ],
)
def test_a_manifest_that_is_none_is_said(tmp_path, content, reason):
    save(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / "manifest.json").write_bytes(content)
    checkpoints = opened(tmp_path, identity="this")
    saved = checkpoints.newest()
    assert saved is not None
    assert saved.state["step"] == 1
    assert reason in checkpoints.damaged[tmp_path / "step-00000002"]


def test_what_is_damaged_is_set_aside_with_the_reason_and_its_step_can_be_saved_again(tmp_path):
    save(tmp_path, 1, 2)
    os.truncate(tmp_path / "step-00000002" / "rank-00000.safetensors", 100)
    checkpoints = opened(tmp_path, identity="this")
    assert checkpoints.newest() is not None
    checkpoints.set_aside()
    assert "rank-00000.safetensors has changed" in (tmp_path / "step-00000002.damaged" / "reason.txt").read_text()
    checkpoints.save({"step": 2}, tensors(2))
    assert held(tmp_path) == (2, {2.0})


def test_if_all_are_damaged_nothing_begins_anew_unasked(tmp_path):
    os.truncate(save(tmp_path, 1).saved()[0] / "rank-00000.safetensors", 100)
    for _ in range(2):
        checkpoints = opened(tmp_path, identity="this")
        with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
            checkpoints.newest()
        checkpoints.set_aside()


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = save(tmp_path, 1).saved()[0]

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint, "crc32", forbidden)
    with pytest.raises(InputError, match=r"cannot read .*Permission denied"):
        held(tmp_path)
    assert path.is_dir()


def test_an_unfinished_one_does_not_count(tmp_path):
    (tmp_path / "step-00000009.tmp-1").mkdir()
    (tmp_path / "step-00000008.tmp-old").mkdir()
    assert held(tmp_path) == (None, set())


def test_only_the_newest_are_kept_and_the_best_if_asked(tmp_path):
    checkpoints = opened(tmp_path, identity="this", keep_last=2, keep_best=True)
    for step, score in enumerate([0.1, 0.9, 0.3, None, 0.2], start=1):
        checkpoints.save({"step": step, "score": score}, tensors(step))
    assert [path.name[-1] for path in checkpoints.saved()] == ["2", "4", "5"]
    assert len(list(tmp_path.iterdir())) == 3


def test_tensors_of_another_model_are_refused(tmp_path):
    saved = save(tmp_path, 1).newest()
    assert saved is not None
    with pytest.raises(InputError, match="is of another model: average/a"):
        saved.load(tensors(1, rows=7))


def test_a_checkpoint_in_the_background_holds_the_moment_it_was_begun(tmp_path):
    checkpoints = opened(tmp_path, identity="this", keep_last=1)
    moving, rows = tensors(0, rows=2000), []
    for step in range(1, 101):
        for tensor in moving.values():
            tensor.fill_(step)
        rows.append(step)
        checkpoints.begin({"step": step, "rows": rows}, moving)
        for tensor in moving.values():
            tensor.fill_(-step)
        rows.append(-step)
        checkpoints.finish()
        saved = opened(tmp_path, identity="this").newest()
        assert saved is not None
        assert saved.state["rows"][-1] == step
        filled = tensors(0, rows=2000)
        saved.load(filled)
        assert {float(x) for tensor in filled.values() for x in tensor.unique()} == {step}
        rows.pop()


# --- a disk that refuses ---------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own, of four megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, *, leave: int) -> None:
    status = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(status.f_bavail * status.f_frsize - leave, 0)))


@pytest.mark.parametrize("looks_ahead", [True, False], ids=["seen before", "while writing"])
def test_a_full_disk_leaves_the_checkpoint_before_whole_however_little_is_left(disk, looks_ahead, monkeypatch):
    if not looks_ahead:  # as if others filled it meanwhile
        monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    refused, step, page = 0, 1, 4096
    checkpoints = save(disk, 1, keep_last=1)
    whole = sum(path.stat().st_size + page for path in (disk / "step-00000001").iterdir())
    for leave in range(0, whole + 10 * page, page):
        fill(disk, leave=leave)
        step += 1
        try:
            checkpoints.save({"step": step}, tensors(step))
        except InputError:
            refused += 1
            step -= 1
        assert held(disk) == (step, {float(step)})
        (disk / "ballast").unlink()
        assert [path.name for path in disk.iterdir()] == [f"step-{step:08d}"]
        step += 1
        checkpoints.save({"step": step}, tensors(step))
        assert held(disk) == (step, {float(step)})
    assert 0 < refused < whole // page + 10


def test_a_read_only_disk_is_said_and_the_next_one_succeeds_once_it_is_not(disk):
    checkpoints = save(disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(InputError, match="read-only"):
        checkpoints.save({"step": 2}, tensors(2))
    assert held(disk) == (1, {1.0})
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    checkpoints.save({"step": 2}, tensors(2))
    assert held(disk) == (2, {2.0})


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.ENOSPC, errno.ESTALE])
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir", "unlink"])
def test_whichever_call_the_system_refuses_the_one_before_stays_and_the_next_succeeds(
    tmp_path, call, number, monkeypatch
):
    """The first call of that name is refused, then the second, until one save meets no refusal."""
    real, calls, refused = getattr(os, call), 0, 0
    checkpoints, step = save(tmp_path, 1, keep_last=1), 1

    def refusing(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **keywords)

    for nth in range(1, 20):
        calls = 0
        with monkeypatch.context() as patched:
            patched.setattr(os, call, refusing)
            try:
                checkpoints.save({"step": step + 1}, tensors(step + 1))
            except InputError:
                refused += 1
            else:
                step += 1
        assert held(tmp_path) == (step, {float(step)})
        assert not list(tmp_path.glob("step-*.tmp-[0-9]*"))
        step += 1
        checkpoints.save({"step": step}, tensors(step))
        assert held(tmp_path) == (step, {float(step)})
        if calls < nth:
            break
    assert calls < nth
    assert nth > 1
    assert refused or call == "unlink"  # an old one that cannot be deleted is no reason
    assert [path.name for path in tmp_path.iterdir()] == [f"step-{step:08d}"]


def test_after_one_process_failed_all_write_the_same_step_again(tmp_path):
    def work() -> tuple[bool, int]:
        world = distributed.start(device="cpu", threads=1, timeout_s=30)
        checkpoints = opened(tmp_path, identity="this", world=world)
        checkpoints.save({"step": 1}, tensors(1))
        failures = 0
        for failing, call in ((1, "_save_file"), (0, "_save_file"), (0, "sync_folder")):
            real = getattr(checkpoint, call)

            def refuse(*_, failing=failing, real=real):
                if world.rank == failing:
                    raise OSError(errno.ENOSPC, "No space left on device")
                time.sleep(0.3)  # still at work when the other has failed
                return real(*_)

            setattr(checkpoint, call, refuse)
            try:
                checkpoints.save({"step": 2}, tensors(2))
            except InputError:
                failures += 1
            setattr(checkpoint, call, real)
            assert not world.is_main or [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
        checkpoints.save({"step": 2}, tensors(2))
        return failures == 3, checkpoints.newest_step

    assert in_processes(2, work) == [(True, 2), (True, 2)]
    assert held(tmp_path) == (2, {2.0})


def test_one_that_failed_in_the_background_does_not_keep_the_last_one_from_being_written(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "_save_file", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output")))
        checkpoints.begin({"step": 2}, tensors(2))
        with pytest.raises(InputError, match="disk fails"):
            checkpoints.finish()
        checkpoints.begin({"step": 2}, tensors(2))
        assert checkpoints._writing is not None
        checkpoints._writing.part.exception()  # waits for it
    checkpoints.save({"step": 3}, tensors(3))
    assert held(tmp_path) == (3, {3.0})


@pytest.mark.parametrize("background", [True, False])
def test_training_goes_on_over_a_full_disk_says_so_and_makes_up_for_it(disk, tmp_path, background, monkeypatch):
    """The disk is full in steps 4 to 9 of 12; 37 bytes are left for a line of some 250."""
    run = tiny(checkpoint=CheckpointConfig(every_s=0.0, background=background))
    carried_out(run, tmp_path / "undisturbed")
    said, after_step = [], SupervisedObjective.after_step

    def filling(self, progress):
        step = round(progress * 12) + 1
        if step == 4:
            metrics = disk / "run" / "metrics.jsonl"
            with open(metrics, "a") as file:  # up to the end of a page, so that only a part of a line fits
                file.write(" " * (-metrics.stat().st_size % 4096 - 38) + "\n")
            fill(disk, leave=0)
        if step == 10:
            (disk / "ballast").unlink()
        after_step(self, progress)

    monkeypatch.setattr(SupervisedObjective, "after_step", filling)
    monkeypatch.setattr(Console, "say", lambda self, line="": said.append(line))
    carried_out(run, disk / "run")
    assert any("warning: no checkpoint at step" in line and "disk" in line for line in said)
    assert any("warning: no measurements at step" in line for line in said)
    lines, undisturbed = (
        [(line["split"], line["step"], line["loss"]) for line in RunFolder(place).measurements()]
        for place in (disk / "run", tmp_path / "undisturbed")
    )
    assert lines == undisturbed
    names = sorted(path.name for path in (disk / "run" / "checkpoints").iterdir())
    assert names[-1] == "step-00000012"
    assert len(names) == 2
    assert not any(".tmp" in name for name in names)


def test_lines_that_the_disk_refused_are_not_lost_with_the_process(tmp_path, monkeypatch):
    """A checkpoint that is gone on with holds a step only once its line is written."""
    append, undisturbed = RunFolder.append, tmp_path / "undisturbed"
    carried_out(tiny(), undisturbed)

    def refusing(self, measurement):
        if measurement["step"] == 4 and refuse:
            refuse.pop()
            raise InputError("cannot write there: the disk is full")
        append(self, measurement)

    refuse = [True]
    monkeypatch.setattr(RunFolder, "append", refusing)
    for _ in range(4):
        with pytest.raises(Stopped):
            carried_out(tiny(), tmp_path / "run", time_limit_s=0.0)
    carried_out(tiny(), tmp_path / "run")
    places = (tmp_path / "run", undisturbed)
    lines = [[(line["split"], line["step"]) for line in RunFolder(place).measurements()] for place in places]
    assert not refuse
    assert lines[0] == lines[1]


def test_a_process_that_was_taken_over_says_so_when_its_files_are_gone(tmp_path, monkeypatch):
    def swept(*_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    def taken_over():
        raise TakenOver("another process has taken over")

    checkpoints = save(tmp_path, 1)
    monkeypatch.setattr(checkpoint, "_save_file", swept)
    with pytest.raises(InputError, match="No such file or directory; see to the disk"):
        checkpoints.save({"step": 2}, tensors(2))
    checkpoints.check = taken_over
    with pytest.raises(TakenOver):
        checkpoints.save({"step": 2}, tensors(2))
    checkpoints.check = swept
    with pytest.raises(InputError, match="see to the disk"):
        checkpoints.save({"step": 2}, tensors(2))
    assert held(tmp_path) == (1, {1.0})
