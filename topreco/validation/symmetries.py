"""Symmetries of the detector that a method respects: transformed events against transformed predictions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from topreco.core.events import DileptonEvents, TopPair
from topreco.core.method import Method
from topreco.core.statistics import Array
from topreco.validation.gather import Apply

N_EVENTS = 2000
"""Events that are transformed."""
EXACT = 1e-3
"""Largest difference, in units of the top's energy, of a symmetry that holds to numerical precision."""
APPROXIMATE = 0.1
"""Largest median difference of one that holds approximately."""
_SEED = 20

Transform = Callable[[DileptonEvents], DileptonEvents]


class Symmetry(NamedTuple):
    """Agreement of a method with a symmetry.

    Attributes
    ----------
    n
        Number of events that are solved before and after.
    median, largest
        Median and maximum over the events of the largest difference of any component of both
        four-momenta, in units of the top's energy.
    above
        Fraction of the events whose difference is above `EXACT`.
    changed
        Fraction of all events that are solved only before or only after.
    verdict
        "exact", "approximate" or "none"; "–" without events.
    """

    n: int
    median: float
    largest: float
    above: float
    changed: float
    verdict: str


def _turned(p4: Array, angle: Array) -> Array:
    """Four-momenta turned about the beam by an angle per event, shape (n, …, 4)."""
    angle = angle.reshape(-1, *[1] * (p4.ndim - 2))
    cos, sin = np.cos(angle), np.sin(angle)
    energy, x, y, z = (p4[..., i] for i in range(4))
    return np.stack([energy, cos * x - sin * y, sin * x + cos * y, z], axis=-1)


def _angles(n: int) -> Array:
    return np.random.default_rng(_SEED).uniform(-np.pi, np.pi, n)


def rotated(events: DileptonEvents) -> DileptonEvents:
    """Events turned about the beam, each by an angle of its own."""
    angle = _angles(len(events))
    met = np.concatenate([np.zeros((len(events), 1)), events.met, np.zeros((len(events), 1))], axis=1)
    return replace(
        events,
        lepton_plus=_turned(events.lepton_plus, angle),
        lepton_minus=_turned(events.lepton_minus, angle),
        jets=_turned(events.jets, angle),
        met=_turned(met, angle)[:, 1:3],
    )


def reflected(events: DileptonEvents) -> DileptonEvents:
    """Events mirrored along the beam, z to −z."""
    mirror = np.array([1.0, 1.0, 1.0, -1.0])
    return replace(
        events,
        lepton_plus=events.lepton_plus * mirror,
        lepton_minus=events.lepton_minus * mirror,
        jets=events.jets * mirror,
    )


def charge_conjugated(events: DileptonEvents) -> DileptonEvents:
    """Events with the charges of the leptons exchanged."""
    return replace(
        events,
        lepton_plus=events.lepton_minus,
        lepton_minus=events.lepton_plus,
        lepton_flavour=events.lepton_flavour[:, ::-1],
        b_candidates=events.b_candidates[:, ::-1],
        features=_features(events, "lepton", lambda values: values[:, ::-1]),
    )


def jets_permuted(events: DileptonEvents) -> DileptonEvents:
    """Events with their jets in another order; padding stays after them.

    Methods may read only so many jets. Where an event has more, the order decides which.
    """
    random = np.random.default_rng(_SEED).random(events.jet_mask.shape)
    order = np.argsort(np.where(events.jet_mask, random, 1.0), axis=1, kind="stable")
    new_position = np.argsort(order, axis=1)
    candidates = np.take_along_axis(new_position, np.maximum(events.b_candidates, 0), axis=1)

    def ordered(values: Array) -> Array:
        return np.take_along_axis(values, order, axis=1)

    points = events.jet_working_points
    return replace(
        events,
        jets=np.take_along_axis(events.jets, order[..., None], axis=1),
        jet_mask=ordered(events.jet_mask),
        jet_btag=ordered(events.jet_btag),
        jet_tagged=ordered(events.jet_tagged),
        b_candidates=np.where(events.b_candidates >= 0, candidates, -1),
        jet_working_points=None if points is None else ordered(points),
        features=_features(events, "jet", ordered),
    )


def _features(
    events: DileptonEvents, kind: str, function: Callable[[Array], Array]
) -> dict[str, Array] | None:
    """Features of events, those of one kind changed by a function."""
    if events.features is None:
        return None
    return {
        name: function(values) if name.startswith(f"{kind}:") else values
        for name, values in events.features.items()
    }


def _same(p4: Array) -> Array:
    return p4


TRANSFORMATIONS: dict[str, tuple[Transform, Callable[[Array], Array]]] = {
    "rotation": (rotated, lambda p4: _turned(p4, _angles(len(p4)))),
    "reflection": (reflected, lambda p4: p4 * np.array([1.0, 1.0, 1.0, -1.0])),
    "charge": (charge_conjugated, lambda p4: p4[:, ::-1]),
    "jet_order": (jets_permuted, _same),
}
"""Transformation of events, and its effect on the four-momenta of t and t̄, shape (n, 2, 4)."""


def check_symmetries(
    apply: Apply, methods: Sequence[Method], events: DileptonEvents
) -> dict[str, dict[str, Symmetry]]:
    """Agreement of methods with each symmetry.

    Parameters
    ----------
    apply
        From `topreco.validation.gather.open_pool`.
    methods
        Methods, each with a name of its own.
    events
        Selected events, of which the first `N_EVENTS` are used.

    Returns
    -------
    symmetries
        By method and transformation.
    """
    events = events[:N_EVENTS]
    tasks = [(method, name) for method in methods for name in (None, *TRANSFORMATIONS)]
    pairs = dict(
        zip(
            ((m.name, t) for m, t in tasks),
            apply(partial(_predict, events), tasks, "symmetries"),
            strict=True,
        )
    )
    return {
        method.name: {
            name: compare(pairs[method.name, None], pairs[method.name, name], expected)
            for name, (_, expected) in TRANSFORMATIONS.items()
        }
        for method in methods
    }


def _predict(events: DileptonEvents, task: tuple[Method, str | None]) -> TopPair:
    method, name = task
    return method(events if name is None else TRANSFORMATIONS[name][0](events))


def compare(before: TopPair, after: TopPair, expected: Callable[[Array], Array]) -> Symmetry:
    """Predictions for transformed events against the transformed predictions.

    Parameters
    ----------
    before, after
        Predictions for the events as they are and for the transformed ones.
    expected
        Effect of the transformation on the four-momenta.
    """
    wanted = expected(before.p4)
    finite = np.isfinite(wanted).all(axis=(1, 2)) & np.isfinite(after.p4).all(axis=(1, 2))
    both = before.valid & after.valid & finite
    difference = (np.abs(after.p4[both] - wanted[both]) / wanted[both][..., :1]).max(axis=(1, 2))
    changed = float(np.mean(before.valid != after.valid)) if len(before) else np.nan
    if not both.any():
        return Symmetry(0, np.nan, np.nan, np.nan, changed, "–")
    middle, largest = float(np.median(difference)), float(difference.max())
    if largest <= EXACT and changed == 0:
        verdict = "exact"
    else:
        verdict = "approximate" if middle <= APPROXIMATE else "none"
    return Symmetry(int(both.sum()), middle, largest, float(np.mean(difference > EXACT)), changed, verdict)
