"""Minimum-bias events of Pythia, kept in a pool, and how they are overlaid on hard events."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from topreco.config import SimulationConfig
from topreco.core.errors import TopRecoError
from topreco.core.files import complete_file
from topreco.simulation.detector import Floats, Particles, electric_charge, visible_particles
from topreco.simulation.pythia import generate, minimum_bias_settings, start_pythia

# Changes whenever the content of a pool changes for the same settings.
_FORMAT = 1
_DAMAGED = "no pool of minimum-bias events; start the simulation again, which makes it anew"
_POOL_SEED = 20_180_001
_POOL_BATCH = 500
# Softer particles make no track and no significant calorimeter energy.
_PT_MIN = 0.1

BEAM_SPOT_SIGMA_Z = 3.5
"""Standard deviation of the vertices along the beam in cm, as in CMS in 2018."""

# Quantiles of the distribution of the true mean: `run2` is that of the UL2018 simulation of CMS, `run3` the
# equal mixture of those of 2022 and 2023 (cms-sw/cmssw, SimGeneral/MixingModule:
# mix_2018_25ns_UltraLegacy_PoissonOOTPU, Run3_2022_LHC_Simulation_10h_2h and
# Run3_2023_LHC_Simulation_12p5h_9h_hybrid2p23), rounded.
_PROBABILITIES = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_PROFILES = {
    "run2": (0, 11.6, 16.4, 19.1, 22.8, 25.8, 28.6, 31.2, 33.8, 36.3, 39.1, 42.7, 45.5, 50.8, 64.5),
    "run3": (0, 17.6, 22.8, 26.3, 31.7, 37.1, 42.4, 47.7, 53.8, 59.7, 64.9, 70.8, 75.3, 83.3, 99.5),
}


# ---- the pool --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Visible particles of minimum-bias events.

    Attributes
    ----------
    offsets
        Event i owns the particles `offsets[i]:offsets[i + 1]`, shape (events + 1,).
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (particles, 4), single precision.
    pdg_id, charge
        Identities and electric charges, shape (particles,).
    """

    offsets: NDArray[np.int64]
    p4: NDArray[np.float32]
    pdg_id: NDArray[np.int32]
    charge: NDArray[np.int32]

    def __len__(self) -> int:
        """Count the events."""
        return len(self.offsets) - 1


def pool_file(config: SimulationConfig) -> Path:
    """File of the pool that a simulation needs, whose name holds a hash of all that determines its content.

    Parameters
    ----------
    config
        Energy and tune, size of the pool and folder.

    Returns
    -------
    path
        The file, which need not exist.
    """
    content = {
        "format": _FORMAT,
        "settings": minimum_bias_settings(config, _POOL_SEED),
        "events": config.pileup_pool,
        "pythia8mc": version("pythia8mc"),
    }
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    folder = config.pileup_cache
    if folder is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "topreco"
    return folder / f"minimum-bias-{digest}.npz"


def prepare_pool(config: SimulationConfig, advance: Callable[[int], None] = lambda _: None) -> Path:
    """Make sure that the pool of a simulation is there: a missing or damaged file is made anew.

    Parameters
    ----------
    config
        Energy and tune, size of the pool and folder.
    advance
        Called with the number of events after each batch that is generated.

    Returns
    -------
    path
        File of the pool.

    Raises
    ------
    TopRecoError
        If the file cannot be written.
    """
    path = pool_file(config)
    try:
        load_pool(path)
    except TopRecoError:
        pool = _generate_pool(config, advance)
        with complete_file(path) as temporary:
            np.savez(temporary, offsets=pool["offsets"], p4=pool["p4"], pdg_id=pool["pdg_id"])
    return path


def load_pool(path: Path) -> Pool:
    """Read a pool.

    Parameters
    ----------
    path
        File of `prepare_pool`.

    Returns
    -------
    pool
        Its content.

    Raises
    ------
    TopRecoError
        If the file is missing or damaged; its arrays have checksums.
    """
    try:
        # Numpy does not close a file that it cannot read.
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            offsets, p4, pdg_id = (file[name] for name in ("offsets", "p4", "pdg_id"))
        fitting = len(offsets) > 1 and offsets[-1] == len(p4) == len(pdg_id)
    except (OSError, BadZipFile, ValueError, KeyError, EOFError, TypeError, AttributeError) as error:
        raise TopRecoError(f"{path}: {_DAMAGED} ({error})") from error
    if not fitting:
        raise TopRecoError(f"{path}: {_DAMAGED} (its arrays do not fit each other)")
    return Pool(offsets, p4, pdg_id, electric_charge(pdg_id))


def _generate_pool(config: SimulationConfig, advance: Callable[[int], None]) -> dict[str, NDArray[Any]]:
    """One instance of Pythia for all: for soft QCD it takes ten seconds to start."""
    pythia = start_pythia(minimum_bias_settings(config, _POOL_SEED))
    counts, momenta, codes = [], [], []
    for first in range(0, config.pileup_pool, _POOL_BATCH):
        size = min(_POOL_BATCH, config.pileup_pool - first)
        events = generate(pythia, size, refill=True)
        event = np.repeat(np.arange(size), np.diff(events.offsets))
        particles = visible_particles(event, events.p4, events.pdg_id, events.status > 0)
        particles = particles[particles.pt > _PT_MIN]
        counts.append(np.bincount(particles.event, minlength=size))
        momenta.append(particles.p4.astype(np.float32))
        codes.append(particles.kind)
        advance(size)
    return {
        "offsets": np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64),
        "p4": np.concatenate(momenta),
        "pdg_id": np.concatenate(codes),
    }


# ---- overlay ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PileUp:
    """Additional collisions of many events.

    Attributes
    ----------
    n_true
        Mean of the Poisson distribution that each event's number of collisions is drawn from
        (`Pileup_nTrueInt`), shape (events,).
    n_vertices
        Number of additional collisions (`Pileup_nPU`), shape (events,).
    vertex_event, vertex_z
        Event of each collision, and its distance from the hard one along the beam in cm, shape (vertices,).
    particles
        Their visible particles, ordered by event; `source` is the collision.
    """

    n_true: Floats
    n_vertices: NDArray[np.int64]
    vertex_event: NDArray[np.int64]
    vertex_z: Floats
    particles: Particles


def true_mean(pileup: float | str, n_events: int, rng: np.random.Generator) -> Floats:
    """Draw the mean number of additional collisions of events.

    Parameters
    ----------
    pileup
        Fixed number, or name of a profile: ``run2`` or ``run3``.
    n_events
        Number of events.
    rng
        Source of randomness.

    Returns
    -------
    mean
        Means, shape (events,).
    """
    if isinstance(pileup, str):
        return np.interp(rng.random(n_events), _PROBABILITIES, _PROFILES[pileup])
    return np.full(n_events, float(pileup))


def overlay(pool: Pool, pileup: float | str, n_events: int, rng: np.random.Generator) -> PileUp:
    """Draw the additional collisions of events from the pool.

    Each is rotated by a random angle about the beam and, in half of the cases, mirrored along it, neither of
    which the beams distinguish: no two uses of a minimum-bias event are alike.

    Parameters
    ----------
    pool
        Minimum-bias events.
    pileup
        Fixed mean number, or name of a profile.
    n_events
        Number of hard events.
    rng
        Source of randomness.

    Returns
    -------
    pileup
        The collisions and their particles.
    """
    n_true = true_mean(pileup, n_events, rng)
    n_vertices = rng.poisson(n_true)
    n = int(n_vertices.sum())
    vertex_event = np.repeat(np.arange(n_events), n_vertices)
    # The distance of two vertices is wider than the beam spot.
    hard_z = rng.normal(0.0, BEAM_SPOT_SIGMA_Z, n_events)
    vertex_z = rng.normal(0.0, BEAM_SPOT_SIGMA_Z, n) - hard_z[vertex_event]
    drawn = rng.integers(len(pool), size=n)
    angle = rng.uniform(0.0, 2 * np.pi, n)
    mirror = rng.choice(np.array([-1.0, 1.0]), n)

    counts = np.diff(pool.offsets)[drawn]
    vertex = np.repeat(np.arange(n), counts)
    begin = pool.offsets[drawn] - np.concatenate([[0], np.cumsum(counts)[:-1]])
    row = np.arange(len(vertex)) + begin[vertex]
    energy, px, py, pz = pool.p4[row].T.astype(np.float64)
    cosine, sine = np.cos(angle)[vertex], np.sin(angle)[vertex]
    p4 = np.stack([energy, cosine * px - sine * py, sine * px + cosine * py, mirror[vertex] * pz], axis=-1)
    particles = Particles(
        event=vertex_event[vertex], p4=p4, kind=pool.pdg_id[row], charge=pool.charge[row], source=vertex
    )
    return PileUp(n_true, n_vertices, vertex_event, vertex_z, particles)


def with_pileup(hard: Particles, pileup: PileUp) -> tuple[Particles, NDArray[np.int64]]:
    """Particles of hard events together with those of additional collisions.

    Parameters
    ----------
    hard
        Visible particles of the hard collisions.
    pileup
        The additional ones.

    Returns
    -------
    particles
        All of them, ordered by event; `source` is −1 for those of additional collisions.
    vertex
        The additional collision that each comes from, −1 for the hard one, shape (particles,).
    """
    event = np.concatenate([hard.event, pileup.particles.event])
    order = np.argsort(event, kind="stable")
    other = np.full(len(pileup.particles), -1, np.int64)
    particles = Particles(
        event=event[order],
        p4=np.concatenate([hard.p4, pileup.particles.p4])[order],
        kind=np.concatenate([hard.kind, pileup.particles.kind])[order],
        charge=np.concatenate([hard.charge, pileup.particles.charge])[order],
        source=np.concatenate([hard.source, other])[order],
    )
    vertex = np.concatenate([np.full(len(hard), -1, np.int64), pileup.particles.source])[order]
    return particles, vertex
