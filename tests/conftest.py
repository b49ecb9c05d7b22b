"""What every test may use."""

import copy
import dataclasses
import os
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from hypothesis import HealthCheck, settings

from topreco.core import fourvector
from topreco.core.events import TopPair, Truth, toy_events

# An example may take any time: the machine may be busy, and the first call may compile. The examples are the
# same in every run, so that a change turns a test red and chance does not; `make test-all` draws others each
# time.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("topreco", settings.get_profile("random"), derandomize=True)
settings.load_profile("topreco")


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
def copy_nano():
    """Function that copies the branches of a file that `keep` accepts, some with new values."""

    def copy_nano(source, target, *, keep=lambda branch: True, changes=None):
        with uproot.open(source) as old, uproot.recreate(target) as new:
            tree = old["Events"]
            branches = [b for b in tree.keys() if keep(b)]  # noqa: SIM118 - a TTree is no dict
            jagged = {b.partition("_")[0] for b in branches if "[]" in tree[b].typename}
            arrays = tree.arrays(branches)
            values = {b: arrays[b] for b in branches} | (changes or {})
            content = {
                b: values[b] for b in branches if b.partition("_")[0] not in jagged and b[1:] not in jagged
            }
            for name in jagged:
                fields = [b for b in branches if b.startswith(f"{name}_")]
                content[name] = ak.zip({field.removeprefix(f"{name}_"): values[field] for field in fields})
            new.mktree("Events", {name: array.type.content for name, array in content.items()}).extend(
                content
            )
        return target

    return copy_nano


@pytest.fixture(scope="session")
def as_data(simulated, copy_nano, tmp_path_factory) -> Path:
    """The same events without any branch that a generator fills."""
    path = tmp_path_factory.mktemp("as_data") / "data.root"
    return copy_nano(simulated, path, keep=lambda branch: not _of_generator(branch))


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
    from topreco.network.model_file import save_model
    from topreco.network.tasks.tops import TopNetwork

    with torch.random.fork_rng():
        torch.manual_seed(1)
        backbone = LGATrSlimConfig(blocks=2, vector_channels=8, scalar_channels=16, heads=2)
        # On shell, so that every mass of the pair lies within the histograms.
        network = TopNetwork(ModelConfig(backbone=backbone, head="on_shell"))
    path = tmp_path_factory.mktemp("model") / "toy.safetensors"
    save_model(path, [network], {})
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


def _tops(transverse, y, mass):
    return fourvector.from_three_momentum(
        np.stack(
            [
                transverse[..., 0],
                transverse[..., 1],
                np.sqrt((transverse**2).sum(-1) + mass**2) * np.sinh(y),
            ],
            axis=-1,
        ),
        mass,
    )


def make_toy(n, *, seed=0, shrink=0.8, smear=0.2, efficiency=0.9, signed=False):
    rng = np.random.default_rng(seed)
    events = toy_events(n, seed=seed)
    if signed:
        events = dataclasses.replace(events, weight=rng.choice([1.0, 1.0, 1.0, 1.0, -1.0], n))
    pt, phi = rng.gamma(2.2, 50.0, n), rng.uniform(-np.pi, np.pi, n)
    back_to_back = np.stack([pt * np.cos(phi), pt * np.sin(phi)], axis=-1)
    transverse = np.stack([back_to_back, -back_to_back], axis=1) + rng.normal(0, 25, (n, 2, 2))
    y = rng.normal(0, 0.9, (n, 2))
    mass = 172.5 + rng.normal(0, 1.4, (n, 2))
    tops = _tops(transverse, y, mass)

    rng = np.random.default_rng([seed, round(1000 * shrink)])
    pred = _tops(
        shrink * transverse + rng.normal(0, 100 * smear, transverse.shape),
        shrink * y + rng.normal(0, smear, y.shape),
        rng.normal(172.5, 5, (n, 2)),
    )
    valid = rng.random(n) < efficiency
    pred[~valid] = np.nan
    unknown = np.full((n, 2, 4), np.nan)
    leptons = events.lepton_p4
    rng = np.random.default_rng([seed, 1])
    true_leptons = fourvector.from_three_momentum(leptons[..., 1:] + rng.normal(0, 3, (n, 2, 3)), 0.0)
    truth = Truth(
        tops=tops,
        w=unknown,
        b=unknown,
        lepton=true_leptons,
        neutrino=unknown,
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.ones(n, bool),
        production=np.zeros(n, np.int8),
    )
    return events, TopPair(p4=pred, valid=valid), truth


@pytest.fixture(scope="session")
def toy():
    """Factory (n, **options) → events, pair, truth."""
    return make_toy
