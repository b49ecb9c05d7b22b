"""The coffea processor: NanoAOD events to histograms of reconstructed top-quark pairs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from coffea.processor import ProcessorABC

from topreco.columns import ColumnWriter
from topreco.compare import fill_methods, load_methods
from topreco.config import NOMINAL, HistogramConfig, SelectionConfig, SolverConfig, SystematicsConfig
from topreco.evaluation.histograms import book
from topreco.events import DileptonEvents, FloatArray, Truth
from topreco.input.nano import rename_branches
from topreco.input.pepper import is_pepper, select_pepper
from topreco.input.selection import Selection, select_objects
from topreco.input.systematics import check_corrections, event_weights, variations
from topreco.input.truth import has_truth, read_truth
from topreco.reconstructors import Reconstructor


class DileptonProcessor(ProcessorABC):  # type: ignore[misc]
    """Select dileptonic events, reconstruct t and t̄ by every method, fill histograms.

    Runs in any coffea Runner with `NanoAODSchema`, or on ROOT files of pepper with
    `topreco.input.pepper.PepperSchema`. Without generator branches it fills what needs no truth.
    Its output is a dictionary with ``histograms`` (name to `hist.Hist`) and ``cutflow`` (dataset to cutflow),
    which merges by addition; with `columns` also ``columns``, a list of the files written.

    Parameters
    ----------
    methods
        Reconstructors, model files or names that `topreco.load` knows.
    selection
        Cuts; what is not set follows the preset of each file's NanoAOD version.
    histograms
        Observables and binning.
    solvers
        Settings of the analytic methods that are given by name.
    systematics
        Corrections and variations; none by default. The cutflow is that of the nominal events, with the
        weights of the generator.
    columns
        Where to write the results of each event; None keeps histograms only.

    Raises
    ------
    TopRecoError
        If a method cannot be loaded, two have the same name, or a correction cannot be used.
    """

    def __init__(
        self,
        methods: Sequence[Reconstructor | str | Path],
        selection: SelectionConfig | None = None,
        histograms: HistogramConfig | None = None,
        solvers: SolverConfig | None = None,
        systematics: SystematicsConfig | None = None,
        columns: ColumnWriter | None = None,
    ) -> None:
        # One thread each: the executor already keeps every core busy.
        self.methods = load_methods(methods, threads=1, solvers=solvers)
        self.selection = selection or SelectionConfig()
        self.histograms = histograms or HistogramConfig()
        self.systematics = systematics or SystematicsConfig()
        self.columns = columns
        # Refuse what is wrong here, not in the first worker.
        book(self.histograms)
        check_corrections(self.systematics)

    def process(self, events: Any) -> dict[str, Any]:
        """Fill the histograms of one chunk of `NanoEvents`."""
        dataset = events.metadata["dataset"]
        weights: dict[str, FloatArray] = {}
        if is_pepper(events):
            # pepper has corrected its objects, and its weights are final.
            selected = {NOMINAL: select_pepper(events, self.selection, dataset=dataset)}
        else:
            events = rename_branches(events, self.selection.branches)
            selected, weights = self._select_variations(events, dataset)
        samples = dict(zip(selected, self._with_truth(events, list(selected.values())), strict=True))
        nominal, truth = samples.pop(NOMINAL)
        histograms = book(self.histograms)
        pairs = fill_methods(
            histograms,
            self.methods,
            dataset=dataset,
            events=nominal,
            truth=truth,
            variations=samples,
            weights=weights,
            metrics=self.systematics.metrics,
        )
        cutflow = selected[NOMINAL].cutflow.to_dict()
        output: dict[str, Any] = {"histograms": histograms, "cutflow": {dataset: cutflow}}
        if self.columns is not None:
            output["columns"] = [
                self.columns.write(events.metadata, found.index, found.events, pairs[name], variation=name)
                for name, found in selected.items()
            ]
        return output

    def _select_variations(
        self, events: Any, dataset: str
    ) -> tuple[dict[str, Selection], dict[str, FloatArray]]:
        """Selected events of every variation of objects, and the weights of the nominal ones in others."""
        selected: dict[str, Selection] = {}
        weights: dict[str, FloatArray] = {}
        for name, objects in variations(events, self.selection, self.systematics):
            found = select_objects(objects, self.selection, dataset=dataset)
            factors = event_weights(events, objects, found, self.systematics, varied=name == NOMINAL)
            weight = found.events.weight
            corrected = dataclasses.replace(found.events, weight=weight * factors.pop(NOMINAL))
            selected[name] = dataclasses.replace(found, events=corrected)
            weights |= {variation: weight * factor for variation, factor in factors.items()}
        return selected, weights

    @staticmethod
    def _with_truth(
        events: Any, selections: Sequence[Selection]
    ) -> list[tuple[DileptonEvents, Truth | None]]:
        """Selected events with their truth, which is read once for what any selection has."""
        if not has_truth(events):
            return [(selection.events, None) for selection in selections]
        index = np.unique(np.concatenate([selection.index for selection in selections]))
        truth = read_truth(events[index])
        return [(s.events, truth[np.searchsorted(index, s.index)]) for s in selections]

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Nothing is left to do once the chunks are merged."""
        return accumulator
