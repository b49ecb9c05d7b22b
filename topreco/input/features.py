"""Inputs of networks beyond momenta and the b-tag score: working points passed, and features of one's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from topreco.config import FeaturesConfig, lepton_branches
from topreco.core.constants import PDG_MUON
from topreco.core.events import FloatArray, IntArray
from topreco.input.branches import Branches


def count_working_points(score: FloatArray, points: Mapping[Any, float] | None) -> IntArray | None:
    """Number of working points that b-tag scores pass, exclusive as everywhere.

    Parameters
    ----------
    score
        Scores, any shape; 0 for a jet without one, which passes none.
    points
        Score at each working point, rising; None if they are not known.

    Returns
    -------
    counts
        Of the same shape; None if the working points are not known.
    """
    if points is None:
        return None
    passed = [score > threshold for threshold in points.values()]
    return np.sum(passed, axis=0, dtype=np.int8)


def read_features(
    branches: Branches,
    features: FeaturesConfig,
    index: IntArray,
    lepton_index: IntArray,
    flavour: IntArray,
    jet_index: IntArray,
) -> dict[str, FloatArray] | None:
    """Features of selected events, each read from its branch at the positions of the objects.

    They are as in the file, whatever corrections and variations did to the momenta, and may be NaN.

    Parameters
    ----------
    branches
        Branches of the chunk.
    features
        Names.
    index
        Positions of the events in the chunk, shape (n,).
    lepton_index
        Positions of ℓ⁺ and ℓ⁻ among all electrons or all muons of the chunk, shape (n, 2).
    flavour
        |pdgId| of both, shape (n, 2).
    jet_index
        Positions of the jets among all jets of the chunk, −1 where padded, shape (n, max_jets).

    Returns
    -------
    values
        See `topreco.core.events.DileptonEvents`; None without features.

    Raises
    ------
    topreco.input.nano.InputError
        If a branch is missing, is not one number per object or per event, or cannot be read.
    """
    if not features.names:
        return None
    found: dict[str, FloatArray] = {}
    for name in features.jet:
        found[f"jet:{name}"] = _at(branches, name, jet_index, jet_index >= 0)
    muon = flavour == PDG_MUON
    for name in features.lepton:
        of_electrons, of_muons = lepton_branches(name)
        values = _at(branches, of_electrons, lepton_index, ~muon) + _at(
            branches, of_muons, lepton_index, muon
        )
        found[f"lepton:{name}"] = values
    for name in features.event:
        values = branches.read(name, key="features.event", per_event=True)
        found[f"event:{name}"] = values[index].astype(np.float64)
    return found


def _at(branches: Branches, name: str, index: IntArray, there: Any) -> FloatArray:
    """Values of a branch at positions where there is an object, 0 elsewhere."""
    # One value per event is not one per object.
    branches.counts(name)
    values = np.zeros(index.shape)
    values[there] = branches.read(name)[index[there]]
    return values
