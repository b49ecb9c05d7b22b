"""The page of a validation: every number of the JSON that a reader wants, with figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from topreco.evaluation.metrics import Metrics
from topreco.evaluation.report import format_estimate
from topreco.validation import html
from topreco.validation.figures import (
    data_uri,
    draw_bins,
    draw_coverage,
    draw_mass_scan,
    draw_pulls,
    draw_quality,
    draw_residuals,
    draw_shape,
)
from topreco.validation.gather import OBSERVED, EventTable
from topreco.validation.provenance import provenance
from topreco.validation.statistics import ON_SHELL, Coverage
from topreco.validation.symmetries import APPROXIMATE, EXACT

NAMES = {"m_tt": "m(tt̄)", "pt_top": "pT(t)", "y_top": "y(t)", "c_hel": "c_hel"}
"""Observables in running text."""
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
_SYMMETRIES = {
    "rotation": "rotation about the beam",
    "reflection": "reflection z → −z",
    "charge": "exchange of charges",
    "jet_order": "order of jets",
}
_UNCERTAIN = "No method gives an uncertainty of each event."

Results = Mapping[str, Any]


def render(results: Results, table: EventTable) -> str:
    """The page as HTML.

    Parameters
    ----------
    results
        As `topreco.validation.run.validate` collects them.
    table
        Events, for the distributions.
    """
    sections = [
        ("summary", "Summary", _summary(results)),
        *((name, f"Response: {NAMES[name]}", _response(results, table, name)) for name in OBSERVED),
        ("regions", "Response in parts of the events", _regions(results)),
        ("uncertainty", "Uncertainty of each event", _uncertainty(results)),
        ("quality", "Resolution against efficiency", _quality(results)),
        ("closure", "Kinematic closure", _closure(results)),
        ("symmetries", "Symmetries", _symmetries(results)),
        *_optional(results),
        ("speed", "Speed", _speed(results)),
        ("provenance", "Data, versions, command", provenance(results)),
    ]
    methods = ", ".join(results["methods"])
    title = "Validation of the reconstruction of top-quark pairs"
    head = [
        html.title(title),
        html.paragraph(f"{methods}, on {results['metadata']['n_events']} simulated events."),
        html.contents([(anchor, name) for anchor, name, _ in sections]),
    ]
    return html.document(title, [*head, *(html.section(*entry[:2], *entry[2]) for entry in sections)])


def _optional(results: Results) -> list[tuple[str, str, list[str]]]:
    found = []
    if results["background"]:
        found.append(("background", "Events without tops", _background(results)))
    if results["mass_scan"]:
        found.append(("mass-scan", "Dependence on the top-quark mass", _mass_scan(results)))
    return found


def _estimate(of: Any, field: str, scale: float = 1.0) -> str:
    return format_estimate(scale * getattr(of, field), scale * getattr(of, f"{field}_error"))


def _row(name: str, metrics: Metrics, fields: Sequence[str] = tuple(_METRICS)) -> list[str]:
    return [name, str(metrics.n), *(_estimate(metrics, field) for field in fields)]


def _summary(results: Results) -> list[str]:
    head = ["method", "efficiency"]
    shown = (("m_tt", "rb"), ("m_tt", "width68"), ("pt_top", "rb"), ("pt_top", "width68"))
    shown += (("y_top", "width68"), ("c_hel", "slope"))
    head += [f"{_METRICS[field]} {NAMES[name]}" for name, field in shown]
    head += ["68 % interval m(tt̄) [%]", "95 % interval m(tt̄) [%]", "symmetries that hold exactly"]
    rows = []
    for method in results["methods"]:
        of = {name: results["response"][name][method].inclusive for name in OBSERVED}
        found = results["uncertainty"]["m_tt"].get(method)
        covered = [_estimate(found.overall, f"coverage{level}", 100) if found else "–" for level in (68, 95)]
        verdicts = [s.verdict for s in results["symmetries"].get(method, {}).values()]
        exact = f"{verdicts.count('exact')} of {len(verdicts)}" if verdicts else "–"
        numbers = [_estimate(of[name], field) for name, field in shown]
        rows.append([method, _estimate(of["m_tt"], "efficiency"), *numbers, *covered, exact])
    warnings = [
        html.paragraph(
            f"{of['training_events']} of the {results['metadata']['n_events']} events are of datasets that "
            f"{method} was trained on. Judge it on others.",
            warning=True,
        )
        for method, of in results["methods"].items()
        if of.get("training_events")
    ]
    return [
        html.paragraph(
            "Numbers in brackets are the statistical error of the last digits. RB is the mean of "
            "(reco − true)/true (of reco − true for y and c_hel), and should be near 0; width68 is half the width "
            "of its central 68 %: smaller is better at equal efficiency. A slope of 1 keeps the whole "
            "information of c_hel, 0 none. The intervals should hold the truth as often as their names say."
        ),
        *warnings,
        html.table(head, rows, caption="All selected events"),
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
            "negative at large ones, without any of that in bins of the reconstructed value. Slope, ρ and the "
            "linearised widths do not reward shrinking."
        ),
        html.table(head, [_row(m, r.inclusive) for m, r in of.items()], caption="All selected events"),
        html.table(head, [_row(m, r.common) for m, r in of.items()], caption="Events that all methods solve"),
        _figures([(figure, f"{text}, {NAMES[name]}") for figure, text in figures]),
    ]


def _figures(drawn: Sequence[tuple[Any, str]]) -> str:
    return html.figures([(data_uri(figure), text) for figure, text in drawn])


def _regions(results: Results) -> list[str]:
    fields = ("rb", "res", "median", "width68", "efficiency")
    head = ["region", "events", *(_METRICS[field] for field in fields)]
    parts = [
        html.paragraph(
            "The same metrics of m(tt̄) by channel, number of jets and b tags, decays through a τ and true "
            "kinematics; the other observables are in results.json. Differences in RB between channels or "
            "numbers of jets become uncertainties of an analysis that mixes them."
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


def _uncertainty(results: Results) -> list[str]:
    known = {name: of for name, of in results["uncertainty"].items() if of}
    if not known:
        return [html.paragraph(_UNCERTAIN)]
    rows = [
        [
            f"{NAMES[name]}, {method}",
            str(found.overall.n),
            *(_estimate(found.overall, f"coverage{level}", 100) for level in (68, 95)),
            *(_estimate(found.pull, field) for field in ("median", "width68")),
        ]
        for name, of in known.items()
        for method, found in of.items()
    ]
    head = ["", "events", "68 % interval [%]", "95 % interval [%]", "median of pulls", "width68 of pulls"]
    parts = [
        html.paragraph(
            "How often the truth lies within the central 68 % and 95 % interval that a method gives, with "
            "binomial errors, and pulls (true − median)/(half width of the 68 % interval), which should have "
            "median 0 and width68 1. In regions of the predicted m(tt̄) the coverage should hold as well; in "
            "regions of the true m(tt̄) it cannot, since nobody knows where the truth is."
        ),
        html.table(head, rows, caption="All events with an interval"),
    ]
    drawn = [
        (draw_pulls({m: f.pull for m, f in of.items()}, n), f"Pulls of {NAMES[n]}") for n, of in known.items()
    ]
    if "m_tt" in known:
        for field, label in (("predicted", "Reconstructed"), ("true", "True")):
            by_method = {m: getattr(f, field) for m, f in known["m_tt"].items()}
            parts.append(_coverage_table(by_method, f"{label} m(tt̄) [GeV]"))
            figure = draw_coverage(by_method, rf"{label} $m_{{t\bar{{t}}}}$ [GeV]")
            text = f"Coverage of m(tt̄) by {label.lower()} m(tt̄): full markers 68 %, open ones 95 %"
            drawn.append((figure, text))
    return [*parts, _figures(drawn)]


def _coverage_table(methods: Mapping[str, Mapping[str, Coverage]], caption: str) -> str:
    head = ["", "events", "68 % interval [%]", "95 % interval [%]"]
    rows = [
        [f"{method}, {region}", str(c.n), *(_estimate(c, f"coverage{level}", 100) for level in (68, 95))]
        for method, found in methods.items()
        for region, c in found.items()
    ]
    return html.table(head, rows, caption=f"Coverage of m(tt̄) by {caption}")


def _quality(results: Results) -> list[str]:
    known = {method: of for method, of in results["quality"].items() if of}
    if not known:
        return [html.paragraph("No method gives a quality of its answers.")]
    head = ["", "quality above", "efficiency", "RB", "Res", "width68"]
    rows = [
        [
            method,
            f"{kept.minimum:.4g}",
            *(_estimate(kept.metrics, f) for f in ("efficiency", "rb", "res", "width68")),
        ]
        for method, of in known.items()
        for kept in of["m_tt"]
    ]
    return [
        html.paragraph(
            "Events are kept in the order of the quality that the method gives them: a good quality makes the "
            "width fall quickly with the efficiency. Compare methods at equal efficiency."
        ),
        _figures(
            [
                (
                    draw_quality({m: of[name] for m, of in known.items()}, name),
                    f"Cuts on the quality, {NAMES[name]}",
                )
                for name in OBSERVED
            ]
        ),
        html.table(head, rows, caption=f"Cuts on the quality, {NAMES['m_tt']}"),
    ]


def _closure(results: Results) -> list[str]:
    head = ["method", "mean mass [GeV]", "width68 [GeV]", f"on shell within {ON_SHELL:g} GeV [%]"]
    head += ["mean of Δ pT(tt̄) [GeV]", "width68 of Δ pT(tt̄) [GeV]", "note"]
    rows = []
    for method, closure in results["closure"].items():
        free = results["methods"][method].get("head") == "direct"
        rows.append(
            [
                method,
                _estimate(closure, "mass_mean"),
                _estimate(closure, "mass_width68"),
                _estimate(closure, "on_shell", 100),
                _estimate(closure.pt_tt, "rb"),
                _estimate(closure.pt_tt, "width68"),
                "the mass means nothing (head direct)" if free else "",
            ]
        )
    return [
        html.paragraph(
            "Masses of the reconstructed t and t̄, and pT(tt̄) minus the true one, that is, whether the pair "
            "balances the recoil. A mass that a method was given says nothing of its quality. A network with the "
            "head direct predicts four components, each as the mean of what may be true; the mass of such a "
            "mean is above that of a top quark where directions are uncertain, and must not be used as a top mass."
        ),
        html.table(head, rows),
    ]


def _symmetries(results: Results) -> list[str]:
    if not results["symmetries"]:
        return [html.paragraph("Tops of a file cannot be checked for symmetries.")]
    head = ["", "verdict", "events", "median difference", "largest difference", f"above {EXACT:g} [%]"]
    head.append("other answers [%]")
    rows = [
        [
            f"{method}: {_SYMMETRIES[name]}",
            found.verdict,
            str(found.n),
            *(_short(x) for x in (found.median, found.largest, 100 * found.above, 100 * found.changed)),
        ]
        for method, of in results["symmetries"].items()
        for name, found in of.items()
    ]
    return [
        html.paragraph(
            "The events are transformed, and the answers compared with the transformed answers, in units of the "
            f"top's energy. Exact: no difference above {EXACT:g}; approximate: a median up to {APPROXIMATE:g}. "
            "“Other answers” counts events that have an answer only before or only after. The direction of the "
            "detector's axes is arbitrary, so that rotations should hold; smearing draws other random numbers "
            "for transformed events, so that smeared methods cannot be exact."
        ),
        html.table(head, rows),
    ]


def _short(value: float) -> str:
    return format_estimate(float(f"{value:.2g}"), float("nan"))


def _background(results: Results) -> list[str]:
    rows, cuts, drawn = [], [], []
    for method, found in results["background"].items():
        rows.append([method, str(found.n), str(found.n_solved), _estimate(found, "efficiency")])
        cuts += [
            [method, f"{cut.minimum:.4g}", *(_estimate(cut, of, 100) for of in ("signal", "background"))]
            for cut in found.cuts
        ]
        for quantity, shape in (("m(tt̄)", found.m_tt), ("quality", found.quality)):
            if shape is not None:
                label = (
                    r"Reconstructed $m_{t\bar{t}}$ [GeV]" if shape is found.m_tt else f"Quality of {method}"
                )
                drawn.append((draw_shape(shape, label), f"{quantity} of {method}, tt̄ and background"))
    return [
        html.paragraph(
            "What methods make of events that have no top quarks. A peak of the background's m(tt̄) near that of "
            "tt̄ is no sign of tops; a quality that separates the two can suppress the background."
        ),
        html.table(["method", "events", "with an answer", "efficiency"], rows, caption="Background"),
        html.table(["method", "quality above", "tt̄ kept [%]", "background kept [%]"], cuts) if cuts else "",
        _figures(drawn),
    ]


def _mass_scan(results: Results) -> list[str]:
    scans = results["mass_scan"]
    masses = [f"{point.m_top:g}" for point in next(iter(scans["m_tt"].values())).points]
    head = ["", *(f"RB at {mass} GeV" for mass in masses), "change per GeV"]
    rows = [
        [
            f"{NAMES[name]}, {method}",
            *(_estimate(point.metrics, "rb") for point in scan.points),
            _estimate(scan, "slope"),
        ]
        for name, of in scans.items()
        for method, scan in of.items()
    ]
    return [
        html.paragraph(
            "Bias against the mass of the top quark in the simulation. A slope other than zero means that the "
            "method pulls toward the mass that it assumes or was trained with."
        ),
        html.table(head, rows),
        _figures(
            [
                (draw_mass_scan(of, name), f"Bias of {NAMES[name]} against the mass")
                for name, of in scans.items()
            ]
        ),
    ]


def _speed(results: Results) -> list[str]:
    rows = [
        [method, f"{of['events_per_second']:.0f}", f"{of['seconds']:.1f}"]
        for method, of in results["speed"].items()
    ]
    return [
        html.paragraph(
            "Indicative only: events per second of one process with one thread on the machine that made this "
            "page, with whatever else it was doing. Uncertainties and qualities are part of it."
        ),
        html.table(["method", "events/s", "seconds in all"], rows),
    ]
