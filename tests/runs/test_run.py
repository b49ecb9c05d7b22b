"""`topreco run` at scale: killed, resumed, on bad files and with every executor, the same results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import awkward as ak
import numpy as np
import pyarrow.dataset
import pytest
import uproot
from coffea import processor

from topreco.config import ConfigError, RunConfig, load_config
from topreco.core.errors import TopRecoError
from topreco.input import nano
from topreco.input.nano import QuietNanoAODSchema, inspect_file, open_events
from topreco.reconstruction.load import load
from topreco.runs.columns import ColumnWriter
from topreco.runs.processor import DileptonProcessor
from topreco.runs.run import run

pytestmark = pytest.mark.sim

CHUNK = 300
"""Events per chunk: four chunks of the simulated file."""


@pytest.fixture
def configured(simulated, toy_model, tmp_path):
    """Function from overrides to a configuration."""

    def configure(*overrides, files=None):
        names = ", ".join(map(str, files or [simulated]))
        return load_config(
            RunConfig,
            None,
            [
                f"fileset={{tt: [{names}]}}",
                f"methods=[{toy_model}]",
                f"chunk_size={CHUNK}",
                "histograms.observables=[m_tt, pt_top]",
                f"output={tmp_path / 'out'}",
                *overrides,
            ],
        )

    return configure


@pytest.fixture(scope="module")
def nominal(simulated, toy_model, tmp_path_factory):
    """Result and rows of an undisturbed run."""
    folder = tmp_path_factory.mktemp("nominal")
    config = RunConfig(
        fileset={"tt": (str(simulated),)},
        methods=(str(toy_model),),
        chunk_size=CHUNK,
        histograms={"observables": ("m_tt", "pt_top")},
        output=folder / "out",
        output_columns=folder / "friends",
    )
    return run(config, progress=False), rows(folder / "friends")


def rows(folder):
    """All rows below a folder, sorted."""
    table = pyarrow.dataset.dataset(folder / "tt" / "nominal").to_table()
    return table.sort_by([("dataset", "ascending"), ("file", "ascending"), ("entry", "ascending")])


def assert_same(result, nominal):
    """Equal counts, and weighted sums within rounding."""
    assert result.cutflow == nominal.cutflow
    assert_same_histograms(result.histograms, nominal.histograms)


def assert_same_histograms(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, histogram in ours.items():
        a, b = histogram.view(flow=True), theirs[name].view(flow=True)
        for field in a.dtype.names or (Ellipsis,):
            scale = np.abs(b[field]).max(initial=1)
            np.testing.assert_allclose(a[field], b[field], rtol=1e-9, atol=1e-9 * scale, err_msg=name)


def test_statistics(nominal, simulated):
    result, table = nominal
    statistics = result.statistics
    assert (statistics.files, statistics.chunks, statistics.events) == (1, 4, 1200)
    assert statistics.chunks_resumed == 0
    assert statistics.events_selected == table.num_rows > 50
    assert 0 < statistics.bytes_read < 10 * simulated.stat().st_size
    assert statistics.events_per_second > 0
    assert json.loads((result.folder / "run.json").read_text())["events"] == 1200
    assert "1200 events of 1 files in 4 chunks" in str(statistics)


def test_manifest(nominal):
    result, table = nominal
    manifest = json.loads((result.folder / "columns.json").read_text())
    folder = Path(manifest["folder"])
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet")}
    assert [entry["path"] for entry in manifest["files"]] == sorted(found)
    chunks = [(entry["entrystart"], entry["entrystop"]) for entry in manifest["files"]]
    assert chunks == [(start, start + CHUNK) for start in (0, 300, 600, 900)]
    assert sum(entry["rows"] for entry in manifest["files"]) == table.num_rows


def test_rows_join_with_the_original(nominal, simulated, toy_model):
    """By entry, and by (run, lumi, event)."""
    _, table = nominal
    events = open_events(simulated)
    entry = table["entry"].to_numpy()
    for name in ("run", "luminosityBlock", "event"):
        np.testing.assert_array_equal(table[name].to_numpy(), events[entry][name].to_numpy())
    place = {
        key: i
        for i, key in enumerate(
            zip(*(events[n].to_list() for n in ("run", "luminosityBlock", "event")), strict=True)
        )
    }
    keys = zip(*(table[n].to_pylist() for n in ("run", "luminosityBlock", "event")), strict=True)
    assert [place[key] for key in keys] == entry.tolist()
    import topreco

    tops = topreco.reconstruct(events, toy_model)
    np.testing.assert_allclose(tops.top.pt[entry], table["toy_top_pt"].to_numpy(), rtol=1e-5)
    assert set(table["file"].to_pylist()) == {str(simulated)}


def test_friends_in_a_processor_of_ones_own(nominal, simulated):
    """The lines of docs/OWN_PROCESSOR.md."""
    import pyarrow.dataset as ds

    result, table = nominal
    friends = ds.dataset(
        Path(json.loads((result.folder / "columns.json").read_text())["folder"]) / "tt/nominal"
    )

    class Own(processor.ProcessorABC):
        def process(self, events):
            source = events.metadata
            entry = ds.field("entry")
            mine = (
                (ds.field("file") == source["filename"])
                & (entry >= source["entrystart"])
                & (entry < source["entrystop"])
            )
            rows = friends.to_table(filter=mine).sort_by("entry")
            chosen = events[rows["entry"].to_numpy() - source["entrystart"]]
            assert chosen.event.to_list() == rows["event"].to_pylist()
            return {"n": rows.num_rows, "jets": int(ak.sum(ak.num(chosen.Jet)))}

        def postprocess(self, accumulator):
            return accumulator

    runner = processor.Runner(
        processor.IterativeExecutor(status=False), chunksize=170, schema=QuietNanoAODSchema
    )
    fileset = {"tt": {"treename": "Events", "files": [str(simulated)]}}
    output = runner(fileset, processor_instance=Own())
    assert output["n"] == table.num_rows
    assert output["jets"] >= 2 * output["n"]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["futures", "dask", "parsl"])
def test_executors_change_nothing(configured, nominal, tmp_path, executor):
    pytest.importorskip({"dask": "distributed"}.get(executor, "parsl"))
    config = configured(f"executor={executor}", "workers=2", f"output_columns={tmp_path / 'friends'}")
    result = run(config, progress=False)
    assert_same(result, nominal[0])
    assert rows(tmp_path / "friends").equals(nominal[1])
    assert result.statistics.events_selected == nominal[0].statistics.events_selected


def test_root_and_parquet_agree(configured, nominal, tmp_path):
    run(configured(f"output_columns={tmp_path / 'friends'}", "columns_format=root"), progress=False)
    array = uproot.concatenate(f"{tmp_path}/friends/tt/nominal/*.root:Friends")
    array = array[ak.argsort(array.entry)]
    assert array.fields == nominal[1].column_names
    for name in array.fields:
        theirs = nominal[1][name].to_pylist()
        if isinstance(theirs[0], float):
            np.testing.assert_array_equal(array[name].to_numpy(), theirs)
        else:
            assert array[name].to_list() == theirs


@pytest.mark.slow
def test_a_killed_dask_worker_changes_nothing(simulated, toy_model, nominal, tmp_path):
    distributed = pytest.importorskip("distributed")

    class Deadly:
        """Kills its process on the third call, once."""

        name = "toy"

        def __init__(self, model, flag):
            self.model, self.flag = model, flag

        def __call__(self, events):
            calls = sorted(self.flag.iterdir())
            (self.flag / f"{time.time_ns()}-{os.getpid()}").touch()
            if len(calls) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return self.model(events)

    flag = tmp_path / "calls"
    flag.mkdir()
    from topreco.config import HistogramConfig

    instance = DileptonProcessor(
        [Deadly(load(toy_model, threads=1), flag)],
        histograms=HistogramConfig(observables=("m_tt", "pt_top")),
        columns=ColumnWriter(tmp_path / "friends"),
    )
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = processor.DaskExecutor(client=client, status=False, retries=0)
        runner = processor.Runner(executor, chunksize=CHUNK, schema=QuietNanoAODSchema)
        fileset = {"tt": {"treename": "Events", "files": [str(simulated)]}}
        output = runner(fileset, processor_instance=instance)
    assert len(list(flag.iterdir())) > 4
    assert output["cutflow"] == nominal[0].cutflow
    assert_same_histograms(output["histograms"], nominal[0].histograms)
    assert rows(tmp_path / "friends").equals(nominal[1])


KILLED = """
import os, signal, sys
from topreco.runs.processor import DileptonProcessor
from topreco.cli import main

process = DileptonProcessor.process

def deadly(self, events):
    if events.metadata["entrystart"] == 600:
        os.kill(os.getpid(), signal.SIGKILL)
    return process(self, events)

DileptonProcessor.process = deadly
sys.argv = ["topreco", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
def test_a_killed_run_resumes(simulated, toy_model, nominal, configured, tmp_path):
    arguments = [
        *(f"checkpoint={tmp_path / 'checkpoints'}", f"chunk_size={CHUNK}"),
        *("histograms.observables=[m_tt, pt_top]", f"output_columns={tmp_path / 'friends'}"),
    ]
    command = ["run", simulated, "-m", toy_model, "--dataset", "tt", "-o", tmp_path / "out", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, command), *arguments], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((tmp_path / "checkpoints").rglob("*.coffea"))) == 2
    assert not list((tmp_path / "out").iterdir())
    result = run(configured(*arguments), progress=False)
    assert (result.statistics.chunks, result.statistics.chunks_resumed) == (4, 2)
    assert "(2 done before)" in str(result.statistics)
    assert result.statistics.events == 1200
    assert_same(result, nominal[0])
    assert rows(tmp_path / "friends").equals(nominal[1])
    again = run(configured(*arguments), progress=False)
    assert again.statistics.chunks_resumed == 4
    assert_same(again, nominal[0])


def test_checkpoints_of_another_configuration_are_refused(configured, tmp_path):
    checkpoint = f"checkpoint={tmp_path / 'checkpoints'}"
    run(configured(checkpoint), progress=False)
    with pytest.raises(TopRecoError, match=r"made with another .* differs in selection\.jet\.pt_min; name"):
        run(configured(checkpoint, "selection.jet.pt_min=35", f"output={tmp_path / 'other'}"), progress=False)
    assert not (tmp_path / "other").exists()


def test_columns_of_another_chunking_are_refused(configured, tmp_path):
    columns = f"output_columns={tmp_path / 'friends'}"
    run(configured(columns), progress=False)
    run(configured(columns), progress=False)
    with pytest.raises(
        TopRecoError, match=r"output_columns .*tt: made with another .* differs in chunk_size;"
    ):
        run(configured(columns, "chunk_size=400"), progress=False)


@pytest.fixture
def bad_files(simulated, tmp_path):
    """Files that are no use, each in its way: cut short, foreign, damaged where nobody looks at first."""
    whole = simulated.read_bytes()
    cut = tmp_path / "cut.root"
    cut.write_bytes(whole[: len(whole) // 2])
    foreign = tmp_path / "foreign.root"
    with uproot.recreate(foreign) as file:
        file.mktree("Other", {"x": np.float32})
    with uproot.open(simulated) as file:
        branch = file["Events"]["Jet_pt"]
        place, size = int(branch.member("fBasketSeek")[0]), int(branch.member("fBasketBytes")[0])
        uuid = file.file.uuid.bytes
    content = whole[:place] + bytes(size) + whole[place + size :]
    damaged = tmp_path / "damaged.root"
    damaged.write_bytes(content.replace(uuid, bytes(15) + b"\x01"))  # else it would be a copy
    inspect_file(damaged)  # looks good
    return {"cut": cut, "foreign": foreign, "damaged": damaged}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cut", r"cut\.root: cut short"),
        ("foreign", r"foreign\.root: no tree 'Events'; present: Other"),
        ("damaged", r"damaged\.root: branch '\w+' cannot be read, the file may be damaged"),
    ],
)
def test_bad_files_stop_a_run(configured, simulated, bad_files, tmp_path, kind, message):
    with pytest.raises(TopRecoError, match=message) as error:
        run(configured(files=[simulated, bad_files[kind]]), progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["futures", "dask", "parsl"])
def test_workers_say_what_is_wrong(configured, simulated, bad_files, tmp_path, executor):
    """Not every executor brings back the cause of an exception."""
    with pytest.raises(TopRecoError, match=r"damaged\.root: branch '\w+' cannot be read") as error:
        run(configured(f"executor={executor}", files=[simulated, bad_files["damaged"]]), progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bad_files_are_skipped_on_request(configured, simulated, bad_files, nominal, tmp_path):
    config = configured(
        "skip_bad_files=true",
        f"checkpoint={tmp_path / 'checkpoints'}",
        files=[*bad_files.values(), simulated],
    )
    result = run(config, progress=False)
    assert_same(result, nominal[0])
    skipped = json.loads((result.folder / "run.json").read_text())["skipped"]
    assert skipped == result.statistics.skipped
    found = [(Path(bad["file"]).stem, bad["entrystart"], bad["entrystop"]) for bad in skipped]
    assert found[:2] == [("cut", None, None), ("foreign", None, None)]
    assert found[2:] == [("damaged", start, start + CHUNK) for start in (0, 300, 600, 900)]
    assert "skipped: " in str(result.statistics)
    assert "damaged.root entries 900 to 1200 (branch" in str(result.statistics)
    # The same command tries again what it had to skip.
    assert run(config, progress=False).statistics.chunks_resumed == 4


def test_nothing_but_bad_files(configured, bad_files, tmp_path):
    with pytest.raises(TopRecoError, match=r"none of 2 files can be read, such as .*cut short"):
        run(configured("skip_bad_files=true", files=[bad_files["cut"], bad_files["foreign"]]), progress=False)
    with pytest.raises(TopRecoError, match=r"none of 4 chunks can be read, such as .*damaged"):
        run(configured("skip_bad_files=true", files=[bad_files["damaged"]]), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("skip", [True, False])
def test_a_file_that_vanishes(configured, simulated, nominal, tmp_path, monkeypatch, skip):
    """A worker does not find what the driver found."""
    copy = tmp_path / "copy.root"
    with uproot.open(simulated) as file:
        uuid = file.file.uuid.bytes
    copy.write_bytes(simulated.read_bytes().replace(uuid, bytes(15) + b"\x01"))

    def inspect(path, *arguments, **options):
        summary = inspect_file(path, *arguments, **options)
        # Not when the driver asks which kind of file this is.
        if Path(path) == copy and len(arguments) > 1:
            copy.unlink()
        return summary

    monkeypatch.setattr("topreco.runs.inspect.inspect_file", inspect)
    config = configured(f"skip_bad_files={skip}", files=[simulated, copy])
    if not skip:
        with pytest.raises(TopRecoError, match=r"copy\.root: a worker cannot open it \(FileNotFoundError"):
            run(config, progress=False)
        return
    with pytest.warns(UserWarning, match="Skipping bad file"):
        result = run(config, progress=False)
    assert_same(result, nominal[0])
    assert {bad["reason"] for bad in result.statistics.skipped} == {"a worker could not open it"}
    shutil.copy(simulated, copy)
    with (
        pytest.warns(UserWarning, match="Skipping bad file"),
        pytest.raises(TopRecoError, match="workers could not open a single file"),
    ):
        run(configured("skip_bad_files=true", files=[copy]), progress=False)


def test_a_file_given_twice(configured, simulated):
    with pytest.raises(TopRecoError, match="given twice"):
        run(configured(files=[simulated, simulated.parent / "." / simulated.name]), progress=False)


def test_columns_that_nobody_sees(configured, tmp_path, monkeypatch):
    """A worker that writes to a disk of its own."""
    write = ColumnWriter.write

    def elsewhere(self, *arguments, **options):
        return write(ColumnWriter(tmp_path / "local"), *arguments, **options)

    monkeypatch.setattr(ColumnWriter, "write", elsewhere)
    with pytest.raises(TopRecoError, match="4 of 4 files of the workers are not there"):
        run(configured(f"output_columns={tmp_path / 'friends'}"), progress=False)
    assert (tmp_path / "out" / "histograms.coffea").is_file()


@pytest.mark.slow
def test_an_unreachable_host(configured, tmp_path, monkeypatch):
    pytest.importorskip("fsspec_xrootd")
    monkeypatch.setattr(nano, "XROOTD_TIMEOUT", 1)
    with pytest.raises(TopRecoError, match=r"root://localhost:1//a\.root: cannot be opened") as error:
        run(configured(files=["root://localhost:1//a.root"]), progress=False)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_that_workers_cannot_see(configured, toy_model, nominal, tmp_path):
    """Its file vanishes once it is loaded; what is shipped is what works."""
    model = tmp_path / "toy.safetensors"
    shutil.copy(toy_model, model)
    reconstructor = load(model, threads=1, ship=True)
    fileset = {"tt": {"treename": "Events", "files": list(configured().fileset["tt"])}}
    import cloudpickle

    content = cloudpickle.dumps(reconstructor)
    model.unlink()
    shipped = cloudpickle.loads(content)
    assert shipped.name == "toy"
    assert shipped.path != model
    instance = DileptonProcessor([shipped], histograms=configured().histograms)
    executor = processor.FuturesExecutor(workers=2, status=False)
    output = processor.Runner(executor, chunksize=CHUNK, schema=QuietNanoAODSchema)(
        fileset, processor_instance=instance
    )
    assert_same_histograms(output["histograms"], nominal[0].histograms)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["executor=futures", "cluster.kind=slurm"], "cluster: executor 'futures' runs on this machine"),
        (["executor=parsl", "cluster.address=tcp://a:1"], r"cluster\.address: belongs to a Dask scheduler"),
        (["executor=dask", "cluster.kind=pbs"], r"cluster\.kind: .*found 'pbs'"),
        (["executor=spark"], "executor: .*found 'spark'"),
    ],
)
def test_impossible_clusters(configured, overrides, message):
    with pytest.raises(ConfigError, match=message):
        configured(*overrides)


def test_samples_need_a_folder(configured):
    with pytest.raises(ConfigError, match="columns_samples: 8 found without output_columns"):
        configured("columns_samples=8")


def test_summaries_belong_to_the_configuration(simulated, tmp_path):
    """Another summary is another result, which no checkpoint may mix."""
    counts = {}
    for summary in ("mean", "median"):
        config = RunConfig(
            fileset={"tt": (str(simulated),)},
            methods=("sonnenschein",),
            summary=summary,
            solvers={"n_draws": 10},
            histograms={"observables": ("m_tt",)},
            output=tmp_path / summary,
            checkpoint=tmp_path / "checkpoints",
        )
        if summary == "median":
            with pytest.raises(TopRecoError, match="summary"):
                run(config, progress=False)
            config = config.model_copy(update={"checkpoint": None})
        counts[summary] = run(config, progress=False).histograms["spectrum/m_tt"]
    assert counts["mean"] != counts["median"]
