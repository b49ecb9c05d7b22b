"""Two humps: false rate on distributions with one, known solutions, and b jets of exact decays."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.events import Posterior
from topreco.core.fourvector import boost, from_three_momentum, mass, mass_squared
from topreco.core.humps import assign_b, subtract_decay, two_humps, two_solutions

ONE_HUMP = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.random(shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape),
}


@pytest.mark.parametrize("k", [32, 64, 256])
@pytest.mark.parametrize("shape", [(), (6,)], ids=["one", "six"])
@pytest.mark.parametrize("kind", ONE_HUMP)
def test_false_rate(kind, shape, k):
    n = 3000
    values = ONE_HUMP[kind](np.random.default_rng(1), (n, k, *shape))
    found = two_humps(values, np.ones((n, k)))
    # At most 1 %, about; exponential tails at 32 samples have more than others.
    assert found.two.mean() < 0.018
    if kind == "normal":
        assert found.two.mean() < 0.002


def test_false_rate_with_weights():
    rng = np.random.default_rng(2)
    values, weight = rng.random((3000, 256)), rng.exponential(size=(3000, 256))
    assert two_humps(values, weight).two.mean() < 0.02


@pytest.mark.parametrize("shape", [(), (6,)], ids=["one", "six"])
def test_two_humps_are_found_with_their_probabilities(shape):
    rng = np.random.default_rng(3)
    n, k = 500, 64
    second = np.arange(k) < 16
    values = rng.normal(size=(n, k, *shape))
    values[:, second] += 8.0 * np.eye(6)[0] if shape else 8.0
    found = two_humps(values, np.ones((n, k)))
    assert found.two.mean() > 0.99
    assert (found.cluster == second).mean() > 0.999
    np.testing.assert_allclose(found.probability[found.two].mean(axis=0), [0.75, 0.25], atol=0.005)
    # Weights decide which is the first, and what has none belongs to neither.
    weight = np.where(second, 9.0, 1.0) * np.ones((n, 1))
    weight[:, 0] = 0.0
    other = two_humps(values, weight)
    np.testing.assert_allclose(other.probability.mean(axis=0), [135 / 183, 48 / 183], atol=0.01)
    assert (other.cluster[:, 0] == -1).all()


def test_events_with_too_few_samples_have_one():
    values = np.array([[0.0, 0.0, 10.0, 10.1], [np.nan] * 4, [0.0, 1.0, np.nan, np.nan]])
    found = two_humps(values, np.ones((3, 4)))
    assert found.two.tolist() == [False, False, False]
    assert np.isnan(found.separation).tolist() == [False, True, True]
    assert (found.cluster[1] == -1).all()


def test_both_solutions():
    rng = np.random.default_rng(4)
    first, second = rng.normal(0, 200, (2, 50, 1, 2, 3))
    momentum = np.concatenate(
        [first + rng.normal(0, 5, (50, 40, 2, 3)), second + rng.normal(0, 5, (50, 24, 2, 3))], axis=1
    )
    humps, p4 = two_solutions(Posterior(from_three_momentum(momentum, 172.5), np.zeros((50, 64))))
    assert humps.two.all()
    np.testing.assert_allclose(humps.probability, np.tile([40 / 64, 24 / 64], (50, 1)))
    np.testing.assert_allclose(p4[:, 0, :, 1:], momentum[:, :40].mean(axis=1))
    np.testing.assert_allclose(p4[:, 1, :, 1:], momentum[:, 40:].mean(axis=1))
    np.testing.assert_allclose(mass(p4), 172.5)

    one = Posterior(from_three_momentum(rng.normal(0, 200, (50, 64, 2, 3)), 172.5), np.zeros((50, 64)))
    humps, p4 = two_solutions(one)
    assert not humps.two.any()
    np.testing.assert_allclose(p4[:, 0, :, 1:], one.samples[..., 1:].mean(axis=1))
    assert np.isnan(p4[:, 1]).all()


def decays(n, rng):
    """Exact decays: tops, leptons, b, neutrinos, each (n, 2, 4)."""

    def direction():
        found = rng.normal(size=(n, 2, 3))
        return found / np.linalg.norm(found, axis=-1, keepdims=True)

    tops = from_three_momentum(rng.normal(0, 120, (n, 2, 3)), 172.5)
    momentum = (172.5**2 - 80.4**2) / (2 * 172.5)
    along = direction() * momentum
    velocity = tops[..., 1:] / tops[..., :1]
    w, b = (boost(from_three_momentum(sign * along, m), velocity) for sign, m in ((1, 80.4), (-1, 0.0)))
    along = direction() * 40.2
    velocity = w[..., 1:] / w[..., :1]
    leptons, neutrinos = (boost(from_three_momentum(sign * along, 0.0), velocity) for sign in (1, -1))
    return tops, leptons, b, neutrinos


def test_exact_decays():
    rng = np.random.default_rng(5)
    n, k = 200, 8
    tops, leptons, b, neutrinos = decays(n, rng)
    assert np.abs(mass_squared(neutrinos)).max() < 1e-3
    w, found = subtract_decay(tops, leptons, b)
    np.testing.assert_allclose(found, neutrinos, atol=1e-3)
    np.testing.assert_allclose(mass(w), 80.4, rtol=1e-6)
    # Another scale of the jets changes nothing, and neither a neutrino nor W has mass for it.
    scaled = subtract_decay(tops, leptons, b * rng.uniform(0.8, 1.2, (n, 2, 1)))[1]
    np.testing.assert_allclose(scaled, neutrinos, atol=1e-3)

    # The b of the top is jet 2, that of the antitop jet 0, and jet 1 is another.
    other = from_three_momentum(rng.normal(0, 60, (n, 1, 3)), 5.0)
    jets = np.concatenate([b[:, 1:], other, b[:, :1]], axis=1)
    posterior = Posterior(np.repeat(tops[:, None], k, axis=1), np.zeros((n, k)))
    assignment = assign_b(posterior, leptons, jets, np.ones((n, 3), bool))
    assert (assignment.b == [2, 0]).all()
    np.testing.assert_allclose(assignment.probability[:, 2, 0], 1.0)
    np.testing.assert_allclose(assignment.probability.sum(axis=(1, 2)), 1.0)

    # Samples of the exchanged tops, with weights, exchange the pair.
    samples = posterior.samples.copy()
    leptons_same = np.repeat(leptons[:, :1], 2, axis=1)
    tops_of = np.repeat(tops[:, :1], 2, axis=1)
    samples[:] = tops_of[:, None]
    same = assign_b(Posterior(samples, posterior.log_weight), leptons_same, jets, np.ones((n, 3), bool))
    # Both legs want jet 2, which one of them can have.
    assert ((same.probability[:, 2].sum(axis=1) + same.probability[:, :, 2].sum(axis=1)) > 0.5).mean() > 0.95

    # What is not allowed is not taken; without two jets or samples there is no pair.
    allowed = np.ones((n, 3), bool)
    allowed[:, 2] = False
    assert (assign_b(posterior, leptons, jets, allowed).probability[:, 2] == 0).all()
    allowed[:, 1] = False
    none = assign_b(posterior, leptons, jets, allowed)
    assert (none.b == -1).all()
    assert (none.probability == 0).all()
    nothing = Posterior(np.full_like(samples, np.nan), np.full((n, k), -np.inf))
    assert (assign_b(nothing, leptons, jets, np.ones((n, 3), bool)).b == -1).all()
    with pytest.raises(TopRecoError, match=r"assign_b: leptons \(200, 2, 4\) and allowed jets \(200, 2\)"):
        assign_b(posterior, leptons, jets, np.ones((n, 2), bool))
