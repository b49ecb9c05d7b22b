"""Loose kinematic reconstruction: its definition, its bounds and its symmetries."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.fourvector import boost, from_three_momentum, mass, mass_squared, pt, rapidity
from topreco.solvers.loose import solve

MOMENTA = ("lepton_plus", "lepton_minus", "b", "bbar")


def p4(px, py, pz, m=0.0):
    return from_three_momentum(np.array([[px, py, pz]], dtype=float), m)


def one_event(lepton_plus, lepton_minus, met):
    """Arguments with two fixed b jets."""
    jets = {"b": p4(60.0, -20.0, 30.0, 5.0), "bbar": p4(-50.0, 10.0, -70.0, 8.0)}
    return {"lepton_plus": lepton_plus, "lepton_minus": lepton_minus, "met": np.array([met])} | jets


@pytest.fixture
def arguments(exact_events):
    drawn = exact_events(5000, seed=1).arguments
    rng = np.random.default_rng(2)
    return {name: drawn[name] for name in MOMENTA} | {"met": drawn["met"] + rng.normal(0, 30, (5000, 2))}


def without_b(arguments, **options):
    """Answer without its b jets: ℓℓνν."""
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


def test_rotation_about_the_beam(arguments):
    def rotate(p, first=1):
        turned = p.copy()
        x, y = p[..., first], p[..., first + 1]
        turned[..., first] = np.cos(0.7) * x - np.sin(0.7) * y
        turned[..., first + 1] = np.sin(0.7) * x + np.cos(0.7) * y
        return turned

    turned = {name: rotate(arguments[name]) for name in MOMENTA} | {"met": rotate(arguments["met"], 0)}
    assert solve(**turned).ttbar == pytest.approx(rotate(solve(**arguments).ttbar))


@pytest.mark.parametrize("velocity", [0.5, -0.9])
def test_boost_along_the_beam(arguments, velocity):
    """Exact also where a bound is active."""
    along = np.array([0.0, 0.0, velocity])
    boosted = arguments | {name: boost(arguments[name], along) for name in MOMENTA}
    assert solve(**boosted).ttbar == pytest.approx(boost(solve(**arguments).ttbar, along), rel=1e-9, abs=1e-6)


def test_events_do_not_know_each_other(arguments):
    order = np.random.default_rng(4).permutation(5000)
    found = solve(**{name: value[order] for name, value in arguments.items()})
    assert np.array_equal(found.ttbar, solve(**arguments).ttbar[order])


def test_w_mass_per_event(arguments):
    m_w = np.where(np.arange(5000) < 2500, 80.4, 90.0)
    found = solve(**arguments, m_w=m_w).ttbar
    assert np.array_equal(found[:2500], solve(**arguments).ttbar[:2500])
    assert np.array_equal(found[2500:], solve(**arguments, m_w=90.0).ttbar[2500:])


def test_vanishing_met(arguments):
    arguments["met"][:] = 0
    assert solve(**arguments).valid.all()


def test_no_events():
    result = solve(*[np.empty((0, 4))] * 4, np.empty((0, 2)))
    assert result.ttbar.shape == (0, 4)
    assert result.valid.shape == (0,)


BAD = {
    "NaN momentum": {"b": [np.nan, 1.0, 2.0, 3.0]},
    "NaN in one component": {"lepton_minus": [50.0, 1.0, np.nan, 3.0]},
    "infinite energy": {"bbar": [np.inf, 1.0, 2.0, 3.0]},
    "infinite momentum": {"lepton_plus": [50.0, np.inf, 2.0, 3.0]},
    "zero jet": {"b": [0.0, 0.0, 0.0, 0.0]},
    "negative energy": {"bbar": [-90.0, 30.0, 20.0, 10.0]},
    "spacelike jet": {"bbar": [30.0, 30.0, 40.0, 10.0]},
    "leptons along the beam": {"lepton_plus": [50.0, 0.0, 0.0, 50.0], "lepton_minus": [90.0, 0.0, 0.0, 90.0]},
    "NaN MET": {"met": [np.nan, 10.0]},
    "infinite MET": {"met": [np.inf, 10.0]},
    "huge numbers": {"lepton_plus": [1e200, 1e199, 0.0, 0.0]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_input_without_an_answer(arguments, change):
    """It has none, and leaves the events beside it alone."""
    expected = solve(**arguments).ttbar
    for name, value in change.items():
        arguments[name][1] = value
    found = solve(**arguments)
    assert not found.valid[1]
    assert np.isnan(found.ttbar[1]).all()
    assert found.valid.sum() == 4999
    assert np.array_equal(np.delete(found.ttbar, 1, 0), np.delete(expected, 1, 0))


@pytest.mark.parametrize("m_w", [0.0, -80.4, np.nan, np.inf])
def test_w_mass_without_a_meaning(arguments, m_w):
    assert not solve(**arguments, m_w=m_w).valid.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": np.ones((3, 3))}, r"loose.solve: b has shape \(3, 3\), expected \(5000, 4\)"),
        ({"lepton_plus": np.ones(4)}, r"lepton_plus has shape \(4,\), expected \(n, 4\)"),
        ({"met": np.ones((5000, 4))}, r"met has shape \(5000, 4\), expected \(5000, 2\)"),
        ({"m_w": np.ones(2)}, r"m_w has shape \(2,\), expected \(\) or \(5000,\)"),
        ({"m_w": "heavy"}, "m_w is not an array of numbers"),
    ],
)
def test_wrong_arguments(arguments, change, message):
    with pytest.raises(TopRecoError, match=message):
        solve(**(arguments | change))
