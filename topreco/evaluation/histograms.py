"""Booking of histograms, and reading of filled ones; `topreco.evaluation.fill` fills them.

All histograms merge exactly by addition. They start with the axes dataset, method and variation, which grow,
channel, and subset: "all" selected events, or the "common" ones that every method solves. The first variation
is "nominal". Then, by key:

========================  ==================================================================================
events                    observable, outcome ("selected", "solved"), moment ("n", "w", "ww")
spectrum/OBSERVABLE       source ("reco", "truth"), value: solved events only
moments/OBSERVABLE        moment, truth: the sums of `statistics.MOMENTS` and of the selected events
residual/OBSERVABLE       truth (fine), residual: for quantiles and for the width about the response line
migration/OBSERVABLE      truth (fine), reco (fine)
joint/NAME                the observables that `HistogramConfig.joint` names, without a subset: events for
                          which the method has all of them
ratio/NAME                log-ratio of a model of the task `ratio`, the category of the axis method, without a
                          subset
moments_m_tt/OBSERVABLE   as ``moments``, in bins of the true m_tt
residual_m_tt/OBSERVABLE  as ``residual``, in bins of the true m_tt
========================  ==================================================================================

The fine truth axis divides the bins of the coarse one, so that it can be merged into them. Without truth, as
in data, only ``events`` and ``spectrum`` are filled. A moment is the sum its name says: "n" counts, "ww" is
Σw².
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import hist
import numpy as np

from topreco.config import NOMINAL, ConfigError, HistogramConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import CHANNELS
from topreco.core.observables import OBSERVABLE_GROUPS, OBSERVABLES, Observable
from topreco.core.statistics import MOMENTS, Array
from topreco.evaluation.pairs import Unrolled, described, unrolled_axis

SUBSETS = ("all", "common")
COUNTS = ("n", "w", "ww")
OUTCOMES = ("selected", "solved")
SOURCES = ("reco", "truth")
SELECTED_COUNTS = tuple(f"{name}_selected" for name in COUNTS)
TRUTH_MOMENTS = (*MOMENTS, *SELECTED_COUNTS)

DEFAULT_BINS: dict[str, tuple[float, ...]] = {
    "m_tt": (300, 345, 400, 450, 500, 550, 625, 700, 850, 1000, 1400, 2000),
    "pt_tt": (0, 20, 40, 70, 110, 170, 250, 400),
    "y_tt": (-2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5),
    # (p − t)/t diverges for pT → 0: the first bin keeps that out of the others.
    "pt_top": (0, 20, 50, 80, 120, 160, 200, 250, 300, 400, 550, 800),
    "y_top": (-2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5),
    "m_top": (165, 168, 170, 171, 172, 173, 174, 175, 177, 180),
    "delta_abs_y": (-2, -1.5, -1, -0.6, -0.3, 0, 0.3, 0.6, 1, 1.5, 2),
    "delta_phi_ll": tuple(math.pi * i / 10 for i in range(11)),
}
DEFAULT_BINS |= dict.fromkeys(
    OBSERVABLE_GROUPS["threshold"], (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
)
DEFAULT_BINS |= {f"{name}_antitop": DEFAULT_BINS[f"{name}_top"] for name in ("pt", "y", "m")}
DEFAULT_BINS |= dict.fromkeys(
    ("cos_theta_star", *OBSERVABLE_GROUPS["spin"]), (-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1)
)
# The product of two cosines is small most often.
DEFAULT_BINS |= dict.fromkeys(
    OBSERVABLE_GROUPS["correlation"], (-1, -0.6, -0.4, -0.2, -0.1, 0, 0.1, 0.2, 0.4, 0.6, 1)
)
"""Edges of the truth bins per observable, replaced by `HistogramConfig.bins`."""

SPECTRUM_BINS: dict[str, tuple[int, float, float]] = {
    "m_tt": (60, 300, 1500),
    "pt_tt": (50, 0, 400),
    "y_tt": (50, -2.5, 2.5),
    "pt_top": (50, 0, 600),
    "y_top": (50, -2.5, 2.5),
    "m_top": (45, 150, 195),
    "delta_abs_y": (50, -2.5, 2.5),
    "delta_phi_ll": (40, 0, math.pi),
}
SPECTRUM_BINS |= dict.fromkeys(OBSERVABLE_GROUPS["threshold"], (40, 0, 1))
SPECTRUM_BINS |= {f"{name}_antitop": SPECTRUM_BINS[f"{name}_top"] for name in ("pt", "y", "m")}
SPECTRUM_BINS |= dict.fromkeys(("cos_theta_star", *OBSERVABLE_GROUPS["spin"]), (40, -1, 1))
"""Number of bins and range of the spectra per observable."""

N_GROWING = 3
"""Number of axes that grow, the first ones: dataset, method and variation."""

_FINE_TRUTH_BINS = 60
_RESIDUAL_BINS = 300
_RELATIVE_RESIDUAL_MAX = 20.0
_RESIDUAL_CORE = 0.02


# ---- booking ---------------------------------------------------------------------------------------------


def book(config: HistogramConfig | None = None) -> dict[str, hist.Hist]:
    """Empty histograms of the configured observables.

    Parameters
    ----------
    config
        Observables and their binnings; None takes the defaults.

    Raises
    ------
    ConfigError
        If an observable is unknown or its edges are unusable.
    """
    config = HistogramConfig() if config is None else config
    for name in (*config.observables, *config.bins):
        if name not in OBSERVABLES:
            raise ConfigError(
                f"histograms: unknown observable {name!r}; allowed: {', '.join(OBSERVABLES)}, "
                f"and the groups {', '.join(OBSERVABLE_GROUPS)}"
            )
    m_tt_edges = truth_edges(config, "m_tt")
    histograms = {
        "events": _hist(
            # An axis needs a bin: without observables there are response matrices alone.
            _category("observable", config.observables or ("none",)),
            _category("outcome", OUTCOMES),
            _category("moment", COUNTS),
        )
    }
    for name in config.observables:
        observable = OBSERVABLES[name]
        edges = truth_edges(config, name)
        fine = fine_edges(edges)
        n_bins, low, high = SPECTRUM_BINS.get(name, (60, edges[0], edges[-1]))
        moment = _category("moment", TRUTH_MOMENTS)
        truth_fine = truth_axis(name, fine)
        value = hist.axis.Regular(n_bins, low, high, name="value", label=observable.axis_label)
        residual = hist.axis.Variable(
            _residual_edges(observable, edges), name="residual", label=residual_label(observable)
        )
        histograms[f"spectrum/{name}"] = _hist(
            _category("source", SOURCES), value, storage=hist.storage.Weight()
        )
        histograms[f"moments/{name}"] = _hist(moment, truth_axis(name, edges))
        histograms[f"residual/{name}"] = _hist(truth_fine, residual)
        histograms[f"migration/{name}"] = _hist(truth_fine, reco_axis(name, fine))
        if name != "m_tt":
            truth_m_tt = truth_axis("m_tt", m_tt_edges)
            histograms[f"moments_m_tt/{name}"] = _hist(moment, truth_m_tt)
            histograms[f"residual_m_tt/{name}"] = _hist(truth_m_tt, residual)
    for name, binnings in config.joint.items():
        axes = [
            hist.axis.Variable(edges, name=observable, label=OBSERVABLES[observable].axis_label)
            for observable, edges in binnings.items()
        ]
        histograms[f"joint/{name}"] = _without_subset(*axes)
    return histograms


LOG_RATIO_BINS = (120, -6.0, 6.0)
"""Number of bins and range of log-ratios; beyond them are underflow and overflow."""


def book_ratios(names: Iterable[str]) -> dict[str, hist.Hist]:
    """Empty histograms ``ratio/NAME`` of learned observables.

    Parameters
    ----------
    names
        Names of the observables.
    """
    axis = hist.axis.Regular(*LOG_RATIO_BINS, name="log_ratio", label=r"$\ln\,p_A/p_B$")
    return {f"ratio/{name}": _without_subset(axis) for name in names}


def _without_subset(*axes: Any) -> hist.Hist:
    return hist.Hist(*category_axes((NOMINAL,)), *axes, storage=hist.storage.Weight())


def residual_label(observable: Observable) -> str:
    """Axis label of the residual of an observable, in mathtext."""
    if observable.relative:
        return f"(reco − true) / true  {observable.label}"
    return f"reco − true  {observable.axis_label}"


def observables_of(histograms: Mapping[str, hist.Hist]) -> tuple[str, ...]:
    """Names of the observables that histograms hold, in the order of booking."""
    return tuple(key.removeprefix("spectrum/") for key in histograms if key.startswith("spectrum/"))


def variations_of(histograms: Mapping[str, hist.Hist], dataset: str, method: str) -> tuple[str, ...]:
    """Names of the variations with selected events of a dataset and method, "nominal" first."""
    events = histograms["events"]
    return tuple(v for v in events.axes["variation"] if np.any(cells(events, dataset, method, v)))


def reference(truth_edges: Array) -> float:
    """Origin of the response coordinate of an observable: the middle of its truth bins."""
    return float(truth_edges[0] + truth_edges[-1]) / 2


def _hist(*axes: Any, storage: Any = None) -> hist.Hist:
    return hist.Hist(
        *category_axes((NOMINAL,)),
        _category("subset", SUBSETS),
        *axes,
        storage=hist.storage.Double() if storage is None else storage,
    )


def category_axes(variations: Sequence[str] = ()) -> list[hist.axis.StrCategory]:
    """Axes dataset, method and variation, which grow, and channel.

    Parameters
    ----------
    variations
        Categories of the variation axis from the start.
    """
    categories = {"dataset": (), "method": (), "variation": variations}
    growing = [hist.axis.StrCategory(names, growth=True, name=axis) for axis, names in categories.items()]
    return [*growing, _category("channel", CHANNELS)]


def _category(name: str, categories: Sequence[str]) -> hist.axis.StrCategory:
    return hist.axis.StrCategory(categories, name=name, overflow=False)


def truth_axis(
    observable: str, edges: Array | Sequence[float], unrolled: Unrolled = ()
) -> hist.axis.Variable:
    """Axis of the true value of an observable, or of the bins of a pair."""
    label = f"True {described(observable).axis_label}"
    return unrolled_axis("truth", unrolled, label) if unrolled else _variable(edges, "truth", label)


def reco_axis(observable: str, edges: Array | Sequence[float], unrolled: Unrolled = ()) -> hist.axis.Variable:
    """Axis of the reconstructed value of an observable, or of the bins of a pair."""
    label = f"Reconstructed {described(observable).axis_label}"
    return unrolled_axis("reco", unrolled, label) if unrolled else _variable(edges, "reco", label)


def _variable(edges: Array | Sequence[float], name: str, label: str) -> hist.axis.Variable:
    return hist.axis.Variable(edges, name=name, label=label)


def truth_edges(config: HistogramConfig, name: str) -> Array:
    """Edges of the truth bins of an observable.

    Parameters
    ----------
    config
        Its bins replace the defaults.
    name
        Observable.

    Raises
    ------
    ConfigError
        If the edges do not rise, or are missing.
    """
    found = config.bins.get(name, DEFAULT_BINS.get(name))
    key = f"histograms.bins.{name}"
    if found is None:
        raise ConfigError(f"{key}: no default binning exists, so edges are needed")
    edges = np.asarray(found, float)
    if len(edges) < 2 or not np.isfinite(edges).all() or (np.diff(edges) <= 0).any():
        raise ConfigError(f"{key}: at least two finite, rising edges expected, found {list(found)}")
    if OBSERVABLES[name].relative and edges[0] < 0:
        raise ConfigError(f"{key}: {name} is positive, found the edge {edges[0]:g}")
    return edges


def fine_edges(edges: Array) -> Array:
    """Edges with every bin divided into equal parts, those of the coarse bins among them exactly."""
    parts = max(1, _FINE_TRUTH_BINS // (len(edges) - 1))
    inner = [np.linspace(*ends, parts, endpoint=False) for ends in itertools.pairwise(edges)]
    return np.concatenate([*inner, edges[-1:]])


def _residual_edges(observable: Observable, edges: Array) -> Array:
    """Residual bins whose width grows with the residual: fine in the core, yet reaching far into the tails.

    They are equal in arcsinh(r/core). Relative residuals begin at −1, a prediction of zero; differences span
    the range of the truth bins to both sides.
    """
    if observable.relative:
        core, low, high = _RESIDUAL_CORE, -1.0, _RELATIVE_RESIDUAL_MAX
    else:
        span = edges[-1] - edges[0]
        core, low, high = _RESIDUAL_CORE * span / 5, -span, span
    ends = math.asinh(low / core), math.asinh(high / core)
    found = core * np.sinh(np.linspace(*ends, _RESIDUAL_BINS + 1))
    # Free of rounding, so that no prediction falls below zero.
    found[[0, -1]] = low, high
    return found


# ---- reading ---------------------------------------------------------------------------------------------


def cells(histogram: hist.Hist, dataset: str, method: str, variation: str = NOMINAL) -> Any:
    """Contents of one dataset, method and variation with flow, a view of shape (channel, subset, …).

    Returns
    -------
    cells
        None if the histogram was never filled for them.

    Raises
    ------
    TopRecoError
        If the histogram has no axis of variations, as those of earlier versions.
    """
    if "variation" not in histogram.axes.name:
        raise TopRecoError(
            "these histograms have no axis 'variation': an earlier version made them, run again"
        )
    found = []
    for axis, category in zip(histogram.axes[:N_GROWING], (dataset, method, variation), strict=True):
        names = list(axis)
        if category not in names:
            return None
        found.append(names.index(category))
    return histogram.view(flow=True)[tuple(found)]


def histograms_of(output: Mapping[str, Any]) -> dict[str, hist.Hist]:
    """The histograms of `book` in the output of a processor, at its top or under "histograms".

    Parameters
    ----------
    output
        What `coffea.util.load` returns.

    Raises
    ------
    ValueError
        If there are none.
    """
    inner = output.get("histograms", output)
    found = {key: value for key, value in inner.items() if isinstance(value, hist.Hist)}
    # A run that fills response matrices alone has no observables.
    if "events" not in found or not any(key.startswith(("spectrum/", "response/")) for key in found):
        raise ValueError(
            f"no topreco histograms: keys 'events' and 'spectrum/…' expected, found {sorted(map(str, inner))}"
        )
    return found


def add_up(parts: Sequence[Mapping[str, hist.Hist]]) -> dict[str, hist.Hist]:
    """Sum of the histograms of several runs, which may differ in events, datasets and methods.

    Parameters
    ----------
    parts
        Histograms of each run, one at least. Those that only some runs have are left out.

    Raises
    ------
    TopRecoError
        If two runs differ in observables or bins.
    """
    total = dict(parts[0])
    for other in parts[1:]:
        try:
            total = {key: total[key] + other[key] for key in total if key in other}
        except ValueError as error:
            raise TopRecoError(
                f"these histograms cannot be added: they differ in observables or bins ({error})"
            ) from error
    return total
