"""Top quarks for any coffea code: events or own objects in, awkward four-momenta out, one entry per event."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from topreco.config import SelectionConfig
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, IntArray, Posterior, TopPair
from topreco.core.method import Method, NamedCallable, as_method, as_sampler, checked_samples
from topreco.input.own import ACCEPTED, dilepton_events
from topreco.reconstruction.load import load_method
from topreco.reconstruction.model_files import needed_features

_FLAT = {"nJet", "Jet_pt", "Electron_pt", "Muon_pt"}
"""Branches that NanoAODSchema gathers into collections, and coffea's BaseSchema does not."""


def reconstruct(
    events: Any,
    model: str | Path | NamedCallable = "dilepton",
    *,
    selection: SelectionConfig | None = None,
    dataset: str | None = None,
    samples: int | None = None,
    threads: int | None = 1,
) -> Any:
    """Four-momenta of t and t̄ of each event, as an awkward array aligned with the events.

    Parameters
    ----------
    events
        One of four:

        - `NanoEvents`, from which `selection` selects;
        - events of pepper, as `topreco.input.pepper.read` reads them, that pepper's cuts select;
        - your own objects as a dictionary, or a record array, of awkward arrays with one entry per event:
          ``leptons`` (any number per event, with pt, eta, phi, charge, pdgId), or in their place
          ``lepton_plus`` and ``lepton_minus`` (one or None per event); ``jets`` (any number, with pt, eta,
          phi, mass and the b-tag score as ``btag`` or under its name in NanoAOD); ``met`` (pt, phi); and,
          where the method or samples need them, ``run``, ``luminosityBlock`` and ``event``; and the features
          that the model sees, see `topreco.input.own.dilepton_events`. They are taken as
          selected: events with one ℓ⁺, one ℓ⁻ and at least two jets are reconstructed;
        - `DileptonEvents`.
    model
        A name or model file that `topreco.load` knows, a method that it returned, or any callable with a
        name. A model file is read once per process.
    selection
        Cuts on `NanoEvents`. For own objects only its name and working point of the b tagger (`preset` and
        `era` set both), its number of jets to keep and `m_lb_max` count.
    dataset
        Name of the dataset, part of an event's key; by default that of `events.metadata`.
    samples
        Number of samples of the tops that an event may have come from, of a method that gives some; None for
        no samples.
    threads
        Threads of each call of a method that is loaded here, see `topreco.core.threads`.

    Returns
    -------
    tops
        Record array of the length of `events`: ``top``, ``antitop`` and ``ttbar`` are `Momentum4D` of
        `vector` (pt, eta, phi, mass in GeV, and all that follows), NaN unless ``valid``; ``selected`` is
        False for events that were not selected. Where the method knows them, ``observables``: values of
        observables that are better than those of the four-momenta, by their names in
        `topreco.core.observables.OBSERVABLES`; ``quality`` (larger is better); and ``quantiles``: for each
        observable the quantiles of its true value at `topreco.core.events.QUANTILE_LEVELS`, five numbers per
        event. With `samples` also the record ``samples``: ``top`` and ``antitop``, `Momentum4D` of each event
        and sample, and ``weight``, whose sum is 1 in each event. A sample that does not exist is NaN and has
        the weight 0; where the event is not valid, weights are NaN too.

    Raises
    ------
    TopRecoError
        If the events are none of these, a field is missing, or the model cannot be used or gives no samples.
    """
    import awkward as ak

    method = load_method(model, threads=threads) if isinstance(model, str | Path) else as_method(model)
    if samples is not None:
        as_sampler(method)
        checked_samples(samples)
    config = (selection or SelectionConfig()).with_features(needed_features([method]))
    if isinstance(events, DileptonEvents):
        return _reconstruct(method, events, np.arange(len(events)), len(events), samples)
    dataset = dataset or (getattr(events, "metadata", None) or {}).get("dataset", "default")
    if isinstance(events, ak.Array) and (select := _selector(events)) is not None:
        selected = select(events, config, dataset=dataset)
        return _reconstruct(method, selected.events, selected.index, len(events), samples)
    if isinstance(events, ak.Array) and _FLAT & set(events.layout.fields):
        raise TopRecoError(
            "reconstruct: the events have branches and no collections; open with NanoAODSchema"
        )
    if not isinstance(events, Mapping | ak.Array):
        raise TopRecoError(f"reconstruct: {ACCEPTED} expected, {type(events).__name__} found")
    # The noise of samples is a hash of the key.
    needs_key = method.uses_event_key or samples is not None
    chosen, index = dilepton_events(events, config, dataset=dataset, needs_key=needs_key)
    return _reconstruct(method, chosen, index, len(events["jets"]), samples)


def _selector(events: Any) -> Any:
    """Function that selects from a chunk of NanoAOD or of pepper; None for anything else."""
    from topreco.input.pepper.read import is_pepper
    from topreco.input.pepper.select import select_pepper
    from topreco.input.selection import select

    if is_pepper(events):
        return select_pepper
    return select if {"Electron", "Muon", "Jet"} <= set(events.layout.fields) else None


def _reconstruct(
    method: Method, events: DileptonEvents, index: IntArray, n: int, n_samples: int | None
) -> Any:
    """Pairs and samples of selected events, as awkward records at their positions among n events."""
    pair = method(events)
    posterior = None if n_samples is None else as_sampler(method).sample(events, n_samples)
    for what, found in (("top-quark pair", pair), ("set of samples", posterior)):
        if found is not None and len(found) != len(index):
            raise TopRecoError(
                f"method: one {what} for each of {len(index)} events expected, {len(found)} found"
            )
    return _aligned(pair, posterior, index, n)


def _aligned(pair: TopPair, posterior: Posterior | None, index: IntArray, n: int) -> Any:
    """Pairs and samples as awkward records at their positions among n events."""
    import awkward as ak
    import vector

    selected = np.zeros(n, dtype=bool)
    selected[index] = True
    valid = np.zeros(n, dtype=bool)
    valid[index] = pair.valid

    def numbers(values: FloatArray) -> FloatArray:
        padded = np.full((n, *values.shape[1:]), np.nan)
        padded[index[pair.valid]] = values[pair.valid]
        return padded

    def momentum(p4: FloatArray) -> Any:
        return ak.zip(
            fourvector.to_pt_eta_phi_mass(numbers(p4)),
            with_name="Momentum4D",
            behavior=vector.backends.awkward.behavior,
        )

    columns = {
        "top": momentum(pair.p4[:, 0]),
        "antitop": momentum(pair.p4[:, 1]),
        "ttbar": momentum(pair.system),
        "valid": valid,
        "selected": selected,
    }
    if pair.quality is not None:
        columns["quality"] = numbers(pair.quality)
    for field in ("observables", "quantiles"):
        if by_name := getattr(pair, field):
            columns[field] = ak.zip({name: numbers(x) for name, x in by_name.items()}, depth_limit=1)
    if posterior is not None:
        # As lists, with which numbers of events broadcast; regular arrays would align with the samples.
        columns["samples"] = ak.zip(
            {
                "top": ak.from_regular(momentum(posterior.samples[:, :, 0])),
                "antitop": ak.from_regular(momentum(posterior.samples[:, :, 1])),
                "weight": ak.from_regular(numbers(posterior.weight)),
            },
            depth_limit=1,
        )
    return ak.zip(
        columns,
        depth_limit=1,
        behavior=vector.backends.awkward.behavior,
    )
