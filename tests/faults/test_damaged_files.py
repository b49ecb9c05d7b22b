"""Damaged files of every format, and made-up configurations: read, or refused in one line."""

import json
import os
import re
from collections import Counter

import pytest
from formats import FORMATS, read_damaged
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from isolated import start

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

CAMPAIGN = float(os.environ.get("TOPRECO_FAULTS", "0"))
"""Part of the whole campaign; 0 reads 8 files of each format, 4 where each takes a whole run."""
SLOW = {"onnx", "onnx-resealed"}  # exports
RUNS = {"run", "response"}
# In a damaged heap of attributes, which HDF5 alone can read, it may not return.
LIBRARY = re.compile(r'most recent call first\):\n  File "[^"]*/h5py/')


@pytest.mark.timeout(7200 if CAMPAIGN else 900)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.exhaustive if name in SLOW else ()) for name in FORMATS]
)
def test_damaged_files(name, tmp_path):
    """A damaged file is refused in one line without output, or read; as before where it has a checksum."""
    pytest.importorskip("h5py")
    form, results, log = FORMATS[name], tmp_path / "results.jsonl", tmp_path / "log.txt"
    n, number = round(form.share * CAMPAIGN) if CAMPAIGN else 4 if name in RUNS else 8, 0
    outcomes, failures = Counter(), []
    while number < n:
        results.unlink(missing_ok=True)
        process = start(log, read_damaged, name, 0, range(number, n), tmp_path, results)
        process.join()
        assert results.exists(), f"good files cannot be read: {log.read_text()}"
        for line in results.read_text().splitlines():
            number, outcome, detail = json.loads(line)
            if outcome == "defect":
                failures.append((number, outcome, detail))
            if outcome is not None:
                outcomes[outcome] += 1
        if outcome is None:
            library = process.exitcode and LIBRARY.search(log.read_text())
            outcomes["library" if library else "crash"] += 1
            if not library:
                failures.append((number, f"exit code {process.exitcode}", log.read_text()[-4000:]))
        number += 1
    print(f"{name}: {n} files, {dict(outcomes)}")
    assert failures == []
    assert outcomes.total() == n
    assert outcomes["refused"] > 0


KINDS = (PepperWriteConfig, RunConfig, SimulationConfig, SkimConfig, TrainConfig)
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
        assert "\n" not in str(error)
    else:
        assert kind.model_validate(config.model_dump()) == config or "nan" in repr(config)
