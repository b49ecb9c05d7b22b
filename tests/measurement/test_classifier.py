"""Networks of few columns: shapes that they have to find."""

import numpy as np
import pytest

from topreco.measurement.classifier import ClassifierSettings, fit_log_ratio, fit_mean

SHAPES = {
    "slope": lambda x: 0.2 * x,
    "bump": lambda x: 0.1 * np.exp(-0.5 * (x / 0.4) ** 2),
}


@pytest.mark.parametrize(("shape", "correlation", "deviation"), [("slope", 0.98, 0.08), ("bump", 0.88, 0.25)])
def test_small_changes_of_any_shape_are_found(shape, correlation, deviation):
    """Both samples are the same events, so that nothing but the change is to be learnt."""
    x = np.random.default_rng(1).normal(0, 1, (20_000, 1))
    true = SHAPES[shape](x[:, 0])
    found = fit_log_ratio(
        np.concatenate([x, x]),
        np.concatenate([np.exp(true), np.zeros(len(x))]),
        np.concatenate([np.zeros(len(x)), np.ones(len(x))]),
        ClassifierSettings(),
        (1,),
    )(x)
    assert np.corrcoef(found, true)[0, 1] > correlation
    assert np.polyfit(true, found, 1)[0] == pytest.approx(1, abs=deviation)


def test_mean():
    rng = np.random.default_rng(2)
    x = rng.normal(0, 1, (10_000, 2))
    expected = 3 + x[:, 0] * x[:, 1]
    found = fit_mean(x, expected + rng.normal(0, 0.3, len(x)), ClassifierSettings(epochs=20), (1,))(x)
    assert np.corrcoef(found, expected)[0, 1] > 0.97
    assert found.mean() == pytest.approx(3, abs=0.05)
