import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from numpy.testing import assert_allclose

from vitreous import metrics


@pytest.fixture
def made() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, 7, 500)
    logits = random.normal(size=(500, 7)) + 2 * np.eye(7)[labels]
    exponents = np.exp(logits)
    return exponents / exponents.sum(1, keepdims=True), labels


@pytest.mark.parametrize("k", [1, 3, 5])
def test_hits_equal_scikit_learn(made, k):
    predicted, labels = made
    expected = sklearn.metrics.top_k_accuracy_score(labels, predicted, k=k, normalize=False)
    assert metrics.hits_at(predicted, labels, k=k) == expected


def test_ties_count_for_the_lower_class_as_argmax_does():
    predicted = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert metrics.hits_at(predicted, np.array([0, 1]), k=1) == 1


def test_confusion_and_class_scores_equal_scikit_learn(made):
    predicted, labels = made
    best = predicted.argmax(1)
    confusion = metrics.confusion_matrix(best, labels, num_classes=7)
    assert (confusion == sklearn.metrics.confusion_matrix(labels, best)).all()
    ours = metrics.class_scores(confusion)
    theirs = sklearn.metrics.precision_recall_fscore_support(labels, best)
    for mine, other in zip((ours.precision, ours.recall, ours.f1, ours.count), theirs, strict=True):
        assert_allclose(mine, other)


def test_a_class_nobody_predicts_scores_zero_without_a_warning():
    confusion = np.array([[3, 0], [2, 0]])
    scores = metrics.class_scores(confusion)
    assert scores.precision.tolist() == [0.6, 0.0]
    assert scores.f1.tolist() == [0.75, 0.0]


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (7, 10), (10, 10), (352, 360)])
def test_intervals_equal_wilsons_of_scipy(hits, total):
    expected = scipy.stats.binomtest(hits, total).proportion_ci(0.95, method="wilson")
    ours = metrics.share(hits, total)
    assert_allclose((ours.low, ours.high), (expected.low, expected.high), atol=1e-12)
    assert ours.value == hits / total


def test_cross_entropy_equals_scikit_learn(made):
    predicted, labels = made
    assert_allclose(metrics.cross_entropy(predicted, labels), sklearn.metrics.log_loss(labels, predicted))


def test_calibration_error_equals_the_sum_over_bins_by_hand(made):
    predicted, labels = made
    confidence, right = predicted.max(1), predicted.argmax(1) == labels
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert_allclose(metrics.calibration_error(metrics.reliability(predicted, labels)), expected)


def test_certain_and_right_is_perfectly_calibrated():
    bins = metrics.reliability(np.eye(3), np.arange(3))
    assert metrics.calibration_error(bins) == 0.0
    assert sum(b.count for b in bins) == 3


def test_what_is_no_number_is_no_hit():
    probabilities = np.full((4, 10), np.nan)
    assert metrics.hits_at(probabilities, np.array([3, 4, 5, 0]), k=1) == 0
