"""The transformer in local frames: what sets it apart. Skipped without the extra `lloca`."""

import sys

import pytest
import torch

from topreco.config import ConfigError, ModelConfig, build_config
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.network.model_file import load_model, save_model
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

TIGHT = {"rtol": 1e-7, "atol": 1e-5}
SPURIONS = {
    "none": {"beam": None, "time": False},
    "lightlike-channel": {"embed": "channel"},
    "lightlike-token": {"embed": "token"},
    "timelike-token": {"beam": "timelike", "embed": "token"},
    "spacelike-channel": {"beam": "spacelike", "embed": "channel"},
}


def configure(**fields):
    backbone = {"kind": "lloca", "blocks": 1, "channels": 32, "heads": 2} | fields.pop("backbone", {})
    return build_config(ModelConfig, {"backbone": backbone, **fields}, "test")


@pytest.fixture
def network():
    """A network in double precision."""
    pytest.importorskip("lloca", reason="needs the extra `lloca`")

    def make(**fields):
        return TopNetwork(configure(**fields)).double().eval().requires_grad_(False)

    return make


@pytest.mark.parametrize("spurions", SPURIONS.values(), ids=SPURIONS)
def test_lorentz_transformation_of_everything(network, inputs, lorentz, transform_multivectors, spurions):
    model = network(spurions=spurions)
    tokens = model.encoder.tokens(inputs)
    scale = model.encoder.scale(tokens)
    moved = model.forward_tokens(
        tokens._replace(p4=tokens.p4 @ lorentz.T),
        scale,
        transform_multivectors(lorentz, model.encoder.spurions),
    )
    expected = model.forward_tokens(tokens, scale) @ lorentz.T
    torch.testing.assert_close(moved, expected, **TIGHT)
    # Without moving the spurions it is another event.
    if spurions.get("beam", "lightlike"):
        alone = model.forward_tokens(tokens._replace(p4=tokens.p4 @ lorentz.T), scale)
        assert (alone - expected).abs().max() > 1e-3


def test_frames_are_lorentz_transformations(network, inputs):
    model = network()
    tokens = model.encoder.tokens(inputs)
    p4 = tokens.p4 / 100
    scalars = torch.randn(*tokens.mask.shape, model.encoder.backbone.frames.own.in_features, dtype=p4.dtype)
    frames = model.encoder.backbone.frames(p4, scalars, tokens.mask)
    metric = torch.diag(torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=p4.dtype))
    torch.testing.assert_close(
        frames @ metric @ frames.transpose(-1, -2), metric.expand_as(frames), rtol=0, atol=1e-6
    )
    assert (frames[..., 0, 0] >= 1).all()
    # Of each token its own.
    assert (frames[:, 0] - frames[:, 1]).abs().max() > 1e-3


def test_single_precision_is_near_double(network):
    model = network()
    inputs = Inputs.from_events(toy_events(256, max_jets=7, seed=2), torch.float64)
    single = model.float()(Inputs.from_events(toy_events(256, max_jets=7, seed=2)))
    difference = (single - model.double()(inputs)).abs() / single[..., :1]
    assert difference.quantile(0.99) < 1e-2
    assert single.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_it_learns(dtype):
    pytest.importorskip("lloca", reason="needs the extra `lloca`")
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


def test_round_trip(network, inputs, tmp_path):
    model = network().float()
    save_model(tmp_path / "model.safetensors", [model], {})
    loaded = load_model(tmp_path / "model.safetensors").networks[0]
    inputs = inputs.map(lambda x: x.float() if x.is_floating_point() else x)
    assert torch.equal(loaded(inputs), model(inputs))


def test_what_it_cannot_be(monkeypatch):
    with pytest.raises(ConfigError, match=r"spurions.beam: 'spacelike' with spurions.embed 'token'"):
        configure(spurions={"beam": "spacelike", "embed": "token"})
    with pytest.raises(ConfigError, match=r"bivector, which backbone.kind 'lloca' cannot see"):
        configure(spurions={"beam": "xyplane"})
    for name in ("lloca", "lloca.backbone", "lloca.backbone.transformer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TopRecoError, match=r"needs the extra: pip install 'topreco\[lloca\]'"):
        TopNetwork(configure())


def test_channels_are_shared_among_heads():
    with pytest.raises(ValueError, match=r"channels: 24 found, a multiple of 8 · heads \(16\) expected"):
        configure(backbone={"channels": 24})
