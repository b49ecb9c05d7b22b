"""Files that are never half-written under their final name, and plain data in JSON."""

import errno
import hashlib
import json
import math
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from topreco.core.errors import TopRecoError

_RECENT = 2 * 10**9
"""Age in ns from which on the times of a file distinguish its versions on any file system."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


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
        If the folder cannot be made or written to, or the disk is full.
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
    except Exception as error:
        if (number := _full_disk(error)) is not None:
            # Without its cause: coffea would take an OSError for a bad input file.
            raise TopRecoError(f"{path}: cannot be written ({os.strerror(number)})") from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _full_disk(error: BaseException | None) -> int | None:
    """Number of the error by which a disk refuses more data, if it caused an exception; else None."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


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


def plain(value: Any) -> Any:
    """Plain JSON data from nested mappings, named tuples, sequences and paths; NaN and ∞ become None."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, PurePath) else value


def to_json(value: Any) -> str:
    """Text of a JSON file with the `plain` data of a value."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_of(path: str | Path) -> str:
    """SHA-256 of a file's content as it is now, which is read again only if the file has changed.

    The key for caches of what a file contains: a file may be replaced by another one of the same name.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    found = Path(path).stat()
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if abs(time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns)) < _RECENT:
        return sha256_of(path)
    return _sha256_of_state(Path(path).absolute(), state)


@lru_cache(maxsize=256)
def _sha256_of_state(path: Path, state: tuple[int, ...]) -> str:  # noqa: ARG001 - part of the cache's key
    return sha256_of(path)


def folder_name(name: str) -> str:
    """Name of a folder for a dataset or variation; characters that do not fit are replaced by a hash."""
    fitting = _fitting(name)
    return fitting if name and fitting == name else f"{fitting}-{_hash(name)}"


def unique_stem(file: str) -> str:
    """Beginning of the names of files made from a source file; a hash distinguishes sources of one name."""
    return f"{_fitting(PurePosixPath(file).stem)}-{_hash(file)}"


def _fitting(name: str) -> str:
    return re.sub(r"[^\w.+=-]+", "_", name).strip("._")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
