import copy
import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from topreco.config import OptimiserConfig, TrainConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, Truth, toy_events
from topreco.core.skim import SkimWriter
from topreco.network.fit import loop as training
from topreco.network.fit.loop import TrainingError, learning_rate, pair_metrics, train
from topreco.network.inference import predict
from topreco.network.model_file import load_model
from topreco.network.splits import TEST, TRAIN, VALIDATION, fold_of, split_of
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

N_EVENTS = 160


def toy_truth(events: DileptonEvents) -> Truth:
    """Made-up tops: lepton plus b candidate, with the mass of a top quark."""
    n = len(events)
    momenta = np.stack([events.lepton_plus, events.lepton_minus], 1) + events.b_candidate_p4
    momenta[..., 0] = np.sqrt(172.5**2 + (momenta[..., 1:] ** 2).sum(-1))
    nothing = np.full((n, 2, 4), np.nan)
    return Truth(
        tops=momenta,
        w=nothing,
        b=nothing,
        lepton=nothing,
        neutrino=nothing,
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.ones(n, bool),
        production=np.zeros(n, np.int8),
    )


@pytest.fixture(scope="session")
def skim(tmp_path_factory):
    events = toy_events(N_EVENTS, max_jets=4)
    # A few negative weights, as generators at next-to-leading order give.
    events.weight[::7] = -1
    path = tmp_path_factory.mktemp("skims") / "toy.parquet"
    with SkimWriter(path) as writer:
        writer.metadata |= {"selection": {"leading_pt_min": 25.0}, "datasets": {"toy": 2**64 - 1}}
        writer.write(events, toy_truth(events))
    return path


@pytest.fixture
def config(skim, tmp_path):
    def make(**changes):
        content = {
            "model": {
                "backbone": {
                    "blocks": 1,
                    "vector_channels": 4,
                    "scalar_channels": 8,
                    "heads": 1,
                    "dropout": 0.1,
                },
                "tokens": {"max_jets": 4},
            },
            "data": {"files": [skim]},
            "epochs": 3,
            "batch_size": 32,
            "accelerator": "cpu",
            "threads": 1,
            "output": tmp_path / "out",
        }
        content["model"]["backbone"]["kind"] = "lgatr_slim"
        for key, value in changes.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        return TrainConfig.model_validate(content)

    return make


def quiet(config, **options):
    return train(config, progress=False, **options)


def rows(folder):
    """Metrics of each epoch without the times, which differ."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in {"seconds", "events_per_second"}}
        for line in lines
    ]


# ---- the loop --------------------------------------------------------------------------------------------


def test_learns_a_toy(config):
    path = quiet(
        config(
            epochs=40,
            batch_size=16,
            patience=None,
            data={"test_fraction": 0.0},
            model={
                "backbone": {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 8, "scalar_channels": 16}
            },
            optimiser={"learning_rate": 1e-2},
        )
    )
    losses = [row["train_loss"] for row in rows(path.parent)]
    assert losses[-1] < 0.25 * losses[0]
    metrics = load_model(path).metadata["metrics"]["best"][0]
    assert metrics["validation_m_tt_correlation"] > 0.8


@pytest.fixture
def skim_with_leptons(tmp_path):
    """As `skim`, with the reconstructed leptons for the true ones, one of them unknown."""
    events = toy_events(N_EVENTS, max_jets=4)
    truth = toy_truth(events)
    truth.lepton[:] = np.stack([events.lepton_plus, events.lepton_minus], 1)
    truth.lepton[5] = np.nan
    with SkimWriter(tmp_path / "leptons.parquet") as writer:
        writer.write(events, truth)
    return writer.path


AUXILIARY = ("m_tt", "top_mass", "pt_top", "c_hel")


@pytest.mark.parametrize("head", ["direct", "neutrinos"])
def test_auxiliary_losses_are_trained(config, skim_with_leptons, head, tmp_path):
    """Each term alone, and all together: a term that is not in the loss would not move the weights."""
    weights = {}
    for name, loss in {
        "none": {},
        "all": dict.fromkeys(AUXILIARY, 0.5),
        **{name: {name: 0.5} for name in AUXILIARY},
    }.items():
        path = quiet(
            config(
                epochs=1,
                loss=loss,
                model={"head": head},
                data={"files": [skim_with_leptons]},
                output=tmp_path / name,
                augment_rotation=True,
                augment_reflection=True,
            )
        )
        weights[name] = torch.cat([p.flatten() for p in load_model(path).networks[0].parameters()])
    for name, own in weights.items():
        assert own.isfinite().all()
        assert not any(torch.equal(own, other) for key, other in weights.items() if key != name), name


def test_c_hel_needs_true_leptons(config):
    with pytest.raises(
        TrainingError, match=r"loss.c_hel: 0.1 found, but no event of data.files has both true leptons"
    ):
        quiet(config(loss={"c_hel": 0.1}))


def test_output(config, tmp_path):
    path = quiet(config())
    assert path == tmp_path / "out" / "model.safetensors"
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "metrics.csv",
        "metrics.jsonl",
        "model.safetensors",
        "state.ckpt",
    ]
    metadata = load_model(path).metadata
    assert metadata["training"]["epochs"] == 3
    assert metadata["training"]["data"]["files"] == ["toy.parquet"]
    (file,) = metadata["data"]["files"]
    assert file["name"] == "toy.parquet"
    assert file["selection"] == {"leading_pt_min": 25.0}
    assert file["datasets"] == {"toy": 2**64 - 1}
    assert metadata["data"]["networks"][0]["train"]["events"] > 0
    assert set(metadata["metrics"]["test"]) == {
        "loss",
        "m_tt_bias",
        "m_tt_resolution",
        "m_tt_correlation",
        "m_tt_slope",
        "pt_top_rms",
        "y_top_rms",
        "efficiency",
    }
    # Nothing tells where it was made.
    assert str(tmp_path.parent).encode() not in path.read_bytes()
    table = list(csv.DictReader((path.parent / "metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in table] == ["0", "1", "2"]
    assert float(table[1]["validation_loss"]) == rows(path.parent)[1]["validation_loss"]
    assert rows(path.parent)[0]["step"] == 3


def test_test_metrics_are_those_of_the_saved_network(config, skim):
    path = quiet(config(data={"test_fraction": 0.3}))
    model = load_model(path)
    events = toy_events(N_EVENTS, max_jets=4)
    events.weight[::7] = -1
    chosen = events[split_of(events, config(data={"test_fraction": 0.3}).data) == TEST]
    pair = predict(model.networks, chosen)
    expected = pair_metrics(pair.p4, toy_truth(chosen).tops, chosen.weight)
    found = model.metadata["metrics"]["test"]
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3), key


def test_same_seed_same_bytes_other_seed_other_weights(config, tmp_path):
    paths = [
        quiet(config(output=tmp_path / name / "run", seed=seed, data={"folds": 2}))
        for name, seed in [("a", 1), ("a2", 1), ("b", 2)]
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    first, _, other = [load_model(path) for path in paths]
    assert not torch.equal(next(first.networks[0].parameters()), next(other.networks[0].parameters()))
    assert not torch.equal(next(first.networks[0].parameters()), next(first.networks[1].parameters()))


VARIANTS = {
    "adamw": {"augment_rotation": True, "augment_reflection": True, "augment_charge_exchange": True},
    "bias": {"loss": {"m_tt_bias": 1.0}},
    "folds": {"data": {"folds": 2}},
    "muon": {"optimiser": {"kind": "muon"}},
    "schedulefree": {"optimiser": {"kind": "schedulefree"}},
    "no_average": {"optimiser": {"ema_decay": None, "clip_norm": None, "schedule": "constant"}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_equals_uninterrupted(config, tmp_path, monkeypatch, variant):
    uninterrupted = quiet(config(output=tmp_path / "whole" / "run", **VARIANTS[variant]))
    interrupted = config(output=tmp_path / "parts" / "run", **VARIANTS[variant])
    steps_left = 0

    def interrupting(*arguments):
        nonlocal steps_left
        if steps_left == 0:
            raise KeyboardInterrupt
        steps_left -= 1
        return training_loss(*arguments)

    training_loss = training.event_loss
    with monkeypatch.context() as patch:
        patch.setattr(training, "event_loss", interrupting)
        # Three steps and one validation make an epoch: in the first, while validating, in the second.
        for steps_left in (2, 3, 5):  # noqa: B007 - read inside `interrupting`
            with pytest.raises(KeyboardInterrupt):
                quiet(interrupted)
    resumed = quiet(interrupted)
    assert resumed.read_bytes() == uninterrupted.read_bytes()
    assert rows(resumed.parent) == rows(uninterrupted.parent)
    assert [row["epoch"] for row in rows(resumed.parent)][:3] == [0, 1, 2]


EVERYTHING = {
    "data": {"folds": 2},
    "model": {"quantiles": {}},
    "quantiles": {"epochs": 1},
    "loss": {"flat_m_tt": 0.5, "m_tt_bias": 0.1},
    "augment_rotation": True,
    "augment_reflection": True,
    "augment_charge_exchange": True,
}


@pytest.mark.parametrize("changes", [{}, EVERYTHING], ids=["plain", "everything"])
def test_streamed_training_gives_the_same_bits(config, tmp_path, changes):
    folders = [tmp_path / "memory" / "run", tmp_path / "disk" / "run"]
    for folder, stream in zip(folders, (False, True), strict=True):
        data = {**changes.get("data", {}), "stream": stream, "cache": tmp_path / "cache"}
        quiet(config(**{**changes, "data": data, "output": folder}))
    one, two = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one == two
    assert rows(folders[0]) == rows(folders[1])
    assert list((tmp_path / "cache").iterdir()) == []


def test_where_data_are_may_change_when_a_training_resumes(config, tmp_path, monkeypatch):
    whole = quiet(config(output=tmp_path / "whole" / "run"))
    stopped = config(output=tmp_path / "stopped" / "run")
    write = training._write_state

    def stopping(*arguments):
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_write_state", stopping)
        with pytest.raises(KeyboardInterrupt):
            quiet(stopped)
    resumed = quiet(config(output=stopped.output, data={"stream": True, "cache": tmp_path / "cache"}))
    assert resumed.read_bytes() == whole.read_bytes()


# Trains where coffea, ROOT I/O and plotting are not installed, and dies without warning in step 4.
KILLED = """
import os, signal, sys
for name in ("coffea", "uproot", "awkward", "hist", "matplotlib", "mplhep"):
    sys.modules[name] = None
from topreco.config import TrainConfig
from topreco.network.fit import loop as training
loss, calls = training.event_loss, 0
def killing(*arguments):
    global calls
    calls += 1
    if calls == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
training.event_loss = killing
training.train(TrainConfig.model_validate_json(sys.argv[1]), progress=False)
"""


def test_resumes_after_kill_9_and_needs_no_coffea(config, tmp_path):
    killed = config(output=tmp_path / "killed" / "run")
    process = subprocess.run(
        [sys.executable, "-c", KILLED, killed.model_dump_json()], check=False, capture_output=True, text=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(rows(killed.output)) == 1
    uninterrupted = quiet(config(output=tmp_path / "whole" / "run"))
    assert quiet(killed).read_bytes() == uninterrupted.read_bytes()
    assert [row["epoch"] for row in rows(killed.output)] == [0, 1, 2]


def test_what_an_interruption_wrote_too_early_is_gone_after_resuming(config, monkeypatch):
    def failing(output, state):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # The metrics of the epoch are on disk, its state is not.
        patch.setattr(training, "_write_state", failing)
        with pytest.raises(KeyboardInterrupt):
            quiet(config())
    assert len(rows(config().output)) == 1
    assert len(rows(quiet(config()).parent)) == 3


def test_finished_training_is_not_repeated(config, monkeypatch, capsys):
    path = quiet(config())
    before = path.read_bytes()
    monkeypatch.setattr(training, "TopNetwork", None)
    assert train(config()) == path
    assert "already trained" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_lost_model_file_is_written_again(config):
    path = quiet(config())
    before = path.read_bytes()
    path.unlink()
    quiet(config())
    assert path.read_bytes() == before


def test_another_configuration_is_refused(config):
    quiet(config())
    other = config(epochs=4, optimiser={"learning_rate": 0.5})
    with pytest.raises(
        TrainingError,
        match=r"out: holds a training that differs in the configuration \(epochs: 3 there, 4 here; "
        r"optimiser.learning_rate: 0.001 there, 0.5 here\).*--restart to start afresh",
    ):
        quiet(other)
    assert len(rows(quiet(other, restart=True).parent)) == 4


def test_where_a_training_runs_may_differ(config):
    quiet(config())
    quiet(config(threads=None, accelerator="auto"))


def test_other_data_of_the_same_name_are_refused(config, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    events = toy_events(100, max_jets=4)
    with SkimWriter(tmp_path / "other" / "toy.parquet") as writer:
        writer.write(events, toy_truth(events))
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_model", None)
        with pytest.raises(TypeError):
            quiet(config())
    with pytest.raises(TrainingError, match=r"differs in the training data \(events: 160 there, 100 here"):
        quiet(config(data={"files": [tmp_path / "other" / "toy.parquet"]}))


def test_early_stopping_keeps_the_best_weights(config, monkeypatch):
    losses, seen = [3.0, 1.0, 1.0, 2.0, 0.1], []

    def scripted(network, data, index, weights, config):
        seen.append(copy.deepcopy(network.state_dict()))
        return {"loss": losses[len(seen) - 1]} | dict.fromkeys(
            ("m_tt_bias", "m_tt_resolution", "m_tt_correlation", "pt_top_rms"), 0.0
        )

    monkeypatch.setattr(training, "_evaluate", scripted)
    path = quiet(config(epochs=5, patience=2))
    assert len(seen) == 4
    saved = load_model(path).networks[0].state_dict()
    assert all(torch.equal(saved[name], seen[1][name]) for name in saved)
    assert not all(torch.equal(saved[name], seen[3][name]) for name in saved)


def test_without_validation_events_the_last_weights_are_kept(config, monkeypatch):
    seen = []
    update = training._update_average
    monkeypatch.setattr(
        training, "_update_average", lambda average, *rest: (update(average, *rest), seen.append(average))
    )
    path = quiet(config(data={"validation_fraction": 0.0}, patience=1))
    assert len(rows(path.parent)) == 3
    assert "validation_loss" not in rows(path.parent)[0]
    saved = load_model(path).networks[0].state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in seen[-1].state_dict().items())


class Recording(TopNetwork):
    """Remembers which events it was trained on, and with which it was standardised."""

    def __init__(self, config):
        super().__init__(config)
        self.trained, self.standardised = set(), set()

    def __deepcopy__(self, memo):
        # The average must be a network of its own that records nothing of this one.
        other = TopNetwork(self.config)
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, inputs):
        if self.training:
            self.trained |= set(inputs.lepton_plus[:, 0].tolist())
        return super().forward(inputs)

    def fit_standardisation(self, inputs):
        self.standardised |= set(inputs.lepton_plus[:, 0].tolist())
        super().fit_standardisation(inputs)


@pytest.mark.parametrize("folds", [1, 3])
def test_no_network_has_seen_the_events_it_is_tested_on(config, monkeypatch, folds):
    built = []

    def recording(config):
        built.append(Recording(config))
        return built[-1]

    monkeypatch.setattr(training, "TopNetwork", recording)
    settings = config(data={"folds": folds})
    quiet(settings)
    trained = built[:folds]
    # Energies of leptons are unique, so they tell which event was seen.
    events = toy_events(N_EVENTS, max_jets=4)
    energy = events.lepton_plus[:, 0].astype(np.float32).astype(float)
    assert len(set(energy)) == N_EVENTS
    split, fold = split_of(events, settings.data), fold_of(events, folds)
    for number, network in enumerate(trained):
        tested = fold == number if folds > 1 else split == TEST
        assert not network.trained & set(energy[tested | (split == VALIDATION)])
        allowed = set(energy[(split == TRAIN) & ~tested])
        assert network.standardised == allowed
        # The last incomplete batch is drawn anew in each epoch, so nearly all were seen.
        assert network.trained <= allowed
        assert len(network.trained) > 0.9 * len(allowed)


@pytest.mark.parametrize("kind", ["clip", "absolute"])
def test_negative_weights_count_as_configured(config, tmp_path, kind):
    """Clipped, what happens in events of weight −1 has no influence on the network."""
    events = toy_events(N_EVENTS, max_jets=4)
    events.weight[::7] = -1
    truth = toy_truth(events)
    truth.tops[events.weight < 0, :, 1:] += 50.0
    with SkimWriter(tmp_path / "toy.parquet") as writer:
        writer.write(events, truth)
    changes = {"loss": {"negative_weights": kind}, "epochs": 2}
    one = load_model(quiet(config(output=tmp_path / "one", **changes)))
    two = load_model(
        quiet(config(output=tmp_path / "two", data={"files": [tmp_path / "toy.parquet"]}, **changes))
    )
    same = [
        torch.equal(*pair) for pair in zip(*(x.networks[0].parameters() for x in (one, two)), strict=True)
    ]
    assert all(same) if kind == "clip" else not all(same)


def test_each_step_has_its_rate_and_a_clipped_gradient(config, monkeypatch):
    rates, norms = [], []

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            rates.extend({group["lr"] for group in self.param_groups})
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())
            super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    settings = config(optimiser={"learning_rate": 0.01, "warmup": 0.4, "clip_norm": 1e-3})
    quiet(settings)
    assert rates == [learning_rate(step, 9, settings.optimiser) for step in range(9)]
    assert max(norms) <= 1.001e-3


def test_schedulefree_is_evaluated_at_its_averages(config, monkeypatch):
    made, modes = [], []
    create, evaluate = training._optimisers, training._evaluate

    def evaluating(*arguments):
        modes.append({group["train_mode"] for group in made[0].param_groups})
        return evaluate(*arguments)

    monkeypatch.setattr(
        training, "_optimisers", lambda *arguments: made.extend(create(*arguments)) or made[-1:]
    )
    monkeypatch.setattr(training, "_evaluate", evaluating)
    quiet(config(optimiser={"kind": "schedulefree"}))
    assert modes == [{False}] * 3


def test_bias_at_given_truth_is_trained(config):
    """The coefficient reaches both the gradient and the validation loss."""
    runs = {}
    for coefficient in (0.0, 5.0):
        changes = {"loss": {"m_tt_bias": coefficient}, "output": config().output / str(coefficient)}
        path = quiet(config(**changes, epochs=1))
        runs[coefficient] = rows(path.parent)[0], next(load_model(path).networks[0].parameters())
    (plain, weights), (biased, other) = runs.values()
    assert biased["train_loss"] != plain["train_loss"]
    assert biased["validation_loss"] != plain["validation_loss"]
    assert not torch.equal(weights, other)


def test_compiled_trains_as_eager(config, tmp_path, monkeypatch):
    """Captured as a graph; making machine code of it takes a minute and is torch's own matter."""
    calls = []

    def capture(network, **options):
        calls.append(options)
        return compile_(network, **options | {"backend": "aot_eager"})

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", capture)
    # Without dropout, which would draw other numbers.
    model = {"backbone": {"kind": "lgatr_slim", "dropout": None}}
    eager, compiled = (
        rows(quiet(config(compile=choice, epochs=2, model=model, output=tmp_path / str(choice))).parent)
        for choice in (False, True)
    )
    assert calls
    for a, b in zip(eager, compiled, strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-4)


def test_bf16_trains(config):
    losses = [row["train_loss"] for row in rows(quiet(config(precision="bf16-mixed")).parent)]
    assert all(math.isfinite(loss) for loss in losses)


def test_shows_progress(config, capsys):
    train(config(data={"folds": 2}, epochs=1))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "network 1/2 epoch 1/1: loss" in captured.err
    assert "events/s" in captured.err
    assert "trained; test: loss" in captured.err


@pytest.mark.parametrize("variant", ["plain", "augmented", "schedulefree"])
def test_accumulated_parts_train_as_one(config, tmp_path, variant):
    """Parts of unequal size, of the same events: 32 in 5 parts."""
    changes = {
        "plain": {},
        "augmented": {"augment_rotation": True, "augment_charge_exchange": True},
        "schedulefree": {"optimiser": {"kind": "schedulefree"}},
    }[variant]
    whole, parts = (
        rows(quiet(config(accumulate=n, output=tmp_path / str(n), model=NO_DROPOUT, **changes)).parent)
        for n in (1, 5)
    )
    for a, b in zip(whole, parts, strict=True):
        assert a["step"] == b["step"]
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-5)


NO_DROPOUT = {
    "backbone": {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
}

# What torchrun starts; with a number as second argument, it dies without warning in that call of the loss.
PROCESS = """
import os, signal, sys
from topreco.config import TrainConfig
from topreco.network.fit import loop as training
loss, calls = training.event_loss, 0
def killing(*arguments):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
if __name__ == "__main__":
    if len(sys.argv) > 2:
        training.event_loss = killing
    training.train(TrainConfig.model_validate_json(sys.argv[1]))
"""


def in_two_processes(launcher, folder, *arguments):
    """Run `PROCESS` in two processes, which it or torchrun starts."""
    script = folder / "train.py"
    script.write_text(PROCESS)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return subprocess.run(
        [sys.executable, *(torchrun if launcher == "torchrun" else []), str(script), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )


def assert_same_losses(one, two):
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["step"] == b["step"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-5)
        assert a["validation_loss"] == pytest.approx(b["validation_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["devices", "torchrun"])
def test_two_processes_train_as_one(config, tmp_path, launcher):
    """With the gradients averaged, two devices see the same batches as one, also in parts."""
    single = quiet(config(output=tmp_path / "one", model=NO_DROPOUT, augment_rotation=True))
    devices = 2 if launcher == "devices" else 1
    double = config(
        output=tmp_path / "two",
        model=NO_DROPOUT,
        augment_rotation=True,
        devices=devices,
        accumulate=2,
        data={"stream": True},
    )
    for _ in range(2):
        process = in_two_processes(launcher, tmp_path, double.model_dump_json())
        assert process.returncode == 0, process.stderr
    assert process.stderr.count("already trained") == 1
    assert [path.name for path in double.output.iterdir() if path.name.startswith(".")] == []
    assert_same_losses(single.parent, double.output)


@pytest.mark.slow
def test_two_processes_resume_after_kill_9(config, tmp_path):
    whole = quiet(config(output=tmp_path / "whole", model=NO_DROPOUT))
    killed = config(output=tmp_path / "killed", model=NO_DROPOUT)
    # Three steps, and on one of the two the validation, make an epoch.
    process = in_two_processes("torchrun", tmp_path, killed.model_dump_json(), "6")
    assert process.returncode != 0
    assert 1 <= len(rows(killed.output)) < 3
    process = in_two_processes("torchrun", tmp_path, killed.model_dump_json())
    assert process.returncode == 0, process.stderr
    assert_same_losses(whole.parent, killed.output)


# ---- what can go wrong -----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [0, 4])
def test_non_finite_loss_names_its_step(config, monkeypatch, when):
    original, calls = training.event_loss, 0

    def diverging(*arguments):
        nonlocal calls
        calls += 1
        # After three steps of the first epoch comes its validation.
        return original(*arguments) * (math.nan if calls == when + 1 + (when >= 3) else 1)

    monkeypatch.setattr(training, "event_loss", diverging)
    with pytest.raises(TrainingError, match=rf"loss is nan in step {when} \(epoch {when // 3}, network 0\)"):
        quiet(config())


def test_non_finite_gradient_names_its_step(config, monkeypatch):
    original = training.event_loss

    def steep(pred, *arguments):
        # √x is finite at 0, its derivative is not.
        return original(pred, *arguments) + (pred[:, 0, 0] * 0).sqrt()

    monkeypatch.setattr(training, "event_loss", steep)
    with pytest.raises(TrainingError, match=r"gradient is nan in step 0 \(epoch 0, network 0\)"):
        quiet(config())


def test_non_finite_validation_loss(config, monkeypatch):
    monkeypatch.setattr(training, "_evaluate", lambda *arguments: {"loss": math.nan})
    with pytest.raises(TrainingError, match=r"validation loss is nan after step 3 \(epoch 0, network 0\)"):
        quiet(config())


def test_output_folder_cannot_be_written(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TopRecoError, match=r"output folder .*file/out: cannot write there"):
        quiet(config(output=tmp_path / "file" / "out"))


def test_nothing_left_to_train_on(config):
    with pytest.raises(
        TrainingError, match=r"no training events with weight remain for network 0 \(160 events, 0"
    ):
        quiet(config(data={"test_fraction": 1.0}))
    with pytest.raises(TrainingError, match="no skims given"):
        quiet(config(data={"files": []}))


def test_damaged_state(config):
    path = quiet(config()).with_name("state.ckpt")
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(
        TrainingError, match=r"state.ckpt: not a readable training state; --restart starts afresh"
    ):
        quiet(config())
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        record = max(archive.infolist(), key=lambda info: info.file_size)
    damaged = bytearray(whole)
    # The record follows a header of less than 500 bytes.
    damaged[record.header_offset + 500] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(TrainingError, match=r"state.ckpt: damaged, content and checksum differ; --restart"):
        quiet(config())
    torch.save([1], path)
    with pytest.raises(TrainingError, match=r"state.ckpt: written by another version of topreco"):
        quiet(config())
    quiet(config(), restart=True)


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


def test_a_state_that_runs_code_is_refused_unread(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = quiet(config()).with_name("state.ckpt")
    torch.save({"version": 2, "config": Malicious()}, path)
    with pytest.raises(TrainingError, match=r"state.ckpt: not a readable training state"):
        quiet(config())
    assert not (tmp_path / "executed").exists()


def test_a_model_from_elsewhere_is_not_overwritten(config):
    path = quiet(config())
    path.with_name("state.ckpt").unlink()
    with pytest.raises(TrainingError, match=r"model.safetensors: already there"):
        quiet(config())


def test_more_parts_than_events(config):
    with pytest.raises(
        TrainingError,
        match=r"batch_size: 4 events \(\d+ to train on\) cannot be shared by 1 devices in 5 parts",
    ):
        quiet(config(batch_size=4, accumulate=5))


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


# ---- parts -----------------------------------------------------------------------------------------------


def test_learning_rate():
    config = OptimiserConfig(learning_rate=1.0, warmup=0.1)
    assert [learning_rate(step, 100, config) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert learning_rate(10, 100, config) == 1
    assert learning_rate(55, 100, config) == pytest.approx(0.5)
    assert learning_rate(99, 100, config) == pytest.approx(0.5 * (1 - math.cos(math.pi / 90)))
    constant = OptimiserConfig(learning_rate=1.0, warmup=0.1, schedule="constant")
    assert learning_rate(99, 100, constant) == 1
    assert learning_rate(0, 1, OptimiserConfig(learning_rate=1.0, warmup=0.0)) == 1
    assert learning_rate(0, 100, OptimiserConfig(kind="schedulefree", learning_rate=0.3)) == 0.3
    assert learning_rate(0, 1, OptimiserConfig(learning_rate=1.0, warmup=1.0)) == 1


def test_average_by_hand():
    average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    for parameter in average.parameters():
        torch.nn.init.constant_(parameter, 1.0)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 2.0)
    training._update_average(average, network, 0, OptimiserConfig(ema_decay=0.9))
    assert average.weight.item() == pytest.approx(1.9)
    training._update_average(average, network, 1000, OptimiserConfig(ema_decay=0.5))
    assert average.weight.item() == pytest.approx(1.95)


def test_metrics_by_hand():
    # Pairs at rest: masses are sums of energies, so (p − t)/t is 0.2, −0.1 and, with weight −1, 0.5.
    truth = np.zeros((3, 2, 4))
    truth[:, :, 0] = 500.0
    truth[:, 0, 1], truth[:, 1, 1] = 100.0, -100.0
    pred = truth.copy()
    pred[:, :, 0] *= np.array([1.2, 0.9, 1.5])[:, None]
    pred[0, :, 1] *= 1.3
    weight = np.array([2.0, 2.0, -1.0])
    metrics = pair_metrics(pred, truth, weight)
    mean, square = (0.4 - 0.2 - 0.5) / 3, (2 * 0.04 + 2 * 0.01 - 0.25) / 3
    assert metrics["m_tt_bias"] == pytest.approx(mean)
    assert math.isnan(metrics["m_tt_resolution"])
    assert square - mean**2 < 0
    assert metrics["pt_top_rms"] == pytest.approx((2 * 30.0**2 / 3) ** 0.5)
    assert metrics["efficiency"] == 1
    unsigned = pair_metrics(pred, truth, np.abs(weight))
    mean, square = (0.4 - 0.2 + 0.5) / 5, (2 * 0.04 + 2 * 0.01 + 0.25) / 5
    assert unsigned["m_tt_resolution"] == pytest.approx((square - mean**2) ** 0.5)


def test_correlation_and_slope_see_shrinkage():
    rng = np.random.default_rng(0)
    log_truth = 6.2 + 0.3 * rng.normal(size=5000)
    truth, pred = np.zeros((5000, 2, 4)), np.zeros((5000, 2, 4))
    truth[..., 0] = 0.5 * np.exp(log_truth)[:, None]
    pred[..., 0] = 0.5 * np.exp(6.2 + 0.5 * (log_truth - 6.2))[:, None]
    metrics = pair_metrics(pred, truth, np.ones(5000))
    assert metrics["m_tt_correlation"] == pytest.approx(1.0)
    assert metrics["m_tt_slope"] == pytest.approx(0.5)


def test_metrics_of_failures_and_of_nothing():
    truth = toy_truth(toy_events(4)).tops
    pred = truth.copy()
    pred[1] = np.nan
    metrics = pair_metrics(pred, truth, np.ones(4))
    assert metrics["efficiency"] == 0.75
    assert metrics["m_tt_bias"] == pytest.approx(0)
    assert all(math.isnan(value) for value in pair_metrics(pred[:0], truth[:0], np.ones(0)).values())


def test_evaluation_uses_no_dropout_and_restores_the_mode(config, skim):
    data = training.read_training_data(config().data)
    network = TopNetwork(config().model).train()
    index = torch.arange(len(data))
    first, second = (training._evaluate(network, data, index, data.weight.abs(), config()) for _ in range(2))
    assert first == second
    assert network.training
    assert len(Inputs._fields) == len(data.inputs)


@pytest.mark.parametrize("kind", ["lgatr", "lgatr_slim", "transformer"])
def test_muon_takes_the_hidden_matrices_and_nothing_else(kind):
    backbone = {"kind": kind, "blocks": 1}
    network = TopNetwork(TrainConfig.model_validate({"model": {"backbone": backbone}}).model)
    muon, adamw = training._optimisers(OptimiserConfig(kind="muon"), network, 10)
    owners = {
        id(p): optimiser
        for optimiser in (muon, adamw)
        for group in optimiser.param_groups
        for p in group["params"]
    }
    names = {name for name, p in network.named_parameters() if owners[id(p)] is muon}
    assert names
    assert all(".blocks.0." in name and "norm" not in name for name in names)
    # Each parameter has one owner.
    assert len(owners) == sum(len(g["params"]) for o in (muon, adamw) for g in o.param_groups)
    assert len(owners) == len(list(network.parameters()))
