"""Reconstructed objects as NanoAOD has them: what the selection cuts on, and what corrections change.

`read_objects` reads, `topreco.input.selection.select_objects` cuts. A systematic variation is a changed copy
of what was read, between the two.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from topreco.config import SelectionConfig
from topreco.config.presets import NO_PRESET, resolve_selection
from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON, M_MUON
from topreco.core.events import BoolArray, FloatArray, IntArray
from topreco.input.jet_id import COLUMNS, identify_jets
from topreco.input.nano import (
    EVENT_KEY,
    FileSummary,
    InputError,
    branch_names,
    has_branch,
    missing_branch,
    origin_of,
    read_branch,
    read_counts,
    read_finite,
    rename_branches,
)

OPTIONAL_BRANCHES = ("Electron_deltaEtaSC", "Electron_superclusterEta", "Jet_jetId", "genWeight")
"""Branches that are used where they exist."""

_PU_ID_BITS = ("tight", "medium", "loose")
# Seed crystal and position, https://twiki.cern.ch/twiki/bin/viewauth/CMS/PdmVRun3Analysis?rev=169#From_ECAL_and_EGM
_EE_LEAK_BRANCHES = ("Electron_seediEtaOriX", "Electron_seediPhiOriY")

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
    pu_identified
        Whether each passes the pile-up identification, which is required only at low pT, shape (objects,).
    em_fraction
        Charged and neutral electromagnetic energy fraction, 0 where nothing needs it, shape (objects,).
    """

    btag: FloatArray
    pu_identified: BoolArray
    em_fraction: FloatArray


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
    simulated
        Whether there are generator weights.
    met_filters
        Whether all the MET filters of the selection let each event pass, shape (n,).
    triggers
        Whether any path fired, by primary dataset, shape (n,) each.
    branches
        Names of the branches in the file.
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
    simulated: bool
    met_filters: BoolArray
    triggers: Mapping[str, BoolArray]
    branches: frozenset[str]
    origin: str

    def __len__(self) -> int:
        return len(self.weight)


def number_in_event(counts: IntArray) -> IntArray:
    """Position of each object among those of its event, from their number in each (n,), shape (objects,)."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def pad_in_falling_pt(event: IntArray, pt: FloatArray, n: int, length: int) -> Callable[[Any], Any]:
    """How to arrange objects as one row per event in falling pT; at equal pT the given order decides.

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
        From values (objects, ...) to (n, length, ...), zero where there is no object.
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


def needed_branches(config: SelectionConfig) -> tuple[str, ...]:
    """Branches without which `read_objects` cannot work; see also `optional_branches`."""
    return tuple(_needed(config))


def optional_branches(config: SelectionConfig) -> tuple[str, ...]:
    """Branches that `read_objects` uses where they exist: `OPTIONAL_BRANCHES` and trigger paths."""
    return (*OPTIONAL_BRANCHES, *(path for paths in config.cuts.triggers.values() for path in paths))


def _needed(config: SelectionConfig) -> dict[str, str | None]:
    """Needed branches, and the configuration key that asks for each."""
    electron, muon, jet, cuts = config.electron, config.muon, config.jet, config.cuts
    names: dict[str, str | None] = dict.fromkeys(EVENT_KEY)
    names |= dict.fromkeys(f"Electron_{field}" for field in (*_MOMENTUM, "charge"))
    names |= {f"Electron_{electron.id}": "electron.id"}
    names |= dict.fromkeys(f"Muon_{field}" for field in (*_MOMENTUM, "charge"))
    names |= {f"Muon_{muon.id}": "muon.id", f"Muon_{muon.isolation}": "muon.isolation"}
    names |= dict.fromkeys(f"Jet_{field}" for field in (*_MOMENTUM, "mass"))
    names |= {f"Jet_{jet.btag}": "jet.btag"}
    names |= dict.fromkeys((f"{config.met}_pt", f"{config.met}_phi"), "met")
    if jet.id_bit is not None:
        names |= dict.fromkeys((f"Jet_{field}" for field in COLUMNS[jet.id_recipe]), "jet.id_recipe")
    if jet.pu_id is not None:
        names |= {"Jet_puId": "jet.pu_id"}
    if cuts.ee_leak_veto:
        names |= dict.fromkeys(_EE_LEAK_BRANCHES, "cuts.ee_leak_veto")
    if cuts.jet_veto_map is not None:
        names |= dict.fromkeys(("Jet_chEmEF", "Jet_neEmEF"), "cuts.jet_veto_map")
    return names | dict.fromkeys(cuts.met_filters, "cuts.met_filters")


def fit_selection(config: SelectionConfig, branches: Collection[str], origin: str) -> SelectionConfig:
    """Selection for a file: the preset resolved, and every branch that it needs there.

    Parameters
    ----------
    config
        What the user wants.
    branches
        Names of the branches in the file.
    origin
        The file, for errors.

    Returns
    -------
    resolved
        See `topreco.config.presets.resolve_selection`.

    Raises
    ------
    InputError
        If a branch is missing.
    topreco.config.ConfigError
        If the preset cannot be resolved.
    """
    resolved = resolve_selection(config, branches)
    preset = resolved.preset if resolved.preset != NO_PRESET else None
    names = set(branches)
    for name, key in _needed(resolved).items():
        stored = resolved.branches.get(name, name)
        if stored not in names:
            asked = key if stored == name else f"branches.{name}"
            raise InputError(f"{origin}: {missing_branch(stored, names, asked, preset)}")
    paths = [path for group in resolved.cuts.triggers.values() for path in group]
    absent = [path for path in resolved.in_file(paths) if path not in names]
    if absent and (resolved.cuts.missing_trigger == "error" or len(absent) == len(paths)):
        what = missing_branch(absent[0], names, "cuts.triggers", preset)
        raise InputError(f"{origin}: {what}, as {len(absent)} of {len(paths)} paths are")
    return resolved


def fit_files(config: SelectionConfig, files: Mapping[Any, FileSummary]) -> SelectionConfig:
    """`fit_selection` for all files of a dataset, which must be of one NanoAOD version.

    Parameters
    ----------
    config
        What the user wants.
    files
        At least one file, with what it holds.

    Raises
    ------
    InputError
        If a branch is missing, or the files are of different versions.
    topreco.config.ConfigError
        If the preset cannot be resolved.
    """
    resolved = {file: fit_selection(config, files[file].branches, str(file)) for file in files}
    first, common = next(iter(resolved.items()))
    for file, other in resolved.items():
        if other.preset != common.preset:
            raise InputError(
                f"{file}: its preset is {other.preset}, that of {first} {common.preset}; a dataset must be "
                "of one NanoAOD version (selection.preset sets it)"
            )
    return common


def read_objects(events: Any, config: SelectionConfig) -> Objects:
    """Read the objects of a chunk; only the needed branches are touched.

    Parameters
    ----------
    events
        `NanoEvents` of a chunk.
    config
        Names of branches and identification; what is not set follows the preset.

    Returns
    -------
    objects
        All objects of all events.

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing, cannot be read, or holds a momentum that is not finite.
    topreco.config.ConfigError
        If the preset cannot be resolved.
    """
    n = len(events)
    branches = branch_names(events)
    config = fit_selection(config, branches, origin_of(events))
    events = rename_branches(events, config.branches)
    electrons, muons = _read_electrons(events, config), _read_muons(events, config)
    jets = _read_jets(events, config)
    met_pt, met_phi = (read_finite(events, f"{config.met}_{field}", key="met") for field in ("pt", "phi"))
    run, luminosity_block, event = (read_branch(events, name) for name in EVENT_KEY)
    simulated = has_branch(events, "genWeight")
    return Objects(
        electrons=electrons,
        muons=muons,
        jets=jets,
        met=np.stack([met_pt * np.cos(met_phi), met_pt * np.sin(met_phi)], axis=-1),
        run=run.astype(np.uint32),
        luminosity_block=luminosity_block.astype(np.uint32),
        event=event.astype(np.uint64),
        weight=read_finite(events, "genWeight") if simulated else np.ones(n),
        simulated=simulated,
        met_filters=np.logical_and.reduce(_flags(events, config.cuts.met_filters)),
        triggers={
            name: np.logical_or.reduce(_flags(events, [path for path in paths if has_branch(events, path)]))
            for name, paths in config.cuts.triggers.items()
        },
        branches=branches,
        origin=origin_of(events),
    )


def _flags(events: Any, names: Collection[str]) -> BoolArray:
    """Flags of the events, shape (names, n)."""
    flags = [read_branch(events, name).astype(bool) for name in names]
    return np.array(flags, dtype=bool).reshape(len(flags), len(events))


def _read_electrons(events: Any, config: SelectionConfig) -> Leptons:
    cuts = config.electron
    pt, eta, phi = _read_momentum(events, "Electron")
    identified = read_branch(events, f"Electron_{cuts.id}", key="electron.id") >= cuts.id_min
    eta_sc = _supercluster_eta(events, eta)
    if cuts.gap is not None and eta_sc is not None:
        identified &= ~((np.abs(eta_sc) > cuts.gap[0]) & (np.abs(eta_sc) < cuts.gap[1]))
    if config.cuts.ee_leak_veto:
        x, y = (read_branch(events, name) for name in _EE_LEAK_BRANCHES)
        identified &= ~((eta > 1.556) & (x < 45) & (y > 72))
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


def _supercluster_eta(events: Any, eta: FloatArray) -> FloatArray | None:
    """η of the electrons' superclusters, shape (objects,); None where the file does not tell."""
    if has_branch(events, "Electron_superclusterEta"):
        return read_finite(events, "Electron_superclusterEta")
    if has_branch(events, "Electron_deltaEtaSC"):
        return eta + read_finite(events, "Electron_deltaEtaSC")
    return None


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
    return Jets(
        counts=read_counts(events, "Jet_pt"),
        pt=pt,
        eta=eta,
        phi=phi,
        mass=read_finite(events, "Jet_mass"),
        identified=_identified_jets(events, config, eta),
        btag=read_branch(events, f"Jet_{cuts.btag}", key="jet.btag").astype(np.float64),
        pu_identified=_pu_identified_jets(events, config, len(pt)),
        em_fraction=np.zeros(len(pt))
        if config.cuts.jet_veto_map is None
        else read_finite(events, "Jet_chEmEF") + read_finite(events, "Jet_neEmEF"),
    )


def _identified_jets(events: Any, config: SelectionConfig, eta: FloatArray) -> BoolArray:
    cuts = config.jet
    if cuts.id_bit is None or (cuts.id_recipe == "branch" and not has_branch(events, "Jet_jetId")):
        return np.ones(len(eta), dtype=bool)
    if cuts.id_recipe == "branch":
        return (read_branch(events, "Jet_jetId").astype(np.int64) >> cuts.id_bit) & 1 == 1
    columns = {field: read_branch(events, f"Jet_{field}") for field in COLUMNS[cuts.id_recipe]}
    return identify_jets(cuts.id_recipe, cuts.id_bit, eta, columns)


def _pu_identified_jets(events: Any, config: SelectionConfig, n: int) -> BoolArray:
    cuts = config.jet
    if cuts.pu_id is None:
        return np.ones(n, dtype=bool)
    bit = _PU_ID_BITS.index(cuts.pu_id)
    if cuts.pu_id_reversed:
        bit = len(_PU_ID_BITS) - 1 - bit
    return (read_branch(events, "Jet_puId").astype(np.int64) >> bit) & 1 == 1


def _read_momentum(events: Any, collection: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """pT, η and φ of a collection, finite, in GeV and radians, each of shape (objects,)."""
    pt, eta, phi = (read_finite(events, f"{collection}_{field}") for field in _MOMENTUM)
    return pt, eta, phi
