"""The scripts behind docs/POSTERIOR.md: lines and coefficients of known answers, events with known humps."""

import numpy as np
import pytest

from topreco.core import fourvector
from topreco.core.events import Posterior, Truth, toy_events
from topreco.core.spin import spin_coefficients
from topreco.evaluation.fill import true_values


@pytest.fixture(scope="module")
def spin(load_script):
    return load_script("scripts/results/posterior_spin.py")


@pytest.fixture(scope="module")
def humps(load_script):
    return load_script("plots/two_humps.py")


@pytest.fixture(scope="module")
def truth():
    """Tops with isotropic leptons of the toy events; the W is lepton and neutrino."""
    events = toy_events(4000, seed=3)
    rng = np.random.default_rng(3)
    n = len(events)
    neutrino = fourvector.from_three_momentum(rng.normal(0, 50, (n, 2, 3)), 0.0)
    return Truth(
        tops=fourvector.from_three_momentum(
            2 * events.lepton_p4[..., 1:] + rng.normal(0, 60, (n, 2, 3)), 172.5
        ),
        w=events.lepton_p4 + neutrino,
        b=np.full((n, 2, 4), np.nan),
        lepton=events.lepton_p4,
        neutrino=neutrino,
        via_tau=np.zeros((n, 2), bool),
        dileptonic=np.ones(n, bool),
        production=np.zeros(n, np.int8),
    )


@pytest.fixture(scope="module")
def sample(spin, truth):
    observables = [of for of, _ in spin.COEFFICIENTS.values()]
    true = spin.of_events(true_values(observables, truth), np.ones(len(truth), bool))
    reconstructed = {
        "perfect": true,
        "half": {name: 0.5 * values + 0.1 for name, values in true.items()},
    }
    weight = np.random.default_rng(4).choice([1.0, 2.0, -1.0], len(truth), p=[0.5, 0.4, 0.1])
    return spin.Sample("toy", False, truth, weight, true, reconstructed)


def test_coefficients_are_those_of_the_package(spin, sample):
    rows = spin.coefficient_rows(sample)
    expected = spin_coefficients(sample.truth.tops, sample.truth.lepton, sample.weight)
    assert {row["coefficient"] for row in rows} <= expected.keys()
    for row in rows:
        value, error = expected[row["coefficient"]]
        assert float(row["true"]) == pytest.approx(value, abs=1e-4)
        assert float(row["true error"]) == pytest.approx(error, abs=1e-4)
        factor, shift = (1.0, 0.0) if row["method"] == "perfect" else (0.5, 0.1)
        assert float(row["reconstructed"]) == pytest.approx(factor * value + shift, abs=1e-4)
        assert float(row["error"]) == pytest.approx(factor * error, abs=1e-4)
        assert float(row["difference error"]) == pytest.approx((1 - factor) * error, abs=1e-4)


def test_lines_of_known_answers(spin, sample):
    rows = spin.linearity_rows(sample)
    assert {row["coefficient"] for row in rows if row["weights"] == "own"} == set(spin.COEFFICIENTS)
    assert {row["coefficient"] for row in rows if row["weights"] == "qcd"} == set(spin.SCALED_BY_QCD)
    for row in rows:
        slope, offset = (1.0, 0.0) if row["method"] == "perfect" else (0.5, 0.1)
        assert float(row["slope"]) == pytest.approx(slope, abs=1e-4)
        assert float(row["offset"]) == pytest.approx(offset, abs=1e-4)
        assert float(row["slope error"]) < 1e-4
        if row["weights"] == "own":
            assert float(row["relative error"]) == pytest.approx(1, abs=1e-4)


def test_weights_change_their_own_coefficient(spin, sample):
    for name, kind, weights in spin.changed_weights(sample):
        means = weights @ sample.true[name] / weights.sum(axis=1)
        assert (np.diff(means) > 0).all() or (np.diff(means) < 0).all(), (name, kind)


def test_tables_and_figure(spin, sample, tmp_path):
    coefficients, linearity = spin.coefficient_rows(sample), spin.linearity_rows(sample)
    spin.write_csv(tmp_path / "table.csv", linearity)
    assert len((tmp_path / "table.csv").read_text().splitlines()) == len(linearity) + 1
    spin.draw(linearity, coefficients, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_sample_needs_its_spin_correlation(spin):
    with pytest.raises(SystemExit, match=r"NAME=qcd,FILE\.\.\. or NAME=none,FILE\.\.\. expected"):
        spin.reconstruct("toy", "a.parquet", [])


def test_humps_of_known_samples(humps, truth):
    """Half of the samples at the truth, and a third of those elsewhere: the first hump is the nearer one."""
    events, truth = toy_events(4000, seed=3)[:200], truth[:200]
    momenta = np.repeat(truth.tops[:, None, :, 1:], 60, axis=1)
    momenta += np.random.default_rng(5).normal(0, 1, momenta.shape)
    momenta[:, 40:, 0, 0] += 300
    posterior = Posterior.equal(fourvector.from_three_momentum(momenta, 172.5))
    rows = {row["quantity"]: row for row in humps.hump_rows(events, truth, posterior)}
    assert rows["six momenta"]["with two humps"] == 200
    assert float(rows["six momenta"]["likelier is nearer"]) == 1
    assert float(rows["six momenta"]["mean probability"]) == pytest.approx(2 / 3, abs=1e-3)
    found, p4 = humps.two_solutions(posterior)
    assert found.two[humps.example(found, np.full(200, 100.0))]
    with pytest.raises(SystemExit, match="no event with two clear humps"):
        humps.example(found, np.zeros(200))
    assert p4.shape == (200, 2, 2, 4)
