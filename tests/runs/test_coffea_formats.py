"""What coffea reads and writes: filesets with steps, sums of saved runs, cycle numbers, Parquet."""

import json
import os
import subprocess
import sys
from pathlib import Path

import awkward as ak
import pytest
import uproot
from coffea.processor import accumulate
from coffea.util import load, save

from topreco.config import RunConfig, build_config
from topreco.core.errors import TopRecoError
from topreco.input.nano import QuietNanoAODSchema, inspect_file
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


@pytest.mark.parametrize("command", [("run", "-m", "loose"), ("skim",)])
def test_parquet_is_for_the_library(nano_file, emu, tmp_path, command):
    ak.to_parquet(ak.Array({"run": [1]}), tmp_path / "nano.parquet")
    first, *options = command
    done = topreco(first, tmp_path / "nano.parquet", *options, "-o", tmp_path / "out", "--quiet")
    assert done.returncode == 1
    assert "is Parquet, and topreco's commands read events from ROOT files alone" in done.stderr
    assert done.stderr.count("\n") == 1


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
