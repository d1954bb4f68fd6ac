import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from vitreous import metrics
from vitreous.evaluation import calibration
from vitreous.evaluation.calibration import fit_temperature, temperature_figures, tempered
from vitreous.seeding import generator


def overconfident(factor, *, num_images=600, num_classes=8, seed=0):
    """Logits that tell the truth, times `factor`, and labels drawn from what they say."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(num_images, num_classes)) * 2
    labels = np.array([random.choice(num_classes, p=p) for p in softmax(logits, axis=1)])
    return log_softmax(logits * factor, axis=1), labels


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0, 30.0])
def test_the_temperature_is_scipys(factor):
    logs, labels = overconfident(factor)
    theirs = minimize_scalar(
        lambda t: metrics.cross_entropy(softmax(logs / t, axis=1), labels), bounds=(1e-2, 1e2), options={"xatol": 1e-9}
    )
    assert fit_temperature(logs, labels) == pytest.approx(theirs.x, rel=1e-5)


def test_the_temperature_undoes_what_made_logits_overconfident():
    plain, scaled = (fit_temperature(*overconfident(factor)) for factor in (1.0, 3.0))
    assert scaled == pytest.approx(3 * plain, rel=1e-9)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_the_temperature_is_found_in_a_few_looks_at_all_images(factor, monkeypatch):
    looks = []
    monkeypatch.setattr(calibration, "tempered", lambda *words: looks.append(1) or tempered(*words))
    fit_temperature(*overconfident(factor))
    assert len(looks) < 15


def test_labels_that_are_always_right_make_it_as_cold_as_it_gets():
    logs, _ = overconfident(1.0)
    assert fit_temperature(logs, logs.argmax(1)) < 0.01


def test_tempered_is_a_softmax():
    logs, _ = overconfident(1.0)
    np.testing.assert_allclose(tempered(logs, 2.5), softmax(logs / 2.5, axis=1), atol=1e-15)


def test_each_half_is_scaled_by_what_fits_the_other():
    logs, labels = overconfident(3.0)
    figures = temperature_figures(np.exp(logs), labels)
    first, second = np.array_split(generator(0, "temperature").permutation(len(labels)), 2)
    scaled = np.empty_like(logs)
    scaled[first] = softmax(logs[first] / fit_temperature(logs[second], labels[second]), axis=1)
    scaled[second] = softmax(logs[second] / fit_temperature(logs[first], labels[first]), axis=1)
    assert figures["loss"] == pytest.approx(metrics.cross_entropy(scaled, labels))
    assert figures["ece"] == pytest.approx(metrics.calibration_error(metrics.reliability(scaled, labels)))
    assert figures["temperature"] == pytest.approx(fit_temperature(logs, labels))
    assert figures["ece"] < metrics.calibration_error(metrics.reliability(np.exp(logs), labels))


def test_one_image_is_too_few():
    assert temperature_figures(np.array([[0.5, 0.5]]), np.array([0])) is None
