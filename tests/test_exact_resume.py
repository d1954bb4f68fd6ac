"""Whatever ends the processes of a run, and whenever: gone on with, it is the run that nothing disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS, ENDS = 20, 3
EXIT_S = 30.0
"""From SIGTERM to the last process gone, on a machine however busy; measured: below half a second."""


@pytest.fixture(scope="module")
def found(shared, tmp_path_factory) -> dict:
    """What was done to a run on one process or two, redrawn at each start, and what became of it.

    It is done from a process of its own, which has started no threads.
    """
    place = tmp_path_factory.mktemp("faults")
    words = [sys.executable, Path(__file__).with_name("faults.py"), place, shared, KILLS, ENDS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_killed_or_ended_however_often_a_run_goes_on(found):
    assert [one["problems"] for one in found["injected"]] == [[], []]
    assert [sum(one["hit"].values()) for one in found["injected"]] == [KILLS, ENDS]


def test_its_bits_are_those_of_a_run_that_nothing_disturbed(found):
    assert found["outcome"]["digest_equal"]


def test_every_image_is_shown_once_an_epoch_in_the_same_order(found):
    assert (found["outcome"]["lost"], found["outcome"]["repeated"]) == (0, 0)
    assert found["outcome"]["order_equal"]


def test_every_line_is_written_once(found):
    assert found["outcome"]["lines_equal"]


def test_kills_hit_checkpoints_while_they_are_written(found):
    hit = found["injected"][0]["hit"]
    assert hit.get("write", 0) + hit.get("rename", 0) >= 0.3 * KILLS


def test_after_sigterm_all_is_saved_and_gone_at_once(found):
    assert max(found["injected"][1]["seconds"]) < EXIT_S
