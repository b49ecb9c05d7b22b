"""Several methods on the same events: loading them, and filling the histograms of all at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import hist
import numpy as np

from topreco.config import SolverConfig
from topreco.errors import TopRecoError
from topreco.evaluation.histograms import fill
from topreco.events import DileptonEvents, TopPair, Truth
from topreco.reconstructors import Reconstructor, load


def load_methods(
    methods: Sequence[Reconstructor | str | Path],
    *,
    threads: int | None = None,
    solvers: SolverConfig | None = None,
    ship: bool = False,
) -> list[Reconstructor]:
    """Reconstructors with names of their own.

    Parameters
    ----------
    methods
        Reconstructors, model files or names that `topreco.load` knows.
    threads
        Threads per call of the networks that are loaded; None leaves torch's setting.
    solvers
        Settings of the analytic methods that are given by name.
    ship
        Pickle the model files that are loaded with their content.

    Returns
    -------
    reconstructors
        In the order given.

    Raises
    ------
    TopRecoError
        If a method cannot be loaded, or two have the same name.
    """
    loaded = [
        load(m, threads=threads, solvers=solvers, ship=ship) if isinstance(m, str | Path) else m
        for m in methods
    ]
    names = [method.name for method in loaded]
    if len(set(names)) < len(names):
        raise TopRecoError(f"methods: every method needs a name of its own, found {', '.join(names)}")
    return loaded


def fill_methods(
    histograms: Mapping[str, hist.Hist],
    methods: Sequence[Reconstructor],
    *,
    dataset: str,
    events: DileptonEvents,
    truth: Truth | None = None,
) -> dict[str, TopPair]:
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
        Selected events.
    truth
        Generated tops, None in data.

    Returns
    -------
    pairs
        What each method gave, by its name.
    """
    pairs = {method.name: method(events) for method in methods}
    common = np.ones(len(events), dtype=bool)
    for pair in pairs.values():
        common &= pair.valid
    for name, pair in pairs.items():
        fill(
            histograms,
            dataset=dataset,
            method=name,
            events=events,
            pair=pair,
            truth=truth,
            common=common,
        )
    return pairs
