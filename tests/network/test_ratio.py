"""Ratios of densities: from two skims to weights, on toys whose ratio is known."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import topreco
from topreco.cli import app
from topreco.config import RatioConfig, RatioTrainConfig, TrainConfig, load_training
from topreco.core.errors import TopRecoError
from topreco.core.events import dataset_id, toy_events
from topreco.core.observables import compute_observables
from topreco.core.ratios import LogRatioCalibration
from topreco.core.skim import Skim, SkimWriter
from topreco.network.model_file import load_model
from topreco.network.splits import fold_of
from topreco.network.task import TrainingError
from topreco.network.tasks.ratio import RatioNetwork
from topreco.network.train import train
from topreco.network.train_ratio import train_ratio
from topreco.reconstruction.load import load_method

TINY = {"kind": "transformer", "blocks": 1, "channels": 16, "heads": 2}


def log_weight(events):
    """Log-ratio of A and B up to a constant."""
    return 1.5 * np.tanh(events.lepton_plus[:, 1] / 40)


def write(path, events, truth=None, **selection):
    with SkimWriter(path) as writer:
        writer.metadata |= {"selection": selection}
        writer.write(events, truth)
    return path


def of_dataset(n, name, seed):
    events = toy_events(n, max_jets=3, seed=seed)
    return dataclasses.replace(events, dataset=np.full(n, dataset_id(name), np.uint64))


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """A and B of 3000 events; those of A have weights, which are the ratio."""
    folder = tmp_path_factory.mktemp("samples")
    a, b = of_dataset(3000, "a", 1), of_dataset(3000, "b", 2)
    write(folder / "a.parquet", dataclasses.replace(a, weight=np.exp(log_weight(a))))
    write(folder / "b.parquet", b)
    return folder


@pytest.fixture(scope="module")
def make_config(samples):
    def make(**changes):
        changes = copy.deepcopy(changes)
        model = {"task": "ratio", "backbone": TINY, "scalars": 16, "hidden": 16, "calibration_events": 300}
        content = {
            "a": [samples / "a.parquet"],
            "b": [samples / "b.parquet"],
            "model": model | changes.pop("model", {}),
            "data": {"folds": 2} | changes.pop("data", {}),
            "optimiser": {"kind": "adamw", "learning_rate": 3e-3, "ema_decay": 0.9},
            "epochs": 6,
            "batch_size": 64,
            "accelerator": "cpu",
        }
        return RatioTrainConfig.model_validate(content | changes)

    return make


@pytest.fixture
def config(make_config, tmp_path):
    return lambda **changes: make_config(**{"output": tmp_path / "out"} | changes)


def trained(config, **options):
    return topreco.load(train_ratio(config, progress=False, **options))


@pytest.fixture(scope="module")
def ratio(make_config, tmp_path_factory):
    """The ratio of both samples."""
    return trained(make_config(output=tmp_path_factory.mktemp("ratio")))


def test_a_known_ratio_is_learnt(ratio, samples):
    events, _ = Skim(samples / "b.parquet").read()
    found = ratio.log_ratio(events)
    true = log_weight(events)
    assert np.corrcoef(found, true)[0, 1] > 0.75
    # Weights give the mean of A.
    a, _ = Skim(samples / "a.parquet").read()
    weighted = np.average(events.lepton_plus[:, 1], weights=ratio(events))
    assert weighted == pytest.approx(np.average(a.lepton_plus[:, 1], weights=a.weight), abs=6)
    described = ratio.metadata["ratio"]
    assert described["a"]["files"] == ["a.parquet"]
    assert described["b"]["events"] == 3000
    assert described["negative_weights"] is None
    quality = described["quality"]
    assert quality["mean"] == pytest.approx(1, abs=0.15)
    assert quality["events_b"] == 3000
    assert 300 < quality["effective_events"] < 3000
    assert quality["chi2"] < 50


def test_each_event_is_weighted_by_the_network_of_its_fold(ratio, samples):
    events, _ = Skim(samples / "b.parquet").read()
    fold = fold_of(events, 2)
    whole = ratio.log_ratio(events)
    for number, network in enumerate(ratio.model.networks):
        chosen = events[fold == number][:50]
        columns = {k: torch.from_numpy(np.asarray(v)) for k, v in inputs_of(chosen).items()}
        with torch.no_grad():
            expected = network(columns).numpy()
        np.testing.assert_allclose(whole[fold == number][:50], expected, rtol=1e-3, atol=1e-4)


def inputs_of(events):
    from topreco.network.tokens import Inputs

    return Inputs.from_events(events).columns()


def test_it_may_begin_with_an_encoder(config, samples, tmp_path):
    """Pre-trained without truth; all networks have it when they begin, and the file says so."""
    content = {
        "model": {"task": "masked", "backbone": TINY},
        "data": {"files": [samples / "a.parquet"], "max_events": 200},
        "epochs": 1,
        "accelerator": "cpu",
        "output": tmp_path / "masked",
    }
    parent = train(TrainConfig.model_validate(content), progress=False)
    changes = {
        "init": {"model": str(parent), "frozen_epochs": 1},
        "epochs": 1,
        "optimiser": {"kind": "adamw", "learning_rate": 1e-3, "ema_decay": None},
    }
    ratio = trained(config(**changes))
    source = load_model(parent).networks[0].encoder
    for network in ratio.model.networks:
        own, other = network.encoder.state_dict(), source.state_dict()
        same = [name for name in own if torch.equal(own[name], other[name])]
        assert {name for name in own if name not in same} <= {name for name in own if "linear_out" in name}
    assert ratio.metadata["parent"]["task"] == "masked"
    assert ratio.metadata["training"]["init"]["model"] == "model.safetensors"
    with pytest.raises(TrainingError, match=r"init\.model model\.safetensors: knows reconstructed objects"):
        trained(config(**changes | {"model": {"inputs": "generated"}}))
    with pytest.raises(TrainingError, match=r"model\.backbone\.channels is 16 in the parent, 32 here"):
        trained(config(**changes | {"model": {"backbone": TINY | {"channels": 32}}}))


@pytest.mark.slow
def test_negative_weights_do_not_bias(config, samples, tmp_path):
    """Signs whose mean depends on the lepton; with |w| the two samples would be equal."""
    a = of_dataset(8000, "signed", 3)
    mean = 0.52 + 0.3 * log_weight(a)
    positive = np.random.default_rng(1).random(len(a)) < (1 + mean) / 2
    write(tmp_path / "a.parquet", dataclasses.replace(a, weight=np.where(positive, 1.0, -1.0)))
    ratio = trained(config(a=[tmp_path / "a.parquet"]))
    events, _ = Skim(samples / "b.parquet").read()
    true = np.log(0.52 + 0.3 * log_weight(events))
    assert np.corrcoef(ratio.log_ratio(events), true)[0, 1] > 0.6
    negative = ratio.metadata["ratio"]["negative_weights"]
    assert 0 <= negative["negative"] < 0.2
    assert ratio.metadata["ratio"]["a"]["negative"] == pytest.approx((~positive).mean())


def test_generated_tops_and_leptons(config, truth_of, tmp_path):
    """The ratio of generated quantities, from the truth alone."""
    paths = []
    for name, seed in (("a", 1), ("b", 2)):
        events = of_dataset(1000, name, seed)
        truth = truth_of(events)
        lepton = events.lepton_p4
        truth = dataclasses.replace(truth, w=2 * lepton, neutrino=lepton)
        weight = np.exp(log_weight(events)) if name == "a" else np.ones(1000)
        paths.append(write(tmp_path / f"{name}.parquet", dataclasses.replace(events, weight=weight), truth))
    ratio = trained(config(a=paths[:1], b=paths[1:], model={"inputs": "generated"}, epochs=10))
    events, truth = Skim(paths[1]).read()
    # What was measured does not matter.
    blind = dataclasses.replace(events, jets=0 * events.jets, met=0 * events.met)
    found = ratio.log_ratio(blind, truth)
    assert np.corrcoef(found, log_weight(events))[0, 1] > 0.8
    with pytest.raises(TrainingError, match="these events have no truth, as data have none"):
        ratio(events)


def test_observables_of_generated_events(config, truth_of, tmp_path):
    """A difference in one of them."""
    paths, values = [], {}
    for name, seed in (("a", 1), ("b", 2)):
        events = of_dataset(2500, name, seed)
        lepton = events.lepton_p4
        truth = dataclasses.replace(truth_of(events), w=2 * lepton, neutrino=lepton)
        found = compute_observables(("c_hel",), truth.tops, truth.tops.sum(1), lepton, truth.valid)["c_hel"]
        weight = 1 + 0.9 * found if name == "a" else np.ones(2500)
        paths.append(write(tmp_path / f"{name}.parquet", dataclasses.replace(events, weight=weight), truth))
        values[name] = found
    model = {"inputs": "generated", "observables": ["m_tt", "c_hel"]}
    ratio = trained(config(a=paths[:1], b=paths[1:], model=model, epochs=8))
    events, truth = Skim(paths[1]).read()
    assert np.corrcoef(ratio.log_ratio(events, truth), values["b"])[0, 1] > 0.8


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"inputs": "generated", "observables": ["c_hell"]}, "unknown observable 'c_hell'; did you mean"),
        ({"observables": ["c_hel"]}, "'c_hel' found with inputs 'objects'"),
    ],
)
def test_observables_that_do_not_exist(make_config, model, message):
    with pytest.raises(ValueError, match=message):
        make_config(model=model)


def test_generated_quantities_of_data_are_refused(config):
    with pytest.raises(TrainingError, match=r"a: .*a.parquet: no truth in this skim"):
        train_ratio(config(model={"inputs": "generated"}), progress=False)


def test_an_interrupted_training_continues_and_a_finished_one_is_not_repeated(config, monkeypatch):
    from topreco.network import train_ratio as module

    short = {"epochs": 1, "model": {"members": 2}, "data": {"max_events": 300}}
    whole = train_ratio(config(**short, output=config().output / "whole"), progress=False)
    settings = config(**short)

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_calibrate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_ratio(settings, progress=False)
    assert not (settings.output / "model.safetensors").exists()
    path = train_ratio(settings, progress=False)
    assert path.read_bytes() == whole.read_bytes()
    changed = path.stat().st_mtime_ns
    assert train_ratio(settings, progress=False).stat().st_mtime_ns == changed
    with pytest.raises(TrainingError, match="holds a training that differs in the configuration"):
        train_ratio(config(**short, seed=2), progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": np.zeros(100)}, "b: all weights of the 100 events are zero"),
        ({"weight": -np.ones(100)}, "b: sum of the weights -100 found, a positive one expected"),
        ({"weight": np.full(100, np.nan)}, "b: .*100 events with non-finite weight"),
        ({"event": np.zeros(100, np.uint64)}, "b: the key .* is the same for all events"),
    ],
)
def test_bad_weights_and_keys(config, tmp_path, changes, message):
    path = write(tmp_path / "bad.parquet", dataclasses.replace(of_dataset(100, "bad", 5), **changes))
    with pytest.raises(TrainingError, match=message):
        train_ratio(config(b=[path]), progress=False)


def test_an_event_in_both_samples_is_refused(config, samples, tmp_path):
    b, _ = Skim(samples / "b.parquet").read()
    path = write(tmp_path / "again.parquet", dataclasses.replace(b[17:19], weight=np.full(2, 3.0)))
    with pytest.raises(
        TrainingError, match=r"a, b: 2 events are in both samples, .* event 17 of the dataset"
    ):
        train_ratio(config(a=[samples / "a.parquet", path]), progress=False)


def test_samples_need_the_same_tokens(config, tmp_path):
    other = write(tmp_path / "jets.parquet", toy_events(50, max_jets=5))
    with pytest.raises(TrainingError, match=r"a, b: .* has the shape \(3,.*\(5,.*same tokens expected"):
        train_ratio(config(b=[other]), progress=False)


def test_samples_need_one_tagger(config, tmp_path):
    paths = [
        write(tmp_path / f"{tagger}.parquet", of_dataset(50, tagger, 1), jet={"btag": tagger})
        for tagger in ("btagDeepFlavB", "btagPNetB")
    ]
    with pytest.raises(
        TrainingError, match=r"one b tagger expected .*btagPNetB in .*btagPNetB.parquet found"
    ):
        train_ratio(config(a=paths[:1], b=paths[1:]), progress=False)


def test_missing_samples(config, tmp_path):
    with pytest.raises(TrainingError, match=r"b: no skims given"):
        train_ratio(config(b=[]), progress=False)
    empty = write(tmp_path / "empty.parquet", toy_events(3)[:0])
    with pytest.raises(TrainingError, match=r"b: .*empty.parquet: no events in this skim"):
        train_ratio(config(b=[empty]), progress=False)


def test_a_ratio_reconstructs_nothing(ratio):
    path = ratio.path
    with pytest.raises(TopRecoError, match=r"task 'ratio'.* a method that reconstructs tops expected"):
        load_method(path)


def test_command(samples, tmp_path):
    arguments = [
        *("train", "--config", "ratio.yaml", "--quiet", f"a=[{samples / 'a.parquet'}]"),
        *(
            f"b=[{samples / 'b.parquet'}]",
            "model.backbone={kind: transformer, blocks: 1, channels: 8, heads: 2}",
        ),
        *("epochs=1", "data.folds=2", "data.max_events=200", "accelerator=cpu", f"output={tmp_path}"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "model.safetensors" in result.output


def test_configuration_by_task():
    assert isinstance(load_training(None, ["model.task=ratio"]), RatioTrainConfig)
    assert not isinstance(load_training(None, []), RatioTrainConfig)
    with pytest.raises(TopRecoError, match=r"data\.folds"):
        load_training("ratio.yaml", ["data.folds=1"])


def test_network_evaluates_its_calibration():
    """The function of torch is that of numpy."""
    network = RatioNetwork(RatioConfig.model_validate({"backbone": TINY, "calibration_bins": 6}))
    calibration = LogRatioCalibration(np.array([-1.0, 0.5, 2.0]), np.array([-2.0, 0.0, 0.5]))
    network.set_calibration(calibration)
    x = torch.linspace(-4, 4, 50)
    network.raw = lambda columns: columns["x"]
    np.testing.assert_allclose(network({"x": x}).numpy(), calibration(x.numpy()), atol=1e-5)
