"""Columns of many events: in memory, or in a file that is mapped and read as it is needed.

A mapped column is a tensor like any other, but its pages belong to the page cache: the kernel reads them from
the disk when they are touched and takes them back when memory is short. All columns of an event lie together
in the file, so that an event picked at random costs one page or two, not one for each column.
"""

import mmap
from collections.abc import Iterator, Mapping
from typing import BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

Shapes = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
"""By name of a column, its type and the shape of an event's entry."""

_AT_ONCE = 1 << 16
"""Events that are moved, or looked at where all are, at a time."""


class Rows:
    """Events that are written once, in order, and then read.

    Parameters
    ----------
    shapes
        Type and shape of each column.
    n
        Number of events at most.
    file
        Where to write them; None keeps them in memory.
    device
        Where they are kept without a file.
    """

    def __init__(
        self, shapes: Shapes, n: int, file: BinaryIO | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.shapes, self._file, self._n = shapes, file, 0
        # What is never written takes no memory.
        self._kept = {
            name: torch.empty((n, *shape), dtype=dtype, device=device)
            for name, (dtype, shape) in (shapes.items() if file is None else ())
        }

    def __len__(self) -> int:
        return self._n

    def append(self, columns: Mapping[str, Tensor]) -> Self:
        """Write some events, shape (n, ...) in each column.

        Raises
        ------
        OSError
            If the file takes no more.
        """
        n = len(next(iter(columns.values())))
        if self._file is None:
            for name, kept in self._kept.items():
                kept[self._n : self._n + n] = columns[name]
        else:
            record = np.zeros(n, _record(self.shapes))
            for name in self.shapes:
                record[name] = columns[name].cpu().numpy()
            self._file.write(record.data)
        self._n += n
        return self

    def columns(self) -> dict[str, Tensor]:
        """All events that were written, shape (n, ...) in each column."""
        if self._file is None:
            return {name: kept[: self._n] for name, kept in self._kept.items()}
        self._file.flush()
        return mapped(self.shapes, self._n, self._file)


def row_bytes(shapes: Shapes) -> int:
    """Bytes that an event takes in a file."""
    return _record(shapes).itemsize


def mapped(shapes: Shapes, n: int, file: BinaryIO, offset: int = 0) -> dict[str, Tensor]:
    """Columns of n > 0 events in a file that `Rows` wrote, by name.

    The file may lose its name and be closed; it takes room on the disk until nothing refers to the columns.

    Raises
    ------
    OSError
        If the address space does not suffice.
    """
    # Writable, for torch has no read-only tensors; nothing writes.
    rows = np.memmap(file, _record(shapes), "r+", offset, shape=(n,))
    if hasattr(mmap, "MADV_RANDOM"):
        # Events are picked at random: from the disk, reading ahead takes seven times as long.
        rows._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]  # noqa: SLF001
    return {name: torch.from_numpy(rows[name]) for name in shapes}


def moved(column: Tensor, device: torch.device) -> Tensor:
    """A column on a device, without a second copy of it in memory."""
    if column.device == device:
        return column
    target = torch.empty(column.shape, dtype=column.dtype, device=device)
    for part in slices(len(column)):
        target[part] = column[part]
    return target


def slices(n: int) -> Iterator[slice]:
    """All of n events, few enough at a time."""
    for start in range(0, n, _AT_ONCE):
        yield slice(start, start + _AT_ONCE)


def sent(batch: Tensor, device: torch.device) -> Tensor:
    """A batch on a device; to a GPU from pinned memory, so that nothing waits for it."""
    # A slice of a mapped column has gaps, which a network might round differently.
    batch = batch.contiguous()
    if device.type == "cuda" and batch.device.type == "cpu":
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def _record(shapes: Shapes) -> np.dtype[np.void]:
    kinds = {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}
    # Aligned, since torch counts strides in elements.
    return np.dtype([(name, kinds[dtype], shape) for name, (dtype, shape) in shapes.items()], align=True)
