import json
import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch

from test_training import WORLD
from vitreous.console import Console
from vitreous.data.named import digits
from vitreous.recent import LEAST, WINDOW, Recent, Row
from vitreous.recipes.smoke import smoke
from vitreous.run_folder import RunFolder
from vitreous.trainee import Taken, Trainee
from vitreous.training import train


def rows(number: int, *, seed: int = 0, spikes: dict[int, float] | None = None) -> list[Row]:
    """Steps of a loss that falls with noise, and of a norm that scatters more."""
    random = np.random.default_rng(seed)
    made = []
    for step in range(1, number + 1):
        loss = 2 / (1 + step / 100) + random.normal() * 0.05 + (spikes or {}).get(step, 0.0)
        made.append({"step": step, "loss": loss, "grad_norm": math.exp(random.normal() * 0.3), "skipped": 0.0})
    return made


def found(recent: Recent, steps: list[Row]) -> list[int]:
    return [int(row["step"]) for row in steps if recent.spikes(row)]


def test_what_stands_out_is_found_at_its_step_and_nothing_else():
    assert found(Recent(), rows(1000, spikes={200: 2.0, 500: 5.0})) == [200, 500]
    assert found(Recent(), rows(5000)) == []


def test_it_says_how_large_and_what_is_usual():
    recent, steps = Recent(), rows(200, spikes={200: 2.0})
    *before, last = steps
    assert found(recent, before) == []
    usual = fmean(row["loss"] for row in before[-WINDOW:])
    assert recent.spikes(last) == {"loss": last["loss"], "usual_loss": usual}


def test_too_few_steps_say_nothing():
    assert found(Recent(), rows(LEAST, spikes={LEAST: 1e6})) == []
    assert found(Recent(), rows(LEAST + 1, spikes={LEAST + 1: 1e6})) == [LEAST + 1]


def test_numbers_that_are_all_alike_make_no_small_difference_stand_out():
    steps = [{"step": i, "loss": 1.0, "grad_norm": 1.0, "skipped": 0.0} for i in range(100)]
    assert found(Recent(), [*steps, steps[0] | {"step": 100, "loss": 1.009}]) == []
    assert found(Recent(), [*steps, steps[0] | {"step": 100, "loss": 1.011}]) == [100]


def test_steps_that_were_skipped_neither_stand_out_nor_change_what_is_usual():
    steps = rows(300, spikes={200: 3.0, 250: 3.0})
    skipped = {**steps[219], "loss": 1e30, "grad_norm": math.nan, "skipped": 1.0}
    assert found(Recent(), [*steps[:219], skipped, *steps[220:]]) == [200, 250]


def test_a_restart_forgets_nothing():
    steps = rows(400, spikes={150: 3.0, 300: 3.0})
    before = Recent()
    assert found(before, steps[:299]) == [150]
    state = json.loads(json.dumps(before.state()))
    assert found(Recent(rows=state["rows"], history=state["history"]), steps[299:]) == [300]
    assert len(json.dumps(state)) < 10_000


def test_numbers_are_means_over_micro_batches_and_then_over_the_steps_taken():
    recent = Recent()
    torch.manual_seed(0)
    numbers = torch.rand(5, 3, 2)
    for step in range(5):
        norm, skipped = torch.tensor(float(step)), torch.tensor(float(step == 2))
        recent.add(
            Taken(step, ("loss", "accuracy"), numbers[step], norm, skipped), images=3, waited_s=0.0, others_s=0.0
        )
    settled = recent.settle(WORLD)
    assert [row["step"] for row in settled] == [1, 2, 3, 4, 5]
    exact = numbers.double().numpy()
    np.testing.assert_allclose([row["loss"] for row in settled], exact[:, :, 0].mean(axis=1), rtol=1e-15)
    taken = exact[[0, 1, 3, 4]].mean(axis=(0, 1))
    wanted = {"loss": taken[0], "accuracy": taken[1], "grad_norm": 2.0}
    assert recent.means() == pytest.approx(wanted, rel=1e-15)
    assert recent.settle(WORLD) == []


def test_in_real_training_only_the_step_that_was_spoilt_stands_out(tmp_path, monkeypatch):
    run = replace(smoke(), steps=160, num_evaluations=0)
    gradients = Trainee.gradients

    def spoilt(self, step, progress, batches):
        names, numbers = gradients(self, step, progress, batches)
        if step == 119:
            with torch.no_grad():
                for parameter in self.objective.parameters():
                    parameter.grad *= 100
        return names, numbers

    monkeypatch.setattr(Trainee, "gradients", spoilt)
    source = digits().train
    train(
        run,
        source,
        held_out=("test", source),
        folder=RunFolder(tmp_path),
        world=WORLD,
        console=Console(quiet=True),
    )
    events = [line for line in RunFolder(tmp_path).measurements() if "event" in line]
    assert [(line["event"], line["step"]) for line in events] == [("spike", 120)]
    assert events[0]["grad_norm"] > 20 * events[0]["usual_grad_norm"]
    assert "loss" not in events[0]
