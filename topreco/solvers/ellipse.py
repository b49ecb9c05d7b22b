r"""Analytic solution of dileptonic tt̄ by intersecting two ellipses (Betchart, Demina, Harel).

The W and the top mass confine the neutrino of each leg to an ellipse in momentum space, Sec. 2 of [1]_,

.. math:: \mathbf p_\nu = H\,(\cos τ, \sin τ, 1)^T,

and the missing momentum requires that the transverse projections of the two ellipses, one of them reflected
at the missing momentum, intersect: in 0, 2 or 4 points. Where they do not, the points of closest approach
still give a neutrino pair, which violates the MET constraint.

The columns of H are taken in a form without the singularity of the paper's coordinates at sin(b, ℓ) = 0:
with the plane **n**·**p** = d and the constraint \|**p**\| = a + **v**·**p** of `solutions`, v⊥ the part of
**v** in the plane and g = a + d **v**·**n**,

.. math::

    \mathbf p = d\,\mathbf n + \frac{g}{Ω^2}\,\mathbf v_⊥
        + \frac{Z}{Ω}\cos τ\,\frac{\mathbf v_⊥}{|\mathbf v_⊥|}
        + Z \sin τ\,\frac{\mathbf n×\mathbf v_⊥}{|\mathbf v_⊥|},
    \quad Ω^2 = 1 - v_⊥^2, \quad Z^2 = \frac{g^2}{Ω^2} - d^2 .

It is the same ellipse: Z is the paper's, and the paper's Ω² is this one times 1 + w². Where
Z² < 0 there is no ellipse.

Intersections are not found from the pencil of conics, whose eigenvalues merge near tangency, but by putting
the points of one ellipse, with t = tan(τ/2), into the equation of the other: a quartic in t. Newton steps in
both angles polish its roots, so that the mass constraints hold by construction.

References
----------
.. [1] B. A. Betchart, R. Demina, A. Harel, Analytic solutions for neutrino momenta in decay of top quarks,
   Nucl. Instrum. Meth. A 736 (2014) 169, arXiv:1305.1878.
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
from topreco.solvers.quartic import real_roots, roots_by_radicals
from topreco.solvers.solutions import (
    CONVERGED,
    MAX_SOLUTIONS,
    NEWTON_STEPS,
    QUADRATIC_STEPS,
    RESIDUAL,
    ClosestApproach,
    Leg,
    Solutions,
    constraints,
    insert_solution,
)

# Extrema of the quartic closer to zero than this may be two roots that rounding has hidden; Newton decides.
_TOUCHING = 1e-9
# Ratio of axes below which a transverse projection counts as thin, and that to which two thin ones are
# opened: the intersections of straight lines would be double roots of the quartic.
_THIN = 1e-2
_CLOSED = 1e-5
# Origin of τ, away from the directions that symmetric events prefer.
_COS, _SIN = math.cos(0.7), math.sin(0.7)

_GRID = 24
_GRID_COS = np.cos(2 * np.pi / _GRID * np.arange(_GRID))
_GRID_SIN = np.sin(2 * np.pi / _GRID * np.arange(_GRID))
_DESCENT_STEPS = 100
_DESCENT_PRECISION = 1e-9

Transverse = tuple[float, float, float, float]


@inlined_kernel
def _ellipse(leg: Leg, h: Floats) -> bool:
    """Matrix H of a leg into h, shape (3, 3); False where there is no ellipse."""
    vx, vy, vz, a, nx, ny, nz, d, cosh, sinh = leg
    along = vx * nx + vy * ny + vz * nz
    # v × n, as long as v⊥, and v⊥ = n × (v × n), which is exactly in the plane.
    tx, ty, tz = vy * nz - vz * ny, vz * nx - vx * nz, vx * ny - vy * nx
    px, py, pz = ny * tz - nz * ty, nz * tx - nx * tz, nx * ty - ny * tx
    perpendicular2 = tx * tx + ty * ty + tz * tz
    # 1 − v⊥² without the cancellation for a fast lepton.
    omega2 = (1.0 - (vx * vx + vy * vy + vz * vz)) + along * along
    g = a + along * d
    if not (omega2 > 0.0 and g > 0.0):
        return False
    z2 = g * g / omega2 - d * d
    if not (0.0 <= z2 < math.inf):
        return False
    h[0, 2], h[1, 2], h[2, 2] = (
        d * nx + g / omega2 * px,
        d * ny + g / omega2 * py,
        d * nz + g / omega2 * pz,
    )
    if perpendicular2 < 1e-24:
        # A circle about v: any two perpendicular directions of the plane will do.
        if abs(nx) < 0.6:
            tx, ty, tz = 0.0, nz, -ny
        else:
            tx, ty, tz = -nz, 0.0, nx
        px, py, pz = ny * tz - nz * ty, nz * tx - nx * tz, nx * ty - ny * tx
        perpendicular2 = tx * tx + ty * ty + tz * tz
    minor = math.sqrt(z2 / perpendicular2)
    major = math.sqrt(z2 / (omega2 * perpendicular2))
    h[0, 0], h[1, 0], h[2, 0] = major * px, major * py, major * pz
    h[0, 1], h[1, 1], h[2, 1] = -minor * tx, -minor * ty, -minor * tz
    # p_z in the laboratory is cosh p_z + sinh E, and E = a + v·p is linear too.
    for column in range(3):
        energy = vx * h[0, column] + vy * h[1, column] + vz * h[2, column]
        if column == 2:
            energy += a
        h[2, column] = cosh * h[2, column] + sinh * energy
    return True


@kernel
def _opened(a00: float, a01: float, a10: float, a11: float) -> Transverse:
    """A 2×2 matrix with its smaller singular value raised to `_CLOSED` of the larger, if it is below."""
    norm2 = a00 * a00 + a01 * a01 + a10 * a10 + a11 * a11
    determinant = a00 * a11 - a01 * a10
    # Adding the transposed adjugate of the dominant rank-one part raises the other singular value alone.
    scale = math.copysign(max(_CLOSED - abs(determinant) / norm2, 0.0), determinant)
    return a00 + scale * a11, a01 - scale * a10, a10 - scale * a01, a11 + scale * a00


@inlined_kernel
def _polish(
    a: Floats, a_bar: Floats, rx: float, ry: float, ux: float, uy: float, vx: float, vy: float
) -> tuple[bool, float, float, float, float]:
    """Newton steps on A u + Ā v + r = 0 in the angles of the unit vectors u and v."""
    scale = abs(rx) + abs(ry)
    for i in range(2):
        for j in range(2):
            scale += abs(a[i, j]) + abs(a_bar[i, j])
    for i in range(NEWTON_STEPS):
        fx = rx + a[0, 0] * ux + a[0, 1] * uy + a_bar[0, 0] * vx + a_bar[0, 1] * vy
        fy = ry + a[1, 0] * ux + a[1, 1] * uy + a_bar[1, 0] * vx + a_bar[1, 1] * vy
        if i >= QUADRATIC_STEPS and abs(fx) + abs(fy) < RESIDUAL * scale:
            return True, ux, uy, vx, vy
        jx, jy = a[0, 1] * ux - a[0, 0] * uy, a[1, 1] * ux - a[1, 0] * uy
        kx, ky = a_bar[0, 1] * vx - a_bar[0, 0] * vy, a_bar[1, 1] * vx - a_bar[1, 0] * vy
        inverse = 1.0 / (jx * ky - jy * kx)
        step = (fy * kx - fx * ky) * inverse
        step_bar = (fx * jy - fy * jx) * inverse
        ux, uy = ux - step * uy, uy + step * ux
        vx, vy = vx - step_bar * vy, vy + step_bar * vx
        norm, norm_bar = 1.0 / math.sqrt(ux * ux + uy * uy), 1.0 / math.sqrt(vx * vx + vy * vy)
        ux, uy, vx, vy = ux * norm, uy * norm, vx * norm_bar, vy * norm_bar
        size = abs(step) + abs(step_bar)
        if size < CONVERGED:
            return True, ux, uy, vx, vy
        if not (size < math.inf):
            break
    return False, ux, uy, vx, vy


@inlined_kernel
def _intersect(
    a: Floats,
    a_bar: Floats,
    swap: bool,
    visible_energy: float,
    visible_pz: float,
    rx: float,
    ry: float,
    neutrinos: Floats,
) -> int:
    """Intersections of the ellipses A u and −r − Ā v; with `swap`, a belongs to the antineutrino."""
    b00, b01, b10, b11 = a[0, 0], a[0, 1], a[1, 0], a[1, 1]
    c00, c01, c10, c11 = a_bar[0, 0], a_bar[0, 1], a_bar[1, 0], a_bar[1, 1]
    thin = abs(b00 * b11 - b01 * b10) < _THIN * (b00 * b00 + b01 * b01 + b10 * b10 + b11 * b11)
    thin_bar = abs(c00 * c11 - c01 * c10) < _THIN * (c00 * c00 + c01 * c01 + c10 * c10 + c11 * c11)
    if thin and thin_bar:
        b00, b01, b10, b11 = _opened(b00, b01, b10, b11)
        c00, c01, c10, c11 = _opened(c00, c01, c10, c11)
    # v = −Ā⁻¹(A u + r) = −(M u + k).
    inverse = 1.0 / (c00 * c11 - c01 * c10)
    m00, m01 = (c11 * b00 - c01 * b10) * inverse, (c11 * b01 - c01 * b11) * inverse
    m10, m11 = (c00 * b10 - c10 * b00) * inverse, (c00 * b11 - c10 * b01) * inverse
    k0, k1 = (c11 * rx - c01 * ry) * inverse, (c00 * ry - c10 * rx) * inverse
    # u = (cos, sin) counted from another origin.
    m00, m01 = m00 * _COS + m01 * _SIN, m01 * _COS - m00 * _SIN
    m10, m11 = m10 * _COS + m11 * _SIN, m11 * _COS - m10 * _SIN
    # v (1 + t²) as polynomials in t = tan(τ/2), of which |v|² (1 + t²)² = (1 + t²)² is the quartic.
    x0, x1, x2 = k0 + m00, 2.0 * m01, k0 - m00
    y0, y1, y2 = k1 + m10, 2.0 * m11, k1 - m10
    roots = np.empty((2 * MAX_SOLUTIONS, 2))
    h0 = x0 * x0 + y0 * y0 - 1.0
    h1 = 2.0 * (x0 * x1 + y0 * y1)
    h2 = x1 * x1 + y1 * y1 + 2.0 * (x0 * x2 + y0 * y2 - 1.0)
    h3 = 2.0 * (x1 * x2 + y1 * y2)
    h4 = x2 * x2 + y2 * y2 - 1.0
    # Between thin ellipses roots nearly coincide, of which radicals are no judge.
    candidates = -1
    if not (thin or thin_bar):
        candidates = roots_by_radicals(h0, h1, h2, h3, h4, roots)
    if candidates < 0:
        candidates = real_roots(h0, h1, h2, h3, h4, _TOUCHING, roots)
    count = 0
    for i in range(candidates):
        s, c = roots[i, 0], roots[i, 1]
        norm = s * s + c * c
        sine, cosine = 2.0 * s * c / norm, (c * c - s * s) / norm
        vx, vy = -(k0 + m00 * cosine + m01 * sine), -(k1 + m10 * cosine + m11 * sine)
        norm = math.sqrt(vx * vx + vy * vy)
        ux, uy = _COS * cosine - _SIN * sine, _SIN * cosine + _COS * sine
        converged, ux, uy, vx, vy = _polish(a, a_bar, rx, ry, ux, uy, vx / norm, vy / norm)
        if not converged:
            continue
        x = a[0, 0] * ux + a[0, 1] * uy + a[0, 2]
        y = a[1, 0] * ux + a[1, 1] * uy + a[1, 2]
        z = a[2, 0] * ux + a[2, 1] * uy + a[2, 2]
        x_bar = a_bar[0, 0] * vx + a_bar[0, 1] * vy + a_bar[0, 2]
        y_bar = a_bar[1, 0] * vx + a_bar[1, 1] * vy + a_bar[1, 2]
        z_bar = a_bar[2, 0] * vx + a_bar[2, 1] * vy + a_bar[2, 2]
        if swap:
            count = insert_solution(
                neutrinos, count, visible_energy, visible_pz, x_bar, y_bar, z_bar, x, y, z
            )
        else:
            count = insert_solution(
                neutrinos, count, visible_energy, visible_pz, x, y, z, x_bar, y_bar, z_bar
            )
    return count


@inlined_kernel
def _ellipses(event: Event, h: Floats) -> bool:
    """Matrices H of both legs into h, shape (2, 3, 3); False where one has none."""
    valid, leg, leg_bar = constraints(event)
    return valid and _ellipse(leg, h[0]) and _ellipse(leg_bar, h[1])


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
    h = np.empty((2, 3, 3))
    if not _ellipses(event, h):
        return 0
    mx, my = event.mx, event.my
    rx, ry = h[0, 0, 2] + h[1, 0, 2] - mx, h[0, 1, 2] + h[1, 1, 2] - my
    # Ellipses whose bounding boxes are apart do not intersect.
    for axis, r in ((0, rx), (1, ry)):
        reach = math.sqrt(h[0, axis, 0] ** 2 + h[0, axis, 1] ** 2)
        reach += math.sqrt(h[1, axis, 0] ** 2 + h[1, axis, 1] ** 2)
        if not (abs(r) <= reach * (1.0 + 1e-9)):
            return 0
    visible_energy = event.lepton_plus[0] + event.lepton_minus[0] + event.b[0] + event.bbar[0]
    visible_pz = event.lepton_plus[3] + event.lepton_minus[3] + event.b[3] + event.bbar[3]
    # The larger ellipse gives the conic, the smaller is parametrised: its τ resolves the roots.
    area = abs(h[0, 0, 0] * h[0, 1, 1] - h[0, 0, 1] * h[0, 1, 0])
    area_bar = abs(h[1, 0, 0] * h[1, 1, 1] - h[1, 0, 1] * h[1, 1, 0])
    if area <= area_bar:
        return _intersect(h[0], h[1], False, visible_energy, visible_pz, rx, ry, neutrinos)
    return _intersect(h[1], h[0], True, visible_energy, visible_pz, rx, ry, neutrinos)


@kernel
def _descend(
    h: Floats, rx: float, ry: float, ux: float, uy: float, vx: float, vy: float, best: float
) -> tuple[float, float, float, float, float]:
    """Local minimum of the squared length of A u + Ā v + r, and u and v there.

    Newton's method, damped (Levenberg, Marquardt) wherever it does not descend.
    """
    damping = 0.0
    for _ in range(_DESCENT_STEPS):
        ax, ay = h[0, 0, 0] * ux + h[0, 0, 1] * uy, h[0, 1, 0] * ux + h[0, 1, 1] * uy
        bx, by = h[1, 0, 0] * vx + h[1, 0, 1] * vy, h[1, 1, 0] * vx + h[1, 1, 1] * vy
        jx, jy = h[0, 0, 1] * ux - h[0, 0, 0] * uy, h[0, 1, 1] * ux - h[0, 1, 0] * uy
        kx, ky = h[1, 0, 1] * vx - h[1, 0, 0] * vy, h[1, 1, 1] * vx - h[1, 1, 0] * vy
        fx, fy = rx + ax + bx, ry + ay + by
        gradient, gradient_bar = fx * jx + fy * jy, fx * kx + fy * ky
        h00 = jx * jx + jy * jy - fx * ax - fy * ay
        h11 = kx * kx + ky * ky - fx * bx - fy * by
        h01 = jx * kx + jy * ky
        size = jx * jx + jy * jy + kx * kx + ky * ky + abs(fx * ax + fy * ay) + abs(fx * bx + fy * by)
        h00, h11 = h00 + damping * size, h11 + damping * size
        determinant = h00 * h11 - h01 * h01
        if not (determinant > 0.0 and h00 > 0.0):
            if damping > 1e3:
                break
            damping = max(4.0 * damping, 1e-3)
            continue
        step = (h01 * gradient_bar - h11 * gradient) / determinant
        step_bar = (h01 * gradient - h00 * gradient_bar) / determinant
        wx, wy = ux - step * uy, uy + step * ux
        norm = math.sqrt(wx * wx + wy * wy)
        wx, wy = wx / norm, wy / norm
        qx, qy = vx - step_bar * vy, vy + step_bar * vx
        norm = math.sqrt(qx * qx + qy * qy)
        qx, qy = qx / norm, qy / norm
        fx = rx + h[0, 0, 0] * wx + h[0, 0, 1] * wy + h[1, 0, 0] * qx + h[1, 0, 1] * qy
        fy = ry + h[0, 1, 0] * wx + h[0, 1, 1] * wy + h[1, 1, 0] * qx + h[1, 1, 1] * qy
        distance2 = fx * fx + fy * fy
        if distance2 <= best:
            best = distance2
            ux, uy, vx, vy = wx, wy, qx, qy
            damping = 0.25 * damping if damping > 1e-6 else 0.0
        elif damping > 1e3:
            break
        else:
            damping = max(4.0 * damping, 1e-3)
        if abs(step) + abs(step_bar) < _DESCENT_PRECISION:
            break
    return best, ux, uy, vx, vy


@kernel
def closest_event(event: Event, neutrinos: Floats) -> float:
    """Closest approach of one event, for use inside compiled loops where `solve_event` finds nothing.

    Parameters
    ----------
    event
        Visible momenta, MET and masses.
    neutrinos
        Output: the neutrino pair, shape (2, 4); left as it is where a leg has no ellipse.

    Returns
    -------
    distance
        Violation of the MET constraint in GeV; NaN where a leg has no ellipse.
    """
    h = np.empty((2, 3, 3))
    if not _ellipses(event, h):
        return math.nan
    rx, ry = h[0, 0, 2] + h[1, 0, 2] - event.mx, h[0, 1, 2] + h[1, 1, 2] - event.my

    # Squared distances on a grid of both angles. Each local minimum is a start: thin or nested ellipses have
    # several.
    grid = np.empty((_GRID, _GRID))
    for i in range(_GRID):
        px = rx + h[0, 0, 0] * _GRID_COS[i] + h[0, 0, 1] * _GRID_SIN[i]
        py = ry + h[0, 1, 0] * _GRID_COS[i] + h[0, 1, 1] * _GRID_SIN[i]
        for j in range(_GRID):
            fx = px + h[1, 0, 0] * _GRID_COS[j] + h[1, 0, 1] * _GRID_SIN[j]
            fy = py + h[1, 1, 0] * _GRID_COS[j] + h[1, 1, 1] * _GRID_SIN[j]
            grid[i, j] = fx * fx + fy * fy
    best = math.inf
    ux, uy, vx, vy = 1.0, 0.0, 1.0, 0.0
    for i in range(_GRID):
        for j in range(_GRID):
            # Index −1 is the last, as the periodic angles want it.
            if (
                grid[i, j] > grid[i - 1, j]
                or grid[i, j] > grid[i, j - 1]
                or grid[i, j] > grid[(i + 1) % _GRID, j]
                or grid[i, j] > grid[i, (j + 1) % _GRID]
            ):
                continue
            distance2, c, s, c_bar, s_bar = _descend(
                h, rx, ry, _GRID_COS[i], _GRID_SIN[i], _GRID_COS[j], _GRID_SIN[j], grid[i, j]
            )
            if distance2 < best:
                best = distance2
                ux, uy, vx, vy = c, s, c_bar, s_bar

    for leg in range(2):
        c, s = (ux, uy) if leg == 0 else (vx, vy)
        energy2 = 0.0
        for axis in range(3):
            p = h[leg, axis, 0] * c + h[leg, axis, 1] * s + h[leg, axis, 2]
            neutrinos[leg, axis + 1] = p
            energy2 += p * p
        neutrinos[leg, 0] = math.sqrt(energy2)
    return math.sqrt(best)


@kernel
def _solve_events(inputs: Inputs, neutrinos: Floats, count: Ints) -> None:
    for i in range(len(count)):
        count[i] = solve_event(event_of(inputs, i), neutrinos[i])


@kernel
def _approach_events(inputs: Inputs, neutrinos: Floats, distance: Floats) -> None:
    solutions = np.empty((MAX_SOLUTIONS, 2, 4))
    for i in range(len(distance)):
        event = event_of(inputs, i)
        if solve_event(event, solutions) > 0:
            neutrinos[i] = solutions[0]
            distance[i] = 0.0
        else:
            distance[i] = closest_event(event, neutrinos[i])


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
    """All neutrino pairs of dileptonic tt̄ events by intersecting the two neutrino ellipses [1]_.

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
    .. [1] B. A. Betchart, R. Demina, A. Harel, Nucl. Instrum. Meth. A 736 (2014) 169, arXiv:1305.1878.
    """
    name = "ellipse.solve"
    inputs = Inputs.checked(
        name, lepton_plus, lepton_minus, b, bbar, met, m_top, m_antitop, m_w_plus, m_w_minus
    )
    shape = (MAX_SOLUTIONS, 2, 4)
    return Solutions(*solve_events(name, _solve_events, inputs, shape=shape, kind=np.int64, threads=threads))


def closest_approach(
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
) -> ClosestApproach:
    """Neutrino pair of dileptonic tt̄ events at the closest approach of the two neutrino ellipses [1]_.

    It meets the mass constraints exactly. Where the ellipses intersect it is the solution of the smallest
    m_tt; where they do not it violates the MET constraint, by `ClosestApproach.distance`.

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
    closest
        Neutrino momenta and the violation of the MET constraint, 0 where there is none. Both are NaN where
        the mass constraints of a leg have no solution and where the input is not physical.

    Raises
    ------
    TopRecoError
        If an argument has a wrong shape.

    References
    ----------
    .. [1] B. A. Betchart, R. Demina, A. Harel, Nucl. Instrum. Meth. A 736 (2014) 169, arXiv:1305.1878.
    """
    name = "ellipse.closest_approach"
    inputs = Inputs.checked(
        name, lepton_plus, lepton_minus, b, bbar, met, m_top, m_antitop, m_w_plus, m_w_minus
    )
    return ClosestApproach(
        *solve_events(name, _approach_events, inputs, shape=(2, 4), kind=np.float64, threads=threads)
    )
