"""Generation of hard process, shower, hadronisation and decays with Pythia 8, in columns."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import awkward as ak
import numpy as np
from numpy.typing import NDArray

from topreco.config import SimulationConfig
from topreco.core.errors import TopRecoError, needs_extra

MAX_PYTHIA_SEED = 900_000_000
MAX_ATTEMPTS = 20
# After the system and the two beams.
_FIRST_PARTON = 3

# CMS underlying-event tune CP5, Table 2 of arXiv:1903.12179, on top of Monash as CMS does; Pythia's built-in
# PDF set 20 is NNPDF3.1 NNLO with alpha_S = 0.118.
CP5 = (
    "Tune:pp = 14",
    "Tune:ee = 7",
    "MultipartonInteractions:ecmPow = 0.03344",
    "MultipartonInteractions:bProfile = 2",
    "MultipartonInteractions:pT0Ref = 1.41",
    "MultipartonInteractions:coreRadius = 0.7634",
    "MultipartonInteractions:coreFraction = 0.63",
    "MultipartonInteractions:alphaSvalue = 0.118",
    "MultipartonInteractions:alphaSorder = 2",
    "ColourReconnection:range = 5.176",
    "SigmaTotal:zeroAXB = off",
    "SigmaTotal:mode = 0",
    "SigmaTotal:sigmaEl = 21.89",
    "SigmaTotal:sigmaTot = 100.309",
    "SigmaProcess:alphaSvalue = 0.118",
    "SigmaProcess:alphaSorder = 2",
    "SpaceShower:alphaSvalue = 0.118",
    "SpaceShower:alphaSorder = 2",
    "TimeShower:alphaSvalue = 0.118",
    "TimeShower:alphaSorder = 2",
    "PDF:pSet = 20",
)
MONASH = ("Tune:pp = 14", "Tune:ee = 7")

# As in CMS production: particles with c tau > 10 mm (K0S, hyperons, charged pions) reach the detector.
COMMON = (
    "Print:quiet = on",
    "Check:epTolErr = 0.01",
    "ParticleDecays:limitTau0 = on",
    "ParticleDecays:tau0Max = 10",
)
TOP_DECAY = ("6:onMode = off", "6:onIfAny = 5", "24:onMode = off", "24:onIfAny = 11 13 15")
TTBAR_DILEPTON = ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on", *TOP_DECAY)
# PDG code of the resonance and process. Pythia's own widths of both change with its Higgs sector, so that
# the configured width is forced.
RESONANCES = {"pseudoscalar": (36, "HiggsBSM:gg2A3"), "scalar": (35, "HiggsBSM:gg2H2")}
# In units of the width; a resonance has no mass outside unless configured.
RESONANCE_RANGE = 15.0
# Z/γ* with a hard parton; softer jets, and the second, come from the shower.
DRELL_YAN = (
    "WeakBosonAndParton:qqbar2gmZg = on",
    "WeakBosonAndParton:qg2gmZq = on",
    "23:mMin = 20",
    "23:onMode = off",
    "23:onIfAny = 11 13 15",
)
# gb → tH⁻ with the mass and the width of Pythia's W in place of those of the H⁻; the width of the top without
# its decay to this H⁺.
TW_PROPOSAL = (
    "Higgs:useBSM = on",
    "HiggsBSM:bg2H+-t = on",
    "37:m0 = 80.385",
    "37:mWidth = 2.085",
    "37:doForceWidth = on",
    "37:mMin = 50",
    "37:mMax = 110",
    "37:oneChannel = 1 0.3333333 100 -11 12",
    "37:addChannel = 1 0.3333333 100 -13 14",
    "37:addChannel = 1 0.3333333 100 -15 16",
    "6:onMode = off",
    "6:onIfMatch = 24 5",
    "6:doForceWidth = on",
    "6:mWidth = 1.34",
    "24:onMode = off",
    "24:onIfAny = 11 13 15",
    "PartonLevel:all = off",
)
# External events contain the scale (SCALUP) at which the shower may start, whatever their final state;
# without this, Pythia would shower tt̄ from the kinematic limit, and count the hardest emission of POWHEG
# twice.
LHE = ("Beams:frameType = 4", "SpaceShower:pTmaxMatch = 1", "TimeShower:pTmaxMatch = 1")


@dataclass(frozen=True)
class PythiaEvents:
    """Event records of many events, flattened over particles.

    Attributes
    ----------
    offsets
        Event i owns the particles `offsets[i]:offsets[i + 1]`, shape (events + 1,). Its first entry is
        Pythia's line for the whole system, so that mothers and daughters are positions within the event.
    pdg_id, status, mother, daughter1, daughter2
        Pythia's record, shape (particles,). `mother` is `mother1`.
    p4
        Four-momenta (E, px, py, pz) in GeV, shape (particles, 4).
    mass
        Masses in GeV, shape (particles,).
    weight
        Event weights, shape (events,).
    parton_id, parton_x
        Flavours and momentum fractions of the two incoming partons, shape (events, 2).
    """

    offsets: NDArray[np.int64]
    pdg_id: NDArray[np.int32]
    status: NDArray[np.int32]
    mother: NDArray[np.int32]
    daughter1: NDArray[np.int32]
    daughter2: NDArray[np.int32]
    p4: NDArray[np.float64]
    mass: NDArray[np.float64]
    weight: NDArray[np.float64]
    parton_id: NDArray[np.int32]
    parton_x: NDArray[np.float64]

    def __len__(self) -> int:
        """Count the events."""
        return len(self.weight)


def require_sim() -> None:
    """Check that the extra `sim` is installed.

    Raises
    ------
    TopRecoError
        If pythia8mc or fastjet is missing.
    """
    try:
        for module in ("pythia8mc", "fastjet"):
            import_module(module)
    except ImportError as error:
        raise TopRecoError(f"topreco simulate: {needs_extra('sim', error)}") from error


def settings(config: SimulationConfig, seed: int, *, external: bool = False) -> list[str]:
    """Pythia settings of one block.

    Parameters
    ----------
    config
        Process, energy and tune.
    seed
        Pythia's seed, 1 to 900 000 000.
    external
        The hard process comes from a Les Houches file.

    Returns
    -------
    settings
        Lines for `Pythia.readString`.
    """
    process = LHE if external else (*_process(config), f"Beams:eCM = {config.sqrt_s!r}")
    return [
        *COMMON,
        *(CP5 if config.tune == "CP5" else MONASH),
        *process,
        f"6:m0 = {config.m_top!r}",
        f"PartonLevel:MPI = {'on' if config.mpi else 'off'}",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
    ]


def _process(config: SimulationConfig) -> tuple[str, ...]:
    """Settings of the hard process."""
    resonance = config.resonance
    if resonance is not None:
        code, process = RESONANCES[config.process]
        low, high = resonance.mass_range or (
            max(resonance.mass - RESONANCE_RANGE * resonance.width, 0.0),
            resonance.mass + RESONANCE_RANGE * resonance.width,
        )
        return (
            "Higgs:useBSM = on",
            f"{process} = on",
            f"{code}:m0 = {resonance.mass!r}",
            f"{code}:mWidth = {resonance.width!r}",
            f"{code}:doForceWidth = on",
            f"{code}:mMin = {low!r}",
            f"{code}:mMax = {high!r}",
            f"{code}:onMode = off",
            f"{code}:onIfMatch = 6 -6",
            *TOP_DECAY,
        )
    if config.process == "drell_yan":
        return (*DRELL_YAN, f"PhaseSpace:pTHatMin = {config.pt_parton!r}")
    return {"ttbar": TTBAR_DILEPTON, "tw": TW_PROPOSAL}[config.process]


def minimum_bias_settings(config: SimulationConfig, seed: int) -> list[str]:
    """Pythia settings of minimum-bias events: inelastic collisions, as CMS overlays.

    Parameters
    ----------
    config
        Energy and tune; they always have multi-parton interactions.
    seed
        Pythia's seed, 1 to 900 000 000.

    Returns
    -------
    settings
        Lines for `Pythia.readString`.
    """
    return [
        *COMMON,
        *(CP5 if config.tune == "CP5" else MONASH),
        "SoftQCD:inelastic = on",
        f"Beams:eCM = {config.sqrt_s!r}",
        "Random:setSeed = on",
        f"Random:seed = {seed}",
    ]


def start_pythia(lines: list[str], lhe: Path | None = None) -> Any:
    """Start Pythia.

    Every block starts its own: starting draws random numbers itself, and an instance that is merely given a
    new seed makes other events than one started with that seed (seen with Pythia 8.317), so that events would
    depend on the worker. Starting takes 0.2 s, less than a tenth of the time of a block of 500 events.

    Parameters
    ----------
    lines
        Settings.
    lhe
        Les Houches file with the events to shower.

    Returns
    -------
    pythia
        The generator.

    Raises
    ------
    TopRecoError
        If Pythia refuses a setting or cannot start.
    """
    pythia8mc = import_module("pythia8mc")
    pythia = pythia8mc.Pythia("", False)
    for line in lines:
        if not pythia.readString(line):
            raise TopRecoError(f"Pythia does not accept the setting {line!r}")
    if lhe is not None:
        # Not by readString, which would end a path at its first blank.
        pythia.settings.word("Beams:LHEF", str(lhe))
    if not pythia.init():
        raise TopRecoError(
            "Pythia could not start; the energy, the mass or the Les Houches file must be out of its range. "
            f"Settings: {lines}"
        )
    return pythia


def generate(pythia: Any, n_events: int, *, refill: bool) -> PythiaEvents:
    """Generate events.

    Parameters
    ----------
    pythia
        The generator.
    n_events
        Number of events.
    refill
        Replace the few events that Pythia abandons by new ones. Events of a Les Houches file
        cannot be replaced; there the result is shorter.

    Returns
    -------
    events
        The event records.

    Raises
    ------
    TopRecoError
        If Pythia keeps failing.
    """
    batches: list[Any] = []
    missing = n_events
    for _ in range(MAX_ATTEMPTS):
        batch = pythia.nextBatch(missing, "skip")
        batch = batch[~ak.is_none(batch.info.id1)]
        batches.append(batch)
        missing -= len(batch)
        if missing == 0 or not refill:
            return _flatten(batches[0] if len(batches) == 1 else ak.concatenate(batches))
    raise TopRecoError(f"Pythia failed {MAX_ATTEMPTS} times in a row to complete {n_events} events")


class HardParticle(NamedTuple):
    """A particle of a hard process.

    Attributes
    ----------
    pdg_id, status
        Of Pythia.
    mother
        Position in the process, −1 for incoming partons; 0 for what the two of them made.
    colours
        Colour and anticolour.
    p4
        (E, px, py, pz) in GeV.
    mass
        In GeV.
    """

    pdg_id: int
    status: int
    mother: int
    colours: tuple[int, int]
    p4: tuple[float, float, float, float]
    mass: float


Process = list[HardParticle]
"""A hard process from its incoming partons to the decays of its resonances."""


def hard_process(pythia: Any) -> Process | None:
    """Generate a hard process; None where Pythia abandons it.

    Parameters
    ----------
    pythia
        The generator, with ``PartonLevel:all = off``.
    """
    if not pythia.next():
        return None
    record = pythia.process
    found = []
    for i in range(_FIRST_PARTON, record.size()):
        p = record[i]
        found.append(
            HardParticle(
                p.id(),
                p.status(),
                max(p.mother1() - _FIRST_PARTON, -1),
                (p.col(), p.acol()),
                (p.e(), p.px(), p.py(), p.pz()),
                p.m(),
            )
        )
    return found


def _flatten(events: Any) -> PythiaEvents:
    """Copy the columns that are used out of Pythia's awkward array, so that the rest can be freed."""
    particles, info = events.prt, events.info

    def column(array: Any, dtype: Any) -> Any:
        return ak.to_numpy(ak.flatten(array), allow_missing=False).astype(dtype)

    def value(array: Any, dtype: Any) -> Any:
        return ak.to_numpy(array, allow_missing=False).astype(dtype)

    counts = ak.to_numpy(ak.num(particles.id, axis=1), allow_missing=False)
    return PythiaEvents(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        pdg_id=column(particles.id, np.int32),
        status=column(particles.status, np.int32),
        mother=column(particles.mother1, np.int32),
        daughter1=column(particles.daughter1, np.int32),
        daughter2=column(particles.daughter2, np.int32),
        p4=np.stack([column(particles.p[name], np.float64) for name in ("e", "px", "py", "pz")], axis=-1),
        mass=column(particles.m, np.float64),
        weight=value(info.weights[:, 0], np.float64),
        parton_id=np.stack([value(info[name], np.int32) for name in ("id1", "id2")], axis=-1),
        parton_x=np.stack([value(info[name], np.float64) for name in ("x1", "x2")], axis=-1),
    )
