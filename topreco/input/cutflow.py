"""Numbers of events that pass each cut."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from rich import box
from rich.table import Table

from topreco.core.errors import TopRecoError
from topreco.core.events import CHANNELS, FloatArray, IntArray

_TOTAL = "total"


@dataclass(frozen=True)
class Count:
    """Events that pass a cut.

    Attributes
    ----------
    n
        Number of events.
    sumw, sumw2
        Sum of their signed weights and of the squares.
    """

    n: int = 0
    sumw: float = 0.0
    sumw2: float = 0.0

    @classmethod
    def of(cls, weight: FloatArray) -> Self:
        """Count of events with the given weights, shape (n,)."""
        return cls(len(weight), float(weight.sum()), float(np.square(weight).sum()))

    def __add__(self, other: "Count") -> "Count":
        return Count(self.n + other.n, self.sumw + other.sumw, self.sumw2 + other.sumw2)


@dataclass
class Cutflow:
    """Counts after each cut in order, in total and, once the channel is known, per channel.

    Cutflows of one selection add up; one without any step adds nothing. As `to_dict` gives plain numbers in
    plain dictionaries, coffea merges those too.

    Attributes
    ----------
    steps
        By name of the cut, counts by ``total`` and channel; under the first cut also those of `note`.
    """

    steps: dict[str, dict[str, Count]] = field(default_factory=dict)

    def add_step(self, name: str, weight: FloatArray, channel: IntArray | None = None) -> None:
        """Append a cut.

        Parameters
        ----------
        name
            Name of the cut.
        weight
            Weights of the events that pass this cut and all before it, shape (n,).
        channel
            Their index into `topreco.core.events.CHANNELS`, shape (n,).
        """
        counts = {_TOTAL: Count.of(weight)}
        if channel is not None:
            counts |= {label: Count.of(weight[channel == i]) for i, label in enumerate(CHANNELS)}
        self.steps[name] = counts

    def note(self, what: str, n: int) -> None:
        """Add a number of objects, if it is not zero, that a reader of the cutflow should know."""
        if n:
            next(iter(self.steps.values()))[what] = Count(int(n))

    @property
    def notes(self) -> dict[str, int]:
        """Numbers of objects by what they are, see `note`."""
        first = next(iter(self.steps.values()), {})
        return {what: count.n for what, count in first.items() if what not in (_TOTAL, *CHANNELS)}

    def __getitem__(self, name: str) -> Count:
        """Count over all channels after the cut of that name."""
        return self.steps[name][_TOTAL]

    def __add__(self, other: "Cutflow") -> "Cutflow":
        if not self.steps or not other.steps:
            return Cutflow(dict(self.steps or other.steps))
        if list(self.steps) != list(other.steps):
            raise TopRecoError(
                "cutflows of different selections cannot be added: "
                f"steps {', '.join(self.steps)} and {', '.join(other.steps)}"
            )
        return Cutflow(
            {
                name: {
                    label: counts.get(label, Count()) + other.steps[name].get(label, Count())
                    for label in {**counts, **other.steps[name]}
                }
                for name, counts in self.steps.items()
            }
        )

    def to_dict(self) -> dict[str, dict[str, dict[str, float]]]:
        """Plain data: step, then ``total`` or channel, then ``n``, ``sumw``, ``sumw2``."""
        return {
            name: {label: dict(vars(count)) for label, count in counts.items()}
            for name, counts in self.steps.items()
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Self:
        """Inverse of `to_dict`, also of merged ones.

        Raises
        ------
        TopRecoError
            If the content is not that of a cutflow.
        """
        try:
            return cls(
                {
                    name: {label: Count(**count) for label, count in counts.items()}
                    for name, counts in content.items()
                }
            )
        except (AttributeError, TypeError) as error:
            raise TopRecoError(f"not a cutflow: {error}") from error

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1)

    def table(self, title: str | None = None) -> Table:
        """Table for a terminal: events, efficiencies, weighted sum with its error, and events per channel."""
        table = Table(
            title=title,
            title_justify="left",
            caption="\n".join(f"{n} {what}" for what, n in self.notes.items()) or None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        headings, rows = self.rows()
        table.add_column(headings[0], no_wrap=True)
        for heading in headings[1:]:
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        return table

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Headings and cells of the table."""
        rows = []
        first = previous = None
        for name, counts in self.steps.items():
            total = counts[_TOTAL]
            first = total if first is None else first
            rows.append(
                [
                    name,
                    str(total.n),
                    "" if previous is None else _fraction(total, previous),
                    _fraction(total, first),
                    f"{total.sumw:.6g} ± {total.sumw2**0.5:.3g}",
                    *(str(counts[label].n) if label in counts else "" for label in CHANNELS),
                ]
            )
            previous = total
        return ["cut", "events", "of last", "of all", "weighted", *CHANNELS], rows


def _fraction(passed: Count, of: Count) -> str:
    return f"{passed.n / of.n:.2%}" if of.n else "–"
