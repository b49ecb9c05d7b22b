"""Trainings repeated with several seeds: spread, differences paired by seed, and power laws.

A difference of two sets of trainings with the same seeds is the mean d of the differences of each seed. It
counts as one only if |d| exceeds t · s/√n, where s is the standard deviation of the n differences and t
Student's quantile for n − 1 degrees of freedom of the probability within two standard deviations, 95.45 %:
4.53 for three seeds, 2.87 for five, 2 for many [1]_. Among twenty comparisons of equals one is expected to.

References
----------
.. [1] Student, The probable error of a mean, Biometrika 6 (1908) 1.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from topreco.evaluation.metrics import Array

TWO_SIGMA = 0.954499736103642
"""Probability within two standard deviations of a normal distribution."""
ONE_SIGMA = 0.682689492137086

_REFITS = 200
_LARGEST_EXPONENT = 4.0


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; the latter is NaN for fewer than two."""

    mean: float
    deviation: float
    n: int


class Difference(NamedTuple):
    """Mean difference to the reference, paired by seed.

    Attributes
    ----------
    mean
        Mean of the differences.
    error
        Its error: t · s/√n, see the module; NaN for fewer than two common seeds.
    n
        Number of common seeds.
    """

    mean: float
    error: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether it counts as a difference."""
        return abs(self.mean) > self.error


class PowerLaw(NamedTuple):
    """y = a + b N^−c with a, b, c ≥ 0, fitted to means over seeds.

    Attributes
    ----------
    a, b, c
        Best values; b is y − a at the smallest N of the fit, `n_first`, in whose units N counts.
    n_first
        Smallest N.
    chi2, ndf
        χ² and degrees of freedom of the fit.
    low, high
        Ends of the central 68 % of a, b and c in refits of points that are redrawn within their errors, as
        many errors as points.
    at
        N to which it is extrapolated.
    value, value_low, value_high
        y there, and the ends of its central 68 % in the same refits.
    """

    a: float
    b: float
    c: float
    n_first: float
    chi2: float
    ndf: int
    low: tuple[float, float, float]
    high: tuple[float, float, float]
    at: float
    value: float
    value_low: float
    value_high: float

    def __call__(self, n: Array) -> Array:
        """The fitted curve at some N."""
        return _curve(np.asarray(n, float) / self.n_first, self.a, self.b, self.c)


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of the values of several seeds, without those that are NaN."""
    known = np.asarray([value for value in values if math.isfinite(value)])
    n = len(known)
    return Spread(float(known.mean()) if n else math.nan, float(known.std(ddof=1)) if n > 1 else math.nan, n)


def student_error(deviation: float, n: int, probability: float) -> float:
    """Half-width of the interval that holds a mean with a probability: t · s/√n.

    Parameters
    ----------
    deviation
        Standard deviation s of the n values.
    n
        Number of values; NaN results for fewer than two.
    probability
        `ONE_SIGMA` or `TWO_SIGMA`.
    """
    if n < 2:
        return math.nan
    return float(stats.t.ppf((1 + probability) / 2, n - 1)) * deviation / math.sqrt(n)


def difference(values: dict[int, float], reference: dict[int, float]) -> Difference:
    """Mean difference of two sets of trainings, paired by seed.

    Parameters
    ----------
    values, reference
        Value by seed; seeds that only one of the two has, or whose value is NaN, do not count.
    """
    found = spread([value - reference[seed] for seed, value in values.items() if seed in reference])
    return Difference(found.mean, student_error(found.deviation, found.n, TWO_SIGMA), found.n)


def power_law(n: Array, y: Array, error: Array, *, at: float, seed: int = 1) -> PowerLaw | None:
    """Fit y = a + b N^−c by least squares.

    It assumes that the law holds over the whole range of N, the smallest sizes included, and beyond it;
    independent points; and normal errors. None of the three is checked but by χ²: the interval of the
    extrapolation covers the statistics of the points, not a change of the law. The interval comes from refits
    and not from the covariance, for the parameters are bounded and far from normal.

    Parameters
    ----------
    n, y, error
        Size, value and standard error of each point, shape (k,); points with an error that is not finite and
        positive are left out.
    at
        Size to extrapolate to.
    seed
        Seed of the redrawn points.

    Returns
    -------
    law
        The fit; None where fewer than four sizes remain, or nothing converges.
    """
    n, y, error = (np.asarray(values, float) for values in (n, y, error))
    used = np.isfinite(y) & np.isfinite(error) & (error > 0)
    n, y, error = n[used], y[used], error[used]
    if len(np.unique(n)) < 4:
        return None
    x = n / n.min()
    best = _fit(x, y, error)
    if best is None:
        return None
    expected = _curve(x, *best)
    rng = np.random.default_rng(seed)
    refits = [_fit(x, expected + error * rng.standard_normal(len(y)), error) for _ in range(_REFITS)]
    found = np.array([fit for fit in refits if fit is not None])
    if len(found) < _REFITS // 2:
        return None
    ends = [(1 - ONE_SIGMA) / 2, (1 + ONE_SIGMA) / 2]
    low, high = np.quantile(found, ends, axis=0)
    far = at / n.min()
    value_low, value_high = np.quantile(_curve(far, *found.T), ends)
    return PowerLaw(
        *best,
        n_first=float(n.min()),
        chi2=float((((y - expected) / error) ** 2).sum()),
        ndf=len(y) - 3,
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        at=at,
        value=float(_curve(far, *best)),
        value_low=float(value_low),
        value_high=float(value_high),
    )


def _curve(x: Array | float, a: Array | float, b: Array | float, c: Array | float) -> Array:
    return np.asarray(a + b * np.asarray(x, float) ** -np.asarray(c, float))


def _fit(x: Array, y: Array, error: Array) -> tuple[float, float, float] | None:
    start = (max(0.5 * float(y.min()), 0.0), max(float(y.max() - 0.5 * y.min()), 1e-6), 0.5)
    try:
        found, _ = optimize.curve_fit(
            _curve, x, y, start, error, absolute_sigma=True, bounds=(0.0, (np.inf, np.inf, _LARGEST_EXPONENT))
        )
    except RuntimeError:
        return None
    return float(found[0]), float(found[1]), float(found[2])
