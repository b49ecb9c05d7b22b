r"""Spin correlation of top-quark pairs at leading order, to add it to a sample or to take it away.

The leptons of both legs follow |M|² ∝ A (1 − q̂⁺ᵀ C′ q̂⁻) with q̂± their directions in the rest frames of their
tops, on the axes k (direction of the top in the tt̄ frame), r = (p̂ − k cosΘ)/sinΘ and n = p̂ × k/sinΘ, where p̂
is the beam along +z and Θ the angle between p̂ and k. Reversing p̂ changes nothing.
"""

from typing import Any

import numpy as np

from topreco import fourvector
from topreco.events import PRODUCTIONS, FloatArray, Truth
from topreco.observables import lepton_directions


def spin_correlation_matrix(beta: FloatArray, cos_theta: FloatArray, initial: str) -> FloatArray:
    """Spin correlation C′ of tt̄ at leading order of QCD [1]_.

    Parameters
    ----------
    beta
        Velocity of the tops in the tt̄ rest frame in units of c, shape (...).
    cos_theta
        Cosine of the angle between top and beam there, shape (...).
    initial
        ``gg`` or ``qq``.

    Returns
    -------
    matrix
        C′ on the axes k, r, n, shape (..., 3, 3).

    Raises
    ------
    ValueError
        If the initial state is another.

    References
    ----------
    .. [1] Y. Afik, J. R. M. de Nova, Entanglement and quantum tomography with top quarks at the LHC,
       arXiv:2003.02280, appendix A.
    """
    b2, cos2 = np.asarray(beta) ** 2, np.asarray(cos_theta) ** 2
    sin2 = 1 - cos2
    sin, cos = np.sqrt(sin2), np.asarray(cos_theta)
    if initial == "gg":
        quartic = 1 + sin2**2
        norm = 1 + 2 * b2 * sin2 - b2**2 * quartic
        rr = -(1 - b2 * (2 - b2) * quartic)
        nn = -(1 - 2 * b2 + b2**2 * quartic)
        kk = -(1 - 2 * b2 * sin2 * cos2 - b2**2 * quartic)
        rk = np.sqrt(1 - b2) * b2 * 2 * sin * cos * sin2
    elif initial == "qq":
        norm = 2 - b2 * sin2
        rr = (2 - b2) * sin2
        nn = -b2 * sin2
        kk = b2 + cos2 * (2 - b2)
        rk = np.sqrt(1 - b2) * 2 * sin * cos
    else:
        raise ValueError(f"spin_correlation_matrix: initial state {initial!r}; allowed are gg, qq")
    zero = np.zeros_like(norm)
    rows = [[kk, rk, zero], [rk, rr, zero], [zero, zero, nn]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2) / norm[..., None, None]


def spin_correlation_weight(tops: Any, leptons: Any, initial: str) -> Any:
    """Weight 1 − q̂⁺ᵀ C′ q̂⁻ that gives events without tt̄ spin correlation that of leading-order QCD.

    Its inverse takes the correlation away from events that have it. Its mean over isotropic leptons is 1.

    Parameters
    ----------
    tops
        True four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    leptons
        True charged leptons of the W bosons in GeV, a τ before its decay, shape (n, 2, 4).
    initial
        ``gg`` or ``qq``, the partons that made the pair.

    Returns
    -------
    weight
        At least 0, shape (n,); NaN where a momentum is unknown.

    Raises
    ------
    ValueError
        If the initial state is another.
    """
    system = tops.sum(-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        top = fourvector.to_rest_frame(tops[..., 0, :], system)[..., 1:]
        momentum = np.sqrt((top**2).sum(-1))
        k = top / momentum[..., None]
        # Both tops have this momentum; their masses may differ.
        beta = 2 * momentum / fourvector.mass(system)
    beam = np.array([0.0, 0.0, 1.0])
    cos_theta = np.clip(k[..., 2], -1.0, 1.0)
    # Along the beam r and n are arbitrary, and nothing depends on them.
    sin_theta = np.maximum(np.sqrt(1 - cos_theta**2), 1e-9)[..., None]
    r, n = (beam - k * cos_theta[..., None]) / sin_theta, np.cross(beam, k) / sin_theta
    axes = np.stack([k, r, n], axis=-2)
    q = np.einsum("...ai,...li->...la", axes, lepton_directions(tops, leptons))
    matrix = spin_correlation_matrix(np.minimum(beta, 1.0), cos_theta, initial)
    return 1 - np.einsum("...a,...ab,...b->...", q[..., 0, :], matrix, q[..., 1, :])


def event_spin_weight(truth: Truth) -> FloatArray:
    """Spin-correlation weight of each event, by its production channel, see `spin_correlation_weight`.

    Parameters
    ----------
    truth
        Generated tops, W bosons and neutrinos: the charged lepton is the difference of the last two, which
        holds for a τ too.

    Returns
    -------
    weight
        Shape (n,); NaN where the production is neither gg nor qq̄ or a momentum is unknown.
    """
    weight = np.full(len(truth), np.nan)
    for initial in ("gg", "qq"):
        chosen = truth.production == PRODUCTIONS.index(initial)
        tops, leptons = truth.tops[chosen], (truth.w - truth.neutrino)[chosen]
        weight[chosen] = spin_correlation_weight(tops, leptons, initial)
    return weight
