"""What the pre-training tasks share: events without truth, and from where they are seen.

A network that is not equivariant must be pre-trained on events as it will see them: a posterior has turned
them into their own axes (`topreco.network.tasks.frame`), a network of the tops that is trained with
`augment_rotation` sees them from any side. So these tasks see events in their own axes, or, with
`augment_rotation`, from where it turned them.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from topreco.config import EncoderConfig, LossConfig
from topreco.core.events import DileptonEvents, Truth
from topreco.network.task import Columns, Network
from topreco.network.tasks.augmentation import Augmentation, AugmentedTask
from topreco.network.tasks.columns import check_features
from topreco.network.tasks.frame import in_own_axes, own_axes
from topreco.network.tokens import Inputs


class UnlabelledTask(AugmentedTask[Network]):
    """A task that needs reconstructed objects alone, of data and any simulation alike.

    Parameters
    ----------
    model
        Configuration of the network.
    loss
        Weights of events.
    augmentation
        Random symmetry transformations of the training events.
    """

    needs_truth = False

    def __init__(self, model: Any, loss: LossConfig, augmentation: Augmentation) -> None:
        self.model = model
        self.options = loss
        self.augmentation = augmentation

    def columns(self, events: DileptonEvents, truth: Truth | None) -> Columns:  # noqa: ARG002
        """Reconstructed objects; the truth, if there is any, is not looked at."""
        config: EncoderConfig = self.model
        inputs = Inputs.from_events(events, tokens=config.tokens)
        check_features(inputs, config.tokens)
        return inputs.columns()

    def seen(self, columns: Mapping[str, Tensor]) -> Inputs:
        """The objects of a batch as the network sees them."""
        inputs = Inputs.from_columns(columns)
        return inputs if self.augmentation.rotation else in_own_axes(inputs, own_axes(inputs))
