"""Tokens against what each is meant to contain."""

import json

import numpy as np
import pytest
import torch

from topreco.config import ModelConfig, TokensConfig
from topreco.core import fourvector
from topreco.core.events import toy_events
from topreco.network.tokens import (
    TOKEN_TYPES,
    Objects,
    build_tokens,
    charge_exchange,
    model_features,
    schema_hash,
    token_features,
    token_schema,
    token_types,
)

CONFIGS = [
    TokensConfig(max_jets=max_jets, b_candidates=b_candidates, log_pt=log_pt)
    for max_jets in (3, 7, 10)
    for b_candidates in ("token", "flag", "none")
    for log_pt in (False, True)
]


def feature(tokens, config, name):
    return tokens.scalars[..., token_features(config).index(name)]


def test_objects_of_events():
    events = toy_events(5)
    objects = Objects.from_events(events, torch.float64)
    for name, value in objects._asdict().items():
        np.testing.assert_array_equal(value.numpy(), getattr(events, name))
    assert objects.jets.dtype == objects.met.dtype == objects.jet_btag.dtype == torch.float64
    assert objects.jet_mask.dtype == objects.jet_tagged.dtype == torch.bool
    assert objects.b_candidates.dtype == objects.lepton_flavour.dtype == torch.int64
    assert Objects.from_events(events).jets.dtype == torch.float32
    objects.jets.zero_()
    assert events.jets.any()


def test_objects_hold_nothing_but_reconstruction():
    assert set(Objects._fields) == {
        "lepton_plus", "lepton_minus", "lepton_flavour", "jets", "jet_mask", "jet_btag", "jet_tagged",
        "b_candidates", "met",
    }  # fmt: skip


def test_objects_by_batch(objects):
    index = torch.tensor([3, 0, 3])
    taken = objects.take(index)
    for before, after in zip(objects, taken, strict=True):
        assert torch.equal(after, before[index])
    assert len(objects.take(slice(2, 6)).met) == 4
    assert objects.to("cpu").jets.device.type == "cpu"


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_shapes(objects, config):
    tokens = build_tokens(objects, config)
    n, length, width = len(objects.met), len(token_types(config)), len(token_features(config))
    assert tokens.p4.shape == (n, length, 4)
    assert tokens.scalars.shape == (n, length, width)
    assert tokens.mask.shape == (n, length)
    assert tokens.mask.dtype == torch.bool
    assert tokens.scalars.isfinite().all()
    assert not tokens.p4[~tokens.mask].any()
    assert not tokens.scalars[~tokens.mask].any()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_types(objects, config):
    tokens = build_tokens(objects, config)
    one_hot = tokens.scalars[..., : len(TOKEN_TYPES)]
    expected = torch.tensor([TOKEN_TYPES.index(name) for name in token_types(config)])
    assert torch.equal(one_hot.sum(-1), tokens.mask.to(one_hot))
    assert torch.equal(one_hot.argmax(-1)[tokens.mask], expected.expand_as(tokens.mask)[tokens.mask])


def test_momenta(objects):
    config = TokensConfig(max_jets=5, b_candidates="token")
    tokens = build_tokens(objects, config)
    assert torch.equal(tokens.p4[:, 0], objects.lepton_plus)
    assert torch.equal(tokens.p4[:, 1], objects.lepton_minus)
    assert torch.equal(tokens.p4[:, 2:7], objects.jets[:, :5])
    assert torch.equal(tokens.mask[:, 2:7], objects.jet_mask[:, :5])
    met = tokens.p4[:, 7]
    assert torch.equal(met[:, 1:3], objects.met)
    assert not met[:, 3].any()
    torch.testing.assert_close(met[:, 0], objects.met.norm(dim=-1))
    for leg in range(2):
        picked = objects.jets[torch.arange(16), objects.b_candidates[:, leg]]
        assert torch.equal(tokens.p4[:, 8 + leg], picked)


def test_scalars(objects):
    config = TokensConfig(max_jets=7, b_candidates="flag", log_pt=True)
    tokens = build_tokens(objects, config)
    charge = feature(tokens, config, "charge")
    assert (charge[:, 0] == 1).all()
    assert (charge[:, 1] == -1).all()
    assert not charge[:, 2:].any()
    muon = feature(tokens, config, "muon")
    assert torch.equal(muon[:, :2] == 1, objects.lepton_flavour == 13)
    assert not muon[:, 2:].any()
    assert torch.equal(feature(tokens, config, "btag")[:, 2:9], objects.jet_btag)
    assert not feature(tokens, config, "btag")[:, [0, 1, 9]].any()
    assert torch.equal(feature(tokens, config, "tagged")[:, 2:9] == 1, objects.jet_tagged)
    for leg, name in enumerate(("b_candidate_plus", "b_candidate_minus")):
        flags = feature(tokens, config, name)
        assert torch.equal(flags[:, 2:9].argmax(1), objects.b_candidates[:, leg])
        assert (flags.sum(1) == 1).all()
    expected = fourvector.pt(tokens.p4).clamp(min=1).log()
    assert torch.equal(feature(tokens, config, "log_pt")[tokens.mask], expected[tokens.mask])


def test_candidate_tokens_carry_the_score_of_their_jet(objects):
    config = TokensConfig(max_jets=7, b_candidates="token")
    tokens = build_tokens(objects, config)
    for leg in range(2):
        index = objects.b_candidates[:, leg]
        rows = torch.arange(len(index))
        assert torch.equal(feature(tokens, config, "btag")[:, 10 + leg], objects.jet_btag[rows, index])
        assert torch.equal(
            feature(tokens, config, "tagged")[:, 10 + leg] == 1, objects.jet_tagged[rows, index]
        )


def test_missing_candidates(objects):
    absent = objects._replace(b_candidates=torch.full_like(objects.b_candidates, -1))
    config = TokensConfig(b_candidates="token")
    tokens = build_tokens(absent, config)
    assert not tokens.mask[:, -2:].any()
    assert not tokens.p4[:, -2:].any()
    config = TokensConfig(b_candidates="flag")
    tokens = build_tokens(absent, config)
    assert not feature(tokens, config, "b_candidate_plus").any()
    assert not feature(tokens, config, "b_candidate_minus").any()


def test_candidate_behind_the_leading_jets():
    objects = Objects.from_events(toy_events(200), torch.float64)
    objects = objects.take(objects.jet_mask[:, 4])
    objects = objects._replace(b_candidates=torch.tensor([[4, 0]]).expand(len(objects.met), 2))
    config = TokensConfig(max_jets=3, b_candidates="token")
    tokens = build_tokens(objects, config)
    assert tokens.mask[:, -2].all()
    assert torch.equal(tokens.p4[:, -2], objects.jets[:, 4])
    config = TokensConfig(max_jets=3, b_candidates="flag")
    assert not feature(build_tokens(objects, config), config, "b_candidate_plus").any()


@pytest.mark.parametrize("length", [2, 7, 15])
def test_padded_length_of_the_jets_is_free(objects, length):
    objects = objects.take(objects.jet_mask.sum(1) == 2)
    jets = torch.nn.functional.pad(objects.jets, (0, 0, 0, 10))[:, :length]

    def resized(values):
        return torch.nn.functional.pad(values, (0, 10))[:, :length]

    other = objects._replace(
        jets=jets,
        jet_mask=resized(objects.jet_mask),
        jet_btag=resized(objects.jet_btag),
        jet_tagged=resized(objects.jet_tagged),
    )
    for a, b in zip(build_tokens(objects, TokensConfig()), build_tokens(other, TokensConfig()), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("garbage", [1e30, torch.nan, torch.inf], ids=str)
def test_content_of_masked_jets_is_ignored(objects, config, garbage):
    absent = ~objects.jet_mask
    dirty = objects._replace(
        jets=torch.where(absent[..., None], garbage, objects.jets),
        jet_btag=torch.where(absent, garbage, objects.jet_btag),
        jet_tagged=objects.jet_tagged | absent,
    )
    for clean, other in zip(build_tokens(objects, config), build_tokens(dirty, config), strict=True):
        assert torch.equal(clean, other)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_charge_exchange(objects, config):
    rows, columns, signs = charge_exchange(config)
    tokens = build_tokens(objects, config)
    exchanged = build_tokens(objects.charge_exchanged(), config)
    assert torch.equal(exchanged.p4, tokens.p4[:, rows])
    assert torch.equal(exchanged.mask, tokens.mask[:, rows])
    assert torch.equal(exchanged.scalars, tokens.scalars[:, rows][..., columns] * torch.tensor(signs))
    assert not torch.equal(exchanged.p4, tokens.p4)


def test_charge_exchange_twice_is_nothing(objects):
    for before, after in zip(objects, objects.charge_exchanged().charge_exchanged(), strict=True):
        assert torch.equal(before, after)


def test_features_of_a_model():
    assert model_features(ModelConfig())[-1] == "b_candidate_minus"
    config = ModelConfig.model_validate({"normalisation": {"kind": "event_mass"}})
    assert model_features(config)[-1] == "log_scale"


def test_schema():
    schema = token_schema(ModelConfig())
    assert json.loads(json.dumps(schema)) == schema
    digest = schema_hash(schema)
    assert len(digest) == 64
    assert schema_hash(dict(reversed(schema.items()))) == digest
    assert schema_hash(token_schema(ModelConfig())) == digest


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": {"max_jets": 8}},
        {"tokens": {"b_candidates": "token"}},
        {"tokens": {"log_pt": True}},
        {"normalisation": {"scale": 50.0}},
        {"normalisation": {"kind": "event_mass"}},
        {"spurions": {"mirror": False}},
        {"spurions": {"embed": "channel"}},
        {"readout": "mean"},
    ],
    ids=str,
)
def test_schema_changes_with_what_the_network_sees(change):
    assert schema_hash(token_schema(ModelConfig.model_validate(change))) != schema_hash(
        token_schema(ModelConfig())
    )
