"""Lorentz-equivariant reconstruction of dileptonic top-quark pairs for CMS analyses with coffea."""

from topreco.core import observables
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, TopPair, Truth
from topreco.core.method import Method
from topreco.reconstruction.load import load
from topreco.reconstruction.reconstruct import reconstruct

__all__ = [
    "DileptonEvents",
    "Method",
    "TopPair",
    "TopRecoError",
    "Truth",
    "load",
    "observables",
    "reconstruct",
]
