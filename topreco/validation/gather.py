"""One pass over skims: a compact table of the truth and of each method's prediction for every event."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, TopPair, Truth, dataset_id
from topreco.core.method import Method, Sampler
from topreco.core.progress import Advance, progress_bar
from topreco.core.skim import Skim
from topreco.core.statistics import Array
from topreco.evaluation.fill import predicted_values, true_values
from topreco.validation.calibration import PosteriorScores, own_axes, score_posterior, true_components
from topreco.validation.two_sample import context_of

OBSERVED = ("m_tt", "pt_top", "y_top", "c_hel")
"""Observables that are always validated."""
CLOSURE = ("m_top", "m_antitop", "pt_tt")
"""Further ones, which show whether the kinematics close."""

_SAMPLED_AT_ONCE = 2000

Prepare = Callable[[DileptonEvents, Truth], tuple[DileptonEvents, Truth]]
"""Choose and weight events before they are reconstructed."""
Apply = Callable[[Callable[[Any], Any], Sequence[Any], str], list[Any]]
"""Apply a function to each task: called with function, tasks and a title, it keeps their order."""


class Sampling(NamedTuple):
    """Methods that are asked for samples, how many of each event, and of which share of the events."""

    methods: tuple[str, ...]
    n_samples: int
    share: float


@dataclass(frozen=True)
class Predictions:
    """Predictions of a method.

    Attributes
    ----------
    valid
        True for solved events, shape (n,).
    values
        Each validated observable and each of `CLOSURE`, NaN where not solved, shape (n,).
    quality
        As in `TopPair`, NaN where not solved; None for methods without.
    quantiles
        As in `TopPair`, those of the validated observables that the method has, NaN where not solved,
        shape (n, 5).
    posterior
        What its samples say, NaN in events that were not sampled; None without samples.
    """

    valid: Array
    values: dict[str, Array]
    quality: Array | None
    quantiles: dict[str, Array]
    posterior: PosteriorScores | None = None


@dataclass(frozen=True)
class EventTable:
    """Numbers of each event, columns of shape (n,).

    Attributes
    ----------
    events
        ``channel``, ``n_jets``, ``n_btags``, ``weight``, the key of the event, and ``via_tau`` with truth.
    truth
        Each validated observable and each of `CLOSURE`, NaN without generated tops; empty without truth.
        With samples also the components of the momenta, see `topreco.validation.calibration.COMPONENTS`.
    predictions
        By name of the method.
    seconds
        Time that each method took, added up over processes; also under "samples of" and its name.
    context
        What classifiers see of the sampled events, NaN in the others, shape (n, c); None without samples.
    """

    events: dict[str, Array]
    truth: dict[str, Array]
    predictions: dict[str, Predictions]
    seconds: dict[str, float]
    context: Array | None = None

    def __len__(self) -> int:
        return len(self.events["weight"])


def _counted(result: Any, advance: Advance) -> Any:
    """The result, counted as one more step."""
    advance()
    return result


@contextmanager
def open_pool(workers: int, *, progress: bool = True) -> Iterator[Apply]:
    """Run tasks in processes of their own, or in this one if there is one worker.

    Parameters
    ----------
    workers
        Number of processes. Results do not depend on it.
    progress
        Show progress bars.

    Yields
    ------
    apply
        Applies a function to each task, in parallel; the results keep the order of the tasks.

    Raises
    ------
    TopRecoError
        If the number is not positive, or a process dies.
    """
    if workers < 1:
        raise TopRecoError(f"workers: at least 1 expected, found {workers}")

    def here(function: Callable[[Any], Any], tasks: Sequence[Any], title: str) -> list[Any]:
        with progress_bar(title, len(tasks), show=progress) as advance:
            return [_counted(function(task), advance) for task in tasks]

    if workers == 1:
        yield here
        return
    # Forked threads of torch and numba may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:

        def there(function: Callable[[Any], Any], tasks: Sequence[Any], title: str) -> list[Any]:
            with progress_bar(title, len(tasks), show=progress) as advance:
                futures = [executor.submit(function, task) for task in tasks]
                try:
                    return [_counted(future.result(), advance) for future in futures]
                except BrokenProcessPool as error:
                    raise TopRecoError(
                        f"a worker process died ({title}), perhaps for lack of memory: use fewer --workers"
                    ) from error
                finally:
                    for future in futures:
                        future.cancel()

        yield there


def open_skims(paths: Sequence[str | Path], *, truth: bool) -> list[Skim]:
    """Skims to read together, checked before the first event is reconstructed.

    Parameters
    ----------
    paths
        Files of `topreco skim`.
    truth
        Require generated tops.

    Raises
    ------
    TopRecoError
        If there is none, one cannot be read, is given twice or has no events, or truth is missing.
    """
    if not paths:
        raise TopRecoError("no skims; Parquet files written by `topreco skim` expected")
    seen: set[Path] = set()
    skims = []
    for path in paths:
        skim = Skim(path)
        if skim.path.resolve() in seen:
            raise TopRecoError(f"{path}: given twice, its events would count twice")
        seen.add(skim.path.resolve())
        if len(skim) == 0:
            raise TopRecoError(f"{path}: no events in this skim")
        if truth and not skim.has_truth:
            raise TopRecoError(f"{path}: no truth in this skim, which a validation needs")
        skims.append(skim)
    return skims


def gather(
    apply: Apply,
    skims: Sequence[Skim],
    methods: Sequence[Method],
    *,
    title: str,
    observables: Sequence[str] = OBSERVED,
    prepare: Prepare | None = None,
    sampling: Sampling | None = None,
) -> EventTable:
    """Reconstruct all events by all methods.

    Parameters
    ----------
    apply
        From `open_pool`.
    skims
        Files with the events.
    methods
        Methods, each with a name of its own.
    title
        Title of the progress bar.
    observables
        Validated observables.
    prepare
        Choice and weights of the events, which need truth then; None takes them as they are.
    sampling
        Posteriors to examine; None examines none.
    """
    tasks = [(skim, group) for skim in skims for group in range(skim.n_row_groups)]
    # The longest first, or one process would work on it at the end while the others wait.
    order = sorted(range(len(tasks)), key=lambda i: -len(tasks[i][0]) / tasks[i][0].n_row_groups)
    blocks = [(skim.path, group) for skim, group in tasks]
    found = apply(
        partial(_read_block, tuple(methods), tuple(observables), prepare, sampling),
        [blocks[i] for i in order],
        title,
    )
    return concatenate([table for _, table in sorted(zip(order, found, strict=True), key=lambda x: x[0])])


def _read_block(
    methods: Sequence[Method],
    observables: Sequence[str],
    prepare: Prepare | None,
    sampling: Sampling | None,
    block: tuple[Path, int],
) -> EventTable:
    path, group = block
    events, truth = Skim(path).read_row_group(group)
    if prepare is not None and truth is not None:
        events, truth = prepare(events, truth)
    return tabulate(events, truth, methods, observables, sampling)


def tabulate(
    events: DileptonEvents,
    truth: Truth | None,
    methods: Sequence[Method],
    observables: Sequence[str] = OBSERVED,
    sampling: Sampling | None = None,
) -> EventTable:
    """Table of some events.

    Parameters
    ----------
    events
        Selected events.
    truth
        Generated tops, None in data.
    methods
        Methods, each with a name of its own.
    observables
        Validated observables.
    sampling
        Posteriors to examine, which needs truth; None examines none.
    """
    names = (*OBSERVED, *observables, *CLOSURE)
    columns: dict[str, Array] = {
        "channel": events.channel,
        "n_jets": events.n_jets,
        "n_btags": np.sum(events.jet_tagged & events.jet_mask, axis=1),
        "weight": np.asarray(events.weight, float),
        "dataset": events.dataset,
        "run": events.run,
        "luminosity_block": events.luminosity_block,
        "event": events.event,
    }
    true: dict[str, Array] = {}
    if truth is not None:
        columns["via_tau"] = np.asarray(truth.via_tau.any(axis=1))
        true = true_values(names, truth)
    context, chosen, axes = None, np.zeros(len(events), bool), np.zeros((0, 2, 2))
    if truth is not None and sampling is not None:
        axes = own_axes(events)
        true |= true_components(truth.tops, axes)
        chosen = events.uniform(dataset_id("posterior")) < sampling.share
        context = np.where(chosen[:, None], context_of(events, axes), np.nan).astype(np.float32)
    predictions, seconds = {}, {}
    for method in methods:
        # Reading a model and compiling a solver are not part of what an event costs.
        method(events[:1])
        start = time.perf_counter()
        pair = method(events)
        seconds[method.name] = time.perf_counter() - start
        found = _predictions(events, pair, names)
        if context is not None and sampling is not None and method.name in sampling.methods:
            start = time.perf_counter()
            scores = _sampled(
                method, events[chosen], {n: v[chosen] for n, v in true.items()}, names, sampling
            )
            seconds[f"samples of {method.name}"] = time.perf_counter() - start
            found = replace(found, posterior=scores.spread(chosen))
        predictions[method.name] = found
    return EventTable(columns, true, predictions, seconds, context)


def _sampled(
    method: Method, events: DileptonEvents, true: dict[str, Array], names: Sequence[str], sampling: Sampling
) -> PosteriorScores:
    if not isinstance(method, Sampler):
        raise TopRecoError(f"method {method.name!r}: gives no samples")
    # All samples of all events of a row group would take gigabytes.
    parts = [slice(i, i + _SAMPLED_AT_ONCE) for i in range(0, max(len(events), 1), _SAMPLED_AT_ONCE)]
    return PosteriorScores.concatenate(
        [
            score_posterior(
                method.sample(events[part], sampling.n_samples),
                events[part],
                {name: values[part] for name, values in true.items()},
                names,
            )
            for part in parts
        ]
    )


def _predictions(events: DileptonEvents, pair: TopPair, names: Sequence[str]) -> Predictions:
    def blank(values: Array) -> Array:
        return np.where(pair.valid.reshape(-1, *[1] * (np.ndim(values) - 1)), values, np.nan)

    return Predictions(
        np.asarray(pair.valid, bool),
        predicted_values(names, events, pair),
        None if pair.quality is None else blank(pair.quality),
        {name: blank(values) for name, values in (pair.quantiles or {}).items() if name in names},
    )


def concatenate(tables: Sequence[EventTable]) -> EventTable:
    """One table of the events of several, in their order.

    Parameters
    ----------
    tables
        At least one, all of the same methods.
    """
    first = tables[0]

    def joined(columns: Sequence[dict[str, Array]]) -> dict[str, Array]:
        return {name: np.concatenate([c[name] for c in columns]) for name in columns[0]}

    predictions = {}
    for name in first.predictions:
        parts = [table.predictions[name] for table in tables]
        qualities = [part.quality for part in parts if part.quality is not None]
        posteriors = [part.posterior for part in parts if part.posterior is not None]
        predictions[name] = Predictions(
            np.concatenate([part.valid for part in parts]),
            joined([part.values for part in parts]),
            np.concatenate(qualities) if len(qualities) == len(parts) else None,
            joined([part.quantiles for part in parts]),
            PosteriorScores.concatenate(posteriors) if len(posteriors) == len(parts) else None,
        )
    return EventTable(
        joined([table.events for table in tables]),
        joined([table.truth for table in tables]),
        predictions,
        {name: sum(table.seconds[name] for table in tables) for name in first.seconds},
        None if first.context is None else np.concatenate([table.context for table in tables]),
    )
