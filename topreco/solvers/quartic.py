"""Real roots of quartics: Ferrari's formula where it is safe, isolation of the roots where it is not.

Ferrari's formula is fast, but rounding makes it lose roots, or take complex ones for real, where roots nearly
coincide or differ by orders of magnitude. Both show in its resolvent cubic before any root is computed. Then
roots are isolated instead: between two neighbouring critical points a polynomial is monotone, so that signs
at the critical points decide how many real roots there are, and bracketed Newton steps find each to rounding
error. Polynomials of lower degree need no case of their own.
"""

import math

import numpy as np

from topreco.solvers.per_event import Floats, kernel

_STEPS = 80
_PRECISION = 1e-15

# Smallest discriminant of the resolvent cubic, and smallest variance of its roots, both relative, for which
# radicals are trusted: nearly coinciding roots of the quartic and roots far apart make them small.
_DISTINCT = 1e-7
_SPREAD = 1e-6


@kernel
def _bracketed_root(
    c0: float, c1: float, c2: float, c3: float, c4: float, low: float, high: float, rising: bool
) -> float:
    """Root of c0 + c1 x + … + c4 x⁴ between two points where it has different signs."""
    x = 0.5 * (low + high)
    for _ in range(_STEPS):
        value = (((c4 * x + c3) * x + c2) * x + c1) * x + c0
        slope = ((4.0 * c4 * x + 3.0 * c3) * x + 2.0 * c2) * x + c1
        if (value >= 0.0) == rising:
            high = x
        else:
            low = x
        following = x - value / slope
        # Written so that a NaN or infinity from a vanishing slope bisects.
        if not (low <= following <= high):
            following = 0.5 * (low + high)
        if abs(following - x) <= _PRECISION:
            return following
        x = following
    return x


@kernel
def roots_in_unit_interval(
    c0: float, c1: float, c2: float, c3: float, c4: float, tolerance: float, roots: Floats
) -> int:
    """Real roots of c0 + c1 x + c2 x² + c3 x³ + c4 x⁴ in [−1, 1].

    Parameters
    ----------
    c0, c1, c2, c3, c4
        Coefficients; any of them may vanish.
    tolerance
        An extremum at which the polynomial comes closer to zero than this fraction of Σ|c_k|, without
        crossing, counts as two roots: the points at which its parabola there, mirrored, crosses.
    roots
        Where the roots go in rising order, shape (≥ 4,).

    Returns
    -------
    count
        Number of roots; 0 if the polynomial vanishes or is not finite.
    """
    # Here and at both ends, sums are taken in an order that reversing the coefficients does not change. So
    # `real_roots` finds a root at an end either here or in the reversed polynomial, not in both.
    scale = ((abs(c0) + abs(c4)) + abs(c2)) + (abs(c1) + abs(c3))
    if not (0.0 < scale < math.inf):
        return 0
    c0 /= scale
    c1 /= scale
    c2 /= scale
    c3 /= scale
    c4 /= scale

    # Inflections 12 c4 x² + 6 c3 x + 2 c2 = 0 cut the slope into monotone pieces.
    first = second = 1.0
    half = 1.5 * c3
    discriminant = half * half - 6.0 * c4 * c2
    if discriminant >= 0.0:
        # The sum of equal signs avoids the cancellation of the school formula.
        q = -(half + math.copysign(math.sqrt(discriminant), half))
        a = q / (6.0 * c4) if c4 != 0.0 else 1.0
        b = c2 / q if q != 0.0 else 1.0
        first = min(max(min(a, b), -1.0), 1.0)
        second = min(max(a, b, -1.0), 1.0)

    count = 0
    previous = -1.0
    value = ((c0 + c4) + c2) - (c1 + c3)
    left = -1.0
    left_slope = c1 - 2.0 * c2 + 3.0 * c3 - 4.0 * c4
    for piece in range(4):
        touching = False
        if piece < 3:
            right = first if piece == 0 else (second if piece == 1 else 1.0)
            right_slope = ((4.0 * c4 * right + 3.0 * c3) * right + 2.0 * c2) * right + c1
            turns = (left_slope >= 0.0) != (right_slope >= 0.0)
            if turns:
                x = _bracketed_root(c1, 2.0 * c2, 3.0 * c3, 4.0 * c4, 0.0, left, right, right_slope >= 0.0)
            left, left_slope = right, right_slope
            if not turns:
                continue
            following = (((c4 * x + c3) * x + c2) * x + c1) * x + c0
            curvature = (12.0 * c4 * x + 6.0 * c3) * x + 2.0 * c2
            touching = abs(following) <= tolerance and following * curvature >= 0.0
        else:
            x = 1.0
            following = ((c0 + c4) + c2) + (c1 + c3)
        if (value >= 0.0) != (following >= 0.0):
            if count < 4:
                roots[count] = _bracketed_root(c0, c1, c2, c3, c4, previous, x, following >= 0.0)
                count += 1
        elif touching and count < 3:
            shift = math.sqrt(2.0 * following / curvature) if curvature != 0.0 else 0.0
            roots[count] = x - shift
            roots[count + 1] = x + shift
            count += 2
        previous, value = x, following
    return count


@kernel
def roots_by_radicals(c0: float, c1: float, c2: float, c3: float, c4: float, roots: Floats) -> int:
    """Real roots x/y of c0 y⁴ + c1 x y³ + c2 x² y² + c3 x³ y + c4 x⁴ by Ferrari's formula.

    Parameters
    ----------
    c0, c1, c2, c3, c4
        Coefficients.
    roots
        Where the pairs (x, y) go, one of which is 1, in no order, shape (≥ 4, 2).

    Returns
    -------
    count
        Number of roots, or −1 where rounding could change it.
    """
    # Whichever of x and y keeps the leading coefficient large.
    reverse = abs(c0) > abs(c4)
    if reverse:
        c0, c1, c3, c4 = c4, c3, c1, c0
    lead = 1.0 / c4
    b, c, d = c2 * lead, c1 * lead, c0 * lead
    a = 0.25 * c3 * lead
    # Depressed quartic t⁴ + p t² + q t + r with t = x + a.
    a2 = a * a
    p = b - 6.0 * a2
    q = c - 2.0 * a * (b - 4.0 * a2)
    r = d - a * (c - a * (b - 3.0 * a2))
    # It is (t² + u t + …)(t² − u t + …), where z = u² > 0 is the largest root of the resolvent
    # z³ + 2 p z² + (p² − 4 r) z − q², or with z = 2 (s − p)/3 the largest of s³ − 3 f s + 2 g = 0.
    f = 0.25 * (p * p + 12.0 * r)
    g = 0.125 * (36.0 * p * r - p * p * p - 13.5 * q * q)
    f3, g2 = f * f * f, g * g
    discriminant = f3 - g2
    # Written so that NaN is not trusted.
    if not (abs(discriminant) > _DISTINCT * (abs(f3) + g2) and abs(f) > _SPREAD * p * p):
        return -1
    if discriminant > 0.0:
        s = 2.0 * math.sqrt(f) * math.cos(math.acos(-g / math.sqrt(f3)) / 3.0)
    else:
        s = -math.copysign(np.cbrt(abs(g) + math.sqrt(-discriminant)), g)
        s += f / s
    z = 2.0 / 3.0 * (s - p)
    quadratic = p * p - 4.0 * r
    z -= (((z + 2.0 * p) * z + quadratic) * z - q * q) / ((3.0 * z + 4.0 * p) * z + quadratic)
    if not (z > _SPREAD * abs(p)):
        return -1
    u = math.sqrt(z)
    ratio = 2.0 * q / u
    count = 0
    for sign in (1.0, -1.0):
        inner = sign * ratio - z - 2.0 * p
        if inner < 0.0:
            continue
        root = math.sqrt(inner)
        for side in (1.0, -1.0):
            x = 0.5 * (side * root - sign * u) - a
            # One Newton step, the size of which shows how well the formula did.
            value = (((c4 * x + c3) * x + c2) * x + c1) * x + c0
            step = value / (((4.0 * c4 * x + 3.0 * c3) * x + 2.0 * c2) * x + c1)
            if not (abs(step) < 1e-6 * (abs(x) + u)):
                return -1
            roots[count, 0] = 1.0 if reverse else x - step
            roots[count, 1] = x - step if reverse else 1.0
            count += 1
    return count


@kernel
def real_roots(c0: float, c1: float, c2: float, c3: float, c4: float, tolerance: float, roots: Floats) -> int:
    """All real roots x/y of c0 y⁴ + c1 x y³ + c2 x² y² + c3 x³ y + c4 x⁴, also at infinity.

    A vanishing leading coefficient is a root at infinity, (x, y) = (1, 0), and a small one a root nearby:
    neither is a special case, because roots beyond 1 are found as roots of the reversed polynomial within.

    Parameters
    ----------
    c0, c1, c2, c3, c4
        Coefficients; any of them may vanish.
    tolerance
        Distance from zero below which an extremum counts as two roots, see `roots_in_unit_interval`.
    roots
        Where the pairs (x, y) go, one of which is 1, in no order, shape (≥ 8, 2).

    Returns
    -------
    count
        Number of roots.
    """
    inside = roots_in_unit_interval(c0, c1, c2, c3, c4, tolerance, roots[:4, 0])
    outside = roots_in_unit_interval(c4, c3, c2, c1, c0, tolerance, roots[4:, 1])
    for i in range(inside):
        roots[i, 1] = 1.0
    for i in range(outside):
        roots[inside + i, 1] = roots[4 + i, 1]
        roots[inside + i, 0] = 1.0
    return inside + outside
