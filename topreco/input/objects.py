"""Reconstructed leptons, jets and MET as NanoAOD stores them.

`read_objects` reads them, `topreco.input.selection.select_objects` applies the cuts. A systematic variation
is a changed copy of the objects, made between the two.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from topreco.config import ElectronSelection, JetSelection, MuonSelection, SelectionConfig
from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON, M_MUON
from topreco.core.events import BoolArray, FloatArray, IntArray
from topreco.input.branches import Branches
from topreco.input.jet_id import COLUMNS, identify_jets
from topreco.input.nano import EVENT_KEY, InputError
from topreco.input.required import EE_LEAK_BRANCHES

_PU_ID_BITS = ("tight", "medium", "loose")
_MOMENTUM = ("pt", "eta", "phi")
NO_B_TAG = "selected jets without b-tag score (below zero or NaN), which counts as 0"
"""Their note in the cutflow."""
MAP_PT_MIN, MAP_ETA_MAX = 15.0, 5.19
"""Range in pT in GeV and in |η| of jets that a veto map judges."""
HEM_ETA_MAX = 3.2
"""Largest |η| at which objects count for the veto of HEM15 and HEM16."""
DROPPED = "objects dropped that are NaN or infinite and that no cut could select"
"""Their note in the cutflow."""
_SAFE_SHARE_OF_PT = 0.5
"""Share of a threshold in pT that no variation makes up for."""
_N_JUDGED = 10
"""Jets from which on scores that are all below zero are no accident."""


@dataclass(frozen=True)
class Particles:
    """Objects of one kind of all events, flat.

    Attributes
    ----------
    counts
        Number of them in each event, shape (n,).
    pt, eta, phi, mass
        Momentum in GeV and radians, shape (objects,).
    identified
        True if an object passes the cuts that do not depend on its momentum, shape (objects,).
    dropped
        True if an object is not finite and cannot pass the cuts: not identified and with zeros for its
        momentum, it only keeps its place, shape (objects,).
    """

    counts: IntArray
    pt: FloatArray
    eta: FloatArray
    phi: FloatArray
    mass: FloatArray
    identified: BoolArray
    dropped: BoolArray

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
        b-tag score, 0 where there is none, shape (objects,).
    has_btag
        True if there is a b-tag score, shape (objects,).
    pu_identified
        True if a jet passes the pile-up identification, which is required only at low pT, shape (objects,).
    em_fraction
        Charged and neutral electromagnetic energy fraction, 0 where nothing needs it, shape (objects,).
    """

    btag: FloatArray
    has_btag: BoolArray
    pu_identified: BoolArray
    em_fraction: FloatArray


@dataclass(frozen=True)
class Objects:
    """Reconstructed objects of a chunk of n events, with everything else that the selection needs.

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
    met_filters
        True if an event passes all MET filters of the selection, shape (n,).
    triggers
        True if any path fired, by primary dataset, shape (n,) each.
    branches
        Branches that they were read from.
    """

    electrons: Leptons
    muons: Leptons
    jets: Jets
    met: FloatArray
    run: IntArray
    luminosity_block: IntArray
    event: IntArray
    weight: FloatArray
    met_filters: BoolArray
    triggers: Mapping[str, BoolArray]
    branches: Branches

    def __len__(self) -> int:
        return len(self.weight)


def number_in_event(counts: IntArray) -> IntArray:
    """Position of each object among those of its event, from their number in each (n,), shape (objects,)."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def pad_in_falling_pt(event: IntArray, pt: FloatArray, n: int, length: int) -> Callable[[Any], Any]:
    """Arrange objects as one row per event in falling pT; at equal pT the given order decides.

    Parameters
    ----------
    event
        Position of the event of each object, in [0, n), shape (objects,).
    pt
        Transverse momentum, shape (objects,).
    n
        Number of events.
    length
        Objects kept per event, the leading ones.

    Returns
    -------
    padded
        Function from values (objects, ...) to (n, length, ...), zero where there is no object.
    """
    order = np.lexsort((-pt, event))
    rank = number_in_event(np.bincount(event, minlength=n))
    order, rank = order[rank < length], rank[rank < length]
    place = event[order], rank

    def padded(values: Any) -> Any:
        array = np.zeros((n, length, *values.shape[1:]), dtype=values.dtype)
        array[place] = values[order]
        return array

    return padded


def b_tag_scores(score: FloatArray, tagger: str, judged: Any = slice(None)) -> tuple[FloatArray, BoolArray]:
    """b-tag scores, and where there is one: NaN and numbers below zero stand for none.

    Parameters
    ----------
    score
        As stored, shape (jets,).
    tagger
        File and branch, for the error.
    judged
        Mask of the jets among which at least one must have a score, all by default.

    Returns
    -------
    score
        0 where there is none, shape (jets,).
    has_score
        Shape (jets,).

    Raises
    ------
    InputError
        If one is infinite, or none of at least ten judged jets has one.
    """
    has_score = score >= 0
    n_judged = len(score[judged])
    if n_judged >= _N_JUDGED and not has_score[judged].any():
        raise InputError(
            f"{tagger}: no b-tag score in any of {n_judged} jets, all are below zero or NaN; choose a tagger "
            "that the jets have (selection.jet.btag)"
        )
    if infinite := int(np.isposinf(score[judged]).sum()):
        raise InputError(f"{tagger}: infinite in {infinite} of {n_judged} jets, finite b-tag scores expected")
    return np.where(has_score, score, 0.0), has_score


def read_objects(events: Any, selection: SelectionConfig | None = None) -> Objects:
    """Read the objects of a chunk; only the needed branches are read.

    Parameters
    ----------
    events
        `NanoEvents` or `Branches` of a chunk.
    selection
        Names of branches and identification; what is not set follows the preset.

    Returns
    -------
    objects
        All objects of all events.

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing, cannot be read, or contains a momentum that is not finite and that matters.
    topreco.config.ConfigError
        If the preset cannot be resolved.
    """
    branches = Branches.of(events, selection)
    config = branches.selection
    electrons, muons, jets = _read_electrons(branches), _read_muons(branches), _read_jets(branches)
    met_pt, met_phi = (
        branches.finite(f"{config.met}_{field}", key="met", per_event=True) for field in ("pt", "phi")
    )
    run, luminosity_block, event = (branches.read(name, per_event=True) for name in EVENT_KEY)
    return Objects(
        electrons=electrons,
        muons=muons,
        jets=jets,
        met=np.stack([met_pt * np.cos(met_phi), met_pt * np.sin(met_phi)], axis=-1),
        run=run.astype(np.uint32),
        luminosity_block=luminosity_block.astype(np.uint32),
        event=event.astype(np.uint64),
        weight=(
            branches.finite("genWeight", per_event=True) if branches.is_simulation else np.ones(len(branches))
        ),
        met_filters=np.logical_and.reduce(_flags(branches, config.cuts.met_filters, "cuts.met_filters")),
        triggers={
            name: np.logical_or.reduce(
                _flags(branches, [path for path in paths if branches.has(path)], "cuts.triggers")
            )
            for name, paths in config.cuts.triggers.items()
        },
        branches=branches,
    )


def _flags(branches: Branches, names: Collection[str], key: str) -> BoolArray:
    """Flags of the events, shape (names, n)."""
    flags = [branches.read(name, key=key, per_event=True).astype(bool) for name in names]
    return np.array(flags, dtype=bool).reshape(len(flags), len(branches))


def _read_electrons(branches: Branches) -> Leptons:
    cuts = branches.selection.electron
    fields = list(_MOMENTUM)
    if cuts.gap is not None:
        stored = branches.has("Electron_superclusterEta")
        fields.append("superclusterEta" if stored else "deltaEtaSC")

    def identify(columns: Mapping[str, FloatArray]) -> BoolArray:
        eta = columns["eta"]
        identified = branches.read(f"Electron_{cuts.id}", key="electron.id") >= cuts.id_min
        if cuts.gap is not None:
            eta_sc = np.abs(columns["superclusterEta"] if stored else eta + columns["deltaEtaSC"])
            identified &= ~((eta_sc > cuts.gap[0]) & (eta_sc < cuts.gap[1]))
        if branches.selection.cuts.ee_leak_veto:
            x, y = (branches.read(name) for name in EE_LEAK_BRANCHES)
            identified &= ~((eta > 1.556) & (x < 45) & (y > 72))
        return identified

    columns, identified, dropped = _read_finite(branches, "Electron", fields, identify, cuts)
    return Leptons(
        counts=branches.counts("Electron_pt"),
        **{name: columns[name] for name in _MOMENTUM},
        # NanoAOD's masses of leptons are rounding noise.
        mass=np.full(len(dropped), M_ELECTRON),
        identified=identified,
        dropped=dropped,
        charge=branches.read("Electron_charge").astype(np.int64),
    )


def supercluster_eta(branches: Branches, eta: FloatArray) -> FloatArray | None:
    """η of the superclusters of electrons of the given η, shape (objects,); None if it is not in the file."""
    if branches.has("Electron_superclusterEta"):
        return branches.finite("Electron_superclusterEta")
    if branches.has("Electron_deltaEtaSC"):
        return eta + branches.finite("Electron_deltaEtaSC")
    return None


def _read_muons(branches: Branches) -> Leptons:
    cuts = branches.selection.muon
    isolation = branches.read(f"Muon_{cuts.isolation}", key="muon.isolation").astype(np.float64)
    identified = branches.read(f"Muon_{cuts.id}", key="muon.id").astype(bool)
    identified &= isolation < cuts.isolation_max
    columns, identified, dropped = _read_finite(branches, "Muon", _MOMENTUM, lambda _: identified, cuts)
    return Leptons(
        counts=branches.counts("Muon_pt"),
        **columns,
        mass=np.full(len(dropped), M_MUON),
        identified=identified,
        dropped=dropped,
        charge=branches.read("Muon_charge").astype(np.int64),
    )


def _read_jets(branches: Branches) -> Jets:
    cuts = branches.selection.jet
    em_fields = () if branches.selection.cuts.jet_veto_map is None else ("chEmEF", "neEmEF")
    columns, identified, dropped = _read_finite(
        branches,
        "Jet",
        (*_MOMENTUM, "mass", *em_fields),
        lambda columns: _identified_jets(branches, columns["eta"]),
        cuts,
    )
    pt, eta = columns["pt"], columns["eta"]
    btag, has_btag = b_tag_scores(
        branches.read(f"Jet_{cuts.btag}", key="jet.btag").astype(np.float64),
        f"{branches.origin}: branch 'Jet_{cuts.btag}'",
        (pt > cuts.pt_min) & (np.abs(eta) < cuts.eta_max),
    )
    return Jets(
        counts=branches.counts("Jet_pt"),
        **{name: columns[name] for name in (*_MOMENTUM, "mass")},
        identified=identified,
        dropped=dropped,
        btag=btag,
        has_btag=has_btag,
        pu_identified=_pu_identified_jets(branches, len(pt)),
        em_fraction=np.sum([np.zeros(len(pt)), *(columns[name] for name in em_fields)], axis=0),
    )


def _identified_jets(branches: Branches, eta: FloatArray) -> BoolArray:
    cuts = branches.selection.jet
    if cuts.id_bit is None:
        return np.ones(len(eta), dtype=bool)
    if cuts.id_recipe == "branch":
        return (branches.read("Jet_jetId").astype(np.int64) >> cuts.id_bit) & 1 == 1
    columns = {field: branches.read(f"Jet_{field}") for field in COLUMNS[cuts.id_recipe]}
    return identify_jets(cuts.id_recipe, cuts.id_bit, eta, columns)


def _pu_identified_jets(branches: Branches, n: int) -> BoolArray:
    cuts = branches.selection.jet
    if cuts.pu_id is None:
        return np.ones(n, dtype=bool)
    bit = _PU_ID_BITS.index(cuts.pu_id)
    if cuts.pu_id_reversed:
        bit = len(_PU_ID_BITS) - 1 - bit
    return (branches.read("Jet_puId").astype(np.int64) >> bit) & 1 == 1


def _read_finite(
    branches: Branches,
    collection: str,
    fields: Collection[str],
    identify: Callable[[Mapping[str, FloatArray]], BoolArray],
    cuts: ElectronSelection | MuonSelection | JetSelection,
) -> tuple[dict[str, FloatArray], BoolArray, BoolArray]:
    """Columns of a collection, finite, by field, and the masks `identified` and `dropped`; see `Particles`.

    Raises
    ------
    InputError
        If an object that some cut could select, now or after a variation of its momentum, is not finite.
    """
    columns = {field: branches.read(f"{collection}_{field}").astype(np.float64) for field in fields}
    identified = identify(columns)
    broken = ~np.all([np.isfinite(values) for values in columns.values()], axis=0)
    if not broken.any():
        return columns, identified, broken
    vetoes = branches.selection.cuts
    of_map = collection == "Jet" and vetoes.jet_veto_map is not None
    eta_max = max(cuts.eta_max, MAP_ETA_MAX if of_map else HEM_ETA_MAX if vetoes.hem_veto else 0.0)
    pt_min = min(cuts.pt_min, MAP_PT_MIN) if of_map else cuts.pt_min
    pt, eta = columns["pt"], columns["eta"]
    outside = (pt <= _SAFE_SHARE_OF_PT * pt_min) | (np.abs(eta) >= eta_max)
    dropped = broken & (outside | ~identified)
    columns = {field: np.where(dropped, 0.0, values) for field, values in columns.items()}
    for field, values in columns.items():
        branches.require_finite(f"{collection}_{field}", values)
    return columns, identified & ~dropped, dropped
