"""Methods made of another one: recalibrated, with a smallest quality, or with medians or modes."""

import dataclasses
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from topreco.core.errors import TopRecoError
from topreco.core.events import QUANTILE_LEVELS, DileptonEvents, FloatArray, Posterior, TopPair
from topreco.core.method import NamedCallable, as_method, as_sampler, fingerprint_of, gives_samples
from topreco.core.observables import OBSERVABLES, pair_values
from topreco.reconstruction.recalibration import ResponseCurve


class Recalibrated:
    """A method with the response of its m_tt recalibrated: both tops times one factor per event.

    The method's own values of masses and transverse momenta get the same factor. Angles, rapidities and
    quantiles, which are those of the truth, stay as they are.

    Parameters
    ----------
    method
        The method.
    curve
        From `topreco.reconstruction.recalibration.fit_response_curve` or `ResponseCurve.read`.
    name
        Name in histograms and tables; by default that of the method.
    """

    def __init__(self, method: NamedCallable, curve: ResponseCurve, *, name: str | None = None) -> None:
        self.method = as_method(method)
        self.curve = curve
        self.name = method.name if name is None else name

    @property
    def uses_event_key(self) -> bool:
        """True if the method depends on the event's key."""
        return self.method.uses_event_key

    @property
    def fingerprint(self) -> str:
        """Digest of the method and the curve."""
        return fingerprint_of("recalibrated", self.method.fingerprint, self.curve.to_dict())

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Top-quark pairs of the method, recalibrated; valid where the method's are."""
        pair = self.method(events)
        factor = self.curve.factor(pair_values(pair, events.lepton_p4, ["m_tt"])["m_tt"])

        def scaled(column: FloatArray | None) -> FloatArray | None:
            return None if column is None else column * factor.reshape(-1, *[1] * (column.ndim - 1))

        return dataclasses.replace(
            pair,
            p4=pair.p4 * factor[:, None, None],
            ttbar=scaled(pair.ttbar),
            observables=pair.observables
            and {
                name: values * factor if OBSERVABLES[name].unit else values
                for name, values in pair.observables.items()
            },
            uncertainty=scaled(pair.uncertainty),
        )


class _Wrapper:
    """A method made of another one, whose name, model file, metadata and samples it keeps."""

    kind: str

    def __init__(self, method: NamedCallable) -> None:
        self.method = as_method(method)
        self.name = method.name

    @property
    def path(self) -> Path | None:
        """The model file of the method, if it has one."""
        return getattr(self.method, "path", None)

    @property
    def metadata(self) -> dict[str, Any]:
        """Description in the model file of the method, empty without one."""
        return getattr(self.method, "metadata", {})

    @property
    def uses_event_key(self) -> bool:
        """True if the method depends on the event's key."""
        return self.method.uses_event_key

    @property
    def fingerprint(self) -> str:
        """Digest of the method and of what is made of it."""
        return fingerprint_of(self.kind, self.method.fingerprint, *self._settings())

    @property
    def has_samples(self) -> bool:
        """True if the method gives samples."""
        return gives_samples(self.method)

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        """Samples of the method, unchanged.

        Parameters
        ----------
        events
            Selected events.
        n_samples
            Number of samples of each event; None takes the method's own number.
        """
        return as_sampler(self.method).sample(events, n_samples)

    def _settings(self) -> list[Any]:
        """Settings that determine the result, as plain data."""
        return []

    @abstractmethod
    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event."""


class QualityCut(_Wrapper):
    """A method of which only the events of sufficient quality count as solved.

    Parameters
    ----------
    method
        The method, which keeps its name.
    minimum
        Smallest `TopPair.quality`; its meaning belongs to the method.
    """

    kind = "quality cut"

    def __init__(self, method: NamedCallable, minimum: float) -> None:
        super().__init__(method)
        self.minimum = minimum

    def _settings(self) -> list[Any]:
        return [self.minimum]

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Top-quark pairs of the method, not valid where their quality is below the minimum.

        Raises
        ------
        TopRecoError
            If the method gives no quality.
        """
        pair = self.method(events)
        if pair.quality is None:
            raise TopRecoError(f"min_quality: method {self.name!r} gives no quality of its events")
        return dataclasses.replace(pair, valid=pair.valid & (pair.quality >= self.minimum))


class Median(_Wrapper):
    """A method whose value of an observable is the median, wherever it gives quantiles.

    Four-momenta, and observables without quantiles, stay as they are.

    Parameters
    ----------
    method
        The method, which keeps its name.
    """

    kind = "median"

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Top-quark pairs of the method with medians as `TopPair.observables`."""
        pair = self.method(events)
        middle = QUANTILE_LEVELS.index(0.5)
        medians = {name: values[:, middle] for name, values in (pair.quantiles or {}).items()}
        return dataclasses.replace(pair, observables={**(pair.observables or {}), **medians} or None)


_BLOCK = 2000
"""Events whose samples are in memory at a time."""


class Mode(_Wrapper):
    """A method whose value of every observable is the mode of its samples, see `sample_mode`.

    Four-momenta stay as they are. The method must give samples.

    Parameters
    ----------
    method
        The method, which keeps its name.
    """

    kind = "mode"
    uses_event_key = True  # samples do, even if the predictions of the method do not

    def __init__(self, method: NamedCallable) -> None:
        super().__init__(method)
        as_sampler(self.method)

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Top-quark pairs of the method with modes as `TopPair.observables`."""
        parts = [self._modes(events[i : i + _BLOCK]) for i in range(0, max(len(events), 1), _BLOCK)]
        observables = {name: np.concatenate([part[name] for part in parts]) for name in OBSERVABLES}
        return dataclasses.replace(self.method(events), observables=observables)

    def _modes(self, events: DileptonEvents) -> dict[str, FloatArray]:
        # Here, since it imports numba, which a name of the package must not.
        from topreco.core.posterior import sample_mode, sample_values

        posterior = self.sample(events)
        values = sample_values(posterior, events.lepton_p4, OBSERVABLES)
        return {name: sample_mode(of_samples, posterior.weight) for name, of_samples in values.items()}
