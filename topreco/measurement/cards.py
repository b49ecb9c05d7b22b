"""Templates in files: ROOT histograms with a datacard for Combine, and a workspace for pyhf.

The format of the datacard is that of Combine [1]_: bins, processes with numbers ≤ 0 for signals, log-normal
(lnN) and template (shape) nuisances, rateParam and autoMCStats.

References
----------
.. [1] CMS Collaboration, The CMS statistical analysis and combination tool: Combine, arXiv:2404.06614.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hist
import numpy as np

from topreco.config import TemplatesConfig
from topreco.core.files import complete_file, plain, write_text
from topreco.evaluation.latex import write_latex
from topreco.evaluation.report import markdown_table
from topreco.measurement.templates import Axis, Process, Templates, axis_text, bins_of, rows_of_yields
from topreco.measurement.unfolding import Sums

DATA = "data_obs"
_MULTI_SIGNAL = "HiggsAnalysis.CombinedLimit.PhysicsModel:multiSignalModel"
STRENGTH = "r"
"""Signal strength, the parameter of interest unless the signal is unfolded."""


def files_of_templates(path: str | Path) -> dict[str, Path]:
    """Files that `write_templates` writes, by what they are."""
    path = Path(path)
    names = {"datacard": ".txt", "workspace": ".json", "yields": ".md", "latex": ".tex"}
    return {
        "root": path,
        **{what: path.with_suffix(suffix) for what, suffix in names.items()},
        "about": about_of(path),
    }


def about_of(path: str | Path) -> Path:
    """File beside a workspace that says what its bins and signals are."""
    path = Path(path)
    return path.with_name(f"{path.stem}_about.json")


def write_templates(templates: Templates, path: str | Path, config: TemplatesConfig) -> list[Path]:
    """Write templates as ROOT, the datacard, the pyhf workspace, and tables of the yields.

    Parameters
    ----------
    templates
        Templates of `topreco.measurement.templates.build_templates`.
    path
        ROOT file; the others stand beside it, with the same stem.
    config
        Configuration that they were made with; it is kept in ``STEM_about.json``.

    Returns
    -------
    paths
        Files written, each whole or not at all.

    Raises
    ------
    TopRecoError
        If one cannot be written.
    """
    import uproot

    paths = files_of_templates(path)
    with complete_file(paths["root"]) as temporary, uproot.recreate(temporary) as file:
        for name, histogram in root_templates(templates, config).items():
            file[name] = histogram
        file["axes"] = axis_text(templates.axes)
        if templates.truth:
            file["truth_axes"] = axis_text(templates.truth)
    write_text(paths["datacard"], datacard(templates, config, paths["root"].name))
    write_text(paths["workspace"], json.dumps(workspace(templates), indent=1) + "\n")
    write_text(
        paths["about"], json.dumps(plain(about(templates, config)), indent=1, ensure_ascii=False) + "\n"
    )
    text = yields_markdown(templates)
    write_text(paths["yields"], text)
    write_latex(paths["yields"], text)
    return list(paths.values())


# ---- ROOT ------------------------------------------------------------------------------------------------


def root_templates(templates: Templates, config: TemplatesConfig) -> dict[str, hist.Hist]:
    """Histograms by their name in the ROOT file.

    Parameters
    ----------
    templates
        Templates; those of several axes are unrolled into bins of width one.
    config
        Names of the histograms.
    """
    found = {}
    for channel in templates.channels:
        data = templates.data[channel]
        found[_name(config.nominal_name, channel, DATA)] = _histogram(templates.axes, Sums(data, data))
        for process in templates.processes:
            if channel not in process.nominal:
                continue
            found[_name(config.nominal_name, channel, process.name)] = _histogram(
                templates.axes, process.nominal[channel]
            )
            for nuisance, pair in process.shapes.items():
                for way, contents in zip(("Up", "Down"), pair, strict=True):
                    name = _name(config.variation_name, channel, process.name, f"{nuisance}{way}")
                    found[name] = _histogram(templates.axes, contents[channel])
    return found


def _name(pattern: str, channel: str, process: str, systematic: str = "") -> str:
    """Name of a histogram, in which Combine's keywords are replaced."""
    replaced = pattern.replace("$CHANNEL", channel).replace("$PROCESS", process)
    return replaced.replace("$SYSTEMATIC", systematic)


def _histogram(axes: Sequence[Axis], contents: Sums) -> hist.Hist:
    if len(axes) == 1:
        axis = hist.axis.Variable(axes[0].edges, name="x", label=axes[0].label)
    else:
        axis = hist.axis.Regular(len(contents.value), 0, len(contents.value), name="x", label=axis_text(axes))
    return Sums(*(np.pad(part, 1) for part in contents)).to_hist(axis)


# ---- datacard --------------------------------------------------------------------------------------------


def datacard(templates: Templates, config: TemplatesConfig, root_file: str) -> str:
    """Datacard for Combine.

    Parameters
    ----------
    templates
        Templates.
    config
        Names of the histograms, threshold of autoMCStats.
    root_file
        Name of the ROOT file, in the folder of the card.
    """
    signals = [process.name for process in templates.processes if process.signal]
    numbers = {name: -i for i, name in enumerate(signals)}
    backgrounds = [process.name for process in templates.processes if not process.signal]
    numbers |= {name: i for i, name in enumerate(backgrounds, 1)}
    columns = [
        (channel, process)
        for channel in templates.channels
        for process in templates.processes
        if channel in process.nominal
    ]
    rows: list[tuple[str, ...]] = [
        ("bin", "", *(channel for channel, _ in columns)),
        ("process", "", *(process.name for _, process in columns)),
        ("process", "", *(str(numbers[process.name]) for _, process in columns)),
        ("rate", "", *(f"{process.nominal[channel].value.sum():.6g}" for channel, process in columns)),
    ]
    nuisances: list[tuple[str, ...]] = [
        (name, "lnN", *(_rate(process.rates.get(name)) for _, process in columns))
        for name in templates.rate_nuisances
    ]
    nuisances += [
        (name, "shape", *("1" if name in process.shapes else "-" for _, process in columns))
        for name in templates.shape_nuisances
    ]
    free = [
        f"{rate_parameter(process)} rateParam * {process.name} 1 [{low:g},{high:g}]"
        for process in templates.processes
        if process.rate_parameter
        for low, high in [process.rate_parameter]
    ]
    line = "-" * 80
    text = [
        f"# {templates.histogram} of {templates.method}",
        f"# bins: {axis_text(templates.axes)}",
        *_comments(templates, signals),
        f"imax {len(templates.channels)} number of channels",
        f"jmax {len(numbers) - 1} number of processes minus one",
        "kmax * number of nuisance parameters",
        line,
        f"shapes * * {root_file} {config.nominal_name} {config.variation_name}",
        line,
        *_aligned(
            [
                ("bin", *templates.channels),
                ("observation", *(f"{templates.data[channel].sum():.6g}" for channel in templates.channels)),
            ]
        ),
        line,
        *_aligned(rows),
        line,
        *_aligned(nuisances),
        *free,
        f"* autoMCStats {config.stat_threshold:g}",
    ]
    return "\n".join(text) + "\n"


def _comments(templates: Templates, signals: Sequence[str]) -> list[str]:
    found = []
    if not templates.is_data:
        found.append("# data_obs is the expectation: use -t -1")
    if templates.unfolds:
        ranges = ", ".join(
            f"{name} {text}" for name, text in zip(signals, _truth_bins(templates), strict=True)
        )
        maps = " ".join(f"--PO 'map=.*/{name}:r_{name}[1,-5,10]'" for name in signals)
        found += [
            f"# truth bins, {' and '.join(axis.label for axis in templates.truth)}: {ranges}",
            f"# one strength for each: text2workspace.py CARD -P {_MULTI_SIGNAL} {maps}",
        ]
    return found


def _truth_bins(templates: Templates) -> list[str]:
    """Range of the truth bin of each signal, for each of the unfolded processes in turn."""
    ranges = bins_of(templates.truth)
    n_signals = sum(process.signal for process in templates.processes)
    return ranges * (n_signals // len(ranges))


def _rate(factors: tuple[float, float] | None) -> str:
    if factors is None:
        return "-"
    down, up = factors
    return f"{up:.6g}" if np.isclose(down * up, 1, rtol=1e-12) else f"{down:.6g}/{up:.6g}"


def rate_parameter(process: Process) -> str:
    """Name of the free factor on a process."""
    return f"rate_{process.name}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


# ---- pyhf ------------------------------------------------------------------------------------------------


def workspace(templates: Templates) -> dict[str, Any]:
    """Workspace of pyhf with the content of the datacard.

    A template nuisance is a factor on the yield (normsys) times a change of the shape (histosys), as Combine
    separates them; lnN are normsys, rateParam normfactors, and autoMCStats staterrors, of which pyhf has one
    for each bin of a channel.

    Parameters
    ----------
    templates
        Templates.
    """
    channels = []
    for channel in templates.channels:
        samples = [
            _sample(templates, process, channel)
            for process in templates.processes
            if channel in process.nominal
        ]
        channels.append({"name": channel, "samples": samples})
    strengths = [strength(templates, process) for process in templates.processes if process.signal]
    parameters = [{"name": name, "bounds": [[-5, 10]], "inits": [1]} for name in dict.fromkeys(strengths)]
    parameters += [
        {"name": rate_parameter(process), "bounds": [list(process.rate_parameter)], "inits": [1]}
        for process in templates.processes
        if process.rate_parameter
    ]
    return {
        "channels": channels,
        "observations": [
            {"name": channel, "data": templates.data[channel].tolist()} for channel in templates.channels
        ],
        "measurements": [{"name": "measurement", "config": {"poi": strengths[0], "parameters": parameters}}],
        "version": "1.0.0",
    }


def strength(templates: Templates, process: Process) -> str:
    """Name of the factor on a signal process."""
    return f"{STRENGTH}_{process.name}" if templates.unfolds else STRENGTH


def _sample(templates: Templates, process: Process, channel: str) -> dict[str, Any]:
    nominal = process.nominal[channel]
    modifiers: list[dict[str, Any]] = []
    if process.signal:
        modifiers.append({"name": strength(templates, process), "type": "normfactor", "data": None})
    if process.rate_parameter:
        modifiers.append({"name": rate_parameter(process), "type": "normfactor", "data": None})
    modifiers += [
        {"name": name, "type": "normsys", "data": {"lo": down, "hi": up}}
        for name, (down, up) in process.rates.items()
    ]
    for name, (up, down) in process.shapes.items():
        high, low = up[channel].value, down[channel].value
        factors = [float(way.sum() / nominal.value.sum()) for way in (low, high)]
        modifiers.append(
            {"name": name, "type": "normsys", "data": dict(zip(("lo", "hi"), factors, strict=True))}
        )
        shapes = {
            f"{key}_data": (way / factor).tolist()
            for key, way, factor in zip(("lo", "hi"), (low, high), factors, strict=True)
        }
        modifiers.append({"name": name, "type": "histosys", "data": shapes})
    errors = np.sqrt(nominal.variance).tolist()
    modifiers.append({"name": f"stat_{channel}", "type": "staterror", "data": errors})
    return {"name": process.name, "data": nominal.value.tolist(), "modifiers": modifiers}


# ---- about them ------------------------------------------------------------------------------------------


def about(templates: Templates, config: TemplatesConfig) -> dict[str, Any]:
    """What the bins and signals of a workspace are, as plain data.

    Parameters
    ----------
    templates
        Templates.
    config
        Configuration that they were made with.
    """

    def axes(found: Sequence[Axis]) -> list[Mapping[str, Any]]:
        return [{"label": axis.label, "edges": axis.edges.tolist()} for axis in found]

    signals = [process for process in templates.processes if process.signal]
    truth: dict[str, Any] = {}
    if templates.unfolds:
        ranges = _truth_bins(templates)
        truth = {
            "truth_axes": axes(templates.truth),
            "truth_bins": [
                {"parameter": strength(templates, process), "bin": text, "cross_section_pb": process.expected}
                for process, text in zip(signals, ranges, strict=True)
            ],
        }
    return {
        "histogram": templates.histogram,
        "method": templates.method,
        "axes": axes(templates.axes),
        **truth,
        "data": "data" if templates.is_data else "expectation",
        "unused_variations": list(templates.unused),
        "remarks": list(templates.remarks),
        "config": config.model_dump(mode="json"),
    }


def yields_markdown(templates: Templates) -> str:
    """Table of expected and observed events, and remarks, as Markdown.

    Parameters
    ----------
    templates
        Templates.
    """
    table = markdown_table(*rows_of_yields(templates))
    lines = [f"### Events in {templates.histogram}, {templates.method}", "", table]
    lines += [f"- {remark}" for remark in all_remarks(templates)]
    return "\n".join(lines) + "\n"


def all_remarks(templates: Templates) -> list[str]:
    """Remarks on templates, and the variations that no nuisance has."""
    unused = f"variations without a nuisance: {', '.join(templates.unused)}"
    return [*templates.remarks, *([unused] if templates.unused else [])]
