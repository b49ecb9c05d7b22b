"""Lorentz-equivariant reconstruction of dileptonic top-quark pairs for CMS analyses with coffea."""

from topreco import observables
from topreco.errors import TopRecoError
from topreco.events import DileptonEvents, TopPair, Truth
from topreco.reconstructors import Reconstructor, load
from topreco.tops import reconstruct

__all__ = [
    "DileptonEvents",
    "Reconstructor",
    "TopPair",
    "TopRecoError",
    "Truth",
    "load",
    "observables",
    "reconstruct",
]
