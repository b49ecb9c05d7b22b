"""Figures of a validation, as images that a page can hold."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from topreco.core.observables import OBSERVABLES
from topreco.evaluation.draw import METRICS, plot_metric, plot_residual
from topreco.evaluation.style import COLOURS, MARKERS, canvas, figure_style
from topreco.evaluation.summary import Bin
from topreco.validation.calibration import COVERAGE_LEVELS, N_BINS, Calibration
from topreco.validation.extras import MassScan, Shape
from topreco.validation.gather import EventTable
from topreco.validation.spin import SpinLinearity
from topreco.validation.uncertainty import Coverage, Kept, Pull

_LINES = ("-", "--", ":", "-.")


def data_uri(figure: Figure) -> str:
    """A figure as an SVG image in a data URI, the same bytes for the same figure.

    Parameters
    ----------
    figure
        What was drawn.
    """
    buffer = io.BytesIO()
    with figure_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def draw_bins(
    methods: Mapping[str, Sequence[Bin]], field: str, observable: str, *, predicted: bool = False
) -> Figure:
    """One metric in bins of the true or of the predicted value.

    Parameters
    ----------
    methods
        Bins by method.
    field
        One of those in `topreco.evaluation.draw.METRICS`.
    observable
        Name of the observable.
    predicted
        Bins are of the predicted value.
    """
    metric = next(m for m in METRICS if m.field == field)
    figure = plot_metric(methods, metric, OBSERVABLES[observable])
    if predicted:
        figure.axes[0].set_xlabel(f"Reconstructed {OBSERVABLES[observable].axis_label}")
    return figure


def draw_residuals(table: EventTable, observable: str) -> Figure:
    """Distributions of the residual of all methods.

    Parameters
    ----------
    table
        Events with truth.
    observable
        Name of the observable.
    """
    known = OBSERVABLES[observable]
    edges = np.linspace(-2, 4, 601)
    with np.errstate(invalid="ignore", divide="ignore"):
        residuals = {
            method: known.residual(found.values[observable], table.truth[observable])
            for method, found in table.predictions.items()
        }
    counts = {}
    for method, values in residuals.items():
        seen = np.isfinite(values)
        with_flow = np.array([-np.inf, *edges, np.inf])
        counts[method] = np.histogram(values[seen], with_flow, weights=table.events["weight"][seen])[0]
    return plot_residual(counts, edges, known)


def draw_coverage(methods: Mapping[str, Mapping[str, Coverage]], label: str) -> Figure:
    """Coverage of the 68 % (full markers) and 95 % intervals (open) by region.

    Parameters
    ----------
    methods
        Coverage by method and region.
    label
        Axis label of the regions.
    """
    names = list(next(iter(methods.values())))

    def draw(axes: Any) -> None:
        for i, (method, found) in enumerate(methods.items()):
            x = np.arange(len(names)) + (i - (len(methods) - 1) / 2) * 0.12
            for level, filled in (("68", True), ("95", False)):
                y, error = (
                    np.array([getattr(found[name], f"coverage{level}{suffix}") for name in names])
                    for suffix in ("", "_error")
                )
                axes.errorbar(
                    x,
                    100 * y,
                    100 * np.nan_to_num(error),
                    **_marker(i),
                    fillstyle="full" if filled else "none",
                    label=method if filled else None,
                )
        for nominal in (68, 95):
            axes.axhline(nominal, color="0.6", linewidth=1.5, zorder=0)
        axes.set_xticks(range(len(names)), names)
        axes.tick_params(axis="x", which="minor", bottom=False, top=False)
        axes.set_ylim(min(40.0, axes.get_ylim()[0]), 122)
        axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 100])
        axes.set_xlabel(label)
        axes.set_ylabel("Truth in the interval [%]")

    return _draw(draw)


def draw_ranks(methods: Mapping[str, Calibration], observable: str) -> Figure:
    """Distribution of the rank of the truth among the samples; the band is the error of a uniform one.

    Parameters
    ----------
    methods
        Calibration by method.
    observable
        Name of the observable.
    """

    def draw(axes: Any) -> None:
        edges = np.linspace(0, 1, N_BINS + 1)
        error = max(np.nan_to_num([of.density_error for of in methods.values()]))
        axes.axhspan(1 - error, 1 + error, color="0.85", zorder=0)
        axes.axhline(1, color="0.6", linewidth=1.5, zorder=0)
        for i, (method, of) in enumerate(methods.items()):
            axes.stairs(of.density, edges, label=method, **_line(i))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.35 * max(axes.get_ylim()[1], 1.2))
        axes.set_xlabel(f"Rank of the true {OBSERVABLES[observable].label} among the samples")
        axes.set_ylabel("Density of events")

    return _draw(draw)


def draw_expected_coverage(methods: Mapping[str, Calibration], observable: str) -> Figure:
    """Coverage of the central intervals of all levels, minus their level.

    Parameters
    ----------
    methods
        Calibration by method.
    observable
        Name of the observable.
    """
    order = np.argsort(COVERAGE_LEVELS)

    def draw(axes: Any) -> None:
        level = np.array(COVERAGE_LEVELS)[order]
        for i, (method, of) in enumerate(methods.items()):
            share, error = (np.array(x)[order] for x in (of.coverage, of.coverage_error))
            style = _marker(i) | {"linestyle": _LINES[i % len(_LINES)]}
            axes.errorbar(
                100 * level, 100 * (share - level), 100 * np.nan_to_num(error), label=method, **style
            )
        axes.axhline(0, color="0.6", linewidth=1.5, zorder=0)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, -3), max(high, 3) + 0.35 * (max(high, 3) - min(low, -3)))
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"Content of the central interval of {OBSERVABLES[observable].label} [%]")
        axes.set_ylabel("Truth in it − content [%]")

    return _draw(draw)


def draw_pulls(methods: Mapping[str, Pull], observable: str) -> Figure:
    """Distribution of the pulls of all methods, beside a normal distribution.

    Parameters
    ----------
    methods
        Pulls by method.
    observable
        Name of the observable.
    """

    def draw(axes: Any) -> None:
        for i, (method, pull) in enumerate(methods.items()):
            axes.stairs(pull.density, pull.edges, label=method, **_line(i))
        x = np.linspace(-5, 5, 201)
        normal = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        axes.plot(x, normal, color="0.6", linewidth=1.5, label="normal distribution", zorder=0)
        axes.set_xlabel(f"(true − median) / half 68 % width  {OBSERVABLES[observable].label}")
        axes.set_ylabel("Fraction of events / unit")
        axes.set_ylim(0, 1.35 * axes.get_ylim()[1])

    return _draw(draw)


def draw_quality(methods: Mapping[str, Sequence[Kept]], observable: str) -> Figure:
    """68 % half-width of the residual against the efficiency, for cuts on the quality.

    Parameters
    ----------
    methods
        Metrics of the events kept, by method.
    observable
        Name of the observable.
    """

    def draw(axes: Any) -> None:
        for i, (method, kept) in enumerate(methods.items()):
            x, y, error = (
                np.array([getattr(k.metrics, field) for k in kept])
                for field in ("efficiency", "width68", "width68_error")
            )
            style = _marker(i) | {"linestyle": _LINES[i % len(_LINES)]}
            axes.errorbar(100 * x, y, np.nan_to_num(error), label=method, **style)
        axes.set_xlabel("Efficiency [%]")
        axes.set_ylabel(f"68 % half-width of the residual of {OBSERVABLES[observable].label}")
        axes.set_xlim(0, 105)
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])

    return _draw(draw)


def draw_shape(shape: Shape, label: str) -> Figure:
    """Distribution of one quantity in signal and background.

    Parameters
    ----------
    shape
        What to draw.
    label
        Axis label.
    """

    def draw(axes: Any) -> None:
        for i, (name, content) in enumerate((("tt̄", shape.signal), ("background", shape.background))):
            axes.stairs(content, shape.edges, label=name, **_line(i))
        axes.set_xlabel(label)
        axes.set_ylabel("Fraction of events / bin")
        axes.set_ylim(0, 1.25 * axes.get_ylim()[1])

    return _draw(draw)


def draw_mass_scan(methods: Mapping[str, MassScan], observable: str) -> Figure:
    """Bias against the top-quark mass.

    Parameters
    ----------
    methods
        Points by method.
    observable
        Name of the observable.
    """

    def draw(axes: Any) -> None:
        for i, (method, scan) in enumerate(methods.items()):
            x = np.array([point.m_top for point in scan.points])
            y, error = (
                np.array([getattr(p.metrics, key) for p in scan.points]) for key in ("rb", "rb_error")
            )
            style = _marker(i) | {"linestyle": _LINES[i % len(_LINES)]}
            axes.errorbar(x, y, np.nan_to_num(error), label=method, **style)
        axes.axhline(0, color="0.6", linewidth=1.5, zorder=0)
        axes.set_xlabel(r"Generated $m_{t}$ [GeV]")
        axes.set_ylabel(f"Mean relative residual of {OBSERVABLES[observable].label}")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.35 * (high - low))

    return _draw(draw)


def draw_spin(methods: Mapping[str, SpinLinearity]) -> Figure:
    """Difference of reconstructed and true mean of c_hel against the true one.

    Parameters
    ----------
    methods
        Samples of all spin correlations by method.
    """

    def draw(axes: Any) -> None:
        for i, (method, found) in enumerate(methods.items()):
            true, predicted, error = (
                np.array([getattr(point, key) for point in found.points])
                for key in ("true", "predicted", "bias_error")
            )
            axes.errorbar(true, predicted - true, error, label=method, **_marker(i))
        axes.axhline(0, color="0.6", linewidth=1.5, zorder=0)
        axes.set_xlabel(r"True $\langle c_{hel}\rangle$ of the solved events")
        axes.set_ylabel(r"Reconstructed − true $\langle c_{hel}\rangle$")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.35 * (high - low))

    return _draw(draw)


def _draw(content: Callable[[Any], None]) -> Figure:
    with canvas() as (figure, (axes,)):
        content(axes)
        axes.legend(loc="upper right", fontsize="small")
        return figure


def _marker(i: int) -> dict[str, Any]:
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 9,
        "linestyle": "none",
        "elinewidth": 2,
    }


def _line(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linewidth": 2.5, "linestyle": _LINES[i % len(_LINES)]}
