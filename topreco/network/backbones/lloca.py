"""A plain transformer in local frames, LLoCa [1]_, as a backbone; needs the extra `lloca`.

Every token gets a Lorentz frame of its own, built of the event's momenta such that it turns with them. Seen
from there the momenta are invariant, so any network may take them in; attention carries vectors from frame to
frame.

References
----------
.. [1] J. Spinner et al., Lorentz Local Canonicalization: How to Make Any Network Lorentz-Equivariant,
   arXiv:2505.20280.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from topreco.config import LLoCaConfig
from topreco.core.errors import TopRecoError, needs_extra

_HIDDEN = 32
# Weights of momenta in a frame's rest system, e^±2 around their mean: no single massless one decides.
_WEIGHT_RANGE = 2.0


class LocalFrames(nn.Module):
    """Lorentz frame of each token: the rest system of one sum of all momenta, turned by two others.

    The three sums have weights that depend on invariants of a token and of each other token.

    Parameters
    ----------
    in_scalars
        Scalars per token.
    """

    def __init__(self, in_scalars: int) -> None:
        super().__init__()
        self.own = nn.Linear(in_scalars, _HIDDEN)
        self.other = nn.Linear(in_scalars, _HIDDEN, bias=False)
        self.product = nn.Linear(1, _HIDDEN, bias=False)
        self.out = nn.Linear(_HIDDEN, 3)

    def forward(
        self, p4: Float[Tensor, "n T 4"], scalars: Float[Tensor, "n T F"], mask: Bool[Tensor, "n T"]
    ) -> Float[Tensor, "n T 4 4"]:
        """Matrices that take four-vectors to the frame of a token, shape (n, T, 4, 4)."""
        from lloca.utils.polar_decomposition import polar_decomposition

        products = (p4 * p4.new_tensor([1.0, -1.0, -1.0, -1.0])) @ p4.transpose(1, 2)
        # Rounding may take a product of two massless momenta below zero.
        invariant = products.clamp(min=0).log1p()[..., None]
        hidden = self.own(scalars)[:, :, None] + self.other(scalars)[:, None] + self.product(invariant)
        weights = self.out(nn.functional.gelu(hidden))
        rest = (_WEIGHT_RANGE * weights[..., :1].tanh()).exp()
        weights = torch.cat([rest, weights[..., 1:]], -1) * mask[:, None, :, None]
        boost, *references = torch.einsum("nijk,njm->knim", weights, p4).unbind(0)
        return polar_decomposition(boost, torch.stack(references, -2))


class LLoCaBackbone(nn.Module):
    """Vectors and scalars in, vectors and scalars out.

    It is equivariant under proper orthochronous Lorentz transformations of tokens and spurions together. The
    frames are made of the first vector of each token.

    Parameters
    ----------
    config
        Sizes.
    in_channels, in_scalars
        Vectors and scalars per token of the input.
    out_vectors, out_scalars
        Vectors and scalars per token of the output.

    Raises
    ------
    TopRecoError
        If the package `lloca` is not installed.
    """

    components = 4

    def __init__(
        self, config: LLoCaConfig, in_channels: int, in_scalars: int, out_vectors: int, out_scalars: int
    ) -> None:
        super().__init__()
        self.out_vectors = out_vectors
        try:
            from lloca.backbone.transformer import Transformer
        except ImportError as error:
            raise TopRecoError(f"backbone.kind 'lloca': {needs_extra('lloca', error)}") from error
        self.frames = LocalFrames(in_scalars)
        per_head = config.channels // config.heads
        self.network = Transformer(
            in_channels=4 * in_channels + in_scalars,
            # Half of the features of a head are scalars, half components of vectors.
            attn_reps=f"{per_head // 2}x0n+{per_head // 8}x1n",
            out_channels=4 * out_vectors + out_scalars,
            num_blocks=config.blocks,
            num_heads=config.heads,
            dropout_prob=config.dropout,
        )

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
        from lloca import Frames

        p4 = geometry[:, :, 0]
        # Half precision would make frames that are no Lorentz transformations.
        with torch.autocast(p4.device.type, enabled=False):
            matrices = self.frames(p4, scalars, mask)
            local = torch.einsum("ntij,ntcj->ntci", matrices, geometry).flatten(-2)
        frames = Frames(matrices)
        total = (p4 * mask[..., None]).sum(1)
        out = self.network(
            torch.cat([local, scalars], -1), frames, p_ref=total, attn_mask=mask[:, None, None, :]
        )
        with torch.autocast(p4.device.type, enabled=False):
            vectors = out[..., : 4 * self.out_vectors].to(p4).unflatten(-1, (-1, 4))
            return torch.einsum("ntij,ntcj->ntci", frames.inv, vectors), out[..., 4 * self.out_vectors :]
