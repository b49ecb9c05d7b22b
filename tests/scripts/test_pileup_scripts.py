"""The comparison of pile-up with CMS simulation, and the table of methods without and with it."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def plots(load_script):
    return load_script("plots/pileup.py")


@pytest.fixture(scope="module")
def models(load_script):
    return load_script("scripts/results/pileup_models.py")


def test_numbers_of_cms(plots, data):
    """Those of the table in docs/SAMPLES.md."""
    found = plots.numbers(data / "nanoaodv9_TTTo2L2Nu_first500.root")
    assert found["MET, RMS [GeV]"][0] == pytest.approx(27.4, abs=0.1)
    assert found["PuppiMET, 68 % [GeV]"][0] == pytest.approx(25.3, abs=0.1)
    assert found["jets without partner, above 30 GeV, 0 < |η| < 2.5"][0] == pytest.approx(0.024)
    assert found["response of jets, 30 to 50 GeV, 0 < |η| < 1.5"][0] == pytest.approx(1.024, abs=0.001)
    assert all(error > 0 for value, error in found.values() if value > 0)
    figure = plots.draw(found, found)
    assert len(figure.axes[0].get_yticklabels()) == len([value for value, _ in found.values() if value > 0])


def test_metrics_and_their_errors(models):
    rng = np.random.default_rng(1)
    true = rng.normal(500, 100, 20_000)
    predicted = 1.02 * true * (1 + 0.1 * rng.standard_normal(len(true)))
    bias, width, rho = models.metrics(predicted, true, relative=True)
    assert bias == pytest.approx(0.02, abs=0.003)
    assert width == pytest.approx(0.102, rel=0.03)
    assert rho == pytest.approx(102 / np.hypot(102, 0.102 * np.hypot(500, 100)), rel=0.02)
    alone = models.with_errors(predicted, true, True, np.arange(len(true)))
    assert alone[0] == pytest.approx(bias)
    assert alone[1] == pytest.approx(0.102 / np.sqrt(len(true)), rel=0.25)


def test_copies_of_a_hard_event_count_once(models):
    rng = np.random.default_rng(2)
    true, residual = np.full(500, 500.0) + np.arange(500), 10 * rng.standard_normal(500)
    once = models.with_errors(true + residual, true, False, np.arange(500))
    four = [np.repeat(values, 4) for values in (true + residual, true, np.arange(500))]
    copied = models.with_errors(four[0], four[1], False, four[2])
    assert copied[1] == pytest.approx(once[1], rel=0.2)
