"""New decays W → ℓν of generated tt̄ pairs: many events from each hard event, and tt̄ spin correlation.

Generator, shower and hadronisation take nine tenths of the time of a simulated event, and W → ℓν does not
talk to the rest of it: the W is a colour singlet, and its QED radiation stays with the lepton. So its decay
products may be replaced while everything else is kept, as LHCb does with the decays of its signals [1]_. In
the rest frame of each W all its descendants are rotated together, such that the charged lepton points in a
new direction; masses, radiation, the polarisation of τ leptons and the W itself stay.

The new direction follows the matrix element of t → bℓν at leading order, |M|² ∝ (p_t·p_ℓ)(p_b·p_ν). With
p_b = p_t − p_W, c the cosine of the angle between lepton and top in the W rest frame, p the momentum of the
top there and v the velocity of the lepton, its density is ∝ (E_t − v p c)(E_b + p c), flat in the azimuth.

Pythia decays t and t̄ each on its own. Leading-order spin correlation is the weight 1 − κ q̂⁺ᵀ C′ q̂⁻ of
`topreco.core.spin`. It correlates the directions of the W bosons too, which stay as they are: so every pair
of decays is proposed without correlation and accepted with the probability (1 − κ q̂⁺ᵀ C′ q̂⁻)/(1 + |κ|). The
*number* of accepted pairs of a hard event then carries the correlation of the W bosons.

.. [1] D. Müller, M. Clemencic, G. Corti, M. Gersabeck, ReDecay: a novel approach to speed up the simulation
   at LHCb, arXiv:1810.10362.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topreco.config import PreselectionConfig, SimulationConfig
from topreco.core.compiled import njit
from topreco.core.constants import PDG_ELECTRON, PDG_GLUON, PDG_MUON
from topreco.core.spin import spin_correlation_weight
from topreco.simulation.pythia import PythiaEvents

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# Largest difference in GeV between a W and its stable descendants; more means that they are not its own.
_TOLERANCE = 1e-3
# Halvings of an interval of length 2 until its ends are neighbours in double precision.
_HALVINGS = 54


@dataclass(frozen=True)
class WDecays:
    """The two decays of generated tt̄ pairs. The second axis is that of the tops: 0 is t, 1 is t̄.

    Attributes
    ----------
    top, w
        Last copies of the tops and of their W bosons, (E, px, py, pz) in GeV, shape (n, 2, 4).
    lepton
        Charged lepton of the W before QED radiation, shape (n, 2, 4).
    lepton_id
        Its PDG identity, shape (n, 2).
    leg
        0 for descendants of the W⁺, 1 for those of the W⁻, −1 for all else, shape (particles,).
    separable
        The stable descendants have the momentum of their W. Not so where a radiated photon split into quarks
        whose colours were reconnected with others, shape (n, 2).
    """

    top: Floats
    w: Floats
    lepton: Floats
    lepton_id: NDArray[np.int32]
    leg: NDArray[np.int8]
    separable: NDArray[np.bool_]


@dataclass(frozen=True)
class Copies:
    """Events that differ in the decays of their W bosons only.

    Attributes
    ----------
    hard_event
        Position of the generated event that each copy comes from, rising, shape (copies,).
    number
        Number of the try that made the copy; 0 is the decay that Pythia made, shape (copies,).
    transformation
        Matrices that take the descendants of W⁺ and W⁻ to their new momenta, shape (copies, 2, 4, 4).
    """

    hard_event: Integers
    number: Integers
    transformation: Floats

    def __len__(self) -> int:
        """Count the copies."""
        return len(self.hard_event)

    def __getitem__(self, index: Any) -> "Copies":
        """Select copies by mask, slice or position."""
        return Copies(
            self.hard_event[index],
            self.number[index],
            self.transformation[index],
        )


def find_decays(events: PythiaEvents) -> WDecays:
    """Find the decays of the W bosons in event records of tt̄.

    Parameters
    ----------
    events
        Generated events with one t and one t̄, each with W → ℓν.

    Returns
    -------
    decays
        Momenta of the particles that take part, and who descends from which W.
    """
    top, w, lepton, leg, total = _find(events.offsets, events.pdg_id, events.status, events.mother, events.p4)
    difference = np.abs(total - events.p4[w]).max(axis=-1)
    return WDecays(
        top=events.p4[top],
        w=events.p4[w],
        lepton=events.p4[lepton],
        lepton_id=events.pdg_id[lepton],
        leg=leg,
        separable=difference < _TOLERANCE,
    )


@njit()
def _find(offsets, pdg_id, status, mother, p4):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
    """Rows of tops, W bosons and leptons; leg of each particle; sum of the stable particles of each leg."""
    n = len(offsets) - 1
    top = np.zeros((n, 2), np.int64)
    w = np.zeros((n, 2), np.int64)
    lepton = np.zeros((n, 2), np.int64)
    leg = np.full(len(pdg_id), -1, np.int8)
    total = np.zeros((n, 2, 4))
    for event in range(n):
        start, stop = offsets[event], offsets[event + 1]
        # Copies follow each other in the record, so that the last one found is the last copy.
        for i in range(start, stop):
            side = 0 if pdg_id[i] > 0 else 1
            if abs(pdg_id[i]) == 6:
                top[event, side] = i
            elif abs(pdg_id[i]) == 24:
                w[event, side] = i
        for i in range(start + 1, stop):
            m = start + mother[i]
            if m >= i:
                continue  # initial-state radiation
            for side in range(2):
                if m == w[event, side]:
                    leg[i] = side
                    if abs(pdg_id[i]) in (11, 13, 15):
                        lepton[event, side] = i
            if leg[m] >= 0:
                leg[i] = leg[m]
            if leg[i] >= 0 and status[i] > 0:
                total[event, leg[i]] += p4[i]
    return top, w, lepton, leg, total


# ---- directions ------------------------------------------------------------------------------------------


def boost_matrix(p4: Floats) -> Floats:
    """Matrix that takes momenta from the rest frame of a particle to the frame where it has a momentum.

    Parameters
    ----------
    p4
        Four-momenta (E, px, py, pz) of the particles, shape (..., 4); with (E, −px, −py, −pz) the inverse.

    Returns
    -------
    matrix
        Boosts, shape (..., 4, 4).
    """
    mass = np.sqrt(p4[..., 0] ** 2 - (p4[..., 1:] ** 2).sum(axis=-1))[..., None]
    u = p4 / mass
    matrix = np.empty((*p4.shape, 4))
    matrix[..., 0, :] = matrix[..., :, 0] = u
    space = u[..., 1:]
    matrix[..., 1:, 1:] = np.eye(3) + space[..., :, None] * space[..., None, :] / (1 + u[..., :1, None])
    return matrix


def draw_cosine(energy_top: Floats, energy_b: Floats, momentum: Floats, speed: Floats, u: Floats) -> Floats:
    """Draw the cosine c between charged lepton and top in the W rest frame.

    Its density is ∝ (E_t − v p c)(E_b + p c).

    Parameters
    ----------
    energy_top, energy_b
        Energies E_t and E_b = E_t − m_W in GeV in the W rest frame, shape (...).
    momentum
        Momentum p of the top there in GeV, shape (...).
    speed
        Velocity v of the charged lepton there in units of c, shape (...).
    u
        Random numbers in [0, 1), shape (...): the cumulative probabilities of the cosines.

    Returns
    -------
    cosine
        Between −1 and 1, shape (...).
    """
    constant = energy_top * energy_b
    linear = momentum * (energy_top - speed * energy_b)
    quadratic = -speed * momentum**2

    def cumulative(c: Floats) -> Floats:
        return constant * (c + 1) + linear * (c**2 - 1) / 2 + quadratic * (c**3 + 1) / 3

    wanted = u * cumulative(np.ones_like(u))
    low, high = np.full(np.shape(u), -1.0), np.full(np.shape(u), 1.0)
    # The cumulative function rises monotonically: halving needs no start value and cannot diverge.
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = cumulative(middle) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def _frame(direction: Floats, angle: Floats) -> Floats:
    """Rows: the direction and two axes perpendicular to it, turned about it by an angle; (..., 3, 3)."""
    # The coordinate axis that is farthest from the direction.
    other = np.eye(3)[np.abs(direction).argmin(axis=-1)]
    x = np.cross(direction, other)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    y = np.cross(direction, x)
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    return np.stack([direction, cos * x + sin * y, cos * y - sin * x], axis=-2)


def new_directions(decays: WDecays, n_tries: int, rng: np.random.Generator) -> Floats:
    """Propose decays of each W from the leading-order matrix element of its own top.

    Parameters
    ----------
    decays
        Decays of the generated events.
    n_tries
        Number of pairs of decays for each event. The first pair is that of Pythia.
    rng
        Source of randomness.

    Returns
    -------
    transformation
        Lorentz transformations of the descendants of each W that keep the W as it is, the identity for the
        first try, shape (n, tries, 2, 4, 4).
    """
    n = len(decays.w)
    shape = (n, n_tries - 1, 2)
    mirrored = decays.w * np.array([1, -1, -1, -1])
    to_rest = boost_matrix(mirrored)
    top = np.einsum("nlij,nlj->nli", to_rest, decays.top)
    lepton = np.einsum("nlij,nlj->nli", to_rest, decays.lepton)
    momentum = np.linalg.norm(top[..., 1:], axis=-1)
    lepton_momentum = np.linalg.norm(lepton[..., 1:], axis=-1)
    m_w = np.einsum("nlj,nlj->nl", to_rest[..., 0, :], decays.w)
    # Rounding must not make the b spacelike.
    energy_b = np.maximum(top[..., 0] - m_w, momentum)

    def each(values: Floats) -> Floats:
        return np.broadcast_to(values[:, None], (n, n_tries - 1, *values.shape[1:]))

    u, azimuth, turn = rng.random((3, *shape))
    cosine = draw_cosine(
        each(top[..., 0]), each(energy_b), each(momentum), each(lepton_momentum / lepton[..., 0]), u
    )
    axes = _frame(each(top[..., 1:] / momentum[..., None]), 2 * np.pi * azimuth)
    sine = np.sqrt(1 - cosine**2)
    direction = cosine[..., None] * axes[..., 0, :] + sine[..., None] * axes[..., 1, :]
    old = _frame(each(lepton[..., 1:] / lepton_momentum[..., None]), np.zeros(shape))
    new = _frame(direction / np.linalg.norm(direction, axis=-1, keepdims=True), 2 * np.pi * turn)
    rotation = np.zeros((*shape, 4, 4))
    rotation[..., 0, 0] = 1
    rotation[..., 1:, 1:] = np.swapaxes(new, -1, -2) @ old
    result = np.empty((n, n_tries, 2, 4, 4))
    result[:, 0] = np.eye(4)
    result[:, 1:] = each(boost_matrix(decays.w)) @ rotation @ each(to_rest)
    # These W bosons decay in all copies as they did: less variety, but no bias.
    result[~decays.separable[:, None].repeat(n_tries, axis=1)] = np.eye(4)
    return result


def accept(
    events: PythiaEvents,
    decays: WDecays,
    transformation: Floats,
    scale: float,
    rng: np.random.Generator,
    initial: str | None = None,
) -> NDArray[np.bool_]:
    """Accept pairs of decays such that their spins are correlated as at leading order.

    Parameters
    ----------
    events, decays
        Generated events of gg → tt̄ and qq̄ → tt̄, and their decays.
    transformation
        Proposed decays, shape (n, tries, 2, 4, 4).
    scale
        κ, the correlation in units of the full one, −1 to 1.
    rng
        Source of randomness.
    initial
        What made the pairs, see `spin_correlation_matrix`; None takes gg or qq̄ from the incoming partons.

    Returns
    -------
    accepted
        With probability (1 − κ q̂⁺ᵀ C′ q̂⁻)/(1 + |κ|), shape (n, tries).
    """
    shape = transformation.shape[:2]
    leptons = np.einsum("ntlij,nlj->ntli", transformation, decays.lepton)
    tops = np.broadcast_to(decays.top[:, None], leptons.shape)
    gluons = (events.parton_id == PDG_GLUON).all(axis=1)
    channels = {"gg": gluons, "qq": ~gluons} if initial is None else {initial: np.ones_like(gluons)}
    weight = np.empty(shape)
    for channel, chosen in channels.items():
        values = spin_correlation_weight(
            tops[chosen].reshape(-1, 2, 4), leptons[chosen].reshape(-1, 2, 4), channel, scale
        )
        weight[chosen] = values.reshape(-1, shape[1])
    accepted: NDArray[np.bool_] = rng.random(shape) * (1 + abs(scale)) < weight
    return accepted


# ---- copies ----------------------------------------------------------------------------------------------


def draw_copies(
    events: PythiaEvents, decays: WDecays, config: SimulationConfig, rng: np.random.Generator
) -> tuple[Copies, NDArray[np.bool_]]:
    """Draw the decays of all copies of the generated events.

    Parameters
    ----------
    events, decays
        Generated events and their decays.
    config
        Number of tries and spin correlation.
    rng
        Source of randomness.

    Returns
    -------
    copies
        All tries of all events.
    accepted
        Those that count as generated: with spin correlation a part of them, shape (copies,).
    """
    transformation = new_directions(decays, config.decays_per_event, rng)
    accepted = np.ones(transformation.shape[:2], np.bool_)
    if config.spin_scale is not None:
        initial = None if config.resonance is None else config.process
        accepted = accept(events, decays, transformation, config.spin_scale, rng, initial)
    hard_event, number = np.indices(accepted.shape).reshape(2, -1)
    return Copies(hard_event, number, transformation.reshape(-1, 2, 4, 4)), accepted.ravel()


def preselect(
    events: PythiaEvents, decays: WDecays, copies: Copies, cuts: PreselectionConfig
) -> NDArray[np.bool_]:
    """Find the copies whose generated leptons can pass a selection of two leptons of opposite charge.

    All electrons and muons count, those of τ and hadron decays too; those directly from a W with their
    momentum before QED radiation, as a calorimeter collects most of the photons.

    Parameters
    ----------
    events, decays
        Generated events and their decays.
    copies
        Copies of them.
    cuts
        Thresholds.

    Returns
    -------
    passed
        Mask, shape (copies,).
    """
    rows = np.flatnonzero((events.status > 0) & np.isin(np.abs(events.pdg_id), (PDG_ELECTRON, PDG_MUON)))
    event = np.searchsorted(events.offsets, rows, side="right") - 1
    leg, code, p4 = decays.leg[rows], events.pdg_id[rows], events.p4[rows]
    direct = (leg >= 0) & (code == decays.lepton_id[event, leg])
    p4[direct] = decays.lepton[event[direct], leg[direct]]

    # Rows of the table of leptons for each copy.
    per_event = np.bincount(event, minlength=len(events))
    copy, row = _ranges(np.concatenate([[0], np.cumsum(per_event)]), copies.hard_event)
    leg, code, p4 = leg[row], code[row], p4[row]
    moved = leg >= 0
    p4[moved] = np.einsum("nij,nj->ni", copies.transformation[copy[moved], leg[moved]], p4[moved])
    pt = np.hypot(p4[:, 1], p4[:, 2])
    inside = np.abs(p4[:, 3]) < pt * np.sinh(cuts.abs_eta)

    def any_of(chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.bincount(copy[chosen], minlength=len(copies)) > 0
        return found

    trailing, leading = (inside & (pt > cut) for cut in (cuts.pt_trailing, cuts.pt_leading))
    return any_of(trailing & (code < 0)) & any_of(trailing & (code > 0)) & any_of(leading)


def _ranges(offsets: Integers, index: Integers) -> tuple[Integers, Integers]:
    """Rows that entries of a jagged table own, entries repeated or left out: entry and row of each."""
    counts = np.diff(offsets)[index]
    ends = np.cumsum(counts)
    entry = np.repeat(np.arange(len(index)), counts)
    return entry, np.arange(len(entry)) - (ends - counts)[entry] + offsets[index][entry]


def copied_events(events: PythiaEvents, decays: WDecays, copies: Copies) -> PythiaEvents:
    """Event records of copies.

    Parameters
    ----------
    events, decays
        Generated events and their decays.
    copies
        Copies of them.

    Returns
    -------
    events
        One record for each copy.
    """
    copy, row = _ranges(events.offsets, copies.hard_event)
    leg, p4 = decays.leg[row], events.p4[row]
    moved = np.flatnonzero(leg >= 0)
    p4[moved] = np.einsum("nij,nj->ni", copies.transformation[copy[moved], leg[moved]], p4[moved])
    return PythiaEvents(
        offsets=np.concatenate([[0], np.cumsum(np.bincount(copy, minlength=len(copies)))]),
        pdg_id=events.pdg_id[row],
        status=events.status[row],
        mother=events.mother[row],
        daughter1=events.daughter1[row],
        daughter2=events.daughter2[row],
        p4=p4,
        mass=events.mass[row],
        weight=events.weight[copies.hard_event],
        parton_id=events.parton_id[copies.hard_event],
        parton_x=events.parton_x[copies.hard_event],
    )


def pieces(copies: Copies, size: int) -> Iterator[Copies]:
    """Cut copies into as few nearly equal pieces as have at most a given size.

    Parameters
    ----------
    copies
        Copies.
    size
        Largest number of copies in a piece.

    Yields
    ------
    piece
        Consecutive copies.
    """
    n_pieces = -(-len(copies) // size)
    edges = np.linspace(0, len(copies), n_pieces + 1).astype(int)
    for first, last in itertools.pairwise(edges):
        yield copies[first:last]
