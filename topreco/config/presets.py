"""Presets: what a NanoAOD version calls the things that the selection needs, and b-tag working points by era.

`configs/presets` holds one preset per file, and the working points. A key that the user's configuration sets
wins over the preset, which wins over the defaults of `SelectionConfig`.
"""

import functools
from collections.abc import Collection
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from pydantic import Field

from topreco.config import (
    Config,
    ConfigError,
    JetSelection,
    SelectionConfig,
    WorkingPoint,
    build_config,
    read_yaml,
    shipped_folder,
)
from topreco.config.base import merged
from topreco.core.errors import nearest

_WHOLE = ("branches", "btag_working_points")
"""Keys that a later source replaces as a whole."""

NO_PRESET = "none"
"""Name for the defaults of `SelectionConfig`, of files that no preset recognises."""


class Clue(Config):
    """Branches that are present, and branches that are absent."""

    present: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def fits(self, names: AbstractSet[str]) -> bool:
        """Return True if it describes a file with branches of these names."""
        return names >= set(self.present) and names.isdisjoint(self.absent)


class Detection(Clue):
    """What recognises a NanoAOD version: branches, and one of several clues."""

    one_of: tuple[Clue, ...] = ()
    titles: dict[str, str | None] = {}
    """Part of the title of a jet's pile-up identification, which overrules `one_of`, and its era."""


class Evidence(NamedTuple):
    """What a file says about its NanoAOD version and era, apart from the names of its branches.

    Attributes
    ----------
    titles
        Titles of `Jet_puId` and `Jet_puIdDisc`, which name the training.
    runs
        Run numbers of data, such as the first and the last one; None for simulation.
    """

    titles: tuple[str, ...] = ()
    runs: tuple[int, ...] | None = None


NO_EVIDENCE = Evidence()


class Era(Config):
    """Changes of an era to its preset."""

    selection: dict[str, Any] = Field({})
    met_filters: tuple[str, ...] = ()
    """In addition to those of the preset."""


class OlderVersion(Config):
    """A version that lacks some filters of its preset."""

    one_of: tuple[Clue, ...]
    no_met_filters: tuple[str, ...]


class Preset(Config):
    """One NanoAOD version."""

    description: str
    aliases: tuple[str, ...] = ()
    """Other versions of which all that matters here is the same."""
    detect: Detection
    selection: dict[str, Any]
    """Keys of `SelectionConfig`."""
    met_filters: tuple[str, ...] = ()
    older: dict[str, OlderVersion] = {}
    """Versions among the aliases that differ a little."""
    era: str
    """Taken if none is given."""
    eras: dict[str, Era]


class WorkingPoints(Config):
    """Working points of an era: source, public codes with the same numbers, and scores by tagger."""

    source: str
    checked: tuple[str, ...]
    taggers: dict[str, dict[WorkingPoint, float]]


@functools.cache
def presets() -> dict[str, Preset]:
    """All presets by name."""
    paths = sorted((shipped_folder() / "presets").glob("nano_v*.yaml"), key=lambda p: (len(p.stem), p.stem))
    return {path.stem: build_config(Preset, read_yaml(path), str(path)) for path in paths}


@functools.cache
def working_points() -> dict[str, WorkingPoints]:
    """Working points by era."""
    path = shipped_folder() / "presets" / "working_points.yaml"
    eras = {}
    for era, content in read_yaml(path).items():
        fields = {key: content.pop(key) for key in ("source", "checked")}
        eras[era] = build_config(WorkingPoints, fields | {"taggers": content}, f"{path}: {era}")
    return eras


@functools.cache
def runs_of_eras() -> dict[str, tuple[int, int]]:
    """First and last run of each era."""
    content = read_yaml(shipped_folder() / "presets" / "runs.yaml")
    return {era: (first, last) for era, (first, last) in content.items()}


def detect_preset(branches: Collection[str], evidence: Evidence = NO_EVIDENCE) -> str:
    """Name of the preset that recognises a file, `NO_PRESET` if none does."""
    names = set(branches)
    possible = {name: preset for name, preset in presets().items() if preset.detect.fits(names)}
    for name, preset in possible.items():
        if _trainings(preset, evidence):
            return name
    for name, preset in possible.items():
        clues = preset.detect.one_of
        if not clues or any(clue.fits(names) for clue in clues):
            return name
    return NO_PRESET


def detect_era(preset: Preset, evidence: Evidence) -> tuple[str, str]:
    """Era of a file, and a word about its origin.

    Parameters
    ----------
    preset
        Preset of the file, whose eras are possible.
    evidence
        What the file says; run numbers count more than titles.

    Returns
    -------
    era
        That of the preset if the file says nothing.
    source
        Such as ``from run 367475``.

    Raises
    ------
    ConfigError
        If the runs are of different eras, or collision data of none while nothing else tells the era.
    """
    if evidence.runs is not None:
        found = {run: _era_of_run(run, preset) for run in evidence.runs}
        eras = {run: era for run, era in found.items() if era is not None}
        if len(set(eras.values())) > 1:
            both = " and ".join(f"{run} ({era})" for run, era in eras.items())
            raise ConfigError(f"selection.era: the events are of several eras, runs {both}; give one of them")
        for run, era in eras.items():
            return era, f"from run {run}"
    for text, named in _trainings(preset, evidence).items():
        if named is not None:
            return named, f"from the title of Jet_puId, {text}"
    # Simulation without weights has run numbers too, smaller ones.
    first = min(first for first, _ in runs_of_eras().values())
    if unknown := [run for run in evidence.runs or () if run >= first]:
        raise ConfigError(
            f"selection.era: run {unknown[0]} tells no era of this NanoAOD version; "
            f"give one of {', '.join(preset.eras)}"
        )
    return preset.era, "assumed, the file does not say: set --era"


def _trainings(preset: Preset, evidence: Evidence) -> dict[str, str | None]:
    """Titles of the preset that the file has, and their eras."""
    return {
        text: era
        for text, era in preset.detect.titles.items()
        if any(text in title for title in evidence.titles)
    }


def _era_of_run(run: int, preset: Preset) -> str | None:
    for era, (first, last) in runs_of_eras().items():
        if era in preset.eras and first <= run <= last:
            return era
    return None


def find_preset(name: str) -> tuple[str, Preset]:
    """Preset of that name or alias, and its own name.

    Raises
    ------
    ConfigError
        If there is none.
    """
    for own, preset in presets().items():
        if name in (own, *preset.aliases):
            return own, preset
    known = [*presets(), NO_PRESET]
    raise ConfigError(
        f"selection.preset: no preset {name!r}; known: {', '.join(known)}{nearest(name, known)}"
    )


def btag_threshold(era: str, tagger: str, working_point: str) -> float:
    """Score above which a jet is tagged.

    Raises
    ------
    ConfigError
        If the working point is not known here.
    """
    eras = working_points()
    taggers = eras[era].taggers if era in eras else {}
    points = taggers.get(tagger, {})
    if working_point in points:
        return points[working_point]
    known = f"{', '.join(points)} of it" if points else ", ".join(taggers) or f"eras {', '.join(eras)}"
    raise ConfigError(
        f"selection.jet.btag: no working point {working_point} of {tagger!r} in era {era!r} is known here "
        f"(known: {known}); give selection.jet.btag_threshold, or another era or tagger"
    )


def tagger_working_points(era: str | None, jet: JetSelection) -> dict[WorkingPoint, float] | None:
    """Scores at the working points of a selection's tagger, None if they are not known here.

    Without an era they are those of DeepJet in UL2018 where `btag_threshold` is that of the default.
    """
    default = JetSelection()
    if era is None:
        if (jet.btag, jet.btag_threshold) != (default.btag, default.btag_threshold):
            return None
        era = "UL2018"
    return working_points()[era].taggers.get(jet.btag) if era in working_points() else None


def resolve_selection(
    config: SelectionConfig, branches: Collection[str], evidence: Evidence = NO_EVIDENCE
) -> SelectionConfig:
    """Selection with every key set, from the user's keys, the preset and the defaults.

    Parameters
    ----------
    config
        What the user wants; only the keys that were set explicitly count.
    branches
        Names of the branches in the file, by which the preset is detected if none is given.
    evidence
        What else the file says about preset and era.

    Returns
    -------
    resolved
        The same for the same arguments, and itself when resolved again.

    Raises
    ------
    ConfigError
        If preset, era or working point do not exist.
    """
    given = config.model_dump(exclude_unset=True)
    present = set(branches) | {name for name, stored in config.branches.items() if stored in branches}
    name, era = config.preset or detect_preset(present, evidence), config.era
    filters: tuple[str, ...] | None = None
    content: dict[str, Any] = {}
    if name != NO_PRESET:
        name, preset = find_preset(name)
        era = era or detect_era(preset, evidence)[0]
        if era not in preset.eras:
            raise ConfigError(
                f"selection.era: preset {name} has no era {era!r}; it has {', '.join(preset.eras)}"
                f"{nearest(era, preset.eras)}"
            )
        content = merged(preset.selection, preset.eras[era].selection, whole=_WHOLE)
        lacking = {
            flag
            for version, older in preset.older.items()
            if config.preset == version or any(clue.fits(present) for clue in older.one_of)
            for flag in older.no_met_filters
        }
        everything = (*preset.met_filters, *preset.eras[era].met_filters)
        filters = tuple(flag for flag in everything if flag not in lacking)
    content = merged(content, given, {"preset": name, "era": era}, whole=_WHOLE)
    if "btag_threshold" not in given.get("jet", {}):
        jet = build_config(SelectionConfig, content, "selection").jet
        if era is not None:
            threshold = btag_threshold(era, jet.btag, jet.working_point)
            content = merged(content, {"jet": {"btag_threshold": threshold}}, whole=_WHOLE)
        elif "working_point" in given.get("jet", {}):
            raise ConfigError("selection.jet.working_point: means nothing without selection.era")
    if given.get("jet", {}).get("btag_working_points") is None:
        jet = build_config(SelectionConfig, content, "selection").jet
        points = tagger_working_points(era, jet)
        content = merged(content, {"jet": {"btag_working_points": points}}, whole=_WHOLE)
    if config.cuts.met_filters == "preset":
        if filters is None:
            raise ConfigError(
                "selection.cuts.met_filters: 'preset', but no preset is given and none recognises the file; "
                "give selection.preset or a list of flags"
            )
        content = merged(content, {"cuts": {"met_filters": filters}}, whole=_WHOLE)
    resolved = build_config(SelectionConfig, content, "selection")
    # Validated again from all of its values, so that each counts as set.
    return build_config(SelectionConfig, resolved.model_dump(), "selection")


def describe_preset(
    config: SelectionConfig, resolved: SelectionConfig, evidence: Evidence = NO_EVIDENCE
) -> str:
    """One line about which preset and era `resolve_selection` took for the same evidence, and why."""
    if resolved.preset is None or resolved.preset == NO_PRESET:
        why = "as given" if config.preset else "the branches are of no known NanoAOD version"
        return f"no preset ({why}): names and working points of the configuration"
    preset = f"preset {resolved.preset} ({'given' if config.preset else 'detected'})"
    source = "given" if config.era else detect_era(find_preset(resolved.preset)[1], evidence)[1]
    jet = resolved.jet
    return f"{preset}, era {resolved.era} ({source}), {resolved.met}, {jet.btag} > {jet.btag_threshold:g}"
