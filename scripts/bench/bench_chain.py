"""Where the time of the chain goes: rates of each stage, side by side in one run on one thread.

    python scripts/bench/bench_chain.py [NANO.root ...] [--model model.safetensors] [--json FILE]

Without files it simulates some first (extra `sim`); without a model it takes the default network with random
weights, which costs the same. Rates are medians of repeated runs, in input events per second for reading and
selecting and in selected events per second for the rest; only ratios within one run mean anything.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import uproot
from rich.console import Console
from rich.table import Table

from topreco.config import ModelConfig, SelectionConfig, SimulationConfig
from topreco.evaluation.histograms import book, fill
from topreco.events import DileptonEvents, Truth
from topreco.files import write_text
from topreco.input.nano import open_events
from topreco.input.objects import needed_branches
from topreco.input.selection import select
from topreco.input.truth import read_truth
from topreco.network.build import build_network
from topreco.network.inference import predict
from topreco.network.tokens import Objects, build_tokens
from topreco.reconstructors import load
from topreco.versions import versions

REPEATS = 5


def rate(n: int, function: Callable[[], object]) -> float:
    """Median of n events per second over repeated calls, after one to warm up."""
    function()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return n / statistics.median(seconds)


def read(files: list[str], branches: tuple[str, ...]) -> None:
    """Read branches with uproot and nothing else."""
    for file in files:
        with uproot.open(file) as opened:
            opened["Events"].arrays(list(branches))


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = arguments.files or [simulated(Path(folder))]
        rows = measure(files, arguments.model)
    table = Table("stage", "unit", "events/s", "µs/event")
    for stage, (unit, events_per_second) in rows.items():
        table.add_row(stage, unit, f"{events_per_second:,.0f}", f"{1e6 / events_per_second:,.1f}")
    Console().print(table)
    if arguments.json is not None:
        rates = {stage: {"unit": unit, "events/s": rate} for stage, (unit, rate) in rows.items()}
        write_text(arguments.json, json.dumps({"versions": versions(), "rates": rates}, indent=1) + "\n")


def simulated(folder: Path) -> str:
    """A file of simulated events, without multi-parton interactions to have it soon."""
    from topreco.simulation import simulate

    simulate(SimulationConfig(n_events=10_000, mpi=False), folder / "nano.root")
    return str(folder / "nano.root")


def measure(files: list[str], model: str | None) -> dict[str, tuple[str, float]]:
    """Rates by stage: what is counted, and events per second."""
    config = SelectionConfig()
    chunks = [open_events(file) for file in files]
    n = sum(map(len, chunks))
    parts = [(chunk, select(chunk, config, dataset="bench")) for chunk in chunks]
    events = DileptonEvents.concatenate([selection.events for _, selection in parts])
    truth = Truth.concatenate([read_truth(chunk[selection.index]) for chunk, selection in parts])
    network = build_network(ModelConfig()) if model is None else load(model).artefact.networks[0]
    objects = Objects.from_events(events)
    pair = predict([network], events)

    def select_all() -> None:
        for file in files:
            select(open_events(file), config, dataset="bench")

    def fill_all() -> None:
        fill(book(), dataset="bench", method="bench", events=events, pair=pair, truth=truth)

    m = len(events)
    return {
        "read with uproot": ("input", rate(n, lambda: read(files, needed_branches(config)))),
        "open, read and select": ("input", rate(n, select_all)),
        "tokens": ("selected", rate(m, lambda: build_tokens(objects, network.config.tokens))),
        "network, tokens included": ("selected", rate(m, lambda: predict([network], events))),
        "fill histograms": ("selected", rate(m, fill_all)),
    }


if __name__ == "__main__":
    main()
