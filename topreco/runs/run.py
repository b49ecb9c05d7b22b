"""Drive the processor over a fileset with a coffea Runner and save what it gives."""

import ast
import io
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import coffea.util
from coffea import processor
from coffea.processor.executor import FileMeta, WorkItem
from rich.console import Console
from rich.progress import track

from topreco.config import RunConfig, SystematicsConfig
from topreco.config.presets import describe_preset
from topreco.core.errors import OUT_OF_MEMORY, TopRecoError, first_line, is_out_of_memory
from topreco.core.files import complete_file, folder_name, writable_folder, write_text
from topreco.core.versions import versions
from topreco.evaluation.report import write_report
from topreco.evaluation.summary import Summary, summarise
from topreco.input.nano import (
    XROOTD_TIMEOUT,
    FileSummary,
    InputError,
    QuietNanoAODSchema,
    check_distinct,
    inspect_file,
    is_remote,
)
from topreco.input.objects import fit_files, fit_selection
from topreco.input.pepper.read import PepperSchema, inspect_pepper, is_hdf5, pepper_format
from topreco.input.systematics import check_corrections
from topreco.reconstruction.load import load_methods
from topreco.runs.checkpoints import ChunkCheckpointer, claim_folder, describe_configuration
from topreco.runs.columns import ColumnWriter
from topreco.runs.executors import WORKER_LOST, open_executor
from topreco.runs.processor import DileptonProcessor

_FILES_AT_A_TIME = 16
"""Opening a file far away is waiting."""


@dataclass(frozen=True)
class RunStatistics:
    """How much a run did, and what it left out.

    Attributes
    ----------
    files
        Number of input files that could be opened.
    chunks, chunks_resumed
        Number of chunks of them, and of those that an earlier run had finished.
    events, events_selected
        Number of events read, in this run or an earlier one, and of those that passed.
    seconds
        Duration, without checking the files and starting the workers.
    events_per_second
        Rate of the chunks that were not resumed.
    bytes_read
        As requested from the files.
    skipped
        Bad files, and chunks of them: ``dataset``, ``file``, ``entrystart`` and ``entrystop`` (None for a
        whole file) and ``reason``.
    """

    files: int
    chunks: int
    chunks_resumed: int
    events: int
    events_selected: int
    seconds: float
    events_per_second: float
    bytes_read: int
    skipped: list[dict[str, Any]]

    def __str__(self) -> str:
        resumed = f" ({self.chunks_resumed} done before)" if self.chunks_resumed else ""
        read = f"{self.events} events of {self.files} files in {self.chunks} chunks{resumed}"
        rate = f"{self.events_per_second:.0f} events/s, {self.bytes_read / 1e6:.1f} MB read"
        lines = [f"{read}, {self.events_selected} selected; {self.seconds:.0f} s, {rate}"]
        for bad in self.skipped:
            part = "" if bad["entrystop"] is None else f" entries {bad['entrystart']} to {bad['entrystop']}"
            lines.append(f"skipped: {bad['file']}{part} ({bad['reason']})")
        return "\n".join(lines)


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
    statistics
        How much was read and what was left out.
    folder
        Where they were saved.
    presets
        By dataset, which preset and era were taken, see `topreco.config.presets.describe_preset`.
    """

    histograms: dict[str, Any]
    cutflow: dict[str, Any]
    summary: Summary
    statistics: RunStatistics
    folder: Path
    presets: dict[str, str]


def run(config: RunConfig, *, progress: bool = True) -> RunResult:
    """Reconstruct the top-quark pairs of a fileset and save histograms, metrics and cutflow.

    Parameters
    ----------
    config
        Files, methods, cuts and execution.
    progress
        Show progress bars.

    Returns
    -------
    result
        Also saved in `config.output`: ``histograms.coffea``, ``results.json`` and ``.md``, ``cutflow.json``,
        ``run.json``, and with `config.output_columns` its manifest ``columns.json``.

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
    pepper = _is_pepper(config)
    inputs, skipped = _inspect(config, pepper, progress)
    presets = _presets(config, inputs, pepper)
    methods = load_methods(
        config.methods,
        threads=1,
        solvers=config.solvers,
        ship=config.ship_model,
        # Histograms do not need them.
        quantiles=config.output_columns is not None or bool(config.min_quality),
        min_quality=config.min_quality,
    )
    check_corrections(config.systematics)
    description = describe_configuration(config, methods)
    with _output_folder(config.output) as folder:
        checkpointer = None
        if config.checkpoint is not None:
            claim_folder(config.checkpoint.absolute(), description, "checkpoint")
            checkpointer = ChunkCheckpointer(config.checkpoint.absolute())
        writer = _column_writer(config, description, inputs)
        instance = DileptonProcessor(
            methods,
            config.selection,
            config.histograms,
            systematics=config.systematics,
            columns=writer,
            unfolding=config.unfolding,
        )
        schema = PepperSchema if pepper else QuietNanoAODSchema
        output, statistics = _run(config, instance, schema, inputs, skipped, checkpointer, progress)
        summary = summarise(output["histograms"])
        files = sorted(output.pop("columns", []), key=lambda entry: entry["path"])
        metadata: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "presets": presets,
            "versions": versions(),
            "run": asdict(statistics),
        }
        if config.unfolding.observables:
            metadata["kept"] = _kept(inputs)
        with complete_file(folder / "histograms.coffea") as temporary:
            coffea.util.save({**output, "metadata": metadata}, temporary)
        write_report(summary, folder / "results.json")
        write_report(summary, folder / "results.md")
        write_text(folder / "cutflow.json", json.dumps(output["cutflow"], indent=1))
        write_text(folder / "run.json", json.dumps(metadata["run"], indent=1) + "\n")
        if writer is not None:
            manifest = {"folder": str(writer.folder), "format": writer.file_format, "files": files}
            write_text(folder / "columns.json", json.dumps(manifest, indent=1) + "\n")
            _require_files(writer.folder, files, folder)
    return RunResult(output["histograms"], output["cutflow"], summary, statistics, folder, presets)


_Inputs = dict[tuple[str, str], FileSummary]
"""What was found in each file that can be used, by dataset and file."""


def _inspect(config: RunConfig, pepper: bool, progress: bool) -> tuple[_Inputs, list[dict[str, Any]]]:
    """Open every file once: those that can be used, and those to skip if that is asked for."""
    for files in config.fileset.values():
        check_distinct(files)
    names = [(dataset, file) for dataset, files in config.fileset.items() for file in files]

    def inspect(name: tuple[str, str]) -> FileSummary | InputError:
        try:
            if pepper:
                return inspect_pepper(name[1], config.selection, config.tree)
            summary = inspect_file(name[1], config.tree)
            fit_selection(config.selection, summary.branches, name[1])
        except InputError as error:
            return error
        return summary

    inputs: _Inputs = {}
    skipped = []
    with ThreadPoolExecutor(_FILES_AT_A_TIME) as pool:
        found = pool.map(inspect, names)
        bar = track(
            found,
            "Checking files",
            len(names),
            console=Console(stderr=True),
            disable=not progress,
            transient=True,
        )
        for (dataset, file), summary in zip(names, bar, strict=True):
            if isinstance(summary, FileSummary):
                inputs[dataset, file] = summary
            elif config.skip_bad_files:
                skipped.append(_bad(dataset, file, str(summary)))
            else:
                pool.shutdown(wait=False, cancel_futures=True)
                raise summary
    if not inputs:
        raise TopRecoError(f"fileset: none of {len(names)} files can be read, such as {skipped[0]['reason']}")
    if not any(summary.n_entries for summary in inputs.values()):
        raise TopRecoError(f"fileset: tree {config.tree!r} has no entries in any of {len(inputs)} files")
    return inputs, skipped


def _presets(config: RunConfig, inputs: _Inputs, pepper: bool) -> dict[str, str]:
    """By dataset, which preset and era its files are read with."""
    if pepper:
        return dict.fromkeys(config.fileset, "pepper")
    found: dict[str, dict[str, FileSummary]] = {}
    for (dataset, file), summary in inputs.items():
        found.setdefault(dataset, {})[file] = summary
    return {
        dataset: describe_preset(config.selection, fit_files(config.selection, files))
        for dataset, files in found.items()
    }


def _kept(inputs: _Inputs) -> dict[str, dict[str, int]]:
    """By dataset, entries of the files that know how many events were generated for them, and that number."""
    found: dict[str, dict[str, int]] = {}
    for (dataset, _), summary in inputs.items():
        if summary.generated is not None:
            sums = found.setdefault(dataset, {"entries": 0, "generated": 0})
            sums["entries"] += summary.n_entries
            sums["generated"] += summary.generated[0]
    return found


def _is_pepper(config: RunConfig) -> bool:
    """Whether the files are event files of pepper, as the first that can be read is."""
    files = [file for files in config.fileset.values() for file in files]
    if hdf5 := [file for file in files if is_hdf5(file)]:
        raise TopRecoError(
            f"{hdf5[0]}: is HDF5, and a coffea Runner reads ROOT; give pepper's ROOT files here, "
            "or use `topreco skim` or `topreco pepper-write`"
        )
    if pepper_format(files[0], config.tree) is None:
        return False
    if config.systematics != SystematicsConfig():
        raise TopRecoError(f"systematics: not for files of pepper, which has made its own: {files[0]}")
    if config.unfolding.observables:
        raise TopRecoError(
            f"unfolding: not for files of pepper, which lack the events it rejected: {files[0]}"
        )
    return True


def _bad(
    dataset: str, file: str, reason: str, entrystart: int | None = None, entrystop: int | None = None
) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "file": file,
        "entrystart": entrystart,
        "entrystop": entrystop,
        "reason": reason.removeprefix(f"{file}: "),
    }


def _column_writer(config: RunConfig, description: Mapping[str, Any], inputs: _Inputs) -> ColumnWriter | None:
    """Writer of each event's results, whose folder holds no rows of other files, chunks or cuts."""
    if config.output_columns is None:
        return None
    folder = config.output_columns.absolute()
    chunks = {"chunk_size": config.chunk_size, "max_chunks": config.max_chunks}
    for dataset in {dataset for dataset, _ in inputs}:
        files = {file: summary.uuid.hex() for (of, file), summary in inputs.items() if of == dataset}
        claim_folder(
            folder / folder_name(dataset), {**description, **chunks, "files": files}, "output_columns"
        )
    return ColumnWriter(folder, config.columns_format)


def _require_files(folder: Path, files: Sequence[Mapping[str, Any]], results: Path) -> None:
    missing = [entry["path"] for entry in files if not (folder / entry["path"]).is_file()]
    if missing:
        raise TopRecoError(
            f"output_columns {folder}: {len(missing)} of {len(files)} files of the workers are not there, "
            f"such as {missing[0]}; a folder that all machines share expected. All else is in {results}"
        )


class _SkipBadChunks(processor.ProcessorABC):  # type: ignore[misc]
    """A processor whose chunks that cannot be read give a note in place of a result."""

    def __init__(self, instance: DileptonProcessor) -> None:
        self.instance = instance

    def process(self, events: Any) -> dict[str, Any]:
        try:
            return self.instance.process(events)
        except InputError as error:
            source = events.metadata
            return {
                "skipped": [
                    _bad(
                        source["dataset"],
                        source["filename"],
                        str(error),
                        source["entrystart"],
                        source["entrystop"],
                    )
                ]
            }

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        return accumulator


def _run(
    config: RunConfig,
    instance: DileptonProcessor,
    schema: type,
    inputs: _Inputs,
    skipped: list[dict[str, Any]],
    checkpointer: ChunkCheckpointer | None,
    progress: bool,
) -> tuple[dict[str, Any], RunStatistics]:
    """The merged output of the processor, and what it took."""
    # coffea's executors show their bars whatever their `status` says.
    quiet = nullcontext() if progress else redirect_stdout(io.StringIO())
    # Reading again helps where a network lies between, and only there.
    retries = 3 if any(is_remote(file) for _, file in inputs) else 0
    fileset: dict[str, dict[str, Any]] = {}
    for dataset, file in inputs:
        fileset.setdefault(dataset, {"treename": config.tree, "files": []})["files"].append(file)
    with quiet, _one_error(), open_executor(config, progress=progress, retries=retries) as executor:
        runner = processor.Runner(
            executor,
            schema=schema,
            chunksize=config.chunk_size,
            maxchunks=config.max_chunks,
            # What coffea would open every file once more for.
            metadata_cache={
                FileMeta(dataset, file, config.tree): {"numentries": summary.n_entries, "uuid": summary.uuid}
                for (dataset, file), summary in inputs.items()
            },
            skipbadfiles=(OSError,) if config.skip_bad_files else False,
            xrootdtimeout=XROOTD_TIMEOUT,
            savemetrics=True,
            checkpointer=checkpointer,
        )
        chunks: list[WorkItem] = list(runner.preprocess(fileset))
        resumed = [chunk for chunk in chunks if checkpointer is not None and checkpointer.has(chunk)]
        start = time.perf_counter()
        result = runner.run(chunks, _SkipBadChunks(instance) if config.skip_bad_files else instance)
        seconds = time.perf_counter() - start
    output = result["out"]
    bad = output.pop("skipped", [])
    noted = {(entry["dataset"], entry["file"], entry["entrystart"]) for entry in bad}
    done = result["processed"]
    bad += [
        _bad(chunk.dataset, chunk.filename, "a worker could not open it", chunk.entrystart, chunk.entrystop)
        for chunk in chunks
        if chunk not in done and (chunk.dataset, chunk.filename, chunk.entrystart) not in noted
    ]
    bad.sort(key=lambda entry: (entry["dataset"], entry["file"], entry["entrystart"]))
    if "histograms" not in output:
        raise TopRecoError(
            f"none of {len(chunks)} chunks can be read, such as {bad[0]['file']}: {bad[0]['reason']}"
        )
    cutflows = [list(cutflow.values()) for cutflow in output["cutflow"].values()]
    events = sum(steps[0]["total"]["n"] for steps in cutflows)
    return output, RunStatistics(
        files=len(inputs),
        chunks=len(chunks),
        chunks_resumed=len(resumed),
        events=events,
        events_selected=sum(steps[-1]["total"]["n"] for steps in cutflows),
        seconds=round(seconds, 3),
        events_per_second=round((events - sum(map(len, resumed))) / seconds, 1),
        bytes_read=int(result["metrics"].get("bytesread", 0)),
        skipped=skipped + bad,
    )


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
    return load_results(path)["histograms"]


def load_results(path: str | Path) -> Mapping[str, Any]:
    """Histograms, cutflow and metadata saved by `run`, from its folder or its ``histograms.coffea``.

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
        content["histograms"]
    # A damaged pickle raises almost anything.
    except Exception as error:
        raise TopRecoError(f"{file}: not the histograms of `topreco run` ({type(error).__name__})") from error
    return content


@contextmanager
def _one_error() -> Iterator[None]:
    """Raise bad input as a worker found it, without the wrapping and traceback that coffea adds."""
    captured = io.StringIO()
    try:
        with redirect_stderr(captured):
            yield
    except Exception as error:
        failure = _failure(error)
        if failure is not None:
            raise failure from None
        sys.stderr.write(captured.getvalue())
        raise
    sys.stderr.write(captured.getvalue())


def _failure(error: BaseException) -> TopRecoError | None:
    """What the user can mend behind an exception of an executor; None if that is not known."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TopRecoError):
            return cause
        if is_out_of_memory(cause):
            return _no_memory(first_line(cause))
        cause = cause.__cause__ or cause.__context__
    # Some executors bring back the outermost exception only, in whose text coffea quotes the one within.
    text = str(error)
    if quoted := re.search(r"The error was: (\w+)\((.*)\)\.$", text, re.DOTALL):
        kind, arguments = quoted.groups()
        if kind in _names_of_errors(TopRecoError):
            return TopRecoError(ast.literal_eval(arguments))
        if kind.endswith("MemoryError"):
            return _no_memory(arguments)
        file = re.search(r"filename='([^']*)'", text)
        if text.startswith("Failed to open file") and file:
            return TopRecoError(f"{file[1]}: a worker cannot open it ({kind}: {arguments})")
    if text.startswith("No chunks returned results"):
        return TopRecoError("none of the chunks can be read: workers could not open a single file")
    lost = isinstance(error, BrokenExecutor) or type(error).__name__ in WORKER_LOST
    if lost or "KilledWorker" in text:
        return TopRecoError(
            "a worker died, which most often means out of memory: lower chunk_size, or give each worker more "
            f"memory ({text.splitlines()[0]})"
        )
    return None


def _no_memory(reason: str) -> TopRecoError:
    return TopRecoError(f"a worker ran out of memory ({reason or 'it says no more'}): {OUT_OF_MEMORY}")


def _names_of_errors(kind: type[TopRecoError]) -> set[str]:
    return {kind.__name__}.union(*(_names_of_errors(sub) for sub in kind.__subclasses__()))
