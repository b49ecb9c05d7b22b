"""From which models a model descends, by the metadata of its file."""

from collections.abc import Mapping
from typing import Any


def ancestors(metadata: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Description of a model and of those with whose weights it began, its own first."""
    found: list[Mapping[str, Any]] = []
    current: Any = metadata
    # In files of before a parent was a digest.
    while isinstance(current, Mapping):
        found.append(current)
        current = current.get("parent")
    return found


def trained_datasets(metadata: Mapping[str, Any]) -> set[str]:
    """Identities of all datasets that a model or one of its ancestors was trained on."""
    return {str(one) for each in ancestors(metadata) for one in each.get("data", {}).get("dataset_ids", ())}
