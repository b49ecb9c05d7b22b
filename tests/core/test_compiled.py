"""Compiled functions with and without a place for their machine code."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import caching

from topreco.core.compiled import njit


def _double(x):
    return 2 * x


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty folder for machine code."""
    monkeypatch.setattr(caching.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def test_caches_where_it_can(folder):
    compiled = njit()(_double)
    assert compiled(3) == 6
    assert Path(compiled.stats.cache_path).is_relative_to(folder)
    assert {path.suffix for path in folder.rglob("*.nb?")} == {".nbi", ".nbc"}
    again = njit()(_double)
    assert again(3) == 6
    assert sum(again.stats.cache_hits.values()) == 1


def test_a_change_in_another_file_is_noticed(folder):
    """In new processes, as after an upgrade or an edit."""
    (folder / "caller.py").write_text(
        "from topreco.core.compiled import njit\nimport callee\n\n"
        "@njit()\ndef call(x):\n    return callee.factor(x) * callee.CONSTANT\n\n"
        "print(call(1), sum(call.stats.cache_hits.values()))\n"
    )
    source = (
        "from topreco.core.compiled import njit\nCONSTANT = {}\n@njit()\ndef factor(x):\n    return {} * x\n"
    )
    found = []
    for numbers in ((2, 3), (2, 3), (2, 30), (5, 30)):
        if numbers != (2, 3) or not found:
            (folder / "callee.py").write_text(source.format(*numbers))
        environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(folder / "caller.py")]
        output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        found.append(output.split())
    assert found == [["6", "0"], ["6", "1"], ["60", "0"], ["150", "0"]]


def test_compiles_where_nothing_can_be_written(monkeypatch):
    # What a read-only installation and a home that does not exist come to.
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    compiled = njit(nogil=True)(_double)
    assert compiled(3) == 6
    assert compiled.stats.cache_path is None
    assert compiled.targetoptions["nogil"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EACCES])
def test_compiles_where_the_disk_is_full(folder, monkeypatch, number):
    """Not only when it is decorated: the code is written at the first call, of each signature."""
    compiled = njit()(_double)

    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(caching.IndexDataCacheFile, "_open_for_write", full)
    assert compiled(3) == 6
    assert compiled(1.5) == 3.0
    assert list(folder.rglob("*.nb?")) == []


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize("content", [b"", b"\x80\x05no pickle", b"I1\nI2\n"])
def test_compiles_where_the_cache_is_damaged(folder, suffix, content):
    assert njit()(_double)(3) == 6
    for path in folder.rglob(f"*{suffix}"):
        path.write_bytes(content)
    compiled = njit()(_double)
    assert compiled(3) == 6
    assert compiled(1.5) == 3.0


def test_functions_inside_others_compile_too(folder, monkeypatch):
    inner = njit(forceinline=True)(_double)

    def outer(x):
        return inner(x) + 1

    monkeypatch.setattr(
        caching.IndexDataCacheFile, "save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    assert njit()(outer)(3) == 7
    assert list(folder.rglob("*.nb?")) == []


def test_functions_of_others_have_the_extensions_of_numba():
    code = """
import sys, numba, numpy as np
from topreco.evaluation.fill import _add_rows
for _ in range(2):
    _add_rows(np.zeros((1, 1)), np.zeros(1, np.intp), np.ones((1, 1)))
import vector
print(numba.njit(lambda v: v.rho)(vector.obj(x=3.0, y=4.0)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "5.0\n"
