r"""Dileptonic tt̄ by neutrino weighting: assumed pseudorapidities, weighted by the missing momentum.

With the pseudorapidity of its neutrino assumed, the W and the top mass of a leg leave no freedom: in the
frame in which lepton and b together have no p_z, and with **v**, a, the normal **n** and the distance d of
`solutions`, the transverse momentum of the neutrino obeys

.. math::

    A\,|\mathbf p_T| = a + \mathbf v_T·\mathbf p_T, \qquad \mathbf n_T·\mathbf p_T + B\,|\mathbf p_T| = d,
    \qquad A = \cosh η - v_z \sinh η, \quad B = n_z \sinh η,

a quadratic equation on the line (A **n**_T + B **v**_T)·**p**_T = A d − B a. It has two solutions where

.. math::

    |d \cosh η - (d v_z + a n_z) \sinh η| < |a\,\mathbf n_T + d\,\mathbf v_T|,

which is one interval of η, and none elsewhere. Each pair of solutions of the two legs has the weight [1]_

.. math:: w = \exp\left(-\frac{Δ_x^2 + Δ_y^2}{2σ^2}\right), \qquad
    \mathbf Δ = \mathbf p_T(ν) + \mathbf p_T(\bar ν) - \mathbf p_T^\mathrm{miss} .

A scan in fixed steps of η finds maxima only as well as its grid permits, and misses most at the ends of the
intervals, where the two solutions merge and **p**_T changes fast. Here η = η₀ + h cos θ covers the interval
of each leg, with one solution where sin θ > 0 and the other where sin θ < 0, so that the solutions of a leg
form a closed smooth curve. The weight is scanned on a grid in (θ, θ̄), and its local maxima are refined by
damped Newton steps. Every pair on the way meets the four mass constraints.

Where all six constraints have solutions, each is a maximum with w = 1, between which the weight cannot
choose: the smallest m_tt does.

References
----------
.. [1] D0 Collaboration, Phys. Rev. Lett. 80 (1998) 2063, hep-ex/9706014; in detail Phys. Rev. D 60 (1999)
   052001, hep-ex/9808029; optimised in Phys. Lett. B 752 (2016) 18, arXiv:1508.03322.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from topreco.core.constants import M_TOP, M_W
from topreco.core.errors import TopRecoError
from topreco.solvers.per_event import (
    Event,
    Floats,
    Inputs,
    event_of,
    inlined_kernel,
    kernel,
    solve_events,
)
from topreco.solvers.solutions import Leg, constraints

# Local maxima of the scan that are refined: those of the largest weights. Up to four are exact solutions.
_MAXIMA = 12
# For derivatives with respect to θ.
_STEP = 1e-4
# Newton's method ends at steps in θ of this size, and at deviations from MET of this size in GeV.
_CONVERGED = 1e-8
_NEWTON_STEPS = 60
# No step is larger, in θ.
_LONGEST = 0.5
# Deviations from MET below this, in GeV, come from rounding only.
_EXACT = 0.01


class NeutrinoWeighting(NamedTuple):
    """The neutrino pair of the largest weight.

    Attributes
    ----------
    neutrinos
        Four-momenta (E, px, py, pz) in GeV, shape (n, 2, 4): event, leg (0 = the neutrino of the top, 1 =
        the antineutrino of the antitop), component. They meet the four mass constraints; NaN where these
        have no solution.
    weight
        Weight w of the pair, shape (n,): 1 where it also meets the MET constraint. It may underflow to 0,
        and is NaN where the neutrinos are.
    """

    neutrinos: Floats
    weight: Floats


@inlined_kernel
def _interval(leg: Leg, eta_max: float) -> tuple[bool, float, float]:
    """Middle and half-width of the interval of η, in the frame of the leg, with solutions; False if empty.

    Ends are cut to |η| ≤ eta_max in the laboratory.
    """
    vx, vy, vz, a, nx, ny, nz, distance, _, sinh_frame = leg
    limit = math.hypot(a * nx + distance * vx, a * ny + distance * vy)
    # With u = exp η: |p u + q / u| ≤ 2 · limit.
    slope = distance * vz + a * nz
    p, q = distance - slope, distance + slope
    discriminant = limit * limit - p * q
    if not (discriminant >= 0.0):
        return False, 0.0, 0.0
    root = limit + math.sqrt(discriminant)
    low, high = math.log(abs(q) / root), math.log(root / abs(p))
    if not (low < high):
        return False, 0.0, 0.0
    rapidity = math.asinh(sinh_frame)
    low, high = max(low, -eta_max - rapidity), min(high, eta_max - rapidity)
    return low < high, 0.5 * (low + high), 0.5 * (high - low)


@inlined_kernel
def _transverse(leg: Leg, eta: float) -> tuple[float, float, float, float]:
    """Transverse momenta (x, y, x', y') of both solutions at a pseudorapidity in the frame of the leg."""
    vx, vy, vz, a, nx, ny, nz, distance, _, _ = leg
    growth = math.exp(eta)
    sinh, cosh = 0.5 * (growth - 1.0 / growth), 0.5 * (growth + 1.0 / growth)
    # |p_T| = a + v·p_T and g·p_T = h after division by A.
    scale = 1.0 / (cosh - vz * sinh)
    vx, vy, a = vx * scale, vy * scale, a * scale
    slope = nz * sinh
    gx, gy, h = nx + slope * vx, ny + slope * vy, distance - slope * a
    norm2 = 1.0 / (gx * gx + gy * gy)
    # p_T = (x0, y0) + t u along the line, |p_T| = r0 + r1 t.
    x0, y0 = gx * h * norm2, gy * h * norm2
    norm = math.sqrt(norm2)
    ux, uy = -gy * norm, gx * norm
    r0, r1 = a + vx * x0 + vy * y0, vx * ux + vy * uy
    q2 = (1.0 - r1) * (1.0 + r1)
    # At the ends of the interval rounding may make it negative.
    root = math.sqrt(max(r0 * r0 - q2 * h * h * norm2, 0.0))
    t, t_bar = (r0 * r1 + root) / q2, (r0 * r1 - root) / q2
    return x0 + t * ux, y0 + t * uy, x0 + t_bar * ux, y0 + t_bar * uy


@inlined_kernel
def _on_curve(leg: Leg, middle: float, half: float, theta: float) -> tuple[float, float]:
    """Transverse momentum at an angle θ on the curve of a leg."""
    x, y, x_bar, y_bar = _transverse(leg, middle + half * math.cos(theta))
    first = math.sin(theta) > 0.0
    return x if first else x_bar, y if first else y_bar


@inlined_kernel
def _derivatives(
    leg: Leg, middle: float, half: float, theta: float, x: float, y: float
) -> tuple[float, float, float, float]:
    """First and second derivatives of the transverse momentum (x, y) with respect to θ."""
    xp, yp = _on_curve(leg, middle, half, theta + _STEP)
    xm, ym = _on_curve(leg, middle, half, theta - _STEP)
    first, second = 0.5 / _STEP, 1.0 / (_STEP * _STEP)
    return (
        (xp - xm) * first,
        (yp - ym) * first,
        (xp + xm - 2.0 * x) * second,
        (yp + ym - 2.0 * y) * second,
    )


@kernel
def _refine(
    leg: Leg,
    middle: float,
    half: float,
    theta: float,
    leg_bar: Leg,
    middle_bar: float,
    half_bar: float,
    theta_bar: float,
    mx: float,
    my: float,
) -> tuple[float, float, float]:
    """Local minimum of Δ² near (θ, θ̄) by damped Newton steps: Δ² in GeV², θ, θ̄."""
    x, y = _on_curve(leg, middle, half, theta)
    x_bar, y_bar = _on_curve(leg_bar, middle_bar, half_bar, theta_bar)
    best = (x + x_bar - mx) ** 2 + (y + y_bar - my) ** 2
    damping, moved = 1e-3, True
    g = g_bar = j = j_bar = c = c_bar = mixed = 0.0
    for _ in range(_NEWTON_STEPS):
        if moved:
            dx, dy, ddx, ddy = _derivatives(leg, middle, half, theta, x, y)
            ex, ey, eex, eey = _derivatives(leg_bar, middle_bar, half_bar, theta_bar, x_bar, y_bar)
            fx, fy = x + x_bar - mx, y + y_bar - my
            # Gradient and Hessian of Δ²/2; without the second derivatives where it is not convex.
            g, g_bar = fx * dx + fy * dy, fx * ex + fy * ey
            j, j_bar, mixed = dx * dx + dy * dy, ex * ex + ey * ey, dx * ex + dy * ey
            c, c_bar = j + fx * ddx + fy * ddy, j_bar + fx * eex + fy * eey
            if not (c > 0.0 and c_bar > 0.0 and c * c_bar > mixed * mixed):
                c, c_bar = j, j_bar
        h, h_bar = c + damping * j, c_bar + damping * j_bar
        inverse = 1.0 / (h * h_bar - mixed * mixed)
        step, step_bar = (g_bar * mixed - g * h_bar) * inverse, (g * mixed - g_bar * h) * inverse
        size = max(abs(step), abs(step_bar))
        moved = False
        if size < math.inf:
            shorten = min(1.0, _LONGEST / size) if size > 0.0 else 0.0
            step, step_bar = step * shorten, step_bar * shorten
            x_new, y_new = _on_curve(leg, middle, half, theta + step)
            x_bar_new, y_bar_new = _on_curve(leg_bar, middle_bar, half_bar, theta_bar + step_bar)
            found = (x_new + x_bar_new - mx) ** 2 + (y_new + y_bar_new - my) ** 2
            moved = found < best
            if moved:
                best, theta, theta_bar = found, theta + step, theta_bar + step_bar
                x, y, x_bar, y_bar = x_new, y_new, x_bar_new, y_bar_new
        if size < _CONVERGED or best < _CONVERGED * _CONVERGED:
            break
        # Steps without damping converge quadratically.
        less = 0.1 * damping if damping > 1e-8 else 0.0
        damping = less if moved else 5.0 * max(damping, 1e-6)
    return best, theta, theta_bar


@inlined_kernel
def _curve(leg: Leg, middle: float, half: float, cosines: Floats, xy: Floats) -> None:
    """Points of the curve of a leg at θ = π (i + ½)/n_eta, i = 0 … 2 n_eta − 1, into xy (2, 2 n_eta)."""
    n = len(cosines)
    for i in range(n):
        # Both solutions at this η: θ and 2π − θ.
        k = 2 * n - 1 - i
        xy[0, i], xy[1, i], xy[0, k], xy[1, k] = _transverse(leg, middle + half * cosines[i])


@kernel
def _maxima(xy: Floats, xy_bar: Floats, mx: float, my: float, where: Floats) -> int:
    """Local minima of Δ² on the torus of both curves, the smallest first; rows (Δ², i, ī) of where."""
    n = xy.shape[1]
    squared = np.empty((n, n))
    for i in range(n):
        x, y = mx - xy[0, i], my - xy[1, i]
        for k in range(n):
            dx, dy = x - xy_bar[0, k], y - xy_bar[1, k]
            squared[i, k] = dx * dx + dy * dy
    count = 0
    for i in range(n):
        before, here, after = squared[i - 1], squared[i], squared[(i + 1) % n]
        for k in range(n):
            value, left, right = here[k], k - 1, k + 1 if k + 1 < n else 0
            if (
                value <= here[left]
                and value <= here[right]
                and value <= before[k]
                and value <= after[k]
                and value <= before[left]
                and value <= before[right]
                and value <= after[left]
                and value <= after[right]
                and (count < _MAXIMA or value < where[_MAXIMA - 1, 0])
            ):
                count = min(count + 1, _MAXIMA)
                place = count - 1
                while place > 0 and where[place - 1, 0] > value:
                    where[place] = where[place - 1]
                    place -= 1
                where[place, 0], where[place, 1], where[place, 2] = value, i, k
    return count


@inlined_kernel
def _to_laboratory(leg: Leg, x: float, y: float, eta: float, p4: Floats) -> None:
    """Write the four-momentum (E, px, py, pz) of a neutrino given in the frame of its leg."""
    z = math.hypot(x, y) * math.sinh(eta)
    energy = math.hypot(x, y) * math.cosh(eta)
    p4[1], p4[2], p4[3] = x, y, leg[8] * z + leg[9] * energy
    p4[0] = math.sqrt(p4[1] * p4[1] + p4[2] * p4[2] + p4[3] * p4[3])


@kernel
def _solve_event(event: Event, cosines: Floats, eta_max: float, tolerance: float, neutrinos: Floats) -> float:
    """Write the neutrinos (2, 4) of one event and return Δ² in GeV²; NaN, and nothing written, if unsolved.

    Of the local minima within tolerance (in GeV²) of the smallest Δ², the one of the smallest m_tt counts.
    """
    valid, leg, leg_bar = constraints(event)
    if not valid:
        return math.nan
    mx, my = event.mx, event.my
    valid, middle, half = _interval(leg, eta_max)
    if not valid:
        return math.nan
    valid, middle_bar, half_bar = _interval(leg_bar, eta_max)
    if not valid:
        return math.nan
    n = len(cosines)
    xy, xy_bar = np.empty((2, 2 * n)), np.empty((2, 2 * n))
    _curve(leg, middle, half, cosines, xy)
    _curve(leg_bar, middle_bar, half_bar, cosines, xy_bar)
    where = np.empty((_MAXIMA, 3))
    count = _maxima(xy, xy_bar, mx, my, where)
    smallest = math.inf
    for i in range(count):
        theta, theta_bar = math.pi * (where[i, 1] + 0.5) / n, math.pi * (where[i, 2] + 0.5) / n
        where[i, 0], where[i, 1], where[i, 2] = _refine(
            leg, middle, half, theta, leg_bar, middle_bar, half_bar, theta_bar, mx, my
        )
        smallest = min(smallest, where[i, 0])
    visible = event.lepton_plus + event.lepton_minus + event.b + event.bbar
    pair = np.empty((2, 4))
    best, lightest = math.nan, math.inf
    for i in range(count):
        if where[i, 0] <= smallest + tolerance:
            x, y = _on_curve(leg, middle, half, where[i, 1])
            _to_laboratory(leg, x, y, middle + half * math.cos(where[i, 1]), pair[0])
            x, y = _on_curve(leg_bar, middle_bar, half_bar, where[i, 2])
            _to_laboratory(leg_bar, x, y, middle_bar + half_bar * math.cos(where[i, 2]), pair[1])
            p = visible + pair[0] + pair[1]
            mass_squared = (p[0] - p[3]) * (p[0] + p[3]) - p[1] * p[1] - p[2] * p[2]
            if mass_squared < lightest:
                best, lightest = where[i, 0], mass_squared
                neutrinos[:] = pair
    return best


@kernel
def _solve_events(
    inputs: Inputs, cosines: Floats, eta_max: float, tolerance: float, neutrinos: Floats, squared: Floats
) -> None:
    for i in range(len(squared)):
        squared[i] = _solve_event(event_of(inputs, i), cosines, eta_max, tolerance, neutrinos[i])


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
    sigma_met: float = 20.0,
    eta_max: float = 5.0,
    n_eta: int = 40,
    comparable: float = 1.0,
    threads: int = 1,
) -> NeutrinoWeighting:
    """Neutrino pairs of the largest weight, as in the description of the module [1]_.

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
    sigma_met
        Resolution σ of each component of MET in GeV. Being one number, it sets the scale of the weight, not
        the place of its maxima.
    eta_max
        Largest |η| of a neutrino in the laboratory. Rarely reached: the masses limit η by themselves.
    n_eta
        Number of pseudorapidities of each neutrino in the scan, spread over the interval that the masses
        allow; each has two solutions. More find more of the maxima; refinement makes these exact.
    comparable
        Local maxima with at least this fraction of the largest weight count as equally likely, and of these
        the one of the smallest m_tt is returned. With 1 only the largest weight counts, and m_tt decides
        between exact solutions.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    best
        Neutrino pair and its weight. An event whose mass constraints cannot be met, or whose input is not
        finite or not physical (energies and masses not positive, spacelike beyond rounding, lepton and b of
        one velocity), has NaN.

    Raises
    ------
    TopRecoError
        If an argument has a wrong shape or an option is out of its range.

    References
    ----------
    .. [1] D0 Collaboration, Phys. Rev. D 60 (1999) 052001, hep-ex/9808029.
    """
    name = "neutrino_weighting.solve"
    inputs = Inputs.checked(
        name, lepton_plus, lepton_minus, b, bbar, met, m_top, m_antitop, m_w_plus, m_w_minus
    )
    for option, value in (("sigma_met", sigma_met), ("eta_max", eta_max)):
        if not 0 < value < math.inf:
            raise TopRecoError(f"{name}: {option} is {value}, expected a positive number")
    if n_eta < 2:
        raise TopRecoError(f"{name}: n_eta is {n_eta}, expected 2 or more")
    if not 0 < comparable <= 1:
        raise TopRecoError(f"{name}: comparable is {comparable}, expected more than 0 and at most 1")
    cosines = np.cos(np.pi * (np.arange(n_eta) + 0.5) / n_eta)
    tolerance = -2 * float(sigma_met) ** 2 * math.log(comparable) + _EXACT**2
    options = (cosines, float(eta_max), tolerance)
    neutrinos, squared = solve_events(
        name, _solve_events, inputs, *options, shape=(2, 4), kind=np.float64, threads=threads
    )
    return NeutrinoWeighting(neutrinos, np.exp(-squared / (2 * sigma_met**2)))
