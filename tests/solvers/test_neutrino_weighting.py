"""Neutrino weighting: the weight, and that its maximum is found."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.fourvector import eta, mass
from topreco.solvers import ellipse, sonnenschein
from topreco.solvers.neutrino_weighting import solve

MOMENTA = ("lepton_plus", "lepton_minus", "b", "bbar")
# No neutrino is cut away.
ALL_ETA = 50.0


def visible(arguments):
    return sum(arguments[name] for name in MOMENTA)


def deviation(a, b):
    """Largest difference of neutrino pairs, relative to the larger energy of the second, shape (n,)."""
    return np.abs(a - b).max((1, 2)) / b[..., 0].max(1)


def test_weight_is_that_of_met(smeared_events, constraint_residuals):
    arguments = smeared_events(2000, 2)
    for sigma in (10.0, 30.0):
        result = solve(**arguments, sigma_met=sigma)
        excess = result.neutrinos[..., 1:3].sum(1) - arguments["met"]
        expected = np.exp(-(excess**2).sum(1) / (2 * sigma**2))
        assert result.weight == pytest.approx(expected, abs=1e-9, nan_ok=True)
        assert 0.8 < np.isfinite(result.weight).mean() < 0.95
        residual = constraint_residuals(arguments, result.neutrinos[:, None], met=False)
        assert np.nanmax(residual) < 1e-9


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


def test_agrees_with_the_closest_approach_of_the_ellipses(smeared_events):
    """Both minimise the violation of MET under the mass constraints."""
    arguments = smeared_events(10_000, 5)
    other = ellipse.closest_approach(**arguments)
    result = solve(**arguments, eta_max=ALL_ETA)
    missed = np.linalg.norm(result.neutrinos[..., 1:3].sum(1) - arguments["met"], axis=1)
    both = np.isfinite(missed) & np.isfinite(other.distance)
    assert both.sum() >= 0.999 * np.isfinite(other.distance).sum()
    assert (missed[both] < other.distance[both] + 0.02).mean() > 0.999


def test_grid_matters_little(smeared_events):
    arguments = smeared_events(5000, 6)
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


def test_plain_scan_finds_no_larger_weight(smeared_events):
    arguments = smeared_events(50, 7)
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


def test_comparable_maxima(smeared_events):
    """Lower weights are accepted for a smaller m_tt, but none below the fraction of the largest."""
    arguments = smeared_events(3000, 9)
    largest = solve(**arguments)
    result = solve(**arguments, comparable=0.6)
    assert np.array_equal(np.isnan(largest.weight), np.isnan(result.weight))
    solved = np.isfinite(result.weight)
    assert (result.weight >= 0.6 * largest.weight - 1e-6)[solved].all()
    before, after = (mass(r.neutrinos[solved].sum(1) + visible(arguments)[solved]) for r in (largest, result))
    assert (after <= before + 1e-6).all()
    assert 0.02 < (after < before - 1).mean() < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma_met": 0.0}, "sigma_met is 0.0, expected a positive number"),
        ({"sigma_met": np.nan}, "sigma_met is nan, expected a positive number"),
        ({"eta_max": -5.0}, "eta_max is -5.0, expected a positive number"),
        ({"n_eta": 1}, "n_eta is 1, expected 2 or more"),
        ({"comparable": 0.0}, "comparable is 0.0, expected more than 0 and at most 1"),
        ({"comparable": 1.5}, "comparable is 1.5"),
    ],
)
def test_wrong_options(exact_events, change, message):
    arguments = exact_events(3, seed=20).arguments
    with pytest.raises(TopRecoError, match=message):
        solve(**(arguments | change))
