"""Methods by name or model file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from topreco.config import SolverConfig, Summary
from topreco.core.errors import TopRecoError
from topreco.core.method import Method, NamedCallable, as_method, gives_samples
from topreco.core.shipped import shipped_models
from topreco.core.threads import checked_device
from topreco.reconstruction.analytic import ANALYTIC_METHODS, AnalyticMethod
from topreco.reconstruction.model_files import DESCRIPTIONS
from topreco.reconstruction.network import DensityRatio, network_method
from topreco.reconstruction.onnx import onnx_method
from topreco.reconstruction.wrappers import Median, Mode, QualityCut


def methods() -> dict[str, str]:
    """Names that `load` knows, shipped models first, with one line about each."""
    models = {name: DESCRIPTIONS[name] for name in shipped_models()}
    return models | {name: kind.description for name, kind in ANALYTIC_METHODS.items()}


def load(
    source: str | Path,
    *,
    name: str | None = None,
    threads: int | None = None,
    solvers: SolverConfig | None = None,
    ship: bool = False,
    quantiles: bool = True,
    summary: Summary = "mean",
    device: str = "cpu",
) -> Method:
    """Method by model file, or by the name of a shipped model or an analytic method.

    Parameters
    ----------
    source
        A model file (`.safetensors`, or `.onnx`, which needs no torch), or one of the names of `methods`.
    name
        Name in histograms and tables in place of the file's stem or the method's name.
    threads
        Threads of each call; None leaves the default of torch, onnxruntime or numba, most often all cores.
        Predictions do not depend on it. See `topreco.core.threads`.
    solvers
        Settings of an analytic method.
    ship
        Pickle a model file with its content, for workers that cannot see the file.
    quantiles
        Evaluate the uncertainty of each event, too, of methods that have it, for about 1.4 times the time.
    summary
        Values of observables in `TopPair.observables`: "mean" for what the method says; "median" for the
        medians of its quantiles, which are evaluated then; "mode" for the modes of its samples. A method
        without quantiles or without samples keeps its values.
    device
        Where torch evaluates a network: cpu, cuda, cuda:1, mps, or auto for CUDA where there is any. Other
        methods compute on the CPU.

    Returns
    -------
    method
        A callable from `DileptonEvents` to `TopPair`; of a model file of the task `ratio` a
        `topreco.reconstruction.network.DensityRatio`, from `DileptonEvents` to weights.

    Raises
    ------
    TopRecoError
        If there is no such method, or a file is not usable.
    """
    if not isinstance(source, str | Path):
        raise TopRecoError(f"method {source!r}: a name or a model file expected")
    if summary not in get_args(Summary):
        raise TopRecoError(f"summary: {summary!r} found, allowed are {', '.join(get_args(Summary))}")
    checked_device(device)
    quantiles = quantiles or summary == "median"
    found = _load(source, name, threads, solvers, ship=ship, quantiles=quantiles, device=device)
    if isinstance(found, DensityRatio):
        # Not a method: it gives weights, and `load_method` refuses it where tops are wanted.
        return cast("Method", found)
    if summary == "mode" and gives_samples(found):
        return Mode(found)
    return Median(found) if summary == "median" else found


def _load(
    source: str | Path,
    name: str | None,
    threads: int | None,
    solvers: SolverConfig | None,
    *,
    ship: bool,
    quantiles: bool,
    device: str,
) -> Method | DensityRatio:
    """The method itself."""
    if str(source) in ANALYTIC_METHODS:
        return AnalyticMethod(str(source), solvers, name=name, threads=threads, quantiles=quantiles)
    if Path(source).suffix == ".onnx":
        return onnx_method(source, name=name, threads=threads, ship=ship, quantiles=quantiles)
    if str(source) not in methods() and Path(source).suffix != ".safetensors":
        raise TopRecoError(
            f"method {str(source)!r}: a .safetensors file written by `topreco train` expected, an .onnx file "
            f"written by `topreco export`, or one of {', '.join(methods())}"
        )
    return network_method(source, name=name, threads=threads, ship=ship, quantiles=quantiles, device=device)


def load_method(source: str | Path, **options: Any) -> Method:
    """As `load`, but refuse what does not reconstruct tops.

    Parameters
    ----------
    source, **options
        As of `load`.

    Raises
    ------
    TopRecoError
        As `load`, and if the model file holds a ratio of densities.
    """
    found: object = load(source, **options)
    if isinstance(found, DensityRatio):
        raise TopRecoError(
            f"method {str(source)!r}: holds a model of the task 'ratio', whose weights topreco.load gives; a "
            "method that reconstructs tops expected"
        )
    return cast("Method", found)


def load_ratios(files: Mapping[str, str | Path], *, threads: int | None = None) -> dict[str, DensityRatio]:
    """Learned observables: ratios of densities of reconstructed objects.

    Parameters
    ----------
    files
        Model files of the task `ratio` by the name of the observable.
    threads
        As of `load`.

    Raises
    ------
    TopRecoError
        If a file holds something else.
    """
    found: dict[str, DensityRatio] = {}
    for name, path in files.items():
        loaded: object = load(path, name=name, threads=threads)
        if not isinstance(loaded, DensityRatio):
            raise TopRecoError(f"ratios.{name}: {path} holds no ratio; a model of the task 'ratio' expected")
        if loaded.inputs == "generated":
            raise TopRecoError(
                f"ratios.{name}: the ratio of {path} sees generated tops and leptons; one of reconstructed "
                "objects expected (model.inputs=objects)"
            )
        found[name] = loaded
    return found


def load_methods(
    methods: Sequence[NamedCallable | str | Path],
    *,
    threads: int | None = None,
    solvers: SolverConfig | None = None,
    ship: bool = False,
    quantiles: bool = True,
    summary: Summary = "mean",
    min_quality: Mapping[str, float] | None = None,
    device: str = "cpu",
) -> list[Method]:
    """Complete methods with names of their own.

    Parameters
    ----------
    methods
        Methods, callables with a name, model files or names that `topreco.load` knows.
    threads
        Threads of each call of the methods that are loaded, see `topreco.core.threads`.
    solvers
        Settings of the analytic methods that are given by name.
    ship
        Pickle the model files that are loaded with their content.
    quantiles
        Evaluate the uncertainty of each event, too, of models that are loaded and have it.
    summary
        Values of observables of the methods that are loaded, as in `load`.
    min_quality
        Smallest quality of an event that counts as solved, by name of the method.
    device
        Device of networks that are loaded, as in `load`.

    Returns
    -------
    methods
        In the order given.

    Raises
    ------
    TopRecoError
        If a method cannot be loaded, two have the same name, or `min_quality` names none of them.
    """
    loaded = [
        load_method(
            m,
            threads=threads,
            solvers=solvers,
            ship=ship,
            quantiles=quantiles,
            summary=summary,
            device=device,
        )
        if isinstance(m, str | Path)
        else as_method(m)
        for m in methods
    ]
    names = [method.name for method in loaded]
    if len(set(names)) < len(names):
        raise TopRecoError(f"methods: every method needs a name of its own, found {', '.join(names)}")
    cuts = min_quality or {}
    if unknown := sorted(cuts.keys() - set(names)):
        raise TopRecoError(f"min_quality.{unknown[0]}: no such method; there are {', '.join(names)}")
    return [QualityCut(m, cuts[m.name]) if m.name in cuts else m for m in loaded]
