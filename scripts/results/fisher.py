r"""Expected statistical error of a signal fraction: learned observable against binnings, docs/SIGNALS.md.

    python scripts/results/fisher.py --background tt_spin_201_tight.parquet --signal threshold_tight.parquet \
        --method dilepton --method sonnenschein --events 10000 -o docs/tables/fisher_threshold.csv

The spectrum is (1 − f) b + f s with templates b of QCD and s of the signal, f = 0, and a fixed number of
events N. The Fisher information is N Σ (s − b)²/b over bins [1], and the error of f its root's inverse.
Templates of few events are rough and seem to differ: the expectation of that, the variance of s − b, is taken
off each term. Errors of the table are from bootstrap samples of both templates.

[1] J. Brehmer, K. Cranmer, F. Kling, T. Plehn, Better Higgs boson measurements through information geometry,
arXiv:1612.05261.

Observables: m_tt, c_hel, m_tt × c_hel and m_tt × c_hel × c_han of each method in the bins of
``threshold.yaml``, with neighbouring bins of m_tt merged in pairs; and a network of reconstructed objects
(`topreco.measurement.diagnose.object_columns`), cross-fitted, in 20 bins of equal population of background.
With ``--with-method`` the network also sees the observables of the first method. Events that a method does
not solve are a bin of their own.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import topreco
from topreco.config import RunConfig, load_config
from topreco.core.events import DileptonEvents, FloatArray, IntArray
from topreco.core.files import write_csv
from topreco.core.observables import pair_values
from topreco.core.skim import read_skims
from topreco.measurement.classifier import ClassifierSettings, cross_fitted, fit_log_ratio
from topreco.measurement.diagnose import object_columns

SPINS = ("m_tt", "c_hel", "c_han")
COMBINATIONS = (("m_tt",), ("c_hel",), ("m_tt", "c_hel"), SPINS)
N_BOOTSTRAP = 100
N_SCORE_BINS = 20
FOLDS = 5
SETTINGS = ClassifierSettings(hidden=32, epochs=20, batch_size=100, learning_rate=5e-3)


def information(bins: IntArray, is_signal: Any, weight: FloatArray) -> float:
    """Fisher information per event about a small fraction of signal, at 0, less its bias by finite templates.

    Parameters
    ----------
    bins
        Bin of each event, shape (n,).
    is_signal
        Whether it belongs to the signal, shape (n,).
    weight
        Weights, shape (n,).
    """
    size = int(bins.max()) + 1
    templates, variances = [], []
    for chosen in (is_signal, ~is_signal):
        total = weight[chosen].sum()
        shape = np.bincount(bins[chosen], weight[chosen], size) / total
        # Of weights that add up to 1, the multinomial variance.
        squares = np.bincount(bins[chosen], weight[chosen] ** 2, size) / total**2
        templates.append(shape)
        variances.append(squares * (1 - shape))
    s, b = templates
    filled = b > 0
    return float((((s - b) ** 2 - variances[0] - variances[1])[filled] / b[filled]).sum())


def error_of_fraction(bins: IntArray, is_signal: Any, weight: FloatArray, events: int) -> tuple[float, float]:
    """Expected error of the fraction with a number of events, and its uncertainty by finite templates."""
    rng = np.random.default_rng(4)
    value = information(bins, is_signal, weight)
    found = [information(bins, is_signal, weight * rng.poisson(1.0, len(weight))) for _ in range(N_BOOTSTRAP)]
    spread = float(np.std(found))
    if value <= 0:
        return np.nan, np.nan
    error = 1 / np.sqrt(events * value)
    return float(error), float(error * spread / (2 * value))


def joint_bins(values: Sequence[FloatArray], edges: Sequence[FloatArray]) -> IntArray:
    """Bin in several observables, those beyond the edges in the outer ones; the last is for no value."""
    known = np.isfinite(values).all(axis=0)
    sizes = [len(edge) - 1 for edge in edges]
    index = [
        np.clip(np.searchsorted(edge, value, side="right") - 1, 0, len(edge) - 2)
        for value, edge in zip(values, edges, strict=True)
    ]
    return np.where(known, np.ravel_multi_index(index, sizes), int(np.prod(sizes)))


def score_bins(x: FloatArray, is_signal: Any, weight: FloatArray, fold: IntArray) -> IntArray:
    """Bins of the log-ratio of signal to background of networks that have not seen the events."""

    def fit(rows: Any, number: int) -> Any:
        s, b = (np.where(chosen[rows], weight[rows], 0.0) for chosen in (is_signal, ~is_signal))
        return fit_log_ratio(x[rows], s, b, SETTINGS, (3, number))

    score = cross_fitted(fit, x, fold, FOLDS)
    edges = np.quantile(score[~is_signal], np.linspace(0, 1, N_SCORE_BINS + 1)[1:-1])
    return np.searchsorted(edges, score, side="right")


def rows_of(
    background: DileptonEvents,
    signal: DileptonEvents,
    methods: Sequence[str],
    events: int,
    *,
    with_method: bool = False,
) -> list[dict[str, Any]]:
    """Rows of the table."""
    is_signal = np.arange(len(signal) + len(background)) < len(signal)
    both = DileptonEvents.concatenate([signal, background])
    weight = both.weight.astype(float)
    edges = {
        name: np.array(e)
        for name, e in load_config(RunConfig, "threshold.yaml", []).histograms.joint["threshold"].items()
    }
    edges["m_tt"] = edges["m_tt"][::2]
    rows = []

    def add(method: str, observable: str, bins: IntArray) -> None:
        error, uncertainty = error_of_fraction(bins, is_signal, weight, events)
        rows.append(
            {
                "method": method,
                "observable": observable,
                "bins": int(bins.max()) + 1,
                "error of fraction": round(error, 5),
                "uncertainty": round(uncertainty, 5),
            }
        )

    columns = list(object_columns(both).values())
    own: list[FloatArray] = []
    for number, name in enumerate(methods):
        pair = topreco.load(name, quantiles=False)(both)
        values = pair_values(pair, both.lepton_p4, SPINS)
        for names in COMBINATIONS:
            add(name, " × ".join(names), joint_bins([values[n] for n in names], [edges[n] for n in names]))
        if number == 0:
            # An event without a solution has no value: one that no other has, and a flag beside it.
            own = [np.nan_to_num(values[n], nan=-2.0) for n in SPINS] + [pair.valid.astype(float)]
    fold = np.minimum((both.uniform(17) * FOLDS).astype(int), FOLDS - 1)
    add("network", "objects", score_bins(np.stack(columns, 1), is_signal, weight, fold))
    if with_method and methods:
        x = np.stack([*columns, *own], 1)
        add("network", f"objects and {methods[0]}", score_bins(x, is_signal, weight, fold))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--background", nargs="+", required=True, help="skims of QCD tt̄")
    parser.add_argument("--signal", nargs="+", required=True, help="skims of the signal, selected alike")
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--with-method", action="store_true")
    parser.add_argument("--events", type=int, default=10_000, help="number of events of the measurement")
    parser.add_argument("--most", type=int, default=None, help="largest number of events of each template")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    background, signal = (read_skims(paths)[0][: given.most] for paths in (given.background, given.signal))
    rows = rows_of(background, signal, given.method, given.events, with_method=given.with_method)
    write_csv(given.output, rows)


if __name__ == "__main__":
    main()
