import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from vitreous.data.order import ROUNDS, positions
from vitreous.seeding import key

WORD = 2**64
PHOTOS = 1_281_167


def whole(n: int, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return positions(n, seed=seed, epoch=epoch, start=0, stop=n)


def by_hand(n: int, place: int, *, seed: int, epoch: int) -> int:
    """One position, from the definition in whole numbers of Python."""
    base = next(b for b in itertools.count(2 * (math.isqrt(n) // 2), 2) if b * b > n)
    while True:
        high, low = divmod(place, base)
        for number in range(ROUNDS):
            bits = low ^ key(seed, "order", epoch, number)
            bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % WORD
            bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % WORD
            bits ^= bits >> 31
            high, low = low, (high + ((bits >> 32) * base >> 32)) % base
        place = high * base + low
        if place < n:
            return place


def surprise(counts: np.ndarray, expected: float) -> float:
    """Chi-square of counts that should be equal, in standard deviations from its mean."""
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


def test_every_number_of_images_is_permuted():
    for n in range(1, 301):
        for epoch in range(3):
            assert sorted(whole(n, epoch=epoch)) == list(range(n))


@pytest.mark.parametrize("n", [65_535, 65_536, 65_537, 999_999, 1_000_000, PHOTOS])
def test_many_images_are_permuted_in_every_epoch(n):
    for epoch in (0, 1, 1000):
        assert (np.bincount(whole(n, epoch=epoch), minlength=n) == 1).all()


@pytest.mark.parametrize("n", [1, 2, 3, 7, 1000, 2**32 + 1, 10**10, 10**10 + 7, 2**62])
def test_an_order_is_the_one_of_its_definition(n):
    for seed, epoch in ((0, 0), (7, 123_456)):
        for start in (0, n // 3, max(n - 40, 0)):
            stop = min(start + 40, n)
            wanted = [by_hand(n, place, seed=seed, epoch=epoch) for place in range(start, stop)]
            assert positions(n, seed=seed, epoch=epoch, start=start, stop=stop).tolist() == wanted


def test_an_order_is_the_same_in_every_release():
    assert whole(12, seed=3, epoch=4).tolist() == [7, 1, 2, 3, 0, 9, 8, 5, 4, 6, 10, 11]


def test_parts_of_an_order_make_the_whole():
    order = whole(1000, seed=5, epoch=2)
    for cuts in ((0, 1000), (0, 1, 2, 700, 700, 1000), range(0, 1001, 8)):
        parts = [positions(1000, seed=5, epoch=2, start=a, stop=b) for a, b in itertools.pairwise(cuts)]
        assert np.concatenate(parts).tolist() == order.tolist()


def test_every_permutation_of_a_few_images_is_as_likely_as_any_other():
    for n in (2, 3, 4):
        drawn = Counter(tuple(whole(n, epoch=epoch)) for epoch in range(4000))
        counts = np.array([drawn[order] for order in itertools.permutations(range(n))])
        assert abs(surprise(counts, 4000 / math.factorial(n))) < 5


@pytest.mark.parametrize("n", [10**6, PHOTOS, 10**10])
def test_neighbours_epochs_and_seeds_are_not_correlated(n):
    count = 300_000
    part = {"start": 0, "stop": count}
    here = positions(n, seed=0, epoch=3, **part)
    base = math.isqrt(n) // 2 * 2 + 2
    pairs = {"the next": (here[:-1], here[1:])}
    pairs["the next epoch"] = here, positions(n, seed=0, epoch=4, **part)
    pairs["the next seed"] = here, positions(n, seed=1, epoch=3, **part)
    if base < count:
        pairs["the next row of the square"] = here[:-base], here[base:]
    for what, (a, b) in pairs.items():
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(count), what
        cells = (a * 40 // n) * 40 + b * 40 // n
        assert abs(surprise(np.bincount(cells, minlength=1600), len(cells) / 1600)) < 5, what
        steps = (b - a) % n * 1000 // n
        assert abs(surprise(np.bincount(steps, minlength=1000), len(steps) / 1000)) < 5, what


def test_a_part_of_an_epoch_comes_from_everywhere():
    for n in (PHOTOS, 10**8, 10**10):
        found = positions(n, seed=0, epoch=1, start=0, stop=100_000)
        assert abs(surprise(np.bincount(found * 1000 // n, minlength=1000), 100)) < 5
        assert abs(surprise(np.bincount(found % 997, minlength=997), 100_000 / 997)) < 5


def test_batches_of_sorted_classes_are_mixed_as_by_chance():
    """The number of one class in a batch is hypergeometric, as when drawn without replacement."""
    n, batch, classes = 1000, 100, 10
    orders = np.stack([whole(n, epoch=epoch) for epoch in range(400)]).reshape(-1, batch)
    counts = (orders * classes // n == 0).sum(axis=1)
    wanted = batch * 0.1 * 0.9 * (n - batch) / (n - 1)
    assert counts.mean() == 10
    assert abs(counts.var() / wanted - 1) < 5 * math.sqrt(2 / len(counts))


@pytest.mark.parametrize("n", [10**10, 2**62])
def test_a_batch_of_ten_thousand_million_images_and_more_takes_no_memory(n):
    positions(n, seed=0, epoch=0, start=0, stop=2)
    tracemalloc.start()
    for epoch in (0, 1, 10**6):
        for start in (0, n - 4096):
            assert len(positions(n, seed=0, epoch=epoch, start=start, stop=start + 4096)) == 4096
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
