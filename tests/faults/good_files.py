"""Small good files of every kind that topreco reads, made without simulation."""

import json
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from topreco.config import LGATrSlimConfig, ModelConfig, TokensConfig
from topreco.core.events import DileptonEvents, Truth, toy_events
from topreco.core.skim import SkimWriter

_LAST_COPY = 1 << 13
_FIRST_COPY = 1 << 12
_HARD = (1 << 8) | (1 << 7) | 1


def nano_columns(n: int, seed: int = 0) -> dict[str, Any]:
    """Columns of NanoAOD-like tt̄ → e⁺μ⁻ events, most of which pass the default selection."""
    rng = np.random.default_rng(seed)

    def flat(kind: str, values: Any, counts: Any) -> Any:
        return ak.unflatten(np.broadcast_to(values, int(counts.sum())).astype(kind), counts)

    def momenta(counts: Any, smallest: float, scale: float) -> dict[str, Any]:
        total = int(counts.sum())
        return {
            "pt": flat("f4", smallest + rng.exponential(scale, total), counts),
            "eta": flat("f4", rng.uniform(-2.3, 2.3, total), counts),
            "phi": flat("f4", rng.uniform(-3.1, 3.1, total), counts),
        }

    one, n_jets = np.ones(n, np.int64), rng.integers(2, 6, n)
    electron = momenta(one, 26.0, 30.0) | {
        "charge": flat("i4", 1, one),
        "cutBased": flat("i4", 4, one),
        "deltaEtaSC": flat("f4", 0.0, one),
    }
    muon = momenta(one, 26.0, 30.0) | {
        "charge": flat("i4", -1, one),
        "tightId": flat("?", 1, one),
        "pfRelIso04_all": flat("f4", 0.05, one),
    }
    jet = momenta(n_jets, 31.0, 40.0) | {
        "mass": flat("f4", 8.0, n_jets),
        "btagDeepFlavB": flat("f4", rng.uniform(0.2, 1.0, int(n_jets.sum())), n_jets),
        "jetId": flat("i4", 6, n_jets),
    }
    # t, t̄, W⁺, b, W⁻, b̄, e⁺, ν, μ⁻, ν̄
    code = [6, -6, 24, 5, -24, -5, -11, 12, 13, -14]
    mother = [-1, -1, 0, 0, 1, 1, 2, 2, 4, 4]
    mass = [172.5, 172.5, 80.4, 4.8, 80.4, 4.8, 0.0, 0.0, 0.106, 0.0]
    ten = np.full(n, len(code))
    generated = momenta(ten, 20.0, 40.0) | {
        "mass": flat("f4", np.tile(mass, n), ten),
        "pdgId": flat("i4", np.tile(code, n), ten),
        "status": flat("i4", 22, ten),
        "statusFlags": flat("i4", _LAST_COPY | _FIRST_COPY | _HARD, ten),
        "genPartIdxMother": flat("i4", np.tile(mother, n), ten),
    }
    collections = {"Electron": electron, "Muon": muon, "Jet": jet, "GenPart": generated}
    return {
        "run": np.ones(n, np.uint32),
        "luminosityBlock": np.arange(1, n + 1, dtype=np.uint32),
        "event": np.arange(n, dtype=np.uint64),
        "PuppiMET_pt": rng.exponential(60.0, n).astype(np.float32) + np.float32(40.0),
        "PuppiMET_phi": rng.uniform(-3.1, 3.1, n).astype(np.float32),
        "genWeight": rng.choice([-1.0, 1.0, 1.0], n).astype(np.float32),
        "Generator_id1": np.full(n, 21, np.int32),
        "Generator_id2": np.full(n, 21, np.int32),
        **{name: ak.zip(fields) for name, fields in collections.items()},
    }


def _write_tree(file: Any, name: str, columns: dict[str, Any]) -> None:
    types = {key: v.type.content if isinstance(v, ak.Array) else v.dtype for key, v in columns.items()}
    file.mktree(name, types).extend(columns)


def nano_file(path: Path, n: int, compression: Any = None, seed: int = 0, *, simulated: bool = True) -> Path:
    """NanoAOD-like ROOT file."""
    columns = nano_columns(n, seed)
    if not simulated:
        columns = {name: values for name, values in columns.items() if not name.lower().startswith("gen")}
    with uproot.recreate(path, compression=compression) as file:
        _write_tree(file, "Events", columns)
        _write_tree(file, "Runs", {"genEventCount": np.array([n]), "genEventSumw": np.array([float(n)])})
    return path


def pepper_columns(n: int) -> dict[str, Any]:
    """Columns of pepper's event files, of events that pass all cuts."""
    nano = nano_columns(n)
    leptons = ak.concatenate([nano["Electron"][["pt", "eta", "phi"]], nano["Muon"][["pt", "eta", "phi"]]], 1)
    leptons = ak.with_field(leptons, ak.from_regular(np.tile(np.int32([-11, 13]), (n, 1))), "pdgId")
    return {
        **{name: nano[name] for name in ("run", "luminosityBlock", "event")},
        "Lepton": leptons,
        "Jet": nano["Jet"][["pt", "eta", "phi", "mass", "btagDeepFlavB"]],
        "MET": ak.zip({"pt": nano["PuppiMET_pt"], "phi": nano["PuppiMET_phi"]}),
        "gent_lc": nano["GenPart"][["pt", "eta", "phi", "mass"]][:, :2],
    }


def pepper_hdf5(path: Path, n: int) -> Path:
    """HDF5 of pepper: awkward buffers in groups."""
    import h5py

    flags = {name: np.ones(n) for name in ("OppositeSign", "HasJets", "Reco")}
    groups = {
        "events": ak.zip(pepper_columns(n), depth_limit=1),
        "cutflags": ak.zip(flags),
        "weight": ak.Array(np.where(np.arange(n) % 3 == 0, -1.5, 2.0)),
    }
    with h5py.File(path, "w") as file:
        file.attrs["version"] = 1
        for name, array in groups.items():
            form, length, buffers = ak.to_buffers(ak.to_packed(array))
            group = file.create_group(name)
            group.attrs["form"], group.attrs["length"] = form.to_json(), json.dumps(length)
            for key, values in buffers.items():
                group[key] = values
    return path


def pepper_root(path: Path, n: int) -> Path:
    """The same columns in a tree."""
    columns = pepper_columns(n)
    met = columns.pop("MET")
    columns |= {"MET_pt": met.pt.to_numpy(), "MET_phi": met.phi.to_numpy(), "weight": np.ones(n)}
    columns |= {f"cutflags_{name}": np.ones(n) for name in ("OppositeSign", "HasJets", "Reco")}
    with uproot.recreate(path) as file:
        _write_tree(file, "Events", columns)
    return path


def toy_truth(events: DileptonEvents) -> Truth:
    """Made-up tops of 172.5 GeV that go where the leptons do."""
    n = len(events)
    tops = 2 * events.lepton_p4
    tops[..., 0] = np.sqrt(172.5**2 + (tops[..., 1:] ** 2).sum(-1))
    nothing, flags = np.full((n, 2, 4), np.nan), np.ones(n, bool)
    no_tau, production = np.zeros((n, 2), bool), np.zeros(n, np.int8)
    return Truth(tops, nothing, nothing, events.lepton_p4, nothing, no_tau, flags, production)


def skim_file(path: Path, n: int, row_group_size: int = 50_000) -> Path:
    """Skim of random events with made-up truth."""
    events = toy_events(n, max_jets=4)
    with SkimWriter(path, row_group_size=row_group_size) as writer:
        writer.metadata |= {"selection": {"leading_pt_min": 25.0}, "datasets": {"toy": 1}}
        for start in range(0, n, row_group_size):
            part = events[start : start + row_group_size]
            writer.write(part, toy_truth(part))
    return path


def model_file(path: Path, folds: int = 1) -> Path:
    """Model file of a very small network with random weights."""
    import torch

    from topreco.network.model_file import save_model
    from topreco.network.tasks.tops import TopNetwork
    from topreco.network.tokens import Inputs

    backbone = LGATrSlimConfig(blocks=1, vector_channels=2, scalar_channels=4, heads=1)
    config = ModelConfig(backbone=backbone, tokens=TokensConfig(max_jets=4))
    torch.manual_seed(0)
    networks = [TopNetwork(config) for _ in range(folds)]
    for network in networks:
        network.encoder.fit_standardisation(Inputs.from_events(toy_events(100)))
    save_model(path, networks, {"training": {"seed": 3}})
    return path


def onnx_file(path: Path) -> Path:
    """The same network exported."""
    from topreco.network.export.onnx import export_onnx
    from topreco.network.model_file import load_model

    export_onnx(load_model(model_file(path.with_suffix(".safetensors"))), path)
    return path


def correction_payload() -> dict[str, Any]:
    """A correctionlib set with each kind of node: binned factors of jets, a formula, a choice by name."""
    pt = {"name": "pt", "type": "real"}
    eta = {"name": "eta", "type": "real"}
    kind = {"name": "kind", "type": "string"}
    output = {"name": "factor", "type": "real"}

    def binned(*content: Any) -> dict[str, Any]:
        edges = [-5.0, 0.0, 5.0]
        return {"nodetype": "binning", "input": "eta", "edges": edges, "content": content, "flow": "clamp"}

    formula = {
        "nodetype": "formula",
        "expression": "0.01+[0]/x",
        "parser": "TFormula",
        "variables": ["pt"],
        "parameters": [0.5],
    }
    choices = [{"key": "up", "value": binned(1.02, formula)}, {"key": "down", "value": binned(0.98, 0.97)}]
    grid = {
        "nodetype": "multibinning",
        "inputs": ["eta", "pt"],
        "edges": [[-5.0, 0.0, 5.0], [0.0, 50.0, 1000.0]],
        "content": [0.01, 0.02, 0.03, 0.04],
        "flow": "clamp",
    }
    return {
        "schema_version": 2,
        "description": "for tests",
        "corrections": [
            {"name": "scale", "version": 1, "inputs": [kind, eta, pt], "output": output,
             "data": {"nodetype": "category", "input": "kind", "content": choices}},
            {"name": "uncertainty", "version": 1, "inputs": [eta, pt], "output": output, "data": grid},
        ],
    }  # fmt: skip


def response_payload() -> dict[str, Any]:
    """Response of the detector in few bins, as `topreco response` would write it."""

    def binning(variable: str, edges: list[Any], content: list[Any]) -> dict[str, Any]:
        return {"nodetype": "binning", "input": variable, "edges": edges, "content": content, "flow": 0.0}

    def clamped(variable: str, edges: list[Any], content: list[Any]) -> dict[str, Any]:
        return binning(variable, edges, content) | {"flow": "clamp"}

    def correction(name: str, inputs: tuple[str, ...], data: dict[str, Any]) -> dict[str, Any]:
        variables = [{"name": variable, "type": "real"} for variable in inputs]
        output = {"name": "density", "type": "real"}
        return {"name": name, "version": 1, "inputs": variables, "output": output, "data": data}

    densities = {
        "energy": binning("value", [0.8, 0.95, 1.05, 1.3], [1.0, 6.0, 1.0]),
        "angle": binning("value", [0.0, 0.01, 0.05], [60.0, 10.0]),
    }
    corrections = [
        correction(
            f"{kind}_{what}",
            ("pt", "abseta", "value"),
            clamped("abseta", [0.0, 2.5], [clamped("pt", [20.0, 60.0, 500.0], [density, density])]),
        )
        for kind in ("jet", "electron", "muon")
        for what, density in densities.items()
    ]
    for name, edges in {"m_lb": [0.0, 60.0, 120.0, 180.0], "m_w": [70.0, 78.0, 83.0, 90.0]}.items():
        corrections.append(correction(name, ("value",), binning("value", edges, [1.0, 5.0, 1.0])))
    return {"schema_version": 2, "description": "made by hand", "corrections": corrections}
