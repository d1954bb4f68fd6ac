import numpy as np
import pytest
from scipy.stats import bootstrap as theirs
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from vitreous import metrics
from vitreous.evaluation.bootstrap import bootstrap, intervals


def test_the_interval_of_a_mean_is_scipys_and_wilsons():
    hits = np.random.default_rng(0).random(400) < 0.8
    (low,), (high,) = bootstrap(lambda rows: [hits[rows].mean()], 400)
    found = theirs((hits,), np.mean, method="percentile", n_resamples=5000, rng=np.random.default_rng(1))
    assert (low, high) == pytest.approx(tuple(found.confidence_interval), abs=0.006)
    share = metrics.share(int(hits.sum()), 400)
    assert (low, high) == pytest.approx((share.low, share.high), abs=0.01)


def test_values_are_scikit_learns_and_lie_in_their_intervals():
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 300)
    logits = random.normal(size=(300, 6)) + 2 * np.eye(6)[labels]
    predicted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = intervals(predicted, labels, num_classes=6)
    best = predicted.argmax(1)
    assert found["loss"].value == pytest.approx(log_loss(labels, predicted, labels=range(6)))
    assert found["macro_f1"].value == pytest.approx(f1_score(labels, best, labels=range(5), average="macro"))
    assert found["mean_recall"].value == pytest.approx(np.mean([(best[labels == c] == c).mean() for c in range(5)]))
    for share in found.values():
        assert share.low < share.value < share.high


def test_mean_recall_is_balanced_accuracy():
    labels = np.array([0] * 30 + [1] * 10)
    predicted = np.eye(2)[[0] * 24 + [1] * 6 + [1] * 7 + [0] * 3]
    expected = balanced_accuracy_score(labels, predicted.argmax(1))
    assert intervals(predicted, labels, num_classes=2)["mean_recall"].value == pytest.approx(expected)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(0).normal(size=50)
    first, again = (bootstrap(lambda rows: [values[rows].mean()], 50) for _ in range(2))
    assert np.array_equal(first, again)
