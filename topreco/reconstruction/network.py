"""Trained networks as methods."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, Posterior, TopPair
from topreco.core.threads import torch_threads
from topreco.reconstruction.model_files import ModelFile, PosteriorFile, modified

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
        from topreco.network.inference import predict

        with _torch_threads(self.threads):
            return predict(self.model.networks, events, batch_size=self.batch_size, quantiles=self.quantiles)


class PosteriorMethod(PosteriorFile, NetworkMethod):
    """A trained network of the task `posterior`, which also gives samples."""

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        """Samples of the tops of each event, of equal weight, see `topreco.network.inference.sample`."""
        from topreco.network.inference import sample

        n = self.n_samples if n_samples is None else n_samples
        with _torch_threads(self.threads):
            return sample(self.model.networks, events, n_samples=n, seed=self.seed)


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads(threads or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def network_method(path: str | Path, **options: Any) -> NetworkMethod:
    """Method of a model file or shipped model, whatever task it was trained for.

    Parameters
    ----------
    path, **options
        As of `ModelFile`.
    """
    method = NetworkMethod(path, **options)
    return PosteriorMethod(path, **options) if method.model.kind == "posterior" else method


@lru_cache(maxsize=64)
def _read_model(path: Path, changed: str) -> "TrainedModel":  # noqa: ARG001 - part of the cache's key
    from topreco.network.model_file import load_model

    model = load_model(path)
    if model.kind not in _TASKS:
        raise TopRecoError(
            f"{path}: holds a model of the task {model.kind!r}, {' or '.join(_TASKS)} expected"
        )
    return model


_TASKS = ("tops", "posterior")
"""Tasks whose models reconstruct tops."""
