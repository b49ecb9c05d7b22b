"""The kernels of L-GATr-slim for the CPU against the package's own operations."""

import numpy as np
import pytest
import torch
from lgatr import LGATrSlim

from topreco.config import LGATrSlimConfig
from topreco.core.events import toy_events
from topreco.network.backbones.lgatr_slim import LGATrSlimBackbone
from topreco.network.inference import predict
from topreco.network.kernels import slim_packed
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs


@pytest.fixture
def network():
    """Vectors with 3 of 10 and scalars with 7 of 12 channels, so that no two numbers are the same."""
    return LGATrSlim(
        num_blocks=2,
        in_v_channels=3,
        out_v_channels=2,
        hidden_v_channels=10,
        in_s_channels=7,
        out_s_channels=5,
        hidden_s_channels=12,
        num_heads=2,
    )


def inputs(n=40, length=9, seed=0):
    """Vectors, scalars, and a mask with one to `length` tokens in any place of each event."""
    draw = torch.Generator().manual_seed(seed)
    v = torch.randn((n, length, 3, 4), generator=draw)
    s = torch.randn((n, length, 7), generator=draw)
    mask = torch.rand((n, length), generator=draw) < 0.7
    mask[:, length // 2] = True
    return v, s, mask


def both(network, v, s, mask):
    """Answers of the package and of the kernels to tokens that exist."""
    expected = network(v, s, attn_mask=mask[:, None, None, :])
    found = slim_packed.forward(network, v, s, mask)
    return [[part[mask] for part in pair] for pair in (expected, found)]


def randomised(network):
    """The network with norms that do something."""
    for name, parameter in network.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return network


@pytest.mark.parametrize("threads", [1, 3])
def test_answers_and_gradients_are_the_package_s(network, threads):
    torch.set_num_threads(threads)
    randomised(network)
    gradients, answers = [], []
    for which in range(2):
        v, s, mask = inputs(n=100)
        v.requires_grad_()
        s.requires_grad_()
        out = both(network, v, s, mask)[which]
        network.zero_grad()
        sum((part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in out).backward()
        answers.append(out)
        gradients.append([v.grad, s.grad, *(parameter.grad for parameter in network.parameters())])
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_large_and_lightlike_vectors_and_gates_beyond_the_exponential(network):
    randomised(network).requires_grad_(False)
    v, s, mask = inputs()
    for factor in (0.0, 1e3, 1e6):
        expected, found = both(network, v * factor, s * factor, mask)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
    v[..., 0] = v[..., 1:].norm(dim=-1)
    expected, found = both(network, v, s, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_is_masked_is_never_read(network):
    v, s, mask = inputs()
    expected = slim_packed.forward(network, v, s, mask)
    v[~mask], s[~mask] = torch.nan, torch.nan
    for a, b in zip(expected, slim_packed.forward(network, v, s, mask), strict=True):
        assert torch.equal(a, b)
        assert (b[~mask] == 0).all()


def test_a_bad_event_leaves_the_others_alone(network):
    v, s, mask = inputs()
    expected = slim_packed.forward(network, v, s, mask)
    v[7] = torch.nan
    others = torch.arange(len(v)) != 7
    for a, b in zip(expected, slim_packed.forward(network, v, s, mask), strict=True):
        assert torch.equal(a[others], b[others])
        assert b[7][mask[7]].isnan().all()


def test_an_event_does_not_depend_on_the_others_bit_for_bit(network):
    v, s, mask = inputs(n=100)
    whole = slim_packed.forward(network, v, s, mask)
    part = slim_packed.forward(network, v[20:70], s[20:70], mask[20:70])
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[20:70], b)


def test_no_events_and_events_without_tokens(network):
    v, s, mask = inputs()
    out_v, out_s = slim_packed.forward(network, v[:0], s[:0], mask[:0])
    assert out_v.shape == (0, 9, 2, 4)
    assert out_s.shape == (0, 9, 5)
    mask[3] = False
    out_v, out_s = slim_packed.forward(network, v, s, mask)
    assert (out_v[3] == 0).all()
    assert out_v.isfinite().all()
    assert out_s.isfinite().all()


def test_where_kernels_apply(network, monkeypatch):
    v, _, _ = inputs()
    assert slim_packed.applies(network, v)
    assert not slim_packed.applies(network, v.double())
    assert not slim_packed.applies(network, v.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not slim_packed.applies(network, v)
    dropping = LGATrSlimBackbone(LGATrSlimConfig(blocks=1, dropout=0.1), 3, 7, 2, 5)
    assert not slim_packed.applies(dropping.network, v)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not slim_packed.applies(network, v)


@pytest.mark.parametrize("readout", ["query_tokens", "mean"])
def test_whole_network_and_its_uncertainties(small_config, readout):
    network = TopNetwork(small_config("lgatr_slim", readout=readout, quantiles={})).eval()
    events = toy_events(50, max_jets=8, seed=3)
    found = predict([network], events)
    for part in network.modules():
        if isinstance(part, LGATrSlimBackbone):
            part.packed = False
    expected = predict([network], events)
    np.testing.assert_allclose(found.p4, expected.p4, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=1e-4, atol=1e-2)


def test_export_sees_operations_of_the_package_alone(small_config):
    network = TopNetwork(small_config("lgatr_slim")).eval()
    inputs = Inputs.from_events(toy_events(4, seed=1), torch.float32)
    program = torch.export.export(network, (inputs,))
    torch.testing.assert_close(program.module()(inputs), network(inputs), rtol=1e-4, atol=1e-2)
