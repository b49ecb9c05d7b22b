"""Results of a study: tables as Markdown, CSV and JSON, and figures.

A `Training` is the content of one ``evaluation.json``, plain JSON data, see `topreco.studies.study`.
Trainings are given by point and seed. Everything here is a function of them, so the same trainings give the
same tables.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from topreco.config import StudyConfig
from topreco.core.files import plain, write_text
from topreco.core.observables import OBSERVABLES
from topreco.core.statistics import Array
from topreco.evaluation.latex import write_latex
from topreco.evaluation.report import UNDEFINED, markdown_table
from topreco.studies.figures import plot_points, plot_scaling, save_figure
from topreco.studies.repeats import (
    ONE_SIGMA,
    Difference,
    PowerLaw,
    Spread,
    difference,
    power_law,
    prior,
    spread,
    student_error,
)

Training = dict[str, Any]
Quantity = tuple[str, str]
"""Observable and field of `Metrics`; or "" and the name of a fraction of events."""

# Correlation and linearised widths first: shrinkage toward the mean improves Res but not these.
_FIELDS = {
    "correlation": "ρ",
    "width68_linearised": "width68 lin.",
    "rms_linearised": "RMS lin.",
    "res": "Res",
    "rb": "RB",
}
_FIELDS_OF_OTHERS = ("correlation", "rms_linearised")
FRACTIONS = {"right_tops": "own tops", "right_pairing": "right pairing"}
"""Headings of the fractions of events, by name."""

_SIZES = {"events": ("train_events", "training events", 1e7), "parameters": ("parameters", "parameters", 1e8)}
"""Key in a training, name, and size to extrapolate to."""

_LEGEND = (
    "Mean ± standard deviation over the seeds, on the same test events. ρ: correlation of prediction and "
    "truth, of logarithms for masses and pT; lin.: about the response line, divided by its slope, so that "
    "shrinkage toward the mean does not help; own tops: fraction of events in which the predicted t and t̄ "
    "are closer to their own than to each other's truth; right pairing: fraction in which they fit the true "
    "pairing of b quarks and leptons better than the exchanged one."
)
_LEGEND_DIFFERENCES = (
    "Difference to {reference} of the means over the seeds, ± Student's t for 95.45 % times its standard "
    "error, from the spread within the two points and what the spreads of all points have in common. "
    "**Bold**: larger than that, so called a difference. Of twenty comparisons of equals one is expected to "
    "be bold."
)
_LEGEND_SCALING = (
    "{metric} against the number N of {size}: y = a + b (N/{first:.3g})^−c, fitted to the means over the "
    "seeds. In brackets the central 68 % of refits of points redrawn within their errors. Assumed: one law "
    "from the smallest N to the extrapolation, independent points, and a training's seed as the only source "
    "of their errors; all trainings of a size share their events."
)
_COSTS = {
    "parameters": "parameters",
    "train_events": "training events",
    "epochs": "epochs",
    "seconds": "seconds",
    "events_per_second": "events/s",
}
"""Headings of the costs by key in a training."""
_LEGEND_COST = (
    "Cost, the mean over the seeds; times are those of the training alone, beside whatever else ran."
)


class Scaling(NamedTuple):
    """A metric against the size of the training.

    Attributes
    ----------
    name, label
        Name and label of the metric.
    points
        Size, mean and its standard error, shape (3, k), by kind of network.
    laws
        Their fits, None where there is none.
    """

    name: str
    label: str
    points: dict[str, Array]
    laws: dict[str, PowerLaw | None]


@dataclass(frozen=True)
class StudyReport:
    """Trainings of a study, and the numbers that follow from them.

    Attributes
    ----------
    config
        The study.
    trainings
        Trainings by point and seed; empty for points without any.
    failures
        Error by point.
    """

    config: StudyConfig
    trainings: Mapping[str, Mapping[int, Training]]
    failures: Mapping[str, str]

    @property
    def finished(self) -> dict[str, Mapping[int, Training]]:
        """Points with trainings."""
        return {point: found for point, found in self.trainings.items() if found}

    @property
    def quantities(self) -> dict[Quantity, str]:
        """Headings of the numbers that are compared."""
        found: dict[Quantity, str] = {}
        for name in self.config.observables:
            fields = _FIELDS if name == "m_tt" else _FIELDS_OF_OTHERS
            found |= {(name, field): f"{name} {_FIELDS[field]}" for field in fields}
        return found | {("", name): heading for name, heading in FRACTIONS.items()}

    def values(self, point: str, quantity: Quantity) -> dict[int, float]:
        """A number of the trainings of a point by seed."""
        found = sorted(self.trainings.get(point, {}).items())
        return {seed: _value(training, quantity) for seed, training in found}

    def spread(self, point: str, quantity: Quantity) -> Spread:
        """Its mean and standard deviation over the seeds."""
        return spread(list(self.values(point, quantity).values()))

    def difference(self, point: str, quantity: Quantity) -> Difference:
        """Its difference to the reference."""
        common = prior(self.spread(other, quantity) for other in self.finished)
        return difference(self.spread(point, quantity), self.spread(self.config.reference, quantity), common)

    def scaling(self) -> list[Scaling]:
        """Each metric that should fall as a power of the size of the training, fitted."""
        if self.config.scaling is None:
            return []
        found = []
        key, _, at = _SIZES[self.config.scaling]
        observable = self.config.observables[0]
        for field, label in {
            "correlation": f"1 − ρ²({observable})",
            "width68_linearised": f"(width68 lin.)²({observable})",
        }.items():
            series: dict[str, list[tuple[float, float, float]]] = {}
            for point, trainings in self.finished.items():
                squares = [value**2 for value in self.values(point, (observable, field)).values()]
                mean, deviation, n = spread([1 - s if field == "correlation" else s for s in squares])
                size = float(np.mean([training[key] for training in trainings.values()]))
                error = student_error(deviation, n, ONE_SIGMA)
                kind = next(iter(trainings.values()))["backbone"]
                series.setdefault(kind, []).append((size, mean, error))
            points = {kind: np.array(sorted(rows)).T for kind, rows in series.items()}
            laws = {kind: power_law(*columns, at=at) for kind, columns in points.items()}
            found.append(Scaling(field, label, points, laws))
        return found


def _value(training: Training, quantity: Quantity) -> float:
    name, field = quantity
    value = training["metrics"][name][field] if name else training["fractions"][field]["value"]
    return math.nan if value is None else float(value)


# ---- tables ----------------------------------------------------------------------------------------------


def write_tables(report: StudyReport) -> Path:
    """Write ``table.json``, ``table.csv``, ``table.md`` and ``table.tex`` into the output folder of a study.

    With `scaling` there is also ``scaling.csv``, the fitted power laws.

    Returns
    -------
    path
        Path of ``table.md``.
    """
    folder, scaling = report.config.output, report.scaling()
    text = json.dumps(plain(_data(report, scaling)), indent=1, ensure_ascii=False)
    write_text(folder / "table.json", text + "\n")
    write_text(folder / "table.csv", _csv(_rows(report)))
    if scaling:
        write_text(folder / "scaling.csv", _csv(_law_rows(scaling)))
    markdown = "\n".join(_markdown(report, scaling))
    write_text(folder / "table.md", markdown)
    write_latex(folder / "table.md", markdown)
    return folder / "table.md"


def _data(report: StudyReport, scaling: Sequence[Scaling]) -> dict[str, Any]:
    config = report.config

    def compared(point: str, quantity: Quantity) -> dict[str, Any]:
        found = report.difference(point, quantity)
        return {
            **report.spread(point, quantity)._asdict(),
            "difference": {**found._asdict(), "significant": found.significant},
        }

    return {
        "reference": config.reference,
        "points": {
            point: {
                "overrides": list(overrides),
                "quantities": {" ".join(q).strip(): compared(point, q) for q in report.quantities},
                "trainings": {str(seed): found for seed, found in sorted(report.trainings[point].items())},
            }
            for point, overrides in config.chosen_points.items()
        },
        "scaling": [
            {"metric": each.label, "network": kind, **law._asdict()}
            for each in scaling
            for kind, law in each.laws.items()
            if law is not None
        ],
        "failures": dict(report.failures),
    }


def _markdown(report: StudyReport, scaling: Sequence[Scaling]) -> Iterator[str]:
    config, headings = report.config, list(report.quantities.values())
    some = next((t for found in report.trainings.values() for t in found.values()), None)
    events = f"; {some['test_events']} test events" if some else ""
    yield f"# {config.output.name}\n"
    yield f"Reference: {config.reference}; seeds {', '.join(map(str, config.seeds))}{events}. {_LEGEND}\n"
    yield markdown_table(
        ["point", *headings, "seeds"],
        [
            [point, *(_spread_text(report.spread(point, q)) for q in report.quantities), str(len(found))]
            for point, found in report.finished.items()
        ],
    )
    others = [point for point in report.finished if point != config.reference]
    if others and report.trainings.get(config.reference):
        yield f"{_LEGEND_DIFFERENCES.format(reference=config.reference)}\n"
        yield markdown_table(
            ["point", *headings],
            [
                [point, *(_difference_text(report.difference(point, q)) for q in report.quantities)]
                for point in others
            ],
        )
    for each in scaling:
        fitted = {kind: law for kind, law in each.laws.items() if law is not None}
        yield from _scaling_table(report, each.label, fitted)
    yield f"{_LEGEND_COST}\n"
    yield markdown_table(
        ["point", *_COSTS.values()],
        [[point, *_cost(list(found.values()))] for point, found in report.finished.items()],
    )
    if report.failures:
        yield "Not trained with at least one seed:\n"
        yield markdown_table(
            ["point", "error"], [[p, e.replace("|", "\\|")] for p, e in report.failures.items()]
        )


def _scaling_table(report: StudyReport, label: str, laws: Mapping[str, PowerLaw]) -> Iterator[str]:
    if not laws or report.config.scaling is None:
        return
    _, size, at = _SIZES[report.config.scaling]
    # All networks of a study have about the same sizes, so one unit serves for the legend.
    first = min(law.n_first for law in laws.values())
    yield f"{_LEGEND_SCALING.format(metric=label, size=size, first=first)}\n"

    def interval(value: float, low: float, high: float) -> str:
        return f"{value:.4g} [{low:.4g}, {high:.4g}]"

    yield markdown_table(
        ["network", "a", "b", "c", "χ²/ndf", f"at N = {at:.0e}"],
        [
            [
                kind,
                *(interval(*each) for each in zip((law.a, law.b, law.c), law.low, law.high, strict=True)),
                f"{law.chi2:.1f}/{law.ndf}",
                interval(law.value, law.value_low, law.value_high),
            ]
            for kind, law in laws.items()
        ],
    )


def _spread_text(found: Spread) -> str:
    if not math.isfinite(found.mean):
        return UNDEFINED
    if not math.isfinite(found.deviation):
        return f"{found.mean:.4f}"
    return f"{found.mean:.4f} ± {found.deviation:.4f}"


def _difference_text(found: Difference) -> str:
    if not math.isfinite(found.mean):
        return UNDEFINED
    if not math.isfinite(found.error):
        return f"{found.mean:+.4f}"
    text = f"{found.mean:+.4f} ± {found.error:.4f}"
    return f"**{text}**" if found.significant else text


def _cost(trainings: Sequence[Training]) -> list[str]:
    values = (
        spread([math.nan if t[key] is None else float(t[key]) for t in trainings]).mean for key in _COSTS
    )
    return [f"{value:.{1 if key == 'epochs' else 0}f}" for key, value in zip(_COSTS, values, strict=True)]


def _rows(report: StudyReport) -> Iterator[Sequence[str]]:
    """Heading, and a row per point: each number with its spread and its difference to the reference."""
    columns = ("", " deviation", " difference", " difference error")
    yield [
        *("point", "seeds", "test events"),
        *(f"{' '.join(q).strip()}{column}" for q in report.quantities for column in columns),
        *_COSTS.values(),
    ]
    for point, found in report.finished.items():
        trainings = list(found.values())
        numbers = [
            number
            for q in report.quantities
            for number in (*report.spread(point, q)[:2], *_compared(report, point, q))
        ]
        cells = [f"{x:.6g}" if math.isfinite(x) else "" for x in numbers]
        test_events = str(trainings[0]["test_events"])
        yield [point, str(len(trainings)), test_events, *cells, *_cost(trainings)]


def _compared(report: StudyReport, point: str, quantity: Quantity) -> tuple[float, float]:
    """Difference to the reference and its error, NaN for the reference itself."""
    if point == report.config.reference:
        return math.nan, math.nan
    return report.difference(point, quantity)[:2]


def _law_rows(scaling: Sequence[Scaling]) -> Iterator[Sequence[str]]:
    """Heading, and a row per fitted power law."""
    ends = [f"{name}_{end}" for name in "abc" for end in ("low", "high")]
    names = ("a", "b", "c", "n_first", "chi2", "ndf", "at", "value", "value_low", "value_high")
    yield ["metric", "network", *names, *ends]
    for each in scaling:
        for kind, law in each.laws.items():
            if law is not None:
                of_ends = [end for pair in zip(law.low, law.high, strict=True) for end in pair]
                numbers = (*(getattr(law, name) for name in names), *of_ends)
                yield [each.label, kind, *(f"{x:.6g}" for x in numbers)]


def _csv(rows: Iterable[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


# ---- figures ---------------------------------------------------------------------------------------------


def write_figures(report: StudyReport) -> None:
    """Write one figure per number that is compared, and those of the scaling, into ``<output>/figures``."""
    folder = report.config.output / "figures"
    for (name, field), heading in report.quantities.items():
        values = {point: list(report.values(point, (name, field)).values()) for point in report.finished}
        label = f"{OBSERVABLES[name].label}: {_FIELDS[field]}" if name else f"Fraction of events: {heading}"
        figure = plot_points(values, label, reference=report.config.reference)
        save_figure(figure, folder / f"{name}_{field}".strip("_"))
    for each in report.scaling():
        size = _SIZES[report.config.scaling or "events"][1].capitalize()
        save_figure(plot_scaling(each.points, each.laws, each.label, size), folder / f"scaling_{each.name}")
