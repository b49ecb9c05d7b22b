"""Posteriors of the validated methods: which methods give samples, and what `calibration` says of them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from topreco.config import ValidationConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, dataset_id, hashed_uniform
from topreco.core.method import Method, as_sampler, gives_samples
from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import Array
from topreco.validation.calibration import (
    COMPONENTS,
    COVERAGE_LEVELS,
    SIGNIFICANCE,
    compare_scores,
    crps_of_quantiles,
    examine_ranks,
    mean_score,
)
from topreco.validation.gather import EventTable, Sampling
from topreco.validation.statistics import M_TT_REGIONS, PT_TOP_REGIONS, ranges
from topreco.validation.two_sample import check_classifiers, two_sample

ENERGY = "energy"
"""Key of the energy score among the scores."""


def choose_sampling(
    methods: Sequence[Method], config: ValidationConfig, events: DileptonEvents, n_events: int
) -> tuple[Sampling | None, list[str]]:
    """Methods whose posterior is examined, and of which part of the events.

    Parameters
    ----------
    methods
        Validated methods.
    config
        Whether to examine posteriors, with how many samples and events.
    events
        Some of the events, to try whether a method has samples.
    n_events
        Number of events in the skims.

    Returns
    -------
    sampling
        None if there is nothing to examine.
    notes
        What is left out, and why, one line each.

    Raises
    ------
    TopRecoError
        If posteriors are asked for, but no method has one or an extra is missing.
    """
    if config.posterior is False:
        return None, []
    names, notes = [], []
    for method in methods:
        if gives_samples(method):
            try:
                as_sampler(method).sample(events[:8], 2)
            except TopRecoError as error:
                notes.append(f"{method.name}: no samples ({error})")
            else:
                names.append(method.name)
    if config.posterior is True and not names:
        raise TopRecoError(
            f"posterior: true, but none of the methods gives samples: {'; '.join(notes) or 'all are points'}"
        )
    if not names:
        return None, notes
    try:
        check_classifiers()
    except TopRecoError as error:
        if config.posterior is True:
            raise
        notes.append(str(error))
    limit = config.posterior_events
    share = 1.0 if limit is None else min(1.0, limit / n_events)
    return Sampling(tuple(names), config.samples, share), notes


def predicted_regions(table: EventTable, method: str) -> Iterator[tuple[str, str, Array]]:
    """Kind, name and events, shape (n,), of parts that are chosen by what a method predicts or by the jets.

    Predictions are those of the call of the method, not means of the samples whose ranks are examined: with
    few samples these are correlated.

    Parameters
    ----------
    table
        Events with predictions.
    method
        Method.
    """
    values = table.predictions[method].values
    for name, kind, edges in (
        ("m_tt", "predicted m(tt̄) [GeV]", M_TT_REGIONS),
        ("pt_top", "predicted pT(t) [GeV]", PT_TOP_REGIONS),
    ):
        yield from ((kind, *region) for region in ranges(values[name], edges))
    for number in (2, 3, 4):
        where = table.events["n_jets"] >= 4 if number == 4 else table.events["n_jets"] == number
        yield "jets", f"{'≥ ' if number == 4 else ''}{number}", where


def assess_posteriors(
    table: EventTable, methods: Sequence[str], sampling: Sampling | None, notes: Sequence[str]
) -> dict[str, Any]:
    """Calibration of every posterior, and scores of every posterior and of every method with quantiles.

    Parameters
    ----------
    table
        Events with truth.
    methods
        Validated methods.
    sampling
        What was sampled.
    notes
        From `choose_sampling`.
    """
    return {
        "n_samples": None if sampling is None else sampling.n_samples,
        "levels": COVERAGE_LEVELS,
        "significance": SIGNIFICANCE,
        "notes": list(notes),
        "methods": {name: _assess(table, name) for name in (() if sampling is None else sampling.methods)},
        "scores": _scores(table, methods),
    }


def _assess(table: EventTable, method: str) -> dict[str, Any]:
    weight = table.events["weight"]
    found = table.predictions[method].posterior
    if found is None or table.context is None:
        raise TopRecoError(f"method {method!r}: was not sampled")
    examined = examine_ranks(found.rank, weight, list(predicted_regions(table, method)))
    tests = [p for of in examined.values() for p in (of.p, of.region_p) if np.isfinite(p)]
    key = (table.events[name] for name in ("dataset", "run", "luminosity_block", "event"))
    try:
        told = two_sample(
            table.context,
            np.stack([table.truth[name] for name in COMPONENTS], axis=1),
            found.sample.astype(float),
            weight,
            hashed_uniform(dataset_id("two-sample test"), *key),
        )
    except TopRecoError:
        told = {}  # a note says so
    return {
        "n": int(np.isfinite(found.number).sum()),
        "effective_number": mean_score(found.number, weight),
        "smallest_p": min(tests, default=None),
        "calibration": examined,
        "two_sample": told,
    }


def _scores(table: EventTable, methods: Sequence[str]) -> dict[str, Any]:
    """Mean scores by quantity, of the sampled events if any were sampled."""
    sampled = np.ones(len(table), bool) if table.context is None else np.isfinite(table.context[:, 0])
    found = {}
    for name in (*OBSERVABLES, *COMPONENTS, ENERGY):
        columns = {}
        for method in methods:
            of = table.predictions[method]
            if of.posterior is not None:
                column = of.posterior.energy if name == ENERGY else of.posterior.crps.get(name)
                if column is not None:
                    columns[f"{method} (samples)"] = np.asarray(column, float)
            if name in of.quantiles:
                column = crps_of_quantiles(table.truth[name], of.quantiles[name])
                columns[f"{method} (quantiles)"] = np.where(sampled, column, np.nan)
        if columns:
            found[name] = compare_scores(columns, table.events["weight"])
    return found
