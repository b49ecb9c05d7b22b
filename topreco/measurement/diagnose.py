"""Does the simulation describe data? A classifier of reconstructed objects, and the weights it implies.

A network that can tell data from simulation, beyond chance and on events it has not seen, shows that the
simulation is wrong somewhere; the area under its ROC curve says how well it can. Which observables carry the
difference follows from how much of the area is lost when one of them is shuffled among all events. The
exponential of the network's output is the ratio of densities: simulation weighted by it should no longer be
told from data by a fresh network. Shapes alone are compared, all sums of weights are scaled to that of data.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from topreco.config import DiagnoseConfig
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, IntArray
from topreco.core.files import check_outputs, plain, writable_folder, write_text
from topreco.core.observables import delta_phi_ll
from topreco.core.ratios import effective_number
from topreco.core.skim import SkimError, read_skims
from topreco.evaluation.report import format_estimate, markdown_table, terminal_table
from topreco.measurement.classifier import ClassifierSettings, cross_fitted, fit_log_ratio, fit_mean

N_BINS = 10
"""Bins of equal population of data and simulation together for the χ² of each observable."""
_LEAST = 200
_N_JETS = 2
_SHUFFLES = 3
_FOLD_SALT = 41
_HALF_SALT = 43


class Area(NamedTuple):
    """Area under a ROC curve, 0.5 for samples that cannot be told apart, and its standard error."""

    value: float
    error: float


class ObservableDifference(NamedTuple):
    """What an observable has to do with the difference.

    Attributes
    ----------
    name
        Observable.
    lost
        Part of the AUC that is lost when its values are shuffled among all events.
    chi2, bins
        χ² of data against simulation, scaled to data, and the number of bins that have events.
    chi2_weighted
        The same with the weights of the classifier.
    """

    name: str
    lost: float
    chi2: float
    chi2_weighted: float
    bins: int


class Diagnosis(NamedTuple):
    """Result of `diagnose`.

    Attributes
    ----------
    n_data, n_simulation
        Numbers of events.
    yield_ratio
        Sum of the weights of data over that of simulation.
    before, after
        AUC of data against simulation as it is, and of a fresh classifier against simulation weighted by a
        network of the other half of the events, the mean of both halves.
    effective_share
        Effective number of the weighted simulation over that before.
    observables
        Differences, the most important observable first.
    folder
        Where ``diagnose.json``, ``diagnose.md`` and ``weights.npz`` are.
    """

    n_data: int
    n_simulation: int
    yield_ratio: float
    before: Area
    after: Area
    effective_share: float
    observables: tuple[ObservableDifference, ...]
    folder: Path


def object_columns(events: DileptonEvents) -> dict[str, FloatArray]:
    """Observables of reconstructed objects that the classifier sees, each of shape (n,).

    Parameters
    ----------
    events
        Selected events. What an absent jet has is 0.
    """
    leptons = events.lepton_p4
    jets = events.jets[:, :_N_JETS]
    found = {
        "pt_lepton_plus": fourvector.pt(leptons[:, 0]),
        "pt_lepton_minus": fourvector.pt(leptons[:, 1]),
        "eta_lepton_plus": fourvector.eta(leptons[:, 0]),
        "eta_lepton_minus": fourvector.eta(leptons[:, 1]),
        "m_ll": fourvector.mass(leptons.sum(axis=1)),
        "delta_phi_ll": delta_phi_ll(leptons),
        "met": np.hypot(*events.met.T),
        "n_jets": events.n_jets.astype(float),
        "n_tagged": (events.jet_tagged & events.jet_mask).sum(axis=1).astype(float),
        "ht": np.where(events.jet_mask, fourvector.pt(events.jets), 0.0).sum(axis=1),
        "n_muons": events.channel.astype(float),
    }
    for i in range(jets.shape[1]):
        present = events.jet_mask[:, i]
        jet = np.where(present[:, None], jets[:, i], np.array([1.0, 1.0, 0.0, 0.0]))
        found[f"pt_jet_{i + 1}"] = np.where(present, fourvector.pt(jet), 0.0)
        found[f"eta_jet_{i + 1}"] = np.where(present, fourvector.eta(jet), 0.0)
    return found


def area_under_curve(score: FloatArray, in_a: Any, weight: FloatArray) -> float:
    """Weighted share of pairs of an event of A and one of B in which A has the higher score, ties half.

    Parameters
    ----------
    score
        Shape (n,).
    in_a
        Whether an event belongs to A, shape (n,).
    weight
        Signed weights, shape (n,).
    """
    _, place = np.unique(score, return_inverse=True)
    a, b = (np.bincount(place, np.where(chosen, weight, 0.0)) for chosen in (in_a, ~in_a))
    below = np.cumsum(b) - b / 2
    return float((a * below).sum() / (a.sum() * b.sum()))


def diagnose(config: DiagnoseConfig) -> Diagnosis:
    """Compare data with simulation.

    Parameters
    ----------
    config
        Files and settings.

    Returns
    -------
    diagnosis
        Also written as ``diagnose.json`` and ``diagnose.md``; ``weights.npz`` has the weights of the
        simulated events in the order of the skims.

    Raises
    ------
    TopRecoError
        If files are missing, an event is in both samples, an observable is not finite, or a sample has too
        few events or no positive sum of weights.
    """
    for name in ("data", "simulation"):
        if not getattr(config, name):
            raise TopRecoError(
                f"{name}: no skims given; `topreco skim` writes them, {name}=[FILE] names them"
            )
    inputs = (*config.data, *config.simulation)
    for path in inputs:
        if not path.is_file():
            raise SkimError(f"{path}: no such file; a skim written by `topreco skim` expected")
    folder = writable_folder(config.output)
    check_outputs([folder / name for name in ("diagnose.json", "diagnose.md", "weights.npz")], inputs)
    data, simulation = (read_skims(paths)[0] for paths in (config.data, config.simulation))
    _check(data, simulation)
    columns = {
        name: np.concatenate([values, object_columns(simulation)[name]])
        for name, values in object_columns(data).items()
    }
    for name, values in columns.items():
        if bad := int((~np.isfinite(values)).sum()):
            raise TopRecoError(f"{name}: {bad} of {len(values)} events have no finite value")
    # What is the same in all events, such as the number of muons in one channel, tells nothing.
    columns = {name: values for name, values in columns.items() if np.ptp(values) > 0}
    in_data = np.arange(len(data) + len(simulation)) < len(data)
    weight = np.concatenate([data.weight, simulation.weight]).astype(float)
    yield_ratio = float(weight[in_data].sum() / weight[~in_data].sum())
    weight[~in_data] *= yield_ratio
    uniform = np.concatenate([data.uniform(_FOLD_SALT), simulation.uniform(_FOLD_SALT)])
    fold = np.minimum((uniform * config.folds).astype(int), config.folds - 1)

    x = np.stack(list(columns.values()), axis=1)
    score, networks = _classified(x, in_data, weight, fold, config, 0)
    before = _area(score, in_data, weight, config)
    reweighted = _weighted(score, in_data, weight)
    half = np.concatenate([data.uniform(_HALF_SALT), simulation.uniform(_HALF_SALT)]) < 0.5
    after = _closure(x, in_data, weight, fold, half, config)
    lost = _lost(x, in_data, weight, fold, networks, before.value, config.seed)
    differences = []
    for (name, values), part in zip(columns.items(), lost, strict=True):
        chi2, bins = _chi2(values, in_data, weight)
        differences.append(
            ObservableDifference(name, part, chi2, _chi2(values, in_data, reweighted)[0], bins)
        )
    differences.sort(key=lambda of: -of.lost)
    result = Diagnosis(
        len(data),
        len(simulation),
        yield_ratio,
        before,
        after,
        effective_number(reweighted[~in_data]) / effective_number(weight[~in_data]),
        tuple(differences),
        folder,
    )
    np.savez(folder / "weights.npz", weight=reweighted[~in_data])
    content = result._asdict() | {
        "folder": str(folder),
        "before": before._asdict(),
        "after": after._asdict(),
        "observables": [of._asdict() for of in differences],
        "config": config.model_dump(mode="json"),
    }
    write_text(folder / "diagnose.json", json.dumps(plain(content), indent=1) + "\n")
    headings, rows = _rows(result)
    write_text(folder / "diagnose.md", f"{summary(result)}\n\n{markdown_table(headings, rows)}\n")
    return result


def _check(data: DileptonEvents, simulation: DileptonEvents) -> None:
    """Raise if the samples cannot be compared."""
    for name, events in (("data", data), ("simulation", simulation)):
        if len(events) < _LEAST:
            raise TopRecoError(f"{name}: {len(events)} events found, at least {_LEAST} expected")
        if not events.weight.sum() > 0:
            raise TopRecoError(
                f"{name}: sum of the weights {events.weight.sum():.4g} found, a positive one expected"
            )
    first, second = (
        np.rec.fromarrays(
            [
                getattr(events, key).astype(np.uint64)
                for key in ("dataset", "run", "luminosity_block", "event")
            ]
        )
        for events in (data, simulation)
    )
    if common := len(np.intersect1d(np.asarray(first), np.asarray(second))):
        raise TopRecoError(
            f"data, simulation: {common} events are in both; samples without a common one expected"
        )


def _training_weights(
    x: FloatArray,
    in_data: Any,
    weight: FloatArray,
    fold: IntArray,
    config: DiagnoseConfig,
    seed: Sequence[int],
) -> FloatArray:
    """Weights ≥ 0: a ratio is unbiased with the mean weight of the neighbours in place of both signs."""
    found = weight.copy()
    for chosen in (in_data, ~in_data):
        if not (weight[chosen] < 0).any():
            continue
        own, own_weight = x[chosen], weight[chosen]

        def mean(rows: Any, number: int, own: Any = own, own_weight: Any = own_weight) -> Any:
            return fit_mean(own[rows], own_weight[rows], _settings(config), (*seed, 7, number))

        found[chosen] = np.maximum(cross_fitted(mean, own, fold[chosen], config.folds), 0.0)
    return found


def _settings(config: DiagnoseConfig) -> ClassifierSettings:
    return ClassifierSettings(config.hidden, config.epochs, config.batch_size, config.learning_rate)


def _classified(
    x: FloatArray, in_data: Any, weight: FloatArray, fold: IntArray, config: DiagnoseConfig, round_: int
) -> tuple[FloatArray, list[Any]]:
    """Log-ratios of all events by networks that have not seen them, and the network of each fold."""
    seed = (config.seed, round_)
    positive = _training_weights(x, in_data, weight, fold, config, seed)
    networks = []

    def fit(rows: Any, number: int) -> Any:
        a, b = (np.where(chosen[rows], positive[rows], 0.0) for chosen in (in_data, ~in_data))
        networks.append(fit_log_ratio(x[rows], a, b, _settings(config), (*seed, number)))
        return networks[-1]

    return cross_fitted(fit, x, fold, config.folds), networks


def _closure(
    x: FloatArray, in_data: Any, weight: FloatArray, fold: IntArray, half: Any, config: DiagnoseConfig
) -> Area:
    """AUC of a fresh classifier against simulation with weights learnt from the other half of the events.

    Had the weights of an event been learnt together with events that judge it, they would follow the
    fluctuations of these, and the classifier would do worse than chance.
    """
    areas = []
    for number, learnt in enumerate((half, ~half)):
        positive = _training_weights(
            x[learnt], in_data[learnt], weight[learnt], fold[learnt], config, (config.seed, 2 + number)
        )
        a, b = (np.where(chosen[learnt], positive, 0.0) for chosen in (in_data, ~in_data))
        network = fit_log_ratio(x[learnt], a, b, _settings(config), (config.seed, 4 + number))
        rows, data = x[~learnt], in_data[~learnt]
        reweighted = _weighted(network(rows), data, weight[~learnt])
        score, _ = _classified(rows, data, reweighted, fold[~learnt], config, 6 + number)
        areas.append(_area(score, data, reweighted, config))
    values, errors = np.array(areas).T
    return Area(float(values.mean()), float(np.sqrt((errors**2).sum()) / 2))


def _weighted(log_ratio: FloatArray, in_data: Any, weight: FloatArray) -> FloatArray:
    """Weights with the simulation weighted by the ratio, its sum that of data."""
    found = weight * np.where(in_data, 1.0, np.exp(log_ratio))
    found[~in_data] *= weight[in_data].sum() / found[~in_data].sum()
    return found


def _area(score: FloatArray, in_data: Any, weight: FloatArray, config: DiagnoseConfig) -> Area:
    """AUC, with the spread of bootstrap replicas of the events as error."""
    rng = np.random.default_rng([config.seed, 99])
    replicas = [
        area_under_curve(score, in_data, weight * rng.poisson(1.0, len(weight)))
        for _ in range(config.replicas)
    ]
    return Area(area_under_curve(score, in_data, weight), float(np.std(replicas)))


def _lost(
    x: FloatArray,
    in_data: Any,
    weight: FloatArray,
    fold: IntArray,
    networks: Sequence[Any],
    area: float,
    seed: int,
) -> list[float]:
    """Loss of AUC by shuffling each column among the events of a fold."""
    rng = np.random.default_rng([seed, 98])
    used = [number for number in range(int(fold.max()) + 1) if (fold == number).any()]
    lost = []
    for column in range(x.shape[1]):
        found = []
        for _ in range(_SHUFFLES):
            score = np.zeros(len(x))
            for number, network in zip(used, networks, strict=True):
                mine = fold == number
                shuffled = x[mine].copy()
                shuffled[:, column] = rng.permutation(shuffled[:, column])
                score[mine] = network(shuffled)
            found.append(area - area_under_curve(score, in_data, weight))
        lost.append(float(np.mean(found)))
    return lost


def _chi2(values: FloatArray, in_data: Any, weight: FloatArray) -> tuple[float, int]:
    """χ² in bins of equal population, with the variance of both samples, and the number of bins."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, N_BINS + 1)[1:-1]))
    place = np.searchsorted(edges, values, side="right")

    def sums(chosen: Any, of: FloatArray) -> FloatArray:
        return np.bincount(place[chosen], of[chosen], len(edges) + 1).astype(float)

    difference = sums(in_data, weight) - sums(~in_data, weight)
    variance = sums(in_data, weight**2) + sums(~in_data, weight**2)
    filled = variance > 0
    return float((difference[filled] ** 2 / variance[filled]).sum()), int(filled.sum())


def summary(result: Diagnosis) -> str:
    """One paragraph about a diagnosis."""
    before, after = (f"{area.value:.4f} ± {area.error:.4f}" for area in (result.before, result.after))
    return (
        f"{result.n_data:,} events of data, {result.n_simulation:,} of simulation, "
        f"yield data/simulation {result.yield_ratio:.4g}. AUC {before}, after weights {after}; "
        f"{100 * result.effective_share:.0f} % of the effective events are left by the weights"
    )


def _rows(result: Diagnosis) -> tuple[tuple[str, ...], Iterable[tuple[str, ...]]]:
    headings = ("observable", "AUC lost", "χ²", "χ² after weights", "bins")
    rows = [
        (of.name, f"{of.lost:.4f}", f"{of.chi2:.1f}", f"{of.chi2_weighted:.1f}", str(of.bins))
        for of in result.observables
    ]
    return headings, rows


def table(result: Diagnosis) -> Table:
    """Observables of a diagnosis for the terminal."""
    headings, rows = _rows(result)
    area = format_estimate(*result.before)
    return terminal_table(f"data against simulation, AUC {area}", headings, rows)
