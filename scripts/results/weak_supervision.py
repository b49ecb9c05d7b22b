r"""Search without a signal model: a mixture against a template, no labels; docs/SIGNALS.md.

    python scripts/results/weak_supervision.py --background tt_spin_201_tight.parquet \
        --signal a600_311_tight.parquet --injected 0 50 100 200 400 -o docs/tables/weak_a600.csv

Half of the background, with some events of the signal, plays the data; the other half is the template, new
decays of a hard event on the same side. The background needs its spin correlation, as no weights are used. A
small network of reconstructed objects learns to tell data from template [1], cross-fitted. The significance
improvement at a background efficiency ε_b is ε_s/√ε_b, with ε_s the efficiency of all signal events for the
cut on the network's output that keeps ε_b of the template: 1 is no cut, √ε_b a cut without knowledge. Beside
it the same network with labels, "supervised", which is the ceiling. Each row is the mean over trainings with
other seeds, and other signal events injected, with the spread of a single training.

[1] E. M. Metodiev, B. Nachman, J. Thaler, Classification without labels, arXiv:1708.02949.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from topreco.core.events import DileptonEvents, FloatArray, IntArray
from topreco.core.files import write_csv
from topreco.core.skim import read_skims
from topreco.measurement.classifier import ClassifierSettings, cross_fitted, fit_log_ratio
from topreco.measurement.diagnose import object_columns

FOLDS = 3
SETTINGS = ClassifierSettings(hidden=16, epochs=10, batch_size=100, learning_rate=5e-3)
BACKGROUND_EFFICIENCIES = (0.2, 0.05)


def improvement(signal: FloatArray, template: FloatArray, efficiency: float) -> float:
    """Significance improvement of a cut on scores at a background efficiency."""
    cut = np.quantile(template, 1 - efficiency)
    return float((signal > cut).mean() / np.sqrt((template > cut).mean()))


def trained(
    signal: FloatArray,
    background: FloatArray,
    folds: tuple[IntArray, IntArray],
    hard_event: IntArray,
    injected: int | None,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """Scores of all signal events and of the template by networks that have not seen them.

    Parameters
    ----------
    signal, background
        Columns, shapes (s, d) and (b, d).
    folds
        Fold of each event of both.
    hard_event
        Number of the hard event of each event of the background, shape (b,).
    injected
        Signal events among the data; None trains with labels.
    seed
        Decides on which events play data, which signal events are injected, and on initial weights.
    """
    rng = np.random.default_rng([seed, 5])
    x, fold = np.concatenate([signal, background]), np.concatenate(folds)
    is_signal = np.arange(len(x)) < len(signal)
    in_data = np.zeros(len(x), np.bool_)
    in_data[~is_signal] = (rng.random(hard_event.max() + 1) < 0.5)[hard_event]
    template = ~is_signal & ~in_data
    if injected is None:
        numerator, template = is_signal, ~is_signal
    else:
        numerator = in_data.copy()
        numerator[rng.choice(len(signal), injected, replace=False)] = True

    def fit(rows: Any, number: int) -> Any:
        used = rows & (numerator | template)
        a, b = (chosen[used].astype(float) for chosen in (numerator, template))
        return fit_log_ratio(x[used], a, b, SETTINGS, (seed, number))

    score = cross_fitted(fit, x, fold, FOLDS)
    return score[is_signal], score[template]


def rows_of(
    background: DileptonEvents, signal: DileptonEvents, injected: Sequence[int], trainings: int
) -> list[dict[str, Any]]:
    """Rows of the table."""
    columns = [np.stack(list(object_columns(events).values()), 1) for events in (signal, background)]
    folds = tuple(
        np.minimum((events.uniform(23) * FOLDS).astype(int), FOLDS - 1) for events in (signal, background)
    )
    _, hard_event = np.unique(background.uniform(13), return_inverse=True)
    rows = []
    for number in (*injected, None):
        found = np.array(
            [
                [improvement(*scores, efficiency) for efficiency in BACKGROUND_EFFICIENCIES]
                for scores in (
                    trained(columns[0], columns[1], (folds[0], folds[1]), hard_event, number, seed)
                    for seed in range(trainings)
                )
            ]
        )
        row: dict[str, Any] = {"injected": "supervised" if number is None else number}
        row["share of data"] = "" if number is None else round(number / (number + len(background) / 2), 4)
        for i, efficiency in enumerate(BACKGROUND_EFFICIENCIES):
            row[f"improvement at {efficiency}"] = round(float(found[:, i].mean()), 3)
            row[f"spread at {efficiency}"] = round(float(found[:, i].std(ddof=1)), 3)
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--background", nargs="+", required=True, help="skims of QCD tt̄")
    parser.add_argument("--signal", nargs="+", required=True, help="skims of the signal, selected alike")
    parser.add_argument("--injected", nargs="+", type=int, default=[0, 50, 100, 200, 400])
    parser.add_argument("--most", type=int, default=None, help="largest number of events of the background")
    parser.add_argument("--trainings", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    background, signal = (read_skims(paths)[0] for paths in (given.background, given.signal))
    background = background[: given.most]
    if max(given.injected) > len(signal):
        parser.error(f"--injected: {max(given.injected)} found, the signal has {len(signal)} events")
    rows = rows_of(background, signal, given.injected, given.trainings)
    write_csv(given.output, rows)


if __name__ == "__main__":
    main()
