"""Trained models that come with the package."""

from functools import cache
from importlib import resources
from pathlib import Path


@cache
def shipped_models() -> dict[str, Path]:
    """Model files by name; `docs/models` describes each."""
    folder = Path(str(resources.files("topreco"))) / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"), key=lambda path: path.stem)}
