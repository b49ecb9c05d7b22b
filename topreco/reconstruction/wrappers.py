"""Methods made of another one: with a recalibrated response, or with a smallest quality."""

import dataclasses
from pathlib import Path

from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, Posterior, TopPair
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


class QualityCut:
    """A method of which only the events of sufficient quality count as solved.

    Parameters
    ----------
    method
        The method, which keeps its name.
    minimum
        Smallest `TopPair.quality`; its meaning belongs to the method.
    """

    def __init__(self, method: NamedCallable, minimum: float) -> None:
        self.method = as_method(method)
        self.minimum = minimum
        self.name = method.name

    @property
    def path(self) -> Path | None:
        """The model file of the method, if it has one."""
        return getattr(self.method, "path", None)

    @property
    def uses_event_key(self) -> bool:
        """True if the method depends on the event's key."""
        return self.method.uses_event_key

    @property
    def fingerprint(self) -> str:
        """Digest of the method and the smallest quality."""
        return fingerprint_of("quality cut", self.method.fingerprint, self.minimum)

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

    @property
    def has_samples(self) -> bool:
        """True if the method gives samples."""
        return gives_samples(self.method)

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        """Samples of the method, those of events of any quality.

        Parameters
        ----------
        events
            Selected events.
        n_samples
            Number of samples of each event; None takes the method's own number.
        """
        return as_sampler(self.method).sample(events, n_samples)
