"""Booking and filling: `DileptonEvents` and `TopPair`, with `Truth` where there is one, to `hist.Hist`.

All histograms merge exactly by addition. They start with the axes dataset, method and variation, which grow,
channel, and subset: "all" selected events, or the "common" ones that every method solves. The first variation
is "nominal". Then, by key:

========================  ==================================================================================
events                    observable, outcome ("selected", "solved"), moment ("n", "w", "ww")
spectrum/OBSERVABLE       source ("reco", "truth"), value: solved events only
moments/OBSERVABLE        moment, truth: the sums of `metrics.MOMENTS` and of the selected events
residual/OBSERVABLE       truth (fine), residual: for quantiles and for the width about the response line
migration/OBSERVABLE      truth (fine), reco (fine)
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
from scipy.sparse import csc_array

from topreco.config import NOMINAL, ConfigError, HistogramConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import CHANNELS, BoolArray, DileptonEvents, TopPair, Truth
from topreco.core.observables import OBSERVABLE_GROUPS, OBSERVABLES, Observable
from topreco.core.statistics import (
    MOMENTS,
    Array,
    check_weights,
    event_moments,
    has_value,
    response_coordinate,
)

SUBSETS = ("all", "common")
COUNTS = ("n", "w", "ww")
OUTCOMES = ("selected", "solved")
SOURCES = ("reco", "truth")
_SELECTED = tuple(f"{name}_selected" for name in COUNTS)
TRUTH_MOMENTS = (*MOMENTS, *_SELECTED)

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
SPECTRUM_BINS |= {f"{name}_antitop": SPECTRUM_BINS[f"{name}_top"] for name in ("pt", "y", "m")}
SPECTRUM_BINS |= dict.fromkeys(("cos_theta_star", *OBSERVABLE_GROUPS["spin"]), (40, -1, 1))
"""Number of bins and range of the spectra per observable."""

_GROWING = 3
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
            _category("observable", config.observables),
            _category("outcome", OUTCOMES),
            _category("moment", COUNTS),
        )
    }
    for name in config.observables:
        observable = OBSERVABLES[name]
        edges = truth_edges(config, name)
        fine = fine_edges(edges)
        label = observable.axis_label
        n_bins, low, high = SPECTRUM_BINS.get(name, (60, edges[0], edges[-1]))
        moment = _category("moment", TRUTH_MOMENTS)
        truth = hist.axis.Variable(edges, name="truth", label=f"True {label}")
        truth_fine = hist.axis.Variable(fine, name="truth", label=f"True {label}")
        reco_fine = hist.axis.Variable(fine, name="reco", label=f"Reconstructed {label}")
        value = hist.axis.Regular(n_bins, low, high, name="value", label=label)
        residual = hist.axis.Variable(
            _residual_edges(observable, edges), name="residual", label=residual_label(observable)
        )
        histograms[f"spectrum/{name}"] = _hist(
            _category("source", SOURCES), value, storage=hist.storage.Weight()
        )
        histograms[f"moments/{name}"] = _hist(moment, truth)
        histograms[f"residual/{name}"] = _hist(truth_fine, residual)
        histograms[f"migration/{name}"] = _hist(truth_fine, reco_fine)
        if name != "m_tt":
            m_tt_label = f"True {OBSERVABLES['m_tt'].axis_label}"
            truth_m_tt = hist.axis.Variable(m_tt_edges, name="truth", label=m_tt_label)
            histograms[f"moments_m_tt/{name}"] = _hist(moment, truth_m_tt)
            histograms[f"residual_m_tt/{name}"] = _hist(truth_m_tt, residual)
    return histograms


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
        hist.axis.StrCategory([], growth=True, name="dataset"),
        hist.axis.StrCategory([], growth=True, name="method"),
        hist.axis.StrCategory([NOMINAL], growth=True, name="variation"),
        _category("channel", CHANNELS),
        _category("subset", SUBSETS),
        *axes,
        storage=hist.storage.Double() if storage is None else storage,
    )


def _category(name: str, categories: tuple[str, ...]) -> Any:
    return hist.axis.StrCategory(categories, name=name, overflow=False)


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


def add_categories(
    histograms: Mapping[str, hist.Hist],
    *,
    dataset: str,
    methods: Sequence[str],
    variation: str = NOMINAL,
    truth: bool = True,
    metrics: bool = True,
) -> None:
    """Make the categories that `fill` will need, of several methods at once: each time a histogram is copied.

    Parameters
    ----------
    histograms
        Histograms of `book`, changed in place.
    dataset, methods, variation
        Categories.
    truth, metrics
        Whether truth, and moments and residuals, will be filled.
    """
    kinds = {"events", "spectrum"}
    if truth:
        kinds |= {"migration"} | (
            {"moments", "residual", "moments_m_tt", "residual_m_tt"} if metrics else set()
        )
    for key, histogram in histograms.items():
        if methods and key.partition("/")[0] in kinds:
            _grow(histogram, dataset, methods, variation)


def _grow(histogram: hist.Hist, dataset: str, methods: Sequence[str], variation: str) -> None:
    """Make categories by entries of weight zero."""
    axes = histogram.axes[_GROWING:]
    first = [axis.bin(0) if isinstance(axis, hist.axis.StrCategory) else axis.edges[0] for axis in axes]
    histogram.fill(dataset, list(methods), variation, *first, weight=np.zeros(len(methods)))


# ---- filling ---------------------------------------------------------------------------------------------


def fill(
    histograms: Mapping[str, hist.Hist],
    *,
    dataset: str,
    method: str,
    events: DileptonEvents,
    pair: TopPair,
    truth: Truth | None = None,
    true: Mapping[str, Array] | None = None,
    common: BoolArray | None = None,
    variation: str = NOMINAL,
    metrics: bool = True,
) -> None:
    """Fill the histograms of `book` with what one method made of selected events.

    An event counts as solved for an observable if the method calls it valid and the observable is finite (and
    positive, where its residual is relative). Others enter the denominators of efficiencies only.

    Parameters
    ----------
    histograms
        Histograms of `book`, filled in place.
    dataset, method
        Categories to fill.
    events
        Selected events, all of them, whether solved or not.
    pair
        What the method reconstructed in them.
    truth
        Generated tops, None in data; events whose tops are unknown enter as data do.
    true
        What `true_of_booked` gives for that truth, where it is known already; by default computed.
    common
        Events that every method solves, shape (n,). They fill the subset "common", whose efficiencies have
        all selected events in the denominator; None leaves that subset empty.
    variation
        Category to fill.
    metrics
        Fill ``moments`` and ``residual`` too, which are most of the memory and of the time.

    Raises
    ------
    ValueError
        If lengths differ, a weight is not finite, or `common` holds an event that this method did not solve.
    """
    n = len(events)
    lengths = {"pair": len(pair)}
    lengths |= {} if truth is None else {"truth": len(truth)}
    lengths |= {} if common is None else {"common": len(common)}
    for name, length in lengths.items():
        if length != n:
            raise ValueError(f"fill: {n} events but {length} entries in {name} ({dataset}, {method})")
    if common is not None and (unsolved := int((common & ~pair.valid).sum())):
        raise ValueError(
            f"fill: {unsolved} events are marked as solved by all methods, but {method} did not solve them "
            f"({dataset})"
        )
    weight = np.asarray(events.weight, np.float64)
    check_weights(weight, f"events.weight ({dataset})")
    subsets = {"all": np.ones(n, np.bool_)} | ({} if common is None else {"common": np.asarray(common, bool)})
    names = observables_of(histograms)
    predicted = predicted_values(names, events, pair)
    if true is None:
        true = {} if truth is None else true_of_booked(histograms, truth)

    category = dataset, method, variation
    channel = events.channel.astype(np.intp)
    counted = np.stack([np.ones_like(weight), weight, weight**2], axis=-1)
    counts = Filler(histograms["events"], *category)
    for name in names:
        observable = OBSERVABLES[name]
        pred = predicted[name]
        solved = has_value(pred, relative=observable.relative)
        spectrum = histograms[f"spectrum/{name}"]
        values = Filler(spectrum, *category)
        where = {"observable": name, "outcome": "selected"}
        counts.add_moments(where, subsets, COUNTS, [channel], counted)
        for names_of_subsets, keep in _kept(subsets, solved):
            where = {"observable": name, "outcome": "solved"}
            counts.add_moments(where, names_of_subsets, COUNTS, [channel[keep]], counted[keep])
            index = spectrum.axes["value"].index(pred[keep]) + 1
            values.add({"source": "reco"}, names_of_subsets, [channel[keep], index], weight[keep])
        if truth is None:
            continue
        known = has_value(true[name], relative=observable.relative)
        _fill_truth(
            *(histograms, category, observable, subsets, channel, counted, pred, true, solved, known),
            metrics=metrics,
        )


def _kept(subsets: Mapping[str, BoolArray], passed: BoolArray) -> list[tuple[list[str], BoolArray]]:
    """Events of each subset that pass; subsets that keep the same ones stand together and share sums."""
    found: list[tuple[list[str], BoolArray]] = []
    for subset, chosen in subsets.items():
        keep = passed & chosen
        same = [names for names, mask in found if np.array_equal(mask, keep)]
        if same:
            same[0].append(subset)
        else:
            found.append(([subset], keep))
    return found


def _fill_truth(
    histograms: Mapping[str, hist.Hist],
    category: tuple[str, str, str],
    observable: Observable,
    subsets: Mapping[str, BoolArray],
    channel: Array,
    counted: Array,
    pred: Array,
    true: Mapping[str, Array],
    solved: Array,
    known: Array,
    *,
    metrics: bool,
) -> None:
    """Fill what needs truth, for one observable."""
    name = observable.name
    spectrum, migration = histograms[f"spectrum/{name}"], histograms[f"migration/{name}"]
    values, migrations = Filler(spectrum, *category), Filler(migration, *category)
    # From here on only events with prediction and truth, of which each subset keeps some.
    both = np.flatnonzero(solved & known)
    kept = _kept({subset: chosen[both] for subset, chosen in subsets.items()}, np.ones(len(both), np.bool_))
    p, t, w, c = pred[both], true[name][both], counted[both, COUNTS.index("w")], channel[both]
    bins = [axis.index(x) + 1 for axis, x in zip(migration.axes[-2:], (t, p), strict=True)]
    value = spectrum.axes["value"].index(t) + 1
    for names, keep in kept:
        migrations.add({}, names, [c[keep], *(b[keep] for b in bins)], w[keep])
        values.add({"source": "truth"}, names, [c[keep], value[keep]], w[keep])
    if not metrics:
        return
    origin = reference(histograms[f"moments/{name}"].axes["truth"].edges)
    residual = observable.residual(p, t)
    u, v = (response_coordinate(x, relative=observable.relative, reference=origin) for x in (t, p))
    sums_of_events = np.stack([content for _, content in event_moments(residual, u, v, w)], axis=-1)
    contents = [sums_of_events if keep.all() else sums_of_events[keep] for _, keep in kept]
    residual_bin = histograms[f"residual/{name}"].axes["residual"].index(residual) + 1
    for suffix, binned_in in (("", name), ("_m_tt", "m_tt")):
        if f"moments{suffix}/{name}" not in histograms:
            continue
        moments, residuals = histograms[f"moments{suffix}/{name}"], histograms[f"residual{suffix}/{name}"]
        sums, tails = Filler(moments, *category), Filler(residuals, *category)
        coarse = moments.axes["truth"].index(np.where(known, true[binned_in], 0.0)) + 1
        sums.add_moments({}, subsets, _SELECTED, [channel[known], coarse[known]], counted[known])
        coarse, fine = coarse[both], residuals.axes["truth"].index(true[binned_in][both]) + 1
        for (names, keep), content in zip(kept, contents, strict=True):
            sums.add_moments({}, names, MOMENTS, [c[keep], coarse[keep]], content)
            tails.add({}, names, [c[keep], fine[keep], residual_bin[keep]], w[keep])


def predicted_values(names: Iterable[str], events: DileptonEvents, pair: TopPair) -> dict[str, Array]:
    """Observables of what a method reconstructed, NaN where it has no answer, each of shape (n,)."""
    return _values(names, pair.p4, pair.system, events.lepton_p4, pair.valid)


def true_values(names: Iterable[str], truth: Truth) -> dict[str, Array]:
    """Observables of the generated tops, NaN where there are none, each of shape (n,)."""
    return _values(names, truth.tops, truth.tops.sum(axis=1), truth.lepton, truth.valid)


def true_of_booked(histograms: Mapping[str, hist.Hist], truth: Truth) -> dict[str, Array]:
    """Generated observables that filling these histograms needs, the same for every method."""
    return true_values((*observables_of(histograms), "m_tt"), truth)


def _values(
    names: Iterable[str], tops: Array, system: Array, leptons: Array, valid: Array
) -> dict[str, Array]:
    """Observables of valid events, NaN elsewhere, each of shape (n,)."""
    momenta = [np.asarray(p4[valid], np.float64) for p4 in (tops, system, leptons)]
    found = {}
    # A method's overflowing momenta are events without a value, not a reason to warn.
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        for name in dict.fromkeys(names):
            values = np.full(len(valid), np.nan)
            values[valid] = OBSERVABLES[name].compute(*momenta)
            found[name] = values
    return found


class Filler:
    """Adds weighted events to the cells of one dataset, method and variation of a histogram.

    Sums are formed with `numpy.bincount` on bin numbers computed once for all moments and subsets, far faster
    than one call of `Hist.fill` for each.
    """

    def __init__(self, histogram: hist.Hist, dataset: str, method: str, variation: str) -> None:
        self.axes = {axis.name: axis for axis in histogram.axes[_GROWING:]}
        found = cells(histogram, dataset, method, variation)
        if found is None:
            _grow(histogram, dataset, [method], variation)
            found = cells(histogram, dataset, method, variation)
        self.cells = found

    def _target(self, where: Mapping[str, str]) -> Any:
        """View of the cells in some categories."""
        return self.cells[
            tuple(
                axis.index(where[name]) if name in where else slice(None) for name, axis in self.axes.items()
            )
        ]

    def add(
        self,
        where: Mapping[str, str],
        subsets: Iterable[str] | None,
        index: Sequence[Array],
        weight: Array,
    ) -> None:
        """Add events.

        Parameters
        ----------
        where
            Category of each axis that is the same for all events, but for the subset.
        subsets
            Subsets to which all of them belong; None for a histogram without.
        index
            Position of the events on the channel axis and the binned ones, flow included, each of shape (n,).
        weight
            What to add for each event, shape (n,).
        """
        totals: dict[str, Array] = {}
        for place in [where] if subsets is None else [{"subset": subset, **where} for subset in subsets]:
            target = self._target(place)
            parts = {"": weight} if target.dtype.names is None else {"value": weight, "variance": weight**2}
            if not totals:
                totals = {part: _sums(index, w[:, None], target.shape)[..., 0] for part, w in parts.items()}
            for part, total in totals.items():
                cell = target[part] if part else target
                cell += total

    def add_moments(
        self,
        where: Mapping[str, str],
        subsets: Iterable[str],
        moments: Sequence[str],
        index: Sequence[Array],
        contents: Array,
    ) -> None:
        """Add events to several categories of the axis of moments at once.

        Parameters
        ----------
        where, subsets, index
            As for `add`.
        moments
            Categories, k of them.
        contents
            What to add to each for each event, shape (n, k).
        """
        positions = self.axes["moment"].index(moments)
        along = [name for name in self.axes if name not in ("subset", *where)].index("moment")
        total: Array | None = None
        for subset in subsets:
            target = np.moveaxis(self._target({"subset": subset, **where}), along, -1)
            if total is None:
                total = _sums(index, contents, target.shape[:-1])
            target[..., positions] += total


def _sums(index: Sequence[Array], contents: Array, shape: tuple[int, ...]) -> Array:
    """Sums of contents (n, k) in the cells that events are in, shape (*shape, k)."""
    flat, size, k = np.ravel_multi_index(tuple(index), shape), math.prod(shape), contents.shape[1]
    if k == 1:
        return np.bincount(flat, weights=contents[:, 0], minlength=size).reshape(*shape, 1)
    if k <= len(COUNTS):
        columns = [np.bincount(flat, weights=column, minlength=size) for column in contents.T]
        return np.stack(columns, axis=-1).reshape(*shape, k)
    # A column per event with a one in its cell: the product adds in the order of events, as bincount does.
    n = len(flat)
    belongs = csc_array((np.ones(n), flat, np.arange(n + 1)), shape=(size, n))
    return (belongs @ contents).reshape(*shape, k)


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
    for axis, category in zip(histogram.axes[:_GROWING], (dataset, method, variation), strict=True):
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
    if "events" not in found or not observables_of(found):
        raise ValueError(
            f"no topreco histograms: keys 'events' and 'spectrum/…' expected, found {sorted(map(str, inner))}"
        )
    return found
