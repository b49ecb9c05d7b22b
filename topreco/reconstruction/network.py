"""Trained networks as methods."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topreco.config import FeaturesConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, Posterior, TopPair, Truth
from topreco.core.threads import checked_device, checked_threads, torch_threads
from topreco.reconstruction.model_files import ModelFile, PosteriorFile, modified

if TYPE_CHECKING:
    from topreco.network.model_file import TrainedModel


class NetworkMethod(ModelFile):
    """A trained network, read from a `.safetensors` file of `topreco train` and evaluated by torch.

    Parameters
    ----------
    path, **options
        As of `ModelFile`.
    device
        Where torch evaluates it, see `topreco.core.threads.checked_device`. Each process that is called puts
        the networks there once.
    """

    def __init__(self, path: str | Path, *, device: str = "cpu", **options: Any) -> None:
        self.device = checked_device(device)
        super().__init__(path, **options)

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

        networks, on_gpu = self._networks()
        batch_size = max(self.batch_size, _BATCH_ON_GPU) if on_gpu else self.batch_size
        with _torch_threads(self.threads):
            return predict(networks, events, batch_size=batch_size, quantiles=self.quantiles)

    def _networks(self) -> tuple[Sequence[Any], bool]:
        """The networks on their device, and whether that is a GPU."""
        if self.device == "cpu":
            return self.model.networks, False
        device = _present(self.device)
        return _on_device(self.path, modified(self.path), device), device != "cpu"


class PosteriorMethod(PosteriorFile, NetworkMethod):
    """A trained network of the task `posterior`, which also gives samples."""

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        """Samples of the tops of each event, of equal weight, see `topreco.network.inference.sample`."""
        from topreco.network.inference import sample

        n = self.n_samples if n_samples is None else n_samples
        networks, on_gpu = self._networks()
        # As many rows at once as without samples.
        more = {"batch_size": max(_BATCH_ON_GPU // max(n, 1), 64)} if on_gpu else {}
        with _torch_threads(self.threads):
            return sample(networks, events, n_samples=n, seed=self.seed, **more)


_BATCH_ON_GPU = 8192
"""Events per forward pass that a GPU gets, since fewer leave it idle."""


def _present(device: str) -> str:
    """The device that a name means; an error if this machine does not have it."""
    import torch

    n_cuda = torch.cuda.device_count() if device.startswith(("auto", "cuda")) else 0
    if device == "auto":
        return "cuda" if n_cuda else "cpu"
    number = int(device.partition(":")[2] or 0)
    if device.startswith("cuda") and number >= n_cuda:
        raise TopRecoError(
            f"device: {device!r} found, and torch sees {n_cuda} CUDA devices; cpu or auto works"
        )
    if device == "mps" and not torch.backends.mps.is_available():
        raise TopRecoError(f"device: {device!r} found, which this machine does not have; cpu or auto works")
    return device


@contextmanager
def _torch_threads(threads: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(torch_threads(threads or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


class DensityRatio:
    """A ratio of the densities of two samples A and B, of the task `ratio` of `topreco train`.

    Called with events of B it gives the weights that make them like A, each from the network that has not
    seen the event. The ratio is that of densities: the sum of weights stays what it was.

    Parameters
    ----------
    path
        Model file.
    name
        Name; by default the file's stem.
    threads
        Threads of each call, see `topreco.core.threads`.
    """

    def __init__(self, path: str | Path, *, name: str | None = None, threads: int | None = None) -> None:
        self.path = Path(path).absolute()
        self.name = self.path.stem if name is None else name
        self.threads = checked_threads(threads)
        _ = self.metadata

    @property
    def model(self) -> "TrainedModel":
        """The networks and metadata of the model file."""
        return _read_file(self.path, modified(self.path))

    @property
    def metadata(self) -> dict[str, Any]:
        """Description in the model file; ``ratio`` says of what it is and how good."""
        return self.model.metadata

    @property
    def inputs(self) -> str:
        """What the networks see: ``objects`` or ``generated``."""
        return str(self.model.networks[0].config.inputs)

    @property
    def features(self) -> FeaturesConfig:
        """Features that the networks see."""
        return self.model.networks[0].config.tokens.features

    def __call__(self, events: DileptonEvents, truth: Truth | None = None) -> FloatArray:
        """Ratio p_A/p_B of each event, shape (n,); as `log_ratio`."""
        return np.asarray(np.exp(self.log_ratio(events, truth)))

    def log_ratio(self, events: DileptonEvents, truth: Truth | None = None) -> FloatArray:
        """Logarithm of the ratio p_A/p_B of each event.

        Parameters
        ----------
        events
            Selected events.
        truth
            Their truth, if the ratio is one of generated tops and leptons.

        Returns
        -------
        log_ratio
            Shape (n,); NaN where an input that exists is not finite.

        Raises
        ------
        TopRecoError
            If the events lack something that the networks see.
        """
        from topreco.network.ratio_inference import log_ratio

        with _torch_threads(self.threads):
            return log_ratio(self.model.networks, events, truth)


def network_method(path: str | Path, **options: Any) -> NetworkMethod | DensityRatio:
    """Method of a model file or shipped model, whatever task it was trained for.

    Parameters
    ----------
    path, **options
        As of `NetworkMethod`.
    """
    file = Path(path).absolute()
    if file.suffix == ".safetensors" and file.is_file() and _read_file(file, modified(file)).kind == "ratio":
        return DensityRatio(path, name=options.get("name"), threads=options.get("threads"))
    method = NetworkMethod(path, **options)
    return PosteriorMethod(path, **options) if method.model.kind == "posterior" else method


@lru_cache(maxsize=64)
def _read_file(path: Path, changed: str) -> "TrainedModel":  # noqa: ARG001 - part of the cache's key
    from topreco.network.model_file import load_model

    return load_model(path)


@lru_cache(maxsize=16)
def _on_device(path: Path, changed: str, device: str) -> tuple[Any, ...]:
    """Copies of the networks of a model file on a device."""
    return tuple(copy.deepcopy(network).to(device) for network in _read_model(path, changed).networks)


def _read_model(path: Path, changed: str) -> "TrainedModel":
    model = _read_file(path, changed)
    if model.kind not in _TASKS:
        raise TopRecoError(
            f"{path}: holds a model of the task {model.kind!r}, {' or '.join(_TASKS)} expected"
        )
    return model


_TASKS = ("tops", "posterior")
"""Tasks whose models reconstruct tops."""
