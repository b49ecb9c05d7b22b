r"""Conditional flow matching: velocity fields from noise to samples, and their integration.

With x₀ from a normal distribution, x₁ the truth and x_t = (1 − t) x₀ + t x₁, a network v(x_t, t; event) that
is trained to the squared error of x₁ − x₀ becomes the mean velocity of all paths through x_t [1]_ [2]_.
Following it from t = 0 to 1 carries normal noise into the distribution of the truth given the event.

References
----------
.. [1] Y. Lipman et al., Flow matching for generative modeling, arXiv:2210.02747.
.. [2] A. Tong et al., Improving and generalizing flow-based generative models with minibatch optimal
   transport, arXiv:2302.00482.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import VelocityConfig

Velocity = Callable[[Tensor, Tensor], Tensor]
"""From points (n, k, d) and times that broadcast to (n, k, 1) to velocities (n, k, d)."""


class TimeFeatures(nn.Module):
    """Sines and cosines of a time in [0, 1].

    Parameters
    ----------
    frequencies
        Number of pairs.
    """

    frequency: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("frequency", math.pi * torch.arange(1.0, frequencies + 1), persistent=False)

    def forward(self, t: Float[Tensor, "n k 1"]) -> Float[Tensor, "n k f"]:
        """Time and its features, 1 + 2 × `frequencies` of them."""
        phase = t * self.frequency
        return torch.cat([t, phase.sin(), phase.cos()], -1)


class _Block(nn.Module):
    """Residual layer whose scale and shift depend on the event."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        inner = functional.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        return h + self.outer(functional.silu(self.inner(functional.silu(inner))))


class VelocityHead(nn.Module):
    """Velocity from a context that is computed once per event.

    Parameters
    ----------
    config
        Sizes.
    context
        Number of features of an event.
    dimensions
        Number of coordinates.
    """

    def __init__(self, config: VelocityConfig, context: int, dimensions: int) -> None:
        super().__init__()
        self.time = TimeFeatures(config.frequencies)
        self.point = nn.Linear(dimensions + 1 + 2 * config.frequencies, config.hidden)
        self.condition = nn.Sequential(
            nn.Linear(context, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.hidden * (1 + 2 * config.blocks)),
        )
        self.blocks = nn.ModuleList(_Block(config.hidden) for _ in range(config.blocks))
        self.out = nn.Linear(config.hidden, dimensions)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def of(self, context: Float[Tensor, "n c"]) -> Velocity:
        """Velocity field of events with this context."""
        start, *modulation = self.condition(context)[:, None].chunk(1 + 2 * len(self.blocks), -1)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            time = self.time(t)
            h = self.point(torch.cat([x, time.expand(*x.shape[:2], -1)], -1)) + start
            for block, scale, shift in zip(self.blocks, modulation[::2], modulation[1::2], strict=True):
                h = block(h, scale, shift)
            found: Tensor = self.out(functional.silu(h))
            return found

        return velocity


def integrate(velocity: Velocity, x: Float[Tensor, "n k d"], steps: int) -> Float[Tensor, "n k d"]:
    """Points at t = 1 from those at t = 0, by midpoint steps of equal length.

    Parameters
    ----------
    velocity
        Velocity field.
    x
        Points at t = 0.
    steps
        Number of steps, two evaluations each.
    """
    length = 1 / steps
    for step in range(steps):
        start = x.new_full((1, 1, 1), step * length)
        middle = x + 0.5 * length * velocity(x, start)
        x = x + length * velocity(middle, start + 0.5 * length)
    return x
