"""Events with perfect parts: each is replaced and nothing else."""

import dataclasses

import numpy as np
import pytest

from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import Truth, toy_events
from topreco.core.skim import Skim, SkimWriter
from topreco.studies.perfect import perfected, write_perfect


@pytest.fixture
def sample():
    """Events whose b quark of t is the third jet and that of t̄ the first, both badly measured."""
    events = toy_events(20, seed=2)
    events = dataclasses.replace(events, jet_mask=np.arange(12) < np.full((20, 1), 4))
    b = 1.3 * events.jets[:, [2, 0]]
    lepton = 1.1 * events.lepton_p4
    neutrino = fourvector.from_three_momentum(np.random.default_rng(0).normal(0, 60, (20, 2, 3)), 0.0)
    w = lepton + neutrino
    via_tau = np.zeros((20, 2), bool)
    via_tau[3, 1] = True
    return events, Truth(w + b, w, b, lepton, neutrino, via_tau, np.ones(20, bool), np.zeros(20, np.int8))


def far_apart(events):
    """True where the first four jets leave no doubt about which is nearest."""
    jets = events.jets[:, :4]
    distance = fourvector.delta_r(jets[:, :, None], jets[:, None]) + 10 * np.eye(4)
    return distance.min(axis=(1, 2)) > 0.4


def test_each_part_is_replaced_and_nothing_else(sample):
    events, truth = sample
    assert perfected(events, truth, ["none"]) is events
    clear = far_apart(events)
    assert clear.sum() > 5
    paired = perfected(events, truth, ["pairing"])
    np.testing.assert_array_equal(paired.b_candidates[clear], [[2, 0]] * clear.sum())
    assert paired.jets is events.jets

    scaled = perfected(events, truth, ["b_energies"])
    np.testing.assert_allclose(scaled.jets[clear][:, [2, 0], 0], truth.b[clear, :, 0])
    np.testing.assert_allclose(scaled.jets[clear][:, [2, 0]], 1.3 * events.jets[clear][:, [2, 0]])
    np.testing.assert_array_equal(scaled.jets[:, [1, 3]][clear], events.jets[:, [1, 3]][clear])
    assert scaled.b_candidates is events.b_candidates

    met = perfected(events, truth, ["met"])
    np.testing.assert_allclose(met.met, truth.neutrino.sum(1)[:, 1:3])
    assert met.lepton_plus is events.lepton_plus

    everything = perfected(events, truth, ["jets", "leptons", "met"])
    np.testing.assert_allclose(everything.lepton_minus, truth.lepton[:, 1])
    assert (everything.n_jets == 2).all()
    np.testing.assert_allclose(everything.b_candidate_p4, truth.b)
    assert (np.diff(fourvector.pt(everything.jets[:, :2]), axis=1) <= 0).all()


def test_quarks_without_jets_have_no_candidates(sample):
    events, truth = sample
    away = dataclasses.replace(truth, b=truth.b[:, [0, 0]])  # both at the same jet
    assert (perfected(events, away, ["pairing"]).b_candidates == -1).all()
    away = dataclasses.replace(truth, b=truth.b * np.array([1.0, -1.0, -1.0, -1.0]))
    found = perfected(events, away, ["pairing"]).b_candidates
    assert (found[far_apart(events)] == -1).any()
    lost = (found == -1).all(axis=1)
    one = dataclasses.replace(truth, b=truth.b * np.array([[1.0], [-1.0]]) ** np.array([0, 1, 1, 1]))
    kept = perfected(events, one, ["b_energies"]).jets
    assert not np.allclose(kept, events.jets), "that of one quark is scaled although the other has no jet"
    np.testing.assert_array_equal(
        perfected(events, away, ["b_energies"]).jets[lost][:, :, 1:] == 0, events.jets[lost][:, :, 1:] == 0
    )


def test_perfect_skim(sample, tmp_path):
    events, truth = sample
    with SkimWriter(tmp_path / "in.parquet") as writer:
        writer.metadata["selection"] = {"met_min": 40}
        writer.write(events, truth)
    skim = Skim(write_perfect(writer.path, tmp_path / "out.parquet", ["met"]))
    # The event with a τ is gone.
    assert len(skim) == 19
    assert skim.metadata["perfect"] == ["met"]
    assert skim.metadata["selection"] == {"met_min": 40}
    np.testing.assert_allclose(skim.read()[0].met[4], truth.neutrino.sum(1)[5, 1:3], rtol=1e-6)


def test_skims_without_truth_are_refused(sample, tmp_path):
    with SkimWriter(tmp_path / "data.parquet") as writer:
        writer.write(sample[0], None)
    with pytest.raises(TopRecoError, match=r"data\.parquet: no truth in this skim"):
        write_perfect(writer.path, tmp_path / "out.parquet", ["met"])
    assert not (tmp_path / "out.parquet").exists()
