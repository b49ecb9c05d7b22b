"""Torch beside onnxruntime: events per second of each shipped model, in one run on one thread.

    python scripts/bench/bench_onnx.py --json onnx.json

Toy events through the same call, `topreco.load(model)(events)`, in calls of 1, 64 and 1024 events. A model is
exported first (extra `onnx`, half a minute each), which is not timed. Times are those of the process on the
CPU, medians over repeats that alternate between the two; only ratios mean anything. A call of one event costs
as much as one of 64: both fill up their batches, so that an answer does not depend on the others.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime
from rich.console import Console
from rich.table import Table

from topreco.events import DileptonEvents, toy_events
from topreco.files import write_text
from topreco.network.export import export_onnx
from topreco.reconstructors import NetworkReconstructor, OnnxReconstructor, Reconstructor, shipped_models
from topreco.versions import versions

BATCHES = (1, 64, 1024)
REPEATS = 3
# Long enough for the clock, short enough for a benchmark of a minute.
SECONDS = 0.3


def calls(model: Reconstructor, events: DileptonEvents) -> int:
    """Number of calls that fill `SECONDS`, after one to warm up."""
    model(events)
    start = time.process_time()
    model(events)
    return max(1, round(SECONDS / (time.process_time() - start)))


def compare(models: dict[str, Reconstructor], batch: int) -> dict[str, float]:
    """Median events per second of each, and the ratio of the last to the first."""
    events = toy_events(batch, seed=1)
    repeats = {name: calls(model, events) for name, model in models.items()}
    rates: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(REPEATS):
        for name, model in models.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                model(events)
            rates[name].append(batch * repeats[name] / (time.process_time() - start))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first, *_, last = medians.values()
    return medians | {"ratio": last / first}


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=sorted(shipped_models()))
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    results: dict[str, dict[str, dict[str, float]]] = {}
    table = Table("model", "events per call", "torch", "onnxruntime", "ratio", title="events/s, one thread")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            # Four-momenta alone: not every model has quantiles.
            trained = NetworkReconstructor(name, threads=1, batch_size=max(BATCHES), quantiles=False)
            path, *_ = export_onnx(trained.artefact, Path(folder) / "model.onnx", quantiles=False)
            models = {
                "torch": trained,
                "onnxruntime": OnnxReconstructor(path, threads=1, batch_size=max(BATCHES)),
            }
            results[name] = {str(batch): compare(models, batch) for batch in BATCHES}
            for batch, found in results[name].items():
                rates = [f"{found[kind]:,.0f}" for kind in models]
                table.add_row(name, batch, *rates, f"{found['ratio']:.2f}")
    Console().print(table)
    if options.json is not None:
        software = versions() | {"onnxruntime": onnxruntime.__version__}
        write_text(options.json, json.dumps({"versions": software, "rates": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
