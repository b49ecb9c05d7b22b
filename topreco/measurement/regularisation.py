"""Regularised unfolding: Tikhonov's method with a scan of its strength, and D'Agostini's iterations.

Both take the response matrix and a measured spectrum, subtract what is not to be unfolded, and give the truth
spectrum with its covariance. How much to regularise follows from a scan: the average global correlation
coefficient of the result is smallest where neither fluctuations nor the regularisation dominate [1]_.

References
----------
.. [1] S. Schmitt, TUnfold, an algorithm for correcting migration effects in high energy physics,
   arXiv:1205.6201.
.. [2] A. N. Tikhonov, Solution of incorrectly formulated problems and the regularization method, Soviet
   Math. Dokl. 4 (1963) 1035.
.. [3] G. D'Agostini, A multidimensional unfolding method based on Bayes' theorem, Nucl. Instrum. Meth. A 362
   (1995) 487.
.. [4] L. B. Lucy, An iterative technique for the rectification of observed distributions, Astron. J. 79
   (1974) 745.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from topreco.core.errors import TopRecoError
from topreco.core.statistics import Array
from topreco.measurement.unfolding import ResponseMatrix, Sums


class UnfoldedSpectrum(NamedTuple):
    """An unfolded spectrum.

    Attributes
    ----------
    value
        Generated events in the truth bins without flow, shape (k,).
    covariance
        Statistical covariance that the measured spectrum gives it, shape (k, k).
    strength
        Strength τ of Tikhonov's method, or number of iterations.
    chi2
        χ² of the folded result against the measured spectrum.
    """

    value: Array
    covariance: Array
    strength: float
    chi2: float

    @property
    def global_correlation(self) -> float:
        """Average of the global correlation coefficients √(1 − 1/(Vᵢᵢ (V⁻¹)ᵢᵢ)) of the bins [1]_.

        Infinite where the covariance cannot be inverted.
        """
        if np.linalg.cond(self.covariance) > 1 / np.finfo(float).eps:
            return math.inf
        product = np.diagonal(self.covariance) * np.diagonal(np.linalg.inv(self.covariance))
        return float(np.sqrt(np.maximum(1 - 1 / product, 0)).mean())

    def chi2_to(self, spectrum: Array) -> float:
        """χ² of the result against another truth spectrum of shape (k,), with its covariance."""
        difference = self.value - spectrum
        return float(difference @ np.linalg.solve(self.covariance, difference))


def signal_of(response: ResponseMatrix, measured: Sums, scale: float = 1.0) -> Sums:
    """Measured events that are to be unfolded: without fakes and without signal from outside of the bins.

    Parameters
    ----------
    response
        Response matrix of simulation, m reconstructed bins.
    measured
        Measured events with flow, shape (m + 2,), background of other processes subtracted.
    scale
        Number of measured events of the signal per simulated one.

    Returns
    -------
    signal
        Without flow, shape (m,); the variance is that of the measured events.
    """
    background = response.fakes.value + response.response.value[[0, -1]].sum(axis=0)
    return Sums((measured.value - scale * background)[1:-1], measured.variance[1:-1])


def tikhonov(
    response: ResponseMatrix, signal: Sums, strength: float, *, prior: Array | None = None
) -> UnfoldedSpectrum:
    """Unfold by least squares with a penalty on the curvature of the ratio to a prior [1]_, [2]_.

    Minimises (y − A x)ᵀ V⁻¹ (y − A x) + τ² |L (x/p − c)|² where L takes second differences, p is the
    simulated truth spectrum and c drops out of them: a constant or linear ratio costs nothing. In a matrix
    of a pair neighbours are those of either observable.

    Parameters
    ----------
    response
        Response matrix, k truth bins and m ≥ k reconstructed ones.
    signal
        Events to unfold, shape (m,), see `signal_of`.
    strength
        τ; 0 is an inversion.
    prior
        Truth spectrum p, shape (k,); None takes the simulated one, whose scale does not matter.

    Raises
    ------
    TopRecoError
        If a truth bin has no simulated events, a bin no variance, or there are too few reconstructed bins.
    """
    matrix = _matrix(response)
    if (signal.variance <= 0).any():
        bad = int(np.flatnonzero(signal.variance <= 0)[0])
        raise TopRecoError(
            f"{response.observable}: measured bin {bad + 1} has no events and so no error; merge bins"
        )
    prior = response.generated.value[1:-1] if prior is None else np.asarray(prior, float)
    # The penalty acts on ratios of order one, whatever the luminosity.
    curvature = _second_differences(response) / (prior * signal.value.sum() / (matrix @ prior).sum())
    weighted = matrix.T / signal.variance
    inverse = np.linalg.inv(weighted @ matrix + strength**2 * curvature.T @ curvature)
    transfer = inverse @ weighted
    value = transfer @ signal.value
    chi2 = float(((signal.value - matrix @ value) ** 2 / signal.variance).sum())
    return UnfoldedSpectrum(value, transfer @ np.diag(signal.variance) @ transfer.T, strength, chi2)


def dagostini(
    response: ResponseMatrix, signal: Sums, iterations: int, *, prior: Array | None = None
) -> UnfoldedSpectrum:
    """Unfold by iterations of Bayes' theorem [3]_, [4]_.

    x′ᵢ = xᵢ/εᵢ Σⱼ Aⱼᵢ yⱼ/(A x)ⱼ with εᵢ = Σⱼ Aⱼᵢ. The covariance takes the derivative of the last
    result with respect to the measured events through all iterations, by the chain rule.

    Parameters
    ----------
    response
        Response matrix.
    signal
        Events to unfold, shape (m,).
    iterations
        One or more.
    prior
        Spectrum to begin with, shape (k,); None takes the simulated one.

    Raises
    ------
    TopRecoError
        If a truth bin has no simulated events, or there is not one iteration.
    """
    if iterations < 1:
        raise TopRecoError(f"iterations: {iterations} found, one or more expected")
    matrix = _matrix(response)
    x = response.generated.value[1:-1] if prior is None else np.asarray(prior, float)
    x = x * signal.value.sum() / (matrix @ x).sum()
    efficiency = matrix.sum(axis=0)
    derivative = np.zeros((len(x), len(signal.value)))
    for _ in range(iterations):
        folded = matrix @ x
        ratio = np.divide(signal.value, folded, out=np.zeros_like(folded), where=folded > 0)
        back = (matrix.T @ ratio) / efficiency
        # dx′/dy = back dx/dy + x/ε Aᵀ [1/f − y/f² A dx/dy]
        with np.errstate(divide="ignore"):
            per_folded = np.where(folded > 0, 1 / folded, 0.0)
        inner = np.diag(per_folded) - (ratio * per_folded)[:, None] * (matrix @ derivative)
        derivative = back[:, None] * derivative + (x / efficiency)[:, None] * (matrix.T @ inner)
        x = x * back
    covariance = derivative @ np.diag(signal.variance) @ derivative.T
    used = signal.variance > 0
    residual = (signal.value - matrix @ x)[used]
    return UnfoldedSpectrum(
        x, covariance, float(iterations), float((residual**2 / signal.variance[used]).sum())
    )


def scan_tikhonov(
    response: ResponseMatrix, signal: Sums, strengths: Sequence[float] | None = None
) -> tuple[UnfoldedSpectrum, list[UnfoldedSpectrum]]:
    """Unfold with many strengths; the best has the smallest average global correlation coefficient [1]_.

    Parameters
    ----------
    response
        Response matrix.
    signal
        Events to unfold.
    strengths
        Values of τ; None takes 60 from weak to strong, equal in their logarithm.

    Returns
    -------
    best
        The result to use.
    scan
        All results, in the order of `strengths`.
    """
    if strengths is None:
        # Where the penalty is as large as the data's own information, per unit of the ratio.
        matrix, prior = _matrix(response), response.generated.value[1:-1]
        expected = prior * signal.value.sum() / (matrix @ prior).sum()
        information = (expected * ((matrix.T / signal.variance) @ matrix).T * expected[:, None]).diagonal()
        strengths = np.sqrt(np.median(information)) * np.logspace(-4, 1, 60)
    scan = [tikhonov(response, signal, float(strength)) for strength in strengths]
    return min(scan, key=lambda result: result.global_correlation), scan


def scan_dagostini(
    response: ResponseMatrix, signal: Sums, max_iterations: int = 50
) -> tuple[UnfoldedSpectrum, list[UnfoldedSpectrum]]:
    """Unfold with 1 to `max_iterations` iterations; the best has the smallest average global correlation.

    Parameters
    ----------
    response
        Response matrix.
    signal
        Events to unfold.
    max_iterations
        Largest number of iterations.

    Returns
    -------
    best
        The result to use.
    scan
        Results after 1, 2, … iterations.
    """
    scan = [dagostini(response, signal, n) for n in range(1, max_iterations + 1)]
    return min(scan, key=lambda result: result.global_correlation), scan


def _matrix(response: ResponseMatrix) -> Array:
    """Probability A that an event of truth bin i is reconstructed in bin j, shape (m, k)."""
    matrix = response.probability[1:-1, 1:-1].T
    if not np.isfinite(matrix).all() or (matrix.sum(axis=0) <= 0).any():
        bad = np.flatnonzero(~(np.isfinite(matrix).all(axis=0) & (matrix.sum(axis=0) > 0)))
        raise TopRecoError(
            f"{response.observable}: truth bin {response.truth_bins[bad[0]]} has no simulated events that "
            "are reconstructed; merge bins"
        )
    if matrix.shape[0] < matrix.shape[1]:
        raise TopRecoError(
            f"{response.observable}: {matrix.shape[0]} reconstructed bins for {matrix.shape[1]} truth bins; "
            "at least as many expected"
        )
    return matrix


def _second_differences(response: ResponseMatrix) -> Array:
    """Second differences of neighbouring truth bins, along each observable of a pair, shape (l, k)."""
    shape = [len(edges) - 1 for _, edges in response.truth_axes] or [len(response.truth_edges) - 1]
    number = np.arange(math.prod(shape)).reshape(shape)
    rows = []
    for axis in range(len(shape)):
        moved = np.moveaxis(number, axis, -1).reshape(-1, shape[axis])
        for line in moved:
            for triple in zip(line, line[1:], line[2:], strict=False):
                row = np.zeros(number.size)
                row[list(triple)] = 1, -2, 1
                rows.append(row)
    return np.reshape(rows, (-1, number.size))
