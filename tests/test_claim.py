import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from vitreous.claim import FRESH_S, Claim, _draw, _try_lock, is_held, locked, newest
from vitreous.errors import InputError
from vitreous.run_folder import RunFolder

ACTOR = """
import fcntl, os, sys
from contextlib import ExitStack
from pathlib import Path
from vitreous.errors import InputError
from vitreous.run_folder import RunFolder

def no_locks(*_):
    raise OSError(95, "Operation not supported")

folder, stack = RunFolder(Path(sys.argv[1])), ExitStack()
assert "torch" not in sys.modules
for line in sys.stdin:
    answer = "done"
    try:
        exec(line)
    except InputError as error:
        answer = f"{type(error).__name__}: {error}"
    print(answer, flush=True)
"""
CLAIM = "claim = stack.enter_context(folder.claimed())"
LEAVE = "stack.close()"
NO_LOCKS = "fcntl.flock = no_locks"


class Actor:
    """Another process, which does what it is told, a line at a time."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", ACTOR, str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        print(line, file=self.process.stdin, flush=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def does(self, line: str) -> str:
        self.tell(line)
        return self.hear()


@pytest.fixture
def actor(tmp_path):
    """Starts processes that may claim tmp_path/run."""
    with ExitStack() as stack:

        def start(*lines: str) -> Actor:
            actor = Actor(tmp_path / "run")
            stack.enter_context(actor.process)
            stack.callback(actor.process.kill)
            assert [actor.does(line) for line in lines] == ["done"] * len(lines)
            return actor

        yield start


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run that was begun, claimed once so far."""
    folder = RunFolder(tmp_path / "run")
    with folder.claimed():
        folder.write_record({"config": {}})
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def race(actors: tuple[Actor, Actor], *, first: int) -> list[str]:
    """What both say to being told at the same moment to claim the folder."""
    actors[first].tell(CLAIM)
    actors[1 - first].tell(CLAIM)
    return [each.hear() for each in actors]


def test_of_two_processes_that_race_one_holds(run, actor):
    both, named = (actor(), actor()), []
    for i in range(50):
        said = race(both, first=i % 2)
        assert sorted(word.partition(":")[0] for word in said) == ["InputError", "done"]
        winner = both[said.index("done")]
        refused = said[1 - said.index("done")]
        named.append(f"pid {winner.pid}) is writing into {run.path}" in refused)
        assert named[-1] or refused.startswith(
            f"InputError: another process is writing into {run.path}"
        )  # who: not yet
        assert winner.does("claim.check()") == "done"
        assert winner.does("answer = claim.attempt") == str(2 + i)
        assert winner.does(LEAVE) == "done"
    assert sum(named) > 25
    assert {path.name for path in run.path.iterdir()} == {"run.json", "claim.json"}


def test_a_folder_that_goes_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    mkdir, turns = os.mkdir, []

    def gone_since(path, mode=0o777):
        turns.append(path)
        if len(turns) == 1:
            raise FileExistsError(errno.EEXIST, "File exists", path)  # it was there; who ended took it away
        mkdir(path, mode)

    monkeypatch.setattr(os, "mkdir", gone_since)
    with RunFolder(tmp_path / "run").claimed():
        assert newest(tmp_path / "run")
    assert len(turns) > 1


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("nowhere")], ids=["file", "dangling link"])
def test_what_is_no_folder_is_said(make, tmp_path):
    make(tmp_path / "run")
    with pytest.raises(InputError, match="a part of that path is a file"), RunFolder(tmp_path / "run").claimed():
        pass


def test_who_held_it_before_is_not_named(run):
    with (run.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # by a process that has not yet written its claim
        with pytest.raises(InputError, match=f"^another process is writing into {run.path}; wait"), run.claimed():
            pass


@pytest.mark.parametrize("remains", [True, False])
def test_processes_that_take_turns_never_meet_although_lock_and_folder_come_and_go(remains, tmp_path, actor):
    marker = tmp_path / "somebody is in it"
    turns = f"""
import vitreous.claim
vitreous.claim.POLL_S = 0.0003
for _ in range(60):
    with folder.claimed(wait_s=30):
        os.close(os.open({str(marker)!r}, os.O_CREAT | os.O_EXCL))
        if {remains}:
            folder.append({{"step": 1}})
            folder.record.touch()
        os.unlink({str(marker)!r})
"""
    both = (actor(), actor())
    for each in both:
        each.tell(f"exec({turns!r})")
    assert [each.hear() for each in both] == ["done", "done"]
    assert (tmp_path / "run").exists() == remains
    if remains:
        assert len(list(RunFolder(tmp_path / "run").measurements())) == 120
        there = newest(tmp_path / "run")
        assert there is not None
        assert there.attempt == 120


def test_a_lock_on_a_file_that_its_holder_has_removed_is_none(run, monkeypatch):
    before = ExitStack()
    before.enter_context(locked(run.path))

    def after_the_holder_left(descriptor: int, *, shared: bool = False) -> bool | None:
        before.close()
        return _try_lock(descriptor, shared=shared)

    monkeypatch.setattr("vitreous.claim._try_lock", after_the_holder_left)
    with locked(run.path):
        assert is_held(run.path, moved=0.0)
        with pytest.raises(InputError, match="is writing into"), locked(run.path):
            pass


def test_numbers_are_drawn_once(run):
    assert [_draw(run.path) for _ in range(3)] == [2, 3, 4]  # although claim.json says 1 each time


def test_without_locks_one_of_two_processes_that_race_may_go_on(run, actor):
    both = (actor(NO_LOCKS), actor(NO_LOCKS))
    for i in range(50):
        early = race(both, first=i % 2)
        assert "done" in early
        said = [
            word if word != "done" else each.does(f"folder.append({{'step': {i}}})") for each, word in zip(both, early)
        ]
        assert sorted(word.partition(":")[0] for word in said) == ["TakenOver", "done"]
        assert [each.does(LEAVE) for each in both] == ["done", "done"]
    assert [line["step"] for line in run.measurements()] == list(range(50))


@pytest.mark.parametrize(
    "write",
    [
        "folder.append({'step': 4})",
        "folder.forget_after(0)",
        "folder.write_record({'config': {'other': 1}})",
        "folder.check(); (folder.checkpoints / 'step-00000004.tmp-2').rename(folder.checkpoints / 'step-00000004')",
    ],
)
def test_a_process_that_slept_while_another_took_over_writes_nothing(write, run, actor):
    begin = "folder.append({'step': 1}); (folder.checkpoints / 'step-00000004.tmp-2').mkdir(parents=True)"
    sleeper = actor(NO_LOCKS, CLAIM, begin)
    os.kill(sleeper.pid, signal.SIGSTOP)
    sleeper.tell(write)
    later = actor(NO_LOCKS, CLAIM, "folder.append({'step': 2})")
    before = contents(run.path)
    os.kill(sleeper.pid, signal.SIGCONT)
    said = sleeper.hear()
    assert said.startswith("TakenOver: another process (host ")
    assert said.endswith(f", pid {later.pid}) has taken over {run.path}; this one stops")
    assert sleeper.does(LEAVE) == "done"
    assert contents(run.path) == before
    assert list(run.checkpoints.iterdir()) == []
    assert later.does("folder.append({'step': 3})") == "done"
    assert [line["step"] for line in run.measurements()] == [1, 2, 3]


def test_a_line_written_between_the_check_and_the_take_over_reaches_no_file_in_use(run, actor):
    slow = "folder.claim = type('Slow', (), {'check': lambda self: (claim.check(), print('checked', flush=True), "
    sleeper = actor(NO_LOCKS, CLAIM, "folder.append({'step': 1})", slow + "sys.stdin.readline())})()")
    assert sleeper.does("folder.append({'step': 2, 'by': 'sleeper'})") == "checked"
    actor(NO_LOCKS, CLAIM, "folder.forget_after(1)", "folder.append({'step': 2, 'by': 'later'})")
    assert sleeper.does("") == "done"
    assert list(run.measurements()) == [{"step": 1}, {"step": 2, "by": "later"}]


def test_with_locks_a_process_that_sleeps_is_not_outdone(run, actor):
    sleeper = actor(CLAIM)
    os.kill(sleeper.pid, signal.SIGSTOP)
    said = actor().does(CLAIM)
    assert said.startswith("InputError: another process (host ")
    assert f"pid {sleeper.pid}) is writing into {run.path}; wait until it ends" in said
    os.kill(sleeper.pid, signal.SIGCONT)
    assert sleeper.does("folder.append({'step': 1})") == "done"


def test_a_killed_process_holds_nothing(run, actor):
    holder, next_one = actor(CLAIM), actor()
    assert "is writing into" in next_one.does(CLAIM)
    holder.process.kill()
    holder.process.wait()
    assert next_one.does(CLAIM) == "done"
    assert {path.name for path in run.path.iterdir()} == {"run.json", "claim.json", ".lock", ".attempt-3"}


def test_a_restarted_job_waits_for_the_process_that_is_about_to_end(run, actor):
    holder, patient, hasty = actor(CLAIM), actor(), actor()
    patient.tell(CLAIM.replace("claimed()", "claimed(wait_s=30)"))
    began = time.monotonic()
    assert f"pid {holder.pid}" in hasty.does(CLAIM.replace("claimed()", "claimed(wait_s=0.5)"))
    assert 0.5 <= time.monotonic() - began < 15
    assert holder.does(LEAVE) == "done"
    left = time.monotonic()
    assert patient.hear() == "done"
    assert time.monotonic() - left < 15
    assert patient.does("claim.check()") == "done"


def test_threads_of_one_process_hold_it_one_at_a_time(run):
    order: list[str] = []

    def later() -> None:
        with run.claimed(wait_s=10):
            order.append("later")

    thread = threading.Thread(target=later)
    with locked(run.path):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "later"]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"attempt": 9}', '{"attempt": "9", "host": 1}', "\xff\0"])
def test_a_damaged_claim_is_in_nobodys_way(text, run, actor):
    (run.path / "claim.json").write_text(text, "latin-1")
    assert newest(run.path) is None
    with run.claimed() as claim:
        assert claim.attempt == 1
        (run.path / "claim.json").write_text(text, "latin-1")
        run.append({"step": 1})
    assert list(run.measurements()) == [{"step": 1}]


def test_numbers_of_attempts_are_made_up_for_by_what_killed_processes_left(run):
    (run.path / "claim.json").write_text("{")
    (run.checkpoints / "step-00000003.tmp-41").mkdir(parents=True)
    with run.claimed() as claim:
        assert claim.attempt == 42
    (run.path / "claim.json").write_text("{")
    (run.path / ".attempt-50").touch()
    (run.path / f".attempt-{'9' * 100}").touch()  # not ours
    with run.claimed() as claim:
        assert claim.attempt == 51
        assert not (run.path / ".attempt-50").exists()


def test_a_claim_says_who_holds_the_folder(run, actor):
    holder = actor(CLAIM)
    fields = json.loads((run.path / "claim.json").read_text())
    assert fields == {**fields, "attempt": 2, "pid": holder.pid}
    assert fields.keys() == {"attempt", "host", "pid", "started"}
    assert newest(run.path) == Claim(run.path, **fields)


def test_whether_a_folder_is_held_can_be_seen_from_here(run, actor):
    assert not is_held(run.path, moved=time.time())
    holder = actor(CLAIM)
    assert is_held(run.path, moved=0.0)
    assert is_held(run.path, moved=0.0)  # looking has not changed it
    holder.process.kill()
    holder.process.wait()
    assert not is_held(run.path, moved=time.time())
    with run.claimed():
        pass
    assert not is_held(run.path, moved=time.time())


def test_of_another_machine_the_last_sign_of_life_counts(run, actor, monkeypatch):
    actor(NO_LOCKS, CLAIM)
    fields = json.loads((run.path / "claim.json").read_text())
    (run.path / "claim.json").write_text(json.dumps({**fields, "host": "node7"}))
    assert is_held(run.path, moved=time.time() - FRESH_S / 2)
    assert not is_held(run.path, moved=time.time() - 2 * FRESH_S)


def test_who_looks_is_in_nobodys_way(run, actor):
    killed, other = actor(CLAIM), actor()
    killed.process.kill()
    killed.process.wait()
    with open(run.path / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as `is_held` does, for much longer
        other.tell(CLAIM)
        time.sleep(0.03)
    assert other.hear() == "done"


def test_a_folder_that_cannot_be_claimed_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="a part of that path is a file"), locked(tmp_path / "file" / "run"):
        pass
