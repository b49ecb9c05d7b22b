"""The kernels of L-GATr and L-GATr-slim for the CPU against the package's own operations."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lgatr import extract_vector

from topreco.config import LGATrConfig, LGATrSlimConfig
from topreco.core.events import toy_events
from topreco.network.backbones.lgatr import LGATrBackbone
from topreco.network.backbones.lgatr_slim import LGATrSlimBackbone
from topreco.network.inference import predict
from topreco.network.kernels import lgatr_packed, slim_packed
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

CASES = {
    "lgatr": SimpleNamespace(
        kernels=lgatr_packed,
        backbone=LGATrBackbone,
        config=LGATrConfig(blocks=2, multivector_channels=6, scalar_channels=10, heads=2),
        components=16,
        tolerance=1e-4,
    ),
    "lgatr_slim": SimpleNamespace(
        kernels=slim_packed,
        backbone=LGATrSlimBackbone,
        config=LGATrSlimConfig(blocks=2, vector_channels=10, scalar_channels=12, heads=2),
        components=4,
        tolerance=1e-5,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    """Kind of network, with 3 vectors and 7 scalars in, 2 and 5 out, so that no two numbers are the same."""
    return CASES[request.param]


@pytest.fixture
def network(case):
    """The package's network, with gains and biases that do something."""
    network = case.backbone(case.config, in_channels=3, in_scalars=7, out_vectors=2, out_scalars=5).network
    for name, parameter in network.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return network


@pytest.fixture
def tokens(case):
    """Geometry, scalars, and a mask with one to nine tokens in any place of each event."""
    draw = torch.Generator().manual_seed(0)
    geometry = torch.randn((100, 9, 3, case.components), generator=draw)
    scalars = torch.randn((100, 9, 7), generator=draw)
    mask = torch.rand((100, 9), generator=draw) < 0.7
    mask[:, 4] = True
    return geometry, scalars, mask


def both(case, network, geometry, scalars, mask):
    """Outputs of the package and of the kernels for tokens that exist."""
    vectors, out = network(geometry, scalars, attn_mask=mask[:, None, None, :])
    expected = (extract_vector(vectors) if case.components == 16 else vectors), out
    found = case.kernels.forward(network, geometry, scalars, mask)
    return [[part[mask] for part in pair] for pair in (expected, found)]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_outputs_and_gradients_are_the_package_s(case, network, tokens, threads, size):
    """Also of vectors so small that their norm is clamped."""
    torch.set_num_threads(threads)
    gradients, outputs = [], []
    for which in range(2):
        geometry, scalars = (size * tokens[0]).requires_grad_(), tokens[1].clone().requires_grad_()
        out = both(case, network, geometry, scalars, tokens[2])[which]
        network.zero_grad()
        sum((part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in out).backward()
        outputs.append(out)
        gradients.append([geometry.grad, scalars.grad, *(p.grad for p in network.parameters())])
    for expected, found in zip(*outputs, strict=True):
        torch.testing.assert_close(found, expected, rtol=case.tolerance, atol=1e-5)
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=10 * case.tolerance, atol=1e-4 * float(expected.abs().max())
        )


def test_zero_large_and_lightlike_vectors(case, network, tokens):
    """And gates beyond the exponential."""
    network.requires_grad_(False)
    geometry, scalars, mask = tokens
    for factor in (0.0, 1e3, 1e6):
        expected, found = both(case, network, geometry * factor, scalars * factor, mask)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
    # The vector of a multivector follows its scalar.
    first = int(case.components == 16)
    geometry[..., first + 4 :] = 0.0
    geometry[..., first] = geometry[..., first + 1 : first + 4].norm(dim=-1)
    expected, found = both(case, network, geometry, scalars, mask)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_masked_tokens_are_never_read(case, network, tokens):
    geometry, scalars, mask = tokens
    expected = case.kernels.forward(network, geometry, scalars, mask)
    geometry[~mask], scalars[~mask] = torch.nan, torch.nan
    for a, b in zip(expected, case.kernels.forward(network, geometry, scalars, mask), strict=True):
        assert torch.equal(a, b)
        assert (b[~mask] == 0).all()


def test_a_bad_event_leaves_the_others_alone(case, network, tokens):
    geometry, scalars, mask = tokens
    expected = case.kernels.forward(network, geometry, scalars, mask)
    geometry[7] = torch.nan
    others = torch.arange(len(mask)) != 7
    for a, b in zip(expected, case.kernels.forward(network, geometry, scalars, mask), strict=True):
        assert torch.equal(a[others], b[others])
        assert b[7][mask[7]].isnan().all()


def test_an_event_does_not_depend_on_the_others_bit_for_bit(case, network, tokens):
    whole = case.kernels.forward(network, *tokens)
    part = case.kernels.forward(network, *(each[20:70] for each in tokens))
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[20:70], b)


def test_no_events_and_events_without_tokens(case, network, tokens):
    vectors, scalars = case.kernels.forward(network, *(each[:0] for each in tokens))
    assert vectors.shape == (0, 9, 2, 4)
    assert scalars.shape == (0, 9, 5)
    tokens[2][3] = False
    vectors, scalars = case.kernels.forward(network, *tokens)
    assert (vectors[3] == 0).all()
    assert vectors.isfinite().all()
    assert scalars.isfinite().all()


def test_where_kernels_apply(case, network, tokens, monkeypatch):
    geometry = tokens[0]
    applies = case.kernels.applies
    assert applies(network, geometry)
    assert not applies(network, geometry.double())
    assert not applies(network, geometry.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not applies(network, geometry)
    dropping = case.backbone(case.config.model_copy(update={"dropout": 0.1}), 3, 7, 2, 5)
    assert not applies(dropping.network, geometry)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not applies(network, geometry)


@pytest.mark.parametrize("readout", ["query_tokens", "mean"])
@pytest.mark.parametrize("kind", CASES)
def test_whole_network_and_its_uncertainties(small_config, kind, readout):
    network = TopNetwork(small_config(kind, readout=readout, quantiles={})).eval()
    events = toy_events(50, max_jets=8, seed=3)
    found = predict([network], events)
    for part in network.modules():
        if hasattr(part, "packed"):
            part.packed = False
    expected = predict([network], events)
    np.testing.assert_allclose(found.p4, expected.p4, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(found.uncertainty, expected.uncertainty, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("kind", CASES)
def test_export_sees_operations_of_the_package_alone(small_config, kind):
    network = TopNetwork(small_config(kind)).eval()
    inputs = Inputs.from_events(toy_events(4, seed=1), torch.float32)
    program = torch.export.export(network, (inputs,))
    torch.testing.assert_close(program.module()(inputs), network(inputs), rtol=1e-4, atol=1e-2)
