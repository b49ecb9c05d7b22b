"""Events in which part of the measurement is replaced by the truth, to see what limits the reconstruction.

A network trained and tested on such events shows how good it would be if the detector, or the assignment
of jets, were perfect. Nothing of it can be used on data.

==============  ======================================================================================
``none``        nothing; the events are those of the other parts
``pairing``     b candidates: the jets within ΔR < 0.4 of the b quarks of t and t̄, none without such a jet
``b_energies``  the energy of these jets, whose directions remain as measured
``jets``        the two b quarks of t and t̄ in place of all jets, as b candidates
``leptons``     the charged leptons of the W bosons
``met``         the sum of the two neutrinos of the W bosons
==============  ======================================================================================

Events with a τ are left out, since their further neutrinos are not in the truth of a skim.
"""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import WORKING_POINTS, DileptonEvents, IntArray, Truth
from topreco.core.skim import Skim, SkimWriter

MATCHING_RADIUS = 0.4


def write_perfect(skim: Path, output: Path, parts: Collection[str]) -> Path:
    """Write a skim with perfect parts.

    Parameters
    ----------
    skim
        Skim with truth.
    output
        File to write.
    parts
        Names of parts, see the module.

    Returns
    -------
    output
        The same path.

    Raises
    ------
    TopRecoError
        If the skim cannot be read or has no truth.
    """
    found = Skim(skim)
    with SkimWriter(output) as writer:
        writer.metadata |= found.metadata | {"perfect": sorted(parts)}
        for events, truth in found.row_groups():
            if truth is None:
                raise TopRecoError(f"{skim}: no truth in this skim")
            known = ~truth.via_tau.any(axis=1)
            for values in (truth.b, truth.lepton, truth.neutrino):
                known &= np.isfinite(values).all(axis=(1, 2))
            writer.write(perfected(events[known], truth[known], parts), truth[known])
    return output


def perfected(events: DileptonEvents, truth: Truth, parts: Collection[str]) -> DileptonEvents:
    """Events with some parts of the measurement replaced by the truth.

    Parameters
    ----------
    events, truth
        Selected events and their truth.
    parts
        Names of parts, see the module.
    """
    matched = _matched_jets(events, truth)
    if "pairing" in parts:
        events = replace(events, b_candidates=np.where((matched < 0).any(axis=1, keepdims=True), -1, matched))
    if "b_energies" in parts:
        event, top = np.nonzero(matched >= 0)
        jet = matched[event, top]
        jets = events.jets.copy()
        jets[event, jet] *= (truth.b[event, top, 0] / jets[event, jet, 0])[:, None]
        events = replace(events, jets=jets)
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
            jet_working_points=np.where(mask, len(WORKING_POINTS), 0),
            # What was measured of a jet says nothing about a quark.
            features={n: x for n, x in (events.features or {}).items() if not n.startswith("jet:")} or None,
        )
    if "leptons" in parts:
        events = replace(events, lepton_plus=truth.lepton[:, 0], lepton_minus=truth.lepton[:, 1])
    if "met" in parts:
        events = replace(events, met=truth.neutrino.sum(axis=1)[:, 1:3])
    return events


def _matched_jets(events: DileptonEvents, truth: Truth) -> IntArray:
    """Index of the jet nearest to the b quark of t and of t̄ (n, 2), −1 without one or with one for both."""
    # A padded slot has no direction.
    jets = np.where(events.jet_mask[..., None], events.jets, np.array([1.0, 1.0, 0.0, 0.0]))
    distance = fourvector.delta_r(truth.b[:, :, None], jets[:, None])
    distance = np.where(events.jet_mask[:, None], distance, np.inf)
    nearest = distance.argmin(axis=2)
    shared = nearest[:, :1] == nearest[:, 1:]
    return np.where((distance.min(axis=2) < MATCHING_RADIUS) & ~shared, nearest, -1)
