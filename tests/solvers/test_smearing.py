"""Smearing: what is drawn, and what is made of it."""

import dataclasses

import correctionlib
import numpy as np
import pytest

from topreco.core.constants import M_TOP, M_W, PDG_MUON
from topreco.core.errors import TopRecoError
from topreco.core.events import QUANTILE_LEVELS, toy_events
from topreco.core.fourvector import eta, from_three_momentum, mass, mass_squared, pt
from topreco.core.observables import OBSERVABLES
from topreco.solvers import ellipse, smearing, sonnenschein
from topreco.solvers.response import SHIPPED, histogram, load_detector_response, single_cell
from topreco.solvers.smearing import DRAWN_OBSERVABLES, smear, smear_and_solve

SOLVERS = {"sonnenschein": sonnenschein, "ellipse": ellipse}


@pytest.fixture(scope="module")
def shipped():
    return correctionlib.CorrectionSet.from_file(f"{smearing.__file__.rpartition('/')[0]}/{SHIPPED}")


def replaced(events, **fields):
    return dataclasses.replace(events, **fields)


def from_exact(exact, *, seed=0, n_extra=0, shuffle=False):
    """Events whose first jets are the b quarks, with softer jets beside them."""
    arguments = exact.arguments
    n = len(arguments["met"])
    toys = toy_events(n, max_jets=2 + n_extra, seed=seed)
    jets = np.concatenate([arguments["b"][:, None], arguments["bbar"][:, None], toys.jets[:, 2:]], axis=1)
    for i in range(2, 2 + n_extra):
        jets[:, i] = toy_events(n, max_jets=2, seed=seed + i).jets[:, 0]
    order = np.tile(np.arange(2 + n_extra), (n, 1))
    if shuffle:
        order = np.random.default_rng(seed).permuted(order, axis=1)
    return replaced(
        toys,
        lepton_plus=arguments["lepton_plus"],
        lepton_minus=arguments["lepton_minus"],
        jets=np.take_along_axis(jets, order[..., None], axis=1),
        jet_mask=np.ones((n, 2 + n_extra), bool),
        jet_tagged=np.ones((n, 2 + n_extra), bool),
        b_candidates=np.argsort(order, axis=1)[:, :2],
        met=arguments["met"],
    )


def blurred(events, seed=0, width=0.15):
    """The events as a detector with poor jets sees them."""
    rng = np.random.default_rng(seed)
    momentum = events.jets[..., 1:] * rng.normal(1.0, width, events.jets.shape[:2]).clip(0.5)[..., None]
    met = events.met - (momentum - events.jets[..., 1:]).sum(axis=1)[:, :2]
    m = np.sqrt(np.maximum(mass_squared(events.jets), 0.0))
    return replaced(events, jets=from_three_momentum(momentum, m), met=met)


@pytest.fixture(scope="module")
def exact(exact_events):
    return from_exact(exact_events(300, 11))


@pytest.fixture(scope="module")
def reconstructed(exact_events):
    """Events as in data: not all jets are b jets, and nothing fits exactly."""
    events = blurred(from_exact(exact_events(300, 12), n_extra=2, shuffle=True))
    return replaced(events, jet_tagged=events.jet_btag > 0.4)


@pytest.fixture(scope="module")
def one_event():
    """A central event whose objects lie well inside their cells."""
    momentum = np.array([[[60.0, 10, 20]], [[-40.0, 30, 10]], [[-80.0, -30, 30]], [[30.0, 70, -40]]])
    masses = np.array([0.000511, 0.105658, 8.0, 10.0])
    p4 = from_three_momentum(momentum, masses[:, None])
    return replaced(
        toy_events(1, max_jets=2),
        lepton_plus=p4[0],
        lepton_minus=p4[1],
        lepton_flavour=np.array([[11, 13]]),
        jets=p4[2:].transpose(1, 0, 2),
        jet_mask=np.ones((1, 2), bool),
        b_candidates=np.array([[0, 1]]),
    )


@pytest.fixture(scope="module")
def many_draws(one_event):
    return smear(one_event, n_draws=100_000)


def nominal(events):
    return np.concatenate(
        [events.lepton_plus[:, None], events.lepton_minus[:, None], events.b_candidate_p4], axis=1
    )


def assert_distribution(values, density, edges):
    """χ² of values against a density that is constant within bins."""
    probability = density * np.diff(edges)
    keep = probability > 5 / len(values)
    counts, _ = np.histogram(values, edges)
    expected = probability * len(values) / probability.sum()
    # The histogram is rounded to six digits and its poorest bins have few entries.
    chi2 = ((counts - expected)[keep] ** 2 / expected[keep]).sum()
    assert chi2 < keep.sum() + 5 * np.sqrt(2 * keep.sum())
    assert counts[~keep].sum() <= 3 * expected[~keep].sum() + 10
    assert counts.sum() == len(values)


OBJECTS = {"lepton_plus": "electron", "lepton_minus": "muon", "b": "jet", "bbar": "jet"}


@pytest.mark.parametrize("i", range(4), ids=OBJECTS)
class TestDraws:
    def evaluate(self, shipped, one_event, i, what):
        """Density and bin edges of an object from correctionlib's own evaluator."""
        kind = list(OBJECTS.values())[i]
        p4 = nominal(one_event)[0, i]
        # Edges are common to all cells of a kind.
        node = shipped_edges(kind, what)
        middle = (node[1:] + node[:-1]) / 2
        return shipped[f"{kind}_{what}"].evaluate(pt(p4), abs(eta(p4)), middle), node

    def test_energy_follows_the_histogram(self, shipped, one_event, many_draws, i):
        density, edges = self.evaluate(shipped, one_event, i, "energy")
        ratio = many_draws.p4[0, :, i, 0] / nominal(one_event)[0, i, 0]
        assert_distribution(ratio, density, edges)

    def test_angle_follows_the_histogram(self, shipped, one_event, many_draws, i):
        density, edges = self.evaluate(shipped, one_event, i, "angle")
        before, after = nominal(one_event)[0, i, 1:], many_draws.p4[0, :, i, 1:]
        cross = np.linalg.norm(np.cross(before, after), axis=1)
        assert_distribution(np.arctan2(cross, after @ before), density, edges)

    def test_azimuth_is_uniform(self, one_event, many_draws, i):
        axis = nominal(one_event)[0, i, 1:]
        axis = axis / np.linalg.norm(axis)
        first = np.cross(axis, [0.3, 0.5, -0.8])
        first /= np.linalg.norm(first)
        after = many_draws.p4[0, :, i, 1:]
        azimuth = np.arctan2(after @ np.cross(axis, first), after @ first)
        counts, _ = np.histogram(azimuth, 50, (-np.pi, np.pi))
        chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert 20 < chi2 < 100  # 49 degrees of freedom

    def test_mass_is_kept(self, one_event, many_draws, i):
        before = mass_squared(nominal(one_event)[0, i])
        after = many_draws.p4[0, :, i]
        assert np.abs(mass_squared(after) - before) / after[:, 0] ** 2 == pytest.approx(0, abs=1e-13)


def shipped_edges(kind, what):
    table = getattr(load_detector_response(), what)
    n_pt = table.pt_edges.shape[2] - 1
    cell = ("jet", "electron", "muon").index(kind) * table.pt_edges.shape[1] * n_pt
    edges = table.edges[cell]
    return edges[: np.argmax(edges) + 1]


def test_w_masses_follow_the_histogram(shipped, many_draws):
    edges = load_detector_response().m_w.edges[0]
    density = shipped["m_w"].evaluate((edges[1:] + edges[:-1]) / 2)
    assert_distribution(many_draws.m_w[0, :, 0], density, edges)
    assert_distribution(many_draws.m_w[0, :, 1], density, edges)
    assert abs(np.corrcoef(many_draws.m_w[0].T)[0, 1]) < 0.02


def test_objects_are_drawn_independently(one_event, many_draws):
    ratio = many_draws.p4[0, :, :, 0] / nominal(one_event)[0, :, 0]
    correlation = np.corrcoef(ratio.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.02


def test_met_takes_the_recoil(reconstructed):
    draws = smear(reconstructed, n_draws=20)
    before = nominal(reconstructed)[:, :, 1:3].sum(axis=1) + reconstructed.met
    after = draws.p4[..., 1:3].sum(axis=2) + draws.met
    assert after == pytest.approx(np.repeat(before[:, None], 20, axis=1), abs=1e-10)


def test_energy_below_the_mass(one_event):
    """Where the drawn energy would not suffice for the mass, the momentum is scaled."""
    response = dataclasses.replace(
        load_detector_response(),
        energy=constant(0.35),
        angle=constant(0.0),
    )
    heavy = replaced(one_event, jets=from_three_momentum(one_event.jets[..., 1:], 60.0))
    after = smear(heavy, response, n_draws=3).p4[0, 0, 2:]
    before = heavy.jets[0]
    assert np.all(0.35 * before[:, 0] < 60)
    assert after[:, 1:] == pytest.approx(0.35 * before[:, 1:], rel=1e-3)
    assert mass(after) == pytest.approx(60)


def constant(value):
    """A table that always gives one number, for three kinds of objects."""
    table = single_cell(np.array([value, value + 1e-12]), np.ones(1))
    return table._replace(
        **{
            name: np.repeat(getattr(table, name), 3, axis=0)
            for name in ("abseta_edges", "pt_edges", "edges", "cumulative", "slope", "guide")
        }
    )


@pytest.fixture(scope="module")
def perfect():
    """The response of a perfect detector."""
    return dataclasses.replace(
        load_detector_response(),
        energy=constant(1.0),
        angle=constant(0.0),
        m_w=single_cell(np.array([M_W, M_W + 1e-12]), np.ones(1)),
    )


@pytest.mark.parametrize("method", SOLVERS)
def test_unsmeared_is_the_solution_of_the_smallest_mass(reconstructed, method):
    found = smear_and_solve(reconstructed, method=method, n_draws=0, reset_energy=False)
    b = reconstructed.b_candidate_p4
    solutions = SOLVERS[method].solve(
        reconstructed.lepton_plus, reconstructed.lepton_minus, b[:, 0], b[:, 1], reconstructed.met
    )
    visible = np.stack([reconstructed.lepton_plus, reconstructed.lepton_minus], axis=1) + b
    # Pairs beyond the end of the m_lb histogram have no weight.
    possible = (mass(visible) < load_detector_response().m_lb.edges[-1]).all(axis=1)
    expected = np.where(possible[:, None, None], solutions.neutrinos[:, 0] + visible, np.nan)
    assert np.array_equal(np.isfinite(found.p4), np.isfinite(expected))
    assert np.array_equal(found.n_solved, (solutions.count > 0) & possible)
    solved = found.n_solved == 1
    assert 0.3 < solved.mean() < 1
    assert found.p4[solved] == pytest.approx(expected[solved], rel=1e-12)
    assert not found.spread[solved].any()
    assert np.array_equal(found.b_candidates, reconstructed.b_candidates)


def test_perfect_detector(exact, perfect):
    unsmeared = smear_and_solve(exact, perfect, n_draws=0)
    smeared = smear_and_solve(exact, perfect, n_draws=10)
    assert set(smeared.n_solved) <= {0, 10}
    solved = (smeared.n_solved == 10) & (unsmeared.n_solved == 1)
    assert solved.sum() > 100
    assert smeared.p4[solved] == pytest.approx(unsmeared.p4[solved], rel=1e-5)
    assert smeared.weight == pytest.approx(10 * unsmeared.weight, rel=1e-3)
    assert smeared.spread[solved].max() < 1e-3


def test_weights_and_mean(reconstructed):
    """The average, made again in numpy from the draws."""
    n_draws = 30
    events = reconstructed[:50]
    found = smear_and_solve(events, n_draws=n_draws, reset_energy=False, quantiles=True)
    draws, m_lb = smear(events, n_draws=n_draws), load_detector_response().m_lb
    lepton_plus, lepton_minus, b, bbar = draws.p4.reshape(-1, 4, 4).transpose(1, 0, 2)
    m_w = draws.m_w.reshape(-1, 2)
    solutions = sonnenschein.solve(
        lepton_plus, lepton_minus, b, bbar, draws.met.reshape(-1, 2), m_w_plus=m_w[:, 0], m_w_minus=m_w[:, 1]
    )
    tops = solutions.neutrinos[:, 0] + np.stack([lepton_plus + b, lepton_minus + bbar], axis=1)
    weight = (solutions.count > 0).astype(float)
    for pair in (lepton_plus + b, lepton_minus + bbar):
        value = mass(pair)
        bins = np.clip(np.searchsorted(m_lb.edges, value, "right") - 1, 0, len(m_lb.values) - 1)
        weight *= np.where(value < m_lb.edges[-1], m_lb.values[bins], 0.0)
    weight, tops = weight.reshape(-1, n_draws), tops.reshape(-1, n_draws, 2, 4)
    for i in range(len(events)):
        used = weight[i] > 0
        assert found.n_solved[i] == used.sum()
        assert found.weight[i] == pytest.approx(weight[i].sum(), rel=1e-12)
        if used.any():
            mean = np.average(tops[i, used], axis=0, weights=weight[i, used])
            variance = np.average((tops[i, used] - mean) ** 2, axis=0, weights=weight[i, used])
            assert found.p4[i] == pytest.approx(mean, rel=1e-9, abs=1e-9)
            assert found.spread[i] == pytest.approx(np.sqrt(variance), rel=1e-6, abs=1e-6)
            leptons = np.broadcast_to(events.lepton_p4[i], (used.sum(), 2, 4))
            for name, quantiles in zip(DRAWN_OBSERVABLES, found.quantiles[i], strict=True):
                values = OBSERVABLES[name].compute(tops[i, used], tops[i, used].sum(axis=1), leptons)
                expected = np.quantile(
                    values, QUANTILE_LEVELS, weights=weight[i, used], method="inverted_cdf"
                )
                assert quantiles == pytest.approx(expected, rel=1e-6, abs=1e-6), name
        else:
            assert np.isnan(found.quantiles[i]).all()
            assert np.isnan(found.p4[i]).all()
            assert np.isnan(found.spread[i]).all()


@pytest.mark.parametrize("pairing", ["candidates", "all"])
def test_quantiles_change_nothing_else(reconstructed, pairing):
    plain = smear_and_solve(reconstructed, n_draws=20, pairing=pairing)
    rich = smear_and_solve(reconstructed, n_draws=20, pairing=pairing, quantiles=True)
    assert plain.quantiles.shape == (len(reconstructed), 0, len(QUANTILE_LEVELS))
    for name in ("p4", "weight", "n_solved", "spread", "b_candidates"):
        assert np.array_equal(getattr(rich, name), getattr(plain, name), equal_nan=True), name
    assert np.array_equal(np.isfinite(rich.quantiles).all(axis=(1, 2)), rich.n_solved > 0)
    assert (np.diff(rich.quantiles[rich.n_solved > 0], axis=2) >= 0).all()


def test_energy_reset(reconstructed):
    reset = smear_and_solve(reconstructed, n_draws=20, m_top=173.0)
    kept = smear_and_solve(reconstructed, n_draws=20, m_top=173.0, reset_energy=False)
    solved = reset.n_solved > 1
    assert mass(reset.p4[solved]) == pytest.approx(173.0)
    assert (mass(kept.p4[solved]) > 173.0 - 1e-6).all()
    assert np.array_equal(reset.p4[..., 1:], kept.p4[..., 1:], equal_nan=True)


def test_fixed_w_mass(reconstructed):
    drawn = smear_and_solve(reconstructed, n_draws=20)
    fixed = smear_and_solve(reconstructed, n_draws=20, m_w=80.4)
    at_80_4 = dataclasses.replace(
        load_detector_response(), m_w=single_cell(np.array([80.4, 80.4 + 1e-12]), np.ones(1))
    )
    same = smear_and_solve(reconstructed, at_80_4, n_draws=20)
    assert not np.array_equal(drawn.p4, fixed.p4, equal_nan=True)
    assert np.nanmedian(np.abs(same.p4 - fixed.p4)) < 1e-6


def test_smearing_finds_more(reconstructed):
    unsmeared = smear_and_solve(reconstructed, n_draws=0).n_solved > 0
    smeared = smear_and_solve(reconstructed, n_draws=100).n_solved > 0
    assert smeared.mean() > unsmeared.mean() + 0.1


def test_error_of_the_mean(exact_events):
    """The scatter between seeds falls with the root of the number of draws."""
    events = from_exact(exact_events(200, 13))
    settled = smear_and_solve(events, n_draws=200).n_solved > 120
    events = events[settled][:40]
    assert len(events) > 20
    scatter = {}
    for n_draws in (25, 100, 400):
        momenta = [smear_and_solve(events, n_draws=n_draws, seed=s).p4[..., 1:] for s in range(60)]
        scatter[n_draws] = np.median(np.std(momenta, axis=0))
    assert scatter[25] / scatter[100] == pytest.approx(2.0, rel=0.15)
    assert scatter[100] / scatter[400] == pytest.approx(2.0, rel=0.15)


def assert_identical(a, b):
    for name, x, y in zip(a._fields, a, b, strict=True):
        assert np.array_equal(x, y, equal_nan=True), name


@pytest.mark.parametrize("pairing", ["candidates", "all"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_do_not_matter(reconstructed, monkeypatch, size, pairing):
    options = {"n_draws": 10, "pairing": pairing}
    whole = smear_and_solve(reconstructed, **options)
    starts = range(0, len(reconstructed), size)
    parts = [smear_and_solve(reconstructed[i : i + size], **options) for i in starts]
    assert_identical(whole, type(whole)(*(np.concatenate(column) for column in zip(*parts, strict=True))))
    monkeypatch.setattr(smearing, "_CHUNK", size)
    assert_identical(whole, smear_and_solve(reconstructed, **options))


@pytest.mark.parametrize("method", SOLVERS)
@pytest.mark.parametrize("pairing", ["candidates", "all"])
def test_threads_and_order_do_not_matter(reconstructed, method, pairing):
    options = {"n_draws": 10, "method": method, "pairing": pairing}
    one = smear_and_solve(reconstructed, **options)
    assert_identical(one, smear_and_solve(reconstructed, threads=2, **options))
    backwards = smear_and_solve(reconstructed[::-1], **options)
    assert_identical(one, type(one)(*(column[::-1] for column in backwards)))


def test_seeds_differ(reconstructed):
    first, second = (smear_and_solve(reconstructed, n_draws=10, seed=seed) for seed in (1, 2))
    both = (first.n_solved > 0) & (second.n_solved > 0)
    assert not (first.p4[both] == second.p4[both]).any()


def test_methods_agree(reconstructed):
    a, b = (smear_and_solve(reconstructed, n_draws=20, method=method) for method in SOLVERS)
    # Draws at tangency may count in one and not in the other.
    assert (a.n_solved != b.n_solved).mean() < 0.02
    same = (a.n_solved == b.n_solved) & (a.n_solved > 0)
    assert a.p4[same] == pytest.approx(b.p4[same], rel=1e-4, abs=1e-3)


class TestAllPairs:
    def test_finds_the_right_pair(self, exact_events):
        for n_extra, random in ((0, 1 / 2), (1, 1 / 6), (2, 1 / 12)):
            events = from_exact(exact_events(400, 14), n_extra=n_extra, shuffle=True)
            found = smear_and_solve(events, n_draws=30, pairing="all")
            right = (found.b_candidates == events.b_candidates).all(axis=1).mean()
            assert right - random > 5 * np.sqrt(random * (1 - random) / 400)

    def test_result_is_that_of_the_chosen_pair(self, reconstructed):
        every = smear_and_solve(reconstructed, n_draws=10, pairing="all")
        solved = every.n_solved > 0
        chosen = replaced(reconstructed, b_candidates=every.b_candidates)[solved]
        assert_identical(
            smear_and_solve(chosen, n_draws=10), type(every)(*(column[solved] for column in every))
        )

    def test_largest_sum_of_weights_wins(self, exact_events):
        events = from_exact(exact_events(50, 15), n_extra=1)
        every = smear_and_solve(events, n_draws=10, pairing="all")
        best = np.zeros(len(events))
        for first, second in np.argwhere(~np.eye(3, dtype=bool)):
            pair = np.tile([first, second], (len(events), 1))
            one = smear_and_solve(replaced(events, b_candidates=pair), n_draws=10)
            visible = np.stack([events.lepton_plus, events.lepton_minus], 1) + events.jets[:, [first, second]]
            best = np.maximum(best, np.where((mass(visible) < 180).all(axis=1), one.weight, 0.0))
        assert np.array_equal(every.weight, best)

    def test_tagged_pairs_come_first(self, exact_events):
        events = from_exact(exact_events(100, 16), n_extra=2)
        tagged = np.tile([True, True, False, False], (100, 1))
        found = smear_and_solve(replaced(events, jet_tagged=tagged), n_draws=5, pairing="all")
        two = smear_and_solve(replaced(events, jet_mask=tagged), n_draws=5, pairing="all")
        solved = two.n_solved > 0
        assert solved.mean() > 0.7
        assert np.array_equal(found.p4[solved], two.p4[solved])

    def test_pairs_without_a_solution_give_way(self, exact_events):
        events = from_exact(exact_events(100, 16), n_extra=2)
        far = events.jets.copy()
        far[:, 2:] = from_three_momentum(20 * far[:, 2:, 1:], 5.0)  # no top is that heavy
        tagged = np.tile([False, False, True, True], (100, 1))
        found = smear_and_solve(replaced(events, jets=far, jet_tagged=tagged), n_draws=5, pairing="all")
        assert (found.n_solved > 0).mean() > 0.7

    def test_jets_beyond_the_leading_are_ignored(self, exact_events):
        events = from_exact(exact_events(20, 17), n_extra=8)
        mask = np.arange(10) < smearing.LEADING_JETS
        found = smear_and_solve(events, n_draws=5, pairing="all")
        cut = smear_and_solve(replaced(events, jet_mask=np.tile(mask, (20, 1))), n_draws=5, pairing="all")
        assert_identical(found, cut)


def break_events(events):
    """Name → events with one defect in event 0."""

    def defect(name, value, *index):
        changed = getattr(events, name).copy()
        changed[(0, *index)] = value
        return replaced(events, **{name: changed})

    first = events.b_candidates[0, 0]
    return {
        "NaN lepton": defect("lepton_plus", np.nan),
        "zero lepton": defect("lepton_minus", 0.0),
        "NaN jet energy": defect("jets", np.nan, first, 0),
        "zero jet": defect("jets", 0.0, first),
        "infinite jet": defect("jets", np.inf, first),
        "jet along the beam": defect("jets", [50.0, 0.0, 0.0, 49.0], first),
        "spacelike jet": defect("jets", [1.0, 50.0, 0.0, 0.0], first),
        "NaN MET": defect("met", np.nan),
        "infinite MET": defect("met", np.inf),
        "no candidate": defect("b_candidates", -1),
        "one candidate": defect("b_candidates", -1, 1),
        "candidate out of range": defect("b_candidates", 99, 0),
    }


@pytest.mark.parametrize("n_draws", [0, 5])
@pytest.mark.parametrize("method", SOLVERS)
def test_bad_events(exact, method, n_draws):
    good = smear_and_solve(exact[:3], method=method, n_draws=n_draws)
    for name, events in break_events(exact[:3]).items():
        found = smear_and_solve(events, method=method, n_draws=n_draws)
        if name != "spacelike jet" or n_draws == 0:
            assert np.isnan(found.p4[0]).all(), name
            assert np.isnan(found.spread[0]).all(), name
            assert found.n_solved[0] == 0, name
            assert found.weight[0] == 0, name
        assert np.array_equal(found.p4[1:], good.p4[1:], equal_nan=True), name
        smear_and_solve(events, method=method, n_draws=n_draws, pairing="all")
        smear(events, n_draws=2)


def test_zero_met(exact):
    found = smear_and_solve(replaced(exact, met=np.zeros_like(exact.met)), n_draws=10)
    assert np.isfinite(found.p4[found.n_solved > 0]).all()


def test_no_events_and_no_jets(exact):
    for pairing in ("candidates", "all"):
        empty = smear_and_solve(exact[:0], pairing=pairing)
        assert empty.p4.shape == (0, 2, 4)
        assert empty.b_candidates.shape == (0, 2)
    nothing = replaced(
        exact,
        jets=exact.jets[:, :0],
        jet_mask=exact.jet_mask[:, :0],
        jet_tagged=exact.jet_tagged[:, :0],
        jet_btag=exact.jet_btag[:, :0],
        jet_working_points=None,
        b_candidates=np.full((len(exact), 2), -1),
    )
    for pairing in ("candidates", "all"):
        assert not smear_and_solve(nothing, n_draws=2, pairing=pairing).n_solved.any()


def test_without_weight_there_is_no_solution(exact):
    nowhere = dataclasses.replace(
        load_detector_response(), m_lb=histogram(np.array([500.0, 600.0]), np.ones(1))
    )
    assert not smear_and_solve(exact, nowhere, n_draws=5).n_solved.any()


def test_single_precision_input(exact):
    """Skims hold 32 bits: leptons of slightly negative squared mass."""
    float32 = {
        name: getattr(exact, name).astype(np.float32)
        for name in ("lepton_plus", "lepton_minus", "jets", "met")
    }
    found, precise = (smear_and_solve(e, n_draws=20) for e in (replaced(exact, **float32), exact))
    close = np.abs(found.p4 - precise.p4) < 0.01 * precise.p4[..., :1]
    assert close.all(axis=(1, 2)).mean() > 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method is 'magic', expected one of sonnenschein, ellipse"),
        ({"pairing": "some"}, "pairing is 'some', expected one of candidates, all"),
        ({"n_draws": -1}, "n_draws is -1, expected 0 or more"),
        ({"m_top": -1.0}, "m_top is -1.0, expected a positive mass"),
        ({"m_w": float("nan")}, "m_w is nan, expected a positive mass"),
        ({"threads": 0}, "threads is 0, expected 1 or more"),
        ({"seed": -1}, "seed is -1, expected 0 to"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_options(exact, options, message):
    with pytest.raises(TopRecoError, match=message):
        smear_and_solve(exact[:1], **options)


def test_no_draws_to_show(exact):
    with pytest.raises(TopRecoError, match="n_draws is 0"):
        smear(exact, n_draws=0)


def test_flavour_of_the_lepton_counts(exact):
    muons = replaced(exact, lepton_flavour=np.full((len(exact), 2), PDG_MUON))
    electrons = replaced(exact, lepton_flavour=np.full((len(exact), 2), 11))
    # Half-widths of the central 68 %: the tails of both come from radiation.
    spread = [
        np.ptp(
            np.quantile(
                smear(events, n_draws=50).p4[:, :, 0, 0] / events.lepton_plus[:, None, 0], [0.16, 0.84]
            )
        )
        / 2
        for events in (muons, electrons)
    ]
    assert spread[0] < 0.85 * spread[1]


def test_default_top_mass(exact):
    found = smear_and_solve(exact, n_draws=5)
    assert mass(found.p4[found.n_solved > 0]) == pytest.approx(M_TOP)
