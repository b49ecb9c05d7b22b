"""What coffea reads and writes: filesets with steps, sums of runs, cycle numbers, other formats, plans."""

import json
import os
import subprocess
import sys
from pathlib import Path

import awkward as ak
import pyarrow.parquet as pq
import pytest
import uproot
from coffea.processor import accumulate
from coffea.util import load, save

from topreco.config import ConfigError, RunConfig, SelectionConfig, build_config, expand_files
from topreco.core.errors import TopRecoError
from topreco.core.threads import available_cores
from topreco.input.nano import QuietNanoAODSchema, inspect_file
from topreco.input.skimming import make_skim
from topreco.runs.plan import RunPlan, plan_run
from topreco.runs.results import load_results
from topreco.runs.run import run


def go(folder, fileset, **content):
    content = {"methods": ["loose"], "histograms": {"observables": ["m_tt"]}, **content}
    config = build_config(RunConfig, {"fileset": fileset, "output": folder, **content}, "test")
    return run(config, progress=False)


def topreco(*arguments):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "topreco", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_steps_are_read_exactly(nano_file, emu, tmp_path):
    file = str(nano_file([emu() for _ in range(9)]))
    uuid = inspect_file(file).uuid.hex()
    about = {"object_path": "Events;1", "steps": [[0, 2], [5, 8]], "num_entries": 9, "uuid": uuid}
    path = tmp_path / "fileset.json"
    path.write_text(json.dumps({"tt": {"files": {file: about}, "metadata": {"is_mc": True}}}))
    result = go(tmp_path / "out", str(path), unfolding={"observables": ["m_tt"]})
    assert (result.statistics.events, result.statistics.chunks) == (5, 2)
    for change, message in (
        ({"num_entries": 10}, "has 9 entries, but the fileset has num_entries 10"),
        ({"num_entries": None, "steps": [[0, 10]]}, "has 9 entries, but the fileset has steps to 10"),
        ({"uuid": "0" * 32}, "is another file than that of the fileset"),
    ):
        with pytest.raises(TopRecoError, match=message):
            go(tmp_path / "out", {"tt": {"files": {file: about | change}}})
    options = (
        "-m",
        "loose",
        "histograms.observables=[m_tt]",
        "--quiet",
        "--no-plots",
        "-o",
        tmp_path / "cli",
    )
    done = topreco("run", path, *options)
    assert (done.returncode, "5 events of 1 files in 2 chunks" in done.stdout) == (0, True), done.stderr
    for arguments, message in (
        (("run", path, file, *options), "stands alone"),
        (("skim", path, "-o", tmp_path / "x.parquet"), "a fileset, which `topreco run` takes"),
    ):
        done = topreco(*arguments)
        assert (done.returncode, message in done.stderr, done.stderr.count("\n")) == (1, True, 1)


def test_saved_runs_add_up(nano_file, emu, tmp_path):
    file = str(nano_file([emu() for _ in range(4)]))
    unfolding = {"observables": ["m_tt"]}
    for name in "ab":
        go(tmp_path / name, {name: [file]}, unfolding=unfolding)
    one, other = (load(tmp_path / name / "histograms.coffea") for name in "ab")
    total = accumulate([one, other, one])
    save(total, tmp_path / "sum.coffea")
    found = load_results(tmp_path / "sum.coffea")
    assert [entry["total"]["n"] for entry in (found["cutflow"][name]["all"] for name in "ab")] == [8, 4]
    key = "spectrum/m_tt"
    expected = 2 * one["histograms"][key].sum(flow=True).value + other["histograms"][key].sum(flow=True).value
    assert found["histograms"][key].sum(flow=True).value == pytest.approx(expected)
    assert len(total["metadata"]) == 3
    assert set(found["metadata"]["presets"]) == {"a", "b"}
    done = topreco("plot", tmp_path / "sum.coffea", "-o", tmp_path / "plots", "--observable", "m_tt")
    assert done.returncode == 0, done.stderr
    go(tmp_path / "c", {"c": [file]}, unfolding=unfolding | {"phase_space": {"decay": "prompt"}})
    save(accumulate([one, load(tmp_path / "c" / "histograms.coffea")]), tmp_path / "sum.coffea")
    with pytest.raises(TopRecoError, match=r"different unfolding\.phase_space"):
        load_results(tmp_path / "sum.coffea")


@pytest.mark.parametrize("tree", ["Events;1", "/Events", "/Events;1"])
def test_cycle_numbers(nano_file, emu, tmp_path, tree):
    file = str(nano_file([emu()]))
    assert go(tmp_path / "out", {"tt": [file]}, tree=tree).statistics.events == 1
    done = topreco("skim", file, "-o", tmp_path / "x.parquet", f"tree={tree}", "--quiet")
    assert done.returncode == 0, done.stderr
    with pytest.raises(TopRecoError, match=r"no tree 'Events;7'; present: Events;1"):
        go(tmp_path / "out", {"tt": [file]}, tree="Events;7")


def columns(path):
    """Branches of a file with counters as integers, by name."""
    tree = uproot.open(path)["Events"]
    names = [name for name in tree.keys() if not name.startswith("LHE")]  # noqa: SIM118 - a TTree is no dict
    return tree.arrays(names)


def as_parquet(path, output):
    ak.to_parquet(columns(path), output, row_group_size=3)
    return str(output)


def as_rntuple(path, output, layout):
    """The branches as one field each, or as ROOT has collections: one field of records."""
    arrays = columns(path)
    content = {name: arrays[name] for name in arrays.fields}
    if layout == "collections":
        counters = {name[1:] for name in content if name[0] == "n" and name[1:2].isupper()}
        counted = {name for name in counters if any(field.startswith(f"{name}_") for field in content)}
        content = {
            name: values
            for name, values in content.items()
            if name[1:] not in counted and name.partition("_")[0] not in counted
        }
        for name in counted:
            fields = [field for field in arrays.fields if field.startswith(f"{name}_")]
            content[name] = ak.zip({field.removeprefix(f"{name}_"): arrays[field] for field in fields})
    with uproot.recreate(output) as file:
        file.mkrntuple("Events", ak.Array(content))
    return str(output)


@pytest.fixture
def nano(nano_file, random_events):
    """A TTree of forty events."""
    return nano_file(random_events[:40], extra={"PSWeight": ak.Array([[1.0, 1.1, 0.9, 1.0]] * 40)})


@pytest.fixture(params=["parquet", "columns", "collections"])
def other(nano, tmp_path, request):
    """The same events as Parquet or as an RNTuple, with one field per branch or per collection."""
    if request.param == "parquet":
        return as_parquet(nano, tmp_path / "other.parquet")
    return as_rntuple(nano, tmp_path / "other.root", request.param)


def test_other_formats_give_the_same(nano, other, tmp_path):
    """Histograms to the last bit, in chunks that do not fit the row groups."""
    systematics = {
        "objects": {"jes": {"object": "jet", "flat": 0.01}},
        "weights": {"ps": {"branches": {"up": "PSWeight[1]"}}},
    }
    first, second = (
        go(tmp_path / f"out{i}", {"tt": [str(file)]}, systematics=systematics, chunk_size=7)
        for i, file in enumerate((nano, other))
    )
    assert second.statistics.chunks == 6
    assert second.statistics.events_selected == first.statistics.events_selected > 5
    for name, histogram in first.histograms.items():
        assert second.histograms[name] == histogram, name
    assert first.cutflow == second.cutflow


def test_skims_of_other_formats(nano, other, tmp_path):
    skims = [
        make_skim([file], tmp_path / f"{i}.parquet", SelectionConfig(), dataset="tt", progress=False)
        for i, file in enumerate((nano, other))
    ]
    assert skims[0].n_selected == skims[1].n_selected > 5
    tables = [pq.read_table(skim.output) for skim in skims]
    # As text, in which NaN is equal to NaN.
    assert str(tables[0].to_pydict()) == str(tables[1].to_pydict())


def test_parquet_that_cannot_be_used(nano, tmp_path):
    records = tmp_path / "records.parquet"
    ak.to_parquet(ak.Array({"run": [1], "Jet": [[{"pt": 1.0}]]}), records)
    with pytest.raises(TopRecoError, match=r"column 'Jet' has fields of its own; .* such as Jet_pt"):
        go(tmp_path / "out", {"tt": [str(records)]})
    without = tmp_path / "without.parquet"
    ak.to_parquet(ak.Array({"run": [1], "lumi": [1]}), without)
    with pytest.raises(TopRecoError, match=r"without.parquet: branch 'luminosityBlock' is missing.*lumi"):
        go(tmp_path / "out", {"tt": [str(without)]})
    whole = Path(as_parquet(nano, tmp_path / "whole.parquet")).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TopRecoError, match=r"cut.parquet: cannot be read as Parquet"):
        go(tmp_path / "out", {"tt": [str(tmp_path / "cut.parquet")]})
    (tmp_path / "copy.parquet").write_bytes(whole)
    files = [str(tmp_path / name) for name in ("whole.parquet", "copy.parquet")]
    with pytest.raises(TopRecoError, match=r"copy.parquet: a copy of .*whole.parquet"):
        go(tmp_path / "out", {"tt": files})
    with pytest.raises(TopRecoError, match=r"whole.parquet is Parquet and .* is not; files of one kind"):
        go(tmp_path / "out", {"tt": [files[0], str(nano)]})


def test_a_damaged_column_of_parquet(nano, tmp_path):
    path = Path(as_parquet(nano, tmp_path / "nano.parquet"))
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(TopRecoError, match=r"nano.parquet: "):
        go(tmp_path / "out", {"tt": [str(path)]})


# ---- folders, lists and plans ------------------------------------------------------------------------------


@pytest.fixture
def folder(nano_file, emu, tmp_path):
    """A folder with three files, one in a subfolder, and a list of two of them."""
    (tmp_path / "data" / "0000").mkdir(parents=True)
    files = [
        str(nano_file([emu(event=10 * i + j) for j in range(3)], f"data/{name}.root"))
        for i, name in enumerate(("b", "0000/a", "c"))
    ]
    (tmp_path / "files.txt").write_text(f"# two\n{files[0]}\n\n{files[2]}\n")
    return tmp_path, files


def test_folders_and_lists(folder):
    path, files = folder
    assert expand_files([str(path / "data")]) == [files[1], files[0], files[2]]
    assert expand_files([str(path / "files.txt"), files[1]]) == [files[0], files[2], files[1]]
    result = go(path / "out", {"tt": [str(path / "data")]})
    assert (result.statistics.files, result.statistics.events) == (3, 9)
    options = ("-m", "loose", "histograms.observables=[m_tt]", "--quiet", "--no-plots", "-o", path / "cli")
    done = topreco("run", path / "files.txt", *options)
    assert (done.returncode, "6 events of 2 files" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty", None, r"empty: a folder without \.root and \.parquet files"),
        ("empty.txt", "# nothing\n", r"empty.txt: a list without files"),
        ("absent.txt", None, r"absent.txt: not readable as a list of files"),
    ],
)
def test_folders_and_lists_without_files(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    elif "." not in name:
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=message):
        go(tmp_path / "out", {"tt": [str(tmp_path / name)]})


def test_a_plan_writes_nothing_and_agrees_with_the_run(folder):
    path, _ = folder
    content = {
        "fileset": {"tt": [str(path / "data")]},
        "methods": ["loose"],
        "histograms": {"observables": ["m_tt"]},
        "systematics": {
            "objects": {"jes": {"object": "jet", "flat": 0.01}},
            "weights": {"lumi": {"flat": 0.1}},
        },
        "chunk_size": 2,
        "output": path / "out",
    }
    before = sorted(path.rglob("*"))
    plan = plan_run(build_config(RunConfig, content, "test"), progress=False)
    assert sorted(path.rglob("*")) == before
    tt = plan.datasets["tt"]
    assert (tt.files, tt.events, tt.chunks, tt.sampled) == (3, 9, 6, 3)
    result = go(path / "out", content["fileset"], systematics=content["systematics"], chunk_size=2)
    assert tt.preset == result.presets["tt"]
    assert list(tt.cutflow.to_dict()) == list(result.cutflow["tt"])
    assert tt.seconds_per_event > 0
    assert plan.seconds == pytest.approx(9 * tt.seconds_per_event + 6 * tt.seconds_per_chunk)
    lines = str(plan).splitlines()
    assert lines[1] == "variations: 2 of objects, each one more pass of every method; 2 of weights"
    assert lines[2].startswith("expected time: ")
    assert lines[2].endswith(
        "for 9 events with 1 worker (measured on 3 events, without starting the workers)"
    )
    assert lines[3] == f"results would be in {path / 'out'}; nothing was written"


def test_workers_of_a_plan(folder):
    path, _ = folder
    content = {"fileset": {"tt": [str(path / "data")]}, "methods": ["loose"], "chunk_size": 2}
    for executor, workers, expected in (
        ("iterative", 1, 1),
        ("futures", 2, min(2, available_cores())),
        ("dask", 50, 6),
    ):
        config = build_config(RunConfig, content | {"executor": executor, "workers": workers}, "test")
        plan = RunPlan(config, plan_run(config, progress=False).datasets, ("loose",), ())
        assert plan.workers == expected


def test_dry_run_of_the_command(folder):
    path, _ = folder
    done = topreco(
        "run", path / "data", "-m", "loose", "--dry-run", "--quiet", "-o", path / "out", "--dataset", "tt"
    )
    assert done.returncode == 0, done.stderr
    assert not (path / "out").exists()
    for text in ("preset", "tt: the first 3 events", "at least 1 b tag", "methods: loose", "expected time"):
        assert text in done.stdout
    done = topreco("run", path / "data", "-m", "lose", "--dry-run")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_nano_in_parquet_through_the_library(nano_file, emu, tmp_path):
    from coffea.nanoevents import NanoEventsFactory

    import topreco as package

    events = uproot.open(nano_file([emu(), emu()]))["Events"]
    names = [name for name in events.keys() if not name.startswith("LHE")]  # noqa: SIM118 - a TTree is no dict
    ak.to_parquet(events.arrays(names), tmp_path / "nano.parquet")
    nano = NanoEventsFactory.from_parquet(
        str(tmp_path / "nano.parquet"), schemaclass=QuietNanoAODSchema
    ).events()
    assert package.reconstruct(nano, "loose").ttbar.mass.to_numpy().shape == (2,)
