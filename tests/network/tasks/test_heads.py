"""From a network's vectors to four-momenta, by hand and against the formulas."""

import math

import pytest
import torch

from topreco.core import fourvector
from topreco.core.constants import M_TOP
from topreco.core.events import toy_events
from topreco.network.tasks.heads import Head, soft_assignment
from topreco.network.tokens import Inputs

HEADS = ("on_shell", "timelike", "direct", "neutrinos")


def raw_input(n=200, dtype=torch.float64):
    inputs = Inputs.from_events(toy_events(n), dtype)
    visible = inputs.lepton_plus + inputs.lepton_minus + inputs.jets[:, :7].sum(1)
    return 3 * torch.randn(n, 2, 4, dtype=dtype), torch.randn(n, 2, 1, dtype=dtype), visible


def test_head_is_its_formula():
    raw, scalars, visible = raw_input()
    scale = torch.full((200,), 100.0, dtype=torch.float64)
    u = (visible / fourvector.mass(visible)[:, None])[:, None]
    v = 100.0 * raw
    perpendicular = v - fourvector.dot(v, u)[..., None] * u
    energy = (M_TOP**2 - fourvector.mass_squared(perpendicular)).sqrt()
    head = Head("on_shell", M_TOP)
    torch.testing.assert_close(
        head(raw, scalars[..., :0], visible, scale), perpendicular + energy[..., None] * u
    )


def decay_products(n=200, dtype=torch.float64):
    """Lepton and leading jets of toy events."""
    inputs = Inputs.from_events(toy_events(n), dtype)
    return torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1) + inputs.jets[:, :2]


@pytest.mark.parametrize("kind", HEADS)
def test_head_is_covariant(kind, lorentz):
    raw, scalars, visible = raw_input()
    scale, decay = torch.full((200,), 100.0, dtype=torch.float64), decay_products()
    head = Head(kind, M_TOP)
    torch.testing.assert_close(
        head(raw @ lorentz.T, scalars, visible @ lorentz.T, scale, decay @ lorentz.T),
        head(raw, scalars, visible, scale, decay) @ lorentz.T,
    )


def test_direct_head_keeps_the_vector_where_it_can():
    raw, scalars, visible = raw_input()
    scale = torch.full((200,), 100.0, dtype=torch.float64)
    raw[..., 0] = (raw[..., 1:].square().sum(-1) + torch.linspace(25, 400, 200)[:, None]).sqrt()
    squared = fourvector.mass_squared(100 * raw)
    p4 = Head("direct", M_TOP)(raw, scalars, visible, scale)
    a, smallest = (M_TOP / 2) ** 2, (M_TOP / 10) ** 2
    torch.testing.assert_close(
        fourvector.mass_squared(p4), 0.5 * (squared + (squared**2 + 4 * a**2).sqrt()) + smallest
    )
    # From 500 GeV on the mass changes by less than 0.2 %.
    torch.testing.assert_close(p4, 100 * raw, rtol=0.0, atol=1.0)
    # The part orthogonal to u is exact.
    u = (visible / fourvector.mass(visible)[:, None])[:, None]
    difference = p4 - 100 * raw
    along = fourvector.dot(difference, u)[..., None] * u
    torch.testing.assert_close(difference, along, rtol=1e-6, atol=1e-6)


def test_free_masses_of_spacelike_vectors():
    """Positive mass, positive energy and a gradient that leads back to a top."""
    visible = torch.tensor([[500.0, 0.0, 0.0, 0.0]])
    raw = torch.tensor([[[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    p4 = Head("direct", M_TOP)(raw, raw.new_zeros(1, 2, 0), visible, torch.tensor([100.0]))
    # v² = −(500 GeV)², far from any timelike vector, and v² = 0, halfway to one.
    a = (M_TOP / 2) ** 2
    expected = torch.tensor([a**2 / 500**2, a]) + (M_TOP / 10) ** 2
    torch.testing.assert_close(fourvector.mass_squared(p4)[0], expected, rtol=1e-2, atol=0.0)
    p4[..., 0].sum().backward()
    assert raw.grad.isfinite().all()


def test_direct_pairs_may_be_lighter_than_two_tops():
    visible = torch.tensor([[500.0, 0.0, 0.0, 0.0]])
    raw = torch.tensor([[[1.5, 0.0, 0.0, 0.0]] * 2])
    p4 = Head("direct", M_TOP)(raw, raw.new_zeros(1, 2, 0), visible, torch.tensor([100.0]))
    assert 250 < fourvector.mass(p4.sum(1)).item() < 2 * M_TOP


def test_neutrino_head_adds_a_massless_neutrino():
    raw, scalars, visible = raw_input()
    scale, decay = torch.full((200,), 100.0, dtype=torch.float64), decay_products()
    p4 = Head("neutrinos", M_TOP)(raw, scalars[..., :0], visible, scale, decay)
    neutrinos = p4 - decay
    assert (neutrinos[..., 0] > 0).all()
    # In units of energy, for a massless vector's mass is a difference of large numbers.
    ratio = fourvector.mass_squared(neutrinos) / neutrinos[..., 0] ** 2
    torch.testing.assert_close(ratio, torch.zeros_like(ratio), rtol=0.0, atol=1e-6)
    # In the rest frame of the visible system its momentum is that of the raw vector.
    at_rest = fourvector.to_rest_frame(neutrinos, visible[:, None])
    torch.testing.assert_close(
        at_rest[..., 1:], fourvector.to_rest_frame(100 * raw, visible[:, None])[..., 1:], rtol=1e-6, atol=1e-6
    )


def test_neutrino_head_of_a_collinear_decay_has_a_mass():
    beam = torch.tensor([[[50.0, 0.0, 0.0, 50.0]] * 2])
    visible, scale = torch.tensor([[500.0, 0.0, 0.0, 0.0]]), torch.tensor([100.0])
    p4 = Head("neutrinos", M_TOP)(torch.zeros(1, 2, 4), torch.zeros(1, 2, 0), visible, scale, beam)
    torch.testing.assert_close(p4[..., 1:], beam[..., 1:])
    torch.testing.assert_close(fourvector.mass(p4), torch.full((1, 2), M_TOP / 10), rtol=1e-4, atol=0.0)


def test_neutrino_head_needs_decay_products():
    raw, scalars, visible = raw_input(4)
    with pytest.raises(ValueError, match=r"head 'neutrinos': lepton and b quark of each top expected"):
        Head("neutrinos", M_TOP)(raw, scalars[..., :0], visible, torch.ones(4, dtype=torch.float64))


def test_soft_assignment_by_hand():
    jets = torch.tensor([[[100.0, 60.0, 0.0, 80.0], [50.0, 0.0, 30.0, 40.0], [torch.nan] * 4]])
    jets[0, 2] = 7.0
    mask = torch.tensor([[True, True, False]])
    logits = torch.tensor([[[math.log(3.0), 0.0, 9.0], [-50.0, 50.0, 99.0]]])
    assigned = soft_assignment(logits, jets, mask)
    torch.testing.assert_close(assigned[0, 0], 0.75 * jets[0, 0] + 0.25 * jets[0, 1])
    torch.testing.assert_close(assigned[0, 1], jets[0, 1])
    assert torch.equal(soft_assignment(logits, jets, mask & False), torch.zeros(1, 2, 4))


def test_head_reaches_every_momentum():
    """With visible inputs at rest the raw momentum is that of the top."""
    raw, scalars, _ = raw_input()
    visible = torch.tensor([500.0, 0.0, 0.0, 0.0], dtype=torch.float64).expand(200, 4)
    scale = torch.full((200,), 100.0, dtype=torch.float64)
    p4 = Head("on_shell", M_TOP)(raw, scalars[..., :0], visible, scale)
    torch.testing.assert_close(p4[..., 1:], 100.0 * raw[..., 1:])


def test_half_precision_inside_spares_the_jets():
    """The weights may be rough, not the momenta that they multiply."""
    inputs = Inputs.from_events(toy_events(50))
    logits = torch.randn(50, 2, 12)
    expected = soft_assignment(logits, inputs.jets, inputs.jet_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assigned = soft_assignment(logits, inputs.jets, inputs.jet_mask)
    assert assigned.dtype == torch.float32
    torch.testing.assert_close(assigned, expected)


def test_head_in_single_precision():
    raw, scalars, visible = raw_input(5000, torch.float32)
    scale = torch.full((5000,), 100.0)
    head = Head("on_shell", M_TOP)
    p4 = head(raw, scalars[..., :0], visible, scale)
    # Right up to the rounding of E and p, of relative size 2⁻²⁴ each, in m² = E² − p².
    rounding = 2**-23 * (p4[..., 0].double() / M_TOP) ** 2
    assert ((fourvector.mass(p4.double()) / M_TOP - 1).abs() < 1e-6 + 2 * rounding).all()
    double = head(raw.double(), scalars[..., :0].double(), visible.double(), scale.double())
    torch.testing.assert_close(p4.double(), double, rtol=1e-3, atol=0.1)
