"""The base of the errors that a user can cause and fix, and helpers for their messages."""

import difflib
from collections.abc import Iterable


class TopRecoError(ValueError):
    """Bad input: the message says what, the value found, what is allowed, and the file or key.

    The command line prints it as one line and exits with 1; every other exception is a defect and keeps
    its traceback.
    """


OUT_OF_MEMORY = "fewer events at a time (chunk_size, step_size, batch_size) or more memory"
"""Remedies, for the end of a message."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory ran out: torch's error is a RuntimeError, or caused by a MemoryError."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    if any(text in str(error) for text in ("can't allocate memory", "out of memory")):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def needs_extra(extra: str, error: ImportError) -> str:
    """Describe what is wrong with the libraries of an optional extra, for the end of a message.

    Parameters
    ----------
    extra
        Its name in `pyproject.toml`.
    error
        Raised when they were imported.
    """
    if isinstance(error, ModuleNotFoundError):
        return f"needs the extra: pip install 'topreco[{extra}]'"
    # It is there: a damaged installation, or no memory left to map it.
    said = first_line(error)
    return f"the extra '{extra}' is installed but cannot be loaded; is there enough memory? ({said})"


def first_line(error: BaseException) -> str:
    """First line of an exception's message, or its class if it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def nearest(name: str, names: Iterable[str]) -> str:
    """End of an error message that suggests what was probably meant, empty if nothing is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
