r"""Loose kinematic reconstruction of the tt̄ system, without the top mass.

The neutrinos are treated as one object, with the transverse momentum of MET and, as a rule, the energy and
the longitudinal momentum of the lepton pair [1]_:

.. math:: \mathbf p_T(νν) = \mathbf p_T^\mathrm{miss}, \qquad p_z(νν) = p_z(ℓℓ), \qquad E(νν) = E(ℓℓ).

Two neutrinos have m(νν) ≥ 0, and with both leptons they come from two W bosons, m(ℓℓνν) ≥ 2 m_W. Where one
of these fails, the mass is raised to its bound at fixed **p**_T and rapidity y,

.. math:: E = \sqrt{m^2 + p_T^2}\,\cosh y, \qquad p_z = \sqrt{m^2 + p_T^2}\,\sinh y .

So E and p_z always follow a boost along the beam. With the b jets this gives the tt̄ system, in which neither
the pairing of b jets with leptons nor the top mass has a part.

References
----------
.. [1] CMS Collaboration, Eur. Phys. J. C 80 (2020) 658, arXiv:1904.05237.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from topreco.core.constants import M_W
from topreco.core.fourvector import mass_squared, pack, pt
from topreco.solvers.per_event import Floats, check_arguments
from topreco.solvers.solutions import SPACELIKE


class Loose(NamedTuple):
    """The tt̄ system of each event.

    Attributes
    ----------
    ttbar
        Four-momentum (E, px, py, pz) in GeV, shape (n, 4); NaN where not valid.
    valid
        True where the input is finite and physical, shape (n,): all such events are solved.
    """

    ttbar: Floats
    valid: NDArray[np.bool_]


def solve(
    lepton_plus: ArrayLike,
    lepton_minus: ArrayLike,
    b: ArrayLike,
    bbar: ArrayLike,
    met: ArrayLike,
    *,
    m_w: ArrayLike = M_W,
) -> Loose:
    """The tt̄ system of dileptonic events by the loose kinematic reconstruction [1]_.

    Parameters
    ----------
    lepton_plus, lepton_minus
        Four-momenta (E, px, py, pz) of the leptons in GeV, shape (n, 4).
    b, bbar
        Four-momenta of the two b jets in GeV, in any order, shape (n, 4).
    met
        Missing transverse momentum (px, py) in GeV, shape (n, 2).
    m_w
        Mass of the W boson in GeV, a scalar or of shape (n,).

    Returns
    -------
    system
        Four-momentum of the tt̄ system. An event whose input is not finite or not physical (energies and m_w
        not positive, spacelike beyond rounding, both leptons along the beam) is not valid.

    Raises
    ------
    TopRecoError
        If an argument has a wrong shape.

    References
    ----------
    .. [1] CMS Collaboration, Eur. Phys. J. C 80 (2020) 658, arXiv:1904.05237.
    """
    arguments = {"lepton_plus": lepton_plus, "lepton_minus": lepton_minus, "b": b, "bbar": bbar}
    *momenta, missing, mass_w = check_arguments("loose.solve", arguments | {"met": met, "m_w": m_w})
    visible = np.stack(momenta)
    # Infinities and numbers too large to be squared end up as NaN or fail the conditions below.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        real = (visible[..., 0] > 0) & (mass_squared(visible) >= -SPACELIKE * visible[..., 0] ** 2)
        dilepton = momenta[0] + momenta[1]
        energy, pz = dilepton[:, 0], dilepton[:, 3]
        valid = real.all(axis=0) & (abs(pz) < energy) & (mass_w > 0)
        valid &= np.isfinite(visible).all(axis=(0, 2)) & np.isfinite(missing).all(axis=1)
        # The rest is computed for valid events only, and stays NaN for others.
        dilepton = np.where(valid[:, None], dilepton, np.nan)
        neutrinos = pack(dilepton[:, 0], missing[:, 0], missing[:, 1], dilepton[:, 3])
        neutrinos = _with_least_mass(neutrinos, np.zeros(len(missing)))
        w_pair = _with_least_mass(dilepton + neutrinos, 2 * mass_w)
        ttbar = w_pair + momenta[2] + momenta[3]
    valid = np.asarray(np.isfinite(ttbar).all(axis=1))
    return Loose(np.where(valid[:, None], ttbar, np.nan), valid)


def _with_least_mass(p4: Floats, least: Floats) -> Floats:
    """Four-momenta (n, 4) with the mass raised to a least one (n,) at fixed **p**_T and rapidity."""
    longitudinal = (p4[:, 0] - p4[:, 3]) * (p4[:, 0] + p4[:, 3])
    scale = np.sqrt(np.maximum(1.0, (least**2 + pt(p4) ** 2) / longitudinal))
    return pack(p4[:, 0] * scale, p4[:, 1], p4[:, 2], p4[:, 3] * scale)
