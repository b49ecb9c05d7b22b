"""`topreco validate`: reconstruct, measure, and write page and numbers."""

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from topreco.config import ValidationConfig, files_of
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents
from topreco.core.files import check_outputs, complete_file, to_json
from topreco.core.lineage import trained_datasets
from topreco.core.method import Method
from topreco.core.observables import OBSERVABLES
from topreco.core.skim import Skim
from topreco.core.versions import versions
from topreco.evaluation.figures import check_formats, save
from topreco.evaluation.histograms import truth_edges
from topreco.evaluation.latex import latex_of_markdown
from topreco.reconstruction.load import load_methods
from topreco.validation.complementarity import complementarity, complementarity_markdown
from topreco.validation.extras import SCANNED, compare_background, scan_mass
from topreco.validation.gather import OBSERVED, Apply, EventTable, gather, open_pool, open_skims
from topreco.validation.joined import JoinedMethod
from topreco.validation.page import named_figures, page_content, render
from topreco.validation.pdf import write_pdf
from topreco.validation.posterior import assess_posteriors, choose_sampling
from topreco.validation.preparation import HeldOut, Preparation
from topreco.validation.spin import spin_linearity
from topreco.validation.statistics import close, perform
from topreco.validation.symmetries import N_EVENTS, check_symmetries
from topreco.validation.tables import comparison_csv, comparison_markdown
from topreco.validation.uncertainty import by_quality, uncertainty
from topreco.validation.verdicts import compare_with_analytic


def validate(
    skims: Sequence[str | Path],
    output: str | Path,
    *,
    methods: Sequence[Method | str | Path] = ("dilepton",),
    config: ValidationConfig | None = None,
    joined: Mapping[str, str | Path] | None = None,
    background: Sequence[str | Path] = (),
    mass_scan: Mapping[float, Sequence[str | Path]] | None = None,
    workers: int = 1,
    command: str = "",
    pdf: bool = False,
    formats: Sequence[str] = (),
    progress: bool = True,
) -> Path:
    """Validate and compare methods on simulated events.

    Writes ``index.html``, ``results.json``, ``comparison.md`` and ``comparison.csv``, and on request
    ``index.pdf`` and the folder ``figures``.

    Parameters
    ----------
    skims
        Files of `topreco skim` with truth.
    output
        Folder to write.
    methods
        Methods, model files or names that `topreco.load` knows.
    config
        Settings of the analytic methods, events and observables.
    joined
        Parquet files of other tools by name of the method, see `topreco.validation.joined`.
    background
        Skims of events without tops.
    mass_scan
        Skims with truth by top-quark mass in GeV.
    workers
        Number of processes. Results do not depend on it, apart from the speed.
    command
        Command line, shown on the page.
    pdf
        Write the tables and figures as PDF too.
    formats
        Formats of the figures as files of their own, such as pdf; none by default.
    progress
        Show progress bars.

    Returns
    -------
    page
        Path of ``index.html``.

    Raises
    ------
    TopRecoError
        If something cannot be used or written; nothing is written then.
    """
    output, config = Path(output), config or ValidationConfig()
    shown = tuple(dict.fromkeys((*OBSERVED, *config.observables)))
    observables = tuple(dict.fromkeys((*shown, *OBSERVABLES)))
    for name in observables:
        truth_edges(config.histograms, name)
    splits = [HeldOut(model) for model in config.test_split]
    prepare = Preparation(splits, config.spin_correlation)
    opened = open_skims(skims, truth=True)
    opened_background = open_skims(background, truth=False) if background else []
    scanned = {mass: open_skims(paths, truth=True) for mass, paths in (mass_scan or {}).items()}
    if len(scanned) == 1:
        raise TopRecoError("mass scan: at least two masses expected, found one")
    others = [JoinedMethod(name, path) for name, path in (joined or {}).items()]
    # One thread each, so that neither results nor speed depend on the number of processes.
    loaded = load_methods([*methods, *others], threads=1, solvers=config.solvers, summary=config.summary)
    if not loaded:
        raise TopRecoError("no methods; names or model files expected")

    page = output / "index.html"
    names = ["results.json", "comparison.md", "comparison.tex", "comparison.csv", "index.html"]
    names += ["index.pdf"] if pdf else []
    check_formats(formats)
    read = [*skims, *background, *itertools.chain(*(mass_scan or {}).values()), *(joined or {}).values()]
    check_outputs((output / name for name in names), [*read, *files_of(config)])
    with (
        complete_file(output / "results.json") as numbers,
        complete_file(output / "comparison.md") as markdown,
        complete_file(output / "comparison.tex") as latex,
        complete_file(output / "comparison.csv") as table_file,
        complete_file(page) as html,
        complete_file(page.with_suffix(".pdf")) if pdf else nullcontext() as portable,
        open_pool(workers, progress=progress) as apply,
    ):
        own = [method for method in loaded if method not in others]
        sample = _first_events(opened, N_EVENTS)
        sampling, notes = choose_sampling(own, config, sample, sum(map(len, opened)))
        table = gather(
            apply,
            opened,
            loaded,
            title="events",
            observables=observables,
            prepare=prepare,
            sampling=sampling,
        )
        if len(table) == 0:
            raise TopRecoError(f"test_split: none of {sum(map(len, opened))} events is in the test split")
        if not np.isfinite(table.truth["m_tt"]).any():
            raise TopRecoError(f"{skims[0]}: none of {len(table)} events has generated tops")
        _check_joined(table, others)
        described = {m.name: _describe_method(m, table, splits) for m in loaded}
        analytic = [name for name, of in described.items() if of["kind"] == "analytic"]
        judged = [name for name in described if name not in analytic]
        results = {
            "metadata": {
                "command": command,
                "versions": versions(),
                "n_events": len(table),
                "observables": observables,
                "shown": shown,
                "skims": [_describe_skim(skim) for skim in opened],
                "background": [_describe_skim(skim) for skim in opened_background],
                "mass_scan": {f"{m:g}": [_describe_skim(s) for s in of] for m, of in scanned.items()},
                "config": _describe_config(config),
            },
            "methods": described,
            "verdicts": compare_with_analytic(table, observables, judged, analytic),
            "speed": _speed(table, own),
            "symmetries": check_symmetries(apply, own, sample),
            **_measure(table, config, observables, shown),
            "complementarity": {name: complementarity(table, name) for name in shown},
            "posterior": assess_posteriors(table, list(described), sampling, notes),
            "background": {},
            "mass_scan": {},
        }
        if opened_background:
            other = gather(apply, opened_background, own, title="background")
            results["background"] = {m.name: compare_background(table, other, m.name) for m in own}
        if scanned:
            results["mass_scan"] = _scan(apply, scanned, own)
        numbers.write_text(to_json(results), encoding="utf-8")
        comparison = results["response"]
        text = comparison_markdown(comparison, config.reference, results["verdicts"])
        text += "\n" + "\n".join(complementarity_markdown(results["complementarity"]))
        markdown.write_text(text, encoding="utf-8")
        latex.write_text(latex_of_markdown(text), encoding="utf-8")
        table_file.write_text(comparison_csv(comparison), encoding="utf-8")
        content = page_content(results, table)
        html.write_text(render(content), encoding="utf-8")
        for name, figure in named_figures(content).items() if formats else ():
            save(figure, output / "figures" / name, formats=formats)
        if portable is not None:
            # Last, since it adds captions to the figures.
            write_pdf(content, portable)
    return page


def parse_joined(texts: Sequence[str]) -> dict[str, Path]:
    """Files by name of the method, from texts like NAME=FILE.

    Parameters
    ----------
    texts
        As on the command line.

    Raises
    ------
    TopRecoError
        If one has another form, or a name comes twice.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, _, file = text.partition("=")
        if not name or not file:
            raise TopRecoError(f"--join {text!r}: NAME=FILE expected")
        if name in found:
            raise TopRecoError(f"--join {text!r}: there is another {name!r}; every method needs its own name")
        found[name] = Path(file)
    return found


def parse_masses(texts: Sequence[str]) -> dict[float, list[Path]]:
    """Skims by top-quark mass in GeV, from texts like 169.5=SKIM.

    Parameters
    ----------
    texts
        As on the command line; a mass may come several times.

    Raises
    ------
    TopRecoError
        If one has another form, or the mass is not positive.
    """
    found: dict[float, list[Path]] = {}
    for text in texts:
        mass, _, file = text.partition("=")
        try:
            value = float(mass)
        except ValueError:
            value = math.nan
        if not (file and 0 < value < math.inf):
            raise TopRecoError(f"--mass-scan {text!r}: MASS=SKIM expected, such as 169.5=tt.parquet")
        found.setdefault(value, []).append(Path(file))
    return found


def _measure(
    table: EventTable, config: ValidationConfig, observables: Sequence[str], shown: Sequence[str]
) -> dict[str, Any]:
    methods = list(table.predictions)
    return {
        "response": {
            name: {
                method: perform(table, method, name, config.histograms, detailed=name in shown)
                for method in methods
            }
            for name in observables
        },
        "uncertainty": {
            name: {
                method: uncertainty(table, method, name)
                for method in methods
                if name in table.predictions[method].quantiles
            }
            for name in observables
        },
        "quality": {method: by_quality(table, method, shown) for method in methods},
        "closure": {method: close(table, method, config.solvers.m_top) for method in methods},
        "spin_linearity": {method: spin_linearity(table, method, config.d_of_sample) for method in methods},
    }


def _scan(apply: Apply, scanned: Mapping[float, Sequence[Skim]], methods: Sequence[Method]) -> dict[str, Any]:
    tables = {mass: gather(apply, skims, methods, title=f"{mass:g} GeV") for mass, skims in scanned.items()}
    return {name: {m.name: scan_mass(tables, m.name, name) for m in methods} for name in SCANNED}


def _speed(table: EventTable, methods: Sequence[Method]) -> dict[str, dict[str, float]]:
    """Time and rate of each method, and of its samples."""
    sampled = 0 if table.context is None else int(np.isfinite(table.context[:, 0]).sum())
    numbers = {name: len(table) for m in methods if (name := m.name)}
    numbers |= {name: sampled for m in methods if (name := f"samples of {m.name}") in table.seconds}
    return {
        name: {"seconds": seconds, "events_per_second": n / seconds if seconds > 0 else math.nan}
        for name, n in numbers.items()
        for seconds in (table.seconds[name],)
    }


def _first_events(skims: Sequence[Skim], n: int) -> DileptonEvents:
    """Events of the first row groups."""
    parts: list[DileptonEvents] = []
    for skim in skims:
        for events, _ in skim.row_groups():
            # Skims of other selections may have jets padded to another length.
            if parts and events.jet_mask.shape[1] != parts[0].jet_mask.shape[1]:
                continue
            parts.append(events[: n - sum(map(len, parts))])
            if sum(map(len, parts)) >= n:
                return DileptonEvents.concatenate(parts)
    return DileptonEvents.concatenate(parts)


def _check_joined(table: EventTable, methods: Sequence[JoinedMethod]) -> None:
    """Refuse a file that fits no event, or whose rows fit more than one."""
    key = np.stack([table.events[k].astype(np.uint64) for k in ("run", "luminosity_block", "event")], axis=1)
    for method in methods:
        if not table.predictions[method.name].valid.any():
            raise TopRecoError(
                f"{method.path}: has none of the {len(table)} events of the skims, by run, luminosityBlock, "
                f"event{' and dataset' if method.has_dataset else ''}"
            )
        if not method.has_dataset and (n := len(table) - len(np.unique(key, axis=0))):
            raise TopRecoError(
                f"{method.path}: needs the column 'dataset', since {n} events of the skims share run, "
                "luminosityBlock and event with another one"
            )


def _describe_config(config: ValidationConfig) -> dict[str, Any]:
    """Settings, files by their names alone."""
    response = config.solvers.response
    return config.model_dump(mode="json") | {
        "test_split": [path.name for path in config.test_split],
        "solvers": config.solvers.model_dump(mode="json") | {"response": response and response.name},
    }


def _describe_method(method: Method, table: EventTable, splits: Sequence[HeldOut]) -> dict[str, Any]:
    """Identity of a method, its head, and the number of events that its training may have used."""
    if isinstance(method, JoinedMethod):
        return {"kind": "joined", "file": method.path.name}
    path, metadata = getattr(method, "path", None), getattr(method, "metadata", {})
    if path is None:
        return {"kind": "analytic"}
    found: dict[str, Any] = {"kind": "network", "file": path.name}
    if "sha256" in metadata:
        found["sha256"] = metadata["sha256"]
    model = metadata.get("model")
    if isinstance(model, dict):
        found["head"] = str(model.get("head", "on_shell"))
    held_out = any(split.model.resolve() == path.resolve() for split in splits)
    trained_on = [] if held_out else sorted(map(int, trained_datasets(metadata)))
    found["training_events"] = int(np.isin(table.events["dataset"], np.array(trained_on, np.uint64)).sum())
    return found


def _describe_skim(skim: Skim) -> dict[str, Any]:
    known = (
        "datasets",
        "sources",
        "n_read",
        "n_selected",
        "n_generated",
        "sum_gen_weights",
        "selection",
        "versions",
    )
    return {
        "file": skim.path.name,
        "n_events": len(skim),
        **{key: skim.metadata[key] for key in known if key in skim.metadata},
    }
