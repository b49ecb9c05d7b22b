"""Spread over seeds, differences beyond it, and power laws."""

import math

import numpy as np
import pytest
from scipy import stats

from topreco.studies.repeats import (
    ONE_SIGMA,
    TWO_SIGMA,
    difference,
    power_law,
    prior,
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


def difference_of(values, reference, *others):
    found = [spread(each) for each in (values, reference, *others)]
    return difference(found[0], found[1], prior(found))


def test_one_seed_has_no_error_of_its_own():
    assert math.isnan(student_error(math.nan, 1, ONE_SIGMA))
    assert not difference_of([5.0], [1.0]).significant
    # With one seed for the reference the other's spread counts; with none there is nothing to compare.
    assert difference_of([5.0, 5.1, 4.9], [1.0]).significant
    assert not difference_of([5.0, 5.1], []).significant


def test_two_points_are_student_s():
    a, b = [1.0, 2.0, 4.0], [7.0, 7.5, 9.0]
    found = difference_of(a, b)
    assert found.ndf == 4
    t = found.mean / found.error * stats.t.ppf((1 + TWO_SIGMA) / 2, 4)
    assert t == pytest.approx(stats.ttest_ind(a, b).statistic)


def test_variances_that_agree_are_pooled_and_others_are_not():
    rng = np.random.default_rng(1)
    alike = [spread(rng.normal(size=4)) for _ in range(200)]
    found = prior(alike)
    assert found.ndf > 50
    assert found.variance == pytest.approx(1, rel=0.15)
    # Spreads over three orders of magnitude have nothing in common.
    apart = [spread(10.0 ** rng.uniform(-3, 0) * rng.normal(size=4)) for _ in range(200)]
    assert prior(apart).ndf < 3
    # What is left of an F distribution with 3 and 8 degrees of freedom.
    mixed = [spread(rng.normal(size=4) / math.sqrt(rng.chisquare(8) / 8)) for _ in range(4000)]
    assert prior(mixed).ndf == pytest.approx(8, rel=0.25)
    assert prior(mixed).variance == pytest.approx(1, rel=0.1)


def test_a_point_without_spread_or_with_one_seed_leaves_the_prior_alone():
    some = [spread(each) for each in ([1.0, 2.0, 3.0], [1.0, 2.5, 3.0], [0.0, 2.0, 3.0])]
    assert prior([*some, spread([1.0, 1.0]), spread([4.0]), spread([])]) == prior(some)


@pytest.mark.parametrize("points", [2, 4, 12])
def test_few_comparisons_of_equals_are_called_differences(points):
    """About one in twenty, whatever the number of points, and with spreads that differ."""
    rng = np.random.default_rng(1)
    for n in (3, 5):
        called = []
        for _ in range(800):
            scale = rng.choice([1.0, 1.5]) * np.ones(points)
            called.append(difference_of(*(s * rng.normal(size=n) for s in scale)).significant)
        assert np.mean(called) == pytest.approx(1 - TWO_SIGMA, abs=0.02)


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
@pytest.mark.exhaustive
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
