"""Losses, one number per event: pure functions of four-momenta and weights.

The top is compared with the top and the antitop with the antitop, never the better of the two assignments:
the leptons' charges tell them apart.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from topreco import fourvector
from topreco.config import LossConfig

# (m/m_true)² below which the m_tt error goes on as a straight line instead of diverging.
_SMALLEST_RATIO = 0.01


def loss_weights(weight: Float[Tensor, " n"], negative: Literal["absolute", "clip"]) -> Float[Tensor, " n"]:
    """Event weights that a loss can take: none negative, for a loss with negative weights has no minimum.

    Parameters
    ----------
    weight
        Signed event weights, shape (n,).
    negative
        ``absolute`` counts an event of weight w with |w|, ``clip`` with max(w, 0).

    Returns
    -------
    weight
        Weights ≥ 0, shape (n,).
    """
    return weight.abs() if negative == "absolute" else weight.clamp(min=0)


def four_momentum_loss(
    pred: Float[Tensor, "n 2 4"],
    truth: Float[Tensor, "n 2 4"],
    scale: Float[Tensor, " n"],
    *,
    base: Literal["mse", "smooth_l1"],
    component_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Tensor, " n"]:
    """Distance of the four-momenta of t and t̄ from the truth, in units of the event's scale.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV, shape (n, 2, 4); index 0 is the top, 1 the antitop.
    scale
        Unit of each event in GeV, shape (n,).
    base
        ``mse``: d²; ``smooth_l1``: d²/2 for |d| < 1, else |d| − 1/2.
    component_weights
        Factors of E, px, py, pz.

    Returns
    -------
    loss
        Mean over both quarks and the four components, shape (n,).
    """
    unit = scale[:, None, None]
    distance = functional.mse_loss if base == "mse" else functional.smooth_l1_loss
    error = distance(pred / unit, truth / unit, reduction="none")
    return (error * error.new_tensor(component_weights)).mean(dim=(1, 2))


def m_tt_loss(
    pred: Float[Tensor, "n 2 4"], truth: Float[Tensor, "n 2 4"], *, kind: Literal["log", "relative"]
) -> Float[Tensor, " n"]:
    """Smooth-L1 loss of the mass of the tt̄ system.

    The error is ln(m/m_true) or m/m_true − 1. As a function of m²/m_true² it goes on as its tangent below
    0.01, so that it and its gradient are finite for spacelike predictions too and point back.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    kind
        Logarithmic or relative error.

    Returns
    -------
    loss
        Shape (n,).
    """
    ratio = fourvector.mass_squared(pred.sum(1)) / fourvector.mass_squared(truth.sum(1))
    # The clamp keeps the unused branch of `where` finite: its gradient would be NaN even times zero.
    safe, below = ratio.clamp(min=_SMALLEST_RATIO), (ratio - _SMALLEST_RATIO).clamp(max=0)
    if kind == "log":
        error = 0.5 * (safe.log() + below / _SMALLEST_RATIO)
    else:
        error = safe.sqrt() - 1 + 0.5 * below / _SMALLEST_RATIO**0.5
    return functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")


def event_loss(
    pred: Float[Tensor, "n 2 4"],
    truth: Float[Tensor, "n 2 4"],
    scale: Float[Tensor, " n"],
    config: LossConfig,
) -> Float[Tensor, " n"]:
    """Loss of each event: the base loss plus the auxiliary terms with their coefficients.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    scale
        Unit of each event in GeV, shape (n,).
    config
        Kinds and coefficients.

    Returns
    -------
    loss
        Unweighted, shape (n,).
    """
    loss = four_momentum_loss(
        pred, truth, scale, base=config.base, component_weights=config.component_weights
    )
    if config.m_tt > 0:
        loss = loss + config.m_tt * m_tt_loss(pred, truth, kind=config.m_tt_kind)
    return loss
