"""Inputs and configurations that do not fit together are found before the first worker starts."""

import json
import os
import shutil

import awkward as ak
import numpy as np
import pytest
import uproot
from typer.testing import CliRunner

from topreco.cli import app
from topreco.config import RunConfig, SelectionConfig, SystematicsConfig, build_config
from topreco.core.errors import TopRecoError
from topreco.input.branches import Branches
from topreco.input.nano import BadFileError, InputError, inspect_file, open_events
from topreco.input.objects import read_objects
from topreco.input.selection import select_objects
from topreco.input.skimming import make_skim
from topreco.input.systematics import event_weights, generated_weights
from topreco.runs.inspect import inspect_inputs
from topreco.runs.run import run

DATA = ("genWeight", "GenPart", "GenJet", "Generator_id1", "Generator_id2", "LHE_HT")


def configure(files, **content):
    fileset = files if isinstance(files, dict) else {"tt": [str(file) for file in files]}
    return build_config(RunConfig, {"fileset": fileset, **content}, "test")


def inspect(files, **content):
    return inspect_inputs(configure(files, **content), progress=False)


def theory(counts):
    return {"LHEScaleWeight": ak.Array([np.ones(n, np.float32) for n in counts])}


# ---- files of one dataset --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "content", "message"),
    [
        (["genWeight"], {}, r"b\.root: no generator weights \(genWeight\), but .*a\.root has them"),
        (DATA, {}, r"b\.root: no generator weights"),
        (["GenPart"], {}, r"b\.root: no generated particles"),
        (["Jet_jetId"], {}, r"b\.root: no branch Jet_jetId, which .*a\.root of the same"),
        (
            ["Electron_deltaEtaSC"],
            {},
            r"b\.root: no branch .*Electron_deltaEtaSC.*, which .*a\.root of the same",
        ),
    ],
)
def test_files_of_a_dataset_must_not_differ(nano_file, emu, drop, content, message):
    files = [nano_file([emu()], "a.root"), nano_file([emu()], "b.root", drop=drop)]
    with pytest.raises(TopRecoError, match=message):
        inspect(files, **content)
    # Datasets may differ, and so may files that an error would not help.
    assert set(inspect({name: [str(file)] for name, file in zip("ab", files, strict=True)}).files) == {
        "a",
        "b",
    }


def test_files_may_differ_in_what_has_no_effect(nano_file, emu):
    drop = ["Jet_jetId", "Electron_deltaEtaSC", "GenJet"]
    files = [nano_file([emu()], "a.root"), nano_file([emu()], "b.root", drop=drop)]
    selection = {"jet": {"id_bit": None}, "electron": {"gap": None}}
    assert len(inspect(files, selection=selection).files["tt"]) == 2


def test_trigger_paths_of_simulation_must_not_differ(nano_file, emu, tmp_path):
    triggers = {"selection": {"cuts": {"triggers": {"MuonEG": ["HLT_a", "HLT_b"]}}}}
    paths = {"HLT_a": np.bool_(True), "HLT_b": np.bool_(True)}
    one = {"HLT_a": np.bool_(True)}
    files = [nano_file([emu()], "a.root", extra=paths), nano_file([emu()], "b.root", extra=one)]
    with pytest.raises(TopRecoError, match=r"b\.root: no trigger path HLT_b"):
        inspect(files, **triggers)
    with pytest.raises(TopRecoError, match=r"b\.root: no trigger path HLT_b"):
        make_skim(files, tmp_path / "o.parquet", SelectionConfig(**triggers["selection"]), progress=False)
    data = [
        str(nano_file([emu()], f"{name}.root", extra=extra, drop=DATA))
        for name, extra in (("c", paths), ("d", one))
    ]
    assert inspect({"MuonEG_2018A": data}, **triggers).files
    with pytest.raises(TopRecoError, match="dataset 'EGamma', whose name contains no primary dataset"):
        inspect({"EGamma": data}, **triggers)


def test_one_file_in_two_spellings(nano_file, emu, tmp_path):
    file = nano_file([emu()], "a.root")
    with pytest.raises(TopRecoError, match="given twice"):
        inspect([file, f"file://{file}"])
    copy = tmp_path / "copy.root"
    shutil.copy(file, copy)
    with pytest.raises(TopRecoError, match=r"copy\.root: a copy of .*a\.root .*count twice"):
        inspect([file, copy])
    for first, second in [
        ("root://host//store/a.root", "root://HOST:1094//store/./a.root"),
        ("root://host//store/a.root", "root://host/store/a.root"),
    ]:
        with pytest.raises(TopRecoError, match="given twice"):
            inspect([first, second])


def test_runs_of_both_settings_of_the_apv_have_the_era_of_their_file(nano_file, emu, toy_model, tmp_path):
    """The second chunk alone tells no era; its jets are tagged with the threshold of UL2016postVFP only."""
    jets = [{"pt": 60.0 - i, "phi": 2.0 + i, "btagDeepFlavB": 0.255} for i in range(2)]
    events = [emu(run=run, Jet=jets) for run in (278000, 278806)]
    selection = {"preset": "nano_v15", "jet": {"id_bit": None, "btag": "btagDeepFlavB", "min_btags": 1}}
    config = configure(
        [nano_file(events, drop=DATA)],
        methods=[str(toy_model)],
        chunk_size=1,
        selection=selection,
        output=str(tmp_path / "out"),
    )
    result = run(config, progress=False)
    assert "era UL2016preVFP (from run 278000)" in result.presets["tt"]
    assert result.cutflow["tt"]["at least 2 jets"]["total"]["n"] == 2
    assert result.cutflow["tt"]["at least 1 b tag"]["total"]["n"] == 0
    with pytest.raises(TopRecoError, match=r"selection\.era: run 278806 tells no era"):
        inspect([nano_file(events[1:], drop=DATA)], selection=selection)


# ---- official files of zero events -----------------------------------------------------------------------


@pytest.mark.parametrize("events", [True, False], ids=["bare tree", "no tree"])
def test_official_files_of_zero_events(nano_file, emu, toy_model, tmp_path, events):
    full, empty = nano_file([emu()], "full.root", runs=(10, 10.0)), tmp_path / "empty.root"
    with uproot.recreate(empty) as file:
        if events:
            file.mktree("Events", {"run": "u4", "luminosityBlock": "u4", "event": "u8"})
        file.mktree("Runs", {"genEventCount": "i8", "genEventSumw": "f8"})
        file["Runs"].extend({"genEventCount": np.array([30]), "genEventSumw": np.array([30.0])})
    config = configure([empty, full], methods=[str(toy_model)], output=str(tmp_path / "out"))
    assert inspect_inputs(config, progress=False).generated == {"tt": {"entries": 1, "generated": 40}}
    statistics = run(config, progress=False).statistics
    assert (statistics.files, statistics.events, statistics.events_selected) == (2, 1, 1)
    assert statistics.skipped == []
    with pytest.raises(TopRecoError, match="no entries"):
        inspect([empty])


def test_a_misspelt_tree_is_no_file_of_zero_events(nano_file, emu):
    with pytest.raises(TopRecoError, match="no tree 'Evnts'"):
        inspect([nano_file([emu()], runs=(1, 1.0))], tree="Evnts")


# ---- weights and corrections -----------------------------------------------------------------------------


SCALE = {"systematics": {"weights": {"scale": {"branches": {"up": "LHEScaleWeight[8]"}}}}}


@pytest.mark.parametrize("skip", [True, False])
def test_theory_weights_that_some_datasets_lack(nano_file, emu, skip):
    nine = str(nano_file([emu()], "nine.root", extra=theory([9])))
    assert inspect({"tt": [nine]}, **SCALE).files
    for other, message in [
        (nano_file([emu()], "none.root"), r"none\.root: branch 'LHEScaleWeight' is missing.*weights\.scale"),
        (
            nano_file([emu()], "eight.root", extra=theory([8])),
            r"eight\.root: branch 'LHEScaleWeight' has 8 elements, element 8 is requested",
        ),
    ]:
        with pytest.raises(TopRecoError, match=message):
            inspect({"tt": [nine], "ww": [str(other)]}, **SCALE, skip_bad_files=skip)
    # Data need none.
    data = str(nano_file([emu()], "data.root", drop=DATA))
    assert inspect({"tt": [nine], "data": [data]}, **SCALE).files


def test_sizes_are_those_of_the_first_event(nano_file, emu):
    file = nano_file([emu(), emu()], extra=theory([3, 5]))
    assert inspect_file(file, sizes=["LHEScaleWeight", "run", "absent"]).sizes == {"LHEScaleWeight": 3}


# ---- mistakes of the configuration -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"selection": {"cuts": {"golden_json": "nope.json"}}}, r"nope\.json: no JSON of certified"),
        ({"selection": {"cuts": {"jet_veto_map": {"file": "nope.json"}}}}, r"nope\.json: no such file"),
        ({"selection": {"cuts": {"triggers": {"MuonEG": ["HLT_nope"]}}}}, "branch 'HLT_nope'"),
        ({"selection": {"muon": {"id": "nope"}}}, "branch 'Muon_nope'"),
        ({"systematics": {"weights": {"w": {"branches": {"nominal": "nope"}}}}}, "branch 'nope' is missing"),
        (
            {"systematics": {"objects": {"j": {"object": "jet", "flat": 0.1, "where": {"Jet_nope": [1]}}}}},
            "branch 'Jet_nope' is missing",
        ),
    ],
)
def test_a_mistake_of_the_configuration_is_no_bad_file(nano_file, emu, tmp_path, content, message):
    """With data, which need no weights, and a file that is bad indeed."""
    bad = tmp_path / "bad.root"
    bad.write_text("hello")
    fileset = {
        "tt": [str(nano_file([emu()], "a.root")), str(bad)],
        "MuonEG": [str(nano_file([emu()], "data.root", drop=DATA))],
    }
    assert len(inspect(fileset, skip_bad_files=True).skipped) == 1
    with pytest.raises(TopRecoError, match=message):
        inspect(fileset, skip_bad_files=True, **content)


def test_a_file_without_a_branch_that_others_have_is_bad(nano_file, emu):
    files = [nano_file([emu()], "a.root"), nano_file([emu()], "b.root", drop=["Muon_tightId"])]
    assert [bad["file"] for bad in inspect(files, skip_bad_files=True).skipped] == [str(files[1])]
    with pytest.raises(TopRecoError, match=r"b\.root: branch 'Muon_tightId'"):
        inspect(files[1:], skip_bad_files=True)


def test_a_trigger_path_that_may_not_be_missing_is_no_bad_file(nano_file, emu):
    """One file of the dataset has it, so that the menu of the other one differs."""
    a, b = (
        str(nano_file([emu()], f"{name}.root", extra={f"HLT_{name}": np.bool_(True)}, drop=DATA))
        for name in "ab"
    )
    for paths, missing_trigger in ((["HLT_a", "HLT_b"], "error"), (["HLT_a"], "not_fired")):
        triggers = {"cuts": {"triggers": {"MuonEG": paths}, "missing_trigger": missing_trigger}}
        with pytest.raises(TopRecoError, match=r"branch 'HLT_.' .* is missing"):
            inspect({"MuonEG": [a, b]}, selection=triggers, skip_bad_files=True)


def test_simulation_without_weights_is_not_treated_as_data(nano_file, emu, tmp_path):
    golden = tmp_path / "golden.json"
    golden.write_text('{"1": [[1, 9]]}')
    file = nano_file([emu()], drop=["genWeight"], extra={"weight": np.ones(1, np.float32)})
    assert inspect([file]).files
    for content, key in (
        (SCALE, "systematics"),
        ({"selection": {"cuts": {"golden_json": str(golden)}}}, "golden_json"),
    ):
        with pytest.raises(TopRecoError, match=rf"no branch 'genWeight', .*{key} would treat it as data"):
            inspect([file], **content)
    selection = {"branches": {"genWeight": "weight"}}
    jes = {"objects": {"jes": {"object": "jet", "flat": 0.1}}}
    assert inspect([file], selection=selection, systematics=jes).files


def test_branches_of_unclustered_energy_are_checked(nano_file, emu):
    met = {"systematics": {"objects": {"met": {"object": "met", "kind": "unclustered"}}}}
    with pytest.raises(
        TopRecoError, match=r"'PuppiMET_ptUnclusteredUp' is missing.*\(systematics\.objects\.met\)"
    ):
        inspect([nano_file([emu()], "a.root")], **met)
    momenta = {
        f"PuppiMET_{field}Unclustered{way}": np.ones(1, np.float32)
        for way in ("Up", "Down")
        for field in ("pt", "phi")
    }
    assert inspect([nano_file([emu()], "b.root", extra=momenta)], **met).files
    deltas = {f"PuppiMET_MetUnclustEnUpDelta{axis}": np.ones(1, np.float32) for axis in "XY"}
    assert inspect([nano_file([emu()], "c.root", extra=deltas)], **met).files
    # Data have no variations.
    assert inspect([nano_file([emu()], "d.root", drop=DATA)], **met).files


def test_a_package_that_is_missing_is_no_bad_file(nano_file, emu, monkeypatch):
    """Nor is a basket whose compression needs one."""
    uproot_open = uproot.open

    def without_xrootd(path, **options):
        if str(path).startswith("root://"):
            raise ImportError("Install fsspec-xrootd to access xrootd storage system.")
        return uproot_open(path, **options)

    monkeypatch.setattr(uproot, "open", without_xrootd)
    files = [str(nano_file([emu()])), "root://host//store/b.root"]
    for of_run in (files, files[::-1]):
        with pytest.raises(TopRecoError, match=r"b\.root: cannot be opened \(Install .*topreco\[xrootd\]"):
            inspect(of_run, skip_bad_files=True)
    branches = Branches(ak.Array({"run": [1, 2]}))
    for error in (ImportError("install zstd"), ValueError("x")):
        found = branches._unreadable("branch 'run'", error)
        assert isinstance(found, BadFileError) is isinstance(error, ValueError)


# ---- files of pepper -------------------------------------------------------------------------------------


def pepper_file(path, *, drop=()):
    """One event that passes, with every column that is read."""
    objects = {
        "Lepton": {"pt": [40.0, 30.0], "eta": [0.5, -0.5], "phi": [0.0, 2.0], "pdgId": [-11, 13]},
        "Jet": {
            "pt": [80.0, 60.0],
            "eta": [0.0, 0.0],
            "phi": [1.0, -2.0],
            "mass": [10.0, 10.0],
            "btagDeepFlavB": [0.9, 0.1],
        },
    }
    columns = {name: ak.zip({key: ak.Array([v]) for key, v in of.items()}) for name, of in objects.items()}
    columns |= {name: np.ones(1, np.uint32) for name in ("run", "luminosityBlock", "event")}
    columns |= {name: np.ones(1) for name in ("MET_pt", "MET_phi", "weight", "cutflags_Reco")}
    with uproot.recreate(path) as file:
        kept = {name: values for name, values in columns.items() if name not in drop}
        kinds = {name: getattr(values, "dtype", None) or values.type.content for name, values in kept.items()}
        file.mktree("Events", kinds).extend(kept)
    return str(path)


def test_files_of_pepper_behind_a_bad_one(tmp_path):
    (tmp_path / "bad.root").write_text("hello")
    found = inspect([tmp_path / "bad.root", pepper_file(tmp_path / "good.root")], skip_bad_files=True)
    assert found.presets == {"tt": "pepper"}
    assert [bad["file"] for bad in found.skipped] == [str(tmp_path / "bad.root")]


def test_files_of_pepper_must_not_differ_in_weights(tmp_path):
    files = [pepper_file(tmp_path / "a.root"), pepper_file(tmp_path / "b.root", drop=["weight"])]
    with pytest.raises(TopRecoError, match=r"b\.root: no column weight, but .*a\.root has them"):
        inspect(files)
    with pytest.raises(TopRecoError, match=r"b\.root: no column weight, but other files have them"):
        make_skim(files, tmp_path / "out.parquet", SelectionConfig(), progress=False)


# ---- errors of workers -----------------------------------------------------------------------------------


def test_an_error_of_a_worker_is_no_bad_file(nano_file, emu, toy_model, tmp_path, monkeypatch):
    """Even if an OSError caused it, which coffea would skip."""

    def fail(*arguments, **options):
        try:
            (tmp_path / "golden.json").read_text()
        except OSError as error:
            raise TopRecoError("golden.json: cannot be read") from error

    monkeypatch.setattr("topreco.runs.processor.variations", fail)
    config = configure([nano_file([emu()])], methods=[str(toy_model)], skip_bad_files=True)
    config = config.model_copy(update={"output": tmp_path / "out"})
    with pytest.raises(TopRecoError, match=r"golden\.json: cannot be read"):
        run(config, progress=False)


@pytest.mark.parametrize(("limit", "code"), [(0.2, 1), (0.4, 0)])
def test_the_share_of_skipped_events(nano_file, emu, toy_model, tmp_path, limit, code):
    """Two files of three and one of six events, which the mean of the others stands for."""
    files = [nano_file([emu(event=i)] * 3, f"{i}.root") for i in range(2)]
    bad = tmp_path / "bad.root"
    bad.write_text("hello")
    result = CliRunner().invoke(
        app,
        [
            *("run", *map(str, [*files, bad]), "-m", str(toy_model), "-o", str(tmp_path / "out"), "--quiet"),
            *("--no-plots", "skip_bad_files=true", f"skip_limit={limit}"),
        ],
    )
    assert result.exit_code == code, result.output
    assert "33 % of the events were left out" in result.output
    assert json.loads((tmp_path / "out" / "run.json").read_text())["events_skipped"] == 3


# ---- names and paths -------------------------------------------------------------------------------------


def test_names_beyond_ascii_and_relative_paths(nano_file, emu, toy_model, tmp_path, monkeypatch):
    """The worker runs in another folder, as that of a Dask cluster does."""
    folder = tmp_path / "höher µ:1"
    folder.mkdir()
    nano_file([emu()], f"{folder.name}/tt̄.root", drop=DATA)
    (folder / "golden.json").write_text(json.dumps({"1": [[1, 9]]}))
    monkeypatch.chdir(folder)
    config = configure(
        {"tt̄": ["tt̄.root"]},
        methods=[str(toy_model)],
        selection={"cuts": {"golden_json": "golden.json"}},
        output=str(tmp_path / "out"),
        output_columns=str(tmp_path / "friends"),
        checkpoint=str(tmp_path / "checkpoints"),
    )
    from topreco.runs import run as module

    original = module._run

    def elsewhere(*arguments):
        os.chdir("/")
        return original(*arguments)

    monkeypatch.setattr(module, "_run", elsewhere)
    result = run(config, progress=False)
    assert result.statistics.events_selected == 1
    assert list(result.cutflow) == ["tt̄"]


@pytest.mark.parametrize(
    ("fileset", "message"),
    [
        ({"tt": ["a::b.root"]}, r"a::b\.root: '::' in a path"),
        ({"t\udcff": ["a.root"]}, "is not text in UTF-8"),
    ],
)
def test_names_that_workers_could_not_open(fileset, message):
    with pytest.raises(TopRecoError, match=message):
        inspect(fileset)


def test_theory_weights_by_dataset(nano_file, emu):
    """Nine weights, eight, none: the source of each dataset, or 1, and all variations are filled."""
    files = {
        "tt": [str(nano_file([emu(), emu()], "nine.root", extra={"LHEScaleWeight": weights([9, 9], 2)}))],
        "ww": [str(nano_file([emu(), emu()], "eight.root", extra={"LHEScaleWeight": weights([8, 8], 3)}))],
        "dy": [str(nano_file([emu(), emu()], "none.root"))],
        "short": [str(nano_file([emu(), emu()], "short.root", extra={"LHEScaleWeight": weights([9, 4], 5)}))],
    }
    sources = {
        "scale": {"branches": {"up": "LHEScaleWeight[8]", "down": "LHEScaleWeight[0]"}, "default": 1},
        "eight": {"branches": {"up": "LHEScaleWeight[7]"}, "datasets": ["w?", "none"]},
        "flat": {"flat": 0.5, "datasets": ["tt"]},
    }
    inputs = inspect(files, systematics={"weights": sources})
    constant = {name: preset.partition("; weight 1: ")[2] for name, preset in inputs.presets.items()}
    assert constant == {"tt": "eight", "ww": "flat", "dy": "scale, eight, flat", "short": "eight, flat"}
    expected = {
        "tt": {"scale_up": 4, "scale_down": 4, "eight_up": 2, "flat_up": 3},
        "ww": {"scale_up": 2, "scale_down": 2, "eight_up": 6, "flat_up": 2},
        "dy": {"scale_up": 2, "scale_down": 2, "eight_up": 2, "flat_up": 2},
        "short": {"scale_up": 6, "scale_down": 6, "eight_up": 2, "flat_up": 2},
    }
    config = build_config(SystematicsConfig, {"weights": sources}, "test")
    for dataset, (file,) in files.items():
        events = open_events(file)
        events.metadata["dataset"] = dataset
        selection = SelectionConfig()
        selected = select_objects(read_objects(events, selection), selection, dataset=dataset)
        found = event_weights(events, read_objects(events, selection), selected, config)
        generated = dict(generated_weights(events, selection, config))
        assert len(selected.events) == 2
        for name, total in expected[dataset].items():
            assert found[name].sum() == total, (dataset, name)
            if name in generated:
                assert generated[name].sum() == total * events.genWeight[0]
    del events.metadata["dataset"]
    with pytest.raises(InputError, match=r"limited to the datasets w\?, none.*give dataset="):
        event_weights(events, read_objects(events, selection), selected, config)


def weights(counts, value):
    return ak.Array([np.full(n, value, np.float32) for n in counts])


def test_a_default_weight_is_for_whole_datasets(nano_file, emu):
    files = [nano_file([emu()], "a.root", extra=theory([9])), nano_file([emu()], "b.root")]
    source = {"branches": {"up": "LHEScaleWeight[8]"}, "default": 1}
    with pytest.raises(
        TopRecoError, match=r"b\.root: no weights of the source scale \(LHEScaleWeight\), but"
    ):
        inspect(files, systematics={"weights": {"scale": source}})
    source["datasets"] = ["ww"]
    assert len(inspect(files, systematics={"weights": {"scale": source}}).files["tt"]) == 2
    with pytest.raises(TopRecoError, match="'default' belongs to 'branches'"):
        inspect(files, systematics={"weights": {"scale": {"flat": 0.1, "default": 1}}})
    with pytest.raises(TopRecoError, match=r"default.*1.*found 2"):
        inspect(files, systematics={"weights": {"scale": source | {"default": 2}}})
