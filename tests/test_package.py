"""The source distribution and the wheel: their metadata, and an installation outside of the checkout."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.exhaustive
def test_distributions(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("twine")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            [*map(str, command)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dist = tmp_path / "dist"
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT)
    source, wheel = sorted(dist.iterdir(), key=lambda path: path.suffix != ".gz")
    assert run(sys.executable, "-m", "twine", "check", "--strict", source, wheel).count("PASSED") == 2
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"docs/index.md", "Makefile", "constraints.txt", "tests/test_package.py", "README.md"} <= names

    # What the package needs comes from here, the package itself from the wheel.
    folder = tmp_path / "bare"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    code = (
        "import topreco; from topreco.core.events import toy_events; "
        "print(topreco.__file__, topreco.load('dilepton-point')(toy_events(3)).valid.sum())"
    )
    assert run(python, "-c", code).split() == [str(site / "topreco" / "__init__.py"), "3"]
    assert "lgatr_slim" in run(folder / "bin" / "topreco", "config", "train", "--config", "dilepton.yaml")
