"""Compiled functions of one event, run over many: arguments, padding, errors and threads.

A solver consists of a function of one `Event`, a loop over `Inputs` that calls it (both compiled with
`kernel`), and a public function that checks its arguments with `Inputs.checked` and hands the loop to
`solve_events`. The loop stays in the solver's own file, because numba keeps no machine code of functions that
take another compiled function as an argument.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from topreco.core.compiled import njit
from topreco.core.errors import TopRecoError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# More parts than threads, so that none waits long for the last.
_PARTS_PER_THREAD = 4

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T", bound=tuple[Any, ...])


def kernel(function: _F) -> _F:
    """Compile a function of scalars and arrays with numba, in IEEE arithmetic: 1/0 is ∞, no exception."""
    compiled: _F = njit(nogil=True, error_model="numpy")(function)
    return compiled


def inlined_kernel(function: _F) -> _F:
    """Compile like `kernel` a function that is expanded where it is called: one with many arguments."""
    compiled: _F = njit(nogil=True, error_model="numpy", forceinline=True)(function)
    return compiled


class Event(NamedTuple):
    """One event as the compiled functions take it.

    Attributes
    ----------
    lepton_plus, lepton_minus, b, bbar
        Four-momenta (E, px, py, pz) in GeV, shape (4,).
    mx, my
        Missing transverse momentum in GeV.
    m_top, m_antitop, m_w_plus, m_w_minus
        Masses in GeV.
    """

    lepton_plus: Floats
    lepton_minus: Floats
    b: Floats
    bbar: Floats
    mx: float
    my: float
    m_top: float
    m_antitop: float
    m_w_plus: float
    m_w_minus: float


class Inputs(NamedTuple):
    """Checked arguments of a solver: contiguous float64 arrays, each mass one per event.

    Attributes
    ----------
    lepton_plus, lepton_minus, b, bbar
        Four-momenta (E, px, py, pz) in GeV, shape (n, 4).
    met
        Missing transverse momentum (px, py) in GeV, shape (n, 2).
    m_top, m_antitop, m_w_plus, m_w_minus
        Masses in GeV, shape (n,).
    """

    lepton_plus: Floats
    lepton_minus: Floats
    b: Floats
    bbar: Floats
    met: Floats
    m_top: Floats
    m_antitop: Floats
    m_w_plus: Floats
    m_w_minus: Floats

    @classmethod
    def checked(cls, name: str, *arguments: ArrayLike) -> Self:
        """Check the arguments of a solver, see `check_arguments`.

        Parameters
        ----------
        name
            Name of the solver for error messages.
        *arguments
            The fields in their order, masses as scalars or of shape (n,).
        """
        return cls(*check_arguments(name, dict(zip(cls._fields, arguments, strict=True))))


def check_arguments(name: str, arguments: Mapping[str, ArrayLike]) -> list[Floats]:
    """Convert the arguments of a solver to the arrays that compiled functions take.

    Parameters
    ----------
    name
        Name of the solver for error messages.
    arguments
        By name: four visible four-momenta of shape (n, 4), the missing transverse momentum of shape (n, 2),
        then masses, each a scalar or of shape (n,).

    Returns
    -------
    arrays
        Contiguous, writable float64 arrays in the same order, with one mass per event.

    Raises
    ------
    TopRecoError
        If an argument has another shape or is not numeric.
    """
    arrays: list[Floats] = []
    first, n = next(iter(arguments)), 0
    shape: tuple[int, ...]
    for position, (argument, value) in enumerate(arguments.items()):
        try:
            # Writable, because numba compiles again for read-only arrays.
            array = np.require(value, np.float64, ["C", "A", "W"])
        except (TypeError, ValueError) as error:
            raise TopRecoError(f"{name}: {argument} is not an array of numbers: {error}") from error
        if position == 0:
            n = len(array) if array.ndim else 0
            shape, expected = (n, 4), "(n, 4)"
        elif position < 4:
            shape, expected = (n, 4), f"({n}, 4) like {first}"
        elif position == 4:
            shape, expected = (n, 2), f"({n}, 2)"
        else:
            shape, expected = (n,), f"() or ({n},)"
            array = np.full(n, array) if array.ndim == 0 else array
        if array.shape != shape:
            raise TopRecoError(f"{name}: {argument} has shape {array.shape}, expected {expected}")
        arrays.append(array)
    return arrays


@inlined_kernel
def event_of(inputs: Inputs, i: int) -> Event:
    """Event i of the inputs, for use inside compiled loops.

    Parameters
    ----------
    inputs
        Checked arguments.
    i
        Number of the event.
    """
    return Event(
        inputs.lepton_plus[i],
        inputs.lepton_minus[i],
        inputs.b[i],
        inputs.bbar[i],
        inputs.met[i, 0],
        inputs.met[i, 1],
        inputs.m_top[i],
        inputs.m_antitop[i],
        inputs.m_w_plus[i],
        inputs.m_w_minus[i],
    )


def rows(columns: _T, part: slice) -> _T:
    """Views of the events of a part in a named tuple of arrays.

    Parameters
    ----------
    columns
        Arrays of shape (n, …).
    part
        Range of events.
    """
    return type(columns)(*(column[part] for column in columns))


def solve_events(
    name: str,
    loop: Callable[..., None],
    inputs: Inputs,
    *options: Any,
    shape: tuple[int, ...],
    kind: type[np.generic],
    threads: int,
) -> tuple[Floats, NDArray[Any]]:
    r"""Run the compiled loop of a solver over all events.

    Parameters
    ----------
    name
        Name of the solver for error messages.
    loop
        Compiled function of (inputs, \\*options, neutrinos, numbers) that fills the last two.
    inputs
        Checked arguments.
    *options
        Further arguments of the loop.
    shape
        Shape of the neutrinos of one event.
    kind
        Type of the one number per event.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    neutrinos
        Shape (n, \\*shape), NaN wherever the loop has written nothing.
    numbers
        Shape (n,).

    Raises
    ------
    TopRecoError
        If `threads` is less than 1.
    """
    n = len(inputs.met)
    neutrinos, numbers = np.full((n, *shape), np.nan), np.empty(n, kind)

    def solve(part: slice) -> None:
        loop(rows(inputs, part), *options, neutrinos[part], numbers[part])

    on_threads(name, n, solve, threads=threads)
    return neutrinos, numbers


def on_threads(
    name: str, n: int, solve: Callable[[slice], None], *, threads: int, largest: int | None = None
) -> None:
    """Solve events part by part, on several threads at a time.

    Kernels release Python's lock. Threads of numba's own would not survive a fork, and could not be used by
    two threads of the caller.

    Parameters
    ----------
    name
        Name of the solver for error messages.
    n
        Number of events.
    solve
        Function of a range of events; called with ranges that together cover all.
    threads
        Number of threads.
    largest
        Largest number of events in a part.

    Raises
    ------
    TopRecoError
        If `threads` is less than 1.
    """
    if threads < 1:
        raise TopRecoError(f"{name}: threads is {threads}, expected 1 or more")
    n_parts = 1 if threads == 1 else threads * _PARTS_PER_THREAD
    size = max(min(-(-n // n_parts), largest or n), 1)
    parts = [slice(start, min(start + size, n)) for start in range(0, n, size)]
    if threads == 1:
        for part in parts:
            solve(part)
        return
    # Nothing to solve, but the kernels are compiled: by several threads at a time that fails now and then.
    solve(slice(0, 0))
    with ThreadPoolExecutor(threads) as pool:
        # Consumed, so that errors are raised here.
        list(pool.map(solve, parts))
