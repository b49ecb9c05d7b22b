"""Neutrino weighting: the mass constraints, the maximum of the weight and the symmetries."""

import numba
import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.fourvector import boost, eta, from_three_momentum, mass
from topreco.solvers import ellipse, sonnenschein
from topreco.solvers.neutrino_weighting import solve

MOMENTA = ("lepton_plus", "lepton_minus", "b", "bbar")
MASSES = ("m_top", "m_antitop", "m_w_plus", "m_w_minus")
# No neutrino is cut away.
ALL_ETA = 50.0


def visible(arguments):
    return sum(arguments[name] for name in MOMENTA)


def deviation(a, b):
    """Largest difference of neutrino pairs, relative to the larger energy of the second, shape (n,)."""
    return np.abs(a - b).max((1, 2)) / b[..., 0].max(1)


@pytest.fixture(scope="module")
def smeared(exact_events):
    """Function (n, seed) that draws arguments that no exact event has."""

    def draw(n, seed):
        arguments = exact_events(n, seed).arguments
        rng = np.random.default_rng(seed)
        for name in MOMENTA:
            arguments[name] = arguments[name] * rng.normal(1, 0.15, (n, 1))
        arguments["met"] = arguments["met"] + rng.normal(0, 25, (n, 2))
        return arguments

    return draw


def test_mass_constraints(smeared, constraint_residuals):
    arguments = smeared(10_000, 1)
    result = solve(**arguments)
    solved = np.isfinite(result.weight)
    assert 0.8 < solved.mean() < 0.95
    assert np.array_equal(solved, np.isfinite(result.neutrinos).all((1, 2)))
    residual = constraint_residuals(arguments, result.neutrinos[:, None], met=False)
    assert np.nanmax(residual) < 1e-9
    squared = result.neutrinos[..., 0] ** 2 - (result.neutrinos[..., 1:] ** 2).sum(-1)
    assert np.nanmax(np.abs(squared) / result.neutrinos[..., 0] ** 2) < 1e-12


def test_weight_is_that_of_met(smeared):
    arguments = smeared(2000, 2)
    for sigma in (10.0, 30.0):
        result = solve(**arguments, sigma_met=sigma)
        excess = result.neutrinos[..., 1:3].sum(1) - arguments["met"]
        expected = np.exp(-(excess**2).sum(1) / (2 * sigma**2))
        assert result.weight == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_exact_events_have_unit_weight(exact_events, constraint_residuals):
    events = exact_events(10_000, seed=3)
    result = solve(**events.arguments, eta_max=ALL_ETA)
    assert result.weight.min() > 1 - 1e-6
    assert (constraint_residuals(events.arguments, result.neutrinos[:, None]) < 1e-3).mean() > 0.999


def test_unit_weight_on_partons(parton_events):
    assert (solve(**parton_events.arguments).weight > 1 - 1e-6).mean() > 0.999


def test_lightest_exact_solution_is_found(exact_events):
    events = exact_events(10_000, seed=4)
    exact = sonnenschein.solve(**events.arguments).neutrinos[:, 0]
    for n_eta, agreement in ((20, 0.94), (40, 0.97), (100, 0.99)):
        found = solve(**events.arguments, eta_max=ALL_ETA, n_eta=n_eta).neutrinos
        assert (deviation(found, exact) < 1e-3).mean() > agreement


def test_agrees_with_the_closest_approach_of_the_ellipses(smeared):
    """Both minimise the violation of MET under the mass constraints."""
    arguments = smeared(10_000, 5)
    other = ellipse.closest_approach(**arguments)
    result = solve(**arguments, eta_max=ALL_ETA)
    missed = np.linalg.norm(result.neutrinos[..., 1:3].sum(1) - arguments["met"], axis=1)
    both = np.isfinite(missed) & np.isfinite(other.distance)
    assert both.sum() >= 0.999 * np.isfinite(other.distance).sum()
    assert (missed[both] < other.distance[both] + 0.02).mean() > 0.999


def test_grid_matters_little(smeared):
    arguments = smeared(5000, 6)
    coarse, fine = (solve(**arguments, n_eta=n_eta) for n_eta in (40, 120))
    assert np.array_equal(np.isnan(coarse.weight), np.isnan(fine.weight))
    solved = np.isfinite(fine.weight)
    assert (np.abs(coarse.weight - fine.weight)[solved] < 1e-6).mean() > 0.999
    assert (deviation(coarse.neutrinos, fine.neutrinos)[solved] < 1e-3).mean() > 0.99


def plain_scan(lepton, b, m_top, m_w, pseudorapidity):
    """Transverse momenta of a leg's neutrino, step by step in η with textbook algebra, shape (2, 2 steps)."""
    # 2 k·p_ν = M² − k² for k = ℓ and k = ℓ + b: p_x and p_y are linear in p_T, and p_x² + p_y² = p_T².
    momenta = np.stack([lepton, lepton + b])
    missing = (np.array([m_w, m_top]) ** 2 - mass(momenta) ** 2)[:, None] / 2
    slope = momenta[:, :1] * np.cosh(pseudorapidity) - momenta[:, 3:] * np.sinh(pseudorapidity)
    slope, offset = (np.linalg.solve(momenta[:, 1:3], side) for side in (slope, -missing))
    c2, c1, c0 = (slope**2).sum(0) - 1, 2 * (slope * offset).sum(0), (offset**2).sum(0)
    discriminant = c1**2 - 4 * c2 * c0
    root = np.sqrt(np.where(discriminant >= 0, discriminant, np.nan))
    transverse = np.stack([-c1 + root, -c1 - root]) / (2 * c2)
    transverse = np.where(transverse > 0, transverse, np.nan)
    return (slope[:, None] * transverse + offset[:, None]).reshape(2, -1)


def test_plain_scan_finds_no_larger_weight(smeared):
    arguments = smeared(50, 7)
    result = solve(**arguments)
    pseudorapidity = np.linspace(-5, 5, 501)
    gain = []
    for i, weight in enumerate(result.weight):
        a = {name: value[i] for name, value in arguments.items()}
        leg = plain_scan(a["lepton_plus"], a["b"], a["m_top"], a["m_w_plus"], pseudorapidity)
        leg_bar = plain_scan(a["lepton_minus"], a["bbar"], a["m_antitop"], a["m_w_minus"], pseudorapidity)
        excess = leg[:, :, None] + leg_bar[:, None] - a["met"][:, None, None]
        squared = (excess**2).sum(0)
        if np.isfinite(squared).any():
            gain.append(weight - np.exp(-np.nanmin(squared) / (2 * 20**2)))
    assert len(gain) > 35
    assert np.min(gain) >= 0
    assert np.median(gain) < 1e-3
    assert np.max(gain) < 0.2


def test_eta_max(exact_events):
    arguments = exact_events(3000, seed=8).arguments
    result = solve(**arguments, eta_max=1.5)
    pseudorapidity = eta(result.neutrinos)
    assert np.nanmax(np.abs(pseudorapidity)) <= 1.5 + 1e-9
    assert 0.5 < np.isfinite(result.weight).mean() < 1


def test_comparable_maxima(smeared):
    """Lower weights are accepted for a smaller m_tt, but none below the fraction of the largest."""
    arguments = smeared(3000, 9)
    largest = solve(**arguments)
    result = solve(**arguments, comparable=0.6)
    assert np.array_equal(np.isnan(largest.weight), np.isnan(result.weight))
    solved = np.isfinite(result.weight)
    assert (result.weight >= 0.6 * largest.weight - 1e-6)[solved].all()
    before, after = (mass(r.neutrinos[solved].sum(1) + visible(arguments)[solved]) for r in (largest, result))
    assert (after <= before + 1e-6).all()
    assert 0.02 < (after < before - 1).mean() < 0.5


def test_charge_conjugation_swaps_the_legs(smeared):
    a = smeared(3000, 10)
    conjugate = {
        "lepton_plus": a["lepton_minus"],
        "lepton_minus": a["lepton_plus"],
        "b": a["bbar"],
        "bbar": a["b"],
        "met": a["met"],
        "m_top": a["m_antitop"],
        "m_antitop": a["m_top"],
        "m_w_plus": a["m_w_minus"],
        "m_w_minus": a["m_w_plus"],
    }
    check_same(solve(**a), solve(**conjugate), lambda p: p[:, ::-1])


def check_same(expected, found, transform):
    """The transformed results agree, but for events with maxima that rounding orders."""
    assert np.array_equal(np.isnan(expected.weight), np.isnan(found.weight))
    solved = np.isfinite(expected.weight)
    assert (np.abs(found.weight - expected.weight)[solved] < 1e-6).mean() > 0.999
    assert (deviation(found.neutrinos, transform(expected.neutrinos))[solved] < 1e-5).mean() > 0.995


@pytest.mark.parametrize("angle", [0.3, np.pi / 2, -2.0])
def test_rotation_about_the_beam(smeared, angle):
    def rotate(p, first=1):
        turned = p.copy()
        x, y = p[..., first], p[..., first + 1]
        turned[..., first] = np.cos(angle) * x - np.sin(angle) * y
        turned[..., first + 1] = np.sin(angle) * x + np.cos(angle) * y
        return turned

    arguments = smeared(3000, 11)
    turned = arguments | {name: rotate(arguments[name]) for name in MOMENTA}
    turned["met"] = rotate(arguments["met"], 0)
    check_same(solve(**arguments), solve(**turned), rotate)


@pytest.mark.parametrize("velocity", [0.5, -0.9])
def test_boost_along_the_beam(smeared, velocity):
    """The scan covers what the masses allow, so that it moves with the event."""
    along = np.array([0.0, 0.0, velocity])
    arguments = smeared(3000, 12)
    boosted = arguments | {name: boost(arguments[name], along) for name in MOMENTA}
    expected = solve(**arguments, eta_max=ALL_ETA)
    check_same(expected, solve(**boosted, eta_max=ALL_ETA), lambda p: boost(p, along))


def test_reflection(smeared):
    def reflect(p):
        return p * np.array([1, 1, 1, -1])

    arguments = smeared(3000, 13)
    reflected = arguments | {name: reflect(arguments[name]) for name in MOMENTA}
    check_same(solve(**arguments), solve(**reflected), reflect)


def test_events_do_not_know_each_other(smeared):
    arguments = smeared(1000, 14)
    expected = solve(**arguments)
    order = np.random.default_rng(15).permutation(1000)
    found = solve(**{name: value[order] for name, value in arguments.items()})
    assert np.array_equal(found.weight, expected.weight[order], equal_nan=True)
    assert np.array_equal(found.neutrinos, expected.neutrinos[order], equal_nan=True)


def test_threads_change_nothing(smeared):
    arguments = smeared(1000, 16)
    before = numba.get_num_threads()
    expected, found = solve(**arguments), solve(**arguments, threads=2)
    assert numba.get_num_threads() == before
    assert np.array_equal(expected.neutrinos, found.neutrinos, equal_nan=True)
    assert np.array_equal(expected.weight, found.weight, equal_nan=True)


def test_masses_default_to_the_constants(smeared):
    arguments = {name: value for name, value in smeared(200, 17).items() if name not in MASSES}
    masses = {"m_top": 172.5, "m_antitop": np.full(200, 172.5), "m_w_plus": 80.4, "m_w_minus": 80.4}
    assert np.array_equal(
        solve(**arguments).neutrinos, solve(**arguments, **masses).neutrinos, equal_nan=True
    )


def test_no_events():
    result = solve(*[np.empty((0, 4))] * 4, np.empty((0, 2)))
    assert result.neutrinos.shape == (0, 2, 4)
    assert result.weight.shape == (0,)


BAD = {
    "NaN momentum": {"b": [np.nan, 1.0, 2.0, 3.0]},
    "NaN in one component": {"lepton_minus": [50.0, 1.0, np.nan, 3.0]},
    "infinite energy": {"bbar": [np.inf, 1.0, 2.0, 3.0]},
    "infinite momentum": {"lepton_plus": [50.0, np.inf, 2.0, 3.0]},
    "zero jet": {"b": [0.0, 0.0, 0.0, 0.0]},
    "zero energy": {"b": [0.0, 30.0, 20.0, 10.0]},
    "negative energy": {"bbar": [-90.0, 30.0, 20.0, 10.0]},
    "spacelike jet": {"bbar": [30.0, 30.0, 40.0, 10.0]},
    "NaN MET": {"met": [np.nan, 10.0]},
    "infinite MET": {"met": [np.inf, 10.0]},
    "lepton and b the same": {"lepton_plus": [50.0, 30.0, 40.0, 0.0], "b": [100.0, 60.0, 80.0, 0.0]},
    "everything along the beam": {"lepton_plus": [50.0, 0.0, 0.0, 50.0], "b": [90.0, 0.0, 0.0, 90.0]},
    "zero W mass": {"m_w_plus": 0.0},
    "W heavier than top": {"m_w_minus": 200.0},
    "NaN top mass": {"m_top": np.nan},
    "infinite top mass": {"m_top": np.inf},
    "huge numbers": {"lepton_plus": [1e200, 1e199, 0.0, 0.0]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_input_without_a_solution(exact_events, change):
    """It has none, and leaves the events beside it alone."""
    arguments = exact_events(3, seed=18).arguments
    expected = solve(**arguments)
    for name, value in change.items():
        arguments[name][1] = value
    found = solve(**arguments)
    assert np.isnan(found.weight[1])
    assert np.isnan(found.neutrinos[1]).all()
    assert np.array_equal(found.neutrinos[::2], expected.neutrinos[::2])


def test_unreachable_met(exact_events):
    """The masses can be met, MET cannot: the weight vanishes, the neutrinos stay."""
    arguments = exact_events(2, seed=19).arguments
    arguments["met"][0] = [1e30, 10.0]
    result = solve(**arguments)
    assert result.weight[0] == 0
    assert np.isfinite(result.neutrinos).all()


def test_degenerate_input_with_solutions(events_from_legs, constraint_residuals):
    """Massless and collinear lepton and b, leptons at rest, equal p_z/E, MET that vanishes."""

    def p4(px, py, pz, m=0.0):
        return from_three_momentum(np.array([[px, py, pz]], dtype=float), m)

    other = (p4(-40, 15, 20, 0.1), p4(-25, -60, 10, 5.0), p4(-30, 30, -45))
    for lepton, b in (
        (p4(30, 40, 10), p4(-60, 20, 5)),
        (p4(30, 40, 0, 0.1), p4(60, 80, 0, 20.0)),
        (p4(0, 0, 0, 1.8), p4(60, 20, 10, 5.0)),
        (p4(20, 0, 30), p4(0, 0, 70, 5.0)),
        (p4(30, 40, 0), p4(-60, 20, 0)),
    ):
        for neutrino in (p4(25, -35, 60), p4(30, -30, 20), p4(25, -35, 0)):
            events = events_from_legs([(lepton, b, neutrino), other])
            result = solve(**events.arguments)
            assert result.weight[0] > 1 - 1e-6
            residual = constraint_residuals(events.arguments, result.neutrinos[:, None], met=False)
            assert np.nanmax(residual) < 1e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": np.ones((3, 3))}, r"b has shape \(3, 3\), expected \(3, 4\) like lepton_plus"),
        ({"lepton_plus": np.ones(4)}, r"lepton_plus has shape \(4,\), expected \(n, 4\)"),
        ({"met": np.ones((3, 4))}, r"met has shape \(3, 4\), expected \(3, 2\)"),
        ({"m_top": np.ones(2)}, r"m_top has shape \(2,\), expected \(\) or \(3,\)"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
        ({"sigma_met": 0.0}, "sigma_met is 0.0, expected a positive number"),
        ({"sigma_met": np.nan}, "sigma_met is nan, expected a positive number"),
        ({"eta_max": -5.0}, "eta_max is -5.0, expected a positive number"),
        ({"n_eta": 1}, "n_eta is 1, expected 2 or more"),
        ({"comparable": 0.0}, "comparable is 0.0, expected more than 0 and at most 1"),
        ({"comparable": 1.5}, "comparable is 1.5"),
    ],
)
def test_wrong_arguments(exact_events, change, message):
    arguments = exact_events(3, seed=20).arguments
    with pytest.raises(TopRecoError, match=message):
        solve(**(arguments | change))
