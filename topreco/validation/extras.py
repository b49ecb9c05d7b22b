"""Events without tops, and samples of other top-quark masses."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from topreco.core.statistics import Array, Metrics, fraction
from topreco.validation.gather import EventTable, Predictions
from topreco.validation.statistics import measure
from topreco.validation.uncertainty import quality_minima

SCANNED = ("m_tt", "pt_top")
"""Observables whose bias is followed over the top-quark mass."""
_KEPT = (0.9, 0.75, 0.5, 0.25)
_N_BINS = 30


class Shape(NamedTuple):
    """Distributions of one quantity in signal and background, each normalised to its solved events.

    Attributes
    ----------
    edges
        Edges of the bins.
    signal, background
        Fraction of the events in each bin; what lies outside is in the first or the last.
    """

    edges: tuple[float, ...]
    signal: tuple[float, ...]
    background: tuple[float, ...]


class Cut(NamedTuple):
    """A cut on the quality and the fraction of solved events above it, each with its binomial error."""

    minimum: float
    signal: float
    signal_error: float
    background: float
    background_error: float


class Background(NamedTuple):
    """Predictions of one method for events without tops.

    Attributes
    ----------
    n, n_solved
        Number of events and of solved events.
    efficiency, efficiency_error
        Fraction of solved events.
    m_tt, quality
        Distributions; None without any solved event, or without a quality.
    cuts
        Cuts on the quality, such that signal keeps some fractions.
    """

    n: int
    n_solved: int
    efficiency: float
    efficiency_error: float
    m_tt: Shape | None
    quality: Shape | None
    cuts: tuple[Cut, ...]


class Point(NamedTuple):
    """A sample of one top-quark mass in GeV."""

    m_top: float
    metrics: Metrics


class MassScan(NamedTuple):
    """Bias against the top-quark mass.

    Attributes
    ----------
    points
        In rising mass.
    slope, slope_error
        Change of RB per GeV by a straight line through the points, fitted with their errors; NaN if one of
        them has none.
    """

    points: tuple[Point, ...]
    slope: float
    slope_error: float


def compare_background(signal: EventTable, background: EventTable, method: str) -> Background:
    """Predictions of a method for events without tops, beside those for tt̄.

    Parameters
    ----------
    signal, background
        Events of both kinds.
    method
        Method.
    """
    tables = signal, background
    predictions = [table.predictions[method] for table in tables]
    share, error = fraction(predictions[1].valid, background.events["weight"])
    both = all(a.valid.any() for a in predictions)
    has_quality = both and all(a.quality is not None for a in predictions)
    return Background(
        len(background),
        int(predictions[1].valid.sum()),
        share,
        error,
        _shape(tables, [a.values["m_tt"] for a in predictions], (300.0, 1200.0)) if both else None,
        _quality_shape(tables, predictions) if has_quality else None,
        _cuts(tables, predictions) if has_quality else (),
    )


def _shape(tables: tuple[EventTable, ...], values: list[Array], reach: tuple[float, float]) -> Shape:
    edges = np.linspace(*reach, _N_BINS + 1)
    shapes = []
    for table, column in zip(tables, values, strict=True):
        known = np.isfinite(column)
        weight = table.events["weight"][known]
        counts = np.histogram(np.clip(column[known], *reach), edges, weights=weight)[0]
        shapes.append(tuple((counts / weight.sum()).tolist()) if weight.sum() > 0 else (math.nan,) * _N_BINS)
    return Shape(tuple(edges.tolist()), *shapes)


def _quality_shape(tables: tuple[EventTable, ...], predictions: list[Predictions]) -> Shape | None:
    values = [np.asarray(a.quality, float) for a in predictions]
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    if len(finite) == 0:
        return None
    low, high = np.quantile(finite, [0.005, 0.995])
    return _shape(tables, values, (float(low), float(high))) if low < high else None


def _cuts(tables: tuple[EventTable, ...], predictions: list[Predictions]) -> tuple[Cut, ...]:
    found = []
    for minimum in quality_minima(predictions[0], tables[0].events["weight"], _KEPT):
        shares: list[float] = []
        for table, of in zip(tables, predictions, strict=True):
            above = np.asarray(of.quality)[of.valid] >= minimum
            shares += fraction(above, table.events["weight"][of.valid])
        found.append(Cut(minimum, *shares))
    return tuple(found)


def scan_mass(tables: Mapping[float, EventTable], method: str, name: str) -> MassScan:
    """Bias of one observable and method against the top-quark mass.

    Parameters
    ----------
    tables
        Events with truth by top-quark mass in GeV, at least two.
    method, name
        Method and observable.
    """
    points = tuple(Point(m_top, measure(tables[m_top], method, name)) for m_top in sorted(tables))
    mass = np.array([point.m_top for point in points])
    bias, error = (np.array([getattr(p.metrics, key) for p in points]) for key in ("rb", "rb_error"))
    if not (np.isfinite(bias).all() and (error > 0).all()):
        return MassScan(points, math.nan, math.nan)
    coefficients, covariance = np.polyfit(mass - mass.mean(), bias, 1, w=1 / error, cov="unscaled")
    return MassScan(points, float(coefficients[0]), float(math.sqrt(covariance[0, 0])))
