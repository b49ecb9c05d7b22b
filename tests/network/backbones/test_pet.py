"""The Point-Edge Transformer: coordinates, neighbours and conditions. Laws of all backbones are elsewhere."""

import numpy as np
import pytest
import torch

from topreco.config import ConfigError, ModelConfig, build_config
from topreco.core import fourvector
from topreco.core.events import toy_events
from topreco.network.backbones.pet import LocalEdges, coordinates, pair_features
from topreco.network.model_file import load_model, save_model
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

SIZES = {"kind": "pet", "blocks": 1, "channels": 32, "heads": 2, "neighbours": 3}


def configure(**fields):
    return build_config(ModelConfig, {"backbone": SIZES | fields.pop("backbone", {}), **fields}, "test")


def network(**fields):
    return TopNetwork(configure(**fields)).double().eval().requires_grad_(False)


def momenta(n=40, tokens=5, mass=3.0):
    p = torch.randn(n, tokens, 3, dtype=torch.float64)
    return fourvector.from_three_momentum(p, mass)


def test_pairs_are_those_of_massless_objects():
    p4 = momenta()
    features, distance = pair_features(coordinates(p4, torch.ones(p4.shape[:2], dtype=torch.bool)))
    a, b = p4[:, 1].numpy(), p4[:, 3].numpy()
    delta_r = fourvector.delta_r(a, b)
    massless = fourvector.from_three_momentum(p4[..., 1:], 0.0).numpy()
    mass2 = fourvector.mass_squared(massless[:, 1] + massless[:, 3])
    smaller = np.minimum(fourvector.pt(a), fourvector.pt(b))
    expected = np.log([mass2, delta_r, smaller * delta_r]).T
    np.testing.assert_allclose(features[:, 1, 3], expected, rtol=1e-6)
    np.testing.assert_allclose(features[:, 3, 1], expected, rtol=1e-6)
    np.testing.assert_allclose(distance[:, 1, 3], delta_r**2, rtol=1e-9)
    # An object is no neighbour of itself.
    assert distance.diagonal(dim1=1, dim2=2).isinf().all()
    assert not features.diagonal(dim1=1, dim2=2).any()


def test_azimuth_is_wrapped():
    phi = torch.tensor([np.pi - 0.1, -np.pi + 0.1], dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    p4 = fourvector.from_pt_eta_phi_mass(50 * one, 0.5 * one, phi, 0 * one)[None]
    _, distance = pair_features(coordinates(p4, torch.ones(1, 2, dtype=torch.bool)))
    assert distance[0, 0, 1].sqrt().item() == pytest.approx(0.2)


def test_met_and_what_has_no_momentum_are_conditions(inputs):
    model = network(spurions={"embed": "token"})
    tokens = model.encoder.tokens(inputs)
    seen = []
    model.encoder.backbone.edges.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    model(inputs)
    neighbours = seen[0].isfinite().any(-1)
    met = model.encoder.jets.stop
    assert not neighbours[:, met:].any()
    objects = tokens.mask.clone()
    objects[:, met] = False
    assert torch.equal(neighbours[:, : objects.shape[1]], objects)


def test_neighbours_are_the_nearest_and_ties_count_alike():
    torch.manual_seed(2)
    layer = LocalEdges(4, 2).double()
    h = torch.randn(1, 4, 4, dtype=torch.float64)
    pairs = torch.randn(1, 4, 4, 3, dtype=torch.float64)
    distance = torch.full((1, 4, 4), torch.inf, dtype=torch.float64)

    def mean(*others):
        edges = layer.own(h)[:, :1] + layer.other(h)[:, list(others)] + layer.pair(pairs)[:, 0, list(others)]
        return layer.out(torch.nn.functional.gelu(edges).mean(1))[0]

    with torch.no_grad():
        for row, others in {
            (1.0, 2.0, 3.0): (1, 2),
            (3.0, 1.0, 2.0): (2, 3),
            (1.0, 2.0, 2.0): (1, 2, 3),
            (torch.inf, torch.inf, 2.0): (3,),
        }.items():
            distance[0, 0, 1:] = torch.tensor(row, dtype=torch.float64)
            torch.testing.assert_close(layer(h, pairs, distance)[0, 0], mean(*others))
        # An object alone has no edges.
        assert not layer(h, pairs, distance)[0, 1].any()


def test_more_neighbours_than_objects(inputs):
    """All others then, whatever the number."""
    many, more = (network(backbone={"neighbours": k}) for k in (20, 50))
    more.load_state_dict(many.state_dict())
    assert torch.equal(many(inputs), more(inputs))
    few = network(backbone={"neighbours": 1})
    few.load_state_dict(many.state_dict())
    assert not torch.allclose(few(inputs), many(inputs))


def test_single_precision_is_near_double():
    model = network()
    inputs = Inputs.from_events(toy_events(256, max_jets=7, seed=2), torch.float64)
    double = model(inputs)
    single = model.float()(Inputs.from_events(toy_events(256, max_jets=7, seed=2)))
    assert single.isfinite().all()
    assert ((single - double).abs() / double[..., :1]).quantile(0.99) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_learns(dtype):
    model = TopNetwork(configure())
    inputs = Inputs.from_events(toy_events(32, max_jets=4, seed=3))
    target = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1) + inputs.jets[:, :2]
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
            pred = model(inputs)
        loss = torch.nn.functional.smooth_l1_loss(pred[..., 1:] / 100, target[..., 1:] / 100)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_objects_at_one_place_have_finite_gradients(inputs):
    """A jet on top of a lepton, and one without transverse momentum."""
    jets = inputs.jets.clone()
    jets[:, 0] = inputs.lepton_plus
    jets[:, 1, 1:3] = 0
    model = network().requires_grad_(True)
    model(inputs._replace(jets=jets)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_round_trip(inputs, tmp_path):
    model = network().float()
    save_model(tmp_path / "model.safetensors", [model], {})
    loaded = load_model(tmp_path / "model.safetensors").networks[0]
    inputs = inputs.map(lambda x: x.float() if x.is_floating_point() else x)
    with torch.no_grad():
        assert torch.equal(loaded(inputs), model(inputs))


def test_channels_are_shared_among_heads():
    with pytest.raises(ConfigError, match=r"channels: 30 found, a multiple of heads \(4\) expected"):
        configure(backbone={"channels": 30, "heads": 4})
    with pytest.raises(ConfigError, match=r"bivector, which backbone.kind 'pet' cannot see"):
        configure(spurions={"beam": "xyplane"})
