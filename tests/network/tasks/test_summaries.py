"""Means and quantiles of a posterior's observables learn what its samples say."""

import dataclasses

import numpy as np
import pytest
import torch

from topreco.config import LossConfig, PosteriorConfig
from topreco.core import fourvector
from topreco.core.events import DileptonEvents, toy_events
from topreco.core.posterior import mean_tops, observable_mean, sample_quantiles, sample_values
from topreco.network.inference import predict, sample
from topreco.network.task import Evaluated, TrainingError
from topreco.network.tasks.augmentation import Augmentation
from topreco.network.tasks.posterior import PosteriorNetwork, PosteriorTask
from topreco.network.tasks.summaries import SUMMARISED, SummariesTask, SummaryHeads
from topreco.network.tokens import Inputs

SMALL = {"kind": "lgatr_slim", "blocks": 1, "vector_channels": 4, "scalar_channels": 8, "heads": 1}
CONFIG = PosteriorConfig.model_validate(
    {"backbone": SMALL, "hidden": 64, "velocity": {"hidden": 16, "blocks": 1}, "steps": 4}
)


def columns_of(events: DileptonEvents, tops: np.ndarray) -> dict[str, torch.Tensor]:
    return Inputs.from_events(events).columns() | {"tops": torch.from_numpy(tops.astype(np.float32))}


@pytest.fixture(scope="module")
def trained() -> tuple[DileptonEvents, dict[str, torch.Tensor], PosteriorNetwork, SummariesTask]:
    """A posterior that was hardly trained, with means and quantiles of what it says nevertheless."""
    events = toy_events(512, max_jets=4)
    tops = fourvector.from_three_momentum(np.random.default_rng(2).normal(0, 120, (512, 2, 3)), 172.5)
    columns = columns_of(events, tops)
    torch.manual_seed(4)
    flow = PosteriorTask(CONFIG, LossConfig(), Augmentation())
    network = flow.build()
    flow.prepare(network, columns)
    # A velocity that depends on the event.
    torch.nn.init.normal_(network.velocity.out.weight, std=0.2)
    network.eval()
    task = SummariesTask(CONFIG, [network], 16)
    with torch.no_grad():
        columns |= task.derive(0, columns)
    heads = task.build()
    task.prepare(heads, columns)
    optimiser = torch.optim.AdamW(heads.parameters(), 3e-3)
    for step in range(600):
        part = slice(128 * (step % 4), 128 * (step % 4 + 1))
        loss = task.loss(heads, {name: column[part] for name, column in columns.items()})[0].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step == 450:
            optimiser.param_groups[0]["lr"] = 5e-4
    network.summary = heads.eval()
    return events, columns, network, task


def test_means_and_quantiles_are_those_of_the_samples(trained):
    events, _, network, _ = trained
    some = events[:100]
    pair = predict([network], some)
    posterior = sample([network], some, n_samples=256)
    values = sample_values(posterior, some.lepton_p4, SUMMARISED)
    for name in SUMMARISED:
        low, high = sample_quantiles(values[name], posterior.weight, [0.16, 0.84]).T
        width = 0.5 * (high - low)
        pull = (pair.observables[name] - observable_mean(name, values[name], posterior.weight)) / width
        # A mean of 256 samples scatters by 0.06 widths, one of the 16 of the training by 0.25.
        assert np.sqrt(np.mean(pull**2)) < 0.6, name
        assert abs(pull.mean()) < 0.1, name
        inside = (values[name] > pair.quantiles[name][:, [1]]) & (values[name] < pair.quantiles[name][:, [3]])
        assert inside.mean() == pytest.approx(0.68, abs=0.06), name
    from_samples = mean_tops(posterior, CONFIG.m_top)
    assert np.abs(pair.p4 - from_samples)[..., 1:].mean() < 30


def test_only_samples_and_not_the_truth_are_learnt(trained):
    _, columns, network, task = trained
    changed = columns | {"tops": columns["tops"] * 2, "true_tops": columns["true_tops"] * 2}
    with torch.no_grad():
        assert torch.equal(task.loss(network.summary, columns)[0], task.loss(network.summary, changed)[0])


def test_samples_of_an_event_do_not_depend_on_what_was_drawn_before(trained):
    _, columns, _, task = trained
    part = {name: column[:70] for name, column in columns.items()}
    with torch.no_grad():
        first = task.derive(0, part)["samples"]
        torch.rand(10)
        assert torch.equal(task.derive(0, part)["samples"], first)
    assert len(torch.unique(first[:, :, 0, 0])) == first[:, :, 0, 0].numel()


def test_training_reaches_the_heads_alone(trained):
    _, columns, network, task = trained
    heads = task.build()
    task.prepare(heads, columns)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    task.loss(heads, columns)[0].mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())
    assert all(p.grad is None for name, p in network.named_parameters() if not name.startswith("summary."))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_finish_calibrates_on_the_truth(trained):
    _, columns, network, task = trained
    heads = SummaryHeads(CONFIG, network.n_features)
    heads.load_state_dict(network.summary.state_dict())
    one = torch.ones(512)
    batch = Evaluated(heads.eval(), columns, one, one)
    with torch.no_grad():
        before = task.metrics([batch])
        task.finish([heads], lambda fold: [batch])
        after = task.metrics([batch])
    # The flow knows nothing of these tops, so its intervals miss many of them.
    assert before["pt_tt_coverage68"] != pytest.approx(0.68, abs=0.02)
    for name in ("m_tt", "pt_tt", "c_hel", "cos_1n_2n"):
        assert after[f"{name}_coverage68"] == pytest.approx(0.68, abs=0.02), name
    assert after["loss"] == before["loss"]
    few = {name: column[:20] for name, column in columns.items()}
    with torch.no_grad(), pytest.raises(TrainingError, match="20 events"):
        task.finish([heads], lambda fold: [Evaluated(heads, few, one[:20], one[:20])])


def test_metrics_hold_both_losses(trained):
    _, columns, network, task = trained
    one = torch.ones(512)
    with torch.no_grad():
        metrics = task.metrics([Evaluated(network.summary, columns, one, one)])
        loss = task.loss(network.summary, columns)[0].mean()
    assert metrics["loss"] == pytest.approx(metrics["mean_loss"] + metrics["quantile_loss"])
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert task.metrics([]) == {}
    assert "c_han" in task.describe(metrics)


def test_a_sample_without_axes_counts_nothing():
    """A top exactly along the beam has no axes r and n."""
    events = dataclasses.replace(toy_events(3))
    tops = fourvector.from_three_momentum(np.random.default_rng(3).normal(0, 100, (3, 2, 3)), 172.5)
    columns = columns_of(events, tops)
    flow = PosteriorTask(CONFIG, LossConfig(), Augmentation())
    network = flow.build()
    flow.prepare(network, columns)
    task = SummariesTask(CONFIG, [network.eval()], 4)
    with torch.no_grad():
        columns |= task.derive(0, columns)
    columns["samples"][0, 0] = torch.tensor([[0.0, 0.0, 80.0], [0.0, 0.0, -80.0]])
    heads = task.build()
    task.prepare(heads, columns)
    loss = task.loss(heads, columns)[0]
    assert loss.isfinite().all()
    loss.mean().backward()
    assert all(p.grad.isfinite().all() for p in heads.parameters())
