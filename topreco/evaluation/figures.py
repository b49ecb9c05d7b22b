"""The figures that a set of filled histograms gives, and how they are saved."""

import fnmatch
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hist
import numpy as np
from matplotlib.figure import Figure

from topreco.config import NOMINAL
from topreco.core.errors import TopRecoError
from topreco.core.files import complete_file
from topreco.core.observables import OBSERVABLES, Observable
from topreco.core.statistics import bin_starts, merge_bins
from topreco.evaluation.draw import (
    METRICS,
    Spectrum,
    plot_metric,
    plot_migration,
    plot_residual,
    plot_spectrum,
    plot_variations,
)
from topreco.evaluation.histograms import SOURCES, cells, observables_of, variations_of
from topreco.evaluation.style import Label, figure_style
from topreco.evaluation.summary import ALL_CHANNELS, Result, Summary, select, summarise

logger = logging.getLogger(__name__)

FORMATS = ("png", "pdf")


def figures(
    histograms: Mapping[str, hist.Hist],
    dataset: str,
    *,
    subset: str = "all",
    channel: str = ALL_CHANNELS,
    label: Label | None = None,
    observables: Sequence[str] | None = None,
    only: str = "*",
    summary: Summary | None = None,
) -> Iterator[tuple[str, Figure]]:
    """Figures of a dataset, each with a name for its file.

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
        Text above the figures.
    observables
        Observables to draw; all if None or empty.
    only
        Pattern of the names of the figures to draw, such as ``res_*``.
    summary
        Metrics of these histograms, if they have been computed already.

    Raises
    ------
    TopRecoError
        If an observable is not in the histograms.
    """
    summary = summarise(histograms) if summary is None else summary
    results = {m: found[channel] for m, found in summary.get(subset, {}).get(dataset, {}).items()}
    known = observables_of(histograms)
    for name in observables or known:
        if name not in known:
            raise TopRecoError(f"no observable {name!r} in these histograms, only {', '.join(known)}")
        chosen = {method: found[name] for method, found in results.items()}
        category = dataset, subset, channel
        for figure, draw in _figures_of(histograms, OBSERVABLES[name], chosen, category, label or Label()):
            if fnmatch.fnmatchcase(figure, only):
                yield figure, draw()


def _figures_of(
    histograms: Mapping[str, hist.Hist],
    observable: Observable,
    results: Mapping[str, Result],
    category: tuple[str, str, str],
    label: Label,
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Names of the figures of one observable, and what draws them."""
    name = observable.name
    dataset, subset, channel = category

    def contents(kind: str, method: str) -> Any:
        return select(np.asarray(cells(histograms[f"{kind}/{name}"], dataset, method)), subset, channel)

    def spectrum(method: str, source: str, variation: str = NOMINAL) -> Spectrum:
        found = cells(histograms[f"spectrum/{name}"], dataset, method, variation)
        chosen = (select(found[part], subset, channel) for part in ("value", "variance"))
        return Spectrum(*(part[SOURCES.index(source), 1:-1] for part in chosen))

    with_truth = {m: r for m, r in results.items() if r.bins}
    if label.text is None and not with_truth:
        label = replace(label, text="")
    spectra = {}
    for method in results:
        true = spectrum(method, "truth") if method in with_truth else None
        spectra[method] = spectrum(method, "reco"), true
    edges = histograms[f"spectrum/{name}"].axes["value"].edges
    yield f"spectrum_{name}", partial(plot_spectrum, spectra, edges, observable, label=label)
    if name == "m_tt":
        for method, (nominal, _) in spectra.items():
            filled = [v for v in variations_of(histograms, dataset, method) if v != NOMINAL]
            if filled:
                varied = {v: spectrum(method, "reco", v) for v in filled}
                draw = partial(
                    plot_variations, nominal, varied, edges, observable, method=method, label=label
                )
                yield f"variations_{name}_{method}", draw

    if not with_truth:
        logger.info("%s: no truth for %s, only its spectrum is drawn", dataset, name)
        return
    for metric in METRICS:
        bins = {m: r.bins for m, r in with_truth.items()}
        yield f"{metric.field}_{name}", partial(plot_metric, bins, metric, observable, label=label)
        if name != "m_tt" and metric.field in ("rb", "res"):
            bins = {m: r.bins_m_tt for m, r in with_truth.items()}
            versus = OBSERVABLES["m_tt"]
            draw = partial(plot_metric, bins, metric, observable, versus=versus, label=label)
            yield f"{metric.field}_{name}_vs_m_tt", draw
    residual = histograms[f"residual/{name}"].axes["residual"].edges
    tails = {m: contents("residual", m).sum(axis=0) for m in with_truth}
    yield f"residual_{name}", partial(plot_residual, tails, residual, observable, label=label)
    edges = histograms[f"moments/{name}"].axes["truth"].edges
    starts = bin_starts(histograms[f"migration/{name}"].axes["truth"].edges, edges)
    for method in with_truth:
        merged = contents("migration", method)
        for axis in (0, 1):
            merged = merge_bins(merged, starts, axis=axis)
        draw = partial(plot_migration, merged, edges, observable, method=method, label=label)
        yield f"migration_{name}_{method}", draw


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
    label, subset, channel, observables, only
        As for `figures`.
    formats
        Suffixes that matplotlib knows.

    Returns
    -------
    paths
        Files written; none if the histograms are empty, which is logged.

    Raises
    ------
    TopRecoError
        If the folder cannot be written, or an observable or format is unknown.
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
            only=only,
            summary=summary,
        ):
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
        Figure of `topreco.evaluation.draw`.
    stem
        Path without suffix; its folder is made if need be.
    formats
        Suffixes that matplotlib knows.

    Raises
    ------
    TopRecoError
        If a format is unknown or a file cannot be written.
    """
    known = figure.canvas.get_supported_filetypes()
    if unknown := [suffix for suffix in formats if suffix not in known]:
        raise TopRecoError(f"unknown format {unknown[0]!r} of a figure; allowed: {', '.join(known)}")
    paths = []
    for suffix in formats:
        path = Path(f"{stem}.{suffix}")
        # Without a date, the same histograms give the same file.
        metadata = {"CreationDate": None} if suffix == "pdf" else None
        with complete_file(path) as temporary, figure_style():
            figure.savefig(temporary, format=suffix, metadata=metadata)
        paths.append(path)
    return paths


def _file_name(text: str) -> str:
    """Text with what file systems dislike replaced."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._") or "unnamed"
