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
def _load(s: _Array, v: _Array, b: _Array, i: int, n: int, n_s: int, x: _Array) -> None:
    """Copy a token with n multivectors and n_s scalars into a row."""
    for c in range(2 * n):
        x[c] = s[i, c]
    for m in range(4):
        for c in range(2 * n):
            x[(2 + 2 * m) * n + c] = v[i, m, c]
    for m in range(3):
        for c in range(2 * n):
            x[(10 + 2 * m) * n + c] = b[i, m, c]
    for c in range(n_s):
        x[16 * n + c] = s[i, 2 * n + c]


@inlined
def _store(x: _Array, i: int, n: int, n_s: int, s: _Array, v: _Array, b: _Array) -> None:
    """Copy a row back."""
    for c in range(2 * n):
        s[i, c] = x[c]
    for m in range(4):
        for c in range(2 * n):
            v[i, m, c] = x[(2 + 2 * m) * n + c]
    for m in range(3):
        for c in range(2 * n):
            b[i, m, c] = x[(10 + 2 * m) * n + c]
    for c in range(n_s):
        s[i, 2 * n + c] = x[16 * n + c]


@inlined
def _grades(x: _Array, n: int, vector: _Array, axial: _Array, bivector: _Array) -> None:
    """Squares of vectors, axial vectors and bivectors of each channel, up to a sign."""
    for c in range(n):
        vector[c] = x[2 * n + c] ** 2 - x[4 * n + c] ** 2 - x[6 * n + c] ** 2 - x[8 * n + c] ** 2
    for c in range(n):
        axial[c] = x[3 * n + c] ** 2 - x[5 * n + c] ** 2 - x[7 * n + c] ** 2 - x[9 * n + c] ** 2
    for c in range(n):
        bivector[c] = (
            (x[11 * n + c] ** 2 - x[10 * n + c] ** 2)
            + (x[13 * n + c] ** 2 - x[12 * n + c] ** 2)
            + (x[15 * n + c] ** 2 - x[14 * n + c] ** 2)
        )


@inlined
def _squares(x: _Array, n: int, grades: _Array, out: _Array) -> None:
    """Sum of the absolute squares of the grades of each channel."""
    _grades(x, n, grades[0], grades[1], grades[2])
    for c in range(n):
        out[c] = x[c] ** 2 + x[n + c] ** 2
    for c in range(n):
        out[c] += abs(grades[0, c]) + abs(grades[1, c]) + abs(grades[2, c])


@inlined
def _normalise(
    x: _Array, n: int, n_s: int, epsilon: np.float32, grades: _Array, inverse: _Array, slope: _Array
) -> np.float32:
    """Normalise a row in place; one over the deviation of the scalars returned.

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
    for c in range(16 * n):
        x[c] *= r
    mean = _f(0.0)
    for c in range(16 * n, 16 * n + n_s):
        mean += x[c]
    mean /= _f(n_s)
    variance = _f(0.0)
    for c in range(16 * n, 16 * n + n_s):
        variance += (x[c] - mean) ** 2
    r_s = _f(1.0) / np.sqrt(variance / _f(n_s) + _EPSILON)
    for c in range(16 * n, 16 * n + n_s):
        x[c] = (x[c] - mean) * r_s
    return r_s


@inlined
def _multivector_slopes(
    y: _Array, n: int, inverse: _Array, along: _Array, grades: _Array, grad: _Array
) -> None:
    """Gradients of the norm of multivectors in place, from the normalised row.

    `along` is the sum of gradient times output over what shares a norm, multiplied by `slope`.
    """
    _grades(y, n, grades[0], grades[1], grades[2])
    for m in range(3):
        for c in range(n):
            grades[m, c] = along[c] if grades[m, c] > 0 else (-along[c] if grades[m, c] < 0 else _f(0.0))
    for p in range(2):
        for c in range(n):
            grad[p * n + c] = grad[p * n + c] * inverse[c] + along[c] * y[p * n + c]
    for p in range(2, 16):
        row = p % 2 if p < 10 else 2
        sign = _f(1.0) if p < 4 or (p >= 10 and p % 2 == 1) else _f(-1.0)
        for c in range(n):
            grad[p * n + c] = grad[p * n + c] * inverse[c] + sign * grades[row, c] * y[p * n + c]


@inlined
def _slopes(
    y: _Array, n: int, n_s: int, inverse: _Array, slope: _Array, r_s: np.float32, grades: _Array, grad: _Array
) -> None:
    """Gradients of `_normalise` in place, from the normalised row."""
    along = _f(0.0)
    for c in range(16 * n):
        along += grad[c] * y[c]
    for c in range(n):
        slope[c] *= along
    _multivector_slopes(y, n, inverse, slope, grades, grad)
    mean = _f(0.0)
    along = _f(0.0)
    for c in range(16 * n, 16 * n + n_s):
        mean += grad[c]
        along += grad[c] * y[c]
    mean /= _f(n_s)
    along /= _f(n_s)
    for c in range(16 * n, 16 * n + n_s):
        grad[c] = (grad[c] - mean - along * y[c]) * r_s


# ---- norm, with or without gate --------------------------------------------------------------------------


@functools.cache
def norm_kernels(n: int, n_s: int, gated: bool) -> _Kernels:
    """Norm of n multivectors and n_s scalars, forward and backward, followed by GELU if `gated`.

    Multivectors are divided by the root of the mean over channels of Σ|x²| over grades, scalars standardised.
    The gate of a multivector is its scalar part.
    """
    width = 16 * n + n_s

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
        x = np.empty(width, np.float32)
        gates = np.empty(n, np.float32)
        slope = np.empty(n, np.float32)
        grades = np.empty((3, n), np.float32)
        for i in range(start, stop):
            _load(s, v, b, i, n, n_s, x)
            _normalise(x, n, n_s, epsilon, grades, gates, slope)
            if gated:
                for c in range(n):
                    gates[c] = x[c] * gelu_gate(x[c])
                for p in range(16):
                    for c in range(n):
                        x[p * n + c] *= gates[c]
                for c in range(16 * n, width):
                    x[c] *= gelu_gate(x[c])
            _store(x, i, n, n_s, out_s, out_v, out_b)

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
        x = np.empty(width, np.float32)
        grad = np.empty(width, np.float32)
        gates = np.empty(n, np.float32)
        along = np.empty(n, np.float32)
        inverse = np.empty(n, np.float32)
        slope = np.empty(n, np.float32)
        grades = np.empty((3, n), np.float32)
        for i in range(start, stop):
            _load(s, v, b, i, n, n_s, x)
            _load(grad_s, grad_v, grad_b, i, n, n_s, grad)
            r_s = _normalise(x, n, n_s, epsilon, grades, inverse, slope)
            if gated:
                for c in range(n):
                    gates[c] = gelu_gate(x[c])
                along[:] = _f(0.0)
                for p in range(16):
                    for c in range(n):
                        along[c] += grad[p * n + c] * x[p * n + c]
                for c in range(n):
                    along[c] *= gelu_slope(x[c], gates[c])
                    gates[c] *= x[c]
                for p in range(16):
                    for c in range(n):
                        grad[p * n + c] *= gates[c]
                for c in range(n):
                    grad[c] += along[c]
                for c in range(16 * n, width):
                    grad[c] *= gelu_slope(x[c], gelu_gate(x[c]))
            _slopes(x, n, n_s, inverse, slope, r_s, grades, grad)
            _store(grad, i, n, n_s, d_s, d_v, d_b)

    return forward, backward


# ---- geometric product -----------------------------------------------------------------------------------


@functools.cache
def product_kernels(n: int) -> _Kernels:
    """Geometric product of n pairs of multivectors, forward and backward."""
    index, signs = _product_table()

    @compiled
    def forward(
        start: int, stop: int, s: _Array, v: _Array, b: _Array, out_s: _Array, out_v: _Array, out_b: _Array
    ) -> None:
        """Products of the first n of 2n channels with the others; scalars of `out_s` are left alone."""
        x = np.empty(32 * n, np.float32)
        out = np.empty(16 * n, np.float32)
        for i in range(start, stop):
            _load(s, v, b, i, 2 * n, 0, x)
            for k in range(16):
                for c in range(n):
                    total = _f(0.0)
                    for j in range(16):
                        total += signs[k, j] * x[2 * j * n + c] * x[(2 * index[k, j] + 1) * n + c]
                    out[k * n + c] = total
            _store(out, i, n, 0, out_s, out_v, out_b)

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
        x = np.empty(32 * n, np.float32)
        out = np.empty(32 * n, np.float32)
        grad = np.empty(16 * n, np.float32)
        for i in range(start, stop):
            _load(s, v, b, i, 2 * n, 0, x)
            _load(grad_s, grad_v, grad_b, i, n, 0, grad)
            out[:] = _f(0.0)
            for k in range(16):
                for j in range(16):
                    left, right = 2 * j * n, (2 * index[k, j] + 1) * n
                    for c in range(n):
                        product = signs[k, j] * grad[k * n + c]
                        out[left + c] += product * x[right + c]
                        out[right + c] += product * x[left + c]
            _store(out, i, 2 * n, 0, d_s, d_v, d_b)

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
    grades: _Array,
    inverse: _Array,
    slope: _Array,
    mean: _Array,
    inverse_s: _Array,
) -> None:
    """Normalised queries, keys and values of a token in a row.

    What multivectors and scalars were multiplied by is left in `inverse` for each channel and in
    `inverse_s` for each part and head, and in `slope` what `_multivector_slopes` needs.
    """
    lanes, lanes_s = n * heads, n_s * heads
    _load(s, v, b, i, 3 * lanes, 3 * lanes_s, x)
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
            x[p * 3 * lanes + c] *= inverse[c]
    first = 48 * lanes
    for part in range(3):
        for h in range(heads):
            mean[h] = _f(0.0)
        for c in range(n_s):
            for h in range(heads):
                mean[h] += x[first + c * heads + h]
        for h in range(heads):
            mean[h] /= _f(n_s)
            inverse_s[part * heads + h] = _f(0.0)
        for c in range(n_s):
            for h in range(heads):
                x[first + c * heads + h] -= mean[h]
                inverse_s[part * heads + h] += x[first + c * heads + h] ** 2
        for h in range(heads):
            inverse_s[part * heads + h] = _f(1.0) / np.sqrt(inverse_s[part * heads + h] / _f(n_s) + _EPSILON)
        for c in range(n_s):
            for h in range(heads):
                x[first + c * heads + h] *= inverse_s[part * heads + h]
        first += lanes_s


@inlined
def _split(x: _Array, part: int, lanes: int, lanes_s: int, out: _Array) -> None:
    """Queries, keys or values from a row of all."""
    for p in range(16):
        for c in range(lanes):
            out[p * lanes + c] = x[(3 * p + part) * lanes + c]
    for c in range(lanes_s):
        out[16 * lanes + c] = x[48 * lanes + part * lanes_s + c]


@inlined
def _join(
    x: _Array, part: int, lanes: int, lanes_s: int, sign: _Array, factor: np.float32, out: _Array
) -> None:
    """Queries, keys or values into a row of all, multiplied by a number for each component."""
    for p in range(16):
        for c in range(lanes):
            out[(3 * p + part) * lanes + c] = sign[p] * x[p * lanes + c]
    for c in range(lanes_s):
        out[48 * lanes + part * lanes_s + c] = factor * x[16 * lanes + c]


@inlined
def _attention_slopes(
    y: _Array,
    heads: int,
    n: int,
    n_s: int,
    grades: _Array,
    inverse: _Array,
    slope: _Array,
    inverse_s: _Array,
    along: _Array,
    grad: _Array,
) -> None:
    """Gradients of `_load_normalised` in place, from the normalised row."""
    lanes, lanes_s = n * heads, n_s * heads
    along[:] = _f(0.0)
    for p in range(16):
        for c in range(3 * lanes):
            along[c] += grad[p * 3 * lanes + c] * y[p * 3 * lanes + c]
    for part in range(3):
        for h in range(heads):
            total = _f(0.0)
            for c in range(n):
                total += along[part * lanes + c * heads + h]
            for c in range(n):
                slope[part * lanes + c * heads + h] *= total
    _multivector_slopes(y, 3 * lanes, inverse, slope, grades, grad)
    first = 48 * lanes
    for part in range(3):
        for h in range(heads):
            mean = _f(0.0)
            total = _f(0.0)
            for c in range(n_s):
                mean += grad[first + c * heads + h]
                total += grad[first + c * heads + h] * y[first + c * heads + h]
            mean /= _f(n_s)
            total /= _f(n_s)
            for c in range(n_s):
                f = first + c * heads + h
                grad[f] = (grad[f] - mean - total * y[f]) * inverse_s[part * heads + h]
        first += lanes_s


@inlined
def _products(q: _Array, k: _Array, heads: int, n: int, n_s: int, partial: _Array, out: _Array) -> None:
    """Sum of products over the components and channels of each head."""
    lanes = n * heads
    for c in range(lanes):
        total = _f(0.0)
        for p in range(16):
            total += q[p * lanes + c] * k[p * lanes + c]
        partial[c] = total
    for h in range(heads):
        total = _f(0.0)
        for c in range(n):
            total += partial[c * heads + h]
        for c in range(n_s):
            total += q[16 * lanes + c * heads + h] * k[16 * lanes + c * heads + h]
        out[h] = total


@inlined
def _add(w: _Array, x: _Array, lanes: int, lanes_s: int, out: _Array) -> None:
    """Add a row multiplied by a number for each head, w of shape (lanes + lanes_s,)."""
    for c in range(lanes):
        for p in range(16):
            out[p * lanes + c] += w[c] * x[p * lanes + c]
    for c in range(lanes_s):
        out[16 * lanes + c] += w[lanes + c] * x[16 * lanes + c]


@inlined
def _spread(w: _Array, heads: int, channels: int, out: _Array) -> None:
    """Numbers of the heads for each channel."""
    for c in range(channels):
        for h in range(heads):
            out[c * heads + h] = w[h]


@functools.cache
def attention_kernels(heads: int, n: int, n_s: int) -> _Kernels:
    """Attention within an event, forward and backward, with n multivectors and n_s scalars per head.

    Channels are (channel, head), so that all heads are worked on at once.
    """
    lanes, lanes_s = n * heads, n_s * heads
    width = 16 * lanes + lanes_s
    scale = _f(1.0 / math.sqrt(16 * n + n_s))
    metric = _METRIC * scale
    ones = np.ones(16, np.float32)

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
        x = np.empty(3 * width, np.float32)
        grades = np.empty((3, 3 * lanes), np.float32)
        inverse = np.empty(3 * lanes, np.float32)
        slope = np.empty(3 * lanes, np.float32)
        inverse_s = np.empty(3 * heads, np.float32)
        mean = np.empty(heads, np.float32)
        q = np.empty((longest, width), np.float32)
        k = np.empty((longest, width), np.float32)
        value = np.empty((longest, width), np.float32)
        row = np.empty(width, np.float32)
        partial = np.empty(lanes, np.float32)
        factor = np.empty(lanes + lanes_s, np.float32)
        for e in range(start, stop):
            begin = first[e]
            number = first[e + 1] - begin
            for t in range(number):
                _load_normalised(
                    s, v, b, begin + t, heads, n, n_s, epsilon, x, grades, inverse, slope, mean, inverse_s
                )
                _split(x, 0, lanes, lanes_s, q[t])
                _split(x, 1, lanes, lanes_s, k[t])
                _split(x, 2, lanes, lanes_s, value[t])
                for p in range(16):
                    for c in range(lanes):
                        q[t, p * lanes + c] *= metric[p]
                for c in range(16 * lanes, width):
                    q[t, c] *= scale
            for t in range(number):
                w = weights[at[e] + t * number * heads : at[e] + (t + 1) * number * heads]
                for u in range(number):
                    _products(q[t], k[u], heads, n, n_s, partial, w[u * heads : (u + 1) * heads])
                for h in range(heads):
                    largest = _f(-np.inf)
                    for u in range(number):
                        largest = max(largest, w[u * heads + h])
                    for u in range(number):
                        w[u * heads + h] -= largest
                for f in range(number * heads):
                    w[f] = exp(w[f])
                for h in range(heads):
                    total = _f(0.0)
                    for u in range(number):
                        total += w[u * heads + h]
                    total = _f(1.0) / total
                    for u in range(number):
                        w[u * heads + h] *= total
                row[:] = _f(0.0)
                for u in range(number):
                    _spread(w[u * heads : (u + 1) * heads], heads, n + n_s, factor)
                    _add(factor, value[u], lanes, lanes_s, row)
                _store(row, begin + t, lanes, lanes_s, out_s, out_v, out_b)

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
        x = np.empty((longest, 3 * width), np.float32)
        grades = np.empty((3, 3 * lanes), np.float32)
        inverse = np.empty((longest, 3 * lanes), np.float32)
        slope = np.empty((longest, 3 * lanes), np.float32)
        inverse_s = np.empty((longest, 3 * heads), np.float32)
        mean = np.empty(heads, np.float32)
        q = np.empty((longest, width), np.float32)
        k = np.empty((longest, width), np.float32)
        value = np.empty((longest, width), np.float32)
        d_q = np.empty((longest, width), np.float32)
        d_k = np.empty((longest, width), np.float32)
        d_value = np.empty((longest, width), np.float32)
        grad = np.empty(width, np.float32)
        row = np.empty(3 * width, np.float32)
        along = np.empty(3 * lanes, np.float32)
        partial = np.empty(lanes, np.float32)
        factor = np.empty(lanes + lanes_s, np.float32)
        change = np.empty((longest, heads), np.float32)
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
                    grades,
                    inverse[t],
                    slope[t],
                    mean,
                    inverse_s[t],
                )
                _split(x[t], 0, lanes, lanes_s, q[t])
                _split(x[t], 1, lanes, lanes_s, k[t])
                _split(x[t], 2, lanes, lanes_s, value[t])
                for p in range(16):
                    for c in range(lanes):
                        q[t, p * lanes + c] *= metric[p]
                for c in range(16 * lanes, width):
                    q[t, c] *= scale
            d_q[:number] = _f(0.0)
            d_k[:number] = _f(0.0)
            d_value[:number] = _f(0.0)
            for t in range(number):
                _load(grad_s, grad_v, grad_b, begin + t, lanes, lanes_s, grad)
                w = weights[at[e] + t * number * heads : at[e] + (t + 1) * number * heads]
                mean[:] = _f(0.0)
                for u in range(number):
                    _products(grad, value[u], heads, n, n_s, partial, change[u])
                    _spread(w[u * heads : (u + 1) * heads], heads, n + n_s, factor)
                    _add(factor, grad, lanes, lanes_s, d_value[u])
                    for h in range(heads):
                        mean[h] += w[u * heads + h] * change[u, h]
                for u in range(number):
                    for h in range(heads):
                        change[u, h] = w[u * heads + h] * (change[u, h] - mean[h])
                    _spread(change[u], heads, n + n_s, factor)
                    _add(factor, k[u], lanes, lanes_s, d_q[t])
                    _add(factor, q[t], lanes, lanes_s, d_k[u])
            for t in range(number):
                _join(d_q[t], 0, lanes, lanes_s, metric, scale, row)
                _join(d_k[t], 1, lanes, lanes_s, ones, _f(1.0), row)
                _join(d_value[t], 2, lanes, lanes_s, ones, _f(1.0), row)
                _attention_slopes(x[t], heads, n, n_s, grades, inverse[t], slope[t], inverse_s[t], along, row)
                _store(row, begin + t, 3 * lanes, 3 * lanes_s, d_s, d_v, d_b)

    return forward, backward
