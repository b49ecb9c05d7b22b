"""The meaning of `threads` in all methods and commands, and the cores that there are.

None leaves the library that computes (torch, onnxruntime, numba) its own default: all cores, unless an
environment variable or a call to that library says otherwise. A number is the number of threads of each call.
Predictions do not depend on it. Workers that share a machine want 1: `topreco run` and `topreco validate`
give one thread to each process, and `threads` of `topreco train` is the number in each process.
"""

import os

from topreco.core.errors import TopRecoError


def checked_threads(threads: int | None) -> int | None:
    """Return a valid number of threads unchanged.

    Raises
    ------
    TopRecoError
        If it is less than one.
    """
    if threads is not None and threads < 1:
        raise TopRecoError(f"threads: {threads} found, 1 or more expected, or None for the library's default")
    return threads


def available_cores() -> int:
    """Cores that this process may use: fewer than the machine has in many a batch job or container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
