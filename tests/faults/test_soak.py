"""Memory over many chunks, `scripts/soak.py`, shortened."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.faults

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_leak_is_told_from_a_warm_up(script):
    chunk = np.arange(120)
    settled = 450 + 100 * (1 - np.exp(-chunk / 8)) + 8 * np.sin(chunk)
    assert abs(script.growth(settled)) < script.FLAT / 2
    assert script.growth(settled + 0.5 * chunk) == pytest.approx(0.5, abs=script.FLAT / 2)


@pytest.mark.sim
def test_memory_is_flat(script, simulated, tmp_path):
    found = script.soak(simulated, 120, "dilepton", tmp_path)
    assert found["chunks"] == 120
    # So few chunks are partly the beginning, hence not FLAT: far less than the leak of the next test.
    assert found["growth_mb_per_chunk"] < 1.0, found["over_time"]


@pytest.mark.sim
@pytest.mark.exhaustive
def test_a_leaking_processor_is_found(script, simulated, tmp_path, monkeypatch):
    kept, process = [], script.Watched.process

    def leaking(self, events):
        kept.append(np.ones(1_000_000))  # 8 MB
        return process(self, events)

    monkeypatch.setattr(script.Watched, "process", leaking)
    found = script.soak(simulated, 40, "loose", tmp_path)
    assert 6 < found["growth_mb_per_chunk"] < 12, found["over_time"]
    assert not found["flat"]
