"""Linearity of the reconstructed ⟨c_hel⟩ in samples weighted to any tt̄ spin correlation D.

Events get the weight (1 − D c)/(1 − D₀ c) of their true c = c_hel, where ½(1 − D c) is its distribution
before cuts and D₀ that of the sample (0 for Pythia's own tops, −0.24 with the correlation of QCD).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from topreco.core.statistics import Array
from topreco.validation.gather import EventTable

_RANGE = 0.5
_N_POINTS = 11
_N_BOOTSTRAP = 100
_LEAST = 10
"""Number of solved events from which a line is fitted."""


class Point(NamedTuple):
    """Means of c_hel in a sample of spin correlation `d`, and the error of their difference."""

    d: float
    true: float
    predicted: float
    bias_error: float


class SpinLinearity(NamedTuple):
    """Straight line through reconstructed against true means of c_hel of the solved events.

    Attributes
    ----------
    n
        Number of events.
    slope, slope_error, offset, offset_error
        Parameters of the line, errors from bootstrap samples. Any finite resolution gives a slope below one;
        what a method has learnt of the spin correlation of its training sample shows in how the offset
        depends on that sample.
    deviation
        Largest distance of a point from the line.
    points
        D from −0.5 to 0.5.
    """

    n: int
    slope: float
    slope_error: float
    offset: float
    offset_error: float
    deviation: float
    points: tuple[Point, ...]


def weighted_means(true: Array, predicted: Array, weight: Array, d: float, d0: float) -> Point:
    """Means of true and predicted c_hel in a sample weighted to D.

    Parameters
    ----------
    true, predicted
        Values of c_hel, shape (n,).
    weight
        Signed event weights, shape (n,).
    d, d0
        Spin correlation wanted, and that of the sample.
    """
    w = weight * (1 - d * true) / (1 - d0 * true)
    w = w / w.sum()
    difference = predicted - true
    bias = float((w * difference).sum())
    error = float(np.sqrt((w**2 * (difference - bias) ** 2).sum()))
    return Point(d, float((w * true).sum()), float((w * predicted).sum()), error)


def linearity(
    true: Array, predicted: Array, weight: Array, d0: float, n_points: int = _N_POINTS
) -> SpinLinearity:
    """Line of one method through the samples of all D.

    Parameters
    ----------
    true, predicted
        Values of c_hel, shape (n,).
    weight
        Signed event weights, shape (n,).
    d0
        Spin correlation of the sample.
    n_points
        Number of samples.
    """
    grid = np.linspace(-_RANGE, _RANGE, n_points)
    points = tuple(weighted_means(true, predicted, weight, float(d), d0) for d in grid)
    slope, offset = _line(points)
    deviation = max(abs(point.predicted - slope * point.true - offset) for point in points)
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(_N_BOOTSTRAP):
        w = weight * rng.poisson(1.0, len(weight))
        lines.append(_line([weighted_means(true, predicted, w, d, d0) for d in (-_RANGE, _RANGE)]))
    errors = np.std(lines, axis=0, ddof=1)
    return SpinLinearity(
        len(true), slope, float(errors[0]), offset, float(errors[1]), float(deviation), points
    )


def _line(points: Sequence[Point]) -> tuple[float, float]:
    slope, offset = np.polyfit([p.true for p in points], [p.predicted for p in points], 1)
    return float(slope), float(offset)


def spin_linearity(table: EventTable, method: str, d0: float) -> SpinLinearity | None:
    """Linearity of ⟨c_hel⟩ of one method; None if it solves hardly any event.

    Parameters
    ----------
    table
        Events with truth.
    method
        Method.
    d0
        Spin correlation D of the sample.
    """
    true, predicted = table.truth["c_hel"], table.predictions[method].values["c_hel"]
    known = np.isfinite(true) & np.isfinite(predicted)
    if known.sum() < _LEAST:
        return None
    return linearity(true[known], predicted[known], table.events["weight"][known], d0)
