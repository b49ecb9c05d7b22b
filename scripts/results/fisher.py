r"""Expected statistical error of a parameter: learned observables against binnings, docs/SIGNALS.md.

    python scripts/results/fisher.py fraction --background qcd.root --signal threshold.root \
        --method dilepton --method sonnenschein --with-method -o docs/tables/signals_fisher_threshold.csv
    python scripts/results/fisher.py kappa --background qcd.root --present 0 \
        -o docs/tables/signals_fisher_kappa.csv
    python scripts/results/fisher.py mass --background mt160.root --signal mt185.root --difference 25 \
        -o docs/tables/signals_fisher_mass.csv

The spectrum is (1 − λ) b + λ s with templates b and s and a fixed number of events N. What λ is:

- ``fraction``: of signal (s) among QCD tt̄ (b), near 0;
- ``kappa``: spin correlation in units of that of leading-order QCD, near 1; s and b are the same events,
  weighted to κ = 1 and κ = 0 (`topreco.core.spin.event_spin_weight`), and the density is linear in κ;
- ``mass``: of the top, between the masses of two samples, in the middle of them.

The Fisher information is N Σ (s − b)²/p over bins [1], p the spectrum, and the error of λ its root's inverse.
Templates of few events are rough and seem to differ: the expectation of that, the variance of s − b, is taken
off each term. A variation of the detector moves the fitted λ by Σ (s − b) δp/p / Σ (s − b)²/p in a fit that
knows nothing of it, δp being the difference of varied and nominal spectra of the same number of events.
Uncertainties are from a jackknife over hard events, so that new decays of an event are not taken for events.

[1] J. Brehmer, K. Cranmer, F. Kling, T. Plehn, Better Higgs boson measurements through information geometry,
arXiv:1612.05261.

Files are simulated NanoAOD; the selection and the bins are those of ``threshold.yaml``. Observables: m_tt,
c_hel, and their products with c_han, of each method; a network of reconstructed objects
(`topreco.measurement.diagnose.object_columns`) and of invariant masses of leptons and jets, cross-fitted, in
20 bins of equal population; with ``--with-method`` it also sees the observables of the first method; with
``--ratio`` models of the task `ratio`. Events that a method does not solve are a bin of their own.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import topreco
from topreco.config import RunConfig, SystematicsConfig, load_config
from topreco.core import fourvector
from topreco.core.events import DileptonEvents, FloatArray, IntArray, Truth
from topreco.core.files import write_csv
from topreco.core.observables import pair_values
from topreco.core.spin import event_spin_weight
from topreco.input.branches import Branches
from topreco.input.nano import inspect_file, iterate_events
from topreco.input.required import fit_files
from topreco.input.selection import select_objects
from topreco.input.systematics import variations
from topreco.input.truth import read_truth
from topreco.measurement.classifier import ClassifierSettings, cross_fitted, fit_log_ratio
from topreco.measurement.diagnose import object_columns

SPINS = ("m_tt", "c_hel", "c_han")
COMBINATIONS = (("m_tt",), ("c_hel",), ("c_hel", "c_han"), ("m_tt", "c_hel"), SPINS)
N_BLOCKS = 20
N_SCORE_BINS = 20
FOLDS = 5
SETTINGS = ClassifierSettings(hidden=32, epochs=20, batch_size=100, learning_rate=5e-3)

NOMINAL = "nominal"
JES, SMEARING = 0.03, 0.1
"""Relative change of the energy of jets, and smearing of it. Small ones would drown in the migration of
single events; `MOVES` scales down what they do, linear in the first and in the square of the second."""
SOURCES: tuple[tuple[Mapping[str, Any], Mapping[str, str]], ...] = (
    (
        {
            "jes": {"object": "jet", "kind": "shift", "flat": JES},
            "met": {"object": "met", "kind": "unclustered"},
        },
        {name: name for name in (NOMINAL, "jes_up", "jes_down", "met_up", "met_down")},
    ),
    ({"jer": {"object": "jet", "kind": "smear", "flat": SMEARING}}, {NOMINAL: "jer_up"}),
)
"""Sources of variations, and what is called how of what they give."""
VARIED = (NOMINAL, "jes_up", "jes_down", "jer_up", "met_up", "met_down")
WORSE = 1.1**2 - 1
"""Square of the smearing, in units of the resolution, that makes it worse by a tenth."""
MOVES = {
    "JES": {"jes_up": 0.01 / (2 * JES), "jes_down": -0.01 / (2 * JES)},
    "JER": {"jer_up": WORSE, NOMINAL: -WORSE},
    "MET": {"met_up": 0.5, "met_down": -0.5},
}
"""Columns of the table, and the combinations of spectra that they are: jets with 1 % more energy, and with a
resolution of 11 % in place of 10 %; unclustered energy by one standard deviation up, as the files have it."""


class Sample(NamedTuple):
    """Nominal and varied events of both templates.

    Attributes
    ----------
    events
        All events, n of them.
    weight
        In s and in b, shape (2, n).
    variation
        Place in `VARIED`, shape (n,).
    """

    events: DileptonEvents
    weight: FloatArray
    variation: IntArray


class Templates:
    """Normalised histograms of the same events with several weights, and their covariances.

    Parameters
    ----------
    bins, group
        Bin of each event, and the hard event that it is of, shape (n,).
    weight
        Shape (t, n).
    """

    def __init__(self, bins: IntArray, group: IntArray, weight: FloatArray) -> None:
        size = int(bins.max()) + 1
        cell, place = np.unique(group * size + bins, return_inverse=True)
        self.bin = cell % size
        _, self.group = np.unique(cell // size, return_inverse=True)
        # A template that nothing uses may be empty.
        scaled = weight / np.where(weight.any(1), weight.sum(1), 1.0)[:, None]
        self.cells = np.stack([np.bincount(place, w) for w in scaled])
        self.shape = np.stack([np.bincount(self.bin, w, size) for w in self.cells])
        self.of_group = np.stack([np.bincount(self.group, w) for w in self.cells])

    def __call__(self, combination: FloatArray) -> FloatArray:
        """Bins of a linear combination, shape (bins,)."""
        return combination @ self.shape

    def covariance(self, first: FloatArray, second: FloatArray) -> FloatArray:
        """Covariance of two combinations in each bin, from the influence of each hard event on them."""
        size = self.shape.shape[1]
        cells = [combination @ self.cells for combination in (first, second)]
        found = np.bincount(self.bin, cells[0] * cells[1], size)
        # What an event adds to the norm it takes from all bins.
        for combination, other in ((first, cells[1]), (second, cells[0])):
            for number in np.flatnonzero(combination):
                norm = self.of_group[number, self.group]
                found -= combination[number] * self.shape[number] * np.bincount(self.bin, other * norm, size)
        norms = self.of_group @ self.of_group.T
        return found + np.einsum(
            "xk,xy,yk->k", first[:, None] * self.shape, norms, second[:, None] * self.shape
        )


def measure(templates: Templates, at: float) -> FloatArray:
    """Information per event about λ, and what the variations of `MOVES` do to λ.

    Parameters
    ----------
    templates
        s and b of each of `VARIED` in turn.
    at
        λ at which the spectrum is taken.
    """
    unit = np.eye(2 * len(VARIED))
    s, b = unit[0::2], unit[1::2]
    spectrum = at * s + (1 - at) * b
    difference = s[0] - b[0]
    p = templates(spectrum[0])
    filled = p > 0

    def product(other: FloatArray) -> float:
        terms = templates(difference) * templates(other) - templates.covariance(difference, other)
        return float((terms[filled] / p[filled]).sum())

    information = product(difference)
    moves = [
        sum(factor * spectrum[VARIED.index(name)] for name, factor in move.items()) for move in MOVES.values()
    ]
    return np.array([information, *(product(np.asarray(move)) / information for move in moves)])


def results(
    bins: IntArray, group: IntArray, block: IntArray, weight: FloatArray, at: float, events: int, unit: float
) -> dict[str, float]:
    """Expected error of the parameter, its shifts by variations, and their uncertainties.

    Parameters
    ----------
    bins, group, block
        Bin of each event, its hard event, and that one's block in the jackknife, shape (n,).
    weight
        Of the templates that `measure` takes, shape (t, n).
    at
        λ.
    events
        Number of events of the measurement.
    unit
        Change of the parameter from λ = 0 to 1.
    """

    def found(chosen: Any) -> FloatArray:
        information, *shifts = measure(Templates(bins[chosen], group[chosen], weight[:, chosen]), at)
        # No information is left where templates are not told apart.
        error = 1 / np.sqrt(events * information) if information > 0 else np.nan
        return unit * np.array([error, *shifts])

    value = found(np.ones(len(bins), np.bool_))
    replicas = np.array([found(block != number) for number in range(N_BLOCKS)])
    spread = np.sqrt((N_BLOCKS - 1) * np.var(replicas, axis=0))
    names = ("error", *(f"shift by {name}" for name in MOVES))
    return {
        key: round(float(cell), 6)
        for name, *cells in zip(names, value, spread, strict=True)
        for key, cell in zip((name, f"{name} uncertainty"), cells, strict=True)
    }


def joint_bins(values: Sequence[FloatArray], edges: Sequence[FloatArray]) -> IntArray:
    """Bin in several observables, those beyond the edges in the outer ones; the last is for no value."""
    known = np.isfinite(values).all(axis=0)
    sizes = [len(edge) - 1 for edge in edges]
    index = [
        np.clip(np.searchsorted(edge, value, side="right") - 1, 0, len(edge) - 2)
        for value, edge in zip(values, edges, strict=True)
    ]
    return np.where(known, np.ravel_multi_index(index, sizes), int(np.prod(sizes)))


def score_bins(score: FloatArray, of_background: Any) -> IntArray:
    """Bins of a log-ratio that hold as many events of the background."""
    edges = np.quantile(score[of_background], np.linspace(0, 1, N_SCORE_BINS + 1)[1:-1])
    return np.searchsorted(edges, score, side="right")


def mass_columns(events: DileptonEvents) -> list[FloatArray]:
    """Masses of pairs of leptons and leading jets, and of all four without and with MET, each (n,)."""
    objects = [*events.lepton_p4.swapaxes(0, 1), *events.jets[:, :2].swapaxes(0, 1)]
    met = np.stack([np.hypot(*events.met.T), *events.met.T, np.zeros(len(events))], axis=1)
    visible = np.sum(objects, axis=0)
    sums = [a + b for a, b in itertools.combinations(objects, 2)]
    return [fourvector.mass(p4) for p4 in (*sums, visible, visible + met)]


def table(
    sample: Sample,
    methods: Sequence[str],
    events: int,
    *,
    at: float = 0.0,
    unit: float = 1.0,
    with_method: bool = False,
    ratios: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Rows of the table."""
    both = sample.events
    joint = load_config(RunConfig, "threshold.yaml", []).histograms.joint["threshold"]
    edges = {name: np.array(values) for name, values in joint.items()}
    weight = np.concatenate([sample.weight * (sample.variation == number) for number in range(len(VARIED))])
    # New decays of a hard event have its key.
    _, group = np.unique(both.uniform(13), return_inverse=True)
    block = np.minimum((both.uniform(19) * N_BLOCKS).astype(int), N_BLOCKS - 1)
    fold = np.minimum((both.uniform(17) * FOLDS).astype(int), FOLDS - 1)
    is_nominal = sample.variation == 0
    of_background = is_nominal & (sample.weight[1] > 0)
    rows = []

    def add(method: str, observable: str, bins: IntArray) -> None:
        found = results(bins, group, block, weight, at, events, unit)
        rows.append({"method": method, "observable": observable, "bins": int(bins.max()) + 1} | found)

    def learned(observable: str, columns: Sequence[FloatArray]) -> None:
        x = np.stack(columns, 1)

        def fit(rows: Any, number: int) -> Any:
            used = rows & is_nominal
            return fit_log_ratio(x[used], *sample.weight[:, used], SETTINGS, (3, number))

        add("network", observable, score_bins(cross_fitted(fit, x, fold, FOLDS), of_background))

    columns = [*object_columns(both).values(), *mass_columns(both)]
    own: list[FloatArray] = []
    for number, name in enumerate(methods):
        pair = topreco.load(name, quantiles=False)(both)
        values = pair_values(pair, both.lepton_p4, SPINS)
        for names in COMBINATIONS:
            add(name, " × ".join(names), joint_bins([values[n] for n in names], [edges[n] for n in names]))
        if number == 0:
            # An event without a solution has no value: one that no other has, and a flag beside it.
            own = [np.nan_to_num(values[n], nan=-2.0) for n in SPINS] + [pair.valid.astype(float)]
    learned("objects", columns)
    if with_method and methods:
        learned(f"objects and {methods[0]}", [*columns, *own])
    for name, file in (ratios or {}).items():
        add(name, "objects", score_bins(topreco.load(file).log_ratio(both), of_background))
    return rows


# ---- input -----------------------------------------------------------------------------------------------


def read(paths: Sequence[str], *, varied: bool) -> list[tuple[DileptonEvents, Truth, int]]:
    """Selected events, their truth and the place of their variation in `VARIED`."""
    config = load_config(RunConfig, "threshold.yaml", [])
    found = []
    for path in paths:
        selection = fit_files(config.selection, {path: inspect_file(path)})
        for events in iterate_events(path):
            branches = Branches(events, selection)
            for objects, names in SOURCES:
                sources = SystematicsConfig.model_validate({"objects": objects})
                for name, changed in variations(branches, selection, sources):
                    called = names[name]
                    if varied or called == NOMINAL:
                        selected = select_objects(changed, selection, dataset=Path(path).stem)
                        truth = read_truth(branches[selected.index])
                        found.append((selected.events, truth, VARIED.index(called)))
    return found


def sample_of(parameter: str, background: Sequence[str], signal: Sequence[str], present: float) -> Sample:
    """Events and weights of both templates.

    Parameters
    ----------
    parameter
        ``fraction``, ``kappa`` or ``mass``.
    background, signal
        Files; without signal for ``kappa``.
    present
        Spin correlation that QCD samples have, in units of that at leading order.
    """
    parts = []
    for paths, is_signal in ((background, False), (signal, True)):
        is_qcd = not is_signal or parameter == "mass"
        for events, truth, variation in read(paths, varied=is_qcd):
            weight = events.weight.astype(float)
            nothing = np.zeros(len(events))
            if is_qcd and (present != 1 or parameter == "kappa"):
                with_spin = weight * event_spin_weight(truth, 1.0, present=present)
                if bad := int((~np.isfinite(with_spin)).sum()):
                    raise SystemExit(f"{paths}: {bad} events without a weight of spin, tt̄ of QCD expected")
            else:
                with_spin = weight
            if parameter == "kappa":
                both = [with_spin, weight * event_spin_weight(truth, 0.0, present=present)]
            else:
                both = [with_spin, nothing] if is_signal else [nothing, with_spin]
            parts.append((events, np.stack(both), np.full(len(events), variation)))
    events, weights, variation = zip(*parts, strict=True)
    return Sample(DileptonEvents.concatenate(events), np.concatenate(weights, 1), np.concatenate(variation))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parameter", choices=["fraction", "kappa", "mass"])
    parser.add_argument("--background", nargs="+", required=True, help="QCD tt̄, NanoAOD")
    parser.add_argument("--signal", nargs="+", default=[], help="signal, or QCD tt̄ with the larger mass")
    parser.add_argument("--present", type=float, default=1.0, help="spin correlation of QCD samples")
    parser.add_argument("--difference", type=float, default=25.0, help="of the masses in GeV")
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--with-method", action="store_true")
    parser.add_argument("--ratio", action="append", default=[], help="NAME=FILE of a model of the task ratio")
    parser.add_argument("--events", type=int, default=10_000, help="number of events of the measurement")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    if (given.parameter == "kappa") == bool(given.signal):
        parser.error(f"--signal: {given.signal or 'none'} found; fraction and mass need it, kappa has none")
    sample = sample_of(given.parameter, given.background, given.signal, given.present)
    rows = table(
        sample,
        given.method,
        given.events,
        at={"fraction": 0.0, "kappa": 1.0, "mass": 0.5}[given.parameter],
        unit=given.difference if given.parameter == "mass" else 1.0,
        with_method=given.with_method,
        ratios=dict(text.split("=", 1) for text in given.ratio),
    )
    write_csv(given.output, rows)


if __name__ == "__main__":
    main()
