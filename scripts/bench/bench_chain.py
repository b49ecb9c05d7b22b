"""Where the time of the chain goes, from NanoAOD to histograms, on one thread.

    python scripts/bench/bench_chain.py [NANO.root] [--method dilepton --method sonnenschein] [--json FILE]

The events of the file (by default simulated ones) are repeated until they are `--events`, one chunk of a run
by default, with all the branches that the file has. The measure is reading the same branches with uproot and
nothing else; it takes turns with the chain in every round. Times are those of the process, not of the clock.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uproot
from measuring import Measurement, paired_ratio, parser, repeated, report, sample, spread

from topreco.config import RunConfig, SelectionConfig
from topreco.core.events import DileptonEvents, TopPair
from topreco.core.method import Method
from topreco.evaluation.fill import fill_methods
from topreco.evaluation.histograms import book
from topreco.input.nano import branch_names, has_branch, open_events
from topreco.input.objects import fit_selection, needed_branches, optional_branches, read_objects
from topreco.input.selection import select_objects
from topreco.input.truth import TRUTH_BRANCHES, read_truth
from topreco.network.tokens import Inputs, build_tokens
from topreco.reconstruction.load import load
from topreco.reconstruction.network import NetworkMethod

DATASET = "bench"
METHODS = ["dilepton", "sonnenschein"]
# What no processor can do without, and what only a better method could save.
RECONSTRUCTION = ("network", "solvers")
TARGET = 2.0


class Known:
    """A method whose answer is known, so that filling is timed alone."""

    def __init__(self, name: str, pair: TopPair) -> None:
        self.name = name
        self.pair = pair

    def __call__(self, events: DileptonEvents) -> TopPair:  # noqa: ARG002 - as methods are called
        """Give the answer."""
        return self.pair


class Chain:
    """The stages of a processor on one file.

    Parameters
    ----------
    file
        NanoAOD.
    methods
        How to reconstruct.
    """

    def __init__(self, file: str, methods: list[Method]) -> None:
        self.file = file
        self.methods = methods
        self.config = SelectionConfig()
        events = open_events(file)
        self.n = len(events)
        fitted = fit_selection(self.config, branch_names(events), file)
        wanted = (*needed_branches(fitted), *optional_branches(fitted), *TRUTH_BRANCHES)
        # Without the status, which only files without `Generator` need.
        unused = {"GenPart_status"} if has_branch(events, "Generator_id1") else set()
        self.branches = [b for b in dict.fromkeys(wanted) if has_branch(events, b) and b not in unused]

    def read_bare(self) -> None:
        """Read the branches with uproot and nothing else."""
        with uproot.open(self.file) as opened:
            opened["Events"].arrays(self.branches)

    def run(self) -> tuple[dict[str, float], int]:
        """Seconds of each stage, and the number of selected events."""
        seconds: dict[str, float] = {}

        @contextmanager
        def timed(stage: str) -> Iterator[None]:
            start = time.process_time()
            yield
            seconds[stage] = seconds.get(stage, 0.0) + time.process_time() - start

        with timed("open"):
            events = open_events(self.file)
        with timed("read"):
            objects = read_objects(events, self.config)
        with timed("select"):
            selection = select_objects(objects, self.config, dataset=DATASET)
        with timed("read truth"):
            truth = read_truth(events[selection.index])
        selected, known = selection.events, []
        for method in self.methods:
            is_network = isinstance(method, NetworkMethod)
            with timed("network" if is_network else "solvers"):
                known.append(Known(method.name, method(selected)))
            if is_network:
                start = time.process_time()
                make_tokens(method, selected)
                tokens = time.process_time() - start
                # Part of the call above.
                seconds["tokens"] = seconds.get("tokens", 0.0) + tokens
                seconds["network"] -= tokens
        with timed("fill"):
            fill_methods(book(), known, dataset=DATASET, events=selected, truth=truth)
        return seconds, len(selected)


def make_tokens(method: NetworkMethod, events: DileptonEvents) -> None:
    """Build the tokens of a network, in batches as it does."""
    # The solvers share their library of threads with torch, and leave it with one for each core.
    torch.set_num_threads(1)
    config = method.artefact.networks[0].config.tokens
    for start in range(0, len(events), method.batch_size):
        build_tokens(Inputs.from_events(events[start : start + method.batch_size]), config)


def measure(chain: Chain, repeats: int) -> tuple[list[Measurement], int]:
    """Measurements of all stages, and the number of selected events."""
    chain.read_bare()
    _, selected = chain.run()
    rounds = []
    for _ in range(repeats):
        start = time.process_time()
        chain.read_bare()
        bare = time.process_time() - start
        stages, _ = chain.run()
        rounds.append({"bare": bare} | stages)
    bare_times = [found["bare"] for found in rounds]
    reference = "read with uproot"

    def row(name: str, times: list[float], target: float | None = None) -> Measurement:
        values = [1e6 * t / chain.n for t in times]
        return Measurement(
            name,
            "µs/event",
            statistics.median(values),
            spread(values),
            ratio_to=None if name == reference else reference,
            ratio=None if name == reference else paired_ratio(times, bare_times),
            target=target,
            at_most=target is not None,
        )

    stages = [stage for stage in rounds[0] if stage != "bare"]
    rows = [row(reference, bare_times)]
    rows += [row(stage, [found[stage] for found in rounds]) for stage in stages]
    others = [sum(found[s] for s in stages if s not in RECONSTRUCTION) for found in rounds]
    rows.append(row("all but network and solvers", others, TARGET))
    total = [sum(found[s] for s in stages) for found in rounds]
    rates = [chain.n / t for t in total]
    rows.append(row("whole chain", total))
    rows.append(Measurement("whole chain, rate", "events/s", statistics.median(rates), spread(rates)))
    filled = [1e6 * found["fill"] / (selected * len(chain.methods)) for found in rounds]
    unit = "µs/(selected event and method)"
    rows.append(Measurement("fill, per answer", unit, statistics.median(filled), spread(filled)))
    return rows, selected


def main() -> None:
    """Measure and report."""
    arguments = parser(__doc__)
    arguments.add_argument("file", nargs="?")
    arguments.add_argument("--method", action="append", help=f"by default {' and '.join(METHODS)}")
    arguments.add_argument("--events", type=int, default=RunConfig().chunk_size)
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    if options.events < 1 or options.repeats < 1:
        sys.exit("error: --events and --repeats: at least 1 expected")
    torch.set_num_threads(1)
    # As the processor has them.
    methods = [load(name, threads=1, quantiles=False) for name in options.method or METHODS]
    with tempfile.TemporaryDirectory() as folder:
        (file,) = sample([] if options.file is None else [options.file])
        chain = Chain(repeated(file, Path(folder) / "events.root", options.events), methods)
        rows, selected = measure(chain, options.repeats)
        with uproot.open(chain.file) as opened:
            n_branches = len(opened["Events"].keys())
    read = f"{len(chain.branches)} of {n_branches} branches read"
    names = ", ".join(m.name for m in methods)
    report(
        "Chain, NanoAOD to histograms",
        rows,
        options.json,
        [
            f"{chain.n} events in one chunk, {selected} selected, {read}; methods {names}.",
            "Per event read. Ratios: how often the time of bare reading.",
        ],
    )


if __name__ == "__main__":
    main()
