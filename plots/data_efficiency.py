"""Correlations against the number of events with truth, from tables of studies; docs/PRETRAINING.md.

    python plots/data_efficiency.py docs/study/pretraining.csv docs/study/fine_tuning.csv:tuned \
        --output docs/figures/pretraining

Points of the tables are named KIND_EVENTS; after a colon the only kinds to draw. Error bars are standard
deviations over the seeds.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

from topreco.core.observables import OBSERVABLES
from topreco.evaluation.style import COLOURS, MARKERS, figure_style
from topreco.studies.figures import save_figure

LABELS = {
    "slim": "L-GATr-slim",
    "pet": "PET",
    "masked": "PET, masked objects first",
    "transformer": "transformer",
    "tokens": "transformer, next tokens first",
    "tuned": "L-GATr-slim, another simulation first",
}
Series = dict[str, list[tuple[int, float, float]]]


def read(table: str, metric: str) -> Series:
    """Events, mean and deviation of each kind in a table, by number of events."""
    name, _, chosen = table.partition(":")
    found: Series = defaultdict(list)
    with Path(name).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kind, _, events = row["point"].rpartition("_")
            if not chosen or kind in chosen.split(","):
                deviation = float(row[f"{metric} deviation"] or "nan")
                found[kind].append((int(events), float(row[metric]), deviation))
    return {kind: sorted(points) for kind, points in found.items()}


def draw(tables: list[str], observables: list[str]) -> Figure:
    """One panel for each observable."""
    with figure_style():
        figure = Figure(figsize=(8.0 * len(observables), 8.0), layout="constrained")
        panels = figure.subplots(1, len(observables), squeeze=False)[0]
        for axes, name in zip(panels, observables, strict=True):
            series: Series = {}
            for table in tables:
                series |= read(table, f"{name} correlation")
            for i, (kind, points) in enumerate(series.items()):
                events, mean, deviation = zip(*points, strict=True)
                axes.errorbar(
                    events,
                    mean,
                    yerr=deviation,
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=8,
                    label=LABELS.get(kind, kind),
                )
            axes.set_xscale("log")
            axes.set_xlabel("events with truth")
            axes.set_ylabel(f"correlation of {OBSERVABLES[name].label}")
            axes.grid(color="0.9")
        panels[0].legend(fontsize="xx-small")
        return figure


def main() -> None:
    """Read the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", help="CSV of a study, with :KIND,KIND for a part of it")
    parser.add_argument("--observables", nargs="+", default=["m_tt", "pt_top", "c_han"])
    parser.add_argument("--output", type=Path, required=True, help="figure without its ending")
    given = parser.parse_args()
    save_figure(draw(given.tables, given.observables), given.output)


if __name__ == "__main__":
    main()
