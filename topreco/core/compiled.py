"""Numba that works where nothing can be cached."""

from collections.abc import Callable
from typing import Any

import numba


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that compiles a function with `numba.njit`, its machine code cached where that is possible.

    Numba keeps it beside the source or in the user's cache folder, and refuses to decorate where neither can
    be written: in a batch job with a read-only installation and no home. There it is compiled anew in every
    process, unless ``NUMBA_CACHE_DIR`` names a folder.

    Parameters
    ----------
    **options
        Options of `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:
            return numba.njit(**options)(function)

    return decorate
