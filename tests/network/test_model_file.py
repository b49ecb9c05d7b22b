import json
import pickle
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import topreco
from topreco.config import EncoderConfig, LGATrSlimConfig, ModelConfig, TokensConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.network import model_file
from topreco.network.inference import predict
from topreco.network.model_file import ModelFileError, load_model, save_model
from topreco.network.tasks import registry
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs, schema_hash

TINY = ModelConfig(
    backbone=LGATrSlimConfig(blocks=1, vector_channels=2, scalar_channels=4, heads=1),
    tokens=TokensConfig(max_jets=4),
)


def networks(folds=1, config=TINY):
    torch.manual_seed(0)
    built = [TopNetwork(config) for _ in range(folds)]
    for network in built:
        network.encoder.fit_standardisation(Inputs.from_events(toy_events(100)))
    return built


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, networks(2), {"training": {"seed": 3}})
    return path


def rewrite(path, *, change=None, tensors=None, digest=True):
    """Write a model file anew with other metadata or tensors and, unless told otherwise, a valid digest."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if tensors is not None:
        tensors(content)
    metadata = json.loads(header["topreco"])
    if change is not None:
        change(metadata)
    if digest:
        metadata["sha256"] = model_file._digest(metadata, content)
    save_file(content, path, metadata={"topreco": json.dumps(metadata)})


def test_round_trip_is_exact(model):
    saved = networks(2)
    loaded = load_model(model)
    assert loaded.config == TINY
    assert len(loaded.networks) == 2
    for network, original in zip(loaded.networks, saved, strict=True):
        assert not network.training
        state = network.state_dict()
        for name, tensor in original.state_dict().items():
            assert torch.equal(state[name], tensor), name
    events = toy_events(50)
    assert (predict(loaded.networks, events).p4 == predict(saved, events).p4).all()


@pytest.mark.parametrize("head", ["on_shell", "timelike", "neutrinos"])
def test_round_trip_of_other_heads(tmp_path, head):
    saved = networks(config=TINY.model_copy(update={"head": head}))
    save_model(tmp_path / "model.safetensors", saved, {})
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.config.head == head
    events = toy_events(50)
    pair = predict(loaded.networks, events)
    assert pair.valid.all()
    assert (pair.p4 == predict([network.eval() for network in saved], events).p4).all()


def test_describes_itself(model):
    metadata = load_model(model).metadata
    assert metadata["format"] == 2
    assert metadata["folds"] == 2
    assert metadata["parent"] is None
    assert metadata["created_by"].startswith("topreco ")
    encoder, task = metadata["encoder"], metadata["task"]
    # Apart, and together the whole configuration.
    assert EncoderConfig.model_validate(encoder["config"]) == TINY.encoder
    assert not encoder["config"].keys() & task["config"].keys()
    assert ModelConfig.model_validate(encoder["config"] | task["config"]) == TINY
    assert task["kind"] == "tops"
    assert encoder["schema"]["normalisation"] == {"kind": "constant", "scale": 100.0, "include_met": False}
    assert encoder["schema"]["tokens"][:2] == ["lepton_plus", "lepton_minus"]
    assert task["schema"]["output"] == ["top", "antitop"]
    for part in (encoder, task):
        assert part["schema_hash"] == schema_hash(part["schema"])
    assert metadata["training"] == {"seed": 3}
    assert {"python", "topreco", "torch", "lgatr", "numpy"} <= metadata["versions"].keys()


def test_models_of_other_tasks(tmp_path, monkeypatch):
    """A file holds the networks of any registered task; a method wants those of the tops."""

    class Other(TopNetwork):
        kind = "other"

    monkeypatch.setitem(registry.MODELS, "other", registry.MODELS["tops"]._replace(network=Other))
    path = tmp_path / "model.safetensors"
    save_model(path, [Other(TINY)], {})
    loaded = load_model(path)
    assert loaded.kind == loaded.metadata["task"]["kind"] == "other"
    assert type(loaded.networks[0]) is Other
    with pytest.raises(TopRecoError, match="holds a model of the task 'other', tops or posterior expected"):
        topreco.load(path)


def test_the_parent_is_kept(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, networks(), {"parent": "0123"})
    loaded = load_model(path)
    assert loaded.metadata["parent"] == "0123"
    save_model(path, loaded.networks, loaded.metadata)
    assert load_model(path).metadata["parent"] == "0123"


def test_same_content_gives_the_same_bytes(model, tmp_path):
    again = tmp_path / "again.safetensors"
    loaded = load_model(model)
    for _ in range(5):
        save_model(again, loaded.networks, loaded.metadata)
        assert again.read_bytes() == model.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.safetensors", "model.safetensors"]


def test_others_may_read_the_file(model, tmp_path):
    (tmp_path / "plain").touch()
    assert model.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_no_folders_and_no_nan_in_the_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, networks(), {"file": tmp_path / "a.parquet", "x": [str(tmp_path), float("nan"), 1.5]})
    metadata = load_model(path).metadata
    assert metadata["file"] == "a.parquet"
    assert metadata["x"] == [tmp_path.name, None, 1.5]
    assert str(tmp_path).encode() not in path.read_bytes()


def test_loading_does_not_disturb_the_random_numbers(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(model)
    assert torch.equal(torch.rand(3), expected)


def test_networks_must_be_of_one_configuration(tmp_path):
    other = TINY.model_copy(update={"readout": "mean"})
    with pytest.raises(ValueError, match="one or more networks of one configuration expected, got 2"):
        save_model(tmp_path / "m.safetensors", [*networks(), *networks(config=other)], {})
    with pytest.raises(ValueError, match="one or more networks of one configuration expected, got 0"):
        save_model(tmp_path / "m.safetensors", [], {})


def test_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TopRecoError, match="cannot write there"):
        save_model(tmp_path / "file" / "m.safetensors", networks(), {})


def one_line_error(path, match):
    with pytest.raises(ModelFileError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    one_line_error(tmp_path / "m.safetensors", "no such file; a model written by `topreco train` expected")
    one_line_error(tmp_path, "no such file")


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_pickles_are_refused_unread(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    save({"weights": Malicious()}, path)
    one_line_error(path, "not a readable .safetensors file")
    assert not (tmp_path / "executed").exists()


def test_other_safetensors(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    one_line_error(path, "no topreco metadata in this file")
    save_file({"x": torch.zeros(2)}, path, metadata={"topreco": "{"})
    one_line_error(path, "damaged, its topreco metadata is not JSON")
    save_file({"x": torch.zeros(2)}, path, metadata={"topreco": "[1]"})
    one_line_error(path, "damaged, its topreco metadata is no mapping")


def backbone(metadata):
    return metadata["encoder"]["config"]["backbone"]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.update(format=1), "model format 1 found, 2 expected; use the topreco that made it"),
        (lambda m: m.pop("format"), "model format None found, 2 expected"),
        (
            lambda m: m["encoder"].update(schema_hash="abc"),
            "made for other inputs .schema abc found, [0-9a-f]{64} expected",
        ),
        (
            lambda m: m["task"].update(schema_hash="abc"),
            "made for other outputs .schema abc found, [0-9a-f]{64} expected",
        ),
        (lambda m: m["encoder"].pop("schema_hash"), "made for other inputs .schema None found"),
        (
            lambda m: m["task"].update(kind="spin"),
            "task 'spin' found, one of tops, posterior, ratio, masked, tokens expected",
        ),
        (
            lambda m: m["task"].pop("kind"),
            "task None found, one of tops, posterior, ratio, masked, tokens expected",
        ),
        (lambda m: m.update(folds=0), "metadata entry 'folds' is 0, at least 1 expected"),
        (lambda m: m.update(folds="2"), "metadata entry 'folds' is '2'"),
        (lambda m: m.update(folds=3), "tensor 'fold2.* is missing"),
        (lambda m: m.update(folds=1), "unexpected tensor 'fold1"),
        (lambda m: m.update(encoder=None), "metadata entry 'encoder' is None"),
        (lambda m: m["task"].update(config=[]), "metadata entry 'task' is "),
        (lambda m: m["task"]["config"].update(head="no"), "model: head: .* found 'no'"),
        (lambda m: m["task"]["config"].update(hed="timelike"), "unknown key 'hed'; did you mean 'head'"),
        (lambda m: backbone(m).update(vector_channels=3), "is torch.float32 of shape"),
        (lambda m: m["encoder"]["config"]["tokens"].update(max_jets=5), "made for other inputs"),
        (lambda m: m["task"]["config"].update(readout="mean"), "made for other outputs"),
        # Refused before anything of that size is built.
        (lambda m: m.update(folds=10**9), "folds is 1000000000, but no tensor"),
        (lambda m: backbone(m).update(blocks=10**9), "blocks is 1000000000, but no tensor"),
        (lambda m: backbone(m).update(vector_channels=10**7), "vector_channels is 10000000"),
        (lambda m: m["task"]["config"].update(m_top=1e200), "m_top: Input should be less than 100000"),
    ],
)
def test_wrong_metadata(model, change, match):
    rewrite(model, change=change)
    one_line_error(model, match)


def first(tensors):
    return next(name for name, tensor in sorted(tensors.items()) if tensor.ndim == 2)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        (lambda t: t.pop(first(t)), r"tensor 'fold0\.\S+' is missing \(1 in all\)"),
        (lambda t: t.update(extra=torch.zeros(1)), r"unexpected tensor 'extra' \(1 in all\)"),
        (
            lambda t: t.update({first(t): torch.zeros(3, 7)}),
            r"is torch.float32 of shape \(3, 7\), torch.float32 of shape \(\d+, \d+\) expected",
        ),
        (
            lambda t: t.update({first(t): t[first(t)].to(torch.int32)}),
            "is torch.int32 of shape .*, torch.float32 of shape",
        ),
    ],
)
def test_wrong_tensors(model, tensors, match):
    rewrite(model, tensors=tensors)
    one_line_error(model, match)


def test_changed_weights_or_metadata_are_noticed(model):
    rewrite(model, tensors=lambda t: t[first(t)].mul_(1.01), digest=False)
    one_line_error(model, "damaged, content and checksum differ")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 2000, -1])
def test_truncated_file(model, keep):
    content = model.read_bytes()
    model.write_bytes(content[:keep])
    one_line_error(model, "not a readable .safetensors file")


def test_no_flipped_byte_gives_another_exception_or_another_model(model):
    content, expected = model.read_bytes(), load_model(model).metadata
    header = 8 + struct.unpack("<Q", content[:8])[0]
    rng = random.Random(0)
    places = [*range(8), *rng.sample(range(8, header), 300), *rng.sample(range(header, len(content)), 20)]
    for place in places:
        broken = bytearray(content)
        broken[place] ^= 1 << rng.randrange(8)
        model.write_bytes(broken)
        try:
            # JSON has several spellings of the same content.
            assert load_model(model).metadata == expected
        except ModelFileError as error:
            assert "\n" not in str(error)  # noqa: PT017 - not every flip need raise
