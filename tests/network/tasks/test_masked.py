"""Task `masked`: what is hidden stays hidden, noise, learning, and no truth."""

import dataclasses

import numpy as np
import pytest
import torch

from topreco.config import ConfigError, LossConfig, MaskedConfig, build_config
from topreco.core import fourvector
from topreco.core.events import toy_events
from topreco.network.model_file import load_model, save_model
from topreco.network.task import Evaluated
from topreco.network.tasks.augmentation import Augmentation
from topreco.network.tasks.masked import HIDE, NOISE, MaskedNetwork, MaskedTask, hidden_tokens, smeared
from topreco.network.tokens import Inputs

BACKBONES = {
    "lgatr_slim": {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1},
    "pet": {"kind": "pet", "blocks": 1, "channels": 16, "heads": 2},
}


def configure(backbone="pet", **fields):
    return build_config(MaskedConfig, {"backbone": BACKBONES[backbone], **fields}, "test")


def make_task(backbone="pet", augmentation=None, **fields):
    return MaskedTask(configure(backbone, **fields), LossConfig(), augmentation or Augmentation())


def drawn(task, columns, seed=1):
    n = len(columns["jet_mask"])
    return task.augment(columns, task.draw(n, torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_probabilities(probability):
    n, jets = 20_000, slice(2, 8)
    mask = torch.ones(n, 9, dtype=torch.bool)
    mask[:, jets] = torch.arange(6) < torch.randint(0, 7, (n, 1))
    hidden = hidden_tokens(mask, torch.rand(n, 9), jets, probability)
    assert not (hidden & ~mask).any()
    of_jets = hidden[:, jets].sum(1)
    assert of_jets.max() == 1
    some = mask[:, jets].any(1)
    for fraction in (hidden[:, 0], hidden[:, 1], hidden[:, 8], of_jets[some].bool()):
        assert fraction.double().mean().item() == pytest.approx(probability, abs=0.015)
    # Every jet of an event has the same chance.
    three = mask[:, jets].sum(1) == 3
    shares = hidden[three, 2:5].double().mean(0) / probability
    torch.testing.assert_close(shares, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.07, rtol=0)


def test_noise_acts_on_the_coordinates_of_objects():
    p4 = fourvector.from_pt_eta_phi_mass(
        *torch.tensor([[[40.0, 1.2, -2.0, 8.0], [30.0, -0.4, 3.1, 0.0]]], dtype=torch.float64).unbind(-1)
    )
    moved = smeared(p4, torch.tensor([[[0.1, 0.3, 0.2], [-0.2, 0.0, 0.1]]], dtype=torch.float64))
    found = fourvector.to_pt_eta_phi_mass(moved)
    np.testing.assert_allclose(found["pt"], [[40 * np.exp(0.1), 30 * np.exp(-0.2)]], rtol=1e-9)
    np.testing.assert_allclose(found["eta"], [[1.5, -0.4]], rtol=1e-9)
    np.testing.assert_allclose(found["phi"], [[-1.8, 3.2 - 2 * np.pi]], rtol=1e-9)
    np.testing.assert_allclose(found["mass"], [[8.0, 0.0]], atol=1e-5)
    torch.testing.assert_close(smeared(p4, torch.zeros(1, 2, 3, dtype=torch.float64)), p4)
    # MET stays transverse, and what has no momentum has none afterwards.
    met = torch.tensor([[[50.0, 30.0, 40.0, 0.0], [0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    assert not smeared(met, torch.full((1, 2, 3), 0.3, dtype=torch.float64))[..., 3].any()


@pytest.mark.parametrize("normalisation", ["constant", "event_mass"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_nothing_of_a_hidden_object_is_seen(backbone, normalisation):
    """Its momentum, b tag, flavour and features do not change what the network gives."""
    events = toy_events(64, max_jets=6, seed=3)
    task = make_task(backbone, normalisation={"kind": normalisation})
    columns = task.columns(events, None)
    network = task.build().eval()
    task.prepare(network, columns)
    inputs = Inputs.from_columns(columns)
    hide = torch.ones(64, 9)
    hide[:, 0] = hide[:, 3] = hide[:, 8] = 0.0
    noise = torch.randn(64, 9, 3)
    jets, btag, flavour = inputs.jets.clone(), inputs.jet_btag.clone(), inputs.lepton_flavour.clone()
    jets[:, 1], btag[:, 1], flavour[:, 0] = 2 * jets[:, 1], 0.5, 24 - flavour[:, 0]
    other = inputs._replace(
        lepton_plus=inputs.lepton_plus * 3,
        jets=jets,
        jet_btag=btag,
        jet_tagged=btag > 0.2,
        lepton_flavour=flavour,
        met=-inputs.met,
    )
    # The tag of the jets that are seen is as it was.
    other = other._replace(jet_tagged=torch.where(torch.arange(6) == 1, other.jet_tagged, inputs.jet_tagged))
    with torch.no_grad():
        one, two = network(inputs, hide, noise), network(other, hide, noise)
    there = one.hidden | one.noisy
    assert one.hidden[:, [0, 3, 8]].all()
    assert one.hidden.sum() == 3 * 64
    assert torch.equal(one.momenta[there], two.momenta[there])
    assert not torch.equal(one.measured, two.measured)
    # What is not hidden is seen.
    with torch.no_grad():
        three = network(inputs._replace(lepton_minus=inputs.lepton_minus * 1.1), hide, noise)
    assert not torch.equal(one.momenta[:, 0], three.momenta[:, 0])


def test_truth_is_never_looked_at(truth_of):
    events = toy_events(32, max_jets=4)
    task = make_task()
    with_truth, without = task.columns(events, truth_of(events)), task.columns(events, None)
    assert not task.needs_truth
    assert with_truth.keys() == without.keys()
    assert all(torch.equal(with_truth[name], without[name]) for name in without)


def test_padding_changes_nothing():
    events = toy_events(32, max_jets=6)
    short, long = (make_task(tokens={"max_jets": n}) for n in (6, 10))
    network = short.build().eval()
    wide = long.build().eval()
    wide.load_state_dict(network.state_dict())
    columns = Inputs.from_events(events)
    hide, noise = torch.rand(32, 9), torch.randn(32, 9, 3)
    # The four further jets come before MET.
    place = [*range(8), 0, 0, 0, 0, 8]
    with torch.no_grad():
        expected = network(columns, hide, noise).losses
        found = wide(columns, hide[:, place], noise[:, place]).losses
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_own_axes_or_rotated():
    events = toy_events(20, max_jets=4)
    columns = make_task().columns(events, None)
    own = make_task().seen(columns)
    assert own.lepton_plus[:, 2].abs().max() < 1e-4
    assert (own.lepton_minus[:, 2] > -1e-4).all()
    rotated = make_task(augmentation=Augmentation(rotation=True, reflection=True))
    assert torch.equal(rotated.seen(columns).lepton_plus, columns["lepton_plus"])
    changed = drawn(rotated, columns)
    assert not torch.allclose(changed["lepton_plus"][:, 1:3], columns["lepton_plus"][:, 1:3])
    torch.testing.assert_close(
        changed["met"].square().sum(1), columns["met"].square().sum(1), rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_learns_from_the_others(backbone):
    """MET that balances the leptons is found, and noise on it with it."""
    events = toy_events(200, max_jets=2, seed=5)
    balance = -(events.lepton_plus + events.lepton_minus)[:, 1:3]
    events = dataclasses.replace(events, met=balance, jet_mask=np.zeros_like(events.jet_mask))
    task = make_task(backbone, tokens={"max_jets": 2}, noise=0.05, hide=0.15)
    columns = task.columns(events, None)
    torch.manual_seed(3)
    network = task.build()
    task.prepare(network, columns)
    ones = torch.ones(200)

    def metrics():
        with torch.no_grad():
            return task.metrics([Evaluated(network, columns, ones, ones)])

    before = metrics()
    assert repr(metrics()) == repr(before)
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for step in range(100):
        loss, batch = task.loss(network, drawn(task, columns, step))
        assert batch is None
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    after = metrics()
    assert after["loss"] < 0.8 * before["loss"]
    size = np.sqrt((balance**2).sum(1).mean())
    assert after["hidden_met"] < 0.8 * size
    assert np.isnan(after["hidden_jet"])
    assert "RMS of hidden" in task.describe(after)


def test_metrics_of_no_events():
    assert make_task().metrics([]) == {}


def test_round_trip(tmp_path):
    task = make_task()
    network = task.build().eval()
    columns = task.columns(toy_events(8), None)
    task.prepare(network, columns)
    save_model(tmp_path / "m.safetensors", [network], {})
    model = load_model(tmp_path / "m.safetensors")
    assert model.kind == "masked"
    assert isinstance(model.networks[0], MaskedNetwork)
    columns = drawn(task, columns)
    with torch.no_grad():
        answers = [
            each(task.seen(columns), columns[HIDE], columns[NOISE]) for each in (network, *model.networks)
        ]
    assert torch.equal(answers[0].momenta, answers[1].momenta)


def test_a_repeated_jet_is_refused():
    with pytest.raises(ConfigError, match=r"tokens.b_candidates: 'token' found, which shows a jet"):
        configure(tokens={"b_candidates": "token"})
