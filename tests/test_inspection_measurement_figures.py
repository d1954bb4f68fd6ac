import numpy as np
import pytest
from PIL import Image

from vitreous.evaluation.classify import scores
from vitreous.inspection.measurement_figures import measurement_figures, write_figures

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def measured():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 200)
    logits = random.normal(size=(200, 4)) + 3 * np.eye(4)[labels]
    predicted = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    share = {"value": 0.8, "low": 0.7, "high": 0.9}
    grid = [{"learning_rate": rate, "dev_top1": rate} for rate in (0.1, 0.2)]
    draws = [{"top1": score} for score in (0.5, 0.6, 0.7)]
    return {
        **scores(predicted, labels, classes="abcd", split="test"),
        "evaluations": {
            "few_shot": {"shots": {"1": {"top1": 0.6, "draws": draws}, "5": {"top1": 0.6, "draws": draws}}},
            "knn": {"k": {"10": {"top1": share}, "20": {"top1": share}}},
            "logistic": {"penalty": 0.1, "path": [{"penalty": p, "dev_top1": p} for p in (0.1, 1.0)]},
            "linear": {"learning_rate": 0.2, "grid": grid},
            "resolution": {"curve": [{"height": size, "top1": share} for size in (112, 224)]},
            "patch_drop": {"curve": [{"drop_ratio": ratio, "top1": share} for ratio in (0, 0.5)]},
            "cost": {"parameters": 1},
        },
    }


def test_every_evaluation_with_a_curve_is_drawn(measured):
    names = [name for name, _ in measurement_figures(measured)]
    assert names == ["reliability", "confusion", "few-shot", "knn", "logistic", "linear", "resolution", "patch-drop"]
    assert list(measurement_figures({"evaluations": {"cost": {}}})) == []


def test_what_is_drawn_are_the_numbers(measured):
    drawn = dict(measurement_figures(measured))
    axes = drawn["reliability"].axes
    assert axes[0].get_title() == f"as it is: ECE {measured['ece']:.3f}"
    heights = [bar.get_height() for bar in axes[2].containers[0]]
    assert heights == [b["accuracy"] for b in measured["reliability"] if b["count"]]
    counts = np.array(measured["confusion"])
    np.testing.assert_allclose(drawn["confusion"].axes[0].images[0].get_array(), counts / counts.sum(1, keepdims=True))
    few = drawn["few-shot"].axes[0]
    assert few.lines[0].get_ydata().tolist() == [60.0, 60.0]
    assert drawn["resolution"].axes[0].lines[0].get_xdata().tolist() == [112, 224]
    assert drawn["resolution"].axes[0].get_xlabel() == "image side (px)"
    assert drawn["linear"].axes[0].lines[1].get_xdata()[0] == 0.2


def test_figures_are_written_as_pdf_and_png(measured, tmp_path):
    names = write_figures(tmp_path / "figures", measured)
    assert len(names) == 16
    assert (tmp_path / "figures" / "knn.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / "figures" / "reliability.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
