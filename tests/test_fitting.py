import json
import shutil

import pytest

import vitreous
from pictures import class_folders, encoded, noise, write
from vitreous import planning
from vitreous.console import Console
from vitreous.data.data_config import DataConfig
from vitreous.data.prepare import prepare
from vitreous.errors import InputError
from vitreous.experiment import Finished, describe, first_difference
from vitreous.fitting import run_name
from vitreous.planning import Plan
from vitreous.recipes.smoke import smoke
from vitreous.run_folder import RunFolder

QUIET = Console(quiet=True)


def test_a_run_leaves_everything_that_is_promised(trained, photos):
    assert {path.name for path in trained.iterdir()} == {
        "run.json",
        "claim.json",
        "split.csv",
        "metrics.jsonl",
        "checkpoints",
        "model",
        "evaluation.json",
        "predictions.csv",
        "report",
        "tensorboard",
    }
    record = json.loads((trained / "run.json").read_text())
    assert record["classes"] == ["sea", "sky", "wall"]
    assert record["data"]["path"] == str(photos)
    assert record["plan"][0].startswith("  model    ViT 32x2/4, from scratch")
    figures = json.loads((trained / "evaluation.json").read_text())
    assert figures["split"] == "test"
    assert figures["num_images"] == 15
    assert figures["top1"]["value"] > 0.9  # red, green or blue is no hard question


def test_a_finished_run_is_shown_again_not_trained_again(trained, photos):
    weights = (trained / "model" / "model.safetensors").stat().st_mtime_ns
    again = vitreous.fit(str(photos), model="32x2/4", minutes=0.1, out=str(trained), console=QUIET)
    assert isinstance(again, Finished)
    assert (trained / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert again.report.is_file()
    assert again.top1 == again.evaluation["top1"]["value"]
    assert "top-1" in again._repr_html_()


def test_a_dry_run_plans_and_writes_nothing(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "PROBE_S", 0.05)
    plan = vitreous.fit(str(photos), dry_run=True, console=QUIET)
    assert isinstance(plan, Plan)
    assert plan.run.model.image_size == 16
    assert list(tmp_path.iterdir()) == []


def test_the_same_command_gives_the_same_model(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_seconds_per_step", lambda *_: 1e9)
    for name in ("a", "b"):
        vitreous.fit(str(photos), out=str(tmp_path / name), minutes=0.01, console=QUIET)
    first, second = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_second_place_of_held_out_images_is_used(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_seconds_per_step", lambda *_: 1e9)
    class_folders(tmp_path / "val", ("sea", "sky", "wall"), each=2)
    done = vitreous.fit(str(photos), val=str(tmp_path / "val"), out=str(tmp_path / "run"), console=QUIET)
    assert isinstance(done, Finished)
    assert (done.evaluation["split"], done.evaluation["num_images"]) == ("val", 6)


def test_what_was_found_is_said(tmp_path):
    class_folders(tmp_path / "train", each=6)
    class_folders(tmp_path / "val", each=3, first_seed=50)
    write({"train/cat/again.png": encoded(noise(0)), "train/dog/held.png": encoded(noise(50))}, tmp_path)
    lines = describe(prepare(DataConfig(path=str(tmp_path))))
    assert lines[0] == "  2 classes, 13 train, 6 val images, about 12 x 10 pixels"
    assert "1 within a split, 1 in two splits, 1 in two classes" in lines[1]


def test_the_first_difference_of_two_runs_is_named():
    before = smoke().to_dict()
    assert first_difference(before, vitreous.Run(**{**vars(smoke()), "steps": 7})) == "steps is 600 there and 7 here"


def test_the_second_place_counts_also_where_the_first_has_test_images(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "_seconds_per_step", lambda *_: 1e9)
    class_folders(tmp_path / "x" / "train", each=6)
    class_folders(tmp_path / "x" / "test", each=3, first_seed=50)
    class_folders(tmp_path / "mine", each=2, first_seed=90)
    done = vitreous.fit(str(tmp_path / "x"), val=str(tmp_path / "mine"), out=str(tmp_path / "run"))
    assert isinstance(done, Finished)
    assert (done.evaluation["split"], done.evaluation["num_images"]) == ("val", 4)
    assert "test images of" in capsys.readouterr().err
    with pytest.raises(InputError, match="class"):  # digits are no cats; but the name is understood
        vitreous.fit(str(tmp_path / "x"), val="digits", out=str(tmp_path / "other"), console=QUIET)


def test_a_run_killed_before_its_split_was_written_goes_on(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_seconds_per_step", lambda *_: 1e9)
    vitreous.fit(str(photos), out=str(tmp_path / "a"), minutes=0.01, console=QUIET)
    for kept in (tmp_path / "a").iterdir():
        if kept.name != "run.json":
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    done = vitreous.fit(str(photos), out=str(tmp_path / "a"), minutes=0.01, console=QUIET)
    assert isinstance(done, Finished)
    assert len((tmp_path / "a" / "split.csv").read_text().splitlines()) == 73


def test_a_run_goes_on_with_the_threads_it_was_begun_with(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(planning, "_seconds_per_step", lambda *_: 1e9)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    vitreous.fit(str(photos), out=str(tmp_path / "a"), minutes=0.01, console=QUIET)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["threads"] == 1
    shutil.rmtree(tmp_path / "a" / "model")
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    vitreous.fit(str(photos), out=str(tmp_path / "a"), minutes=0.01)
    assert "training on cpu (1 of" in capsys.readouterr().err


def test_a_list_of_bad_images_is_of_this_run(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_seconds_per_step", lambda *_: 1e9)
    folder = class_folders(tmp_path / "x", each=60)
    write({f"cat/broken{i}.png": b"" for i in range(9)}, folder)
    with pytest.raises(InputError, match="give no image"):
        vitreous.fit(str(folder), out=str(tmp_path / "run"), console=QUIET)
    assert (tmp_path / "run" / "bad_images.txt").exists()
    for broken in (folder / "cat").glob("broken*"):
        broken.unlink()
    vitreous.fit(str(folder), out=str(tmp_path / "run"), minutes=0.01, console=QUIET)
    assert not (tmp_path / "run" / "bad_images.txt").exists()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("photos", "photos"),
        ("a/photos/", "photos"),
        ("a/photos.tar.gz", "photos"),
        ("cifar10:../b/c", "cifar10"),
        ("strange:a/photos", "photos"),
        ("digits", "digits"),
        (".", "HERE"),
        ("/", "run"),
    ],
)
def test_a_run_is_named_after_its_data(data, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_name(data) == (tmp_path.name if name == "HERE" else name)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_time_must_be_some(minutes, photos):
    with pytest.raises(InputError, match="--minutes must be above 0"):
        vitreous.fit(str(photos), minutes=minutes, console=QUIET)
    assert not RunFolder(photos / "runs").exists()


def test_places_may_be_paths(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_seconds_per_step", lambda *_: 1e9)
    val = class_folders(tmp_path / "val", ("sea", "sky", "wall"), each=2)
    done = vitreous.fit(photos, val=val, out=tmp_path / "run", minutes=0.01, console=QUIET)
    assert isinstance(done, Finished)


def test_a_script_without_a_guard_is_told_so(photos, monkeypatch):
    monkeypatch.setattr("multiprocessing.parent_process", object)
    with pytest.raises(InputError, match="if __name__ == '__main__'"):
        vitreous.fit(photos, console=QUIET)
