"""Task `ratio`: the ratio of the densities of two samples A and B, event by event.

A classifier that is trained by cross-entropy on A and B, each scaled to the same sum of weights, tends to
p_A/(p_A + p_B), so that its logit is log p_A/p_B.

With weights of both signs cross-entropy has no minimum for a flexible network, and |w| or max(w, 0) would
give another ratio. Events then count with the mean weight of their neighbours, which a first network learns
by regression from the same inputs, for A and B each [1]_: it estimates a density, which is not negative.
Where it comes out negative all the same, the event does not count.

References
----------
.. [1] B. Nachman, J. Thaler, Neural resampler for Monte Carlo reweighting with preserved uncertainties,
   arXiv:2007.11586.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import RatioConfig
from topreco.core.events import DileptonEvents, Truth
from topreco.core.ratios import LogRatioCalibration
from topreco.network.encoder import Encoder
from topreco.network.readout import over_objects
from topreco.network.task import Columns, Evaluated, Task, TrainingError
from topreco.network.tasks.truth_tokens import (
    TRUTH_COLUMN,
    VALUES_COLUMN,
    truth_columns,
    truth_encoder,
    truth_tokens,
)
from topreco.network.tokens import Inputs

IN_A = "in_a"
"""Column that says whether an event belongs to A, shape (n,)."""
SIGNED_WEIGHT = "signed_weight"
"""Column of signed weights with a mean of 1 in absolute value in A and in B, shape (n,)."""
LOCAL_WEIGHT = "local_weight"
"""Derived column: mean weight of the neighbours of an event, at least 0, shape (n,)."""

SCHEMA_VERSION = 2


class EventNetwork(nn.Module):
    """Some numbers of an event: from the tokens of ℓ⁺ and ℓ⁻ and the mean of all, after the backbone.

    Of generated events true values of observables may join them. What comes out of an untrained backbone
    differs little from event to event, and where A and B differ little too, the noise of the gradients
    drowns it before anything is learnt: hence the batch normalisation in front of the layers [1]_.

    Parameters
    ----------
    config
        Configuration of the model.
    outputs
        How many numbers.

    Attributes
    ----------
    encoder
        The part that does not depend on the task.

    References
    ----------
    .. [1] S. Ioffe, C. Szegedy, Batch normalization, arXiv:1502.03167.
    """

    def __init__(self, config: RatioConfig, outputs: int) -> None:
        super().__init__()
        self.generated = config.inputs == "generated"
        own = truth_encoder(config) if self.generated else config.encoder
        self.encoder = Encoder(own, vectors=1, scalars=config.scalars)
        seen = 3 * config.scalars + len(config.observables)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(seen),
            nn.Linear(seen, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, outputs),
        )

    def forward(self, columns: Mapping[str, Tensor]) -> Float[Tensor, "n outputs"]:
        """The numbers of each event, shape (n, outputs).

        Raises
        ------
        TrainingError
            If it is trained with a single event at a time.
        """
        if self.training and len(next(iter(columns.values()))) == 1:
            raise TrainingError("batch_size: one event at a time found; at least two expected")
        if self.generated:
            tokens = truth_tokens(columns[TRUTH_COLUMN])
        else:
            tokens = self.encoder.tokens(Inputs.from_columns(columns))
        encoded = self.encoder(tokens, self.encoder.scale(tokens))
        # Under autocast a backbone may compute in half precision.
        mean = over_objects(encoded.scalars, encoded.mask, mean=True)
        seen = torch.cat([*encoded.scalars[:, :2].unbind(1), mean], 1).to(tokens.p4)
        if VALUES_COLUMN in columns:
            seen = torch.cat([seen, columns[VALUES_COLUMN]], 1)
        out: Tensor = self.layers(seen)
        return out

    def fit_standardisation(self, columns: Mapping[str, Tensor]) -> None:
        """Set mean and standard deviation of the features of reconstructed objects."""
        if not self.generated:
            self.encoder.fit_standardisation(Inputs.from_columns(columns))


class RatioNetwork(nn.Module):
    """The calibrated ratio of a fold: the mean log-ratio of its members, then a rising function.

    Parameters
    ----------
    config
        Configuration of the model.

    Attributes
    ----------
    members
        Networks that differ in their seed.
    knots, values
        See `topreco.core.ratios.LogRatioCalibration`, continued with slope 1 to a fixed length.
    """

    kind = "ratio"
    knots: Tensor
    values: Tensor

    def __init__(self, config: RatioConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(EventNetwork(config, 1) for _ in range(config.members))
        steps = torch.arange(config.calibration_bins, dtype=torch.float32)
        self.register_buffer("knots", steps)
        self.register_buffer("values", steps.clone())

    @property
    def encoder(self) -> Encoder:
        """Encoder of the first member."""
        first = self.members[0]
        assert isinstance(first, EventNetwork)
        return first.encoder

    def raw(self, columns: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Log-ratios before the calibration, shape (n,)."""
        return torch.stack([member(columns)[:, 0] for member in self.members]).mean(0)

    def forward(self, columns: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Calibrated log p_A/p_B of each event, shape (n,)."""
        x = self.raw(columns)
        if len(self.knots) == 1:
            return x - self.knots[0] + self.values[0]
        place = torch.searchsorted(self.knots, x.detach()).clamp(1, len(self.knots) - 1)
        left, right = self.knots[place - 1], self.knots[place]
        slope = (self.values[place] - self.values[place - 1]) / (right - left)
        low = (x - self.knots[0]).clamp(max=0)
        high = (x - self.knots[-1]).clamp(min=0)
        return self.values[place - 1] + slope * (x - low - high - left) + low + high

    @torch.no_grad()
    def set_calibration(self, calibration: LogRatioCalibration) -> None:
        """Take over a calibration of at most `calibration_bins` knots."""
        more = np.arange(1, len(self.knots) - len(calibration.knots) + 1)
        for buffer, known in ((self.knots, calibration.knots), (self.values, calibration.values)):
            buffer.copy_(torch.from_numpy(np.r_[known, known[-1] + more]))


def task_schema(config: RatioConfig) -> dict[str, Any]:
    """Outputs of a model of this configuration, as plain JSON data that is stored with trained weights."""
    return {"version": SCHEMA_VERSION, "output": ["log_ratio"], "inputs": config.inputs}


def event_columns(config: RatioConfig, events: DileptonEvents, truth: Truth | None) -> Columns:
    """What a network of a configuration sees of events.

    Raises
    ------
    TrainingError
        If it sees generated tops and leptons, and there are none, or some are unknown.
    TopRecoError
        If the events lack something that it sees.
    """
    if config.inputs == "objects":
        return Inputs.from_events(events, tokens=config.tokens).columns()
    if truth is None:
        raise TrainingError(
            "model.inputs: generated tops and leptons wanted, and these events have no truth, as data "
            "have none"
        )
    columns = truth_columns(truth, config.observables)
    unknown = ~columns[TRUTH_COLUMN].isfinite().flatten(1).all(1)
    if unknown.any():
        raise TrainingError(
            f"model.inputs: generated tops or leptons are unknown in {int(unknown.sum())} of {len(unknown)} "
            "events; dileptonic simulation expected"
        )
    return columns


class _EventTask(Task[EventNetwork]):
    """What both trainings share.

    Parameters
    ----------
    config
        Configuration of the model.
    factors
        Factors of the weights of A and B in the loss.
    """

    def __init__(self, config: RatioConfig, factors: Mapping[Literal["a", "b"], float]) -> None:
        self.config, self.factors = config, factors

    def columns(self, events: DileptonEvents, truth: Truth | None) -> Columns:
        """What the networks see; the training adds to which sample an event belongs."""
        return event_columns(self.config, events, truth)

    def prepare(self, network: EventNetwork, sample: Columns) -> None:
        """Standardise the features."""
        network.fit_standardisation(sample)

    def _of_sample(self, columns: Mapping[str, Tensor]) -> Tensor:
        return torch.where(columns[IN_A], self.factors["a"], self.factors["b"]).float()


class LocalWeightTask(_EventTask):
    """Regression of the signed weights of A and B: their mean as a function of an event."""

    name = "local_weight"

    def build(self) -> EventNetwork:
        """Network with an output for A and one for B."""
        return EventNetwork(self.config, 2)

    def loss_weights(self, weight: Tensor, columns: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Every event of a sample counts the same."""
        return self._of_sample(columns)

    def loss(self, network: EventNetwork, columns: Columns) -> tuple[Tensor, None]:
        """Squared error, whose minimum is the mean."""
        return (_own(network(columns), columns) - columns[SIGNED_WEIGHT]).square(), None

    def metrics(self, batches: Iterable[Evaluated[EventNetwork]]) -> dict[str, float]:
        """Mean squared error, and the share of events whose mean weight comes out negative."""
        sums = np.zeros(4)
        for network, columns, _, loss_weight in batches:
            found = _own(network(columns), columns)
            loss = (found - columns[SIGNED_WEIGHT]).square()
            sums += [
                float((loss_weight * loss).double().sum()),
                float(loss_weight.double().sum()),
                float((found < 0).sum()),
                len(found),
            ]
        if not sums[1] > 0:
            return {}
        return {"loss": float(sums[0] / sums[1]), "negative": float(sums[2] / sums[3])}


def _own(both: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
    """Of the outputs for A and B, that of the sample of the event."""
    return torch.where(columns[IN_A], both[:, 0], both[:, 1])


class RatioTask(_EventTask):
    """Classification of events of A and B by cross-entropy.

    Parameters
    ----------
    config, factors
        As of both trainings; the factors give both samples the same sum of weights.
    local
        Networks of `LocalWeightTask`, one per fold, where there are negative weights.
    """

    name = RatioNetwork.kind

    def __init__(
        self,
        config: RatioConfig,
        factors: Mapping[Literal["a", "b"], float],
        local: Sequence[EventNetwork] = (),
    ) -> None:
        super().__init__(config, factors)
        self.local = local

    def build(self) -> EventNetwork:
        """Network that begins with the ratio 1."""
        network = EventNetwork(self.config, 1)
        last = network.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return network

    def derive(self, fold: int, columns: Columns) -> Columns:
        """Mean weights of the neighbours, by the network that has not seen the fold."""
        if not self.local:
            return {}
        network = self.local[fold].to(columns[IN_A].device).eval()
        return {LOCAL_WEIGHT: _own(network(columns), columns).clamp(min=0)}

    def loss_weights(self, weight: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
        """Weights of events; where there are negative ones, the loss has those of the neighbours."""
        factor = self._of_sample(columns)
        return factor if self.local else factor * weight

    def loss(self, network: EventNetwork, columns: Columns) -> tuple[Tensor, None]:
        """Cross-entropy."""
        loss = _cross_entropy(network, columns)
        return loss * columns[LOCAL_WEIGHT] if self.local else loss, None

    def metrics(self, batches: Iterable[Evaluated[EventNetwork]]) -> dict[str, float]:
        """Mean cross-entropy, and what it gains over the ratio 1 everywhere."""
        total = weights = 0.0
        for network, columns, _, loss_weight in batches:
            own = loss_weight * columns[LOCAL_WEIGHT] if self.local else loss_weight
            total += float((own * _cross_entropy(network, columns)).double().sum())
            weights += float(own.double().sum())
        return {"loss": total / weights, "gain": math.log(2) - total / weights} if weights > 0 else {}


def _cross_entropy(network: EventNetwork, columns: Columns) -> Tensor:
    logit = network(columns)[:, 0]
    return functional.binary_cross_entropy_with_logits(logit, columns[IN_A].to(logit), reduction="none")
