"""Kill commands at random moments, start them again, and compare with what an undisturbed run gives.

    python scripts/faults/kill.py                        # 20 kills of each command
    python scripts/faults/kill.py train run --n 3 --seed 5

Each command works on small inputs in a process group of its own, which gets SIGKILL after a random part of
the time that it takes, every second time in the last tenth, where most is written. Right after the kill
every file under a final name must be what an undisturbed run writes, or, where it grows with the work (state
and metrics of a training, finished chunks and blocks), whole and readable. Then the same command runs to its
end, and its result must be the same: bytes of models, of exported ones too, and of skims, rows of friend
trees and events, histograms to 1e-9. The exit code is the number of commands for which that failed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# All that the commands import, so that the clock runs while they work.
import coffea.util
import inputs
import numpy as np
import onnxscript  # noqa: F401
import pyarrow.dataset
import pyarrow.parquet
import topreco.network.tasks.quantile_training
import torch
import uproot

import topreco.evaluation.figures
import topreco.input.skimming
import topreco.network.export.onnx
import topreco.network.fit.loop
import topreco.runs.run
import topreco.simulation  # noqa: F401
from topreco.cli import main as topreco_main
from topreco.runs.results import load_results

TIMEOUT = 300


class Command:
    """A command: how to start it, what it gives, and what may lie about when it was killed."""

    def __init__(self, shared: Path) -> None:
        self.shared = shared

    def arguments(self, folder: Path) -> list[str]:
        """Command line that writes below a folder."""
        raise NotImplementedError

    def result(self, folder: Path) -> dict[str, Any]:
        """What it wrote, by a name, comparable with ==."""
        raise NotImplementedError

    def check(self, folder: Path, reference: Path) -> None:
        """Raise `AssertionError` if a file under its final name is not whole."""
        for path in folder.rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                self.check_file(path, reference / path.relative_to(folder))

    def check_file(self, path: Path, reference: Path) -> None:
        """The same for one file; by default it must be that of the undisturbed run."""
        assert reference.is_file(), f"{path}: an undisturbed run leaves no such file"
        assert path.read_bytes() == reference.read_bytes(), f"{path}: differs from that of an undisturbed run"


class Train(Command):
    """`topreco-train`, two folds of eight epochs; it resumes."""

    def arguments(self, folder: Path) -> list[str]:
        skim = self.shared / "train.parquet"
        if not skim.exists():
            inputs.skim_file(skim, 200)
        backbone = (
            "{kind: lgatr_slim, blocks: 1, vector_channels: 4, scalar_channels: 8, heads: 1, dropout: 0.1}"
        )
        return [
            *("train", "--quiet", f"output={folder / 'out'}", f"data.files=[{skim}]", "data.folds=2"),
            *(f"model.backbone={backbone}", "model.tokens.max_jets=4"),
            *("epochs=8", "batch_size=16", "accelerator=cpu", "threads=1"),
        ]

    def result(self, folder: Path) -> dict[str, Any]:
        return {
            "model": (folder / "out" / "model.safetensors").read_bytes(),
            "metrics": self._rows(folder / "out" / "metrics.jsonl"),
        }

    @staticmethod
    def _rows(path: Path) -> list[dict[str, Any]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in ("seconds", "events_per_second")} for row in rows]

    def check_file(self, path: Path, reference: Path) -> None:
        if path.name == "state.ckpt":
            torch.load(path, weights_only=True)
        elif path.name == "metrics.jsonl":
            rows, whole = self._rows(path), self._rows(reference)
            assert rows == whole[: len(rows)], "metrics.jsonl: no beginning of that of an undisturbed run"
        elif path.name == "metrics.csv":
            lines = path.read_text().splitlines()
            assert len({line.count(",") for line in lines}) == 1, "metrics.csv: half a line"
        else:
            super().check_file(path, reference)


class StreamedTrain(Train):
    """The same with the events in a temporary file."""

    def arguments(self, folder: Path) -> list[str]:
        return [*super().arguments(folder), "data.stream=true"]


class Quantiles(Command):
    """`topreco quantiles`, streamed; it starts afresh."""

    def arguments(self, folder: Path) -> list[str]:
        skim, model = self.shared / "train.parquet", self.shared / "model.safetensors"
        if not skim.exists():
            inputs.skim_file(skim, 400)
            inputs.model_file(model)
        backbone = "{kind: lgatr_slim, blocks: 1, vector_channels: 4, scalar_channels: 8, heads: 1}"
        return [
            *("quantiles", str(model), "-o", str(folder / "out.safetensors"), "--quiet"),
            *(f"data.files=[{skim}]", "data.stream=true", "quantiles.epochs=4", "threads=1"),
            f"model.quantiles={{backbone: {backbone}, hidden: 16}}",
        ]

    def result(self, folder: Path) -> dict[str, Any]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


class Skim(Command):
    """`topreco skim` of a file in 20 chunks; it starts afresh."""

    def arguments(self, folder: Path) -> list[str]:
        return [
            *(
                "skim",
                str(_nano(self.shared)),
                "-o",
                str(folder / "skim.parquet"),
                "--dataset",
                "tt",
                "--quiet",
            ),
            "step_size=200",
        ]

    def result(self, folder: Path) -> dict[str, Any]:
        return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


class Run(Command):
    """`topreco run` with checkpoints and friend trees; it resumes."""

    def arguments(self, folder: Path) -> list[str]:
        return [
            *(
                "run",
                str(_nano(self.shared)),
                "-m",
                "ellipse_closest",
                "--dataset",
                "tt",
                "--quiet",
                "--no-plots",
            ),
            *(
                "-o",
                str(folder / "out"),
                "--output-columns",
                str(folder / "friends"),
                "columns_format=parquet",
            ),
            *(
                f"checkpoint={folder / 'checkpoints'}",
                "chunk_size=400",
                "histograms.observables=[m_tt, pt_top]",
            ),
        ]

    def result(self, folder: Path) -> dict[str, Any]:
        histograms = load_results(folder / "out")["histograms"]
        rows = pyarrow.dataset.dataset(folder / "friends" / "tt" / "nominal").to_table().sort_by("entry")
        columns = {f"row {name}": rows[name].to_numpy() for name in rows.column_names}
        return {
            "cutflow": json.loads((folder / "out" / "cutflow.json").read_text()),
            **columns,
            **{f"histogram {name}": histograms[name].view(flow=True) for name in histograms},
        }

    def check_file(self, path: Path, reference: Path) -> None:
        if path.suffix == ".parquet":
            ours, theirs = (pyarrow.parquet.read_table(each) for each in (path, reference))
            columns = [name for name in theirs.column_names if name != "file"]
            assert all(same(ours[name].to_numpy(), theirs[name].to_numpy()) for name in columns), (
                f"{path}: other rows"
            )
        elif path.suffix == ".coffea":
            coffea.util.load(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        else:
            assert path.suffix == ".md", path


class Export(Command):
    """`topreco export` with a Triton repository; it starts afresh."""

    def arguments(self, folder: Path) -> list[str]:
        model = self.shared / "model.safetensors"
        if not model.exists():
            inputs.model_file(model)
        return ["export", str(model), "-o", str(folder / "model.onnx"), "--triton", str(folder / "triton")]

    def result(self, folder: Path) -> dict[str, Any]:
        paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


class Simulate(Command):
    """`topreco simulate` of eight blocks; it resumes."""

    def arguments(self, folder: Path) -> list[str]:
        return [
            *(
                "simulate",
                "-n",
                "80",
                "-o",
                str(folder / "tt.root"),
                "--workers",
                "1",
                "--quiet",
                "--overwrite",
            ),
            *("mpi=false", "block_size=10"),
        ]

    def result(self, folder: Path) -> dict[str, Any]:
        with uproot.open(folder / "tt.root") as file:
            return {name: file["Events"][name].array().to_list() for name in file["Events"].keys()}  # noqa: SIM118

    def check(self, folder: Path, reference: Path) -> None:
        if (folder / "tt.root").exists():
            assert self.result(folder) == self.result(reference), "tt.root: other events"
        for path in (folder / "tt.root.parts").glob("block-*.parquet"):
            pyarrow.parquet.read_table(path)


COMMANDS: dict[str, Callable[[Path], Command]] = {
    "train": Train,
    "train-streamed": StreamedTrain,
    "quantiles": Quantiles,
    "skim": Skim,
    "run": Run,
    "export": Export,
    "simulate": Simulate,
}


def _nano(shared: Path) -> Path:
    path = shared / "nano.root"
    return path if path.exists() else inputs.nano_file(path, 4000)


def start(arguments: list[str], log: Path) -> int:
    """Fork a process, in a group of its own, that runs a command; its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(target, standard)
    sys.argv = ["topreco", *arguments]
    code = 70
    try:
        topreco_main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(pid: int, seconds: float) -> int | None:
    """Exit code of a process; None if it goes on for longer than that."""
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            return None
        time.sleep(0.002)


def kill(pid: int) -> None:
    """SIGKILL to a process and all that it started."""
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def complete(arguments: list[str], log: Path) -> float:
    """Run a command to its end; seconds."""
    started = time.monotonic()
    pid = start(arguments, log)
    code = finish(pid, TIMEOUT)
    if code is None:
        kill(pid)
    assert code == 0, f"exit code {code}: {log.read_text()[-2000:]}"
    return time.monotonic() - started


def same(a: Any, b: Any) -> bool:
    """Equality, of arrays to 1e-9 of their largest value."""
    if not isinstance(b, np.ndarray):
        return bool(a == b)
    if b.dtype.names:
        return all(same(a[name], b[name]) for name in b.dtype.names)
    if b.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    scale = np.nanmax(np.abs(b), initial=1)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-9, atol=1e-9 * scale, equal_nan=True))


def campaign(name: str, n: int, seed: int) -> dict[str, Any]:
    """Kill a command n times; what became of it."""
    rng = random.Random(f"{name} {seed}")
    failures, moments, leftovers, ended = [], [], 0, 0
    with tempfile.TemporaryDirectory(prefix="topreco-kill-") as root:
        shared = Path(root, "shared")
        shared.mkdir()
        command = COMMANDS[name](shared)
        reference = Path(root, "reference")
        reference.mkdir()
        log = Path(root, "log.txt")
        arguments = command.arguments(reference)
        complete(arguments, log)
        # The first time may have filled caches of compiled code.
        shutil.rmtree(reference)
        reference.mkdir()
        seconds = complete(arguments, log)
        expected = command.result(reference)
        for number in range(n):
            # The folder keeps its name, which some outputs know.
            moment = seconds * (1 - rng.random() / 10 if number % 2 else rng.random())
            folder = Path(root, "work")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            arguments = command.arguments(folder)
            try:
                pid = start(arguments, log)
                if (code := finish(pid, moment)) is None:
                    kill(pid)
                else:
                    assert code == 0, f"exit code {code}: {log.read_text()[-2000:]}"
                    ended += 1
                command.check(folder, reference)
                leftovers += sum(path.name.startswith(".") for path in folder.rglob("*"))
                if code is None:
                    complete(arguments, log)
                found = command.result(folder)
                assert found.keys() == expected.keys(), (
                    f"{set(found) ^ set(expected)} only in one of the results"
                )
                different = [key for key in expected if not same(found[key], expected[key])]
                assert not different, f"results differ: {different}"
            except Exception:
                failures.append({"kill": number, "after": round(moment, 3), "what": traceback.format_exc()})
            moments.append(round(moment, 2))
    return {
        "kills": n - ended,
        "ended_before": ended,
        "seconds_undisturbed": round(seconds, 2),
        "temporary_files_left": leftovers,
        "moments": moments,
        "failures": failures,
    }


def main() -> int:
    """Run the campaign and print a line for each command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "commands", nargs="*", metavar="COMMAND", help=f"of {', '.join(COMMANDS)}; default all"
    )
    parser.add_argument("--n", type=int, default=20, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    if unknown := set(arguments.commands) - set(COMMANDS):
        parser.error(f"no command {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
    # A fork must not find the pools of its parent's threads.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    results = {}
    for name in arguments.commands or COMMANDS:
        results[name] = result = campaign(name, arguments.n, arguments.seed)
        print(
            f"{name:14} {result['kills']} kills within {result['seconds_undisturbed']} s "
            f"({result['ended_before']} ended before): {len(result['failures'])} failures, "
            f"{result['temporary_files_left']} temporary files left",
            flush=True,
        )
        for failure in result["failures"]:
            print(f"  kill {failure['kill']} after {failure['after']} s:\n{failure['what']}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return sum(bool(result["failures"]) for result in results.values())


if __name__ == "__main__":
    sys.exit(main())
