"""What `topreco run` costs on a small file: the start, the figures, and the start of a worker.

    python scripts/bench/bench_startup.py [NANO.root ...] [--method dilepton ...] [--json FILE]

Without files it simulates some first (extra `sim`). Every call is a process of its own, as for a user; calls
take turns, and the first of each, which fills caches of compiled code, is not counted. Wall times, of which
only ratios within one run mean anything: a run is compared with the import of torch and coffea, without
which there is none, and the start of a worker with the same start after an import of `coffea.lumi_tools`,
which only a golden JSON needs.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from measuring import Measurement, alternate, paired_ratio, parser, report, sample, spread

REPEATS = 5
IMPORTS = "import torch, coffea.nanoevents"
RUN = "topreco run, no figures"
FIGURES = "topreco run, usual figures"
WORKER = "start of a worker"
LUMI = "start of a worker, with a golden JSON"

_PROCESSOR = "import topreco.runs.processor"


def main() -> None:
    """Measure and print one table."""
    arguments = parser(__doc__)
    arguments.add_argument("files", nargs="*")
    arguments.add_argument("--method", action="append", help="default: dilepton and sonnenschein")
    arguments.add_argument("--repeats", type=int, default=REPEATS)
    options = arguments.parse_args()
    files = sample(options.files)
    with tempfile.TemporaryDirectory() as folder:
        commands = find_commands(files, options.method or ["dilepton", "sonnenschein"], Path(folder))
        runs = {
            name: partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            for name, command in commands.items()
        }
        seconds = alternate(runs, repeats=options.repeats, clock=time.perf_counter)
    report("Start", measurements(seconds), options.json, [f"Input: {', '.join(files)}."])


def find_commands(files: Sequence[str], methods: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """Command lines by measurement."""
    python = [sys.executable, "-c"]
    run = [sys.executable, "-m", "topreco", "run", *files, "--quiet", "--output", str(folder)]
    for method in methods:
        run += ["--method", method]
    return {
        IMPORTS: [*python, IMPORTS],
        RUN: [*run, "--no-plots"],
        FIGURES: run,
        WORKER: [*python, _PROCESSOR],
        LUMI: [*python, f"import coffea.lumi_tools; {_PROCESSOR}"],
    }


def measurements(seconds: Mapping[str, Sequence[float]]) -> list[Measurement]:
    """Rows of the table from seconds by measurement and round."""

    def row(name: str, **comparison: object) -> Measurement:
        return Measurement(name, "s", statistics.median(seconds[name]), spread(seconds[name]), **comparison)

    def limited(name: str, limit: float) -> Measurement:
        ratio = paired_ratio(seconds[name], seconds[IMPORTS])
        return row(name, ratio_to=IMPORTS, ratio=ratio, target=limit, at_most=True)

    halved = paired_ratio(seconds[LUMI], seconds[WORKER])
    return [
        row(IMPORTS),
        limited(RUN, 2.5),
        limited(FIGURES, 5.0),
        row(LUMI),
        row(WORKER, ratio_to=LUMI, ratio=halved, target=2.0),
    ]


if __name__ == "__main__":
    main()
