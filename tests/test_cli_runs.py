import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vitreous.cli.runs import ago
from vitreous.run_folder import RunFolder
from vitreous.run_state import typeable

COMMAND = "vitreous train smoke --steps 40"


def fabricated(path: Path, **record: Any) -> RunFolder:
    """A run that was begun here and has measured three times."""
    folder = RunFolder(path)
    with folder.claimed():
        record = {"config": {"steps": 40}, "command": COMMAND, "directory": os.getcwd(), **record}
        folder.record.write_text(json.dumps(record))
        for step in (10, 20, 30):
            folder.append({"split": "train", "step": step, "loss": 3 / step})
    return folder


def checkpoint(folder: RunFolder, step: int) -> Path:
    path = folder.checkpoints / f"step-{step:08d}"
    path.mkdir(parents=True)
    (path / "rank-00000.safetensors").write_bytes(b"12345")
    manifest = {"step": step, "seconds": 1.0, "files": {"rank-00000.safetensors": {"bytes": 5, "crc32": 1}}}
    (path / "manifest.json").write_text(json.dumps({"manifest": manifest, "crc32": 1}))
    return path


@pytest.fixture
def listed(vitreous):
    """What `vitreous runs --json` says of the one run there is, and its line in the table."""

    def one(*where: object) -> tuple[dict[str, Any], str]:
        answer, shown = vitreous("runs", *where, "--json"), vitreous("runs", *where)
        assert answer.code == shown.code == 0
        (run,) = json.loads(answer.out)
        head, line = shown.out.splitlines()
        assert head.split() == ["run", "state", "step", "reached", "moved", "next"]
        return run, line

    return one


def test_a_finished_run_shows_its_accuracy_and_what_it_is_good_for(listed, trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "here" / "runs" / "photos")
    top1 = json.loads((folder / "evaluation.json").read_text())["top1"]["value"]
    (folder / "evaluation.json").touch()
    steps = json.loads((folder / "run.json").read_text())["config"]["steps"]
    run, line = listed()
    assert (run["path"], run["state"], run["step"], run["steps"]) == ("runs/photos", "finished", steps, steps)
    assert run["top1"] == top1
    assert run["next"] == "vitreous predict runs/photos IMAGES"
    assert line.split() == [
        *("runs/photos", "finished", f"{steps:,}/{steps:,}", "top-1", f"{top1:.1%}", "just", "now"),
        *run["next"].split(),
    ]


def test_a_run_whose_figures_cannot_be_read_is_broken(listed, trained, tmp_path):
    shutil.copytree(trained, tmp_path / "here" / "runs" / "photos")
    Path("runs/photos/evaluation.json").write_text('{"split": "te')
    run, _ = listed()
    assert (run["state"], run["reason"]) == ("broken", "evaluation.json cannot be read")
    assert run["next"].startswith("remove runs/photos/evaluation.json")


def test_a_real_run_that_was_stopped_goes_on_by_what_is_said(vitreous, photos, listed, monkeypatch, tmp_path):
    words = ("train", "smoke", "--data.path", photos, "--steps", "3", "--num_evaluations", "0", "--minutes", "0")
    assert vitreous(*words).code == 75
    run, line = listed()
    assert (run["state"], run["step"], run["steps"]) == ("stopped", 1, 3)
    assert re.search(r"runs/smoke +stopped +1/3 +loss \d\.\d{3} +just now +vitreous train smoke", line)
    program, *again = shlex.split(run["next"])
    assert (program, again) == ("vitreous", [str(word) for word in words])
    here = Path.cwd()
    monkeypatch.chdir(tmp_path)
    run, _ = listed("here/runs")
    assert run["next"] == f"cd {here} && {shlex.join(['vitreous', *again])}"


def test_a_run_that_is_written_to_is_running(listed, vitreous):
    folder = fabricated(Path("runs/a"))
    with folder.claimed() as claim:
        run, line = listed()
        answer = vitreous("train", "smoke", "--out", "runs/a")
    assert (run["state"], run["step"], run["next"]) == ("running", 30, "")
    assert f"process {claim.pid} on {claim.host}" in line
    assert listed()[0]["state"] == "not begun"
    assert answer.code == 2
    message = f"another process (host {claim.host}, pid {claim.pid}) is writing into runs/a; wait until it ends"
    assert answer.err == f"vitreous: {message}, or choose another --out\n"


def test_a_run_that_looks_at_its_images_is_running(listed):
    with RunFolder(Path("runs/a")).claimed():
        run, line = listed()
    assert (run["state"], run["step"], run["steps"]) == ("running", None, None)
    assert line.startswith("runs/a  running  ")


def test_a_run_of_another_machine_is_running_while_it_moves(listed):
    folder = fabricated(Path("runs/a"))
    claim = json.loads((folder.path / "claim.json").read_text())
    (folder.path / "claim.json").write_text(json.dumps({**claim, "host": "node7"}))
    assert listed()[0]["state"] == "not begun"  # it ended in good order
    (folder.path / ".lock").touch()
    run, _ = listed()
    assert (run["state"], run["reason"]) == ("running", f"process {claim['pid']} on node7")
    for file in folder.path.iterdir():
        os.utime(file, (time.time() - 3600, time.time() - 3600))
    run, line = listed()
    assert run["state"] == "not begun"
    assert "1 h ago" in line


def test_a_stopped_run_stands_where_its_newest_whole_checkpoint_does(listed):
    folder = fabricated(Path("runs/a"), launcher="torchrun --nproc-per-node 2 -m")
    for step in (10, 20, 30):
        newest = checkpoint(folder, step)
    (folder.checkpoints / "step-00000040.tmp-1").mkdir()
    run, line = listed()
    assert (run["state"], run["step"]) == ("stopped", 30)
    assert run["next"] == f"torchrun --nproc-per-node 2 -m {COMMAND}"
    assert "loss 0.100" in line
    (newest / "rank-00000.safetensors").write_bytes(b"123")
    assert listed()[0]["step"] == 20


@pytest.mark.parametrize("harm", ["manifest.json", "rank-00000.safetensors", "cut", "damaged"])
def test_a_run_without_a_whole_checkpoint_is_broken(harm, listed):
    folder = fabricated(Path("runs/a"))
    path = checkpoint(folder, 30)
    if harm == "damaged":
        path.rename(path.with_suffix(".damaged"))
    elif harm == "cut":
        (path / "manifest.json").write_text('{"manifest": {"fil')
    else:
        (path / harm).unlink()
    run, _ = listed()
    assert (run["state"], run["reason"]) == ("broken", "no checkpoint is whole")
    assert run["next"] == f"begin again with another --out: {COMMAND}"


def test_a_run_without_a_checkpoint_is_not_begun(listed):
    fabricated(Path("runs/a"))
    run, line = listed("runs/a")
    assert (run["state"], run["next"]) == ("not begun", COMMAND)
    assert line.endswith(COMMAND)


def test_a_run_that_was_killed_before_it_was_described_is_not_begun(listed):
    with RunFolder(Path("runs/a")).claimed():
        shutil.copytree("runs/a", "runs/b")
    run, _ = listed()
    assert (run["path"], run["state"], run["next"]) == ("runs/b", "not begun", "type its command again")


@pytest.mark.parametrize("text", ["{", "[]", '{"config": 3}'])
def test_a_run_with_a_damaged_record_is_broken(text, listed):
    folder = fabricated(Path("runs/a"))
    folder.record.write_text(text)
    run, _ = listed()
    assert (run["state"], run["next"]) == ("broken", "put run.json back, or remove runs/a")
    assert "cannot read runs/a/run.json" in run["reason"]


def test_a_run_that_failed_says_why_and_what_to_do(listed):
    folder = fabricated(Path("runs/a"))
    checkpoint(folder, 20)
    folder.failure.write_text(json.dumps({"what": "the loss is no number", "step": 21, "advice": "lower the rate"}))
    run, line = listed()
    assert (run["state"], run["step"]) == ("broken", 20)
    assert line.endswith("the loss is no number; lower the rate")
    folder.failure.write_text("{")
    assert listed()[0]["reason"] == "it failed, and failure.json cannot be read"


def test_a_run_that_may_not_be_read_is_named(listed, forbid):
    folder = fabricated(Path("runs/a"))
    forbid(folder.path)
    run, _ = listed()
    assert (run["path"], run["state"]) == ("runs/a", "broken")
    assert "cannot be read: Permission denied" in run["reason"]


def test_runs_are_listed_newest_first_wherever_they_lie_below(vitreous):
    for i, name in enumerate(("old", "sweep/a", "sweep/deep/b", "new", "very/very/very/deep", ".hidden")):
        folder = fabricated(Path("runs") / name)
        for file in folder.path.iterdir():
            os.utime(file, (1e9 + i, 1e9 + i))
    (Path("runs") / "photos" / "cat").mkdir(parents=True)
    answer = vitreous("runs")
    assert [line.split()[0] for line in answer.out.splitlines()[1:]] == [
        "runs/new",
        "runs/sweep/deep/b",
        "runs/sweep/a",
        "runs/old",
    ]
    assert [run["path"] for run in json.loads(vitreous("runs", "runs/sweep", "--json").out)] == [
        "runs/sweep/deep/b",
        "runs/sweep/a",
    ]


def test_no_run_and_no_folder_are_said(vitreous):
    answer = vitreous("runs")
    assert answer.code == 2
    assert answer.err == (
        "vitreous: runs does not exist; give the folder that holds your runs, or begin one: vitreous fit PHOTOS\n"
    )
    Path("runs").mkdir()
    answer = vitreous("runs")
    assert (answer.code, answer.out) == (0, "no runs in runs; begin one: vitreous fit PHOTOS\n")
    assert json.loads(vitreous("runs", "--json").out) == []
    Path("file").touch()
    assert "file is no folder" in vitreous("runs", "file").err


def test_nothing_that_a_terminal_obeys_is_shown(vitreous):
    odd = "a\x1b[2J\n\x9b1m\u202e'\\"
    record = {"command": f"vitreous fit {shlex.quote(odd)}", "directory": f"/{odd}\ud800"}
    folder = fabricated(Path("runs") / odd, **record)
    shown = [vitreous("runs"), vitreous("runs", "--json"), vitreous("runs", f"runs/{odd}/no")]
    folder.failure.write_text(json.dumps({"what": odd, "advice": odd}))
    shown += [vitreous("runs"), vitreous("runs", "--json")]
    folder.record.write_text(odd)
    shown += [vitreous("runs"), vitreous("runs", "--json")]
    for answer in shown:
        assert all(line.isprintable() for line in (answer.out + answer.err).split("\n"))
    assert json.loads(shown[1].out)[0]["path"] == f"runs/{odd}"


@pytest.mark.parametrize("word", ["plain", "two words", "it's", "a\x1b[2J'\\x41\n\x9b\u202e", "\udcff\x1b", "$'x'"])
def test_what_is_said_to_be_typed_means_the_same_to_a_shell(word):
    assert typeable(word).isprintable()
    said = subprocess.run(["bash", "-c", f"printf %s {typeable(word)}"], capture_output=True, check=True).stdout
    assert said == os.fsencode(word)


def test_fifty_runs_are_listed_without_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(50):
        checkpoint(fabricated(Path("runs") / str(i)), 30)
    code = (
        "import sys; from vitreous.cli import main\n"
        "try: main(['runs', '--json'])\n"
        "finally: assert not {'torch', 'numpy', 'PIL'} & set(sys.modules), 'heavy imports'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {run["state"] for run in json.loads(done.stdout)} == {"stopped"}
    assert len(json.loads(done.stdout)) == 50


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "just now"),
        (59, "just now"),
        (60, "1 min ago"),
        (7199, "1 h ago"),
        (90_000, "25 h ago"),
        (2e5, "2 days ago"),
    ],
)
def test_times_are_said_as_people_say_them(seconds, said):
    assert ago(seconds) == said
