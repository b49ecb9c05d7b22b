"""Axes that an event defines by itself, in which its symmetries are exact for any network.

x points along the transverse momentum of ℓ⁺, y to the side on which ℓ⁻ is, z to the side of the beam to which
leptons and jets go. An event that is rotated about the beam, or mirrored in the transverse plane or along the
beam, is in these axes what it was. A network that works in them has the symmetries of a pp collision, and
yet may use the components of its vectors as scalars: it can tell an event from its mirror image by none of
the invariants that vectors alone give.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from topreco.network.tokens import Inputs


def own_axes(inputs: Inputs) -> Float[Tensor, "n 3 3"]:
    """Orthogonal matrices from the laboratory to the axes of each event, of either handedness.

    Parameters
    ----------
    inputs
        Reconstructed objects.
    """
    plus, minus = inputs.lepton_plus, inputs.lepton_minus
    pt = torch.sqrt(plus[:, 1] ** 2 + plus[:, 2] ** 2)
    # A lepton along the beam has no azimuth; any will do.
    along = pt > 0
    cos = torch.where(along, plus[:, 1] / torch.where(along, pt, 1.0), 1.0)
    sin = torch.where(along, plus[:, 2] / torch.where(along, pt, 1.0), 0.0)
    side = torch.where(cos * minus[:, 2] - sin * minus[:, 1] < 0, -1.0, 1.0).to(pt)
    jets = torch.where(inputs.jet_mask, inputs.jets[..., 3], 0.0).sum(1)
    forward = torch.where(plus[:, 3] + minus[:, 3] + jets < 0, -1.0, 1.0).to(pt)
    zero = torch.zeros_like(cos)
    rows = [
        torch.stack([cos, sin, zero], -1),
        torch.stack([-side * sin, side * cos, zero], -1),
        torch.stack([zero, zero, forward], -1),
    ]
    return torch.stack(rows, 1)


def turned(p4: Float[Tensor, "n *k 4"], axes: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n *k 4"]:
    """Four-momenta (E, px, py, pz) in other axes; the transposed matrices lead back.

    Parameters
    ----------
    p4
        Shape (n, ..., 4).
    axes
        Rows are the new axes, shape (n, 3, 3).
    """
    axes = axes.reshape(-1, *[1] * (p4.ndim - 2), 3, 3)
    # No matrix product, which rounds differently in batches of another size.
    return torch.cat([p4[..., :1], (axes * p4[..., None, 1:]).sum(-1)], -1)


def in_own_axes(inputs: Inputs, axes: Float[Tensor, "n 3 3"]) -> Inputs:
    """The same objects in the axes of `own_axes`."""
    return inputs._replace(
        lepton_plus=turned(inputs.lepton_plus, axes),
        lepton_minus=turned(inputs.lepton_minus, axes),
        jets=turned(inputs.jets, axes),
        met=(axes[:, :2, :2] * inputs.met[:, None]).sum(-1),
    )
