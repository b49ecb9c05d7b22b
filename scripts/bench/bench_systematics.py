"""What systematic variations cost: the processor with ten of them and without, side by side on one thread.

    python scripts/bench/bench_systematics.py [NANO.root ...] [--model dilepton] [--json FILE]

Without files it simulates some first (extra `sim`). The variations are jet energy scale (total and two
sources), jet energy resolution and electron scale, each up and down, from a correctionlib file made here
with formulas like those of the real ones. Times are medians of interleaved runs, of the processor rather
than the clock, so that other load on the machine counts less, in microseconds per selected event; only
ratios within one run mean anything. The last row is the time that the variations add, divided by ten times
that of the network on the nominal events: 1 if all but the network were free.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import correctionlib.schemav2 as schema
import torch
from measuring import Measurement, alternate, parser, report, sample, spread

from topreco.config import (
    ObjectSource,
    ScaleFactorConfig,
    SelectionConfig,
    SystematicsConfig,
)
from topreco.core.files import write_text
from topreco.input.nano import open_events
from topreco.input.selection import select, select_objects
from topreco.input.systematics import variations
from topreco.reconstruction.load import load
from topreco.runs.processor import DileptonProcessor

REPEATS = 3
N_VARIATIONS = 10


def main() -> None:
    """Measure and print one table."""
    arguments = parser(__doc__)
    arguments.add_argument("files", nargs="*")
    arguments.add_argument("--model", default="dilepton")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        corrections = systematics(Path(folder) / "corrections.json")
        n, seconds = measure(sample(options.files), options.model, corrections)
    rows = []
    for stage, times in seconds.items():
        values = [1e6 * t / n for t in times]
        rows.append(Measurement(stage, "µs/event", statistics.median(values), spread(values)))
    names = ("processor, nominal", "processor, ten variations", "network, nominal")
    relative = [
        (varied - nominal) / (N_VARIATIONS * network)
        for nominal, varied, network in zip(*(seconds[name] for name in names), strict=True)
    ]
    name = "added by ten variations / ten times the network"
    rows.append(Measurement(name, "", statistics.median(relative), spread(relative)))
    report("Systematic variations", rows, options.json, [f"Per selected event, of which there are {n}."])


def systematics(path: Path) -> SystematicsConfig:
    """Ten variations, and the file of their corrections."""
    pt, eta, systematic = (
        schema.Variable(name=name, type=kind)
        for name, kind in (("JetPt", "real"), ("JetEta", "real"), ("systematic", "string"))
    )
    uncertainty = formula("sqrt(0.0001+(0.5/x)*(0.5/x)+0.0001*y*y)", ["JetPt", "JetEta"])
    resolution = formula("sqrt(9.0/(x*x)+0.8/x+0.0016)", ["JetPt"])
    scale_factor = schema.Category(
        nodetype="category",
        input="systematic",
        content=[
            schema.CategoryItem(key=key, value=value)
            for key, value in {"nom": 1.1, "up": 1.15, "down": 1.05}.items()
        ],
    )
    contents = {
        "total": ([pt, eta], uncertainty),
        "source_1": ([pt, eta], uncertainty),
        "source_2": ([pt, eta], uncertainty),
        "resolution": ([pt], resolution),
        "scale_factor": ([systematic], scale_factor),
    }
    corrections = [
        schema.Correction(
            name=name,
            version=1,
            inputs=inputs,
            output=schema.Variable(name="value", type="real"),
            data=data,
        )
        for name, (inputs, data) in contents.items()
    ]
    payload = schema.CorrectionSet(schema_version=2, corrections=corrections)
    write_text(path, payload.model_dump_json(exclude_unset=True))
    inputs = {"JetPt": "pt", "JetEta": "eta"}
    directions = {"nominal": "nom", "up": "up", "down": "down"}
    jes = {
        name: ObjectSource(object="jet", file=path, correction=name, inputs=inputs)
        for name in ("total", "source_1", "source_2")
    }
    jer = ObjectSource(
        object="jet",
        kind="smear",
        file=path,
        correction="resolution",
        inputs={"JetPt": "pt"},
        scale_factor=ScaleFactorConfig(correction="scale_factor", inputs={"systematic": directions}),
    )
    return SystematicsConfig(
        objects={**jes, "jer": jer, "electron": ObjectSource(object="electron", flat=0.005)}
    )


def formula(expression: str, names: list[str]) -> schema.Formula:
    """A formula of inputs, as payloads of jet energy corrections have them."""
    return schema.Formula(nodetype="formula", expression=expression, parser="TFormula", variables=names)


def measure(files: list[str], model: str, config: SystematicsConfig) -> tuple[int, dict[str, list[float]]]:
    """Number of nominally selected events, and seconds by stage and round."""
    selection = SelectionConfig()
    method = load(model, threads=1, quantiles=False)
    without, with_variations = (
        DileptonProcessor([method], selection, systematics=chosen) for chosen in (None, config)
    )
    nominal = [select(open_events(file), selection, dataset="bench").events for file in files]

    def process(processor: DileptonProcessor) -> Callable[[], None]:
        def run() -> None:
            for file in files:
                events = open_events(file)
                events.metadata["dataset"] = "bench"
                processor.process(events)

        return run

    def correct_and_select() -> None:
        for file in files:
            for _, objects in variations(open_events(file), selection, config):
                select_objects(objects, selection, dataset="bench")

    def reconstruct() -> None:
        for events in nominal:
            method(events)

    stages = {
        "network, nominal": reconstruct,
        "correct and select, ten variations": correct_and_select,
        "processor, nominal": process(without),
        "processor, ten variations": process(with_variations),
    }
    return sum(map(len, nominal)), alternate(stages, repeats=REPEATS)


if __name__ == "__main__":
    main()
