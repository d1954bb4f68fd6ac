"""Whatever ends the processes of a run, and whenever: gone on with, it is the run that nothing disturbed."""

import json
import os
import subprocess
import sys
from pathlib import Path

KILLS, ENDS = 10, 2
"""Hundreds of them: benchmarks/faults.py."""
EXIT_S = 30.0
"""From SIGTERM to the last process gone, on a machine however busy; measured: below half a second."""


def faults(shared: Path, place: Path) -> dict:
    """What was done to a run on one process or two, redrawn at each start, and what became of it.

    It is done from a process of its own, which has started no threads.
    """
    words = [sys.executable, Path(__file__).with_name("faults.py"), place, shared, KILLS, ENDS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_killed_or_ended_however_often_a_run_is_the_run_that_nothing_disturbed(shared, tmp_path):
    """One test, since what it looks at takes a minute to do."""
    found = faults(shared, tmp_path)
    outcome, (killed, ended) = found["outcome"], found["injected"]
    assert killed["problems"] == ended["problems"] == []
    assert (sum(killed["hit"].values()), sum(ended["hit"].values())) == (KILLS, ENDS)
    assert outcome["digest_equal"]
    assert (outcome["lost"], outcome["repeated"]) == (0, 0)
    assert outcome["order_equal"]
    assert outcome["lines_equal"]
    assert killed["hit"].get("write", 0) + killed["hit"].get("rename", 0) >= 0.3 * KILLS
    assert max(ended["seconds"]) < EXIT_S
