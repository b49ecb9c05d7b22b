"""Hard process gb → tW⁻ → (b ℓ⁺ ν)(ℓ⁻ ν̄), and its charge conjugate, which Pythia does not have.

Pythia has gb → tH⁻. With the mass and the width of the W in place of those of the H⁻ its events have the
phase space of tW; they are accepted with a probability proportional to the ratio of the matrix elements at
leading order. That of tW is taken with both decays, so that the polarisations of t and W and their
correlation are those of the full amplitude; light fermions are massless in it, and the widths enter the
masses of t and W alone. Diagrams with two tops, which interfere with tt̄ at next-to-leading order, are left
out: this is the process gb → tWb without its resonant part, as far as the shower makes the second b.

With all fermions left-handed the amplitude is one chain of two-component spinors λ (chiral representation,
σ^μ = (1, σ), σ̄^μ = (1, −σ)) for each polarisation ε of the gluon::

    J⁻ = λ(ℓ⁻)† σ̄ λ(ν̄)        J⁺ = λ(ν)† σ̄ λ(ℓ⁺)        q = k − p_g
    A  = λ(b)† (σ̄·J⁺) [m Y_L + (k·σ) Y_R]
    Y_R = (J⁻·σ̄)((p_g + p_b)·σ)(ε·σ̄) λ(p_b)/ŝ + (ε·σ̄)(q·σ)(J⁻·σ̄) λ(p_b)/(q² − m²)
    Y_L = m (ε·σ)(J⁻·σ̄) λ(p_b)/(q² − m²)

with k, m the momentum and the mass of the top and p_g, p_b the incoming partons. It vanishes for ε = p_g.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from topreco.config import SimulationConfig
from topreco.core import fourvector
from topreco.core.constants import PDG_GLUON, PDG_TOP, PDG_W
from topreco.core.errors import TopRecoError
from topreco.simulation.pythia import Process, hard_process, start_pythia

Floats = NDArray[np.float64]
Complex = NDArray[np.complex128]

# σ^μ with an upper index; σ̄^μ has the other sign in its spatial part.
_SIGMA = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
_METRIC = np.array([1.0, -1.0, -1.0, -1.0])
# Along the beam, the two transverse polarisations of a gluon.
_POLARISATIONS = np.array([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
# Ratio of the squared amplitudes that is always accepted; its mean is 72. That of 1 in 2000 proposed events
# is larger, where the amplitude of tH⁻ is next to zero: these events have a weight above 1.
LARGEST_RATIO = 1500.0
_CHUNK = 2000
_MAX_CHUNKS_WITHOUT_EVENT = 20
_PDG_CHARGED_HIGGS = 37


class HardProcess(NamedTuple):
    """Momenta (E, px, py, pz) in GeV of tW at leading order, each of shape (n, 4).

    Attributes
    ----------
    gluon, bottom
        Incoming partons, along the beam.
    top
        Top, the sum of the next three.
    b, lepton_top, neutrino_top
        Its decay products.
    lepton_w, neutrino_w
        Decay products of the other W.
    """

    gluon: Floats
    bottom: Floats
    top: Floats
    b: Floats
    lepton_top: Floats
    neutrino_top: Floats
    lepton_w: Floats
    neutrino_w: Floats

    def parity(self) -> "HardProcess":
        """All momenta reflected in space: by CP what the charge-conjugate process has."""
        return HardProcess(*(p4 * _METRIC for p4 in self))


def _slash(vector: Any) -> Complex:
    """p·σ of vectors with upper index, shape (..., 2, 2)."""
    matrix: Complex = np.einsum("...m,mij->...ij", vector * _METRIC, _SIGMA)
    return matrix


def _slash_bar(vector: Any) -> Complex:
    """p·σ̄ of vectors with upper index, shape (..., 2, 2)."""
    matrix: Complex = np.einsum("...m,mij->...ij", vector, _SIGMA)
    return matrix


def _spinor(p4: Floats) -> Complex:
    """Left-handed spinors of massless particles along the momenta, (p·σ̄) λ = 0 and λλ† = p·σ, (n, 2)."""
    energy = np.linalg.norm(p4[:, 1:], axis=-1)
    plus, minus = energy + p4[:, 3], energy - p4[:, 3]
    transverse = p4[:, 1] + 1j * p4[:, 2]
    forward = plus > minus
    # The larger component is taken as real, which is safe along the beam.
    large = np.sqrt(np.where(forward, plus, minus))
    first = np.where(forward, -np.conj(transverse) / large, large)
    second = np.where(forward, large, -transverse / large)
    return np.stack([first, second], axis=-1).astype(np.complex128)


def _current(particle: Floats, antiparticle: Floats) -> Complex:
    """λ(p)† σ̄^μ λ(p̄) with upper index, shape (n, 4)."""
    bar = _SIGMA * _METRIC[:, None, None]
    found: Complex = np.einsum(
        "ni,mij,nj->nm", np.conj(_spinor(particle)), bar, _spinor(antiparticle), optimize=True
    )
    return found


def _apply(matrix: Complex, spinor: Complex) -> Complex:
    found: Complex = np.einsum("...ij,...j->...i", matrix, spinor)
    return found


def amplitude_tw(hard: HardProcess, polarisation: Floats) -> Complex:
    """Amplitude of gb → tW⁻ with both decays, without couplings and propagators of t and W.

    Parameters
    ----------
    hard
        Momenta.
    polarisation
        Of the gluon, upper index, shape (4,) or (n, 4).

    Returns
    -------
    amplitude
        Shape (n,).
    """
    mass = fourvector.mass(hard.top)[:, None]
    current = _current(hard.lepton_w, hard.neutrino_w)
    incoming = _spinor(hard.bottom)
    total, exchanged = hard.gluon + hard.bottom, hard.top - hard.gluon
    s = fourvector.mass_squared(total)[:, None]
    denominator = fourvector.mass_squared(exchanged)[:, None] - mass**2
    w_vertex, gluon_bar, gluon = _slash_bar(current), _slash_bar(polarisation), _slash(polarisation)
    after_w = _apply(w_vertex, incoming)
    right = _apply(w_vertex, _apply(_slash(total), _apply(gluon_bar, incoming))) / s
    right = right + _apply(gluon_bar, _apply(_slash(exchanged), after_w)) / denominator
    left = mass * _apply(gluon, after_w) / denominator
    decay_vertex = _slash_bar(_current(hard.neutrino_top, hard.lepton_top))
    decayed = _apply(decay_vertex, mass * left + _apply(_slash(hard.top), right))
    found: Complex = (np.conj(_spinor(hard.b)) * decayed).sum(axis=-1)
    return found


def squared_th(hard: HardProcess) -> Floats:
    """Squared amplitude of gb → tH⁻ with a massless b, summed over spins, without couplings, shape (n,)."""
    mass = fourvector.mass(hard.top)[:, None]
    incoming = _spinor(hard.bottom)
    total, exchanged = hard.gluon + hard.bottom, hard.top - hard.gluon
    s = fourvector.mass_squared(total)[:, None]
    denominator = fourvector.mass_squared(exchanged)[:, None] - mass**2
    found = np.zeros(len(hard.top))
    for polarisation in _POLARISATIONS:
        bar, plain = _slash_bar(polarisation), _slash(polarisation)
        left = _apply(_slash(total), _apply(bar, incoming)) / s
        left = left + _apply(plain, _apply(_slash_bar(exchanged), incoming)) / denominator
        right = mass * _apply(bar, incoming) / denominator
        top_left = mass * left + _apply(_slash(hard.top), right)
        top_right = _apply(_slash_bar(hard.top), left) + mass * right
        found += (np.conj(right) * top_left + np.conj(left) * top_right).sum(axis=-1).real
    return found


def ratio_to_proposal(hard: HardProcess) -> Floats:
    """Squared amplitude of tW with decays over the density in which Pythia proposes its events.

    That is the one of gb → tH⁻, times (p_t·p_ℓ)(p_b·p_ν) of the top's decay; H⁻ → ℓ⁻ν̄ is isotropic.

    Parameters
    ----------
    hard
        Momenta.

    Returns
    -------
    ratio
        Without dimension, shape (n,).
    """
    squared = sum(np.abs(amplitude_tw(hard, polarisation)) ** 2 for polarisation in _POLARISATIONS)
    w_mass2 = fourvector.mass_squared(hard.lepton_w + hard.neutrino_w)
    decay = fourvector.dot(hard.top, hard.lepton_top) * fourvector.dot(hard.b, hard.neutrino_top)
    found: Floats = squared / (squared_th(hard) * decay * w_mass2)
    return found


# ---- events ----------------------------------------------------------------------------------------------


def write_tw(lines: list[str], config: SimulationConfig, n_events: int, seed: int, path: Path) -> None:
    """Write unweighted events of tW as a Les Houches file, which Pythia then showers.

    Parameters
    ----------
    lines
        Settings of Pythia for its process gb → tH⁻ with the W in place of the H⁻, hard process alone.
    config
        Energy.
    n_events
        Number of events.
    seed
        Seed of the acceptance.
    path
        File to write.

    Raises
    ------
    TopRecoError
        If Pythia generates none.
    """
    pythia = start_pythia(lines)
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    failures = 0
    while len(texts) < n_events:
        processes = [process for _ in range(_CHUNK) if (process := hard_process(pythia)) is not None]
        if processes:
            hard, conjugate = _momenta(processes)
            ratio = np.where(conjugate, ratio_to_proposal(hard.parity()), ratio_to_proposal(hard))
            accepted = rng.random(len(ratio)) * LARGEST_RATIO < ratio
            weight = np.maximum(ratio / LARGEST_RATIO, 1.0)
            found = [_event(processes[i], weight[i]) for i in np.flatnonzero(accepted)]
            texts += found
            failures = 0 if found else failures + 1
        else:
            failures += 1
        if failures == _MAX_CHUNKS_WITHOUT_EVENT:
            raise TopRecoError(f"tW: no event among {failures * _CHUNK} tries of Pythia; settings: {lines}")
    beam = config.sqrt_s / 2
    init = f"<init>\n2212 2212 {beam:.8e} {beam:.8e} 0 0 0 0 -4 1\n1.0 0.0 1.0 1\n</init>\n"
    text = "".join(['<LesHouchesEvents version="1.0">\n', init, *texts[:n_events], "</LesHouchesEvents>\n"])
    path.write_text(text, encoding="utf-8")


def _momenta(processes: list[Process]) -> tuple[HardProcess, NDArray[np.bool_]]:
    """Momenta by role, and whether each event has a t̄."""
    rows = []
    conjugate = []
    for process in processes:
        codes = [particle.pdg_id for particle in process]
        top = next(i for i, code in enumerate(codes) if abs(code) == PDG_TOP)
        higgs = next(i for i, code in enumerate(codes) if abs(code) == _PDG_CHARGED_HIGGS)
        w = next(i for i, code in enumerate(codes) if abs(code) == PDG_W)
        sign = 1 if codes[top] > 0 else -1

        def child(parent: int, test: Any, process: Process = process) -> int:
            return next(i for i, p in enumerate(process) if p.mother == parent and test(abs(p.pdg_id)))

        gluon = 0 if codes[0] == PDG_GLUON else 1
        rows.append(
            [
                gluon,
                1 - gluon,
                top,
                child(top, lambda code: code == 5),
                child(w, lambda code: code in (11, 13, 15)),
                child(w, lambda code: code in (12, 14, 16)),
                child(higgs, lambda code: code in (11, 13, 15)),
                child(higgs, lambda code: code in (12, 14, 16)),
            ]
        )
        conjugate.append(sign < 0)
    p4 = np.array(
        [[process[i].p4 for i in row] for process, row in zip(processes, rows, strict=True)], np.float64
    )
    return HardProcess(*np.moveaxis(p4, 1, 0)), np.array(conjugate)


def _event(process: Process, weight: float) -> str:
    """One event with the H⁻ called W⁻; the shower begins at the geometric mean of the transverse masses."""
    outgoing = [p for p in process if p.mother == 0 and p.status == -22]
    transverse_mass = [np.sqrt(p.p4[0] ** 2 - p.p4[3] ** 2) for p in outgoing]
    scale = float(np.sqrt(np.prod(transverse_mass)))
    lines = [f"{len(process)} 1 {weight:.6e} {scale:.6e} -1 -1\n"]
    for p in process:
        code = int(np.sign(p.pdg_id)) * PDG_W if abs(p.pdg_id) == _PDG_CHARGED_HIGGS else p.pdg_id
        state = {-21: -1, -22: 2}.get(p.status, 1)
        mothers = (0, 0) if state == -1 else (1, 2) if p.mother == 0 else (p.mother + 1, 0)
        energy, px, py, pz = p.p4
        momentum = " ".join(f"{value:.10e}" for value in (px, py, pz, energy, p.mass))
        lines.append(
            f"{code} {state} {mothers[0]} {mothers[1]} {p.colours[0]} {p.colours[1]} {momentum} 0 9\n"
        )
    return "<event>\n" + "".join(lines) + "</event>\n"
