"""Methods made of samples: every summary, priors whose effect is known exactly, and settings."""

import dataclasses

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.core.events import Posterior, TopPair, toy_events
from topreco.core.fourvector import from_three_momentum, mass
from topreco.core.method import Method, Sampler
from topreco.core.observables import OBSERVABLES
from topreco.core.posterior import effective_samples, observable_mean, sample_values
from topreco.core.prior import M_TT_EDGES, PT_TOP_EDGES, Prior, Spectra
from topreco.reconstruction.posterior import FromSamples

SHAPE = (len(M_TT_EDGES) - 1, len(PT_TOP_EDGES) - 1)
CENTRES = (M_TT_EDGES[1:] + M_TT_EDGES[:-1]) / 2
UNIFORM = np.diff(M_TT_EDGES)[:, None] * np.diff(PT_TOP_EDGES)
SPECTRA = Spectra(np.exp(-CENTRES / 150)[:, None] * UNIFORM, np.ones(SHAPE))


class Draws:
    """Samples of any momenta, of an event of the same seed always."""

    name = "draws"
    uses_event_key = True
    fingerprint = "draws"
    spectra = None

    def sample(self, events, n_samples=None):
        k = 10 if n_samples is None else n_samples
        momentum = np.stack([np.random.default_rng(int(e)).normal(0, 150, (k, 2, 3)) for e in events.event])
        log_weight = np.zeros((len(events), k))
        log_weight[:, -1] = -np.inf
        return Posterior(from_three_momentum(momentum, 172.5), log_weight)

    def __call__(self, events):
        return TopPair(np.full((len(events), 2, 4), np.nan), np.zeros(len(events), bool))


class Trained(Draws):
    spectra = SPECTRA


EVENTS = toy_events(40)


def test_it_is_a_sampler():
    method = FromSamples(Draws())
    assert isinstance(method, Method)
    assert isinstance(method, Sampler)
    assert method.name == "draws"
    assert method.uses_event_key
    assert FromSamples(Draws(), name="other").name == "other"


def test_without_prior_the_summaries_are_those_of_the_samples():
    events = EVENTS
    posterior = Draws().sample(events, 64)
    values = sample_values(posterior, events.lepton_p4, OBSERVABLES)
    pairs = {name: FromSamples(Draws(), summary=name)(events) for name in ("mean", "median", "mode")}
    counted = slice(0, 63)
    for name in OBSERVABLES:
        mean = values[name][:, counted].mean(axis=1)
        if OBSERVABLES[name].relative:
            mean = np.exp(np.log(values[name][:, counted]).mean(axis=1))
        np.testing.assert_allclose(pairs["mean"].observables[name], mean, atol=1e-9)
        quantiles = pairs["median"].quantiles[name]
        np.testing.assert_array_equal(pairs["median"].observables[name], quantiles[:, 2])
        np.testing.assert_allclose(quantiles[:, 2], np.median(values[name][:, counted], axis=1), atol=1e-9)
        assert (np.diff(quantiles, axis=1) >= 0).all()
    assert not np.array_equal(pairs["mode"].observables["m_tt"], pairs["median"].observables["m_tt"])
    pair = pairs["mean"]
    np.testing.assert_allclose(mass(pair.p4), 172.5)
    np.testing.assert_allclose(pair.p4[..., 1:], posterior.samples[:, counted, :, 1:].mean(axis=1))
    np.testing.assert_allclose(pair.uncertainty, posterior.samples[:, counted].std(axis=1))
    assert pair.valid.all()
    assert np.isfinite(pair.quality).all()


def test_a_prior_weights_the_samples():
    prior = Prior.flat(345, 900)
    method = FromSamples(Trained(), prior=prior)
    posterior, plain = method.sample(EVENTS), Trained().sample(EVENTS, 64)
    np.testing.assert_array_equal(posterior.samples, plain.samples)
    ratio = prior.relative_to(SPECTRA).log_ratio(plain.samples)
    np.testing.assert_array_equal(posterior.log_weight, plain.log_weight + ratio)
    m_tt = sample_values(posterior, EVENTS.lepton_p4, ["m_tt"])["m_tt"]
    np.testing.assert_array_equal(
        method(EVENTS).observables["m_tt"], observable_mean("m_tt", m_tt, posterior.weight)
    )
    assert (m_tt[posterior.weight > 0] <= 900).all()
    number = effective_samples(posterior)
    assert (number < effective_samples(plain)).all()
    np.testing.assert_allclose(effective_samples(plain), 63)


def test_events_beyond_the_prior_are_not_valid():
    pair = FromSamples(Trained(), prior=Prior.flat(345, 345.001))(EVENTS)
    assert not pair.valid.any()
    assert np.isnan(pair.p4).all()
    assert np.isnan(pair.observables["m_tt"]).all()
    assert (
        effective_samples(FromSamples(Trained(), prior=Prior.flat(345, 345.001)).sample(EVENTS)) == 0
    ).all()


def test_chunks_change_nothing(monkeypatch):
    one = FromSamples(Draws())(EVENTS)
    monkeypatch.setattr("topreco.reconstruction.posterior._CHUNK", 7)
    many = FromSamples(Draws())(EVENTS)
    np.testing.assert_array_equal(one.p4, many.p4)
    np.testing.assert_array_equal(one.observables["c_hel"], many.observables["c_hel"])
    assert len(FromSamples(Trained(), prior=Prior.flat())(EVENTS[:1])) == 1


def test_exact_gaussian_posterior_under_another_prior():
    """x = ln m with a normal prior and normal noise: a normal posterior, before and after reweighting."""
    rng = np.random.default_rng(3)
    n, k, noise = 200, 500, 0.08
    old, new, width = np.log(600), np.log(650), 0.12
    truth = rng.normal(new, width, n)
    seen = truth + rng.normal(0, noise, n)
    variance = 1 / (1 / width**2 + 1 / noise**2)

    def posterior_mean(prior):
        return variance * (prior / width**2 + seen / noise**2)

    class Exact(Draws):
        def sample(self, events, n_samples=None):
            centre = posterior_mean(old)[events.event.astype(int), None]
            m_tt = np.exp(centre + np.sqrt(variance) * np.random.default_rng(4).normal(size=(len(events), k)))
            pz = np.sqrt(np.maximum(m_tt**2 / 4 - 172.5**2, 0))
            momentum = np.zeros((*m_tt.shape, 2, 3))
            momentum[..., 0, 2], momentum[..., 1, 2] = pz, -pz
            return Posterior(from_three_momentum(momentum, 172.5), np.zeros(m_tt.shape))

    def spectrum(centre):
        fine = np.exp(rng.normal(centre, width, 2_000_000))
        cells = np.zeros(SHAPE)
        cells[:, 0] = np.histogram(fine, M_TT_EDGES)[0]
        return Spectra(cells, cells)

    prior = Prior.from_spectra(spectrum(new)).relative_to(spectrum(old))
    events = toy_events(n)
    median = FromSamples(Exact(), summary="median", n_samples=k, prior=prior)(events).observables["m_tt"]
    difference = np.log(median) - posterior_mean(new)
    # Error of a median of k samples of this width, and the steps of the bins, which are 4 % wide.
    assert abs(difference.mean()) < 0.002
    assert difference.std() < 0.006
    # The shift that the prior makes is many times that.
    assert (posterior_mean(new) - posterior_mean(old)).mean() > 0.02


def test_fingerprint_knows_every_setting():
    base = {"summary": "mean", "n_samples": 64, "prior": Prior.flat()}
    changed = [
        {},
        {"summary": "mode"},
        {"n_samples": 32},
        {"prior": None},
        {"prior": Prior.flat(high=1000.0)},
        {"prior": dataclasses.replace(Prior.flat(), max_ratio=10.0)},
    ]
    prints = [FromSamples(Trained(), **(base | change)).fingerprint for change in changed]
    assert len(set(prints)) == len(changed)
    assert FromSamples(Trained(), **base, name="x").fingerprint == prints[0]


def test_errors():
    with pytest.raises(TopRecoError, match="gives none"):
        FromSamples(lambda events: None)
    with pytest.raises(TopRecoError, match="summary: 'best', one of mean, median, mode"):
        FromSamples(Draws(), summary="best")
    with pytest.raises(TopRecoError, match="n_samples: 0"):
        FromSamples(Draws(), n_samples=0)
    with pytest.raises(TopRecoError, match="'draws' was trained with are unknown"):
        FromSamples(Draws(), prior=Prior.flat())
