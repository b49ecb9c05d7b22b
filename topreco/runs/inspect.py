"""Inputs of a run, checked before the first worker starts."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from topreco.config import RunConfig, SystematicsConfig
from topreco.config.presets import describe_preset
from topreco.core.errors import TopRecoError
from topreco.core.progress import progress_bar
from topreco.input.nano import FileSummary, InputError, check_distinct, inspect_file
from topreco.input.pepper.hdf5 import is_hdf5
from topreco.input.pepper.read import inspect_pepper, pepper_format
from topreco.input.required import common_evidence, fit_files, fit_selection
from topreco.runs.failures import skipped_entry

_FILES_AT_A_TIME = 16
"""Opening a remote file is mostly waiting."""


@dataclass(frozen=True)
class Inputs:
    """Files of a run.

    Attributes
    ----------
    pepper
        True for event files of pepper.
    files
        Summaries of the files that can be used, by dataset and file.
    skipped
        Entries of the files that cannot be used, see `topreco.runs.failures.skipped_entry`.
    presets
        Preset and era that the files of each dataset are read with.
    """

    pepper: bool
    files: dict[str, dict[str, FileSummary]]
    skipped: list[dict[str, Any]] = field(default_factory=list)
    presets: dict[str, str] = field(default_factory=dict)

    @property
    def generated(self) -> dict[str, dict[str, int]]:
        """Entries, and generated events, of the files that know how many were generated, by dataset."""
        found: dict[str, dict[str, int]] = {}
        for dataset, files in self.files.items():
            for summary in files.values():
                if summary.generated is not None:
                    sums = found.setdefault(dataset, {"entries": 0, "generated": 0})
                    sums["entries"] += summary.n_entries
                    sums["generated"] += summary.generated[0]
        return found


def inspect_inputs(config: RunConfig, *, progress: bool) -> Inputs:
    """Open every file of a run once.

    Parameters
    ----------
    config
        Files, selection, and what to do with files that cannot be used.
    progress
        Show a progress bar.

    Returns
    -------
    inputs
        Files that can be used, and those to skip where `config.skip_bad_files` allows it.

    Raises
    ------
    TopRecoError
        If a file cannot be used, the files of a dataset do not fit together, or the configuration does not
        apply to them.
    """
    for files in config.fileset.values():
        check_distinct(files)
    names = [(dataset, file) for dataset, files in config.fileset.items() for file in files]
    pepper = _is_pepper([file for _, file in names], config)

    def inspect(name: tuple[str, str]) -> FileSummary | InputError:
        try:
            if pepper:
                return inspect_pepper(name[1], config.selection, config.tree)
            summary = inspect_file(name[1], config.tree, renamed=config.selection.branches)
            fit_selection(config.selection, summary.branches, name[1], summary.evidence)
        except InputError as error:
            return error
        return summary

    usable: dict[str, dict[str, FileSummary]] = {}
    skipped = []
    with (
        ThreadPoolExecutor(_FILES_AT_A_TIME) as pool,
        progress_bar("Checking files", len(names), show=progress, transient=True) as advance,
    ):
        found = pool.map(inspect, names)
        for (dataset, file), summary in zip(names, found, strict=True):
            advance()
            if isinstance(summary, FileSummary):
                usable.setdefault(dataset, {})[file] = summary
            elif config.skip_bad_files:
                skipped.append(skipped_entry(dataset, file, str(summary)))
            else:
                pool.shutdown(wait=False, cancel_futures=True)
                raise summary
    if not usable:
        raise TopRecoError(f"fileset: none of {len(names)} files can be read, such as {skipped[0]['reason']}")
    n_usable = sum(map(len, usable.values()))
    if not any(summary.n_entries for files in usable.values() for summary in files.values()):
        raise TopRecoError(f"fileset: tree {config.tree!r} has no entries in any of {n_usable} files")
    presets = {
        dataset: "pepper"
        if pepper
        else describe_preset(
            config.selection, fit_files(config.selection, files), common_evidence(files.values())
        )
        for dataset, files in usable.items()
    }
    return Inputs(pepper, usable, skipped, presets)


def _is_pepper(files: Sequence[str], config: RunConfig) -> bool:
    """Return True if the first file is an event file of pepper, after checking that it can be processed."""
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
