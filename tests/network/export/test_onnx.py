"""Every kind of network gives the same answers in onnxruntime as in torch, whatever the shapes."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from topreco.config import ModelConfig, PosteriorConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import QUANTILE_LEVELS, toy_events
from topreco.core.method import Sampler
from topreco.network.export import onnx as export
from topreco.network.export.onnx import export_onnx, reader, triton_config
from topreco.network.export.reader import FURTHER_INPUTS, INPUTS, ModelError, TopModel
from topreco.network.inference import predict
from topreco.network.model_file import load_model, save_model
from topreco.network.splits import fold_of
from topreco.network.tasks.posterior import PosteriorNetwork
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs
from topreco.reconstruction.load import load
from topreco.reconstruction.onnx import OnnxMethod

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

XYPLANE = {"beam": "xyplane", "time": True, "embed": "channel"}
EVENT_MASS = {"kind": "event_mass", "include_met": True}
# Each backbone with each kind of what lies around it at least once: heads, spurions and how they are given,
# readouts, normalisations, b candidates.
CASES = [
    ("lgatr", {}),
    (
        "lgatr",
        {
            "head": "neutrinos",
            "spurions": XYPLANE,
            "normalisation": EVENT_MASS,
            "tokens": {"b_candidates": "token"},
        },
    ),
    ("lgatr", {"head": "timelike", "readout": "mean", "spurions": {"beam": None, "time": False}}),
    ("lgatr_slim", {"head": "direct", "readout": "sum", "tokens": {"b_candidates": "none", "max_jets": 4}}),
    (
        "lgatr_slim",
        {
            "head": "timelike",
            "spurions": {"beam": "spacelike", "embed": "channel"},
            "normalisation": {"kind": "event_mass"},
            "tokens": {"b_candidates": "token"},
        },
    ),
    (
        "lgatr_slim",
        {"head": "neutrinos", "readout": "first_token", "spurions": {"beam": "timelike", "embed": "token"}},
    ),
    ("transformer", {"head": "on_shell", "normalisation": EVENT_MASS, "readout": "mean"}),
    (
        "transformer",
        {
            "head": "direct",
            "spurions": {"embed": "channel"},
            "tokens": {"b_candidates": "token"},
        },
    ),
    ("pet", {"head": "on_shell", "spurions": {"embed": "token"}, "tokens": {"b_candidates": "token"}}),
]


def arrays(events):
    return {name: getattr(events, name) for name in INPUTS}


def relative_difference(p4, expected):
    """Largest, in units of the energy of the top."""
    return (np.abs(p4 - expected) / expected[..., :1]).max()


def saved_model(folder, *networks, metadata=None):
    """What `load_model` reads of networks that were saved."""
    save_model(folder / "model.safetensors", networks, metadata or {})
    return load_model(folder / "model.safetensors")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two small networks with quantiles, of two folds, with a Triton folder: exporting takes seconds."""
    folder = tmp_path_factory.mktemp("exported")
    backbone = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
    quantiles = {"backbone": backbone, "hidden": 8, "observables": ["m_tt", "pt_top", "c_hel"]}
    config = ModelConfig.model_validate({"backbone": backbone, "quantiles": quantiles})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        networks = [TopNetwork(config) for _ in range(2)]
        for network in networks:
            network.quantiles.knots.copy_(torch.linspace(5.9, 6.8, 8))
            network.quantiles.shift.uniform_(-0.3, 0.3)
            network.quantiles.stretch.uniform_(0.7, 1.5)
    saved = saved_model(folder, *networks, metadata={"training": {"note": "ℓ⁺ℓ⁻"}})
    written = export_onnx(saved, folder / "model.onnx", triton=folder / "models")
    assert sorted(written) == sorted(path for path in folder.rglob("*.*") if path.suffix != ".safetensors")
    return saved, TopModel(folder / "model.onnx")


@pytest.fixture
def not_exported(tmp_path):
    """A network to export, and what would be exported were it not replaced."""
    backbone = {"kind": "transformer", "blocks": 1, "channels": 8, "heads": 1}
    return saved_model(tmp_path, TopNetwork(ModelConfig.model_validate({"backbone": backbone})))


def one_of_each_backbone():
    """The first case of each backbone for `make test`, the others for `make test-all`."""
    # The blocks of `pet` are those of the transformer.
    seen = {"pet"}
    for kind, fields in CASES:
        yield pytest.param(kind, fields, id=kind, marks=pytest.mark.exhaustive if kind in seen else ())
        seen.add(kind)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "fields"), list(one_of_each_backbone()))
def test_agrees_with_torch(assert_agrees, small_config, tmp_path, kind, fields):
    config = small_config(kind, **fields)
    backbone = config.backbone.model_copy(update={"blocks": 1})
    network = TopNetwork(config.model_copy(update={"backbone": backbone}))
    network.encoder.feature_mean += 0.1
    network.encoder.feature_std *= 1.3
    saved = saved_model(tmp_path, network)
    export_onnx(saved, tmp_path / "model.onnx")
    events = toy_events(10_000, seed=4)
    p4, valid, *_ = TopModel(tmp_path / "model.onnx").run(arrays(events))
    assert valid.all()
    # After the export, too: lgatr keeps constants when first used, and those of the tracing break every call.
    assert_agrees(p4, saved.networks[0], events)


def test_inputs_are_those_of_the_networks():
    assert (*INPUTS, *FURTHER_INPUTS) == Inputs._fields
    inputs = Inputs.from_events(toy_events(2))
    for name, kind in INPUTS.items():
        assert getattr(inputs, name).numpy().dtype == kind


@pytest.mark.parametrize("places", [0, 1, 2, 5, 20])
@pytest.mark.parametrize("n", [1, 70])
def test_any_number_of_events_and_jets(exported, n, places):
    """Places for jets beyond those of the network, or too few, are cut or filled as torch does."""
    saved, model = exported
    events = toy_events(n, max_jets=20, seed=5)
    events = dataclasses.replace(
        events,
        jets=events.jets[:, :places],
        jet_mask=events.jet_mask[:, :places],
        jet_btag=events.jet_btag[:, :places],
        jet_tagged=events.jet_tagged[:, :places],
        jet_working_points=None,
        b_candidates=np.where(events.b_candidates < places, events.b_candidates, -1),
    )
    p4, valid, *_ = model.run(arrays(events), fold=fold_of(events, 2))
    assert valid.all()
    assert relative_difference(p4, predict(saved.networks, events).p4) < 1e-4


def test_quantiles_agree_with_torch(exported):
    saved, model = exported
    events = toy_events(1000, seed=6)
    answer, expected = model.run(arrays(events), fold=fold_of(events, 2)), predict(saved.networks, events)
    assert list(answer.quantiles) == list(expected.quantiles) == ["m_tt", "pt_top", "c_hel"]
    for name, values in expected.quantiles.items():
        np.testing.assert_allclose(answer.quantiles[name], values, rtol=1e-4, atol=1e-3)
    assert relative_difference(answer.uncertainty, expected.uncertainty) < 1e-3
    pair = OnnxMethod(model.path, threads=1)(events)
    np.testing.assert_allclose(pair.quality, expected.quality, rtol=1e-3)


def test_quantiles_can_be_left_out(exported, tmp_path):
    saved, model = exported
    export_onnx(saved, tmp_path / "plain.onnx", quantiles=False)
    plain, events = TopModel(tmp_path / "plain.onnx"), toy_events(100)
    fold = fold_of(events, 2)
    answer = plain.run(arrays(events), fold=fold)
    assert answer.quantiles is None
    assert relative_difference(answer.p4, model.run(arrays(events), fold=fold).p4) < 1e-5
    # Nor need they be evaluated, or be lost to those who share the model.
    assert model.run(arrays(events), fold=fold, quantiles=False).quantiles is None
    assert saved.networks[0].quantiles is not None


def test_the_reader_gives_quantiles(exported, monkeypatch):
    _, model = exported
    events = toy_events(20)
    monkeypatch.setattr(reader, "make_objects", lambda **_: arrays(events))
    settings = {"btag_threshold": 0.2783, "max_jets": 12, "m_lb_max": 180.0}
    tops = TopModel(model.path, **settings)(fold=fold_of(events, 2))
    pair = OnnxMethod(model.path, threads=1)(events)
    np.testing.assert_allclose(tops.quality, pair.quality, rtol=1e-3)
    np.testing.assert_allclose(tops.quantiles["c_hel"], pair.quantiles["c_hel"], atol=1e-3)
    np.testing.assert_allclose(tops.top_std, pair.uncertainty[:, 0], rtol=1e-2)
    assert reader.QUANTILE_LEVELS == QUANTILE_LEVELS


def test_metadata_is_that_of_the_model_file(exported):
    saved, model = exported
    assert model.metadata == saved.metadata
    stored = {p.key: p.value for p in onnx.load(model.path).metadata_props}
    assert json.loads(stored["topreco"]) == saved.metadata


def test_runs_on_old_runtimes(exported):
    """Opset 18 and IR version 8 came with onnx 1.13 and onnxruntime 1.14, of 2023."""
    graph = onnx.load(exported[1].path)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 18)]
    assert graph.ir_version == 8
    axes = {
        i.name: [d.dim_param or d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.graph.input
    }
    assert axes["jets"] == ["n", "jets", 4]
    assert axes["met"] == ["n", 2]


# ---- folds -----------------------------------------------------------------------------------------------


def test_each_event_is_given_to_the_network_of_its_fold(exported):
    saved, model = exported
    assert model.folds == 2
    assert OnnxMethod(model.path).uses_event_key
    events = toy_events(200)
    fold = fold_of(events, 2)
    p4, *_ = model.run(arrays(events), fold=fold)
    assert relative_difference(p4, predict(saved.networks, events).p4) < 1e-4
    other, *_ = model.run(arrays(events), fold=1 - fold)
    assert (np.abs(other - p4).max(axis=(1, 2)) > 0.1).all()


def test_a_model_of_several_folds_needs_the_fold(exported):
    events = toy_events(20)
    with pytest.raises(ModelError, match=r"holds 2 networks.*fold_of\(dataset, run, luminosity_block"):
        exported[1].run(arrays(events))
    for wrong in (np.full(20, 2), np.zeros(19, int), np.full(20, 0.5)):
        with pytest.raises(ModelError, match="fold: 20 integers from 0 to 1 expected, found"):
            exported[1].run(arrays(events), fold=wrong)


# ---- Triton ----------------------------------------------------------------------------------------------


def parsed(text):
    """A configuration read by protobuf, with the messages and numbers of Triton's model_config.proto."""
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", package="t", syntax="proto3")
    kinds = file.enum_type.add(name="DataType")
    for name, number in (("TYPE_INVALID", 0), ("TYPE_BOOL", 1), ("TYPE_INT64", 9), ("TYPE_FP32", 11)):
        kinds.value.add(name=name, number=number)
    field = descriptor_pb2.FieldDescriptorProto
    messages = {
        "Tensor": [("name", 1, "STRING"), ("data_type", 2, ".t.DataType"), ("dims", 4, "*INT64")],
        "DynamicBatching": [("preferred_batch_size", 1, "*INT32")],
        "ModelConfig": [
            ("name", 1, "STRING"),
            ("max_batch_size", 4, "INT32"),
            ("input", 5, "*.t.Tensor"),
            ("output", 6, "*.t.Tensor"),
            ("dynamic_batching", 11, ".t.DynamicBatching"),
            ("backend", 17, "STRING"),
        ],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for key, number, kind in fields:
            label = field.LABEL_REPEATED if kind.startswith("*") else field.LABEL_OPTIONAL
            added = message.field.add(name=key, number=number, label=label)
            element = kind.lstrip("*")
            if element.startswith("."):
                added.type_name = element
            else:
                added.type = getattr(field, f"TYPE_{element}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))()
    return text_format.Parse(text, config)


def test_triton_folder(exported):
    """Its description is that of the graph, the axis of events left out."""
    _, model = exported
    folder = model.path.parent / "models" / "model"
    assert (folder / "1" / "model.onnx").read_bytes() == model.path.read_bytes()
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config.name, config.backend) == ("model", "onnxruntime")
    # What coffea's wrapper fills each request up to must be a size that the server takes.
    assert 0 < config.dynamic_batching.preferred_batch_size[0] <= config.max_batch_size
    graph = onnx.load(model.path).graph
    assert config.input[-1].name == "fold"
    elements = {1: onnx.TensorProto.BOOL, 9: onnx.TensorProto.INT64, 11: onnx.TensorProto.FLOAT}
    for described, tensors in ((config.input, graph.input), (config.output, graph.output)):
        assert [t.name for t in described] == [t.name for t in tensors]
        for ours, theirs in zip(described, tensors, strict=True):
            kind = theirs.type.tensor_type
            assert elements[ours.data_type] == kind.elem_type
            assert list(ours.dims) == [d.dim_value or -1 for d in kind.shape.dim[1:]]


def test_triton_config_is_parsed_strictly():
    with pytest.raises(text_format.ParseError):
        parsed(triton_config("x", 1, ModelConfig()) + "nonsense: 1")


# ---- files -----------------------------------------------------------------------------------------------


def test_the_reader_beside_it_is_the_file_of_the_package(exported):
    beside = exported[1].path.with_name("model_reader.py")
    assert beside.read_bytes() == Path(reader.__file__).read_bytes()


def test_a_file_of_somebody_else_is_not_overwritten(not_exported, tmp_path):
    own = tmp_path / "model_reader.py"
    own.write_text("# mine\n")
    with pytest.raises(TopRecoError, match=r"model_reader\.py: is there already and is no reader of topreco"):
        export_onnx(not_exported, tmp_path / "model.onnx")
    assert own.read_text() == "# mine\n"
    assert not (tmp_path / "model.onnx").exists()


def test_other_suffixes_are_refused(not_exported, tmp_path):
    with pytest.raises(TopRecoError, match=r"model\.pb: a name with the suffix \.onnx expected"):
        export_onnx(not_exported, tmp_path / "model.pb")


def test_a_graph_that_disagrees_is_not_kept(exported, not_exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TopModel", lambda path: exported[1])
    with pytest.raises(
        TopRecoError, match=r"differ by .* of a top's energy, at most 0.0001 expected; nothing"
    ):
        export_onnx(not_exported, tmp_path / "model.onnx", triton=tmp_path / "models")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_the_extra_is_named(not_exported, tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TopRecoError, match=r"pip install 'topreco\[onnx\]'"):
        export_onnx(not_exported, tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))


@pytest.fixture(scope="module")
def exported_posterior(tmp_path_factory):
    """A small posterior of two folds, with scales and a velocity that are none of the trivial ones."""
    folder = tmp_path_factory.mktemp("posterior")
    backbone = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
    content = {"backbone": backbone, "hidden": 8, "velocity": {"hidden": 8, "blocks": 1}, "steps": 1}
    config = PosteriorConfig.model_validate(content)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        networks = [PosteriorNetwork(config) for _ in range(2)]
        for network in networks:
            network.summary.momentum_std.fill_(80.0)
            torch.nn.init.normal_(network.velocity.out.weight, std=0.3)
    saved = saved_model(folder, *networks)
    export_onnx(saved, folder / "model.onnx", triton=folder / "models")
    return folder


def test_a_posterior_agrees_with_torch(exported_posterior):
    folder = exported_posterior
    events = toy_events(130, max_jets=9)
    method, network = load(folder / "model.onnx"), load(folder / "model.safetensors")
    assert isinstance(method, Sampler)
    assert isinstance(network, Sampler)
    found, expected = method(events), network(events)
    assert relative_difference(found.p4, expected.p4) < 1e-4
    for name, values in expected.observables.items():
        np.testing.assert_allclose(found.observables[name], values, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.quantiles[name], expected.quantiles[name], rtol=1e-4, atol=1e-3)
    drawn, wanted = (each.sample(events, 5).samples for each in (method, network))
    assert relative_difference(drawn.reshape(-1, 2, 4), wanted.reshape(-1, 2, 4)) < 1e-4


def test_samples_of_the_reader_from_plain_arrays(exported_posterior, exported):
    model = TopModel(exported_posterior / "model.onnx")
    events = toy_events(12)
    key = (events.dataset, events.run, events.luminosity_block, events.event)
    noise = reader.normal_noise(key, 3, 1)
    expected = model.run_samples(arrays(events), noise, fold=np.zeros(12, int))
    assert expected.shape == (12, 3, 2, 4)
    assert np.isfinite(expected).all()
    with pytest.raises(ModelError, match="samples need a model of the task 'posterior'"):
        exported[1].run_samples(arrays(events), noise)


def test_triton_knows_the_noise(exported_posterior):
    text = (exported_posterior / "models" / "model" / "config.pbtxt").read_text()
    parsed(text)
    assert 'name: "noise"' in text
    assert 'name: "samples"' in text
