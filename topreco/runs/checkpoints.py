"""Finished chunks on disk, so that a run that was stopped goes on; folders that belong to one configuration.

A checkpoint is what coffea's `SimpleCheckpointer` writes, a pickle. Only a run of the same configuration
reads it, from a folder that this or an earlier run made: never point `checkpoint` at a folder that others can
write to.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

import coffea.util
from coffea.processor import ProcessorABC, SimpleCheckpointer
from coffea.processor.executor import WorkItem

from topreco.config import RunConfig
from topreco.core.errors import TopRecoError
from topreco.core.files import complete_file, folder_name, writable_folder, write_text
from topreco.core.method import Method
from topreco.core.versions import versions

MARKER = "topreco.json"
"""File that says which configuration a folder belongs to."""

_WITHOUT_EFFECT = {
    *("fileset", "methods", "executor", "workers", "cluster", "ship_model", "chunk_size", "max_chunks"),
    *("skip_bad_files", "checkpoint", "output"),
}
"""Keys that change nothing in the result of a given chunk, or (methods) are described otherwise."""


class ChunkCheckpointer(SimpleCheckpointer):  # type: ignore[misc]
    """coffea's checkpointer, writing each file whole or not at all and keeping equal files apart.

    Parameters
    ----------
    folder
        Where, as an absolute path that every worker can read and write.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))

    def filepath(self, metadata: Mapping[str, Any], processor_instance: ProcessorABC | None = None) -> str:
        """Path of a chunk's checkpoint; a file that was copied or written anew has others."""
        del processor_instance
        file = hashlib.sha256(f"{metadata['filename']} {metadata['fileuuid']}".encode()).hexdigest()[:16]
        name = f"{metadata['entrystart']}-{metadata['entrystop']}.coffea"
        return str(Path(self.checkpoint_dir, folder_name(metadata["dataset"]), file, name))

    def has(self, chunk: WorkItem) -> bool:
        """Whether a chunk was finished before."""
        metadata = {**asdict(chunk), "fileuuid": str(UUID(bytes=chunk.fileuuid))}
        return Path(self.filepath(metadata)).is_file()

    def save(
        self, output: Mapping[str, Any], metadata: Mapping[str, Any], processor_instance: ProcessorABC
    ) -> None:
        """Keep a chunk's output, unless it was skipped: the same command shall try it again."""
        if output["out"].get("skipped"):
            return
        path = self.filepath(metadata, processor_instance)
        try:
            with complete_file(path) as temporary:
                coffea.util.save(output, str(temporary))
        except OSError as error:
            # Without its cause: coffea would take an OSError for a bad input file.
            failure = TopRecoError(f"{path}: cannot be written ({error.strerror or error})")
            raise failure from None


def describe_configuration(config: RunConfig, methods: Sequence[Method]) -> dict[str, Any]:
    """Everything that the result of a chunk depends on besides the chunk, as plain data.

    Parameters
    ----------
    config
        Of the run.
    methods
        Its methods, loaded: a model is known by its content, not by its path.
    """
    description = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    # JSON turns tuples to lists, and what was read back must be equal to what was not.
    return json.loads(
        json.dumps(
            description
            | {
                "methods": {method.name: _content(getattr(method, "path", None)) for method in methods},
                "response": _content(config.solvers.response),
                "corrections": {str(file): _content(file) for file in config.systematics.files},
                "topreco": versions()["topreco"],
            }
        )
    )


def claim_folder(folder: Path, description: Mapping[str, Any], key: str) -> None:
    """Make a folder for one configuration, or find that it is this one's.

    Parameters
    ----------
    folder
        The folder.
    description
        Plain data that tell the configuration.
    key
        Configuration key that named the folder, for the error.

    Raises
    ------
    TopRecoError
        If it belongs to another configuration, or holds files without saying to which, or cannot be written.
    """
    marker = writable_folder(folder) / MARKER
    # What begins with a dot is a file that a killed process did not finish.
    if any(path != marker and not path.name.startswith(".") for path in folder.iterdir()):
        if not marker.is_file():
            raise TopRecoError(f"{key} {folder}: holds other files; name an empty or a new folder")
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError as error:
            raise TopRecoError(f"{marker}: not JSON; remove {folder}") from error
        if differing := _differences(found, description):
            raise TopRecoError(
                f"{key} {folder}: made with another configuration, which differs in {', '.join(differing)}; "
                "name another folder, or remove this one"
            )
    write_text(marker, json.dumps(description, indent=1) + "\n")


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted keys in which two mappings differ."""
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return [] if a == b else [prefix or "everything"]
    missing = object()
    return [
        difference
        for key in [*a, *(key for key in b if key not in a)]
        for difference in _differences(
            a.get(key, missing), b.get(key, missing), f"{prefix}.{key}" if prefix else str(key)
        )
    ]


def _content(path: Path | None) -> str | None:
    """SHA-256 of a file's content."""
    return None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
