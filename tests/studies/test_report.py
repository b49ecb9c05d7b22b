"""Tables and figures of trainings that are made up."""

import csv
import json

import pytest

from topreco.config import StudyConfig
from topreco.core.statistics import Metrics
from topreco.studies.report import StudyReport, write_figures, write_tables


def training(rho, events=1000, width=0.2):
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
    trainings = {
        "one": {1: training(0.8), 2: training(0.81), 3: training(0.82)},
        "two": {3: training(0.86), 1: training(0.84), 2: training(0.85)},
        "broken": {},
    }
    return StudyReport(config, trainings, {"broken": "epochs: | Input"})


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
    assert data["points"]["broken"]["trainings"] == {}
    assert data["failures"] == {"broken": "epochs: | Input"}


def test_data_file(report):
    """One row per point that was trained; the reference has no difference."""
    write_tables(report)
    with (report.config.output / "table.csv").open() as file:
        one, two = csv.DictReader(file)
    assert (one["point"], two["point"]) == ("one", "two")
    assert (two["seeds"], two["test events"], two["parameters"]) == ("3", "50", "10000")
    assert float(two["m_tt correlation"]) == pytest.approx(0.85)
    assert float(two["m_tt correlation deviation"]) == pytest.approx(0.01)
    assert float(two["m_tt correlation difference"]) == pytest.approx(0.04)
    assert float(two["m_tt correlation difference error"]) == pytest.approx(0.0234, abs=1e-4)
    assert one["m_tt correlation difference"] == one["c_hel rms_linearised"] == ""
    assert not (report.config.output / "scaling.csv").exists()


def test_without_the_reference_there_are_no_differences(report):
    report.trainings["one"].clear()
    text = write_tables(report).read_text()
    assert "Difference to" not in text
    assert "| two | 0.8500" in text


def test_scaling(report):
    sizes = [1000, 3000, 10_000, 30_000]
    config = report.config.model_copy(
        update={"points": {str(n): () for n in sizes}, "reference": "1000", "scaling": "events"}
    )
    trainings = {}
    for n in sizes:
        rho = (1 - 0.2 - 0.2 * (n / 1000) ** -0.5) ** 0.5
        trainings[str(n)] = {
            seed: training(rho + 1e-4 * seed, n, width=0.1 + 0.01 * seed) for seed in (1, 2, 3)
        }
    scaled = StudyReport(config, trainings, {})
    (name, label, points, laws), _ = scaled.scaling()
    assert (name, label) == ("correlation", "1 − ρ²(m_tt)")
    assert points["lgatr_slim"][0].tolist() == sizes
    law = laws["lgatr_slim"]
    assert (law.a, law.b, law.c) == pytest.approx((0.2, 0.2, 0.5), rel=0.02)
    text = write_tables(scaled).read_text()
    assert "1 − ρ²(m_tt) against the number N of training events: y = a + b (N/1e+03)^−c" in text
    assert "| network | a | b | c | χ²/ndf | at N = 1e+07 |" in text
    with (config.output / "scaling.csv").open() as file:
        first, _ = csv.DictReader(file)
    assert (first["metric"], first["network"]) == ("1 − ρ²(m_tt)", "lgatr_slim")
    assert float(first["c"]) == pytest.approx(law.c, rel=1e-5)
    assert float(first["c_low"]) <= law.c
    write_figures(scaled)
    figures = {path.name for path in (config.output / "figures").iterdir()}
    assert {"scaling_correlation.png", "m_tt_correlation.png", "right_pairing.png"} <= figures


def test_same_trainings_same_files(report):
    first = write_tables(report).read_bytes()
    write_figures(report)
    figure = report.config.output / "figures" / "m_tt_correlation.png"
    drawn = figure.read_bytes()
    assert write_tables(report).read_bytes() == first
    write_figures(report)
    assert figure.read_bytes() == drawn
