"""Run the processor over a fileset with a coffea Runner, and save the results."""

import io
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import coffea.util
from coffea import processor
from coffea.processor.executor import FileMeta, WorkItem

from topreco.config import RunConfig, files_of
from topreco.core.errors import TopRecoError
from topreco.core.files import check_outputs, complete_file, folder_name, writable_folder, write_text
from topreco.core.method import Method
from topreco.core.versions import versions
from topreco.evaluation.latex import latex_table
from topreco.evaluation.report import write_report
from topreco.evaluation.summary import summarise
from topreco.input.branches import RUNS_OF_FILE
from topreco.input.cutflow import Cutflow
from topreco.input.nano import XROOTD_TIMEOUT, QuietNanoAODSchema, is_remote
from topreco.input.pepper.read import PepperSchema
from topreco.reconstruction.load import load_methods
from topreco.reconstruction.model_files import needed_features
from topreco.runs.checkpoints import ChunkCheckpointer, claim_folder, describe_configuration
from topreco.runs.columns import ColumnWriter
from topreco.runs.executors import open_executor
from topreco.runs.failures import SkipBadChunks, one_error, skipped_entry
from topreco.runs.inspect import Inputs, inspect_inputs
from topreco.runs.processor import DileptonProcessor
from topreco.runs.results import RunResult, RunStatistics


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
        Also saved in `config.output`: ``histograms.coffea``, ``results.json``, ``.md`` and ``.tex``,
        ``cutflow.json`` and ``.tex``, ``run.json``, and with `config.output_columns` its manifest
        ``columns.json``.

    Raises
    ------
    TopRecoError
        If a file or method cannot be used, or the output folder cannot be written; nothing is left behind.
    """
    config, methods, inputs = prepare(config, progress=progress)
    columns = None
    if config.output_columns is not None:
        columns = ColumnWriter(
            config.output_columns.absolute(), config.columns_format, config.columns_samples
        )
    instance = make_processor(config, methods, columns)
    description = describe_configuration(config, methods)
    with _output_folder(config.output) as folder:
        checkpointer = None
        if config.checkpoint is not None:
            claim_folder(config.checkpoint.absolute(), description, "checkpoint")
            checkpointer = ChunkCheckpointer(config.checkpoint.absolute())
        if columns is not None:
            _claim_columns(columns.folder, config, description, inputs)
        output, statistics = _run(config, instance, inputs, checkpointer, progress)
        summary = summarise(output["histograms"])
        files = sorted(output.pop("columns", []), key=lambda entry: entry["path"])
        metadata: dict[str, Any] = {
            "config": config.model_dump(mode="json"),
            "presets": inputs.presets,
            "versions": versions(),
            "run": asdict(statistics),
        }
        if config.unfolding.fills:
            metadata["kept"] = inputs.generated
        with complete_file(folder / "histograms.coffea") as temporary:
            # A list, so that coffea's `accumulate` adds the outputs of several runs.
            coffea.util.save({**output, "metadata": [metadata]}, temporary)
        write_report(summary, folder / "results.json")
        write_report(summary, folder / "results.md")
        write_report(summary, folder / "results.tex")
        write_text(folder / "cutflow.json", json.dumps(output["cutflow"], indent=1))
        write_text(folder / "cutflow.tex", _latex_of_cutflow(output["cutflow"]))
        write_text(folder / "run.json", json.dumps(metadata["run"], indent=1) + "\n")
        if columns is not None:
            manifest = {"folder": str(columns.folder), "format": columns.file_format, "files": files}
            write_text(folder / "columns.json", json.dumps(manifest, indent=1) + "\n")
            _require_files(columns.folder, files, folder)
    return RunResult(output["histograms"], output["cutflow"], summary, statistics, folder, inputs.presets)


def prepare(config: RunConfig, *, progress: bool) -> tuple[RunConfig, list[Method], Inputs]:
    """All that is checked before the first worker starts.

    Parameters
    ----------
    config
        Files, methods, cuts and execution.
    progress
        Show a progress bar.

    Returns
    -------
    config
        The same with absolute paths.
    methods
        The methods, loaded.
    inputs
        The files, inspected.

    Raises
    ------
    TopRecoError
        If a file or method cannot be used, or an output is one of the inputs.
    """
    if not config.fileset:
        raise TopRecoError("fileset: no input files; give them as arguments or in the configuration")
    if not config.methods:
        raise TopRecoError("methods: none given; name a model or a model file (--method dilepton)")
    config = _with_absolute_paths(config)
    read: list[str | Path] = [*itertools.chain(*config.fileset.values()), *files_of(config), *config.methods]
    names = ["histograms.coffea", "run.json", "columns.json"]
    names += ["results.json", "results.md", "results.tex", "cutflow.json", "cutflow.tex"]
    check_outputs((config.output / name for name in names), read)
    methods = load_methods(
        config.methods,
        threads=1,
        solvers=config.solvers,
        ship=config.ship_model,
        # Histograms do not need them.
        quantiles=config.output_columns is not None or bool(config.min_quality),
        summary=config.summary,
        min_quality=config.min_quality,
        device=config.device,
    )
    # All problems with the input are found before the first worker starts, those with features included.
    selection = config.selection.with_features(needed_features(methods))
    inputs = inspect_inputs(config.model_copy(update={"selection": selection}), progress=progress)
    return config, methods, inputs


def make_processor(
    config: RunConfig, methods: Sequence[Method], columns: ColumnWriter | None
) -> DileptonProcessor:
    """Processor of a run, see `prepare`."""
    return DileptonProcessor(
        methods,
        config.selection,
        config.histograms,
        systematics=config.systematics,
        columns=columns,
        unfolding=config.unfolding,
        ratios=config.ratios,
    )


def _latex_of_cutflow(cutflow: Mapping[str, Any]) -> str:
    """The cutflow of each dataset as a table."""
    tables = [
        latex_table(*Cutflow.from_dict(of).rows(), caption=f"Events of {name} after each cut")
        for name, of in sorted(cutflow.items())
    ]
    return "\n".join(tables)


def _with_absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration for workers that run in another folder; what only this process writes stays."""
    sections = {name: getattr(config, name).absolute() for name in ("selection", "solvers", "systematics")}

    def absolute(file: str) -> str:
        return file if is_remote(file) else str(Path(file).absolute())

    fileset = {dataset: tuple(map(absolute, files)) for dataset, files in config.fileset.items()}
    details = {
        dataset: {absolute(file): about for file, about in files.items()}
        for dataset, files in config.details.items()
    }
    return config.model_copy(
        update={"fileset": fileset, "details": details}
        | {name: section for name, section in sections.items() if section is not getattr(config, name)}
    )


def _claim_columns(folder: Path, config: RunConfig, description: Mapping[str, Any], inputs: Inputs) -> None:
    """Make sure that the folder of each dataset contains no rows of other files, chunks or cuts."""
    chunks = {"chunk_size": config.chunk_size, "max_chunks": config.max_chunks}
    for dataset, summaries in inputs.files.items():
        files: dict[str, Any] = {file: summary.uuid.hex() for file, summary in summaries.items()}
        for file, about in config.details.get(dataset, {}).items():
            if about.steps is not None and file in files:
                files[file] = [files[file], *map(list, about.steps)]
        claim_folder(
            folder / folder_name(dataset), {**description, **chunks, "files": files}, "output_columns"
        )


def _require_files(folder: Path, files: Sequence[Mapping[str, Any]], results: Path) -> None:
    missing = [entry["path"] for entry in files if not (folder / entry["path"]).is_file()]
    if missing:
        raise TopRecoError(
            f"output_columns {folder}: {len(missing)} of {len(files)} files of the workers are not there, "
            f"such as {missing[0]}; a folder that all machines share expected. All else is in {results}"
        )


def _run(
    config: RunConfig,
    instance: DileptonProcessor,
    inputs: Inputs,
    checkpointer: ChunkCheckpointer | None,
    progress: bool,
) -> tuple[dict[str, Any], RunStatistics]:
    """The merged output of the processor, and the statistics of the run."""
    # coffea's executors show their bars whatever their `status` says.
    quiet = nullcontext() if progress else redirect_stdout(io.StringIO())
    summaries = {(dataset, file): s for dataset, files in inputs.files.items() for file, s in files.items()}
    # Reading again helps where a network lies between, and only there.
    retries = 3 if any(is_remote(file) for _, file in summaries) else 0
    with quiet, one_error(), open_executor(config, progress=progress, retries=retries) as executor:
        runner = processor.Runner(
            executor,
            schema=PepperSchema if inputs.pepper else QuietNanoAODSchema,
            format="parquet" if inputs.parquet else "root",
            skipbadfiles=(OSError,) if config.skip_bad_files else False,
            xrootdtimeout=XROOTD_TIMEOUT,
            savemetrics=True,
            checkpointer=checkpointer,
        )
        chunks = chunks_of(inputs, config)
        resumed = [chunk for chunk in chunks if checkpointer is not None and checkpointer.has(chunk)]
        start = time.perf_counter()
        result = runner.run(chunks, SkipBadChunks(instance) if config.skip_bad_files else instance)
        seconds = time.perf_counter() - start
    output = result["out"]
    bad = output.pop("skipped", [])
    noted = {(entry["dataset"], entry["file"], entry["entrystart"]) for entry in bad}
    done = result["processed"]
    bad += [
        skipped_entry(
            chunk.dataset, chunk.filename, "a worker could not open it", chunk.entrystart, chunk.entrystop
        )
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
        files=len(summaries),
        chunks=len(chunks),
        chunks_resumed=len(resumed),
        events=events,
        events_selected=sum(steps[-1]["total"]["n"] for steps in cutflows),
        seconds=round(seconds, 3),
        events_per_second=round((events - sum(map(len, resumed))) / seconds, 1),
        bytes_read=int(result["metrics"].get("bytesread", 0)),
        skipped=inputs.skipped + bad,
        events_skipped=_events_in(inputs.skipped + bad, inputs),
    )


def chunks_of(inputs: Inputs, config: RunConfig) -> list[WorkItem]:
    """Chunks of all files that have events.

    coffea's own preprocessing would open every file once more, and takes no name beyond ASCII.
    """
    found: list[WorkItem] = []
    for dataset, files in inputs.files.items():
        of_dataset: list[WorkItem] = []
        for file, summary in files.items():
            about = config.details.get(dataset, {}).get(file)
            if about is not None and about.steps is not None:
                of_dataset += [
                    WorkItem(dataset, file, config.tree, start, stop, summary.uuid, {})
                    for start, stop in about.steps
                ]
            elif summary.n_entries:
                known = {"numentries": summary.n_entries, "uuid": summary.uuid}
                if summary.evidence.runs is not None:
                    known[RUNS_OF_FILE] = summary.evidence.runs
                of_dataset += FileMeta(dataset, file, config.tree, known).chunks(config.chunk_size, False)
        found += of_dataset[: config.max_chunks]
    return found


def _events_in(skipped: Sequence[Mapping[str, Any]], inputs: Inputs) -> int:
    """Number of events in files and chunks that were left out; see `RunStatistics`."""
    n_events = 0.0
    for entry in skipped:
        if entry["entrystop"] is not None:
            n_events += entry["entrystop"] - entry["entrystart"]
            continue
        files = inputs.files.get(entry["dataset"]) or {
            file: summary for files in inputs.files.values() for file, summary in files.items()
        }
        n_events += sum(summary.n_entries for summary in files.values()) / len(files)
    return round(n_events)


@contextmanager
def _output_folder(path: Path) -> Iterator[Path]:
    """Folder for the results, proven writable before the work starts; a new one is removed on failure."""
    new = not path.exists()
    folder = writable_folder(path)
    try:
        yield folder
    except BaseException:
        if new and not any(folder.iterdir()):
            folder.rmdir()
        raise
