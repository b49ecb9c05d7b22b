"""Summaries of samples: means, quantiles and modes with weights, and observables of each sample."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.events import Posterior, TopPair, toy_events
from topreco.core.fourvector import from_three_momentum
from topreco.core.observables import OBSERVABLES
from topreco.core.posterior import mean_tops, sample_mean, sample_mode, sample_quantiles, sample_values


def toy_posterior(n: int, k: int, seed: int = 0) -> Posterior:
    rng = np.random.default_rng(seed)
    samples = from_three_momentum(rng.normal(0.0, 120.0, (n, k, 2, 3)), 172.5)
    return Posterior(samples, np.zeros((n, k)))


def test_weights_sum_to_one_whatever_their_scale() -> None:
    posterior = toy_posterior(3, 4)
    log_weight = np.array([[0.0, 1.0, 2.0, -np.inf], [1000.0, 1001.0, 1002.0, -np.inf], [-np.inf] * 4])
    weight = Posterior(posterior.samples, log_weight).weight
    assert weight[:2].sum(axis=1) == pytest.approx(1)
    assert weight[0] == pytest.approx(weight[1])
    assert (weight[2] == 0).all()
    assert Posterior(posterior.samples, log_weight).valid.tolist() == [True, True, False]


def test_observables_of_each_sample_are_those_of_its_tops() -> None:
    events, posterior = toy_events(5), toy_posterior(5, 7)
    values = sample_values(posterior, events.lepton_p4, OBSERVABLES)
    for name, observable in OBSERVABLES.items():
        for j in range(7):
            tops = posterior.samples[:, j]
            expected = observable.compute(tops, tops.sum(axis=1), events.lepton_p4)
            np.testing.assert_allclose(values[name][:, j], expected, rtol=1e-12)


def test_integer_weights_repeat_samples() -> None:
    rng = np.random.default_rng(1)
    values, counts = rng.normal(size=(20, 8)), rng.integers(0, 4, (20, 8))
    counts[:, 0] = 1
    for i in range(20):
        repeated = np.repeat(values[i], counts[i])[None]
        one = np.ones_like(repeated)
        row = slice(i, i + 1)
        weight = counts[row].astype(float)
        assert sample_mean(values[row], weight) == pytest.approx(sample_mean(repeated, one))


def test_quantiles_of_equal_weights_are_type_five() -> None:
    values = np.random.default_rng(2).normal(size=(30, 64))
    expected = np.quantile(values, [0.025, 0.16, 0.5, 0.84, 0.975], axis=1, method="hazen").T
    np.testing.assert_allclose(sample_quantiles(values, np.ones_like(values)), expected)


def test_samples_without_value_or_weight_count_nothing() -> None:
    values = np.random.default_rng(3).normal(size=(10, 12))
    weight = np.ones_like(values)
    more_values = np.concatenate([values, np.full((10, 3), np.nan), np.full((10, 3), -50.0)], axis=1)
    more_weight = np.concatenate([weight, np.ones((10, 3)), np.zeros((10, 3))], axis=1)
    for summary in (sample_mean, sample_quantiles, sample_mode):
        np.testing.assert_allclose(summary(more_values, more_weight), summary(values, weight))
    nothing = np.zeros_like(values)
    for summary in (sample_mean, sample_quantiles, sample_mode):
        assert np.isnan(summary(values, nothing)).all()


def test_mode_of_two_humps_is_the_taller_one() -> None:
    rng = np.random.default_rng(4)
    values = np.concatenate([rng.normal(-2, 0.3, (50, 200)), rng.normal(2, 0.3, (50, 100))], axis=1)
    assert np.abs(sample_mode(values, np.ones_like(values)) + 2).max() < 1
    # Weights move it to the other.
    weight = np.where(np.arange(300) < 200, 1.0, 5.0) * np.ones((50, 1))
    assert np.abs(sample_mode(values, weight) - 2).max() < 1


def test_mean_tops_are_on_shell() -> None:
    posterior = toy_posterior(6, 9)
    tops = mean_tops(posterior, 172.5)
    np.testing.assert_allclose(tops[..., 1:], posterior.samples[..., 1:].mean(axis=1))
    np.testing.assert_allclose(tops[..., 0] ** 2 - (tops[..., 1:] ** 2).sum(-1), 172.5**2)


def test_shapes_are_checked() -> None:
    with pytest.raises(TopRecoError, match=r"TopPair.observables\['m_tt'\]: shape \(2,\) found, \(3,\)"):
        TopPair(np.zeros((3, 2, 4)), np.ones(3, bool), observables={"m_tt": np.zeros(2)})
    with pytest.raises(TopRecoError, match=r"Posterior\.log_weight"):
        Posterior(np.zeros((3, 5, 2, 4)), np.zeros((2, 5)))
