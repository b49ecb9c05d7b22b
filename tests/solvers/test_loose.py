"""Loose kinematic reconstruction: its definition and its bounds."""

import numpy as np
import pytest

from topreco.core.fourvector import from_three_momentum, mass, mass_squared, pt, rapidity
from topreco.solvers.loose import solve

MOMENTA = ("lepton_plus", "lepton_minus", "b", "bbar")


def p4(px, py, pz, m=0.0):
    return from_three_momentum(np.array([[px, py, pz]], dtype=float), m)


def one_event(lepton_plus, lepton_minus, met):
    """Arguments with two fixed b jets."""
    jets = {"b": p4(60.0, -20.0, 30.0, 5.0), "bbar": p4(-50.0, 10.0, -70.0, 8.0)}
    return {"lepton_plus": lepton_plus, "lepton_minus": lepton_minus, "met": np.array([met])} | jets


@pytest.fixture
def arguments(smeared_events):
    return {name: value for name, value in smeared_events(5000, 1).items() if not name.startswith("m_")}


def without_b(arguments, **options):
    """The tt̄ system without its b jets: ℓℓνν."""
    return solve(**arguments, **options).ttbar - arguments["b"] - arguments["bbar"]


def test_neutrinos_take_energy_and_pz_of_the_leptons():
    a = one_event(p4(90, 20, 40), p4(-100, 30, -60), (-20.0, 35.0))
    dilepton = a["lepton_plus"] + a["lepton_minus"]
    expected = np.array([[2 * dilepton[0, 0], dilepton[0, 1] - 20, dilepton[0, 2] + 35, 2 * dilepton[0, 3]]])
    # Neither bound is active here.
    assert mass(expected)[0] > 160.8
    assert dilepton[0, 0] ** 2 > 20**2 + 35**2 + dilepton[0, 3] ** 2
    assert without_b(a) == pytest.approx(expected)


def test_neutrinos_are_not_spacelike():
    """MET beyond the transverse mass of the leptons: a massless pair at the rapidity of the leptons."""
    a = one_event(p4(90, 20, 40), p4(100, 30, 60), (-200.0, -150.0))
    dilepton = a["lepton_plus"] + a["lepton_minus"]
    neutrinos = without_b(a) - dilepton
    assert neutrinos[0, 1:3] == pytest.approx([-200.0, -150.0])
    assert mass_squared(neutrinos)[0] == pytest.approx(0, abs=1e-6)
    assert rapidity(neutrinos) == pytest.approx(rapidity(dilepton))


def test_w_pair_has_at_least_twice_the_mass_of_the_w():
    a = one_event(p4(30, 5, 40), p4(20, 15, 35), (25.0, 10.0))
    dilepton = a["lepton_plus"] + a["lepton_minus"]
    for m_w in (80.4, 91.0):
        pair = without_b(a, m_w=m_w)
        assert mass(pair)[0] == pytest.approx(2 * m_w)
        assert pair[0, 1:3] == pytest.approx(dilepton[0, 1:3] + [25.0, 10.0])
        assert rapidity(pair) == pytest.approx(rapidity(dilepton))


def test_bounds_hold_in_every_event(arguments):
    result = solve(**arguments)
    assert result.valid.all()
    pair = without_b(arguments)
    assert mass(pair).min() > 160.8 - 1e-6
    transverse = sum(arguments[name] for name in MOMENTA)[:, 1:3] + arguments["met"]
    assert result.ttbar[:, 1:3] == pytest.approx(transverse)
    dilepton = arguments["lepton_plus"] + arguments["lepton_minus"]
    assert rapidity(pair) == pytest.approx(rapidity(dilepton))


def test_mass_is_close_to_the_truth(exact_events):
    """Without knowledge of the top mass, on exact events."""
    events = exact_events(5000, seed=3)
    arguments = {name: events.arguments[name] for name in (*MOMENTA, "met")}
    truth = sum(arguments[name] for name in MOMENTA) + events.neutrinos.sum(1)
    ttbar = solve(**arguments).ttbar
    ratio = mass(ttbar) / mass(truth)
    assert np.median(ratio) == pytest.approx(1, abs=0.1)
    assert np.quantile(ratio, 0.84) - np.quantile(ratio, 0.16) < 0.35
    assert pt(ttbar) == pytest.approx(pt(truth), abs=1e-6)


def test_exchange_of_leptons_or_jets(arguments):
    a = arguments
    expected = solve(**a).ttbar
    for one, other in (("lepton_plus", "lepton_minus"), ("b", "bbar")):
        assert solve(**(a | {one: a[other], other: a[one]})).ttbar == pytest.approx(expected, rel=1e-12)


def test_w_mass_per_event(arguments):
    m_w = np.where(np.arange(5000) < 2500, 80.4, 90.0)
    found = solve(**arguments, m_w=m_w).ttbar
    assert np.array_equal(found[:2500], solve(**arguments).ttbar[:2500])
    assert np.array_equal(found[2500:], solve(**arguments, m_w=90.0).ttbar[2500:])


def test_vanishing_met(arguments):
    arguments["met"][:] = 0
    assert solve(**arguments).valid.all()
