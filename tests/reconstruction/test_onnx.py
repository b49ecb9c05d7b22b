"""Exported models as methods: the predictions of torch without torch."""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import topreco
from topreco.config import SelectionConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.core.shipped import shipped_models
from topreco.input.nano import open_events
from topreco.input.selection import select
from topreco.reconstruction.onnx import OnnxMethod

REPOSITORY = Path(__file__).parents[2]

# What a program meets on a machine without torch.
WITHOUT_TORCH = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "lgatr", "safetensors", "lightning", "onnx", "onnxscript"}:
            raise ImportError(f"no {name} here")
sys.meta_path.insert(0, Missing())
"""


def python(code, *arguments):
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=environment, check=True)


def test_is_a_method(toy_onnx, toy_model):
    model = topreco.load(toy_onnx, threads=1)
    assert isinstance(model, topreco.Method)
    assert (model.name, topreco.load(toy_onnx, name="x").name) == ("toy", "x")
    assert model.metadata == topreco.load(toy_model).metadata
    events = toy_events(1000, seed=3)
    pair, expected = model(events), topreco.load(toy_model)(events)
    assert isinstance(pair, topreco.TopPair)
    assert pair.valid.all()
    assert (np.abs(pair.p4 - expected.p4) / expected.p4[..., :1]).max() < 1e-4


@pytest.mark.sim
def test_agrees_with_torch_on_simulated_events(toy_onnx, toy_model, simulated):
    events = select(open_events(simulated), SelectionConfig(), dataset="tt").events
    assert len(events) > 50
    pair, expected = topreco.load(toy_onnx)(events), topreco.load(toy_model)(events)
    np.testing.assert_array_equal(pair.valid, expected.valid)
    assert (np.abs(pair.p4 - expected.p4) / expected.p4[..., :1]).max() < 1e-4


@pytest.mark.parametrize("threads", [1, 2, None])
def test_batches_and_threads_change_nothing(toy_onnx, threads):
    """Bit for bit: otherwise results would depend on how files are cut into chunks."""
    events = toy_events(120)
    whole = topreco.load(toy_onnx, threads=1)(events).p4
    model = topreco.load(toy_onnx, threads=threads)
    for size in (1, 7, 100):
        parts = [model(events[i : i + size]).p4 for i in range(0, 120, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(OnnxMethod(toy_onnx, batch_size=50)(events).p4, whole)


@pytest.mark.parametrize("name", ["lepton_plus", "lepton_minus", "jets", "jet_btag", "met"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_events_that_are_not_finite_are_not_valid(toy_onnx, name, value):
    events, model = toy_events(5), topreco.load(toy_onnx, threads=1)
    broken = getattr(events, name).copy()
    broken[2].flat[0] = value
    pair = model(dataclasses.replace(events, **{name: broken}))
    assert pair.valid.tolist() == [True, True, False, True, True]
    assert np.isnan(pair.p4[2]).all()
    np.testing.assert_array_equal(pair.p4[[0, 1, 3, 4]], model(events).p4[[0, 1, 3, 4]])


def test_padded_slots_may_hold_anything(toy_onnx):
    events, model = toy_events(5), topreco.load(toy_onnx, threads=1)
    padded = ~events.jet_mask
    other = dataclasses.replace(
        events,
        jets=np.where(padded[..., None], np.nan, events.jets),
        jet_btag=np.where(padded, np.inf, events.jet_btag),
    )
    np.testing.assert_array_equal(model(other).p4, model(events).p4)


def test_nothing_to_predict(toy_onnx):
    model = topreco.load(toy_onnx, threads=1)
    assert model(toy_events(3)[:0]).p4.shape == (0, 2, 4)
    pair = model(dataclasses.replace(toy_events(3), met=np.full((3, 2), np.nan)))
    assert not pair.valid.any()


def test_pickles_as_its_path(toy_onnx):
    model = topreco.load(toy_onnx, name="x", threads=1)
    content = pickle.dumps(model)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert again.name == "x"
    np.testing.assert_array_equal(again(toy_events(5)).p4, model(toy_events(5)).p4)


def test_may_pickle_with_its_content(toy_onnx, tmp_path):
    path = shutil.copy(toy_onnx, tmp_path / "toy.onnx")
    content = pickle.dumps(topreco.load(path, threads=1, ship=True))
    path.unlink()
    again = pickle.loads(content)
    expected = topreco.load(toy_onnx, threads=1)(toy_events(5)).p4
    np.testing.assert_array_equal(again(toy_events(5)).p4, expected)


def test_one_network_needs_no_key(toy_onnx):
    assert not topreco.load(toy_onnx).uses_event_key


def test_is_opened_once_per_process(toy_onnx, tmp_path, monkeypatch):
    import onnxruntime

    opened, session = [], onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *given, **options: opened.append(1) or session(*given, **options),
    )
    model = topreco.load(shutil.copy(toy_onnx, tmp_path / "model.onnx"), threads=1)
    for _ in range(3):
        pickle.loads(pickle.dumps(model))(toy_events(2))
    assert opened == [1]


def test_a_file_written_anew_is_another_model(toy_onnx, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(toy_onnx.read_bytes())
    model = topreco.load(path)
    path.write_bytes(b"something else")
    os.utime(path, ns=(0, 0))
    with pytest.raises(TopRecoError, match="not a model written by `topreco export`"):
        model(toy_events(2))


def test_survives_a_fork(toy_onnx):
    """Threads do not, so that a session of the parent would wait for them for ever."""
    python(
        """
import multiprocessing, sys, topreco
from topreco.core.events import toy_events
model = topreco.load(sys.argv[1], threads=2)
model(toy_events(100))
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.apply_async(model, (toy_events(100),)).get(120).valid.all()
""",
        toy_onnx,
    )


# ---- without torch ---------------------------------------------------------------------------------------


def test_needs_no_torch(toy_onnx, tmp_path):
    code = """
import numpy, topreco
from topreco.core.events import toy_events
numpy.save(sys.argv[2], topreco.load(sys.argv[1])(toy_events(50)).p4)
assert topreco.reconstruct(toy_events(50), sys.argv[1]).valid.to_numpy().all()
assert "torch" not in sys.modules
"""
    python(WITHOUT_TORCH + code, toy_onnx, tmp_path / "p4.npy")
    expected = topreco.load(toy_onnx)(toy_events(50)).p4
    np.testing.assert_array_equal(np.load(tmp_path / "p4.npy"), expected)


@pytest.mark.sim
def test_the_processor_needs_no_torch(toy_onnx, simulated):
    code = """
import topreco
from coffea import processor
from topreco.input.nano import QuietNanoAODSchema
runner = processor.Runner(processor.IterativeExecutor(status=False), schema=QuietNanoAODSchema)
instance = topreco.DileptonProcessor([sys.argv[1]])
out = runner({"tt": {"treename": "Events", "files": [sys.argv[2]]}}, processor_instance=instance)
assert out["cutflow"]["tt"]
assert "torch" not in sys.modules
"""
    python(WITHOUT_TORCH + code, toy_onnx, simulated)


# ---- errors ----------------------------------------------------------------------------------------------


def test_missing_file(tmp_path):
    with pytest.raises(
        TopRecoError, match=r"absent\.onnx: no such file; a model written by `topreco export`"
    ):
        topreco.load(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-10], "cut short, or not a model written by"),
        (lambda content: b"", "cut short, or not a model written by"),
        (lambda content: content[:5000] + b"X" + content[5001:], "damaged or changed after its export"),
        (lambda content: content[:-1] + b"x", "damaged or changed after its export"),
    ],
    ids=["cut", "empty", "weights", "digest"],
)
def test_damaged_files(toy_onnx, tmp_path, damage, message):
    path = tmp_path / "bad.onnx"
    path.write_bytes(damage(toy_onnx.read_bytes()))
    with pytest.raises(TopRecoError, match=rf"bad\.onnx: {message}") as error:
        topreco.load(path)
    assert "\n" not in str(error.value)


def test_models_of_others(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "other.onnx")
    with pytest.raises(
        TopRecoError, match=r"other\.onnx: cut short, or not a model written by `topreco export`"
    ):
        topreco.load(tmp_path / "other.onnx")


def test_a_runtime_that_cannot_open_it(toy_onnx, tmp_path, monkeypatch):
    import onnxruntime

    def too_old(*arguments, **options):
        raise RuntimeError("Unsupported model IR version: 8\nand more")

    monkeypatch.setattr(onnxruntime, "InferenceSession", too_old)
    path = tmp_path / "model.onnx"
    path.write_bytes(toy_onnx.read_bytes())
    with pytest.raises(
        TopRecoError, match=r"onnxruntime .* cannot open it \(Unsupported model IR version: 8\)$"
    ):
        topreco.load(path)


def test_the_extra_is_named(toy_onnx, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    path = tmp_path / "model.onnx"
    path.write_bytes(toy_onnx.read_bytes())
    with pytest.raises(TopRecoError, match=r"pip install 'topreco\[onnx\]'"):
        topreco.load(path)


# ---- shipped models --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.exhaustive  # `test_agrees_with_torch` of tests/network/export has one of each backbone
@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_shipped_models_agree_with_torch(assert_agrees, name, tmp_path):
    from topreco.network.export.onnx import export_onnx

    trained = topreco.load(name, threads=1)
    export_onnx(trained.model, tmp_path / "model.onnx")
    model = topreco.load(tmp_path / "model.onnx", threads=1)
    assert model.metadata["sha256"] == trained.metadata["sha256"]
    events = toy_events(10_000, seed=8)
    pair = model(events)
    assert pair.valid.all()
    assert_agrees(pair.p4, trained.model.networks[0], events)
