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
_COMPARED = ("res", "rms_linearised", "width68_linearised")
"""Columns that are compared with those of the reference."""

Response = Mapping[str, Mapping[str, Performance]]


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


def comparison_markdown(response: Response, reference: str) -> str:
    """Tables of the comparison, one row per method.

    Parameters
    ----------
    response
        Performance by observable and method.
    reference
        Method with whose widths those of the others are compared, if it is among them.
    """
    legend = (
        "In brackets the statistical error of the last digits, and by how much a width differs from that of"
    )
    parts = [f"{legend} {reference}.\n"]
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
                + (_against(metrics, found.get(reference), field) if field in _COMPARED else "")
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
