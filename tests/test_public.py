"""The public face of the package: light to import, complete, and lazy."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import topreco

HEAVY = {"awkward", "coffea", "dask", "matplotlib", "numba", "numpy", "pyarrow", "pydantic", "rich", "torch"}


def modules_after(code):
    """Modules of a new process that ran a line of code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import sys; print(*sys.modules)"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_is_light():
    assert not modules_after("import topreco") & HEAVY


@pytest.mark.parametrize("name", ["load", "reconstruct", "methods()", "Method", "observables"])
def test_names_need_neither_coffea_nor_torch(name):
    heavy = HEAVY - {"numpy", "pydantic"}
    assert not modules_after(f"import topreco; topreco.{name}") & heavy


def test_every_public_name_is_there():
    assert set(topreco.__all__) <= set(dir(topreco))
    for name in topreco.__all__:
        assert getattr(topreco, name) is not None
    assert topreco.__version__ == version("topreco")
    assert topreco.DileptonProcessor.__module__ == "topreco.runs.processor"
    with pytest.raises(AttributeError, match="module 'topreco' has no attribute 'reconstructor'"):
        _ = topreco.reconstructor
