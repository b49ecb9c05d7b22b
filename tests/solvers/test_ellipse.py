"""The ellipse itself, and the closest approach of two that do not meet."""

import numpy as np
import pytest

from topreco.core.fourvector import mass_squared
from topreco.solvers import ellipse
from topreco.solvers.per_event import Inputs, event_of
from topreco.solvers.solutions import leg_constraints


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
def smeared(smeared_events):
    return smeared_events(4000, 21)


def test_closest_approach_is_the_solution_where_there_is_one(smeared):
    solution, closest = ellipse.solve(**smeared), ellipse.closest_approach(**smeared)
    solved = solution.count > 0
    assert 0 < solved.sum() < len(solved)
    assert np.array_equal(closest.distance == 0, solved)
    assert np.array_equal(closest.neutrinos[solved], solution.neutrinos[solved, 0])


def test_distance_is_the_violation_of_met(smeared):
    closest = ellipse.closest_approach(**smeared)
    there = np.isfinite(closest.distance)
    assert 0 < (~there).sum() < len(there)
    missing = closest.neutrinos[:, :, 1:3].sum(1) - smeared["met"]
    assert np.hypot(*missing.T)[there] == pytest.approx(closest.distance[there], abs=1e-9)


def test_closest_approach_is_the_closest(smeared):
    """No pair of points of a fine grid is closer, and none of its neighbours much farther."""
    closest = ellipse.closest_approach(**smeared)
    tau = np.linspace(0, 2 * np.pi, 361)[:-1]
    unit = np.stack([np.cos(tau), np.sin(tau), np.ones_like(tau)])
    h = np.empty((2, 3, 3))
    inputs = Inputs.checked("test", *(smeared[name] for name in Inputs._fields))
    for i in np.flatnonzero(closest.distance > 0)[:300]:
        assert ellipse._ellipses(event_of(inputs, i), h)
        first, second = (h[0] @ unit)[:2] - smeared["met"][i][:, None], (h[1] @ unit)[:2]
        grid = np.sqrt(((first[:, :, None] + second[:, None]) ** 2).sum(0).min())
        assert closest.distance[i] <= grid + 1e-9
