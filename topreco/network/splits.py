"""Which events train, validate and test, and which network reconstructs an event: needs no torch.

Both are hashes of each event's key. They depend neither on the order of files nor on which other events are
there, and the two salts must never change: a network would be tested on what it was trained on.
"""

import numpy as np

from topreco.config import DataConfig
from topreco.core.events import DileptonEvents, IntArray

SPLIT_SALT = 1
FOLD_SALT = 2

TRAIN, VALIDATION, TEST = 0, 1, 2


def split_of(events: DileptonEvents, config: DataConfig) -> IntArray:
    """Split of each event.

    Test events are taken from the lower end of the hash's range and validation events from its upper end, so
    that changing one fraction leaves the other split as it is.

    Parameters
    ----------
    events
        Selected events.
    config
        Fractions of the splits. With several folds nothing is `TEST`: each network is tested on its fold.

    Returns
    -------
    split
        `TRAIN`, `VALIDATION` or `TEST`, shape (n,).
    """
    hashed = events.uniform(SPLIT_SALT)
    split = np.where(hashed >= 1 - config.validation_fraction, VALIDATION, TRAIN)
    if config.folds == 1:
        split = np.where(hashed < config.test_fraction, TEST, split)
    return split.astype(np.int8)


def same_key(events: DileptonEvents) -> bool:
    """True if all events have one key, so that no hash of it can tell them apart."""
    return len(np.unique(events.uniform(SPLIT_SALT))) <= 1


def fold_of(events: DileptonEvents, folds: int) -> IntArray:
    """Fold of each event: the index of the one network that has not seen it.

    Parameters
    ----------
    events
        Selected events.
    folds
        Number of networks.

    Returns
    -------
    fold
        Index in [0, folds), shape (n,).
    """
    return np.floor(events.uniform(FOLD_SALT) * folds).astype(np.int16)
