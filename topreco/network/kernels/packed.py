"""Networks on the tokens that exist, one after the other: what L-GATr and L-GATr-slim have in common.

On a CPU the matrix products of a network are a third of its time; the rest moves tensors through memory, once
for each elementary operation, and works on padding. Kernels on packed tokens do neither.
"""

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from topreco.core.compiled import njit

_F = TypeVar("_F", bound=Callable[..., Any])
_f = np.float32
# Sums may be taken in any order, which lets them be vectorised; NaN and infinity keep their meaning.
_FAST = {"reassoc", "nsz", "arcp", "contract", "afn"}
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _FAST}

# Matrix products of few rows take other code paths, which round differently: rows come in multiples.
_ROWS = 64
# Tokens or events that are worth a thread.
_SHARE = 32
_COMPILING = threading.Lock()


class Layout(NamedTuple):
    """Where the tokens of each event stand.

    Attributes
    ----------
    shape
        Events, and tokens of each with padding.
    rows
        Tokens that exist, of all n·T, shape (N,).
    chosen
        Those, filled up to a multiple of 64 with the first of all, shape (N + filled,).
    first
        First token of each event, and the end of the last, shape (n + 1,).
    at
        First attention weight of each event, per head, shape (n + 1,).
    longest
        Tokens of the event with most.
    """

    shape: tuple[int, int]
    rows: Tensor
    chosen: Tensor
    first: Any
    at: Any
    longest: int

    @classmethod
    def of(cls, mask: Bool[Tensor, "n T"]) -> Self:
        """Layout of the tokens within a mask, shape (n, T)."""
        n, length = mask.shape
        lengths = mask.sum(1).numpy()
        rows = mask.flatten().nonzero()[:, 0]
        filled = torch.zeros(-len(rows) % _ROWS, dtype=rows.dtype)
        return cls(
            shape=(n, length),
            rows=rows,
            chosen=torch.cat([rows, filled]) if len(rows) else rows,
            first=np.concatenate([[0], np.cumsum(lengths)]),
            at=np.concatenate([[0], np.cumsum(lengths**2)]),
            longest=int(lengths.max(initial=0)),
        )

    def pack(self, x: Shaped[Tensor, "n T ..."]) -> Shaped[Tensor, "N ..."]:
        """Tokens that exist one after the other, shape (N + filled, ...)."""
        return x.flatten(0, 1)[self.chosen]

    def unpack(self, x: Shaped[Tensor, "N ..."]) -> Shaped[Tensor, "n T ..."]:
        """Tokens in their places, zeros elsewhere, shape (n, T, ...)."""
        n, length = self.shape
        out = x.new_zeros((n * length, *x.shape[1:])).index_copy(0, self.rows, x[: len(self.rows)])
        return out.reshape(n, length, *x.shape[1:])


def applies(geometry: Tensor) -> bool:
    """True if kernels can compute with such tensors: on the CPU, in single precision, not traced."""
    return not (
        # While an export traces, tensors are of a class of its own.
        type(geometry) is not Tensor
        or geometry.dtype != torch.float32
        or geometry.device.type != "cpu"
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
    )


def run(kernel: Any, n: int, *arguments: Any, sums: tuple[Tensor, ...] = ()) -> None:
    """Run a kernel on as many threads as torch has; each adds to `sums` of its own, which are added up.

    Parameters
    ----------
    kernel
        A `compiled` function, called with the start and the stop of its share, then the arrays.
    n
        Tokens or events to share.
    arguments
        Tensors, arrays and numbers.
    sums
        Tensors of zeros to which the kernel adds, its last arguments.
    """
    arrays = [x.detach().numpy() if isinstance(x, Tensor) else x for x in arguments]
    if not kernel.signatures:
        # Of two threads that compile the same functions at once, numba now and then lets one fail.
        with _COMPILING:
            kernel(0, 0, *arrays, *(each.numpy() for each in sums))
    threads = max(1, min(torch.get_num_threads(), n // _SHARE))
    if threads == 1:
        kernel(0, n, *arrays, *(each.numpy() for each in sums))
        return
    ends = [n * i // threads for i in range(threads + 1)]
    parts = [each.new_zeros((threads, *each.shape)) for each in sums]
    work = [
        _pool(os.getpid(), threads).submit(
            kernel, ends[i], ends[i + 1], *arrays, *(part[i].numpy() for part in parts)
        )
        for i in range(threads)
    ]
    for done in work:
        done.result()
    for total, part in zip(sums, parts, strict=True):
        total.copy_(part.sum(0))


@functools.lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    # By process, since a fork has the pool of its parent but not the threads.
    del process
    return ThreadPoolExecutor(threads)


# ---- within kernels --------------------------------------------------------------------------------------


def compiled(function: _F) -> _F:
    """A kernel."""
    kernel: _F = njit(**_OPTIONS)(function)
    return kernel


def inlined(function: _F) -> _F:
    """A part of a kernel, compiled into it."""
    part: _F = njit(forceinline=True, **_OPTIONS)(function)
    return part


@compiled
def exp(x: np.float32) -> np.float32:
    """Exponential to single precision, in arithmetic that a compiler can vectorise.

    2^k e^r with |r| ≤ ln(2)/2, and e^r by the minimax polynomial of the Cephes library.
    """
    x = min(max(x, _f(-87.0)), _f(88.0))
    k = np.floor(x * _f(1.44269504) + _f(0.5))
    r = x - k * _f(0.693359375) + k * _f(2.12194440e-4)
    p = _f(1.9875691500e-4)
    p = p * r + _f(1.3981999507e-3)
    p = p * r + _f(8.3334519073e-3)
    p = p * r + _f(4.1665795894e-2)
    p = p * r + _f(1.6666665459e-1)
    p = p * r + _f(5.0000001201e-1)
    y = p * r * r + r + _f(1.0)
    return y * np.int32((np.int32(k) + 127) << 23).view(np.float32)


@compiled
def sigmoid(x: np.float32) -> np.float32:
    """1/(1 + e^-x)."""
    return _f(1.0) / (_f(1.0) + exp(-x))


# √(2/π) and the cubic coefficient of the tanh form of GELU, (1 + tanh u)/2 being sigmoid(2u).
_GELU = _f(1.5957691216057308)
_CUBIC = _f(0.044715)


@compiled
def gelu_gate(x: np.float32) -> np.float32:
    """The factor of x in the tanh form of GELU."""
    return sigmoid(_GELU * (x + _CUBIC * x * x * x))


@compiled
def gelu_slope(x: np.float32, gate: np.float32) -> np.float32:
    """Derivative of the tanh form of GELU where its factor is `gate`."""
    return gate + x * gate * (_f(1.0) - gate) * _GELU * (_f(1.0) + _f(3.0) * _CUBIC * x * x)
