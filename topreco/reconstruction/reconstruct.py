"""Top quarks for any coffea code: events or own objects in, awkward four-momenta out, one entry per event."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from topreco.config import SelectionConfig
from topreco.core import fourvector
from topreco.core.errors import TopRecoError
from topreco.core.events import DileptonEvents, FloatArray, IntArray, TopPair
from topreco.core.method import NamedCallable, as_method
from topreco.input.own import ACCEPTED, dilepton_events
from topreco.reconstruction.load import load

_FLAT = {"nJet", "Jet_pt", "Electron_pt", "Muon_pt"}
"""Branches that NanoAODSchema gathers into collections, and coffea's BaseSchema does not."""


def reconstruct(
    events: Any,
    model: str | Path | NamedCallable = "dilepton",
    *,
    selection: SelectionConfig | None = None,
    dataset: str | None = None,
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
          where the method needs them, ``run``, ``luminosityBlock`` and ``event``. They are taken as
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
    threads
        Threads of each call of a method that is loaded here, see `topreco.core.threads`.

    Returns
    -------
    tops
        Record array of the length of `events`: ``top``, ``antitop`` and ``ttbar`` are `Momentum4D` of
        `vector` (pt, eta, phi, mass in GeV, and all that follows), NaN unless ``valid``; ``selected`` is
        False for events that were not selected. Where the method knows them, ``quality``
        (larger is better) and ``quantiles``: for each observable the quantiles of its true value at
        `topreco.core.events.QUANTILE_LEVELS`, five numbers per event.

    Raises
    ------
    TopRecoError
        If the events are none of these, a field is missing, or the model cannot be used.
    """
    import awkward as ak

    method = load(model, threads=threads) if isinstance(model, str | Path) else as_method(model)
    config = selection or SelectionConfig()
    if isinstance(events, DileptonEvents):
        return _aligned(method(events), np.arange(len(events)), len(events))
    dataset = dataset or (getattr(events, "metadata", None) or {}).get("dataset", "default")
    if isinstance(events, ak.Array) and (select := _selector(events)) is not None:
        selected = select(events, config, dataset=dataset)
        return _aligned(method(selected.events), selected.index, len(events))
    if isinstance(events, ak.Array) and _FLAT & set(events.layout.fields):
        raise TopRecoError(
            "reconstruct: the events have branches and no collections; open with NanoAODSchema"
        )
    if not isinstance(events, Mapping | ak.Array):
        raise TopRecoError(f"reconstruct: {ACCEPTED} expected, {type(events).__name__} found")
    chosen, index = dilepton_events(events, config, dataset=dataset, needs_key=method.uses_event_key)
    return _aligned(method(chosen), index, len(events["jets"]))


def _selector(events: Any) -> Any:
    """Function that selects from a chunk of NanoAOD or of pepper; None for anything else."""
    from topreco.input.pepper.read import is_pepper
    from topreco.input.pepper.select import select_pepper
    from topreco.input.selection import select

    if is_pepper(events):
        return select_pepper
    return select if {"Electron", "Muon", "Jet"} <= set(events.layout.fields) else None


def _aligned(pair: TopPair, index: IntArray, n: int) -> Any:
    """The pairs as awkward records at their positions among n events."""
    import awkward as ak
    import vector

    if len(pair) != len(index):
        raise TopRecoError(
            f"method: one top-quark pair for each of {len(index)} events expected, {len(pair)} found"
        )
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
    if pair.quantiles:
        quantiles = {name: numbers(values) for name, values in pair.quantiles.items()}
        columns["quantiles"] = ak.zip(quantiles, depth_limit=1)
    return ak.zip(
        columns,
        depth_limit=1,
        behavior=vector.backends.awkward.behavior,
    )
