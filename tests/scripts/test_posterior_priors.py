"""The script of priors and spectra behind docs/POSTERIOR.md: answers that are known."""

from dataclasses import replace

import numpy as np
import pytest

from topreco.core.events import Truth, toy_events
from topreco.core.fourvector import from_three_momentum
from topreco.core.prior import M_TT_EDGES, Spectra


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("scripts/results/posterior_priors.py")


@pytest.fixture(scope="module")
def sample(script):
    """Tops back to back in two files, with a falling spectrum."""
    events = toy_events(6000, seed=1)
    rng = np.random.default_rng(1)
    n = len(events)
    direction = rng.normal(size=(n, 3))
    momentum = rng.exponential(150.0, n)[:, None] * direction / np.linalg.norm(direction, axis=1)[:, None]
    tops = from_three_momentum(np.stack([momentum, -momentum], axis=1), 172.5)
    absent = np.full((n, 2, 4), np.nan)
    truth = Truth(
        tops, absent, absent, absent, absent, np.zeros((n, 2), bool), np.ones(n, bool), np.zeros(n, np.int8)
    )
    file = np.arange(n) % 2
    spectra = [
        Spectra.of(truth[file == i], np.ones(n // 2), truth[file == i], np.ones(n // 2), complete=False)
        for i in range(2)
    ]
    return script.Sample("toy", replace(events, weight=np.ones(n)), truth, file, spectra)


def test_perfect_answers_unfold_to_the_truth(script, sample, monkeypatch):
    monkeypatch.setattr(script, "_REPLICAS", 20)
    probability = np.eye(len(M_TT_EDGES) - 1)[sample.fine]
    factor = np.linspace(0.8, 1.5, len(M_TT_EDGES) - 1)
    unfolder = script.Unfolder(sample, sample, probability, sample.m_tt, factor)
    found = unfolder.close()
    for name in ("EM", "EM, measured prior"):
        # Of a bin that is empty in the other file nothing is known.
        np.testing.assert_allclose(found[name].difference, 0, atol=5)
    inverted = found["inversion"]
    assert inverted.truth.sum() == pytest.approx(factor[sample.fine].sum())
    assert np.abs(inverted.difference / inverted.truth).max() < 0.02


def test_errors_of_perfect_answers_are_those_of_the_truth(script, sample):
    true_bin = np.searchsorted(script.STARTS, sample.fine, side="right") - 1
    region = script.delta_phi_bin(sample.events)
    ones = np.ones(len(region))
    ratio = script.unfolded_errors(true_bin, true_bin, region, ones, len(script.STARTS))
    np.testing.assert_allclose(ratio, 1)
    some = np.where(np.arange(len(region)) % 2, true_bin, -1)
    half = script.unfolded_errors(true_bin, some, region, ones, len(script.STARTS))
    np.testing.assert_allclose(half, np.sqrt(2), rtol=0.1)


def test_changes_of_the_spectrum(script, sample):
    changed = script.changes(sample.spectra[0] + sample.spectra[1])
    generated = np.bincount(sample.fine, minlength=len(M_TT_EDGES) - 1)
    assert (changed["excess"] * generated).sum() == pytest.approx(1.03 * generated.sum())
    assert (changed["excess"][2:] == 1).all()
    assert changed["slope"][0] < 1 < changed["slope"][-1]
