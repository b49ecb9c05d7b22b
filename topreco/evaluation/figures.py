"""The figures that a set of filled histograms gives, and how they are saved."""

import fnmatch
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import hist
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from PIL import Image

from topreco.config import NOMINAL
from topreco.core.errors import TopRecoError
from topreco.core.files import complete_file
from topreco.core.observables import OBSERVABLES
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

FORMATS = ("png",)

USUAL_OBSERVABLES = ("m_tt", "pt_top", "y_top", "c_hel", "c_han")
USUAL_KINDS = ("residual", "rb", "res", "width68")
USUAL_KINDS_OF_METHODS = ("migration", "variations")
"""Figures that are drawn unless others are requested; without truth the spectra."""

_FIGURES_PER_PROCESS = 24
"""A process takes as long to start as it takes to draw about so many figures."""
_COMPRESSION = {"compress_type": zlib.Z_RLE}
"""A third faster than zlib's default, for files of figures that are a sixth larger."""
_TILE = 400
"""Height of a figure on the overview, in pixels."""


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
    category = dataset, subset, channel
    for name in _known(histograms, observables):
        for figure, draw in _figures_of(histograms, name, summary, category, label or Label()):
            if fnmatch.fnmatchcase(figure, only):
                yield figure, draw()


def _known(histograms: Mapping[str, hist.Hist], observables: Sequence[str] | None) -> Sequence[str]:
    """Observables to draw, all of which the histograms have."""
    known = observables_of(histograms)
    for name in observables or ():
        if name not in known:
            raise TopRecoError(f"no observable {name!r} in these histograms, only {', '.join(known)}")
    return observables or known


def _figures_of(
    histograms: Mapping[str, hist.Hist],
    name: str,
    summary: Summary,
    category: tuple[str, str, str],
    label: Label,
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """Names of the figures of one observable, and what draws them."""
    observable = OBSERVABLES[name]
    dataset, subset, channel = category
    results: dict[str, Result] = {
        method: found[channel][name] for method, found in summary.get(subset, {}).get(dataset, {}).items()
    }

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
    only: str | None = None,
    every: bool = False,
    formats: Sequence[str] = FORMATS,
    workers: int = 1,
    summary: Summary | None = None,
) -> list[Path]:
    """Draw and save figures, in one folder per dataset, and an overview of the usual ones as PNG.

    Parameters
    ----------
    histograms
        Filled histograms of `histograms.book`.
    folder
        Where to write; made if need be.
    label, subset, channel, summary
        As for `figures`.
    observables
        Observables to draw; by default `USUAL_OBSERVABLES`, and with `only` or `every` all.
    only
        Pattern of the names of the figures to draw, without an overview; by default those of `USUAL_KINDS`.
    every
        Draw every figure.
    formats
        Suffixes that matplotlib knows. The overview needs "png".
    workers
        Processes that draw; the files do not depend on it.

    Returns
    -------
    paths
        Files written; none if the histograms are empty, which is logged.

    Raises
    ------
    TopRecoError
        If the folder cannot be written, an observable or format is unknown, or a process dies.
    """
    summary = summarise(histograms) if summary is None else summary
    datasets = list(summary.get(subset, {}))
    if not datasets:
        logger.warning("no events in the subset %r: no figures", subset)
    known = _known(histograms, observables)
    looked_at = observables or [name for name in USUAL_OBSERVABLES if name in known] or known
    draws: dict[Path, Callable[[], Figure]] = {}
    rows: dict[Path, list[list[Path]]] = {}
    for dataset in datasets:
        here = Path(folder) / _file_name(dataset)
        for name in known:
            category = dataset, subset, channel
            found = list(_figures_of(histograms, name, summary, category, label or Label()))
            usual = _usual([figure for figure, _ in found], name) if name in looked_at else set()
            row = []
            for figure, draw in found:
                drawn = every or figure in usual if only is None else fnmatch.fnmatchcase(figure, only)
                if not drawn:
                    continue
                stem = here / _file_name(figure)
                # Names that differ only in what a file name cannot hold must not overwrite each other.
                while stem in draws:
                    stem = stem.with_name(f"{stem.name}_")
                draws[stem] = draw
                if figure in usual:
                    row.append(stem)
            rows.setdefault(here, []).append(row)
    paths = _draw(draws, formats, workers)
    if only is None and "png" in formats:
        paths += [_overview(found, here / "overview.png") for here, found in rows.items() if any(found)]
    return paths


def _usual(figures: Sequence[str], observable: str) -> set[str]:
    """Figures of an observable that are drawn by default; without truth its spectrum."""
    kinds = USUAL_KINDS if f"residual_{observable}" in figures else ("spectrum",)
    names = {f"{kind}_{observable}" for kind in kinds}
    of_methods = tuple(f"{kind}_{observable}_" for kind in USUAL_KINDS_OF_METHODS)
    return {figure for figure in figures if figure in names or figure.startswith(of_methods)}


def _draw(draws: Mapping[Path, Callable[[], Figure]], formats: Sequence[str], workers: int) -> list[Path]:
    """Draw and save figures, given by the paths of their files without suffix."""
    workers = min(workers, len(draws) // _FIGURES_PER_PROCESS)
    with ExitStack() as stack:
        apply: Any = map
        if workers > 1:
            # Forked threads of torch and numba may hang.
            pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            apply = partial(stack.enter_context(pool).map, chunksize=4)
        try:
            found = list(apply(_draw_one, draws.values(), draws, repeat(tuple(formats))))
        except BrokenProcessPool as error:
            raise TopRecoError("a process that draws figures died, perhaps for lack of memory") from error
    return [path for paths in found for path in paths]


def _draw_one(draw: Callable[[], Figure], stem: Path, formats: Sequence[str]) -> list[Path]:
    return save(draw(), stem, formats=formats)


def _overview(rows: Sequence[Sequence[Path]], path: Path) -> Path:
    """One image of saved figures, a row per observable."""
    tiles = []
    for row in rows:
        images = []
        for stem in row:
            with Image.open(f"{stem}.png") as opened:
                size = round(_TILE * opened.width / opened.height), _TILE
                images.append(opened.convert("RGB").resize(size, Image.Resampling.BOX, reducing_gap=2.0))
        if images:
            tiles.append(images)
    width = max(sum(tile.width for tile in images) for images in tiles)
    sheet = Image.new("RGB", (width, _TILE * len(tiles)), "white")
    for i, images in enumerate(tiles):
        left = 0
        for tile in images:
            sheet.paste(tile, (left, _TILE * i))
            left += tile.width
    with complete_file(path) as temporary:
        sheet.save(temporary, format="png", **_COMPRESSION)
    return path


def check_formats(formats: Sequence[str]) -> None:
    """Raise `TopRecoError` unless matplotlib knows all suffixes."""
    known = FigureCanvasBase.get_supported_filetypes()
    if unknown := [suffix for suffix in formats if suffix not in known]:
        raise TopRecoError(f"unknown format {unknown[0]!r} of a figure; allowed: {', '.join(known)}")


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
    check_formats(formats)
    paths = []
    for suffix in formats:
        path = Path(f"{stem}.{suffix}")
        # Without a date, the same histograms give the same file.
        options: dict[str, dict[str, Any]] = {
            "pdf": {"metadata": {"CreationDate": None}},
            "png": {"pil_kwargs": _COMPRESSION},
        }
        with complete_file(path) as temporary, figure_style():
            figure.savefig(temporary, format=suffix, **options.get(suffix, {}))
        paths.append(path)
    return paths


def _file_name(text: str) -> str:
    """Text with what file systems dislike replaced."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._") or "unnamed"
