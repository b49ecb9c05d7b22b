"""Smeared draws as a posterior: their mean is the prediction; methods without samples say so."""

import dataclasses
import pickle

import numpy as np
import pytest

import topreco
from topreco.config import SolverConfig
from topreco.core import fourvector
from topreco.core.constants import M_TOP
from topreco.core.errors import TopRecoError
from topreco.core.events import QUANTILE_LEVELS, Posterior, TopPair, toy_events
from topreco.core.method import Sampler, as_method, as_sampler, gives_samples
from topreco.core.observables import OBSERVABLES, pair_values
from topreco.core.posterior import mean_tops, sample_mean, sample_mode, sample_values
from topreco.reconstruction.analytic import ANALYTIC_METHODS
from topreco.reconstruction.load import load_methods
from topreco.reconstruction.wrappers import Median, Mode, QualityCut, Recalibrated
from topreco.solvers.smearing import DRAWN_OBSERVABLES

SMEARED = ("sonnenschein", "ellipse")
N_DRAWS = 30


@pytest.fixture(scope="module")
def events(toy):
    """Toy events, some of which are solved, one without b candidates."""
    events = toy(600)[0]
    b = np.tile([0, 1], (600, 1))
    b[3] = -1
    return dataclasses.replace(events, b_candidates=b)


def method(name, **settings):
    return topreco.load(name, threads=1, solvers=SolverConfig(**{"n_draws": N_DRAWS} | settings))


@pytest.mark.parametrize("pairing", ["candidates", "all"])
@pytest.mark.parametrize("name", SMEARED)
def test_the_mean_of_the_draws_is_the_prediction(events, name, pairing):
    sampler = method(name, pairing=pairing, m_top=171.0)
    assert isinstance(sampler, Sampler)
    pair, posterior = sampler(events), sampler.sample(events)
    assert posterior.log_weight.shape == (600, N_DRAWS)
    assert 50 < pair.valid.sum() < 600
    np.testing.assert_array_equal(posterior.valid, pair.valid)
    mean = sample_mean(posterior.samples[..., 1:], posterior.weight)
    np.testing.assert_allclose(mean, np.where(pair.valid[:, None, None], pair.p4[..., 1:], np.nan), atol=1e-8)
    np.testing.assert_allclose(mean_tops(posterior, 171.0)[pair.valid], pair.p4[pair.valid], rtol=1e-10)
    # The quality is the sum of weights, and the spread that of the momenta.
    np.testing.assert_allclose(np.exp(posterior.log_weight).sum(axis=1), pair.quality, rtol=1e-10)
    spread = sample_mean((posterior.samples[..., 1:] - mean[:, None]) ** 2, posterior.weight) ** 0.5
    np.testing.assert_allclose(
        spread[pair.valid], pair.uncertainty[pair.valid][..., 1:], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", SMEARED)
def test_draws_are_on_shell_or_have_no_weight(events, name):
    posterior = method(name).sample(events)
    solved = posterior.log_weight > -np.inf
    assert 0 < solved.mean() < 1
    np.testing.assert_allclose(fourvector.mass(posterior.samples[solved]), 172.5, rtol=1e-6)
    assert np.isnan(posterior.samples[~solved]).all()
    assert np.isfinite(posterior.log_weight[solved]).all()


def test_quantiles_are_those_of_the_draws(events):
    sampler = method("sonnenschein")
    pair, posterior = sampler(events), sampler.sample(events)
    values = sample_values(posterior, events.lepton_p4, DRAWN_OBSERVABLES)
    for i in np.flatnonzero(pair.valid)[:40]:
        for name in DRAWN_OBSERVABLES:
            order = np.argsort(values[name][i])
            reached = np.cumsum(posterior.weight[i, order])
            expected = values[name][i, order[np.searchsorted(reached, QUANTILE_LEVELS)]]
            np.testing.assert_allclose(pair.quantiles[name][i], expected, rtol=1e-9, err_msg=name)


def test_draws_depend_on_the_event_alone(events):
    sampler = method("sonnenschein")
    whole = sampler.sample(events)
    for other in (
        Posterior.concatenate([sampler.sample(events[:100]), sampler.sample(events[100:])]),
        pickle.loads(pickle.dumps(sampler)).sample(events),
        topreco.load("sonnenschein", threads=2, solvers=sampler.config).sample(events),
    ):
        np.testing.assert_array_equal(other.samples, whole.samples)
        np.testing.assert_array_equal(other.log_weight, whole.log_weight)
    # Fewer draws are the first of them.
    few = sampler.sample(events, 10)
    np.testing.assert_array_equal(few.samples, whole.samples[:, :10])
    assert sampler.sample(events, 40).log_weight.shape == (600, 40)
    assert len(sampler.sample(events[:0])) == 0


def test_observables_of_the_draws(events):
    posterior = method("sonnenschein").sample(events)
    values = sample_values(posterior, events.lepton_p4, OBSERVABLES)
    assert all(np.isfinite(values[name][posterior.weight > 0]).all() for name in OBSERVABLES)


@pytest.mark.parametrize("name", [name for name in ANALYTIC_METHODS if name not in SMEARED])
def test_methods_without_samples(events, name):
    unsmeared = topreco.load(name, threads=1)
    assert not gives_samples(unsmeared)
    for ask in (lambda: unsmeared.sample(events), lambda: as_sampler(unsmeared)):
        with pytest.raises(TopRecoError, match=f"^samples: method '{name}' gives none; .* expected$"):
            ask()


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_a_number_of_samples_that_cannot_be(events, n):
    with pytest.raises(TopRecoError, match=rf"samples: {n!r} found, a number of 1 or more expected"):
        method("sonnenschein").sample(events, n)


class Own:
    """The least that gives samples."""

    name = "own"

    def __call__(self, events):
        return TopPair(np.ones((len(events), 2, 4)), np.ones(len(events), bool), quality=np.ones(len(events)))

    def sample(self, events, n_samples=None):
        k = n_samples or 5
        return Posterior(np.ones((len(events), k, 2, 4)), np.zeros((len(events), k)))


def test_samples_of_wrapped_methods():
    events, own = toy_events(4), Own()
    for wrapped in (as_method(own), QualityCut(own, 0.0)):
        assert gives_samples(wrapped)
        assert as_sampler(wrapped).sample(events, 7).log_weight.shape == (4, 7)
    for without in (as_method(topreco.load("loose")), QualityCut(topreco.load("loose"), 0.0)):
        assert not gives_samples(without)
    # Samples of another response than that of the predictions would mislead.
    assert not gives_samples(Recalibrated(own, None))


# ---- summaries -------------------------------------------------------------------------------------------


def test_summaries(events):
    config = SolverConfig(n_draws=N_DRAWS)
    mean, median, mode = (
        topreco.load("sonnenschein", threads=1, solvers=config, quantiles=False, summary=summary)
        for summary in ("mean", "median", "mode")
    )
    assert len({each.fingerprint for each in (mean, median, mode)}) == 3
    assert {each.name for each in (mean, median, mode)} == {"sonnenschein"}
    assert all(isinstance(each, topreco.Method) and gives_samples(each) for each in (median, mode))
    plain, pair = mean(events), median(events)
    assert plain.observables is None
    np.testing.assert_array_equal(pair.p4, plain.p4)
    assert set(pair.observables) == set(DRAWN_OBSERVABLES)
    values = pair_values(pair, events.lepton_p4, OBSERVABLES)
    expected = pair_values(plain, events.lepton_p4, OBSERVABLES)
    speed = np.sqrt(1 - (2 * M_TOP / pair.quantiles["m_tt"][:, 2]) ** 2)
    expected |= {"beta_t": speed, "relative_velocity": 2 * speed / (1 + speed**2)}  # those of the median mass
    for name, column in values.items():
        wanted = pair.quantiles[name][:, 2] if name in DRAWN_OBSERVABLES else expected[name]
        np.testing.assert_allclose(column, wanted, rtol=1e-12, err_msg=name)
    posterior = mode.sample(events)
    pair = mode(events)
    of_samples = sample_values(posterior, events.lepton_p4, OBSERVABLES)
    for name in OBSERVABLES:
        wanted = sample_mode(of_samples[name], posterior.weight)
        np.testing.assert_array_equal(pair.observables[name], wanted, err_msg=name)
    assert np.isfinite(pair.observables["m_tt"][pair.valid]).all()
    assert len(mode(events[:0])) == 0


def test_modes_do_not_depend_on_blocks(events, monkeypatch):
    mode = Mode(method("sonnenschein"))
    whole = mode(events[:50]).observables
    monkeypatch.setattr("topreco.reconstruction.wrappers._BLOCK", 7)
    for name, column in mode(events[:50]).observables.items():
        np.testing.assert_array_equal(column, whole[name])


def test_a_method_without_a_posterior_keeps_its_values(events, toy_model):
    for source in ("loose", "ellipse_closest", toy_model):
        plain = topreco.load(source, threads=1, quantiles=False)(events)
        for summary in ("median", "mode"):
            pair = topreco.load(source, threads=1, summary=summary)(events)
            assert pair.observables is None
            np.testing.assert_array_equal(pair.p4, plain.p4)
    with pytest.raises(TopRecoError, match="samples: method 'loose' gives none"):
        Mode(topreco.load("loose"))


def test_medians_take_the_place_of_means():
    quantiles = np.tile([1.0, 2.0, 3.0, 5.0, 8.0], (4, 1))

    class Posteriors(Own):
        def __call__(self, events):
            own = {"m_tt": np.full(len(events), 4.0), "pt_tt": np.full(len(events), 9.0)}
            return dataclasses.replace(
                super().__call__(events), observables=own, quantiles={"m_tt": quantiles}
            )

    pair = Median(Posteriors())(toy_events(4))
    assert pair.observables["m_tt"].tolist() == [3.0] * 4
    assert pair.observables["pt_tt"].tolist() == [9.0] * 4


def test_methods_of_ones_own_keep_their_values():
    """The summary belongs to what is loaded, as the other settings do."""
    own, loaded = load_methods([Own(), "ellipse"], threads=1, summary="median")
    assert own(toy_events(3)).observables is None
    assert isinstance(loaded, Median)
    cut = load_methods(["ellipse"], threads=1, summary="median", min_quality={"ellipse": 0.1})[0]
    assert isinstance(cut, QualityCut)
    assert isinstance(cut.method, Median)


def test_unknown_summaries():
    with pytest.raises(TopRecoError, match="summary: 'best' found, allowed are mean, median, mode"):
        topreco.load("loose", summary="best")
