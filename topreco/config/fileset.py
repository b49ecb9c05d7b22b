"""Filesets as coffea's Runner and dataset_tools have them, as dictionaries or in JSON or YAML files."""

import gzip
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from topreco.config.base import Config, ConfigError, read_yaml
from topreco.core.errors import first_line

_DATA = (".root", ".parquet")
_SUFFIXES = (".json", ".json.gz", ".yaml", ".yml")
_OF_DATASET = {"files", "metadata", "treename", "form", "compressed_form", "format", "did", "preload"}
_OF_FILE = {"object_path", "steps", "num_entries", "uuid", "form", "save_form", "format"}

Entry = Annotated[int, Field(ge=0)]


class FileDetails(Config):
    """What a fileset tells about a file beside its name."""

    steps: tuple[tuple[Entry, Entry], ...] | None = None
    """Ranges of entries, each a chunk; null reads the whole file."""
    num_entries: Entry | None = None
    """Number of entries that the file must have."""
    uuid: str | None = None
    """ROOT's identifier that the file must have."""

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        steps = sorted(self.steps or ())
        if self.steps is not None and not steps:
            raise ValueError("steps: empty; leave the file out, or the key to read it whole")
        for start, stop in steps:
            if stop <= start:
                raise ValueError(f"steps: [{start}, {stop}] has no entries")
        for (start, stop), (following, end) in itertools.pairwise(steps):
            if following < stop:
                raise ValueError(f"steps: [{start}, {stop}] and [{following}, {end}] overlap")
        return self


def expand_files(names: Iterable[str]) -> list[str]:
    """Input files, with the files of folders and of text files with lists in place of these.

    Parameters
    ----------
    names
        Files; folders, of which all ROOT and Parquet files count, those of subfolders included; and text
        files (``.txt``) with one path or URL in each line, empty lines and those that begin with # excepted.

    Returns
    -------
    files
        In the given order; those of a folder sorted by name.

    Raises
    ------
    ConfigError
        If a folder or a list names no files, or a list cannot be read.
    """
    files: list[str] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            found = sorted(str(file) for suffix in _DATA for file in path.rglob(f"*{suffix}"))
            if not found:
                raise ConfigError(f"{name}: a folder without {' and '.join(_DATA)} files")
            files += found
        elif name.lower().endswith(".txt"):
            files += _listed(path)
        else:
            files.append(name)
    return files


def _listed(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as a list of files: {first_line(error)}") from error
    listed = [line for line in lines if line and not line.startswith("#")]
    if not listed:
        raise ConfigError(f"{path}: a list without files; one path or URL in each line expected")
    return listed


def is_fileset(name: str) -> bool:
    """Return True for the name of a file with a fileset."""
    return name.lower().endswith(_SUFFIXES)


def read_fileset(path: str | Path) -> dict[str, Any]:
    """Content of a file with a fileset.

    Raises
    ------
    ConfigError
        If it cannot be read or is no mapping.
    """
    path = Path(path)
    if not str(path).lower().endswith((".json", ".json.gz")):
        return read_yaml(path)
    try:
        raw = path.read_bytes()
        content = json.loads(gzip.decompress(raw) if path.name.lower().endswith(".gz") else raw)
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a fileset, a mapping of datasets, expected")
    return content


def plain_fileset(content: Any) -> tuple[Any, set[str], dict[str, dict[str, Any]]]:
    """Files by dataset, names of trees, and details of files of a fileset in any of its forms.

    Parameters
    ----------
    content
        Path of a file with it, or by dataset a list of files or a mapping with the key ``files``: a list, or
        by file the name of its tree or a mapping with ``object_path``, ``steps``, ``num_entries`` and
        ``uuid``. A list may have folders and lists of files, see `expand_files`.
        Metadata and forms are not used.

    Raises
    ------
    ValueError
        If a key is not known, or a form is another.
    """
    if isinstance(content, str):
        if not is_fileset(content):
            raise ValueError(
                f"fileset: a mapping or a file {', '.join(_SUFFIXES)} expected, found {content!r}"
            )
        content = read_fileset(content)
    if not isinstance(content, Mapping):
        return content, set(), {}
    files: dict[str, Any] = {}
    trees: set[str] = set()
    details: dict[str, dict[str, Any]] = {}
    for dataset, value in content.items():
        key = f"fileset.{dataset}"
        files[dataset] = value
        if not isinstance(value, Mapping):
            continue
        _require_known(value, _OF_DATASET, key)
        if "files" not in value:
            raise ValueError(f"{key}: a list of files or the key 'files' expected")
        if value.get("treename") is not None:
            trees.add(str(value["treename"]))
        files[dataset] = value["files"]
        if isinstance(value["files"], Mapping):
            files[dataset] = list(value["files"])
            for file, about in value["files"].items():
                found = about if isinstance(about, Mapping) else {"object_path": about}
                _require_known(found, _OF_FILE, f"{key}.files.{file}")
                if found.get("object_path") is not None:
                    trees.add(str(found["object_path"]))
                if kept := {name: found[name] for name in FileDetails.model_fields if name in found}:
                    details.setdefault(dataset, {})[file] = kept
    for dataset, names in files.items():
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            files[dataset] = expand_files(names)
    return files, trees, details


def _require_known(content: Mapping[str, Any], known: set[str], key: str) -> None:
    for name in content:
        if name not in known:
            raise ValueError(f"{key}: unknown key {name!r} (allowed: {', '.join(sorted(known))})")
