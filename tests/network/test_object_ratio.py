"""Ratios of weighted events from reconstructed objects: step 1 of OmniFold."""

import dataclasses

import numpy as np
import pytest
import torch

from topreco.config.omnifold import ObjectRatioConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.network.object_ratio import ObjectRatio
from topreco.network.task import TrainingError

TINY = {
    "backbone": {"kind": "transformer", "blocks": 1, "channels": 16, "heads": 2},
    "scalars": 8,
    "hidden": 8,
}


def config(**changes):
    content = {"model": TINY, "epochs": 12, "batch_size": 100, "learning_rate": 5e-3}
    return ObjectRatioConfig.model_validate(content | changes)


@pytest.fixture(scope="module")
def events():
    return toy_events(3000, max_jets=3, seed=1)


@pytest.fixture(scope="module")
def learnt(events):
    """Numerator and denominator are the same events, with a known ratio of weights, whose sum is 2 to 1."""
    log_weight = 1.2 * np.tanh(events.lepton_plus[:, 1] / 40)
    a = np.exp(log_weight)
    a *= 2 * len(events) / a.sum()
    rows = np.arange(2000)
    found = ObjectRatio(config(), events)(rows, a[:2000], np.ones(2000), (1, 2))
    return found, np.log(a)


def test_a_known_ratio_of_weights(learnt):
    log_ratio, true = learnt
    unseen = np.arange(2000, 3000)
    assert np.corrcoef(log_ratio(unseen), true[unseen])[0, 1] > 0.8
    assert np.exp(log_ratio(unseen)).mean() == pytest.approx(2, rel=0.15)


def test_noise_does_not_end_the_training():
    """Different events in A and B: without batch normalisation this one ends with the same for all events."""
    events = toy_events(6000, max_jets=3, seed=1)
    true = 0.5 * np.tanh((events.lepton_plus[:, 1] - events.lepton_minus[:, 1]) / 40)
    in_a = np.random.default_rng(1).random(len(events)) < 1 / (1 + np.exp(-true))
    network = TINY | {"backbone": TINY["backbone"] | {"blocks": 2}}
    fit = ObjectRatio(config(model=network, learning_rate=1e-2, epochs=6, batch_size=50), events)
    rows = np.arange(len(events))
    found = fit(rows, 1.0 * in_a, 1.0 * ~in_a, (1,))(rows)
    assert np.corrcoef(found, true)[0, 1] > 0.85


def test_a_single_event_at_a_time(events):
    with pytest.raises(TrainingError, match="batch_size: one event at a time"):
        ObjectRatio(config(batch_size=1), events)(np.arange(9), np.ones(9), np.ones(9), (1,))


def test_the_seed_alone_decides(learnt, events):
    """Neither torch's generator nor what was called before."""
    rows, a = np.arange(300), np.linspace(0.5, 1.5, 300)
    model = ObjectRatio(config(epochs=1), events)
    first = model(rows, a, np.ones(300), (3,))(rows)
    state = torch.get_rng_state()
    again = model(rows, a, np.ones(300), (3,))(rows)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(first, again)
    assert (model(rows, a, np.ones(300), (4,))(rows) != first).any()


def test_events_need_what_the_networks_see(events):
    wanted = TINY | {"tokens": {"btag": "working_points"}}
    without = dataclasses.replace(events, jet_working_points=None)
    with pytest.raises(TopRecoError, match="working points"):
        ObjectRatio(config(model=wanted), without)


@pytest.mark.parametrize("changes", [{"inputs": "generated"}, {"members": 2}])
def test_step_1_compares_with_data(changes):
    with pytest.raises(ValueError, match="inputs 'objects' expected"):
        config(model=TINY | changes)
