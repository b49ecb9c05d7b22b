"""Tables of the model cards and of docs/RESULTS.md from reports of `topreco validate`.

    python scripts/results/model_tables.py --report delphes=FOLDER --report own=FOLDER --report cms=FOLDER \
        --rename old-dilepton="dilepton (before)" --docs docs

A page says where a table goes, and what was there is replaced:

    <!-- table: methods delphes m_tt common -->   all methods, events that all solve (or `all`)
    <!-- table: bins delphes rb -->               all methods, RB (or Res) of m(tt̄) in bins of the truth
    <!-- table: observables delphes -->           all methods, all observables: ρ and RB
    <!-- table: card dilepton -->                 one method, all samples
    <!-- end of table -->

Each report also becomes FOLDER/tables/SAMPLE.csv. A page with a table of a sample that is not given, or of a
method that its report lacks, is an error, and no page is changed.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

from topreco.core.files import write_csv, write_text
from topreco.evaluation.report import format_estimate, markdown_table
from topreco.validation.tables import COLUMNS as OF_METHODS
from topreco.validation.tables import COMPARED

LABELS = {
    "delphes": "MadGraph + Delphes",
    "own": "own simulation",
    "own_pileup": "own simulation with pile-up",
    "cms": "CMS full simulation",
}
CARD = {
    "m_tt": "m(tt̄)",
    "pt_top": "pT(t)",
    "y_top": "y(t)",
    "pt_tt": "pT(tt̄) [GeV]",
    "c_hel": "c_hel",
    "c_han": "c_han",
    "cos_1k": "cosθ₁ᵏ",
    "cos_1n_2n": "cosθ₁ⁿ cosθ₂ⁿ",
}
COLUMNS = {name: text for name, text in OF_METHODS.items() if name != "efficiency"}
# Determined by the method or by the leptons alone.
_GIVEN = ("m_top", "m_antitop", "delta_phi_ll")
_REFERENCE = "sonnenschein"
_TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

Row = dict[str, str]


class Report:
    """The comparison of one sample."""

    def __init__(self, sample: str, folder: Path, names: dict[str, str]) -> None:
        with (folder / "comparison.csv").open(newline="") as file:
            self.rows = list(csv.DictReader(file))
        for row in self.rows:
            row["method"] = names.get(row["method"], row["method"])
        self.sample = sample
        self.methods = list(dict.fromkeys(row["method"] for row in self.rows))
        self.observables = [
            o for o in dict.fromkeys(row["observable"] for row in self.rows) if o not in _GIVEN
        ]

    def find(self, method: str, observable: str, events: str, low: str = "", high: str = "") -> Row:
        """The row of a method, in a bin of true m(tt̄) if one is given."""
        wanted = (method, observable, events, low, high)
        for row in self.rows:
            if (*(row[k] for k in ("method", "observable", "events", "m_tt_low", "m_tt_high")),) == wanted:
                return row
        raise SystemExit(f"report of {self.sample}: no {observable} of '{method}', {events} events")

    def bins(self) -> list[tuple[str, str]]:
        """Edges of the closed bins of true m(tt̄)."""
        edges = {
            (row["m_tt_low"], row["m_tt_high"]): None
            for row in self.rows
            if row["observable"] == "m_tt" and row["events"] == "common" and row["n"] != "0"
        }
        return [(low, high) for low, high in edges if low and high]


def number(row: Row, name: str, sign: bool = False) -> str:
    """A value with its error as on every other page, with a proper minus and perhaps a plus."""
    value, error = (float(row[k] or "nan") for k in (name, f"{name}_error"))
    text = format_estimate(value, error).replace("-", "−")
    return f"+{text}" if sign and value >= 0 else text


def methods(reports: dict[str, Report], sample: str, observable: str, events: str) -> str:
    """All methods in one observable, widths with their difference to Sonnenschein's."""
    report = reports[sample]
    reference = report.find(_REFERENCE, observable, events)
    rows = []
    for method in report.methods:
        row = report.find(method, observable, events)
        cells = [method, row["n"], number(row, "efficiency")]
        for column in COLUMNS:
            cell = number(row, column)
            if column in COMPARED and method != _REFERENCE:
                ratio = float(row[column]) / float(reference[column]) - 1
                cell += f" ({ratio * 100:+.1f} %)".replace("-", "−")
            cells.append(cell)
        rows.append(cells)
    return markdown_table(["method", "events", "efficiency", *COLUMNS.values()], rows)


def bins(reports: dict[str, Report], sample: str, metric: str) -> str:
    """All methods in bins of the true m(tt̄)."""
    report = reports[sample]
    edges = report.bins()
    rows = [
        [method, *(number(report.find(method, "m_tt", "common", *edge), metric) for edge in edges)]
        for method in report.methods
    ]
    labels = [f"{float(low):g}–{float(high):g}" for low, high in edges]
    return markdown_table([f"{COLUMNS[metric]} in true m(tt̄) [GeV]", *labels], rows)


def observables(reports: dict[str, Report], sample: str) -> str:
    """All methods and observables of the events that all solve: ρ [RB]."""
    report = reports[sample]
    rows = []
    for observable in report.observables:
        found = [report.find(method, observable, "common") for method in report.methods]
        cells = [f"{number(row, 'correlation')} [{number(row, 'rb', sign=True)}]" for row in found]
        rows.append([observable, *cells])
    return markdown_table(["observable", *report.methods], rows)


def card(reports: dict[str, Report], method: str) -> str:
    """One method on all selected events of each sample."""
    rows = []
    for sample, report in reports.items():
        for observable, label in CARD.items():
            row = report.find(method, observable, "all")
            first = f"{LABELS[sample]}, {row['n']} events" if observable == "m_tt" else ""
            rows.append([first, label, *(number(row, column) for column in COLUMNS)])
    return markdown_table(["sample", "observable", *COLUMNS.values()], rows, left=2)


KINDS = {"methods": methods, "bins": bins, "observables": observables, "card": card}


def fill(page: str, text: str, reports: dict[str, Report]) -> str:
    """The text of a page with its tables made anew."""

    def replace(match: re.Match[str]) -> str:
        kind, _, rest = match[2].partition(" ")
        words = [rest] if kind == "card" else rest.split()
        if kind not in KINDS:
            raise SystemExit(f"{page}: table '{match[2]}' is unknown; allowed are {', '.join(KINDS)}")
        if kind != "card" and words[0] not in reports:
            raise SystemExit(f"{page}: table '{match[2]}' needs --report {words[0]}=FOLDER")
        return f"{match[1]}\n{KINDS[kind](reports, *words)}\n{match[3]}"

    return _TABLE.sub(replace, text)


def short_rows(report: Report) -> list[Row]:
    """All observables, and m(tt̄) in bins, with five digits."""
    kept = []
    for row in report.rows:
        inclusive = not row["m_tt_low"] and not row["m_tt_high"]
        if inclusive or (row["observable"] == "m_tt" and row["events"] == "common" and row["n"] != "0"):
            kept.append({name: _short(cell) for name, cell in row.items() if name not in ("sumw", "n_eff")})
    return kept


def _short(cell: str) -> str:
    try:
        return cell if cell.isdigit() else f"{float(cell):.5g}"
    except ValueError:
        return cell


def main() -> None:
    """Read the reports, make all tables, then write the pages that changed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--report", action="append", required=True, metavar="SAMPLE=FOLDER")
    parser.add_argument("--rename", action="append", default=[], metavar="METHOD=NAME")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    names = dict(pair.split("=", 1) for pair in arguments.rename)
    reports = {}
    for pair in arguments.report:
        sample, _, folder = pair.partition("=")
        if sample not in LABELS:
            parser.error(f"--report {pair}: unknown sample '{sample}'; allowed are {', '.join(LABELS)}")
        if not (Path(folder) / "comparison.csv").is_file():
            parser.error(f"--report {pair}: no comparison.csv; a folder of `topreco validate` expected")
        reports[sample] = Report(sample, Path(folder), names)
    pages = sorted(arguments.docs.rglob("*.md"))
    changed = {}
    for page in pages:
        text = page.read_text()
        filled = fill(str(page), text, reports)
        if filled != text:
            changed[page] = filled
    for page, text in changed.items():
        write_text(page, text)
    for sample, report in reports.items():
        name = {"own": "own_simulation"}.get(sample, sample)
        write_csv(arguments.docs / "tables" / f"{name}.csv", short_rows(report))
    sys.stdout.write("".join(f"{page}\n" for page in changed))


if __name__ == "__main__":
    main()
