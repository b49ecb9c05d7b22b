"""Two-sample test by classifiers [1]_ that try to tell truth from samples (extra `calibration`).

Each event gives two rows, the measured objects with its true tops, and with one sample. A classifier learns
to tell them apart on one half of the events; on the other its accuracy is 1/2 if the posterior is right,
whatever the classifier. Unlike ranks of one quantity it sees all six momentum components and their relation
to the event; unlike ranks it cannot say what is wrong.

References
----------
.. [1] D. Lopez-Paz, M. Oquab, Revisiting classifier two-sample tests, arXiv:1610.06545.
"""

import math
import warnings
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from topreco.core.errors import TopRecoError, needs_extra
from topreco.core.events import DileptonEvents
from topreco.core.statistics import Array
from topreco.validation.calibration import on_axes

N_JETS = 4
"""Jets of the context, in falling pT; beyond the last they are zero."""
CONTEXT = (
    *("px_plus", "pz_plus", "px_minus", "py_minus", "pz_minus", "px_met", "py_met"),
    *(f"{of}_jet{i + 1}" for i in range(N_JETS) for of in ("px", "py", "pz", "btag")),
    "n_jets",
)
"""What a classifier sees of an event: momenta on the event's own axes, b-tag scores, number of jets."""
MAX_EVENTS = 50_000
"""More events than these are not used."""
_MIN_EVENTS = 100
_SCALE = 50.0
"""Momentum in GeV from which on momenta are compressed logarithmically."""


class TwoSample(NamedTuple):
    """Result of one classifier.

    Attributes
    ----------
    n_train, n_test
        Events of which it has learnt, and of which the accuracy is.
    accuracy, accuracy_error
        Share of the rows of the second half that it gets right, each event with its weight, and standard
        error: that of the mean over events, whose two rows are not independent.
    p
        Probability of such an accuracy, or a larger one, if truth and samples have one distribution.
    """

    n_train: int
    n_test: int
    accuracy: float
    accuracy_error: float
    p: float


def context_of(events: DileptonEvents, axes: Array) -> Array:
    """`CONTEXT` of events.

    Parameters
    ----------
    events
        Selected events.
    axes
        Axes of the events, as of `topreco.validation.calibration.own_axes`.

    Returns
    -------
    context
        Momenta as asinh(p / 50 GeV), shape (n, len(CONTEXT)).
    """
    n = len(events)
    jets, btag = np.zeros((n, N_JETS, 3)), np.zeros((n, N_JETS))
    kept = min(N_JETS, events.jet_mask.shape[1])
    there = events.jet_mask[:, :kept]
    jets[:, :kept] = np.where(there[..., None], events.jets[:, :kept, 1:], 0.0)
    btag[:, :kept] = np.where(there, events.jet_btag[:, :kept], 0.0)
    momenta = (
        # The transverse momentum of ℓ⁺ is along x.
        on_axes(events.lepton_plus[:, 1:], axes)[:, ::2],
        on_axes(events.lepton_minus[:, 1:], axes),
        on_axes(events.met, axes),
    )
    of_jets = np.concatenate([_compressed(on_axes(jets, axes)), btag[..., None]], axis=2)
    return np.concatenate(
        [*map(_compressed, momenta), of_jets.reshape(n, -1), events.n_jets[:, None]], axis=1, dtype=float
    )


def _compressed(momenta: Array) -> Array:
    return np.arcsinh(momenta / _SCALE)


def check_classifiers() -> None:
    """Make sure that scikit-learn can be imported.

    Raises
    ------
    TopRecoError
        If it cannot.
    """
    _classifiers(0, 1)


def _classifiers(seed: int, n_rows: int) -> dict[str, Any]:
    """Classifiers by name."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise TopRecoError(f"two-sample test: {needs_extra('calibration', error)}") from error
    return {
        "MLP": make_pipeline(
            StandardScaler(),
            MLPClassifier(
                (64, 64),
                alpha=1.0,
                batch_size=min(500, n_rows),
                learning_rate_init=2e-3,
                max_iter=30,
                random_state=seed,
            ),
        ),
        "boosted trees": HistGradientBoostingClassifier(
            learning_rate=0.05, max_iter=300, early_stopping=True, random_state=seed
        ),
    }


def two_sample(
    context: Array, truth: Array, sample: Array, weight: Array, order: Array, *, seed: int = 0
) -> dict[str, TwoSample]:
    """Accuracy of classifiers that tell truth from samples.

    With the absolute values of signed weights the classifiers learn, the accuracy is with the weights as they
    are: it is 1/2 for a posterior that is right, though not the largest possible for one that is not.

    Parameters
    ----------
    context
        What was measured of each event, shape (n, c).
    truth, sample
        Momentum components in GeV of the truth and of one sample, shape (n, d); events in which something is
        not finite do not count.
    weight
        Signed event weights, shape (n,).
    order
        Number in [0, 1) of each event, a hash of its key, shape (n,). It chooses events if there are more
        than `MAX_EVENTS`, and their halves.
    seed
        Seed of the classifiers.

    Returns
    -------
    results
        By name of the classifier; empty with too few events.

    Raises
    ------
    TopRecoError
        If scikit-learn is missing.
    """
    check_classifiers()
    known = np.isfinite(truth).all(axis=1) & np.isfinite(sample).all(axis=1) & (weight != 0)
    chosen = np.flatnonzero(known)
    chosen = chosen[np.argsort(order[chosen], kind="stable")][:MAX_EVENTS]
    if len(chosen) < _MIN_EVENTS:
        return {}
    # Neighbours in the order go to different halves.
    train, test = chosen[::2], chosen[1::2]
    rows = np.concatenate(
        [np.concatenate([_compressed(of), context], axis=1)[None] for of in (truth, sample)]
    )
    shown, labels = _stacked(rows[:, train]), np.repeat([1, 0], len(train))
    results = {}
    # Weights of any scale are the same to a loss, but not to its regularisation.
    scaled = np.tile(np.abs(weight[train]) / np.abs(weight[train]).mean(), 2)
    for name, classifier in _classifiers(seed, len(shown)).items():
        argument = "mlpclassifier__sample_weight" if name == "MLP" else "sample_weight"
        # Threads that wait for each other cost far more than they save on a busy machine.
        with _one_thread(), warnings.catch_warnings():
            # The number of iterations is meant to be small.
            warnings.filterwarnings("ignore", message="Stochastic Optimizer")
            classifier.fit(shown, labels, **{argument: scaled})
            said = classifier.predict(_stacked(rows[:, test])).reshape(2, -1)
        right = ((said[0] == 1).astype(float) + (said[1] == 0)) / 2
        results[name] = TwoSample(len(train), len(test), *_accuracy(right, weight[test]))
    return results


def _one_thread() -> AbstractContextManager[Any]:
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def _stacked(rows: Array) -> Array:
    """Rows of all events with their truth, then with their samples."""
    return rows.reshape(-1, rows.shape[-1])


def _accuracy(right: Array, weight: Array) -> tuple[float, float, float]:
    """Weighted mean of the shares of right answers, its error, and the probability of at least as much."""
    total = float(weight.sum())
    if not total > 0:
        return math.nan, math.nan, math.nan
    accuracy = float((weight * right).sum()) / total
    # As under the hypothesis: the mean of the shares is then 1/2.
    error = math.sqrt(float((weight**2 * (right - 0.5) ** 2).sum())) / total
    p = 0.5 * math.erfc((accuracy - 0.5) / error / math.sqrt(2)) if error > 0 else math.nan
    return accuracy, error, p
