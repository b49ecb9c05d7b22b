"""Real roots against polynomials made from known roots."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.polynomial import polynomial

from topreco.solvers.quartic import real_roots, roots_by_radicals, roots_in_unit_interval

TOLERANCE = 1e-10


def isolate(coefficients, tolerance=TOLERANCE):
    pairs = np.empty((8, 2))
    count = real_roots(*np.pad(np.asarray(coefficients, float), (0, 5 - len(coefficients))), tolerance, pairs)
    with np.errstate(divide="ignore"):
        return np.sort(pairs[:count, 0] / pairs[:count, 1])


def in_unit_interval(coefficients, tolerance=TOLERANCE):
    roots = np.empty(4)
    count = roots_in_unit_interval(*np.asarray(coefficients, float), tolerance, roots)
    return roots[:count]


def by_radicals(coefficients):
    pairs = np.empty((4, 2))
    count = roots_by_radicals(*np.asarray(coefficients, float), pairs)
    return None if count < 0 else np.sort(pairs[:count, 0] / pairs[:count, 1])


roots_apart = st.lists(st.floats(-50, 50), min_size=4, max_size=4).map(sorted)


@settings(deadline=None)  # the first call compiles
@given(roots_apart)
def test_four_real_roots(roots):
    assume(np.diff(roots).min() > 0.1)
    coefficients = polynomial.polyfromroots(roots)
    assert isolate(coefficients) == pytest.approx(roots, rel=1e-9, abs=1e-9)
    found = by_radicals(coefficients)
    assert found is None or found == pytest.approx(roots, rel=1e-7, abs=1e-7)


@settings(deadline=None)
@given(
    st.floats(-50, 50),
    st.floats(-50, 50),
    st.floats(-5, 5),
    st.floats(0.1, 5),
    st.sampled_from([1e-8, 1.0, -3e7]),
)
def test_two_real_and_two_complex_roots(first, second, real, imaginary, scale):
    assume(abs(first - second) > 0.1)
    coefficients = scale * polynomial.polymul(
        polynomial.polyfromroots([first, second]), [real**2 + imaginary**2, -2 * real, 1.0]
    )
    expected = sorted([first, second])
    assert isolate(coefficients) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    found = by_radicals(coefficients)
    assert found is None or found == pytest.approx(expected, rel=1e-7, abs=1e-7)


def test_no_real_root():
    assert len(isolate([1.0, 0.0, 3.0, 0.0, 1.0])) == 0
    assert len(by_radicals([5.0, 0.3, 3.0, 0.1, 1.0])) == 0


@pytest.mark.parametrize(
    ("coefficients", "expected"),
    [
        ([-6.0, 11.0, -6.0, 1.0], [1, 2, 3, np.inf]),
        ([2.0, -3.0, 1.0], [1, 2]),
        ([-4.0, 2.0], [2]),
        ([0.0, 0.0, -1.0, 0.0, 1.0], [-1, 0, 0, 1]),
        ([0.0, -6.0, 11.0, -6.0, 1.0], [0, 1, 2, 3]),
    ],
    ids=["cubic", "quadratic", "linear", "double root", "root at zero"],
)
def test_degenerate_coefficients(coefficients, expected):
    found = isolate(coefficients)
    # A missing power is a root at infinity, a missing pair of powers a double one of either sign.
    finite = found[np.isfinite(found) & (np.abs(found) < 1e6)]
    assert finite == pytest.approx([root for root in expected if np.isfinite(root)], abs=1e-6)


def test_nearly_vanishing_leading_coefficient():
    found = isolate([-6.0, 11.0, -6.0, 1.0, 1e-14])
    assert found[np.abs(found) < 1e6] == pytest.approx([1, 2, 3], rel=1e-9)
    assert found[np.abs(found) > 1e6] == pytest.approx([-1e14], rel=1e-6)


@pytest.mark.parametrize("gap", [0.0, 1e-9, 1e-6, 1e-4])
def test_nearly_double_roots(gap):
    coefficients = polynomial.polyfromroots([-0.5, 0.3, 0.3 + gap, 0.9])
    assert in_unit_interval(coefficients) == pytest.approx([-0.5, 0.3, 0.3 + gap, 0.9], abs=1e-7)
    found = by_radicals(coefficients)
    assert found is None or len(found) == 4


def test_touching_within_tolerance_counts_as_two_roots():
    # (x² + δ²)(x² − ¼): at x = 0 the value is δ²/4 in a sum of coefficients of 1.25.
    for delta, expected in ((1e-6, 4), (1e-3, 2)):
        coefficients = polynomial.polymul([delta**2, 0, 1.0], [-0.25, 0, 1.0])
        assert len(in_unit_interval(coefficients)) == expected


def test_roots_outside_the_interval_are_left_out():
    assert in_unit_interval(polynomial.polyfromroots([-3, -0.2, 0.7, 5])) == pytest.approx([-0.2, 0.7])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_no_roots_of_what_is_no_polynomial(value):
    assert len(isolate([value] * 5)) == 0
    assert len(in_unit_interval([value] * 5)) == 0
    assert by_radicals([value] * 5) is None


def test_radicals_agree_with_isolation_in_number():
    rng = np.random.default_rng(7)
    undecided = 0
    for coefficients in rng.normal(size=(5000, 5)):
        found = by_radicals(coefficients)
        if found is None:
            undecided += 1
        else:
            assert found == pytest.approx(isolate(coefficients), rel=1e-7)
    assert undecided < 50
