"""The ellipse itself, and the closest approach of two that do not meet."""

import numpy as np
import pytest

from topreco.core.fourvector import mass_squared
from topreco.solvers import ellipse
from topreco.solvers.solutions import leg_constraints

MOMENTA = ("lepton_plus", "lepton_minus", "b", "bbar")


def published_conic(lepton, b, m_top, m_w):
    """Matrix N of the transverse ellipse, by the formulas of arXiv:1305.1878."""
    p_l, p_b = np.linalg.norm(lepton[1:]), np.linalg.norm(b[1:])
    beta_l, beta_b = p_l / lepton[0], p_b / b[0]
    c = lepton[1:] @ b[1:] / (p_l * p_b)
    s = np.sqrt(1 - c**2)
    x0 = -(m_w**2 - mass_squared(lepton)) / (2 * lepton[0])
    x0_prime = -(m_top**2 - m_w**2 - mass_squared(b)) / (2 * b[0])
    sx = (x0 * beta_l - p_l * (1 - beta_l**2)) / beta_l**2
    sy = (x0_prime / beta_b - c * sx) / s
    w = (beta_l / beta_b - c) / s
    omega2 = w**2 + 1 - beta_l**2
    x1 = sx - (sx + w * sy) / omega2
    y1 = sy - (sx + w * sy) * w / omega2
    z2 = x1**2 * omega2 - (sy - w * sx) ** 2 - (m_w**2 - x0**2 - m_w**2 * (1 - beta_l**2))
    z, omega = np.sqrt(z2), np.sqrt(omega2)
    h = np.array([[z / omega, 0, x1 - p_l], [w * z / omega, 0, y1], [0, z, 0]])
    first = lepton[1:] / p_l
    second = b[1:] / p_b - c * first
    second /= np.linalg.norm(second)
    return conic_of(np.array([first, second, np.cross(first, second)]).T @ h)


def conic_of(h):
    inverse = np.linalg.inv(np.vstack([h[:2], [0, 0, 1]]))
    n = inverse.T @ np.diag([1, 1, -1]) @ inverse
    return n / np.abs(n).max()


def test_ellipse_is_the_published_one(exact_events):
    a = exact_events(50, seed=20).arguments
    h = np.empty((3, 3))
    for i in range(50):
        arguments = (a["lepton_plus"][i], a["b"][i], a["m_top"][i], a["m_w_plus"][i])
        valid, leg = leg_constraints(*arguments)
        assert valid
        assert ellipse._ellipse(leg, h)
        assert conic_of(h) == pytest.approx(published_conic(*arguments), abs=1e-6)


@pytest.fixture(scope="module")
def smeared(exact_events):
    arguments = exact_events(4000, seed=21).arguments
    rng = np.random.default_rng(22)
    for name in MOMENTA:
        arguments[name] = arguments[name] * rng.normal(1, 0.15, (4000, 1))
    arguments["met"] = arguments["met"] + rng.normal(0, 25, (4000, 2))
    return arguments


def test_closest_approach_is_the_solution_where_there_is_one(smeared):
    solution, closest = ellipse.solve(**smeared), ellipse.closest_approach(**smeared)
    solved = solution.count > 0
    assert 0 < solved.sum() < len(solved)
    assert np.array_equal(closest.distance == 0, solved)
    assert np.array_equal(closest.neutrinos[solved], solution.neutrinos[solved, 0])


def test_closest_approach_violates_met_alone(smeared, constraint_residuals):
    closest = ellipse.closest_approach(**smeared)
    there = np.isfinite(closest.distance)
    assert np.array_equal(there, np.isfinite(closest.neutrinos).all((1, 2)))
    assert 0 < (~there).sum() < len(there)
    missing = closest.neutrinos[:, :, 1:3].sum(1) - smeared["met"]
    assert np.hypot(*missing.T)[there] == pytest.approx(closest.distance[there], abs=1e-9)
    masses = constraint_residuals(
        {name: value[there] for name, value in smeared.items()},
        closest.neutrinos[there][:, None],
        met=False,
    )
    assert masses.max() < 1e-6


def test_closest_approach_is_the_closest(smeared):
    """No pair of points of a fine grid is closer, and none of its neighbours much farther."""
    closest = ellipse.closest_approach(**smeared)
    tau = np.linspace(0, 2 * np.pi, 361)[:-1]
    unit = np.stack([np.cos(tau), np.sin(tau), np.ones_like(tau)])
    h = np.empty((2, 3, 3))
    names = ("lepton_plus", "lepton_minus", "b", "bbar")
    for i in np.flatnonzero(closest.distance > 0)[:300]:
        momenta = [smeared[name][i] for name in names]
        masses = [smeared[name][i] for name in ("m_top", "m_antitop", "m_w_plus", "m_w_minus")]
        assert ellipse._ellipses(*momenta, *smeared["met"][i], *masses, h)
        first, second = (h[0] @ unit)[:2] - smeared["met"][i][:, None], (h[1] @ unit)[:2]
        grid = np.sqrt(((first[:, :, None] + second[:, None]) ** 2).sum(0).min())
        assert closest.distance[i] <= grid + 1e-9


def test_closest_approach_on_threads(smeared):
    a, b = ellipse.closest_approach(**smeared), ellipse.closest_approach(**smeared, threads=2)
    assert np.array_equal(a.distance, b.distance, equal_nan=True)
    assert np.array_equal(a.neutrinos, b.neutrinos, equal_nan=True)


def test_closest_approach_of_bad_input(exact_events):
    arguments = exact_events(2, seed=23).arguments
    arguments["b"][0] = np.nan
    closest = ellipse.closest_approach(**arguments)
    assert np.isnan(closest.distance[0])
    assert np.isnan(closest.neutrinos[0]).all()
    assert closest.distance[1] == 0
