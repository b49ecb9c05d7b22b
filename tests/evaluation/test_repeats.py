"""Spread over seeds, paired differences and power laws."""

import math

import numpy as np
import pytest

from topreco.evaluation.repeats import (
    ONE_SIGMA,
    TWO_SIGMA,
    difference,
    power_law,
    spread,
    student_error,
)


def test_spread_by_hand():
    found = spread([1.0, 2.0, 3.0, math.nan])
    assert found == (2.0, 1.0, 3)
    assert spread([1.0])[0] == 1.0
    assert math.isnan(spread([1.0]).deviation)
    assert math.isnan(spread([]).mean)


@pytest.mark.parametrize(("n", "t"), [(2, 13.97), (3, 4.527), (5, 2.869), (10_000, 2.000)])
def test_student_error(n, t):
    """Tabulated quantiles of Student's distribution for 95.45 %."""
    assert student_error(1.0, n, TWO_SIGMA) * math.sqrt(n) == pytest.approx(t, rel=1e-3)


def test_one_seed_has_no_error():
    assert math.isnan(student_error(math.nan, 1, ONE_SIGMA))
    assert not difference({1: 5.0}, {1: 1.0}).significant


def test_difference_is_paired_by_seed():
    """What all trainings of a seed have in common cancels, and seeds that only one has do not count."""
    reference = {1: 10.0, 2: 20.0, 3: 30.0, 4: 40.0}
    found = difference({3: 31.0, 1: 11.1, 2: 20.9, 5: 7.0}, reference)
    assert found.n == 3
    assert found.mean == pytest.approx(1.0)
    assert found.error == pytest.approx(4.5265 * 0.1 / math.sqrt(3), rel=1e-3)
    assert found.significant
    assert not difference({1: 12.0, 2: 20.0, 3: 30.5}, reference).significant


def test_few_comparisons_of_equals_are_called_differences():
    """About one in twenty, at three seeds as at many."""
    rng = np.random.default_rng(1)
    for n in (3, 8):
        values = rng.normal(size=(2, 2000, n))
        called = [
            difference(dict(enumerate(a)), dict(enumerate(b))).significant
            for a, b in zip(*values, strict=True)
        ]
        assert np.mean(called) == pytest.approx(1 - TWO_SIGMA, abs=0.015)


SIZES = np.array([1e3, 3e3, 1e4, 3e4, 1e5])


def test_power_law_is_found():
    y = 0.2 + 0.3 * (SIZES / 1e3) ** -0.4
    law = power_law(SIZES, y, np.full(5, 1e-4), at=1e7)
    assert (law.a, law.b, law.c) == pytest.approx((0.2, 0.3, 0.4), rel=0.01)
    assert law.chi2 < 1e-3
    assert law.ndf == 2
    assert law.value == pytest.approx(0.2 + 0.3 * 1e4**-0.4, rel=1e-3)
    assert law(SIZES) == pytest.approx(y, rel=1e-3)
    assert law.value_low < law.value < law.value_high


@pytest.mark.slow
def test_interval_of_the_extrapolation_covers_the_truth():
    rng = np.random.default_rng(2)
    y, truth = 0.2 + 0.3 * (SIZES / 1e3) ** -0.4, 0.2 + 0.3 * 1e4**-0.4
    covered = []
    for _ in range(40):
        law = power_law(SIZES, y + rng.normal(0, 0.003, 5), np.full(5, 0.003), at=1e7)
        covered.append(law.value_low < truth < law.value_high)
    # Binomial: 27 of 40 expected, with a standard deviation of 3.
    assert 18 <= sum(covered) <= 36


def test_power_law_needs_four_sizes_with_errors():
    y = np.linspace(1, 0.5, 5)
    assert power_law(SIZES[:3], y[:3], np.full(3, 0.1), at=1e7) is None
    assert power_law(SIZES, y, np.array([0.1, 0.1, 0.1, 0.0, math.nan]), at=1e7) is None
