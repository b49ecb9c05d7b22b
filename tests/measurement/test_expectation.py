"""Expectation maximisation: examples by hand, the maximum of the likelihood, and closure beside inversion."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.measurement.expectation import (
    bin_probabilities,
    expectation_maximisation,
    training_of,
    training_of_samples,
)
from topreco.measurement.unfolding import ResponseMatrix, Sums


def test_probabilities_by_hand():
    values = np.array([[1.0, 1.5, 2.0, 9.0], [-1.0, np.nan, 2.5, 2.5], [np.nan] * 4])
    weight = np.array([[1.0, 1.0, 2.0, 4.0], [1.0, 5.0, 1.0, 0.0], [1.0] * 4])
    found = bin_probabilities(values, weight, [1, 2, 3])
    np.testing.assert_allclose(found, [[0, 0.25, 0.25, 0.5], [0.5, 0, 0.5, 0], [0] * 4])
    # With a second observable, known exactly.
    second = np.array([[0.5] * 4, [1.5] * 4, [0.5] * 4])
    both = bin_probabilities([values, second], weight, [[1, 2, 3], [0, 1]]).reshape(3, 4, 3)
    np.testing.assert_allclose(both[0, :, 1], found[0])
    np.testing.assert_allclose(both[1, :, 2], found[1])
    np.testing.assert_allclose(both.sum(axis=2), found)


def test_events_that_are_known_exactly_are_counted():
    rng = np.random.default_rng(0)
    bins = rng.choice(3, 3000, p=[0.2, 0.3, 0.5])
    efficiency = np.array([0.5, 0.1, 0.2])
    found = expectation_maximisation(np.eye(3)[bins], np.ones(3), efficiency=efficiency, replicas=2000)
    counts = np.bincount(bins)
    assert found.iterations <= 2
    np.testing.assert_allclose(found.selected, counts)
    np.testing.assert_allclose(found.generated, counts / efficiency)
    np.testing.assert_allclose(found.error, np.sqrt(counts) / efficiency, rtol=0.06)
    correlation = found.covariance / np.outer(found.error, found.error)
    assert np.abs(correlation[~np.eye(3, dtype=bool)]).max() < 0.1


def test_the_training_spectrum_stays_where_the_average_posterior_is_the_prior():
    probability = np.random.default_rng(1).dirichlet(np.ones(4), 500)
    training = probability.sum(axis=0)
    found = expectation_maximisation(probability, 7 * training)
    np.testing.assert_allclose(found.selected, training)
    assert found.iterations == 1


def test_it_maximises_the_likelihood():
    rng = np.random.default_rng(2)
    likelihood = rng.uniform(0.2, 1.0, (400, 2))
    likelihood[:150, 0] *= 2
    training = np.array([0.3, 0.7])
    probability = likelihood * training
    probability /= probability.sum(axis=1, keepdims=True)
    weight = rng.uniform(0.5, 2.0, 400)
    found = expectation_maximisation(probability, training, weight=weight, tolerance=1e-14)
    shares = np.linspace(0, 1, 100_001)[:, None]
    log = np.zeros(len(shares))
    for w, (first, second) in zip(weight, likelihood, strict=True):
        log += w * np.log(shares[:, 0] * first + (1 - shares[:, 0]) * second)
    assert found.selected[0] / weight.sum() == pytest.approx(shares[log.argmax(), 0], abs=2e-5)
    assert found.selected.sum() == pytest.approx(weight.sum())
    # The changes fall, and the tolerance decides where it ends.
    assert (np.diff(found.changes) < 0).all()
    early = expectation_maximisation(probability, training, weight=weight, tolerance=0.01)
    assert early.iterations < found.iterations
    assert early.changes == found.changes[: early.iterations]
    fixed = expectation_maximisation(probability, training, weight=weight, iterations=early.iterations)
    np.testing.assert_array_equal(fixed.selected, early.selected)


def test_bins_without_training_and_events_without_samples():
    probability = np.array([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = expectation_maximisation(
        probability, np.array([1.0, 1.0, 0.0]), weight=np.array([1.0, 1.0, 3.0, 1.0]),
        efficiency=np.array([0.5, 0.5, 0.0]),
    )  # fmt: skip
    assert found.unused == 3
    np.testing.assert_allclose(found.selected, [1.5, 1.5, 0.0])
    np.testing.assert_allclose(found.generated[:2], 3.0)
    assert np.isnan(found.generated[2])


def test_simulated_background_counts_with_negative_weights():
    bins = np.repeat([0, 1], [300, 100])
    probability = np.eye(2)[np.append(bins, [0, 1, 1])]
    weight = np.append(np.ones(400), [-50.0, -60.0, -60.0])
    found = expectation_maximisation(probability, np.ones(2), weight=weight)
    # The sum is that of the data; a bin does not become negative.
    np.testing.assert_allclose(found.selected, [230, 0], atol=1e-9)
    weight[-2:] = -20.0
    found = expectation_maximisation(probability, np.ones(2), weight=weight)
    np.testing.assert_allclose(found.selected, [250, 60])


def test_seed_and_chunks_of_replicas(monkeypatch):
    probability = np.random.default_rng(3).dirichlet(np.ones(3), 300)
    one, two, other = (
        expectation_maximisation(probability, np.ones(3), seed=seed, replicas=60) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.covariance, two.covariance)
    assert not np.array_equal(one.covariance, other.covariance)
    monkeypatch.setattr("topreco.measurement.expectation._REPLICAS_AT_ONCE", 7)
    chunked = expectation_maximisation(probability, np.ones(3), seed=1, replicas=60)
    np.testing.assert_allclose(chunked.covariance, one.covariance, rtol=1e-9)


# ---- closure ---------------------------------------------------------------------------------------------

EDGES = np.array([345.0, 420.0, 530.0, 685.0, 970.0, 2000.0])
BINS = len(EDGES) - 1
_FINE = np.geomspace(345.001, 3000, 1001)
MASS, _WIDTH = np.sqrt(_FINE[1:] * _FINE[:-1]), np.diff(_FINE)
CELL = np.searchsorted(EDGES, MASS, side="right")
INNER = np.array([*range(345, 420, 15), *np.geomspace(420, 2000, 20)])
FINE = np.unique([*INNER[np.abs(INNER[:, None] - EDGES).min(axis=1) > 8], *EDGES])
"""Of the expectation maximisation, about a third of the resolution."""
NOISE = 0.13
"""Resolution of ln m, that of the network."""


def spectrum_of(kind):
    density = np.sqrt(1 - (345 / MASS) ** 2) * MASS**-5.0 * _WIDTH
    density /= density.sum()
    if kind == "slope":
        density *= np.clip(1 + 0.3 * (MASS - 500) / 500, 0.3, 3.0)
    if kind == "excess":
        near = np.where(MASS < 355, _WIDTH, 0.0)
        density += 0.03 * near / near.sum()
    return density / density.sum()


EFFICIENCY = 0.1 + 0.15 * (1 - np.exp(-(MASS - 300) / 200))
TRAINING = spectrum_of("training") * EFFICIENCY


def in_bins(density, edges=EDGES):
    cell = np.searchsorted(edges, MASS, side="right")
    return np.bincount(cell, weights=density, minlength=len(edges) + 1)


def efficiency_in(edges):
    generated = in_bins(spectrum_of("training"), edges)
    return in_bins(TRAINING, edges) / np.where(generated > 0, generated, 1.0)


_SEEN = np.linspace(5.0, 9.0, 1001)
_POSTERIOR = np.exp(-0.5 * ((_SEEN[:, None] - np.log(MASS)) / NOISE) ** 2) * TRAINING
_POSTERIOR /= _POSTERIOR.sum(axis=1, keepdims=True)
MEAN = _POSTERIOR @ MASS
"""Posterior mean by what is seen."""


def measured(kind, n, rng):
    """What is seen of the selected ones of n generated events."""
    density = spectrum_of(kind)
    cell = rng.choice(len(MASS), n, p=density)
    cell = cell[rng.random(n) < EFFICIENCY[cell]]
    return cell, np.log(MASS[cell]) + rng.normal(0, NOISE, len(cell))


def posterior_samples(seen, k, rng):
    row = np.clip(np.round((seen - _SEEN[0]) / (_SEEN[1] - _SEEN[0])).astype(int), 0, len(_SEEN) - 1)
    level = np.cumsum(_POSTERIOR, axis=1)
    level[:, -1] = 1.0
    flat = (level + np.arange(len(_SEEN))[:, None]).ravel()
    found = np.searchsorted(flat, rng.random((len(row), k)) + row[:, None]) - row[:, None] * len(MASS)
    return MASS[np.clip(found, 0, len(MASS) - 1)]


@pytest.fixture(scope="module")
def response():
    """Edges of the reconstructed bins, two in each of truth, and the response by inner true bin."""
    rng = np.random.default_rng(10)
    cell, seen = measured("training", 4_000_000, rng)
    reco = np.interp(seen, _SEEN, MEAN)
    edges = np.quantile(reco, np.linspace(0, 1, 2 * BINS + 1)[1:-1])
    matrix = np.zeros((BINS + 2, 2 * BINS))
    np.add.at(matrix, (CELL[cell], np.searchsorted(edges, reco)), 1.0)
    return edges, matrix[1:-1] / matrix[1:-1].sum(axis=1, keepdims=True)


def inverted(reco, response, efficiency):
    """Weighted least squares as in docs/UNFOLDING.md: generated spectrum and its covariance."""
    edges, matrix = response
    counts = np.bincount(np.searchsorted(edges, reco), minlength=2 * BINS)
    folding = matrix.T * efficiency
    weight = 1 / np.maximum(counts, 1)
    covariance = np.linalg.inv(folding.T * weight @ folding)
    return covariance @ (folding.T * weight @ counts), covariance


REPEATS = 12


@pytest.mark.parametrize("kind", ["training", "slope", "excess"])
def test_closure(kind, response):
    rng = np.random.default_rng(11)
    n, repeats = 60_000, REPEATS
    inner = slice(1, BINS + 1)
    efficiency = efficiency_in(EDGES)[inner]
    true = n * in_bins(spectrum_of(kind))[inner]
    pulls, chi2, errors = ({"em": [], "inversion": []} for _ in range(3))
    for _ in range(repeats):
        _, seen = measured(kind, n, rng)
        samples = posterior_samples(seen, 64, rng)
        em = expectation_maximisation(
            bin_probabilities(samples, np.ones_like(samples), FINE),
            in_bins(TRAINING, FINE),
            efficiency=efficiency_in(FINE),
            replicas=60,
        ).merged(FINE, EDGES)
        both = {
            "em": (em.generated[inner], em.covariance[inner, inner]),
            "inversion": inverted(np.interp(seen, _SEEN, MEAN), response, efficiency),
        }
        for name, (found, covariance) in both.items():
            difference = found - true
            pulls[name].append(difference / true)
            errors[name].append(np.sqrt(np.diagonal(covariance)) / true)
            chi2[name].append(difference @ np.linalg.solve(covariance, difference))
    bias = {name: np.mean(values, axis=0) for name, values in pulls.items()}
    error = {name: np.mean(values, axis=0) for name, values in errors.items()}
    # Bias within the error of one measurement, and little beyond that of the mean of all.
    assert (np.abs(bias["em"]) < error["em"]).all()
    assert (np.abs(bias["em"]) < 0.01 + 3.5 * error["em"] / np.sqrt(repeats)).all()
    assert (error["em"] < 1.02 * error["inversion"]).all()
    assert np.mean(chi2["em"]) < 2 * BINS


def test_merged_bins_are_sums():
    rng = np.random.default_rng(5)
    probability = rng.dirichlet(np.ones(6), 500)
    edges = [0, 1, 2, 3, 4]
    fine = expectation_maximisation(probability, np.ones(6), efficiency=np.full(6, 0.5), iterations=3)
    found = fine.merged(edges, [1, 3])
    np.testing.assert_allclose(found.generated, fine.generated[[0, 2, 4]] + fine.generated[[1, 3, 5]])
    assert found.covariance[1, 1] == pytest.approx(fine.covariance[2:4, 2:4].sum())
    with pytest.raises(TopRecoError, match=r"coarse edges are 1, 2\.5"):
        fine.merged(edges, [1, 2.5])


def test_training_of_a_response_matrix():
    def unit(values):
        return Sums(np.asarray(values, float), np.asarray(values, float))

    matrix = [[0, 0, 0, 0], [1, 6, 2, 0], [0, 3, 9, 0], [0, 0, 0, 4]]
    measured, nothing = unit(np.sum(matrix, axis=0)), unit(np.zeros(4))
    response = ResponseMatrix(
        "m_tt", np.arange(3.0), np.arange(3.0), unit(matrix), measured, nothing, unit([0, 1, 2, 0]),
        unit([0, 90, 48, 8]),
    )  # fmt: skip
    training, efficiency = training_of(response)
    np.testing.assert_array_equal(training, [0, 9, 12, 4])
    np.testing.assert_allclose(efficiency, [np.nan, 0.1, 0.25, 0.5])


def test_errors():
    good = np.array([[0.5, 0.5], [0.2, 0.8]])
    with pytest.raises(TopRecoError, match=r"training: shape \(3,\) found, \(2,\) expected"):
        expectation_maximisation(good, np.ones(3))
    with pytest.raises(TopRecoError, match=r"weight: shape \(3,\) found"):
        expectation_maximisation(good, np.ones(2), weight=np.ones(3))
    with pytest.raises(TopRecoError, match=r"efficiency: shape \(1,\) found"):
        expectation_maximisation(good, np.ones(2), efficiency=np.ones(1))
    with pytest.raises(TopRecoError, match="negative or not finite"):
        expectation_maximisation(-good, np.ones(2))
    with pytest.raises(TopRecoError, match="a bin of training with events"):
        expectation_maximisation(good, np.zeros(2))
    with pytest.raises(TopRecoError, match="sum of the weights of the events with samples: 0"):
        expectation_maximisation(0 * good, np.ones(2))
    with pytest.raises(TopRecoError, match="replicas: 1"):
        expectation_maximisation(good, np.ones(2), replicas=1)
    with pytest.raises(TopRecoError, match=r"still changes by .* after 1 iterations"):
        expectation_maximisation(good, np.array([5.0, 1.0]), max_iterations=1, tolerance=1e-9)


def wrong_posteriors(rng, n, true, held):
    """Bins of n events measured with a normal error, and posteriors with the spectrum `held` as prior."""
    bins = rng.choice(len(true), n, p=true)
    measured = bins + rng.normal(0, 0.7, n)
    posterior = held * np.exp(-0.5 * ((measured[:, None] - np.arange(len(true))) / 0.7) ** 2)
    return bins, posterior / posterior.sum(axis=1, keepdims=True)


def test_the_spectrum_that_samples_hold_is_found_and_removed():
    rng = np.random.default_rng(2)
    true = np.array([0.1, 0.3, 0.3, 0.2, 0.1])
    wrong = true * np.array([1.5, 1.0, 0.9, 0.9, 1.0])
    bins, posterior = wrong_posteriors(rng, 50_000, true, wrong)
    counts = np.bincount(bins).astype(float)
    held = training_of_samples(posterior, counts, tolerance=1e-4)
    assert held.sum() == pytest.approx(counts.sum())
    np.testing.assert_allclose(held / counts, wrong / wrong.sum() / true, rtol=0.03)
    # Other events, of another spectrum.
    changed = np.array([0.2, 0.2, 0.2, 0.2, 0.2])
    bins, posterior = wrong_posteriors(rng, 50_000, changed, wrong)
    settings = {"replicas": 2, "tolerance": 1e-3}
    right = expectation_maximisation(posterior, held, **settings)
    naive = expectation_maximisation(posterior, counts, **settings)
    np.testing.assert_allclose(right.selected / np.bincount(bins), 1, atol=0.04)
    assert naive.selected[0] > 1.2 * np.bincount(bins)[0]


def test_weights_of_simulated_events_count_in_the_spectrum_that_samples_hold():
    rng = np.random.default_rng(3)
    true = np.array([0.3, 0.4, 0.3])
    bins, posterior = wrong_posteriors(rng, 2000, true, true)
    weight = rng.integers(0, 3, 2000)
    counts = np.bincount(bins, weights=weight)
    repeated = np.repeat(posterior, weight, axis=0)
    np.testing.assert_allclose(
        training_of_samples(posterior, counts, weight=weight), training_of_samples(repeated, counts)
    )


def test_a_spectrum_of_samples_that_does_not_settle_is_an_error():
    rng = np.random.default_rng(4)
    true = np.array([0.3, 0.4, 0.3])
    bins, posterior = wrong_posteriors(rng, 2000, true, np.array([0.6, 0.2, 0.2]))
    with pytest.raises(TopRecoError, match=r"spectrum of samples: .* after 2 iterations"):
        training_of_samples(posterior, np.bincount(bins), max_iterations=2)
    with pytest.raises(TopRecoError, match="training: shape"):
        training_of_samples(posterior, np.ones(4))
