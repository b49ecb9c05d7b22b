"""Failures of workers: one clear error for bad input, and chunks that are skipped instead."""

import ast
import io
import re
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, redirect_stderr
from typing import Any

from coffea import processor

from topreco.core.errors import OUT_OF_MEMORY, TopRecoError, first_line, is_out_of_memory
from topreco.input.nano import BadFileError
from topreco.runs.executors import WORKER_LOST


def skipped_entry(
    dataset: str, file: str, reason: str, entrystart: int | None = None, entrystop: int | None = None
) -> dict[str, Any]:
    """Description of a bad file, or of a chunk of one, for the list of what was skipped."""
    return {
        "dataset": dataset,
        "file": file,
        "entrystart": entrystart,
        "entrystop": entrystop,
        "reason": reason.removeprefix(f"{file}: "),
    }


class SkipBadChunks(processor.ProcessorABC):  # type: ignore[misc]
    """A processor that gives an entry in the list of skipped ones for a chunk that cannot be read.

    Only an error of the file itself is one; a mistake of the configuration ends the run as ever.

    Parameters
    ----------
    instance
        The processor for all other chunks.
    """

    def __init__(self, instance: processor.ProcessorABC) -> None:
        self.instance = instance

    def process(self, events: Any) -> dict[str, Any]:
        """Output of the processor, or the entry of a chunk that cannot be read."""
        try:
            return self.instance.process(events)
        except BadFileError as error:
            names = ("dataset", "filename", "entrystart", "entrystop")
            dataset, file, start, stop = (events.metadata[name] for name in names)
            return {"skipped": [skipped_entry(dataset, file, str(error), start, stop)]}
        except (TopRecoError, OSError) as error:
            # Without its cause: coffea would take an OSError for a bad input file.
            failure = error if isinstance(error, TopRecoError) else TopRecoError(first_line(error))
            failure.__cause__ = failure.__context__ = None
        raise failure

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """The merged output, unchanged."""
        return accumulator


@contextmanager
def one_error() -> Iterator[None]:
    """Raise bad input as a worker found it, without the wrapping and traceback that coffea adds."""
    captured = io.StringIO()
    try:
        with redirect_stderr(captured):
            yield
    except Exception as error:
        failure = _failure(error)
        if failure is not None:
            raise failure from None
        sys.stderr.write(captured.getvalue())
        raise
    sys.stderr.write(captured.getvalue())


def _failure(error: BaseException) -> TopRecoError | None:
    """The error that a user can fix among the causes of an executor's exception; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TopRecoError):
            return cause
        if is_out_of_memory(cause):
            return _no_memory(first_line(cause))
        cause = cause.__cause__ or cause.__context__
    # Some executors return the outermost exception only, in whose text coffea quotes the inner one.
    text = str(error)
    if quoted := re.search(r"The error was: (\w+)\((.*)\)\.$", text, re.DOTALL):
        kind, arguments = quoted.groups()
        if kind in _names_of_errors(TopRecoError):
            return TopRecoError(ast.literal_eval(arguments))
        if kind.endswith("MemoryError"):
            return _no_memory(arguments)
        file = re.search(r"filename='([^']*)'", text)
        if text.startswith("Failed to open file") and file:
            return TopRecoError(f"{file[1]}: a worker cannot open it ({kind}: {arguments})")
    if text.startswith("No chunks returned results"):
        return TopRecoError("none of the chunks can be read: workers could not open a single file")
    lost = isinstance(error, BrokenExecutor) or type(error).__name__ in WORKER_LOST
    if lost or "KilledWorker" in text:
        return TopRecoError(
            "a worker died, which most often means out of memory: lower chunk_size, or give each worker more "
            f"memory ({text.splitlines()[0]})"
        )
    return None


def _no_memory(reason: str) -> TopRecoError:
    return TopRecoError(f"a worker ran out of memory ({reason or 'it says no more'}): {OUT_OF_MEMORY}")


def _names_of_errors(kind: type[TopRecoError]) -> set[str]:
    return {kind.__name__}.union(*(_names_of_errors(sub) for sub in kind.__subclasses__()))
