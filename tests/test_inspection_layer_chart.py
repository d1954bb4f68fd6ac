"""Charts over layers: what stands where."""

import re

import pytest
import torch

from vitreous.inspection.layer_chart import layer_chart
from vitreous.inspection.plots import Series

HEADS = torch.tensor([[10.0, 30.0], [20.0, 40.0]])
MEAN = Series("mean", [0, 1], [20.0, 30.0])


def dots(chart: str) -> list[tuple[float, float, int, int]]:
    found = re.findall(r'cx="([\d.]+)" cy="([\d.]+)" r="4" class="head" data-layer="(\d+)" data-head="(\d+)"', chart)
    return [(float(x), float(y), int(layer), int(head)) for x, y, layer, head in found]


def test_a_dot_stands_above_its_layer_at_the_height_of_its_value():
    found = dots(layer_chart([MEAN], title="Distance", unit="px", heads=HEADS))
    assert [(layer, head) for *_, layer, head in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found[0][0] == found[1][0] < found[2][0]
    heights = [180 - y for _, y, *_ in found]  # 180 is the axis
    assert heights == pytest.approx([h * heights[3] / 40 for h in (10, 30, 20, 40)], abs=0.02)


def test_the_line_goes_through_the_means_and_words_say_both_ends():
    chart = layer_chart([MEAN], title="Distance", unit="px", heads=HEADS, even=25.0)
    (points,) = re.findall(r'<polyline points="([^"]*)" class="line s1"', chart)
    ys = [float(pair.split(",")[1]) for pair in points.split()]
    by_place = {(layer, head): y for _, y, layer, head in dots(chart)}
    assert ys == pytest.approx([(by_place[i, 0] + by_place[i, 1]) / 2 for i in (0, 1)], abs=0.01)
    assert "mean from 20 to 30" in chart
    assert "even attention" in chart
    assert "layer 1, head 0: 20 px" in chart


def test_powers_of_ten_are_equally_far_apart():
    chart = layer_chart([Series("largest", [0, 1, 2], [1.0, 10.0, 100.0])], title="Norm", unit="", log=True)
    (points,) = re.findall(r'<polyline points="([^"]*)" class="line s0"', chart)
    a, b, c = (float(pair.split(",")[1]) for pair in points.split())
    assert a - b == pytest.approx(b - c)
    assert (a, c) == (180, 10)


def test_names_are_text_not_markup():
    assert "<b>x" not in layer_chart([Series("<b>x", [0], [1.0])], title="<i>", unit="px")
