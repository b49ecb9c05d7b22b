import math

import numpy as np
import pytest
import torch

from topreco.config import LossConfig
from topreco.core.fourvector import from_three_momentum
from topreco.core.observables import c_han, c_hel
from topreco.network.tasks.losses import (
    LARGEST_FLAT_WEIGHT,
    NEIGHBOURS,
    PT_SOFTENING,
    c_hel_loss,
    event_loss,
    flattening_weights,
    four_momentum_loss,
    loss_weights,
    m_tt_bias_loss,
    m_tt_loss,
    pt_top_loss,
    pt_tt_loss,
    spin_loss,
)

TRUTH = torch.tensor([[[500.0, 0.0, 0.0, 300.0], [400.0, 0.0, 0.0, -300.0]]])
# One component of each quark is off: by 50 GeV (half a unit of 100 GeV) and by 300 GeV (three units).
PRED = TRUTH + torch.tensor([[[0.0, 50.0, 0.0, 0.0], [0.0, 0.0, 0.0, -300.0]]])
SCALE = torch.tensor([100.0])


def test_four_momentum_loss_by_hand():
    loss = four_momentum_loss(PRED, TRUTH, SCALE)
    assert loss.shape == (1,)
    assert loss.item() == pytest.approx((0.5 * 0.25 + 2.5) / 8)


def test_each_event_has_its_own_scale():
    error = torch.tensor([[[0.0, 50.0, 0.0, 0.0], [0.0] * 4]])
    loss = four_momentum_loss(
        (TRUTH + error).repeat(2, 1, 1), TRUTH.repeat(2, 1, 1), torch.tensor([100.0, 200.0])
    )
    assert loss[0] / loss[1] == pytest.approx(4.0)


def test_top_and_antitop_are_never_swapped():
    assert four_momentum_loss(TRUTH, TRUTH, SCALE).item() == 0
    assert four_momentum_loss(TRUTH.flip(1), TRUTH, SCALE).item() == pytest.approx(2 * (0.5 + 5.5) / 8)


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


def test_ratio_loss_by_hand():
    pred = TRUTH * torch.tensor([1.5, 1.0, 1.0, 1.0])
    assert m_tt_loss(TRUTH, TRUTH, kind="ratio").item() == pytest.approx(0, abs=1e-6)
    assert m_tt_loss(pred, TRUTH, kind="ratio").item() == pytest.approx(0.5 - math.log(1.5))


def test_minimum_of_the_ratio_loss_has_no_relative_bias():
    """One prediction for several true masses: the best has a mean ratio of 1, that of the log has not."""
    truth = pairs_of_mass(torch.tensor([350.0, 400.0, 450.0, 600.0, 900.0]))
    masses = torch.arange(350.0, 800.0, 0.5)
    best = {}
    for kind in ("ratio", "log"):
        losses = torch.stack([m_tt_loss(pairs_of_mass(m.repeat(5)), truth, kind=kind).mean() for m in masses])
        mass = masses[losses.argmin()]
        best[kind] = (mass / truth.sum(1)[:, 0] - 1).mean().item()
    assert best["ratio"] == pytest.approx(0, abs=1e-3)
    assert best["log"] > 0.04


@pytest.mark.parametrize("kind", ["log", "relative", "ratio"])
def test_m_tt_loss_is_safe_for_spacelike_and_null_predictions(kind):
    # Momentum of the pair along x: far spacelike, lightlike, zero, just above and below the threshold.
    system = [(10.0, 5000.0), (900.0, 900.0), (0.0, 0.0), (90.1, 0.0), (89.9, 0.0)]
    pred = torch.tensor([[[e, px, 0.0, 0.0], [0.0] * 4] for e, px in system], requires_grad=True)
    loss = m_tt_loss(pred, TRUTH.repeat(5, 1, 1), kind=kind)
    assert loss.isfinite().all()
    assert loss[3].item() == pytest.approx(loss[4].item(), rel=0.01)
    loss.sum().backward()
    assert pred.grad.isfinite().all()
    # More energy or less momentum leads back from a spacelike pair.
    assert pred.grad[0, 0, 0] < 0 < pred.grad[0, 0, 1]


def test_pt_top_loss_by_hand():
    truth = torch.tensor([[[500.0, 40.0, 0.0, 300.0], [400.0, 0.0, 0.0, -300.0]]])
    pred = torch.tensor([[[500.0, 0.0, -3000.0, 0.0], [400.0, 24.0, 32.0, 10.0]]])
    assert PT_SOFTENING == 30
    # (3000² + 30²)/(40² + 30²) = 3600.36 and (40² + 30²)/30².
    errors = 0.5 * math.log(3600.36), 0.5 * math.log(2500 / 900)
    expected = ((errors[0] - 0.5) + 0.5 * errors[1] ** 2) / 2
    assert pt_top_loss(pred, truth).item() == pytest.approx(expected, rel=1e-5)
    assert pt_top_loss(truth, truth).item() == 0


def test_pt_top_loss_is_smooth_where_pt_vanishes():
    pred = torch.tensor(
        [[[200.0, 0.0, 0.0, 50.0], [1.0, 90.0, 0.0, 0.0]], [[90.0, 0.0, 90.0, 0.0], [0.0] * 4]],
        requires_grad=True,
    )
    truth = TRUTH.repeat(2, 1, 1)
    loss = pt_top_loss(pred, truth)
    assert loss.isfinite().all()
    loss.sum().backward()
    assert pred.grad.isfinite().all()


# Tops at rest in the tt̄ frame but for a tiny momentum: the directions of leptons are those of the laboratory.
AT_REST = from_three_momentum(torch.tensor([[[0.0, 0.0, 1e-3], [0.0, 0.0, -1e-3]]]), 172.5)


@pytest.mark.parametrize(
    ("angle", "truth", "expected"),
    [(0.0, 1.0, 0.0), (math.pi / 2, 0.4, 0.5 * 0.4**2), (math.pi, 0.5, 1.5 - 0.5), (0.3, math.nan, 0.0)],
)
def test_c_hel_loss_by_hand(angle, truth, expected):
    momenta = torch.tensor([[[0.0, 50.0, 0.0], [0.0, 30 * math.cos(angle), 30 * math.sin(angle)]]])
    loss = c_hel_loss(AT_REST, from_three_momentum(momenta, 0.0), torch.tensor([truth]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, abs=1e-4)


def test_c_hel_loss_is_finite_for_any_prediction():
    momenta = [[[0.0, 0.0, 1e6], [0.0, 0.0, 1e6]], [[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[1e5, 3.0, 0.0]] * 2]
    pred = from_three_momentum(torch.tensor(momenta), 172.5)
    # The last pair is spacelike, and the truth of one event is unknown.
    pred[2, :, 0] = 0.0
    pred.requires_grad_(True)
    leptons = from_three_momentum(torch.tensor([[[30.0, 40.0, 900.0], [-20.0, 10.0, 0.0]]] * 3), 1e-3)
    loss = c_hel_loss(pred, leptons, torch.tensor([0.3, math.nan, -0.3]))
    assert loss.isfinite().all()
    assert loss[1] == 0
    loss.sum().backward()
    assert pred.grad.isfinite().all()
    assert pred.grad[0].any()
    assert not pred.grad[1].any()


def test_c_hel_loss_pulls_towards_the_truth():
    """A few steps downhill bring wrong tops to the right angle between the leptons."""
    torch.manual_seed(0)
    tops = from_three_momentum(100 * torch.randn(50, 2, 3), 172.5)
    leptons = from_three_momentum(50 * torch.randn(50, 2, 3), 0.1)
    truth = c_hel(tops.double(), leptons.double()).float()
    assert c_hel_loss(tops, leptons, truth).max() < 1e-6
    momenta = (tops[..., 1:] + 60 * torch.randn(50, 2, 3)).requires_grad_(True)
    optimiser = torch.optim.Adam([momenta], lr=3.0)
    losses = []
    for _ in range(60):
        loss = c_hel_loss(from_three_momentum(momenta, 172.5), leptons, truth).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10


def test_event_loss_adds_each_auxiliary_term_with_its_coefficient():
    nothing = {"m_tt": 0.0, "m_tt_kind": "log", "pt_top": 0.0, "c_hel": 0.0}
    base = event_loss(PRED, TRUTH, SCALE, LossConfig(**nothing))
    assert base == four_momentum_loss(PRED, TRUTH, SCALE)
    leptons = from_three_momentum(torch.tensor([[[30.0, 40.0, 90.0], [-20.0, 10.0, 0.0]]]), 0.1)
    spin = torch.tensor([0.2])
    terms = {
        "m_tt": m_tt_loss(PRED, TRUTH, kind="log"),
        "pt_top": pt_top_loss(PRED, TRUTH),
        "c_hel": c_hel_loss(PRED, leptons, spin),
    }
    for name, term in terms.items():
        assert term.item() > 0
        config = LossConfig(**nothing | {name: 0.3})
        torch.testing.assert_close(event_loss(PRED, TRUTH, SCALE, config, leptons, spin), base + 0.3 * term)
    together = LossConfig(**nothing | dict.fromkeys(terms, 2.0))
    torch.testing.assert_close(
        event_loss(PRED, TRUTH, SCALE, together, leptons, spin), base + 2 * sum(terms.values())
    )
    relative = LossConfig(**nothing | {"m_tt": 0.3, "m_tt_kind": "relative"})
    expected = base + 0.3 * m_tt_loss(PRED, TRUTH, kind="relative")
    torch.testing.assert_close(event_loss(PRED, TRUTH, SCALE, relative), expected)


def test_c_hel_needs_leptons():
    with pytest.raises(ValueError, match=r"loss.c_hel: 0.5 found, which needs leptons and the true c_hel"):
        event_loss(PRED, TRUTH, SCALE, LossConfig(c_hel=0.5))


# ---- the bias at given truth -----------------------------------------------------------------------------


def pairs_of_mass(mass):
    """Tops at rest relative to each other, whose pair has the given mass, shape (n, 2, 4)."""
    zero = torch.zeros_like(mass)
    top = torch.stack([mass / 2, zero, zero, zero], -1)
    return torch.stack([top, top], 1)


def test_bias_loss_by_hand():
    """Two groups of similar truth, all wrong by the same factor within each: the mean of the two squares."""
    truth = torch.cat([torch.full((NEIGHBOURS,), 400.0), torch.full((NEIGHBOURS,), 800.0)])
    factor = torch.cat([torch.full((NEIGHBOURS,), 1.1), torch.full((NEIGHBOURS,), 0.8)])
    expected = (0.1**2 + 0.2**2) / 2
    order = torch.randperm(2 * NEIGHBOURS)
    loss = m_tt_bias_loss(pairs_of_mass(truth * factor)[order], pairs_of_mass(truth)[order])
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    # Events that fill no group are left out, and there may be no group at all.
    few = pairs_of_mass(truth[: NEIGHBOURS - 1])
    assert m_tt_bias_loss(1.1 * few, few).item() == 0


def test_bias_loss_sees_shrinkage_and_not_the_resolution():
    generator = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(100_000, generator=generator, dtype=torch.float64)
    noise = 0.2 * torch.randn(100_000, generator=generator, dtype=torch.float64)
    truth = pairs_of_mass(500 * x.exp())
    smeared = pairs_of_mass(500 * (x.exp() * (1 + noise)).clamp(min=0.01))
    assert m_tt_bias_loss(smeared, truth).item() == pytest.approx(0, abs=2e-4)
    shrunk = m_tt_bias_loss(pairs_of_mass(500 * (0.7 * (x + noise)).exp()), truth)
    # RB of exp(−0.3 x + 0.7 noise), squared and averaged over x.
    mean = math.exp((0.7 * 0.2) ** 2 / 2)
    expected = mean**2 * math.exp(2 * 0.09**2) - 2 * mean * math.exp(0.09**2 / 2) + 1
    assert shrunk.item() == pytest.approx(expected, rel=0.03)


def test_bias_loss_has_a_finite_gradient_for_spacelike_pairs():
    pred = pairs_of_mass(torch.linspace(300, 900, 2 * NEIGHBOURS))
    truth = 1.1 * pred
    pred[3, :, 0] = 0.0
    pred[3, :, 3] = 100.0
    pred.requires_grad_()
    m_tt_bias_loss(pred, truth).backward()
    assert pred.grad.isfinite().all()
    assert pred.grad[3].abs().sum() > 0


# ---- flat spectra ----------------------------------------------------------------------------------------


def test_flat_weights_flatten_the_spectrum():
    m_tt = 345 * torch.exp(torch.from_numpy(np.random.default_rng(1).exponential(0.3, 20_000)))
    weight = flattening_weights(m_tt, 1.0)
    assert float(weight.mean()) == pytest.approx(1)
    assert float(weight.max() / weight.min()) <= LARGEST_FLAT_WEIGHT * (1 + 1e-9)
    # ln m_tt up to where the largest weight is reached, e^(x/0.3) = 20.
    content, _ = np.histogram(m_tt.log(), bins=6, range=(math.log(345), math.log(345) + 0.7), weights=weight)
    assert content.max() / content.min() < 1.25
    plain, _ = np.histogram(m_tt.log(), bins=6, range=(math.log(345), math.log(345) + 0.7))
    assert plain.max() / plain.min() > 5


def test_flatness_goes_from_nothing_to_all():
    m_tt = 345 + torch.from_numpy(np.random.default_rng(2).exponential(150, 1000))
    assert torch.allclose(flattening_weights(m_tt, 0.0), torch.ones(1000, dtype=m_tt.dtype))
    half, full = (flattening_weights(m_tt, flatness) for flatness in (0.5, 1.0))
    assert 1 < half.max() / half.min() < full.max() / full.min()
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(flattening_weights(m_tt[order], 0.5), half[order])
    assert torch.allclose(flattening_weights(torch.full((5,), 400.0), 1.0), torch.ones(5))


def test_spin_losses_vanish_at_the_truth_and_have_finite_gradients():
    rng = np.random.default_rng(1)
    tops = torch.from_numpy(from_three_momentum(rng.normal(0, 150, (50, 2, 3)), 172.5)).float()
    # Exactly along the beam, where the axes r and n are not defined.
    tops[0, :, 1:3] = 0
    leptons = torch.from_numpy(from_three_momentum(rng.normal(0, 40, (50, 2, 3)), 0.1)).float()
    for loss in spin_loss(tops, tops, leptons):
        assert (loss.abs() < 1e-10).all()
    pred = (tops + 5 * torch.randn_like(tops)).requires_grad_()
    cosines, c_han_error = spin_loss(pred, tops, leptons)
    (cosines.sum() + c_han_error.sum()).backward()
    assert pred.grad.isfinite().all()
    # What c_han's loss sees is c_han.
    expected = c_han(pred.detach().double(), leptons.double()) - c_han(tops.double(), leptons.double())
    small = expected.abs() < 0.9
    small[0] = False
    torch.testing.assert_close(
        c_han_error.detach()[small], 0.5 * expected[small].square().float(), rtol=2e-2, atol=1e-3
    )


def test_pt_tt_loss_is_that_of_the_vector():
    tops = torch.tensor([[[300.0, 100, 0, 0], [300.0, -100, 0, 0]]])
    other = torch.tensor([[[300.0, 130, 0, 0], [300.0, -100, 40, 9]]])
    loss = pt_tt_loss(other, tops, torch.tensor([100.0]))
    torch.testing.assert_close(loss, torch.tensor([(0.3**2 + 0.4**2) / 4]))
