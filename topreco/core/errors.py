"""The base of the errors that a user can cause and mend."""


class TopRecoError(ValueError):
    """Bad input: the message says what, the value found, what is allowed, and the file or key.

    The command line prints it as one line and exits with 1; every other exception is a defect and keeps
    its traceback.
    """


OUT_OF_MEMORY = "fewer events at a time (chunk_size, step_size, batch_size) or more memory"
"""What helps, for the errors."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if memory ran out: torch's error is a RuntimeError, or caused by a MemoryError."""
    if not isinstance(error, RuntimeError):
        return isinstance(error, MemoryError)
    if any(text in str(error) for text in ("can't allocate memory", "out of memory")):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


def needs_extra(extra: str, error: ImportError) -> str:
    """What is wrong with the libraries of an optional extra, for the end of a message.

    Parameters
    ----------
    extra
        Its name in `pyproject.toml`.
    error
        What importing them raised.
    """
    if isinstance(error, ModuleNotFoundError):
        return f"needs the extra: pip install 'topreco[{extra}]'"
    # It is there: a damaged installation, or no memory left to map it.
    said = first_line(error)
    return f"the extra '{extra}' is installed but cannot be loaded; is there enough memory? ({said})"


def first_line(error: BaseException) -> str:
    """What an exception says in its first line; its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
