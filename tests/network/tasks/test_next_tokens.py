"""Task `tokens`: a normalised density, causality, padding, generation, learning."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from topreco.config import ConfigError, DataConfig, LossConfig, MaskedConfig, NextTokenConfig, build_config
from topreco.core.errors import TopRecoError
from topreco.core.events import toy_events
from topreco.core.skim import Skim, SkimWriter
from topreco.network.fit.data import read_training_data
from topreco.network.model_file import load_model, save_model
from topreco.network.task import Evaluated
from topreco.network.tasks.augmentation import Augmentation
from topreco.network.tasks.masked import MaskedTask
from topreco.network.tasks.next_tokens import NextTokenNetwork, NextTokenTask, as_events
from topreco.network.tokens import Inputs

BACKBONE = {"kind": "transformer", "blocks": 1, "channels": 16, "heads": 2}
SMALL = {
    "backbone": BACKBONE,
    "tokens": {"btag": "working_points", "max_jets": 4},
    "encoding": "bins",
    "codes": 6,
    "scalars": 12,
    "hidden": 16,
}


def configure(**fields):
    content = SMALL | fields
    content["tokens"] = SMALL["tokens"] | fields.get("tokens", {})
    return build_config(NextTokenConfig, content, "test")


def make_task(augmentation=None, **fields):
    return NextTokenTask(configure(**fields), LossConfig(), augmentation or Augmentation())


@pytest.fixture(scope="module")
def events():
    return toy_events(300, max_jets=6, seed=2)


def prepared(events, **fields):
    task = make_task(**fields)
    columns = task.columns(events, None)
    network = task.build()
    # Not the zero with which it begins.
    torch.nn.init.normal_(network.start)
    task.prepare(network, columns)
    return task, network.eval(), task.seen(columns)


@pytest.mark.parametrize("embed", ["channel", "token"])
def test_an_object_depends_on_those_before_it_alone(events, embed):
    """Of each object a change is seen in its own probability and in those of later ones."""
    _, network, inputs = prepared(events, spurions={"embed": embed})
    with torch.no_grad():
        before = network(inputs)
    four = network.objects(inputs).exists.all(1)
    assert four.sum() > 20
    jets = inputs.jets.clone()
    jets[:, 1] *= 3
    changes = [
        inputs._replace(lepton_plus=inputs.lepton_plus * 2),
        inputs._replace(lepton_minus=inputs.lepton_minus * 2),
        inputs._replace(met=inputs.met * 3),
        None,
        inputs._replace(jets=jets),
    ]
    for place, changed in enumerate(changes):
        if changed is None:
            continue
        with torch.no_grad():
            difference = (network(changed) - before)[four].abs().amax(-1)
        assert not difference[:, :place].any()
        assert difference[:, place:].amax(0).min() > 0


@pytest.mark.parametrize("encoding", ["bins", "codebook"])
def test_probabilities_add_up_to_one(events, encoding):
    """Over all labels and integers of the next object, of each kind."""
    if encoding == "codebook":
        pytest.importorskip("vector_quantize_pytorch", reason="needs the extra `tokens`")
    _, network, inputs = prepared(events[:40], encoding=encoding, codes=2, levels=2)
    objects = network.objects(inputs)
    levels = network.encoding.levels
    with torch.no_grad():
        states = network.states(objects)
        for place, labels in enumerate([2, 2, 1, 7]):
            kind = network._kinds[place].expand(40)
            total = torch.zeros(40)
            for whole in itertools.product(range(labels), *[range(2)] * levels):
                h = network.head.start(states[:, place], kind)
                log_p = torch.zeros(40)
                for level, code in enumerate(whole):
                    drawn = torch.full((40,), code)
                    log_p += network.head.logits(level, h, kind).log_softmax(-1)[:, code]
                    h = network.head.further(level, h, drawn, kind)
                total += log_p.exp()
            torch.testing.assert_close(total, torch.ones(40))


def test_the_end_of_the_jets_is_predicted(events):
    """One label more than there are jets, unless all places are full."""
    _, network, inputs = prepared(events)
    with torch.no_grad():
        nats = network(inputs)
    n_jets = network.objects(inputs).exists[:, 3:].sum(1)
    labels = (nats[:, 3:, 0] > 0).sum(1)
    assert torch.equal(labels, (n_jets + 1).clamp(max=4))
    assert torch.equal((nats[:, 3:, 1] > 0).sum(1), n_jets)


def test_padding_changes_nothing(events):
    _, network, _ = prepared(events)
    few = events[:50]
    wide = dataclasses.replace(
        few,
        jets=np.pad(few.jets, ((0, 0), (0, 3), (0, 0)), constant_values=7.0),
        **{
            name: np.pad(getattr(few, name), ((0, 0), (0, 3)))
            for name in ("jet_mask", "jet_btag", "jet_tagged", "jet_working_points")
        },
    )
    tokens = network.config.tokens
    with torch.no_grad():
        narrow, other = (network(Inputs.from_events(each, tokens=tokens)) for each in (few, wide))
    torch.testing.assert_close(narrow, other, rtol=1e-5, atol=1e-5)


def test_generated_events_are_events(events, tmp_path):
    _, network, _ = prepared(events)
    one, two, three = (network.generate(200, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.jets, two.jets)
    assert not torch.equal(one.jets, three.jets)
    found = as_events(one)
    assert (np.diff(found.jet_mask.astype(int), axis=1) <= 0).all()
    assert len(set(found.n_jets.tolist())) > 2
    assert set(np.unique(found.lepton_flavour)) <= {11, 13}
    assert (found.jet_working_points[found.jet_mask] <= 5).all()
    transverse = np.hypot(found.jets[..., 1], found.jets[..., 2])
    # Two in one bin are as equal as single precision is.
    assert (np.diff(transverse, axis=1) <= 1e-3).all()
    assert np.isfinite(found.lepton_plus).all()
    assert not found.jets[~found.jet_mask].any()
    # Events for every tool that reads skims, such as a classifier against real ones.
    with SkimWriter(tmp_path / "generated.parquet") as writer:
        writer.write(found, None)
    assert len(Skim(writer.path).read()[0]) == 200
    data = DataConfig(files=[writer.path])
    task = make_task()
    assert len(read_training_data(data, task.columns, needs_truth=False)) == 200
    # They have no b-tag score, and nothing takes it for one.
    score = MaskedTask(MaskedConfig(backbone=BACKBONE), LossConfig(), Augmentation())
    with pytest.raises(TopRecoError, match="takes the b-tag score, and the events have only the number"):
        read_training_data(data, score.columns, needs_truth=False)


def test_a_density_is_learnt_and_drawn_from():
    """Events with two jets and opposite flavours only, after some steps."""
    events = toy_events(300, max_jets=4, seed=8)
    events = dataclasses.replace(
        events,
        jet_mask=np.arange(4) < np.full((300, 1), 2),
        lepton_flavour=np.tile([11, 13], (300, 1)),
        jet_working_points=np.tile([3, 0, 0, 0], (300, 1)),
    )
    task, network, _ = prepared(events, codes=4)
    columns = task.columns(events, None)
    ones = torch.ones(300)

    def metrics():
        with torch.no_grad():
            return task.metrics([Evaluated(network, columns, ones, ones)])

    before = metrics()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(80):
        loss, _ = task.loss(network, columns)
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()
    after = metrics()
    assert after["label"] < 0.15 < before["label"]
    assert after["momentum"] < before["momentum"]
    drawn = as_events(network.generate(300, torch.Generator().manual_seed(1)))
    assert (drawn.n_jets == 2).mean() > 0.9
    assert (drawn.lepton_flavour == [11, 13]).all(1).mean() > 0.9
    assert np.hypot(*drawn.met.T).mean() == pytest.approx(np.hypot(*events.met.T).mean(), rel=0.2)
    assert "bits of an event" in task.describe(after)
    assert task.metrics([]) == {}


def test_decoded_events_have_their_labels(events):
    _, network, inputs = prepared(events, codes=64)
    decoded = network.round_trip(inputs)
    assert torch.equal(decoded.lepton_flavour, inputs.lepton_flavour)
    assert torch.equal(decoded.jet_mask, inputs.jet_mask[:, :4])
    assert torch.equal(decoded.jet_tagged, (inputs.jet_tagged & inputs.jet_mask)[:, :4])
    ratio = decoded.lepton_plus[:, 0] / inputs.lepton_plus[:, 0]
    assert ratio.log().abs().quantile(0.9) < 0.2


def test_truth_is_never_looked_at(events, truth_of):
    task = make_task()
    with_truth, without = task.columns(events, truth_of(events)), task.columns(events, None)
    assert all(torch.equal(with_truth[name], without[name]) for name in without)
    assert with_truth.keys() == without.keys()


def test_round_trip(events, tmp_path):
    _, network, inputs = prepared(events)
    save_model(tmp_path / "m.safetensors", [network], {})
    model = load_model(tmp_path / "m.safetensors")
    assert isinstance(model.networks[0], NextTokenNetwork)
    with torch.no_grad():
        assert torch.equal(model.networks[0](inputs), network(inputs))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": {"btag": "score"}}, r"tokens\.btag: 'score' found; .* needs 'working_points'"),
        ({"tokens": {"b_candidates": "token"}}, r"tokens\.b_candidates: 'token' found; .* 'flag' or 'none'"),
        ({"backbone": {"kind": "lgatr_slim"}}, r"backbone\.kind: 'lgatr_slim' found; .* needs 'transformer'"),
        ({"normalisation": {"kind": "event_mass"}}, r"normalisation\.kind: 'event_mass' found"),
        ({"tokens": {"features": {"event": ["PV_npvs"]}}}, r"tokens\.features: 'event:PV_npvs' found; task"),
    ],
)
def test_what_it_cannot_be(fields, message):
    with pytest.raises(ConfigError, match=message):
        configure(**fields)
