import numpy as np
import pytest

from topreco.config import DataConfig
from topreco.core.events import toy_events
from topreco.network.splits import (
    FOLD_SALT,
    SPLIT_SALT,
    TEST,
    TRAIN,
    VALIDATION,
    fold_of,
    split_of,
)

SPLIT_HASHES = [0.2628515991946846, 0.0030118860633624456, 0.27059593501557355, 0.09645913107510629]
FOLD_HASHES = [0.6720297920688498, 0.32817373911990777, 0.9345178492746627, 0.6700255866621223]
SPLITS = [0, 2, 0, 2, 0, 2, 0, 0, 0, 2, 0, 2, 0, 0, 0, 2]
FOLDS = [3, 1, 4, 3, 1, 1, 2, 4, 0, 2, 2, 0, 2, 2, 0, 0]


def test_hashes_never_change():
    """Were they other than here, every model ever trained would be tested on its training events."""
    events = toy_events(4)
    assert (SPLIT_SALT, FOLD_SALT) == (1, 2)
    np.testing.assert_allclose(events.uniform(SPLIT_SALT), SPLIT_HASHES, rtol=0, atol=1e-15)
    np.testing.assert_allclose(events.uniform(FOLD_SALT), FOLD_HASHES, rtol=0, atol=1e-15)
    assert split_of(toy_events(16), DataConfig()).tolist() == SPLITS
    assert fold_of(toy_events(16), 5).tolist() == FOLDS


def test_fractions():
    events = toy_events(40_000, max_jets=2)
    split = split_of(events, DataConfig(validation_fraction=0.1, test_fraction=0.25))
    for code, fraction in ((TRAIN, 0.65), (VALIDATION, 0.1), (TEST, 0.25)):
        # Five standard deviations of a binomial.
        assert abs((split == code).mean() - fraction) < 5 * (fraction * (1 - fraction) / 40_000) ** 0.5
    fold = fold_of(events, 4)
    assert set(fold.tolist()) == {0, 1, 2, 3}
    assert np.abs(np.bincount(fold) / 40_000 - 0.25).max() < 5 * (0.1875 / 40_000) ** 0.5
    # Splits and folds are independent.
    assert abs((split[fold == 0] == VALIDATION).mean() - 0.1) < 5 * (0.09 / 10_000) ** 0.5


def test_do_not_depend_on_the_other_events():
    events = toy_events(1000)
    chosen = np.random.default_rng(0).permutation(1000)[:300]
    config = DataConfig()
    np.testing.assert_array_equal(split_of(events[chosen], config), split_of(events, config)[chosen])
    np.testing.assert_array_equal(fold_of(events[chosen], 3), fold_of(events, 3)[chosen])


def test_changing_one_fraction_leaves_the_other_split():
    events = toy_events(1000)
    few = split_of(events, DataConfig(test_fraction=0.1))
    many = split_of(events, DataConfig(test_fraction=0.4))
    np.testing.assert_array_equal(few == VALIDATION, many == VALIDATION)
    assert ((few == TEST) <= (many == TEST)).all()


def test_several_folds_have_no_further_test_split():
    assert TEST not in split_of(toy_events(1000), DataConfig(folds=2))


@pytest.mark.parametrize("folds", [1, 3])
def test_no_events(folds):
    events = toy_events(2)[:0]
    assert split_of(events, DataConfig()).shape == fold_of(events, folds).shape == (0,)
