"""What many chunks and many workers cost, and what follows for 10⁹ events on 500 cores.

    python scripts/bench/bench_scaling.py [NANO.root] [--method dilepton] [--json FILE]

On small inputs (by default simulated ones): one and two workers of each executor, on the same file 32 times;
the same events in few and in many chunks; what a task costs the scheduler of Dask, in a cluster of
single-thread workers within this process; the size of a chunk's output and the time to merge two; and how
long a new process takes until it has read the model. `predict` holds the formula for the rest. Times of one
process are its own, those of several the clock's: on a busy machine the latter say little.
"""

import io
import math
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from coffea import processor
from coffea.processor import accumulate
from measuring import Measurement, alternate, parser, rates, report, sample, spread

from topreco.config import RunConfig
from topreco.input.nano import QuietNanoAODSchema, open_events
from topreco.runs.executors import open_executor
from topreco.runs.processor import DileptonProcessor

EVENTS = 10**9
CORES = 500
TASKS = 500
# Outputs that Dask's executor of coffea merges in one task.
BRANCHING = 20
MERGED = (2, 8, 32)
# So often executors read the file, under as many names: what they start with is little beside it.
FILES = 32


@dataclass(frozen=True)
class Costs:
    """What a run costs, in seconds.

    Attributes
    ----------
    event
        One event, on one core.
    chunk
        One chunk besides its events: opening, booking, the fixed part of filling.
    task
        One task in the scheduler, which is one process.
    merge
        Adding one output to another.
    start
        A new worker, until it can work.
    """

    event: float
    chunk: float
    task: float
    merge: float
    start: float


def predict(costs: Costs, *, events: int, cores: int, chunk_size: int) -> dict[str, float]:
    """Wall time of a run on a cluster, in seconds, by part.

    With n = ⌈events/chunk_size⌉ chunks on `cores` workers, outputs merged by a tree of branching b:

    - start: `start`, once, all workers at a time;
    - work: ⌈n/cores⌉ (chunk_size · `event` + `chunk`), the last round full;
    - merging: (n/cores + b ⌈log_b n⌉) `merge`: all outputs are merged once, by all workers, and then
      those left over along the depth of the tree;
    - scheduling: n (1 + 1/(b − 1)) `task`, for chunks and merging, beside the work: it counts only where it
      takes longer than the work.

    Reading is taken to be as fast as here, whatever the number of workers that read.

    Parameters
    ----------
    costs
        Measured.
    events, cores, chunk_size
        Of the run.
    """
    n = math.ceil(events / chunk_size)
    parts = {
        "start": costs.start,
        "work": math.ceil(n / cores) * (chunk_size * costs.event + costs.chunk),
        "merging": (n / cores + BRANCHING * math.ceil(math.log(max(n, 2), BRANCHING))) * costs.merge,
        "scheduling": n * (1 + 1 / (BRANCHING - 1)) * costs.task,
    }
    parts["wall time"] = parts["start"] + max(parts["work"], parts["scheduling"]) + parts["merging"]
    return parts


def process(
    files: Sequence[str], instance: DileptonProcessor, executor: Any, chunk_size: int
) -> dict[str, Any]:
    """Output of the processor over files (``out``), and how many bytes were read (``metrics``)."""
    runner = processor.Runner(executor, schema=QuietNanoAODSchema, chunksize=chunk_size, savemetrics=True)
    # coffea's executors show their bars whatever their `status` says.
    with redirect_stdout(io.StringIO()):
        chunks = list(runner.preprocess({"bench": {"treename": "Events", "files": list(files)}}))
        result: dict[str, Any] = runner.run(chunks, instance)
    return result


def compare_executors(file: str, instance: DileptonProcessor, n: int) -> list[Measurement]:
    """Rates of the executors with one and two workers, a chunk for each reading of the file."""
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{i}.root") for i in range(FILES)]
        for link in files:
            Path(link).symlink_to(Path(file).resolve())
        for kind, workers in (("iterative", 1), ("futures", 1), ("futures", 2), ("dask", 1), ("dask", 2)):
            config = RunConfig(executor=kind, workers=workers)
            name = f"{kind}, {workers} worker{'s' if workers > 1 else ''}"
            with open_executor(config, progress=False) as executor:
                # The first run imports in the workers of Dask, which stay; those of futures are new.
                if kind == "dask":
                    process(files[: 2 * workers], instance, executor, n)
                start = time.perf_counter()
                process(files, instance, executor, n)
                seconds[name] = [time.perf_counter() - start]
    return rates(seconds, n * FILES, ratio_to="iterative, 1 worker")


def chunk_cost(
    file: str, instance: DileptonProcessor, n: int, chunks: int, repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds per event and per chunk in each round, from the same events in one and in many chunks."""

    def run(size: int) -> Callable[[], Any]:
        executor = processor.IterativeExecutor(status=False)
        return lambda: process([file], instance, executor, size)

    times = alternate({"one": run(n), "many": run(math.ceil(n / chunks))}, repeats=repeats)
    per_chunk = [(many - one) / (chunks - 1) for one, many in zip(times["one"], times["many"], strict=True)]
    per_event = [(one - chunk) / n for one, chunk in zip(times["one"], per_chunk, strict=True)]
    return per_event, per_chunk


def task_cost(repeats: int) -> list[float]:
    """Seconds per task of Dask, for tasks that do nothing, on four single-thread workers in this process.

    Of the process' time, which holds client and workers too: an upper limit of the scheduler's.
    """
    from distributed import Client, LocalCluster

    options = {"processes": False, "n_workers": 4, "threads_per_worker": 1, "dashboard_address": None}
    found = []
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        for repeat in range(repeats + 1):
            start = time.process_time()
            client.gather(client.map(_nothing, range(TASKS), pure=False))
            if repeat:
                found.append((time.process_time() - start) / TASKS)
    return found


def _nothing(number: int) -> int:
    return number


def merge_cost(output: Any, repeats: int) -> dict[int, list[float]]:
    """Seconds to add one output to another in each round, by the number that is merged."""

    def merge(k: int) -> Callable[[], Any]:
        return lambda: accumulate([output] * k)

    times = alternate({str(k): merge(k) for k in MERGED}, repeats=repeats)
    return {k: [t / (k - 1) for t in times[str(k)]] for k in MERGED}


def start_cost(methods: list[str], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of a new process until it has imported the package, and from there until it has the methods."""
    code = (
        "import sys, time; start = time.process_time(); import topreco.runs.processor; "
        "imported = time.process_time(); topreco.runs.processor.DileptonProcessor(sys.argv[1:]); "
        "print(imported - start, time.process_time() - imported)"
    )
    found = []
    for _ in range(repeats):
        command = [sys.executable, "-c", code, *methods]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append([float(text) for text in done.stdout.split()])
    imports, loads = zip(*found, strict=True)
    return list(imports), list(loads)


def row(name: str, unit: str, values: list[float], scale: float) -> Measurement:
    """Measurement of values that take `scale` units per second."""
    scaled = [scale * value for value in values]
    return Measurement(name, unit, statistics.median(scaled), spread(scaled))


def main() -> None:
    """Measure, predict, report."""
    arguments = parser(__doc__)
    arguments.add_argument("file", nargs="?")
    arguments.add_argument("--method", action="append", help="by default dilepton")
    arguments.add_argument("--chunks", type=int, default=20, help="many chunks")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--no-executors", action="store_true", help="leave out those, which take longest")
    options = arguments.parse_args()
    if options.chunks < 2 or options.repeats < 1:
        sys.exit("error: --chunks of at least 2 and --repeats of at least 1 expected")
    torch.set_num_threads(1)
    methods = options.method or ["dilepton"]
    (file,) = sample([] if options.file is None else [options.file])
    n = len(open_events(file))
    instance = DileptonProcessor(methods)

    rows = [] if options.no_executors else compare_executors(file, instance, n)
    per_event, per_chunk = chunk_cost(file, instance, n, options.chunks, options.repeats)
    tasks = task_cost(options.repeats)
    result = process([file], instance, processor.IterativeExecutor(status=False), n)
    output, bytes_per_event = result["out"], result["metrics"]["bytesread"] / n
    merges = merge_cost(output, options.repeats)
    imports, loads = start_cost(methods, options.repeats)
    openings = alternate({"open": lambda: open_events(file)}, repeats=options.repeats)["open"]
    size = len(pickle.dumps(output)) / 1e6
    rows += [
        row("per event", "µs", per_event, 1e6),
        row(f"per chunk, besides its events (1 and {options.chunks} chunks)", "ms", per_chunk, 1e3),
        row("of that, opening", "ms", openings, 1e3),
        row("per task, scheduler of Dask", "ms", tasks, 1e3),
        *(row(f"per merging, {k} outputs", "ms", merges[k], 1e3) for k in MERGED),
        Measurement("output of a chunk, pickled", "MB", size),
        Measurement("read per event", "B", bytes_per_event),
        row("new process, imports", "s", imports, 1.0),
        row("new process, loading the methods", "s", loads, 1.0),
    ]
    median = statistics.median
    costs = Costs(
        median(per_event),
        median(per_chunk),
        median(tasks),
        median(merges[MERGED[-1]]),
        median(imports) + median(loads),
    )
    chunk_size = RunConfig().chunk_size
    parts = predict(costs, events=EVENTS, cores=CORES, chunk_size=chunk_size)
    what = f"predicted, {EVENTS:.0e} events on {CORES} cores in chunks of {chunk_size}"
    rows += [Measurement(f"{what}: {part}", "s", seconds) for part, seconds in parts.items()]
    limit = max((part for part in parts if part != "wall time"), key=parts.__getitem__)
    storage = EVENTS * bytes_per_event / parts["wall time"] / 1e9
    formula = (
        "Wall time = start + max(work, scheduling) + merging; work = ⌈n/cores⌉ (chunk size × per event + per "
        "chunk); scheduling = n (1 + 1/19) × per task; merging = (n/cores + 20 ⌈log₂₀ n⌉) × per merging; "
        f"n = {math.ceil(EVENTS / chunk_size)} chunks."
    )
    notes = [
        f"{n} events; methods {', '.join(methods)}.",
        formula,
        f"What limits it: {limit}. The storage has to deliver {storage:.1f} GB/s.",
    ]
    report("Scaling", rows, options.json, notes)


if __name__ == "__main__":
    main()
