"""What all methods have in common: a name, and a call from `DileptonEvents` to `TopPair`."""

from typing import Protocol, runtime_checkable

from topreco.core.events import DileptonEvents, TopPair


@runtime_checkable
class Method(Protocol):
    """A method of reconstruction.

    Attributes
    ----------
    name
        How the method is called in histograms and tables.
    """

    name: str

    def __call__(self, events: DileptonEvents) -> TopPair:
        """Reconstruct the top-quark pair of each event."""
