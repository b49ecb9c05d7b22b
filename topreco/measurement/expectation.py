"""The spectrum of data by expectation maximisation on the samples of a posterior.

The posterior probability P(j | event i) that an event belongs to bin j of the true value holds the spectrum
π_j of the selected events of the training: P(j | i) ∝ L(i | j) π_j. So P(j | i)/π_j is the likelihood of the
event up to a factor of its own, and the spectrum p_j of the selected data that maximises

    Σ_i w_i ln Σ_j p_j P(j | i)/π_j

is found by putting the average posterior in the place of the prior, again and again [1]_:

    p_j ← Σ_i w_i p_j P(j | i)/π_j / Σ_l p_l P(l | i)/π_l   divided by   Σ_i w_i.

It begins at p = π. Divided by the efficiency of each bin it is the spectrum of generated events. Within a bin
the spectrum keeps the shape of the training. Unlike an inversion of the response matrix this uses what is
known of each event, not one estimated value. Use bins of about a third of the resolution and add them up
with `Spectrum.merged`.

References
----------
.. [1] G. D'Agostini, A multidimensional unfolding method based on Bayes' theorem, Nucl. Instrum. Meth. A 362
   (1995) 487.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from topreco.core.errors import TopRecoError
from topreco.core.statistics import Array, bin_starts, merge_bins
from topreco.measurement.unfolding import ResponseMatrix

TOLERANCE = 0.01
"""Change of χ² per bin below which the iteration stops.

In closure tests (`docs/POSTERIOR.md`) a changed spectrum is reached within its errors from here on, and more
iterations make the errors larger, not the result better.
"""

_REPLICAS_AT_ONCE = 25


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Spectrum of data by `expectation_maximisation`, in J bins of the true value.

    Attributes
    ----------
    selected
        Events among the selected ones by bin of truth, shape (J,); they add up to the data.
    generated
        Events before the selection, `selected` over the efficiency, shape (J,); as `selected` if none was
        given, NaN where it is zero.
    covariance
        Statistical covariance of `generated` from bootstrap replicas of the events, shape (J, J).
    iterations
        How many were made.
    changes
        Change of χ² per bin in each of them, see `expectation_maximisation`.
    unused
        Sum of weights of the events without a probability in any bin, which count nowhere.
    """

    selected: Array
    generated: Array
    covariance: Array
    iterations: int
    changes: tuple[float, ...]
    unused: float

    def merged(self, edges: npt.ArrayLike, coarse: npt.ArrayLike) -> "Spectrum":
        """The spectrum of one observable in coarser bins.

        Fine bins follow a spectrum whose shape differs from the training within the coarse ones, and sums of
        them have small errors though their own are large.

        Parameters
        ----------
        edges, coarse
            Present and coarser edges, which must be among the present ones.
        """
        fine, wanted = np.asarray(edges, float), np.asarray(coarse, float)
        if len(fine) + 1 != len(self.selected) or not np.isin(wanted, fine).all():
            raise TopRecoError(
                f"merged: {len(fine)} edges of {len(self.selected)} bins with flow, and the coarse ones "
                f"among them expected; coarse edges are {', '.join(f'{edge:g}' for edge in wanted)}"
            )
        starts = bin_starts(fine, wanted)
        return replace(
            self,
            selected=merge_bins(self.selected, starts, 0),
            generated=merge_bins(self.generated, starts, 0),
            covariance=merge_bins(merge_bins(self.covariance, starts, 0), starts, 1),
        )

    @property
    def error(self) -> Array:
        """Statistical errors of `generated`, shape (J,)."""
        return np.sqrt(np.diagonal(self.covariance))


def bin_probabilities(
    values: Array | Sequence[Array], weight: Array, edges: Sequence[float] | Array | Sequence[npt.ArrayLike]
) -> Array:
    """Probability of each event to belong to each bin of the truth, by its samples.

    Parameters
    ----------
    values
        Values of an observable for each sample, shape (n, k), from
        `topreco.core.posterior.sample_values`; or a list of those of several observables.
    weight
        Weights of the samples, shape (n, k), from `Posterior.weight` of the training's prior.
    edges
        Edges of the bins, or a list of those of each observable. Below and above are bins too, so that J is
        the product of numbers of bins, two more than given for each observable.

    Returns
    -------
    probability
        Shape (n, J), the last observable's bins next to each other; the sum is 1 in each event, or 0 without
        samples. Samples without a value do not count.
    """
    one = isinstance(values, np.ndarray)
    columns = [values] if one else list(values)
    axes = [np.asarray(axis, float) for axis in ([edges] if one else edges)]
    known = np.isfinite(columns).all(axis=0) & (weight > 0)
    shape = tuple(len(axis) + 1 for axis in axes)
    index = [np.searchsorted(axis, column, side="right") for axis, column in zip(axes, columns, strict=True)]
    n, size = len(weight), math.prod(shape)
    cell = np.ravel_multi_index(index, shape) + size * np.arange(n)[:, None]
    sums = np.bincount(cell[known], weights=weight[known], minlength=n * size).reshape(n, size)
    return sums / np.maximum(sums.sum(axis=1, keepdims=True), np.finfo(float).tiny)


def expectation_maximisation(
    probability: Array,
    training: Array,
    *,
    weight: Array | None = None,
    efficiency: Array | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = 1000,
    iterations: int | None = None,
    replicas: int = 200,
    seed: int = 0,
) -> Spectrum:
    """Spectrum of data in bins of the truth.

    The iteration stops when it changes χ², Σ_j (change of n_j)²/n_j with n_j the events of a bin, by less
    than `tolerance` times the number of bins. Every replica makes as many iterations.

    Parameters
    ----------
    probability
        Of each event in each bin, shape (n, J), see `bin_probabilities`.
    training
        Spectrum of the *selected* events of the training in the same bins, up to a factor, shape (J,). A bin
        without any stays empty.
    weight
        Weights of the events, shape (n,); simulated background counts with negative ones. A bin that becomes
        negative is set to zero.
    efficiency
        Selected over generated events in each bin, shape (J,).
    tolerance
        Where the iteration stops.
    max_iterations
        Largest number of them.
    iterations
        Make exactly so many instead.
    replicas
        Bootstrap replicas, whose events have Poisson weights of mean 1.
    seed
        Seed of the weights.

    Raises
    ------
    TopRecoError
        If shapes do not fit, a number is negative where it must not be, or the iteration does not stop.
    """
    n, bins = probability.shape
    weight = np.ones(n) if weight is None else np.asarray(weight, float)
    training = np.asarray(training, float)
    _check(probability, training, weight, efficiency)
    if replicas < 2:
        raise TopRecoError(f"replicas: {replicas}, at least 2 expected")
    filled = training > 0
    prior = np.where(filled, training, 0.0) / training[filled].sum()
    likelihood = np.where(filled, probability / np.where(filled, prior, 1.0), 0.0)
    used = likelihood.any(axis=1)
    likelihood, unused, weight = likelihood[used], float(weight[~used].sum()), weight[used]
    total = weight.sum()
    if not total > 0:
        raise TopRecoError(f"sum of the weights of the events with samples: {total:g}, must be positive")

    spectrum, changes = prior, []
    for _ in range(max_iterations if iterations is None else iterations):
        updated = _step(spectrum[None], likelihood, weight[None])[0]
        expected = total * np.where(updated > 0, updated, 1.0)
        changes.append(float(((total * (updated - spectrum)) ** 2 / expected).sum() / bins))
        spectrum = updated
        if iterations is None and changes[-1] < tolerance:
            break
    else:
        if iterations is None:
            raise TopRecoError(
                f"expectation maximisation: χ² per bin still changes by {changes[-1]:.2g} after "
                f"{max_iterations} iterations, less than {tolerance:g} expected; use fewer bins, or more of "
                "tolerance or max_iterations"
            )

    rng = np.random.default_rng(seed)
    found = []
    for start in range(0, replicas, _REPLICAS_AT_ONCE):
        number = min(_REPLICAS_AT_ONCE, replicas - start)
        drawn = rng.poisson(1.0, (number, len(weight))) * weight
        replica = np.repeat(prior[None], number, axis=0)
        for _ in changes:
            replica = _step(replica, likelihood, drawn)
        found.append(replica * drawn.sum(axis=1, keepdims=True))
    scale = np.ones(bins) if efficiency is None else _inverse(np.asarray(efficiency, float))
    return Spectrum(
        selected=total * spectrum,
        generated=total * spectrum * scale,
        covariance=np.atleast_2d(np.cov(np.concatenate(found) * scale, rowvar=False)),
        iterations=len(changes),
        changes=tuple(changes),
        unused=unused,
    )


def training_of(response: ResponseMatrix) -> tuple[Array, Array]:
    """Spectrum of selected events and efficiency for `expectation_maximisation`, of a response matrix.

    A run over simulation like that of the training fills it; its truth edges are those of the bins. The data
    must be selected alike. Events that the method does not solve are in neither, as they have no samples.

    Parameters
    ----------
    response
        Of the observable; see `docs/UNFOLDING.md`.

    Returns
    -------
    training, efficiency
        By bin of truth with flow, shape (J,); the efficiency is that of events with samples, NaN without
        generated events.
    """
    solved, generated = response.response.summed(1).value, response.generated.value
    efficiency = np.where(generated > 0, solved / np.where(generated > 0, generated, 1.0), np.nan)
    return solved, efficiency


def training_of_samples(
    probability: Array,
    true: Array,
    *,
    weight: Array | None = None,
    tolerance: float = TOLERANCE / 10,
    max_iterations: int = 1000,
) -> Array:
    """Spectrum that the samples of simulated events hold, for `expectation_maximisation`.

    A perfect network holds the true spectrum π. A trained one differs from it by some percent, most at
    thresholds, and π from simulation fluctuates from bin to bin, while the samples do not follow it. This is
    the spectrum q that leads `expectation_maximisation` with these events to their true spectrum. It begins
    at π, so that the first iteration gives the average posterior:

        q_j ← Σ_i w_i P(j | i) / Σ_l P(l | i) π_l/q_l.

    Use simulated events that the network was not trained with.

    Parameters
    ----------
    probability
        Of each event in each bin, shape (n, J), see `bin_probabilities`.
    true
        Spectrum π of the same events, shape (J,).
    weight
        Weights of the events, shape (n,).
    tolerance
        The iteration stops when it changes χ² per bin by less.
    max_iterations
        Largest number of iterations.

    Returns
    -------
    training
        In units of `true`, shape (J,).

    Raises
    ------
    TopRecoError
        If shapes do not fit, a number is negative where it must not be, or the iteration does not stop.
    """
    weight = np.ones(len(probability)) if weight is None else np.asarray(weight, float)
    true = np.asarray(true, float)
    _check(probability, true, weight, None)
    held, change = np.maximum(true, 0.0), math.inf
    for _ in range(max_iterations):
        evidence = probability @ np.divide(true, held, out=np.zeros_like(held), where=held > 0)
        share = np.divide(weight, evidence, out=np.zeros_like(evidence), where=evidence > 0)
        updated = np.maximum(share @ probability, 0.0)
        updated *= true.sum() / updated.sum()
        change = ((updated - held) ** 2 / np.where(updated > 0, updated, 1.0)).sum() / len(held)
        held = updated
        if change < tolerance:
            return held
    raise TopRecoError(
        f"spectrum of samples: χ² per bin still changes by {change:.2g} after {max_iterations} iterations, "
        f"less than {tolerance:g} expected; use fewer bins, or more of tolerance or max_iterations"
    )


def _step(spectrum: Array, likelihood: Array, weight: Array) -> Array:
    """Average posterior under the priors (r, J), of events with the weights (r, n)."""
    evidence = spectrum @ likelihood.T
    share = np.divide(weight, evidence, out=np.zeros_like(evidence), where=evidence > 0)
    average = np.maximum(spectrum * (share @ likelihood), 0.0)
    # A replica of few events may have drawn none.
    total = average.sum(axis=1, keepdims=True)
    return np.divide(average, total, out=np.zeros_like(average), where=total > 0)


def _inverse(efficiency: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.where(efficiency > 0, 1 / efficiency, np.nan)


def _check(probability: Array, training: Array, weight: Array, efficiency: Array | None) -> None:
    n, bins = probability.shape
    shapes = {"training": (training, (bins,)), "weight": (weight, (n,))}
    if efficiency is not None:
        shapes["efficiency"] = (np.asarray(efficiency), (bins,))
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise TopRecoError(f"{name}: shape {array.shape} found, {shape} expected by the probabilities")
    if not (np.isfinite(probability).all() and (probability >= 0).all()):
        raise TopRecoError("probability: values that are negative or not finite found")
    if not (np.isfinite(weight).all() and np.isfinite(training).all() and (training > 0).any()):
        raise TopRecoError("weight, training: finite numbers expected, and a bin of training with events")
