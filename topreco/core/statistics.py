r"""Bias, resolution, widths, shrinkage and migration, with statistical errors.

Everything is a pure function of sums that merge by addition. With p the prediction, t the truth, w the signed
event weight and r the residual, (p − t)/t or p − t, the sums per bin are those of `MOMENTS`. Their names are
their formulas: ``"wwrr"`` is Σ w² r², and u and v are truth and prediction in the coordinate in which the
response is linear (`response_coordinate`), so ``"wuv"`` is Σ w u v.

Errors follow from the influence function ψ of a statistic, its derivative with respect to the weight of an
event: when every event is an independent Poisson count of weight w, the variance is Σ w² ψ² [1]_. That agrees
with the bootstrap over events to first order, and holds for negative weights.

A statistic that is undefined (no events, a sum of weights that is not positive, a negative variance) is NaN.

References
----------
.. [1] G. Bohm and G. Zech, Statistics of weighted Poisson events and its applications, arXiv:1309.1287.
.. [2] H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., Wiley 2003, chapter 10.
.. [3] M. G. Kendall and A. Stuart, The Advanced Theory of Statistics, vol. 1, section 3.18.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

QUANTILE_LOW = 0.15865525393145707
"""Φ(−1): lower end of the central 68 % interval."""
QUANTILE_HIGH = 1 - QUANTILE_LOW

MOMENTS: tuple[str, ...] = (
    *("n", "w", "ww", "wr", "wrr", "wwr", "wwrr", "wwrrr", "wwrrrr"),
    *("w" + "u" * i + "v" * (order - i) for order in (1, 2) for i in range(order, -1, -1)),
    *("ww" + "u" * i + "v" * (order - i) for order in (1, 2, 3, 4) for i in range(order, -1, -1)),
)
"""Sums from which all metrics but the quantiles follow; a name is the product that is summed, n counts."""

# Sums of squared weights are needed for errors only.
_VALUE_MOMENTS = tuple(name for name in MOMENTS if not name.startswith("ww"))


class Estimate(NamedTuple):
    """A value and its statistical standard error, arrays of one shape."""

    value: Array
    error: Array


class Metrics(NamedTuple):
    """Quality of the reconstruction of one observable in one set of events.

    Attributes
    ----------
    n, sumw, n_eff
        Number, sum of weights and effective number (Σw)²/Σw² of the events with prediction and truth.
    rb, res
        Mean and standard deviation of the residual.
    median, width68
        Median and half-width of the central 68 % interval of the residual.
    correlation, slope
        Correlation ρ of prediction and truth, and slope cov(p, t)/var(t) of the response; of logarithms for
        observables whose residual is relative.
    rms_linearised, width68_linearised
        Standard deviation and 68 % half-width of the residual about the response line divided by its slope:
        what an unfolding feels, immune to shrinkage toward the mean.
    efficiency
        Fraction of the selected events for which the method gives a value.

    Each but the first three is followed by its standard error. Undefined values are NaN.
    """

    n: int
    sumw: float
    n_eff: float
    rb: float
    rb_error: float
    res: float
    res_error: float
    median: float
    median_error: float
    width68: float
    width68_error: float
    correlation: float
    correlation_error: float
    slope: float
    slope_error: float
    rms_linearised: float
    rms_linearised_error: float
    width68_linearised: float
    width68_linearised_error: float
    efficiency: float
    efficiency_error: float


class MetricValues(NamedTuple):
    """Metrics of one observable without their errors.

    Attributes
    ----------
    rb, res
        Mean and standard deviation of the residual, as in `Metrics`.
    rms
        Root mean square of the residual, √(RB² + Res²).
    correlation, slope
        Correlation of prediction and truth and slope of the response, as in `Metrics`.
    efficiency
        Fraction of the events with a prediction, as in `Metrics`.
    """

    rb: float
    res: float
    rms: float
    correlation: float
    slope: float
    efficiency: float


# ---- sums ------------------------------------------------------------------------------------------------


def response_coordinate(values: Array, *, relative: bool, reference: float) -> Array:
    """Coordinate in which response, correlation and slope are computed.

    Parameters
    ----------
    values
        Values of an observable, shape (n,); positive if relative.
    relative
        True if the observable's residual is relative: the coordinate is ln(x/reference), else x − reference.
    reference
        Any value within the distribution. It cancels in every metric, but keeps the fourth powers accurate.
    """
    return np.log(values / reference) if relative else values - reference


def event_moments(
    residual: Array, truth: Array, pred: Array, weight: Array, names: Sequence[str] = MOMENTS
) -> Iterator[tuple[str, Array]]:
    """Moments by name, each with the contributions of the events to it.

    Parameters
    ----------
    residual
        Residual of each event, shape (n,).
    truth, pred
        True and predicted value in the response coordinate, shape (n,).
    weight
        Signed event weight, shape (n,).
    names
        Moments to compute.
    """
    factors = {"w": weight, "r": residual, "u": truth, "v": pred}
    products = {"n": np.ones_like(weight), **factors}
    for name in names:
        # From left to right, so that every beginning is a product that others share.
        for end in range(2, len(name) + 1):
            if name[:end] not in products:
                products[name[:end]] = products[name[: end - 1]] * factors[name[end - 1]]
        yield name, products[name]


def _divide(numerator: Any, denominator: Any) -> Array:
    """Quotient, NaN where the denominator is zero."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=(denominator != 0))


def _root(square: Any) -> Array:
    """Square root, NaN where negative."""
    square = np.asarray(square, float)
    return np.sqrt(np.where(square >= 0, square, np.nan))


def _norm(moments: Mapping[str, Array]) -> Array:
    """Σw, NaN where it is not positive and no average exists."""
    w = np.asarray(moments["w"], float)
    return np.where(w > 0, w, np.nan)


def _central(second: Array, product: Array) -> Array:
    """⟨xy⟩ − ⟨x⟩⟨y⟩ with the rounding of equal terms taken as zero."""
    difference = second - product
    return np.where(np.abs(difference) <= 1e-13 * np.abs(second), 0.0, difference)


def _estimate(moments: Mapping[str, Array], value: Array, variance: Array) -> Estimate:
    """Estimate whose error is undefined below two events."""
    return Estimate(value, np.where(np.asarray(moments["n"]) >= 2, _root(variance), np.nan))


def effective_number(moments: Mapping[str, Array]) -> Array:
    """Effective number of events (Σw)²/Σw² of the sums "w" and "ww", shape of the sums."""
    return _divide(np.asarray(moments["w"], float) ** 2, moments["ww"])


# ---- bias and resolution ---------------------------------------------------------------------------------


def rb(moments: Mapping[str, Array]) -> Estimate:
    """Bias RB = Σwr/Σw, the mean residual.

    Its variance is Σ w²(r − RB)²/(Σw)².

    Parameters
    ----------
    moments
        Sums by name, of any one shape.
    """
    w = _norm(moments)
    mean = moments["wr"] / w
    return _estimate(moments, mean, _central_r(moments, mean)[2] / w**2)


def res(moments: Mapping[str, Array]) -> Estimate:
    """Resolution Res = √(Σwr²/Σw − RB²), the standard deviation of the residual.

    Its variance is Σ w²[(r − RB)² − Res²]²/(2 Res Σw)².

    Parameters
    ----------
    moments
        Sums by name, of any one shape.
    """
    w, mean, square, spread = _spread(moments)
    c = _central_r(moments, mean)
    influence = c[4] - 2 * square * c[2] + square**2 * c[0]
    return _estimate(moments, spread, _divide(influence, 4 * square * w**2))


def _spread(moments: Mapping[str, Array]) -> tuple[Array, Array, Array, Array]:
    """Σw, and mean, variance and standard deviation of the residual."""
    w = _norm(moments)
    mean = moments["wr"] / w
    square = _central(moments["wrr"] / w, mean**2)
    # One event has no spread: zero would be a number made up.
    return w, mean, square, np.where(np.asarray(moments["n"]) >= 2, _root(square), np.nan)


def _central_r(moments: Mapping[str, Array], mean: Array) -> list[Array]:
    """Σ w²(r − mean)^k for k from 0 to 4."""
    raw = [np.asarray(moments["ww" + "r" * k], float) for k in range(5)]
    central = [
        sum((math.comb(k, a) * (-mean) ** (k - a) * raw[a] for a in range(k + 1)), start=np.zeros(()))
        for k in range(5)
    ]
    # Even powers cannot be negative, except by rounding.
    return [np.where(c < 0, 0.0, c) if k % 2 == 0 else c for k, c in enumerate(central)]


# ---- response: correlation, slope, linearised width ------------------------------------------------------


class Response:
    """Moments of truth u and prediction v: Σw, means, variances and covariance.

    Parameters
    ----------
    moments
        Sums by name, of any one shape.
    """

    def __init__(self, moments: Mapping[str, Array]) -> None:
        self.moments = moments
        self._ww: dict[tuple[int, int], Array] = {}
        self.norm = w = _norm(moments)
        self.u, self.v = u, v = moments["wu"] / w, moments["wv"] / w
        self.var_u = _central(moments["wuu"] / w, u * u)
        self.cov = _central(moments["wuv"] / w, u * v)
        self.var_v = _central(moments["wvv"] / w, v * v)

    @property
    def sigma(self) -> Array:
        """Product of both standard deviations."""
        return _root(self.var_u) * _root(self.var_v)

    @property
    def slope(self) -> Array:
        """Slope of the response, NaN where the truth does not vary."""
        return self.cov / np.where(self.var_u > 0, self.var_u, np.nan)

    def ww(self, i: int, j: int) -> Array:
        """Sum Σ w²(u − ū)^i(v − v̄)^j, which only errors need."""
        if (i, j) not in self._ww:
            self._ww[i, j] = sum(
                (
                    math.comb(i, a)
                    * math.comb(j, b)
                    * (-self.u) ** (i - a)
                    * (-self.v) ** (j - b)
                    * np.asarray(self.moments["ww" + "u" * a + "v" * b], float)
                    for a in range(i + 1)
                    for b in range(j + 1)
                ),
                start=np.zeros(()),
            )
        return self._ww[i, j]

    def variance(self, terms: Mapping[tuple[int, int], Any]) -> Array:
        """Variance Σ w²ψ² of a statistic with ψ = Σ_ij terms[i, j] (u − ū)^i (v − v̄)^j / Σw."""
        total = sum(
            (a * b * self.ww(i + k, j + m) for (i, j), a in terms.items() for (k, m), b in terms.items()),
            start=np.zeros(()),
        )
        return total / self.norm**2


def mean(x: Response, of: Literal["truth", "pred"]) -> Estimate:
    """Mean of the truth or of the prediction in the response coordinate, ψ = (x − x̄)/Σw.

    Parameters
    ----------
    x
        Moments of truth and prediction.
    of
        Which of the two.
    """
    name, power = ("wu", (1, 0)) if of == "truth" else ("wv", (0, 1))
    return _estimate(x.moments, x.moments[name] / x.norm, _not_negative(x.variance({power: 1})))


def correlation(x: Response) -> Estimate:
    """Correlation ρ of prediction and truth.

    With ũ and ṽ standardised, ψ = [ũṽ − ρ(ũ² + ṽ²)/2]/Σw.

    Parameters
    ----------
    x
        Moments of truth and prediction.
    """
    rho = _divide(x.cov, x.sigma)
    variance = x.variance(
        {(1, 1): _divide(1, x.sigma), (2, 0): _divide(-rho / 2, x.var_u), (0, 2): _divide(-rho / 2, x.var_v)}
    )
    return _estimate(x.moments, rho, _not_negative(variance))


def slope(x: Response) -> Estimate:
    """Slope b = cov(p, t)/var(t) of the response.

    ψ = (u − ū)[(v − v̄) − b(u − ū)]/(var(u) Σw).

    Parameters
    ----------
    x
        Moments of truth and prediction.
    """
    var_u = np.where(x.var_u > 0, x.var_u, np.nan)
    b = x.slope
    return _estimate(x.moments, b, _not_negative(x.variance({(1, 1): 1 / var_u, (2, 0): -b / var_u})))


def rms_linearised(x: Response) -> Estimate:
    """Standard deviation of the residual about the response line, divided by the slope.

    L² = var(v)/b² − var(u), and with ψ_b the influence of the slope b,
    2Lψ = [(v − v̄)² − var(v)]/(b²Σw) − 2 var(v)ψ_b/b³ − [(u − ū)² − var(u)]/Σw.

    Parameters
    ----------
    x
        Moments of truth and prediction.
    """
    var_u = np.where(x.var_u > 0, x.var_u, np.nan)
    b = np.where(x.cov != 0, x.cov, np.nan) / var_u
    scaled = x.var_v / b**2
    square = _central(scaled, var_u)
    variance = x.variance(
        {
            (0, 0): var_u - scaled,
            (0, 2): 1 / b**2,
            (1, 1): -2 * scaled / (b * var_u),
            (2, 0): 2 * scaled / var_u - 1,
        }
    )
    return _estimate(x.moments, _root(square), _divide(_not_negative(variance), 4 * square))


def _not_negative(variance: Array) -> Array:
    """A sum of squares, whose expansion in raw moments may round below zero."""
    return np.where(variance < 0, 0.0, variance)


# ---- efficiency ------------------------------------------------------------------------------------------


def efficiency(selected: Any, selected_squared: Any, solved: Any, solved_squared: Any) -> Estimate:
    """Fraction ε of selected events that are solved.

    The variance is [(1 − ε)² Σ_solved w² + ε² Σ_unsolved w²]/(Σw)², which is ε(1 − ε)/n for unit weights.
    Like every normal approximation it vanishes where all events, or none, are solved.

    Parameters
    ----------
    selected, selected_squared
        Σw and Σw² of the selected events, of any one shape.
    solved, solved_squared
        The same of those that are solved.
    """
    total = np.asarray(selected, float)
    total = np.where(total > 0, total, np.nan)
    value = np.asarray(solved, float) / total
    failed = np.asarray(selected_squared, float) - solved_squared
    variance = ((1 - value) ** 2 * solved_squared + value**2 * failed) / total**2
    return Estimate(value, _root(_not_negative(variance)))


def fraction(passed: Array, weight: Array) -> tuple[float, float]:
    """Weighted fraction of the events that pass, and its error as in `efficiency`.

    Parameters
    ----------
    passed
        1 or 0, or True or False; events with NaN do not count, shape (n,).
    weight
        Signed event weights, shape (n,).
    """
    known = np.isfinite(passed)
    good, w = passed[known] > 0, np.asarray(weight, float)[known]
    ww = w**2
    found = efficiency(w.sum(), ww.sum(), w[good].sum(), ww[good].sum())
    return float(found.value), float(found.error)


# ---- quantiles -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cumulative:
    """Cumulative distribution, made monotone where negative weights make it fall.

    With C(x) the sum of weights up to x and W > 0 the total, the fraction is
    ½[max over y ≤ x of C(y) + min over y ≥ x of C(y)]/W, clipped to [0, 1]: C/W itself for positive weights,
    never falling for any, and treating both ends alike. Between positions it is interpolated linearly.

    Attributes
    ----------
    positions
        Rising positions, shape (k,).
    fraction
        Monotone cumulative fraction there, shape (k,); NaN where W is not positive.
    """

    positions: Array
    fraction: Array

    @classmethod
    def _monotone(cls, positions: Array, cumulative: Array, total: float) -> "Cumulative":
        if not total > 0:
            return cls(positions, np.full(positions.shape, np.nan))
        padded = np.concatenate([[0.0], cumulative, [total]])
        from_left = np.maximum.accumulate(padded)
        from_right = np.minimum.accumulate(padded[::-1])[::-1]
        fraction = np.clip((from_left + from_right)[1:-1] / (2 * total), 0.0, 1.0)
        return cls(positions, fraction)

    @classmethod
    def from_histogram(cls, counts: Array, edges: Array) -> "Cumulative":
        """Cumulative distribution of a histogram, uniform within its bins.

        Parameters
        ----------
        counts
            Bin contents with underflow first and overflow last, shape (k + 1,).
        edges
            Bin edges, shape (k,).
        """
        cumulative = np.cumsum(counts)
        return cls._monotone(np.asarray(edges, float), cumulative[:-1], float(cumulative[-1]))

    @classmethod
    def from_values(cls, values: Array, weights: Array) -> "Cumulative":
        """Cumulative distribution of weighted values: half of each weight lies below its value, half above.

        Parameters
        ----------
        values, weights
            Values and their signed weights, shape (n,).
        """
        order = np.argsort(values, kind="stable")
        sorted_weights = np.asarray(weights, float)[order]
        cumulative = np.cumsum(sorted_weights)
        total = float(cumulative[-1]) if len(cumulative) else 0.0
        return cls._monotone(np.asarray(values, float)[order], cumulative - sorted_weights / 2, total)

    @classmethod
    def from_boxes(
        cls, low: Array, high: Array, weights: Array, *, below: float, above: float
    ) -> "Cumulative":
        """Cumulative distribution of overlapping boxes, each weight spread uniformly between its ends.

        Parameters
        ----------
        low, high, weights
            Ends and signed weights of the boxes, shape (n,).
        below, above
            Weight below and above all boxes.
        """
        positions = np.concatenate([low, high])
        density = np.concatenate([weights / (high - low), -weights / (high - low)])
        order = np.argsort(positions, kind="stable")
        positions, density = positions[order], np.cumsum(density[order])
        steps = density[:-1] * np.diff(positions)
        cumulative = below + np.concatenate([np.zeros(min(len(positions), 1)), np.cumsum(steps)])
        return cls._monotone(positions, cumulative, below + float(np.sum(weights)) + above)

    def quantile(self, q: float) -> float:
        """Position where the fraction reaches q, the middle of it where it does so on an interval.

        Parameters
        ----------
        q
            Fraction; NaN results where the positions do not reach it, as in the underflow of a histogram.
        """
        f, x = self.fraction, self.positions
        if len(f) == 0 or not f[0] <= q <= f[-1]:
            return math.nan
        first, last = np.searchsorted(f, q, side="left"), np.searchsorted(f, q, side="right")
        if first < last:
            return float((x[first] + x[last - 1]) / 2)
        share = (q - f[first - 1]) / (f[first] - f[first - 1])
        return float(x[first - 1] + share * (x[first] - x[first - 1]))


def quantile_error(cumulative: Cumulative, q: float, n_eff: float) -> float:
    """Standard error of a quantile.

    With δ = √(q(1 − q)/n_eff), the standard deviation of the fraction below a fixed position, it is half the
    distance between the quantiles q − δ and q + δ (order statistics [2]_).

    Parameters
    ----------
    cumulative
        Cumulative distribution.
    q
        Fraction.
    n_eff
        Effective number of events.
    """
    if not n_eff > 0:
        return math.nan
    delta = math.sqrt(q * (1 - q) / n_eff)
    return (cumulative.quantile(q + delta) - cumulative.quantile(q - delta)) / 2


def median(cumulative: Cumulative, n_eff: float) -> tuple[float, float]:
    """Median and its standard error.

    Parameters
    ----------
    cumulative
        Cumulative distribution.
    n_eff
        Effective number of events.
    """
    return cumulative.quantile(0.5), quantile_error(cumulative, 0.5, n_eff)


def width68(cumulative: Cumulative, n_eff: float) -> tuple[float, float]:
    """Half-width of the central 68 % interval and its standard error.

    The ends a and b, the quantiles α and 1 − α, are correlated with coefficient α/(1 − α) [2]_, so the
    variance is [σ_a² + σ_b² − 2σ_aσ_b α/(1 − α)]/4.

    Parameters
    ----------
    cumulative
        Cumulative distribution.
    n_eff
        Effective number of events.
    """
    low, high = (quantile_error(cumulative, q, n_eff) for q in (QUANTILE_LOW, QUANTILE_HIGH))
    width = (cumulative.quantile(QUANTILE_HIGH) - cumulative.quantile(QUANTILE_LOW)) / 2
    variance = low**2 + high**2 - 2 * low * high * QUANTILE_LOW / QUANTILE_HIGH
    return width, math.sqrt(variance) / 2


class Line(NamedTuple):
    """Distribution of v − bu, the residual about the response line, and its broadening by bins."""

    cumulative: Cumulative
    broadening: float
    """Variance that bins add to the core of the distribution, 0 if unbinned."""


def width68_linearised(line: Line, n_eff: float, b: float, b_error: float) -> tuple[float, float]:
    """68 % half-width of the residual about the response line, divided by the slope, and its standard error.

    The broadening by bins is subtracted in quadrature. The errors of width and slope are added in quadrature.

    Parameters
    ----------
    line
        Distribution of v − bu.
    n_eff
        Effective number of events.
    b, b_error
        Slope of the response and its error.
    """
    if not abs(b) > 0:
        return math.nan, math.nan
    width, error = width68(line.cumulative, n_eff)
    width = float(_root(width**2 - line.broadening))
    return width / abs(b), math.hypot(error / b, width * b_error / b**2)


def about_line(
    counts: Array,
    truth_positions: Array,
    truth_widths: Array,
    residual_edges: Array,
    b: float,
    *,
    relative: bool,
) -> Line:
    """Distribution of the residual about the response line, from a histogram of truth and residual.

    v = u + g(r), with g(r) = ln(1 + r) for relative residuals and r for differences, so
    v − bu = g(r) + (1 − b)u: the truth enters with the small factor 1 − b only. Every cell spreads uniformly
    between the edges of its residual bin, at the middle of its truth bin. By Sheppard's corrections [3]_ that
    adds the variance h²/6 + (1 − b)²k²/12, with h and k the widths of the cell in g and u: h²/12 and k²/12
    for grouping, and h²/12 for spreading again. Its mean over the central 68 % is the broadening. With the
    default binning the 68 % half-width agrees with unbinned events within 1 % for b > 0.4, and within 2 %
    down to b = 0.2.

    Parameters
    ----------
    counts
        Bin contents with flow, shape (truth bins + 2, residual bins + 2).
    truth_positions
        Middle of each truth bin in the response coordinate, shape (truth bins + 2,); rows with NaN are left
        out.
    truth_widths
        Width of each truth bin in the response coordinate, 0 where unknown, shape (truth bins + 2,).
    residual_edges
        Edges of the residual bins, shape (residual bins + 1,).
    b
        Slope of the response.
    relative
        True if the residual is relative.
    """
    known = np.isfinite(truth_positions)
    counts, shift = counts[known], (1 - b) * truth_positions[known]
    edges = np.asarray(residual_edges, float)
    if relative:
        # The lowest edge is a prediction of zero, whose logarithm is the end of the axis.
        edges = np.log1p(np.where(edges > -1, edges, np.nan))
    low, high = shift[:, None] + edges[:-1], shift[:, None] + edges[1:]
    inside = counts[:, 1:-1]
    boxed = np.isfinite(low) & (inside != 0)
    below = counts[:, 0].sum() + inside[~np.isfinite(low)].sum()
    cumulative = Cumulative.from_boxes(
        low[boxed], high[boxed], inside[boxed], below=float(below), above=float(counts[:, -1].sum())
    )
    middle = (low + high) / 2
    core = (
        boxed & (middle > cumulative.quantile(QUANTILE_LOW)) & (middle < cumulative.quantile(QUANTILE_HIGH))
    )
    added = (high - low) ** 2 / 6 + ((1 - b) * truth_widths[known])[:, None] ** 2 / 12
    weight = float(inside[core].sum())
    return Line(cumulative, float((added * inside)[core].sum()) / weight if weight > 0 else 0.0)


# ---- migration -------------------------------------------------------------------------------------------


def purity(migration: Array) -> Array:
    """Fraction of the events reconstructed in a bin that were generated there.

    Parameters
    ----------
    migration
        Sums of weights by truth bin and reconstructed bin of one binning, flow included, shape (k, k).

    Returns
    -------
    purity
        Shape (k,); NaN where nothing is reconstructed.
    """
    column = migration.sum(axis=0)
    return _divide(np.diagonal(migration), np.where(column > 0, column, 0))


def stability(migration: Array) -> Array:
    """Fraction of the events generated in a bin, and reconstructed anywhere, that are reconstructed there.

    Parameters
    ----------
    migration
        Sums of weights by truth bin and reconstructed bin of one binning, flow included, shape (k, k).

    Returns
    -------
    stability
        Shape (k,); NaN where nothing is generated.
    """
    row = migration.sum(axis=1)
    return _divide(np.diagonal(migration), np.where(row > 0, row, 0))


def bin_starts(fine: Array, coarse: Array) -> list[int]:
    """First fine bin, with flow, of each coarse bin, with flow, given the edges of both."""
    return [0, *(np.searchsorted(fine, coarse) + 1).tolist()]


def merge_bins(counts: Array, starts: Sequence[int], axis: int) -> Array:
    """Contents of merged neighbouring bins.

    Parameters
    ----------
    counts
        Bin contents, flow included.
    starts
        Index of the first bin of each group, rising from 0.
    axis
        Axis to merge.
    """
    return np.add.reduceat(counts, np.asarray(starts, np.intp), axis=axis)


def equal_population(counts: Array, n_bins: int) -> list[int]:
    """Groups of neighbouring bins with equal contents, as nearly as their edges permit.

    Parameters
    ----------
    counts
        Sums of weights in fine bins, flow included, shape (k,).
    n_bins
        Number of groups wanted.

    Returns
    -------
    starts
        Index of the first bin of each group, rising from 0; fewer groups where bins are too coarse, none at
        all without events.
    """
    inner = Cumulative.from_histogram(counts, np.arange(1.0, len(counts)))
    if not np.isfinite(inner.fraction).all():
        return []
    wanted = np.arange(1, n_bins) / n_bins
    nearest = np.abs(inner.fraction[:, None] - wanted).argmin(axis=0) + 1
    return [0, *np.unique(nearest).tolist()]


# ---- all together ----------------------------------------------------------------------------------------


def collect(
    moments: Mapping[str, Array],
    residuals: Sequence[Cumulative],
    lines: Sequence[Line | None],
    efficiencies: Estimate,
) -> list[Metrics]:
    """`Metrics` of several sets of events.

    Parameters
    ----------
    moments
        Sums by name, shape (k,).
    residuals
        Distribution of the residual in each set.
    lines
        Distribution of the residual about the response line in each set; None leaves its width undefined.
    efficiencies
        Efficiency in each set, shape (k,).
    """
    n_eff = effective_number(moments)
    x = Response(moments)
    columns = [rb(moments), res(moments), correlation(x), slope(x), rms_linearised(x)]
    found: list[Metrics] = []
    for i, (residual, line) in enumerate(zip(residuals, lines, strict=True)):
        bias, spread, rho, b, rms = ((float(c.value[i]), float(c.error[i])) for c in columns)
        n = float(n_eff[i])
        linearised = (math.nan, math.nan) if line is None else width68_linearised(line, n, *b)
        found.append(
            Metrics(
                int(moments["n"][i]),
                float(moments["w"][i]),
                n,
                *bias,
                *spread,
                *median(residual, n),
                *width68(residual, n),
                *rho,
                *b,
                *rms,
                *linearised,
                float(efficiencies.value[i]),
                float(efficiencies.error[i]),
            )
        )
    return found


def summarise_arrays(pred: Array, truth: Array, weight: Array | None = None, *, relative: bool) -> Metrics:
    """`Metrics` of unbinned events, by the formulas that histograms use.

    Parameters
    ----------
    pred
        Predicted values, NaN where the method has no prediction, shape (n,).
    truth
        True values, NaN where unknown, shape (n,).
    weight
        Signed event weights, shape (n,); one each if None.
    relative
        True if residuals are (p − t)/t, for positive quantities, else p − t.

    Raises
    ------
    ValueError
        If the lengths differ or a weight is not finite.
    """
    x = _Sample.of(pred, truth, weight, relative=relative)
    moments = x.sums(MOMENTS)
    b = float(Response(moments).slope[0])
    line = Line(Cumulative.from_values(x.pred - b * x.truth, x.weight), 0.0) if math.isfinite(b) else None
    return collect(moments, [Cumulative.from_values(x.residual, x.weight)], [line], x.efficiency)[0]


def metric_values(pred: Array, truth: Array, weight: Array | None = None, *, relative: bool) -> MetricValues:
    """`MetricValues` of unbinned events, for a training that needs no errors.

    Parameters
    ----------
    pred
        Predicted values, NaN where the method has no prediction, shape (n,); or (n, k) for k values of each
        event, such as those of t and t̄, that count alike.
    truth
        True values, NaN where unknown, of the same shape.
    weight
        Signed event weights, shape (n,); one each if None.
    relative
        True if residuals are (p − t)/t, and correlation and slope are of logarithms, for positive quantities;
        else p − t and the values themselves.

    Raises
    ------
    ValueError
        If the shapes differ or a weight is not finite.
    """
    pred, truth = np.asarray(pred, float), np.asarray(truth, float)
    if pred.ndim == 2 and weight is not None:
        weight = np.repeat(np.asarray(weight, float), pred.shape[1])
    if pred.ndim == 2 and pred.shape == truth.shape:
        pred, truth = pred.ravel(), truth.ravel()
    x = _Sample.of(pred, truth, weight, relative=relative)
    moments = x.sums(_VALUE_MOMENTS)
    response, (w, bias, _, spread) = Response(moments), _spread(moments)
    values = (bias, spread, _root(moments["wrr"] / w), _divide(response.cov, response.sigma), response.slope)
    return MetricValues(*(float(value[0]) for value in (*values, x.efficiency.value)))


class _Sample(NamedTuple):
    """Events with prediction and truth, and the efficiency among all.

    Residuals are (p − t)/t or p − t; truth and pred are in the response coordinate.
    """

    residual: Array
    truth: Array
    pred: Array
    weight: Array
    efficiency: Estimate

    @classmethod
    def of(cls, pred: Array, truth: Array, weight: Array | None, *, relative: bool) -> Self:
        pred, truth = np.asarray(pred, float), np.asarray(truth, float)
        weight = np.ones_like(pred) if weight is None else np.asarray(weight, float)
        if pred.ndim != 1 or pred.shape != truth.shape or pred.shape != weight.shape:
            raise ValueError(
                f"pred, truth and weight: one-dimensional arrays of one length expected, "
                f"shapes {pred.shape}, {truth.shape}, {weight.shape} found"
            )
        check_weights(weight, "weight")
        solved = has_value(pred, relative=relative)
        used = solved & has_value(truth, relative=relative)
        p, t, w = pred[used], truth[used], weight[used]
        reference = float(np.median(t)) if len(t) else 1.0
        u, v = (response_coordinate(x, relative=relative, reference=reference) for x in (t, p))
        share, error = fraction(solved, weight)
        return cls(
            (p - t) / t if relative else p - t, u, v, w, Estimate(np.array([share]), np.array([error]))
        )

    def sums(self, names: Sequence[str]) -> dict[str, Array]:
        """Sums over the events by name, shape (1,)."""
        products = event_moments(self.residual, self.truth, self.pred, self.weight, names)
        return {name: np.array([values.sum()]) for name, values in products}


def has_value(values: Array, *, relative: bool) -> Array:
    """Mask of the values that metrics can use, shape (n,).

    Parameters
    ----------
    values
        Values, shape (n,).
    relative
        True if its residual is relative, which needs a positive value.
    """
    positive = values > 0 if relative else True
    return np.isfinite(values) & positive


def check_weights(weight: Array, name: str) -> None:
    """Refuse weights that would poison every sum.

    Parameters
    ----------
    weight
        Event weights, shape (n,).
    name
        Their name in the error.

    Raises
    ------
    ValueError
        If one is not finite.
    """
    bad = int((~np.isfinite(weight)).sum())
    if bad:
        raise ValueError(f"{name}: {bad} of {len(weight)} weights are not finite")
