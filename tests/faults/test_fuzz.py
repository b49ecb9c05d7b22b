"""A short campaign of `scripts/faults/fuzz.py`, and configurations that hypothesis makes up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from topreco.config import (
    ConfigError,
    PepperWriteConfig,
    RunConfig,
    SimulationConfig,
    SkimConfig,
    TrainConfig,
    load_config,
)

pytestmark = pytest.mark.faults

SCRIPT = Path(__file__).parents[2] / "scripts" / "faults" / "fuzz.py"
KINDS = (PepperWriteConfig, RunConfig, SimulationConfig, SkimConfig, TrainConfig)
# Exports and runs through coffea take longer to prepare; `make faults` does them too.
FORMATS = (
    *("root", "pepper", "skim", "safetensors", "yaml", "response", "corrections", "golden-json", "state"),
    "pickles",
)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    pytest.importorskip("h5py")
    path = tmp_path_factory.mktemp("fuzz") / "fuzz.json"
    command = [sys.executable, SCRIPT, *FORMATS, "--n", "20", "--seed", "7", "--json", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert path.is_file(), done.stdout + done.stderr
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(campaign, name):
    row = campaign["formats"][name]
    assert [failure for failure in campaign["failures"] if failure["format"] == name] == []
    assert row["refused"] + row["same"] + row["changed"] + row["library"] == row["n"] == 20
    assert row["refused"] > 0


_plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=10),
    st.just("nan"),
    st.just("1e400"),
)
_keys = st.sampled_from(
    sorted({name for kind in KINDS for name in kind.model_fields} | {"kind", "file", "blocks", "jet"})
)
_trees = st.recursive(
    _plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)
_limits = settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.mark.parametrize("kind", KINDS)
@_limits
@given(overrides=st.lists(st.tuples(st.lists(_keys, min_size=1, max_size=3), _trees), max_size=3))
def test_any_override(kind, overrides):
    """Plain data under any keys: a configuration that can be written and read, or one line."""
    arguments = [f"{'.'.join(keys)}={json.dumps(tree)}" for keys, tree in overrides]
    _loads_or_says_why(kind, None, arguments)


@_limits
@example(text="when: 2026-13-45")
@example(text="n: " + "9" * 5000)
@example(text="[" * 4000)
@example(text="? [1, 2]\n: 3")
@example(text="a: &a [*a]")
@example(text="!!python/object/apply:os.system ['touch executed']")
@example(text="!!binary x")
@example(text="!!float x")
@example(text="a: !!int ''")
@given(text=st.text(max_size=60))
def test_any_text(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("yaml") / "a.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    _loads_or_says_why(TrainConfig, path, [])
    _loads_or_says_why(TrainConfig, None, [f"epochs={text}"])


def _loads_or_says_why(kind, path, overrides):
    try:
        config = load_config(kind, path, overrides)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017 - not every text need be refused
    else:
        assert kind.model_validate(config.model_dump()) == config or "nan" in repr(config)
