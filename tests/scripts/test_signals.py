"""Tables of signals: known spins, Fisher information of known templates."""

import dataclasses

import numpy as np
import pytest

from topreco.core.events import toy_events


@pytest.fixture(scope="module")
def fisher(load_script):
    return load_script("scripts/results/fisher.py")


@pytest.fixture(scope="module")
def signals(load_script):
    return load_script("scripts/results/signals.py")


def two_bins(n, share, seed):
    return (np.random.default_rng(seed).random(n) < share).astype(int)


def test_information_of_two_bins(fisher):
    """b = (½, ½), s = (0.2, 0.8): Σ (s − b)²/b = 0.36, and an error of 1/√(0.36 N)."""
    bins = np.concatenate([two_bins(40_000, 0.8, 1), two_bins(40_000, 0.5, 2)])
    is_signal = np.arange(80_000) < 40_000
    weight = np.where(is_signal, 3.0, 0.2)
    assert fisher.information(bins, is_signal, weight) == pytest.approx(0.36, abs=0.01)
    error, uncertainty = fisher.error_of_fraction(bins, is_signal, weight, 100)
    assert error == pytest.approx(1 / 6, rel=0.02)
    assert 0 < uncertainty < 0.03 * error


def test_rough_templates_have_no_information_of_their_own(fisher):
    """Many bins, few events, equal distributions: without the correction the information is 0.2."""
    found = []
    for seed in range(40):
        bins = np.random.default_rng(seed).integers(0, 50, 1000)
        found.append(fisher.information(bins, np.arange(1000) < 500, np.ones(1000)))
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(40)
    assert np.std(found) < 0.1


def test_bins(fisher):
    edges = [np.array([0.0, 1, 2]), np.array([-1.0, 0, 1])]
    values = [np.array([0.5, 1.5, -3, 9, np.nan]), np.array([-0.5, 0.5, 0.5, -0.5, 0])]
    assert fisher.joint_bins(values, edges).tolist() == [0, 3, 1, 2, 4]


def test_a_network_finds_what_is_there(fisher):
    """MET of twice the width: the network has most of the information of the best observable, |MET|."""
    background, signal = (toy_events(2500, max_jets=3, seed=seed) for seed in (1, 2))
    signal = dataclasses.replace(signal, met=2 * signal.met, run=signal.run + 1)
    (row,) = fisher.rows_of(background, signal, [], 1000)
    met = np.concatenate([np.hypot(*events.met.T) for events in (signal, background)])
    edges = np.quantile(met[2500:], np.linspace(0, 1, 21)[1:-1])
    best, _ = fisher.error_of_fraction(
        np.searchsorted(edges, met), np.arange(5000) < 2500, np.ones(5000), 1000
    )
    assert 0.85 * best < row["error of fraction"] < 1.35 * best


@pytest.mark.sim
def test_slopes_at_generated_level(signals, monkeypatch):
    pytest.importorskip("pythia8mc")
    name = "threshold"
    monkeypatch.setattr(signals, "GENERATED", {name: signals.GENERATED[name]})
    (row,) = signals.generated(40)
    assert row["decays"] > 100
    for quantity in ("slope c_hel", "slope c_han", "D"):
        assert abs(row[quantity] - row[f"{quantity} theory"]) < 4 * row[f"{quantity} error"]
    assert (row["slope c_hel theory"], row["slope c_han theory"], row["D theory"]) == (1, 0.3333, -1)


def test_weak_supervision_on_toys(load_script):
    """Without signal nothing is learned; with labels, and with many injected events, MET is found."""
    weak = load_script("scripts/results/weak_supervision.py")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 5000))
    assert weak.improvement(scores[0], scores[1], 0.2) == pytest.approx(np.sqrt(0.2), abs=0.03)
    assert weak.improvement(scores[0] + 9, scores[1], 0.2) == pytest.approx(1 / np.sqrt(0.2), abs=0.01)
    background, signal = (toy_events(1200, max_jets=3, seed=seed) for seed in (1, 2))
    signal = dataclasses.replace(signal, met=4 * signal.met, run=signal.run + 1)
    none, many, supervised = weak.rows_of(background, signal, [0, 400], 2)
    key = "improvement at 0.2"
    assert none[key] < 1.2
    assert many[key] > 1.4
    assert supervised[key] > 1.4
    assert supervised["injected"] == "supervised"
