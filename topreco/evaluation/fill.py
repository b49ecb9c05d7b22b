"""Fill the histograms of several methods from the same events."""

import dataclasses
from collections.abc import Mapping, Sequence

import hist
import numpy as np

from topreco.config import NOMINAL
from topreco.core.events import DileptonEvents, FloatArray, TopPair, Truth
from topreco.core.method import Method
from topreco.evaluation.histograms import add_categories, fill, true_of_booked


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
        Reconstructors, each with a name of its own.
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
        What each method gave, by variation ("nominal" first) and method's name.
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
    """What a method makes of the nominal events, the first sample, and of the variations."""
    nominal, *varied = samples
    # A call of its own: whatever a method does with a batch, variations do not change what is nominal.
    pairs = [method(nominal)]
    if varied:
        joined = method(DileptonEvents.concatenate(varied))
        ends = np.cumsum([len(sample) for sample in varied]).tolist()
        pairs += [joined[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return pairs
