"""Exported networks as methods, without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topreco.core.errors import TopRecoError, needs_extra
from topreco.core.events import DileptonEvents, Posterior, TopPair, mass_quality
from topreco.reconstruction.model_files import ModelFile, PosteriorFile

if TYPE_CHECKING:
    from topreco.network.export.reader import TopModel


class OnnxMethod(ModelFile):
    """A trained network, read from an `.onnx` file of `topreco export` and evaluated by onnxruntime."""

    @property
    def _model(self) -> "TopModel":
        from topreco.network.export.reader import TopModel

        with _onnx_errors(self.path):
            return TopModel(self.path, threads=self.threads or 0, batch_size=self.batch_size)

    @property
    def metadata(self) -> dict[str, Any]:
        """Description of configuration, training data, versions and results in the model file."""
        return self._model.metadata

    @property
    def folds(self) -> int:
        """Number of networks in the file."""
        return self._model.folds

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Timelike four-momenta of t and t̄; not valid where an input that exists is not finite."""
        from topreco.network.export.reader import INPUTS
        from topreco.network.splits import fold_of

        objects = {name: getattr(events, name) for name in INPUTS} | self.further_inputs(events)
        model = self._model
        with _onnx_errors(self.path):
            found = model.run(objects, fold=fold_of(events, model.folds), quantiles=self.quantiles)
        return TopPair(
            found.p4,
            found.valid,
            observables=found.observables,
            quality=None if found.quantiles is None else mass_quality(found.quantiles),
            uncertainty=found.uncertainty,
            quantiles=found.quantiles,
        )


class OnnxPosteriorMethod(PosteriorFile, OnnxMethod):
    """An exported network of the task `posterior`, which also gives samples."""

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        """Samples of the tops of each event, of equal weight, those of the network before its export."""
        from topreco.network.export.reader import INPUTS, normal_noise
        from topreco.network.splits import fold_of

        objects = {name: getattr(events, name) for name in INPUTS} | self.further_inputs(events)
        key = (events.dataset, events.run, events.luminosity_block, events.event)
        n = self.n_samples if n_samples is None else n_samples
        model = self._model
        with _onnx_errors(self.path):
            noise = normal_noise(key, n, self.seed)
            samples = model.run_samples(objects, noise, fold=fold_of(events, model.folds))
        return Posterior.equal(samples)


def onnx_method(path: str | Path, **options: Any) -> OnnxMethod:
    """Method of an exported model, whatever task it was trained for.

    Parameters
    ----------
    path, **options
        As of `ModelFile`.
    """
    method = OnnxMethod(path, **options)
    return OnnxPosteriorMethod(path, **options) if method.metadata["task"]["kind"] == "posterior" else method


@contextmanager
def _onnx_errors(path: str | Path) -> Iterator[None]:
    """Turn the errors of the reader, which knows nothing of this package, into this package's."""
    from topreco.network.export.reader import ModelError

    try:
        yield
    except ModelError as error:
        raise TopRecoError(str(error)) from error
    except ImportError as error:
        raise TopRecoError(
            f"{path}: {needs_extra('onnx', error)}; reading it needs onnxruntime alone"
        ) from error
