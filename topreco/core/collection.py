"""Garbage collection beside large imports."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_for_good() -> Iterator[None]:
    """Collect no garbage within, and never look at what exists at the end again.

    For imports of a command, whose process ends with it: they leave hundreds of thousands of objects and no
    garbage, and looking through them over and over takes a tenth of a short run. A library must not do so:
    garbage of its caller would stay too.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
