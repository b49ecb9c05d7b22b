"""Reconstructors: everything that turns `DileptonEvents` into a `TopPair`, behind one call.

`load` finds one by name or file; networks and analytic methods look the same to the rest of the program.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from topreco.errors import TopRecoError
from topreco.events import DileptonEvents, TopPair

if TYPE_CHECKING:
    from topreco.network.checkpoint import Artefact


@runtime_checkable
class Reconstructor(Protocol):
    """A method of reconstruction.

    Attributes
    ----------
    name
        How the method is called in histograms and tables.
    """

    name: str

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event."""


class NetworkReconstructor:
    """A trained network, read from its model file.

    Pickles as the file's path alone: each process reads the file once, however many chunks it works on.

    Parameters
    ----------
    path
        Model file (`.safetensors`) written by `topreco train`.
    name
        Name in histograms and tables; by default the file's stem.
    batch_size
        Events per forward pass. It changes memory and speed, not results.
    threads
        Torch threads during a call; None leaves torch's setting. Workers that share a machine want 1.

    Raises
    ------
    topreco.network.checkpoint.ModelFileError
        If the file is not a usable model.
    """

    def __init__(
        self, path: str | Path, *, name: str | None = None, batch_size: int = 256, threads: int | None = None
    ) -> None:
        self.path = Path(path).absolute()
        self.name = self.path.stem if name is None else name
        self.batch_size = batch_size
        self.threads = threads
        _ = self.artefact  # Fail here, not in the first worker.

    @property
    def artefact(self) -> "Artefact":
        """The networks and metadata of the model file."""
        # The modification time makes a file that was written anew a different model.
        changed = self.path.stat().st_mtime_ns if self.path.exists() else 0
        return _read_artefact(self.path, changed)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the model file says of its configuration, training data, versions and results."""
        return self.artefact.metadata

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event.

        Parameters
        ----------
        events
            Selected events.

        Returns
        -------
        pair
            Timelike four-momenta of t and t̄ in GeV.
        """
        import torch

        from topreco.network.inference import predict

        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads or threads)
        try:
            return predict(self.artefact.networks, events, batch_size=self.batch_size)
        finally:
            torch.set_num_threads(threads)


@lru_cache(maxsize=8)
def _read_artefact(path: Path, changed: int) -> "Artefact":  # noqa: ARG001 - part of the cache's key
    from topreco.network.checkpoint import load_artefact

    return load_artefact(path)


def load(source: str | Path, *, name: str | None = None, threads: int | None = None) -> Reconstructor:
    """Reconstructor by model file.

    Parameters
    ----------
    source
        A model file (`.safetensors`).
    name
        Name in histograms and tables in place of the file's stem.
    threads
        Threads per call; None leaves the library's setting.

    Returns
    -------
    reconstructor
        A callable from `DileptonEvents` to `TopPair`.

    Raises
    ------
    TopRecoError
        If there is no such method, or the file is not a usable model.
    """
    path = Path(source)
    if path.suffix != ".safetensors":
        raise TopRecoError(f"model {str(source)!r}: a .safetensors file written by `topreco train` expected")
    return NetworkReconstructor(path, name=name, threads=threads)
