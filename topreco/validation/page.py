"""The page of a validation: every number of the JSON that a reader wants, with figures."""

from collections.abc import Sequence

from topreco.core.statistics import Metrics
from topreco.validation import html, sections
from topreco.validation.figures import draw_bins, draw_residuals
from topreco.validation.gather import OBSERVED, EventTable
from topreco.validation.provenance import provenance
from topreco.validation.sections import NAMES, Results, embedded, estimate

_METRICS = {
    "rb": "RB",
    "res": "Res",
    "median": "median",
    "width68": "width68",
    "slope": "slope",
    "correlation": "ρ",
    "rms_linearised": "RMS lin.",
    "width68_linearised": "width68 lin.",
    "efficiency": "efficiency",
}


def render(results: Results, table: EventTable) -> str:
    """The page as HTML.

    Parameters
    ----------
    results
        As `topreco.validation.run.validate` collects them.
    table
        Events, for the distributions.
    """
    parts = [
        ("summary", "Summary", _summary(results)),
        *((name, f"Response: {NAMES[name]}", _response(results, table, name)) for name in OBSERVED),
        ("regions", "Response in parts of the events", _regions(results)),
        ("uncertainty", "Uncertainty of each event", sections.uncertainty(results)),
        ("quality", "Resolution against efficiency", sections.quality(results)),
        ("closure", "Kinematic closure", sections.closure(results)),
        ("symmetries", "Symmetries", sections.symmetries(results)),
        *_optional(results),
        ("speed", "Speed", sections.speed(results)),
        ("provenance", "Data, versions, command", provenance(results)),
    ]
    methods = ", ".join(results["methods"])
    title = "Validation of the reconstruction of top-quark pairs"
    head = [
        html.title(title),
        html.paragraph(f"{methods}, on {results['metadata']['n_events']} simulated events."),
        html.contents([(anchor, name) for anchor, name, _ in parts]),
    ]
    return html.document(title, [*head, *(html.section(*entry[:2], *entry[2]) for entry in parts)])


def _optional(results: Results) -> list[tuple[str, str, list[str]]]:
    found = []
    if results["background"]:
        found.append(("background", "Events without tops", sections.background(results)))
    if results["mass_scan"]:
        found.append(("mass-scan", "Dependence on the top-quark mass", sections.mass_scan(results)))
    return found


def _row(name: str, metrics: Metrics, fields: Sequence[str] = tuple(_METRICS)) -> list[str]:
    return [name, str(metrics.n), *(estimate(metrics, field) for field in fields)]


def _summary(results: Results) -> list[str]:
    head = ["efficiency"]
    shown: tuple[tuple[str, str], ...] = (
        ("m_tt", "rb"),
        ("m_tt", "width68"),
        ("pt_top", "rb"),
        ("pt_top", "width68"),
    )
    shown += (("y_top", "width68"), ("c_hel", "slope"))
    head += [f"{_METRICS[field]} {NAMES[name]}" for name, field in shown]
    head += [
        "in the 68 % interval m(tt̄) [%]",
        "in the 95 % interval m(tt̄) [%]",
        "symmetries that hold exactly",
    ]
    columns = []
    for method in results["methods"]:
        of = {name: results["response"][name][method].inclusive for name in OBSERVED}
        found = results["uncertainty"]["m_tt"].get(method)
        covered = [estimate(found.overall, f"coverage{level}", 100) if found else "–" for level in (68, 95)]
        verdicts = [s.verdict for s in results["symmetries"].get(method, {}).values()]
        exact = f"{verdicts.count('exact')} of {len(verdicts)}" if verdicts else "–"
        numbers = [estimate(of[name], field) for name, field in shown]
        columns.append([estimate(of["m_tt"], "efficiency"), *numbers, *covered, exact])
    rows = [list(row) for row in zip(head, *columns, strict=True)]
    warnings = [
        html.paragraph(
            f"{of['training_events']} of the {results['metadata']['n_events']} events are of datasets "
            f"that {method} was trained on. Judge it on others.",
            warning=True,
        )
        for method, of in results["methods"].items()
        if of.get("training_events")
    ]
    return [
        html.paragraph(
            "Numbers in brackets are the statistical error of the last digits. RB is the mean of (reco "
            "− true)/true (of reco − true for y and c_hel) and should be near 0; width68 is half the "
            "width of its central 68 %: smaller is better at equal efficiency. A slope of 1 keeps the "
            "whole information of c_hel, 0 none. The intervals should hold the truth as often as their "
            "names say."
        ),
        *warnings,
        html.table(["", *results["methods"]], rows, caption="All selected events"),
    ]


def _response(results: Results, table: EventTable, name: str) -> list[str]:
    of = results["response"][name]
    head = ["method", "events", *_METRICS.values()]
    figures = [
        (draw_residuals(table, name), "Distribution of the residual"),
        (draw_bins({m: r.truth_bins for m, r in of.items()}, "rb", name), "Bias in bins of the truth"),
        (draw_bins({m: r.truth_bins for m, r in of.items()}, "res", name), "Resolution in bins of the truth"),
        (
            draw_bins({m: r.truth_bins for m, r in of.items()}, "width68", name),
            "68 % half-width in bins of the truth",
        ),
        (
            draw_bins({m: r.pred_bins for m, r in of.items()}, "rb", name, predicted=True),
            "Bias in bins of the reconstructed value",
        ),
        (
            draw_bins({m: r.pred_bins for m, r in of.items()}, "width68", name, predicted=True),
            "68 % half-width in bins of the reconstructed value",
        ),
    ]
    return [
        html.paragraph(
            "Whoever knows little shrinks toward the mean: RB is then positive at small true values and "
            "negative at large ones. In bins of the reconstructed value, which are what an analysis "
            "sees, it is another. Slope, ρ and the linearised widths do not reward shrinking."
        ),
        html.table(head, [_row(m, r.inclusive) for m, r in of.items()], caption="All selected events"),
        html.table(head, [_row(m, r.common) for m, r in of.items()], caption="Events that all methods solve"),
        embedded([(figure, f"{text}, {NAMES[name]}") for figure, text in figures]),
    ]


def _regions(results: Results) -> list[str]:
    fields = ("rb", "res", "median", "width68", "efficiency")
    head = ["region", "events", *(_METRICS[field] for field in fields)]
    parts = [
        html.paragraph(
            "The same metrics of m(tt̄) by channel, number of jets and b tags, decays through a τ and "
            "true kinematics; the other observables are in results.json. Differences in RB between "
            "channels or numbers of jets become uncertainties of an analysis that mixes them."
        )
    ]
    for method, response in results["response"]["m_tt"].items():
        rows = [
            _row(f"{kind}: {name}", metrics, fields)
            for kind, found in response.regions.items()
            for name, metrics in found.items()
        ]
        parts.append(html.table(head, rows, caption=f"{NAMES['m_tt']}, {method}"))
    return parts
