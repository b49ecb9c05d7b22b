"""Figures of studies: a metric of many trainings, by point or against size."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from topreco.core.statistics import Array
from topreco.evaluation.figures import save
from topreco.evaluation.style import COLOURS, MARKERS, figure_style
from topreco.studies.repeats import PowerLaw, spread


def plot_points(points: Mapping[str, Sequence[float]], label: str, *, reference: str) -> Figure:
    """A metric of every point: mean and standard deviation over seeds, and each seed as a small dot.

    Parameters
    ----------
    points
        Values of the seeds by point.
    label
        Axis label.
    reference
        Point whose spread is drawn as a band.
    """
    with figure_style():
        figure = Figure(figsize=(11.0, 2.5 + 0.62 * len(points)), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, values) in enumerate(points.items()):
            found = spread(list(values))
            colour = COLOURS[2] if name == reference else COLOURS[0]
            if name == reference and np.isfinite(found.deviation):
                axes.axvspan(
                    found.mean - found.deviation, found.mean + found.deviation, color="0.9", zorder=0
                )
            axes.errorbar(
                found.mean,
                i,
                xerr=found.deviation if np.isfinite(found.deviation) else 0.0,
                color=colour,
                marker="o",
                markersize=10,
                elinewidth=3,
            )
            axes.plot(list(values), np.full(len(values), i + 0.25), ".", color=colour, markersize=7)
        axes.set_yticks(range(len(points)), list(points), size="x-small")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(len(points) - 0.4, -0.6)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", right=False)
        axes.grid(axis="x", color="0.85")
        axes.locator_params(axis="x", nbins=6)
        return figure


def plot_scaling(
    series: Mapping[str, Array], laws: Mapping[str, PowerLaw | None], label: str, size_label: str
) -> Figure:
    """A metric against size on logarithmic axes, with fitted power laws and what they extrapolate to.

    Parameters
    ----------
    series
        Size, mean and error of the mean, shape (3, k), by name.
    laws
        Fit of each series, None where there is none.
    label, size_label
        Axis labels.
    """
    with figure_style():
        figure = Figure(figsize=(10.0, 10.0), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, (size, mean, error)) in enumerate(series.items()):
            colour = COLOURS[i % len(COLOURS)]
            axes.errorbar(
                size,
                mean,
                yerr=np.where(np.isfinite(error), error, 0.0),
                color=colour,
                marker=MARKERS[i % len(MARKERS)],
                markersize=8,
                linestyle="none",
                elinewidth=2,
                label=name,
            )
            law = laws.get(name)
            if law is None:
                continue
            grid = np.geomspace(size.min(), law.at, 300)
            axes.plot(
                grid,
                law(grid),
                color=colour,
                label=f"{law.a:.3g} + {law.b:.2g} (N/{law.n_first:.0f})$^{{-{law.c:.2f}}}$",
            )
            axes.errorbar(
                law.at,
                law.value,
                yerr=[[max(law.value - law.value_low, 0.0)], [max(law.value_high - law.value, 0.0)]],
                color=colour,
                marker="none",
                elinewidth=3,
                capsize=6,
            )
        axes.set_xscale("log")
        axes.set_xlabel(size_label)
        axes.set_ylabel(label)
        axes.legend(fontsize="x-small")
        axes.grid(color="0.9")
        return figure


def save_figure(figure: Figure, stem: str | Path) -> None:
    """Write a figure of this module as PNG."""
    save(figure, stem, formats=("png",))
