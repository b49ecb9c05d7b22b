"""Density matrices of known states, their covariance against the bootstrap, and what is refused."""

import dataclasses

import numpy as np
import pytest

from tests.core.test_spin import isotropic
from topreco.core.errors import TopRecoError
from topreco.core.events import TopPair
from topreco.core.observables import m_tt
from topreco.core.quantum import (
    COEFFICIENTS,
    SpinDensity,
    binned_spin_density,
    bootstrap,
    chsh,
    concurrence_margin,
    spin_density,
)
from topreco.core.spin import spin_coefficients, spin_correlation_weight


def coefficients(c, b1=(0, 0, 0), b2=(0, 0, 0)):
    return np.concatenate([b1, b2, np.ravel(c)]).astype(float)


STATES = [
    ("singlet", np.eye(3), (0, 0, 0), 1.0, 2 * np.sqrt(2)),
    ("triplet without spin along k", np.diag([1, -1, -1]), (0, 0, 0), 1.0, 2 * np.sqrt(2)),
    ("no correlation", np.zeros((3, 3)), (0, 0, 0), -0.5, 0.0),
    ("both spins along k", np.diag([-1, 0, 0]), (1, 0, 0), 0.0, 2.0),
    ("half a singlet", np.eye(3) / 2, (0, 0, 0), 0.25, np.sqrt(2)),
    ("limit of entanglement", np.eye(3) / 3, (0, 0, 0), 0.0, 2 * np.sqrt(2) / 3),
]


@pytest.mark.parametrize(("c", "b", "margin", "bell"), [s[1:] for s in STATES], ids=[s[0] for s in STATES])
def test_known_states(c, b, margin, bell):
    values = coefficients(c, b, b)
    density = SpinDensity(values, np.eye(15), 10, 10.0)
    rho = density.matrix
    assert np.trace(rho) == pytest.approx(1)
    np.testing.assert_allclose(rho, rho.conj().T, atol=1e-15)
    assert np.linalg.eigvalsh(rho).min() > -1e-12
    assert concurrence_margin(values) == pytest.approx(margin, abs=1e-7)
    assert chsh(values) == pytest.approx(bell, abs=1e-12)


def test_werner_states():
    """C = p·1 has the concurrence (3p − 1)/2, that is (−1 − 3D)/2 with D = −p, and 2√2 p."""
    for p in np.linspace(0, 1, 7):
        values = coefficients(p * np.eye(3))
        assert concurrence_margin(values) == pytest.approx((3 * p - 1) / 2, abs=1e-7)
        assert chsh(values) == pytest.approx(2 * np.sqrt(2) * p)


def test_turning_the_spins_does_not_change_entanglement():
    rng = np.random.default_rng(3)
    left, right = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    left, right = left * np.linalg.det(left), right * np.linalg.det(right)
    c = np.diag([0.7, 0.5, 0.6])
    turned = coefficients(left @ c @ right.T)
    assert concurrence_margin(turned) == pytest.approx(concurrence_margin(coefficients(c)), abs=1e-7)
    assert chsh(turned) == pytest.approx(chsh(coefficients(c)))


def sample(n=20_000):
    """Pairs of gg near threshold, with weights of both signs."""
    tops, leptons = isotropic(n, 0.3, 0.4, seed=5)
    rng = np.random.default_rng(6)
    sign = np.where(rng.random(n) < 0.1, -1.0, 1.0)
    return tops, leptons, sign * spin_correlation_weight(tops, leptons, "gg")


def test_coefficients_are_those_of_spin_coefficients():
    tops, leptons, weight = sample(2000)
    density = spin_density(tops, leptons, weight)
    expected = spin_coefficients(tops, leptons, weight)
    for i, name in enumerate(COEFFICIENTS):
        assert density.values[i] == pytest.approx(expected[name].value, abs=1e-12)
        assert np.sqrt(density.covariance[i, i]) == pytest.approx(expected[name].error, rel=1e-9)
    d = density.derived(lambda values: -values[6::4].sum() / 3)
    assert d.value == pytest.approx(expected["D"].value)
    assert d.error == pytest.approx(expected["D"].error, rel=1e-6)


def test_analytic_covariance_is_that_of_the_bootstrap():
    """600 replicas know a standard deviation to 3 % and a correlation coefficient to 0.04."""
    tops, leptons, weight = sample()
    density = spin_density(tops, leptons, weight)
    replicas = bootstrap(tops, leptons, weight, replicas=600, seed=2)
    errors = np.sqrt(np.diag(density.covariance))
    np.testing.assert_allclose(replicas.std(0), errors, rtol=0.12)
    np.testing.assert_allclose(
        np.corrcoef(replicas.T), density.covariance / np.outer(errors, errors), atol=0.17
    )
    assert (replicas.mean(0) - density.values) / errors == pytest.approx(np.zeros(15), abs=0.17)
    for function in (concurrence_margin, chsh):
        spread = np.std([function(values) for values in replicas])
        assert density.derived(function).error == pytest.approx(spread, rel=0.15)


def test_copies_of_an_event_are_one():
    tops, leptons, weight = sample(500)
    twice = (np.repeat(a, 4, axis=0) for a in (tops, leptons, weight))
    group = np.repeat(np.arange(500), 4)
    single = spin_density(tops, leptons, weight)
    tops, leptons, weight = twice
    found = spin_density(tops, leptons, weight, group=group)
    np.testing.assert_allclose(found.values, single.values)
    np.testing.assert_allclose(found.covariance, single.covariance)
    naive = spin_density(tops, leptons, weight).covariance
    np.testing.assert_allclose(naive, single.covariance / 4, rtol=1e-9)
    replicas = bootstrap(tops, leptons, weight, group=group, replicas=300)
    np.testing.assert_allclose(replicas.std(0), np.sqrt(np.diag(single.covariance)), rtol=0.2)


def test_bins():
    tops, leptons, weight = sample(2000)
    tops[0] = np.nan
    pair = TopPair(tops, np.isfinite(tops).all((1, 2)))
    mass = m_tt(tops)
    edges = [300, np.nanmedian(mass), np.nanmax(mass)]
    found = binned_spin_density(pair, leptons, weight, m_tt=edges, abs_cos_theta=[0, 0.4 - 1e-6, 1])
    assert [[x.n for x in row] for row in found] == [[0, found[0][1].n], [0, found[1][1].n]]
    assert found[0][1].n + found[1][1].n == 1999
    inside = mass < edges[1]
    alone = spin_density(tops[inside], leptons[inside], weight[inside])
    np.testing.assert_allclose(found[0][1].values, alone.values)
    assert np.isnan(found[0][0].values).all()
    assert np.isnan(found[0][0].derived(chsh)).all()
    # Of the method's own values, where it has them.
    own = dataclasses.replace(pair, observables={"m_tt": np.full(2000, 310.0)})
    assert binned_spin_density(own, leptons, m_tt=edges)[0][0].n == 1999


def test_bad_input():
    tops, leptons, weight = sample(20)
    pair = TopPair(tops, np.ones(20, bool))
    with pytest.raises(TopRecoError, match="rising edges of m_tt expected"):
        binned_spin_density(pair, leptons, m_tt=[400, 300])
    with pytest.raises(TopRecoError, match="20 events but weights of shape"):
        binned_spin_density(pair, leptons, weight[:5], m_tt=[300, 400])
    with pytest.raises(TopRecoError, match="20 events but groups of shape"):
        spin_density(tops, leptons, weight, group=np.arange(3))
    with pytest.raises(TopRecoError, match="weights are not finite"):
        spin_density(tops, leptons, np.where(np.arange(20) == 3, np.nan, weight))
    assert np.isnan(spin_density(tops, leptons, -np.ones(20)).values).all()
    assert np.isnan(spin_density(tops[:1], leptons[:1]).covariance).all()
