"""The geometric-algebra transformer L-GATr [1]_ as a backbone.

References
----------
.. [1] J. Spinner et al., Lorentz-Equivariant Geometric Algebra Transformers for High-Energy Physics,
   arXiv:2405.14806.
"""

import torch
from jaxtyping import Bool, Float
from lgatr import LGATr, MLPConfig, PrimitivesConfig, SelfAttentionConfig, extract_vector
from lgatr.primitives.compile import warmup_caches
from torch import Tensor, nn

from topreco.config import LGATrConfig
from topreco.network.kernels import lgatr_packed


class LGATrBackbone(nn.Module):
    """Multivectors and scalars in, vectors and scalars out.

    It is equivariant under proper orthochronous Lorentz transformations of tokens and spurions together.

    Parameters
    ----------
    config
        Sizes.
    in_channels, in_scalars
        Multivectors and scalars per token of the input.
    out_vectors, out_scalars
        Vectors and scalars per token of the output.

    Attributes
    ----------
    packed
        On a CPU, compute with the kernels of `lgatr_packed` instead of the package's operations.
    """

    components = 16
    packed = True

    def __init__(
        self, config: LGATrConfig, in_channels: int, in_scalars: int, out_vectors: int, out_scalars: int
    ) -> None:
        super().__init__()
        self.network = LGATr(
            num_blocks=config.blocks,
            in_mv_channels=in_channels,
            out_mv_channels=out_vectors,
            hidden_mv_channels=config.multivector_channels,
            in_s_channels=in_scalars,
            out_s_channels=out_scalars,
            hidden_s_channels=config.scalar_channels,
            attention=SelfAttentionConfig(num_heads=config.heads),
            mlp=MLPConfig(mlp_ratio=2),
            # The dense product is faster wherever the network is not compiled, and exports to ONNX.
            primitives=PrimitivesConfig(sparse_gp=False),
            dropout_prob=config.dropout,
        )
        # The package keeps constants from their first use, which must not be while an export traces.
        warmup_caches(torch.device("cpu"), torch.get_default_dtype())
        if not out_scalars:
            self._freeze_without_effect()

    def _freeze_without_effect(self) -> None:
        """Freeze what vectors alone do not depend on: distributed training waits for every gradient."""
        # With dropout, which has no maps, after it.
        last = next(layer for layer in reversed(self.network.blocks[-1].mlp.layers) if hasattr(layer, "s2s"))
        for layer in (last.s2mvs, last.mvs2s, last.s2s, self.network.linear_out.s2mvs):
            layer.requires_grad_(False)

    def forward(
        self,
        geometry: Float[Tensor, "n T C 16"],
        scalars: Float[Tensor, "n T F"],
        mask: Bool[Tensor, "n T"],
    ) -> tuple[Float[Tensor, "n T V 4"], Float[Tensor, "n T S"]]:
        """Vectors and scalars of each token; those of masked tokens are undefined.

        Parameters
        ----------
        geometry
            Multivectors, shape (n, T, C, 16).
        scalars
            Scalar features, shape (n, T, F).
        mask
            Tokens to attend to, shape (n, T).
        """
        if self.packed and lgatr_packed.applies(self.network, geometry):
            return lgatr_packed.forward(self.network, geometry, scalars, mask)
        multivectors, out = self.network(geometry, scalars, attn_mask=mask[:, None, None, :])
        # lgatr returns None for no scalars.
        return extract_vector(multivectors), scalars[..., :0] if out is None else out
