"""Loading methods: what works, what is refused, what is pickled, and the contract that all of them meet."""

import dataclasses
import os
import pickle
import shutil
from importlib import resources

import numpy as np
import pytest
import torch

import topreco
from topreco.config import SolverConfig
from topreco.core import fourvector
from topreco.core.constants import M_B, M_MUON, M_TOP, M_W
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.core.method import as_method
from topreco.core.shipped import shipped_models
from topreco.reconstruction.analytic import ANALYTIC_METHODS
from topreco.reconstruction.load import load_methods
from topreco.reconstruction.network import NetworkMethod
from topreco.reconstruction.recalibration import ResponseCurve
from topreco.reconstruction.wrappers import QualityCut, Recalibrated
from topreco.solvers.response import SHIPPED


def test_a_model_is_a_callable_on_events(toy_model):
    model = topreco.load(toy_model)
    assert isinstance(model, topreco.Method)
    assert model.name == "toy"
    pair = model(toy_events(10))
    assert isinstance(pair, topreco.TopPair)
    assert pair.valid.all()
    np.testing.assert_allclose(topreco.load(toy_model, name="x")(toy_events(10)).p4, pair.p4)


def test_pickles_as_its_path(toy_model):
    model = topreco.load(toy_model, name="x", threads=1)
    content = pickle.dumps(model)
    assert len(content) < 1000
    again = pickle.loads(content)
    assert again.name == "x"
    np.testing.assert_array_equal(again(toy_events(5)).p4, model(toy_events(5)).p4)


def test_threads_are_restored(toy_model):
    before = torch.get_num_threads()
    topreco.load(toy_model, threads=2)(toy_events(3))
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("source", ["MODEL", "ellipse_closest"])
@pytest.mark.parametrize("threads", [2, None])
def test_threads_change_no_prediction(toy_model, source, threads):
    source = toy_model if source == "MODEL" else source
    events = toy_events(200)
    one, many = (topreco.load(source, threads=n) for n in (1, threads))
    assert one.fingerprint == many.fingerprint
    np.testing.assert_array_equal(many(events).p4, one(events).p4)


def test_a_number_of_threads_that_cannot_be(toy_model):
    for source in (toy_model, "ellipse"):
        with pytest.raises(TopRecoError, match="threads: 0 found, 1 or more expected"):
            topreco.load(source, threads=0)
    with pytest.raises(TopRecoError, match="batch_size: 0 found, 1 or more expected"):
        NetworkMethod(toy_model, batch_size=0)


# ---- the contract ----------------------------------------------------------------------------------------


def test_all_methods_are_listed():
    assert list(topreco.methods()) == [*shipped_models(), *ANALYTIC_METHODS]
    assert all(topreco.methods().values())


@pytest.mark.parametrize("name", ANALYTIC_METHODS)
def test_analytic_methods_meet_the_contract(name):
    method = topreco.load(name)
    assert isinstance(method, topreco.Method)
    assert method.fingerprint == topreco.load(name, name="other").fingerprint
    changes = {"m_top": 170.0, "m_w": 80.0, "n_draws": 7, "seed": 5, "pairing": "all", "reset_energy": False}
    relevant = {
        key
        for key, value in changes.items()
        if topreco.load(name, solvers=SolverConfig(**{key: value})).fingerprint != method.fingerprint
    }
    smeared = {"m_top", "n_draws", "seed", "pairing", "reset_energy"}
    expected = {"loose": {"m_w"}, "sonnenschein": smeared, "ellipse": smeared}
    assert relevant == expected.get(name, {"m_top", "m_w"})
    assert method.uses_event_key == (expected.get(name) is smeared)


def test_a_detector_response_is_known_by_its_content(tmp_path):
    shipped = resources.files("topreco.solvers").joinpath(SHIPPED).read_text(encoding="utf-8")
    path = tmp_path / "response.json"
    path.write_text(shipped)
    method = topreco.load("ellipse", solvers=SolverConfig(response=path))
    before = method.fingerprint
    assert before == topreco.load("ellipse").fingerprint
    path.write_text(shipped + "\n")
    os.utime(path, ns=(0, 0))
    assert method.fingerprint != before


def test_a_model_is_known_by_its_content(toy_model, tmp_path):
    method = topreco.load(toy_model)
    copy = shutil.copy(toy_model, tmp_path / "copy.safetensors")
    assert topreco.load(copy, threads=1).fingerprint == method.fingerprint
    assert pickle.loads(pickle.dumps(method)).fingerprint == method.fingerprint
    assert topreco.load(toy_model, quantiles=False).fingerprint != method.fingerprint


class Plain:
    """The least that is a method."""

    name = "plain"

    def __call__(self, events):
        return topreco.TopPair(np.ones((len(events), 2, 4)), np.ones(len(events), bool))


def test_a_callable_with_a_name_is_completed():
    (method,) = load_methods([Plain()])
    assert isinstance(method, topreco.Method)
    assert (method.name, method.uses_event_key) == ("plain", True)
    assert method.fingerprint == as_method(pickle.loads(pickle.dumps(Plain()))).fingerprint
    assert method(toy_events(3)).valid.all()
    known = Plain()
    known.uses_event_key, known.fingerprint = False, "f"
    assert as_method(known) is known


@pytest.mark.parametrize("wrong", [5, lambda events: events])
def test_a_callable_without_a_name_is_refused(wrong):
    with pytest.raises(TopRecoError, match="a callable with an attribute 'name' expected"):
        load_methods([wrong])


def test_wrappers_have_fingerprints_of_their_own():
    method = topreco.load("ellipse_closest", threads=1)
    curve, other = (ResponseCurve(np.array([1.0, 2.0]), np.array([1.0, x])) for x in (2.0, 3.0))
    wrapped = [
        *(QualityCut(method, x) for x in (-1.0, -2.0)),
        *(Recalibrated(method, c) for c in (curve, other)),
        QualityCut(topreco.load("loose"), -1.0),
    ]
    assert all(isinstance(each, topreco.Method) for each in wrapped)
    assert len({each.fingerprint for each in (method, *wrapped)}) == 1 + len(wrapped)


# ---- networks --------------------------------------------------------------------------------------------


def test_metadata_tells_how_it_was_made(toy_model):
    assert topreco.load(toy_model).metadata["task"]["kind"] == "tops"


def test_batch_size_changes_nothing(toy_model):
    """Bit for bit: otherwise results would depend on how files are cut into chunks."""
    events = toy_events(300)
    whole = topreco.load(toy_model)(events).p4
    for size in (1, 7, 100):
        parts = [topreco.load(toy_model)(events[i : i + size]).p4 for i in range(0, 300, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "method 5: a name or a model file expected"),
        ("absent.safetensors", "absent.safetensors"),
        ("nonsense", "method 'nonsense': a .safetensors file"),
        ("model.pt", r"method 'model.pt': a .safetensors file.*an .onnx file written by `topreco export`"),
    ],
)
def test_what_is_no_model_is_refused(source, message):
    with pytest.raises(TopRecoError, match=message) as error:
        topreco.load(source)
    assert "\n" not in str(error.value)


def exact_events(n=200, seed=3):
    """Events whose leptons, b jets and MET come from t → b W → b ℓ ν exactly, and their tops."""
    rng = np.random.default_rng(seed)

    def directions(shape):
        z, phi = rng.uniform(-1, 1, shape), rng.uniform(-np.pi, np.pi, shape)
        return np.stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z], -1)

    def decay(parent, mass, m_first, m_second):
        momentum = np.sqrt((mass**2 - (m_first + m_second) ** 2) * (mass**2 - (m_first - m_second) ** 2)) / (
            2 * mass
        )
        first = fourvector.from_three_momentum(momentum * directions(parent.shape[:-1]), m_first)
        first = fourvector.boost(first, parent[..., 1:] / parent[..., :1])
        return first, parent - first

    tops = fourvector.from_three_momentum(rng.normal(0, [60, 60, 200], (n, 2, 3)), M_TOP)
    w, b = decay(tops, M_TOP, M_W, M_B)
    lepton, neutrino = decay(w, M_W, M_MUON, 0.0)
    jets = np.concatenate([b, np.zeros((n, 1, 4))], axis=1)
    events = dataclasses.replace(
        toy_events(n, max_jets=3),
        lepton_plus=lepton[:, 0],
        lepton_minus=lepton[:, 1],
        jets=jets,
        jet_mask=np.tile([True, True, False], (n, 1)),
        jet_tagged=np.tile([True, True, False], (n, 1)),
        b_candidates=np.tile([0, 1], (n, 1)),
        met=neutrino.sum(axis=1)[:, 1:3],
    )
    return events, tops


@pytest.mark.parametrize("method", ANALYTIC_METHODS)
def test_analytic_methods_on_exact_events(method):
    events, tops = exact_events()
    reconstruct = topreco.load(method, threads=1, solvers=SolverConfig(n_draws=20))
    assert reconstruct.name == method
    pair = reconstruct(events)
    assert pair.valid.mean() > 0.9
    if method == "loose":
        assert np.isnan(pair.p4).all()
        assert np.isfinite(pair.ttbar[pair.valid]).all()
        return
    assert np.isnan(pair.p4[~pair.valid]).all()
    np.testing.assert_allclose(fourvector.mass(pair.p4[pair.valid]), M_TOP, rtol=1e-4)
    if "unsmeared" in method or "closest" in method:
        exact = np.abs(pair.p4 - tops).max(axis=(1, 2)) < 1e-3
        assert 0.3 < exact.mean() < 1  # of up to four solutions, the one of the smallest m_tt is taken


@pytest.mark.parametrize("method", ANALYTIC_METHODS)
def test_analytic_methods_without_a_prediction(method):
    """No b candidates, broken input, no events at all: not valid, and no exception."""
    events, _ = exact_events(4)
    lepton = events.lepton_plus.copy()
    lepton[1] = np.nan
    lepton[2] = 0.0
    events = dataclasses.replace(
        events, b_candidates=np.array([[-1, -1], [0, 1], [0, 1], [0, 1]]), lepton_plus=lepton
    )
    reconstruct = topreco.load(method, threads=1, solvers=SolverConfig(n_draws=20))
    pair = reconstruct(events)
    assert not pair.valid[1]
    assert not pair.valid[2] or method == "loose"
    assert not pair.valid[0]
    assert np.isnan(pair.system[~pair.valid]).all()
    assert len(reconstruct(events[:0])) == 0


@pytest.mark.parametrize("method", ANALYTIC_METHODS)
def test_analytic_predictions_belong_to_the_event(method):
    """Neither the other events nor their order matter."""
    events, _ = exact_events(30)
    reconstruct = topreco.load(method, threads=1, solvers=SolverConfig(n_draws=10))
    whole = reconstruct(events).system
    np.testing.assert_array_equal(reconstruct(events[::-1]).system[::-1], whole)
    np.testing.assert_array_equal(reconstruct(events[7:9]).system, whole[7:9])


def test_analytic_methods_pickle():
    reconstruct = pickle.loads(pickle.dumps(topreco.load("ellipse", name="e", solvers=SolverConfig(seed=5))))
    assert (reconstruct.name, reconstruct.config.seed) == ("e", 5)


def test_missing_response_is_refused_at_once(tmp_path):
    with pytest.raises(TopRecoError, match=r"absent\.json"):
        topreco.load("sonnenschein", solvers=SolverConfig(response=tmp_path / "absent.json"))


# ---- quality ---------------------------------------------------------------------------------------------


def test_a_quality_cut_makes_events_unsolved():
    method = topreco.load("ellipse_closest", threads=1)
    events = toy_events(60)
    pair = method(events)
    minimum = float(np.nanmedian(pair.quality))
    (cut,) = load_methods([method], min_quality={"ellipse_closest": minimum})
    kept = cut(events)
    assert (cut.name, cut.uses_event_key, cut.path) == (method.name, method.uses_event_key, None)
    np.testing.assert_array_equal(kept.valid, pair.valid & (pair.quality >= minimum))
    assert 0 < kept.valid.sum() < pair.valid.sum()
    np.testing.assert_array_equal(kept.p4, pair.p4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(cut))(events).valid, kept.valid)


def test_quality_cuts_that_mean_nothing(toy_model):
    with pytest.raises(TopRecoError, match=r"min_quality\.elipse: no such method; there are ellipse"):
        load_methods(["ellipse"], min_quality={"elipse": 1.0})
    (cut,) = load_methods([toy_model], min_quality={"toy": -0.1})
    with pytest.raises(TopRecoError, match="min_quality: method 'toy' gives no quality"):
        cut(toy_events(2))


@pytest.mark.parametrize("method", ["sonnenschein", "ellipse"])
def test_smeared_methods_know_their_spread(method):
    events = toy_events(40)
    solvers = SolverConfig(n_draws=20)
    pair = topreco.load(method, threads=1, solvers=solvers)(events)
    assert set(pair.quantiles) == {"m_tt", "pt_top", "pt_antitop", "y_top", "y_antitop", "c_hel"}
    assert np.array_equal(np.isfinite(pair.quantiles["c_hel"]).all(axis=1), pair.valid)
    without = topreco.load(method, threads=1, solvers=solvers, quantiles=False)(events)
    assert without.quantiles is None
    np.testing.assert_array_equal(without.p4, pair.p4)


def test_smearing_needs_keys_that_differ():
    """Else all events would be smeared by the same draws; one event alone has nothing to differ from."""
    events = dataclasses.replace(toy_events(5), event=np.zeros(5, np.uint64))
    method = topreco.load("sonnenschein", solvers=SolverConfig(n_draws=2))
    with pytest.raises(TopRecoError, match=r"'sonnenschein': the key .* is constant, .* all 5 events"):
        method(events)
    assert len(method(events[:1]).valid) == 1
    assert len(method(dataclasses.replace(events, run=np.arange(5, dtype=np.uint32))).valid) == 5
