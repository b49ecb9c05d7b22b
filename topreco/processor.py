"""The coffea processor: NanoAOD events to histograms of reconstructed top-quark pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coffea.processor import ProcessorABC

from topreco.columns import ColumnWriter
from topreco.compare import fill_methods, load_methods
from topreco.config import HistogramConfig, SelectionConfig, SolverConfig
from topreco.evaluation.histograms import book
from topreco.input.selection import select
from topreco.input.truth import has_truth, read_truth
from topreco.reconstructors import Reconstructor


class DileptonProcessor(ProcessorABC):  # type: ignore[misc]
    """Select dileptonic events, reconstruct t and t̄ by every method, fill histograms.

    Runs in any coffea Runner with `NanoAODSchema`. Without generator branches it fills what needs no truth.
    Its output is a dictionary with ``histograms`` (name to `hist.Hist`) and ``cutflow`` (dataset to cutflow),
    which merges by addition; with `columns` also ``columns``, a list of the files written.

    Parameters
    ----------
    methods
        Reconstructors, model files or names that `topreco.load` knows.
    selection
        Cuts.
    histograms
        Observables and binning.
    solvers
        Settings of the analytic methods that are given by name.
    columns
        Where to write the results of each event; None keeps histograms only.

    Raises
    ------
    TopRecoError
        If a method cannot be loaded, or two have the same name.
    """

    def __init__(
        self,
        methods: Sequence[Reconstructor | str | Path],
        selection: SelectionConfig | None = None,
        histograms: HistogramConfig | None = None,
        solvers: SolverConfig | None = None,
        columns: ColumnWriter | None = None,
    ) -> None:
        # One thread each: the executor already keeps every core busy.
        self.methods = load_methods(methods, threads=1, solvers=solvers)
        self.selection = selection or SelectionConfig()
        self.histograms = histograms or HistogramConfig()
        self.columns = columns
        book(self.histograms)  # Refuses unknown observables here, not in the first worker.

    def process(self, events: Any) -> dict[str, Any]:
        """Fill the histograms of one chunk of `NanoEvents`."""
        dataset = events.metadata["dataset"]
        selected = select(events, self.selection, dataset=dataset)
        truth = read_truth(events[selected.index]) if has_truth(events) else None
        histograms = book(self.histograms)
        pairs = fill_methods(histograms, self.methods, dataset=dataset, events=selected.events, truth=truth)
        output: dict[str, Any] = {"histograms": histograms, "cutflow": {dataset: selected.cutflow.to_dict()}}
        if self.columns is not None:
            output["columns"] = [self.columns.write(events.metadata, selected.index, selected.events, pairs)]
        return output

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Nothing is left to do once the chunks are merged."""
        return accumulator
