import json
import math
from dataclasses import replace

import pytest

from test_training import WORLD, pictures, tiny
from vitreous import rate_test as module
from vitreous.errors import InputError
from vitreous.rate_test import Geometric, rate_test
from vitreous.trainee import Trainee


def test_the_rate_rises_by_equal_factors():
    rising = Geometric(lowest=1e-6, highest_rate=1.0)
    assert [rising(x / 6) for x in range(7)] == pytest.approx([10.0**-x for x in (6, 5, 4, 3, 2, 1, 0)])
    assert rising.highest == pytest.approx(1.0)


def test_losses_are_the_averages_of_those_of_its_steps(monkeypatch):
    taken = []
    take = Trainee.take

    def noted(self, step, batches):
        taken.append(take(self, step, batches))
        return taken[-1]

    monkeypatch.setattr(Trainee, "take", noted)
    found = rate_test(tiny(num_micro_batches=2), pictures(), world=WORLD, steps=12, highest=1e-3)
    raw = [float(one.numbers[:, 0].mean()) for one in taken]
    weights = [[0.9 ** (step - earlier) for earlier in range(step + 1)] for step in range(12)]
    expected = [sum(w * loss for w, loss in zip(some, raw)) / sum(some) for some in weights]
    assert found.losses == pytest.approx(expected)
    assert found.rates == pytest.approx([1e-6 * 1e3 ** (step / 12) for step in range(12)])
    assert found.diverged is None


def test_it_finds_the_range_in_which_a_run_learns():
    found = rate_test(tiny(batch_size=32), pictures(), world=WORLD, steps=50, lowest=1e-5, highest=10.0)
    assert 1e-4 < found.steepest <= found.lowest < 1
    assert found.advice == found.lowest / 10
    assert found.losses[found.rates.index(found.lowest)] < 0.9 * math.log(3)


def test_it_ends_where_the_loss_blows_up():
    run = tiny(optimizer=replace(tiny().optimizer, clip_norm=None))
    found = rate_test(run, pictures(), world=WORLD, steps=40, lowest=1e-4, highest=1e6)
    assert found.diverged is not None
    assert found.rates[-1] < found.diverged < 1e6
    assert max(found.losses) <= 2 * found.losses[0]


def test_a_curve_is_judged_by_its_steepest_fall_and_its_lowest_point():
    rates = [10.0 ** (i / 10) for i in range(40)]
    losses = [3 - 2 / (1 + math.exp(10 - i)) + max(i - 20, 0) ** 2 / 50 for i in range(40)]
    found = module._judged(rates, losses, None)
    assert found.steepest == rates[10]
    assert found.lowest == rates[losses.index(min(losses))]


def test_a_start_that_blows_up_at_once_is_answered():
    with pytest.raises(InputError, match=r"at a learning rate of 1; give a smaller --lowest"):
        module._judged([0.1, 0.5], [1.0, 1.9], 1.0)


def test_the_command_shows_the_curve_and_writes_nothing(vitreous, tmp_path):
    answer = vitreous("doctor", "smoke", "--lr", "--steps", "12")
    assert answer.code == 0, answer.err
    assert "falls fastest" in answer.out
    assert "lowest" in answer.out
    assert "begin with --learning_rate.peak" in answer.out
    said = json.loads(vitreous("doctor", "smoke", "--lr", "--steps", "12", "--json").out)
    assert said["rates"][0] == 1e-6
    assert said["advice"] == said["lowest"] / 10
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lr",), "give a run or recipe"),
        (("smoke",), "give a run or recipe and what to examine"),
        (("smoke", "--lr", "--steps", "5"), "--steps is 5; a test takes 10 or more"),
        (("smoke", "--lr", "--lowest", "1", "--highest", "0.1"), "rise from --lowest to --highest, got 1 and 0.1"),
    ],
)
def test_what_cannot_be_tested_is_said(words, message, vitreous):
    answer = vitreous("doctor", *words)
    assert answer.code == 2
    assert message in answer.err
