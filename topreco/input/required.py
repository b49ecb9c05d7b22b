"""Branches that a selection needs in a file, and the selection with every key set for that file."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from topreco.config import ConfigError, SelectionConfig
from topreco.config.presets import NO_EVIDENCE, NO_PRESET, Evidence, resolve_selection
from topreco.input.jet_id import COLUMNS
from topreco.input.nano import EVENT_KEY, FileSummary, InputError, missing_branch

OPTIONAL_BRANCHES = ("Electron_deltaEtaSC", "Electron_superclusterEta", "Jet_jetId", "genWeight")
"""Branches that are used where they exist."""

# Seed crystal and position, https://twiki.cern.ch/twiki/bin/viewauth/CMS/PdmVRun3Analysis?rev=169#From_ECAL_and_EGM
EE_LEAK_BRANCHES = ("Electron_seediEtaOriX", "Electron_seediPhiOriY")
"""Branches that `cuts.ee_leak_veto` needs."""

_MOMENTUM = ("pt", "eta", "phi")

_OPTIONAL_CUTS = (
    ("jet", ("id_bit", "id_recipe"), ("Jet_jetId",)),
    ("electron", ("gap",), ("Electron_deltaEtaSC", "Electron_superclusterEta")),
)
"""Cuts that need one of some optional branches: section, keys of which the first switches it, branches."""


def needed_branches(config: SelectionConfig) -> tuple[str, ...]:
    """Branches that the selection requires; see also `optional_branches`."""
    return tuple(_needed(config))


def optional_branches(config: SelectionConfig) -> tuple[str, ...]:
    """Branches that the selection uses where they exist: `OPTIONAL_BRANCHES` and trigger paths."""
    return (*OPTIONAL_BRANCHES, *(path for paths in config.cuts.triggers.values() for path in paths))


def _needed(config: SelectionConfig) -> dict[str, str | None]:
    """Needed branches, and the configuration key that requires each."""
    electron, muon, jet, cuts = config.electron, config.muon, config.jet, config.cuts
    names: dict[str, str | None] = dict.fromkeys(EVENT_KEY)
    names |= dict.fromkeys(f"Electron_{field}" for field in (*_MOMENTUM, "charge"))
    names |= {f"Electron_{electron.id}": "electron.id"}
    names |= dict.fromkeys(f"Muon_{field}" for field in (*_MOMENTUM, "charge"))
    names |= {f"Muon_{muon.id}": "muon.id", f"Muon_{muon.isolation}": "muon.isolation"}
    names |= dict.fromkeys(f"Jet_{field}" for field in (*_MOMENTUM, "mass"))
    names |= {f"Jet_{jet.btag}": "jet.btag"}
    names |= dict.fromkeys((f"{config.met}_pt", f"{config.met}_phi"), "met")
    if jet.id_bit is not None:
        names |= dict.fromkeys((f"Jet_{field}" for field in COLUMNS[jet.id_recipe]), "jet.id_recipe")
    if jet.pu_id is not None:
        names |= {"Jet_puId": "jet.pu_id"}
    if cuts.ee_leak_veto:
        names |= dict.fromkeys(EE_LEAK_BRANCHES, "cuts.ee_leak_veto")
    if cuts.jet_veto_map is not None:
        names |= dict.fromkeys(("Jet_chEmEF", "Jet_neEmEF"), "cuts.jet_veto_map")
    names |= dict.fromkeys(cuts.met_filters, "cuts.met_filters")
    # What the selection needs itself keeps its key.
    return config.features.branches | names


def _fit_optional_cuts(
    config: SelectionConfig, resolved: SelectionConfig, names: Collection[str], origin: str
) -> SelectionConfig:
    """Selection without the cuts for which a file has no branch.

    Raises
    ------
    InputError
        If the user chose the preset, the cut or the name of its branch.
    """
    for section, keys, branches in _OPTIONAL_CUTS:
        cuts = getattr(resolved, section)
        is_off = getattr(cuts, keys[0]) is None or (section == "jet" and cuts.id_recipe != "branch")
        if is_off or any(name in names for name in resolved.in_file(branches)):
            continue
        key = f"{section}.{keys[0]}"
        preset = config.preset if config.preset != NO_PRESET else None
        chosen = getattr(config, section).model_fields_set.intersection(keys)
        if preset or chosen or any(name in config.branches for name in branches):
            stored = resolved.in_file(branches)[0]
            what = missing_branch(stored, names, key, preset)
            raise InputError(f"{origin}: {what}; selection.{key}=null leaves this cut out")
        # Validated again from all of its values, so that each counts as set.
        content = resolved.model_dump()
        content[section][keys[0]] = None
        resolved = SelectionConfig.model_validate(content)
    return resolved


def fit_selection(
    config: SelectionConfig, branches: Collection[str], origin: str, evidence: Evidence = NO_EVIDENCE
) -> SelectionConfig:
    """Selection for a file: the preset resolved, and every branch that it needs present.

    Cuts on `OPTIONAL_BRANCHES` are left out where the file lacks these, unless the user asked for them.

    Parameters
    ----------
    config
        The selection as the user configured it.
    branches
        Names of the branches in the file.
    origin
        The file, for errors.
    evidence
        What else the file says about preset and era.

    Returns
    -------
    resolved
        See `topreco.config.presets.resolve_selection`.

    Raises
    ------
    InputError
        If a branch is missing, also an optional one if the user chose the preset or the cut.
    topreco.config.ConfigError
        If the preset cannot be resolved, a trigger path is missing that may not be, or a key applies to files
        of pepper only.
    """
    if config.pepper.cut is not None:
        raise ConfigError(f"selection.pepper.cut: would be ignored for {origin}, which is not from pepper")
    resolved = resolve_selection(config, branches, evidence)
    preset = resolved.preset if resolved.preset != NO_PRESET else None
    names = set(branches)
    for name, key in _needed(resolved).items():
        stored = resolved.branches.get(name, name)
        if stored not in names:
            chosen_by = key if stored == name else f"branches.{name}"
            raise InputError(f"{origin}: {missing_branch(stored, names, chosen_by, preset)}")
    resolved = _fit_optional_cuts(config, resolved, names, origin)
    paths = [path for group in resolved.cuts.triggers.values() for path in group]
    absent = [path for path in resolved.in_file(paths) if path not in names]
    if absent and (resolved.cuts.missing_trigger == "error" or len(absent) == len(paths)):
        what = missing_branch(absent[0], names, "cuts.triggers", preset)
        # Of the configuration: `skip_bad_files` must not leave out the data of another menu.
        raise ConfigError(f"{origin}: {what}, as {len(absent)} of {len(paths)} paths are")
    return resolved


def fit_files(config: SelectionConfig, files: Mapping[Any, FileSummary]) -> SelectionConfig:
    """`fit_selection` for all files of a dataset with events, of one NanoAOD version and era.

    Parameters
    ----------
    config
        The selection as the user configured it.
    files
        Files with their summaries, at least one with events.

    Raises
    ------
    InputError
        If a branch is missing, the files are of different versions or eras, or simulated ones have different
        trigger paths.
    topreco.config.ConfigError
        If the preset cannot be resolved, or a trigger path is missing that may not be.
    """
    resolved = {
        file: fit_selection(config, summary.branches, str(file), summary.evidence)
        for file, summary in files.items()
        if summary.n_entries
    }
    first, common = next(iter(resolved.items()))
    for file, other in resolved.items():
        if other.preset != common.preset:
            raise InputError(
                f"{file}: its preset is {other.preset}, that of {first} {common.preset}; a dataset must be "
                "of one NanoAOD version (selection.preset sets it)"
            )
        for section, keys, names in _OPTIONAL_CUTS:
            cuts = [getattr(getattr(each, section), keys[0]) for each in (common, other)]
            if cuts[0] != cuts[1]:
                lacking, having = (first, file) if cuts[0] is None else (file, first)
                raise InputError(
                    f"{lacking}: no branch {' or '.join(common.in_file(names))}, which {having} of the same "
                    f"dataset has; selection.{section}.{keys[0]}=null leaves this cut out for all files"
                )
        if other.era != common.era:
            raise InputError(
                f"{file}: its era is {other.era}, that of {first} {common.era}; a dataset must be of one era "
                "(selection.era sets it)"
            )
    _require_one_menu(common, {file: files[file] for file in resolved})
    return common


def _require_one_menu(config: SelectionConfig, files: Mapping[Any, FileSummary]) -> None:
    """Refuse simulated files of different trigger paths. Those of data change, see `cuts.missing_trigger`."""
    simulated = {file: each for file, each in files.items() if each.has(config.in_file(["genWeight"]))}
    for path in config.in_file(path for group in config.cuts.triggers.values() for path in group):
        having = [file for file, summary in simulated.items() if summary.has([path])]
        if 0 < len(having) < len(simulated):
            lacking = next(file for file in simulated if file not in having)
            raise InputError(
                f"{lacking}: no trigger path {path}, but {having[0]} has it; "
                "the simulated files of a dataset must have the same of selection.cuts.triggers"
            )


def common_evidence(files: Iterable[FileSummary]) -> Evidence:
    """Evidence of the first file with events, by which `fit_files` finds the era."""
    return next((summary.evidence for summary in files if summary.n_entries), NO_EVIDENCE)
