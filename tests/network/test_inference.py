import dataclasses
import inspect
import subprocess
import sys
import typing

import numpy as np
import pytest
import torch

from topreco.config import LGATrSlimConfig, ModelConfig
from topreco.core.events import DileptonEvents, TopPair, toy_events
from topreco.core.fourvector import mass
from topreco.network import inference
from topreco.network.inference import predict
from topreco.network.splits import fold_of
from topreco.network.tasks.tops import TopNetwork

TINY = ModelConfig(
    backbone=LGATrSlimConfig(blocks=1, vector_channels=4, scalar_channels=8, heads=1, dropout=0.5),
    head="on_shell",
)


def networks(folds=1):
    torch.manual_seed(0)
    return [TopNetwork(TINY) for _ in range(folds)]


def test_returns_physical_pairs():
    events = toy_events(30)
    pair = predict(networks(), events)
    assert isinstance(pair, TopPair)
    assert pair.p4.shape == (30, 2, 4)
    assert pair.p4.dtype == np.float64
    assert pair.valid.dtype == np.bool_
    assert pair.valid.all()
    np.testing.assert_allclose(mass(pair.p4), 172.5, rtol=1e-2)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_batching_changes_nothing(batch_size):
    events, trained = toy_events(30), networks(3)
    expected = predict(trained, events)
    pair = predict(trained, events, batch_size=batch_size)
    np.testing.assert_allclose(pair.p4, expected.p4, rtol=1e-4, atol=1e-2)


def test_order_of_events_changes_nothing():
    events, trained = toy_events(30), networks(3)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_allclose(
        predict(trained, events[order]).p4, predict(trained, events).p4[order], rtol=1e-4, atol=1e-2
    )


def test_each_event_is_given_to_the_network_of_its_fold():
    events, trained = toy_events(60), networks(3)
    pair = predict(trained, events)
    alone = [predict([network], events) for network in trained]
    fold = fold_of(events, 3)
    assert set(fold) == {0, 1, 2}
    for i in range(3):
        np.testing.assert_allclose(pair.p4[fold == i], alone[i].p4[fold == i], rtol=1e-4, atol=1e-2)
        assert not np.allclose(alone[i].p4, alone[(i + 1) % 3].p4, rtol=1e-3)


@pytest.mark.parametrize("folds", [1, 2])
def test_no_events(folds):
    pair = predict(networks(folds), toy_events(3)[:0])
    assert pair.p4.shape == (0, 2, 4)
    assert pair.valid.shape == (0,)


@pytest.mark.parametrize("name", ["lepton_plus", "lepton_minus", "jets", "jet_btag", "met"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_events_that_are_not_finite_are_not_valid(name, value):
    events, trained = toy_events(5), networks()
    broken = getattr(events, name).copy()
    broken[2].flat[0] = value
    pair = predict(trained, dataclasses.replace(events, **{name: broken}))
    assert pair.valid.tolist() == [True, True, False, True, True]
    assert np.isnan(pair.p4[2]).all()
    keep = [0, 1, 3, 4]
    np.testing.assert_allclose(pair.p4[keep], predict(trained, events).p4[keep], rtol=1e-4, atol=1e-2)


def test_nothing_but_events_that_are_not_finite():
    events = toy_events(3)
    pair = predict(networks(), dataclasses.replace(events, met=np.full((3, 2), np.nan)))
    assert not pair.valid.any()
    assert np.isnan(pair.p4).all()


def test_padded_slots_may_hold_anything():
    events, trained = toy_events(5), networks()
    padded = ~events.jet_mask
    assert padded.any()
    other = dataclasses.replace(
        events,
        jets=np.where(padded[..., None], np.nan, events.jets),
        jet_btag=np.where(padded, np.inf, events.jet_btag),
    )
    pair = predict(trained, other)
    assert pair.valid.all()
    np.testing.assert_array_equal(pair.p4, predict(trained, events).p4)


def test_leaves_the_network_as_it_was():
    (network,) = trained = networks()
    network.train()
    first = predict(trained, toy_events(20))
    assert network.training
    # In evaluation mode there is no dropout.
    np.testing.assert_array_equal(predict(trained, toy_events(20)).p4, first.p4)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_cannot_depend_on_truth_or_weights():
    hints = typing.get_type_hints(predict)
    assert hints["events"] is DileptonEvents
    assert list(inspect.signature(predict).parameters) == ["networks", "events", "batch_size", "quantiles"]
    assert "Truth" not in vars(inference)
    events = toy_events(20)
    other = dataclasses.replace(events, weight=-3 * events.weight)
    trained = networks(2)
    np.testing.assert_array_equal(predict(trained, other).p4, predict(trained, events).p4)


def test_errors():
    with pytest.raises(ValueError, match="at least one network expected, got none"):
        predict([], toy_events(2))
    with pytest.raises(ValueError, match="batch_size 0 found, at least 1 expected"):
        predict(networks(), toy_events(2), batch_size=0)


TRAIN_AFTERWARDS = """
from topreco.config import LGATrConfig, ModelConfig
from topreco.core.events import toy_events
from topreco.network.tasks.tops import TopNetwork
from topreco.network.inference import predict
from topreco.network.tokens import Inputs

backbone = LGATrConfig(blocks=1, multivector_channels=2, scalar_channels=4, heads=1)
network = TopNetwork(ModelConfig(backbone=backbone))
predict([network], toy_events(3))
network(Inputs.from_events(toy_events(3))).sum().backward()
"""


def test_training_after_inference_in_one_process():
    """lgatr keeps its constants, which must not be those of inference alone."""
    subprocess.run([sys.executable, "-c", TRAIN_AFTERWARDS], check=True)
