import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from known_features import clusters
from vitreous.errors import InputError
from vitreous.evaluation.features import Features, joined
from vitreous.evaluation.knn import KNN


def theirs(train, test, *, k, temperature):
    weigh = lambda distances: np.exp((1 - distances) / temperature)  # noqa: E731
    model = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute", weights=weigh)
    return model.fit(train.values.astype(np.float64), train.labels).predict_proba(test.values.astype(np.float64))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_votes_are_scikit_learns(temperature):
    known, ks = clusters(train=300, test=100), (1, 10, 20, 100)
    votes = KNN(temperature=temperature).votes(
        known.train, known.test, ks=ks, num_classes=3, device=torch.device("cpu")
    )
    for k, ours in zip(ks, votes):
        expected = theirs(known.train, known.test, k=k, temperature=temperature)
        np.testing.assert_allclose(ours, expected, atol=2e-5)
        assert np.array_equal(ours.argmax(1), expected.argmax(1))


def test_accuracy_is_scikit_learns_for_every_k():
    known = clusters(train=300, test=100)
    figures = known.evaluated(KNN()).figures["k"]
    for k in (10, 20, 100, 200):
        predicted = theirs(known.train, known.test, k=k, temperature=0.07).argmax(1)
        assert figures[str(k)]["top1"]["value"] == (predicted == known.test.labels).mean()


def test_images_of_a_split_to_choose_by_vote_too():
    known = clusters(train=60, dev=60)
    whole = joined(known.train, known.dev)
    predicted = theirs(whole, known.test, k=20, temperature=0.07).argmax(1)
    outcome = known.evaluated(KNN(ks=(100, 20)))
    assert outcome.figures["k"]["20"]["top1"]["value"] == (predicted == known.test.labels).mean() == outcome.score


def test_a_small_temperature_does_not_overflow():
    same = Features(np.ones((5, 4), np.float32), np.array([0, 1, 1, 0, 1]))
    (votes,) = KNN(temperature=1e-3).votes(same, same, ks=[5], num_classes=2, device=torch.device("cpu"))
    np.testing.assert_allclose(votes, [[0.4, 0.6]] * 5, atol=1e-6)


def test_more_neighbours_than_images_are_left_out_and_named():
    outcome = clusters(train=15).evaluated(KNN())
    assert list(outcome.figures["k"]) == ["10"]
    assert outcome.notes[0] == "no 20 neighbours: there are 15 training images"
    with pytest.raises(InputError, match="6 training images for 10 neighbours"):
        clusters(train=6).evaluated(KNN())
