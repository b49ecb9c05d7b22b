"""Pseudo-tops: top quarks made of the generated particles that a detector could see, and neutrinos.

The objects are those of the particle level of CMS [1]_: electrons and muons dressed with photons
(`GenDressedLepton`), jets with a b hadron (`GenJet` of hadron flavour 5) and neutrinos that do not come from
hadrons. Leptons and neutrinos are assigned to W bosons, and b jets to them, as in the measurement of [2]_ and
its Rivet analysis CMS_2018_I1703993: the two neutrinos of largest pT such that the sum of |m(ℓν) − m_W| of
both is smallest, then the b jets such that the sum of |m(Wb) − m_t| of both is smallest.

Like `topreco.input.truth`, nothing that runs at inference may import this module.

References
----------
.. [1] CMS Collaboration, Object definitions for top quark analyses at the particle level, CMS-NOTE-2017-004.
.. [2] CMS Collaboration, Measurements of tt̄ differential cross sections in proton-proton collisions at
   √s = 13 TeV using events containing two leptons, arXiv:1811.06625.
"""

import itertools
from typing import Any

import numpy as np

from topreco.config import PhaseSpaceConfig
from topreco.core import fourvector
from topreco.core.constants import (
    FLAG_IS_PROMPT,
    FLAG_IS_PROMPT_TAU_DECAY_PRODUCT,
    PDG_B,
)
from topreco.core.events import PRODUCTIONS, BoolArray, FloatArray, IntArray, Truth
from topreco.input.branches import Branches
from topreco.input.nano import InputError

PARTICLE_BRANCHES = (
    *(f"GenDressedLepton_{field}" for field in ("pt", "eta", "phi", "mass", "pdgId")),
    *(f"GenJet_{field}" for field in ("pt", "eta", "phi", "mass", "hadronFlavour")),
    *(f"GenPart_{field}" for field in ("pt", "eta", "phi", "pdgId", "status", "statusFlags")),
)
"""Branches without which there is no particle level."""

_FROM_TAU = "GenDressedLepton_hasTauAnc"
_NEUTRINOS = (12, 14, 16)
_STABLE = 1


def read_particle_level(events: Any, phase_space: PhaseSpaceConfig) -> Truth:
    """Pseudo-tops of the events in the fiducial phase space.

    There are exactly two dressed leptons, of opposite charge, two neutrinos and two b jets or more, all
    within the cuts of `phase_space.particle`; with `decay: prompt` leptons from τ do not count.

    Parameters
    ----------
    events
        `NanoEvents` or `Branches`, n of them.
    phase_space
        Cuts, and the masses that particles are assigned by.

    Returns
    -------
    particles
        The pseudo-tops as `tops` and what they are made of: `w`, jets as `b`, dressed leptons, neutrinos.
        NaN, and so not valid, outside of the phase space. The production is "other".

    Raises
    ------
    InputError
        If a branch is missing or cannot be read.
    """
    branches = Branches.of(events)
    needed = (*PARTICLE_BRANCHES, *((_FROM_TAU,) if phase_space.decay == "prompt" else ()))
    if missing := [name for name in needed if not branches.has(name)]:
        key = "unfolding.phase_space.level"
        raise InputError(f"{branches.origin}: no particle level ({key}): branch {missing[0]!r} is missing")
    cuts, n = phase_space.particle, len(branches)
    lepton, lepton_event = _collection(branches, "GenDressedLepton")
    from_tau = np.zeros(len(lepton), np.bool_)
    if branches.has(_FROM_TAU):
        from_tau = branches.read(_FROM_TAU).astype(bool)
    kept = _within(lepton, cuts.lepton_pt_min, cuts.lepton_eta_max)
    if phase_space.decay == "prompt":
        kept &= ~from_tau
    sign = -np.sign(branches.read("GenDressedLepton_pdgId").astype(np.int64))
    leptons, fits = _two_leptons(lepton_event, kept, sign, n)

    neutrinos, two_neutrinos = _two_neutrinos(branches, n)
    valid = fits & two_neutrinos
    found = {name: np.full((n, 2, 4), np.nan) for name in ("tops", "w", "b", "lepton", "neutrino")}
    via_tau = np.zeros((n, 2), np.bool_)
    index = np.flatnonzero(valid)
    p4 = lepton[leptons[index]]
    dilepton = fourvector.mass(p4.sum(axis=1))
    index, p4 = index[dilepton > cuts.m_ll_min], p4[dilepton > cuts.m_ll_min]

    nu = neutrinos[index]
    masses = np.abs(fourvector.mass(p4[:, :, None] + nu[:, None, :]) - cuts.m_w)
    swapped = masses[:, 0, 0] + masses[:, 1, 1] > masses[:, 0, 1] + masses[:, 1, 0]
    nu = np.where(swapped[:, None, None], nu[:, ::-1], nu)
    w = p4 + nu

    jets = _b_jets(branches, cuts.jet_pt_min, cuts.jet_eta_max)
    pairs, b = _two_jets(jets, index, p4, w, cuts.jet_lepton_delta_r, cuts.m_top)
    index, p4, nu, w = (of[pairs] for of in (index, p4, nu, w))
    found["lepton"][index], found["neutrino"][index], found["w"][index] = p4, nu, w
    found["b"][index], found["tops"][index] = b, w + b
    via_tau[index] = from_tau[leptons[index]]
    inside = np.zeros(n, np.bool_)
    inside[index] = True
    production = np.full(n, PRODUCTIONS.index("other"))
    return Truth(**found, via_tau=via_tau, dileptonic=inside, production=production)


def _collection(
    branches: Branches, name: str, chosen: BoolArray | slice = slice(None), *, massless: bool = False
) -> tuple[FloatArray, IntArray]:
    """Four-momenta of the chosen objects of a collection, and the event of each."""
    pt, eta, phi = (branches.finite(f"{name}_{field}")[chosen] for field in ("pt", "eta", "phi"))
    mass = np.zeros_like(pt) if massless else branches.finite(f"{name}_mass")[chosen]
    counts = branches.counts(f"{name}_pt")
    event = np.repeat(np.arange(len(counts)), counts)[chosen]
    return fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass), event


def _within(p4: FloatArray, pt_min: float, eta_max: float) -> BoolArray:
    return np.asarray((fourvector.pt(p4) > pt_min) & (np.abs(fourvector.eta(p4)) < eta_max))


def _two_leptons(event: IntArray, kept: BoolArray, sign: IntArray, n: int) -> tuple[IntArray, BoolArray]:
    """Positions of ℓ⁺ and ℓ⁻ (n, 2), and the events with exactly these two (n,)."""
    numbers = [np.bincount(event[kept & (sign == way)], minlength=n) for way in (1, -1)]
    positions = np.zeros((n, 2), np.intp)
    for leg, way in enumerate((1, -1)):
        chosen = np.flatnonzero(kept & (sign == way))
        positions[event[chosen], leg] = chosen
    return positions, (numbers[0] == 1) & (numbers[1] == 1)


def _two_neutrinos(branches: Branches, n: int) -> tuple[FloatArray, BoolArray]:
    """The two prompt neutrinos of largest pT (n, 2, 4), and the events that have two (n,)."""
    flags = branches.read("GenPart_statusFlags").astype(np.int64)
    prompt = (flags >> FLAG_IS_PROMPT & 1) | (flags >> FLAG_IS_PROMPT_TAU_DECAY_PRODUCT & 1)
    is_neutrino = np.isin(np.abs(branches.read("GenPart_pdgId").astype(np.int64)), _NEUTRINOS)
    stable = branches.read("GenPart_status").astype(np.int64) == _STABLE
    # Incoming partons along the beam have no finite momentum of this form.
    p4, event = _collection(branches, "GenPart", is_neutrino & stable & (prompt == 1), massless=True)
    order = np.lexsort((-fourvector.pt(p4), event))
    p4, event = p4[order], event[order]
    rank = np.arange(len(event)) - np.searchsorted(event, event)
    leading = np.zeros((n, 2, 4))
    leading[event[rank < 2], rank[rank < 2]] = p4[rank < 2]
    return leading, np.bincount(event, minlength=n) >= 2


def _b_jets(branches: Branches, pt_min: float, eta_max: float) -> tuple[FloatArray, IntArray]:
    """Four-momenta of the b jets within cuts, and the event of each."""
    p4, event = _collection(branches, "GenJet")
    flavour = branches.read("GenJet_hadronFlavour").astype(np.int64)
    chosen = (flavour == PDG_B) & _within(p4, pt_min, eta_max)
    return p4[chosen], event[chosen]


def _two_jets(
    jets: tuple[FloatArray, IntArray],
    index: IntArray,
    leptons: FloatArray,
    w: FloatArray,
    delta_r: float,
    m_top: float,
) -> tuple[IntArray, FloatArray]:
    """Which of the k events have two b jets apart from the leptons (m,), and the best two of each (m, 2, 4).

    Leptons and W bosons have the shape (k, 2, 4).
    """
    p4, event = jets
    where = np.full(max(int(event.max(initial=-1)), int(index.max(initial=-1))) + 2, -1)
    where[index] = np.arange(len(index))
    place = where[event]
    p4, place = p4[place >= 0], place[place >= 0]
    apart = (fourvector.delta_r(p4[:, None], leptons[place]) >= delta_r).all(axis=1)
    p4, place = p4[apart], place[apart]
    distance = np.abs(fourvector.mass(w[place] + p4[:, None]) - m_top)
    starts = np.searchsorted(place, np.arange(len(index) + 1))
    kept, chosen = [], []
    for i, (start, stop) in enumerate(itertools.pairwise(starts)):
        if stop - start < 2:
            continue
        sums = distance[start:stop, None, 0] + distance[None, start:stop, 1]
        np.fill_diagonal(sums, np.inf)
        first, second = np.unravel_index(sums.argmin(), sums.shape)
        kept.append(i)
        chosen.append(p4[[start + first, start + second]])
    return np.array(kept, np.intp), np.reshape(np.array(chosen, float), (-1, 2, 4))


def matched_to_partons(particles: Truth, partons: Truth, delta_r: float = 0.4) -> BoolArray:
    """True where both pseudo-tops are made of the lepton and the b quark of the same parton top, shape (n,).

    Dressed leptons and b jets lie within a distance ΔR of those of the partons. False outside of the phase
    space, and where the partons are unknown.

    Parameters
    ----------
    particles
        Pseudo-tops of `read_particle_level`.
    partons
        Truth of the same events.
    delta_r
        Largest distance.
    """
    with np.errstate(invalid="ignore"):
        close = [
            fourvector.delta_r(a, b) < delta_r
            for a, b in ((particles.lepton, partons.lepton), (particles.b, partons.b))
        ]
        return np.asarray((close[0] & close[1]).all(axis=1))
