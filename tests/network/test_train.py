"""Whole trainings of tops and quantiles: from skims to a model file, resumed, on two devices."""

import csv
import dataclasses
import math
import os
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from topreco.core.errors import TopRecoError
from topreco.core.events import mass_quality, toy_events
from topreco.core.skim import SkimWriter
from topreco.network.inference import predict
from topreco.network.model_file import load_model
from topreco.network.splits import TEST, split_of
from topreco.network.task import TrainingError
from topreco.network.tasks.quantiles import QuantilesTask
from topreco.network.tasks.tops import TopsTask, pair_metrics
from topreco.network.train import fit_task, recalibrate, task_of, train, train_quantiles

TINY = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
# Of 160 events, so many that 39 of them calibrate the quantiles; of each of two folds.
ENOUGH = {"validation_fraction": 0.4}
ENOUGH_OF_EACH = {"validation_fraction": 0.6}
QUANTILES = {
    "backbone": {**TINY, "dropout": 0.1},
    "hidden": 8,
    "observables": ["m_tt", "c_hel"],
    "calibration_bins": 2,
}


def quiet(config, **options):
    return train(config, progress=False, **options)


@pytest.fixture
def stopping(monkeypatch):
    """Function that trains until a call of a task's hook, in which an interruption comes."""

    def stop(config, task, hook, after=0):
        original, left = getattr(task, hook), after

        def interrupting(*arguments):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(task, hook, interrupting)
            with pytest.raises(KeyboardInterrupt):
                quiet(config)

    return stop


# ---- what comes out --------------------------------------------------------------------------------------


def test_learns_a_toy(config, metrics_of):
    path = quiet(
        config(
            epochs=40,
            batch_size=16,
            data={"test_fraction": 0.0},
            model={"head": "on_shell", "backbone": {**TINY, "vector_channels": 8, "scalar_channels": 16}},
            optimiser={"learning_rate": 1e-2},
        )
    )
    losses = [row["train_loss"] for row in metrics_of(path.parent)]
    assert losses[-1] < 0.25 * losses[0]
    metrics = load_model(path).metadata["metrics"]["best"][0]
    assert metrics["validation_m_tt_correlation"] > 0.8


def test_output(config, tmp_path, metrics_of):
    path = quiet(config(model={"quantiles": QUANTILES}, data=ENOUGH))
    assert path == tmp_path / "out" / "model.safetensors"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        *("metrics.csv", "metrics.jsonl", "model.safetensors", "quantiles_metrics.csv"),
        *("quantiles_metrics.jsonl", "quantiles_state.ckpt", "state.ckpt"),
    ]
    metadata = load_model(path).metadata
    assert metadata["parent"] is None
    assert metadata["training"]["epochs"] == 3
    assert metadata["training"]["data"]["files"] == ["toy.parquet"]
    (file,) = metadata["data"]["files"]
    assert file["name"] == "toy.parquet"
    assert file["selection"] == {"leading_pt_min": 25.0}
    assert file["datasets"] == {"toy": 2**64 - 1}
    assert metadata["data"]["networks"][0]["train"]["events"] > 0
    assert set(metadata["metrics"]["test"]) == {
        *("loss", "m_tt_bias", "m_tt_resolution", "m_tt_correlation", "m_tt_slope"),
        *("pt_top_rms", "y_top_rms", "efficiency"),
    }
    assert set(metadata["quantiles"]["test"]) == {"m_tt", "c_hel"}
    assert set(metadata["quantiles"]["test"]["m_tt"]) == {"coverage68", "coverage95", "pinball"}
    # Nothing tells where it was made.
    assert str(tmp_path.parent).encode() not in path.read_bytes()
    for name, epochs in (("metrics", 3), ("quantiles_metrics", 2)):
        table = list(csv.DictReader((path.parent / f"{name}.csv").read_text().splitlines()))
        rows = metrics_of(path.parent, name)
        assert [row["epoch"] for row in table] == [str(i) for i in range(epochs)]
        assert float(table[1]["validation_loss"]) == rows[1]["validation_loss"]
    assert metrics_of(path.parent)[0]["step"] == 2


def test_test_metrics_are_those_of_the_saved_network(config, skim_events, truth_of):
    settings = config(data={"test_fraction": 0.3})
    model = load_model(quiet(settings))
    chosen = split_of(skim_events, settings.data) == TEST
    truth, events = truth_of(skim_events)[chosen], skim_events[chosen]
    expected = pair_metrics(predict(model.networks, events).p4, truth.tops, events.weight)
    found = model.metadata["metrics"]["test"]
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3), key


def test_same_seed_same_bytes_other_seed_other_weights(config, tmp_path):
    changes = {"data": {"folds": 2} | ENOUGH_OF_EACH, "model": {"quantiles": QUANTILES}, "epochs": 2}
    paths = [
        quiet(config(output=tmp_path / name / "run", seed=seed, **changes))
        for name, seed in [("a", 1), ("a2", 1), ("b", 2)]
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    first, _, other = [load_model(path) for path in paths]
    assert not torch.equal(next(first.networks[0].parameters()), next(other.networks[0].parameters()))
    assert not torch.equal(next(first.networks[0].parameters()), next(first.networks[1].parameters()))


def test_compiled_trains_as_eager(config, tmp_path, monkeypatch, metrics_of):
    """Captured as a graph; making machine code of it takes a minute and is torch's own matter."""
    calls = []

    def capture(network, **options):
        calls.append(options)
        return compile_(network, **options | {"backend": "aot_eager"})

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", capture)
    # Without dropout, which would draw other numbers.
    eager, compiled = (
        metrics_of(
            quiet(
                config(compile=choice, epochs=2, model={"backbone": TINY}, output=tmp_path / str(choice))
            ).parent
        )
        for choice in (False, True)
    )
    assert calls
    for a, b in zip(eager, compiled, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-4)


def test_bf16_trains(config, metrics_of):
    path = quiet(config(precision="bf16-mixed", model={"quantiles": QUANTILES}, data=ENOUGH))
    for name in ("metrics", "quantiles_metrics"):
        assert all(math.isfinite(row["train_loss"]) for row in metrics_of(path.parent, name))


def test_shows_progress(config, capsys):
    train(config(data={"folds": 2} | ENOUGH_OF_EACH, epochs=1, model={"quantiles": QUANTILES}))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "network 1/2 epoch 1/1: loss" in captured.err
    assert "quantiles, network 2/2 epoch 2/2: loss" in captured.err
    assert "events/s" in captured.err
    assert "trained; test: loss" in captured.err


# ---- resuming --------------------------------------------------------------------------------------------

EVERYTHING = {
    "data": {"folds": 2} | ENOUGH_OF_EACH,
    "batch_size": 10,
    "model": {"quantiles": QUANTILES},
    "quantiles": {"epochs": 2, "batch_size": 8},
    "loss": {"flat_m_tt": 0.5, "m_tt_bias": 0.1, "c_hel": 1.0},
    "augment_rotation": True,
    "augment_reflection": True,
    "augment_charge_exchange": True,
}
VARIANTS = {
    "augmented": {"augment_rotation": True, "augment_reflection": True, "augment_charge_exchange": True},
    "muon": {"optimiser": {"kind": "muon"}, "loss": {"m_tt_bias": 1.0}},
    "no_average": {"optimiser": {"ema_decay": None, "clip_norm": None, "schedule": "constant"}},
    "everything": EVERYTHING,
}
# In the first epoch, while validating, in the second, after its state was written.
STOPS = [("loss", 2), ("metrics", 0), ("loss", 4), ("describe", 0)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(config, tmp_path, stopping, variant, metrics_of):
    """To the bit, for each task of the training."""
    changes = VARIANTS[variant]
    uninterrupted = quiet(config(output=tmp_path / "whole" / "run", **changes))
    interrupted = config(output=tmp_path / "parts" / "run", **changes)
    tasks = [TopsTask, QuantilesTask] if "model" in changes else [TopsTask]
    for task in tasks:
        for hook, after in [*STOPS, ("finish", 0)]:
            stopping(interrupted, task, hook, after)
    resumed = quiet(interrupted)
    assert resumed.read_bytes() == uninterrupted.read_bytes()
    for task in tasks:
        name = "metrics" if task is TopsTask else "quantiles_metrics"
        assert metrics_of(resumed.parent, name) == metrics_of(uninterrupted.parent, name)


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_streamed_training_gives_the_same_bits(config, tmp_path, changes, metrics_of):
    folders = [tmp_path / "memory" / "run", tmp_path / "disk" / "run"]
    for folder, stream in zip(folders, (False, True), strict=True):
        data = {**changes.get("data", {}), "stream": stream, "cache": tmp_path / "cache"}
        quiet(config(**{**changes, "data": data, "output": folder}))
    one, two = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == two
    assert metrics_of(folders[0]) == metrics_of(folders[1])
    assert list((tmp_path / "cache").iterdir()) == []


def test_where_data_are_may_change_when_a_training_resumes(config, tmp_path, stopping):
    whole = quiet(config(output=tmp_path / "whole" / "run"))
    stopped = config(output=tmp_path / "stopped" / "run")
    stopping(stopped, TopsTask, "describe")
    resumed = quiet(config(output=stopped.output, data={"stream": True, "cache": tmp_path / "cache"}))
    assert resumed.read_bytes() == whole.read_bytes()


# Trains where coffea, ROOT I/O and plotting are not installed, and dies without warning in step 4.
KILLED = """
import os, signal, sys
for name in ("coffea", "uproot", "awkward", "hist", "matplotlib", "mplhep"):
    sys.modules[name] = None
from topreco.config import TrainConfig
from topreco.network.tasks.tops import TopsTask
from topreco.network.train import train
loss, calls = TopsTask.loss, 0
def killing(*arguments):
    global calls
    calls += 1
    if len(sys.argv) > 2 and calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
TopsTask.loss = killing
if __name__ == "__main__":
    train(TrainConfig.model_validate_json(sys.argv[1]))
"""


def test_resumes_after_kill_9_and_needs_no_coffea(config, tmp_path, metrics_of):
    killed = config(output=tmp_path / "killed" / "run")
    process = subprocess.run(
        [sys.executable, "-c", KILLED, killed.model_dump_json(), "5"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(metrics_of(killed.output)) == 1
    uninterrupted = quiet(config(output=tmp_path / "whole" / "run"))
    assert quiet(killed).read_bytes() == uninterrupted.read_bytes()
    assert [row["epoch"] for row in metrics_of(killed.output)] == [0, 1, 2]


def test_finished_training_is_not_repeated(config, monkeypatch, capsys):
    path = quiet(config())
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(TopsTask, "build", None)
        assert train(config()) == path
    assert "already trained" in capsys.readouterr().err
    assert path.read_bytes() == before
    # A lost file is written again.
    path.unlink()
    quiet(config())
    assert path.read_bytes() == before


def test_another_configuration_is_refused(config, metrics_of):
    quiet(config())
    # Where a training runs may differ.
    quiet(config(threads=None, accelerator="auto"))
    other = config(epochs=4, optimiser={"learning_rate": 0.5})
    with pytest.raises(
        TrainingError,
        match=r"out: holds a training that differs in the configuration \(epochs: 3 there, 4 here; "
        r"optimiser.learning_rate: 0.001 there, 0.5 here\).*--restart to start afresh",
    ):
        quiet(other)
    assert len(metrics_of(quiet(other, restart=True).parent)) == 4


def test_other_data_of_the_same_name_are_refused(config, tmp_path, stopping, truth_of):
    (tmp_path / "other").mkdir()
    events = toy_events(100, max_jets=4)
    with SkimWriter(tmp_path / "other" / "toy.parquet") as writer:
        writer.write(events, truth_of(events))
    stopping(config(), TopsTask, "describe")
    with pytest.raises(TrainingError, match=r"differs in the training data \(.*events: 160 there, 100 here"):
        quiet(config(data={"files": [tmp_path / "other" / "toy.parquet"]}))


# ---- two processes ---------------------------------------------------------------------------------------


def in_two_processes(launcher, folder, *arguments):
    """Run `KILLED` in two processes, which it or torchrun starts; it dies only if told when."""
    script = folder / "train.py"
    script.write_text(KILLED)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [sys.executable, *(torchrun if launcher == "torchrun" else []), str(script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture
def assert_same_losses(metrics_of):
    def check(one, two):
        for name in ("metrics", "quantiles_metrics"):
            for a, b in zip(metrics_of(one, name), metrics_of(two, name), strict=True):
                assert a["step"] == b["step"]
                assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
                assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-5)

    return check


NO_DROPOUT = {
    "data": ENOUGH,
    "model": {"backbone": TINY, "quantiles": QUANTILES | {"backbone": TINY}},
    "augment_charge_exchange": True,
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices", pytest.param("torchrun", marks=pytest.mark.exhaustive)])
def test_two_processes_train_as_one(config, tmp_path, launcher, assert_same_losses):
    """With the gradients averaged, two devices see the same batches as one, also in parts; both tasks."""
    single = quiet(config(output=tmp_path / "one", **NO_DROPOUT))
    double = config(
        output=tmp_path / "two",
        devices=2 if launcher == "devices" else 1,
        accumulate=2,
        quantiles={"accumulate": 3},
        **(NO_DROPOUT | {"data": ENOUGH | {"stream": True}}),
    )
    for _ in range(2):
        process = in_two_processes(launcher, tmp_path, double.model_dump_json())
        assert process.returncode == 0, process.stderr
    assert process.stderr.count("already trained") == 1
    assert [path.name for path in double.output.iterdir() if path.name.startswith(".")] == []
    assert_same_losses(single.parent, double.output)


@pytest.mark.slow
def test_two_processes_resume_after_kill_9(config, tmp_path, assert_same_losses, metrics_of):
    whole = quiet(config(output=tmp_path / "whole", **NO_DROPOUT))
    killed = config(output=tmp_path / "killed", **NO_DROPOUT)
    process = in_two_processes("torchrun", tmp_path, killed.model_dump_json(), "5")
    assert process.returncode != 0
    assert 1 <= len(metrics_of(killed.output)) < 3
    process = in_two_processes("torchrun", tmp_path, killed.model_dump_json())
    assert process.returncode == 0, process.stderr
    assert_same_losses(whole.parent, killed.output)


# ---- quantiles of a trained model ------------------------------------------------------------------------

OBSERVABLES = ("m_tt", "pt_top", "c_hel")


@pytest.fixture(scope="module")
def skims(tmp_path_factory, truth_of):
    """Two datasets whose tops have a momentum that the measurement knows nothing of."""
    paths = []
    for seed, n in ((1, 1600), (2, 800)):
        events = dataclasses.replace(
            toy_events(n, max_jets=4, seed=seed),
            weight=np.where(np.arange(n) % 9, 1.0, -1.0),
            dataset=np.full(n, seed, np.uint64),
        )
        truth = truth_of(events)
        truth.tops[..., 1:] += np.random.default_rng(seed).normal(0, 30, (n, 2, 3))
        truth.tops[..., 0] = np.sqrt(172.5**2 + (truth.tops[..., 1:] ** 2).sum(-1))
        with SkimWriter(tmp_path_factory.mktemp("skims") / f"toy{seed}.parquet") as writer:
            writer.write(events, truth)
        paths.append(writer.path)
    return paths


@pytest.fixture
def with_quantiles(config, skims, tmp_path):
    """Configuration of a training with quantiles on the first of the skims."""
    quantiles = {**QUANTILES, "backbone": TINY, "hidden": 16, "observables": OBSERVABLES}

    def make(**changes):
        defaults = {
            "model": {"backbone": TINY, "quantiles": quantiles},
            "quantiles": {"epochs": 4, "batch_size": 32, "learning_rate": 1e-2},
            "epochs": 1,
            "batch_size": 64,
        }
        data = {"files": [skims[0]], "validation_fraction": 0.25} | changes.pop("data", {})
        return config(**(defaults | changes), data=data)

    return make


@pytest.fixture(scope="module")
def kept():
    """What several tests need, made by the first one."""
    return {}


@pytest.fixture
def trained(kept, with_quantiles, tmp_path):
    """A model file with quantiles."""
    if "path" not in kept:
        kept["path"] = quiet(with_quantiles(output=tmp_path / "run"))
    return kept["path"]


def test_training_ends_with_calibrated_quantiles(trained):
    model = load_model(trained)
    test = model.metadata["quantiles"]["test"]
    assert set(test) == set(OBSERVABLES)
    for name, numbers in test.items():
        # Of 320 test events and 400 for the calibration.
        assert numbers["coverage68"] == pytest.approx(0.68, abs=0.1), name
        assert numbers["coverage95"] == pytest.approx(0.95, abs=0.05), name
    pair = predict(model.networks, toy_events(50))
    assert set(pair.quantiles) == set(test)
    assert pair.uncertainty.shape == (50, 2, 4)
    np.testing.assert_array_equal(pair.quality, mass_quality(pair.quantiles))
    assert (pair.quality < 0).all()


def test_adding_quantiles_later_gives_the_same_file(trained, with_quantiles, tmp_path):
    """Nor do the tops know of them."""
    plain = load_model(quiet(with_quantiles(model={"backbone": TINY})))
    assert predict(plain.networks, toy_events(50)).quantiles is None
    train_quantiles(plain, with_quantiles(), tmp_path / "rich.safetensors", progress=False)
    first, second = load_model(trained), load_model(tmp_path / "rich.safetensors")
    for name, tensor in first.networks[0].state_dict().items():
        assert torch.equal(tensor, second.networks[0].state_dict()[name]), name
    for name, tensor in plain.networks[0].state_dict().items():
        assert torch.equal(tensor, second.networks[0].state_dict()[name]), name
    assert second.metadata["quantiles"]["test"] == first.metadata["quantiles"]["test"]
    folder = tmp_path / "rich.training"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.csv", "metrics.jsonl", "state.ckpt"]
    # Run again it has nothing to do; with other settings it has to be told.
    before = (tmp_path / "rich.safetensors").read_bytes()
    train_quantiles(plain, with_quantiles(), tmp_path / "rich.safetensors", progress=False)
    assert (tmp_path / "rich.safetensors").read_bytes() == before
    other = with_quantiles(quantiles={"epochs": 1})
    with pytest.raises(
        TrainingError, match=r"rich.training: holds a training that differs .*quantiles.epochs"
    ):
        train_quantiles(plain, other, tmp_path / "rich.safetensors", progress=False)
    train_quantiles(plain, other, tmp_path / "rich.safetensors", progress=False, restart=True)


def test_quantiles_of_folds(with_quantiles):
    model = load_model(quiet(with_quantiles(data={"folds": 2})))
    assert len(model.networks) == 2
    assert model.metadata["quantiles"]["test"]["m_tt"]["coverage68"] == pytest.approx(0.68, abs=0.08)
    assert np.isfinite(predict(model.networks, toy_events(20)).quality).all()


def test_calibration_on_other_events(trained, with_quantiles, skims, tmp_path):
    path = tmp_path / "calibrated.safetensors"
    before = load_model(trained)
    recalibrate(before, with_quantiles(data={"files": [skims[1]]}), path)
    after = load_model(path)
    calibration = after.metadata["quantiles"]["calibration"]
    assert (calibration["events"], calibration["validation_only"]) == (800, False)
    assert "test" not in after.metadata["quantiles"]
    changed = set()
    for name, tensor in before.networks[0].state_dict().items():
        if not torch.equal(tensor, after.networks[0].state_dict()[name]):
            changed.add(name.rpartition(".")[2])
    assert {"shift", "stretch"} <= changed <= {"knots", "shift", "stretch"}
    # What has been read stays as it was.
    assert torch.equal(before.networks[0].quantiles.shift, load_model(trained).networks[0].quantiles.shift)


def test_training_events_never_calibrate(trained, with_quantiles, tmp_path):
    """Of a dataset that the model was trained on, only its validation events, whatever is requested."""
    model = load_model(trained)
    recalibrate(model, with_quantiles(data={"validation_fraction": 0.5}), tmp_path / "again.safetensors")
    again = load_model(tmp_path / "again.safetensors")
    expected = model.metadata["data"]["networks"][0]["validation"]["events"]
    assert again.metadata["quantiles"]["calibration"]["events"] == expected
    for name, tensor in model.networks[0].state_dict().items():
        assert torch.equal(tensor, again.networks[0].state_dict()[name]), name


def test_quantiles_need_validation_events(config):
    """Noticed before anything is trained."""
    with pytest.raises(TrainingError, match=r"data\.validation_fraction: no validation events"):
        quiet(config(model={"quantiles": QUANTILES}, data={"validation_fraction": 0.0}))
    assert not list(config().output.glob("*metrics*"))


def test_recalibration_needs_quantiles_and_events(config, trained, with_quantiles, tmp_path):
    plain = load_model(quiet(config(epochs=1)))
    with pytest.raises(TrainingError, match=r"the model has no quantiles; `topreco quantiles` adds them"):
        recalibrate(plain, config(), tmp_path / "m.safetensors")
    few = with_quantiles(data={"max_events": 1})
    with pytest.raises(TrainingError, match=r"no events with weight for network 0"):
        recalibrate(load_model(trained), few, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


# ---- what can go wrong -----------------------------------------------------------------------------------


def test_what_cannot_be_trained(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TopRecoError, match=r"output folder .*file/out: cannot write there"):
        quiet(config(output=tmp_path / "file" / "out"))
    with pytest.raises(TrainingError, match=r"no training events with weight remain .* \(160 events, 0"):
        quiet(config(data={"test_fraction": 1.0, "validation_fraction": 0.0}))
    with pytest.raises(TrainingError, match="no skims given"):
        quiet(config(data={"files": []}))


@pytest.mark.parametrize("by_row_group", [False, True])
def test_events_of_one_key_cannot_be_split(config, skims, truth_of, tmp_path, by_row_group):
    """No word of fractions: the key is what is wrong. Without splits it does not matter."""
    skim = tmp_path / "constant.parquet"
    with SkimWriter(skim, row_group_size=100) as writer:
        for number in range(2):
            same = np.full(100, number if by_row_group else 7, np.uint64)
            events = dataclasses.replace(toy_events(100, max_jets=4, seed=number), event=same)
            writer.write(events, truth_of(events))
    message = r"data\.files: the key \(run, luminosityBlock, event\) is constant, the same for all 200 events"
    for fractions in ({"test_fraction": 0.0}, {"folds": 2}, {"validation_fraction": 0.0}):
        with pytest.raises(TrainingError, match=message):
            quiet(config(data={"files": [skim], **fractions}))
    assert quiet(
        config(epochs=1, data={"files": [skim], "test_fraction": 0.0, "validation_fraction": 0.0})
    ).exists()


def test_a_model_from_elsewhere_is_not_overwritten(config):
    path = quiet(config(epochs=1))
    path.with_name("state.ckpt").unlink()
    with pytest.raises(TrainingError, match=r"model.safetensors: already there"):
        quiet(config(epochs=1))
    quiet(config(epochs=1), restart=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(config):
    with pytest.raises(TrainingError, match=r"accelerator: cuda with devices 1, but torch sees 0 of them"):
        quiet(config(accelerator="cuda"))


def test_mlflow_is_not_installed(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrainingError, match=r"needs the extra: pip install 'topreco\[mlflow\]'"):
        quiet(config(mlflow=True))


def test_mlflow_cannot_write(config, monkeypatch):
    def failing(**options):
        raise LookupError("no such database\nat all")

    fake = types.SimpleNamespace(
        start_run=failing,
        get_tracking_uri=lambda: "sqlite:///x.db",
        exceptions=types.SimpleNamespace(MlflowException=LookupError),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with pytest.raises(TrainingError, match=r"mlflow: no run at sqlite:///x.db \(no such database\); set"):
        quiet(config(mlflow=True))


def test_mlflow_gets_parameters_metrics_and_the_model(config, monkeypatch):
    calls = []

    class Run:
        info = types.SimpleNamespace(run_id="r1")

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            calls.append(("end", exception[0]))

    fake = types.SimpleNamespace(
        start_run=lambda **options: calls.append(("start", options)) or Run(),
        exceptions=types.SimpleNamespace(MlflowException=LookupError),
        log_params=lambda parameters: calls.append(("params", parameters)),
        log_metrics=lambda metrics, step=None: calls.append(("metrics", metrics, step)),
        log_artifact=lambda path: calls.append(("artifact", path)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    path = quiet(config(mlflow=True))
    kinds = [call[0] for call in calls]
    assert kinds == ["start", "params", "metrics", "metrics", "metrics", "metrics", "artifact", "end"]
    assert calls[0][1] == {"run_id": None, "run_name": "out"}
    assert calls[1][1]["optimiser.learning_rate"] == "0.001"
    assert calls[3][2] == 1
    assert "fold0/validation_loss" in calls[3][1]
    assert "test/m_tt_resolution" in calls[5][1]
    assert calls[6][1] == str(path)


def test_any_task_with_the_settings_of_a_configuration(config, tmp_path):
    """`fit_task` gives the networks of `train`, and continues where it was stopped."""
    settings = config()
    fitted = fit_task(task_of(settings), settings, tmp_path / "task", progress=False)
    (expected,) = load_model(train(settings, progress=False)).networks
    for name, tensor in fitted.networks[0].state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
    again = fit_task(task_of(settings), settings, tmp_path / "task", progress=False)
    assert again.best == fitted.best
    other = config(epochs=settings.epochs + 1)
    with pytest.raises(TrainingError, match="differs in the configuration"):
        fit_task(task_of(other), other, tmp_path / "task", progress=False)


def test_a_batch_job_with_tasks(config, monkeypatch):
    """Its number of tasks is not that of the training; processes that srun started are one error."""
    for name, value in {"NTASKS": "4", "JOB_NAME": "train", "JOB_ID": "1", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert quiet(config(epochs=1)).exists()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(TrainingError, match=r"srun started 4 processes of one training; srun --ntasks=1"):
        quiet(config(epochs=1))
