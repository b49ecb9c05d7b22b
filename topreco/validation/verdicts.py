"""Every observable of a method against the best analytic one: better, equal or worse.

A difference counts if it is beyond two standard errors. These are of the paired difference: the bootstrap
draws events, and all methods are measured on the same draw.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import Array, has_value, response_coordinate
from topreco.validation.gather import EventTable

N_RESAMPLES = 400
"""Draws of the bootstrap."""
BEYOND = 2.0
"""Paired standard errors beyond which a difference counts."""
_BLOCK = 20_000
_CONSTANT = 1e-3
"""A prediction whose standard deviation is less than this part of the truth's does not vary."""

Verdict = Literal["better", "equal", "worse", "undefined"]


class Against(NamedTuple):
    """One figure of merit of a method against that of the best analytic method.

    Attributes
    ----------
    value, best
        Of the method, and of the best analytic one: the largest ρ, or the smallest |RB|.
    analytic
        Name of that method; empty if none has a value.
    difference, difference_error
        ρ minus ρ, or |RB| minus |RB|, and its standard error.
    verdict
        "undefined" if one of both, or the error, is unknown, as ρ of a mass that never varies.
    """

    value: float
    best: float
    analytic: str
    difference: float
    difference_error: float
    verdict: Verdict


class Comparison(NamedTuple):
    """A method against the best analytic ones, in one observable.

    Attributes
    ----------
    n
        Number of events: those for which all methods have a value.
    correlation
        Correlation ρ of prediction and truth, of logarithms for observables whose residual is relative.
    bias
        RB, the mean residual.
    negligible
        |RB| up to which a bias counts as none.
    """

    n: int
    correlation: Against
    bias: Against
    negligible: float


def negligible_bias(name: str) -> float:
    """|RB| that counts as none: 1 % of relative residuals, 2 GeV, or 0.03 of angles and rapidities.

    Parameters
    ----------
    name
        Observable.
    """
    observable = OBSERVABLES[name]
    if observable.relative:
        return 0.01
    return 2.0 if observable.unit == "GeV" else 0.03


def compare_with_analytic(
    table: EventTable,
    names: Sequence[str],
    methods: Sequence[str],
    analytic: Sequence[str],
    *,
    seed: int = 0,
    n_resamples: int = N_RESAMPLES,
) -> dict[str, dict[str, Comparison]]:
    """Compare methods with the best analytic one of each observable, on events that all of them solve.

    The bootstrap gives each event a Poisson number of mean 1 as factor of its weight.

    Parameters
    ----------
    table
        Events with truth.
    names
        Observables.
    methods, analytic
        Methods to judge, and methods to judge them by.
    seed
        Seed of the bootstrap.
    n_resamples
        Draws of the bootstrap.

    Returns
    -------
    comparisons
        By method and observable; empty without analytic methods.
    """
    if not methods or not analytic:
        return {}
    every = [*methods, *analytic]
    found: dict[str, dict[str, Comparison]] = {method: {} for method in methods}
    for name, n, rho, bias in _resampled(table, names, every, seed, n_resamples):
        for i, method in enumerate(methods):
            found[method][name] = Comparison(
                n,
                _against(rho, i, every, len(methods), -math.inf, sign=1),
                _against(np.abs(bias), i, every, len(methods), negligible_bias(name), sign=-1)._replace(
                    value=float(bias[0, i])
                ),
                negligible_bias(name),
            )
    return found


def _resampled(
    table: EventTable, names: Sequence[str], methods: Sequence[str], seed: int, n_resamples: int
) -> Iterator[tuple[str, int, Array, Array]]:
    """Observable, number of events, ρ and RB; shape (1 + draws, methods), of the events as they are first."""
    weight = np.asarray(table.events["weight"], float)
    solved = np.logical_and.reduce([table.predictions[method].valid for method in methods])
    columns = [_Columns.of(table, name, methods, solved) for name in names]
    rng = np.random.default_rng(seed)
    sums: Array = np.zeros(())
    # The same draws for all observables, of some events at a time: their number times the draws is large.
    for start in range(0, len(weight), _BLOCK):
        block = slice(start, start + _BLOCK)
        factors = np.ones((1 + n_resamples, len(weight[block])))
        factors[1:] = rng.poisson(1.0, (n_resamples, factors.shape[1]))
        products = np.concatenate([of.products(block) for of in columns], axis=1)
        sums = sums + (factors * weight[block]) @ products
    for name, of, part in zip(names, columns, np.split(sums, len(names), axis=1), strict=True):
        yield name, int(of.used.sum()), *_metrics(part)


class _Columns(NamedTuple):
    """Truth and predictions of one observable, and the events in which all have a value."""

    name: str
    truth: Array
    predicted: list[Array]
    used: Array
    reference: float

    @classmethod
    def of(cls, table: EventTable, name: str, methods: Sequence[str], solved: Array) -> "_Columns":
        truth, predicted = table.truth[name], [table.predictions[m].values[name] for m in methods]
        relative = OBSERVABLES[name].relative
        known = [has_value(values, relative=relative) for values in (truth, *predicted)]
        used = np.logical_and.reduce([solved, *known])
        return cls(name, truth, predicted, used, float(np.median(truth[used])) if used.any() else 1.0)

    def products(self, block: slice) -> Array:
        """1, u and u² of the truth, and r, v, v² and uv of each method, zero where not used."""
        used = self.used[block]
        observable = OBSERVABLES[self.name]

        def coordinate(values: Array) -> Array:
            return response_coordinate(values, relative=observable.relative, reference=self.reference)

        truth, *predicted = (
            np.where(used, values[block], self.reference) for values in (self.truth, *self.predicted)
        )
        u = coordinate(truth)
        found = [np.ones(len(u)), u, u * u]
        for values in predicted:
            v = coordinate(values)
            found += [observable.residual(values, truth), v, v * v, u * v]
        return np.stack(found, axis=1) * used[:, None]


def _metrics(sums: Array) -> tuple[Array, Array]:
    """ρ and RB of each method from sums of `_Columns.products`, NaN where they are undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / np.where(sums[:, :1] > 0, sums[:, :1], np.nan)
        u, uu = means[:, 1, None], means[:, 2, None]
        r, v, vv, uv = np.moveaxis(means[:, 3:].reshape(len(means), -1, 4), 2, 0)
        var_u, var_v = uu - u**2, vv - v**2
        # What hardly varies, as a mass that is given, has no correlation but that of its rounding.
        varies = (var_u > 0) & (var_v > _CONSTANT**2 * var_u)
        rho = (uv - u * v) / np.sqrt(np.where(varies, var_u * var_v, np.nan))
    return rho, r


def _against(
    figures: Array, i: int, methods: Sequence[str], n_judged: int, negligible: float, *, sign: int
) -> Against:
    """Judge a method by its figure of merit and that of the best analytic one.

    Parameters
    ----------
    figures
        Shape (1 + draws, methods), the first n_judged of them to judge, then the analytic ones.
    i
        Which to judge.
    negligible
        A figure up to this one is neither better nor worse than others up to it.
    sign
        1 if larger is better, else −1.
    """
    merit = sign * figures
    known = np.isfinite(merit[0, n_judged:])
    if not known.any():
        return Against(float(figures[0, i]), math.nan, "", math.nan, math.nan, "undefined")
    best = n_judged + int(np.where(known, merit[0, n_judged:], -np.inf).argmax())
    value, other = float(figures[0, i]), float(figures[0, best])
    drawn = figures[1:, i] - figures[1:, best]
    drawn = drawn[np.isfinite(drawn)]
    error = float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan
    gain = sign * (value - other)
    verdict: Verdict = "equal"
    if not math.isfinite(gain + error):
        verdict = "undefined"
    elif gain < -BEYOND * error and value > negligible:
        verdict = "worse"
    elif gain > BEYOND * error and other > negligible:
        verdict = "better"
    return Against(value, other, methods[best], value - other, error, verdict)


def counts(comparisons: Mapping[str, Comparison], figure: str) -> dict[Verdict, list[str]]:
    """Observables by verdict.

    Parameters
    ----------
    comparisons
        Of one method, by observable.
    figure
        ``correlation`` or ``bias``.
    """
    found: dict[Verdict, list[str]] = {"better": [], "equal": [], "worse": [], "undefined": []}
    for name, of in comparisons.items():
        found[getattr(of, figure).verdict].append(name)
    return found
