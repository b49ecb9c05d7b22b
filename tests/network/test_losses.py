import math

import pytest
import torch

from topreco.config import LossConfig
from topreco.network.losses import event_loss, four_momentum_loss, loss_weights, m_tt_loss

TRUTH = torch.tensor([[[500.0, 0.0, 0.0, 300.0], [400.0, 0.0, 0.0, -300.0]]])
# One component of each quark is off: by 50 GeV (half a unit of 100 GeV) and by 300 GeV (three units).
PRED = TRUTH + torch.tensor([[[0.0, 50.0, 0.0, 0.0], [0.0, 0.0, 0.0, -300.0]]])
SCALE = torch.tensor([100.0])


@pytest.mark.parametrize(
    ("base", "expected"), [("mse", (0.25 + 9.0) / 8), ("smooth_l1", (0.5 * 0.25 + 2.5) / 8)]
)
def test_four_momentum_loss_by_hand(base, expected):
    loss = four_momentum_loss(PRED, TRUTH, SCALE, base=base)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx(expected)


def test_component_weights_are_those_of_e_px_py_pz():
    loss = four_momentum_loss(PRED, TRUTH, SCALE, base="mse", component_weights=(7.0, 2.0, 5.0, 0.5))
    assert loss.item() == pytest.approx((2.0 * 0.25 + 0.5 * 9.0) / 8)


def test_each_event_has_its_own_scale():
    loss = four_momentum_loss(
        PRED.repeat(2, 1, 1), TRUTH.repeat(2, 1, 1), torch.tensor([100.0, 200.0]), base="mse"
    )
    assert loss[0] / loss[1] == pytest.approx(4.0)


@pytest.mark.parametrize("base", ["mse", "smooth_l1"])
def test_top_and_antitop_are_never_swapped(base):
    assert four_momentum_loss(TRUTH, TRUTH, SCALE, base=base).item() == 0
    swapped = four_momentum_loss(TRUTH.flip(1), TRUTH, SCALE, base=base).item()
    energy, pz = {"mse": (1.0, 36.0), "smooth_l1": (0.5, 5.5)}[base]
    assert swapped == pytest.approx(2 * (energy + pz) / 8)


def test_negative_weights():
    weight = torch.tensor([2.0, -3.0, 0.0])
    assert loss_weights(weight, "absolute").tolist() == [2.0, 3.0, 0.0]
    assert loss_weights(weight, "clip").tolist() == [2.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("factor", "kind", "error"),
    [
        (1.0, "log", 0.0),
        (1.5, "log", math.log(1.5)),
        (math.exp(2), "log", 2.0),
        (0.5, "log", -math.log(2)),
        (1.5, "relative", 0.5),
        (4.0, "relative", 3.0),
        (0.5, "relative", -0.5),
    ],
)
def test_m_tt_loss_by_hand(factor, kind, error):
    # The pair of TRUTH is at rest with a mass of 900 GeV, so the energies scale it.
    pred = TRUTH * torch.tensor([factor, 1.0, 1.0, 1.0])
    expected = 0.5 * error**2 if abs(error) < 1 else abs(error) - 0.5
    assert m_tt_loss(pred, TRUTH, kind=kind).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["log", "relative"])
def test_m_tt_loss_is_safe_for_spacelike_and_null_predictions(kind):
    # Momentum of the pair along x: far spacelike, lightlike, zero, just above and below the threshold.
    system = [(10.0, 5000.0), (900.0, 900.0), (0.0, 0.0), (90.1, 0.0), (89.9, 0.0)]
    pred = torch.tensor([[[e, px, 0.0, 0.0], [0.0] * 4] for e, px in system], requires_grad=True)
    loss = m_tt_loss(pred, TRUTH.repeat(5, 1, 1), kind=kind)
    assert loss.isfinite().all()
    assert loss[3].item() == pytest.approx(loss[4].item(), rel=0.01)
    loss.sum().backward()
    assert pred.grad.isfinite().all()
    # More energy or less momentum mends a spacelike pair.
    assert pred.grad[0, 0, 0] < 0 < pred.grad[0, 0, 1]


def test_event_loss_adds_the_auxiliary_terms():
    base = four_momentum_loss(PRED, TRUTH, SCALE, base="mse")
    assert event_loss(PRED, TRUTH, SCALE, LossConfig(base="mse")) == base
    config = LossConfig(base="mse", m_tt=0.3, m_tt_kind="relative")
    expected = base + 0.3 * m_tt_loss(PRED, TRUTH, kind="relative")
    assert event_loss(PRED, TRUTH, SCALE, config) == expected
    assert expected > base
