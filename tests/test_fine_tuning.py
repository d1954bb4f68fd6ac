import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vitreous import fine_tuning
from vitreous.console import Console
from vitreous.evaluation.base import Labelled, held_back
from vitreous.evaluation.classify import probabilities
from vitreous.evaluation.held_out import learning_images
from vitreous.fine_tuning import FineTune
from vitreous.measurement import frozen
from vitreous.predict import load
from vitreous.stopping import Stopped
from vitreous.training import train

QUIET = Console(quiet=True)
SMALL = FineTune(learning_rates=(0.001, 0.1), steps=6, batch_size=8, image_size=None)


@pytest.fixture
def case(trained, photos, tmp_path):
    model = frozen(load(trained), name=str(trained), cache=tmp_path / "features", console=QUIET)
    data, _ = learning_images(str(photos), val=None, model=str(trained), console=QUIET)
    return SimpleNamespace(model=model, data=data, cache=tmp_path)


def counting(monkeypatch):
    """The runs that are really trained."""
    runs = []

    def spied(run, *arguments, **options):
        runs.append(run)
        return train(run, *arguments, **options)

    monkeypatch.setattr(fine_tuning, "train", spied)
    return runs


def test_a_rate_is_chosen_on_held_back_images_and_all_are_then_trained_on(case, monkeypatch):
    runs = counting(monkeypatch)
    figures = SMALL.run(case.model, case.data, console=QUIET).figures
    assert [run.learning_rate.peak for run in runs[:2]] == [0.001, 0.1]
    best = max(figures["grid"], key=lambda point: point["dev_top1"])
    assert figures["learning_rate"] == runs[2].learning_rate.peak == best["learning_rate"]
    (case.cache / "again").mkdir()
    again = train(
        runs[2],
        case.data.train,
        held_out=("test", case.data.test),
        folder=fine_tuning.RunFolder(case.cache / "again"),
        world=case.model.world,
        console=QUIET,
    )
    predicted = probabilities(again.classifier, case.data.test, runs[2].eval_view, world=case.model.world)
    assert figures["top1"]["value"] == (predicted.argmax(1) == case.data.test.labels).mean()


def test_the_plan_is_the_papers_table_4(case):
    run = FineTune().plan(case.model, 0.03)
    assert (run.steps, run.batch_size, run.learning_rate.peak) == (500, 512, 0.03)
    assert (run.optimizer.momentum, run.optimizer.weight_decay, run.optimizer.clip_norm) == (0.9, 0.0, 1.0)
    assert run.model.image_size == run.train_view.image_size == run.eval_view.image_size == 384
    assert FineTune().learning_rates == (0.001, 0.003, 0.01, 0.03)


def test_what_was_tried_before_is_not_tried_again(case, monkeypatch):
    first = SMALL.run(case.model, case.data, console=QUIET).figures
    runs = counting(monkeypatch)
    assert SMALL.run(case.model, case.data, console=QUIET).figures == first
    assert runs == []
    FineTune(learning_rates=(0.001, 0.1), steps=7, batch_size=8, image_size=None).run(
        case.model, case.data, console=QUIET
    )
    assert len(runs) == 3


def test_other_images_to_measure_on_have_answers_of_their_own(case, monkeypatch):
    SMALL.run(case.model, case.data, console=QUIET)
    runs = counting(monkeypatch)
    other = case.data.test.select(np.arange(len(case.data.test))[::-2])
    found = SMALL.run(case.model, Labelled(case.data.train, other), console=QUIET).figures
    assert len(runs) == 1  # the rate is chosen as before
    alone = Labelled(case.data.train, other)
    case.model.cache = case.cache / "anew"
    assert SMALL.run(case.model, alone, console=QUIET).figures == found


def test_the_parts_that_are_learned_from_tell_trainings_apart(case, monkeypatch):
    learned, judge = held_back(case.data.train, seed=0)
    SMALL.run(case.model, Labelled(learned, case.data.test, "test", judge), console=QUIET)
    runs = counting(monkeypatch)
    SMALL.run(case.model, Labelled(judge, case.data.test, "test", learned), console=QUIET)
    assert len(runs) == 3


def test_an_interrupted_sweep_goes_on_where_it_stood(case, monkeypatch):
    expected = SMALL.run(case.model, case.data, console=QUIET).figures
    case.model.cache = case.cache / "second" / "features"
    case.model.cache.mkdir(parents=True)

    def stopped(*arguments, **options):
        return train(*arguments, **options, time_limit_s=0)

    monkeypatch.setattr(fine_tuning, "train", stopped)
    stops = 0
    while True:
        try:
            found = SMALL.run(case.model, case.data, console=QUIET).figures
            break
        except Stopped:
            stops += 1
    assert stops == 3 * 5  # after every step but the last of each training
    assert found == expected


def test_a_rate_that_diverges_is_a_bad_one(case):
    outcome = FineTune(learning_rates=(0.01, 1e38), steps=6, batch_size=8, image_size=None).run(
        case.model, case.data, console=QUIET
    )
    assert outcome.figures["grid"][1]["dev_top1"] == 0
    assert outcome.figures["learning_rate"] == 0.01
    hopeless = replace(SMALL, learning_rates=(1e38,)).run(case.model, case.data, console=QUIET)
    assert hopeless.score == 0
    assert hopeless.notes == ["training with the best learning rate, 1e+38, diverges; give lower ones"]


def test_a_split_to_choose_by_is_trained_on_in_the_end(case, monkeypatch):
    learned, judge = held_back(case.data.train, seed=0)
    sizes = []

    def spied(run, images, **options):
        sizes.append(len(images))
        return train(run, images, **options)

    monkeypatch.setattr(fine_tuning, "train", spied)
    SMALL.run(case.model, Labelled(learned, case.data.test, "test", judge), console=QUIET)
    assert sizes == [len(learned), len(learned), len(case.data.train)]


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_next_time(case, capsys):
    (case.cache / "file").write_text("")
    case.model.cache = case.cache / "file"
    found = SMALL.run(case.model, case.data, console=Console()).figures
    assert "warning: trainings are not kept" in capsys.readouterr().err
    case.model.cache = None
    assert SMALL.run(case.model, case.data, console=QUIET).figures == found


def test_nothing_is_left_behind_without_a_cache(case):
    case.model.cache = None
    before = set(case.cache.iterdir())
    SMALL.run(case.model, case.data, console=QUIET)
    assert set(case.cache.iterdir()) == before


def test_the_command_fine_tunes(trained, photos, vitreous, monkeypatch, tmp_path):
    monkeypatch.setenv("VITREOUS_CACHE", str(tmp_path))
    words = ("--fine_tune.steps", "4", "--fine_tune.batch_size", "8", "--fine_tune.image_size", "none")
    answer = vitreous("evaluate", trained, photos, "--with", "fine-tune", *words, "--json")
    found = json.loads(answer.out)["evaluations"]["fine_tune"]
    assert [point["learning_rate"] for point in found["grid"]] == [0.001, 0.003, 0.01, 0.03]
    assert "learning rate 0.03: 4 steps of 8 images" in answer.err
