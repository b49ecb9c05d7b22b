"""Pairs of observables in one response matrix."""

import copy
import pickle

import hist
import numpy as np
import pytest
import uproot
import yaml

from topreco.config import ConfigError, RunConfig, UnfoldingConfig, build_config
from topreco.core.errors import TopRecoError
from topreco.core.observables import compute_observables, pair_values
from topreco.evaluation.pairs import coordinate, members, unrolled_axis, unrolled_of
from topreco.evaluation.responses import book_responses, fill_generated, fill_responses, responses_of
from topreco.measurement.export import collect_responses, read_json, write_responses
from topreco.measurement.regularisation import signal_of, tikhonov
from topreco.measurement.unfolding import BinRequirements, read_response

TRUTH = {"m_tt": [345, 450, 1000], "c_hel": [-1, 0, 1]}
RECO = {"m_tt": [300, 345, 450, 1000], "c_hel": [-1, -0.5, 0, 0.5, 1]}
NAME = "m_tt_x_c_hel"
CONFIG = UnfoldingConfig(
    pairs=[{"truth": TRUTH, "reco": RECO}], observables={"m_tt": {"truth": TRUTH["m_tt"]}}
)


@pytest.fixture(scope="module")
def filled(toy):
    events, pair, truth = toy(3000, signed=True)
    histograms = book_responses(CONFIG)
    weights = [("nominal", np.tile(events.weight, 2))]
    both = type(truth).concatenate([truth] * 2)
    fill_generated(histograms, CONFIG.phase_space, dataset="TT", truth=both, weights=weights)
    where = {"dataset": "TT", "method": "m", "events": events, "pair": pair, "truth": truth}
    fill_responses(histograms, CONFIG.phase_space, **where)
    true = compute_observables(list(TRUTH), truth.tops, truth.tops.sum(1), truth.lepton, truth.valid)
    return histograms, events, pair_values(pair, events.lepton_p4, list(RECO)), true


def test_against_a_histogram_of_four_dimensions(filled):
    """The unrolled matrix is that of numpy in four dimensions, and nothing is lost outside of it."""
    histograms, events, reco, true = filled
    response = read_response(histograms, NAME, dataset="TT", method="m")
    columns = np.stack([true["m_tt"], true["c_hel"], reco["m_tt"], reco["c_hel"]], axis=-1)
    solved = np.isfinite(columns).all(axis=1)
    edges = [*TRUTH.values(), *RECO.values()]
    by_hand = np.histogramdd(columns[solved], edges, weights=events.weight[solved])[0]
    np.testing.assert_allclose(response.response.value[1:-1, 1:-1], by_hand.reshape(4, 12))
    assert response.response.value.sum() == pytest.approx(events.weight[solved].sum())
    np.testing.assert_array_equal(response.response.value[0], 0)
    spectrum = np.histogramdd(columns[:, :2], edges[:2], weights=events.weight)[0].ravel()
    np.testing.assert_allclose(response.generated.value[1:-1], 2 * spectrum)
    measured = np.histogramdd(columns[solved][:, 2:], edges[2:], weights=events.weight[solved])[0].ravel()
    np.testing.assert_allclose(response.measured.value[1:-1], measured)
    assert response.truth_bins[1] == "345 to 450, 0 to 1"
    assert np.isfinite(response.condition_number)


def test_purity_of_a_pair(filled):
    """Purity and stability, with reconstructed bins that divide those of truth in both observables."""
    histograms, events, reco, true = filled
    response = read_response(histograms, NAME, dataset="TT", method="m")
    place = {
        name: [np.digitize(values[name], TRUTH[name]) for values in (true, reco)] for name in TRUTH
    }  # fmt: skip
    solved = np.isfinite(reco["m_tt"]) & np.isfinite(reco["c_hel"])
    for number, (i, j) in enumerate((i, j) for i in (1, 2) for j in (1, 2)):
        generated, found = (
            solved & (place["m_tt"][k] == i) & (place["c_hel"][k] == j) for k in (0, 1)
        )  # fmt: skip
        both = events.weight[generated & found].sum()
        assert response.purity.value[number] == pytest.approx(both / events.weight[found].sum())
        assert response.stability.value[number] == pytest.approx(both / events.weight[generated].sum())


def test_inversion_closes(filled):
    """Another spectrum in two dimensions, folded and inverted."""
    response = read_response(filled[0], NAME, dataset="TT", method="m")
    truth = response.generated.value * np.array([0, 0.5, 1.5, 0.8, 2.0, 0])
    matrix = response.probability[1:-1, 1:-1].T
    folded = response.fold(truth)[1:-1]
    found = np.linalg.lstsq(matrix, folded, rcond=None)[0]
    np.testing.assert_allclose(found, truth[1:-1], rtol=1e-9)


def test_independent_pseudo_data_close(toy):
    """The matrix of one sample unfolds another one in two dimensions: χ² to its truth with the covariance."""
    histograms = {}
    for name, n, seed in (("mc", 30_000, 1), ("data", 8000, 2)):
        events, pair, truth = toy(n, seed=seed, smear=0.1)
        found = book_responses(CONFIG)
        options = {"dataset": "TT", "truth": truth}
        fill_generated(found, CONFIG.phase_space, weights=[("nominal", events.weight)], **options)
        fill_responses(found, CONFIG.phase_space, method="m", events=events, pair=pair, **options)
        histograms[name] = read_response(found, NAME, dataset="TT", method="m")
    mc, data = histograms["mc"], histograms["data"]
    signal = signal_of(mc, data.measured, scale=data.measured.value.sum() / mc.measured.value.sum())
    unfolded = tikhonov(mc, signal, 0.0)
    chi2 = unfolded.chi2_to(data.generated.value[1:-1])
    # Data and their truth are the same events, and the matrix has four times as many.
    assert chi2 < 4 + 3 * np.sqrt(2 * 4)
    # Without the matrix it does not close: bins of the measured spectrum are not those of the truth.
    raw = signal.value.reshape(3, 2, 2).sum(axis=2)[1:].ravel() / mc.acceptance.value
    assert np.abs(raw / data.generated.value[1:-1] - 1).max() > 0.05


def test_files_of_a_pair(filled, tmp_path):
    """JSON and ROOT bring the matrix back, YAML the bins, and optimised bins leave a pair as it is."""
    histograms = filled[0]
    found = collect_responses(histograms, bins=BinRequirements(0.1, 0.1, 5))
    key = next(key for key in found if key.observable == NAME)
    write_responses(found, tmp_path)
    again = read_json(tmp_path / "m.json")[key]
    assert again.truth_axes == found[key].truth_axes == unrolled_of(found[key].axes[0])
    np.testing.assert_array_equal(again.response.value, found[key].response.value)
    np.testing.assert_array_equal(again.purity.value, found[key].purity.value)
    bins = yaml.safe_load((tmp_path / "m.yaml").read_text())["unfolding"]
    assert UnfoldingConfig(**bins).pairs == CONFIG.pairs
    with uproot.open(tmp_path / "responses.root") as root:
        stored = root[f"m/TT/{NAME}/all/nominal/response"].values()
    np.testing.assert_array_equal(stored.T, found[key].response.value[1:-1, 1:-1])
    assert "345 to 450, 0 to 1" in (tmp_path / "m.tex").read_text()
    with pytest.raises(TopRecoError, match="a pair of observables keeps its bins"):
        found[key].merged([0, 4], [0, 12])


def test_bins_survive_pickling_and_keep_others_out():
    one, other = (
        hist.Hist(unrolled_axis("truth", (("m_tt", (300.0, x, 900.0)),), "x"), storage=hist.storage.Weight())
        for x in (400.0, 500.0)
    )
    for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one), one + one):
        assert unrolled_of(again.axes[0]) == (("m_tt", (300.0, 400.0, 900.0)),)
    with pytest.raises(ValueError, match="mergable"):
        one + other


def test_coordinates():
    values = {"m_tt": np.array([350.0, 500, 200, np.nan, 450]), "c_hel": np.array([-0.5, 0.0, 0, 0, 1.0])}
    unrolled = tuple((name, tuple(edges)) for name, edges in TRUTH.items())
    found, known = coordinate(NAME, unrolled, values)
    np.testing.assert_array_equal(found, [0.5, 3.5, 4.0, 4.0, 4.0])
    np.testing.assert_array_equal(known, [True, True, True, False, True])
    assert members(NAME) == ("m_tt", "c_hel")
    assert members("delta_phi_ll") == ("delta_phi_ll",)
    assert responses_of(book_responses(CONFIG)) == ("m_tt", NAME)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([{"truth": {"m_tt": [1, 2]}}], "edges of two observables expected, found m_tt"),
        (
            [{"truth": {"m_tt": [1, 2], "c_hell": [0, 1]}}],
            "unknown observable 'c_hell'; did you mean 'c_hel'",
        ),
        (
            [{"truth": TRUTH, "reco": {"c_hel": [0, 1], "m_tt": [1, 2]}}],
            "'reco' has c_hel, m_tt; m_tt, c_hel",
        ),
        ([{"truth": TRUTH}, {"truth": TRUTH, "reco": RECO}], "a pair is given twice"),
        ([{"truth": {"m_tt": [2, 1], "c_hel": [0, 1]}}], "rising edges expected"),
    ],
)
def test_what_is_no_pair(pairs, message):
    with pytest.raises(ConfigError, match=message):
        build_config(RunConfig, {"unfolding": {"pairs": pairs}}, "test")
