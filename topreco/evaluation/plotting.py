"""Figures from filled histograms.

The functions `plot_…` only draw what they are given and return the figure; `figures` gathers their input from
histograms, and `save_all` writes everything.
"""

import fnmatch
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import hist
import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from topreco.config import NOMINAL
from topreco.core import statistics as metrics
from topreco.core.files import complete_file
from topreco.core.observables import OBSERVABLES, Observable
from topreco.core.statistics import Array
from topreco.evaluation.histograms import SOURCES, cells, observables_of, residual_label, variations_of
from topreco.evaluation.summary import ALL_CHANNELS, Bin, Result, Summary, select, summarise

logger = logging.getLogger(__name__)

COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
"""Ten colours that colour-blind readers can tell apart (M. A. Petroff, arXiv:2107.02270)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")

FORMATS = ("png", "pdf")


@dataclass(frozen=True)
class Label:
    """Text above a figure.

    Attributes
    ----------
    text
        Status, such as "Simulation" or "Private work".
    experiment
        Experiment in bold before it, none by default.
    sqrt_s
        Centre-of-mass energy in TeV, None to omit.
    """

    text: str = "Simulation"
    experiment: str = ""
    sqrt_s: float | None = None


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
"""What is drawn versus truth."""


# ---- drawing ---------------------------------------------------------------------------------------------


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
        What to draw.
    observable
        Observable that was reconstructed.
    versus
        Observable whose truth is on the axis, if another one.
    label
        Text above the figure.
    """
    versus = observable if versus is None else versus
    with figure_style():
        figure, axes = _canvas(label)
        drawn = False
        for i, (method, bins) in enumerate(methods.items()):
            closed = [b for b in bins if math.isfinite(b.low) and math.isfinite(b.high)]
            low, high, y, error = (
                np.array(
                    [
                        (
                            b.low,
                            b.high,
                            getattr(b.metrics, metric.field),
                            getattr(b.metrics, f"{metric.field}_error"),
                        )
                        for b in closed
                    ]
                )
                .reshape(-1, 4)
                .T
            )
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
                **_marker(i),
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
    with figure_style():
        figure, axes = _canvas(label)
        found = {m: metrics.Cumulative.from_histogram(counts, edges) for m, counts in methods.items()}
        reach = _window(list(found.values()), edges)
        drawn = reach is not None
        if reach is not None:
            coarse = _coarser(edges, *reach, n_bins=50)
            starts = metrics.bin_starts(edges, coarse)
            for i, (method, counts) in enumerate(methods.items()):
                if not counts.sum() > 0:
                    continue
                merged = metrics.merge_bins(counts, starts, axis=0)[1:-1]
                density = merged / counts.sum() / np.diff(coarse)
                middle, width = found[method].quantile(0.5), metrics.width68(found[method], 1.0)[0]
                axes.stairs(
                    density,
                    coarse,
                    color=COLOURS[i % len(COLOURS)],
                    linewidth=2.5,
                    linestyle=("-", "--", ":", "-.")[i % 4],
                    label=f"{method}\nmedian {_number(middle)}, width68 {_number(width)}",
                )
            axes.axvline(0, color="0.6", linewidth=1.5, zorder=0)
            axes.set_xlim(*reach)
        axes.set_xlabel(residual_label(observable))
        axes.set_ylabel("Fraction of events / bin width")
        _finish(
            axes, 2 * len(methods), drawn, from_zero=all((counts >= 0).all() for counts in methods.values())
        )
        return figure


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
    reco_edges = edges if reco_edges is None else reco_edges
    grids = [np.arange(float(len(of))) for of in (edges, reco_edges)]
    with figure_style():
        figure, axes = _canvas(label, width=12.0)
        top = float(np.nanmax(share)) if np.isfinite(share).any() else 0.0
        mesh = axes.pcolormesh(
            *grids, np.ma.masked_invalid(share.T), cmap="cividis", vmin=0, vmax=top if top > 0 else 1.0
        )
        bar = figure.colorbar(mesh, ax=axes, pad=0.02)
        bar.set_label(f"Share of the {'true' if per == 'truth' else 'reconstructed'} bin [%]")
        if max(share.shape) <= 20:
            size = 15 if max(share.shape) <= 15 else 12
            for (i, j), value in np.ndenumerate(share):
                if abs(value) >= 0.5:
                    colour = "black" if value > 0.55 * top else "white"
                    axes.text(
                        i + 0.5, j + 0.5, f"{value:.0f}", ha="center", va="center", size=size, color=colour
                    )
        ticks = []
        for grid, of in zip(grids, (edges, reco_edges), strict=True):
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
    shares: Mapping[str, metrics.Estimate],
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
    with figure_style():
        figure, axes = _canvas(label)
        drawn = False
        for i, (name, share) in enumerate(shares.items()):
            drawn |= bool(np.isfinite(share.value).any())
            colour = COLOURS[i % len(COLOURS)]
            axes.stairs(share.value, edges, baseline=None, color=colour, linewidth=2.5)
            error = np.where(np.isfinite(share.error), share.error, 0.0)
            axes.errorbar(_middles(edges, i, len(shares)), share.value, yerr=error, label=name, **_marker(i))
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel(f"True {observable.axis_label}")
        axes.set_ylabel("Fraction of events")
        _note(axes, method, boxed=False)
        _finish(axes, len(shares), drawn, from_zero=True)
        return figure


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
    with figure_style():
        if truths:
            figure, (axes, ratio) = _two_canvases(label)
        else:
            (figure, axes), ratio = _canvas(label), None
        drawn = False
        contents = [truth.content for truth in truths.values()]
        one_truth = len(truths) == len(methods) and all(np.array_equal(contents[0], c) for c in contents)
        if one_truth and contents:
            axes.stairs(contents[0], edges, fill=True, color="0.85", label="Truth")
        for i, (method, (reco, _)) in enumerate(methods.items()):
            drawn |= bool(reco.content.any())
            middle, style = _middles(edges, i, len(methods)), _marker(i)
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
            if ratio is not None:
                ratio.errorbar(
                    middle[seen], reco.content[seen] / true[seen], yerr=error[seen] / true[seen], **style
                )
        axes.set_ylabel(f"Events / {edges[1] - edges[0]:.3g} {observable.unit}".rstrip())
        lower = axes if ratio is None else ratio
        lower.set_xlabel(observable.axis_label)
        lower.set_xlim(edges[0], edges[-1])
        if ratio is not None:
            ratio.axhline(1, color="0.6", linewidth=1.5, zorder=0)
            ratio.set_ylabel("Reco / truth", loc="center")
            ratio.set_ylim(0.4, 1.6)
            ratio.yaxis.set_major_locator(MaxNLocator(4, prune="both"))
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
    with figure_style():
        figure, (axes, ratio) = _two_canvases(label, (1, 1))
        axes.stairs(nominal.content, edges, color="black", linewidth=2.5, label="nominal")
        error = np.sqrt(np.maximum(nominal.variance, 0)) / total
        ratio.stairs(1 + error, edges, baseline=1 - error, fill=True, color="0.85")
        for i, source in enumerate(drawn):
            for name in sources[source]:
                style = {
                    "color": COLOURS[i],
                    "linestyle": "--" if name.endswith("_down") else "-",
                    "linewidth": 2,
                    "baseline": None,
                }
                axes.stairs(variations[name].content, edges, **style)
                ratio.stairs(
                    ratios[name], edges, **style, label=source if name == sources[source][0] else None
                )
        spread = [abs(r - 1) for source in drawn for name in sources[source] for r in ratios[name][seen]]
        half = 1.2 * float(np.quantile(spread, 0.95)) if spread else 0.0
        ratio.set_ylim(1 - max(half, 0.02), 1 + max(half, 0.02))
        ratio.axhline(1, color="0.6", linewidth=1.5, zorder=0)
        ratio.set_xlim(edges[0], edges[-1])
        ratio.set_xlabel(observable.axis_label)
        ratio.set_ylabel("Variation / nominal", loc="center")
        axes.set_ylabel(f"Events / {edges[1] - edges[0]:.3g} {observable.unit}".rstrip())
        left = len(sources) - len(drawn)
        title = "full: up, dashed: down" + (f"; {left} smaller not drawn" if left else "")
        # The curves' names stand above, where the spectrum leaves room.
        handles, labels = ratio.get_legend_handles_labels()
        axes.legend(
            handles,
            labels,
            title=title,
            title_fontsize="x-small",
            fontsize="x-small",
            loc="upper right",
            ncols=2,
        )
        _note(axes, method, boxed=False)
        axes.set_ylim(0.0, 1.35 * axes.get_ylim()[1])
        if not seen.any():
            _no_events(axes)
        return figure


# ---- gathering and saving --------------------------------------------------------------------------------


def figures(
    histograms: Mapping[str, hist.Hist],
    dataset: str,
    *,
    subset: str = "all",
    channel: str = ALL_CHANNELS,
    label: Label | None = None,
    observables: Sequence[str] | None = None,
    summary: Summary | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Every figure of a dataset, with a name for its file.

    Without truth, as in data, these are the spectra only. All are of the nominal events, except for one per
    method with the effect of the systematic variations on m_tt, where there are any.

    Parameters
    ----------
    histograms
        Filled histograms of `histograms.book`.
    dataset
        Dataset to draw.
    subset
        "all" selected events, or the "common" ones that all methods solve.
    channel
        "ee", "emu", "mumu" or "all".
    label
        Text above the figures; None says "Simulation" where there is truth, else nothing.
    observables
        Which to draw; None draws all.
    summary
        Metrics of these histograms, if they have been computed already.

    Raises
    ------
    ValueError
        If an observable is not in the histograms.
    """
    summary = summarise(histograms) if summary is None else summary
    results = {m: found[channel] for m, found in summary.get(subset, {}).get(dataset, {}).items()}
    for name in observables_of(histograms) if observables is None else observables:
        if f"spectrum/{name}" not in histograms:
            raise ValueError(
                f"no observable {name!r} in these histograms, only {', '.join(observables_of(histograms))}"
            )
        chosen = {method: found[name] for method, found in results.items()}
        yield from _figures_of(histograms, OBSERVABLES[name], chosen, (dataset, subset, channel), label)


def _figures_of(
    histograms: Mapping[str, hist.Hist],
    observable: Observable,
    results: Mapping[str, Result],
    category: tuple[str, str, str],
    label: Label | None,
) -> Iterator[tuple[str, Figure]]:
    name = observable.name
    dataset, subset, channel = category

    def contents(kind: str, method: str, part: str | None = None) -> Any:
        found = cells(histograms[f"{kind}/{name}"], dataset, method)
        return select(np.asarray(found if part is None else found[part]), subset, channel)

    def spectrum(method: str, source: str, variation: str = NOMINAL) -> Spectrum:
        found = cells(histograms[f"spectrum/{name}"], dataset, method, variation)
        chosen = (select(found[part], subset, channel) for part in ("value", "variance"))
        return Spectrum(*(part[SOURCES.index(source), 1:-1] for part in chosen))

    with_truth = {m: r for m, r in results.items() if r.bins}
    if label is None:
        label = Label() if with_truth else Label(text="")
    spectra = {}
    for method in results:
        true = spectrum(method, "truth") if method in with_truth else None
        spectra[method] = spectrum(method, "reco"), true
    value = histograms[f"spectrum/{name}"].axes["value"]
    yield f"spectrum_{name}", plot_spectrum(spectra, value.edges, observable, label=label)
    if name == "m_tt":
        for method, (nominal, _) in spectra.items():
            filled = [v for v in variations_of(histograms, dataset, method) if v != NOMINAL]
            if filled:
                varied = {v: spectrum(method, "reco", v) for v in filled}
                drawn = plot_variations(nominal, varied, value.edges, observable, method=method, label=label)
                yield f"variations_{name}_{method}", drawn

    if not with_truth:
        logger.info("%s: no truth for %s, only its spectrum is drawn", dataset, name)
        return
    for metric in METRICS:
        bins = {m: r.bins for m, r in with_truth.items()}
        yield f"{metric.field}_{name}", plot_metric(bins, metric, observable, label=label)
        if name != "m_tt" and metric.field in ("rb", "res"):
            bins = {m: r.bins_m_tt for m, r in with_truth.items()}
            drawn = plot_metric(bins, metric, observable, versus=OBSERVABLES["m_tt"], label=label)
            yield f"{metric.field}_{name}_vs_m_tt", drawn
    residual = histograms[f"residual/{name}"].axes["residual"].edges
    tails = {m: contents("residual", m).sum(axis=0) for m in with_truth}
    yield f"residual_{name}", plot_residual(tails, residual, observable, label=label)
    edges = histograms[f"moments/{name}"].axes["truth"].edges
    fine = histograms[f"migration/{name}"].axes["truth"].edges
    starts = metrics.bin_starts(fine, edges)
    for method in with_truth:
        merged = contents("migration", method)
        for axis in (0, 1):
            merged = metrics.merge_bins(merged, starts, axis=axis)
        drawn = plot_migration(merged, edges, observable, method=method, label=label)
        yield f"migration_{name}_{method}", drawn


def save_all(
    histograms: Mapping[str, hist.Hist],
    folder: str | Path,
    *,
    label: Label | None = None,
    subset: str = "all",
    channel: str = ALL_CHANNELS,
    observables: Sequence[str] | None = None,
    only: str = "*",
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw and save every figure, in one folder per dataset.

    Parameters
    ----------
    histograms
        Filled histograms of `histograms.book`.
    folder
        Where to write; made if need be.
    label
        Text above the figures; None says "Simulation" where there is truth, else nothing.
    subset
        "all" selected events, or the "common" ones that all methods solve.
    channel
        "ee", "emu", "mumu" or "all".
    observables
        Which to draw; None draws all.
    only
        Pattern of the figures' names, such as ``res_*``.
    formats
        Suffixes that matplotlib knows.

    Returns
    -------
    paths
        Files written; none if the histograms are empty, which is logged.

    Raises
    ------
    TopRecoError
        If the folder cannot be written.
    ValueError
        If an observable is not in the histograms.
    """
    summary = summarise(histograms)
    datasets = list(summary.get(subset, {}))
    if not datasets:
        logger.warning("no events in the subset %r: no figures", subset)
    paths: list[Path] = []
    for dataset in datasets:
        for name, figure in figures(
            histograms,
            dataset,
            subset=subset,
            channel=channel,
            label=label,
            observables=observables,
            summary=summary,
        ):
            if not fnmatch.fnmatchcase(name, only):
                continue
            stem = Path(folder) / _file_name(dataset) / _file_name(name)
            # Names that differ only in what a file name cannot hold must not overwrite each other.
            while Path(f"{stem}.{formats[0]}") in paths:
                stem = stem.with_name(f"{stem.name}_")
            paths += save(figure, stem, formats=formats)
    return paths


def save(figure: Figure, stem: str | Path, *, formats: Sequence[str] = FORMATS) -> list[Path]:
    """Write a figure, each file whole or not at all.

    Parameters
    ----------
    figure
        Figure of one of the functions above.
    stem
        Path without suffix; its folder is made if need be.
    formats
        Suffixes that matplotlib knows.

    Raises
    ------
    TopRecoError
        If a file cannot be written.
    """
    paths = []
    for suffix in formats:
        path = Path(f"{stem}.{suffix}")
        # Without a date, the same histograms give the same file.
        metadata = {"CreationDate": None} if suffix == "pdf" else None
        with complete_file(path) as temporary, figure_style():
            figure.savefig(temporary, format=suffix, metadata=metadata)
        paths.append(path)
    return paths


# ---- details ---------------------------------------------------------------------------------------------


def figure_style() -> Any:
    """The CMS style of mplhep, also needed while saving: fonts are looked up then."""
    return mpl.rc_context({**mplhep.style.CMS, "axes.labelpad": 8.0, "svg.hashsalt": "topreco"})


def _canvas(label: Label | None, width: float = 10.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, 10.0), layout="constrained")
    axes = figure.add_subplot()
    _label(axes, label)
    return figure, axes


def _two_canvases(label: Label | None, heights: tuple[int, int] = (3, 1)) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10.0, 10.0), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    _label(axes[0], label)
    return figure, axes


def _label(axes: Any, label: Label | None) -> None:
    label = Label() if label is None else label
    # Mathtext, which alone mixes bold with italic, would take some characters of the user's for its own.
    name = re.sub(r"([ _$%#&^{}])", r"\\\1", label.experiment)
    bold = rf"$\bf{{{name}}}$ " if name else ""
    italic = label.text.replace("$", r"\$")
    axes.set_title(f"{bold}{italic}", loc="left", style="italic", size="medium")
    if label.sqrt_s is not None:
        axes.set_title(f"({label.sqrt_s:g} TeV)", loc="right", size="small")


def _marker(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 8,
        "linestyle": "none",
        "elinewidth": 2,
    }


def _middles(edges: Array, i: int, n: int) -> Array:
    """Middles of the bins, shifted a little so that the methods' errors do not hide each other."""
    return (edges[1:] + edges[:-1]) / 2 + (i - (n - 1) / 2) * 0.15 * np.diff(edges)


def _finish(axes: Any, n_lines: int, drawn: bool, *, from_zero: bool) -> None:
    """Legend in room made for it above the points, or a word that there is nothing to see."""
    if not drawn:
        _no_events(axes)
        return
    low, high = axes.get_ylim()
    low = 0.0 if from_zero else low
    axes.set_ylim(low, high + (high - low) * min(0.08 + 0.07 * n_lines, 0.8))
    axes.legend(loc="upper right", fontsize="x-small")


def _leave_out_zero(axes: Any, methods: Mapping[str, Sequence[Bin]], field: str, versus: Observable) -> None:
    """Say in words where (p − t)/t diverges: in a bin that reaches down to zero, far beyond all others."""
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
        axes.text(
            *(0.04, 0.97),
            "\n".join(lines),
            transform=axes.transAxes,
            ha="left",
            va="top",
            size="x-small",
            color="0.3",
        )


def _no_events(axes: Any) -> None:
    axes.text(0.5, 0.5, "no events", transform=axes.transAxes, ha="center", va="center", color="0.4")


def _note(axes: Any, text: str, *, boxed: bool) -> None:
    frame = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 5} if boxed else None
    axes.text(0.03, 0.97, text, transform=axes.transAxes, ha="left", va="top", size="small", bbox=frame)


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "undefined"


def _window(found: Sequence[metrics.Cumulative], edges: Array) -> tuple[float, float] | None:
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


def _file_name(text: str) -> str:
    """Text with what file systems dislike replaced."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._") or "unnamed"
