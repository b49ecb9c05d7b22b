"""What CMS does against pile-up, as pure functions of arrays.

1. Charged-hadron subtraction (CHS): tracks of other vertices are removed (`charged_of_other_vertices`).
2. The rest is subtracted from jets by their area times the median density of transverse momentum
   (arXiv:0707.1378): `median_density`, `jet_area`, `offset`.
3. PUPPI (arXiv:1407.6013) weights neutral objects by how much of the hard event is around them
   (`puppi_weights`).
4. Isolation is corrected by the effective area (electrons) or by the charged energy of other vertices
   (muons), `corrected_isolation`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from topreco.core.compiled import njit
from topreco.simulation.detector import (
    CALORIMETER_ETA,
    ELECTRON,
    HADRON_TRACK,
    MUON,
    NEUTRAL,
    PHOTON,
    TRACKER_ETA,
    Floats,
    Particles,
    SoftResponse,
    isolation,
)
from topreco.simulation.jets import (
    PT_MIN,
    RADIUS,
    RAW_PT_MIN,
    Jets,
    cluster,
    corrected,
    energy_correction,
)
from topreco.simulation.pileup import PileUp

_GRID = 0.55
# Jets below are below all thresholds.
_LEAST_FACTOR = 0.01


# ---- parameters tuned to 500 events of CMS full simulation (UL2018), see docs/SAMPLES.md -----------------

SOFT_RESPONSE = SoftResponse(
    curling_pt=0.8,
    missed_tracks=0.4,
    hadronic_excess_min=2.0,
    hadronic_scale=0.6,
    endcap_scale=0.5,
    forward_scale=0.9,
)
# Vertices closer than this in cm count as one, tracks of other vertices as those of the hard one.
_VERTEX_RESOLUTION = 0.05
_TRACKS_OF_VERTEX = 2
# Fraction of the tracks of other vertices that charged-hadron subtraction recognises, below and above a
# transverse momentum in GeV: CMS removes tracks that a fit assigns to another vertex, and soft ones often
# belong to none. PUPPI removes those farther than a distance in cm as well.
_CHS_EFFICIENCY = (0.6, 0.96)
_CHS_PT = 1.0
_PUPPI_DISTANCE = 0.3
# Response of jets, and its spread, which the response to single particles does not have.
_JET_RESPONSE = 0.94
_JET_SMEARING = 0.09
# Noise of each component of the missing momentum of PUPPI in units of √(scalar sum / GeV).
_PUPPI_NOISE = 0.72


# ---- tracks and vertices ---------------------------------------------------------------------------------


def charged_of_other_vertices(
    tracks: NDArray[np.bool_],
    pt: Floats,
    vertex: NDArray[np.int64],
    vertex_z: Floats,
    rng: np.random.Generator,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Tracks that charged-hadron subtraction and PUPPI remove.

    Parameters
    ----------
    tracks
        The object is a track, shape (objects,).
    pt
        Transverse momenta in GeV, shape (objects,).
    vertex
        Additional collision that each track comes from, −1 for the hard one, shape (objects,).
    vertex_z
        Distances of the additional collisions from the hard one along the beam in cm, shape (vertices,).
    rng
        Source of randomness.

    Returns
    -------
    chs, puppi
        Masks, shape (objects,).
    """
    distance = np.zeros(len(vertex))
    other = tracks & (vertex >= 0)
    distance[other] = np.abs(vertex_z[vertex[other]])
    efficiency = np.where(pt < _CHS_PT, *_CHS_EFFICIENCY)
    recognised = rng.random(len(vertex)) < efficiency
    chs = other & (distance > _VERTEX_RESOLUTION) & recognised
    return chs, chs | (distance > _PUPPI_DISTANCE)


def found_vertices(
    vertex: NDArray[np.int64],
    vertex_event: NDArray[np.int64],
    vertex_z: Floats,
    n_events: int,
) -> NDArray[np.int32]:
    """Number of vertices that are found (`PV_npvs`): those with enough tracks, far enough from others.

    Parameters
    ----------
    vertex
        Additional collision of each track, −1 for the hard one, shape (tracks,).
    vertex_event, vertex_z
        Event of each additional collision, ordered, and its distance from the hard one in cm,
        shape (vertices,).
    n_events
        Number of events.

    Returns
    -------
    count
        The hard vertex included, shape (events,).
    """
    n_tracks = np.bincount(vertex[vertex >= 0], minlength=len(vertex_event))
    enough = n_tracks >= _TRACKS_OF_VERTEX
    event = np.concatenate([np.arange(n_events), vertex_event[enough]])
    z = np.concatenate([np.zeros(n_events), vertex_z[enough]])
    order = np.lexsort((z, event))
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(event[order]) > 0) | (np.diff(z[order]) > _VERTEX_RESOLUTION)
    return np.bincount(event[order][new], minlength=n_events).astype(np.int32)


# ---- jets ------------------------------------------------------------------------------------------------


def median_density(objects: Particles, n_events: int, eta_max: float = CALORIMETER_ETA) -> Floats:
    """Median density of transverse momentum, over the cells of a grid (`fixedGridRhoFastjetAll`).

    Parameters
    ----------
    objects
        Objects.
    n_events
        Number of events.
    eta_max
        Extent of the grid in |η|.

    Returns
    -------
    density
        Transverse momentum in GeV per unit of η times φ, shape (events,).
    """
    rows, columns = round(2 * eta_max / _GRID), round(2 * np.pi / _GRID)
    eta = objects.eta
    inside = np.abs(eta) < eta_max
    row = ((eta[inside] + eta_max) / (2 * eta_max) * rows).astype(np.int64)
    column = ((objects.phi[inside] + np.pi) / (2 * np.pi) * columns).astype(np.int64) % columns
    cell = (objects.event[inside] * rows + row) * columns + column
    total = np.bincount(cell, objects.pt[inside], n_events * rows * columns).reshape(n_events, -1)
    density: Floats = np.median(total, axis=-1) / (2 * eta_max / rows * 2 * np.pi / columns)
    return density


_AREA_STEP = 0.04


@njit()
def jet_area(offsets, pt, eta, phi, radius):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201
    """Areas of anti-kT jets in η and φ, on a grid of points of negligible momentum around each.

    Such a point is clustered with the jet within the radius that has the smallest ΔR/pT, since this is the
    distance measure of anti-kT jets (arXiv:0802.1189); what their soft constituents add is neglected.

    Parameters
    ----------
    offsets
        Event i owns the jets `offsets[i]:offsets[i + 1]`, shape (events + 1,).
    pt, eta, phi
        Transverse momenta in GeV, pseudorapidities and azimuths, shape (jets,).
    radius
        Radius of the jets.

    Returns
    -------
    area
        Areas, shape (jets,).
    """
    area = np.zeros(len(pt))
    n = int(radius / _AREA_STEP)
    for event in range(len(offsets) - 1):
        start, stop = offsets[event], offsets[event + 1]
        neighbours = np.empty((stop - start, 3))
        for i in range(start, stop):
            n_neighbours = 0
            for j in range(start, stop):
                if j == i:
                    continue
                deta = eta[j] - eta[i]
                dphi = (phi[j] - phi[i] + 3 * np.pi) % (2 * np.pi) - np.pi
                if deta**2 + dphi**2 < 4 * radius**2:
                    neighbours[n_neighbours] = deta, dphi, pt[j]
                    n_neighbours += 1
            points = total = 0
            for k in range(-n, n + 1):
                for m in range(-n, n + 1):
                    x, y = k * _AREA_STEP, m * _AREA_STEP
                    distance = x**2 + y**2
                    if distance > radius**2:
                        continue
                    total += 1
                    mine = True
                    for neighbour in range(n_neighbours):
                        deta, dphi, other = neighbours[neighbour]
                        far = (x - deta) ** 2 + (y - dphi) ** 2
                        if far < radius**2 and far * pt[i] ** 2 < distance * other**2:
                            mine = False
                            break
                    points += mine
            area[i] = np.pi * radius**2 * points / total
    return area


# Density of what charged-hadron subtraction leaves of pile-up, divided by the median density of everything,
# in regions of |η| with these lower edges: measured with `offset_table`.
_OFFSET_ETA = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5])
_OFFSET = np.array([0.458, 0.467, 0.496, 0.539, 0.662, 1.157, 0.704, 0.807, 0.932, 0.942])
# Median density without pile-up, which belongs to the hard event.
_DENSITY_OF_HARD_EVENT = 0.55


def offset(density: Floats, area: Floats, eta: Floats) -> Floats:
    """Transverse momentum that pile-up adds to jets after charged-hadron subtraction.

    Parameters
    ----------
    density
        Median density of all objects, charged ones of other vertices included, shape (jets,).
    area, eta
        Areas and pseudorapidities of the jets, shape (jets,).

    Returns
    -------
    pt
        Transverse momentum in GeV, not negative, shape (jets,).
    """
    region = np.searchsorted(_OFFSET_ETA, np.abs(eta), side="right") - 1
    return np.maximum(density - _DENSITY_OF_HARD_EVENT, 0.0) * area * _OFFSET[region]


def offset_table(objects: Particles, of_hard_event: Floats, density: Floats) -> Floats:
    """Measure the table that `offset` uses, in events with and without pile-up.

    Parameters
    ----------
    objects
        Objects after charged-hadron subtraction.
    of_hard_event
        Density without pile-up in each region of |η|, in GeV per unit of area, shape (regions,).
    density
        Median density of all objects of these events, shape (events,).

    Returns
    -------
    ratio
        Density from pile-up in units of the median density, shape (regions,).
    """
    width = np.diff([*_OFFSET_ETA, CALORIMETER_ETA])
    region = np.minimum(
        np.searchsorted(_OFFSET_ETA, np.abs(objects.eta), side="right") - 1, len(_OFFSET_ETA) - 1
    )
    total = np.bincount(region, objects.pt, len(_OFFSET_ETA)) / (len(density) * 4 * np.pi * width)
    ratio: Floats = (total - of_hard_event) / (density - _DENSITY_OF_HARD_EVENT).mean()
    return ratio


# ---- PUPPI -----------------------------------------------------------------------------------------------

_PUPPI_RADIUS = 0.4
_PUPPI_WEIGHT_MIN = 0.01
# By region of |η|: lower edge; smallest weighted pT in GeV without pile-up and for each vertex.
_PUPPI_ETA = np.array([0.0, TRACKER_ETA, 3.0])
_PUPPI_PT_MIN = np.array([0.2, 1.0, 1.0])
_PUPPI_SLOPE = np.array([0.015, 0.04, 0.04])
# Standard deviations by which α must exceed the median.
_PUPPI_SHIFT = 1.0


def puppi_weights(
    objects: Particles,
    removed: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    n_vertices: NDArray[np.int32],
) -> Floats:
    """Weights of PUPPI.

    Tracks count fully or not at all. For other objects α = log Σ (pT/ΔR)² over the tracks of the hard vertex
    with ΔR < 0.4 is compared with its median and width for tracks of other vertices; outside the tracker over
    all objects, and with those of all objects of the region, most of which are from pile-up. The weight is
    the χ² probability of one degree of freedom for what exceeds the median by more than one width.

    Parameters
    ----------
    objects
        Energy-flow objects.
    removed
        Tracks of other vertices, shape (objects,).
    offsets
        Event i owns the objects `offsets[i]:offsets[i + 1]`, shape (events + 1,).
    n_vertices
        Vertices found, shape (events,).

    Returns
    -------
    weight
        Between 0 and 1, shape (objects,).
    """
    eta, pt = objects.eta, objects.pt
    region = np.searchsorted(_PUPPI_ETA, np.abs(eta), side="right") - 1
    weight: Floats = _puppi(
        offsets, pt, eta, objects.phi, objects.source >= 0, removed, region, len(_PUPPI_ETA)
    )
    neutral = objects.source < 0
    threshold = _PUPPI_PT_MIN[region] + _PUPPI_SLOPE[region] * n_vertices[objects.event]
    dropped = neutral & ((weight < _PUPPI_WEIGHT_MIN) | (weight * pt < threshold))
    return np.where(dropped, 0.0, weight)


@njit()
def _puppi(offsets, pt, eta, phi, track, removed, region, n_regions):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    weight = np.zeros(len(pt))
    alpha = np.zeros(len(pt))
    for event in range(len(offsets) - 1):
        start, stop = offsets[event], offsets[event + 1]
        members = np.arange(start, stop)
        hard = members[track[start:stop] & ~removed[start:stop]]
        forward = members[region[start:stop] > 0]
        for i in range(start, stop):
            if track[i] and not removed[i]:
                weight[i] = 1.0
                alpha[i] = -np.inf
                continue
            total = 0.0
            for j in hard if region[i] == 0 else forward:
                if j == i:
                    continue
                deta = abs(eta[i] - eta[j])
                if deta >= _PUPPI_RADIUS:
                    continue
                dphi = abs(phi[i] - phi[j])
                dphi = min(dphi, 2 * np.pi - dphi)
                distance = deta**2 + dphi**2
                if distance < _PUPPI_RADIUS**2:
                    total += pt[j] ** 2 / max(distance, 1e-4)
            alpha[i] = np.log(total) if total > 0 else -np.inf
        for which in range(n_regions):
            inside = members[(region[start:stop] == which) & np.isfinite(alpha[start:stop])]
            reference = inside[removed[inside]] if which == 0 else inside
            if len(reference) == 0:
                # Nothing to compare with: as without pile-up.
                for i in members[region[start:stop] == which]:
                    if not removed[i]:
                        weight[i] = 1.0
                continue
            median = np.median(alpha[reference])
            squares = 0.0
            below = 0
            for i in reference:
                if alpha[i] <= median:
                    squares += (alpha[i] - median) ** 2
                    below += 1
            width = max(np.sqrt(squares / below), 1e-3)
            for i in inside:
                if not track[i]:
                    # √χ² of one degree of freedom has the half-normal distribution.
                    excess = (alpha[i] - median) / width - _PUPPI_SHIFT
                    weight[i] = math.erf(max(excess, 0.0) / math.sqrt(2.0))
    return weight


# ---- all of it -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contamination:
    """What is known of the pile-up in the energy-flow objects of events.

    Attributes
    ----------
    of_hard_vertex
        The object is a track of the hard collision, shape (objects,).
    removed
        It is a track that charged-hadron subtraction removes, shape (objects,).
    distant
        It is a track that this or the distance of its vertex excludes, shape (objects,).
    weight
        Its weight of PUPPI, shape (objects,).
    density
        Median density of transverse momentum, shape (events,).
    n_vertices
        Vertices found, shape (events,).
    """

    of_hard_vertex: NDArray[np.bool_]
    removed: NDArray[np.bool_]
    distant: NDArray[np.bool_]
    weight: Floats
    density: Floats
    n_vertices: NDArray[np.int32]

    @classmethod
    def of(
        cls, objects: Particles, vertex: NDArray[np.int64], pileup: PileUp, rng: np.random.Generator
    ) -> Self:
        """Find the pile-up in events.

        Parameters
        ----------
        objects
            Energy-flow objects, ordered by event.
        vertex
            Additional collision of each particle that they were made of, −1 for the hard one,
            shape (particles,).
        pileup
            The additional collisions.
        rng
            Source of randomness.

        Returns
        -------
        contamination
            The pile-up.
        """
        n_events = len(pileup.n_vertices)
        track = objects.source >= 0
        of_object = np.where(track, vertex[objects.source], -1)
        removed, distant = charged_of_other_vertices(track, objects.pt, of_object, pileup.vertex_z, rng)
        n_vertices = found_vertices(of_object[track], pileup.vertex_event, pileup.vertex_z, n_events)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(objects.event, minlength=n_events))])
        return cls(
            of_hard_vertex=track & (of_object < 0),
            removed=removed,
            distant=distant,
            weight=puppi_weights(objects, distant, offsets, n_vertices),
            density=median_density(objects, n_events),
            n_vertices=n_vertices,
        )

    def puppi_jets(self, objects: Particles, heavy: tuple[Any, Any, Any]) -> tuple[Particles, Jets]:
        """Weight objects by PUPPI and cluster them to jets.

        Parameters
        ----------
        objects
            Energy-flow objects.
        heavy
            Event, four-momentum and flavour of heavy hadrons, as for `topreco.simulation.jets.cluster`.

        Returns
        -------
        objects
            Those with a weight, their momenta multiplied with it.
        jets
            Their jets, with corrected energy.
        """
        kept = self.weight > 0
        some = objects[kept]
        some = replace(some, p4=some.p4 * self.weight[kept, None])
        found = cluster(some.event, some.p4, *heavy, len(self.density), RAW_PT_MIN)
        correction = energy_correction(found.pt, found.eta, "puppi")
        return some, corrected(found, correction, PT_MIN)

    def puppi_noise(self, scalar_sum: Floats, rng: np.random.Generator) -> Floats:
        """Draw the additional noise of the missing momentum of PUPPI.

        Parameters
        ----------
        scalar_sum
            Scalar sum of the transverse momenta of each event in GeV, shape (events,).
        rng
            Source of randomness.

        Returns
        -------
        noise
            (px, py) in GeV, shape (events, 2).
        """
        return _PUPPI_NOISE * np.sqrt(scalar_sum)[:, None] * rng.standard_normal((len(scalar_sum), 2))

    def chs_jets(
        self, objects: Particles, heavy: tuple[Any, Any, Any], rng: np.random.Generator
    ) -> tuple[Particles, Jets]:
        """Cluster jets after charged-hadron subtraction, smear them and subtract the neutral pile-up.

        Parameters
        ----------
        objects
            Energy-flow objects.
        heavy
            Event, four-momentum and flavour of heavy hadrons, as for `topreco.simulation.jets.cluster`.
        rng
            Source of randomness.

        Returns
        -------
        objects
            The objects, those in jets smeared with their jet, electrons and muons excepted.
        jets
            The jets, made of the objects that are not removed.
        """
        kept = np.flatnonzero(~self.removed)
        clustered = objects[kept]
        n_events = len(self.density)
        found = cluster(clustered.event, clustered.p4, *heavy, n_events, RAW_PT_MIN)

        deviation = np.clip(rng.standard_normal(len(found.event)), -3, 3)
        # One more entry, for objects outside all jets (−1).
        smearing = np.append(_JET_RESPONSE + _JET_SMEARING * deviation, 1.0)
        factor = np.ones(len(objects))
        hadronic = ~np.isin(clustered.kind, (ELECTRON, MUON))
        factor[kept[hadronic]] = smearing[found.owner[hadronic]]
        objects = replace(objects, p4=objects.p4 * factor[:, None])
        inside = found.owner >= 0
        owner, members = found.owner[inside], objects.p4[kept[inside]]
        p4 = [np.bincount(owner, members[:, i], len(found.event)) for i in range(4)]
        found = replace(found, p4=np.stack(p4, axis=-1))

        offsets = np.concatenate([[0], np.cumsum(np.bincount(found.event, minlength=n_events))])
        area = jet_area(offsets, found.pt, found.eta, found.phi, RADIUS)
        subtraction = 1 - offset(self.density[found.event], area, found.eta) / found.pt
        subtraction = np.maximum(subtraction, _LEAST_FACTOR)
        return objects, corrected(replace(found, subtraction=subtraction), subtraction, 0.0)


# ---- isolation -------------------------------------------------------------------------------------------

# Neutral transverse momentum in the cone of electrons for each unit of the median density.
_ELECTRON_EFFECTIVE_AREA = 0.2
# Neutral transverse momentum of pile-up for each GeV of its tracks.
_CHARGED_TO_NEUTRAL = 0.85


def corrected_isolation(
    leptons: Particles,
    objects: Particles,
    distant: NDArray[np.bool_],
    density: Floats,
) -> Floats:
    """Relative isolation without pile-up, as CMS corrects it.

    Tracks of other vertices do not count. From the neutral objects electrons subtract the median density
    times an effective area, muons a multiple of the sum of the tracks of other vertices ("Δβ").

    Parameters
    ----------
    leptons
        Electrons (cone 0.3) and muons (cone 0.4).
    objects
        Energy-flow objects; electrons and muons do not count.
    distant
        Tracks of other vertices, shape (objects,).
    density
        Median density of each event, shape (events,).

    Returns
    -------
    isolation
        Relative isolation, shape (leptons,).
    """

    def cone(mask: NDArray[np.bool_]) -> Floats:
        some = objects[mask]
        count = np.bincount(some.event, minlength=len(density))
        return isolation(leptons, some, np.concatenate([[0], np.cumsum(count)]))

    track = objects.kind == HADRON_TRACK
    neutral = np.isin(objects.kind, (PHOTON, NEUTRAL))
    other = np.where(
        leptons.kind == ELECTRON,
        density[leptons.event] * _ELECTRON_EFFECTIVE_AREA / leptons.pt,
        _CHARGED_TO_NEUTRAL * cone(track & distant),
    )
    return cone(track & ~distant) + np.maximum(cone(neutral) - other, 0.0)
