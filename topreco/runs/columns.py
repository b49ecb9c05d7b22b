"""Per-event results on disk, as friends of the input files: one row per selected event.

A chunk of a source file is one file,
``<folder>/<dataset>/<variation>/<source>-<hash>-<start>-<stop>.parquet``, written whole by the worker that
processed it. The name depends on nothing else, so that a chunk that is processed again replaces its file
instead of adding rows.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from topreco.config import NOMINAL
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import (
    CHANNELS,
    QUANTILE_LEVELS,
    DileptonEvents,
    FloatArray,
    IntArray,
    Posterior,
    TopPair,
)
from topreco.core.files import complete_file, folder_name, unique_stem
from topreco.core.observables import OBSERVABLES, pair_values

_LEGS = ("top", "antitop")


@dataclass(frozen=True)
class ColumnWriter:
    """Writes the results of chunks; pickles, so that workers write.

    Attributes
    ----------
    folder
        Where, as an absolute path that every worker can write to.
    file_format
        Parquet, or a ROOT file with the tree ``Friends``.
    samples
        Number of samples of each event to write, from methods that give some.
    """

    folder: Path
    file_format: Literal["parquet", "root"] = "parquet"
    samples: int = 0

    def write(
        self,
        source: Mapping[str, Any],
        index: IntArray,
        events: DileptonEvents,
        pairs: Mapping[str, TopPair],
        posteriors: Mapping[str, Posterior] | None = None,
        *,
        variation: str = NOMINAL,
        ratios: Mapping[str, FloatArray] | None = None,
    ) -> dict[str, Any]:
        """Write one chunk's results.

        Parameters
        ----------
        source
            ``metadata`` of the chunk's `NanoEvents`: ``dataset``, ``filename`` and, as coffea's Runner sets
            them, ``entrystart`` and ``entrystop``.
        index
            Positions of the selected events in the chunk, shape (n,).
        events
            The selected events.
        pairs
            Predictions by the name of the method.
        posteriors
            Samples by the name of the method, of those that give some.
        variation
            Name of the systematic variation.
        ratios
            Log-ratios by the name of the learned observable, shape (n,) each.

        Returns
        -------
        entry
            Description of the file for the manifest: ``path`` below the folder, ``dataset``, ``variation``,
            ``file``, ``entrystart``, ``entrystop`` and ``rows``.

        Raises
        ------
        TopRecoError
            If two methods would share a column, or the file cannot be written.
        """
        start = int(source.get("entrystart", 0))
        stop = int(source.get("entrystop", start + (int(index[-1]) + 1 if len(index) else 0)))
        dataset, file = str(source["dataset"]), str(source["filename"])
        path = Path(
            folder_name(dataset),
            folder_name(variation),
            f"{unique_stem(file)}-{start}-{stop}.{self.file_format}",
        )
        columns = event_columns(events, pairs, posteriors)
        for name, values in (ratios or {}).items():
            columns["ratio_" + re.sub(r"\W", "_", name)] = values.astype(np.float32)
        labels = {"dataset": dataset, "variation": variation, "file": file}
        entry = start + np.asarray(index, dtype=np.int64)
        try:
            with complete_file(self.folder / path) as temporary:
                _WRITERS[self.file_format](temporary, labels, {"entry": entry} | columns)
        except OSError as error:
            # Without its cause: coffea would take an OSError for a bad input file.
            failure = TopRecoError(f"{self.folder / path}: cannot be written ({error.strerror or error})")
            raise failure from None
        return {
            "path": path.as_posix(),
            "dataset": dataset,
            "variation": variation,
            "file": file,
            "entrystart": start,
            "entrystop": stop,
            "rows": len(events),
        }


def event_columns(
    events: DileptonEvents,
    pairs: Mapping[str, TopPair],
    posteriors: Mapping[str, Posterior] | None = None,
) -> dict[str, Any]:
    """Columns that are stored for each event.

    Parameters
    ----------
    events
        Selected events.
    pairs
        Predictions by the name of the method.
    posteriors
        Samples by the name of the method, of those that give some.

    Returns
    -------
    columns
        Arrays of shape (n,): run, luminosityBlock, event, channel ("ee", "emu", "mumu"), weight, and for each
        method ``<method>_valid``, ``<method>_top_pt`` … ``<method>_antitop_mass`` and
        ``<method>_<observable>``, in GeV and single precision, NaN where not valid. An observable is the
        method's own value where it has one, else that of its tops. Characters of a method's name that no
        identifier has become ``_``. With k samples also ``<method>_samples_top_px`` …
        ``<method>_samples_antitop_pz`` and ``<method>_samples_weight``, of shape (n, k).

    Raises
    ------
    TopRecoError
        If two methods would share a column.
    """
    columns: dict[str, Any] = {
        "run": events.run.astype(np.uint32),
        "luminosityBlock": events.luminosity_block.astype(np.uint32),
        "event": events.event.astype(np.uint64),
        "channel": np.array(CHANNELS, dtype=object)[events.channel],
        "weight": events.weight.astype(np.float64),
    }
    leptons = events.lepton_p4
    for name, pair in pairs.items():
        prefix = re.sub(r"\W", "_", name)
        if f"{prefix}_valid" in columns:
            raise TopRecoError(
                f"columns: two methods would both be called {prefix!r}, among {', '.join(pairs)}"
            )
        columns[f"{prefix}_valid"] = pair.valid
        # Values that a method left in its arrays for events without a prediction are not kept.
        tops = np.where(pair.valid[:, None, None], pair.p4, np.nan)
        values: dict[str, FloatArray] = {
            f"{leg}_{coordinate}": value
            for i, leg in enumerate(_LEGS)
            for coordinate, value in fourvector.to_pt_eta_phi_mass(tops[:, i]).items()
        }
        values |= pair_values(pair, leptons, OBSERVABLES)
        values |= _uncertainty(pair)
        if posteriors and name in posteriors:
            values |= _samples(pair, posteriors[name])
        columns |= {f"{prefix}_{key}": value.astype(np.float32) for key, value in values.items()}
    return columns


def _uncertainty(pair: TopPair) -> dict[str, FloatArray]:
    """Columns with the uncertainty that a method predicts, NaN without a prediction."""
    found: dict[str, FloatArray] = {}
    if pair.quality is not None:
        found["quality"] = pair.quality
    for name, quantiles in (pair.quantiles or {}).items():
        found |= {f"{name}_q{1000 * level:03.0f}": quantiles[:, i] for i, level in enumerate(QUANTILE_LEVELS)}
    return {name: np.where(pair.valid, values, np.nan) for name, values in found.items()}


def _samples(pair: TopPair, posterior: Posterior) -> dict[str, FloatArray]:
    """Columns with samples, whose energies follow from the mass: NaN without a prediction, shape (n, k)."""
    found = {
        f"samples_{leg}_{axis}": posterior.samples[:, :, i, 1 + j]
        for i, leg in enumerate(_LEGS)
        for j, axis in enumerate(("px", "py", "pz"))
    }
    found["samples_weight"] = posterior.weight
    return {name: np.where(pair.valid[:, None], values, np.nan) for name, values in found.items()}


def _write_parquet(path: Path, labels: Mapping[str, str], columns: Mapping[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = len(columns["entry"])
    arrays = {name: pa.array([label] * n, pa.string()) for name, label in labels.items()}

    def array(values: Any) -> Any:
        if values.ndim > 1:
            return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        # A column of strings without any rows would have no type.
        return pa.array(values, pa.string() if values.dtype == object else None)

    arrays |= {name: array(values) for name, values in columns.items()}
    # A dictionary of samples, of which no two are the same, is larger than they are.
    lists = [name for name, values in columns.items() if values.ndim > 1]
    pq.write_table(
        pa.table(arrays),
        path,
        compression="zstd",
        use_dictionary=[name for name in arrays if name not in lists],
        use_byte_stream_split=[f"{name}.list.element" for name in lists],
    )


def _write_root(path: Path, labels: Mapping[str, str], columns: Mapping[str, Any]) -> None:
    import awkward as ak
    import uproot

    n = len(columns["entry"])
    arrays = {name: np.array([label] * n, dtype=object) for name, label in labels.items()} | dict(columns)
    with uproot.recreate(path) as file:
        tree = file.mktree(
            "Friends",
            {
                name: "string" if values.dtype == object else np.dtype((values.dtype, values.shape[1:]))
                for name, values in arrays.items()
            },
        )
        if n:
            tree.extend({name: ak.Array(list(v)) if v.dtype == object else v for name, v in arrays.items()})


_WRITERS = {"parquet": _write_parquet, "root": _write_root}
