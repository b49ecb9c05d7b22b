"""Linearity of the mean of c_hel: weights give the correlation requested, and lines are found."""

import numpy as np
import pytest

from topreco.validation.gather import tabulate
from topreco.validation.spin import linearity, spin_linearity, weighted_means


def test_weights_give_the_spin_correlation_requested():
    c = np.linspace(-1, 1, 100_001)
    for d in (-0.5, 0.0, 0.3):
        found = weighted_means(c, 0.8 * c + 0.02, np.ones(len(c)), d, 0.0)
        assert found.true == pytest.approx(-d / 3, abs=1e-4)
        # From a sample that has a correlation of its own.
        again = weighted_means(c, c, 1 + 0.24 * c, d, -0.24)
        assert again.true == pytest.approx(-d / 3, abs=1e-4)
        assert again.bias_error == 0


def test_a_line_is_found():
    c = np.linspace(-1, 1, 1001)
    found = linearity(c, 0.8 * c + 0.02, np.ones(1001), 0.0, 5)
    assert (found.slope, found.offset) == pytest.approx((0.8, 0.02))
    assert found.deviation < 1e-9
    assert len(found.points) == 5


def test_methods_of_a_table(make_events, leptons):
    table = tabulate(*make_events(300, 4), [leptons])
    found = spin_linearity(table, "leptons", 0.0)
    assert found.n == table.predictions["leptons"].valid.sum()
    assert found.slope_error > 0
    assert spin_linearity(tabulate(*make_events(5, 4), [leptons]), "leptons", 0.0) is None
