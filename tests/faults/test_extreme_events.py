"""Events at the edge of what a detector or a generator gives: finite answers, or none and said so."""

import copy
import dataclasses
import json
import math

import good_files
import numpy as np
import pytest

import topreco
from topreco.config import HistogramConfig, SolverConfig, TrainConfig
from topreco.core.events import DileptonEvents, toy_events
from topreco.core.fourvector import from_pt_eta_phi_mass
from topreco.core.pairing import b_candidates
from topreco.core.shipped import shipped_models
from topreco.core.skim import SkimWriter
from topreco.evaluation.fill import fill_methods
from topreco.evaluation.histograms import book
from topreco.evaluation.report import write_report
from topreco.evaluation.summary import summarise
from topreco.reconstruction.analytic import ANALYTIC_METHODS
from topreco.reconstruction.load import load
from topreco.runs.columns import event_columns

pytestmark = pytest.mark.faults

N_JETS = 30


def extreme(leptons, jets, met=(40.0, 20.0), weight=1.0):
    """One event from (pT, η, φ, mass) of ℓ⁺ and ℓ⁻ and of the jets."""
    plus, minus = (from_pt_eta_phi_mass(*map(np.array, lepton)) for lepton in leptons)
    n = len(jets)
    p4 = np.zeros((1, N_JETS, 4))
    for i, jet in enumerate(jets):
        p4[0, i] = from_pt_eta_phi_mass(*map(np.array, jet))
    mask = np.arange(N_JETS)[None] < n
    tagged = np.arange(N_JETS)[None] < 2
    return DileptonEvents(
        lepton_plus=plus[None],
        lepton_minus=minus[None],
        lepton_flavour=np.array([[11, 13]]),
        jets=p4,
        jet_mask=mask,
        jet_btag=np.where(mask, 0.9, 0.0),
        jet_working_points=np.where(mask, 3, 0),
        jet_tagged=tagged,
        b_candidates=b_candidates(plus[None], minus[None], p4, mask, tagged),
        met=np.array([met]),
        dataset=np.ones(1, np.uint64),
        run=np.ones(1, np.uint32),
        luminosity_block=np.ones(1, np.uint32),
        event=np.zeros(1, np.uint64),
        weight=np.array([weight]),
    )


LEPTONS = ((50.0, 0.3, 0.5, 0.0005), (40.0, -0.6, 2.5, 0.1057))
JETS = ((90.0, 0.2, -1.0, 9.0), (60.0, -1.0, 1.5, 8.0))
EVENTS = {
    "ordinary": extreme(LEPTONS, JETS),
    "pt of 5 TeV": extreme(
        ((5000.0, 0.1, 0.2, 0.0005), (4000.0, -0.2, 3.0, 0.1057)),
        ((5000.0, 0.3, -0.5, 300.0), (4500.0, 0.0, 2.5, 200.0)),
        (2000.0, -1000.0),
    ),
    "edge of acceptance": extreme(
        ((25.0, 2.5, 0.5, 0.0005), (20.0, -2.4, 2.5, 0.1057)),
        ((30.0, 5.191, -1.0, 9.0), (30.0, -5.191, 1.5, 8.0)),
    ),
    "no MET": extreme(LEPTONS, JETS, (0.0, 0.0)),
    "thirty jets": extreme(LEPTONS, [(200.0 - 5 * i, 0.1 * i - 1.5, 0.4 * i, 5.0) for i in range(N_JETS)]),
    "collinear leptons": extreme((LEPTONS[0], LEPTONS[0]), JETS),
    "leptons back to back with their jets": extreme(
        LEPTONS, ((90.0, -0.3, 0.5 - math.pi, 9.0), (60.0, 0.6, 2.5 - math.pi, 8.0))
    ),
    "lepton in its jet": extreme(LEPTONS, ((90.0, 0.3, 0.5, 9.0), JETS[1])),
    "massless jets": extreme(LEPTONS, [(pt, eta, phi, 0.0) for pt, eta, phi, _ in JETS]),
    "two equal jets": extreme(LEPTONS, (JETS[0], JETS[0])),
    "all along one direction": extreme(
        ((50.0, 0.0, 0.0, 0.0), (40.0, 0.0, 0.0, 0.0)), ((90.0, 0.0, 0.0, 0.0), (60.0, 0.0, 0.0, 0.0))
    ),
    "objects of 1 MeV": extreme(
        ((0.001, 0.3, 0.5, 0.0005), (0.001, -0.6, 2.5, 0.1057)), ((0.001, 0.2, -1.0, 0.0),) * 2, (0.0, 0.0)
    ),
    "no jets": extreme(LEPTONS, ()),
    "one jet": extreme(LEPTONS, JETS[:1]),
    "jet of 100 GeV mass": extreme(LEPTONS, ((90.0, 0.2, -1.0, 100.0), JETS[1])),
}
NETWORKS = sorted(shipped_models())


def all_events():
    """The extreme events, each with its own number, within ordinary ones."""
    toys = toy_events(40, max_jets=N_JETS, seed=3)
    events = DileptonEvents.concatenate([*EVENTS.values(), toys])
    return dataclasses.replace(events, event=np.arange(len(events), dtype=np.uint64))


@pytest.fixture(
    scope="module", params=[*NETWORKS, *ANALYTIC_METHODS, pytest.param("onnx", marks=pytest.mark.exhaustive)]
)
def method(request):
    if request.param == "onnx":
        return load(request.getfixturevalue("toy_onnx"), threads=1)
    return load(request.param, threads=1, solvers=SolverConfig(n_draws=10))


def test_finite_or_invalid(method):
    events = all_events()
    pair = method(events)
    names = np.array([*EVENTS, *["toy"] * 40])
    assert names[~np.isfinite(pair.system).all(axis=1) & pair.valid].tolist() == []
    assert names[np.isfinite(pair.system).any(axis=1) & ~pair.valid].tolist() == []
    for values in (pair.quality, pair.uncertainty, *(pair.quantiles or {}).values()):
        if values is not None:
            assert np.isfinite(values[pair.valid]).all()
    if method.name in NETWORKS:
        # Two objects of a pair at rest need no more than the leptons.
        assert names[~pair.valid].tolist() == []
    energy, momentum = pair.system[pair.valid, 0], pair.system[pair.valid, 1:]
    assert (energy >= np.sqrt((momentum**2).sum(axis=1)) * (1 - 1e-6)).all()
    assert all(len(column) == len(events) for column in event_columns(events, {method.name: pair}).values())


@pytest.mark.exhaustive
def test_an_event_has_one_answer(method, monkeypatch):
    """Whatever the run, the order, the chunk, the threads and the batch."""
    # So that every kernel of the networks has work for two threads.
    monkeypatch.setattr("topreco.network.kernels.packed._SHARE", 1)
    events = all_events()
    whole = method(events)
    expected = whole.system
    np.testing.assert_array_equal(method(events).system, expected)
    np.testing.assert_array_equal(method(events[::-1]).system[::-1], expected)
    for size in (1, 7):
        chunks = [method(events[i : i + size]).system for i in range(0, len(events), size)]
        # Single precision, and in few events of a network much of it is lost.
        np.testing.assert_allclose(np.concatenate(chunks), expected, rtol=1e-4, atol=1e-2)
    other = copy.copy(method)
    if hasattr(other, "threads"):
        other.threads = 2
    else:
        other.config = method.config.model_copy(update={"threads": 2})
    threaded = other(events)
    np.testing.assert_allclose(threaded.system, expected, rtol=1e-4, atol=1e-2)
    for name, values in (whole.quantiles or {}).items():
        np.testing.assert_allclose(threaded.quantiles[name], values, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("name", NETWORKS)
def test_double_precision_agrees(name):
    import torch

    from topreco.network.inference import predict

    events = all_events()
    network = load(name).model.networks[0]
    single = predict([network], events).p4
    double = predict([copy.deepcopy(network).to(torch.float64)], events).p4
    assert np.isfinite(double).all()
    difference = np.abs(single - double).max(axis=(1, 2)) / double[..., 0].max(axis=1)
    assert np.median(difference) < 1e-4
    assert difference.max() < 0.05


WEIGHTS = {
    "huge": lambda n: np.full(n, 1e12),
    "tiny": lambda n: np.full(n, 1e-12),
    "both": lambda n: np.where(np.arange(n) % 2, 1e12, 1e-12),
    "negative": lambda n: np.full(n, -1.0),
    "cancelling": lambda n: np.where(np.arange(n) % 2, 1.0, -1.0),
    "zero": np.zeros,
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_metrics_of_extreme_weights(kind, tmp_path):
    """Numbers are finite or NaN, never infinite; what does not depend on the scale of weights does not."""
    toys = toy_events(60, max_jets=N_JETS, seed=4)
    events = DileptonEvents.concatenate([all_events(), toys])
    n = len(events)
    truth = good_files.toy_truth(events)
    config = HistogramConfig(observables=("m_tt", "pt_top", "c_hel"))

    def summary(weight):
        histograms = book(config)
        weighted = dataclasses.replace(events, weight=weight)
        method = load("ellipse_closest")
        fill_methods(histograms, [method], dataset="tt", events=weighted, truth=truth)
        for histogram in histograms.values():
            view = histogram.view(flow=True)
            for field in view.dtype.names or ():
                assert np.isfinite(view[field]).all()
        found = summarise(histograms)
        write_report(found, tmp_path / "results.json")
        return json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)

    found = summary(WEIGHTS[kind](n))
    if kind in ("huge", "tiny", "negative"):
        nominal = summary(np.ones(n))["all"]["tt"]["ellipse_closest"]["all"]["m_tt"]
        ours = found["all"]["tt"]["ellipse_closest"]["all"]["m_tt"]
        assert ours["n_solved"] == nominal["n_solved"] > 10
        for name in ("rb", "res", "efficiency"):
            value, expected = ours["metrics"][name], nominal["metrics"][name]
            # A negative sum of weights has no mean.
            assert value is None if kind == "negative" else value == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize("backbone", ["lgatr_slim", pytest.param("lgatr", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("normalise", [True, False])
def test_training_on_them(tmp_path, kind, backbone, normalise):
    """Losses and weights stay finite, whatever the events and their weights."""
    from topreco.network.model_file import load_model
    from topreco.network.task import TrainingError
    from topreco.network.train import train

    events = DileptonEvents.concatenate([all_events()] * 4)
    events = dataclasses.replace(
        events, event=np.arange(len(events), dtype=np.uint64), weight=WEIGHTS[kind](len(events))
    )
    with SkimWriter(tmp_path / "skim.parquet") as writer:
        writer.write(events, good_files.toy_truth(events))
    changes = {
        "model": {"backbone": {"kind": backbone, "blocks": 1}, "tokens": {"max_jets": 8}},
        "data": {"files": [writer.path], "normalise_weights": normalise},
        "loss": {"m_tt": 10.0, "pt_top": 2.0, "c_hel": 1.0},
        "epochs": 1,
        "batch_size": 64,
        "accelerator": "cpu",
        "threads": 1,
        "output": tmp_path / "out",
    }
    config = TrainConfig.model_validate(changes)
    if kind == "zero":
        with pytest.raises(TrainingError, match="no training events with weight remain"):
            train(config, progress=False)
        return
    model = load_model(train(config, progress=False))
    assert all(np.isfinite(p.detach().numpy()).all() for p in model.networks[0].parameters())
    metrics = model.metadata["metrics"]["best"][0]
    assert np.isfinite([metrics["train_loss"], metrics["validation_loss"]]).all()


def test_reconstruct_takes_them():
    """The one call for a user's own objects; padding and order of jets included."""
    import awkward as ak

    number = {"pt": 5000.0, "eta": 2.4, "phi": 3.14159, "mass": 0.0, "btag": 1.0}
    objects = {
        "leptons": ak.Array(
            [[{"pt": 1e4, "eta": 2.5, "phi": -3.2, "charge": c, "pdgId": -11 * c} for c in (1, -1)]] * 3
        ),
        "jets": ak.Array([[number] * 30, [number] * 2, []]),
        "met": ak.Array([{"pt": 0.0, "phi": 0.0}] * 3),
    }
    tops = topreco.reconstruct(objects)
    assert tops.valid.to_list() == [True, True, False]
    assert np.isfinite(tops.top.mass.to_numpy()[:2]).all()
