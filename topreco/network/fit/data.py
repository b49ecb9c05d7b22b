"""Training data: skims read row group by row group, in memory or in a temporary file, and their augmentation.

An event takes about 0.4 kB with twelve padded jets: of memory, and on a GPU once more there; or of disk, and
of memory no more than its weight, split and fold.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
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
from topreco.core.observables import c_hel
from topreco.core.skim import Skim
from topreco.network.fit.rows import Rows, Shapes, mapped, moved, row_bytes, sent
from topreco.network.splits import TEST, TRAIN, VALIDATION, fold_of, split_of
from topreco.network.tokens import Objects

STREAM_FROM = 1_000_000
"""Events from which `data.stream: auto` streams: 0.4 GB for each process."""

# Of a skim's metadata these say nothing about the content that a model file should repeat.
_SKIM_ONLY = {"format", "cutflow"}


class TrainingError(TopRecoError):
    """A training that cannot start or go on."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Events with truth as tensors.

    Attributes
    ----------
    objects
        Reconstructed objects.
    tops
        True four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    c_hel
        c_hel of the true tops and leptons, those of τ decays included, NaN where a lepton is unknown,
        shape (n,). Rotation and reflection leave it as it is.
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

    objects: Objects
    tops: Tensor
    c_hel: Tensor
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
        columns = (*self.objects, self.tops, self.c_hel, self.weight, self.split, self.fold)
        return sum(column.numel() * column.element_size() for column in columns)

    def indices(self, fold: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the events that train, validate and test the network of a fold, each shape (n_split,).

        With several folds the test events are the fold itself.
        """
        train, validation, test = (
            part.nonzero().squeeze(1) for part in _parts(self.split, self.fold, fold, self.folds)
        )
        return train, validation, test

    def take(self, index: Tensor, device: torch.device) -> tuple[Objects, Tensor, Tensor]:
        """Objects, true tops and c_hel of the events of an index, on a device."""
        objects = Objects(*(sent(column[index], device) for column in self.objects))
        return objects, sent(self.tops[index], device), sent(self.c_hel[index], device)

    def to(self, device: torch.device) -> Self:
        """The same data in the memory of a device."""
        names = ("tops", "c_hel", "weight", "split", "fold")
        columns: dict[str, Any] = {name: moved(getattr(self, name), device) for name in names}
        objects = Objects(*(moved(column, device) for column in self.objects))
        scratch = None if device.type != "cpu" else self.scratch
        return replace(self, objects=objects, scratch=scratch, **columns)


def read_training_data(config: DataConfig, scratch: Path | None = None) -> TrainingData:
    """Read skims with truth.

    Parameters
    ----------
    config
        Files, splits and folds, and whether to stream.
    scratch
        Folder of the temporary file if the data are streamed and `config.cache` names none; None is the
        system's. The file has no name: whatever ends the process, it is gone.

    Returns
    -------
    data
        Events with both tops in the truth record, and dileptonic where that is required. The same bits in
        memory and streamed.

    Raises
    ------
    SkimError
        If a file is missing or no skim.
    TrainingError
        If no file is given, or one has no truth, no events, non-finite values or another number of padded
        jets than the first; if none of the events can be used; or if the temporary file cannot be written.
    """
    skims = _opened(config)
    if not _streams(config, skims):
        return _read(config, skims).data(config.folds)
    folder = config.cache or scratch or Path(tempfile.gettempdir())
    with room(folder), tempfile.TemporaryFile(dir=folder) as file:
        _read(config, skims, file).finish(file)
        return _map(file, folder, config.folds)


def share_training_data(config: DataConfig, path: Path, *, writes: bool, barrier: Any) -> TrainingData:
    """Read skims as `read_training_data` does, for several processes of one machine at a time.

    If the data are streamed, one of the processes reads the skims, and all map its file. The file loses its
    name as soon as all have it; a process killed before leaves it behind until the next call removes it.

    Parameters
    ----------
    config
        Files, splits and folds, and whether to stream.
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
    skims = _opened(config)
    if not _streams(config, skims):
        return _read(config, skims).data(config.folds)
    error: TopRecoError | None = None
    if writes:
        try:
            with room(path.parent):
                # Not overwritten, should another training have it mapped.
                path.unlink(missing_ok=True)
                with path.open("xb") as file:
                    _read(config, skims, file).finish(file)
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


def _opened(config: DataConfig) -> list[Skim]:
    """The skims, checked as far as that is possible without reading events."""
    if not config.files:
        raise TrainingError("data.files: no skims given; write some with `topreco skim`")
    skims = [Skim(path) for path in config.files]
    for skim in skims:
        if not skim.has_truth:
            raise TrainingError(
                f"{skim.path}: no truth in this skim; training needs simulation, skimmed with its truth"
            )
        if len(skim) == 0:
            raise TrainingError(f"{skim.path}: no events in this skim")
    return skims


def _budgets(config: DataConfig, skims: Sequence[Skim]) -> list[int]:
    """How many events to read of each skim: the same share, rounded so that the sum is right."""
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


def _row_shapes(n_jets: int) -> Shapes:
    """What is kept of each event and only looked at when it is its turn."""
    return {
        "lepton_plus": (torch.float32, (4,)),
        "lepton_minus": (torch.float32, (4,)),
        "lepton_flavour": (torch.int64, (2,)),
        "jets": (torch.float32, (n_jets, 4)),
        "jet_mask": (torch.bool, (n_jets,)),
        "jet_btag": (torch.float32, (n_jets,)),
        "jet_tagged": (torch.bool, (n_jets,)),
        "b_candidates": (torch.int64, (2,)),
        "met": (torch.float32, (2,)),
        "tops": (torch.float32, (2, 4)),
        "c_hel": (torch.float32, ()),
    }


class _Content(NamedTuple):
    """What was read."""

    rows: Rows
    n_jets: int
    weight: Tensor
    split: Tensor
    fold: Tensor
    summary: dict[str, Any]

    def data(self, folds: int) -> TrainingData:
        """The events in memory."""
        return _joined(self.rows.columns(), self.weight, self.split, self.fold, folds, self.summary)

    def finish(self, file: BinaryIO) -> None:
        """Write behind the events in a file what `_map` needs."""
        file.writelines(column.numpy().data for column in (self.weight, self.split, self.fold))
        text = json.dumps({"n_jets": self.n_jets, "summary": self.summary}).encode()
        file.write(text + len(text).to_bytes(_LENGTH, "little"))
        file.flush()


def _read(config: DataConfig, skims: list[Skim], file: BinaryIO | None = None) -> _Content:
    """Read the events, into a file if there is one; of the skims none is left."""
    budgets = _budgets(config, skims)
    rows: Rows | None = None
    n_jets = 0
    marks: list[tuple[Tensor, ...]] = []
    files: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}
    for budget in budgets:
        # A reader keeps some MB for as long as it lives.
        skim = skims.pop(0)
        read = used = 0
        for index in range(skim.n_row_groups):
            if read == budget:
                break
            events, truth = skim.read_row_group(index)
            if truth is None:
                raise TrainingError(f"{skim.path}: no truth in this skim")
            events, truth = events[: budget - read], truth[: budget - read]
            read += len(events)
            usable = truth.valid & truth.dileptonic if config.require_dileptonic else truth.valid
            events, truth = events[usable], truth[usable]
            used += len(events)
            _check_finite(events, truth, skim)
            objects = Objects.from_events(events)
            if rows is None:
                n_jets = objects.jets.shape[1]
                rows = Rows(_row_shapes(n_jets), sum(budgets), file)
            if objects.jets.shape[1] != n_jets:
                raise TrainingError(
                    f"{skim.path}: {objects.jets.shape[1]} padded jets per event, "
                    f"{n_jets} in {config.files[0]}; skim all files with one jet.max_jets"
                )
            true = {
                "tops": torch.from_numpy(truth.tops.astype(np.float32)),
                "c_hel": torch.from_numpy(c_hel(truth.tops, truth.lepton).astype(np.float32)),
            }
            rows.append(objects._asdict() | true)
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
        kept = {key: value for key, value in skim.metadata.items() if key not in _SKIM_ONLY}
        files.append({"name": skim.path.name, "events_read": read, "events_used": used, **kept})

    weight, split, fold, dataset = (torch.cat(parts) for parts in zip(*marks, strict=True))
    if rows is None or len(rows) == 0:
        names = ", ".join(map(str, config.files))
        wanted = "two true tops, both decayed to leptons" if config.require_dileptonic else "two true tops"
        hint = "; data.require_dileptonic=false asks for no decay" if config.require_dileptonic else ""
        raise TrainingError(f"data.files: no event of {names} has {wanted}{hint}")
    if config.normalise_weights:
        weight = _normalised(weight, dataset)
    # JSON readers lose the digits of 64-bit integers.
    summary: dict[str, Any] = {"files": files, "dataset_ids": [str(identity) for identity in sorted(numbers)]}
    networks = []
    for number in range(config.folds):
        parts = zip(("train", "validation", "test"), _parts(split, fold, number, config.folds), strict=True)
        networks.append(
            {
                name: {"events": int(part.sum()), "sum_of_weights": float(weight[part].double().sum())}
                for name, part in parts
            }
        )
    summary |= {"events": len(weight), "networks": networks}
    return _Content(rows, n_jets, weight, split, fold, summary)


def _parts(split: Tensor, fold: Tensor, number: int, folds: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each event trains, validates and tests the network of a number, shape (n,) each."""
    own = fold == number if folds > 1 else split == TEST
    return (split == TRAIN) & ~own, (split == VALIDATION) & ~own, own


_LENGTH = 8
"""Bytes of the number at the end of a temporary file."""


def _map(file: BinaryIO, folder: Path, folds: int) -> TrainingData:
    """The data that `_Content.finish` completed in a file."""
    file.seek(-_LENGTH, 2)
    end = file.tell()
    length = int.from_bytes(file.read(_LENGTH), "little")
    file.seek(end - length)
    described = json.loads(file.read(length))
    summary = described["summary"]
    n, shapes = summary["events"], _row_shapes(described["n_jets"])
    file.seek(n * row_bytes(shapes))
    weight, split, fold = (
        torch.from_numpy(np.fromfile(file, kind, n)) for kind in (np.float32, np.int8, np.int16)
    )
    columns = mapped(shapes, n, file)
    return replace(_joined(columns, weight, split, fold, folds, summary), scratch=folder)


def _joined(
    columns: dict[str, Tensor],
    weight: Tensor,
    split: Tensor,
    fold: Tensor,
    folds: int,
    summary: dict[str, Any],
) -> TrainingData:
    objects = Objects(**{name: columns[name] for name in Objects._fields})
    return TrainingData(objects, columns["tops"], columns["c_hel"], weight, split, fold, folds, summary)


def _normalised(weight: Tensor, dataset: Tensor) -> Tensor:
    """Weights whose mean of |weight| is 1 in each dataset, all zeros excepted, shape (n,)."""
    mean = torch.bincount(dataset, weights=weight.abs().double()) / torch.bincount(dataset)
    return weight / torch.where(mean > 0, mean, 1.0).to(weight.dtype)[dataset]


def augment(
    objects: Objects,
    tops: Tensor,
    angle: Tensor | None = None,
    reflect: Tensor | None = None,
    exchange: Tensor | None = None,
) -> tuple[Objects, Tensor]:
    """Rotate events about the beam and reflect them along it, exact symmetries, and exchange charges.

    Parameters
    ----------
    objects
        Reconstructed objects.
    tops
        True four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    angle
        Angle of each event, shape (n,); None leaves them.
    reflect
        Whether pz changes sign, shape (n,); None leaves them.
    exchange
        Whether ℓ⁺ and ℓ⁻, their b candidates, and t and t̄ change places, shape (n,); None leaves them. A
        symmetry but for the charge asymmetry of about one percent.

    Returns
    -------
    objects, tops
        The same events seen from elsewhere.
    """
    if exchange is not None:
        exchanged = objects.charge_exchanged()
        objects = Objects(
            *(
                torch.where(exchange.reshape(-1, *[1] * (own.ndim - 1)), other, own)
                for own, other in zip(objects, exchanged, strict=True)
            )
        )
        tops = torch.where(exchange[:, None, None], tops.flip(1), tops)
    matrix = torch.eye(4, dtype=tops.dtype, device=tops.device).repeat(len(tops), 1, 1)
    if angle is not None:
        cos, sin = angle.cos(), angle.sin()
        matrix[:, 1, 1], matrix[:, 1, 2], matrix[:, 2, 1], matrix[:, 2, 2] = cos, -sin, sin, cos
    if reflect is not None:
        matrix[:, 3, 3] = 1 - 2 * reflect.to(tops.dtype)
    objects = objects._replace(
        lepton_plus=torch.einsum("nij,nj->ni", matrix, objects.lepton_plus),
        lepton_minus=torch.einsum("nij,nj->ni", matrix, objects.lepton_minus),
        jets=torch.einsum("nij,nkj->nki", matrix, objects.jets),
        met=torch.einsum("nij,nj->ni", matrix[:, 1:3, 1:3], objects.met),
    )
    return objects, torch.einsum("nij,nkj->nki", matrix, tops)


def _check_finite(events: DileptonEvents, truth: Truth, skim: Skim) -> None:
    """Raise for values that would make the loss non-finite hours later."""
    for name in ("lepton_plus", "lepton_minus", "jets", "jet_btag", "met", "weight"):
        finite = np.isfinite(getattr(events, name))
        if name.startswith("jet"):
            # What stands in a padded slot is nobody's business.
            finite |= ~events.jet_mask.reshape(events.jet_mask.shape + (1,) * (finite.ndim - 2))
        finite = finite.reshape(len(events), math.prod(finite.shape[1:])).all(axis=1)
        if not finite.all():
            raise TrainingError(f"{skim.path}: {(~finite).sum()} events with non-finite {name}")
    # Zero vectors pass every other check, yet have no mass to compare with.
    at_rest = (truth.tops[..., 0] <= 0).any(axis=1)
    if at_rest.any():
        raise TrainingError(f"{skim.path}: {at_rest.sum()} events with true tops of no energy")
