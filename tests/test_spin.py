"""Spin correlation at leading order: known limits, closure on isotropic leptons, and what is undefined."""

import numpy as np
import pytest

from topreco import fourvector
from topreco.events import PRODUCTIONS, Truth
from topreco.observables import c_hel
from topreco.spin import event_spin_weight, spin_correlation_matrix, spin_correlation_weight

INITIAL = ("gg", "qq")


def isotropic(n, beta, cos_theta, seed=0):
    """Tops of one velocity and angle, their leptons without correlation, moving along the beam."""
    rng = np.random.default_rng(seed)

    def unit(shape):
        vectors = rng.normal(size=(*shape, 3))
        return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)

    phi = rng.uniform(-np.pi, np.pi, n)
    sin = np.sqrt(1 - cos_theta**2)
    k = np.stack([sin * np.cos(phi), sin * np.sin(phi), np.full(n, cos_theta)], -1)
    momentum = 172.5 * beta / np.sqrt(1 - beta**2) * k
    tops = fourvector.from_three_momentum(np.stack([momentum, -momentum], 1), 172.5)
    leptons = fourvector.from_three_momentum(50 * unit((n, 2)), 0.0)
    leptons = fourvector.boost(leptons, tops[..., 1:] / tops[..., :1])
    along = np.zeros((n, 1, 3))
    along[..., 2] = rng.uniform(-0.9, 0.9, (n, 1))
    return fourvector.boost(tops, along), fourvector.boost(leptons, along)


def test_at_threshold():
    """Two gluons make a spin singlet, quark and antiquark spins along the beam."""
    cosine = np.array([0.0, 0.6, -0.6, 1.0])
    np.testing.assert_allclose(
        spin_correlation_matrix(np.zeros(4), cosine, "gg"), np.broadcast_to(-np.eye(3), (4, 3, 3)), atol=1e-12
    )
    beam = np.stack([cosine, np.sqrt(1 - cosine**2), np.zeros(4)], -1)
    expected = beam[:, :, None] * beam[:, None, :]
    np.testing.assert_allclose(spin_correlation_matrix(np.zeros(4), cosine, "qq"), expected, atol=1e-12)


@pytest.mark.parametrize("initial", INITIAL)
def test_is_a_correlation_of_two_spins(initial):
    """No singular value beyond one, and symmetric, everywhere; all weights are then at least zero."""
    beta, cosine = np.meshgrid(np.linspace(0, 0.999, 50), np.linspace(-1, 1, 41))
    matrix = spin_correlation_matrix(beta, cosine, initial)
    np.testing.assert_array_equal(matrix, np.swapaxes(matrix, -1, -2))
    assert np.linalg.svd(matrix, compute_uv=False).max() < 1 + 1e-9


@pytest.mark.parametrize("initial", INITIAL)
@pytest.mark.parametrize(("beta", "cosine"), [(0.1, 0.3), (0.6, -0.7), (0.95, 0.1)])
def test_weighted_isotropic_leptons_have_the_correlation(initial, beta, cosine):
    """⟨w⟩ = 1 and D = −3⟨c_hel⟩ = tr C′/3, from leptons in the laboratory."""
    tops, leptons = isotropic(200_000, beta, cosine)
    weight = spin_correlation_weight(tops, leptons, initial)
    assert weight.min() >= -1e-9
    assert weight.mean() == pytest.approx(1, abs=4 * weight.std() / np.sqrt(len(weight)))
    cosines = c_hel(tops, leptons)
    expected = np.trace(spin_correlation_matrix(np.array(beta), np.array(cosine), initial)) / 3
    error = 3 * (weight * cosines).std() / np.sqrt(len(weight))
    assert error < 0.006
    assert -3 * np.mean(weight * cosines) == pytest.approx(expected, abs=4 * error)
    # The inverse of the weight takes it away again, from what has it.
    assert np.average(cosines, weights=weight * (1 / np.maximum(weight, 1e-12))) == pytest.approx(
        cosines.mean(), abs=1e-3
    )


@pytest.mark.parametrize("initial", INITIAL)
def test_neither_the_azimuth_nor_the_sense_of_the_beam_matters(initial):
    tops, leptons = isotropic(100, 0.7, 0.4)
    weight = spin_correlation_weight(tops, leptons, initial)
    turn = np.array([[1.0, 0, 0, 0], [0, 0.6, -0.8, 0], [0, 0.8, 0.6, 0], [0, 0, 0, 1]])
    flip = np.diag([1.0, 1, -1, -1])
    for matrix in (turn, flip):
        moved = spin_correlation_weight(tops @ matrix.T, leptons @ matrix.T, initial)
        np.testing.assert_allclose(moved, weight, atol=1e-9)


def test_a_top_along_the_beam_has_a_weight():
    tops, leptons = isotropic(10, 0.5, 1.0)
    assert np.isfinite(spin_correlation_weight(tops, leptons, "gg")).all()


def test_events_go_by_their_production():
    tops, leptons = isotropic(6, 0.6, 0.2)
    neutrino = fourvector.from_three_momentum(np.random.default_rng(1).normal(0, 40, (6, 2, 3)), 0.0)
    neutrino[5, 1] = np.nan
    flags = np.zeros((6, 2), bool)
    production = np.array([PRODUCTIONS.index(name) for name in ("gg", "qq", "gg", "other", "qq", "gg")])
    truth = Truth(tops, leptons + neutrino, tops, tops, neutrino, flags, ~flags[:, 0], production)
    weight = event_spin_weight(truth)
    expected = {name: spin_correlation_weight(tops, leptons, name) for name in INITIAL}
    np.testing.assert_allclose(weight[[0, 2]], expected["gg"][[0, 2]])
    np.testing.assert_allclose(weight[[1, 4]], expected["qq"][[1, 4]])
    assert np.isnan(weight[[3, 5]]).all()


def test_unknown_initial_state():
    with pytest.raises(ValueError, match="'qg'; allowed are gg, qq"):
        spin_correlation_matrix(np.zeros(1), np.zeros(1), "qg")
