"""Augmentation: random symmetry transformations of training events."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from topreco.config import LossConfig, TrainConfig
from topreco.network.task import Columns, Network, Task
from topreco.network.tasks.losses import loss_weights
from topreco.network.tokens import Inputs


@dataclass(frozen=True)
class Augmentation:
    """Transformations that are drawn for each training event.

    Attributes
    ----------
    rotation
        Rotation about the beam by a random angle, an exact symmetry.
    reflection
        z → −z for half of the events, an exact symmetry.
    charge_exchange
        Exchange of ℓ⁺ and ℓ⁻, their b candidates, and t and t̄ for half of the events: a symmetry up to the
        charge asymmetry of about one percent.
    """

    rotation: bool = False
    reflection: bool = False
    charge_exchange: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> "Augmentation":
        """The augmentation of a training's configuration."""
        return cls(config.augment_rotation, config.augment_reflection, config.augment_charge_exchange)

    def draw(self, n: int, generator: torch.Generator) -> Columns:
        """Transformations of n events: ``angle``, ``reflect`` and ``exchange``, shape (n,) each, if any."""
        drawn = {}
        if self.rotation:
            drawn["angle"] = 2 * math.pi * torch.rand(n, generator=generator)
        if self.reflection:
            drawn["reflect"] = torch.rand(n, generator=generator) < 0.5
        if self.charge_exchange:
            drawn["exchange"] = torch.rand(n, generator=generator) < 0.5
        return drawn

    def apply(self, columns: Columns, drawn: Columns) -> Columns:
        """Columns with the objects, and the tops where there are any, as drawn, see `augment`."""
        if not drawn:
            return columns
        transformations = (drawn.get(name) for name in ("angle", "reflect", "exchange"))
        inputs = Inputs.from_columns(columns)
        known = columns.get("tops")
        # Without truth the leptons are in their place.
        tops = torch.stack([inputs.lepton_plus, inputs.lepton_minus], 1) if known is None else known
        inputs, tops = augment(inputs, tops, *transformations)
        return columns | inputs.columns() | ({} if known is None else {"tops": tops})


class AugmentedTask(Task[Network]):
    """A task whose training events are transformed, and weighted without the sign of their weights.

    Attributes
    ----------
    options
        Weights of the losses and of events.
    augmentation
        Random symmetry transformations of the training events.
    """

    options: LossConfig
    augmentation: Augmentation

    def loss_weights(self, weight: Tensor, columns: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002
        """Weights without their sign, shape (n,): with negative ones a loss has no bound below."""
        return loss_weights(weight, self.options.negative_weights)

    def draw(self, n: int, generator: torch.Generator) -> Columns:
        """Random symmetry transformations."""
        return self.augmentation.draw(n, generator)

    def augment(self, columns: Columns, drawn: Columns) -> Columns:
        """Transform the objects, and the tops alike."""
        return self.augmentation.apply(columns, drawn)


def augment(
    inputs: Inputs,
    tops: Tensor,
    angle: Tensor | None = None,
    reflect: Tensor | None = None,
    exchange: Tensor | None = None,
) -> tuple[Inputs, Tensor]:
    """Rotate events about the beam and reflect them along it, exact symmetries, and exchange charges.

    Parameters
    ----------
    inputs
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
    inputs, tops
        The same events seen from elsewhere.
    """
    if exchange is not None:
        exchanged = inputs.charge_exchanged().columns()
        inputs = Inputs(
            **{
                name: torch.where(exchange.reshape(-1, *[1] * (own.ndim - 1)), exchanged[name], own)
                for name, own in inputs.columns().items()
            }
        )
        tops = torch.where(exchange[:, None, None], tops.flip(1), tops)
    matrix = torch.eye(4, dtype=tops.dtype, device=tops.device).repeat(len(tops), 1, 1)
    if angle is not None:
        cos, sin = angle.cos(), angle.sin()
        matrix[:, 1, 1], matrix[:, 1, 2], matrix[:, 2, 1], matrix[:, 2, 2] = cos, -sin, sin, cos
    if reflect is not None:
        matrix[:, 3, 3] = 1 - 2 * reflect.to(tops.dtype)
    inputs = inputs._replace(
        lepton_plus=torch.einsum("nij,nj->ni", matrix, inputs.lepton_plus),
        lepton_minus=torch.einsum("nij,nj->ni", matrix, inputs.lepton_minus),
        jets=torch.einsum("nij,nkj->nki", matrix, inputs.jets),
        met=torch.einsum("nij,nj->ni", matrix[:, 1:3, 1:3], inputs.met),
    )
    return inputs, torch.einsum("nij,nkj->nki", matrix, tops)
