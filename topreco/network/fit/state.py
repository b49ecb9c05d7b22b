"""State of a training on disk: written after every epoch, read when the same command is run again."""

import csv
import io
import json
import math
import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from topreco.core.files import complete_file, write_text
from topreco.core.folders import differences
from topreco.network.task import TrainingError

_VERSION = 3


class Paths(NamedTuple):
    """Files of one training in its folder.

    Attributes
    ----------
    folder
        The folder.
    prefix
        Beginning of the names, for a second training in the folder.
    """

    folder: Path
    prefix: str = ""

    @property
    def state(self) -> Path:
        """Weights, optimisers and metrics of all epochs so far."""
        return self.folder / f"{self.prefix}state.ckpt"

    @property
    def metrics(self) -> tuple[Path, Path]:
        """The metrics of each epoch, as JSON lines and as a table."""
        stem = f"{self.prefix}metrics"
        return self.folder / f"{stem}.jsonl", self.folder / f"{stem}.csv"

    def remove(self) -> None:
        """Remove all files."""
        for path in (self.state, *self.metrics):
            path.unlink(missing_ok=True)


class Best:
    """The best epoch so far: by validation loss, or the latest where there are no validation events."""

    def __init__(
        self,
        loss: float = math.inf,
        epochs_since: int = 0,
        row: dict[str, Any] | None = None,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        self.loss, self.epochs_since, self.row, self.weights = loss, epochs_since, row, weights

    def updated(self, row: dict[str, Any], network: nn.Module) -> "Best":
        """The best of this and a further epoch, given by its metrics and its network."""
        loss = row.get("validation_loss", math.nan)
        if loss >= self.loss:
            return Best(self.loss, self.epochs_since + 1, self.row, self.weights)
        weights = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return Best(math.inf if math.isnan(loss) else loss, 0, row, weights)


def read_state(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Training state of a file, a new one where there is none.

    Parameters
    ----------
    path
        The file.
    config
        Plain data that determine the training.

    Returns
    -------
    state
        ``config``; ``data``, a summary of the events; ``history``, metrics of all epochs; ``finished``,
        weights and metrics of the best epoch of each fold that is done; ``current``, the fold in progress;
        ``complete``, true when nothing is left to do; ``tracker``, the run of the tracker.

    Raises
    ------
    TrainingError
        If the file is damaged or belongs to another training.
    """
    if not path.is_file():
        return {
            "version": _VERSION,
            "config": config,
            "data": None,
            "history": [],
            "finished": [],
            "current": None,
            "complete": False,
            "tracker": None,
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
    if not isinstance(state, dict) or state.get("version") != _VERSION:
        raise TrainingError(f"{path}: written by another version of topreco; --restart starts afresh")
    check_same("the configuration", state["config"], config, path.parent)
    return state


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state, whole or not at all."""
    with complete_file(path) as temporary, temporary.open("wb") as file:
        torch.save(state, file)
        # On disk before it takes the old one's place, should the machine and not the program die.
        file.flush()
        os.fsync(file.fileno())


def write_metrics(paths: Sequence[Path], history: Sequence[Mapping[str, Any]]) -> None:
    """Write the metrics of all epochs, whole: a resumed training leaves no line twice."""
    rows = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in history
    ]
    lines, table = paths
    write_text(lines, "".join(json.dumps(row) + "\n" for row in rows))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(table, text.getvalue())


def check_same(what: str, saved: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Raise if the training in the output folder differs from the one that is requested."""
    changes = [f"{key}: {there} there, {here} here" for key, (there, here) in differences(saved, now).items()]
    if changes:
        raise TrainingError(
            f"{output}: holds a training that differs in {what} ({'; '.join(changes)}); "
            "choose another output folder, or --restart to start afresh"
        )
