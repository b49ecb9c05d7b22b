r"""Reconstructed against true ⟨c_hel⟩ of samples with any spin correlation D.

    python scripts/spin_linearity.py SKIM... --methods dilepton,sonnenschein --json spin.json \
        [--figure spin.png] [--d-of-sample D] [--points 11]

Events are weighted by (1 − D c)/(1 − D₀ c) of their true c = c_hel, where ½(1 − D c) is its distribution
before cuts and D₀ that of the sample (0 for Pythia's own tops, −0.24 with the correlation of QCD), to D from
−0.5 to 0.5. Slope and offset are those of the straight line through ⟨c_hel⟩ of the reconstruction against
that of the truth of the same events, selected and solved, which cuts have moved; errors come from 100
bootstrap samples. Any finite resolution gives a slope below one; what a method has learnt of the spin
correlation of its training sample shows in how the offset depends on that sample.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import mplhep
import numpy as np
from matplotlib.figure import Figure

from topreco.core.errors import TopRecoError
from topreco.core.events import FloatArray
from topreco.core.files import complete_file
from topreco.core.observables import c_hel
from topreco.core.skim import Skim
from topreco.evaluation.style import COLOURS, MARKERS
from topreco.reconstruction.load import load_methods

_RANGE = 0.5
_LEAST = 10


def means(true: FloatArray, reco: FloatArray, weight: FloatArray, d: float, d0: float) -> dict[str, float]:
    """Means of true and reconstructed c_hel in a sample weighted to D, and the error of their difference."""
    w = weight * (1 - d * true) / (1 - d0 * true)
    w = w / w.sum()
    difference = reco - true
    bias = float((w * difference).sum())
    return {
        "d": d,
        "true": float((w * true).sum()),
        "reco": float((w * reco).sum()),
        "bias_error": float(np.sqrt((w**2 * (difference - bias) ** 2).sum())),
    }


def line(points: Sequence[dict[str, float]]) -> tuple[float, float, float]:
    """Slope, offset and largest deviation of the points from the straight line through them."""
    x, y = (np.array([point[name] for point in points]) for name in ("true", "reco"))
    slope, offset = np.polyfit(x, y, 1)
    return float(slope), float(offset), float(np.abs(y - slope * x - offset).max())


def linearity(true: FloatArray, reco: FloatArray, weight: FloatArray, d0: float, n: int) -> dict[str, Any]:
    """Points and line of one method, with the errors of the line from 100 bootstrap samples."""
    grid = np.linspace(-_RANGE, _RANGE, n)
    points = [means(true, reco, weight, float(d), d0) for d in grid]
    slope, offset, deviation = line(points)
    rng = np.random.default_rng(1)
    lines = []
    for _ in range(100):
        w = weight * rng.poisson(1.0, len(weight))
        lines.append(line([means(true, reco, w, d, d0) for d in (-_RANGE, _RANGE)])[:2])
    errors = np.std(lines, axis=0, ddof=1)
    return {
        "n": len(true),
        "slope": slope,
        "slope_error": float(errors[0]),
        "offset": offset,
        "offset_error": float(errors[1]),
        "deviation": deviation,
        "points": points,
    }


def read(skims: Sequence[Path], methods: Sequence[Any]) -> dict[str, list[FloatArray]]:
    """True c_hel, reconstructed c_hel and weight of the events that each method solves.

    Raises
    ------
    TopRecoError
        If a skim has no truth, or a method solves hardly any event.
    """
    parts: dict[str, list[list[FloatArray]]] = {method.name: [] for method in methods}
    for path in skims:
        skim = Skim(path)
        for i in range(skim.n_row_groups):
            events, truth = skim.read_row_group(i)
            if truth is None:
                raise TopRecoError(f"{path}: no truth in this skim")
            true = c_hel(truth.tops, truth.lepton)
            for method in methods:
                pair = method(events)
                found = c_hel(pair.p4, events.lepton_p4)
                good = pair.valid & np.isfinite(true) & np.isfinite(found)
                parts[method.name].append([true[good], found[good], events.weight[good]])
    columns = {name: [np.concatenate(c) for c in zip(*own, strict=True)] for name, own in parts.items()}
    for name, (true, *_) in columns.items():
        if len(true) < _LEAST:
            raise TopRecoError(f"{name}: solves {len(true)} events with truth, at least {_LEAST} expected")
    return columns


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Reconstructed against true means above, their difference below."""
    with mpl.rc_context({**mplhep.style.CMS, "font.size": 20}):
        figure = Figure(figsize=(11, 12), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (2, 1)})
        for i, (name, found) in enumerate(results.items()):
            x, y, error = (
                np.array([point[key] for point in found["points"]]) for key in ("true", "reco", "bias_error")
            )
            style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
            label = f"{name}: slope {found['slope']:.3f}, offset {found['offset']:+.3f}"
            upper.plot(x, y, label=label, linestyle="none", **style)
            lower.errorbar(x, y - x, error, linestyle="none", **style)
        ends = np.array(upper.get_xlim())
        upper.plot(ends, ends, color="grey", linewidth=1)
        lower.axhline(0, color="grey", linewidth=1)
        upper.set_ylabel(r"reconstructed $\langle c_{hel}\rangle$")
        lower.set_ylabel("difference")
        lower.set_xlabel(r"true $\langle c_{hel}\rangle$ of the selected events")
        upper.legend(fontsize=15)
        with complete_file(path) as temporary:
            figure.savefig(temporary, dpi=80)


def run(arguments: Sequence[str] | None = None) -> None:
    """Weight, fit and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("skims", nargs="+", type=Path)
    parser.add_argument("--methods", required=True, help="names and model files, separated by commas")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--d-of-sample", type=float, default=0.0, metavar="D")
    parser.add_argument("--points", type=int, default=11)
    given = parser.parse_args(arguments)
    if not -1 < given.d_of_sample < 1:
        raise TopRecoError(f"--d-of-sample {given.d_of_sample}: a number between -1 and 1 expected")
    methods = load_methods(given.methods.split(","), quantiles=False)
    columns = read(given.skims, methods)
    results = {name: linearity(*own, given.d_of_sample, given.points) for name, own in columns.items()}
    with complete_file(given.json) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    if given.figure is not None:
        draw(results, given.figure)
    print("| method | events | slope | offset | largest deviation from the line |\n|---|---:|---:|---:|---:|")
    for name, r in results.items():
        print(
            f"| {name} | {r['n']} | {r['slope']:.3f} ± {r['slope_error']:.3f} | "
            f"{r['offset']:+.4f} ± {r['offset_error']:.4f} | {r['deviation']:.4f} |"
        )


if __name__ == "__main__":
    try:
        run()
    except (TopRecoError, OSError) as error:
        sys.exit(f"error: {error}")
