"""Priors, spectra and unfolded uncertainties of a posterior: tables and figures of docs/POSTERIOR.md.

    python scripts/results/posterior_priors.py --model dilepton.safetensors \
        --point dilepton-point.safetensors --previous old.safetensors \
        --tests delphes_1[1-4]_tight.parquet --simulation delphes_[1-6]_tight.parquet \
        --own-tests tt_20[1-3]_tight.parquet --own-simulation tt_10[1-4]_tight.parquet \
        --training train/*.parquet --output results/posterior_priors

All are skims. Tests are events that no network has seen. The simulation is selected like the tests and gives
the spectrum of selected events, and the efficiency where its files are complete; networks may have seen it.
The training gives the spectra of the prior if the model file has none. CSV files go to docs/tables, figures
to docs/figures, Markdown to OUTPUT/posterior_priors.md. Predictions and samples stay in OUTPUT and are made
once: 64 samples of an event take 7 ms, all else some minutes.
"""

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

import topreco
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, Truth
from topreco.core.files import write_csv
from topreco.core.fourvector import mass
from topreco.core.method import as_sampler
from topreco.core.observables import OBSERVABLES, observable_values
from topreco.core.posterior import (
    effective_samples,
    observable_mean,
    sample_mode,
    sample_quantiles,
    sample_values,
)
from topreco.core.prior import (
    M_TT_EDGES,
    METADATA_KEY,
    Prior,
    Spectra,
    on_shell_spectrum,
    sum_spectra,
)
from topreco.core.skim import Skim
from topreco.core.statistics import Metrics, merge_bins, purity, stability, summarise_arrays
from topreco.evaluation.draw import METRICS, plot_metric
from topreco.evaluation.figures import save
from topreco.evaluation.style import Label, canvas, marker
from topreco.evaluation.summary import Bin
from topreco.measurement.expectation import (
    TOLERANCE,
    bin_probabilities,
    expectation_maximisation,
    training_of_samples,
)

TRUE_BINS = (345.0, 400.0, 450.0, 500.0, 600.0, 700.0, 1000.0)
"""Bins of true m(tt̄) in GeV of the table of priors."""

STARTS = (0, 11, 16, 21, 26)
"""First of the bins of `M_TT_EDGES` in each bin of an unfolded spectrum; the last one is open."""
COARSE = tuple(float(M_TT_EDGES[i]) for i in STARTS)
DELTA_PHI = np.linspace(0, np.pi, 5)
"""Edges of the bins of Δφ(ℓℓ)."""

SUMMARIES: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "mean": lambda values, weight: observable_mean("m_tt", values, weight),
    "median": lambda values, weight: sample_quantiles(values, weight, [0.5])[:, 0],
    "mode": sample_mode,
}

TRUE_NEUTRINOS = "true neutrinos, measured objects"
"""Method that adds the true neutrinos to the measured leptons and b candidates."""

_CHUNK = 500
_REPLICAS = 100
_N_FINE = len(M_TT_EDGES) - 1

Row = dict[str, Any]


# ---- events, predictions, samples ------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Test events with truth, and the file that each comes from."""

    name: str
    events: DileptonEvents
    truth: Truth
    file: FloatArray
    spectra: list[Spectra]
    """Of each file."""

    @property
    def complete(self) -> bool:
        """The files hold all generated events."""
        return all(spectra.complete for spectra in self.spectra)

    @property
    def generated(self) -> FloatArray:
        """Generated events by file and bin of `M_TT_EDGES`, in units of one selected event."""
        unit = sum(spectra.selected.sum() for spectra in self.spectra) / len(self.events)
        return np.array([spectra.generated.sum(axis=1) for spectra in self.spectra]) / unit

    @property
    def m_tt(self) -> FloatArray:
        """True m(tt̄) in GeV."""
        return mass(self.truth.tops.sum(axis=1))

    @property
    def fine(self) -> FloatArray:
        """Bin of `M_TT_EDGES` of the true m(tt̄) with tops on shell."""
        return fine_bin(self.truth.tops)


def fine_bin(tops: FloatArray) -> FloatArray:
    """Bin of `M_TT_EDGES` of m(tt̄) with tops on shell; the last one is open."""
    m_tt, _ = on_shell_spectrum(tops)
    return np.clip(np.searchsorted(M_TT_EDGES, m_tt, side="right") - 1, 0, len(M_TT_EDGES) - 2)


def read_sample(name: str, paths: Sequence[Path], limit: int | None = None) -> Sample:
    """Dileptonic events with both true tops of some skims, `limit` of each at most."""
    events, truths, files, spectra = [], [], [], []
    for i, path in enumerate(paths):
        skim = Skim(path)
        found, truth = skim.read()
        if truth is None or METADATA_KEY not in skim.metadata:
            raise TopRecoError(f"{path}: a skim of simulation with truth and spectra expected")
        used = np.flatnonzero(truth.valid & truth.dileptonic)[:limit]
        events.append(found[used])
        truths.append(truth[used])
        files.append(np.full(len(used), i))
        spectra.append(Spectra.from_dict(skim.metadata[METADATA_KEY]))
    return Sample(
        name, DileptonEvents.concatenate(events), Truth.concatenate(truths), np.concatenate(files), spectra
    )


def cached(path: Path, key: str, make: Callable[[], Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
    """Arrays from a file, made anew if the file is of another key."""
    if path.is_file():
        with np.load(path, allow_pickle=False) as content:
            if str(content["key"]) == key:
                return {name: content[name] for name in content.files if name != "key"}
    made = dict(make())
    np.savez(path, key=np.array(key), **made)
    return made


def predict_m_tt(method: Any, sample: Sample, folder: Path) -> FloatArray:
    """Reconstructed m(tt̄) in GeV, NaN where the method has no answer."""

    def make() -> dict[str, FloatArray]:
        pair = method(sample.events)
        found = (pair.observables or {}).get("m_tt")
        if found is None:
            found = observable_values(["m_tt"], pair.p4, pair.system, sample.events.lepton_p4)["m_tt"]
        return {"m_tt": np.where(pair.valid, found, np.nan)}

    path = folder / f"{sample.name}_{method.name.replace(' ', '_')}.npz"
    key = f"{method.fingerprint} {len(sample.events)} {sample.events.event.sum()}"
    return cached(path, key, make)["m_tt"]


def priors(spectra: Spectra) -> dict[str, Prior | None]:
    """The training's prior, for which None stands, a flat one, and densities that fall as powers of m(tt̄)."""
    low, high = M_TT_EDGES[:-1], M_TT_EDGES[1:]
    made: dict[str, Prior] = {"flat": Prior.flat()}
    for power in (2, 3):
        counts = (low ** (1.0 - power) - high ** (1.0 - power)) / (power - 1)
        made[f"m^-{power}"] = Prior.from_histogram(counts, M_TT_EDGES, name=f"m^-{power}")
    return {"training": None, **{name: prior.relative_to(spectra) for name, prior in made.items()}}


def summarise_samples(
    method: Any, sample: Sample, spectra: Spectra, n_samples: int, folder: Path
) -> dict[str, FloatArray]:
    """m(tt̄) of the samples, and their summaries and effective number under each prior."""

    def make() -> dict[str, FloatArray]:
        parts: dict[str, list[FloatArray]] = {}
        for start in range(0, len(sample.events), _CHUNK):
            events = sample.events[start : start + _CHUNK]
            posterior = method.sample(events, n_samples)
            m_tt = sample_values(posterior, events.lepton_p4, ["m_tt"])["m_tt"]
            parts.setdefault("samples", []).append(m_tt.astype(np.float32))
            for name, prior in priors(spectra).items():
                shifted = posterior
                if prior is not None:
                    shifted = type(posterior)(
                        posterior.samples, posterior.log_weight + prior.log_ratio(posterior.samples)
                    )
                parts.setdefault(f"effective/{name}", []).append(effective_samples(shifted))
                weight = shifted.weight
                for summary, of in SUMMARIES.items():
                    parts.setdefault(f"{name}/{summary}", []).append(of(m_tt, weight))
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    parts_of_key = [method.fingerprint, len(sample.events), sample.events.event.sum(), n_samples]
    key = " ".join(map(str, [*parts_of_key, *priors(spectra), spectra.generated.sum()]))
    return cached(folder / f"{sample.name}_samples.npz", key, make)


# ---- priors ----------------------------------------------------------------------------------------------


def table_of_priors(
    sample: Sample, answers: Mapping[str, FloatArray]
) -> tuple[list[Row], dict[str, list[Bin]]]:
    """RB and 68 % half-width in bins of true m(tt̄), stability and purity, of events that all answers have."""
    truth, edges = sample.m_tt, np.array(TRUE_BINS)
    common = np.all([np.isfinite(values) for values in answers.values()], axis=0)
    weight = sample.events.weight
    rows, bins = [], {}
    of_truth = np.searchsorted(edges, truth, side="right")
    for name, values in answers.items():
        cells = np.ravel_multi_index(
            (of_truth[common], np.searchsorted(edges, values[common], side="right")), (len(edges) + 1,) * 2
        )
        sums = np.bincount(cells, weights=weight[common], minlength=(len(edges) + 1) ** 2)
        migration = sums.reshape(len(edges) + 1, -1)
        stays, pure = stability(migration), purity(migration)
        bins[name] = []
        for i, (low, high) in enumerate(itertools.pairwise(edges), start=1):
            chosen = common & (of_truth == i)
            found: Metrics = summarise_arrays(values[chosen], truth[chosen], weight[chosen], relative=True)
            bins[name].append(Bin(low, high, found))
            rows.append(
                {
                    "answer": name,
                    "m_tt_low": low,
                    "m_tt_high": high,
                    "n": int(chosen.sum()),
                    **{
                        key: float(getattr(found, key))
                        for name_ in ("rb", "median", "width68")
                        for key in (name_, f"{name_}_error")
                    },
                    "stability": float(stays[i]),
                    "purity": float(pure[i]),
                }
            )
    return rows, bins


# ---- spectra ---------------------------------------------------------------------------------------------


def coarse(fine: FloatArray) -> FloatArray:
    """Sums over the bins of an unfolded spectrum, on the last axis."""
    return merge_bins(fine, STARTS, fine.ndim - 1)


def probabilities(samples: FloatArray) -> FloatArray:
    """Probability of each event by bin of `M_TT_EDGES`, the last one open, shape (n, 51)."""
    found = bin_probabilities(samples.astype(float), np.ones(samples.shape), M_TT_EDGES[:-1])
    # Below 2 m_t there are only samples at rest, rounded.
    found[:, 1] += found[:, 0]
    return found[:, 1:]


def changes(spectra: Spectra) -> dict[str, FloatArray]:
    """Weights by bin of `M_TT_EDGES` that change a spectrum: none, another slope, 3 % more at threshold."""
    centre = (M_TT_EDGES[:-1] + M_TT_EDGES[1:]) / 2
    generated = spectra.generated.sum(axis=1)
    threshold = centre < M_TT_EDGES[2]
    excess = np.where(threshold, 0.03 * generated.sum() / generated[threshold].sum(), 0.0)
    return {
        "as simulated": np.ones(len(centre)),
        "slope": np.clip(1 + 0.3 * (centre - 500) / 500, 0.3, 3.0),
        "excess": 1 + excess,
    }


def least_squares(
    matrix: FloatArray, data: FloatArray, variance: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Solution x of A x = data and its covariance; matrix A of shape (reconstructed bins, truth bins)."""
    used = variance > 0
    weight = 1 / variance[used]
    covariance = np.linalg.inv(matrix[used].T * weight @ matrix[used])
    return covariance @ (matrix[used].T * weight @ data[used]), covariance


@dataclass(frozen=True)
class Closure:
    """Unfolded minus true events by bin, its covariance, and the statistical covariance of the result."""

    difference: FloatArray
    spread: FloatArray
    truth: FloatArray
    covariance: FloatArray

    def rows(self, **labels: Any) -> list[Row]:
        """Bias, its error and the statistical error, relative, by bin; χ² with the result's covariance."""
        chi2 = float(self.difference @ np.linalg.solve(self.covariance, self.difference))
        return [
            {
                **labels,
                "m_tt_low": round(low, 1),
                "m_tt_high": high if high == "" else round(high, 1),
                "true": float(true),
                "bias": float(bias / true),
                "bias_error": float(np.sqrt(spread) / true),
                "statistical_error": float(np.sqrt(variance) / true),
                "chi2": chi2,
                "bins": len(self.truth),
            }
            for low, high, true, bias, spread, variance in zip(
                COARSE,
                (*COARSE[1:], ""),
                self.truth,
                self.difference,
                np.diagonal(self.spread),
                np.diagonal(self.covariance),
                strict=True,
            )
        ]


class Unfolder:
    """Unfolds the test events, weighted by true m(tt̄), in three ways.

    With complete files the spectrum is that of generated events, else that of selected ones. Every number of
    events can be that of a bootstrap replica.

    Parameters
    ----------
    sample, simulation
        Test events, and simulated ones with the same selection.
    probability
        Of each test event in each bin of `M_TT_EDGES`.
    estimate
        Reconstructed m(tt̄) of each test event.
    factor
        Weights by bin of `M_TT_EDGES`.
    tolerance
        Where expectation maximisation stops.
    """

    def __init__(
        self,
        sample: Sample,
        simulation: Sample,
        probability: FloatArray,
        estimate: FloatArray,
        factor: FloatArray,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.tolerance = tolerance
        self.probability, self.factor = probability, factor
        self.fine, self.file, self.n_files = sample.fine, sample.file, len(sample.spectra)
        self.weight = factor[self.fine]
        self.complete = simulation.complete and sample.complete
        edges = np.nanquantile(estimate, np.linspace(0, 1, 2 * len(STARTS) + 1)[1:-1])
        # The last bin is for events without an answer.
        self.reco = np.where(np.isfinite(estimate), np.searchsorted(edges, estimate), 2 * len(STARTS))
        self.selected = np.bincount(simulation.fine, minlength=_N_FINE).astype(float)
        self.lost = np.maximum(simulation.generated.sum(axis=0) - self.selected, 0.0)
        in_file = self.by_file(np.ones(len(self.fine)), _N_FINE, self.fine)
        self.lost_tests = np.maximum(sample.generated - in_file, 0.0) * self.complete
        self.iterations: dict[str, int | None] = {}

    def by_file(self, counts: FloatArray, n: int, bins: FloatArray) -> FloatArray:
        """Sums by file and bin, shape (files, n)."""
        cell = self.file * n + bins
        return np.bincount(cell, weights=counts, minlength=self.n_files * n).reshape(self.n_files, n)

    def truth(self, events: FloatArray, lost_tests: FloatArray) -> FloatArray:
        """True spectrum."""
        fine = self.by_file(events, _N_FINE, self.fine) + lost_tests
        return coarse((fine * self.factor).sum(axis=0))

    def _maximise(
        self,
        name: str,
        chosen: FloatArray,
        training: FloatArray,
        efficiency: FloatArray | None,
        replicas: int,
    ) -> tuple[FloatArray, FloatArray]:
        counts = chosen * self.weight
        used = chosen > 0
        found = expectation_maximisation(
            self.probability[used],
            training,
            weight=counts[used],
            efficiency=efficiency,
            tolerance=self.tolerance,
            iterations=self.iterations.get(name),
            replicas=replicas,
        )
        self.iterations[name] = found.iterations
        return coarse(found.generated), coarse(coarse(found.covariance).T)

    def _efficiency(self, selected: FloatArray, lost: FloatArray) -> FloatArray | None:
        if not self.complete:
            return None
        found = selected / np.maximum(selected + lost, 1.0)
        return np.where(found > 0, found, 1.0)

    def maximise(
        self, events: FloatArray, selected: FloatArray, lost: FloatArray, replicas: int
    ) -> tuple[FloatArray, FloatArray]:
        """Expectation maximisation; the prior of the samples is the simulation's spectrum."""
        return self._maximise("true", events, selected, self._efficiency(selected, lost), replicas)

    def maximise_measured(
        self, events: FloatArray, selected: FloatArray, lost: FloatArray, replicas: int
    ) -> tuple[FloatArray, FloatArray]:
        """The same for each file, with the prior that the samples of the other files turn out to have."""
        efficiency = self._efficiency(selected, lost)
        total, covariance = np.zeros(len(STARTS)), np.zeros((len(STARTS), len(STARTS)))
        for i in range(self.n_files):
            others = np.where(self.file == i, 0.0, events)
            true = np.bincount(self.fine, weights=others, minlength=_N_FINE)
            used = others > 0
            prior = training_of_samples(self.probability[used], true, weight=others[used])
            chosen = np.where(self.file == i, events, 0.0)
            x, v = self._maximise(f"measured {i}", chosen, prior, efficiency, replicas)
            total, covariance = total + x, covariance + v
        return total, covariance

    def invert(self, events: FloatArray, lost_tests: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Inversion for each file, with the response matrix of the other files."""
        n_reco = 2 * len(STARTS) + 1
        true_bin = np.searchsorted(STARTS, self.fine, side="right") - 1
        matrices = self.by_file(events, len(STARTS) * n_reco, true_bin * n_reco + self.reco)
        matrices = matrices.reshape(self.n_files, len(STARTS), n_reco)
        whole = coarse(self.by_file(events, _N_FINE, self.fine) + lost_tests)
        data, variance = (self.by_file(events * self.weight**power, n_reco, self.reco) for power in (1, 2))
        total, covariance = np.zeros(len(STARTS)), np.zeros((len(STARTS), len(STARTS)))
        for i in range(self.n_files):
            others = np.arange(self.n_files) != i
            matrix = (matrices[others].sum(axis=0) / whole[others].sum(axis=0)[:, None]).T
            x, v = least_squares(matrix[:-1], data[i, :-1], variance[i, :-1])
            total, covariance = total + x, covariance + v
        return total, covariance

    def close(self) -> dict[str, Closure]:
        """Results against the truth; in each replica, data and truth are the same events."""
        rng = np.random.default_rng(0)
        ones = np.ones(len(self.fine))

        def all_results(
            events: FloatArray, selected: FloatArray, lost: FloatArray, lost_tests: FloatArray, replicas: int
        ) -> list[tuple[FloatArray, FloatArray]]:
            return [
                self.maximise(events, selected, lost, replicas),
                self.maximise_measured(events, selected, lost, replicas),
                self.invert(events, lost_tests),
            ]

        true = self.truth(ones, self.lost_tests)
        nominal = all_results(ones, self.selected, self.lost, self.lost_tests, 200)
        deviations = []
        for _ in range(_REPLICAS):
            events = rng.poisson(1.0, len(ones)).astype(float)
            selected, lost, lost_tests = (
                rng.poisson(counts).astype(float) for counts in (self.selected, self.lost, self.lost_tests)
            )
            found = all_results(events, selected, lost, lost_tests, 2)
            deviations.append([result - self.truth(events, lost_tests) for result, _ in found])
        spreads = [np.cov(np.array(part), rowvar=False) for part in zip(*deviations, strict=True)]
        return {
            name: Closure(result - true, spread, true, covariance)
            for name, (result, covariance), spread in zip(
                ("EM", "EM, measured prior", "inversion"), nominal, spreads, strict=True
            )
        }


# ---- uncertainties of unfolded bins ----------------------------------------------------------------------


def delta_phi_bin(events: DileptonEvents) -> FloatArray:
    """Bin of |Δφ(ℓℓ)| of the measured leptons."""
    phi = np.arctan2(events.lepton_p4[..., 2], events.lepton_p4[..., 1])
    difference = np.abs(np.angle(np.exp(1j * (phi[:, 0] - phi[:, 1]))))
    return np.clip(np.searchsorted(DELTA_PHI, difference, side="right") - 1, 0, len(DELTA_PHI) - 2)


def unfolded_errors(
    true_bin: FloatArray, reco_bin: FloatArray, region: FloatArray, counts: FloatArray, n_reco: int
) -> FloatArray:
    """Error of each unfolded bin over that of a perfect resolution, √N, shape (regions, truth bins).

    Selected events of `true_bin` −1 do not exist; of `reco_bin` −1 have no solution.
    """
    n_true, n_regions = len(STARTS), len(DELTA_PHI) - 1
    shape = (n_regions, n_true, n_reco + 1)
    cell = np.ravel_multi_index((region, true_bin, reco_bin + 1), shape)
    found = np.bincount(cell, weights=counts, minlength=int(np.prod(shape))).reshape(shape)
    ratios = []
    for table in found:
        generated, measured = table.sum(axis=1), table[:, 1:].sum(axis=0)
        matrix = (table[:, 1:] / generated[:, None]).T
        _, covariance = least_squares(matrix, measured, measured)
        ratios.append(np.sqrt(np.diagonal(covariance) / generated))
    return np.array(ratios)


def table_of_errors(
    sample: Sample, answers: Mapping[str, FloatArray]
) -> tuple[list[Row], dict[tuple[str, str], tuple[FloatArray, FloatArray]]]:
    """Ratios of errors of all methods, by square matrices and by two reconstructed bins for each of truth."""
    region = delta_phi_bin(sample.events)
    true_bin = np.searchsorted(STARTS, sample.fine, side="right") - 1
    rng = np.random.default_rng(0)
    ones = np.ones(len(region))
    replicas = [rng.poisson(1.0, len(region)).astype(float) for _ in range(50)]
    rows: list[Row] = []
    found: dict[tuple[str, str], tuple[FloatArray, FloatArray]] = {}
    for name, values in answers.items():
        solved = np.isfinite(values)
        quantiles = np.quantile(values[solved], np.linspace(0, 1, 2 * len(STARTS) + 1)[1:-1])
        for kind, edges in (("square", np.array(COARSE[1:])), ("two in each", quantiles)):
            reco_bin = np.where(solved, np.searchsorted(edges, values, side="right"), -1)
            n_reco = len(edges) + 1
            try:
                ratio = unfolded_errors(true_bin, reco_bin, region, ones, n_reco)
            except np.linalg.LinAlgError:
                continue
            many = []
            for counts in replicas:
                try:
                    many.append(unfolded_errors(true_bin, reco_bin, region, counts, n_reco))
                except np.linalg.LinAlgError:  # a replica without events in a bin
                    continue
            found[name, kind] = ratio, np.array(many)
            rows += rows_of_errors(name, kind, sample, ratio, np.array(many), true_bin, region)
    return rows, found


def rows_of_errors(
    name: str,
    kind: str,
    sample: Sample,
    ratio: FloatArray,
    replicas: FloatArray | None,
    true_bin: FloatArray,
    region: FloatArray,
) -> list[Row]:
    """One row for each bin of m(tt̄) and Δφ."""
    highs = (*COARSE[1:], "")
    rows = []
    for i in range(len(DELTA_PHI) - 1):
        for j, low in enumerate(COARSE):
            n = int(((true_bin == j) & (region == i)).sum())
            rows.append(
                {
                    "sample": sample.name,
                    "method": name,
                    "matrix": kind,
                    "m_tt_low": round(low, 1),
                    "m_tt_high": highs[j] if highs[j] == "" else round(highs[j], 1),
                    "delta_phi_low": round(float(DELTA_PHI[i]), 4),
                    "delta_phi_high": round(float(DELTA_PHI[i + 1]), 4),
                    "true": n,
                    "relative_error": float(ratio[i, j] / np.sqrt(n)),
                    "over_perfect": float(ratio[i, j]),
                    "over_perfect_error": "" if replicas is None else float(replicas[:, i, j].std(ddof=1)),
                }
            )
    return rows


def errors_by_expectation(
    sample: Sample, probability: FloatArray, simulation: Sample
) -> tuple[list[Row], FloatArray]:
    """The same ratio for expectation maximisation in each bin of Δφ, by its bootstrap errors.

    The prior of the samples is the spectrum of the simulation in the bin of Δφ, times what the samples of all
    events hold over the truth.
    """
    region, simulated_region = delta_phi_bin(sample.events), delta_phi_bin(simulation.events)
    true_bin = np.searchsorted(STARTS, sample.fine, side="right") - 1
    true = np.bincount(sample.fine, minlength=_N_FINE).astype(float)
    prior = training_of_samples(probability, true)
    correction = np.divide(prior, true, out=np.ones(_N_FINE), where=true > 0)
    ratios = []
    for i in range(len(DELTA_PHI) - 1):
        training = correction * np.bincount(simulation.fine[simulated_region == i], minlength=_N_FINE)
        found = expectation_maximisation(probability[region == i], training)
        counts = np.bincount(true_bin[region == i], minlength=len(STARTS))
        ratios.append(np.sqrt(np.diagonal(coarse(coarse(found.covariance).T)) / counts))
    ratio = np.array(ratios)
    return rows_of_errors("EM", "none", sample, ratio, None, true_bin, region), ratio


# ---- output ----------------------------------------------------------------------------------------------


def write_rounded(path: Path, rows: Sequence[Row]) -> None:
    """Rows as CSV, floats with five digits."""
    write_csv(path, [{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows])


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines)) + "\n"


def signed(value: float, digits: int = 1) -> str:
    """Percent with a true minus sign."""
    return f"{100 * value:.{digits}f}".replace("-", "−")


def mtt_bins(lows: Sequence[float], highs: Sequence[Any]) -> list[str]:
    """Names of bins of m(tt̄)."""
    return [
        f"{low:.0f}–{high:.0f}" if high != "" else f"> {low:.0f}"
        for low, high in zip(lows, highs, strict=True)
    ]


def text_of_priors(rows: Sequence[Row], effective: Mapping[str, FloatArray]) -> str:
    """RB and width by bin, stability and purity of the first bin, and how many samples have weight."""
    answers = list(dict.fromkeys(row["answer"] for row in rows))
    lines = []
    for answer in answers:
        chosen = [row for row in rows if row["answer"] == answer]
        cells = [f"{signed(row['rb'])} ({signed(row['width68'])})" for row in chosen]
        first = [f"{100 * chosen[0][key]:.0f}" for key in ("stability", "purity")]
        lines.append([answer.replace("^-", "⁻").replace("⁻2", "⁻²").replace("⁻3", "⁻³"), *cells, *first])
    events = [str(row["n"]) for row in rows if row["answer"] == answers[0]]
    lines.append(["events", *events, "", ""])
    few = ", ".join(
        f"{name} {np.median(values):.0f} ({np.quantile(values, 0.05):.0f})"
        for name, values in effective.items()
    )
    largest = max(row["rb_error"] for row in rows)
    names = mtt_bins(TRUE_BINS[:-1], TRUE_BINS[1:])
    return "\n".join(
        [
            "RB (68 % half-width) of m(tt̄) in %; stability and purity of the first bin in %",
            "",
            markdown(["", *names, "stays", "purity"], lines),
            f"Errors of RB: up to {signed(largest)}. Median of effective samples (5 % quantile): {few}",
            "",
        ]
    )


def text_of_closure(rows: Sequence[Row]) -> str:
    """Bias and statistical error by bin."""
    names = mtt_bins(COARSE, (*COARSE[1:], ""))
    lines = []
    for sample, change, method in dict.fromkeys((r["sample"], r["change"], r["method"]) for r in rows):
        chosen = [r for r in rows if (r["sample"], r["change"], r["method"]) == (sample, change, method)]
        cells = [
            f"{signed(r['bias'])} ± {signed(r['bias_error'])} ({signed(r['statistical_error'])})"
            for r in chosen
        ]
        lines.append(
            [f"{sample}, {change}, {method}", *cells, f"{chosen[0]['chi2']:.1f} / {chosen[0]['bins']}"]
        )
    return "Bias ± its error (statistical error of the data) in %\n\n" + markdown(
        ["", *names, "χ² / bins"], lines
    )


def text_of_errors(found: Mapping[tuple[str, str], tuple[FloatArray, FloatArray]], em: FloatArray) -> str:
    """Mean over the bins of Δφ, by bin of m(tt̄) and over all of them."""
    names = mtt_bins(COARSE, (*COARSE[1:], ""))
    lines = []
    for (name, kind), (ratio, many) in found.items():
        average, spread = ratio.mean(axis=0), many.mean(axis=1).std(axis=0, ddof=1)
        cells = [f"{value:.2f} ± {error:.2f}" for value, error in zip(average, spread, strict=True)]
        middle = many.mean(axis=(1, 2)).std(ddof=1)
        measured = (ratio / found[TRUE_NEUTRINOS, kind][0]).mean()
        lines.append([f"{name}, {kind}", *cells, f"{ratio.mean():.2f} ± {middle:.2f}", f"{measured:.2f}"])
    measured = (em / found[TRUE_NEUTRINOS, "two in each"][0]).mean()
    lines.append(["EM", *(f"{v:.2f}" for v in em.mean(axis=0)), f"{em.mean():.2f}", f"{measured:.2f}"])
    head = ["", *names, "mean", "over true neutrinos with measured objects"]
    title = "Error of an unfolded bin over that of a perfect resolution, mean over four bins of Δφ(ℓℓ)"
    return f"{title}\n\n" + markdown(head, lines)


def draw_priors(bins: Mapping[str, list[Bin]], folder: Path) -> None:
    """RB and width of some answers in bins of truth."""
    for metric in METRICS:
        if metric.field in ("rb", "width68"):
            figure = plot_metric(bins, metric, OBSERVABLES["m_tt"])
            save(figure, folder / f"posterior_priors_{metric.field}", formats=["png"])


def draw_closure(rows: Sequence[Row], sample: str, folder: Path) -> None:
    """Bias of each change, by bin, without the expectation maximisation whose prior was not measured."""
    found = dict.fromkeys((r["change"], r["method"]) for r in rows if r["sample"] == sample)
    series = [(change, method) for change, method in found if method != "EM"]
    with canvas(Label()) as (figure, (axes,)):
        for i, (change, method) in enumerate(series):
            chosen = [r for r in rows if (r["sample"], r["change"], r["method"]) == (sample, change, method)]
            x = np.arange(len(chosen)) + (i - (len(series) - 1) / 2) * 0.12
            axes.errorbar(
                x,
                [100 * r["bias"] for r in chosen],
                yerr=[100 * r["bias_error"] for r in chosen],
                label=f"{change}, {method.removesuffix(', measured prior')}",
                **marker(i),
            )
        axes.axhline(0, color="0.6", linewidth=1.5, zorder=0)
        axes.set_xticks(np.arange(len(COARSE)), mtt_bins(COARSE, (*COARSE[1:], "")), size="x-small")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(f"True {OBSERVABLES['m_tt'].axis_label}")
        axes.set_ylabel("Unfolded / true − 1 [%]")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.4 * (high - low))
        axes.legend(fontsize="x-small", ncols=2)
    save(figure, folder / f"posterior_closure_{sample}", formats=["png"])


def draw_errors(
    found: Mapping[tuple[str, str], tuple[FloatArray, FloatArray]], em: FloatArray, folder: Path
) -> None:
    """Ratios of errors in all bins."""
    shown = {name: ratio for (name, kind), (ratio, _) in found.items() if kind == "two in each"}
    shown["EM"] = em
    n_mass = len(COARSE)
    with canvas(Label(), width=14) as (figure, (axes,)):
        for i, (name, ratio) in enumerate(shown.items()):
            x = np.arange(ratio.size) + (i - (len(shown) - 1) / 2) * 0.12
            axes.plot(
                x,
                ratio.ravel(),
                label=name.replace("_", " "),
                **{k: v for k, v in marker(i).items() if k != "elinewidth"},
            )
        top = 1.8 * max(float(ratio.max()) for ratio in shown.values())
        axes.set_yscale("log")
        axes.set_ylim(0.8, top)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_yticks([1, 2, 3, 4, 5, 6])
        for i in range(len(DELTA_PHI) - 1):
            axes.axvline(n_mass * i - 0.5, color="0.8", linewidth=1, zorder=0)
            text = ("0 < Δφ < π/4", "π/4 < Δφ < π/2", "π/2 < Δφ < 3π/4", "3π/4 < Δφ < π")[i]
            axes.text(n_mass * (i + 0.5) - 0.5, 0.84, text, ha="center", size="xx-small", color="0.3")
        axes.axhline(1, color="0.6", linewidth=1.5, zorder=0)
        axes.set_xticks(
            np.arange(n_mass * (len(DELTA_PHI) - 1)),
            mtt_bins(COARSE, (*COARSE[1:], "")) * (len(DELTA_PHI) - 1),
            rotation=90,
            size="xx-small",
        )
        axes.minorticks_off()
        axes.set_xlabel(f"True {OBSERVABLES['m_tt'].axis_label}")
        axes.set_ylabel("Error / error of a perfect resolution")
        axes.legend(fontsize="x-small", ncols=2)
    save(figure, folder / "posterior_unfolded_errors", formats=["png"])


# ---- command ---------------------------------------------------------------------------------------------


def main() -> None:
    """Predict, tabulate, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="model of the task posterior")
    parser.add_argument("--point", type=Path, required=True, help="model of the task tops")
    parser.add_argument("--previous", type=Path, help="another model of the task tops, for the priors")
    many: dict[str, Any] = {"type": Path, "nargs": "+"}
    parser.add_argument("--tests", **many, required=True, help="skims of the first simulation")
    parser.add_argument(
        "--simulation", **many, required=True, help="skims for its spectrum of selected events"
    )
    parser.add_argument("--own-tests", **many, help="skims of a second simulation, with all generated events")
    parser.add_argument("--own-simulation", **many, help="skims for its spectrum and efficiency")
    parser.add_argument("--training", **many, required=True, help="skims of the training")
    parser.add_argument("--output", type=Path, required=True, help="folder for predictions and Markdown")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of tables and figures")
    parser.add_argument("--samples", type=int, default=128, help="samples of each event")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="where the closure stops iterating"
    )
    parser.add_argument("--limit", type=int, help="events of each test skim, for a quick look")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)

    model = as_sampler(topreco.load(given.model, threads=given.threads, name="posterior"))
    others = {"point network": given.point, "previous dilepton": given.previous}
    methods = {
        name: topreco.load(path, threads=given.threads, name=name) for name, path in others.items() if path
    }
    for name in ("sonnenschein", "neutrino_weighting"):
        methods[name] = topreco.load(name, threads=given.threads, quantiles=False)

    stored = model.metadata.get("data", {}).get(METADATA_KEY)  # type: ignore[attr-defined]
    if stored is not None:
        training = Spectra.from_dict(stored)
    else:
        found = [Skim(path).metadata for path in given.training]
        whole = [m for m in found if METADATA_KEY in m and m[METADATA_KEY]["complete"]]
        training = sum_spectra(whole) or Spectra()
    training.check_complete()
    print(f"prior of the training: {training.generated.sum():.0f} generated events, from the", end=" ")
    print("skims" if stored is None else "model file")

    parts = []
    samples = [("delphes", given.tests, given.simulation)]
    if given.own_tests:
        samples.append(("own", given.own_tests, given.own_simulation))
    closures: list[Row] = []
    for name, tests, simulations in samples:
        sample = read_sample(name, tests, given.limit)
        simulation = read_sample("simulation", simulations)
        drawn = summarise_samples(model, sample, training, given.samples, given.output)
        answers = {"posterior": predict_m_tt(model, sample, given.output)}
        probability = probabilities(drawn["samples"])
        if sample.name == "delphes":
            answers |= {n: predict_m_tt(m, sample, given.output) for n, m in methods.items()}
            summaries = {
                f"{summary}, {prior}": drawn[f"{prior}/{summary}"]
                for prior in priors(training)
                for summary in SUMMARIES
            }
            listed = {"mean, summary of the network": answers["posterior"], **summaries}
            listed |= {n: answers[n] for n in answers if n not in ("posterior", "neutrino_weighting")}
            rows, bins = table_of_priors(sample, listed)
            write_rounded(given.docs / "tables" / "posterior_priors.csv", rows)
            effective = {name: drawn[f"effective/{name}"] for name in priors(training)}
            parts.append(text_of_priors(rows, effective))
            shown = (
                "mean, training",
                "mean, flat",
                "mode, flat",
                "median, m^-2",
                "point network",
                "sonnenschein",
            )
            labels = {name: name.replace("m^-2", "$m^{-2}$") for name in shown}
            draw_priors({labels[name]: bins[name] for name in shown}, given.docs / "figures")

            neutrinos = sample.events.b_candidate_p4 + sample.events.lepton_p4 + sample.truth.neutrino
            for_errors = {
                TRUE_NEUTRINOS: mass(neutrinos.sum(axis=1)),
                **{n: v for n, v in answers.items() if n != "previous dilepton"},
            }
            rows, errors = table_of_errors(sample, for_errors)
            of_em, em = errors_by_expectation(sample, probability, simulation)
            write_rounded(given.docs / "tables" / "posterior_unfolded_errors.csv", [*rows, *of_em])
            parts.append(text_of_errors(errors, em))
            draw_errors(errors, em, given.docs / "figures")
        for change, factor in changes(training).items():
            unfolder = Unfolder(
                sample, simulation, probability, answers["posterior"], factor, given.tolerance
            )
            for method, closure in unfolder.close().items():
                closures += closure.rows(sample=sample.name, change=change, method=method)
        draw_closure(closures, sample.name, given.docs / "figures")
    write_rounded(given.docs / "tables" / "posterior_closure.csv", closures)
    parts.append(text_of_closure(closures))
    text = "\n".join(parts)
    (given.output / "posterior_priors.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
