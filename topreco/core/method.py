"""The contract of all methods: a name, a fingerprint, and a call from `DileptonEvents` to `TopPair`."""

import hashlib
import inspect
import json
from typing import Any, Protocol, cast, runtime_checkable

from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, Posterior, TopPair


class NamedCallable(Protocol):
    """The least that a method of your own must be: a callable with a name; see `as_method`."""

    name: str

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event."""


@runtime_checkable
class Method(NamedCallable, Protocol):
    """A method of reconstruction, network or analytic.

    Attributes
    ----------
    name
        Name in histograms and tables.
    """

    @property
    def uses_event_key(self) -> bool:
        """True if predictions depend on the event's key (dataset, run, luminosity block, event)."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that determines the predictions, apart from this package's code."""

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event.

        Parameters
        ----------
        events
            Selected events.

        Returns
        -------
        pair
            One entry per event, not valid where the method has no prediction.
        """


@runtime_checkable
class Sampler(Method, Protocol):
    """A method that also gives samples of the tops that an event may have come from."""

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        """Samples of the top-quark pair of each event.

        They depend on the event, its key and the settings of the method alone: neither on the other events
        of the call nor on threads, but for rounding.

        Parameters
        ----------
        events
            Selected events.
        n_samples
            Number of samples of each event; None takes the method's own number.

        Returns
        -------
        posterior
            On-shell pairs in GeV with their weights, one entry per event.
        """


def gives_samples(method: NamedCallable) -> bool:
    """Whether a method is a `Sampler` that has samples.

    A class some of whose methods have none says so by the attribute ``has_samples``.
    """
    return callable(getattr(method, "sample", None)) and bool(getattr(method, "has_samples", True))


def as_sampler(method: NamedCallable) -> Sampler:
    """Return the method itself, if it gives samples.

    Raises
    ------
    TopRecoError
        If it gives none.
    """
    if not gives_samples(method):
        shown = getattr(method, "name", method)
        raise TopRecoError(
            f"samples: method {shown!r} gives none; a network of the task 'posterior' or a smeared analytic "
            "method such as 'sonnenschein' expected"
        )
    return cast("Sampler", method)


def checked_samples(n_samples: int) -> int:
    """Return the number of samples, if it is positive.

    Raises
    ------
    TopRecoError
        If it is not.
    """
    if isinstance(n_samples, bool) or not isinstance(n_samples, int) or n_samples < 1:
        raise TopRecoError(f"samples: {n_samples!r} found, a number of 1 or more expected")
    return n_samples


def as_method(method: NamedCallable) -> Method:
    """Complete a callable with a name to a `Method`; a complete one is returned as it is.

    Parameters
    ----------
    method
        Any callable with a `name`. Without `uses_event_key` it is assumed to depend on the event's key, and
        without `fingerprint` to be determined by its name and class: give it one if it has settings.

    Raises
    ------
    TopRecoError
        If it cannot be called or has no name.
    """
    if not callable(method) or not isinstance(getattr(method, "name", None), str):
        raise TopRecoError(
            f"method {method!r}: a name, a model file, or a callable with an attribute 'name' expected"
        )
    # Without evaluating them, which may read a file.
    given = [inspect.getattr_static(method, name, None) for name in ("uses_event_key", "fingerprint")]
    return _Completed(method) if None in given else cast("Method", method)


class _Completed:
    """A callable with a name, and defaults for what it lacks."""

    def __init__(self, method: NamedCallable) -> None:
        self.method = method
        self.name = method.name

    @property
    def uses_event_key(self) -> bool:
        return getattr(self.method, "uses_event_key", True)

    @property
    def fingerprint(self) -> str:
        kind = type(self.method)
        own = fingerprint_of(self.name, kind.__module__, kind.__qualname__)
        return getattr(self.method, "fingerprint", own)

    @property
    def has_samples(self) -> bool:
        return gives_samples(self.method)

    def __call__(self, events: DileptonEvents) -> TopPair:
        return self.method(events)

    def sample(self, events: DileptonEvents, n_samples: int | None = None) -> Posterior:
        return as_sampler(self.method).sample(events, n_samples)


def fingerprint_of(*parts: Any) -> str:
    """SHA-256 of plain JSON data, for `Method.fingerprint`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
