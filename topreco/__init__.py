"""Lorentz-equivariant reconstruction of dileptonic top-quark pairs for CMS analyses with coffea.

Every name is imported when it is first used, since each worker of a job imports the package.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Before any fork, so that a forked process knows that it is one.
import topreco.core.threads as _threads  # noqa: F401

if TYPE_CHECKING:
    from topreco.core import observables
    from topreco.core.errors import TopRecoError
    from topreco.core.events import DileptonEvents, TopPair, Truth
    from topreco.core.method import Method
    from topreco.reconstruction.load import load, methods
    from topreco.reconstruction.reconstruct import reconstruct
    from topreco.runs.processor import DileptonProcessor

    __version__: str

__all__ = [
    "DileptonEvents",
    "DileptonProcessor",
    "Method",
    "TopPair",
    "TopRecoError",
    "Truth",
    "__version__",
    "load",
    "methods",
    "observables",
    "reconstruct",
]

_HOMES = {
    "DileptonEvents": "core.events",
    "DileptonProcessor": "runs.processor",
    "Method": "core.method",
    "TopPair": "core.events",
    "TopRecoError": "core.errors",
    "Truth": "core.events",
    "load": "reconstruction.load",
    "methods": "reconstruction.load",
    "reconstruct": "reconstruction.reconstruct",
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    if name == "__version__":
        from importlib.metadata import version

        found: Any = version("topreco")
    elif name == "observables":
        found = importlib.import_module("topreco.core.observables")
    elif name in _HOMES:
        found = getattr(importlib.import_module(f"topreco.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'topreco' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Public names, imported or not, and the modules imported so far."""
    return sorted({*globals(), *__all__})
