r"""Polarisations and spin correlations: reconstructed against true coefficients, docs/POSTERIOR.md.

    python scripts/results/posterior_spin.py --method posterior=dilepton --method sonnenschein \
        --sample delphes=qcd,delphes_11.parquet,delphes_12.parquet --sample own=none,tt_201.parquet

Samples are skims with truth; "qcd" says that the events have the tt̄ spin correlation of QCD, "none" that they
have none. Only events count that all methods solve. Two tables are written:

- ``posterior_spin_coefficients.csv``: the coefficients of the spin density matrix in the samples as they are,
  true and by each method, nothing corrected for acceptance or resolution;
- ``posterior_spin_linearity.csv``: slope and offset of the straight line through reconstructed against true
  coefficients in samples of other weights. "own" weights change one coefficient: 1 + P cosθ of the true
  lepton for a polarisation, with P from −0.3 to 0.3, and 1 + a x for a correlation, with x the true
  cosθ₁ cosθ₂, c_hel or c_han and a from −0.6 to 0.6. "qcd" weights scale the correlation of QCD from 0 to 1
  (`topreco.core.spin.event_spin_weight`).

Errors of the lines are from bootstrap samples, the same for all methods. "relative error" is the statistical
error of the coefficient after division by the slope of its own weights over that with the true momenta, 1/ρ.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

import topreco
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, Truth
from topreco.core.files import write_csv
from topreco.core.observables import AXES, compute_observables, pair_values
from topreco.core.skim import read_skims
from topreco.core.spin import event_spin_weight
from topreco.evaluation.fill import true_values
from topreco.evaluation.style import Label, canvas, marker

POLARISATIONS = {f"B_{leg}{a}": (f"cos_{leg}{a}", 3.0) for leg in (1, 2) for a in AXES}
CORRELATIONS = {f"C_{a}{b}": (f"cos_1{a}_2{b}", -9.0) for a in AXES for b in AXES}
MARKERS_OF_ENTANGLEMENT = {"D": ("c_hel", -3.0), "D_k": ("c_han", 3.0)}
COEFFICIENTS = POLARISATIONS | CORRELATIONS | MARKERS_OF_ENTANGLEMENT
"""Observable whose mean a coefficient is, and factor; see `topreco.core.spin.spin_coefficients`."""
SCALED_BY_QCD = ("C_kk", "C_nn", "C_kr", "C_rk", "D")
"""Coefficients that change with the correlation of QCD; C_rr and D_k of selected events hardly do."""

N_BOOTSTRAP = 200


class Sample(NamedTuple):
    """Events of one sample, and the coefficients of each: true ones, and those of each method."""

    name: str
    correlated: bool
    truth: Truth
    weight: FloatArray
    true: dict[str, FloatArray]
    reconstructed: dict[str, dict[str, FloatArray]]


def read(paths: Sequence[str]) -> tuple[DileptonEvents, Truth]:
    """Dileptonic events of skims with known tops."""
    events, truth = read_skims(paths)
    usable = truth.valid & truth.dileptonic
    return events[usable], truth[usable]


def of_events(values: dict[str, FloatArray], chosen: BoolArray) -> dict[str, FloatArray]:
    """What a coefficient is the mean of, by name, for the chosen events."""
    return {name: factor * values[of][chosen] for name, (of, factor) in COEFFICIENTS.items()}


def reconstruct(name: str, given: str, methods: list[topreco.Method]) -> Sample:
    """Coefficients of the events that all methods solve."""
    correlation, *paths = given.split(",")
    if correlation not in ("qcd", "none") or not paths:
        raise SystemExit(f"--sample {name}={given}: NAME=qcd,FILE... or NAME=none,FILE... expected")
    events, truth = read(paths)
    observables = [of for of, _ in COEFFICIENTS.values()]
    true = true_values(observables, truth)
    found = {m.name: pair_values(m(events), events.lepton_p4, observables) for m in methods}
    everything = [*true.values(), *(x for values in found.values() for x in values.values())]
    common = np.isfinite(everything).all(axis=0)
    print(f"{name}: {common.sum()} of {len(events)} events are solved by all")
    return Sample(
        name,
        correlation == "qcd",
        truth[common],
        events.weight[common],
        of_events(true, common),
        {method: of_events(values, common) for method, values in found.items()},
    )


# ---- coefficients ----------------------------------------------------------------------------------------


def mean(values: FloatArray, weight: FloatArray) -> tuple[float, float]:
    """Weighted mean and its statistical error."""
    share = weight / weight.sum()
    found = float(share @ values)
    return found, float(np.sqrt((share**2) @ (values - found) ** 2))


def coefficient_rows(sample: Sample) -> list[dict[str, Any]]:
    """Coefficients of a sample, a row for each and method; the error of a difference is paired."""
    rows: list[dict[str, Any]] = []
    for name in COEFFICIENTS:
        true, true_error = mean(sample.true[name], sample.weight)
        for method, values in sample.reconstructed.items():
            value, error = mean(values[name], sample.weight)
            difference, paired = mean(values[name] - sample.true[name], sample.weight)
            numbers = {
                "true": true,
                "true error": true_error,
                "reconstructed": value,
                "error": error,
                "difference": difference,
                "difference error": paired,
            }
            rows.append(
                {"sample": sample.name, "coefficient": name, "method": method, "events": len(sample.weight)}
                | {key: f"{x:.4f}" for key, x in numbers.items()}
            )
    return rows


# ---- linearity -------------------------------------------------------------------------------------------


def changed_weights(sample: Sample) -> list[tuple[str, str, FloatArray]]:
    """Coefficient, kind of weights, and the weights of each event on a grid, shape (points, n)."""
    truth = sample.truth
    # A τ flies in the direction of its W's lepton; the true values are those of the e or μ from it.
    leptons = truth.w - truth.neutrino
    values = compute_observables(
        [of for of, _ in COEFFICIENTS.values()], truth.tops, truth.tops.sum(axis=1), leptons, truth.valid
    )
    found = []
    for name, (of, _) in COEFFICIENTS.items():
        largest = 0.3 if name in POLARISATIONS else 0.6
        found.append((name, "own", 1 + np.linspace(-largest, largest, 7)[:, None] * values[of]))
    present = float(sample.correlated)
    scaled = np.stack([event_spin_weight(truth, k, present=present) for k in np.linspace(0, 1, 5)])
    return [*found, *((name, "qcd", scaled) for name in SCALED_BY_QCD)]


def line(weights: FloatArray, true: FloatArray, reconstructed: FloatArray) -> FloatArray:
    """Slope and offset through the means for each point of a grid, shape (2, ...).

    Parameters
    ----------
    weights
        Shape (points, ..., n).
    true, reconstructed
        Coefficients of the events, shape (n,).
    """
    total = weights.sum(axis=-1)
    x, y = weights @ true / total, weights @ reconstructed / total
    centred = x - x.mean(axis=0)
    slope = (centred * y).sum(axis=0) / (centred**2).sum(axis=0)
    return np.stack([slope, y.mean(axis=0) - slope * x.mean(axis=0)])


def linearity_rows(sample: Sample) -> list[dict[str, Any]]:
    """Slope and offset for each coefficient, kind of weights and method."""
    rng = np.random.default_rng(1)
    replicas = rng.poisson(1.0, (N_BOOTSTRAP, len(sample.weight)))
    rows: list[dict[str, Any]] = []
    for name, kind, change in changed_weights(sample):
        known = np.isfinite(change).all(axis=0)
        weights = sample.weight[known] * change[:, known]
        true = sample.true[name][known]
        # The points of a grid are nearly on a line: its ends have the error of all.
        ends = weights[[0, -1], None] * replicas[:, known]
        for method, values in sample.reconstructed.items():
            slope, offset = line(weights, true, values[name][known])
            slope_error, offset_error = line(ends, true, values[name][known]).std(axis=1, ddof=1)
            numbers = {
                "slope": slope,
                "slope error": slope_error,
                "offset": offset,
                "offset error": offset_error,
            }
            if kind == "own":
                numbers["relative error"] = values[name].std() / sample.true[name].std() / abs(slope)
            rows.append(
                {"sample": sample.name, "coefficient": name, "weights": kind, "method": method}
                | {"events": int(known.sum())}
                | {key: f"{x:.4f}" for key, x in numbers.items()}
            )
    return rows


# ---- output ----------------------------------------------------------------------------------------------


def draw(linearity: list[dict[str, Any]], coefficients: list[dict[str, Any]], path: Path) -> None:
    """Slope and 1/ρ in the first sample, and reconstructed less true coefficients in each sample."""
    samples = list(dict.fromkeys(row["sample"] for row in coefficients))
    methods = list(dict.fromkeys(row["method"] for row in coefficients))
    names = list(COEFFICIENTS)
    panels = [("slope", linearity, samples[0], "slope"), ("1/ρ", linearity, samples[0], "relative error")]
    panels += [(f"reco − true\n{sample}", coefficients, sample, "difference") for sample in samples]
    with canvas(Label(), width=16.0, heights=[1] * len(panels)) as (figure, axes):
        for axis, (label, rows, sample, key) in zip(axes, panels, strict=True):
            axis.axhline(float(key != "difference"), color="black", linewidth=1)
            for i, method in enumerate(methods):
                own = {
                    row["coefficient"]: row
                    for row in rows
                    if (row["sample"], row["method"], row.get("weights", "own")) == (sample, method, "own")
                }
                x = np.arange(len(names)) + 0.17 * (i - (len(methods) - 1) / 2)
                y = [float(own[name][key]) for name in names]
                # The spread has an error far below the size of its marker.
                error = [float(own[name].get(f"{key} error", 0)) for name in names]
                axis.errorbar(x, y, error, label=method, **marker(i))
            axis.set_ylabel(label, fontsize=20)
            axis.yaxis.set_major_locator(MaxNLocator(4, prune="both"))
            for edge in np.arange(len(names) - 1) + 0.5:
                axis.axvline(edge, color="lightgrey", linewidth=1, zorder=0)
        axes[0].set_ylim(0.0, 1.3)
        axes[0].legend(loc="upper right", ncols=len(methods), fontsize=16, borderpad=0)
        subscripts = [name.partition("_") for name in names]
        ticks = [rf"${head}_{{{tail}}}$" if tail else f"${head}$" for head, _, tail in subscripts]
        axes[-1].set_xticks(range(len(names)), ticks, fontsize=18)
        axes[-1].minorticks_off()
        axes[-1].set_xlim(-0.5, len(names) - 0.5)
    figure.savefig(path, dpi=60)
    print(path)


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE, or VALUE alone as its own name."""
    name, _, value = text.rpartition("=")
    return name or value, value


def main() -> None:
    """Reconstruct, write the tables, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", action="append", type=pair, required=True, metavar="[NAME=]METHOD")
    parser.add_argument(
        "--sample", action="append", type=pair, required=True, metavar="NAME=qcd|none,FILE..."
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", type=Path, default=Path("docs/tables"))
    parser.add_argument("--figures", type=Path, default=Path("docs/figures"))
    given = parser.parse_args()
    methods = [
        topreco.load(source, name=name, threads=given.threads, quantiles=False)
        for name, source in given.method
    ]
    samples = [reconstruct(name, value, methods) for name, value in given.sample]
    coefficients = [row for sample in samples for row in coefficient_rows(sample)]
    linearity = [row for sample in samples for row in linearity_rows(sample)]
    for name, rows in (("coefficients", coefficients), ("linearity", linearity)):
        path = given.tables / f"posterior_spin_{name}.csv"
        write_csv(path, rows)
        print(path)
    draw(linearity, coefficients, given.figures / "posterior_spin.png")


if __name__ == "__main__":
    main()
