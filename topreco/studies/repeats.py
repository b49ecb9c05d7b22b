"""Trainings repeated with several seeds: spread, differences beyond it, and power laws.

Two sets of trainings differ by the difference d of their means. It counts as one only if |d| exceeds
t · s̃ √(1/n₁ + 1/n₂), where t is Student's quantile of the probability within two standard deviations,
95.45 %. Three seeds say little about their own spread, so s̃² is moderated [1]_: a weighted mean of the
variance within the two sets and of what the variances of all sets of the study have in common. The prior's
weight follows from how much more they scatter than variances of so few seeds must: all count alike if they
do not, and each pair is on its own if the study has no common spread. Among twenty comparisons of equals
one is expected to be called a difference.

References
----------
.. [1] G. K. Smyth, Linear models and empirical Bayes methods for assessing differential expression in
   microarray experiments, Stat. Appl. Genet. Mol. Biol. 3 (2004) 3, sections 4 and 6.2.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from topreco.core.statistics import Array

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


class Prior(NamedTuple):
    """Common variance of many sets of trainings.

    Attributes
    ----------
    variance
        Common variance s₀²; NaN if it is unknown.
    ndf
        Degrees of freedom d₀ that it is worth; infinite where the sets do not differ, 0 if it is unknown.
    total
        Degrees of freedom of all sets together, more than which nothing can be worth.
    """

    variance: float
    ndf: float
    total: int


class Difference(NamedTuple):
    """Difference of the means of a set of trainings and of the reference.

    Attributes
    ----------
    mean
        Difference of the means.
    error
        Its error: t · s̃ √(1/n₁ + 1/n₂), see the module; NaN if no spread is known.
    ndf
        Degrees of freedom of t, d₀ included.
    """

    mean: float
    error: float
    ndf: float

    @property
    def significant(self) -> bool:
        """True if it counts as a difference."""
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
    """Half-width of the interval that contains a mean with a probability: t · s/√n.

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


def prior(sets: Iterable[Spread]) -> Prior:
    """Common variance of sets of trainings and what it is worth, by equations 6.2 of [1]_ of the module.

    Parameters
    ----------
    sets
        Spread of each set; those without a variance do not count.
    """
    known = [(each.deviation**2, each.n - 1) for each in sets if each.n > 1 and each.deviation > 0]
    if len(known) < 3:
        return Prior(math.nan, 0.0, sum(ndf for _, ndf in known))
    variances, ndf = np.array(known).T
    logarithms = np.log(variances) - special.digamma(ndf / 2) + np.log(ndf / 2)
    excess = float((logarithms.var(ddof=1) - special.polygamma(1, ndf / 2)).mean())
    total = int(ndf.sum())
    if excess <= 0:
        return Prior(float((ndf * variances).sum() / total), math.inf, total)
    half = float(optimize.brentq(lambda x: math.log(special.polygamma(1, math.exp(x)) / excess), -20, 20))
    half = math.exp(half)
    location = float(logarithms.mean()) + float(special.digamma(half)) - math.log(half)
    return Prior(math.exp(location), 2 * half, total)


def difference(values: Spread, reference: Spread, common: Prior) -> Difference:
    """Difference of the means of two sets of trainings.

    Parameters
    ----------
    values, reference
        Spreads of the two sets.
    common
        Common variance of all sets of the study.
    """
    mean = values.mean - reference.mean
    pair = [each for each in (values, reference) if each.n > 1]
    own = sum(each.n - 1 for each in pair)
    within = sum((each.n - 1) * each.deviation**2 for each in pair)
    if not min(values.n, reference.n) or not (own + common.ndf):
        return Difference(mean, math.nan, 0.0)
    if math.isinf(common.ndf):
        variance = common.variance
    else:
        variance = (within + (common.ndf * common.variance if common.ndf else 0.0)) / (own + common.ndf)
    ndf = min(own + common.ndf, max(common.total, own))
    scale = math.sqrt(variance * (1 / values.n + 1 / reference.n))
    return Difference(mean, float(stats.t.ppf((1 + TWO_SIGMA) / 2, ndf)) * scale, ndf)


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
