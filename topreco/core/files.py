"""Files that are never half-written under their final name, and plain data in JSON."""

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np

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
        The final name; of a symbolic link, the file that it leads to is written.

    Yields
    ------
    temporary
        Where to write.

    Raises
    ------
    TopRecoError
        If the folder cannot be made or written to, the disk is full, or the path leads to something that is
        not a regular file.
    """
    path = _target(Path(path))
    writable_folder(path.parent)
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


def check_outputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path | None]) -> None:
    """Make sure that files can be written under some names, and that none of them is read as well.

    Parameters
    ----------
    outputs
        Files to write, which need not exist.
    inputs
        Files to read, or URLs. What does not exist is nobody's input.

    Raises
    ------
    TopRecoError
        If an output is an input, however both are spelt, or is there and not a regular file.
    """
    read = {
        _identity(Path(re.sub(r"^file:(//(localhost)?)?", "", str(file)))): file
        for file in inputs
        if file is not None
    }
    for output in outputs:
        number = _identity(_target(Path(output)))
        if number is not None and number in read:
            raise TopRecoError(f"{output}: would replace the input {read[number]}; give another name")


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of a file, None where there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def _target(path: Path) -> Path:
    """File to write for a name: that to which a symbolic link leads."""
    if path.is_symlink():
        try:
            path.stat()
        except FileNotFoundError:
            pass  # A link to a file that is not there yet.
        except OSError as error:
            raise TopRecoError(f"{path}: cannot be written ({error.strerror})") from error
        path = path.resolve()
    if path.is_dir():
        raise TopRecoError(f"{path}: is a folder, a file name expected")
    if path.exists() and not path.is_file():
        raise TopRecoError(f"{path}: is not a regular file; the name of a new or a regular file expected")
    return path


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


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, whole or not at all.

    Columns stand in the order in which the rows first have them; a cell that a row lacks is empty.
    """
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def plain(value: Any) -> Any:
    """Plain JSON data of mappings, named tuples, sequences, arrays and paths; NaN and ∞ become None."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def to_json(value: Any) -> str:
    """Text of a JSON file with the `plain` data of a value, indented by one space per level."""
    return _indented(plain(value), "\n") + "\n"


def _indented(value: Any, line: str) -> str:
    """What `json.dumps` gives with ``indent=1``, for which it would leave its C code."""
    inner = f"{line} "
    if not (isinstance(value, dict | list) and value):
        return _encoder(",").encode(value)
    items = value.values() if isinstance(value, dict) else value
    if not any(isinstance(item, dict | list) for item in items):
        text = _encoder(f",{inner}").encode(value)
        return f"{text[0]}{inner}{text[1:-1]}{line}{text[-1]}"
    parts = [_indented(item, inner) for item in items]
    if isinstance(value, list):
        return f"[{inner}{f',{inner}'.join(parts)}{line}]"
    named = (f"{_encoder(',').encode(str(key))}: {part}" for key, part in zip(value, parts, strict=True))
    return f"{{{inner}{f',{inner}'.join(named)}{line}}}"


@lru_cache
def _encoder(separator: str) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(separator, ": "))


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
