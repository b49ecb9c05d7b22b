"""Inputs that change while they are read, workers that die, memory that runs out: one error, no output."""

import os
import re
import signal
import sys

import good_files
import numpy as np
import pyarrow as pa
import pytest

from topreco.cli import main
from topreco.config import DataConfig, RunConfig, SelectionConfig
from topreco.core.errors import TopRecoError
from topreco.core.skim import Skim, SkimError
from topreco.input import branches, skimming
from topreco.input.nano import InputError
from topreco.input.skimming import make_skim
from topreco.network.fit.data import read_training_data
from topreco.network.tasks.columns import top_columns
from topreco.runs.run import run

pytestmark = pytest.mark.faults


@pytest.fixture
def nano_file(tmp_path):
    return good_files.nano_file(tmp_path / "nano.root", 600)


def truncate(path):
    os.truncate(path, path.stat().st_size // 3)


def overwrite(path):
    with path.open("r+b") as file:
        file.write(b"\xa5" * path.stat().st_size)


@pytest.mark.parametrize("change", [truncate, overwrite])
def test_a_file_that_changes_while_it_is_skimmed(nano_file, tmp_path, monkeypatch, change):
    select, calls = skimming.select, []

    def changing(*arguments, **options):
        if len(calls) == 1:
            change(nano_file)
        calls.append(1)
        return select(*arguments, **options)

    monkeypatch.setattr(skimming, "select", changing)
    with pytest.raises(InputError, match=r"nano\.root: .*cannot be read, the file may be damaged") as error:
        make_skim([nano_file], tmp_path / "a.parquet", SelectionConfig(), step_size=100, progress=False)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["nano.root"]


def test_a_file_that_vanishes_while_it_is_skimmed(nano_file, tmp_path, monkeypatch):
    select = skimming.select

    def removing(*arguments, **options):
        nano_file.unlink(missing_ok=True)
        return select(*arguments, **options)

    monkeypatch.setattr(skimming, "select", removing)
    with pytest.raises(InputError, match=r"nano\.root: .*cannot be read, the file is no longer there"):
        make_skim([nano_file], tmp_path / "a.parquet", SelectionConfig(), step_size=100, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [truncate, overwrite])
def test_a_skim_that_changes_while_it_is_read(tmp_path, monkeypatch, change):
    path = good_files.skim_file(tmp_path / "skim.parquet", 400, row_group_size=100)
    read = Skim.read_row_group

    def changing(self, index):
        if index == 1:
            change(path)
        return read(self, index)

    monkeypatch.setattr(Skim, "read_row_group", changing)
    with pytest.raises(SkimError, match=r"skim\.parquet: damaged skim") as error:
        read_training_data(DataConfig(files=(path,)), top_columns)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error",
    [
        pa.lib.ArrowMemoryError("malloc of size 64 failed"),
        OSError("Failed to launch worker thread: Resource"),
    ],
)
def test_memory_that_runs_out_is_no_damage(tmp_path, monkeypatch, error):
    def starved(*arguments):
        raise error

    skim = Skim(good_files.skim_file(tmp_path / "skim.parquet", 10))
    monkeypatch.setattr("pyarrow.parquet.ParquetFile.read", starved)
    with pytest.raises(SkimError, match=r"skim\.parquet: out of memory, or a damaged skim \((malloc|Failed)"):
        skim.read()


@pytest.fixture
def run_with(nano_file, tmp_path, monkeypatch):
    """Function that runs one method, an object, through a coffea executor."""

    def start(method, executor, **changes):
        monkeypatch.setattr("topreco.runs.run.load_methods", lambda *names, **options: [method])
        config = RunConfig(
            fileset={"tt": (str(nano_file),)},
            methods=("loose",),
            chunk_size=300,
            histograms={"observables": ("m_tt",)},
            output=tmp_path / "out",
            executor=executor,
            workers=1,
            **changes,
        )
        with pytest.raises(TopRecoError) as error:
            run(config, progress=False)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    return start


def test_a_worker_that_dies(run_with):
    class Deadly:
        name, fingerprint, uses_event_key = "deadly", "", False

        def __call__(self, events):
            os.kill(os.getpid(), signal.SIGKILL)

    assert run_with(Deadly(), "futures").startswith("a worker died, which most often means out of memory")


@pytest.mark.parametrize("executor", ["iterative", pytest.param("futures", marks=pytest.mark.exhaustive)])
def test_a_chunk_too_large_for_memory(run_with, executor):
    class Large:
        name, fingerprint, uses_event_key = "large", "", False

        def __call__(self, events):
            return np.empty((len(events), 1 << 45))

    # No chunk is skipped for that.
    said = run_with(Large(), executor, skip_bad_files=True)
    assert re.match(r"a worker ran out of memory \(.*35184372088832.*\): fewer events at a time", said)


def test_a_branch_too_large_for_memory(nano_file, tmp_path, monkeypatch):
    def too_large(*arguments, **options):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr(branches.ak, "to_numpy", too_large)
    with pytest.raises(TopRecoError, match=r"nano\.root: out of memory .*7 TiB.*: fewer events") as error:
        make_skim([nano_file], tmp_path / "a.parquet", SelectionConfig(), progress=False)
    # A run shall not skip it as a bad file.
    assert not isinstance(error.value, InputError)


@pytest.mark.parametrize(
    "raised",
    [
        MemoryError(),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: 7 TB"),
        RuntimeError("torch.onnx failed"),
    ],
)
def test_out_of_memory_on_the_command_line(monkeypatch, capsys, raised):
    def too_large(*arguments, **options):
        raise raised from MemoryError()

    monkeypatch.setattr("topreco.network.train.train", too_large)
    monkeypatch.setattr(sys, "argv", ["topreco", "train"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: out of memory (")
    assert error.count("\n") == 1


def test_other_failures_keep_their_traceback(monkeypatch):
    def failing(*arguments, **options):
        raise RuntimeError("a defect")

    monkeypatch.setattr("topreco.network.train.train", failing)
    monkeypatch.setattr(sys, "argv", ["topreco", "train"])
    with pytest.raises(RuntimeError, match="a defect"):
        main()
