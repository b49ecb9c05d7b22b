"""The reader beside an exported model: what the package does, from plain arrays and with numpy alone."""

import ast
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from topreco.core import constants, fourvector, pairing
from topreco.core.events import dataset_id, toy_events
from topreco.core.posterior import normal_noise
from topreco.network.export import reader
from topreco.network.export.reader import ModelError, TopModel, b_candidates, fold_of, make_objects
from topreco.network.splits import fold_of as fold_of_events

LEPTON = ("pt", "eta", "phi", "charge", "pdgid")
JET = ("pt", "eta", "phi", "mass", "btag")


def plain_arrays(events):
    """What an analysis has of toy events: coordinates, the leptons in changing order of charges."""
    leptons = np.stack([events.lepton_plus, events.lepton_minus], axis=1)
    flavour, charge = events.lepton_flavour, np.tile([1, -1], (len(events), 1))
    order = np.random.default_rng(0).integers(0, 2, len(events))[:, None] ^ [0, 1]
    leptons = np.take_along_axis(leptons, order[..., None], axis=1)
    flavour, charge = (np.take_along_axis(values, order, axis=1) for values in (flavour, charge))
    arrays = {"lepton_charge": charge, "lepton_pdgid": -charge * flavour, "jet_btag": events.jet_btag}
    with np.errstate(divide="ignore", invalid="ignore"):
        for name, p4 in (("lepton", leptons), ("jet", events.jets)):
            for coordinate in ("pt", "eta", "phi"):
                arrays[f"{name}_{coordinate}"] = getattr(fourvector, coordinate)(p4)
    arrays["jet_mass"] = np.sqrt(np.maximum(fourvector.mass_squared(events.jets), 0))
    met = np.concatenate([np.zeros((len(events), 1)), events.met, np.zeros((len(events), 1))], axis=1)
    return arrays | {"met_pt": fourvector.pt(met), "met_phi": fourvector.phi(met)}


def inputs(arrays, **settings):
    return make_objects(**arrays, **({"btag_threshold": 0.2783} | settings))


# ---- b candidates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("m_lb_max", [180.0, 100.0])
def test_b_candidates_are_those_of_the_package(m_lb_max):
    events = toy_events(10_000, seed=1)
    arguments = (events.lepton_plus, events.lepton_minus, events.jets, events.jet_mask, events.jet_tagged)
    expected = pairing.b_candidates(*arguments, m_lb_max=m_lb_max)
    assert len(np.unique(expected, axis=0)) > 20
    assert (expected == -1).any()
    np.testing.assert_array_equal(b_candidates(*arguments, m_lb_max=m_lb_max), expected)


def test_mlb_density_is_that_of_the_package():
    mass, density = reader._mlb_density()
    np.testing.assert_array_equal(density, pairing.mlb_density(mass))


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_no_b_candidates_without_jets(shape):
    nothing = np.zeros((shape[0], 4))
    mask = np.zeros(shape, bool)
    found = b_candidates(nothing, nothing, np.zeros((*shape, 4)), mask, mask)
    np.testing.assert_array_equal(found, np.full((shape[0], 2), -1))


@pytest.mark.parametrize("name", ["M_ELECTRON", "M_MUON", "M_TOP", "M_W"])
def test_masses_are_those_of_the_package(name):
    assert getattr(reader, name) == getattr(constants, name)


# ---- folds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [2, 5])
def test_folds_are_those_of_the_package(folds):
    events = toy_events(1000)
    assert events.dataset[0] == dataset_id("toy")
    found = fold_of("toy", events.run, events.luminosity_block, events.event, folds)
    np.testing.assert_array_equal(found, fold_of_events(events, folds))
    assert set(found) == set(range(folds))


# ---- inputs ---------------------------------------------------------------------------------------------


def test_objects_are_those_of_the_events():
    """Signs, orders, masses and padding, back from coordinates."""
    events = toy_events(500, seed=2)
    found = inputs(plain_arrays(events))
    p4 = {"lepton_plus", "lepton_minus", "jets", "met"}
    for name in reader.INPUTS:
        if name in p4:
            # Leptons of the toy have one mass for all.
            np.testing.assert_allclose(found[name], getattr(events, name), rtol=2e-4, atol=1e-6)
        elif name != "b_candidates":
            np.testing.assert_array_equal(found[name], getattr(events, name))
    expected = pairing.b_candidates(
        *(found[name] for name in ("lepton_plus", "lepton_minus", "jets", "jet_mask", "jet_tagged"))
    )
    np.testing.assert_array_equal(found["b_candidates"], expected)
    mass = fourvector.mass(found["lepton_plus"])
    expected_mass = np.where(events.lepton_flavour[:, 0] == 13, constants.M_MUON, constants.M_ELECTRON)
    np.testing.assert_allclose(mass, expected_mass, atol=0.02)


def test_order_and_empty_slots_of_jets_do_not_matter():
    arrays = plain_arrays(toy_events(200, seed=3))
    expected = inputs(arrays)
    order = np.random.default_rng(1).permuted(np.tile(np.arange(12), (200, 1)), axis=1)
    shuffled = arrays | {
        f"jet_{name}": np.take_along_axis(arrays[f"jet_{name}"], order, axis=1) for name in JET
    }
    empty = shuffled["jet_pt"] == 0
    for name in JET[1:]:
        shuffled[f"jet_{name}"] = np.where(empty, np.nan, shuffled[f"jet_{name}"])
    hidden = {f"jet_{name}": np.ma.masked_array(shuffled[f"jet_{name}"], empty) for name in JET}
    for variant in (shuffled, shuffled | hidden):
        for name, values in inputs(variant).items():
            np.testing.assert_array_equal(values, expected[name])


def test_only_the_leading_jets_count():
    arrays = plain_arrays(toy_events(200, seed=4))
    found = inputs(arrays, max_jets=3)
    assert found["jets"].shape == (200, 3, 4)
    np.testing.assert_array_equal(found["jets"], inputs(arrays)["jets"][:, :3])
    assert found["b_candidates"].max() == 2


def test_a_broken_jet_does_not_hide_behind_the_leading_ones():
    arrays = plain_arrays(toy_events(3, seed=5))
    arrays["jet_pt"][1, 1] = np.nan
    found = inputs(arrays, max_jets=2)
    broken = ~np.isfinite(found["jets"]).all(axis=(1, 2))
    assert broken.tolist() == [False, True, False]
    assert found["jet_mask"].all()


def test_leptons_of_equal_charge_have_no_answer():
    arrays = plain_arrays(toy_events(4))
    arrays["lepton_charge"][2] = 1
    found = inputs(arrays)
    assert np.isnan(found["lepton_plus"]).all(axis=1).tolist() == [False, False, True, False]


@pytest.mark.parametrize("shapes", [((0, 2), (0, 12), (0,)), ((0, 0), (0, 0), (0,))])
def test_no_events(shapes):
    """Awkward arrays of no events have no length on their other axes."""
    lepton, jet, met = (np.zeros(shape) for shape in shapes)
    arrays = {f"lepton_{name}": lepton for name in LEPTON} | {f"jet_{name}": jet for name in JET}
    found = inputs(arrays | {"met_pt": met, "met_phi": met})
    assert found["lepton_plus"].shape == (0, 4)
    assert found["jets"].shape[0] == 0
    assert found["b_candidates"].shape == (0, 2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lepton_eta", np.zeros((4, 3)), r"lepton_eta: shape \(4, 3\) found, \(4, 2\) expected"),
        ("jet_btag", np.zeros((4, 2)), r"jet_btag: shape \(4, 2\) found, \(4, 12\) expected"),
        ("jet_pt", np.zeros((3, 12)), r"jet_pt: shape \(3, 12\) found, \(4, any\) expected"),
        ("jet_pt", np.zeros(0), r"jet_pt: shape \(0,\) found, \(4, any\) expected"),
        ("met_phi", np.zeros((4, 1)), r"met_phi: shape \(4, 1\) found, \(4\) expected"),
        ("lepton_pdgid", np.full((4, 2), 15), "lepton_pdgid: 15 found, ±11 or ±13 expected"),
        ("lepton_pdgid", np.full((4, 2), np.nan), "lepton_pdgid: nan found"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name, value, message):
    with pytest.raises(ModelError, match=message):
        inputs(plain_arrays(toy_events(4)) | {name: value})


# ---- models ----------------------------------------------------------------------------------------------


def test_answers_from_plain_arrays(toy_onnx):
    events = toy_events(300, seed=6)
    arrays = plain_arrays(events)
    arrays["jet_pt"][7, 0] = np.nan
    arrays["lepton_charge"][8] = -1
    model = TopModel(toy_onnx, btag_threshold=0.2783, max_jets=12, m_lb_max=180.0)
    tops = model(**arrays)
    assert np.flatnonzero(~tops.valid).tolist() == [7, 8]
    assert np.isnan(tops.top[[7, 8]]).all()
    p4, valid, *_ = model.run(inputs(arrays))
    np.testing.assert_array_equal(np.stack([tops.top, tops.antitop], axis=1), p4)
    np.testing.assert_array_equal(tops.valid, valid)
    assert tops.top.dtype == np.float64


def test_pickles_as_its_path_and_settings(toy_onnx):
    model = TopModel(toy_onnx, btag_threshold=0.5, batch_size=7)
    content = pickle.dumps(model)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert (again.path, again.btag_threshold, again.batch_size) == (toy_onnx, 0.5, 7)


def test_settings_come_from_the_training_data(toy_onnx, monkeypatch):
    selection = {"jet": {"btag_threshold": 0.3, "max_jets": 10}, "m_lb_max": 170.0}
    metadata = dict(TopModel(toy_onnx).metadata)
    metadata["data"] = {"files": [{"selection": selection}, {"selection": selection}]}
    monkeypatch.setattr(TopModel, "metadata", metadata)
    given = []
    monkeypatch.setattr(
        reader, "make_objects", lambda **settings: given.append(settings) or make_objects(**settings)
    )
    arrays, model = plain_arrays(toy_events(2)), TopModel(toy_onnx)
    model(**arrays)
    TopModel(toy_onnx, btag_threshold=0.1)(**arrays)
    assert [settings["btag_threshold"] for settings in given] == [0.3, 0.1]
    assert [(settings["max_jets"], settings["m_lb_max"]) for settings in given] == [(10, 170)] * 2
    metadata["data"]["files"].append({"selection": {"jet": {"btag_threshold": 0.4}}})
    with pytest.raises(ModelError, match=r"does not tell btag_threshold \(found 0\.3, 0\.4\); give it"):
        model(**arrays)


def test_settings_that_nobody_tells_are_asked_for(toy_onnx):
    with pytest.raises(ModelError, match=r"toy\.onnx: the file does not tell btag_threshold"):
        TopModel(toy_onnx)(**plain_arrays(toy_events(2)))


def test_misspelt_arrays_are_refused(toy_onnx):
    model = TopModel(toy_onnx, btag_threshold=0.3, max_jets=12, m_lb_max=180.0)
    with pytest.raises(TypeError, match="lepton_pdgId"):
        model(**plain_arrays(toy_events(2)), lepton_pdgId=0)
    with pytest.raises(ModelError, match="batch_size: 0 found"):
        TopModel(toy_onnx, batch_size=0)


# ---- alone -----------------------------------------------------------------------------------------------


def test_is_python_3_9():
    ast.parse(inspect.getsource(reader), feature_version=(3, 9))


def test_works_alone(toy_onnx, tmp_path):
    """A copy, in a process in which everything but numpy and onnxruntime is missing."""
    (tmp_path / "model_reader.py").write_bytes(Path(reader.__file__).read_bytes())
    np.savez(tmp_path / "arrays.npz", **plain_arrays(toy_events(20, seed=7)))
    (tmp_path / "script.py").write_text(f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {{"topreco", "torch", "awkward", "coffea", "onnx", "pydantic", "scipy"}}:
            raise ImportError(name)
sys.meta_path.insert(0, Missing())
sys.path.insert(0, {str(tmp_path)!r})
import numpy as np
from model_reader import TopModel
model = TopModel({str(toy_onnx)!r}, btag_threshold=0.2783, max_jets=12, m_lb_max=180.0)
tops = model(**np.load({str(tmp_path / "arrays.npz")!r}))
np.save({str(tmp_path / "tops.npy")!r}, np.stack([tops.top, tops.antitop], axis=1))
""")
    subprocess.run([sys.executable, "-I", tmp_path / "script.py"], check=True)
    model = TopModel(toy_onnx, btag_threshold=0.2783, max_jets=12, m_lb_max=180.0)
    tops = model(**plain_arrays(toy_events(20, seed=7)))
    np.testing.assert_array_equal(np.load(tmp_path / "tops.npy"), np.stack([tops.top, tops.antitop], axis=1))


def test_noise_is_that_of_the_package():
    events = toy_events(20)
    key = (events.dataset, events.run, events.luminosity_block, events.event)
    expected = normal_noise(events, (5, reader.DIMENSIONS), 3)
    assert (reader.normal_noise(key, 5, 3) == expected).all()
    assert reader.dataset_id("tt") == dataset_id("tt")
