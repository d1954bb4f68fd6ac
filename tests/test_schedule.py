import math

import pytest

from vitreous.errors import InputError
from vitreous.schedule import Constant, Cosine, Linear


@pytest.mark.parametrize("schedule", [Linear, Cosine])
def test_warm_up_rises_in_a_straight_line_to_the_peak(schedule):
    rate = schedule(peak=2.0, warmup_ratio=0.2)
    assert [rate(x) for x in (0, 0.05, 0.1, 0.2)] == pytest.approx([0, 0.5, 1.0, 2.0])


@pytest.mark.parametrize("schedule", [Linear, Cosine])
def test_training_ends_at_the_end_even_beyond_it(schedule):
    rate = schedule(peak=2.0, end=0.5)
    assert rate(1.0) == pytest.approx(0.5)
    assert rate(1.1) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", [Linear, Cosine])
def test_halfway_through_the_fall_is_half_as_in_big_visions_tests(schedule):
    rate = schedule(peak=1.0, warmup_ratio=5 / 21)  # utils_test.py: 21 steps, 5 of warm-up, step 13
    assert rate(13 / 21) == pytest.approx(0.5)
    assert rate(3 / 21) == pytest.approx(0.6)


def test_a_cosine_is_one():
    rate = Cosine(peak=1.0, warmup_ratio=0.0)
    assert [rate(x / 8) for x in range(9)] == pytest.approx([(1 + math.cos(math.pi * x / 8)) / 2 for x in range(9)])


def test_a_line_is_one():
    assert [Linear(peak=1.0, warmup_ratio=0.0)(x / 4) for x in range(5)] == [1, 0.75, 0.5, 0.25, 0]


def test_a_constant_is_one():
    assert {Constant(value=0.3)(x) for x in (0, 0.5, 1)} == {0.3}


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_warm_up_outside_training_is_refused(ratio):
    with pytest.raises(InputError, match=r"warmup_ratio is .*; it must be 0 or more and less than 1"):
        Cosine(warmup_ratio=ratio)
