"""The analytic methods of `topreco.solvers` as methods."""

from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from topreco.config import SolverConfig
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, Posterior, TopPair
from topreco.core.files import sha256_of
from topreco.core.fourvector import from_three_momentum
from topreco.core.method import as_sampler, checked_samples, fingerprint_of
from topreco.core.threads import checked_threads
from topreco.reconstruction.model_files import modified

if TYPE_CHECKING:
    from topreco.solvers.response import DetectorResponse
    from topreco.solvers.smearing import Smeared


class AnalyticMethod:
    """An analytic method of `topreco.solvers`.

    Parameters
    ----------
    method
        One of `ANALYTIC_METHODS`.
    config
        Masses, smearing and pairing.
    name
        Name in histograms and tables; by default that of the method.
    threads
        Threads of each call, see `topreco.core.threads`.
    quantiles
        Find the quantiles of observables over the smeared copies, too.

    Raises
    ------
    TopRecoError
        If there is no such method, or the detector response cannot be read.
    """

    def __init__(
        self,
        method: str,
        config: SolverConfig | None = None,
        *,
        name: str | None = None,
        threads: int | None = None,
        quantiles: bool = True,
    ) -> None:
        if method not in ANALYTIC_METHODS:
            raise TopRecoError(f"analytic method {method!r}: allowed are {', '.join(ANALYTIC_METHODS)}")
        self.method = method
        self.config = (config or SolverConfig()).absolute()
        self.name = method if name is None else name
        self.threads = checked_threads(threads)
        self.quantiles = quantiles
        if self.uses_event_key:
            _ = self.response  # Fail here, not in the first worker.

    @property
    def response(self) -> "DetectorResponse":
        """The detector response that smeared methods draw from."""
        return _read_response(self.config.response, modified(self.config.response))

    @property
    def uses_event_key(self) -> bool:
        """True if the method smears: the event's key seeds the draws."""
        return ANALYTIC_METHODS[self.method].smeared

    @property
    def fingerprint(self) -> str:
        """Digest of the settings that the method uses, and of the detector response if it smears."""
        kind = ANALYTIC_METHODS[self.method]
        settings: dict[str, Any] = self.config.model_dump(mode="json", include=set(kind.settings))
        if kind.smeared:
            settings["response"] = _response_digest(self.config.response, modified(self.config.response))
            settings["quantiles"] = self.quantiles
        return fingerprint_of(self.method, settings)

    @property
    def n_threads(self) -> int:
        """Number of threads for the solvers."""
        if self.threads is not None:
            return self.threads
        import numba

        return int(numba.get_num_threads())

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Top-quark pairs; not valid where the method has no solution or there are no b candidates."""
        return ANALYTIC_METHODS[self.method].solve(self, events)

    @property
    def has_samples(self) -> bool:
        """True if the method smears: its draws are samples."""
        return ANALYTIC_METHODS[self.method].smeared

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        """Tops of each draw that has a solution, and the weight P(m_ℓ⁺b) P(m_ℓ⁻b̄) of the draw.

        The weighted mean of their momenta is that of the method's own prediction, which has as many draws as
        the settings say. Draws are not measurements: their spread shows how well the event determines its
        tops, and is no posterior in the strict sense.

        Parameters
        ----------
        events
            Selected events.
        n_samples
            Number of draws; None takes that of the settings.

        Returns
        -------
        posterior
            Tops on shell; a draw without a solution is NaN and has no weight.

        Raises
        ------
        TopRecoError
            If the method does not smear, or the number is not positive.
        """
        as_sampler(self)
        n = self.config.n_draws if n_samples is None else checked_samples(n_samples)
        result = _smear(self, events, n_draws=n, samples=True)
        return Posterior(from_three_momentum(result.momenta, self.config.m_top), result.log_weight)


def _smear(
    method: AnalyticMethod,
    events: DileptonEvents,
    *,
    n_draws: int,
    quantiles: bool = False,
    samples: bool = False,
) -> "Smeared":
    """Smeared copies of each event, solved."""
    from topreco.solvers.smearing import smear_and_solve

    config = method.config
    keys = (events.run, events.luminosity_block, events.event)
    if len(events) > 1 and all((values == values[0]).all() for values in keys):
        raise TopRecoError(
            f"method {method.name!r}: the key (run, luminosityBlock, event) is constant, the same for all "
            f"{len(events)} events, which would all be smeared alike; give each event a number of its own"
        )
    solver: Any = method.method
    return smear_and_solve(
        events,
        method.response,
        method=solver,
        n_draws=n_draws,
        seed=config.seed,
        pairing=config.pairing,
        m_top=config.m_top,
        reset_energy=config.reset_energy,
        threads=method.n_threads,
        quantiles=quantiles,
        samples=samples,
    )


def _smeared(method: AnalyticMethod, events: DileptonEvents) -> TopPair:
    """Weighted mean over smeared copies of each event; quality is the sum of weights."""
    from topreco.solvers.smearing import DRAWN_OBSERVABLES

    result = _smear(method, events, n_draws=method.config.n_draws, quantiles=method.quantiles)
    by_name = None
    if method.quantiles:
        by_name = {name: result.quantiles[:, i] for i, name in enumerate(DRAWN_OBSERVABLES)}
    return TopPair(
        result.p4,
        result.n_solved > 0,
        quality=result.weight,
        uncertainty=result.spread,
        quantiles=by_name,
    )


def _unsmeared(solver: str, method: AnalyticMethod, events: DileptonEvents) -> TopPair:
    """The solution of the smallest m_tt of the event as measured."""
    module = import_module(f"topreco.solvers.{solver}")
    solutions = module.solve(*_visible(events), **_options(method))
    return _pair(events, solutions.neutrinos[:, 0], solutions.count > 0)


def _closest(method: AnalyticMethod, events: DileptonEvents) -> TopPair:
    """The ellipses' intersection or closest approach; quality is minus the distance in GeV."""
    from topreco.solvers import ellipse

    result = ellipse.closest_approach(*_visible(events), **_options(method))
    return _pair(events, result.neutrinos, np.isfinite(result.distance), quality=-result.distance)


def _neutrino_weighting(method: AnalyticMethod, events: DileptonEvents) -> TopPair:
    """The scanned neutrino pair that explains MET best; quality is its weight."""
    from topreco.solvers import neutrino_weighting

    # At the maximum itself the method is the ellipses' closest approach once more. Solutions that MET's
    # resolution cannot distinguish from it are as good, and among them the smallest m_tt is right most often.
    result = neutrino_weighting.solve(*_visible(events), comparable=0.6, **_options(method))
    return _pair(events, result.neutrinos, np.isfinite(result.weight), quality=result.weight)


def _loose(method: AnalyticMethod, events: DileptonEvents) -> TopPair:
    """The tt̄ system alone, without the top mass."""
    from topreco.solvers import loose

    result = loose.solve(*_visible(events), m_w=method.config.m_w)
    tops = np.full((len(events), 2, 4), np.nan)
    return TopPair(tops, result.valid, ttbar=result.ttbar)


def _visible(events: DileptonEvents) -> tuple[FloatArray, ...]:
    b = events.b_candidate_p4
    return events.lepton_plus, events.lepton_minus, b[:, 0], b[:, 1], events.met


def _options(method: AnalyticMethod) -> dict[str, Any]:
    """Keywords that the solvers with a top mass share."""
    config = method.config
    return {
        "m_top": config.m_top,
        "m_antitop": config.m_top,
        "m_w_plus": config.m_w,
        "m_w_minus": config.m_w,
        "threads": method.n_threads,
    }


def _pair(
    events: DileptonEvents, neutrinos: FloatArray, valid: BoolArray, quality: FloatArray | None = None
) -> TopPair:
    """Tops t = ℓ⁺ + b + ν and t̄ = ℓ⁻ + b̄ + ν̄, from neutrinos (n, 2, 4)."""
    p4 = events.lepton_p4 + events.b_candidate_p4 + neutrinos
    return TopPair(np.where(valid[:, None, None], p4, np.nan), valid, quality=quality)


@lru_cache(maxsize=8)
def _read_response(path: Path | None, changed: str) -> "DetectorResponse":  # noqa: ARG001 - part of the cache's key
    from topreco.solvers.response import load_detector_response

    return load_detector_response(path)


@lru_cache(maxsize=8)
def _response_digest(path: Path | None, changed: str) -> str:  # noqa: ARG001 - part of the cache's key
    from topreco.solvers.response import SHIPPED

    if path is not None:
        return sha256_of(path)
    with resources.as_file(resources.files("topreco.solvers").joinpath(SHIPPED)) as shipped:
        return sha256_of(shipped)


class _Kind(NamedTuple):
    """An analytic method: one line about it, how it solves, and the settings that it uses."""

    description: str
    solve: Callable[[AnalyticMethod, DileptonEvents], TopPair]
    settings: tuple[str, ...]
    smeared: bool = False


_MASSES = ("m_top", "m_w")
_SMEARING = ("m_top", "n_draws", "pairing", "reset_energy", "seed")

ANALYTIC_METHODS: dict[str, _Kind] = {
    "sonnenschein": _Kind(
        "algebraic solution of Sonnenschein, averaged over smeared copies of each event",
        _smeared,
        _SMEARING,
        smeared=True,
    ),
    "ellipse": _Kind(
        "intersections of the neutrinos' ellipses, averaged over smeared copies of each event",
        _smeared,
        _SMEARING,
        smeared=True,
    ),
    "sonnenschein_unsmeared": _Kind(
        "algebraic solution of Sonnenschein of the smallest m_tt, without smearing",
        partial(_unsmeared, "sonnenschein"),
        _MASSES,
    ),
    "ellipse_unsmeared": _Kind(
        "intersection of the neutrinos' ellipses of the smallest m_tt, without smearing",
        partial(_unsmeared, "ellipse"),
        _MASSES,
    ),
    "ellipse_closest": _Kind(
        "intersection of the neutrinos' ellipses, or else their closest approach", _closest, _MASSES
    ),
    "neutrino_weighting": _Kind(
        "scan of the neutrinos' pseudorapidities, weighted by the agreement with MET",
        _neutrino_weighting,
        _MASSES,
    ),
    "loose": _Kind("the tt̄ system alone, without the top mass", _loose, ("m_w",)),
}
"""The analytic methods by name."""
