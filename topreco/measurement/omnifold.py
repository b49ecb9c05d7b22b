"""Unfolding without bins: OmniFold [1]_ with efficiency, fakes and background.

Simulated events have measured columns x where they are selected, and generated columns z where they belong to
the phase space. Weights ν(z) of generated events are found by repeating

1. at detector level the ratio r(x) of data to everything that is expected there: selected simulation with
   the weights ν of before, fakes with a weight φ of their own, and simulated background, which stays as it
   is. Each selected event then has the weight ν r, and each fake φ ← φ r;
2. at generated level the mean ν(z) ← ⟨ν r⟩ over selected events at given z, which is the ratio of the
   densities of generated events with and without these weights. It is evaluated for events that are not
   selected too: they get what their generated neighbours get, not 1.

In bins this is D'Agostini's iteration [2]_, of which every fixed point explains the data; the background is
in the denominator of step 1 instead of being subtracted, so that no weight is negative. All ratios are
learnt by `topreco.measurement.classifier`, or in step 1 by whatever `unfold` is given, and cross-fitted: no
event is weighted by a network that saw it.

References
----------
.. [1] A. Andreassen, P. T. Komiske, E. M. Metodiev, B. Nachman, J. Thaler, OmniFold: a method to
   simultaneously unfold all observables, Phys. Rev. Lett. 124 (2020) 182001, arXiv:1911.09107; with
   efficiency and fakes: the same, arXiv:2105.04448.
.. [2] G. D'Agostini, A multidimensional unfolding method based on Bayes' theorem, Nucl. Instrum. Meth. A 362
   (1995) 487.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, FloatArray, IntArray
from topreco.core.ratios import triangular_discriminator
from topreco.measurement.classifier import (
    Classifier,
    ClassifierSettings,
    cross_fitted,
    fit_log_ratio,
    fit_mean,
)

N_BINS = 20
"""Bins of equal population, of each column, in which iterations are compared."""

_SMALLEST_SHARE = 0.01
"""Share of the data with which the signal begins where the background alone explains more."""

MIN_EVENTS = 20
"""Smallest number of data events, and of selected events of the phase space."""


class FitRatio(Protocol):
    """Something that learns ratios at detector level, in place of networks that see measured columns."""

    def __call__(
        self, rows: IntArray, a: FloatArray, b: FloatArray, seed: Sequence[int]
    ) -> Callable[[IntArray], FloatArray]:
        """Learn a ratio.

        Parameters
        ----------
        rows
            Events: data, background and selected simulation are numbered in this order, shape (n,).
        a, b
            Their weights ≥ 0 in the numerator and in the denominator, shape (n,).
        seed
            Numbers that seed the networks.

        Returns
        -------
        log_ratio
            Function that gives log ⟨a⟩/⟨b⟩ of events by their numbers.
        """


@dataclass(frozen=True, eq=False)
class Measured:
    """Events with measured columns only: data, or simulated background.

    Attributes
    ----------
    x
        Measured columns, shape (m, d).
    weight
        Weights, in units of data events, shape (m,).
    """

    x: FloatArray
    weight: FloatArray


@dataclass(frozen=True, eq=False)
class Simulated:
    """Simulated events: selected, generated, or both.

    Attributes
    ----------
    x
        Measured columns, shape (n, d); without meaning where not selected.
    z
        Generated columns, shape (n, g); without meaning where not in the phase space.
    selected, generated
        Whether an event is selected, and whether it is in the phase space, shape (n,). One that is selected
        alone is a fake.
    weight
        Weights at detector level, with all scale factors, shape (n,); of selected events.
    generator_weight
        Weights before the detector, shape (n,).
    fold
        Fold of each event, shape (n,).
    """

    x: FloatArray
    z: FloatArray
    selected: BoolArray
    generated: BoolArray
    weight: FloatArray
    generator_weight: FloatArray
    fold: IntArray

    def __len__(self) -> int:
        return len(self.selected)


class Iteration(NamedTuple):
    """What an iteration changed, and how well the result describes the data.

    Attributes
    ----------
    change
        χ² per bin between this and the last iteration of the spectra of selected events of the phase space,
        with the variance of as many data events; the largest of those of the generated columns.
    detector_distance
        Triangular discriminator × 10³ of data and expectation, the largest of the measured columns.
    detector_chi2
        Their χ² per bin, of the same column.
    truth_distance, truth_chi2
        The same of generated columns of selected events and the truth of pseudo-data; None without.
    """

    change: float
    detector_distance: float
    detector_chi2: float
    truth_distance: float | None
    truth_chi2: float | None


class Unfolded(NamedTuple):
    """Result of `unfold`.

    Attributes
    ----------
    ratio
        ν(z) of each simulated event of the phase space, that of fakes φ, shape (n,). Multiplied by the
        weights of the simulation it gives the spectra of generated events in data.
    iterations
        What each of them did.
    stopped
        Why there was no further one: ``tolerance``, or ``iterations``.
    """

    ratio: FloatArray
    iterations: tuple[Iteration, ...]
    stopped: str


def unfold(
    data: Measured,
    simulated: Simulated,
    background: Measured | None = None,
    *,
    folds: int = 5,
    iterations: int | None = None,
    max_iterations: int = 8,
    tolerance: float = 0.1,
    settings: ClassifierSettings | None = None,
    seed: Sequence[int] = (1,),
    truth: tuple[FloatArray, FloatArray] | None = None,
    fit_ratio: FitRatio | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Unfolded:
    """Weights of generated events with which the simulation describes data.

    It stops after the iteration that changes no spectrum by more than `tolerance` per bin, see
    `Iteration.change`, and at the latest after `max_iterations`. Few iterations keep a part of the simulated
    spectrum, many follow the fluctuations of data.

    Parameters
    ----------
    data, simulated, background
        Events. Weights of simulation may be negative: the ratios then learn from the mean weight of the
        neighbours of an event.
    folds
        Number k of folds, at least 3. Deviations d of folds that add up to zero become −k/(k − 1)² d in an
        iteration: step 1 corrects each by those of the others, and step 2 takes the mean of the others.
    iterations
        Make exactly so many.
    max_iterations, tolerance
        When to stop.
    settings
        Of the networks.
    seed
        Numbers that seed the networks.
    truth
        Generated columns, shape (k, g), and weights, shape (k,), of the selected events of pseudo-data.
    fit_ratio
        Learns the ratios of step 1; None takes the same networks as step 2, which see the measured columns.
    advance
        Called after each iteration.

    Raises
    ------
    TopRecoError
        If there are too few events, or weights cannot be used.
    """
    settings = settings or ClassifierSettings()
    _check(data, simulated, background)
    inside, chosen = simulated.selected & simulated.generated, simulated.selected
    weight = _local_weights(simulated, folds, settings, seed)
    others = [data] if background is None else [data, background]
    # Signed weights of background or data are replaced by means as well.
    data_weight, *more = (_positive(each, settings, (*seed, 90 + i)) for i, each in enumerate(others))
    if fit_ratio is None:
        table = np.concatenate([*(each.x for each in others), simulated.x[chosen]])
        fit_ratio = _FromColumns(table, settings)
    a_fixed = np.r_[data_weight, *(np.zeros(len(each)) for each in more)]
    b_fixed = np.r_[np.zeros(len(data_weight)), *more]

    # Whatever the units of the simulated weights, with the background it explains the number of data events.
    observed_sum = float(data.weight.sum())
    missing = observed_sum - (0.0 if background is None else float(background.weight.sum()))
    start = max(missing, _SMALLEST_SHARE * observed_sum) / float(simulated.weight[chosen].sum())
    ratio = np.full(len(simulated), start)
    observed = _Bins.of(data.x, data.weight)
    of_truth = None if truth is None else _Bins.of(*truth)
    of_z = _Bins.of(simulated.z[inside], simulated.weight[inside])
    found: list[Iteration] = []
    spectrum = of_z.spectra(simulated.z[inside], start * simulated.weight[inside])
    stopped = "iterations"
    for number in range(max_iterations if iterations is None else iterations):
        pulled = _pull(
            fit_ratio,
            weight[chosen] * ratio[chosen],
            simulated.fold[chosen],
            (a_fixed, b_fixed),
            folds,
            (*seed, 2 * number),
        )
        step1 = np.zeros(len(simulated))
        step1[chosen] = ratio[chosen] * pulled
        ratio[chosen & ~simulated.generated] = step1[chosen & ~simulated.generated]
        ratio[simulated.generated] = _push(
            simulated, weight * inside, step1, folds, settings, (*seed, 2 * number + 1)
        )
        updated = of_z.spectra(simulated.z[inside], (simulated.weight * ratio)[inside])
        change = max(
            float(((new - old) ** 2 / np.maximum(new, 1.0)).mean())
            for new, old in zip(updated, spectrum, strict=True)
        )
        spectrum = updated
        expected = [Measured(simulated.x[chosen], (simulated.weight * ratio)[chosen]), *others[1:]]
        distance, chi2 = observed.compare(
            data.x,
            data.weight,
            np.concatenate([e.x for e in expected]),
            np.concatenate([e.weight for e in expected]),
        )
        truth_distance, truth_chi2 = (
            (None, None)
            if of_truth is None or truth is None
            else of_truth.compare(*truth, simulated.z[inside], (simulated.weight * ratio)[inside])
        )
        found.append(Iteration(change, distance, chi2, truth_distance, truth_chi2))
        advance()
        if iterations is None and change < tolerance:
            stopped = "tolerance"
            break
    return Unfolded(ratio, tuple(found), stopped)


class _FromColumns(NamedTuple):
    """Small networks that see measured columns of all events, shape (n, d)."""

    table: FloatArray
    settings: ClassifierSettings

    def __call__(
        self, rows: IntArray, a: FloatArray, b: FloatArray, seed: Sequence[int]
    ) -> Callable[[IntArray], FloatArray]:
        network = fit_log_ratio(self.table[rows], a, b, self.settings, seed)
        return lambda wanted: network(self.table[wanted])


def _pull(
    fit_ratio: FitRatio,
    weight: FloatArray,
    fold: IntArray,
    fixed: tuple[FloatArray, FloatArray],
    folds: int,
    seed: Sequence[int],
) -> FloatArray:
    """Step 1: the ratio of data to expectation for selected simulated events, shape (n,)."""
    a_fixed, b_fixed = fixed
    total = weight.sum()
    first = np.arange(len(a_fixed))
    simulated = len(first) + np.arange(len(weight))

    def fit_on(used: BoolArray, number: int) -> Callable[[IntArray], FloatArray]:
        # The others stand for all of the simulation.
        own = weight[used] * (total / weight[used].sum())
        a, b = np.r_[a_fixed, np.zeros(len(own))], np.r_[b_fixed, own]
        return fit_ratio(np.r_[first, simulated[used]], a, b, (*seed, number))

    return cross_fitted(fit_on, simulated, fold, folds, np.exp)


def _push(
    simulated: Simulated,
    weight: FloatArray,
    step1: FloatArray,
    folds: int,
    settings: ClassifierSettings,
    seed: Sequence[int],
) -> FloatArray:
    """Step 2: mean of the weights of step 1 at given z, for all events of the phase space, shape (n_gen,)."""

    def fit_on(used: BoolArray, number: int) -> Classifier:
        rows = np.flatnonzero(simulated.generated)[used]
        rows = rows[weight[rows] > 0]
        return fit_log_ratio(
            simulated.z[rows], weight[rows] * step1[rows], weight[rows], settings, (*seed, number)
        )

    chosen = simulated.generated
    return cross_fitted(fit_on, simulated.z[chosen], simulated.fold[chosen], folds, np.exp)


def _local_weights(
    simulated: Simulated, folds: int, settings: ClassifierSettings, seed: Sequence[int]
) -> FloatArray:
    """Weights at detector level that are not negative, shape (n,): their means at given x and z."""
    chosen = simulated.selected
    if not (simulated.weight[chosen] < 0).any():
        return np.where(chosen, simulated.weight, 0.0)
    found = np.zeros(len(simulated))
    for i, part in enumerate((chosen & simulated.generated, chosen & ~simulated.generated)):
        columns = simulated.x[part]
        if i == 0:
            columns = np.concatenate([columns, simulated.z[part]], axis=1)
        own = simulated.weight[part]

        def fit_on(
            used: BoolArray, number: int, columns: FloatArray = columns, own: FloatArray = own, i: int = i
        ) -> Classifier:
            return fit_mean(columns[used], own[used], settings, (*seed, 80 + i, number))

        if part.any():
            found[part] = np.maximum(cross_fitted(fit_on, columns, simulated.fold[part], folds), 0.0)
    return found


def _positive(events: Measured, settings: ClassifierSettings, seed: Sequence[int]) -> FloatArray:
    """Weights of measured events, their means at given x if some are negative."""
    if not (events.weight < 0).any():
        return events.weight
    return np.maximum(fit_mean(events.x, events.weight, settings, seed)(events.x), 0.0)


class _Bins(NamedTuple):
    """Inner edges of bins of equal population of each column."""

    edges: list[FloatArray]

    @classmethod
    def of(cls, columns: FloatArray, weight: FloatArray) -> "_Bins":
        levels = np.linspace(0, 1, N_BINS + 1)[1:-1]
        used = columns[weight != 0]
        return cls([np.unique(np.quantile(column, levels)) for column in used.T])

    def spectra(self, columns: FloatArray, weight: FloatArray) -> list[FloatArray]:
        return [
            np.bincount(
                np.searchsorted(edges, column, side="right"), weights=weight, minlength=len(edges) + 1
            ).astype(float)
            for edges, column in zip(self.edges, columns.T, strict=True)
        ]

    def compare(
        self, first: FloatArray, first_weight: FloatArray, second: FloatArray, second_weight: FloatArray
    ) -> tuple[float, float]:
        """Largest triangular discriminator × 10³ of the columns, and χ² per bin of that column."""
        parts = zip(
            self.spectra(first, first_weight),
            self.spectra(second, second_weight),
            self.spectra(first, first_weight**2),
            self.spectra(second, second_weight**2),
            strict=True,
        )
        found = []
        for one, other, variance, other_variance in parts:
            total = np.maximum(variance + other_variance, 1e-300)
            found.append((triangular_discriminator(one, other), float(((one - other) ** 2 / total).mean())))
        return max(found)


def _check(data: Measured, simulated: Simulated, background: Measured | None) -> None:
    inside = simulated.selected & simulated.generated
    for name, number in (("data", len(data.weight)), ("simulation", int(inside.sum()))):
        if number < MIN_EVENTS:
            raise TopRecoError(
                f"omnifold: {number} selected events of {name} with tops, at least {MIN_EVENTS} expected"
            )
    parts = {"data": data.weight, "simulation": simulated.weight[inside]}
    if background is not None:
        parts["background"] = background.weight
    for name, weight in parts.items():
        if not np.isfinite(weight).all():
            raise TopRecoError(f"omnifold: weights of {name} that are not finite found")
        if not weight.sum() > 0:
            raise TopRecoError(
                f"omnifold: sum of the weights of {name} {weight.sum():g} found, a positive one expected"
            )


# ---- spectra ---------------------------------------------------------------------------------------------


class Spectrum(NamedTuple):
    """Spectrum of generated events in data.

    Attributes
    ----------
    edges
        Edges of the bins of each observable.
    value
        Contents, with under- and overflow of each observable, shape (b₁ + 2,) or (b₁ + 2, b₂ + 2).
    covariance
        Of the contents, flattened, from the bootstrap replicas; None with fewer than two.
    """

    edges: tuple[FloatArray, ...]
    value: FloatArray
    covariance: FloatArray | None


def spectrum(
    values: Sequence[FloatArray],
    edges: Sequence[FloatArray],
    weight: FloatArray,
    replicas: FloatArray | None = None,
) -> Spectrum:
    """Spectrum of any observables in any bins, of weighted generated events.

    Parameters
    ----------
    values
        Values of one or two observables, shape (n,) each. Events without a finite value do not count.
    edges
        Edges of the bins of each.
    weight
        Weights of the events, shape (n,).
    replicas
        Their weights in the bootstrap replicas, shape (n, R).
    """
    shape = tuple(len(axis) + 1 for axis in edges)
    known = np.isfinite(values).all(axis=0)
    index = [np.searchsorted(axis, v[known], side="right") for axis, v in zip(edges, values, strict=True)]
    cell = np.ravel_multi_index(index, shape)
    size = int(np.prod(shape))

    def sums(of: FloatArray) -> FloatArray:
        return np.bincount(cell, weights=of[known], minlength=size).astype(float)

    covariance = None
    if replicas is not None and replicas.shape[1] > 1:
        covariance = np.cov([sums(column) for column in replicas.T], rowvar=False)
    axes = tuple(np.asarray(axis, float) for axis in edges)
    return Spectrum(axes, sums(weight).reshape(shape), covariance)
