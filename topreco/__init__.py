"""Lorentz-equivariant reconstruction of dileptonic top-quark pairs for CMS analyses with coffea."""

from topreco.core import observables
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, TopPair, Truth
from topreco.reconstruction.methods import Reconstructor, load
from topreco.reconstruction.reconstruct import reconstruct

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
