"""Uncertainty of each event: coverage, pulls, and resolution against efficiency.

Every formula is one of `topreco.core.statistics`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from topreco.core.events import QUANTILE_LEVELS
from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import (
    Array,
    Cumulative,
    Metrics,
    effective_number,
    fraction,
    median,
    summarise_arrays,
    width68,
)
from topreco.validation.gather import EventTable, Predictions
from topreco.validation.statistics import M_TT_REGIONS, ranges

_KEPT = tuple(round(0.1 * i, 1) for i in range(10, 0, -1))
"""Fractions of the events that are kept for their quality."""


class Coverage(NamedTuple):
    """Fraction of events with the truth in the intervals that a method gives, with binomial errors."""

    n: int
    coverage68: float
    coverage68_error: float
    coverage95: float
    coverage95_error: float


class Pull(NamedTuple):
    """Distribution of (truth − median)/(half width of the 68 % interval), ideally of median 0 and width68 1.

    Attributes
    ----------
    median, width68
        Each followed by its standard error.
    edges, density
        Histogram from −5 to 5, as a fraction of all events per unit.
    """

    median: float
    median_error: float
    width68: float
    width68_error: float
    edges: tuple[float, ...]
    density: tuple[float, ...]


class Uncertainty(NamedTuple):
    """Coverage and pulls of one observable and method.

    Attributes
    ----------
    overall
        Coverage of all events.
    predicted, true
        Coverage by region of the m_tt that the method predicts, and of the true one.
    pull
        Pulls of all events.
    """

    overall: Coverage
    predicted: dict[str, Coverage]
    true: dict[str, Coverage]
    pull: Pull


class Kept(NamedTuple):
    """Metrics of the events of best quality.

    Attributes
    ----------
    minimum
        Smallest quality that is kept.
    metrics
        Metrics of those events; the efficiency is relative to all selected ones.
    """

    minimum: float
    metrics: Metrics


def cover(truth: Array, quantiles: Array, weight: Array) -> Coverage:
    """Fraction of the events whose truth lies within the 68 % and the 95 % interval.

    Parameters
    ----------
    truth
        True values, shape (n,).
    quantiles
        At `QUANTILE_LEVELS`, shape (n, 5). Events where these or the truth are unknown are left out.
    weight
        Signed event weights, shape (n,).
    """
    known = np.isfinite(truth) & np.isfinite(quantiles).all(axis=1)
    truth, quantiles, weight = truth[known], quantiles[known], weight[known]
    shares: list[float] = []
    for low, high in ((1, 3), (0, 4)):
        inside = (truth >= quantiles[:, low]) & (truth <= quantiles[:, high])
        shares += fraction(inside, weight)
    return Coverage(len(truth), *shares)


def pull(truth: Array, quantiles: Array, weight: Array) -> Pull:
    """Distribution of (truth − median)/(half width of the 68 % interval).

    Parameters
    ----------
    truth
        True values, shape (n,).
    quantiles
        At `QUANTILE_LEVELS`, shape (n, 5). Events where these or the truth are unknown, or the width is zero,
        are left out.
    weight
        Signed event weights, shape (n,).
    """
    low, middle, high = (quantiles[:, QUANTILE_LEVELS.index(level)] for level in (0.16, 0.5, 0.84))
    known = np.isfinite(truth) & np.isfinite(quantiles).all(axis=1) & (high > low)
    pulls = (truth[known] - middle[known]) / ((high[known] - low[known]) / 2)
    w = weight[known]
    n_eff = float(effective_number({"w": w.sum(), "ww": (w**2).sum()}))
    cumulative = Cumulative.from_values(pulls, w)
    edges = np.linspace(-5, 5, 51)
    counts = np.histogram(pulls, edges, weights=w)[0]
    density = counts / w.sum() / np.diff(edges) if w.sum() > 0 else np.full(len(counts), np.nan)
    return Pull(
        *median(cumulative, n_eff),
        *width68(cumulative, n_eff),
        tuple(edges.tolist()),
        tuple(density.tolist()),
    )


def uncertainty(table: EventTable, method: str, name: str) -> Uncertainty:
    """Coverage and pulls of an observable for which the method has quantiles.

    Parameters
    ----------
    table
        Events with truth.
    method, name
        Method and observable.
    """
    found = table.predictions[method]
    columns = table.truth[name], found.quantiles[name], table.events["weight"]

    def by_region(m_tt: Array) -> dict[str, Coverage]:
        return {
            region: cover(*(column[where] for column in columns))
            for region, where in ranges(m_tt, M_TT_REGIONS)
        }

    return Uncertainty(
        cover(*columns), by_region(found.values["m_tt"]), by_region(table.truth["m_tt"]), pull(*columns)
    )


def by_quality(table: EventTable, method: str, names: Sequence[str]) -> dict[str, list[Kept]]:
    """Metrics of the events of best quality by observable, from all of them down to a tenth.

    Parameters
    ----------
    table
        Events with truth.
    method
        Method; without a quality the result is empty.
    names
        Observables.
    """
    predictions = table.predictions[method]
    if predictions.quality is None or not predictions.valid.any():
        return {}
    minima = quality_minima(predictions, table.events["weight"], _KEPT)
    found: dict[str, list[Kept]] = {}
    for name in names:
        for minimum in minima:
            good = predictions.valid & (predictions.quality >= minimum)
            metrics = summarise_arrays(
                np.where(good, predictions.values[name], np.nan),
                table.truth[name],
                table.events["weight"],
                relative=OBSERVABLES[name].relative,
            )
            found.setdefault(name, []).append(Kept(minimum, metrics))
    return found


def quality_minima(predictions: Predictions, weight: Array, kept: tuple[float, ...]) -> list[float]:
    """Smallest quality that keeps each fraction of the solved events.

    Parameters
    ----------
    predictions
        Predictions of a method with a quality.
    weight
        Signed event weights, shape (n,).
    kept
        Fractions.

    Returns
    -------
    minima
        NaN where no event has a quality.
    """
    quality = np.asarray(predictions.quality, float)
    known = predictions.valid & np.isfinite(quality)
    if not known.any():
        return [np.nan] * len(kept)
    quality = quality[known]
    cumulative = Cumulative.from_values(quality, weight[known])
    return [float(quality.min()) if f == 1 else cumulative.quantile(1 - f) for f in kept]
