"""Response of a CMS-like detector to stable particles: pure functions of arrays and a random generator.

Formulas and numbers are those of the public CMS card of Delphes 3 (arXiv:1307.6346), without pile-up; events
with pile-up have another response to soft particles (`SoftResponse`). Energies and momenta are in GeV. The
steps are

1. tracking: charged particles get a track with some efficiency and a smeared momentum (`track_efficiency`,
   `track_resolution`);
2. calorimetry: energies are summed in cells and smeared (`calorimeter`);
3. energy flow: tracks, plus the calorimeter energy beyond that of the tracks in a cell; where there is no
   significant excess, the tracks share the weighted mean of both measurements;
4. leptons (`select_leptons`, `isolation`) and b-tag scores (`btag_score`, `deepcsv_score`).

Particles fly straight to the calorimeter: the bending of tracks is not simulated, but for `SoftResponse`.
"""

from dataclasses import dataclass, fields
from functools import partial
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from topreco.core.compiled import njit
from topreco.core.constants import PDG_ELECTRON, PDG_MUON

Floats = NDArray[np.float64]

TRACKER_ETA = 2.5
CALORIMETER_ETA = 5.0
_FORWARD_ETA = 3.0
ELECTRON_PT_MIN = 5.0
MUON_PT_MIN = 3.0
MUON_ETA = 2.4
ISOLATION_PT_MIN = 0.5
ELECTRON_CONE = 0.3
MUON_CONE = 0.4
TIGHT_ELECTRON_ISOLATION = 0.10

_PDG_PHOTON = 22
# Long-lived neutral strange particles decay inside the calorimeters and share their energy.
_PDG_STRANGE = (310, 3122)
_STRANGE_ECAL_FRACTION = 0.3

# Kinds of energy-flow objects.
HADRON_TRACK, ELECTRON, MUON, PHOTON, NEUTRAL = range(5)


class Momenta:
    """Coordinates of four-momenta (E, px, py, pz) in GeV, shape (n, 4)."""

    p4: Floats

    @property
    def pt(self) -> Floats:
        """Transverse momenta in GeV."""
        return np.hypot(self.p4[:, 1], self.p4[:, 2])

    @property
    def eta(self) -> Floats:
        """Pseudorapidities."""
        return np.arcsinh(self.p4[:, 3] / self.pt)

    @property
    def phi(self) -> Floats:
        """Azimuths."""
        return np.arctan2(self.p4[:, 2], self.p4[:, 1])


@dataclass(frozen=True)
class Particles(Momenta):
    """A flat table of particles or energy-flow objects, ordered by event.

    Attributes
    ----------
    event
        Event of each particle, shape (particles,).
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (particles, 4).
    kind
        PDG identity of a particle, or kind of an energy-flow object, shape (particles,).
    charge
        Electric charge, shape (particles,).
    source
        For tracks: position of the particle in the table of generated particles, else −1, shape (particles,).
    """

    event: NDArray[np.int64]
    p4: Floats
    kind: NDArray[np.int32]
    charge: NDArray[np.int32]
    source: NDArray[np.int64]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.event)

    def __getitem__(self, index: Any) -> Self:
        """Select rows by mask or position."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


# ---- formulas of the card --------------------------------------------------------------------------------


def track_efficiency(kind: NDArray[np.int32], pt: Floats, eta: Floats) -> Floats:
    """Efficiency to reconstruct a track.

    Parameters
    ----------
    kind
        `HADRON_TRACK`, `ELECTRON` or `MUON`, shape (n,).
    pt, eta
        Transverse momentum in GeV and pseudorapidity, shape (n,).

    Returns
    -------
    efficiency
        Between 0 and 1, shape (n,).
    """
    central = np.abs(eta) < 1.5
    soft = pt < 1.0
    hadron = np.where(soft, np.where(central, 0.70, 0.60), np.where(central, 0.95, 0.85))
    electron = np.where(soft, np.where(central, 0.73, 0.50), np.where(central, 0.95, 0.83))
    electron = np.where(pt > 100.0, np.where(central, 0.99, 0.90), electron)
    muon = np.where(soft, np.where(central, 0.75, 0.70), np.where(central, 0.99, 0.98))
    efficiency = np.select([kind == ELECTRON, kind == MUON], [electron, muon], hadron)
    return np.where((pt > 0.1) & (np.abs(eta) < TRACKER_ETA), efficiency, 0.0)


def track_resolution(kind: NDArray[np.int32], pt: Floats, eta: Floats) -> Floats:
    """Relative resolution of transverse momenta.

    Parameters
    ----------
    kind
        `HADRON_TRACK`, `ELECTRON` or `MUON`, shape (n,).
    pt, eta
        Transverse momentum in GeV and pseudorapidity, shape (n,).

    Returns
    -------
    resolution
        Standard deviation of pT divided by pT, shape (n,).
    """
    region = [np.abs(eta) < 0.5, np.abs(eta) < 1.5]
    slope = np.select(region, [1.3e-3, 1.7e-3], 3.1e-3)
    hadron = np.hypot(np.select(region, [0.06, 0.10], 0.25), slope * pt)
    electron = np.hypot(np.select(region, [0.03, 0.05], 0.15), slope * pt)
    muon = np.hypot(np.select(region, [0.01, 0.015], 0.025), np.select(region, [1.0e-4, 1.5e-4], 3.5e-4) * pt)
    return np.select([kind == ELECTRON, kind == MUON], [electron, muon], hadron)


def ecal_resolution(energy: Floats, eta: Floats) -> Floats:
    """Energy resolution of the electromagnetic calorimeter.

    Parameters
    ----------
    energy, eta
        Energy in GeV and pseudorapidity, shape (n,).

    Returns
    -------
    sigma
        Standard deviation of the energy in GeV, shape (n,).
    """
    eta = np.abs(eta)
    core = np.sqrt((0.008 * energy) ** 2 + 0.11**2 * energy + 0.40**2)
    forward = np.sqrt((0.107 * energy) ** 2 + 2.08**2 * energy)
    return np.select(
        [eta < 1.5, eta < 2.5], [(1 + 0.64 * eta**2) * core, (2.16 + 5.6 * (eta - 2) ** 2) * core], forward
    )


def hcal_resolution(energy: Floats, eta: Floats) -> Floats:
    """Energy resolution of the hadronic calorimeter.

    Parameters
    ----------
    energy, eta
        Energy in GeV and pseudorapidity, shape (n,).

    Returns
    -------
    sigma
        Standard deviation of the energy in GeV, shape (n,).
    """
    central = np.sqrt((0.050 * energy) ** 2 + 1.50**2 * energy)
    forward = np.sqrt((0.130 * energy) ** 2 + 2.70**2 * energy)
    return np.where(np.abs(eta) < 3.0, central, forward)


def lepton_efficiency(kind: NDArray[np.int32], eta: Floats) -> Floats:
    """Efficiency to identify a lepton that has a track.

    Parameters
    ----------
    kind
        `ELECTRON` or `MUON`, shape (n,).
    eta
        Pseudorapidity, shape (n,).

    Returns
    -------
    efficiency
        Between 0 and 1, shape (n,).
    """
    eta = np.abs(eta)
    electron = np.where(eta < 1.5, 0.95, np.where(eta < TRACKER_ETA, 0.85, 0.0))
    return np.where(kind == ELECTRON, electron, np.where(eta < MUON_ETA, 0.95, 0.0))


def btag_efficiency(flavour: NDArray[np.int32], pt: Floats) -> Floats:
    """B-tag efficiency at the medium working point.

    Parameters
    ----------
    flavour
        Hadron flavour of the jets (5, 4 or 0), shape (jets,).
    pt
        Transverse momenta in GeV, shape (jets,).

    Returns
    -------
    efficiency
        Between 0 and 1, shape (jets,).
    """
    bottom = 0.85 * np.tanh(0.0025 * pt) * 25.0 / (1 + 0.063 * pt)
    charm = 0.25 * np.tanh(0.018 * pt) / (1 + 0.0013 * pt)
    return np.select([flavour == 5, flavour == 4], [bottom, charm], 0.01 + 3.8e-5 * pt)


def log_normal(mean: Floats, sigma: Floats, rng: np.random.Generator) -> Floats:
    """Draw positive numbers of given mean and standard deviation, as Delphes does.

    Parameters
    ----------
    mean, sigma
        Mean (zero gives zero) and standard deviation, shape (n,).
    rng
        Source of randomness.

    Returns
    -------
    value
        Random numbers, shape (n,).
    """
    normal = rng.standard_normal(len(mean))
    safe = np.where(mean > 0, mean, 1.0)
    width = np.sqrt(np.log1p((sigma / safe) ** 2))
    return np.where(mean > 0, safe * np.exp(width * normal - 0.5 * width**2), 0.0)


# ---- particles -------------------------------------------------------------------------------------------

NEUTRINOS = (12, 14, 16)
# Charged particles that live long enough to reach the detector.
_POSITIVE = (-11, -13, 211, 321, 2212, 3222, -3112, -3312, -3334)
_NEGATIVE = tuple(-code for code in _POSITIVE)


def electric_charge(pdg_id: NDArray[np.int32]) -> NDArray[np.int32]:
    """Charges of particles that live long enough to reach the detector.

    Parameters
    ----------
    pdg_id
        Identities, shape (n,).

    Returns
    -------
    charge
        In units of the positron's, shape (n,).
    """
    return np.isin(pdg_id, _POSITIVE).astype(np.int32) - np.isin(pdg_id, _NEGATIVE).astype(np.int32)


def visible_particles(
    event: NDArray[np.int64], p4: Floats, pdg_id: NDArray[np.int32], stable: NDArray[np.bool_]
) -> Particles:
    """Stable particles that the calorimeters can see, with |η| < 5 and not along the beam.

    Parameters
    ----------
    event, p4, pdg_id
        Event, four-momentum in GeV and identity of particles in an event record, ordered by event.
    stable
        They reach the detector, shape (n,).

    Returns
    -------
    particles
        The visible ones; `source` is their position in the record.
    """
    transverse = np.hypot(p4[:, 1], p4[:, 2])
    inside = np.abs(p4[:, 3]) < transverse * np.sinh(CALORIMETER_ETA)
    visible = np.flatnonzero(stable & inside & ~np.isin(np.abs(pdg_id), NEUTRINOS))
    code = pdg_id[visible]
    return Particles(
        event=event[visible], p4=p4[visible], kind=code, charge=electric_charge(code), source=visible
    )


# ---- energy flow -----------------------------------------------------------------------------------------


def classify(pdg_id: NDArray[np.int32], charge: NDArray[np.int32]) -> NDArray[np.int32]:
    """Classify particles as the detector sees them.

    Parameters
    ----------
    pdg_id, charge
        Identity and electric charge, shape (n,).

    Returns
    -------
    kind
        `HADRON_TRACK`, `ELECTRON`, `MUON`, `PHOTON` or `NEUTRAL`, shape (n,).
    """
    code = np.abs(pdg_id)
    kind = np.select(
        [code == PDG_ELECTRON, code == PDG_MUON, code == _PDG_PHOTON, charge != 0],
        [ELECTRON, MUON, PHOTON, HADRON_TRACK],
        NEUTRAL,
    )
    return kind.astype(np.int32)


@dataclass(frozen=True)
class SoftResponse:
    """Response to soft particles, which decides about pile-up. The defaults are what the card has.

    Attributes
    ----------
    curling_pt
        Charged hadrons within |η| < 2.5 and of smaller transverse momentum in GeV do not reach the
        calorimeters: the magnetic field curls them up.
    missed_tracks
        Factor on the probability to miss a track.
    hadronic_excess_min
        Smallest excess of the hadronic calorimeter over tracks, in standard deviations.
    hadronic_scale
        Factor on the resolution of the hadronic calorimeter within |η| < 2.5.
    endcap_scale, forward_scale
        Factors on the resolution of both calorimeters for 2.5 < |η| < 3 and beyond.
    """

    curling_pt: float = 0.0
    missed_tracks: float = 1.0
    hadronic_excess_min: float = 1.0
    hadronic_scale: float = 1.0
    endcap_scale: float = 1.0
    forward_scale: float = 1.0


CARD = SoftResponse()


def energy_flow(
    particles: Particles, rng: np.random.Generator, soft: SoftResponse = CARD
) -> tuple[Particles, Particles]:
    """Reconstruct tracks and calorimeter energy.

    Parameters
    ----------
    particles
        Stable visible particles within |η| < 5; `kind` is their PDG identity.
    rng
        Source of randomness.
    soft
        Response to soft particles.

    Returns
    -------
    objects
        Energy-flow objects: tracks of charged hadrons, electrons and muons, photons, neutral hadrons.
    tracks
        Tracks before their combination with the calorimeter, `source` being the position in `particles`.
    """
    pt, eta, phi = particles.pt, particles.eta, particles.phi
    energy = particles.p4[:, 0]
    kind = classify(particles.kind, particles.charge)

    charged = particles.charge != 0
    efficiency = np.where(charged, track_efficiency(kind, pt, eta), 0.0)
    if soft.missed_tracks != 1:
        efficiency = np.where(efficiency > 0, 1 - soft.missed_tracks * (1 - efficiency), 0.0)
    tracked = rng.random(len(particles)) < efficiency
    relative = track_resolution(kind, pt, eta)[tracked]
    scale = log_normal(np.ones(len(relative)), relative, rng)
    tracks = Particles(
        event=particles.event[tracked],
        # Masses and directions are kept; the energy follows from the momentum.
        p4=_scale_momentum(particles.p4[tracked], scale),
        kind=kind[tracked],
        charge=particles.charge[tracked],
        source=np.flatnonzero(tracked),
    )

    # Share of each particle's energy in ECAL and HCAL; muons leave nothing.
    ecal_share = np.select(
        [(kind == ELECTRON) | (kind == PHOTON), np.isin(np.abs(particles.kind), _PDG_STRANGE)],
        [1.0, _STRANGE_ECAL_FRACTION],
        0.0,
    )
    hcal_share = np.where(kind == MUON, 0.0, 1.0 - ecal_share)

    stopped = (kind == HADRON_TRACK) & (pt < soft.curling_pt) & (np.abs(eta) < TRACKER_ETA)
    outputs = [tracks[(tracks.kind == MUON) | stopped[tracked]]]
    ecal = partial(_scaled, ecal_resolution, 1.0, soft)
    hcal = partial(_scaled, hcal_resolution, soft.hadronic_scale, soft)
    layers = (
        (ecal_share, ELECTRON, PHOTON, ecal, _ecal_cells, 0.5, 2.0, 2.0),
        (hcal_share, HADRON_TRACK, NEUTRAL, hcal, _hcal_cells, 1.0, 1.0, soft.hadronic_excess_min),
    )
    for share, track_kind, neutral_kind, resolution, cells, energy_min, significance, excess_min in layers:
        hit = (share > 0) & ~stopped
        mine = (tracks.kind == track_kind) & ~stopped[tracked]
        outputs += calorimeter(
            event=particles.event[hit],
            deposit=(energy * share)[hit],
            cell=cells(eta[hit], phi[hit]),
            tracks=tracks[mine],
            track_cell=cells(eta[tracked][mine], phi[tracked][mine]),
            track_sigma=relative[mine] * tracks.p4[mine, 0],
            resolution=resolution,
            energy_min=energy_min,
            significance_min=significance,
            excess_min=excess_min,
            neutral_kind=neutral_kind,
            rng=rng,
        )
    merged = Particles(
        **{
            field.name: np.concatenate([getattr(o, field.name) for o in outputs])
            for field in fields(Particles)
        }
    )
    return merged[np.argsort(merged.event, kind="stable")], tracks


def _scaled(resolution: Any, central: float, soft: SoftResponse, energy: Floats, eta: Floats) -> Floats:
    """Resolution of a calorimeter times the factors of three regions."""
    regions = [np.abs(eta) < TRACKER_ETA, np.abs(eta) < _FORWARD_ETA]
    scale = np.select(regions, [central, soft.endcap_scale], soft.forward_scale)
    sigma: Floats = scale * resolution(energy, eta)
    return sigma


def resolution(objects: Particles, soft: SoftResponse = CARD) -> Floats:
    """Relative energy resolution of energy-flow objects: of the tracker or of one calorimeter.

    Parameters
    ----------
    objects
        Objects from `energy_flow`.
    soft
        Response to soft particles.

    Returns
    -------
    resolution
        One at most, shape (objects,).
    """
    energy, eta, kind = objects.p4[:, 0], objects.eta, objects.kind
    ecal = _scaled(ecal_resolution, 1.0, soft, energy, eta)
    hcal = _scaled(hcal_resolution, soft.hadronic_scale, soft, energy, eta)
    neutral = np.where(kind == PHOTON, ecal, hcal) / energy
    found = np.where(objects.source < 0, neutral, track_resolution(kind, objects.pt, eta))
    return np.minimum(found, 1.0)


@dataclass(frozen=True)
class Cells:
    """Calorimeter cells that particles hit.

    Attributes
    ----------
    index
        Number of the cell, shape (n,).
    eta, phi
        Centre of the cell, shape (n,).
    eta_width, phi_width
        Extent of the cell, shape (n,).
    """

    index: NDArray[np.int64]
    eta: Floats
    phi: Floats
    eta_width: Floats
    phi_width: Floats


_CELLS_PER_ROW = 1_000
_CELLS_PER_EVENT = 1_000_000


def _cells(eta: Floats, phi: Floats, eta_width: Floats, phi_width: Floats) -> Cells:
    row = np.floor((eta + CALORIMETER_ETA) / eta_width)
    column = np.floor((phi + np.pi) / phi_width)
    # Coarse and fine regions have their own rows, so that no number stands for two cells.
    coarse = (eta_width > 0.1) * (_CELLS_PER_EVENT // 2)
    return Cells(
        index=(coarse + row * _CELLS_PER_ROW + column).astype(np.int64),
        eta=(row + 0.5) * eta_width - CALORIMETER_ETA,
        phi=(column + 0.5) * phi_width - np.pi,
        eta_width=eta_width,
        phi_width=phi_width,
    )


def _ecal_cells(eta: Floats, phi: Floats) -> Cells:
    fine = np.abs(eta) < 3.0
    return _cells(eta, phi, np.where(fine, 0.02, 0.175), np.where(fine, np.pi / 180, np.pi / 18))


def _hcal_cells(eta: Floats, phi: Floats) -> Cells:
    fine = np.abs(eta) < 1.653
    return _cells(eta, phi, np.where(fine, 0.087, 0.175), np.where(fine, np.pi / 36, np.pi / 18))


def calorimeter(
    *,
    event: NDArray[np.int64],
    deposit: Floats,
    cell: Cells,
    tracks: Particles,
    track_cell: Cells,
    track_sigma: Floats,
    resolution: Any,
    energy_min: float,
    significance_min: float,
    excess_min: float,
    neutral_kind: int,
    rng: np.random.Generator,
) -> list[Particles]:
    """Combine one calorimeter with the tracks that point to it, as Delphes' `SimpleCalorimeter`.

    The energy of each cell is smeared and suppressed below a threshold. If it exceeds the energy E of the
    cell's tracks significantly, the excess becomes a neutral object, placed uniformly within the cell.
    Otherwise the tracks are scaled to the mean of E and the cell's energy weighted with their inverse
    variances.

    Parameters
    ----------
    event
        Event of each deposit, shape (n,).
    deposit
        True deposited energies in GeV, shape (n,).
    cell
        Cells of the deposits.
    tracks
        Tracks of the particles that shower in this calorimeter.
    track_cell
        Cells of the tracks, those of the true direction.
    track_sigma
        Uncertainty of the tracks' energies in GeV, shape (tracks,).
    resolution
        Function of energies and pseudorapidities giving the standard deviation of the energy.
    energy_min, significance_min
        Thresholds: energy in GeV, and energy divided by its resolution.
    excess_min
        Smallest excess over the tracks divided by its resolution.
    neutral_kind
        Kind of the objects made of the excess.
    rng
        Source of randomness.

    Returns
    -------
    objects
        The scaled tracks and the neutral objects.
    """
    key = event * _CELLS_PER_EVENT + cell.index
    # Every track's particle is among the deposits, so that its cell is always found.
    towers, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    n_towers = len(towers)
    eta, phi = cell.eta[first], cell.phi[first]
    true_energy: Floats = np.bincount(inverse, deposit, n_towers).astype(np.float64)
    energy = log_normal(true_energy, resolution(true_energy, eta), rng)
    sigma = resolution(energy, eta)
    energy = np.where((energy < energy_min) | (energy < significance_min * sigma), 0.0, energy)

    tower = np.searchsorted(towers, tracks.event * _CELLS_PER_EVENT + track_cell.index)
    track_energy = np.bincount(tower, tracks.p4[:, 0], n_towers)
    track_variance = np.bincount(tower, track_sigma**2, n_towers)
    excess = np.maximum(energy - track_energy, 0.0)
    neutral = (excess > energy_min) & (excess > excess_min * np.sqrt(track_variance + sigma**2))

    combined = (track_energy * sigma**2 + energy * track_variance) / (sigma**2 + track_variance)
    factor = np.where(
        neutral | (track_energy == 0), 1.0, combined / np.where(track_energy > 0, track_energy, 1.0)
    )
    scaled = Particles(
        event=tracks.event,
        p4=tracks.p4 * factor[tower, None],
        kind=tracks.kind,
        charge=tracks.charge,
        source=tracks.source,
    )

    eta = eta[neutral] + cell.eta_width[first][neutral] * (rng.random(int(neutral.sum())) - 0.5)
    phi = phi[neutral] + cell.phi_width[first][neutral] * (rng.random(len(eta)) - 0.5)
    transverse = excess[neutral] / np.cosh(eta)
    p4 = [excess[neutral], transverse * np.cos(phi), transverse * np.sin(phi), transverse * np.sinh(eta)]
    return [
        scaled,
        Particles(
            event=event[first][neutral],
            p4=np.stack(p4, axis=-1),
            kind=np.full(len(eta), neutral_kind, np.int32),
            charge=np.zeros(len(eta), np.int32),
            source=np.full(len(eta), -1, np.int64),
        ),
    ]


def _scale_momentum(p4: Floats, scale: Floats) -> Floats:
    """Multiply momenta, not masses."""
    momentum = p4[:, 1:] * scale[:, None]
    mass2 = np.maximum(p4[:, 0] ** 2 - (p4[:, 1:] ** 2).sum(axis=-1), 0.0)
    energy = np.sqrt((momentum**2).sum(axis=-1) + mass2)
    return np.concatenate([energy[:, None], momentum], axis=-1)


# ---- leptons ---------------------------------------------------------------------------------------------


def select_leptons(objects: Particles, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Identify electrons and muons, isolated or not.

    Parameters
    ----------
    objects
        Energy-flow objects.
    rng
        Source of randomness.

    Returns
    -------
    selected
        Mask, shape (objects,).
    """
    pt, eta = objects.pt, objects.eta
    lepton = ((objects.kind == ELECTRON) & (pt > ELECTRON_PT_MIN)) | (
        (objects.kind == MUON) & (pt > MUON_PT_MIN)
    )
    selected: NDArray[np.bool_] = lepton & (rng.random(len(objects)) < lepton_efficiency(objects.kind, eta))
    return selected


def isolation(leptons: Particles, objects: Particles, offsets: NDArray[np.int64]) -> Floats:
    """Relative isolation: the energy flow around a lepton, without itself, divided by its pT.

    Parameters
    ----------
    leptons
        Electrons (cone 0.3) and muons (cone 0.4).
    objects
        Energy-flow objects; those above 0.5 GeV count.
    offsets
        Event i owns the objects `offsets[i]:offsets[i + 1]`, shape (events + 1,).

    Returns
    -------
    isolation
        Relative isolation, shape (leptons,).
    """
    cone = np.where(leptons.kind == ELECTRON, ELECTRON_CONE, MUON_CONE)
    total: Floats = _cone_sum(
        leptons.event,
        leptons.eta,
        leptons.phi,
        cone,
        leptons.source,
        offsets,
        objects.pt,
        objects.eta,
        objects.phi,
        objects.source,
    )
    return total / leptons.pt


@njit()
def _cone_sum(event, eta, phi, cone, source, offsets, pt, object_eta, object_phi, object_source):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    total = np.zeros(len(event))
    for i in range(len(event)):
        for j in range(offsets[event[i]], offsets[event[i] + 1]):
            if pt[j] < ISOLATION_PT_MIN or object_source[j] == source[i]:
                continue
            dphi = abs(phi[i] - object_phi[j])
            dphi = min(dphi, 2 * np.pi - dphi)
            if (eta[i] - object_eta[j]) ** 2 + dphi**2 < cone[i] ** 2:
                total[i] += pt[j]
    return total


# ---- b tagging -------------------------------------------------------------------------------------------

# Medium working point of DeepJet in 2018 (UL).
MEDIUM_WORKING_POINT = 0.2783
# Width of logit(score) by hadron flavour: with 80 % (16 %, 1.2 %) of b (c, light) jets above the medium
# working point, these give 93 % (42 %, 10 %) above the loose one, 0.0490, and 60 % (2.5 %, 0.1 %) above the
# tight one, 0.7100, as measured in CMS simulation.
_LOGIT_WIDTH = {5: 3.15, 4: 2.2, 0: 2.06}
_normal_quantile = np.vectorize(NormalDist().inv_cdf, otypes=[np.float64])

# Efficiencies of b, c and light jets at the loose, medium and tight working points of DeepCSV, table 2 of
# CMS, JINST 13 (2018) P05011 (arXiv:1712.07158), and the scores there in 2018 (UL).
DEEPCSV_EFFICIENCIES = {5: (0.84, 0.68, 0.50), 4: (0.41, 0.12, 0.024), 0: (0.11, 0.011, 0.001)}
DEEPCSV_WORKING_POINTS = (0.1208, 0.4168, 0.7665)
# Two taggers mostly read the same tracks. How alike they are is not public; this is a guess.
_TAGGER_CORRELATION = 0.7


def btag_score(flavour: NDArray[np.int32], pt: Floats, eta: Floats, normal: Floats) -> Floats:
    """Draw a b-tag score like `Jet_btagDeepFlavB`.

    logit(score) is normally distributed, its mean such that the efficiency at the medium working point is
    `btag_efficiency`. The likelihood ratio of b to light rises with the score: it carries information
    within the bands between working points too.

    Parameters
    ----------
    flavour
        Hadron flavour of the jets (5, 4 or 0), shape (jets,).
    pt, eta
        Transverse momenta in GeV and pseudorapidities, shape (jets,).
    normal
        Normal random numbers, shape (jets,).

    Returns
    -------
    score
        Between 0 and 1; exactly 0 outside the tracker, shape (jets,).
    """
    width = np.select([flavour == 5, flavour == 4], [_LOGIT_WIDTH[5], _LOGIT_WIDTH[4]], _LOGIT_WIDTH[0])
    efficiency = np.clip(btag_efficiency(flavour, pt), 1e-4, 1 - 1e-4)
    threshold = np.log(MEDIUM_WORKING_POINT / (1 - MEDIUM_WORKING_POINT))
    deviation = _normal_quantile(efficiency) + normal
    return _score(threshold + width * deviation, eta)


def deepcsv_score(
    flavour: NDArray[np.int32], eta: Floats, deepjet: Floats, rng: np.random.Generator
) -> Floats:
    """Draw a second b-tag score, like `Jet_btagDeepB`, which separates less well than `btag_score`.

    A normal random number becomes logit(score) by straight lines through the three working points, such that
    each has the efficiencies of `DEEPCSV_EFFICIENCIES`, at any pT. As with `btag_score`, the score carries
    information within the bands between working points.

    Parameters
    ----------
    flavour
        Hadron flavour of the jets (5, 4 or 0), shape (jets,).
    eta
        Pseudorapidities, shape (jets,).
    deepjet
        Normal random numbers of `btag_score`, with which those of this score are correlated, shape (jets,).
    rng
        Source of randomness.

    Returns
    -------
    score
        Between 0 and 1; exactly 0 outside the tracker, shape (jets,).
    """
    own = rng.standard_normal(len(eta))
    normal = _TAGGER_CORRELATION * deepjet + np.sqrt(1 - _TAGGER_CORRELATION**2) * own
    points = np.array(DEEPCSV_WORKING_POINTS)
    logits = np.log(points / (1 - points))
    logit = np.zeros(len(eta))
    for kind, efficiencies in DEEPCSV_EFFICIENCIES.items():
        mine = flavour == kind if kind else (flavour != 5) & (flavour != 4)
        knots = -_normal_quantile(np.array(efficiencies))
        slopes = np.diff(logits) / np.diff(knots)
        # The outer lines go on beyond the loose and the tight working point.
        number = np.where(normal[mine] < knots[1], 0, 1)
        logit[mine] = logits[number] + slopes[number] * (normal[mine] - knots[number])
    return _score(logit, eta)


def _score(logit: Floats, eta: Floats) -> Floats:
    """Score from its logit; exactly 0 outside the tracker."""
    # Away from 0 and 1 by more than single precision, so that stored scores have a finite logit.
    score = np.clip(1 / (1 + np.exp(-logit)), 1e-6, 1 - 1e-6)
    return np.where(np.abs(eta) < TRACKER_ETA, score, 0.0)
