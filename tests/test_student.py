import numpy as np
import pytest
from scipy import stats

from vitreous.student import t_interval, t_quantile


@pytest.mark.parametrize("degrees", [*range(1, 40), 99, 100, 1000])
def test_the_quantile_is_scipy_s(degrees):
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_the_interval_is_scipy_s(count):
    values = np.random.default_rng(count).normal(0.8, 0.01, count)
    mean, low, high = t_interval(values.tolist())
    theirs = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert (low, high) == pytest.approx(theirs, rel=1e-12)


def test_equal_values_have_an_interval_of_no_width():
    assert t_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
