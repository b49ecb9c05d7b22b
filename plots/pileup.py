"""Pile-up of the own simulation against CMS full simulation: MET, additional jets, response of jets.

    topreco simulate pileup=run2 n_events=2000 --nanoaod-version v9 -o results/pileup.root
    python plots/pileup.py results/pileup.root nanoaodv9_TTTo2L2Nu.root

Both are NanoAODv9 files of dileptonic tt̄ without a preselection. Writes ``pileup.png`` and ``pileup.csv`` to
``results``, the numbers of docs/SAMPLES.md. Errors by bootstrap of events.
"""

import argparse
import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot
from matplotlib.figure import Figure
from numpy.typing import NDArray

from topreco.evaluation.style import COLOURS, figure_style

Floats = NDArray[np.float64]
Value = tuple[float, float]

_BRANCHES = "/(|Raw)(|Puppi)MET_(pt|phi|sumEt)|GenMET_.*|fixedGridRhoFastjetAll|PV_npvsGood|Pileup_nPU"
_OBJECTS = "/(Jet_(pt|eta|phi)|GenJet_(pt|eta|phi)|GenPart_(pt|eta|phi|pdgId|status|statusFlags))"
_LEPTONS = "/(Muon|Electron)_(pt|genPartFlav|pfRelIso0[34]_all)"
_DENSITY = "fixedGridRhoFastjetAll"
_METS = ("RawMET", "MET", "RawPuppiMET", "PuppiMET")
_REGIONS = ((0.0, 2.5), (2.5, 3.0), (3.0, 5.0))
_RESPONSE_REGIONS = ((0.0, 1.5), (1.5, 2.5))
_PT_EDGES = (20.0, 30.0, 50.0, 80.0, 120.0, 500.0)
_REPLICAS = 50


def half_width(values: Floats) -> float:
    """Half of the central 68 %."""
    low, high = np.quantile(values, [0.1587, 0.8413])
    return float((high - low) / 2)


def with_error(metric: Callable[[Floats], float], values: Any) -> Value:
    """A number and its bootstrap error; rows are what is drawn."""
    rows = np.asarray(values, np.float64)
    rng = np.random.default_rng(1)
    drawn = [metric(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(_REPLICAS)]
    return float(metric(rows)), float(np.std(drawn))


def distances(first: ak.Array, second: ak.Array) -> ak.Array:
    """ΔR of each object to all of another collection in its event."""
    a, b = ak.unzip(ak.cartesian([first, second], nested=True))
    dphi = (a.phi - b.phi + np.pi) % (2 * np.pi) - np.pi
    return np.sqrt((a.eta - b.eta) ** 2 + dphi**2)


def collection(events: ak.Array, name: str) -> ak.Array:
    """Records of a NanoAOD collection."""
    prefix = f"{name}_"
    return ak.zip(
        {field.removeprefix(prefix): events[field] for field in events.fields if field.startswith(prefix)}
    )


def residuals(events: ak.Array, name: str) -> Floats:
    """Components of reconstructed − generated MET in GeV, shape (events, 2)."""
    return np.stack(
        [
            np.asarray(
                events[f"{name}_pt"] * f(events[f"{name}_phi"]) - events.GenMET_pt * f(events.GenMET_phi)
            )
            for f in (np.cos, np.sin)
        ],
        axis=-1,
    )


def numbers(path: Path) -> dict[str, Value]:
    """All numbers of a file, with errors."""
    events = uproot.open(path)["Events"].arrays(filter_name=[_BRANCHES + "/", _OBJECTS + "/", _LEPTONS + "/"])
    found: dict[str, Value] = {}
    for name in _METS:
        # The mean differs from zero in CMS, whose detector is not symmetric about the beam.
        difference = residuals(events, name)
        difference = difference - difference.mean(axis=0)
        found[f"{name}, RMS [GeV]"] = with_error(lambda x: float(np.sqrt((x**2).mean())), difference)
        found[f"{name}, 68 % [GeV]"] = with_error(lambda x: half_width(x.ravel()), difference)
        found[f"{name}, scalar sum [GeV]"] = with_error(np.mean, events[f"{name}_sumEt"])
    for label, branch in (
        ("collisions", "Pileup_nPU"),
        ("vertices", "PV_npvsGood"),
        ("density [GeV]", _DENSITY),
    ):
        found[label] = with_error(np.mean, events[branch])
    found["density, standard deviation [GeV]"] = with_error(np.std, events[_DENSITY])

    jets, generated = collection(events, "Jet"), collection(events, "GenJet")
    alone = ak.fill_none(ak.min(distances(jets, generated), axis=2), np.inf) >= 0.4
    for low, high in _REGIONS:
        inside = (abs(jets.eta) >= low) & (abs(jets.eta) < high) & alone
        for label, pt in (("15 to 30", (15.0, 30.0)), ("above 30", (30.0, np.inf))):
            count = ak.sum(inside & (jets.pt > pt[0]) & (jets.pt < pt[1]), axis=1)
            found[f"jets without partner, {label} GeV, {low:g} < |η| < {high:g}"] = with_error(np.mean, count)

    parts = collection(events, "GenPart")
    prompt = (parts.status == 1) & (parts.statusFlags & 1 == 1) & (parts.pt > 5)
    leptons = parts[prompt & ((abs(parts.pdgId) == 11) | (abs(parts.pdgId) == 13))]
    hadronic = ak.fill_none(ak.min(distances(generated, leptons), axis=2), np.inf) > 0.4
    distance = distances(generated, jets)
    matched = (ak.fill_none(ak.min(distance, axis=2), np.inf) < 0.2) & hadronic
    partner = ak.pad_none(jets.pt, 1)[ak.fill_none(ak.argmin(distance, axis=2), 0)]
    response = partner / generated.pt
    for low, high in _RESPONSE_REGIONS:
        inside = matched & (abs(generated.eta) >= low) & (abs(generated.eta) < high)
        for pt_low, pt_high in pairwise(_PT_EDGES):
            chosen = inside & (generated.pt >= pt_low) & (generated.pt < pt_high)
            values = ak.to_numpy(ak.flatten(response[chosen])).astype(np.float64)
            where = f"{pt_low:g} to {pt_high:g} GeV, {low:g} < |η| < {high:g}"
            found[f"response of jets, {where}"] = with_error(lambda x: float(np.median(x)), values)
            found[f"resolution of jets, {where}"] = with_error(
                lambda x: half_width(x) / float(np.median(x)), values
            )
    for name, branch in (("Muon", "pfRelIso04_all"), ("Electron", "pfRelIso03_all")):
        table = collection(events, name)
        isolated = ak.flatten(table[branch][(table.genPartFlav == 1) & (table.pt > 20)]) < 0.15
        found[f"{name} with isolation below 0.15"] = with_error(np.mean, isolated)
    return found


def draw(simulated: dict[str, Value], cms: dict[str, Value]) -> Figure:
    """Numbers of the simulation divided by those of CMS."""
    names = [name for name in simulated if name in cms and cms[name][0] > 0]
    with figure_style():
        figure = Figure(figsize=(7.0, 0.17 * len(names) + 0.8))
        axes = figure.subplots()
        for row, name in enumerate(reversed(names)):
            (value, error), (reference, uncertainty) = simulated[name], cms[name]
            ratio = value / reference
            relative = np.hypot(error / max(value, 1e-9), uncertainty / reference)
            axes.errorbar(ratio, row, xerr=ratio * relative, fmt="o", ms=3, color=COLOURS[0])
        axes.axvline(1.0, color="0.6", lw=0.8)
        axes.set_yticks(range(len(names)), labels=list(reversed(names)), fontsize=6)
        axes.set_xlabel("own simulation / CMS full simulation")
        figure.tight_layout()
    return figure


def main() -> None:
    """Compare two files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("simulated", type=Path, help="file of topreco simulate")
    parser.add_argument("cms", type=Path, help="NanoAODv9 file of CMS simulation")
    parser.add_argument("-o", "--output", type=Path, default=Path("results"), help="folder")
    given = parser.parse_args()
    simulated, cms = numbers(given.simulated), numbers(given.cms)
    given.output.mkdir(parents=True, exist_ok=True)
    with (given.output / "pileup.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["quantity", "simulated", "error", "cms", "error", "pull"])
        for name, (value, error) in simulated.items():
            reference, uncertainty = cms[name]
            pull = (value - reference) / max(float(np.hypot(error, uncertainty)), 1e-9)
            writer.writerow(
                [name, *(f"{x:.4g}" for x in (value, error, reference, uncertainty)), f"{pull:.1f}"]
            )
    draw(simulated, cms).savefig(given.output / "pileup.png", dpi=150)


if __name__ == "__main__":
    main()
