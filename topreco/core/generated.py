"""All generated events of a sample on disk, selected or not: Parquet, one row per event.

Columns are the key and weight of an event, ``selected_row``, its row in the skim that was written with it or
−1, and ``truth.<field>`` as in a skim. The metadata entry ``topreco`` says how many events the skim has.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from topreco.core.errors import first_line
from topreco.core.events import FloatArray, IntArray, Truth
from topreco.core.files import complete_file
from topreco.core.skim import SkimError, arrow_columns, fields_from_table

FORMAT_VERSION = 1
_METADATA_KEY = b"topreco"
_KEYS = {"dataset": np.uint64, "run": np.uint32, "luminosity_block": np.uint32, "event": np.uint64}


class Generated(NamedTuple):
    """Generated events.

    Attributes
    ----------
    key
        ``dataset``, ``run``, ``luminosity_block`` and ``event`` of `DileptonEvents`, shape (n,) each.
    weight
        Weights of the generator, shape (n,).
    selected_row
        Row in the skim, −1 where not selected, shape (n,).
    truth
        Their truth.
    n_selected
        Number of events of the skim.
    """

    key: Mapping[str, IntArray]
    weight: FloatArray
    selected_row: IntArray
    truth: Truth
    n_selected: int


class GeneratedWriter:
    """Writes generated events; the file appears under its name only when complete.

    Use as a context manager, like `topreco.core.skim.SkimWriter`.

    Parameters
    ----------
    path
        File to write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._n_selected = 0

    def __enter__(self) -> Self:
        self._temporary = self._stack.enter_context(complete_file(self.path))
        return self

    def write(self, key: Mapping[str, Any], weight: FloatArray, selected: IntArray, truth: Truth) -> None:
        """Append the events of a chunk.

        Parameters
        ----------
        key
            As of `Generated`.
        weight
            Weights of the generator, shape (n,).
        selected
            Positions of the selected events in the chunk, in the order of the skim.
        truth
            Truth of all events.
        """
        row = np.full(len(truth), -1, np.int64)
        row[selected] = self._n_selected + np.arange(len(selected))
        self._n_selected += len(selected)
        columns = {name: pa.array(np.asarray(key[name]).astype(kind)) for name, kind in _KEYS.items()}
        columns |= {"weight": pa.array(np.asarray(weight, np.float64)), "selected_row": pa.array(row)}
        table = pa.table(columns | arrow_columns(truth, "truth"))
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._temporary, table.schema, compression="zstd", write_page_checksum=True
            )
        self._writer.write_table(table)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if value is not None:
                raise value  # seen by `complete_file`, which removes what is there
            if self._writer is None:
                raise SkimError(f"{self.path}: no generated events to write")
            content = {"format": FORMAT_VERSION, "generated": True, "n_selected": self._n_selected}
            self._writer.add_key_value_metadata({_METADATA_KEY: json.dumps(content).encode()})
            self._writer.close()


def read_generated(path: str | Path) -> Generated:
    """Generated events of a file.

    Raises
    ------
    SkimError
        If the file is missing, damaged or another one.
    """
    path = Path(path)
    if not path.is_file():
        raise SkimError(f"{path}: no such file; generated events of `topreco skim --generated` expected")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = json.loads((file.metadata.metadata or {}).get(_METADATA_KEY, b"{}"))
        if not metadata.get("generated"):
            raise SkimError(f"{path}: no file of generated events; write it with `topreco skim --generated`")
        table = file.read().combine_chunks()
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, SkimError):
            raise
        raise SkimError(f"{path}: not a readable Parquet file ({first_line(error)})") from error
    key = {name: table.column(name).to_numpy() for name in _KEYS}
    return Generated(
        key,
        table.column("weight").to_numpy(),
        table.column("selected_row").to_numpy(),
        Truth(**fields_from_table(table, "truth")),
        int(metadata["n_selected"]),
    )
