"""Numbers of the table against the metrics of the same events; coverage and pulls of a Gaussian toy."""

import math
from dataclasses import replace

import numpy as np
import pytest

from topreco.config import HistogramConfig
from topreco.core.events import CHANNELS, QUANTILE_LEVELS
from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import summarise_arrays
from topreco.evaluation.fill import fill, predicted_values, true_values
from topreco.evaluation.histograms import book
from topreco.evaluation.summary import ALL_CHANNELS, summarise
from topreco.validation.extras import scan_mass
from topreco.validation.gather import OBSERVED, concatenate, tabulate
from topreco.validation.page import _quality
from topreco.validation.statistics import close, measure, perform, regions
from topreco.validation.uncertainty import by_quality, cover, pull, quality_minima, uncertainty

NORMAL = np.array([-1.959964, -0.994458, 0.0, 0.994458, 1.959964])
"""Quantiles of a normal distribution at `QUANTILE_LEVELS`."""


@pytest.fixture(scope="module")
def sample(make_events):
    events, truth = make_events(1500, 5)
    events.weight[::5] = -1.0
    return events, truth


@pytest.fixture(scope="module")
def table(sample, leptons):
    return tabulate(*sample, [leptons])


@pytest.mark.parametrize("name", OBSERVED)
def test_numbers_are_those_of_the_metrics(sample, table, leptons, name):
    events, truth = sample
    pair = leptons(events)
    pred, true = predicted_values([name], events, pair)[name], true_values([name], truth)[name]
    expected = summarise_arrays(pred, true, events.weight, relative=OBSERVABLES[name].relative)
    assert measure(table, "leptons", name) == expected

    histograms = book(HistogramConfig())
    fill(histograms, dataset="toy", method="leptons", events=events, pair=pair, truth=truth)
    binned = summarise(histograms)["all"]["toy"]["leptons"]
    for field in ("n", "rb", "res", "rb_error", "slope", "correlation", "efficiency", "efficiency_error"):
        known = getattr(binned[ALL_CHANNELS][name].metrics, field)
        assert getattr(expected, field) == pytest.approx(known, rel=1e-9), field

    found = perform(table, "leptons", name, HistogramConfig())
    for ours, theirs in zip(found.truth_bins, binned[ALL_CHANNELS][name].bins, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours.metrics.rb == pytest.approx(theirs.metrics.rb, rel=1e-9, nan_ok=True)
    for channel in CHANNELS:
        ours = found.regions["channel"][channel].rb
        assert ours == pytest.approx(binned[channel][name].metrics.rb, rel=1e-9)


def test_bins_of_prediction_and_regions_hold_every_event(table):
    found = perform(table, "leptons", "m_tt", HistogramConfig())
    assert sum(b.metrics.n for b in found.pred_bins) == found.inclusive.n
    kinds = {}
    for kind, _, where in regions(table):
        kinds[kind] = kinds.get(kind, 0) + where.astype(int)
    assert list(kinds) == ["channel", "jets", "b tags", "τ", "true pT(t) [GeV]", "true m(tt̄) [GeV]"]
    for kind, counts in kinds.items():
        assert (counts == 1).all(), kind


def test_parts_add_up(sample, leptons):
    events, truth = sample
    parts = [tabulate(events[i : i + 400], truth[i : i + 400], [leptons]) for i in range(0, 1500, 400)]
    whole, joined = tabulate(events, truth, [leptons]), concatenate(parts)
    for name in OBSERVED:
        assert measure(joined, "leptons", name) == measure(whole, "leptons", name)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_coverage_and_pulls_of_a_gaussian(scale):
    """Intervals that are too wide by a factor cover what a normal distribution holds within them."""
    rng = np.random.default_rng(3)
    n = 20_000
    sigma, middle = rng.uniform(1, 3, n), rng.normal(0, 10, n)
    truth = middle + sigma * rng.normal(size=n)
    quantiles = middle[:, None] + scale * sigma[:, None] * NORMAL
    found = cover(truth, quantiles, np.ones(n))
    for level, edge in (("68", NORMAL[3]), ("95", NORMAL[4])):
        expected = math.erf(scale * edge / math.sqrt(2))
        value, error = getattr(found, f"coverage{level}"), getattr(found, f"coverage{level}_error")
        assert error == pytest.approx(math.sqrt(value * (1 - value) / n))
        assert abs(value - expected) < 4 * error
    pulls = pull(truth, quantiles, np.ones(n))
    assert abs(pulls.median) < 4 * pulls.median_error
    assert abs(pulls.width68 - 1 / (NORMAL[3] * scale)) < 4 * pulls.width68_error
    assert np.sum(np.array(pulls.density) * np.diff(pulls.edges)) == pytest.approx(1, abs=1e-3)


def test_unknown_events_do_not_count():
    quantiles = np.tile(NORMAL, (3, 1))
    quantiles[1] = np.nan
    found = cover(np.array([0.0, 0.0, np.nan]), quantiles, np.ones(3))
    assert (found.n, found.coverage68) == (1, 1.0)
    nothing = cover(np.zeros(0), np.zeros((0, len(QUANTILE_LEVELS))), np.zeros(0))
    assert nothing.n == 0
    assert math.isnan(nothing.coverage68)


def test_coverage_by_region(table):
    found = uncertainty(table, "leptons", "m_tt")
    assert list(found.predicted) == ["< 400", "400–500", "500–650", "> 650"]
    for parts in (found.predicted, found.true):
        assert sum(c.n for c in parts.values()) == found.overall.n


def test_best_quality_first(table):
    kept = by_quality(table, "leptons", OBSERVED)["m_tt"]
    assert kept[0].metrics == measure(table, "leptons", "m_tt")
    shares = [k.metrics.n / kept[0].metrics.n for k in kept]
    assert shares == sorted(shares, reverse=True)
    assert shares[5] == pytest.approx(0.5, abs=0.05)
    minima = [k.minimum for k in kept]
    assert minima == sorted(minima)


def test_unknown_thresholds_are_no_numbers(table):
    known = table.predictions["leptons"]
    unknown = replace(known, quality=np.full_like(known.quality, np.nan))
    table = replace(table, predictions={"leptons": unknown})
    assert np.isnan(quality_minima(unknown, table.events["weight"], (1, 0.5))).all()
    found = {"quality": {"leptons": by_quality(table, "leptons", ["m_tt"])}, "metadata": {"shown": ()}}
    assert {row[1] for row in _quality(found)["table"].rows} == {"–"}
    kept = by_quality(replace(table, predictions={"leptons": known}), "leptons", ["m_tt"])
    numbers = [row[1] for row in _quality(found | {"quality": {"leptons": kept}})["table"].rows]
    assert numbers == [f"{each.minimum:.4g}" for each in kept["m_tt"]]


def test_masses_that_were_given_close(table):
    found = close(table, "leptons", 172.5)
    assert found.mass_mean == pytest.approx(172.5)
    assert found.mass_width68 == pytest.approx(0, abs=1e-9)
    assert found.on_shell == 1
    assert close(table, "leptons", 180.0).on_shell == 0
    assert found.pt_tt == measure(table, "leptons", "pt_tt")


def test_slope_over_masses(make_events, leptons):
    """A method that assumes one mass: its line goes through points that scatter by their errors."""
    tables = {m: tabulate(*make_events(400, 8, m_top=m), [leptons]) for m in (165.0, 172.5, 180.0)}
    scan = scan_mass(tables, "leptons", "m_tt")
    assert [point.m_top for point in scan.points] == [165.0, 172.5, 180.0]
    rb = [point.metrics.rb for point in scan.points]
    assert rb == [measure(t, "leptons", "m_tt").rb for t in tables.values()]
    # The same events, so that the points do not scatter; m_tt is about proportional to the mass.
    assert scan.slope == pytest.approx((rb[2] - rb[0]) / 15, rel=0.05)
    assert -1 / 172.5 < scan.slope < 0
