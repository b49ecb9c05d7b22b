"""Style of the figures: colours, markers, the label above them, and an empty canvas with all of that."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import mplhep
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

COLOURS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
"""Ten colours that colour-blind readers can tell apart (M. A. Petroff, arXiv:2107.02270)."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")
LINES = ("-", "--", ":", "-.")

# Shares of a figure: the upper end of the panels, which leaves room for the label, and the other margins.
_TOP = 0.93
_MARGIN = 0.02
# Settings of the process and not of a figure stay as they are.
_OF_THE_PROCESS = ("backend", "interactive", "toolbar", "timezone", "date.", "webagg.", "tk.", "docstring.")
_DEFAULTS = {key: value for key, value in mpl.rcParamsDefault.items() if not key.startswith(_OF_THE_PROCESS)}


@dataclass(frozen=True)
class Label:
    """Text above a figure.

    Attributes
    ----------
    text
        Status, such as "Private work". None stands for "Simulation" in figures of events with truth, and for
        nothing in those of data.
    experiment
        Experiment in bold before it, such as "CMS"; none by default.
    sqrt_s
        Centre-of-mass energy in TeV, None to omit.
    """

    text: str | None = None
    experiment: str = ""
    sqrt_s: float | None = None


def figure_style() -> AbstractContextManager[None]:
    """The CMS style of mplhep, also needed while saving: fonts are looked up then.

    It begins with matplotlib's own defaults, so that no `matplotlibrc` of the user changes a figure.
    """
    return mpl.rc_context({**_DEFAULTS, **mplhep.style.CMS, "axes.labelpad": 8.0, "svg.hashsalt": "topreco"})


@contextmanager
def canvas(
    label: Label | None = None, *, width: float = 10.0, heights: Sequence[float] = (1,)
) -> Iterator[tuple[Figure, list[Any]]]:
    """Figure to draw on within the style; the label is added at the end.

    Parameters
    ----------
    label
        Text above the figure.
    width
        Width in inches; the height is 10.
    heights
        Relative heights of the panels, which share the x axis.

    Yields
    ------
    figure, panels
        The figure and its axes, from above.
    """
    with figure_style():
        figure = Figure(figsize=(width, 10.0))
        grid = figure.subplots(
            len(heights),
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": heights, "top": _TOP, "hspace": 0.06},
        )
        panels = list(grid[:, 0])
        yield figure, panels
        _fit(figure)
        _add_label(panels[0], Label() if label is None else label)


def _fit(figure: Figure) -> None:
    """Margins as wide as tick and axis labels need.

    Measured once: matplotlib's constrained layout repeats it and costs more than the drawing.
    """
    canvas_before = figure.canvas
    agg: Any = FigureCanvasAgg(figure)
    renderer = agg.get_renderer()
    # mplhep would have this canvas draw everything for each text of the label.
    figure.set_canvas(canvas_before)
    boxes = [
        box
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        if (box := axis.get_tightbbox(renderer, for_layout_only=True)) is not None
    ]
    found = Bbox.union(boxes).transformed(figure.transFigure.inverted())
    margins = figure.subplotpars
    figure.subplots_adjust(
        left=margins.left + _MARGIN - found.x0,
        bottom=margins.bottom + _MARGIN - found.y0,
        right=margins.right + 1 - _MARGIN - max(found.x1, margins.right),
        top=_TOP,
    )


def _add_label(axes: Any, label: Label) -> None:
    text = "Simulation" if label.text is None else label.text
    # The label takes the place of the y axis' exponent, which moves to the left of the axis.
    axes.yaxis.get_offset_text().set_horizontalalignment("right")
    # A dollar sign is no mathtext here.
    experiment, text = (part.replace("$", r"\$") for part in (label.experiment, text))
    energy = None if label.sqrt_s is None else f"{label.sqrt_s:g}"
    mplhep.label.exp_label(exp=experiment, llabel=text, com=energy, ax=axes, scilocator_adjust=False)


def marker(i: int) -> dict[str, Any]:
    """Style of the points of the i-th of several methods."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 8,
        "linestyle": "none",
        "elinewidth": 2,
    }


def line(i: int) -> dict[str, Any]:
    """Style of the line of the i-th of several methods."""
    return {"color": COLOURS[i % len(COLOURS)], "linewidth": 2.5, "linestyle": LINES[i % len(LINES)]}
