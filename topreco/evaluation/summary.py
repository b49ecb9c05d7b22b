"""From filled histograms to `Metrics`: the formulas of `topreco.core.statistics` for every category."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import hist
import numpy as np

from topreco.config import NOMINAL
from topreco.core import statistics as metrics
from topreco.core.events import CHANNELS
from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import Array, Cumulative, Line, Metrics
from topreco.evaluation.histograms import (
    COUNTS,
    OUTCOMES,
    SUBSETS,
    TRUTH_MOMENTS,
    cells,
    observables_of,
    reference,
)

ALL_CHANNELS = "all"
N_EQUAL_BINS = 8


class Bin(NamedTuple):
    """`Metrics` of one truth bin, from `low` to `high`: the outermost bins are open (infinite ends)."""

    low: float
    high: float
    metrics: Metrics


class Migration(NamedTuple):
    """Purity and stability of a binning.

    Attributes
    ----------
    edges
        Inner edges; the outermost bins are open to both sides.
    purity, stability
        Fraction of the events reconstructed, and of those generated, in each bin that are both, one entry per
        bin.
    mean_stability, mean_stability_error
        Fraction of all events that are reconstructed in the bin in which they were generated, and its
        binomial error for the effective number of events.
    """

    edges: tuple[float, ...]
    purity: tuple[float, ...]
    stability: tuple[float, ...]
    mean_stability: float
    mean_stability_error: float


class Result(NamedTuple):
    """Results for one observable in one dataset, method, subset and channel.

    Attributes
    ----------
    n_selected, n_solved
        Number of selected events, and of those for which the method gives a value, with or without truth.
    metrics
        Metrics of all events with truth; the efficiency refers to all selected events. `width68_linearised`
        exists here only.
    mean_truth, mean_pred
        Mean of truth and prediction of those events, each with its error; NaN for observables whose residual
        is relative.
    bins
        Metrics in truth bins of the observable.
    bins_m_tt
        Metrics in bins of the true m_tt.
    migration
        Purity and stability in the truth bins of the observable.
    migration_equal
        Purity and stability in bins of equal truth population, the same for all methods.
    """

    n_selected: int
    n_solved: int
    metrics: Metrics
    mean_truth: tuple[float, float]
    mean_pred: tuple[float, float]
    bins: tuple[Bin, ...]
    bins_m_tt: tuple[Bin, ...]
    migration: Migration
    migration_equal: Migration


Summary = dict[str, dict[str, dict[str, dict[str, dict[str, Result]]]]]
"""`Result` by subset, dataset, method, channel (with "all") and observable."""


def summarise(histograms: Mapping[str, hist.Hist], variation: str = NOMINAL) -> Summary:
    """Metrics of all that histograms hold for one variation.

    Parameters
    ----------
    histograms
        Filled histograms of `histograms.book`, possibly added up.
    variation
        Its name; if its moments and residuals are not filled, its metrics are NaN.

    Returns
    -------
    summary
        Results by subset, dataset, method, channel and observable. The subset "common" is absent where it was
        not filled, and so are datasets and methods that never were.
    """
    datasets, methods = (list(axis) for axis in histograms["events"].axes[:2])
    summary: Summary = {}
    for subset in SUBSETS:
        for dataset in datasets:
            filled = [m for m in methods if _n_selected(histograms, dataset, m, variation, subset)]
            for name in observables_of(histograms):
                # One equal-population binning for all methods, or their stabilities could not be compared.
                grid = _equal_bins(histograms, name, dataset, filled, variation, subset)
                for method in filled:
                    channels = summary.setdefault(subset, {}).setdefault(dataset, {}).setdefault(method, {})
                    for channel in (ALL_CHANNELS, *CHANNELS):
                        contents = _Contents(histograms, name, dataset, method, variation, subset, channel)
                        channels.setdefault(channel, {})[name] = _result(contents, grid)
    return summary


def select(array: Array, subset: str, channel: str) -> Array:
    """Contents of a subset and channel, or the sum of channels, of `cells`.

    Parameters
    ----------
    array
        Shape (channel, subset, …).
    subset
        One of `SUBSETS`.
    channel
        One of `CHANNELS`, or "all".
    """
    chosen = array[:, SUBSETS.index(subset)]
    return chosen.sum(axis=0) if channel == ALL_CHANNELS else chosen[CHANNELS.index(channel)]


class _Contents:
    """Plain arrays of the histograms of one observable in one category, zeros where never filled."""

    def __init__(
        self,
        histograms: Mapping[str, hist.Hist],
        name: str,
        dataset: str,
        method: str,
        variation: str,
        subset: str,
        channel: str,
    ) -> None:
        self.name = name
        self._histograms = histograms
        self._where = dataset, method, variation, subset, channel

    def axis(self, kind: str, name: str) -> Any:
        """Axis of a histogram of the observable."""
        return self._histograms[self.key(kind)].axes[name]

    def key(self, kind: str) -> str:
        """Key of a histogram; m_tt itself is binned in m_tt already."""
        return f"{kind.removesuffix('_m_tt') if self.name == 'm_tt' else kind}/{self.name}"

    def counts(self, kind: str) -> Array:
        """Contents with flow, without the axes of the category."""
        return _counts(self._histograms[self.key(kind)], *self._where)

    def moments(self, kind: str) -> dict[str, Array]:
        """Sums by name, each of shape (truth bins + 2,)."""
        return dict(zip(TRUTH_MOMENTS, self.counts(kind), strict=True))

    def events(self) -> dict[str, dict[str, float]]:
        """Sums of selected and solved events, by outcome and moment."""
        histogram = self._histograms["events"]
        found = _counts(histogram, *self._where)[histogram.axes["observable"].index(self.name)]
        return {o: dict(zip(COUNTS, found[i], strict=True)) for i, o in enumerate(OUTCOMES)}


def _counts(
    histogram: hist.Hist, dataset: str, method: str, variation: str, subset: str, channel: str
) -> Array:
    found = cells(histogram, dataset, method, variation)
    if found is None:
        return np.zeros(histogram.axes.extent[5:])
    return select(found, subset, channel)


def _n_selected(
    histograms: Mapping[str, hist.Hist], dataset: str, method: str, variation: str, subset: str
) -> int:
    found = _counts(histograms["events"], dataset, method, variation, subset, ALL_CHANNELS)
    return int(found[:, OUTCOMES.index("selected"), COUNTS.index("n")].max(initial=0))


def _result(contents: _Contents, grid: list[int]) -> Result:
    events = contents.events()
    share = metrics.efficiency(*([events[outcome][moment]] for outcome in OUTCOMES for moment in ("w", "ww")))
    moments = contents.moments("moments")
    total = {key: values.sum(keepdims=True) for key, values in moments.items()}
    residuals = contents.counts("residual")
    edges = contents.axis("residual", "residual").edges
    response = metrics.Response(total)
    line = _about_line(contents, moments, float(response.slope[0]), residuals)
    overall = metrics.collect(total, [Cumulative.from_histogram(residuals.sum(axis=0), edges)], [line], share)

    migration = contents.counts("migration")
    fine = contents.axis("migration", "truth").edges
    coarse = metrics.bin_starts(fine, contents.axis("moments", "truth").edges)
    return Result(
        int(events["selected"]["n"]),
        int(events["solved"]["n"]),
        overall[0],
        _mean(contents, response, "truth"),
        _mean(contents, response, "pred"),
        _bins(contents, "") if moments["n_selected"].any() else (),
        _bins(contents, "_m_tt") if moments["n_selected"].any() else (),
        _migration(migration, fine, coarse, overall[0].n_eff),
        _migration(migration, fine, grid, overall[0].n_eff),
    )


def _mean(
    contents: _Contents, response: metrics.Response, of: Literal["truth", "pred"]
) -> tuple[float, float]:
    """Mean and its error; NaN for relative residuals, where it would be a mean of logarithms."""
    if OBSERVABLES[contents.name].relative:
        return math.nan, math.nan
    found = metrics.mean(response, of)
    return float(found.value[0]) + reference(contents.axis("moments", "truth").edges), float(found.error[0])


def _about_line(contents: _Contents, moments: Mapping[str, Array], b: float, residuals: Array) -> Line | None:
    """Distribution of the residual about the response line of slope b; None if there is no line."""
    if not math.isfinite(b):
        return None
    relative = OBSERVABLES[contents.name].relative
    edges = contents.axis("residual", "truth").edges
    # A bin from pT = 0 has no edge in the logarithm; its width is then left at zero.
    inner = np.where(edges > 0, edges, np.nan) if relative else edges
    origin = reference(edges)
    widths = np.diff(metrics.response_coordinate(inner, relative=relative, reference=origin))
    middles = metrics.response_coordinate((edges[1:] + edges[:-1]) / 2, relative=relative, reference=origin)
    # Bins that are open to one side have no middle, but the mean of their truth is known.
    ends = [moments["wu"][i] / moments["w"][i] if moments["w"][i] > 0 else math.nan for i in (0, -1)]
    return metrics.about_line(
        residuals,
        np.concatenate([ends[:1], middles, ends[1:]]),
        np.concatenate([[0.0], np.where(np.isfinite(widths), widths, 0.0), [0.0]]),
        contents.axis("residual", "residual").edges,
        b,
        relative=relative,
    )


def _bins(contents: _Contents, suffix: str) -> tuple[Bin, ...]:
    moments = contents.moments(f"moments{suffix}")
    edges = contents.axis(f"moments{suffix}", "truth").edges
    counts = contents.counts(f"residual{suffix}")
    fine = contents.axis(f"residual{suffix}", "truth").edges
    counts = metrics.merge_bins(counts, metrics.bin_starts(fine, edges), axis=0)
    residual_edges = contents.axis(f"residual{suffix}", "residual").edges
    share = metrics.efficiency(*(moments[key] for key in ("w_selected", "ww_selected", "w", "ww")))
    residuals = [Cumulative.from_histogram(row, residual_edges) for row in counts]
    found = metrics.collect(moments, residuals, [None] * len(residuals), share)
    ends = [-math.inf, *edges.tolist(), math.inf]
    return tuple(Bin(*x) for x in zip(ends[:-1], ends[1:], found, strict=True))


def _equal_bins(
    histograms: Mapping[str, hist.Hist],
    name: str,
    dataset: str,
    methods: list[str],
    variation: str,
    subset: str,
) -> list[int]:
    histogram = histograms[f"migration/{name}"]
    found = [_counts(histogram, dataset, m, variation, subset, ALL_CHANNELS).sum(axis=1) for m in methods]
    total = sum(found, start=np.zeros(histogram.axes["truth"].extent))
    return metrics.equal_population(total, N_EQUAL_BINS)


def _migration(counts: Array, edges: Array, starts: list[int], n_eff: float) -> Migration:
    if not starts or not counts.sum() > 0:
        return Migration((), (), (), math.nan, math.nan)
    merged = metrics.merge_bins(metrics.merge_bins(counts, starts, axis=0), starts, axis=1)
    mean = float(np.trace(merged) / counts.sum())
    spread = mean * (1 - mean)
    return Migration(
        tuple(edges[np.asarray(starts[1:], np.intp) - 1].tolist()),
        tuple(metrics.purity(merged).tolist()),
        tuple(metrics.stability(merged).tolist()),
        mean,
        # Negative weights can lift a fraction out of [0, 1], where no binomial error exists.
        math.sqrt(spread / n_eff) if n_eff > 0 and spread >= 0 else math.nan,
    )
