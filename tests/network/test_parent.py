"""Trainings that start from a trained model: first answer, learning rates, resuming, what contradicts."""

import copy
import dataclasses
import itertools
import shutil

import numpy as np
import pytest
import torch

import topreco
from topreco.config import ConfigError, EncoderConfig, PosteriorConfig, TrainConfig, load_config
from topreco.core.errors import TopRecoError
from topreco.core.events import dataset_id, toy_events
from topreco.core.lineage import ancestors, trained_datasets
from topreco.core.prior import METADATA_KEY
from topreco.core.skim import SkimWriter
from topreco.network.encoder import Encoder
from topreco.network.fit.data import read_training_data
from topreco.network.fit.optimisers import build_optimisers
from topreco.network.model_file import ModelFileError, load_model, save_model
from topreco.network.parent import find_parent, load_weights, with_parent
from topreco.network.task import TrainingError
from topreco.network.tasks.posterior import PosteriorTask
from topreco.network.tasks.quantiles import QuantilesTask
from topreco.network.tasks.registry import MODELS
from topreco.network.tasks.tops import TopsTask
from topreco.network.tokens import Inputs, encoder_features
from topreco.network.train import fit_task, recalibrate, task_of, train, train_quantiles

TINY = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
QUANTILES = {"backbone": TINY, "hidden": 8, "observables": ["m_tt", "c_hel"], "calibration_bins": 2}
COMMON = {"backbone": {**TINY, "dropout": 0.1}, "tokens": {"max_jets": 4}, "spurions": {"embed": "token"}}
VELOCITY = {"hidden": 8, "blocks": 1, "frequencies": 2}
OF_POSTERIOR = {"task": "posterior", "hidden": 8, "vectors": 2, "scalars": 4, "velocity": VELOCITY}
PARENTS = {
    "tops": COMMON | {"head": "on_shell", "readout": "mean"},
    "quantiles": COMMON | {"quantiles": QUANTILES},
    "posterior": COMMON | OF_POSTERIOR | {"calibration_bins": 2},
    "tokens": COMMON | OF_POSTERIOR | {"velocity": VELOCITY | {"kind": "tokens"}},
}
TASKS = {"tops": TopsTask, "quantiles": QuantilesTask, "posterior": PosteriorTask}
DATA = {"validation_fraction": 0.4, "test_fraction": 0.1}


def quiet(config, **options):
    return train(config, progress=False, **options)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def parents(skim, tmp_path_factory):
    """Models of each task by name, trained for an epoch."""
    folder = tmp_path_factory.mktemp("parents")
    found = {}
    for name, model in PARENTS.items():
        content = {
            "model": model,
            "data": {"files": [skim], **DATA},
            "optimiser": {"kind": "adamw", "learning_rate": 1e-2},
            "loss": {"draws": 2},
            "quantiles": {"epochs": 1, "batch_size": 32},
            "epochs": 1,
            "batch_size": 32,
            "accelerator": "cpu",
            "seed": 7,
            "output": folder / name,
        }
        with torch.random.fork_rng():
            found[name] = quiet(TrainConfig.model_validate(content))
    return found


@pytest.fixture
def child(skim, tmp_path, parents):
    """Configuration of a training that starts from one of the parents, with nothing said of its model."""

    def make(parent="posterior", **changes):
        content = {
            "init": {"model": str(parents.get(parent, parent))},
            "data": {"files": [skim], **DATA},
            "optimiser": {"kind": "muon", "learning_rate": 1e-2},
            "loss": {"draws": 2},
            "quantiles": {"epochs": 2, "batch_size": 32},
            "epochs": 2,
            "batch_size": 32,
            "accelerator": "cpu",
            "output": tmp_path / "out" / "child",
        }
        for key, value in changes.items():
            content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
        return TrainConfig.model_validate(content)

    return make


@pytest.fixture
def begun():
    """Function that builds and prepares the network of a child as the loop does, and loads the parent."""

    def build(config):
        parent = find_parent(config)
        config = parent.adopted(config)
        task = task_of(config)
        data = read_training_data(config.data, task.columns)
        torch.manual_seed(99)
        network = task.build()
        task.prepare(network, dict(data.columns))
        return network, parent.start(config.model.task).load(0, network), parent.model.networks[0]

    return build


# ---- what is loaded --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARENTS)
def test_the_first_answer_is_the_parents(name, child, begun):
    network, loaded, source = begun(child(name))
    assert loaded == {key for key, _ in network.named_parameters()}
    expected = {key: value for key, value in source.state_dict().items() if key in network.state_dict()}
    assert same(network.state_dict(), expected)
    network.eval()
    inputs = Inputs.from_events(toy_events(40, max_jets=4, seed=5))
    with torch.no_grad():
        for answer, wanted in zip(network.predictions(inputs), source.predictions(inputs), strict=False):
            assert torch.equal(answer, wanted)


@pytest.mark.parametrize("name", ["posterior", "tokens"])
def test_the_first_samples_are_the_parents(name, child, begun):
    network, _, source = begun(child(name))
    inputs = Inputs.from_events(toy_events(20, max_jets=4, seed=5))
    noise = torch.randn(20, 3, 6)
    with torch.no_grad():
        assert torch.equal(network.eval().sample(inputs, noise), source.sample(inputs, noise))


@pytest.mark.parametrize(("there", "here"), [("quantiles", "posterior"), ("posterior", "tops")])
def test_another_task_takes_the_encoder(there, here, child, begun):
    model = OF_POSTERIOR if here == "posterior" else {"task": "tops"}
    network, loaded, source = begun(child(there, model=model))
    assert network.kind == here
    assert loaded
    assert all(name.startswith("encoder.") for name in loaded)
    own, other = network.state_dict(), source.state_dict()
    assert all(torch.equal(own[name], other[name]) for name in loaded)
    # Only the layer that leads out of the encoder can have another shape.
    missing = {name for name, _ in network.encoder.named_parameters(prefix="encoder")} - loaded
    assert all("linear_out" in name for name in missing)
    assert torch.equal(network.encoder.feature_std, source.encoder.feature_std)


def test_scope_encoder(child, begun):
    network, loaded, source = begun(child("posterior", init={"scope": "encoder"}, model=OF_POSTERIOR))
    assert loaded == {name for name, _ in network.named_parameters() if name.startswith("encoder.")}
    assert same(network.encoder.state_dict(), source.encoder.state_dict())
    assert not torch.equal(network.velocity.point.weight, source.velocity.point.weight)
    # Of the child's own events, not of none.
    assert not torch.equal(network.coordinate_std, torch.ones_like(network.coordinate_std))


def test_scales_of_the_parent_are_kept(child, begun, skim_events, truth_of, tmp_path):
    """Events with other b-tag scores: a standardisation that followed them would change the first answer."""
    other = dataclasses.replace(skim_events, jet_btag=0.1 * skim_events.jet_btag)
    with SkimWriter(tmp_path / "other.parquet") as writer:
        writer.write(other, truth_of(other))
    network, _, source = begun(child("tops", data={"files": [writer.path]}))
    fresh = copy.deepcopy(network)
    fresh.encoder.fit_standardisation(Inputs.from_events(other))
    assert torch.equal(network.encoder.feature_mean, source.encoder.feature_mean)
    assert not torch.equal(fresh.encoder.feature_mean, source.encoder.feature_mean)


# ---- pre-training without truth --------------------------------------------------------------------------


PRETRAINED = {
    "masked": {
        "model": {"task": "masked", "backbone": {"kind": "pet", "blocks": 1, "channels": 16, "heads": 2}},
    },
    "tokens": {
        "model": {
            "task": "tokens",
            "backbone": {"kind": "transformer", "blocks": 1, "channels": 16, "heads": 2},
            "encoding": "bins",
            "codes": 8,
        },
    },
}
SEEN = {"tokens": {"max_jets": 4, "btag": "working_points"}}


@pytest.fixture(scope="session")
def pretrained(skim_events, tmp_path_factory):
    """Models of both tasks, trained for an epoch on events without truth."""
    folder = tmp_path_factory.mktemp("pretrained")
    with SkimWriter(folder / "data.parquet") as writer:
        writer.write(skim_events, None)
    found = {}
    for name, content in PRETRAINED.items():
        options = {
            "model": content["model"] | SEEN,
            "data": {"files": [writer.path]},
            "augment_rotation": True,
            "epochs": 1,
            "batch_size": 32,
            "accelerator": "cpu",
            "output": folder / name,
        }
        with torch.random.fork_rng():
            found[name] = quiet(TrainConfig.model_validate(options))
    return found


@pytest.fixture
def taught(skim, pretrained, tmp_path):
    """Configuration of a training with truth, or of further pre-training, that starts from one of them."""

    def make(name, **content):
        options = {
            "init": str(pretrained[name]),
            "data": {"files": [skim]},
            "epochs": 1,
            "batch_size": 64,
            "accelerator": "cpu",
            "output": tmp_path / "out",
        }
        return TrainConfig.model_validate(options | content)

    return make


@pytest.mark.parametrize("task", ["tops", "posterior"])
@pytest.mark.parametrize("name", PRETRAINED)
def test_a_pretrained_encoder_is_taken_over(name, task, taught, begun):
    """All of it but the last layer, if that has another shape; and its scales."""
    model = OF_POSTERIOR if task == "posterior" else {"task": "tops"}
    network, loaded, source = begun(taught(name, model=model))
    assert network.kind == task
    own, other = network.state_dict(), source.state_dict()
    assert loaded
    assert all(key.startswith("encoder.") and torch.equal(own[key], other[key]) for key in loaded)
    missing = {key for key, _ in network.encoder.named_parameters(prefix="encoder")} - loaded
    assert all("linear_out" in key for key in missing)
    assert torch.equal(network.encoder.feature_std, source.encoder.feature_std)


def test_a_pretrained_model_trains_on(pretrained, taught):
    """Whole, with its codes, and its file says from where it comes; it is no method of reconstruction."""
    parent = load_model(pretrained["tokens"])
    found = load_model(quiet(taught("tokens")))
    assert found.kind == "tokens"
    assert torch.equal(found.networks[0].encoding.edges, parent.networks[0].encoding.edges)
    assert found.metadata["parent"]["sha256"] == parent.metadata["sha256"]
    with pytest.raises(TopRecoError, match="model of the task 'tokens', tops or posterior expected"):
        topreco.load(str(pretrained["tokens"]))


# ---- new features ----------------------------------------------------------------------------------------


# A sum in which zeros were added has the same bits in layers of the usual sizes. In tiny ones the linear
# algebra adds up in another order.
SIZES = {
    "lgatr_slim": {},
    "lgatr": {},
    "transformer": {"channels": 64},
    "lloca": {"channels": 64, "heads": 4},
    "pet": {"channels": 64},
}


@pytest.mark.parametrize("normalisation", ["constant", "event_mass"])
@pytest.mark.parametrize("kind", SIZES)
def test_new_features_change_nothing_at_first(kind, normalisation, small_config):
    """Flags of b candidates, which the parent does not have, before the last feature that it does have."""
    configs = [
        small_config(
            kind,
            backbone={"kind": kind, "blocks": 2, **SIZES[kind]},
            tokens={"b_candidates": flags, "max_jets": 5},
            normalisation={"kind": normalisation},
        ).encoder
        for flags in ("none", "flag")
    ]
    source, network = (
        Encoder(config, vectors=2, scalars=3, queries=("readout_top",), query_scalars=2) for config in configs
    )
    known, features = (encoder_features(config) for config in configs)
    assert len(features) == len(known) + 2
    inputs = Inputs.from_events(toy_events(50, max_jets=5, seed=3))
    source.fit_standardisation(Inputs.from_events(toy_events(50, max_jets=5, seed=4)))
    network.fit_standardisation(inputs)
    whole, parent = (torch.nn.ModuleDict({"encoder": each}) for each in (network, source))
    loaded = load_weights(whole, parent, whole=False)
    assert loaded == {name for name, _ in whole.named_parameters()}
    with torch.no_grad():
        answers = []
        for each in (network.eval(), source.eval()):
            tokens = each.tokens(inputs)
            answers.append(each(tokens, each.scale(tokens)))
    assert torch.equal(answers[0].vectors, answers[1].vectors)
    assert torch.equal(answers[0].scalars, answers[1].scalars)
    # They can be learnt.
    network.zero_grad()
    tokens = network.tokens(inputs)
    network(tokens, network.scale(tokens)).scalars.square().sum().backward()
    new = features.index("b_candidate_plus") - len(features) - 2
    grown = {name: p for name, p in network.named_parameters() if p.shape != source.state_dict()[name].shape}
    assert grown
    assert any(p.grad[..., new].abs().max() > 0 for p in grown.values())
    assert all(not p[..., new].any() for p in grown.values())


@pytest.mark.parametrize("velocity", ["head", "tokens"])
def test_new_features_of_a_posterior(velocity):
    """Both encoders have them, and the one of the samples further scalars after them."""
    configs = [
        PosteriorConfig.model_validate(
            OF_POSTERIOR
            | {
                "backbone": {"blocks": 1},
                "tokens": {"max_jets": 4, "b_candidates": flags},
                "velocity": VELOCITY | {"kind": velocity},
            }
        )
        for flags in ("none", "flag")
    ]
    source, network = (MODELS["posterior"].network(config).eval() for config in configs)
    # The velocity begins with zero.
    last = source.velocity.layers[-1] if velocity == "tokens" else source.velocity.out
    torch.nn.init.normal_(last.weight, std=0.3)
    loaded = load_weights(network, source, whole=True)
    assert loaded == {name for name, _ in network.named_parameters()}
    inputs = Inputs.from_events(toy_events(20, max_jets=4, seed=5))
    noise = torch.randn(20, 3, 6)
    with torch.no_grad():
        for answer, wanted in zip(network.predictions(inputs), source.predictions(inputs), strict=True):
            assert torch.equal(answer, wanted)
        assert torch.equal(network.sample(inputs, noise), source.sample(inputs, noise))


def test_new_features_are_standardised_by_the_own_events(monkeypatch):
    """Those of the parent are kept: here the child knows the b-tag score and the parent does not."""
    network, source = (Encoder(EncoderConfig(), vectors=1, scalars=1) for _ in range(2))
    features = encoder_features(network.config)
    known = tuple(name for name in features if name != "btag")
    place = features.index("btag")
    source.feature_mean = torch.arange(1.0, len(known) + 1)
    source.feature_std = torch.full((len(known),), 2.0)
    network.fit_standardisation(Inputs.from_events(toy_events(50, seed=3)))
    fitted = float(network.feature_mean[place]), float(network.feature_std[place])
    monkeypatch.setattr(
        "topreco.network.parent.encoder_features",
        lambda config: known if config is source.config else features,
    )
    whole, parent = (torch.nn.ModuleDict({"encoder": each}) for each in (network, source))
    load_weights(whole, parent, whole=False)
    assert (float(network.feature_mean[place]), float(network.feature_std[place])) == fitted
    others = [i for i in range(len(features)) if i != place]
    assert torch.equal(network.feature_mean[others], source.feature_mean)
    assert torch.equal(network.feature_std[others], source.feature_std)


# ---- configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARENTS)
def test_the_model_is_the_parents_unless_something_is_said(name, child, parents):
    assert with_parent(child(name)).model == load_model(parents[name]).config


def test_what_may_be_set(child, parents):
    found = with_parent(
        child("posterior", model={"task": "posterior", "steps": 3, "backbone": {"dropout": 0.2}})
    )
    expected = load_model(parents["posterior"]).config
    assert found.model.steps == 3
    assert found.model.backbone.dropout == 0.2
    assert found.model.velocity == expected.velocity
    # Keys of one task alone say which it is.
    assert with_parent(child("posterior", model={"head": "timelike"})).model.task == "tops"
    # What is the same is no contradiction.
    assert with_parent(child("tops", model=PARENTS["tops"])).model == load_model(parents["tops"]).config


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("posterior", {"tokens": {"max_jets": 8}}, r"model\.tokens\.max_jets is 4 in the parent, 8 here"),
        ("posterior", {"spurions": {"beam": None}}, r"model\.spurions\.beam is lightlike .*, None here"),
        ("tops", {"backbone": {"blocks": 2}}, r"model\.backbone\.blocks is 1 in the parent, 2 here$"),
        ("tops", {"head": "direct"}, r"model\.head is on_shell in the parent, direct here; init\.scope=enc"),
        ("tops", {"backbone": {"kind": "transformer"}}, r"backbone\.kind is lgatr_slim .*, transformer here"),
        ("tops", {"tokens": {"b_candidates": "none"}}, r"tokens\.b_candidates is flag .*, none here"),
        ("posterior", {"head": "direct", "tokens": {"max_jets": 3}}, r"tokens\.max_jets is 4 .*, 3 here$"),
    ],
)
def test_contradictions_are_one_error(name, changes, message, child, parents):
    # The message of the encoder alone has no hint.
    pattern = message.replace("2 here$", "2 here")
    with pytest.raises(TrainingError, match=pattern) as error:
        quiet(child(name, model=changes))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("init.model model.safetensors: ")


def test_features_cannot_be_removed(child, monkeypatch):
    answers = iter([("charge", "muon"), ("charge", "muon", "btag")])
    monkeypatch.setattr("topreco.network.parent.encoder_features", lambda config: next(answers))
    message = (
        r"model\.tokens of the parent gives the feature 'btag', model\.tokens here gives charge, muon; feat"
    )
    with pytest.raises(TrainingError, match=message):
        with_parent(child("posterior"))


def test_no_such_parent(child, tmp_path):
    with pytest.raises(ModelFileError, match=r"init\.model dileptn: no such file.*did you mean 'dilepton'"):
        quiet(child("dileptn"))
    with pytest.raises(ModelFileError, match=r"init\.model .*: no such file"):
        quiet(child(str(tmp_path)))


def test_a_shipped_model(child):
    parent = find_parent(child("dilepton"))
    assert parent.name == "dilepton"
    assert parent.adopted(child("dilepton")).model.task == "posterior"


def test_the_output_is_not_the_parent(child, parents):
    with pytest.raises(TopRecoError, match=r"model\.safetensors.*input"):
        quiet(child("tops", output=parents["tops"].parent), restart=True)
    assert parents["tops"].is_file()


def test_short_form(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("init:\n  model: dilepton\n  rate: 0.3\n")
    assert load_config(TrainConfig, recipe, ["init=dilepton-point"]).init.model_dump(exclude_unset=True) == {
        "model": "dilepton-point",
        "rate": 0.3,
    }
    recipe.write_text("init: dilepton\n")
    found = load_config(TrainConfig, recipe, ["init.frozen_epochs=1"]).init
    assert (found.model, found.frozen_epochs) == ("dilepton", 1)
    assert load_config(TrainConfig, recipe, ["init=null"]).init is None
    with pytest.raises(ConfigError, match=r"unknown key 'init\.rates'; did you mean 'rate'"):
        load_config(TrainConfig, None, ["init.rates=1"])
    with pytest.raises(ConfigError, match=r"init\.model: Field required"):
        load_config(TrainConfig, None, ["init.rate=1"])


# ---- training --------------------------------------------------------------------------------------------


def test_groups_of_the_optimisers(child, begun):
    config = child("posterior", init={"scope": "encoder"}, model=OF_POSTERIOR)
    network, loaded, _ = begun(config)
    options = config.optimiser
    names = {id(p): name for name, p in network.named_parameters()}
    seen = []
    for optimiser in build_optimisers(options, network, loaded, rate=0.2, decays=False):
        for group in optimiser.param_groups:
            for p in group["params"]:
                is_loaded = names[id(p)] in loaded
                assert group["rate_factor"] == (0.2 if is_loaded else 1.0)
                assert group["weight_decay"] == (0.05 if p.ndim >= 2 and not is_loaded else 0.0)
                seen.append(names[id(p)])
    assert sorted(seen) == sorted(names.values())


def test_rates(child, monkeypatch):
    """In each step the rate of what was loaded is the factor times that of the rest."""
    rates = []
    original = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        rates.append({group["rate_factor"]: group["lr"] for group in self.param_groups})
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    quiet(child("posterior", init={"scope": "encoder", "rate": 0.25}, model=OF_POSTERIOR))
    # The means and quantiles that follow have no encoder.
    rates = [each for each in rates if 0.25 in each]
    assert len(rates) > 3
    assert all(each[0.25] == pytest.approx(0.25 * each[1.0]) for each in rates)
    assert len({each[1.0] for each in rates}) > 2


@pytest.mark.parametrize("name", PARENTS)
def test_frozen_epochs(name, child, parents):
    """The encoder stays to the bit, of the quantiles as well; the rest learns; afterwards all does."""
    before = load_model(parents[name]).networks[0].state_dict()
    fixed = load_model(quiet(child(name, init={"frozen_epochs": 2}, data={"validation_fraction": 0.4})))
    after = fixed.networks[0].state_dict()
    weights = {key for key, _ in fixed.networks[0].named_parameters()}
    encoder = {key for key in weights if key.startswith(("encoder.", "quantiles.encoder."))}
    assert same({k: after[k] for k in encoder}, {k: before[k] for k in encoder})


def test_after_the_frozen_epochs_all_learns(child, parents):
    """With the weights of the last epoch, for want of validation events by which to choose another."""
    before = load_model(parents["tops"]).networks[0].state_dict()
    for frozen in (1, 2):
        config = child(
            "tops",
            init={"frozen_epochs": frozen, "rate": 1.0},
            data={"validation_fraction": 0.0},
            output=child().output / str(frozen),
        )
        after = load_model(quiet(config)).networks[0]
        kept = {
            name: torch.equal(parameter, before[f"encoder.{name}"])
            for name, parameter in after.encoder.named_parameters()
        }
        if frozen == 2:
            assert all(kept.values())
        else:
            assert not any(stays for name, stays in kept.items() if ".linear_in." in name)


def test_decay_toward_the_parent(child, parents):
    """A share of one of the way back in each step leaves nothing of it."""
    options = {"schedule": "constant", "warmup": 0.0, "learning_rate": 1e-3, "kind": "adamw"}
    config = child(init={"rate": 1.0, "weight_decay_toward_parent": 1000.0}, optimiser=options)
    before = load_model(parents["posterior"]).networks[0]
    after = load_model(quiet(config)).networks[0]
    for name, parameter in after.named_parameters():
        # Means and quantiles learn in a training of their own, at other rates.
        if not name.startswith("summary."):
            assert torch.equal(parameter, before.get_parameter(name)), name


def test_training_never_ends_behind_its_start(child, parents, capsys):
    """Steps that destroy everything: the best weights are those of the parent."""
    destroying = {"learning_rate": 0.3, "ema_decay": None, "warmup": 0.0, "kind": "adamw"}
    path = train(child("tops", init={"rate": 1.0}, optimiser=destroying, epochs=1))
    model, parent = load_model(path), load_model(parents["tops"])
    best = model.metadata["metrics"]["best"][0]
    assert best["epoch"] == -1
    assert best["validation_loss"] == parent.metadata["metrics"]["best"][0]["validation_loss"]
    for name, parameter in model.networks[0].named_parameters():
        assert torch.equal(parameter, parent.networks[0].get_parameter(name)), name
    n = len(list(model.networks[0].parameters()))
    assert f"starts from model.safetensors: {n} of {n} tensors of weights; valid" in capsys.readouterr().err


def test_quantiles_are_calibrated_on_the_own_validation_events(child, skim_events, truth_of, tmp_path):
    """Tops of twice the momentum: a calibration of the parent would be far off."""
    truth = truth_of(skim_events)
    tops = truth.tops.copy()
    tops[..., 1:] *= 2
    tops[..., 0] = np.sqrt(172.5**2 + (tops[..., 1:] ** 2).sum(-1))
    with SkimWriter(tmp_path / "other.parquet") as writer:
        writer.write(skim_events, dataclasses.replace(truth, tops=tops))
    data = {"files": [writer.path], "validation_fraction": 0.9, "test_fraction": 0.0}
    metrics = {}
    for rate in (1e-6, 1e-7):
        config = child(init={"rate": rate}, data=data, output=tmp_path / str(rate))
        model = load_model(quiet(config))
        task = PosteriorTask(model.config, config.loss, task_of(with_parent(config)).augmentation)
        sets = read_training_data(config.data, task.columns)
        chosen = sets.indices(0)[1]
        inputs = Inputs.from_columns(sets.take(chosen, torch.device("cpu")))
        found = model.networks[0].predictions(inputs)
        tops = sets.columns["tops"][chosen]
        mass = (tops.sum(1)[:, 0] ** 2 - (tops.sum(1)[:, 1:] ** 2).sum(-1)).sqrt()
        inside = (mass > found.quantiles[:, 0, 1]) & (mass < found.quantiles[:, 0, -2])
        metrics[rate] = float(inside.double().mean())
    for value in metrics.values():
        assert value == pytest.approx(0.68, abs=0.06)


# ---- resuming --------------------------------------------------------------------------------------------

# In the first epoch, while validating, in the second, after its state was written.
STOPS = [("loss", 1), ("metrics", 1), ("loss", 3), ("describe", 1)]


@pytest.fixture
def stop(monkeypatch):
    """Function that trains until a call of a task's hook, in which an interruption comes."""

    def run(config, task, hook, after):
        original, left = getattr(task, hook), itertools.count(after, -1)

        def interrupting(*arguments):
            if next(left) == 0:
                raise KeyboardInterrupt
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(task, hook, interrupting)
            with pytest.raises(KeyboardInterrupt):
                train(config)

    return run


@pytest.mark.parametrize(("hook", "after"), STOPS)
@pytest.mark.parametrize("name", ["posterior", "quantiles"])
def test_resumes_to_the_bit(name, hook, after, child, stop, tmp_path):
    init = {"frozen_epochs": 1, "rate": 0.5, "weight_decay_toward_parent": 0.5}
    whole = quiet(child(name, init=init, output=tmp_path / "whole" / "run"))
    config = child(name, init=init, output=tmp_path / "parts" / "run")
    stop(config, TASKS[name if name == "posterior" else "tops"], hook, after)
    assert quiet(config).read_bytes() == whole.read_bytes()


def test_resumes_in_the_quantiles(child, stop, tmp_path):
    whole = quiet(child("quantiles", output=tmp_path / "whole" / "run"))
    config = child("quantiles", output=tmp_path / "parts" / "run")
    stop(config, QuantilesTask, "loss", 3)
    assert quiet(config).read_bytes() == whole.read_bytes()


def test_another_start_is_another_training(child, parents, tmp_path):
    quiet(child("posterior"))
    assert quiet(child("posterior")).is_file()
    with pytest.raises(
        TrainingError, match=r"differs in the configuration \(init\.rate: 0\.1 there, 0\.2 here"
    ):
        quiet(child("posterior", init={"rate": 0.2}))
    config = child("posterior")
    with pytest.raises(
        TrainingError, match=r"differs in the configuration .*init: \{.* there, \(absent\) here"
    ):
        quiet(config.model_copy(update={"init": None, "model": with_parent(config).model}))
    # The same name with other content.
    model = load_model(parents["posterior"])
    other = tmp_path / "model.safetensors"
    save_model(other, model.networks, model.metadata | {"note": "another"})
    with pytest.raises(TrainingError, match=r"differs in the configuration \(init\.sha256: "):
        quiet(child(str(other)))
    # A copy elsewhere is the same.
    shutil.copy(parents["posterior"], other)
    assert quiet(child(str(other))).is_file()


# ---- model file and folds --------------------------------------------------------------------------------


def test_the_child_knows_its_parent(child, parents, tmp_path):
    first = load_model(quiet(child("posterior")))
    parent = load_model(parents["posterior"])
    found = first.metadata["parent"]
    assert (found["name"], found["sha256"]) == ("model.safetensors", parent.metadata["sha256"])
    assert (found["task"], found["scope"], found["parent"]) == ("posterior", "all", None)
    assert found["same_datasets"] is True
    assert found["data"]["events"] == parent.metadata["data"]["events"]
    assert found["training"]["data"] == {**DATA, "folds": 1}
    assert first.metadata["training"]["init"]["model"] == "model.safetensors"
    assert str(tmp_path.parent) not in str(first.metadata)
    # A grandchild knows both.
    path = child().output / "model.safetensors"
    second = load_model(quiet(child(str(path), output=tmp_path / "second")))
    assert [each["sha256"] for each in ancestors(second.metadata)] == [
        second.metadata["sha256"],
        first.metadata["sha256"],
        parent.metadata["sha256"],
    ]


def test_the_prior_is_that_of_the_own_events(child, parents, tmp_path):
    model = load_model(parents["posterior"])
    spectra = {"m_tt": "the parent's"}
    data = model.metadata["data"] | {METADATA_KEY: spectra}
    path = tmp_path / "with.safetensors"
    save_model(path, model.networks, model.metadata | {"data": data})
    metadata = load_model(quiet(child(str(path)))).metadata
    assert METADATA_KEY not in metadata["data"]
    assert METADATA_KEY not in metadata["parent"]["data"]


def test_events_that_the_parent_may_have_seen(child, capsys):
    train(child("tops"))
    assert "warning" not in capsys.readouterr().err
    train(child("tops", data={"test_fraction": 0.3}, output=child().output / "b"))
    message = (
        "trained on events of the same dataset, split in another way (data.test_fraction is 0.1 there, 0.3"
    )
    assert message in capsys.readouterr().err


def test_recalibration_knows_all_ancestors(child, skim_events, truth_of, tmp_path):
    """Events of a dataset of the parent alone: only those that neither was trained on count."""
    events = dataclasses.replace(skim_events, dataset=np.full(160, dataset_id("other"), np.uint64))
    with SkimWriter(tmp_path / "other.parquet") as writer:
        writer.write(events, truth_of(events))
    path = quiet(child("posterior", data={"files": [writer.path], "validation_fraction": 0.6}))
    model = load_model(path)
    assert len(trained_datasets(model.metadata)) == 2
    described = recalibrate(model, child().model_copy(update={"init": None}), tmp_path / "again.safetensors")
    assert described["calibration"]["validation_only"] is True
    parents_own = model.metadata["parent"]["data"]["networks"][0]["validation"]["events"]
    assert described["calibration"]["events"] == parents_own
    assert load_model(tmp_path / "again.safetensors").metadata["parent"] == model.metadata["parent"]


def test_commands_that_start_from_a_model_anyway(child, parents, tmp_path):
    model = load_model(parents["quantiles"])
    for command in (train_quantiles, recalibrate):
        with pytest.raises(TrainingError, match=r"init\.model: .* found, null expected"):
            command(model, child("quantiles"), tmp_path / "m.safetensors")


def test_folds(child, parents, tmp_path):
    """One network starts all; of as many networks each starts its own; other numbers are an error."""
    data = {"folds": 2, "validation_fraction": 0.6}
    frozen = {"frozen_epochs": 2}
    path = quiet(child("posterior", data=data, init=frozen))
    first = load_model(parents["posterior"]).networks[0].encoder.state_dict()
    model = load_model(path)
    assert all(same(dict(n.encoder.state_dict()), dict(first)) for n in model.networks)
    # Networks that differ, each of which must come back.
    with torch.no_grad():
        model.networks[1].encoder.feature_mean.add_(0.25)
    pair = tmp_path / "pair.safetensors"
    save_model(pair, model.networks, model.metadata)
    again = load_model(quiet(child(str(pair), data=data, init=frozen, output=tmp_path / "again")))
    for one, other in zip(model.networks, again.networks, strict=True):
        assert same(dict(one.encoder.state_dict()), dict(other.encoder.state_dict()))
    with pytest.raises(
        TrainingError, match=r"pair.safetensors: 2 networks in the parent, data\.folds is 1 here"
    ):
        quiet(child(str(pair)))


def test_quantiles_of_other_observables_start_anew(child, parents):
    parent = find_parent(child("quantiles"))
    assert parent.starts_quantiles(parent.adopted(child("quantiles")).model)
    other = child("quantiles", model={"quantiles": {"observables": ["c_hel", "m_tt"]}})
    assert not parent.starts_quantiles(parent.adopted(other).model)
    assert parent.adopted(other).model.quantiles.hidden == 8
    none = child("quantiles", model={"quantiles": None})
    assert not parent.starts_quantiles(parent.adopted(none).model)
    # A parent without any gets them.
    added = find_parent(child("tops")).adopted(child("tops", model={"quantiles": QUANTILES}))
    assert added.model.quantiles.hidden == 8
    assert added.model.head == "on_shell"


def test_a_task_of_ones_own_has_the_encoder_of_the_parent(child, parents):
    config = child("posterior", init={"frozen_epochs": 9})
    fitted = fit_task(task_of(with_parent(config)), config, config.output, progress=False)
    source = load_model(parents["posterior"]).networks[0]
    assert same(dict(fitted.networks[0].encoder.state_dict()), dict(source.encoder.state_dict()))
    with pytest.raises(TrainingError, match=r"model\.tokens\.max_jets is 4 in the parent, 6 here"):
        fit_task(task_of(config), config, config.output / "b", progress=False)
