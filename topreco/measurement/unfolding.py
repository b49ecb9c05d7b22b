"""Response matrices for unfolding, their purity, stability, acceptance and condition number, and good bins.

Nothing is unfolded here; `docs/UNFOLDING.md` shows how to continue with TUnfold, RooUnfold or a fit. Sums are
of signed weights. A ratio whose denominator is not positive is NaN.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import hist
import numpy as np

from topreco.config import NOMINAL
from topreco.core.errors import TopRecoError
from topreco.core.events import CHANNELS
from topreco.core.statistics import Array, Estimate, bin_starts, efficiency, merge_bins
from topreco.evaluation.histograms import cells, reco_axis, truth_axis
from topreco.evaluation.pairs import Unrolled, bin_ranges, unrolled_of
from topreco.evaluation.responses import responses_of
from topreco.evaluation.summary import ALL_CHANNELS


class Sums(NamedTuple):
    """Sums of weights and of squared weights by bin, under- and overflow included."""

    value: Array
    variance: Array

    def summed(self, axis: int) -> "Sums":
        """Sums over an axis."""
        return Sums(self.value.sum(axis=axis), self.variance.sum(axis=axis))

    def merged(self, fine: Array, coarse: Array, axis: int) -> "Sums":
        """Sums in coarser bins of an axis, given the edges of both."""
        groups = bin_starts(fine, coarse)
        return Sums(merge_bins(self.value, groups, axis), merge_bins(self.variance, groups, axis))

    def to_hist(self, *axes: hist.axis.Variable) -> hist.Hist:
        """Sums as a histogram with these axes."""
        histogram = hist.Hist(*axes, storage=hist.storage.Weight())
        view = histogram.view(flow=True)
        view["value"], view["variance"] = self
        return histogram


@dataclass(frozen=True, eq=False)
class ResponseMatrix:
    """Response matrix of one observable, method, channel and variation, with all events that are not in it.

    There are k truth bins and m reconstructed ones, flow not counted. Purity and stability are those of [1]_,
    the matrix is what TUnfold takes [2]_, and the condition number is that of [3]_.

    Attributes
    ----------
    observable
        Name in `topreco.core.observables.OBSERVABLES`.
    truth_edges, reco_edges
        Edges of the bins, shape (k + 1,) and (m + 1,).
    response
        Events of the phase space that are selected and reconstructed, by truth and reconstructed bin, shape
        (k + 2, m + 2).
    measured
        All events that are selected and reconstructed, shape (m + 2,).
    fakes
        Those of them that do not belong to the phase space, shape (m + 2,).
    not_reconstructed
        Events of the phase space that are selected, but not solved by the method, shape (k + 2,).
    generated
        All events of the phase space, of all channels, shape (k + 2,).
    truth_axes, reco_axes
        Names and edges of the observables of a pair, whose bins are unrolled and have whole numbers as edges;
        empty for one observable.

    References
    ----------
    .. [1] CMS Collaboration, Measurements of tt̄ differential cross sections in proton-proton collisions at
       √s = 13 TeV using events containing two leptons, arXiv:1811.06625.
    .. [2] S. Schmitt, TUnfold, an algorithm for correcting migration effects in high energy physics,
       arXiv:1205.6201.
    .. [3] A. Höcker, V. Kartvelishvili, SVD approach to data unfolding, arXiv:hep-ph/9509307.
    """

    observable: str
    truth_edges: Array
    reco_edges: Array
    response: Sums
    measured: Sums
    fakes: Sums
    not_reconstructed: Sums
    generated: Sums
    truth_axes: Unrolled = ()
    reco_axes: Unrolled = ()

    @property
    def has_truth(self) -> bool:
        """True if there is signal; data and other processes have none."""
        return bool(self.response.variance.any() or self.generated.variance.any())

    @cached_property
    def migration(self) -> Sums | None:
        """`response` with the truth bins on both axes, shape (k + 2, k + 2).

        None if one of their edges is no edge of the reconstructed bins.
        """
        if self.truth_axes != self.reco_axes:
            return self._migration_of_pair()
        if not np.isin(self.truth_edges, self.reco_edges).all():
            return None
        return self.response.merged(self.reco_edges, self.truth_edges, axis=1)

    def _migration_of_pair(self) -> Sums | None:
        """Migration matrix of a pair with finer reconstructed bins."""
        group = np.zeros(1, np.intp)
        for (_, coarse), (_, fine) in zip(self.truth_axes, self.reco_axes, strict=True):
            if not np.isin(coarse, fine).all():
                return None
            place = np.searchsorted(coarse, fine[:-1], side="right") - 1
            outside = (place < 0) | (place >= len(coarse) - 1)
            # −1 is outside: it stays so in whatever bin of the other observable.
            combined = group[:, None] * (len(coarse) - 1) + place
            group = np.where((group[:, None] < 0) | outside, -1, combined).ravel()
        k = len(self.truth_edges) - 1
        target = np.concatenate([[0], np.where(group < 0, k, group) + 1, [k + 1]])
        parts = []
        for part in self.response:
            merged = np.zeros((k + 2, k + 2))
            np.add.at(merged.T, target, part.T)
            parts.append(merged)
        return Sums(*parts)

    @property
    def purity(self) -> Estimate:
        """Purity pᵢ = N(reco i, gen i) / N(reco i) of signal events in the bins of truth, shape (k,)."""
        return self._on_diagonal(axis=0)

    @property
    def stability(self) -> Estimate:
        """Stability sᵢ = N(reco i, gen i) / N(gen i, reconstructed anywhere), shape (k,)."""
        return self._on_diagonal(axis=1)

    @property
    def acceptance(self) -> Estimate:
        """Acceptance times efficiency, N(gen i, reconstructed anywhere) / N(gen i), shape (k,).

        The fraction of the generated events of all channels that are selected in this one and reconstructed.
        The weights of the selection are in the numerator alone.
        """
        return _inner(_ratio(self.response.summed(1), self.generated))

    @property
    def efficiency(self) -> Estimate:
        """Fraction of the selected events of each truth bin that the method reconstructs, shape (k,)."""
        solved, unsolved = self.response.summed(1), self.not_reconstructed
        selected = Sums(solved.value + unsolved.value, solved.variance + unsolved.variance)
        return _inner(_ratio(solved, selected))

    @property
    def fake_fraction(self) -> Estimate:
        """Fraction of the reconstructed events of each bin that are not of the phase space, shape (m,)."""
        return _inner(_ratio(self.fakes, self.measured))

    @property
    def missed(self) -> Sums:
        """Events of the phase space that are not selected or not reconstructed, shape (k + 2,).

        The difference of generated and reconstructed events. Where weights of the selection differ from one,
        its variance Σw²(generated) − Σw²(reconstructed) is an approximation, zero at least.
        """
        solved = self.response.summed(1)
        variance = self.generated.variance - solved.variance
        return Sums(self.generated.value - solved.value, np.maximum(variance, 0.0))

    @property
    def probability(self) -> Array:
        """Probability Pᵢⱼ = N(gen i, reco j) / N(gen i), which multiplies a truth spectrum, (k + 2, m + 2).

        NaN in rows without generated events.
        """
        generated = np.where(self.generated.value > 0, self.generated.value, np.nan)
        return self.response.value / generated[:, None]

    @property
    def condition_number(self) -> float:
        """Condition number κ = σ_max/σ_min of `probability` without flow, from its singular values.

        It bounds by how much an inversion magnifies fluctuations. Infinite where the matrix cannot be
        inverted, as with more truth bins than reconstructed ones; NaN if a truth bin has no events.
        """
        matrix = self.probability[1:-1, 1:-1]
        if not np.isfinite(matrix).all():
            return math.nan
        singular = np.linalg.svd(matrix, compute_uv=False)
        invertible = matrix.shape[0] <= matrix.shape[1]
        tolerance = singular[0] * max(matrix.shape) * np.finfo(float).eps
        return float(singular[0] / singular[-1]) if invertible and singular[-1] > tolerance else math.inf

    def fold(self, generated: Array) -> Array:
        """Reconstructed spectrum that is expected for a truth spectrum, fakes not included.

        Parameters
        ----------
        generated
            Truth spectrum with flow, shape (k + 2,).

        Returns
        -------
        expected
            Shape (m + 2,); NaN if there is something in a bin whose response is unknown.
        """
        generated = np.asarray(generated, float)[:, None]
        return np.where(generated == 0, 0.0, self.probability * generated).sum(axis=0)

    def merged(self, truth_edges: Sequence[float] | Array, reco_edges: Sequence[float] | Array) -> Self:
        """The response matrix in coarser bins.

        Parameters
        ----------
        truth_edges, reco_edges
            Edges, which must be among the present ones. Events outside go to the flow.

        Raises
        ------
        TopRecoError
            If an edge is not among them, or this is the matrix of a pair.
        """
        if self.truth_axes:
            raise TopRecoError(f"{self.observable}: a pair of observables keeps its bins")
        edges = {"truth": np.asarray(truth_edges, float), "reco": np.asarray(reco_edges, float)}
        for axis, present in (("truth", self.truth_edges), ("reco", self.reco_edges)):
            other = edges[axis][~np.isin(edges[axis], present)]
            if other.size:
                raise TopRecoError(
                    f"{self.observable}: {axis} edge {other[0]:g} is none of the histogram's, which are "
                    f"{', '.join(f'{edge:g}' for edge in present)}"
                )
        truth = self.truth_edges, edges["truth"]
        reco = self.reco_edges, edges["reco"]
        return type(self)(
            self.observable,
            edges["truth"],
            edges["reco"],
            self.response.merged(*truth, axis=0).merged(*reco, axis=1),
            self.measured.merged(*reco, axis=0),
            self.fakes.merged(*reco, axis=0),
            self.not_reconstructed.merged(*truth, axis=0),
            self.generated.merged(*truth, axis=0),
        )

    def to_hist(self) -> hist.Hist:
        """`response` as a histogram with the axes truth and reco, flow included."""
        return self.response.to_hist(*self.axes)

    @property
    def axes(self) -> tuple[hist.axis.Variable, hist.axis.Variable]:
        """Axes of histograms, truth and reco."""
        truth = truth_axis(self.observable, self.truth_edges, self.truth_axes)
        return truth, reco_axis(self.observable, self.reco_edges, self.reco_axes)

    @property
    def truth_bins(self) -> list[str]:
        """Ranges of the truth bins as text, k of them."""
        return bin_ranges([edges for _, edges in self.truth_axes] or [self.truth_edges])

    def _on_diagonal(self, axis: int) -> Estimate:
        k = len(self.truth_edges) - 1
        if self.migration is None:
            return Estimate(np.full(k, np.nan), np.full(k, np.nan))
        diagonal = Sums(*(np.diagonal(part) for part in self.migration))
        return _inner(_ratio(diagonal, self.migration.summed(axis)))


def _ratio(part: Sums, whole: Sums) -> Estimate:
    """Fraction of the weight of a part, with its binomial error, see `statistics.efficiency`."""
    return efficiency(whole.value, whole.variance, part.value, part.variance)


def _inner(estimate: Estimate) -> Estimate:
    """Without under- and overflow."""
    return Estimate(estimate.value[1:-1], estimate.error[1:-1])


# ---- reading ---------------------------------------------------------------------------------------------


def read_response(
    histograms: Mapping[str, hist.Hist],
    observable: str,
    *,
    dataset: str,
    method: str,
    variation: str = NOMINAL,
    channel: str = ALL_CHANNELS,
) -> ResponseMatrix:
    """Response matrix of one observable in filled histograms.

    Parameters
    ----------
    histograms
        Filled histograms of `responses.book_responses`, others may be among them.
    observable
        Its name.
    dataset, method, variation
        Categories. Where a variation is not one of the generator, generated events are the nominal ones.
    channel
        "ee", "emu", "mumu" or "all".

    Raises
    ------
    TopRecoError
        If the observable is unknown, or nothing was filled.
    """
    if observable not in responses_of(histograms):
        known = ", ".join(responses_of(histograms)) or "none"
        raise TopRecoError(f"no response matrix of {observable!r} in these histograms, only of: {known}")
    if cells(histograms[f"measured/{observable}"], dataset, method, variation) is None:
        raise TopRecoError(
            f"no events of dataset {dataset!r}, method {method!r} and variation {variation!r} in these "
            "histograms"
        )

    def sums(kind: str) -> Sums:
        found = cells(histograms[f"{kind}/{observable}"], dataset, method, variation)
        if found is None:
            shape = histograms[f"{kind}/{observable}"].axes.extent[4:]
            return Sums(np.zeros(shape), np.zeros(shape))
        of_channel = slice(None) if channel == ALL_CHANNELS else [CHANNELS.index(channel)]
        return Sums(*(np.asarray(found[part])[of_channel].sum(axis=0) for part in ("value", "variance")))

    truth, reco = histograms[f"response/{observable}"].axes[-2:]
    return ResponseMatrix(
        observable,
        truth.edges,
        reco.edges,
        response=sums("response"),
        measured=sums("measured"),
        fakes=sums("fakes"),
        not_reconstructed=sums("not_reconstructed"),
        generated=_generated(histograms[f"generated/{observable}"], dataset, variation),
        truth_axes=unrolled_of(truth),
        reco_axes=unrolled_of(reco),
    )


def _generated(histogram: hist.Hist, dataset: str, variation: str) -> Sums:
    datasets, variations = (list(axis) for axis in histogram.axes[:2])
    view = histogram.view(flow=True)
    zero = np.zeros(histogram.axes[-1].extent)
    if dataset in datasets:
        for name in (variation, NOMINAL):
            if name in variations:
                found = view[datasets.index(dataset), variations.index(name)]
                if found["variance"].any():
                    return Sums(np.array(found["value"]), np.array(found["variance"]))
    return Sums(zero, zero)


def variations_in(
    histograms: Mapping[str, hist.Hist], observable: str, dataset: str, method: str
) -> list[str]:
    """Variations of a dataset and method with events, "nominal" first."""
    measured = histograms[f"measured/{observable}"]
    filled = [v for v in measured.axes["variation"] if _any(cells(measured, dataset, method, v))]
    return sorted(filled, key=lambda name: name != NOMINAL)


def _any(found: Any) -> bool:
    return found is not None and bool(found["variance"].any())


# ---- bins ------------------------------------------------------------------------------------------------


class BinRequirements(NamedTuple):
    """Requirements that every bin must meet.

    Attributes
    ----------
    min_purity, min_stability
        Smallest purity and stability, in [0, 1].
    min_events
        Smallest effective number (Σw)²/Σw² of signal events that are reconstructed in the bin. Without one,
        a search for many bins finds fluctuations.
    reco_bins
        Number of reconstructed bins for each truth bin.
    """

    min_purity: float
    min_stability: float
    min_events: float = 100.0
    reco_bins: int = 2

    def __str__(self) -> str:
        return (
            f"purity ≥ {self.min_purity:g}, stability ≥ {self.min_stability:g} and at least "
            f"{self.min_events:g} events"
        )


def optimise(response: ResponseMatrix, wanted: BinRequirements) -> ResponseMatrix:
    """The response matrix in the largest number of bins that meet requirements.

    Parameters
    ----------
    response
        In fine bins; edges that truth and reconstruction share can become edges of truth bins.
    wanted
        Requirements.

    Returns
    -------
    merged
        The truth bins cover all of the range. Every one is divided into `wanted.reco_bins` reconstructed bins
        of equal numbers of events, as nearly as the fine edges permit.

    Raises
    ------
    TopRecoError
        If not even two bins meet them.
    """
    shared = np.intersect1d(response.truth_edges, response.reco_edges)
    if len(shared) < 3:
        raise TopRecoError(
            f"{response.observable}: truth and reconstruction share {len(shared)} edges, three or more "
            "expected; without edges in the configuration the bins are fine ones"
        )
    migration = response.merged(shared, shared).response
    try:
        edges = optimal_edges(migration, shared, wanted)
    except TopRecoError as error:
        raise TopRecoError(f"{response.observable}: {error}") from None
    reco_edges = _divided(edges, response.reco_edges, response.measured.value[1:-1], wanted.reco_bins)
    return response.merged(edges, reco_edges)


def optimal_edges(migration: Sums, edges: Array, wanted: BinRequirements) -> Array:
    """Edges of the largest number of bins that meet requirements; of several, those with the best worst bin.

    A range of fine bins meets the requirements or not by itself. So the best bins up to an edge are the best
    ones up to an earlier edge and one bin more, and dynamic programming finds them exactly.

    Parameters
    ----------
    migration
        Signal events by truth and reconstructed bin of one fine binning, shape (n + 2, n + 2).
    edges
        Its edges, shape (n + 1,).
    wanted
        Requirements.

    Returns
    -------
    edges
        A subset of the edges, the first and the last included.

    Raises
    ------
    TopRecoError
        If not even two bins meet the requirements.
    """
    quality, events = _quality_of_ranges(migration, wanted)
    allowed = (quality >= 0) & (events >= wanted.min_events)
    n = len(edges) - 1
    # Number of bins and quality of the worst one, up to each edge, and where the last bin begins.
    best = [(0, math.inf, -1)] + [(-1, -math.inf, -1)] * n
    for start, stop in itertools.combinations(range(n + 1), 2):
        if best[start][0] >= 0 and allowed[start, stop]:
            candidate = best[start][0] + 1, min(best[start][1], quality[start, stop]), start
            if candidate[:2] > best[stop][:2]:
                best[stop] = candidate
    if best[n][0] < 2:
        raise TopRecoError(_why_not(quality, events, edges, wanted))
    found = [n]
    while found[-1] > 0:
        found.append(best[found[-1]][2])
    return edges[found[::-1]]


def _quality_of_ranges(migration: Sums, wanted: BinRequirements) -> tuple[Array, Array]:
    """Distance of the worse of purity and stability from its minimum, and effective number of events.

    Both by first and last edge of a range of fine bins, NaN where undefined, shape (n + 1, n + 1).
    """
    n = len(migration.value) - 2
    quality, events = np.full((2, n + 1, n + 1), np.nan)
    inner = migration.value[1:-1, 1:-1]
    reconstructed, generated = migration.summed(0), migration.summed(1)
    for start in range(n):
        # Sums from here on, not differences of sums from the beginning, whose rounding would fill empty bins.
        diagonal = inner[start:, start:].cumsum(axis=0).cumsum(axis=1).diagonal()
        reco, variance, truth = (
            part[1 + start : -1].cumsum()
            for part in (reconstructed.value, reconstructed.variance, generated.value)
        )
        seen = (reco > 0) & (truth > 0) & (variance > 0)
        reco, truth, variance = (np.where(seen, part, np.nan) for part in (reco, truth, variance))
        above = np.minimum(diagonal / reco - wanted.min_purity, diagonal / truth - wanted.min_stability)
        quality[start, start + 1 :] = above
        events[start, start + 1 :] = reco**2 / variance
    return quality, events


def _why_not(quality: Array, events: Array, edges: Array, wanted: BinRequirements) -> str:
    """Message that there are no two bins, with the requirement that they miss and by how much."""
    n = len(edges) - 1
    text = f"no two bins between {edges[0]:g} and {edges[-1]:g} have {wanted}"
    # The worse of two bins that meet at an inner edge; undefined values compare as false.
    margin, fewest = (np.minimum(of[0, 1:n], of[1:n, n]) for of in (quality, events))
    enough = margin[fewest >= wanted.min_events]
    if enough.size:
        return f"{text}; the best two miss purity or stability by {-enough.max():.3g}"
    most = fewest[np.isfinite(fewest)].max(initial=0.0)
    return f"{text}; two bins have at most {most:.0f} events each"


def _divided(edges: Array, fine: Array, counts: Array, parts: int) -> Array:
    """Edges with each bin divided at the fine edges that are closest to equal contents."""
    found = [edges]
    for low, high in itertools.pairwise(edges):
        start, stop = np.searchsorted(fine, [low, high])
        share = np.maximum(counts[start:stop], 0).cumsum()
        if stop - start < 2 or not share[-1] > 0:
            continue
        for part in range(1, parts):
            inner = int(np.abs(share[:-1] / share[-1] - part / parts).argmin())
            found.append(fine[[start + 1 + inner]])
    return np.unique(np.concatenate(found))
