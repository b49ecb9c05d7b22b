"""Les Houches event files, read as a stream and cut into blocks."""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from topreco.core.errors import TopRecoError

_EVENT = re.compile(r"\s*<event[\s>]")
_EVENT_END = re.compile(r"\s*</event>")
_INIT = re.compile(r"\s*<init[\s>]")
# Position of IDWTUP in the first line of <init>, see hep-ph/0109068.
_IDWTUP = 8
# With this strategy Pythia keeps every event with its weight; with most others it would reject
# events or replace weights by their sign.
_KEEP_ALL = "-4"


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8", errors="replace")
    return path.open(encoding="utf-8", errors="replace")


def count_events(path: Path) -> int:
    """Count the events of a file.

    Parameters
    ----------
    path
        Les Houches event file, plain (.lhe) or compressed (.lhe.gz).

    Returns
    -------
    count
        Number of events.

    Raises
    ------
    TopRecoError
        If the file holds no complete events or is cut off.
    """
    begun = ended = 0
    try:
        with _open(path) as file:
            for line in file:
                begun += _EVENT.match(line) is not None
                ended += _EVENT_END.match(line) is not None
    except (EOFError, gzip.BadGzipFile) as error:
        raise TopRecoError(f"{path} is not a complete gzip file: {error}") from error
    if begun == 0:
        raise TopRecoError(f"{path} is not a Les Houches event file: it has no line <event>")
    if begun != ended:
        raise TopRecoError(f"{path} is cut off: {begun} events begin, {ended} end")
    return begun


def split(path: Path, block_size: int) -> Iterator[str]:
    """Cut a file into smaller ones.

    The weighting strategy (IDWTUP) becomes −4, so that Pythia keeps every event with its own weight.

    Parameters
    ----------
    path
        Les Houches event file, plain or compressed.
    block_size
        Events per block.

    Yields
    ------
    text
        A complete Les Houches event file with the next `block_size` events; fewer in the last.

    Raises
    ------
    TopRecoError
        If the line after <init> is not one.
    """
    header: list[str] = []
    block: list[str] = []
    n_events = 0
    in_event = False
    with _open(path) as file:
        for line in file:
            if not in_event and _EVENT.match(line):
                if not n_events and not block:
                    header = _keep_all(header, path)
                in_event = True
            if in_event:
                block.append(line)
                if _EVENT_END.match(line):
                    in_event = False
                    n_events += 1
            elif not n_events:
                header.append(line)
            if n_events and n_events % block_size == 0 and block and not in_event:
                yield _join(header, block)
                block = []
    if block:
        yield _join(header, block)


def _keep_all(header: list[str], path: Path) -> list[str]:
    """Set IDWTUP in the header."""
    starts = [i for i, line in enumerate(header) if _INIT.match(line)]
    fields = header[starts[-1] + 1].split() if starts and starts[-1] + 1 < len(header) else []
    if len(fields) != _IDWTUP + 2:
        raise TopRecoError(
            f"{path} has no valid block <init> before its events: ten numbers belong in its first line"
        )
    fields[_IDWTUP] = _KEEP_ALL
    position = starts[-1] + 1
    return [*header[:position], " ".join(fields) + "\n", *header[position + 1 :]]


def _join(header: list[str], block: list[str]) -> str:
    return "".join([*header, *block, "</LesHouchesEvents>\n"])
