"""Random numbers that belong to an event: counter-based, from (run, lumi, event, seed).

The number of draw d and slot s of an event is a hash of the event's key and of the counter (d, s). Nothing
has a state, so that results depend neither on which other events are processed, nor on their order, the size
of chunks or the number of threads.

The hash is SplitMix64 [1]_: its output function scatters the key plus a multiple of the golden ratio. The
dataset is no part of the key: the same event gets the same numbers under any name of its sample.

References
----------
.. [1] G. L. Steele, D. Lea, C. H. Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from topreco.core.errors import TopRecoError
from topreco.solvers.per_event import inlined_kernel, kernel

Keys = NDArray[np.uint64]

SLOTS = 16
"""Numbers available per draw."""

# Numba would turn a sum of signed and unsigned integers into floating point: every number here is unsigned.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_SHIFT_FIRST, _SHIFT_SECOND, _SHIFT_THIRD = np.uint64(30), np.uint64(27), np.uint64(31)
# The upper 53 bits fill the mantissa of a double.
_SHIFT_MANTISSA, _MANTISSA = np.uint64(11), 2.0**-53
_SLOTS = np.uint64(SLOTS)


@inlined_kernel
def _scatter(x: np.uint64) -> np.uint64:
    """SplitMix64's output function, a bijection of 64-bit integers."""
    x = (x ^ (x >> _SHIFT_FIRST)) * _FIRST
    x = (x ^ (x >> _SHIFT_SECOND)) * _SECOND
    return x ^ (x >> _SHIFT_THIRD)


@inlined_kernel
def uniform(key: np.uint64, draw: int, slot: int) -> float:
    """Random number in [0, 1), for use inside compiled loops.

    Parameters
    ----------
    key
        Key of the event, from `event_keys`.
    draw, slot
        Counter; slots run from 0 to `SLOTS` − 1.

    Returns
    -------
    number
        A multiple of 2⁻⁵³.
    """
    counter = np.uint64(draw) * _SLOTS + np.uint64(slot)
    # One step beyond, since the counter 0 would give the key itself to the output function.
    state = key + (counter + np.uint64(1)) * _GOLDEN
    return np.float64(_scatter(state) >> _SHIFT_MANTISSA) * _MANTISSA


@kernel
def _hash(parts: Keys, keys: Keys) -> None:
    for i in range(len(keys)):
        key = np.uint64(0)
        for part in range(parts.shape[0]):
            key = _scatter((key ^ parts[part, i]) + _GOLDEN)
        keys[i] = key


@kernel
def _fill(keys: Keys, numbers: NDArray[np.float64]) -> None:
    for i in range(len(keys)):
        for draw in range(numbers.shape[1]):
            for slot in range(numbers.shape[2]):
                numbers[i, draw, slot] = uniform(keys[i], draw, slot)


def event_keys(run: ArrayLike, luminosity_block: ArrayLike, event: ArrayLike, seed: int) -> Keys:
    """Key of each event's random numbers.

    Parameters
    ----------
    run, luminosity_block, event
        As in NanoAOD, integers of shape (n,).
    seed
        Different seeds, 0 to 2⁶⁴ − 1, give independent numbers.

    Returns
    -------
    keys
        64-bit keys, shape (n,).

    Raises
    ------
    TopRecoError
        If the seed is out of range, a column is not of integers or the shapes differ.
    """
    if not 0 <= seed < 2**64:
        raise TopRecoError(f"seed is {seed}, expected 0 to 2**64 - 1")
    columns = [np.asarray(column) for column in (run, luminosity_block, event)]
    for column in columns:
        # Numbers of 64 bits do not survive as floating point.
        if column.dtype.kind not in "iu":
            raise TopRecoError(f"event keys: numbers of type {column.dtype} found, integers expected")
    shape = columns[0].shape
    if len(shape) != 1 or any(column.shape != shape for column in columns):
        found = ", ".join(str(column.shape) for column in columns)
        raise TopRecoError(f"event keys: run, luminosity block and event have shapes {found}, expected (n,)")
    keys = np.empty(shape, np.uint64)
    _hash(
        np.stack([np.full(shape, seed, np.uint64), *(column.astype(np.uint64) for column in columns)]), keys
    )
    return keys


def uniforms(keys: Keys, n_draws: int) -> NDArray[np.float64]:
    """The random numbers of events as an array.

    Parameters
    ----------
    keys
        Keys from `event_keys`, shape (n,).
    n_draws
        Number of draws.

    Returns
    -------
    numbers
        In [0, 1), shape (n, n_draws, `SLOTS`).
    """
    numbers = np.empty((len(keys), n_draws, SLOTS))
    _fill(keys, numbers)
    return numbers
