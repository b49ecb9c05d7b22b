"""Train networks: one loop, from skims to a model file.

The training state is saved after every epoch, and a training that is run again with the same configuration
goes on where it stopped. On the CPU it then gives the same bits as one that was never interrupted: weights,
optimiser and averages are restored, and all randomness of an epoch (order of events, augmentation, dropout)
is drawn anew from (seed, fold, epoch). Where its data are, `topreco.network.fit.data` says.
"""

import copy
import csv
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from topreco.config import LossConfig, ModelConfig, OptimiserConfig, TrainConfig
from topreco.core import fourvector
from topreco.core.errors import needs_extra
from topreco.core.events import BoolArray, FloatArray
from topreco.core.files import complete_file, writable_folder, write_text
from topreco.core.observables import m_tt
from topreco.network.fit.data import (
    TrainingData,
    TrainingError,
    augment,
    read_training_data,
    share_training_data,
)
from topreco.network.fit.muon import Muon
from topreco.network.fit.rows import sent, slices
from topreco.network.model_file import save_artefact
from topreco.network.tasks.losses import event_loss, flattening_weights, loss_weights, m_tt_bias_loss
from topreco.network.tasks.quantile_training import train_quantiles
from topreco.network.tasks.tops import TopNetwork, build_network
from topreco.network.tokens import Objects

__all__ = ["MAY_DIFFER", "TrainingError", "learning_rate", "pair_metrics", "train"]

MODEL_FILE = "model.safetensors"
STATE_FILE = "state.ckpt"
_STATE_VERSION = 2
# Where and how fast a training runs is not what is trained.
MAY_DIFFER = {"output", "accelerator", "devices", "threads", "mlflow"}
"""Keys that may change when a training resumes."""
WHERE_DATA_ARE = {"stream", "cache"}
"""Keys of `data` of which the same holds; no model file has them."""
_EVALUATION_BATCH = 1024
_STANDARDISATION_EVENTS = 100_000


def train(config: TrainConfig, *, progress: bool = True, restart: bool = False) -> Path:
    """Train the networks of a configuration, or go on with a training that was interrupted.

    Seeds torch's global generators. With several devices each process reads the data, or the first one of
    each machine if they are streamed; the first of all evaluates and writes.

    Parameters
    ----------
    config
        Everything that determines the training.
    progress
        Show a progress bar and a line per epoch on standard error.
    restart
        Discard what an earlier training left in the output folder.

    Returns
    -------
    path
        The model file, ``<output>/model.safetensors``. Beside it lie ``metrics.jsonl``, ``metrics.csv``
        and ``state.ckpt``.

    Raises
    ------
    TrainingError
        If the data cannot be trained on, if the output folder holds another training, or if the loss or
        its gradient becomes non-finite.
    TopRecoError
        If a skim cannot be read or the output folder not be written.
    """
    tracker = _MLflow() if config.mlflow else None
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    output = writable_folder(config.output)
    fabric = _launch(config)
    # Soft wrapping keeps an epoch's line whole in the log of a batch job.
    console = Console(
        stderr=True, quiet=not (progress and fabric.is_global_zero), highlight=False, soft_wrap=True
    )
    if restart:
        # Nobody may look for a state before it is gone.
        if fabric.is_global_zero:
            for name in (STATE_FILE, MODEL_FILE, "metrics.jsonl", "metrics.csv"):
                (output / name).unlink(missing_ok=True)
        fabric.barrier()
    state = _read_state(config)
    path = output / MODEL_FILE
    if state["complete"] and path.is_file():
        console.print(f"{path}: already trained")
        return path
    data = _read_data(config, fabric)
    _check_same("the training data", state["data"] or data.summary, data.summary, output)
    state["data"] = data.summary
    if config.loss.c_hel > 0 and not data.c_hel.isfinite().any():
        raise TrainingError(
            f"loss.c_hel: {config.loss.c_hel} found, but no event of data.files has both true leptons"
        )
    data = _placed(data, fabric.device)
    fabric.barrier()

    writes = fabric.is_global_zero
    tracking = _tracking(tracker if writes else None, config, state)
    with _progress_bar(console) as bar, tracking as log, warnings.catch_warnings():
        # Of lgatr's cached constants, which do not change.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")
        unscaled = _loss_weights(data, config.loss)
        for fold in range(len(state["finished"]), config.data.folds):
            train_index, validation_index, _ = data.indices(fold)
            mean_weight = unscaled[train_index].mean() if len(train_index) else 0.0
            if not mean_weight > 0:
                raise TrainingError(
                    f"data: no training events with weight remain for network {fold} "
                    f"({len(data)} events, {len(train_index)} of them in the training split)"
                )
            # One constant, so that an event counts the same in whichever batch it falls.
            weights = unscaled / mean_weight
            per_device = min(config.batch_size, len(train_index)) // fabric.world_size
            batch_size = per_device * fabric.world_size
            if per_device < config.accumulate:
                divided = f" in {config.accumulate} parts each" if config.accumulate > 1 else ""
                raise TrainingError(
                    f"batch_size: {config.batch_size} events ({len(train_index)} to train on) cannot be "
                    f"shared by {fabric.world_size} devices{divided}"
                )
            # What is left over at the end of an epoch differs from epoch to epoch.
            steps = len(train_index) // batch_size
            total_steps = steps * config.epochs

            torch.manual_seed(_seed(config.seed, fold))
            network = build_network(_tops_alone(config))
            stride = math.ceil(len(train_index) / _STANDARDISATION_EVENTS)
            network.fit_standardisation(data.objects.take(train_index[::stride]).to("cpu"))
            network.to(fabric.device)
            optimisers = _optimisers(config.optimiser, network, total_steps)
            average = copy.deepcopy(network) if _uses_average(config.optimiser) else None
            first_epoch, step, best = 0, 0, _Best()
            if state["current"] is not None:
                first_epoch, step, best = _restore(state["current"], network, optimisers, average)
            # A compiled module is a module, whatever torch's hints say.
            runs = cast("TopNetwork", torch.compile(network, dynamic=False)) if config.compile else network
            model, *steppers = fabric.setup(runs, *optimisers)
            evaluated = network if average is None else average
            task = bar.add_task("", total=total_steps, completed=step, loss="", rate="")

            for epoch in range(first_epoch, config.epochs):
                if config.patience is not None and best.epochs_since >= config.patience:
                    break
                bar.update(task, description=f"{_name(fold, config)}epoch {epoch + 1}/{config.epochs}")
                # The ranks draw the same order and augmentation but must not share their dropout.
                draw = torch.Generator().manual_seed(_seed(config.seed, fold, epoch))
                torch.manual_seed(_seed(config.seed, fold, epoch, fabric.global_rank))
                home = train_index.device
                order = train_index[torch.randperm(len(train_index), generator=draw).to(home)]
                angle = reflect = exchange = None
                if config.augment_rotation:
                    angle = (2 * math.pi * torch.rand(len(order), generator=draw)).to(home)
                if config.augment_reflection:
                    reflect = (torch.rand(len(order), generator=draw) < 0.5).to(home)
                if config.augment_charge_exchange:
                    exchange = (torch.rand(len(order), generator=draw) < 0.5).to(home)

                model.train()
                _schedulefree_mode(optimisers, training=True)
                started, train_loss = time.perf_counter(), 0.0
                for start in range(0, steps * batch_size, batch_size):
                    ends = start + fabric.global_rank, start + batch_size, fabric.world_size
                    mine = torch.arange(*ends, device=home)
                    rate = learning_rate(step, total_steps, config.optimiser)
                    for group in itertools.chain(*(each.param_groups for each in optimisers)):
                        group["lr"] = rate
                    network.zero_grad(set_to_none=True)
                    # Gradients of the parts add up to that of the batch, in a part's memory.
                    parts = mine.tensor_split(config.accumulate)
                    summed = torch.zeros((), device=fabric.device)
                    for number, part in enumerate(parts):
                        batch = order[part]
                        objects, tops, spin = data.take(batch, fabric.device)
                        drawn = [
                            None if each is None else sent(each[part], fabric.device)
                            for each in (angle, reflect, exchange)
                        ]
                        if any(each is not None for each in drawn):
                            objects, tops = augment(objects, tops, *drawn)
                        with fabric.no_backward_sync(model, enabled=number < len(parts) - 1):
                            pred = model(objects).float()
                            leptons, scale = _leptons(objects), network.scale(objects)
                            per_event = event_loss(pred, tops, scale, config.loss, leptons, spin)
                            loss = (sent(weights[batch], fabric.device) * per_event).mean()
                            if config.loss.m_tt_bias > 0:
                                loss = loss + config.loss.m_tt_bias * m_tt_bias_loss(pred, tops)
                            loss = loss * (len(part) / per_device)
                            fabric.backward(loss)
                        summed += loss.detach()
                    # The same number on all ranks, so that all go on or all stop.
                    value = float(cast("Tensor", fabric.all_reduce(summed, reduce_op="mean")))
                    if not math.isfinite(value):
                        raise TrainingError(f"loss is {value} in step {step} (epoch {epoch}, network {fold})")
                    if config.optimiser.clip_norm is not None:
                        norm = fabric.clip_gradients(
                            model,
                            steppers[0],
                            max_norm=config.optimiser.clip_norm,
                            error_if_nonfinite=False,
                        )
                        if norm is not None and not torch.isfinite(norm):
                            raise TrainingError(
                                f"gradient is {float(norm)} in step {step} (epoch {epoch}, network {fold})"
                            )
                    for stepper in steppers:
                        stepper.step()
                    if average is not None:
                        _update_average(average, network, step, config.optimiser)
                    step += 1
                    train_loss += value / steps
                    seconds = time.perf_counter() - started
                    speed = (start // batch_size + 1) * batch_size / seconds
                    bar.update(task, completed=step, loss=f"{value:.4f}", rate=f"{speed:,.0f}")

                _schedulefree_mode(optimisers, training=False)
                row: dict[str, Any] = {
                    "fold": fold,
                    "epoch": epoch,
                    "step": step,
                    "learning_rate": learning_rate(step - 1, total_steps, config.optimiser),
                    "train_loss": train_loss,
                }
                if writes:
                    row |= {
                        f"validation_{key}": number
                        for key, number in _evaluate(
                            evaluated, data, validation_index, unscaled, config
                        ).items()
                    }
                row = fabric.broadcast(row)
                if len(validation_index) and not math.isfinite(row["validation_loss"]):
                    raise TrainingError(
                        f"validation loss is {row['validation_loss']} after step {step} (epoch {epoch}, "
                        f"network {fold})"
                    )
                best = best.updated(row, evaluated)
                _schedulefree_mode(optimisers, training=True)
                # Times after `best`: a model file is the same however fast it was made.
                row = row | {"seconds": seconds, "events_per_second": steps * batch_size / seconds}
                state["history"].append(row)
                state["current"] = {
                    "epoch": epoch + 1,
                    "step": step,
                    "network": network.state_dict(),
                    "optimisers": [each.state_dict() for each in optimisers],
                    "average": None if average is None else average.state_dict(),
                    "best": vars(best),
                }
                if writes:
                    _write_metrics(output, state["history"])
                    _write_state(output, state)
                    log(row)
                    console.print(_line(row, config))

            state["finished"].append({"weights": best.weights, "best": best.row})
            state["current"] = None
            bar.remove_task(task)

        if writes:
            networks, test = _finish(config, data, unscaled, state, fabric.device)
            metadata = {
                "training": _config_data(config) | {"output": config.output.name},
                "data": data.summary,
                "metrics": {"best": [part["best"] for part in state["finished"]], "test": test},
            }
            if config.model.quantiles is not None:
                networks, metadata["quantiles"] = train_quantiles(
                    networks, data, config, report=console.print
                )
            save_artefact(path, networks, metadata)
            # The weights of the epochs before are of no more use.
            state["complete"] = True
            _write_metrics(output, state["history"])
            _write_state(output, state)
            if tracker is not None:
                tracker.finish(path, test)
            console.print(f"{path}: trained" + _described(test, "; test:"))
    fabric.barrier()
    return path


# ---- learning --------------------------------------------------------------------------------------------


def learning_rate(step: int, total_steps: int, config: OptimiserConfig) -> float:
    """Learning rate of a step.

    Parameters
    ----------
    step
        Number of steps before this one.
    total_steps
        Steps of the whole training.
    config
        Schedule: a linear rise, then a constant or a quarter period of a cosine down to zero. ScheduleFree
        has its own warm-up and no schedule.

    Returns
    -------
    rate
        Learning rate.
    """
    if config.kind == "schedulefree":
        return config.learning_rate
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _optimisers(config: OptimiserConfig, network: nn.Module, total_steps: int) -> list[torch.optim.Optimizer]:
    # Decay pulls matrices towards simplicity; biases and norms it would only shift.
    named = dict(network.named_parameters())
    matrices = {name: p for name, p in named.items() if p.ndim >= 2}
    vectors = [p for p in named.values() if p.ndim < 2]
    # Muon is for matrices between hidden layers; what leads in and out of the network is AdamW's.
    hidden = {
        name: p
        for name, p in matrices.items()
        if config.kind == "muon" and ".blocks." in name and ".norm" not in name and p.ndim == 2
    }
    groups = [
        {
            "params": [p for name, p in matrices.items() if name not in hidden],
            "weight_decay": config.weight_decay,
        },
        {"params": vectors, "weight_decay": 0.0},
    ]
    if config.kind == "schedulefree":
        warmup = round(config.warmup * total_steps)
        return [AdamWScheduleFree(groups, lr=config.learning_rate, warmup_steps=warmup)]
    adamw = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    if config.kind == "adamw":
        return [adamw]
    muon = Muon(
        hidden.values(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


def _schedulefree_mode(optimisers: Sequence[torch.optim.Optimizer], *, training: bool) -> None:
    """Exchange the weights at which ScheduleFree takes gradients for those that it recommends, or back."""
    for optimiser in optimisers:
        if isinstance(optimiser, AdamWScheduleFree):
            optimiser.train() if training else optimiser.eval()


def _uses_average(config: OptimiserConfig) -> bool:
    # ScheduleFree's weights are averages already.
    return config.ema_decay is not None and config.kind != "schedulefree"


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, step: int, config: OptimiserConfig) -> None:
    """Exponential moving average of the weights, quick at first to forget the random initial ones."""
    decay = min(config.ema_decay or 0.0, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class _Best:
    """The best epoch so far: by validation loss, or the latest where there are no validation events."""

    def __init__(
        self,
        loss: float = math.inf,
        epochs_since: int = 0,
        row: dict[str, Any] | None = None,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self.loss, self.epochs_since, self.row, self.weights = loss, epochs_since, row, weights

    def updated(self, row: dict[str, Any], network: nn.Module) -> "_Best":
        loss = row.get("validation_loss", math.nan)
        if loss >= self.loss:
            return _Best(self.loss, self.epochs_since + 1, self.row, self.weights)
        weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return _Best(math.inf if math.isnan(loss) else loss, 0, row, weights)


# ---- evaluation ------------------------------------------------------------------------------------------


def pair_metrics(pred: FloatArray, truth: FloatArray, weight: FloatArray) -> dict[str, float]:
    """How well top-quark pairs are predicted, with signed weights.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    weight
        Signed event weights, shape (n,).

    Returns
    -------
    metrics
        ``m_tt_bias`` and ``m_tt_resolution``: mean of (p − t)/t of the mass of the pair, and its standard
        deviation; ``m_tt_correlation`` and ``m_tt_slope``: correlation of ln p and ln t, and their
        covariance over the variance of ln t, 1 without shrinkage; ``pt_top_rms`` (GeV) and ``y_top_rms``:
        RMS of p − t, of t and t̄ alike; ``efficiency``: fraction of finite predictions, to which the others
        are confined. NaN where undefined.
    """
    return _metrics_of(_PairColumns.of(pred, truth), weight)


class _PairColumns(NamedTuple):
    """All that `pair_metrics` has to know of each event, NaN where the prediction is not finite."""

    finite: BoolArray
    m_pred: FloatArray
    m_true: FloatArray
    pt_square: FloatArray
    y_square: FloatArray

    @classmethod
    def of(cls, pred: FloatArray, truth: FloatArray) -> "_PairColumns":
        """Masses of the pairs in GeV, and mean squares of p − t of t and t̄, shape (n,) each."""
        finite = np.asarray(np.isfinite(pred).all(axis=(1, 2)))
        pred = np.where(finite[:, None, None], pred, np.nan)
        squares = [((of(pred) - of(truth)) ** 2).mean(axis=1) for of in (fourvector.pt, fourvector.rapidity)]
        return cls(finite, m_tt(pred), m_tt(truth), *squares)


def _metrics_of(columns: _PairColumns, weight: FloatArray) -> dict[str, float]:
    finite, *values = columns
    with np.errstate(invalid="ignore", divide="ignore"):
        efficiency = weight[finite].sum() / weight.sum() if len(weight) else np.nan
        m_pred, m_true, pt_square, y_square = (column[finite] for column in values)
        normalised = weight[finite] / weight[finite].sum()

        def mean(values: FloatArray) -> Any:
            return (normalised * values).sum() if len(values) else np.nan

        residual = m_pred / m_true - 1
        x, y = np.log(m_true), np.log(m_pred)
        x, y = x - mean(x), y - mean(y)
        results = {
            "m_tt_bias": mean(residual),
            "m_tt_resolution": np.sqrt(mean(residual**2) - mean(residual) ** 2),
            "m_tt_correlation": mean(x * y) / np.sqrt(mean(x**2) * mean(y**2)),
            "m_tt_slope": mean(x * y) / mean(x**2),
            "pt_top_rms": np.sqrt(mean(pt_square)),
            "y_top_rms": np.sqrt(mean(y_square)),
        }
    return {key: float(value) for key, value in results.items()} | {"efficiency": float(efficiency)}


def _leptons(objects: Objects) -> Tensor:
    return torch.stack([objects.lepton_plus, objects.lepton_minus], 1)


@torch.no_grad()
def _predicted(
    network: TopNetwork, data: TrainingData, index: Tensor, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """Predictions in GeV, shape (n, 2, 4), and losses, shape (n,), in full precision without dropout."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    preds = torch.empty((len(index), 2, 4), device=device)
    losses = torch.empty(len(index), device=device)
    for start in range(0, len(index), _EVALUATION_BATCH):
        part = slice(start, start + _EVALUATION_BATCH)
        objects, tops, spin = data.take(index[part], device)
        preds[part] = pred = network(objects)
        losses[part] = event_loss(pred, tops, network.scale(objects), config.loss, _leptons(objects), spin)
    network.train(training)
    return preds, losses


def _evaluate(
    network: TopNetwork, data: TrainingData, index: Tensor, weights: Tensor, config: TrainConfig
) -> dict[str, float]:
    """Weighted mean loss and `pair_metrics` of some events; empty without events."""
    if len(index) == 0:
        return {}
    pred, loss = _predicted(network, data, index, config)
    return _summarised(pred, loss, data, index, weights, config)


def _loss_weights(data: TrainingData, config: LossConfig) -> Tensor:
    """What each event counts in the loss, shape (n,)."""
    weights = loss_weights(data.weight, config.negative_weights)
    if config.flat_m_tt > 0:
        masses = torch.cat([fourvector.mass(data.tops[part].sum(1)) for part in slices(len(data))])
        weights = weights * flattening_weights(masses, config.flat_m_tt)
    return weights


def _summarised(
    pred: Tensor, loss: Tensor, data: TrainingData, index: Tensor, weights: Tensor, config: TrainConfig
) -> dict[str, float]:
    own = weights[index].to(loss.device).double()
    mean_loss = float((own * loss.double()).sum() / own.sum())
    if config.loss.m_tt_bias > 0:
        truth = data.tops[index].to(pred.device)
        mean_loss += config.loss.m_tt_bias * float(m_tt_bias_loss(pred.double(), truth.double()))
    # Of all events at a time no more than what has to be summed.
    parts = [
        _PairColumns.of(*(x.double().cpu().numpy() for x in (pred[part], data.tops[index[part]])))
        for part in slices(len(index))
    ]
    columns = _PairColumns(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return {"loss": mean_loss} | _metrics_of(columns, data.weight[index].double().cpu().numpy())


def _finish(
    config: TrainConfig, data: TrainingData, weights: Tensor, state: dict[str, Any], device: torch.device
) -> tuple[list[TopNetwork], dict[str, float]]:
    """The best networks, and metrics of all test events, each seen by the network of its fold alone."""
    networks, parts = [], []
    for fold, finished in enumerate(state["finished"]):
        network = build_network(_tops_alone(config))
        network.load_state_dict(finished["weights"])
        network.to(device).eval()
        networks.append(network)
        index = data.indices(fold)[2]
        if len(index):
            parts.append((*_predicted(network, data, index, config), index))
    if not parts:
        return networks, {}
    pred, loss, index = (torch.cat(column) for column in zip(*parts, strict=True))
    return networks, _summarised(pred, loss, data, index, weights, config)


# ---- what is kept on disk --------------------------------------------------------------------------------


def _tops_alone(config: TrainConfig) -> ModelConfig:
    """The model without quantiles, which are trained when the tops are done."""
    return config.model.model_copy(update={"quantiles": None})


def _config_data(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain data, files by their names."""
    content = config.model_dump(mode="json", exclude={"data": WHERE_DATA_ARE})
    content["data"]["files"] = [path.name for path in config.data.files]
    return content


def _read_state(config: TrainConfig) -> dict[str, Any]:
    """State of the training in the output folder, a new one where there is none.

    Raises
    ------
    TrainingError
        If the folder holds another training.
    """
    content = {key: value for key, value in _config_data(config).items() if key not in MAY_DIFFER}
    path = config.output / STATE_FILE
    if not path.is_file():
        if (config.output / MODEL_FILE).exists():
            raise TrainingError(
                f"{config.output / MODEL_FILE}: already there, but not the training that made it; "
                "choose another output folder, or --restart to overwrite it"
            )
        return {
            "version": _STATE_VERSION,
            "config": content,
            "data": None,
            "history": [],
            "finished": [],
            "current": None,
            "complete": False,
            "mlflow_run": None,
        }
    try:
        # torch compares no checksums.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise TrainingError(f"{path}: not a readable training state; --restart starts afresh") from error
    if damaged:
        raise TrainingError(f"{path}: damaged, content and checksum differ; --restart starts afresh")
    if not isinstance(state, dict) or state.get("version") != _STATE_VERSION:
        raise TrainingError(f"{path}: written by another version of topreco; --restart starts afresh")
    _check_same("the configuration", state["config"], content, config.output)
    return state


def _check_same(what: str, saved: dict[str, Any], now: dict[str, Any], output: Path) -> None:
    """Raise if the training in the output folder differs from the one asked for."""
    before, after = _flat(saved), _flat(now)
    absent = "(absent)"
    changes = [
        f"{key}: {before.get(key, absent)} there, {after.get(key, absent)} here"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, absent) != after.get(key, absent)
    ]
    if changes:
        raise TrainingError(
            f"{output}: holds a training that differs in {what} ({'; '.join(changes)}); "
            "choose another output folder, or --restart to start afresh"
        )


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _restore(
    current: dict[str, Any],
    network: nn.Module,
    optimisers: Sequence[torch.optim.Optimizer],
    average: nn.Module | None,
) -> tuple[int, int, _Best]:
    """Continue from a saved epoch: the next epoch, the number of steps, the best so far."""
    network.load_state_dict(current["network"])
    for optimiser, saved in zip(optimisers, current["optimisers"], strict=True):
        optimiser.load_state_dict(saved)
    if average is not None:
        average.load_state_dict(current["average"])
    return current["epoch"], current["step"], _Best(**current["best"])


def _write_state(output: Path, state: dict[str, Any]) -> None:
    with complete_file(output / STATE_FILE) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
        # On disk before it takes the old one's place, should the machine and not the program die.
        file.flush()
        os.fsync(file.fileno())


def _write_metrics(output: Path, history: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl and metrics.csv, whole: a resumed training leaves no line twice."""
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in history
    ]
    write_text(output / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / "metrics.csv", table.getvalue())


# ---- surroundings ----------------------------------------------------------------------------------------


def _launch(config: TrainConfig) -> Fabric:
    """Fabric on the devices asked for; with several, this starts the other processes."""
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    elif accelerator == "cuda" and torch.cuda.device_count() < config.devices:
        raise TrainingError(
            f"accelerator: cuda with devices {config.devices}, but torch sees "
            f"{torch.cuda.device_count()} of them"
        )
    devices, nodes = config.devices, 1
    if TorchElasticEnvironment.detect():
        # Under torchrun the processes are there already, on one machine or several.
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=config.precision,
    )
    fabric.launch()
    return fabric


def _read_data(config: TrainConfig, fabric: Fabric) -> TrainingData:
    """The training data, of which the processes of a machine share what is not in memory."""
    if fabric.world_size == 1:
        return read_training_data(config.data, config.output)
    # A name that the next training in this output folder finds again.
    digest = hashlib.sha256(str(config.output.resolve()).encode()).hexdigest()[:12]
    path = (config.data.cache or config.output) / f".data.{digest}.{fabric.node_rank}.tmp"
    return share_training_data(config.data, path, writes=fabric.local_rank == 0, barrier=fabric.barrier)


def _placed(data: TrainingData, device: torch.device) -> TrainingData:
    """The data in the memory of a GPU if they leave half of it free, otherwise where they are."""
    if device.type == "cuda" and data.n_bytes > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    return data.to(device)


@contextmanager
def _progress_bar(console: Console) -> Iterator[Progress]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("step {task.completed}/{task.total}  loss {task.fields[loss]}"),
        TextColumn("{task.fields[rate]} events/s"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console.quiet,
        refresh_per_second=4,
    ) as bar:
        yield bar


def _name(fold: int, config: TrainConfig) -> str:
    return f"network {fold + 1}/{config.data.folds} " if config.data.folds > 1 else ""


def _line(row: dict[str, Any], config: TrainConfig) -> str:
    validation = {
        key.removeprefix("validation_"): value for key, value in row.items() if key.startswith("validation_")
    }
    return (
        f"{_name(row['fold'], config)}epoch {row['epoch'] + 1}/{config.epochs}: loss {row['train_loss']:.4f}"
        + _described(validation, "; validation:")
        + f"; {row['events_per_second']:,.0f} events/s"
    )


def _described(metrics: dict[str, float], title: str) -> str:
    if not metrics:
        return ""
    return (
        f"{title} loss {metrics['loss']:.4f}, m_tt bias {metrics['m_tt_bias']:+.3f}, "
        f"resolution {metrics['m_tt_resolution']:.3f}, correlation {metrics['m_tt_correlation']:.3f}, "
        f"pT(t) RMS {metrics['pt_top_rms']:.1f} GeV"
    )


class _MLflow:
    """The optional tracker; MLflow's own settings, such as `MLFLOW_TRACKING_URI`, say where it writes."""

    def __init__(self) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise TrainingError(f"mlflow: true: {needs_extra('mlflow', error)}") from error
        self.api: Any = mlflow

    def log(self, row: dict[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if k not in {"fold", "epoch"} and math.isfinite(v)}
        self.api.log_metrics({f"fold{row['fold']}/{k}": v for k, v in numbers.items()}, step=row["epoch"])

    def finish(self, path: Path, test: dict[str, float]) -> None:
        self.api.log_metrics({f"test/{k}": v for k, v in test.items() if math.isfinite(v)})
        self.api.log_artifact(str(path))


@contextmanager
def _tracking(tracker: _MLflow | None, config: TrainConfig, state: dict[str, Any]) -> Iterator[Any]:
    """Function that takes a row of metrics, for the duration of a run of the tracker, if there is one."""
    if tracker is None:
        yield lambda row: None
        return
    try:
        started = tracker.api.start_run(run_id=state["mlflow_run"], run_name=config.output.name)
    except tracker.api.exceptions.MlflowException as error:
        raise TrainingError(
            f"mlflow: no run at {tracker.api.get_tracking_uri()} ({str(error).splitlines()[0]}); "
            "set MLFLOW_TRACKING_URI to one that this installation can write"
        ) from error
    with started as run:
        if state["mlflow_run"] is None:
            tracker.api.log_params({key: str(value) for key, value in _flat(_config_data(config)).items()})
        state["mlflow_run"] = run.info.run_id
        yield tracker.log
