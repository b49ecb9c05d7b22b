"""Fractions of events with the right tops and the right pairing."""

import numpy as np
import pytest

from topreco.core import fourvector
from topreco.core.statistics import fraction
from topreco.studies.assignment import right_pairing, right_tops


@pytest.fixture
def decays():
    """Exact decays t → b ℓ ν with massless neutrinos: tops, leptons, b quarks, each shape (n, 2, 4)."""
    rng = np.random.default_rng(3)
    leptons, b, neutrinos = (
        fourvector.from_three_momentum(rng.normal(0, 60, (50, 2, 3)), mass) for mass in (0.1, 4.8, 0.0)
    )
    return leptons + b + neutrinos, leptons, b


def test_truth_is_right_and_exchanged_truth_is_wrong(decays):
    tops, leptons, b = decays
    assert right_tops(tops, tops).all()
    assert not right_tops(tops[:, ::-1], tops).any()
    assert right_pairing(tops, leptons, b).all()
    # With the b quarks exchanged, the tops fit what is now the wrong pairing.
    assert not right_pairing(tops, leptons, b[:, ::-1]).any()


def test_own_top_is_the_closer_one(decays):
    """The scalar product is the comparison of distances that the docstring says it is."""
    tops = decays[0]
    pred = np.random.default_rng(4).permutation(tops)
    own, other = (((pred - truth)[..., 1:] ** 2).sum(axis=(1, 2)) for truth in (tops, tops[:, ::-1]))
    assert np.array_equal(right_tops(pred, tops) > 0, own < other)


def test_unknown_events_do_not_count(decays):
    tops, leptons, b = decays
    pred = tops.copy()
    pred[0] = np.nan
    b[1] = np.nan
    assert np.isnan(right_tops(pred, tops)).tolist() == [True] + [False] * 49
    right = right_pairing(pred, leptons, b)
    assert np.isnan(right).tolist() == [True, True] + [False] * 48
    value, error = fraction(right, np.ones(50))
    assert (value, error) == (1.0, 0.0)


def test_fraction_by_hand():
    value, error = fraction(np.array([1.0, 0.0, 0.0, 1.0, np.nan]), np.array([1.0, 1.0, 1.0, 1.0, 100.0]))
    assert value == 0.5
    assert error == pytest.approx(0.25)
    value, _ = fraction(np.array([1.0, 0.0]), np.array([3.0, 1.0]))
    assert value == 0.75
