import io
import json
import math

import pytest
from rich.console import Console

from topreco.config import HistogramConfig
from topreco.core.errors import TopRecoError
from topreco.core.files import to_json
from topreco.evaluation.fill import fill
from topreco.evaluation.histograms import book
from topreco.evaluation.report import format_estimate, print_report, to_markdown, write_report
from topreco.evaluation.summary import summarise

CONFIG = HistogramConfig(observables=("m_tt", "y_top"))


@pytest.fixture(scope="module")
def summary(toy):
    histograms = book(CONFIG)
    events, a, truth = toy(1000)
    _, b, _ = toy(1000, shrink=0.5)
    both = a.valid & b.valid
    for method, pair in (("network", a), ("analytic", b)):
        fill(histograms, dataset="tt", method=method, events=events, pair=pair, truth=truth, common=both)
    fill(histograms, dataset="data", method="network", events=events, pair=a)
    return summarise(histograms)


def printed(summary, width):
    stream = io.StringIO()
    print_report(summary, console=Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.15234, 0.00123, "0.1523(12)"),
        (-0.0785, 0.0996, "-0.08(10)"),
        (1234.5, 56.7, "1234(57)"),
        (12.345, 1.5, "12.3(15)"),
        (1.0, 0.0, "1"),
        (0.5, math.nan, "0.5"),
        (math.nan, 0.1, "–"),
    ],
)
def test_estimates_are_rounded_to_their_error(value, error, text):
    assert format_estimate(value, error) == text


@pytest.mark.parametrize("width", [80, 200])
def test_table_shows_every_method_and_metric(summary, width):
    text = printed(summary, width)
    words = ("RB", "Res", "median", "width68", "slope", "ρ", "RMS lin.", "stability")
    assert all(word in text for word in ("network", "analytic", *words))
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_data_are_one_line(summary, toy):
    text = printed(summary, 200)
    assert "data: no truth: response tables left out; network solves" in text
    assert not any("data" in line for line in text.splitlines() if "no truth" not in line)
    histograms = book(CONFIG)
    events, pair, _ = toy(100)
    fill(histograms, dataset="2018[A]", method="network", events=events, pair=pair)
    n = int(pair.valid.sum())
    line = f"2018[A]: no truth: response tables left out; network solves {n} of 100 events\n"
    assert printed(summarise(histograms), 200) == line


def test_nothing_to_report():
    empty = summarise(book(CONFIG))
    assert "No events" in printed(empty, 80)
    assert "No events" in to_markdown(empty)
    assert json.loads(to_json(empty)) == {}


def test_json_is_strict_and_complete(summary):
    found = json.loads(to_json(summary), parse_constant=pytest.fail)
    metrics = found["all"]["tt"]["network"]["emu"]["m_tt"]["metrics"]
    assert metrics["rb"] == summary["all"]["tt"]["network"]["emu"]["m_tt"].metrics.rb
    assert found["all"]["data"]["network"]["all"]["m_tt"]["metrics"]["rb"] is None
    assert found["common"]["tt"]["analytic"]["all"]["y_top"]["bins"][0]["low"] is None


def test_markdown_is_a_table(summary):
    lines = [line for line in to_markdown(summary).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1


def test_reports_are_written_whole(summary, tmp_path):
    for name in ("report.json", "report.md"):
        write_report(summary, tmp_path / "new" / name)
    assert json.loads((tmp_path / "new" / "report.json").read_text())
    assert (tmp_path / "new" / "report.md").read_text().startswith("### m_tt")
    assert len(list((tmp_path / "new").iterdir())) == 2
    (tmp_path / "file").touch()
    with pytest.raises(TopRecoError, match="cannot write there"):
        write_report(summary, tmp_path / "file" / "report.json")
