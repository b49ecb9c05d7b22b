"""The classical methods of `topreco.solvers` as methods."""

from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from topreco.config import SolverConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, TopPair

if TYPE_CHECKING:
    from topreco.solvers.response import DetectorResponse


class AnalyticMethod:
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
def _read_response(path: Path | None) -> "DetectorResponse":
    from topreco.solvers.response import load_detector_response

    return load_detector_response(path)


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
