"""Events of pepper to `DileptonEvents`."""

from typing import Any

import numpy as np

from topreco.config import SelectionConfig
from topreco.config.presets import tagger_working_points
from topreco.core import fourvector
from topreco.core.constants import M_ELECTRON, M_MUON, PDG_ELECTRON, PDG_MUON
from topreco.core.events import CHANNELS, DileptonEvents, dataset_id
from topreco.core.pairing import b_candidates
from topreco.input.branches import Branches
from topreco.input.cutflow import Cutflow
from topreco.input.features import count_working_points
from topreco.input.nano import EVENT_KEY
from topreco.input.objects import NO_B_TAG, b_tag_scores, pad_in_falling_pt
from topreco.input.pepper.hdf5 import FLAGS
from topreco.input.pepper.read import APPLICABLE, MOMENTUM, flags_to_require
from topreco.input.selection import Selection

# pepper writes the central weight alone, or as a column among the systematic variations; none in data.
PEPPER_WEIGHTS = ("weight", "systematics_weight")
"""Columns with the weight of an event, of which the first one counts that is there."""


def select_pepper(events: Any, config: SelectionConfig, *, dataset: str) -> Selection:
    """Take dileptonic events that pepper has selected.

    Events pass all of pepper's cuts, or those up to `config.pepper.cut`, and have two leptons of opposite
    charge. Leptons, jets and MET are ``Lepton``, ``Jet`` and ``MET`` as pepper made them; b-tagged is what
    ``Jet_btagged`` says, or without it the score above `config.jet.btag_threshold`. b candidates are chosen
    by `topreco.core.pairing`, since pepper's ``recob`` is already a result of its reconstruction. The weight
    is pepper's, 1 where it has none.

    Parameters
    ----------
    events
        Chunk of `iterate_pepper`, or of a coffea Runner with `PepperSchema`.
    config
        See `topreco.config.PepperSelection` for the keys that apply.
    dataset
        Name of the dataset, which enters the key of each event.

    Returns
    -------
    selection
        Events, their positions in the chunk, and the cutflow: one step per cut of pepper.

    Raises
    ------
    topreco.input.nano.InputError
        If a column is missing, cannot be read, or contains a value that is not finite.
    topreco.config.ConfigError
        If a key of the selection would be ignored.
    """
    config.require_effect(APPLICABLE, "events of pepper")
    branches = Branches.of(events, config)
    n = len(branches)
    weight = next((branches.finite(name) for name in PEPPER_WEIGHTS if branches.has(name)), np.ones(n))
    cutflow = Cutflow()
    cutflow.add_step("all", weight)
    passed = np.ones(n, dtype=bool)
    for name in flags_to_require(branches.layout[FLAGS].fields, config, branches.origin):
        passed &= branches.finite(f"{FLAGS}_{name}") != 0
        cutflow.add_step(name, weight[passed])

    code = branches.read("Lepton_pdgId").astype(np.int64)
    counts = branches.counts("Lepton_pdgId")
    passed &= counts == 2
    index = np.flatnonzero(passed)
    first = (np.cumsum(counts) - counts)[index]
    # Columns: ℓ⁺, ℓ⁻, which have negative and positive codes.
    pair = first[:, None] + np.argsort(code[first[:, None] + [0, 1]], axis=1, kind="stable")
    flavour = np.abs(code[pair])
    opposite = np.isin(flavour, [PDG_ELECTRON, PDG_MUON]).all(axis=1) & (code[pair].prod(axis=1) < 0)
    index, pair, flavour = index[opposite], pair[opposite], flavour[opposite]
    channel = (flavour == PDG_MUON).sum(axis=1)
    cutflow.add_step("two leptons of opposite charge", weight[index], channel)
    if set(config.channels) != set(CHANNELS):
        chosen = np.isin(channel, [CHANNELS.index(name) for name in config.channels])
        index, pair, flavour, channel = index[chosen], pair[chosen], flavour[chosen], channel[chosen]
        cutflow.add_step("channel", weight[index], channel)

    pt, eta, phi = (branches.finite(f"Lepton_{field}")[pair] for field in MOMENTUM)
    mass = np.where(flavour == PDG_MUON, M_MUON, M_ELECTRON)
    leptons = fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass)
    kept = branches[index]
    jets = _jets(kept, config, cutflow)
    met_pt, met_phi = (kept.finite(f"MET_{field}") for field in ("pt", "phi"))
    run, luminosity_block, event = (kept.read(name) for name in EVENT_KEY)
    selected = DileptonEvents(
        lepton_plus=leptons[:, 0],
        lepton_minus=leptons[:, 1],
        lepton_flavour=flavour,
        **jets,
        b_candidates=b_candidates(
            leptons[:, 0],
            leptons[:, 1],
            jets["jets"],
            jets["jet_mask"],
            jets["jet_tagged"],
            m_lb_max=config.m_lb_max,
        ),
        met=np.stack([met_pt * np.cos(met_phi), met_pt * np.sin(met_phi)], axis=-1),
        dataset=np.full(len(index), dataset_id(dataset), dtype=np.uint64),
        run=run.astype(np.uint32),
        luminosity_block=luminosity_block.astype(np.uint32),
        event=event.astype(np.uint64),
        weight=weight[index],
    )
    return Selection(selected, index, cutflow)


def _jets(branches: Branches, config: SelectionConfig, cutflow: Cutflow) -> dict[str, Any]:
    """Jets in falling pT, padded: the fields of `DileptonEvents` by name."""
    counts = branches.counts("Jet_pt")
    pt, eta, phi, mass = (branches.finite(f"Jet_{field}") for field in (*MOMENTUM, "mass"))
    name = f"Jet_{config.jet.btag}"
    score = branches.read(name, key="jet.btag").astype(np.float64)
    score, has_score = b_tag_scores(score, f"{branches.origin}: branch {name!r}")
    tagged = (
        branches.read("Jet_btagged").astype(bool)
        if branches.has("Jet_btagged")
        else score > config.jet.btag_threshold
    )
    cutflow.note(NO_B_TAG, int(np.count_nonzero(~has_score)))
    n = len(counts)
    padded = pad_in_falling_pt(np.repeat(np.arange(n), counts), pt, n, config.jet.max_jets)
    return {
        "jets": padded(fourvector.from_pt_eta_phi_mass(pt, eta, phi, mass)),
        "jet_mask": padded(np.ones(len(pt), dtype=bool)),
        "jet_btag": padded(score),
        "jet_tagged": padded(tagged),
        "jet_working_points": count_working_points(
            padded(score), config.jet.btag_working_points or tagger_working_points(None, config.jet)
        ),
    }
