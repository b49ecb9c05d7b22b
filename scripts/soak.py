"""Does memory stay flat? A small file over and over through one process, with its resident memory over time.

    python scripts/soak.py [NANO.root] [--events 1000000] [--method loose] [--json FILE]

The file is read under many names, as a fileset of many files, by the processor of `topreco run` in coffea's
iterative executor. Without a file it simulates one first (extra `sim`). Memory is what Linux says in
/proc/self/statm after each chunk; the slope is fitted to the second half, since allocators grow at first.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from coffea import processor

from topreco.config import HistogramConfig, SimulationConfig
from topreco.files import write_text
from topreco.input.nano import QuietNanoAODSchema, inspect_file
from topreco.processor import DileptonProcessor
from topreco.versions import versions

FLAT = 20.0
"""MB per million events up to which memory counts as flat: 2 GB in 10⁸ events, more than a process reads."""


class Watched(DileptonProcessor):
    """The processor, keeping events and resident memory in MB after each chunk."""

    def __init__(self, method: str) -> None:
        super().__init__([method], histograms=HistogramConfig(observables=("m_tt", "pt_top")))
        self.events: list[int] = []
        self.memory: list[float] = []

    def process(self, events: Any) -> dict[str, Any]:
        """Fill the histograms of one chunk, then look at the memory."""
        output = super().process(events)
        self.events.append(len(events))
        self.memory.append(resident())
        return output


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def soak(file: Path, n_events: int, method: str, folder: Path) -> dict[str, Any]:
    """Process at least so many events and describe the memory."""
    n_files = -(-n_events // inspect_file(file).n_entries)
    files = [folder / f"{i}.root" for i in range(n_files)]
    for link in files:
        link.symlink_to(file.resolve())
    watched = Watched(method)
    # The processor itself, not a pickled copy of it, which would keep its notes for itself.
    runner = processor.Runner(
        processor.IterativeExecutor(status=False, retries=0),
        schema=QuietNanoAODSchema,
        processor_compression=None,
    )
    start = time.perf_counter()
    runner({"soak": {"treename": "Events", "files": list(map(str, files))}}, processor_instance=watched)
    seconds = time.perf_counter() - start
    read, memory = np.cumsum(watched.events), np.array(watched.memory)
    late = len(memory) // 2
    (slope, _), covariance = np.polyfit(read[late:] / 1e6, memory[late:], 1, cov=True)
    every = max(1, len(memory) // 100)
    return {
        "events": int(read[-1]),
        "chunks": len(memory),
        "method": method,
        "seconds": round(seconds, 1),
        "events_per_second": round(float(read[-1]) / seconds, 1),
        "rss_mb": {
            "first": round(memory[0], 1),
            "halfway": round(memory[late], 1),
            "last": round(memory[-1], 1),
            "largest": round(memory.max(), 1),
        },
        "slope_mb_per_million_events": round(float(slope), 2),
        "slope_error": round(float(covariance[0, 0]) ** 0.5, 2),
        "flat": bool(abs(slope) < FLAT),
        "over_time": [
            [int(n), round(float(m), 1)] for n, m in zip(read[::every], memory[::every], strict=True)
        ],
        "versions": versions(),
    }


def main() -> None:
    """Run, print one line, write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--method", default="loose", help="model or analytic method; by default the cheapest")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = arguments.file or simulated(folder / "simulated.root")
        result = soak(file, arguments.events, arguments.method, folder)
    rss = result["rss_mb"]
    slope = f"{result['slope_mb_per_million_events']:+.1f} ± {result['slope_error']:.1f} MB per 10⁶ events"
    print(
        f"{result['events']} events, {result['chunks']} chunks, {result['seconds']:.0f} s: resident memory "
        f"{rss['halfway']:.0f} MB halfway, {rss['last']:.0f} MB at the end, slope {slope}: "
        + ("flat" if result["flat"] else "NOT FLAT")
    )
    if arguments.json is not None:
        write_text(arguments.json, json.dumps(result, indent=1) + "\n")


def simulated(path: Path) -> Path:
    """A small NanoAOD-like file."""
    from topreco.simulation import simulate

    simulate(SimulationConfig(n_events=5000, mpi=False, seed=1), path, workers=1, progress=False)
    return path


if __name__ == "__main__":
    main()
