from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from test_training import WORLD, tiny
from vitreous import grid
from vitreous.console import Console
from vitreous.data.data_config import DataConfig
from vitreous.errors import InputError
from vitreous.grid import Grid, combinations, values_of
from vitreous.run import Run
from vitreous.run_folder import RunFolder
from vitreous.stopping import Stopped

PEAKS = {"learning_rate.peak": ["0.003", "1e-4"]}


def small(photos, **changes) -> Run:
    return tiny(data=DataConfig(path=str(photos)), steps=6, num_evaluations=0, **changes)


def swept(run: Run, place, over=PEAKS, *, dev_ratio: float = 0.0, time_limit_s: float | None = None) -> grid.Swept:
    return Grid(place, WORLD, Console(quiet=True), time_limit_s=time_limit_s).sweep(run, over, dev_ratio=dev_ratio)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("learning_rate.peak=1e-3,3e-3", "learning_rate.peak", ["1e-3", "3e-3"]),
        ("--batch-size=8, 16", "batch_size", ["8", "16"]),
        ("at=(0.3,0.6),(0.5,0.8)", "at", ["(0.3,0.6)", "(0.5,0.8)"]),
        ("data.path=a=b", "data.path", ["a=b"]),
    ],
)
def test_a_field_and_its_values_are_read(text, name, values):
    assert values_of(text) == (name, values)


@pytest.mark.parametrize("text", ["", "seed", "seed=", "=1,2", "seed=1,,2"])
def test_what_names_no_values_is_refused(text):
    with pytest.raises(InputError, match="--over takes FIELD=VALUE,VALUE"):
        values_of(text)


def test_a_value_given_twice_is_refused():
    with pytest.raises(InputError, match="has a value twice"):
        values_of("seed=1,2,1")


def test_all_combinations_are_made_before_any_is_carried_out(tmp_path, photos):
    found = combinations(small(photos), {"model.depth": ["1", "2"], "seed": ["5", "6", "7"]})
    assert [(run.model.depth, run.seed) for _, run in found] == [(d, s) for d in (1, 2) for s in (5, 6, 7)]
    with pytest.raises(InputError, match=r"model.num_heads=5: num_heads 5 does not divide width 32"):
        swept(small(photos), tmp_path / "s", {"model.num_heads": ["1", "5"]})
    assert not (tmp_path / "s").exists()


def test_settings_are_ranked_by_their_mean_over_seeds(tmp_path, photos):
    found = swept(small(photos), tmp_path, PEAKS | {"seed": ["0", "1"]})
    assert found.split == "test"
    assert [len(setting.outcomes) for setting in found.settings] == [2, 2]
    for setting in found.settings:
        top1 = [RunFolder(tmp_path / outcome.path).figures()["top1"]["value"] for outcome in setting.outcomes]
        half = scipy.stats.t.ppf(0.975, 1) * scipy.stats.sem(top1)
        expected = (np.mean(top1), max(np.mean(top1) - half, 0), min(np.mean(top1) + half, 1))
        assert (setting.score.value, setting.score.low, setting.score.high) == pytest.approx(expected)
        assert [outcome.seed for outcome in setting.outcomes] == [0, 1]
    assert found.settings[0].score.value >= found.settings[1].score.value
    assert found.final is None


def test_interrupted_at_every_step_it_comes_to_the_same_and_repeats_nothing(tmp_path, photos, monkeypatch):
    whole = swept(small(photos), tmp_path / "whole")
    stops = 0
    while True:
        try:
            again = swept(small(photos), tmp_path / "parts", time_limit_s=0.0)
            break
        except Stopped:
            stops += 1
    assert stops == 2 * 5  # of 6 steps, the last one ends a run
    assert [setting.score for setting in again.settings] == [setting.score for setting in whole.settings]
    monkeypatch.setattr(grid, "carry_out", None)
    assert swept(small(photos), tmp_path / "parts") == again


def test_the_best_by_held_back_images_is_measured_on_those_that_chose_nothing(tmp_path, photos):
    found = swept(small(photos), tmp_path, dev_ratio=0.25)
    assert found.split == "dev"
    assert found.final.values == found.settings[0].values
    records = [RunFolder(tmp_path / setting.outcomes[0].path).read() for setting in (found.settings[0], found.final)]
    counts = [{split: sum(of.values()) for split, of in record["data"]["splits"].items()} for record in records]
    held_out = counts[1]["test"]
    assert counts[0] == {"train": counts[1]["train"] - counts[0]["dev"], "dev": counts[0]["dev"]}
    assert counts[0]["dev"] == pytest.approx(0.25 * (72 - held_out), abs=2)
    figures = RunFolder(tmp_path / found.final.outcomes[0].path).figures()
    assert (figures["split"], figures["num_images"]) == ("test", held_out)


def test_a_run_that_diverges_is_last_and_is_not_tried_again(tmp_path, photos, monkeypatch):
    over = {"learning_rate.peak": ["1e30", "0.003"]}
    run = small(photos, optimizer=replace(tiny().optimizer, clip_norm=None))
    found = swept(run, tmp_path, over)
    assert [setting.values["learning_rate.peak"] for setting in found.settings] == ["0.003", "1e30"]
    assert found.settings[1].score is None
    monkeypatch.setattr(grid, "carry_out", None)
    assert swept(run, tmp_path, over) == found
    with pytest.raises(InputError, match=r"every run of .* diverged; give lower learning rates"):
        swept(run, tmp_path, {"learning_rate.peak": ["1e30"]})


def test_runs_of_another_sweep_are_not_mistaken_for_its_own(tmp_path, photos):
    swept(small(photos), tmp_path)
    with pytest.raises(InputError, match=r"holds another run .batch_size is 16 there and 8 here.: of another sweep"):
        swept(small(photos, batch_size=8), tmp_path)


def test_a_best_value_at_the_end_of_the_grid_is_said(tmp_path, photos, monkeypatch):
    heights = iter([0.2, 0.3, 0.5])
    share = grid.Share
    monkeypatch.setattr(
        Grid,
        "_outcome",
        lambda self, run, name: grid.Outcome(name, run.seed, share(height := next(heights), height, height)),
    )
    found = swept(small(photos), tmp_path, {"learning_rate.peak": ["0.001", "0.003", "0.01"]})
    assert found.notes == [
        "the best learning_rate.peak, 0.01, is at the end of the grid: a better one may lie beyond it"
    ]


def test_the_same_images_are_looked_at_once(tmp_path, photos, monkeypatch):
    looked = []
    look = grid.look
    monkeypatch.setattr(grid, "look", lambda *given, **options: looked.append(given) or look(*given, **options))
    swept(small(photos), tmp_path)
    assert len(looked) == 1
    assert np.isfinite(swept(small(photos), tmp_path).settings[0].score.value)


def test_a_folder_may_be_called_by_any_value(tmp_path, photos):
    name = "weights=" + "x/" * 100 + "é ü"
    file = grid._as_file(name)
    assert "/" not in file
    assert len(file.encode()) < 255
    assert file != grid._as_file(name + "2")
