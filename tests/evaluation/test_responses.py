"""Filling of response matrices: what is counted where, and that chunks merge to the whole."""

import dataclasses

import numpy as np
import pytest

from topreco.config import PhaseSpaceConfig, UnfoldingConfig
from topreco.core import fourvector
from topreco.core.events import CHANNELS
from topreco.core.observables import OBSERVABLES
from topreco.evaluation.histograms import add_up
from topreco.evaluation.responses import (
    book_responses,
    fill_generated,
    fill_responses,
    in_phase_space,
    responses_of,
)
from topreco.measurement.unfolding import read_response

CONFIG = UnfoldingConfig(
    observables={
        "m_tt": {"truth": [345, 450, 600, 1000], "reco": [300, 345, 400, 450, 500, 600, 800, 1000]},
        "y_top": {"truth": [-2, 0, 2]},
        "c_hel": {},
    }
)


def sample(toy, n=3000, **options):
    """Events, reconstruction, truth; some events are not of the phase space, some have no tops at all."""
    events, pair, truth = toy(n, **options)
    rng = np.random.default_rng(3)
    tops = np.where((rng.random(n) < 0.1)[:, None, None], np.nan, truth.tops)
    truth = dataclasses.replace(truth, tops=tops, dileptonic=rng.random(n) < 0.8)
    return events, pair, truth


def filled(events, pair, truth=None, weights=None):
    histograms = book_responses(CONFIG)
    common = {"histograms": histograms, "phase_space": CONFIG.phase_space, "dataset": "tt"}
    if truth is not None:
        fill_generated(**common, truth=truth, weights=[("nominal", events.weight)])
    fill_responses(**common, method="a", events=events, pair=pair, truth=truth, weights=weights)
    return histograms


def read(histograms, name, **options):
    return read_response(histograms, name, dataset="tt", method="a", **options)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_any_split_merges_to_the_whole(toy, seed, signed):
    events, pair, truth = sample(toy, signed=signed)
    weight = events.weight if not signed else events.weight * np.random.default_rng(1).uniform(0.5, 2, 3000)
    events = dataclasses.replace(events, weight=weight)
    whole = filled(events, pair, truth)
    chunk = np.random.default_rng(seed).integers(0, 5, len(events))
    parts = [filled(*(column[chunk == i] for column in (events, pair, truth))) for i in range(5)]
    merged = add_up([book_responses(CONFIG), *parts])
    for key, histogram in whole.items():
        for field in ("value", "variance"):
            found, expected = merged[key].view(flow=True)[field], histogram.view(flow=True)[field]
            if signed:
                np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9, err_msg=key)
            else:
                np.testing.assert_array_equal(found, expected, err_msg=key)
        assert histogram.view(flow=True)["variance"].any(), key


@pytest.mark.parametrize("channel", ["all", *CHANNELS])
@pytest.mark.parametrize("name", CONFIG.observables)
def test_every_event_is_counted_where_it_belongs(toy, name, channel):
    events, pair, truth = sample(toy, efficiency=0.7)
    response = read(filled(events, pair, truth), name, channel=channel)
    observable = OBSERVABLES[name]
    here = np.ones(len(events), bool) if channel == "all" else events.channel == CHANNELS.index(channel)
    solved = here & pair.valid
    inside = truth.dileptonic & truth.valid
    pred = observable.compute(pair.p4, pair.system, events.lepton_p4)
    true = observable.compute(truth.tops, truth.tops.sum(axis=1), truth.lepton)
    truth_bins, reco_bins = (
        [-np.inf, *edges, np.inf] for edges in (response.truth_edges, response.reco_edges)
    )
    signal = solved & inside
    expected = {
        "response": np.histogram2d(true[signal], pred[signal], bins=[truth_bins, reco_bins])[0],
        "measured": np.histogram(pred[solved], bins=reco_bins)[0],
        "fakes": np.histogram(pred[solved & ~inside], bins=reco_bins)[0],
        "not_reconstructed": np.histogram(true[here & ~pair.valid & inside], bins=truth_bins)[0],
        "generated": np.histogram(true[inside], bins=truth_bins)[0],
    }
    for kind, counts in expected.items():
        sums = getattr(response, kind)
        np.testing.assert_array_equal(sums.value, counts, err_msg=kind)
        np.testing.assert_array_equal(sums.variance, counts, err_msg=kind)
        assert counts.sum() > 0, kind


def test_data_are_measured_and_nothing_else(toy):
    events, pair, _ = toy(500)
    histograms = filled(events, pair)
    for key, histogram in histograms.items():
        assert histogram.view(flow=True)["variance"].any() == key.startswith("measured/"), key
    response = read(histograms, "y_top")
    assert response.measured.value.sum() == pair.valid.sum()
    assert not response.has_truth


def test_a_process_without_tops_is_all_fakes(toy):
    events, pair, truth = toy(500)
    truth = dataclasses.replace(truth, tops=np.full((500, 2, 4), np.nan))
    response = read(filled(events, pair, truth), "m_tt")
    np.testing.assert_array_equal(response.fakes.value, response.measured.value)
    assert not response.has_truth


def test_weights_of_variations_fill_an_axis(toy):
    events, pair, truth = sample(toy)
    weights = {"nominal": events.weight, "pdf": 2 * events.weight}
    histograms = filled(events, pair, truth, weights)
    nominal, doubled = (read(histograms, "m_tt", variation=name) for name in weights)
    np.testing.assert_array_equal(doubled.response.value, 2 * nominal.response.value)
    np.testing.assert_array_equal(doubled.response.variance, 4 * nominal.response.variance)
    # The generator was not varied.
    np.testing.assert_array_equal(doubled.generated.value, nominal.generated.value)


def test_without_edges_bins_are_fine_ones():
    histograms = book_responses(UnfoldingConfig(observables=["m_tt", "angles"]))
    assert responses_of(histograms) == ("m_tt", "delta_abs_y", "cos_theta_star", "delta_phi_ll")
    truth, reco = histograms["response/m_tt"].axes[-2:]
    assert len(truth) > 50
    np.testing.assert_array_equal(truth.edges, reco.edges)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [True, True, True, False, False]),
        ({"decay": "prompt"}, [True, False, True, False, False]),
        ({"decay": "any"}, [True, True, True, True, False]),
        ({"lepton_pt_min": 20}, [True, True, False, False, False]),
        ({"lepton_eta_max": 2.4}, [False, True, True, False, False]),
        ({"decay": "any", "b_pt_min": 30}, [False, True, True, True, False]),
        ({"decay": "any", "b_eta_max": 2.0}, [True, True, False, True, False]),
    ],
)
def test_phase_space(toy, config, expected):
    """Event 0: central only in b; 1: via τ; 2: soft lepton; 3: not dileptonic, no leptons; 4: no tops."""
    _, _, truth = toy(5)
    zero = np.zeros((5, 2))
    pt, eta = np.full((5, 2), 50.0), zero.copy()
    pt[2, 1], eta[0, 0] = 15.0, 2.6
    lepton = fourvector.from_pt_eta_phi_mass(pt, eta, zero, zero)
    lepton[3] = np.nan
    pt, eta = np.full((5, 2), 50.0), zero.copy()
    pt[0, 0], eta[2, 1] = 25.0, -2.2
    b = fourvector.from_pt_eta_phi_mass(pt, eta, zero, zero)
    tops = truth.tops.copy()
    tops[4] = np.nan
    via_tau = np.array([False, True, False, False, False])[:, None] & np.array([True, False])
    truth = dataclasses.replace(
        truth, tops=tops, lepton=lepton, b=b, via_tau=via_tau, dileptonic=np.arange(5) != 3
    )
    assert in_phase_space(truth, PhaseSpaceConfig(**config)).tolist() == expected


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("pair", "20 events but 10 entries in pair"),
        ("truth", "20 events but 10 entries in truth"),
        ("events", "1 of 20 weights are not finite"),
    ],
)
def test_unusable_input_is_refused(toy, what, message):
    events, pair, truth = toy(20)
    weight = np.where(np.arange(20) == 3, np.nan, 1.0)
    changed = {"pair": pair[:10], "truth": truth[:10], "events": dataclasses.replace(events, weight=weight)}
    sample = {"events": events, "pair": pair, "truth": truth, what: changed[what]}
    with pytest.raises(ValueError, match=message):
        fill_responses(book_responses(CONFIG), CONFIG.phase_space, dataset="tt", method="a", **sample)
    if what == "events":
        with pytest.raises(ValueError, match=r"generated weight .*1 of 20 weights are not finite"):
            filled(**sample)
