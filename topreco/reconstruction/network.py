"""Trained networks as methods."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, TopPair
from topreco.core.threads import torch_threads
from topreco.reconstruction.model_files import ModelFile, modified

if TYPE_CHECKING:
    from topreco.network.model_file import TrainedModel


class NetworkMethod(ModelFile):
    """A trained network, read from a `.safetensors` file of `topreco train` and evaluated by torch."""

    @property
    def model(self) -> "TrainedModel":
        """The networks and metadata of the model file."""
        return _read_model(self.path, modified(self.path))

    @property
    def metadata(self) -> dict[str, Any]:
        """Description of configuration, training data, versions and results in the model file."""
        return self.model.metadata

    @property
    def folds(self) -> int:
        """Number of networks in the file."""
        return len(self.model.networks)

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Timelike four-momenta of t and t̄; not valid where an input that exists is not finite."""
        import torch

        from topreco.network.inference import predict

        threads = torch.get_num_threads()
        torch.set_num_threads(torch_threads(self.threads or threads))
        try:
            return predict(self.model.networks, events, batch_size=self.batch_size, quantiles=self.quantiles)
        finally:
            torch.set_num_threads(threads)


@lru_cache(maxsize=64)
def _read_model(path: Path, changed: str) -> "TrainedModel":  # noqa: ARG001 - part of the cache's key
    from topreco.network.model_file import load_model
    from topreco.network.tasks.tops import TopNetwork

    model = load_model(path)
    if model.kind != TopNetwork.kind:
        raise TopRecoError(f"{path}: holds a model of the task {model.kind!r}, {TopNetwork.kind!r} expected")
    return model
