"""Task `tops`: its columns, losses and metrics; and that no truth reaches the network."""

import math

import numpy as np
import pytest
import torch

from topreco.config import LossConfig, ModelConfig
from topreco.core.events import toy_events
from topreco.network.task import Evaluated, TrainingError
from topreco.network.tasks.augmentation import Augmentation
from topreco.network.tasks.losses import (
    c_hel_loss,
    flattening_weights,
    four_momentum_loss,
    m_tt_bias_loss,
    m_tt_loss,
    pt_top_loss,
)
from topreco.network.tasks.tops import TopNetwork, TopsTask, pair_metrics
from topreco.network.tokens import Inputs

BACKBONE = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
NO_LOSS = {"m_tt": 0.0, "pt_top": 0.0, "c_hel": 0.0}
TRUTH_COLUMNS = {"tops", "c_hel"}


def make_task(loss=None, augmentation=None, **model):
    config = ModelConfig.model_validate({"backbone": BACKBONE, **model})
    return TopsTask(config, LossConfig.model_validate(NO_LOSS | (loss or {})), augmentation or Augmentation())


@pytest.fixture
def columns(truth_of):
    events = toy_events(64, max_jets=4)
    return make_task().columns(events, truth_of(events))


def test_columns_are_inputs_and_truth(columns):
    assert set(columns) == set(Inputs.from_events(toy_events(1)).columns()) | TRUTH_COLUMNS
    assert {column.dtype for column in columns.values()} == {torch.float32, torch.int64, torch.bool}
    assert columns["tops"].shape == (64, 2, 4)
    assert columns["c_hel"].isnan().nonzero().tolist() == [[5]]


def test_events_without_truth_are_refused():
    with pytest.raises(TrainingError, match="learnt from truth, and these events have none"):
        make_task().columns(toy_events(3), None)


def test_truth_never_reaches_the_network(columns, truth_of):
    """Inputs, tokens and predictions are the same bits whatever the truth is, and without any."""
    events = toy_events(64, max_jets=4)
    truth = truth_of(events)
    truth.tops[:] = np.random.default_rng(1).normal(0, 500, truth.tops.shape)
    truth.lepton[:] = truth.lepton[::-1]
    task = make_task(normalisation={"kind": "event_mass"})
    other = task.columns(events, truth)
    assert not torch.equal(other["tops"], columns["tops"])
    without = {name: column for name, column in columns.items() if name not in TRUTH_COLUMNS}
    networks = []
    for seen in (columns, other):
        torch.manual_seed(4)
        network = task.build()
        # The truth is in the sample that sets the standardisation.
        task.prepare(network, seen)
        networks.append(network.eval())
    expected = networks[0].encoder.tokens(Inputs.from_columns(columns))
    for network, seen in ((networks[0], other), (networks[1], other), (networks[1], without)):
        inputs = Inputs.from_columns(seen)
        assert inputs._fields == Inputs._fields
        assert not TRUTH_COLUMNS & set(inputs._fields)
        wanted = Inputs.from_events(events).columns()
        assert inputs.columns().keys() == wanted.keys()
        for name, field in inputs.columns().items():
            assert torch.equal(field, wanted[name])
        for a, b in zip(network.encoder.tokens(inputs), expected, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(network(inputs), networks[0](Inputs.from_columns(columns)))


def test_the_loss_is_the_sum_of_its_terms(columns):
    network = make_task().build()
    inputs = Inputs.from_columns(columns)
    pred, tops = network(inputs), columns["tops"]
    leptons = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1)
    base = four_momentum_loss(pred, tops, network.encoder.scale(network.encoder.tokens(inputs)))
    terms = {
        "m_tt": m_tt_loss(pred, tops, kind="ratio"),
        "pt_top": pt_top_loss(pred, tops),
        "c_hel": c_hel_loss(pred, leptons, columns["c_hel"]),
    }
    torch.testing.assert_close(make_task().loss(network, columns), (base, None))
    for name, term in terms.items():
        per_event, per_batch = make_task({name: 0.5}).loss(network, columns)
        torch.testing.assert_close(per_event, base + 0.5 * term)
        assert per_batch is None
    _, per_batch = make_task({"m_tt_bias": 3.0}).loss(network, columns)
    torch.testing.assert_close(per_batch, 3.0 * m_tt_bias_loss(pred, tops))


@pytest.mark.parametrize("head", ["direct", "neutrinos"])
def test_every_term_moves_the_weights(columns, head):
    """A term that is not in the loss would have no gradient of its own."""
    gradients = {}
    terms = ("m_tt", "pt_top", "c_hel", "m_tt_bias")
    network = make_task(head=head).build()
    for name in (None, *terms):
        network.zero_grad()
        per_event, per_batch = make_task({name: 0.5} if name else {}, head=head).loss(network, columns)
        (per_event.mean() + (0 if per_batch is None else per_batch)).backward()
        gradients[name] = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        assert gradients[name].isfinite().all()
    for name, own in gradients.items():
        assert not any(torch.equal(own, other) for key, other in gradients.items() if key != name), name


def test_weights_of_events(columns):
    weight = torch.ones(64)
    weight[::7] = -1.0
    assert torch.equal(make_task().loss_weights(weight, columns), torch.ones(64))
    clipped = make_task({"negative_weights": "clip"}).loss_weights(weight, columns)
    assert torch.equal(clipped, weight.clamp(min=0))
    flat = make_task({"flat_m_tt": 0.5}).loss_weights(weight, columns)
    total = columns["tops"].sum(1)
    mass = (total[:, 0].square() - total[:, 1:].square().sum(1)).sqrt()
    torch.testing.assert_close(flat, flattening_weights(mass, 0.5))


def test_augmentation_is_drawn_and_applied(columns):
    task = make_task(augmentation=Augmentation(rotation=True, reflection=True, charge_exchange=True))
    drawn = task.draw(64, torch.Generator().manual_seed(1))
    assert {name: column.shape for name, column in drawn.items()} == dict.fromkeys(
        ("angle", "reflect", "exchange"), (64,)
    )
    augmented = task.augment(columns, drawn)
    assert set(augmented) == set(columns)
    # c_hel is invariant.
    assert augmented["c_hel"] is columns["c_hel"]
    moved = (augmented["tops"] - columns["tops"]).abs().amax((1, 2)) > 1
    assert moved.all()
    assert make_task().augment(columns, make_task().draw(64, torch.Generator())) is columns


def test_c_hel_needs_true_leptons(columns):
    task = make_task({"c_hel": 0.1})
    with pytest.raises(
        TrainingError, match=r"loss.c_hel: 0.1 found, but no event of data.files has both true leptons"
    ):
        task.prepare(task.build(), columns | {"c_hel": torch.full((64,), torch.nan)})


# ---- metrics ---------------------------------------------------------------------------------------------


def test_metrics_of_batches_are_those_of_all_events(columns):
    task = make_task({"m_tt_bias": 2.0})
    network = task.build().eval()
    weight = torch.linspace(-1, 2, 64)

    def batches(size):
        for part in torch.arange(64).split(size):
            own = {name: column[part] for name, column in columns.items()}
            yield Evaluated(network, own, weight[part], weight[part].abs())

    with torch.no_grad():
        whole, parts = task.metrics(batches(64)), task.metrics(batches(10))
        pred = network(Inputs.from_columns(columns))
        per_event, per_batch = task.loss(network, columns)
    assert parts == pytest.approx(whole, rel=1e-5)
    mean = float((weight.abs() * per_event).sum() / weight.abs().sum())
    assert whole["loss"] == pytest.approx(mean + float(per_batch), rel=1e-4)
    expected = pair_metrics(pred.double().numpy(), columns["tops"].double().numpy(), weight.double().numpy())
    for name, value in expected.items():
        assert whole[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
    assert "correlation" in task.describe(whole)
    assert task.metrics([]) == {}


def test_metrics_by_hand():
    # Pairs at rest: masses are sums of energies, so (p − t)/t is 0.2, −0.1 and, with weight −1, 0.5.
    truth = np.zeros((3, 2, 4))
    truth[:, :, 0] = 500.0
    truth[:, 0, 1], truth[:, 1, 1] = 100.0, -100.0
    pred = truth.copy()
    pred[:, :, 0] *= np.array([1.2, 0.9, 1.5])[:, None]
    pred[0, :, 1] *= 1.3
    weight = np.array([2.0, 2.0, -1.0])
    metrics = pair_metrics(pred, truth, weight)
    mean, square = (0.4 - 0.2 - 0.5) / 3, (2 * 0.04 + 2 * 0.01 - 0.25) / 3
    assert metrics["m_tt_bias"] == pytest.approx(mean)
    assert math.isnan(metrics["m_tt_resolution"])
    assert square - mean**2 < 0
    assert metrics["pt_top_rms"] == pytest.approx((2 * 30.0**2 / 3) ** 0.5)
    assert metrics["efficiency"] == 1
    unsigned = pair_metrics(pred, truth, np.abs(weight))
    mean, square = (0.4 - 0.2 + 0.5) / 5, (2 * 0.04 + 2 * 0.01 + 0.25) / 5
    assert unsigned["m_tt_resolution"] == pytest.approx((square - mean**2) ** 0.5)


def test_correlation_and_slope_see_shrinkage():
    rng = np.random.default_rng(0)
    log_truth = 6.2 + 0.3 * rng.normal(size=5000)
    truth, pred = np.zeros((5000, 2, 4)), np.zeros((5000, 2, 4))
    truth[..., 0] = 0.5 * np.exp(log_truth)[:, None]
    pred[..., 0] = 0.5 * np.exp(6.2 + 0.5 * (log_truth - 6.2))[:, None]
    metrics = pair_metrics(pred, truth, np.ones(5000))
    assert metrics["m_tt_correlation"] == pytest.approx(1.0)
    assert metrics["m_tt_slope"] == pytest.approx(0.5)


def test_metrics_of_failures_and_of_nothing(truth_of):
    truth = truth_of(toy_events(4)).tops
    pred = truth.copy()
    pred[1] = np.nan
    metrics = pair_metrics(pred, truth, np.ones(4))
    assert metrics["efficiency"] == 0.75
    assert metrics["m_tt_bias"] == pytest.approx(0)
    assert all(math.isnan(value) for value in pair_metrics(pred[:0], truth[:0], np.ones(0)).values())


def test_quantiles_are_another_task_s():
    task = make_task(quantiles={})
    assert isinstance(task.build(), TopNetwork)
    assert task.build().quantiles is None
