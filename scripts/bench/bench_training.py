"""Training from memory and streamed: how much of its time is spent on data, and how much memory it takes.

    python scripts/bench/bench_training.py [--json FILE]
    python scripts/bench/bench_training.py --timed 0 --events 1000000 10000000 --kinds streamed

Time: one epoch of a shipped recipe on one thread, in memory and streamed in turn. *Reading* is what happens
once, from skims to tensors; *loading* is taking the batches of training and validation. Reading counts in
full, as if there were no second epoch. Shares and rates of both are by the clock on the wall, for that is
what waiting for a disk costs; the whole is by the time of the processor, which other load leaves alone.

Memory: the largest anonymous memory (RssAnon, which no page cache is part of) of a process that trains for
one epoch, by number of events, with a network that costs nothing, since what a network takes does not depend
on their number. The events are toys of one skim, read again and again under other names of the dataset. The
growth is that between the smallest and the largest number of events; of fewer than half a million it would
be that of the sample for the standardisation, which has up to 10⁵ events.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from measuring import Measurement, paired_ratio, parser, report, spread
from rich.console import Console

from topreco.config import TrainConfig, load_config
from topreco.core.events import DileptonEvents, Truth, dataset_id, toy_events
from topreco.core.skim import Skim, SkimWriter
from topreco.network.fit.data import TrainingData, read_training_data
from topreco.network.fit.loop import Session, fit
from topreco.network.fit.state import Paths, read_state
from topreco.network.task import Columns, Task
from topreco.network.tasks.tops import TopNetwork, TopsTask
from topreco.network.tokens import Inputs
from topreco.network.train import task_of

SKIM_EVENTS = 100_000
KINDS = {"in memory": False, "streamed": True}
SHARE = 90.0
"""Target: percent of the time that is not spent on data."""
GROWTH = 100.0
"""Target: bytes of memory for each streamed event."""


def main() -> None:
    """Measure and print one table."""
    options = parser(__doc__)
    options.add_argument("--recipe", default="tops.yaml", help="whose epoch is timed")
    options.add_argument("--timed", type=int, default=10_000, help="events of that epoch; 0 for none")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--events", type=int, nargs="*", default=[500_000, 2_000_000], help="of memory")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of memory")
    options.add_argument("--folder", type=Path, help="for temporary files; by default the system's")
    options.add_argument("--child", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        train_without_network(**json.loads(arguments.child))
        return
    rows: list[Measurement] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.timed:
            rows += times(arguments.recipe, arguments.timed, arguments.repeats, Path(folder))
        if arguments.events:
            rows += memory(arguments.events, arguments.kinds, Path(folder))
    notes = [
        f"Times: one epoch of {arguments.recipe}, {arguments.timed} toy events; reading counts in full.",
        "Memory: largest RssAnon of a process that trains for one epoch with a network that costs nothing.",
    ]
    report("Training from memory and streamed", rows, arguments.json, notes)


def toy_skim(path: Path, n: int) -> Path:
    """Skim of random events whose tops are a lepton and a jet each, with the mass of a top quark."""
    events = toy_events(n)
    tops = events.lepton_p4 + events.jets[:, :2]
    tops[..., 0] = np.sqrt(172.5**2 + (tops[..., 1:] ** 2).sum(-1))
    flags, nothing = np.ones(n, bool), np.full((n, 2, 4), np.nan)
    no_tau, production = np.zeros((n, 2), bool), np.zeros(n, np.int8)
    truth = Truth(tops, nothing, nothing, events.lepton_p4, nothing, no_tau, flags, production)
    with SkimWriter(path) as writer:
        writer.write(events, truth)
    return path


# ---- time ------------------------------------------------------------------------------------------------


class Watched(TrainingData):
    """Training data that know how many events were taken from them, and how long that took."""

    taken, seconds = 0, 0.0

    def take(self, index: torch.Tensor, device: torch.device) -> Columns:
        """Columns of some events, on the clock."""
        start = time.perf_counter()
        columns = super().take(index, device)
        Watched.seconds += time.perf_counter() - start
        Watched.taken += len(index)
        return columns


def train(task: Task[Any], data: TrainingData, config: TrainConfig) -> None:
    """Train the networks of the tops, without writing a model file."""
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.launch()
    paths = Paths(config.output)
    paths.remove()
    session = Session(fabric, Console(quiet=True), paths, (config.seed,))
    fit(task, data, config, session, read_state(paths.state, {}))


def read(task: Task[Any], config: TrainConfig) -> TrainingData:
    """The training data, in memory or streamed."""
    config.output.mkdir(parents=True, exist_ok=True)
    return read_training_data(config.data, task.columns, config.output)


def times(recipe: str, n: int, repeats: int, folder: Path) -> list[Measurement]:
    """Where the time of an epoch goes, by kind."""
    skim = toy_skim(folder / "timed.parquet", n)
    measured: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    # The first round compiles.
    for repeat in range(repeats + 1):
        for kind, stream in KINDS.items():
            config = load_config(
                TrainConfig,
                recipe,
                [
                    *(f"data.files=[{skim}]", f"data.stream={str(stream).lower()}", "data.test_fraction=0"),
                    *("epochs=1", "accelerator=cpu", "threads=1", "model.quantiles=null"),
                    f"output={folder / 'timed'}",
                ],
            )
            found = timed(config)
            if repeat:
                measured[kind].append(found)
    rows = []
    first = next(iter(KINDS))
    for key, unit in TIMES.items():
        columns = {kind: [each[key] for each in every] for kind, every in measured.items()}
        for kind, values in columns.items():
            rows.append(
                Measurement(
                    f"{key}, {kind}",
                    unit,
                    statistics.median(values),
                    spread(values),
                    ratio_to=f"{key}, {first}" if kind != first and unit != "%" else None,
                    ratio=paired_ratio(values, columns[first]) if kind != first and unit != "%" else None,
                    target=SHARE if key == "not on data" else None,
                )
            )
    return rows


TIMES = {"whole": "events/CPU s", "not on data": "%", "reading": "events/s", "loading": "events/s"}
"""What `timed` finds, and its unit."""


def timed(config: TrainConfig) -> dict[str, float]:
    """Train, and say where the time went."""
    task = task_of(config)
    Watched.taken, Watched.seconds = 0, 0.0
    start, cpu = time.perf_counter(), time.process_time()
    data = Watched(**vars(read(task, config)))
    reading = time.perf_counter() - start
    train(task, data, config)
    seconds = time.perf_counter() - start
    return {
        "whole": Watched.taken / (time.process_time() - cpu),
        "not on data": 100 * (1 - (reading + Watched.seconds) / seconds),
        "reading": Watched.taken / reading,
        "loading": Watched.taken / Watched.seconds,
    }


# ---- memory ----------------------------------------------------------------------------------------------


def memory(numbers: list[int], kinds: list[str], folder: Path) -> list[Measurement]:
    """Largest anonymous memory in MB by kind and number of events, and its growth in bytes per event."""
    skim = toy_skim(folder / "memory.parquet", SKIM_EVENTS)
    rows = []
    for kind in kinds:
        peaks = {}
        for n in sorted(numbers):
            job = {"skim": str(skim), "n": n, "stream": KINDS[kind], "output": str(folder / "memory")}
            process = subprocess.Popen([sys.executable, __file__, "--child", json.dumps(job)])
            peaks[n] = 0.0
            while process.poll() is None:
                peaks[n] = max(peaks[n], anonymous(process.pid))
                time.sleep(0.02)
            if process.returncode:
                raise SystemExit(f"the training of {n} events, {kind}, ended with {process.returncode}")
            rows.append(Measurement(f"{n:,} events, {kind}", "MB", peaks[n]))
        smallest, largest = min(peaks), max(peaks)
        if largest > smallest:
            growth = 1e6 * (peaks[largest] - peaks[smallest]) / (largest - smallest)
            limit = GROWTH if KINDS[kind] else None
            rows.append(Measurement(f"growth, {kind}", "B/event", growth, target=limit, at_most=True))
    return rows


def anonymous(pid: int) -> float:
    """Anonymous resident memory of a process in MB; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("RssAnon:"))


class Guess(TopNetwork):
    """Each top is a lepton and a jet, times one number."""

    def forward(self, inputs: Inputs) -> torch.Tensor:
        """Four-momenta of t and t̄, shape (n, 2, 4)."""
        p4 = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1) + inputs.jets[:, :2]
        return p4 * (1 + 0 * next(self.parameters()).sum())


class Guessing(TopsTask):
    """The task with a network that costs nothing."""

    def build(self) -> Guess:
        """Its network."""
        return Guess(self.model)


def train_without_network(skim: str, n: int, stream: bool, output: str) -> None:
    """Train for an epoch with all that depends on the number of events, but a network of one number."""

    def renamed(self: Skim, index: int) -> tuple[DileptonEvents, Truth | None]:
        events, truth = read_row_group(self, index)
        dataset = np.full(len(events), dataset_id(f"toy {next(turn) // self.n_row_groups}"), np.uint64)
        return dataclasses.replace(events, dataset=dataset), truth

    read_row_group, turn = Skim.read_row_group, iter(range(10**9))
    Skim.read_row_group = renamed  # type: ignore[method-assign]
    files = [skim] * -(-n // SKIM_EVENTS)
    config = TrainConfig.model_validate(
        {
            "data": {"files": files, "max_events": n, "stream": stream},
            "loss": {"m_tt": 0, "pt_top": 0, "c_hel": 0},
            "optimiser": {"kind": "adamw"},
            "epochs": 1,
            "batch_size": 4096,
            "output": output,
        }
    )
    task = Guessing.of(config)
    train(task, read(task, config), config)


if __name__ == "__main__":
    main()
