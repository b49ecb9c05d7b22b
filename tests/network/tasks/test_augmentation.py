"""Augmentation by hand, and as a symmetry of networks that have it built in."""

import math

import pytest
import torch

from topreco.core.events import toy_events
from topreco.network.tasks.augmentation import augment
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs


@pytest.fixture
def events():
    return toy_events(100, max_jets=5)


def test_augmentation_by_hand(events, truth_of):
    inputs, tops = Inputs.from_events(events[:2]), torch.from_numpy(truth_of(events[:2]).tops).float()
    # A quarter turn of the first event takes x to y; the second is reflected.
    turned, turned_tops = augment(inputs, tops, torch.tensor([math.pi / 2, 0.0]), torch.tensor([False, True]))
    e, x, y, z = tops[0].unbind(-1)
    torch.testing.assert_close(turned_tops[0], torch.stack([e, -y, x, z], -1), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(turned_tops[1], tops[1] * torch.tensor([1.0, 1.0, 1.0, -1.0]))
    torch.testing.assert_close(
        turned.met[0], torch.stack([-inputs.met[0, 1], inputs.met[0, 0]]), rtol=1e-5, atol=1e-3
    )
    torch.testing.assert_close(turned.met[1], inputs.met[1])
    for name in ("lepton_flavour", "jet_mask", "jet_btag", "jet_tagged", "b_candidates"):
        assert torch.equal(getattr(turned, name), getattr(inputs, name))


def test_charge_exchange_by_hand(events, truth_of):
    inputs, tops = Inputs.from_events(events[:2]), torch.from_numpy(truth_of(events[:2]).tops).float()
    exchanged, exchanged_tops = augment(inputs, tops, exchange=torch.tensor([False, True]))
    other = inputs.charge_exchanged()
    for name, found in exchanged.columns().items():
        assert torch.equal(found[0], getattr(inputs, name)[0])
        assert torch.equal(found[1], getattr(other, name)[1])
    assert not torch.equal(exchanged.lepton_plus[1], inputs.lepton_plus[1])
    assert torch.equal(exchanged_tops[0], tops[0])
    assert torch.equal(exchanged_tops[1], tops[1].flip(0))


def test_augmentation_transforms_input_and_target_alike(events, small_config):
    """A network with these symmetries predicts the transformed tops from the transformed inputs."""
    network = TopNetwork(small_config("lgatr_slim", spurions={"embed": "token"})).double()
    inputs = Inputs.from_events(events, torch.float64)
    angle, reflect = torch.rand(100, dtype=torch.float64) * 6, torch.rand(100) < 0.5
    with torch.no_grad():
        turned, expected = augment(inputs, network(inputs), angle, reflect)
        torch.testing.assert_close(network(turned), expected, rtol=1e-6, atol=1e-4)


def test_no_augmentation_is_the_identity(events, truth_of):
    inputs, tops = Inputs.from_events(events), torch.from_numpy(truth_of(events).tops).float()
    same, same_tops = augment(inputs, tops)
    assert torch.equal(same_tops, tops)
    assert all(torch.equal(field, getattr(inputs, name)) for name, field in same.columns().items())
