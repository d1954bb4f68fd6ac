import csv
import importlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from vitreous.weights.convert import Agreement

COMMANDS = (
    *("fit", "train", "evaluate", "predict", "inspect", "report", "models"),
    *("budget", "convert", "selftest", "demo", "doctor", "runs", "replay", "recipes", "sweep"),
)


def test_help_needs_nothing_that_takes_long_to_import():
    code = (
        "import sys; from vitreous.cli import main\n"
        "try: main(['--help'])\n"
        "finally: assert not {'torch', 'numpy', 'PIL', 'jinja2'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("command", [*COMMANDS, "data bench", "data pack", "data check", "runs compare"])
def test_every_command_explains_itself(command, vitreous):
    answer = vitreous(*command.split(), "--help")
    assert answer.code == 0
    assert "--json" in answer.out
    assert "--no-json" not in answer.out


def test_without_a_command_there_is_help(vitreous):
    answer = vitreous()
    assert answer.code == 0
    assert all(command in answer.out for command in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("trian", "smoke"), 'Did you mean "train"'),
        (("fit", "digits", "--minuts", "3"), "Did you mean --minutes"),
        (("fit", "digits", "--minutes", "soon"), "--minutes"),
        (("fit",), "DATA"),
        (("train", "smok"), "did you mean smoke"),
        (("train", "smoke", "--model.depht", "3"), "did you mean model.depth"),
        (("train", "smoke", "--model.depth", "three"), "model.depth"),
        (("train", "smoke", "--model.position", "Learnt"), "did you mean Learned"),
        (("train", "smoke", "--model.depth"), "needs a value"),
        (("train", "smoke", "depth=3"), "--name value"),
        (("fit", "digits", "--model", "Bb/16"), "did you mean B"),
        (("models", "B/61"), "did you mean B/16"),
        (("fit", "digitz"), "did you mean digits"),
        (("sweep", "smoke"), "give --over FIELD=VALUE"),
        (("sweep", "smoke", "--over", "learning_rate.peek=1,2"), "did you mean learning_rate.peak"),
        (("sweep", "smoke", "--over", "seed=0,1", "--over", "seed=2,3"), "names a field twice"),
        (("sweep", "smoke", "--over", "seed=0,1", "--dev", "1"), "--dev is 1"),
        (("predict", "digits.safetensors", "x.png"), "digits.safetensors"),
        (("report", "nowhere"), "no run folder"),
        (("evaluate", "timn:vit_tiny", "digits"), "timm:"),
        (("predict", "x", "y", "--top", "0"), "--top"),
        (("doctor", "--device", "cpu"), "--device"),
        (("fit", "digits", "--device", "gpu0"), "device"),
        (("fit", "digits", "--minutes", "-1"), "--minutes"),
        (("fit", ""), "empty"),
        (("fit", "digits", "--val", ""), "empty"),
        (("fit", "digits", "--weights", ""), "empty"),
        (("fit", "digits", "--out", ""), "empty"),
        (("train", "smoke", "--data.path="), "empty"),
        (("predict", "", "x.png"), "empty"),
        (("evaluate", "x", ""), "no model"),
        (("fit", "digits", "--image-size", "4.5"), "whole number"),
        (("fit", "digits", "--seed", "1.5"), "whole number"),
        (("fit", "digits", "--device", "meta"), "device"),
        (("train", "smoke", "--minutes", "nan"), "--minutes"),
        (("train", "smoke", "--model.image_size", "18"), "take 16"),
        (("train", "smoke", "--train_view.image_size", "18"), "does not divide into patches of 4"),
        (("fit", "~nobody-of-that-name/photos"), "no such file or folder"),
        (("fit", "x" * 300), "too long"),
        (("predict", "x" * 300, "x.png"), "too long"),
        (("train", "x" * 300), "too long"),
        (("report", "x" * 300), "too long"),
        (("fit", "digits", "--weights", "hub:a/b c"), "hub:OWNER/NAME"),
    ],
)
def test_a_slip_ends_in_one_line_that_helps(arguments, hint, vitreous):
    answer = vitreous(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert hint in answer.err.splitlines()[-1]
    assert answer.err.splitlines()[-1].startswith("vitreous: ")


def test_the_pattern_of_models_matches_either_name(vitreous):
    by_paper = json.loads(vitreous("models", "b/8", "--json").out)
    by_timm = json.loads(vitreous("models", "base_patch8", "--json").out)
    assert by_paper == by_timm
    assert by_paper[0]["parameters"] == 86_576_872
    assert "86,576,872" in vitreous("models").out


def test_doctor_tells_the_same_to_people_and_machines(vitreous):
    facts = json.loads(vitreous("doctor", "--json").out)
    shown = vitreous("doctor").out
    assert facts["torch"] in shown
    assert facts["threads"][0].isdigit()


def test_a_bug_of_ours_leaves_a_traceback_in_a_file_and_one_line_on_screen(vitreous, monkeypatch, tmp_path):
    def broken():
        raise RuntimeError("no idea")

    monkeypatch.setattr(vitreous_doctor(), "examine", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer = vitreous("doctor")
    assert answer.code == 1
    (log,) = tmp_path.glob("vitreous-error-*.log")
    assert "Traceback" in log.read_text()
    assert answer.err.count("\n") == 1
    assert str(log) in answer.err


def vitreous_doctor():
    return importlib.import_module("vitreous.doctor")


def test_a_device_without_memory_is_no_bug(vitreous, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        pass

    def greedy():
        raise OutOfMemoryError

    monkeypatch.setattr(vitreous_doctor(), "examine", greedy)
    answer = vitreous("doctor")
    assert answer.code == 2
    assert "too little memory" in answer.err


def test_a_reader_that_leaves_is_no_error():
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -m vitreous recipes | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.startswith("name")


def test_a_finished_run_can_be_measured_asked_and_shown(trained, photos, vitreous, tmp_path):
    saved = json.loads((trained / "evaluation.json").read_text())
    again = json.loads(vitreous("evaluate", trained, photos, "--json").out)
    assert again["top1"] == saved["top1"]
    assert again["confusion"] == saved["confusion"]
    text = vitreous("evaluate", trained / "model", photos, "--out", tmp_path / "all.csv").out
    assert "sky" in text
    assert "95 % interval" in text
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert len(rows) == 15
    assert all(row["file"].startswith(row["label"]) for row in rows)

    one = vitreous("predict", trained, photos / "sky" / "sky0.png", "--top", "2").out
    assert "sky0.png" in one
    assert one.count("%") == 2
    lines = vitreous("predict", trained, photos / "sea", "--json").out.splitlines()
    assert len(lines) == 24
    assert len(json.loads(lines[0])["top"]) == 3

    (trained / "report" / "index.html").unlink()
    path = json.loads(vitreous("report", trained, "--json").out)["report"]
    assert "<svg" in Path(path).read_text("utf-8")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_go_into_tables(suffix, trained, photos, vitreous, tmp_path):
    table_file = tmp_path / f"p.{suffix}"
    answer = vitreous(
        "predict", trained, photos / "sky", photos / "sea" / "sea1.png", "--top", "1", "--out", table_file
    )
    assert "25 predictions" in answer.out
    if suffix == "csv":
        rows = list(csv.DictReader(table_file.read_text().splitlines()))
    elif suffix == "jsonl":
        rows = [json.loads(line) for line in table_file.read_text().splitlines()]
    else:
        from pyarrow import parquet

        rows = parquet.read_table(table_file).to_pylist()
    assert len(rows) == 25
    assert list(rows[0]) == ["file", "label_1", "score_1"]
    assert rows[-1]["file"].endswith("sea1.png")
    assert 1 / 3 <= float(rows[0]["score_1"]) <= 1


def test_predictions_of_other_kinds_are_refused_before_the_work(trained, photos, vitreous):
    answer = vitreous("predict", trained, photos / "sky", "--out", "p.xlsx")
    assert answer.code == 2
    assert ".csv, .jsonl, .parquet" in answer.err


def test_images_that_cannot_be_read_are_named_after_the_others_were_told(trained, photos, vitreous, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    answer = vitreous("predict", trained, photos / "sky" / "sky0.png", tmp_path / "broken.png")
    assert answer.code == 2
    assert "sky0.png" in answer.out
    assert "broken.png: truncated" in answer.err


def test_class_names_can_come_from_a_file(trained, photos, vitreous, tmp_path):
    (tmp_path / "names").write_text("a\nb\nc\n")
    answer = vitreous("predict", trained, photos / "sky" / "sky0.png", "--classes", tmp_path / "names")
    assert set(answer.out.split()) & {"a", "b", "c"}
    (tmp_path / "names").write_text("a\n")
    assert "1 names" in vitreous("predict", trained, photos / "sky" / "sky0.png", "--classes", tmp_path / "names").err


def test_a_dry_run_shows_every_field_and_makes_nothing(vitreous):
    answer = vitreous("train", "smoke", "--model.depth=6", "--dry-run")
    assert "--model.depth" in answer.out
    assert "ViT 64x6" in answer.out
    assert json.loads(vitreous("train", "smoke", "--dry-run", "--json").out)["config"]["steps"] > 0
    assert list(Path().iterdir()) == []


def test_a_run_repeats_from_its_file_and_from_a_python_file(vitreous, photos, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from vitreous.recipes.smoke import smoke\n"
        "from dataclasses import replace\n"
        "from vitreous.data.prepare import DataConfig\n"
        f"def small():\n    return replace(smoke(), data=DataConfig(path={str(photos)!r}), steps=4, batch_size=8)\n"
    )
    first = vitreous("train", f"{tmp_path / 'mine.py'}:small", "--json")
    run = json.loads(first.out)
    assert run["run"] == "runs/small"
    second = json.loads(vitreous("train", "runs/small/run.json", "--json").out)
    assert second["run"] != run["run"]
    assert {**second, **dict.fromkeys(["run", "report", "seconds"])} == {
        **run,
        **dict.fromkeys(["run", "report", "seconds"]),
    }


@pytest.mark.parametrize(
    ("text", "name", "hint"),
    [
        ("def f(): return 3", "f", "must return a vitreous.run.Run"),
        ("def f(): return 3", "g", "choose one of f"),
        ("def f(): return 1 / 0", "f", "ZeroDivisionError"),
        ("def f(x): return x", "f", "missing 1 required"),
        ("1/0", "f", "ZeroDivisionError"),
        ("def f(: pass", "f", "SyntaxError"),
    ],
)
def test_a_recipe_file_that_fails_is_the_users_to_mend(text, name, hint, vitreous, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    answer = vitreous("train", f"{tmp_path / 'mine.py'}:{name}")
    assert answer.code == 2
    assert hint in answer.err


def test_time_that_is_up_saves_and_the_same_command_ends_the_run(vitreous, photos):
    words = ("train", "smoke", "--data.path", photos, "--steps", "6", "--batch_size", "8", "--minutes", "0")
    seen = []
    for _ in range(10):
        answer = vitreous(*words)
        seen.append(answer.code)
        if answer.code == 0:
            break
        assert "To go on, type the same command again: vitreous train smoke" in answer.err
    assert seen == [75] * 5 + [0]
    assert [path.name for path in Path("runs").iterdir()] == ["smoke"]


def begun(folder: Path, *words: str) -> subprocess.Popen:
    """A training process that has done a few steps."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vitreous", "train", "smoke", "--steps", "100000", "--out", str(folder), *words],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    for _ in range(1200):
        if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size:
            return process
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("training did not begin")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_saves_and_says_how_to_go_on(number, code, photos, tmp_path, vitreous):
    process = begun(tmp_path / "run", "--data.path", str(photos))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "To go on, type the same command again: vitreous train smoke" in err
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    again = vitreous(
        "train", "smoke", "--steps", "100000", "--out", tmp_path / "run", "--data.path", photos, "--minutes", "0"
    )
    assert again.code == 75
    assert f"going on from step {step:,}" in again.err


def test_a_second_interrupt_leaves_at_once(photos, tmp_path):
    slow = """
import sys, time
from vitreous.cli import main
from vitreous.objectives.supervised import SupervisedObjective
SupervisedObjective.after_step = lambda self, progress: (print("in a step", flush=True), time.sleep(60))
main(sys.argv[1:])
"""
    words = ("train", "smoke", "--data.path", str(photos), "--out", str(tmp_path / "run"))
    with subprocess.Popen([sys.executable, "-c", slow, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in a step\n"
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("out", "hint"), [("p.xlsx", ".csv"), ("folder.csv", "is a folder"), ("file/p.csv", "is a file"), ("p", ".csv")]
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_table_that_cannot_be_written_is_refused_before_the_work(command, out, hint, trained, photos, vitreous):
    Path("folder.csv").mkdir()
    Path("file").touch()
    answer = vitreous(command, trained, photos, "--out", out)
    assert answer.code == 2
    assert hint in answer.err.splitlines()[-1]
    assert "image" not in answer.err.splitlines()[0].partition(hint)[0]


def test_folders_are_read_whole_and_what_is_not_is_said(trained, photos, vitreous, tmp_path):
    folder = tmp_path / "mixed"
    (folder / "deep" / "er").mkdir(parents=True)
    shutil.copy(photos / "sky" / "sky0.png", folder / "deep" / "er" / "a.png")
    (folder / "linked").symlink_to(photos / "sea", target_is_directory=True)
    (folder / "gone.png").symlink_to(tmp_path / "nothing")
    (folder / "notes.txt").touch()
    (folder / "Thumbs.db").touch()
    answer = vitreous("predict", trained, folder, "--json")
    assert len(answer.out.splitlines()) == 25
    assert "1 files without a suffix of images are left out" in answer.err
    assert "gone.png" in answer.err.splitlines()[-1]
    assert answer.code == 2


def test_a_dry_run_of_fit_prints_its_plan(photos, vitreous, monkeypatch):
    monkeypatch.setattr("vitreous.planning.PROBE_S", 0.05)
    answer = vitreous("fit", photos, "--dry-run")
    assert answer.code == 0
    assert answer.out.splitlines()[0].startswith("  model    ViT")
    assert "model    ViT" not in answer.err


def test_a_size_in_the_name_of_a_model_counts(photos, vitreous, monkeypatch, trained):
    monkeypatch.setattr("vitreous.planning.PROBE_S", 0.05)
    assert "20 px" in vitreous("fit", photos, "--model", "32x1/4@20", "--dry-run").out
    again = vitreous("fit", photos, "--weights", trained, "--model", "32x2/4@20", "--dry-run")
    assert "20 px" in again.out
    both = vitreous("fit", photos, "--model", "32x1/4@20", "--image-size", "24", "--dry-run")
    assert "24 px" in both.out


def test_weights_without_a_head_name_no_classes(trained, photos, vitreous, tmp_path):
    tensors = load_file(trained / "model" / "model.safetensors")
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith("head")}
    save_file(encoder, tmp_path / "encoder.safetensors")
    for command in ("predict", "evaluate"):
        answer = vitreous(command, tmp_path / "encoder.safetensors", photos)
        assert answer.code == 2
        assert "an encoder without a head" in answer.err.splitlines()[-1]
    answer = vitreous("fit", photos, "--weights", tmp_path / "encoder.safetensors", "--dry-run")
    assert answer.code == 0
    assert "assumed" in answer.err  # no config.json lies beside them


@pytest.mark.parametrize(("number", "exit_code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_while_measuring_leaves_with_the_way_to_go_on(number, exit_code, photos, tmp_path):
    code = f"""
import os, signal, sys
from vitreous import experiment, planning
from vitreous.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
planning._seconds_per_step = lambda *_: 1e9
experiment.measure_run = lambda *_, **__: os.kill(os.getpid(), signal.{number})
main(sys.argv[1:])
"""
    words = [sys.executable, "-c", code, "fit", str(photos), "--out", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == exit_code
    assert "the same command" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("into", ["2>&1 >/dev/null | head -1", "2>/dev/full >/dev/null"])
def test_training_goes_on_when_nobody_listens(into, photos, tmp_path):
    words = ["-m", "vitreous", "train", "smoke", "--data.path", photos, "--steps", 30, "--out", tmp_path / "run"]
    command = shlex.join(map(str, [sys.executable, *words]))
    subprocess.run(["bash", "-c", f"set -o pipefail; {command} {into}"], capture_output=True, text=True, check=True)
    assert (tmp_path / "run" / "report" / "index.html").exists()


def test_a_full_disk_behind_the_output_is_no_bug():
    command = f"{shlex.quote(sys.executable)} -m vitreous recipes >/dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is full" in done.stderr
    closed = subprocess.run(f"{command[:-11]} >&-", shell=True, capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")


def test_what_cannot_be_read_is_named_in_full(trained, photos, vitreous, tmp_path):
    for i in range(7):
        (tmp_path / f"broken{i}.png").write_bytes(b"\x89PNG")
    answer = vitreous("predict", trained, tmp_path)
    assert answer.code == 2
    assert all(f"broken{i}.png" in answer.err for i in range(7))


def test_a_recipe_file_may_hold_configs_of_its_own(photos, vitreous, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass, replace\n"
        "from vitreous.recipes.smoke import smoke\n"
        "from vitreous.data.prepare import DataConfig\n"
        "from vitreous.schedule import Schedule\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Half(Schedule):\n"
        "    def __call__(self, progress: float) -> float: return 0.5e-3\n"
        f"def small(): return replace(smoke(), data=DataConfig(path={str(photos)!r}), steps=4, learning_rate=Half())\n"
        "def leave(): raise SystemExit(0)\n"
    )
    answer = vitreous("train", f"{tmp_path / 'mine.py'}:small", "--out", tmp_path / "run")
    assert answer.code == 0
    assert "images are not where" not in (tmp_path / "run" / "report" / "index.html").read_text("utf-8")
    assert vitreous("train", f"{tmp_path / 'mine.py'}:leave").code == 2


@pytest.mark.parametrize("layout", ["vitreous", "timm"])
def test_convert_says_what_it_wrote_and_that_nothing_changed(layout, trained, vitreous, tmp_path):
    answer = vitreous("convert", trained, tmp_path / "out", "--to", layout, "--verify", "--json")
    said = json.loads(answer.out)
    assert answer.code == 0
    assert said["difference"] == 0
    assert said["same_class"] == said["images"]


def test_a_layout_that_nobody_has_is_one_line(trained, vitreous, tmp_path):
    answer = vitreous("convert", trained, tmp_path / "out", "--to", "tensorflow")
    assert answer.code == 2
    assert "choose one of vitreous, timm, hf, torchvision, google" in answer.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_interrupt_while_the_commands_are_imported_is_one_line():
    code = "import sys; sys.modules['cyclopts'] = None; import vitreous.cli as c\n"
    code += "class Stop:\n def find_spec(self, name, *_):\n  if name == 'vitreous.cli.exit': raise KeyboardInterrupt\n"
    code += "sys.meta_path.insert(0, Stop()); c.main([])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "vitreous: stopped before anything was done\n")


def test_capital_and_small_g_are_two_models(vitreous):
    lines = [vitreous("models", name).out.splitlines() for name in ("G/14", "g/14")]
    assert [len(said) for said in lines] == [len(vitreous("models", "H/14").out.splitlines())] * 2
    assert "gigantic" in lines[0][1]
    assert "giant_" in lines[1][1]


def test_a_conversion_that_is_another_function_ends_with_1(vitreous, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("vitreous.weights.convert.verify", lambda *_: Agreement(1.0, 1.0, same_class=0, images=4))
    answer = vitreous("convert", trained, tmp_path / "out", "--verify")
    assert answer.code == 1
    assert "ANOTHER FUNCTION" in answer.out
    answer = vitreous("convert", trained, tmp_path / "out", "--verify", "--json")
    assert (answer.code, json.loads(answer.out)["holds"]) == (1, False)
