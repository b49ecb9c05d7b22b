"""Functions and commands in a process of their own, forked from one that has imported everything.

The fork takes milliseconds and starts without the threads of the tests' process.
"""

import faulthandler
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import topreco.cli

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("coffea.util", "correctionlib", "h5py", "matplotlib.backends.backend_agg", "networkx"),
        *("onnxruntime", "onnxscript", "pyarrow.compute", "torch", "yaml"),
        *("topreco.cli", "topreco.evaluation.figures", "topreco.input.skimming"),
        *("topreco.network.export.onnx", "topreco.network.train", "topreco.runs.run", "topreco.simulation"),
    ]
)


def start(log: Path, function, *arguments) -> BaseProcess:
    """Start a function in a process group of its own that prints to `log`; return when it begins."""
    log.unlink(missing_ok=True)
    process = _CONTEXT.Process(target=_run, args=(log, function, arguments))
    process.start()
    while not log.exists() and process.is_alive():
        time.sleep(0.001)
    return process


def _run(log, function, arguments):
    os.setsid()
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(target, standard)
    faulthandler.enable()
    torch.set_num_threads(1)
    code = 70
    try:
        function(*arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        # Without what Python and multiprocessing do at the end, for which memory may not suffice.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill(process: BaseProcess) -> None:
    """SIGKILL to a process and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


def taken() -> int:
    """Address space of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def command(arguments, limits):
    """Run `topreco`; no file grows beyond `file_size` bytes, nor the process by more than `memory` bytes."""
    sys.argv = ["topreco", *arguments]
    if "file_size" in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_size"], resource.RLIM_INFINITY))
    if "memory" in limits:
        resource.setrlimit(resource.RLIMIT_AS, (taken() + limits["memory"], resource.RLIM_INFINITY))
    topreco.cli.main()
