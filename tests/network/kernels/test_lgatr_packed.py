"""The kernels of L-GATr for the CPU against the package's own operations."""

import numpy as np
import pytest
import torch
from lgatr import extract_vector

from topreco.config import LGATrConfig
from topreco.core.events import toy_events
from topreco.network.backbones.lgatr import LGATrBackbone
from topreco.network.inference import predict
from topreco.network.kernels import lgatr_packed
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs


@pytest.fixture
def network():
    """Multivectors with 3 of 6 and scalars with 7 of 10 channels, so that no two numbers are the same."""
    torch.set_num_threads(1)
    config = LGATrConfig(blocks=2, multivector_channels=6, scalar_channels=10, heads=2)
    return LGATrBackbone(config, in_channels=3, in_scalars=7, out_vectors=2, out_scalars=5).network


def inputs(n=40, length=9, seed=0):
    """Multivectors, scalars, and a mask with one to `length` tokens in any place of each event."""
    draw = torch.Generator().manual_seed(seed)
    mv = torch.randn((n, length, 3, 16), generator=draw)
    s = torch.randn((n, length, 7), generator=draw)
    mask = torch.rand((n, length), generator=draw) < 0.7
    mask[:, length // 2] = True
    return mv, s, mask


def both(network, mv, s, mask):
    """Answers of the package and of the kernels to tokens that exist."""
    multivectors, scalars = network(mv, s, attn_mask=mask[:, None, None, :])
    expected = extract_vector(multivectors), scalars
    found = lgatr_packed.forward(network, mv, s, mask)
    return [[part[mask] for part in pair] for pair in (expected, found)]


def randomised(network):
    """The network with gains and biases that do something."""
    for name, parameter in network.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return network


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_answers_and_gradients_are_the_package_s(network, threads, size):
    """Also of multivectors so small that their norm is clamped."""
    torch.set_num_threads(threads)
    randomised(network)
    gradients, answers = [], []
    for which in range(2):
        mv, s, mask = inputs(n=100)
        mv *= size
        mv.requires_grad_()
        s.requires_grad_()
        out = both(network, mv, s, mask)[which]
        network.zero_grad()
        sum((part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in out).backward()
        answers.append(out)
        gradients.append([mv.grad, s.grad, *(parameter.grad for parameter in network.parameters())])
    for expected, found in zip(*answers, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_zero_large_and_lightlike_vectors(network):
    randomised(network).requires_grad_(False)
    mv, s, mask = inputs()
    for factor in (0.0, 1e3, 1e6):
        expected, found = both(network, mv * factor, s * factor, mask)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
    mv[..., 5:] = 0.0
    mv[..., 1] = mv[..., 2:5].norm(dim=-1)
    expected, found = both(network, mv, s, mask)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)


def test_what_is_masked_is_never_read(network):
    mv, s, mask = inputs()
    expected = lgatr_packed.forward(network, mv, s, mask)
    mv[~mask], s[~mask] = torch.nan, torch.nan
    for a, b in zip(expected, lgatr_packed.forward(network, mv, s, mask), strict=True):
        assert torch.equal(a, b)
        assert (b[~mask] == 0).all()


def test_a_bad_event_leaves_the_others_alone(network):
    mv, s, mask = inputs()
    expected = lgatr_packed.forward(network, mv, s, mask)
    mv[7] = torch.nan
    others = torch.arange(len(mv)) != 7
    for a, b in zip(expected, lgatr_packed.forward(network, mv, s, mask), strict=True):
        assert torch.equal(a[others], b[others])
        assert b[7][mask[7]].isnan().all()


def test_an_event_does_not_depend_on_the_others_bit_for_bit(network):
    mv, s, mask = inputs(n=100)
    whole = lgatr_packed.forward(network, mv, s, mask)
    part = lgatr_packed.forward(network, mv[20:70], s[20:70], mask[20:70])
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[20:70], b)


def test_no_events_and_events_without_tokens(network):
    mv, s, mask = inputs()
    out_v, out_s = lgatr_packed.forward(network, mv[:0], s[:0], mask[:0])
    assert out_v.shape == (0, 9, 2, 4)
    assert out_s.shape == (0, 9, 5)
    mask[3] = False
    out_v, out_s = lgatr_packed.forward(network, mv, s, mask)
    assert (out_v[3] == 0).all()
    assert out_v.isfinite().all()
    assert out_s.isfinite().all()


def test_where_kernels_apply(network):
    mv, _, _ = inputs()
    assert lgatr_packed.applies(network, mv)
    assert not lgatr_packed.applies(network, mv.double())
    dropping = LGATrBackbone(LGATrConfig(blocks=1, dropout=0.1), 3, 7, 2, 5)
    assert not lgatr_packed.applies(dropping.network, mv)


@pytest.mark.parametrize("readout", ["query_tokens", "mean"])
def test_whole_network_and_its_uncertainties(small_config, readout):
    network = TopNetwork(small_config("lgatr", readout=readout, quantiles={})).eval()
    events = toy_events(50, max_jets=8, seed=3)
    found = predict([network], events)
    for part in network.modules():
        if isinstance(part, LGATrBackbone):
            part.packed = False
    expected = predict([network], events)
    np.testing.assert_allclose(found.p4, expected.p4, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=1e-4, atol=1e-2)


def test_export_sees_operations_of_the_package_alone(small_config):
    network = TopNetwork(small_config("lgatr")).eval()
    inputs = Inputs.from_events(toy_events(4, seed=1), torch.float32)
    program = torch.export.export(network, (inputs,))
    torch.testing.assert_close(program.module()(inputs), network(inputs), rtol=1e-4, atol=1e-2)
