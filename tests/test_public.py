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


def test_a_worker_imports_nothing_that_only_some_runs_need():
    """Each would cost every worker of every job a second or more."""
    modules = ("coffea.lumi_tools", "matplotlib", "mplhep", "torch", "onnxruntime", "pyarrow.parquet", "dask")
    found = "import topreco.cli, topreco.runs.run, sys; print([m for m in {} if m in sys.modules])"
    command = [sys.executable, "-c", found.format(modules)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
