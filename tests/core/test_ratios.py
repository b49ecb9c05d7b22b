"""Calibration and quality of ratios of densities, on distributions whose ratio is known."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.ratios import (
    SLOPES,
    LogRatioCalibration,
    calibrate_log_ratio,
    effective_number,
    ratio_quality,
    triangular_discriminator,
)


@pytest.fixture
def gaussians():
    """Two Gaussians of width 1 at ±½, for which log p_A/p_B = x; half of A's events have doubled weights."""
    rng = np.random.default_rng(1)
    n = 40_000
    x = rng.normal(np.where(np.arange(n) < n // 2, 0.5, -0.5))
    in_a = np.arange(n) < n // 2
    return x, in_a, np.where(in_a & (np.arange(n) % 2 == 0), 2.0, 1.0)


def calibrated(learnt, in_a, weight, bin_events=1000, max_bins=40):
    return calibrate_log_ratio(learnt, in_a, weight, bin_events=bin_events, max_bins=max_bins)


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: 2 * x + 1, lambda x: x + 0.3 * np.sin(x)])
def test_calibration_finds_the_ratio(gaussians, wrong):
    x, in_a, weight = gaussians
    found = calibrated(wrong(x), in_a, weight)(wrong(x))
    middle = np.abs(x) < 1.5
    assert np.abs(found - x)[middle].mean() < 0.08
    assert ratio_quality(found, in_a, weight).chi2 < 45


def test_calibration_rises_and_continues_with_slope_one(gaussians):
    x, in_a, weight = gaussians
    calibration = calibrated(x, in_a, weight)
    grid = np.linspace(-8, 8, 500)
    assert (np.diff(calibration(grid)) > 0).all()
    assert calibration(np.array([20.0, 21.0])) @ [-1, 1] == pytest.approx(1)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_one_bin_is_a_factor(gaussians, shift):
    """That of a ratio which is right but for its normalisation."""
    calibration = calibrated(gaussians[0] + shift, *gaussians[1:], max_bins=1)
    assert len(calibration.knots) == 1
    assert calibration(np.array([shift, 1 + shift])) == pytest.approx([0, 1], abs=0.03)


@pytest.mark.parametrize(("slope", "shift"), [(2.5, 0.7), (0.5, -1.0)])
def test_less_than_two_bins_give_a_straight_line(gaussians, slope, shift):
    """A network that is too sure of itself, or not enough."""
    x, in_a, weight = gaussians
    found = calibrated(slope * x + shift, in_a, weight, bin_events=100_000)
    assert found(slope * np.array([-1.0, 0.0, 1.0]) + shift) == pytest.approx([-1, 0, 1], abs=0.05)


def test_a_slope_that_may_be_one_is_one(gaussians):
    x, in_a, weight = (each[::20] for each in gaussians)
    assert len(calibrated(1.02 * x, in_a, weight, bin_events=10_000).knots) == 1


def test_a_slope_stays_within_its_limits(gaussians):
    """Events that are told apart without a mistake would have an infinite one."""
    x, in_a, weight = gaussians
    apart = np.where(in_a, 1.0, -1.0) + 0.1 * x
    found = calibrated(apart, in_a, weight, bin_events=100_000)
    assert np.diff(found.values) == pytest.approx(SLOPES[1] * np.diff(found.knots))


def test_signed_weights_calibrate(gaussians):
    """Pairs of weights +2 and −1 with the same log-ratio are events of weight 1."""
    x, in_a, weight = gaussians
    twice = [np.concatenate([each, each]) for each in (x, in_a)]
    signed = np.concatenate([2 * weight, -weight])
    found = calibrated(*twice, signed, bin_events=2000)(x)
    assert np.abs(found - calibrated(x, in_a, weight)(x))[np.abs(x) < 1.5].max() < 1e-6


@pytest.mark.parametrize("sample", ["A", "B"])
def test_sums_of_weights_must_be_positive(gaussians, sample):
    x, in_a, weight = gaussians
    weight = np.where(in_a == (sample == "A"), 0.0, weight)
    with pytest.raises(TopRecoError, match=f"sample {sample}: 0 found, must be positive"):
        calibrated(x, in_a, weight)


def test_quality_of_the_true_ratio(gaussians):
    x, in_a, weight = gaussians
    quality = ratio_quality(x, in_a, weight)
    assert quality.events_a == quality.events_b == 20_000
    assert abs(quality.mean - 1) < 4 * quality.mean_error
    # (Σw)²/Σw² of w = exp(x) under a Gaussian at −½ is n/e.
    assert quality.effective_share == pytest.approx(np.exp(-1), rel=0.15)
    assert quality.largest == pytest.approx(np.exp(x[~in_a].max()))
    assert quality.chi2 < 45


def test_chi2_where_a_has_no_events():
    """Half of B is where A is, the other half far away: there no event of A is expected, nor found."""
    rng = np.random.default_rng(2)
    in_a = np.arange(20_000) < 10_000
    x = rng.normal(np.where(in_a | (rng.random(20_000) < 0.5), 0.0, -6.0))
    true = np.log(2) - np.logaddexp(0, -6 * x - 18)
    assert ratio_quality(true, in_a, np.ones(20_000)).chi2 < 45


def test_quality_notices_a_wrong_ratio(gaussians):
    x, in_a, weight = gaussians
    assert ratio_quality(0.5 * x, in_a, weight).chi2 > 200


def test_effective_number():
    assert effective_number(np.ones(7)) == pytest.approx(7)
    assert effective_number(np.array([3.0, 0.0])) == pytest.approx(1)
    assert effective_number(np.zeros(3)) == 0


def test_triangular_discriminator():
    p = np.array([1.0, 3.0])
    assert triangular_discriminator(p, 5 * p) == pytest.approx(0)
    assert triangular_discriminator(np.array([1.0, 0]), np.array([0, 2.0])) == pytest.approx(1000)
    # ½ [(¼−½)²/(¾) + (¾−½)²/(5/4)] × 1000
    assert triangular_discriminator(p, np.ones(2)) == pytest.approx(500 * (0.0625 / 0.75 + 0.0625 / 1.25))
    assert np.isnan(triangular_discriminator(np.zeros(2), p))


def test_one_knot_is_a_shift():
    assert LogRatioCalibration(np.array([1.0]), np.array([3.0]))(np.array([-4.0, 1.0, 2.0])).tolist() == [
        -2,
        3,
        4,
    ]
