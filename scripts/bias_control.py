r"""Compare options against shrinkage to the mean: one figure, one table, and the recalibration curves.

    python scripts/bias_control.py SKIM... --calibrate SKIM... --models A.safetensors,B.safetensors,... \
        --json bias.json --figure bias.png [--write-curves FOLDER] [--dataset NAME]

The models are trained alike but for the option that they stand for. The first is the reference: it is also
shown with its m_tt recalibrated, in bins of the prediction and in bins of the truth, by curves fitted to the
events of ``--calibrate``. All are tested on the events of the skims; the JSON is that of
`compare_methods.py`.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mplhep
import numpy as np
from compare_methods import CompareConfig, compare, open_sample, to_plain
from matplotlib.figure import Figure

from topreco.config import build_config
from topreco.core.errors import TopRecoError
from topreco.core.files import complete_file
from topreco.core.method import Method
from topreco.core.observables import m_tt
from topreco.core.skim import Skim
from topreco.evaluation.style import COLOURS, MARKERS
from topreco.evaluation.summary import summarise
from topreco.reconstruction.load import load_methods
from topreco.reconstruction.recalibration import ResponseCurve, fit_response_curve
from topreco.reconstruction.wrappers import Recalibrated

NUMBERS = {
    "rb": "RB",
    "res": "Res",
    "slope": "slope",
    "correlation": "ρ",
    "rms_linearised": "RMS lin.",
    "width68_linearised": "width68 lin.",
}
"""Columns of the table, all of m_tt over all events."""

_LARGEST_MASS = 1400.0


def fit_curves(method: Method, skims: Sequence[Path]) -> dict[str, ResponseCurve]:
    """Curves of a method in bins of the prediction and of the truth, from skims with truth.

    Raises
    ------
    TopRecoError
        If a skim has no truth, or there are too few events.
    """
    columns = []
    for path in skims:
        skim = Skim(path)
        for i in range(skim.n_row_groups):
            events, truth = skim.read_row_group(i)
            if truth is None:
                raise TopRecoError(f"{path}: no truth in this skim")
            columns.append((m_tt(method(events).p4), m_tt(truth.tops), events.weight))
    arrays = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
    return {kind: fit_response_curve(*arrays, bins_of=kind) for kind in ("prediction", "truth")}


def _number(value: float | None) -> float:
    """A number of the JSON, where undefined ones are null."""
    return math.nan if value is None else value


def draw(results: dict[str, Any], path: Path) -> None:
    """Bias and width against the truth above, slope, correlation and linearised width below."""
    with mpl.rc_context({**mplhep.style.CMS, "font.size": 18}):
        figure = Figure(figsize=(18, 13), layout="constrained")
        grid = figure.add_gridspec(2, 6)
        upper = [figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])]
        lower = [figure.add_subplot(grid[1, 2 * i : 2 * i + 2]) for i in range(3)]
        for axes, name, label in zip(upper, ("rb", "res"), ("RB", "Res"), strict=True):
            for i, (method, found) in enumerate(results.items()):
                bins = [b for b in found["bins"] if b["low"] and b["high"] and b["high"] <= _LARGEST_MASS]
                shift = 0.04 * (i - (len(results) - 1) / 2)
                axes.errorbar(
                    [b["low"] + (0.5 + shift) * (b["high"] - b["low"]) for b in bins],
                    *([_number(b[key]) for b in bins] for key in (name, f"{name}_error")),
                    label=method,
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                    linestyle="none",
                )
            axes.set_xlabel(r"true $m_{t\bar{t}}$ [GeV]")
            axes.set_ylabel(rf"{label} of $m_{{t\bar{{t}}}}$")
        upper[0].axhline(0, color="grey", linewidth=1)
        upper[0].legend(fontsize=15)
        for axes, name in zip(lower, ("slope", "correlation", "width68_linearised"), strict=True):
            for i, (method, found) in enumerate(results.items()):
                axes.errorbar(
                    _number(found[name]),
                    -i,
                    xerr=_number(found[f"{name}_error"]),
                    color=COLOURS[i % len(COLOURS)],
                    marker=MARKERS[i % len(MARKERS)],
                )
                if found[name] is not None:
                    place = {"xytext": (0, 12), "textcoords": "offset points", "ha": "center", "size": 13}
                    axes.annotate(method, (found[name], -i), **place)
            axes.set_yticks([])
            axes.set_ylim(-len(results) + 0.3, 0.8)
            axes.margins(x=0.35)
            axes.set_xlabel({"correlation": "ρ"}.get(name, NUMBERS[name]) + r" of $m_{t\bar{t}}$")
        with complete_file(path) as temporary:
            figure.savefig(temporary, dpi=80)


def run(arguments: Sequence[str] | None = None) -> None:
    """Fit, compare and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("skims", nargs="+", type=Path)
    parser.add_argument("--calibrate", nargs="+", type=Path, required=True, metavar="SKIM")
    parser.add_argument(
        "--models", required=True, help="model files, separated by commas, the reference first"
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--figure", type=Path, required=True)
    parser.add_argument("--write-curves", type=Path, metavar="FOLDER")
    parser.add_argument("--dataset")
    given = parser.parse_args(arguments)
    models = load_methods(given.models.split(","), quantiles=False)
    curves = fit_curves(models[0], given.calibrate)
    recalibrated = [
        Recalibrated(models[0], curve, name=f"{models[0].name}, bins of {kind}")
        for kind, curve in curves.items()
    ]
    changes = {} if given.dataset is None else {"dataset": given.dataset}
    settings = build_config(CompareConfig, changes, "bias_control.py")
    sample = open_sample([str(path) for path in given.skims], settings)
    histograms, n_events = compare(sample, [*models, *recalibrated], settings.histograms)
    plain = to_plain(summarise(histograms), sample.dataset)
    results = {method: found["m_tt"] for method, found in plain["all"].items()}
    with complete_file(given.json) as temporary:
        temporary.write_text(json.dumps({"n_events": n_events} | plain, indent=1, allow_nan=False) + "\n")
    for kind, curve in curves.items() if given.write_curves else ():
        curve.write(given.write_curves / f"{models[0].name}_{kind}.json")
    draw(results, given.figure)
    print("| | " + " | ".join(NUMBERS.values()) + " |\n|---|" + "---:|" * len(NUMBERS))
    for method, found in results.items():
        print(f"| {method} | " + " | ".join(f"{_number(found[name]):.3f}" for name in NUMBERS) + " |")


if __name__ == "__main__":
    try:
        run()
    except (TopRecoError, OSError) as error:
        sys.exit(f"error: {error}")
