"""pepper's HDF5 files: awkward arrays in buffers, of which a range of events is read at a time."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import awkward as ak
import numpy as np
from coffea.nanoevents.methods import base

from topreco.core.errors import TopRecoError, first_line, needs_extra
from topreco.input.nano import FileSummary, InputError, is_remote, printable

FLAGS = "cutflags"
"""Group, and in ROOT collection, with a flag for each of pepper's cuts."""

_MAGIC = b"\x89HDF\r\n\x1a\n"
_VERSION = 1


def is_hdf5(path: str | Path) -> bool:
    """Return True if a local file is HDF5, by its first bytes."""
    if is_remote(path) or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


@contextmanager
def damage_of(path: str | Path) -> Iterator[None]:
    """Turn whatever h5py and awkward raise on a damaged file into one `InputError`."""
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


def inspect_hdf5(path: str | Path) -> FileSummary:
    """Number of events and columns, named as in the ROOT form.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    with open_hdf5(path) as file, damage_of(path):
        forms = _read_forms(file, path)
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
        return FileSummary(n, frozenset(names), None, b"")


def iterate_hdf5(path: str | Path, step_size: int) -> Iterator[Any]:
    """Events of a file, a chunk at a time; see `topreco.input.pepper.read.iterate_pepper`.

    Yields
    ------
    events
        Chunk whose columns are read when first used, until the next chunk is requested.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    with open_hdf5(path) as file:
        with damage_of(path):
            forms = _read_forms(file, path)
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


def _read_forms(file: Any, path: str | Path) -> dict[str, tuple[Any, int]]:
    """Awkward form and length of each group that is read, ``events`` first."""
    for name in ("events", FLAGS):
        if name not in file:
            raise InputError(
                f"{path}: no group {name!r}, an event file of pepper expected; "
                f"present: {', '.join(map(printable, file)) or 'none'}"
            )
    version = file.attrs.get("version")
    if version != _VERSION:
        raise InputError(f"{path}: version {version} of pepper's HDF5 layout, {_VERSION} expected")
    names = ["events", FLAGS, *(name for name in ("weight", "systematics") if name in file)]
    return {name: _read_form(file, path, name) for name in names}


def _read_form(file: Any, path: str | Path, name: str) -> tuple[Any, int]:
    """Awkward form of a group and its length.

    The JSON of awkward 1 is understood. Columns of layouts that pepper does not use, unions above all, are
    left out.
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
    """Prefix of the names of buffers, which awkward 1 writes and awkward 2 does not."""
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
