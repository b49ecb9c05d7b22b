"""Exported networks as methods, without torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from topreco.core.errors import TopRecoError, needs_extra
from topreco.core.events import DileptonEvents, TopPair, mass_quality
from topreco.reconstruction.model_files import ModelFile

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

        objects = {name: getattr(events, name) for name in INPUTS}
        model = self._model
        with _onnx_errors(self.path):
            p4, valid, quantiles, std = model.run(
                objects, fold=fold_of(events, model.folds), quantiles=self.quantiles
            )
        quality = None if quantiles is None else mass_quality(quantiles)
        return TopPair(p4, valid, quality=quality, uncertainty=std, quantiles=quantiles)


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
