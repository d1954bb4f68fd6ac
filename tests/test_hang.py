import faulthandler
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vitreous.hang import HangWatch

PROCESS = """
import sys, time
from pathlib import Path
from vitreous.hang import HangWatch

def in_the_depths(seconds):
    time.sleep(seconds)

with HangWatch(Path(sys.argv[1]) / "stacks.txt", 0.5) as watch:
    for _ in range(int(sys.argv[2])):
        time.sleep(0.05)
        watch.beat()
    print("now", flush=True)
    in_the_depths(float(sys.argv[3]))
"""


def process(folder: Path, *, beats: int, then_s: float) -> subprocess.Popen:
    words = [sys.executable, "-c", PROCESS, str(folder), str(beats), str(then_s)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_a_process_that_stops_moving_shows_where_it_stands_while_it_stands(tmp_path):
    with process(tmp_path, beats=3, then_s=60) as hanging:
        assert hanging.stdout is not None
        hanging.stdout.readline()
        began, stacks = time.monotonic(), ""
        while "in_the_depths" not in stacks and time.monotonic() - began < 20:
            time.sleep(0.02)
            stacks = (tmp_path / "stacks.txt").read_text()
        waited = time.monotonic() - began
        assert hanging.poll() is None
        hanging.kill()
    assert "in_the_depths" in stacks
    assert waited > 0.3  # half a second, less a tenth of it for which nothing is armed anew


def test_one_that_moves_shows_nothing_and_leaves_no_file(tmp_path):
    with process(tmp_path, beats=40, then_s=0) as moving:
        assert moving.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


def test_after_a_hang_that_ended_the_file_stays(tmp_path):
    with HangWatch(tmp_path / "stacks.txt", 0.2) as watch:
        time.sleep(0.6)
        watch.beat()
    assert "test_after_a_hang" in (tmp_path / "stacks.txt").read_text()


def test_where_no_file_can_be_written_training_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    with HangWatch(tmp_path / "file" / "stacks.txt", 0.2) as watch:
        watch.beat()


def test_beats_in_a_row_arm_the_timer_once(tmp_path, monkeypatch):
    armed = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda after_s, file: armed.append(after_s))
    with HangWatch(tmp_path / "stacks.txt", 100.0) as watch:
        for _ in range(1000):
            watch.beat()
    assert armed == [100.0]


@pytest.mark.parametrize("left", ["", "the stacks of an earlier attempt\n"])
def test_an_earlier_file_is_added_to_and_goes_only_if_it_is_empty(tmp_path, left):
    (tmp_path / "stacks.txt").write_text(left)
    with HangWatch(tmp_path / "stacks.txt", 100.0):
        pass
    assert (tmp_path / "stacks.txt").exists() == bool(left)
