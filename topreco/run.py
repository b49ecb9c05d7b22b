"""Drive the processor over a fileset with a coffea Runner and save what it gives."""

import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coffea.util
from coffea import processor

from topreco.config import RunConfig
from topreco.errors import TopRecoError
from topreco.evaluation.report import write_report
from topreco.evaluation.summary import Summary, summarise
from topreco.files import complete_file, writable_folder, write_text
from topreco.input.nano import QuietNanoAODSchema, check_file
from topreco.input.objects import needed_branches
from topreco.processor import DileptonProcessor
from topreco.versions import versions


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Attributes
    ----------
    histograms
        `hist.Hist` by name.
    cutflow
        Cutflow by dataset, as dictionaries.
    summary
        Metrics of every method, see `topreco.evaluation.summary.summarise`.
    folder
        Where they were saved.
    """

    histograms: dict[str, Any]
    cutflow: dict[str, Any]
    summary: Summary
    folder: Path


def run(config: RunConfig, *, progress: bool = True) -> RunResult:
    """Reconstruct the top-quark pairs of a fileset and save histograms, metrics and cutflow.

    Parameters
    ----------
    config
        Files, methods, cuts and execution.
    progress
        Show coffea's progress bars.

    Returns
    -------
    result
        Also saved in `config.output`: ``histograms.coffea``, ``results.json`` and ``.md``, ``cutflow.json``.

    Raises
    ------
    TopRecoError
        If a file or method cannot be used, or the output folder cannot be written; nothing is left behind.
    """
    if not config.fileset:
        raise TopRecoError("fileset: no input files; give them as arguments or in the configuration")
    if not config.methods:
        raise TopRecoError("methods: none given; name a model or a model file (--method dilepton)")
    # Everything that can be wrong with the input is found before the first worker starts.
    branches = needed_branches(config.selection)
    entries = [check_file(file, config.tree, branches) for files in config.fileset.values() for file in files]
    if not any(entries):
        raise TopRecoError(f"fileset: tree {config.tree!r} has no entries in any of {len(entries)} files")
    instance = DileptonProcessor(config.methods, config.selection, config.histograms, config.solvers)
    with _output_folder(config.output) as folder:
        output = _run(config, instance, progress)
        summary = summarise(output["histograms"])
        metadata = {"config": config.model_dump(mode="json"), "versions": versions()}
        with complete_file(folder / "histograms.coffea") as temporary:
            coffea.util.save({**output, "metadata": metadata}, temporary)
        write_report(summary, folder / "results.json")
        write_report(summary, folder / "results.md")
        write_text(folder / "cutflow.json", json.dumps(output["cutflow"], indent=1))
    return RunResult(output["histograms"], output["cutflow"], summary, folder)


def _run(config: RunConfig, instance: DileptonProcessor, progress: bool) -> dict[str, Any]:
    """The merged output of the processor."""
    # coffea's executors show their bars whatever their `status` says.
    quiet = nullcontext() if progress else redirect_stdout(io.StringIO())
    with quiet, _one_error(), _executor(config, progress) as executor:
        runner = processor.Runner(
            executor, schema=QuietNanoAODSchema, chunksize=config.chunk_size, maxchunks=config.max_chunks
        )
        fileset = {
            name: {"treename": config.tree, "files": list(files)} for name, files in config.fileset.items()
        }
        return runner(fileset, processor_instance=instance)


@contextmanager
def _output_folder(path: Path) -> Iterator[Path]:
    """Folder for the results, proven writable before the work starts; a new one vanishes on failure."""
    new = not path.exists()
    folder = writable_folder(path)
    try:
        yield folder
    except BaseException:
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise


def load_histograms(path: str | Path) -> Mapping[str, Any]:
    """Histograms saved by `run`, from its folder or its ``histograms.coffea``.

    Raises
    ------
    TopRecoError
        If there is no such file or it was not written by `run`.
    """
    path = Path(path)
    file = path / "histograms.coffea" if path.is_dir() else path
    if not file.is_file():
        raise TopRecoError(f"{file}: no such file; the output folder of `topreco run` expected")
    try:
        content = coffea.util.load(file)
        return content["histograms"]
    # A damaged pickle raises almost anything.
    except Exception as error:
        raise TopRecoError(f"{file}: not the histograms of `topreco run` ({type(error).__name__})") from error


@contextmanager
def _one_error() -> Iterator[None]:
    """Raise bad input as a worker found it, without the wrapping and traceback that coffea adds."""
    captured = io.StringIO()
    try:
        with redirect_stderr(captured):
            yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, TopRecoError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        sys.stderr.write(captured.getvalue())
        raise
    sys.stderr.write(captured.getvalue())


@contextmanager
def _executor(config: RunConfig, progress: bool) -> Iterator[Any]:
    # Reading again helps where a network lies between, and only there.
    remote = any("://" in file for files in config.fileset.values() for file in files)
    retries = 3 if remote else 0
    if config.executor == "iterative":
        yield processor.IterativeExecutor(status=progress, retries=retries)
    elif config.executor == "futures":
        yield processor.FuturesExecutor(workers=config.workers, retries=retries, status=progress)
    else:
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise TopRecoError("executor 'dask' needs the extra: pip install 'topreco[dask]'") from error
        if config.scheduler is not None:
            with Client(config.scheduler) as client:
                yield processor.DaskExecutor(client=client, retries=retries, status=progress)
        else:
            with (
                LocalCluster(
                    n_workers=config.workers, threads_per_worker=1, dashboard_address=None
                ) as cluster,
                Client(cluster) as client,
            ):
                yield processor.DaskExecutor(client=client, retries=retries, status=progress)
