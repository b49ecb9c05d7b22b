"""The study of learned and true ratios behind docs/UNFOLDING.md: its tools, and the true ratio itself."""

import dataclasses

import numpy as np
import pytest


@pytest.fixture(scope="module")
def script(load_script):
    pytest.importorskip("pythia8mc", reason="needs the extra 'sim'")
    return load_script("scripts/results/ratio_spin.py")


def test_closure_and_classifier_see_a_difference(script):
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.3, 1, (4000, 2)), rng.normal(0, 1, (4000, 2))
    exact = np.exp(0.3 * b.sum(1) - 0.09)
    assert script.closure(a[:, 0], b[:, 0], np.ones(4000))[2] < 1e-6
    assert script.closure(a[:, 0], b[:, 0], exact)[2] > 1e-3
    before, error = script.auc(a, b, np.ones(4000))
    assert before > 0.5 + 5 * error
    assert script.auc(a, b, exact)[0] == pytest.approx(0.5, abs=4 * error)


@pytest.mark.sim
def test_true_ratio(script):
    """The share of gluons is that of the events, and the ratio has the mean 1."""
    truth = script.hard_events(script.pythia(5), 6000)
    true = script.TrueRatio()
    share = true.gluons(truth.tops)
    for part in np.array_split(np.argsort(share), 3):
        found = (truth.production[part] == 0).mean()
        assert found == pytest.approx(share[part].mean(), abs=4 * np.sqrt(0.12 / len(part)))
    ratio = true(truth)
    assert (ratio > 0).all()
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    # Without shower there is the transverse momentum of the incoming partons alone.
    assert np.abs(truth.tops.sum(1)[:, 1:3]).max() < 15


@pytest.mark.sim
def test_what_learns_approaches_the_true_ratio(script, monkeypatch):
    """The linear form from few events; the small networks need more, and are only better than nothing."""
    truth = script.hard_events(script.pythia(6), 9000)
    accepted = 2 * np.random.default_rng(3).random(len(truth)) < script.event_spin_weight(truth)
    a, b = truth[:6000][accepted[:6000]], truth[6000:]
    true = np.log(script.TrueRatio()(b))
    assert np.corrcoef(script.linear_form(a, b), true)[0, 1] > 0.6
    monkeypatch.setattr(script, "STEPS", 200)
    monkeypatch.setattr(script, "MEMBERS", 1)
    assert np.corrcoef(script.small_networks(a, b), true)[0, 1] > 0.2


@pytest.mark.sim
def test_the_ratio_does_not_change_when_beams_are_exchanged(script):
    """Neither the inputs nor the true ratio do, when z is reflected."""
    truth = script.hard_events(script.pythia(7), 200)
    reflected = dataclasses.replace(
        truth,
        **{
            name: getattr(truth, name) * np.array([1, 1, 1, -1])
            for name in ("tops", "w", "b", "lepton", "neutrino")
        },
    )
    for found, wanted in zip(script.inputs(reflected), script.inputs(truth), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-9)
    true = script.TrueRatio()
    np.testing.assert_allclose(true(reflected), true(truth), rtol=1e-6)
