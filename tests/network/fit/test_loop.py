"""The loop, with a task that no other module knows: all that it needs is the contract."""

import csv
import math

import pytest
import torch

from topreco.config import OptimiserConfig
from topreco.network.fit.loop import evaluation
from topreco.network.fit.optimisers import learning_rate
from topreco.network.splits import TEST, TRAIN, VALIDATION
from topreco.network.task import TrainingError


class Stop(Exception):  # noqa: N818 - nothing went wrong
    """An interruption."""


# ---- the contract ----------------------------------------------------------------------------------------


def test_learns_what_the_task_says(train_lines, lines, tmp_path, metrics_of):
    """Own columns, derived and augmented ones, metrics and a last step: 140 training events of 200."""
    task = lines(dropout=0.0)
    fitted = train_lines(task, epochs=40, optimiser={"learning_rate": 0.1})
    assert fitted.test["loss"] < 0.05
    # Test events carry their weights and what was derived for them.
    assert (fitted.test["events"], fitted.test["folds"]) == (40, 0)
    assert fitted.described == {"validation": [20]}
    assert not fitted.networks[0].training
    rows = metrics_of(tmp_path / "out")
    assert [row["step"] for row in rows[:2]] == [3, 6]
    assert rows[-1]["train_loss"] < 0.05
    assert rows[0]["train_loss"] > 2
    assert fitted.best[0] == min(rows, key=lambda row: row["validation_loss"])
    table = list(csv.DictReader((tmp_path / "out" / "metrics.csv").read_text().splitlines()))
    assert [float(row["validation_loss"]) for row in table] == [row["validation_loss"] for row in rows]
    # Once for the training events, for those of validation, which also finish, and for the test events.
    assert task.calls["derive"] == 3


@pytest.mark.parametrize("folds", [1, 3])
def test_no_network_has_seen_the_events_it_is_tested_on(train_lines, lines, line_data, folds):
    data, seen = line_data(folds), []

    class Recording(lines):
        def build(self):
            # A network of its own is built for each fold before its training.
            seen.append((self.trained, self.prepared)) if self.trained else None
            self.trained = set()
            return super().build()

    task = Recording()
    fitted = train_lines(task, data)
    assert len(seen) == folds == len(fitted.networks)
    for fold, (trained, prepared) in enumerate(seen):
        tested = data.fold == fold if folds > 1 else data.split == TEST
        assert not trained & set((tested | (data.split == VALIDATION)).nonzero().squeeze(1).tolist())
        allowed = set(((data.split == TRAIN) & ~tested).nonzero().squeeze(1).tolist())
        assert prepared == allowed
        # The last incomplete batch is drawn anew in each epoch, so nearly all were seen.
        assert trained <= allowed
        assert len(trained) > 0.9 * len(allowed)
    assert fitted.test["events"] == (40 if folds == 1 else 200)
    # Each event is tested with what was derived for the network of its fold.
    assert fitted.test["folds"] == sum(data.fold.tolist()) * (folds > 1)


def test_every_fold_and_every_seed_has_weights_of_its_own(train_lines, line_data, same_weights, tmp_path):
    first, second = train_lines(data=line_data(2)).networks
    assert not same_weights(first, second)
    again = train_lines(data=line_data(2), folder=tmp_path / "again").networks
    assert same_weights(first, again[0])
    assert same_weights(second, again[1])


def test_weights_of_events_count_in_the_loss(train_lines, line_data, same_weights, tmp_path):
    """Events of no weight do not move the weights of the network, whatever is true of them."""
    weight = torch.ones(200)
    weight[::7] = 0.0
    wrong = line_data().columns["y"].clone()
    wrong[::7] = 100.0
    expected = train_lines(data=line_data(weight=weight), folder=tmp_path / "one").networks[0]
    found = train_lines(data=line_data(weight=weight, y=wrong), folder=tmp_path / "two").networks[0]
    assert same_weights(found, expected)
    # The mean weight of the training events divides out.
    twice = train_lines(data=line_data(weight=2 * weight), folder=tmp_path / "three").networks[0]
    assert same_weights(twice, expected)


def test_a_term_of_the_batch_is_trained(train_lines, lines, tmp_path, metrics_of):
    class WithTerm(lines):
        def loss(self, network, columns):
            per_event, _ = super().loss(network, columns)
            return per_event, per_event.mean() + 1.0

    plain, doubled = (
        metrics_of(train_lines(task(dropout=0.0), folder=folder, epochs=1) and folder)[0]["train_loss"]
        for task, folder in ((lines, tmp_path / "plain"), (WithTerm, tmp_path / "term"))
    )
    assert doubled > 1.5 * plain + 1


@pytest.mark.parametrize("batch_size", [40, 37])
def test_accumulated_parts_train_as_one(train_lines, lines, tmp_path, metrics_of, batch_size):
    """Parts of unequal size, of the same events: 40 in 7 parts."""
    folders = [tmp_path / str(parts) for parts in (1, 7)]
    for folder, parts in zip(folders, (1, 7), strict=True):
        train_lines(lines(dropout=0.0), folder=folder, accumulate=parts, batch_size=batch_size)
    for a, b in zip(*map(metrics_of, folders), strict=True):
        assert a["step"] == b["step"]
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["validation_loss"] == pytest.approx(a["validation_loss"], rel=1e-5)


def test_derived_columns_lie_in_the_file_of_streamed_data(train_lines, line_data, same_weights, tmp_path):
    expected = train_lines().networks[0]
    (tmp_path / "scratch").mkdir()
    data = line_data(scratch=tmp_path / "scratch")
    found = train_lines(data=data, folder=tmp_path / "streamed").networks[0]
    assert same_weights(found, expected)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_evaluation_uses_no_dropout_and_restores_the_mode(lines):
    network = lines(dropout=0.5).build().train()
    x = torch.randn(20, 2)
    with evaluation(network):
        first, second = network(x), network(x)
        assert torch.equal(first, second)
        assert not first.requires_grad
    assert network.training
    with pytest.raises(Stop), evaluation(network):
        raise Stop
    assert network.training


# ---- steps -----------------------------------------------------------------------------------------------


def test_each_step_has_its_rate_and_a_clipped_gradient(train_lines, monkeypatch):
    rates, norms = [], []

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            rates.extend({group["lr"] for group in self.param_groups})
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norms.append(torch.nn.utils.get_total_norm(gradients).item())
            super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Spy)
    settings = {"kind": "adamw", "learning_rate": 0.01, "warmup": 0.4, "clip_norm": 1e-3}
    train_lines(optimiser=settings)
    assert rates == [learning_rate(step, 9, OptimiserConfig.model_validate(settings)) for step in range(9)]
    assert max(norms) <= 1.001e-3


def test_early_stopping_keeps_the_best_weights(train_lines, lines, same_weights):
    losses, seen = [3.0, 1.0, 1.0, 2.0, 0.1], []

    class Scripted(lines):
        def metrics(self, batches):
            network = next(iter(batches)).network
            seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
            return {"loss": losses[len(seen) - 1]}

    fitted = train_lines(Scripted(), epochs=5, patience=2)
    # Four epochs, and the test events at last.
    assert len(seen) == 5
    saved = fitted.networks[0].state_dict()
    assert all(torch.equal(saved[name], seen[1][name]) for name in saved)
    assert not all(torch.equal(saved[name], seen[3][name]) for name in saved)
    assert fitted.best[0]["epoch"] == 1


def test_without_validation_events_the_last_weights_are_kept(
    train_lines, line_data, tmp_path, same_weights, metrics_of
):
    split = torch.full((200,), TRAIN)
    fitted = train_lines(data=line_data(split=split), patience=1)
    rows = metrics_of(tmp_path / "out")
    assert len(rows) == 3
    assert "validation_loss" not in rows[0]
    assert fitted.best[0]["epoch"] == 2
    assert fitted.test == {}
    assert fitted.described == {"validation": [0]}


# ---- resuming --------------------------------------------------------------------------------------------


def interrupted(task, hook, after):
    """The task, which raises in a call of one of its hooks."""
    original, left = getattr(task, hook), after

    def interrupting(*arguments):
        nonlocal left
        if left == 0:
            raise Stop
        left -= 1
        return original(*arguments)

    setattr(task, hook, interrupting)
    return task


@pytest.mark.parametrize("folds", [1, 2])
def test_resumed_equals_uninterrupted(
    train_lines, lines, line_data, tmp_path, metrics_of, same_weights, folds
):
    """Interrupted in the first epoch, while validating, between epochs, in a later one, at the very end."""
    folders = tmp_path / "whole", tmp_path / "parts"
    data = line_data(folds)
    whole = train_lines(data=data, folder=folders[0])
    stops = [("loss", 2), ("metrics", 0), ("loss", 4), ("finish", 0)]
    for hook, after in stops[:3]:
        with pytest.raises(Stop):
            train_lines(interrupted(lines(), hook, after), data, folders[1])

    def stop(row):
        raise Stop

    with pytest.raises(Stop):
        train_lines(data=data, folder=folders[1], log=stop)
    with pytest.raises(Stop):
        train_lines(interrupted(lines(), *stops[3]), data, folders[1])
    task = lines()
    resumed = train_lines(task, data, folders[1])
    # Nothing was left to train.
    assert not task.trained
    for one, other in zip(whole.networks, resumed.networks, strict=True):
        assert same_weights(one, other)
    assert (resumed.test, resumed.best) == (whole.test, whole.best)
    rows = [metrics_of(folder) for folder in folders]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0]] == [0, 1, 2] * folds


def test_metrics_of_an_epoch_without_its_state_are_replaced(train_lines, tmp_path, metrics_of):
    """As if the state of the second epoch had not reached the disk."""
    states = []

    def keep(row):
        states.append((tmp_path / "out" / "state.ckpt").read_bytes())

    train_lines(log=keep)
    expected = metrics_of(tmp_path / "out")
    (tmp_path / "out" / "state.ckpt").write_bytes(states[0])
    train_lines()
    assert metrics_of(tmp_path / "out") == expected


# ---- what can go wrong -----------------------------------------------------------------------------------


def failing(lines, change, when=0):
    """The task with another loss from a step on."""

    class Failing(lines):
        def loss(self, network, columns):
            per_event, term = super().loss(network, columns)
            return (change(per_event), term) if self.calls["loss"] > when else (per_event, term)

    return Failing()


@pytest.mark.parametrize("when", [0, 4])
def test_non_finite_loss_names_its_step(train_lines, lines, when):
    task = failing(lines, lambda loss: loss * math.nan, when)
    with pytest.raises(TrainingError, match=rf"loss is nan in step {when} \(epoch {when // 3}, network 0\)"):
        train_lines(task)


def test_non_finite_gradient_names_its_step(train_lines, lines):
    # √x is finite at 0, its derivative is not.
    task = failing(lines, lambda loss: loss + (loss * 0).sqrt())
    with pytest.raises(TrainingError, match=r"gradient is nan in step 0 \(epoch 0, network 0\)"):
        train_lines(task)


def test_non_finite_validation_loss(train_lines, lines):
    class Diverged(lines):
        def metrics(self, batches):
            return {"loss": math.nan}

    with pytest.raises(TrainingError, match=r"validation loss is nan after step 3 \(epoch 0, network 0\)"):
        train_lines(Diverged())


def test_nothing_left_to_train_on(train_lines, line_data):
    message = r"no training events with weight remain for network 0 \(200 events, {} of them in the training"
    with pytest.raises(TrainingError, match=message.format(0)):
        train_lines(data=line_data(split=torch.full((200,), TEST)))
    with pytest.raises(TrainingError, match=message.format(140)):
        train_lines(data=line_data(weight=torch.zeros(200)))


def test_more_parts_than_events(train_lines):
    with pytest.raises(
        TrainingError,
        match=r"batch_size: 4 events \(140 to train on\) cannot be shared by 1 devices in 5 parts",
    ):
        train_lines(batch_size=4, accumulate=5)
