"""Tokens against what each is meant to contain."""

import json

import numpy as np
import pytest
import torch

from topreco.config import EncoderConfig, ModelConfig, TokensConfig
from topreco.core.events import toy_events
from topreco.network.tasks.tops import task_schema
from topreco.network.tokens import (
    TOKEN_TYPES,
    Inputs,
    build_tokens,
    encoder_features,
    encoder_schema,
    schema_hash,
    token_features,
    token_types,
)

CONFIGS = [
    TokensConfig(max_jets=max_jets, b_candidates=b_candidates)
    for max_jets in (3, 7, 10)
    for b_candidates in ("token", "flag", "none")
]


def feature(tokens, config, name):
    return tokens.scalars[..., token_features(config).index(name)]


def test_inputs_of_events():
    events = toy_events(5)
    inputs = Inputs.from_events(events, torch.float64)
    for name, value in inputs.columns().items():
        np.testing.assert_array_equal(value.numpy(), getattr(events, name))
    assert inputs.jets.dtype == inputs.met.dtype == inputs.jet_btag.dtype == torch.float64
    assert inputs.jet_mask.dtype == inputs.jet_tagged.dtype == torch.bool
    assert inputs.b_candidates.dtype == inputs.lepton_flavour.dtype == torch.int64
    assert Inputs.from_events(events).jets.dtype == torch.float32
    inputs.jets.zero_()
    assert events.jets.any()


def test_inputs_hold_nothing_but_reconstruction():
    assert set(Inputs._fields) == {
        "lepton_plus", "lepton_minus", "lepton_flavour", "jets", "jet_mask", "jet_btag", "jet_tagged",
        "b_candidates", "met", "jet_working_points", "jet_features", "lepton_features", "event_features",
    }  # fmt: skip


def test_inputs_by_batch(inputs):
    index = torch.tensor([3, 0, 3])
    taken = inputs.take(index)
    assert taken.columns().keys() == inputs.columns().keys()
    for name, before in inputs.columns().items():
        assert torch.equal(getattr(taken, name), before[index])
    assert len(inputs.take(slice(2, 6)).met) == 4
    assert inputs.to("cpu").jets.device.type == "cpu"
    # Among the columns of a training, whatever else is there and in whichever order.
    columns = {"weight": inputs.met, **dict(reversed(inputs.columns().items()))}
    again = Inputs.from_columns(columns)
    assert all(getattr(again, name) is before for name, before in inputs.columns().items())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_shapes(inputs, config):
    tokens = build_tokens(inputs, config)
    n, length, width = len(inputs.met), len(token_types(config)), len(token_features(config))
    assert tokens.p4.shape == (n, length, 4)
    assert tokens.scalars.shape == (n, length, width)
    assert tokens.mask.shape == (n, length)
    assert tokens.mask.dtype == torch.bool
    assert tokens.scalars.isfinite().all()
    assert not tokens.p4[~tokens.mask].any()
    assert not tokens.scalars[~tokens.mask].any()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_types(inputs, config):
    tokens = build_tokens(inputs, config)
    one_hot = tokens.scalars[..., : len(TOKEN_TYPES)]
    expected = torch.tensor([TOKEN_TYPES.index(name) for name in token_types(config)])
    assert torch.equal(one_hot.sum(-1), tokens.mask.to(one_hot))
    assert torch.equal(one_hot.argmax(-1)[tokens.mask], expected.expand_as(tokens.mask)[tokens.mask])


def test_momenta(inputs):
    config = TokensConfig(max_jets=5, b_candidates="token")
    tokens = build_tokens(inputs, config)
    assert torch.equal(tokens.p4[:, 0], inputs.lepton_plus)
    assert torch.equal(tokens.p4[:, 1], inputs.lepton_minus)
    assert torch.equal(tokens.p4[:, 2:7], inputs.jets[:, :5])
    assert torch.equal(tokens.mask[:, 2:7], inputs.jet_mask[:, :5])
    met = tokens.p4[:, 7]
    assert torch.equal(met[:, 1:3], inputs.met)
    assert not met[:, 3].any()
    torch.testing.assert_close(met[:, 0], inputs.met.norm(dim=-1))
    for leg in range(2):
        picked = inputs.jets[torch.arange(16), inputs.b_candidates[:, leg]]
        assert torch.equal(tokens.p4[:, 8 + leg], picked)


def test_scalars(inputs):
    config = TokensConfig(max_jets=7, b_candidates="flag")
    tokens = build_tokens(inputs, config)
    charge = feature(tokens, config, "charge")
    assert (charge[:, 0] == 1).all()
    assert (charge[:, 1] == -1).all()
    assert not charge[:, 2:].any()
    muon = feature(tokens, config, "muon")
    assert torch.equal(muon[:, :2] == 1, inputs.lepton_flavour == 13)
    assert not muon[:, 2:].any()
    assert torch.equal(feature(tokens, config, "btag")[:, 2:9], inputs.jet_btag)
    assert not feature(tokens, config, "btag")[:, [0, 1, 9]].any()
    assert torch.equal(feature(tokens, config, "tagged")[:, 2:9] == 1, inputs.jet_tagged)
    for leg, name in enumerate(("b_candidate_plus", "b_candidate_minus")):
        flags = feature(tokens, config, name)
        assert torch.equal(flags[:, 2:9].argmax(1), inputs.b_candidates[:, leg])
        assert (flags.sum(1) == 1).all()


def test_candidate_tokens_carry_the_score_of_their_jet(inputs):
    config = TokensConfig(max_jets=7, b_candidates="token")
    tokens = build_tokens(inputs, config)
    for leg in range(2):
        index = inputs.b_candidates[:, leg]
        rows = torch.arange(len(index))
        assert torch.equal(feature(tokens, config, "btag")[:, 10 + leg], inputs.jet_btag[rows, index])
        assert torch.equal(
            feature(tokens, config, "tagged")[:, 10 + leg] == 1, inputs.jet_tagged[rows, index]
        )


def test_missing_candidates(inputs):
    absent = inputs._replace(b_candidates=torch.full_like(inputs.b_candidates, -1))
    config = TokensConfig(b_candidates="token")
    tokens = build_tokens(absent, config)
    assert not tokens.mask[:, -2:].any()
    assert not tokens.p4[:, -2:].any()
    config = TokensConfig(b_candidates="flag")
    tokens = build_tokens(absent, config)
    assert not feature(tokens, config, "b_candidate_plus").any()
    assert not feature(tokens, config, "b_candidate_minus").any()


def test_candidate_behind_the_leading_jets():
    inputs = Inputs.from_events(toy_events(200), torch.float64)
    inputs = inputs.take(inputs.jet_mask[:, 4])
    inputs = inputs._replace(b_candidates=torch.tensor([[4, 0]]).expand(len(inputs.met), 2))
    config = TokensConfig(max_jets=3, b_candidates="token")
    tokens = build_tokens(inputs, config)
    assert tokens.mask[:, -2].all()
    assert torch.equal(tokens.p4[:, -2], inputs.jets[:, 4])
    config = TokensConfig(max_jets=3, b_candidates="flag")
    assert not feature(build_tokens(inputs, config), config, "b_candidate_plus").any()


@pytest.mark.parametrize("length", [2, 7, 15])
def test_padded_length_of_the_jets_is_free(inputs, length):
    inputs = inputs.take(inputs.jet_mask.sum(1) == 2)
    jets = torch.nn.functional.pad(inputs.jets, (0, 0, 0, 10))[:, :length]

    def resized(values):
        return torch.nn.functional.pad(values, (0, 10))[:, :length]

    other = inputs._replace(
        jets=jets,
        jet_mask=resized(inputs.jet_mask),
        jet_btag=resized(inputs.jet_btag),
        jet_tagged=resized(inputs.jet_tagged),
    )
    for a, b in zip(build_tokens(inputs, TokensConfig()), build_tokens(other, TokensConfig()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("garbage", [1e30, torch.nan, torch.inf], ids=str)
def test_content_of_masked_jets_is_ignored(inputs, config, garbage):
    absent = ~inputs.jet_mask
    dirty = inputs._replace(
        jets=torch.where(absent[..., None], garbage, inputs.jets),
        jet_btag=torch.where(absent, garbage, inputs.jet_btag),
        jet_tagged=inputs.jet_tagged | absent,
    )
    for clean, other in zip(build_tokens(inputs, config), build_tokens(dirty, config), strict=True):
        assert torch.equal(clean, other)


def test_charge_exchange(inputs):
    """Leptons and their b candidates change places, jets and MET stay."""
    config = TokensConfig(max_jets=7, b_candidates="token")
    tokens = build_tokens(inputs, config)
    exchanged = build_tokens(inputs.charge_exchanged(), config)
    rows = [1, 0, *range(2, 10), 11, 10]
    assert torch.equal(exchanged.p4, tokens.p4[:, rows])
    assert torch.equal(exchanged.mask, tokens.mask[:, rows])
    for name in ("muon", "btag", "tagged"):
        assert torch.equal(feature(exchanged, config, name), feature(tokens, config, name)[:, rows])
    # Types and charges belong to the places.
    assert torch.equal(feature(exchanged, config, "charge"), feature(tokens, config, "charge"))
    assert not torch.equal(exchanged.p4, tokens.p4)


def test_charge_exchange_twice_is_nothing(inputs):
    twice = inputs.charge_exchanged().charge_exchanged().columns()
    assert twice.keys() == inputs.columns().keys()
    for name, before in inputs.columns().items():
        assert torch.equal(before, twice[name])


def test_features_of_an_encoder():
    assert encoder_features(EncoderConfig())[-1] == "b_candidate_minus"
    config = EncoderConfig.model_validate({"normalisation": {"kind": "event_mass"}})
    assert encoder_features(config)[-1] == "log_scale"


@pytest.mark.parametrize("schema_of", [encoder_schema, task_schema])
def test_schema(schema_of):
    schema = schema_of(ModelConfig())
    assert json.loads(json.dumps(schema)) == schema
    digest = schema_hash(schema)
    assert len(digest) == 64
    assert schema_hash(dict(reversed(schema.items()))) == digest
    assert schema_hash(schema_of(ModelConfig())) == digest
    assert encoder_schema(ModelConfig()) == encoder_schema(EncoderConfig())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"tokens": {"max_jets": 8}}, "inputs"),
        ({"tokens": {"b_candidates": "token"}}, "inputs"),
        ({"normalisation": {"scale": 50.0}}, "inputs"),
        ({"normalisation": {"kind": "event_mass"}}, "inputs"),
        ({"spurions": {"mirror": False}}, "inputs"),
        ({"spurions": {"embed": "token"}}, "inputs"),
        ({"readout": "mean"}, "outputs"),
        ({"head": "timelike"}, "outputs"),
        ({"quantiles": {}}, "outputs"),
        ({"backbone": {"kind": "lgatr"}}, "neither"),
    ],
    ids=str,
)
def test_each_schema_changes_with_its_own_part(change, part):
    """What the network sees is the encoder's; what it predicts is the task's."""
    other = ModelConfig.model_validate(change)
    changed = {
        name
        for name, schema_of in {"inputs": encoder_schema, "outputs": task_schema}.items()
        if schema_hash(schema_of(other)) != schema_hash(schema_of(ModelConfig()))
    }
    assert changed == ({part} - {"neither"})
