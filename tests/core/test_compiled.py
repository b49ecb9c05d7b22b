"""Compiled functions with and without a place for their machine code."""

from numba.core.caching import CacheImpl

from topreco.core.compiled import njit


def _double(x):
    return 2 * x


def test_caches_where_it_can():
    compiled = njit()(_double)
    assert compiled(3) == 6
    assert compiled.stats.cache_path


def test_compiles_where_nothing_can_be_written(monkeypatch):
    # What a read-only installation and a home that does not exist come to.
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    compiled = njit(nogil=True)(_double)
    assert compiled(3) == 6
    assert compiled.stats.cache_path is None
    assert compiled.targetoptions["nogil"]
