"""The meaning of `threads` in all methods and commands, the cores that there are, and what a fork leaves.

None leaves the library that computes (torch, onnxruntime, numba) its own default: all cores, unless an
environment variable or a call to that library says otherwise. A number is the number of threads of each call.
Predictions do not depend on it. Workers that share a machine want 1: `topreco run` and `topreco validate`
give one thread to each process, and `threads` of `topreco train` is the number in each process.

In a process that was forked from one with torch, torch computes on one thread, whatever `threads` is: a fork
has the pool of OpenMP but not its threads, and would wait for them for ever. Analytic methods and onnxruntime
start threads of their own in each process.
"""

import os
import re
import sys

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


def checked_device(device: str) -> str:
    """Return the name of a device of torch unchanged: cpu, cuda, cuda:1, mps, or auto.

    `auto` is CUDA where there is any. Whether it is there is asked by the process that computes, since a
    process that has asked CUDA cannot be forked any more.

    Raises
    ------
    TopRecoError
        If it is no such name.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device):
        raise TopRecoError(f"device: {device!r} found, auto, cpu, cuda, cuda:NUMBER or mps expected")
    return device


def available_cores() -> int:
    """Cores that this process may use: fewer than the machine has in many a batch job or container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def torch_threads(threads: int) -> int:
    """Number of threads that torch can use of those requested: one in a process forked with torch in it."""
    return 1 if _Fork.with_torch else threads


class _Fork:
    """What a forked process remembers of its parent."""

    with_torch = False


def _after_fork() -> None:
    # By its name, since importing torch takes seconds; one that another thread is importing lacks functions.
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        _Fork.with_torch = True
        torch.set_num_threads(1)  # also for operations outside any method


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
