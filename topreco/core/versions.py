"""Versions of the software that made a file."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("topreco", "torch", "lgatr", "coffea", "awkward", "uproot", "numpy", "hist")


def versions() -> dict[str, str]:
    """Version of Python and of each package that shapes results and is installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
