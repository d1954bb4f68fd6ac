import pytest

from vitreous.evaluation.corruptions import ALEXNET, corruption_figures


def test_alexnet_has_the_mean_corruption_error_it_is_measured_by():
    figures = corruption_figures({name: dict.fromkeys(range(1, 6), error) for name, error in ALEXNET.items()})
    assert figures["mce"] == pytest.approx(1.0)
    assert len(figures["corruptions"]) == 15


def test_errors_are_means_over_severities_and_then_over_corruptions():
    errors = {name: dict.fromkeys(range(1, 6), 0.5) for name in ALEXNET}
    errors["fog"] = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}
    figures = corruption_figures(errors)
    expected = (sum(0.5 / error for name, error in ALEXNET.items() if name != "fog") + 0.3 / ALEXNET["fog"]) / 15
    assert figures["corruptions"]["fog"]["error"] == pytest.approx(0.3)
    assert figures["mce"] == pytest.approx(expected)


def test_a_part_of_the_benchmark_has_no_mean_corruption_error():
    errors = {name: dict.fromkeys(range(1, 6), 0.5) for name in ALEXNET}
    assert corruption_figures({**errors, "speckle_noise": {1: 0.9}})["mce"] is not None
    assert corruption_figures({**errors, "fog": {1: 0.5}})["mce"] is None
    del errors["snow"]
    assert corruption_figures(errors)["mce"] is None
