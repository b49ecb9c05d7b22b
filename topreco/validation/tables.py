"""Comparison of methods as data and as Markdown: ``comparison.csv`` and ``comparison.md``.

The CSV has a row per set of events ("all" or "common", those that every method solves), observable, method
and bin of the true m_tt; the row without edges holds all events. Numbers that are undefined are empty.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping

from topreco.core.statistics import Metrics
from topreco.evaluation.report import format_estimate, markdown_table
from topreco.evaluation.summary import Bin
from topreco.validation.statistics import Means, Performance
from topreco.validation.verdicts import Against, Comparison, counts

SUBSETS = {"common": "events that all methods solve", "all": "all selected events"}
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
"""Columns that are compared with those of the reference."""

Response = Mapping[str, Mapping[str, Performance]]
Verdicts = Mapping[str, Mapping[str, Comparison]]

VERDICT_LEGEND = (
    "Better, equal or worse beyond two standard errors of the paired difference (bootstrap over the events "
    "that all methods solve), for each observable against the analytic method with the largest ρ or the "
    "smallest |bias|. Biases up to 1 % (m_tt, masses and pT of the tops), 2 GeV (pt_tt) and 0.03 (angles, "
    "rapidities) count as none."
)
VERDICT_COLUMNS = (
    *("observable", "verdict, ρ", "ρ", "of the best analytic", "difference"),
    *("verdict, bias", "RB", "smallest analytic", "difference"),
)


def of_subset(found: Performance, subset: str) -> tuple[Metrics, tuple[Bin, ...], Means | None]:
    """Metrics, bins of the true m_tt and means of one of `SUBSETS`; efficiencies are relative to all events.

    Parameters
    ----------
    found
        Performance of a method.
    subset
        Set of events.
    """
    if subset == "all":
        return found.inclusive, found.m_tt_bins, found.means
    metrics = found.common._replace(efficiency=found.share_common, efficiency_error=found.share_common_error)
    return metrics, found.common_m_tt_bins, found.common_means


def estimate(of: object, field: str, scale: float = 1.0) -> str:
    """A field with its error in brackets.

    Parameters
    ----------
    of
        Named tuple with the field and its error.
    field, scale
        Name of the field, and factor to multiply it by.
    """
    return format_estimate(scale * getattr(of, field), scale * getattr(of, f"{field}_error"))


def comparison_csv(response: Response) -> str:
    """Every metric with its error as CSV.

    Parameters
    ----------
    response
        Performance by observable and method.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    means = Means._fields
    writer.writerow(["events", "observable", "method", "m_tt_low", "m_tt_high", *Metrics._fields, *means])
    for subset in SUBSETS:
        for name, methods in response.items():
            for method, found in methods.items():
                overall, bins, of_means = of_subset(found, subset)
                key = [subset, name, method]
                writer.writerow(
                    [*key, "", "", *map(_number, overall), *map(_number, of_means or [math.nan] * len(means))]
                )
                for low, high, metrics in bins:
                    numbers = map(_number, (low, high, *metrics, *[math.nan] * len(means)))
                    writer.writerow([*key, *numbers])
    return file.getvalue()


def _number(value: float) -> str:
    if not math.isfinite(value):
        return ""
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def verdict_sentences(comparisons: Mapping[str, Comparison]) -> list[str]:
    """Summary of a method against the best analytic one of each observable, a line for ρ and one for biases.

    Parameters
    ----------
    comparisons
        By observable.
    """
    lines = []
    for figure, title in (("correlation", "ρ"), ("bias", "|bias|")):
        found = counts(comparisons, figure)
        worse = f" ({', '.join(found['worse'])})" if found["worse"] else ""
        named = [f"{verdict} in {len(found[verdict])}" for verdict in ("better", "equal", "worse")]
        without = f"; without verdict: {', '.join(found['undefined'])}" if found["undefined"] else ""
        lines.append(f"{title}: {', '.join(named)}{worse} of {len(comparisons)} observables{without}")
    return lines


def verdict_rows(comparisons: Mapping[str, Comparison]) -> list[list[str]]:
    """Rows of `VERDICT_COLUMNS`, those with a "worse" first.

    Parameters
    ----------
    comparisons
        By observable.
    """

    def cells(of: Against) -> list[str]:
        text = "WORSE" if of.verdict == "worse" else of.verdict
        best = f"{format_estimate(of.best, math.nan)} {of.analytic}"
        return [
            text,
            format_estimate(of.value, math.nan),
            best,
            format_estimate(of.difference, of.difference_error),
        ]

    worst_first = sorted(
        comparisons.items(), key=lambda x: "worse" not in (x[1].correlation.verdict, x[1].bias.verdict)
    )
    return [[name, *cells(of.correlation), *cells(of.bias)] for name, of in worst_first]


def comparison_markdown(response: Response, reference: str, verdicts: Verdicts | None = None) -> str:
    """Tables of the comparison, one row per method.

    Parameters
    ----------
    response
        Performance by observable and method.
    reference
        Method with whose widths those of the others are compared, if it is among them.
    verdicts
        Methods against the best analytic ones, at the top, by method and observable.
    """
    above = []
    for method, comparisons in (verdicts or {}).items():
        above += [f"## {method} against the best analytic method\n", f"{VERDICT_LEGEND}\n"]
        above += [f"- **{line}**" for line in verdict_sentences(comparisons)]
        above += ["", markdown_table(VERDICT_COLUMNS, verdict_rows(comparisons))]
    legend = (
        "In brackets the statistical error of the last digits, and by how much a width differs from that of"
    )
    parts = [*above, f"{legend} {reference}.\n"]
    for subset, events in SUBSETS.items():
        for name, methods in response.items():
            parts += [f"## {name}, {events}\n", *_overall(methods, subset, reference)]
            if name == "m_tt":
                parts += [*_in_bins(methods, subset, "rb"), *_in_bins(methods, subset, "res")]
            parts += _means(methods, subset)
    return "\n".join(parts) + "\n"


def _overall(methods: Mapping[str, Performance], subset: str, reference: str) -> Iterator[str]:
    found = {method: of_subset(of, subset)[0] for method, of in methods.items()}
    rows = [
        [
            method,
            str(metrics.n),
            *(
                estimate(metrics, field)
                + (_against(metrics, found.get(reference), field) if field in COMPARED else "")
                for field in COLUMNS
            ),
        ]
        for method, metrics in found.items()
    ]
    yield markdown_table(["method", "events", *COLUMNS.values()], rows)


def _against(metrics: Metrics, reference: Metrics | None, field: str) -> str:
    """Relative difference of a width to that of the reference, in percent."""
    if reference is None or metrics is reference:
        return ""
    own, other = getattr(metrics, field), getattr(reference, field)
    if not (math.isfinite(own) and math.isfinite(other) and other):
        return ""
    return f" ({100 * (own / other - 1):+.1f} %)".replace("-", "−")


def _in_bins(methods: Mapping[str, Performance], subset: str, field: str) -> Iterator[str]:
    """A metric in the closed bins of the true m_tt."""
    bins = {method: of_subset(of, subset)[1] for method, of in methods.items()}
    first = next(iter(bins.values()))
    closed = [i for i, b in enumerate(first) if math.isfinite(b.high - b.low) and b.metrics.n]
    headings = [f"{first[i].low:g}–{first[i].high:g}" for i in closed]
    yield markdown_table(
        [f"{COLUMNS[field]} in true m(tt̄) [GeV]", *headings],
        [[method, *(estimate(of[i].metrics, field) for i in closed)] for method, of in bins.items()],
    )


def _means(methods: Mapping[str, Performance], subset: str) -> Iterator[str]:
    rows = []
    for method, of in methods.items():
        metrics, _, means = of_subset(of, subset)
        if means is not None:
            rows.append([method, *(estimate(means, f) for f in Means._fields[::2]), estimate(metrics, "rb")])
    if rows:
        yield markdown_table(["method", "mean, true", "mean, reconstructed", "difference"], rows)
