"""coffea executors from a configuration: this machine, Dask and Parsl."""

import importlib.util
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from coffea import processor

from topreco.config import ClusterConfig, RunConfig
from topreco.core.errors import TopRecoError

WORKER_LOST = ("WorkerLost", "ManagerLost")
"""Parsl's exceptions for the death of a worker."""

_SUBMIT = {"htcondor": "condor_submit", "slurm": "sbatch"}


@contextmanager
def open_executor(config: RunConfig, *, progress: bool, retries: int = 0) -> Iterator[Any]:
    """Executor of a configuration; its cluster ends with the context.

    Parameters
    ----------
    config
        The keys `executor`, `workers` and `cluster`, and `output` for Parsl's logs.
    progress
        Show progress bars.
    retries
        Number of further attempts at a chunk that raised an error. The executors `dask` and `parsl` repeat
        the chunks of a worker that died in any case.

    Yields
    ------
    executor
        For a coffea Runner.

    Raises
    ------
    TopRecoError
        If a package or the batch system's command is missing, an option is not known, or no scheduler
        answers.
    """
    with ExitStack() as stack:
        common = {"status": progress, "retries": retries}
        if config.executor == "iterative":
            yield processor.IterativeExecutor(**common)
        elif config.executor == "futures":
            yield processor.FuturesExecutor(workers=config.workers, **common)
        elif config.executor == "dask":
            client = stack.enter_context(_dask_client(config.cluster, config.workers))
            yield processor.DaskExecutor(client=client, **common)
        else:
            stack.enter_context(_parsl(config))
            yield processor.ParslExecutor(**common)


# One process per job, and any free port for the dashboard: login nodes are shared.
_JOBS = {"processes": 1, "scheduler_options": {"dashboard_address": ":0"}}


@contextmanager
def _dask_client(cluster: ClusterConfig, workers: int) -> Iterator[Any]:
    _require("distributed", "dask")
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if cluster.address is not None:
            try:
                client = stack.enter_context(Client(cluster.address))
            except (OSError, ValueError) as error:
                raise TopRecoError(f"cluster.address {cluster.address}: no Dask scheduler answers") from error
            yield client
            return
        if cluster.kind == "local":
            # Errors of a worker come back as exceptions; its log would repeat them.
            quiet = {"silence_logs": logging.CRITICAL, "dashboard_address": ":0"}  # any free port
            local = {"n_workers": workers, "threads_per_worker": 1, **quiet}
            started = _with_options(LocalCluster, local, cluster)
        else:
            _require("dask_jobqueue", "dask")
            import dask_jobqueue

            _require_submit(cluster)
            name = {"htcondor": "HTCondorCluster", "slurm": "SLURMCluster"}[cluster.kind]
            started = _with_options(getattr(dask_jobqueue, name), _JOBS, cluster)
            started.scale(jobs=workers)
        yield stack.enter_context(Client(stack.enter_context(started)))


@contextmanager
def _parsl(config: RunConfig) -> Iterator[None]:
    """Parsl's kernel with one high-throughput executor."""
    _require("parsl", "parsl")
    import parsl
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import CondorProvider, LocalProvider, SlurmProvider

    cluster = config.cluster
    local = cluster.kind == "local"
    if not local:
        _require_submit(cluster)
    blocks = 1 if local else config.workers
    provider = _with_options(
        {"local": LocalProvider, "htcondor": CondorProvider, "slurm": SlurmProvider}[cluster.kind],
        {"init_blocks": blocks, "min_blocks": blocks, "max_blocks": blocks, "worker_init": _environment()},
        cluster,
    )
    # Parsl finds its programs by PATH, which need not contain a virtual environment.
    interchange = Path(sys.executable).with_name("interchange.py")
    executor = HighThroughputExecutor(
        label="topreco",
        provider=provider,
        address="127.0.0.1" if local else None,
        max_workers_per_node=config.workers if local else 1,
        interchange_launch_cmd=[sys.executable, str(interchange)] if interchange.is_file() else None,
    )
    with tempfile.TemporaryDirectory(prefix="topreco-parsl-", ignore_cleanup_errors=True) as temporary:
        # Jobs of a batch system need a folder that they can see, and their logs are needed when they fail.
        run_dir = temporary if local else str(config.output.absolute() / "parsl")
        parsl.load(
            parsl.Config(
                executors=[executor],
                run_dir=run_dir,
                initialize_logging=not local,
                retries=3,
                retry_handler=_retry_cost,
            )
        )
        try:
            yield
        finally:
            parsl.dfk().cleanup()
            parsl.clear()


def _retry_cost(error: Exception, task: Any) -> float:  # noqa: ARG001 - as Parsl calls it
    """Share of Parsl's retries that a failure uses up: only the death of a worker is worth another try."""
    return 1.0 if type(error).__name__ in WORKER_LOST else math.inf


def _environment() -> str:
    """Shell command with which a worker finds this Python's programs and modules."""
    lines = [f"export PATH={Path(sys.executable).parent}:$PATH"]
    if "PYTHONPATH" in os.environ:
        lines.append(f"export PYTHONPATH={os.environ['PYTHONPATH']}")
    return "; ".join(lines)


def _with_options(factory: Any, defaults: dict[str, Any], cluster: ClusterConfig) -> Any:
    try:
        return factory(**(defaults | cluster.options))
    except (TypeError, ValueError, RuntimeError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()[0]
        raise TopRecoError(f"cluster.options: {factory.__name__} refuses them ({reason})") from error


def _require_submit(cluster: ClusterConfig) -> None:
    command = _SUBMIT[cluster.kind]
    if shutil.which(command) is None:
        raise TopRecoError(
            f"cluster.kind {cluster.kind!r}: the command {command!r} is not on this machine; "
            "run from a node that can submit jobs"
        )


def _require(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise TopRecoError(f"executor {extra!r} needs the extra: pip install 'topreco[{extra}]'")
