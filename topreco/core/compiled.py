"""Numba that works where nothing can be cached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numba
from numba.core import entrypoints
from numba.core.caching import FunctionCache


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, without which the function is compiled all the same.

    Numba reads and writes it when the function is called first. A full disk or quota, a folder that vanished
    or a damaged file would end that call, and look like an error of the file that is being processed.

    Machine code contains the functions that a function calls and the constants that it uses, and numba would
    not notice a change of those in other files.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        source = Path(function.__code__.co_filename)
        if source.is_file():
            index = self._cache_file
            index._source_stamp = index._source_stamp, _sources(source.parent)  # noqa: SLF001 - no other way

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Machine code for a signature, or None if it is not there or cannot be read."""
        try:
            with _without_extensions():
                return super().load_overload(sig, target_context)
        except Exception:  # noqa: BLE001 - a damaged pickle raises anything
            self.disable()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep machine code for a signature if that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception:  # noqa: BLE001 - as above: numba reads the index before
            self.disable()


@cache
def _sources(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the sources that a function in a folder may use: those there and in core."""
    files = sorted({*folder.glob("*.py"), *Path(__file__).parent.glob("*.py")})
    # Editors leave links to nowhere while a file is edited.
    found = [(file.name, file.stat()) for file in files if file.is_file()]
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in found)


def _no_extensions() -> None:
    """Import no extension before the first call, see `_without_extensions`."""


@contextmanager
def _without_extensions() -> Iterator[None]:
    """Keep numba from importing the extensions of all installed packages.

    Those of awkward and vector take half a second. The functions here take arrays of numpy alone; a user's
    functions, compiled in the same process, import them as ever.
    """
    # Numba has no public switch; where it lacks this one, setting it does nothing.
    done = getattr(entrypoints, "_already_initialized", False)
    entrypoints._already_initialized = True  # noqa: SLF001
    try:
        yield
    finally:
        entrypoints._already_initialized = done  # noqa: SLF001


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that compiles a function with `numba.njit`, its machine code cached where that is possible.

    Numba keeps it beside the source or in the user's cache folder, and refuses to decorate where neither can
    be written: in a batch job with a read-only installation and no home. There it is compiled anew in every
    process, unless ``NUMBA_CACHE_DIR`` names a folder, and so it is where the folder is full.

    Parameters
    ----------
    **options
        Options of `numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = numba.njit(**options)(function)
        compiled._compilation_chain_init_hook = _no_extensions  # noqa: SLF001 - the place for it
        with suppress(RuntimeError):
            compiled._cache = _Cache(function)  # noqa: SLF001 - `enable_caching` takes numba's own class
        return compiled

    return decorate
