r"""The Point-Edge Transformer of OmniLearn [1]_ [2]_ as a backbone: edges to near objects, then attention.

An object with a direction has the coordinates ln pT, η and φ. It takes in the mean over its nearest
neighbours in ΔR of a layer that sees both ends of an edge, as in dynamic graph networks [3]_, and the
attention between two objects has a bias that depends on

    ln m² = ln 2 pT₁ pT₂ (cosh Δη − cos Δφ),    ln ΔR,    ln k_T = ln min(pT₁, pT₂) ΔR.

Tokens without a direction (MET, which has no η, and readout tokens and spurions without transverse momentum)
enter as what OmniLearn calls a condition: they attend and are attended to, but have no edges and no bias.

The package `omnilearned` has the second version of this network, but no place for such tokens: its conditions
are one vector per event, it takes an object for padding if ln pT = 0, and Δφ there is not wrapped. Nor is a
network here pre-trained on the constituents of jets. Its attention among the neighbours is left out.

References
----------
.. [1] V. Mikuni, B. Nachman, OmniLearn: a method to simultaneously facilitate all jet physics tasks,
   arXiv:2404.16091.
.. [2] W. Bhimji et al., OmniLearned: a foundation model framework for all tasks involving jet physics,
   arXiv:2510.24066.
.. [3] Y. Wang et al., Dynamic graph CNN for learning on point clouds, arXiv:1801.07829.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import PETConfig
from topreco.network.backbones.transformer import TransformerBlock

# Beyond any detector; keeps cosh finite.
_LARGEST_ETA = 10.0
_SMALLEST = 1e-6
"""Floor of squares in logarithms, in units of the scale where they are momenta."""
_COORDINATES = 4
_PAIR = 3


class Coordinates(NamedTuple):
    """Cylindrical coordinates of tokens, zero where there is no direction.

    Attributes
    ----------
    directed
        True where a token has a direction: pT > 0 and pz ≠ 0, shape (n, T).
    log_pt, eta, cos, sin
        ln pT, η, cos φ and sin φ, shape (n, T).
    """

    directed: Bool[Tensor, "n T"]
    log_pt: Float[Tensor, "n T"]
    eta: Float[Tensor, "n T"]
    cos: Float[Tensor, "n T"]
    sin: Float[Tensor, "n T"]


def coordinates(p4: Float[Tensor, "n T 4"], mask: Bool[Tensor, "n T"]) -> Coordinates:
    """Cylindrical coordinates of the tokens that exist.

    Parameters
    ----------
    p4
        Four-momenta (E, px, py, pz) in any unit, shape (n, T, 4).
    mask
        True where there is a token, shape (n, T).
    """
    _, px, py, pz = p4.unbind(-1)
    squared = px.square() + py.square()
    directed = mask & (squared > _SMALLEST**2) & (pz != 0)
    pt = torch.where(directed, squared, 1.0).sqrt()
    eta = torch.asinh(torch.where(directed, pz, 0.0) / pt).clamp(-_LARGEST_ETA, _LARGEST_ETA)
    cos, sin = (torch.where(directed, p / pt, 0.0) for p in (px, py))
    return Coordinates(directed, pt.log(), eta, cos, sin)


def pair_features(at: Coordinates) -> tuple[Float[Tensor, "n T T 3"], Float[Tensor, "n T T"]]:
    """Features of all pairs of tokens and their distances.

    Parameters
    ----------
    at
        Coordinates of the tokens.

    Returns
    -------
    features
        ln m², ln ΔR and ln k_T, shape (n, T, T, 3), zero for a token with itself or without direction.
    distance
        (ΔR)², infinite there, shape (n, T, T).
    """
    others = ~torch.eye(at.eta.shape[1], dtype=torch.bool, device=at.eta.device)
    pairs = at.directed[:, :, None] & at.directed[:, None] & others
    cos = at.cos[:, :, None] * at.cos[:, None] + at.sin[:, :, None] * at.sin[:, None]
    sin = at.sin[:, :, None] * at.cos[:, None] - at.cos[:, :, None] * at.sin[:, None]
    # With no angle at all atan2 has no derivative.
    delta_phi = torch.atan2(sin, torch.where(pairs, cos, 1.0))
    delta_eta = at.eta[:, :, None] - at.eta[:, None]
    squared = delta_eta.square() + delta_phi.square()
    log_pt = at.log_pt[:, :, None] + at.log_pt[:, None]
    mass = 2 * (delta_eta.cosh() - cos).clamp(min=_SMALLEST)
    log_r = 0.5 * squared.clamp(min=_SMALLEST).log()
    log_kt = torch.minimum(at.log_pt[:, :, None], at.log_pt[:, None]) + log_r
    features = torch.stack([mass.log() + log_pt, log_r, log_kt], -1)
    return torch.where(pairs[..., None], features, 0.0), squared.masked_fill(~pairs, torch.inf)


class LocalEdges(nn.Module):
    """Mean of a layer over the edges from each object to its nearest neighbours in ΔR.

    Parameters
    ----------
    channels
        Features per token.
    neighbours
        Number of neighbours; all others where there are fewer.
    """

    def __init__(self, channels: int, neighbours: int) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.own = nn.Linear(channels, channels)
        self.other = nn.Linear(channels, channels, bias=False)
        self.pair = nn.Linear(_PAIR, channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(
        self,
        h: Float[Tensor, "n T C"],
        pairs: Float[Tensor, "n T T 3"],
        distance: Float[Tensor, "n T T"],
    ) -> Float[Tensor, "n T C"]:
        """Features from the edges, zero where there are none, shape (n, T, C).

        Parameters
        ----------
        h
            Features of the tokens.
        pairs, distance
            As of `pair_features`.
        """
        k = min(self.neighbours, distance.shape[1])
        farthest = distance.topk(k, dim=-1, largest=False).values[..., -1:]
        # Objects at one distance, such as a jet and its repetition as a b candidate, count alike.
        near = ((distance <= farthest * (1 + 1e-6)) & distance.isfinite()).to(h.dtype)
        edges = functional.gelu(self.own(h)[:, :, None] + self.other(h)[:, None] + self.pair(pairs))
        count = near.sum(-1, keepdim=True)
        mean = (near[..., None] * edges).sum(2) / count.clamp(min=1)
        return self.out(mean) * (count > 0)


class PETBackbone(nn.Module):
    """Components of vectors and scalars in, vectors and scalars out; not equivariant.

    Parameters
    ----------
    config
        Sizes.
    in_channels, in_scalars
        Vectors and scalars per token of the input; the first vector is the momentum.
    out_vectors, out_scalars
        Vectors and scalars per token of the output.
    """

    components = 4

    def __init__(
        self, config: PETConfig, in_channels: int, in_scalars: int, out_vectors: int, out_scalars: int
    ) -> None:
        super().__init__()
        self.out_vectors = out_vectors
        channels = config.channels
        # Scalars last, where a training that starts from this one finds the columns of features.
        features = 4 * in_channels + in_scalars
        self.condition_in = nn.Linear(features, channels)
        self.object_in = nn.Linear(_COORDINATES + features, channels)
        self.object_out = nn.Linear(channels, channels)
        self.edges = LocalEdges(channels, config.neighbours)
        self.bias = nn.Sequential(nn.Linear(_PAIR, channels), nn.GELU(), nn.Linear(channels, config.heads))
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, config.heads, config.dropout or 0.0) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(channels)
        self.linear_out = nn.Linear(channels, 4 * out_vectors + out_scalars)

    def forward(
        self,
        geometry: Float[Tensor, "n T C 4"],
        scalars: Float[Tensor, "n T F"],
        mask: Bool[Tensor, "n T"],
    ) -> tuple[Float[Tensor, "n T V 4"], Float[Tensor, "n T S"]]:
        """Vectors and scalars of each token; those of masked tokens are undefined.

        Parameters
        ----------
        geometry
            Vectors (E, px, py, pz), shape (n, T, C, 4).
        scalars
            Scalar features, shape (n, T, F).
        mask
            Tokens to attend to, shape (n, T).
        """
        at = coordinates(geometry[:, :, 0], mask)
        pairs, distance = pair_features(at)
        features = torch.cat([geometry.flatten(-2), scalars], -1)
        own = torch.cat([torch.stack(at[1:], -1), features], -1)
        objects = self.object_out(functional.gelu(self.object_in(own)))
        h = torch.where(at.directed[..., None], objects, self.condition_in(features))
        h = h + self.edges(h, pairs, distance)
        # Without a bias for whatever is no pair of objects.
        bias = self.bias(pairs) * distance.isfinite()[..., None]
        attention = bias.permute(0, 3, 1, 2).masked_fill(~mask[:, None, None, :], -torch.inf)
        for block in self.blocks:
            h = block(h, attention)
        out = self.linear_out(self.norm(h))
        return out[..., : 4 * self.out_vectors].unflatten(-1, (-1, 4)), out[..., 4 * self.out_vectors :]
