"""Reconstructed tops into copies of pepper's event files, in pepper's own conventions.

A column like pepper's ``recot`` holds for each event None if it does not pass the cuts, an empty list if it
has no solution, else two entries with pt, eta, phi and mass: index 0 is the top, 1 the antitop. In ROOT,
``mask<column>`` distinguishes None from empty.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from topreco.config import PepperWriteConfig, files_of
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, IntArray, TopPair
from topreco.core.files import check_outputs, complete_file
from topreco.input.nano import InputError
from topreco.input.pepper.hdf5 import buffer_prefix, is_hdf5, open_hdf5
from topreco.input.pepper.read import collections, inspect_pepper, iterate_pepper
from topreco.input.pepper.select import select_pepper


@dataclass(frozen=True)
class WriteSummary:
    """Result of `write_tops`.

    Attributes
    ----------
    output
        The copy.
    column
        Name of the new column.
    n_events, n_passed, n_solved
        Number of events, of those that pass the cuts, and of those with tops.
    """

    output: Path
    column: str
    n_events: int
    n_passed: int
    n_solved: int

    def __str__(self) -> str:
        return (
            f"{self.output}: {self.column} of {self.n_solved} events, "
            f"{self.n_passed} of {self.n_events} pass the cuts"
        )


@dataclass(frozen=True)
class _Tops:
    """Tops of all n events of a file: which pass the cuts, which have a solution, p4 (solved, 2, 4)."""

    passed: BoolArray
    solved: BoolArray
    p4: FloatArray

    def entries(self, start: int, stop: int) -> "_Tops":
        """Those of the events [start, stop)."""
        first, last = (np.count_nonzero(self.solved[:end]) for end in (start, stop))
        return _Tops(self.passed[start:stop], self.solved[start:stop], self.p4[first:last])

    @property
    def counts(self) -> IntArray:
        """Number of tops of each event, shape (n,)."""
        return 2 * self.solved.astype(np.int64)

    @property
    def coordinates(self) -> dict[str, FloatArray]:
        """pT, η, φ and mass of top and antitop in turn, each of shape (2 solved,)."""
        return {name: values.reshape(-1) for name, values in fourvector.to_pt_eta_phi_mass(self.p4).items()}


def copy_paths(files: Sequence[str | Path], folder: str | Path) -> dict[Path, Path]:
    """Where the copies of files go: into a folder, at their places below the parent that they share.

    Raises
    ------
    InputError
        If there are no files, one is given twice, or a copy would be one of the inputs.
    """
    sources = {Path(file): Path(file).resolve() for file in files}
    if not files:
        raise InputError("no input files; at least one event file of pepper expected")
    if len(set(sources.values())) < len(files):
        raise InputError(f"{', '.join(map(str, files))}: a file is given twice")
    shared = os.path.commonpath([source.parent for source in sources.values()])
    copies = {path: Path(folder) / source.relative_to(shared) for path, source in sources.items()}
    check_outputs(copies.values(), files)
    return copies


def write_all(
    files: Sequence[str | Path],
    folder: str | Path,
    method: Callable[[DileptonEvents], TopPair],
    config: PepperWriteConfig,
) -> Iterator[WriteSummary]:
    """Copy event files of pepper into a folder with `write_tops`, once all of them have proven usable.

    Yields
    ------
    summary
        What became of each file.

    Raises
    ------
    TopRecoError
        See `copy_paths`, `topreco.input.pepper.read.inspect_pepper` and `write_tops`.
    """
    copies = copy_paths(files, folder)
    for path in copies:
        inspect_pepper(path, config.selection, config.tree)
    for path, copy in copies.items():
        yield write_tops(path, copy, method, config)


def write_tops(
    path: str | Path,
    output: str | Path,
    method: Callable[[DileptonEvents], TopPair],
    config: PepperWriteConfig,
) -> WriteSummary:
    """Copy an event file of pepper with reconstructed tops as a further column.

    The copy has the form of the original, HDF5 or ROOT, and appears only when complete.

    Parameters
    ----------
    path
        HDF5 or ROOT file, which stays as it is.
    output
        The copy; an existing file is replaced.
    method
        Method, see `topreco.load`.
    config
        Cuts, name of the dataset and of the column, chunk size.

    Returns
    -------
    summary
        How many events got tops.

    Raises
    ------
    InputError
        If the file cannot be read, or holds something that cannot be copied.
    TopRecoError
        If the name of the column is not allowed, or the method does not reconstruct the two tops.
    """
    path, output = Path(path), Path(output)
    name = getattr(method, "name", "topreco")
    column = config.column or "recot_" + re.sub(r"\W", "_", name)
    if not re.fullmatch(r"recot\w*", column):
        raise TopRecoError(
            f"column: letters, digits and underscores after 'recot' expected, found {column!r}"
        )
    check_outputs([output], [path, config.method, *files_of(config)])
    inspect_pepper(path, config.selection, config.tree)
    tops = _reconstruct(path, method, name, config)
    with complete_file(output) as temporary:
        if is_hdf5(path):
            shutil.copyfile(path, temporary)
            with open_hdf5(temporary, "r+") as file:
                _add_to_hdf5(file["events"], column, tops)
        else:
            _copy_root(path, temporary, config, column, tops)
    return WriteSummary(output, column, len(tops.passed), int(tops.passed.sum()), int(tops.solved.sum()))


def _reconstruct(
    path: Path, method: Callable[[DileptonEvents], TopPair], name: str, config: PepperWriteConfig
) -> _Tops:
    passed, solved, p4 = [], [], []
    for events in iterate_pepper(path, tree=config.tree, step_size=config.step_size):
        selection = select_pepper(events, config.selection, dataset=config.dataset)
        pair = method(selection.events)
        passed.append(np.isin(np.arange(len(events)), selection.index))
        solved.append(np.zeros(len(events), dtype=bool))
        solved[-1][selection.index] = pair.valid
        p4.append(pair.p4[pair.valid])
        if not np.isfinite(p4[-1]).all():
            raise TopRecoError(f"method {name!r}: gives the tt̄ system alone, t and t̄ expected")
    return _Tops(np.concatenate(passed), np.concatenate(solved), np.concatenate(p4))


# ---- HDF5 ------------------------------------------------------------------------------------------------


def _add_to_hdf5(group: Any, column: str, tops: _Tops) -> None:
    """Add a column to a group of awkward buffers, with the form as awkward 1 writes it and 2 reads it."""
    import hdf5plugin

    form = json.loads(group.attrs["form"])
    prefix = buffer_prefix(group)
    fields = form["contents"]
    # awkward 1 has a dictionary, awkward 2 lists of names and of forms.
    columns = fields if isinstance(fields, dict) else dict(zip(form["fields"], fields, strict=True))
    if (old := columns.pop(column, None)) is not None:
        keys = set(re.findall(r'"form_key": "(\w+)"', json.dumps(old)))
        for buffer in [name for name in group if name.removeprefix(prefix).partition("-")[0] in keys]:
            del group[buffer]
    used = re.findall(r'"form_key": "node(\d+)"', json.dumps(form))
    last = max(map(int, used), default=-1)
    coordinates = tops.coordinates
    option, offsets, record, *leaves = (f"node{last + 1 + i}" for i in range(3 + len(coordinates)))
    common: dict[str, Any] = {"has_identities": False, "parameters": {}}
    leaf = {"class": "NumpyArray", "inner_shape": [], "itemsize": 8, "format": "d", "primitive": "float64"}
    contents = {
        name: leaf | common | {"form_key": key} for name, key in zip(coordinates, leaves, strict=True)
    }
    content = {"class": "RecordArray", "contents": contents} | common | {"form_key": record}
    content = (
        {"class": "ListOffsetArray64", "offsets": "i64", "content": content} | common | {"form_key": offsets}
    )
    columns[column] = (
        {"class": "IndexedOptionArray64", "index": "i64", "content": content} | common | {"form_key": option}
    )
    if not isinstance(fields, dict):
        form |= {"fields": list(columns), "contents": list(columns.values())}
    buffers = {
        f"{option}-index": np.where(tops.passed, np.cumsum(tops.passed) - 1, -1),
        f"{offsets}-offsets": np.concatenate([[0], np.cumsum(tops.counts[tops.passed])]),
        **{f"{key}-data": values for key, values in zip(leaves, coordinates.values(), strict=True)},
    }
    for name, values in buffers.items():
        # Nothing cannot be compressed.
        compression = hdf5plugin.Blosc() if len(values) else None
        group.create_dataset(f"{prefix}{name}", data=values, compression=compression)
    group.attrs["form"] = json.dumps(form)


# ---- ROOT ------------------------------------------------------------------------------------------------


def _copy_root(source: Path, target: Path, config: PepperWriteConfig, column: str, tops: _Tops) -> None:
    """Copy a file, whose objects uproot must know how to write, with the column added to its tree."""
    with uproot.open(source) as old, uproot.recreate(target, compression=old.file.compression) as new:
        for name, kind in old.classnames(cycle=False).items():
            if kind == "TTree":
                added = (column, tops) if name == config.tree.strip("/").partition(";")[0] else None
                _copy_tree(old[name], new, name, config.step_size, added, source)
            elif kind != "TDirectory":
                try:
                    new[name] = str(old[name]) if kind == "TObjString" else old[name]
                except (TypeError, ValueError, NotImplementedError) as error:
                    raise InputError(f"{source}: {name!r} is a {kind}, which cannot be copied") from error


def _copy_tree(
    old: Any, file: Any, name: str, step_size: int, added: tuple[str, _Tops] | None, source: Path
) -> None:
    """Copy a tree of numbers and lists of numbers, a chunk at a time."""
    jagged = {}
    for branch in old.branches:
        interpretation = branch.interpretation
        jagged[branch.name] = isinstance(interpretation, uproot.AsJagged)
        numbers = interpretation.content if jagged[branch.name] else interpretation
        if not isinstance(numbers, uproot.AsDtype) or numbers.inner_shape:
            raise InputError(
                f"{source}: branch {branch.name!r} of tree {name!r} holds {branch.typename}, "
                "which cannot be copied; numbers and lists of numbers can"
            )
    places = collections(jagged)
    if added is not None:
        replaced = (added[0], f"mask{added[0]}")
        places = {branch: place for branch, place in places.items() if place[0] not in replaced}
    n = int(old.num_entries)
    for start in range(0, max(n, 1), step_size):
        stop = min(start + step_size, n)
        try:
            arrays = old.arrays(list(places), entry_start=start, entry_stop=stop)
            columns = _columns(arrays, places, jagged)
        # A damaged basket raises almost anything, depending on the compression.
        except Exception as error:
            raise InputError(
                f"{source}: tree {name!r} cannot be read, the file may be damaged ({error})"
            ) from error
        if added is not None:
            columns |= _root_columns(added[0], added[1].entries(start, stop))
        if start == 0:
            types = {key: ak.type(values).content for key, values in columns.items()}
            tree = file.mktree(name, types, title=old.title)
        if stop > start:
            tree.extend(columns)


def _columns(
    arrays: Any, places: Mapping[str, tuple[str, str]], jagged: Mapping[str, bool]
) -> dict[str, Any]:
    """Columns from which uproot writes these branches, in order; lists of one counter are one array."""
    columns: dict[str, Any] = {}
    lists: dict[str, dict[str, Any]] = {}
    for branch, (collection, field) in places.items():
        if jagged[branch] and field:
            lists.setdefault(collection, {})[field] = arrays[branch]
            columns[collection] = None  # keeps the place
        else:
            columns[branch] = arrays[branch]
    return columns | {collection: ak.zip(fields) for collection, fields in lists.items()}


def _root_columns(column: str, tops: _Tops) -> dict[str, Any]:
    """The column and its mask."""
    fields = {name: ak.unflatten(values, tops.counts) for name, values in tops.coordinates.items()}
    return {f"mask{column}": ak.Array(tops.passed), column: ak.zip(fields)}
