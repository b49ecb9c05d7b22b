"""Filling of histograms: `DileptonEvents` and `TopPair`, with `Truth` where there is one, to `hist.Hist`."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import hist
import numpy as np

from topreco.config import NOMINAL
from topreco.core.compiled import njit
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, TopPair, Truth
from topreco.core.method import Method
from topreco.core.observables import OBSERVABLES, Observable, compute_observables, pair_values
from topreco.core.statistics import (
    MOMENTS,
    Array,
    check_weights,
    event_moments,
    has_value,
    response_coordinate,
)
from topreco.evaluation.histograms import COUNTS, N_GROWING, SELECTED_COUNTS, cells, observables_of, reference


def fill_methods(
    histograms: Mapping[str, hist.Hist],
    methods: Sequence[Method],
    *,
    dataset: str,
    events: DileptonEvents,
    truth: Truth | None = None,
    variations: Mapping[str, tuple[DileptonEvents, Truth | None]] | None = None,
    weights: Mapping[str, FloatArray] | None = None,
    metrics: bool = False,
) -> dict[str, dict[str, TopPair]]:
    """Reconstruct events by every method and fill histograms, the subset "common" included.

    Parameters
    ----------
    histograms
        Histograms of `topreco.evaluation.histograms.book`, filled in place.
    methods
        Methods, each with a name of its own.
    dataset
        Category to fill.
    events
        Selected events, the nominal ones.
    truth
        Generated tops, None in data.
    variations
        Selected events and truth of systematic variations, by name. A method gets all of them in one call.
    weights
        Other weights of the nominal events, by name of the variation, shape (n,). They are not reconstructed
        again.
    metrics
        Fill moments and residuals of variations too, for `topreco.evaluation.summary.summarise`.

    Returns
    -------
    pairs
        Prediction of each method, by variation ("nominal" first) and method's name.
    """
    names = [NOMINAL, *(variations or {})]
    samples = [(events, truth), *(variations or {}).values()]
    pairs = {method.name: _reconstruct(method, [sample for sample, _ in samples]) for method in methods}
    for i, (variation, (sample, generated)) in enumerate(zip(names, samples, strict=True)):
        common = np.ones(len(sample), dtype=bool)
        for found in pairs.values():
            common &= found[i].valid
        true = None if generated is None else true_of_booked(histograms, generated)
        weighted = {variation: sample}
        if variation == NOMINAL:
            others = weights or {}
            weighted |= {name: dataclasses.replace(sample, weight=w) for name, w in others.items()}
        for category, same_events in weighted.items():
            with_metrics = metrics or category == NOMINAL
            add_categories(
                histograms,
                dataset=dataset,
                methods=list(pairs),
                variation=category,
                truth=generated is not None,
                metrics=with_metrics,
            )
            for method, found in pairs.items():
                fill(
                    histograms,
                    dataset=dataset,
                    method=method,
                    events=same_events,
                    pair=found[i],
                    truth=generated,
                    true=true,
                    common=common,
                    variation=category,
                    metrics=with_metrics,
                )
    return {name: {m: found[i] for m, found in pairs.items()} for i, name in enumerate(names)}


def _reconstruct(method: Method, samples: Sequence[DileptonEvents]) -> list[TopPair]:
    """Predictions of a method for the nominal events, the first sample, and for those of the variations."""
    nominal, *varied = samples
    # A call of its own: whatever a method does with a batch, variations do not change the nominal result.
    pairs = [method(nominal)]
    if varied:
        joined = method(DileptonEvents.concatenate(varied))
        ends = np.cumsum([len(sample) for sample in varied]).tolist()
        pairs += [joined[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return pairs


def add_categories(
    histograms: Mapping[str, hist.Hist],
    *,
    dataset: str,
    methods: Sequence[str],
    variation: str = NOMINAL,
    truth: bool = True,
    metrics: bool = True,
) -> None:
    """Make the categories that `fill` needs, of several methods at once: each time a histogram is copied.

    Parameters
    ----------
    histograms
        Histograms of `book`, changed in place.
    dataset, methods, variation
        Categories.
    truth, metrics
        True if truth, and moments and residuals, will be filled.
    """
    kinds = {"events", "spectrum", "joint"}
    if truth:
        kinds.add("migration")
    if truth and metrics:
        kinds |= {"moments", "residual", "moments_m_tt", "residual_m_tt"}
    for key, histogram in histograms.items():
        if methods and key.partition("/")[0] in kinds:
            _grow(histogram, dataset, methods, variation)


def _grow(histogram: hist.Hist, dataset: str, methods: Sequence[str], variation: str) -> None:
    """Make categories by entries of weight zero."""
    axes = histogram.axes[N_GROWING:]
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
    """Fill the histograms of `book` with the prediction of one method for selected events.

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
        Prediction of the method for them.
    truth
        Generated tops, None in data; events whose tops are unknown enter as data do.
    true
        Result of `true_of_booked` for that truth, if there is one already; computed by default.
    common
        Events that every method solves, shape (n,). They fill the subset "common", whose efficiencies have
        all selected events in the denominator; None leaves that subset empty.
    variation
        Category to fill.
    metrics
        Fill ``moments`` and ``residual`` too, which take most of the memory and of the time.

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
    joint = {key: histogram for key, histogram in histograms.items() if key.startswith("joint/")}
    of_joint = [axis.name for histogram in joint.values() for axis in histogram.axes[N_GROWING + 1 :]]
    predicted = predicted_values((*names, *of_joint), events, pair)
    for histogram in joint.values():
        values_of = [predicted[axis.name] for axis in histogram.axes[N_GROWING + 1 :]]
        fill_values(histogram, (dataset, method, variation), events, values_of)
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
        _fill_truth(
            histograms, category, observable, subsets, channel, counted, pred, true, solved, metrics=metrics
        )


def fill_values(
    histogram: hist.Hist, category: tuple[str, str, str], events: DileptonEvents, values: Sequence[Array]
) -> None:
    """Fill a histogram without subsets with the events that have all values.

    Parameters
    ----------
    histogram
        Growing axes, channel, and an axis for each of `values`; filled in place.
    category
        Dataset, method and variation.
    events
        Events.
    values
        Values of the axes, each of shape (n,), NaN where there is none.
    """
    known = np.isfinite(values).all(axis=0)
    axes = histogram.axes[N_GROWING + 1 :]
    index = [np.asarray(axis.index(value[known])) + 1 for axis, value in zip(axes, values, strict=True)]
    channel = events.channel.astype(np.intp)[known]
    Filler(histogram, *category).add({}, None, [channel, *index], np.asarray(events.weight, float)[known])


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
    *,
    metrics: bool,
) -> None:
    """Fill the histograms that need truth, of one observable."""
    name = observable.name
    known = has_value(true[name], relative=observable.relative)
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
        sums.add_moments({}, subsets, SELECTED_COUNTS, [channel[known], coarse[known]], counted[known])
        coarse, fine = coarse[both], residuals.axes["truth"].index(true[binned_in][both]) + 1
        for (names, keep), content in zip(kept, contents, strict=True):
            sums.add_moments({}, names, MOMENTS, [c[keep], coarse[keep]], content)
            tails.add({}, names, [c[keep], fine[keep], residual_bin[keep]], w[keep])


def predicted_values(names: Iterable[str], events: DileptonEvents, pair: TopPair) -> dict[str, Array]:
    """Observables of the prediction of a method, NaN where there is none, each of shape (n,)."""
    return pair_values(pair, events.lepton_p4, names)


def true_values(names: Iterable[str], truth: Truth) -> dict[str, Array]:
    """Observables of the generated tops, NaN where there are none, each of shape (n,)."""
    return compute_observables(names, truth.tops, truth.tops.sum(axis=1), truth.lepton, truth.valid)


def true_of_booked(histograms: Mapping[str, hist.Hist], truth: Truth) -> dict[str, Array]:
    """Generated observables that `fill` needs for these histograms, the same for every method."""
    return true_values((*observables_of(histograms), "m_tt"), truth)


class Filler:
    """Adds weighted events to the cells of one dataset, method and variation of a histogram.

    Sums are formed with `numpy.bincount` on bin numbers computed once for all moments and subsets, far faster
    than one call of `Hist.fill` for each.
    """

    def __init__(self, histogram: hist.Hist, dataset: str, method: str, variation: str) -> None:
        self.axes = {axis.name: axis for axis in histogram.axes[N_GROWING:]}
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
            Number to add for each event, shape (n,).
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
            Number to add to each of them for each event, shape (n, k).
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
    sums = np.zeros((size, k))
    _add_rows(sums, flat, np.ascontiguousarray(contents, float))
    return sums.reshape(*shape, k)


@njit(nogil=True)
def _add_rows(sums: Array, cells: Array, contents: Array) -> None:  # pragma: no cover - compiled
    """Add each row of contents (n, k) to the row of sums (size, k) of its cell, in the order of events."""
    for i in range(len(cells)):
        row = cells[i]
        for j in range(contents.shape[1]):
            sums[row, j] += contents[i, j]
