"""A task that knows nothing of tops, and trainings of it."""

from collections import Counter

import pytest
import torch
from lightning_fabric import Fabric
from rich.console import Console

from topreco.config import FitConfig
from topreco.network.fit.data import TrainingData
from topreco.network.fit.loop import Session, fit
from topreco.network.fit.state import Paths, read_state
from topreco.network.splits import TEST, TRAIN, VALIDATION
from topreco.network.task import Task

N_EVENTS = 200
SETTINGS = {
    "epochs": 3,
    "batch_size": 40,
    "optimiser": {"kind": "adamw", "learning_rate": 0.02, "ema_decay": 0.9},
}


class Lines(Task):
    """Regression of y = 2a − b + 1 from columns that no other task has; counts the calls of its hooks.

    The column `a` is augmented by a factor that the truth is augmented with as well, and `b` is derived.
    """

    name = "lines"
    needs_truth = False

    def __init__(self, dropout=0.1):
        self.dropout = dropout
        self.calls = Counter()
        self.trained, self.prepared = set(), set()

    def columns(self, events, truth):
        raise AssertionError("the data are given")

    def build(self):
        layers = torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Dropout(self.dropout), torch.nn.Linear(8, 1)
        return torch.nn.Sequential(*layers)

    def prepare(self, network, sample):
        assert sample["a"].device.type == "cpu"
        self.prepared = set(sample["number"].tolist())

    def derive(self, fold, columns):
        self.calls["derive"] += 1
        return {"b": columns["half_b"] * 2, "of_fold": torch.full_like(columns["half_b"], fold)}

    def draw(self, n, generator):
        return {"factor": 0.9 + 0.2 * torch.rand(n, generator=generator)}

    def augment(self, columns, drawn):
        return columns | {
            "a": columns["a"] * drawn["factor"],
            "y": columns["y"] + 2 * columns["a"] * (drawn["factor"] - 1),
        }

    def per_event(self, network, columns):
        pred = network(torch.stack([columns["a"], columns["b"]], 1)).squeeze(1)
        return (pred - columns["y"]).square()

    def loss(self, network, columns):
        self.calls["loss"] += 1
        self.trained |= set(columns["number"].tolist())
        return self.per_event(network, columns), None

    def metrics(self, batches):
        self.calls["metrics"] += 1
        total = weights = events = folds = 0.0
        for network, columns, weight, loss_weight in batches:
            total += float((loss_weight * self.per_event(network, columns)).sum())
            weights += float(loss_weight.sum())
            events += float(weight.sum())
            folds += float(columns["of_fold"].sum())
        return {"loss": total / weights, "events": events, "folds": folds} if weights else {}

    def finish(self, networks, validation):
        return {
            "validation": [sum(len(batch.weight) for batch in validation(i)) for i in range(len(networks))]
        }


@pytest.fixture
def lines():
    """Class of the toy task."""
    return Lines


@pytest.fixture
def line_data():
    """Factory of its data: number of folds, then columns that differ from the usual ones."""

    def make(folds=1, n=N_EVENTS, scratch=None, **changes):
        draw = torch.Generator().manual_seed(5)
        a, b = torch.randn(n, generator=draw), torch.randn(n, generator=draw)
        number = torch.arange(n)
        columns = {"a": a, "half_b": b / 2, "y": 2 * a - b + 1, "number": number}
        split = torch.where(number % 10 < 7, TRAIN, torch.where(number % 10 < 8, VALIDATION, TEST))
        if folds > 1:
            split[split == TEST] = TRAIN
        marks = {"weight": torch.ones(n), "split": split, "fold": number % folds}
        marks |= {key: changes.pop(key) for key in list(changes) if key in marks}
        return TrainingData(columns | changes, **marks, folds=folds, summary={}, scratch=scratch)

    return make


@pytest.fixture
def train_lines(lines, line_data, tmp_path):
    """Function that trains the toy task, or continues in the same folder, and returns what came out."""

    def run(task=None, data=None, folder=None, log=lambda row: None, **changes):
        folder = tmp_path / "out" if folder is None else folder
        folder.mkdir(exist_ok=True)
        settings = {**SETTINGS, **changes}
        settings["optimiser"] = SETTINGS["optimiser"] | changes.get("optimiser", {})
        options = FitConfig.model_validate(settings)
        fabric = Fabric(accelerator="cpu", devices=1)
        fabric.launch()
        paths = Paths(folder)
        session = Session(fabric, Console(quiet=True), paths, (1,), log=log)
        state = read_state(paths.state, options.model_dump(mode="json"))
        return fit(task or lines(), data or line_data(), options, session, state)

    return run


@pytest.fixture
def same_weights():
    """Whether two networks have the same weights, bit for bit."""

    def same(one, other):
        return all(
            torch.equal(a, b)
            for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )

    return same
