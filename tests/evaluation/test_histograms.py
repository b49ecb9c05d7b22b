import dataclasses
import math
import pickle

import numpy as np
import pytest

from topreco.config import HistogramConfig
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import CHANNELS, TopPair
from topreco.core.files import to_json
from topreco.core.observables import OBSERVABLE_GROUPS, OBSERVABLES, m_tt
from topreco.core.statistics import Metrics, summarise_arrays
from topreco.evaluation.fill import fill
from topreco.evaluation.histograms import add_up, book, histograms_of, observables_of, variations_of
from topreco.evaluation.summary import summarise

FEW = HistogramConfig(observables=("m_tt", "pt_top", "y_top"))
QUANTILES = ("median", "width68", "width68_linearised")


def filled(*parts, config=FEW):
    histograms = book(config)
    for dataset, method, (events, pair, truth) in parts:
        fill(histograms, dataset=dataset, method=method, events=events, pair=pair, truth=truth)
    return histograms


def cut(sample, index):
    return tuple(None if part is None else part[index] for part in sample)


def results(histograms, dataset="tt", method="a"):
    """Of all selected events and channels, by observable."""
    return summarise(histograms)["all"][dataset][method]["all"]


def unbinned(name, events, pair, truth):
    observable = OBSERVABLES[name]
    pred = observable.compute(pair.p4, pair.system, events.lepton_p4)
    return summarise_arrays(
        # That of the leptons alone is known without a solution, but is none of this method then.
        np.where(pair.valid, pred, np.nan),
        observable.compute(truth.tops, truth.tops.sum(axis=1), truth.lepton),
        events.weight,
        relative=observable.relative,
    )


@pytest.mark.parametrize("name", OBSERVABLES)
def test_metrics_of_histograms_are_those_of_the_events(toy, name):
    sample = toy(50_000, signed=True)
    histograms = filled(("tt", "a", sample), config=HistogramConfig(observables=(name,)))
    found = results(histograms)[name].metrics
    expected = unbinned(name, *sample)
    for field, value, wanted in zip(Metrics._fields, found, expected, strict=True):
        if not field.startswith(QUANTILES):
            assert value == pytest.approx(wanted, rel=1e-9), field
    # Quantiles know the bins only.
    assert found.median == pytest.approx(expected.median, abs=0.01 * expected.width68)
    assert found.width68 == pytest.approx(expected.width68, rel=0.01)
    # The mass of the top is not correlated with its truth: there is no line.
    if expected.correlation > 0.1:
        assert found.width68_linearised == pytest.approx(expected.width68_linearised, rel=0.01)


@pytest.mark.parametrize(("shrink", "tolerance"), [(0.4, 0.02), (0.6, 0.01), (0.8, 0.01), (1.0, 0.01)])
def test_linearised_width_from_histograms(toy, shrink, tolerance):
    sample = toy(100_000, shrink=shrink, smear=0.1)
    found = results(filled(("tt", "a", sample)))
    for name in FEW.observables:
        expected = unbinned(name, *sample)
        value = found[name].metrics.width68_linearised
        assert value == pytest.approx(expected.width68_linearised, rel=tolerance), name


def test_bins_are_those_of_the_events(toy):
    events, pair, truth = toy(20_000)
    found = results(filled(("tt", "a", (events, pair, truth))))
    mass = m_tt(truth.tops)
    pt = fourvector.pt(truth.tops[:, 0])
    assert found["pt_top"].bins[1][:2] == (0, 20)
    for bins, values in ((found["pt_top"].bins, pt), (found["pt_top"].bins_m_tt, mass)):
        assert sum(b.metrics.n for b in bins) == found["pt_top"].metrics.n
        for low, high, metrics in bins:
            inside = (values >= low) & (values < high)
            expected = unbinned("pt_top", *cut((events, pair, truth), inside))
            assert metrics.n == expected.n
            for field in ("rb", "res", "rb_error", "res_error", "efficiency", "efficiency_error"):
                wanted = getattr(expected, field)
                assert getattr(metrics, field) == pytest.approx(wanted, rel=1e-8, nan_ok=True), field


# ---- merging ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_any_split_merges_to_the_whole(toy, seed):
    parts = [
        ("tt", "a", toy(500, seed=1, signed=True)),
        ("other", "b", toy(400, seed=2)),
        ("tt", "b", toy(300)),
    ]
    whole = filled(*parts)
    rng = np.random.default_rng(seed)
    pieces = []
    for dataset, method, sample in parts:
        chunk = rng.integers(0, 4, len(sample[0]))
        pieces += [(dataset, method, cut(sample, chunk == i)) for i in range(4)]
    rng.shuffle(pieces)
    merged = add_up([*(filled(piece) for piece in pieces), book(FEW)])
    for key in whole:
        for dataset, method, _ in parts:
            found, expected = (h[key][dataset, method, ...].view(flow=True) for h in (merged, whole))
            for field in found.dtype.names or (...,):
                np.testing.assert_allclose(found[field], expected[field], rtol=1e-9, atol=1e-9)
        if "moment" in whole[key].axes.name:
            where = {"dataset": "tt", "method": "a", "moment": "n"}
            np.testing.assert_array_equal(
                merged[key][where].values(flow=True), whole[key][where].values(flow=True)
            )
    for name, result in summarise(whole)["all"]["tt"]["b"]["emu"].items():
        assert summarise(merged)["all"]["tt"]["b"]["emu"][name].metrics == pytest.approx(
            result.metrics, rel=1e-7, nan_ok=True
        )


def test_opposite_weights_cancel_and_recover(toy):
    events, pair, truth = toy(200, efficiency=1.0)
    negative = dataclasses.replace(events, weight=-events.weight)
    plus, minus = filled(("tt", "a", (events, pair, truth))), filled(("tt", "a", (negative, pair, truth)))
    cancelled = results(add_up([plus, minus]))["m_tt"].metrics
    assert cancelled.n == 400
    assert cancelled.sumw == 0
    assert math.isnan(cancelled.rb)
    assert math.isnan(cancelled.width68)
    recovered = results(add_up([plus, minus, plus]))["m_tt"].metrics
    alone = results(plus)["m_tt"].metrics
    for field in ("rb", "res", "median", "width68", "slope", "correlation", "width68_linearised"):
        assert getattr(recovered, field) == pytest.approx(getattr(alone, field)), field


def test_histograms_pickle_and_stay_small(toy):
    sample = toy(100)
    histograms = filled(("tt", "a", sample), ("tt", "b", sample), config=HistogramConfig())
    assert sum(h.view(flow=True).nbytes for h in histograms.values()) < 30e6
    copy = pickle.loads(pickle.dumps(histograms))
    assert all((copy[key] == histograms[key]) for key in histograms)


def test_every_group_can_be_booked():
    for name, members in OBSERVABLE_GROUPS.items():
        histograms = book(HistogramConfig(observables=(name,)))
        assert observables_of(histograms) == members
        for observable in members:
            # The spectrum covers the bins in which it is judged, but for the tails of pT and m_tt.
            value, truth = (
                histograms[key].axes[-1].edges for key in (f"spectrum/{observable}", f"moments/{observable}")
            )
            assert value[0] <= truth[0]


# ---- what enters where -----------------------------------------------------------------------------------


def test_unsolved_events_enter_denominators_only(toy):
    events, pair, truth = toy(1000)
    # A method may call a NaN valid: it is none the less no value.
    half_broken = TopPair(p4=pair.p4, valid=np.ones(1000, bool))
    for candidate in (pair, half_broken):
        found = results(filled(("tt", "a", (events, candidate, truth))))["m_tt"]
        solved = int(pair.valid.sum())
        assert (found.n_selected, found.n_solved, found.metrics.n) == (1000, solved, solved)
        assert found.metrics.efficiency == pytest.approx(solved / 1000)
    without = cut((events, pair, truth), pair.valid)
    some, all_valid = filled(("tt", "a", (events, pair, truth))), filled(("tt", "a", without))
    for key in ("spectrum/m_tt", "residual/m_tt", "migration/m_tt"):
        assert some[key] == all_valid[key]


def test_nothing_is_lost_outside_the_bins(toy):
    sample = toy(2000, efficiency=1.0)
    config = HistogramConfig(observables=("m_tt", "y_top"), bins={"m_tt": (400, 401), "y_top": (0, 0.1)})
    histograms = filled(("tt", "a", sample), config=config)
    for key, histogram in histograms.items():
        if key.startswith(("residual", "migration")):
            assert histogram[{"subset": "all"}].sum(flow=True) == 2000
        if key.startswith("moments"):
            assert histogram[{"subset": "all", "moment": "n"}].sum(flow=True) == 2000


def test_data_fill_reconstruction_only(toy):
    events, pair, _ = toy(1000)
    histograms = filled(("data", "a", (events, pair, None)))
    for key, histogram in histograms.items():
        assert bool(histogram.sum(flow=True)) == key.startswith(("events", "spectrum")), key
    found = results(histograms, "data")["m_tt"]
    assert found.n_solved == pair.valid.sum()
    assert found.metrics.efficiency == pytest.approx(pair.valid.mean())
    assert found.metrics.n == 0
    assert math.isnan(found.metrics.rb)
    assert found.bins == ()


def test_events_without_truth_enter_as_data_do(toy):
    events, pair, truth = toy(1000, efficiency=1.0)
    truth.tops[:300] = np.nan
    found = results(filled(("tt", "a", (events, pair, truth))))["m_tt"]
    assert (found.n_selected, found.n_solved, found.metrics.n) == (1000, 1000, 700)


def test_a_method_may_give_the_system_only(toy):
    events, pair, truth = toy(1000)
    system = TopPair(p4=np.full((1000, 2, 4), np.nan), valid=pair.valid, ttbar=pair.system)
    found = results(filled(("tt", "a", (events, system, truth))))
    assert found["m_tt"].metrics.n == pair.valid.sum()
    assert found["pt_top"].metrics.n == 0
    assert found["pt_top"].metrics.efficiency == 0


def test_channels_add_up(toy):
    sample = toy(1000)
    found = summarise(filled(("tt", "a", sample)))["all"]["tt"]["a"]
    assert [found[c]["m_tt"].n_selected for c in CHANNELS] == np.bincount(sample[0].channel).tolist()
    assert sum(found[c]["m_tt"].metrics.n for c in CHANNELS) == found["all"]["m_tt"].metrics.n


def test_common_events_are_the_same_for_all_methods(toy):
    events, a, truth = toy(2000)
    _, b, _ = toy(2000, shrink=0.5, efficiency=0.7)
    both = a.valid & b.valid
    histograms = book(FEW)
    for method, pair in (("a", a), ("b", b)):
        fill(histograms, dataset="tt", method=method, events=events, pair=pair, truth=truth, common=both)
    found = summarise(histograms)["common"]["tt"]
    for method in "ab":
        assert found[method]["all"]["m_tt"].metrics.n == both.sum()
        assert found[method]["all"]["m_tt"].metrics.efficiency == pytest.approx(both.mean())
    truths = [
        histograms["spectrum/m_tt"]["tt", m, "nominal", sum, "common", "truth", :].values() for m in "ab"
    ]
    np.testing.assert_array_equal(*truths)
    edges = [found[m]["all"]["m_tt"].migration_equal.edges for m in "ab"]
    assert edges[0] == edges[1]
    with pytest.raises(ValueError, match="b did not solve them"):
        fill(histograms, dataset="tt", method="b", events=events, pair=b, common=a.valid)


def test_equal_population_bins(toy):
    found = results(filled(("tt", "a", toy(50_000))))["m_tt"].migration_equal
    assert len(found.stability) == len(found.edges) + 1 == 8
    assert found.mean_stability == pytest.approx(np.mean(found.stability), abs=0.02)
    assert found.mean_stability_error < 0.01


def test_an_empty_chunk_changes_nothing(toy):
    sample = toy(50)
    histograms = filled(("tt", "a", sample))
    before = pickle.dumps(summarise(histograms))
    events, pair, truth = cut(sample, slice(0, 0))
    fill(histograms, dataset="tt", method="a", events=events, pair=pair, truth=truth, common=pair.valid)
    assert pickle.dumps(summarise(histograms)) == before
    assert summarise(book(FEW)) == {}


# ---- errors ----------------------------------------------------------------------------------------------


def test_fill_checks_its_input(toy):
    events, pair, truth = toy(10)
    histograms = book(FEW)
    broken = dataclasses.replace(events, weight=np.full(10, np.inf))
    for changes, message in (
        ({"pair": pair[:9]}, "10 events but 9 entries in pair"),
        ({"truth": truth[:9]}, "10 events but 9 entries in truth"),
        ({"events": broken}, "10 of 10 weights are not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            fill(histograms, dataset="tt", method="a", **({"events": events, "pair": pair} | changes))
    assert not any(h.sum(flow=True) for k, h in histograms.items() if not k.startswith("spectrum"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"observables": ("mtt",)}, "unknown observable 'mtt'; did you mean 'm_tt'"),
        ({"bins": {"mtt": (0, 1)}}, "unknown observable 'mtt'"),
        ({"bins": {"m_tt": (400, 300)}}, "rising edges expected"),
        ({"bins": {"m_tt": (400,)}}, "at least 2 items"),
        ({"bins": {"pt_top": (-5, 300)}}, "pt_top is positive, found the edge -5"),
    ],
)
def test_unusable_configurations_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        book(HistogramConfig(**config))


def test_histograms_of_a_processor_output():
    histograms = book(FEW)
    assert observables_of(histograms_of({"histograms": histograms, "cutflow": {}})) == FEW.observables
    assert histograms_of(histograms | {"metadata": {}}).keys() == histograms.keys()
    with pytest.raises(ValueError, match=r"no topreco histograms.*'cutflow'"):
        histograms_of({"cutflow": 1})


def test_runs_that_differ_in_bins_are_not_added(toy):
    coarse = HistogramConfig(observables=FEW.observables, bins={"m_tt": (300, 500, 1000)})
    with pytest.raises(TopRecoError, match="cannot be added: they differ in observables or bins"):
        add_up([book(FEW), book(coarse)])
    # Histograms that only one of them has do not matter.
    assert add_up([book(FEW), book(FEW) | {"response/m_tt": book(FEW)["events"]}]) == book(FEW)


# ---- means -----------------------------------------------------------------------------------------------


def test_means_of_truth_and_prediction(toy):
    """Of the solved events, weighted, with the error of a weighted mean; D = −3⟨c_hel⟩ follows from them."""
    events, pair, truth = toy(20_000, signed=True)
    config = HistogramConfig(observables=("c_hel", "y_tt", "m_tt"))
    found = results(filled(("tt", "a", (events, pair, truth)), config=config))
    weight = events.weight[pair.valid]
    for name in ("c_hel", "y_tt"):
        compute = OBSERVABLES[name].compute
        values = {
            "mean_pred": compute(pair.p4, pair.system, events.lepton_p4)[pair.valid],
            "mean_truth": compute(truth.tops, truth.tops.sum(axis=1), truth.lepton)[pair.valid],
        }
        for field, value in values.items():
            mean, error = getattr(found[name], field)
            expected = np.average(value, weights=weight)
            assert mean == pytest.approx(expected, abs=1e-9)
            spread = np.sqrt((weight**2 * (value - expected) ** 2).sum()) / weight.sum()
            assert error == pytest.approx(spread, rel=1e-6)
    assert np.isnan(found["m_tt"].mean_pred).all()
    assert np.isnan(found["m_tt"].mean_truth).all()


def test_nominal_is_the_first_variation_and_the_default(toy):
    sample = toy(500)
    histograms = book(FEW)
    options = dict(zip(("events", "pair", "truth"), sample, strict=True))
    fill(histograms, dataset="tt", method="a", **options, variation="jes_up", metrics=False)
    fill(histograms, dataset="tt", method="a", **options)
    assert variations_of(histograms, "tt", "a") == ("nominal", "jes_up")
    assert variations_of(histograms, "data", "a") == ()
    alone = filled(("tt", "a", sample))
    assert to_json(summarise(histograms)) == to_json(summarise(alone))
    up = summarise(histograms, "jes_up")["all"]["tt"]["a"]["all"]["m_tt"]
    nominal = results(histograms)["m_tt"]
    assert up.n_solved == nominal.n_solved > 0
    assert np.isnan(up.metrics.rb)
    np.testing.assert_array_equal(up.migration.stability, nominal.migration.stability)


def test_histograms_of_earlier_versions_are_refused(toy):
    histograms = {name: h[{"variation": 0}] for name, h in filled(("tt", "a", toy(10))).items()}
    with pytest.raises(TopRecoError, match="no axis 'variation': an earlier version made them"):
        summarise(histograms)
