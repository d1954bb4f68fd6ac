"""The real torchrun and real faults; the functions that do it, and tables of all of them, are benchmarks/elastic.py."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from conftest import REPOSITORY
from vitreous.cli import main

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import elastic
from elastic import Bench, attempt_of, digest, job, step_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="faults are found and made through /proc")

STEPS = 120


def finish_here(out: Path) -> str:
    """Carry the run out, or on, in this process; its digest."""
    with pytest.raises(SystemExit) as left:
        main(["train", *elastic.WORDS, "--steps", str(STEPS), "--out", str(out)])
    assert not left.value.code
    return digest(elastic.RunFolder(out))


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    folder = tmp_path_factory.mktemp("elastic")
    return Bench(folder, STEPS, finish_here(folder / "whole"))


def test_a_killed_process_a_request_to_end_and_a_killed_launcher_leave_no_orphan_and_change_no_bit(bench):
    """One run, begun by two processes; after each fault it goes on."""
    out = bench.out("run")
    with job(out, restarts=1, steps=STEPS) as run:
        run.until_step(10)
        attempt = attempt_of(run.folder)
        os.kill(run.worker(1), signal.SIGKILL)
        killed = time.monotonic()
        run.until_trained(attempt=attempt)
        assert 0 <= run.noticed(killed) < 5
        assert sum("lost the others" in line for line in run.said) == 1
        run.popen.terminate()
        asked, asked_at = time.monotonic(), step_of(run.folder)
        run.end()
        assert time.monotonic() - asked < 30
        assert [line for line in run.said if "asked to end" in line and "torchrun --nproc-per-node 2 -m" in line], (
            run.text
        )
        assert len(run.said) == 2  # one line for each, of one process
        saved = step_of(run.folder)
        assert asked_at <= saved < STEPS
        assert run.gone_s(time.monotonic())[1] == 0
    with job(out, words=[*elastic.WORDS, "--num_workers", "1"], steps=STEPS) as run:
        assert run.until_trained(attempt=attempt_of(run.folder))[1] == saved
        assert len(run.alive("reader")) >= 2
        run.popen.kill()
        gone_s, orphans = run.gone_s(time.monotonic())
        assert orphans == 0, f"{orphans} processes live {gone_s:.0f} s after their launcher was killed"
    assert finish_here(out) == bench.reference


def test_the_digest_tells_runs_apart(bench):
    folder = elastic.RunFolder(bench.folder / "whole")
    assert digest(folder) == bench.reference
    text = folder.metrics.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    try:
        lines[3]["seconds"] += 1.0
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert digest(folder) == bench.reference
        lines[3]["loss"] += 1e-9
        folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert digest(folder) != bench.reference
    finally:
        folder.metrics.write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", elastic.FAULTS)
def test_every_fault_is_recovered_from_with_the_same_bits(name, tmp_path):
    try:
        outcome = elastic.FAULTS[name](elastic.undisturbed(tmp_path, steps=elastic.STEPS))
    except elastic.NoNamespaces as error:
        pytest.skip(str(error))
    assert outcome.same_bits
    assert outcome.orphans == 0


@pytest.mark.slow
@pytest.mark.parametrize("function", elastic.MISTAKES)
def test_every_mistake_is_said_in_one_line_and_nobody_hangs(function, bench):
    found = function(bench)
    own = [line for line in found.said if "lost the others" not in line]
    assert len(own) == 1
    assert len(found.said) <= 2
    assert found.tracebacks == 0
    assert found.seconds < 60
