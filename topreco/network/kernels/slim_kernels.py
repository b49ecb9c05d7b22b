"""Compiled kernels of L-GATr-slim for the CPU: what stands between its matrix products, with gradients.

Every norm, gate and attention is one pass over the tokens that exist. The definitions are those of the
package [1]_, to rounding.

Tokens of all events stand one after the other. Vectors have shape (N, 4, C), components before channels, and
scalars (N, S); all arrays are contiguous and of single precision. Each kernel works on the tokens or events
from `start` to `stop`, so that threads can share them, and releases the interpreter's lock.

References
----------
.. [1] A. Petitjean, T. Plehn, J. Spinner and U. Köthe, Economical Jet Taggers -- Equivariant, Slim, and
   Quantized, arXiv:2512.17011.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from topreco.network.kernels.packed import compiled, exp, gelu_gate, gelu_slope, inlined, sigmoid

_Array = NDArray[Any]
_f = np.float32


# ---- norm ------------------------------------------------------------------------------------------------


@compiled
def norm_forward(
    start: int,
    stop: int,
    v: _Array,
    s: _Array,
    weight_v: _Array,
    weight_s: _Array,
    epsilon: np.float32,
    out_v: _Array,
    out_s: _Array,
    inverse: _Array,
) -> None:
    """Divide vectors and scalars of a token by their joint RMS; `inverse` keeps one over it, shape (N,)."""
    n_v, n_s = v.shape[2], s.shape[1]
    for i in range(start, stop):
        total = _f(0.0)
        for c in range(n_v):
            total += abs(v[i, 0, c] ** 2 - v[i, 1, c] ** 2 - v[i, 2, c] ** 2 - v[i, 3, c] ** 2)
        for c in range(n_s):
            total += s[i, c] ** 2
        r = _f(1.0) / np.sqrt(total / _f(n_v + n_s) + epsilon)
        inverse[i] = r
        for m in range(4):
            for c in range(n_v):
                out_v[i, m, c] = v[i, m, c] * weight_v[c] * r
        for c in range(n_s):
            out_s[i, c] = s[i, c] * weight_s[c] * r


@compiled
def norm_backward(
    start: int,
    stop: int,
    v: _Array,
    s: _Array,
    weight_v: _Array,
    weight_s: _Array,
    inverse: _Array,
    grad_v: _Array,
    grad_s: _Array,
    d_v: _Array,
    d_s: _Array,
    d_weight_v: _Array,
    d_weight_s: _Array,
) -> None:
    """Gradients of `norm_forward`; those of the weights are added."""
    n_v, n_s = v.shape[2], s.shape[1]
    for i in range(start, stop):
        r = inverse[i]
        along = _f(0.0)
        for m in range(4):
            for c in range(n_v):
                product = grad_v[i, m, c] * v[i, m, c]
                d_weight_v[c] += product * r
                along += product * weight_v[c]
        for c in range(n_s):
            product = grad_s[i, c] * s[i, c]
            d_weight_s[c] += product * r
            along += product * weight_s[c]
        factor = along * r**3 / _f(n_v + n_s)
        for c in range(n_v):
            square = v[i, 0, c] ** 2 - v[i, 1, c] ** 2 - v[i, 2, c] ** 2 - v[i, 3, c] ** 2
            signed = factor if square > 0 else (-factor if square < 0 else _f(0.0))
            d_v[i, 0, c] = grad_v[i, 0, c] * weight_v[c] * r - signed * v[i, 0, c]
            d_v[i, 1, c] = grad_v[i, 1, c] * weight_v[c] * r + signed * v[i, 1, c]
            d_v[i, 2, c] = grad_v[i, 2, c] * weight_v[c] * r + signed * v[i, 2, c]
            d_v[i, 3, c] = grad_v[i, 3, c] * weight_v[c] * r + signed * v[i, 3, c]
        for c in range(n_s):
            d_s[i, c] = grad_s[i, c] * weight_s[c] * r - factor * s[i, c]


# ---- gated linear unit -----------------------------------------------------------------------------------


@compiled
def _vector_gates(v: _Array, n: int, gates: _Array) -> None:
    """Gates of the vectors of a token, shape (n,), from its channels, shape (4, 3n)."""
    # A loop that reads many arrays is not vectorised: they might overlap with what it writes.
    for c in range(n):
        gates[c] = v[0, n + c] * v[0, 2 * n + c]
    for m in range(1, 4):
        for c in range(n):
            gates[c] -= v[m, n + c] * v[m, 2 * n + c]
    for c in range(n):
        gates[c] = sigmoid(_f(0.5) * gates[c])


@compiled
def gate_forward(start: int, stop: int, v: _Array, s: _Array, out_v: _Array, out_s: _Array) -> None:
    """Gate vectors by the sigmoid of half an inner product, and scalars by GELU.

    The channels of `v`, (N, 4, 3C), are vectors and the two factors of their gates; those of `s`, (N, 2S),
    scalars and their gates.
    """
    n_v, n_s = out_v.shape[2], out_s.shape[1]
    gates = np.empty(n_v, np.float32)
    for i in range(start, stop):
        _vector_gates(v[i], n_v, gates)
        for m in range(4):
            for c in range(n_v):
                out_v[i, m, c] = gates[c] * v[i, m, c]
        for c in range(n_s):
            x = s[i, n_s + c]
            out_s[i, c] = s[i, c] * x * gelu_gate(x)


@compiled
def gate_backward(
    start: int, stop: int, v: _Array, s: _Array, grad_v: _Array, grad_s: _Array, d_v: _Array, d_s: _Array
) -> None:
    """Gradients of `gate_forward`."""
    n_v, n_s = grad_v.shape[2], grad_s.shape[1]
    gates = np.empty(n_v, np.float32)
    slope = np.empty(n_v, np.float32)
    half = np.empty(n_s, np.float32)
    for i in range(start, stop):
        _vector_gates(v[i], n_v, gates)
        for c in range(n_v):
            slope[c] = grad_v[i, 0, c] * v[i, 0, c]
        for m in range(1, 4):
            for c in range(n_v):
                slope[c] += grad_v[i, m, c] * v[i, m, c]
        for c in range(n_v):
            slope[c] *= _f(0.5) * gates[c] * (_f(1.0) - gates[c])
        for m in range(4):
            for c in range(n_v):
                d_v[i, m, c] = gates[c] * grad_v[i, m, c]
            for c in range(n_v):
                d_v[i, m, n_v + c] = slope[c] * v[i, m, 2 * n_v + c]
            for c in range(n_v):
                d_v[i, m, 2 * n_v + c] = slope[c] * v[i, m, n_v + c]
            if m == 0:
                for c in range(n_v):
                    slope[c] = -slope[c]
        for c in range(n_s):
            half[c] = gelu_gate(s[i, n_s + c])
        for c in range(n_s):
            d_s[i, c] = grad_s[i, c] * s[i, n_s + c] * half[c]
        for c in range(n_s):
            half[c] = gelu_slope(s[i, n_s + c], half[c])
        for c in range(n_s):
            d_s[i, n_s + c] = grad_s[i, c] * s[i, c] * half[c]


# ---- attention -------------------------------------------------------------------------------------------


@inlined
def _inverse_rms(
    v: _Array, s: _Array, i: int, n_v: int, n_s: int, epsilon: np.float32, square: _Array, out: _Array
) -> None:
    """One over the RMS of each query, key and value of a token, in the order of its channels.

    `square` is room for the squares of its vectors.
    """
    # Apart from their sums, which are too short to be vectorised.
    for c in range(len(square)):
        square[c] = abs(v[i, 0, c] ** 2 - v[i, 1, c] ** 2 - v[i, 2, c] ** 2 - v[i, 3, c] ** 2)
    for p in range(len(out)):
        total = _f(0.0)
        for c in range(p * n_v, (p + 1) * n_v):
            total += square[c]
        for c in range(p * n_s, (p + 1) * n_s):
            total += s[i, c] ** 2
        out[p] = total
    for p in range(len(out)):
        out[p] = _f(1.0) / np.sqrt(out[p] / _f(n_v + n_s) + epsilon)


@inlined
def _load(
    v: _Array, s: _Array, i: int, part: int, n_v: int, n_s: int, lower: bool, r: np.float32, out: _Array
) -> None:
    """Query, key or value of a token and head times `r`; with `lower` spatial components change their sign.

    The channels of `v` and `s` are (query/key/value and head, channel); `part` counts the former.
    """
    at_v, at_s = part * n_v, part * n_s
    sign = -r if lower else r
    for c in range(n_v):
        out[c] = v[i, 0, at_v + c] * r
    for m in range(1, 4):
        for c in range(n_v):
            out[m * n_v + c] = v[i, m, at_v + c] * sign
    for c in range(n_s):
        out[4 * n_v + c] = s[i, at_s + c] * r


@inlined
def _unload(
    v: _Array,
    s: _Array,
    i: int,
    part: int,
    n_v: int,
    n_s: int,
    lower: bool,
    r: np.float32,
    grad: _Array,
    d_v: _Array,
    d_s: _Array,
) -> None:
    """Gradients of `_load` and of the RMS."""
    at_v, at_s = part * n_v, part * n_s
    sign = _f(-1.0) if lower else _f(1.0)
    along = _f(0.0)
    for c in range(n_v):
        along += grad[c] * v[i, 0, at_v + c]
    for m in range(1, 4):
        for c in range(n_v):
            along += sign * grad[m * n_v + c] * v[i, m, at_v + c]
    for c in range(n_s):
        along += grad[4 * n_v + c] * s[i, at_s + c]
    factor = along * r**3 / _f(n_v + n_s)
    for c in range(n_v):
        a = at_v + c
        square = v[i, 0, a] ** 2 - v[i, 1, a] ** 2 - v[i, 2, a] ** 2 - v[i, 3, a] ** 2
        signed = factor if square > 0 else (-factor if square < 0 else _f(0.0))
        d_v[i, 0, a] = grad[c] * r - signed * v[i, 0, a]
        d_v[i, 1, a] = sign * grad[n_v + c] * r + signed * v[i, 1, a]
        d_v[i, 2, a] = sign * grad[2 * n_v + c] * r + signed * v[i, 2, a]
        d_v[i, 3, a] = sign * grad[3 * n_v + c] * r + signed * v[i, 3, a]
    for c in range(n_s):
        d_s[i, at_s + c] = grad[4 * n_v + c] * r - factor * s[i, at_s + c]


@inlined
def _products(a: _Array, b: _Array, n: int, width: int, out: _Array) -> None:
    """Inner products of `a` with the first `n` rows of `b`.

    Four at a time, which compilers vectorise best; `b` and `out` have three more rows than are needed.
    """
    for u in range(0, n, 4):
        w, x, y, z = _f(0.0), _f(0.0), _f(0.0), _f(0.0)
        for c in range(width):
            w += a[c] * b[u, c]
            x += a[c] * b[u + 1, c]
            y += a[c] * b[u + 2, c]
            z += a[c] * b[u + 3, c]
        out[u], out[u + 1], out[u + 2], out[u + 3] = w, x, y, z


@functools.cache
def attention_kernels(heads: int, n_v: int, n_s: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Attention among the tokens of an event, forward and backward, for some numbers of channels per head.

    With numbers that the compiler knows, its loops are nearly twice as fast.
    """
    width = 4 * n_v + n_s
    scale = _f(1.0 / math.sqrt(width))

    @compiled
    def forward(
        start: int,
        stop: int,
        v: _Array,
        s: _Array,
        first: _Array,
        longest: int,
        epsilon: np.float32,
        out_v: _Array,
        out_s: _Array,
        inverse: _Array,
        weights: _Array,
        at: _Array,
    ) -> None:
        """Attention among the tokens of each event, with queries, keys and values normalised.

        The tokens of event e are first[e] to first[e + 1], at most `longest`. Channels of `v` and `s` are
        (query/key/value, head, channel), those of the results (head, channel). `inverse`, (N, 3·heads),
        and `weights`, from at[e] on (head, query, key), are kept for the gradient.
        """
        q = np.empty((longest, width), np.float32)
        k = np.zeros((longest + 3, width), np.float32)
        x = np.empty((longest, width), np.float32)
        row = np.empty(width, np.float32)
        score = np.empty(longest + 3, np.float32)
        square = np.empty(3 * heads * n_v, np.float32)
        for e in range(start, stop):
            begin = first[e]
            n = first[e + 1] - begin
            for i in range(begin, begin + n):
                _inverse_rms(v, s, i, n_v, n_s, epsilon, square, inverse[i])
            for h in range(heads):
                for t in range(n):
                    i = begin + t
                    _load(v, s, i, h, n_v, n_s, True, inverse[i, h], q[t])
                    _load(v, s, i, heads + h, n_v, n_s, False, inverse[i, heads + h], k[t])
                    _load(v, s, i, 2 * heads + h, n_v, n_s, False, inverse[i, 2 * heads + h], x[t])
                for t in range(n):
                    _products(q[t], k, n, width, score)
                    largest = _f(-np.inf)
                    for u in range(n):
                        score[u] *= scale
                        largest = max(largest, score[u])
                    total = _f(0.0)
                    for u in range(n):
                        score[u] = exp(score[u] - largest)
                        total += score[u]
                    total = _f(1.0) / total
                    w = weights[at[e] + (h * n + t) * n : at[e] + (h * n + t + 1) * n]
                    row[:] = _f(0.0)
                    for u in range(n):
                        w[u] = score[u] * total
                        for c in range(width):
                            row[c] += w[u] * x[u, c]
                    for m in range(4):
                        for c in range(n_v):
                            out_v[begin + t, m, h * n_v + c] = row[m * n_v + c]
                    for c in range(n_s):
                        out_s[begin + t, h * n_s + c] = row[4 * n_v + c]

    @compiled
    def backward(
        start: int,
        stop: int,
        v: _Array,
        s: _Array,
        first: _Array,
        longest: int,
        inverse: _Array,
        weights: _Array,
        at: _Array,
        grad_v: _Array,
        grad_s: _Array,
        d_v: _Array,
        d_s: _Array,
    ) -> None:
        """Gradients of `forward`."""
        q = np.empty((longest, width), np.float32)
        k = np.empty((longest, width), np.float32)
        x = np.zeros((longest + 3, width), np.float32)
        d_q = np.empty(width, np.float32)
        d_k = np.empty((longest, width), np.float32)
        d_x = np.empty((longest, width), np.float32)
        grad = np.empty(width, np.float32)
        slope = np.empty(longest + 3, np.float32)
        for e in range(start, stop):
            begin = first[e]
            n = first[e + 1] - begin
            for h in range(heads):
                for t in range(n):
                    i = begin + t
                    _load(v, s, i, h, n_v, n_s, True, inverse[i, h], q[t])
                    _load(v, s, i, heads + h, n_v, n_s, False, inverse[i, heads + h], k[t])
                    _load(v, s, i, 2 * heads + h, n_v, n_s, False, inverse[i, 2 * heads + h], x[t])
                d_k[:n] = _f(0.0)
                d_x[:n] = _f(0.0)
                for t in range(n):
                    i = begin + t
                    for m in range(4):
                        for c in range(n_v):
                            grad[m * n_v + c] = grad_v[i, m, h * n_v + c]
                    for c in range(n_s):
                        grad[4 * n_v + c] = grad_s[i, h * n_s + c]
                    w = weights[at[e] + (h * n + t) * n : at[e] + (h * n + t + 1) * n]
                    _products(grad, x, n, width, slope)
                    mean = _f(0.0)
                    for u in range(n):
                        mean += w[u] * slope[u]
                        for c in range(width):
                            d_x[u, c] += w[u] * grad[c]
                    d_q[:] = _f(0.0)
                    for u in range(n):
                        factor = scale * w[u] * (slope[u] - mean)
                        for c in range(width):
                            d_q[c] += factor * k[u, c]
                            d_k[u, c] += factor * q[t, c]
                    _unload(v, s, i, h, n_v, n_s, True, inverse[i, h], d_q, d_v, d_s)
                for t in range(n):
                    i = begin + t
                    _unload(v, s, i, heads + h, n_v, n_s, False, inverse[i, heads + h], d_k[t], d_v, d_s)
                    _unload(
                        v, s, i, 2 * heads + h, n_v, n_s, False, inverse[i, 2 * heads + h], d_x[t], d_v, d_s
                    )

    return forward, backward
