"""The study of three ways to unfold behind docs/UNFOLDING.md: answers that are known."""

import numpy as np
import pytest

from topreco.core.events import Truth, toy_events
from topreco.core.fourvector import from_three_momentum
from topreco.measurement.omnifold import Iteration, Unfolded


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("scripts/results/omnifold_closure.py")


@pytest.fixture(scope="module")
def halves(script):
    """Perfectly measured events in two files, every third of which is selected; data have other weights."""
    n = 9000
    rng = np.random.default_rng(1)
    momentum = rng.exponential(120.0, n)[:, None] * rng.normal(size=(n, 3))
    tops = from_three_momentum(np.stack([momentum, -momentum], axis=1), 172.5)
    events = toy_events(n, seed=1)
    leptons = events.lepton_p4
    flags = np.zeros((n, 2), bool)
    zero = np.zeros_like(tops)
    truth = Truth(tops, leptons, zero, leptons, zero, flags, np.arange(n) % 7 > 0, np.zeros(n, np.int8))
    values, inside = script.true_values(truth)
    selected = np.arange(n) % 3 == 0
    row = np.where(selected, np.cumsum(selected) - 1, -1)
    # Fakes have a measurement too.
    chosen = truth[selected]
    whole = script.compute_observables(
        script.OBSERVED, chosen.tops, chosen.tops.sum(1), chosen.w_lepton, np.ones(len(chosen), bool)
    )
    probability = {}
    for names in script.SPECTRA:
        edges = script.fine_edges(names)
        probability[names] = np.eye(script.n_cells(edges))[script.cells(whole, names, edges)]
    sample = script.Sample(
        np.arange(n) % 2,
        truth,
        values,
        inside,
        selected,
        row,
        np.ones(n),
        events[selected],
        whole,
        probability,
    )
    weight = np.where(inside, 1 + 0.3 * np.tanh((values["m_tt"] - 500) / 200), 1.0)
    return script.Halves(sample, sample.file == 0, sample.file == 1, np.where(inside, weight, 1.0))


@pytest.mark.parametrize("method", ["invert", "maximise"])
@pytest.mark.parametrize("names", [("m_tt",), ("m_tt", "c_hel")], ids=",".join)
def test_perfect_measurements_unfold_to_the_truth(script, halves, method, names):
    found, covariance = getattr(script, method)(halves, names)
    wanted = halves.truth(names)
    pull = (found - wanted) / np.sqrt(np.diagonal(covariance))
    assert wanted.sum() == pytest.approx(halves.data_weight[halves.data & halves.sample.generated].sum())
    # Data and simulation are 1300 selected events each; the covariance is that of the data.
    assert found.sum() == pytest.approx(wanted.sum(), rel=0.1)
    assert np.sqrt((pull**2).mean()) < 2


def test_changes(script, halves):
    """The bump adds its share of the events where it is, and nothing far away."""
    bump = script.changes(halves.sample)["bump"]
    inside, m = halves.sample.generated, halves.sample.values["m_tt"]
    assert bump[inside].sum() / inside.sum() == pytest.approx(1.02, abs=0.004)
    far = inside & (np.abs(m - script.BUMP_MASS) > 8 * script.BUMP_WIDTH)
    np.testing.assert_allclose(bump[far], 1, atol=1e-6)


def test_inputs_of_omnifold(script, halves):
    data, simulated, used = script.omnifold_inputs(halves)
    s = halves.sample
    assert len(data.weight) == (halves.data & s.selected).sum()
    assert simulated.selected.sum() == (halves.simulation & s.selected).sum()
    spectra = script.spectra_of(halves, used, np.ones(len(used)))
    assert spectra["c_hel"].sum() == pytest.approx((halves.simulation & s.generated).sum())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_share_of_the_bump_that_is_found(script, halves, tmp_path, monkeypatch, share):
    """Weights with a part of the bump have found this part, and the rest remains."""
    factor = script.changes(halves.sample)["bump"]

    def found(data, simulated, **options):
        assert simulated.x.shape[1] == 1
        start = script.unfold_start(simulated, options["truth"])
        iteration = Iteration(0.0, 0.0, 0.0, (1 - share) ** 2 * start, 0.0)
        # The whole spectrum is 5 % higher, which is no part of the bump.
        known = 1.05 + 1.05 * share * (factor[halves.sample.selected | halves.sample.generated] - 1)
        return Unfolded(known, (iteration,) * options["iterations"], "iterations")

    monkeypatch.setattr(script, "unfold", found)
    monkeypatch.setattr(script, "BUMP_SETTINGS", (("m_tt", 20),))
    rows = script.bump(halves.sample, tmp_path, 2)
    assert [row["iteration"] for row in rows] == [1, 2]
    assert [row["remaining"] for row in rows] == pytest.approx([1 - share] * 2)
    assert rows[0]["found"] == ""
    assert rows[1]["found"] == pytest.approx(share, abs=0.01)
