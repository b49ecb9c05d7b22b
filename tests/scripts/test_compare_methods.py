"""The script that compares methods: equal numbers from NanoAOD and skim, their structure, bad input."""

import dataclasses
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import topreco
from topreco.config import (
    DataConfig,
    LGATrSlimConfig,
    ModelConfig,
    SelectionConfig,
    TrainConfig,
)
from topreco.core import fourvector
from topreco.core.events import PRODUCTIONS, dataset_id
from topreco.core.observables import m_tt
from topreco.core.skim import Skim, SkimWriter
from topreco.core.spin import event_spin_weight
from topreco.evaluation.summary import summarise
from topreco.input.skimming import make_skim
from topreco.network.splits import TEST, split_of

pytestmark = pytest.mark.sim

METRICS = (
    *("rb", "res", "median", "width68", "width68_linearised", "rms_linearised", "correlation", "slope"),
    *("efficiency", "n"),
)
FAST = "solvers.n_draws=5"


@pytest.fixture(scope="module")
def script():
    path = Path(__file__).parents[2] / "scripts" / "compare_methods.py"
    spec = importlib.util.spec_from_file_location("compare_methods", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def skim(simulated, tmp_path_factory):
    path = tmp_path_factory.mktemp("skim") / "tt.parquet"
    make_skim([simulated], path, SelectionConfig(), dataset="tt", progress=False)
    return path


@pytest.fixture(scope="module")
def compared(script, simulated, skim, toy_model, tmp_path_factory):
    """Content of the JSON by kind of input; the NanoAOD file in several chunks."""
    found = {}
    for kind, file, options in (("nano", simulated, ["step_size=500"]), ("skim", skim, [])):
        out = tmp_path_factory.mktemp(kind) / "out.json"
        methods = f"{toy_model},sonnenschein"
        script.main(
            [
                str(file),
                FAST,
                *options,
                "--methods",
                methods,
                "--json",
                str(out),
                "--dataset",
                "tt",
                "--quiet",
            ]
        )
        found[kind] = json.loads(out.read_text())
    return found


def leaves(content, where=()):
    """Every number of nested dictionaries and lists with its path."""
    if isinstance(content, dict | list):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from leaves(value, (*where, key))
    else:
        yield where, content


def comparable(where):
    """Whether a number is more than rounding.

    Masses on shell have no width, and the random network gives all events nearly the same m_tt, so that what
    is divided by a spread or a slope of theirs is noise.
    """
    _, method, observable, *_, name = where
    return observable not in {"m_top", "m_antitop"} and (
        method == "sonnenschein" or name in {"rb", "res", "median", "width68", "efficiency", "n"}
    )


def test_nano_and_skim_give_the_same(compared):
    nano, skim = (dict(leaves({k: v for k, v in c.items() if k != "metadata"})) for c in compared.values())
    assert nano.keys() == skim.keys()
    chosen = [where for where in nano if comparable(where)]
    assert len(chosen) > 1000
    for where in chosen:
        # Skims hold single precision; differences of pT in GeV lose what is common to both terms.
        scale = 100 if where[2] == "pt_tt" else 1
        expected = (
            nano[where] if nano[where] is None else pytest.approx(nano[where], rel=1e-6, abs=1e-6 * scale)
        )
        assert skim[where] == expected, where


def test_structure(compared):
    content = compared["nano"]
    assert content.keys() == {"metadata", "all", "common"}
    for subset in ("all", "common"):
        assert content[subset].keys() == {"toy", "sonnenschein"}
        for observables in content[subset].values():
            assert {"m_tt", "pt_top", "y_top"} <= observables.keys()
            for numbers in observables.values():
                assert {f"{m}{e}" for m in METRICS for e in ("", "_error")} <= numbers.keys()
                edges = [(b["low"], b["high"]) for b in numbers["bins"]]
                assert {(345, 400), (400, 450), (450, 550), (550, 700), (700, 1000)} <= set(edges)
                assert (edges[0][0], edges[-1][1]) == (None, None)
                assert sum(b["n"] for b in numbers["bins"]) == numbers["n"]
                assert {f"{m}{e}" for m in METRICS for e in ("", "_error")} <= numbers["bins"][0].keys()
    toy, analytic = (content["all"][m]["m_tt"] for m in ("toy", "sonnenschein"))
    assert toy["efficiency"] == 1
    assert analytic["n"] < toy["n"] == content["metadata"]["n_events"]
    common = [content["common"][m]["m_tt"]["n"] for m in ("toy", "sonnenschein")]
    assert common == [analytic["n"]] * 2


def test_metadata(compared, simulated, toy_model):
    metadata = compared["nano"]["metadata"]
    assert metadata["files"] == [simulated.name]
    assert metadata["dataset"] == "tt"
    assert list(metadata["methods"]) == ["toy", "sonnenschein"]
    assert metadata["methods"]["toy"]["file"] == toy_model.name
    assert metadata["solvers"]["n_draws"] == 5
    # The simulation is of no NanoAOD version: the defaults.
    assert metadata["selection"] == SelectionConfig(preset="none").model_dump(mode="json")
    assert compared["skim"]["metadata"]["selection"] == metadata["selection"]
    assert {"topreco", "python"} <= metadata["versions"].keys()
    # Nothing says where on a disk the files lay.
    assert str(simulated.parent) not in json.dumps(metadata)


def test_numbers_are_those_of_the_processor(compared, simulated, toy_model):
    from coffea import processor

    from topreco.config import SolverConfig
    from topreco.input.nano import QuietNanoAODSchema
    from topreco.runs.processor import DileptonProcessor

    instance = DileptonProcessor([toy_model, "sonnenschein"], solvers=SolverConfig(n_draws=5))
    runner = processor.Runner(processor.IterativeExecutor(status=False), schema=QuietNanoAODSchema)
    files = {"tt": {"treename": "Events", "files": [str(simulated)]}}
    summary = summarise(runner(files, processor_instance=instance)["histograms"])
    for subset in ("all", "common"):
        for method in ("toy", "sonnenschein"):
            expected = summary[subset]["tt"][method]["all"]["m_tt"].metrics
            found = compared["nano"][subset][method]["m_tt"]
            # What depends on the bins of truth is left out.
            for name in (
                "rb",
                "res",
                "median",
                "width68",
                "correlation",
                "rms_linearised",
                "efficiency",
                "n",
            ):
                # The untrained network's mass hardly varies, so that its sums of squares cancel.
                cancels = method == "toy" and name in ("correlation", "rms_linearised")
                tolerance = 1e-4 if cancels else 1e-9
                assert found[name] == pytest.approx(getattr(expected, name), rel=tolerance), name


def test_table_and_figures(script, skim, tmp_path, capsys):
    script.main(
        [
            *(str(skim), "--methods", "sonnenschein,loose", FAST, "histograms.observables=[m_tt]", "--quiet"),
            *("--json", str(tmp_path / "out.json"), "--output", str(tmp_path / "figures")),
        ]
    )
    printed = capsys.readouterr()
    assert "m_tt, tt, all selected events" in printed.out
    assert "events that all methods solve" in printed.out
    assert printed.err == ""
    for subset in ("all", "common"):
        assert (tmp_path / "figures" / subset / "tt" / "residual_m_tt.png").is_file()
    assert "sonnenschein" in (tmp_path / "figures" / "results.md").read_text()
    loose = json.loads((tmp_path / "out.json").read_text())["all"]["loose"]["m_tt"]
    assert loose["n"] > 0


# ---- test split ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Model file that says it was trained on the dataset "tt" with half of the events for tests, by folds."""
    from topreco.network.model_file import save_model
    from topreco.network.tasks.tops import TopNetwork

    folder = tmp_path_factory.mktemp("trained")
    backbone = LGATrSlimConfig(blocks=1, vector_channels=4, scalar_channels=4, heads=1)
    for folds in (1, 2):
        config = TrainConfig(data=DataConfig(test_fraction=0.5, folds=folds))
        networks = [TopNetwork(ModelConfig(backbone=backbone)) for _ in range(folds)]
        metadata = {
            "training": config.model_dump(mode="json"),
            "data": {"dataset_ids": [str(dataset_id("tt"))]},
        }
        save_model(folder / f"folds{folds}.safetensors", networks, metadata)
    return folder


def n_events(script, file, model, tmp_path, *options):
    out = tmp_path / "out.json"
    options = ["--test-split", str(model), "--methods", str(model), "--json", str(out), "--quiet", *options]
    script.main([str(file), *options])
    return json.loads(out.read_text())["metadata"]


def test_only_events_that_were_not_trained_on(script, simulated, skim, trained, tmp_path):
    model = trained / "folds1.safetensors"
    events, _ = Skim(skim).read()
    expected = int((split_of(events, DataConfig(test_fraction=0.5)) == TEST).sum())
    assert 0 < expected < len(events)
    for file in (skim, simulated):
        metadata = n_events(script, file, model, tmp_path, "--dataset", "tt")
        assert metadata["n_events"] == expected
        assert metadata["test_split"] == [model.name]


def test_with_folds_no_event_was_seen(script, skim, trained, tmp_path):
    model = trained / "folds2.safetensors"
    assert n_events(script, skim, model, tmp_path)["n_events"] == len(Skim(skim))


def test_split_of_another_dataset_says_nothing(script, simulated, trained, tmp_path, capsys):
    model = trained / "folds1.safetensors"
    with pytest.raises(SystemExit):
        n_events(script, simulated, model, tmp_path, "--dataset", "other")
    assert "not trained on this dataset" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# ---- spin correlation ------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["add", "remove", 0.5])
def test_events_are_weighted_with_the_spin_correlation(script, skim, tmp_path, change):
    out = tmp_path / "out.json"
    options = ["--methods", "loose", "--json", str(out), "--quiet", "histograms.observables=[m_tt]"]
    script.main([str(skim), *options, "--spin-correlation", str(change)])
    content = json.loads(out.read_text())
    assert content["metadata"]["spin_correlation"] == change
    events, truth = Skim(skim).read()
    add = event_spin_weight(truth)
    factor = {"add": add, "remove": 1 / add, 0.5: (1 + add) / (2 * add)}[change]
    pair = topreco.load("loose")(events)
    residual = fourvector.mass(pair.ttbar) / m_tt(truth.tops) - 1
    weight = (events.weight * factor)[pair.valid]
    expected = np.average(residual[pair.valid], weights=weight)
    assert content["all"]["loose"]["m_tt"]["rb"] == pytest.approx(expected, rel=1e-6)
    assert abs(expected - residual[pair.valid].mean()) > 1e-5


@pytest.mark.parametrize("change", ["scale", "nan"])
def test_other_changes_of_the_spin_correlation_are_refused(script, tmp_path, capsys, change):
    arguments = ["x.parquet", "--methods", "loose", "--json", str(tmp_path / "out.json")]
    with pytest.raises(SystemExit):
        script.main([*arguments, "--spin-correlation", change])
    assert f"'{change}'; allowed are add, remove, or a finite number" in capsys.readouterr().err


def test_unknown_production_has_no_spin_correlation(script, skim, tmp_path, capsys):
    events, truth = Skim(skim).read()
    other = np.full_like(truth.production, PRODUCTIONS.index("other"))
    with SkimWriter(tmp_path / "other.parquet") as writer:
        writer.write(events, dataclasses.replace(truth, production=other))
    out = tmp_path / "out.json"
    with pytest.raises(SystemExit):
        script.main(
            [
                *(str(writer.path), "--methods", "loose", "--json", str(out), "--quiet"),
                *("--spin-correlation", "add"),
            ]
        )
    assert "neither gg nor" in capsys.readouterr().err
    assert not out.exists()


# ---- errors ----------------------------------------------------------------------------------------------


@pytest.fixture
def fails(script, tmp_path, capsys):
    """Run and give the one line of the error; nothing may be left behind."""

    def run(*arguments, methods="sonnenschein"):
        out = tmp_path / "out" / "out.json"
        with pytest.raises(SystemExit) as caught:
            script.main([*map(str, arguments), "--methods", methods, "--json", str(out), "--quiet"])
        assert caught.value.code == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert not out.exists()
        assert not out.parent.exists() or not list(out.parent.iterdir())
        return printed.err

    return run


def test_mixed_inputs(fails, simulated, skim, tmp_path):
    assert "either skims or NanoAOD" in fails(simulated, skim)
    # Content decides, not the name.
    disguised = shutil.copy(skim, tmp_path / "skim.root")
    assert "either skims or NanoAOD" in fails(simulated, disguised)


def test_unknown_method(fails, simulated):
    assert "'guess'" in fails(simulated, methods="guess")
    assert "no such file" in fails(simulated, methods="gone.safetensors")
    assert "no method" in fails(simulated, methods=",")
    assert "a name of its own" in fails(simulated, methods="loose,loose")


@pytest.mark.parametrize("name", ["gone.root", "gone.parquet", "gone"])
def test_missing_file(fails, tmp_path, name):
    assert "no such file" in fails(tmp_path / name)


def test_unusable_files(fails, simulated, as_data, skim, tmp_path):
    assert "given twice" in fails(simulated, simulated)
    assert "GenPart" in fails(as_data)
    text = tmp_path / "text.root"
    text.write_text("no ROOT file at all")
    assert "not a ROOT file" in fails(text)
    without = tmp_path / "data.parquet"
    events, _ = Skim(skim).read()
    with SkimWriter(without) as writer:
        writer.write(events, None)
    assert "no truth" in fails(without)
    assert "no input files" in fails(FAST)


def test_bad_settings(fails, simulated, skim, toy_model):
    assert "solvers.n_draw" in fails(simulated, "solvers.n_draw=1")
    assert "another selection" in fails(skim, "selection.met_min=100")
    assert "none of" in fails(simulated, "selection.met_min=10000", "selection.channels=[ee]")
    assert "how its training data were split" in fails(simulated, "--test-split", toy_model)
