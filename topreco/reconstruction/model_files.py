"""Methods that are read from a file: how it travels to workers, and the files that come with the package."""

import hashlib
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from topreco.core.files import complete_file


class ModelFile:
    """A model file that pickles as its path alone, a shipped model as its name, or with its content.

    Each process reads the file once, however many chunks it works on.
    """

    def __init__(
        self,
        source: Path | str,
        *,
        name: str | None,
        batch_size: int,
        threads: int | None,
        ship: bool,
        quantiles: bool,
    ) -> None:
        self._source = source
        self.name = self.path.stem if name is None else name
        self.batch_size = batch_size
        self.threads = threads
        self.ship = ship
        self.quantiles = quantiles

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.ship and isinstance(self._source, Path):
            state["content"] = self._source.read_bytes()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        content = state.pop("content", None)
        self.__dict__.update(state)
        if content is not None:
            self._source = _unpack(content, self.path.suffix)

    @property
    def path(self) -> Path:
        """The model file."""
        return self._source if isinstance(self._source, Path) else shipped_models()[self._source]


@cache
def shipped_models() -> dict[str, Path]:
    """Trained models that come with the package, by name; `docs/models` describes each."""
    folder = Path(str(resources.files("topreco"))) / "models"
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"), key=lambda path: path.stem)}


@cache
def _unpacked() -> tempfile.TemporaryDirectory[str]:
    """Folder of this process for the model files that were sent to it."""
    return tempfile.TemporaryDirectory(prefix="topreco-", ignore_cleanup_errors=True)


def _unpack(content: bytes, suffix: str) -> Path:
    """Path of a model file with this content, written the first time this process gets it."""
    path = Path(_unpacked().name) / f"{hashlib.sha256(content).hexdigest()}{suffix}"
    if not path.exists():
        with complete_file(path) as temporary:
            temporary.write_bytes(content)
    return path
