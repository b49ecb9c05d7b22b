"""Data of the page of a validation: tables and figures for ``page.html.jinja``."""

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from topreco.core.files import plain
from topreco.core.statistics import Metrics
from topreco.evaluation.report import format_estimate
from topreco.validation.calibration import Calibration, Mean
from topreco.validation.complementarity import matrix, meaning
from topreco.validation.figures import (
    data_uri,
    draw_bins,
    draw_coverage,
    draw_expected_coverage,
    draw_mass_scan,
    draw_pulls,
    draw_quality,
    draw_ranks,
    draw_residuals,
    draw_shape,
    draw_spin,
)
from topreco.validation.gather import EventTable
from topreco.validation.posterior import ENERGY
from topreco.validation.statistics import ON_SHELL
from topreco.validation.symmetries import APPROXIMATE, EXACT
from topreco.validation.tables import (
    COLUMNS,
    VERDICT_COLUMNS,
    VERDICT_LEGEND,
    estimate,
    verdict_rows,
    verdict_sentences,
)
from topreco.validation.uncertainty import Coverage

Results = Mapping[str, Any]

_NAMES = {"m_tt": "m(tt̄)", "pt_top": "pT(t)", "y_top": "y(t)"}
"""Observables in running text; the others by their names."""
_SYMMETRIES = {
    "rotation": "rotation about the beam",
    "reflection": "reflection z → −z",
    "charge": "exchange of charges",
    "jet_order": "order of jets",
}
_METRICS = (*(field for field in COLUMNS if field != "efficiency"), "efficiency")
_INTERVALS = ("68 % interval [%]", "95 % interval [%]")


class Table(NamedTuple):
    """Headings, cells of each row, the first of which names it, and caption; `text` may break into lines."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text: bool = False


class Image(NamedTuple):
    """A figure, and caption, which is also its alternative text."""

    figure: Figure
    text: str

    @property
    def uri(self) -> str:
        """Data URI of the figure."""
        return data_uri(self.figure)


def render(content: Mapping[str, Any]) -> str:
    """Page as HTML that needs nothing else.

    Parameters
    ----------
    content
        As `page_content` gives it.
    """
    environment = Environment(
        loader=PackageLoader("topreco.validation", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(content)


def page_content(results: Results, table: EventTable) -> dict[str, Any]:
    """Tables and figures by section.

    Parameters
    ----------
    results
        As `topreco.validation.validate.validate` collects them.
    table
        Events, for the distributions.

    Returns
    -------
    content
        ``contents`` has the headings of the sections in their order.
    """
    shown = results["metadata"]["shown"]
    contents = {
        **({"verdicts": "Against the best analytic method"} if results["verdicts"] else {}),
        "summary": "Summary",
        **{name: f"Response: {_name(name)}" for name in shown},
        "observables": "All observables",
        **({"complementarity": "Who is right where another fails"} if len(results["methods"]) > 1 else {}),
        "regions": "Response in parts of the events",
        "uncertainty": "Uncertainty of each event",
        "posterior": "Posteriors",
        "quality": "Resolution against efficiency",
        "closure": "Kinematic closure",
        "symmetries": "Symmetries",
        "spin": "Spin correlation",
        **({"background": "Events without tops"} if results["background"] else {}),
        **({"mass-scan": "Dependence on the top-quark mass"} if results["mass_scan"] else {}),
        "speed": "Speed",
        "provenance": "Data, versions, command",
    }
    return {
        "title": "Validation of the reconstruction of top-quark pairs",
        "methods": list(results["methods"]),
        "n_events": results["metadata"]["n_events"],
        "contents": contents,
        "trained_on": {m: n for m, of in results["methods"].items() if (n := of.get("training_events"))},
        "exact": f"{EXACT:g}",
        "approximate": f"{APPROXIMATE:g}",
        "verdicts": _verdicts(results),
        "verdict_legend": VERDICT_LEGEND,
        "summary": _summary(results),
        "response": {name: _response(results, table, name) for name in shown},
        "observables": _observables(results),
        "complementarity": [
            {"meaning": meaning(name, of), "matrix": Table(*matrix(of), _name(name))}
            for name, of in results["complementarity"].items()
        ],
        "regions": list(_regions(results)),
        "uncertainty": _uncertainty(results),
        "posterior": _posterior(results),
        "quality": _quality(results),
        "closure": _closure(results),
        "symmetries": _symmetries(results),
        "spin": _spin(results),
        "background": _background(results),
        "mass_scan": _mass_scan(results),
        "speed": _speed(results),
        "provenance": _provenance(results),
    }


def _name(observable: str) -> str:
    return _NAMES.get(observable, observable)


def _images(drawn: Iterable[tuple[Figure, str]]) -> list[Image]:
    return [Image(figure, text) for figure, text in drawn]


def named_figures(content: Mapping[str, Any]) -> dict[str, Figure]:
    """All figures of a page, by names for files: section and caption in plain letters."""
    found: dict[str, Figure] = {}

    def collect(section: str, value: Any) -> None:
        if isinstance(value, Image):
            plain_text = unicodedata.normalize("NFKD", value.text).encode("ascii", "ignore").decode().lower()
            found[f"{section}_{re.sub('[^a-z0-9]+', '_', plain_text).strip('_')}"] = value.figure
        elif isinstance(value, Mapping):
            for name, inner in value.items():
                collect(str(name) if section == "response" else section, inner)
        elif isinstance(value, list):
            for inner in value:
                collect(section, inner)

    for section, value in content.items():
        collect(section, value)
    return found


# ---- response --------------------------------------------------------------------------------------------


def _row(name: str, metrics: Metrics, fields: Sequence[str] = _METRICS) -> list[str]:
    return [name, str(metrics.n), *(estimate(metrics, field) for field in fields)]


def _verdicts(results: Results) -> list[dict[str, Any]]:
    """Every method against the best analytic ones."""
    return [
        {
            "method": method,
            "sentences": verdict_sentences(of),
            "worse": any("worse" in (c.correlation.verdict, c.bias.verdict) for c in of.values()),
            "table": Table(VERDICT_COLUMNS, verdict_rows(of), method),
        }
        for method, of in results["verdicts"].items()
    ]


def _observables(results: Results) -> Table:
    """The events that all methods solve, by observable and method."""
    fields = ("rb", "res", "width68", "correlation", "slope")
    rows = [
        _row(f"{_name(name)}, {method}", found.common, fields)
        for name, of in results["response"].items()
        for method, found in of.items()
    ]
    head = ["", "events", *(COLUMNS[field] for field in fields)]
    return Table(head, rows, "Events that all methods solve")


def _summary(results: Results) -> Table:
    shown = (
        *(("m_tt", "rb"), ("m_tt", "width68"), ("pt_top", "rb"), ("pt_top", "width68")),
        *(("y_top", "width68"), ("c_hel", "slope")),
    )
    head = [
        "efficiency",
        *(f"{COLUMNS[field]} {_name(name)}" for name, field in shown),
        *(f"in the {level} % interval m(tt̄) [%]" for level in (68, 95)),
        "symmetries that hold exactly",
    ]
    columns = []
    for method in results["methods"]:
        inclusive = {name: of[method].inclusive for name, of in results["response"].items()}
        found = results["uncertainty"]["m_tt"].get(method)
        covered = [estimate(found.overall, f"coverage{level}", 100) if found else "–" for level in (68, 95)]
        verdicts = [s.verdict for s in results["symmetries"].get(method, {}).values()]
        exact = f"{verdicts.count('exact')} of {len(verdicts)}" if verdicts else "–"
        numbers = [estimate(inclusive[name], field) for name, field in shown]
        columns.append([estimate(inclusive["m_tt"], "efficiency"), *numbers, *covered, exact])
    rows = [list(row) for row in zip(head, *columns, strict=True)]
    return Table(["", *results["methods"]], rows, "All selected events")


def _response(results: Results, table: EventTable, name: str) -> dict[str, Any]:
    of = results["response"][name]
    head = ["method", "events", *(COLUMNS[field] for field in _METRICS)]
    true, predicted = ({m: getattr(r, f"{kind}_bins") for m, r in of.items()} for kind in ("truth", "pred"))
    drawn = [
        (draw_residuals(table, name), "Distribution of the residual"),
        (draw_bins(true, "rb", name), "Bias in bins of the truth"),
        (draw_bins(true, "res", name), "Resolution in bins of the truth"),
        (draw_bins(true, "width68", name), "68 % half-width in bins of the truth"),
        (draw_bins(predicted, "rb", name, predicted=True), "Bias in bins of the reconstructed value"),
        (
            draw_bins(predicted, "width68", name, predicted=True),
            "68 % half-width in bins of the reconstructed value",
        ),
    ]
    return {
        "inclusive": Table(head, [_row(m, r.inclusive) for m, r in of.items()], "All selected events"),
        "common": Table(head, [_row(m, r.common) for m, r in of.items()], "Events that all methods solve"),
        "figures": _images((figure, f"{text}, {_name(name)}") for figure, text in drawn),
    }


def _regions(results: Results) -> Iterator[Table]:
    fields = ("rb", "res", "median", "width68", "efficiency")
    head = ["region", "events", *(COLUMNS[field] for field in fields)]
    for method, of in results["response"]["m_tt"].items():
        rows = [
            _row(f"{kind}: {name}", metrics, fields)
            for kind, found in of.regions.items()
            for name, metrics in found.items()
        ]
        yield Table(head, rows, f"{_name('m_tt')}, {method}")


# ---- uncertainty and quality -----------------------------------------------------------------------------


def _uncertainty(results: Results) -> dict[str, Any] | None:
    """Coverage and pulls."""
    known = {name: of for name, of in results["uncertainty"].items() if of}
    if not known:
        return None
    rows = [
        [
            f"{_name(name)}, {method}",
            *_covered(found.overall),
            *(estimate(found.pull, f) for f in ("median", "width68")),
        ]
        for name, of in known.items()
        for method, found in of.items()
    ]
    head = ["", "events", *_INTERVALS, "median of pulls", "width68 of pulls"]
    tables = [Table(head, rows, "All events with an interval")]
    drawn = [
        (draw_pulls({m: f.pull for m, f in of.items()}, name), f"Pulls of {_name(name)}")
        for name, of in known.items()
        if name in results["metadata"]["shown"]
    ]
    for field, label in (("predicted", "Reconstructed"), ("true", "True")) if "m_tt" in known else ():
        by_method = {m: getattr(f, field) for m, f in known["m_tt"].items()}
        rows = [
            [f"{method}, {region}", *_covered(coverage)]
            for method, found in by_method.items()
            for region, coverage in found.items()
        ]
        tables.append(Table(["", "events", *_INTERVALS], rows, f"Coverage of m(tt̄) by {label} m(tt̄) [GeV]"))
        figure = draw_coverage(by_method, rf"{label} $m_{{t\bar{{t}}}}$ [GeV]")
        text = f"Coverage of m(tt̄) by {label.lower()} m(tt̄): full markers 68 %, open ones 95 %"
        drawn.append((figure, text))
    return {"tables": tables, "figures": _images(drawn)}


def _covered(found: Coverage) -> list[str]:
    return [str(found.n), *(estimate(found, f"coverage{level}", 100) for level in (68, 95))]


def _posterior(results: Results) -> dict[str, Any]:
    """Calibration, two-sample tests and scores of posteriors."""
    found = results["posterior"]
    methods = {method: of for method, of in found["methods"].items() if of["n"]}
    by_name: dict[str, dict[str, Calibration]] = {}
    rows, of_regions, told = [], [], []
    for method, of in methods.items():
        for name, examined in of["calibration"].items():
            overall = examined.overall
            by_name.setdefault(name, {})[method] = overall
            rows.append(
                [
                    f"{_name(name)}, {method}",
                    str(overall.n),
                    *(_percent(*overall.at(level)) for level in (0.5, 0.68, 0.95)),
                    _probability(overall.chi2_p),
                    _probability(overall.ks_p),
                    _flagged(examined.p, found["significance"]),
                    _flagged(examined.region_p, found["significance"]),
                    examined.region,
                ]
            )
        for kind, region, name in _shown_regions(results, of["calibration"]):
            part = of["calibration"][name].regions[kind][region]
            cells = (_percent(*part.at(level)) for level in (0.5, 0.68, 0.95))
            label = f"{_name(name)}, {method}, {kind} {region}"
            of_regions.append([label, str(part.n), *cells, _probability(part.chi2_p)])
        for classifier, test in of["two_sample"].items():
            numbers = [str(test.n_train), str(test.n_test), estimate(test, "accuracy"), _probability(test.p)]
            told.append([f"{method}, {classifier}", *numbers])
    intervals = [f"in {level} % interval [%]" for level in (50, 68, 95)]
    tables = []
    if rows:
        head = ["", "events", *intervals, "p(χ²)", "p(KS)", "adjusted p", "smallest in regions", "where"]
        tables.append(Table(head, rows, f"Ranks of the truth among {found['n_samples']} samples"))
        tables.append(Table(["", "events", *intervals, "p(χ²)"], of_regions, "In regions of the prediction"))
    if told:
        head = ["", "events learnt", "events tested", "accuracy", "p"]
        tables.append(Table(head, told, "Classifiers that try to tell truth from samples"))
    drawn = [
        (draw(by_name[name], name), f"{title}, {_name(name)}")
        for name in (*results["metadata"]["shown"], "pt_tt", "c_han")
        if name in by_name
        for draw, title in ((draw_ranks, "Ranks"), (draw_expected_coverage, "Expected coverage"))
    ]
    tables += list(_scores(found["scores"]))
    return {"tables": tables, "figures": _images(drawn), "notes": found["notes"]}


def _shown_regions(results: Results, calibration: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Kind and name of the regions, and observable, that the page shows."""
    for name in results["metadata"]["shown"]:
        if name in calibration:
            for kind, of in calibration[name].regions.items():
                yield from ((kind, region, name) for region in of)


def _scores(scores: Mapping[str, Any]) -> Iterator[Table]:
    """Mean scores by quantity, and paired differences to the first."""
    if not scores:
        return
    labels = list(dict.fromkeys(label for of in scores.values() for label in of.means))
    rows = [
        [
            "energy score [GeV]" if name == ENERGY else _name(name),
            *(_mean(of.means.get(label)) for label in labels),
            *(_mean(of.differences.get(f"{labels[0]} − {label}")) for label in labels[1:]),
        ]
        for name, of in scores.items()
    ]
    head = ["", *labels, *(f"{labels[0]} − {label}" for label in labels[1:])]
    yield Table(head, rows, "CRPS in the unit of the observable, energy score")


def _mean(of: Mean | None) -> str:
    return "–" if of is None else estimate(of, "mean")


def _percent(share: float, error: float) -> str:
    return format_estimate(100 * share, 100 * error)


def _probability(p: float) -> str:
    return format_estimate(float(f"{p:.2g}"), math.nan)


def _flagged(p: float, significance: float) -> str:
    return f"{_probability(p)} (!)" if p < significance else _probability(p)


def _quality(results: Results) -> dict[str, Any] | None:
    """Resolution against efficiency."""
    known = {method: of for method, of in results["quality"].items() if of}
    if not known:
        return None
    head = ["", "quality above", "efficiency", "RB", "Res", "width68"]
    rows = [
        [
            method,
            format_estimate(kept.minimum, math.nan),
            *(estimate(kept.metrics, f) for f in ("efficiency", "rb", "res", "width68")),
        ]
        for method, of in known.items()
        for kept in of["m_tt"]
    ]
    drawn = (
        (draw_quality({m: of[name] for m, of in known.items()}, name), f"Cuts on the quality, {_name(name)}")
        for name in results["metadata"]["shown"]
    )
    return {
        "figures": _images(drawn),
        "table": Table(head, rows, f"Cuts on the quality, {_name('m_tt')}"),
    }


# ---- kinematics, symmetries, spin ------------------------------------------------------------------------


def _closure(results: Results) -> Table:
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
    return Table(head, rows)


def _symmetries(results: Results) -> Table:
    """Verdicts on symmetries."""
    head = ["", "verdict", "events", "median difference", "largest difference", f"above {EXACT:g} [%]"]
    rows = [
        [
            f"{method}: {_SYMMETRIES[name]}",
            found.verdict,
            str(found.n),
            *(
                format_estimate(float(f"{x:.2g}"), math.nan)
                for x in (found.median, found.largest, 100 * found.above, 100 * found.changed)
            ),
        ]
        for method, of in results["symmetries"].items()
        for name, found in of.items()
    ]
    return Table([*head, "solved once [%]"], rows)


def _spin(results: Results) -> dict[str, Any]:
    """Linearity of the mean of c_hel."""
    known = {method: found for method, found in results["spin_linearity"].items() if found is not None}
    head = ["method", "events", "slope", "offset", "largest deviation from the line"]
    rows = [
        [
            method,
            str(of.n),
            estimate(of, "slope"),
            estimate(of, "offset"),
            format_estimate(float(f"{of.deviation:.2g}"), math.nan),
        ]
        for method, of in known.items()
    ]
    drawn = [(draw_spin(known), "Reconstructed minus true mean of c_hel")] if known else []
    return {"table": Table(head, rows, "Solved events"), "figures": _images(drawn)}


# ---- other samples ---------------------------------------------------------------------------------------


def _background(results: Results) -> dict[str, Any] | None:
    """Events without tops."""
    if not results["background"]:
        return None
    rows, cuts, drawn = [], [], []
    for method, found in results["background"].items():
        rows.append([method, str(found.n), str(found.n_solved), estimate(found, "efficiency")])
        cuts += [
            [
                method,
                format_estimate(cut.minimum, math.nan),
                *(estimate(cut, of, 100) for of in ("signal", "background")),
            ]
            for cut in found.cuts
        ]
        for quantity, shape in (("m(tt̄)", found.m_tt), ("quality", found.quality)):
            if shape is not None:
                label = (
                    r"Reconstructed $m_{t\bar{t}}$ [GeV]" if shape is found.m_tt else f"Quality of {method}"
                )
                drawn.append((draw_shape(shape, label), f"{quantity} of {method}, tt̄ and background"))
    return {
        "solved": Table(["method", "events", "solved", "efficiency"], rows, "Background"),
        "cuts": Table(["method", "quality above", "tt̄ kept [%]", "background kept [%]"], cuts),
        "figures": _images(drawn),
    }


def _mass_scan(results: Results) -> dict[str, Any] | None:
    """Bias against the top-quark mass."""
    scans = results["mass_scan"]
    if not scans:
        return None
    masses = [f"{point.m_top:g}" for point in next(iter(scans["m_tt"].values())).points]
    rows = [
        [
            f"{_name(name)}, {method}",
            *(estimate(point.metrics, "rb") for point in scan.points),
            estimate(scan, "slope"),
        ]
        for name, of in scans.items()
        for method, scan in of.items()
    ]
    return {
        "table": Table(["", *(f"RB at {mass} GeV" for mass in masses), "change per GeV"], rows),
        "figures": _images(
            (draw_mass_scan(of, name), f"Bias of {_name(name)} against the mass")
            for name, of in scans.items()
        ),
    }


# ---- speed and provenance --------------------------------------------------------------------------------


def _speed(results: Results) -> Table:
    rows = [
        [method, f"{of['events_per_second']:.0f}", f"{of['seconds']:.1f}"]
        for method, of in results["speed"].items()
    ]
    return Table(["method", "events/s", "seconds in all"], rows)


def _provenance(results: Results) -> dict[str, Any]:
    """Methods, samples, versions, settings and command line."""
    metadata = results["metadata"]
    methods = [
        [name, *(of.get(key, "–") for key in ("kind", "file", "sha256"))]
        for name, of in results["methods"].items()
    ]
    samples = [("validated", skim) for skim in metadata["skims"]]
    samples += [("background", skim) for skim in metadata["background"]]
    samples += [(f"m_t = {mass} GeV", skim) for mass, of in metadata["mass_scan"].items() for skim in of]
    rows = [
        [
            skim["file"],
            kind,
            ", ".join(skim.get("datasets", {})) or "–",
            *(_number(skim.get(key)) for key in ("n_events", "n_read", "n_generated", "sum_gen_weights")),
            skim.get("versions", {}).get("topreco", "–"),
        ]
        for kind, skim in samples
    ]
    head = ["file", "used as", "datasets", "events", "entries read", "generated", "sum of weights", "topreco"]
    # Most often all skims were made with one selection.
    selections: dict[str, list[str]] = {}
    for _, skim in samples:
        selections.setdefault(_dump(skim.get("selection")), []).append(skim["file"])
    return {
        "methods": Table(["method", "kind", "file", "SHA-256"], methods, "Methods", text=True),
        "samples": Table(head, rows, "Samples"),
        "versions": Table(["package", "version"], list(metadata["versions"].items()), "Versions"),
        "settings": _dump(metadata["config"]),
        "selections": selections,
        "command": metadata["command"],
    }


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.10g}"


def _dump(value: Any) -> str:
    return json.dumps(plain(value), ensure_ascii=False)
