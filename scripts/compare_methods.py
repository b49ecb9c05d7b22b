r"""Compare methods of reconstruction on the same simulated events: one JSON, one table, one set of figures.

    python scripts/compare_methods.py FILES... [KEY=VALUE...] --methods dilepton.safetensors,sonnenschein \
        --json comparison.json [--output FOLDER] [--dataset NAME] [--config skim-tight.yaml] \
        [--test-split dilepton.safetensors] [--spin-correlation add|remove|KAPPA]

FILES are NanoAOD files or skims with truth, not both. Methods are model files or names that `topreco.load`
knows. Overrides set `selection` (NanoAOD only), `solvers`, `histograms`, `tree` and `step_size`, such as
``solvers.n_draws=20``; without them the bins of the true m_tt are those of the published comparison. The
files are streamed into histograms, so memory does not grow with them.

The JSON holds, besides ``metadata``, the sample sets ``all`` (selected events; each method has its own
efficiency) and ``common`` (events that every method solves, as a fraction of all selected ones), then method,
observable, and there each metric of `METRICS` and its statistical error as ``<metric>_error``, and the same
in bins of the true m_tt as a list ``bins`` with ``low`` and ``high``. Observables whose residual is a
difference, such as c_hel, also have ``mean_true`` and ``mean_reco`` of the solved events. Numbers that are
undefined, and the open ends of the outermost bins, are null.

With ``--spin-correlation`` events are weighted such that the tt̄ spin correlation of LO QCD is added
to a sample without it, such as Pythia's own, removed from one that has it, or made KAPPA times as large
there: what a method makes of c_hel, beside what its training has seen, is then seen from the difference.

A network must not be judged on what it was trained on. With ``--test-split`` only those events are used that
the split of this model's training has set apart; repeat it for several models.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from topreco.config import DataConfig, HistogramConfig, SkimConfig, SolverConfig, build_config, load_config
from topreco.core.errors import TopRecoError
from topreco.core.events import BoolArray, DileptonEvents, FloatArray, Truth
from topreco.core.files import complete_file, writable_folder
from topreco.core.method import Method
from topreco.core.skim import Skim
from topreco.core.spin import event_spin_weight
from topreco.core.statistics import Metrics
from topreco.core.versions import versions
from topreco.evaluation.fill import fill_methods
from topreco.evaluation.histograms import book
from topreco.evaluation.plotting import save_all
from topreco.evaluation.report import print_report, write_report
from topreco.evaluation.summary import ALL_CHANNELS, Result, Summary, summarise
from topreco.input.branches import Branches
from topreco.input.nano import inspect_file, is_remote, iterate_events
from topreco.input.required import fit_files, needed_branches, optional_branches
from topreco.input.selection import select
from topreco.input.truth import NEEDED_BRANCHES, TRUTH_BRANCHES, read_truth
from topreco.network.splits import TEST, split_of
from topreco.reconstruction.load import load_methods
from topreco.reconstruction.network import NetworkMethod

METRICS = (
    "rb",
    "res",
    "median",
    "width68",
    "width68_linearised",
    "rms_linearised",
    "correlation",
    "slope",
    "efficiency",
    "n",
)
"""What the JSON holds of each observable, see `topreco.core.statistics.Metrics`."""

HEADLINE = ("m_tt", "pt_top", "y_top")
"""What the terminal shows; the files hold every observable."""

Chunk = tuple[DileptonEvents, Truth]


class CompareConfig(SkimConfig):
    """Settings of a comparison; the configuration of a skim is one."""

    solvers: SolverConfig = SolverConfig()
    histograms: HistogramConfig = HistogramConfig(
        bins={"m_tt": (300, 345, 400, 450, 550, 700, 1000, 1400, 2000)}
    )


@dataclass(frozen=True)
class Sample:
    """Events to compare on.

    Attributes
    ----------
    dataset
        Name in tables and figures.
    selection
        Cuts, as plain data.
    length
        Number of entries that will be read.
    chunks
        Selected events and their truth with the number of entries read for them.
    """

    dataset: str
    selection: Any
    length: int
    chunks: Callable[[], Iterator[tuple[int, Chunk]]]


# ---- input -----------------------------------------------------------------------------------------------


def open_sample(files: Sequence[str], settings: CompareConfig) -> Sample:
    """Sample of NanoAOD files or of skims, checked before the first event is read.

    Raises
    ------
    TopRecoError
        If kinds are mixed, a file is given twice or cannot be used, or has no truth.
    """
    if not files:
        raise TopRecoError("no input files; NanoAOD files or skims expected")
    resolved = [file if is_remote(file) else str(Path(file).resolve()) for file in files]
    for i, file in enumerate(files):
        if resolved[i] in resolved[:i]:
            raise TopRecoError(f"{file}: given twice, its events would count twice")
    kinds = [is_skim(file) for file in files]
    if len(set(kinds)) > 1:
        skim, nano = (files[kinds.index(kind)] for kind in (True, False))
        raise TopRecoError(f"{skim} is a skim but {nano} is not; give either skims or NanoAOD files")
    return _skims(files, settings) if kinds[0] else _nano(files, settings)


def is_skim(file: str) -> bool:
    """Whether a file is a skim, by its first bytes, or by its name if it has none."""
    if not is_remote(file) and Path(file).is_file():
        with Path(file).open("rb") as opened:
            start = opened.read(4)
        if start in {b"PAR1", b"root"}:
            return start == b"PAR1"
    return Path(file).suffix == ".parquet"


def _skims(files: Sequence[str], settings: CompareConfig) -> Sample:
    skims = [Skim(file) for file in files]
    for skim in skims:
        if not skim.has_truth:
            raise TopRecoError(f"{skim.path}: no truth in this skim, which a comparison needs")
        if skim.metadata.get("selection") != skims[0].metadata.get("selection"):
            raise TopRecoError(f"{skim.path}: another selection than that of {skims[0].path}")
    selection = skims[0].metadata.get("selection")
    if "selection" in settings.model_fields_set and settings.selection.model_dump(mode="json") != selection:
        raise TopRecoError(f"{skims[0].path}: was made with another selection than the one asked for")
    names = dict.fromkeys(name for skim in skims for name in skim.metadata.get("datasets", {}))
    # The identity of the events is in the skim; a name given here is a title.
    title = settings.dataset if "dataset" in settings.model_fields_set else ", ".join(names)

    def chunks() -> Iterator[tuple[int, Chunk]]:
        for skim in skims:
            for events, truth in skim.row_groups():
                if truth is not None:  # always, as checked above
                    yield len(events), (events, truth)

    return Sample(title or settings.dataset, selection, sum(map(len, skims)), chunks)


def _nano(files: Sequence[str], settings: CompareConfig) -> Sample:
    summaries = {file: inspect_file(file, settings.tree) for file in files}
    selection = fit_files(settings.selection, summaries)
    length = 0
    for file, summary in summaries.items():
        if not summary.has(selection.in_file(NEEDED_BRANCHES)):
            raise TopRecoError(f"{file}: no generated particles (GenPart), which a comparison needs")
        length += summary.n_entries

    def chunks() -> Iterator[tuple[int, Chunk]]:
        wanted = (*needed_branches(selection), *optional_branches(selection), *TRUTH_BRANCHES)
        branches = selection.in_file(wanted)
        for file in files:
            for events in iterate_events(
                file, settings.tree, step_size=settings.step_size, branches=branches
            ):
                chunk = Branches(events, selection)
                selected = select(chunk, selection, dataset=settings.dataset)
                yield len(events), (selected.events, read_truth(chunk[selected.index]))

    return Sample(settings.dataset, selection.model_dump(mode="json"), length, chunks)


# ---- test split ------------------------------------------------------------------------------------------


class TestSplit:
    """Which events the training of a model has set apart.

    Parameters
    ----------
    model
        Model file.

    Raises
    ------
    TopRecoError
        If it is not a model, or does not say what it was trained on.
    """

    __test__ = False  # pytest collects classes by this name

    def __init__(self, model: str) -> None:
        self.model = model
        metadata = NetworkMethod(model).metadata
        try:
            self.config = build_config(DataConfig, metadata["training"]["data"], f"{model}: data")
            self.dataset_ids = np.array([int(i) for i in metadata["data"]["dataset_ids"]], np.uint64)
        except (KeyError, TypeError) as error:
            raise TopRecoError(
                f"{model}: does not say how its training data were split; a model of `topreco train` expected"
            ) from error

    def __call__(self, events: DileptonEvents) -> BoolArray:
        """Whether the model may be tested on each event, shape (n,).

        With several folds it may on all: each event is reconstructed by a network that has not seen it.

        Raises
        ------
        TopRecoError
            If there are events of a dataset that the training did not use, whose hash then says nothing.
        """
        if not np.isin(events.dataset, self.dataset_ids).all():
            raise TopRecoError(
                f"--test-split {self.model}: not trained on this dataset; for NanoAOD files give the "
                "--dataset of the training's skim, for another sample leave out --test-split"
            )
        if self.config.folds > 1:
            return np.ones(len(events), np.bool_)
        return np.asarray(split_of(events, self.config) == TEST)


# ---- comparison ------------------------------------------------------------------------------------------


def compare(
    sample: Sample,
    methods: Sequence[Method],
    config: HistogramConfig,
    splits: Sequence[TestSplit] = (),
    *,
    spin_correlation: str | float | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], int]:
    """Histograms of all methods on one sample, and the number of events in them.

    Raises
    ------
    TopRecoError
        If no event is left.
    """
    histograms = book(config)
    n_events = 0
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("events", total=sample.length)
        for n_read, (events, truth) in sample.chunks():
            keep = np.ones(len(events), np.bool_)
            for split in splits:
                keep &= split(events)
            kept = events[keep]
            if spin_correlation is not None:
                kept = replace(kept, weight=kept.weight * spin_factor(truth[keep], spin_correlation))
            fill_methods(histograms, methods, dataset=sample.dataset, events=kept, truth=truth[keep])
            n_events += len(kept)
            bar.advance(task, n_read)
    if n_events == 0:
        passed = "the selection and the test split" if splits else "the selection"
        raise TopRecoError(f"{sample.dataset}: none of {sample.length} events passed {passed}")
    return histograms, n_events


def spin_factor(truth: Truth, change: str | float) -> FloatArray:
    """Factor of each event's weight that adds, removes or scales the spin correlation, shape (n,).

    Raises
    ------
    TopRecoError
        If it is not known for all events.
    """
    scale, present = {"add": (1.0, 0.0), "remove": (0.0, 1.0)}.get(change, (change, 1.0))
    weight = event_spin_weight(truth, scale, present=present)
    if unknown := int((~np.isfinite(weight)).sum()):
        raise TopRecoError(
            f"--spin-correlation {change}: {unknown} of {len(weight)} events were made by neither gg nor qq̄, "
            "or their W bosons or neutrinos are not in the truth"
        )
    return weight


def _spin_change(text: str) -> str | float:
    """Value of --spin-correlation."""
    if text in {"add", "remove"}:
        return text
    try:
        kappa = float(text)
    except ValueError:
        kappa = math.nan
    if not math.isfinite(kappa):
        raise argparse.ArgumentTypeError(f"{text!r}; allowed are add, remove, or a finite number")
    return kappa


def to_plain(summary: Summary, dataset: str) -> dict[str, Any]:
    """The numbers by sample set, method and observable, as the JSON holds them."""
    return {
        subset: {
            method: {
                name: {
                    **_numbers(result.metrics),
                    **_means(result),
                    "n_selected": result.n_selected,
                    "n_solved": result.n_solved,
                    "bins": [
                        {"low": _finite(b.low), "high": _finite(b.high), **_numbers(b.metrics)}
                        for b in result.bins_m_tt
                    ],
                }
                for name, result in channels[ALL_CHANNELS].items()
            }
            for method, channels in datasets[dataset].items()
        }
        for subset, datasets in summary.items()
    }


def _numbers(metrics: Metrics) -> dict[str, float | int | None]:
    found = metrics._asdict()
    # A number of events is a Poisson count.
    found["n_error"] = math.sqrt(metrics.n)
    return {key: _finite(found[key]) for name in METRICS for key in (name, f"{name}_error")}


def _means(result: Result) -> dict[str, float | None]:
    """Mean of truth and of reconstruction, for observables whose residual is a difference."""
    means = {"mean_true": result.mean_truth, "mean_reco": result.mean_pred}
    return {
        f"{name}{suffix}": _finite(value)
        for name, estimate in means.items()
        for suffix, value in zip(("", "_error"), estimate, strict=True)
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def describe(method: Method) -> dict[str, str]:
    """What identifies a method: the file and digest of a model."""
    if isinstance(method, NetworkMethod):
        return {"file": method.path.name, "sha256": method.metadata["sha256"]}
    return {"kind": "analytic"}


# ---- command line ----------------------------------------------------------------------------------------


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="FILE|KEY=VALUE")
    parser.add_argument("--methods", required=True, help="names and model files, separated by commas")
    parser.add_argument("--json", required=True, type=Path, metavar="FILE", help="numbers to write")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="figures and Markdown tables to write")
    parser.add_argument("--dataset", help="name of the sample, as in `topreco skim --dataset`")
    parser.add_argument("--config", help="YAML file, or the name of a shipped one")
    parser.add_argument(
        "--test-split", action="append", default=[], metavar="MODEL", help="only what it was not trained on"
    )
    parser.add_argument(
        "--spin-correlation",
        type=_spin_change,
        metavar="add|remove|KAPPA",
        help="weight events to have it, not to have it, or to have KAPPA times as much of it",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_intermixed_args(arguments)


def run(arguments: Sequence[str] | None = None) -> None:
    """Compare, print, and write what the command line asks for.

    Raises
    ------
    TopRecoError
        If something cannot be used or written; there is no JSON then.
    """
    given = _arguments(arguments)
    # A path may hold "=" behind a "/", a key may not.
    overrides = [text for text in given.inputs if "=" in text and "/" not in text.partition("=")[0]]
    files = [text for text in given.inputs if text not in overrides]
    if given.dataset is not None:
        overrides.append(f"dataset={json.dumps(given.dataset)}")
    settings = load_config(CompareConfig, given.config, overrides)
    names = [name.strip() for name in given.methods.split(",") if name.strip()]
    if not names:
        raise TopRecoError(f"--methods {given.methods!r}: no method; names or model files expected")
    methods = load_methods(names, solvers=settings.solvers, quantiles=False)
    splits = [TestSplit(model) for model in given.test_split]
    sample = open_sample(files, settings)

    with complete_file(given.json) as temporary:
        if given.output is not None:
            writable_folder(given.output)
        histograms, n_events = compare(
            sample,
            methods,
            settings.histograms,
            splits,
            spin_correlation=given.spin_correlation,
            progress=not given.quiet,
        )
        summary = summarise(histograms)
        solvers = settings.solvers.model_dump(mode="json")
        if settings.solvers.response is not None:
            solvers["response"] = settings.solvers.response.name
        content = {
            "metadata": {
                "dataset": sample.dataset,
                "files": [Path(file).name for file in files],
                "methods": {method.name: describe(method) for method in methods},
                "solvers": solvers,
                "selection": sample.selection,
                "spin_correlation": given.spin_correlation,
                "test_split": [Path(split.model).name for split in splits],
                "n_read": sample.length,
                "n_events": n_events,
                "versions": versions(),
            },
            **to_plain(summary, sample.dataset),
        }
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        if given.output is not None:
            write_report(summary, given.output / "results.md")
            for subset in summary:
                save_all(histograms, given.output / subset, subset=subset)
    print_report(summary, observables=HEADLINE, console=Console(width=None if sys.stdout.isatty() else 200))
    print(f"results: {given.json}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; bad input is one line on the standard error and exit code 1."""
    try:
        run(arguments)
    except (TopRecoError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
