"""NanoAOD or pepper files to one skim of selected events, a chunk at a time."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from topreco.config import SelectionConfig, files_of
from topreco.config.presets import describe_preset
from topreco.core.events import IntArray, dataset_id
from topreco.core.files import check_outputs, write_text
from topreco.core.generated import GeneratedWriter
from topreco.core.prior import METADATA_KEY, Spectra
from topreco.core.progress import progress_bar
from topreco.core.skim import SkimWriter
from topreco.core.versions import versions
from topreco.input.branches import Branches
from topreco.input.cutflow import Cutflow
from topreco.input.nano import (
    EVENT_KEY,
    FileSummary,
    InputError,
    check_copies,
    check_distinct,
    inspect_file,
    is_remote,
    iterate_events,
)
from topreco.input.pepper.read import inspect_pepper, iterate_pepper, pepper_format
from topreco.input.pepper.select import PEPPER_WEIGHTS, select_pepper
from topreco.input.required import common_evidence, fit_files, needed_branches, optional_branches
from topreco.input.selection import select
from topreco.input.truth import NEEDED_BRANCHES, PEPPER_COLUMNS, TRUTH_BRANCHES, read_truth


@dataclass(frozen=True)
class SkimSummary:
    """Result of `make_skim`.

    Attributes
    ----------
    output, cutflow_file
        The skim, and the cutflow as JSON in the same folder.
    n_read, n_selected
        Number of events in the files and in the skim.
    sum_gen_weights
        Sum of the weights of all generated events; None in data.
    has_truth
        True if the skim contains generated top quarks.
    cutflow
        Counts after each cut.
    preset
        Preset and era that were used, see `topreco.config.presets.describe_preset`.
    """

    output: Path
    cutflow_file: Path
    n_read: int
    n_selected: int
    sum_gen_weights: float | None
    has_truth: bool
    cutflow: Cutflow
    preset: str

    def __str__(self) -> str:
        if self.n_selected == 0:
            return f"{self.output}: empty, none of {self.n_read} events passed the selection"
        truth = "with truth" if self.has_truth else "without truth"
        return f"{self.output}: {self.n_selected} of {self.n_read} events, {truth}"


def make_skim(
    files: Sequence[str | Path],
    output: str | Path,
    config: SelectionConfig,
    *,
    dataset: str = "default",
    tree: str = "Events",
    step_size: int = 50_000,
    progress: bool = True,
    require_truth: bool = False,
    generated: str | Path | None = None,
) -> SkimSummary:
    """Select events of NanoAOD or pepper files, and write them to a skim.

    The kind of the first file decides for all. Memory holds one chunk and one row group, so files may be
    larger than it. Truth is stored when the files have it, and then the metadata have the `Spectra` of all
    generated and of the selected events, which a `topreco.core.prior.Prior` needs.
    ``<output>.cutflow.json`` contains the cutflow. Neither file appears before it is complete.

    Parameters
    ----------
    files
        Files of one dataset, local or URLs: NanoAOD, or pepper's event files.
    output
        Skim to write; an existing one is replaced.
    config
        Cuts; what is not set follows the preset of the files' NanoAOD version.
    dataset
        Name of the dataset, which enters the key of each event.
    tree
        Name of the tree.
    step_size
        Entries per chunk.
    progress
        Show a progress bar on the error stream.
    require_truth
        Refuse files without generated particles.
    generated
        Also write all generated events, selected or not, with truth and weights of the generator to this
        file, which `topreco omnifold` takes (`topreco.core.generated`).

    Returns
    -------
    summary
        Numbers of events read and written.

    Raises
    ------
    InputError
        If a file is given twice or cannot be used, some have truth and others do not, or they are of
        different NanoAOD versions.
    topreco.core.errors.TopRecoError
        If the output cannot be written, or is one of the inputs.
    """
    output = Path(output)
    if step_size < 1:
        raise InputError(f"step_size: {step_size} entries per chunk, at least 1 expected")
    check_distinct(files)
    cutflow_file = output.with_name(f"{output.name}.cutflow.json")
    check_outputs([output, cutflow_file, *([generated] if generated else [])], [*files, *files_of(config)])
    # All problems with the input are found before the first event is read.
    pepper = pepper_format(files[0], tree) is not None
    given = config
    if pepper:
        summaries = {file: inspect_pepper(file, config, tree) for file in files}
        has_truth = _all_or_none(summaries, PEPPER_COLUMNS, "generated tops (gent_lc)", require=require_truth)
        for name in (*PEPPER_WEIGHTS, "Jet_btagged"):
            _all_or_none(summaries, (name,), f"column {name}")
        simulated = False  # pepper's weights are those of the events that it saved, not of all generated ones
        branches: list[str] = []
    else:
        summaries = {file: inspect_file(file, tree, renamed=given.branches) for file in files}
        # Official files of zero events have no branches.
        filled = {file: summary for file, summary in summaries.items() if summary.n_entries}
        if not filled:
            raise InputError(f"{', '.join(map(str, files))}: no entries in tree {tree!r}")
        config = fit_files(given, filled)
        has_truth = _all_or_none(
            filled, config.in_file(NEEDED_BRANCHES), "generated particles (GenPart)", require=require_truth
        )
        simulated = _all_or_none(filled, config.in_file(["genWeight"]), "generator weights (genWeight)")
        of_truth = TRUTH_BRANCHES if has_truth else ()
        branches = config.in_file((*needed_branches(config), *optional_branches(config), *of_truth))
    check_copies(summaries)
    preset = "pepper" if pepper else describe_preset(given, config, common_evidence(summaries.values()))
    n_read = sum(summary.n_entries for summary in summaries.values())
    if n_read == 0:
        raise InputError(f"{', '.join(map(str, files))}: no entries in tree {tree!r}")

    cutflow = Cutflow()
    n_selected = n_generated = 0
    sum_gen_weights = 0.0
    spectra = Spectra() if has_truth and simulated else None
    if generated is not None and Path(generated).absolute() == output.absolute():
        raise InputError(f"--generated {generated}: is the output too; give another name")
    if generated is not None and spectra is None:
        raise InputError(
            f"--generated {generated}: {files[0]} has no generated particles and weights of a generator "
            "(GenPart, genWeight); simulated NanoAOD expected"
        )
    of_generated: AbstractContextManager[GeneratedWriter | None] = (
        nullcontext() if generated is None else GeneratedWriter(generated)
    )
    with (
        SkimWriter(output) as writer,
        of_generated as all_events,
        progress_bar("events", n_read, show=progress) as advance,
    ):
        for file, summary in summaries.items():
            of_file = Cutflow()
            if pepper:
                chunks = iterate_pepper(file, tree=tree, step_size=step_size)
            elif summary.n_entries:
                chunks = iterate_events(
                    file, tree, step_size=step_size, branches=branches, renamed=config.branches
                )
            else:
                chunks = iter(())
            for events in chunks:
                chunk = Branches(events, config)
                selection = (select_pepper if pepper else select)(chunk, config, dataset=dataset)
                truth = None
                if spectra is not None:
                    of_all = read_truth(chunk)
                    truth = of_all[selection.index]
                    weight = chunk.finite("genWeight")
                    spectra += Spectra.of(of_all, weight, truth, selection.events.weight)
                    if all_events is not None:
                        all_events.write(_keys(chunk, dataset), weight, selection.index, of_all)
                elif has_truth:
                    truth = read_truth(chunk[selection.index])
                writer.write(selection.events, truth)
                of_file += selection.cutflow
                n_selected += len(selection.events)
                advance(len(chunk))
            cutflow += of_file
            # Without a `Runs` tree only the events in the file are known.
            n, sumw = summary.generated or (
                (of_file["all"].n, of_file["all"].sumw) if summary.n_entries else (0, 0.0)
            )
            n_generated += n
            sum_gen_weights += sumw
        writer.metadata |= {
            "selection": config.model_dump(mode="json"),
            "preset": preset,
            "datasets": {dataset: dataset_id(dataset)},
            "sources": [str(file) if is_remote(file) else Path(file).name for file in files],
            "n_read": n_read,
            "n_selected": n_selected,
            "n_generated": n_generated if simulated else None,
            "sum_gen_weights": sum_gen_weights if simulated else None,
            "has_truth": has_truth,
            "cutflow": cutflow.to_dict(),
            "versions": versions(),
        }
        if spectra is not None:
            spectra = replace(spectra, complete=n_generated == n_read)
            writer.metadata[METADATA_KEY] = spectra.to_dict()
    write_text(cutflow_file, cutflow.to_json() + "\n")
    return SkimSummary(
        output,
        cutflow_file,
        n_read,
        n_selected,
        sum_gen_weights if simulated else None,
        has_truth,
        cutflow,
        preset,
    )


def _keys(chunk: Branches, dataset: str) -> dict[str, IntArray]:
    """Keys of all events of a chunk."""
    run, luminosity_block, event = (chunk.read(name, per_event=True) for name in EVENT_KEY)
    identity = np.full(len(chunk), dataset_id(dataset), np.uint64)
    return {"dataset": identity, "run": run, "luminosity_block": luminosity_block, "event": event}


def _all_or_none(
    summaries: Mapping[str | Path, FileSummary], branches: Sequence[str], what: str, *, require: bool = False
) -> bool:
    """Return True if the files have these branches; an error if only some do."""
    without = [file for file, summary in summaries.items() if not summary.has(branches)]
    if not without:
        return True
    if require:
        raise InputError(f"{without[0]}: no {what}, which are required")
    if len(without) < len(summaries):
        raise InputError(
            f"{without[0]}: no {what}, but other files have them; "
            "a skim has them for all of its events or for none"
        )
    return False
