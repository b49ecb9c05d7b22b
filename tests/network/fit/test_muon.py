"""Muon in batches of matrices against torch's."""

import copy

import pytest
import torch
from topreco.network.fit.muon import Muon, orthogonalised

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


def test_goes_on_with_the_state_of_torch_s():
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
