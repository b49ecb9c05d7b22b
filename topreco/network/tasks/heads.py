r"""From a network's raw vectors to physical top momenta.

Let v be a raw vector, P the sum of all visible objects and u = P/√P². The part of v orthogonal to u is
spacelike and serves as the momentum of the top in the rest frame of u; a mass m > 0 completes it:

    v⊥ = v − (v·u) u        p = v⊥ + √(m² + |v⊥|²) u        |v⊥|² = −v⊥·v⊥ ≥ 0

p is covariant, p² = m² and its energy is positive, whatever v is. The kinds of head differ in where m comes
from, see `Head`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from topreco.config import HeadKind
from topreco.core import fourvector
from topreco.network.tokens import visible_mass

SMALLEST_MASS = 0.1
"""Smallest mass, in units of m_top, of a top whose mass is not bounded otherwise.

No top is that light, and it is enough for momenta of up to 70 TeV to stay timelike in single precision.
"""

# |p| has no derivative at p = 0; √(p² + m²) has, and differs nowhere else.
_NEUTRINO_MASS = 1e-3


def soft_assignment(
    logits: Float[Tensor, "n 2 J"], jets: Float[Tensor, "n J 4"], mask: Bool[Tensor, "n J"]
) -> Float[Tensor, "n 2 4"]:
    """Momentum of the b quark of each top as an average over jets, Σⱼ wⱼ pⱼ with w = softmax(logits).

    Parameters
    ----------
    logits
        How well each jet suits each top, shape (n, 2, J).
    jets
        Four-momenta (E, px, py, pz) in GeV, shape (n, J, 4).
    mask
        True where there is a jet, shape (n, J).

    Returns
    -------
    p4
        Four-momenta in GeV, zero without any jet, shape (n, 2, 4).
    """
    mask = mask[:, None]
    # A finite number in place of −∞, then a product: without jets all −∞ would give NaN.
    weights = logits.masked_fill(~mask, -1e9).softmax(-1) * mask
    # No matrix product: autocast would make it one of half precision.
    return (weights[..., None] * jets[:, None]).sum(2)


class Head(nn.Module):
    """Timelike four-momenta from raw vectors.

    All kinds are covariant under all Lorentz transformations.

    Parameters
    ----------
    kind
        ``on_shell``: the mass is `m_top`.

        ``timelike``: it is m_top exp(½ tanh s) with a scalar s of the network, between 105 and 284 GeV.

        ``direct``: p = v as nearly as a timelike vector can, m² = m_min² + ½ (v² + √(v⁴ + 4a²)) with
        a = (m_top/2)² and m_min = m_top/10. It grows with v² from m_min² to infinity, tends to v² for large
        masses, and keeps a gradient where v is spacelike. Nothing keeps m_tt above 2 m_top.

        ``neutrinos``: v⊥ is the momentum of the massless neutrino, ν = v⊥ + |v⊥| u, and p the sum of
        neutrino, lepton and jets, the latter weighted by `soft_assignment`. The mass is what comes out,
        with no constraint on it or on the W; where everything is collinear it counts as m_top/10.
    m_top
        Mass of the top quark in GeV.
    """

    def __init__(self, kind: HeadKind, m_top: float) -> None:
        super().__init__()
        self.kind = kind
        self.m_top = m_top

    @property
    def scalars(self) -> int:
        """Scalars that the head needs per top."""
        return int(self.kind == "timelike")

    @property
    def jet_scalars(self) -> int:
        """Scalars that the head needs per jet and top."""
        return int(self.kind == "neutrinos")

    def forward(
        self,
        raw: Float[Tensor, "n 2 4"],
        scalars: Float[Tensor, "n 2 s"],
        visible: Float[Tensor, "n 4"],
        scale: Float[Tensor, "n"],
        decay: Float[Tensor, "n 2 4"] | None = None,
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
        decay
            Visible decay products of each top in GeV, lepton and b quark, shape (n, 2, 4); for
            ``neutrinos`` alone.

        Raises
        ------
        ValueError
            If ``neutrinos`` gets no decay products.
        """
        vector = raw * scale[:, None, None]
        # u from its three-vector, so that u·u = 1 however much the mass of P suffered from cancellation.
        u = (visible[:, 1:] / visible_mass(visible)[:, None])[:, None]
        gamma = torch.sqrt(1 + u.square().sum(-1, keepdim=True))
        # v⊥ as the three-momentum in the rest frame of u: there |v⊥|² is a plain sum of squares, whereas
        # in the laboratory it is a difference of large numbers.
        momentum = _momentum_at_rest(vector, u, gamma)
        mass: Tensor | float = self.m_top
        match self.kind:
            case "timelike":
                mass = self.m_top * torch.exp(0.5 * torch.tanh(scalars[..., 0]))
            case "direct":
                mass = self._free_mass(_energy_at_rest(vector, u, gamma).square() - momentum.square().sum(-1))
            case "neutrinos":
                if decay is None:
                    raise ValueError("head 'neutrinos': lepton and b quark of each top expected, got none")
                energy = fourvector.from_three_momentum(momentum, _NEUTRINO_MASS)[..., 0]
                energy = energy + _energy_at_rest(decay, u, gamma)
                momentum = momentum + _momentum_at_rest(decay, u, gamma)
                squared = energy.square() - momentum.square().sum(-1)
                mass = squared.clamp(min=(SMALLEST_MASS * self.m_top) ** 2).sqrt()
        energy = fourvector.from_three_momentum(momentum, mass)[..., :1]
        # Back to the laboratory. The energy comes last, from momentum and mass, so that rounding cannot
        # make the result spacelike.
        along = (u * momentum).sum(-1, keepdim=True) / (1 + gamma)
        return fourvector.from_three_momentum(momentum + (along + energy) * u, mass)

    def _free_mass(self, squared: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Positive mass in GeV from a squared mass of either sign, as ``direct`` has it."""
        a = (0.5 * self.m_top) ** 2
        # ½ (x + √(x² + 4a²)) = a exp(asinh(x/2a)), which does not cancel for x < 0.
        grown = a * torch.exp(torch.asinh(squared / (2 * a)))
        return (grown + (SMALLEST_MASS * self.m_top) ** 2).sqrt()


def _momentum_at_rest(
    p4: Float[Tensor, "n 2 4"], u: Float[Tensor, "n 1 3"], gamma: Float[Tensor, "n 1 1"]
) -> Float[Tensor, "n 2 3"]:
    """Three-momentum in the rest frame of the four-velocity (γ, u)."""
    along = (u * p4[..., 1:]).sum(-1, keepdim=True) / (1 + gamma)
    return p4[..., 1:] + (along - p4[..., :1]) * u


def _energy_at_rest(
    p4: Float[Tensor, "n 2 4"], u: Float[Tensor, "n 1 3"], gamma: Float[Tensor, "n 1 1"]
) -> Float[Tensor, "n 2"]:
    """Energy in the rest frame of the four-velocity (γ, u)."""
    return gamma[..., 0] * p4[..., 0] - (u * p4[..., 1:]).sum(-1)
