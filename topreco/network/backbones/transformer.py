"""A plain pre-norm transformer as a backbone: the baseline that has to learn every symmetry."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from topreco.config import TransformerConfig


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after a layer norm and around a residual.

    `torch.nn.TransformerEncoderLayer` computes the same, but takes another, fused path in evaluation that
    cannot be exported to ONNX and is switched off only globally.

    Parameters
    ----------
    channels
        Features per token.
    heads
        Attention heads.
    dropout
        Probability of dropping a feature.
    """

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.project = nn.Linear(channels, channels)
        self.norm_mlp = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Float[Tensor, "n T C"], attention: Tensor) -> Float[Tensor, "n T C"]:
        """New features of each token, shape (n, T, C).

        Parameters
        ----------
        h
            Features of the tokens.
        attention
            True where a token (third axis) sees another one (last axis), or what is added to the logits of
            the attention; broadcast to (n, heads, T, T).
        """
        qkv = self.query_key_value(self.norm_attention(h)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(query, key, value, attention)
        # Not a view of another layout, which depends on how the attention is computed: exports fix it.
        h = h + self.dropout(self.project(torch.cat(attended.unbind(1), -1)))
        return h + self.dropout(self.mlp(self.norm_mlp(h)))


class TransformerBackbone(nn.Module):
    """Components of vectors and scalars in, vectors and scalars out; not equivariant.

    Parameters
    ----------
    config
        Sizes.
    in_channels, in_scalars
        Vectors and scalars per token of the input.
    out_vectors, out_scalars
        Vectors and scalars per token of the output.
    """

    components = 4

    def __init__(
        self, config: TransformerConfig, in_channels: int, in_scalars: int, out_vectors: int, out_scalars: int
    ) -> None:
        super().__init__()
        self.out_vectors = out_vectors
        self.linear_in = nn.Linear(4 * in_channels + in_scalars, config.channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.channels, config.heads, config.dropout or 0.0)
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.channels)
        self.linear_out = nn.Linear(config.channels, 4 * out_vectors + out_scalars)

    def forward(
        self,
        geometry: Float[Tensor, "n T C 4"],
        scalars: Float[Tensor, "n T F"],
        mask: Bool[Tensor, "n T"],
        sees: Bool[Tensor, "T T"] | None = None,
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
        sees
            Whether a token (first axis) attends to another one; None for all to all.
        """
        attention = mask[:, None, None, :]
        if sees is not None:
            attention = attention & sees
        h = self.linear_in(torch.cat([geometry.flatten(-2), scalars], -1))
        for block in self.blocks:
            h = block(h, attention)
        out = self.linear_out(self.norm(h))
        return out[..., : 4 * self.out_vectors].unflatten(-1, (-1, 4)), out[..., 4 * self.out_vectors :]
