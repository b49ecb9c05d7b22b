"""Branches of a chunk of events: their names, the file that they come from, and the selection for it."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np

from topreco.config import SelectionConfig
from topreco.config.presets import Evidence, resolve_selection
from topreco.core.errors import OUT_OF_MEMORY, TopRecoError, first_line
from topreco.core.events import FloatArray, IntArray
from topreco.input.nano import BadFileError, InputError, is_remote, missing_branch
from topreco.input.required import fit_selection

RUNS_OF_FILE = "runs_of_file"
"""Entry of the metadata of events with the first and last run of their file, if they are known."""


class Branches:
    """Branches of a chunk by their names in NanoAOD, whatever the file calls them.

    Everything that reads events does so through this class: `selection.branches` applies everywhere, and
    preset and era are resolved once per chunk. Branches are read when first requested.

    Parameters
    ----------
    events
        `NanoEvents` of a chunk, n of them.
    selection
        The selection as the user configured it; the default one if None.

    Attributes
    ----------
    events
        As given, with the names of the file.
    given
        The selection as given.
    """

    def __init__(self, events: Any, selection: SelectionConfig | None = None) -> None:
        self.events = events
        self.given = SelectionConfig() if selection is None else selection
        # The bare layout: with its behaviour, a MET without all its coordinates raises on any access.
        self.layout = events.layout

    @classmethod
    def of(cls, events: Any, selection: SelectionConfig | None = None) -> "Branches":
        """Branches of `NanoEvents`, or `Branches` as they are unless they were made for another selection."""
        if not isinstance(events, Branches):
            return cls(events, selection)
        return events if selection is None or events.knows(selection) else cls(events.events, selection)

    def __len__(self) -> int:
        return len(self.events)

    def __getitem__(self, index: Any) -> "Branches":
        kept = Branches(self.events[index], self.given)
        kept.entries = self.entries[index]
        return kept

    @cached_property
    def entries(self) -> IntArray:
        """Entries of the events in their file, shape (n,)."""
        return np.arange(len(self)) + int(self.metadata.get("entrystart") or 0)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """Metadata of the events, empty where there are none."""
        return getattr(self.events, "metadata", None) or {}

    @property
    def origin(self) -> str:
        """File of the events where known, for errors."""
        return str(self.metadata.get("filename", "events"))

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of all branches as in the file, counters excepted."""
        return frozenset(
            f"{collection}_{field}" if field else collection
            for collection in self.layout.fields
            for field in self.layout[collection].fields or [""]
        )

    @cached_property
    def selection(self) -> SelectionConfig:
        """The selection with every key set, for this file; all the branches that it needs are there.

        Raises
        ------
        InputError
            If a branch is missing.
        topreco.config.ConfigError
            If the preset cannot be resolved.
        """
        return fit_selection(self.given, self.names, self.origin, self.evidence)

    @cached_property
    def evidence(self) -> Evidence:
        """What the events say about their NanoAOD version and era apart from names of branches.

        Raises
        ------
        InputError
            If the run numbers of data cannot be read.
        """
        titles = tuple(
            str(self._column(name).layout.purelist_parameter("__doc__"))
            for name in ("Jet_puId", "Jet_puIdDisc")
            if self.has(name)
        )
        if self.is_simulation or not self.has("run") or len(self) == 0:
            return Evidence(titles)
        runs = self.read("run", per_event=True)
        # The runs of a chunk may tell nothing although others of its file do.
        return Evidence(titles, (int(runs[0]), int(runs[-1]), *self.metadata.get(RUNS_OF_FILE, ())))

    def resolve(self, selection: SelectionConfig) -> SelectionConfig:
        """A selection with every key set; nothing is done for the one that these branches were made for."""
        if self.knows(selection):
            return self.selection
        return resolve_selection(selection, self.names, self.evidence)

    def knows(self, selection: SelectionConfig) -> bool:
        """Return True for the selection that these branches were made for, as given or resolved."""
        return selection is self.given or selection is self.__dict__.get("selection")

    @property
    def is_simulation(self) -> bool:
        """True if there are generator weights, which only simulated events have."""
        return self.has("genWeight")

    def has(self, *names: str) -> bool:
        """Return True if all these branches (``Jet_jetId``, ``genWeight``) are there; nothing is read."""
        return all(self._place(name) for name in names)

    def read(self, name: str, *, key: str | None = None, per_event: bool = False) -> Any:
        """Values of a branch, flat over the objects of all events.

        Parameters
        ----------
        name
            Branch, such as ``Jet_pt``.
        key
            Configuration key that chose the name, for the error.
        per_event
            Require one value per event.

        Returns
        -------
        values
            Numpy array, shape (objects,) or (n,) for a branch with one value per event.

        Raises
        ------
        InputError
            If the branch is missing, has another number of values than expected or than the other branches of
            its objects, cannot be read because the file is damaged, or lacks a value.
        """
        if per_event and self.is_jagged(name, key):
            chosen_by = f" (selection key {key!r})" if key else ""
            raise InputError(
                f"{self.origin}: branch {self._stored(name)!r}{chosen_by} has several values per event, "
                "one expected"
            )
        self._require_own_objects(name)
        try:
            column = self._column(name, key)
            values = ak.to_numpy(ak.flatten(column) if column.ndim > 1 else column)
        except InputError:
            raise
        # A damaged basket raises almost anything, depending on the compression.
        except Exception as error:
            raise self._unreadable(f"branch {name!r}", error) from error
        if n_none := int(np.ma.getmaskarray(values).sum()):
            raise BadFileError(f"{self.origin}: branch {name!r} is None in {n_none} of {len(values)} places")
        return np.asarray(values)

    def finite(self, name: str, *, key: str | None = None, per_event: bool = False) -> FloatArray:
        """Values of a branch in double precision, all of them finite; see `read`.

        Raises
        ------
        InputError
            As `read`, or if the branch holds a NaN or an infinity.
        """
        values = self.read(name, key=key, per_event=per_event).astype(np.float64)
        self.require_finite(name, values)
        return values

    def require_finite(self, name: str, values: FloatArray) -> None:
        """Raise `InputError` if values of a branch, one for each of its places, are NaN or infinite."""
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            jagged = self.is_jagged(name)
            entry = (np.repeat(self.entries, self.counts(name)) if jagged else self.entries)[bad[0]]
            raise BadFileError(
                f"{self.origin}: branch {name!r} has {bad.size} of {values.size} values NaN or infinite, "
                f"the first in entry {entry}; finite ones expected"
            )

    def counts(self, name: str) -> Any:
        """Number of objects in each event, from the collection of a branch, shape (n,); zero for None.

        Raises
        ------
        InputError
            If the branch is missing, has one value per event, or cannot be read.
        """
        if not self.is_jagged(name):
            raise InputError(
                f"{self.origin}: branch {self._stored(name)!r} has one value per event, "
                f"any number expected of {name}"
            )
        what = f"counter of {name!r}"
        try:
            counts = np.asarray(ak.to_numpy(ak.fill_none(ak.num(self._column(name)), 0)))
        except InputError:
            raise
        except Exception as error:
            raise self._unreadable(what, error) from error
        if (counts < 0).any():
            raise self._unreadable(what, ValueError(f"{counts.min()} objects in an event"))
        return counts

    def is_jagged(self, name: str, key: str | None = None) -> bool:
        """Return True if a branch has any number of values per event rather than one; nothing is read.

        Raises
        ------
        InputError
            If the branch is missing.
        """
        return bool(self._column(name, key).ndim > 1)

    def _stored(self, name: str) -> str:
        """Name of a branch in the file."""
        return self.given.branches.get(name, name)

    def _require_own_objects(self, name: str) -> None:
        """Raise `InputError` if a branch was renamed to one of objects of which there are other numbers."""
        pt = f"{name.partition('_')[0]}_pt"
        renamed = self.given.branches.keys() & {name, pt}
        if not renamed or not self.has(name, pt) or self._place(name)[0] == self._place(pt)[0]:
            return
        jagged = self.is_jagged(name)
        if jagged != self.is_jagged(pt) or (
            jagged and not np.array_equal(self.counts(name), self.counts(pt))
        ):
            raise InputError(
                f"{self.origin}: branch {self._stored(name)!r}, taken for {name}, has other numbers of "
                f"values per event than {self._stored(pt)!r}, taken for {pt} (selection.branches)"
            )

    def _place(self, name: str) -> tuple[str, ...]:
        """Collection and field of a branch, or the branch alone; empty if it is not there."""
        name, layout = self._stored(name), self.layout
        if name in layout.fields and not layout[name].fields:
            return (name,)
        # A collection may have underscores of its own: ``gent_lc_pt``.
        fitting = (collection for collection in layout.fields if name.startswith(f"{collection}_"))
        collection = max(fitting, key=len, default="")
        field = name[len(collection) + 1 :]
        return (collection, field) if collection and field in layout[collection].fields else ()

    def _column(self, name: str, key: str | None = None) -> Any:
        """Column of a branch; of the objects of each event only their number is read."""
        if not (place := self._place(name)):
            raise InputError(f"{self.origin}: {missing_branch(name, self.names, key)}")
        column = self.layout
        for part in place:
            column = column[part]
        return ak.Array(column)

    def _unreadable(self, what: str, error: Exception) -> TopRecoError:
        reason, origin = first_line(error), self.origin
        if isinstance(error, MemoryError):
            # Not the file's fault, so nothing to skip.
            return TopRecoError(
                f"{origin}: out of memory while reading {what} ({reason}): {OUT_OF_MEMORY}, "
                "unless the file is damaged"
            )
        if isinstance(error, ImportError):
            return TopRecoError(f"{origin}: {what} cannot be read without another package ({reason})")
        if "filename" in self.metadata and not is_remote(origin) and not Path(origin).exists():
            return BadFileError(f"{origin}: {what} cannot be read, the file is no longer there")
        return BadFileError(f"{origin}: {what} cannot be read, the file may be damaged ({reason})")
