"""Inputs of a run, checked before the first worker starts."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from topreco.config import FileDetails, RunConfig, SelectionConfig, SystematicsConfig
from topreco.config.presets import describe_preset
from topreco.core.errors import TopRecoError
from topreco.core.progress import progress_bar
from topreco.input.event_cuts import check_event_cuts, primary_dataset
from topreco.input.met import SOFT_JETS
from topreco.input.nano import (
    BadFileError,
    FileSummary,
    InputError,
    check_copies,
    check_distinct,
    inspect_file,
    is_parquet,
    is_remote,
)
from topreco.input.pepper.hdf5 import is_hdf5
from topreco.input.pepper.read import has_flags, inspect_pepper
from topreco.input.pepper.select import PEPPER_WEIGHTS
from topreco.input.required import common_evidence, fit_files, fit_selection
from topreco.input.systematics import (
    branches_with_default,
    check_branches,
    check_corrections,
    element_branches,
)
from topreco.input.truth import NEEDED_BRANCHES, PEPPER_COLUMNS
from topreco.runs.failures import skipped_entry

_WEIGHT = ("genWeight",)
_OF_TYPE1 = (
    ("Jet_muonSubtrFactor",),
    ("Jet_chEmEF", "Jet_neEmEF"),
    *((f"{SOFT_JETS}_{field}",) for field in ("rawPt", "muonSubtrFactor", "EmEF")),
)

_OF_PEPPER: dict[str, tuple[tuple[str, ...], ...]] = {
    **{f"column {name}": ((name,),) for name in PEPPER_WEIGHTS},
    "flags of tagged jets (Jet_btagged)": (("Jet_btagged",),),
    "generated tops (gent_lc)": (PEPPER_COLUMNS,),
}
"""Optional columns of pepper with an effect on the result."""

_FILES_AT_A_TIME = 16
"""Opening a remote file is mostly waiting."""


@dataclass(frozen=True)
class Inputs:
    """Files of a run.

    Attributes
    ----------
    pepper
        True for event files of pepper.
    parquet
        True for Parquet files.
    files
        Summaries of the files that can be used, by dataset and file.
    skipped
        Entries of the files that cannot be used, see `topreco.runs.failures.skipped_entry`.
    presets
        Preset and era that the files of each dataset are read with.
    details
        What the fileset tells about files, by dataset and file.
    """

    pepper: bool
    files: dict[str, dict[str, FileSummary]]
    skipped: list[dict[str, Any]] = field(default_factory=list)
    presets: dict[str, str] = field(default_factory=dict)
    details: Mapping[str, Mapping[str, FileDetails]] = field(default_factory=dict)
    parquet: bool = False

    @property
    def generated(self) -> dict[str, dict[str, int]]:
        """Entries, and generated events, of the files that know how many were generated, by dataset."""
        found: dict[str, dict[str, int]] = {}
        for dataset, files in self.files.items():
            for file, summary in files.items():
                if summary.generated is not None:
                    sums = found.setdefault(dataset, {"entries": 0, "generated": 0})
                    about = self.details.get(dataset, {}).get(file, FileDetails())
                    steps = [(0, summary.n_entries)] if about.steps is None else about.steps
                    sums["entries"] += sum(stop - start for start, stop in steps)
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
    for dataset, files in config.fileset.items():
        _check_names(dataset, files)
        check_distinct(files)
    check_corrections(config.systematics)
    check_event_cuts(config.selection)
    names = [(dataset, file) for dataset, files in config.fileset.items() for file in files]
    parquet = _all_parquet([file for _, file in names])
    pepper = _is_pepper([file for _, file in names], config)
    sizes = config.selection.in_file(element_branches(config.systematics))

    def inspect(name: tuple[str, str]) -> FileSummary | InputError:
        try:
            if pepper:
                summary = inspect_pepper(name[1], config.selection, config.tree)
                _check_details(name[1], summary, config.details.get(name[0], {}).get(name[1]))
                return summary
            summary = inspect_file(name[1], config.tree, (), sizes, renamed=config.selection.branches)
            _check_details(name[1], summary, config.details.get(name[0], {}).get(name[1]))
            # Official files of zero events have no branches.
            if summary.n_entries:
                resolved = fit_selection(config.selection, summary.branches, name[1], summary.evidence)
                check_branches(config.systematics, resolved, summary, name[1], name[0])
        except InputError as error:
            return error
        return summary

    usable: dict[str, dict[str, FileSummary]] = {}
    bad: list[tuple[str, str, InputError]] = []
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
                bad.append((dataset, file, summary))
            else:
                pool.shutdown(wait=False, cancel_futures=True)
                raise summary
    filled = {
        dataset: {file: summary for file, summary in files.items() if summary.n_entries}
        for dataset, files in usable.items()
    }
    for dataset, _, error in bad:
        # What no file of a dataset has is a mistake of the configuration.
        if not isinstance(error, BadFileError) and not filled.get(dataset):
            raise error
    skipped = [skipped_entry(dataset, file, str(error)) for dataset, file, error in bad]
    if not usable:
        raise TopRecoError(f"fileset: none of {len(names)} files can be read, such as {skipped[0]['reason']}")
    n_usable = sum(map(len, usable.values()))
    if not any(filled.values()):
        raise TopRecoError(f"fileset: tree {config.tree!r} has no entries in any of {n_usable} files")
    for summaries in usable.values():
        check_copies(summaries)
    presets = {}
    for dataset, of_dataset in filled.items():
        if pepper:
            _require_all_or_none(of_dataset, _OF_PEPPER)
            presets[dataset] = "pepper"
            continue
        if not of_dataset:
            presets[dataset] = "no events"
            continue
        resolved = fit_files(config.selection, of_dataset)
        _require_alike(dataset, of_dataset, resolved, config)
        _require_weights(of_dataset, resolved, config)
        if resolved.cuts.triggers and not next(iter(of_dataset.values())).has(resolved.in_file(_WEIGHT)):
            primary_dataset(resolved.cuts, dataset, next(iter(of_dataset)))
        preset = describe_preset(config.selection, resolved, common_evidence(of_dataset.values()))
        constant = _constant_weights(dataset, next(iter(of_dataset.values())), resolved, config)
        presets[dataset] = f"{preset}; weight 1: {', '.join(constant)}" if constant else preset
    return Inputs(pepper, usable, skipped, presets, config.details, parquet)


def _check_names(dataset: str, files: Sequence[str]) -> None:
    """Refuse names that workers could not open."""
    for name in (dataset, *files):
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise InputError(f"fileset: the name {name!a} is not text in UTF-8")
    for file in files:
        if "::" in file and not is_remote(file):
            raise InputError(
                f"{file}: '::' in a path separates linked URLs, so uproot would open something else; "
                "rename it or make a symbolic link"
            )


def _check_details(file: str, summary: FileSummary, about: FileDetails | None) -> None:
    """Refuse a file that is another than the fileset tells."""
    if about is None:
        return
    last = max((stop for _, stop in about.steps or ()), default=0)
    if last > summary.n_entries or about.num_entries not in (None, summary.n_entries):
        expected = f"num_entries {about.num_entries}" if about.num_entries is not None else f"steps to {last}"
        raise InputError(
            f"{file}: has {summary.n_entries} entries, but the fileset has {expected}; make it again"
        )
    if about.uuid is not None and about.uuid.replace("-", "") != summary.uuid.hex():
        raise InputError(
            f"{file}: is another file than that of the fileset (uuid {about.uuid}); make it again"
        )


def _constant_weights(
    dataset: str, summary: FileSummary, resolved: SelectionConfig, config: RunConfig
) -> list[str]:
    """Sources of weights without effect on a simulated dataset, by `datasets` or `default`."""
    if not summary.has(resolved.in_file(_WEIGHT)):
        return []
    needed = branches_with_default(config.systematics, resolved, dataset)
    return [
        name
        for name, source in config.systematics.weights.items()
        if not source.includes(dataset) or not summary.has(needed.get(name, ()))
    ]


def _require_alike(
    dataset: str, files: Mapping[str, FileSummary], resolved: SelectionConfig, config: RunConfig
) -> None:
    """Refuse files of one dataset that differ in optional branches with an effect on the result."""
    alternatives: dict[str, tuple[Collection[str], ...]] = {
        "generator weights (genWeight)": (_WEIGHT,),
        "generated particles (GenPart)": (NEEDED_BRANCHES,),
    }
    if resolved.jet.id_bit is not None and resolved.jet.id_recipe == "branch":
        alternatives["identification of jets (Jet_jetId)"] = (("Jet_jetId",),)
    if resolved.electron.gap is not None:
        names = ("Electron_superclusterEta", "Electron_deltaEtaSC")
        alternatives[f"η of superclusters ({' or '.join(names)})"] = tuple((name,) for name in names)
    if config.systematics.objects:
        alternatives |= {
            f"branches for the change of MET ({', '.join(names)})": (names,) for names in _OF_TYPE1
        }
    in_file: dict[str, Collection[Collection[str]]] = {
        what: [resolved.in_file(names) for names in choices] for what, choices in alternatives.items()
    }
    if next(iter(files.values())).has(resolved.in_file(_WEIGHT)):
        for name, branches in branches_with_default(config.systematics, resolved, dataset).items():
            in_file[f"weights of the source {name} ({', '.join(sorted(branches))})"] = (branches,)
    _require_all_or_none(files, in_file)


def _require_weights(files: Mapping[str, FileSummary], resolved: SelectionConfig, config: RunConfig) -> None:
    """Refuse simulation that would be treated as data, for want of generator weights, where that matters."""
    file, summary = next(iter(files.items()))
    needs = {
        "systematics": config.systematics.objects or config.systematics.weights,
        "selection.cuts.golden_json": resolved.cuts.golden_json,
    }
    key = next((key for key, value in needs.items() if value), None)
    weight = resolved.in_file(_WEIGHT)
    if key is not None and summary.has(resolved.in_file(NEEDED_BRANCHES)) and not summary.has(weight):
        raise InputError(
            f"{file}: has generated particles, but no branch {weight[0]!r}, by which simulation is known: "
            f"{key} would treat it as data; selection.branches={{genWeight: NAME}} names another branch"
        )


def _require_all_or_none(
    files: Mapping[str, FileSummary], alternatives: Mapping[str, Collection[Collection[str]]]
) -> None:
    """Refuse files of which some have one of the alternative sets of branches, and others have none."""
    for what, choices in alternatives.items():
        having = [file for file, summary in files.items() if any(map(summary.has, choices))]
        if 0 < len(having) < len(files):
            lacking = next(file for file in files if file not in having)
            raise InputError(
                f"{lacking}: no {what}, but {having[0]} has them; "
                "the files of a dataset must have them all or none"
            )


def _all_parquet(files: Sequence[str]) -> bool:
    """Return True if all files are Parquet; one coffea Runner reads either these or ROOT files."""
    kinds = {is_parquet(file): file for file in files}
    if len(kinds) > 1:
        raise TopRecoError(
            f"fileset: {kinds[True]} is Parquet and {kinds[False]} is not; files of one kind expected, "
            "`topreco plot` adds up several runs"
        )
    return True in kinds


def _is_pepper(files: Sequence[str], config: RunConfig) -> bool:
    """Return True if the files are event files of pepper, after checking that they can be processed."""
    if hdf5 := [file for file in files if is_hdf5(file)]:
        raise TopRecoError(
            f"{hdf5[0]}: is HDF5, and a coffea Runner reads ROOT; give pepper's ROOT files here, "
            "or use `topreco skim` or `topreco pepper-write`"
        )
    file, branches = _first_readable(files, config.tree)
    if not has_flags(branches):
        return False
    if config.systematics != SystematicsConfig():
        raise TopRecoError(f"systematics: not for files of pepper, which has made its own: {file}")
    if config.unfolding.fills:
        raise TopRecoError(f"unfolding: not for files of pepper, which lack the events it rejected: {file}")
    return True


def _first_readable(files: Sequence[str], tree: str) -> tuple[str, Collection[str]]:
    """The first file that is not damaged, and its branches, none if it is of another kind."""
    for file in files:
        try:
            return file, inspect_file(file, tree).branches
        except BadFileError:
            continue
        except InputError:
            return file, ()
    return files[0], ()
