"""The encoder: what it gives for whichever task, its normalisation and its standardisation."""

import pytest
import torch

from topreco.config import EncoderConfig
from topreco.core import fourvector
from topreco.core.events import toy_events
from topreco.network.backbones import BACKBONES, Backbone, build_backbone
from topreco.network.encoder import Encoder, Queries
from topreco.network.tokens import Inputs, encoder_features

KINDS = tuple(str(config.model_fields["kind"].default) for config in BACKBONES)
EQUIVARIANT = ("lgatr", "lgatr_slim", "lloca")
EMBEDS = ("token", "channel")
QUERIES = ("readout_top", "readout_antitop", "readout_top")
# Vectors and scalars of each token, and scalars of each readout token.
SIZES = [(1, 0, 0), (3, 5, 2), (2, 1, 4)]
TIGHT = {"rtol": 1e-7, "atol": 1e-7}


@pytest.fixture
def build(small_config):
    """Encoder of a kind of backbone: its outputs, then fields of `EncoderConfig`."""

    def make(kind, *, vectors=2, scalars=0, queries=QUERIES, query_scalars=0, **fields):
        config = small_config(kind, **fields).encoder
        encoder = Encoder(
            config, vectors=vectors, scalars=scalars, queries=queries, query_scalars=query_scalars
        )
        return encoder.double().eval().requires_grad_(False)

    return make


def make_queries(query_scalars=0, n=16, dtype=torch.float64):
    """Momenta and scalars of three readout tokens."""
    p4 = fourvector.from_three_momentum(80 * torch.randn(n, 3, 3, dtype=dtype), 100.0)
    return Queries(p4, torch.randn(n, 3, query_scalars, dtype=dtype) if query_scalars else None)


def encode(encoder, inputs, queries=None, **options):
    tokens = encoder.tokens(inputs)
    return encoder(tokens, encoder.scale(tokens), queries=queries, **options)


# ---- the registry of backbones ---------------------------------------------------------------------------


def kinds_of_configuration():
    """Every class of configuration that a `backbone` may have."""
    union = EncoderConfig.model_fields["backbone"].annotation
    return [member.__origin__ for member in union.__args__]


def test_every_configuration_has_its_backbone():
    assert set(BACKBONES) == set(kinds_of_configuration())
    assert len(set(BACKBONES.values())) == len(BACKBONES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_backbone_is_what_the_contract_says(small_config, kind):
    config = small_config(kind).backbone
    backbone = build_backbone(config, in_channels=2, in_scalars=5, out_vectors=3, out_scalars=4)
    assert type(backbone) is BACKBONES[type(config)]
    assert isinstance(backbone, Backbone)
    assert backbone.components == (16 if kind == "lgatr" else 4)
    geometry = torch.randn(6, 7, 2, backbone.components)
    if backbone.components == 4:
        geometry = fourvector.from_three_momentum(geometry[..., 1:], 1.0)
    mask = torch.rand(6, 7) < 0.7
    mask[:, 0] = True
    vectors, scalars = backbone(geometry, torch.randn(6, 7, 5), mask)
    assert vectors.shape == (6, 7, 3, 4)
    assert scalars.shape == (6, 7, 4)
    assert vectors[mask].isfinite().all()
    assert scalars[mask].isfinite().all()


# ---- outputs and readout tokens --------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("embed", EMBEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_vectors_and_scalars(build, inputs, kind, embed, sizes):
    vectors, scalars, query_scalars = sizes
    encoder = build(
        kind,
        vectors=vectors,
        scalars=scalars,
        query_scalars=query_scalars,
        spurions={"embed": embed},
    )
    encoded = encode(encoder, inputs, make_queries(query_scalars))
    n_objects = encoder.config.tokens.max_jets + 3
    length = n_objects + 3 + (3 if embed == "token" else 0)
    assert encoded.vectors.shape == (16, length, vectors, 4)
    assert encoded.scalars.shape == (16, length, scalars)
    assert encoded.mask.shape == (16, n_objects)
    assert encoded.vectors[:, :n_objects][encoded.mask].isfinite().all()
    assert encoded.vectors[:, n_objects:].isfinite().all()


def test_a_task_may_have_no_readout_tokens(build, inputs):
    encoded = encode(build("lgatr_slim", queries=()), inputs)
    assert encoded.vectors.shape[1] == encoded.mask.shape[1]


@pytest.mark.parametrize("normalisation", ["constant", "event_mass"])
@pytest.mark.parametrize("embed", EMBEDS)
@pytest.mark.parametrize("kind", EQUIVARIANT)
def test_equivariant_with_momenta_and_scalars_of_readout_tokens(
    build, inputs, lorentz, transform_multivectors, kind, embed, normalisation
):
    encoder = build(
        kind,
        vectors=3,
        scalars=5,
        query_scalars=2,
        spurions={"embed": embed},
        normalisation={"kind": normalisation},
    )
    tokens, queries = encoder.tokens(inputs), make_queries(2)
    scale = encoder.scale(tokens)
    encoded = encoder(tokens, scale, queries=queries)
    moved = encoder(
        tokens._replace(p4=tokens.p4 @ lorentz.T),
        scale,
        queries=queries._replace(p4=queries.p4 @ lorentz.T),
        spurions=transform_multivectors(lorentz, encoder.spurions),
    )
    exists = torch.ones(encoded.vectors.shape[:2], dtype=torch.bool)
    exists[:, : encoded.mask.shape[1]] = encoded.mask
    torch.testing.assert_close(moved.vectors[exists], (encoded.vectors @ lorentz.T)[exists], **TIGHT)
    torch.testing.assert_close(moved.scalars[exists], encoded.scalars[exists], **TIGHT)


@pytest.mark.parametrize("kind", KINDS)
def test_readout_tokens_are_seen(build, inputs, kind):
    """Each momentum and each scalar changes what all tokens give; without any they are zero."""
    encoder = build(kind, scalars=2, query_scalars=2)
    queries = make_queries(2)
    before = encode(encoder, inputs, queries)
    other = make_queries(2)
    for changed in (queries._replace(p4=other.p4), queries._replace(scalars=other.scalars)):
        after = encode(encoder, inputs, changed)
        change = (after.vectors - before.vectors)[:, 0].abs().amax((1, 2))
        assert (change > 1e-9).all()
    zero = Queries(torch.zeros_like(queries.p4), torch.zeros_like(queries.scalars))
    torch.testing.assert_close(encode(encoder, inputs).vectors, encode(encoder, inputs, zero).vectors)


@pytest.mark.parametrize("kind", ["lgatr", "lgatr_slim"])
def test_kernels_take_readout_tokens_as_the_package_does(build, kind):
    """In single precision, with the norms of everything that exists."""
    events = Inputs.from_events(toy_events(64, max_jets=8, seed=2))
    encoder = build(kind, vectors=3, scalars=5, query_scalars=2).float()
    queries = make_queries(2, 64, torch.float32)
    assert encoder.backbone.packed
    found = encode(encoder, events, queries)
    encoder.backbone.packed = False
    expected = encode(encoder, events, queries)
    exists = torch.ones(found.vectors.shape[:2], dtype=torch.bool)
    exists[:, : found.mask.shape[1]] = found.mask
    for a, b in ((found.vectors, expected.vectors), (found.scalars, expected.scalars)):
        torch.testing.assert_close(a[exists], b[exists], rtol=1e-4, atol=1e-4)


# ---- normalisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("include_met", [False, True], ids=["visible", "with-met"])
def test_event_mass(build, inputs, include_met):
    encoder = build(
        "lgatr_slim",
        tokens={"max_jets": 4},
        normalisation={"kind": "event_mass", "include_met": include_met},
    )
    total = inputs.lepton_plus + inputs.lepton_minus + inputs.jets[:, :4].sum(1)
    torch.testing.assert_close(encoder.visible(encoder.tokens(inputs)), total)
    if include_met:
        x, y = inputs.met.unbind(1)
        total = total + torch.stack([inputs.met.norm(dim=1), x, y, 0 * x], 1)
    scale = encoder.scale(encoder.tokens(inputs))
    assert scale.shape == (16,)
    torch.testing.assert_close(scale, fourvector.mass(total))


def test_constant_scale(build, inputs):
    encoder = build("lgatr_slim", normalisation={"scale": 80.0})
    assert torch.equal(encoder.scale(encoder.tokens(inputs)), torch.full((16,), 80.0, dtype=torch.float64))


def test_event_mass_has_a_floor(build, inputs):
    encoder = build("lgatr_slim", normalisation={"kind": "event_mass"})
    light = torch.tensor([50.0, 30.0, 40.0, 0.0], dtype=torch.float64).expand(16, 4)
    collinear = inputs._replace(
        lepton_plus=light, lepton_minus=light, jet_mask=torch.zeros_like(inputs.jet_mask)
    )
    assert torch.equal(encoder.scale(encoder.tokens(collinear)), torch.ones(16, dtype=torch.float64))
    assert encode(encoder, collinear).vectors.isfinite().all()


@pytest.mark.parametrize("kind", ["lgatr", "lgatr_slim", "transformer"])
def test_the_scale_is_known_to_the_network(build, inputs, kind):
    """Without log(scale), momenta twice as large would give the same vectors in units of the scale."""
    encoder = build(kind, normalisation={"kind": "event_mass"})
    tokens = encoder.tokens(inputs)
    one = encoder(tokens, encoder.scale(tokens)).vectors
    tokens = tokens._replace(p4=2 * tokens.p4)
    two = encoder(tokens, encoder.scale(tokens)).vectors
    # The readout tokens as well as those of the objects.
    assert (one - two)[:, 0].abs().max() > 1e-6
    assert (one - two)[:, tokens.mask.shape[1]].abs().max() > 1e-6


# ---- standardisation -------------------------------------------------------------------------------------


def test_standardisation(build):
    inputs = Inputs.from_events(toy_events(400), torch.float64)
    encoder = build(
        "lgatr_slim",
        spurions={"embed": "token"},
        tokens={"b_candidates": "token"},
        normalisation={"kind": "event_mass"},
    )
    captured = []
    encoder.backbone.register_forward_pre_hook(lambda module, args: captured.append(args[1:]))
    encoder.fit_standardisation(inputs)
    encode(encoder, inputs)
    scalars, mask = captured[0]
    features = encoder_features(encoder.config)
    tokens = encoder.tokens(inputs)
    length = tokens.mask.shape[1]
    # b-tag scores belong to jets and b candidates, log(scale) to every token.
    scored = tokens.mask.clone()
    scored[:, [0, 1, length - 3]] = False
    for name, applies in {"btag": scored, "log_scale": tokens.mask}.items():
        values = scalars[:, :length, features.index(name)]
        assert values[applies].mean().abs() < 1e-5
        assert (values[applies].std(correction=0) - 1).abs() < 1e-5
        assert not values[~applies].any()
    columns = torch.tensor([i for i, name in enumerate(features) if name not in {"btag", "log_scale"}])
    assert torch.equal(scalars[:, :length, columns], tokens.scalars[..., columns])
    # Readout tokens and spurions share the event's log(scale).
    log_scale = scalars[..., features.index("log_scale")]
    torch.testing.assert_close(log_scale[:, length:], log_scale[:, :1].expand(-1, mask.shape[1] - length))


def test_standardisation_is_part_of_the_state(build, inputs):
    encoder, other = build("lgatr_slim"), build("lgatr_slim")
    encoder.fit_standardisation(inputs)
    assert encoder.feature_mean.any()
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(encode(other, inputs).vectors, encode(encoder, inputs).vectors)


def test_standardisation_of_a_constant(build, inputs):
    constant = inputs._replace(jet_btag=torch.full_like(inputs.jet_btag, -1.0))
    encoder = build("lgatr_slim")
    encoder.fit_standardisation(constant)
    assert encode(encoder, constant).vectors.isfinite().all()
    column = encoder_features(encoder.config).index("btag")
    assert encoder.feature_mean[column] == -1
    assert encoder.feature_std[column] == 1
