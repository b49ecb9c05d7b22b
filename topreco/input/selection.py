"""The dileptonic selection: `NanoEvents` to `DileptonEvents`.

Reads reconstructed objects and `genWeight`, nothing else of the generator. Every threshold is exclusive
(identifications and numbers of objects are inclusive), and each event is judged by itself, so that results do
not depend on how a file is cut into chunks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from topreco import fourvector
from topreco.config import SelectionConfig
from topreco.constants import M_ELECTRON, M_MUON, PDG_ELECTRON, PDG_MUON
from topreco.events import CHANNELS, BoolArray, DileptonEvents, FloatArray, IntArray, dataset_id
from topreco.input.cutflow import Cutflow
from topreco.input.nano import (
    EVENT_KEY,
    has_branch,
    read_branch,
    read_counts,
    read_finite,
    require_finite,
)
from topreco.pairing import b_candidates

OPTIONAL_BRANCHES = ("Electron_deltaEtaSC", "Jet_jetId", "genWeight")
"""Branches that are used where they exist."""

_MOMENTUM = ("pt", "eta", "phi")


@dataclass(frozen=True)
class Selection:
    """Events that pass.

    Attributes
    ----------
    events
        The selected events, n of them.
    index
        Their positions in the chunk, rising, shape (n,).
    cutflow
        Counts after each cut. A cut that the configuration disables has no step.
    """

    events: DileptonEvents
    index: IntArray
    cutflow: Cutflow


def needed_branches(config: SelectionConfig) -> tuple[str, ...]:
    """Branches without which the selection cannot run; see also `OPTIONAL_BRANCHES`."""
    return (
        *EVENT_KEY,
        *(f"Electron_{field}" for field in (*_MOMENTUM, "charge", config.electron.id)),
        *(f"Muon_{field}" for field in (*_MOMENTUM, "charge", config.muon.id, config.muon.isolation)),
        *(f"Jet_{field}" for field in (*_MOMENTUM, "mass", config.jet.btag)),
        f"{config.met}_pt",
        f"{config.met}_phi",
    )


def select(events: Any, config: SelectionConfig, *, dataset: str) -> Selection:
    """Select dileptonic events.

    Parameters
    ----------
    events
        `NanoEvents` of a chunk; only the needed branches are read.
    config
        Cuts.
    dataset
        Name of the dataset, which enters the key of each event.

    Returns
    -------
    selection
        Events, their positions in the chunk, and the cutflow.

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing, cannot be read, or holds a momentum that is not finite.
    """
    n = len(events)
    weight = read_finite(events, "genWeight") if has_branch(events, "genWeight") else np.ones(n)
    cutflow = Cutflow()
    cutflow.add_step("all", weight)

    leptons = _select_leptons(events, config)
    n_leptons = np.bincount(leptons.event, minlength=n)
    index = np.flatnonzero(n_leptons == 2)
    first = (np.cumsum(n_leptons) - n_leptons)[index]
    # Columns: ℓ⁺, ℓ⁻; at equal charges meaningless, but those events are about to fail.
    pair = first[:, None] + np.argsort(-leptons.charge[first[:, None] + [0, 1]], axis=1, kind="stable")
    p4, flavour = leptons.p4[pair], leptons.flavour[pair]
    channel = (flavour == PDG_MUON).sum(axis=1)
    same_flavour = flavour[:, 0] == flavour[:, 1]
    passed = np.ones(len(index), dtype=bool)

    def cut(name: str, mask: BoolArray) -> None:
        passed[:] &= mask
        cutflow.add_step(name, weight[index[passed]], channel[passed])

    cut("two leptons", passed)
    cut("opposite charge", leptons.charge[pair].sum(axis=1) == 0)
    if set(config.channels) != set(CHANNELS):
        cut("channel", np.isin(channel, [CHANNELS.index(name) for name in config.channels]))
    if config.leading_pt_min > 0:
        cut("leading pT", fourvector.pt(p4).max(axis=1, initial=0.0) > config.leading_pt_min)
    m_ll = fourvector.mass(p4.sum(axis=1))
    if config.m_ll_min > 0:
        cut("m_ll", m_ll > config.m_ll_min)
    if config.z_window > 0:
        cut("Z window", ~same_flavour | (np.abs(m_ll - config.z_mass) > config.z_window))
    met_pt, met_phi = (read_finite(events, f"{config.met}_{field}", key="met") for field in ("pt", "phi"))
    if config.met_min > 0:
        cut("MET", ~same_flavour | (met_pt[index] > config.met_min))

    # Jets only of the events that are left.
    index, p4, flavour, channel = index[passed], p4[passed], flavour[passed], channel[passed]
    passed = np.ones(len(index), dtype=bool)
    jets = _select_jets(events, config, index, p4)
    if config.jet.min_jets > 0:
        cut(_at_least(config.jet.min_jets, "jet"), jets.n_jets >= config.jet.min_jets)
    if config.jet.min_btags > 0:
        cut(_at_least(config.jet.min_btags, "b tag"), jets.n_tagged >= config.jet.min_btags)

    index, p4 = index[passed], p4[passed]
    run, luminosity_block, event = (read_branch(events, name)[index] for name in EVENT_KEY)
    selected = DileptonEvents(
        lepton_plus=p4[:, 0],
        lepton_minus=p4[:, 1],
        lepton_flavour=flavour[passed],
        jets=jets.p4[passed],
        jet_mask=jets.mask[passed],
        jet_btag=jets.btag[passed],
        jet_tagged=jets.tagged[passed],
        b_candidates=b_candidates(
            p4[:, 0],
            p4[:, 1],
            jets.p4[passed],
            jets.mask[passed],
            jets.tagged[passed],
            m_lb_max=config.m_lb_max,
        ),
        met=np.stack([met_pt * np.cos(met_phi), met_pt * np.sin(met_phi)], axis=-1)[index],
        dataset=np.full(len(index), dataset_id(dataset), dtype=np.uint64),
        run=run.astype(np.uint32),
        luminosity_block=luminosity_block.astype(np.uint32),
        event=event.astype(np.uint64),
        weight=weight[index],
    )
    return Selection(selected, index, cutflow)


@dataclass(frozen=True)
class _Leptons:
    """Selected leptons of all events, sorted by event; shape (leptons, ...)."""

    event: IntArray
    p4: FloatArray
    charge: IntArray
    flavour: IntArray


@dataclass(frozen=True)
class _Jets:
    """Selected jets in falling pT, padded, shape (n, max_jets, ...), and their numbers before truncation."""

    p4: FloatArray
    mask: BoolArray
    btag: FloatArray
    tagged: BoolArray
    n_jets: IntArray
    n_tagged: IntArray


def _select_leptons(events: Any, config: SelectionConfig) -> _Leptons:
    electron, muon = config.electron, config.muon
    pt, eta, phi = (read_finite(events, f"Electron_{field}") for field in _MOMENTUM)
    keep = (pt > electron.pt_min) & (np.abs(eta) < electron.eta_max)
    keep &= read_branch(events, f"Electron_{electron.id}", key="electron.id") >= electron.id_min
    if electron.gap is not None and has_branch(events, "Electron_deltaEtaSC"):
        eta_sc = np.abs(eta + read_finite(events, "Electron_deltaEtaSC"))
        keep &= ~((eta_sc > electron.gap[0]) & (eta_sc < electron.gap[1]))
    # NanoAOD's masses of leptons are rounding noise.
    parts = [_lepton_columns(events, "Electron", (pt, eta, phi), keep, M_ELECTRON, PDG_ELECTRON)]

    pt, eta, phi = (read_finite(events, f"Muon_{field}") for field in _MOMENTUM)
    keep = (pt > muon.pt_min) & (np.abs(eta) < muon.eta_max)
    keep &= read_branch(events, f"Muon_{muon.id}", key="muon.id").astype(bool)
    isolation = read_branch(events, f"Muon_{muon.isolation}", key="muon.isolation")
    keep &= isolation.astype(np.float64) < muon.isolation_max
    parts.append(_lepton_columns(events, "Muon", (pt, eta, phi), keep, M_MUON, PDG_MUON))

    event, p4, charge, flavour = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(event, kind="stable")
    return _Leptons(event[order], p4[order], charge[order], flavour[order])


def _lepton_columns(
    events: Any,
    collection: str,
    momentum: tuple[FloatArray, FloatArray, FloatArray],
    keep: BoolArray,
    mass: float,
    flavour: int,
) -> tuple[Any, ...]:
    pt, eta, phi = (values[keep] for values in momentum)
    return (
        _event_of_each(events, collection)[keep],
        fourvector.from_pt_eta_phi_mass(pt, eta, phi, np.full(len(pt), mass)),
        read_branch(events, f"{collection}_charge")[keep].astype(np.int64),
        np.full(len(pt), flavour),
    )


def _event_of_each(events: Any, collection: str) -> IntArray:
    """Position of the event of each object, shape (objects,)."""
    counts = read_counts(events, f"{collection}_pt")
    return np.repeat(np.arange(len(counts)), counts)


def _select_jets(events: Any, config: SelectionConfig, index: IntArray, leptons: FloatArray) -> _Jets:
    """Jets of the events at `index` (n,), given their leptons' four-momenta (n, 2, 4)."""
    cuts = config.jet
    pt, eta, phi, mass = (read_finite(events, f"Jet_{field}") for field in (*_MOMENTUM, "mass"))
    row_of_event = np.full(len(events), -1)
    row_of_event[index] = np.arange(len(index))
    row = row_of_event[_event_of_each(events, "Jet")]
    keep = (row >= 0) & (pt > cuts.pt_min) & (np.abs(eta) < cuts.eta_max)
    if cuts.id_bit is not None and has_branch(events, "Jet_jetId"):
        keep &= (read_branch(events, "Jet_jetId").astype(np.int64) >> cuts.id_bit) & 1 == 1
    kept = np.flatnonzero(keep)
    p4 = fourvector.from_pt_eta_phi_mass(pt[kept], eta[kept], phi[kept], mass[kept])
    distance = fourvector.delta_r(p4[:, None], leptons[row[kept]]).min(axis=1, initial=np.inf)
    clean = distance > cuts.lepton_distance
    kept, p4 = kept[clean], p4[clean]

    btag = read_branch(events, f"Jet_{cuts.btag}", key="jet.btag")[kept].astype(np.float64)
    require_finite(events, f"Jet_{cuts.btag}", btag)
    # Corrections to the jets may have changed their order; at equal pT the file's order decides.
    order = np.lexsort((-pt[kept], row[kept]))
    row, p4, btag = row[kept][order], p4[order], btag[order]
    tagged = btag > cuts.btag_threshold
    n = len(index)
    n_jets = np.bincount(row, minlength=n)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(n_jets) - n_jets, n_jets)
    stored = rank < cuts.max_jets
    place = row[stored], rank[stored]

    def padded(values: Any) -> Any:
        array = np.zeros((n, cuts.max_jets, *values.shape[1:]), dtype=values.dtype)
        array[place] = values[stored]
        return array

    return _Jets(
        p4=padded(p4),
        mask=padded(np.ones(len(row), dtype=bool)),
        btag=padded(btag),
        tagged=padded(tagged),
        n_jets=n_jets,
        n_tagged=np.bincount(row[tagged], minlength=n),
    )


def _at_least(n: int, what: str) -> str:
    return f"at least {n} {what}{'s' if n > 1 else ''}"
