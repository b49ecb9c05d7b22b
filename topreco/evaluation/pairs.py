"""Pairs of observables in one axis: their bins stand one after the other, the second observable fastest.

An axis of histograms has the attribute ``unrolled``, the names and edges of its observables, which survives
pickling and keeps histograms of other bins from being added. An event outside of the range of one of them is
in the overflow.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import hist
import numpy as np

from topreco.core.observables import OBSERVABLES, Observable
from topreco.core.statistics import Array, has_value

Unrolled = tuple[tuple[str, tuple[float, ...]], ...]
"""Name and edges of each observable of an axis; empty for an axis of one observable."""

_SEPARATOR = "_x_"


def members(name: str) -> tuple[str, ...]:
    """Names of the observables of a pair, or of one observable itself."""
    return (name,) if name in OBSERVABLES else tuple(name.split(_SEPARATOR))


def described(name: str) -> Observable:
    """The observable of that name; for a pair one that stands for the number of its bin.

    Parameters
    ----------
    name
        Name of an observable or of a pair.
    """
    if name in OBSERVABLES:
        return OBSERVABLES[name]
    label = ", ".join(OBSERVABLES[member].label for member in members(name))
    return Observable(name, f"bin of {label}", "", relative=False, compute=lambda tops, *_: tops[:, 0, 0])


def unrolled_of(axis: Any) -> Unrolled:
    """Names and edges of the observables of an axis, empty if it is one of a single observable."""
    found: Unrolled = getattr(axis, "unrolled", ())
    return found


def unrolled_axis(name: str, unrolled: Unrolled, label: str) -> hist.axis.Variable:
    """An axis of the unrolled bins.

    Parameters
    ----------
    name
        Name of the axis.
    unrolled
        Names and edges of the observables.
    label
        Label of the axis.
    """
    axis = hist.axis.Variable(np.arange(number_of_bins(unrolled) + 1.0), name=name, label=label)
    axis.unrolled = unrolled
    return axis


def number_of_bins(unrolled: Unrolled) -> int:
    """Number of bins of an unrolled axis."""
    return math.prod(len(edges) - 1 for _, edges in unrolled)


def bin_ranges(axes: Sequence[Sequence[float] | Array]) -> list[str]:
    """Ranges of the bins as text, in the order in which they are unrolled.

    Parameters
    ----------
    axes
        Edges of each axis.
    """
    ranges = [[f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)] for edges in axes]
    return [", ".join(combination) for combination in itertools.product(*ranges)]


def coordinate(name: str, unrolled: Unrolled, values: Mapping[str, Array]) -> tuple[Array, Array]:
    """Coordinate of events on an axis, and the mask of those that have one.

    Parameters
    ----------
    name
        Name of the observable or pair.
    unrolled
        Names and edges of the observables of the axis, empty for one observable.
    values
        Values of the observables, shape (n,) each, NaN where there is none.

    Returns
    -------
    coordinate
        Value of the observable, or middle of the unrolled bin, and the end of the axis outside of them, shape
        (n,).
    known
        True where all observables have a value, shape (n,).
    """
    if not unrolled:
        return values[name], has_value(values[name], relative=OBSERVABLES[name].relative)
    shape = values[unrolled[0][0]].shape
    known, inside = np.ones(shape, np.bool_), np.ones(shape, np.bool_)
    number = np.zeros(shape, np.intp)
    for member, edges in unrolled:
        known &= has_value(values[member], relative=OBSERVABLES[member].relative)
        position = np.searchsorted(edges, np.where(known, values[member], edges[0]), side="right") - 1
        inside &= (position >= 0) & (position < len(edges) - 1)
        number = number * (len(edges) - 1) + position
    return np.where(inside & known, number + 0.5, float(number_of_bins(unrolled))), known
