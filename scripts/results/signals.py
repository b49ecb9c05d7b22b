r"""Signals and backgrounds of the simulation: spins at generated level, and what methods make of them.

    python scripts/results/signals.py generated -o docs/tables/signals_generated.csv
    python scripts/results/signals.py methods --method dilepton --method sonnenschein \
        --sample "QCD=tt_spin_201_tight.parquet" --sample "A600=a600_311_tight.parquet" \
        -o docs/tables/signals_methods.csv
    python scripts/results/signals.py cutflows --sample "A600=a600_311_tight.parquet" \
        -o docs/tables/signals_cutflows.csv

`generated` generates hard events and showers without multi-parton interactions and hadronisation, tries ten
pairs of decays of each, and compares slopes of the densities ½(1 + s c) of c_hel and c_han, and D, with
theory. Errors count hard events, of which the copies are no independent ones. docs/SIGNALS.md.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import topreco
from topreco.config import SimulationConfig, load_config
from topreco.core.events import QUANTILE_LEVELS, FloatArray, IntArray, TopPair
from topreco.core.files import write_csv
from topreco.core.observables import c_han, c_hel, compute_observables, m_tt, pair_values
from topreco.core.quantum import chsh, concurrence_margin, spin_density
from topreco.core.skim import read_skims
from topreco.core.spin import spin_correlation_matrix

TRIES = 10
GENERATED = {
    "threshold": ("sim/threshold_13tev.yaml", ()),
    "A 400, 5 %": ("sim/a600_13tev.yaml", ("resonance.mass=400", "resonance.width=20")),
    "A 600, 2.5 %": ("sim/a600_13tev.yaml", ()),
    "H 600, 2.5 %": ("sim/h600_13tev.yaml", ()),
}
"""Recipe and overrides of each resonance."""


def generated(n_events: int) -> list[dict[str, Any]]:
    """Rows of slopes, D, concurrence and CHSH marker of each resonance, with theory."""
    from topreco.simulation.decays import draw_copies, find_decays
    from topreco.simulation.pythia import generate, settings, start_pythia

    rows = []
    for number, (name, (recipe, overrides)) in enumerate(GENERATED.items()):
        own = [f"decays_per_event={TRIES}", "mpi=false", *overrides]
        config = load_config(SimulationConfig, recipe, own)
        lines = [*settings(config, 1000 + number), "HadronLevel:all = off"]
        events = generate(start_pythia(lines), n_events, refill=True)
        decays = find_decays(events)
        copies, accepted = draw_copies(events, decays, config, np.random.default_rng(number))
        copies = copies[accepted]
        leptons = np.einsum("nlij,nlj->nli", copies.transformation, decays.lepton[copies.hard_event])
        tops = decays.top[copies.hard_event]
        rows.append(
            {"process": name, "hard events": n_events} | _spin(tops, leptons, copies.hard_event, config)
        )
    return rows


def _spin(tops: FloatArray, leptons: FloatArray, event: IntArray, config: SimulationConfig) -> dict[str, Any]:
    """Measured values, errors and theory, whose C′ is diagonal and the same for all events."""
    theory = spin_correlation_matrix(np.array(0.5), np.array(0.5), config.process)
    kk, rr, nn = np.diag(theory)
    density = spin_density(tops, leptons, group=event)
    slopes = {"slope c_hel": (c_hel, -(kk + rr + nn) / 3), "slope c_han": (c_han, -(-kk + rr + nn) / 3)}
    row: dict[str, Any] = {"decays": len(tops), "median m_tt": round(float(np.median(m_tt(tops))), 1)}
    for name, (observable, expected) in slopes.items():
        mean, error = _grouped(3 * observable(tops, leptons), event)
        row |= _cells(name, mean, error, expected)
    for name, function, expected in (
        ("D", lambda values: -float(values[6::4].sum()) / 3, (kk + rr + nn) / 3),
        ("concurrence", concurrence_margin, 1.0),
        ("CHSH", chsh, 2 * np.sqrt(2)),
    ):
        row |= _cells(name, *density.derived(function), expected)
    return row


def _grouped(values: FloatArray, event: IntArray) -> tuple[float, float]:
    mean = values.mean()
    total = np.bincount(event, values - mean)
    return float(mean), float(np.sqrt((total**2).sum()) / len(values))


def _cells(name: str, value: float, error: float, expected: float) -> dict[str, Any]:
    return {name: round(value, 4), f"{name} error": round(error, 4), f"{name} theory": round(expected, 4)}


# ---- methods ---------------------------------------------------------------------------------------------


def methods(samples: dict[str, list[str]], names: Sequence[str], most: int) -> list[dict[str, Any]]:
    """Rows of bias, width and coverage of each method on each sample."""
    rows = []
    for sample, paths in samples.items():
        events, truth = read_skims(paths)
        assert truth is not None
        events, truth = events[:most], truth[:most]
        for name in names:
            pair = topreco.load(name, quantiles=True)(events)
            values = pair_values(pair, events.lepton_p4, ("m_tt", "c_hel", "c_han"))
            true = compute_observables(values, truth.tops, truth.tops.sum(1), truth.lepton, truth.valid)
            row: dict[str, Any] = {"sample": sample, "method": name, "events": len(events)}
            row["solved"] = round(float(np.isfinite(values["m_tt"]).mean()), 3)
            found = values["m_tt"][np.isfinite(values["m_tt"])]
            row["median m_tt"] = round(float(np.median(found)), 1) if len(found) else np.nan
            rows.append(row | _residuals(pair, values, true))
    return rows


def _residuals(pair: TopPair, values: Any, true: Any) -> dict[str, Any]:
    """Bias of m_tt and c_han with errors, and share of truths in the central 68 % intervals."""
    row: dict[str, Any] = {}
    for name in ("m_tt", "c_han"):
        known = np.isfinite(values[name]) & np.isfinite(true[name])
        n = int(known.sum())
        if n < 20:
            continue
        residual = values[name][known] - true[name][known]
        residual = residual / true[name][known] if name == "m_tt" else residual
        low, median, high = np.quantile(residual, [0.15866, 0.5, 0.84134])
        row |= {
            f"{name} mean": round(float(residual.mean()), 4),
            f"{name} mean error": round(float(residual.std() / np.sqrt(n)), 4),
            f"{name} median": round(float(median), 4),
            f"{name} width68": round(float(high - low) / 2, 4),
            f"{name} correlation": round(float(np.corrcoef(values[name][known], true[name][known])[0, 1]), 3),
        }
        if name in (pair.quantiles or {}):
            low, high = (pair.quantiles[name][known, QUANTILE_LEVELS.index(q)] for q in (0.16, 0.84))  # type: ignore[index]
            inside = (true[name][known] >= low) & (true[name][known] <= high)
            row[f"{name} in 68 %"] = round(float(inside.mean()), 3)
            row[f"{name} in 68 % error"] = round(float(inside.std() / np.sqrt(n)), 3)
    return row


def cutflows(samples: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Rows of events after each cut, from the cutflows beside the skims."""
    rows = []
    for sample, paths in samples.items():
        total: dict[str, int] = {}
        for path in paths:
            content = json.loads(Path(f"{path}.cutflow.json").read_text(encoding="utf-8"))
            for cut, counts in content.items():
                total[cut] = total.get(cut, 0) + int(counts["total"]["n"])
        rows.append({"sample": sample} | total)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Make one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", choices=["generated", "methods", "cutflows"])
    parser.add_argument(
        "--events",
        type=int,
        default=2000,
        help="hard events of each resonance, or largest number of a sample",
    )
    parser.add_argument("--method", action="append", default=[])
    parser.add_argument("--sample", action="append", default=[], help="NAME=FILE[,FILE…]")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    samples = {name: paths.split(",") for name, _, paths in (text.partition("=") for text in given.sample)}
    if given.table == "generated":
        rows = generated(given.events)
    elif given.table == "methods":
        rows = methods(samples, given.method, given.events)
    else:
        rows = cutflows(samples)
    write_csv(given.output, rows)


if __name__ == "__main__":
    main()
