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

from topreco.network.kernels.packed import compiled, exp, gelu_gate, gelu_slope, inlined

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
    n: int,
    n_s: int,
    groups: int,
    epsilon: np.float32,
    x: _Array,
    y: _Array,
    grades: _Array,
    inverse: _Array,
    slope: _Array,
    inverse_s: _Array,
) -> None:
    """Load a token and normalise each of its groups of n multivectors and n_s scalars.

    What multivectors and scalars were multiplied by is left in `inverse` for each channel and in
    `inverse_s` for each group, and in `slope` what `_multivector_slopes` needs.
    """
    _load(s, v, b, i, groups * n, groups * n_s, x, y)
    _squares(x, groups * n, grades, inverse)
    for g in range(groups):
        total = _f(0.0)
        for c in range(n):
            total += inverse[g * n + c]
        total /= _f(n)
        r = _f(1.0) / np.sqrt(max(total, epsilon))
        for c in range(n):
            inverse[g * n + c] = r
            slope[g * n + c] = _f(0.0) if total < epsilon else -r / _f(n)
        mean = _f(0.0)
        for c in range(n_s):
            mean += y[g * n_s + c]
        mean /= _f(n_s)
        variance = _f(0.0)
        for c in range(n_s):
            variance += (y[g * n_s + c] - mean) ** 2
        inverse_s[g] = _f(1.0) / np.sqrt(variance / _f(n_s) + _EPSILON)
        for c in range(n_s):
            y[g * n_s + c] = (y[g * n_s + c] - mean) * inverse_s[g]
    for p in range(16):
        for c in range(groups * n):
            x[p, c] *= inverse[c]


@inlined
def _group_slopes(
    x: _Array,
    y: _Array,
    n: int,
    n_s: int,
    groups: int,
    grades: _Array,
    inverse: _Array,
    slope: _Array,
    inverse_s: _Array,
    along: _Array,
    grad_x: _Array,
    grad_y: _Array,
) -> None:
    """Gradients of `_load_normalised` in place, from what has been normalised."""
    along[:] = _f(0.0)
    for p in range(16):
        for c in range(groups * n):
            along[c] += grad_x[p, c] * x[p, c]
    for g in range(groups):
        total = _f(0.0)
        for c in range(n):
            total += along[g * n + c]
        for c in range(n):
            slope[g * n + c] *= total
        mean = _f(0.0)
        total = _f(0.0)
        for c in range(n_s):
            mean += grad_y[g * n_s + c]
            total += grad_y[g * n_s + c] * y[g * n_s + c]
        mean /= _f(n_s)
        total /= _f(n_s)
        for c in range(n_s):
            f = g * n_s + c
            grad_y[f] = (grad_y[f] - mean - total * y[f]) * inverse_s[g]
    _multivector_slopes(x, groups * n, inverse, slope, grades, grad_x)


@inlined
def _split(
    x: _Array,
    y: _Array,
    part: int,
    heads: int,
    n: int,
    n_s: int,
    metric: _Array,
    scale: np.float32,
    out: _Array,
) -> None:
    """Rows of the heads of a part, shape (heads, 16n + n_s), multiplied by a metric and a scale."""
    for h in range(heads):
        for p in range(16):
            for c in range(n):
                out[h, p * n + c] = metric[p] * x[p, (part * heads + h) * n + c]
        for c in range(n_s):
            out[h, 16 * n + c] = scale * y[(part * heads + h) * n_s + c]


@inlined
def _join(
    rows: _Array,
    part: int,
    heads: int,
    n: int,
    n_s: int,
    metric: _Array,
    scale: np.float32,
    x: _Array,
    y: _Array,
) -> None:
    """The inverse of `_split`, or with the same metric its gradient."""
    for h in range(heads):
        for p in range(16):
            for c in range(n):
                x[p, (part * heads + h) * n + c] = metric[p] * rows[h, p * n + c]
        for c in range(n_s):
            y[(part * heads + h) * n_s + c] = scale * rows[h, 16 * n + c]


@functools.cache
def attention_kernels(heads: int, n: int, n_s: int) -> _Kernels:
    """Attention within an event, forward and backward, with n multivectors and n_s scalars per head.

    Both take the width of a head, 16n + n_s, as an argument too: if it were known to the compiler, it would
    write the sums over it out instead of vectorising them.
    """
    groups, size = 3 * heads, 16 * n + n_s
    scale = _f(1.0 / math.sqrt(size))
    metric = _METRIC * scale
    ones = np.ones(16, np.float32)
    one = _f(1.0)

    @compiled
    def forward(
        start: int,
        stop: int,
        s: _Array,
        v: _Array,
        b: _Array,
        first: _Array,
        longest: int,
        width: int,
        epsilon: np.float32,
        out_s: _Array,
        out_v: _Array,
        out_b: _Array,
        weights: _Array,
        at: _Array,
    ) -> None:
        """Attention among the tokens of each event, with queries, keys and values normalised.

        The tokens of event e are first[e] to first[e + 1], at most `longest`. Channels are
        (query/key/value, head, channel), those of the results (head, channel). `weights`, from at[e] on
        (query, head, key), are kept for the gradient.
        """
        x, y = np.empty((16, groups * n), np.float32), np.empty(groups * n_s, np.float32)
        grades, inverse_s = np.empty((3, groups * n), np.float32), np.empty(groups, np.float32)
        inverse, slope = np.empty(groups * n, np.float32), np.empty(groups * n, np.float32)
        q = np.empty((longest, heads, size), np.float32)
        k = np.empty((longest, heads, size), np.float32)
        z = np.empty((longest, heads, size), np.float32)
        out = np.empty((heads, size), np.float32)
        for e in range(start, stop):
            begin = first[e]
            number = first[e + 1] - begin
            for t in range(number):
                _load_normalised(
                    s, v, b, begin + t, n, n_s, groups, epsilon, x, y, grades, inverse, slope, inverse_s
                )
                _split(x, y, 0, heads, n, n_s, metric, scale, q[t])
                _split(x, y, 1, heads, n, n_s, ones, one, k[t])
                _split(x, y, 2, heads, n, n_s, ones, one, z[t])
            for t in range(number):
                out[:] = _f(0.0)
                for h in range(heads):
                    w = weights[at[e] + (t * heads + h) * number : at[e] + (t * heads + h + 1) * number]
                    largest = _f(-np.inf)
                    for u in range(number):
                        product = _f(0.0)
                        for c in range(width):
                            product += q[t, h, c] * k[u, h, c]
                        w[u] = product
                        largest = max(largest, product)
                    total = _f(0.0)
                    for u in range(number):
                        w[u] = exp(w[u] - largest)
                        total += w[u]
                    total = one / total
                    for u in range(number):
                        w[u] *= total
                        for c in range(size):
                            out[h, c] += w[u] * z[u, h, c]
                _join(out, 0, heads, n, n_s, ones, one, x, y)
                _store(x, y, begin + t, heads * n, heads * n_s, out_s, out_v, out_b)

    @compiled
    def backward(
        start: int,
        stop: int,
        s: _Array,
        v: _Array,
        b: _Array,
        first: _Array,
        longest: int,
        width: int,
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
        x = np.empty((longest, 16, groups * n), np.float32)
        y = np.empty((longest, groups * n_s), np.float32)
        grades, inverse_s = np.empty((3, groups * n), np.float32), np.empty((longest, groups), np.float32)
        inverse = np.empty((longest, groups * n), np.float32)
        slope = np.empty((longest, groups * n), np.float32)
        along = np.empty(groups * n, np.float32)
        q = np.empty((longest, heads, size), np.float32)
        k = np.empty((longest, heads, size), np.float32)
        z = np.empty((longest, heads, size), np.float32)
        d_q = np.empty((longest, heads, size), np.float32)
        d_k = np.empty((longest, heads, size), np.float32)
        d_z = np.empty((longest, heads, size), np.float32)
        d_x, d_y = np.empty((16, groups * n), np.float32), np.empty(groups * n_s, np.float32)
        grad, change = np.empty((heads, size), np.float32), np.empty(longest, np.float32)
        for e in range(start, stop):
            begin = first[e]
            number = first[e + 1] - begin
            for t in range(number):
                i = begin + t
                _load_normalised(
                    s,
                    v,
                    b,
                    i,
                    n,
                    n_s,
                    groups,
                    epsilon,
                    x[t],
                    y[t],
                    grades,
                    inverse[t],
                    slope[t],
                    inverse_s[t],
                )
                _split(x[t], y[t], 0, heads, n, n_s, metric, scale, q[t])
                _split(x[t], y[t], 1, heads, n, n_s, ones, one, k[t])
                _split(x[t], y[t], 2, heads, n, n_s, ones, one, z[t])
            d_q[:number] = _f(0.0)
            d_k[:number] = _f(0.0)
            d_z[:number] = _f(0.0)
            for t in range(number):
                _load(grad_s, grad_v, grad_b, begin + t, heads * n, heads * n_s, d_x, d_y)
                _split(d_x, d_y, 0, heads, n, n_s, ones, one, grad)
                for h in range(heads):
                    w = weights[at[e] + (t * heads + h) * number : at[e] + (t * heads + h + 1) * number]
                    mean = _f(0.0)
                    for u in range(number):
                        product = _f(0.0)
                        for c in range(width):
                            product += grad[h, c] * z[u, h, c]
                        change[u] = product
                        mean += w[u] * product
                        for c in range(size):
                            d_z[u, h, c] += w[u] * grad[h, c]
                    for u in range(number):
                        factor = w[u] * (change[u] - mean)
                        for c in range(size):
                            d_q[t, h, c] += factor * k[u, h, c]
                        for c in range(size):
                            d_k[u, h, c] += factor * q[t, h, c]
            for t in range(number):
                _join(d_q[t], 0, heads, n, n_s, metric, scale, d_x, d_y)
                _join(d_k[t], 1, heads, n, n_s, ones, one, d_x, d_y)
                _join(d_z[t], 2, heads, n, n_s, ones, one, d_x, d_y)
                _group_slopes(
                    x[t], y[t], n, n_s, groups, grades, inverse[t], slope[t], inverse_s[t], along, d_x, d_y
                )
                _store(d_x, d_y, begin + t, groups * n, groups * n_s, d_s, d_v, d_b)

    return forward, backward
