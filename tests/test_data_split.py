import numpy as np
import pytest

from vitreous.data.label_sets import LabelSets
from vitreous.data.split import iterative
from vitreous.errors import InputError


def drawn(seed: int, number: int = 400) -> tuple[np.ndarray, LabelSets, np.ndarray]:
    """Labels, sets and digests of images that show classes of very different frequency."""
    random = np.random.default_rng(seed)
    shown = random.random((number, 8)) < np.geomspace(0.5, 0.01, 8)
    sets, labels = LabelSets.of(np.flatnonzero(row).tolist() for row in shown)
    return labels, sets, np.array([f"{i:032x}".encode() for i in random.permutation(number)])


@pytest.mark.parametrize("seed", range(8))
def test_every_class_is_held_out_in_its_part(seed):
    labels, sets, digests = drawn(seed)
    held = iterative(labels, sets, digests=digests, num_classes=8, ratio=0.2, seed=seed)
    shown = sets.multi_hot(labels, num_classes=8)
    assert abs(held.sum() - 80) <= 4
    assert (np.abs(shown[held].sum(axis=0) - 0.2 * shown.sum(axis=0)) <= 2).all()
    assert (shown[~held].sum(axis=0)[shown.any(axis=0)] > 0).all()
    assert (shown[held].sum(axis=0)[shown.sum(axis=0) > 1] > 0).all()
    chance = np.random.default_rng(seed).random(400) < 0.2

    def distance(part: np.ndarray) -> float:
        return float(np.abs(shown[part].mean(axis=0) - shown.mean(axis=0)).mean())

    assert distance(held) < distance(chance)


def test_the_choice_depends_on_images_and_seed_alone():
    labels, sets, digests = drawn(0)
    held = iterative(labels, sets, digests=digests, num_classes=8, ratio=0.2, seed=0)
    order = np.random.default_rng(1).permutation(400)
    other = LabelSets.of(sets[label] for label in labels[order])
    again = iterative(other[1], other[0], digests=digests[order], num_classes=8, ratio=0.2, seed=0)
    assert np.array_equal(again, held[order])
    assert not np.array_equal(iterative(labels, sets, digests=digests, num_classes=8, ratio=0.2, seed=1), held)


def test_equal_images_stay_together():
    labels, sets, digests = drawn(2)
    labels, digests = np.concatenate([labels, labels[:100]]), np.concatenate([digests, digests[:100]])
    held = iterative(labels, sets, digests=digests, num_classes=8, ratio=0.2, seed=0)
    assert np.array_equal(held[400:], held[:100])
    assert abs(held.sum() - 100) <= 6


def test_a_class_of_two_images_stands_on_either_side_and_of_one_in_training():
    shown = [(0, 1), (0, 1), (0, 2), *[(0,)] * 7]
    sets, labels = LabelSets.of(shown)
    digests = np.array([f"{i:032x}".encode() for i in range(10)])
    for seed in range(10):
        held = iterative(labels, sets, digests=digests, num_classes=3, ratio=0.2, seed=seed)
        assert held[:2].sum() == 1
        assert not held[2]


def test_too_few_images_are_refused():
    sets, labels = LabelSets.of([(0,), (0, 1)])
    digests = np.array([b"1", b"1"])
    with pytest.raises(InputError, match="only 1 different image"):
        iterative(labels, sets, digests=digests, num_classes=2, ratio=0.2, seed=0)
    sets, labels = LabelSets.of([(0,), (1,)])
    with pytest.raises(InputError, match="each of the 2 different images is the only one of a class"):
        iterative(labels, sets, digests=np.array([b"1", b"2"]), num_classes=2, ratio=0.2, seed=0)
