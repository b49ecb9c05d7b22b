"""The small scripts beside the package: the table of inputs, and the shell recipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from topreco.core.skim import Skim

SCRIPTS = Path(__file__).parents[2] / "scripts"


# ---- table of inputs -------------------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path, monkeypatch, load_script):
    """Run the script on a folder with what is no ROOT file, and perhaps others."""
    folder = tmp_path / "inputs"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "text.root").write_text("hello | this is text")
    module = load_script("scripts/input_table.py")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["input_table.py", *map(str, (folder, *arguments))])
        module.main()

    return run


def test_input_table_has_a_row_per_file(inputs, capsys, data):
    inputs(data / "nanoaodv9_TTTo2L2Nu_first500.root", data / "nano_dimuon.root", "selection.met_min=0")
    heading, _, *rows = capsys.readouterr().out.splitlines()
    assert heading.split(" | ") == [
        *("| file", "preset", "era", "read", "selected", "truth-matched", "error |"),
    ]
    assert rows[0] == "| sub/text.root |  |  |  |  |  | not a ROOT file, it starts with b'hell' |"
    assert rows[1].startswith("| nanoaodv9_TTTo2L2Nu_first500.root | nano_v9 | UL2018 | 500 | 5")
    assert rows[2] == "| nano_dimuon.root | nano_v7 | Legacy2018 | 40 | 0 | no truth |  |"


def test_input_table_takes_the_place_of_the_old_one(inputs, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- input table -->\nold\n<!-- end of input table -->\nb\n")
    inputs("-o", page)
    text = page.read_text()
    assert text.startswith("a\n<!-- input table -->\n\n| file |")
    assert text.endswith("\n\n<!-- end of input table -->\nb\n")
    assert "old" not in text
    page.write_text("nothing")
    with pytest.raises(SystemExit, match=r"page\.md: needs the lines '<!-- input table -->'"):
        inputs("-o", page)


# ---- shell -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes are bash scripts")
@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_shell_scripts_parse(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["new", "plain"])
def test_make_samples_goes_on_where_it_stopped(tmp_path, kind):
    """With files that exist already, only the skims are made, each with a dataset of its own."""
    from topreco.config import SimulationConfig
    from topreco.simulation import simulate

    names = {"new": ["tt_redecay_101", "tt_spin_201"], "plain": ["tt_101", "tt_201"]}[kind]
    for name in names:
        config = SimulationConfig(n_events=300, mpi=False, seed=int(name[-3:]))
        simulate(config, tmp_path / f"{name}.root", workers=1, progress=False)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    command = ["bash", SCRIPTS / "make_samples.sh", tmp_path, "1", "1", kind]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    skims = [Skim(tmp_path / f"{names[0]}_loose.parquet"), Skim(tmp_path / f"{names[1]}_tight.parquet")]
    assert [list(skim.metadata["datasets"]) for skim in skims] == [[name] for name in names]
    before = [skim.path.stat().st_mtime_ns for skim in skims]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert [skim.path.stat().st_mtime_ns for skim in skims] == before


@pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes are bash scripts")
def test_make_samples_refuses_an_unknown_kind(tmp_path):
    command = ["bash", SCRIPTS / "make_samples.sh", tmp_path, "1", "1", "best"]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 2
    assert "'best' is no kind of sample; allowed are new, pileup, plain" in found.stderr
