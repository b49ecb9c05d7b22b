"""Tables and figures of runs that are made up."""

import json

import pytest

from topreco.config import StudyConfig
from topreco.core.statistics import Metrics
from topreco.studies.report import StudyReport, write_figures, write_tables


def run(rho, events=1000, width=0.2):
    metrics = dict.fromkeys(Metrics._fields, 0.1) | {"correlation": rho, "width68_linearised": width}
    return {
        "metrics": {"m_tt": metrics, "c_hel": metrics | {"rms_linearised": None}},
        "fractions": {name: {"value": 0.9, "error": 0.01} for name in ("right_tops", "right_pairing")},
        "test_events": 50,
        "train_events": events,
        "parameters": 10 * events,
        "backbone": "lgatr_slim",
        "epochs": 2,
        "seconds": 3.0,
        "events_per_second": None,
    }


@pytest.fixture
def report(tmp_path):
    config = StudyConfig(
        points={"one": (), "two": ("epochs=3",), "broken": ("epochs=0",)},
        reference="one",
        seeds=(1, 2, 3),
        observables=("m_tt", "c_hel"),
        output=tmp_path / "out",
    )
    runs = {
        "one": {1: run(0.8), 2: run(0.81), 3: run(0.82)},
        "two": {3: run(0.86), 1: run(0.84), 2: run(0.85)},
        "broken": {},
    }
    return StudyReport(config, runs, {"broken": "epochs: | Input"})


def test_tables(report):
    text = write_tables(report).read_text()
    assert "| one | 0.8100 ± 0.0100 | 0.2000 ± 0.0000 |" in text
    assert "| two | **+0.0400 ± 0.0234** | +0.0000 ± 0.0000 |" in text
    assert "| broken | epochs: \\| Input |" in text
    assert "| two | 10000 | 1000 | 2.0 | 3 | nan |" in text
    # What is undefined in every seed.
    assert " – |" in text
    assert "Reference: one; seeds 1, 2, 3; 50 test events" in text
    data = json.loads((report.config.output / "table.json").read_text())
    found = data["points"]["two"]["quantities"]["m_tt correlation"]
    assert found["mean"] == pytest.approx(0.85)
    assert found["difference"]["mean"] == pytest.approx(0.04)
    assert found["difference"]["significant"]
    assert not data["points"]["one"]["quantities"]["m_tt correlation"]["difference"]["significant"]
    assert data["points"]["two"]["overrides"] == ["epochs=3"]
    assert data["points"]["broken"]["runs"] == {}
    assert data["failures"] == {"broken": "epochs: | Input"}


def test_without_the_reference_there_are_no_differences(report):
    report.runs["one"].clear()
    text = write_tables(report).read_text()
    assert "Difference to" not in text
    assert "| two | 0.8500" in text


def test_scaling(report):
    sizes = [1000, 3000, 10_000, 30_000]
    config = report.config.model_copy(
        update={"points": {str(n): () for n in sizes}, "reference": "1000", "scaling": "events"}
    )
    runs = {}
    for n in sizes:
        rho = (1 - 0.2 - 0.2 * (n / 1000) ** -0.5) ** 0.5
        runs[str(n)] = {seed: run(rho + 1e-4 * seed, n, width=0.1 + 0.01 * seed) for seed in (1, 2, 3)}
    scaled = StudyReport(config, runs, {})
    (name, label, points, laws), _ = scaled.scaling()
    assert (name, label) == ("correlation", "1 − ρ²(m_tt)")
    assert points["lgatr_slim"][0].tolist() == sizes
    law = laws["lgatr_slim"]
    assert (law.a, law.b, law.c) == pytest.approx((0.2, 0.2, 0.5), rel=0.02)
    text = write_tables(scaled).read_text()
    assert "1 − ρ²(m_tt) against the number N of training events: y = a + b (N/1e+03)^−c" in text
    assert "| network | a | b | c | χ²/ndf | at N = 1e+07 |" in text
    write_figures(scaled)
    figures = {path.name for path in (config.output / "figures").iterdir()}
    assert {"scaling_correlation.png", "m_tt_correlation.png", "right_pairing.png"} <= figures


def test_same_runs_same_files(report):
    first = write_tables(report).read_bytes()
    write_figures(report)
    figure = report.config.output / "figures" / "m_tt_correlation.png"
    drawn = figure.read_bytes()
    assert write_tables(report).read_bytes() == first
    write_figures(report)
    assert figure.read_bytes() == drawn
