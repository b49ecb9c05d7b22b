"""Commands that are killed or lack disk or memory leave whole files only, and give their result afterwards.

Right after its end every file under a final name must be what an undisturbed run writes, or, where it grows
with the work (state and metrics of a training, finished chunks and blocks), whole and readable.
Then the same command runs to its end, and its result must be the same: bytes of models, of exported ones too,
and of skims, rows of friend trees and events, histograms to 1e-9.
"""

import csv
import json
import os
import random
import shutil
import subprocess
import time
from contextlib import contextmanager, nullcontext

import coffea.util
import good_files
import numpy as np
import pyarrow.parquet
import pytest
import torch
import uproot
from isolated import command, kill, start

pytestmark = [pytest.mark.faults, pytest.mark.exhaustive, pytest.mark.timeout(3600)]

FULL = bool(os.environ.get("TOPRECO_FAULTS"))
KILLS = 20 if FULL else 2
SECONDS = 600

TRAINING = (
    "train --quiet output=OUT data.files=[IN/train.parquet] data.folds=2 model.tokens.max_jets=4 epochs=8 "
    "batch_size=16 accelerator=cpu threads=1"
)
BACKBONE = "{kind: lgatr_slim, blocks: 1, vector_channels: 4, scalar_channels: 8, heads: 1, dropout: 0.1}"
RUN = "-m ellipse_closest --dataset tt --quiet --no-plots chunk_size=400 columns_format=parquet"
COMMANDS = {
    # It resumes.
    "train": [*TRAINING.split(), f"model.backbone={BACKBONE}"],
    "train-streamed": [*TRAINING.split(), "data.stream=true", f"model.backbone={BACKBONE}"],
    # It starts afresh, as the next two do.
    "quantiles": [
        *"quantiles IN/model.safetensors -o OUT/out.safetensors --quiet".split(),
        *"data.files=[IN/train.parquet] data.stream=true quantiles.epochs=4 threads=1".split(),
        "data.validation_fraction=0.3",
        f"model.quantiles={{backbone: {BACKBONE}, hidden: 16}}",
    ],
    "skim": "skim IN/nano.root -o OUT/skim.parquet --dataset tt --quiet step_size=200".split(),
    "export": "export IN/model.safetensors -o OUT/model.onnx --triton OUT/triton".split(),
    # It resumes from its checkpoints.
    "run": [
        *f"run IN/nano.root {RUN} -o OUT/out --output-columns OUT/friends".split(),
        *("checkpoint=OUT/checkpoints", "histograms.observables=[m_tt, pt_top]"),
    ],
    # It resumes from its blocks.
    "simulate": (
        "simulate -n 80 -o OUT/tt.root --workers 1 --quiet --overwrite mpi=false block_size=10".split()
    ),
}
NAMES = [pytest.param(name, marks=pytest.mark.sim if name == "simulate" else ()) for name in COMMANDS]


def content(path):
    """Content of a file, comparable between two runs: without durations and names of files."""
    match path.suffix:
        case ".jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            times = ("seconds", "events_per_second")
            return [{key: value for key, value in row.items() if key not in times} for row in rows]
        case ".csv":
            rows = list(csv.reader(path.read_text().splitlines()))
            assert len({len(row) for row in rows}) == 1, f"{path}: half a line"
            return None
        case ".ckpt":
            return torch.load(path, weights_only=True) and None
        case ".coffea":
            found = coffea.util.load(path)
            histograms = found.get("histograms", {}) if isinstance(found, dict) else {}
            return {name: histograms[name].view(flow=True) for name in histograms}
        case ".json":
            found = json.loads(path.read_text())
            return found if path.name == "cutflow.json" else None
        case ".root":
            with uproot.open(path) as file:
                return file["Events"].arrays(library="np")
        case ".parquet" if "entry" in pyarrow.parquet.read_schema(path).names:
            table = pyarrow.parquet.read_table(path).sort_by("entry")
            return {name: table[name].to_numpy() for name in table.column_names if name != "file"}
        case ".parquet" if path.name.startswith("block-"):
            return pyarrow.parquet.read_table(path) and None
        case ".md" | ".yaml":
            return None
    return path.read_bytes()


def same(a, b):
    """Equality, of arrays to 1e-9 of their largest value."""
    if isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in b)
    if not isinstance(b, np.ndarray):
        return bool(a == b)
    if b.dtype.names:
        return all(same(a[name], b[name]) for name in b.dtype.names)
    if b.dtype == object:
        return a.shape == b.shape and all(map(np.array_equal, a, b))
    if b.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    scale = np.nanmax(np.abs(b), initial=1)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-9, atol=1e-9 * scale, equal_nan=True))


class Work:
    """A command in a folder that is always the same, for some outputs know its name."""

    def __init__(self, root, name):
        self.folder, self.log, self.name = root / "work", root / "log.txt", name
        given = root / "in"
        given.mkdir()
        self.arguments = [
            part.replace("IN/", f"{given}/").replace("OUT", str(self.folder)) for part in COMMANDS[name]
        ]
        good_files.nano_file(given / "nano.root", 4000)
        good_files.skim_file(given / "train.parquet", 400 if name == "quantiles" else 200)
        good_files.model_file(given / "model.safetensors")
        for _ in range(2):  # the first time may fill caches of compiled code
            self.clear()
            started = time.monotonic()
            self.complete()
            self.seconds = time.monotonic() - started
        self.reference = self.files()

    def clear(self):
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def start(self, **limits):
        return start(self.log, command, self.arguments, limits)

    def complete(self):
        """Run the command to its end."""
        process = self.start()
        process.join(SECONDS)
        if process.is_alive():
            kill(process)
        assert process.exitcode == 0, self.log.read_text()[-2000:]

    def files(self):
        """Content of every file under a final name."""
        paths = [path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(self.folder)): content(path) for path in paths}

    def check(self):
        """Every file under a final name is that of an undisturbed run, or its beginning."""
        for name, found in self.files().items():
            if name.endswith("metrics.jsonl"):
                assert found == self.reference[name][: len(found)], name
            elif not name.endswith("state.ckpt") and not name.startswith(("tt.root.parts", "checkpoints")):
                assert name in self.reference, f"an undisturbed run leaves no {name}"
                assert same(found, self.reference[name]), f"{name} differs from that of an undisturbed run"

    def complete_again(self):
        """The command ends as if it had not been disturbed."""
        self.complete()
        found = self.files()
        assert found.keys() == self.reference.keys()
        assert [name for name in found if not same(found[name], self.reference[name])] == []


@pytest.fixture(scope="module", params=NAMES)
def work(request, tmp_path_factory):
    return Work(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_and_started_again(work, number):
    """SIGKILL after a random part of the time, every second time in the last tenth, where most is written."""
    rng = random.Random(f"{work.name} {number}")
    work.clear()
    process = work.start()
    process.join(work.seconds * (1 - rng.random() / 10 if number % 2 else rng.random()))
    if process.is_alive():
        kill(process)
    else:
        assert process.exitcode == 0, work.log.read_text()[-2000:]
    work.check()
    work.complete_again()


@contextmanager
def mounted(folder, options):
    """A small file system in memory."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs to mount a file system")
    try:
        yield
    finally:
        # Lazily, since workers of a command that has ended may hold it for a moment.
        subprocess.run(["umount", "--lazy", folder], check=True)


SCARCE = {
    **{f"limit of {size} B": {"file_size": size} for size in (2_000, 20_000, 50_000)},
    **{f"disk of {size}": {"mount": f"size={size}"} for size in ("16k", "64k")},
    "read-only disk": {"mount": "size=16k,ro"},
}
if FULL:
    # Where a thread finds no memory to start with, the interpreter may wait for it for ever: nothing for a
    # test that must pass on any machine.
    SCARCE |= {f"memory of {size} MB": {"memory": size * 10**6} for size in (8, 16, 32)}


@pytest.mark.parametrize("case", SCARCE)
def test_disk_and_memory_run_out(work, case):
    """One line that says what ran out and no temporary file; or enough, and the command ends as ever."""
    limits = dict(SCARCE[case])
    work.clear()
    with mounted(work.folder, limits.pop("mount")) if "mount" in limits else nullcontext():
        process = work.start(**limits)
        process.join(SECONDS)
        if process.is_alive():
            # What hangs holds the folder, which could not be unmounted.
            kill(process)
        # torch logs some of its own lines before it raises.
        lines = work.log.read_text().splitlines(keepends=True)
        said = "".join(line for line in lines if "torch/export/_trace.py" not in line)
        if process.exitcode:
            assert process.exitcode == 1, said
            assert said.startswith("error: ")
            assert said.count("\n") == 1, said
            # A thread is what often does not fit any more.
            words = ("memory", "thread") if "memory" in case else (str(work.folder),)
            assert any(word in said for word in words), said
        work.check()
        assert [path.name for path in work.folder.rglob(".*")] == []
    work.complete_again()
