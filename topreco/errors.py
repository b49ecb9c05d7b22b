"""The base of the errors that a user can cause and mend."""


class TopRecoError(ValueError):
    """Bad input: the message says what, the value found, what is allowed, and the file or key.

    The command line prints it as one line and exits with 1; every other exception is a defect and keeps
    its traceback.
    """


def first_line(error: BaseException) -> str:
    """What an exception says in its first line; its class where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
