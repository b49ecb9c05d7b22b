"""Replace part of what was measured by the truth, to see what limits the reconstruction.

    python scripts/perfect_inputs.py SKIM --replace pairing,met -o perfect.parquet

A network trained and tested on such skims shows how good it would be if the detector, or the assignment of
jets, were perfect. Nothing of it can be used on data. Parts, separated by commas:

none      nothing; the events are those of the other parts
pairing   b candidates: the jets within ΔR < 0.4 of the b quarks of t and t̄, none where there is no such jet
jets      the two b quarks of t and t̄ in place of all jets, as b candidates
leptons   the charged leptons of the W bosons
met       the sum of the two neutrinos of the W bosons

Events with a τ are left out, since their further neutrinos are not in the truth of a skim.
"""

import argparse
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, Truth
from topreco.core.skim import Skim, SkimWriter

PARTS = ("none", "pairing", "jets", "leptons", "met")
MATCHING_RADIUS = 0.4


def perfected(events: DileptonEvents, truth: Truth, parts: Collection[str]) -> DileptonEvents:
    """Events with some parts of the measurement replaced by the truth."""
    if "pairing" in parts:
        events = replace(events, b_candidates=_matched_jets(events, truth))
    if "jets" in parts:
        order = np.argsort(-fourvector.pt(truth.b), axis=1)
        jets, mask = np.zeros_like(events.jets), np.zeros_like(events.jet_mask)
        jets[:, :2], mask[:, :2] = np.take_along_axis(truth.b, order[..., None], axis=1), True
        tagged = mask.copy()
        # Position of the quark of t and of t̄ among the two in falling pT.
        candidates = np.argsort(order, axis=1)
        events = replace(
            events,
            jets=jets,
            jet_mask=mask,
            jet_btag=tagged.astype(float),
            jet_tagged=tagged,
            b_candidates=candidates,
        )
    if "leptons" in parts:
        events = replace(events, lepton_plus=truth.lepton[:, 0], lepton_minus=truth.lepton[:, 1])
    if "met" in parts:
        events = replace(events, met=truth.neutrino.sum(axis=1)[:, 1:3])
    return events


def _matched_jets(events: DileptonEvents, truth: Truth) -> np.ndarray:
    """Index of the jet nearest to the b quark of t and of t̄, −1 without one or with one for both."""
    # A padded slot has no direction.
    jets = np.where(events.jet_mask[..., None], events.jets, np.array([1.0, 1.0, 0.0, 0.0]))
    distance = fourvector.delta_r(truth.b[:, :, None], jets[:, None])
    distance = np.where(events.jet_mask[:, None], distance, np.inf)
    nearest = distance.argmin(axis=2)
    found = distance.min(axis=2) < MATCHING_RADIUS
    good = found.all(axis=1) & (nearest[:, 0] != nearest[:, 1])
    return np.where(good[:, None], nearest, -1)


def run(skim: Skim, output: Path, parts: Collection[str]) -> int:
    """Write the skim with perfect parts; the number of its events."""
    if not skim.has_truth:
        raise TopRecoError(f"{skim.path}: no truth in this skim")
    n = 0
    with SkimWriter(output) as writer:
        writer.metadata |= skim.metadata | {"perfect": sorted(parts)}
        for events, truth in skim.row_groups():
            if truth is None:  # never, as checked above
                continue
            known = ~truth.via_tau.any(axis=1)
            for values in (truth.b, truth.lepton, truth.neutrino):
                known &= np.isfinite(values).all(axis=(1, 2))
            writer.write(perfected(events[known], truth[known], parts), truth[known])
            n += int(known.sum())
    return n


def main() -> None:
    """Entry point; bad input is one line on the standard error and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("skim", type=Path)
    parser.add_argument("--replace", required=True, help="parts, separated by commas")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    parts = args.replace.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--replace: unknown part {unknown[0]!r}; allowed are {', '.join(PARTS)}")
    try:
        n = run(Skim(args.skim), args.output, parts)
    except (TopRecoError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)
    print(f"{args.output}: {n} events with perfect {args.replace}")


if __name__ == "__main__":
    main()
