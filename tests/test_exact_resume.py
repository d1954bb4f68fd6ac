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
def injected(shared, tmp_path_factory) -> dict[str, dict]:
    """What was done to runs, and what became of them: from a process of its own, which has started no threads."""
    place = tmp_path_factory.mktemp("faults")
    words = [sys.executable, Path(__file__).with_name("faults.py"), place, shared, KILLS, ENDS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return {found["fault"]: found for found in json.loads(done.stdout)}


@pytest.mark.parametrize(("fault", "times"), [("kill -9", KILLS), ("SIGTERM", ENDS)])
def test_a_run_gone_on_with_has_the_bits_of_an_undisturbed_one_on_one_or_two_processes(injected, fault, times):
    found = injected[fault]
    assert found["problems"] == []
    assert found["injected"] == found["survived"] == times
    assert found["digest_equal"]


@pytest.mark.parametrize("fault", ["kill -9", "SIGTERM"])
def test_every_image_is_shown_once_an_epoch_and_every_line_written_once(injected, fault):
    found = injected[fault]
    assert (found["lost"], found["repeated"]) == (0, 0)
    assert found["lines_equal"]


def test_kills_hit_checkpoints_while_they_are_written(injected):
    hit = injected["kill -9"]["hit"]
    assert hit.get("write", 0) + hit.get("rename", 0) >= 0.3 * KILLS


def test_after_sigterm_all_is_saved_and_gone_at_once(injected):
    assert max(injected["SIGTERM"]["seconds"]) < EXIT_S
