"""The commands `topreco` and `topreco-train`: typed options, merged once with file and overrides.

The work is done in the modules that the commands call.
"""

import io
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from topreco.config import (
    Config,
    DiagnoseConfig,
    OmniFoldConfig,
    PepperWriteConfig,
    RatioTrainConfig,
    RunConfig,
    SimulationConfig,
    SkimConfig,
    StudyConfig,
    TemplatesConfig,
    TrainConfig,
    ValidationConfig,
    dump_config,
    expand_files,
    is_fileset,
    load_config,
    load_study,
    load_training,
)
from topreco.core.collection import kept_for_good
from topreco.core.errors import OUT_OF_MEMORY, TopRecoError, first_line, is_out_of_memory
from topreco.core.files import check_outputs, folder_name
from topreco.core.threads import available_cores

app = typer.Typer(
    help="Lorentz-equivariant reconstruction of dileptonic top-quark pairs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
_train_app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)

ConfigOption = Annotated[
    str | None, typer.Option("--config", help="YAML file, or the name of a shipped one (dilepton.yaml).")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as epochs=10.")
]
ModelArgument = Annotated[
    str, typer.Argument(help="Model file (.safetensors), or the name of a shipped model.")
]
ResultsArgument = Annotated[
    Path, typer.Argument(help="Output folder of `topreco run`, or its histograms.coffea.")
]
FilesAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE]... [KEY=VALUE]...",
        help="Input files, folders or lists of files (.txt), and configuration overrides.",
    ),
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option("--method", "--methods", "-m", help="Model file or name; several by commas or repetition."),
]
DatasetOption = Annotated[str | None, typer.Option(help="Name of the sample.")]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help="NanoAOD version (nano_v9, none); by default detected from the branches."),
]
EraOption = Annotated[
    str | None, typer.Option("--era", help="Data-taking era (UL2017), for the b-tag working point.")
]
WorkersOption = Annotated[int | None, typer.Option(help="Processes; by default one per core.")]
PlotsOption = Annotated[bool, typer.Option(help="Make the figures too.")]
LabelOption = Annotated[
    str | None, typer.Option(help="Text above the figures; by default Simulation, and nothing for data.")
]
ExperimentOption = Annotated[str, typer.Option(help="Experiment in bold before it, such as CMS.")]
SqrtSOption = Annotated[float | None, typer.Option(help="Centre-of-mass energy in TeV to show.")]
FormatOption = Annotated[
    list[str] | None, typer.Option("--format", help="Such as pdf; repeat for several. Default: png.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


_HEADLINE = ("m_tt", "pt_top", "y_top")
"""Observables that the terminal shows; the files hold every one."""


def _console() -> Console:
    """Console as wide as the terminal; in a log file, wide enough for every table."""
    return Console(width=None if sys.stdout.isatty() else 130)


def _split(arguments: list[str] | None) -> tuple[list[str], list[str]]:
    """Separate file arguments from key=value overrides."""
    files = [a for a in arguments or [] if "=" not in a or "/" in a.partition("=")[0]]
    return files, [a for a in arguments or [] if a not in files]


def _fileset(files: list[str], dataset: str) -> Any:
    """The fileset of file arguments: files of one dataset, or one JSON or YAML file of coffea's."""
    filesets = [file for file in files if is_fileset(file)]
    if filesets and (len(files) > 1 or dataset != "default"):
        raise TopRecoError(f"{filesets[0]}: a fileset, which names files and datasets, stands alone")
    return filesets[0] if filesets else {dataset: files} if files else None


def _root_files(files: list[str], command: str) -> list[str]:
    """The files, those of folders and lists included, none of which is a fileset."""
    for file in files:
        if is_fileset(file):
            raise TopRecoError(
                f"{file}: a fileset, which `topreco run` takes; {command} takes files of one dataset"
            )
    return expand_files(files)


def _processes(workers: int | None) -> int:
    """Number of processes; by default one per core."""
    return available_cores() if workers is None else workers


def _output(text: str) -> Any:
    return typer.Option("--output", "-o", help=text)


def _several(values: Sequence[str] | None) -> tuple[str, ...] | None:
    """Values of an option given several times, or once with commas; a file's name may contain one."""
    if not values:
        return None
    parts = [part for value in values for part in ([value] if Path(value).exists() else value.split(","))]
    return tuple(part.strip() for part in parts if part.strip())


@app.command()
def simulate(
    output: Annotated[Path, _output("ROOT file to write.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    n_events: Annotated[int | None, typer.Option("--events", "-n", help="Events to generate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed; the same gives the same events.")] = None,
    lhe: Annotated[Path | None, typer.Option(help="Shower the events of this LHE file instead.")] = None,
    nanoaod_version: Annotated[
        str | None, typer.Option(help="Branches of that version: v7, v9, v11, v12, v14, v15.")
    ] = None,
    workers: WorkersOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    quiet: Quiet = False,
) -> None:
    """Generate dileptonic tt̄ events with Pythia and a CMS-like detector (extra `sim`)."""
    from topreco.simulation import simulate as run_simulation

    options = {"n_events": n_events, "seed": seed, "lhe": lhe, "nanoaod_version": nanoaod_version}
    settings = load_config(SimulationConfig, config, overrides or [], options)
    check_outputs([output], [config])
    summary = run_simulation(settings, output, workers=workers, progress=not quiet, overwrite=overwrite)
    typer.echo(summary)


@app.command()
def skim(
    arguments: FilesAndOverrides,
    output: Annotated[Path, _output("Parquet file to write.")],
    config: ConfigOption = None,
    dataset: DatasetOption = None,
    preset: PresetOption = None,
    era: EraOption = None,
    generated: Annotated[
        Path | None,
        typer.Option(help="Also write all generated events, selected or not, for `topreco omnifold`."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Select events of NanoAOD or pepper files, with truth where they have it, into a Parquet file."""
    from topreco.input.skimming import make_skim

    files, overrides = _split(arguments)
    files = _root_files(files, "skim")
    options = {"dataset": dataset, "selection.preset": preset, "selection.era": era}
    settings = load_config(SkimConfig, config, overrides, options)
    check_outputs([output], [config])
    summary = make_skim(
        files,
        output,
        settings.selection,
        dataset=settings.dataset,
        tree=settings.tree,
        step_size=settings.step_size,
        progress=not quiet,
        generated=generated,
    )
    _console().print(summary.cutflow.table(settings.dataset))
    typer.echo(summary.preset)
    typer.echo(summary)


@app.command("pepper-write")
def pepper_write(
    arguments: FilesAndOverrides,
    output: Annotated[Path, _output("Folder for the copies.")],
    config: ConfigOption = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="Model file or name.")] = None,
    column: Annotated[str | None, typer.Option(help="Column to write, by default recot_METHOD.")] = None,
    dataset: DatasetOption = None,
) -> None:
    """Copy pepper's event files (HDF5 or ROOT) with reconstructed tops as a new column."""
    from topreco.input.pepper.write import write_all
    from topreco.reconstruction.load import load_method

    files, overrides = _split(arguments)
    files = _root_files(files, "pepper-write")
    options = {"method": method, "column": column, "dataset": dataset}
    settings = load_config(PepperWriteConfig, config, overrides, options)
    loaded = load_method(settings.method, solvers=settings.solvers)
    for summary in write_all(files, output, loaded, settings):
        typer.echo(summary)


@_train_app.command()
@app.command()
def train(
    config: ConfigOption = None,
    overrides: Overrides = None,
    restart: Annotated[
        bool, typer.Option(help="Discard an unfinished training in the output folder.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a network on skims; resumes an unfinished training in the same output folder."""
    settings = load_training(config, overrides or [])
    if isinstance(settings, RatioTrainConfig):
        from topreco.network.train_ratio import train_ratio

        model = train_ratio(settings, progress=not quiet, restart=restart)
    else:
        from topreco.network.train import train as run_training

        model = run_training(settings, progress=not quiet, restart=restart)
    typer.echo(f"model: {model}")


@app.command()
def quantiles(
    model: ModelArgument,
    output: Annotated[Path, _output("Model file to write.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    calibrate_only: Annotated[
        bool, typer.Option("--calibrate-only", help="Keep the quantiles, calibrate them on these events.")
    ] = False,
    restart: Annotated[bool, typer.Option(help="Discard an unfinished training beside the output.")] = False,
    quiet: Quiet = False,
) -> None:
    """Add the uncertainty of each event to a trained network, or calibrate it on other skims."""
    from topreco.network.train import recalibrate, train_quantiles

    settings = load_config(TrainConfig, config, overrides or [])
    trained = _trained_model(model, "quantiles")
    check_outputs([output], [config, model])
    if calibrate_only:
        described = recalibrate(trained, settings, output)
    else:
        described = train_quantiles(trained, settings, output, progress=not quiet, restart=restart)
    for name, numbers in described.get("test", {}).items():
        typer.echo(
            f"{name}: {100 * numbers['coverage68']:.1f} % and {100 * numbers['coverage95']:.1f} % "
            "of the test events in the 68 % and 95 % intervals"
        )
    typer.echo(f"model: {output}")


@app.command()
def study(
    config: Annotated[
        str, typer.Argument(help="YAML file, or the name of a shipped one (study/spurions.yaml).")
    ],
    overrides: Overrides = None,
    restart: Annotated[bool, typer.Option(help="Discard the results of earlier trainings.")] = False,
    quiet: Quiet = False,
) -> None:
    """Train networks that differ in a few keys, with several seeds each, and compare them in one table."""
    from topreco.studies.study import study as run_study

    settings = load_study(config, overrides or [])
    typer.echo(f"table: {run_study(settings, progress=not quiet, restart=restart)}")


@app.command()
def export(
    model: ModelArgument,
    output: Annotated[Path, _output("ONNX file to write.")],
    triton: Annotated[
        Path | None, typer.Option(help="Folder of a Triton model repository to put the model into too.")
    ] = None,
    quantiles: Annotated[bool, typer.Option(help="With the uncertainty of each event.")] = True,
) -> None:
    """Write a network as ONNX, which needs no torch, and a reader for any framework (extra `onnx`)."""
    from topreco.network.export.onnx import export_onnx

    trained = _trained_model(model, "export")
    check_outputs([output], [model])
    for path in export_onnx(trained, output, triton=triton, quantiles=quantiles):
        typer.echo(path)


def _trained_model(model: str, command: str) -> Any:
    """Networks and metadata of a model file or of a shipped model, for a command that needs the weights."""
    from topreco.reconstruction.load import load
    from topreco.reconstruction.network import NetworkMethod

    loaded = load(model)
    if not isinstance(loaded, NetworkMethod):
        raise TopRecoError(
            f"{command} {model!r}: a trained network expected, a .safetensors file or shipped model"
        )
    return loaded.model


@app.command()
def run(
    arguments: FilesAndOverrides = None,
    config: ConfigOption = None,
    method: MethodsOption = None,
    dataset: Annotated[str, typer.Option(help="Name of the sample of the file arguments.")] = "default",
    preset: PresetOption = None,
    era: EraOption = None,
    output: Annotated[Path | None, _output("Folder for the results.")] = None,
    output_columns: Annotated[
        Path | None, typer.Option(help="Folder for the results of each event, as friend trees.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check the inputs; print what would be done and how long it takes."),
    ] = False,
    plots: PlotsOption = True,
    quiet: Quiet = False,
) -> None:
    """Reconstruct files through a coffea Runner: histograms, metrics, cutflow and figures."""
    with kept_for_good():
        from topreco.evaluation.report import print_report
        from topreco.input.cutflow import Cutflow
        from topreco.runs.run import run as run_processor

    files, overrides = _split(arguments)
    options = {
        "fileset": _fileset(files, dataset),
        "methods": _several(method),
        "selection.preset": preset,
        "selection.era": era,
        "output": output,
        "output_columns": output_columns,
    }
    configuration = load_config(RunConfig, config, overrides, options)
    if dry_run:
        from topreco.runs.plan import plan_run

        plan = plan_run(configuration, progress=not quiet)
        for table in plan.tables():
            _console().print(table)
        typer.echo(plan)
        return
    result = run_processor(configuration, progress=not quiet)
    for name, cutflow in result.cutflow.items():
        _console().print(Cutflow.from_dict(cutflow).table(name))
        typer.echo(f"{name}: {result.presets[name]}\n")
    print_report(result.summary, observables=_HEADLINE, console=_console())
    if plots:
        with kept_for_good():
            from topreco.evaluation.figures import save_all

        save_all(result.histograms, result.folder / "plots", workers=_processes(None), summary=result.summary)
    typer.echo(result.statistics)
    typer.echo(f"results: {result.folder}")
    if result.statistics.warning:
        typer.secho(result.statistics.warning, fg=typer.colors.RED)
    if result.statistics.share_skipped > configuration.skip_limit:
        raise TopRecoError(
            f"skip_limit: {100 * result.statistics.share_skipped:.2g} % of the events were left out, more "
            f"than {100 * configuration.skip_limit:g} %; the results, without them, are in {result.folder}"
        )


@app.command()
def response(
    skims: Annotated[list[Path], typer.Argument(help="Simulated skims, with truth.")],
    output: Annotated[Path, _output("JSON file to write.")],
    description: Annotated[
        str | None, typer.Option(help="Description of the sample, kept in the file.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Derive the detector response that the smearing of analytic methods draws from (correctionlib)."""
    from topreco.solvers.response import derive_detector_response, write_detector_response

    check_outputs([output], skims)
    write_detector_response(
        derive_detector_response(skims, description=description, progress=not quiet), output
    )
    typer.echo(f"response: {output}")


@app.command()
def validate(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="SKIM... [KEY=VALUE]...", help="Simulated skims, with truth, and overrides."),
    ],
    output: Annotated[Path, _output("Folder for index.html and results.json.")],
    method: MethodsOption = None,
    config: ConfigOption = None,
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=FILE", help="Tops of another tool, a Parquet file; repeat for several."),
    ] = None,
    background: Annotated[
        list[Path] | None, typer.Option(help="Skim of events without tops; repeat for several.")
    ] = None,
    mass_scan: Annotated[
        list[str] | None,
        typer.Option(metavar="MASS=SKIM", help="Skim of another top-quark mass in GeV; repeat for each."),
    ] = None,
    pdf: Annotated[bool, typer.Option("--pdf", help="Tables and figures as index.pdf too.")] = False,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Each figure as a file too, such as pdf or png; repeat for several."),
    ] = None,
    workers: WorkersOption = None,
    quiet: Quiet = False,
) -> None:
    """Validate methods (dilepton by default) on simulated skims: a page with figures, all numbers as JSON."""
    import shlex

    with kept_for_good():
        from topreco.validation.validate import parse_joined, parse_masses
        from topreco.validation.validate import validate as run_validation

    skims, overrides = _split(arguments)
    page = run_validation(
        skims,
        output,
        methods=("dilepton",) if method is None else _several(method) or (),
        config=load_config(ValidationConfig, config, overrides),
        joined=parse_joined(join or []),
        background=background or [],
        mass_scan=parse_masses(mass_scan or []),
        workers=_processes(workers),
        command=shlex.join(["topreco", *sys.argv[1:]]),
        pdf=pdf,
        formats=formats or (),
        progress=not quiet,
    )
    typer.echo(f"page: {page}")


def _beside(source: Path, name: str) -> Path:
    """Folder of this name in the output folder of a run."""
    return (source if source.is_dir() else source.parent) / name


@app.command()
def plot(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Output folders of `topreco run`, or their histograms.coffea; they are added up."
        ),
    ],
    output: Annotated[Path | None, _output("Folder for the figures.")] = None,
    subset: Annotated[
        Literal["all", "common"], typer.Option(help="All events, or those that all methods solve.")
    ] = "all",
    channel: Annotated[Literal["all", "ee", "emu", "mumu"], typer.Option(help="Leptons.")] = "all",
    observable: Annotated[
        list[str] | None, typer.Option(help="Observable; by default m_tt, pt_top, y_top, c_hel, c_han.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help="Pattern of the figures' names among all, such as 'res_*'.")
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every figure; by default those of the overview.")
    ] = False,
    formats: FormatOption = None,
    label: LabelOption = None,
    experiment: ExperimentOption = "",
    sqrt_s: SqrtSOption = None,
    workers: WorkersOption = None,
) -> None:
    """Draw saved histograms of one run, or of several together: the usual figures, or all of them."""
    with kept_for_good():
        from topreco.evaluation.figures import FORMATS, save_all
        from topreco.evaluation.histograms import add_up
        from topreco.evaluation.style import Label
        from topreco.runs.results import load_histograms

    if output is None and len(sources) > 1:
        raise TopRecoError("--output: needed for the figures of several runs")
    histograms = add_up([load_histograms(source) for source in sources])
    folder = output or _beside(sources[0], "plots")
    paths = save_all(
        histograms,
        folder,
        label=Label(label, experiment, sqrt_s),
        subset=subset,
        channel=channel,
        observables=observable,
        only=only,
        every=every,
        formats=formats or FORMATS,
        workers=_processes(workers),
    )
    typer.echo(f"{len(paths)} files in {folder}")


@app.command()
def unfolding(
    source: ResultsArgument,
    output: Annotated[Path | None, _output("Folder for the files.")] = None,
    min_purity: Annotated[
        float | None, typer.Option(min=0, max=1, help="Merge bins until each has this purity.")
    ] = None,
    min_stability: Annotated[
        float | None, typer.Option(min=0, max=1, help="And this stability, by default as much.")
    ] = None,
    min_events: Annotated[float, typer.Option(min=0, help="And this many events.")] = 100,
    reco_bins: Annotated[int, typer.Option(min=1, help="Reconstructed bins in each truth bin.")] = 2,
    signal: Annotated[str | None, typer.Option(help="Dataset to optimise the bins for.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "--methods", "-m", help="Methods by commas or repetition; all by default."),
    ] = None,
    observable: Annotated[
        list[str] | None, typer.Option(help="Observables by commas or repetition; all by default.")
    ] = None,
    plots: PlotsOption = True,
    formats: FormatOption = None,
    label: LabelOption = "Simulation",
    experiment: ExperimentOption = "",
    sqrt_s: SqrtSOption = None,
) -> None:
    """Export response matrices of a run as ROOT and JSON, on request in bins of a minimum purity."""
    from topreco.evaluation.figures import FORMATS
    from topreco.evaluation.style import Label
    from topreco.measurement import export as export_to
    from topreco.measurement.unfolding import BinRequirements
    from topreco.runs.results import load_results

    results = load_results(source)
    bins = None
    if min_purity is not None:
        stability = min_purity if min_stability is None else min_stability
        bins = BinRequirements(min_purity, stability, min_events, reco_bins)
    elif min_stability is not None:
        raise TopRecoError("--min-stability: belongs to --min-purity, which is not given")
    found = export_to.collect_responses(
        results["histograms"],
        methods=_several(method) or (),
        observables=_several(observable) or (),
        bins=bins,
        signal=signal,
    )
    folder = output or _beside(source, "unfolding")
    files = {f"{folder_name(key.method)}{suffix}" for key in found for suffix in (".json", ".yaml", ".tex")}
    check_outputs((folder / name for name in ("responses.root", *sorted(files))), [source])
    # Histograms that another Runner saved have no metadata.
    metadata = results.get("metadata", {})
    kept = metadata.get("kept", {})
    phase_space = metadata.get("config", {}).get("unfolding", {}).get("phase_space")
    paths = export_to.write_responses(found, folder, about={"phase_space": phase_space, "kept": kept})
    for table in export_to.tables(found):
        _console().print(table)
    if plots:
        export_to.save_figures(
            found, folder, label=Label(label, experiment, sqrt_s), formats=formats or FORMATS
        )
    for path in paths:
        typer.echo(path)
    for dataset, n in kept.items():
        if n["entries"] != n["generated"]:
            typer.echo(
                f"{dataset}: the files have {n['entries']} of {n['generated']} generated events. If these "
                "were chosen, acceptances are too large, and only purity and stability are right"
            )


@app.command()
def templates(
    source: ResultsArgument,
    output: Annotated[Path, _output("ROOT file to write; card, workspace and tables stand beside it.")],
    overrides: Overrides = None,
    config: ConfigOption = None,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="Method; the only one by default.")
    ] = None,
) -> None:
    """Write a histogram of a run as templates, with a datacard for Combine and a workspace for pyhf."""
    from topreco.evaluation.report import terminal_table
    from topreco.measurement import cards
    from topreco.measurement.templates import build_templates, rows_of_yields
    from topreco.runs.results import load_results

    settings = load_config(TemplatesConfig, config, overrides or [], {"method": method})
    check_outputs(cards.files_of_templates(output).values(), [source, config])
    found = build_templates(load_results(source), settings)
    paths = cards.write_templates(found, output, settings)
    _console().print(terminal_table(f"{found.histogram}, {found.method}", *rows_of_yields(found)))
    for remark in cards.all_remarks(found):
        typer.echo(remark)
    for path in paths:
        typer.echo(path)


@app.command()
def fit(
    workspace: Annotated[Path, typer.Argument(help="Workspace of `topreco templates`, or of pyhf (JSON).")],
    output: Annotated[Path, _output("Folder for fit.json, fit.md and fit.tex.")],
    inject: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Fit what this value predicts in place of the data, throw toys with it; repeat for several.",
        ),
    ] = None,
    toys: Annotated[int, typer.Option(min=0, help="Pseudo-experiments to fit, for their pulls.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the pseudo-experiments.")] = 1,
    quiet: Quiet = False,
) -> None:
    """Fit templates with pyhf (extra `fit`): parameters, pulls, and the unfolded cross sections."""
    from rich.markdown import Markdown

    from topreco.measurement import fit as fits

    injected = _assignments(inject or [])
    check_outputs(fits.files_of_fit(output), [workspace])
    model = fits.Model(workspace)
    about = fits.about_workspace(workspace)
    parameters = model.with_values(injected)
    result = model.fit(model.expected(parameters) if injected else None)
    thrown = model.toys(parameters, toys, seed=seed, progress=not quiet) if toys else None
    spectrum = fits.unfolded(result, about)
    paths = fits.write_fit(
        output,
        result,
        spectrum=spectrum,
        toys=thrown,
        about={"workspace": str(workspace), "injected": injected},
    )
    _console().print(Markdown(fits.fit_markdown(result, spectrum=spectrum, toys=thrown)))
    for path in paths:
        typer.echo(path)


def _assignments(texts: Sequence[str]) -> dict[str, float]:
    """Numbers by name from NAME=VALUE."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = math.nan
        if not math.isfinite(found[name]):
            raise TopRecoError(f"--inject {text}: NAME=VALUE expected, such as r=1.2")
    return found


@app.command()
def omnifold(
    overrides: Overrides = None,
    config: ConfigOption = None,
    restart: Annotated[bool, typer.Option(help="Discard earlier results in the output folder.")] = False,
    quiet: Quiet = False,
) -> None:
    """Unfold data without bins (OmniFold): weights of generated events, spectra and their covariances."""
    from topreco.measurement.omnifold_files import iteration_table, run_omnifold
    from topreco.reconstruction.load import load_method

    settings = load_config(OmniFoldConfig, config, overrides or [])
    method = load_method(settings.method, quantiles=False)
    objects = None
    if settings.objects is not None:
        from topreco.network.object_ratio import ObjectRatio

        objects = partial(ObjectRatio, settings.objects)
    result = run_omnifold(settings, method, objects=objects, progress=not quiet, restart=restart)
    _console().print(iteration_table(result))
    typer.echo(f"unfolded to: {result.level}")
    typer.echo(f"results: {result.folder}")


@app.command()
def diagnose(overrides: Overrides = None, config: ConfigOption = None) -> None:
    """Compare data with simulation by a classifier: AUC, which observables carry it, closure with weights."""
    from topreco.measurement import diagnose as of_samples

    result = of_samples.diagnose(load_config(DiagnoseConfig, config, overrides or []))
    _console().print(of_samples.table(result))
    typer.echo(of_samples.summary(result))
    typer.echo(f"results: {result.folder}")


@app.command("config")
def show_config(
    kind: Annotated[
        Literal[
            "simulate",
            "skim",
            "train",
            "study",
            "run",
            "templates",
            "omnifold",
            "diagnose",
            "pepper-write",
            "validate",
        ],
        typer.Argument(help="The command."),
    ],
    overrides: Overrides = None,
    config: ConfigOption = None,
) -> None:
    """Print the full effective configuration of a command as YAML."""
    kinds: dict[str, type[Config]] = {
        "simulate": SimulationConfig,
        "skim": SkimConfig,
        "study": StudyConfig,
        "run": RunConfig,
        "templates": TemplatesConfig,
        "omnifold": OmniFoldConfig,
        "diagnose": DiagnoseConfig,
        "pepper-write": PepperWriteConfig,
        "validate": ValidationConfig,
    }
    given = overrides or []
    settings = load_training(config, given) if kind == "train" else load_config(kinds[kind], config, given)
    sys.stdout.write(dump_config(settings))


def _guarded(command: Callable[[], Any]) -> None:
    """Run a command; an error of the user is one line on the standard error and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        # In an ASCII locale a tt̄ is printed with question marks, rather than ending the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        command()
    except (TopRecoError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.stderr.write(f"error: out of memory ({first_line(error)}): {OUT_OF_MEMORY}\n")
        sys.exit(1)


def main() -> None:
    """Entry point of `topreco`."""
    _guarded(app)


def train_main() -> None:
    """Entry point of `topreco-train`."""
    _guarded(_train_app)
