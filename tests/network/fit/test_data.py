import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from topreco.config import DataConfig
from topreco.core.events import dataset_id, toy_events
from topreco.core.observables import c_hel
from topreco.core.prior import Spectra
from topreco.core.skim import SkimError, SkimWriter
from topreco.network.fit import data as training_data
from topreco.network.fit.data import read_training_data, share_training_data
from topreco.network.fit.rows import Rows, moved
from topreco.network.splits import fold_of, split_of
from topreco.network.task import TrainingError
from topreco.network.tasks.columns import top_columns
from topreco.network.tokens import Inputs


def read(config, scratch=None, **options):
    """Training data with the columns of the tops."""
    return read_training_data(config, top_columns, scratch, **options)


def write(path, events, truth, **metadata):
    with SkimWriter(path, row_group_size=40) as writer:
        writer.metadata |= metadata
        for start in range(0, len(events), 40):
            part = slice(start, start + 40)
            writer.write(events[part], None if truth is None else truth[part])
    return path


@pytest.fixture
def events():
    return toy_events(100, max_jets=5)


@pytest.fixture
def skim(tmp_path, events, truth_of):
    return write(tmp_path / "a.parquet", events, truth_of(events), selection={"jet": {"pt_min": 30.0}})


def test_reads_events_truth_and_splits(skim, events, truth_of):
    config = DataConfig(files=(skim,), folds=3)
    data = read(config)
    assert len(data) == 100
    for name, expected in Inputs.from_events(events).columns().items():
        assert torch.equal(data.columns[name], expected)
    np.testing.assert_allclose(data.columns["tops"], truth_of(events).tops, rtol=1e-6)
    assert data.columns["tops"].dtype == data.weight.dtype == torch.float32
    np.testing.assert_array_equal(data.split, split_of(events, config))
    np.testing.assert_array_equal(data.fold, fold_of(events, 3))


def test_summary_names_files_without_folders(skim, events, tmp_path):
    data = read(DataConfig(files=(skim,)))
    (file,) = data.summary["files"]
    assert file == {
        "name": "a.parquet",
        "events_read": 100,
        "events_used": 100,
        "selection": {"jet": {"pt_min": 30.0}},
    }
    assert data.summary["dataset_ids"] == [str(events.dataset[0])]
    counts = {name: part["events"] for name, part in data.summary["networks"][0].items()}
    assert sum(counts.values()) == data.summary["events"] == 100
    assert counts["test"] == (split_of(events, DataConfig()) == 2).sum()
    assert str(tmp_path) not in str(data.summary)


def test_spectra_of_a_complete_sample(skim, events, truth_of, tmp_path):
    """They stand for those of files that hold a part of the generated events."""
    truth, ones = truth_of(events), np.ones(100)
    whole = Spectra.of(truth, ones, truth[:30], ones[:30])
    part = dataclasses.replace(whole.scaled(2.0), complete=False)
    training = write(tmp_path / "part.parquet", events, truth, spectra=part.to_dict())
    complete = write(tmp_path / "whole.parquet", events, truth, spectra=whole.to_dict())
    assert "spectra" not in read(DataConfig(files=(training,))).summary
    data = read(DataConfig(files=(training,), spectra=(complete, complete)))
    found = Spectra.from_dict(data.summary["spectra"])
    np.testing.assert_array_equal(found.generated, 2 * whole.generated)
    assert found.complete
    for path, state in ((training, "spectra of a part of the generated events"), (skim, "no spectra")):
        with pytest.raises(TrainingError, match=rf"{path.name}: {state} \(data.spectra\)"):
            read(DataConfig(files=(skim,), spectra=(path,)))


def test_the_splits_of_a_network_share_no_event(skim):
    data = read(DataConfig(files=(skim,), folds=3))
    tested = []
    for fold in range(3):
        parts = [set(part.tolist()) for part in data.indices(fold)]
        assert sum(map(len, parts)) == len(set.union(*parts)) == 100
        tested += sorted(parts[2])
    # Every event is tested exactly once.
    assert sorted(tested) == list(range(100))


def test_unusable_events_are_left_out(tmp_path, events, truth_of):
    truth = truth_of(events)
    truth.tops[3] = np.nan
    truth.dileptonic[4:10] = False
    path = write(tmp_path / "b.parquet", events, truth)
    assert len(read(DataConfig(files=(path,)))) == 93
    assert len(read(DataConfig(files=(path,), require_dileptonic=False))) == 99


def test_c_hel_of_true_tops_and_leptons(tmp_path, events, truth_of):
    truth = truth_of(events)
    truth.lepton[:] = np.stack([events.lepton_minus, events.lepton_plus], 1)
    truth.lepton[7] = np.nan
    data = read(DataConfig(files=(write(tmp_path / "c.parquet", events, truth),)))
    expected = c_hel(truth.tops, truth.lepton)
    np.testing.assert_allclose(data.columns["c_hel"], expected, atol=1e-5)
    assert data.columns["c_hel"].isnan().nonzero().tolist() == [[7]]
    assert data.to(torch.device("cpu")).columns["c_hel"].dtype == torch.float32


def test_columns_are_those_of_the_task(skim, tmp_path, events):
    """Of every event, also of skims without truth where a task needs none."""
    data_skim = write(tmp_path / "data.parquet", events, None)

    def columns_of(events, truth):
        assert (truth is None) == (path is data_skim)
        return {
            "met": torch.from_numpy(events.met.astype("float32")),
            "n": torch.from_numpy(events.jet_mask).sum(1),
        }

    for path in (skim, data_skim):
        data = read_training_data(DataConfig(files=(path,)), columns_of, needs_truth=False)
        assert set(data.columns) == {"met", "n"}
        assert (data.columns["met"].dtype, data.columns["n"].dtype) == (torch.float32, torch.int64)
        np.testing.assert_array_equal(data.columns["n"], events.jet_mask.sum(1))
        np.testing.assert_array_equal(data.split, split_of(events, DataConfig()))


def test_max_events(skim):
    data = read(DataConfig(files=(skim, skim), max_events=130))
    assert len(data) == 130
    assert [file["events_read"] for file in data.summary["files"]] == [65, 65]
    # However it is shared out, the sum is right.
    for n, each in {7: [2, 3, 2], 299: [100, 99, 100], 1: [0, 1, 0], 500: [100, 100, 100]}.items():
        data = read(DataConfig(files=(skim, skim, skim), max_events=n))
        assert [file["events_read"] for file in data.summary["files"]] == each


def replaced(events, name, value):
    array = getattr(events, name).copy()
    array.reshape(len(array), -1)[7, 0] = value
    return dataclasses.replace(events, **{name: array})


def test_errors(tmp_path, events, skim, truth_of):
    def read_files(*files):
        return read(DataConfig(files=files))

    with pytest.raises(TrainingError, match=r"data.files: no skims given"):
        read_files()
    with pytest.raises(SkimError, match=r"missing.parquet: no such file"):
        read_files(skim, tmp_path / "missing.parquet")
    data = write(tmp_path / "data.parquet", events, None)
    with pytest.raises(
        TrainingError, match=r"data.parquet: no truth in this skim; training needs simulation"
    ):
        read_files(skim, data)
    with SkimWriter(tmp_path / "empty.parquet") as writer:
        writer.write(events[:0], truth_of(events[:0]))
    with pytest.raises(TrainingError, match=r"empty.parquet: no events in this skim"):
        read_files(skim, tmp_path / "empty.parquet")
    wide = toy_events(10, max_jets=6)
    write(tmp_path / "wide.parquet", wide, truth_of(wide))
    with pytest.raises(TrainingError, match=r"wide.parquet: 6 padded jets per event, 5 in .*a.parquet"):
        read_files(skim, tmp_path / "wide.parquet")
    hadronic = truth_of(events)
    hadronic.dileptonic[:] = False
    write(tmp_path / "hadronic.parquet", events, hadronic)
    with pytest.raises(
        TrainingError, match=r"no event of .*hadronic.parquet has two true tops, both decayed"
    ):
        read_files(tmp_path / "hadronic.parquet")
    zero = truth_of(events)
    zero.tops[:3] = 0
    write(tmp_path / "zero.parquet", events, zero)
    with pytest.raises(TrainingError, match=r"zero.parquet: 3 events with true tops of no energy"):
        read_files(tmp_path / "zero.parquet")


@pytest.mark.parametrize("name", ["lepton_plus", "jets", "jet_btag", "met", "weight"])
def test_non_finite_values_are_refused(tmp_path, events, name, truth_of):
    path = write(tmp_path / "nan.parquet", replaced(events, name, np.nan), truth_of(events))
    with pytest.raises(TrainingError, match=f"nan.parquet: 1 events with non-finite {name}"):
        read(DataConfig(files=(path,)))


def test_padded_slots_may_hold_anything(tmp_path, events, truth_of):
    jets = np.where(events.jet_mask[..., None], events.jets, np.nan)
    path = write(tmp_path / "pad.parquet", dataclasses.replace(events, jets=jets), truth_of(events))
    assert len(read(DataConfig(files=(path,)))) == 100


@pytest.mark.parametrize("normalise", [True, False])
def test_no_dataset_drowns_another(tmp_path, events, normalise, truth_of):
    """Generators differ in their unit of weight; within a dataset ratios and signs stay."""
    weight = np.where(np.arange(100) % 4 == 0, -1.0, 2.0)
    files = []
    for name, unit in (("a", 1.0), ("b", 5000.0)):
        own = dataclasses.replace(
            events, weight=unit * weight, dataset=np.full(100, dataset_id(name), np.uint64)
        )
        files.append(write(tmp_path / f"{name}.parquet", own, truth_of(events)))
    data = read(DataConfig(files=tuple(files), normalise_weights=normalise))
    units = (1 / 1.75, 1 / 1.75) if normalise else (1.0, 5000.0)
    for part, unit in zip(data.weight.split(100), units, strict=True):
        np.testing.assert_allclose(part, unit * weight, rtol=1e-6)
    assert data.summary["dataset_ids"] == [str(i) for i in sorted(dataset_id(n) for n in "ab")]


def test_weights_of_zero_stay_zero(tmp_path, events, truth_of):
    empty = dataclasses.replace(events, weight=np.zeros(100))
    path = write(tmp_path / "zero.parquet", empty, truth_of(events))
    assert (read(DataConfig(files=(path,))).weight == 0).all()


# ---- streamed --------------------------------------------------------------------------------------------


def columns(data):
    return data.columns | {n: getattr(data, n) for n in ("weight", "split", "fold")}


def assert_same(one, two):
    for (name, a), b in zip(columns(one).items(), columns(two).values(), strict=True):
        assert a.dtype == b.dtype, name
        assert a.shape == b.shape, name
        assert a.numpy().tobytes() == b.numpy().tobytes(), name
    assert one.summary == two.summary


@pytest.fixture
def two_skims(tmp_path, events, truth_of):
    """Two datasets of differing weights; not all events are usable, one has no c_hel."""
    files = []
    for name, unit in (("b", 30.0), ("a", -1.0)):
        truth = truth_of(events)
        truth.lepton[:] = np.stack([events.lepton_minus, events.lepton_plus], 1)
        truth.lepton[7] = np.nan
        truth.tops[[3, 50]] = np.nan
        own = dataclasses.replace(
            events, weight=unit + np.arange(100.0), dataset=np.full(100, dataset_id(name), np.uint64)
        )
        files.append(write(tmp_path / f"{name}.parquet", own, truth))
    return files


@pytest.mark.parametrize("changes", [{}, {"folds": 3}, {"max_events": 130}, {"normalise_weights": False}])
def test_streamed_data_are_those_in_memory(two_skims, tmp_path, changes):
    config = DataConfig(files=tuple(two_skims), **changes)
    streamed = config.model_copy(update={"stream": True})
    scratch = tmp_path / "scratch"
    in_memory, data = read(config), read(streamed, scratch)
    assert in_memory.scratch is None
    assert data.scratch == scratch
    assert_same(in_memory, data)
    index = torch.tensor([150, 2, 77]) % len(data)
    one, two = (each.take(index, index.device) for each in (in_memory, data))
    assert one.keys() == two.keys() == data.columns.keys()
    for name in one:
        assert one[name].numpy().tobytes() == two[name].numpy().tobytes()
        assert one[name].stride() == two[name].stride()
    # The file has no name.
    assert list(scratch.iterdir()) == []
    elsewhere = config.model_copy(update={"stream": True, "cache": tmp_path / "cache"})
    assert read(elsewhere, scratch).scratch == tmp_path / "cache"


def test_many_events_are_streamed_unasked(skim, tmp_path, monkeypatch):
    for limit, config, expected in (
        (100, DataConfig(files=(skim,)), None),
        (99, DataConfig(files=(skim,)), tmp_path),
        (99, DataConfig(files=(skim,), max_events=99), None),
        (99, DataConfig(files=(skim,), stream=False), None),
    ):
        monkeypatch.setattr(training_data, "STREAM_FROM", limit)
        assert read(config, tmp_path).scratch == expected


def in_threads(config, path, n):
    """What each of n "processes" of one machine gets from `share_training_data`."""
    together = threading.Barrier(n, timeout=600)
    results = {}

    def run(rank):
        try:
            results[rank] = share_training_data(
                config, top_columns, path, writes=rank == 0, barrier=together.wait
            )
        except TrainingError as error:
            results[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [results[rank] for rank in range(n)]


def test_processes_share_one_file(two_skims, tmp_path):
    config = DataConfig(files=tuple(two_skims), stream=True)
    path = tmp_path / "shared" / ".data.tmp"
    path.parent.mkdir()
    path.write_text("what a killed training left")
    expected = read(config.model_copy(update={"stream": False}))
    for data in in_threads(config, path, 3):
        assert_same(expected, data)
    assert list(path.parent.iterdir()) == []
    for data in in_threads(config.model_copy(update={"stream": False}), path, 2):
        assert data.scratch is None


def test_a_process_that_cannot_write_keeps_no_other_waiting(two_skims, tmp_path):
    (tmp_path / "file").touch()
    config = DataConfig(files=tuple(two_skims), stream=True)
    first, *others = in_threads(config, tmp_path / "file" / ".data.tmp", 3)
    assert "cannot hold the temporary file" in first
    assert all("did the first process fail?" in said for said in others)


def full_disk(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_no_room_for_the_temporary_file(skim, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "a", "Not a directory")):
        config = DataConfig(files=(skim,), stream=True, cache=folder)
        with pytest.raises(TrainingError, match=rf"{folder}: cannot hold .* \({reason}\); data.cache names"):
            read(config)
    config = DataConfig(files=(skim,), stream=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with pytest.raises(TrainingError, match=rf"{tmp_path}: cannot hold .* \(File too large\)"):
            read(config, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    monkeypatch.setattr(Rows, "append", full_disk)
    with pytest.raises(TrainingError, match=rf"{tmp_path}: cannot hold .* \(No space left on device\)"):
        read(config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "file"]


# Reads a skim several times and prints the anonymous memory after each; or dies half-way.
READING = """
import json, os, signal, sys
from pathlib import Path
import torch
from topreco.config import DataConfig
from topreco.network.fit.data import read_training_data
from topreco.network.fit.rows import Rows
from topreco.network.tasks.columns import top_columns

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    # The kernel may swap out what is not read for a while.
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "VmSwap:")))

file, stream, scratch, killed = json.loads(sys.argv[1])
if killed:
    append = Rows.append
    def killing(self, columns):
        append(self, columns)
        if len(self) > 10_000:
            os.kill(os.getpid(), signal.SIGKILL)
    Rows.append = killing
kept, memory = [], []
for _ in range(5):
    config = DataConfig(files=(file,), stream=stream)
    kept.append(data := read_training_data(config, top_columns, Path(scratch)))
    total = 0.0
    for part in torch.arange(len(data)).split(1000):
        columns = data.take(part, part.device)
        total += float(columns["jets"].sum() + columns["tops"].sum())
    memory.append(anonymous())
print(json.dumps([len(data), memory, total]))
"""


# Freed memory is given back at once: what allocators keep for later is up to 20 MB, more or less.
AT_ONCE = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "100000",
}


@pytest.fixture(scope="module")
def reading(tmp_path_factory, truth_of):
    """Function that reads 60 000 events several times in a process of its own."""
    folder = tmp_path_factory.mktemp("reading")
    events = toy_events(2000)
    with SkimWriter(folder / "skim.parquet", row_group_size=2000) as writer:
        for _ in range(30):
            writer.write(events, truth_of(events))

    def run(stream, scratch, killed=False):
        scratch.mkdir()
        order = json.dumps([str(writer.path), stream, str(scratch), killed])
        return subprocess.run(
            [sys.executable, "-c", READING, order],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **AT_ONCE},
        )

    return run


def test_memory_does_not_grow_with_streamed_data(reading, tmp_path):
    """In memory an event takes 0.37 kB; streamed, its weight, split and fold and what reading takes."""
    found = {}
    for stream in (False, True):
        process = reading(stream, tmp_path / str(stream))
        assert process.returncode == 0, process.stderr
        found[stream] = json.loads(process.stdout)
        assert list((tmp_path / str(stream)).iterdir()) == []
    (n, in_memory, total), (same_n, streamed, same_total) = found.values()
    assert n == same_n == 60_000
    assert total == same_total
    # By the slope, since what the first reading takes besides is the allocators' affair.
    in_memory, streamed = (np.polyfit(n * np.arange(5), memory, 1)[0] for memory in (in_memory, streamed))
    assert in_memory > 200
    assert streamed < in_memory / 2


def test_a_killed_reader_leaves_nothing(reading, tmp_path):
    process = reading(True, tmp_path / "scratch", killed=True)
    assert process.returncode == -signal.SIGKILL
    assert list((tmp_path / "scratch").iterdir()) == []


def test_columns_move_whole(monkeypatch):
    monkeypatch.setattr("topreco.network.fit.rows._AT_ONCE", 7)
    column = torch.arange(40.0).reshape(20, 2)
    there = moved(column, torch.device("meta"))
    assert (there.shape, there.dtype, there.device.type) == (column.shape, column.dtype, "meta")
    assert moved(column, column.device) is column
