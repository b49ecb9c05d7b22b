"""What the benchmarks share: timing side by side, the sample, and one shape for their results.

A result is a `Measurement`; a script writes a list of them with `report`, as JSON

    {"benchmark": ..., "notes": [...], "machine": {...},
     "measurements": [{"name": ..., "unit": ..., "value": ..., "spread": ...,
                       "ratio_to": ..., "ratio": ..., "target": ..., "at_most": ..., "reached": ...}, ...]}

that `run_all.py` merges into one table.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from topreco.core.files import complete_file, write_text
from topreco.core.versions import versions

SAMPLE = Path(__file__).parents[2] / "results" / "bench" / "sample.root"
"""Simulated events that all benchmarks read, made once."""


@dataclass(frozen=True)
class Measurement:
    """One row of the table.

    Attributes
    ----------
    name
        What was measured, unique within its benchmark.
    unit
        Unit of the value, such as "events/s" or "µs/event".
    value
        Median over the repeats.
    spread
        Median absolute deviation of the repeats from the median; None for a single number.
    ratio_to
        Name of the measurement that it was compared with in the same rounds.
    ratio
        How often better than that: the median over the rounds, above 1 for a higher rate or a shorter time.
        Where `at_most` is set, how often larger.
    target
        What the ratio, or without one the value, should reach.
    at_most
        Whether the target is an upper limit.
    """

    name: str
    unit: str
    value: float
    spread: float | None = None
    ratio_to: str | None = None
    ratio: float | None = None
    target: float | None = None
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        found = self.value if self.ratio is None else self.ratio
        return found <= self.target if self.at_most else found >= self.target


def alternate(
    runs: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    min_seconds: float = 0.0,
    warm: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Seconds per call of several functions that take turns, so that other load on the machine hits all.

    Parameters
    ----------
    runs
        Functions by name.
    repeats
        Number of rounds, after one that warms up.
    min_seconds
        Call a function as often in each round as fills this time.
    warm
        All have been called before.
    clock
        Time of this process by default: `time.perf_counter` for what waits or uses other processes.

    Returns
    -------
    seconds
        By name, one entry per round.
    """
    calls = {}
    for name, run in runs.items():
        # The first call compiles and fills caches; the second tells how long one takes.
        if not warm:
            run()
        start = clock()
        if min_seconds:
            run()
        calls[name] = max(1, round(min_seconds / max(clock() - start, 1e-9))) if min_seconds else 1
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            for _ in range(calls[name]):
                run()
            seconds[name].append((clock() - start) / calls[name])
    return seconds


def spread(values: Sequence[float]) -> float:
    """Median absolute deviation from the median."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median of the ratios within each round: what slows down a whole round cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def rates(
    seconds: Mapping[str, Sequence[float]],
    n: int,
    *,
    ratio_to: str,
    targets: Mapping[str, float] | None = None,
    unit: str = "events/s",
    prefix: str = "",
) -> list[Measurement]:
    """Measurements of functions that each handle n events per call.

    Parameters
    ----------
    seconds
        From `alternate`.
    n
        Events per call.
    ratio_to
        Which of them the others are compared with.
    targets
        Smallest ratio of some.
    unit
        "events/s" or "µs/event".
    prefix
        Put before each name.
    """
    found = []
    for name, times in seconds.items():
        values = [n / t if unit == "events/s" else 1e6 * t / n for t in times]
        compared = name != ratio_to
        found.append(
            Measurement(
                prefix + name,
                unit,
                statistics.median(values),
                spread(values),
                ratio_to=prefix + ratio_to if compared else None,
                ratio=paired_ratio(seconds[ratio_to], times) if compared else None,
                target=(targets or {}).get(name),
            )
        )
    return found


# ---- machine ---------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """CPU, cores, load and versions of software."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "load": [round(load, 1) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions(),
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


# ---- sample ----------------------------------------------------------------------------------------------


def sample(files: Sequence[str] = ()) -> list[str]:
    """The files given, or one of 10 000 simulated events that is kept for all benchmarks (extra `sim`)."""
    if files:
        return list(files)
    if not SAMPLE.exists():
        from topreco.config import SimulationConfig
        from topreco.simulation import simulate

        # Without multi-parton interactions to have it soon.
        with complete_file(SAMPLE) as temporary:
            simulate(SimulationConfig(n_events=10_000, mpi=False), temporary, workers=1, progress=False)
    return [str(SAMPLE)]


def repeated(file: str, target: Path, n_events: int) -> str:
    """A file of n events and more, the events of another over and over with all its branches.

    Each copy has baskets of its own, so that it costs as much to read as other events. Compressed by ZSTD as
    NanoAOD is.
    """
    import awkward as ak
    import uproot

    with uproot.open(file) as source:
        tree = source["Events"]
        names = tree.keys()
        arrays = tree.arrays(names)
    jagged = [name for name in names if arrays[name].ndim > 1]
    collections: dict[str, dict[str, Any]] = {}
    for name in jagged:
        collection, _, field = name.partition("_")
        collections.setdefault(collection, {})[field] = arrays[name]
    content = {name: arrays[name] for name in names if name not in jagged and name[1:] not in collections} | {
        name: ak.zip(fields) for name, fields in collections.items()
    }
    with uproot.recreate(target, compression=uproot.ZSTD(5)) as out:
        tree = out.mktree("Events", {name: values.type.content for name, values in content.items()})
        for _ in range(-(-n_events // len(arrays))):
            tree.extend(content)
    return str(target)


# ---- output ----------------------------------------------------------------------------------------------


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Command line of a benchmark, with ``--json``."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--json", type=Path, help="write the numbers to this file")
    return found


def report(
    title: str, measurements: Sequence[Measurement], path: Path | None, notes: Sequence[str] = ()
) -> None:
    """Print a table of measurements, and write them as JSON where asked.

    Parameters
    ----------
    title
        What the benchmark is about.
    measurements
        Its rows.
    path
        JSON file; None writes none.
    notes
        Sentences that a reader of the numbers needs.

    Raises
    ------
    ValueError
        If two measurements have one name.
    """
    names = [m.name for m in measurements]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{title}: measurement {twice[0]!r} appears twice")
    rows = [asdict(m) | {"reached": m.reached} for m in measurements]
    print(title, *markdown_table(rows), *notes, sep="\n")
    if path is not None:
        content = {
            "benchmark": title,
            "notes": list(notes),
            "machine": machine(),
            "measurements": rows,
        }
        write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


_HEADINGS = ("measurement", "value", "spread", "unit", "ratio", "to", "target", "reached")


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table of measurements as JSON has them."""
    lines = [_HEADINGS, ("---", "---:", "---:", "---", "---:", "---", "---:", "---")]
    return ["| " + " | ".join(cells) + " |" for cells in (*lines, *map(_cells, rows))]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    target, reached = row.get("target"), row.get("reached")
    limit = "" if target is None else f"{'≤' if row.get('at_most') else '≥'} {_number(target)}"
    return (
        str(row["name"]),
        _number(row["value"]),
        _number(row.get("spread")),
        str(row.get("unit") or ""),
        _number(row.get("ratio")),
        str(row.get("ratio_to") or ""),
        limit,
        "" if reached is None else ("yes" if reached else "**no**"),
    )


def _number(value: float | None) -> str:
    """Three digits, more of large numbers."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
