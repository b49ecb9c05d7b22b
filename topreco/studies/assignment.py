"""Assignment of decay products to the right top, event by event."""

import numpy as np

from topreco.core import fourvector
from topreco.core.events import FloatArray
from topreco.core.statistics import Array


def right_tops(pred: FloatArray, truth: FloatArray) -> Array:
    """True where predicted t and t̄ are closer to their own true quarks than to each other's.

    With d the distance of three-momenta, d(t_pred, t)² + d(t̄_pred, t̄)² < d(t_pred, t̄)² + d(t̄_pred, t)²,
    which is (t_pred − t̄_pred)·(t − t̄) > 0. Half of the events pass by chance.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).

    Returns
    -------
    right
        1 or 0, NaN where a momentum is not finite, shape (n,).
    """
    relative = [p4[:, 0, 1:] - p4[:, 1, 1:] for p4 in (pred, truth)]
    product = (relative[0] * relative[1]).sum(axis=1)
    return np.where(np.isfinite(product), product > 0, np.nan)


def right_pairing(pred: FloatArray, leptons: FloatArray, b: FloatArray) -> Array:
    """True where predicted t and t̄ fit the true pairing of b and leptons better than the exchanged one.

    Each top minus a lepton and a b quark is a neutrino, whose mass should vanish. The pairing is right if

        |(t − ℓ⁺ − b)²| + |(t̄ − ℓ⁻ − b̄)²| < |(t − ℓ⁺ − b̄)²| + |(t̄ − ℓ⁻ − b)²|.

    Half of the events pass by chance.

    Parameters
    ----------
    pred
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    leptons
        ℓ⁺ and ℓ⁻, shape (n, 2, 4).
    b
        True b and b̄, shape (n, 2, 4).

    Returns
    -------
    right
        1 or 0, NaN where a momentum is not finite, shape (n,).
    """
    right, exchanged = (
        np.abs(fourvector.mass_squared(pred - leptons - quarks)).sum(axis=1) for quarks in (b, b[:, ::-1])
    )
    return np.where(np.isfinite(right) & np.isfinite(exchanged), right < exchanged, np.nan)
