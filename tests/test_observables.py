"""Observables of pairs with known kinematics."""

import numpy as np
import pytest

from topreco import fourvector
from topreco.observables import OBSERVABLES, c_hel, m_tt


@pytest.fixture
def tops():
    rng = np.random.default_rng(0)
    return fourvector.from_three_momentum(rng.normal(0, 150, (30, 2, 3)), np.array([172.5, 173.5]))


@pytest.fixture
def leptons():
    return fourvector.from_three_momentum(np.random.default_rng(1).normal(0, 50, (30, 2, 3)), 0.0)


@pytest.mark.parametrize("observable", OBSERVABLES.values(), ids=lambda o: o.name)
def test_shape_label_and_residual(tops, leptons, observable):
    values = observable.compute(tops, tops.sum(axis=1), leptons)
    assert values.shape == (30,)
    assert np.isfinite(values).all()
    assert observable.axis_label.endswith("[GeV]") is (observable.unit == "GeV")
    expected = 0.1 if observable.relative else 0.1 * values
    np.testing.assert_allclose(observable.residual(1.1 * values, values), expected, atol=1e-9)


def test_back_to_back_pair():
    tops = fourvector.from_three_momentum(np.array([[[60.0, 80.0, 0.0], [-60.0, -80.0, 0.0]]]), 172.5)
    leptons = np.array([[[1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]]])
    values = {name: o.compute(tops, tops.sum(axis=1), leptons)[0] for name, o in OBSERVABLES.items()}
    assert values["m_tt"] == pytest.approx(2 * np.hypot(100, 172.5))
    assert m_tt(tops)[0] == pytest.approx(values["m_tt"])
    assert values["pt_top"] == pytest.approx(100)
    assert values["pt_antitop"] == pytest.approx(100)
    assert values["pt_tt"] == pytest.approx(0, abs=1e-9)
    assert values["m_top"] == pytest.approx(172.5)
    assert values["y_tt"] == pytest.approx(0)


# ---- c_hel -----------------------------------------------------------------------------------------------


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def decayed(rng, n, directions):
    """Tops and leptons in the laboratory, from directions of the leptons in the frames of their tops.

    The way back from the definition: top frame → tt̄ frame → laboratory, one boost each.
    """
    momenta = rng.normal(0, 150, (n, 3))
    at_rest = fourvector.from_three_momentum(np.stack([momenta, -momenta], 1), 172.5)
    leptons = fourvector.from_three_momentum(rng.uniform(20, 100, (n, 2, 1)) * directions, 0.0)
    leptons = fourvector.boost(leptons, at_rest[..., 1:] / at_rest[..., :1])
    velocity = rng.uniform(0, 0.95, (n, 1, 1)) * unit(rng.normal(size=(n, 1, 3)))
    return fourvector.boost(at_rest, velocity), fourvector.boost(leptons, velocity)


@pytest.mark.parametrize(
    ("plus", "minus", "expected"),
    [
        # Along the flight a massless lepton keeps its direction in every frame; across it, ℓ⁺ of energy 1 in
        # the frame of a top with γ = 1.25 and γβ = 0.75 has (1.25, 1, 0, 0.75) in the tt̄ frame.
        ((5.0, 0.0, 0.0, 5.0), (7.0, 0.0, 0.0, 7.0), 1.0),
        ((5.0, 0.0, 0.0, 5.0), (7.0, 0.0, 0.0, -7.0), -1.0),
        ((1.25, 1.0, 0.0, 0.75), (7.0, 0.0, 0.0, -7.0), 0.0),
        ((1.25, 1.0, 0.0, 0.75), (2.5, 2.0, 0.0, -1.5), 1.0),
        ((1.25, 1.0, 0.0, 0.75), (2.5, 0.0, 2.0, -1.5), 0.0),
        # (1, 0.8, 0, 0.6) in the frame of the top.
        ((1.25 + 0.45, 0.8, 0.0, 0.75 + 0.75), (2.5, 2.0, 0.0, -1.5), 0.8),
    ],
)
def test_c_hel_by_hand(plus, minus, expected):
    tops = 170 * np.array([[1.25, 0.0, 0.0, 0.75], [1.25, 0.0, 0.0, -0.75]])
    assert c_hel(tops, np.array([plus, minus])) == pytest.approx(expected, abs=1e-12)


def test_c_hel_goes_back_through_both_boosts():
    """Exactly, however the pair moves; a single boost from laboratory to top would turn the leptons."""
    rng = np.random.default_rng(1)
    directions = unit(rng.normal(size=(500, 2, 3)))
    tops, leptons = decayed(rng, 500, directions)
    expected = (directions[:, 0] * directions[:, 1]).sum(-1)
    np.testing.assert_allclose(c_hel(tops, leptons), expected, atol=1e-9)
    direct = unit(fourvector.to_rest_frame(leptons, tops)[..., 1:])
    assert abs((direct[:, 0] * direct[:, 1]).sum(-1) - expected).max() > 0.1


def test_c_hel_is_the_same_in_every_laboratory():
    rng = np.random.default_rng(2)
    tops, leptons = decayed(rng, 200, unit(rng.normal(size=(200, 2, 3))))
    velocity = np.array([0.5, -0.3, 0.6])
    moved = c_hel(fourvector.boost(tops, velocity), fourvector.boost(leptons, velocity))
    np.testing.assert_allclose(moved, c_hel(tops, leptons), atol=1e-9)
    mirrored = np.array([1.0, 1.0, 1.0, -1.0])
    np.testing.assert_allclose(c_hel(tops * mirrored, leptons * mirrored), c_hel(tops, leptons), atol=1e-12)


@pytest.mark.parametrize("d", [0.0, -0.24])
def test_d_of_a_toy(d):
    """⟨c_hel⟩ = −D/3, with isotropic leptons for D = 0 and else dN/dc ∝ 1 − D c."""
    rng, n = np.random.default_rng(3), 100_000
    directions = unit(rng.normal(size=(n, 2, 3)))
    cosine = (directions[:, 0] * directions[:, 1]).sum(-1)
    kept = rng.uniform(0, 1 + abs(d), n) < 1 - d * cosine
    tops, leptons = decayed(rng, kept.sum(), directions[kept])
    values = c_hel(tops, leptons)
    error = 3 * values.std() / np.sqrt(len(values))
    assert error < 0.01
    assert abs(-3 * values.mean() - d) < 4 * error


def test_c_hel_of_tensors_and_of_unphysical_tops():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    tops, leptons = decayed(rng, 20, unit(rng.normal(size=(20, 2, 3))))
    tensors = c_hel(torch.from_numpy(tops), torch.from_numpy(leptons))
    np.testing.assert_allclose(tensors.numpy(), c_hel(tops, leptons), atol=1e-12)
    tops[0, 0, 0], tops[1] = 1.0, np.nan
    values = c_hel(tops, leptons)
    assert np.isnan(values[:2]).all()
    assert np.isfinite(values[2:]).all()
