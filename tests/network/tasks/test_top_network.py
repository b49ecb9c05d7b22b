"""Laws of every network of the tops, whatever its weights, and the differences between the kinds."""

import pytest
import torch

from topreco.config import ModelConfig
from topreco.core import fourvector
from topreco.core.constants import M_TOP
from topreco.core.events import toy_events
from topreco.network.backbones import BACKBONES
from topreco.network.spurions import build_spurions
from topreco.network.tasks.heads import SMALLEST_MASS
from topreco.network.tasks.tops import TopNetwork
from topreco.network.tokens import Inputs

EQUIVARIANT = ("lgatr", "lgatr_slim")
ALL_KINDS = tuple(str(config.model_fields["kind"].default) for config in BACKBONES)
# Without the one that is an extra of its own; its frames round a little more.
KINDS = tuple(kind for kind in ALL_KINDS if kind != "lloca")
HEADS = ("on_shell", "timelike", "direct", "neutrinos")
# Every readout and every head once: what one of them breaks, it breaks with any of the other.
LAYOUTS = {
    "first_token-timelike": {"readout": "first_token", "head": "timelike"},
    "mean-neutrinos": {"readout": "mean", "head": "neutrinos"},
    "sum-on_shell": {"readout": "sum", "head": "on_shell"},
    "query_tokens-direct": {"readout": "query_tokens", "head": "direct"},
}
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
B_CANDIDATES = ("token", "flag", "none")
EMBEDS = ("token", "channel")
TIGHT = {"rtol": 1e-8, "atol": 1e-6}
"""For double precision, in GeV."""


def cases(kinds, spurions=tuple(SPURIONS), embeds=EMBEDS):
    """Kind × spurions × embedding, without the bivector where it cannot be seen."""
    return [
        pytest.param(kind, {**SPURIONS[name], "embed": embed}, id=f"{kind}-{name}-{embed}")
        for kind in kinds
        for name in spurions
        for embed in embeds
        if kind == "lgatr" or not name.startswith("xyplane")
    ]


def transform(inputs, matrix):
    """Inputs under a transformation that leaves the beam alone."""
    return inputs._replace(
        lepton_plus=inputs.lepton_plus @ matrix.T,
        lepton_minus=inputs.lepton_minus @ matrix.T,
        jets=inputs.jets @ matrix.T,
        met=inputs.met @ matrix[1:3, 1:3].T,
    )


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def layout(request):
    """Readout and head."""
    return request.param


@pytest.fixture
def network(small_config):
    """A network in double precision."""

    def make(kind, **fields):
        return TopNetwork(small_config(kind, **fields)).double().eval().requires_grad_(False)

    return make


# ---- symmetry --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "spurions"), cases(EQUIVARIANT))
def test_rotation_about_the_beam(network, inputs, rotation, kind, spurions):
    """The plain transformer is exempt: it has to learn this."""
    model = network(kind, spurions=spurions)
    torch.testing.assert_close(model(transform(inputs, rotation)), model(inputs) @ rotation.T, **TIGHT)


@pytest.mark.parametrize("embed", EMBEDS)
@pytest.mark.parametrize("kind", EQUIVARIANT)
def test_rotation_about_the_beam_in_every_layout(network, inputs, rotation, layout, kind, embed):
    model = network(kind, spurions={"embed": embed}, **layout)
    torch.testing.assert_close(model(transform(inputs, rotation)), model(inputs) @ rotation.T, **TIGHT)


def check_covariance(model, inputs, matrix, transform_multivectors):
    """Tokens and spurions transformed together give the transformed prediction."""
    tokens = model.encoder.tokens(inputs)
    scale = model.encoder.scale(tokens)
    moved = model.forward_tokens(
        tokens._replace(p4=tokens.p4 @ matrix.T),
        scale,
        transform_multivectors(matrix, model.encoder.spurions),
    )
    torch.testing.assert_close(moved, model.forward_tokens(tokens, scale) @ matrix.T, **TIGHT)


@pytest.mark.parametrize(("kind", "spurions"), cases(EQUIVARIANT))
def test_lorentz_transformation_of_everything(
    network, inputs, lorentz, transform_multivectors, kind, spurions
):
    check_covariance(network(kind, spurions=spurions), inputs, lorentz, transform_multivectors)


@pytest.mark.parametrize("embed", EMBEDS)
@pytest.mark.parametrize("kind", EQUIVARIANT)
def test_lorentz_transformation_in_every_layout(
    network, inputs, lorentz, transform_multivectors, layout, kind, embed
):
    model = network(kind, spurions={"embed": embed}, **layout)
    check_covariance(model, inputs, lorentz, transform_multivectors)


@pytest.mark.parametrize("b_candidates", B_CANDIDATES)
@pytest.mark.parametrize("kind", EQUIVARIANT)
def test_lorentz_transformation_with_an_event_mass(
    network, inputs, lorentz, transform_multivectors, kind, b_candidates
):
    model = network(kind, tokens={"b_candidates": b_candidates}, normalisation={"kind": "event_mass"})
    tokens = model.encoder.tokens(inputs)
    moved = tokens._replace(p4=tokens.p4 @ lorentz.T)
    torch.testing.assert_close(model.encoder.scale(moved), model.encoder.scale(tokens))
    check_covariance(model, inputs, lorentz, transform_multivectors)


FLIP = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64))
BOTH_BEAMS = ("none", "time", "lightlike", "lightlike-notime", "spacelike", "timelike")


@pytest.mark.parametrize(("kind", "spurions"), cases(("lgatr_slim",), BOTH_BEAMS, ("token",)))
def test_reflection_of_the_beam_axis(network, inputs, kind, spurions):
    """Exact for vectors and scalars with both beams or none; L-GATr itself mixes in axial vectors."""
    model = network(kind, spurions=spurions)
    torch.testing.assert_close(model(transform(inputs, FLIP)), model(inputs) @ FLIP.T, **TIGHT)


def test_reflection_of_the_beam_axis_in_every_layout(network, inputs, layout):
    model = network("lgatr_slim", spurions={"embed": "token"}, **layout)
    torch.testing.assert_close(model(transform(inputs, FLIP)), model(inputs) @ FLIP.T, **TIGHT)


@pytest.mark.parametrize(("kind", "spurions"), [case for case in cases(KINDS) if "none" not in case.id])
def test_spurions_are_seen(network, inputs, lorentz, transform_multivectors, kind, spurions):
    model = network(kind, spurions=spurions)
    before = model(inputs)
    model.encoder.spurions = transform_multivectors(lorentz, model.encoder.spurions)
    assert (model(inputs) - before).abs().max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_who_breaks_rotations(network, inputs, rotation, kind):
    """Transformer and Point-Edge Transformer have to learn them."""
    model = network(kind)
    deviation = (model(transform(inputs, rotation)) - model(inputs) @ rotation.T).abs().max()
    assert (deviation > 1e-2) == (kind in ("transformer", "pet"))


@pytest.mark.parametrize("b_candidates", B_CANDIDATES)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_permutation_of_jets(network, inputs, layout, kind, b_candidates):
    order = torch.rand(inputs.jet_mask.shape).argsort(1)
    permuted = inputs._replace(
        jets=inputs.jets.gather(1, order[..., None].expand(-1, -1, 4)),
        jet_mask=inputs.jet_mask.gather(1, order),
        jet_btag=inputs.jet_btag.gather(1, order),
        jet_tagged=inputs.jet_tagged.gather(1, order),
        b_candidates=order.argsort(1).gather(1, inputs.b_candidates),
    )
    model = network(kind, tokens={"b_candidates": b_candidates, "max_jets": 7}, **layout)
    torch.testing.assert_close(model(permuted), model(inputs), **TIGHT)


# ---- padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embed", EMBEDS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_padding_changes_nothing(small_config, inputs, layout, kind, embed):
    """Neither in single precision, where the kernels compute, nor in double."""
    options = {"spurions": {"embed": embed}, **layout}
    short = TopNetwork(small_config(kind, tokens={"max_jets": 7}, **options)).eval()
    long = TopNetwork(small_config(kind, tokens={"max_jets": 12}, **options)).eval()
    long.load_state_dict(short.state_dict())
    single = inputs.map(lambda field: field.float() if field.is_floating_point() else field)
    with torch.no_grad():
        torch.testing.assert_close(long(single), short(single), rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(long.double()(inputs), short.double()(inputs), **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_other_events_of_the_batch_change_nothing(small_config, layout, kind):
    inputs = Inputs.from_events(toy_events(6))
    model = TopNetwork(small_config(kind, normalisation={"kind": "event_mass"}, **layout)).eval()
    with torch.no_grad():
        together = model(inputs)
        alone = torch.cat([model(inputs.take(slice(i, i + 1))) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-3)


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
    # The charges of the leptons as well: an exchange is no symmetry of the network.
    assert (model(inputs.charge_exchanged()) - before.flip(1)).abs().max() > 1e-3


# ---- predictions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_timelike(small_config, kind, head):
    model = TopNetwork(small_config(kind, head=head))
    with torch.no_grad():
        p4 = model(Inputs.from_events(toy_events(200)))
    assert p4.shape == (200, 2, 4)
    assert (p4[..., 0] > 0).all()
    mass = fourvector.mass(p4.double())
    if head == "on_shell":
        assert (mass / M_TOP - 1).abs().max() < 1e-3
        return
    assert mass.std() > 0
    if head == "timelike":
        assert ((mass > 0.6 * M_TOP) & (mass < 1.66 * M_TOP)).all()
    else:
        assert (mass > 0.99 * SMALLEST_MASS * M_TOP).all()


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


@pytest.mark.parametrize("options", [
    {},
    {"normalisation": {"kind": "event_mass", "include_met": True}, "tokens": {"b_candidates": "token"}},
    {"spurions": {"beam": None, "time": False}},
], ids=["default", "event-mass", "unbroken"])  # fmt: skip
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_extreme_events_stay_finite(small_config, layout, kind, options):
    """Predictions and gradients, after standardisation on the same events; also without any jets."""
    model = TopNetwork(small_config(kind, **options, **layout))
    for jets in (True, False):
        inputs = extreme_events()
        inputs = inputs._replace(jet_mask=inputs.jet_mask & jets)
        model.encoder.fit_standardisation(inputs)
        model.zero_grad()
        p4 = model(inputs)
        assert p4.isfinite().all()
        assert (p4[..., 0] > 0).all()
        p4.square().mean().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("b_candidates", B_CANDIDATES)
@pytest.mark.parametrize("kind", KINDS)
def test_events_without_b_candidates(network, inputs, layout, kind, b_candidates):
    model = network(kind, tokens={"b_candidates": b_candidates}, **layout)
    none = model(inputs._replace(b_candidates=torch.full_like(inputs.b_candidates, -1)))
    one = model(
        inputs._replace(b_candidates=torch.where(torch.tensor([True, False]), inputs.b_candidates, -1))
    )
    both = model(inputs)
    assert none.isfinite().all()
    assert one.isfinite().all()
    assert torch.equal(none, both) == torch.equal(one, both) == (b_candidates == "none")


# ---- machinery -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_precisions_agree(small_config, kind):
    model = TopNetwork(small_config(kind, head="on_shell")).eval()
    events = toy_events(50)
    single = model(Inputs.from_events(events))
    assert single.dtype == torch.float32
    double = model.double()(Inputs.from_events(events, torch.float64))
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_inside_keeps_the_mass(small_config, kind):
    model = TopNetwork(small_config(kind, head="on_shell"))
    inputs = Inputs.from_events(toy_events(50))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p4 = model(inputs)
    assert p4.dtype == torch.float32
    assert (fourvector.mass(p4) / M_TOP - 1).abs().max() < 1e-3
    p4.mean().backward()


@pytest.mark.parametrize("head", ["on_shell", "timelike", "neutrinos"])
@pytest.mark.parametrize("readout", ["first_token", "mean", "query_tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_used(small_config, kind, readout, head):
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


@pytest.mark.parametrize("head", HEADS)
def test_weights_depend_on_the_head_only_through_its_scalars(small_config, head):
    """Files of one head must not become unreadable because there are others."""
    shapes = {
        name: {key: tensor.shape for key, tensor in TopNetwork(config).state_dict().items()}
        for name, config in ((name, small_config("lgatr_slim", head=name)) for name in (head, "on_shell"))
    }
    differing = {key for key in shapes[head] if shapes[head][key] != shapes["on_shell"].get(key)}
    assert bool(differing) == (head in ("timelike", "neutrinos"))


# Every kind, and around one of them every head, with every choice of tokens, spurions and normalisation.
EXHAUSTIVE = pytest.mark.exhaustive
GRAPHS = [
    ("lgatr", {}),
    ("lgatr_slim", {}),
    ("transformer", {}),
    pytest.param("lgatr", {"readout": "mean", "head": "timelike", "normalisation": {"kind": "event_mass"},
                           "tokens": {"b_candidates": "token"}}, marks=EXHAUSTIVE),
    pytest.param("lgatr_slim", {"readout": "sum", "head": "on_shell", "spurions": {"embed": "token"}},
                 marks=EXHAUSTIVE),
    pytest.param("lgatr_slim", {"readout": "first_token", "head": "neutrinos"}, marks=EXHAUSTIVE),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "options"), GRAPHS)
def test_export_for_any_number_of_events(small_config, kind, options):
    class Flat(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, *fields):
            return self.network(Inputs(*fields))

    model = TopNetwork(small_config(kind, **options)).eval()
    inputs, other = Inputs.from_events(toy_events(4)), Inputs.from_events(toy_events(9, seed=1))
    fields, others = (tuple(each.columns().values()) for each in (inputs, other))
    dynamic = (tuple({0: torch.export.Dim.DYNAMIC} for _ in fields),)
    with torch.no_grad():
        program = torch.export.export(Flat(model), fields, dynamic_shapes=dynamic)
        torch.testing.assert_close(program.module()(*others), model(other), rtol=1e-4, atol=1e-2)


# lgatr keeps its constant tables in cached functions, which is harmless.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
@pytest.mark.parametrize(("kind", "options"), GRAPHS)
def test_graph_is_unbroken(small_config, kind, options):
    """What torch.compile needs, checked without a compiler."""
    model = TopNetwork(small_config(kind, **options)).eval()
    inputs = Inputs.from_events(toy_events(4))
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(inputs), model(inputs), rtol=1e-4, atol=1e-2)
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("sizes", "head"),
    [
        ({"kind": "lgatr", "blocks": 2, "multivector_channels": 8, "scalar_channels": 32}, "on_shell"),
        ({"kind": "transformer", "blocks": 2, "channels": 32}, "on_shell"),
        *[
            ({"kind": "lgatr_slim", "blocks": 2, "vector_channels": 16, "scalar_channels": 32}, head)
            for head in HEADS
        ],
    ],
    ids=lambda value: value if isinstance(value, str) else value["kind"],
)
def test_overfits_one_batch(sizes, head):
    model = TopNetwork(ModelConfig.model_validate({"backbone": sizes, "head": head}))
    inputs = Inputs.from_events(toy_events(4))
    model.encoder.fit_standardisation(inputs)
    target = fourvector.from_three_momentum(150 * torch.randn(4, 2, 3), M_TOP)
    if head == "neutrinos":
        # Its tops are made of what is seen: here of one jet each and a neutrino.
        leptons = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1)
        neutrinos = fourvector.from_three_momentum(80 * torch.randn(4, 2, 3), 0.0)
        target = leptons + inputs.jets[:, :2] + neutrinos
    scale = model.encoder.scale(model.encoder.tokens(inputs))[:, None, None]
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 200)
    losses = []
    for _ in range(200):
        loss = ((model(inputs) - target) / scale).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 100


@pytest.mark.parametrize("kind", KINDS)
def test_default_sizes_are_comparable(kind):
    model = TopNetwork(ModelConfig.model_validate({"backbone": {"kind": kind}}))
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 310_000


def test_spurions_belong_to_the_model(small_config):
    config = small_config("lgatr", spurions={"beam": "xyplane"})
    model = TopNetwork(config)
    assert torch.equal(model.state_dict()["encoder.spurions"], build_spurions(config.spurions))
    assert model.config is config
