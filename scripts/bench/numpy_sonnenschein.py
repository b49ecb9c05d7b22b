"""Sonnenschein's method in plain vectorised numpy: the baseline of `bench_solvers`."""

import numpy as np
from numpy.typing import NDArray

from topreco.core.fourvector import dot, from_three_momentum, mass_squared

Floats = NDArray[np.float64]


def real_quartic_roots(coefficients: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Roots of quartics: eigenvalues of companion matrices, then Newton steps; and which of them are real.

    Parameters
    ----------
    coefficients
        From the highest power down, shape (n, 5).
    """
    companion = np.zeros((len(coefficients), 4, 4))
    companion[:, 1:, :3] = np.eye(3)
    with np.errstate(divide="ignore", invalid="ignore"):
        companion[:, 0] = -coefficients[:, 1:] / coefficients[:, :1]
    bad = ~np.isfinite(companion).all(axis=(1, 2))
    companion[bad] = 0.0
    roots = np.linalg.eigvals(companion)
    real = np.abs(roots.imag) < 1e-6 * (1.0 + np.abs(roots.real))
    x = roots.real
    h0, h1, h2, h3, h4 = (value[:, None] for value in coefficients.T)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(2):
            value = (((h0 * x + h1) * x + h2) * x + h3) * x + h4
            x = x - value / (((4 * h0 * x + 3 * h1) * x + 2 * h2) * x + h3)
    return x, real & ~bad[:, None]


def in_rising_m_tt(neutrinos: Floats, visible: Floats) -> Floats:
    """Solutions (n, 4, 2, 4) in the order of the mass of the system, NaN last; visible is a sum (n, 4)."""
    m2 = mass_squared(neutrinos.sum(2) + visible[:, None])
    return np.take_along_axis(neutrinos, np.argsort(m2, axis=1)[..., None, None], axis=1)


def _plane(lepton: Floats, b: Floats, m_top: Floats, m_w: Floats) -> Floats:
    """Coefficients of a1 + a2 px + a3 py + a4 pz = 0, shape (4, n)."""
    energy_l, energy_b = lepton[:, 0], b[:, 0]
    w = m_w**2 - mass_squared(lepton)
    t = m_top**2 - m_w**2 - mass_squared(b) - 2 * dot(lepton, b)
    momentum = 2 * (energy_b[:, None] * lepton[:, 1:] - energy_l[:, None] * b[:, 1:])
    return np.concatenate([(energy_b * w - energy_l * t)[None], momentum.T])


def _conic(lepton: Floats, b: Floats, m_top: Floats, m_w: Floats) -> tuple[Floats, Floats]:
    """The plane and the conic (c00, c10, c11, c20, c21, c22) of a leg, shapes (4, n) and (6, n)."""
    a1, a2, a3, a4 = a = _plane(lepton, b, m_top, m_w)
    energy, px, py, pz = lepton.T
    w = m_w**2 - mass_squared(lepton)
    # 4 E² p² = (w + 2 p_l·p)² with p_z = −(a1 + a2 x + a3 y)/a4, times a4².
    u = np.stack([w * a4 - 2 * pz * a1, 2 * (px * a4 - pz * a2), 2 * (py * a4 - pz * a3)])
    e2 = 4 * energy**2
    return a, np.stack(
        [
            u[2] ** 2 - e2 * (a4**2 + a3**2),
            2 * u[1] * u[2] - 2 * e2 * a2 * a3,
            2 * u[0] * u[2] - 2 * e2 * a1 * a3,
            u[1] ** 2 - e2 * (a4**2 + a2**2),
            2 * u[0] * u[1] - 2 * e2 * a1 * a2,
            u[0] ** 2 - e2 * a1**2,
        ]
    )


def solve(
    lepton_plus: Floats,
    lepton_minus: Floats,
    b: Floats,
    bbar: Floats,
    met: Floats,
    *,
    m_top: Floats,
    m_antitop: Floats,
    m_w_plus: Floats,
    m_w_minus: Floats,
) -> tuple[Floats, NDArray[np.int64]]:
    """Neutrinos (n, 4, 2, 4) with NaN padding and their number (n,), as `topreco.solvers` returns them."""
    a, (c00, c10, c11, c20, c21, c22) = _conic(lepton_plus, b, m_top, m_w_plus)
    a_bar, (e00, e10, e11, e20, e21, e22) = _conic(lepton_minus, bbar, m_antitop, m_w_minus)
    mx, my = met.T
    # p̄ = MET − p.
    d00, d10, d20 = e00, e10, e20
    d11 = -e11 - 2 * e00 * my - e10 * mx
    d21 = -e21 - 2 * e20 * mx - e10 * my
    d22 = e22 + e20 * mx**2 + e10 * mx * my + e00 * my**2 + e21 * mx + e11 * my
    k = (c00 * d22 - c22 * d00, c00 * d21 - c21 * d00, c00 * d20 - c20 * d00)
    l0, l1 = c00 * d11 - c11 * d00, c00 * d10 - c10 * d00
    m = (
        c11 * d22 - c22 * d11,
        c11 * d21 + c10 * d22 - c22 * d10 - c21 * d11,
        c11 * d20 + c10 * d21 - c21 * d10 - c20 * d11,
        c10 * d20 - c20 * d10,
    )
    quartic = np.stack(
        [
            k[2] ** 2 - l1 * m[3],
            2 * k[1] * k[2] - l0 * m[3] - l1 * m[2],
            k[1] ** 2 + 2 * k[0] * k[2] - l0 * m[2] - l1 * m[1],
            2 * k[0] * k[1] - l0 * m[1] - l1 * m[0],
            k[0] ** 2 - l0 * m[0],
        ],
        axis=-1,
    )
    x, real = real_quartic_roots(quartic)
    k0, k1, k2 = (value[:, None] for value in k)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = -(k0 + (k1 + k2 * x) * x) / (l0[:, None] + l1[:, None] * x)
        legs = []
        for coefficients, px, py in ((a, x, y), (a_bar, mx[:, None] - x, my[:, None] - y)):
            a1, a2, a3, a4 = (value[:, None] for value in coefficients)
            pz = -(a1 + a2 * px + a3 * py) / a4
            legs.append(from_three_momentum(np.stack([px, py, pz], -1), 0.0))
    neutrinos = np.where(real[:, :, None, None], np.stack(legs, 2), np.nan)
    visible = lepton_plus + lepton_minus + b + bbar
    return in_rising_m_tt(neutrinos, visible), real.sum(1)
