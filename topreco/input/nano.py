"""Opening NanoAOD files, with one clear error for each way in which a file cannot be used.

They are ROOT files with a TTree or an RNTuple, or Parquet files with one column for each branch.
"""

import difflib
import hashlib
import posixpath
import re
import struct
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec
import uproot
from coffea.nanoevents import BaseSchema, NanoAODSchema, NanoEventsFactory

from topreco.config.presets import NO_EVIDENCE, Evidence
from topreco.core.errors import TopRecoError, first_line

EVENT_KEY = ("run", "luminosityBlock", "event")
"""Branches that every file must have, under these names unless `selection.branches` renames them."""

_OTHER_NAMES = {
    "run": {"run", "runnumber", "runnum", "runno", "runid", "nrun"},
    "luminosityBlock": {"lumi", "lumiblock", "luminosityblock", "lumisection", "luminumber", "luminum", "ls"},
    "event": {
        "event",
        "eventnumber",
        "eventnum",
        "eventno",
        "eventid",
        "evt",
        "evtnumber",
        "evtnum",
        "nevent",
    },
}
"""Names of the event key in other ntuples, in lower case and without underscores."""

PU_ID_TITLES = ("Pileup ID", "Pilup ID")
"""Beginnings of the titles of `Jet_puId` and `Jet_puIdDisc`, under any name."""

NOT_RENAMED: Mapping[str, str] = MappingProxyType({})
"""Names of branches as in NanoAOD."""

_TREES = ("TTree", "ROOT::RNTuple")
_OTHER_TREES = {"Runs", "LuminosityBlocks", "MetaData", "ParameterSets"}

_PARQUET = b"PAR1"

XROOTD_TIMEOUT = 60
"""Seconds after which a request to an XRootD server fails; its client alone waits for many minutes."""


class InputError(TopRecoError):
    """An input file or its content that cannot be used."""


class BadFileError(InputError):
    """A file that is absent, damaged or something else; not one that the configuration does not fit."""


class QuietNanoAODSchema(NanoAODSchema):  # type: ignore[misc]
    """`NanoAODSchema` without warnings about content that is not used here.

    They are about cross-references that a file does not have (no NanoAOD version has all of them), and about
    masses of photons, which the schema sets to zero.
    """

    warn_missing_crossrefs = False
    error_missing_event_ids = False  # `selection.branches` may rename them

    def __init__(self, *arguments: Any, **options: Any) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Branch \w+ already exists but", RuntimeWarning)
            warnings.filterwarnings("ignore", "Missing event_ids", RuntimeWarning)
            try:
                super().__init__(*arguments, **options)
            # Depends on what a damaged list of branches lacks first.
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                raise BadFileError(
                    f"branches do not fit together, the file may be damaged ({first_line(error)})"
                ) from error


@dataclass(frozen=True)
class FileSummary:
    """Content of a file, as known without reading its events.

    Attributes
    ----------
    n_entries
        Number of entries of the tree.
    branches
        Names of its branches.
    generated
        Number of events that were generated for the file, whether it still contains them or not, and the sum
        of their weights, from its ``Runs`` tree; None without one, as in data.
    uuid
        ROOT's identifier of the file, different for each file written; of Parquet a hash of its metadata.
    sizes
        Number of elements in the first event, of the branches for which it was requested.
    evidence
        What it says about its NanoAOD version and era apart from names.
    """

    n_entries: int
    branches: frozenset[str]
    generated: tuple[int, float] | None
    uuid: bytes
    sizes: Mapping[str, int] = field(default_factory=dict)
    evidence: Evidence = NO_EVIDENCE

    def has(self, branches: Iterable[str]) -> bool:
        """Return True if all these branches are there."""
        return self.branches.issuperset(branches)


def inspect_file(
    path: str | Path,
    tree: str = "Events",
    branches: Iterable[str] = (),
    sizes: Iterable[str] = (),
    *,
    renamed: Mapping[str, str] = NOT_RENAMED,
) -> FileSummary:
    """Check that a file can be used, and describe its content.

    A file of NanoAOD without events, which has the other trees alone, has zero entries and no branches.

    Parameters
    ----------
    path
        ROOT or Parquet file: a local path, or a URL such as ``root://host//path``.
    tree
        Name of the tree, of no meaning for Parquet.
    branches
        Names that must be there besides run, luminosityBlock and event.
    sizes
        Names of branches of several values per event, whose number in the first event is read; those that are
        not there or have one value are left out.
    renamed
        Names in NanoAOD and in the file, see `selection.branches`; only those of these three count.

    Returns
    -------
    summary
        Entries, branches, generator sums.

    Raises
    ------
    InputError
        If the file is missing, is of another kind or is cut short, or the tree or a branch is missing.
    """
    if is_parquet(path):
        return _inspect_parquet(path, branches, sizes, renamed)
    with _open(path) as file:
        found = None if _without_events(file) else _find_tree(file, path, tree, branches, renamed)
        try:
            generated = _generator_sums(file)
        except Exception as error:
            raise BadFileError(
                f"{path}: damaged, tree 'Runs' cannot be read ({first_line(error)})"
            ) from error
        if found is None:
            return FileSummary(0, frozenset(), generated, file.file.uuid.bytes)
        n, names = int(found.num_entries), _one_copy(frozenset(_names(found)))
        try:
            elements = _first_sizes(found, names.intersection(sizes)) if n else {}
        except Exception as error:
            raise BadFileError(
                f"{path}: damaged, first event cannot be read ({first_line(error)})"
            ) from error
        evidence = _evidence(found, path, renamed.get("run", "run"))
        return FileSummary(n, names, generated, file.file.uuid.bytes, elements, evidence)


def _names(tree: Any) -> list[str]:
    """Names of branches as in NanoAOD; an RNTuple may have a collection Jet with fields Jet.pt."""
    keys: list[str] = tree.keys()
    if not _is_rntuple(tree):
        return keys
    collections = {key.partition(".")[0] for key in keys if "." in key}
    return [f"n{key}" if key in collections else key.replace(".", "_") for key in keys]


def _is_rntuple(tree: Any) -> bool:
    # A TTree has branches, an RNTuple fields.
    return not hasattr(tree, "branches")


def is_parquet(path: str | Path) -> bool:
    """Return True for a Parquet file, which of remote ones the name says."""
    if is_remote(path):
        return str(path).endswith(".parquet")
    try:
        with Path(path).open("rb") as file:
            return file.read(len(_PARQUET)) == _PARQUET
    except OSError:
        return False


def _inspect_parquet(
    path: str | Path, branches: Iterable[str], sizes: Iterable[str], renamed: Mapping[str, str]
) -> FileSummary:
    """`inspect_file` for Parquet, which has neither titles of branches nor sums of the generator."""
    with _open_parquet(path) as file:
        names = file.schema_arrow.names
        records = [column.name for column in file.schema_arrow if _has_fields(column.type)]
        if records:
            raise InputError(
                f"{path}: column {records[0]!r} has fields of its own; a column for each branch expected, "
                f"such as {records[0]}_pt"
            )
        _require(path, names, branches, renamed)
        n, elements, evidence = file.metadata.num_rows, {}, NO_EVIDENCE
        if n:
            first = next(file.iter_batches(1, columns=[name for name in sizes if name in names]), None)
            values = {} if first is None else first.to_pydict()
            elements = {name: len(value[0]) for name, value in values.items() if isinstance(value[0], list)}
        if n and "genWeight" not in names:
            runs = file.read([renamed.get("run", "run")]).column(0)
            evidence = Evidence((), (int(runs[0].as_py()), int(runs[-1].as_py())))
        identity = hashlib.sha256(f"{n} {file.metadata.serialized_size}".encode())
        for i in range(file.metadata.num_row_groups):
            identity.update(str(file.metadata.row_group(i).to_dict()).encode())
        return FileSummary(n, _one_copy(frozenset(names)), None, identity.digest()[:16], elements, evidence)


def _has_fields(kind: Any) -> bool:
    import pyarrow as pa

    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_struct(kind))


@contextmanager
def _open_parquet(path: str | Path) -> Iterator[Any]:
    """A Parquet file; what goes wrong while it is open is an error of the file."""
    # A worker that reads ROOT files alone does without.
    import pyarrow.parquet as pq

    try:
        with fsspec.open(str(path), "rb") as stream, pq.ParquetFile(stream) as file:
            yield file
    # pyarrow's errors have several bases, and so have those of remote files.
    except TopRecoError:
        raise
    except ImportError as error:
        raise TopRecoError(f"{path}: cannot be opened ({first_line(error)})") from error
    except Exception as error:
        raise BadFileError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error


def _without_events(file: Any) -> bool:
    """Return True for NanoAOD that lacks ``Events`` because there are none."""
    try:
        names = {name for name, kind in file.classnames(cycle=False).items() if kind in _TREES}
    except Exception:  # noqa: BLE001 - `_find_tree` reports it
        return False
    return "Runs" in names and names <= _OTHER_TREES


def _first_sizes(tree: Any, names: Iterable[str]) -> dict[str, int]:
    first = {name: tree[name].array(entry_stop=1) for name in names}
    return {name: len(values[0]) for name, values in first.items() if values.ndim > 1}


def _evidence(tree: Any, path: str | Path, run: str) -> Evidence:
    """Titles of pile-up identifications, and the first and last run number of data."""
    # RNTuple, which came after these versions, has no titles.
    titles = {getattr(branch, "title", "") for branch in tree.branches} if hasattr(tree, "branches") else ()
    found = tuple(sorted(title for title in titles if title.startswith(PU_ID_TITLES)))
    n = int(tree.num_entries)
    if n == 0 or "genWeight" in tree:
        return Evidence(found)
    try:
        first, last = (int(tree[run].array(entry_start=i, entry_stop=i + 1)[0]) for i in (0, n - 1))
    except Exception as error:
        raise BadFileError(f"{path}: branch {run!r} cannot be read ({first_line(error)})") from error
    return Evidence(found, (first, last))


@lru_cache(maxsize=64)
def _one_copy(names: frozenset[str]) -> frozenset[str]:
    """The first of equal sets, so that thousands of files of one sample share one set of branch names."""
    return names


def open_events(
    path: str | Path,
    tree: str = "Events",
    *,
    entry_start: int | None = None,
    entry_stop: int | None = None,
    renamed: Mapping[str, str] = NOT_RENAMED,
) -> Any:
    """Events of a NanoAOD file, each branch read when first used.

    Parameters
    ----------
    path
        ROOT file, local or a URL.
    tree
        Name of the tree.
    entry_start, entry_stop
        Range of entries; by default all.
    renamed
        See `inspect_file`.

    Returns
    -------
    events
        `NanoEvents` in coffea's virtual mode. The file stays open as long as they live.

    Raises
    ------
    InputError
        See `inspect_file`.
    """
    if is_parquet(path):
        _inspect_parquet(path, (), (), renamed)
        return _parquet_events(path, entry_start, entry_stop)
    file = _open(path)
    _find_tree(file, path, tree, (), renamed)
    return _nano_events(file, path, tree, entry_start, entry_stop)


def iterate_events(
    path: str | Path,
    tree: str = "Events",
    *,
    step_size: int = 50_000,
    branches: Collection[str] | None = None,
    schema: type[BaseSchema] = QuietNanoAODSchema,
    renamed: Mapping[str, str] = NOT_RENAMED,
) -> Iterator[Any]:
    """Events of a file, a chunk at a time.

    Parameters
    ----------
    path
        ROOT or Parquet file, local or a URL.
    tree
        Name of the tree.
    step_size
        Entries per chunk.
    branches
        The only branches to offer, besides counters; on a file with many this saves most of the time that
        opening takes. By default all.
    schema
        How branches become collections.
    renamed
        See `inspect_file`.

    Yields
    ------
    events
        `NanoEvents` in coffea's virtual mode, usable until the next chunk is requested. A tree without
        entries gives one chunk without events.

    Raises
    ------
    InputError
        See `inspect_file`.
    """
    if is_parquet(path):
        n = _inspect_parquet(path, (), (), renamed).n_entries
        for start in range(0, max(n, 1), step_size):
            yield _parquet_events(path, start, min(start + step_size, n), schema)
        return
    with _open(path) as file:
        n = int(_find_tree(file, path, tree, (), renamed).num_entries)
        for start in range(0, max(n, 1), step_size):
            yield _nano_events(file, path, tree, start, min(start + step_size, n), branches, schema)
            # uproot would keep 100 MB of finished chunks.
            file.file.array_cache.clear()


def check_distinct(files: Iterable[str | Path]) -> None:
    """Raise `InputError` if there are no files, or one is given twice, even if spelt differently."""
    seen: set[str] = set()
    for file in files:
        name = _identity(file)
        if name in seen:
            raise InputError(f"{file}: given twice, its events would count twice")
        seen.add(name)
    if not seen:
        raise InputError("no input files; at least one ROOT file expected")


def _identity(file: str | Path) -> str:
    """Path or URL of a file in the one of its spellings that all have in common."""
    local = str(file).removeprefix("file://")
    if not is_remote(local):
        return str(Path(local).resolve())
    scheme, _, rest = local.partition("://")
    host, _, path = rest.partition("/")
    return (
        f"{scheme}://{host.lower().removesuffix(':1094')}{posixpath.normpath(f'/{path}').replace('//', '/')}"
    )


def check_copies(files: Mapping[Any, FileSummary]) -> None:
    """Raise `InputError` if two files are copies of each other, by ROOT's identifier."""
    seen: dict[bytes, Any] = {}
    for file, summary in files.items():
        # HDF5 has none.
        if any(summary.uuid) and (first := seen.setdefault(summary.uuid, file)) != file:
            raise InputError(
                f"{file}: a copy of {first} (ROOT's UUID is the same), its events would count twice"
            )


def is_remote(path: str | Path) -> bool:
    """Return True for a URL, which uproot opens."""
    return isinstance(path, str) and "://" in path


# Possible replacements for a branch whose name the configuration chooses.
_FAMILIES = (
    r"(?!Gen|Raw|Calo|Chs|Tk|Trk|MET_fid|Fiducial|DeepMET)\w*MET\w*_pt",
    r"Jet_btag\w*B",
    r"Electron_(cutBased\w*|mva\w+_WP\w+)",
    r"Muon_\w+Id",
    r"Muon_(pf|mini)\w*Iso\w*",
)


def missing_branch(
    name: str, present: Iterable[str], key: str | None = None, preset: str | None = None
) -> str:
    """Text of an error: which branch is missing, why it is needed, and what the file has instead.

    Parameters
    ----------
    name
        Branch that is missing.
    present
        Branches of the file.
    key
        Configuration key that chose the name.
    preset
        Preset in use.
    """
    present = sorted(map(printable, present))
    asked = ", ".join(
        text for text in (key and f"selection key {key!r}", preset and f"preset {preset}") if text
    )
    text = f"branch {name!r}{f' ({asked})' if asked else ''} is missing"
    others = [other for other in present if _simple(other) in _OTHER_NAMES.get(name, ())]
    if others:
        return f"{text}; selection.branches={{{name}: {others[0]}}} would take {others[0]}"
    possible = [other for other in present if _may_replace(name, other)]
    close = difflib.get_close_matches(name, possible, n=3, cutoff=0.7)
    similar = [
        other
        for family in _FAMILIES
        if re.fullmatch(family, re.sub("_phi$", "_pt", name))
        for other in present
        if re.fullmatch(family, other)
    ]
    if close and not (preset and similar):
        return f"{text}; close in the file: {', '.join(close)}"
    if similar:
        return f"{text}; in the file: {', '.join(similar)}"
    return f"{text}; none in the file has a similar name"


def _simple(name: str) -> str:
    return name.replace("_", "").lower()


def _may_replace(name: str, other: str) -> bool:
    """Return False for generator branches and indices, unless the name is one as well."""

    def kinds(branch: str) -> tuple[bool, bool]:
        return bool(re.search(r"[gG]en(?!eric)|LHE", branch)), "Idx" in branch

    return all(own or not its for own, its in zip(kinds(name), kinds(other), strict=True))


def printable(name: str) -> str:
    """A name that keeps an error message on one line: in a damaged file it may contain anything."""
    return name if name.isprintable() else ascii(name)


def _open(path: str | Path) -> Any:
    if not is_remote(path):
        path = Path(path)
        _check_local(path)
    options = {"timeout": XROOTD_TIMEOUT} if str(path).startswith(("root://", "roots://")) else {}
    try:
        return uproot.open(path, **options)
    except ImportError as error:
        # Of the installation: nothing to skip.
        extra = "; pip install 'topreco[xrootd]'" if "timeout" in options else ""
        raise TopRecoError(f"{path}: cannot be opened ({first_line(error)}{extra})") from error
    # FSSpec, XRootD and ROOT's own format each raise errors of their own.
    except Exception as error:
        raise BadFileError(f"{path}: cannot be opened as a ROOT file ({first_line(error)})") from error


def _check_local(path: Path) -> None:
    """Raise unless a local file begins as a ROOT file and is as long as it says."""
    if path.is_dir():
        raise BadFileError(f"{path}: is a folder, a ROOT file expected")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(20)
    except FileNotFoundError as error:
        raise BadFileError(f"{path}: no such file") from error
    except OSError as error:
        raise BadFileError(f"{path}: cannot be read ({error.strerror})") from error
    if header[:4] != b"root":
        raise BadFileError(
            f"{path}: not a ROOT file, it starts with {header[:4]!r}"
            if header
            else f"{path}: not a ROOT file, it is empty"
        )
    # The file's first record: "root", version, first object, end; 64-bit positions from version 1000000 on.
    end = 0
    if len(header) == 20:
        large = struct.unpack(">i", header[4:8])[0] >= 1_000_000
        (end,) = struct.unpack(">q" if large else ">i", header[12 : 20 if large else 16])
    if size < max(end, 20):
        raise BadFileError(
            f"{path}: cut short, it has {size} bytes of {end}" if end else f"{path}: cut short, {size} bytes"
        )


def _find_tree(
    file: Any, path: str | Path, tree: str, branches: Iterable[str], renamed: Mapping[str, str]
) -> Any:
    try:
        kinds = file.classnames()
        # A tree with a cycle number (Events;1) must have that one; without, the latest is read.
        cycles = [name for name, kind in kinds.items() if kind in _TREES]
        trees = list(dict.fromkeys(name.partition(";")[0] for name in cycles))
        found = file[tree] if tree.lstrip("/") in (*trees, *cycles) else None
        present = [] if found is None else _names(found)
    except Exception as error:
        raise BadFileError(f"{path}: damaged, tree {tree!r} cannot be read ({first_line(error)})") from error
    if found is None:
        names_found = ", ".join(map(printable, cycles if ";" in tree else trees)) or "none"
        raise BadFileError(f"{path}: no tree {tree!r}; present: {names_found}")
    _require(path, present, branches, renamed)
    return found


def _require(
    path: str | Path, present: Collection[str], branches: Iterable[str], renamed: Mapping[str, str]
) -> None:
    """Raise `InputError` unless the event key and all branches are there."""
    names = set(present)
    for branch in EVENT_KEY:
        stored = renamed.get(branch, branch)
        if stored not in names:
            chosen_by = None if stored == branch else f"branches.{branch}"
            raise InputError(f"{path}: {missing_branch(stored, present, chosen_by)}")
    for branch in branches:
        if branch not in names:
            raise InputError(f"{path}: {missing_branch(branch, present)}")


def _generator_sums(file: Any) -> tuple[int, float] | None:
    if "Runs" in file:
        runs = file["Runs"]
        # NanoAOD v6 has an underscore at the end.
        for suffix in ("", "_"):
            names = [f"genEventCount{suffix}", f"genEventSumw{suffix}"]
            if set(names) <= set(runs.keys()):
                n, sumw = (runs[name].array(library="np").sum() for name in names)
                return int(n), float(sumw)
    return None


def _nano_events(
    file: Any,
    path: str | Path,
    tree: str,
    entry_start: int | None,
    entry_stop: int | None,
    branches: Collection[str] | None = None,
    schema: type[BaseSchema] = QuietNanoAODSchema,
) -> Any:
    options = {}
    if branches is not None:
        wanted = set(branches) | set(EVENT_KEY)
        collections = {name.partition("_")[0] for name in branches}
        wanted |= {f"n{name}" for name in collections}
        if _is_rntuple(file[tree]):
            wanted |= collections
        options["filter_name"] = lambda name: name in wanted
    try:
        return NanoEventsFactory.from_root(
            file,
            treepath=tree,
            mode="virtual",
            entry_start=entry_start,
            entry_stop=entry_stop,
            schemaclass=schema,
            metadata={"filename": str(path), "treename": tree, "entrystart": entry_start or 0},
            iteritems_options=options,
        ).events()
    except Exception as error:
        raise BadFileError(f"{path}: damaged, tree {tree!r} cannot be read ({first_line(error)})") from error


def _parquet_events(
    path: str | Path,
    entry_start: int | None,
    entry_stop: int | None,
    schema: type[BaseSchema] = QuietNanoAODSchema,
) -> Any:
    try:
        return NanoEventsFactory.from_parquet(
            str(path),
            entry_start=entry_start,
            entry_stop=entry_stop,
            schemaclass=schema,
            metadata={"filename": str(path), "treename": "", "entrystart": entry_start or 0},
        ).events()
    except Exception as error:
        raise BadFileError(f"{path}: cannot be read as Parquet ({first_line(error)})") from error
