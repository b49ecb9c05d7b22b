"""L-GATr on the tokens that exist, by the kernels of `lgatr_kernels`: CPU, single precision."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from lgatr import LGATr
from lgatr.layers import EquiLayerNorm
from lgatr.layers.attention.self_attention import SelfAttention
from lgatr.layers.mlp import GeometricBilinear
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from topreco.network.kernels import lgatr_kernels, packed
from topreco.network.kernels.packed import Layout, run

_ORDER = torch.from_numpy(lgatr_kernels.COMPONENTS)
_SIGNS = torch.from_numpy(lgatr_kernels.SIGNS)


class _Tokens(NamedTuple):
    """Channels of packed tokens, in the arrangement of `lgatr_kernels`.

    Attributes
    ----------
    s
        Scalar and pseudoscalar of each multivector, and scalars, shape (N, 2C + S).
    v
        Vectors and axial vectors, shape (N, 4, 2C).
    b
        Bivectors, shape (N, 3, 2C).
    """

    s: Tensor
    v: Tensor
    b: Tensor


class _Map(NamedTuple):
    """Weights of an equivariant linear map between `_Tokens`, one matrix for each kind of pair.

    The bias, of `s` alone, may be None.
    """

    s: Tensor
    v: Tensor
    b: Tensor
    bias: Any

    def __call__(self, x: _Tokens, added: _Tokens | None = None) -> _Tokens:
        out = _Tokens(linear(x.s, self.s, self.bias), linear(x.v, self.v), linear(x.b, self.b))
        return out if added is None else _Tokens(*(a + b for a, b in zip(out, added, strict=True)))


def applies(network: LGATr, geometry: Tensor) -> bool:
    """True if `forward` can replace `network`: on the CPU, in single precision, not traced, no dropout.

    The network is one of `LGATrBackbone`: other options of the package are not checked.
    """
    return packed.applies(geometry) and all(block.attention.dropout is None for block in network.blocks)


def forward(
    network: LGATr,
    geometry: Float[Tensor, "n T C 16"],
    scalars: Float[Tensor, "n T F"],
    mask: Bool[Tensor, "n T"],
) -> tuple[Float[Tensor, "n T O 4"], Float[Tensor, "n T S"]]:
    """Vectors and scalars that `network` gives for tokens within `mask`, zeros elsewhere, up to rounding.

    Parameters
    ----------
    network
        One to which this `applies`.
    geometry
        Multivectors, shape (n, T, C, 16).
    scalars
        Scalar features, shape (n, T, F).
    mask
        Tokens that exist, shape (n, T).
    """
    layout = Layout.of(mask)
    components = (layout.pack(geometry)[..., _ORDER] * _SIGNS).transpose(1, 2)
    pairs = components.reshape(-1, 8, 2 * geometry.shape[2])
    s = torch.cat([pairs[:, 0], layout.pack(scalars)], 1)
    x = _map(network.linear_in)(_Tokens(s, pairs[:, 1:5].contiguous(), pairs[:, 5:].contiguous()))
    for block in network.blocks:
        x = _attention(_norm(x, block.norm1), block.norm1, block.attention, layout, x)
        bilinear, _, last = block.mlp.layers
        x = _map(last)(_bilinear(_norm(x, block.norm2), block.norm2, bilinear), x)
    end = _map(network.linear_out)
    channels = network.linear_out.weight.shape[0]
    # Of the multivectors, vectors alone.
    vectors = linear(x.v, _widened(end.v))[..., :channels].transpose(1, 2)
    out = linear(x.s, _widened(end.s), _widened(end.bias))[:, 2 * channels : len(end.s)]
    return layout.unpack(vectors), layout.unpack(out)


def _widened(weight: Tensor) -> Tensor:
    # In products with fewer than 12 columns the place of a row changes how it is rounded.
    return torch.cat([weight, weight.new_zeros((max(0, 16 - len(weight)), *weight.shape[1:]))])


def _map(layer: Any, gain_mv: Tensor | None = None, gain_s: Tensor | None = None) -> _Map:
    """Weights of a layer whose multivectors and scalars have been normalised with some gains.

    Parameters
    ----------
    layer
        Layer with scalars.
    gain_mv
        Gain of each multivector and grade, shape (C, 5).
    gain_s
        Gain of each scalar, shape (S,).
    """
    c_out, c_in, _ = layer.weight.shape
    # The package has scalar and pseudoscalar of a channel next to each other.
    signs = _SIGNS[:2, None]
    w, into, bias = layer.weight, layer.s2mvs.weight, layer.s2mvs.bias
    if gain_mv is not None:
        # The ten maps start from grades 0 to 4, and again.
        w = w * gain_mv.repeat(1, 2)
    if gain_s is not None:
        into = into * gain_s
    w = w.permute(2, 0, 1)
    s, v, b = (
        torch.cat([torch.cat([w[i], w[j]], 1), torch.cat([-w[k], w[m]], 1)])
        for i, j, k, m in ((0, 9, 5, 4), (1, 8, 6, 3), (2, 7, 7, 2))
    )
    s = torch.cat([s, (into.reshape(c_out, 2, -1).transpose(0, 1) * signs[..., None]).flatten(0, 1)], 1)
    bias = None if bias is None else (bias.reshape(c_out, 2).t() * signs).flatten()
    if layer.mvs2s is not None:
        out, over = layer.mvs2s.weight.reshape(-1, c_in, 2).transpose(1, 2) * signs, layer.s2s.weight
        if gain_mv is not None:
            out = out * gain_mv[:, ::4].t()
        if gain_s is not None:
            over = over * gain_s
        s = torch.cat([s, torch.cat([out.flatten(1), over], 1)])
        bias = None if bias is None else torch.cat([bias, layer.mvs2s.bias])
    return _Map(s, v, b, bias)


def _norm(x: _Tokens, layer: EquiLayerNorm) -> _Tokens:
    # The gains are part of the linear maps that follow.
    return _Tokens(*_Norm.apply(*x, float(layer.epsilon), x.v.shape[2] // 2, False))  # type: ignore[no-untyped-call]


def _attention(
    h: _Tokens, norm: EquiLayerNorm, layer: SelfAttention, layout: Layout, added: _Tokens
) -> _Tokens:
    config, into = layer.qkv_module.config, layer.qkv_module.in_linear
    heads, n, n_s = config.num_heads, config.hidden_mv_channels, config.hidden_s_channels
    epsilon = float(layer.qkv_module.norm_qkv.epsilon)
    # The package has the heads last among the channels; together they can be read in one go.
    order = torch.arange(3 * heads * n).reshape(3, n, heads).transpose(1, 2).flatten()
    order_s = torch.arange(3 * heads * n_s).reshape(3, n_s, heads).transpose(1, 2).flatten()
    pairs = torch.cat([order, len(order) + order])
    qkv = _map(into, norm.weight_mv, norm.weight_s)
    qkv = _Map(qkv.s[torch.cat([pairs, 2 * len(order) + order_s])], qkv.v[pairs], qkv.b[pairs], None)
    attended = _Attention.apply(*qkv(h), layout, (heads, n, n_s), epsilon)  # type: ignore[no-untyped-call]
    return _map(layer.out_linear)(_Tokens(*attended), added)


def _bilinear(h: _Tokens, norm: EquiLayerNorm, layer: GeometricBilinear) -> _Tokens:
    """Geometric product, then the norm and the gate of the layer after it."""
    factors = layer.linear_left, layer.linear_right
    left, right = (_map(each, norm.weight_mv, norm.weight_s) for each in factors)
    channels = layer.linear_left.weight.shape[0]
    both = _Map(
        *(
            torch.cat([x.unflatten(0, (2, channels)), y.unflatten(0, (2, channels))], 1).flatten(0, 1)
            for x, y in zip(left, right, strict=True)
        )
    )
    s, v, b = _Product.apply(*both(h))  # type: ignore[no-untyped-call]
    s = torch.cat([s, h.s[:, h.v.shape[2] :]], 1)
    x = _map(layer.linear_out, gain_s=norm.weight_s)(_Tokens(s, v, b))
    return _Tokens(*_Norm.apply(*x, float(layer.norm.epsilon), x.v.shape[2] // 2, True))  # type: ignore[no-untyped-call]


# ---- gradients -------------------------------------------------------------------------------------------


def _empty(s: Tensor, v: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(s), torch.empty_like(v), torch.empty_like(b)


class _Norm(Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, b: Tensor, epsilon: float, channels: int, gated: bool) -> Any:
        x = s.contiguous(), v.contiguous(), b.contiguous()
        ctx.save_for_backward(*x)
        kernel, ctx.kernel = lgatr_kernels.norm_kernels(channels, s.shape[1] - 2 * channels, gated)
        ctx.epsilon = np.float32(epsilon)
        out = _empty(*x)
        run(kernel, len(s), *x, ctx.epsilon, *out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.saved_tensors
        d = _empty(*x)
        run(ctx.kernel, len(d[0]), *x, ctx.epsilon, *(grad.contiguous() for grad in grads), *d)
        return *d, None, None, None


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, b: Tensor) -> Any:
        x = s.contiguous(), v.contiguous(), b.contiguous()
        ctx.save_for_backward(*x)
        channels = s.shape[1] // 4
        kernel, ctx.kernel = lgatr_kernels.product_kernels(channels)
        out = tuple(each.new_empty((*each.shape[:-1], 2 * channels)) for each in x)
        run(kernel, len(s), *x, *out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x = ctx.saved_tensors
        d = _empty(*x)
        run(ctx.kernel, len(d[0]), *x, *(grad.contiguous() for grad in grads), *d)
        return d


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any,
        s: Tensor,
        v: Tensor,
        b: Tensor,
        layout: Layout,
        sizes: tuple[int, int, int],
        epsilon: float,
    ) -> Any:
        x = s.contiguous(), v.contiguous(), b.contiguous()
        heads = sizes[0]
        out = tuple(each.new_zeros((*each.shape[:-1], each.shape[-1] // 3)) for each in x)
        weights = s.new_empty(int(layout.at[-1]) * heads)
        ctx.save_for_backward(*x, weights)
        kernel, ctx.kernel = lgatr_kernels.attention_kernels(*sizes)
        ctx.common = layout.first, layout.longest, 16 * sizes[1] + sizes[2], np.float32(epsilon)
        ctx.at = layout.at * heads
        run(kernel, len(layout.first) - 1, *x, *ctx.common, *out, weights, ctx.at)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        *x, weights = ctx.saved_tensors
        # Rows beyond the tokens take part in no attention.
        d = tuple(torch.zeros_like(each) for each in x)
        known = *x, *ctx.common, weights, ctx.at, *(grad.contiguous() for grad in grads)
        run(ctx.kernel, len(ctx.at) - 1, *known, *d)
        return *d, None, None, None
