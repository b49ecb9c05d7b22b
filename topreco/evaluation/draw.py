"""Drawing functions: data in, figure out. `topreco.evaluation.figures` takes the data from histograms."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from topreco.core import statistics
from topreco.core.observables import Observable
from topreco.core.statistics import Array
from topreco.evaluation.histograms import SOURCES, residual_label
from topreco.evaluation.style import COLOURS, Label, canvas, line, marker
from topreco.evaluation.summary import Bin


class Spectrum(NamedTuple):
    """Sums of weights and of squared weights per bin of a spectrum, without flow."""

    content: Array
    variance: Array


class Metric(NamedTuple):
    """A field of `Metrics` and its axis label."""

    field: str
    label: str


METRICS = (
    Metric("rb", "Mean of"),
    Metric("res", "Standard deviation of"),
    Metric("median", "Median of"),
    Metric("width68", "68 % half-width of"),
    Metric("efficiency", "Efficiency"),
)
"""Metrics that are drawn versus truth."""


# ---- metrics and residuals -------------------------------------------------------------------------------


def plot_metric(
    methods: Mapping[str, Sequence[Bin]],
    metric: Metric,
    observable: Observable,
    *,
    versus: Observable | None = None,
    label: Label | None = None,
) -> Figure:
    """One metric of several methods in truth bins, with statistical errors.

    Parameters
    ----------
    methods
        Bins by method; open bins at the ends are not drawn.
    metric
        Metric to draw.
    observable
        Observable that was reconstructed.
    versus
        Observable whose truth is on the axis, if another one.
    label
        Text above the figure.
    """
    versus = observable if versus is None else versus
    fields = metric.field, f"{metric.field}_error"
    with canvas(label) as (figure, (axes,)):
        drawn = False
        for i, (method, bins) in enumerate(methods.items()):
            closed = [b for b in bins if math.isfinite(b.low) and math.isfinite(b.high)]
            rows = [(b.low, b.high, *(getattr(b.metrics, field) for field in fields)) for b in closed]
            low, high, y, error = np.array(rows).reshape(-1, 4).T
            seen = np.isfinite(y)
            drawn |= bool(seen.any())
            # Markers of different methods stand side by side in their bin.
            middle = (low + high) / 2 + (i - (len(methods) - 1) / 2) * 0.08 * (high - low)
            axes.errorbar(
                middle[seen],
                y[seen],
                xerr=np.array([middle - low, high - middle])[:, seen],
                # Without an error, as for a single event, only the point is drawn.
                yerr=np.where(np.isfinite(error), error, 0.0)[seen],
                label=method,
                **marker(i),
            )
        if versus is observable and observable.relative:
            _leave_out_zero(axes, methods, metric.field, versus)
        if metric.field in ("rb", "median"):
            axes.axhline(0, color="0.6", linewidth=1.5, zorder=0)
        axes.set_xlabel(f"True {versus.axis_label}")
        quantity = "" if metric.field == "efficiency" else f" {residual_label(observable)}"
        axes.set_ylabel(f"{metric.label}{quantity}")
        _finish(axes, len(methods), drawn, from_zero=metric.field in ("res", "width68", "efficiency"))
        return figure


def _leave_out_zero(axes: Any, methods: Mapping[str, Sequence[Bin]], field: str, versus: Observable) -> None:
    """Print the value where (p − t)/t diverges: in a bin that reaches down to zero, far beyond all others."""
    others = [
        getattr(b.metrics, field)
        for bins in methods.values()
        for b in bins
        if b.low > 0 and b.high < math.inf
    ]
    first = {m: b for m, bins in methods.items() for b in bins if b.low == 0}
    values = {m: getattr(b.metrics, field) for m, b in first.items()}
    finite = [value for value in others if math.isfinite(value)]
    if not finite or not any(math.isfinite(value) for value in values.values()):
        return
    low, high = min(*finite, 0.0), max(*finite, 0.0)
    margin = 0.1 * (high - low)
    outside = {m: v for m, v in values.items() if math.isfinite(v) and not low - margin < v < high + margin}
    if outside and margin > 0:
        axes.set_ylim(low - margin, high + margin)
        end = next(iter(first.values())).high
        lines = [f"outside: 0–{end:g} {versus.unit}", *(f"{m}: {_number(v)}" for m, v in outside.items())]
        place = {"transform": axes.transAxes, "ha": "left", "va": "top"}
        axes.text(0.04, 0.97, "\n".join(lines), **place, size="x-small", color="0.3")


def plot_residual(
    methods: Mapping[str, Array],
    edges: Array,
    observable: Observable,
    *,
    label: Label | None = None,
) -> Figure:
    """Distributions of the residual, each normalised to unit area including what lies outside the figure.

    Parameters
    ----------
    methods
        Contents of the residual axis with flow by method, shape (bins + 2,).
    edges
        Edges of the residual bins, shape (bins + 1,).
    observable
        Observable that was reconstructed.
    label
        Text above the figure.
    """
    found = {m: statistics.Cumulative.from_histogram(counts, edges) for m, counts in methods.items()}
    reach = _window(list(found.values()), edges)
    with canvas(label) as (figure, (axes,)):
        if reach is not None:
            coarse = _coarser(edges, *reach, n_bins=50)
            starts = statistics.bin_starts(edges, coarse)
            for i, (method, counts) in enumerate(methods.items()):
                if not counts.sum() > 0:
                    continue
                merged = statistics.merge_bins(counts, starts, axis=0)[1:-1]
                density = merged / counts.sum() / np.diff(coarse)
                middle, width = found[method].quantile(0.5), statistics.width68(found[method], 1.0)[0]
                text = f"{method}\nmedian {_number(middle)}, width68 {_number(width)}"
                axes.stairs(density, coarse, label=text, **line(i))
            axes.axvline(0, color="0.6", linewidth=1.5, zorder=0)
            axes.set_xlim(*reach)
        axes.set_xlabel(residual_label(observable))
        axes.set_ylabel("Fraction of events / bin width")
        positive = all((counts >= 0).all() for counts in methods.values())
        _finish(axes, 2 * len(methods), reach is not None, from_zero=positive)
        return figure


def _window(found: Sequence[statistics.Cumulative], edges: Array) -> tuple[float, float] | None:
    """Range that shows the central 98 % of every method; None without events."""
    ends = [(c.quantile(0.01), c.quantile(0.99)) for c in found if np.isfinite(c.fraction).all()]
    if not ends:
        return None
    low = min((e[0] for e in ends if math.isfinite(e[0])), default=float(edges[0]))
    high = max((e[1] for e in ends if math.isfinite(e[1])), default=float(edges[-1]))
    margin = 0.1 * (high - low)
    return max(low - margin, float(edges[0])), min(high + margin, float(edges[-1]))


def _coarser(edges: Array, low: float, high: float, *, n_bins: int) -> Array:
    """A subset of edges that covers a range with bins of about equal width."""
    inside = np.searchsorted(edges, [low, high])
    candidates = edges[max(inside[0] - 1, 0) : inside[1] + 1]
    kept = [candidates[0]]
    for edge in candidates[1:]:
        if edge - kept[-1] >= (high - low) / n_bins:
            kept.append(edge)
    return np.array(kept if len(kept) > 1 else [candidates[0], candidates[-1]])


# ---- migration -------------------------------------------------------------------------------------------


def plot_migration(
    counts: Array,
    edges: Array,
    observable: Observable,
    *,
    method: str,
    per: str = "truth",
    reco_edges: Array | None = None,
    label: Label | None = None,
) -> Figure:
    """Map of true versus reconstructed bins, in percent, every bin of the same size whatever its width.

    Parameters
    ----------
    counts
        Sums of weights by truth and reconstructed bin with flow, shape (bins + 2, bins + 2).
    edges
        Edges of the bins, shape (bins + 1,), those of truth if others are given for reconstruction.
    observable
        Observable that was reconstructed.
    method
        Name of the method.
    per
        "truth" normalises to the events of a truth bin, "reco" to those of a reconstructed bin; the flow is
        counted, so that the cells need not add up to 100 %.
    reco_edges
        Edges of the reconstructed bins, if they are others.
    label
        Text above the figure.

    Raises
    ------
    ValueError
        If `per` is neither.
    """
    if per not in SOURCES:
        raise ValueError(f"per: 'truth' or 'reco' expected, found {per!r}")
    total = counts.sum(axis=1 if per == "truth" else 0, keepdims=True)
    share = 100 * np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)[1:-1, 1:-1]
    both_edges = edges, edges if reco_edges is None else reco_edges
    grids = [np.arange(float(len(of))) for of in both_edges]
    with canvas(label, width=12.0) as (figure, (axes,)):
        top = float(np.nanmax(share)) if np.isfinite(share).any() else 0.0
        mesh = axes.pcolormesh(
            *grids, np.ma.masked_invalid(share.T), cmap="cividis", vmin=0, vmax=top if top > 0 else 1.0
        )
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, fraction=0.05, aspect=16)
        bar.set_label(f"Share of the {'true' if per == 'truth' else 'reconstructed'} bin [%]")
        if max(share.shape) <= 20:
            style = {"ha": "center", "va": "center", "size": 15 if max(share.shape) <= 15 else 12}
            for (i, j), value in np.ndenumerate(share):
                if abs(value) >= 0.5:
                    colour = "black" if value > 0.55 * top else "white"
                    axes.text(i + 0.5, j + 0.5, f"{value:.0f}", color=colour, **style)
        ticks = []
        for grid, of in zip(grids, both_edges, strict=True):
            step = max(1, math.ceil((len(of) - 1) / 14))
            ticks.append((grid[::step], [f"{edge:.4g}" for edge in of[::step]]))
        axes.set_xticks(*ticks[0], rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(*ticks[1])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.tick_params(top=False, right=False, direction="out", length=6)
        axes.set_xlabel(f"True {observable.axis_label}")
        axes.set_ylabel(f"Reconstructed {observable.axis_label}")
        _note(axes, method, boxed=True)
        if not np.isfinite(share).any():
            _no_events(axes)
        return figure


def plot_shares(
    shares: Mapping[str, statistics.Estimate],
    edges: Array,
    observable: Observable,
    *,
    method: str,
    label: Label | None = None,
) -> Figure:
    """Purity, stability and other fractions in truth bins, with statistical errors.

    Parameters
    ----------
    shares
        Fractions by name, shape (bins,); NaN is not drawn.
    edges
        Edges of the bins, shape (bins + 1,).
    observable
        The observable.
    method
        Name of the method.
    label
        Text above the figure.
    """
    with canvas(label) as (figure, (axes,)):
        drawn = False
        for i, (name, share) in enumerate(shares.items()):
            drawn |= bool(np.isfinite(share.value).any())
            style = marker(i)
            axes.stairs(share.value, edges, baseline=None, color=style["color"], linewidth=2.5)
            error = np.where(np.isfinite(share.error), share.error, 0.0)
            axes.errorbar(_middles(edges, i, len(shares)), share.value, yerr=error, label=name, **style)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(f"True {observable.axis_label}")
        axes.set_ylabel("Fraction of events")
        _note(axes, method, boxed=False)
        _finish(axes, len(shares), drawn, from_zero=True)
        return figure


# ---- spectra ---------------------------------------------------------------------------------------------


def plot_spectrum(
    methods: Mapping[str, tuple[Spectrum, Spectrum | None]],
    edges: Array,
    observable: Observable,
    *,
    label: Label | None = None,
) -> Figure:
    """Reconstructed spectra, and below their ratio to the truth of the same events where it is known.

    Parameters
    ----------
    methods
        Reconstructed and true spectrum by method; None for the truth of data. Events that a method does not
        solve are in neither, so every method has a truth of its own; it is drawn once if all agree.
    edges
        Edges of the bins, shape (bins + 1,).
    observable
        The observable.
    label
        Text above the figure.
    """
    truths = {m: truth for m, (_, truth) in methods.items() if truth is not None and truth.content.any()}
    contents = [truth.content for truth in truths.values()]
    one_truth = len(truths) == len(methods) and all(np.array_equal(contents[0], c) for c in contents)
    with canvas(label, heights=(3, 1) if truths else (1,)) as (figure, (axes, *ratios)):
        drawn = False
        if one_truth and contents:
            axes.stairs(contents[0], edges, fill=True, color="0.85", label="Truth")
        for i, (method, (reco, _)) in enumerate(methods.items()):
            drawn |= bool(reco.content.any())
            middle, style = _middles(edges, i, len(methods)), marker(i)
            filled = reco.content != 0
            error = np.sqrt(np.maximum(reco.variance, 0))
            axes.errorbar(middle[filled], reco.content[filled], yerr=error[filled], label=method, **style)
            if method not in truths:
                continue
            true = truths[method].content
            if not one_truth:
                axes.stairs(
                    true, edges, color=style["color"], linestyle="--", linewidth=2, label=f"Truth, {method}"
                )
            seen = filled & (true > 0)
            ratios[0].errorbar(
                middle[seen], reco.content[seen] / true[seen], yerr=error[seen] / true[seen], **style
            )
        axes.set_ylabel(_events_per_bin(edges, observable))
        for ratio in ratios:
            ratio.axhline(1, color="0.6", linewidth=1.5, zorder=0)
            ratio.set_ylabel("Reco / truth", loc="center")
            ratio.set_ylim(0.4, 1.6)
            ratio.yaxis.set_major_locator(MaxNLocator(4, prune="both"))
        lowest = [axes, *ratios][-1]
        lowest.set_xlabel(observable.axis_label)
        lowest.set_xlim(edges[0], edges[-1])
        positive = all((reco.content >= 0).all() for reco, _ in methods.values())
        n_lines = len(methods) + (1 if one_truth else len(truths))
        _finish(axes, n_lines, drawn, from_zero=positive)
        return figure


def plot_variations(
    nominal: Spectrum,
    variations: Mapping[str, Spectrum],
    edges: Array,
    observable: Observable,
    *,
    method: str,
    label: Label | None = None,
) -> Figure:
    """Reconstructed spectrum, and below the ratio of its systematic variations to it.

    Variations are of the same events or nearly so, hence have no error of their own; the band is the
    statistical error of the nominal spectrum.

    Parameters
    ----------
    nominal
        Spectrum without variation.
    variations
        Spectra by name; names that end in ``_up`` and ``_down`` make a pair. The ten sources that change the
        spectrum most are drawn.
    edges
        Edges of the bins, shape (bins + 1,).
    observable
        The observable.
    method
        Name of the method.
    label
        Text above the figure.
    """
    seen = nominal.content > 0
    total = np.where(seen, nominal.content, np.nan)
    ratios = {name: spectrum.content / total for name, spectrum in variations.items()}
    sources: dict[str, list[str]] = {}
    for name in variations:
        sources.setdefault(re.sub("_(up|down)$", "", name), []).append(name)

    def size(source: str) -> float:
        changes = [np.abs(variations[name].content - nominal.content).sum() for name in sources[source]]
        return -float(max(changes))

    drawn = sorted(sources, key=size)[: len(COLOURS)]
    with canvas(label, heights=(1, 1)) as (figure, (axes, ratio)):
        axes.stairs(nominal.content, edges, color="black", linewidth=2.5, label="nominal")
        error = np.sqrt(np.maximum(nominal.variance, 0)) / total
        ratio.stairs(1 + error, edges, baseline=1 - error, fill=True, color="0.85")
        for colour, source in zip(COLOURS, drawn, strict=False):
            for name in sources[source]:
                dashes = "--" if name.endswith("_down") else "-"
                style = {"color": colour, "linestyle": dashes, "linewidth": 2, "baseline": None}
                text = source if name == sources[source][0] else None
                axes.stairs(variations[name].content, edges, **style)
                ratio.stairs(ratios[name], edges, **style, label=text)
        spread = [abs(r - 1) for source in drawn for name in sources[source] for r in ratios[name][seen]]
        half = 1.2 * float(np.quantile(spread, 0.95)) if spread else 0.0
        ratio.set_ylim(1 - max(half, 0.02), 1 + max(half, 0.02))
        ratio.axhline(1, color="0.6", linewidth=1.5, zorder=0)
        ratio.set_xlim(edges[0], edges[-1])
        ratio.set_xlabel(observable.axis_label)
        ratio.set_ylabel("Variation / nominal", loc="center")
        axes.set_ylabel(_events_per_bin(edges, observable))
        left = len(sources) - len(drawn)
        title = "full: up, dashed: down" + (f"; {left} smaller not drawn" if left else "")
        # The legend of the ratio stands above, where the spectrum leaves room.
        size_of_text = {"title_fontsize": "x-small", "fontsize": "x-small"}
        axes.legend(
            *ratio.get_legend_handles_labels(), title=title, **size_of_text, loc="upper right", ncols=2
        )
        _note(axes, method, boxed=False)
        axes.set_ylim(0.0, 1.35 * axes.get_ylim()[1])
        if not seen.any():
            _no_events(axes)
        return figure


def _events_per_bin(edges: Array, observable: Observable) -> str:
    return f"Events / {edges[1] - edges[0]:.3g} {observable.unit}".rstrip()


# ---- details ---------------------------------------------------------------------------------------------


def _middles(edges: Array, i: int, n: int) -> Array:
    """Middles of the bins, shifted a little so that the methods' errors do not hide each other."""
    return (edges[1:] + edges[:-1]) / 2 + (i - (n - 1) / 2) * 0.15 * np.diff(edges)


def _finish(axes: Any, n_lines: int, drawn: bool, *, from_zero: bool) -> None:
    """Legend in room made for it above the points, or a note that there is nothing to draw."""
    if not drawn:
        _no_events(axes)
        return
    low, high = axes.get_ylim()
    low = 0.0 if from_zero else low
    axes.set_ylim(low, high + (high - low) * min(0.08 + 0.07 * n_lines, 0.8))
    axes.legend(loc="upper right", fontsize="x-small")


def _no_events(axes: Any) -> None:
    axes.text(0.5, 0.5, "no events", transform=axes.transAxes, ha="center", va="center", color="0.4")


def _note(axes: Any, text: str, *, boxed: bool) -> None:
    frame = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 5} if boxed else None
    axes.text(0.03, 0.97, text, transform=axes.transAxes, ha="left", va="top", size="small", bbox=frame)


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "undefined"
