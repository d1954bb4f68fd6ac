import csv
import io

import numpy as np
import pytest
from sklearn import metrics as theirs

from vitreous.data.label_sets import LabelSets
from vitreous.data.source import ArraySource
from vitreous.errors import InputError
from vitreous.evaluation import multi_label
from vitreous.evaluation.classify import judged

CLASSES = ("ape", "bee", "cow", "dog", "emu")


def drawn(seed: int, number: int = 200, *, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that know a little of which classes are shown (`emu` never is); coarse ones are often equal."""
    random = np.random.default_rng(seed)
    shown = random.random((number, 5)) < [0.5, 0.3, 0.1, 0.02, 0]
    shown[0, :4] = True
    predicted = np.clip(0.3 * shown + random.random((number, 5)) * 0.7, 0, 1)
    return np.round(predicted, 1) if coarse else predicted, shown


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_figures_are_sklearns(seed, coarse):
    predicted, shown = drawn(seed, coarse=coarse)
    figures = multi_label.scores(predicted, shown, classes=CLASSES, split="test")
    there, said = shown[:, :4], predicted[:, :4] > 0.5
    precisions = theirs.average_precision_score(there, predicted[:, :4], average=None)
    rows = {row["name"]: row for row in figures["per_class"]}
    assert [rows[name]["ap"] for name in CLASSES[:4]] == pytest.approx(list(precisions))
    assert figures["map"]["value"] == pytest.approx(precisions.mean())
    assert figures["micro_ap"] == pytest.approx(theirs.average_precision_score(shown, predicted, average="micro"))
    assert figures["macro_f1"] == pytest.approx(theirs.f1_score(there, said, average="macro"))
    whole = theirs.precision_recall_fscore_support(shown, predicted > 0.5, average="micro", zero_division=0)
    assert [figures[f"micro_{name}"] for name in ("precision", "recall", "f1")] == pytest.approx(list(whole[:3]))
    assert figures["exact_match"]["value"] == pytest.approx(theirs.accuracy_score(shown, predicted > 0.5))
    for name, column in zip(CLASSES[:4], range(4)):
        ours = [rows[name][key] for key in ("precision", "recall", "f1")]
        known = theirs.precision_recall_fscore_support(
            shown[:, column], predicted[:, column] > 0.5, average="binary", zero_division=0
        )
        assert ours == pytest.approx(list(known[:3]))
    assert rows.get("emu", {"ap": None})["ap"] is None
    clipped = np.clip(predicted, 1e-300, 1 - 1e-16)
    losses = [theirs.log_loss(shown[:, c], clipped[:, c], labels=[False, True]) for c in range(5)]
    if not coarse:
        assert figures["loss"] == pytest.approx(sum(losses))


def test_the_interval_is_that_of_resampled_images():
    predicted, shown = drawn(0)
    found = multi_label.mean_precision(predicted, shown)
    random, draws = np.random.default_rng(7), []
    for _ in range(600):
        rows = random.integers(0, 200, 200)
        kept = shown[rows].any(axis=0)
        draws.append(theirs.average_precision_score(shown[rows][:, kept], predicted[rows][:, kept]))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=0.02)
    assert found.low < found.value < found.high


def test_nothing_shown_is_no_precision():
    predicted, shown = drawn(0)
    figures = multi_label.scores(predicted, np.zeros_like(shown), classes=CLASSES, split="test")
    assert (figures["map"]["value"], figures["micro_ap"], figures["macro_f1"]) == (0, 0, 0)


def source(shown: np.ndarray, classes: tuple[str, ...] = CLASSES) -> ArraySource:
    sets, labels = LabelSets.of(np.flatnonzero(row).tolist() for row in shown)
    found = ArraySource(np.zeros((len(shown), 2, 2), np.uint8), prefix="x", classes=classes, labels=labels)
    found.sets = sets
    return found


def test_classes_of_the_data_are_matched_to_those_of_the_model():
    predicted, shown = drawn(1)
    own = ("dog", "cow", "bee", "ape")
    data = source(shown[:, [3, 2, 1, 0]], own)
    figures, _ = judged(lambda _: predicted, data, classes=CLASSES, split="test", multi_label=True)
    expected = multi_label.scores(predicted, shown, classes=CLASSES, split="test")
    assert {key: value for key, value in figures.items() if key != "seconds"} == expected
    watched = multi_label.measure(predicted, source(shown))
    assert watched == {"loss": figures["loss"], "map": figures["map"]["value"]}


def test_a_model_that_chooses_one_class_is_not_measured_on_images_of_several():
    predicted, shown = drawn(1)
    with pytest.raises(InputError, match="may show several classes, but the model chooses one"):
        judged(lambda _: predicted, source(shown), classes=CLASSES, split="test")


def test_written_predictions_give_the_figures_again():
    predicted, shown = drawn(2)
    text = multi_label.predictions_csv({"test": (source(shown), list(range(200)), predicted)}, classes=CLASSES)
    rows = list(csv.DictReader(io.StringIO(text)))
    said = np.array([[float(row[name]) for name in CLASSES] for row in rows])
    true = np.array([[name in row["label"].split(" | ") for name in CLASSES] for row in rows])
    assert np.array_equal(true, shown)
    assert np.abs(said - predicted).max() < 1e-6
    claimed = [[name in row["predicted"].split(" | ") for name in CLASSES] for row in rows]
    assert np.array_equal(claimed, predicted > 0.5)
