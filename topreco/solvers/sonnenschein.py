r"""Analytic solution of dileptonic tt̄ by two conics and their resultant (Sonnenschein).

The W and the top mass of each leg give a linear relation between the components of its neutrino's momentum
[1]_,

.. math:: a_1 + a_2 p_x + a_3 p_y + a_4 p_z = 0,

which removes p_z; the W mass constraint then is a conic in (p_x, p_y),

.. math::

    c_{00} p_y^2 + (c_{10} p_x + c_{11})\, p_y + (c_{20} p_x^2 + c_{21} p_x + c_{22}) = 0 .

The missing momentum turns the conic of the antineutrino into a second one, d, in the same variables. The
resultant of the two in p_y is the quartic h₀ p_x⁴ + … + h₄ = 0, and p_y and p_z follow linearly.

The published appendix has one wrong sign in the coefficients h₀ and h₁. Here the resultant is not written
out: with c_i and d_i the polynomials in p_x in front of p_y^{2−i}, it is
(c₀d₂ − c₂d₀)² − (c₀d₁ − c₁d₀)(c₁d₂ − c₂d₁), formed by multiplying polynomials. Compared with the paper,

- p_y is counted from the axis of the first conic, which leaves the resultant as it is and makes c₁ = 0;
- p_x runs over the interval in which both conics have real points, mapped to [−1, 1], so that the leading
  coefficient of the quartic may vanish;
- where |a₄| is small the conic collapses to a double line. It is opened, by a tilt of the plane, before the
  quartic is formed;
- real roots come from Ferrari's formula or, where roots nearly coincide, from isolation (`quartic`);
- each root is polished by Newton steps on the constraints themselves, which undoes both that and rounding.

The mass of the lepton is kept everywhere.

References
----------
.. [1] L. Sonnenschein, Analytical solution of ttbar dilepton equations, Phys. Rev. D 73 (2006) 054015,
   hep-ph/0603011; erratum Phys. Rev. D 78 (2008) 079902. See also hep-ph/0510100.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from topreco.core.constants import M_TOP, M_W
from topreco.solvers.per_event import (
    Event,
    Floats,
    Inputs,
    Ints,
    event_of,
    inlined_kernel,
    kernel,
    solve_events,
)
from topreco.solvers.quartic import roots_by_radicals, roots_in_unit_interval
from topreco.solvers.solutions import (
    CONVERGED,
    MAX_SOLUTIONS,
    NEWTON_STEPS,
    QUADRATIC_STEPS,
    RESIDUAL,
    Leg,
    Solutions,
    constraints,
    insert_solution,
)

# Smallest |a₄|/|(a₂, a₃, a₄)| of a conic: its square, the width of the conic, has to stay above rounding.
_THIN = 1e-5
# Below this, p_z is taken from the W constraint, with both signs of the root, not from the linear relation.
_STEEP = 4e-3
_FOLD = 1e-6
# Extrema of the quartic closer to zero than this may be two roots that rounding has hidden; Newton decides.
_TOUCHING = 1e-9
# p_y from the linear combination of the conics is not used where its denominator has lost this much to
# cancellation.
_CANCELLED = 1e-6
# Roots that fill less than this fraction of the interval are searched for again in a part of it.
_CLUSTERED = 0.02
_ZOOMS = 3

Conic = tuple[float, float, float, float, float, float]


@inlined_kernel
def _conic(leg: Leg, nz: float, sign: float, mx: float, my: float) -> Conic:
    """Coefficients (c00, c10, c11, c20, c21, c22) of a leg's conic in (x, y).

    The transverse momentum of the leg's neutrino is (mx, my) + sign · (x, y); nz replaces the z component of
    the plane's normal.
    """
    vx, vy, vz, a, nx, ny, _, distance, _, _ = leg
    # p_z and E as linear functions of the leg's own transverse momentum, both times nz.
    z0, z1, z2 = distance, -nx, -ny
    e0, e1, e2 = a * nz + vz * z0, vx * nz + vz * z1, vy * nz + vz * z2
    # The same as functions of x and y.
    z0, z1, z2 = z0 + z1 * mx + z2 * my, sign * z1, sign * z2
    e0, e1, e2 = e0 + e1 * mx + e2 * my, sign * e1, sign * e2
    # E² − p_z² − p_T² = 0, with (E − p_z)(E + p_z) against cancellation for forward leptons.
    s0, s1, s2 = e0 + z0, e1 + z1, e2 + z2
    d0, d1, d2 = e0 - z0, e1 - z1, e2 - z2
    nz2 = nz * nz
    return (
        s2 * d2 - nz2,
        s1 * d2 + s2 * d1,
        s0 * d2 + s2 * d0 - 2.0 * sign * my * nz2,
        s1 * d1 - nz2,
        s0 * d1 + s1 * d0 - 2.0 * sign * mx * nz2,
        s0 * d0 - (mx * mx + my * my) * nz2,
    )


@inlined_kernel
def _range(conic: Conic) -> tuple[bool, float, float]:
    """Interval of p_x in which a conic has real points; False if it is no real ellipse."""
    c00, c10, c11, c20, c21, c22 = conic
    # Discriminant of the conic as a quadratic in p_y.
    q2 = c10 * c10 - 4.0 * c00 * c20
    q1 = c10 * c11 - 2.0 * c00 * c21
    q0 = c11 * c11 - 4.0 * c00 * c22
    discriminant = q1 * q1 - q2 * q0
    if not (q2 < 0.0 and discriminant >= 0.0):
        return False, 0.0, 0.0
    root = math.sqrt(discriminant)
    return True, (-q1 + root) / q2, (-q1 - root) / q2


@inlined_kernel
def _crossings(c: Conic, d: Conic, low: float, high: float, thin: bool, roots: Floats) -> int:
    """Values of p_x between two limits at which two conics share a p_y: real roots of their resultant.

    They go into the first column of roots.
    """
    # Polynomials in s = (p_x − middle)/half in front of the powers of p_y.
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    c00, c10, c11, c20, c21, c22 = c
    d00, d10, d11, d20, d21, d22 = d
    d22 += (d21 + d20 * middle) * middle
    d21 = (d21 + 2.0 * d20 * middle) * half
    d20 *= half * half
    d11 += d10 * middle
    d10 *= half
    # In y = p_y − p − q s, from the axis of c, its equation is y² + w = 0.
    inverse = 1.0 / c00
    p, q = -0.5 * (c11 + c10 * middle) * inverse, -0.5 * c10 * half * inverse
    w0 = (c22 + (c21 + c20 * middle) * middle) * inverse - p * p
    w1 = (c21 + 2.0 * c20 * middle) * half * inverse - 2.0 * p * q
    w2 = c20 * half * half * inverse - q * q
    # That of d is d00 y² + L y + d₂ = 0, and their resultant K² + w L² with K = d₂ − d00 w.
    k0 = d22 + (d11 + d00 * p) * p - d00 * w0
    k1 = d21 + d11 * q + d10 * p + 2.0 * d00 * p * q - d00 * w1
    k2 = d20 + (d10 + d00 * q) * q - d00 * w2
    l0, l1 = d11 + 2.0 * d00 * p, d10 + 2.0 * d00 * q
    m0, m1, m2 = l0 * l0, 2.0 * l0 * l1, l1 * l1
    h0 = k0 * k0 + w0 * m0
    h1 = 2.0 * k0 * k1 + w0 * m1 + w1 * m0
    h2 = k1 * k1 + 2.0 * k0 * k2 + w0 * m2 + w1 * m1 + w2 * m0
    h3 = 2.0 * k1 * k2 + w1 * m2 + w2 * m1
    h4 = k2 * k2 + w2 * m2
    # The coefficients from thin conics have lost digits, which radicals cannot see.
    found = -1 if thin else roots_by_radicals(h0, h1, h2, h3, h4, roots)
    if found < 0:
        count = roots_in_unit_interval(h0, h1, h2, h3, h4, _TOUCHING, roots[:, 0])
        for i in range(count):
            roots[i, 0] = middle + half * roots[i, 0]
        return count
    count = 0
    for i in range(found):
        if abs(roots[i, 0]) <= abs(roots[i, 1]):
            roots[count, 0] = middle + half * roots[i, 0] / roots[i, 1]
            count += 1
    return count


@inlined_kernel
def _longitudinal(leg: Leg, nz: float, x: float, y: float) -> tuple[int, float, float]:
    """Values of p_z at a transverse momentum: their number (1 or 2), the first, the second."""
    vx, vy, vz, a, nx, ny, _, distance, _, _ = leg
    if abs(nz) >= _STEEP:
        return 1, (distance - nx * x - ny * y) / nz, 0.0
    energy = a + vx * x + vy * y
    gamma2 = 1.0 / (1.0 - vz * vz)
    # At a vanishing root, a fold of the ellipse, Newton's method has no direction.
    root = math.sqrt(max(energy * energy - (x * x + y * y) / gamma2, _FOLD * energy * energy))
    return 2, (energy * vz + root) * gamma2, (energy * vz - root) * gamma2


@inlined_kernel
def _steps(leg: Leg, x: float, y: float, z: float) -> tuple[float, float, float, float, float, float, float]:
    """Linearised constraints of a leg with the step dz eliminated.

    Returns (gx, gy, r, kx, ky, s, residual): gx dx + gy dy = r is free of dz, dz = s + kx dx + ky dy, and the
    residual of the constraints is relative.
    """
    vx, vy, vz, a, nx, ny, nz, distance, _, _ = leg
    energy = math.sqrt(x * x + y * y + z * z)
    inverse = 1.0 / energy
    fx, fy, fz = x * inverse - vx, y * inverse - vy, z * inverse - vz
    f = a + vx * x + vy * y + vz * z - energy
    h = distance - nx * x - ny * y - nz * z
    residual = (abs(f) + abs(h)) * inverse
    gx, gy, r = fx * nz - nx * fz, fy * nz - ny * fz, f * nz - h * fz
    # dz from that of the two constraints that depends on it more.
    steep = abs(fz) > abs(nz)
    inverse = 1.0 / (fz if steep else nz)
    kx, ky, s = fx if steep else nx, fy if steep else ny, f if steep else h
    return gx, gy, r, -kx * inverse, -ky * inverse, s * inverse, residual


@inlined_kernel
def _polish(
    leg: Leg, leg_bar: Leg, mx: float, my: float, x: float, y: float, z: float, z_bar: float
) -> tuple[bool, float, float, float, float]:
    """Newton steps on the mass constraints in (p_x, p_y, p_z, p̄_z); MET is met throughout."""
    for i in range(NEWTON_STEPS):
        gx, gy, r, kx, ky, s, residual = _steps(leg, x, y, z)
        gx_bar, gy_bar, r_bar, kx_bar, ky_bar, s_bar, residual_bar = _steps(leg_bar, mx - x, my - y, z_bar)
        if i >= QUADRATIC_STEPS and residual + residual_bar < RESIDUAL:
            return True, x, y, z, z_bar
        # The transverse steps of the antineutrino are (−dx, −dy).
        inverse = 1.0 / (gx_bar * gy - gx * gy_bar)
        dx = -(r * gy_bar + r_bar * gy) * inverse
        dy = (gx * r_bar + gx_bar * r) * inverse
        dz = s + kx * dx + ky * dy
        dz_bar = s_bar - kx_bar * dx - ky_bar * dy
        x, y, z, z_bar = x + dx, y + dy, z + dz, z_bar + dz_bar
        size = abs(x) + abs(y) + abs(z) + abs(z_bar) + abs(mx) + abs(my)
        if not (size < math.inf):
            break
        if abs(dx) + abs(dy) + abs(dz) + abs(dz_bar) < CONVERGED * size:
            return True, x, y, z, z_bar
    return False, x, y, z, z_bar


@inlined_kernel
def _in_laboratory(leg: Leg, x: float, y: float, z: float) -> float:
    """Longitudinal momentum p_z cosh + E sinh of a neutrino in the laboratory, with E = a + v·p."""
    vx, vy, vz, a, _, _, _, _, cosh, sinh = leg
    return cosh * z + sinh * (a + vx * x + vy * y + vz * z)


@kernel
def solve_event(event: Event, neutrinos: Floats) -> int:
    """Solutions of one event, for use inside compiled loops.

    Parameters
    ----------
    event
        Visible momenta, MET and masses.
    neutrinos
        Output: the solutions in rising m_tt, shape (4, 2, 4); beyond the last it is left as it is.

    Returns
    -------
    count
        Number of solutions.
    """
    valid, leg, leg_bar = constraints(event)
    if not valid:
        return 0
    mx, my = event.mx, event.my
    nz = math.copysign(max(abs(leg[6]), _THIN), leg[6])
    nz_bar = math.copysign(max(abs(leg_bar[6]), _THIN), leg_bar[6])

    conic = _conic(leg, nz, 1.0, 0.0, 0.0)
    valid, low, high = _range(conic)
    if not valid:
        return 0
    conic_bar = _conic(leg_bar, nz_bar, -1.0, mx, my)
    valid, low_bar, high_bar = _range(conic_bar)
    if not valid:
        return 0
    # Rounding may move the ends.
    margin = 1e-4 * (high - low + high_bar - low_bar)
    low, high = max(low, low_bar) - margin, min(high, high_bar) + margin
    if not (high > low):
        return 0
    thin = abs(nz) < _STEEP or abs(nz_bar) < _STEEP
    # What one pass finds the next may lose to rounding, so that the candidates of all are kept.
    roots = np.empty((MAX_SOLUTIONS * (1 + _ZOOMS), 2))
    found = candidates = _crossings(conic, conic_bar, low, high, thin, roots)
    for _ in range(_ZOOMS):
        if found == 0:
            break
        first = last = roots[candidates - 1, 0]
        for i in range(candidates - found, candidates):
            first, last = min(first, roots[i, 0]), max(last, roots[i, 0])
        margin = _CLUSTERED * (high - low)
        if last - first > margin:
            break
        # The quartic cannot resolve roots that fill so little of the interval.
        low, high = max(low, first - margin), min(high, last + margin)
        found = _crossings(conic, conic_bar, low, high, thin, roots[candidates:])
        candidates += found

    visible_energy = event.lepton_plus[0] + event.lepton_minus[0] + event.b[0] + event.bbar[0]
    visible_pz = event.lepton_plus[3] + event.lepton_minus[3] + event.b[3] + event.bbar[3]
    c00, c10, c11, c20, c21, c22 = conic
    d00, d10, d11, d20, d21, d22 = conic_bar
    count = 0
    inverse = 1.0 / c00
    for i in range(candidates):
        x = roots[i, 0]
        # As in `_crossings`.
        axis = -0.5 * (c11 + c10 * x) * inverse
        w = (c22 + (c21 + c20 * x) * x) * inverse - axis * axis
        d1, d2 = d11 + d10 * x, d22 + (d21 + d20 * x) * x
        denominator = d1 + 2.0 * d00 * axis
        linear = abs(denominator) > _CANCELLED * (abs(d1) + abs(2.0 * d00 * axis))
        for branch in range(1 if linear else 2):
            if linear:
                y = axis - (d2 + (d1 + d00 * axis) * axis - d00 * w) / denominator
            else:
                y = axis + (1.0 - 2.0 * branch) * math.sqrt(max(-w, 0.0))
            branches, z0, z1 = _longitudinal(leg, nz, x, y)
            branches_bar, z0_bar, z1_bar = _longitudinal(leg_bar, nz_bar, mx - x, my - y)
            for k in range(branches):
                for k_bar in range(branches_bar):
                    z = z0 if k == 0 else z1
                    z_bar = z0_bar if k_bar == 0 else z1_bar
                    converged, px, py, pz, pz_bar = _polish(leg, leg_bar, mx, my, x, y, z, z_bar)
                    if converged:
                        pz = _in_laboratory(leg, px, py, pz)
                        pz_bar = _in_laboratory(leg_bar, mx - px, my - py, pz_bar)
                        count = insert_solution(
                            neutrinos, count, visible_energy, visible_pz, px, py, pz, mx - px, my - py, pz_bar
                        )
    return count


@kernel
def _solve_events(inputs: Inputs, neutrinos: Floats, count: Ints) -> None:
    for i in range(len(count)):
        count[i] = solve_event(event_of(inputs, i), neutrinos[i])


def solve(
    lepton_plus: ArrayLike,
    lepton_minus: ArrayLike,
    b: ArrayLike,
    bbar: ArrayLike,
    met: ArrayLike,
    *,
    m_top: ArrayLike = M_TOP,
    m_antitop: ArrayLike = M_TOP,
    m_w_plus: ArrayLike = M_W,
    m_w_minus: ArrayLike = M_W,
    threads: int = 1,
) -> Solutions:
    """All neutrino pairs of dileptonic tt̄ events by Sonnenschein's method [1]_.

    Parameters
    ----------
    lepton_plus, lepton_minus
        Four-momenta (E, px, py, pz) of ℓ⁺ (from the top) and ℓ⁻ in GeV, shape (n, 4).
    b, bbar
        Four-momenta of the b jets that go with ℓ⁺ and with ℓ⁻ in GeV, shape (n, 4).
    met
        Missing transverse momentum (px, py) in GeV, shape (n, 2).
    m_top, m_antitop, m_w_plus, m_w_minus
        Masses in GeV, scalars or of shape (n,).
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    solutions
        Neutrino momenta and their number, in rising m_tt. An event whose input is not finite or not
        physical (energies and masses not positive, spacelike beyond rounding, lepton and b of one
        velocity) has none.

    Raises
    ------
    TopRecoError
        If an argument has a wrong shape.

    References
    ----------
    .. [1] L. Sonnenschein, Phys. Rev. D 73 (2006) 054015, hep-ph/0603011.
    """
    name = "sonnenschein.solve"
    inputs = Inputs.checked(
        name, lepton_plus, lepton_minus, b, bbar, met, m_top, m_antitop, m_w_plus, m_w_minus
    )
    shape = (MAX_SOLUTIONS, 2, 4)
    return Solutions(*solve_events(name, _solve_events, inputs, shape=shape, kind=np.int64, threads=threads))
