"""Ratios of densities p_A(x)/p_B(x) as weights of events: calibration, quality, distance of two spectra."""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, isotonic_regression, minimize
from scipy.special import expit

from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, FloatArray

SHARE_OF_LARGEST = 0.001
"""Share of the events, those with the largest weights, whose part of all weights is quoted."""


LARGEST_SHIFT = 5.0
"""Largest correction of a log-ratio by its calibration."""
SLOPES = (0.1, 3.0)
"""Least and largest factor of a log-ratio in a calibration by a straight line."""
SIGNIFICANCE = 3.0
"""Standard deviations by which the slope of a calibration by a straight line differs from 1."""


class LogRatioCalibration(NamedTuple):
    """Rising function of a log-ratio: straight lines between knots, of slope 1 beyond them.

    Attributes
    ----------
    knots
        Log-ratios as learnt, rising, shape (k,), k ≥ 1.
    values
        Calibrated log-ratios there, rising, shape (k,).
    """

    knots: FloatArray
    values: FloatArray

    def __call__(self, log_ratio: FloatArray) -> FloatArray:
        """Calibrated log-ratios, shape (n,)."""
        inside = np.interp(log_ratio, self.knots, self.values)
        below = np.minimum(log_ratio - self.knots[0], 0.0)
        return np.asarray(inside + below + np.maximum(log_ratio - self.knots[-1], 0.0))


def calibrate_log_ratio(
    log_ratio: FloatArray, in_a: BoolArray, weight: FloatArray, *, bin_events: int, max_bins: int
) -> LogRatioCalibration:
    """Calibration of a log-ratio on events that it has not been learnt from: isotonic, or by a straight line.

    In bins of equal population the share of A, after both samples are scaled to the same sum of weights, is
    p_A/(p_A + p_B). Its isotonic regression [1]_ is the rising function that comes closest; neighbours that
    it makes equal are one bin. Each bin is a knot at its median, where the log-ratio is shifted such that the
    sum of the probabilities of A is that of its events of A.

    Where there are not enough events for two bins, it is the straight line of largest likelihood [2]_ if its
    slope differs from 1 significantly, and the shift of largest likelihood if not.

    Parameters
    ----------
    log_ratio
        As learnt, shape (n,).
    in_a
        Whether an event belongs to A, shape (n,).
    weight
        Signed weights, shape (n,).
    bin_events
        Smallest number of events in a bin.
    max_bins
        Largest number of bins.

    Raises
    ------
    TopRecoError
        If the weights of a sample do not have a positive sum.

    References
    ----------
    .. [1] B. Zadrozny, C. Elkan, Transforming classifier scores into accurate multiclass probability
       estimates, KDD 2002.
    .. [2] J. Platt, Probabilistic outputs for support vector machines and comparisons to regularized
       likelihood methods, Advances in Large Margin Classifiers (1999).
    """
    share = _normalised(in_a, weight)
    n_bins = max(1, min(max_bins, len(log_ratio) // bin_events))
    if n_bins == 1 < max_bins and (line := _straight_line(log_ratio, in_a, share)) is not None:
        return line
    parts = np.array_split(np.argsort(log_ratio, kind="stable"), n_bins)
    a = np.array([share[part][in_a[part]].sum() for part in parts])
    b = np.array([share[part][~in_a[part]].sum() for part in parts])
    # A bin that its negative weights empty says nothing.
    used = np.flatnonzero(a + b > 0)
    fitted = isotonic_regression((a / (a + b))[used], weights=(a + b)[used])
    found = []
    for start, end in itertools.pairwise(fitted.blocks):
        block = np.concatenate([parts[i] for i in used[start:end]])
        knot = float(np.median(log_ratio[block]))
        found.append((knot, knot + _shift(log_ratio[block], share[block], a[used[start:end]].sum())))
    knots, values = np.array(found).T
    # With weights of both signs neighbours may be out of order.
    rising = np.ones(len(knots), bool)
    for of in (knots, values):
        rising[1:] &= np.diff(np.maximum.accumulate(of)) > 0
    return LogRatioCalibration(knots[rising], values[rising])


def _straight_line(log_ratio: FloatArray, in_a: BoolArray, share: FloatArray) -> LogRatioCalibration | None:
    """Slope within `SLOPES` and shift of largest likelihood, None if the slope may as well be 1."""
    sign = np.where(in_a, 1.0, -1.0)

    def loss(line: FloatArray) -> tuple[float, FloatArray]:
        f = sign * (line[0] * log_ratio + line[1])
        slope = -share * sign * expit(-f)
        return float((share * np.logaddexp(0.0, -f)).sum()), np.array([slope @ log_ratio, slope.sum()])

    limits = [SLOPES, (-LARGEST_SHIFT, LARGEST_SHIFT)]
    best = minimize(loss, (1.0, 0.0), jac=True, method="L-BFGS-B", bounds=limits)
    of_slope_one, _ = loss(np.array([1.0, _shift(log_ratio, share, share[in_a].sum())]))
    # Both samples have a sum of 1: the log-likelihood of n events is n/2 times the loss.
    gain = effective_number(share) * (of_slope_one - best.fun)
    if gain < SIGNIFICANCE**2:
        return None
    knots = np.array([log_ratio.min(), log_ratio.max()])
    return LogRatioCalibration(knots, best.x[0] * knots + best.x[1])


def _shift(log_ratio: FloatArray, share: FloatArray, in_a: float) -> float:
    """Shift of log-ratios with which the sum of their probabilities of A is that of the events of A.

    This is the shift of largest likelihood. Where the bin has events of one sample only, it ends at
    `LARGEST_SHIFT`.
    """

    def excess(shift: float) -> float:
        return float((share * expit(log_ratio + shift)).sum()) - in_a

    if excess(-LARGEST_SHIFT) >= 0:
        return -LARGEST_SHIFT
    if excess(LARGEST_SHIFT) <= 0:
        return LARGEST_SHIFT
    return float(brentq(excess, -LARGEST_SHIFT, LARGEST_SHIFT))


def _normalised(in_a: BoolArray, weight: FloatArray) -> FloatArray:
    """Weights that add up to 1 in A and in B."""
    share = np.asarray(weight, np.float64).copy()
    for name, chosen in (("A", in_a), ("B", ~in_a)):
        total = share[chosen].sum()
        if not total > 0:
            raise TopRecoError(f"sum of the weights of sample {name}: {total:g} found, must be positive")
        share[chosen] /= total
    return share


class RatioQuality(NamedTuple):
    """What a ratio does to events of A and B that it was not learnt from.

    Attributes
    ----------
    events_a, events_b
        Numbers of events.
    mean
        Mean ratio of the events of B, 1 if it is normalised.
    mean_error
        Its statistical error.
    effective_events
        (Σw)²/Σw² of the events of B, weighted to A.
    effective_share
        The same over that of B as it is.
    largest
        Largest of the ratios.
    share_of_largest
        Part of the summed absolute weights that a share of `SHARE_OF_LARGEST` of the events has.
    chi2
        χ² of A against B weighted to A, in bins of the log-ratio with equal numbers of events of A.
    bins
        Number of bins.
    """

    events_a: int
    events_b: int
    mean: float
    mean_error: float
    effective_events: float
    effective_share: float
    largest: float
    share_of_largest: float
    chi2: float
    bins: int


def effective_number(weight: FloatArray) -> float:
    """(Σw)²/Σw² of weights of any sign, 0 if all are."""
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0


def ratio_quality(
    log_ratio: FloatArray, in_a: BoolArray, weight: FloatArray, *, bins: int = 20
) -> RatioQuality:
    """Quality of log-ratios of events of A and B.

    Parameters
    ----------
    log_ratio
        Shape (n,).
    in_a, weight
        As of `calibrate_log_ratio`.
    bins
        Number of bins of χ².
    """
    share = _normalised(in_a, weight)
    b_share, ratio = share[~in_a], np.exp(log_ratio[~in_a])
    weighted = b_share * ratio
    mean = float(weighted.sum())
    ordered = np.sort(np.abs(weighted))[::-1]
    top = max(1, round(SHARE_OF_LARGEST * len(ordered)))
    # A bin without A would have no variance but that of weighted B, which is far below that of a count.
    edges = np.unique(np.quantile(log_ratio[in_a], np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, log_ratio, side="right")

    def sums(of: BoolArray, values: FloatArray) -> FloatArray:
        return np.bincount(place[of], weights=values, minlength=len(edges) + 1).astype(float)

    difference = sums(in_a, share[in_a]) - sums(~in_a, weighted / mean)
    variance = sums(in_a, share[in_a] ** 2) + sums(~in_a, (weighted / mean) ** 2)
    filled = variance > 0
    return RatioQuality(
        events_a=int(in_a.sum()),
        events_b=int((~in_a).sum()),
        mean=mean,
        mean_error=math.sqrt(float((b_share**2 * (ratio - mean) ** 2).sum())),
        effective_events=effective_number(weighted),
        effective_share=effective_number(weighted) / max(effective_number(b_share), 1e-300),
        largest=float(ratio.max()),
        share_of_largest=float(ordered[:top].sum() / ordered.sum()),
        chi2=float((difference[filled] ** 2 / variance[filled]).sum()),
        bins=int(filled.sum()),
    )


def triangular_discriminator(first: FloatArray, second: FloatArray) -> float:
    """Distance ½ Σ (p − q)²/(p + q) × 10³ of two spectra in the same bins, each scaled to a sum of 1.

    Parameters
    ----------
    first, second
        Contents of the bins, any shape.

    Returns
    -------
    distance
        0 for equal spectra, 1000 for spectra without a common bin; NaN if a sum is not positive.
    """
    sums = float(first.sum()), float(second.sum())
    if not min(sums) > 0:
        return math.nan
    p, q = first / sums[0], second / sums[1]
    filled = p + q > 0
    return float(500 * ((p - q)[filled] ** 2 / (p + q)[filled]).sum())
