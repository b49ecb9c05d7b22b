"""Transformations in which an observable has errors of one size everywhere: T in the modules of the tasks."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from topreco.core.observables import OBSERVABLES

SCALE = 50.0
"""Momentum in GeV below which T is linear and above which it is logarithmic."""

_SMALLEST = 1e-3


class Scale(NamedTuple):
    """A monotone transformation, its inverse, and the range that the inverse is confined to."""

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    low: float | None = None
    high: float | None = None

    def back(self, x: Tensor) -> Tensor:
        """From T(x) to x, within the range that x can have."""
        value = self.inverse(x)
        return value if self.low is None else value.clamp(self.low, self.high)


def to_momentum_scale(x: Tensor) -> Tensor:
    """Asinh of a momentum in units of `SCALE`."""
    return torch.asinh(x / SCALE)


def from_momentum_scale(x: Tensor) -> Tensor:
    """Inverse of `to_momentum_scale`, in GeV."""
    return SCALE * torch.sinh(x)


def logarithm(x: Tensor) -> Tensor:
    """Natural logarithm of a positive number, finite for any."""
    return x.clamp(min=_SMALLEST).log()


def _identity(x: Tensor) -> Tensor:
    return x


_LINEAR = Scale(_identity, _identity)
_COSINE = Scale(_identity, _identity, -1.0, 1.0)
_POSITIVE = Scale(to_momentum_scale, from_momentum_scale, 0.0)
LOGARITHMIC = Scale(logarithm, torch.exp)
MOMENTUM = Scale(to_momentum_scale, from_momentum_scale)

SCALES = {
    name: LOGARITHMIC
    if name.startswith("m_")
    else _POSITIVE
    if name.startswith("pt_")
    else _COSINE
    if name.startswith(("c_", "cos_"))
    else _LINEAR
    for name in OBSERVABLES
}
"""Of each observable."""
