"""What every test may use."""

import copy
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the sample files; without it the test is skipped."""
    folder = os.environ.get("TOPRECO_TEST_DATA")
    if not folder:
        pytest.skip("TOPRECO_TEST_DATA does not name the folder of sample files")
    return Path(folder)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory) -> Path:
    """A NanoAOD file of 1200 simulated events, about 100 of which are selected."""
    pytest.importorskip("pythia8mc")
    from topreco.config import SimulationConfig
    from topreco.simulation import simulate

    path = tmp_path_factory.mktemp("simulated") / "nano.root"
    simulate(SimulationConfig(n_events=1200, mpi=False, seed=7), path, workers=1, progress=False)
    return path


@pytest.fixture(scope="session")
def as_data(simulated, tmp_path_factory) -> Path:
    """The same events without any branch that a generator fills."""
    path = tmp_path_factory.mktemp("as_data") / "data.root"
    with uproot.open(simulated) as source, uproot.recreate(path) as target:
        tree = source["Events"]
        branches = [b for b in tree.keys() if not _of_generator(b)]  # noqa: SIM118 - a TTree is no dict
        jagged = {b.partition("_")[0] for b in branches if "[]" in tree[b].typename}
        arrays = tree.arrays(branches)
        content = {
            b: arrays[b] for b in branches if b.partition("_")[0] not in jagged and b[1:] not in jagged
        }
        for name in jagged:
            fields = [b for b in branches if b.startswith(f"{name}_")]
            content[name] = ak.zip({field.removeprefix(f"{name}_"): arrays[field] for field in fields})
        target.mktree("Events", {name: values.type.content for name, values in content.items()}).extend(
            content
        )
    return path


def _of_generator(branch: str) -> bool:
    return (
        branch.lower().startswith(("gen", "ngen"))
        or "genPart" in branch
        or "genJet" in branch
        or ("Flavour" in branch)
    )


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory) -> Path:
    """Model file of a small network with random weights."""
    import torch

    from topreco.config import LGATrSlimConfig, ModelConfig
    from topreco.network.build import build_network
    from topreco.network.checkpoint import save_artefact

    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = LGATrSlimConfig(blocks=2, vector_channels=8, scalar_channels=16, heads=2)
        network = build_network(ModelConfig(backbone=backbone))
    path = tmp_path_factory.mktemp("model") / "toy.safetensors"
    save_artefact(path, [network], {})
    return path


@pytest.fixture(scope="session")
def toy_onnx(toy_model, tmp_path_factory) -> Path:
    """The same network as `topreco export` writes it; made once, for it takes seconds."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from typer.testing import CliRunner

    from topreco.cli import app

    path = tmp_path_factory.mktemp("onnx") / "toy.onnx"
    result = CliRunner().invoke(app, ["export", str(toy_model), "-o", str(path)])
    assert result.output.split() == [str(path), str(path.with_name("model_reader.py"))], result.output
    return path


@pytest.fixture(scope="session")
def assert_agrees():
    """Law of exported networks: the four-momenta of torch to 1e-4 of the energy.

    Some networks magnify the rounding of single precision further, in torch as well, in a few events. There,
    what counts is that ONNX is no farther than torch from double precision.
    """
    from topreco.network.inference import predict

    def difference(p4, expected):
        return (np.abs(p4 - expected) / expected[..., :1]).max(axis=(1, 2))

    def check(p4, network, events):
        torchs = predict([network], events).p4
        if (difference(p4, torchs) < 1e-4).all():
            return
        assert np.quantile(difference(p4, torchs), 0.995) < 1e-4
        exact = predict([copy.deepcopy(network).double()], events).p4
        assert difference(p4, exact).max() < 3 * difference(torchs, exact).max()

    return check


@pytest.fixture(autouse=True)
def _reproducible_torch():
    """Seed torch in a forked generator, and keep it on one thread: the tests run in parallel."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        yield
