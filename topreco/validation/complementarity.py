"""Complementarity of methods: how often one is right where another fails.

An event counts as right for a method and an observable if the method solves it and the residual is within a
tolerance, the same for all methods: the smallest of their half-widths that contain 68.27 % of |residual|.
Otherwise the method fails, by no solution or by a wrong one.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import Array, Estimate, efficiency, has_value
from topreco.evaluation.report import format_estimate, markdown_table
from topreco.validation.gather import EventTable

_INSIDE = 0.6827


class Complementarity(NamedTuple):
    """Who is right where another fails, of one observable.

    Attributes
    ----------
    tolerance
        Largest |residual| of an event that counts as right; relative for observables with relative residuals.
    methods
        Names of the m methods.
    right
        Share of all events in which each is right, and its error, shape (m,) each.
    rescued
        Share of the events in which the method of the row fails in which that of the column is right, and its
        error, shape (m, m) each; zero on the diagonal, NaN for a method that never fails.
    any_right
        Share of all events in which at least one method is right, and its error, shape (1,) each.
    """

    tolerance: float
    methods: tuple[str, ...]
    right: Estimate
    rescued: Estimate
    any_right: Estimate


def complementarity(table: EventTable, observable: str) -> Complementarity:
    """Complementarity of all methods in one observable.

    Parameters
    ----------
    table
        Predictions and truth; events without truth do not count.
    observable
        Name of a validated observable.
    """
    about, truth = OBSERVABLES[observable], table.truth[observable]
    known = has_value(truth, relative=about.relative)
    weight, truth = table.events["weight"][known], truth[known]
    methods = tuple(table.predictions)
    distance = np.full((len(methods), len(truth)), np.inf)
    for of, prediction in zip(distance, table.predictions.values(), strict=True):
        value = prediction.values[observable][known]
        solved = has_value(value, relative=about.relative)
        of[solved] = np.abs(about.residual(value[solved], truth[solved]))
    widths = [float(np.quantile(of[np.isfinite(of)], _INSIDE)) for of in distance if np.isfinite(of).any()]
    tolerance = min(widths, default=np.nan)
    right = distance <= tolerance
    every = np.ones(len(truth), np.bool_)
    return Complementarity(
        tolerance,
        methods,
        _stacked([_share(of, every, weight) for of in right]),
        Estimate(
            *(
                np.reshape(part, (len(methods), len(methods)))
                for part in _stacked([_share(b, ~a, weight) for a in right for b in right])
            )
        ),
        _share(np.asarray(right.any(axis=0)), every, weight),
    )


def _share(passed: Array, among: Array, weight: Array) -> Estimate:
    """Share of the weight of some events that pass, with its binomial error; NaN among none, shape (1,)."""
    whole, part = weight[among], weight[among & passed]
    return efficiency(*(np.array([x]) for of in (whole, part) for x in (of.sum(), (of**2).sum())))


def _stacked(estimates: Sequence[Estimate]) -> Estimate:
    return Estimate(*(np.concatenate(part) for part in zip(*estimates, strict=True)))


def meaning(name: str, found: Complementarity) -> str:
    """What the matrix of an observable says, in sentences.

    Parameters
    ----------
    name
        Name of the observable.
    found
        Its complementarity.
    """
    unit = "" if OBSERVABLES[name].relative else OBSERVABLES[name].unit
    tolerance = f"{found.tolerance:.3g}{' ' + unit if unit else ''}"
    any_right = format_estimate(found.any_right.value[0], found.any_right.error[0])
    return (
        f"Right: |residual| up to {tolerance}, where the best method has 68 % of its events. Each row: "
        "of the events in which its method fails, the share in which that of the column is right. At "
        f"least one method is right in {any_right} of all events."
    )


def matrix(found: Complementarity) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the matrix of an observable.

    Parameters
    ----------
    found
        Its complementarity.
    """
    rows = [
        [method, format_estimate(found.right.value[i], found.right.error[i])]
        + [
            "" if i == j else format_estimate(found.rescued.value[i, j], found.rescued.error[i, j])
            for j in range(len(found.methods))
        ]
        for i, method in enumerate(found.methods)
    ]
    return ["fails", "right in all", *found.methods], rows


def complementarity_markdown(found: Mapping[str, Complementarity]) -> Iterator[str]:
    """Matrices of several observables as Markdown, with what they mean.

    Parameters
    ----------
    found
        By observable. One method alone has no matrix.
    """
    for name, of in found.items():
        if len(of.methods) < 2:
            return
        yield f"## {name}, who is right where another fails\n"
        yield f"{meaning(name, of)}\n"
        yield markdown_table(*matrix(of))
