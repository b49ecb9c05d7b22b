"""Event files of pepper [1]_ to `DileptonEvents`: its HDF5, and the same columns in a ROOT tree.

pepper saves the events that pass its first cuts, with a flag for each cut after those; leptons, jets and MET
are selected and corrected. Both forms give events of one structure, ``events.Lepton.pt``,
``events.cutflags.HasJets``, ``events.weight``, each column read when first used. Which events and which
columns are taken is said at `select_pepper`; generated top quarks are left to `topreco.input.truth`.

References
----------
.. [1] https://gitlab.cern.ch/pepper/pepper
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import awkward as ak
import numpy as np
from coffea.nanoevents import BaseSchema, transforms
from coffea.nanoevents.methods import base, nanoaod
from coffea.nanoevents.schemas.base import zip_forms

from topreco.config import SelectionConfig
from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON, M_MUON, PDG_ELECTRON, PDG_MUON
from topreco.core.errors import TopRecoError, first_line, needs_extra
from topreco.core.events import CHANNELS, DileptonEvents, dataset_id
from topreco.core.pairing import b_candidates
from topreco.input.cutflow import Cutflow
from topreco.input.nano import (
    EVENT_KEY,
    FileSummary,
    InputError,
    has_branch,
    inspect_file,
    is_remote,
    iterate_events,
    origin_of,
    printable,
    read_branch,
    read_counts,
    read_finite,
    require_finite,
)
from topreco.input.objects import pad_in_falling_pt
from topreco.input.selection import Selection

_FLAGS = "cutflags"
_MAGIC = b"\x89HDF\r\n\x1a\n"
_VERSION = 1
# pepper writes the central weight alone, or as a column among the systematic variations; none in data.
_WEIGHTS = ("weight", "systematics_weight")
_MOMENTUM = ("pt", "eta", "phi")


# ---- files -----------------------------------------------------------------------------------------------


def is_hdf5(path: str | Path) -> bool:
    """Whether a local file is HDF5, by its first bytes."""
    if is_remote(path) or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def pepper_format(path: str | Path, tree: str = "Events") -> Literal["hdf5", "root"] | None:
    """Which form of pepper's event files a file has; None for every other file, damaged ones included."""
    if is_hdf5(path):
        return "hdf5"
    try:
        branches = inspect_file(path, tree).branches
    except InputError:
        return None
    return "root" if any(name.startswith(f"{_FLAGS}_") for name in branches) else None


def inspect_pepper(path: str | Path, config: SelectionConfig, tree: str = "Events") -> FileSummary:
    """Prove that an event file of pepper can be used, and say what it holds.

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
    """
    if is_hdf5(path):
        with open_hdf5(path) as file, damage_of(path):
            forms = {name: read_form(file, path, name) for name in _groups(file, path)}
            n = forms["events"][1]
            names: list[str] = []
            for name, (form, length) in forms.items():
                if length != n:
                    raise InputError(f"{path}: damaged, {length} entries in {name!r} for {n} events")
                parts = dict(zip(form.fields, form.contents, strict=True)) if form.fields else {"": form}
                prefix = "" if name == "events" else f"{name}_"
                for field, part in parts.items():
                    names += [f"{prefix}{field}_{inner}" for inner in part.fields] or [
                        f"{prefix}{field}".removesuffix("_")
                    ]
            summary = FileSummary(n, frozenset(names), None, b"")
    else:
        summary = inspect_file(path, tree)
    flags = sorted(
        name.removeprefix(f"{_FLAGS}_") for name in summary.branches if name.startswith(f"{_FLAGS}_")
    )
    if not flags:
        raise InputError(f"{path}: not an event file of pepper (HDF5, or ROOT with branches {_FLAGS}_*)")
    _flags_to_require(flags, config, str(path))
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
        Chunk whose columns are read when first used, until the iterator moves on.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    if not is_hdf5(path):
        yield from iterate_events(path, tree, step_size=step_size, schema=PepperSchema)
        return
    with open_hdf5(path) as file:
        with damage_of(path):
            forms = {name: read_form(file, path, name) for name in _groups(file, path)}
        n = forms["events"][1]
        for start in range(0, max(n, 1), step_size):
            with damage_of(path):
                events = _read_events(file, path, forms, start, min(start + step_size, n))
            yield events


def _read_events(
    file: Any, path: str | Path, forms: Mapping[str, tuple[Any, int]], start: int, stop: int
) -> Any:
    """The events [start, stop), whose columns are read when first used."""
    groups = {name: _read_range(file[name], form, start, stop) for name, (form, _) in forms.items()}
    events = groups.pop("events")
    columns = {name: events[name] for name in events.fields} | groups
    record = ak.contents.RecordArray(
        list(columns.values()),
        list(columns),
        length=stop - start,
        parameters={"__record__": "NanoEvents", "metadata": {"filename": str(path)}},
    )
    return ak.Array(record, behavior=base.behavior)


@contextmanager
def damage_of(path: str | Path) -> Iterator[None]:
    """What h5py and awkward raise on a damaged file, almost anything, as one `InputError`."""
    try:
        yield
    except TopRecoError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged, cannot be read ({first_line(error)})") from error


@contextmanager
def open_hdf5(path: str | Path, mode: Literal["r", "r+"] = "r") -> Iterator[Any]:
    """HDF5 file with the filters that pepper compresses with.

    Raises
    ------
    InputError
        If the file cannot be opened, or h5py or hdf5plugin are not installed.
    """
    try:
        import h5py
        import hdf5plugin  # noqa: F401 - registers Blosc
    except ImportError as error:
        raise InputError(f"{path}: HDF5: {needs_extra('pepper', error)}") from error
    try:
        file = h5py.File(path, mode)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened as an HDF5 file ({error})") from error
    with file:
        yield file


def _groups(file: Any, path: str | Path) -> list[str]:
    """Names of the groups that are read, ``events`` first."""
    for name in ("events", _FLAGS):
        if name not in file:
            raise InputError(
                f"{path}: no group {name!r}, an event file of pepper expected; "
                f"present: {', '.join(map(printable, file)) or 'none'}"
            )
    version = file.attrs.get("version")
    if version != _VERSION:
        raise InputError(f"{path}: version {version} of pepper's HDF5 layout, {_VERSION} expected")
    return ["events", _FLAGS, *(name for name in ("weight", "systematics") if name in file)]


def read_form(file: Any, path: str | Path, name: str) -> tuple[Any, int]:
    """Awkward form of a group and its length.

    The JSON of awkward 1 is understood. Columns of layouts that pepper has no use for, unions above all, are
    left out.

    Raises
    ------
    InputError
        If the attributes are damaged, or the group is in several parts.
    """
    try:
        attributes = file[name].attrs
        form = ak.forms.from_json(attributes["form"])
        length = json.loads(attributes["length"])
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged, the form of group {name!r} cannot be read ({error!r})") from error
    if not isinstance(length, int):
        raise InputError(f"{path}: group {name!r} has length {length!r}, one number expected")
    if isinstance(form, ak.forms.RecordForm):
        kept = {
            field: part for field, part in zip(form.fields, form.contents, strict=True) if _is_readable(part)
        }
        form = form.copy(contents=list(kept.values()), fields=list(kept))
    return form, length


# ---- awkward buffers, a range of events at a time --------------------------------------------------------

Range = Callable[[], tuple[int, int]]
_ListLike = (ak.forms.ListOffsetForm, ak.forms.ListForm)
_IndexLike = (ak.forms.IndexedForm, ak.forms.IndexedOptionForm)


def _is_readable(form: Any) -> bool:
    if isinstance(form, ak.forms.RecordForm):
        return all(map(_is_readable, form.contents))
    if isinstance(form, ak.forms.NumpyForm):
        return not form.inner_shape
    return isinstance(form, (*_ListLike, *_IndexLike)) and _is_readable(form.content)


def _read_range(group: Any, form: Any, start: int, stop: int) -> Any:
    """Layout of the entries [start, stop) of a group; buffers are read when first used, and only in part."""
    prefix = buffer_prefix(group)

    def load(key: str, first: int, last: int) -> Any:
        stored = group[f"{prefix}{key}"]
        if not 0 <= first <= last <= len(stored):
            raise ValueError(f"{stored.name}: {len(stored)} entries, those from {first} to {last} expected")
        return stored[first:last]

    buffers: dict[str, Callable[[], Any]] = {}
    _add_buffers(buffers, form, load, lambda: (start, stop))
    return ak.from_buffers(form, stop - start, buffers, highlevel=False)


def buffer_prefix(group: Any) -> str:
    """What awkward 1 puts before the names of buffers, and awkward 2 does not."""
    return "part0-" if any(name.startswith("part0-") for name in group) else ""


def _add_buffers(
    buffers: dict[str, Callable[[], Any]], form: Any, load: Callable[..., Any], wanted: Range
) -> None:
    """Readers of the buffers of a form for a range of its entries, which may depend on other buffers."""
    key = form.form_key
    if isinstance(form, ak.forms.RecordForm):
        for part in form.contents:
            _add_buffers(buffers, part, load, wanted)
    elif isinstance(form, ak.forms.NumpyForm):
        buffers[f"{key}-data"] = lambda: load(f"{key}-data", *wanted())
    elif isinstance(form, ak.forms.ListOffsetForm):

        @cache
        def offsets() -> Any:
            first, last = wanted()
            return load(f"{key}-offsets", first, last + 1)

        buffers[f"{key}-offsets"] = lambda: offsets() - offsets()[0]
        _add_buffers(buffers, form.content, load, lambda: (int(offsets()[0]), int(offsets()[-1])))
    elif isinstance(form, ak.forms.ListForm):

        @cache
        def limits() -> tuple[Any, Any, int, int]:
            starts, stops = (load(f"{key}-{name}", *wanted()) for name in ("starts", "stops"))
            filled = stops > starts  # an empty list may lie anywhere
            first, last = (int(starts[filled].min()), int(stops[filled].max())) if filled.any() else (0, 0)
            return np.where(filled, starts - first, 0), np.where(filled, stops - first, 0), first, last

        buffers[f"{key}-starts"] = lambda: limits()[0]
        buffers[f"{key}-stops"] = lambda: limits()[1]
        _add_buffers(buffers, form.content, load, lambda: limits()[2:])
    else:

        @cache
        def index() -> tuple[Any, int, int]:
            values = load(f"{key}-index", *wanted())
            present = values >= 0
            first, last = (
                (int(values[present].min()), int(values[present].max()) + 1) if present.any() else (0, 0)
            )
            return np.where(present, values - first, -1), first, last

        buffers[f"{key}-index"] = lambda: index()[0]
        _add_buffers(buffers, form.content, load, lambda: index()[1:])


# ---- ROOT ------------------------------------------------------------------------------------------------


class PepperSchema(BaseSchema):  # type: ignore[misc]
    """Collections of pepper's ROOT form, for a coffea Runner and `NanoEventsFactory`.

    ``nLepton`` and ``Lepton_pt`` become ``events.Lepton.pt``, ``MET_pt`` becomes ``events.MET.pt`` and
    ``cutflags_HasJets`` ``events.cutflags.HasJets``. What has pt, eta, phi and mass is a Lorentz vector. A
    column that pepper has only for events that pass all cuts, such as ``recot``, is empty for the others,
    and ``maskrecot`` tells them from events without a solution.
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
        kind = "PtEtaPhiMLorentzVector" if fields.keys() >= {*_MOMENTUM, "mass"} else "NanoCollection"
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


# ---- selection -------------------------------------------------------------------------------------------


def is_pepper(events: Any) -> bool:
    """Whether events come from pepper; nothing is read."""
    return _FLAGS in events.layout.fields


def select_pepper(events: Any, config: SelectionConfig, *, dataset: str) -> Selection:
    """Take dileptonic events that pepper has selected.

    Events pass all of pepper's cuts, or those up to `config.pepper.cut`, and have two leptons of opposite
    charge. Leptons, jets and MET are ``Lepton``, ``Jet`` and ``MET`` as pepper made them; b-tagged is what
    ``Jet_btagged`` says, or without it the score above `config.jet.btag_threshold`. b candidates are chosen
    by `topreco.core.pairing`, since pepper's ``recob`` is already a result of its reconstruction. The weight
    is pepper's, 1 where it has none.

    Parameters
    ----------
    events
        Chunk of `iterate_pepper`, or of a coffea Runner with `PepperSchema`.
    config
        See `topreco.config.PepperSelection` for the keys that apply.
    dataset
        Name of the dataset, which enters the key of each event.

    Returns
    -------
    selection
        Events, their positions in the chunk, and the cutflow: one step per cut of pepper.

    Raises
    ------
    topreco.input.nano.InputError
        If a column is missing, cannot be read, or holds a value that is not finite.
    """
    n = len(events)
    weight = next((read_finite(events, name) for name in _WEIGHTS if has_branch(events, name)), np.ones(n))
    cutflow = Cutflow()
    cutflow.add_step("all", weight)
    passed = np.ones(n, dtype=bool)
    for name in _flags_to_require(events.layout[_FLAGS].fields, config, origin_of(events)):
        passed &= read_finite(events, f"{_FLAGS}_{name}") != 0
        cutflow.add_step(name, weight[passed])

    code = read_branch(events, "Lepton_pdgId").astype(np.int64)
    counts = read_counts(events, "Lepton_pdgId")
    passed &= counts == 2
    index = np.flatnonzero(passed)
    first = (np.cumsum(counts) - counts)[index]
    # Columns: ℓ⁺, ℓ⁻, which have negative and positive codes.
    pair = first[:, None] + np.argsort(code[first[:, None] + [0, 1]], axis=1, kind="stable")
    flavour = np.abs(code[pair])
    opposite = np.isin(flavour, [PDG_ELECTRON, PDG_MUON]).all(axis=1) & (code[pair].prod(axis=1) < 0)
    index, pair, flavour = index[opposite], pair[opposite], flavour[opposite]
    channel = (flavour == PDG_MUON).sum(axis=1)
    cutflow.add_step("two leptons of opposite charge", weight[index], channel)
    if set(config.channels) != set(CHANNELS):
        chosen = np.isin(channel, [CHANNELS.index(name) for name in config.channels])
        index, pair, flavour, channel = index[chosen], pair[chosen], flavour[chosen], channel[chosen]
        cutflow.add_step("channel", weight[index], channel)

    pt, eta, phi = (read_finite(events, f"Lepton_{field}")[pair] for field in _MOMENTUM)
    mass = np.where(flavour == PDG_MUON, M_MUON, M_ELECTRON)
    leptons = fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass)
    kept = events[index]
    jets = _jets(kept, config)
    met_pt, met_phi = (read_finite(kept, f"MET_{field}") for field in ("pt", "phi"))
    run, luminosity_block, event = (read_branch(kept, name) for name in EVENT_KEY)
    selected = DileptonEvents(
        lepton_plus=leptons[:, 0],
        lepton_minus=leptons[:, 1],
        lepton_flavour=flavour,
        **jets,
        b_candidates=b_candidates(
            leptons[:, 0],
            leptons[:, 1],
            jets["jets"],
            jets["jet_mask"],
            jets["jet_tagged"],
            m_lb_max=config.m_lb_max,
        ),
        met=np.stack([met_pt * np.cos(met_phi), met_pt * np.sin(met_phi)], axis=-1),
        dataset=np.full(len(index), dataset_id(dataset), dtype=np.uint64),
        run=run.astype(np.uint32),
        luminosity_block=luminosity_block.astype(np.uint32),
        event=event.astype(np.uint64),
        weight=weight[index],
    )
    return Selection(selected, index, cutflow)


def _jets(events: Any, config: SelectionConfig) -> dict[str, Any]:
    """Jets in falling pT, padded: the fields of `DileptonEvents` by name."""
    counts = read_counts(events, "Jet_pt")
    pt, eta, phi, mass = (read_finite(events, f"Jet_{field}") for field in (*_MOMENTUM, "mass"))
    name = f"Jet_{config.jet.btag}"
    score = read_branch(events, name, key="jet.btag").astype(np.float64)
    require_finite(origin_of(events), name, score)
    tagged = (
        read_branch(events, "Jet_btagged").astype(bool)
        if has_branch(events, "Jet_btagged")
        else score > config.jet.btag_threshold
    )
    n = len(counts)
    padded = pad_in_falling_pt(np.repeat(np.arange(n), counts), pt, n, config.jet.max_jets)
    return {
        "jets": padded(fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass)),
        "jet_mask": padded(np.ones(len(pt), dtype=bool)),
        "jet_btag": padded(score),
        "jet_tagged": padded(tagged),
    }


def _needed(config: SelectionConfig) -> tuple[str, ...]:
    """Columns without which `select_pepper` cannot work, named as in the ROOT form."""
    return (
        *EVENT_KEY,
        *(f"Lepton_{field}" for field in (*_MOMENTUM, "pdgId")),
        *(f"Jet_{field}" for field in (*_MOMENTUM, "mass", config.jet.btag)),
        "MET_pt",
        "MET_phi",
    )


def _flags_to_require(flags: list[str], config: SelectionConfig, origin: str) -> list[str]:
    """Cuts up to the one that the configuration names, in pepper's order."""
    last = config.pepper.cut
    if last is None:
        return flags
    if last not in flags:
        raise InputError(
            f"{origin}: no cut {last!r} (selection key 'pepper.cut') among pepper's flags {', '.join(flags)}"
        )
    return flags[: flags.index(last) + 1]
