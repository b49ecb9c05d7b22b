"""Small networks, events, Lorentz transformations and skims for the tests of networks and their training."""

import dataclasses
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from topreco.config import ModelConfig, TrainConfig
from topreco.core.events import DileptonEvents, Truth, toy_events
from topreco.core.skim import SkimWriter
from topreco.network.tokens import Inputs

SMALL_BACKBONES: dict[str, dict[str, Any]] = {
    "lgatr": {"blocks": 1, "multivector_channels": 4, "scalar_channels": 8, "heads": 2},
    "lgatr_slim": {"blocks": 1, "vector_channels": 8, "scalar_channels": 16, "heads": 2},
    "transformer": {"blocks": 1, "channels": 32, "heads": 2},
    "lloca": {"blocks": 1, "channels": 32, "heads": 2},
    "pet": {"blocks": 1, "channels": 32, "heads": 2, "neighbours": 3},
}
TINY = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}


@pytest.fixture(autouse=True)
def _reproducible():
    """The same initial weights in every test, one thread, and no trace of either afterwards."""
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
        if kind == "lloca":
            pytest.importorskip("lloca", reason="needs the extra `lloca`")
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


# ---- trainings -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def truth_of() -> Callable[[DileptonEvents], Truth]:
    """Made-up truth: tops of lepton and b candidate with the mass of a top quark; one lepton is unknown."""

    def make(events: DileptonEvents) -> Truth:
        n = len(events)
        tops = events.lepton_p4 + events.b_candidate_p4
        tops[..., 0] = np.sqrt(172.5**2 + (tops[..., 1:] ** 2).sum(-1))
        leptons = events.lepton_p4.copy()
        leptons[5:6] = np.nan
        nothing = np.full((n, 2, 4), np.nan)
        return Truth(
            tops=tops,
            w=nothing,
            b=nothing,
            lepton=leptons,
            neutrino=nothing,
            via_tau=np.zeros((n, 2), bool),
            dileptonic=np.ones(n, bool),
            production=np.zeros(n, np.int8),
        )

    return make


@pytest.fixture(scope="session")
def skim_events() -> DileptonEvents:
    """Events of `skim`; a few have negative weights, as from generators at next-to-leading order."""
    events = toy_events(160, max_jets=4)
    return dataclasses.replace(events, weight=np.where(np.arange(160) % 7, 1.0, -1.0))


@pytest.fixture(scope="session")
def skim(skim_events, truth_of, tmp_path_factory) -> Path:
    """A skim of 160 events with up to four jets."""
    with SkimWriter(tmp_path_factory.mktemp("skims") / "toy.parquet") as writer:
        writer.metadata |= {"selection": {"leading_pt_min": 25.0}, "datasets": {"toy": 2**64 - 1}}
        writer.write(skim_events, truth_of(skim_events))
    return writer.path


@pytest.fixture
def config(skim, tmp_path) -> Callable[..., TrainConfig]:
    """Configuration of a short training: three steps in each of three epochs; changes as plain data."""

    def make(**changes: Any) -> TrainConfig:
        content = {
            "model": {"backbone": {**TINY, "dropout": 0.1}, "tokens": {"max_jets": 4}},
            "data": {"files": [skim]},
            "optimiser": {"kind": "adamw", "learning_rate": 1e-3},
            "loss": {"m_tt": 0, "pt_top": 0, "c_hel": 0},
            "quantiles": {"epochs": 2, "batch_size": 64},
            "augment_charge_exchange": False,
            "epochs": 3,
            "batch_size": 32,
            "accelerator": "cpu",
            "output": tmp_path / "out",
        }
        for key, value in changes.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        return TrainConfig.model_validate(content)

    return make


@pytest.fixture(scope="session")
def metrics_of() -> Callable[..., list[dict[str, Any]]]:
    """Function that reads the metrics of each epoch in a folder, without the times, which differ."""

    def read(folder: Path, name: str = "metrics") -> list[dict[str, Any]]:
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        times = {"seconds", "events_per_second"}
        return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]

    return read
