"""Reconstructed objects as NanoAOD has them: what the selection cuts on, and what corrections change.

`read_objects` reads, `topreco.input.selection.select_objects` cuts. A systematic variation is a changed copy
of what was read, between the two.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from topreco import fourvector
from topreco.config import SelectionConfig
from topreco.constants import M_ELECTRON, M_MUON
from topreco.events import BoolArray, FloatArray, IntArray
from topreco.input.nano import EVENT_KEY, has_branch, origin_of, read_branch, read_counts, read_finite

OPTIONAL_BRANCHES = ("Electron_deltaEtaSC", "Jet_jetId", "genWeight")
"""Branches that are used where they exist."""

_MOMENTUM = ("pt", "eta", "phi")


@dataclass(frozen=True)
class Particles:
    """Objects of one kind of all events, flat.

    Attributes
    ----------
    counts
        Number of them in each event, shape (n,).
    pt, eta, phi, mass
        Momentum, in GeV and radians, shape (objects,).
    identified
        Whether each passes what does not depend on its momentum, shape (objects,).
    """

    counts: IntArray
    pt: FloatArray
    eta: FloatArray
    phi: FloatArray
    mass: FloatArray
    identified: BoolArray

    @property
    def event(self) -> IntArray:
        """Position of the event of each object, shape (objects,)."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def p4(self, keep: Any) -> FloatArray:
        """Four-momenta (E, px, py, pz) in GeV of the objects at a mask or index, shape (kept, 4)."""
        return fourvector.from_pt_eta_phi_mass(self.pt[keep], self.eta[keep], self.phi[keep], self.mass[keep])


@dataclass(frozen=True)
class Leptons(Particles):
    """Electrons or muons.

    Attributes
    ----------
    charge
        In units of e, shape (objects,).
    """

    charge: IntArray


@dataclass(frozen=True)
class Jets(Particles):
    """Jets.

    Attributes
    ----------
    btag
        b-tag score, which may be undefined for jets that no selection keeps, shape (objects,).
    """

    btag: FloatArray


@dataclass(frozen=True)
class Objects:
    """Everything the selection needs of a chunk of n events.

    Attributes
    ----------
    electrons, muons, jets
        All of them, in the file's order.
    met
        Missing transverse momentum (px, py) in GeV, shape (n, 2).
    run, luminosity_block, event
        As in NanoAOD, shape (n,).
    weight
        Signed generator weight, 1 in data, shape (n,).
    origin
        File of the events, for errors.
    """

    electrons: Leptons
    muons: Leptons
    jets: Jets
    met: FloatArray
    run: IntArray
    luminosity_block: IntArray
    event: IntArray
    weight: FloatArray
    origin: str

    def __len__(self) -> int:
        return len(self.weight)


def needed_branches(config: SelectionConfig) -> tuple[str, ...]:
    """Branches without which `read_objects` cannot work; see also `OPTIONAL_BRANCHES`."""
    return (
        *EVENT_KEY,
        *(f"Electron_{field}" for field in (*_MOMENTUM, "charge", config.electron.id)),
        *(f"Muon_{field}" for field in (*_MOMENTUM, "charge", config.muon.id, config.muon.isolation)),
        *(f"Jet_{field}" for field in (*_MOMENTUM, "mass", config.jet.btag)),
        f"{config.met}_pt",
        f"{config.met}_phi",
    )


def read_objects(events: Any, config: SelectionConfig) -> Objects:
    """Read the objects of a chunk; only the needed branches are touched.

    Parameters
    ----------
    events
        `NanoEvents` of a chunk.
    config
        Names of branches and identification.

    Returns
    -------
    objects
        All objects of all events.

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing, cannot be read, or holds a momentum that is not finite.
    """
    n = len(events)
    electrons, muons = _read_electrons(events, config), _read_muons(events, config)
    jets = _read_jets(events, config)
    met_pt, met_phi = (read_finite(events, f"{config.met}_{field}", key="met") for field in ("pt", "phi"))
    run, luminosity_block, event = (read_branch(events, name) for name in EVENT_KEY)
    return Objects(
        electrons=electrons,
        muons=muons,
        jets=jets,
        met=np.stack([met_pt * np.cos(met_phi), met_pt * np.sin(met_phi)], axis=-1),
        run=run.astype(np.uint32),
        luminosity_block=luminosity_block.astype(np.uint32),
        event=event.astype(np.uint64),
        weight=read_finite(events, "genWeight") if has_branch(events, "genWeight") else np.ones(n),
        origin=origin_of(events),
    )


def _read_electrons(events: Any, config: SelectionConfig) -> Leptons:
    cuts = config.electron
    pt, eta, phi = _read_momentum(events, "Electron")
    identified = read_branch(events, f"Electron_{cuts.id}", key="electron.id") >= cuts.id_min
    if cuts.gap is not None and has_branch(events, "Electron_deltaEtaSC"):
        eta_sc = np.abs(eta + read_finite(events, "Electron_deltaEtaSC"))
        identified &= ~((eta_sc > cuts.gap[0]) & (eta_sc < cuts.gap[1]))
    return Leptons(
        counts=read_counts(events, "Electron_pt"),
        pt=pt,
        eta=eta,
        phi=phi,
        # NanoAOD's masses of leptons are rounding noise.
        mass=np.full(len(pt), M_ELECTRON),
        identified=identified,
        charge=read_branch(events, "Electron_charge").astype(np.int64),
    )


def _read_muons(events: Any, config: SelectionConfig) -> Leptons:
    cuts = config.muon
    pt, eta, phi = _read_momentum(events, "Muon")
    isolation = read_branch(events, f"Muon_{cuts.isolation}", key="muon.isolation").astype(np.float64)
    return Leptons(
        counts=read_counts(events, "Muon_pt"),
        pt=pt,
        eta=eta,
        phi=phi,
        mass=np.full(len(pt), M_MUON),
        identified=read_branch(events, f"Muon_{cuts.id}", key="muon.id").astype(bool)
        & (isolation < cuts.isolation_max),
        charge=read_branch(events, "Muon_charge").astype(np.int64),
    )


def _read_jets(events: Any, config: SelectionConfig) -> Jets:
    cuts = config.jet
    pt, eta, phi = _read_momentum(events, "Jet")
    identified = np.ones(len(pt), dtype=bool)
    if cuts.id_bit is not None and has_branch(events, "Jet_jetId"):
        identified &= (read_branch(events, "Jet_jetId").astype(np.int64) >> cuts.id_bit) & 1 == 1
    return Jets(
        counts=read_counts(events, "Jet_pt"),
        pt=pt,
        eta=eta,
        phi=phi,
        mass=read_finite(events, "Jet_mass"),
        identified=identified,
        btag=read_branch(events, f"Jet_{cuts.btag}", key="jet.btag").astype(np.float64),
    )


def _read_momentum(events: Any, collection: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """pT, η and φ of a collection, finite, in GeV and radians, each of shape (objects,)."""
    pt, eta, phi = (read_finite(events, f"{collection}_{field}") for field in _MOMENTUM)
    return pt, eta, phi
