"""Random numbers that belong to an event."""

import numpy as np
import pytest

from topreco.core.errors import TopRecoError
from topreco.solvers.random import SLOTS, event_keys, uniforms

APPROVED_KEYS = [16297102585107777731, 14206353533579446342, 5251874334039489836]
APPROVED_NUMBERS = [0.2857815663198163, 0.9556528855394414, 0.30817242640541287]


@pytest.fixture(scope="module")
def numbers():
    n = 400
    keys = event_keys(np.ones(n, int), np.full(n, 7), np.arange(n), 1)
    return uniforms(keys, 50)


def test_reference_stream_of_splitmix64():
    # The first outputs of the published generator for the seed 1234567.
    expected = np.array([6457827717110365317, 3203168211198807973, 9817491932198370423], np.uint64)
    numbers = uniforms(np.array([1234567], np.uint64), 1)[0, 0, :3]
    assert np.array_equal(numbers, (expected >> np.uint64(11)) * 2.0**-53)


def test_approved_values():
    keys = event_keys([1, 1, 362_104], [1, 2, 1], np.array([1, 1, 2**64 - 1], np.uint64), 1)
    assert keys.tolist() == APPROVED_KEYS
    assert uniforms(keys, 2)[:, 1, 3] == pytest.approx(APPROVED_NUMBERS, abs=1e-15)


def test_uniform(numbers):
    assert numbers.min() >= 0
    assert numbers.max() < 1
    for slot in range(SLOTS):
        counts, _ = np.histogram(numbers[:, :, slot], 100, (0, 1))
        chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert 60 < chi2 < 150  # 99 degrees of freedom


@pytest.mark.parametrize("shift", [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=["events", "draws", "slots"])
def test_neighbours_are_independent(numbers, shift):
    n = tuple(length - step for length, step in zip(numbers.shape, shift, strict=True))
    here = numbers[: n[0], : n[1], : n[2]].ravel()
    there = numbers[shift[0] :, shift[1] :, shift[2] :].ravel()
    assert abs(np.corrcoef(here, there)[0, 1]) < 4 / np.sqrt(len(here))


@pytest.mark.parametrize(
    "other", [(2, 7, 5, 1), (1, 8, 5, 1), (1, 7, 6, 1), (1, 7, 5, 2)], ids=["run", "lumi", "event", "seed"]
)
def test_every_part_of_the_key_counts(other):
    first = uniforms(event_keys([1], [7], [5], 1), 1000).ravel()
    second = uniforms(event_keys(*([part] for part in other[:3]), other[3]), 1000).ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(len(first))
    assert not np.isin(first, second).any()


def test_order_and_chunks_do_not_matter():
    run, lumi, event = np.ones(20, int), np.arange(20) // 3, np.arange(20) ** 2
    keys = event_keys(run, lumi, event, 3)
    assert np.array_equal(event_keys(run[::-1], lumi[::-1], event[::-1], 3), keys[::-1])
    assert np.array_equal(event_keys(run[4:9], lumi[4:9], event[4:9], 3), keys[4:9])
    assert np.array_equal(uniforms(keys, 10)[:, :3], uniforms(keys, 3))


def test_no_events():
    assert uniforms(event_keys(*[np.zeros(0, int)] * 3, 1), 5).shape == (0, 5, SLOTS)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed):
    with pytest.raises(TopRecoError, match=f"seed is {seed}, expected 0 to"):
        event_keys([1], [1], [1], seed)


def test_different_shapes():
    with pytest.raises(TopRecoError, match=r"shapes \(2,\), \(1,\), \(1,\)"):
        event_keys([1, 1], [1], [1], 1)


def test_no_integers():
    with pytest.raises(TopRecoError, match="float64 found, integers expected"):
        event_keys([1], [1], [1.0], 1)
