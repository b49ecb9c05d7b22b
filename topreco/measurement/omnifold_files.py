"""`topreco omnifold`: from skims to weights of generated events in files, their spectra and a table."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from topreco.config import OmniFoldConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, IntArray, Truth, hashed_uniform
from topreco.core.files import check_outputs, complete_file, content_of, to_json, writable_folder, write_text
from topreco.core.folders import differences
from topreco.core.generated import Generated, read_generated
from topreco.core.method import Method
from topreco.core.observables import OBSERVABLES, compute_observables, pair_values
from topreco.core.prior import sum_spectra
from topreco.core.progress import Advance, progress_bar
from topreco.core.ratios import effective_number, triangular_discriminator
from topreco.core.skim import Skim, SkimError, read_skims
from topreco.evaluation.latex import write_latex
from topreco.evaluation.report import terminal_table
from topreco.measurement.classifier import ClassifierSettings
from topreco.measurement.omnifold import (
    FitRatio,
    Iteration,
    Measured,
    Simulated,
    Spectrum,
    Unfolded,
    spectrum,
    unfold,
)

_CHUNK = 20_000
_FOLD_SALT, _REPLICA_SALT = 3, 1000
_KEY = ("dataset", "run", "luminosity_block", "event")
_MOMENTUM = 50.0
"""Scale in GeV from which on momenta and masses are compressed logarithmically for the networks."""


class OmniFoldResult(NamedTuple):
    """What `run_omnifold` found.

    Attributes
    ----------
    folder
        Where ``weights.parquet``, ``weights.root``, ``spectra.json`` and ``omnifold.md`` are.
    iterations
        Of the nominal result.
    stopped
        Why there was no further one.
    spectra
        By the observable's name, or two with a comma.
    level
        Whether spectra are those of all generated events, or what was done instead.
    """

    folder: Path
    iterations: tuple[Iteration, ...]
    stopped: str
    spectra: dict[str, Spectrum]
    level: str


class _Sample(NamedTuple):
    """The simulated signal, one row per event that is selected or in the phase space."""

    key: dict[str, IntArray]
    simulated: Simulated
    events: DileptonEvents
    """The selected ones in their order."""
    truth: Truth
    divided: FloatArray
    level: str


def run_omnifold(
    config: OmniFoldConfig,
    method: Method,
    *,
    objects: Callable[[DileptonEvents], FitRatio] | None = None,
    progress: bool = True,
    restart: bool = False,
) -> OmniFoldResult:
    """Unfold skims of data with skims of simulation.

    The nominal result and each bootstrap replica are kept in the output folder as soon as they are there, so
    that the command continues where it was interrupted.

    Parameters
    ----------
    config
        Files, observables and settings.
    method
        Gives the measured observables. An event that it does not solve counts as not selected.
    objects
        With `config.objects`: what learns the ratios of step 1, made of all events of data, background and
        selected simulation, such as `topreco.network.object_ratio.ObjectRatio`.
    progress
        Show a progress bar with the remaining time.
    restart
        Discard results of earlier calls in the output folder.

    Raises
    ------
    TopRecoError
        If files are missing or cannot be used, the output folder holds another result, or there are too few
        events.
    """
    for name in ("data", "simulation"):
        if not getattr(config, name):
            raise TopRecoError(
                f"{name}: no skims given; `topreco skim` writes them, {name}=[FILE] names them"
            )
    folder = writable_folder(config.output)
    names = ("weights.parquet", "weights.root", "spectra.json", "omnifold.md", "omnifold.tex")
    inputs = (*config.data, *config.simulation, *config.generated, *config.background)
    check_outputs([folder / name for name in names], inputs)
    for path in inputs:
        if not path.is_file():
            raise SkimError(f"{path}: no such file; a skim written by `topreco skim` expected")
    parts = writable_folder(folder / "parts")
    _check_settings(parts, config, method, restart=restart)

    sample = _read_simulation(config, method, progress=progress)
    data, data_events, data_truth = _measured(config.data, config, method, "data", progress=progress)
    background = None
    background_key: dict[str, IntArray] = {}
    seen = [data_events]
    if config.background:
        background, events, _ = _measured(config.background, config, method, "background", progress=progress)
        background_key = _key_of(events)
        seen.append(events)
    fit_ratio = None
    if objects is not None:
        _check_alike(config)
        fit_ratio = objects(DileptonEvents.concatenate([*seen, sample.events]))
    truth = _truth_of_data(config, data_events, data_truth)
    simulated = sample.simulated
    settings = ClassifierSettings(config.hidden, config.epochs, config.batch_size, config.learning_rate)
    data_key = _key_of(data_events)

    most = config.iterations or config.max_iterations
    with progress_bar("OmniFold", most * (1 + config.replicas), show=progress, unit="iterations") as advance:
        nominal = _kept(
            parts / "nominal.npz",
            lambda: unfold(
                data,
                simulated,
                background,
                folds=config.folds,
                iterations=config.iterations,
                max_iterations=config.max_iterations,
                tolerance=config.tolerance,
                settings=settings,
                seed=(config.seed, 0),
                truth=truth,
                fit_ratio=fit_ratio,
                advance=lambda: advance(1, "nominal"),
            ),
        )
        replicas = np.empty((len(simulated), config.replicas), np.float32)
        for number in range(config.replicas):
            of_sample, of_data, of_background = (
                _poisson(key, config.seed, number) for key in (sample.key, data_key, background_key)
            )

            def make(
                number: int = number,
                of_sample: FloatArray = of_sample,
                of_data: FloatArray = of_data,
                of_background: FloatArray = of_background,
            ) -> Unfolded:
                return unfold(
                    Measured(data.x, data.weight * of_data),
                    replace(simulated, weight=simulated.weight * of_sample),
                    None if background is None else Measured(background.x, background.weight * of_background),
                    folds=config.folds,
                    iterations=len(nominal.iterations),
                    settings=settings,
                    seed=(config.seed, 1 + number),
                    fit_ratio=fit_ratio,
                    advance=_counted(advance, f"replica {number + 1}"),
                )

            replicas[:, number] = of_sample * _kept(parts / f"replica{number}.npz", make).ratio

    inside = simulated.generated
    base = simulated.generator_weight * sample.divided
    weight = (base * nominal.ratio)[inside]
    of_replicas = (base[:, None] * replicas)[inside]
    leptons = sample.truth.w_lepton[inside]
    tops = sample.truth.tops[inside]
    values = _observables(tops, leptons, tuple(config.spectra))
    spectra = {
        name: spectrum(
            [values[n] for n in name.split(",")],
            [np.array(config.spectra[n]) for n in name.split(",")],
            weight,
            of_replicas,
        )
        for name in (*config.spectra, *(",".join(pair) for pair in config.pairs))
    }
    known = None
    if truth is not None:
        known = _closure(config, sample, nominal, replicas, data_events, data_truth)
    _write_weights(
        folder, {k: v[inside] for k, v in sample.key.items()}, nominal.ratio[inside], weight, of_replicas
    )
    about = {
        "level": sample.level,
        "stopped": nominal.stopped,
        "iterations": [step._asdict() for step in nominal.iterations],
        "method": method.name,
        "observables": list(config.observables),
        "events": {
            "data": len(data.weight),
            "simulated_selected": int(simulated.selected.sum()),
            "generated": int(inside.sum()),
            "fakes": int((simulated.selected & ~inside).sum()),
            "effective_generated": effective_number(weight),
        },
        "closure": known,
    }
    described = {
        name: {
            "edges": [axis.tolist() for axis in each.edges],
            "value": each.value.tolist(),
            "covariance": None if each.covariance is None else np.atleast_2d(each.covariance).tolist(),
        }
        for name, each in spectra.items()
    }
    write_text(folder / "spectra.json", to_json(about | {"spectra": described}))
    result = OmniFoldResult(folder, nominal.iterations, nominal.stopped, spectra, sample.level)
    text = _markdown(result, about)
    write_text(folder / "omnifold.md", text)
    write_latex(folder / "omnifold.md", text)
    return result


def _counted(advance: Advance, text: str) -> Callable[[], None]:
    return lambda: advance(1, text)


# ---- reading ---------------------------------------------------------------------------------------------


def _key_of(events: DileptonEvents) -> dict[str, IntArray]:
    return {name: getattr(events, name) for name in _KEY}


def _poisson(key: Mapping[str, IntArray], seed: int, replica: int) -> FloatArray:
    """Poisson weights of mean 1 of events, by their keys, shape (n,)."""
    if not key:
        return np.zeros(0)
    u = hashed_uniform(_REPLICA_SALT + replica, *(key[name] for name in _KEY), seed)
    # The inverse of the cumulative Poisson distribution; 20 or more happens in 1 of 10¹⁸ events.
    steps = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(20)])
    return np.searchsorted(steps, u, side="right").astype(float)


def _compressed(values: Mapping[str, FloatArray]) -> FloatArray:
    """Observables as columns for the networks, shape (n, d)."""
    columns = [
        np.arcsinh(v / _MOMENTUM) if OBSERVABLES[name].unit == "GeV" else v for name, v in values.items()
    ]
    return np.stack(columns, axis=1)


def _observables(tops: FloatArray, leptons: FloatArray, names: Sequence[str]) -> dict[str, FloatArray]:
    """True values of observables."""
    finite: BoolArray = np.asarray(np.isfinite(tops).reshape(len(tops), -1).all(axis=1))
    return compute_observables(names, tops, tops.sum(1), leptons, finite)


def _measured_columns(
    events: DileptonEvents, config: OmniFoldConfig, method: Method, title: str, *, progress: bool
) -> FloatArray:
    """Measured columns of events, NaN where not solved, shape (n, d)."""
    found: list[FloatArray] = [np.empty((0, len(config.observables)))]
    with progress_bar(title, len(events), show=progress, unit="events") as advance:
        for start in range(0, len(events), _CHUNK):
            part = events[start : start + _CHUNK]
            found.append(_compressed(pair_values(method(part), part.lepton_p4, config.observables)))
            advance(len(part))
    return np.concatenate(found)


def _measured(
    files: Sequence[Path], config: OmniFoldConfig, method: Method, title: str, *, progress: bool
) -> tuple[Measured, DileptonEvents, Truth | None]:
    """Solved events of data or background."""
    events, truth = read_skims(files)
    x = _measured_columns(events, config, method, title, progress=progress)
    solved = np.isfinite(x).all(axis=1)
    events = events[solved]
    weight = np.asarray(events.weight, float)
    return Measured(x[solved], weight), events, None if truth is None else truth[solved]


def _in_phase_space(truth: Truth) -> Any:
    """Dileptonic tt̄ with known tops and leptons, shape (n,)."""
    known = np.isfinite(truth.tops).all(axis=(1, 2)) & np.isfinite(truth.w_lepton).all(axis=(1, 2))
    return known & truth.dileptonic


def _read_simulation(config: OmniFoldConfig, method: Method, *, progress: bool) -> _Sample:
    """Selected and generated events of the signal."""
    for path in config.simulation:
        if not Skim(path).has_truth:
            raise SkimError(
                f"{path}: no truth in this skim; generated events are unfolded to, so the simulation needs "
                "to be skimmed with its truth"
            )
    parts = [read_skims([path]) for path in config.simulation]
    events = DileptonEvents.concatenate([part for part, _ in parts])
    truths = [truth for _, truth in parts if truth is not None]
    x = _measured_columns(events, config, method, "simulation", progress=progress)
    solved: BoolArray = np.asarray(np.isfinite(x).all(axis=1))
    weight = np.asarray(events.weight, float)
    if config.generated:
        files = [read_generated(path) for path in config.generated]
        _check_pairs(config, parts, files)
        starts = np.cumsum([0, *(len(part) for part, _ in parts)])[:-1]
        row = np.concatenate(
            [
                np.where(f.selected_row >= 0, f.selected_row + start, -1)
                for f, start in zip(files, starts, strict=True)
            ]
        )
        key = {name: np.concatenate([f.key[name] for f in files]) for name in _KEY}
        truth = Truth.concatenate([f.truth for f in files])
        generator_weight = np.concatenate([f.weight for f in files])
        divided, level = np.ones(len(row)), "all generated events"
    else:
        row, key = np.arange(len(events)), _key_of(events)
        truth, generator_weight = Truth.concatenate(truths), weight
        spectra = sum_spectra([Skim(path).metadata for path in config.simulation])
        level = "selected events, the skims have no efficiency of all generated events"
        divided = np.ones(len(row))
        if spectra is not None and spectra.complete:
            efficiency = spectra.efficiency_of(truth.tops)
            divided = np.where(efficiency > 0, 1 / np.where(efficiency > 0, efficiency, 1.0), 0.0)
            level = (
                "selected events divided by their efficiency in bins of m(tt̄) and pT(t), stored in the skims"
            )
    there = row >= 0
    safe = np.maximum(row, 0)
    selected = there & solved[safe] if len(solved) else there
    generated = _in_phase_space(truth)
    z = np.zeros((len(row), len(config.observables)))
    inside = truth[generated]
    z[generated] = _compressed(_observables(inside.tops, inside.w_lepton, config.observables))
    unknown = generated & ~np.isfinite(z).all(axis=1)
    generated &= ~unknown
    kept = selected | generated
    simulated = Simulated(
        x=np.where(selected[:, None], x[safe] if len(x) else 0.0, 0.0)[kept],
        z=np.where(generated[:, None], z, 0.0)[kept],
        selected=selected[kept],
        generated=generated[kept],
        weight=np.where(selected, weight[safe] if len(weight) else 0.0, 0.0)[kept],
        generator_weight=generator_weight[kept],
        fold=np.floor(hashed_uniform(_FOLD_SALT, *(key[n] for n in _KEY))[kept] * config.folds).astype(int),
    )
    divided = np.where(np.isfinite(divided), divided, 0.0)[kept]
    key["row"] = np.arange(len(kept))
    return _Sample(
        {k: v[kept] for k, v in key.items()}, simulated, events[row[selected]], truth[kept], divided, level
    )


def _check_alike(config: OmniFoldConfig) -> None:
    """Raise unless all skims have the same padding, working points, features and b tagger."""
    found: dict[str, Path] = {}
    for path in (*config.data, *config.background, *config.simulation):
        skim = Skim(path)
        part = skim.read_row_group(0)[0]
        tagger = ((skim.metadata.get("selection") or {}).get("jet") or {}).get("btag", "unknown")
        points = "" if part.jet_working_points is None else ", working points"
        features = "".join(f", {name}" for name in sorted(part.features or {}))
        found.setdefault(f"{part.jets.shape[1]} jets, tagger {tagger}{points}{features}", path)
    if len(found) > 1:
        described = "; ".join(f"{what} in {path}" for what, path in found.items())
        raise TopRecoError(f"objects: events with the same columns expected, found {described}")


def _check_pairs(
    config: OmniFoldConfig,
    parts: Sequence[tuple[DileptonEvents, Truth | None]],
    files: Sequence[Generated],
) -> None:
    """Raise unless each file of generated events was written together with its skim."""
    for path, own, (events, _), file in zip(config.generated, config.simulation, parts, files, strict=True):
        chosen = np.flatnonzero(file.selected_row >= 0)
        same = file.n_selected == len(events) and all(
            np.array_equal(file.key[name][chosen], getattr(events, name)[file.selected_row[chosen]])
            for name in _KEY
        )
        if not same:
            raise TopRecoError(
                f"{path}: generated events of another skim than {own} ({file.n_selected} of them selected, "
                f"{len(events)} in the skim); both are written by one `topreco skim --generated`"
            )


def _truth_of_data(
    config: OmniFoldConfig, events: DileptonEvents, truth: Truth | None
) -> tuple[FloatArray, FloatArray] | None:
    """Generated columns and weights of pseudo-data, None of data."""
    if truth is None:
        return None
    known = _in_phase_space(truth)
    if not known.any():
        return None
    own = truth[known]
    z = _compressed(_observables(own.tops, own.w_lepton, config.observables))
    return z, np.asarray(events.weight, float)[known]


def _closure(
    config: OmniFoldConfig,
    sample: _Sample,
    nominal: Unfolded,
    replicas: FloatArray,
    events: DileptonEvents,
    truth: Truth | None,
) -> dict[str, Any]:
    """Unfolded against true spectra of the selected events of pseudo-data, with χ² from the covariance."""
    assert truth is not None
    inside = sample.simulated.selected & sample.simulated.generated
    base = sample.simulated.weight[inside]
    known = _in_phase_space(truth)
    names = tuple(config.spectra)
    values = _observables(sample.truth.tops[inside], sample.truth.w_lepton[inside], names)
    true = _observables(truth.tops[known], truth.w_lepton[known], names)
    found = {}
    for name in names:
        edges = [np.array(config.spectra[name])]
        unfolded = spectrum(
            [values[name]], edges, base * nominal.ratio[inside], base[:, None] * replicas[inside]
        )
        start = spectrum([values[name]], edges, base)
        wanted = spectrum([true[name]], edges, np.asarray(events.weight, float)[known])
        chi2 = None
        filled = wanted.value > 0
        if unfolded.covariance is not None and replicas.shape[1] > filled.sum() + 1:
            difference = (unfolded.value - wanted.value)[filled]
            chi2 = float(
                difference @ np.linalg.pinv(unfolded.covariance[np.ix_(filled, filled)]) @ difference
            )
        found[name] = {
            "before": triangular_discriminator(start.value, wanted.value),
            "after": triangular_discriminator(unfolded.value, wanted.value),
            "chi2": chi2,
            "bins": int(filled.sum()),
        }
    return found


# ---- keeping and writing ---------------------------------------------------------------------------------


def _check_settings(parts: Path, config: OmniFoldConfig, method: Method, *, restart: bool) -> None:
    """Raise if the folder holds parts of another result, or discard them."""
    content = json.loads(config.model_dump_json(exclude={"output", "spectra", "pairs", "replicas"}))
    for name in ("data", "simulation", "generated", "background"):
        content[name] = [f"{path.name} {content_of(path)[:12]}" for path in getattr(config, name)]
    content["method"] = method.fingerprint
    path = parts / "settings.json"
    if restart:
        for old in parts.glob("*.npz"):
            old.unlink()
        path.unlink(missing_ok=True)
    # Settings alone are no result.
    if path.is_file() and any(parts.glob("*.npz")):
        changes = differences(json.loads(path.read_text(encoding="utf-8")), content)
        if changes:
            described = "; ".join(
                f"{key}: {there} there, {here} here" for key, (there, here) in changes.items()
            )
            raise TopRecoError(
                f"{parts.parent}: holds a result that differs in {described}; choose another output folder, "
                "or --restart to start afresh"
            )
    write_text(path, to_json(content))


def _kept(path: Path, make: Callable[[], Unfolded]) -> Unfolded:
    """A result from its file, or made now and kept there."""
    if path.is_file():
        with np.load(path) as content:
            steps = tuple(
                Iteration(*(None if math.isnan(x) else x for x in row))  # type: ignore[arg-type]
                for row in content["iterations"].tolist()
            )
            return Unfolded(content["ratio"], steps, str(content["stopped"]))
    made = make()
    rows = [[math.nan if x is None else x for x in step] for step in made.iterations]
    with complete_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, ratio=made.ratio, iterations=np.array(rows), stopped=np.array(made.stopped))
    return made


def _write_weights(
    folder: Path, key: Mapping[str, IntArray], ratio: FloatArray, weight: FloatArray, replicas: FloatArray
) -> None:
    """Weights of generated events, as Parquet and as a ROOT tree ``Friends``."""
    import uproot

    columns: dict[str, Any] = {name: pa.array(values) for name, values in key.items()}
    columns |= {"ratio": pa.array(ratio), "weight": pa.array(weight)}
    branches: dict[str, Any] = {**key, "ratio": ratio, "weight": weight}
    if replicas.shape[1]:
        flat = np.ascontiguousarray(replicas, np.float32)
        columns["weight_replica"] = pa.FixedSizeListArray.from_arrays(
            pa.array(flat.reshape(-1)), flat.shape[1]
        )
        branches["weight_replica"] = flat
    with complete_file(folder / "weights.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary, compression="zstd", write_page_checksum=True)
    with complete_file(folder / "weights.root") as temporary, uproot.recreate(temporary) as file:
        file.mktree(
            "Friends", {k: (v.dtype, v.shape[1:]) if v.ndim > 1 else v.dtype for k, v in branches.items()}
        )
        file["Friends"].extend(branches)


def read_weights(path: str | Path) -> dict[str, Any]:
    """Columns of ``weights.parquet``, by name.

    They are the key, ``row`` among the generated events, ``ratio``, ``weight``, and ``weight_replica`` of
    shape (n, R). With values of observables of the same events `topreco.measurement.omnifold.spectrum`
    gives spectra in any bins.
    """
    table = pq.read_table(path).combine_chunks()
    found: dict[str, Any] = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(column.type):
            size = column.type.list_size
            found[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
        else:
            found[name] = column.to_numpy(zero_copy_only=False)
    return found


# ---- tables ----------------------------------------------------------------------------------------------


_HEADINGS = {
    "change": "change",
    "detector_distance": "detector Δ×10³",
    "detector_chi2": "χ²/bin",
    "truth_distance": "truth Δ×10³",
    "truth_chi2": "χ²/bin",
}


_LEGEND = (
    "change: χ² per bin between two iterations. Δ: triangular discriminator, of data and expectation at "
    "detector level, and of unfolded and true spectra of selected pseudo-data; the worst of the columns."
)


def _cells(step: Iteration) -> list[str]:
    return ["–" if value is None else f"{value:.3g}" for value in step]


def iteration_table(result: OmniFoldResult) -> Table:
    """Table of the iterations for the terminal."""
    rows = [[str(number + 1), *_cells(step)] for number, step in enumerate(result.iterations)]
    return terminal_table(f"OmniFold, stopped by {result.stopped}", ["iteration", *_HEADINGS.values()], rows)


def _markdown(result: OmniFoldResult, about: Mapping[str, Any]) -> str:
    """Iterations, closure and spectra as Markdown."""
    lines = ["# OmniFold", "", f"Unfolded to: {result.level}. Stopped by: {result.stopped}.", ""]
    lines += ["| iteration | " + " | ".join(_HEADINGS.values()) + " |", "|---:" * 6 + "|"]
    lines += [f"| {i + 1} | {' | '.join(_cells(step))} |" for i, step in enumerate(result.iterations)]
    lines += ["", _LEGEND]
    if about["closure"]:
        lines += [
            "",
            "| selected pseudo-data | Δ×10³ before | after | χ² | bins |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, row in about["closure"].items():
            chi2 = "–" if row["chi2"] is None else f"{row['chi2']:.1f}"
            lines.append(f"| {name} | {row['before']:.3g} | {row['after']:.3g} | {chi2} | {row['bins']} |")
    for name, each in result.spectra.items():
        if len(each.edges) > 1:
            continue
        errors = None if each.covariance is None else np.sqrt(np.diagonal(np.atleast_2d(each.covariance)))
        lines += ["", f"| {name} | events | error |", "|---|---:|---:|"]
        edges = ["−∞", *(f"{edge:g}" for edge in each.edges[0]), "∞"]
        for i, value in enumerate(each.value):
            error = "–" if errors is None else f"{errors[i]:.4g}"
            lines.append(f"| {edges[i]} to {edges[i + 1]} | {value:.5g} | {error} |")
    return "\n".join(lines) + "\n"
