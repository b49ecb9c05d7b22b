"""Selected events on disk: `DileptonEvents` and `Truth` as Parquet, one row per event, streamed by row group.

Columns are named ``events.<field>``, ``events.features.<name>`` and ``truth.<field>``; arrays are (nested)
fixed-size lists. Momenta are stored in single precision, which is what NanoAOD holds. The metadata entry
``topreco`` is JSON: format version, selection, dataset names, sums of generator weights and the cutflow.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topreco.core.errors import TopRecoError, first_line
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, IntArray, Truth
from topreco.core.files import complete_file

FORMAT_VERSION = 1
_METADATA_KEY = b"topreco"
_KINDS = {"events": DileptonEvents, "truth": Truth}
_WORKING_POINTS, _FEATURES = "events.jet_working_points", "events.features."
FURTHER_COLUMNS = "further_columns"
"""Key of the metadata: columns that not every skim has."""
_MIXED = "all events of a skim need the same columns, so either all have truth or none"
# Every other floating-point column is a momentum or a score, which NanoAOD holds in single precision.
_DOUBLE = {"weight"}

_LEAVES: dict[Any, Callable[[pa.DataType], bool]] = {
    FloatArray: pa.types.is_floating,
    IntArray: pa.types.is_integer,
    BoolArray: pa.types.is_boolean,
}
"""Type of a column by that of its field."""


class SkimError(TopRecoError):
    """A file that is not a usable skim."""


class SkimWriter:
    """Writes a skim; the file appears under its name only when complete.

    Use as a context manager: leaving it normally finishes the file, leaving it by an exception removes it.

    Parameters
    ----------
    path
        File to write.
    row_group_size
        Events per row group, the unit in which the file is streamed.
    """

    def __init__(self, path: str | Path, *, row_group_size: int = 50_000) -> None:
        self.path = Path(path)
        self.metadata: dict[str, Any] = {"format": FORMAT_VERSION}
        self._stack = ExitStack()
        self._row_group_size = row_group_size
        self._pending: list[pa.Table] = []
        self._n_pending = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> Self:
        # Fail on an unwritable folder now rather than after hours of reading.
        self._temporary = self._stack.enter_context(complete_file(self.path))
        return self

    def write(self, events: DileptonEvents, truth: Truth | None) -> None:
        """Append events, all calls with truth or all without.

        Raises
        ------
        SkimError
            If the columns differ from those of earlier calls.
        """
        table = _to_table(events, truth)
        if self._pending and table.schema != self._pending[0].schema:
            raise SkimError(f"{self.path}: {_MIXED}")
        self._pending.append(table)
        self._n_pending += len(events)
        if self._n_pending >= self._row_group_size:
            self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if value is not None:
                raise value  # seen by `complete_file`, which removes what is there
            self._finish()

    def _finish(self) -> None:
        if not self._pending and self._writer is None:
            raise SkimError(f"{self.path}: nothing was written to the skim")
        self._flush()
        if self._writer is not None:
            metadata = self.metadata
            if further := [name for name in self._writer.schema.names if _is_further(name)]:
                metadata = metadata | {FURTHER_COLUMNS: further}
            # The pages have checksums of their own, the footer has none.
            metadata = metadata | {"sha256": _digest(metadata)}
            self._writer.add_key_value_metadata({_METADATA_KEY: json.dumps(metadata).encode()})
            self._writer.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        table = pa.concat_tables(self._pending)
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._temporary, table.schema, compression="zstd", write_page_checksum=True
            )
        if table.schema != self._writer.schema:
            raise SkimError(f"{self.path}: {_MIXED}")
        self._writer.write_table(table, row_group_size=self._row_group_size)
        self._pending, self._n_pending = [], 0


class Skim:
    """A skim opened for reading.

    Parameters
    ----------
    path
        File written by `SkimWriter`.

    Raises
    ------
    SkimError
        If the file is missing, is not Parquet or is not a skim of this format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise SkimError(f"{path}: no such file; a skim written by `topreco skim` expected")
        try:
            self._file = pq.ParquetFile(self.path, page_checksum_verification=True)
            names = set(self._file.schema_arrow.names)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SkimError(f"{path}: not a readable Parquet file ({first_line(error)})") from error
        content = (self._file.metadata.metadata or {}).get(_METADATA_KEY)
        try:
            self.metadata: dict[str, Any] = json.loads(content) if content else {}
        except (ValueError, RecursionError) as error:
            raise SkimError(f"{path}: the metadata entry 'topreco' is not JSON") from error
        if not isinstance(self.metadata, dict):
            raise SkimError(f"{path}: the metadata entry 'topreco' is no mapping")
        # Skims of topreco 0.1 have none.
        digest = self.metadata.pop("sha256", None)
        if digest is not None and digest != _digest(self.metadata):
            raise SkimError(f"{path}: damaged skim (metadata and checksum differ)")
        if self.metadata.get("format") != FORMAT_VERSION:
            raise SkimError(
                f"{path}: not a topreco skim of format {FORMAT_VERSION}"
                f" (found format {self.metadata.get('format')!r}); write it with `topreco skim`"
            )
        expected = [*_column_names("events"), *self.metadata.get(FURTHER_COLUMNS, ())]
        missing = [n for n in expected if n not in names]
        if missing:
            raise SkimError(f"{path}: column {missing[0]!r} is missing")
        self.has_truth = all(name in names for name in _column_names("truth"))

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    @property
    def n_row_groups(self) -> int:
        """Number of row groups."""
        return int(self._file.num_row_groups)

    def read_row_group(self, index: int) -> tuple[DileptonEvents, Truth | None]:
        """Events and truth, if stored, of one row group."""
        return self._decode(lambda: self._file.read_row_group(index))

    def row_groups(self) -> Iterator[tuple[DileptonEvents, Truth | None]]:
        """Events and truth, one row group at a time."""
        for index in range(self.n_row_groups):
            yield self.read_row_group(index)

    def read(self) -> tuple[DileptonEvents, Truth | None]:
        """All events and truth at once."""
        return self._decode(self._file.read)

    def _decode(self, read: Any) -> tuple[DileptonEvents, Truth | None]:
        try:
            table = read().combine_chunks()
            events = DileptonEvents(**fields_from_table(table, "events"))
            truth = Truth(**fields_from_table(table, "truth")) if self.has_truth else None
        except (pa.ArrowException, OSError, ValueError) as error:
            # Sizes in a damaged file may ask for any memory, and a thread may be what does not fit any more.
            starved = isinstance(error, MemoryError) or "launch worker thread" in str(error)
            what = "out of memory, or a damaged skim" if starved else "damaged skim"
            raise SkimError(f"{self.path}: {what} ({first_line(error)})") from error
        # An index beyond the jets would fail wherever it is used first.
        n_jets = events.jets.shape[1]
        if not ((events.b_candidates >= -1) & (events.b_candidates < n_jets)).all():
            raise SkimError(f"{self.path}: damaged skim ('events.b_candidates' beyond the {n_jets} jets)")
        return events, truth


def read_skims(paths: Sequence[str | Path]) -> tuple[DileptonEvents, Truth | None]:
    """All events of several skims; truth only if every one has it."""
    parts = [Skim(path).read() for path in paths]
    truths = [truth for _, truth in parts if truth is not None]
    events = DileptonEvents.concatenate([events for events, _ in parts])
    return events, Truth.concatenate(truths) if len(truths) == len(parts) else None


def _digest(metadata: Mapping[str, Any]) -> str:
    """SHA-256 of the metadata, whatever their order."""
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def _column_names(prefix: str) -> list[str]:
    return [f"{prefix}.{field.name}" for field in _required_fields(prefix)]


def _required_fields(prefix: str) -> list[Any]:
    """Fields that every skim has, in which there is more than in old ones."""
    return [f for f in dataclasses.fields(_KINDS[prefix]) if f.default is dataclasses.MISSING]


def _is_further(column: str) -> bool:
    return column == _WORKING_POINTS or column.startswith(_FEATURES)


def _to_table(events: DileptonEvents, truth: Truth | None) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for prefix, struct in (("events", events), ("truth", truth)):
        if struct is not None:
            columns |= arrow_columns(struct, prefix)
    if events.jet_working_points is not None:
        columns[_WORKING_POINTS] = _to_arrow(events.jet_working_points.astype(np.int8))
    # Beyond single precision is an infinity, of which a training says which feature has it.
    with np.errstate(over="ignore"):
        for name, values in (events.features or {}).items():
            columns[f"{_FEATURES}{name}"] = _to_arrow(values.astype(np.float32))
    return pa.table(columns)


def arrow_columns(struct: DileptonEvents | Truth, prefix: str) -> dict[str, pa.Array]:
    """Columns ``<prefix>.<field>`` of the fields that every skim has."""
    columns = {}
    for field in _required_fields(prefix):
        values = np.asarray(getattr(struct, field.name))
        if values.dtype == np.float64 and field.name not in _DOUBLE:
            values = values.astype(np.float32)
        columns[f"{prefix}.{field.name}"] = _to_arrow(values)
    return columns


def _to_arrow(values: np.ndarray[Any, Any]) -> pa.Array:
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for length in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


def fields_from_table(table: pa.Table, prefix: str) -> dict[str, Any]:
    """Fields of `DileptonEvents` or `Truth` of a table with columns ``<prefix>.<field>``."""
    content: dict[str, Any] = {
        field.name: _column(table, f"{prefix}.{field.name}", field.type) for field in _required_fields(prefix)
    }
    if prefix != "events":
        return content
    if _WORKING_POINTS in table.column_names:
        content["jet_working_points"] = _column(table, _WORKING_POINTS, IntArray)
    stored = [name for name in table.column_names if name.startswith(_FEATURES)]
    if stored:
        content["features"] = {
            name.removeprefix(_FEATURES): _column(table, name, FloatArray) for name in stored
        }
    return content


def _column(table: pa.Table, name: str, kind: Any) -> np.ndarray[Any, Any]:
    """A column as an array; kind is a key of `_LEAVES`."""
    column = table.column(name)
    # After combine_chunks a table has one chunk per column, or none when it is empty.
    array = column.chunk(0) if column.num_chunks else pa.array([], column.type)
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    if not _LEAVES[kind](array.type) or array.null_count:
        raise SkimError(f"{name!r} holds {array.type} with {array.null_count} nulls")
    values = array.to_numpy(zero_copy_only=False).reshape(shape)
    return values.astype(np.float64) if values.dtype == np.float32 else values
