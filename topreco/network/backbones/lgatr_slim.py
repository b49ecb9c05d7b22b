"""The vectors-only transformer L-GATr-slim as a backbone."""

from jaxtyping import Bool, Float
from lgatr import LGATrSlim
from torch import Tensor, nn

from topreco.config import LGATrSlimConfig
from topreco.network.kernels import slim_packed


class LGATrSlimBackbone(nn.Module):
    """Vectors and scalars in, vectors and scalars out.

    It is equivariant under all Lorentz transformations of tokens and spurions together, reflections
    included.

    Parameters
    ----------
    config
        Sizes.
    in_channels, in_scalars
        Vectors and scalars per token of the input.
    out_vectors, out_scalars
        Vectors and scalars per token of the output.

    Attributes
    ----------
    packed
        On a CPU, compute with the kernels of `slim_packed` instead of the package's operations.
    """

    components = 4
    packed = True

    def __init__(
        self, config: LGATrSlimConfig, in_channels: int, in_scalars: int, out_vectors: int, out_scalars: int
    ) -> None:
        super().__init__()
        self.network = LGATrSlim(
            num_blocks=config.blocks,
            in_v_channels=in_channels,
            out_v_channels=out_vectors,
            hidden_v_channels=config.vector_channels,
            in_s_channels=in_scalars,
            out_s_channels=out_scalars,
            hidden_s_channels=config.scalar_channels,
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
        if self.packed and slim_packed.applies(self.network, geometry):
            return slim_packed.forward(self.network, geometry, scalars, mask)
        vectors, out = self.network(geometry, scalars, attn_mask=mask[:, None, None, :])
        return vectors, out
