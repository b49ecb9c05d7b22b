"""Markdown tables from the JSON of `scripts/compare_methods.py`: the tables of docs/RESULTS.md.

    python scripts/results_tables.py comparison.json [--subset all|common] [--observables m_tt pt_top ...] \
        [--reference sonnenschein]

For each observable a row per method, with the number of events, every metric and its error, and behind
Res, RMS lin. and width68 lin. by how much they are smaller than those of the reference; then RB and
Res in bins of the true m_tt. For c_hel, whose mean is what is measured, true and reconstructed mean.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from topreco.evaluation.report import format_estimate

COLUMNS = {
    "efficiency": "efficiency",
    "rb": "RB",
    "res": "Res",
    "median": "median",
    "width68": "width68",
    "slope": "slope",
    "correlation": "ρ",
    "rms_linearised": "RMS lin.",
    "width68_linearised": "width68 lin.",
}
COMPARED = ("res", "rms_linearised", "width68_linearised")
"""Columns that say how they stand to the reference."""


def estimate(numbers: Mapping[str, Any], name: str) -> str:
    """A metric with its error; JSON holds null where it is undefined."""
    value, error = (numbers.get(key) for key in (name, f"{name}_error"))
    return format_estimate(*(math.nan if number is None else number for number in (value, error)))


def against(numbers: Mapping[str, Any], reference: Mapping[str, Any] | None, name: str) -> str:
    """How much smaller a width is than that of the reference, in percent."""
    own, other = numbers[name], None if reference is None else reference[name]
    if numbers is reference or not own or not other:
        return ""
    return f" ({100 * (own / other - 1):+.1f} %)".replace("-", "−")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a Markdown table, the first column to the left."""
    yield "| " + " | ".join(headings) + " |"
    yield "|---|" + "---:|" * (len(headings) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def overall(methods: Mapping[str, Any], observable: str, reference: str | None) -> Iterator[str]:
    """One row per method with everything about an observable."""
    compared = methods[reference][observable] if reference in methods else None
    rows = []
    for method, observables in methods.items():
        numbers = observables[observable]
        cells = [
            estimate(numbers, name) + (against(numbers, compared, name) if name in COMPARED else "")
            for name in COLUMNS
        ]
        rows.append([method, str(numbers["n"]), *cells])
    yield from table(["method", "events", *COLUMNS.values()], rows)


def in_bins(methods: Mapping[str, Any], observable: str, name: str) -> Iterator[str]:
    """One row per method with a metric in the bins of the true m_tt that are closed."""
    first = next(iter(methods.values()))[observable]["bins"]
    closed = [i for i, b in enumerate(first) if None not in (b["low"], b["high"]) and b["n"]]
    headings = [f"{first[i]['low']:g}–{first[i]['high']:g}" for i in closed]
    rows = [
        [method, *(estimate(observables[observable]["bins"][i], name) for i in closed)]
        for method, observables in methods.items()
    ]
    yield from table([f"{COLUMNS[name]} in true m(tt̄) [GeV]", *headings], rows)


def means(methods: Mapping[str, Any], observable: str) -> Iterator[str]:
    """True and reconstructed mean of an observable."""
    rows = [
        [method, *(estimate(observables[observable], name) for name in ("mean_true", "mean_reco", "rb"))]
        for method, observables in methods.items()
    ]
    yield from table(["method", "mean, true", "mean, reconstructed", "difference"], rows)


def main() -> None:
    """Read, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--subset", choices=("all", "common"), default="common")
    parser.add_argument("--observables", nargs="+", default=["m_tt", "pt_top", "y_top", "c_hel"])
    parser.add_argument("--reference", default="sonnenschein")
    parser.add_argument("--no-bins", action="store_true", help="leave out the bins of the true m_tt")
    args = parser.parse_args()
    content = json.loads(args.file.read_text(encoding="utf-8"))
    methods = content[args.subset]
    which = "all selected events" if args.subset == "all" else "events that all methods solve"
    for observable in args.observables:
        if observable not in next(iter(methods.values())):
            parser.error(f"{args.file}: no observable {observable!r} in it")
        print(f"{observable}, {content['metadata']['dataset']}, {which}:\n")
        print("\n".join(overall(methods, observable, args.reference)))
        if observable == "c_hel":
            print("\n".join(means(methods, observable)))
        if observable == "m_tt" and not args.no_bins:
            for name in ("rb", "res"):
                print("\n".join(in_bins(methods, observable, name)))


if __name__ == "__main__":
    main()
