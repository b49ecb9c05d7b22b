"""L-GATr-slim on the tokens that exist, by the kernels of `slim_kernels`: CPU, single precision."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from lgatr import LGATrSlim
from lgatr.layers.slim_layers import SlimGLU, SlimRMSNorm, SlimSelfAttention
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from topreco.network.kernels import packed, slim_kernels
from topreco.network.kernels.packed import Layout, run


def applies(network: LGATrSlim, geometry: Tensor) -> bool:
    """True if `forward` can replace `network`: on the CPU, in single precision, not traced, no dropout."""
    return packed.applies(geometry) and all(block.attention.dropout is None for block in network.blocks)


def forward(
    network: LGATrSlim,
    geometry: Float[Tensor, "n T C 4"],
    scalars: Float[Tensor, "n T F"],
    mask: Bool[Tensor, "n T"],
) -> tuple[Float[Tensor, "n T V 4"], Float[Tensor, "n T S"]]:
    """Output of `network` for tokens within `mask`, zeros elsewhere, up to rounding.

    Parameters
    ----------
    network
        One to which this `applies`.
    geometry
        Vectors (E, px, py, pz), shape (n, T, C, 4).
    scalars
        Scalar features, shape (n, T, F).
    mask
        Tokens that exist, shape (n, T).
    """
    layout = Layout.of(mask)
    v = layout.pack(geometry).transpose(1, 2)
    s = layout.pack(scalars)
    v, s = _linear(v, s, network.linear_in)
    for block in network.blocks:
        h_v, h_s = _norm(v, s, block.norm1)
        h_v, h_s = _attention(h_v, h_s, block.attention, layout)
        v, s = v + h_v, s + h_s
        h_v, h_s = _norm(v, s, block.norm2)
        *gated, last = block.mlp.layers
        for layer in gated:
            h_v, h_s = _gate(h_v, h_s, layer)
        h_v, h_s = _linear(h_v, h_s, last)
        v, s = v + h_v, s + h_s
    v, s = _linear(v, s, network.linear_out)

    return layout.unpack(v).transpose(2, 3), layout.unpack(s)


def _linear(v: Tensor, s: Tensor, layer: Any) -> tuple[Tensor, Tensor]:
    # A network may be asked for vectors alone.
    scalars = s.new_zeros((len(s), 0)) if layer.linear_s is None else layer.linear_s(s)
    return linear(v, layer.weight_v), scalars


def _norm(v: Tensor, s: Tensor, layer: SlimRMSNorm) -> tuple[Tensor, Tensor]:
    return _Norm.apply(v, s, layer.weight_v, layer.weight_s, layer.epsilon)  # type: ignore[no-untyped-call]


def _gate(v: Tensor, s: Tensor, layer: SlimGLU) -> tuple[Tensor, Tensor]:
    return _Gate.apply(*_linear(v, s, layer.linear))  # type: ignore[no-untyped-call]


def _attention(v: Tensor, s: Tensor, layer: SlimSelfAttention, layout: Layout) -> tuple[Tensor, Tensor]:
    heads = layer.num_heads
    # The package has the heads last among the channels; together they can be read in one go.
    into = [
        weight.reshape(3, -1, heads, weight.shape[1]).transpose(1, 2).flatten(0, 2)
        for weight in (layer.linear_in.weight_v, layer.linear_in.linear_s.weight)
    ]
    v, s = _Attention.apply(linear(v, into[0]), linear(s, into[1]), layout, heads, layer.norm.epsilon)  # type: ignore[no-untyped-call]
    return _linear(v, s, layer.linear_out)


# ---- gradients -------------------------------------------------------------------------------------------


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, s: Tensor, weight_v: Tensor, weight_s: Tensor, epsilon: float) -> Any:
        v, s = v.contiguous(), s.contiguous()
        out_v, out_s, inverse = torch.empty_like(v), torch.empty_like(s), s.new_empty(len(s))
        ctx.save_for_backward(v, s, weight_v, weight_s, inverse)
        run(
            slim_kernels.norm_forward,
            len(v),
            v,
            s,
            weight_v,
            weight_s,
            np.float32(epsilon),
            out_v,
            out_s,
            inverse,
        )
        return out_v, out_s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_v: Tensor, grad_s: Tensor) -> Any:
        v, s, weight_v, weight_s, inverse = ctx.saved_tensors
        d_v, d_s = torch.empty_like(v), torch.empty_like(s)
        d_weight_v, d_weight_s = torch.zeros_like(weight_v), torch.zeros_like(weight_s)
        known = v, s, weight_v, weight_s, inverse, grad_v.contiguous(), grad_s.contiguous()
        run(slim_kernels.norm_backward, len(v), *known, d_v, d_s, sums=(d_weight_v, d_weight_s))
        return d_v, d_s, d_weight_v, d_weight_s, None


class _Gate(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, s: Tensor) -> Any:
        v, s = v.contiguous(), s.contiguous()
        ctx.save_for_backward(v, s)
        out_v = v.new_empty((len(v), 4, v.shape[2] // 3))
        out_s = s.new_empty((len(s), s.shape[1] // 2))
        run(slim_kernels.gate_forward, len(v), v, s, out_v, out_s)
        return out_v, out_s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_v: Tensor, grad_s: Tensor) -> Any:
        v, s = ctx.saved_tensors
        d_v, d_s = torch.empty_like(v), torch.empty_like(s)
        run(slim_kernels.gate_backward, len(v), v, s, grad_v.contiguous(), grad_s.contiguous(), d_v, d_s)
        return d_v, d_s


class _Attention(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, s: Tensor, layout: Layout, heads: int, epsilon: float) -> Any:
        v, s = v.contiguous(), s.contiguous()
        out_v = v.new_zeros((len(v), 4, v.shape[2] // 3))
        out_s = s.new_zeros((len(s), s.shape[1] // 3))
        inverse = s.new_empty((len(s), 3 * heads))
        weights = s.new_empty(int(layout.at[-1]) * heads)
        ctx.save_for_backward(v, s, inverse, weights)
        kernel, ctx.kernel = slim_kernels.attention_kernels(
            heads, out_v.shape[2] // heads, out_s.shape[1] // heads
        )
        ctx.common = layout.first, layout.longest
        ctx.at = layout.at * heads
        known = v, s, *ctx.common, np.float32(epsilon)
        run(kernel, len(layout.first) - 1, *known, out_v, out_s, inverse, weights, ctx.at)
        return out_v, out_s

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_v: Tensor, grad_s: Tensor) -> Any:
        v, s, inverse, weights = ctx.saved_tensors
        d_v, d_s = torch.zeros_like(v), torch.zeros_like(s)
        known = v, s, *ctx.common, inverse, weights, ctx.at, grad_v.contiguous(), grad_s.contiguous()
        run(ctx.kernel, len(ctx.at) - 1, *known, d_v, d_s)
        return d_v, d_s, None, None, None
