"""From an `EventTable` to numbers: bias, resolution and kinematics, of all events and of parts of them.

Every formula is one of `topreco.core.statistics`.
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from topreco.config import HistogramConfig
from topreco.core.events import CHANNELS
from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import Array, Metrics, fraction, summarise_arrays
from topreco.evaluation.histograms import truth_edges
from topreco.evaluation.summary import Bin
from topreco.validation.gather import EventTable

M_TT_REGIONS = (-math.inf, 400.0, 500.0, 650.0, math.inf)
"""Edges in GeV of the regions of m_tt."""
PT_TOP_REGIONS = (-math.inf, 100.0, 200.0, 300.0, math.inf)
"""Edges in GeV of the regions of the top's transverse momentum."""
ON_SHELL = 1.0
"""Distance of a top's mass from the nominal one, in GeV, that counts as on shell."""


class Means(NamedTuple):
    """Weighted means of truth and prediction, for observables whose residual is a difference."""

    true: float
    true_error: float
    predicted: float
    predicted_error: float


class Performance(NamedTuple):
    """Metrics of one observable and method.

    Attributes
    ----------
    inclusive
        Metrics of all events.
    common
        Metrics of the events that every method solves.
    truth_bins, pred_bins
        Metrics in bins of the true and of the predicted value, the outermost open.
    regions
        Metrics of parts of the events, by kind and name of the part.
    m_tt_bins
        Metrics in bins of the true m_tt, the outermost open.
    share_common, share_common_error
        Fraction of the events that every method solves.
    common_m_tt_bins
        As `m_tt_bins`, of the events that every method solves; their efficiency is relative to all events.
    means, common_means
        Means of the solved events among the same two; None for relative residuals.
    """

    inclusive: Metrics
    common: Metrics
    truth_bins: tuple[Bin, ...]
    pred_bins: tuple[Bin, ...]
    regions: dict[str, dict[str, Metrics]]
    m_tt_bins: tuple[Bin, ...]
    share_common: float
    share_common_error: float
    common_m_tt_bins: tuple[Bin, ...]
    means: Means | None
    common_means: Means | None


class Closure(NamedTuple):
    """Closure of the kinematics.

    Attributes
    ----------
    mass_mean, mass_mean_error, mass_width68, mass_width68_error
        Mean and 68 % half-width of the predicted masses of t and t̄ in GeV.
    on_shell, on_shell_error
        Fraction of the solved events whose masses both are within `ON_SHELL` of the nominal one.
    pt_tt
        `Metrics` of the transverse momentum of the tt̄ system, which balances the recoil.
    """

    mass_mean: float
    mass_mean_error: float
    mass_width68: float
    mass_width68_error: float
    on_shell: float
    on_shell_error: float
    pt_tt: Metrics


def measure(
    table: EventTable, method: str, name: str, where: Array | None = None, solved: Array | None = None
) -> Metrics:
    """Metrics of one observable and method in some of the events.

    Parameters
    ----------
    table
        Events with truth.
    method, name
        Method and observable.
    where
        True for events that count as selected, shape (n,); all if None.
    solved
        True for events whose prediction counts, shape (n,); all if None.
    """
    where = np.ones(len(table), bool) if where is None else where
    predicted = table.predictions[method].values[name]
    if solved is not None:
        predicted = np.where(solved, predicted, np.nan)
    return summarise_arrays(
        predicted[where],
        table.truth[name][where],
        table.events["weight"][where],
        relative=OBSERVABLES[name].relative,
    )


def perform(
    table: EventTable, method: str, name: str, config: HistogramConfig, *, detailed: bool = True
) -> Performance:
    """Metrics of one observable and method, of all events and of parts of them.

    Parameters
    ----------
    table
        Events with truth.
    method, name
        Method and observable.
    config
        Bins of the observable and of m_tt.
    detailed
        Fill `truth_bins`, `pred_bins` and `regions`, which take most of the time; else they are empty.
    """
    edges, m_tt_edges = (np.array([-math.inf, *truth_edges(config, of), math.inf]) for of in (name, "m_tt"))
    common = np.logical_and.reduce([found.valid for found in table.predictions.values()])

    def bins(values: Array, edges: Array, solved: Array | None = None) -> tuple[Bin, ...]:
        # NaN lands after the last edge, which is infinite.
        index = np.digitize(values, edges) - 1
        return tuple(
            Bin(float(low), float(high), measure(table, method, name, index == i, solved))
            for i, (low, high) in enumerate(itertools.pairwise(edges))
        )

    parts: dict[str, dict[str, Metrics]] = {}
    for kind, region, where in regions(table) if detailed else ():
        parts.setdefault(kind, {})[region] = measure(table, method, name, where)
    return Performance(
        measure(table, method, name),
        measure(table, method, name, common),
        bins(table.truth[name], edges) if detailed else (),
        bins(table.predictions[method].values[name], edges) if detailed else (),
        parts,
        bins(table.truth["m_tt"], m_tt_edges),
        *fraction(common, table.events["weight"]),
        bins(table.truth["m_tt"], m_tt_edges, common),
        _means(table, method, name),
        _means(table, method, name, common),
    )


def _means(table: EventTable, method: str, name: str, solved: Array | None = None) -> Means | None:
    if OBSERVABLES[name].relative:
        return None
    true, predicted = table.truth[name], table.predictions[method].values[name]
    known = np.isfinite(true) & np.isfinite(predicted)
    if solved is not None:
        known &= solved
    weight = table.events["weight"][known]
    found = [_metrics_of(values[known], weight) for values in (true, predicted)]
    return Means(found[0].rb, found[0].rb_error, found[1].rb, found[1].rb_error)


def regions(table: EventTable) -> Iterator[tuple[str, str, Array]]:
    """Kind, name and events, shape (n,), of each part of the events.

    Parameters
    ----------
    table
        Events with truth.
    """
    events = table.events
    for i, channel in enumerate(CHANNELS):
        yield "channel", channel, events["channel"] == i
    for kind, column, numbers in (("jets", "n_jets", (2, 3, 4)), ("b tags", "n_btags", (0, 1, 2))):
        for number in numbers:
            last = number == numbers[-1]
            where = events[column] >= number if last else events[column] == number
            yield kind, f"{'≥ ' if last else ''}{number}", where
    yield "τ", "no τ", ~events["via_tau"]
    yield "τ", "through τ", events["via_tau"]
    yield from (("true pT(t) [GeV]", *region) for region in ranges(table.truth["pt_top"], PT_TOP_REGIONS))
    yield from (("true m(tt̄) [GeV]", *region) for region in ranges(table.truth["m_tt"], M_TT_REGIONS))


def ranges(values: Array, edges: tuple[float, ...]) -> Iterator[tuple[str, Array]]:
    """Name and events, shape (n,), of each range of some values.

    Parameters
    ----------
    values
        Shape (n,); NaN is in no range.
    edges
        Edges of the ranges, the first and the last infinite.
    """
    for low, high in itertools.pairwise(edges):
        if not math.isfinite(low):
            name = f"< {high:g}"
        else:
            name = f"{low:g}–{high:g}" if math.isfinite(high) else f"> {low:g}"
        yield name, (values >= low) & (values < high)


def close(table: EventTable, method: str, m_top: float) -> Closure:
    """Masses of the predicted tops and balance of the tt̄ system.

    Parameters
    ----------
    table
        Events with truth.
    method
        Method.
    m_top
        Nominal mass of the top quark in GeV.
    """
    values = table.predictions[method].values
    masses = np.stack([values["m_top"], values["m_antitop"]])
    known = np.isfinite(masses).all(axis=0)
    weight = table.events["weight"][known]
    both = masses[:, known].ravel()
    spread = _metrics_of(both, np.concatenate([weight, weight]))
    near = np.asarray((np.abs(masses[:, known] - m_top) < ON_SHELL).all(axis=0))
    return Closure(
        spread.rb,
        spread.rb_error,
        spread.width68,
        spread.width68_error,
        *fraction(near, weight),
        measure(table, method, "pt_tt"),
    )


def _metrics_of(values: Array, weight: Array) -> Metrics:
    """Mean and widths of a distribution: the residual against zero."""
    return summarise_arrays(values, np.zeros(len(values)), weight, relative=False)
