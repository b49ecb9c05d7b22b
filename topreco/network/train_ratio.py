"""Train a ratio of densities: from the skims of two samples to a model file."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from topreco.config import DataConfig, RatioTrainConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, IntArray, Truth
from topreco.core.files import check_outputs, writable_folder
from topreco.core.ratios import RatioQuality, calibrate_log_ratio, ratio_quality
from topreco.core.skim import Skim
from topreco.network.fit.data import TrainingData, read_training_data
from topreco.network.fit.loop import Session, evaluation, fit
from topreco.network.fit.start import FROM_NOTHING, Start
from topreco.network.fit.state import Paths, read_state, write_state
from topreco.network.model_file import save_model
from topreco.network.parent import Parent, find_parent
from topreco.network.task import Columns, TrainingError
from topreco.network.tasks.ratio import (
    IN_A,
    SIGNED_WEIGHT,
    LocalWeightTask,
    RatioNetwork,
    RatioTask,
    event_columns,
)
from topreco.network.train import MAY_DIFFER, MODEL_FILE, check_made_here, discard, launch, placed

# Apart from those of the members.
_LOCAL_SEED = 2_000_003
_BATCH = 4096

Sample = Literal["a", "b"]


class _Keys(NamedTuple):
    """Keys of events, in parts as they were read."""

    dataset: IntArray
    run: IntArray
    luminosity_block: IntArray
    event: IntArray


def train_ratio(config: RatioTrainConfig, *, progress: bool = True, restart: bool = False) -> Path:
    """Train the networks of a ratio of densities, or continue a training that was interrupted.

    Each fold has `model.members` networks that have not seen its events, with the mean of their log-ratios
    calibrated on validation events of the other folds. If there are negative weights, the mean weight of the
    neighbours of an event is learnt first (`topreco.network.tasks.ratio`).

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
        The model file, ``<output>/model.safetensors``, which `topreco.load` reads. Its metadata entry
        ``ratio`` says of what the ratio is, and how good on events that their network has not seen.

    Raises
    ------
    TrainingError
        If the samples cannot be compared, the output folder holds another training, or the loss becomes
        non-finite.
    TopRecoError
        If a skim cannot be read or the output folder not be written.
    """
    path = writable_folder(config.output) / MODEL_FILE
    for name in ("a", "b"):
        if not getattr(config, name):
            raise TrainingError(
                f"{name}: no skims given; `topreco skim` writes them, a=[FILE] b=[FILE] names them"
            )
    check_outputs([path], [*config.a, *config.b])
    parent = find_parent(config)
    if parent is not None:
        if config.model.inputs == "generated":
            raise TrainingError(
                f"init.model {parent.name}: knows reconstructed objects, model.inputs is 'generated'; "
                "null expected"
            )
        check_outputs([path], [parent.path])
        config = parent.adopted(config)
    fabric, console = launch(config, progress)
    members = config.model.members
    local_paths = Paths(config.output, "local_")
    paths = [Paths(config.output, f"member{i}_" if i else "") for i in range(members)]
    if restart:
        discard(fabric, local_paths, *paths, model=path)
    last = paths[-1]
    check_made_here(path, last)
    content = _content(config, parent)
    if path.is_file() and read_state(last.state, content)["complete"]:
        console.print(f"{path}: already trained")
        return path
    whole = _read_samples(config)
    data, described = whole.data, whole.described
    factors = whole.factors
    data = placed(data, fabric.device)
    fabric.barrier()

    if parent is not None and (warning := parent.warning(config, data.summary)):
        console.print(f"warning: {warning}")

    def start(task: str) -> Start:
        return FROM_NOTHING if parent is None else parent.start(task)

    def session(of: Paths, seed: tuple[int, ...], title: str) -> Session:
        return Session(fabric, console, of, seed, title=title, compile=config.compile)

    local: Sequence[Any] = ()
    negative: dict[str, Any] | None = None
    if bool((data.weight < 0).any()):
        state = read_state(local_paths.state, content)
        own: dict[Sample, float] = {name: len(data) / 2 / n for name, n in whole.events.items()}
        fitted = fit(
            LocalWeightTask(config.model, own),
            data,
            config,
            session(local_paths, (_LOCAL_SEED, config.seed), "mean weights, "),
            state,
            start(LocalWeightTask.name),
        )
        local, negative = fitted.networks, fitted.test
    by_member = []
    for i, of in enumerate(paths):
        state = read_state(of.state, content)
        title = f"member {i + 1}/{members}, " if members > 1 else ""
        fitted = fit(
            RatioTask(config.model, factors, local),
            data,
            config,
            session(of, (config.seed, i), title),
            state,
            start(RatioTask.name),
        )
        by_member.append(fitted)
    if fabric.is_global_zero:
        networks = []
        for fold in range(data.folds):
            network = RatioNetwork(config.model).to(fabric.device).eval()
            for member, fitted in zip(network.members, by_member, strict=True):
                member.load_state_dict(fitted.networks[fold].state_dict())
            networks.append(network)
        quality = _calibrate(networks, data, config)
        metadata = {
            "training": content,
            "data": data.summary,
            "parent": None if parent is None else parent.described(data.summary),
            "metrics": {"best": [each.best for each in by_member], "test": [each.test for each in by_member]},
            "ratio": described
            | {
                "inputs": config.model.inputs,
                "quality": quality._asdict(),
                "negative_weights": negative,
            },
        }
        save_model(path, networks, metadata)
        state["complete"] = True
        write_state(last.state, state)
        console.print(f"{path}: trained; {_line(quality)}")
    fabric.barrier()
    return path


def _line(quality: RatioQuality) -> str:
    """What the terminal says of a ratio."""
    return (
        f"of events that their network has not seen: mean ratio {quality.mean:.4f} ± "
        f"{quality.mean_error:.4f}, {quality.effective_events:,.0f} effective of "
        f"{quality.events_b:,} events of B, largest ratio {quality.largest:.3g}, "
        f"χ² of the calibration {quality.chi2:.1f} in {quality.bins} bins"
    )


def _content(config: RatioTrainConfig, parent: Parent | None) -> dict[str, Any]:
    """The configuration as plain data, files by their names, without what may differ when it resumes."""
    content = {k: v for k, v in config.model_dump(mode="json").items() if k not in MAY_DIFFER}
    if parent is None:
        del content["init"]
    else:
        content["init"] |= {"model": parent.name, "sha256": parent.sha256}
    return content | {name: [path.name for path in getattr(config, name)] for name in ("a", "b")}


class _Samples(NamedTuple):
    """Both samples.

    Attributes
    ----------
    data
        Their events, first those of A.
    events
        Number of events of each.
    factors
        Factors of the weights that give both the same sum.
    described
        What they are, for the model file.
    """

    data: TrainingData
    events: dict[Sample, int]
    factors: dict[Sample, float]
    described: dict[str, Any]


def _read_samples(config: RatioTrainConfig) -> _Samples:
    """Events of A and B with the same columns and no event twice."""
    parts: dict[Sample, TrainingData] = {}
    keys: dict[Sample, _Keys] = {}
    names: tuple[Sample, Sample] = ("a", "b")
    for name in names:
        parts[name], keys[name] = _read(config, name)
    _check_taggers(config)
    a, b = parts["a"], parts["b"]
    for column in sorted(a.columns.keys() | b.columns.keys()):
        shapes = [
            tuple(each.columns[column].shape[1:]) if column in each.columns else None for each in (a, b)
        ]
        if shapes[0] != shapes[1]:
            raise TrainingError(
                f"a, b: {column} has the shape {shapes[0]} in {config.a[0]} and {shapes[1]} in "
                f"{config.b[0]}; samples with the same tokens expected, skimmed with one configuration"
            )
    _check_apart(keys["a"], keys["b"])
    sums, scaled = {}, {}
    for name, part in parts.items():
        weight = part.weight.double()
        if not weight.abs().sum() > 0:
            raise TrainingError(f"{name}: all weights of the {len(part)} events are zero")
        if not weight.sum() > 0:
            raise TrainingError(
                f"{name}: sum of the weights {float(weight.sum()):.4g} found, a positive one expected"
            )
        sums[name] = float(weight.sum())
        scaled[name] = weight / weight.abs().mean()
    n = len(a) + len(b)
    weight = torch.cat([scaled[name] for name in names])
    factors: dict[Sample, float] = {name: n / 2 / float(scaled[name].sum()) for name in names}
    columns: Columns = {key: torch.cat([a.columns[key], b.columns[key]]) for key in a.columns}
    columns[IN_A] = torch.arange(n) < len(a)
    columns[SIGNED_WEIGHT] = weight.float()
    summary = {
        "files": [*a.summary["files"], *b.summary["files"]],
        "dataset_ids": sorted({*a.summary["dataset_ids"], *b.summary["dataset_ids"]}),
        "events": n,
        "sums_of_weights": sums,
    }
    described: dict[str, Any] = {
        str(name): {
            "files": [path.name for path in getattr(config, name)],
            "dataset_ids": parts[name].summary["dataset_ids"],
            "events": len(parts[name]),
            "sum_of_weights": sums[name],
            "negative": float((parts[name].weight < 0).double().mean()),
        }
        for name in names
    }
    data = TrainingData(
        columns,
        weight.float(),
        torch.cat([a.split, b.split]),
        torch.cat([a.fold, b.fold]),
        config.data.folds,
        summary,
    )
    return _Samples(data, {name: len(part) for name, part in parts.items()}, factors, described)


def _read(config: RatioTrainConfig, name: Sample) -> tuple[TrainingData, _Keys]:
    """Events of a sample, and their keys."""
    found: list[_Keys] = []

    def columns_of(events: DileptonEvents, truth: Truth | None) -> Columns:
        found.append(_Keys(events.dataset, events.run, events.luminosity_block, events.event))
        return event_columns(config.model, events, truth)

    own = DataConfig(
        files=getattr(config, name),
        validation_fraction=config.data.validation_fraction,
        test_fraction=0,
        folds=config.data.folds,
        max_events=config.data.max_events,
        normalise_weights=False,
        require_dileptonic=config.data.require_dileptonic,
        stream=False,
    )
    try:
        data = read_training_data(own, columns_of, needs_truth=config.model.inputs == "generated")
    except TopRecoError as error:
        raise TrainingError(f"{name}: {error}") from error
    if data.summary.get("constant_key"):
        raise TrainingError(
            f"{name}: the key (run, luminosityBlock, event) is the same for all events; it decides which "
            "network weights an event: give each a number of its own"
        )
    keys = _Keys(*(np.concatenate(column) for column in zip(*found, strict=True)))
    return data, keys


def _check_taggers(config: RatioTrainConfig) -> None:
    """Raise if the jets of the samples have the scores of different b taggers."""
    if config.model.inputs == "generated":
        return
    taggers: dict[str, Path] = {}
    for path in (*config.a, *config.b):
        selection = Skim(path).metadata.get("selection") or {}
        if tagger := (selection.get("jet") or {}).get("btag"):
            taggers.setdefault(str(tagger), path)
    if len(taggers) > 1:
        found = ", ".join(f"{tagger} in {path}" for tagger, path in taggers.items())
        raise TrainingError(f"a, b: one b tagger expected (selection.jet.btag), {found} found")


def _check_apart(a: _Keys, b: _Keys) -> None:
    """Raise if an event is in both samples."""
    first, second = (np.rec.fromarrays([np.asarray(x).astype(np.uint64) for x in keys]) for keys in (a, b))
    common: Any = np.intersect1d(np.asarray(first), np.asarray(second))
    if len(common):
        dataset, run, block, event = common[0].tolist()
        raise TrainingError(
            f"a, b: {len(common)} events are in both samples, the first of them with run {run}, "
            f"luminosityBlock {block}, event {event} of the dataset {dataset}; samples without a "
            "common event expected"
        )


@torch.no_grad()
def _calibrate(
    networks: Sequence[RatioNetwork], data: TrainingData, config: RatioTrainConfig
) -> RatioQuality:
    """Calibrate each network on its validation events; the quality of all on their folds."""
    tested: list[tuple[FloatArray, BoolArray, FloatArray]] = []
    for fold, network in enumerate(networks):
        _, validation, test = data.indices(fold)
        calibration = calibrate_log_ratio(
            *_evaluated(network, data, validation, raw=True),
            bin_events=config.model.calibration_events,
            max_bins=config.model.calibration_bins,
        )
        network.set_calibration(calibration)
        tested.append(_evaluated(network, data, test, raw=False))
    log_ratio, in_a, weight = (np.concatenate(column) for column in zip(*tested, strict=True))
    return ratio_quality(log_ratio, in_a, weight)


def _evaluated(
    network: RatioNetwork, data: TrainingData, index: Tensor, *, raw: bool
) -> tuple[FloatArray, BoolArray, FloatArray]:
    """Log-ratios of events, whether they belong to A, and their signed weights."""
    device = next(network.parameters()).device

    def parts() -> Iterator[Tensor]:
        for start in range(0, len(index), _BATCH):
            columns: Mapping[str, Tensor] = data.take(index[start : start + _BATCH], device)
            yield (network.raw(columns) if raw else network(columns)).double().cpu()

    with evaluation(network):
        log_ratio = torch.cat([torch.zeros(0, dtype=torch.float64), *parts()]).numpy()
    in_a, weight = (column[index].cpu().numpy() for column in (data.columns[IN_A], data.weight))
    return log_ratio, in_a, weight.astype(np.float64)
