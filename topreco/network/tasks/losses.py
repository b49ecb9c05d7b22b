"""Losses, one number per event: pure functions of four-momenta and weights.

The top is compared with the top and the antitop with the antitop, never the better of the two assignments:
the leptons' charges tell them apart.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from topreco.config import LossConfig
from topreco.core import fourvector
from topreco.core.observables import c_hel as c_hel_of
from topreco.core.observables import lepton_directions

# (m/m_true)² below which the error of a mass continues as a straight line instead of diverging.
_SMALLEST_RATIO = 0.01

PT_SOFTENING = 30.0
"""Transverse momentum in GeV below which relative errors of pT no longer count in full."""

NEIGHBOURS = 16
"""Events of similar true m_tt that `m_tt_bias_loss` groups together."""

FLAT_BINS = 40
"""Bins of equal population in which `flattening_weights` measures the density of events."""

LARGEST_FLAT_WEIGHT = 20.0
"""Largest ratio of two of the `flattening_weights`."""

# Far below any top, far above the rounding of a double.
_SMALLEST_MASS = 1.0
_SMALLEST_SINE = 1e-3


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


def flattening_weights(m_tt: Float[Tensor, " n"], flatness: float) -> Float[Tensor, " n"]:
    """Weights that flatten the spectrum of ln m_tt: density to the power −flatness, mean 1.

    A regression shrinks toward where its training events are; with the same number of events everywhere it
    shrinks toward nowhere in particular. The density is that of `FLAT_BINS` bins of equal population, and no
    weight is more than `LARGEST_FLAT_WEIGHT` times the smallest.

    Parameters
    ----------
    m_tt
        True masses of the tt̄ systems in GeV, shape (n,).
    flatness
        0 leaves the spectrum as it is, 1 makes it flat.

    Returns
    -------
    weight
        Shape (n,).
    """
    values = m_tt.double().log()
    share = torch.linspace(0, 1, FLAT_BINS + 1, dtype=torch.float64, device=values.device)
    ordered = values.sort().values
    edges = ordered[(share * (len(values) - 1)).round().long()]
    # Bins without a width belong to data that do not vary.
    width = (edges[1:] - edges[:-1]).clamp(min=1e-6)
    place = torch.bucketize(values, edges[1:-1].contiguous(), right=True)
    weight = width[place] ** flatness
    weight = weight.clamp(max=LARGEST_FLAT_WEIGHT * float(weight.min()))
    return (weight / weight.mean()).to(m_tt.dtype)


def four_momentum_loss(
    pred: Float[Tensor, "n 2 4"],
    truth: Float[Tensor, "n 2 4"],
    scale: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Smooth-L1 distance of the four-momenta of t and t̄ from the truth, in units of the event's scale.

    With d the difference of a component: d²/2 for |d| < 1, else |d| − 1/2.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV, shape (n, 2, 4); index 0 is the top, 1 the antitop.
    scale
        Unit of each event in GeV, shape (n,).

    Returns
    -------
    loss
        Mean over both quarks and the four components, shape (n,).
    """
    unit = scale[:, None, None]
    error = functional.smooth_l1_loss(pred / unit, truth / unit, reduction="none")
    return error.mean(dim=(1, 2))


def m_tt_loss(
    pred: Float[Tensor, "n 2 4"], truth: Float[Tensor, "n 2 4"], *, kind: Literal["log", "relative", "ratio"]
) -> Float[Tensor, " n"]:
    """Loss of the mass of the tt̄ system, about half the squared relative error near the truth.

    With r = m/m_true: smooth-L1 of ln r or of r − 1, or r − 1 − ln r (the Itakura–Saito distance), whose
    minimum has ⟨r⟩ = 1, that is RB = 0. As functions of r² the two errors go on as their tangents below 0.01,
    so that the loss and its gradient are finite for spacelike predictions too and point back.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    kind
        Which of the three.

    Returns
    -------
    loss
        Shape (n,).
    """
    if kind == "ratio":
        pair, true_pair = pred.sum(1), truth.sum(1)
        return _mass_error(pair, true_pair, "relative") - _mass_error(pair, true_pair, "log")
    return _smooth_l1(_mass_error(pred.sum(1), truth.sum(1), kind))


def pt_top_loss(pred: Float[Tensor, "n 2 4"], truth: Float[Tensor, "n 2 4"]) -> Float[Tensor, " n"]:
    """Smooth-L1 loss of the transverse momenta of t and t̄.

    The error is ½ ln[(pT² + q²)/(pT_true² + q²)] with q = `PT_SOFTENING`: the logarithm of the ratio for
    large pT, and smooth for pT → 0 on either side.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).

    Returns
    -------
    loss
        Mean over both quarks, shape (n,).
    """
    logs = [(p4[..., 1:3].square().sum(-1) + PT_SOFTENING**2).log() for p4 in (pred, truth)]
    return _smooth_l1(0.5 * (logs[0] - logs[1])).mean(1)


def c_hel_loss(
    pred: Float[Tensor, "n 2 4"], leptons: Float[Tensor, "n 2 4"], truth: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Smooth-L1 loss of c_hel, of predicted tops and reconstructed leptons against its true value.

    It is evaluated in double precision, and a predicted top counts with at least 1 GeV of mass, so that it
    and its gradient are finite.

    Parameters
    ----------
    pred
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    leptons
        Reconstructed ℓ⁺ and ℓ⁻ in GeV, shape (n, 2, 4).
    truth
        True c_hel, of true tops and true leptons, shape (n,); NaN where unknown.

    Returns
    -------
    loss
        Shape (n,), zero where the truth is unknown.
    """
    error = c_hel_of(_timelike(pred), leptons.double()) - truth.double()
    # Filled before the loss, not after it: the gradient of NaN is NaN even times zero.
    return _smooth_l1(error.masked_fill(truth.isnan(), 0.0)).to(pred.dtype)


def spin_loss(
    pred: Float[Tensor, "n 2 4"], truth: Float[Tensor, "n 2 4"], leptons: Float[Tensor, "n 2 4"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Smooth-L1 losses of the leptons' cosines to the axes k, r, n, and of c_han.

    The axes are those of `topreco.core.observables.spin_basis` without the sign of cosΘ, which jumps at zero.
    Evaluated as `c_hel_loss` is; a top closer to the beam than 1 mrad counts as one at 1 mrad.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    leptons
        Reconstructed ℓ⁺ and ℓ⁻ in GeV, with both, shape (n, 2, 4).

    Returns
    -------
    cosines, c_han
        Mean over both leptons and the three axes, and that of c_han, shape (n,) each.
    """
    found = _unsigned_cosines(pred, leptons)
    with torch.no_grad():
        wanted = _unsigned_cosines(truth, leptons)
    errors = [found - wanted]
    # c_hel less twice the product along k.
    signs = found.new_tensor([-1.0, 1.0, 1.0])
    errors.append(((found[:, 0] * found[:, 1] - wanted[:, 0] * wanted[:, 1]) * signs).sum(-1))
    cosines, c_han = (_smooth_l1(error).to(pred.dtype) for error in errors)
    return cosines.mean((1, 2)), c_han


def pt_tt_loss(
    pred: Float[Tensor, "n 2 4"], truth: Float[Tensor, "n 2 4"], scale: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Smooth-L1 loss of the transverse momentum of t + t̄ as a vector, in units of the event's scale.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).
    scale
        Unit of each event in GeV, shape (n,).

    Returns
    -------
    loss
        Mean over both components, shape (n,).
    """
    error = (pred - truth).sum(1)[:, 1:3] / scale[:, None]
    return _smooth_l1(error).mean(1)


def _timelike(p4: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 4"]:
    """The same three-momenta with at least 1 GeV of mass, in double precision."""
    double = p4.double()
    mass = fourvector.mass_squared(double).clamp(min=_SMALLEST_MASS**2).sqrt()
    return fourvector.from_three_momentum(double[..., 1:], mass)


def _unsigned_cosines(
    tops: Float[Tensor, "n 2 4"], leptons: Float[Tensor, "n 2 4"]
) -> Float[Tensor, "n 2 3"]:
    """Cosines of both leptons to the axes k, r, n without the sign of cosΘ, in double precision."""
    double = _timelike(tops)
    directions = lepton_directions(double, leptons.double())
    momentum = fourvector.to_rest_frame(double[:, 0], double.sum(1))[..., 1:]
    k = momentum / momentum.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    kx, ky, cos = k.unbind(-1)
    sin = (kx.square() + ky.square()).clamp(min=_SMALLEST_SINE**2).sqrt()
    r = torch.stack([-kx * cos, -ky * cos, sin.square()], -1) / sin[:, None]
    n = torch.stack([-ky, kx, torch.zeros_like(kx)], -1) / sin[:, None]
    axes = torch.stack([k, r, n], 1)
    return (axes[:, None] * directions[:, :, None]).sum(-1)


def m_tt_bias_loss(pred: Float[Tensor, "n 2 4"], truth: Float[Tensor, "n 2 4"]) -> Float[Tensor, ""]:
    """Squared RB of m_tt among events of similar true m_tt: what a regression shrinks.

    Every other loss has its minimum at the mean or median of what the event may have been, which lies toward
    the middle of the training sample. This one has it where the mean at given *truth* is right, as tuned
    analytic methods have it; the price is a wider residual.

    It concerns the batch as a whole. Sorted by true mass, groups of `NEIGHBOURS` events give the mean product
    of the errors of two different events, an unbiased estimate of the squared mean error, which may come out
    negative. Events that do not fill a group do not count, nor do event weights.

    Parameters
    ----------
    pred, truth
        Four-momenta (E, px, py, pz) in GeV of t and t̄, shape (n, 2, 4).

    Returns
    -------
    loss
        One number for the batch; zero for fewer than `NEIGHBOURS` events.
    """
    error = _mass_error(pred.sum(1), truth.sum(1), "relative")
    groups = len(error) // NEIGHBOURS
    if groups == 0:
        return 0 * error.sum()
    order = fourvector.mass_squared(truth.sum(1)).argsort(stable=True)
    error = error[order[: groups * NEIGHBOURS]].reshape(groups, NEIGHBOURS)
    products = error.sum(1).square() - error.square().sum(1)
    return products.mean() / (NEIGHBOURS * (NEIGHBOURS - 1))


def _mass_error(
    pred: Float[Tensor, "*n 4"], truth: Float[Tensor, "*n 4"], kind: Literal["log", "relative"]
) -> Float[Tensor, "*n"]:
    """Logarithmic or relative error of the mass, see `m_tt_loss`."""
    ratio = fourvector.mass_squared(pred) / fourvector.mass_squared(truth)
    # Clamps rather than `where`: the gradient of the branch not taken would be NaN even times zero.
    safe, below = ratio.clamp(min=_SMALLEST_RATIO), (ratio - _SMALLEST_RATIO).clamp(max=0)
    if kind == "log":
        return 0.5 * (safe.log() + below / _SMALLEST_RATIO)
    return safe.sqrt() - 1 + 0.5 * below / _SMALLEST_RATIO**0.5


def _smooth_l1(error: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    return functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")


def event_loss(
    pred: Float[Tensor, "n 2 4"],
    truth: Float[Tensor, "n 2 4"],
    scale: Float[Tensor, " n"],
    config: LossConfig,
    leptons: Float[Tensor, "n 2 4"] | None = None,
    c_hel: Float[Tensor, " n"] | None = None,
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
    leptons, c_hel
        What `c_hel_loss` needs: reconstructed leptons in GeV, shape (n, 2, 4), and true c_hel, shape (n,).

    Returns
    -------
    loss
        Unweighted, shape (n,).

    Raises
    ------
    ValueError
        If a coefficient of a spin observable is not zero and leptons or c_hel are missing.
    """
    loss = four_momentum_loss(pred, truth, scale)
    if config.m_tt > 0:
        loss = loss + config.m_tt * m_tt_loss(pred, truth, kind=config.m_tt_kind)
    if config.pt_top > 0:
        loss = loss + config.pt_top * pt_top_loss(pred, truth)
    if config.c_hel > 0:
        if leptons is None or c_hel is None:
            raise ValueError(f"loss.c_hel: {config.c_hel} found, which needs leptons and the true c_hel")
        loss = loss + config.c_hel * c_hel_loss(pred, leptons, c_hel)
    if config.spin_cosines > 0 or config.c_han > 0:
        if leptons is None:
            raise ValueError("loss.spin_cosines, loss.c_han: the leptons are needed")
        cosines, c_han = spin_loss(pred, truth, leptons)
        loss = loss + config.spin_cosines * cosines + config.c_han * c_han
    if config.pt_tt > 0:
        loss = loss + config.pt_tt * pt_tt_loss(pred, truth, scale)
    return loss
