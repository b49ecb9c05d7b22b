"""What the benchmarks share, and the driver that merges them; nothing here is about how long it takes."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import awkward as ak
import pytest
import uproot

SCRIPTS = Path(__file__).parents[2] / "scripts" / "bench"


@pytest.fixture(scope="module", autouse=True)
def _scripts_are_importable():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize(
    ("ratio", "value", "at_most", "reached"),
    [(2.0, 9.0, False, True), (1.0, 9.0, False, False), (None, 1.6, True, False), (1.5, 9.0, True, True)],
)
def test_target_is_of_the_ratio_or_else_of_the_value(ratio, value, at_most, reached):
    from measuring import Measurement

    found = Measurement("a", "events/s", value, ratio=ratio, target=1.5, at_most=at_most)
    assert found.reached is reached
    assert Measurement("a", "events/s", value).reached is None


def test_runs_take_turns():
    from measuring import alternate

    ticks, called = itertools.count(), []
    seconds = alternate(
        {name: lambda name=name: called.append(name) for name in "ab"},
        repeats=3,
        clock=lambda: float(next(ticks)),
    )
    assert called == ["a", "b", *"ab" * 3]  # the first two warm up
    assert seconds == {"a": [1.0] * 3, "b": [1.0] * 3}


def test_ratio_cancels_what_slows_down_a_round():
    from measuring import rates

    fast = [1.0, 10.0, 3.0]
    seconds = {"plain": [4 * t for t in fast], "fast": fast}
    plain, found = rates(seconds, 100, ratio_to="plain", targets={"fast": 5.0})
    assert (plain.ratio, found.ratio, found.ratio_to) == (None, 4.0, "plain")
    assert found.value == pytest.approx(100 / 3)
    assert found.reached is False
    _, per_event = rates(seconds, 100, ratio_to="plain", unit="µs/event")
    assert per_event.ratio == 4.0
    assert per_event.value == pytest.approx(3e4)


def test_report_has_the_common_shape(tmp_path, capsys):
    from measuring import Measurement, report

    rows = [Measurement("a", "s", 2.0), Measurement("b", "s", 1.0, 0.1, "a", 2.0, 3.0)]
    report("title", rows, tmp_path / "x.json", ["note"])
    content = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert content["machine"]["cores"] >= 1
    assert content["measurements"][1] == {
        "name": "b",
        "unit": "s",
        "value": 1.0,
        "spread": 0.1,
        "ratio_to": "a",
        "ratio": 2.0,
        "target": 3.0,
        "at_most": False,
        "reached": False,
    }
    assert "| b | 1 | 0.1 | s | 2 | a | ≥ 3 | **no** |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'a' appears twice"):
        report("title", [rows[0], rows[0]], None)


def test_driver_finds_every_script_with_json():
    from run_all import find_scripts

    found = find_scripts(SCRIPTS)
    assert set(found) >= {"chain", "inference", "scaling", "smearing", "solvers", "startup", "systematics"}


def test_driver_merges_and_names_what_failed(tmp_path):
    import shutil

    for name in ("run_all.py", "measuring.py"):
        shutil.copy(SCRIPTS / name, tmp_path)
    head = "import sys  # takes --json FILE\n"
    write = "open(sys.argv[2], 'w').write"
    own = '{"benchmark": "Own", "measurements": [{"name": "m", "unit": "s", "value": 2}]}'
    (tmp_path / "bench_own.py").write_text(f"{head}{write}('{own}')")
    (tmp_path / "bench_broken.py").write_text(f"{head}sys.exit(3)")
    (tmp_path / "bench_silent.py").write_text("print('no such option')")
    (tmp_path / "out" / "bench").mkdir(parents=True)
    command = [sys.executable, str(tmp_path / "run_all.py"), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "failed: broken" in done.stderr
    benchmarks = json.loads((tmp_path / "out" / "bench.json").read_text())["benchmarks"]
    assert set(benchmarks) == {"own", "broken"}
    table = (tmp_path / "out" / "bench.md").read_text()
    assert "## Own" in table
    assert "| m | 2 |  | s |" in table
    assert "Failed: exit status 3" in table


def test_startup_is_compared_within_each_round(tmp_path):
    from bench_startup import FIGURES, IMPORTS, LUMI, RUN, WORKER, find_commands, measurements

    slow = [1.0, 5.0, 2.0]
    costs = {IMPORTS: 2.0, RUN: 4.0, FIGURES: 12.0, WORKER: 1.0, LUMI: 3.0}
    found = {row.name: row for row in measurements({n: [c * t for t in slow] for n, c in costs.items()})}
    assert {name: row.value for name, row in found.items()} == {name: 2 * c for name, c in costs.items()}
    assert [found[name].ratio for name in (RUN, FIGURES, WORKER)] == [2.0, 6.0, 3.0]
    assert [found[name].reached for name in (IMPORTS, RUN, FIGURES, WORKER)] == [None, True, False, True]
    commands = find_commands(["a.root"], ["dilepton"], tmp_path)
    assert list(commands) == list(costs)
    assert set(commands[RUN]) - set(commands[FIGURES]) == {"--no-plots"}
    for name in (WORKER, LUMI):
        subprocess.run(commands[name], check=True)


def test_predicted_wall_time_follows_the_formula():
    from bench_scaling import Costs, predict

    costs = Costs(event=1e-4, chunk=0.5, task=1e-3, merge=0.01, start=10.0)
    parts = predict(costs, events=10**9, cores=500, chunk_size=100_000)
    # 10 000 chunks, 20 for each core, and a tree of depth 4.
    assert parts["work"] == pytest.approx(20 * (10 + 0.5))
    assert parts["merging"] == pytest.approx((20 + 20 * 4) * 0.01)
    assert parts["scheduling"] == pytest.approx(10_000 * 20 / 19 * 1e-3)
    assert parts["wall time"] == pytest.approx(10 + parts["work"] + parts["merging"])
    # Chunks so small that the scheduler cannot keep up.
    parts = predict(costs, events=10**9, cores=500, chunk_size=100)
    assert parts["wall time"] == pytest.approx(10 + parts["scheduling"] + parts["merging"])


@pytest.mark.sim
def test_repeated_sample_has_the_same_events(simulated, tmp_path):
    from measuring import repeated

    path = repeated(str(simulated), tmp_path / "more.root", 3000)
    with uproot.open(simulated) as once, uproot.open(path) as often:
        assert set(often["Events"].keys()) == set(once["Events"].keys())
        assert often["Events"].num_entries == 3600
        for name in ("event", "Jet_pt"):
            expected = once["Events"][name].array()
            assert ak.all(often["Events"][name].array()[1200:2400] == expected, axis=None)


@pytest.mark.parametrize("name", ["dilepton-point", "dilepton-full"])
def test_padding_in_front_of_the_backbone_changes_nothing(name):
    import torch
    from bench_inference import (
        LOADED,
        REFERENCE,
        TOLERANCE,
        Padded,
        largest_difference,
        package_network,
        ways,
    )

    from topreco.core.events import toy_events
    from topreco.reconstruction.load import load

    events = toy_events(8, seed=3)
    plain = package_network(load(name).model.networks[0])
    assert isinstance(plain.encoder.backbone, Padded)
    lengths = []
    plain.encoder.backbone.backbone.register_forward_pre_hook(
        lambda _, args: lengths.append(args[2].shape[1])
    )
    runs = ways(name, events, plain, None, None, 8)
    assert largest_difference(runs[LOADED](), runs[REFERENCE]()) < TOLERANCE
    tokens = plain.config.tokens
    assert lengths == [2 + 7 + 1 + 2 * (tokens.b_candidates == "token") + 2]
    assert torch.is_grad_enabled()
