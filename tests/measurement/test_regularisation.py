"""Tikhonov's and D'Agostini's unfolding: limits by hand, covariance by toys, and scans that close."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.measurement.regularisation import (
    dagostini,
    scan_dagostini,
    scan_tikhonov,
    signal_of,
    tikhonov,
)
from topreco.measurement.unfolding import ResponseMatrix, Sums

K, M = 8, 16
TRUTH_EDGES, RECO_EDGES = np.linspace(0, 1, K + 1), np.linspace(0, 1, M + 1)


def response(*, smear=0.12, n=2_000_000, efficiency=0.4, fakes=0.0):
    """A spectrum that falls, smeared, with a constant efficiency; of so many events that it has no error."""
    grid = (np.arange(40 * K) + 0.5) / (40 * K)
    density = np.exp(-2 * grid)
    density *= n / density.sum()
    centres = (RECO_EDGES[:-1] + RECO_EDGES[1:]) / 2
    kernel = np.exp(-0.5 * ((centres - grid[:, None]) / smear) ** 2)
    kernel *= efficiency / kernel.sum(axis=1, keepdims=True)
    truth = np.zeros(K + 2)
    matrix = np.zeros((K + 2, M + 2))
    for x, w, row in zip(grid, density, kernel, strict=True):
        truth[1 + int(x * K)] += w
        matrix[1 + int(x * K), 1:-1] += w * row
    outside = np.full(M + 2, fakes)
    measured = matrix.sum(axis=0) + outside
    sums = [Sums(part, part.copy()) for part in (matrix, measured, outside, np.zeros(K + 2), truth)]
    return ResponseMatrix("m_tt", TRUTH_EDGES, RECO_EDGES, *sums)


@pytest.fixture(scope="module")
def simulated():
    return response()


def another(simulated):
    """Another truth spectrum, with a slope and a bump, and what is expected of it."""
    x = (TRUTH_EDGES[:-1] + TRUTH_EDGES[1:]) / 2
    truth = simulated.generated.value.copy() / 40
    truth[1:-1] *= 0.8 + 0.6 * x
    return truth, simulated.fold(truth)[1:-1]


def poisson(expected, seed):
    found = np.random.default_rng(seed).poisson(expected).astype(float)
    return Sums(found, np.maximum(found, 1.0))


def test_without_regularisation_it_is_an_inversion(simulated):
    truth, expected = another(simulated)
    signal = Sums(expected, expected)
    found = tikhonov(simulated, signal, 0.0)
    np.testing.assert_allclose(found.value, truth[1:-1], rtol=1e-5)
    matrix = simulated.probability[1:-1, 1:-1].T
    np.testing.assert_allclose(found.covariance, np.linalg.inv(matrix.T / expected @ matrix), rtol=1e-6)
    assert found.chi2 == pytest.approx(0, abs=1e-6)


def test_strong_regularisation_keeps_a_linear_ratio(simulated):
    """All that is left is the line of the ratio to the simulated spectrum that fits best."""
    truth, expected = another(simulated)
    found = tikhonov(simulated, Sums(expected, expected), 1e7)
    ratio = found.value / simulated.generated.value[1:-1]
    np.testing.assert_allclose(np.diff(ratio, 2), 0, atol=1e-4 * ratio.mean())
    # Here the truth is such a line.
    np.testing.assert_allclose(found.value, truth[1:-1], rtol=1e-3)


def test_dagostini_keeps_the_number_of_events_and_converges(simulated):
    truth, expected = another(simulated)
    signal = Sums(expected, expected)
    one, many = dagostini(simulated, signal, 1), dagostini(simulated, signal, 3000)
    matrix = simulated.probability[1:-1, 1:-1].T
    for found in (one, many):
        assert (matrix @ found.value).sum() == pytest.approx(expected.sum(), rel=1e-9)
    np.testing.assert_allclose(many.value, truth[1:-1], rtol=5e-3)
    prior = simulated.generated.value[1:-1]
    by_hand = prior * (matrix.T @ (expected / (matrix @ prior))) / matrix.sum(axis=0)
    np.testing.assert_allclose(one.value, by_hand)


@pytest.mark.parametrize("method", ["tikhonov", "dagostini"])
def test_covariance_is_that_of_toys(simulated, method):
    _, expected = another(simulated)

    def unfold(signal):
        if method == "tikhonov":
            return tikhonov(simulated, Sums(signal.value, expected), 100.0)
        return dagostini(simulated, signal, 4)

    results = np.stack([unfold(poisson(expected, seed)).value for seed in range(600)])
    found = unfold(Sums(expected, expected)).covariance
    errors = np.sqrt(np.diagonal(found))
    np.testing.assert_allclose(results.std(axis=0), errors, rtol=0.12)
    correlation = found / errors[:, None] / errors
    np.testing.assert_allclose(np.corrcoef(results.T), correlation, atol=0.16)


@pytest.mark.parametrize("scan", [scan_tikhonov, scan_dagostini])
def test_scans_close(simulated, scan):
    """Of pseudo-data the chosen result is the truth within its errors, and closer than the inversion."""
    truth, expected = another(simulated)
    chi2, closer = [], []
    for seed in range(12):
        signal = poisson(expected, seed)
        best, results = scan(simulated, signal)
        assert best.global_correlation == min(result.global_correlation for result in results)
        assert best.strength not in (results[0].strength, results[-1].strength), (
            "a minimum inside of the scan"
        )
        inversion = tikhonov(simulated, signal, 0.0)
        chi2.append(best.chi2_to(truth[1:-1]))
        distance = [np.sum((found.value - truth[1:-1]) ** 2 / truth[1:-1]) for found in (best, inversion)]
        closer.append(distance[0] < distance[1])
    # The expectation is one per bin; the regularisation's bias may add a little.
    assert np.mean(chi2) < 2 * K
    assert np.mean(closer) > 0.7


def test_fakes_and_background_are_subtracted():
    with_fakes = response(fakes=50.0)
    truth = with_fakes.generated.value * 0.5
    measured = Sums(with_fakes.fold(truth) + 0.5 * with_fakes.fakes.value, with_fakes.measured.value)
    signal = signal_of(with_fakes, measured, scale=0.5)
    np.testing.assert_allclose(tikhonov(with_fakes, signal, 0.0).value, truth[1:-1], rtol=1e-6)


def test_neighbours_of_a_pair():
    """Penalties act along both observables, and not from the end of one row to the next."""
    axes = (("m_tt", (0.0, 1, 2, 3)), ("c_hel", (-1.0, -0.5, 0, 1)))
    rng = np.random.default_rng(1)
    n = 9
    matrix = np.zeros((n + 2, n + 2))
    matrix[1:-1, 1:-1] = np.diag(np.full(n, 50.0)) + rng.uniform(0, 2, (n, n))
    generated = np.pad(np.full(n, 100.0), 1)
    empty = np.zeros(n + 2)
    sums = [Sums(x, x) for x in (matrix, matrix.sum(0), empty, empty, generated)]
    edges = np.arange(n + 1.0)
    pair = ResponseMatrix("m_tt_x_c_hel", edges, edges, *sums, truth_axes=axes, reco_axes=axes)
    i, j = np.divmod(np.arange(n), 3)
    truth = generated.copy()
    truth[1:-1] *= 1 + 0.1 * i + 0.2 * j + 0.05 * i * j
    expected = pair.fold(truth)[1:-1]
    found = tikhonov(pair, Sums(expected, expected), 1e4)
    np.testing.assert_allclose(found.value, truth[1:-1], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("empty truth", "truth bin 0 to 0.125 has no simulated events"),
        ("few reco", "2 reconstructed bins for 8 truth bins"),
        ("empty data", "measured bin 3 has no events"),
        ("no iteration", "iterations: 0 found"),
    ],
)
def test_what_cannot_be_unfolded(change, message):
    matrix = response()
    signal = Sums(np.ones(M), np.ones(M))
    iterations = 0 if change == "no iteration" else 1
    if change == "empty truth":
        matrix.generated.value[1] = 0
    if change == "few reco":
        matrix = matrix.merged(TRUTH_EDGES, [0, 0.5, 1])
        signal = Sums(np.ones(2), np.ones(2))
    if change == "empty data":
        signal.variance[2] = 0
        with pytest.raises(TopRecoError, match=message):
            tikhonov(matrix, signal, 1.0)
        return
    with pytest.raises(TopRecoError, match=message):
        dagostini(matrix, signal, iterations)
