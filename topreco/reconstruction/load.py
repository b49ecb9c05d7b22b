"""Methods by name or file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from topreco.config import SolverConfig
from topreco.core.errors import TopRecoError
from topreco.core.method import Method
from topreco.reconstruction.analytic import ANALYTIC_METHODS, AnalyticMethod
from topreco.reconstruction.model_files import shipped_models
from topreco.reconstruction.network import NetworkMethod
from topreco.reconstruction.onnx import OnnxMethod
from topreco.reconstruction.wrappers import QualityCut


def load(
    source: str | Path,
    *,
    name: str | None = None,
    threads: int | None = None,
    solvers: SolverConfig | None = None,
    ship: bool = False,
    quantiles: bool = True,
) -> Method:
    """Method by model file, or by the name of a shipped model or an analytic method.

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
        return AnalyticMethod(str(source), solvers, name=name, quantiles=quantiles)
    if Path(source).suffix == ".onnx":
        return OnnxMethod(source, name=name, threads=threads, ship=ship, quantiles=quantiles)
    if str(source) not in shipped_models() and Path(source).suffix != ".safetensors":
        raise TopRecoError(
            f"method {str(source)!r}: a .safetensors file written by `topreco train` expected, an .onnx file "
            f"written by `topreco export`, or one of {', '.join((*shipped_models(), *ANALYTIC_METHODS))}"
        )
    return NetworkMethod(source, name=name, threads=threads, ship=ship, quantiles=quantiles)


def load_methods(
    methods: Sequence[Method | str | Path],
    *,
    threads: int | None = None,
    solvers: SolverConfig | None = None,
    ship: bool = False,
    quantiles: bool = True,
    min_quality: Mapping[str, float] | None = None,
) -> list[Method]:
    """Reconstructors with names of their own.

    Parameters
    ----------
    methods
        Reconstructors, model files or names that `topreco.load` knows.
    threads
        Threads per call of the networks that are loaded; None leaves torch's setting.
    solvers
        Settings of the analytic methods that are given by name.
    ship
        Pickle the model files that are loaded with their content.
    quantiles
        Evaluate the uncertainty of each event, too, of models that are loaded and have it.
    min_quality
        Smallest quality of an event that counts as solved, by name of the method.

    Returns
    -------
    reconstructors
        In the order given.

    Raises
    ------
    TopRecoError
        If a method cannot be loaded, two have the same name, or `min_quality` names none of them.
    """
    loaded = [
        load(m, threads=threads, solvers=solvers, ship=ship, quantiles=quantiles)
        if isinstance(m, str | Path)
        else m
        for m in methods
    ]
    names = [method.name for method in loaded]
    if len(set(names)) < len(names):
        raise TopRecoError(f"methods: every method needs a name of its own, found {', '.join(names)}")
    cuts = min_quality or {}
    if unknown := sorted(cuts.keys() - set(names)):
        raise TopRecoError(f"min_quality.{unknown[0]}: no such method; there are {', '.join(names)}")
    return [QualityCut(m, cuts[m.name]) if m.name in cuts else m for m in loaded]
