"""Sections of the page, apart from the response: lists of pieces of HTML, made of the results."""

from collections.abc import Mapping, Sequence
from typing import Any

from topreco.evaluation.report import format_estimate
from topreco.validation import html
from topreco.validation.figures import (
    data_uri,
    draw_coverage,
    draw_mass_scan,
    draw_pulls,
    draw_quality,
    draw_shape,
)
from topreco.validation.gather import OBSERVED
from topreco.validation.statistics import ON_SHELL
from topreco.validation.symmetries import APPROXIMATE, EXACT
from topreco.validation.uncertainty import Coverage

Results = Mapping[str, Any]

NAMES = {"m_tt": "m(tt̄)", "pt_top": "pT(t)", "y_top": "y(t)", "c_hel": "c_hel"}
"""Observables in running text."""
_SYMMETRIES = {
    "rotation": "rotation about the beam",
    "reflection": "reflection z → −z",
    "charge": "exchange of charges",
    "jet_order": "order of jets",
}
_UNCERTAIN = "No method gives an uncertainty of each event."


def estimate(of: Any, field: str, scale: float = 1.0) -> str:
    """A field with its error in brackets.

    Parameters
    ----------
    of
        Named tuple with the field and its error.
    field, scale
        Name of the field, and what to multiply it by.
    """
    return format_estimate(scale * getattr(of, field), scale * getattr(of, f"{field}_error"))


def embedded(drawn: Sequence[tuple[Any, str]]) -> str:
    """Figures within the page.

    Parameters
    ----------
    drawn
        Each figure and what it shows.
    """
    return html.figures([(data_uri(figure), text) for figure, text in drawn])


def uncertainty(results: Results) -> list[str]:
    """Coverage and pulls."""
    known = {name: of for name, of in results["uncertainty"].items() if of}
    if not known:
        return [html.paragraph(_UNCERTAIN)]
    rows = [
        [
            f"{NAMES[name]}, {method}",
            str(found.overall.n),
            *(estimate(found.overall, f"coverage{level}", 100) for level in (68, 95)),
            *(estimate(found.pull, field) for field in ("median", "width68")),
        ]
        for name, of in known.items()
        for method, found in of.items()
    ]
    head = ["", "events", "68 % interval [%]", "95 % interval [%]", "median of pulls", "width68 of pulls"]
    parts = [
        html.paragraph(
            "How often the truth lies within the central 68 % and 95 % interval that a method gives, "
            "with binomial errors, and pulls (true − median)/(half width of the 68 % interval), which "
            "should have median 0 and width68 1. In regions of the predicted m(tt̄) the coverage should "
            "hold as well; in regions of the true m(tt̄) it cannot, since nobody knows where the truth "
            "is."
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
    return [*parts, embedded(drawn)]


def _coverage_table(methods: Mapping[str, Mapping[str, Coverage]], caption: str) -> str:
    head = ["", "events", "68 % interval [%]", "95 % interval [%]"]
    rows = [
        [f"{method}, {region}", str(c.n), *(estimate(c, f"coverage{level}", 100) for level in (68, 95))]
        for method, found in methods.items()
        for region, c in found.items()
    ]
    return html.table(head, rows, caption=f"Coverage of m(tt̄) by {caption}")


def quality(results: Results) -> list[str]:
    """Resolution against efficiency."""
    known = {method: of for method, of in results["quality"].items() if of}
    if not known:
        return [html.paragraph("No method gives a quality of its answers.")]
    head = ["", "quality above", "efficiency", "RB", "Res", "width68"]
    rows = [
        [
            method,
            f"{kept.minimum:.4g}",
            *(estimate(kept.metrics, f) for f in ("efficiency", "rb", "res", "width68")),
        ]
        for method, of in known.items()
        for kept in of["m_tt"]
    ]
    return [
        html.paragraph(
            "Events are kept in the order of the quality that the method gives them: a good quality "
            "makes the width fall quickly with the efficiency. Compare methods at equal efficiency."
        ),
        embedded(
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


def closure(results: Results) -> list[str]:
    """Masses and balance."""
    head = ["method", "mean mass [GeV]", "width68 [GeV]", f"on shell within {ON_SHELL:g} GeV [%]"]
    head += ["mean of Δ pT(tt̄) [GeV]", "width68 of Δ pT(tt̄) [GeV]", "note"]
    rows = []
    for method, closure in results["closure"].items():
        free = results["methods"][method].get("head") == "direct"
        rows.append(
            [
                method,
                estimate(closure, "mass_mean"),
                # All on shell: a width of rounding errors is none.
                "0" if closure.mass_width68 < 1e-6 else estimate(closure, "mass_width68"),
                estimate(closure, "on_shell", 100),
                estimate(closure.pt_tt, "rb"),
                estimate(closure.pt_tt, "width68"),
                "the mass means nothing (head direct)" if free else "",
            ]
        )
    return [
        html.paragraph(
            "Masses of the reconstructed t and t̄, and pT(tt̄) minus the true one, that is, whether the "
            "pair balances the recoil. A mass that a method was given says nothing of its quality. A "
            "network with the head direct predicts four components, each for itself: where the "
            "direction is uncertain, the mass of their averages is above that of a top quark. It must "
            "not be used as a top mass."
        ),
        html.table(head, rows),
    ]


def symmetries(results: Results) -> list[str]:
    """Verdicts on symmetries."""
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
            "The events are transformed, and the answers compared with the transformed answers, in "
            f"units of the top's energy. Exact: no difference above {EXACT:g}; approximate: a median up "
            f"to {APPROXIMATE:g}. “Other answers” counts events that have an answer only before or only "
            "after. Nothing at the LHC tells one direction across the beam, or one end of it, from "
            "another. A smeared method draws the same random numbers for an event before and after: "
            "where they go to other objects afterwards, the difference is statistical."
        ),
        html.table(head, rows),
    ]


def _short(value: float) -> str:
    return format_estimate(float(f"{value:.2g}"), float("nan"))


def background(results: Results) -> list[str]:
    """Events without tops."""
    rows, cuts, drawn = [], [], []
    for method, found in results["background"].items():
        rows.append([method, str(found.n), str(found.n_solved), estimate(found, "efficiency")])
        cuts += [
            [method, f"{cut.minimum:.4g}", *(estimate(cut, of, 100) for of in ("signal", "background"))]
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
            "What methods make of events that have no top quarks. A peak of the background's m(tt̄) "
            "near that of tt̄ is no sign of tops; a quality that separates the two can suppress the "
            "background."
        ),
        html.table(["method", "events", "with an answer", "efficiency"], rows, caption="Background"),
        html.table(["method", "quality above", "tt̄ kept [%]", "background kept [%]"], cuts) if cuts else "",
        embedded(drawn),
    ]


def mass_scan(results: Results) -> list[str]:
    """Bias against the top-quark mass."""
    scans = results["mass_scan"]
    masses = [f"{point.m_top:g}" for point in next(iter(scans["m_tt"].values())).points]
    head = ["", *(f"RB at {mass} GeV" for mass in masses), "change per GeV"]
    rows = [
        [
            f"{NAMES[name]}, {method}",
            *(estimate(point.metrics, "rb") for point in scan.points),
            estimate(scan, "slope"),
        ]
        for name, of in scans.items()
        for method, scan in of.items()
    ]
    return [
        html.paragraph(
            "Bias against the mass of the top quark in the simulation. A slope other than zero means "
            "that the method pulls toward the mass that it assumes or was trained with."
        ),
        html.table(head, rows),
        embedded(
            [
                (draw_mass_scan(of, name), f"Bias of {NAMES[name]} against the mass")
                for name, of in scans.items()
            ]
        ),
    ]


def speed(results: Results) -> list[str]:
    """Time per event."""
    rows = [
        [method, f"{of['events_per_second']:.0f}", f"{of['seconds']:.1f}"]
        for method, of in results["speed"].items()
    ]
    return [
        html.paragraph(
            "Indicative only: events per second of one process with one thread on the machine that made "
            "this page, with whatever else it was doing. Uncertainties and qualities are part of it."
        ),
        html.table(["method", "events/s", "seconds in all"], rows),
    ]
