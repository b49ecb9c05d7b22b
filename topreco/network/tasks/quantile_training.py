"""Train and calibrate the quantiles of networks whose tops are trained already and stay as they are."""

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from topreco.config import QuantilesConfig, TrainConfig
from topreco.core import fourvector
from topreco.core.events import QUANTILE_LEVELS
from topreco.core.files import writable_folder
from topreco.network.fit.data import TrainingData, TrainingError, read_training_data, room
from topreco.network.fit.rows import Rows, sent
from topreco.network.model_file import Artefact, save_artefact
from topreco.network.splits import VALIDATION
from topreco.network.tasks.losses import loss_weights
from topreco.network.tasks.quantiles import QuantileNetwork, fit_calibration, pinball_loss
from topreco.network.tasks.tops import TopNetwork, build_network
from topreco.network.tokens import Objects

_EVALUATION_BATCH = 1024
# Their coverage is known to 1.2 %.
_CALIBRATION_EVENTS = 1500
_STANDARDISATION_EVENTS = 100_000
_CLIP_NORM = 1.0
_SHORTEST_SCHEDULE = 20
# Of the seeds: apart from all epochs of the tops.
_STREAM = 1_000_003


class _Batch(NamedTuple):
    """Events with what a network of tops says of them, and the truth in the scale of the quantiles."""

    objects: Objects
    p4: Tensor
    truth: Tensor
    weight: Tensor


@dataclass(frozen=True, eq=False)
class _Sample:
    """Events that are taken in batches, more than once.

    Attributes
    ----------
    data, index
        The events, and which of them.
    weight
        Of those, shape (n,).
    columns
        ``p4`` and ``truth`` of `_Batch`.
    exchanged
        Whether charges are exchanged.
    device
        Where batches are needed.
    """

    data: TrainingData
    index: Tensor
    weight: Tensor
    columns: dict[str, Tensor]
    exchanged: bool
    device: torch.device

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: Tensor | slice) -> _Batch:
        """Some of the events."""
        objects = Objects(*(sent(column[self.index[index]], self.device) for column in self.data.objects))
        if self.exchanged:
            objects = objects.charge_exchanged()
        p4, truth, weight = (
            sent(column[index], self.device)
            for column in (self.columns["p4"], self.columns["truth"], self.weight)
        )
        return _Batch(objects, p4, truth, weight)

    def batches(self) -> Iterator[_Batch]:
        """All events in batches that evaluation can take."""
        for start in range(0, len(self), _EVALUATION_BATCH):
            yield self.take(slice(start, start + _EVALUATION_BATCH))


def add_quantiles(
    artefact: Artefact,
    config: TrainConfig,
    output: str | Path,
    *,
    calibrate_only: bool = False,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Write a model with quantiles, from one without, or with those of a model calibrated anew.

    Parameters
    ----------
    artefact
        The model; its tops stay as they are.
    config
        `data`, and, to train, `model.quantiles` (the default ones if null), `quantiles`, seed and
        augmentation. To train, the data must be those of the model's own training with the same splits. To
        calibrate, all events count, or the validation events alone if the model was trained on one of the
        datasets, with whatever selection.
    output
        Model file to write.
    calibrate_only
        Keep the quantiles that the model has, and calibrate them on the data.
    report
        Takes a line per epoch.

    Returns
    -------
    metadata
        What the file says of the quantiles.

    Raises
    ------
    TrainingError
        If the data cannot be trained on, or there are no quantiles to calibrate.
    TopRecoError
        If a skim cannot be read or the file not be written.
    """
    writable_folder(Path(output).parent)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    changes: dict[str, Any] = {"folds": len(artefact.networks)}
    if calibrate_only:
        # What was set apart for validation is so by the fractions of the training.
        trained = artefact.metadata.get("training", {}).get("data", {})
        fractions = ("validation_fraction", "test_fraction")
        changes |= {name: trained[name] for name in fractions if name in trained}
    data = read_training_data(config.data.model_copy(update=changes), Path(output).parent)
    described: dict[str, Any] = {"data": data.summary}
    if calibrate_only:
        networks = list(copy.deepcopy(artefact.networks))
        known = set(artefact.metadata.get("data", {}).get("dataset_ids", ()))
        seen = bool(known.intersection(data.summary["dataset_ids"]))
        n_events = recalibrate(networks, data, config, validation_only=seen)
        calibration = {"files": data.summary["files"], "events": n_events, "validation_only": seen}
        # The coverage was that of another calibration.
        before = {k: v for k, v in artefact.metadata.get("quantiles", {}).items() if k != "test"}
        described = before | {"calibration": calibration}
    else:
        model = config.model.model_copy(update={"quantiles": config.model.quantiles or QuantilesConfig()})
        config = config.model_copy(update={"model": model})
        networks, metadata = train_quantiles(artefact.networks, data, config, report=report)
        described |= {"training": config.quantiles.model_dump(mode="json")} | metadata
    save_artefact(output, networks, artefact.metadata | {"quantiles": described})
    return described


def train_quantiles(
    networks: Sequence[TopNetwork],
    data: TrainingData,
    config: TrainConfig,
    *,
    report: Callable[[str], object] = print,
) -> tuple[list[TopNetwork], dict[str, Any]]:
    """Give trained networks quantiles: train them, and calibrate them on the validation events.

    Parameters
    ----------
    networks
        One network of tops per fold; they are not changed.
    data
        The data that they were trained on, on one device.
    config
        `model.quantiles`, `quantiles`, seed and augmentation.
    report
        Takes a line per epoch.

    Returns
    -------
    networks
        The same tops, with quantiles, in evaluation mode.
    metadata
        For the model file: ``test`` is the `coverage` of the test events.

    Raises
    ------
    TrainingError
        If there are no validation events, or the loss becomes non-finite.
    """
    trained = []
    for fold, tops in enumerate(networks):
        train_index, validation_index, _ = data.indices(fold)
        if len(validation_index) == 0:
            raise TrainingError("data.validation_fraction: no validation events, which quantiles need")
        torch.manual_seed(_seed(config.seed, fold))
        quantiles_config = tops.config.model_copy(update={"quantiles": config.model.quantiles})
        network = build_network(quantiles_config).to(next(tops.parameters()).device)
        own = {
            name: tensor for name, tensor in tops.state_dict().items() if not name.startswith("quantiles.")
        }
        network.load_state_dict(network.state_dict() | own)
        quantiles = _own(network)
        weight = loss_weights(data.weight, config.loss.negative_weights)
        stride = math.ceil(len(train_index) / _STANDARDISATION_EVENTS)
        train = _sample(network, data, train_index, weight)
        some = train.take(slice(None, None, stride))
        quantiles.fit_scales(some.objects, some.p4, some.truth)
        variants = [train]
        if config.augment_charge_exchange:
            variants.append(_sample(network, data, train_index, weight, exchanged=True))
        validation = _sample(network, data, validation_index, weight)
        name = f"network {fold + 1}/{len(networks)} " if len(networks) > 1 else ""
        _train(quantiles, variants, validation, config, fold, name, report)
        calibrate(network, validation)
        trained.append(network.eval())
    return trained, {"test": coverage(trained, data)}


def _train(
    quantiles: QuantileNetwork,
    variants: Sequence[_Sample],
    validation: _Sample,
    config: TrainConfig,
    fold: int,
    name: str,
    report: Callable[[str], object],
) -> None:
    """Minimise the pinball loss; keep the weights of the best epoch."""
    options = config.quantiles
    n = len(variants[0])
    batch_size = min(options.batch_size, n)
    steps = n // batch_size
    optimiser = torch.optim.AdamW(
        quantiles.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    # OneCycleLR divides by zero if its first phase is a single step.
    total_steps = max(options.epochs * steps, _SHORTEST_SCHEDULE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=total_steps, pct_start=0.1
    )
    mean_weight = variants[0].weight.mean()
    best, best_weights = math.inf, quantiles.state_dict()
    for epoch in range(options.epochs):
        draw = torch.Generator().manual_seed(_seed(config.seed, fold, epoch))
        order = torch.randperm(n, generator=draw)
        variant = torch.randint(len(variants), (steps,), generator=draw).tolist()
        quantiles.train()
        total = 0.0
        for step in range(steps):
            index = order[step * batch_size : (step + 1) * batch_size].to(mean_weight.device)
            batch = variants[variant[step]].take(index)
            loss = _loss(quantiles, batch, batch.weight / mean_weight)
            if not loss.isfinite():
                raise TrainingError(f"quantiles: loss is {loss.item()} in epoch {epoch} (network {fold})")
            quantiles.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(quantiles.parameters(), _CLIP_NORM)
            optimiser.step()
            schedule.step()
            total += loss.item() / steps
        now = _mean_loss(quantiles, validation)
        progress = f"{name}quantiles, epoch {epoch + 1}/{options.epochs}"
        report(f"{progress}: pinball loss {total:.4f}; validation {now:.4f}")
        if now < best:
            best = now
            best_weights = {key: value.clone() for key, value in quantiles.state_dict().items()}
    quantiles.load_state_dict(best_weights)


def _loss(quantiles: QuantileNetwork, batch: _Batch, weight: Tensor) -> Tensor:
    residual = batch.truth - quantiles.values(batch.objects, batch.p4, batch.p4)
    u = quantiles.residual_quantiles(batch.objects, batch.p4)
    return (weight * pinball_loss(u, residual, quantiles.unit).mean(1)).mean()


@torch.no_grad()
def _mean_loss(quantiles: QuantileNetwork, sample: _Sample) -> float:
    quantiles.eval()
    losses = [_loss(quantiles, batch, batch.weight) * len(batch.weight) for batch in sample.batches()]
    return float(torch.stack(losses).double().sum() / sample.weight.double().sum())


def calibrate(network: TopNetwork, sample: _Sample) -> None:
    """Correct a network's quantiles on events that it was not trained on."""
    quantiles = _own(network)
    n_bins = max(1, min(len(quantiles.knots), len(sample) // _CALIBRATION_EVENTS))
    network.eval()
    shape = (len(quantiles.unit), len(QUANTILE_LEVELS))
    masses = []
    with (
        _rows({"u": shape, "residual": shape[:1]}, len(sample), sample.data.scratch) as rows,
        torch.no_grad(),
    ):
        for batch in sample.batches():
            u = quantiles.residual_quantiles(batch.objects, batch.p4)
            residual = batch.truth - quantiles.values(batch.objects, batch.p4, batch.p4)
            rows.append({"u": u, "residual": residual})
            masses.append(fourvector.mass(batch.p4.sum(1)).log())
        columns = rows.columns()
    arrays = (x.double().cpu().numpy() for x in (sample.weight, torch.cat(masses)))
    found = fit_calibration(columns["u"].numpy(), columns["residual"].numpy(), *arrays, n_bins=n_bins)
    quantiles.set_calibration(found)


def recalibrate(
    networks: Sequence[TopNetwork],
    data: TrainingData,
    config: TrainConfig,
    *,
    validation_only: bool = False,
) -> int:
    """Calibrate trained quantiles anew.

    Parameters
    ----------
    networks
        One network per fold, each calibrated on the events of its fold; changed in place.
    data
        Events that the networks were not trained on.
    config
        `loss.negative_weights`.
    validation_only
        Use the validation events alone, which the networks were not trained on, instead of all.

    Returns
    -------
    n_events
        Number of events used.

    Raises
    ------
    TrainingError
        If a network has no quantiles or no events.
    """
    n_events = 0
    weight = loss_weights(data.weight, config.loss.negative_weights)
    for fold, network in enumerate(networks):
        if network.quantiles is None:
            raise TrainingError("recalibrate: the model has no quantiles; `topreco quantiles` adds them")
        own = torch.ones_like(data.fold, dtype=torch.bool) if len(networks) == 1 else data.fold == fold
        if validation_only:
            own = data.split == VALIDATION
            own &= data.fold != fold if len(networks) > 1 else True
        index = own.nonzero().squeeze(1)
        if not weight[index].sum() > 0:
            raise TrainingError(f"recalibrate: no events with weight for network {fold}")
        calibrate(network, _sample(network, data, index, weight))
        n_events += len(index)
    return n_events


def coverage(networks: Sequence[TopNetwork], data: TrainingData) -> dict[str, Any]:
    """How often the truth lies within the intervals of the test events, with signed weights.

    Returns
    -------
    metrics
        By observable: ``coverage68`` and ``coverage95``, and ``pinball``, the mean pinball loss in the unit
        of training. Empty without test events.
    """
    indices = [data.indices(fold)[2] for fold in range(len(networks))]
    total = sum(float(data.weight[index].double().sum()) for index in indices)
    if not any(map(len, indices)):
        return {}
    names = _own(networks[0]).observables
    n_targets = len(_own(networks[0]).unit)
    covered, loss = np.zeros((n_targets, 2)), np.zeros(n_targets)
    for network, index in zip(networks, indices, strict=True):
        quantiles = _own(network)
        for batch in _batches(network, data, index, data.weight):
            with torch.no_grad():
                u = quantiles.calibrated_quantiles(batch.objects, batch.p4)
                residual = batch.truth - quantiles.values(batch.objects, batch.p4, batch.p4)
                above = residual[..., None] > u
                inside = torch.stack([above[..., i] & ~above[..., -1 - i] for i in (1, 0)], -1)
                weight = batch.weight.double() / total
                covered += (weight[:, None, None] * inside).sum(0).cpu().numpy()
                loss += (weight[:, None] * pinball_loss(u, residual, quantiles.unit)).sum(0).cpu().numpy()
    return {
        name: {
            "coverage68": float(covered[i, 0]),
            "coverage95": float(covered[i, 1]),
            "pinball": float(loss[i]),
        }
        for i, name in enumerate(names)
    }


@torch.no_grad()
def _sample(
    network: TopNetwork, data: TrainingData, index: Tensor, weight: Tensor, *, exchanged: bool = False
) -> _Sample:
    """Events of some indices as the network of tops sees them, with charges exchanged if asked for."""
    device = next(network.parameters()).device
    shapes = {"p4": (2, 4), "truth": (len(_own(network).unit),)}
    with _rows(shapes, len(index), data.scratch, weight.device) as rows:
        for batch in _batches(network, data, index, weight, exchanged=exchanged):
            rows.append({"p4": batch.p4, "truth": batch.truth})
        columns = rows.columns()
    return _Sample(data, index, weight[index], columns, exchanged, device)


@torch.no_grad()
def _batches(
    network: TopNetwork, data: TrainingData, index: Tensor, weight: Tensor, *, exchanged: bool = False
) -> Iterator[_Batch]:
    """Events of some indices in batches, and what the network of tops says of them now."""
    quantiles = _own(network)
    device = next(network.parameters()).device
    network.eval()
    for start in range(0, len(index), _EVALUATION_BATCH):
        part = index[start : start + _EVALUATION_BATCH]
        objects, tops, spin = data.take(part, device)
        if exchanged:
            objects, tops = objects.charge_exchanged(), tops.flip(1)
        p4 = network(objects)
        values = quantiles.values(objects, tops, p4)
        if "c_hel" in quantiles.observables:
            # That of the true leptons, which charge exchange leaves as it is.
            values[:, quantiles.observables.index("c_hel")] = spin
        yield _Batch(objects, p4, values, sent(weight[part], device))


@contextmanager
def _rows(
    shapes: Mapping[str, tuple[int, ...]],
    n: int,
    scratch: Path | None,
    device: torch.device | str = "cpu",
) -> Iterator[Rows]:
    """Columns to write and then read: in a folder of temporary files, or in memory if there is none."""
    typed = {name: (torch.float32, shape) for name, shape in shapes.items()}
    if scratch is None:
        yield Rows(typed, n, device=device)
        return
    with room(scratch), tempfile.TemporaryFile(dir=scratch) as file:
        yield Rows(typed, n, file)


def _own(network: TopNetwork) -> QuantileNetwork:
    if network.quantiles is None:
        raise ValueError("a network with quantiles expected")
    return network.quantiles


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence((_STREAM, *parts)).generate_state(1, np.uint64)[0])
