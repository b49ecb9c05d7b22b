"""Methods that are read from a model file, how they travel to workers, and the files of the package."""

import hashlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from topreco.config import FeaturesConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, TopPair
from topreco.core.files import complete_file, content_of
from topreco.core.method import fingerprint_of
from topreco.core.prior import METADATA_KEY, Spectra
from topreco.core.shipped import shipped_models
from topreco.core.threads import checked_threads


class ModelFile(ABC):
    """A method that is read from a model file.

    Pickles as the file's path alone, a shipped model as its name, or with the file's content. Each process
    reads the file once, however many chunks it works on.

    Parameters
    ----------
    path
        Model file, or the name of one of `shipped_models`.
    name
        Name in histograms and tables; by default the file's stem.
    batch_size
        Events per forward pass. It changes memory and speed, not results.
    threads
        Threads of each call, see `topreco.core.threads`.
    ship
        Pickle with the file's content, for workers that cannot see the file.
    quantiles
        Evaluate the uncertainty of each event, too, of models that have it.

    Raises
    ------
    TopRecoError
        If the file is not a usable model, or a number is not positive.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        batch_size: int = 256,
        threads: int | None = None,
        ship: bool = False,
        quantiles: bool = True,
    ) -> None:
        if batch_size < 1:
            raise TopRecoError(f"batch_size: {batch_size} found, 1 or more expected")
        # A shipped model may lie elsewhere in the worker that gets this object, and has the same name there.
        self._source = str(path) if str(path) in shipped_models() else Path(path).absolute()
        self.name = self.path.stem if name is None else name
        self.batch_size = batch_size
        self.threads = checked_threads(threads)
        self.ship = ship
        self.quantiles = quantiles
        _ = self.metadata  # Fail here, not in the first worker.

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

    @property
    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Description of configuration, training data, versions and results in the model file."""

    @property
    @abstractmethod
    def folds(self) -> int:
        """Number of networks in the file."""

    @property
    def uses_event_key(self) -> bool:
        """True if the event's key decides which of several networks, one per fold, reconstructs it."""
        return self.folds > 1

    @property
    def fingerprint(self) -> str:
        """Digest of the file's content and the evaluation of quantiles."""
        return fingerprint_of(content_of(self.path), self.quantiles)

    @property
    def features(self) -> FeaturesConfig:
        """Features that the networks see, which events must have."""
        return FeaturesConfig.model_validate(self._tokens.get("features", {}))

    @property
    def _tokens(self) -> dict[str, Any]:
        """Configuration of the tokens, without the keys that are younger than the file."""
        tokens: dict[str, Any] = self.metadata["encoder"]["config"]["tokens"]
        return tokens

    def further_inputs(self, events: DileptonEvents) -> dict[str, Any]:
        """Arrays that the networks see beyond those of every network, see `DileptonEvents.further_inputs`."""
        return events.further_inputs(
            working_points=self._tokens.get("btag") == "working_points",
            features=self.features.model_dump(),
        )

    @abstractmethod
    def __call__(self, events: DileptonEvents) -> TopPair:
        """Timelike four-momenta of t and t̄; not valid where an input that exists is not finite."""


class PosteriorFile(ModelFile):
    """A model file whose networks also give samples."""

    seed = 1
    """Seed of the samples."""
    n_samples = 64
    """Samples of each event where no number is given."""

    @property
    def spectra(self) -> Spectra | None:
        """Spectra of the training, which a prior of one's own replaces; None if they are not known."""
        content = self.metadata.get("data", {}).get(METADATA_KEY)
        return None if content is None else Spectra.from_dict(content)


def needed_features(methods: Iterable[Any]) -> list[FeaturesConfig]:
    """Features that methods, or what they are made of, see."""
    found = []
    for outer in methods:
        method = outer
        while method is not None:
            features = getattr(method, "features", None)
            if isinstance(features, FeaturesConfig):
                found.append(features)
            method = getattr(method, "method", None)
    return found


def modified(path: Path | None) -> str:
    """Digest of a file's content, by which a rewritten file is another one; empty without a file."""
    return "" if path is None or not path.is_file() else content_of(path)


DESCRIPTIONS = {
    "dilepton": "network to start with: means, quantiles and samples of the tops an event may come from",
    "dilepton-point": "one on-shell pair of tops per event",
    "dilepton-full": "full geometric-algebra network L-GATr",
}
"""One line about each of `shipped_models`."""


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
