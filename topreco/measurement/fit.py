"""Likelihood fits of templates with pyhf (extra `fit`): values, covariance, pulls, and toys.

The likelihood is that of HistFactory [1]_; minuit finds its maximum and the covariance there.

References
----------
.. [1] K. Cranmer et al., HistFactory: a tool for creating statistical models for use with RooFit and
   RooStats, CERN-OPEN-2012-016.
.. [2] L. Heinrich, M. Feickert, G. Stark, pyhf: pure-Python implementation of HistFactory statistical models,
   J. Open Source Softw. 6 (2021) 2823.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from topreco.core.errors import TopRecoError, first_line, nearest, needs_extra
from topreco.core.files import plain, write_text
from topreco.core.progress import progress_bar
from topreco.core.statistics import Array
from topreco.evaluation.latex import write_latex
from topreco.evaluation.report import format_estimate, markdown_table
from topreco.measurement.cards import about_of

_STATISTICAL = "stat_"


@dataclass(frozen=True)
class FitResult:
    """Maximum of the likelihood.

    Attributes
    ----------
    names
        Names of the p parameters; those of several bins have the number of the bin in brackets.
    values, errors
        At the maximum, shape (p,).
    covariance
        Shape (p, p); zero for parameters that are fixed.
    prior
        Values and widths of the constraints, NaN for free parameters, shape (p, 2).
    two_nll
        −2 ln L at the maximum.
    """

    names: tuple[str, ...]
    values: Array
    errors: Array
    covariance: Array
    prior: Array
    two_nll: float

    @property
    def pulls(self) -> Array:
        """Pull (θ − θ₀)/σ₀ of constrained parameters, NaN for free ones, shape (p,)."""
        return (self.values - self.prior[:, 0]) / self.prior[:, 1]

    @property
    def constraints(self) -> Array:
        """Width σ/σ₀ of constrained parameters after the fit, NaN for free ones, shape (p,)."""
        return self.errors / self.prior[:, 1]

    def index(self, name: str) -> int:
        """Position of a parameter.

        Raises
        ------
        TopRecoError
            If there is none of this name.
        """
        if name not in self.names:
            raise TopRecoError(
                f"no parameter {name!r} in the fit{nearest(name, self.names)}; there are: "
                f"{', '.join(n for n in self.names if not n.startswith(_STATISTICAL))}"
            )
        return self.names.index(name)


class Unfolded(NamedTuple):
    """Unfolded cross sections.

    Attributes
    ----------
    bins
        Ranges of the k truth bins, as text.
    value
        Cross sections in pb, shape (k,).
    covariance
        Their covariance in pb², shape (k, k).
    expected
        Simulated cross sections in pb, shape (k,).
    """

    bins: tuple[str, ...]
    value: Array
    covariance: Array
    expected: Array


class Toys(NamedTuple):
    """Fits of pseudo-experiments.

    Attributes
    ----------
    names
        Names of the p parameters.
    truth
        Values that they were thrown with, shape (p,).
    values, errors
        Of n fits, shape (n, p).
    failed
        Number of further fits that did not converge.
    """

    names: tuple[str, ...]
    truth: Array
    values: Array
    errors: Array
    failed: int

    @property
    def pulls(self) -> Array:
        """Pulls (θ − θ_true)/σ, NaN for fixed parameters, shape (n, p)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            pulls = (self.values - self.truth) / self.errors
        return np.where(self.errors > 0, pulls, np.nan)


class Model:
    """Statistical model of a workspace, and the data in it.

    Parameters
    ----------
    source
        Workspace of pyhf: a JSON file, or its content.

    Raises
    ------
    TopRecoError
        If pyhf is missing or the workspace cannot be read.
    """

    def __init__(self, source: str | Path | Mapping[str, Any]) -> None:
        self._pyhf = _pyhf()
        where = "workspace"
        if isinstance(source, str | Path):
            where = str(source)
            source = _read_json(Path(source))
        try:
            workspace = self._pyhf.Workspace(source)
            self.model = workspace.model()
            self.data = np.asarray(workspace.data(self.model), float)
        except (
            self._pyhf.exceptions.InvalidSpecification,
            self._pyhf.exceptions.InvalidModel,
            KeyError,
        ) as error:
            raise TopRecoError(f"{where}: no workspace that pyhf can use ({first_line(error)})") from error
        bins = self.model.config.nmaindata + self.model.config.nauxdata
        if len(self.data) != bins:
            raise TopRecoError(
                f"{where}: no workspace that pyhf can use ({len(self.data)} numbers of data, {bins} expected)"
            )
        self.names = tuple(self.model.config.par_names)
        self.initial = np.asarray(self.model.config.suggested_init(), float)

    @property
    def prior(self) -> Array:
        """Values and widths of the constraints, NaN for free parameters, shape (p, 2)."""
        config = self.model.config
        prior = np.full((len(self.names), 2), np.nan)
        for name in config.par_order:
            parameters = config.param_set(name)
            if parameters.constrained:
                where = config.par_slice(name)
                prior[where, 0] = parameters.suggested_init
                prior[where, 1] = getattr(parameters, "sigmas", [1.0] * parameters.n_parameters)
        return prior

    def with_values(self, values: Mapping[str, float]) -> Array:
        """All parameters, of which some have the given values, shape (p,).

        Raises
        ------
        TopRecoError
            If there is no such parameter, or the fit does not reach the value.
        """
        parameters = self.initial.copy()
        for name, value in values.items():
            if name not in self.names:
                known = ", ".join(n for n in self.names if not n.startswith(_STATISTICAL))
                raise TopRecoError(
                    f"no parameter {name!r} in the workspace{nearest(name, self.names)}; there are: {known}"
                )
            index = self.names.index(name)
            low, high = self.model.config.suggested_bounds()[index]
            if not low <= value <= high:
                raise TopRecoError(f"{name}={value:g} is outside of its range, {low:g} to {high:g}")
            parameters[index] = value
        return parameters

    def expected(self, parameters: Array) -> Array:
        """Expected events of all bins, followed by those of the constraints, for parameters (p,)."""
        return np.asarray(self.model.expected_data(parameters), float)

    def sample(self, parameters: Array, rng: np.random.Generator) -> Array:
        """A pseudo-experiment: Poisson numbers in bins, and Gaussian measurements of the constraints."""
        main = rng.poisson(np.asarray(self.model.expected_actualdata(parameters), float)).astype(float)
        prior, config = self.prior, self.model.config
        auxiliary = [
            rng.normal(parameters[config.par_slice(name)], prior[config.par_slice(name), 1])
            for name in config.auxdata_order
        ]
        return np.concatenate([main, *auxiliary])

    def fit(self, data: Array | None = None) -> FitResult:
        """Maximise the likelihood.

        Parameters
        ----------
        data
            Events in all bins and the measurements of the constraints; None: those of the workspace.

        Raises
        ------
        TopRecoError
            If the fit does not converge.
        """
        data = self.data if data is None else data
        try:
            found, two_nll, minimum = self._pyhf.infer.mle.fit(
                data,
                self.model,
                return_uncertainties=True,
                return_fitted_val=True,
                return_result_obj=True,
            )
        except self._pyhf.exceptions.FailedMinimization as error:
            raise TopRecoError(
                f"the fit does not converge ({first_line(error)}); look for empty or negative bins, and for "
                "nuisances that hardly change anything"
            ) from error
        values, errors = np.asarray(found, float).T
        covariance = np.asarray(minimum.minuit.covariance, float)
        return FitResult(self.names, values, errors, covariance, self.prior, float(two_nll))

    def toys(self, parameters: Array, n: int, *, seed: int = 1, progress: bool = False) -> Toys:
        """Throw pseudo-experiments and fit each of them.

        Parameters
        ----------
        parameters
            True values, shape (p,).
        n
            Number of pseudo-experiments.
        seed
            With it, every pseudo-experiment is the same again.
        progress
            Show a progress bar.
        """
        found, failed = [], 0
        with progress_bar("toys", n, show=progress) as advance:
            for one in np.random.SeedSequence(seed).spawn(n):
                try:
                    found.append(self.fit(self.sample(parameters, np.random.default_rng(one))))
                except TopRecoError:
                    failed += 1
                advance()
        shape = (len(found), len(self.names))
        return Toys(
            self.names,
            parameters,
            np.reshape([fit.values for fit in found], shape),
            np.reshape([fit.errors for fit in found], shape),
            failed,
        )


def _pyhf() -> Any:
    """The package pyhf with minuit, which finds the errors, too."""
    try:
        import iminuit  # noqa: F401
        import pyhf
    except ImportError as error:
        raise TopRecoError(f"fits of templates: {needs_extra('fit', error)}") from error
    pyhf.set_backend("numpy", pyhf.optimize.minuit_optimizer(verbose=0))
    # It logs pages about a fit that fails, of which the error says what matters.
    logging.getLogger("pyhf").setLevel(logging.CRITICAL)
    return pyhf


def _read_json(path: Path) -> dict[str, Any]:
    expected = "a workspace of `topreco templates` expected"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TopRecoError(f"{path}: not readable as JSON ({first_line(error)}); {expected}") from error
    if not isinstance(content, dict):
        raise TopRecoError(f"{path}: {type(content).__name__} found; {expected}")
    return content


def unfolded(fit: FitResult, about: Mapping[str, Any]) -> Unfolded | None:
    """Unfolded cross sections of a fit, with their covariance; None if nothing was unfolded.

    Parameters
    ----------
    fit
        Fit of a workspace.
    about
        Content of the file ``STEM_about.json`` beside it.

    Raises
    ------
    TopRecoError
        If the fit lacks the factor of a truth bin.
    """
    bins = about.get("truth_bins")
    if not bins:
        return None
    index = [fit.index(entry["parameter"]) for entry in bins]
    expected = np.array([entry["cross_section_pb"] for entry in bins], float)
    covariance = fit.covariance[np.ix_(index, index)] * expected[:, None] * expected
    return Unfolded(tuple(entry["bin"] for entry in bins), fit.values[index] * expected, covariance, expected)


# ---- files -----------------------------------------------------------------------------------------------


def files_of_fit(folder: str | Path) -> list[Path]:
    """Files that `write_fit` writes."""
    return [Path(folder) / name for name in ("fit.json", "fit.md", "fit.tex")]


def about_workspace(path: str | Path) -> Mapping[str, Any]:
    """Content of the file beside a workspace that says what its signals are; empty without that file."""
    about = about_of(path)
    return _read_json(about) if about.is_file() else {}


def write_fit(
    folder: str | Path,
    fit: FitResult,
    *,
    spectrum: Unfolded | None = None,
    toys: Toys | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a fit as JSON, and its tables as Markdown and LaTeX.

    Parameters
    ----------
    folder
        Where to write ``fit.json``, ``fit.md`` and ``fit.tex``; made if need be.
    fit
        Result.
    spectrum
        Unfolded cross sections.
    toys
        Pseudo-experiments.
    about
        Plain data to put into the JSON file.

    Returns
    -------
    paths
        Files written, each whole or not at all.

    Raises
    ------
    TopRecoError
        If the folder cannot be written.
    """
    paths = files_of_fit(folder)
    content: dict[str, Any] = {
        **(about or {}),
        "parameters": list(fit.names),
        "values": fit.values.tolist(),
        "errors": fit.errors.tolist(),
        "covariance": fit.covariance.tolist(),
        "pulls": fit.pulls.tolist(),
        "constraints": fit.constraints.tolist(),
        "two_nll": fit.two_nll,
    }
    if spectrum is not None:
        content["unfolded"] = {
            "bins": list(spectrum.bins),
            "cross_section_pb": spectrum.value.tolist(),
            "covariance_pb2": spectrum.covariance.tolist(),
            "simulated_pb": spectrum.expected.tolist(),
        }
    if toys is not None:
        content["toys"] = {
            "n": len(toys.values),
            "failed": toys.failed,
            "truth": toys.truth.tolist(),
            "values": toys.values.tolist(),
            "errors": toys.errors.tolist(),
        }
    write_text(paths[0], json.dumps(plain(content), indent=1) + "\n")
    text = fit_markdown(fit, spectrum=spectrum, toys=toys)
    write_text(paths[1], text)
    write_latex(paths[1], text)
    return paths


def fit_markdown(fit: FitResult, *, spectrum: Unfolded | None = None, toys: Toys | None = None) -> str:
    """Tables of a fit as Markdown: parameters, the unfolded spectrum and pulls of toys.

    Parameters
    ----------
    fit
        Result. Parameters of statistical errors of single bins are left out.
    spectrum
        Unfolded cross sections.
    toys
        Pseudo-experiments.
    """
    shown = [i for i, name in enumerate(fit.names) if not name.startswith(_STATISTICAL)]
    parts = [
        "### Parameters\n",
        markdown_table(
            ["parameter", "value", "pull", "constraint"],
            [
                [
                    fit.names[i],
                    format_estimate(fit.values[i], fit.errors[i]),
                    _number(fit.pulls[i], "+.2f"),
                    _number(fit.constraints[i], ".2f"),
                ]
                for i in shown
            ],
        ),
    ]
    if spectrum is not None:
        parts += ["### Unfolded cross section in pb\n", markdown_table(*_spectrum_rows(spectrum))]
    if toys is not None and len(toys.values) > 1:
        parts += [
            f"### Pulls of {len(toys.values)} pseudo-experiments\n",
            markdown_table(*_pull_rows(toys, shown)),
        ]
        if toys.failed:
            parts.append(f"{toys.failed} further fits did not converge.\n")
    return "\n".join(parts)


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""


def _spectrum_rows(spectrum: Unfolded) -> tuple[list[str], list[list[str]]]:
    errors = np.sqrt(np.diagonal(spectrum.covariance))
    correlation = spectrum.covariance / errors[:, None] / errors
    rows = [
        [
            text,
            format_estimate(spectrum.value[i], errors[i]),
            f"{spectrum.expected[i]:.4g}",
            *(f"{rho:+.2f}" for rho in correlation[i]),
        ]
        for i, text in enumerate(spectrum.bins)
    ]
    headings = [f"ρ {i}" for i in range(1, len(rows) + 1)]
    return ["true bin", "unfolded", "simulated", *headings], rows


def _pull_rows(toys: Toys, shown: Sequence[int]) -> tuple[list[str], list[list[str]]]:
    n = len(toys.values)
    rows = []
    for i in shown:
        pulls = toys.pulls[:, i]
        if not np.isfinite(pulls).all():
            continue
        width = pulls.std(ddof=1)
        rows.append(
            [
                toys.names[i],
                f"{toys.truth[i]:.4g}",
                format_estimate(toys.values[:, i].mean(), toys.values[:, i].std(ddof=1) / math.sqrt(n)),
                format_estimate(pulls.mean(), width / math.sqrt(n)),
                format_estimate(width, width / math.sqrt(2 * (n - 1))),
            ]
        )
    return ["parameter", "truth", "mean", "mean of pulls", "width of pulls"], rows
