"""With which weights a training starts, and how those learn."""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

ENCODER = "encoder."
"""Beginning of the names of an encoder's parameters in the network of a task."""


class Start(NamedTuple):
    """Weights of a trained model with which a training starts.

    Attributes
    ----------
    name
        Of the model.
    load
        Function of the number of a fold and its untrained network that loads weights and standardisations and
        returns the names of the parameters among them. Draws no random numbers.
    rate
        Factor on the learning rate of these parameters.
    frozen_epochs
        Epochs at the beginning in which those of the encoder stay as they are.
    toward
        Weight decay of these parameters toward what was loaded [1]_, in place of that toward zero; None for
        the latter.

    References
    ----------
    .. [1] X. Li, Y. Grandvalet, F. Davoine, Explicit inductive bias for transfer learning with convolutional
       networks, ICML 2018, arXiv:1802.01483.
    """

    name: str
    load: Callable[[int, nn.Module], frozenset[str]]
    rate: float
    frozen_epochs: int
    toward: float | None


FROM_NOTHING = Start("", lambda fold, network: frozenset(), rate=1.0, frozen_epochs=0, toward=None)
"""Random weights."""
