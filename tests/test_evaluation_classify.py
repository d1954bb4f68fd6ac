import csv
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs

from vitreous import distributed
from vitreous.classifier import ClassifierConfig
from vitreous.data.source import ArraySource
from vitreous.data.views import EvalView
from vitreous.errors import InputError
from vitreous.evaluation.classify import class_positions, evaluate, predictions_csv, probabilities, scores
from vitreous.variants import vit

CLASSES = tuple("abcdefg")


def random_case(num_images: int = 200, num_classes: int = 7):
    random = np.random.default_rng(1)
    labels = random.integers(0, num_classes, num_images)
    logits = random.normal(size=(num_images, num_classes)) + 2 * np.eye(num_classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


def test_every_figure_equals_scikit_learns():
    predicted, labels = random_case()
    ours = scores(predicted, labels, classes=CLASSES, split="test")
    best = predicted.argmax(1)
    assert ours["top1"]["value"] == pytest.approx(theirs.accuracy_score(labels, best))
    assert ours["top5"]["value"] == pytest.approx(theirs.top_k_accuracy_score(labels, predicted, k=5))
    assert ours["loss"] == pytest.approx(theirs.log_loss(labels, predicted))
    assert ours["macro_f1"] == pytest.approx(theirs.f1_score(labels, best, average="macro"))
    assert ours["confusion"] == theirs.confusion_matrix(labels, best).tolist()
    precision, recall, f1, count = theirs.precision_recall_fscore_support(labels, best)
    for i, row in enumerate(ours["per_class"]):
        assert (row["name"], row["count"]) == (CLASSES[i], count[i])
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[i], recall[i], f1[i]))


def test_classes_that_do_not_occur_take_no_part():
    predicted, labels = random_case(num_classes=3)
    padded = np.pad(predicted, ((0, 0), (0, 4)))
    ours = scores(padded, labels, classes=CLASSES, split="test")
    assert [row["name"] for row in ours["per_class"]] == ["a", "b", "c"]
    assert ours["macro_f1"] == pytest.approx(theirs.f1_score(labels, predicted.argmax(1), average="macro"))


def test_five_classes_have_no_top5():
    predicted, labels = random_case(num_classes=5)
    assert scores(predicted, labels, classes=CLASSES[:5], split="val")["top5"] is None


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    model = ClassifierConfig(encoder=vit("32x2/4", image_size=8), num_classes=3).build()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    source = ArraySource(pixels, prefix="made", classes=("z", "x"), labels=np.arange(20) % 2)
    return SimpleNamespace(model=model, source=source, view=EvalView(image_size=8, crop_ratio=1.0))


def test_data_are_matched_to_the_models_classes_by_name(case):
    figures, predicted = evaluate(
        case.model,
        case.source,
        case.view,
        classes=("x", "y", "z"),
        split="test",
        world=distributed.start(device="cpu", threads=1),
    )
    labels = np.array([2, 0] * 10)
    assert figures["top1"]["value"] == (predicted.argmax(1) == labels).mean()
    assert case.model.training  # as it was


def test_probabilities_are_those_of_each_image_by_itself(case):
    world = distributed.start(device="cpu", threads=1)
    many = probabilities(case.model, case.source, case.view, world=world, batch_size=7)
    case.model.eval()
    for i in range(len(case.source)):
        pixels = case.view.normalise(case.view(case.source.image(i))[None])
        with torch.inference_mode():
            alone = case.model(pixels).double().softmax(-1)[0]
        np.testing.assert_allclose(many[i], alone, atol=1e-6)


def test_classes_unknown_to_the_model_are_named():
    with pytest.raises(InputError, match=r"does not know 1 of the 2 classes in the data: cow"):
        class_positions(["cat", "cow"], ["cat", "dog"])


def test_the_table_of_predictions_reads_back(case):
    predicted = np.array([[0.25, 0.75]] * 20)
    text = predictions_csv({"test": (case.source, list(range(20)), predicted)}, classes=case.source.classes)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0] == {
        "split": "test",
        "index": "0",
        "file": case.source.name(0),
        "label": "z",
        "predicted": "x",
        "confidence": "0.750000",
        "label_probability": "0.250000",
    }


def test_a_model_that_overflows_is_not_measured(monkeypatch):
    source = ArraySource(np.zeros((4, 8, 8), np.uint8), prefix="x", classes=["a", "b"], labels=np.zeros(4))
    classifier = ClassifierConfig(encoder=vit("32x1/4", image_size=8), num_classes=2).build()
    classifier.head.linear.bias.data.fill_(float("nan"))
    world = distributed.start(device="cpu")
    with pytest.raises(InputError, match="gives no numbers"):
        evaluate(classifier, source, EvalView(image_size=8), classes=["a", "b"], split="x", world=world)


def test_macro_f1_is_scikit_learns_over_the_classes_that_occur():
    labels = np.array([0, 0, 0, 1, 1])
    predicted = np.eye(4)[[0, 0, 2, 1, 1]]
    expected = theirs.f1_score(labels, predicted.argmax(1), labels=[0, 1], average="macro")
    assert scores(predicted, labels, classes="abcd", split="x")["macro_f1"] == pytest.approx(expected)
