"""Finished chunks on disk, so that a stopped run continues; folders that belong to one configuration.

A checkpoint is a pickle that coffea's `SimpleCheckpointer` writes. Only a run of the same configuration reads
it, from a folder that this or an earlier run made: never point `checkpoint` at a folder that others can write
to.
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
from topreco.core.files import complete_file, folder_name, sha256_of, writable_folder, write_text
from topreco.core.folders import differences
from topreco.core.method import Method
from topreco.core.versions import versions

MARKER = "topreco.json"
"""File with the configuration that a folder belongs to."""

_WITHOUT_EFFECT = {
    *(
        "fileset",
        "details",
        "methods",
        "executor",
        "workers",
        "cluster",
        "ship_model",
        "chunk_size",
        "max_chunks",
    ),
    *("skip_bad_files", "skip_limit", "checkpoint", "output"),
}
"""Keys without effect on the result of a given chunk, or (methods) with a description of their own."""


class ChunkCheckpointer(SimpleCheckpointer):  # type: ignore[misc]
    """coffea's checkpointer; it writes each file whole or not at all, and keeps files of one name apart.

    Parameters
    ----------
    folder
        Where, as an absolute path that every worker can read and write.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))

    def filepath(self, metadata: Mapping[str, Any], processor_instance: ProcessorABC | None = None) -> str:
        """Path of a chunk's checkpoint; a file that was copied or written again has other ones."""
        del processor_instance
        file = hashlib.sha256(f"{metadata['filename']} {metadata['fileuuid']}".encode()).hexdigest()[:16]
        name = f"{metadata['entrystart']}-{metadata['entrystop']}.coffea"
        return str(Path(self.checkpoint_dir, folder_name(metadata["dataset"]), file, name))

    def has(self, chunk: WorkItem) -> bool:
        """Return True if a chunk was finished before."""
        metadata = {**asdict(chunk), "fileuuid": str(UUID(bytes=chunk.fileuuid))}
        return Path(self.filepath(metadata)).is_file()

    def save(
        self, output: Mapping[str, Any], metadata: Mapping[str, Any], processor_instance: ProcessorABC
    ) -> None:
        """Keep a chunk's output, unless it was skipped: the same command tries it again."""
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
        Configuration of the run.
    methods
        Its methods, loaded.
    """
    description = config.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    # JSON turns tuples to lists, and what was read back must be equal to what was not.
    cuts = config.selection.cuts
    files = [*config.systematics.files, *config.ratios.values(), cuts.golden_json]
    if cuts.jet_veto_map is not None:
        files.append(cuts.jet_veto_map.file)
    return json.loads(
        json.dumps(
            description
            | {
                "methods": {method.name: method.fingerprint for method in methods},
                "contents": {str(file): sha256_of(file) for file in files if file is not None},
                "topreco": versions()["topreco"],
            }
        )
    )


def claim_folder(folder: Path, description: Mapping[str, Any], key: str) -> None:
    """Make a folder for one configuration, or check that it belongs to this one.

    Parameters
    ----------
    folder
        The folder.
    description
        The configuration as plain data.
    key
        Configuration key that named the folder, for the error.

    Raises
    ------
    TopRecoError
        If it belongs to another configuration, contains files but no marker, or cannot be written.
    """
    marker = writable_folder(folder) / MARKER
    # Files that begin with a dot are those that a killed process did not finish.
    if any(path != marker and not path.name.startswith(".") for path in folder.iterdir()):
        if not marker.is_file():
            raise TopRecoError(f"{key} {folder}: holds other files; name an empty or a new folder")
        try:
            found = dict(json.loads(marker.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise TopRecoError(f"{marker}: not JSON; remove {folder}") from error
        if differing := differences(found, description):
            raise TopRecoError(
                f"{key} {folder}: made with another configuration, which differs in {', '.join(differing)}; "
                "name another folder, or remove this one"
            )
    write_text(marker, json.dumps(description, indent=1) + "\n")
