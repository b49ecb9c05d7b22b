"""Train a model: the four-momenta and, where configured, their quantiles, from skims to a model file."""

import copy
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from rich.console import Console

from topreco.config import (
    DataConfig,
    MaskedConfig,
    ModelConfig,
    NextTokenConfig,
    PosteriorConfig,
    QuantilesConfig,
    RatioTrainConfig,
    TrainConfig,
)
from topreco.core.errors import needs_extra
from topreco.core.files import check_outputs, writable_folder
from topreco.core.lineage import ancestors, trained_datasets
from topreco.core.threads import torch_threads
from topreco.network.fit.data import TrainingData, read_training_data, share_training_data
from topreco.network.fit.loop import Fitted, Session, fit, make_sample
from topreco.network.fit.start import FROM_NOTHING, Start
from topreco.network.fit.state import Paths, read_state, write_state
from topreco.network.model_file import TrainedModel, save_model
from topreco.network.parent import Parent, find_parent
from topreco.network.splits import VALIDATION
from topreco.network.task import Task, TrainingError
from topreco.network.tasks.augmentation import Augmentation
from topreco.network.tasks.calibration import check_events
from topreco.network.tasks.losses import loss_weights
from topreco.network.tasks.masked import MaskedTask
from topreco.network.tasks.next_tokens import NextTokenTask
from topreco.network.tasks.posterior import PosteriorTask
from topreco.network.tasks.posterior import calibrate as calibrate_posterior
from topreco.network.tasks.quantiles import QuantileNetwork, QuantilesTask, by_observable, calibrate
from topreco.network.tasks.summaries import SummariesTask
from topreco.network.tasks.tops import TopNetwork, TopsTask

MODEL_FILE = "model.safetensors"
# Where and how fast a training runs is not what is trained.
MAY_DIFFER = {"output", "accelerator", "devices", "threads", "mlflow"}
"""Keys that may change when a training resumes."""
WHERE_DATA_ARE = {"stream", "cache"}
"""Keys of `data` of which the same holds; no model file has them."""
# Apart from all epochs of the first training.
_SECOND_SEED = 1_000_003


def train(config: TrainConfig, *, progress: bool = True, restart: bool = False) -> Path:
    """Train the networks of a configuration, or continue a training that was interrupted.

    With `config.init` they begin with the weights of a trained model. A training that continues needs the
    same one again, but goes on with its own weights.

    Seeds torch's global generators. With several devices each process reads the data, or the first one of
    each machine if they are streamed; the first of all validates and writes.

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
        The model file, ``<output>/model.safetensors``. Beside it lie ``metrics.jsonl``, ``metrics.csv`` and
        ``state.ckpt``, and the same files of the second training, ``quantiles_…`` or ``summaries_…``, if
        there is one.

    Raises
    ------
    TrainingError
        If the data cannot be trained on, if the output folder holds another training, or if the loss or
        its gradient becomes non-finite.
    TopRecoError
        If a skim cannot be read or the output folder not be written.
    """
    tracker = _MLflow() if config.mlflow else None
    output = writable_folder(config.output)
    path = output / MODEL_FILE
    parent = find_parent(config)
    if parent is not None:
        check_outputs([path], [parent.path])
        config = parent.adopted(config)
    fabric, console = launch(config, progress)
    # What is learnt after the first training, and leaves its result as it is.
    second = "summaries" if isinstance(config.model, PosteriorConfig) else "quantiles"
    paths, second_paths = Paths(output), Paths(output, f"{second}_")
    if restart:
        discard(fabric, paths, second_paths, model=path)
    check_made_here(path, paths)
    content = _content(config, parent)
    state = read_state(paths.state, content)
    if state["complete"] and path.is_file():
        console.print(f"{path}: already trained")
        return path
    task = task_of(config)
    data = _read_data(config, task, fabric)
    quantiles = config.model.quantiles if isinstance(config.model, ModelConfig) else None
    if quantiles is not None or isinstance(config.model, PosteriorConfig):
        _check_validation(data, config)
    data = placed(data, fabric.device)
    fabric.barrier()

    writes = fabric.is_global_zero
    with _tracking(tracker if writes else None, config, state) as log:
        session = Session(fabric, console, paths, (config.seed,), compile=config.compile, log=log)
        start = FROM_NOTHING
        if parent is not None:
            start = parent.start(config.model.task)
            if warning := parent.warning(config, data.summary):
                console.print(f"warning: {warning}")
        fitted = fit(task, data, config, session, state, start)
        networks: list[Any] = fitted.networks
        metadata: dict[str, Any] = {
            "training": _config_data(config) | {"output": config.output.name},
            "data": data.summary,
            "metrics": {"best": fitted.best, "test": fitted.test},
            "parent": None if parent is None else parent.described(data.summary),
        }
        if second == "summaries" or quantiles is not None:
            own_state = read_state(second_paths.state, content)
            own_session = session._replace(
                paths=second_paths, seed=(_SECOND_SEED, config.seed), title=f"{second}, "
            )
            start = FROM_NOTHING
            if quantiles is None:
                if parent is not None and parent.whole(config.model.task):
                    start = parent.start(config.model.task, "summary")
                own = _fit_summaries(networks, data, config, own_session, own_state, start)
                metadata[second] = {"test": own.test}
            else:
                if parent is not None and parent.starts_quantiles(config.model):
                    start = parent.start(config.model.task, "quantiles")
                networks, own = _fit_quantiles(networks, data, config, own_session, own_state, start)
                metadata[second] = {"test": by_observable(own.test, quantiles.observables)}
        if writes:
            save_model(path, networks, metadata)
            # The weights of the epochs before are of no more use.
            state["complete"] = True
            write_state(paths.state, state)
            if tracker is not None:
                tracker.finish(path, fitted.test)
            console.print(
                f"{path}: trained" + (f"; test: {task.describe(fitted.test)}" if fitted.test else "")
            )
    fabric.barrier()
    return path


def fit_task(
    task: Task[Any],
    config: TrainConfig,
    folder: str | Path,
    *,
    restart: bool = False,
    progress: bool = True,
) -> Fitted:
    """Train any task, or continue a training that was interrupted.

    Parameters
    ----------
    task
        What to learn.
    config
        Data, length, optimiser, seed and devices; `model`, `loss` and augmentation belong to `train`. With
        `init` the encoder of the task is that of `topreco.network.parent.with_parent(config).model.encoder`.
    folder
        Where the state and the metrics are written.
    restart
        Discard what an earlier training left in the folder.
    progress
        Show a progress bar and a line per epoch on standard error.

    Returns
    -------
    fitted
        The best networks, their metrics, and those of the test events.

    Raises
    ------
    TrainingError
        As `train`.
    """
    fabric, console = launch(config, progress)
    paths = Paths(writable_folder(Path(folder)))
    parent = find_parent(config)
    if restart:
        discard(fabric, paths)
    state = read_state(paths.state, _content(config, parent) | {"task": task.name})
    data = placed(_read_data(config, task, fabric, paths.folder), fabric.device)
    session = Session(fabric, console, paths, (config.seed,), compile=config.compile)
    return fit(
        task, data, config, session, state, FROM_NOTHING if parent is None else parent.start(task.name)
    )


def train_quantiles(
    model: TrainedModel,
    config: TrainConfig,
    output: str | Path,
    *,
    progress: bool = True,
    restart: bool = False,
) -> dict[str, Any]:
    """Write a model with quantiles from one without, or with others; the tops stay as they are.

    Parameters
    ----------
    model
        The model.
    config
        `data`, which must be those of the model's own training with the same splits, `model.quantiles` (the
        default ones if null), `quantiles`, seed and augmentation.
    output
        Model file to write. The training's state and metrics are in a folder beside it, ``<name>.training``.
    progress
        Show a progress bar and a line per epoch on standard error.
    restart
        Discard what an earlier training left in that folder.

    Returns
    -------
    metadata
        Entry ``quantiles`` of the model file; ``test`` holds coverage and pinball loss of the test events.

    Raises
    ------
    TrainingError
        If the data cannot be trained on, or if the folder holds another training.
    TopRecoError
        If a skim cannot be read or the file not be written.
    """
    if isinstance(model.config, PosteriorConfig) or not isinstance(config.model, ModelConfig):
        raise TrainingError(
            "quantiles: those of a posterior are trained with it; --calibrate-only calibrates them on other "
            "events"
        )
    _refuse_init(config)
    output = Path(output)
    check_outputs([output], config.data.files)
    folder = writable_folder(output.parent / f"{output.stem}.training")
    settings = config.model.quantiles or QuantilesConfig()
    config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"folds": len(model.networks)}),
            "model": model.config.model_copy(update={"quantiles": settings}),
        }
    )
    fabric, console = launch(config, progress)
    paths = Paths(folder)
    if restart:
        discard(fabric, paths)
    state = read_state(paths.state, _content(config) | {"tops": model.metadata["sha256"]})
    data = _read_data(config, task_of(config), fabric, folder)
    _check_validation(data, config)
    data = placed(data, fabric.device)
    session = Session(
        fabric, console, paths, (_SECOND_SEED, config.seed), title="quantiles, ", compile=config.compile
    )
    networks, fitted = _fit_quantiles(copy.deepcopy(model.networks), data, config, session, state)
    described = {
        "data": data.summary,
        "training": config.quantiles.model_dump(mode="json"),
        "test": by_observable(fitted.test, settings.observables),
    }
    if fabric.is_global_zero:
        save_model(output, networks, model.metadata | {"quantiles": described})
    fabric.barrier()
    return described


def recalibrate(model: TrainedModel, config: TrainConfig, output: str | Path) -> dict[str, Any]:
    """Write a model with its quantiles calibrated on other events.

    Parameters
    ----------
    model
        The model, with quantiles.
    config
        `data`, of which all events count, or the validation events alone if the model or one of those from
        which it descends was trained on one of the datasets, with whatever selection; and
        `loss.negative_weights`.
    output
        Model file to write.

    Returns
    -------
    metadata
        Entry ``quantiles`` of the model file.

    Raises
    ------
    TrainingError
        If there are no quantiles to calibrate, or too few events with weight for one of the networks.
    TopRecoError
        If a skim cannot be read or the file not be written.
    """
    _refuse_init(config)
    output = Path(output)
    check_outputs([output], config.data.files)
    writable_folder(output.parent)
    networks = list(copy.deepcopy(model.networks))
    task: Task[Any]
    correct: Callable[[Any, Any, str], int]
    if isinstance(model.config, PosteriorConfig):
        own, correct = networks, calibrate_posterior
        task = PosteriorTask(model.config, config.loss, Augmentation())
    elif model.config.quantiles is None:
        raise TrainingError("recalibrate: the model has no quantiles; `topreco quantiles` adds them")
    else:
        own, correct = [network.quantiles for network in networks], calibrate
        task = QuantilesTask(model.config, networks, negative_weights=config.loss.negative_weights)
    # What was set apart for validation is so by the smallest fractions of all trainings.
    trained = [each.get("training", {}).get("data", {}) for each in ancestors(model.metadata)]
    changes: dict[str, Any] = {"folds": len(networks)}
    for name in ("validation_fraction", "test_fraction"):
        if fractions := [each[name] for each in trained if name in each]:
            changes[name] = min(fractions)
    data = read_training_data(config.data.model_copy(update=changes), task.columns, output.parent)
    seen = not trained_datasets(model.metadata).isdisjoint(data.summary["dataset_ids"])
    if seen or len(networks) > 1:
        _check_key(data, config.data.model_copy(update=changes))
    loss_weight = task.loss_weights(data.weight, data.columns)
    n_events = 0
    for fold, quantiles in enumerate(own):
        mine = torch.ones_like(data.fold, dtype=torch.bool) if len(networks) == 1 else data.fold == fold
        if seen:
            # Events that this network has not been trained on.
            mine = data.split == VALIDATION
            mine &= data.fold != fold if len(networks) > 1 else True
        index = mine.nonzero().squeeze(1)
        if not loss_weight[index].sum() > 0:
            raise TrainingError(f"recalibrate: no events with weight for network {fold}")
        with torch.no_grad():
            sample = make_sample(task, data, fold, index, loss_weight, torch.device("cpu"))
            n_events += correct(quantiles, sample.batches(networks[fold]), f"recalibrate: network {fold}")
    # The coverage was that of another calibration.
    before = {k: v for k, v in model.metadata.get("quantiles", {}).items() if k != "test"}
    calibration = {"files": data.summary["files"], "events": n_events, "validation_only": seen}
    described = before | {"calibration": calibration}
    save_model(output, networks, model.metadata | {"quantiles": described})
    return described


def _check_validation(data: TrainingData, config: TrainConfig) -> None:
    """Raise before hours of training if too few events are left that calibrate the quantiles."""
    for fold in range(data.folds):
        index = data.indices(fold)[1]
        if not len(index):
            raise TrainingError("data.validation_fraction: no validation events, which quantiles need")
        weight = loss_weights(data.weight[index].double(), config.loss.negative_weights)
        check_events(weight.cpu().numpy(), "data.validation_fraction")


def _refuse_init(config: TrainConfig) -> None:
    """Raise if a command that begins with a model anyway is told to begin with another."""
    if config.init is not None:
        raise TrainingError(
            f"init.model: {config.init.model} found, null expected: quantiles are those of the given model; "
            "`topreco-train` starts from another one"
        )


def _fit_quantiles(
    tops: Any,
    data: TrainingData,
    config: TrainConfig,
    session: Session,
    state: dict[str, Any],
    start: Start = FROM_NOTHING,
) -> tuple[list[TopNetwork], Fitted]:
    """The networks of the tops with trained quantiles, in evaluation mode."""
    for network in tops:
        network.to(session.fabric.device).eval()
    model = cast("ModelConfig", config.model)
    task = QuantilesTask(
        model,
        tops,
        negative_weights=config.loss.negative_weights,
        charge_exchange=config.augment_charge_exchange,
    )
    fitted = fit(task, data, config.quantiles.fit, session, state, start)
    networks = []
    for network, quantiles in zip(tops, fitted.networks, strict=True):
        whole = TopNetwork(model).to(session.fabric.device)
        whole.encoder, whole.quantiles = network.encoder, cast("QuantileNetwork", quantiles)
        networks.append(whole.eval())
    return networks, fitted


def _fit_summaries(
    networks: Any,
    data: TrainingData,
    config: TrainConfig,
    session: Session,
    state: dict[str, Any],
    start: Start = FROM_NOTHING,
) -> Fitted:
    """Train the means and quantiles of trained posteriors, in place."""
    task = SummariesTask(
        cast("PosteriorConfig", config.model),
        networks,
        config.summaries.samples,
        negative_weights=config.loss.negative_weights,
    )
    fitted = fit(task, data, config.summaries.fit, session, state, start)
    for network, heads in zip(networks, fitted.networks, strict=True):
        network.summary = heads
    return fitted


def task_of(config: TrainConfig) -> Task[Any]:
    """The task of a training's configuration."""
    augmentation = Augmentation.of(config)
    if isinstance(config.model, PosteriorConfig):
        return PosteriorTask(config.model, config.loss, augmentation)
    if isinstance(config.model, MaskedConfig):
        return MaskedTask(config.model, config.loss, augmentation)
    if isinstance(config.model, NextTokenConfig):
        return NextTokenTask(config.model, config.loss, augmentation)
    return TopsTask(config.model, config.loss, augmentation)


# ---- surroundings ----------------------------------------------------------------------------------------


def _config_data(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain data, files by their names."""
    content = config.model_dump(mode="json", exclude={"data": WHERE_DATA_ARE})
    content["data"]["files"] = [path.name for path in config.data.files]
    if config.init is None:
        del content["init"]
    else:
        content["init"]["model"] = Path(config.init.model).name
    return content


def _content(config: TrainConfig, parent: Parent | None = None) -> dict[str, Any]:
    """Part of the configuration that must not change when a training resumes."""
    content = {key: value for key, value in _config_data(config).items() if key not in MAY_DIFFER}
    if parent is not None:
        content["init"]["sha256"] = parent.sha256
    return content


def launch(config: TrainConfig | RatioTrainConfig, progress: bool) -> tuple[Fabric, Console]:
    """Fabric on the requested devices, which starts the other processes; and where lines are printed."""
    if config.threads is not None:
        torch.set_num_threads(torch_threads(config.threads))
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
    environment: ClusterEnvironment | None = None
    if not TorchElasticEnvironment.detect():
        if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            raise TrainingError(
                f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} processes of one training; srun "
                "--ntasks=1 with the key devices expected, or torchrun in each task"
            )
        # Whatever a batch system says of tasks (SLURM_NTASKS) is about the job and not about this process.
        environment = LightningEnvironment()
    fabric = Fabric(
        plugins=environment,
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        # A task need not use all that a backbone gives: quantiles read no vectors.
        strategy="ddp_find_unused_parameters_true" if devices * nodes > 1 else "auto",
        precision=config.precision,
    )
    fabric.launch()
    # Soft wrapping keeps an epoch's line whole in the log of a batch job.
    console = Console(
        stderr=True, quiet=not (progress and fabric.is_global_zero), highlight=False, soft_wrap=True
    )
    return fabric, console


def _read_data(
    config: TrainConfig, task: Task[Any], fabric: Fabric, folder: Path | None = None
) -> TrainingData:
    """The training data, of which the processes of a machine share what is not in memory."""
    folder = folder or config.output
    if fabric.world_size == 1:
        data = read_training_data(config.data, task.columns, folder, needs_truth=task.needs_truth)
        _check_key(data, config.data)
        return data
    # A name that the next training in this output folder finds again.
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]
    path = (config.data.cache or folder) / f".data.{digest}.{fabric.node_rank}.tmp"
    data = share_training_data(
        config.data,
        task.columns,
        path,
        writes=fabric.local_rank == 0,
        barrier=fabric.barrier,
        needs_truth=task.needs_truth,
    )
    _check_key(data, config.data)
    return data


def _check_key(data: TrainingData, config: DataConfig) -> None:
    """Raise if events must be told apart, but have one key."""
    if data.summary.get("constant_key") and (
        config.folds > 1 or config.validation_fraction > 0 or config.test_fraction > 0
    ):
        raise TrainingError(
            "data.files: the key (run, luminosityBlock, event) is constant, the same for all "
            f"{len(data)} events or within each row group. It decides which events train, validate and test: "
            "give each event a number of its own"
        )


def check_made_here(path: Path, paths: Paths) -> None:
    """Raise if there is a model file without the training that made it."""
    if path.exists() and not paths.state.is_file():
        raise TrainingError(
            f"{path}: already there, but not the training that made it; choose another output folder, or "
            "--restart to overwrite it"
        )


def discard(fabric: Fabric, *paths: Paths, model: Path | None = None) -> None:
    """Remove what an earlier training left; nobody looks for a state before it is gone."""
    if fabric.is_global_zero:
        if model is not None:
            model.unlink(missing_ok=True)
        for each in paths:
            each.remove()
    fabric.barrier()


def placed(data: TrainingData, device: torch.device) -> TrainingData:
    """The data in the memory of a GPU if they leave half of it free, otherwise where they are."""
    if device.type == "cuda" and data.n_bytes > torch.cuda.mem_get_info(device)[0] / 2:
        return data
    return data.to(device)


class _MLflow:
    """The optional tracker; MLflow's own settings, such as `MLFLOW_TRACKING_URI`, say where it writes."""

    def __init__(self) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise TrainingError(f"mlflow: true: {needs_extra('mlflow', error)}") from error
        self.api: Any = mlflow

    def log(self, row: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in row.items() if k not in {"fold", "epoch"} and math.isfinite(v)}
        self.api.log_metrics({f"fold{row['fold']}/{k}": v for k, v in numbers.items()}, step=row["epoch"])

    def finish(self, path: Path, test: Mapping[str, float]) -> None:
        self.api.log_metrics({f"test/{k}": v for k, v in test.items() if math.isfinite(v)})
        self.api.log_artifact(str(path))


@contextmanager
def _tracking(
    tracker: _MLflow | None, config: TrainConfig, state: dict[str, Any]
) -> Iterator[Callable[[dict[str, Any]], object]]:
    """Function that takes a row of metrics, for the duration of a run of the tracker, if there is one."""
    if tracker is None:
        yield lambda row: None
        return
    try:
        started = tracker.api.start_run(run_id=state["tracker"], run_name=config.output.name)
    except tracker.api.exceptions.MlflowException as error:
        raise TrainingError(
            f"mlflow: no run at {tracker.api.get_tracking_uri()} ({str(error).splitlines()[0]}); "
            "set MLFLOW_TRACKING_URI to one that this installation can write"
        ) from error
    with started as run:
        if state["tracker"] is None:
            tracker.api.log_params({key: str(value) for key, value in _flat(_config_data(config)).items()})
        state["tracker"] = run.info.run_id
        yield tracker.log


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested plain data by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
