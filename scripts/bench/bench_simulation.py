"""Time of the simulation by stage, and loosely selected events per second with and without new W decays.

    python scripts/bench/bench_simulation.py --json simulation.json

Stages are timed on one batch of 250 hard events, in milliseconds of CPU time per hard event or per copy that
passes the preselection. Rates are those of the shipped recipes from start to ROOT file, selected with
`skim-loose.yaml`; the recipes take turns, with other seeds in each round. Needs the extra `sim`; takes about
three minutes.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from measuring import Measurement, alternate, parser, report

from topreco.config import PreselectionConfig, SimulationConfig, SkimConfig, load_config
from topreco.input.skimming import make_skim
from topreco.simulation import simulate
from topreco.simulation.decays import Copies, copied_events, draw_copies, find_decays, pieces, preselect
from topreco.simulation.nanoaod import nanoaod
from topreco.simulation.pythia import generate, settings, start_pythia

BATCH = 250
PLAIN, COPIES, TESTS = "tt2l_13tev", "tt2l_13tev_redecay", "tt2l_13tev_spin"
TARGET = 60.0
"""Loosely selected events per second with new decays."""


def spread(values: list[float]) -> float:
    """Median absolute deviation."""
    return median([abs(value - median(values)) for value in values])


def stages(config: SimulationConfig, repeats: int) -> tuple[list[Measurement], str]:
    """CPU time of each stage of one batch, and a sentence on the number of copies."""
    pythia = start_pythia(settings(config, 5))
    events = generate(pythia, BATCH, refill=True)
    rng = np.random.default_rng(1)
    found = find_decays(events)
    cuts = config.preselection or PreselectionConfig()

    def accepted() -> Copies:
        tries, chosen = draw_copies(events, find_decays(events), config, rng)
        return tries[chosen]

    def passing() -> Copies:
        copies = accepted()
        return copies[preselect(events, found, copies, cuts)]

    n_accepted, copies = len(accepted()), passing()
    piece = next(pieces(copies, BATCH))
    copied = copied_events(events, found, piece)
    runs: dict[str, tuple[Callable[[], object], int, str]] = {
        "Pythia": (lambda: generate(pythia, BATCH, refill=True), BATCH, "hard event"),
        "new decays, acceptance, preselection": (passing, BATCH, "hard event"),
        "records of copies": (lambda: copied_events(events, found, piece), len(piece), "copy"),
        "detector": (lambda: nanoaod(copied, rng), len(piece), "copy"),
    }
    times = alternate({name: run for name, (run, _, _) in runs.items()}, repeats=repeats)
    rows = []
    for name, (_, n, per) in runs.items():
        values = [1e3 * seconds / n for seconds in times[name]]
        rows.append(Measurement(name, f"ms/{per}", median(values), spread(values)))
    note = (
        f"{BATCH} hard events, {config.decays_per_event} decays each: about {n_accepted} accepted, "
        f"{len(copies)} in front of the detector."
    )
    return rows, note


def rates(events: dict[str, int], repeats: int) -> list[Measurement]:
    """Loosely selected events per second of CPU time of each recipe."""
    selection = load_config(SkimConfig, "skim-loose.yaml").selection
    found: dict[str, list[float]] = {name: [] for name in events}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(repeats):
            for name, n in events.items():
                config = load_config(
                    SimulationConfig, f"sim/{name}.yaml", [f"n_events={n}", f"seed={900 + i}"]
                )
                path = Path(folder) / f"{name}_{i}.root"
                start = time.process_time()
                simulate(config, path, workers=1, progress=False)
                seconds = time.process_time() - start
                skim = make_skim([path], path.with_suffix(".parquet"), selection, progress=False)
                found[name].append(skim.n_selected / seconds)
    ratios = {name: median(a / b for a, b in zip(found[name], found[PLAIN], strict=True)) for name in found}
    return [
        Measurement(
            f"{name}.yaml",
            "loosely selected events/s",
            median(values),
            spread(values),
            ratio_to=None if name == PLAIN else f"{PLAIN}.yaml",
            ratio=None if name == PLAIN else ratios[name],
        )
        for name, values in found.items()
    ] + [Measurement("new decays", "loosely selected events/s", median(found[COPIES]), target=TARGET)]


def main() -> None:
    """Print the table, and write it as JSON where asked."""
    arguments = parser(__doc__)
    arguments.add_argument("--events", type=int, default=1000, help="hard events of each recipe and round")
    arguments.add_argument("--repeats", type=int, default=5)
    options = arguments.parse_args()
    rows, note = stages(load_config(SimulationConfig, f"sim/{COPIES}.yaml"), options.repeats)
    rows += rates(dict.fromkeys((PLAIN, COPIES, TESTS), options.events), options.repeats)
    report("Simulation: stages and rates", rows, options.json, [note])


if __name__ == "__main__":
    main()
