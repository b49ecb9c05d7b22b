"""Tables of the model cards and of the page of results."""

import csv
import sys

import pytest

VALUES = {"correlation": 0.87, "rb": -0.0075, "res": 0.13, "efficiency": 0.91}
COLUMNS = (
    "rb",
    "res",
    "median",
    "width68",
    "correlation",
    "slope",
    "rms_linearised",
    "width68_linearised",
    "efficiency",
)


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("scripts/results/model_tables.py")


@pytest.fixture
def report(tmp_path):
    """A comparison of two methods, with m(tt̄) in one closed bin."""
    folder = tmp_path / "report"
    folder.mkdir()
    rows = []
    for method in ("mine", "sonnenschein"):
        for observable in (
            "m_tt",
            "pt_top",
            "y_top",
            "pt_tt",
            "c_hel",
            "c_han",
            "cos_1k",
            "cos_1n_2n",
            "m_top",
        ):
            for events in ("common", "all"):
                for low, high in (
                    (("", ""), ("", "400"), ("400", "500")) if observable == "m_tt" else (("", ""),)
                ):
                    row = {
                        "events": events,
                        "observable": observable,
                        "method": method,
                        "m_tt_low": low,
                        "m_tt_high": high,
                    }
                    row |= {"n": "100", "sumw": "1", "n_eff": "1"}
                    for column in COLUMNS:
                        value = VALUES.get(column, 0.5)
                        row |= {column: value if method == "mine" else 2 * value, f"{column}_error": 0.0013}
                    rows.append(row)
    with (folder / "comparison.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["model_tables.py", *map(str, arguments)])
    script.main()


def page(kind):
    return f"before\n\n<!-- table: {kind} -->\nold\n<!-- end of table -->\n\nafter\n"


def test_tables_replace_what_was_there(script, report, tmp_path, monkeypatch):
    docs = tmp_path / "docs"
    (docs / "tables").mkdir(parents=True)
    kinds = ("methods own m_tt common", "bins own rb", "observables own", "card new name")
    for i, kind in enumerate(kinds):
        (docs / f"{i}.md").write_text(page(kind))
    (docs / "other.md").write_text("no table")
    arguments = ("--report", f"own={report}", "--rename", "mine=new name", "--docs", docs)
    run(script, monkeypatch, *arguments)
    texts = [(docs / f"{i}.md").read_text() for i in range(len(kinds))]
    assert all(t.startswith("before\n\n") and t.endswith("\n\nafter\n") and "old" not in t for t in texts)
    of_methods, of_bins, of_observables, of_card = texts
    assert "| new name | 100 | 0.9100(13) | −0.0075(13) | 0.1300(13) (−50.0 %) |" in of_methods
    assert "| RB in true m(tt̄) [GeV] | 400–500 |" in of_bins
    assert "| c_han | 0.8700(13) [−0.0075(13)] | 1.7400(13) [−0.0150(13)] |" in of_observables
    assert "m_top" not in of_observables
    assert "| own simulation, 100 events | m(tt̄) | −0.0075(13) |" in of_card
    table = (docs / "tables" / "own_simulation.csv").read_text()
    assert "sumw" not in table
    assert table.count("\n") == 1 + 2 * (2 * 9 + 2)
    run(script, monkeypatch, *arguments)
    assert [(docs / f"{i}.md").read_text() for i in range(len(kinds))] == texts


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("observables delphes", "needs --report delphes=FOLDER"),
        ("card theirs", "no m_tt of 'theirs'"),
        ("drawing own", "is unknown; allowed are methods, bins"),
    ],
)
def test_no_page_changes_if_a_table_cannot_be_made(script, report, tmp_path, monkeypatch, kind, message):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.md").write_text(page("observables own"))
    (docs / "b.md").write_text(page(kind))
    with pytest.raises(SystemExit, match=message):
        run(script, monkeypatch, "--report", f"own={report}", "--docs", docs)
    assert (docs / "a.md").read_text() == page("observables own")


@pytest.mark.parametrize(
    ("value", "message"), [("mars=x", "unknown sample 'mars'"), ("own=missing", "no comparison.csv")]
)
def test_reports_that_are_none(script, monkeypatch, capsys, value, message):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, "--report", value)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [("-7.946", "0.21", "−7.95(21)"), ("1.012", "0.089", "1.012(89)"), ("1", "", "1"), ("", "", "–")],
)
def test_numbers(script, value, error, text):
    assert script.number({"rb": value, "rb_error": error}, "rb") == text
