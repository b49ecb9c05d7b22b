"""Reconstructors: everything that turns `DileptonEvents` into a `TopPair`, behind one call.

`load` finds one by name or file; networks and analytic methods look the same to the rest of the program.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache, partial
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from topreco.config import SolverConfig
from topreco.core.errors import TopRecoError, needs_extra
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, TopPair, mass_quality
from topreco.core.files import complete_file
from topreco.core.fourvector import mass
from topreco.reconstruction.recalibration import ResponseCurve

if TYPE_CHECKING:
    from topreco.network.export.reader import TopModel
    from topreco.network.model_file import Artefact
    from topreco.solvers.response import Response


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


class _ModelFile:
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


class NetworkReconstructor(_ModelFile):
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
    def artefact(self) -> "Artefact":
        """The networks and metadata of the model file."""
        # The modification time makes a file that was written anew a different model.
        changed = self.path.stat().st_mtime_ns if self.path.exists() else 0
        return _read_artefact(self.path, changed)

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


class OnnxReconstructor(_ModelFile):
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


@lru_cache(maxsize=8)
def _read_artefact(path: Path, changed: int) -> "Artefact":  # noqa: ARG001 - part of the cache's key
    from topreco.network.model_file import load_artefact

    return load_artefact(path)


class AnalyticReconstructor:
    """A classical method of `topreco.solvers`.

    Parameters
    ----------
    method
        One of `ANALYTIC_METHODS`.
    config
        Masses, smearing and pairing.
    name
        Name in histograms and tables; by default that of the method.
    quantiles
        Find the quantiles of observables over the smeared copies, too.

    Raises
    ------
    TopRecoError
        If there is no such method, or the response histograms cannot be read.
    """

    def __init__(
        self,
        method: str,
        config: SolverConfig | None = None,
        *,
        name: str | None = None,
        quantiles: bool = True,
    ) -> None:
        if method not in ANALYTIC_METHODS:
            raise TopRecoError(f"analytic method {method!r}: allowed are {', '.join(ANALYTIC_METHODS)}")
        self.method = method
        self.config = config or SolverConfig()
        self.name = method if name is None else name
        self.quantiles = quantiles
        if method in _SMEARED:
            _read_response(self.config.response)  # Fail here, not in the first worker.

    @property
    def uses_event_key(self) -> bool:
        """Whether (dataset, run, lumi, event) matters: it seeds the smearing."""
        return self.method in _SMEARED

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event.

        Parameters
        ----------
        events
            Selected events.

        Returns
        -------
        pair
            Not valid where the method has no solution or there are no b candidates.
        """
        if self.method in _SMEARED:
            return _smeared(self.method, events, self.config, quantiles=self.quantiles)
        return ANALYTIC_METHODS[self.method](events, self.config)


def _smeared(
    method: Any, events: DileptonEvents, config: SolverConfig, *, quantiles: bool = False
) -> TopPair:
    """Weighted mean over smeared copies of each event; quality is the sum of weights."""
    from topreco.solvers.smearing import DRAWN_OBSERVABLES, smear_and_solve

    result = smear_and_solve(
        events,
        _read_response(config.response),
        method=method,
        n_draws=config.n_draws,
        seed=config.seed,
        pairing=config.pairing,
        m_top=config.m_top,
        reset_energy=config.reset_energy,
        threads=config.threads,
        quantiles=quantiles,
    )
    by_name = None
    if quantiles:
        by_name = {name: result.quantiles[:, i] for i, name in enumerate(DRAWN_OBSERVABLES)}
    return TopPair(
        result.p4,
        result.n_solved > 0,
        quality=result.weight,
        uncertainty=result.spread,
        quantiles=by_name,
    )


def _unsmeared(solver: str, events: DileptonEvents, config: SolverConfig) -> TopPair:
    """The solution of the smallest m_tt of the event as measured."""
    module = import_module(f"topreco.solvers.{solver}")
    solutions = module.solve(*_visible(events), **_options(config))
    return _pair(events, solutions.neutrinos[:, 0], solutions.count > 0)


def _closest(events: DileptonEvents, config: SolverConfig) -> TopPair:
    """The ellipses' intersection or closest approach; quality is minus the distance in GeV."""
    from topreco.solvers import ellipse

    result = ellipse.closest_approach(*_visible(events), **_options(config))
    return _pair(events, result.neutrinos, np.isfinite(result.distance), quality=-result.distance)


def _neutrino_weighting(events: DileptonEvents, config: SolverConfig) -> TopPair:
    """The scanned neutrino pair that explains MET best; quality is its weight."""
    from topreco.solvers import neutrino_weighting

    # At the maximum itself the method is the ellipses' closest approach once more. Solutions that MET's
    # resolution cannot tell from it are as good, and among them the smallest m_tt is right most often.
    result = neutrino_weighting.solve(*_visible(events), comparable=0.6, **_options(config))
    return _pair(events, result.neutrinos, np.isfinite(result.weight), quality=result.weight)


def _loose(events: DileptonEvents, config: SolverConfig) -> TopPair:
    """The tt̄ system alone, without the top mass."""
    from topreco.solvers import loose

    result = loose.solve(*_visible(events), m_w=config.m_w)
    tops = np.full((len(events), 2, 4), np.nan)
    return TopPair(tops, result.valid, ttbar=result.ttbar)


def _visible(events: DileptonEvents) -> tuple[FloatArray, ...]:
    b = events.b_candidate_p4
    return events.lepton_plus, events.lepton_minus, b[:, 0], b[:, 1], events.met


def _options(config: SolverConfig) -> dict[str, Any]:
    """Keywords that the solvers with a top mass share."""
    return {
        "m_top": config.m_top,
        "m_antitop": config.m_top,
        "m_w_plus": config.m_w,
        "m_w_minus": config.m_w,
        "threads": config.threads,
    }


def _pair(
    events: DileptonEvents, neutrinos: FloatArray, valid: BoolArray, quality: FloatArray | None = None
) -> TopPair:
    """Tops t = ℓ⁺ + b + ν and t̄ = ℓ⁻ + b̄ + ν̄, from neutrinos (n, 2, 4)."""
    p4 = events.lepton_p4 + events.b_candidate_p4 + neutrinos
    return TopPair(np.where(valid[:, None, None], p4, np.nan), valid, quality=quality)


@lru_cache(maxsize=8)
def _read_response(path: Path | None) -> "Response":
    from topreco.solvers.response import load_response

    return load_response(path)


ANALYTIC_METHODS: dict[str, Callable[[DileptonEvents, SolverConfig], TopPair]] = {
    "sonnenschein": partial(_smeared, "sonnenschein"),
    "ellipse": partial(_smeared, "ellipse"),
    "sonnenschein_unsmeared": partial(_unsmeared, "sonnenschein"),
    "ellipse_unsmeared": partial(_unsmeared, "ellipse"),
    "ellipse_closest": _closest,
    "neutrino_weighting": _neutrino_weighting,
    "loose": _loose,
}
"""The classical methods by name."""

_SMEARED = ("sonnenschein", "ellipse")


class Recalibrated:
    """A method with the response of its m_tt recalibrated: both tops times one factor per event.

    Angles, rapidities and quantiles, which are of the truth, stay as they are.

    Parameters
    ----------
    method
        The method.
    curve
        From `topreco.reconstruction.recalibration.fit_response_curve` or `ResponseCurve.read`.
    name
        Name in histograms and tables; by default that of the method.
    """

    def __init__(self, method: Reconstructor, curve: ResponseCurve, *, name: str | None = None) -> None:
        self.method = method
        self.curve = curve
        self.name = method.name if name is None else name

    @property
    def uses_event_key(self) -> bool:
        """Whether (dataset, run, lumi, event) matters to the method."""
        return getattr(self.method, "uses_event_key", True)

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event.

        Parameters
        ----------
        events
            Selected events.

        Returns
        -------
        pair
            Valid where the method's is.
        """
        pair = self.method(events)
        factor = self.curve.factor(mass(pair.system))

        def scaled(column: FloatArray | None) -> FloatArray | None:
            return None if column is None else column * factor.reshape(-1, *[1] * (column.ndim - 1))

        return dataclasses.replace(
            pair,
            p4=pair.p4 * factor[:, None, None],
            ttbar=scaled(pair.ttbar),
            uncertainty=scaled(pair.uncertainty),
        )


class QualityCut:
    """A method of which only the events of sufficient quality count as solved.

    Parameters
    ----------
    method
        The method, which keeps its name.
    minimum
        Smallest `TopPair.quality`; its meaning belongs to the method.
    """

    def __init__(self, method: Reconstructor, minimum: float) -> None:
        self.method = method
        self.minimum = minimum
        self.name = method.name

    @property
    def path(self) -> Path | None:
        """The model file of the method, if it has one."""
        return getattr(self.method, "path", None)

    @property
    def uses_event_key(self) -> bool:
        """Whether (dataset, run, lumi, event) matters to the method."""
        return getattr(self.method, "uses_event_key", True)

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event.

        Parameters
        ----------
        events
            Selected events.

        Returns
        -------
        pair
            Not valid where the quality is lower than the minimum.

        Raises
        ------
        TopRecoError
            If the method gives no quality.
        """
        pair = self.method(events)
        if pair.quality is None:
            raise TopRecoError(f"min_quality: method {self.name!r} tells no quality of its events")
        return dataclasses.replace(pair, valid=pair.valid & (pair.quality >= self.minimum))


def load(
    source: str | Path,
    *,
    name: str | None = None,
    threads: int | None = None,
    solvers: SolverConfig | None = None,
    ship: bool = False,
    quantiles: bool = True,
) -> Reconstructor:
    """Reconstructor by model file, or by the name of a shipped model or an analytic method.

    Parameters
    ----------
    source
        A model file (`.safetensors`, or `.onnx`, which needs no torch), one of `shipped_models`, or one of
        `ANALYTIC_METHODS`.
    name
        Name in histograms and tables in place of the file's stem or the method's name.
    threads
        Threads per call of a network; None leaves torch's setting, or takes all cores.
    solvers
        Settings of an analytic method.
    ship
        Pickle a model file with its content, for workers that cannot see the file.
    quantiles
        Evaluate the uncertainty of each event, too, of methods that have it, for about 1.4 times the time.

    Returns
    -------
    reconstructor
        A callable from `DileptonEvents` to `TopPair`.

    Raises
    ------
    TopRecoError
        If there is no such method, or a file is not usable.
    """
    if str(source) in ANALYTIC_METHODS:
        return AnalyticReconstructor(str(source), solvers, name=name, quantiles=quantiles)
    if Path(source).suffix == ".onnx":
        return OnnxReconstructor(source, name=name, threads=threads, ship=ship, quantiles=quantiles)
    if str(source) not in shipped_models() and Path(source).suffix != ".safetensors":
        raise TopRecoError(
            f"method {str(source)!r}: a .safetensors file written by `topreco train` expected, an .onnx file "
            f"written by `topreco export`, or one of {', '.join((*shipped_models(), *ANALYTIC_METHODS))}"
        )
    return NetworkReconstructor(source, name=name, threads=threads, ship=ship, quantiles=quantiles)
