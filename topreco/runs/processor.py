"""The coffea processor: NanoAOD events to histograms of reconstructed top-quark pairs."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from coffea.processor import ProcessorABC

from topreco.config import (
    NOMINAL,
    HistogramConfig,
    SelectionConfig,
    SolverConfig,
    SystematicsConfig,
    UnfoldingConfig,
)
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, IntArray, Posterior, TopPair, Truth
from topreco.core.method import Method, as_sampler, gives_samples
from topreco.evaluation.fill import fill_methods, fill_values
from topreco.evaluation.histograms import book, book_ratios
from topreco.evaluation.responses import book_responses, fill_generated, fill_responses
from topreco.input.branches import Branches
from topreco.input.event_cuts import check_event_cuts
from topreco.input.particle import read_particle_level
from topreco.input.pepper.read import is_pepper
from topreco.input.pepper.select import select_pepper
from topreco.input.selection import Selection, select_objects
from topreco.input.systematics import check_corrections, event_weights, generated_weights, variations
from topreco.input.truth import has_truth, read_truth
from topreco.reconstruction.load import load_methods, load_ratios
from topreco.reconstruction.model_files import needed_features
from topreco.runs.columns import ColumnWriter


class DileptonProcessor(ProcessorABC):  # type: ignore[misc]
    """Select dileptonic events, reconstruct t and t̄ by every method, fill histograms.

    Runs in any coffea Runner with `NanoAODSchema`, or on ROOT files of pepper with
    `topreco.input.pepper.read.PepperSchema`. Without generator branches it fills what needs no truth.
    Its output is a dictionary with ``histograms`` (name to `hist.Hist`) and ``cutflow`` (dataset to cutflow),
    which merges by addition; with `columns` also ``columns``, a list of the files written.

    Parameters
    ----------
    methods
        Methods, or model files and names that `topreco.load` knows, which are loaded here.
    selection
        Cuts; what is not set follows the preset of each file's NanoAOD version. The features that the methods
        see are added.
    histograms
        Observables and binning.
    solvers
        Settings of the analytic methods that are given by name.
    systematics
        Corrections and variations; none by default. The cutflow is that of the nominal events, with the
        weights of the generator.
    columns
        Where to write the results of each event; None keeps histograms only.
    unfolding
        Response matrices to fill; none by default. They need files with all generated events.
    ratios
        Model files of the task `ratio` by the name of the learned observable.

    Raises
    ------
    TopRecoError
        If a method cannot be loaded, two have the same name, none gives the samples that `columns` is to
        write, or a correction cannot be used.
    """

    def __init__(
        self,
        methods: Sequence[Method | str | Path],
        selection: SelectionConfig | None = None,
        histograms: HistogramConfig | None = None,
        solvers: SolverConfig | None = None,
        systematics: SystematicsConfig | None = None,
        columns: ColumnWriter | None = None,
        unfolding: UnfoldingConfig | None = None,
        ratios: Mapping[str, str | Path] | None = None,
    ) -> None:
        # One thread each, as the executor already uses every core; histograms need no quantiles.
        solvers = solvers and solvers.absolute()
        self.methods = load_methods(methods, threads=1, solvers=solvers, quantiles=columns is not None)
        self.ratios = load_ratios(ratios or {}, threads=1)
        features = needed_features([*self.methods, *self.ratios.values()])
        self.selection = (selection or SelectionConfig()).absolute().with_features(features)
        self.histograms = histograms or HistogramConfig()
        self.systematics = (systematics or SystematicsConfig()).absolute()
        self.columns = columns
        if columns is not None and columns.samples and not any(map(gives_samples, self.methods)):
            raise TopRecoError(
                f"columns_samples: {columns.samples} found, but none of the methods gives samples: "
                f"{', '.join(method.name for method in self.methods)}"
            )
        self.unfolding = unfolding or UnfoldingConfig()
        # Errors belong here, not in the first worker.
        book(self.histograms)
        check_corrections(self.systematics)
        check_event_cuts(self.selection)

    def process(self, events: Any) -> dict[str, Any]:
        """Fill the histograms of one chunk of `NanoEvents`."""
        branches = Branches(events, self.selection)
        dataset = branches.metadata["dataset"]
        weights: dict[str, FloatArray] = {}
        if is_pepper(events):
            if self.unfolding.fills:
                raise TopRecoError(
                    f"unfolding: not for files of pepper, which lack the events it rejected: {dataset}"
                )
            # pepper has corrected its objects, and its weights are final.
            selected = {NOMINAL: select_pepper(branches, self.selection, dataset=dataset)}
        else:
            selected, weights = self._select_variations(branches, dataset)
        known, truth = self._read_truth(branches, selected)
        samples = {
            name: (found.events, None if truth is None else truth[np.searchsorted(known, found.index)])
            for name, found in selected.items()
        }
        nominal, nominal_truth = samples[NOMINAL]
        histograms = book(self.histograms)
        pairs = fill_methods(
            histograms,
            self.methods,
            dataset=dataset,
            events=nominal,
            truth=nominal_truth,
            variations={name: sample for name, sample in samples.items() if name != NOMINAL},
            weights=weights,
            metrics=self.systematics.metrics,
        )
        if self.unfolding.fills:
            positions = {name: found.index for name, found in selected.items()}
            histograms |= self._responses(branches, truth, samples, positions, weights, pairs)
        log_ratios = self._ratios(histograms, samples, weights, dataset)
        cutflow = selected[NOMINAL].cutflow.to_dict()
        output: dict[str, Any] = {"histograms": histograms, "cutflow": {dataset: cutflow}}
        if self.columns is not None:
            output["columns"] = [
                self.columns.write(
                    branches.metadata,
                    found.index,
                    found.events,
                    pairs[name],
                    self._samples(found.events, self.columns.samples),
                    variation=name,
                    ratios=log_ratios[name],
                )
                for name, found in selected.items()
            ]
        return output

    def _ratios(
        self,
        histograms: dict[str, Any],
        samples: Mapping[str, tuple[DileptonEvents, Truth | None]],
        weights: Mapping[str, FloatArray],
        dataset: str,
    ) -> dict[str, dict[str, FloatArray]]:
        """Book and fill learned observables; their values by variation and name."""
        histograms |= book_ratios(self.ratios)
        found: dict[str, dict[str, FloatArray]] = {variation: {} for variation in samples}
        for variation, (events, _) in samples.items():
            for name, ratio in self.ratios.items():
                values = found[variation][name] = ratio.log_ratio(events)
                others = weights if variation == NOMINAL else {}
                for category, weight in {variation: events.weight, **others}.items():
                    weighted = dataclasses.replace(events, weight=weight)
                    fill_values(histograms[f"ratio/{name}"], (dataset, name, category), weighted, [values])
        return found

    def _samples(self, events: DileptonEvents, n: int) -> dict[str, Posterior]:
        """Samples of each event, by the name of each method that gives some."""
        return {
            method.name: as_sampler(method).sample(events, n)
            for method in self.methods
            if n and gives_samples(method)
        }

    def _select_variations(
        self, branches: Branches, dataset: str
    ) -> tuple[dict[str, Selection], dict[str, FloatArray]]:
        """Selected events of every variation of objects, and the weights of the nominal ones in others."""
        selected: dict[str, Selection] = {}
        weights: dict[str, FloatArray] = {}
        for name, objects in variations(branches, self.selection, self.systematics):
            found = select_objects(objects, self.selection, dataset=dataset)
            factors = event_weights(
                branches, objects, found, self.systematics, dataset=dataset, varied=name == NOMINAL
            )
            weight = found.events.weight
            corrected = dataclasses.replace(found.events, weight=weight * factors.pop(NOMINAL))
            selected[name] = dataclasses.replace(found, events=corrected)
            weights |= {variation: weight * factor for variation, factor in factors.items()}
        return selected, weights

    def _read_truth(
        self, branches: Branches, selected: Mapping[str, Selection]
    ) -> tuple[IntArray, Truth | None]:
        """Positions in the chunk and truth of events that any variation selects; for unfolding of all."""
        if not has_truth(branches):
            return np.empty(0, np.intp), None
        if self.unfolding.fills:
            return np.arange(len(branches)), read_truth(branches)
        index = np.unique(np.concatenate([selection.index for selection in selected.values()]))
        return index, read_truth(branches[index])

    def _responses(
        self,
        branches: Branches,
        truth: Truth | None,
        samples: Mapping[str, tuple[DileptonEvents, Truth | None]],
        positions: Mapping[str, IntArray],
        weights: Mapping[str, FloatArray],
        pairs: Mapping[str, Mapping[str, TopPair]],
    ) -> dict[str, Any]:
        """Filled response matrices of the chunk, and the generated spectra of all its events."""
        dataset = branches.metadata["dataset"]
        histograms = book_responses(self.unfolding)
        if truth is not None and self.unfolding.phase_space.level == "particle":
            truth = read_particle_level(branches, self.unfolding.phase_space)
            samples = {name: (events, truth[positions[name]]) for name, (events, _) in samples.items()}
        if truth is not None:
            fill_generated(
                histograms,
                self.unfolding.phase_space,
                dataset=dataset,
                truth=truth,
                weights=generated_weights(branches, self.selection, self.systematics),
            )
        for variation, (selected, generated) in samples.items():
            of_events = {variation: selected.weight, **(weights if variation == NOMINAL else {})}
            for method, pair in pairs[variation].items():
                fill_responses(
                    histograms,
                    self.unfolding.phase_space,
                    dataset=dataset,
                    method=method,
                    events=selected,
                    pair=pair,
                    truth=generated,
                    weights=of_events,
                )
        return histograms

    def postprocess(self, accumulator: dict[str, Any]) -> dict[str, Any]:
        """Nothing is left to do once the chunks are merged."""
        return accumulator
