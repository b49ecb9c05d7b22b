"""What pile-up does to the methods: one table for skims without and with it.

    python scripts/results/pileup_models.py --without SKIM... --with SKIM... -o results/pileup_models.csv

SKIM is a file of `topreco skim` (skim-tight.yaml) of simulated events. Bias and half of the central 68 % of
reconstructed − true, relative for m(tt̄) and in GeV for pT, and the correlation ρ of both. Errors by bootstrap
of hard events: copies with new decays share the event's key.
"""

import argparse
import csv
from pathlib import Path

import numpy as np

import topreco
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, IntArray, Truth
from topreco.core.observables import pair_values
from topreco.core.skim import Skim, read_skims
from topreco.evaluation.fill import true_values

OBSERVABLES = ("m_tt", "pt_top", "pt_tt", "c_hel", "c_han")
_RELATIVE = ("m_tt",)
_REPLICAS = 200


def read(paths: list[Path]) -> tuple[DileptonEvents, Truth, IntArray]:
    """Dileptonic events of skims with known tops, and a number of the hard event of each."""
    events, truth = read_skims(paths)
    # Files of other seeds have the same event numbers.
    number = np.repeat(np.arange(len(paths)), [len(Skim(path)) for path in paths])
    hard = events.event.astype(np.int64) * len(paths) + number
    usable = truth.valid & truth.dileptonic
    return events[usable], truth[usable], hard[usable]


def metrics(predicted: FloatArray, true: FloatArray, relative: bool) -> tuple[float, float, float]:
    """Bias, 68 % half-width and correlation."""
    residual = (predicted - true) / (true if relative else 1.0)
    low, high = np.quantile(residual, [0.1587, 0.8413])
    return float(residual.mean()), float((high - low) / 2), float(np.corrcoef(predicted, true)[0, 1])


def with_errors(predicted: FloatArray, true: FloatArray, relative: bool, key: IntArray) -> list[float]:
    """The three metrics, each followed by its error."""
    rng = np.random.default_rng(1)
    _, hard = np.unique(key, return_inverse=True)
    order = np.argsort(hard, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(hard))])
    replicas = []
    for _ in range(_REPLICAS):
        drawn = rng.integers(len(offsets) - 1, size=len(offsets) - 1)
        rows = np.concatenate([order[offsets[i] : offsets[i + 1]] for i in drawn])
        replicas.append(metrics(predicted[rows], true[rows], relative))
    errors = np.std(replicas, axis=0)
    return [value for pair in zip(metrics(predicted, true, relative), errors, strict=True) for value in pair]


def main() -> None:
    """Read the skims and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--without", nargs="+", type=Path, required=True, help="skims without pile-up")
    parser.add_argument("--with", nargs="+", type=Path, required=True, dest="pileup", help="skims with it")
    parser.add_argument("-m", "--method", nargs="+", default=["dilepton", "sonnenschein"])
    parser.add_argument("-o", "--output", type=Path, default=Path("results/pileup_models.csv"))
    given = parser.parse_args()
    rows = []
    for sample, paths in (("without", given.without), ("with", given.pileup)):
        events, truth, hard = read(paths)
        true = true_values(OBSERVABLES, truth)
        for name in given.method:
            pair = topreco.load(name, threads=1)(events)
            found = pair_values(pair, events.lepton_p4, OBSERVABLES)
            for observable in OBSERVABLES:
                good: BoolArray = np.isfinite(found[observable]) & np.isfinite(true[observable])
                values = with_errors(
                    found[observable][good],
                    np.asarray(true[observable], np.float64)[good],
                    observable in _RELATIVE,
                    hard[good],
                )
                rows.append([sample, name, observable, len(good), int(good.sum()), *values])
    given.output.parent.mkdir(parents=True, exist_ok=True)
    header = ["pileup", "method", "observable", "events", "solved", "bias", "bias_error"]
    header += ["width68", "width68_error", "rho", "rho_error"]
    with given.output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()
