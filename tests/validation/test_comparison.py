"""The comparison of methods: numbers of the processor, test splits, spin correlation, tables."""

import csv
import dataclasses
import io
import itertools
import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

import topreco
from topreco.cli import app
from topreco.config import (
    ConfigError,
    DataConfig,
    LGATrSlimConfig,
    ModelConfig,
    SelectionConfig,
    SolverConfig,
    TrainConfig,
    ValidationConfig,
    load_config,
)
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import PRODUCTIONS, dataset_id
from topreco.core.observables import OBSERVABLE_GROUPS, OBSERVABLES, m_tt
from topreco.core.skim import Skim, SkimWriter, read_skims
from topreco.core.spin import event_spin_weight
from topreco.core.statistics import Metrics
from topreco.evaluation.summary import Bin, summarise
from topreco.input.skimming import make_skim
from topreco.network.splits import TEST, split_of
from topreco.reconstruction.recalibration import fit_response_curve
from topreco.reconstruction.wrappers import Recalibrated
from topreco.validation.gather import gather, open_pool, tabulate
from topreco.validation.preparation import HeldOut, Preparation
from topreco.validation.statistics import Means, Performance, measure
from topreco.validation.tables import comparison_csv, comparison_markdown
from topreco.validation.validate import validate

PUBLISHED = (300, 345, 400, 450, 550, 700, 1000, 1400, 2000)


@pytest.fixture(scope="module")
def skim(simulated, tmp_path_factory):
    path = tmp_path_factory.mktemp("skim") / "tt.parquet"
    make_skim([simulated], path, SelectionConfig(), dataset="tt", progress=False)
    return path


def results(folder):
    return json.loads((folder / "results.json").read_text())


# ---- numbers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(skim, toy_model, tmp_path_factory):
    """Folder of a comparison with further observables, without the page."""
    config = ValidationConfig(
        solvers=SolverConfig(n_draws=5),
        observables=("default", "polarisation"),
        histograms={"bins": {"m_tt": PUBLISHED}},
    )
    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("topreco.validation.validate.render", lambda *_: "")
        validate([skim], folder, methods=[toy_model, "sonnenschein"], config=config, progress=False)
    return folder


def test_every_observable_is_compared(compared):
    response = results(compared)["response"]
    assert set(response) == set(OBSERVABLES)
    assert set(results(compared)["metadata"]["shown"]) == {
        *OBSERVABLE_GROUPS["default"],
        *OBSERVABLE_GROUPS["polarisation"],
    }
    for methods in response.values():
        assert list(methods) == ["toy", "sonnenschein"]
        for of in methods.values():
            for metrics, bins in ((of["inclusive"], "m_tt_bins"), (of["common"], "common_m_tt_bins")):
                assert [b["high"] for b in of[bins]] == [*PUBLISHED, None]
                assert sum(b["metrics"]["n"] for b in of[bins]) == metrics["n"]
    toy, analytic = (response["m_tt"][m] for m in ("toy", "sonnenschein"))
    assert toy["inclusive"]["efficiency"] == 1
    assert analytic["inclusive"]["n"] < toy["inclusive"]["n"] == results(compared)["metadata"]["n_events"]
    assert toy["share_common"] == analytic["inclusive"]["efficiency"]
    for ours, theirs in zip(toy["common_m_tt_bins"], analytic["m_tt_bins"], strict=True):
        assert ours["metrics"]["efficiency"] == theirs["metrics"]["efficiency"]
    assert toy["common"]["n"] == analytic["common"]["n"] == analytic["inclusive"]["n"]


def test_nothing_says_where_files_lay(compared, skim, toy_model):
    metadata = results(compared)["metadata"]
    assert metadata["skims"][0]["file"] == skim.name
    assert metadata["config"]["solvers"]["n_draws"] == 5
    assert str(skim.parent) not in json.dumps(metadata)
    assert str(toy_model.parent) not in json.dumps(results(compared)["methods"])


def test_numbers_are_those_of_the_processor(compared, simulated, toy_model):
    from coffea import processor

    from topreco.input.nano import QuietNanoAODSchema
    from topreco.runs.processor import DileptonProcessor

    instance = DileptonProcessor([toy_model, "sonnenschein"], solvers=SolverConfig(n_draws=5))
    runner = processor.Runner(processor.IterativeExecutor(status=False), schema=QuietNanoAODSchema)
    files = {"tt": {"treename": "Events", "files": [str(simulated)]}}
    summary = summarise(runner(files, processor_instance=instance)["histograms"])
    for subset, key in (("all", "inclusive"), ("common", "common")):
        for method in ("toy", "sonnenschein"):
            expected = summary[subset]["tt"][method]["all"]["m_tt"].metrics
            found = results(compared)["response"]["m_tt"][method][key]
            # Skims hold single precision. The untrained network's mass hardly varies: its sums cancel.
            fields = ("n", "rb", "res", *(("correlation", "rms_linearised") if method != "toy" else ()))
            for name in fields:
                assert found[name] == pytest.approx(getattr(expected, name), rel=1e-5), (subset, method, name)


def test_a_method_and_its_recalibration(skims, leptons):
    events, truth = read_skims(skims)
    pair = leptons(events)
    columns = (m_tt(pair.p4)[pair.valid], m_tt(truth.tops)[pair.valid], events.weight[pair.valid])
    changed = [
        Recalibrated(leptons, fit_response_curve(*columns, bins_of=kind), name=kind)
        for kind in ("prediction", "truth")
    ]
    table = tabulate(events, truth, [leptons, *changed])
    assert list(table.predictions) == ["leptons", "prediction", "truth"]
    assert abs(measure(table, "prediction", "m_tt").rb) < abs(measure(table, "leptons", "m_tt").rb)


# ---- tables ----------------------------------------------------------------------------------------------


def performance(scale, mean=None):
    values = dict.fromkeys(Metrics._fields, 0.5) | {"n": 50}
    values |= dict.fromkeys(("res", "width68", "rms_linearised", "width68_linearised"), 0.2 * scale)
    metrics = Metrics(**(values | {name: 0.01 for name in values if name.endswith("_error")}))
    bins = tuple(Bin(*ends, metrics) for ends in itertools.pairwise((-math.inf, 300, 400, math.inf)))
    means = None if mean is None else Means(mean, 0.01, mean, 0.01)
    return Performance(metrics, metrics, bins, bins, {}, bins, 0.5, 0.01, bins, means, means)


@pytest.fixture(scope="module")
def response():
    return {
        name: {"dilepton": performance(0.7, mean), "sonnenschein": performance(1.0, mean)}
        for name, mean in (("m_tt", None), ("c_hel", 0.12))
    }


def test_markdown(response):
    text = comparison_markdown(response, "sonnenschein")
    assert "## m_tt, events that all methods solve" in text
    # Thirty percent less than the reference, which is compared with nothing.
    assert "| dilepton | 50 | 0.500(10) | 0.500(10) | 0.140(10) (−30.0 %) |" in text
    assert "| sonnenschein | 50 | 0.500(10) | 0.500(10) | 0.200(10) |" in text
    assert "| Res in true m(tt̄) [GeV] | 300–400 |" in text
    assert "| dilepton | 0.120(10) | 0.120(10) | 0.500(10) |" in text
    assert "%)" not in comparison_markdown(response, "ellipse")


def test_csv(response, compared):
    rows = list(csv.DictReader(io.StringIO(comparison_csv(response))))
    assert len(rows) == 2 * 2 * 2 * (1 + 3)
    overall = [row for row in rows if row["m_tt_low"] == row["m_tt_high"] == ""]
    assert [row["true"] for row in overall[:4]] == ["", "", "0.12", "0.12"]
    first_bin = rows[1]
    assert (first_bin["m_tt_low"], first_bin["m_tt_high"], first_bin["res"]) == ("", "300", "0.14")
    assert (compared / "comparison.csv").read_text().startswith("events,observable,method,m_tt_low,")
    text = (compared / "comparison.md").read_text()
    assert "## cos_1k, all selected events" in text
    assert "## m_tt, who is right where another fails" in text
    latex = (compared / "comparison.tex").read_text()
    assert latex.count(r"\begin{tabular}") == text.count("|---|")
    found = results(compared)["complementarity"]["m_tt"]
    assert found["methods"] == ["toy", "sonnenschein"]
    assert max(found["right"]["value"]) <= found["any_right"]["value"][0] <= 1


# ---- test split ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Models trained on the dataset "tt" with half of the events for tests, by folds and dataset."""
    from topreco.network.model_file import save_model
    from topreco.network.tasks.tops import TopNetwork

    folder = tmp_path_factory.mktemp("trained")
    backbone = LGATrSlimConfig(blocks=1, vector_channels=4, scalar_channels=4, heads=1)
    for name, folds, dataset in (("half", 1, "tt"), ("folds", 2, "tt"), ("other", 1, "other")):
        config = TrainConfig(data=DataConfig(test_fraction=0.5, folds=folds))
        networks = [TopNetwork(ModelConfig(backbone=backbone)) for _ in range(folds)]
        metadata = {
            "training": config.model_dump(mode="json"),
            "data": {"dataset_ids": [str(dataset_id(dataset))]},
        }
        save_model(folder / f"{name}.safetensors", networks, metadata)
    return folder


@pytest.mark.parametrize("name", ["half", "folds"])
def test_only_events_that_were_not_trained_on(skim, trained, name):
    events, truth = Skim(skim).read()
    held_out = split_of(events, DataConfig(test_fraction=0.5)) == TEST
    assert 0 < held_out.sum() < len(events)
    kept, of_kept = Preparation([HeldOut(trained / f"{name}.safetensors")], None)(events, truth)
    # With folds no event was seen by the network that reconstructs it.
    expected = events.event[held_out] if name == "half" else events.event
    assert (kept.event == expected).all()
    assert len(of_kept) == len(kept)


@pytest.mark.usefixtures("no_page")
def test_split_and_spin_through_the_command(skim, trained, tmp_path):
    model = trained / "half.safetensors"
    arguments = ["validate", str(skim), "-m", str(model), "-o", str(tmp_path), "--workers", "1", "--quiet"]
    result = CliRunner().invoke(app, [*arguments, f"test_split=[{model}]", "spin_correlation=0.5"])
    assert result.exit_code == 0, result.output
    content = results(tmp_path)
    assert 0 < content["metadata"]["n_events"] < len(Skim(skim))
    assert content["metadata"]["config"]["test_split"] == [model.name]
    assert content["metadata"]["config"]["spin_correlation"] == 0.5
    # No warning of events that its training has used.
    assert content["methods"]["half"]["training_events"] == 0


@pytest.mark.parametrize(
    ("name", "message"), [("other", "not trained on this dataset"), ("toy", "were split")]
)
def test_a_split_that_does_not_fit(skim, trained, toy_model, tmp_path, name, message):
    model = toy_model if name == "toy" else trained / "other.safetensors"
    config = ValidationConfig(test_split=(model,))
    with pytest.raises(TopRecoError, match=message):
        validate([skim], tmp_path / "out", methods=["loose"], config=config, progress=False)
    assert not list((tmp_path / "out").glob("*"))


# ---- spin correlation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["add", "remove", 0.5])
def test_events_are_weighted_with_the_spin_correlation(skim, change):
    events, truth = Skim(skim).read()
    add = event_spin_weight(truth)
    factor = {"add": add, "remove": 1 / add, 0.5: (1 + add) / (2 * add)}[change]
    method = topreco.load("loose")
    with open_pool(1, progress=False) as apply:
        table = gather(apply, [Skim(skim)], [method], title="", prepare=Preparation([], change))
    pair = method(events)
    residual = fourvector.mass(pair.ttbar) / m_tt(truth.tops) - 1
    expected = np.average(residual[pair.valid], weights=(events.weight * factor)[pair.valid])
    assert measure(table, "loose", "m_tt").rb == pytest.approx(expected, rel=1e-6)
    assert abs(expected - residual[pair.valid].mean()) > 1e-5


def test_unknown_production_has_no_spin_correlation(skim, tmp_path):
    events, truth = Skim(skim).read()
    other = np.full_like(truth.production, PRODUCTIONS.index("other"))
    with SkimWriter(tmp_path / "other.parquet") as writer:
        writer.write(events, dataclasses.replace(truth, production=other))
    config = ValidationConfig(spin_correlation="add")
    with pytest.raises(TopRecoError, match="neither gg nor"):
        validate([writer.path], tmp_path / "out", methods=["loose"], config=config, progress=False)
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("spin_correlation=scale", "spin_correlation.*'add' or 'remove'"),
        ("spin_correlation=.nan", "spin_correlation.*finite number"),
        ("observables=[m_ttt]", "unknown observable 'm_ttt'.*did you mean 'm_tt'"),
        ("d_of_sample=2", "d_of_sample"),
        ("solvers.n_draw=1", "solvers.n_draw"),
    ],
)
def test_bad_settings(override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(ValidationConfig, None, [override])
