"""What a run would do and how long it would take, from its checks and the first events of each dataset."""

import time
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from topreco.config import RunConfig
from topreco.core.threads import available_cores
from topreco.input.cutflow import Cutflow
from topreco.input.nano import QuietNanoAODSchema, iterate_events
from topreco.input.pepper.read import PepperSchema
from topreco.runs.inspect import Inputs
from topreco.runs.processor import DileptonProcessor
from topreco.runs.run import chunks_of, make_processor, prepare

_WARM_UP = 50
_SAMPLE = 2000
"""Events of each dataset by which the time is measured."""

_UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))


@dataclass(frozen=True)
class DatasetPlan:
    """What a run would read of one dataset.

    Attributes
    ----------
    files, events, chunks
        Their numbers.
    preset
        Preset and era, see `topreco.config.presets.describe_preset`.
    cutflow
        Cuts, with the events of the sample that pass.
    sampled
        Events of the sample.
    seconds_per_event, seconds_per_chunk
        Time of one process for each event, and for each chunk besides, such as that of opening the file.
    """

    files: int
    events: int
    chunks: int
    preset: str
    cutflow: Cutflow
    sampled: int
    seconds_per_event: float
    seconds_per_chunk: float

    @property
    def work(self) -> float:
        """Seconds that one process takes for all events."""
        return self.seconds_per_event * self.events + self.seconds_per_chunk * self.chunks


@dataclass(frozen=True)
class RunPlan:
    """What a run would do.

    Attributes
    ----------
    config
        The configuration.
    datasets
        By name.
    methods
        Names of the methods.
    skipped
        Lines about files that cannot be read.
    """

    config: RunConfig
    datasets: dict[str, DatasetPlan]
    methods: tuple[str, ...]
    skipped: tuple[str, ...]

    @property
    def workers(self) -> int:
        """Processes that work at the same time: no more than there are chunks or, on one machine, cores."""
        local = self.config.executor in ("iterative", "futures")
        limits = [sum(dataset.chunks for dataset in self.datasets.values())]
        limits += [available_cores()] if local else []
        workers = 1 if self.config.executor == "iterative" else self.config.workers
        return max(min(workers, *limits), 1)

    @property
    def seconds(self) -> float:
        """Expected time, without checking the files and starting the workers."""
        return sum(dataset.work for dataset in self.datasets.values()) / self.workers

    def tables(self) -> list[Table]:
        """Tables for a terminal: the datasets, then the cuts of each."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for heading in ("dataset", "files", "events", "chunks", "preset"):
            table.add_column(heading, justify="right" if heading in ("files", "events", "chunks") else "left")
        for name, plan in self.datasets.items():
            table.add_row(name, str(plan.files), str(plan.events), str(plan.chunks), plan.preset)
        cuts = [
            plan.cutflow.table(f"{name}: the first {plan.sampled} events")
            for name, plan in self.datasets.items()
            if plan.sampled
        ]
        return [table, *cuts]

    def __str__(self) -> str:
        systematics = self.config.systematics
        objects = sum(len(source.variations) for source in systematics.objects.values())
        weights = sum(len(source.variations) for source in systematics.weights.values())
        sampled = sum(plan.sampled for plan in self.datasets.values())
        events = sum(plan.events for plan in self.datasets.values())
        workers = f"{self.workers} worker{'s' if self.workers > 1 else ''}"
        lines = [f"methods: {', '.join(self.methods)}"]
        if objects or weights:
            lines.append(
                f"variations: {objects} of objects, each one more pass of every method; {weights} of weights"
            )
        lines += self.skipped
        if sampled:
            took = f"measured on {sampled} events, without starting the workers"
            lines.append(
                f"expected time: {_duration(self.seconds)} for {events} events with {workers} ({took})"
            )
        lines.append(f"results would be in {self.config.output}; nothing was written")
        return "\n".join(lines)


def _duration(seconds: float) -> str:
    unit, size = next((unit for unit in _UNITS if seconds >= unit[1]), _UNITS[-1])
    return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"


def plan_run(config: RunConfig, *, progress: bool = True) -> RunPlan:
    """Check the inputs of a run as `topreco.runs.run.run` does, and try the first events of each dataset.

    Parameters
    ----------
    config
        Files, methods, cuts and execution.
    progress
        Show a progress bar.

    Returns
    -------
    plan
        What the run would do; nothing is written.

    Raises
    ------
    TopRecoError
        If the run would raise it, as far as the first events show.
    """
    config, methods, inputs = prepare(config, progress=progress)
    instance = make_processor(config, methods, None)
    chunks = chunks_of(inputs, config)
    datasets: dict[str, DatasetPlan] = {}
    for dataset, files in inputs.files.items():
        of_dataset = [chunk for chunk in chunks if chunk.dataset == dataset]
        file = next((file for file, summary in files.items() if summary.n_entries), None)
        cutflow, sampled, per_event, per_chunk = Cutflow(), 0, 0.0, 0.0
        if file is not None:
            if not datasets:
                # What is compiled and loaded once.
                _process(instance, inputs, config, dataset, file, _WARM_UP)
            _, few, short = _process(instance, inputs, config, dataset, file, _WARM_UP)
            cutflow, sampled, long = _process(instance, inputs, config, dataset, file, _SAMPLE)
            per_event = max(long - short, 0.0) / (sampled - few) if sampled > few else long / sampled
            per_chunk = max(long - per_event * sampled, 0.0)
        datasets[dataset] = DatasetPlan(
            files=len(files),
            events=sum(len(chunk) for chunk in of_dataset),
            chunks=len(of_dataset),
            preset=inputs.presets.get(dataset, "no events"),
            cutflow=cutflow,
            sampled=sampled,
            seconds_per_event=per_event,
            seconds_per_chunk=per_chunk,
        )
    skipped = tuple(f"skipped: {entry['file']} ({entry['reason']})" for entry in inputs.skipped)
    return RunPlan(config, datasets, tuple(method.name for method in methods), skipped)


def _process(
    instance: DileptonProcessor, inputs: Inputs, config: RunConfig, dataset: str, file: str, n: int
) -> tuple[Cutflow, int, float]:
    """Cutflow, number and seconds of the first events of a file, at most n."""
    start = time.perf_counter()
    schema: Any = PepperSchema if inputs.pepper else QuietNanoAODSchema
    renamed = config.selection.branches
    chunks = iterate_events(file, config.tree, step_size=n, schema=schema, renamed=renamed)
    events = next(chunks)
    events.metadata["dataset"] = dataset
    output = instance.process(events)
    seconds = time.perf_counter() - start
    return Cutflow.from_dict(output["cutflow"][dataset]), len(events), seconds
