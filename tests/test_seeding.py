import numpy as np
import pytest

from vitreous.seeding import generator, key


def test_a_key_is_the_same_in_every_process_and_release():
    assert key(0, "split") == 8_764_376_260_289_002_719
    assert key(7, "order", 3, 11) == 2_173_875_044_191_152_367


@pytest.mark.parametrize(
    "other", [(1, "split", 2, 3), (0, "order", 2, 3), (0, "split", 3, 2), (0, "split", 2), (0, "split", 23)]
)
def test_a_key_depends_on_every_argument(other):
    assert key(*other) != key(0, "split", 2, 3)


def test_a_key_has_63_bits():
    keys = [key(0, "bits", i) for i in range(2000)]
    assert 0 <= min(keys) < 2**54
    assert 2**62 < max(keys) < 2**63
    assert len(set(keys)) == 2000


def test_generators_of_one_purpose_draw_the_same_and_of_two_do_not():
    assert np.array_equal(generator(0, "a", 1).random(5), generator(0, "a", 1).random(5))
    assert not np.array_equal(generator(0, "a", 1).random(5), generator(0, "a", 2).random(5))


def test_neighbouring_streams_are_not_correlated():
    draws = np.array([generator(0, "a", i).random(500) for i in range(40)])
    correlation = np.corrcoef(draws) - np.eye(40)
    assert np.abs(correlation).max() < 5 / np.sqrt(500)


def test_a_generator_is_that_of_philox_with_the_key():
    theirs = np.random.Generator(np.random.Philox(key=key(3, "augment", 5, 7)))
    assert np.array_equal(generator(3, "augment", 5, 7).integers(2**63, size=100), theirs.integers(2**63, size=100))
