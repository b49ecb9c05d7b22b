"""correctionlib files: checked against their schema, and read once per process and content."""

import gzip
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import correctionlib
import correctionlib.schemav2 as schema
from pydantic import ValidationError

from topreco.core.errors import TopRecoError
from topreco.core.files import content_of

_GZIP = b"\x1f\x8b"


class CorrectionError(TopRecoError):
    """A correction that is missing, is given wrong inputs or gives no number."""


def check_payload(path: Path) -> None:
    """Raise unless a file follows correctionlib's schema: its parser crashes on some that do not.

    Raises
    ------
    CorrectionError
        If the file is missing or something else.
    """
    _check(path, payload_content(path))


@lru_cache(maxsize=32)
def _check(path: Path, digest: str) -> None:  # noqa: ARG001 - part of the cache's key
    try:
        content = path.read_bytes()
        if content[:2] == _GZIP:
            content = gzip.decompress(content)
        schema.CorrectionSet.model_validate_json(content)
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            # One for each type that a node may have.
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        reason = " ".join(reason.split())[:200]
        raise CorrectionError(f"{path}: not a correctionlib payload ({reason})") from error


def read_payload(path: Path) -> Any:
    """Correction set of a file that `check_payload` lets pass, read once per process and content.

    Raises
    ------
    CorrectionError
        If the file is missing or correctionlib refuses it.
    """
    return _read(path, payload_content(path))


@lru_cache(maxsize=32)
def _read(path: Path, digest: str) -> Any:  # noqa: ARG001 - part of the cache's key
    try:
        return correctionlib.CorrectionSet.from_file(str(path))
    # Its parser raises what C++ throws.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CorrectionError(f"{path}: not a correctionlib payload ({reason})") from error


def payload_content(path: Path) -> str:
    """Digest of a payload's content, as key for caches of what it contains.

    Raises
    ------
    CorrectionError
        If the file is missing or cannot be read.
    """
    what = "a correctionlib payload (.json or .json.gz) expected"
    if not path.is_file():
        raise CorrectionError(f"{path}: no such file; {what}")
    try:
        return content_of(path)
    except OSError as error:
        raise CorrectionError(f"{path}: cannot be read ({error.strerror}); {what}") from error
