"""Does memory stay flat? A small file over and over through one process, with its resident memory over time.

    python scripts/soak.py [NANO.root] [--chunks 300] [--hours 2] [--method dilepton] [--json FILE]

The file is read under many names, as a fileset of many files, by the processor of `topreco run` in coffea's
iterative executor. Without a file it simulates one first (extra `sim`). Memory is what Linux says in
/proc/self/statm after each chunk. It grows at first, as allocators do, so what counts is how much the median
rises from the third to the last quarter of the chunks. Fewer than 300 hardly leave the beginning.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from coffea import processor

from topreco.config import HistogramConfig, SimulationConfig
from topreco.core.errors import TopRecoError
from topreco.core.files import write_text
from topreco.core.versions import versions
from topreco.input.nano import QuietNanoAODSchema, inspect_file
from topreco.runs.processor import DileptonProcessor

FLAT = 0.25
"""MB per chunk up to which memory counts as flat: 250 MB for 10⁸ events in chunks of 10⁵."""

FILES = 100
"""Files of a fileset, and so the number of chunks between two checks of the time."""


class Watched(DileptonProcessor):
    """The processor, keeping events and resident memory in MB after each chunk."""

    def __init__(self, method: str) -> None:
        super().__init__([method], histograms=HistogramConfig(observables=("m_tt", "pt_top")))
        self.events: list[int] = []
        self.memory: list[float] = []

    def process(self, events: Any) -> dict[str, Any]:
        """Fill the histograms of one chunk, then read the memory."""
        output = super().process(events)
        self.events.append(len(events))
        self.memory.append(resident())
        return output


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(memory: Sequence[float]) -> float:
    """Rise of memory per chunk, from the median of the third quarter of the chunks to that of the last."""
    quarter = max(1, len(memory) // 4)
    third, last = memory[-2 * quarter : -quarter], memory[-quarter:]
    return float(np.median(last) - np.median(third)) / quarter


def soak(
    file: Path, n_chunks: int, method: str, folder: Path, seconds: float = float("inf")
) -> dict[str, Any]:
    """Process a file so many times, or until so much time has passed, and describe the memory."""
    files = [str(folder / f"{i}.root") for i in range(min(n_chunks, FILES))]
    for link in files:
        Path(link).symlink_to(file.resolve())
    watched = Watched(method)
    # The processor itself, not a pickled copy of it, which would keep its notes for itself.
    runner = processor.Runner(
        processor.IterativeExecutor(status=False, retries=0),
        schema=QuietNanoAODSchema,
        processor_compression=None,
    )
    start = time.perf_counter()
    while (left := n_chunks - len(watched.memory)) > 0 and time.perf_counter() - start < seconds:
        runner({"soak": {"treename": "Events", "files": files[:left]}}, processor_instance=watched)
    taken = time.perf_counter() - start
    read, memory = np.cumsum(watched.events), watched.memory
    rise = growth(memory)
    every = max(1, len(memory) // 100)
    return {
        "events": int(read[-1]),
        "chunks": len(memory),
        "method": method,
        "seconds": round(taken, 1),
        "events_per_second": round(float(read[-1]) / taken, 1),
        "rss_mb": {
            "first": round(memory[0], 1),
            "halfway": round(memory[len(memory) // 2], 1),
            "last": round(memory[-1], 1),
            "largest": round(max(memory), 1),
        },
        "growth_mb_per_chunk": round(rise, 4),
        "flat": rise < FLAT,
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
    parser.add_argument("--chunks", type=int, default=300, help="at most")
    parser.add_argument("--hours", type=float, default=float("inf"), help="at most")
    parser.add_argument("--method", default="dilepton", help="model or analytic method")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    arguments = parser.parse_args()
    if arguments.chunks < 1 or not arguments.hours > 0:
        sys.exit("error: --chunks of at least 1 and --hours above 0 expected")
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            file = arguments.file or simulated(folder / "simulated.root")
            inspect_file(str(file))
            result = soak(file, arguments.chunks, arguments.method, folder, 3600 * arguments.hours)
    except (TopRecoError, OSError) as error:
        sys.exit(f"error: {error}")
    rss = result["rss_mb"]
    rise = f"{result['growth_mb_per_chunk']:+.3f} MB per chunk"
    print(
        f"{result['events']} events, {result['chunks']} chunks, {result['seconds']:.0f} s: resident memory "
        f"{rss['halfway']:.0f} MB halfway, {rss['last']:.0f} MB at the end, rising by {rise}: "
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
