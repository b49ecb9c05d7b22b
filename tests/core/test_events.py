"""The structs of arrays: shapes, indexing, concatenation, the hash of an event's key."""

import dataclasses

import numpy as np
import pytest

from topreco.core.events import CHANNELS, DileptonEvents, TopPair, Truth, dataset_id, toy_events


def test_quantiles_are_picked_and_joined_by_name():
    values = np.arange(20.0).reshape(4, 5)
    pair = TopPair(np.zeros((4, 2, 4)), np.ones(4, dtype=bool), quantiles={"m_tt": values})
    assert np.array_equal(pair[1:3].quantiles["m_tt"], values[1:3])
    joined = TopPair.concatenate([pair[:1], pair[1:]])
    assert np.array_equal(joined.quantiles["m_tt"], values)
    other = TopPair(np.zeros((4, 2, 4)), np.ones(4, dtype=bool), quantiles={"c_hel": values})
    with pytest.raises(ValueError, match="the entries of 'quantiles' differ"):
        TopPair.concatenate([pair, other])
    with pytest.raises(ValueError, match=r"TopPair.quantiles\['m_tt'\]: shape \(4, 3\)"):
        TopPair(np.zeros((4, 2, 4)), np.ones(4, dtype=bool), quantiles={"m_tt": values[:, :3]})


def test_indexing_and_concatenation_are_inverse():
    events = toy_events(20, seed=3)
    again = DileptonEvents.concatenate([events[:7], events[7:7], events[np.arange(7, 20)]])
    for field in dataclasses.fields(events):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(events, field.name))


def test_optional_columns_must_be_in_all_parts_or_none():
    plain = TopPair(np.zeros((1, 2, 4)), np.ones(1, dtype=bool))
    rich = dataclasses.replace(plain, quality=np.ones(1))
    assert TopPair.concatenate([plain, plain]).quality is None
    assert TopPair.concatenate([rich, rich]).quality.shape == (2,)
    with pytest.raises(ValueError, match="'quality' is present in some parts only"):
        TopPair.concatenate([plain, rich])
    with pytest.raises(ValueError, match="at least one part"):
        TopPair.concatenate([])


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"DileptonEvents.met: shape \(3, 3\) found, \(3, 2\) expected"):
        dataclasses.replace(toy_events(3), met=np.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"TopPair.p4: shape \(4, 2\) found"):
        TopPair(np.zeros((4, 2)), np.ones(4, dtype=bool))


def test_channel_counts_muons():
    events = dataclasses.replace(toy_events(3), lepton_flavour=np.array([[11, 11], [13, 11], [13, 13]]))
    assert [CHANNELS[i] for i in events.channel] == ["ee", "emu", "mumu"]


def test_b_candidates_are_jets_or_nan():
    events = dataclasses.replace(toy_events(2), b_candidates=np.array([[1, 0], [-1, 1]]))
    np.testing.assert_array_equal(events.b_candidate_p4[0], events.jets[0, [1, 0]])
    assert np.isnan(events.b_candidate_p4[1, 0]).all()
    np.testing.assert_array_equal(events.b_candidate_p4[1, 1], events.jets[1, 1])


def test_uniform_is_a_fixed_function_of_the_key():
    events = toy_events(4)
    # Approved values: splits of published trainings depend on them.
    assert dataset_id("toy") == 14527196104900615309
    np.testing.assert_array_equal(events.uniform(), events[::-1].uniform()[::-1])
    np.testing.assert_allclose(
        events.uniform(),
        [0.7046125688981273, 0.15704843504658217, 0.9937763728531208, 0.021459764382973923],
        rtol=1e-12,
    )
    assert not np.isclose(events.uniform(1), events.uniform()).any()
    other = dataclasses.replace(events, dataset=events.dataset + np.uint64(1))
    assert not np.isclose(other.uniform(), events.uniform()).any()


def test_uniform_is_uniform_and_salts_are_independent():
    events = toy_events(20_000)
    a, b = events.uniform(0), events.uniform(1)
    counts = np.histogram2d(a, b, bins=4, range=[[0, 1], [0, 1]])[0]
    assert ((counts - 1250) ** 2 / 1250).sum() < 40  # χ² of 15 degrees of freedom


def test_system_is_the_sum_unless_the_method_gives_it():
    p4 = np.random.default_rng(0).normal(size=(3, 2, 4))
    pair = TopPair(p4, np.ones(3, dtype=bool))
    np.testing.assert_array_equal(pair.system, p4.sum(axis=1))
    only = TopPair(np.full((3, 2, 4), np.nan), np.ones(3, dtype=bool), ttbar=p4[:, 0])
    np.testing.assert_array_equal(only.system, p4[:, 0])


def test_truth_without_tops_is_not_valid():
    p4 = np.ones((2, 2, 4))
    p4[1] = np.nan
    flags = np.zeros((2, 2), dtype=bool)
    truth = Truth(p4, p4, p4, p4, p4, flags, flags[:, 0], np.zeros(2, dtype=np.int8))
    np.testing.assert_array_equal(truth.valid, [True, False])
