"""Event files of pepper [1]_: its HDF5, and the same columns in a ROOT tree.

pepper saves the events that pass its first cuts, with a flag for each cut after those; leptons, jets and MET
are selected and corrected. Both forms give events of one structure, ``events.Lepton.pt``,
``events.cutflags.HasJets``, ``events.weight``, each column read when first used.
`topreco.input.pepper.select` takes the events and columns, `topreco.input.truth` the generated top quarks.

References
----------
.. [1] https://gitlab.cern.ch/pepper/pepper
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from coffea.nanoevents import BaseSchema, transforms
from coffea.nanoevents.methods import nanoaod
from coffea.nanoevents.schemas.base import zip_forms

from topreco.config import SelectionConfig
from topreco.input.nano import EVENT_KEY, FileSummary, InputError, inspect_file, iterate_events
from topreco.input.pepper.hdf5 import FLAGS, inspect_hdf5, is_hdf5, iterate_hdf5

APPLICABLE = (
    *("channels", "m_lb_max", "pepper"),
    *("jet.btag", "jet.btag_threshold", "jet.btag_working_points", "jet.max_jets"),
)
"""Keys of the selection that apply to pepper's events; all else was decided by pepper."""

MOMENTUM = ("pt", "eta", "phi")
"""Fields of the momentum of leptons and jets, besides the mass."""


def is_pepper(events: Any) -> bool:
    """Return True if events come from pepper; nothing is read."""
    return FLAGS in events.layout.fields


def pepper_format(path: str | Path, tree: str = "Events") -> Literal["hdf5", "root"] | None:
    """Form of an event file of pepper; None for every other file, damaged ones included."""
    if is_hdf5(path):
        return "hdf5"
    try:
        branches = inspect_file(path, tree).branches
    except InputError:
        return None
    return "root" if has_flags(branches) else None


def has_flags(branches: Iterable[str]) -> bool:
    """True if the branches of a ROOT file are those of an event file of pepper."""
    return any(name.startswith(f"{FLAGS}_") for name in branches)


def inspect_pepper(path: str | Path, config: SelectionConfig, tree: str = "Events") -> FileSummary:
    """Check that an event file of pepper can be used, and describe its content.

    Parameters
    ----------
    path
        HDF5 or ROOT file.
    config
        Names of the b-tag score and of the last cut.
    tree
        Name of the tree in a ROOT file.

    Returns
    -------
    summary
        Number of events and columns, named as in the ROOT form.

    Raises
    ------
    InputError
        If the file is not one of pepper or cannot be read, or a column or the cut is missing.
    topreco.config.ConfigError
        If a key of the selection would be ignored.
    """
    config.require_effect(APPLICABLE, f"{path}, a file of pepper")
    summary = inspect_hdf5(path) if is_hdf5(path) else inspect_file(path, tree)
    flags = sorted(
        name.removeprefix(f"{FLAGS}_") for name in summary.branches if name.startswith(f"{FLAGS}_")
    )
    if not flags:
        raise InputError(f"{path}: not an event file of pepper (HDF5, or ROOT with branches {FLAGS}_*)")
    flags_to_require(flags, config, str(path))
    for name in _needed(config):
        if name not in summary.branches:
            raise InputError(
                f"{path}: column {name!r} is missing, which pepper saves if its columns_to_save say so"
            )
    return summary


def iterate_pepper(path: str | Path, *, tree: str = "Events", step_size: int = 50_000) -> Iterator[Any]:
    """Events of a file of pepper, a chunk at a time.

    Memory holds one chunk of the columns that are used, however long the file is.

    Parameters
    ----------
    path
        HDF5 or ROOT file.
    tree
        Name of the tree in a ROOT file.
    step_size
        Events per chunk.

    Yields
    ------
    events
        Chunk whose columns are read when first used, until the next chunk is requested.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    if is_hdf5(path):
        yield from iterate_hdf5(path, step_size)
    else:
        yield from iterate_events(path, tree, step_size=step_size, schema=PepperSchema)


def _needed(config: SelectionConfig) -> tuple[str, ...]:
    """Columns without which `select_pepper` cannot work, named as in the ROOT form."""
    return (
        *EVENT_KEY,
        *(f"Lepton_{field}" for field in (*MOMENTUM, "pdgId")),
        *(f"Jet_{field}" for field in (*MOMENTUM, "mass", config.jet.btag)),
        "MET_pt",
        "MET_phi",
    )


def flags_to_require(flags: list[str], config: SelectionConfig, origin: str) -> list[str]:
    """Cuts up to the one that the configuration names, in pepper's order."""
    last = config.pepper.cut
    if last is None:
        return flags
    if last not in flags:
        raise InputError(
            f"{origin}: no cut {last!r} (selection key 'pepper.cut') among pepper's flags {', '.join(flags)}"
        )
    return flags[: flags.index(last) + 1]


class PepperSchema(BaseSchema):  # type: ignore[misc]
    """Collections of pepper's ROOT form, for a coffea Runner and `NanoEventsFactory`.

    ``nLepton`` and ``Lepton_pt`` become ``events.Lepton.pt``, ``MET_pt`` becomes ``events.MET.pt`` and
    ``cutflags_HasJets`` ``events.cutflags.HasJets``. Collections with pt, eta, phi and mass are Lorentz
    vectors. A column that pepper has only for events that pass all cuts, such as ``recot``, is empty for the
    others, and ``maskrecot`` distinguishes them from events without a solution.
    """

    def __init__(self, base_form: dict[str, Any], *arguments: Any, **options: Any) -> None:
        super().__init__(base_form, *arguments, **options)
        forms = dict(zip(self._form["fields"], self._form["contents"], strict=True))
        grouped: dict[str, dict[str, Any]] = {}
        jagged = {name: form["class"].startswith("ListOffset") for name, form in forms.items()}
        for branch, (collection, field) in collections(jagged).items():
            grouped.setdefault(collection, {})[field] = forms[branch]
        contents = {name: self._collection(name, fields, forms) for name, fields in grouped.items()}
        self._form |= {"fields": list(contents), "contents": list(contents.values())}

    @staticmethod
    def _collection(name: str, fields: dict[str, Any], forms: dict[str, Any]) -> dict[str, Any]:
        if "" in fields:
            return fields[""]
        counts = forms.get(f"n{name}")
        offsets = None if counts is None else transforms.counts2offsets_form(counts)
        kind = "PtEtaPhiMLorentzVector" if fields.keys() >= {*MOMENTUM, "mass"} else "NanoCollection"
        if fields.keys() == {"pt", "phi"}:
            kind = "MissingET"
        return zip_forms(fields, name, record_name=kind, offsets=offsets)

    @classmethod
    def behavior(cls) -> dict[Any, Any]:
        """Behaviours of the collections."""
        return nanoaod.behavior


def collections(jagged: Mapping[str, bool]) -> dict[str, tuple[str, str]]:
    """Collection and field of each branch; counters have none, and a branch alone has the field "".

    Parameters
    ----------
    jagged
        By name of the branch, whether it holds a list per event.
    """
    lists = {
        name[1:]
        for name in jagged
        if name.startswith("n")
        and any(jagged[b] and (b == name[1:] or b.startswith(f"{name[1:]}_")) for b in jagged)
    }
    found = {}
    for branch in jagged:
        if branch[1:] in lists and branch.startswith("n"):
            continue
        if jagged[branch]:
            fitting = (name for name in lists if branch.startswith(f"{name}_"))
            collection = max(fitting, key=len, default="")
        else:
            collection = branch.partition("_")[0]
            # ``weight_up`` beside ``weight`` is no field of it.
            if collection in jagged or collection in lists:
                collection = ""
        found[branch] = (collection, branch[len(collection) + 1 :]) if collection else (branch, "")
    return found
