"""The processor in a coffea Runner: equal for every executor and chunking, on simulation and data."""

import dataclasses
import importlib.util
import shutil
from pathlib import Path

import awkward as ak
import cloudpickle
import numpy as np
import pytest
import uproot
from coffea import processor

from topreco.config import (
    HistogramConfig,
    ObjectSource,
    SelectionConfig,
    SolverConfig,
    SystematicsConfig,
    UnfoldingConfig,
)
from topreco.core.errors import TopRecoError
from topreco.core.events import TopPair
from topreco.core.observables import OBSERVABLES
from topreco.evaluation.summary import summarise
from topreco.input.cutflow import Cutflow
from topreco.input.nano import QuietNanoAODSchema, open_events
from topreco.input.pepper.read import iterate_pepper
from topreco.input.selection import select, select_objects
from topreco.input.systematics import variations
from topreco.input.truth import read_truth
from topreco.measurement.unfolding import read_response
from topreco.reconstruction.load import load
from topreco.runs.columns import ColumnWriter
from topreco.runs.processor import DileptonProcessor

pytestmark = pytest.mark.sim


def run(file, instance, executor=None, chunksize=1000):
    runner = processor.Runner(
        executor or processor.IterativeExecutor(status=False), chunksize=chunksize, schema=QuietNanoAODSchema
    )
    return runner({"ttbar": {"treename": "Events", "files": [str(file)]}}, processor_instance=instance)


@pytest.fixture(scope="module")
def instance(toy_model):
    return DileptonProcessor([toy_model])


@pytest.fixture(scope="module")
def nominal(simulated, instance):
    return run(simulated, instance)


def assert_equal(a, b):
    """Equal events and counts, and weighted sums within rounding."""
    assert a["cutflow"] == b["cutflow"]
    assert a["histograms"].keys() == b["histograms"].keys()
    for name, histogram in a["histograms"].items():
        ours, theirs = histogram.view(flow=True), b["histograms"][name].view(flow=True)
        assert ours.shape == theirs.shape, name
        for field in ours.dtype.names or (Ellipsis,):
            scale = np.abs(ours[field]).max(initial=1)
            np.testing.assert_allclose(theirs[field], ours[field], rtol=1e-9, atol=1e-9 * scale, err_msg=name)


def test_it_pickles_small(instance, toy_model):
    content = cloudpickle.dumps(instance)
    assert len(content) < 10_000
    assert cloudpickle.loads(content).methods[0].name == toy_model.stem


def test_model_is_read_once_per_process(simulated, toy_model, tmp_path, monkeypatch):
    from topreco.network import model_file as checkpoint

    read = []
    original = checkpoint.load_model
    monkeypatch.setattr(checkpoint, "load_model", lambda path: read.append(path) or original(path))
    instance = DileptonProcessor([shutil.copy(toy_model, tmp_path / "copy.safetensors")])
    run(simulated, cloudpickle.loads(cloudpickle.dumps(instance)), chunksize=300)
    assert len(read) == 1


def test_results_are_those_of_the_parts(nominal, simulated, toy_model):
    """Selection and network called by hand give what the processor fills."""
    selection = select(open_events(simulated), SelectionConfig(), dataset="ttbar")
    assert Cutflow.from_dict(nominal["cutflow"]["ttbar"]) == selection.cutflow
    assert len(selection.events) > 50
    pair = load(toy_model)(selection.events)
    spectrum = nominal["histograms"]["spectrum/m_tt"]
    filled = spectrum[
        {
            "subset": "all",
            "source": "reco",
            "channel": sum,
            "method": sum,
            "dataset": sum,
            "variation": "nominal",
        }
    ]
    m_tt = np.sqrt(
        pair.system[:, 0] ** 2 - (pair.system[:, 1:] ** 2).sum(axis=1),
    )
    expected = np.histogram(m_tt, bins=filled.axes[0].edges)[0]
    np.testing.assert_array_equal(filled.values(), expected)


def test_truth_is_joined_for_every_selected_event(nominal):
    result = summarise(nominal["histograms"])["all"]["ttbar"]["toy"]["all"]["m_tt"]
    assert result.n_selected == result.n_solved == result.metrics.n > 50


@pytest.mark.parametrize("chunksize", [50, 333])
def test_chunk_size_changes_nothing(simulated, instance, nominal, chunksize):
    assert_equal(nominal, run(simulated, instance, chunksize=chunksize))


def test_futures_change_nothing(simulated, instance, nominal):
    executor = processor.FuturesExecutor(workers=2, status=False)
    assert_equal(nominal, run(simulated, instance, executor, chunksize=300))


def test_data_give_the_same_reconstruction(as_data, simulated, instance, nominal):
    """Leak test of the whole chain: without any generator branch nothing but truth is missing."""
    with uproot.open(as_data) as file:
        names = " ".join(file["Events"].keys())
    assert "Gen" not in names
    assert "gen" not in names
    output = run(as_data, instance)
    assert output["cutflow"] == nominal["cutflow"]  # generator weights of this sample are 1
    filled = {name for name, histogram in output["histograms"].items() if histogram.values(flow=True).any()}
    assert filled == {name for name in output["histograms"] if name.startswith(("events", "spectrum"))}
    for name in filled - {"events"}:
        reco = {"source": "reco"}
        np.testing.assert_array_equal(
            output["histograms"][name][reco].values(flow=True),
            nominal["histograms"][name][reco].values(flow=True),
        )


def test_no_selected_events(simulated, toy_model):
    instance = DileptonProcessor([toy_model], SelectionConfig(leading_pt_min=5000.0))
    output = run(simulated, instance)
    assert Cutflow.from_dict(output["cutflow"]["ttbar"])["leading pT"].n == 0
    assert not any(histogram.values(flow=True).any() for histogram in output["histograms"].values())


def test_two_methods_need_two_names(toy_model):
    with pytest.raises(TopRecoError, match="every method needs a name of its own"):
        DileptonProcessor([toy_model, toy_model])


def test_unknown_observable_is_refused_at_once(toy_model):
    with pytest.raises(ValueError, match="unknown observable 'm_ttt'"):
        DileptonProcessor([toy_model], histograms=HistogramConfig(observables=("m_ttt",)))


def test_common_events_are_those_that_all_methods_solve(simulated, toy_model):
    class Half:
        name = "half"

        def __call__(self, events):
            pair = load(toy_model)(events)
            solved = events.event % np.uint64(2) == 0
            p4 = np.where(solved[:, None, None], pair.p4, np.nan)
            return type(pair)(p4, solved)

    output = run(simulated, DileptonProcessor([load(toy_model), Half()]))
    summary = summarise(output["histograms"])
    everything, common = (summary[subset]["ttbar"] for subset in ("all", "common"))
    assert 0.3 < everything["half"]["all"]["m_tt"].metrics.efficiency < 0.7
    assert everything["toy"]["all"]["m_tt"].metrics.efficiency == 1
    assert common["toy"]["all"]["m_tt"].n_solved == common["half"]["all"]["m_tt"].n_solved
    assert common["toy"]["all"]["m_tt"].metrics.rb == common["half"]["all"]["m_tt"].metrics.rb


SYSTEMATICS = SystematicsConfig(
    objects={
        "none": ObjectSource(object="jet", flat=0.0),
        "jes": ObjectSource(object="jet", flat=0.03),
        "electron": ObjectSource(object="electron", flat=0.02),
    },
    weights={"luminosity": {"flat": 0.1}},
)


@pytest.fixture(scope="module")
def varied(simulated, toy_model):
    return run(simulated, DileptonProcessor([toy_model], systematics=SYSTEMATICS), chunksize=500)


def test_variations_fill_an_axis_of_their_own(varied):
    expected = ["nominal", "luminosity_up", "luminosity_down"]
    expected += ["none_up", "none_down", "jes_up", "jes_down", "electron_up", "electron_down"]
    for name, histogram in varied["histograms"].items():
        found = list(histogram.axes["variation"])
        assert found == (["nominal"] if name.startswith(("moments", "residual")) else expected), name


def test_variations_do_not_change_a_bit_of_nominal(varied, simulated, toy_model):
    """Whatever else is reconstructed with them, nominal events stay as they are without variations."""
    alone = run(simulated, DileptonProcessor([toy_model]), chunksize=500)
    assert alone["cutflow"] == varied["cutflow"]
    for name, histogram in alone["histograms"].items():
        ours, theirs = (
            h[{"variation": "nominal"}].view(flow=True) for h in (histogram, varied["histograms"][name])
        )
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
        assert ours.size


def test_a_variation_by_nothing_is_nominal_to_the_bit(varied):
    """The network's answer for an event does not depend on what else is in the call."""
    for name, histogram in varied["histograms"].items():
        if not name.startswith(("moments", "residual")):
            nominal, up, down = (
                histogram[{"variation": v}].view(flow=True) for v in ("nominal", "none_up", "none_down")
            )
            np.testing.assert_array_equal(up, nominal, err_msg=name)
            np.testing.assert_array_equal(down, nominal, err_msg=name)


def test_variations_are_what_their_events_give(varied, simulated, toy_model):
    spectrum = varied["histograms"]["spectrum/m_tt"]
    where = {"subset": "all", "source": "reco", "channel": sum, "method": sum, "dataset": sum}
    filled = {v: spectrum[{**where, "variation": v}] for v in spectrum.axes["variation"]}
    events = open_events(simulated)
    for name, objects in variations(events, SelectionConfig(), SYSTEMATICS):
        selected = select_objects(objects, SelectionConfig(), dataset="ttbar").events
        system = load(toy_model)(selected).system
        m_tt = np.sqrt(system[:, 0] ** 2 - (system[:, 1:] ** 2).sum(axis=1))
        expected = np.histogram(m_tt, bins=filled[name].axes[0].edges)[0]
        np.testing.assert_array_equal(filled[name].values(), expected, err_msg=name)
    assert not np.array_equal(filled["jes_up"].values(), filled["nominal"].values())
    np.testing.assert_allclose(filled["luminosity_up"].values(), 1.1 * filled["nominal"].values())
    np.testing.assert_allclose(filled["luminosity_up"].variances(), 1.21 * filled["nominal"].variances())


@pytest.mark.parametrize("chunksize", [77, 1000])
def test_chunk_size_does_not_change_variations(varied, simulated, toy_model, chunksize):
    instance = DileptonProcessor([toy_model], systematics=SYSTEMATICS)
    assert_equal(varied, run(simulated, instance, chunksize=chunksize))


def test_a_method_is_called_once_for_all_variations(simulated):
    calls = []

    class Counting:
        name = "counting"

        def __call__(self, events):
            calls.append(len(events))
            return TopPair(np.full((len(events), 2, 4), np.nan), np.zeros(len(events), bool))

    events = open_events(simulated)
    events.metadata["dataset"] = "ttbar"
    output = DileptonProcessor([Counting()], systematics=SYSTEMATICS).process(events)
    nominal = output["cutflow"]["ttbar"]["at least 1 b tag"]["total"]["n"]
    assert len(calls) == 2
    assert calls[0] == nominal
    assert 5 * nominal < calls[1] < 7 * nominal


def test_metrics_of_variations_on_request(simulated, toy_model):
    systematics = SystematicsConfig(objects={"jes": ObjectSource(object="jet", flat=0.03)}, metrics=True)
    histograms = run(simulated, DileptonProcessor([toy_model], systematics=systematics))["histograms"]
    nominal, up = (
        summarise(histograms, v)["all"]["ttbar"]["toy"]["all"]["m_tt"].metrics for v in ("nominal", "jes_up")
    )
    assert np.isfinite([up.rb, up.res, up.width68]).all()
    assert up.rb != nominal.rb


def test_data_have_no_variations(as_data, toy_model):
    histograms = run(as_data, DileptonProcessor([toy_model], systematics=SYSTEMATICS))["histograms"]
    assert list(histograms["events"].axes["variation"]) == ["nominal"]
    assert histograms["events"].values().any()


def test_a_correction_that_does_not_exist_is_refused_at_once(toy_model):
    source = {"object": "jet", "file": "nowhere.json", "correction": "Total"}
    with pytest.raises(TopRecoError, match=r"nowhere\.json: no such file"):
        DileptonProcessor([toy_model], systematics=SystematicsConfig(objects={"jes": source}))


def test_the_file_to_copy_runs(simulated, toy_model, nominal):
    path = Path(__file__).parents[2] / "processors" / "ttbar_dilepton.py"
    spec = importlib.util.spec_from_file_location("ttbar_dilepton", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert_equal(nominal, run(simulated, module.TTbarDilepton(str(toy_model))))


# ---- unfolding -------------------------------------------------------------------------------------------

KINDS = ("response", "measured", "fakes", "not_reconstructed", "generated")
UNFOLDING = UnfoldingConfig(
    observables={"m_tt": {"truth": [300, 400, 500, 700, 2000]}, "c_hel": {"truth": [-1, 0, 1]}}
)


def unfolding_instance(toy_model, **options):
    return DileptonProcessor([toy_model], unfolding=UNFOLDING, **options)


@pytest.fixture(scope="module")
def unfoldable(simulated, toy_model):
    return run(simulated, unfolding_instance(toy_model))


def test_responses_leave_all_else_as_it_is(unfoldable, nominal):
    new = {f"{kind}/{name}" for kind in KINDS for name in UNFOLDING.observables}
    assert unfoldable["histograms"].keys() - nominal["histograms"].keys() == new
    others = {key: histogram for key, histogram in unfoldable["histograms"].items() if key not in new}
    assert_equal(nominal, {**unfoldable, "histograms": others})


@pytest.mark.parametrize("name", UNFOLDING.observables)
def test_generated_events_are_all_of_the_file(unfoldable, simulated, name):
    truth = read_truth(open_events(simulated))
    truth = truth[truth.dileptonic]
    response = read_response(unfoldable["histograms"], name, dataset="ttbar", method="toy")
    values = OBSERVABLES[name].compute(truth.tops, truth.tops.sum(axis=1), truth.lepton)
    assert len(values) > 600
    expected = np.histogram(values, bins=[-np.inf, *response.truth_edges, np.inf])[0]
    np.testing.assert_array_equal(response.generated.value, expected)
    selected = unfoldable["cutflow"]["ttbar"]["at least 1 b tag"]["total"]["n"]
    assert response.measured.value.sum() + response.not_reconstructed.value.sum() == selected
    assert 0.03 < response.acceptance.value[1] < 0.3
    np.testing.assert_allclose(
        response.fold(response.generated.value) + response.fakes.value, response.measured.value, rtol=1e-12
    )


@pytest.mark.parametrize("chunksize", [50, 333])
def test_chunk_size_does_not_change_responses(simulated, toy_model, unfoldable, chunksize):
    found = run(simulated, unfolding_instance(toy_model), chunksize=chunksize)
    assert_equal(unfoldable, found)
    for key in unfoldable["histograms"]:
        if key.partition("/")[0] in KINDS:
            ours, theirs = (o["histograms"][key].view(flow=True) for o in (unfoldable, found))
            np.testing.assert_array_equal(ours, theirs, err_msg=key)


def test_variations_have_responses(simulated, toy_model, unfoldable):
    found = run(simulated, unfolding_instance(toy_model, systematics=SYSTEMATICS), chunksize=500)
    read = {
        variation: read_response(
            found["histograms"], "m_tt", dataset="ttbar", method="toy", variation=variation
        )
        for variation in ("nominal", "none_up", "jes_up", "luminosity_up")
    }
    alone = read_response(unfoldable["histograms"], "m_tt", dataset="ttbar", method="toy")
    for response in read.values():
        np.testing.assert_array_equal(response.generated.value, alone.generated.value)
    np.testing.assert_array_equal(read["nominal"].response.value, alone.response.value)
    np.testing.assert_array_equal(read["none_up"].response.value, alone.response.value)
    np.testing.assert_allclose(read["luminosity_up"].response.value, 1.1 * alone.response.value)
    assert not np.array_equal(read["jes_up"].response.value, alone.response.value)


def test_data_have_measured_spectra_only(as_data, toy_model):
    histograms = run(as_data, unfolding_instance(toy_model))["histograms"]
    for key in (f"{kind}/m_tt" for kind in KINDS):
        assert histograms[key].view(flow=True)["value"].any() == (key == "measured/m_tt"), key


@pytest.mark.parametrize("unfolding", [None, UNFOLDING])
def test_methods_see_the_same_with_and_without_responses(simulated, unfolding):
    """No truth reaches a method: it gets the selected events, and nothing else."""
    seen = []

    class Watching:
        name = "watching"

        def __call__(self, *events):
            seen.append(events)
            return TopPair(np.full((len(events[0]), 2, 4), np.nan), np.zeros(len(events[0]), bool))

    events = open_events(simulated)
    events.metadata["dataset"] = "ttbar"
    DileptonProcessor([Watching()], unfolding=unfolding).process(events)
    ((found,),) = seen
    expected = select(open_events(simulated), SelectionConfig(), dataset="ttbar").events
    for field in dataclasses.fields(expected):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name))


def test_pepper_has_no_generated_spectra(data, toy_model):
    file = data / "pepper" / "pepper_TTTo2L2Nu_0000.root"
    events = next(iterate_pepper(file))
    events.metadata["dataset"] = "tt"
    with pytest.raises(TopRecoError, match="unfolding: not for files of pepper, which lack the events"):
        unfolding_instance(toy_model).process(events)


def test_responses_without_observables_are_the_same(simulated, toy_model, unfoldable):
    instance = unfolding_instance(toy_model, histograms=HistogramConfig(observables=()))
    alone = run(simulated, instance)["histograms"]
    new = {f"{kind}/{name}" for kind in KINDS for name in UNFOLDING.observables}
    assert set(alone) == {"events", *new}
    for name in new:
        assert alone[name] == unfoldable["histograms"][name], name


@pytest.mark.parametrize("file_format", ["parquet", "root"])
def test_samples_in_columns(simulated, tmp_path, file_format):
    solvers = SolverConfig(n_draws=20)
    instance = DileptonProcessor(
        ["loose", "sonnenschein"],
        histograms=HistogramConfig(observables=("m_tt",)),
        solvers=solvers,
        columns=ColumnWriter(tmp_path, file_format, 20),
    )
    entries = run(simulated, instance)["columns"]
    read = ak.from_parquet if file_format == "parquet" else lambda p: uproot.open(p)["Friends"].arrays()
    rows = ak.concatenate([read(tmp_path / entry["path"]) for entry in entries])
    valid = ak.to_numpy(rows.sonnenschein_valid)
    assert 0 < valid.sum() <= len(rows)
    weight = ak.to_numpy(rows.sonnenschein_samples_weight)
    np.testing.assert_allclose(weight.sum(axis=1), np.where(valid, 1, np.nan), rtol=1e-5)
    # As many draws as the prediction is the mean of.
    mean = ak.nansum(rows.sonnenschein_samples_weight * rows.sonnenschein_samples_top_px, axis=1)
    expected = rows.sonnenschein_top_pt * np.cos(rows.sonnenschein_top_phi)
    np.testing.assert_allclose(mean[valid], expected[valid], rtol=1e-4, atol=1e-2)
    assert not [name for name in rows.fields if name.startswith("loose_samples")]


def test_samples_that_no_method_gives(tmp_path):
    with pytest.raises(
        TopRecoError,
        match="columns_samples: 8 found, but none of the methods gives samples: loose, ellipse_c",
    ):
        DileptonProcessor(["loose", "ellipse_closest"], columns=ColumnWriter(tmp_path, samples=8))
