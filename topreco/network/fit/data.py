"""Training data: the columns that a task keeps of skimmed events, in memory or in a temporary file.

Skims are read row group by row group. With twelve padded jets an event takes about 0.4 kB: of memory, and on
a GPU once more there; or of disk, and of memory no more than its weight, split and fold.
"""

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from topreco.config import DataConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, Truth
from topreco.core.prior import METADATA_KEY, sum_spectra
from topreco.core.skim import FURTHER_COLUMNS, Skim
from topreco.network.fit.rows import Rows, mapped, moved, row_bytes, sent
from topreco.network.splits import TEST, TRAIN, VALIDATION, fold_of, same_key, split_of
from topreco.network.task import Columns, TrainingError

STREAM_FROM = 1_000_000
"""Events from which `data.stream: auto` streams: 0.4 GB for each process."""

# Of a skim's metadata these say nothing about the content that a model file should repeat.
_SKIM_ONLY = {"format", "cutflow", FURTHER_COLUMNS, METADATA_KEY}


ColumnsOf = Callable[[DileptonEvents, Truth | None], Columns]
"""Columns to keep of selected events, `Task.columns`."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Events with truth as tensors.

    Attributes
    ----------
    columns
        What the task keeps of each event, shape (n, ...).
    weight
        Signed event weights, those of each dataset with a mean of 1 in absolute value if so configured,
        shape (n,).
    split
        `TRAIN`, `VALIDATION` or `TEST`, shape (n,).
    fold
        Index of the network that must not see the event, shape (n,).
    folds
        Number of networks.
    summary
        What was read, for the model file: names, numbers of events, datasets, sums of weights.
    scratch
        Folder of temporary files if the events are in one, None if they are in memory.
    """

    columns: Columns
    weight: Tensor
    split: Tensor
    fold: Tensor
    folds: int
    summary: dict[str, Any]
    scratch: Path | None = None

    def __len__(self) -> int:
        return len(self.weight)

    @property
    def n_bytes(self) -> int:
        """Size of all tensors."""
        columns = (*self.columns.values(), self.weight, self.split, self.fold)
        return sum(column.numel() * column.element_size() for column in columns)

    def indices(self, fold: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the events that train, validate and test the network of a fold, each shape (n_split,).

        With several folds the test events are the fold itself.
        """
        train, validation, test = (
            part.nonzero().squeeze(1) for part in _parts(self.split, self.fold, fold, self.folds)
        )
        return train, validation, test

    def take(self, index: Tensor, device: torch.device) -> Columns:
        """Columns of the events of an index, on a device."""
        return {name: sent(column[index], device) for name, column in self.columns.items()}

    def to(self, device: torch.device) -> Self:
        """The same data in the memory of a device."""
        others: dict[str, Any] = {
            name: moved(getattr(self, name), device) for name in ("weight", "split", "fold")
        }
        columns = {name: moved(column, device) for name, column in self.columns.items()}
        scratch = None if device.type != "cpu" else self.scratch
        return replace(self, columns=columns, scratch=scratch, **others)


def read_training_data(
    config: DataConfig, columns_of: ColumnsOf, scratch: Path | None = None, *, needs_truth: bool = True
) -> TrainingData:
    """Read skims.

    Parameters
    ----------
    config
        Files, splits and folds, and whether to stream.
    columns_of
        Columns to keep of events.
    scratch
        Folder of the temporary file if the data are streamed and `config.cache` names none; None is the
        system's. The file has no name: whatever ends the process, it is gone.
    needs_truth
        Refuse skims without truth, and read only events with both tops in the truth record, dileptonic ones
        where `config` requires it.

    Returns
    -------
    data
        The same bits in memory and streamed.

    Raises
    ------
    SkimError
        If a file is missing or no skim.
    TrainingError
        If no file is given, or one has no truth, no events, non-finite values or another number of padded
        jets than the first; if none of the events can be used; or if the temporary file cannot be written.
    """
    reader = _Reader(config, columns_of, needs_truth)
    skims = reader.opened()
    if not _streams(config, skims):
        return reader.read(skims).data(config.folds)
    folder = config.cache or scratch or Path(tempfile.gettempdir())
    with room(folder), tempfile.TemporaryFile(dir=folder) as file:
        reader.read(skims, file).finish(file)
        return _map(file, folder, config.folds)


def share_training_data(
    config: DataConfig,
    columns_of: ColumnsOf,
    path: Path,
    *,
    writes: bool,
    barrier: Callable[[], object],
    needs_truth: bool = True,
) -> TrainingData:
    """Read skims as `read_training_data` does, for several processes of one machine at a time.

    If the data are streamed, one of the processes reads the skims, and all map its file. The file loses its
    name as soon as all have it; a process killed before leaves it behind until the next call removes it.

    Parameters
    ----------
    config
        Files, splits and folds, and whether to stream.
    columns_of, needs_truth
        As of `read_training_data`.
    path
        The temporary file, the same for all processes of a machine and for no others.
    writes
        Whether this process is the one that reads the skims.
    barrier
        Function that returns when all processes have called it.

    Raises
    ------
    TopRecoError
        As `read_training_data`, in all processes.
    """
    reader = _Reader(config, columns_of, needs_truth)
    skims = reader.opened()
    if not _streams(config, skims):
        return reader.read(skims).data(config.folds)
    error: TopRecoError | None = None
    if writes:
        try:
            with room(path.parent):
                # Not overwritten, should another training have it mapped.
                path.unlink(missing_ok=True)
                with path.open("xb") as file:
                    reader.read(skims, file).finish(file)
        except TopRecoError as raised:
            # The others wait.
            error = raised
            with suppress(OSError):
                path.unlink()
    barrier()
    if error is not None:
        raise error
    try:
        with path.open("r+b") as file:
            data = _map(file, path.parent, config.folds)
    except OSError as missing:
        raise TrainingError(
            f"{path}: cannot be read ({missing.strerror}); did the first process fail?"
        ) from None
    barrier()
    if writes:
        path.unlink(missing_ok=True)
    return data


def _complete_spectra(path: Path) -> dict[str, Any]:
    """Metadata of a skim that has the spectra of all generated events."""
    metadata = Skim(path).metadata
    found = metadata.get(METADATA_KEY)
    if found is None or not found["complete"]:
        state = "no spectra" if found is None else "spectra of a part of the generated events"
        raise TrainingError(
            f"{path}: {state} (data.spectra); a skim of a sample of tt̄ without preselection expected"
        )
    return metadata


def _budgets(config: DataConfig, skims: Sequence[Skim]) -> list[int]:
    """Number of events to read from each skim: the same share, rounded so that the sum is right."""
    ends = np.cumsum([0, *map(len, skims)])
    share = min(1.0, (config.max_events or math.inf) / ends[-1])
    return np.diff(np.round(share * ends)).astype(int).tolist()


def _streams(config: DataConfig, skims: Sequence[Skim]) -> bool:
    if config.stream == "auto":
        return sum(_budgets(config, skims)) > STREAM_FROM
    return config.stream


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """Make a folder for a temporary file, and say what is wrong with one that takes none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise TrainingError(
            f"{folder}: cannot hold the temporary file of the training, about 0.4 kB per event "
            f"({error.strerror}); data.cache names another folder, data.stream=false keeps events in memory"
        ) from error


class _Content(NamedTuple):
    """Events that were read."""

    rows: Rows
    weight: Tensor
    split: Tensor
    fold: Tensor
    summary: dict[str, Any]

    def data(self, folds: int) -> TrainingData:
        """The events in memory."""
        return TrainingData(self.rows.columns(), self.weight, self.split, self.fold, folds, self.summary)

    def finish(self, file: BinaryIO) -> None:
        """Write after the events in a file what `_map` needs."""
        file.writelines(column.numpy().data for column in (self.weight, self.split, self.fold))
        shapes = {name: (_NAMES[kind], shape) for name, (kind, shape) in self.rows.shapes.items()}
        text = json.dumps({"shapes": shapes, "summary": self.summary}).encode()
        file.write(text + len(text).to_bytes(_LENGTH, "little"))
        file.flush()


class _Reader(NamedTuple):
    """Reads skims as configured."""

    config: DataConfig
    columns_of: ColumnsOf
    needs_truth: bool

    def opened(self) -> list[Skim]:
        """The skims, checked as far as that is possible without reading events."""
        if not self.config.files:
            raise TrainingError("data.files: no skims given; write some with `topreco skim`")
        skims = [Skim(path) for path in self.config.files]
        for skim in skims:
            if self.needs_truth and not skim.has_truth:
                raise TrainingError(
                    f"{skim.path}: no truth in this skim; training needs simulation, skimmed with its truth"
                )
            if len(skim) == 0:
                raise TrainingError(f"{skim.path}: no events in this skim")
        return skims

    def read(self, skims: list[Skim], file: BinaryIO | None = None) -> _Content:
        """Read the events, into a file if there is one; the list of skims is emptied."""
        config = self.config
        budgets = _budgets(config, skims)
        rows: Rows | None = None
        n_jets = 0
        marks: list[tuple[Tensor, ...]] = []
        files: list[dict[str, Any]] = []
        numbers: dict[int, int] = {}
        spectra: list[dict[str, Any]] = []
        constant = True
        for budget in budgets:
            # A reader keeps some MB for as long as it lives.
            skim = skims.pop(0)
            read = used = 0
            for index in range(skim.n_row_groups):
                if read == budget:
                    break
                events, truth = skim.read_row_group(index)
                events = events[: budget - read]
                truth = None if truth is None else truth[: budget - read]
                read += len(events)
                if self.needs_truth:
                    events, truth = self._usable(events, truth, skim)
                used += len(events)
                constant &= same_key(events)
                _check_finite(events, truth, skim)
                columns = self.columns_of(events, truth)
                if rows is None:
                    n_jets = events.jets.shape[1]
                    shapes = {name: (x.dtype, tuple(x.shape[1:])) for name, x in columns.items()}
                    rows = Rows(shapes, sum(budgets), file)
                if events.jets.shape[1] != n_jets:
                    raise TrainingError(
                        f"{skim.path}: {events.jets.shape[1]} padded jets per event, "
                        f"{n_jets} in {config.files[0]}; skim all files with one jet.max_jets"
                    )
                rows.append(columns)
                identities, member = np.unique(events.dataset, return_inverse=True)
                known = [numbers.setdefault(int(identity), len(numbers)) for identity in identities]
                marks.append(
                    (
                        torch.from_numpy(events.weight.astype(np.float32)),
                        torch.from_numpy(split_of(events, config)),
                        torch.from_numpy(fold_of(events, config.folds)),
                        torch.from_numpy(np.array(known, np.int32)[member]),
                    )
                )
            if (skim.metadata.get(METADATA_KEY) or {}).get("complete"):
                spectra.append(skim.metadata)
            kept = {key: value for key, value in skim.metadata.items() if key not in _SKIM_ONLY}
            files.append({"name": skim.path.name, "events_read": read, "events_used": used, **kept})

        weight, split, fold, dataset = (torch.cat(parts) for parts in zip(*marks, strict=True))
        if rows is None or len(rows) == 0:
            names = ", ".join(map(str, config.files))
            decayed = "two true tops, both decayed to leptons"
            wanted = decayed if config.require_dileptonic else "two true tops"
            hint = "; data.require_dileptonic=false asks for no decay" if config.require_dileptonic else ""
            raise TrainingError(f"data.files: no event of {names} has {wanted}{hint}")
        if config.spectra:
            spectra = [_complete_spectra(path) for path in config.spectra]
        if config.normalise_weights:
            weight = _normalised(weight, dataset)
        # JSON readers lose the digits of 64-bit integers.
        summary: dict[str, Any] = {
            **({"constant_key": True} if constant and len(weight) > len(marks) else {}),
            "files": files,
            "dataset_ids": [str(identity) for identity in sorted(numbers)],
            "events": len(weight),
            # The prior of the training: of files that hold all generated events.
            **({METADATA_KEY: total.to_dict()} if spectra and (total := sum_spectra(spectra)) else {}),
            "networks": [
                {
                    name: {"events": int(part.sum()), "sum_of_weights": float(weight[part].double().sum())}
                    for name, part in zip(
                        ("train", "validation", "test"),
                        _parts(split, fold, number, config.folds),
                        strict=True,
                    )
                }
                for number in range(config.folds)
            ],
        }
        return _Content(rows, weight, split, fold, summary)

    def _usable(
        self, events: DileptonEvents, truth: Truth | None, skim: Skim
    ) -> tuple[DileptonEvents, Truth]:
        """Events whose truth can be learnt from."""
        if truth is None:
            raise TrainingError(f"{skim.path}: no truth in this skim")
        usable = truth.valid & truth.dileptonic if self.config.require_dileptonic else truth.valid
        return events[usable], truth[usable]


def _parts(split: Tensor, fold: Tensor, number: int, folds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks of the events that train, validate and test the network of a number, shape (n,) each."""
    own = fold == number if folds > 1 else split == TEST
    return (split == TRAIN) & ~own, (split == VALIDATION) & ~own, own


_LENGTH = 8
"""Bytes of the number at the end of a temporary file."""

_KINDS = {"float32": torch.float32, "int64": torch.int64, "bool": torch.bool}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def _map(file: BinaryIO, folder: Path, folds: int) -> TrainingData:
    """The data that `_Content.finish` completed in a file."""
    file.seek(-_LENGTH, 2)
    end = file.tell()
    length = int.from_bytes(file.read(_LENGTH), "little")
    file.seek(end - length)
    described = json.loads(file.read(length))
    shapes = {name: (_KINDS[kind], tuple(shape)) for name, (kind, shape) in described["shapes"].items()}
    n = described["summary"]["events"]
    file.seek(n * row_bytes(shapes))
    weight, split, fold = (
        torch.from_numpy(np.fromfile(file, kind, n)) for kind in (np.float32, np.int8, np.int16)
    )
    columns = mapped(shapes, n, file)
    return TrainingData(columns, weight, split, fold, folds, described["summary"], folder)


def _normalised(weight: Tensor, dataset: Tensor) -> Tensor:
    """Weights whose mean of |weight| is 1 in each dataset, all zeros excepted, shape (n,)."""
    mean = torch.bincount(dataset, weights=weight.abs().double()) / torch.bincount(dataset)
    return weight / torch.where(mean > 0, mean, 1.0).to(weight.dtype)[dataset]


def _check_finite(events: DileptonEvents, truth: Truth | None, skim: Skim) -> None:
    """Raise for values that would make the loss non-finite hours later."""
    # Features are checked where it is known which of them the network sees.
    for name in ("lepton_plus", "lepton_minus", "jets", "jet_btag", "met", "weight"):
        finite = np.isfinite(getattr(events, name))
        if name.startswith("jet"):
            # Padded slots are never read.
            finite |= ~events.jet_mask.reshape(events.jet_mask.shape + (1,) * (finite.ndim - 2))
        if name == "jet_btag" and events.jet_working_points is not None and not finite[events.jet_mask].any():
            # Without any score, events are for networks that see working points; others refuse them.
            continue
        finite = finite.reshape(len(events), math.prod(finite.shape[1:])).all(axis=1)
        if not finite.all():
            raise TrainingError(f"{skim.path}: {(~finite).sum()} events with non-finite {name}")
    if truth is None:
        return
    # Zero vectors pass every other check, yet have no mass to compare with.
    at_rest = (truth.tops[..., 0] <= 0).any(axis=1)
    if at_rest.any():
        raise TrainingError(f"{skim.path}: {at_rest.sum()} events with true tops of no energy")
