r"""From a network's raw vectors to physical top momenta.

Let v be a raw vector, P the sum of all visible objects and u = P/√P². The part of v orthogonal to u is
spacelike and serves as the momentum of the top in the rest frame of u; its mass m completes it:

    v⊥ = v − (v·u) u        p = v⊥ + √(m² + |v⊥|²) u        |v⊥|² = −v⊥·v⊥ ≥ 0

p is covariant, p² = m² and its energy is positive, whatever v is.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from topreco import fourvector

# Two leptons above 20 GeV have more mass than this, unless rounding destroys it.
MASS_FLOOR = 1.0
"""Smallest invariant mass, in GeV, that the visible system counts with."""


def visible_mass(p4: Float[Tensor, "n 4"]) -> Float[Tensor, "n"]:
    """Invariant mass of the visible system in GeV, at least `MASS_FLOOR`, shape (n,)."""
    return fourvector.mass_squared(p4).clamp(min=MASS_FLOOR**2).sqrt()


class Head(nn.Module):
    """Timelike four-momenta from raw vectors.

    Parameters
    ----------
    kind
        ``on_shell``: the mass is `m_top`. ``timelike``: it is m_top exp(½ tanh s) with a scalar s of the
        network, between 105 and 284 GeV.
    m_top
        Mass of the top quark in GeV.
    """

    def __init__(self, kind: Literal["on_shell", "timelike"], m_top: float) -> None:
        super().__init__()
        self.kind = kind
        self.m_top = m_top

    @property
    def scalars(self) -> int:
        """Scalars that the head needs per top."""
        return int(self.kind == "timelike")

    def forward(
        self,
        raw: Float[Tensor, "n 2 4"],
        scalars: Float[Tensor, "n 2 s"],
        visible: Float[Tensor, "n 4"],
        scale: Float[Tensor, "n"],
    ) -> Float[Tensor, "n 2 4"]:
        """Four-momenta of top and antitop in GeV, shape (n, 2, 4).

        Parameters
        ----------
        raw
            The network's vectors, in units of `scale`, shape (n, 2, 4).
        scalars
            The network's scalars, shape (n, 2, `self.scalars`).
        visible
            Sum of the visible objects in GeV, shape (n, 4).
        scale
            Normalisation of the event in GeV, shape (n,).
        """
        mass = self.m_top * torch.exp(0.5 * torch.tanh(scalars[..., 0])) if self.scalars else self.m_top
        # u from its three-vector, so that u·u = 1 however much the mass of P suffered from cancellation.
        u = (visible[:, 1:] / visible_mass(visible)[:, None])[:, None]
        gamma = torch.sqrt(1 + u.square().sum(-1, keepdim=True))
        # v⊥ as the three-momentum in the rest frame of u: there |v⊥|² is a plain sum of squares, whereas
        # in the laboratory it is a difference of large numbers.
        vector = raw * scale[:, None, None]
        along = (u * vector[..., 1:]).sum(-1, keepdim=True) / (1 + gamma)
        momentum = vector[..., 1:] + (along - vector[..., :1]) * u
        energy = fourvector.from_three_momentum(momentum, mass)[..., :1]
        # Back to the laboratory. The energy comes last, from momentum and mass, so that rounding cannot
        # make the result spacelike.
        along = (u * momentum).sum(-1, keepdim=True) / (1 + gamma)
        return fourvector.from_three_momentum(momentum + (along + energy) * u, mass)
