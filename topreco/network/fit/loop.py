"""The training loop: one for any task.

The training state is saved after every epoch, and a training that is run again with the same configuration
continues where it stopped. On the CPU it then gives the same bits as one that was never interrupted: weights,
optimisers and averages are restored, and all randomness of an epoch (order of events, augmentation, dropout)
is drawn anew from (seed, fold, epoch).
"""

import copy
import itertools
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from topreco.config import FitConfig
from topreco.core.progress import Advance, progress_bar
from topreco.network.fit.data import TrainingData, room
from topreco.network.fit.optimisers import build_optimisers, learning_rate, update_average
from topreco.network.fit.rows import Rows, sent
from topreco.network.fit.start import ENCODER, FROM_NOTHING, Start
from topreco.network.fit.state import Best, Paths, check_same, write_metrics, write_state
from topreco.network.task import Columns, Evaluated, Task, TrainingError

_EVALUATION_BATCH = 1024
_PREPARATION_EVENTS = 100_000
_CALIBRATION_EVENTS = 200_000


class Session(NamedTuple):
    """Everything around a training that does not determine what is learnt, and its seed.

    Attributes
    ----------
    fabric
        Devices and processes; launched. Where some parameters get no gradient, several processes need the
        strategy ``ddp_find_unused_parameters_true``.
    console
        Takes a line per epoch.
    paths
        Where the state and the metrics are written.
    seed
        Numbers that seed the training.
    title
        Beginning of the lines on the console.
    compile
        Compile the network with torch.
    log
        Takes the metrics of each epoch.
    """

    fabric: Fabric
    console: Console
    paths: Paths
    seed: tuple[int, ...]
    title: str = ""
    compile: bool = False
    log: Callable[[dict[str, Any]], object] = lambda row: None


class Fitted(NamedTuple):
    """A finished training.

    Attributes
    ----------
    networks
        The best network of each fold, in evaluation mode.
    best
        Metrics of their epochs.
    test
        Metrics of all test events, each seen by the network of its fold alone; empty without any.
    described
        What `Task.finish` says.
    """

    networks: list[nn.Module]
    best: list[dict[str, Any]]
    test: dict[str, float]
    described: dict[str, Any]


def fit(
    task: Task[Any],
    data: TrainingData,
    options: FitConfig,
    session: Session,
    state: dict[str, Any],
    start: Start = FROM_NOTHING,
) -> Fitted:
    """Train one network per fold, or continue with a training that was interrupted.

    Seeds torch's global generators. With several devices all processes call it alike; the first one evaluates
    and writes.

    Parameters
    ----------
    task
        What to learn.
    data
        Events with the columns of the task, on the device or on the CPU.
    options
        Length, batches and optimiser.
    session
        Devices, files and seed.
    state
        From `read_state`; kept up to date.
    start
        Weights to start with.

    Raises
    ------
    TrainingError
        If there is nothing to train on, if the data are not those with which the training began, or if the
        loss or its gradient becomes non-finite.
    """
    check_same("the training data", state["data"] or data.summary, data.summary, session.paths.folder)
    state["data"] = data.summary
    loss_weight = task.loss_weights(data.weight, data.columns)
    with warnings.catch_warnings():
        # About lgatr's cached constants, which do not change, and about tasks that use all parameters.
        for message in ("Dynamo detected a call to a `functools.lru_cache`", "find_unused_parameters=True"):
            warnings.filterwarnings("ignore", message=message)
        validation: dict[int, Sample] = {}
        for fold in range(len(state["finished"]), data.folds):
            training = _Fold(task, data, options, session, fold, loss_weight, start)
            training.train(state)
            validation[fold] = training.validation
    return _finished(task, data, session, state, loss_weight, validation)


@dataclass(frozen=True, eq=False)
class Sample:
    """Events of one split with their derived columns.

    Attributes
    ----------
    data, index
        All events, and which of them.
    derived
        Columns of `Task.derive`, of those events.
    loss_weight
        Weights in the loss, of all events.
    device
        Where batches are needed.
    """

    data: TrainingData
    index: Tensor
    derived: Columns
    loss_weight: Tensor
    device: torch.device

    def __len__(self) -> int:
        return len(self.index)

    def take(self, positions: Tensor | slice) -> Columns:
        """Columns of some of the events, on the device."""
        derived = {name: sent(column[positions], self.device) for name, column in self.derived.items()}
        return self.data.take(self.index[positions], self.device) | derived

    def batches(self, network: nn.Module) -> Iterator[Evaluated[Any]]:
        """All events in batches for evaluation."""
        for start in range(0, len(self), _EVALUATION_BATCH):
            part = slice(start, start + _EVALUATION_BATCH)
            weight, loss_weight = (
                sent(each[self.index[part]], self.device) for each in (self.data.weight, self.loss_weight)
            )
            yield Evaluated(network, self.take(part), weight, loss_weight)


@torch.no_grad()
def make_sample(
    task: Task[Any], data: TrainingData, fold: int, index: Tensor, loss_weight: Tensor, device: torch.device
) -> Sample:
    """Events of an index with the columns that the task derives for a fold."""
    bare = Sample(data, index, {}, loss_weight, device)
    rows: Rows | None = None
    with _scratch(data) as file:
        for start in range(0, len(index), _EVALUATION_BATCH):
            derived = task.derive(fold, bare.take(slice(start, start + _EVALUATION_BATCH)))
            if not derived:
                return bare
            if rows is None:
                shapes = {name: (x.dtype, tuple(x.shape[1:])) for name, x in derived.items()}
                rows = Rows(shapes, len(index), file, index.device)
            rows.append(derived)
        return bare if rows is None else Sample(data, index, rows.columns(), loss_weight, device)


@contextmanager
def _scratch(data: TrainingData) -> Iterator[Any]:
    """Temporary file if the data are in one, None if they are in memory."""
    if data.scratch is None:
        yield None
        return
    with room(data.scratch), tempfile.TemporaryFile(dir=data.scratch) as file:
        yield file


class _Fold:
    """Training of the network of one fold."""

    def __init__(
        self,
        task: Task[Any],
        data: TrainingData,
        options: FitConfig,
        session: Session,
        fold: int,
        loss_weight: Tensor,
        start: Start,
    ) -> None:
        self.task, self.options, self.session, self.fold = task, options, session, fold
        self.start = start
        self.device = session.fabric.device
        train_index, validation_index, _ = data.indices(fold)
        n = len(train_index)
        mean_weight = loss_weight[train_index].mean() if n else 0.0
        if not mean_weight > 0:
            raise TrainingError(
                f"data: no training events with weight remain for network {fold} "
                f"({len(data)} events, {n} of them in the training split)"
            )
        world = session.fabric.world_size
        self.per_device = min(options.batch_size, n) // world
        self.batch_size = self.per_device * world
        if self.per_device < options.accumulate:
            divided = f" in {options.accumulate} parts each" if options.accumulate > 1 else ""
            raise TrainingError(
                f"batch_size: {options.batch_size} events ({n} to train on) cannot be "
                f"shared by {world} devices{divided}"
            )
        # The events left over at the end of an epoch differ from epoch to epoch.
        self.steps = n // self.batch_size
        self.total_steps = self.steps * options.epochs
        # One constant, so that an event counts the same in whichever batch it falls.
        self.training = make_sample(task, data, fold, train_index, loss_weight / mean_weight, self.device)
        self.validation = make_sample(task, data, fold, validation_index, loss_weight, self.device)
        self.step, self.best = 0, Best()
        self.name = session.title + (f"network {fold + 1}/{data.folds} " if data.folds > 1 else "")

    def train(self, state: dict[str, Any]) -> None:
        """Train from where the state says to the end."""
        options, session = self.options, self.session
        first_epoch = self._build(state["current"])
        done = self.step * self.batch_size
        total = self.total_steps * self.batch_size
        title = f"{self.name}training"
        with progress_bar(
            title,
            total,
            show=not session.console.quiet,
            unit="events",
            done=done,
            transient=True,
            console=session.console,
        ) as advance:
            for epoch in range(first_epoch, options.epochs):
                if options.patience is not None and self.best.epochs_since >= options.patience:
                    break
                row = self._epoch(epoch, advance)
                # Times after `best`: a model file is the same however fast it was made.
                seconds = row.pop("seconds")
                evaluated = self.network if self.average is None else self.average
                row = self._validated(row, evaluated)
                self.best = self.best.updated(row, evaluated)
                speed = self.steps * self.batch_size / seconds
                row = row | {"seconds": seconds, "events_per_second": speed}
                state["history"].append(row)
                state["current"] = {
                    "epoch": epoch + 1,
                    "step": self.step,
                    "network": self.network.state_dict(),
                    "optimisers": [each.state_dict() for each in self.optimisers],
                    "average": None if self.average is None else self.average.state_dict(),
                    "best": vars(self.best),
                }
                if session.fabric.is_global_zero:
                    write_metrics(session.paths.metrics, state["history"])
                    write_state(session.paths.state, state)
                    session.log(row)
                    session.console.print(self._line(row))
        state["finished"].append({"weights": self.best.weights, "best": self.best.row})
        state["current"] = None

    def _build(self, saved: dict[str, Any] | None) -> int:
        """Network and optimisers, untrained or as saved after an epoch; returns the next epoch."""
        options = self.options.optimiser
        torch.manual_seed(self._seed())
        self.network = self.task.build()
        stride = math.ceil(len(self.training) / _PREPARATION_EVENTS)
        sample = self.training.take(slice(None, None, stride))
        self.task.prepare(self.network, {name: column.cpu() for name, column in sample.items()})
        # Also when the state of an epoch takes their place below: weights may be held near the loaded ones.
        loaded = self.start.load(self.fold, self.network)
        self.network.to(self.device)
        self._set_start(loaded)
        decays = self.start.toward is None
        self.optimisers = build_optimisers(options, self.network, loaded, rate=self.start.rate, decays=decays)
        self.average = None if options.ema_decay is None else copy.deepcopy(self.network)
        epoch = 0
        if saved is not None:
            self.network.load_state_dict(saved["network"])
            for optimiser, own in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(own)
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            self.step, self.best, epoch = saved["step"], Best(**saved["best"]), saved["epoch"]
        elif self.start is not FROM_NOTHING:
            self._begin(self.start.name, len(loaded))
        # A compiled module is a module, whatever torch's hints say.
        compiled = torch.compile(self.network, dynamic=False) if self.session.compile else self.network
        self.model, *self.steppers = self.session.fabric.setup(cast("nn.Module", compiled), *self.optimisers)
        return epoch

    def _set_start(self, loaded: Collection[str]) -> None:
        """Remember which weights were loaded, and those that stay for some epochs."""
        parameters = {name: p for name, p in self.network.named_parameters() if name in loaded}
        self.frozen = [p for name, p in parameters.items() if name.startswith(ENCODER)]
        self.held: list[tuple[Tensor, Tensor]] = []
        if self.start.toward:
            self.held = [(p, p.detach().clone()) for p in parameters.values()]

    def _begin(self, name: str, n_loaded: int) -> None:
        """Count the loaded weights as the best so far: training on few events may only make them worse."""
        row: dict[str, Any] = {"fold": self.fold, "epoch": -1, "step": 0, "learning_rate": 0.0}
        row = self._validated(row | {"train_loss": math.nan}, self.network)
        if len(self.validation):
            self.best = self.best.updated(row, self.network)
        n = len(list(self.network.parameters()))
        self.session.console.print(
            f"{self.name}starts from {name}: {n_loaded} of {n} tensors of weights{self._of_validation(row)}"
        )

    def _epoch(self, epoch: int, advance: Advance) -> dict[str, Any]:
        """Train for an epoch and return its metrics, without those of the validation."""
        options = self.options.optimiser
        self.model.train()
        started, train_loss = time.perf_counter(), 0.0
        for parts in self._batches(epoch):
            rate = learning_rate(self.step, self.total_steps, options)
            for group in itertools.chain(*(each.param_groups for each in self.optimisers)):
                group["lr"] = rate * group.get("rate_factor", 1.0)
            self.network.zero_grad(set_to_none=True)
            value = self._backward(parts)
            where = f"in step {self.step} (epoch {epoch}, network {self.fold})"
            if not math.isfinite(value):
                raise TrainingError(f"loss is {value} {where}")
            if epoch < self.start.frozen_epochs:
                # Without a gradient optimisers leave them alone, and so does weight decay.
                for parameter in self.frozen:
                    parameter.grad = None
            self._clip(where)
            for stepper in self.steppers:
                stepper.step()
            self._hold(rate)
            if self.average is not None:
                update_average(self.average, self.network, self.step, options.ema_decay or 0.0)
            self.step += 1
            train_loss += value / self.steps
            advance(self.batch_size, f"epoch {epoch + 1}/{self.options.epochs}, loss {value:.4f}")
        return {
            "fold": self.fold,
            "epoch": epoch,
            "step": self.step,
            "learning_rate": learning_rate(self.step - 1, self.total_steps, options),
            "train_loss": train_loss,
            "seconds": time.perf_counter() - started,
        }

    def _validated(self, row: dict[str, Any], network: nn.Module) -> dict[str, Any]:
        """Metrics of an epoch with those of the validation events, the same on all ranks."""
        if self.session.fabric.is_global_zero:
            with evaluation(network):
                found = self.task.metrics(self.validation.batches(network))
            row = row | {f"validation_{key}": value for key, value in found.items()}
        row = self.session.fabric.broadcast(row)
        if len(self.validation) and not math.isfinite(row["validation_loss"]):
            raise TrainingError(
                f"validation loss is {row['validation_loss']} after step {row['step']} (epoch "
                f"{row['epoch']}, network {self.fold})"
            )
        return row

    def _seed(self, *parts: int) -> int:
        entropy = (*self.session.seed, self.fold, *parts)
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0])

    def _batches(self, epoch: int) -> Iterator[list[tuple[Columns, Tensor]]]:
        """For each step the columns and loss weights of this device's events, in parts to accumulate."""
        fabric = self.session.fabric
        home = self.training.index.device
        # The ranks draw the same order and augmentation but must not share their dropout.
        draw = torch.Generator().manual_seed(self._seed(epoch))
        torch.manual_seed(self._seed(epoch, fabric.global_rank))
        n = len(self.training)
        order = torch.randperm(n, generator=draw).to(home)
        drawn = {name: column.to(home) for name, column in self.task.draw(n, draw).items()}
        for start in range(0, self.steps * self.batch_size, self.batch_size):
            ends = start + fabric.global_rank, start + self.batch_size, fabric.world_size
            parts = torch.arange(*ends, device=home).tensor_split(self.options.accumulate)
            yield [self._part(order, drawn, part) for part in parts]

    def _part(self, order: Tensor, drawn: Columns, part: Tensor) -> tuple[Columns, Tensor]:
        positions = order[part]
        columns = self.training.take(positions)
        own = {name: sent(column[part], self.device) for name, column in drawn.items()}
        weight = sent(self.training.loss_weight[self.training.index[positions]], self.device)
        return self.task.augment(columns, own), weight

    def _backward(self, parts: list[tuple[Columns, Tensor]]) -> float:
        """Add up the gradients of a batch's parts, in a part's memory, and return the loss."""
        fabric = self.session.fabric
        summed = torch.zeros((), device=self.device)
        for number, (columns, weight) in enumerate(parts):
            with fabric.no_backward_sync(self.model, enabled=number < len(parts) - 1):
                per_event, per_batch = self.task.loss(self.model, columns)
                loss = (weight * per_event).mean()
                if per_batch is not None:
                    loss = loss + per_batch
                loss = loss * (len(weight) / self.per_device)
                fabric.backward(loss)
            summed += loss.detach()
        # The same number on all ranks, so that all continue or all stop.
        return float(cast("Tensor", fabric.all_reduce(summed, reduce_op="mean")))

    def _hold(self, rate: float) -> None:
        """Decay the loaded weights toward what they were."""
        if not self.held:
            return
        share = rate * self.start.rate * (self.start.toward or 0.0)
        with torch.no_grad():
            torch._foreach_lerp_([p for p, _ in self.held], [first for _, first in self.held], share)

    def _clip(self, where: str) -> None:
        largest = self.options.optimiser.clip_norm
        if largest is None:
            return
        norm = self.session.fabric.clip_gradients(
            self.model, self.steppers[0], max_norm=largest, error_if_nonfinite=False
        )
        if norm is not None and not torch.isfinite(norm):
            raise TrainingError(f"gradient is {float(norm)} {where}")

    def _line(self, row: dict[str, Any]) -> str:
        return (
            f"{self.name}epoch {row['epoch'] + 1}/{self.options.epochs}: loss {row['train_loss']:.4f}"
            f"{self._of_validation(row)}; {row['events_per_second']:,.0f} events/s"
        )

    def _of_validation(self, row: dict[str, Any]) -> str:
        """The part of a line about validation metrics, empty without any."""
        prefix = "validation_"
        validation = {key.removeprefix(prefix): v for key, v in row.items() if key.startswith(prefix)}
        return f"; validation: {self.task.describe(validation)}" if validation else ""


def _finished(
    task: Task[Any],
    data: TrainingData,
    session: Session,
    state: dict[str, Any],
    loss_weight: Tensor,
    known: Mapping[int, Sample],
) -> Fitted:
    """The best networks, completed, and their metrics: the same on all ranks, none of which waits.

    `known` are the validation events of folds whose columns were derived for their training.
    """
    device = session.fabric.device
    networks = []
    for finished in state["finished"]:
        network = task.build()
        network.load_state_dict(finished["weights"])
        networks.append(network.to(device).eval())

    def validation(fold: int) -> Iterator[Evaluated[Any]]:
        index = data.indices(fold)[1]
        stride = math.ceil(max(len(index), 1) / _CALIBRATION_EVENTS)
        if stride == 1 and fold in known:
            return known[fold].batches(networks[fold])
        return make_sample(task, data, fold, index[::stride], loss_weight, device).batches(networks[fold])

    def test() -> Iterator[Evaluated[Any]]:
        for fold, network in enumerate(networks):
            index = data.indices(fold)[2]
            yield from make_sample(task, data, fold, index, loss_weight, device).batches(network)

    with torch.no_grad():
        described = task.finish(networks, validation)
        return Fitted(networks, [part["best"] for part in state["finished"]], task.metrics(test()), described)


@contextmanager
def evaluation(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode, without gradients."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(training)
