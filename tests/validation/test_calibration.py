"""Calibration of posteriors whose truth is known: exact, too narrow, too wide and shifted Gaussians."""

import dataclasses
import math

import numpy as np
import pytest
from scipy.stats import kstest, norm

from topreco.core import fourvector
from topreco.core.events import QUANTILE_LEVELS, Posterior, toy_events
from topreco.core.observables import OBSERVABLES
from topreco.validation.calibration import (
    COMPONENTS,
    COVERAGE_LEVELS,
    FIXED,
    calibrate,
    compare_scores,
    crps,
    crps_of_quantiles,
    energy_score,
    examine_ranks,
    holm,
    mean_score,
    on_axes,
    own_axes,
    score_posterior,
    true_components,
    truth_rank,
)

N = 20_000


def gaussian(n, k, *, width=1.0, shift=0.0, seed=1):
    """Truth of a Gaussian posterior of each event, and samples of one that is too wide or shifted."""
    rng = np.random.default_rng(seed)
    middle, sigma = rng.normal(0, 3, n), rng.uniform(0.5, 2, n)
    truth = middle + sigma * rng.normal(size=n)
    samples = (middle + shift * sigma)[:, None] + width * sigma[:, None] * rng.normal(size=(n, k))
    return truth, samples, np.ones((n, k)), rng.random(n), middle, sigma


# ---- ranks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 64])
def test_exact_samples_have_uniform_ranks_for_any_number(k):
    truth, samples, weight, uniform, *_ = gaussian(N, k)
    found = calibrate(truth_rank(truth, samples, weight, uniform), np.ones(N))
    assert found.n == found.n_eff == N
    assert min(found.chi2_p, found.ks_p) > 0.001
    for level, share, error in zip(COVERAGE_LEVELS, found.coverage, found.coverage_error, strict=True):
        assert abs(share - level) < 4 * error


@pytest.mark.parametrize(("width", "shift"), [(0.9, 0), (1.1, 0), (1, 0.1)])
def test_wrong_samples_have_not(width, shift):
    """Too narrow by 10 %, too wide by 10 %, shifted by a tenth of the width."""
    truth, samples, weight, uniform, *_ = gaussian(N, 64, width=width, shift=shift)
    found = calibrate(truth_rank(truth, samples, weight, uniform), np.ones(N))
    assert found.chi2_p < 1e-6
    assert found.ks_p < 1e-4
    # Where the interval ends, in units of the true width; 64 samples leave a little noise.
    edge = norm.ppf(0.84) * width
    expected = norm.cdf(edge + shift) - norm.cdf(-edge + shift)
    share, error = found.at(0.68)
    assert abs(share - expected) < 4 * error + 0.005


def test_rank_counts_samples_below():
    values = np.array([[1.0, 2.0, 3.0, np.nan]])
    weight = np.ones((1, 4))

    def rank(truth, uniform):
        return float(truth_rank(np.array([truth]), values, weight, np.array([uniform]))[0])

    assert rank(2.5, 0.0) == pytest.approx(2 / 4)
    assert rank(2.5, 0.5) == pytest.approx(2.5 / 4)
    assert rank(9.0, 0.5) == pytest.approx(3.5 / 4)
    # Among equals: from below both to above both.
    assert rank(2.0, 0.0) == pytest.approx(1 / 4)
    assert rank(2.0, 0.999999) == pytest.approx(3 / 4, abs=1e-5)
    assert math.isnan(rank(np.nan, 0.5))
    assert np.isnan(truth_rank(np.zeros(1), values, np.zeros((1, 4)), np.zeros(1))).all()


def test_ties_are_broken_uniformly():
    """Integers: most samples are equal to the truth."""
    rng = np.random.default_rng(2)
    truth, samples = rng.poisson(1.0, N), rng.poisson(1.0, (N, 10))
    found = calibrate(truth_rank(truth, samples, np.ones((N, 10)), rng.random(N)), np.ones(N))
    assert min(found.chi2_p, found.ks_p) > 0.001


def test_weighted_samples():
    """Samples of a distribution twice as wide, with weights that make it the right one."""
    truth, samples, _, uniform, middle, sigma = gaussian(N, 400, width=2.0)
    z = (samples - middle[:, None]) / sigma[:, None]
    weight = np.exp(-(z**2) / 2 + z**2 / 8)
    right = calibrate(truth_rank(truth, samples, weight, uniform), np.ones(N))
    assert min(right.chi2_p, right.ks_p) > 0.001
    ignored = calibrate(truth_rank(truth, samples, np.ones_like(weight), uniform), np.ones(N))
    assert ignored.ks_p < 1e-10


def test_signed_event_weights():
    """Events of weight −1 take away as many others: the distribution stays, n_eff falls."""
    rng = np.random.default_rng(3)
    # Density 2u, whose cumulative distribution u² is at most ¼ from u.
    rising = np.sqrt(rng.random(3 * N))
    removed = rng.choice(rising, N, replace=False)
    found = calibrate(np.concatenate([rising, removed]), np.repeat([1.0, -1.0], [3 * N, N]))
    assert found.at(0.5)[0] == pytest.approx(0.75**2 - 0.25**2, abs=0.02)
    assert found.ks == pytest.approx(0.25, abs=0.02)
    assert found.n_eff == pytest.approx((2 * N) ** 2 / (4 * N))
    flat = calibrate(rng.random(4 * N), rng.choice([1.0, 1.0, 1.0, -1.0], 4 * N))
    assert min(flat.chi2_p, flat.ks_p) > 0.001


def test_probabilities_are_uniform_themselves():
    """Of uniform ranks with weights, p < 5 % comes in 5 % of the cases."""
    rng = np.random.default_rng(4)
    found = [calibrate(rng.random(500), rng.exponential(size=500)) for _ in range(1000)]
    for field in ("chi2_p", "ks_p"):
        assert kstest([getattr(of, field) for of in found], "uniform").pvalue > 0.001, field


def test_few_events_have_fewer_bins_or_none():
    rng = np.random.default_rng(5)
    assert [calibrate(rng.random(n), np.ones(n)).n_dof for n in (200, 199, 99, 49, 19)] == [19, 9, 4, 1, 0]
    nothing = calibrate(np.full(3, np.nan), np.ones(3))
    assert (nothing.n, nothing.n_eff) == (0, 0)
    assert np.isnan([nothing.chi2_p, nothing.ks_p, nothing.coverage[0]]).all()


def test_holm():
    # Holm's procedure by hand: 4·0.01, 3·0.02, 2·0.03 → 0.06, 0.5.
    assert holm([0.03, 0.01, 0.5, 0.02, math.nan]) == pytest.approx(
        [0.06, 0.04, 0.5, 0.06, math.nan], nan_ok=True
    )
    assert holm([]) == []
    rng = np.random.default_rng(6)
    alarms = np.mean([min(holm(rng.random(40))) < 0.05 for _ in range(2000)])
    assert alarms == pytest.approx(0.05, abs=0.015)


def test_a_wrong_region_is_found_though_the_whole_looks_right():
    """Too narrow in one half, too wide in the other; the number of tests does not hide it."""
    truth, narrow, weight, uniform, middle, _ = gaussian(N, 64, width=0.85)
    _, wide, *_ = gaussian(N, 64, width=1.2)
    where = middle > 0
    rank = truth_rank(truth, np.where(where[:, None], narrow, wide), weight, uniform)
    right = {f"right {i}": np.random.default_rng(i).random(N) for i in range(30)}
    regions = [("middle", "high", where), ("middle", "low", ~where)]
    found = examine_ranks({"wrong": rank, **right}, np.ones(N), regions)
    assert found["wrong"].region_p < 1e-6
    assert found["wrong"].region.startswith("middle ")
    assert found["wrong"].regions["middle"]["high"].at(0.68)[0] < 0.63
    assert found["wrong"].regions["middle"]["low"].at(0.68)[0] > 0.73
    for i in range(30):
        assert min(found[f"right {i}"].p, found[f"right {i}"].region_p) > 0.05


# ---- scores ----------------------------------------------------------------------------------------------


def exact_crps(truth, middle, sigma):
    """CRPS of a normal distribution, Eq. (21) of Gneiting and Raftery's example."""
    z = (truth - middle) / sigma
    return sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))


@pytest.mark.parametrize("k", [2, 8, 64])
def test_crps_does_not_depend_on_the_number_of_samples(k):
    truth, samples, weight, _, middle, sigma = gaussian(N, k)
    difference = mean_score(crps(truth, samples, weight) - exact_crps(truth, middle, sigma), np.ones(N))
    assert abs(difference.mean) < 4 * difference.mean_error
    assert difference.mean_error < 0.01


def test_crps_is_the_double_sum():
    rng = np.random.default_rng(7)
    values, weight, truth = rng.normal(size=(50, 9)), rng.exponential(size=(50, 9)), rng.normal(size=50)
    values[:, 3], weight[:, 5] = np.nan, 0.0
    found = crps(truth, values, weight)
    energy = energy_score(truth[:, None], values[..., None], weight)
    for i in range(50):
        x, w = (np.delete(of[i], [3, 5]) for of in (values, weight))
        w = w / w.sum()
        pairs = np.abs(x[:, None] - x) * w[:, None] * w
        expected = (w * np.abs(x - truth[i])).sum() - pairs.sum() / 2 / (1 - (w**2).sum())
        assert found[i] == pytest.approx(expected)
        assert energy[i] == pytest.approx(expected)
    one = np.where(np.arange(9) == 0, 1.0, 0.0) * np.ones((50, 1))
    assert np.isnan(crps(truth, values, one)).all()
    assert np.isnan(energy_score(truth[:, None], values[..., None], one)).all()


def test_weights_repair_the_scores():
    truth, samples, _, _, middle, sigma = gaussian(N, 200, width=2.0)
    z = (samples - middle[:, None]) / sigma[:, None]
    found = crps(truth, samples, np.exp(-(z**2) * 3 / 8)) - exact_crps(truth, middle, sigma)
    assert mean_score(found, np.ones(N)).mean == pytest.approx(0, abs=0.004)


def test_crps_of_quantiles_is_that_of_the_distribution():
    truth, _, _, _, middle, sigma = gaussian(N, 1)
    quantiles = middle[:, None] + sigma[:, None] * norm.ppf(QUANTILE_LEVELS)
    ratio = crps_of_quantiles(truth, quantiles).mean() / exact_crps(truth, middle, sigma).mean()
    assert ratio == pytest.approx(1.0022, abs=0.001)
    # By the definition, for a distribution with a point of zero width.
    steps = np.array([[0.0, 1.0, 1.0, 2.0, 4.0]])
    x = np.linspace(-2, 6, 800_001)
    cumulative = np.interp(x, [0, 1, 1, 2, 4], QUANTILE_LEVELS, left=0, right=1)
    for y in (-1.0, 0.5, 1.0, 3.0, 5.0):
        expected = ((cumulative - (x >= y)) ** 2).sum() * (x[1] - x[0])
        assert crps_of_quantiles(np.array([y]), steps)[0] == pytest.approx(expected, abs=1e-4)
    assert np.isnan(crps_of_quantiles(np.array([0.0]), np.full((1, 5), np.nan))).all()


@pytest.mark.parametrize(("width", "shift"), [(0.7, 0), (1.4, 0), (1, 0.3)])
def test_scores_are_worse_for_wrong_samples(width, shift):
    truth, right, weight, *_ = gaussian(N, 32)
    _, wrong, *_ = gaussian(N, 32, width=width, shift=shift)
    columns = {name: crps(truth, samples, weight) for name, samples in (("a", right), ("b", wrong))}
    found = compare_scores(columns, np.ones(N))
    difference = found.differences["a − b"]
    assert difference.mean < -5 * difference.mean_error
    assert difference.mean == pytest.approx(found.means["a"].mean - found.means["b"].mean)
    # The same events: far smaller than errors that are added in quadrature.
    assert difference.mean_error < 0.5 * math.hypot(*(of.mean_error for of in found.means.values()))


def test_energy_score_of_a_gaussian():
    """Truth and samples of one normal distribution: half the mean distance of two draws."""
    rng = np.random.default_rng(8)
    truth, samples = rng.normal(size=(N, 6)), rng.normal(size=(N, 20, 6))
    found = mean_score(energy_score(truth, samples, np.ones((N, 20))), np.ones(N))
    # The distance is √2 times the mean √2 Γ(7/2)/Γ(3) of the χ distribution of six degrees of freedom.
    expected = math.gamma(3.5) / math.gamma(3)
    assert abs(found.mean - expected) < 4 * found.mean_error


def test_mean_score_has_the_error_of_the_weighted_mean():
    found = mean_score(np.array([1.0, 3.0, np.nan]), np.array([3.0, 1.0, 5.0]))
    assert found == (2, 1.5, pytest.approx(math.sqrt(9 * 0.25 + 2.25) / 4))
    assert math.isnan(mean_score(np.zeros(2), np.array([1.0, -1.0])).mean)


# ---- axes and posteriors ---------------------------------------------------------------------------------


def test_own_axes_do_not_change_with_the_laboratory():
    events = toy_events(50)
    axes = own_axes(events)
    plus, minus = (on_axes(of[:, 1:], axes) for of in (events.lepton_plus, events.lepton_minus))
    np.testing.assert_allclose(plus[:, 1], 0, atol=1e-12)
    assert (plus[:, 0] > 0).all()
    assert (minus[:, 1] >= 0).all()
    np.testing.assert_allclose(plus[:, 2], events.lepton_plus[:, 3])
    c, s = math.cos(2.0), math.sin(2.0)
    for across in (np.array([[c, -s], [s, c]]), np.array([[1.0, 0.0], [0.0, -1.0]])):
        turned = {}
        for name in ("lepton_plus", "lepton_minus"):
            turned[name] = getattr(events, name).copy()
            turned[name][:, 1:3] = getattr(events, name)[:, 1:3] @ across.T
        other = dataclasses.replace(events, **turned, met=events.met @ across.T)
        np.testing.assert_allclose(on_axes(other.met, own_axes(other)), on_axes(events.met, axes), atol=1e-9)


def toy_posterior(n, k, *, width=1.0, seed=3):
    """Tops of which each event knows a Gaussian of 30 GeV in each component."""
    events = toy_events(n, seed=seed)
    rng = np.random.default_rng(seed)
    middle = 2 * events.lepton_p4[..., 1:]
    truth = fourvector.from_three_momentum(middle + 30 * rng.normal(size=(n, 2, 3)), 172.5)
    momenta = middle[:, None] + 30 * width * rng.normal(size=(n, k, 2, 3))
    samples = fourvector.from_three_momentum(momenta, 172.5)
    return events, truth, Posterior(samples, np.zeros((n, k)))


def true_of(events, tops):
    system = tops.sum(axis=1)
    values = {name: of.compute(tops, system, events.lepton_p4) for name, of in OBSERVABLES.items()}
    return values | true_components(tops, own_axes(events))


def test_every_observable_of_an_exact_posterior_is_calibrated():
    n = 4000
    events, tops, posterior = toy_posterior(n, 32)
    found = score_posterior(posterior, events, true_of(events, tops), OBSERVABLES)
    assert set(found.rank) == {*OBSERVABLES, *COMPONENTS} - set(FIXED)
    assert set(found.crps) == {*OBSERVABLES, *COMPONENTS}
    assert found.number == pytest.approx(32)
    examined = examine_ranks(found.rank, np.ones(n), [])
    assert min(of.p for of in examined.values()) > 0.05
    # Ranks of different observables are drawn apart.
    assert abs(np.corrcoef(found.rank["y_top"], found.rank["cos_1n"])[0, 1]) < 0.2


@pytest.mark.parametrize("width", [0.85, 1.2])
def test_no_observable_of_a_wrong_posterior_is(width):
    n = 4000
    events, tops, posterior = toy_posterior(n, 32, width=width)
    found = score_posterior(posterior, events, true_of(events, tops), OBSERVABLES)
    examined = examine_ranks(found.rank, np.ones(n), [])
    for name in (*COMPONENTS, "m_tt", "pt_tt", "y_top", "c_hel", "cos_1k"):
        assert examined[name].p < 0.01, name
        assert (examined[name].overall.at(0.68)[0] < 0.68) == (width < 1), name


def test_numbers_do_not_depend_on_other_events():
    events, tops, posterior = toy_posterior(60, 8)
    true = true_of(events, tops)
    whole = score_posterior(posterior, events, true, ["m_tt"])
    some = np.array([50, 3, 17])
    part = score_posterior(posterior[some], events[some], {k: v[some] for k, v in true.items()}, ["m_tt"])
    np.testing.assert_array_equal(part.rank["m_tt"], whole.rank["m_tt"][some])
    np.testing.assert_array_equal(part.sample, whole.sample[some])
    np.testing.assert_allclose(part.energy, whole.energy[some])


def test_events_without_posterior_have_no_scores():
    events, tops, posterior = toy_posterior(5, 4)
    log_weight = posterior.log_weight.copy()
    log_weight[2] = -np.inf
    posterior.samples[2] = np.nan
    found = score_posterior(
        Posterior(posterior.samples, log_weight), events, true_of(events, tops), ["m_tt", "c_hel"]
    )
    for column in (
        found.number,
        found.energy,
        found.sample[:, 0],
        *found.rank.values(),
        *found.crps.values(),
    ):
        assert np.isnan(column).tolist() == [False, False, True, False, False]


def test_the_sample_is_drawn_by_the_weights():
    n, k = 5000, 3
    events, tops, posterior = toy_posterior(n, k)
    log_weight = np.log(np.array([0.5, 0.0001, 0.4999])) * np.ones((n, 1))
    found = score_posterior(
        Posterior(posterior.samples, log_weight), events, true_of(events, tops), []
    ).sample
    momenta = on_axes(posterior.samples[..., 1:], own_axes(events)).reshape(n, k, 6)
    shares = [(found == momenta[:, i]).all(axis=1).mean() for i in range(k)]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.5, 0.0, 0.5], abs=0.03)
