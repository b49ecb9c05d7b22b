"""Short campaigns of `scripts/faults/kill.py` and `scarce.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SCRIPTS = Path(__file__).parents[2] / "scripts" / "faults"


def campaign(script, path, *arguments):
    command = [sys.executable, SCRIPTS / script, *arguments, "--json", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert path.is_file(), done.stdout + done.stderr
    return json.loads(path.read_text())


COMMANDS = [
    *("train", "train-streamed", "quantiles", "skim", "run"),
    pytest.param("export", marks=pytest.mark.timeout(600)),
    pytest.param("simulate", marks=pytest.mark.sim),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_and_started_again(command, tmp_path):
    found = campaign("kill.py", tmp_path / "kill.json", command, "--n", "2", "--seed", "3")[command]
    assert found["failures"] == []
    assert found["kills"] + found["ended_before"] == 2


@pytest.mark.parametrize("command", ["train", "train-streamed", "quantiles", "skim", "run"])
def test_disk_and_memory_run_out(command, tmp_path):
    found = campaign("scarce.py", tmp_path / "scarce.json", command)[command]
    assert {case: each["said"] for case, each in found.items() if each["outcome"] != "ok"} == {}
    assert sum("cannot be written" in each["said"] for each in found.values()) >= 3
