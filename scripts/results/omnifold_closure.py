"""Closure of unfolding by inversion, expectation maximisation and OmniFold, docs/UNFOLDING.md.

    python scripts/results/omnifold_closure.py --simulation tt_101.parquet … tt_201.parquet \
        --generated tt_101_gen.parquet … tt_201_gen.parquet --output results/omnifold_closure

The files are of the own simulation without spin correlation, selected and generated events of
`topreco skim --generated`; weights give them the spin correlation of leading-order QCD. Each file in turn is
pseudo-data, with the weights of a change of the generated spectrum, and the others are the simulation:

- *slope*: density of m(tt̄) times 1 + 0.3 (m − 500 GeV)/500 GeV, within 0.3 and 3, and half of the spin
  correlation;
- *bump*: 2 % more events, a Gaussian of 30 GeV at m(tt̄) = 500 GeV.

All unfold to the generated events of the phase space of `topreco omnifold`. *Inversion* is least squares with
two reconstructed bins for each of truth; *EM* is `topreco.measurement.expectation` in finer bins with the
prior that the samples of the simulation hold; *OmniFold* sees the five observables of `OBSERVED` and stops by
its default rule, *OmniFold, 8* after eight iterations. The results
of all files are added, so that fluctuations of pseudo-data and simulation cancel in the bias, whose error is
that of the differences of the files.

``--parts`` chooses: ``closure``; ``toys``, the coverage of the errors of OmniFold, in random parts of all
events with bootstrap replicas of pseudo-data and simulation; ``bump``, how much of the bump is found
without fluctuations; ``networks``, networks of the task `ratio` that see reconstructed objects in step 1,
beside those that see the summaries; ``detector``, skims of another
simulation (``--other``) as data, compared with its truth at the level of selected events. Predictions,
samples and every finished unfolding stay in OUTPUT, so that the same command continues. Tables are
``omnifold_PART.csv``.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import topreco
from topreco.config.omnifold import ObjectRatioConfig
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, IntArray, Truth
from topreco.core.files import complete_file, writable_folder, write_csv
from topreco.core.generated import read_generated
from topreco.core.method import as_sampler
from topreco.core.observables import compute_observables, pair_values
from topreco.core.posterior import sample_values
from topreco.core.ratios import triangular_discriminator
from topreco.core.skim import Skim, read_skims
from topreco.core.spin import event_spin_weight
from topreco.measurement.classifier import ClassifierSettings
from topreco.measurement.expectation import (
    bin_probabilities,
    expectation_maximisation,
    training_of_samples,
)
from topreco.measurement.omnifold import Measured, Simulated, Unfolded, unfold
from topreco.network.object_ratio import ObjectRatio
from topreco.network.tasks.ratio import EventNetwork, event_columns

OBSERVED = ("m_tt", "pt_top", "y_top", "c_hel", "c_han")
"""Observables that the networks see."""
_IN_GEV = ("m_tt", "pt_top")
EDGES: dict[str, tuple[float, ...]] = {
    "m_tt": (380, 450, 550, 700),
    "pt_top": (60, 120, 180, 250),
    "c_hel": (-0.5, 0.0, 0.5),
    "c_han": (-0.5, 0.0, 0.5),
}
"""Inner edges of the bins; the first and the last are open."""
SPECTRA = (("m_tt",), ("pt_top",), ("c_hel",), ("c_han",), ("m_tt", "c_hel"))
FINE: dict[str, tuple[float, ...]] = {
    "m_tt": (350, 365, 380, 400, 425, 450, 480, 515, 550, 600, 650, 700, 800, 950),
    "pt_top": (20, 40, 60, 80, 100, 120, 140, 160, 180, 215, 250, 320),
    "c_hel": (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75),
    "c_han": (-0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75),
}
"""Inner edges for expectation maximisation, among them those of `EDGES`."""
FINE_PAIR = {"m_tt": (350, 380, 415, 450, 500, 550, 620, 700, 850), "c_hel": FINE["c_hel"]}
"""The same in two dimensions."""
DETECTOR_REPLICAS = 4
BUMP_MASS, BUMP_WIDTH, BUMP_SHARE = 500.0, 30.0, 0.02
N_SAMPLES = 16
FOLDS = 5
MORE = 8
"""Iterations of a second result of OmniFold; the first has its default stopping rule."""
_CHUNK = 1000

Row = dict[str, Any]


class Sample(NamedTuple):
    """Generated and selected events of all files.

    Attributes
    ----------
    file
        File of each event, shape (n,).
    truth
        Their truth.
    values
        True values of observables, NaN outside of the phase space.
    generated, selected
        Whether an event is in the phase space, and whether it is selected.
    row
        Row among the selected events, −1 where not selected.
    weight
        Weight that gives the spin correlation of QCD.
    events
        The selected events.
    measured
        Their measured values of observables.
    probability
        Their posterior probability by fine bin of each of `SPECTRA`.
    """

    file: IntArray
    truth: Truth
    values: dict[str, FloatArray]
    generated: BoolArray
    selected: BoolArray
    row: IntArray
    weight: FloatArray
    events: DileptonEvents
    measured: dict[str, FloatArray]
    probability: dict[tuple[str, ...], FloatArray]


def cached(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Arrays from a file, or made now and kept there."""
    if not path.is_file():
        made = make()
        with complete_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **made)
    with np.load(path, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


def fine_edges(names: tuple[str, ...]) -> list[tuple[float, ...]]:
    """Inner edges of the fine bins of a spectrum."""
    return [(FINE if len(names) == 1 else FINE_PAIR)[name] for name in names]


def predictions(
    events: DileptonEvents, model: Any, folder: Path, name: str, *, samples: bool
) -> dict[str, Any]:
    """Measured values of `OBSERVED`, and the probabilities of fine bins of each of `SPECTRA`."""

    def make() -> dict[str, FloatArray]:
        found: dict[str, list[FloatArray]] = {}
        for start in range(0, len(events), _CHUNK):
            part = events[start : start + _CHUNK]
            for key, column in pair_values(model(part), part.lepton_p4, OBSERVED).items():
                found.setdefault(key, []).append(column)
            if not samples:
                continue
            posterior = as_sampler(model).sample(part, N_SAMPLES)
            values = sample_values(posterior, part.lepton_p4, OBSERVED)
            for names in SPECTRA:
                probability = bin_probabilities(
                    [values[n] for n in names], posterior.weight, fine_edges(names)
                )
                found.setdefault(",".join(names) + " samples", []).append(probability.astype(np.float32))
        return {key: np.concatenate(parts) for key, parts in found.items()}

    return cached(folder / f"{name}.npz", make)


def true_values(truth: Truth) -> tuple[dict[str, FloatArray], BoolArray]:
    """True values of `OBSERVED`, and whether an event is dileptonic with known tops."""
    known = np.isfinite(truth.tops).all((1, 2)) & np.isfinite(truth.w_lepton).all((1, 2)) & truth.dileptonic
    return compute_observables(OBSERVED, truth.tops, truth.tops.sum(1), truth.w_lepton, known), known


def read(skims: Sequence[Path], generated: Sequence[Path], model: Any, folder: Path) -> Sample:
    """Read all files."""
    parts, first = [], 0
    columns: list[dict[str, Any]] = []
    for skim, path in zip(skims, generated, strict=True):
        events, _ = Skim(skim).read()
        found = read_generated(path)
        parts.append((events, found, np.where(found.selected_row >= 0, found.selected_row + first, -1)))
        first += len(events)
        columns.append(predictions(events, model, folder, skim.stem, samples=True))
        print(f"{skim}: {len(events)} of {len(found.weight)} events", flush=True)
    truth = Truth.concatenate([found.truth for _, found, _ in parts])
    row = np.concatenate([r for *_, r in parts])
    values, inside = true_values(truth)
    joined = {key: np.concatenate([c[key] for c in columns]) for key in columns[0]}
    return Sample(
        file=np.repeat(np.arange(len(parts)), [len(r) for *_, r in parts]),
        truth=truth,
        values=values,
        generated=inside,
        selected=row >= 0,
        row=row,
        # Outside of the phase space there are no leptons of both W bosons to correlate.
        weight=np.where(inside, event_spin_weight(truth), 1.0),
        events=DileptonEvents.concatenate([events for events, *_ in parts]),
        measured={name: joined[name] for name in OBSERVED},
        probability={names: joined[",".join(names) + " samples"].astype(float) for names in SPECTRA},
    )


def changes(sample: Sample) -> dict[str, FloatArray]:
    """Weights of events that change the generated spectrum, relative to the simulation."""
    inside, m = sample.generated, sample.values["m_tt"]
    slope = np.clip(1 + 0.3 * (m - 500) / 500, 0.3, 3.0)
    half = event_spin_weight(sample.truth, 0.5) / np.where(sample.weight > 0, sample.weight, np.nan)
    # Density by bins of 10 GeV around the bump.
    edges = np.arange(BUMP_MASS - 150, BUMP_MASS + 151, 10.0)
    density = (
        np.histogram(m[inside], edges, weights=sample.weight[inside])[0] / 10 / sample.weight[inside].sum()
    )
    centre = (edges[1:] + edges[:-1]) / 2
    smooth = np.exp(np.polynomial.Polynomial.fit(centre, np.log(density), 3)(m.clip(edges[0], edges[-1])))
    gauss = np.exp(-0.5 * ((m - BUMP_MASS) / BUMP_WIDTH) ** 2) / (BUMP_WIDTH * np.sqrt(2 * np.pi))
    found = {"slope": slope * half, "bump": 1 + BUMP_SHARE * gauss / smooth}
    return {name: np.where(inside & np.isfinite(w), w, 1.0) for name, w in found.items()}


# ---- three methods ---------------------------------------------------------------------------------------


def cells(values: Mapping[str, FloatArray], names: tuple[str, ...], edges: Sequence[Sequence[float]]) -> Any:
    """Cell of each event, the bins of the last observable next to each other; without meaning where NaN."""
    index = [
        np.searchsorted(axis, values[name], side="right") for name, axis in zip(names, edges, strict=True)
    ]
    # NaN is beyond all edges.
    index = [np.minimum(i, len(axis)) for i, axis in zip(index, edges, strict=True)]
    return np.ravel_multi_index(index, tuple(len(axis) + 1 for axis in edges))


def n_cells(edges: Sequence[Sequence[float]]) -> int:
    """Number of cells."""
    return int(np.prod([len(axis) + 1 for axis in edges]))


def coarse_edges(names: tuple[str, ...]) -> list[tuple[float, ...]]:
    """Inner edges of the bins of a spectrum; in two dimensions some bins are merged."""
    if len(names) == 1:
        return [EDGES[names[0]]]
    return [(450.0, 550.0), (-0.5, 0.0, 0.5)]


def columns(values: Mapping[str, FloatArray]) -> FloatArray:
    """Columns that the networks see, as in `topreco omnifold`."""
    return np.stack([np.arcsinh(values[n] / 50) if n in _IN_GEV else values[n] for n in OBSERVED], axis=1)


class Halves(NamedTuple):
    """Pseudo-data and simulation: which events, and weights of the data."""

    sample: Sample
    data: BoolArray
    simulation: BoolArray
    data_weight: FloatArray

    def truth(self, names: tuple[str, ...]) -> FloatArray:
        """Generated spectrum of the pseudo-data."""
        edges = coarse_edges(names)
        used = self.data & self.sample.generated
        cell = cells(self.sample.values, names, edges)[used]
        return np.bincount(cell, weights=self.data_weight[used], minlength=n_cells(edges))


def omnifold_inputs(halves: Halves) -> tuple[Measured, Simulated, IntArray]:
    """Inputs of `unfold`, and positions of the simulated events."""
    s = halves.sample
    x = columns(s.measured)
    solved = s.selected & np.isfinite(x).all(axis=1)[np.maximum(s.row, 0)]
    data = np.flatnonzero(halves.data & solved)
    used = np.flatnonzero(halves.simulation & (solved | s.generated))
    z = columns({n: np.where(s.generated, s.values[n], 0.0) for n in OBSERVED})
    selected = solved[used]
    return (
        Measured(x[s.row[data]], halves.data_weight[data]),
        Simulated(
            x=np.where(selected[:, None], x[np.maximum(s.row[used], 0)], 0.0),
            z=z[used],
            selected=selected,
            generated=s.generated[used],
            weight=np.where(selected, s.weight[used], 0.0),
            generator_weight=s.weight[used],
            fold=np.arange(len(used)) % FOLDS,
        ),
        used,
    )


def true_of_data(halves: Halves) -> tuple[FloatArray, FloatArray]:
    """Generated columns and weights of the selected pseudo-data."""
    s = halves.sample
    used = halves.data & s.selected & s.generated
    return columns({n: s.values[n][used] for n in OBSERVED}), halves.data_weight[used]


def spectra_of(halves: Halves, used: IntArray, ratio: FloatArray) -> dict[str, FloatArray]:
    """Unfolded spectra of generated events."""
    s, found = halves.sample, {}
    inside = s.generated[used]
    for names in SPECTRA:
        edges = coarse_edges(names)
        cell = cells(s.values, names, edges)[used][inside]
        weight = (s.weight[used] * ratio)[inside]
        found[",".join(names)] = np.bincount(cell, weights=weight, minlength=n_cells(edges))
    return found


def invert(halves: Halves, names: tuple[str, ...]) -> tuple[FloatArray, FloatArray]:
    """Least squares with two reconstructed bins for each of truth, and its statistical covariance."""
    s, edges = halves.sample, coarse_edges(names)
    inside = halves.simulation & s.generated
    of_selected = {n: s.measured[n][np.maximum(s.row, 0)] for n in names}
    solved = s.selected & np.isfinite(list(of_selected.values())).all(axis=0)
    reco_edges = []
    for name, axis in zip(names, edges, strict=True):
        levels = np.linspace(0, 1, (2 if len(names) == 1 else 1) * (len(axis) + 1) + 1)[1:-1]
        reco_edges.append(np.quantile(of_selected[name][halves.simulation & solved], levels))
    reco, true = cells(of_selected, names, reco_edges), cells(s.values, names, edges)
    n_reco, n_true = n_cells(reco_edges), n_cells(edges)

    def counts(chosen: BoolArray, weight: FloatArray) -> FloatArray:
        return np.bincount(reco[chosen], weights=weight[chosen], minlength=n_reco).astype(float)

    generated = np.bincount(true[inside], weights=s.weight[inside], minlength=n_true)
    both = inside & solved
    matrix = np.bincount(
        true[both] * n_reco + reco[both], weights=s.weight[both], minlength=n_true * n_reco
    ).reshape(n_true, n_reco)
    fakes = counts(halves.simulation & solved & ~s.generated, s.weight)
    share = matrix.sum(0) / (matrix.sum(0) + fakes)
    y = counts(halves.data & solved, halves.data_weight) * share
    variance = counts(halves.data & solved, halves.data_weight**2) * share**2
    response = (matrix / generated[:, None]).T
    weight = 1 / np.maximum(variance, 1.0)
    covariance = np.linalg.inv(response.T * weight @ response)
    return covariance @ (response.T * weight @ y), covariance


def maximise(halves: Halves, names: tuple[str, ...]) -> tuple[FloatArray, FloatArray]:
    """Expectation maximisation in fine bins, added up to those of the spectrum, and covariance."""
    s, fine = halves.sample, fine_edges(names)
    true = cells(s.values, names, fine)
    probability = s.probability[names]
    solved = s.selected & (probability.sum(axis=1) > 0)[np.maximum(s.row, 0)]
    inside = halves.simulation & s.generated

    def spectrum(chosen: BoolArray) -> FloatArray:
        return np.bincount(true[chosen], weights=s.weight[chosen], minlength=n_cells(fine)).astype(float)

    chosen = inside & solved
    selected, generated = spectrum(chosen), spectrum(inside)
    efficiency = np.where(selected > 0, selected / np.maximum(generated, 1e-9), 1.0)
    prior = training_of_samples(probability[s.row[chosen]], selected, weight=s.weight[chosen])
    data = halves.data & solved
    # Fakes look like signal to the samples; their share is that of the simulation.
    all_selected = s.weight[halves.simulation & solved].sum()
    share = s.weight[chosen].sum() / all_selected
    found = expectation_maximisation(
        probability[s.row[data]],
        prior,
        weight=halves.data_weight[data] * share,
        efficiency=efficiency,
        replicas=100,
    )
    edges = coarse_edges(names)
    shape = tuple(len(axis) + 1 for axis in fine)
    of_fine = np.unravel_index(np.arange(n_cells(fine)), shape)
    # The coarse cell of each fine one, by a value inside.
    inner = {
        name: np.r_[axis[0] - 1e-6, axis][index]
        for name, axis, index in zip(names, fine, of_fine, strict=True)
    }
    coarse = cells(inner, names, edges)
    add = np.zeros((n_cells(edges), n_cells(fine)))
    add[coarse, np.arange(n_cells(fine))] = 1
    return add @ found.generated, add @ found.covariance @ add.T


# ---- parts -----------------------------------------------------------------------------------------------


def unfolded(path: Path, halves: Halves, seed: int, **options: Any) -> tuple[dict[str, Any], float]:
    """Spectra of OmniFold from a file or made now, and the seconds it took."""

    def make() -> dict[str, Any]:
        data, simulated, used = omnifold_inputs(halves)
        started = time.process_time()
        found: Unfolded = unfold(
            data, simulated, folds=FOLDS, seed=(seed,), truth=true_of_data(halves), **options
        )
        seconds = time.process_time() - started
        steps = np.array(found.iterations, float)
        return spectra_of(halves, used, found.ratio) | {"iterations": steps, "seconds": np.array(seconds)}

    content = cached(path, make)
    return content, float(content["seconds"])


def closure(sample: Sample, folder: Path) -> list[Row]:
    """Bias of all methods, each file in turn as data."""
    n_files = int(sample.file.max()) + 1
    rows: list[Row] = []
    for change, factor in changes(sample).items():
        results: dict[str, dict[str, list[FloatArray]]] = {}
        errors: dict[str, dict[str, list[FloatArray]]] = {}
        true: dict[str, list[FloatArray]] = {}
        before: dict[str, list[FloatArray]] = {}
        for i in range(n_files):
            halves = Halves(sample, sample.file == i, sample.file != i, sample.weight * factor)
            content, seconds = unfolded(folder / f"closure_{change}_{i}_{FOLDS}.npz", halves, i)
            more, _ = unfolded(folder / f"closure_{change}_{i}_{FOLDS}_more.npz", halves, i, iterations=MORE)
            print(f"{change}, file {i}: {len(content['iterations'])} iterations, {seconds:.0f} s", flush=True)
            for names in SPECTRA:
                key = ",".join(names)
                results.setdefault("OmniFold", {}).setdefault(key, []).append(content[key])
                results.setdefault(f"OmniFold, {MORE}", {}).setdefault(key, []).append(more[key])
                for method, of in {"inversion": invert, "EM": maximise}.items():
                    kept = cached(
                        folder / f"closure_{change}_{i}_{method}_{key.replace(',', '_')}.npz",
                        lambda of=of, halves=halves, names=names: dict(  # type: ignore[misc]
                            zip(("value", "covariance"), of(halves, names), strict=True)
                        ),
                    )
                    results.setdefault(method, {}).setdefault(key, []).append(kept["value"])
                    errors.setdefault(method, {}).setdefault(key, []).append(
                        np.sqrt(np.diagonal(kept["covariance"]))
                    )
                true.setdefault(key, []).append(halves.truth(names))
                unchanged = halves._replace(data_weight=sample.weight).truth(names)
                before.setdefault(key, []).append(unchanged * true[key][-1].sum() / unchanged.sum())
        for method in ("inversion", "EM", "OmniFold", f"OmniFold, {MORE}"):
            for key, found in results[method].items():
                difference = np.array(found) - np.array(true[key])
                wanted = np.sum(true[key], axis=0)
                bias = difference.sum(axis=0) / wanted
                spread = difference.std(axis=0, ddof=1) * np.sqrt(n_files) / wanted
                for b in range(len(bias)):
                    quoted = errors.get(method, {}).get(key)
                    rows.append(
                        {"change": change, "spectrum": key, "bin": b, "method": method}
                        | {"folds": FOLDS if method.startswith("OmniFold") else ""}
                        | {"true": round(float(wanted[b]), 1)}
                        | {"changed": rounded(1 - np.sum(before[key], axis=0)[b] / wanted[b])}
                        | {"bias": rounded(bias[b]), "bias_error": rounded(spread[b])}
                        | {"error_one_file": rounded(spread[b] * np.sqrt(n_files))}
                        | {
                            "quoted_one_file": ""
                            if quoted is None
                            else rounded(np.mean(quoted, axis=0)[b] * n_files / wanted[b])
                        }
                    )
    return rows


def toys(sample: Sample, folder: Path, number: int, replicas: int, shares: Sequence[float]) -> list[Row]:
    """Coverage of the bootstrap errors of OmniFold in random parts of all events.

    The error of a bin is the root of the mean variance of the replicas over all toys, so that few replicas of
    each suffice.
    """
    factor = changes(sample)["slope"]
    everything = Halves(sample, np.ones(len(sample.file), bool), sample.selected, sample.weight * factor)
    settings = ClassifierSettings()
    pulls: dict[str, list[FloatArray]] = {}
    widths: dict[str, list[FloatArray]] = {}
    for toy in range(number):

        def make(toy: int = toy) -> dict[str, Any]:
            rng = np.random.default_rng([7, toy])
            u = rng.random(len(sample.file))
            halves = Halves(sample, u < shares[0], u >= 1 - shares[1], sample.weight * factor)
            data, simulated, used = omnifold_inputs(halves)
            options: dict[str, Any] = {"iterations": 3, "settings": settings, "folds": FOLDS}
            nominal = unfold(data, simulated, seed=(toy, 0), **options)
            kept = {f"{key} nominal": v for key, v in spectra_of(halves, used, nominal.ratio).items()}
            others: dict[str, list[FloatArray]] = {}
            for r in range(replicas):
                of_data, of_sample = rng.poisson(1.0, len(data.weight)), rng.poisson(1.0, len(simulated))
                again = unfold(
                    Measured(data.x, data.weight * of_data),
                    replace(simulated, weight=simulated.weight * of_sample),
                    seed=(toy, 1 + r),
                    **options,
                )
                for key, v in spectra_of(halves, used, of_sample * again.ratio).items():
                    others.setdefault(key, []).append(v)
            return kept | {f"{key} replicas": np.array(v) for key, v in others.items()}

        name = f"toy_{FOLDS}_{shares[0]:g}_{shares[1]:g}_{replicas}_{toy}.npz"
        content = cached(folder / name, make)
        for names in SPECTRA:
            key = ",".join(names)
            wanted = everything.truth(names) * shares[0]
            pulls.setdefault(key, []).append(content[f"{key} nominal"] / wanted - 1)
            widths.setdefault(key, []).append((content[f"{key} replicas"] / wanted).var(axis=0, ddof=1))
        print(f"toy {toy + 1} of {number}", flush=True)
    rows = []
    for key, found in pulls.items():
        error = np.sqrt(np.mean(widths[key], axis=0))
        pull = np.array(found) / error
        for b in range(pull.shape[1]):
            own = pull[:, b]
            within = {level: float((np.abs(own) < level).mean()) for level in (1, 2)}
            centred = {level: float((np.abs(own - own.mean()) < level).mean()) for level in (1, 2)}
            rows.append(
                {"spectrum": key, "bin": b, "folds": FOLDS, "toys": len(pull), "replicas": replicas}
                | {"quoted": rounded(error[b]), "bias": rounded(np.mean(found, axis=0)[b])}
                | {"pull_mean": rounded(pull[:, b].mean()), "pull_std": rounded(pull[:, b].std(ddof=1))}
                | {f"within_{level}": rounded(value) for level, value in within.items()}
                | {f"within_{level}_without_bias": rounded(value) for level, value in centred.items()}
            )
    return rows


BUMP_SETTINGS = (("five", 10), ("m_tt", 10))
"""Observables, all of `OBSERVED` or one, and epochs of the networks with which the bump is looked for."""


def bump(sample: Sample, folder: Path, iterations: int) -> list[Row]:
    """How much of the bump is found with all events as data and as simulation, which then fluctuate alike.

    By iteration, the root of the triangular discriminator of selected events over that before; at the end
    also the projection of the found change of the normalised spectrum of generated events, in fine bins of
    m(tt̄), on the true one.
    """
    everything = np.ones(len(sample.file), bool)
    halves = Halves(sample, everything, everything, sample.weight * changes(sample)["bump"])
    data, simulated, used = omnifold_inputs(halves)
    truth = true_of_data(halves)
    inside = sample.generated[used]
    cell = cells(sample.values, ("m_tt",), [FINE["m_tt"]])[used][inside]

    def fine(weight: FloatArray) -> FloatArray:
        return np.bincount(cell, weights=weight[used][inside], minlength=len(FINE["m_tt"]) + 1)

    def shape(spectrum: FloatArray) -> FloatArray:
        return spectrum / spectrum.sum()

    before = shape(fine(sample.weight))
    change = shape(fine(halves.data_weight)) - before
    rows: list[Row] = []
    for seen, epochs in BUMP_SETTINGS:
        which = slice(None) if seen == "five" else slice(OBSERVED.index(seen), OBSERVED.index(seen) + 1)
        own_truth = truth[0][:, which], truth[1]
        own = replace(simulated, x=simulated.x[:, which], z=simulated.z[:, which])

        def make(which: slice = which, own: Simulated = own, epochs: int = epochs) -> dict[str, Any]:
            result = unfold(
                Measured(data.x[:, which], data.weight),
                own,
                iterations=iterations,
                folds=FOLDS,
                settings=ClassifierSettings(epochs=epochs),
                seed=(7,),
                truth=(truth[0][:, which], truth[1]),
            )
            ratio = np.ones(len(sample.file))
            ratio[used] = result.ratio
            return {"fine": fine(sample.weight * ratio), "iterations": np.array(result.iterations, float)}

        content = cached(folder / f"bump_{seen}_{epochs}_{iterations}_{FOLDS}.npz", make)
        start = unfold_start(own, own_truth)
        found = float(((shape(content["fine"]) - before) * change).sum() / (change**2).sum())
        print(f"bump, {seen}, {epochs} epochs: {found:.3f} found", flush=True)
        for i, distance in enumerate(content["iterations"][:, 3]):
            rows.append(
                {"observables": seen, "epochs": epochs, "folds": FOLDS, "iteration": i + 1}
                | {"before": rounded(start), "distance": rounded(distance)}
                | {"remaining": rounded(np.sqrt(distance / start))}
                | {"found": rounded(found) if i + 1 == iterations else ""}
            )
    return rows


NETWORKS: dict[str, dict[str, Any]] = {
    "MLP of summaries": {},
    "transformer": {"kind": "transformer", "blocks": 3, "channels": 32, "heads": 4},
    "L-GATr-slim": {"kind": "lgatr_slim", "blocks": 2, "vector_channels": 8, "scalar_channels": 32},
}
"""What learns the ratios of step 1: small networks, for samples of some thousand events."""


def networks(
    sample: Sample,
    folder: Path,
    names: Sequence[str],
    trainings: int,
    shares: Sequence[float],
    epochs: int,
    iterations: int,
) -> list[Row]:
    """Triangular discriminator per iteration, of networks that see objects or summaries.

    The last file is pseudo-data with the change *slope*, the others are simulation, of each a share. The
    unfolded spectra of selected events are compared with those of the selected events of all files, whose
    statistical fluctuations are small; those of pseudo-data and simulation are the same for all trainings.
    """
    factor = changes(sample)["slope"]
    last = int(sample.file.max())
    u = np.random.default_rng(11).random(len(sample.file))
    data_part = (sample.file == last) & (u < shares[0])
    halves = Halves(sample, data_part, (sample.file != last) & (u < shares[1]), sample.weight * factor)
    data, simulated, used = omnifold_inputs(halves)
    everything = halves._replace(data=np.ones(len(sample.file), bool))
    seen = DileptonEvents.concatenate(
        [
            sample.events[sample.row[np.flatnonzero(data_part & sample.selected)]],
            sample.events[sample.row[used[simulated.selected]]],
        ]
    )
    settings = "_".join(f"{value:g}" for value in (last, *shares, epochs, iterations, FOLDS))
    start = unfold_start(simulated, true_of_data(everything))
    rows: list[Row] = []
    for name in names:
        backbone = NETWORKS[name]
        found: list[dict[str, Any]] = []
        parameters, flops, fit = "", "", None
        if backbone:
            config = ObjectRatioConfig.model_validate(
                {"model": {"backbone": backbone, "scalars": 32, "hidden": 32}, "epochs": epochs}
            )
            fit = ObjectRatio(config, seen)
            parameters, flops = cost(config, seen)
        for training in range(trainings):

            def make(fit: Any = fit, training: int = training) -> dict[str, Any]:
                started = time.process_time()
                result = unfold(
                    data,
                    simulated,
                    iterations=iterations,
                    folds=FOLDS,
                    seed=(training, 5),
                    truth=true_of_data(everything),
                    fit_ratio=fit,
                )
                seconds = time.process_time() - started
                return {"iterations": np.array(result.iterations, float), "seconds": np.array(seconds)}

            found.append(
                cached(
                    folder / f"network_{name.replace(' ', '_')}_{settings}_{training}.npz",
                    make,
                )
            )
            print(f"{name}, training {training + 1}: {found[-1]['iterations'][:, 3]}", flush=True)
        distance = np.array([each["iterations"][:, 3] for each in found])
        for i, column in enumerate(distance.T):
            rows.append(
                {"network": name, "iteration": i + 1, "trainings": trainings, "before": rounded(start)}
                | {"distance": rounded(column.mean())}
                | {"spread": rounded(column.std(ddof=1)) if trainings > 1 else ""}
                | {"parameters": parameters, "flops_per_event": flops}
                | {"cpu_s": rounded(np.mean([float(each["seconds"]) for each in found]))}
                | {"data": len(data.weight), "simulated": int(simulated.selected.sum()), "folds": FOLDS}
            )
    return rows


def unfold_start(simulated: Simulated, truth: tuple[FloatArray, FloatArray]) -> float:
    """Triangular discriminator of the simulation as it is, the largest of the columns, in 20 bins."""
    inside = simulated.selected & simulated.generated
    z, weight = truth
    found = []
    for column, own in zip(z.T, simulated.z[inside].T, strict=True):
        edges = np.quantile(column, np.linspace(0, 1, 21)[1:-1])
        spectra = [
            np.bincount(np.searchsorted(edges, v, side="right"), weights=w, minlength=20)
            for v, w in ((column, weight), (own, simulated.weight[inside]))
        ]
        found.append(triangular_discriminator(*spectra))
    return max(found)


def cost(config: ObjectRatioConfig, events: DileptonEvents) -> tuple[int, int]:
    """Parameters, and floating-point operations of matrix products of an event's forward pass."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = EventNetwork(config.model, 1)
    network.encoder.backbone.packed = False
    columns = event_columns(config.model, events[:100], None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(columns)
    return sum(p.numel() for p in network.parameters()), round(counter.get_total_flops() / 100)


def detector(sample: Sample, folder: Path, files: Sequence[Path], model: Any) -> list[Row]:
    """Another simulation as data: unfolded against true spectra of its selected events."""
    events, truth = read_skims(files)
    assert truth is not None
    measured = predictions(events, model, folder, f"other_{len(events)}", samples=False)
    values, inside = true_values(truth)
    everything = np.ones(len(sample.file), bool)
    _, simulated, used = omnifold_inputs(Halves(sample, everything, everything, sample.weight))
    x = columns(measured)
    solved = np.isfinite(x).all(axis=1)
    data = Measured(x[solved], np.ones(int(solved.sum())))
    true_z = columns({n: values[n][inside & solved] for n in OBSERVED}), np.ones(int((inside & solved).sum()))
    chosen = simulated.selected & simulated.generated

    def spectra(ratio: FloatArray) -> dict[str, FloatArray]:
        weight = (simulated.weight * ratio)[chosen]
        return {
            ",".join(names): np.bincount(
                cells(sample.values, names, coarse_edges(names))[used][chosen],
                weights=weight,
                minlength=n_cells(coarse_edges(names)),
            )
            for names in SPECTRA
        }

    def make() -> dict[str, Any]:
        result = unfold(data, simulated, iterations=4, folds=FOLDS, seed=(3,), truth=true_z)
        kept: dict[str, Any] = dict(spectra(result.ratio))
        rng = np.random.default_rng(5)
        replicas: dict[str, list[FloatArray]] = {}
        for r in range(DETECTOR_REPLICAS):
            of_data, of_sample = rng.poisson(1.0, len(data.weight)), rng.poisson(1.0, len(simulated))
            again = unfold(
                Measured(data.x, data.weight * of_data),
                replace(simulated, weight=simulated.weight * of_sample),
                iterations=4,
                folds=FOLDS,
                seed=(3, 1 + r),
            )
            for key, v in spectra(of_sample * again.ratio).items():
                replicas.setdefault(key, []).append(v)
        return kept | {f"{key} error": np.std(v, axis=0, ddof=1) for key, v in replicas.items()}

    content = cached(folder / f"detector_{len(events)}_{FOLDS}.npz", make)
    start = spectra(np.ones(len(simulated)))
    rows: list[Row] = []
    for names in SPECTRA:
        key, edges = ",".join(names), coarse_edges(names)
        wanted = np.bincount(cells(values, names, edges)[inside & solved], minlength=n_cells(edges)).astype(
            float
        )
        scale = wanted.sum() / start[key].sum()
        for b, true in enumerate(wanted):
            rows.append(
                {"spectrum": key, "bin": b, "folds": FOLDS, "true": int(true)}
                | {"before": rounded(start[key][b] * scale / true - 1)}
                | {"bias": rounded(content[key][b] / true - 1)}
                | {"error": rounded(content[f"{key} error"][b] / true)}
            )
    return rows


def rounded(x: Any) -> float:
    """Four significant digits."""
    return float(f"{float(x):.4g}")


def main() -> None:
    """Predict, unfold, tabulate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    many: dict[str, Any] = {"type": Path, "nargs": "+"}
    parser.add_argument("--simulation", **many, required=True, help="skims")
    parser.add_argument("--generated", **many, required=True, help="generated events of each of them")
    parser.add_argument("--other", **many, help="skims of another simulation, with truth")
    parser.add_argument("--model", default="dilepton", help="model of the task posterior")
    parser.add_argument(
        "--parts", nargs="+", default=["closure"], help="closure, toys, bump, networks, detector"
    )
    parser.add_argument("--toys", type=int, default=60)
    parser.add_argument("--replicas", type=int, default=2, help="replicas of each toy, at least 2")
    parser.add_argument(
        "--shares", type=float, nargs=2, default=(0.06, 0.15), help="shares of data and simulation of a toy"
    )
    parser.add_argument("--bump-iterations", type=int, default=8)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--trainings", type=int, default=6, help="trainings of each network")
    parser.add_argument(
        "--network-shares",
        type=float,
        nargs=2,
        default=(1.0, 1.0),
        help="shares of the last file, which is data, and of the others",
    )
    parser.add_argument("--network-iterations", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the networks that see objects")
    parser.add_argument("--output", type=Path, required=True, help="folder for what is kept")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of tables")
    given = parser.parse_args()
    folder = writable_folder(given.output)
    model = topreco.load(given.model, threads=1, quantiles=False)
    sample = read(given.simulation, given.generated, model, folder)
    parts: dict[str, Callable[[], list[Row]]] = {
        "closure": lambda: closure(sample, folder),
        "toys": lambda: toys(sample, folder, given.toys, given.replicas, given.shares),
        "bump": lambda: bump(sample, folder, given.bump_iterations),
        "networks": lambda: networks(
            sample,
            folder,
            given.networks,
            given.trainings,
            given.network_shares,
            given.epochs,
            given.network_iterations,
        ),
        "detector": lambda: detector(sample, folder, given.other, model),
    }
    for part in given.parts:
        write_csv(given.docs / "tables" / f"omnifold_{part}.csv", parts[part]())


if __name__ == "__main__":
    main()
