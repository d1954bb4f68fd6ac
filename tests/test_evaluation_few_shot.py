import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from known_features import clusters
from vitreous.errors import InputError
from vitreous.evaluation.few_shot import FewShot, design, ridge, signs


def papers_code(train, labels, test, *, penalty, num_classes):
    """Least squares as the paper's evaluator (big_vision) states them, in NumPy's float64, by `solve`."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    mean, deviation = train.mean(0), train.std(0) + 1e-5
    x, z = ((part - mean) / deviation for part in (train, test))
    x, z = (np.concatenate([part, np.full((len(part), 1), 100.0)], axis=1) for part in (x, z))
    y = 2.0 * np.eye(num_classes)[labels] - 1.0
    primal = np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y)
    dual = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y)
    return primal, dual, z @ primal


@pytest.mark.parametrize("images", [8, 12, 13, 40], ids=lambda n: f"{n} images, 13 features")
@pytest.mark.parametrize("exponent", [-6, 0, 10, 20])
def test_weights_equal_a_float64_solve_and_its_dual_form(images, exponent):
    known = clusters(train=images)
    x, z = design(*(torch.from_numpy(part.values).double() for part in (known.train, known.test)))
    targets = signs(torch.from_numpy(known.train.labels), num_classes=3)
    (weights,) = ridge(x, targets, penalties=[2.0**exponent])
    primal, dual, scores = papers_code(
        known.train.values, known.train.labels, known.test.values, penalty=2.0**exponent, num_classes=3
    )
    scale = np.abs(primal).max()
    assert np.abs(weights.numpy() - primal).max() <= 1e-8 * scale
    assert np.abs(weights.numpy() - dual).max() <= 1e-8 * scale
    np.testing.assert_allclose(z @ weights, scores, atol=1e-8)


def test_scikit_learns_ridge_gives_the_same_weights_and_accuracy():
    known = clusters()
    (x,) = design(torch.from_numpy(known.train.values).double())
    y = signs(torch.from_numpy(known.train.labels), num_classes=3)
    (weights,) = ridge(x, y, penalties=[1024.0])
    theirs = Ridge(alpha=1024.0, fit_intercept=False, solver="cholesky").fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weights.T, theirs.coef_, atol=1e-10)


def test_the_score_is_that_of_the_papers_code_on_the_images_drawn():
    known, evaluation = clusters(), FewShot(shots=(2, 5), exponents=(0, 10))
    figures = known.evaluated(evaluation).figures["shots"]
    for shots in (2, 5):
        for draw in range(3):
            rows, _ = evaluation.draw(known.train.labels, shots=shots, draw=draw)
            train = known.train.select(rows)
            _, _, scores = papers_code(train.values, train.labels, known.test.values, penalty=1024.0, num_classes=3)
            top1 = (scores.argmax(1) == known.test.labels).mean()
            assert figures[str(shots)]["draws"][draw]["top1"] == pytest.approx(top1)
        mean = np.mean([one["top1"] for one in figures[str(shots)]["draws"]])
        assert figures[str(shots)]["top1"] == pytest.approx(mean)


def test_the_penalty_is_chosen_by_images_that_are_not_learned_from():
    known, evaluation = clusters(train=60), FewShot(shots=(4,), exponents=(-8, 0, 8, 16), num_seeds=1)
    (one,) = known.evaluated(evaluation).figures["shots"]["4"]["draws"]
    chosen, others = evaluation.draw(known.train.labels, shots=4, draw=0)
    assert not set(chosen) & set(others)
    train, judge = known.train.select(chosen), known.train.select(others)
    best = {}
    for exponent in evaluation.exponents:
        solved = [
            papers_code(train.values, train.labels, part.values, penalty=2.0**exponent, num_classes=3)[2].argmax(1)
            for part in (judge, known.test)
        ]
        best[exponent] = [(said == part.labels).mean() for said, part in zip(solved, (judge, known.test))]
    assert one["exponent"] == max(best, key=lambda exponent: best[exponent][0])
    assert one["chosen_top1"] == pytest.approx(best[one["exponent"]][1])


def test_draws_are_balanced_nested_and_pure():
    labels, evaluation = np.arange(90) % 3, FewShot()
    five, _ = evaluation.draw(labels, shots=5, draw=1)
    ten, _ = evaluation.draw(labels, shots=10, draw=1)
    assert np.bincount(labels[five]).tolist() == [5, 5, 5]
    assert set(five) < set(ten)
    assert np.array_equal(five, FewShot().draw(labels, shots=5, draw=1)[0])
    assert not np.array_equal(five, evaluation.draw(labels, shots=5, draw=2)[0])


def test_more_shots_than_images_are_left_out_and_named():
    outcome = clusters(train=18).evaluated(FewShot(shots=(1, 5, 10)))
    assert list(outcome.figures["shots"]) == ["1", "5"]
    assert outcome.notes == ["no 10 shots: a has 6, b has 6, c has 6 training images"]
    with pytest.raises(InputError, match="no 50 shots"):
        clusters(train=18).evaluated(FewShot(shots=(50,)))


def test_learning_from_every_image_leaves_none_to_choose():
    outcome = clusters(train=15).evaluated(FewShot(shots=(5,)))
    assert outcome.figures["shots"]["5"]["chosen_top1"] is None
    assert "chosen" not in outcome.rows[0][2]


def test_a_split_to_choose_by_is_used():
    known = clusters(train=15, dev=30)
    assert known.evaluated(FewShot(shots=(5,))).figures["shots"]["5"]["chosen_top1"] is not None
