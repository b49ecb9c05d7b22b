"""Laws that hold for every network, whatever its weights, and what sets the kinds apart."""

import math

import pytest
import torch

from topreco.config import ModelConfig
from topreco.core import fourvector
from topreco.core.constants import M_TOP
from topreco.core.events import toy_events
from topreco.network.spurions import build_spurions
from topreco.network.tasks.heads import SMALLEST_MASS, Head, soft_assignment
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs, build_tokens, model_features

EQUIVARIANT = ("lgatr", "lgatr_slim")
KINDS = (*EQUIVARIANT, "transformer")
HEADS = ("on_shell", "timelike", "direct", "projected", "three_momentum", "neutrinos")
COVARIANT_HEADS = tuple(head for head in HEADS if head != "three_momentum")
# The laws of the first two are tested with every readout and all spurions, those of the others without:
# between backbone and head there is nothing else that could break them.
OTHER_HEADS = HEADS[2:]
READOUTS = ("first_token", "mean", "sum", "query_tokens")
SPURIONS = {
    "none": {"beam": None, "time": False},
    "time": {"beam": None, "time": True},
    "lightlike": {"beam": "lightlike"},
    "lightlike-one": {"beam": "lightlike", "mirror": False},
    "lightlike-notime": {"beam": "lightlike", "time": False},
    "spacelike": {"beam": "spacelike"},
    "timelike": {"beam": "timelike"},
    "timelike-one": {"beam": "timelike", "mirror": False},
    "xyplane": {"beam": "xyplane"},
    "xyplane-notime": {"beam": "xyplane", "time": False},
}
TIGHT = {"rtol": 1e-8, "atol": 1e-6}
"""For double precision, in GeV."""


def cases(kinds, spurions=tuple(SPURIONS)):
    """Kind × spurions × embedding, without the bivector where it cannot be seen."""
    return [
        pytest.param(kind, {**SPURIONS[name], "embed": embed}, id=f"{kind}-{name}-{embed}")
        for kind in kinds
        for name in spurions
        for embed in ("token", "channel")
        if kind == "lgatr" or not name.startswith("xyplane")
    ]


def transform(inputs, matrix):
    """Inputs under a transformation that leaves the beam alone."""
    met = inputs.met @ matrix[1:3, 1:3].T
    return inputs._replace(
        lepton_plus=inputs.lepton_plus @ matrix.T,
        lepton_minus=inputs.lepton_minus @ matrix.T,
        jets=inputs.jets @ matrix.T,
        met=met,
    )


@pytest.fixture(params=READOUTS)
def readout(request):
    return request.param


@pytest.fixture
def network(small_config):
    """A network in double precision."""

    def make(kind, **fields):
        return TopNetwork(small_config(kind, **fields)).double().eval().requires_grad_(False)

    return make


# ---- symmetry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "spurions"), cases(EQUIVARIANT))
def test_rotation_about_the_beam(network, inputs, rotation, readout, kind, spurions):
    """The plain transformer is exempt: it has to learn this."""
    model = network(kind, spurions=spurions, readout=readout, tokens={"log_pt": True})
    torch.testing.assert_close(model(transform(inputs, rotation)), model(inputs) @ rotation.T, **TIGHT)


@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", EQUIVARIANT)
def test_rotation_about_the_beam_with_other_heads(network, inputs, rotation, kind, head):
    model = network(kind, head=head)
    torch.testing.assert_close(model(transform(inputs, rotation)), model(inputs) @ rotation.T, **TIGHT)


@pytest.mark.parametrize("readout", ["query_tokens", "mean"])
@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", EQUIVARIANT)
def test_only_three_momenta_break_lorentz_transformations(
    network, inputs, lorentz, transform_multivectors, kind, head, readout
):
    """An energy that follows from a momentum in the laboratory knows the laboratory."""
    model = network(kind, head=head, readout=readout)
    tokens, scale = build_tokens(inputs, model.config.tokens), model.scale(inputs)
    moved = model.forward_tokens(
        tokens._replace(p4=tokens.p4 @ lorentz.T), scale, transform_multivectors(lorentz, model.spurions)
    )
    expected = model.forward_tokens(tokens, scale) @ lorentz.T
    if head in COVARIANT_HEADS:
        torch.testing.assert_close(moved, expected, **TIGHT)
    else:
        assert (moved - expected).abs().max() > 1


@pytest.mark.parametrize(("kind", "spurions"), cases(EQUIVARIANT))
def test_lorentz_transformation_of_everything(
    network, inputs, lorentz, transform_multivectors, readout, kind, spurions
):
    model = network(kind, spurions=spurions, readout=readout, head="timelike")
    tokens, scale = build_tokens(inputs, model.config.tokens), model.scale(inputs)
    moved = model.forward_tokens(
        tokens._replace(p4=tokens.p4 @ lorentz.T), scale, transform_multivectors(lorentz, model.spurions)
    )
    torch.testing.assert_close(moved, model.forward_tokens(tokens, scale) @ lorentz.T, **TIGHT)


@pytest.mark.parametrize("charge_symmetric", [False, True], ids=["plain", "charge-symmetric"])
@pytest.mark.parametrize("b_candidates", ["token", "flag", "none"])
@pytest.mark.parametrize("kind", EQUIVARIANT)
def test_lorentz_transformation_with_an_event_mass(
    network, inputs, lorentz, transform_multivectors, kind, b_candidates, charge_symmetric
):
    model = network(
        kind,
        tokens={"b_candidates": b_candidates},
        normalisation={"kind": "event_mass"},
        charge_symmetric=charge_symmetric,
    )
    tokens = build_tokens(inputs, model.config.tokens)
    moved = tokens._replace(p4=tokens.p4 @ lorentz.T)
    torch.testing.assert_close(model.scale_of(moved), model.scale_of(tokens))
    torch.testing.assert_close(
        model.forward_tokens(moved, model.scale_of(moved), transform_multivectors(lorentz, model.spurions)),
        model(inputs) @ lorentz.T,
        **TIGHT,
    )


@pytest.mark.parametrize(
    ("kind", "spurions"),
    [
        case
        for case in cases(
            ("lgatr_slim",), ("none", "time", "lightlike", "lightlike-notime", "spacelike", "timelike")
        )
        if case.values[1]["embed"] == "token"
    ],
)
def test_reflection_of_the_beam_axis(network, inputs, readout, kind, spurions):
    """Exact for vectors and scalars with both beams or none; L-GATr itself mixes in axial vectors."""
    model = network(kind, spurions=spurions, readout=readout)
    flip = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(model(transform(inputs, flip)), model(inputs) @ flip.T, **TIGHT)


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_reflection_of_the_beam_axis_with_other_heads(network, inputs, head):
    model = network("lgatr_slim", head=head)
    flip = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64))
    torch.testing.assert_close(model(transform(inputs, flip)), model(inputs) @ flip.T, **TIGHT)


@pytest.mark.parametrize(("kind", "spurions"), [case for case in cases(KINDS) if "none" not in case.id])
def test_spurions_are_seen(network, inputs, lorentz, transform_multivectors, kind, spurions):
    model = network(kind, spurions=spurions)
    before = model(inputs)
    model.spurions = transform_multivectors(lorentz, model.spurions)
    assert (model(inputs) - before).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_plain_transformer_breaks_rotations(network, inputs, rotation, kind):
    model = network(kind)
    deviation = (model(transform(inputs, rotation)) - model(inputs) @ rotation.T).abs().max()
    assert (deviation > 1e-2) == (kind == "transformer")


def permuted_jets(inputs):
    order = torch.rand(inputs.jet_mask.shape).argsort(1)
    return inputs._replace(
        jets=inputs.jets.gather(1, order[..., None].expand(-1, -1, 4)),
        jet_mask=inputs.jet_mask.gather(1, order),
        jet_btag=inputs.jet_btag.gather(1, order),
        jet_tagged=inputs.jet_tagged.gather(1, order),
        b_candidates=order.argsort(1).gather(1, inputs.b_candidates),
    )


@pytest.mark.parametrize("b_candidates", ["token", "flag", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_permutation_of_jets(network, inputs, readout, kind, b_candidates):
    model = network(kind, readout=readout, tokens={"b_candidates": b_candidates, "max_jets": 7})
    torch.testing.assert_close(model(permuted_jets(inputs)), model(inputs), **TIGHT)


@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_permutation_of_jets_with_other_heads(network, inputs, kind, head):
    model = network(kind, head=head)
    torch.testing.assert_close(model(permuted_jets(inputs)), model(inputs), **TIGHT)


@pytest.mark.parametrize("head", ["on_shell", "timelike"])
@pytest.mark.parametrize("b_candidates", ["token", "flag", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_charge_exchange(network, inputs, readout, kind, b_candidates, head):
    model = network(
        kind, readout=readout, tokens={"b_candidates": b_candidates}, head=head, charge_symmetric=True
    )
    exchanged = model(inputs.charge_exchanged())
    torch.testing.assert_close(exchanged, model(inputs).flip(1), **TIGHT)
    # The two tops must not have become one.
    assert (exchanged[:, 0] - exchanged[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("b_candidates", ["token", "flag"])
@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_charge_exchange_with_other_heads(network, inputs, kind, head, b_candidates):
    model = network(kind, tokens={"b_candidates": b_candidates}, head=head, charge_symmetric=True)
    exchanged = model(inputs.charge_exchanged())
    torch.testing.assert_close(exchanged, model(inputs).flip(1), **TIGHT)
    assert (exchanged[:, 0] - exchanged[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_charge_exchange_is_no_symmetry_unless_asked_for(network, inputs, kind):
    model = network(kind)
    assert (model(inputs.charge_exchanged()) - model(inputs).flip(1)).abs().max() > 1e-3


# ---- padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed", ["token", "channel"])
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(small_config, readout, kind, embed):
    inputs = Inputs.from_events(toy_events(16, max_jets=7))
    options = {"readout": readout, "spurions": {"embed": embed}}
    short = TopNetwork(small_config(kind, tokens={"max_jets": 7}, **options)).eval()
    long = TopNetwork(small_config(kind, tokens={"max_jets": 12}, **options)).eval()
    long.load_state_dict(short.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(long(inputs), short(inputs), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing_with_other_heads(small_config, kind, head):
    inputs = Inputs.from_events(toy_events(16, max_jets=7), torch.float64)
    short = TopNetwork(small_config(kind, tokens={"max_jets": 7}, head=head)).double().eval()
    long = TopNetwork(small_config(kind, tokens={"max_jets": 12}, head=head)).double().eval()
    long.load_state_dict(short.state_dict())
    dirty = inputs._replace(jets=torch.where(inputs.jet_mask[..., None], inputs.jets, torch.nan))
    with torch.no_grad():
        torch.testing.assert_close(long(inputs), short(inputs), **TIGHT)
        assert torch.equal(short(dirty), short(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_other_events_of_the_batch_change_nothing(small_config, readout, kind):
    inputs = Inputs.from_events(toy_events(16))
    model = TopNetwork(small_config(kind, readout=readout, normalisation={"kind": "event_mass"})).eval()
    with torch.no_grad():
        together = model(inputs)
        alone = torch.cat([model(inputs.take(slice(i, i + 1))) for i in range(16)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("garbage", [1e6, torch.nan], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_content_of_masked_jets_is_ignored(network, inputs, readout, kind, garbage):
    absent = ~inputs.jet_mask
    dirty = inputs._replace(
        jets=torch.where(absent[..., None], garbage, inputs.jets),
        jet_btag=torch.where(absent, garbage, inputs.jet_btag),
    )
    for normalisation in ("constant", "event_mass"):
        model = network(kind, readout=readout, normalisation={"kind": normalisation})
        assert torch.equal(model(dirty), model(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_matters(network, inputs, kind):
    """The converse: nothing that is there is masked away."""
    inputs = inputs.take(inputs.jet_mask.sum(1) == 4)
    model = network(kind)
    before = model(inputs)
    jets = inputs.jets.clone()
    jets[:, 3] *= 1.1
    btag = inputs.jet_btag.clone()
    btag[:, 3] += 0.3
    for change in (
        {"jets": jets},
        {"jet_btag": btag},
        {"met": inputs.met * 1.1},
        {"lepton_plus": inputs.lepton_plus * 1.1},
        {"lepton_flavour": 24 - inputs.lepton_flavour},
        {"b_candidates": inputs.b_candidates.flip(1)},
    ):
        assert ((model(inputs._replace(**change)) - before).abs().amax((1, 2)) > 1e-6).all(), change


# ---- predictions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["on_shell", "timelike"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_timelike(small_config, readout, kind, head):
    inputs = Inputs.from_events(toy_events(500))
    model = TopNetwork(small_config(kind, readout=readout, head=head))
    p4 = model(inputs)
    assert p4.shape == (500, 2, 4)
    assert (p4[..., 0] > 0).all()
    mass = fourvector.mass(p4)
    if head == "on_shell":
        assert (mass / M_TOP - 1).abs().max() < 1e-3
    else:
        assert ((mass > 0.6 * M_TOP) & (mass < 1.66 * M_TOP)).all()
        assert mass.std() > 0


@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_of_other_heads_are_timelike(small_config, kind, head):
    model = TopNetwork(small_config(kind, head=head))
    p4 = model(Inputs.from_events(toy_events(500)))
    assert p4.shape == (500, 2, 4)
    assert (p4[..., 0] > 0).all()
    mass = fourvector.mass(p4.double())
    assert (mass > 0.99 * SMALLEST_MASS * M_TOP).all()
    if head in ("projected", "three_momentum"):
        assert (mass / M_TOP - 1).abs().max() < 1e-3
    else:
        assert mass.std() > 0


def extreme_events(dtype=torch.float32):
    """5 TeV inputs, two jets, no MET, no b candidates; leptons at threshold, along and across the jets."""
    directions = torch.tensor(
        [
            [[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]],
            [[1.0, 0.0, 0.0], [1.0, 0.01, 0.0], [1.0, 0.0, 0.1], [1.0, 0.1, 0.1]],
            [[0.1, 0.0, 1.0], [0.0, 0.1, 1.0], [0.1, 0.1, 1.0], [0.1, -0.1, 1.0]],
            [[0.2, 0.0, 1.0], [0.0, 0.2, -1.0], [0.2, 0.1, 1.0], [0.2, -0.1, -1.0]],
        ],
        dtype=dtype,
    )
    momenta = torch.tensor(
        [[20.0, 5000.0, 5000.0, 30.0], [5000.0] * 4, [20.0, 20.0, 30.0, 30.0]], dtype=dtype
    )
    three = (directions[:, None] * momenta[None, :, :, None]).flatten(0, 1)
    p4 = fourvector.from_three_momentum(three, torch.tensor([5e-4, 0.1, 5.0, 5.0], dtype=dtype))
    n = len(p4)
    return Inputs(
        lepton_plus=p4[:, 0],
        lepton_minus=p4[:, 1],
        lepton_flavour=torch.tensor([[11, 13]]).expand(n, 2),
        jets=p4[:, 2:],
        jet_mask=torch.ones(n, 2, dtype=torch.bool),
        jet_btag=torch.zeros(n, 2, dtype=dtype),
        jet_tagged=torch.zeros(n, 2, dtype=torch.bool),
        b_candidates=torch.full((n, 2), -1),
        met=torch.zeros(n, 2, dtype=dtype),
    )


def check_finite(model, inputs):
    """Predictions and gradients, after standardisation on the same events."""
    model.fit_standardisation(inputs)
    p4 = model(inputs)
    assert p4.isfinite().all()
    assert (p4[..., 0] > 0).all()
    p4.square().mean().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("options", [
    {},
    {"normalisation": {"kind": "event_mass", "include_met": True}, "head": "timelike"},
    {"tokens": {"b_candidates": "token", "log_pt": True}, "charge_symmetric": True},
    {"spurions": {"beam": None, "time": False}},
], ids=["default", "event-mass", "candidates", "unbroken"])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_events_stay_finite(small_config, readout, kind, options):
    check_finite(TopNetwork(small_config(kind, readout=readout, **options)), extreme_events())


@pytest.mark.parametrize("jets", [True, False], ids=["jets", "no-jets"])
@pytest.mark.parametrize("normalisation", ["constant", "event_mass"])
@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_events_stay_finite_with_other_heads(small_config, kind, head, normalisation, jets):
    inputs = extreme_events()
    inputs = inputs._replace(jet_mask=inputs.jet_mask & jets)
    model = TopNetwork(small_config(kind, head=head, normalisation={"kind": normalisation}))
    check_finite(model, inputs)


@pytest.mark.parametrize("b_candidates", ["token", "flag", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_events_without_b_candidates(network, inputs, readout, kind, b_candidates):
    model = network(kind, readout=readout, tokens={"b_candidates": b_candidates})
    absent = torch.full_like(inputs.b_candidates, -1)
    none = model(inputs._replace(b_candidates=absent))
    one = model(
        inputs._replace(b_candidates=torch.where(torch.tensor([True, False]), inputs.b_candidates, -1))
    )
    both = model(inputs)
    assert none.isfinite().all()
    assert one.isfinite().all()
    assert torch.equal(none, both) == torch.equal(one, both) == (b_candidates == "none")


# ---- head ------------------------------------------------------------------------------------------------


def raw_input(n=200, dtype=torch.float64):
    inputs = Inputs.from_events(toy_events(n), dtype)
    visible = build_tokens(inputs, ModelConfig().tokens).p4[:, :9].sum(1)
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


@pytest.mark.parametrize("kind", COVARIANT_HEADS)
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


@pytest.mark.parametrize("kind", ["direct", "projected"])
def test_free_masses_of_spacelike_vectors(kind):
    """Positive mass, positive energy and a gradient that leads back to a top."""
    visible = torch.tensor([[500.0, 0.0, 0.0, 0.0]])
    raw = torch.tensor([[[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]], requires_grad=True)
    head = Head(kind, M_TOP)
    p4 = head(raw, raw.new_zeros(1, 2, 0), visible, torch.tensor([100.0]))
    squared = fourvector.mass_squared(p4)[0]
    if kind == "projected":
        torch.testing.assert_close(squared, torch.full((2,), M_TOP**2), rtol=1e-4, atol=0.0)
    else:
        # v² = −(500 GeV)², far from any timelike vector, and v² = 0, halfway to one.
        a = (M_TOP / 2) ** 2
        expected = torch.tensor([a**2 / 500**2, a]) + (M_TOP / 10) ** 2
        torch.testing.assert_close(squared, expected, rtol=1e-2, atol=0.0)
    p4[..., 0].sum().backward()
    assert raw.grad.isfinite().all()


def test_direct_pairs_may_be_lighter_than_two_tops():
    visible = torch.tensor([[500.0, 0.0, 0.0, 0.0]])
    raw = torch.tensor([[[1.5, 0.0, 0.0, 0.0]] * 2])
    p4 = Head("direct", M_TOP)(raw, raw.new_zeros(1, 2, 0), visible, torch.tensor([100.0]))
    assert 250 < fourvector.mass(p4.sum(1)).item() < 2 * M_TOP


def test_three_momentum_head_by_hand():
    raw = torch.tensor([[[9.0, 1.0, 2.0, 2.0], [-9.0, 0.0, 0.0, -4.0]]])
    visible, scale = torch.tensor([[500.0, 10.0, 20.0, 300.0]]), torch.tensor([100.0])
    p4 = Head("three_momentum", 400.0)(raw, raw.new_zeros(1, 2, 0), visible, scale)
    expected = [[[500.0, 100.0, 200.0, 200.0], [400 * 2**0.5, 0.0, 0.0, -400.0]]]
    torch.testing.assert_close(p4, torch.tensor(expected))


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


def test_head_in_single_precision():
    raw, scalars, visible = raw_input(5000, torch.float32)
    scale = torch.full((5000,), 100.0)
    head = Head("on_shell", M_TOP)
    p4 = head(raw, scalars[..., :0], visible, scale)
    # As float32 momenta are stored, and so with the rounding of E and p alone.
    assert (fourvector.mass(p4.double()) / M_TOP - 1).abs().max() < 1e-3
    double = head(raw.double(), scalars[..., :0].double(), visible.double(), scale.double())
    torch.testing.assert_close(p4.double(), double, rtol=1e-3, atol=0.1)


# ---- normalisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("include_met", [False, True], ids=["visible", "with-met"])
def test_event_mass(network, inputs, include_met):
    model = network(
        "lgatr_slim",
        tokens={"max_jets": 4},
        normalisation={"kind": "event_mass", "include_met": include_met},
    )
    total = inputs.lepton_plus + inputs.lepton_minus + inputs.jets[:, :4].sum(1)
    if include_met:
        x, y = inputs.met.unbind(1)
        total = total + torch.stack([inputs.met.norm(dim=1), x, y, 0 * x], 1)
    scale = model.scale(inputs)
    assert scale.shape == (16,)
    torch.testing.assert_close(scale, fourvector.mass(total))
    # Invertible: dividing a target and multiplying again gives it back.
    target = model(inputs)
    torch.testing.assert_close(target / scale[:, None, None] * scale[:, None, None], target)


def test_constant_scale(network, inputs):
    model = network("lgatr_slim", normalisation={"scale": 80.0})
    assert torch.equal(model.scale(inputs), torch.full((16,), 80.0, dtype=torch.float64))


def test_event_mass_has_a_floor(network, inputs):
    model = network("lgatr_slim", normalisation={"kind": "event_mass"})
    light = torch.tensor([50.0, 30.0, 40.0, 0.0], dtype=torch.float64).expand(16, 4)
    collinear = inputs._replace(
        lepton_plus=light, lepton_minus=light, jet_mask=torch.zeros_like(inputs.jet_mask)
    )
    assert torch.equal(model.scale(collinear), torch.ones(16, dtype=torch.float64))
    assert model(collinear).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_mass_of_each_object_erases_energies(network, inputs, kind):
    """Why it is wrong: an electron of twice the four-momentum looks the same, as it does not otherwise."""
    twice = inputs._replace(lepton_plus=2 * inputs.lepton_plus)
    answers = {}
    for normalisation in ("object_mass", "constant"):
        model = network(kind, normalisation={"kind": normalisation}, head="three_momentum")
        assert torch.equal(model.scale(inputs), torch.full((16,), 100.0, dtype=torch.float64))
        answers[normalisation] = model(inputs), model(twice)
    torch.testing.assert_close(*answers["object_mass"], rtol=1e-6, atol=1e-3)
    assert (answers["constant"][0] - answers["constant"][1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_is_known_to_the_network(network, inputs, readout, kind):
    """Without log(scale), momenta twice as large would give a raw answer twice as large."""
    model = network(kind, readout=readout, normalisation={"kind": "event_mass"})
    tokens = build_tokens(inputs, model.config.tokens)
    one = model.raw(tokens, model.scale_of(tokens), model.spurions)[0]
    tokens = tokens._replace(p4=2 * tokens.p4)
    two = model.raw(tokens, model.scale_of(tokens), model.spurions)[0]
    assert (one - two).abs().max() > 1e-6


def test_standardisation(network):
    inputs = Inputs.from_events(toy_events(400), torch.float64)
    model = network(
        "lgatr_slim",
        tokens={"log_pt": True, "b_candidates": "token"},
        normalisation={"kind": "event_mass"},
    )
    captured = []
    model.backbone.register_forward_pre_hook(lambda module, args: captured.append(args[1:]))
    model.fit_standardisation(inputs)
    model(inputs)
    scalars, mask = captured[0]
    features = model_features(model.config)
    tokens = build_tokens(inputs, model.config.tokens)
    length = tokens.mask.shape[1]
    for name in ("btag", "log_pt", "log_scale"):
        column = features.index(name)
        values = scalars[:, :length, column]
        applies = tokens.mask & model._applies[:, column]
        assert values[applies].mean().abs() < 1e-5
        assert (values[applies].std(correction=0) - 1).abs() < 1e-5
        assert not values[~applies].any()
    flags = [i for i, name in enumerate(features) if name not in {"btag", "log_pt", "log_scale"}]
    columns = torch.tensor(flags)
    assert torch.equal(scalars[:, :length, columns], tokens.scalars[..., columns])
    # Readout tokens and spurions share the event's log(scale).
    log_scale = scalars[..., features.index("log_scale")]
    torch.testing.assert_close(log_scale[:, length:], log_scale[:, :1].expand(-1, mask.shape[1] - length))


def test_standardisation_is_part_of_the_state(small_config, inputs):
    inputs = Inputs.from_events(toy_events(100))
    config = small_config("lgatr_slim")
    model, other = TopNetwork(config).eval(), TopNetwork(config).eval()
    model.fit_standardisation(inputs)
    assert model.feature_mean.any()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(inputs), model(inputs))


def test_standardisation_of_a_constant(small_config, inputs):
    constant = inputs._replace(jet_btag=torch.full_like(inputs.jet_btag, -1.0))
    model = TopNetwork(small_config("lgatr_slim")).double()
    model.fit_standardisation(constant)
    assert model(constant).isfinite().all()
    column = model_features(model.config).index("btag")
    assert model.feature_mean[column] == -1
    assert model.feature_std[column] == 1


# ---- machinery -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_precisions_agree(small_config, kind):
    model = TopNetwork(small_config(kind)).eval()
    events = toy_events(50)
    single = model(Inputs.from_events(events))
    assert single.dtype == torch.float32
    double = model.double()(Inputs.from_events(events, torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_inside_keeps_the_mass(small_config, kind):
    model = TopNetwork(small_config(kind))
    inputs = Inputs.from_events(toy_events(50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p4 = model(inputs)
    assert p4.dtype == torch.float32
    assert (fourvector.mass(p4) / M_TOP - 1).abs().max() < 1e-3
    p4.mean().backward()


def test_half_precision_inside_spares_the_jets():
    """The weights may be rough, not the momenta that they multiply."""
    inputs = Inputs.from_events(toy_events(50))
    logits = torch.randn(50, 2, 12)
    expected = soft_assignment(logits, inputs.jets, inputs.jet_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assigned = soft_assignment(logits, inputs.jets, inputs.jet_mask)
    assert assigned.dtype == torch.float32
    torch.testing.assert_close(assigned, expected)


@pytest.mark.parametrize("head", ["on_shell", "timelike"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_used(small_config, readout, kind, head):
    """Parameters that never get a gradient would stop distributed training."""
    model = TopNetwork(small_config(kind, readout=readout, head=head))
    model(Inputs.from_events(toy_events(8))).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_acts_in_training_only(kind, small_config):
    config = small_config(kind)
    backbone = config.backbone.model_copy(update={"dropout": 0.5})
    model = TopNetwork(config.model_copy(update={"backbone": backbone}))
    inputs = Inputs.from_events(toy_events(8))
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


@pytest.mark.parametrize("head", OTHER_HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_used_by_other_heads(small_config, kind, head):
    model = TopNetwork(small_config(kind, head=head))
    model(Inputs.from_events(toy_events(8))).square().mean().backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("head", HEADS)
def test_weights_depend_on_the_head_only_through_its_scalars(small_config, head):
    """Files of one head must not become unreadable because there are others."""
    shapes = {
        name: {key: tensor.shape for key, tensor in TopNetwork(config).state_dict().items()}
        for name, config in ((name, small_config("lgatr_slim", head=name)) for name in (head, "on_shell"))
    }
    differing = {key for key in shapes[head] if shapes[head][key] != shapes["on_shell"].get(key)}
    assert bool(differing) == (head in ("timelike", "neutrinos"))


@pytest.mark.parametrize("options", [
    {},
    pytest.param(
        {"charge_symmetric": True, "readout": "mean", "head": "timelike", "spurions": {"embed": "channel"},
         "normalisation": {"kind": "event_mass"}, "tokens": {"b_candidates": "token", "log_pt": True}},
        marks=pytest.mark.exhaustive,
    ),
], ids=["default", "everything-else"])  # fmt: skip
@pytest.mark.parametrize("kind", KINDS)
def test_export_for_any_number_of_events(small_config, kind, options):
    check_export(small_config(kind, **options))


@pytest.mark.exhaustive
@pytest.mark.parametrize("head", OTHER_HEADS)
def test_export_with_other_heads(small_config, head):
    check_export(small_config("lgatr_slim", head=head))


def check_export(config):
    class Flat(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, *fields):
            return self.network(Inputs(*fields))

    backbone = config.backbone.model_copy(update={"blocks": 1})
    model = TopNetwork(config.model_copy(update={"backbone": backbone})).eval()
    inputs, other = Inputs.from_events(toy_events(4)), Inputs.from_events(toy_events(9, seed=1))
    dynamic = (tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs),)
    with torch.no_grad():
        program = torch.export.export(Flat(model), tuple(inputs), dynamic_shapes=dynamic)
        torch.testing.assert_close(program.module()(*other), model(other), rtol=1e-4, atol=1e-2)


# lgatr keeps its constant tables in cached functions, which is harmless.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("kind", KINDS)
def test_graph_is_unbroken(small_config, kind):
    """What torch.compile needs, checked without a compiler."""
    model = TopNetwork(small_config(kind)).eval()
    inputs = Inputs.from_events(toy_events(4))
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(inputs), model(inputs), rtol=1e-4, atol=1e-2)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize("head", OTHER_HEADS)
def test_graph_is_unbroken_with_other_heads(small_config, head):
    model = TopNetwork(small_config("lgatr_slim", head=head)).eval()
    inputs = Inputs.from_events(toy_events(4))
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(inputs), model(inputs), rtol=1e-4, atol=1e-2)
    torch.compiler.reset()


@pytest.mark.parametrize(
    "sizes",
    [
        {"kind": "lgatr", "blocks": 2, "multivector_channels": 8, "scalar_channels": 16},
        {"kind": "lgatr_slim", "blocks": 3, "vector_channels": 16, "scalar_channels": 64},
        {"kind": "transformer", "blocks": 2, "channels": 32},
    ],
    ids=KINDS,
)
def test_overfits_one_batch(sizes):
    model = TopNetwork(ModelConfig.model_validate({"backbone": sizes}))
    inputs = Inputs.from_events(toy_events(4))
    model.fit_standardisation(inputs)
    target = fourvector.from_three_momentum(150 * torch.randn(4, 2, 3), M_TOP)
    check_overfits(model, inputs, target)


@pytest.mark.parametrize("head", OTHER_HEADS)
def test_other_heads_overfit_one_batch(head):
    sizes = {"kind": "lgatr_slim", "blocks": 2, "vector_channels": 16, "scalar_channels": 32}
    model = TopNetwork(ModelConfig.model_validate({"backbone": sizes, "head": head}))
    inputs = Inputs.from_events(toy_events(4))
    model.fit_standardisation(inputs)
    target = fourvector.from_three_momentum(150 * torch.randn(4, 2, 3), M_TOP)
    if head == "neutrinos":
        # Its tops are made of what is seen: here of one jet each and a neutrino.
        leptons = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1)
        target = leptons + inputs.jets[:, :2] + fourvector.from_three_momentum(80 * torch.randn(4, 2, 3), 0.0)
    check_overfits(model, inputs, target)


def check_overfits(model, inputs, target):
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    losses = []
    for _ in range(300):
        loss = ((model(inputs) - target) / model.scale(inputs)[:, None, None]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


def test_transformer_heads_must_divide_channels(small_config):
    config = small_config("transformer")
    backbone = config.backbone.model_copy(update={"channels": 30, "heads": 4})
    with pytest.raises(ValueError, match=r"backbone.channels: 30 found, a multiple of backbone.heads \(4\)"):
        TopNetwork(config.model_copy(update={"backbone": backbone}))


@pytest.mark.parametrize("kind", KINDS)
def test_default_sizes_are_comparable(kind):
    model = TopNetwork(ModelConfig.model_validate({"backbone": {"kind": kind}}))
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 310_000


def test_spurions_belong_to_the_model(small_config):
    config = small_config("lgatr", spurions={"beam": "xyplane"})
    model = TopNetwork(config)
    assert torch.equal(model.state_dict()["spurions"], build_spurions(config.spurions))
    assert model.config is config
