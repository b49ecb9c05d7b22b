"""From generated events to NanoAOD's branches."""

from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from topreco.core.constants import M_ELECTRON, M_MUON, PDG_TAU
from topreco.simulation import detector, jets
from topreco.simulation.detector import ELECTRON, MUON, Floats, Particles
from topreco.simulation.genparticles import Record, read_record
from topreco.simulation.jets import Jets
from topreco.simulation.pythia import PythiaEvents

_NEUTRINOS = (12, 14, 16)
# Charged particles that live long enough to reach the detector.
_POSITIVE = (-11, -13, 211, 321, 2212, 3222, -3112, -3312, -3334)
_NEGATIVE = tuple(-code for code in _POSITIVE)
_BEAM_ETA = 20_000.0  # what CMS stores for particles along the beam
_TIGHT_CUT_BASED = 4
_FAILING_CUT_BASED = 1
_TIGHT_JET_ID = 6

Integers = NDArray[np.int64]


def nanoaod(events: PythiaEvents, rng: np.random.Generator) -> dict[str, Any]:
    """Simulate the detector and lay out the result as NanoAOD.

    Parameters
    ----------
    events
        Generated events.
    rng
        Source of randomness of the detector.

    Returns
    -------
    branches
        Arrays over events, jagged collections as records; without `run`, `luminosityBlock` and `event`.
    """
    n_events = len(events)
    record = read_record(events)
    event = np.repeat(np.arange(n_events), np.diff(events.offsets))
    particles = _visible(events, event)
    objects, _ = detector.energy_flow(particles, rng)
    # After the combination with the calorimeter, which measures electrons of high momentum far better.
    leptons = objects[detector.select_leptons(objects, rng)]
    leptons = leptons[np.lexsort((-leptons.pt, leptons.event))]
    isolation = detector.isolation(leptons, objects, _offsets(objects.event, n_events))

    ghosts = np.flatnonzero((record.heavy_flavour > 0) & (events.p4[:, 1:3] != 0).any(axis=-1))
    heavy = (event[ghosts], events.p4[ghosts], record.heavy_flavour[ghosts])
    gen_jets = jets.cluster(particles.event, particles.p4, *heavy, n_events, jets.GEN_PT_MIN)
    gen_jets = jets.corrected(gen_jets, gen_jets.correction, jets.GEN_PT_MIN)
    raw_jets = jets.cluster(objects.event, objects.p4, *heavy, n_events, jets.RAW_PT_MIN)
    reco_jets = jets.corrected(raw_jets, jets.energy_correction(raw_jets.pt, raw_jets.eta), jets.PT_MIN)

    jet_index = _lepton_jets(leptons, objects, reco_jets, len(particles), n_events)
    generated = particles.source[leptons.source]
    gen_index = np.where(np.isin(record.origin[generated], (1, PDG_TAU)), record.gen_part[generated], -1)
    lepton_columns = {
        "pt": leptons.pt,
        "eta": leptons.eta,
        "phi": leptons.phi,
        "charge": leptons.charge,
        "pdgId": events.pdg_id[generated],
        "jetIdx": jet_index.astype(np.int32),
        "genPartIdx": gen_index.astype(np.int32),
        "genPartFlav": record.origin[generated],
    }
    n_leptons = len(leptons)
    electron = {
        "mass": np.full(n_leptons, M_ELECTRON),
        "pfRelIso03_all": isolation,
        "cutBased": np.where(
            isolation < detector.TIGHT_ELECTRON_ISOLATION, _TIGHT_CUT_BASED, _FAILING_CUT_BASED
        ).astype(np.int32),
    }
    muon = {
        "mass": np.full(n_leptons, M_MUON),
        "pfRelIso04_all": isolation,
        "tightId": np.ones(n_leptons, np.bool_),
    }
    is_electron, is_muon = leptons.kind == ELECTRON, leptons.kind == MUON
    return {
        "genWeight": events.weight.astype(np.float32),
        # Copies, because pyarrow takes contiguous arrays only.
        "Generator_id1": events.parton_id[:, 0].copy(),
        "Generator_id2": events.parton_id[:, 1].copy(),
        "Generator_x1": events.parton_x[:, 0].astype(np.float32),
        "Generator_x2": events.parton_x[:, 1].astype(np.float32),
        "PV_npvs": np.ones(n_events, np.int32),
        "PV_npvsGood": np.ones(n_events, np.int32),
        **_missing_momentum(events, event, objects, reco_jets),
        "Electron": _collection(leptons.event, lepton_columns | electron, n_events, is_electron),
        "Muon": _collection(leptons.event, lepton_columns | muon, n_events, is_muon),
        "Jet": _jets(reco_jets, gen_jets, n_events, rng),
        "GenJet": _collection(
            gen_jets.event,
            _kinematics(gen_jets) | {"hadronFlavour": gen_jets.flavour.astype(np.uint8)},
            n_events,
        ),
        "GenPart": _gen_part(events, event, record),
    }


def _visible(events: PythiaEvents, event: Integers) -> Particles:
    """Stable particles that the calorimeters can see, with |η| < 5 and not along the beam."""
    transverse = np.hypot(events.p4[:, 1], events.p4[:, 2])
    inside = np.abs(events.p4[:, 3]) < transverse * np.sinh(detector.CALORIMETER_ETA)
    stable = events.status > 0
    visible = np.flatnonzero(stable & inside & ~np.isin(np.abs(events.pdg_id), _NEUTRINOS))
    code = events.pdg_id[visible]
    charge = np.isin(code, _POSITIVE).astype(np.int32) - np.isin(code, _NEGATIVE).astype(np.int32)
    return Particles(event=event[visible], p4=events.p4[visible], kind=code, charge=charge, source=visible)


def _offsets(event: Integers, n_events: int) -> Integers:
    """Ranges that the events own in a flat table ordered by event."""
    return np.concatenate([[0], np.cumsum(np.bincount(event, minlength=n_events))])


def _collection(
    event: Integers, columns: dict[str, Any], n_events: int, keep: NDArray[np.bool_] | None = None
) -> ak.Array:
    """Jagged records of a flat table ordered by event; reals in single precision, as in NanoAOD."""
    if keep is not None:
        event, columns = event[keep], {name: column[keep] for name, column in columns.items()}
    stored = {
        name: column.astype(np.float32) if column.dtype == np.float64 else column
        for name, column in columns.items()
    }
    return ak.unflatten(ak.zip(stored), np.bincount(event, minlength=n_events))


def _kinematics(table: Jets) -> dict[str, Any]:
    return {"pt": table.pt, "eta": table.eta, "phi": table.phi, "mass": table.mass}


def _lepton_jets(
    leptons: Particles, objects: Particles, reco_jets: Jets, n_particles: int, n_events: int
) -> Integers:
    """Position, within its event, of the jet that holds each lepton; −1 without."""
    jet_of_particle = np.full(n_particles, -1, np.int64)
    is_track = objects.source >= 0
    jet_of_particle[objects.source[is_track]] = reco_jets.owner[is_track]
    jet = jet_of_particle[leptons.source]
    return np.where(jet >= 0, jet - _offsets(reco_jets.event, n_events)[leptons.event], -1)


def _jets(reco_jets: Jets, gen_jets: Jets, n_events: int, rng: np.random.Generator) -> ak.Array:
    """`Jet`: jets contain the leptons, as in NanoAOD."""
    gen_index = jets.nearest(
        reco_jets.event,
        reco_jets.eta,
        reco_jets.phi,
        _offsets(gen_jets.event, n_events),
        gen_jets.eta,
        gen_jets.phi,
        jets.RADIUS,
    )
    flavour, eta = reco_jets.flavour, reco_jets.eta
    normal = rng.standard_normal(len(eta))
    columns = {
        "btagDeepFlavB": detector.btag_score(flavour, reco_jets.pt, eta, normal),
        # A stream of its own, so that a seed gives the events that it gave before this score was there.
        "btagDeepB": detector.deepcsv_score(flavour, eta, normal, rng.spawn(1)[0]),
        "rawFactor": 1 - 1 / reco_jets.correction,
        "jetId": np.full(len(gen_index), _TIGHT_JET_ID, np.int32),
        "hadronFlavour": reco_jets.flavour,
        "genJetIdx": gen_index,
        "nConstituents": np.minimum(reco_jets.n_constituents, 255).astype(np.uint8),
    }
    return _collection(reco_jets.event, _kinematics(reco_jets) | columns, n_events)


def _missing_momentum(
    events: PythiaEvents, event: Integers, objects: Particles, reco_jets: Jets
) -> dict[str, Any]:
    """Missing transverse momenta: raw, corrected, generated.

    The corrected one carries the energy correction of the jets above 15 GeV, leptons in them excepted
    ("type 1"). Its resolution follows from that of all objects: 16 GeV RMS and 13.5 GeV in the core, for
    each component.
    """
    n_events = len(events)

    def total(index: Integers, values: Floats, size: int) -> Floats:
        return np.stack([np.bincount(index, values[:, i], size) for i in (1, 2)], axis=-1)

    raw = -total(objects.event, objects.p4, n_events)
    raw_sum = np.bincount(objects.event, objects.pt, n_events)

    inside = np.isin(objects.kind, (ELECTRON, MUON)) & (reco_jets.owner >= 0)
    n_jets = len(reco_jets.event)
    without_leptons = reco_jets.p4 / reco_jets.correction[:, None]
    without_leptons[:, 1:3] -= total(reco_jets.owner[inside], objects.p4[inside], n_jets)
    shift = without_leptons * (reco_jets.correction - 1)[:, None]
    met = raw - total(reco_jets.event, shift, n_events)
    shift_pt = np.hypot(without_leptons[:, 1], without_leptons[:, 2]) * (reco_jets.correction - 1)
    met_sum = raw_sum + np.bincount(reco_jets.event, shift_pt, n_events)

    neutrino = (events.status > 0) & np.isin(np.abs(events.pdg_id), _NEUTRINOS)
    generated = total(event[neutrino], events.p4[neutrino], n_events)
    branches = {}
    for name, momentum, scalar_sum in (
        ("MET", met, met_sum),
        ("PuppiMET", met, met_sum),
        ("RawMET", raw, raw_sum),
        ("GenMET", generated, None),
    ):
        branches[f"{name}_pt"] = np.hypot(*momentum.T).astype(np.float32)
        branches[f"{name}_phi"] = np.arctan2(momentum[:, 1], momentum[:, 0]).astype(np.float32)
        if scalar_sum is not None:
            branches[f"{name}_sumEt"] = scalar_sum.astype(np.float32)
    return branches


def _gen_part(events: PythiaEvents, event: Integers, record: Record) -> ak.Array:
    """`GenPart`: see `topreco.simulation.genparticles`."""
    kept = record.kept
    p4 = events.p4[kept]
    pt = np.hypot(p4[:, 1], p4[:, 2])
    moving = pt > 0
    eta = np.where(moving, np.arcsinh(p4[:, 3] / np.where(moving, pt, 1.0)), np.sign(p4[:, 3]) * _BEAM_ETA)
    columns = {
        "pt": pt,
        "eta": eta,
        "phi": np.arctan2(p4[:, 2], p4[:, 1]),
        "mass": events.mass[kept],
        "pdgId": events.pdg_id[kept],
        "status": record.status[kept],
        "statusFlags": record.flags[kept],
        "genPartIdxMother": record.gen_part_mother[kept],
    }
    return _collection(event[kept], columns, len(events))
