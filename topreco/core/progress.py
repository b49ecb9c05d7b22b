"""The progress bar of all commands, on the standard error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console


class Advance(Protocol):
    """Advances a progress bar."""

    def __call__(self, n: int = 1, text: str | None = None) -> None:
        """Count `n` more steps as done; a text, if given, replaces the one after the bar."""


@contextmanager
def progress_bar(
    title: str,
    total: int | None,
    *,
    show: bool,
    unit: str = "",
    done: int = 0,
    transient: bool = False,
    console: "Console | None" = None,
) -> Iterator[Advance]:
    """Progress bar with the number of steps, their rate and the remaining time.

    Parameters
    ----------
    title
        Text before the bar.
    total
        Number of steps; None if it is not known.
    show
        False shows nothing.
    unit
        What a step is, such as events, in the rate; without it no rate is shown.
    done
        Steps that were done before; they do not count in the rate.
    transient
        Remove the bar at the end.
    console
        Where to show it, for lines that are printed meanwhile; a new one on the standard error if None.

    Yields
    ------
    advance
        Function to call when steps are done.
    """
    # Workers never show a bar, and need not load what draws it.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    if unit:
        columns.append(TextColumn("{task.fields[rate]:,.0f} " + unit + "/s"))
    columns += [TextColumn("{task.fields[text]}"), TimeRemainingColumn()]
    console = console or Console(stderr=True)
    with Progress(*columns, console=console, disable=not show, transient=transient) as bar:
        task = bar.add_task(title, total=total, completed=done, rate=0.0, text="")
        shown = bar.tasks[0]

        def advance(n: int = 1, text: str | None = None) -> None:
            shown_text = shown.fields["text"] if text is None else text
            elapsed = shown.elapsed or 0.0
            rate = (shown.completed + n - done) / elapsed if elapsed > 0 else 0.0
            bar.update(task, advance=n, rate=rate, text=shown_text)

        yield advance
