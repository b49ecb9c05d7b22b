"""Two humps in the samples of an event, and b jets, W bosons and neutrinos to go with them.

A dileptonic event often has two solutions: the neutrinos can share the missing momentum in two ways, or the b
jets can be exchanged. The mean of the samples may then lie where there is none of them.
"""

from dataclasses import dataclass

import numpy as np

from topreco.core.compiled import njit
from topreco.core.constants import M_W
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, FloatArray, IntArray, Posterior
from topreco.core.fourvector import dot, from_three_momentum, mass, mass_squared

MIN_PROBABILITY = 0.1
"""Smallest probability of a hump: a few samples far away are a tail."""

_STEPS = 30
_MIN_NUMBER = 16 * (1 - 1e-9)
_CHUNK = 500
"""Events at a time: every pair of twelve jets for 64 samples takes 0.1 MB per event."""


@dataclass(frozen=True, eq=False)
class Humps:
    """The two best clusters of the samples of n events; see `two_humps`.

    Attributes
    ----------
    two
        The event has two humps, shape (n,).
    separation
        Distance of the clusters over their width, shape (n,); NaN with fewer than four samples.
    probability
        Weight of the clusters, the larger one first, shape (n, 2).
    cluster
        The cluster of each sample, 0 or 1, −1 for samples without weight, shape (n, k).
    """

    two: BoolArray
    separation: FloatArray
    probability: FloatArray
    cluster: IntArray


def two_humps(values: FloatArray, weight: FloatArray, *, threshold: float | None = None) -> Humps:
    """Events whose samples form two humps.

    The samples are divided in two clusters with the smallest sum of squares about their means (two-means,
    begun at the mean along the principal axis), and projected on the line between these means. With the means
    μ and the standard deviations σ of the two clusters there, the separation [1]_ is

        D = √2 |μ₁ − μ₂| / √(σ₁² + σ₂²).

    There are two humps if D exceeds a threshold and the smaller one has a probability of at least
    `MIN_PROBABILITY`. Dividing a uniform distribution gives D = 2√3, a normal one 2.6. The default threshold

        2√3 (1 + 2/√N + 6/N),    N = (Σw)²/Σw²,

    4.65 for 64 samples of equal weight, is passed by at most 1 % of events whose samples are uniform, in an
    interval, in a cube or along one of six axes, and by fewer if they are normal; calibrated for N from 16 to
    256. Exponential tails pass it as often, but more often below N = 32. Below N = 16 it is infinite.

    Parameters
    ----------
    values
        Values of an observable, shape (n, k), or coordinates such as the six momenta, shape (n, k, d).
    weight
        Weights of the samples, shape (n, k).
    threshold
        Smallest D; by default as above.

    References
    ----------
    .. [1] K. M. Ashman, C. M. Bird, S. E. Zepf, Detecting bimodality in astronomical datasets,
       arXiv:astro-ph/9408030.
    """
    points = values[..., None] if values.ndim == 2 else values
    weight = np.where(np.isfinite(points).all(axis=2), weight, 0.0)
    clean = np.where(weight[..., None] > 0, points, 0.0).astype(np.float64)
    cluster = _divided(clean, weight.astype(np.float64))
    total = np.maximum(weight.sum(axis=1), np.finfo(float).tiny)
    share = np.stack([(weight * (cluster == i)).sum(axis=1) / total for i in (0, 1)], axis=1)
    swapped = share[:, 1] > share[:, 0]
    cluster = np.where(swapped[:, None] & (cluster >= 0), 1 - cluster, cluster)
    share = np.where(swapped[:, None], share[:, ::-1], share)
    separation = _separation(clean, weight, cluster)
    limit = _limit(weight) if threshold is None else threshold
    # A comparison with NaN is False.
    two = (separation > limit) & (share[:, 1] >= MIN_PROBABILITY)
    return Humps(two, separation, share, cluster)


def _limit(weight: FloatArray) -> FloatArray:
    squares = (weight**2).sum(axis=1)
    number = weight.sum(axis=1) ** 2 / np.where(squares > 0, squares, np.inf)
    with np.errstate(divide="ignore"):
        limit = 2 * np.sqrt(3.0) * (1 + 2 / np.sqrt(number) + 6 / number)
    return np.where(number < _MIN_NUMBER, np.inf, limit)


def two_solutions(posterior: Posterior, *, threshold: float | None = None) -> tuple[Humps, FloatArray]:
    """Humps in the six momenta of t and t̄, and both solutions.

    Parameters
    ----------
    posterior
        Samples of n events.
    threshold
        As of `two_humps`.

    Returns
    -------
    humps
        Their probabilities are those of the solutions.
    p4
        On-shell tops with the mean three-momenta of each cluster in GeV, the more probable one first, shape
        (n, 2, 2, 4): event, solution, top. Without two humps the first is the mean of all samples and the
        second NaN.
    """
    n, k = posterior.log_weight.shape
    weight = posterior.weight
    momenta = posterior.samples[..., 1:]
    humps = two_humps(momenta.reshape(n, k, 6), weight, threshold=threshold)
    exists = (weight > 0)[..., None, None]
    with np.errstate(invalid="ignore"):
        masses = np.where(exists[..., 0], mass(posterior.samples), 0.0)
    solutions = []
    for i in (0, 1):
        inside = np.where(humps.two[:, None], humps.cluster == i, i == 0) * weight
        total = inside.sum(axis=1)
        inside = inside / np.where(total > 0, total, np.nan)[:, None]
        mean = (inside[..., None, None] * np.where(exists, momenta, 0.0)).sum(axis=1)
        solutions.append(from_three_momentum(mean, (inside[..., None] * masses).sum(axis=1)))
    return humps, np.stack(solutions, axis=1)


@njit(nogil=True)
def _divided(points: FloatArray, weight: FloatArray) -> IntArray:
    """Cluster of each sample by two-means, −1 without weight."""
    n, k, d = points.shape
    cluster = np.full((n, k), -1)
    for i in range(n):
        total = weight[i].sum()
        if not total > 0:
            continue
        mean, matrix = np.zeros(d), np.zeros((d, d))
        for j in range(k):
            mean += weight[i, j] / total * points[i, j]
        for j in range(k):
            for a in range(d):
                for b in range(d):
                    matrix[a, b] += weight[i, j] * (points[i, j, a] - mean[a]) * (points[i, j, b] - mean[b])
        axis = np.linalg.eigh(matrix)[1][:, d - 1].copy()
        for j in range(k):
            if weight[i, j] > 0:
                cluster[i, j] = 1 if (axis * (points[i, j] - mean)).sum() > 0 else 0
        for _ in range(_STEPS):
            centre, sums = np.zeros((2, d)), np.zeros(2)
            for j in range(k):
                if cluster[i, j] >= 0:
                    sums[cluster[i, j]] += weight[i, j]
                    centre[cluster[i, j]] += weight[i, j] * points[i, j]
            if sums.min() <= 0:
                break
            centre[0] /= sums[0]
            centre[1] /= sums[1]
            changed = False
            for j in range(k):
                if cluster[i, j] >= 0:
                    first = ((points[i, j] - centre[0]) ** 2).sum()
                    nearest = 1 if ((points[i, j] - centre[1]) ** 2).sum() < first else 0
                    changed = changed or nearest != cluster[i, j]
                    cluster[i, j] = nearest
            if not changed:
                break
    return cluster


def _separation(points: FloatArray, weight: FloatArray, cluster: IntArray) -> FloatArray:
    """Ashman's D along the line between the means of the clusters, shape (n,)."""
    inside = np.stack([np.where(cluster == i, weight, 0.0) for i in (0, 1)])
    with np.errstate(invalid="ignore", divide="ignore"):
        inside = inside / inside.sum(axis=2, keepdims=True)
        mean = np.einsum("cnk,nkd->cnd", inside, points)
        line = mean[1] - mean[0]
        distance = np.sqrt((line**2).sum(axis=1))
        along = np.einsum("nkd,nd->nk", points, line) / distance[:, None]
        centre = (inside * along).sum(axis=2)
        variance = (inside * (along - centre[..., None]) ** 2).sum(axis=2).sum(axis=0)
        found = np.sqrt(2.0) * distance / np.sqrt(variance)
    return np.where((weight > 0).sum(axis=1) >= 4, found, np.nan)


# ---- decay products --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Assignment:
    """Which jets are the b quarks, by the samples of n events with J jets.

    Attributes
    ----------
    probability
        Probability that jet i is the b of the top and jet j that of the antitop, shape (n, J, J); the sum is
        1, or 0 in an event with fewer than two jets or without samples.
    b
        Indices of the most probable pair, shape (n, 2); −1 without one.
    """

    probability: FloatArray
    b: IntArray


def assign_b(posterior: Posterior, leptons: FloatArray, jets: FloatArray, allowed: BoolArray) -> Assignment:
    """Pairs of jets that fit the samples best, and their probabilities.

    For a sample t, a lepton ℓ and a jet b the energy scale s of the jet follows from (t − s b)² = m_W². Then
    W = t − s b leaves the neutrino a mass, m_ν² = (W − ℓ)², which should be 0. The pair of jets with the
    smallest sum over both legs of

        χ² = (ln s / 0.2)² + (m_ν² / (m_W²/2))²

    is that of the sample; the weight of the samples of each pair is its probability. 0.2 is the spread of
    ln s of jets in simulation; m_W²/2 is wide, so that s decides unless the neutrino is far off its mass.
    Nothing was tuned.

    Parameters
    ----------
    posterior
        Samples of n events.
    leptons
        Four-momenta (E, px, py, pz) in GeV of ℓ⁺ and ℓ⁻, shape (n, 2, 4).
    jets
        Four-momenta in GeV, shape (n, J, 4).
    allowed
        Jets that may be b, such as `DileptonEvents.jet_mask`, or the tagged ones; shape (n, J).
    """
    n = len(posterior)
    number = jets.shape[1]
    if allowed.shape != (n, number) or leptons.shape != (n, 2, 4):
        raise TopRecoError(
            f"assign_b: leptons {leptons.shape} and allowed jets {allowed.shape} found, {(n, 2, 4)} and "
            f"{(n, number)} expected"
        )
    parts = [slice(start, start + _CHUNK) for start in range(0, n, _CHUNK)] or [slice(0)]
    probability = np.concatenate([_pairs(posterior[i], leptons[i], jets[i], allowed[i]) for i in parts])
    b = np.stack(np.unravel_index(probability.argmax(axis=1), (number, number)), axis=1)
    found = probability.any(axis=1, keepdims=True)
    return Assignment(probability.reshape(n, number, number), np.where(found, b, -1))


def _pairs(posterior: Posterior, leptons: FloatArray, jets: FloatArray, allowed: BoolArray) -> FloatArray:
    """Probability of each ordered pair of jets, shape (n, J²)."""
    n, k = posterior.log_weight.shape
    number = jets.shape[1]
    weight = posterior.weight
    top = np.where((weight > 0)[..., None, None], posterior.samples, 0.0)[:, :, :, None]
    chi2 = np.full((n, k, 2, number), np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = _scale(top, jets[:, None, None])
        neutrino = top - scale[..., None] * jets[:, None, None] - leptons[:, None, :, None]
        found = (np.log(scale) / 0.2) ** 2 + (mass_squared(neutrino) / (M_W**2 / 2)) ** 2
    usable = allowed[:, None, None] & np.isfinite(found)
    chi2[usable] = found[usable]
    pair = chi2[:, :, 0, :, None] + chi2[:, :, 1, None, :]
    pair[..., np.arange(number), np.arange(number)] = np.inf
    best = pair.reshape(n, k, -1).argmin(axis=2)
    exists = np.isfinite(pair.reshape(n, k, -1).min(axis=2)) & (weight > 0)
    probability = np.zeros((n, number * number))
    np.add.at(probability, (np.arange(n)[:, None] + 0 * best, best), np.where(exists, weight, 0.0))
    total = probability.sum(axis=1, keepdims=True)
    return np.divide(probability, total, out=np.zeros_like(probability), where=total > 0)


def subtract_decay(tops: FloatArray, leptons: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """W bosons and neutrinos of tops by subtraction, W = t − s b and ν = W − ℓ, with s as in `assign_b`.

    Parameters
    ----------
    tops, leptons, b
        Four-momenta (E, px, py, pz) in GeV of t and t̄, of ℓ⁺ and ℓ⁻, and of the b jets, shape (..., 2, 4).

    Returns
    -------
    w, neutrinos
        Shape (..., 2, 4); W bosons have their mass, neutrinos have none only if lepton, jet and top agree.
        NaN where no scale gives the mass of the W.
    """
    w = tops - _scale(tops, b)[..., None] * b
    return w, w - leptons


def _scale(top: FloatArray, b: FloatArray) -> FloatArray:
    """Factor of the four-momentum of a jet with which t − s b has the mass of a W boson; NaN without one."""
    product, jet, rest = dot(top, b), mass_squared(b), mass_squared(top) - M_W**2
    with np.errstate(invalid="ignore", divide="ignore"):
        # The smaller root of s² m_b² − 2 s t·b + m_t² − m_W² = 0, in a form that holds for m_b → 0 too.
        found = rest / (product + np.sqrt(product**2 - rest * jet))
        return np.where(found > 0, found, np.nan)
