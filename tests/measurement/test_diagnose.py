"""Data against simulation by a classifier, on toys whose difference is known."""

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from topreco.cli import app
from topreco.config import ConfigError, DiagnoseConfig, load_config
from topreco.core.errors import TopRecoError
from topreco.core.events import dataset_id, toy_events
from topreco.core.skim import SkimWriter
from topreco.measurement.diagnose import area_under_curve, diagnose, object_columns, summary

FAST = {"folds": 2, "epochs": 6, "batch_size": 200, "replicas": 50, "hidden": 16}


def sample(n, name, seed, **changes):
    events = toy_events(n, max_jets=4, seed=seed)
    return dataclasses.replace(events, dataset=np.full(n, dataset_id(name), np.uint64), **changes)


def write(path, events):
    with SkimWriter(path) as writer:
        writer.write(events, None)
    return path


@pytest.fixture(scope="module")
def simulation():
    return sample(4000, "simulation", 1)


def run(folder, data, simulation, **changes):
    config = DiagnoseConfig(
        data=(write(folder / "data.parquet", data),),
        simulation=(write(folder / "simulation.parquet", simulation),),
        output=folder / "out",
        **(FAST | changes),
    )
    return diagnose(config)


def test_area_under_curve():
    rng = np.random.default_rng(1)
    score, in_a = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    weight = rng.normal(1, 1, 60)
    a, b = (np.flatnonzero(chosen) for chosen in (in_a, ~in_a))
    pairs = np.subtract.outer(score[a], score[b])
    wins = (pairs > 0) + (pairs == 0) / 2
    expected = (np.outer(weight[a], weight[b]) * wins).sum() / (weight[a].sum() * weight[b].sum())
    assert area_under_curve(score, in_a, weight) == pytest.approx(expected)


def test_equal_samples_cannot_be_told_apart(tmp_path, simulation):
    result = run(tmp_path, sample(4000, "data", 2), simulation)
    assert abs(result.before.value - 0.5) < 4 * result.before.error
    assert 0.004 < result.before.error < 0.010
    assert result.yield_ratio == pytest.approx(1)
    # Nothing carries a difference: χ² of 13 observables in ten bins.
    assert sum(of.chi2 for of in result.observables) < 200


@pytest.mark.parametrize("signs", [False, True], ids=["positive", "both signs"])
def test_a_wrong_met_is_found_and_weighted_away(tmp_path, simulation, signs):
    """MET with a width of 60 in place of 50 GeV; half-widths of its modulus as Rayleigh distributions."""
    data = sample(4000, "data", 2)
    data = dataclasses.replace(data, met=data.met * 1.2)
    if signs:
        flip = np.where(np.random.default_rng(3).random(4000) < 0.1, -1.0, 1.0)
        simulation = dataclasses.replace(simulation, weight=2 * flip)
    result = run(tmp_path, data, simulation)
    # For Rayleigh distributions of widths a and b the AUC is a²/(a² + b²).
    assert result.before.value == pytest.approx(1.44 / 2.44, abs=0.025)
    assert result.before.value > 0.5 + 5 * result.before.error
    first, *others = result.observables
    assert first.name == "met"
    assert first.lost > 0.04
    assert max(of.lost for of in others) < 0.02
    assert first.chi2 > 60
    assert first.chi2_weighted < 30
    assert abs(result.after.value - 0.5) < 0.025
    assert 0.5 < result.effective_share < 1
    content = json.loads((result.folder / "diagnose.json").read_text())
    assert content["before"]["value"] == result.before.value
    weight = np.load(result.folder / "weights.npz")["weight"]
    assert weight.sum() == pytest.approx(4000)
    assert summary(result) in (result.folder / "diagnose.md").read_text()
    assert len(weight) == len(simulation)


def test_events_without_jets():
    events = toy_events(5, max_jets=2)
    events = dataclasses.replace(
        events, jet_mask=np.zeros((5, 2), bool), jets=np.zeros((5, 2, 4)), jet_tagged=np.zeros((5, 2), bool)
    )
    columns = object_columns(events)
    assert (columns["pt_jet_1"] == 0).all()
    assert (columns["ht"] == 0).all()
    assert np.isfinite(list(columns.values())).all()


def test_command(tmp_path, simulation):
    data = write(tmp_path / "data.parquet", sample(600, "data", 2))
    other = write(tmp_path / "simulation.parquet", simulation[:600])
    options = [f"{name}={value}" for name, value in FAST.items()]
    arguments = [
        "diagnose",
        f"data=[{data}]",
        f"simulation=[{other}]",
        f"output={tmp_path / 'out'}",
        *options,
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "AUC" in result.output
    assert (tmp_path / "out" / "diagnose.md").is_file()


def test_bad_input(tmp_path, simulation):
    with pytest.raises(TopRecoError, match="data: no skims given"):
        diagnose(DiagnoseConfig(output=tmp_path))
    with pytest.raises(TopRecoError, match=r"a\.parquet: no such file"):
        diagnose(
            DiagnoseConfig(
                data=(tmp_path / "a.parquet",), simulation=(tmp_path / "b.parquet",), output=tmp_path
            )
        )
    with pytest.raises(TopRecoError, match="4000 events are in both"):
        run(tmp_path, simulation, simulation)
    with pytest.raises(TopRecoError, match="data: 50 events found, at least 200"):
        run(tmp_path, sample(50, "data", 2), simulation)
    negative = dataclasses.replace(simulation, weight=-simulation.weight)
    with pytest.raises(TopRecoError, match="simulation: sum of the weights -4000 found"):
        run(tmp_path, sample(400, "data", 2), negative)
    broken = sample(400, "data", 2)
    broken.met[3] = np.nan
    with pytest.raises(TopRecoError, match="met: 1 of 4400 events have no finite value"):
        run(tmp_path, broken, simulation)
    with pytest.raises(ConfigError, match="folds"):
        load_config(DiagnoseConfig, None, ["folds=1"])
