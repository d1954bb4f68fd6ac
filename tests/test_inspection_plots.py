"""Charts: numbers on axes, thinning, and what stands where."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from vitreous.inspection.plots import (
    Scale,
    Series,
    confusion_chart,
    confusion_image,
    line_chart,
    number,
    reliability_chart,
    thin,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 900, [0, 200, 400, 600, 800]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0.93, 0.97, [0.93, 0.94, 0.95, 0.96, 0.97]),
        (0, 3e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4, 2.5e-4, 3e-4][::2]),
        (5, 5, [5]),
    ],
)
def test_ticks_by_hand(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_are_few_round_and_inside_for_any_range():
    rng = np.random.default_rng(0)
    for _ in range(500):
        low = rng.normal() * 10.0 ** rng.integers(-6, 7)
        high = low + 10.0 ** rng.uniform(-3, 6) * max(abs(low), 1e-6)
        found = ticks(low, high)
        slack = 1e-6 * (high - low)
        assert 2 <= len(found) <= 6
        assert low - slack <= min(found)
        assert max(found) <= high + slack
        step = found[1] - found[0]
        mantissa = step / 10 ** np.floor(np.log10(step) + 1e-6)
        assert min(abs(mantissa - good) for good in (1, 2, 5)) < 0.01


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (12000, "12k"),
        (1.5e6, "1.5M"),
        (1e-5, "1e-5"),
        (2.5e-4, "2.5e-4"),
        (1e-3, "1e-3"),
        (1234, "1234"),
    ],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_scale_maps_ends_to_ends_and_a_single_value_to_the_middle():
    scale = Scale(10, 20, 100, 0)
    assert [scale(10), scale(20), scale(12.5)] == [100, 0, 75]
    assert Scale(3, 3, 0, 50)(3) == 25


def test_thinning_keeps_order_extremes_and_a_bound():
    rng = np.random.default_rng(0)
    y = rng.normal(size=54_321)
    y[40_000], y[123] = 50, -50
    series = thin(Series("loss", list(range(len(y))), y.tolist()))
    assert len(series.x) <= 1000
    assert list(series.x) == sorted(series.x)
    assert (min(series.y), max(series.y)) == (-50, 50)
    assert all(y[int(x)] == value for x, value in zip(series.x, series.y))


def test_thinning_drops_what_is_no_number_and_leaves_the_rest_alone():
    series = thin(Series("loss", [1, 2, 3, 4], [1.0, float("nan"), float("inf"), 2.0]))
    assert (series.x, series.y) == ([1, 4], [1.0, 2.0])


def test_a_line_goes_through_its_points():
    chart = line_chart([Series("train", [0, 5, 10], [0.0, 2.0, 1.0])], title="Loss")
    points = re.search(r'<polyline points="([^"]*)"', chart)
    assert points is not None
    xy = np.array([[float(v) for v in pair.split(",")] for pair in points[1].split()])
    assert xy[:, 0] == pytest.approx([46, 248, 450])
    assert xy[0, 1] == 180  # zero lies on the axis
    assert (xy[0, 1] - xy[1, 1]) == pytest.approx(2 * (xy[0, 1] - xy[2, 1]), abs=0.05)


def test_a_chart_carries_its_values_for_the_read_out():
    chart = line_chart([Series("train", [1, 2], [0.5, 0.25]), Series("val", [2], [0.3])], title="Loss")
    data = re.search(r'data-chart="([^"]*)"', chart)
    assert data is not None
    assert json.loads(data[1].replace("&#34;", '"'))["lines"] == [[[1, 2], [0.5, 0.25]], [[2], [0.3]]]
    assert "val from 0.3 to 0.3" in chart


def test_no_point_no_chart():
    assert line_chart([Series("train", [], []), Series("val", [1], [float("nan")])], title="Loss") == ""


def test_reliability_bars_end_at_accuracy_and_confidence():
    bins = [
        {"low": 0.0, "high": 0.5, "count": 0, "confidence": 0.0, "accuracy": 0.0},
        {"low": 0.5, "high": 1.0, "count": 10, "confidence": 0.75, "accuracy": 0.5},
    ]
    chart = reliability_chart(bins)
    assert chart.count("<g>") == 1  # an empty band has no bar
    gap = re.search(r'y="([\d.]+)" height="([\d.]+)" class="gap"', chart)
    assert gap is not None
    assert float(gap[2]) == pytest.approx(0.25 * (300 - 84))
    assert float(gap[1]) == pytest.approx(84 + 0.25 * (300 - 84))


def test_confusion_chart_has_each_count_in_its_cell():
    chart = confusion_chart([[8, 2], [0, 5]], ["cat", "dog"])
    assert "true cat, predicted dog: 2 (20.0 %)" in chart
    assert "true dog, predicted dog: 5 (100.0 %)" in chart
    assert [chart.count('class="wrong"'), chart.count('class="right"')] == [1, 2]


def test_confusion_picture_is_opaque_by_share_of_row():
    image = np.asarray(Image.open(io.BytesIO(confusion_image([[3, 1, 0], [0, 0, 0], [0, 0, 9]]))))
    assert image.shape == (3, 3, 4)
    assert image[..., 3].tolist() == [[round(255 * 0.75**0.5), round(255 * 0.5), 0], [0, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize(
    "chart",
    [
        line_chart([Series("<b>", [1], [1.0])], title="<i>"),
        confusion_chart([[1, 1], [0, 2]], ["<b>", '"><script>']),
    ],
    ids=["lines", "confusion"],
)
def test_names_are_text_not_markup(chart):
    assert not re.search(r"<(b|i|script)>[^<]*<?(?!/)", re.sub(r"<b>[\d.]+</b>", "", chart))
