"""Calibration of posteriors: ranks of the truth, their uniformity, expected coverage and proper scores.

A posterior is calibrated if truth and samples of an event cannot be told apart. Then the rank u of the truth
among the samples is uniform [1]_, in all events and in every part of them that is chosen by what was
measured or predicted. Parts that are chosen by the truth are not uniform, however good the posterior.

The momenta of the tops are on axes that the event defines itself: x along the transverse momentum of ℓ⁺, y
across it, on the side of ℓ⁻, and z along the beam. In the laboratory, rotations would average deviations
away.

References
----------
.. [1] S. R. Cook, A. Gelman, D. B. Rubin, Validation of software for Bayesian models using posterior
   quantiles, J. Comput. Graph. Stat. 15 (2006) 675; S. Talts et al., Validating Bayesian inference algorithms
   with simulation-based calibration, arXiv:1804.06788.
.. [2] T. Gneiting, A. E. Raftery, Strictly proper scoring rules, prediction, and estimation, J. Am. Stat.
   Assoc. 102 (2007) 359.
.. [3] C. A. T. Ferro, Fair scores for ensemble forecasts, Q. J. R. Meteorol. Soc. 140 (2014) 1917.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import chi2 as chi2_distribution
from scipy.stats import kstwo

from topreco.core.compiled import njit
from topreco.core.events import QUANTILE_LEVELS, DileptonEvents, Posterior, dataset_id
from topreco.core.fourvector import pt
from topreco.core.posterior import sample_values
from topreco.core.statistics import Array, fraction

COMPONENTS = tuple(f"p{axis}_{leg}" for leg in ("top", "antitop") for axis in "xyz")
"""Components of the three-momenta of t and t̄ on the event's own axes, in GeV."""
FIXED = ("m_top", "m_antitop", "delta_phi_ll")
"""Observables that do not vary among samples, which are on shell and have the measured leptons: no rank."""
COVERAGE_LEVELS = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.68)
"""Contents of the central intervals whose coverage is measured."""
N_BINS = 20
"""Bins of the histograms of ranks."""
SIGNIFICANCE = 0.05
"""Probability of at least one false alarm among all tests of a method."""
_MIN_PER_BIN = 10
"""Effective number of events that a bin of the χ² test needs."""


# ---- axes of the event -----------------------------------------------------------------------------------


def own_axes(events: DileptonEvents) -> Array:
    """Axes across the beam that an event defines itself: x along ℓ⁺, and y such that ℓ⁻ has y ≥ 0.

    Parameters
    ----------
    events
        Selected events.

    Returns
    -------
    axes
        Unit vectors x and y, shape (n, 2, 2).
    """
    x = events.lepton_plus[:, 1:3] / pt(events.lepton_plus)[:, None]
    y = np.stack([-x[:, 1], x[:, 0]], axis=1)
    side = np.where((y * events.lepton_minus[:, 1:3]).sum(axis=1) < 0, -1.0, 1.0)
    return np.stack([x, side[:, None] * y], axis=1)


def on_axes(vectors: Array, axes: Array) -> Array:
    """Vectors on the axes of their events.

    Parameters
    ----------
    vectors
        Vectors (x, y) or (x, y, z) of each event, shape (n, ..., 2) or (n, ..., 3).
    axes
        From `own_axes`.
    """
    across = np.einsum("nij,n...j->n...i", axes, vectors[..., :2])
    return np.concatenate([across, vectors[..., 2:]], axis=-1)


# ---- scores of each event --------------------------------------------------------------------------------


def truth_rank(truth: Array, values: Array, weight: Array, uniform: Array) -> Array:
    r"""Rank u of the truth among the samples of its event, in [0, 1].

    With k samples of equal weight, b of them below the truth and t equal to it, u = (b + U (t + 1))/(k + 1):
    the place of the truth among its equals is drawn, and so is where in its place it lies. If truth and
    samples are draws from one distribution, u is exactly uniform, for any k. For unequal weights with a sum
    of 1, B of it below and T at the truth, and k = 1/Σw² the effective number, it is
    u = (k B + U (k T + 1))/(k + 1): the same for equal weights, else uniform up to terms of order 1/k.

    Parameters
    ----------
    truth
        True value of each event, shape (n,).
    values, weight
        Values and weights of the samples, shape (n, k); those that are not finite do not count.
    uniform
        U in [0, 1) of each event, shape (n,).

    Returns
    -------
    rank
        Shape (n,); NaN without truth or samples.
    """
    share = _shares(values, weight)
    number = _effective(share)
    below = np.where(values < truth[:, None], share, 0.0).sum(axis=1)
    equal = np.where(values == truth[:, None], share, 0.0).sum(axis=1)
    rank = (number * below + uniform * (number * equal + 1)) / (number + 1)
    return np.where(np.isfinite(truth) & (number > 0), np.clip(rank, 0.0, 1.0), np.nan)


def crps(truth: Array, values: Array, weight: Array) -> Array:
    r"""Continuous ranked probability score of samples, in the unit of the observable; smaller is better.

    CRPS = E|X − y| − ½ E|X − X'| (Eq. (21) of [2]_). With the plain means over k samples, the second term
    would be too small, by 1/k of its value; here it is the mean over pairs of different samples,
    ½ Σ wᵢwⱼ|xᵢ − xⱼ| / (1 − Σw²), the fair estimator [3]_. Its mean over events does not depend on k.

    Parameters
    ----------
    truth
        True value of each event, shape (n,).
    values, weight
        Values and weights of the samples, shape (n, k); those that are not finite do not count.

    Returns
    -------
    crps
        Shape (n,); NaN without truth, or with fewer than two samples.
    """
    share = _shares(values, weight)
    known = np.where(share > 0, values, 0.0)
    distance = (share * np.abs(known - truth[:, None])).sum(axis=1)
    order = np.argsort(known, axis=1)
    ordered, share = np.take_along_axis(known, order, axis=1), np.take_along_axis(share, order, axis=1)
    # A sample is above those before it and below those after it.
    balance = 2 * np.cumsum(share, axis=1) - share - share.sum(axis=1, keepdims=True)
    pairs = (share * ordered * balance).sum(axis=1)
    return distance - _per_pair(pairs, share)


def crps_of_quantiles(truth: Array, quantiles: Array) -> Array:
    """CRPS of the distribution that quantiles describe, for methods without samples.

    CRPS = ∫ (F(x) − [x ≥ y])² dx (Eq. (20) of [2]_), with F linear between the quantiles. What lies beyond
    the outermost is put there: of a normal distribution, the mean CRPS is 0.2 % too large.

    Parameters
    ----------
    truth
        True value of each event, shape (n,).
    quantiles
        At `QUANTILE_LEVELS`, rising, shape (n, 5).

    Returns
    -------
    crps
        Shape (n,); NaN where something is unknown.
    """
    score = np.maximum(quantiles[:, 0] - truth, 0) + np.maximum(truth - quantiles[:, -1], 0)
    for i, (a, b) in enumerate(itertools.pairwise(QUANTILE_LEVELS)):
        low, high = quantiles[:, i], quantiles[:, i + 1]
        split = np.clip(truth, low, high)
        with np.errstate(invalid="ignore", divide="ignore"):
            at = np.where(high > low, a + (b - a) * (split - low) / (high - low), a)
        score += (split - low) * (a * a + a * at + at * at) / 3
        score += (high - split) * ((1 - at) ** 2 + (1 - at) * (1 - b) + (1 - b) ** 2) / 3
    return score


def energy_score(truth: Array, values: Array, weight: Array) -> Array:
    """Energy score of samples of vectors, E|X − y| − ½ E|X − X'| (Eq. (22) of [2]_ with β = 1).

    The second mean is over pairs of different samples, as in `crps`.

    Parameters
    ----------
    truth
        True vector of each event, shape (n, d).
    values
        Samples, shape (n, k, d).
    weight
        Weights of the samples, shape (n, k); samples that are not finite do not count.

    Returns
    -------
    score
        Shape (n,), in the unit of the vectors; NaN without truth, or with fewer than two samples.
    """
    share = _shares(np.where(np.isfinite(values).all(axis=2), 0.0, np.nan), weight)
    distance, pairs = _distances(np.asarray(truth, float), np.asarray(values, float), share)
    return distance - _per_pair(pairs, share)


@njit(nogil=True)
def _distances(truth: Array, values: Array, share: Array) -> tuple[Array, Array]:
    """Weighted sums of the distances of samples to the truth, and of all pairs of samples, shape (n,)."""
    n, k, d = values.shape
    to_truth, to_others = np.zeros(n), np.zeros(n)
    for i in range(n):
        for a in range(k):
            if share[i, a] == 0:
                continue
            square = 0.0
            for c in range(d):
                square += (values[i, a, c] - truth[i, c]) ** 2
            to_truth[i] += share[i, a] * math.sqrt(square)
            for b in range(a):
                if share[i, b] > 0:
                    square = 0.0
                    for c in range(d):
                        square += (values[i, a, c] - values[i, b, c]) ** 2
                    to_others[i] += share[i, a] * share[i, b] * math.sqrt(square)
    return to_truth, to_others


def _per_pair(pairs: Array, share: Array) -> Array:
    """½ E|X − X'| from Σ wᵢwⱼ|xᵢ − xⱼ| over i < j; NaN with fewer than two samples."""
    different = 1 - (share**2).sum(axis=1)
    possible = ((share > 0).sum(axis=1) > 1) & (different > 0)
    return np.divide(pairs, different, out=np.full(len(pairs), np.nan), where=possible)


def _shares(values: Array, weight: Array) -> Array:
    """Weights with a sum of 1 in each event, zero where there is no value, shape (n, k)."""
    weight = np.where(np.isfinite(values), weight, 0.0)
    total = weight.sum(axis=1, keepdims=True)
    return weight / np.where(total > 0, total, 1.0)


def _effective(share: Array) -> Array:
    """Effective number of samples 1/Σw², 0 without any, shape (n,)."""
    square = (share**2).sum(axis=1)
    return np.divide(1.0, square, out=np.zeros(len(square)), where=square > 0)


@dataclass(frozen=True)
class PosteriorScores:
    """What a posterior says of each event, columns of shape (n,), NaN where there is none.

    Attributes
    ----------
    number
        Effective number of samples.
    rank
        `truth_rank` of each observable that varies and of each of `COMPONENTS`.
    crps
        `crps` of each observable and of each of `COMPONENTS`.
    energy
        `energy_score` of the six momentum components, in GeV.
    sample
        `COMPONENTS` of one sample, drawn by the weights, shape (n, 6).
    """

    number: Array
    rank: dict[str, Array]
    crps: dict[str, Array]
    energy: Array
    sample: Array

    @classmethod
    def concatenate(cls, parts: "Sequence[PosteriorScores]") -> "PosteriorScores":
        """Scores of the events of several parts, in their order.

        Parameters
        ----------
        parts
            At least one, all of the same quantities.
        """
        return cls._combined(parts, np.concatenate)

    def spread(self, chosen: Array) -> "PosteriorScores":
        """Scores of all events, NaN for those that were not chosen, in single precision.

        Parameters
        ----------
        chosen
            True for the events of these scores, shape (n,).
        """

        def fill(columns: Sequence[Array]) -> Array:
            values = np.full((len(chosen), *columns[0].shape[1:]), np.nan, np.float32)
            values[chosen] = columns[0]
            return values

        return self._combined([self], fill)

    @classmethod
    def _combined(
        cls, parts: "Sequence[PosteriorScores]", combine: Callable[[Sequence[Array]], Array]
    ) -> "PosteriorScores":
        def joined(columns: Sequence[dict[str, Array]]) -> dict[str, Array]:
            return {name: combine([column[name] for column in columns]) for name in columns[0]}

        return cls(
            combine([part.number for part in parts]),
            joined([part.rank for part in parts]),
            joined([part.crps for part in parts]),
            combine([part.energy for part in parts]),
            combine([part.sample for part in parts]),
        )


def true_components(tops: Array, axes: Array) -> dict[str, Array]:
    """`COMPONENTS` of generated tops, each of shape (n,).

    Parameters
    ----------
    tops
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    axes
        From `own_axes`.
    """
    momenta = on_axes(tops[..., 1:], axes).reshape(len(tops), len(COMPONENTS))
    return dict(zip(COMPONENTS, momenta.T, strict=True))


def score_posterior(
    posterior: Posterior, events: DileptonEvents, truth: Mapping[str, Array], names: Iterable[str]
) -> PosteriorScores:
    """Compare the samples of each event with its truth.

    Random numbers are hashes of the event's key, the same for all methods.

    Parameters
    ----------
    posterior
        Samples of the events.
    events
        Selected events.
    truth
        True values of the observables and of `COMPONENTS`, each of shape (n,).
    names
        Observables.
    """
    weight = posterior.weight
    momenta = on_axes(posterior.samples[..., 1:], own_axes(events)).reshape(*weight.shape, len(COMPONENTS))
    values = sample_values(posterior, events.lepton_p4, names)
    values |= {name: momenta[..., i] for i, name in enumerate(COMPONENTS)}
    true = np.stack([truth[name] for name in COMPONENTS], axis=1)
    share = _shares(np.where(np.isfinite(momenta).all(axis=2), 0.0, np.nan), weight)
    # Where the sum of the weights passes U; rounding may leave the sum below it.
    passed = np.cumsum(share, axis=1) > events.uniform(dataset_id("sample"))[:, None]
    chosen = np.where(passed.any(axis=1), passed.argmax(axis=1), share.argmax(axis=1))
    number = _effective(share)
    sample = momenta[np.arange(len(momenta)), chosen]
    return PosteriorScores(
        np.where(number > 0, number, np.nan),
        {
            name: truth_rank(truth[name], of, weight, events.uniform(dataset_id(f"rank of {name}")))
            for name, of in values.items()
            if name not in FIXED
        },
        {name: crps(truth[name], of, weight) for name, of in values.items()},
        energy_score(true, momenta, weight),
        np.where((number > 0)[:, None], sample, np.nan),
    )


# ---- uniformity and coverage -----------------------------------------------------------------------------


class Calibration(NamedTuple):
    """Ranks of the truth in one set of events.

    Attributes
    ----------
    n, n_eff
        Number of events with a rank, and their effective number.
    density, density_error
        Share of the events in each of `N_BINS` equal bins of u, times `N_BINS`: ideally 1; and the error that
        it then has.
    chi2, n_dof, chi2_p
        χ² of the bins against uniformity, with fewer bins for few events; NaN for very few.
    ks, ks_p
        Kolmogorov–Smirnov distance to uniformity, and its probability.
    coverage, coverage_error
        Share of the events whose truth is in the central interval of each of `COVERAGE_LEVELS`.
    """

    n: int
    n_eff: float
    density: tuple[float, ...]
    density_error: float
    chi2: float
    n_dof: int
    chi2_p: float
    ks: float
    ks_p: float
    coverage: tuple[float, ...]
    coverage_error: tuple[float, ...]

    def at(self, level: float) -> tuple[float, float]:
        """Coverage of the central interval of one level, and its error.

        Parameters
        ----------
        level
            One of `COVERAGE_LEVELS`.
        """
        i = COVERAGE_LEVELS.index(level)
        return self.coverage[i], self.coverage_error[i]


def calibrate(rank: Array, weight: Array) -> Calibration:
    """Uniformity and expected coverage of ranks.

    With S the sum of the weights in a bin of probability p, W that of all, χ² = Σ (S − pW)²/(p Σw²), which is
    Pearson's for equal weights. The distance of Kolmogorov and Smirnov has the distribution of (Σw)²/Σw²
    events of equal weight. A central interval of content c contains the truth if |u − ½| ≤ c/2.

    Parameters
    ----------
    rank
        u of each event, shape (n,); those with NaN do not count.
    weight
        Signed event weights, shape (n,).
    """
    known = np.isfinite(rank)
    u, w = rank[known], np.asarray(weight, float)[known]
    total, square = float(w.sum()), float((w**2).sum())
    n_eff = total**2 / square if total > 0 else 0.0
    covered = [fraction(np.abs(u - 0.5) <= level / 2, w) for level in COVERAGE_LEVELS]
    chi2, n_dof, chi2_p, ks, ks_p = math.nan, 0, math.nan, math.nan, math.nan
    density, error = np.full(N_BINS, np.nan), math.nan
    if n_eff > 0:
        density = np.histogram(u, N_BINS, (0, 1), weights=w)[0] / total * N_BINS
        error = math.sqrt((N_BINS - 1) / n_eff)
        bins = next((b for b in (N_BINS, 10, 5, 2) if n_eff >= b * _MIN_PER_BIN), 0)
        if bins:
            content = density.reshape(bins, -1).mean(axis=1)
            chi2, n_dof = float(n_eff * ((content - 1) ** 2).sum() / bins), bins - 1
            chi2_p = float(chi2_distribution.sf(chi2, n_dof))
        ks = _distance(u, w)
        ks_p = float(kstwo.sf(ks, max(round(n_eff), 1)))
    return Calibration(
        len(u),
        n_eff,
        tuple(density.tolist()),
        error,
        chi2,
        n_dof,
        chi2_p,
        ks,
        ks_p,
        tuple(share for share, _ in covered),
        tuple(error for _, error in covered),
    )


def _distance(u: Array, weight: Array) -> float:
    """Largest distance of the cumulative distribution of weighted values from the diagonal."""
    order = np.argsort(u)
    u, cumulative = u[order], np.cumsum(weight[order]) / weight.sum()
    before = np.concatenate([[0.0], cumulative[:-1]])
    return float(max(np.abs(cumulative - u).max(), np.abs(before - u).max()))


def holm(p: Sequence[float]) -> list[float]:
    """Probabilities adjusted for their number by Holm's method, for any dependence among the tests.

    An adjusted p below α rejects its hypothesis, such that the probability of any false rejection is at most
    α: the i-th smallest of m is multiplied by m + 1 − i, and made no smaller than those before it.

    Parameters
    ----------
    p
        Probabilities; NaN is no test.

    Returns
    -------
    adjusted
        In the same order, at most 1; NaN where p is.

    References
    ----------
    .. [1] S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979) 65.
    """
    values = np.asarray(p, float)
    adjusted = np.full(len(values), np.nan)
    order = np.argsort(values)[: np.isfinite(values).sum()]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


class Examined(NamedTuple):
    """Calibration of one observable, of all events and of parts of them.

    Attributes
    ----------
    overall
        Calibration of all events.
    p
        Smaller one of the probabilities of its two tests, adjusted for the number of tests of the method.
    regions
        Calibration of parts of the events, by kind and name of the part.
    region_p, region
        Smallest adjusted probability among those, and where; NaN and empty without any.
    """

    overall: Calibration
    p: float
    regions: dict[str, dict[str, Calibration]]
    region_p: float
    region: str


def examine_ranks(
    ranks: Mapping[str, Array], weight: Array, regions: Sequence[tuple[str, str, Array]]
) -> dict[str, Examined]:
    """Calibration of several quantities, their probabilities adjusted for the number of all tests.

    Parameters
    ----------
    ranks
        u of each event by quantity, shape (n,).
    weight
        Signed event weights, shape (n,).
    regions
        Kind, name and events, shape (n,), of parts of the events that are chosen by what is measured or
        predicted.
    """
    sets = [("", "", np.ones(len(weight), bool)), *regions]
    found = {
        (name, i): calibrate(rank[where], weight[where])
        for name, rank in ranks.items()
        for i, (_, _, where) in enumerate(sets)
    }
    p = np.array(holm([p for of in found.values() for p in (of.chi2_p, of.ks_p)])).reshape(-1, 2)
    # Infinite where there is no test, so that any other is smaller.
    smallest = np.where(np.isfinite(p), p, np.inf).min(axis=1)
    adjusted = dict(zip(found, smallest.tolist(), strict=True))
    examined = {}
    for name in ranks:
        parts: dict[str, dict[str, Calibration]] = {}
        for i, (kind, region, _) in enumerate(sets[1:], 1):
            parts.setdefault(kind, {})[region] = found[name, i]
        worst = min(((adjusted[name, i], i) for i in range(1, len(sets))), default=(math.inf, 0))[1]
        examined[name] = Examined(
            found[name, 0],
            _finite(adjusted[name, 0]),
            parts,
            _finite(adjusted[name, worst]) if worst else math.nan,
            " ".join(sets[worst][:2]).strip(),
        )
    return examined


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


# ---- means of scores -------------------------------------------------------------------------------------


class Mean(NamedTuple):
    """Weighted mean over events with its standard error, and the number of events."""

    n: int
    mean: float
    mean_error: float


class Scores(NamedTuple):
    """Mean scores of one quantity.

    Attributes
    ----------
    means
        By method and source of the score.
    differences
        First minus second, by "first − second", over the events for which both have one; the error is that of
        the paired difference.
    """

    means: dict[str, Mean]
    differences: dict[str, Mean]


def mean_score(score: Array, weight: Array) -> Mean:
    """Mean m = Σws/Σw of a score, with the variance Σ w²(s − m)²/(Σw)².

    Parameters
    ----------
    score
        Score of each event, shape (n,); those with NaN do not count.
    weight
        Signed event weights, shape (n,).
    """
    known = np.isfinite(score)
    s, w = score[known], np.asarray(weight, float)[known]
    total = float(w.sum())
    if not total > 0:
        return Mean(len(s), math.nan, math.nan)
    mean = float((w * s).sum()) / total
    error = math.sqrt(float((w**2 * (s - mean) ** 2).sum())) / total if len(s) > 1 else math.nan
    return Mean(len(s), mean, error)


def compare_scores(columns: Mapping[str, Array], weight: Array) -> Scores:
    """Mean scores, and their differences over common events.

    Parameters
    ----------
    columns
        Score of each event by method and source, shape (n,).
    weight
        Signed event weights, shape (n,).
    """
    return Scores(
        {name: mean_score(column, weight) for name, column in columns.items()},
        {
            f"{a} − {b}": mean_score(columns[a] - columns[b], weight)
            for a, b in itertools.combinations(columns, 2)
        },
    )
