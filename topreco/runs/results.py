"""Results of a run: its statistics, and the histograms that it saved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coffea.util

from topreco.core.errors import TopRecoError
from topreco.evaluation.summary import Summary


@dataclass(frozen=True)
class RunStatistics:
    """Amount of work of a run, and the inputs that it left out.

    Attributes
    ----------
    files
        Number of input files that could be opened.
    chunks, chunks_resumed
        Number of their chunks, and of the chunks that an earlier run had finished.
    events, events_selected
        Number of events read, in this run or an earlier one, and of selected events.
    seconds
        Duration, without checking the files and starting the workers.
    events_per_second
        Rate of the chunks that were not resumed.
    bytes_read
        As requested from the files.
    skipped
        Bad files, and chunks of them: ``dataset``, ``file``, ``entrystart`` and ``entrystop`` (None for a
        whole file) and ``reason``.
    events_skipped
        Number of events in them; in a file that could not be opened, as many as in the mean of the others.
    """

    files: int
    chunks: int
    chunks_resumed: int
    events: int
    events_selected: int
    seconds: float
    events_per_second: float
    bytes_read: int
    skipped: list[dict[str, Any]]
    events_skipped: int = 0

    @property
    def share_skipped(self) -> float:
        """Share of the events that were left out."""
        return self.events_skipped / max(self.events_skipped + self.events, 1)

    @property
    def warning(self) -> str:
        """Line about the share of the events that were left out, empty if none were."""
        if not self.skipped:
            return ""
        return f"skip_bad_files: {100 * self.share_skipped:.2g} % of the events were left out"

    def __str__(self) -> str:
        resumed = f" ({self.chunks_resumed} done before)" if self.chunks_resumed else ""
        read = f"{self.events} events of {self.files} files in {self.chunks} chunks{resumed}"
        rate = f"{self.events_per_second:.0f} events/s, {self.bytes_read / 1e6:.1f} MB read"
        lines = [f"{read}, {self.events_selected} selected; {self.seconds:.0f} s, {rate}"]
        for bad in self.skipped:
            part = "" if bad["entrystop"] is None else f" entries {bad['entrystart']} to {bad['entrystop']}"
            lines.append(f"skipped: {bad['file']}{part} ({bad['reason']})")
        return "\n".join(lines)


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    Attributes
    ----------
    histograms
        `hist.Hist` by name.
    cutflow
        Cutflow by dataset, as dictionaries.
    summary
        Metrics of every method, see `topreco.evaluation.summary.summarise`.
    statistics
        Amount of work, and the inputs that were left out.
    folder
        Folder that they were saved in.
    presets
        Preset and era that were used for each dataset, see `topreco.config.presets.describe_preset`.
    """

    histograms: dict[str, Any]
    cutflow: dict[str, Any]
    summary: Summary
    statistics: RunStatistics
    folder: Path
    presets: dict[str, str]


def load_histograms(path: str | Path) -> Mapping[str, Any]:
    """Histograms saved by `run`, from its folder or its ``histograms.coffea``.

    Raises
    ------
    TopRecoError
        If there is no such file or it was not written by `run`.
    """
    return load_results(path)["histograms"]


def load_results(path: str | Path) -> Mapping[str, Any]:
    """Histograms, cutflow and metadata saved by `run`, from its folder or its ``histograms.coffea``.

    The file may be the sum of several, by ``coffea.processor.accumulate`` and ``coffea.util.save``. Its
    ``metadata`` are then a list of the runs' own, and here those of the first with ``kept`` of all.

    Raises
    ------
    TopRecoError
        If there is no such file, it was not written by `run`, or the phase spaces of the unfolding of several
        runs differ.
    """
    path = Path(path)
    file = path / "histograms.coffea" if path.is_dir() else path
    if not file.is_file():
        raise TopRecoError(f"{file}: no such file; the output folder of `topreco run` expected")
    try:
        content = coffea.util.load(file)
        content["histograms"]
    # A damaged pickle raises almost anything.
    except Exception as error:
        raise TopRecoError(f"{file}: not the histograms of `topreco run` ({type(error).__name__})") from error
    # Another Runner saves none.
    if isinstance(content.get("metadata"), list):
        return {**content, "metadata": _merged(content["metadata"], file)}
    return content


def _merged(runs: Sequence[Mapping[str, Any]], file: Path) -> dict[str, Any]:
    """Metadata of several runs: those of the first, with the numbers of events of all."""
    spaces = [run.get("config", {}).get("unfolding", {}).get("phase_space") for run in runs]
    if any(space != spaces[0] for space in spaces):
        raise TopRecoError(
            f"{file}: the sum of runs with different unfolding.phase_space ({spaces[0]} and "
            f"{next(space for space in spaces if space != spaces[0])}), whose matrices cannot be added"
        )
    kept: dict[str, dict[str, int]] = {}
    presets: dict[str, str] = {}
    for run in runs:
        presets |= run.get("presets", {})
        for dataset, numbers in run.get("kept", {}).items():
            sums = kept.setdefault(dataset, dict.fromkeys(numbers, 0))
            for name, number in numbers.items():
                sums[name] += number
    return {**runs[0], "presets": presets} | ({"kept": kept} if kept else {})
