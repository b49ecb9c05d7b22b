r"""Constraints of one leg, and the list of solutions of an event.

For t → b W → b ℓ ν with a massless neutrino the W and the top mass fix

.. math::

    |\mathbf p| = a + \mathbf v_\ell·\mathbf p, \quad a = \frac{m_W^2 - m_\ell^2}{2 E_\ell}, \qquad
    |\mathbf p| = b + \mathbf v_b·\mathbf p, \quad
    b = \frac{m_t^2 - m_W^2 - m_b^2 - 2\,p_\ell·p_b}{2 E_b}

with **p** the momentum of the neutrino and **v** = **p**/E a velocity. Their difference,
(**v**_b − **v**_ℓ)·**p** = a − b, is the plane in which the neutrino lies.

Transverse momenta are invariant under boosts along the beam, so each leg is treated in the frame in which its
lepton and b together have no p_z. There a leg looks the same at every rapidity.
"""

import math
from typing import NamedTuple

from topreco.solvers.per_event import Event, Floats, Ints, inlined_kernel

Leg = tuple[float, float, float, float, float, float, float, float, float, float]

MAX_SOLUTIONS = 4

# A lepton or jet stored with 32 bits has a squared mass of either sign at this fraction of its E² or below;
# farther into the spacelike region there is no particle.
SPACELIKE = 1e-5
# Lepton and b of the same velocity leave one constraint, not two.
_SAME_VELOCITY = 1e-9
# Newton's method ends at steps of this relative size: the next would be its square. Near tangency, where it
# slows down, it also ends at residuals of this size, from which rounding keeps it.
CONVERGED = 1e-7
RESIDUAL = 1e-13
NEWTON_STEPS = 30
QUADRATIC_STEPS = 8


class Solutions(NamedTuple):
    """Neutrino pairs that meet all six constraints.

    Attributes
    ----------
    neutrinos
        Four-momenta (E, px, py, pz) in GeV, shape (n, 4, 2, 4): event, solution, leg (0 = the neutrino of
        the top, 1 = the antineutrino of the antitop), component. Solutions come in rising m_tt, so that
        index 0 has the smallest; NaN beyond the last.
    count
        Number of solutions, shape (n,): 0, 2 or 4, or odd where two agree to 1e-7 (tangency).
    """

    neutrinos: Floats
    count: Ints  # type: ignore[assignment]  # hides tuple.count, which is not needed here


class ClosestApproach(NamedTuple):
    """One neutrino pair per event that meets the mass constraints, and that of MET as well as possible.

    Attributes
    ----------
    neutrinos
        Four-momenta (E, px, py, pz) in GeV, shape (n, 2, 4): event, leg, component; NaN where a mass
        constraint cannot be met.
    distance
        |**p**_T(ν) + **p**_T(ν̄) − MET| in GeV, shape (n,): 0 where a solution exists (which then is the one
        of the smallest m_tt), larger where the MET constraint is violated, NaN where the neutrinos are.
    """

    neutrinos: Floats
    distance: Floats


@inlined_kernel
def leg_constraints(lepton: Floats, b: Floats, m_top: float, m_w: float) -> tuple[bool, Leg]:
    """Constraints of one leg on its neutrino, as in the description of the module.

    Parameters
    ----------
    lepton, b
        Four-momenta (E, px, py, pz) in GeV, shape (4,).
    m_top, m_w
        Masses in GeV.

    Returns
    -------
    valid
        True if the input is physical and can have a solution.
    leg
        In the frame in which lepton and b together have no p_z: velocity of the lepton (3 numbers), a, unit
        normal of the plane (3), distance of the plane from the origin. Then cosh and sinh of the rapidity
        of this frame.
    """
    nothing = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    energy, pz = lepton[0] + b[0], lepton[3] + b[3]
    # Conditions are written so that NaN fails them.
    if not (lepton[0] > 0.0 and b[0] > 0.0 and abs(pz) < energy < math.inf and m_w > 0.0 and m_top > 0.0):
        return False, nothing
    inverse = 1.0 / math.sqrt((energy - pz) * (energy + pz))
    cosh, sinh = energy * inverse, pz * inverse
    energy_l, lx, ly = cosh * lepton[0] - sinh * lepton[3], lepton[1], lepton[2]
    lz = cosh * lepton[3] - sinh * lepton[0]
    energy_b, bx, by = cosh * b[0] - sinh * b[3], b[1], b[2]
    bz = cosh * b[3] - sinh * b[0]
    if not (energy_l > 0.0 and energy_b > 0.0):
        return False, nothing
    mass2_l = energy_l * energy_l - (lx * lx + ly * ly + lz * lz)
    mass2_b = energy_b * energy_b - (bx * bx + by * by + bz * bz)
    if not (mass2_l >= -SPACELIKE * lepton[0] ** 2 and mass2_b >= -SPACELIKE * b[0] ** 2):
        return False, nothing
    product = energy_l * energy_b - (lx * bx + ly * by + lz * bz)
    inverse_l, inverse_b = 1.0 / energy_l, 1.0 / energy_b
    a_l = 0.5 * (m_w * m_w - mass2_l) * inverse_l
    a_b = 0.5 * (m_top * m_top - m_w * m_w - mass2_b - 2.0 * product) * inverse_b
    # |p| − v·p is positive for every neutrino.
    if not (0.0 < a_l < math.inf and 0.0 < a_b < math.inf):
        return False, nothing
    vx, vy, vz = lx * inverse_l, ly * inverse_l, lz * inverse_l
    nx, ny, nz = bx * inverse_b - vx, by * inverse_b - vy, bz * inverse_b - vz
    norm = math.sqrt(nx * nx + ny * ny + nz * nz)
    if not (norm > _SAME_VELOCITY):
        return False, nothing
    inverse = 1.0 / norm
    return True, (
        vx,
        vy,
        vz,
        a_l,
        nx * inverse,
        ny * inverse,
        nz * inverse,
        (a_l - a_b) * inverse,
        cosh,
        sinh,
    )


@inlined_kernel
def constraints(event: Event) -> tuple[bool, Leg, Leg]:
    """Constraints of both legs of an event.

    Parameters
    ----------
    event
        Visible momenta, MET and masses.

    Returns
    -------
    valid
        True if the input is finite and physical and can have a solution.
    leg, leg_bar
        See `leg_constraints`.
    """
    valid, leg = leg_constraints(event.lepton_plus, event.b, event.m_top, event.m_w_plus)
    if not (valid and math.isfinite(event.mx) and math.isfinite(event.my)):
        return False, leg, leg
    valid, leg_bar = leg_constraints(event.lepton_minus, event.bbar, event.m_antitop, event.m_w_minus)
    return valid, leg, leg_bar


@inlined_kernel
def insert_solution(
    neutrinos: Floats,
    count: int,
    visible_energy: float,
    visible_pz: float,
    x: float,
    y: float,
    z: float,
    x_bar: float,
    y_bar: float,
    z_bar: float,
) -> int:
    """Put a neutrino pair into its place in rising m_tt, unless it is there already.

    Parameters
    ----------
    neutrinos
        Solutions so far, changed in place, shape (4, 2, 4).
    count
        Their number.
    visible_energy, visible_pz
        Sum over leptons and b quarks in GeV.
    x, y, z, x_bar, y_bar, z_bar
        Momenta of neutrino and antineutrino in GeV.

    Returns
    -------
    count
        Number of solutions now.
    """
    if count == MAX_SOLUTIONS:
        return count
    energy = math.sqrt(x * x + y * y + z * z)
    energy_bar = math.sqrt(x_bar * x_bar + y_bar * y_bar + z_bar * z_bar)
    if not (energy + energy_bar < math.inf):
        return count
    same = 2.0 * CONVERGED * (energy + energy_bar)
    for i in range(count):
        if (
            abs(neutrinos[i, 0, 1] - x) + abs(neutrinos[i, 0, 2] - y) + abs(neutrinos[i, 0, 3] - z) < same
            and abs(neutrinos[i, 1, 3] - z_bar) < same
        ):
            return count
    # All solutions have the same transverse momentum of the pair: E² − pz² orders like m_tt.
    e = visible_energy + energy + energy_bar
    pz = visible_pz + z + z_bar
    key = (e - pz) * (e + pz)
    place = count
    while place > 0:
        e = visible_energy + neutrinos[place - 1, 0, 0] + neutrinos[place - 1, 1, 0]
        pz = visible_pz + neutrinos[place - 1, 0, 3] + neutrinos[place - 1, 1, 3]
        if (e - pz) * (e + pz) <= key:
            break
        for leg in range(2):
            for component in range(4):
                neutrinos[place, leg, component] = neutrinos[place - 1, leg, component]
        place -= 1
    neutrinos[place, 0, 0] = energy
    neutrinos[place, 0, 1] = x
    neutrinos[place, 0, 2] = y
    neutrinos[place, 0, 3] = z
    neutrinos[place, 1, 0] = energy_bar
    neutrinos[place, 1, 1] = x_bar
    neutrinos[place, 1, 2] = y_bar
    neutrinos[place, 1, 3] = z_bar
    return count + 1
