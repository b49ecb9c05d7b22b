"""Sonnenschein's method with smearing in plain vectorised numpy: the baseline of `bench_smearing`."""

import numpy as np
import numpy_sonnenschein
from numpy.typing import NDArray

from topreco.core.constants import M_TOP, PDG_MUON
from topreco.core.events import DileptonEvents
from topreco.core.fourvector import eta, mass, mass_squared, pt
from topreco.solvers.response import OBJECTS, DetectorResponse, Table

Floats = NDArray[np.float64]


def _bins(edges: Floats, values: Floats) -> NDArray[np.int64]:
    return np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 2)


def _sample(
    rng: np.random.Generator, table: Table, kind: NDArray[np.int64], p4: Floats, draws: int
) -> Floats:
    """Values (n, draws) for objects (n, 4), by inverting the cumulative distribution cell by cell."""
    n_abseta, n_pt = table.pt_edges.shape[1], table.pt_edges.shape[2] - 1
    cell = np.empty(len(p4), np.int64)
    abseta, momentum = np.abs(eta(p4)), pt(p4)
    for k in np.unique(kind):
        i = _bins(table.abseta_edges[k], abseta)
        for j in range(n_abseta):
            here = (kind == k) & (i == j)
            cell[here] = (k * n_abseta + j) * n_pt + _bins(table.pt_edges[k, j], momentum[here])
    values = np.empty((len(p4), draws))
    for c in np.unique(cell):
        here = cell == c
        values[here] = np.interp(rng.random((int(here.sum()), draws)), table.cumulative[c], table.edges[c])
    return values


def _smear(rng: np.random.Generator, p4: Floats, ratio: Floats, angle: Floats) -> Floats:
    """Four-momenta (n, draws, 4) of objects (n, 4) with energies scaled and directions rotated."""
    n, draws = ratio.shape
    size = np.linalg.norm(p4[:, 1:], axis=1, keepdims=True)
    along = p4[:, 1:] / size
    across = np.stack([-along[:, 1], along[:, 0], np.zeros(n)], -1)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    third = np.cross(along, across)
    azimuth = rng.uniform(0, 2 * np.pi, (n, draws))
    energy = ratio * p4[:, :1]
    mass2 = np.maximum(mass_squared(p4), 0.0)[:, None]
    momentum = np.sqrt(np.where(energy**2 > mass2, energy**2 - mass2, (ratio * size) ** 2))
    sideways = momentum * np.sin(angle)
    vector = (
        (momentum * np.cos(angle))[..., None] * along[:, None]
        + (sideways * np.cos(azimuth))[..., None] * across[:, None]
        + (sideways * np.sin(azimuth))[..., None] * third[:, None]
    )
    return np.concatenate([np.sqrt(momentum**2 + mass2)[..., None], vector], -1)


def smear_and_solve(
    events: DileptonEvents, response: DetectorResponse, rng: np.random.Generator, draws: int = 100
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Mean tops (n, 2, 4), their sums of weights (n,) and numbers of solved draws (n,)."""
    n = len(events)
    b = events.b_candidate_p4
    nominal = np.stack([events.lepton_plus, events.lepton_minus, b[:, 0], b[:, 1]], 1)
    lepton_kind = np.where(
        events.lepton_flavour == PDG_MUON, OBJECTS.index("muon"), OBJECTS.index("electron")
    )
    jet = np.full(n, OBJECTS.index("jet"))
    smeared = np.empty((4, n, draws, 4))
    for i, kind in enumerate((*lepton_kind.T, jet, jet)):
        ratio = _sample(rng, response.energy, kind, nominal[:, i], draws)
        angle = _sample(rng, response.angle, kind, nominal[:, i], draws)
        smeared[i] = _smear(rng, nominal[:, i], ratio, angle)
    recoil = (smeared[..., 1:3] - nominal.transpose(1, 0, 2)[:, :, None, 1:3]).sum(0)
    met = events.met[:, None] - recoil
    m_w = np.interp(rng.random((2, n * draws)), response.m_w.cumulative[0], response.m_w.edges[0])
    m_t = np.full(n * draws, M_TOP)
    lepton_plus, lepton_minus, b_plus, b_minus = smeared.reshape(4, n * draws, 4)
    neutrinos, count = numpy_sonnenschein.solve(
        lepton_plus,
        lepton_minus,
        b_plus,
        b_minus,
        met.reshape(-1, 2),
        m_top=m_t,
        m_antitop=m_t,
        m_w_plus=m_w[0],
        m_w_minus=m_w[1],
    )
    weight = np.ones(n * draws)
    for lepton, jets in ((lepton_plus, b_plus), (lepton_minus, b_minus)):
        m_lb = mass(lepton + jets)
        inside = (m_lb >= response.m_lb.edges[0]) & (m_lb < response.m_lb.edges[-1])
        weight *= np.where(inside, response.m_lb.values[_bins(response.m_lb.edges, m_lb)], 0.0)
    weight[count == 0] = 0.0
    tops = np.stack([lepton_plus + b_plus, lepton_minus + b_minus], 1) + neutrinos[:, 0]
    tops = np.where(weight[:, None, None] > 0, tops, 0.0).reshape(n, draws, 2, 4)
    weight = weight.reshape(n, draws)
    total = weight.sum(1)
    with np.errstate(invalid="ignore"):
        mean = (weight[..., None, None] * tops).sum(1) / total[:, None, None]
    mean[..., 0] = np.sqrt((mean[..., 1:] ** 2).sum(-1) + M_TOP**2)
    return mean, total, (weight > 0).sum(1)
