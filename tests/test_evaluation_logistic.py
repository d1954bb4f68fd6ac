import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from known_features import clusters
from vitreous.evaluation.base import at_the_edge, learning_parts
from vitreous.evaluation.features import joined
from vitreous.evaluation.logistic import Logistic, regress


def theirs(x, labels, *, penalty):
    model = LogisticRegression(C=1 / (penalty * len(labels)), tol=1e-12, max_iter=100_000)
    return model.fit(x, labels)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("num_classes", [3, 7])
def test_weights_are_scikit_learns(penalty, num_classes):
    known = clusters(num_classes=num_classes, train=140)
    x = StandardScaler().fit_transform(known.train.values.astype(np.float64))
    labels = torch.from_numpy(known.train.labels)
    ours = regress(torch.from_numpy(x), labels, penalty=penalty, num_classes=num_classes)
    expected = theirs(x, known.train.labels, penalty=penalty)
    np.testing.assert_allclose(ours[:-1].T, expected.coef_, atol=1e-5 * abs(expected.coef_).max())
    bias = ours[-1] - ours[-1].mean()  # a constant for all classes changes nothing
    np.testing.assert_allclose(bias, expected.intercept_ - expected.intercept_.mean(), atol=1e-5)


@pytest.mark.parametrize("penalty", [1.0, 1e-3, 1e-6])
def test_the_slope_is_zero_at_the_optimum(penalty):
    known = clusters(num_classes=7, train=140)
    x = StandardScaler().fit_transform(known.train.values.astype(np.float64))
    weights = regress(torch.from_numpy(x), torch.from_numpy(known.train.labels), penalty=penalty, num_classes=7).numpy()
    error = softmax(x @ weights[:-1] + weights[-1], axis=1) - np.eye(7)[known.train.labels]
    assert np.abs(x.T @ error / len(x) + penalty * weights[:-1]).max() < 2e-7
    assert np.abs(error.mean(axis=0)).max() < 2e-7


def test_the_penalty_is_chosen_on_held_back_images_and_the_rest_is_scikit_learns():
    known = clusters(train=120, width=30)
    evaluation = Logistic(exponents=(0, -1, -2, -3, -4))
    figures = known.evaluated(evaluation).figures
    learned, judge = learning_parts(known.train, None, seed=0)
    scaler = StandardScaler().fit(learned.values.astype(np.float64))
    for point in figures["path"]:
        model = theirs(scaler.transform(learned.values), learned.labels, penalty=point["penalty"])
        assert point["dev_top1"] == pytest.approx(model.score(scaler.transform(judge.values), judge.labels))
    best = max(figures["path"], key=lambda point: point["dev_top1"])
    assert figures["penalty"] == best["penalty"]
    scaler = StandardScaler().fit(known.train.values.astype(np.float64))
    model = theirs(scaler.transform(known.train.values), known.train.labels, penalty=figures["penalty"])
    assert figures["top1"]["value"] == model.score(scaler.transform(known.test.values), known.test.labels)


def test_a_dev_split_chooses_and_is_then_learned_from():
    known = clusters(train=60, dev=60)
    figures = known.evaluated(Logistic(exponents=(-1, -2))).figures
    whole = joined(known.train, known.dev)
    scaler = StandardScaler().fit(whole.values.astype(np.float64))
    model = theirs(scaler.transform(whole.values), whole.labels, penalty=figures["penalty"])
    assert figures["top1"]["value"] == model.score(scaler.transform(known.test.values), known.test.labels)


def test_a_tie_at_the_end_of_the_grid_is_none():
    assert at_the_edge("rate", (1, 2, 3), (0.5, 0.5, 0.4)) == []
    assert at_the_edge("rate", (1, 2, 3), (0.4, 0.5, 0.5)) == []
    assert len(at_the_edge("rate", (1, 2, 3), (0.4, 0.4, 0.5))) == 1
    assert at_the_edge("rate", (1,), (0.5,)) == []
