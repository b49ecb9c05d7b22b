"""Training data: skims read row group by row group into tensors, and their augmentation.

About 0.4 kB per event with twelve padded jets stay in memory, twice that while the row groups are joined:
a million events need 0.4 GB and briefly 0.8 GB, per process and, on a GPU, once more there.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from topreco.config import DataConfig
from topreco.errors import TopRecoError
from topreco.events import DileptonEvents, IntArray, Truth
from topreco.network.splits import TEST, TRAIN, VALIDATION, fold_of, split_of
from topreco.network.tokens import Objects
from topreco.observables import c_hel
from topreco.skim import Skim

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
    """

    objects: Objects
    tops: Tensor
    c_hel: Tensor
    weight: Tensor
    split: Tensor
    fold: Tensor
    folds: int
    summary: dict[str, Any]

    def __len__(self) -> int:
        return len(self.weight)

    def indices(self, fold: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the events that train, validate and test the network of a fold, each shape (n_split,).

        With several folds the test events are the fold itself.
        """
        own = self.fold == fold if self.folds > 1 else self.split == TEST
        parts = ((self.split == TRAIN) & ~own, (self.split == VALIDATION) & ~own, own)
        train, validation, test = (part.nonzero().squeeze(1) for part in parts)
        return train, validation, test

    def to(self, device: torch.device) -> Self:
        """The same data on a device."""
        names = ("tops", "c_hel", "weight", "split", "fold")
        columns = {name: getattr(self, name).to(device) for name in names}
        return replace(self, objects=self.objects.to(device), **columns)


def read_training_data(config: DataConfig) -> TrainingData:
    """Read skims with truth.

    Parameters
    ----------
    config
        Files, splits and folds.

    Returns
    -------
    data
        Events with both tops in the truth record, and dileptonic where that is required.

    Raises
    ------
    SkimError
        If a file is missing or no skim.
    TrainingError
        If no file is given, or one has no truth, no events, non-finite values or another number of padded
        jets than the first; or if none of the events can be used.
    """
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

    objects: list[Objects] = []
    columns: list[tuple[Tensor, ...]] = []
    files: list[dict[str, Any]] = []
    identities: list[IntArray] = []
    ends = np.cumsum([0, *map(len, skims)])
    # The same share of each, rounded so that the sum is right.
    share = min(1.0, (config.max_events or math.inf) / ends[-1])
    budgets = np.diff(np.round(share * ends)).astype(int).tolist()
    for skim, budget in zip(skims, budgets, strict=True):
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
            objects.append(Objects.from_events(events))
            columns.append(
                (
                    torch.from_numpy(truth.tops.astype(np.float32)),
                    torch.from_numpy(c_hel(truth.tops, truth.lepton).astype(np.float32)),
                    torch.from_numpy(events.weight.astype(np.float32)),
                    torch.from_numpy(split_of(events, config)),
                    torch.from_numpy(fold_of(events, config.folds)),
                )
            )
            identities.append(events.dataset)
            if objects[-1].jets.shape[1:] != objects[0].jets.shape[1:]:
                raise TrainingError(
                    f"{skim.path}: {objects[-1].jets.shape[1]} padded jets per event, "
                    f"{objects[0].jets.shape[1]} in {skims[0].path}; skim all files with one jet.max_jets"
                )
        kept = {key: value for key, value in skim.metadata.items() if key not in _SKIM_ONLY}
        files.append({"name": skim.path.name, "events_read": read, "events_used": used, **kept})

    joined = Objects(*(torch.cat(parts) for parts in zip(*objects, strict=True)))
    tops, spin, weight, split, fold = (torch.cat(parts) for parts in zip(*columns, strict=True))
    if len(weight) == 0:
        wanted = "two true tops, both decayed to leptons" if config.require_dileptonic else "two true tops"
        hint = "; data.require_dileptonic=false asks for no decay" if config.require_dileptonic else ""
        raise TrainingError(f"data.files: no event of {_names(skims)} has {wanted}{hint}")
    datasets, member = np.unique(np.concatenate(identities), return_inverse=True)
    if config.normalise_weights:
        weight = _normalised(weight, torch.from_numpy(member))
    # JSON readers lose the digits of 64-bit integers.
    summary = {"files": files, "dataset_ids": [str(identity) for identity in datasets]}
    data = TrainingData(joined, tops, spin, weight, split, fold, config.folds, summary)
    networks = [
        {
            name: {"events": len(index), "sum_of_weights": float(weight[index].double().sum())}
            for name, index in zip(("train", "validation", "test"), data.indices(number), strict=True)
        }
        for number in range(config.folds)
    ]
    return replace(data, summary=summary | {"events": len(data), "networks": networks})


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


def _names(skims: list[Skim]) -> str:
    return ", ".join(str(skim.path) for skim in skims)
