"""Tables of signals: known spins, Fisher information of known templates."""

import csv
import dataclasses

import numpy as np
import pytest

from topreco.core.events import DileptonEvents, Posterior, Truth, toy_events
from topreco.core.prior import M_TT_EDGES, Spectra, on_shell_spectrum


@pytest.fixture(scope="module")
def fisher(load_script):
    return load_script("scripts/results/fisher.py")


@pytest.fixture(scope="module")
def signals(load_script):
    return load_script("scripts/results/signals.py")


def two_bins(n, share, seed):
    return (np.random.default_rng(seed).random(n) < share).astype(int)


def weights(fisher, s, b):
    """Weights of nominal templates and of varied ones that are the same."""
    return np.concatenate([np.stack([s, b])] * len(fisher.VARIED)).astype(float)


def independent(fisher, bins, is_signal, weight, at=0.0):
    n = len(bins)
    both = weights(fisher, weight * is_signal, weight * ~is_signal)
    return fisher.results(bins, np.arange(n), np.arange(n) % fisher.N_BLOCKS, both, at, 100, 1.0)


def test_information_of_two_bins(fisher):
    """b = (½, ½), s = (0.2, 0.8): Σ (s − b)²/b = 0.36, and an error of 1/√(0.36 N)."""
    bins = np.concatenate([two_bins(40_000, 0.8, 1), two_bins(40_000, 0.5, 2)])
    is_signal = np.arange(80_000) < 40_000
    found = independent(fisher, bins, is_signal, np.where(is_signal, 3.0, 0.2))
    assert found["error"] == pytest.approx(1 / 6, rel=0.02)
    assert 0 < found["error uncertainty"] < 0.03 / 6
    # At λ = 1 the spectrum is s: 0.09 (1/0.2 + 1/0.8) = 0.5625.
    assert independent(fisher, bins, is_signal, np.ones(80_000), at=1.0)["error"] == pytest.approx(
        1 / 7.5, rel=0.03
    )


@pytest.mark.parametrize("copies", [1, 5])
def test_rough_templates_have_no_information_of_their_own(fisher, copies):
    """Many bins, few hard events, equal distributions: uncorrected, the information is 0.1 and up."""
    found = []
    for seed in range(40):
        bins = np.random.default_rng(seed).integers(0, 50, 1000).repeat(copies)
        group = np.arange(1000).repeat(copies)
        both = weights(fisher, group < 500, group >= 500)
        found.append(fisher.measure(fisher.Templates(bins, group, both), 0.5)[0])
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(40)
    assert np.std(found) < 0.1


def test_weights_of_the_same_events(fisher):
    """s and b differ by weights of 1 ± ½ in two bins: no noise of counts is in the difference."""
    x = np.where(np.arange(1000) % 2, 0.5, -0.5)
    both = weights(fisher, 1 + x, np.ones(1000))
    found = fisher.results((x > 0).astype(int), np.arange(1000), np.arange(1000) % 10, both, 1.0, 100, 1.0)
    # s = (¼, ¾), b = (½, ½): 1/16 (4 + 4/3) = 1/3.
    assert found["error"] == pytest.approx(np.sqrt(3) / 10, rel=0.01)


def test_shift_of_a_variation(fisher):
    """Varied spectra that are mixtures of s and b: λ moves by the share of s, times what `MOVES` says."""
    n = 20_000
    share = {"nominal": 0.0, "jes_up": 0.1, "jes_down": -0.1, "jer_up": 0.2, "met_up": 0.3, "met_down": 0.1}
    rng = np.random.default_rng(3)
    s, b = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.3, 0.2])
    bins, both = [rng.choice(3, n, p=s)], [(0, 0)]
    for number, name in enumerate(fisher.VARIED):
        bins.append(rng.choice(3, n, p=b + share[name] * (s - b)))
        both.append((number, 1))
    weight = np.zeros((2 * len(fisher.VARIED), n * len(bins)))
    for place, (number, which) in enumerate(both):
        weight[2 * number + which, place * n : (place + 1) * n] = 1
    group = np.arange(n * len(bins))
    found = fisher.results(np.concatenate(bins), group, group % fisher.N_BLOCKS, weight, 0.0, 100, 2.0)
    for name, expected in (("JES", 2 * 0.1 / 3), ("JER", 2 * 0.21 * 0.2), ("MET", 2 * 0.1)):
        error = found[f"shift by {name} uncertainty"]
        assert 0 < error < 0.2 * expected
        assert abs(found[f"shift by {name}"] - expected) < 4 * error


def test_bins(fisher):
    edges = [np.array([0.0, 1, 2]), np.array([-1.0, 0, 1])]
    values = [np.array([0.5, 1.5, -3, 9, np.nan]), np.array([-0.5, 0.5, 0.5, -0.5, 0])]
    assert fisher.joint_bins(values, edges).tolist() == [0, 3, 1, 2, 4]


def test_a_network_finds_what_is_there(fisher):
    """MET of twice the width: the network has most of the information of the best observable, |MET|."""
    background, signal = (toy_events(2500, max_jets=3, seed=seed) for seed in (1, 2))
    signal = dataclasses.replace(signal, met=2 * signal.met, run=signal.run + 1)
    events = DileptonEvents.concatenate([signal, background])
    is_signal = np.arange(5000) < 2500
    sample = fisher.Sample(events, np.stack([is_signal, ~is_signal]).astype(float), np.zeros(5000, int))
    (row,) = fisher.table(sample, [], 100)
    met = np.hypot(*events.met.T)
    best = independent(fisher, fisher.score_bins(met, ~is_signal), is_signal, np.ones(5000))["error"]
    assert 0.85 * best < row["error"] < 1.35 * best


def test_table_from_files(fisher, simulated, tmp_path, capsys):
    """From a file of the simulation to a table: κ, with varied spectra."""
    output = tmp_path / "table.csv"
    given = ["kappa", "--background", str(simulated), "--present", "0", "-o", str(output)]
    fisher.main([*given, "--method", "sonnenschein"])
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [row["observable"] for row in rows] == [*map(" × ".join, fisher.COMBINATIONS), "objects"]
    for row in rows:
        assert float(row["shift by JES"]) != 0
        assert float(row["shift by MET"]) != 0
        assert float(row["shift by JER uncertainty"]) > 0
    with pytest.raises(SystemExit):
        fisher.main([*given, "--signal", str(simulated)])
    assert "kappa has none" in capsys.readouterr().err


@pytest.mark.sim
def test_slopes_at_generated_level(signals, monkeypatch):
    pytest.importorskip("pythia8mc")
    name = "threshold"
    monkeypatch.setattr(signals, "GENERATED", {name: signals.GENERATED[name]})
    (row,) = signals.generated(40)
    assert row["decays"] > 100
    for quantity in ("slope c_hel", "slope c_han", "D"):
        assert abs(row[quantity] - row[f"{quantity} theory"]) < 4 * row[f"{quantity} error"]
    assert (row["slope c_hel theory"], row["slope c_han theory"], row["D theory"]) == (1, 0.3333, -1)


def test_weak_supervision_on_toys(load_script):
    """Without signal nothing is learned; with labels, and with many injected events, MET is found."""
    weak = load_script("scripts/results/weak_supervision.py")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(2, 5000))
    assert weak.improvement(scores[0], scores[1], 0.2) == pytest.approx(np.sqrt(0.2), abs=0.03)
    assert weak.improvement(scores[0] + 9, scores[1], 0.2) == pytest.approx(1 / np.sqrt(0.2), abs=0.01)
    background, signal = (toy_events(1200, max_jets=3, seed=seed) for seed in (1, 2))
    signal = dataclasses.replace(signal, met=4 * signal.met, run=signal.run + 1)
    none, many, supervised = weak.rows_of(background, signal, [0, 400], 2)
    key = "improvement at 0.2"
    assert none[key] < 1.2
    assert many[key] > 1.4
    assert supervised[key] > 1.4
    assert supervised["injected"] == "supervised"


def test_prior_of_a_mixture(load_script):
    """Samples of the training's prior alone, truths of the mixture: its prior gives the right coverage."""
    prior = load_script("scripts/results/signals_prior.py")
    rng = np.random.default_rng(5)
    n, k = 400, 200

    def tops(momentum):
        """Back to back on shell, with a momentum in GeV."""
        z = np.ravel(momentum)
        p = np.zeros((len(z), 2, 4))
        p[:, 0, 3], p[:, 1, 3] = z, -z
        p[..., 0] = np.sqrt(172.5**2 + z[:, None] ** 2)
        return p.reshape(*np.shape(momentum), 2, 4)

    def spectrum(momentum):
        z, _ = on_shell_spectrum(tops(momentum))
        return np.histogram(z, M_TT_EDGES)[0].astype(float)

    # Nothing is measured: the posterior is the prior, 0 to 200 GeV; the state has less than 30 GeV.
    generated = np.zeros(Spectra().generated.shape)
    generated[:, 0] = spectrum(rng.uniform(0, 200, 200_000))

    class Method:
        name = "prior"
        spectra = Spectra(generated=generated)

        def sample(self, events, n_samples):
            return Posterior.equal(tops(rng.uniform(0, 200, (len(events), n_samples))))

    samples = {}
    for name, highest in (("QCD", 200), ("state", 30)):
        true = tops(rng.uniform(0, highest, n))
        known = np.ones((n, 2), bool)
        truth = Truth(true, true, true, true, true, known, known[:, 0], np.zeros(n, np.int8))
        samples[name] = (toy_events(n, seed=1), truth, 0.1)
    rows = prior.rows_of(samples, Method(), spectrum(rng.uniform(0, 30, 20_000)), k)
    key = "m_tt in 68 %"
    assert [row["share"] for row in rows] == list(prior.FRACTIONS)
    for row in rows:
        assert row[f"mixture {key}"] == pytest.approx(0.68, abs=4 * row[f"mixture {key} error"] + 0.03)
    assert rows[0][f"state {key}"] < 0.2
    assert rows[-1]["state bias m_tt"] == pytest.approx(0, abs=0.002)
    assert rows[0]["QCD effective samples"] == k
    assert rows[-1]["state effective samples"] < k / 4
