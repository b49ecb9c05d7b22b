"""Summaries of a `Posterior`: values of observables for its samples, means, quantiles and modes of them."""

import math
from collections.abc import Iterable

import numpy as np

from topreco.core.compiled import njit
from topreco.core.events import (
    QUANTILE_LEVELS,
    BoolArray,
    DileptonEvents,
    FloatArray,
    Posterior,
    hashed_uniform,
)
from topreco.core.fourvector import from_three_momentum
from topreco.core.observables import OBSERVABLES, observable_values

_NOISE_SALT = 4
_SMALLEST = 1e-3


def normal_noise(events: DileptonEvents, shape: tuple[int, ...], seed: int) -> FloatArray:
    """Normal numbers of each event, from its key (dataset, run, lumi, event) and the seed alone.

    Parameters
    ----------
    events
        Selected events, n of them.
    shape
        Shape of the numbers of an event, an even number of them; a longer first axis begins with the same.
    seed
        Seed.

    Returns
    -------
    noise
        Shape (n, …), the dots for `shape`.
    """
    pairs = math.prod(shape) // 2
    key = (events.dataset, events.run, events.luminosity_block, events.event)
    repeated = [np.repeat(np.asarray(part).astype(np.uint64), pairs) for part in key]
    index = np.tile(np.arange(pairs, dtype=np.uint64), len(events))
    first, second = (hashed_uniform(_NOISE_SALT + i, seed, *repeated, index) for i in range(2))
    # Of Box and Muller; 1 − u is never 0.
    radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
    noise = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return noise.reshape(len(events), *shape)


def sample_values(posterior: Posterior, leptons: FloatArray, names: Iterable[str]) -> dict[str, FloatArray]:
    """Values of observables for each sample.

    Parameters
    ----------
    posterior
        Samples of n events, k of each.
    leptons
        Four-momenta (E, px, py, pz) in GeV of ℓ⁺ and ℓ⁻, shape (n, 2, 4).
    names
        Observables.

    Returns
    -------
    values
        By name, shape (n, k); NaN where a sample does not exist.
    """
    n, k = posterior.log_weight.shape
    tops = posterior.samples.reshape(n * k, 2, 4).astype(np.float64, copy=False)
    repeated = np.repeat(leptons, k, axis=0)
    system = tops.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = observable_values(names, tops, system, repeated)
    return {name: values.reshape(n, k) for name, values in found.items()}


def sample_mean(values: FloatArray, weight: FloatArray) -> FloatArray:
    """Mean over the samples of each event, NaN without any, shape (n, ...).

    Parameters
    ----------
    values
        Values of the samples, shape (n, k, ...); those without a value do not count.
    weight
        Weights ≥ 0, shape (n, k).
    """
    weight = np.where(_known(values), weight, 0.0)
    total = weight.sum(axis=1)
    extra = (1,) * (values.ndim - 2)
    spread = weight.reshape(*weight.shape, *extra)
    summed = (spread * np.where(spread > 0, values, 0.0)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(summed / total.reshape(-1, *extra))


def observable_mean(name: str, values: FloatArray, weight: FloatArray) -> FloatArray:
    """Mean of an observable over the samples, the value that stands for an event in histograms, shape (n,).

    It is taken in the coordinate in which the response is linear: exp⟨ln x⟩ where residuals are relative
    (masses, pT of a top), else ⟨x⟩. Of all functions of the event this one has the largest correlation with
    the truth in that coordinate, and ⟨x⟩ would have a larger RB by half of the relative variance.

    Parameters
    ----------
    name
        Observable.
    values, weight
        As for `sample_mean`, both of shape (n, k).
    """
    if not OBSERVABLES[name].relative:
        return sample_mean(values, weight)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: FloatArray = np.exp(sample_mean(np.log(np.maximum(values, _SMALLEST)), weight))
    return mean


def sample_quantiles(
    values: FloatArray, weight: FloatArray, levels: Iterable[float] = QUANTILE_LEVELS
) -> FloatArray:
    """Quantiles over the samples of each event, NaN without any, shape (n, levels).

    The i-th sample in rising order stands at the level Wᵢ − wᵢ/2, with Wᵢ the sum of the weights up to it;
    between two samples a quantile is interpolated. For equal weights this is type 5 of Hyndman and Fan [1]_.

    Parameters
    ----------
    values, weight
        As for `sample_mean`, both of shape (n, k).
    levels
        Between 0 and 1.

    References
    ----------
    .. [1] R. J. Hyndman, Y. Fan, Sample quantiles in statistical packages, Am. Stat. 50 (1996) 361.
    """
    ordered, share = _ordered(values, weight)
    counts = share > 0
    last = np.maximum(counts.sum(axis=1) - 1, 0)
    centre = np.cumsum(share, axis=1) - share / 2
    rows = np.arange(len(values))
    found = []
    for level in levels:
        above = np.minimum((counts & (centre < level)).sum(axis=1), last)
        below = np.maximum(above - 1, 0)
        low, high = centre[rows, below], centre[rows, above]
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(high > low, (level - low) / (high - low), 0.0).clip(0, 1)
        found.append(ordered[rows, below] + part * (ordered[rows, above] - ordered[rows, below]))
    return np.where(counts.any(axis=1, keepdims=True), np.stack(found, axis=1), np.nan)


def sample_mode(values: FloatArray, weight: FloatArray) -> FloatArray:
    """Half-sample mode [1]_ over the samples of each event, NaN without any, shape (n,).

    Of the samples, the narrowest interval with at least half of the weight is kept, and so on until two are
    left, whose mean is the mode.

    Parameters
    ----------
    values, weight
        As for `sample_mean`, both of shape (n, k).

    References
    ----------
    .. [1] D. R. Bickel, R. Frühwirth, On a fast, robust estimator of the mode, arXiv:math/0505419.
    """
    ordered, share = _ordered(values, weight)
    return _modes(ordered, share)


@njit(nogil=True)
def _modes(ordered: FloatArray, share: FloatArray) -> FloatArray:
    found = np.full(len(ordered), np.nan)
    for i in range(len(ordered)):
        start, stop = 0, 0
        while stop < share.shape[1] and share[i, stop] > 0:
            stop += 1
        while stop - start > 2:
            half = share[i, start:stop].sum() / 2 * (1 - 1e-12)
            narrowest, best_start, best_stop = np.inf, start, stop
            end, inside = start, 0.0
            for first in range(start, stop):
                while end < stop and (inside < half or end - first < 2):
                    inside += share[i, end]
                    end += 1
                if inside < half or end - first < 2:
                    break
                width = ordered[i, end - 1] - ordered[i, first]
                if width < narrowest:
                    narrowest, best_start, best_stop = width, first, end
                inside -= share[i, first]
            if best_stop - best_start == stop - start:
                break
            start, stop = best_start, best_stop
        if stop > start:
            total = share[i, start:stop].sum()
            found[i] = (share[i, start:stop] * ordered[i, start:stop]).sum() / total
    return found


def mean_tops(posterior: Posterior, m_top: float) -> FloatArray:
    """On-shell tops with the mean three-momenta of the samples, NaN without any, shape (n, 2, 4).

    Parameters
    ----------
    posterior
        Samples of n events.
    m_top
        Mass of the tops in GeV.
    """
    return from_three_momentum(sample_mean(posterior.samples[..., 1:], posterior.weight), m_top)


def _known(values: FloatArray) -> BoolArray:
    finite = np.isfinite(values)
    return np.asarray(finite.reshape(*finite.shape[:2], -1).all(axis=2))


def _ordered(values: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values in rising order and shares of the event's weight, those without weight last, shape (n, k)."""
    weight = np.where(np.isfinite(values), weight, 0.0)
    order = np.argsort(np.where(weight > 0, values, np.inf), axis=1, kind="stable")
    share = np.take_along_axis(weight, order, axis=1)
    total = share.sum(axis=1, keepdims=True)
    return np.take_along_axis(values, order, axis=1), share / np.where(total > 0, total, 1.0)


def effective_samples(posterior: Posterior) -> FloatArray:
    """Effective number of samples (Σw)²/Σw² of each event, 0 without a posterior, shape (n,).

    It falls where a prior leaves the weight to few samples. Their mean has an error as of this many.
    """
    squares = (posterior.weight**2).sum(axis=1)
    with np.errstate(divide="ignore"):
        return np.where(squares > 0, 1 / squares, 0.0)
