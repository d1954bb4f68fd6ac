import math

import pytest
import torch

from vitreous.errors import InputError
from vitreous.schedule import Constant, Cosine, InverseSqrt, Linear, Polynomial, Schedule, Stairs

STEPS = 21
FIVE = 5 / STEPS
"""big_vision's utils_test.py: 21 steps, 5 of warm-up and 5 of cool-down, a peak of 1."""
BIG_VISION = {"peak": 1.0, "warmup_ratio": FIVE, "cooldown_ratio": FIVE}
FALLS = [Linear, Cosine, Polynomial, InverseSqrt, Stairs]


@pytest.mark.parametrize("schedule", FALLS)
def test_warm_up_rises_in_a_straight_line_to_the_peak(schedule):
    rate = schedule(peak=2.0, warmup_ratio=0.2)
    assert [rate(x) for x in (0, 0.05, 0.1, 0.2)] == pytest.approx([0, 0.5, 1.0, 2.0])
    assert rate.highest == 2.0


@pytest.mark.parametrize("schedule", [Linear, Cosine, Polynomial])
def test_training_ends_at_the_end_even_beyond_it(schedule):
    rate = schedule(peak=2.0, end=0.5)
    assert rate(1.0) == pytest.approx(0.5)
    assert rate(1.1) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", FALLS)
def test_a_cool_down_ends_at_zero(schedule):
    rate, free = schedule(cooldown_ratio=0.25), schedule(cooldown_ratio=0.0)
    assert [rate(x) / free(x) for x in (0.5, 0.75, 0.875, 0.99)] == pytest.approx([1, 1, 0.5, 0.04])
    assert rate(1.0) == 0


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        (Linear(**BIG_VISION), 13, 0.5),
        (Polynomial(end=0.1, power=2, **BIG_VISION), 13, 0.325),
        (Cosine(**BIG_VISION), 13, 0.5),
        (InverseSqrt(timescale_ratio=1 / STEPS, **BIG_VISION), 13, 1 / 3),
        (InverseSqrt(timescale_ratio=1 / STEPS, **BIG_VISION), 3, 0.6),
        (InverseSqrt(timescale_ratio=1 / STEPS, **BIG_VISION), 20, 0.05),
        (Stairs(at=(10 / STEPS,), factor=0.5, **BIG_VISION), 5, 1.0),
        (Stairs(at=(10 / STEPS,), factor=0.5, **BIG_VISION), 10, 0.5),
    ],
)
def test_values_are_those_of_big_visions_tests(schedule, step, expected):
    assert schedule(step / STEPS) == pytest.approx(expected, abs=1e-12)


def test_a_cosine_is_one():
    rate = Cosine(peak=1.0, warmup_ratio=0.0)
    assert [rate(x / 8) for x in range(9)] == pytest.approx([(1 + math.cos(math.pi * x / 8)) / 2 for x in range(9)])


def test_a_line_is_one():
    assert [Linear(peak=1.0, warmup_ratio=0.0)(x / 4) for x in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_a_constant_is_one():
    assert {Constant(value=0.3)(x) for x in (0, 0.5, 1)} == {0.3} == {Constant(value=0.3).highest}


def test_stairs_are_torchs():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60, 90], gamma=0.1)
    ours = Stairs(peak=1.0, warmup_ratio=0.0)
    for step in range(100):
        assert ours(step / 100) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_an_inverse_square_root_falls_as_slowly_as_it_says():
    rate = InverseSqrt(peak=1.0, warmup_ratio=0.1, timescale_ratio=0.1, cooldown_ratio=0.0)
    assert rate(0.2) == pytest.approx(1 / math.sqrt(2))
    assert rate(0.9) == pytest.approx(1 / 3)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_warm_up_outside_training_is_refused(ratio):
    with pytest.raises(InputError, match=r"warmup_ratio is .*; it must be 0 or more and less than 1"):
        Cosine(warmup_ratio=ratio)


def test_stairs_that_do_not_go_down_are_refused():
    with pytest.raises(InputError, match="in rising order"):
        Stairs(at=(0.6, 0.3))


def test_a_schedule_of_ones_own_is_asked_for_its_largest_number():
    class Hill(Schedule):
        def __call__(self, progress: float) -> float:
            return 2 - abs(progress - 0.4)

    assert Hill().highest == 2
