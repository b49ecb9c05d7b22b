"""The hard process of Pythia's event record as NanoAOD's `GenPart` table.

Kept are the incoming partons, every particle of the hard process (Pythia status 21 to 29: tops, W bosons,
their daughters, extra partons), the last copy of each, and the direct decay products of prompt τ leptons. A
mother is the nearest kept ancestor. The flags follow CMSSW's `MCTruthHelper`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from topreco.core.compiled import njit
from topreco.core.constants import (
    FLAG_FROM_HARD_PROCESS,
    FLAG_FROM_HARD_PROCESS_BEFORE_FSR,
    FLAG_IS_DIRECT_PROMPT_TAU_DECAY_PRODUCT,
    FLAG_IS_DIRECT_TAU_DECAY_PRODUCT,
    FLAG_IS_FIRST_COPY,
    FLAG_IS_HARD_PROCESS,
    FLAG_IS_LAST_COPY,
    FLAG_IS_LAST_COPY_BEFORE_FSR,
    FLAG_IS_PROMPT,
    FLAG_IS_PROMPT_TAU_DECAY_PRODUCT,
    FLAG_IS_TAU_DECAY_PRODUCT,
    PDG_GLUON,
    PDG_TAU,
)
from topreco.simulation.pythia import PythiaEvents

_IS_DECAYED_LEPTON_HADRON = 1
_IS_DIRECT_HADRON_DECAY_PRODUCT = 6
_IS_HARD_PROCESS_TAU_DECAY_PRODUCT = 9
_IS_DIRECT_HARD_PROCESS_TAU_DECAY_PRODUCT = 10
_PDG_PHOTON = 22
# The first entries of an event: the system and the two beams.
_LAST_BEAM = 2


@dataclass(frozen=True)
class Record:
    """Provenance of each particle, arrays of shape (particles,).

    Attributes
    ----------
    kept
        Belongs in `GenPart`.
    gen_part
        Position of the particle, or of its nearest kept ancestor, in the event's `GenPart`; −1 without.
    gen_part_mother
        Position of the nearest kept ancestor, the particle itself excluded; −1 without.
    flags
        CMS status flags.
    status
        HepMC status as CMS stores it: 1 stable, 2 decayed hadron, μ or τ, else the absolute Pythia status.
    heavy_flavour
        5 (4) for hadrons with a b (c) quark none of whose daughters has one, else 0.
    origin
        NanoAOD's `genPartFlav` code: 1 prompt, 15 from a prompt τ, 5, 4, 3 from b, c, light hadrons.
    """

    kept: NDArray[np.bool_]
    gen_part: NDArray[np.int32]
    gen_part_mother: NDArray[np.int32]
    flags: NDArray[np.int32]
    status: NDArray[np.int32]
    heavy_flavour: NDArray[np.int8]
    origin: NDArray[np.uint8]


def read_record(events: PythiaEvents) -> Record:
    """Walk through the event records.

    Parameters
    ----------
    events
        Event records.

    Returns
    -------
    record
        Provenance of every particle.
    """
    return Record(
        *_walk(
            events.offsets,
            events.pdg_id,
            events.status,
            events.mother,
            events.daughter1,
            events.daughter2,
        )
    )


@njit()
def _is_hadron(pdg_id):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    code = abs(pdg_id)
    # A vanishing tens digit means a diquark; seven digits starting with 1 to 8 are new physics.
    return code > 100 and (code // 10) % 10 != 0 and (code < 1_000_000 or 9_000_000 <= code < 10_000_000)


@njit()
def _heaviest_quark(pdg_id):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    code = abs(pdg_id) % 10_000
    return code // 1000 if code >= 1000 else (code // 100) % 10


@njit()
def _walk(offsets, pdg_id, status, mother, daughter1, daughter2):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Visit every particle once; Pythia lists mothers before daughters except in initial-state radiation."""
    n = len(pdg_id)
    kept = np.zeros(n, np.bool_)
    gen_part = np.full(n, -1, np.int32)
    gen_part_mother = np.full(n, -1, np.int32)
    flags = np.zeros(n, np.int32)
    hepmc = np.zeros(n, np.int32)
    heavy_flavour = np.zeros(n, np.int8)
    origin = np.zeros(n, np.uint8)

    hard_status = np.zeros(n, np.int32)  # of the particle's copy in the hard process
    last_copy = np.zeros(n, np.bool_)
    radiated = np.zeros(n, np.bool_)  # an earlier copy has radiated
    radiating = np.zeros(n, np.bool_)
    from_hadron = np.zeros(n, np.bool_)
    from_tau = np.zeros(n, np.bool_)
    from_prompt_tau = np.zeros(n, np.bool_)
    from_hard_tau = np.zeros(n, np.bool_)
    ancestor_flavour = np.zeros(n, np.int8)  # heaviest quark of the hadrons among the ancestors

    for event in range(len(offsets) - 1):
        start, stop = offsets[event], offsets[event + 1]
        n_kept = 0
        for i in range(start + _LAST_BEAM + 1, stop):
            code = pdg_id[i]
            absolute = abs(status[i])
            m = start + mother[i]
            if mother[i] <= _LAST_BEAM or m >= i:
                m = -1
            hadron = _is_hadron(code)
            quark = _heaviest_quark(code) if hadron else 0

            same_daughter = False
            radiates = False
            quark_survives = False
            daughter_status = 0
            first, last = daughter1[i], daughter2[i]
            if first > 0:
                step = 1
                if last == 0:
                    last = first
                elif last < first:  # two daughters apart from each other
                    step = last - first
                for d in range(start + first, start + last + (1 if step > 0 else -1), step):
                    if d <= i:
                        continue
                    same_daughter |= pdg_id[d] == code and absolute != 21
                    radiates |= pdg_id[d] == PDG_GLUON or pdg_id[d] == _PDG_PHOTON
                    if quark >= 4 and _is_hadron(pdg_id[d]):
                        quark_survives |= _heaviest_quark(pdg_id[d]) == quark
                    daughter_status = abs(status[d])
            last_copy[i] = not same_daughter
            radiating[i] = radiates

            if status[i] > 0:
                hepmc[i] = 1
            elif (
                (hadron or abs(code) == 13 or abs(code) == PDG_TAU)
                and last_copy[i]
                and 90 < daughter_status < 95
            ):
                hepmc[i] = 2
            else:
                hepmc[i] = absolute

            hard = 21 <= absolute <= 29
            copy = m >= 0 and pdg_id[m] == code and abs(status[m]) != 21
            direct_tau = False
            direct_hadron = False
            if m >= 0:
                direct_hadron = _is_hadron(pdg_id[m])
                direct_tau = abs(pdg_id[m]) == PDG_TAU and last_copy[m] and not copy
                from_hadron[i] = from_hadron[m] or direct_hadron
                from_tau[i] = from_tau[m] or direct_tau
                from_prompt_tau[i] = from_prompt_tau[m] or (
                    direct_tau and not (from_hadron[m] or from_tau[m])
                )
                from_hard_tau[i] = from_hard_tau[m] or (direct_tau and hard_status[m] > 0)
                ancestor_flavour[i] = ancestor_flavour[m]
                if direct_hadron:
                    ancestor_flavour[i] = max(ancestor_flavour[i], _heaviest_quark(pdg_id[m]))
                if copy:
                    hard_status[i] = hard_status[m]
                    radiated[i] = radiated[m] or radiating[m]
            if hard:
                hard_status[i] = absolute
            prompt = not (from_hadron[i] or from_tau[i])

            if from_prompt_tau[i] and not from_hadron[i]:
                origin[i] = PDG_TAU
            elif prompt:
                origin[i] = 1
            else:
                origin[i] = max(3, ancestor_flavour[i])
            if quark >= 4 and quark <= 5 and not quark_survives:
                heavy_flavour[i] = quark

            word = 0
            if prompt:
                word |= 1 << FLAG_IS_PROMPT
            if hepmc[i] == 2:
                word |= 1 << _IS_DECAYED_LEPTON_HADRON
            if from_tau[i]:
                word |= 1 << FLAG_IS_TAU_DECAY_PRODUCT
            if from_prompt_tau[i]:
                word |= 1 << FLAG_IS_PROMPT_TAU_DECAY_PRODUCT
            if direct_tau:
                word |= 1 << FLAG_IS_DIRECT_TAU_DECAY_PRODUCT
                if from_prompt_tau[i]:
                    word |= 1 << FLAG_IS_DIRECT_PROMPT_TAU_DECAY_PRODUCT
                if from_hard_tau[i]:
                    word |= 1 << _IS_DIRECT_HARD_PROCESS_TAU_DECAY_PRODUCT
            if direct_hadron:
                word |= 1 << _IS_DIRECT_HADRON_DECAY_PRODUCT
            if hard:
                word |= 1 << FLAG_IS_HARD_PROCESS
            if hard_status[i] > 0:
                word |= 1 << FLAG_FROM_HARD_PROCESS
            if from_hard_tau[i]:
                word |= 1 << _IS_HARD_PROCESS_TAU_DECAY_PRODUCT
            # Intermediate resonances: the last copy; all else: the copy in the hard process.
            if (hard_status[i] == 22 and last_copy[i]) or (hard and absolute != 22):
                word |= 1 << FLAG_FROM_HARD_PROCESS_BEFORE_FSR
            if not copy:
                word |= 1 << FLAG_IS_FIRST_COPY
            if last_copy[i]:
                word |= 1 << FLAG_IS_LAST_COPY
            if not radiated[i] and (last_copy[i] or (same_daughter and radiates)):
                word |= 1 << FLAG_IS_LAST_COPY_BEFORE_FSR
            flags[i] = word

            if m >= 0:
                gen_part_mother[i] = gen_part[m]
            kept[i] = hard or (hard_status[i] > 0 and last_copy[i]) or (direct_tau and from_prompt_tau[i])
            if kept[i]:
                gen_part[i] = n_kept
                n_kept += 1
            else:
                gen_part[i] = gen_part_mother[i]
    return kept, gen_part, gen_part_mother, flags, hepmc, heavy_flavour, origin
