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
    """A trained network as `topreco export` wrote it, evaluated by onnxruntime: needs no torch.

    Pickles as the file's path alone; each process opens the file once, however many chunks it works on.

    Parameters
    ----------
    path
        Model file (`.onnx`).
    name
        Name in histograms and tables; by default the file's stem.
    batch_size
        Events per forward pass. It changes memory and speed, not results.
    threads
        Threads during a call; None takes all cores. Workers that share a machine want 1.
    ship
        Pickle with the file's content, for workers that cannot see the file.
    quantiles
        Evaluate the uncertainty of each event, too, of models that have it.

    Raises
    ------
    TopRecoError
        If the file is not a usable model, or onnxruntime is missing.
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
        super().__init__(
            Path(path).absolute(),
            name=name,
            batch_size=batch_size,
            threads=threads,
            ship=ship,
            quantiles=quantiles,
        )
        _ = self._model  # Fail here, not in the first worker.

    @property
    def _model(self) -> "TopModel":
        from topreco.network.export.reader import TopModel

        with _onnx_errors(self.path):
            return TopModel(self.path, threads=self.threads or 0, batch_size=self.batch_size)

    @property
    def uses_event_key(self) -> bool:
        """Whether (dataset, run, lumi, event) matters: it decides which of several folds reconstructs."""
        return self._model.folds > 1

    @property
    def metadata(self) -> dict[str, Any]:
        """What the model file says of its configuration, training data, versions and results."""
        return self._model.metadata

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event.

        Parameters
        ----------
        events
            Selected events.

        Returns
        -------
        pair
            Timelike four-momenta of t and t̄ in GeV; not valid where an input that exists is not finite.
        """
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
    """What the reader of an exported model raises, which knows nothing of this package, as its error."""
    from topreco.network.export.reader import ModelError

    try:
        yield
    except ModelError as error:
        raise TopRecoError(str(error)) from error
    except ImportError as error:
        raise TopRecoError(
            f"{path}: {needs_extra('onnx', error)}; reading it needs onnxruntime alone"
        ) from error
