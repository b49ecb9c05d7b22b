"""From generated events to NanoAOD's branches."""

from typing import Any

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON, M_MUON, PDG_ELECTRON, PDG_MUON, PDG_TAU
from topreco.simulation import detector, jets, mitigation
from topreco.simulation.detector import ELECTRON, MUON, Floats, Particles, SoftResponse
from topreco.simulation.genparticles import Record, read_record
from topreco.simulation.jets import Jets
from topreco.simulation.mitigation import Contamination
from topreco.simulation.pileup import PileUp, with_pileup
from topreco.simulation.pythia import PythiaEvents

_BEAM_ETA = 20_000.0  # what CMS stores for particles along the beam
_TIGHT_CUT_BASED = 4
_FAILING_CUT_BASED = 1
_TIGHT_JET_ID = 6
_PDG_PHOTON = 22
# Of `particleLevel` in CMSSW, which NanoAOD takes `GenDressedLepton` from.
_DRESSING_RADIUS = 0.1
_DRESSED_PT_MIN = 15.0
_DRESSED_ETA_MAX = 2.5

Integers = NDArray[np.int64]


def nanoaod(events: PythiaEvents, rng: np.random.Generator, pileup: PileUp | None = None) -> dict[str, Any]:
    """Simulate the detector and lay out the result as NanoAOD.

    Parameters
    ----------
    events
        Generated events.
    rng
        Source of randomness of the detector.
    pileup
        Additional collisions of these events; None for none.

    Returns
    -------
    branches
        Arrays over events, jagged collections as records; without `run`, `luminosityBlock` and `event`.
    """
    n_events = len(events)
    record = read_record(events)
    event = np.repeat(np.arange(n_events), np.diff(events.offsets))
    hard = detector.visible_particles(event, events.p4, events.pdg_id, events.status > 0)
    contamination = None
    particles, soft = hard, detector.CARD
    if pileup is None:
        objects, _ = detector.energy_flow(hard, rng)
        selected = detector.select_leptons(objects, rng)
    else:
        particles, vertex = with_pileup(hard, pileup)
        soft = mitigation.SOFT_RESPONSE
        objects, _ = detector.energy_flow(particles, rng, soft)
        contamination = Contamination.of(objects, vertex, pileup, rng)
        selected = detector.select_leptons(objects, rng) & contamination.of_hard_vertex
    # After the combination with the calorimeter, which measures electrons of high momentum far better.
    leptons = objects[selected]
    leptons = leptons[np.lexsort((-leptons.pt, leptons.event))]

    ghosts = np.flatnonzero((record.heavy_flavour > 0) & (events.p4[:, 1:3] != 0).any(axis=-1))
    heavy = (event[ghosts], events.p4[ghosts], record.heavy_flavour[ghosts])
    gen_jets = jets.cluster(hard.event, hard.p4, *heavy, n_events, jets.GEN_PT_MIN)
    gen_jets = jets.corrected(gen_jets, gen_jets.correction, jets.GEN_PT_MIN)
    if contamination is None:
        isolation = detector.isolation(leptons, objects, _offsets(objects.event, n_events))
        clustered = objects
        raw_jets = jets.cluster(objects.event, objects.p4, *heavy, n_events, jets.RAW_PT_MIN)
    else:
        isolation = mitigation.corrected_isolation(
            leptons, objects, contamination.distant, contamination.density
        )
        objects, raw_jets = contamination.chs_jets(objects, heavy, rng)
        clustered = objects[~contamination.removed]
    correction = jets.energy_correction(raw_jets.pt, raw_jets.eta, "all" if pileup is None else "chs")
    reco_jets = jets.corrected(raw_jets, correction, jets.PT_MIN)

    met, raw_met = _missing_momentum(objects, clustered, reco_jets, n_events)
    unclustered = _unclustered_shift(objects, clustered, reco_jets, n_events, soft)
    puppi_met, puppi_unclustered, more = met, unclustered, {}
    if contamination is not None:
        puppi, puppi_jets = contamination.puppi_jets(objects, heavy)
        puppi_met, raw_puppi_met = _missing_momentum(puppi, puppi, puppi_jets, n_events)
        noise = contamination.puppi_noise(raw_puppi_met[1], rng)
        puppi_met = puppi_met[0] + noise, puppi_met[1]
        puppi_unclustered = _unclustered_shift(puppi, puppi, puppi_jets, n_events, soft)
        more = _met_branches("RawPuppiMET", raw_puppi_met[0] + noise, raw_puppi_met[1])
    missing = (
        _met_branches("MET", *met)
        | _met_branches("PuppiMET", *puppi_met)
        | _met_branches("RawMET", *raw_met)
        | {
            f"MET_MetUnclustEnUpDelta{axis}": unclustered[:, i].astype(np.float32)
            for i, axis in enumerate("XY")
        }
        | unclustered_branches("PuppiMET", puppi_met[0], puppi_unclustered)
        | more
    )

    jet_index = _lepton_jets(leptons, clustered, reco_jets, len(particles), n_events)
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
        **_vertices(n_events, pileup, contamination),
        **missing,
        **_met_branches("GenMET", _neutrinos(events, event)),
        "Electron": _collection(leptons.event, lepton_columns | electron, n_events, is_electron),
        "Muon": _collection(leptons.event, lepton_columns | muon, n_events, is_muon),
        "Jet": _jets(reco_jets, gen_jets, n_events, rng),
        "GenJet": _collection(
            gen_jets.event,
            _kinematics(gen_jets) | {"hadronFlavour": gen_jets.flavour.astype(np.uint8)},
            n_events,
        ),
        "GenDressedLepton": _dressed_leptons(events, event, record),
        "GenPart": _gen_part(events, event, record),
    }


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


def _vertices(n_events: int, pileup: PileUp | None, contamination: Contamination | None) -> dict[str, Any]:
    """Numbers of vertices, and the density of pile-up if there is any."""
    if pileup is None or contamination is None:
        return dict.fromkeys(("PV_npvs", "PV_npvsGood"), np.ones(n_events, np.int32))
    return {
        "PV_npvs": contamination.n_vertices,
        "PV_npvsGood": contamination.n_vertices,
        "Pileup_nTrueInt": pileup.n_true.astype(np.float32),
        "Pileup_nPU": pileup.n_vertices.astype(np.int32),
        "Rho_fixedGridRhoFastjetAll": contamination.density.astype(np.float32),
    }


def _transverse(index: Integers, p4: Floats, size: int) -> Floats:
    """Sums of px and py in GeV, shape (size, 2)."""
    return np.stack([np.bincount(index, p4[:, i], size) for i in (1, 2)], axis=-1)


def _met_branches(name: str, momentum: Floats, scalar_sum: Floats | None = None) -> dict[str, Any]:
    branches = {
        f"{name}_pt": np.hypot(*momentum.T).astype(np.float32),
        f"{name}_phi": np.arctan2(momentum[:, 1], momentum[:, 0]).astype(np.float32),
    }
    return branches if scalar_sum is None else branches | {f"{name}_sumEt": scalar_sum.astype(np.float32)}


def unclustered_branches(name: str, momentum: Floats, shift: Floats) -> dict[str, Any]:
    """Missing momentum with the unclustered energy varied, as for PUPPI, and for all since NanoAODv15.

    Parameters
    ----------
    name
        Name of the missing momentum.
    momentum, shift
        Its (px, py) in GeV and their change with more energy, shape (events, 2).

    Returns
    -------
    branches
        Arrays over events.
    """
    return {
        f"{branch}Unclustered{way}": values
        for way, sign in (("Up", 1), ("Down", -1))
        for branch, values in _met_branches(name, momentum + sign * shift).items()
    }


def _neutrinos(events: PythiaEvents, event: Integers) -> Floats:
    """Sum of the neutrinos' transverse momenta."""
    neutrino = (events.status > 0) & np.isin(np.abs(events.pdg_id), detector.NEUTRINOS)
    return _transverse(event[neutrino], events.p4[neutrino], len(events))


def _missing_momentum(
    objects: Particles, clustered: Particles, reco_jets: Jets, n_events: int
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Missing transverse momentum, corrected and raw, each with the scalar sum.

    The corrected one carries the energy correction of the jets above 15 GeV, leptons in them excepted
    ("type 1"); what is subtracted from jets as pile-up is not a part of it. Its resolution follows from that
    of all objects: without pile-up 16 GeV RMS and 13.5 GeV in the core, for each component.
    """
    raw = -_transverse(objects.event, objects.p4, n_events)
    raw_sum: Floats = np.bincount(objects.event, objects.pt, n_events).astype(np.float64)

    inside = np.isin(clustered.kind, (ELECTRON, MUON)) & (reco_jets.owner >= 0)
    n_jets = len(reco_jets.event)
    correction = reco_jets.correction / reco_jets.subtraction
    without_leptons = reco_jets.p4 / correction[:, None]
    without_leptons[:, 1:3] -= _transverse(reco_jets.owner[inside], clustered.p4[inside], n_jets)
    shift = without_leptons * (correction - 1)[:, None]
    met = raw - _transverse(reco_jets.event, shift, n_events)
    shift_pt = np.hypot(without_leptons[:, 1], without_leptons[:, 2]) * (correction - 1)
    met_sum = raw_sum + np.bincount(reco_jets.event, shift_pt, n_events)
    return (met, met_sum), (raw, raw_sum)


def _unclustered_shift(
    objects: Particles, clustered: Particles, reco_jets: Jets, n_events: int, soft: SoftResponse
) -> Floats:
    """Change of the missing momentum (px, py) with the energies of all objects outside of jets and leptons.

    Each is higher by its resolution, all at once, as CMS varies the unclustered energy (arXiv:1903.06078).
    """

    def resolutions(some: Particles) -> Floats:
        some = some[~np.isin(some.kind, (ELECTRON, MUON))]
        return _transverse(some.event, some.p4 * detector.resolution(some, soft)[:, None], n_events)

    return resolutions(clustered[reco_jets.owner >= 0]) - resolutions(objects)


def _dressed_leptons(events: PythiaEvents, event: Integers, record: Record) -> ak.Array:
    """`GenDressedLepton`: electrons and muons not from hadrons, with the photons within ΔR = 0.1 of them."""
    code, stable = np.abs(events.pdg_id), events.status > 0
    prompt = np.isin(record.origin, (1, PDG_TAU)) & stable
    is_lepton, is_photon = prompt & np.isin(code, (PDG_ELECTRON, PDG_MUON)), prompt & (code == _PDG_PHOTON)
    positions = ak.unflatten(np.flatnonzero(is_lepton), np.bincount(event[is_lepton], minlength=len(events)))
    photons = ak.unflatten(np.flatnonzero(is_photon), np.bincount(event[is_photon], minlength=len(events)))
    lepton, photon = (ak.to_numpy(ak.flatten(x)) for x in ak.unzip(ak.cartesian([positions, photons])))
    distance = fourvector.delta_r(events.p4[lepton], events.p4[photon])
    # A photon belongs to the nearest lepton.
    order = np.lexsort((distance, photon))
    nearest = order[np.diff(photon[order], prepend=-1) != 0]
    inside = nearest[distance[nearest] < _DRESSING_RADIUS]
    p4 = events.p4.copy()
    np.add.at(p4, lepton[inside], events.p4[photon[inside]])
    chosen = np.flatnonzero(is_lepton)
    p4 = p4[chosen]
    kept = (fourvector.pt(p4) > _DRESSED_PT_MIN) & (np.abs(fourvector.eta(p4)) < _DRESSED_ETA_MAX)
    chosen, p4 = chosen[kept], p4[kept]
    order = np.lexsort((-fourvector.pt(p4), event[chosen]))
    chosen, p4 = chosen[order], p4[order]
    columns = {
        **fourvector.to_pt_eta_phi_mass(p4),
        "pdgId": events.pdg_id[chosen],
        "hasTauAnc": record.origin[chosen] == PDG_TAU,
    }
    return _collection(event[chosen], columns, len(events))


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
