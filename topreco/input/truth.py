"""Generated top quarks, from `GenPart` or from pepper.

Beside `genWeight`, `GenJet` in `topreco.input.jer` and the particle level of `topreco.input.particle`, no
other module reads generator branches. Nothing that runs at inference may import this module.
"""

from typing import Any

import numpy as np

from topreco.core import fourvector
from topreco.core.compiled import njit
from topreco.core.constants import (
    FLAG_IS_LAST_COPY,
    M_B,
    M_ELECTRON,
    M_MUON,
    PDG_B,
    PDG_ELECTRON,
    PDG_GLUON,
    PDG_MUON,
    PDG_TAU,
    PDG_TOP,
    PDG_W,
)
from topreco.core.events import PRODUCTIONS, IntArray, Truth
from topreco.input.branches import Branches
from topreco.input.nano import InputError
from topreco.input.pepper.read import is_pepper

NEEDED_BRANCHES = tuple(
    f"GenPart_{field}" for field in ("pt", "eta", "phi", "mass", "pdgId", "statusFlags", "genPartIdxMother")
)
"""Branches without which there is no truth."""

_GENERATOR = ("Generator_id1", "Generator_id2")
TRUTH_BRANCHES = (*NEEDED_BRANCHES, "GenPart_status", *_GENERATOR)
"""Branches that `read_truth` may read."""

PEPPER_COLUMNS = tuple(f"gent_lc_{field}" for field in ("pt", "eta", "phi", "mass"))
"""Columns of pepper without which there is no truth: the last copies of t and t̄, in this order."""

_ROLES = ("tops", "w", "b", "lepton", "neutrino")
_STATUS_INCOMING = 21
_PDG_PROTON = 2212
# NanoAOD stores no masses of light particles.
_MASSES = {PDG_B: M_B, PDG_ELECTRON: M_ELECTRON, PDG_MUON: M_MUON}


def has_truth(events: Any) -> bool:
    """Return True if events have the generator branches that `read_truth` needs; nothing is read."""
    return Branches.of(events).has(*_needed(events))


def _needed(events: Any) -> tuple[str, ...]:
    return PEPPER_COLUMNS if is_pepper(events) else NEEDED_BRANCHES


def read_truth(events: Any) -> Truth:
    """Generated top quarks and their decay.

    t and t̄ are the last copies, after radiation and before decay. The b quark, the charged lepton and the
    neutrino are direct daughters, before they radiate; the W boson is the last copy, the sum of its
    daughters. Radiation off the b makes the W recoil in between, so t = b + ℓ + ν holds only roughly: the
    truth is the top's own momentum. For a τ the lepton is the electron or muon of its decay, and the neutrino
    is still the one from the W.

    For events of pepper only the tops are known: `dileptonic` is False, the production "other".

    Parameters
    ----------
    events
        `NanoEvents`, events of pepper or `Branches`, usually only the selected ones. Renamed branches are
        found through `Branches` only.

    Returns
    -------
    truth
        One entry per event, NaN for missing particles; of several tops of one charge the first.

    Raises
    ------
    InputError
        If there are no generator branches or they cannot be read.
    """
    branches = Branches.of(events)
    if missing := [name for name in _needed(events) if not branches.has(name)]:
        raise InputError(f"no truth in these events: branch {missing[0]!r} is missing, as in collision data")
    if is_pepper(events):
        return _pepper_truth(branches)
    columns = {name: branches.read(name) for name in NEEDED_BRANCHES}
    offsets = _offsets(branches)
    pdg_id = columns["GenPart_pdgId"].astype(np.int64)
    found, via_tau = _find_decays(
        offsets,
        pdg_id,
        columns["GenPart_genPartIdxMother"].astype(np.int64),
        columns["GenPart_statusFlags"].astype(np.int64) >> FLAG_IS_LAST_COPY & 1 == 1,
    )
    p4 = {}
    for i, role in enumerate(_ROLES):
        present = found[:, :, i] >= 0
        at = found[:, :, i][present]
        mass = columns["GenPart_mass"][at].astype(np.float64)
        for code, value in _MASSES.items():
            mass[(mass <= 0) & (np.abs(pdg_id[at]) == code)] = value
        pt, eta, phi = (columns[f"GenPart_{field}"][at].astype(np.float64) for field in ("pt", "eta", "phi"))
        p4[role] = np.full((*present.shape, 4), np.nan)
        p4[role][present] = fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass)
    return Truth(
        **p4,
        via_tau=via_tau,
        dileptonic=(found[:, :, _ROLES.index("lepton")] >= 0).all(axis=1),
        production=_production(branches, offsets, pdg_id, columns["GenPart_genPartIdxMother"]),
    )


def _pepper_truth(branches: Branches) -> Truth:
    """The two tops, which pepper sorts by falling PDG code; NaN for events with another number."""
    n = len(branches)
    counts = branches.counts(PEPPER_COLUMNS[0])
    p4 = fourvector.from_pt_eta_phi_mass(*(branches.finite(name) for name in PEPPER_COLUMNS))
    tops, unknown = np.full((n, 2, 4), np.nan), np.full((n, 2, 4), np.nan)
    tops[counts == 2] = p4[np.repeat(counts == 2, counts)].reshape(-1, 2, 4)
    return Truth(
        tops=tops,
        w=unknown,
        b=unknown,
        lepton=unknown,
        neutrino=unknown,
        via_tau=np.zeros((n, 2), dtype=bool),
        dileptonic=np.zeros(n, dtype=bool),
        production=np.full(n, PRODUCTIONS.index("other")),
    )


def _offsets(branches: Branches) -> IntArray:
    """Position of the first particle of each event, and the end, shape (n + 1,)."""
    return np.concatenate([[0], np.cumsum(branches.counts("GenPart_pdgId"))]).astype(np.int64)


def _production(branches: Branches, offsets: IntArray, pdg_id: IntArray, mother: IntArray) -> IntArray:
    """Index into `PRODUCTIONS` from the two incoming partons, "other" for tops of a resonance, shape (n,)."""
    n = len(offsets) - 1
    if branches.has(*_GENERATOR):
        first, second = (branches.read(name).astype(np.int64) for name in _GENERATOR)
    elif branches.has("GenPart_status"):
        incoming = np.flatnonzero(branches.read("GenPart_status") == _STATUS_INCOMING)
        event = np.searchsorted(offsets, incoming, side="right") - 1
        number = np.bincount(event, minlength=n)
        start = np.cumsum(number) - number
        first, second = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        two = number >= 2
        first[two], second[two] = pdg_id[incoming[start[two]]], pdg_id[incoming[start[two] + 1]]
    else:
        first = second = np.zeros(n, dtype=np.int64)
    production = np.full(n, PRODUCTIONS.index("other"))
    production[(first == PDG_GLUON) & (second == PDG_GLUON)] = PRODUCTIONS.index("gg")
    quarks = (first == -second) & (first != 0) & (np.abs(first) < PDG_TOP)
    production[quarks] = PRODUCTIONS.index("qq")
    # Their spins are not those of QCD. The mother of other tops is a parton or a beam.
    top = np.flatnonzero((np.abs(pdg_id) == PDG_TOP) & (mother >= 0))
    event = np.searchsorted(offsets, top, side="right") - 1
    parent = np.abs(pdg_id[offsets[event] + mother[top]])
    production[event[(parent > PDG_W) & (parent != _PDG_PROTON)]] = PRODUCTIONS.index("other")
    return production


@njit()
def _child(pdg_id, mother, start, stop, parent, code):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """First daughter with a PDG code, or −1."""
    for i in range(start, stop):
        if mother[i] == parent - start and pdg_id[i] == code:
            return i
    return -1


@njit()
def _last_copy(pdg_id, mother, start, stop, particle):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    for _ in range(start, stop):  # bounded, should a damaged record have a loop
        copy = _child(pdg_id, mother, start, stop, particle, pdg_id[particle])
        if copy < 0:
            break
        particle = copy
    return particle


@njit()
def _find_decays(offsets, pdg_id, mother, last_copy):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Positions (n, 2, 5) of top, W, b, ℓ, ν of each leg among all particles, −1 if absent; via τ (n, 2)."""
    n = len(offsets) - 1
    found = np.full((n, 2, 5), -1, np.int64)
    via_tau = np.zeros((n, 2), np.bool_)
    for event in range(n):
        start, stop = offsets[event], offsets[event + 1]
        for leg in range(2):
            sign = 1 - 2 * leg
            top = -1
            for i in range(start, stop):
                if pdg_id[i] == sign * PDG_TOP and last_copy[i]:
                    top = i
                    break
            if top < 0:
                continue
            w = _child(pdg_id, mother, start, stop, top, sign * PDG_W)
            if w >= 0:
                w = _last_copy(pdg_id, mother, start, stop, w)
            lepton = neutrino = -1
            # Some generators leave the W out and attach its daughters to the top.
            parent = w if w >= 0 else top
            for code in (PDG_ELECTRON, PDG_MUON, PDG_TAU):
                charged = _child(pdg_id, mother, start, stop, parent, -sign * code)
                if charged < 0:
                    continue
                neutrino = _child(pdg_id, mother, start, stop, parent, sign * (code + 1))
                if code != PDG_TAU:
                    lepton = charged
                    break
                via_tau[event, leg] = True
                tau = _last_copy(pdg_id, mother, start, stop, charged)
                lepton = _child(pdg_id, mother, start, stop, tau, -sign * PDG_ELECTRON)
                if lepton < 0:
                    lepton = _child(pdg_id, mother, start, stop, tau, -sign * PDG_MUON)
            found[event, leg, 0] = top
            found[event, leg, 1] = w
            found[event, leg, 2] = _child(pdg_id, mother, start, stop, top, sign * PDG_B)
            found[event, leg, 3] = lepton
            found[event, leg, 4] = neutrino
    return found, via_tau
