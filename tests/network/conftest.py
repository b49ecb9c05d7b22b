"""Small networks, events and Lorentz transformations for the laws that every network obeys."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from topreco.config import ModelConfig
from topreco.core.events import toy_events
from topreco.network.tokens import Inputs

SMALL_BACKBONES: dict[str, dict[str, Any]] = {
    "lgatr": {"blocks": 2, "multivector_channels": 4, "scalar_channels": 8, "heads": 2},
    "lgatr_slim": {"blocks": 2, "vector_channels": 8, "scalar_channels": 16, "heads": 2},
    "transformer": {"blocks": 2, "channels": 32, "heads": 2},
}


@pytest.fixture(autouse=True)
def _reproducible():
    """The same initial weights in every test, one thread, and no trace of either behind it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_config() -> Callable[..., ModelConfig]:
    """Configuration of a small model: kind of backbone, then fields of `ModelConfig` as plain data."""

    def make(kind: str, **fields: Any) -> ModelConfig:
        return ModelConfig.model_validate({"backbone": {"kind": kind, **SMALL_BACKBONES[kind]}, **fields})

    return make


@pytest.fixture
def inputs() -> Inputs:
    """Sixteen events with up to seven jets in double precision."""
    return Inputs.from_events(toy_events(16, max_jets=7, seed=1), torch.float64)


@pytest.fixture
def rotation() -> Tensor:
    """Rotation about the beam by 0.7."""
    angle = torch.tensor(0.7, dtype=torch.float64)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[1, 1] = matrix[2, 2] = angle.cos()
    matrix[2, 1], matrix[1, 2] = angle.sin(), -angle.sin()
    return matrix


@pytest.fixture
def lorentz() -> Tensor:
    """A proper orthochronous Lorentz transformation: exponential of a generic generator."""
    generator = torch.zeros(4, 4, dtype=torch.float64)
    boost = torch.tensor([0.5, -0.3, 0.6], dtype=torch.float64)
    generator[0, 1:] = generator[1:, 0] = boost
    for (i, j), angle in zip(((1, 2), (1, 3), (2, 3)), (0.8, -0.4, 1.1), strict=True):
        generator[i, j], generator[j, i] = -angle, angle
    return torch.linalg.matrix_exp(generator)


@pytest.fixture
def transform_multivectors() -> Callable[[Tensor, Tensor], Tensor]:
    """Lorentz transformation of multivectors.

    A matrix acts on grade g by its g-th compound, the determinants of its g × g minors. The basis of each
    grade is in lexicographic order, as in lgatr.
    """

    def transform(matrix: Tensor, multivectors: Tensor) -> Tensor:
        blocks = []
        for grade in range(5):
            basis = list(combinations(range(4), grade))
            minors = [[matrix[list(row)][:, list(column)].det() for column in basis] for row in basis]
            blocks.append(torch.tensor(minors, dtype=matrix.dtype))
        return multivectors @ torch.block_diag(*blocks).T

    return transform
