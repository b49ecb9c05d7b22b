"""A `Summary` as tables for the terminal, as Markdown and as JSON."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from topreco.core.files import to_json, write_text
from topreco.core.observables import OBSERVABLES
from topreco.evaluation.latex import write_latex
from topreco.evaluation.summary import ALL_CHANNELS, Result, Summary

UNDEFINED = "–"


class _Column(NamedTuple):
    heading: str
    text: Callable[[Result], str]


def _metric(heading: str, field: str) -> _Column:
    def text(result: Result) -> str:
        return format_estimate(getattr(result.metrics, field), getattr(result.metrics, f"{field}_error"))

    return _Column(heading, text)


_SIZE = (_Column("events", lambda r: str(r.n_solved)), _metric("efficiency", "efficiency"))
_RESPONSE = (
    _metric("RB", "rb"),
    _metric("Res", "res"),
    _metric("median", "median"),
    _metric("width68", "width68"),
)
_INFORMATION = (
    _metric("slope", "slope"),
    _metric("ρ", "correlation"),
    _metric("RMS lin.", "rms_linearised"),
    _metric("width68 lin.", "width68_linearised"),
    _Column(
        "stability",
        lambda r: format_estimate(r.migration_equal.mean_stability, r.migration_equal.mean_stability_error),
    ),
)
_EVERYTHING = (*_SIZE, *_RESPONSE, *_INFORMATION)

LEGEND = (
    "Numbers in brackets are the statistical error of the last digits. RB, Res: mean and standard deviation "
    "of the residual; width68: half-width of its central 68 %; lin.: about the response line, divided by its "
    "slope, so that shrinkage toward the mean does not help; stability: fraction of events in their own bin, "
    "for bins of equal truth population."
)


def format_estimate(value: float, error: float) -> str:
    """A value with its error in brackets, such as 0.1523(12); without brackets if the error is undefined."""
    if not math.isfinite(value):
        return UNDEFINED
    if not math.isfinite(error) or error <= 0:
        return f"{value:.4g}"
    # Two digits of the error; rounding may lift 0.0996 to 0.10, which then has the right two digits as well.
    decimals = 1 - math.floor(math.log10(float(f"{error:.1e}")))
    if decimals <= 0:
        return f"{value:.0f}({error:.0f})"
    return f"{value:.{decimals}f}({round(error * 10**decimals)})"


def tables(
    summary: Summary,
    *,
    channel: str = ALL_CHANNELS,
    observables: Collection[str] | None = None,
    width: int | None = None,
) -> Iterator[Table]:
    """Tables with one row per method, for each observable, dataset and subset.

    Parameters
    ----------
    summary
        Results of `summary.summarise`.
    channel
        Channel to show.
    observables
        Observables to show; None shows all.
    width
        Characters per line that a table may take; wider ones are split in two. None splits none.
    """
    for title, observable, rows in _groups(summary, channel):
        if observables is not None and observable not in observables:
            continue
        parts: dict[str, Sequence[_Column]] = {title: _EVERYTHING}
        whole = _results_table(title, _EVERYTHING, observable, rows)
        if width is not None and Console(width=10_000).measure(whole).maximum > width:
            parts = {f"{title}: response": (*_SIZE, *_RESPONSE), f"{title}: information": _INFORMATION}
        for heading, columns in parts.items():
            yield _results_table(heading, columns, observable, rows)


def print_report(
    summary: Summary,
    *,
    channel: str = ALL_CHANNELS,
    observables: Collection[str] | None = None,
    console: Console | None = None,
) -> None:
    """Print the tables of a summary, and one line for each dataset without truth.

    Parameters
    ----------
    summary
        Results of `summary.summarise`.
    channel
        Channel to show.
    observables
        Observables to show; None shows all.
    console
        Where to print; standard output if None.
    """
    console = Console() if console is None else console
    data = _without_truth(summary, channel)
    for dataset, counts in data.items():
        solved = ", ".join(f"{method} solves {n} of {of} events" for method, (n, of) in counts.items())
        line = f"{dataset}: no truth: response tables left out; {solved}"
        console.print(line, markup=False, highlight=False)
    known = {
        subset: {dataset: of for dataset, of in datasets.items() if dataset not in data}
        for subset, datasets in summary.items()
    }
    found = list(tables(known, channel=channel, observables=observables, width=console.width))
    if not found and data:
        return
    if not found:
        console.print("No events in these histograms.")
        return
    for table in found:
        console.print(table)
    console.print(LEGEND, style="dim")


def _without_truth(summary: Summary, channel: str) -> dict[str, dict[str, tuple[int, int]]]:
    """Solved and selected events by method, of the datasets of which solved events have no truth."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for dataset, methods in summary.get("all", {}).items():
        results = {method: list(channels[channel].values()) for method, channels in methods.items()}
        every = [result for of in results.values() for result in of]
        if any(result.n_solved for result in every) and not any(result.metrics.n for result in every):
            found[dataset] = {
                method: (max(result.n_solved for result in of), max(result.n_selected for result in of))
                for method, of in results.items()
            }
    return found


def to_markdown(summary: Summary, *, channel: str = ALL_CHANNELS) -> str:
    """The tables as GitHub-flavoured Markdown.

    Parameters
    ----------
    summary
        Results of `summary.summarise`.
    channel
        Channel to show.
    """
    parts = []
    for title, observable, rows in _groups(summary, channel):
        table = markdown_table(*_content(_EVERYTHING, rows))
        parts.append(f"### {title}\n\n{_unit(observable)}.\n\n{table}")
    return "\n".join([*parts, LEGEND, ""]) if parts else "No events in these histograms.\n"


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table in GitHub-flavoured Markdown, the first columns to the left and the others to the right.

    Parameters
    ----------
    headings
        Headings of the k columns.
    rows
        Cells, k in each row.
    left
        Number of columns to the left.
    """
    lines = [f"| {' | '.join(cells)} |\n" for cells in (headings, *rows)]
    return "".join([lines[0], "|" + "---|" * left + "---:|" * (len(headings) - left) + "\n", *lines[1:]])


def terminal_table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], *, caption: str | None = None
) -> Table:
    """A table for the terminal, the first column to the left and the others to the right.

    Parameters
    ----------
    title, caption
        Text above and below.
    headings
        Headings of the k columns; only the cells of the first may be broken into lines.
    rows
        Cells, k in each row.
    """
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(headings[0], overflow="fold", min_width=12)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells)
    return table


def write_report(summary: Summary, path: str | Path) -> None:
    """Write a summary as JSON, or by the name's end as Markdown or LaTeX; whole or not at all.

    Parameters
    ----------
    summary
        Results of `summary.summarise`.
    path
        File to write; its folder is made if need be.

    Raises
    ------
    TopRecoError
        If it cannot be written.
    """
    path = Path(path)
    if path.suffix == ".tex":
        write_latex(path, to_markdown(summary))
    else:
        write_text(path, to_markdown(summary) if path.suffix == ".md" else to_json(summary))


def _groups(summary: Summary, channel: str) -> Iterator[tuple[str, str, list[tuple[str, Result]]]]:
    """Title, observable and the methods' results of every table."""
    for subset, datasets in summary.items():
        for dataset, methods in datasets.items():
            if subset == "common" and len(methods) == 1:
                continue  # the same events again
            for name in next(iter(methods.values()))[channel]:
                rows = [(method, channels[channel][name]) for method, channels in methods.items()]
                events = "all selected events" if subset == "all" else "events that all methods solve"
                lepton = "" if channel == ALL_CHANNELS else f", {channel}"
                yield f"{name}, {dataset}{lepton}, {events}", name, rows


def _unit(observable: str) -> str:
    known = OBSERVABLES[observable]
    if known.relative:
        return "Relative residuals; slope, ρ and lin. are of logarithms"
    return f"Residuals are differences{f' in {known.unit}' if known.unit else ''}"


def _results_table(
    title: str, columns: Sequence[_Column], observable: str, rows: Sequence[tuple[str, Result]]
) -> Table:
    return terminal_table(title, *_content(columns, rows), caption=_unit(observable))


def _content(
    columns: Sequence[_Column], rows: Sequence[tuple[str, Result]]
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table with one row per method."""
    headings = ["method", *(column.heading for column in columns)]
    return headings, [[method, *(column.text(result) for column in columns)] for method, result in rows]
