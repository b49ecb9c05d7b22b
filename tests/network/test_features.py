"""Working points and features in tokens, standardisation, model files and exported networks."""

import dataclasses

import numpy as np
import pytest
import torch

from topreco.config import DataConfig, EncoderConfig, ModelConfig, TokensConfig, TrainConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, toy_events
from topreco.core.skim import SkimWriter
from topreco.network.encoder import Encoder
from topreco.network.export.onnx import export_onnx, triton_config
from topreco.network.export.reader import INPUTS, ModelError, TopModel
from topreco.network.inference import predict
from topreco.network.model_file import load_model, save_model
from topreco.network.task import TrainingError
from topreco.network.tasks.augmentation import augment
from topreco.network.tasks.columns import top_columns
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import (
    PASSES,
    TOKEN_TYPES,
    Inputs,
    build_tokens,
    encoder_schema,
    token_features,
    token_types,
)
from topreco.network.train import train

BACKBONE = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
FEATURES = {
    "jet": ["Jet_a", "Jet_b"],
    "lepton": ["iso"],
    "event": ["PV_npvsGood", "MET_significance", "Rho_x"],
}
TOKENS = TokensConfig.model_validate({"btag": "working_points", "features": FEATURES})
CONFIG = ModelConfig.model_validate({"backbone": BACKBONE, "tokens": TOKENS.model_dump()})


def with_features(events: DileptonEvents, *, seed: int = 1, points: int = 5) -> DileptonEvents:
    """Toy events with random features and numbers of working points up to `points`."""
    rng = np.random.default_rng(seed)
    n, jets = events.jet_mask.shape
    shapes = {"jet": (n, jets), "lepton": (n, 2), "event": (n,)}
    features = {name: rng.normal(2, 3, shapes[name.partition(":")[0]]) for name in TOKENS.features.names}
    counts = np.where(events.jet_mask, rng.integers(0, points + 1, (n, jets)), 0)
    return dataclasses.replace(events, features=features, jet_working_points=counts)


@pytest.fixture
def events():
    return with_features(toy_events(60, max_jets=7, seed=2))


# ---- events ----------------------------------------------------------------------------------------------


def test_shapes_of_features_are_checked(events):
    for name, values, message in [
        ("jet:Jet_a", np.zeros((60, 2)), r"\(60, 2\) found, \(60, 7\) expected"),
        ("lepton:iso", np.zeros(60), r"\(60,\) found, \(60, 2\) expected"),
        ("event:x", np.zeros((60, 1)), r"\(60, 1\) found, \(60,\) expected"),
        ("Jet_a", np.zeros((60, 7)), "'Jet_a' found, a name such as"),
    ]:
        with pytest.raises(TopRecoError, match=message):
            dataclasses.replace(events, features={name: values})


def test_joined_events_keep_what_all_have(events):
    plain = dataclasses.replace(toy_events(5, max_jets=7), jet_working_points=None)
    joined = DileptonEvents.concatenate([events, plain])
    assert joined.features is None
    assert joined.jet_working_points is None
    fewer = dataclasses.replace(events, features={"lepton:iso": events.features["lepton:iso"]})
    joined = DileptonEvents.concatenate([events, fewer])
    assert list(joined.features) == ["lepton:iso"]
    assert joined.jet_working_points.shape == (120, 7)
    np.testing.assert_array_equal(joined[60:].features["lepton:iso"], events.features["lepton:iso"])


# ---- tokens ----------------------------------------------------------------------------------------------


def test_layout():
    types = tuple(f"type_{name}" for name in TOKEN_TYPES)
    flags = ("b_candidate_plus", "b_candidate_minus")
    assert token_features(TokensConfig()) == (*types, "charge", "muon", "btag", "tagged", *flags)
    own = (
        "jet:Jet_a",
        "jet:Jet_b",
        "lepton:iso",
        "event:PV_npvsGood",
        "event:MET_significance",
        "event:Rho_x",
    )
    assert token_features(TOKENS) == (*types, "charge", "muon", "tagged", *flags, *PASSES, *own)
    # What features add stands at the end, so that a network without them reads the same columns before.
    scores = TOKENS.model_copy(update={"btag": "score"})
    assert token_features(scores) == (*token_features(TokensConfig()), *own)


def test_schema_tells_the_features():
    plain = encoder_schema(EncoderConfig())
    seeing = encoder_schema(EncoderConfig(tokens=TOKENS))
    assert seeing["features"][-1] == "event:Rho_x"
    assert seeing != plain
    other = TOKENS.model_copy(
        update={"features": TOKENS.features.model_copy(update={"jet": ("Jet_b", "Jet_a")})}
    )
    assert encoder_schema(EncoderConfig(tokens=other)) != seeing


@pytest.mark.parametrize("b_candidates", ["flag", "token", "none"])
def test_features_stand_at_their_tokens(events, b_candidates):
    config = TOKENS.model_copy(update={"b_candidates": b_candidates, "max_jets": 4})
    tokens = build_tokens(Inputs.from_events(events, torch.float64, config), config)
    names, types = token_features(config), np.array(token_types(config))
    values = {name: tokens.scalars[..., i].numpy() for i, name in enumerate(names)}
    mask = tokens.mask.numpy()
    jets = types == "jet"
    there = events.jet_mask[:, :4]
    for name in ("jet:Jet_a", "jet:Jet_b"):
        np.testing.assert_array_equal(values[name][:, jets], np.where(there, events.features[name][:, :4], 0))
    np.testing.assert_array_equal(values["lepton:iso"][:, :2], events.features["lepton:iso"])
    for name in ("event:PV_npvsGood", "event:MET_significance", "event:Rho_x"):
        np.testing.assert_array_equal(values[name], np.where(mask, events.features[name][:, None], 0))
    for number, name in enumerate(PASSES):
        passed = there & (events.jet_working_points[:, :4] > number)
        np.testing.assert_array_equal(values[name][:, jets], passed)
    # A b candidate has what its jet has.
    if b_candidates == "token":
        for leg in range(2):
            candidate = np.take_along_axis(events.features["jet:Jet_b"], events.b_candidates[:, [leg]], 1)[
                :, 0
            ]
            seen = mask[:, -2 + leg]
            np.testing.assert_array_equal(values["jet:Jet_b"][seen, -2 + leg], candidate[seen])
    others = ~jets & ~np.char.startswith(types, "b_candidate")
    for name in ("jet:Jet_a", *PASSES):
        assert not values[name][:, others].any()
    assert not values["lepton:iso"][:, 2:].any()


def test_order_of_the_features_is_that_of_the_configuration(events):
    """A network gets each feature in its place, whatever the order in the events."""
    turned = dataclasses.replace(events, features=dict(reversed(events.features.items())))
    for a, b in zip(
        Inputs.from_events(events, tokens=TOKENS).columns().values(),
        Inputs.from_events(turned, tokens=TOKENS).columns().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    swapped = TokensConfig.model_validate({"features": FEATURES | {"jet": ["Jet_b", "Jet_a"]}})
    inputs, other = (Inputs.from_events(events, tokens=tokens) for tokens in (TOKENS, swapped))
    assert torch.equal(inputs.jet_features.flip(2), other.jet_features)
    assert not torch.equal(inputs.jet_features, other.jet_features)


def test_padded_slots_may_hold_anything(events):
    dirty = dataclasses.replace(
        events,
        features={
            name: np.where(events.jet_mask, values, np.nan) if name.startswith("jet:") else values
            for name, values in events.features.items()
        },
        jet_working_points=np.where(events.jet_mask, events.jet_working_points, 5),
    )
    for config in (TOKENS, TOKENS.model_copy(update={"b_candidates": "token"})):
        clean, other = (build_tokens(Inputs.from_events(e, tokens=config), config) for e in (events, dirty))
        assert torch.equal(clean.scalars, other.scalars)


def test_charge_exchange_takes_the_leptons_features_along(events):
    inputs = Inputs.from_events(events, tokens=TOKENS)
    exchange = torch.arange(60) % 2 == 0
    found, _ = augment(inputs, torch.zeros(60, 2, 4), exchange=exchange)
    assert torch.equal(found.lepton_features[exchange], inputs.lepton_features[exchange].flip(1))
    assert torch.equal(found.lepton_features[~exchange], inputs.lepton_features[~exchange])
    for name in ("jet_features", "event_features", "jet_working_points"):
        assert torch.equal(getattr(found, name), getattr(inputs, name))


# ---- encoder ---------------------------------------------------------------------------------------------


def encoder(tokens=TOKENS):
    return Encoder(
        EncoderConfig.model_validate({"backbone": BACKBONE, "tokens": tokens}), vectors=1, scalars=1
    )


def test_standardisation(events):
    made = encoder()
    made.fit_standardisation(Inputs.from_events(events, tokens=TOKENS))
    names = token_features(TOKENS)
    jets = events.features["jet:Jet_b"][:, :6][events.jet_mask[:, :6]]
    i = names.index("jet:Jet_b")
    assert made.feature_mean[i] == pytest.approx(jets.mean(), rel=1e-5)
    assert made.feature_std[i] == pytest.approx(jets.std(), rel=1e-5)
    i = names.index("lepton:iso")
    assert made.feature_mean[i] == pytest.approx(events.features["lepton:iso"].mean(), rel=1e-5)
    flags = [names.index(name) for name in (*PASSES, "tagged", "charge")]
    assert (made.feature_mean[flags] == 0).all()
    assert (made.feature_std[flags] == 1).all()


def test_a_feature_of_small_numbers_is_no_constant(events):
    features = events.features | {"event:Rho_x": 1e-9 * events.features["event:Rho_x"]}
    small = dataclasses.replace(events, features=features)
    made = encoder()
    made.fit_standardisation(Inputs.from_events(small, tokens=TOKENS))
    assert made.feature_std[-1] == pytest.approx(features["event:Rho_x"].std(), rel=0.1)


def test_constant_feature_is_one_error(events):
    constant = np.full(60, 1e5, dtype=np.float32)
    features = events.features | {"event:PV_npvsGood": constant}
    inputs = Inputs.from_events(dataclasses.replace(events, features=features), tokens=TOKENS)
    with pytest.raises(TopRecoError, match=r"tokens.features.event: 'PV_npvsGood' is 100000 in all training"):
        encoder().fit_standardisation(inputs)


@pytest.mark.parametrize("name", ["jet:Jet_b", "lepton:iso", "event:Rho_x"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_feature_that_is_not_finite(events, truth_of, name, value):
    values = events.features[name].copy()
    values[(3, *(0,) * (values.ndim - 1))] = value
    broken = dataclasses.replace(events, features=events.features | {name: values})
    key, _, branch = name.partition(":")
    with pytest.raises(
        TrainingError, match=rf"tokens.features.{key}: '{branch}' is NaN or infinite in 1 places"
    ):
        top_columns(broken, truth_of(broken), TOKENS)
    # In events that are reconstructed it is that event alone.
    valid = predict([TopNetwork(CONFIG)], broken).valid
    assert np.flatnonzero(~valid).tolist() == [3]
    # A network that does not see it does not care.
    assert predict([TopNetwork(ModelConfig.model_validate({"backbone": BACKBONE}))], broken).valid.all()


def test_working_points_that_training_has_not_seen_count_nothing(truth_of):
    events = with_features(toy_events(60, max_jets=7, seed=2), points=3)
    network = TopNetwork(CONFIG).eval()
    network.encoder.fit_standardisation(Inputs.from_events(events, tokens=TOKENS))
    more = dataclasses.replace(events, jet_working_points=events.jet_working_points * 5 // 3)
    assert (more.jet_working_points == 5).any()
    capped = dataclasses.replace(events, jet_working_points=np.minimum(more.jet_working_points, 3))
    fewer = dataclasses.replace(events, jet_working_points=np.minimum(events.jet_working_points, 2))
    found = {name: predict([network], e).p4 for name, e in {"all": more, "3": capped, "2": fewer}.items()}
    np.testing.assert_array_equal(found["all"], found["3"])
    assert np.isfinite(found["all"]).all()
    assert np.abs(found["3"] - found["2"]).max() > 1e-3


# ---- methods and files -----------------------------------------------------------------------------------


def test_events_without_what_a_model_sees(events):
    network = TopNetwork(CONFIG)
    with pytest.raises(TopRecoError, match=r"number of working points that each jet passes .*tokens.btag"):
        predict([network], dataclasses.replace(events, jet_working_points=None))
    features = {name: x for name, x in events.features.items() if name != "lepton:iso"}
    message = (
        r"takes the feature 'lepton:iso'.*they have jet:Jet_a.*selection.features.lepton=\[iso\] keeps it"
    )
    with pytest.raises(TopRecoError, match=message):
        predict([network], dataclasses.replace(events, features=features))
    with pytest.raises(TopRecoError, match="they have none"):
        predict([network], dataclasses.replace(events, features=None))


def test_a_model_without_features_is_the_same_on_events_with_them(events):
    network = TopNetwork(ModelConfig.model_validate({"backbone": BACKBONE}))
    plain = dataclasses.replace(events, features=None, jet_working_points=None)
    np.testing.assert_array_equal(predict([network], events).p4, predict([network], plain).p4)


@pytest.fixture
def model(events, tmp_path):
    """A model file with features, of random weights."""
    network = TopNetwork(CONFIG).eval()
    network.encoder.fit_standardisation(Inputs.from_events(events, tokens=TOKENS))
    selection = {
        "jet": {
            "btag_threshold": 0.2783, "max_jets": 12,
            "btag_working_points": {"L": 0.049, "M": 0.2783, "T": 0.71},
        },
        "m_lb_max": 180.0,
    }  # fmt: skip
    path = tmp_path / "model.safetensors"
    save_model(path, [network], {"data": {"files": [{"selection": selection}]}})
    return load_model(path)


def test_model_file_keeps_features_and_standardisation(model):
    schema = model.metadata["encoder"]["schema"]
    assert schema["features"] == list(token_features(TOKENS))
    assert model.metadata["encoder"]["config"]["tokens"]["features"] == TOKENS.features.model_dump(
        mode="json"
    )
    assert model.networks[0].encoder.feature_std[-1] > 2


def test_export(model, events, tmp_path):
    export_onnx(model, tmp_path / "model.onnx")
    exported = TopModel(tmp_path / "model.onnx")
    assert exported.features == {kind: tuple(names) for kind, names in FEATURES.items()}
    objects = {name: getattr(events, name) for name in INPUTS}
    further = events.further_inputs(working_points=True, features=FEATURES)
    found = exported.run(objects | further)
    expected = predict(model.networks, events)
    assert found.valid.all()
    energy = expected.p4[..., :1]
    assert (np.abs(found.p4 - expected.p4) / energy).max() < 1e-4
    shuffled = {**further, "event_features": further["event_features"][::-1]}
    assert (np.abs(exported.run(objects | shuffled).p4 - expected.p4) / energy).max() > 1e-3
    with pytest.raises(ModelError, match="takes the input 'jet_working_points', which is missing"):
        exported.run(objects)
    broken = {**further, "lepton_features": further["lepton_features"].copy()}
    broken["lepton_features"][7, 1] = np.nan
    assert np.flatnonzero(~exported.run(objects | broken).valid).tolist() == [7]


def test_reader_sorts_features_with_their_objects(model, tmp_path):
    export_onnx(model, tmp_path / "model.onnx")
    exported = TopModel(tmp_path / "model.onnx")
    rng = np.random.default_rng(4)
    pt = np.array([[50.0, 90.0, 0.0, 70.0]])
    arrays = {
        "lepton_pt": np.array([[40.0, 30.0]]), "lepton_eta": np.array([[0.1, -0.3]]),
        "lepton_phi": np.array([[0.0, 2.0]]), "lepton_charge": np.array([[-1, 1]]),
        "lepton_pdgid": np.array([[11, -13]]),
        "jet_pt": pt, "jet_eta": rng.normal(size=(1, 4)), "jet_phi": rng.normal(size=(1, 4)),
        "jet_mass": np.full((1, 4), 9.0), "jet_btag": np.array([[0.05, 0.8, 0.9, 0.01]]),
        "met_pt": np.array([60.0]), "met_phi": np.array([1.0]),
    }  # fmt: skip
    features = {
        "Jet_a": pt / 10, "Jet_b": -pt, "iso": np.array([[0.4, 0.3]]), "PV_npvsGood": [3.0],
        "MET_significance": [1.0], "Rho_x": [2.0], "unused": [0.0],
    }  # fmt: skip
    objects = exported._objects(arrays | {"features": features})
    np.testing.assert_allclose(objects["jet_features"][0, :, 0], [9, 7, 5, 0])
    np.testing.assert_allclose(objects["jet_features"][0, :, 1], [-90, -70, -50, 0])
    np.testing.assert_allclose(objects["lepton_features"][0, :, 0], [0.3, 0.4])
    np.testing.assert_allclose(objects["event_features"], [[3, 1, 2]])
    assert objects["jet_working_points"].tolist() == [[3, 0, 1, 0]]
    assert exported(**arrays, features=features).valid.all()
    counts = np.array([[2, 1, 5, 4]])
    given = exported._objects(arrays | {"features": features, "jet_working_points": counts})
    assert given["jet_working_points"].tolist() == [[1, 4, 2, 0]]
    other = TopModel(tmp_path / "model.onnx", btag_working_points=(0.005, 0.02))
    assert other._objects(arrays | {"features": features})["jet_working_points"].tolist() == [[2, 1, 2, 0]]
    with pytest.raises(
        ModelError, match="the model sees 'iso' of each lepton, which is missing; found Jet_a"
    ):
        exported(**arrays, features={"Jet_a": pt, "Jet_b": pt})
    with pytest.raises(ModelError, match=r"PV_npvsGood: shape \(1, 1\) found, \(1\) expected"):
        exported(**arrays, features=features | {"PV_npvsGood": [[3.0]]})


def test_triton_configuration():
    text = triton_config("m", 1, CONFIG)
    for line in (
        '{ name: "jet_working_points" data_type: TYPE_INT64 dims: [-1] }',
        '{ name: "jet_features" data_type: TYPE_FP32 dims: [-1, 2] }',
        '{ name: "lepton_features" data_type: TYPE_FP32 dims: [2, 1] }',
        '{ name: "event_features" data_type: TYPE_FP32 dims: [3] }',
    ):
        assert line in text
    plain = triton_config("m", 1, ModelConfig.model_validate({"backbone": BACKBONE}))
    assert "features" not in plain
    assert "working_points" not in plain


# ---- training --------------------------------------------------------------------------------------------


def write(path, events, truth):
    with SkimWriter(path) as writer:
        writer.metadata |= {"selection": {}}
        writer.write(events, truth)
    return path


def configured(skim, output, **model):
    return TrainConfig(
        model=CONFIG.model_copy(update=model),
        data=DataConfig(files=(skim,), validation_fraction=0.3, test_fraction=0.2),
        epochs=1,
        batch_size=20,
        accelerator="cpu",
        output=output,
    )


def test_training_without_the_features(truth_of, tmp_path):
    events = dataclasses.replace(toy_events(60, max_jets=7), jet_working_points=None)
    skim = write(tmp_path / "a.parquet", events, truth_of(events))
    with pytest.raises(TopRecoError, match=r"working points .*a skim needs to be made again"):
        train(configured(skim, tmp_path / "out"), progress=False)
    tokens = TOKENS.model_copy(update={"btag": "score"})
    with pytest.raises(TopRecoError, match=r"the feature 'jet:Jet_a'.*selection.features.jet=\[Jet_a\]"):
        train(configured(skim, tmp_path / "out", tokens=tokens), progress=False)


def test_truth_never_reaches_the_network(events, truth_of, tmp_path):
    """Standardisation and inputs of a training with features do not depend on the truth."""
    truth = truth_of(events)
    columns = top_columns(events, truth, TOKENS)
    truth.tops[:] = np.random.default_rng(1).normal(0, 500, truth.tops.shape)
    truth.lepton[:] = truth.lepton[::-1]
    other = top_columns(events, truth, TOKENS)
    assert not torch.equal(other["tops"], columns["tops"])
    for name, field in Inputs.from_columns(columns).columns().items():
        assert torch.equal(field, other[name])
