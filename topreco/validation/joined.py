"""Tops that another tool reconstructed, joined to events by their key."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from topreco.config import NOMINAL
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import QUANTILE_LEVELS, DileptonEvents, TopPair, dataset_id
from topreco.core.files import content_of
from topreco.core.method import fingerprint_of
from topreco.core.observables import OBSERVABLES

_KEY = ("run", "luminosityBlock", "event")
_MOMENTUM = tuple(f"{leg}_{x}" for leg in ("top", "antitop") for x in ("pt", "eta", "phi", "mass"))


class JoinedMethod:
    """Tops of a Parquet file, as a `topreco.core.method.Method`.

    Pickles as the file's path; each process reads the file once.

    Parameters
    ----------
    name
        Name of the method, and prefix of its columns: ``<name>_top_pt``, ``_top_eta``, ``_top_phi``,
        ``_top_mass`` and the same of ``antitop``, in GeV, as `topreco.runs.columns` writes them. Without a
        prefix they are looked for, too. So are ``valid``, ``quality``, observables such as ``m_tt``, which
        count in place of those of the four-momenta, and quantiles such as ``m_tt_q500``; all of these may
        be missing.
    path
        File, or folder of files. Its rows are found by the columns run, luminosityBlock and event, and by
        dataset if it has that. Of several variations only the nominal one is used.

    Raises
    ------
    TopRecoError
        If the file cannot be read, a column is missing or is no number, or an event is there twice.
    """

    def __init__(self, name: str, path: str | Path) -> None:
        self.name = name
        self.path = Path(path).absolute()
        _ = self._table  # Fail here, not in the first worker.

    @property
    def _files(self) -> list[Path]:
        """The file, or all of a folder."""
        if not self.path.exists():
            raise TopRecoError(f"{self.path}: no such file; a Parquet file to join expected")
        return sorted(self.path.rglob("*.parquet")) if self.path.is_dir() else [self.path]

    @property
    def _table(self) -> pa.Table:
        try:
            contents = tuple(content_of(file) for file in self._files)
        except OSError as error:
            raise TopRecoError(f"{self.path}: cannot be read ({error.strerror})") from error
        return _read(self.name, self.path, contents)

    @property
    def uses_event_key(self) -> bool:
        """True, since predictions are found by the key of the event."""
        return True

    @property
    def fingerprint(self) -> str:
        """Digest of the prefix of the columns and of the files' content."""
        return fingerprint_of("joined", self.name, [content_of(file) for file in self._files])

    @property
    def has_dataset(self) -> bool:
        """True if the file distinguishes events of several datasets."""
        return "dataset" in self._table.column_names

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Look up the top-quark pair of each event.

        Parameters
        ----------
        events
            Selected events.

        Returns
        -------
        pair
            Not valid where the file has no such event.
        """
        table = self._table
        keys = {
            "run": events.run.astype(np.uint64),
            "luminosityBlock": events.luminosity_block.astype(np.uint64),
            "event": events.event.astype(np.uint64),
        }
        if self.has_dataset:
            keys["dataset"] = events.dataset.astype(np.uint64)
        asked = pa.table({"position": np.arange(len(events)), **keys})
        # pyarrow keeps no order in a join.
        found = asked.join(table, keys=list(keys), join_type="left outer").sort_by("position")

        def column(name: str) -> Any:
            return found[name].to_numpy().astype(np.float64)

        legs = []
        for leg in ("top", "antitop"):
            pt, eta, phi, mass = (column(f"{leg}_{x}") for x in ("pt", "eta", "phi", "mass"))
            legs.append(fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass))
        p4 = np.stack(legs, axis=1)
        valid = np.isfinite(p4).all(axis=(1, 2))
        if "valid" in table.column_names:
            valid &= np.nan_to_num(column("valid"), nan=0.0) > 0
        names = table.column_names
        quantiles = {
            observable: np.stack([column(c) for c in columns], axis=1)
            for observable, columns in _quantile_columns().items()
            if set(columns) <= set(names)
        }
        return TopPair(
            p4=np.where(valid[:, None, None], p4, np.nan),
            valid=valid,
            observables={name: column(name) for name in OBSERVABLES if name in names} or None,
            quality=column("quality") if "quality" in names else None,
            quantiles=quantiles or None,
        )


def _quantile_columns() -> dict[str, list[str]]:
    return {name: [f"{name}_q{1000 * level:03.0f}" for level in QUANTILE_LEVELS] for name in OBSERVABLES}


@lru_cache(maxsize=8)
def _read(name: str, path: Path, contents: tuple[str, ...]) -> pa.Table:  # noqa: ARG001 - part of the key
    """Key columns, and those of the method without its prefix."""
    try:
        schema = pq.ParquetDataset(path).schema
        present = set(schema.names)
        chosen = _columns(name, path, present)
        filters = pc.field("variation") == NOMINAL if "variation" in present else None
        table = pq.read_table(path, columns=list(dict.fromkeys(chosen.values())), filters=filters)
    except (pa.ArrowException, OSError) as error:
        raise TopRecoError(f"{path}: not a readable Parquet file ({str(error).splitlines()[0]})") from error
    table = pa.table(
        {short: _cast(table[column], short, f"{path}: column {column!r}") for short, column in chosen.items()}
    )
    keys = [key for key in (*_KEY, "dataset") if key in chosen]
    for key in keys:
        if table[key].null_count:
            raise TopRecoError(f"{path}: column {key!r} has {table[key].null_count} rows without a value")
    if (n := table.group_by(keys).aggregate([]).num_rows) < len(table):
        raise TopRecoError(
            f"{path}: {len(table) - n} of {len(table)} rows repeat the columns {', '.join(keys)} of another; "
            "each event may be there once"
        )
    return table


def _columns(name: str, path: Path, present: set[str]) -> dict[str, str]:
    """Column of the file by its meaning."""
    prefixed = re.sub(r"\W", "_", name) + "_"
    prefix = "" if "top_pt" in present and f"{prefixed}top_pt" not in present else prefixed
    wanted = {key: key for key in _KEY} | {column: f"{prefix}{column}" for column in _MOMENTUM}
    for column in wanted.values():
        if column not in present:
            without = (
                f" (nor {column.removeprefix(prefixed)!r})" if prefix and column.startswith(prefix) else ""
            )
            raise TopRecoError(f"{path}: column {column!r}{without} is missing, which {name!r} needs")
    quantiles = [column for columns in _quantile_columns().values() for column in columns]
    optional = {column: f"{prefix}{column}" for column in ("valid", "quality", *OBSERVABLES, *quantiles)}
    optional["dataset"] = "dataset"
    return wanted | {short: column for short, column in optional.items() if column in present}


def _cast(column: pa.ChunkedArray, meaning: str, where: str) -> pa.Array:
    """A key as integers, a dataset's name as its identity, everything else as floating point."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if meaning == "dataset" and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        encoded = column.combine_chunks().dictionary_encode()
        if isinstance(encoded, pa.ChunkedArray):
            encoded = encoded.combine_chunks()
        ids = pa.array([dataset_id(name) for name in encoded.dictionary.to_pylist()], pa.uint64())
        return ids.take(encoded.indices)
    try:
        return column.cast(pa.uint64() if meaning in (*_KEY, "dataset") else pa.float64()).combine_chunks()
    except pa.ArrowException as error:
        raise TopRecoError(f"{where}: {column.type} found, numbers expected ({error})") from error
