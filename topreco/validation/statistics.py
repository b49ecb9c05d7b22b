"""From an `EventTable` to numbers: bias, resolution, coverage and pulls, of all events and of parts of them.

Every formula is one of `topreco.evaluation.metrics`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from topreco.config import HistogramConfig
from topreco.evaluation.histograms import truth_edges
from topreco.evaluation.metrics import (
    Array,
    Cumulative,
    Metrics,
    efficiency,
    has_value,
    median,
    summarise_arrays,
    width68,
)
from topreco.evaluation.summary import Bin
from topreco.events import CHANNELS, QUANTILE_LEVELS
from topreco.observables import OBSERVABLES
from topreco.validation.gather import OBSERVED, Answers, EventTable

M_TT_REGIONS = (-math.inf, 400.0, 500.0, 650.0, math.inf)
"""Edges in GeV of the regions of m_tt."""
PT_TOP_REGIONS = (-math.inf, 100.0, 200.0, 300.0, math.inf)
"""Edges in GeV of the regions of the top's transverse momentum."""
ON_SHELL = 1.0
"""Distance of a top's mass from the nominal one, in GeV, that counts as on shell."""
_KEPT = tuple(round(0.1 * i, 1) for i in range(10, 0, -1))
"""Fractions of the events that are kept for their quality."""


class Response(NamedTuple):
    """Metrics of one observable and method.

    Attributes
    ----------
    inclusive
        Of all events.
    common
        Of the events that every method solves.
    truth_bins, pred_bins
        In bins of the true and of the predicted value, the outermost open.
    regions
        In parts of the events, by kind and name of the part.
    """

    inclusive: Metrics
    common: Metrics
    truth_bins: tuple[Bin, ...]
    pred_bins: tuple[Bin, ...]
    regions: dict[str, dict[str, Metrics]]


class Coverage(NamedTuple):
    """How often the truth lies within the intervals that a method gives, with binomial errors."""

    n: int
    coverage68: float
    coverage68_error: float
    coverage95: float
    coverage95_error: float


class Pull(NamedTuple):
    """Distribution of (truth − median)/(half width of the 68 % interval): of median 0 and width68 1.

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
    """Whether the uncertainty of each event of one observable and method is right.

    Attributes
    ----------
    overall
        Of all events.
    predicted, true
        By region of the m_tt that the method predicts, and of the true one.
    pull
        Of all events.
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
        Of those events; the efficiency is of all selected ones.
    """

    minimum: float
    metrics: Metrics


class Closure(NamedTuple):
    """Do the kinematics close?

    Attributes
    ----------
    mass_mean, mass_mean_error, mass_width68, mass_width68_error
        Of the predicted masses of t and t̄ in GeV.
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


def measure(table: EventTable, method: str, name: str, where: Array | None = None) -> Metrics:
    """Metrics of one observable and method in some of the events.

    Parameters
    ----------
    table
        Events with truth.
    method, name
        Method and observable.
    where
        Which events count as selected, shape (n,); all if None.
    """
    where = np.ones(len(table), bool) if where is None else where
    return summarise_arrays(
        table.answers[method].values[name][where],
        table.truth[name][where],
        table.events["weight"][where],
        relative=OBSERVABLES[name].relative,
    )


def respond(table: EventTable, method: str, name: str, config: HistogramConfig) -> Response:
    """Metrics of one observable and method, of all events and of parts of them.

    Parameters
    ----------
    table
        Events with truth.
    method, name
        Method and observable.
    config
        Bins of the observable.
    """
    edges = np.array([-math.inf, *truth_edges(config, name), math.inf])
    common = np.logical_and.reduce([answers.valid for answers in table.answers.values()])

    def bins(values: Array) -> tuple[Bin, ...]:
        index = np.digitize(values, edges) - 1
        # NaN lands behind the last edge, which is infinite.
        return tuple(
            Bin(float(low), float(high), measure(table, method, name, index == i))
            for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True))
        )

    parts: dict[str, dict[str, Metrics]] = {}
    for kind, region, where in regions(table):
        parts.setdefault(kind, {})[region] = measure(table, method, name, where)
    return Response(
        measure(table, method, name),
        measure(table, method, name, common),
        bins(table.truth[name]),
        bins(table.answers[method].values[name]),
        parts,
    )


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
    yield from (("true pT(t) [GeV]", *region) for region in _ranges(table.truth["pt_top"], PT_TOP_REGIONS))
    yield from (("true m(tt̄) [GeV]", *region) for region in _ranges(table.truth["m_tt"], M_TT_REGIONS))


def _ranges(values: Array, edges: tuple[float, ...]) -> Iterator[tuple[str, Array]]:
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        if not math.isfinite(low):
            name = f"< {high:g}"
        else:
            name = f"{low:g}–{high:g}" if math.isfinite(high) else f"> {low:g}"
        yield name, (values >= low) & (values < high)


# ---- uncertainty of each event ---------------------------------------------------------------------------


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
    shares = []
    for low, high in ((1, 3), (0, 4)):
        inside = (truth >= quantiles[:, low]) & (truth <= quantiles[:, high])
        shares += [float(x) for x in _fraction(inside, weight)]
    return Coverage(len(truth), *shares)


def _fraction(inside: Array, weight: Array) -> tuple[float, float]:
    """Weighted fraction of events and its binomial error."""
    w, ww = weight, weight**2
    share = efficiency(w.sum(), ww.sum(), w[inside].sum(), ww[inside].sum())
    return float(share.value), float(share.error)


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
    n_eff = float(w.sum() ** 2 / (w**2).sum()) if (w != 0).any() else 0.0
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
    """Whether the uncertainty of each event is right, of an observable for which the method has quantiles.

    Parameters
    ----------
    table
        Events with truth.
    method, name
        Method and observable.
    """
    answers = table.answers[method]
    columns = table.truth[name], answers.quantiles[name], table.events["weight"]

    def by_region(m_tt: Array) -> dict[str, Coverage]:
        return {
            region: cover(*(column[where] for column in columns))
            for region, where in _ranges(m_tt, M_TT_REGIONS)
        }

    return Uncertainty(
        cover(*columns), by_region(answers.values["m_tt"]), by_region(table.truth["m_tt"]), pull(*columns)
    )


def by_quality(table: EventTable, method: str) -> dict[str, list[Kept]]:
    """Metrics of the events of best quality by observable, from all of them down to a tenth.

    Parameters
    ----------
    table
        Events with truth.
    method
        Method; empty without a quality.
    """
    answers = table.answers[method]
    if answers.quality is None or not answers.valid.any():
        return {}
    minima = quality_minima(answers, table.events["weight"], _KEPT)
    found: dict[str, list[Kept]] = {}
    for name in OBSERVED:
        for minimum in minima:
            good = answers.valid & (answers.quality >= minimum)
            metrics = summarise_arrays(
                np.where(good, answers.values[name], np.nan),
                table.truth[name],
                table.events["weight"],
                relative=OBSERVABLES[name].relative,
            )
            found.setdefault(name, []).append(Kept(minimum, metrics))
    return found


def quality_minima(answers: Answers, weight: Array, kept: tuple[float, ...]) -> list[float]:
    """Smallest quality that keeps each fraction of the solved events.

    Parameters
    ----------
    answers
        Of a method with a quality.
    weight
        Signed event weights, shape (n,).
    kept
        Fractions.
    """
    known = answers.valid & np.isfinite(answers.quality)
    quality = answers.quality[known]
    cumulative = Cumulative.from_values(quality, weight[known])
    return [float(quality.min()) if f == 1 else cumulative.quantile(1 - f) for f in kept]


# ---- kinematics ------------------------------------------------------------------------------------------


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
    answers = table.answers[method]
    masses = np.stack([answers.values["m_top"], answers.values["m_antitop"]])
    known = np.isfinite(masses).all(axis=0)
    weight = table.events["weight"][known]
    # Of differences to the nominal mass, since their mean is what metrics know.
    both = masses[:, known].ravel()
    spread = _metrics_of(both, np.concatenate([weight, weight]))
    near = (np.abs(masses[:, known] - m_top) < ON_SHELL).all(axis=0)
    return Closure(
        spread.rb,
        spread.rb_error,
        spread.width68,
        spread.width68_error,
        *_fraction(near, weight),
        measure(table, method, "pt_tt"),
    )


def _metrics_of(values: Array, weight: Array) -> Metrics:
    """Mean and widths of a distribution: the residual against zero."""
    return summarise_arrays(values, np.zeros(len(values)), weight, relative=False)
