import math

import numpy as np
import pytest

from topreco.core import statistics as metrics
from topreco.core.statistics import Cumulative, Metrics, metric_values, summarise_arrays

ESTIMATES = [name for name in Metrics._fields if f"{name}_error" in Metrics._fields]


def gaussian_response(n, *, seed=0, relative=False, signed=True):
    """Truth, prediction with slope 0.7, and weights of both signs."""
    rng = np.random.default_rng(seed)
    t = rng.normal(0, 1, n)
    p = 0.7 * t + 0.1 + rng.normal(0, 0.4, n)
    weight = rng.choice([1.0, 0.5, -0.3], n, p=[0.6, 0.3, 0.1]) if signed else np.ones(n)
    if relative:
        t, p = 500 * np.exp(0.3 * t), 500 * np.exp(0.3 * p)
    return p, t, weight


def test_known_bias_and_width():
    rng = np.random.default_rng(1)
    n = 200_000
    t = rng.uniform(300, 800, n)
    found = summarise_arrays(t * (1 + rng.normal(0.03, 0.15, n)), t, relative=True)
    assert found.n == n
    assert found.n_eff == pytest.approx(n)
    assert found.rb == pytest.approx(0.03, abs=4 * found.rb_error)
    assert found.res == pytest.approx(0.15, abs=4 * found.res_error)
    assert found.median == pytest.approx(0.03, abs=4 * found.median_error)
    assert found.width68 == pytest.approx(0.15, abs=4 * found.width68_error)
    # Textbook errors of a Gaussian sample.
    assert found.rb_error == pytest.approx(0.15 / math.sqrt(n), rel=0.02)
    assert found.res_error == pytest.approx(0.15 / math.sqrt(2 * n), rel=0.02)
    assert found.median_error == pytest.approx(0.15 * math.sqrt(math.pi / 2 / n), rel=0.05)


def test_uniform_residuals():
    rng = np.random.default_rng(2)
    n = 100_000
    t = rng.normal(0, 1, n)
    found = summarise_arrays(t + rng.uniform(-1, 1, n), t, relative=False)
    assert found.rb == pytest.approx(0, abs=4 * found.rb_error)
    assert found.res == pytest.approx(1 / math.sqrt(3), abs=4 * found.res_error)
    assert found.width68 == pytest.approx(metrics.QUANTILE_HIGH - metrics.QUANTILE_LOW, rel=0.01)


@pytest.mark.parametrize("relative", [True, False])
def test_errors_agree_with_the_bootstrap(relative):
    p, t, weight = gaussian_response(3000, relative=relative)
    rng = np.random.default_rng(5)
    p[rng.random(len(p)) < 0.2] = np.nan
    nominal = summarise_arrays(p, t, weight, relative=relative)
    replicas = [
        summarise_arrays(p, t, weight * rng.poisson(1.0, len(t)), relative=relative) for _ in range(400)
    ]
    for name in ESTIMATES:
        spread = np.std([getattr(replica, name) for replica in replicas])
        # 400 replicas know their spread to 3.5 %; errors of quantiles fluctuate by themselves.
        tolerance = 0.3 if name in ("median", "width68", "width68_linearised") else 0.15
        assert getattr(nominal, f"{name}_error") == pytest.approx(spread, rel=tolerance), name


def test_a_line_with_noise_is_recovered():
    p, t, weight = gaussian_response(200_000, signed=False)
    found = summarise_arrays(p, t, weight, relative=False)
    assert found.slope == pytest.approx(0.7, abs=4 * found.slope_error)
    assert found.correlation == pytest.approx(0.7 / math.hypot(0.7, 0.4), abs=4 * found.correlation_error)
    assert found.rms_linearised == pytest.approx(0.4 / 0.7, abs=4 * found.rms_linearised_error)
    assert found.width68_linearised == pytest.approx(0.4 / 0.7, abs=4 * found.width68_linearised_error)


@pytest.mark.parametrize("relative", [True, False])
def test_shrinkage_gains_nothing(relative):
    p, t, weight = gaussian_response(20_000, relative=relative)
    shrunk = 100 * p**0.5 if relative else 0.5 * p + 3
    before, after = (summarise_arrays(x, t, weight, relative=relative) for x in (p, shrunk))
    assert after.slope == pytest.approx(0.5 * before.slope)
    for name in ("correlation", "rms_linearised", "width68_linearised"):
        assert getattr(after, name) == pytest.approx(getattr(before, name)), name
        assert getattr(after, f"{name}_error") == pytest.approx(getattr(before, f"{name}_error")), name


def test_perfect_prediction():
    t = np.linspace(300, 800, 50)
    found = summarise_arrays(t, t, relative=True)
    zero = ("rb", "res", "median", "width68", "rms_linearised", "width68_linearised")
    assert [getattr(found, name) for name in zero] == pytest.approx([0] * len(zero), abs=1e-6)
    assert [found.slope, found.correlation, found.efficiency] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    ("pred", "truth", "weight"),
    [
        ([], [], []),
        ([np.nan, np.nan], [400.0, 500.0], [1.0, 1.0]),
        ([410.0, 390.0], [400.0, 400.0], [1.0, -1.0]),
        ([410.0, 390.0], [np.nan, -5.0], [1.0, 1.0]),
    ],
    ids=["no events", "no solutions", "weights cancel", "no truth"],
)
def test_undefined_metrics_are_nan(pred, truth, weight):
    found = summarise_arrays(np.array(pred), np.array(truth), np.array(weight), relative=True)
    for name in ESTIMATES:
        if name != "efficiency":
            assert math.isnan(getattr(found, name)), name
            assert math.isnan(getattr(found, f"{name}_error")), name


def test_a_single_event_has_a_bias_but_no_spread():
    found = summarise_arrays(np.array([440.0]), np.array([400.0]), relative=True)
    assert found.rb == pytest.approx(0.1)
    assert math.isnan(found.rb_error)
    assert math.isnan(found.res)
    assert math.isnan(found.slope)


@pytest.mark.parametrize("summary", [summarise_arrays, metric_values])
def test_arrays_are_checked(summary):
    with pytest.raises(ValueError, match=r"shapes \(3,\), \(2,\)"):
        summary(np.ones(3), np.ones(2), relative=True)
    with pytest.raises(ValueError, match="1 of 3 weights are not finite"):
        summary(np.ones(3), np.ones(3), np.array([1.0, np.nan, 1.0]), relative=True)


# ---- without errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [True, False])
def test_values_are_those_of_the_metrics(relative):
    p, t, weight = gaussian_response(3000, relative=relative)
    p[::7] = np.nan
    found, full = (f(p, t, weight, relative=relative) for f in (metric_values, summarise_arrays))
    for name in ("rb", "res", "correlation", "slope", "efficiency"):
        assert getattr(found, name) == getattr(full, name), name
    assert found.rms == pytest.approx(math.hypot(found.rb, found.res), rel=1e-12)


@pytest.mark.parametrize("relative", [True, False])
def test_values_by_two_passes(relative):
    """The same from centred values, with signed weights and failed predictions."""
    p, t, weight = gaussian_response(5000, relative=relative)
    p[::7] = np.nan
    found = metric_values(p, t, weight, relative=relative)
    solved = np.isfinite(p)
    assert found.efficiency == pytest.approx(weight[solved].sum() / weight.sum(), rel=1e-12)
    p, t = p[solved], t[solved]
    normalised = weight[solved] / weight[solved].sum()
    r = p / t - 1 if relative else p - t
    x, y = (np.log(t), np.log(p)) if relative else (t, p)
    x, y = x - normalised @ x, y - normalised @ y
    assert found.rb == pytest.approx(normalised @ r, rel=1e-12)
    assert found.res == pytest.approx(math.sqrt(normalised @ r**2 - (normalised @ r) ** 2), rel=1e-12)
    assert found.rms == pytest.approx(math.sqrt(normalised @ r**2), rel=1e-12)
    covariance, var_x, var_y = normalised @ (x * y), normalised @ x**2, normalised @ y**2
    assert found.correlation == pytest.approx(covariance / math.sqrt(var_x * var_y), rel=1e-12)
    assert found.slope == pytest.approx(covariance / var_x, rel=1e-12)


def test_values_of_both_tops_count_alike():
    p, t, weight = gaussian_response(3000)
    p[5] = np.nan
    q = p + 0.1
    found = metric_values(np.stack([p, q], axis=1), np.stack([t, t], axis=1), weight, relative=False)
    both = metric_values(*(np.concatenate(x) for x in ((p, q), (t, t), (weight, weight))), relative=False)
    assert np.array(found) == pytest.approx(np.array(both), rel=1e-12)


def test_values_without_events_are_nan():
    assert all(math.isnan(value) for value in metric_values(np.ones(0), np.ones(0), relative=True))


# ---- efficiency ------------------------------------------------------------------------------------------


def test_efficiency_of_unit_weights_is_binomial():
    found = metrics.efficiency(400.0, 400.0, 100.0, 100.0)
    assert found.value == pytest.approx(0.25)
    assert found.error == pytest.approx(math.sqrt(0.25 * 0.75 / 400))


def test_efficiency_without_events_is_undefined():
    found = metrics.efficiency(np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(2))
    assert np.isnan(found.value).all()
    assert np.isnan(found.error).all()


# ---- quantiles -------------------------------------------------------------------------------------------

FRACTIONS = (0.01, metrics.QUANTILE_LOW, 0.5, metrics.QUANTILE_HIGH, 0.99)


@pytest.mark.parametrize("q", FRACTIONS)
def test_unbinned_quantile_is_that_of_numpy(q):
    values = np.random.default_rng(3).gamma(2.0, 1.0, 1001)
    found = Cumulative.from_values(values, np.full(len(values), 0.3)).quantile(q)
    assert found == pytest.approx(np.quantile(values, q, method="hazen"))


@pytest.mark.parametrize("q", FRACTIONS)
def test_histogram_quantile_is_that_of_numpy(q):
    values = np.random.default_rng(3).normal(0.0, 1.0, 100_000)
    counts, edges = np.histogram(values, bins=np.linspace(-3, 3, 121))
    flow = [(values < -3).sum(), *counts, (values >= 3).sum()]
    found = Cumulative.from_histogram(np.array(flow, float), edges).quantile(q)
    assert found == pytest.approx(np.quantile(values, q), abs=0.005)


@pytest.mark.parametrize("q", FRACTIONS)
def test_negative_weights_subtract(q):
    rng = np.random.default_rng(4)
    signal, extra = rng.normal(0, 1, 200_000), rng.normal(1, 1, 40_000)
    values = np.concatenate([signal, extra, rng.normal(1, 1, 40_000)])
    weights = np.concatenate([np.ones(240_000), -np.ones(40_000)])
    found = Cumulative.from_values(values, weights)
    assert (np.diff(found.fraction) >= 0).all()
    assert found.quantile(q) == pytest.approx(np.quantile(signal, q), abs=0.04)


def test_monotone_cumulative_treats_both_ends_alike():
    counts, edges = np.array([0.0, 4, -2, 5, -1, 2, 0]), np.arange(6.0)
    found = Cumulative.from_histogram(counts, edges)
    mirrored = Cumulative.from_histogram(counts[::-1], -edges[::-1])
    assert (np.diff(found.fraction) >= 0).all()
    assert mirrored.fraction == pytest.approx(1 - found.fraction[::-1])
    assert mirrored.quantile(0.3) == pytest.approx(-found.quantile(0.7))


def test_quantile_in_the_flow_is_undefined():
    found = Cumulative.from_histogram(np.array([30.0, 50.0, 20.0]), np.array([0.0, 1.0]))
    assert math.isnan(found.quantile(0.2))
    assert math.isnan(found.quantile(0.9))
    assert found.quantile(0.55) == pytest.approx(0.5)


def test_quantile_on_a_plateau_is_its_middle():
    found = Cumulative.from_histogram(np.array([0.0, 1, 0, 0, 1, 0]), np.arange(5.0))
    assert found.quantile(0.5) == pytest.approx(2.0)


def test_boxes_add_up():
    low, high = np.array([0.0, 1.0]), np.array([2.0, 3.0])
    found = Cumulative.from_boxes(low, high, np.array([4.0, 4.0]), below=1.0, above=1.0)
    assert found.fraction == pytest.approx([0.1, 0.3, 0.7, 0.9])


# ---- migration -------------------------------------------------------------------------------------------


def test_purity_and_stability():
    migration = np.array([[8.0, 2.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert metrics.purity(migration)[:2] == pytest.approx([8 / 12, 4 / 6])
    assert metrics.stability(migration)[:2] == pytest.approx([0.8, 0.5])
    assert np.isnan(metrics.purity(migration)[2])
    assert np.isnan(metrics.stability(migration)[2])


def test_equal_population():
    counts = np.array([0.0, 1, 1, 1, 1, 4, 4, 2, 2, 0])
    starts = metrics.equal_population(counts, 4)
    assert metrics.merge_bins(counts, starts, axis=0) == pytest.approx([4, 4, 4, 4])
    assert metrics.equal_population(np.zeros(5), 4) == []
