"""The contract between what is learnt and the loop that learns it.

A `Task` knows events, networks and losses, and nothing of epochs, devices or files; `topreco.network.fit`
knows those, and of a task only this contract.

The columns of an event are tensors by name, with the event as their first axis. A task chooses them from the
selected events and their truth (`Task.columns`) and gets them back in batches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, Truth

Network = TypeVar("Network", bound=nn.Module)
"""Class of a task's networks."""

Columns = dict[str, Tensor]
"""Columns of a batch by name, shape (n, ...) each."""


class TrainingError(TopRecoError):
    """A training that cannot start or continue."""


class Evaluated(NamedTuple, Generic[Network]):
    """A batch on which a network is evaluated, without gradients or dropout.

    Attributes
    ----------
    network
        The network that has not been trained on these events.
    columns
        Columns of the batch, the derived ones included.
    weight
        Signed event weights, shape (n,).
    loss_weight
        Weights in the loss, shape (n,).
    """

    network: Network
    columns: Columns
    weight: Tensor
    loss_weight: Tensor


class Task(ABC, Generic[Network]):
    """Something that a network can be trained for.

    With several folds there is one network for each; `fold` numbers them.
    """

    name: ClassVar[str]
    """In logs and model files."""
    needs_truth: ClassVar[bool] = True
    """True if the events must have generated tops."""

    @abstractmethod
    def columns(self, events: DileptonEvents, truth: Truth | None) -> Columns:
        """Columns to keep of each event, on the CPU: float32, int64 or bool, the same shape in every call."""

    @abstractmethod
    def build(self) -> Network:
        """Untrained network; its weights come from torch's global generator."""

    def prepare(self, network: Network, sample: Columns) -> None:
        """Set what follows from the training events before the first step, such as standardisations.

        Parameters
        ----------
        network
            The untrained network, on the CPU.
        sample
            Training events, on the CPU.

        Raises
        ------
        TrainingError
            If the task cannot be trained on such events.
        """

    def derive(self, fold: int, columns: Columns) -> Columns:  # noqa: ARG002
        """Further columns that do not change during the training, computed once for each fold."""
        return {}

    def loss_weights(self, weight: Tensor, columns: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Weights ≥ 0 in the loss, from the signed weights and columns of all events, shape (n,)."""
        return weight.abs()

    def draw(self, n: int, generator: torch.Generator) -> Columns:  # noqa: ARG002
        """Random numbers for the augmentation of n events, all of an epoch."""
        return {}

    def augment(self, columns: Columns, drawn: Columns) -> Columns:  # noqa: ARG002
        """The batch as augmented by its random numbers."""
        return columns

    @abstractmethod
    def loss(self, network: Network, columns: Columns) -> tuple[Tensor, Tensor | None]:
        """Loss of each event, shape (n,), and a term of the batch as a whole, shape (), or None.

        The network must be called itself, not through another of its methods: distributed training relies on
        it. The loop multiplies the losses of the events by their weights.
        """

    @abstractmethod
    def metrics(self, batches: Iterable[Evaluated[Network]]) -> dict[str, float]:
        """Metrics of all batches together, empty without events.

        The entry ``loss`` is the mean loss, by which the best epoch is chosen.
        """

    def describe(self, metrics: Mapping[str, float]) -> str:
        """A line about metrics for the terminal."""
        return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())

    def finish(
        self,
        networks: Sequence[Network],  # noqa: ARG002
        validation: Callable[[int], Iterable[Evaluated[Network]]],  # noqa: ARG002
    ) -> dict[str, Any]:
        """Complete the trained networks in place, such as by a calibration.

        Parameters
        ----------
        networks
            The best network of each fold, in evaluation mode.
        validation
            The validation events of a fold, in their order.

        Returns
        -------
        described
            Plain data about it.
        """
        return {}
