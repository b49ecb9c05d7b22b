"""Whatever uses an observable takes the method's own value where it has one, and not that of its p4."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from topreco.config import HistogramConfig, PhaseSpaceConfig, UnfoldingConfig
from topreco.core.events import TopPair
from topreco.core.observables import OBSERVABLES, pair_values
from topreco.core.spin import spin_coefficients
from topreco.evaluation.fill import fill
from topreco.evaluation.histograms import book
from topreco.evaluation.responses import book_responses, fill_responses
from topreco.reconstruction.recalibration import ResponseCurve
from topreco.reconstruction.wrappers import Recalibrated
from topreco.runs.columns import event_columns
from topreco.validation.gather import tabulate
from topreco.validation.joined import JoinedMethod

N = 400


@dataclasses.dataclass
class Fixed:
    """Always the same prediction."""

    pair: TopPair
    name: str = "method"
    uses_event_key: bool = True
    fingerprint: str = "fixed"

    def __call__(self, events):
        return self.pair[: len(events)]


@pytest.fixture(scope="module")
def sample(toy):
    """Events, a right prediction, the same one as values beside spoilt four-momenta, and the truth."""
    events, pair, truth = toy(N)
    right = dataclasses.replace(pair, p4=np.where(pair.valid[:, None, None], pair.p4, np.nan))
    values = pair_values(right, events.lepton_p4, OBSERVABLES)
    # What stands where the method has no prediction must not show.
    own = {name: np.where(pair.valid, column, 7.0) for name, column in values.items()}
    spoilt = pair.p4[:, ::-1] * np.array([1.5, 0.4, 0.7, -1.2])
    return events, right, dataclasses.replace(right, p4=spoilt, observables=own), truth


def assert_same_histograms(one, other):
    assert one.keys() == other.keys()
    for key, histogram in one.items():
        assert histogram == other[key], key


def test_values_are_the_methods_own_or_those_of_its_tops(sample):
    events, right, spoilt, _ = sample
    expected = pair_values(right, events.lepton_p4, OBSERVABLES)
    found = pair_values(spoilt, events.lepton_p4, OBSERVABLES)
    assert list(found) == list(OBSERVABLES)
    for name, column in found.items():
        np.testing.assert_array_equal(column, expected[name], err_msg=name)
        assert not np.isfinite(column[~right.valid]).any()
    some = dataclasses.replace(right, observables={"c_hel": np.full(N, 0.25)})
    mixed = pair_values(some, events.lepton_p4, ["m_tt", "c_hel"])
    np.testing.assert_array_equal(mixed["m_tt"], expected["m_tt"])
    assert (mixed["c_hel"][right.valid] == 0.25).all()


def test_histograms(sample):
    events, right, spoilt, truth = sample
    config = HistogramConfig(observables=("m_tt", "pt_tt", "y_top", "c_hel", "cos_1k_2k"))
    filled = []
    for pair in (right, spoilt):
        filled.append(book(config))
        fill(filled[-1], dataset="tt", method="a", events=events, pair=pair, truth=truth)
    assert filled[0]["spectrum/c_hel"].sum(flow=True).value != 0
    assert_same_histograms(*filled)


def test_response_matrices(sample):
    events, right, spoilt, truth = sample
    filled = []
    for pair in (right, spoilt):
        filled.append(book_responses(UnfoldingConfig(observables=["m_tt", "cos_1n", "c_han"])))
        fill_responses(
            filled[-1],
            PhaseSpaceConfig(),
            dataset="tt",
            method="a",
            events=events,
            pair=pair,
            truth=truth,
        )
    assert_same_histograms(*filled)


def test_friend_columns(sample, tmp_path):
    events, right, spoilt, _ = sample
    expected, found = (event_columns(events, {"a": pair}) for pair in (right, spoilt))
    for name in OBSERVABLES:
        np.testing.assert_array_equal(found[f"a_{name}"], expected[f"a_{name}"], err_msg=name)
    # The four-momenta are those of the method.
    assert not np.allclose(found["a_top_pt"], expected["a_top_pt"], equal_nan=True)
    pq.write_table(pa.table(found), tmp_path / "friends.parquet")
    joined = JoinedMethod("a", tmp_path / "friends.parquet")(events)
    for name, column in pair_values(joined, events.lepton_p4, OBSERVABLES).items():
        np.testing.assert_allclose(column, expected[f"a_{name}"], rtol=1e-6, err_msg=name)


def test_validation(sample):
    events, right, spoilt, truth = sample
    one, other = (
        tabulate(events, truth, [Fixed(pair)], tuple(OBSERVABLES)).predictions["method"]
        for pair in (right, spoilt)
    )
    for name in OBSERVABLES:
        np.testing.assert_array_equal(other.values[name], one.values[name], err_msg=name)


def test_spin_coefficients(sample):
    events, right, spoilt, _ = sample
    expected = spin_coefficients(right.p4, events.lepton_p4, events.weight)
    for pair in (right, spoilt):
        found = spin_coefficients(pair, events.lepton_p4, events.weight)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_spin_coefficients_of_means_are_not_those_of_one_pair(sample):
    """⟨cosθ₁ cosθ₂⟩ of a method is the mean of its product, not the product of its means."""
    events, right, spoilt, _ = sample
    own = dict(spoilt.observables) | {"cos_1k_2k": np.full(N, 0.1), "c_hel": np.full(N, 0.3)}
    found = spin_coefficients(dataclasses.replace(right, observables=own), events.lepton_p4)
    assert found["C_kk"].value == pytest.approx(-0.9)
    assert found["D"].value == pytest.approx(-0.9)


def test_recalibration(sample):
    events, _, spoilt, _ = sample
    curve = ResponseCurve(np.array([400.0, 1000.0]), np.array([380.0, 1200.0]))
    other = Recalibrated(Fixed(spoilt), curve)(events)
    factor = curve.factor(np.where(spoilt.valid, spoilt.observables["m_tt"], np.nan))
    momenta = {"m_tt", "pt_tt", "pt_top", "pt_antitop", "m_top", "m_antitop"}
    for name, column in pair_values(other, events.lepton_p4, OBSERVABLES).items():
        own = np.where(spoilt.valid, spoilt.observables[name], np.nan)
        np.testing.assert_allclose(column, own * factor if name in momenta else own, err_msg=name)
    np.testing.assert_allclose(other.p4[other.valid], (spoilt.p4 * factor[:, None, None])[other.valid])
