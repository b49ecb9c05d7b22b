"""Response matrices: known examples, laws of folding and merging, and bins that keep their promises."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from topreco.config import UnfoldingConfig
from topreco.core.errors import TopRecoError
from topreco.core.statistics import bin_starts, merge_bins, purity, stability
from topreco.evaluation.responses import book_responses
from topreco.measurement.unfolding import (
    BinRequirements,
    ResponseMatrix,
    Sums,
    optimal_edges,
    optimise,
    read_response,
)


def unit(values):
    """Sums of events of weight one."""
    values = np.asarray(values, float)
    return Sums(values, values.copy())


def response_of(matrix, generated, *, fakes=0, unsolved=0, reco_edges=None):
    """A response of unit weights, without flow unless the arrays have it."""
    matrix = np.asarray(matrix, float)
    k, m = matrix.shape[0] - 2, matrix.shape[1] - 2
    fakes = np.zeros(m + 2) + fakes
    return ResponseMatrix(
        "m_tt",
        np.arange(k + 1.0),
        np.arange(m + 1.0) if reco_edges is None else np.asarray(reco_edges, float),
        response=unit(matrix),
        measured=unit(matrix.sum(axis=0) + fakes),
        fakes=unit(fakes),
        not_reconstructed=unit(np.zeros(k + 2) + unsolved),
        generated=unit(generated),
    )


TWO = response_of(
    # Truth below, in two bins, above; the same for reconstruction.
    [[0, 10, 0, 0], [5, 60, 15, 0], [0, 30, 90, 0], [0, 0, 15, 5]],
    [20, 400, 600, 50],
    fakes=[0, 50, 30, 0],
    unsolved=[0, 20, 80, 0],
)


def test_two_bins_by_hand():
    for name, expected in {
        "purity": [60 / 100, 90 / 120],
        "stability": [60 / 80, 90 / 120],
        "acceptance": [80 / 400, 120 / 600],
        "efficiency": [80 / 100, 120 / 200],
        "fake_fraction": [50 / 150, 30 / 150],
    }.items():
        np.testing.assert_allclose(getattr(TWO, name).value, expected, err_msg=name)
    np.testing.assert_allclose(TWO.purity.error[0], math.sqrt(0.6 * 0.4 / 100))
    np.testing.assert_allclose(TWO.missed.value, [10, 320, 480, 30])
    np.testing.assert_allclose(TWO.missed.variance, [10, 320, 480, 30])
    # P = [[60, 15]/400, [30, 90]/600] = [[3, 0.75], [1, 3]]/20, so σ² are eigenvalues of P Pᵀ.
    squares = np.linalg.eigvalsh(np.array([[9.5625, 5.25], [5.25, 10.0]]))
    assert TWO.condition_number == pytest.approx(math.sqrt(squares[1] / squares[0]))


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0], [0, 1]], 1),
        ([[0.8, 0.2], [0.2, 0.8]], 1 / 0.6),
        ([[0.5, 0.5], [0.5, 0.5]], math.inf),
        ([[0.4, 0.4, 0.1, 0.1], [0.1, 0.1, 0.4, 0.4]], 1 / 0.6),
        ([[1], [1]], math.inf),
    ],
)
def test_condition_number(matrix, expected):
    padded = np.pad(100 * np.asarray(matrix, float), 1)
    response = response_of(padded, np.pad(np.full(len(matrix), 100.0), 1))
    assert response.condition_number == pytest.approx(expected)


def test_what_is_undefined_is_nan():
    response = response_of(np.zeros((4, 4)), [0, 0, 10, 0])
    for share in (response.purity, response.stability, response.efficiency):
        assert np.isnan(share.value).all()
    np.testing.assert_array_equal(response.acceptance.value, [np.nan, 0])
    assert math.isnan(response.condition_number)


def test_negative_weights():
    """Signed sums count; where they are not positive, there is no fraction, but errors add up in squares."""
    response = ResponseMatrix(
        "m_tt",
        np.arange(3.0),
        np.arange(3.0),
        response=Sums(np.pad([[4.0, -1], [-5, 4]], 1), np.pad([[6.0, 1], [5, 6]], 1)),
        measured=Sums(np.array([0, -1.0, 3, 0]), np.array([0, 11.0, 7, 0])),
        fakes=unit(np.zeros(4)),
        not_reconstructed=unit(np.zeros(4)),
        generated=Sums(np.array([0, 10.0, -2, 0]), np.array([0, 30.0, 30, 0])),
    )
    np.testing.assert_allclose(response.purity.value, [np.nan, 4 / 3])
    np.testing.assert_allclose(response.stability.value, [4 / 3, np.nan])
    np.testing.assert_allclose(response.acceptance.value, [3 / 10, np.nan])
    # (1 − 3/10)² · 7 + (3/10)² · 23, over 10².
    np.testing.assert_allclose(response.acceptance.error[0], math.sqrt(0.49 * 7 + 0.09 * 23) / 10)
    assert math.isnan(response.condition_number)


def test_folding_the_truth_gives_the_measurement():
    folded = TWO.fold(TWO.generated.value) + TWO.fakes.value
    np.testing.assert_allclose(folded, TWO.measured.value, rtol=1e-14)
    # Inverting what was folded gives another truth back.
    other = np.array([0, 700.0, 100, 0])
    inner = np.linalg.solve(TWO.probability[1:-1, 1:-1].T, TWO.fold(other)[1:-1])
    np.testing.assert_allclose(inner, other[1:-1])


def test_folding_into_the_unknown_is_nan():
    response = response_of(np.pad([[5.0, 0], [0, 0]], 1), [0, 10, 0, 0])
    assert np.isfinite(response.fold([0, 1, 0, 0])).all()
    assert np.isnan(response.fold([0, 1, 1, 0])).all()


def random_response(seed, n=6):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 50, (n + 2, n + 2))
    generated = matrix.sum(axis=1) + rng.integers(0, 500, n + 2)
    fakes, unsolved = rng.integers(0, 20, (2, n + 2))
    return response_of(matrix, generated, fakes=fakes, unsolved=unsolved)


def test_merging_bins_keeps_every_event():
    fine = random_response(1)
    coarse = fine.merged([1, 3, 6], [0, 1, 2, 3, 6])
    assert coarse.response.value.shape == (4, 6)
    for kind in ("response", "measured", "fakes", "not_reconstructed", "generated"):
        for before, after in zip(getattr(fine, kind), getattr(coarse, kind), strict=True):
            assert after.sum() == before.sum()
    # Truth 1 to 3, reconstructed 3 to 6.
    assert coarse.response.value[1, 4] == fine.response.value[2:4, 4:7].sum()
    np.testing.assert_array_equal(coarse.generated.value[0], fine.generated.value[:2].sum())
    square = fine.merged([1, 3, 6], [1, 3, 6])
    np.testing.assert_array_equal(coarse.purity.value, square.purity.value)
    np.testing.assert_array_equal(coarse.stability.value, square.stability.value)


def test_purity_and_stability_are_those_of_the_metrics():
    response = random_response(2)
    np.testing.assert_allclose(response.purity.value, purity(response.response.value)[1:-1])
    np.testing.assert_allclose(response.stability.value, stability(response.response.value)[1:-1])


def test_only_present_edges_merge():
    message = r"m_tt: reco edge 2\.5 is none of the histogram's, which are 0, 1"
    with pytest.raises(TopRecoError, match=message):
        random_response(1).merged([0, 6], [0, 2.5, 6])


def test_without_common_edges_there_is_no_purity():
    response = response_of(np.pad([[5.0, 0], [0, 5]], 1), [0, 10, 10, 0], reco_edges=[0, 1.5, 2])
    assert np.isnan([*response.purity.value, *response.stability.value]).all()
    assert np.isfinite(response.condition_number)


def test_as_a_histogram():
    histogram = TWO.to_hist()
    assert histogram.axes.name == ("truth", "reco")
    np.testing.assert_array_equal(histogram.values(flow=True), TWO.response.value)
    np.testing.assert_array_equal(histogram.variances(flow=True), TWO.response.variance)


def test_what_is_not_there_is_one_error():
    histograms = book_responses(UnfoldingConfig(observables=["m_tt"]))
    with pytest.raises(TopRecoError, match="no response matrix of 'y_tt' in these histograms, only of: m_tt"):
        read_response(histograms, "y_tt", dataset="tt", method="a")
    with pytest.raises(TopRecoError, match="no events of dataset 'tt', method 'a' and variation 'nominal'"):
        read_response(histograms, "m_tt", dataset="tt", method="a")


# ---- bins ------------------------------------------------------------------------------------------------


def in_bins(migration, edges, chosen):
    groups = bin_starts(edges, chosen)
    return merge_bins(merge_bins(migration, groups, 0), groups, 1)


def meets(migration, edges, chosen, wanted):
    """Whether every bin meets the requirements, by the plain definitions; unit weights."""
    merged = in_bins(migration, edges, chosen)
    return bool(
        (purity(merged)[1:-1] >= wanted.min_purity).all()
        and (stability(merged)[1:-1] >= wanted.min_stability).all()
        and (merged.sum(axis=0)[1:-1] >= wanted.min_events).all()
    )


@st.composite
def migrations(draw):
    """Integer migrations of up to seven fine bins, with something on the diagonal and flow."""
    n = draw(st.integers(2, 7))
    size = (n + 2) ** 2
    counts = draw(st.lists(st.integers(0, 30), min_size=size, max_size=size))
    diagonal = draw(st.integers(0, 100))
    return np.reshape(counts, (n + 2, n + 2)).astype(float) + diagonal * np.eye(n + 2)


fractions = st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9])


@settings(deadline=None, max_examples=200)
@given(migrations(), fractions, fractions, st.integers(0, 200))
def test_bins_keep_their_promise_and_are_as_many_as_can_be(migration, min_purity, min_stability, min_events):
    edges = np.arange(len(migration) - 1.0)
    wanted = BinRequirements(min_purity, min_stability, min_events)
    inner = edges[1:-1]
    subsets = (itertools.combinations(inner, n) for n in range(1, len(inner) + 1))
    choices = (np.array([edges[0], *s, edges[-1]]) for s in itertools.chain(*subsets))
    possible = [c for c in choices if meets(migration, edges, c, wanted)]
    if not possible:
        with pytest.raises(TopRecoError, match="no two bins between 0 and"):
            optimal_edges(unit(migration), edges, wanted)
        return
    found = optimal_edges(unit(migration), edges, wanted)
    assert meets(migration, edges, found, wanted)
    assert len(found) == max(map(len, possible))
    assert set(found) <= set(edges)
    assert (found[0], found[-1]) == (edges[0], edges[-1])


@settings(deadline=None)
@given(migrations(), st.sampled_from([0.3, 0.5]), st.integers(2, 1000))
def test_bins_do_not_depend_on_the_scale_of_the_weights(migration, minimum, scale):
    edges = np.arange(len(migration) - 1.0)
    wanted = BinRequirements(minimum, minimum, 20)
    try:
        expected = optimal_edges(unit(migration), edges, wanted)
    except TopRecoError:
        return
    scaled = Sums(scale * migration, scale**2 * migration)
    np.testing.assert_array_equal(optimal_edges(scaled, edges, wanted), expected)


def test_of_equally_many_bins_those_with_the_best_worst_one():
    migration = np.pad([[50.0, 0, 0], [40, 50, 0], [0, 0, 50]], 1)
    edges = np.arange(4.0)
    # {0, 1}, {2} is perfect, {0}, {1, 2} is not, and three bins are none of them.
    found = optimal_edges(unit(migration), edges, BinRequirements(0.6, 0.6, 1))
    np.testing.assert_array_equal(found, [0, 2, 3])


def test_bins_of_negative_weight_are_no_bins():
    value = np.pad(np.diag([10.0, -5, 10, 10]), 1)
    found = optimal_edges(Sums(value, np.abs(value)), np.arange(5.0), BinRequirements(0.5, 0.5, 1))
    assert len(found) == 4
    assert not {1, 2} <= set(found)


def test_empty_fine_bins_are_no_bins():
    value = np.pad(np.diag([0.1, 0, 0.3, 0, 0]), 1)
    found = optimal_edges(Sums(value, value), np.arange(6.0), BinRequirements(0.5, 0.5, 0))
    assert len(found) == 3


def test_the_error_says_what_is_missing():
    migration = np.pad([[60.0, 40], [40, 60]], 1)
    edges = np.array([300.0, 400, 500])
    bins = "between 300 and 500 have purity ≥ 0.5, stability ≥ 0.5 and at least 101 events"
    for wanted, message in (
        (BinRequirements(0.7, 0.5, 100), r"best two miss purity or stability by 0\.1$"),
        (BinRequirements(0.5, 0.5, 101), f"{bins}; two bins have at most 100 events each"),
    ):
        with pytest.raises(TopRecoError, match=message):
            optimal_edges(unit(migration), edges, wanted)


@pytest.mark.parametrize(("parts", "expected"), [(1, [0, 4, 8]), (2, [0, 1, 4, 6, 8]), (9, range(9))])
def test_reconstructed_bins_divide_the_truth_bins(parts, expected):
    # Half of the events of the first bin are in its first quarter.
    matrix = np.pad(np.diag([60.0, 20, 20, 20, 30, 30, 30, 30]), 1)
    for i, j in itertools.product(range(1, 9), range(1, 9)):
        if i != j and (i - 1) // 4 == (j - 1) // 4:
            matrix[i, j] = 20
    matrix[1, 1] = 300
    fine = response_of(matrix, 2 * matrix.sum(axis=1))
    found = optimise(fine, BinRequirements(0.95, 0.95, 10, parts))
    np.testing.assert_array_equal(found.truth_edges, [0, 4, 8])
    np.testing.assert_array_equal(found.reco_edges, list(expected))
    np.testing.assert_array_equal(found.purity.value, [1, 1])


def test_one_bin_has_nothing_to_merge():
    response = response_of(np.pad([[5.0]], 1), [0, 10, 0])
    message = "m_tt: truth and reconstruction share 2 edges, three or more expected"
    with pytest.raises(TopRecoError, match=message):
        optimise(response, BinRequirements(0.5, 0.5))
