"""Observables of pairs with known kinematics."""

import numpy as np
import pytest

from topreco import fourvector
from topreco.observables import OBSERVABLES, m_tt


@pytest.fixture
def tops():
    rng = np.random.default_rng(0)
    return fourvector.from_three_momentum(rng.normal(0, 150, (30, 2, 3)), np.array([172.5, 173.5]))


@pytest.mark.parametrize("observable", OBSERVABLES.values(), ids=lambda o: o.name)
def test_shape_label_and_residual(tops, observable):
    values = observable.compute(tops, tops.sum(axis=1))
    assert values.shape == (30,)
    assert np.isfinite(values).all()
    assert observable.axis_label.endswith("[GeV]") is (observable.unit == "GeV")
    expected = 0.1 if observable.relative else 0.1 * values
    np.testing.assert_allclose(observable.residual(1.1 * values, values), expected, atol=1e-9)


def test_back_to_back_pair():
    tops = fourvector.from_three_momentum(np.array([[[60.0, 80.0, 0.0], [-60.0, -80.0, 0.0]]]), 172.5)
    values = {name: o.compute(tops, tops.sum(axis=1))[0] for name, o in OBSERVABLES.items()}
    assert values["m_tt"] == pytest.approx(2 * np.hypot(100, 172.5))
    assert m_tt(tops)[0] == pytest.approx(values["m_tt"])
    assert values["pt_top"] == pytest.approx(100)
    assert values["pt_antitop"] == pytest.approx(100)
    assert values["pt_tt"] == pytest.approx(0, abs=1e-9)
    assert values["m_top"] == pytest.approx(172.5)
    assert values["y_tt"] == pytest.approx(0)
