"""Learning rates, the average of the weights, who owns which parameter, and Muon against torch's."""

import copy
import math

import pytest
import torch

from topreco.config import ModelConfig, OptimiserConfig
from topreco.network.fit.optimisers import (
    Muon,
    build_optimisers,
    learning_rate,
    orthogonalised,
    update_average,
)
from topreco.network.tasks.tops import TopNetwork

SHAPES = ((6, 4), (4, 6), (6, 4), (5, 5), (9, 2))


def trained(kind, steps=8, start=None, **options):
    """Parameters and state after some steps with the same gradients."""
    draw = torch.Generator().manual_seed(3)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    optimiser = kind(parameters, lr=0.02, weight_decay=0.1, **options)
    for step in range(steps):
        if start is not None and step == start[0]:
            optimiser.load_state_dict(start[1])
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        # One that the loss does not depend on.
        parameters[-1].grad = None if step % 2 else parameters[-1].grad
        optimiser.step()
    return parameters, optimiser.state_dict()


@pytest.mark.parametrize(
    "options",
    [{}, {"adjust_lr_fn": "original"}, {"adjust_lr_fn": "match_rms_adamw"}, {"nesterov": False}],
    ids=str,
)
def test_steps_are_those_of_torch_without_its_half_precision(options, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "bfloat16", torch.Tensor.double)
        expected, theirs = trained(torch.optim.Muon, **options)
    found, ours = trained(Muon, **options)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
    for key in theirs["state"]:
        torch.testing.assert_close(ours["state"][key], theirs["state"][key])
    assert theirs["param_groups"] == ours["param_groups"]


def test_continues_with_the_state_of_torch_s():
    _, state = trained(torch.optim.Muon, steps=4)
    expected, _ = trained(Muon)
    found, _ = trained(Muon, start=(4, copy.deepcopy(state)))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 8, 5), (3, 5, 8), (1, 4, 4)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    matrices = torch.randn(shape, dtype=torch.float64)
    found = orthogonalised(matrices, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ found @ v.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(values, torch.diag_embed(diagonal), rtol=0, atol=1e-9)
    assert (diagonal > 0.3).all()
    assert (diagonal < 1.3).all()


def test_a_matrix_of_zeros_stays_one():
    assert (orthogonalised(torch.zeros(2, 3, 4), (3.4445, -4.7750, 2.0315), 5, 1e-7) == 0).all()


def test_learning_rate():
    config = OptimiserConfig(learning_rate=1.0, warmup=0.1)
    assert [learning_rate(step, 100, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(10, 100, config) == 1
    assert learning_rate(55, 100, config) == pytest.approx(0.5)
    assert learning_rate(99, 100, config) == pytest.approx(0.5 * (1 - math.cos(math.pi / 90)))
    constant = OptimiserConfig(learning_rate=1.0, warmup=0.1, schedule="constant")
    assert learning_rate(99, 100, constant) == 1
    for warmup in (0.0, 1.0):
        assert learning_rate(0, 1, OptimiserConfig(learning_rate=1.0, warmup=warmup)) == 1


def test_average_by_hand():
    average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for parameter in average.parameters():
        torch.nn.init.constant_(parameter, 1.0)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 2.0)
    update_average(average, network, 0, 0.9)
    assert average.weight.item() == pytest.approx(1.9)
    update_average(average, network, 1000, 0.5)
    assert average.weight.item() == pytest.approx(1.95)


def test_average_of_batch_normalisation():
    """An average whose statistics stayed those of the beginning would be another function."""
    average, network = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    for each in (average, network):
        each.register_buffer("limit", torch.tensor(torch.inf))
    torch.nn.init.constant_(network.running_mean, 3.0)
    update_average(average, network, 1000, 0.75)
    assert average.running_mean.item() == pytest.approx(0.75)
    assert average.limit == torch.inf


def owners(optimisers):
    """Which optimiser owns each parameter."""
    every = [(id(p), o) for o in optimisers for group in o.param_groups for p in group["params"]]
    assert len(dict(every)) == len(every)
    return dict(every)


@pytest.mark.parametrize("kind", ["lgatr", "lgatr_slim", "transformer"])
def test_muon_takes_the_hidden_matrices_and_nothing_else(kind):
    network = TopNetwork(ModelConfig.model_validate({"backbone": {"kind": kind, "blocks": 1}}))
    muon, adamw = build_optimisers(OptimiserConfig(kind="muon"), network)
    assert isinstance(muon, Muon)
    owner = owners([muon, adamw])
    assert len(owner) == len(list(network.parameters()))
    names = {name for name, p in network.named_parameters() if owner[id(p)] is muon}
    assert names
    assert all(".blocks.0." in name and "norm" not in name for name in names)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_network_without_blocks_is_adamw_s(kind):
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    (adamw,) = build_optimisers(OptimiserConfig(kind=kind, weight_decay=0.1), network)
    assert len(owners([adamw])) == 4
    # Biases are not shrunk.
    assert [(len(g["params"]), g["weight_decay"]) for g in adamw.param_groups] == [(2, 0.1), (2, 0.0)]
