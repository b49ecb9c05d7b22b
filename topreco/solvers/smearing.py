r"""Kinematic reconstruction averaged over the detector response: the CMS standard.

Each event is solved many times. In draw k, the energies of leptons and b jets are multiplied by E_gen/E_reco
from simulation at fixed mass; each of them is rotated by an angle from simulation about a random axis
perpendicular to it; the W masses are drawn; the missing momentum takes the recoil,
MET' = MET − Σ(**p**' − **p**)_T. The solution of the smallest m_tt counts with the weight

.. math:: w_k = P(m'_{ℓ^+ b})\, P(m'_{ℓ^- \bar b}),

and the prediction is the weighted mean of the momenta of t and t̄ over the draws that have one, [1]_ and [2]_.
Draws are not measurements: their spread shows how well the event determines its tops.

The random numbers of an event follow from (run, lumi, event, seed), see `topreco.solvers.random`, so that
results do not depend on chunks, threads or the order of events.

References
----------
.. [1] CMS Collaboration, Eur. Phys. J. C 75 (2015) 542, arXiv:1505.04480.
.. [2] CMS Collaboration, JHEP 02 (2019) 149, arXiv:1811.06625.
"""

import math
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from topreco.core.constants import M_TOP, M_W, PDG_MUON
from topreco.core.errors import TopRecoError
from topreco.core.events import QUANTILE_LEVELS, DileptonEvents
from topreco.solvers import ellipse, sonnenschein
from topreco.solvers.per_event import Event, Floats, Ints, inlined_kernel, kernel, on_threads, rows
from topreco.solvers.random import Keys, event_keys, uniform
from topreco.solvers.response import OBJECTS, Density, DetectorResponse, Table, load_detector_response
from topreco.solvers.solutions import MAX_SOLUTIONS

Bools = NDArray[np.bool_]

Method = Literal["sonnenschein", "ellipse"]
Pairing = Literal["candidates", "all"]

DRAWN_OBSERVABLES = ("m_tt", "pt_top", "pt_antitop", "y_top", "y_antitop", "c_hel")
"""Observables of which the quantiles over the draws are known."""

LEADING_JETS = 7
"""`pairing="all"` tries pairs of this many jets of the highest pT: 42 ordered pairs at most."""
M_LB_MAX = 180.0
"""`pairing="all"` tries pairs with both lepton–jet masses below this, in GeV."""

_N_DRAWN = len(DRAWN_OBSERVABLES)
_LEVELS = QUANTILE_LEVELS
_N_LEVELS = len(QUANTILE_LEVELS)

# Events that are prepared at a time: it bounds the memory.
_CHUNK = 10_000

_JET, _ELECTRON, _MUON = (OBJECTS.index(kind) for kind in ("jet", "electron", "muon"))
# Rows of the objects of a draw; three random numbers each, then one for each W mass.
_LEPTON_PLUS, _LEPTON_MINUS, _B, _BBAR = range(4)
_RANDOM_RATIO, _RANDOM_ANGLE, _RANDOM_AZIMUTH, _PER_OBJECT = 0, 1, 2, 3
_RANDOM_W_PLUS, _RANDOM_W_MINUS = 12, 13
# Kept for each object: a unit vector along it, two across, |p|, E, m².
_ALONG, _ACROSS, _ACROSS_TOO, _SIZE, _ENERGY, _MASS2, _FRAME = 0, 3, 6, 9, 10, 11, 12

_C2, _C4, _C6, _C8, _C10, _C12, _C14 = ((-1.0) ** k / math.factorial(2 * k) for k in range(1, 8))
_S3, _S5, _S7, _S9, _S11, _S13, _S15 = ((-1.0) ** k / math.factorial(2 * k + 1) for k in range(1, 8))


class Smeared(NamedTuple):
    """Tops averaged over draws.

    Attributes
    ----------
    p4
        Four-momenta (E, px, py, pz) of t and t̄ in GeV, shape (n, 2, 4); NaN if no draw has a solution.
    weight
        Sum of the weights of the draws with a solution in 1/GeV², shape (n,).
    n_solved
        Number of draws with a solution and a weight above zero, shape (n,).
    spread
        Weighted standard deviation of p4 over the draws in GeV, shape (n, 2, 4).
    b_candidates
        Index of the jets used with ℓ⁺ and ℓ⁻, −1 where there is none, shape (n, 2).
    quantiles
        Weighted quantiles over the draws at `QUANTILE_LEVELS` of the `DRAWN_OBSERVABLES`, shape (n, 6, 5);
        of shape (n, 0, 5) unless requested.
    momenta
        Momenta (px, py, pz) of t and t̄ in each draw in GeV, NaN where it has no solution, shape
        (n, draws, 2, 3); of shape (n, 0, 2, 3) unless requested.
    log_weight
        Logarithm of the weight of each draw in 1/GeV², −∞ where it has no solution, shape (n, draws); of
        shape (n, 0) unless requested.
    """

    p4: Floats
    weight: Floats
    n_solved: Ints
    spread: Floats
    b_candidates: Ints
    quantiles: Floats
    momenta: Floats
    log_weight: Floats


class _Settings(NamedTuple):
    """Options of `smear_and_solve` for the compiled functions."""

    ellipse: bool
    n_draws: int
    all_pairs: bool
    m_top: float
    m_w: float
    reset_energy: bool
    quantiles: bool
    samples: bool


class _Response(NamedTuple):
    """Detector response as the compiled functions take it: `DetectorResponse` without its description."""

    energy: Table
    angle: Table
    m_lb: Density
    m_w: Table


class _Chunk(NamedTuple):
    """Events as the compiled functions take them."""

    lepton_plus: Floats
    lepton_minus: Floats
    is_muon: Bools
    jets: Floats
    jet_mask: Bools
    jet_tagged: Bools
    b_candidates: Ints
    met: Floats
    keys: Keys


@inlined_kernel
def _bin(edges: Floats, value: float) -> int:
    """Bin of a value, the nearest for values outside and the first for NaN."""
    low, high = 0, len(edges) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if value >= edges[middle]:
            low = middle
        else:
            high = middle
    return low


@kernel
def _cell(table: Table, kind: int, p4: Floats) -> int:
    """Cell of an object of a kind, by its |η| and pT."""
    pt = math.sqrt(p4[1] * p4[1] + p4[2] * p4[2])
    i = _bin(table.abseta_edges[kind], abs(math.asinh(p4[3] / pt)))
    _, n_abseta, n_edges = table.pt_edges.shape
    return (kind * n_abseta + i) * (n_edges - 1) + _bin(table.pt_edges[kind, i], pt)


@inlined_kernel
def _sample(table: Table, cell: int, u: float) -> float:
    """Value below which a cell has probability u, by linear interpolation within bins."""
    i = int(table.guide[cell, int(u * table.guide.shape[1])])
    while u >= table.cumulative[cell, i + 1]:
        i += 1
    return table.edges[cell, i] + table.slope[cell, i] * (u - table.cumulative[cell, i])


@inlined_kernel
def _density(density: Density, value: float) -> float:
    """Height of a histogram, zero outside."""
    low, high = density.edges[0], density.edges[-1]
    if not (low <= value < high):
        return 0.0
    part = int((value - low) / (high - low) * len(density.guide))
    i = int(density.guide[min(part, len(density.guide) - 1)])
    while value >= density.edges[i + 1]:
        i += 1
    return density.values[i]


@inlined_kernel
def _cos_sin(turns: float) -> tuple[float, float]:
    """Cosine and sine of an angle given in turns, to 1e-15; several times faster than the library's."""
    quarter = math.floor(4.0 * turns + 0.5)
    x = 2.0 * math.pi * (turns - 0.25 * quarter)
    x2 = x * x
    # Taylor series for |x| <= π/4.
    cos = 1.0 + x2 * (_C2 + x2 * (_C4 + x2 * (_C6 + x2 * (_C8 + x2 * (_C10 + x2 * (_C12 + x2 * _C14))))))
    sin = x + x * x2 * (_S3 + x2 * (_S5 + x2 * (_S7 + x2 * (_S9 + x2 * (_S11 + x2 * (_S13 + x2 * _S15))))))
    quadrant = int(quarter) & 3
    # Without branches, which a random angle would mispredict.
    swapped = quadrant & 1
    sign_cos = 1.0 - 2.0 * (((quadrant + 1) >> 1) & 1)
    sign_sin = 1.0 - 2.0 * (quadrant >> 1)
    return sign_cos * (sin if swapped else cos), sign_sin * (cos if swapped else sin)


@inlined_kernel
def _pair_mass2(a: Floats, b: Floats) -> float:
    """Squared mass of the sum of two four-momenta, zero where rounding makes it negative."""
    energy, x, y, z = a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]
    return max(energy * energy - (x * x + y * y + z * z), 0.0)


@kernel
def _set_frame(p4: Floats, frame: Floats) -> bool:
    """Axes and size of an object; False if it has no direction."""
    energy, x, y, z = p4[0], p4[1], p4[2], p4[3]
    size = math.sqrt(x * x + y * y + z * z)
    # Conditions are written so that NaN fails them.
    if not (0.0 < size < math.inf and 0.0 < energy < math.inf and x * x + y * y > 0.0):
        return False
    x, y, z = x / size, y / size, z / size
    transverse = math.sqrt(x * x + y * y)
    frame[_ALONG], frame[_ALONG + 1], frame[_ALONG + 2] = x, y, z
    frame[_ACROSS], frame[_ACROSS + 1], frame[_ACROSS + 2] = -y / transverse, x / transverse, 0.0
    frame[_ACROSS_TOO], frame[_ACROSS_TOO + 1] = -z * x / transverse, -z * y / transverse
    frame[_ACROSS_TOO + 2] = transverse
    frame[_SIZE], frame[_ENERGY] = size, energy
    # Leptons stored with 32 bits may have m² of either sign.
    frame[_MASS2] = max((energy - size) * (energy + size), 0.0)
    return True


@inlined_kernel
def _smear(frames: Floats, i: int, ratio: float, angle: float, azimuth: float, p4: Floats) -> None:
    """Energy times a ratio at fixed mass, and direction rotated about a random perpendicular axis.

    The rotation by an angle about an axis perpendicular to the object moves it towards a direction
    perpendicular to both, which for a uniformly random axis has a uniform azimuth, in turns.
    """
    energy = ratio * frames[i, _ENERGY]
    size2 = energy * energy - frames[i, _MASS2]
    # A jet cannot have less energy than its mass: its momentum is scaled instead.
    if not size2 > 0.0:
        size2 = (ratio * frames[i, _SIZE]) ** 2
        energy = math.sqrt(size2 + frames[i, _MASS2])
    size = math.sqrt(size2)
    cos, sin = _cos_sin(angle / (2.0 * math.pi))
    cos_phi, sin_phi = _cos_sin(azimuth)
    along, first, second = size * cos, size * sin * cos_phi, size * sin * sin_phi
    p4[i, 0] = energy
    for k in range(3):
        p4[i, 1 + k] = (
            along * frames[i, _ALONG + k]
            + first * frames[i, _ACROSS + k]
            + second * frames[i, _ACROSS_TOO + k]
        )


@inlined_kernel
def _draw(
    key: np.uint64,
    draw: int,
    nominal: Floats,
    frames: Floats,
    cells: Ints,
    mx: float,
    my: float,
    response: _Response,
    p4: Floats,
) -> tuple[float, float]:
    """Smeared objects of a draw.

    Parameters
    ----------
    key
        Key of the event's random numbers.
    draw
        Number of the draw.
    nominal
        Four-momenta of ℓ⁺, ℓ⁻, b, b̄ in GeV, shape (4, 4).
    frames, cells
        Their axes and cells, from `_prepare`.
    mx, my
        Missing transverse momentum in GeV.
    response
        Detector response.
    p4
        Output: the smeared four-momenta, shape (4, 4).

    Returns
    -------
    mx, my
        Missing transverse momentum with the recoil of the changes.
    """
    for i in range(4):
        slot = i * _PER_OBJECT
        _smear(
            frames,
            i,
            _sample(response.energy, cells[i, 0], uniform(key, draw, slot + _RANDOM_RATIO)),
            _sample(response.angle, cells[i, 1], uniform(key, draw, slot + _RANDOM_ANGLE)),
            uniform(key, draw, slot + _RANDOM_AZIMUTH),
            p4,
        )
        mx -= p4[i, 1] - nominal[i, 1]
        my -= p4[i, 2] - nominal[i, 2]
    return mx, my


@inlined_kernel
def _draw_w_masses(key: np.uint64, draw: int, w_masses: Table) -> tuple[float, float]:
    """Masses of W⁺ and W⁻ of a draw in GeV."""
    return (
        _sample(w_masses, 0, uniform(key, draw, _RANDOM_W_PLUS)),
        _sample(w_masses, 0, uniform(key, draw, _RANDOM_W_MINUS)),
    )


@kernel
def _prepare(p4: Floats, is_muon: Bools, response: _Response, frames: Floats, cells: Ints) -> bool:
    """Frames and cells of ℓ⁺, ℓ⁻, b, b̄; False if one has no direction."""
    for i in range(4):
        if not _set_frame(p4[i], frames[i]):
            return False
        kind = _JET
        if i in (_LEPTON_PLUS, _LEPTON_MINUS):
            kind = _MUON if is_muon[i] else _ELECTRON
        cells[i, 0] = _cell(response.energy, kind, p4[i])
        cells[i, 1] = _cell(response.angle, kind, p4[i])
    return True


@kernel
def _solve_pair(
    nominal: Floats,
    is_muon: Bools,
    mx: float,
    my: float,
    key: np.uint64,
    response: _Response,
    settings: _Settings,
    mean: Floats,
    variance: Floats,
    drawn: Floats,
    kept: Floats,
) -> tuple[float, int]:
    """One event with one pair of jets.

    Parameters
    ----------
    nominal
        Four-momenta of ℓ⁺, ℓ⁻, b, b̄, shape (4, 4).
    is_muon
        True for ℓ⁺ and ℓ⁻ that are muons, shape (2,).
    mx, my
        Missing transverse momentum in GeV.
    key
        Key of the event's random numbers.
    response
        Detector response.
    settings
        Options of `smear_and_solve`.
    mean, variance
        Output: the weighted mean and variance of the tops, shape (2, 4).
    drawn
        Output, if requested: weight and observables of each draw with a solution, shape (draws, 7).
    kept
        Output, if requested: weight and momenta of t and t̄ of each draw, the weight 0 and NaN where it has no
        solution, shape (draws, 7).

    Returns
    -------
    weight
        Sum of weights.
    n_solved
        Number of draws with a solution.
    """
    mean[:] = 0.0
    variance[:] = 0.0
    frames, cells = np.empty((4, _FRAME)), np.empty((4, 2), np.int64)
    p4 = nominal.copy()
    # Rows are taken out of the loop, where each would count references.
    lepton_plus, lepton_minus, b, bbar = p4[_LEPTON_PLUS], p4[_LEPTON_MINUS], p4[_B], p4[_BBAR]
    neutrinos = np.empty((MAX_SOLUTIONS, 2, 4))
    if not _prepare(nominal, is_muon, response, frames, cells):
        return 0.0, 0
    if settings.samples:
        kept[:] = math.nan
        kept[:, 0] = 0.0
    total, n_solved = 0.0, 0
    m_w_plus = m_w_minus = M_W if math.isnan(settings.m_w) else settings.m_w
    draw_w = settings.n_draws > 0 and math.isnan(settings.m_w)
    for draw in range(max(settings.n_draws, 1)):
        x, y = mx, my
        if settings.n_draws > 0:
            x, y = _draw(key, draw, nominal, frames, cells, mx, my, response, p4)
        weight = _density(response.m_lb, math.sqrt(_pair_mass2(lepton_plus, b)))
        weight *= _density(response.m_lb, math.sqrt(_pair_mass2(lepton_minus, bbar)))
        if not weight > 0.0:
            continue
        if draw_w:
            m_w_plus, m_w_minus = _draw_w_masses(key, draw, response.m_w)
        event = Event(
            lepton_plus, lepton_minus, b, bbar, x, y, settings.m_top, settings.m_top, m_w_plus, m_w_minus
        )
        if settings.ellipse:
            count = ellipse.solve_event(event, neutrinos)
        else:
            count = sonnenschein.solve_event(event, neutrinos)
        if count == 0:
            continue
        if settings.quantiles:
            drawn[n_solved, 0] = weight
            _observables(p4, neutrinos, nominal, drawn[n_solved, 1:])
        if settings.samples:
            kept[draw, 0] = weight
            for leg in range(2):
                for k in range(1, 4):
                    kept[draw, 3 * leg + k] = p4[leg, k] + p4[2 + leg, k] + neutrinos[0, leg, k]
        n_solved += 1
        before = total
        total += weight
        share = weight / total
        for leg in range(2):
            for k in range(4):
                # West's update of mean and sum of squares, which does not lose digits.
                step = p4[leg, k] + p4[2 + leg, k] + neutrinos[0, leg, k] - mean[leg, k]
                mean[leg, k] += step * share
                variance[leg, k] += step * step * share * before
    if n_solved == 0:
        return 0.0, 0
    for leg in range(2):
        for k in range(4):
            variance[leg, k] /= total
        if settings.reset_energy:
            size2 = mean[leg, 1] ** 2 + mean[leg, 2] ** 2 + mean[leg, 3] ** 2
            mean[leg, 0] = math.sqrt(size2 + settings.m_top**2)
    return total, n_solved


@kernel
def _observables(p4: Floats, neutrinos: Floats, nominal: Floats, out: Floats) -> None:
    """`DRAWN_OBSERVABLES` of one draw, with the leptons as measured."""
    tops, system = np.empty((2, 4)), np.zeros(4)
    for leg in range(2):
        for k in range(4):
            tops[leg, k] = p4[leg, k] + p4[2 + leg, k] + neutrinos[0, leg, k]
            system[k] += tops[leg, k]
    out[0] = _mass(system)
    for leg in range(2):
        energy, px, py, pz = tops[leg]
        out[1 + leg] = math.sqrt(px**2 + py**2)
        out[3 + leg] = 0.5 * math.log((energy + pz) / (energy - pz))
    direction = np.empty((2, 3))
    top, lepton, frame = np.empty(4), np.empty(4), np.empty(4)
    for leg in range(2):
        # Lepton and top in the tt̄ rest frame, and from there to that of the top: the helicity frame.
        _to_rest_frame(tops[leg], system, top)
        _to_rest_frame(nominal[leg], system, frame)
        _to_rest_frame(frame, top, lepton)
        size = math.sqrt(lepton[1] ** 2 + lepton[2] ** 2 + lepton[3] ** 2)
        for k in range(3):
            direction[leg, k] = lepton[1 + k] / size
    out[5] = direction[0, 0] * direction[1, 0] + direction[0, 1] * direction[1, 1]
    out[5] += direction[0, 2] * direction[1, 2]


@kernel
def _mass(p4: Floats) -> float:
    return math.sqrt(max(p4[0] ** 2 - p4[1] ** 2 - p4[2] ** 2 - p4[3] ** 2, 0.0))


@kernel
def _to_rest_frame(p4: Floats, frame: Floats, out: Floats) -> None:
    """A four-momentum in the rest frame of another one."""
    mass = _mass(frame)
    energy = (p4[0] * frame[0] - p4[1] * frame[1] - p4[2] * frame[2] - p4[3] * frame[3]) / mass
    share = (p4[0] + energy) / (frame[0] + mass)
    out[0] = energy
    for k in range(1, 4):
        out[k] = p4[k] - share * frame[k]


@kernel
def _weighted_quantiles(drawn: Floats, total: float, out: Floats) -> None:
    """Quantiles of each column but the first, which holds the weights."""
    for column in range(_N_DRAWN):
        order = np.argsort(drawn[:, 1 + column])
        level, reached = 0, 0.0
        for position in order:
            reached += drawn[position, 0]
            while level < _N_LEVELS and reached >= _LEVELS[level] * total:
                out[column, level] = drawn[position, 1 + column]
                level += 1
        # Rounding of the sum must not leave one out.
        while level < _N_LEVELS:
            out[column, level] = drawn[order[-1], 1 + column]
            level += 1


@kernel
def _allowed(lepton: Floats, jet: Floats) -> bool:
    """Return True if lepton and jet may come from one top."""
    return _pair_mass2(lepton, jet) < M_LB_MAX**2


@kernel
def _solve_event(i: int, chunk: _Chunk, response: _Response, settings: _Settings, out: Smeared) -> None:
    """One event: fill its place in the result."""
    out.p4[i] = math.nan
    out.spread[i] = math.nan
    out.weight[i] = 0.0
    out.n_solved[i] = 0
    out.b_candidates[i] = chunk.b_candidates[i]
    n_drawn = max(settings.n_draws, 1) if settings.quantiles else 0
    drawn = np.empty((n_drawn, 1 + _N_DRAWN))
    if settings.quantiles:
        out.quantiles[i] = math.nan
    kept = np.empty((out.log_weight.shape[1], 7))
    if settings.samples:
        out.momenta[i] = math.nan
        out.log_weight[i] = -math.inf
    nominal = np.empty((4, 4))
    mean, variance = np.empty((2, 4)), np.empty((2, 4))
    nominal[_LEPTON_PLUS], nominal[_LEPTON_MINUS] = chunk.lepton_plus[i], chunk.lepton_minus[i]
    mx, my = chunk.met[i]
    n_jets = chunk.jets.shape[1]
    for n_tagged in range(2 if settings.all_pairs else 0, -1, -1):
        best = 0.0
        for first in range(min(n_jets, LEADING_JETS) if settings.all_pairs else 1):
            for second in range(min(n_jets, LEADING_JETS) if settings.all_pairs else 1):
                jet, jet_bar = first, second
                if settings.all_pairs:
                    if first == second or not (chunk.jet_mask[i, first] and chunk.jet_mask[i, second]):
                        continue
                    if int(chunk.jet_tagged[i, first]) + int(chunk.jet_tagged[i, second]) != n_tagged:
                        continue
                    if not (
                        _allowed(chunk.lepton_plus[i], chunk.jets[i, first])
                        and _allowed(chunk.lepton_minus[i], chunk.jets[i, second])
                    ):
                        continue
                else:
                    jet, jet_bar = chunk.b_candidates[i]
                    if not (0 <= jet < n_jets and 0 <= jet_bar < n_jets):
                        continue
                nominal[_B], nominal[_BBAR] = chunk.jets[i, jet], chunk.jets[i, jet_bar]
                weight, n_solved = _solve_pair(
                    nominal, chunk.is_muon[i], mx, my, chunk.keys[i],
                    response, settings, mean, variance, drawn, kept,
                )  # fmt: skip
                if weight > best:
                    best = weight
                    out.p4[i] = mean
                    out.spread[i] = np.sqrt(variance)
                    out.weight[i], out.n_solved[i] = weight, n_solved
                    out.b_candidates[i, 0], out.b_candidates[i, 1] = jet, jet_bar
                    if settings.quantiles:
                        _weighted_quantiles(drawn[:n_solved], weight, out.quantiles[i])
                    if settings.samples:
                        out.momenta[i] = kept[:, 1:].copy().reshape((-1, 2, 3))
                        out.log_weight[i] = np.log(kept[:, 0])
        if best > 0.0:
            return


@kernel
def _solve_events(chunk: _Chunk, response: _Response, settings: _Settings, out: Smeared) -> None:
    for i in range(len(chunk.keys)):
        _solve_event(i, chunk, response, settings, out)


@kernel
def _fill_draws(chunk: _Chunk, response: _Response, p4: Floats, met: Floats, m_w: Floats) -> None:
    nominal = np.empty((4, 4))
    frames, cells = np.empty((4, _FRAME)), np.empty((4, 2), np.int64)
    for i in range(len(chunk.keys)):
        jet, jet_bar = chunk.b_candidates[i]
        if not (0 <= jet < chunk.jets.shape[1] and 0 <= jet_bar < chunk.jets.shape[1]):
            continue
        nominal[_LEPTON_PLUS], nominal[_LEPTON_MINUS] = chunk.lepton_plus[i], chunk.lepton_minus[i]
        nominal[_B], nominal[_BBAR] = chunk.jets[i, jet], chunk.jets[i, jet_bar]
        if not _prepare(nominal, chunk.is_muon[i], response, frames, cells):
            continue
        mx, my = chunk.met[i]
        for draw in range(p4.shape[1]):
            met[i, draw] = _draw(chunk.keys[i], draw, nominal, frames, cells, mx, my, response, p4[i, draw])
            m_w[i, draw] = _draw_w_masses(chunk.keys[i], draw, response.m_w)


_shipped = cache(load_detector_response)


def _tables(response: DetectorResponse | None) -> _Response:
    """Detector response for the compiled functions, by default the one that ships with the package."""
    found = _shipped() if response is None else response
    return _Response(found.energy, found.angle, found.m_lb, found.m_w)


class Draws(NamedTuple):
    """The draws that `smear_and_solve` solves.

    Attributes
    ----------
    p4
        Smeared four-momenta (E, px, py, pz) of ℓ⁺, ℓ⁻ and their b candidates in GeV, shape (n, draws, 4, 4).
    met
        Missing transverse momentum with the recoil (px, py) in GeV, shape (n, draws, 2).
    m_w
        Masses of W⁺ and W⁻ in GeV, shape (n, draws, 2).
    """

    p4: Floats
    met: Floats
    m_w: Floats


def smear(
    events: DileptonEvents, response: DetectorResponse | None = None, *, n_draws: int = 100, seed: int = 1
) -> Draws:
    """Smeared objects of events, to inspect what `smear_and_solve` solves with ``pairing="candidates"``.

    Parameters
    ----------
    events
        Selected events.
    response
        Detector response; None for the one that ships with the package.
    n_draws
        Number of draws, 1 or more.
    seed
        Seed of the random numbers, which also depend on run, luminosity block and event.

    Returns
    -------
    draws
        Smeared objects, MET and W masses; NaN for events with absent or unphysical objects.

    Raises
    ------
    TopRecoError
        If `n_draws` is less than 1.
    """
    if n_draws < 1:
        raise TopRecoError(f"smear: n_draws is {n_draws}, expected 1 or more")
    shape = (len(events), n_draws)
    draws = Draws(np.full((*shape, 4, 4), np.nan), np.full((*shape, 2), np.nan), np.full((*shape, 2), np.nan))
    _fill_draws(_chunk(events, seed), _tables(response), *draws)
    return draws


def smear_and_solve(
    events: DileptonEvents,
    response: DetectorResponse | None = None,
    *,
    method: Method = "sonnenschein",
    n_draws: int = 100,
    seed: int = 1,
    pairing: Pairing = "candidates",
    m_top: float = M_TOP,
    m_w: float | None = None,
    reset_energy: bool = True,
    threads: int = 1,
    quantiles: bool = False,
    samples: bool = False,
) -> Smeared:
    """Tops of dileptonic events, averaged over the detector response.

    Parameters
    ----------
    events
        Selected events.
    response
        Detector response; None for the one that ships with the package.
    method
        Solver of the single draw.
    n_draws
        Number of draws. 0 means unsmeared: the nominal objects once, with m_W = 80.4 GeV unless given.
    seed
        Seed of the random numbers, which also depend on run, luminosity block and event.
    pairing
        "candidates" takes the b candidates of the events. "all" tries all ordered pairs of the seven leading
        jets with both lepton–jet masses below 180 GeV, those of two b-tagged jets first, then those of one,
        then of none; the first of these groups that has a solution decides, and in it the pair with the
        largest sum of weights.
    m_top
        Mass of both tops in GeV.
    m_w
        Mass of both W bosons in GeV; None draws each from the histogram.
    reset_energy
        Set the energies of the averaged momenta to the mass `m_top`. If False they are averaged too, and
        the averages have larger masses.
    threads
        Number of threads; the result does not depend on it.
    quantiles
        Find the quantiles of observables over the draws, too.
    samples
        Keep momenta and weight of every draw, too.

    Returns
    -------
    smeared
        Tops, sums of weights, numbers of solved draws, spreads and the jets used. Events with absent or
        unphysical objects have no solution.

    Raises
    ------
    TopRecoError
        If an option has a value that is not allowed.
    """
    _check_options(method=method, pairing=pairing, n_draws=n_draws, m_top=m_top, m_w=m_w)
    settings = _Settings(
        ellipse=method == "ellipse",
        n_draws=n_draws,
        all_pairs=pairing == "all",
        m_top=float(m_top),
        m_w=math.nan if m_w is None else float(m_w),
        reset_energy=reset_energy,
        quantiles=quantiles,
        samples=samples,
    )
    n, n_kept = len(events), max(n_draws, 1) if samples else 0
    out = Smeared(
        np.empty((n, 2, 4)),
        np.empty(n),
        np.empty(n, np.int64),
        np.empty((n, 2, 4)),
        np.empty((n, 2), np.int64),
        np.empty((n, _N_DRAWN if quantiles else 0, _N_LEVELS)),
        np.empty((n, n_kept, 2, 3)),
        np.empty((n, n_kept)),
    )
    tables = _tables(response)

    def solve(part: slice) -> None:
        _solve_events(_chunk(events[part], seed), tables, settings, rows(out, part))

    on_threads("smear_and_solve", n, solve, threads=threads, largest=_CHUNK)
    return out


def _chunk(events: DileptonEvents, seed: int) -> _Chunk:
    """Events as contiguous, writable arrays of one type each, for which the kernels compile once."""

    def array(values: ArrayLike, kind: type) -> Any:
        return np.require(values, kind, ["C", "A", "W"])

    return _Chunk(
        lepton_plus=array(events.lepton_plus, np.float64),
        lepton_minus=array(events.lepton_minus, np.float64),
        is_muon=array(events.lepton_flavour == PDG_MUON, np.bool_),
        jets=array(events.jets, np.float64),
        jet_mask=array(events.jet_mask, np.bool_),
        jet_tagged=array(events.jet_tagged, np.bool_),
        b_candidates=array(events.b_candidates, np.int64),
        met=array(events.met, np.float64),
        keys=event_keys(events.run, events.luminosity_block, events.event, seed),
    )


def _check_options(*, method: str, pairing: str, n_draws: int, m_top: float, m_w: float | None) -> None:
    for name, value, allowed in (
        ("method", method, get_args(Method)),
        ("pairing", pairing, get_args(Pairing)),
    ):
        if value not in allowed:
            raise TopRecoError(f"smear_and_solve: {name} is {value!r}, expected one of {', '.join(allowed)}")
    if n_draws < 0:
        raise TopRecoError(f"smear_and_solve: n_draws is {n_draws}, expected 0 or more")
    for name, mass in (("m_top", m_top), ("m_w", m_w)):
        if mass is not None and not 0.0 < mass < math.inf:
            raise TopRecoError(f"smear_and_solve: {name} is {mass}, expected a positive mass in GeV")
