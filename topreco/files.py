"""Writing files so that none is ever half-written under its final name."""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from topreco.errors import TopRecoError


@contextmanager
def complete_file(path: str | Path) -> Iterator[Path]:
    """Temporary path beside a file that takes the file's place on success and vanishes on failure.

    Parameters
    ----------
    path
        The final name.

    Yields
    ------
    temporary
        Where to write.

    Raises
    ------
    TopRecoError
        If the folder cannot be made or written to.
    """
    path = Path(path)
    writable_folder(path.parent)
    if path.is_dir():
        raise TopRecoError(f"{path}: is a folder, a file name expected")
    # The suffix stays, since some writers choose the format by it. Workers on several machines may write one
    # file at a time, so a process' number would not do.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def writable_folder(path: str | Path) -> Path:
    """Make a folder, with its parents, and prove that files can be written in it.

    Raises
    ------
    TopRecoError
        If not.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise TopRecoError(f"output folder {path}: cannot write there ({error.strerror})") from error
    return path


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with complete_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
