"""The ellipse method in plain vectorised numpy, as in arXiv:1305.1878: the baseline of `bench_solvers`."""

import numpy as np
from numpy.typing import NDArray
from numpy_sonnenschein import in_rising_m_tt

from topreco.core.fourvector import from_three_momentum, mass_squared

Floats = NDArray[np.float64]


def _ellipse(lepton: Floats, b: Floats, m_top: Floats, m_w: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Matrix H of a leg, shape (n, 3, 3), and where there is one."""
    energy_l, energy_b = lepton[:, 0], b[:, 0]
    p_l, p_b = np.linalg.norm(lepton[:, 1:], axis=1), np.linalg.norm(b[:, 1:], axis=1)
    beta_l, beta_b = p_l / energy_l, p_b / energy_b
    cosine = (lepton[:, 1:] * b[:, 1:]).sum(1) / (p_l * p_b)
    sine = np.sqrt(1 - cosine**2)
    x0 = -(m_w**2 - mass_squared(lepton)) / (2 * energy_l)
    x0_prime = -(m_top**2 - m_w**2 - mass_squared(b)) / (2 * energy_b)
    sx = (x0 * beta_l - p_l * (1 - beta_l**2)) / beta_l**2
    sy = (x0_prime / beta_b - cosine * sx) / sine
    w = (beta_l / beta_b - cosine) / sine
    omega2 = w**2 + 1 - beta_l**2
    epsilon2 = m_w**2 * (1 - beta_l**2)
    x1 = sx - (sx + w * sy) / omega2
    y1 = sy - (sx + w * sy) * w / omega2
    z2 = x1**2 * omega2 - (sy - w * sx) ** 2 - (m_w**2 - x0**2 - epsilon2)
    valid = z2 > 0
    z, omega = np.sqrt(np.where(valid, z2, np.nan)), np.sqrt(omega2)
    zero = np.zeros_like(z)
    h = np.stack(
        [
            np.stack([z / omega, zero, x1 - p_l], -1),
            np.stack([w * z / omega, zero, y1], -1),
            np.stack([zero, z, zero], -1),
        ],
        axis=1,
    )
    first = lepton[:, 1:] / p_l[:, None]
    second = b[:, 1:] / p_b[:, None] - cosine[:, None] * first
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    rotation = np.stack([first, second, np.cross(first, second)], 1)
    return np.swapaxes(rotation, 1, 2) @ h, valid


def _adjugate(m: Floats) -> Floats:
    """Adjugate of symmetric 3×3 matrices, shape (..., 3, 3)."""
    rows = [np.cross(m[..., (i + 1) % 3, :], m[..., (i + 2) % 3, :]) for i in range(3)]
    return np.stack(rows, -1)


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
    n = len(met)
    h, valid = _ellipse(lepton_plus, b, m_top, m_w_plus)
    h_bar, valid_bar = _ellipse(lepton_minus, bbar, m_antitop, m_w_minus)
    neutrinos = np.full((n, 4, 2, 4), np.nan)
    used = np.flatnonzero(valid & valid_bar)
    h, h_bar, met = h[used], h_bar[used], met[used]
    bottom = np.array([0.0, 0.0, 1.0])
    transverse = h.copy()
    transverse_bar = h_bar.copy()
    transverse[:, 2] = transverse_bar[:, 2] = bottom
    shift = np.tile(np.diag([-1.0, -1.0, 1.0]), (len(used), 1, 1))
    shift[:, :2, 2] = met
    unit = np.diag([1.0, 1.0, -1.0])
    inverse, inverse_bar = np.linalg.inv(transverse), np.linalg.inv(transverse_bar)
    conic = np.swapaxes(inverse, 1, 2) @ unit @ inverse
    pulled = inverse_bar @ shift
    conic_bar = np.swapaxes(pulled, 1, 2) @ unit @ pulled

    # Degenerate members of the pencil; of the real ones, that which is most clearly a pair of real lines.
    eigenvalues = np.linalg.eigvals(np.linalg.inv(conic) @ conic_bar)
    real = np.abs(eigenvalues.imag) < 1e-6 * np.abs(eigenvalues)
    degenerate = conic_bar[:, None] - eigenvalues.real[..., None, None] * conic[:, None]
    degenerate /= np.abs(degenerate).max((-1, -2), keepdims=True)
    points = -_adjugate(degenerate)
    diagonal = np.diagonal(points, axis1=-2, axis2=-1)
    best = np.where(real, diagonal.max(-1), -np.inf).argmax(1)
    rows = np.arange(len(used))
    degenerate, points, diagonal = degenerate[rows, best], points[rows, best], diagonal[rows, best]
    column = diagonal.argmax(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = points[rows, :, column] / np.sqrt(diagonal[rows, column])[:, None]
        x, y, z = p.T
        zero = np.zeros_like(x)
        cross = np.stack([zero, z, -y, -z, zero, x, y, -x, zero], -1).reshape(-1, 3, 3)
        lines = degenerate + cross
        place = np.abs(np.nan_to_num(lines)).reshape(-1, 9).argmax(1)
        pair = np.stack([lines[rows, place // 3], lines[rows, :, place % 3]], 1)
        # Points of a line, foot + t · direction, on the first conic.
        square = (pair[..., :2] ** 2).sum(-1)
        foot = np.stack([-pair[..., 2] * pair[..., 0] / square, -pair[..., 2] * pair[..., 1] / square], -1)
        foot = np.concatenate([foot, np.ones_like(foot[..., :1])], -1)
        direction = np.stack([-pair[..., 1], pair[..., 0], np.zeros_like(square)], -1)
        q2 = np.einsum("nki,nij,nkj->nk", direction, conic, direction)
        q1 = np.einsum("nki,nij,nkj->nk", direction, conic, foot)
        q0 = np.einsum("nki,nij,nkj->nk", foot, conic, foot)
        root = np.sqrt(q1**2 - q2 * q0)
        t = np.stack([(-q1 - root) / q2, (-q1 + root) / q2], -1)
        plane = (foot[:, :, None] + t[..., None] * direction[:, :, None]).reshape(-1, 4, 3)
        momentum = plane @ np.swapaxes(h @ inverse, 1, 2)
        momentum_bar = plane @ np.swapaxes(h_bar @ pulled, 1, 2)
        neutrinos[used] = from_three_momentum(np.stack([momentum, momentum_bar], 2), 0.0)
    visible = lepton_plus + lepton_minus + b + bbar
    return in_rising_m_tt(neutrinos, visible), np.isfinite(neutrinos[..., 0, 0]).sum(1)
