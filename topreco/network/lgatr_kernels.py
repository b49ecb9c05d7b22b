"""Compiled kernels of L-GATr for the CPU: what stands between its matrix products, with gradients.

Tokens of all events stand one after the other. The 16 components of a multivector come in eight pairs, each
with the component to which multiplication by the pseudoscalar leads it: scalar and pseudoscalar, four of
vectors and axial vectors, three of bivectors. Signs are such that every equivariant linear map [1]_ treats
the pairs of a kind alike. The channels of a token are three arrays, contiguous and of single precision:

- `s`, shape (N, 2C + S): scalar and pseudoscalar of C multivectors, then S scalars;
- `v`, shape (N, 4, 2C): vectors and axial vectors;
- `b`, shape (N, 3, 2C): bivectors.

Kernels copy a token into one row, components before channels, then scalars: with all sizes known to the
compiler its loops are vectorised. Each kernel works on the tokens or events from `start` to `stop`, so that
threads can share them, and releases the interpreter's lock.

References
----------
.. [1] J. Spinner et al., Lorentz-Equivariant Geometric Algebra Transformers for High-Energy Physics,
   arXiv:2405.14806.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lgatr import PrimitivesConfig
from lgatr.primitives import geometric_product
from numpy.typing import NDArray

from topreco.network.packed import compiled, exp, gelu_gate, gelu_slope, inlined

_Array = NDArray[Any]
_Kernels = tuple[Callable[..., None], Callable[..., None]]
_f = np.float32

# Components of the package in the order in which they stand here, and their signs.
COMPONENTS = np.array([0, 15, 1, 14, 2, 13, 3, 12, 4, 11, 5, 10, 6, 9, 7, 8])
SIGNS = np.array([1, -1, 1, -1, 1, -1, 1, 1, 1, -1, 1, -1, 1, 1, 1, -1], np.float32)
# Squares of the components; those of a pair are opposite.
_METRIC = np.repeat(np.array([1, 1, -1, -1, -1, -1, -1, -1], np.float32), 2) * np.tile(
    np.array([1, -1], np.float32), 8
)
# Of `torch.nn.functional.layer_norm`.
_EPSILON = _f(1e-5)


@functools.cache
def _product_table() -> tuple[_Array, _Array]:
    """Geometric product: component k of xy is the sum of signs[k, j] x_j y_index[k, j] over j."""
    basis = torch.eye(16)[COMPONENTS] * torch.from_numpy(SIGNS)[:, None]
    products = geometric_product(basis[:, None], basis, config=PrimitivesConfig(sparse_gp=False))
    table = (products[..., COMPONENTS] * torch.from_numpy(SIGNS)).numpy()  # [j, index, k]
    index = np.abs(table).argmax(1).T
    signs = table.sum(1).T
    return np.ascontiguousarray(index), np.ascontiguousarray(signs)


# ---- rows ------------------------------------------------------------------------------------------------


@inlined
def _load(s: _Array, v: _Array, b: _Array, i: int, n: int, n_s: int, x: _Array, y: _Array) -> None:
    """Copy the n multivectors and n_s scalars of a token."""
    for c in range(n):
        x[0, c] = s[i, c]
    for c in range(n):
        x[1, c] = s[i, n + c]
    for m in range(4):
        for c in range(n):
            x[2 + 2 * m, c] = v[i, m, c]
        for c in range(n):
            x[3 + 2 * m, c] = v[i, m, n + c]
    for m in range(3):
        for c in range(n):
            x[10 + 2 * m, c] = b[i, m, c]
        for c in range(n):
            x[11 + 2 * m, c] = b[i, m, n + c]
    for c in range(n_s):
        y[c] = s[i, 2 * n + c]


@inlined
def _store(x: _Array, y: _Array, i: int, n: int, n_s: int, s: _Array, v: _Array, b: _Array) -> None:
    """Copy multivectors and scalars back."""
    for c in range(n):
        s[i, c] = x[0, c]
    for c in range(n):
        s[i, n + c] = x[1, c]
    for m in range(4):
        for c in range(n):
            v[i, m, c] = x[2 + 2 * m, c]
        for c in range(n):
            v[i, m, n + c] = x[3 + 2 * m, c]
    for m in range(3):
        for c in range(n):
            b[i, m, c] = x[10 + 2 * m, c]
        for c in range(n):
            b[i, m, n + c] = x[11 + 2 * m, c]
    for c in range(n_s):
        s[i, 2 * n + c] = y[c]


@inlined
def _grades(x: _Array, n: int, grades: _Array) -> None:
    """Squares of vectors, axial vectors and bivectors of each channel, up to a sign."""
    for c in range(n):
        grades[0, c] = x[2, c] ** 2 - x[4, c] ** 2 - x[6, c] ** 2 - x[8, c] ** 2
    for c in range(n):
        grades[1, c] = x[3, c] ** 2 - x[5, c] ** 2 - x[7, c] ** 2 - x[9, c] ** 2
    for c in range(n):
        # Pair by pair, since those of light-like momenta cancel.
        grades[2, c] = (x[11, c] ** 2 - x[10, c] ** 2) + (x[13, c] ** 2 - x[12, c] ** 2)
        grades[2, c] += x[15, c] ** 2 - x[14, c] ** 2


@inlined
def _squares(x: _Array, n: int, grades: _Array, out: _Array) -> None:
    """Sum of the absolute squares of the grades of each channel."""
    _grades(x, n, grades)
    for c in range(n):
        out[c] = x[0, c] ** 2 + x[1, c] ** 2
    for c in range(n):
        out[c] += abs(grades[0, c]) + abs(grades[1, c]) + abs(grades[2, c])


@inlined
def _normalise(
    x: _Array,
    y: _Array,
    n: int,
    n_s: int,
    epsilon: np.float32,
    grades: _Array,
    inverse: _Array,
    slope: _Array,
) -> np.float32:
    """Normalise a token in place; one over the deviation of the scalars returned.

    What multivectors are multiplied by is left in `inverse` for each channel, and in `slope` what
    `_multivector_slopes` needs.
    """
    _squares(x, n, grades, inverse)
    total = _f(0.0)
    for c in range(n):
        total += inverse[c]
    total /= _f(n)
    r = _f(1.0) / np.sqrt(max(total, epsilon))
    for c in range(n):
        inverse[c] = r
        slope[c] = _f(0.0) if total < epsilon else -r / _f(n)
    for p in range(16):
        for c in range(n):
            x[p, c] *= r
    mean = _f(0.0)
    for c in range(n_s):
        mean += y[c]
    mean /= _f(n_s)
    variance = _f(0.0)
    for c in range(n_s):
        variance += (y[c] - mean) ** 2
    r_s = _f(1.0) / np.sqrt(variance / _f(n_s) + _EPSILON)
    for c in range(n_s):
        y[c] = (y[c] - mean) * r_s
    return r_s


@inlined
def _multivector_slopes(
    x: _Array, n: int, inverse: _Array, along: _Array, grades: _Array, grad: _Array
) -> None:
    """Gradients of the norm of multivectors in place, from those that have been normalised.

    `along` is the sum of gradient times output over what shares a norm, multiplied by `slope`.
    """
    _grades(x, n, grades)
    for m in range(3):
        for c in range(n):
            grades[m, c] = along[c] if grades[m, c] > 0 else (-along[c] if grades[m, c] < 0 else _f(0.0))
    for p in range(2):
        for c in range(n):
            grad[p, c] = grad[p, c] * inverse[c] + along[c] * x[p, c]
    for p in range(2, 16):
        row = p % 2 if p < 10 else 2
        sign = _f(1.0) if p < 4 or (p >= 10 and p % 2 == 1) else _f(-1.0)
        for c in range(n):
            grad[p, c] *= inverse[c]
        for c in range(n):
            grad[p, c] += sign * grades[row, c] * x[p, c]


@inlined
def _slopes(
    x: _Array,
    y: _Array,
    n: int,
    n_s: int,
    inverse: _Array,
    slope: _Array,
    r_s: np.float32,
    grades: _Array,
    grad_x: _Array,
    grad_y: _Array,
) -> None:
    """Gradients of `_normalise` in place, from what has been normalised."""
    along = _f(0.0)
    for p in range(16):
        for c in range(n):
            along += grad_x[p, c] * x[p, c]
    for c in range(n):
        slope[c] *= along
    _multivector_slopes(x, n, inverse, slope, grades, grad_x)
    mean = _f(0.0)
    along = _f(0.0)
    for c in range(n_s):
        mean += grad_y[c]
        along += grad_y[c] * y[c]
    mean /= _f(n_s)
    along /= _f(n_s)
    for c in range(n_s):
        grad_y[c] = (grad_y[c] - mean - along * y[c]) * r_s


# ---- norm, with or without gate --------------------------------------------------------------------------


@functools.cache
def norm_kernels(n: int, n_s: int, gated: bool) -> _Kernels:
    """Norm of n multivectors and n_s scalars, forward and backward, followed by GELU if `gated`.

    Multivectors are divided by the root of the mean over channels of Σ|x²| over grades, scalars standardised.
    The gate of a multivector is its scalar part.
    """

    @compiled
    def forward(
        start: int,
        stop: int,
        s: _Array,
        v: _Array,
        b: _Array,
        epsilon: np.float32,
        out_s: _Array,
        out_v: _Array,
        out_b: _Array,
    ) -> None:
        """Normalise, and gate, tokens."""
        x, y = np.empty((16, n), np.float32), np.empty(n_s, np.float32)
        gates, slope = np.empty(n, np.float32), np.empty(n, np.float32)
        grades = np.empty((3, n), np.float32)
        for i in range(start, stop):
            _load(s, v, b, i, n, n_s, x, y)
            _normalise(x, y, n, n_s, epsilon, grades, gates, slope)
            if gated:
                for c in range(n):
                    gates[c] = x[0, c] * gelu_gate(x[0, c])
                for p in range(16):
                    for c in range(n):
                        x[p, c] *= gates[c]
                for c in range(n_s):
                    y[c] *= gelu_gate(y[c])
            _store(x, y, i, n, n_s, out_s, out_v, out_b)

    @compiled
    def backward(
        start: int,
        stop: int,
        s: _Array,
        v: _Array,
        b: _Array,
        epsilon: np.float32,
        grad_s: _Array,
        grad_v: _Array,
        grad_b: _Array,
        d_s: _Array,
        d_v: _Array,
        d_b: _Array,
    ) -> None:
        """Gradients of `forward`."""
        x, y = np.empty((16, n), np.float32), np.empty(n_s, np.float32)
        grad_x, grad_y = np.empty((16, n), np.float32), np.empty(n_s, np.float32)
        gates, along = np.empty(n, np.float32), np.empty(n, np.float32)
        inverse, slope = np.empty(n, np.float32), np.empty(n, np.float32)
        grades = np.empty((3, n), np.float32)
        for i in range(start, stop):
            _load(s, v, b, i, n, n_s, x, y)
            _load(grad_s, grad_v, grad_b, i, n, n_s, grad_x, grad_y)
            r_s = _normalise(x, y, n, n_s, epsilon, grades, inverse, slope)
            if gated:
                along[:] = _f(0.0)
                for p in range(16):
                    for c in range(n):
                        along[c] += grad_x[p, c] * x[p, c]
                for c in range(n):
                    gate = gelu_gate(x[0, c])
                    along[c] *= gelu_slope(x[0, c], gate)
                    gates[c] = x[0, c] * gate
                for p in range(16):
                    for c in range(n):
                        grad_x[p, c] *= gates[c]
                for c in range(n):
                    grad_x[0, c] += along[c]
                for c in range(n_s):
                    grad_y[c] *= gelu_slope(y[c], gelu_gate(y[c]))
            _slopes(x, y, n, n_s, inverse, slope, r_s, grades, grad_x, grad_y)
            _store(grad_x, grad_y, i, n, n_s, d_s, d_v, d_b)

    return forward, backward


# ---- geometric product -----------------------------------------------------------------------------------


@functools.cache
def product_kernels(n: int) -> _Kernels:
    """Geometric products of n channels with n others, forward and backward."""
    index, signs = _product_table()

    @compiled
    def forward(
        start: int, stop: int, s: _Array, v: _Array, b: _Array, out_s: _Array, out_v: _Array, out_b: _Array
    ) -> None:
        """Products of the first n of 2n channels with the others."""
        x, out, none = (
            np.empty((16, 2 * n), np.float32),
            np.empty((16, n), np.float32),
            np.empty(0, np.float32),
        )
        for i in range(start, stop):
            _load(s, v, b, i, 2 * n, 0, x, none)
            out[:] = _f(0.0)
            # A pair times a pair is a pair: four products for each passage through memory.
            for k in range(0, 16, 2):
                for j in range(0, 16, 2):
                    a, b_ = index[k, j], index[k, j + 1]
                    s1, s2, s3, s4 = signs[k, j], signs[k, j + 1], signs[k + 1, j], signs[k + 1, j + 1]
                    for c in range(n):
                        out[k, c] += s1 * x[j, c] * x[a, n + c] + s2 * x[j + 1, c] * x[b_, n + c]
                        out[k + 1, c] += s3 * x[j, c] * x[b_, n + c] + s4 * x[j + 1, c] * x[a, n + c]
            _store(out, none, i, n, 0, out_s, out_v, out_b)

    @compiled
    def backward(
        start: int,
        stop: int,
        s: _Array,
        v: _Array,
        b: _Array,
        grad_s: _Array,
        grad_v: _Array,
        grad_b: _Array,
        d_s: _Array,
        d_v: _Array,
        d_b: _Array,
    ) -> None:
        """Gradients of `forward`."""
        x, grad = np.empty((16, 2 * n), np.float32), np.empty((16, n), np.float32)
        left, right = np.empty((16, n), np.float32), np.empty((16, n), np.float32)
        out, none = np.empty((16, 2 * n), np.float32), np.empty(0, np.float32)
        for i in range(start, stop):
            _load(s, v, b, i, 2 * n, 0, x, none)
            _load(grad_s, grad_v, grad_b, i, n, 0, grad, none)
            left[:] = _f(0.0)
            right[:] = _f(0.0)
            for k in range(0, 16, 2):
                for j in range(0, 16, 2):
                    a, b_ = index[k, j], index[k, j + 1]
                    s1, s2, s3, s4 = signs[k, j], signs[k, j + 1], signs[k + 1, j], signs[k + 1, j + 1]
                    for c in range(n):
                        left[j, c] += s1 * grad[k, c] * x[a, n + c] + s3 * grad[k + 1, c] * x[b_, n + c]
                        left[j + 1, c] += s2 * grad[k, c] * x[b_, n + c] + s4 * grad[k + 1, c] * x[a, n + c]
                    for c in range(n):
                        right[a, c] += s1 * grad[k, c] * x[j, c] + s4 * grad[k + 1, c] * x[j + 1, c]
                        right[b_, c] += s2 * grad[k, c] * x[j + 1, c] + s3 * grad[k + 1, c] * x[j, c]
            for p in range(16):
                for c in range(n):
                    out[p, c] = left[p, c]
                for c in range(n):
                    out[p, n + c] = right[p, c]
            _store(out, none, i, 2 * n, 0, d_s, d_v, d_b)

    return forward, backward


# ---- attention -------------------------------------------------------------------------------------------


@inlined
def _load_normalised(
    s: _Array,
    v: _Array,
    b: _Array,
    i: int,
    heads: int,
    n: int,
    n_s: int,
    epsilon: np.float32,
    x: _Array,
    y: _Array,
    grades: _Array,
    inverse: _Array,
    slope: _Array,
    inverse_s: _Array,
) -> None:
    """Normalised queries, keys and values of a token.

    What multivectors and scalars were multiplied by is left in `inverse` for each channel and in
    `inverse_s` for each part and head, and in `slope` what `_multivector_slopes` needs.
    """
    lanes, lanes_s = n * heads, n_s * heads
    _load(s, v, b, i, 3 * lanes, 3 * lanes_s, x, y)
    _squares(x, 3 * lanes, grades, inverse)
    for part in range(3):
        for h in range(heads):
            total = _f(0.0)
            for c in range(n):
                total += inverse[part * lanes + c * heads + h]
            total /= _f(n)
            r = _f(1.0) / np.sqrt(max(total, epsilon))
            for c in range(n):
                inverse[part * lanes + c * heads + h] = r
                slope[part * lanes + c * heads + h] = _f(0.0) if total < epsilon else -r / _f(n)
    for p in range(16):
        for c in range(3 * lanes):
            x[p, c] *= inverse[c]
    for part in range(3):
        for h in range(heads):
            first = part * lanes_s + h
            mean = _f(0.0)
            for c in range(n_s):
                mean += y[first + c * heads]
            mean /= _f(n_s)
            variance = _f(0.0)
            for c in range(n_s):
                variance += (y[first + c * heads] - mean) ** 2
            r = _f(1.0) / np.sqrt(variance / _f(n_s) + _EPSILON)
            inverse_s[part, h] = r
            for c in range(n_s):
                y[first + c * heads] = (y[first + c * heads] - mean) * r


@inlined
def _attention_slopes(
    x: _Array,
    y: _Array,
    heads: int,
    n: int,
    n_s: int,
    grades: _Array,
    inverse: _Array,
    slope: _Array,
    inverse_s: _Array,
    along: _Array,
    grad_x: _Array,
    grad_y: _Array,
) -> None:
    """Gradients of `_load_normalised` in place, from what has been normalised."""
    lanes, lanes_s = n * heads, n_s * heads
    along[:] = _f(0.0)
    for p in range(16):
        for c in range(3 * lanes):
            along[c] += grad_x[p, c] * x[p, c]
    for part in range(3):
        for h in range(heads):
            total = _f(0.0)
            for c in range(n):
                total += along[part * lanes + c * heads + h]
            for c in range(n):
                slope[part * lanes + c * heads + h] *= total
    _multivector_slopes(x, 3 * lanes, inverse, slope, grades, grad_x)
    for part in range(3):
        for h in range(heads):
            first = part * lanes_s + h
            mean = _f(0.0)
            total = _f(0.0)
            for c in range(n_s):
                mean += grad_y[first + c * heads]
                total += grad_y[first + c * heads] * y[first + c * heads]
            mean /= _f(n_s)
            total /= _f(n_s)
            for c in range(n_s):
                f = first + c * heads
                grad_y[f] = (grad_y[f] - mean - total * y[f]) * inverse_s[part, h]


@inlined
def _split(x: _Array, y: _Array, part: int, lanes: int, lanes_s: int, out_x: _Array, out_y: _Array) -> None:
    """Queries, keys or values from all three."""
    for p in range(16):
        for c in range(lanes):
            out_x[p, c] = x[p, part * lanes + c]
    for c in range(lanes_s):
        out_y[c] = y[part * lanes_s + c]


@inlined
def _join(x: _Array, y: _Array, part: int, lanes: int, lanes_s: int, out_x: _Array, out_y: _Array) -> None:
    """Queries, keys or values to all three."""
    for p in range(16):
        for c in range(lanes):
            out_x[p, part * lanes + c] = x[p, c]
    for c in range(lanes_s):
        out_y[part * lanes_s + c] = y[c]


@inlined
def _lower(x: _Array, y: _Array, lanes: int, lanes_s: int, metric: _Array, scale: np.float32) -> None:
    """Multiply by the metric and the scale of inner products in place."""
    for p in range(16):
        for c in range(lanes):
            x[p, c] *= metric[p]
    for c in range(lanes_s):
        y[c] *= scale


@inlined
def _products(
    q_x: _Array,
    q_y: _Array,
    k_x: _Array,
    k_y: _Array,
    heads: int,
    n: int,
    n_s: int,
    partial: _Array,
    out: _Array,
) -> None:
    """Sum of products over the components and channels of each head."""
    for c in range(n * heads):
        total = _f(0.0)
        for p in range(16):
            total += q_x[p, c] * k_x[p, c]
        partial[c] = total
    for h in range(heads):
        total = _f(0.0)
        for c in range(n):
            total += partial[c * heads + h]
        for c in range(n_s):
            total += q_y[c * heads + h] * k_y[c * heads + h]
        out[h] = total


@inlined
def _add(
    w: _Array,
    x: _Array,
    y: _Array,
    heads: int,
    n: int,
    n_s: int,
    factor: _Array,
    out_x: _Array,
    out_y: _Array,
) -> None:
    """Add multivectors and scalars multiplied by a number for each head."""
    for c in range(max(n, n_s)):
        for h in range(heads):
            factor[c * heads + h] = w[h]
    for c in range(n * heads):
        for p in range(16):
            out_x[p, c] += factor[c] * x[p, c]
    for c in range(n_s * heads):
        out_y[c] += factor[c] * y[c]


@functools.cache
def attention_kernels(heads: int, n: int, n_s: int) -> _Kernels:
    """Attention within an event, forward and backward, with n multivectors and n_s scalars per head.

    Channels are (channel, head), so that all heads are worked on at once.
    """
    lanes, lanes_s = n * heads, n_s * heads
    most = max(lanes, lanes_s)
    scale = _f(1.0 / math.sqrt(16 * n + n_s))
    metric = _METRIC * scale

    @compiled
    def forward(
        start: int,
        stop: int,
        s: _Array,
        v: _Array,
        b: _Array,
        first: _Array,
        longest: int,
        epsilon: np.float32,
        out_s: _Array,
        out_v: _Array,
        out_b: _Array,
        weights: _Array,
        at: _Array,
    ) -> None:
        """Attention among the tokens of each event, with queries, keys and values normalised.

        The tokens of event e are first[e] to first[e + 1], at most `longest`. Channels are
        (query/key/value, channel, head), those of the results (channel, head). `weights`, from at[e] on
        (query, key, head), are kept for the gradient.
        """
        x, y = np.empty((16, 3 * lanes), np.float32), np.empty(3 * lanes_s, np.float32)
        grades = np.empty((3, 3 * lanes), np.float32)
        inverse, slope = np.empty(3 * lanes, np.float32), np.empty(3 * lanes, np.float32)
        inverse_s = np.empty((3, heads), np.float32)
        q, q_s = np.empty((longest, 16, lanes), np.float32), np.empty((longest, lanes_s), np.float32)
        k, k_s = np.empty((longest, 16, lanes), np.float32), np.empty((longest, lanes_s), np.float32)
        z, z_s = np.empty((longest, 16, lanes), np.float32), np.empty((longest, lanes_s), np.float32)
        out, scalars = np.empty((16, lanes), np.float32), np.empty(lanes_s, np.float32)
        partial, factor = np.empty(lanes, np.float32), np.empty(most, np.float32)
        for e in range(start, stop):
            begin = first[e]
            number = first[e + 1] - begin
            for t in range(number):
                _load_normalised(
                    s, v, b, begin + t, heads, n, n_s, epsilon, x, y, grades, inverse, slope, inverse_s
                )
                _split(x, y, 0, lanes, lanes_s, q[t], q_s[t])
                _split(x, y, 1, lanes, lanes_s, k[t], k_s[t])
                _split(x, y, 2, lanes, lanes_s, z[t], z_s[t])
                _lower(q[t], q_s[t], lanes, lanes_s, metric, scale)
            for t in range(number):
                w = weights[at[e] + t * number * heads : at[e] + (t + 1) * number * heads].reshape(-1, heads)
                for u in range(number):
                    _products(q[t], q_s[t], k[u], k_s[u], heads, n, n_s, partial, w[u])
                for h in range(heads):
                    largest = _f(-np.inf)
                    for u in range(number):
                        largest = max(largest, w[u, h])
                    for u in range(number):
                        w[u, h] -= largest
                for u in range(number):
                    for h in range(heads):
                        w[u, h] = exp(w[u, h])
                for h in range(heads):
                    total = _f(0.0)
                    for u in range(number):
                        total += w[u, h]
                    total = _f(1.0) / total
                    for u in range(number):
                        w[u, h] *= total
                out[:] = _f(0.0)
                scalars[:] = _f(0.0)
                for u in range(number):
                    _add(w[u], z[u], z_s[u], heads, n, n_s, factor, out, scalars)
                _store(out, scalars, begin + t, lanes, lanes_s, out_s, out_v, out_b)

    @compiled
    def backward(
        start: int,
        stop: int,
        s: _Array,
        v: _Array,
        b: _Array,
        first: _Array,
        longest: int,
        epsilon: np.float32,
        weights: _Array,
        at: _Array,
        grad_s: _Array,
        grad_v: _Array,
        grad_b: _Array,
        d_s: _Array,
        d_v: _Array,
        d_b: _Array,
    ) -> None:
        """Gradients of `forward`."""
        x, y = np.empty((longest, 16, 3 * lanes), np.float32), np.empty((longest, 3 * lanes_s), np.float32)
        grades = np.empty((3, 3 * lanes), np.float32)
        inverse, slope = (
            np.empty((longest, 3 * lanes), np.float32),
            np.empty((longest, 3 * lanes), np.float32),
        )
        inverse_s = np.empty((longest, 3, heads), np.float32)
        q, q_s = np.empty((longest, 16, lanes), np.float32), np.empty((longest, lanes_s), np.float32)
        k, k_s = np.empty((longest, 16, lanes), np.float32), np.empty((longest, lanes_s), np.float32)
        z, z_s = np.empty((longest, 16, lanes), np.float32), np.empty((longest, lanes_s), np.float32)
        d_q, d_q_s = np.empty((16, lanes), np.float32), np.empty(lanes_s, np.float32)
        d_k, d_k_s = np.empty((longest, 16, lanes), np.float32), np.empty((longest, lanes_s), np.float32)
        d_z, d_z_s = np.empty((longest, 16, lanes), np.float32), np.empty((longest, lanes_s), np.float32)
        d_x, d_y = (
            np.empty((longest, 16, 3 * lanes), np.float32),
            np.empty((longest, 3 * lanes_s), np.float32),
        )
        grad, grad_y = np.empty((16, lanes), np.float32), np.empty(lanes_s, np.float32)
        along = np.empty(3 * lanes, np.float32)
        partial, factor = np.empty(lanes, np.float32), np.empty(most, np.float32)
        change, mean = np.empty((longest, heads), np.float32), np.empty(heads, np.float32)
        for e in range(start, stop):
            begin = first[e]
            number = first[e + 1] - begin
            for t in range(number):
                _load_normalised(
                    s,
                    v,
                    b,
                    begin + t,
                    heads,
                    n,
                    n_s,
                    epsilon,
                    x[t],
                    y[t],
                    grades,
                    inverse[t],
                    slope[t],
                    inverse_s[t],
                )
                _split(x[t], y[t], 0, lanes, lanes_s, q[t], q_s[t])
                _split(x[t], y[t], 1, lanes, lanes_s, k[t], k_s[t])
                _split(x[t], y[t], 2, lanes, lanes_s, z[t], z_s[t])
                _lower(q[t], q_s[t], lanes, lanes_s, metric, scale)
            d_k[:number] = _f(0.0)
            d_k_s[:number] = _f(0.0)
            d_z[:number] = _f(0.0)
            d_z_s[:number] = _f(0.0)
            for t in range(number):
                _load(grad_s, grad_v, grad_b, begin + t, lanes, lanes_s, grad, grad_y)
                w = weights[at[e] + t * number * heads : at[e] + (t + 1) * number * heads].reshape(-1, heads)
                mean[:] = _f(0.0)
                for u in range(number):
                    _products(grad, grad_y, z[u], z_s[u], heads, n, n_s, partial, change[u])
                    _add(w[u], grad, grad_y, heads, n, n_s, factor, d_z[u], d_z_s[u])
                    for h in range(heads):
                        mean[h] += w[u, h] * change[u, h]
                d_q[:] = _f(0.0)
                d_q_s[:] = _f(0.0)
                for u in range(number):
                    for h in range(heads):
                        change[u, h] = w[u, h] * (change[u, h] - mean[h])
                    _add(change[u], k[u], k_s[u], heads, n, n_s, factor, d_q, d_q_s)
                    _add(change[u], q[t], q_s[t], heads, n, n_s, factor, d_k[u], d_k_s[u])
                _lower(d_q, d_q_s, lanes, lanes_s, metric, scale)
                _join(d_q, d_q_s, 0, lanes, lanes_s, d_x[t], d_y[t])
            for t in range(number):
                _join(d_k[t], d_k_s[t], 1, lanes, lanes_s, d_x[t], d_y[t])
                _join(d_z[t], d_z_s[t], 2, lanes, lanes_s, d_x[t], d_y[t])
                _attention_slopes(
                    x[t],
                    y[t],
                    heads,
                    n,
                    n_s,
                    grades,
                    inverse[t],
                    slope[t],
                    inverse_s[t],
                    along,
                    d_x[t],
                    d_y[t],
                )
                _store(d_x[t], d_y[t], begin + t, 3 * lanes, 3 * lanes_s, d_s, d_v, d_b)

    return forward, backward
