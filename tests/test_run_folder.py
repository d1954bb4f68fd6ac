import fcntl
import subprocess
import sys
from contextlib import ExitStack

import pytest

from vitreous.claim import TakenOver, newest
from vitreous.errors import InputError
from vitreous.run_folder import RunFolder, choose_folder


def begun(path, **record) -> RunFolder:
    folder = RunFolder(path)
    with folder.claimed():
        folder.write_record({"config": {}, **record})
    return folder


def choose(name: str = "cats", **record) -> str:
    return str(choose_folder(None, name, same=lambda other: other == {"config": {}, **record}).path)


def test_a_new_run_never_takes_the_place_of_an_old_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose(a=1) == "runs/cats"
    begun(tmp_path / "runs" / "cats", a=1)
    assert choose(a=2) == "runs/cats-2"
    assert choose(a=1) == "runs/cats"  # unfinished, so it is gone on with
    assert choose(a=2) == "runs/cats-2"
    begun(tmp_path / "runs" / "cats-2", a=2)
    (tmp_path / "runs" / "cats-3").mkdir()
    (tmp_path / "runs" / "cats-3" / "mine").touch()
    assert choose(a=3) == "runs/cats-4"
    assert str(choose_folder("there", "cats", same=lambda _: False).path) == "there"


def test_measurements_are_appended_and_those_to_be_repeated_are_forgotten(tmp_path):
    folder = begun(tmp_path / "run")
    for step in (1, 2, 3):
        folder.append({"step": step, "loss": step / 2})
    with open(folder.metrics, "a") as file:
        file.write('{"step": 4, "lo')  # the power went
    assert [line["step"] for line in folder.measurements()] == [1, 2, 3]
    folder.forget_after(2)
    assert list(folder.measurements()) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "[1, 2]", '{"config": 3}'])
def test_a_damaged_record_is_said(text, tmp_path):
    folder = RunFolder(tmp_path)
    folder.record.write_text(text)
    with pytest.raises(InputError, match="cannot read"):
        folder.read()


def test_a_folder_of_other_things_is_not_taken(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="no run of ours"), RunFolder(tmp_path).claimed():
        pass


def test_a_run_is_finished_when_model_figures_and_report_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = begun(tmp_path / "runs" / "cats", a=1)
    for path in (folder.report, folder.evaluation, folder.model / "config.json"):
        assert choose(a=1) == "runs/cats"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert choose(a=1) == "runs/cats-2"


def test_two_processes_cannot_write_into_one_run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    code = f"""
from vitreous.run_folder import RunFolder
from pathlib import Path
with RunFolder(Path({str(folder.path)!r})).claimed():
    pass
"""
    with folder.claimed():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert f"is writing into {folder.path}; wait until it ends, or choose another --out" in done.stderr
        folder.write_record({})
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_killed_processes_left_is_swept_and_not_in_the_way(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / ".run.json.123.tmp").touch()
    (folder.path / "split.csv").touch()
    with folder.claimed() as claim:
        folder.write_record({"config": {}})
        for left in ("step-00000003.tmp-0", f"step-00000004.tmp-{claim.attempt}", "step-00000002.tmp-old"):
            (folder.checkpoints / left).mkdir(parents=True)
        (folder.path / ".model.123.new").mkdir()
        (folder.path / ".evaluation.json.123.tmp").touch()
        (folder.path / "stacks-rank-0.txt").touch()
        (folder.path / "stacks-rank-1.txt").write_text("Thread 0x1")
    with folder.claimed():
        stays = {"run.json", "split.csv", "checkpoints", "stacks-rank-1.txt"}
        assert {path.name for path in folder.path.rglob("*")} - {"claim.json", ".lock", ".attempt-2"} == stays
    assert {path.name for path in folder.path.rglob("*")} == {*stays, "claim.json"}


def test_unfinished_checkpoints_of_a_later_process_are_not_swept(tmp_path):
    folder = begun(tmp_path / "run")
    with folder.claimed() as claim:
        for attempt in (claim.attempt - 1, claim.attempt, claim.attempt + 1):
            (folder.checkpoints / f"step-00000004.tmp-{attempt}").mkdir(parents=True)
        folder._sweep(claim)
        kept = {path.name for path in folder.checkpoints.iterdir()}
    assert kept == {f"step-00000004.tmp-{claim.attempt + later}" for later in (0, 1)}


def test_writes_of_a_folder_that_another_process_has_claimed_are_refused(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    ours, theirs = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with theirs.claimed() as later:
        with ours.claimed() as claim:
            assert claim.attempt == later.attempt + 1
            for write in (lambda: theirs.append({"step": 1}), lambda: theirs.write_record({}), theirs.check):
                with pytest.raises(TakenOver, match="this one stops"):
                    write()
            ours.write_record({"config": {}})
            ours.append({"step": 1})
        with pytest.raises(TakenOver):
            theirs.forget_after(0)
    ours.append({"step": 2})  # nobody claims it, as after the run
    assert [line["step"] for line in ours.measurements()] == [1, 2]


def test_who_was_outdone_before_the_run_began_leaves_the_claim_of_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr("vitreous.claim._try_lock", lambda *_, **__: None)
    early, later = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with ExitStack() as stack:
        stack.enter_context(early.claimed())
        with later.claimed() as claim:
            stack.close()
            assert newest(tmp_path / "run") == claim
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_got_nothing_is_not_left_behind(tmp_path):
    with RunFolder(tmp_path / "run").claimed():
        pass
    assert list(tmp_path.iterdir()) == []
