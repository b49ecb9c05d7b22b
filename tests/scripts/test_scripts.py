"""The small scripts beside the package: perfect inputs, tables, and the shell recipes."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from topreco.core import fourvector
from topreco.core.events import Truth, toy_events
from topreco.core.skim import Skim, SkimWriter
from topreco.reconstruction.recalibration import ResponseCurve

SCRIPTS = Path(__file__).parents[2] / "scripts"


def load(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- perfect inputs --------------------------------------------------------------------------------------


@pytest.fixture
def sample():
    """Events whose b quark of t is the third jet and that of t̄ the first, both badly measured."""
    events = toy_events(20, seed=2)
    events = dataclasses.replace(events, jet_mask=np.arange(12) < np.full((20, 1), 4))
    b = 1.3 * events.jets[:, [2, 0]]
    lepton = 1.1 * np.stack([events.lepton_plus, events.lepton_minus], 1)
    neutrino = fourvector.from_three_momentum(np.random.default_rng(0).normal(0, 60, (20, 2, 3)), 0.0)
    w = lepton + neutrino
    via_tau = np.zeros((20, 2), bool)
    via_tau[3, 1] = True
    flags = np.ones(20, bool)
    return events, Truth(w + b, w, b, lepton, neutrino, via_tau, flags, np.zeros(20, np.int8))


def far_apart(events):
    """Whether the first four jets leave no doubt about which is nearest."""
    jets = events.jets[:, :4]
    distance = fourvector.delta_r(jets[:, :, None], jets[:, None]) + 10 * np.eye(4)
    return distance.min(axis=(1, 2)) > 0.4


def test_each_part_is_replaced_and_nothing_else(sample):
    perfected = load("perfect_inputs").perfected
    events, truth = sample
    assert perfected(events, truth, ["none"]) is events
    clear = far_apart(events)
    assert clear.sum() > 5
    paired = perfected(events, truth, ["pairing"])
    np.testing.assert_array_equal(paired.b_candidates[clear], [[2, 0]] * clear.sum())
    assert paired.jets is events.jets

    met = perfected(events, truth, ["met"])
    np.testing.assert_allclose(met.met, truth.neutrino.sum(1)[:, 1:3])
    assert met.lepton_plus is events.lepton_plus

    everything = perfected(events, truth, ["jets", "leptons", "met"])
    np.testing.assert_allclose(everything.lepton_minus, truth.lepton[:, 1])
    assert (everything.n_jets == 2).all()
    np.testing.assert_allclose(everything.b_candidate_p4, truth.b)
    assert (np.diff(fourvector.pt(everything.jets[:, :2]), axis=1) <= 0).all()


def test_quarks_without_jets_have_no_candidates(sample):
    events, truth = sample
    away = dataclasses.replace(truth, b=truth.b[:, [0, 0]])  # both at the same jet
    assert (load("perfect_inputs").perfected(events, away, ["pairing"]).b_candidates == -1).all()
    away = dataclasses.replace(truth, b=truth.b * np.array([1.0, -1.0, -1.0, -1.0]))
    found = load("perfect_inputs").perfected(events, away, ["pairing"]).b_candidates
    assert (found[far_apart(events)] == -1).any()


def test_perfect_skim(sample, tmp_path):
    events, truth = sample
    with SkimWriter(tmp_path / "in.parquet") as writer:
        writer.metadata["selection"] = {"met_min": 40}
        writer.write(events, truth)
    out = tmp_path / "out.parquet"
    command = [sys.executable, SCRIPTS / "perfect_inputs.py", writer.path, "--replace", "met", "-o", out]
    subprocess.run(command, check=True, capture_output=True)
    skim = Skim(out)
    # The event with a τ is gone.
    assert len(skim) == 19
    assert skim.metadata["perfect"] == ["met"]
    assert skim.metadata["selection"] == {"met_min": 40}
    np.testing.assert_allclose(skim.read()[0].met[4], truth.neutrino.sum(1)[5, 1:3], rtol=1e-6)

    command[4] = "everything"
    failed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert failed.returncode != 0
    assert "'everything'; allowed are none, pairing" in failed.stderr
    command[2:5] = [tmp_path / "gone.parquet", "--replace", "met"]
    failed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1


# ---- tables ----------------------------------------------------------------------------------------------


@pytest.fixture
def comparison(tmp_path):
    def numbers(scale, *, mean=None):
        names = ("efficiency", "rb", "median", "slope", "correlation")
        widths = ("res", "width68", "rms_linearised", "width68_linearised")
        content = {"n": 50, **dict.fromkeys(names, 0.5), **dict.fromkeys(widths, 0.2 * scale)}
        content |= {f"{name}_error": 0.01 for name in (*names, *widths)}
        content |= {"mean_true": mean, "mean_true_error": 0.01, "mean_reco": mean, "mean_reco_error": 0.01}
        bins = [(None, 300), (300, 400), (400, None)]
        content["bins"] = [{"low": a, "high": b, **content} for a, b in bins]
        return content

    def method(scale):
        return {"m_tt": numbers(scale), "c_hel": numbers(scale, mean=0.12)}

    methods = {"dilepton": method(0.7), "sonnenschein": method(1.0)}
    path = tmp_path / "comparison.json"
    path.write_text(json.dumps({"metadata": {"dataset": "tt"}, "all": methods, "common": methods}))
    return path


def test_tables(comparison, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["results_tables.py", str(comparison), "--observables", "m_tt", "c_hel"])
    load("results_tables").main()
    printed = capsys.readouterr().out
    assert "m_tt, tt, events that all methods solve:" in printed
    # Thirty percent less than the reference, which is compared with nothing.
    assert "| dilepton | 50 | 0.500(10) | 0.500(10) | 0.140(10) (−30.0 %) |" in printed
    assert "| sonnenschein | 50 | 0.500(10) | 0.500(10) | 0.200(10) |" in printed
    assert "| Res in true m(tt̄) [GeV] | 300–400 |" in printed
    assert "| dilepton | 0.120(10) | 0.120(10) | 0.500(10) |" in printed


def test_tables_of_an_unknown_observable(comparison, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["results_tables.py", str(comparison), "--observables", "m_t"])
    with pytest.raises(SystemExit):
        load("results_tables").main()
    assert "no observable 'm_t'" in capsys.readouterr().err


# ---- comparisons -----------------------------------------------------------------------------------------


@pytest.fixture
def toy_skim(sample, tmp_path):
    """A skim of 320 events, of which one in twenty has a τ."""
    path = tmp_path / "toy.parquet"
    with SkimWriter(path) as writer:
        writer.metadata |= {"selection": {}, "datasets": {"toy": 1}}
        for _ in range(16):
            writer.write(*sample)
    return path


def test_weights_give_the_spin_correlation_asked_for():
    script = load("spin_linearity")
    c = np.linspace(-1, 1, 100_001)
    for d in (-0.5, 0.0, 0.3):
        found = script.means(c, 0.8 * c + 0.02, np.ones(len(c)), d, 0.0)
        assert found["true"] == pytest.approx(-d / 3, abs=1e-4)
        # From a sample that has a correlation of its own.
        again = script.means(c, c, 1 + 0.24 * c, d, -0.24)
        assert again["true"] == pytest.approx(-d / 3, abs=1e-4)
        assert again["bias_error"] == 0
    result = script.linearity(c[::100], 0.8 * c[::100] + 0.02, np.ones(1001), 0.0, 5)
    assert (result["slope"], result["offset"]) == pytest.approx((0.8, 0.02))
    assert result["deviation"] < 1e-9


def test_spin_linearity_of_methods(toy_skim, toy_model, tmp_path, capsys):
    out, figure = tmp_path / "spin.json", tmp_path / "spin.png"
    command = [str(toy_skim), "--methods", str(toy_model), "--json", str(out), "--figure", str(figure)]
    load("spin_linearity").run(command)
    assert json.loads(out.read_text())["toy"]["n"] == 320
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "| toy |" in capsys.readouterr().out


def test_bias_control(toy_skim, toy_model, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    out, figure = tmp_path / "bias.json", tmp_path / "bias.png"
    command = [str(toy_skim), "--calibrate", str(toy_skim), "--models", str(toy_model), "--json", str(out)]
    load("bias_control").run([*command, "--figure", str(figure), "--write-curves", str(tmp_path / "curves")])
    results = json.loads(out.read_text())["all"]
    assert list(results) == ["toy", "toy, bins of prediction", "toy, bins of truth"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    curve = ResponseCurve.read(tmp_path / "curves" / "toy_truth.json")
    assert len(curve.predicted) > 1
    assert "| toy, bins of truth |" in capsys.readouterr().out


# ---- table of inputs -------------------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Run the script on a folder with what is no ROOT file, and perhaps others."""
    folder = tmp_path / "inputs"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "text.root").write_text("hello | this is text")
    module = load("input_table")

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
def test_make_samples_goes_on_where_it_stopped(tmp_path):
    """With files that exist already, only the skims are made, each with a dataset of its own."""
    from topreco.config import SimulationConfig
    from topreco.simulation import simulate

    for seed in (101, 201):
        config = SimulationConfig(n_events=300, mpi=False, seed=seed)
        simulate(config, tmp_path / f"tt_{seed}.root", workers=1, progress=False)
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    command = ["bash", SCRIPTS / "make_samples.sh", tmp_path, "1", "1"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    skims = [Skim(tmp_path / name) for name in ("tt_101_loose.parquet", "tt_201_tight.parquet")]
    assert [list(skim.metadata["datasets"]) for skim in skims] == [["tt_101"], ["tt_201"]]
    before = [skim.path.stat().st_mtime_ns for skim in skims]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    assert [skim.path.stat().st_mtime_ns for skim in skims] == before
