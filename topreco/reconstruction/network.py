"""Trained networks as methods."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topreco.core.events import DileptonEvents, TopPair
from topreco.reconstruction.model_files import ModelFile, shipped_models

if TYPE_CHECKING:
    from topreco.network.model_file import TrainedModel


class NetworkMethod(ModelFile):
    """A trained network, read from its model file.

    Pickles as the file's path alone, a model that comes with the package as its name: each process reads the
    file once, however many chunks it works on.

    Parameters
    ----------
    path
        Model file (`.safetensors`) written by `topreco train`, or the name of one of `shipped_models`.
    name
        Name in histograms and tables; by default the file's stem.
    batch_size
        Events per forward pass. It changes memory and speed, not results.
    threads
        Torch threads during a call; None leaves torch's setting. Workers that share a machine want 1.
    ship
        Pickle with the file's content, for workers that cannot see the file.
    quantiles
        Evaluate the uncertainty of each event, too, of models that have it.

    Raises
    ------
    topreco.network.model_file.ModelFileError
        If the file is not a usable model.
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
        # A shipped model may lie elsewhere in the worker that gets this object, and has the same name there.
        source = str(path) if str(path) in shipped_models() else Path(path).absolute()
        super().__init__(
            source, name=name, batch_size=batch_size, threads=threads, ship=ship, quantiles=quantiles
        )
        _ = self.artefact  # Fail here, not in the first worker.

    @property
    def artefact(self) -> "TrainedModel":
        """The networks and metadata of the model file."""
        # The modification time makes a file that was written anew a different model.
        changed = self.path.stat().st_mtime_ns if self.path.exists() else 0
        return _read_model(self.path, changed)

    @property
    def uses_event_key(self) -> bool:
        """Whether (dataset, run, lumi, event) matters: it decides which of several folds reconstructs."""
        return len(self.artefact.networks) > 1

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
            return predict(
                self.artefact.networks, events, batch_size=self.batch_size, quantiles=self.quantiles
            )
        finally:
            torch.set_num_threads(threads)


@lru_cache(maxsize=8)
def _read_model(path: Path, changed: int) -> "TrainedModel":  # noqa: ARG001 - part of the cache's key
    from topreco.network.model_file import load_model

    return load_model(path)
